/* Threads that wait for a pipe in a ring of io_uring, some since before the session, hold up neither its beginning nor its cut, and
 * are told what they would have been told without it. A write that is submitted with such a wait is in the copy. */
#include "common.h"

#include <liburing.h>
#include <sys/syscall.h>

struct waiter {
    int pipe[2];
    int file;
    atomic_int waiting;
    pthread_t thread;
};

/* Submits a read of the pipe, a write to the file, and waits for both. */
static void *wait_for_pipe(void *argument) {
    struct waiter *waiter = argument;
    struct io_uring ring;
    char byte = 0;
    CHECK(io_uring_queue_init(4, &ring, 0) == 0);
    struct io_uring_sqe *read = io_uring_get_sqe(&ring), *write = io_uring_get_sqe(&ring);
    io_uring_prep_read(read, waiter->pipe[0], &byte, 1, 0);
    read->user_data = 1;
    io_uring_prep_write(write, waiter->file, "new", 3, 0);
    write->user_data = 2;
    waiter->waiting = 1;
    errno = 12345;
    CHECK(io_uring_submit_and_wait(&ring, 2) == 2 && errno == 12345);
    struct io_uring_cqe *end;
    int sum = 0;
    for (int i = 0; i < 2; i++) {
        CHECK(io_uring_peek_cqe(&ring, &end) == 0);
        sum += end->res;
        io_uring_cqe_seen(&ring, end);
    }
    CHECK(sum == 4 && byte == 'x');
    /* Nothing to submit: what the wait says is returned. */
    CHECK(io_uring_submit_and_wait(&ring, 0) == 0);
    io_uring_queue_exit(&ring);
    return NULL;
}

static void begin(struct waiter *waiter, const char *path) {
    fill(path, 3, 'o');
    CHECK(pipe(waiter->pipe) == 0 && (waiter->file = open(path, O_WRONLY)) >= 0);
    CHECK(pthread_create(&waiter->thread, NULL, wait_for_pipe, waiter) == 0);
    while (!waiter->waiting) nap_ms(1);
    nap_ms(50);
}

static void end(struct waiter *waiter) {
    CHECK(write(waiter->pipe[1], "x", 1) == 1);
    CHECK(pthread_join(waiter->thread, NULL) == 0);
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    static struct waiter before, during;
    begin(&before, in(argv[1], "before"));
    double started = now_ms();
    hotbackup_session *session = session_start(argv[1], argv[2]);
    CHECK(now_ms() - started < 5000);
    begin(&during, in(argv[1], "during"));
    session_finish(session);
    CHECK(now_ms() - started < 10000);
    end(&before);
    end(&during);
    return 0;
}
