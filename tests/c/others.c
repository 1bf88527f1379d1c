/* Files that other processes change: a forked child, which has no engine, and a program that it has become.
 *
 * Method: what a child writes before the session and while files are copied is in the copy, if it has come to rest by the cut. A
 * child that writes blocks of one number each now and then is in the copy with one whole block; of one that writes whenever the file
 * is read the option on_unseen_change says what becomes of the backup. */
#include "common.h"

#include <stdbool.h>
#include <sys/fanotify.h>

enum { BLOCK = 64 << 10, FILES = 12 };

static const char *source;
static char warnings[1 << 16];

static void on_warning(const char *text, void *unused) {
    (void)unused;
    strncat(warnings, text, sizeof warnings - strlen(warnings) - 2);
    strcat(warnings, "\n");
}

/* Writes blocks to a file, each of one number, 20 ms apart. */
static void write_now_and_then(const void *path, int begun) {
    int fd = open(path, O_WRONLY);
    static unsigned char block[BLOCK];
    for (unsigned char number = 1;; number++) {
        memset(block, number, sizeof block);
        if (pwrite(fd, block, sizeof block, 0) != BLOCK) _exit(1);
        if (number == 1 && write(begun, "", 1) != 1) _exit(1);
        nap_ms(20);
    }
}

/* Writes to a file whenever somebody is about to read it, who waits meanwhile: so it never keeps still. */
static void write_at_every_read(const void *path, int begun) {
    int fd = open(path, O_WRONLY), group = fanotify_init(FAN_CLASS_CONTENT | FAN_CLOEXEC, O_RDONLY);
    if (group < 0 || fanotify_mark(group, FAN_MARK_ADD, FAN_ACCESS_PERM, AT_FDCWD, path)) _exit(1);
    if (write(begun, "", 1) != 1) _exit(1);
    for (;;) {
        struct fanotify_event_metadata event;
        if (read(group, &event, sizeof event) != sizeof event) _exit(1);
        if (pwrite(fd, "again", 5, 0) != 5) _exit(1);
        struct fanotify_response response = {event.fd, FAN_ALLOW};
        if (write(group, &response, sizeof response) != sizeof response) _exit(1);
        close(event.fd);
    }
}

/* Has a child write once to a file, at a place, and end. */
static void write_by_child(const char *path, off_t at, char with) {
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        char block[1000];
        memset(block, with, sizeof block);
        int fd = open(path, O_WRONLY);
        _exit(pwrite(fd, block, sizeof block, at) != sizeof block);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
}

/* The same by a program that knows nothing of anything. */
static void write_by_stranger(const char *path, const char *text) {
    char command[PATH_MAX + 100];
    snprintf(command, sizeof command, "printf %s >>'%s'", text, path);
    CHECK(system(command) == 0);
}

static bool changed;

static int change_while_copied(const hotbackup_progress *progress, void *unused) {
    (void)unused;
    if (progress->phase == HOTBACKUP_PHASE_COPY && progress->files_done > FILES / 2 && !changed) {
        changed = true;
        for (int file = 0; file < FILES; file++) {
            char name[16];
            snprintf(name, sizeof name, "file%d", file);
            if (file % 2) write_by_child(in(source, name), 30000, 'd');
            else write_by_stranger(in(source, name), "during");
        }
    }
    return 0;
}

static hotbackup_status backup(const char *destination, uint32_t on_unseen_change,
                               int (*on_progress)(const hotbackup_progress *, void *), hotbackup_report *report) {
    hotbackup_pair pair = {source, destination};
    CHECK(mkdir(destination, 0700) == 0);
    hotbackup_options options = options_of(&pair);
    options.manifest_place = HOTBACKUP_MANIFEST_IN_FIRST_DESTINATION;
    options.throttle = 1 << 20;
    options.on_progress = on_progress;
    options.on_warning = on_warning;
    options.on_unseen_change = on_unseen_change;
    *report = (hotbackup_report){.size = sizeof *report};
    warnings[0] = 0;
    return API(hotbackup_backup)(&options, report);
}

