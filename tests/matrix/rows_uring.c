/* Requests to io_uring, through liburing and by other ways. */
#include "matrix.h"

#include <liburing.h>
#include <sys/uio.h>
#include <sys/xattr.h>

#ifndef IORING_SETUP_DEFER_TASKRUN
#define IORING_SETUP_DEFER_TASKRUN (1U << 13)
#endif
/* Later than Debian 12's liburing knows. */
enum { OP_FTRUNCATE = 55 };

static struct io_uring ring;

static void set_up_with(unsigned flags) { CHECK((errno = -io_uring_queue_init(8, &ring, flags)) == 0); }
static void set_up(void) { set_up_with(0); }

static struct io_uring_sqe *next(void) {
    struct io_uring_sqe *request = io_uring_get_sqe(&ring);
    CHECK(request);
    return request;
}

/* Takes the end of a request. */
static int end(void) {
    struct io_uring_cqe *done;
    CHECK((errno = -io_uring_wait_cqe(&ring, &done)) == 0);
    int result = done->res;
    io_uring_cqe_seen(&ring, done);
    if (result < 0) errno = result == -EINVAL ? ENOSYS : -result; /* an opcode that the kernel does not know */
    CHECK(result >= 0);
    return result;
}

/* Submits the requests that were made, and waits for all. */
static void submit(int count) {
    CHECK(io_uring_submit(&ring) == count);
    while (count-- > 0) end();
}

static void make_write(off_t at) { io_uring_prep_write(next(), ground.fd, ground.piece, PIECE, (uint64_t)at); }

static struct iovec *whole(void) {
    static struct iovec vector;
    vector = (struct iovec){ground.piece, PIECE};
    return &vector;
}

