/* A signal handler truncates a file and writes to it in the midst of another captured call of its thread, when the
 * library can find out nothing: the whole file has to be copied again, not only what the handler wrote. */
#include "common.h"
#include <sys/time.h>

enum { FILES = 300 };

static const char *source;
static char names[FILES][PATH_MAX];
static volatile sig_atomic_t next;

static void handle(int signal) {
    (void)signal;
    int saved = errno;
    if (next < FILES) {
        int fd = open(names[next++], O_WRONLY | O_TRUNC);
        if (fd < 0 || pwrite(fd, "end", 4, 16380) != 4) _exit(9);
        close(fd);
    }
    errno = saved;
}

static void before_cut(void *unused) {
    (void)unused;
    struct itimerval often = {{0, 300}, {0, 300}}, never = {{0, 0}, {0, 0}};
    CHECK(setitimer(ITIMER_REAL, &often, NULL) == 0);
    while (next < FILES) chmod(in(source, "interrupted"), 0600);
    CHECK(setitimer(ITIMER_REAL, &never, NULL) == 0);
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    source = argv[1];
    for (int i = 0; i < FILES; i++) {
        snprintf(names[i], sizeof names[i], "%s/file-%d", source, i);
        fill(names[i], 16384, 'a');
    }
    fill(in(source, "interrupted"), 10, 'x');
    struct sigaction action = {.sa_handler = handle, .sa_flags = SA_RESTART};
    CHECK(sigaction(SIGALRM, &action, NULL) == 0);
    nap_ms(400);
    backup_with(argv[1], argv[2], before_cut);
    return 0;
}
