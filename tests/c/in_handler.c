/* Signal handlers that open, write, rename and unlink, while threads do the same and a backup runs: the handlers
 * interrupt hooks at every point. */
#include "common.h"
#include <sys/time.h>

static const char *source;
static atomic_bool stop;
static atomic_long handled;
static char ours[2][PATH_MAX];

static void handle(int signal) {
    (void)signal;
    int saved = errno;
    int fd = open(ours[0], O_CREAT | O_WRONLY | O_APPEND, 0644);
    if (fd >= 0) {
        if (write(fd, "handler\n", 8) != 8) _exit(9);
        close(fd);
    }
    rename(ours[0], ours[1]);
    if (handled % 3 == 0) unlink(ours[1]);
    handled++;
    errno = saved;
}

static void *work(void *number) {
    char name[32];
    snprintf(name, sizeof name, "work-%zu", (size_t)number);
    for (unsigned n = 0; !stop; n++) {
        int fd;
        do fd = open(in(source, name), O_CREAT | O_RDWR, 0644);
        while (fd < 0 && errno == EINTR);
        CHECK(fd >= 0);
        CHECK(pwrite(fd, &n, sizeof n, n % 4096) == sizeof n);
        CHECK(close(fd) == 0);
        if (n % 16 == 0) CHECK(unlink(in(source, name)) == 0);
    }
    return NULL;
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    source = argv[1];
    strcpy(ours[0], in(source, "handler-a"));
    strcpy(ours[1], in(source, "handler-b"));
    struct sigaction action = {.sa_handler = handle, .sa_flags = SA_RESTART};
    CHECK(sigaction(SIGALRM, &action, NULL) == 0);
    struct itimerval often = {{0, 300}, {0, 300}};
    CHECK(setitimer(ITIMER_REAL, &often, NULL) == 0);
    pthread_t threads[3];
    for (size_t i = 0; i < 3; i++) CHECK(pthread_create(&threads[i], NULL, work, (void *)i) == 0);
    nap_ms(100);
    session_finish(session_start(argv[1], argv[2]));
    nap_ms(100);
    stop = 1;
    for (size_t i = 0; i < 3; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    struct itimerval never = {{0, 0}, {0, 0}};
    CHECK(setitimer(ITIMER_REAL, &never, NULL) == 0);
    CHECK(handled > 50);
    return 0;
}
