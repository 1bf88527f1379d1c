/* Writes that go on behind their call: native AIO and POSIX AIO. */
#include "matrix.h"

#include <aio.h>
#include <libaio.h>
#include <sys/uio.h>

static io_context_t ring;
static int direct, appending;

static void set_up(void) {
    CHECK(io_setup(8, &ring) == 0);
    CHECK((direct = open(ground.target, O_RDWR | O_DIRECT)) >= 0);
    CHECK((appending = open(ground.target, O_WRONLY | O_APPEND)) >= 0);
}

static void reap_events(long count) {
    struct io_event events[8];
    CHECK(io_getevents(ring, count, 8, events, NULL) == count);
    for (long i = 0; i < count; i++) CHECK((long)events[i].res > 0);
}

/* Submits what make() makes of both places, and waits for it. */
static void submit(void (*make)(struct iocb *request, off_t at)) {
    struct iocb requests[2], *pointers[2] = {&requests[0], &requests[1]};
    int count = 0;
    AT_BOTH(at) make(&requests[count++], at);
    CHECK(io_submit(ring, 2, pointers) == 2);
    reap_events(2);
}

static struct iovec *halves(void) {
    static struct iovec pieces[2];
    pieces[0] = (struct iovec){ground.piece, PIECE / 2};
    pieces[1] = (struct iovec){ground.piece + PIECE / 2, PIECE / 2};
    return pieces;
}

static void make_pwrite(struct iocb *request, off_t at) { io_prep_pwrite(request, ground.fd, ground.piece, PIECE, at); }
static void make_direct(struct iocb *request, off_t at) { io_prep_pwrite(request, direct, ground.piece, PIECE, at); }
static void make_pwritev(struct iocb *request, off_t at) { io_prep_pwritev(request, ground.fd, halves(), 2, at); }
static void make_append(struct iocb *request, off_t at) { io_prep_pwrite(request, appending, ground.piece, PIECE, at); }
static void make_dsync(struct iocb *request, off_t at) {
    io_prep_pwritev2(request, ground.fd, halves(), 2, at, RWF_DSYNC);
}

#define GROUP "Native asynchronous I/O"
PREPARED(a_pwrite, "`io_submit`, IOCB_CMD_PWRITE", 0, set_up) { submit(make_pwrite); }
PREPARED(a_direct, "`io_submit`, IOCB_CMD_PWRITE, O_DIRECT", 0, set_up) { submit(make_direct); }
PREPARED(a_pwritev, "`io_submit`, IOCB_CMD_PWRITEV", 0, set_up) { submit(make_pwritev); }
PREPARED(a_append, "`io_submit`, O_APPEND", 0, set_up) { submit(make_append); }
PREPARED(a_dsync, "`io_submit`, RWF_DSYNC", 0, set_up) { submit(make_dsync); }
ROW(a_new_ring, "`io_setup` in the session, `io_submit`", 0) {
    set_up();
    submit(make_direct);
}
PREPARED(a_number, "`syscall(SYS_io_submit)`, `syscall(SYS_io_getevents)`", 0, set_up) {
    AT_BOTH(at) {
        struct iocb request, *pointer = &request;
        struct io_event event;
        make_direct(&request, at);
        CHECK(syscall(SYS_io_submit, ring, 1L, &pointer) == 1);
        CHECK(syscall(SYS_io_getevents, ring, 1L, 1L, &event, NULL) == 1);
    }
}
PREPARED(a_pgetevents, "`io_submit`, `io_pgetevents`", 0, set_up) {
    AT_BOTH(at) {
        struct iocb request, *pointer = &request;
        struct io_event event;
        make_direct(&request, at);
        CHECK(io_submit(ring, 1, &pointer) == 1);
        CHECK(io_pgetevents(ring, 1, 1, &event, NULL, NULL) == 1);
    }
}
PREPARED(a_unreaped, "`io_submit`, `io_destroy` without reaping", 0, set_up) {
    AT_BOTH(at) {
        struct iocb request, *pointer = &request;
        make_direct(&request, at);
        CHECK(io_submit(ring, 1, &pointer) == 1);
    }
    CHECK(io_destroy(ring) == 0);
}
PREPARED(a_raw, "raw `io_submit`, raw `io_getevents`", 0, set_up) {
    AT_BOTH(at) {
        struct iocb request, *pointer = &request;
        struct io_event event;
        make_direct(&request, at);
        CHECK(CHECK_RAW(RAW_3(SYS_io_submit, ring, 1, &pointer)) == 1);
        CHECK(CHECK_RAW(RAW_5(SYS_io_getevents, ring, 1, 1, &event, 0)) == 1);
    }
}

#undef GROUP
#define GROUP "POSIX asynchronous I/O"
static struct aiocb request_at(int fd, off_t at) {
    return (struct aiocb){.aio_fildes = fd,
                          .aio_buf = ground.piece,
                          .aio_nbytes = PIECE,
                          .aio_offset = at,
                          .aio_lio_opcode = LIO_WRITE,
                          .aio_sigevent.sigev_notify = SIGEV_NONE};
}

static void end(struct aiocb *request) {
    const struct aiocb *list[1] = {request};
    while (aio_error(request) == EINPROGRESS) aio_suspend(list, 1, NULL);
    CHECK(aio_return(request) == PIECE);
}

ROW(x_aio_write, "`aio_write`", 0) {
    AT_BOTH(at) {
        struct aiocb request = request_at(ground.fd, at);
        CHECK(aio_write(&request) == 0);
        end(&request);
    }
}
ROW(x_aio_write64, "`aio_write64`", 0) {
    AT_BOTH(at) {
        struct aiocb request = request_at(ground.fd, at);
        CHECK(aio_write64((struct aiocb64 *)&request) == 0);
        end(&request);
    }
}
ROW(x_aio_append, "`aio_write`, O_APPEND", 0) {
    struct aiocb request = request_at(open(ground.target, O_WRONLY | O_APPEND), 0);
    CHECK(aio_write(&request) == 0);
    end(&request);
}
ROW(x_aio_fsync, "`aio_write`, `aio_fsync`", 0) {
    struct aiocb request = request_at(ground.fd, EARLY), sync = request_at(ground.fd, 0);
    CHECK(aio_write(&request) == 0);
    CHECK(aio_fsync(O_DSYNC, &sync) == 0);
    end(&request);
    while (aio_error(&sync) == EINPROGRESS) usleep(100);
}
static void list(int mode) {
    struct aiocb first = request_at(ground.fd, EARLY), second = request_at(ground.fd, LATE);
    struct aiocb *requests[2] = {&first, &second};
    CHECK(lio_listio(mode, requests, 2, NULL) == 0);
    end(&first);
    end(&second);
}
ROW(x_lio_listio, "`lio_listio`, LIO_WAIT", 0) { list(LIO_WAIT); }
ROW(x_lio_listio_nowait, "`lio_listio`, LIO_NOWAIT", 0) { list(LIO_NOWAIT); }
ROW(x_lio_listio64, "`lio_listio64`", 0) {
    struct aiocb request = request_at(ground.fd, EARLY);
    struct aiocb64 *requests[1] = {(struct aiocb64 *)&request};
    CHECK(lio_listio64(LIO_WAIT, requests, 1, NULL) == 0);
    end(&request);
}