#define GROUP "io_uring, through liburing"
PREPARED(u_write, "IORING_OP_WRITE", 0, set_up) {
    AT_BOTH(at) make_write(at);
    submit(2);
}
PREPARED(u_write_position, "IORING_OP_WRITE at the position", 0, set_up) {
    AT_BOTH(at) {
        CHECK(lseek(ground.fd, at, SEEK_SET) == at);
        io_uring_prep_write(next(), ground.fd, ground.piece, PIECE, (uint64_t)-1);
        submit(1);
    }
}
PREPARED(u_write_append, "IORING_OP_WRITE, O_APPEND", 0, set_up) {
    io_uring_prep_write(next(), open(ground.target, O_WRONLY | O_APPEND), ground.piece, PIECE, 0);
    submit(1);
}
PREPARED(u_write_direct, "IORING_OP_WRITE, O_DIRECT", 0, set_up) {
    int fd = open(ground.target, O_WRONLY | O_DIRECT);
    AT_BOTH(at) io_uring_prep_write(next(), fd, ground.piece, PIECE, (uint64_t)at);
    submit(2);
}
PREPARED(u_writev, "IORING_OP_WRITEV", 0, set_up) {
    AT_BOTH(at) io_uring_prep_writev(next(), ground.fd, whole(), 1, (uint64_t)at);
    submit(2);
}
PREPARED(u_writev2, "IORING_OP_WRITEV, RWF_APPEND", 0, set_up) {
    io_uring_prep_writev2(next(), ground.fd, whole(), 1, 0, RWF_APPEND);
    submit(1);
}
static void set_up_buffer(void) {
    set_up();
    CHECK((errno = -io_uring_register_buffers(&ring, whole(), 1)) == 0);
}
PREPARED(u_write_fixed, "IORING_OP_WRITE_FIXED, a registered buffer", 0, set_up_buffer) {
    AT_BOTH(at) io_uring_prep_write_fixed(next(), ground.fd, ground.piece, PIECE, (uint64_t)at, 0);
    submit(2);
}
static void set_up_file(void) {
    set_up();
    CHECK((errno = -io_uring_register_files(&ring, &ground.fd, 1)) == 0);
}
PREPARED(u_fixed_file, "IORING_OP_WRITE to a registered file", 0, set_up_file) {
    AT_BOTH(at) {
        struct io_uring_sqe *request = next();
        io_uring_prep_write(request, 0, ground.piece, PIECE, (uint64_t)at);
        request->flags |= IOSQE_FIXED_FILE;
    }
    submit(2);
}
PREPARED(u_linked, "IORING_OP_WRITE, two linked requests", 0, set_up) {
    AT_BOTH(at) {
        struct io_uring_sqe *request = next();
        io_uring_prep_write(request, ground.fd, ground.piece, PIECE, (uint64_t)at);
        if (at == EARLY) request->flags |= IOSQE_IO_LINK;
    }
    submit(2);
}
PREPARED(u_drain, "IORING_OP_WRITE, IOSQE_IO_DRAIN and IOSQE_ASYNC", 0, set_up) {
    AT_BOTH(at) {
        struct io_uring_sqe *request = next();
        io_uring_prep_write(request, ground.fd, ground.piece, PIECE, (uint64_t)at);
        request->flags |= at == EARLY ? IOSQE_IO_DRAIN : IOSQE_ASYNC;
    }
    submit(2);
}
PREPARED(u_cqe_skip, "IORING_OP_WRITE, IOSQE_CQE_SKIP_SUCCESS", 0, set_up) {
    struct io_uring_sqe *request = next();
    io_uring_prep_write(request, ground.fd, ground.piece, PIECE, EARLY);
    request->flags |= IOSQE_CQE_SKIP_SUCCESS | IOSQE_IO_LINK;
    make_write(LATE);
    CHECK(io_uring_submit(&ring) == 2);
    end();
}
PREPARED(u_fallocate, "IORING_OP_FALLOCATE, ZERO_RANGE", 0, set_up) {
    AT_BOTH(at) io_uring_prep_fallocate(next(), ground.fd, FALLOC_FL_ZERO_RANGE, at, PIECE);
    submit(2);
}
PREPARED(u_ftruncate, "IORING_OP_FTRUNCATE", 0, set_up) {
    io_uring_prep_rw(OP_FTRUNCATE, next(), ground.fd, NULL, 0, MIDDLE);
    submit(1);
}
PREPARED(u_splice, "IORING_OP_SPLICE", 0, set_up) {
    int ends[2];
    CHECK(pipe(ends) == 0);
    AT_BOTH(at) {
        CHECK(write(ends[1], ground.piece, PIECE) == PIECE);
        io_uring_prep_splice(next(), ends[0], -1, ground.fd, at, PIECE, 0);
        submit(1);
    }
}
PREPARED(u_openat_trunc, "IORING_OP_OPENAT, O_TRUNC", 0, set_up) {
    io_uring_prep_openat(next(), AT_FDCWD, ground.target, O_WRONLY | O_TRUNC, 0);
    submit(1);
}
PREPARED(u_openat_creat, "IORING_OP_OPENAT, O_CREAT", 0, set_up) {
    io_uring_prep_openat(next(), ground.directory, "new", O_WRONLY | O_CREAT | O_EXCL, 0600);
    submit(1);
}
PREPARED(u_openat2, "IORING_OP_OPENAT2, O_CREAT", 0, set_up) {
    struct open_how how = {.flags = O_WRONLY | O_CREAT, .mode = 0600};
    io_uring_prep_openat2(next(), ground.directory, "new", &how);
    submit(1);
}
static void set_up_table(void) {
    set_up();
    CHECK((errno = -io_uring_register_files_sparse(&ring, 4)) == 0);
}
PREPARED(u_openat_direct, "IORING_OP_OPENAT into the ring's own table, then IORING_OP_WRITE", 0, set_up_table) {
    io_uring_prep_openat_direct(next(), AT_FDCWD, ground.target, O_WRONLY, 0, 0);
    submit(1);
    AT_BOTH(at) {
        struct io_uring_sqe *request = next();
        io_uring_prep_write(request, 0, ground.piece, PIECE, (uint64_t)at);
        request->flags |= IOSQE_FIXED_FILE;
    }
    submit(2);
}
PREPARED(u_close, "IORING_OP_CLOSE, then another file under the number", 0, set_up) {
    int fd = open(outside("donor"), O_RDWR);
    io_uring_prep_close(next(), fd);
    submit(1);
    CHECK(open(ground.target, O_RDWR) == fd);
    AT_BOTH(at) CHECK(pwrite(fd, ground.piece, PIECE, at) == PIECE);
}
PREPARED(u_renameat, "IORING_OP_RENAMEAT", 0, set_up) {
    io_uring_prep_renameat(next(), ground.directory, "victim", ground.directory, "directory/new", 0);
    submit(1);
}
PREPARED(u_unlinkat, "IORING_OP_UNLINKAT", 0, set_up) {
    io_uring_prep_unlinkat(next(), ground.directory, "victim", 0);
    submit(1);
}
PREPARED(u_mkdirat, "IORING_OP_MKDIRAT", 0, set_up) {
    io_uring_prep_mkdirat(next(), ground.directory, "new", 0700);
    submit(1);
}
PREPARED(u_symlinkat, "IORING_OP_SYMLINKAT", 0, set_up) {
    io_uring_prep_symlinkat(next(), "victim", ground.directory, "new");
    submit(1);
}
PREPARED(u_linkat, "IORING_OP_LINKAT", 0, set_up) {
    io_uring_prep_linkat(next(), ground.directory, "target", ground.directory, "new", 0);
    submit(1);
}
PREPARED(u_setxattr, "IORING_OP_SETXATTR", 0, set_up) {
    io_uring_prep_setxattr(next(), "user.new", "value", ground.target, 0, 5);
    submit(1);
}
PREPARED(u_fsetxattr, "IORING_OP_FSETXATTR", 0, set_up) {
    io_uring_prep_fsetxattr(next(), ground.fd, "user.new", "value", 0, 5);
    submit(1);
}
PREPARED(u_read, "IORING_OP_READ, which changes nothing", INVISIBLE, set_up) {
    io_uring_prep_read(next(), ground.donor, ground.piece, PIECE, 0);
    submit(1);
}
ROW(u_new_ring, "`io_uring_queue_init` in the session, IORING_OP_WRITE", 0) {
    set_up();
    AT_BOTH(at) make_write(at);
    submit(2);
}

