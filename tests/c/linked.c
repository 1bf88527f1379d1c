/* The C interface in a program linked against it: sessions, callbacks, errors. Built against libHotBackup.so, named
 * before the C library, and again against libHotBackup.a. Threads write until before_cut, so that the source and its
 * copy have to be equal afterwards. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "hotbackup.h"

#define CHECK(condition)                                                                                   \
    do {                                                                                                   \
        if (!(condition)) {                                                                                \
            fprintf(stderr, "%s:%d: %s (errno %d; last error: %s)\n", __FILE__, __LINE__, #condition,      \
                    errno, hotbackup_last_error());                                                        \
            exit(1);                                                                                       \
        }                                                                                                  \
    } while (0)

enum { WRITERS = 4 };
static const char *source;
static atomic_bool stop;
static pthread_t writers[WRITERS];
static int calls_before, calls_after, calls_progress;
static pthread_t caller;

static void *write_files(void *number) {
    char path[PATH_MAX], other[PATH_MAX];
    unsigned seed = (unsigned)(size_t)number;
    char block[4096];
    snprintf(path, sizeof path, "%s/file-%zu", source, (size_t)number);
    snprintf(other, sizeof other, "%s/moved-%zu", source, (size_t)number);
    int fd = open(path, O_CREAT | O_RDWR, 0644);
    CHECK(fd >= 0);
    for (unsigned n = 0; !stop; n++) {
        memset(block, (int)n, sizeof block);
        CHECK(pwrite(fd, block, 1 + rand_r(&seed) % sizeof block, rand_r(&seed) % (1 << 20)) > 0);
        if (n % 64 == 0) CHECK(ftruncate(fd, rand_r(&seed) % (1 << 20)) == 0);
        if (n % 256 == 0) CHECK(rename(n % 512 ? other : path, n % 512 ? path : other) == 0);
    }
    CHECK(close(fd) == 0);
    return NULL;
}

static int on_progress(const hotbackup_progress *progress, void *user_data) {
    CHECK(user_data == (void *)source && pthread_equal(pthread_self(), caller));
    CHECK(progress->size == sizeof *progress && progress->fraction >= 0 && progress->fraction <= 1);
    if (calls_progress++ == 0) CHECK(progress->phase == HOTBACKUP_PHASE_PREPARE);
    return 0;
}

static void before_cut(void *user_data) {
    CHECK(user_data == (void *)source && pthread_equal(pthread_self(), caller));
    calls_before++;
    stop = 1;
    for (int i = 0; i < WRITERS; i++) pthread_join(writers[i], NULL);
}

static void after_cut(void *user_data) {
    CHECK(user_data == (void *)source);
    calls_after++;
}

static int leave_out(const char *path, void *user_data) {
    CHECK(user_data == (void *)source);
    return strstr(path, "left-out-by-callback") != NULL;
}

static void *follow(void *session) {
    hotbackup_progress progress = {.size = sizeof progress};
    CHECK(hotbackup_progress_now(session, &progress) == HOTBACKUP_STATUS_OK);
    CHECK(hotbackup_throttle(session, HOTBACKUP_UNLIMITED) == HOTBACKUP_STATUS_OK);
    int complete = -1;
    CHECK(hotbackup_wait(session, &complete) == HOTBACKUP_STATUS_OK);
    CHECK(complete == 1);
    return NULL;
}

static void check_refusals(const hotbackup_options *good) {
    hotbackup_session *session = NULL;
    CHECK(hotbackup_start(NULL, &session) == HOTBACKUP_STATUS_INVALID_ARGUMENT && !session);
    CHECK(hotbackup_start(good, NULL) == HOTBACKUP_STATUS_INVALID_ARGUMENT);
    hotbackup_options bad = *good;
    bad.size = 0;
    CHECK(hotbackup_start(&bad, &session) == HOTBACKUP_STATUS_INVALID_ARGUMENT && !session);
    CHECK(strstr(hotbackup_last_error(), "hotbackup_options_init"));
    bad = *good;
    const char *expressions[] = {"("};
    bad.exclude = expressions;
    CHECK(hotbackup_start(&bad, &session) == HOTBACKUP_STATUS_INVALID_ARGUMENT && !session);
    bad = *good;
    bad.pair_count = 0;
    CHECK(hotbackup_start(&bad, &session) == HOTBACKUP_STATUS_INVALID_ARGUMENT && !session);
    hotbackup_pair same = {source, source};
    bad = *good;
    bad.pairs = &same;
    CHECK(hotbackup_start(&bad, &session) == HOTBACKUP_STATUS_OVERLAP && !session);
    CHECK(hotbackup_last_errno() == EINVAL);
    CHECK(hotbackup_finish(NULL, NULL) == HOTBACKUP_STATUS_INVALID_ARGUMENT);
    CHECK(hotbackup_cancel(NULL) == HOTBACKUP_STATUS_INVALID_ARGUMENT);
    hotbackup_free(NULL);
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    source = argv[1];
    caller = pthread_self();
    CHECK(strcmp(hotbackup_version(), "") != 0);

    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/left-out-by-callback", source);
    CHECK(mkdir(path, 0755) == 0);
    snprintf(path, sizeof path, "%s/left-out-by-expression.tmp", source);
    CHECK(mkdir(path, 0755) == 0);

    hotbackup_pair pair = {source, argv[2]};
    const char *exclude[] = {"\\.tmp$"};
    hotbackup_options options;
    CHECK(hotbackup_options_init(&options, sizeof options) == HOTBACKUP_STATUS_OK);
    options.pairs = &pair;
    options.pair_count = 1;
    options.exclude = exclude;
    options.exclude_count = 1;
    options.exclude_if = leave_out;
    options.keep_free = 0;
    options.on_progress = on_progress;
    options.before_cut = before_cut;
    options.after_cut = after_cut;
    options.user_data = (void *)source;
    check_refusals(&options);

    /* A session that is freed without being finished is cancelled; the next one can begin. */
    hotbackup_session *session = NULL, *second = NULL;
    calls_progress = 0;
    options.manifest_place = HOTBACKUP_MANIFEST_NONE;
    char cancelled[PATH_MAX];
    snprintf(cancelled, sizeof cancelled, "%s.cancelled", argv[2]);
    CHECK(mkdir(cancelled, 0755) == 0);
    pair.destination = cancelled;
    CHECK(hotbackup_start(&options, &session) == HOTBACKUP_STATUS_OK);
    hotbackup_free(session);
    pair.destination = argv[2];
    options.manifest_place = HOTBACKUP_MANIFEST_IN_FIRST_DESTINATION;

    for (size_t i = 0; i < WRITERS; i++) CHECK(pthread_create(&writers[i], NULL, write_files, (void *)i) == 0);
    calls_progress = 0;
    CHECK(hotbackup_start(&options, &session) == HOTBACKUP_STATUS_OK);
    calls_progress = 1;
    CHECK(hotbackup_start(&options, &second) != HOTBACKUP_STATUS_OK && !second);
    pthread_t follower;
    CHECK(pthread_create(&follower, NULL, follow, session) == 0);
    hotbackup_report report = {.size = sizeof report};
    CHECK(hotbackup_finish(session, &report) == HOTBACKUP_STATUS_OK);
    CHECK(hotbackup_finish(session, &report) == HOTBACKUP_STATUS_FINISHED);
    pthread_join(follower, NULL);
    hotbackup_free(session);
    CHECK(calls_before == 1 && calls_after == 1 && calls_progress > 1);
    CHECK(report.files == WRITERS && report.directories == 1 && report.cut_attempts >= 1);

    uint64_t differences = 1;
    CHECK(hotbackup_verify(argv[2], NULL, NULL, &differences) == HOTBACKUP_STATUS_OK && differences == 0);
    return 0;
}
