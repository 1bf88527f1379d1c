/* What the C tests share: checks that say what failed, and the library as a preloaded program finds it. */
#ifndef COMMON_H
#define COMMON_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "hotbackup.h"

/* Numbers that older headers do not have. */
#ifndef SYS_fchmodat2
#define SYS_fchmodat2 452
#endif
#ifndef SYS_setxattrat
#define SYS_setxattrat 463
#define SYS_removexattrat 466
#endif
#ifndef SYS_file_setattr
#define SYS_file_setattr 469
#endif

#define CHECK(condition)                                                                                   \
    do {                                                                                                   \
        if (!(condition)) {                                                                                \
            fprintf(stderr, "%s:%d: %s (errno %d, %s)\n", __FILE__, __LINE__, #condition, errno,           \
                    strerror(errno));                                                                      \
            exit(1);                                                                                       \
        }                                                                                                  \
    } while (0)

/* A function of the interface, found as a program finds it that does not link the library. */
#define API(name) ((__typeof__(&name))api_symbol(#name))

/* The library of a program that has loaded it itself; NULL is RTLD_DEFAULT. */
__attribute__((unused)) static void *api_library;

static inline void *api_symbol(const char *name) {
    void *symbol = dlsym(api_library, name);
    if (!symbol) {
        fprintf(stderr, "%s: libHotBackup.so is not loaded\n", name);
        exit(3);
    }
    return symbol;
}

#define CHECK_OK(call)                                                                                     \
    do {                                                                                                   \
        hotbackup_status status_ = (call);                                                                 \
        if (status_ != HOTBACKUP_STATUS_OK) {                                                              \
            fprintf(stderr, "%s:%d: %s: status %d: %s\n", __FILE__, __LINE__, #call, (int)status_,         \
                    API(hotbackup_last_error)());                                                          \
            exit(1);                                                                                       \
        }                                                                                                  \
    } while (0)

static inline const char *in(const char *directory, const char *name) {
    static _Thread_local char paths[4][PATH_MAX];
    static _Thread_local int next;
    char *path = paths[next++ % 4];
    snprintf(path, PATH_MAX, "%s/%s", directory, name);
    return path;
}

static inline double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

static inline void nap_ms(long ms) {
    struct timespec t = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&t, NULL);
}

/* A child that lives until it is ended. It says by one byte into `begun` that it is where it is to be. */
static inline pid_t start_child(void (*work)(const void *argument, int begun), const void *argument) {
    int said[2];
    CHECK(pipe(said) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(said[0]);
        work(argument, said[1]);
        _exit(1);
    }
    char begun;
    close(said[1]);
    CHECK(read(said[0], &begun, 1) == 1);
    close(said[0]);
    return child;
}

static inline void end_child(pid_t child) {
    CHECK(kill(child, SIGKILL) == 0 && waitpid(child, NULL, 0) == child);
}

/* What a session is to do with one pair of directories: no manifest, and no room is kept free. */
static inline hotbackup_options options_of(const hotbackup_pair *pair) {
    hotbackup_options options;
    CHECK_OK(API(hotbackup_options_init)(&options, sizeof options));
    options.pairs = pair;
    options.pair_count = 1;
    options.manifest_place = HOTBACKUP_MANIFEST_NONE;
    options.keep_free = 0;
    return options;
}

/* Begins a session; changes are captured once this returns, and nothing is copied before session_finish. */
static inline hotbackup_session *session_start(const char *source, const char *destination) {
    hotbackup_pair pair = {source, destination};
    hotbackup_options options = options_of(&pair);
    hotbackup_session *session = NULL;
    CHECK_OK(API(hotbackup_start)(&options, &session));
    return session;
}

/* Everything that a session sees is captured: a change that only the audit found is one that a hook did not understand. */
static inline void check_seen(const hotbackup_report *report) {
    if (report->unseen_files == 0) return;
    fprintf(stderr, "%lu files were changed unseen\n", (unsigned long)report->unseen_files);
    exit(1);
}

static inline void session_finish(hotbackup_session *session) {
    hotbackup_report report = {.size = sizeof report};
    CHECK_OK(API(hotbackup_finish)(session, &report));
    check_seen(&report);
    API(hotbackup_free)(session);
}

/* A whole session that must succeed, with a call of before_cut (or NULL). */
static inline hotbackup_report backup_with(const char *source, const char *destination, void (*before_cut)(void *)) {
    hotbackup_pair pair = {source, destination};
    hotbackup_options options = options_of(&pair);
    options.before_cut = before_cut;
    hotbackup_report report = {.size = sizeof report};
    CHECK_OK(API(hotbackup_backup)(&options, &report));
    check_seen(&report);
    return report;
}

/* A backup on a thread of its own, while the others go on. */
__attribute__((unused)) static void *backup_thread_main(void *directories) {
    const char **names = directories;
    session_finish(session_start(names[0], names[1]));
    return NULL;
}
#define BACKUP_THREAD(thread, source, destination)                                                         \
    const char *thread##_names[2] = {source, destination};                                                 \
    pthread_t thread;                                                                                      \
    CHECK(pthread_create(&thread, NULL, backup_thread_main, thread##_names) == 0)

static inline void fill(const char *path, size_t bytes, char with) {
    char *block = malloc(bytes);
    CHECK(block);
    memset(block, with, bytes);
    int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0644);
    CHECK(fd >= 0);
    CHECK(write(fd, block, bytes) == (ssize_t)bytes);
    CHECK(close(fd) == 0);
    free(block);
}
#endif
