/* Writes through libaio, liburing, rings entered by hand and POSIX's own calls, as those libraries lay out requests and rings, are
 * in the copy if they were submitted before the cut, else not.
 *
 * Method: four threads submit writes, several in flight at a time, to slots of a file each. Each is of a number
 * that is handed out under a lock which the submission is made under. The copy must be what the writes up to some last number
 * make of the files. */
#include "common.h"

#include <aio.h>
#include <libaio.h>
#include <liburing.h>
#include <sys/mman.h>
#include <sys/syscall.h>

enum { BLOCK = 4096, SLOTS = 512, DEPTH = 16, LOG = 1 << 22, BACKUPS = 6, FILES = 4 };

static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER;
static struct { unsigned short file, slot; } *entries;
static size_t entry_count;
static atomic_bool stop;
static const char *files[FILES];
static const char *names[FILES] = {"aio", "uring", "posix", "by hand"};

struct flight {
    struct iocb iocb;
    struct aiocb aiocb;
    struct iovec vector;
    int slot; /* -1: free */
    int pending;
    uint64_t *block;
};

struct writer {
    int file, fd;
    unsigned seed;
    struct flight flights[DEPTH];
};

static void begin(struct writer *writer, int file, bool direct) {
    writer->file = file;
    writer->seed = 7u + (unsigned)file;
    writer->fd = open(files[file], O_WRONLY | (direct ? O_DIRECT : 0));
    CHECK(writer->fd >= 0);
    for (int i = 0; i < DEPTH; i++) {
        writer->flights[i].slot = -1;
        CHECK(posix_memalign((void **)&writer->flights[i].block, BLOCK, BLOCK) == 0);
        writer->flights[i].vector = (struct iovec){writer->flights[i].block, BLOCK};
    }
}

/* A free flight with a slot that no other one writes; NULL if all fly. */
static struct flight *next(struct writer *writer) {
    struct flight *unused = NULL;
    int slot = rand_r(&writer->seed) % SLOTS;
    for (int i = 0; i < DEPTH; i++) {
        if (writer->flights[i].slot < 0) unused = &writer->flights[i];
        if (writer->flights[i].slot == slot) return next(writer);
    }
    if (unused) unused->slot = slot;
    return unused;
}

/* The next number, in the block; the lock is held. */
static void take_number(struct writer *writer, struct flight *flight) {
    CHECK(entry_count < LOG);
    entries[entry_count].file = (unsigned short)writer->file;
    entries[entry_count].slot = (unsigned short)flight->slot;
    entry_count++;
    for (int i = 0; i < BLOCK / 8; i++) flight->block[i] = entry_count;
}

static int reap_aio(io_context_t ring, long least, bool by_number) {
    struct io_event events[DEPTH];
    int count = by_number ? (int)syscall(SYS_io_getevents, ring, least, (long)DEPTH, events, NULL)
                          : io_getevents(ring, least, DEPTH, events, NULL);
    CHECK(count >= 0);
    for (int i = 0; i < count; i++) {
        CHECK(events[i].res == BLOCK);
        ((struct flight *)events[i].data)->slot = -1;
    }
    return count;
}

static void *with_libaio(void *unused) {
    (void)unused;
    struct writer writer;
    begin(&writer, 0, true);
    io_context_t ring = 0;
    CHECK(io_setup(DEPTH, &ring) == 0);
    for (unsigned long round = 0; !stop; round++) {
        struct flight *flight = next(&writer);
        if (!flight) {
            reap_aio(ring, 1, round % 2);
            continue;
        }
        if (round % 3) {
            io_prep_pwrite(&flight->iocb, writer.fd, flight->block, BLOCK, (long long)flight->slot * BLOCK);
        } else {
            io_prep_pwritev(&flight->iocb, writer.fd, &flight->vector, 1, (long long)flight->slot * BLOCK);
        }
        flight->iocb.data = flight;
        struct iocb *request = &flight->iocb;
        pthread_mutex_lock(&order);
        take_number(&writer, flight);
        CHECK(round % 5 ? io_submit(ring, 1, &request) == 1 : syscall(SYS_io_submit, ring, 1L, &request) == 1);
        pthread_mutex_unlock(&order);
        if (round % 64 == 0) nap_ms(2);
    }
    while (next(&writer) == NULL) reap_aio(ring, 1, false);
    CHECK(io_destroy(ring) == 0);
    return NULL;
}

