/* Rings of io_uring whose requests nobody reads before the kernel takes them: entered by system calls that are made without the C
 * library, and polled by a thread of the kernel's while requests are published without a call.
 *
 * A write straddles the reading of its file. Two files get the same numbers by such writes, the second when the first has ended,
 * beside captured writes to both, which hide the others from the times, or with rests: every copy has to be of one instant. And a ring
 * that is never at rest fails the backup, which says so. */
#include "straddling.h"
#include "system_call.h"

#include <liburing.h>
#include <poll.h>

static const char *source;
static char warnings[4096];

static void note_warning(const char *text, void *unused) {
    (void)unused;
    size_t len = strlen(warnings);
    snprintf(warnings + len, sizeof warnings - len, "%s\n", text);
}

/* Publishes what was prepared in a ring, and has the kernel take it, without a call that is captured. */
static void submit_unseen(struct io_uring *ring) {
    struct io_uring_sq *queue = &ring->sq;
    unsigned tail = *queue->ktail, count = queue->sqe_tail - queue->sqe_head;
    for (; queue->sqe_head != queue->sqe_tail; queue->sqe_head++) {
        queue->array[tail++ & *queue->kring_mask] = queue->sqe_head & *queue->kring_mask;
    }
    __atomic_store_n(queue->ktail, tail, __ATOMIC_SEQ_CST);
    unsigned flags = 0;
    if (ring->flags & IORING_SETUP_SQPOLL) {
        count = 0;
        if (!(__atomic_load_n(queue->kflags, __ATOMIC_SEQ_CST) & IORING_SQ_NEED_WAKEUP)) return;
        flags = IORING_ENTER_SQ_WAKEUP;
    }
    CHECK(RAW_6(SYS_io_uring_enter, ring->ring_fd, count, 0, flags, 0, 0) >= 0);
}

static void await_end(struct io_uring *ring, int expected) {
    struct io_uring_cqe *end;
    CHECK(io_uring_wait_cqe(ring, &end) == 0 && end->res == expected);
    io_uring_cqe_seen(ring, end);
}

static void write_unseen(struct io_uring *ring, int fd, const void *bytes, unsigned len, off_t at) {
    io_uring_prep_write(io_uring_get_sqe(ring), fd, bytes, len, (uint64_t)at);
    submit_unseen(ring);
    await_end(ring, (int)len);
}

/* A ring that was used before: a session takes it up as it begins. */
static void make_ring(struct io_uring *ring, unsigned flags) {
    CHECK(io_uring_queue_init(8, ring, flags) == 0);
    io_uring_prep_nop(io_uring_get_sqe(ring));
    CHECK(io_uring_submit(ring) >= 0);
    await_end(ring, 0);
}

static unsigned ring_flags;

static hotbackup_options noting_options_of(const hotbackup_pair *pair) {
    hotbackup_options options = options_of(pair);
    options.on_warning = note_warning;
    warnings[0] = 0;
    return options;
}

static void write_by_ring(int fd) {
    struct io_uring ring;
    make_ring(&ring, 0);
    write_unseen(&ring, fd, slow, (unsigned)size, 0);
    io_uring_queue_exit(&ring);
}

static void straddles_the_copy(const char *destination) {
    hotbackup_pair pair = {source, destination};
    straddle(noting_options_of(&pair), write_by_ring);
    CHECK(strstr(warnings, "a ring of io_uring"));
}

enum { PAIRS = 64, BLOCK = 4096 };
static atomic_bool stop;
static atomic_long rounds;

/* Beside captured writes, which wait at the gate; with rests; without a pause. */
enum manner { MIXED, PACED, RESTLESS };
static enum manner manner;

