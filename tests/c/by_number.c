/* Every system call of the hook table, made by its number when all files were copied. All of them have to be captured: the
 * copy is equal, the first cut is the right one, and the audit finds nothing that nobody saw.
 *
 *   by_number SOURCE DESTINATION */
#include "common.h"
#include <sys/syscall.h>
#include <sys/uio.h>
#include <utime.h>

static const char *source;
static int dir, input, with[2], made, is_made;
static unsigned long performed;

/* The path of a file of the call's own; it has 100,000 bytes if it was made before the session. */
static const char *own(const char *prefix, const char *call) {
    static char paths[4][PATH_MAX];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, PATH_MAX, "%s/%s %.180s", source, prefix, call);
    for (char *c = path + strlen(source) + 1; *c; c++)
        if (*c == '/') *c = '_';
    return path;
}

/* A call on a file that was copied; in a first round all of these files are made. A kernel without the call is no failure. */
#define ON(...)                                                                                            \
    do {                                                                                                   \
        const char *path = own("on", #__VA_ARGS__), *other = own("to", #__VA_ARGS__);                      \
        (void)other;                                                                                       \
        if (!is_made) {                                                                                    \
            fill(path, 100000, 'o');                                                                       \
            break;                                                                                         \
        }                                                                                                  \
        int fd = open(path, O_RDWR);                                                                       \
        CHECK(fd >= 0);                                                                                    \
        long result_ = (long)(__VA_ARGS__);                                                                \
        CHECK(result_ >= 0 || errno == ENOSYS);                                                            \
        performed += result_ >= 0;                                                                         \
        CHECK(close(fd) == 0);                                                                             \
    } while (0)
/* Closes what a call has opened. */
#define OPENED(call) ((made = (int)(call)) < 0 ? made : (close(made), 0))

static void sizes_and_bytes(void) {
    struct iovec pieces[2] = {{"three", 5}, {"four", 4}};
    off64_t at = 70000, from = 0;
    ON(syscall(SYS_write, fd, "three", 5));
    ON(syscall(SYS_writev, fd, pieces, 2));
    ON(syscall(SYS_pwrite64, fd, "three", 5, 99998));
    ON(syscall(SYS_pwrite64, fd, "three", 5, 20000000));
    ON(syscall(SYS_pwritev, fd, pieces, 2, 4095, 0));
    ON(syscall(SYS_pwritev2, fd, pieces, 2, 50000, 0, 0));
    ON(syscall(SYS_pwritev2, fd, pieces, 2, 0, 0, RWF_APPEND));
    ON(syscall(SYS_copy_file_range, input, &from, fd, NULL, 5000, 0));
    ON(syscall(SYS_copy_file_range, input, NULL, fd, &at, 5000, 0));
    ON(syscall(SYS_sendfile, fd, input, &from, 5000));
    ON(syscall(SYS_splice, with[0], NULL, fd, &at, 3, 0));
    ON(syscall(SYS_ftruncate, fd, 10));
    ON(syscall(SYS_truncate, path, 300000));
    ON(syscall(SYS_fallocate, fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 4096, 8192));
    ON(syscall(SYS_lseek, fd, 60000, SEEK_SET) + syscall(SYS_write, fd, "three", 5));
    ON(syscall(SYS_dup3, fd, 99, O_CLOEXEC) & syscall(SYS_write, 99, "three", 5) & syscall(SYS_close, 99));
    ON(syscall(SYS_dup3, fd, 99, 0) & syscall(SYS_write, 99, "three", 5) & syscall(SYS_close_range, 99, 99, 0));
}

static void opening(void) {
    struct { uint64_t flags, mode, resolve; } empties = {O_WRONLY | O_TRUNC, 0, 0}, makes = {O_RDWR | O_CREAT, 0600, 0},
                                              rooted = {O_WRONLY | O_CREAT, 0600, 0x10};
    ON(OPENED(syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_TRUNC)));
    ON(OPENED(syscall(SYS_openat, AT_FDCWD, other, O_WRONLY | O_CREAT, 0600)));
    ON(OPENED(syscall(SYS_openat2, dir, strrchr(path, '/') + 1, &empties, sizeof empties)));
    ON(OPENED(syscall(SYS_openat2, dir, other, &makes, sizeof makes)));
    ON(OPENED(syscall(SYS_openat2, dir, strrchr(other, '/'), &rooted, sizeof rooted)));
#ifdef SYS_open
    ON(OPENED(syscall(SYS_open, path, O_WRONLY | O_TRUNC)));
    ON(OPENED(syscall(SYS_creat, path, 0600)));
    ON(syscall(SYS_dup2, fd, 99) & syscall(SYS_write, 99, "three", 5) & syscall(SYS_close, 99));
#endif
}