static void same(const char *name, const char *destination) {
    static char a[2 * BLOCK], b[2 * BLOCK];
    int from = open(in(source, name), O_RDONLY), to = open(in(destination, name), O_RDONLY);
    CHECK(from >= 0 && to >= 0);
    ssize_t len = read(from, a, sizeof a);
    CHECK(len == read(to, b, sizeof b));
    if (memcmp(a, b, (size_t)len)) {
        fprintf(stderr, "%s differs from its copy\n", name);
        exit(1);
    }
    close(from);
    close(to);
}

static void manifest_names(const char *destination, const char *name) {
    static char text[1 << 16];
    FILE *manifest = fopen(in(destination, "hotbackup-manifest.json"), "r");
    CHECK(manifest);
    size_t len = fread(text, 1, sizeof text - 1, manifest);
    text[len] = 0;
    fclose(manifest);
    char *list = strstr(text, "\"warnings\":");
    CHECK(list && strstr(list, name) && strstr(list, "may mix"));
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    source = argv[1];
    hotbackup_report report;
    for (int file = 0; file < FILES; file++) {
        char name[16];
        snprintf(name, sizeof name, "file%d", file);
        fill(in(source, name), BLOCK, 'f');
        write_by_child(in(source, name), 1000, 'b');
    }

    /* What has come to rest is copied as it is then. */
    const char *settled = strdup(in(argv[2], "settled"));
    CHECK_OK(backup(settled, HOTBACKUP_UNSEEN_RETRY, change_while_copied, &report));
    CHECK(changed);
    for (int file = 0; file < FILES; file++) {
        char name[16];
        snprintf(name, sizeof name, "file%d", file);
        same(name, settled);
    }

    /* The first change fails the backup. */
    changed = false;
    CHECK(backup(in(argv[2], "failed"), HOTBACKUP_UNSEEN_FAIL, change_while_copied, &report) == HOTBACKUP_STATUS_UNSEEN);
    CHECK(changed && strstr(API(hotbackup_last_error)(), in(source, "file")));
    /* Without one it completes. */
    CHECK_OK(backup(in(argv[2], "untouched"), HOTBACKUP_UNSEEN_FAIL, NULL, &report));

    /* Somebody who rests now and then. */
    fill(in(source, "often"), BLOCK, 0);
    pid_t child = start_child(write_now_and_then, in(source, "often"));
    const char *often = strdup(in(argv[2], "often"));
    CHECK_OK(backup(often, HOTBACKUP_UNSEEN_RETRY, NULL, &report));
    end_child(child);
    CHECK(strstr(warnings, "often: was also being written by process"));
    static char block[BLOCK];
    int fd = open(in(often, "often"), O_RDONLY);
    CHECK(fd >= 0 && read(fd, block, BLOCK) == BLOCK && memcmp(block, block + 1, BLOCK - 1) == 0);
    close(fd);

    /* Somebody who does not, which takes root to arrange. */
    if (geteuid() != 0) return 0;
    fill(in(source, "always"), BLOCK, 0);
    child = start_child(write_at_every_read, in(source, "always"));
    CHECK(backup(in(argv[2], "never"), HOTBACKUP_UNSEEN_RETRY, NULL, &report) == HOTBACKUP_STATUS_UNSEEN);
    CHECK(strstr(API(hotbackup_last_error)(), in(source, "always")));
    const char *warned = strdup(in(argv[2], "warned"));
    CHECK_OK(backup(warned, HOTBACKUP_UNSEEN_WARN, NULL, &report));
    CHECK(report.unseen_files > 0 && strstr(warnings, "always: was changed at the cut as well"));
    manifest_names(warned, in(source, "always"));
    end_child(child);
    return 0;
}
