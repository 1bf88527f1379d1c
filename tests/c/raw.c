/* Changes by system calls that nobody sees, in threads of this process, beside captured ones.
 *
 * Method: system calls are made without the C library. One write straddles the reading of its file: its memory comes slowly, by a
 * userfaultfd, so that the kernel takes more than a second for it. Another lands in the freeze, which a file that a child holds
 * open makes long, before a captured write to the same file; that the gate is closed shows in a thread of captured writes that
 * sleeps. A third one cannot be told from nothing, as docs/limits.md says. */
#include "straddling.h"
#include "system_call.h"

static const char *source;
static void write_raw(int fd) { CHECK(RAW_4(SYS_pwrite64, fd, slow, size, 0) == (long)size); }

static void straddles_the_copy(const char *destination) {
    hotbackup_pair pair = {source, destination};
    straddle(options_of(&pair), write_raw);
}

enum { BLOCK = 4096 };
static atomic_ulong captured;
static atomic_int pulsing;
static atomic_bool stop, quiesced, underway, written;
static bool landed;

/* Captured writes without a pause, which stand still while the gate is closed. */
static void *pulse(void *unused) {
    (void)unused;
    int fd = open(in(source, "pulse"), O_RDWR | O_CREAT, 0600);
    pulsing = (int)syscall(SYS_gettid);
    for (; !stop; captured++) CHECK(pwrite(fd, &captured, sizeof captured, 0) == sizeof captured);
    close(fd);
    return NULL;
}

static void write_unseen(int fd) {
    char block[BLOCK];
    memset(block, 'r', sizeof block);
    CHECK(RAW_4(SYS_pwrite64, fd, block, sizeof block, 8 * BLOCK) == BLOCK);
}

static void write_captured(int fd) {
    char block[BLOCK];
    memset(block, 'c', sizeof block);
    CHECK(pwrite(fd, block, sizeof block, 0) == BLOCK);
}

/* Whether that thread sleeps in a futex: of the thread above, at the gate. One that lacks a processor is "running". */
static bool sleeps_in_a_futex(int state) {
    char text[16] = "";
    return pread(state, text, sizeof text - 1, 0) > 0 && strtol(text, NULL, 10) == SYS_futex;
}

/* Waits for the freeze, and writes to one file there: unseen, then captured, which waits until the gate is open. */
static void *write_in_the_freeze(void *unused) {
    (void)unused;
    int fd = open(in(source, "victim"), O_RDWR);
    while (!pulsing || !quiesced) nap_ms(1);
    char path[64];
    snprintf(path, sizeof path, "/proc/self/task/%d/syscall", pulsing);
    int state = open(path, O_RDONLY);
    CHECK(fd >= 0 && state >= 0);
    double since = 0;
    for (unsigned long seen = 0; !stop;) {
        if (captured != seen || !sleeps_in_a_futex(state)) {
            seen = captured;
            since = now_ms();
        } else if (now_ms() - since > 1) {
            underway = true;
            write_unseen(fd);
            /* The gate was closed all the time; what ends the sleep comes behind it, and looks at all times behind that. */
            landed = captured == seen && sleeps_in_a_futex(state);
            write_captured(fd);
            written = true;
            break;
        }
    }
    close(state);
    close(fd);
    return NULL;
}

static void note_quiesced(void *unused) {
    (void)unused;
    quiesced = true;
    /* Before the cut is tried again the captured write has come through the gate. */
    while (underway && !written) nap_ms(1);
}

/* Fills a file that a child holds open for writing, so that it is copied whole in the freeze. */
static pid_t slow_freeze(void) {
    fill(in(source, "held"), 64 << 20, 'h');
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        int fd = open(in(source, "held"), O_WRONLY);
        for (;;) pause(), (void)fd;
    }
    nap_ms(50);
    return child;
}

static char block_of(const char *directory, const char *name, int number) {
    char byte = 0;
    int fd = open(in(directory, name), O_RDONLY);
    CHECK(fd >= 0 && pread(fd, &byte, 1, (off_t)number * BLOCK) == 1);
    close(fd);
    return byte;
}

/* Whether the raw write landed in the freeze: then it is found, and the copy holds it and the captured one behind it. On a busy
 * machine the freeze may be missed; the copy never lacks the first of them alone. */
static bool lands_in_one_freeze(const char *destination) {
    stop = quiesced = underway = written = landed = false;
    captured = 0;
    pulsing = 0;
    fill(in(source, "victim"), 16 * BLOCK, 'v');
    pid_t child = slow_freeze();
    pthread_t threads[2];
    CHECK(pthread_create(&threads[0], NULL, pulse, NULL) == 0);
    CHECK(pthread_create(&threads[1], NULL, write_in_the_freeze, NULL) == 0);
    hotbackup_pair pair = {source, destination};
    hotbackup_options options = options_of(&pair);
    hotbackup_report report = {.size = sizeof report};
    options.before_cut = note_quiesced;
    CHECK_OK(API(hotbackup_backup)(&options, &report));
    stop = true;
    for (int i = 0; i < 2; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    CHECK(kill(child, SIGKILL) == 0 && waitpid(child, NULL, 0) == child);
    char raw = block_of(destination, "victim", 8), seen = block_of(destination, "victim", 0);
    printf("  in a freeze of %.1f ms: cut at try %d, %d files changed unseen\n", (double)report.freeze_ns / 1e6,
           (int)report.cut_attempts, (int)report.unseen_files);
    CHECK(seen != 'c' || raw == 'r');
    CHECK(!landed || (report.unseen_files == 1 && raw == 'r' && seen == 'c'));
    return landed;
}

static void lands_in_the_freeze(const char *destination) {
    for (char attempt = '0'; attempt < '8'; attempt++) {
        const char *copy = strdup(in(destination, (char[]){attempt, 0}));
        CHECK(mkdir(copy, 0700) == 0);
        if (lands_in_one_freeze(copy)) return;
    }
    CHECK(!"no freeze was met");
}

static void write_where_it_cannot_be_told(void *fd) {
    write_unseen(*(int *)fd);
    write_captured(*(int *)fd);
}

/* Not told: times and size are the same whether the raw write was made or not, whenever they are looked at. */
static void hidden_by_a_captured_write(const char *destination) {
    fill(in(source, "hidden"), 16 * BLOCK, 'v');
    int fd = open(in(source, "hidden"), O_RDWR);
    hotbackup_pair pair = {source, destination};
    hotbackup_options options = options_of(&pair);
    options.before_cut = write_where_it_cannot_be_told;
    options.user_data = &fd;
    /* So that the file was not changed a moment before it is read. */
    nap_ms(300);
    CHECK_OK(API(hotbackup_backup)(&options, NULL));
    CHECK(block_of(destination, "hidden", 0) == 'c');
    CHECK(block_of(destination, "hidden", 8) == 'v' || !"docs/limits.md says that this is lost");
    close(fd);
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    source = argv[1];
    void (*const rows[])(const char *) = {straddles_the_copy, lands_in_the_freeze, hidden_by_a_captured_write};
    for (int row = 0; row < 3; row++) {
        char name[16];
        snprintf(name, sizeof name, "copy%d", row);
        const char *destination = strdup(in(argv[2], name));
        CHECK(mkdir(destination, 0700) == 0);
        rows[row](destination);
    }
    return 0;
}