#undef GROUP
#define GROUP "io_uring: ways to submit, and kinds of rings"
PREPARED(v_and_wait, "`io_uring_submit_and_wait`", 0, set_up) {
    AT_BOTH(at) make_write(at);
    CHECK(io_uring_submit_and_wait(&ring, 2) == 2);
    end();
    end();
}
PREPARED(v_and_wait_timeout, "`io_uring_submit_and_wait_timeout`", 0, set_up) {
    struct io_uring_cqe *done;
    struct __kernel_timespec time = {.tv_sec = 10};
    AT_BOTH(at) make_write(at);
    CHECK(io_uring_submit_and_wait_timeout(&ring, &done, 2, &time, NULL) == 2);
    end();
    end();
}
PREPARED(v_and_get_events, "`io_uring_submit_and_get_events`", 0, set_up) {
    AT_BOTH(at) make_write(at);
    CHECK(io_uring_submit_and_get_events(&ring) == 2);
    end();
    end();
}
/* Puts what was made into the ring, as liburing does before it submits. Returns how much it is. */
static unsigned flush(void) {
    struct io_uring_sq *queue = &ring.sq;
    unsigned tail = *queue->ktail, count = queue->sqe_tail - queue->sqe_head;
    for (; queue->sqe_head != queue->sqe_tail; queue->sqe_head++) {
        queue->array[tail++ & *queue->kring_mask] = queue->sqe_head & *queue->kring_mask;
    }
    io_uring_smp_store_release(queue->ktail, tail);
    return count;
}
PREPARED(v_enter, "`io_uring_enter`, liburing's", 0, set_up) {
    AT_BOTH(at) make_write(at);
    CHECK(io_uring_enter((unsigned)ring.ring_fd, flush(), 2, IORING_ENTER_GETEVENTS, NULL) == 2);
    end();
    end();
}
PREPARED(v_number, "`syscall(SYS_io_uring_enter)`", 0, set_up) {
    AT_BOTH(at) make_write(at);
    CHECK(syscall(SYS_io_uring_enter, ring.ring_fd, flush(), 2, IORING_ENTER_GETEVENTS, NULL, 0) == 2);
    end();
    end();
}
PREPARED(v_raw, "raw `io_uring_enter`", 0, set_up) {
    AT_BOTH(at) make_write(at);
    CHECK_RAW(RAW_5(SYS_io_uring_enter, ring.ring_fd, flush(), 2, IORING_ENTER_GETEVENTS, 0));
    end();
    end();
}
PREPARED(v_raw_direct, "raw `io_uring_enter`, O_DIRECT", 0, set_up) {
    int fd = open(ground.target, O_WRONLY | O_DIRECT);
    AT_BOTH(at) io_uring_prep_write(next(), fd, ground.piece, PIECE, (uint64_t)at);
    CHECK_RAW(RAW_5(SYS_io_uring_enter, ring.ring_fd, flush(), 2, IORING_ENTER_GETEVENTS, 0));
    end();
    end();
    close(fd);
}
PREPARED(v_raw_fixed_file, "raw `io_uring_enter`, a registered file", 0, set_up_file) {
    AT_BOTH(at) {
        struct io_uring_sqe *request = next();
        io_uring_prep_write(request, 0, ground.piece, PIECE, (uint64_t)at);
        request->flags |= IOSQE_FIXED_FILE;
    }
    CHECK_RAW(RAW_5(SYS_io_uring_enter, ring.ring_fd, flush(), 2, IORING_ENTER_GETEVENTS, 0));
    end();
    end();
}
PREPARED(v_raw_rename, "raw `io_uring_enter`, IORING_OP_RENAMEAT", 0, set_up) {
    io_uring_prep_renameat(next(), ground.directory, "victim", ground.directory, "directory/new", 0);
    CHECK_RAW(RAW_5(SYS_io_uring_enter, ring.ring_fd, flush(), 1, IORING_ENTER_GETEVENTS, 0));
    end();
}
static void set_up_registered(void) {
    set_up();
    CHECK(io_uring_register_ring_fd(&ring) == 1);
}
PREPARED(v_registered_ring, "a ring whose own descriptor is registered", 0, set_up_registered) {
    AT_BOTH(at) make_write(at);
    submit(2);
}
static void set_up_sqpoll(void) { set_up_with(IORING_SETUP_SQPOLL); }
PREPARED(v_sqpoll, "a ring that a kernel thread polls (SQPOLL)", 0, set_up_sqpoll) {
    AT_BOTH(at) make_write(at);
    submit(2);
}
PREPARED(v_sqpoll_by_hand, "SQPOLL, requests published without a call", 0, set_up_sqpoll) {
    AT_BOTH(at) make_write(at);
    flush();
    if (*ring.sq.kflags & IORING_SQ_NEED_WAKEUP) CHECK_RAW(RAW_5(SYS_io_uring_enter, ring.ring_fd, 0, 0, IORING_ENTER_SQ_WAKEUP, 0));
    end();
    end();
}
static void set_up_coop(void) { set_up_with(IORING_SETUP_COOP_TASKRUN | IORING_SETUP_SINGLE_ISSUER); }
PREPARED(v_coop, "COOP_TASKRUN, SINGLE_ISSUER", 0, set_up_coop) {
    AT_BOTH(at) make_write(at);
    submit(2);
}
static void set_up_defer(void) { set_up_with(IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN); }
PREPARED(v_defer, "DEFER_TASKRUN", 0, set_up_defer) {
    AT_BOTH(at) make_write(at);
    submit(2);
}
static void set_up_wide(void) { set_up_with(IORING_SETUP_SQE128 | IORING_SETUP_CQE32); }
PREPARED(v_wide, "SQE128, CQE32", 0, set_up_wide) {
    AT_BOTH(at) make_write(at);
    submit(2);
}
PREPARED(v_shared, "a ring that a forked child submits to", 0, set_up) {
    pid_t child = fork();
    if (child == 0) {
        AT_BOTH(at) make_write(at);
        CHECK_RAW(RAW_5(SYS_io_uring_enter, ring.ring_fd, flush(), 2, IORING_ENTER_GETEVENTS, 0));
        _exit(0);
    }
    reap(child);
    end();
    end();
}
