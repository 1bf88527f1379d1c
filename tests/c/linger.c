/* close() of a socket waits for its peer to read what was sent (SO_LINGER), from before the session on and from just
 * before the cut: nobody waits for that thread. */
#include "common.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

static int ours, theirs;
static atomic_bool closed;
static pthread_t closing;

/* A connection whose peer has more to read than there is room for. */
static void connect_and_fill(void) {
    static char block[65536];
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof address;
    struct linger long_enough = {1, 60};
    int listening = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(bind(listening, (struct sockaddr *)&address, len) == 0 && listen(listening, 1) == 0);
    CHECK(getsockname(listening, (struct sockaddr *)&address, &len) == 0);
    ours = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(connect(ours, (struct sockaddr *)&address, len) == 0);
    theirs = accept(listening, NULL, NULL);
    CHECK(theirs >= 0 && close(listening) == 0);
    while (send(ours, block, sizeof block, MSG_DONTWAIT) > 0) continue;
    CHECK(setsockopt(ours, SOL_SOCKET, SO_LINGER, &long_enough, sizeof long_enough) == 0);
}

static void *close_ours(void *unused) {
    (void)unused;
    close(ours);
    closed = 1;
    return NULL;
}

static void begin_closing(void *unused) {
    (void)unused;
    CHECK(pthread_create(&closing, NULL, close_ours, NULL) == 0);
    nap_ms(100);
}

static void end_closing(void) {
    CHECK(!closed);
    CHECK(close(theirs) == 0);
    CHECK(pthread_join(closing, NULL) == 0);
    closed = 0;
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    fill(in(argv[1], "file"), 10, 'x');
    CHECK(mkdir(in(argv[2], "before"), 0755) == 0 && mkdir(in(argv[2], "during"), 0755) == 0);
    connect_and_fill();
    begin_closing(NULL);
    backup_with(argv[1], in(argv[2], "before"), NULL);
    end_closing();
    connect_and_fill();
    backup_with(argv[1], in(argv[2], "during"), begin_closing);
    end_closing();
    return 0;
}
