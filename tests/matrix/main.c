/* Runs one row of the matrix at one moment of a session and says what came of it.
 *
 *   matrix list                       the rows: name, group, call, filesystem, `calm` if not in the freeze
 *   matrix run ROW MOMENT DIRECTORY   under LD_PRELOAD of libHotBackup.so, in a new, empty DIRECTORY
 *
 * Moments: `before` the copier reaches the target, `while` it copies it (it has read EARLY and not LATE, and stands still), `after`
 * it has (in before_cut), in the `freeze` (while another call is seen to wait at the gate), and `hidden`: after it has, with
 * captured changes of the same file and directory behind it. Nothing else changes the source, so what it is in the end is what it
 * was at the cut, and the copy has to equal it entry by entry.
 *
 * The last line of the output is the outcome, a tab, and why:
 *   captured   the copy is right, and nothing had to be found out afterwards
 *   detected   the copy is right, because the report counts or warns of a file that was copied again
 *   refused    the session failed, and says what could not be followed
 *   waited     (freeze) the call waited, and the copy shows the source before it
 *   missed     (freeze) no freeze was caught
 *   between    (freeze) the cut came in the middle of the change, and the copy is neither the source before it nor after it
 *   WRONG      the session succeeded, and the copy is another than the source */
#include "matrix.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/prctl.h>

#include "hotbackup.h"

struct ground ground;

extern const struct row __start_rows[], __stop_rows[];

enum moment { BEFORE, WHILE, AFTER, FREEZE, HIDDEN, MOMENTS };
static const char *const moment_names[MOMENTS] = {"before", "while", "after", "freeze", "hidden"};

enum { BALLAST = 4 << 20, SLOW = 160 << 10, UNTIL_OLD_MS = 300, UNTIL_MISSED_MS = 5000 };

static enum moment moment;
static const struct row *row;
static char destination[PATH_MAX], partial[PATH_MAX], manifest[PATH_MAX];
static char *at_first, *at_last; /* fingerprints of the source */
static bool changed;
static int slow; /* the descriptor of the call that the freeze waits for */
static atomic_long slow_begun_ms, session_ended; /* when that call was begun; whether nothing comes any more */
static char warnings[4096];

/* The library, as a program finds it that does not link it. */
static void *symbol(const char *name) {
    void *found = dlsym(RTLD_DEFAULT, name);
    if (!found) {
        fprintf(stderr, "%s: libHotBackup.so is not preloaded\n", name);
        exit(1);
    }
    return found;
}
#define API(name) ((__typeof__(&name))symbol(#name))

const char *in(const char *directory, const char *name) {
    static _Thread_local char paths[4][PATH_MAX];
    static _Thread_local int next;
    char *path = paths[next++ % 4];
    CHECK(snprintf(path, PATH_MAX, "%s/%s", directory, name) < PATH_MAX);
    return path;
}

void reap(pid_t child) {
    int status;
    CHECK(child > 0);
    while (waitpid(child, &status, 0) < 0) CHECK(errno == EINTR);
    CHECK(WIFEXITED(status));
    if (WEXITSTATUS(status) == UNAVAILABLE) exit(UNAVAILABLE);
    CHECK(WEXITSTATUS(status) == 0);
}

static void nap_us(long us) {
    struct timespec time = {us / 1000000, us % 1000000 * 1000};
    RAW_4(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &time, 0);
}

static long now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static int make(const char *path, size_t size, unsigned seed) {
    unsigned char *bytes = malloc(size + 1);
    CHECK(bytes);
    for (size_t i = 0; i < size; i++) bytes[i] = (unsigned char)(rand_r(&seed) >> 8);
    int fd = open(path, O_CREAT | O_EXCL | O_RDWR, 0640);
    CHECK(fd >= 0);
    CHECK(write(fd, bytes, size) == (ssize_t)size);
    CHECK(lseek(fd, 0, SEEK_SET) == 0);
    free(bytes);
    return fd;
}

static pid_t holder;