static void reap_uring(struct io_uring *ring) {
    struct io_uring_cqe *end;
    CHECK(io_uring_wait_cqe(ring, &end) == 0);
    do {
        CHECK(end->res == BLOCK || end->res == 0);
        struct flight *flight = io_uring_cqe_get_data(end);
        if (--flight->pending == 0) flight->slot = -1;
        io_uring_cqe_seen(ring, end);
    } while (io_uring_peek_cqe(ring, &end) == 0);
}

/* In every way that submits what is prepared. */
static void submit(struct io_uring *ring, int count, unsigned long round) {
    struct __kernel_timespec time = {.tv_nsec = 1000};
    struct io_uring_cqe *end;
    int result;
    switch (round % 5) {
    case 0: result = io_uring_submit_and_wait(ring, 1); break;
    case 1: result = io_uring_submit_and_get_events(ring); break;
    case 2:
        result = io_uring_submit_and_wait_timeout(ring, &end, 1, &time, NULL);
        CHECK(result >= 0 || result == -ETIME || result == -EINTR);
        return;
    default: result = io_uring_submit(ring);
    }
    /* A thread of the kernel's has taken some already, or has not come to those before. */
    CHECK(ring->flags & IORING_SETUP_SQPOLL ? result >= 0 : result == count);
}

/* One of the kinds of rings that liburing makes. */
static void open_ring(struct io_uring *ring, int fd, unsigned number) {
    CHECK(io_uring_queue_init(2 * DEPTH, ring, number % 3 == 1 ? IORING_SETUP_SQPOLL : 0) == 0);
    if (number % 3 == 2) CHECK(io_uring_register_files(ring, &fd, 1) == 0);
}

static void *with_liburing(void *unused) {
    (void)unused;
    struct writer writer;
    begin(&writer, 1, true);
    struct io_uring ring;
    unsigned number = 0;
    open_ring(&ring, writer.fd, number);
    for (unsigned long round = 0; !stop; round++) {
        struct flight *flight = next(&writer);
        if (!flight) {
            reap_uring(&ring);
            continue;
        }
        pthread_mutex_lock(&order);
        take_number(&writer, flight);
        struct io_uring_sqe *request = io_uring_get_sqe(&ring);
        CHECK(request);
        if (round % 3) {
            io_uring_prep_writev(request, writer.fd, &flight->vector, 1, (__u64)flight->slot * BLOCK);
        } else {
            io_uring_prep_write(request, writer.fd, flight->block, BLOCK, (__u64)flight->slot * BLOCK);
        }
        if (number % 3 == 2 && round % 16 == 0) {
            request->fd = 0;
            request->flags |= IOSQE_FIXED_FILE;
        }
        io_uring_sqe_set_data(request, flight);
        flight->pending = 1;
        if (round % 2) {
            /* A request that writes nothing, and ends at once, by the same name. */
            request = io_uring_get_sqe(&ring);
            CHECK(request);
            io_uring_prep_nop(request);
            io_uring_sqe_set_data(request, flight);
            flight->pending = 2;
        }
        submit(&ring, flight->pending, round);
        pthread_mutex_unlock(&order);
        if (round % 64 == 0) nap_ms(2);
        if (round % 256 == 255) {
            /* A new ring, most likely at the address of the old one. */
            for (int i = 0; i < DEPTH; i++) {
                while (writer.flights[i].slot >= 0) reap_uring(&ring);
            }
            io_uring_queue_exit(&ring);
            open_ring(&ring, writer.fd, ++number);
        }
    }
    return NULL;
}

/* The flights that have ended; waits for one if `wait`. */
static void reap_posix(struct writer *writer, bool wait) {
    const struct aiocb *list[DEPTH];
    for (int i = 0; i < DEPTH; i++) list[i] = writer->flights[i].slot >= 0 ? &writer->flights[i].aiocb : NULL;
    if (wait) CHECK(aio_suspend(list, DEPTH, NULL) == 0);
    for (int i = 0; i < DEPTH; i++) {
        if (!list[i] || aio_error(list[i]) == EINPROGRESS) continue;
        /* Some programs do not ask for what they know. */
        if (i % 4) CHECK(aio_return(&writer->flights[i].aiocb) == BLOCK);
        writer->flights[i].slot = -1;
    }
}

