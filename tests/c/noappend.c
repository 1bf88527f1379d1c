/* RWF_NOAPPEND writes at its offset although the descriptor is in append mode. */
#include "common.h"
#include <sys/uio.h>

#ifndef RWF_NOAPPEND
#define RWF_NOAPPEND 0x20
#endif

static int fd;

static void before_cut(void *unused) {
    (void)unused;
    struct iovec piece = {"BBBB", 4};
    ssize_t written = pwritev2(fd, &piece, 1, 0, RWF_NOAPPEND);
    /* Kernels before 6.9 do not know it. */
    CHECK(written == 4 || (written == -1 && (errno == EOPNOTSUPP || errno == EINVAL)));
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    fill(in(argv[1], "log"), 65536, 'a');
    fd = open(in(argv[1], "log"), O_RDWR | O_APPEND);
    CHECK(fd >= 0);
    nap_ms(400);
    backup_with(argv[1], argv[2], before_cut);
    return 0;
}