static void names(void) {
    ON(syscall(SYS_renameat, AT_FDCWD, path, dir, other));
    ON(syscall(SYS_renameat2, AT_FDCWD, path, dir, other, 1));
    ON(syscall(SYS_unlinkat, AT_FDCWD, path, 0));
    ON(syscall(SYS_linkat, AT_FDCWD, path, dir, other, 0));
    ON(syscall(SYS_linkat, fd, "", dir, other, AT_EMPTY_PATH));
    ON(syscall(SYS_symlinkat, "nowhere", dir, other));
    ON(syscall(SYS_mkdirat, dir, other, 0700));
    ON(syscall(SYS_mknodat, dir, other, S_IFREG | 0600, 0));
#ifdef SYS_rename
    ON(syscall(SYS_rename, path, other));
    ON(syscall(SYS_unlink, path));
    ON(syscall(SYS_link, path, other));
    ON(syscall(SYS_symlink, "nowhere", other));
    ON(syscall(SYS_mkdir, other, 0700));
    ON(syscall(SYS_mkdir, other, 0700) | syscall(SYS_rmdir, other));
    ON(syscall(SYS_mknod, other, S_IFREG | 0600, 0));
#endif
}

static void attributes(void) {
    struct timespec times[2] = {{1, 2}, {3, 4}};
    struct { uint64_t value; uint32_t size, flags; } value = {(uintptr_t)"v", 1, 0};
    /* `struct file_attr`: flags (no dump), then numbers that stay as they are. */
    struct { uint64_t xflags; uint32_t extsize, nextents, projid, cowextsize; } attr = {.xflags = 0x80};
    ON(syscall(SYS_fchmod, fd, 0600));
    ON(syscall(SYS_fchmodat, AT_FDCWD, path, 0600));
    ON(syscall(SYS_fchmodat2, AT_FDCWD, path, 0600, 0));
    ON(syscall(SYS_fchown, fd, -1, getegid()));
    ON(syscall(SYS_fchownat, AT_FDCWD, path, -1, getegid(), 0));
    ON(syscall(SYS_utimensat, AT_FDCWD, path, times, 0));
    ON(syscall(SYS_utimensat, fd, NULL, times, 0));
    ON(syscall(SYS_setxattr, path, "user.x", "v", 1, 0));
    ON(syscall(SYS_lsetxattr, path, "user.x", "v", 1, 0));
    ON(syscall(SYS_fsetxattr, fd, "user.x", "v", 1, 0));
    ON(syscall(SYS_setxattr, path, "user.x", "v", 1, 0) | syscall(SYS_removexattr, path, "user.x"));
    ON(syscall(SYS_lsetxattr, path, "user.x", "v", 1, 0) | syscall(SYS_lremovexattr, path, "user.x"));
    ON(syscall(SYS_fsetxattr, fd, "user.x", "v", 1, 0) | syscall(SYS_fremovexattr, fd, "user.x"));
    ON(syscall(SYS_setxattrat, AT_FDCWD, path, 0, "user.x", &value, sizeof value));
    ON(syscall(SYS_setxattrat, fd, "", AT_EMPTY_PATH, "user.x", &value, sizeof value) |
       syscall(SYS_removexattrat, AT_FDCWD, path, 0, "user.x"));
    long set = is_made ? syscall(SYS_file_setattr, dir, "nothing", &attr, sizeof attr, 0) : -1;
    CHECK(set == -1);
    if (!is_made || errno != EOPNOTSUPP) ON(syscall(SYS_file_setattr, AT_FDCWD, path, &attr, sizeof attr, 0));
#ifdef SYS_chmod
    struct utimbuf second = {5, 6};
    struct timeval micro[2] = {{7, 8}, {9, 10}};
    ON(syscall(SYS_chmod, path, 0600));
    ON(syscall(SYS_chown, path, -1, getegid()));
    ON(syscall(SYS_lchown, path, -1, getegid()));
    ON(syscall(SYS_utime, path, &second));
    ON(syscall(SYS_utimes, path, micro));
    ON(syscall(SYS_futimesat, AT_FDCWD, path, micro));
#endif
}

static void call_all(void *unused) {
    (void)unused;
    if (performed > 0) return;
    sizes_and_bytes();
    opening();
    names();
    attributes();
    is_made = 1;
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    source = argv[1];
    fill(in(source, "input"), 100000, 'i');
    dir = open(source, O_RDONLY | O_DIRECTORY), input = open(in(source, "input"), O_RDONLY);
    CHECK(dir >= 0 && input >= 0 && pipe(with) == 0 && write(with[1], "0123456789", 10) == 10);
    /* The time of the last access comes to lie behind the file's other times now, and is not moved again today (relatime). */
    nap_ms(20);
    call_all(NULL);
    hotbackup_report report = backup_with(argv[1], argv[2], call_all);
    printf("  %lu calls, %lu files changed unseen, cut %lu\n", performed, report.unseen_files, report.cut_attempts);
    CHECK(report.cut_attempts == 1 && performed > 40);
    return 0;
}
