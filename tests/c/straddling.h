/* One write that straddles the copying of its file. HOTBACKUP_RAW_MIB is its size (64). */
#pragma once
#include "common.h"

#include <linux/userfaultfd.h>
#include <stdbool.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

/* Memory that comes piece by piece, 64 in all, one every 20 ms, by a userfaultfd: a write from it takes more than a second. */
static size_t size;
static atomic_bool begun, ended;
static char *slow;
static pthread_t providing, writing;
static const char *target;
static void (*write_whole)(int fd);

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

static void *write_slowly(void *unused) {
    (void)unused;
    int fd = open(target, O_WRONLY);
    CHECK(fd >= 0);
    double from = now_ms();
    write_whole(fd);
    printf("  a write of %zu MiB that nobody sees took %.0f ms\n", size >> 20, now_ms() - from);
    ended = true;
    close(fd);
    return NULL;
}

/* Has the write begin just before the copying. */
static int begin_write(const hotbackup_progress *progress, void *unused) {
    (void)unused;
    static bool done;
    if (progress->phase != HOTBACKUP_PHASE_COPY || done) return 0;
    done = true;
    CHECK(pthread_create(&writing, NULL, write_slowly, NULL) == 0);
    int fd = open(target, O_RDONLY);
    CHECK(fd >= 0);
    for (char first = 0; first != 'n'; nap_ms(1)) CHECK(pread(fd, &first, 1, 0) == 1);
    close(fd);
    return 0;
}

/* Takes a backup beside a write of all of `slow`, which `write` makes, and checks that the copy is all from behind it. */
static void straddle(hotbackup_options options, void (*write)(int fd)) {
    const char *megabytes = getenv("HOTBACKUP_RAW_MIB");
    size = (megabytes ? strtoul(megabytes, NULL, 10) : 64) << 20;
    slow = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(slow != MAP_FAILED && madvise(slow, size, MADV_NOHUGEPAGE) == 0);
    CHECK(pthread_create(&providing, NULL, provider, NULL) == 0);
    while (!begun) nap_ms(1);
    target = strdup(in(options.pairs->source, "long"));
    fill(target, size, 'o');
    write_whole = write;
    options.on_progress = begin_write;
    CHECK_OK(API(hotbackup_backup)(&options, NULL));
    CHECK(pthread_join(writing, NULL) == 0);
    if (slow[0] != 'n') return (void)puts("  skipped: a userfaultfd for system calls takes a privilege");
    CHECK(pthread_join(providing, NULL) == 0);
    int fd = open(in(options.pairs->destination, "long"), O_RDONLY);
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
    munmap(slow, size);
    CHECK(unlink(target) == 0);
}