/* Has another process hold the ballast open, and nothing else: it is made before anything else is. */
static void make_freeze_long(void) {
    int ballast = make(inside("ballast"), BALLAST, 6);
    close(make(inside("beat"), 8, 7));
    close(make(inside("slow"), 8, 8));
    pid_t parent = getpid();
    CHECK((holder = fork()) >= 0);
    if (holder == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        while (getppid() == parent) pause();
        _exit(0);
    }
    close(ballast);
}

static const char *make_directory(const char *directory, const char *name) {
    const char *path = strdup(in(directory, name));
    CHECK(mkdir(path, 0755) == 0);
    return path;
}

/* Everything that any row works on. */
static void lay_out(const char *directory) {
    ground.source = make_directory(directory, "source");
    ground.outside = make_directory(directory, "outside");
    snprintf(destination, PATH_MAX, "%s", make_directory(directory, "destination"));
    CHECK(snprintf(partial, PATH_MAX, "%s/HOTBACKUP-INCOMPLETE/tree/target", destination) < PATH_MAX);
    CHECK(snprintf(manifest, PATH_MAX, "%s/manifest.json", directory) < PATH_MAX);
    if (moment == FREEZE) make_freeze_long();
    ground.target = strdup(inside("target"));
    ground.fd = make(ground.target, SIZE, 1);
    ground.donor = make(outside("donor"), SIZE, 2);
    close(make(inside("victim"), 5000, 3));
    close(make(inside("linked"), 3000, 4));
    CHECK(link(inside("linked"), inside("twin")) == 0);
    make_directory(ground.source, "empty");
    make_directory(ground.source, "directory");
    close(make(inside("directory/inner"), 2000, 5));
    CHECK(symlink("target", inside("symbolic")) == 0);
    ground.directory = open(ground.source, O_RDONLY | O_DIRECTORY);
    CHECK(ground.directory >= 0);
    CHECK(posix_memalign((void **)&ground.piece, PIECE, PIECE) == 0);
    memset(ground.piece, 0xa5, PIECE);
}

/* When the change was over, in nanoseconds since 1970. */
static uint64_t changed_at;