/* Writes one number to a block of the first file, then of the second, and then to another block of both. */
static void *write_pairs(void *unused) {
    (void)unused;
    struct io_uring ring;
    make_ring(&ring, ring_flags);
    static _Alignas(BLOCK) char block[BLOCK];
    int plain[2] = {open(in(source, "first"), O_RDWR), open(in(source, "second"), O_RDWR)};
    int direct[2] = {open(in(source, "first"), O_RDWR | O_DIRECT), open(in(source, "second"), O_RDWR | O_DIRECT)};
    CHECK(plain[0] >= 0 && plain[1] >= 0);
    bool is_direct = direct[0] >= 0 && direct[1] >= 0;
    for (long round = 1; !stop; round++) {
        memset(block, 0, sizeof block);
        memcpy(block, &round, sizeof round);
        off_t at = round % PAIRS * 2 * BLOCK;
        for (int file = 0; file < 2; file++) {
            write_unseen(&ring, is_direct && round % 2 ? direct[file] : plain[file], block, BLOCK, at);
        }
        for (int file = 0; file < 2; file++) {
            if (manner == MIXED) CHECK(pwrite(plain[file], block, BLOCK, at + BLOCK) == BLOCK);
            else write_unseen(&ring, plain[file], block, BLOCK, at + BLOCK);
        }
        rounds = round;
        if (manner == PACED && round % 32 == 0) nap_ms(60);
    }
    for (int file = 0; file < 2; file++) {
        close(plain[file]);
        if (is_direct) close(direct[file]);
    }
    io_uring_queue_exit(&ring);
    return NULL;
}

static long number_at(int fd, int index) {
    long number = 0;
    CHECK(pread(fd, &number, sizeof number, (off_t)index * BLOCK) == sizeof number);
    return number;
}

/* Checks that a copy holds all that was written up to some moment, and nothing of what was written later. */
static void check_one_instant(const char *destination) {
    int fds[2] = {open(in(destination, "first"), O_RDONLY), open(in(destination, "second"), O_RDONLY)};
    CHECK(fds[0] >= 0 && fds[1] >= 0);
    /* Each round makes four writes, in this order. */
    long last = -1, least = LONG_MAX;
    for (int index = 0; index < 2 * PAIRS; index++) {
        for (int file = 0; file < 2; file++) {
            long round = number_at(fds[file], index), step = round * 4 + index % 2 * 2 + file;
            if (step > last) last = step;
        }
    }
    for (int index = 0; index < 2 * PAIRS; index++) {
        for (int file = 0; file < 2; file++) {
            long round = number_at(fds[file], index), next = (round + PAIRS) * 4 + index % 2 * 2 + file;
            if (round == 0) next = ((index / 2 ? index / 2 : PAIRS)) * 4 + index % 2 * 2 + file;
            if (next < least) least = next;
        }
    }
    if (least <= last) {
        fprintf(stderr, "%s holds write %ld and not %ld, which came before it\n", destination, last, least);
        exit(1);
    }
    close(fds[0]);
    close(fds[1]);
}

static void begin_pairs(pthread_t *writer, enum manner how) {
    manner = how;
    fill(in(source, "first"), 2 * PAIRS * BLOCK, 0);
    fill(in(source, "second"), 2 * PAIRS * BLOCK, 0);
    stop = false;
    rounds = 0;
    CHECK(pthread_create(writer, NULL, write_pairs, NULL) == 0);
    while (rounds < 2 * PAIRS) nap_ms(1);
}

static void end_pairs(pthread_t writer) {
    stop = true;
    CHECK(pthread_join(writer, NULL) == 0);
}

static void back_up_at_rest(const char *destination, enum manner how, unsigned flags) {
    pthread_t writer;
    ring_flags = flags;
    begin_pairs(&writer, how);
    for (char number = '0'; number < '6'; number++) {
        const char *copy = strdup(in(destination, (char[]){number, 0}));
        CHECK(mkdir(copy, 0700) == 0);
        hotbackup_pair pair = {source, copy};
        hotbackup_options options = noting_options_of(&pair);
        hotbackup_report report = {.size = sizeof report};
        long before = rounds;
        CHECK_OK(API(hotbackup_backup)(&options, &report));
        printf("  cut at try %d, %ld rounds meanwhile\n", (int)report.cut_attempts, rounds - before);
        check_one_instant(copy);
        CHECK(strstr(warnings, "a ring of io_uring"));
        CHECK(strstr(warnings, "copied whole"));
    }
    end_pairs(writer);
}

