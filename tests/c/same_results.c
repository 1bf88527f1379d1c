/* Prints what captured calls return and leave in errno (calls.h), and makes every change (changes.h). The driver runs it
 * without the library, with it, and with it during a session, and compares what it prints: nothing may differ. The calls of a
 * session come in before_cut, when everything was copied, so that what they change has to be seen, and not by the audit.
 *
 *   same_results CONTEXT DIRECTORY [DESTINATION]     with a destination: while DIRECTORY is backed up to it
 *
 * The contexts: plainly; in a signal handler, changes in the midst of other calls; in a forked child of a program with
 * threads; with few descriptors left; with 10,000 files open. A constructor's is early.c. */
#include "changes.h"
#include <sys/resource.h>

enum { OPEN_FILES = 10000, FEW = 64, NEEDED = 20 };
static const char *directory;
static volatile sig_atomic_t next;
static int unseen_cuts;

static void call_all(void *unused) {
    (void)unused;
    /* It comes again if the audit found a change that no hook had seen. */
    CHECK(unseen_cuts++ == 0);
    change_each(ALL);
    call_everything(directory);
}

static void handle_one(int unused) {
    (void)unused;
    int saved = errno;
    if (next < changes) change_each(next++);
    errno = saved;
}

static void handle_rest(int unused) {
    (void)unused;
    call_everything(directory);
}

/* One change for each signal; what the signals interrupt are calls of ours. */
static void call_all_in_handlers(void *unused) {
    (void)unused;
    struct sigaction one = {.sa_handler = handle_one, .sa_flags = SA_RESTART}, rest = {.sa_handler = handle_rest};
    struct itimerval often = {{0, 300}, {0, 300}}, never = {{0, 0}, {0, 0}};
    const char *interrupted = in(directory, "interrupted");
    CHECK(sigaction(SIGALRM, &one, NULL) == 0 && sigaction(SIGUSR1, &rest, NULL) == 0);
    CHECK(setitimer(ITIMER_REAL, &often, NULL) == 0);
    while (next < changes) CHECK(chmod(interrupted, 0600) == 0);
    CHECK(setitimer(ITIMER_REAL, &never, NULL) == 0);
    CHECK(raise(SIGUSR1) == 0);
}

static void run(const char *destination, void (*calls)(void *)) {
    prepare_changes(directory);
    fill(in(directory, "interrupted"), 10, 'x');
    if (destination) {
        backup_with(directory, destination, calls);
    } else {
        calls(NULL);
    }
    end_changes();
    fputs(results, stdout);
}

static void *write_always(void *elsewhere) {
    for (;;) CHECK(pwrite(fileno(elsewhere), "x", 1, 0) == 1);
}

static void run_in_child(const char *destination) {
    for (int i = 0; i < 3; i++) {
        pthread_t thread;
        FILE *elsewhere = tmpfile();
        CHECK(elsewhere && pthread_create(&thread, NULL, write_always, elsewhere) == 0);
    }
    nap_ms(20);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        alarm(100);
        run(destination, call_all);
        exit(0);
    }
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
}

static void limit_descriptors(rlim_t most) {
    struct rlimit limit = {most, most};
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    high = (int)most - 1;
}

/* Takes descriptors until only some numbers below the limit are left. */
static void take_descriptors(int below) {
    while (dup(0) < below) continue;
}

static void open_files(void) {
    char name[32];
    for (int i = 0; i < OPEN_FILES; i++) {
        snprintf(name, sizeof name, "open-%05d", i);
        CHECK(open(in(directory, name), O_CREAT | O_RDWR, 0644) >= 0);
    }
}

int main(int argc, char **argv) {
    CHECK(argc == 3 || argc == 4);
    const char *context = argv[1], *destination = argv[3];
    directory = argv[2];
    if (strcmp(context, "child") == 0) {
        run_in_child(destination);
        return 0;
    }
    if (strcmp(context, "handler") == 0) {
        only_signal_safe = true;
        run(destination, call_all_in_handlers);
        return 0;
    }
    if (strcmp(context, "few") == 0) {
        limit_descriptors(FEW);
        take_descriptors(FEW - NEEDED);
    } else if (strcmp(context, "many") == 0) {
        limit_descriptors(OPEN_FILES + 100);
        open_files();
    } else {
        CHECK(strcmp(context, "plainly") == 0);
    }
    run(destination, call_all);
    return 0;
}
