/* The original's interface: the callback protocol, the numbers and texts of errors, each error told once. */
#include "common.h"

static const char *source, *destination;
static int polls, abort_at, abort_with, errors, last_number, before, after;
static char last_text[4096], scratch[PATH_MAX];
static float last_progress;
static pthread_t caller;

static int poll(float progress, const char *text, void *extra) {
    CHECK(extra == (void *)1 && pthread_equal(pthread_self(), caller));
    CHECK(progress >= 0 && progress <= 1 && progress >= last_progress);
    last_progress = progress;
    if (polls++ == 0) CHECK(progress == 0 && strcmp(text, "Preparing backup") == 0);
    if (polls == 2) CHECK(strncmp(text, "Backup progress ", 16) == 0);
    return polls == abort_at ? abort_with : 0;
}

static void error(int number, const char *text, void *extra) {
    CHECK(extra == (void *)2);
    errors++;
    last_number = number;
    snprintf(last_text, sizeof last_text, "%s", text);
}

static int exclude(const char *path, void *extra) {
    CHECK(extra == (void *)3 && strncmp(path, source, strlen(source)) == 0);
    return strstr(path, "left-out") != NULL;
}

static void on_before(void *extra) {
    CHECK(extra == (void *)4 && after == 0);
    before++;
    fill(in(source, "written-in-before"), 100, 'b');
}

static void on_after(void *extra) {
    CHECK(extra == (void *)5 && before == 1);
    after++;
}

static int backup(const char **sources, const char **destinations, int count) {
    polls = errors = before = after = 0;
    last_progress = 0;
    int result = API(tokubackup_create_backup)(sources, destinations, count, poll, (void *)1, error, (void *)2,
                                               exclude, (void *)3, on_before, (void *)4, on_after, (void *)5);
    CHECK(errors == (result != 0));
    if (result) {
        char tail[300];
        CHECK(result == last_number);
        snprintf(tail, sizeof tail, "  error %d (%s)", result, strerror(result));
        CHECK(strlen(last_text) > strlen(tail));
        CHECK(strcmp(last_text + strlen(last_text) - strlen(tail), tail) == 0);
    }
    return result;
}

static void refused(const char *from, const char *to, int number, const char *begins) {
    int result = backup(&from, &to, 1);
    if (result != number || strncmp(last_text, begins, strlen(begins)) != 0) {
        fprintf(stderr, "%s -> %s: %d %s; expected %d %s\n", from, to, result, last_text, number, begins);
        exit(1);
    }
    CHECK(polls == 1 && before == 0 && after == 0);
}

static const char *fresh(const char *name) {
    snprintf(scratch, sizeof scratch, "%s.%s", destination, name);
    CHECK(mkdir(scratch, 0755) == 0);
    return strdup(scratch);
}

static void *second(void *to) {
    const char *other = to;
    int number = API(tokubackup_create_backup)(&source, &other, 1, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
                                               NULL, NULL);
    CHECK(number == EBUSY);
    return NULL;
}

static int poll_that_starts_a_second(float progress, const char *text, void *extra) {
    (void)progress, (void)text;
    if (++polls == 3) {
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, second, extra) == 0);
        CHECK(pthread_join(thread, NULL) == 0);
    }
    return 0;
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    caller = pthread_self();
    source = argv[1];
    destination = argv[2];
    fill(in(source, "file"), 3 << 20, 'x');
    fill(in(source, "left-out"), 100, 'x');
    const char **version = dlsym(RTLD_DEFAULT, "tokubackup_version_string");
    CHECK(version && strlen(*version) > 0);

    const char *file = strdup(in(source, "file")), *inside = strdup(in(source, "inside"));
    const char *full = fresh("full"), *empty = fresh("empty");
    fill(in(full, "something"), 1, 'x');
    refused(NULL, empty, EINVAL, "One of the source/destination directories is NULL");
    refused(source, NULL, EINVAL, "One of the source/destination directories is NULL");
    refused("/no/such", empty, ENOENT, "Could not resolve source directory path.");
    refused(source, "/no/such", ENOENT, "Could not resolve destination directory path.");
    refused(source, source, EINVAL, "Source and destination directories are the same.");
    refused(source, file, EINVAL, "Backup destination ");
    refused(source, full, EINVAL, "Backup directory ");
    refused(file, empty, ENOTDIR, "Backup source ");
    CHECK(mkdir(inside, 0755) == 0);
    refused(source, inside, EINVAL, "Backup failed: ");
    CHECK(rmdir(inside) == 0);

    abort_at = 1, abort_with = 77;
    refused(source, empty, 77, "User aborted backup");
    abort_at = 2, abort_with = 78;
    CHECK(backup(&source, &empty, 1) == 78 && strncmp(last_text, "User aborted backup", 19) == 0);
    CHECK(before == 0 && after == 0);
    abort_at = 0;

    const char *two[2] = {source, source}, *same[2] = {fresh("one"), NULL};
    CHECK(backup(two, same, 2) == EINVAL);
    same[1] = same[0];
    CHECK(backup(two, same, 2) == EINVAL);

    polls = 0;
    const char *busy = fresh("busy"), *main_one = fresh("main");
    CHECK(API(tokubackup_create_backup)(&source, &main_one, 1, poll_that_starts_a_second, (void *)busy, NULL, NULL,
                                        NULL, NULL, NULL, NULL, NULL, NULL) == 0);
    CHECK(polls >= 3);

    /* 2 MB/s of 3 MB takes a second or more; a live change ends the wait. */
    API(tokubackup_throttle_backup)(2000000);
    double begun = now_ms();
    CHECK(backup(&source, &destination, 1) == 0);
    CHECK(now_ms() - begun > 700);
    CHECK(before == 1 && after == 1 && polls > 2);
    CHECK(access(in(destination, "left-out"), F_OK) == -1);
    CHECK(access(in(destination, "written-in-before"), F_OK) == 0);
    return 0;
}