static void mixed(const char *destination) { back_up_at_rest(destination, MIXED, 0); }
static void paced(const char *destination) { back_up_at_rest(destination, PACED, 0); }
static void polled(const char *destination) { back_up_at_rest(destination, PACED, IORING_SETUP_SQPOLL); }

static struct io_uring used;
static bool is_multishot;

/* A write to a registered file whose descriptor is closed, hidden by a captured change. */
static void write_registered(void *unused) {
    (void)unused;
    static char block[BLOCK];
    memset(block, 'r', sizeof block);
    struct io_uring_sqe *request = io_uring_get_sqe(&used);
    io_uring_prep_write(request, 0, block, BLOCK, BLOCK);
    request->flags |= IOSQE_FIXED_FILE;
    submit_unseen(&used);
    await_end(&used, BLOCK);
    CHECK(chmod(in(source, "registered"), 0640) == 0);
}

static hotbackup_status back_up_registered(const char *destination) {
    fill(in(source, "registered"), 4 * BLOCK, 'o');
    make_ring(&used, 0);
    int fd = open(in(source, "registered"), O_RDWR), pipe_ends[2];
    CHECK(fd >= 0 && io_uring_register_files(&used, &fd, 1) == 0 && close(fd) == 0);
    CHECK(pipe(pipe_ends) == 0);
    if (is_multishot) {
        /* Its first end leaves it armed: from then on as many requests may be under way as the counters do not tell of. */
        io_uring_prep_poll_multishot(io_uring_get_sqe(&used), pipe_ends[0], POLLIN);
        CHECK(io_uring_submit(&used) == 1 && write(pipe_ends[1], "x", 1) == 1);
        await_end(&used, POLLIN);
    }
    io_uring_prep_nop(io_uring_get_sqe(&used));
    submit_unseen(&used);
    await_end(&used, 0);
    hotbackup_pair pair = {source, destination};
    hotbackup_options options = noting_options_of(&pair);
    options.before_cut = write_registered;
    hotbackup_status status = API(hotbackup_backup)(&options, NULL);
    io_uring_queue_exit(&used);
    close(pipe_ends[0]);
    close(pipe_ends[1]);
    return status;
}

static void registered(const char *destination) {
    CHECK_OK(back_up_registered(destination));
    char byte = 0;
    int fd = open(in(destination, "registered"), O_RDONLY);
    CHECK(fd >= 0 && pread(fd, &byte, 1, BLOCK) == 1 && byte == 'r');
    close(fd);
}

static void several_ends(const char *destination) {
    is_multishot = true;
    CHECK(back_up_registered(destination) != HOTBACKUP_STATUS_OK);
    CHECK(strstr(API(hotbackup_last_error)(), "io_uring"));
}

static void never_rests(const char *destination) {
    pthread_t writer;
    ring_flags = 0;
    begin_pairs(&writer, RESTLESS);
    hotbackup_pair pair = {source, destination};
    hotbackup_options options = noting_options_of(&pair);
    double from = now_ms();
    hotbackup_status status = API(hotbackup_backup)(&options, NULL);
    printf("  after %.0f ms: %s\n", now_ms() - from, status == HOTBACKUP_STATUS_OK ? "ok" : API(hotbackup_last_error)());
    if (status == HOTBACKUP_STATUS_OK) {
        /* On a busy machine this thread may have been stopped for as long as the cut takes. */
        check_one_instant(destination);
    } else {
        CHECK(strstr(API(hotbackup_last_error)(), "did not come to rest"));
    }
    end_pairs(writer);
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    source = argv[1];
    void (*const rows[])(const char *) = {straddles_the_copy, mixed, paced, polled,
                                              registered,        several_ends, never_rests};
    for (int row = 0; row < 7; row++) {
        char name[16];
        snprintf(name, sizeof name, "copy%d", row);
        const char *destination = strdup(in(argv[2], name));
        CHECK(mkdir(destination, 0700) == 0);
        rows[row](destination);
    }
    return 0;
}