static void *with_posix(void *unused) {
    (void)unused;
    struct writer writer;
    begin(&writer, 2, false);
    for (unsigned long round = 0; !stop; round++) {
        struct flight *flight = next(&writer);
        if (!flight) {
            reap_posix(&writer, true);
            continue;
        }
        struct aiocb *request = &flight->aiocb;
        memset(request, 0, sizeof *request);
        request->aio_fildes = writer.fd;
        request->aio_buf = flight->block;
        request->aio_nbytes = BLOCK;
        request->aio_offset = (off_t)flight->slot * BLOCK;
        request->aio_sigevent.sigev_notify = SIGEV_NONE;
        request->aio_lio_opcode = LIO_WRITE;
        struct aiocb *list[3] = {NULL, request, NULL};
        pthread_mutex_lock(&order);
        take_number(&writer, flight);
        switch (round % 4) {
        case 0: CHECK(lio_listio(LIO_NOWAIT, list, 3, NULL) == 0); break;
        case 1: CHECK(lio_listio(round % 8 == 1 ? LIO_WAIT : LIO_NOWAIT, list, 3, NULL) == 0); break;
        default: CHECK(aio_write(request) == 0);
        }
        pthread_mutex_unlock(&order);
        if (round % 64 == 0) nap_ms(2);
    }
    while (!next(&writer)) reap_posix(&writer, true);
    for (int left = 1; left;) {
        reap_posix(&writer, false);
        left = 0;
        for (int i = 0; i < DEPTH; i++) left += writer.flights[i].slot >= 0 && writer.flights[i].aiocb.aio_buf &&
                                                aio_error(&writer.flights[i].aiocb) == EINPROGRESS;
    }
    return NULL;
}

/* A ring as a program makes it that knows nothing but the kernel. */
static unsigned hand_flags = IORING_SETUP_COOP_TASKRUN;
struct hand {
    int fd;
    size_t bytes;
    struct io_uring_params p;
    char *ring;
    struct io_uring_sqe *requests;
};
#define AT(hand, place) ((_Atomic unsigned *)((hand)->ring + (hand)->p.place))

static void open_hand(struct hand *hand, unsigned flags) {
    memset(hand, 0, sizeof *hand);
    hand->p.flags = flags;
    hand->fd = (int)syscall(__NR_io_uring_setup, 2 * DEPTH, &hand->p);
    CHECK(hand->fd >= 0 && hand->p.features & IORING_FEAT_SINGLE_MMAP);
    size_t indices = hand->p.sq_off.array + hand->p.sq_entries * sizeof(unsigned);
    size_t ends = hand->p.cq_off.cqes + hand->p.cq_entries * sizeof(struct io_uring_cqe);
    hand->bytes = indices > ends ? indices : ends;
    hand->ring = mmap(NULL, hand->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, hand->fd, IORING_OFF_SQ_RING);
    hand->requests = mmap(NULL, hand->p.sq_entries * sizeof(struct io_uring_sqe), PROT_READ | PROT_WRITE, MAP_SHARED, hand->fd,
                          IORING_OFF_SQES);
    CHECK(hand->ring != MAP_FAILED && hand->requests != MAP_FAILED);
}

static void close_hand(struct hand *hand) {
    CHECK(munmap(hand->requests, hand->p.sq_entries * sizeof(struct io_uring_sqe)) == 0);
    CHECK(munmap(hand->ring, hand->bytes) == 0);
    CHECK(close(hand->fd) == 0);
}

/* Takes what has ended, which takes no call; at least `least` have. */
static void take_ends(struct hand *hand, unsigned least) {
    unsigned head = *AT(hand, cq_off.head), tail = atomic_load(AT(hand, cq_off.tail));
    CHECK(tail - head >= least);
    for (; head != tail; head++) {
        struct io_uring_cqe *end = (struct io_uring_cqe *)(hand->ring + hand->p.cq_off.cqes) + (head & *AT(hand, cq_off.ring_mask));
        CHECK(end->res == BLOCK);
        ((struct flight *)(uintptr_t)end->user_data)->slot = -1;
    }
    atomic_store(AT(hand, cq_off.head), head);
}

/* Waits for `least` ends, and takes what has ended. */
static void reap_hand(struct hand *hand, unsigned least) {
    errno = 12345;
    CHECK(syscall(__NR_io_uring_enter, hand->fd, 0, least, IORING_ENTER_GETEVENTS, NULL, 0) == 0 && errno == 12345);
    take_ends(hand, least);
}

