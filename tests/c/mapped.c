/* What was stored to shared mappings before the cut is in the copy, to the byte, and nothing that was stored behind it, though no
 * call tells of either.
 *
 * Method: files are mapped in several ways, and stored to before the session, while files are copied (with a pause, so that they
 * have been read by then), and in before_cut, which then notes what they hold; from after_cut on every page is stored to. The
 * third argument says what is to be in the way: "nothing", "forbidden" (a filter refuses userfaultfd), or "own" (the program has
 * a userfaultfd by itself, which must go on working on its mappings), or "late" (it makes one while the session runs). */
#include "common.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <stdbool.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

/* Since Linux 6.7; headers may be older. */
#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC (1 << 15)
#endif

enum { PAGE = 4096, PAGES = 2048, SIZE = PAGE * PAGES, FILES = 5 };
enum { MAPPED, READ_ONLY, MOVED, FLEETING, RAW };
static const char *const names[FILES] = {"mapped", "read-only", "moved", "fleeting", "raw"};

static const char *source;
static char *map[FILES];
static int fd[FILES];
static char *expected[FILES];
static int own = -1;
static bool watched, late;

static void forbid(void) {
    struct sock_filter steps[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof steps / sizeof steps[0], steps};
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
}

static void own_userfaultfd(void) {
    struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_WP_ASYNC};
    own = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
    CHECK(own >= 0 && ioctl(own, UFFDIO_API, &api) == 0);
}

/* A mapping made by a call that nobody sees. */
static void *raw_mmap(int file) {
#ifdef __x86_64__
    register long r10 __asm__("r10") = MAP_SHARED;
    register long r8 __asm__("r8") = file;
    register long r9 __asm__("r9") = 0;
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(SYS_mmap), "D"(0L), "S"((long)SIZE), "d"((long)(PROT_READ | PROT_WRITE)), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return (void *)result;
#else
    return mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
#endif
}

static char *map_shared(int file, int protection) {
    char *at = mmap(NULL, SIZE, protection, MAP_SHARED, file, 0);
    CHECK(at != MAP_FAILED);
    return at;
}

/* Stores to some pages through every mapping there is, some of them by the kernel on our behalf, some of which leave memory. */
static void store(char with) {
    static unsigned seed = 5;
    for (int file = 0; file < FILES; file++) {
        /* Where stores cannot be watched, those through a mapping that is writable for a moment only are not seen. */
        if (file == READ_ONLY && !watched) continue;
        if (file == READ_ONLY) CHECK(mprotect(map[file], SIZE, PROT_READ | PROT_WRITE) == 0);
        char *at = file == FLEETING ? map_shared(fd[file], PROT_READ | PROT_WRITE) : map[file];
        for (int i = 0; i < 20; i++) at[rand_r(&seed) % SIZE] = with;
        int random = open("/dev/urandom", O_RDONLY);
        CHECK(random >= 0 && read(random, at + rand_r(&seed) % (SIZE - 9000), 9000) == 9000);
        close(random);
        at[rand_r(&seed) % SIZE] = with;
        if (rand_r(&seed) % 2) CHECK(madvise(at, SIZE, MADV_DONTNEED) == 0);
        if (rand_r(&seed) % 2) CHECK(msync(at, SIZE, MS_SYNC) == 0);
        if (file == FLEETING) CHECK(munmap(at, SIZE) == 0);
        if (file == READ_ONLY) CHECK(mprotect(at, SIZE, PROT_READ) == 0);
        if (file == MOVED) {
            char *to = mmap(NULL, SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            CHECK(to != MAP_FAILED);
            map[file] = mremap(at, SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, to);
            CHECK(map[file] == to);
        }
    }
}

/* The program's own userfaultfd can have its mapping. */
static void register_own(void) {
    struct uffdio_register range = {{(unsigned long)map[MAPPED], SIZE}, UFFDIO_REGISTER_MODE_WP, 0};
    CHECK(ioctl(own, UFFDIO_REGISTER, &range) == 0);
}

static int on_progress(const hotbackup_progress *progress, void *unused) {
    (void)unused;
    if (progress->phase != HOTBACKUP_PHASE_COPY || progress->bytes_done <= SIZE) return 0;
    store('c');
    if (late && own < 0) {
        own_userfaultfd();
        register_own();
        watched = false;
    }
    return 0;
}

static void before_cut(void *unused) {
    (void)unused;
    store('b');
    for (int file = 0; file < FILES; file++) CHECK(pread(fd[file], expected[file], SIZE, 0) == SIZE);
}

static void after_cut(void *unused) {
    (void)unused;
    if (own >= 0) register_own();
    for (int page = 0; page < PAGES; page++) map[MAPPED][page * PAGE] = 'a';
    store('a');
}

static void check(const char *destination) {
    static char copied[SIZE];
    for (int file = 0; file < FILES; file++) {
        int copy = open(in(destination, names[file]), O_RDONLY);
        CHECK(copy >= 0 && read(copy, copied, SIZE) == SIZE);
        for (size_t i = 0; i < SIZE; i++) {
            if (copied[i] == expected[file][i]) continue;
            fprintf(stderr, "%s, byte %zu of page %zu: %d instead of %d\n", names[file], i % PAGE, i / PAGE, copied[i],
                    expected[file][i]);
            exit(1);
        }
        close(copy);
    }
}

static unsigned warned;

static void on_warning(const char *text, void *unused) {
    (void)unused;
    for (int file = 0; file < FILES; file++) {
        if (strstr(text, names[file]) && strstr(text, "is mapped")) warned |= 1u << file;
    }
}

int main(int argc, char **argv) {
    CHECK(argc == 4);
    source = argv[1];
    for (int file = 0; file < FILES; file++) {
        fill(in(source, names[file]), SIZE, 'f');
        fd[file] = open(in(source, names[file]), O_RDWR);
        expected[file] = malloc(SIZE);
        CHECK(fd[file] >= 0 && expected[file]);
    }
    map[MAPPED] = map_shared(fd[MAPPED], PROT_READ | PROT_WRITE);
    map[READ_ONLY] = map_shared(fd[READ_ONLY], PROT_READ);
    map[MOVED] = map_shared(fd[MOVED], PROT_READ | PROT_WRITE);
    map[RAW] = raw_mmap(fd[RAW]);
    for (int page = 0; page < PAGES / 2; page++) map[MAPPED][page * PAGE] = 'e';
    late = strcmp(argv[3], "late") == 0;
    watched = late || strcmp(argv[3], "nothing") == 0;
    if (strcmp(argv[3], "forbidden") == 0) forbid();
    if (strcmp(argv[3], "own") == 0) own_userfaultfd();

    hotbackup_pair pair = {source, argv[2]};
    hotbackup_options options = options_of(&pair);
    hotbackup_report report = {.size = sizeof report};
    options.throttle = 64 << 20;
    options.on_progress = on_progress;
    options.before_cut = before_cut;
    options.after_cut = after_cut;
    options.on_warning = on_warning;
    CHECK_OK(API(hotbackup_backup)(&options, &report));
    check(argv[2]);
    CHECK(warned & 1u << MAPPED);
    if (watched) {
        /* Nothing of ours is left on the mappings. */
        own_userfaultfd();
        register_own();
    }
    printf("%s: cut at try %d after %.1f ms, %llu KiB copied again\n", argv[3], (int)report.cut_attempts,
           (double)report.freeze_ns / 1e6, (unsigned long long)report.bytes_recopied >> 10);
    return 0;
}
