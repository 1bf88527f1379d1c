/* Memory that comes piece by piece, 64 in all, one every 20 ms, by a userfaultfd: a write from it takes more than a second. */
#pragma once
#include "common.h"

#include <linux/userfaultfd.h>
#include <stdbool.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

static size_t size;
static atomic_bool begun, ended;
static char *slow;
static pthread_t providing;

static void *provider(void *unused) {
    (void)unused;
    struct uffdio_api api = {.api = UFFD_API};
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
    struct uffdio_register range = {{(unsigned long)slow, size}, UFFDIO_REGISTER_MODE_MISSING, 0};
    if (fd < 0 || ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &range)) {
        begun = true;
        return NULL; /* Then it comes at once. */
    }
    begun = true;
    size_t piece = size / 64;
    char *content = malloc(piece);
    CHECK(content);
    memset(content, 'n', piece);
    for (struct uffd_msg message; !ended && read(fd, &message, sizeof message) == sizeof message;) {
        unsigned long at = (unsigned long)slow + (message.arg.pagefault.address - (unsigned long)slow) / piece * piece;
        struct uffdio_copy copy = {.dst = at, .src = (unsigned long)content, .len = piece};
        nap_ms(20);
        CHECK(ioctl(fd, UFFDIO_COPY, &copy) == 0 || errno == EEXIST);
        if (at + piece == (unsigned long)slow + size) break;
    }
    return NULL;
}

/* Makes so much of it. */
static void begin_slow_memory(size_t bytes) {
    size = bytes;
    slow = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(slow != MAP_FAILED && madvise(slow, size, MADV_NOHUGEPAGE) == 0);
    CHECK(pthread_create(&providing, NULL, provider, NULL) == 0);
    while (!begun) nap_ms(1);
}

/* To be called when it has been written from. False if it was none, for want of a privilege. */
static bool end_slow_memory(void) {
    if (slow[0] != 'n') return puts("  skipped: a userfaultfd for system calls takes a privilege"), false;
    CHECK(pthread_join(providing, NULL) == 0);
    return true;
}

/* Checks that a copy is all what was written from it. */
static void check_written_whole(const char *path) {
    int fd = open(path, O_RDONLY);
    static char block[1 << 20];
    for (size_t at = 0; at < size; at += sizeof block) {
        CHECK(fd >= 0 && read(fd, block, sizeof block) == sizeof block);
        for (size_t i = 0; i < sizeof block; i++) {
            if (block[i] == 'n') continue;
            fprintf(stderr, "byte %zu is from before the write, which began before the copying\n", at + i);
            exit(1);
        }
    }
    close(fd);
}