static void *by_hand(void *unused) {
    (void)unused;
    struct writer writer;
    begin(&writer, 3, true);
    struct hand hand;
    open_hand(&hand, hand_flags);
    for (unsigned long round = 0; !stop; round++) {
        struct flight *flight = next(&writer);
        if (!flight) {
            reap_hand(&hand, 1);
            continue;
        }
        pthread_mutex_lock(&order);
        take_number(&writer, flight);
        unsigned tail = *AT(&hand, sq_off.tail), mask = *AT(&hand, sq_off.ring_mask);
        /* The indices need not be in order. */
        unsigned index = (tail * 7 + 3) & mask;
        io_uring_prep_write(&hand.requests[index], writer.fd, flight->block, BLOCK, (__u64)flight->slot * BLOCK);
        hand.requests[index].user_data = (uintptr_t)flight;
        ((_Atomic unsigned *)(hand.ring + hand.p.sq_off.array))[tail & mask] = index;
        atomic_store(AT(&hand, sq_off.tail), tail + 1);
        errno = 12345;
        unsigned wait = round % 4 == 0 ? IORING_ENTER_GETEVENTS : 0;
        switch (round % 3) {
        case 0: CHECK(io_uring_enter((unsigned)hand.fd, 1, round % 4 == 0, wait, NULL) == 1); break;
        default: CHECK(syscall(__NR_io_uring_enter, hand.fd, 1, round % 4 == 0, wait, NULL, 0) == 1);
        }
        CHECK(errno == 12345);
        pthread_mutex_unlock(&order);
        if (round % 64 == 0) nap_ms(2);
        if (round % 512 == 511) {
            for (int i = 0; i < DEPTH; i++) {
                /* Nobody is called for the last ends, where the kernel tells them by itself. */
                while (writer.flights[i].slot >= 0) hand_flags & IORING_SETUP_DEFER_TASKRUN ? reap_hand(&hand, 1) : take_ends(&hand, 0);
            }
            close_hand(&hand);
            open_hand(&hand, hand_flags);
        }
    }
    return NULL;
}

/* Compares a copy with the log; returns the last number in it. */
static uint64_t check(const char *destination) {
    static uint64_t copied[FILES][SLOTS], expected[FILES][SLOTS];
    uint64_t block[BLOCK / 8], last = 0;
    for (int file = 0; file < FILES; file++) {
        int fd = open(in(destination, names[file]), O_RDONLY);
        CHECK(fd >= 0);
        for (int slot = 0; slot < SLOTS; slot++) {
            CHECK(read(fd, block, BLOCK) == BLOCK);
            for (int i = 1; i < BLOCK / 8; i++) CHECK(block[i] == block[0]);
            copied[file][slot] = block[0];
            if (block[0] > last) last = block[0];
        }
        close(fd);
    }
    memset(expected, 0, sizeof expected);
    for (uint64_t i = 0; i < last; i++) expected[entries[i].file][entries[i].slot] = i + 1;
    for (int file = 0; file < FILES; file++) {
        for (int slot = 0; slot < SLOTS; slot++) {
            if (copied[file][slot] == expected[file][slot]) continue;
            fprintf(stderr, "slot %d of %s is %lu instead of %lu; the last number is %lu\n", slot, names[file],
                    (unsigned long)copied[file][slot], (unsigned long)expected[file][slot], (unsigned long)last);
            exit(1);
        }
    }
    return last;
}

int main(int argc, char **argv) {
    CHECK(argc == 3 || argc == 4);
    /* Ends that are only told to the thread that asks: it must not wait for a lock that another one at the gate holds. */
    bool deferred = argc == 4;
    if (deferred) hand_flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN;
    entries = calloc(LOG, sizeof *entries);
    void *(*const writers[FILES])(void *) = {with_libaio, with_liburing, with_posix, by_hand};
    pthread_t threads[FILES];
    for (int file = 0; file < FILES; file++) {
        files[file] = strdup(in(argv[1], names[file]));
        fill(files[file], SLOTS * BLOCK, 0);
        if (file == 3 || !deferred) CHECK(pthread_create(&threads[file], NULL, writers[file], NULL) == 0);
    }
    for (int backup = 0; backup < BACKUPS; backup++) {
        char name[16];
        snprintf(name, sizeof name, "copy%d", backup);
        const char *destination = in(argv[2], name);
        CHECK(mkdir(destination, 0700) == 0);
        nap_ms(20);
        backup_with(argv[1], destination, NULL);
    }
    stop = true;
    for (int i = deferred ? 3 : 0; i < FILES; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    for (int backup = 0; backup < BACKUPS; backup++) {
        char name[16];
        snprintf(name, sizeof name, "copy%d", backup);
        uint64_t last = check(strdup(in(argv[2], name)));
        CHECK(last > 0 && last < entry_count);
    }
    return 0;
}
