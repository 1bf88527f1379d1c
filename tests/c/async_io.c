/* Writes through libaio and liburing, as those libraries lay out requests and rings, are in the copy if they were submitted
 * before the cut, else not.
 *
 * Method: two threads submit writes with O_DIRECT, several in flight at a time, to slots of a file each. Each is of a number
 * that is handed out under a lock which the submission is made under. The copy must be what the writes up to some last number
 * make of the files. */
#include "common.h"

#include <libaio.h>
#include <liburing.h>
#include <sys/syscall.h>

enum { BLOCK = 4096, SLOTS = 512, DEPTH = 16, LOG = 1 << 22, BACKUPS = 6 };

static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER;
static struct { unsigned short file, slot; } *entries;
static size_t entry_count;
static atomic_bool stop;
static const char *files[2];

struct flight {
    struct iocb iocb;
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

static void *with_liburing(void *unused) {
    (void)unused;
    struct writer writer;
    begin(&writer, 1, true);
    struct io_uring ring;
    CHECK(io_uring_queue_init(2 * DEPTH, &ring, 0) == 0);
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
        CHECK(io_uring_submit(&ring) == flight->pending);
        pthread_mutex_unlock(&order);
        if (round % 64 == 0) nap_ms(2);
        if (round % 1024 == 1023) {
            /* A new ring, most likely at the address of the old one. */
            for (int i = 0; i < DEPTH; i++) {
                while (writer.flights[i].slot >= 0) reap_uring(&ring);
            }
            io_uring_queue_exit(&ring);
            CHECK(io_uring_queue_init(2 * DEPTH, &ring, 0) == 0);
        }
    }
    return NULL;
}

/* Compares a copy with the log; returns the last number in it. */
static uint64_t check(const char *destination) {
    static uint64_t copied[2][SLOTS], expected[2][SLOTS];
    static const char *names[2] = {"aio", "uring"};
    uint64_t block[BLOCK / 8], last = 0;
    for (int file = 0; file < 2; file++) {
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
    for (int file = 0; file < 2; file++) {
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
    CHECK(argc == 3);
    entries = calloc(LOG, sizeof *entries);
    files[0] = strdup(in(argv[1], "aio"));
    files[1] = strdup(in(argv[1], "uring"));
    for (int file = 0; file < 2; file++) fill(files[file], SLOTS * BLOCK, 0);
    pthread_t threads[2];
    CHECK(pthread_create(&threads[0], NULL, with_libaio, NULL) == 0);
    CHECK(pthread_create(&threads[1], NULL, with_liburing, NULL) == 0);
    for (int backup = 0; backup < BACKUPS; backup++) {
        char name[16];
        snprintf(name, sizeof name, "copy%d", backup);
        const char *destination = in(argv[2], name);
        CHECK(mkdir(destination, 0700) == 0);
        nap_ms(20);
        backup_with(argv[1], destination, NULL);
    }
    stop = true;
    for (int i = 0; i < 2; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    for (int backup = 0; backup < BACKUPS; backup++) {
        char name[16];
        snprintf(name, sizeof name, "copy%d", backup);
        uint64_t last = check(in(argv[2], name));
        CHECK(last > 0 && last < entry_count);
    }
    return 0;
}