static void change(void) {
    changed = true;
    row->change();
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    changed_at = (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* Captured changes of the same file and directory, behind which the times of an unseen one hide. */
static void hide(void) {
    static const char byte = 'x';
    CHECK(pwrite(ground.fd, &byte, 1, MIDDLE) == 1);
    CHECK(fchmod(ground.fd, 0644) == 0);
    CHECK(mkdir(inside("hiding"), 0755) == 0);
}

static void before_cut(void *unused) {
    (void)unused;
    if (moment == FREEZE && !slow) {
        CHECK((slow = open(inside("slow"), O_WRONLY)) > 0);
        slow_write_begin(pwrite, slow, 0);
        slow_begun_ms = now_ms();
    }
    if (changed || (moment != AFTER && moment != HIDDEN)) return;
    change();
    if (moment == HIDDEN) hide();
}

static bool stands_in_the_middle(void) {
    struct stat found;
    return stat(partial, &found) == 0 && found.st_size >= 2 * PIECE && found.st_size < LATE;
}

static int on_progress(const hotbackup_progress *progress, void *unused) {
    (void)unused;
    if (changed || progress->phase != HOTBACKUP_PHASE_COPY) return 0;
    if (moment == BEFORE) {
        CHECK(access(partial, F_OK) < 0);
        change();
    } else if (moment == WHILE && stands_in_the_middle()) {
        CHECK(API(hotbackup_throttle)(NULL, 0) == HOTBACKUP_STATUS_OK);
        change();
        CHECK(stands_in_the_middle());
        CHECK(API(hotbackup_throttle)(NULL, HOTBACKUP_UNLIMITED) == HOTBACKUP_STATUS_OK);
    }
    return 0;
}

static void on_warning(const char *text, void *unused) {
    (void)unused;
    if (strstr(text, "/ballast") || strstr(text, "/beat") || strstr(text, "/slow")) return;
    size_t len = strlen(warnings);
    snprintf(warnings + len, sizeof warnings - len, "%s%s", len ? "; " : "", text);
}

static hotbackup_report report = {.size = sizeof report};
static hotbackup_status status;
static char error[1024];

static void *back_up(void *unused) {
    (void)unused;
    hotbackup_pair pair = {ground.source, destination};
    hotbackup_options options;
    CHECK(API(hotbackup_options_init)(&options, sizeof options) == HOTBACKUP_STATUS_OK);
    options.pairs = &pair;
    options.pair_count = 1;
    options.keep_free = 0;
    options.threads = 1;
    options.manifest_place = HOTBACKUP_MANIFEST_IN_FILE;
    options.manifest = manifest;
    options.throttle = moment == WHILE ? SLOW : HOTBACKUP_UNLIMITED;
    options.on_progress = on_progress;
    options.before_cut = before_cut;
    options.on_warning = on_warning;
    status = API(hotbackup_backup)(&options, &report);
    snprintf(error, sizeof error, "%s", status == HOTBACKUP_STATUS_OK ? "" : API(hotbackup_last_error)());
    session_ended = 1;
    return NULL;
}

/* The freeze is seen by a thread that makes one captured call after the other: while the gate is closed it stands in futex(2). It
 * begins with waiting for a captured call that is under way, which goes on when it has been seen. Then a file that another process
 * has open for writing is read whole, which takes a while: that is when the row is run. */
static atomic_long beats;
static atomic_int beating;
static atomic_bool stop;

static void *beat(void *unused) {
    (void)unused;
    int fd = open(inside("beat"), O_WRONLY);
    CHECK(fd >= 0);
    beating = (int)RAW_1(SYS_gettid, 0);
    while (!stop) {
        long count = beats;
        CHECK(pwrite(fd, &count, sizeof count, 0) == sizeof count);
        beats++;
        nap_us(50);
    }
    close(fd);
    return NULL;
}

/* How many beats there have been if the next one waits at the gate, else -1. */
static long frozen_at(int stat_fd) {
    char line[64] = "";
    long before = beats;
    if (RAW_4(SYS_pread64, stat_fd, line, sizeof line - 1, 0) <= 0) return -1;
    return strtol(line, NULL, 10) == SYS_futex && line[0] >= '0' && line[0] <= '9' && beats == before ? before : -1;
}

/* Has the row change the source in the freeze. Returns whether that was in time. */
static bool change_in_freeze(void) {
    pthread_t beater, session;
    CHECK(pthread_create(&beater, NULL, beat, NULL) == 0);
    while (!beating) nap_us(100);
    char path[64];
    snprintf(path, sizeof path, "/proc/self/task/%d/syscall", (int)beating);
    int stat_fd = open(path, O_RDONLY);
    CHECK(stat_fd >= 0);
    CHECK(pthread_create(&session, NULL, back_up, NULL) == 0);
    long frozen = -1;
    /* However late before_cut comes: a call that it begins behind our last look would wait for ever. */
    for (; frozen < 0 && !session_ended && !(slow_begun_ms && now_ms() - slow_begun_ms > UNTIL_MISSED_MS); nap_us(20)) {
        hotbackup_progress progress = {.size = sizeof progress};
        bool cut = API(hotbackup_progress_now)(NULL, &progress) == HOTBACKUP_STATUS_OK &&
                   progress.phase == HOTBACKUP_PHASE_CUT;
        if (cut) frozen = frozen_at(stat_fd);
    }
    if (slow) slow_write_go_on();
    if (frozen >= 0) change();
    bool in_time = frozen >= 0 && frozen_at(stat_fd) == frozen;
    CHECK(pthread_join(session, NULL) == 0);
    if (slow) slow_write_end();
    stop = true;
    CHECK(pthread_join(beater, NULL) == 0);
    kill(holder, SIGKILL);
    CHECK(waitpid(holder, NULL, 0) == holder);
    return in_time;
}

static int say(const char *outcome, const char *why) {
    printf("%s\t", outcome);
    /* Names of this run are nobody's business. */
    for (const char *at = why; *at; at++) {
        if (strncmp(at, ground.source, strlen(ground.source)) == 0) {
            printf("SOURCE");
            at += strlen(ground.source) - 1;
        } else {
            putchar(*at == '\n' || *at == '\t' ? ' ' : *at);
        }
    }
    printf("\n");
    return 0;
}

static int judge(bool in_time) {
    char text[8192], *copy = fingerprint(destination);
    bool late = moment == FREEZE && status == HOTBACKUP_STATUS_OK && !in_time && report.unseen_files == 0;
    bool holds_it = strcmp(copy, at_last) == 0;
    /* A try of the cut may be given up; then a call that waited went on behind that, and was captured before the next one. */
    if (late && changed && !warnings[0] && (holds_it || strcmp(copy, at_first) == 0)) return say("waited", "");
    /* A freeze that is made long on purpose may be too long. */
    bool no_cut = moment == FREEZE && (status == HOTBACKUP_STATUS_NO_CUT || strstr(error, "/ballast"));
    bool no_freeze = moment == FREEZE && status == HOTBACKUP_STATUS_OK && !changed;
    if (no_cut || no_freeze || (late && !holds_it)) return say("missed", error);
    if (status != HOTBACKUP_STATUS_OK) return say("refused", error);
    /* A try may be given up for a change that has begun, and the next one, before it is over, be the cut. */
    bool is_behind = moment == FREEZE && changed_at > report.cut_unix_ns;
    if (is_behind && strcmp(copy, at_first) == 0) return say("missed", "it was over behind the cut");
    /* Of what takes several steps and waits at none of them, some may be in the copy. */
    if (is_behind && !holds_it) return say("between", "it was over behind the cut");
    snprintf(text, sizeof text, "%lu unseen%s%s", (unsigned long)report.unseen_files, warnings[0] ? "; " : "", warnings);
    if (!holds_it) {
        fprintf(stderr, "--- source at first\n%s--- source at last\n%s--- copy\n%s", at_first, at_last, copy);
        return say("WRONG", text);
    }
    uint64_t differences = 0;
    const char *directory = destination;
    if (API(hotbackup_verify_with)(manifest, &directory, 1, NULL, NULL, &differences) != HOTBACKUP_STATUS_OK) {
        return say("WRONG", API(hotbackup_last_error)());
    }
    return report.unseen_files == 0 && !warnings[0] ? say("captured", "") : say("detected", text);
}

static int list(void) {
    for (row = __start_rows; row < __stop_rows; row++) {
        printf("%s\t%s\t%s\t%s\t%s\n", row->name, row->group, row->call, row->flags & XFS ? "xfs" : "ext4",
               row->flags & (INVISIBLE | CALM) ? "calm" : "any");
    }
    return 0;
}

static int run(const char *name, const char *when, const char *directory) {
    for (row = __start_rows; row < __stop_rows && strcmp(row->name, name) != 0;) row++;
    while (moment < MOMENTS && strcmp(moment_names[moment], when) != 0) moment++;
    if (row == __stop_rows || moment == MOMENTS) return fprintf(stderr, "no row %s or moment %s\n", name, when), 2;
    umask(022);
    lay_out(directory);
    if (row->prepare) row->prepare();
    at_first = fingerprint(ground.source);
    bool in_time = false;
    /* A file that was changed a moment before it is read is read again anyway. */
    nap_us(UNTIL_OLD_MS * 1000);
    if (moment == FREEZE) {
        in_time = change_in_freeze();
    } else {
        back_up(NULL);
    }
    at_last = fingerprint(ground.source);
    if (status == HOTBACKUP_STATUS_OK && moment != FREEZE) CHECK(changed);
    if (changed && !(row->flags & INVISIBLE) && moment != HIDDEN) CHECK(strcmp(at_first, at_last) != 0);
    return judge(in_time);
}

int main(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], "list") == 0) return list();
    if (argc == 5 && strcmp(argv[1], "run") == 0) return run(argv[2], argv[3], argv[4]);
    fprintf(stderr, "usage: %s list | run ROW MOMENT DIRECTORY\n", argv[0]);
    return 2;
}
