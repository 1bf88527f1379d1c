/* What a call takes, in nanoseconds: idle CALL BYTES THREADS COUNT DIRECTORY
 *
 * Each thread makes COUNT calls on a file of its own, in 100 batches; printed is the median batch, on average of the
 * threads. The harness runs it with the library preloaded and without. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { BATCHES = 100, MOST_THREADS = 8 };

static const char *call, *directory;
static size_t bytes;
static long count;
static double medians[MOST_THREADS];

static void check(int ok)
{
    if (!ok) {
        perror(call);
        exit(1);
    }
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1e9 + time.tv_nsec;
}

static void batch(long calls, int fd, char *data, const char *file, const char *other)
{
    if (!strcmp(call, "pwrite"))
        while (calls--)
            check(pwrite(fd, data, bytes, 0) == (ssize_t)bytes);
    else if (!strcmp(call, "pread"))
        while (calls--)
            check(pread(fd, data, bytes, 0) == (ssize_t)bytes);
    else if (!strcmp(call, "write"))
        while (calls--) {
            if (calls % 256 == 0)
                lseek(fd, 0, SEEK_SET);
            check(write(fd, data, bytes) == (ssize_t)bytes);
        }
    else if (!strcmp(call, "open"))
        while (calls--) {
            int opened = open(file, O_RDWR);
            check(opened >= 0 && close(opened) == 0);
        }
    else
        while (calls--) {
            int made = open(other, O_RDWR | O_CREAT | O_EXCL, 0600);
            check(made >= 0 && close(made) == 0 && unlink(other) == 0);
        }
}

static int ascending(const void *a, const void *b)
{
    double difference = *(const double *)a - *(const double *)b;
    return (difference > 0) - (difference < 0);
}

static void *work(void *number)
{
    long thread = (long)number;
    char file[4096], other[4096];
    double took[BATCHES];
    char *data = calloc(1, bytes);
    snprintf(file, sizeof file, "%s/file-%ld", directory, thread);
    snprintf(other, sizeof other, "%s/other-%ld", directory, thread);
    int fd = open(file, O_RDWR | O_CREAT, 0600);
    check(fd >= 0 && pwrite(fd, data, bytes, 0) == (ssize_t)bytes);
    for (int i = 0; i < BATCHES; i++) {
        double begun = now();
        batch(count / BATCHES, fd, data, file, other);
        took[i] = (now() - begun) / (count / BATCHES);
    }
    qsort(took, BATCHES, sizeof *took, ascending);
    medians[thread] = took[BATCHES / 2];
    free(data);
    return NULL;
}

int main(int argc, char **argv)
{
    pthread_t ids[MOST_THREADS];
    double sum = 0;
    if (argc != 6)
        return 2;
    call = argv[1], bytes = atol(argv[2]), count = atol(argv[4]), directory = argv[5];
    long threads = atol(argv[3]);
    for (long i = 1; i < threads; i++)
        check(!pthread_create(&ids[i], NULL, work, (void *)i));
    work((void *)0);
    for (long i = 1; i < threads; i++)
        pthread_join(ids[i], NULL);
    for (long i = 0; i < threads; i++)
        sum += medians[i];
    printf("%.3f\n", sum / threads);
    return 0;
}
