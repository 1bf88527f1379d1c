/* With HOTBACKUP_IO_URING=refuse no ring of io_uring can be set up, as on a kernel that has none, and each interface says so in its
 * own way; otherwise all can. The third argument is "refused" or "allowed". */
#include "common.h"

#include <liburing.h>
#include <sys/syscall.h>

int main(int argc, char **argv) {
    CHECK(argc == 4);
    bool refused = strcmp(argv[3], "refused") == 0;
    struct io_uring ring;
    struct io_uring_params p;

    errno = 12345;
    int result = io_uring_queue_init(4, &ring, 0);
    CHECK(result == (refused ? -ENOSYS : 0) && errno == 12345);
    if (!refused) io_uring_queue_exit(&ring);

    memset(&p, 0, sizeof p);
    result = io_uring_queue_init_params(4, &ring, &p);
    CHECK(result == (refused ? -ENOSYS : 0) && errno == 12345);
    if (!refused) io_uring_queue_exit(&ring);

    memset(&p, 0, sizeof p);
    result = io_uring_setup(4, &p);
    CHECK((refused ? result == -ENOSYS : result >= 0) && errno == 12345);
    if (!refused) close(result);

    struct io_uring_probe *probe = io_uring_get_probe();
    CHECK((probe == NULL) == refused);
    if (probe) io_uring_free_probe(probe);

    memset(&p, 0, sizeof p);
    long fd = syscall(__NR_io_uring_setup, 4, &p);
    CHECK(refused ? fd == -1 && errno == ENOSYS : fd >= 0);
    errno = 12345;
    if (!refused) close((int)fd);

    /* What is wrong with a call is said by the kernel, which is not asked if it is refused. */
    fd = syscall(__NR_io_uring_setup, 4, NULL);
    CHECK(fd == -1 && errno == (refused ? ENOSYS : EFAULT));
    return 0;
}
