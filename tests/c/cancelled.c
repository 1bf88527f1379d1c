/* A thread may be cancelled while it is inside any blocking hook, without a session and during one. The process goes
 * on, its cleanup handlers run, and the backup is right. */
#include "common.h"
#include <arpa/inet.h>
#include <libaio.h>
#include <liburing.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/uio.h>

static const char *source;
static atomic_int cleaned, rounds;
static int full_pipe[2], empty_pipe[2];
static int file, directory;
static io_context_t aio;
static struct io_uring uring;

static void clean_up(void *unused) {
    (void)unused;
    cleaned++;
}

static char big[1 << 20];

static void do_write(void) { CHECK(write(full_pipe[1], big, sizeof big) >= 0); }
static void do_writev(void) {
    struct iovec piece = {big, sizeof big};
    CHECK(writev(full_pipe[1], &piece, 1) >= 0);
}
static void do_splice(void) { CHECK(splice(empty_pipe[0], NULL, file, NULL, 4096, 0) >= 0); }
static void do_pwritev2(void) {
    struct iovec piece = {big, sizeof big};
    CHECK(pwritev2(full_pipe[1], &piece, 1, -1, 0) >= 0);
}
static void do_open(void) { CHECK(open(in(source, "fifo"), O_WRONLY | O_CREAT, 0644) >= 0); }
static void do_open64(void) { CHECK(open64(in(source, "fifo"), O_WRONLY | O_CREAT, 0644) >= 0); }
static void do_openat(void) { CHECK(openat(directory, "fifo", O_WRONLY | O_TRUNC) >= 0); }
static void do_openat64(void) { CHECK(openat64(directory, "fifo", O_WRONLY | O_CREAT, 0644) >= 0); }
static void do_creat(void) { CHECK(creat(in(source, "fifo"), 0644) >= 0); }
static void do_creat64(void) { CHECK(creat64(in(source, "fifo"), 0644) >= 0); }

/* Closes a socket whose peer has more to read than there is room for. */
static void do_close(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof address;
    struct linger long_enough = {1, 60};
    int listening = socket(AF_INET, SOCK_STREAM, 0), ours = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(bind(listening, (struct sockaddr *)&address, len) == 0 && listen(listening, 1) == 0);
    CHECK(getsockname(listening, (struct sockaddr *)&address, &len) == 0);
    CHECK(connect(ours, (struct sockaddr *)&address, len) == 0);
    while (send(ours, big, sizeof big, MSG_DONTWAIT) > 0) continue;
    CHECK(setsockopt(ours, SOL_SOCKET, SO_LINGER, &long_enough, sizeof long_enough) == 0);
    close(ours);
    CHECK(!"waited for the peer");
}

/* Those of libaio and liburing are not cancellation points by themselves. */
static void do_io_getevents(void) {
    struct io_event event;
    CHECK(pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, NULL) == 0);
    io_getevents(aio, 1, 1, &event, NULL);
}
static void do_io_uring_submit_and_wait(void) {
    CHECK(pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, NULL) == 0);
    io_uring_submit_and_wait(&uring, 1);
}

static void (*const blocking[])(void) = {do_write,    do_writev,  do_splice, do_pwritev2,     do_open,
                                         do_open64,   do_openat,  do_creat,  do_openat64,     do_creat64,
                                         do_close,    do_io_getevents,       do_io_uring_submit_and_wait};

static void *block(void *call) {
    pthread_cleanup_push(clean_up, NULL);
    for (;; rounds++) blocking[(size_t)call]();
    pthread_cleanup_pop(0);
    return NULL;
}

static void cancel_in_each(void) {
    for (size_t call = 0; call < sizeof blocking / sizeof *blocking; call++) {
        pthread_t thread;
        void *result;
        int before = cleaned;
        CHECK(pthread_create(&thread, NULL, block, (void *)call) == 0);
        nap_ms(50);
        CHECK(pthread_cancel(thread) == 0);
        CHECK(pthread_join(thread, &result) == 0);
        CHECK(result == PTHREAD_CANCELED && cleaned == before + 1);
        /* It was inside. */
        CHECK(rounds == 0);
    }
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    source = argv[1];
    CHECK(pipe(full_pipe) == 0 && pipe(empty_pipe) == 0);
    CHECK(mkfifo(in(source, "fifo"), 0644) == 0);
    fill(in(source, "file"), 1 << 20, 'x');
    file = open(in(source, "file"), O_RDWR);
    directory = open(argv[1], O_RDONLY | O_DIRECTORY);
    CHECK(file >= 0 && directory >= 0);
    CHECK(io_setup(1, &aio) == 0 && io_uring_queue_init(4, &uring, 0) == 0);

    cancel_in_each();
    hotbackup_session *session = session_start(argv[1], argv[2]);
    cancel_in_each();
    /* The same threads' slots are left again, or the cut would wait for them. */
    CHECK(pwrite(file, "behind", 6, 70000) == 6);
    session_finish(session);
    return 0;
}
