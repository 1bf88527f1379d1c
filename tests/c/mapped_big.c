/* A large mapped file of which few pages were stored to is in the copy within the freeze, where copying it whole does not fit.
 *
 * Method: a file of 2 GiB, in which HOTBACKUP_MAPPED_MIB (400) are data, and a freeze of 100 ms at the most. A thread stores to pages
 * of it all the time, and comes to rest in before_cut. */
#include "common.h"

#include <stdbool.h>
#include <sys/mman.h>

static const size_t SIZE = 2ul << 30, PAGE = 4096;
static size_t DATA;
static char *map;
static pthread_mutex_t storing = PTHREAD_MUTEX_INITIALIZER;
static uint64_t stores, at_the_cut;
static atomic_bool stop;

/* The page that the store of this number goes to. */
static size_t place(uint64_t number) {
    return number % 1024 * (DATA / PAGE / 1024) * PAGE;
}

static void *storer(void *unused) {
    (void)unused;
    while (!stop) {
        pthread_mutex_lock(&storing);
        stores++;
        memcpy(map + place(stores), &stores, sizeof stores);
        pthread_mutex_unlock(&storing);
        if (stores % 64 == 0) nap_ms(1);
    }
    return NULL;
}

static void before_cut(void *unused) {
    (void)unused;
    pthread_mutex_lock(&storing);
    at_the_cut = stores;
}

static void after_cut(void *unused) {
    (void)unused;
    pthread_mutex_unlock(&storing);
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    const char *megabytes = getenv("HOTBACKUP_MAPPED_MIB");
    DATA = (megabytes ? strtoul(megabytes, NULL, 10) : 400) << 20;
    int fd = open(in(argv[1], "big"), O_RDWR | O_CREAT, 0600);
    CHECK(fd >= 0);
    static char block[1 << 20];
    memset(block, 'x', sizeof block);
    memset(block, 0, sizeof(uint64_t));
    for (size_t at = 0; at < DATA; at += sizeof block) CHECK(pwrite(fd, block, sizeof block, (off_t)at) == sizeof block);
    CHECK(ftruncate(fd, (off_t)SIZE) == 0);
    map = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(map != MAP_FAILED);
    for (size_t at = 0; at < DATA; at += PAGE) memset(map + at, 0, sizeof stores);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, storer, NULL) == 0);

    hotbackup_pair pair = {argv[1], argv[2]};
    hotbackup_options options = options_of(&pair);
    hotbackup_report report = {.size = sizeof report};
    options.max_stall_ms = 100;
    options.before_cut = before_cut;
    options.after_cut = after_cut;
    CHECK_OK(API(hotbackup_backup)(&options, &report));
    stop = true;
    /* Only what was stored to was copied again. */
    CHECK(report.bytes_recopied < DATA / 2);
    CHECK(pthread_join(thread, NULL) == 0);

    int copy = open(in(argv[2], "big"), O_RDONLY);
    CHECK(copy >= 0 && lseek(copy, 0, SEEK_END) == (off_t)SIZE);
    uint64_t *last = calloc(DATA / PAGE, sizeof *last);
    CHECK(last && at_the_cut > 1000);
    for (uint64_t number = 1; number <= at_the_cut; number++) last[place(number) / PAGE] = number;
    for (size_t at = 0; at < DATA; at += sizeof block) {
        CHECK(pread(copy, block, sizeof block, (off_t)at) == sizeof block);
        for (size_t page = 0; page < sizeof block; page += PAGE) {
            uint64_t found;
            memcpy(&found, block + page, sizeof found);
            if (found != last[(at + page) / PAGE]) {
                fprintf(stderr, "page %zu holds store %lu instead of %lu\n", (at + page) / PAGE, (unsigned long)found,
                        (unsigned long)last[(at + page) / PAGE]);
                return 1;
            }
        }
    }
    printf("  %llu stores before the cut, at try %d after %.1f ms\n", (unsigned long long)at_the_cut,
           (int)report.cut_attempts, (double)report.freeze_ns / 1e6);
    return 0;
}
