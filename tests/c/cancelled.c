/* A thread may be cancelled while it is inside any blocking hook, without a session and during one. The process goes
 * on, its cleanup handlers run, and the backup is right. */
#include "common.h"
#include <sys/uio.h>

static const char *source;
static atomic_int cleaned;
static int full_pipe[2], empty_pipe[2];
static int file;

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
static void do_open(void) { CHECK(open(in(source, "fifo"), O_WRONLY | O_CREAT, 0644) >= 0); }

static void (*const blocking[])(void) = {do_write, do_writev, do_splice, do_open};

static void *block(void *call) {
    pthread_cleanup_push(clean_up, NULL);
    for (;;) blocking[(size_t)call]();
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
    }
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    source = argv[1];
    CHECK(pipe(full_pipe) == 0 && pipe(empty_pipe) == 0);
    CHECK(mkfifo(in(source, "fifo"), 0644) == 0);
    fill(in(source, "file"), 1 << 20, 'x');
    file = open(in(source, "file"), O_RDWR);
    CHECK(file >= 0);

    cancel_in_each();
    hotbackup_session *session = session_start(argv[1], argv[2]);
    cancel_in_each();
    /* The same threads' slots are left again, or the cut would wait for them. */
    CHECK(pwrite(file, "behind", 6, 70000) == 6);
    session_finish(session);
    return 0;
}
