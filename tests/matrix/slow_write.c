/* A write that takes as long as a test wants: its second page comes from memory whose first use is left to us by userfaultfd(2), so
 * that the kernel waits in the middle of the call. */
#include "matrix.h"

#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

static int faults;
static unsigned char *pages;
static pthread_t writer;
static ssize_t (*call)(int, const void *, size_t, off_t);
static int descriptor;
static off_t offset;

static void *write_slowly(void *unused) {
    (void)unused;
    CHECK(call(descriptor, pages, 2 * PIECE, offset) == 2 * PIECE);
    return NULL;
}

void slow_write_begin(ssize_t (*pwrite_like)(int, const void *, size_t, off_t), int fd, off_t at) {
    call = pwrite_like, descriptor = fd, offset = at;
    CHECK((faults = (int)syscall(SYS_userfaultfd, O_CLOEXEC)) >= 0);
    struct uffdio_api api = {.api = UFFD_API};
    CHECK(ioctl(faults, UFFDIO_API, &api) == 0);
    pages = mmap(NULL, 2 * PIECE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(pages != MAP_FAILED);
    memset(pages, 0x5a, PIECE);
    struct uffdio_register second = {.range = {(uintptr_t)pages + PIECE, PIECE}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    CHECK(ioctl(faults, UFFDIO_REGISTER, &second) == 0);
    CHECK((errno = pthread_create(&writer, NULL, write_slowly, NULL)) == 0);
    struct pollfd stands = {faults, POLLIN, 0};
    CHECK(poll(&stands, 1, 10000) == 1);
}

void slow_write_go_on(void) {
    struct uffdio_copy copy = {.dst = (uintptr_t)pages + PIECE, .src = (uintptr_t)ground.piece, .len = PIECE};
    CHECK(ioctl(faults, UFFDIO_COPY, &copy) == 0);
}

void slow_write_end(void) { CHECK((errno = pthread_join(writer, NULL)) == 0); }
