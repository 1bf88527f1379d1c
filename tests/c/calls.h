/* Captured calls over good and bad arguments; what they return and leave in errno is noted, one line a call. errno is 12345
 * before each, so that a call that succeeds and touches it shows. */
#ifndef CALLS_H
#define CALLS_H
#include "common.h"
#include <stdarg.h>
#include <stdbool.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <utime.h>

/* A descriptor's number that nobody uses, nor any above it. */
static int high = 200;
/* Only calls that a signal handler may make. */
static bool only_signal_safe;

static char results[1 << 20];
static size_t length;

static void note(const char *call, long result) {
    int number = errno;
    length += (size_t)snprintf(results + length, sizeof results - length, "%-58s %ld %d\n", call, result, number);
    CHECK(length < sizeof results);
}
#define R(call) (errno = 12345, note(#call, (long)(call)))

/* Not constants, so that the compiler cannot warn of them. */
static volatile long zero;
#define NIL ((void *)zero)
#define BAD ((void *)(zero + 8))
#define BADFD ((int)zero + 99999)
/* The C library itself reads the times of some calls, so a bad pointer there crashes with or without us. */
static const struct timeval wrong[2] = {{1, -1}, {1, 2000000}};

int __open(const char *path, int flags, ...);
int __open64(const char *path, int flags, ...);
int __open_2(const char *path, int flags);
int __open64_2(const char *path, int flags);
int __openat_2(int dir, const char *path, int flags);
int __openat64_2(int dir, const char *path, int flags);
int __xmknod(int version, const char *path, mode_t mode, dev_t *device);
int __xmknodat(int version, int dir, const char *path, mode_t mode, dev_t *device);
ssize_t __write(int fd, const void *bytes, size_t len);
ssize_t __pwrite64(int fd, const void *bytes, size_t len, off64_t at);
int __close(int fd);
int __dup2(int old, int new);

static void opening(void) {
    const char *paths[] = {"a", "a", "missing/x", "a/x", "", ".", "/", "loop", "fifo-nobody", NIL, BAD};
    int flags[] = {O_RDONLY, O_RDWR, O_CREAT | O_RDWR, O_CREAT | O_EXCL | O_WRONLY, O_TRUNC | O_WRONLY,
                   O_CREAT | O_TRUNC | O_RDWR | O_APPEND, O_TMPFILE | O_RDWR, O_TMPFILE | O_RDONLY,
                   O_CREAT | O_DIRECTORY, O_WRONLY | O_NONBLOCK | O_CREAT, O_CREAT | O_NOFOLLOW | O_WRONLY, -1};
    for (size_t p = 0; p < sizeof paths / sizeof *paths; p++) {
        for (size_t f = 0; f < sizeof flags / sizeof *flags; f++) {
            int fd;
            R(fd = open(paths[p], flags[f], 0640));
            close(fd);
            R(fd = open64(paths[p], flags[f], 0640));
            close(fd);
            R(fd = openat(AT_FDCWD, paths[p], flags[f], 0640));
            close(fd);
            R(fd = openat64(BADFD, paths[p], flags[f], 0640));
            close(fd);
        }
        int fd;
        R(fd = creat(paths[p], 0600));
        close(fd);
        R(fd = creat64(paths[p], 0600));
        close(fd);
        R(fd = __open_2(paths[p], O_TRUNC | O_WRONLY | O_NONBLOCK));
        close(fd);
        R(fd = __open64_2(paths[p], O_RDONLY | O_NONBLOCK));
        close(fd);
        R(fd = __openat_2(AT_FDCWD, paths[p], O_TRUNC | O_WRONLY | O_NONBLOCK));
        close(fd);
        R(fd = __openat64_2(-5, paths[p], O_TRUNC | O_WRONLY | O_NONBLOCK));
        close(fd);
    }
    int fd;
    R(fd = open_by_handle_at(AT_FDCWD, NIL, O_RDWR | O_TRUNC));
    R(fd = open_by_handle_at(BADFD, BAD, O_RDWR | O_TRUNC));
}

static void writing(int fd) {
    struct iovec good[2] = {{"abc", 3}, {"defg", 4}}, bad[1] = {{BAD, 4}};
    int big = (int)zero + (1 << 30), negative = (int)zero - 1;
    R(write(fd, "hello", 5));
    R(write(fd, "", 0));
    R(write(fd, NIL, 5));
    R(write(fd, BAD, 5));
    R(__write(fd, "hello", 5));
    R(pwrite(fd, "hello", 5, 3));
    R(pwrite64(fd, "hello", 5, 1 << 20));
    R(__pwrite64(fd, "hello", 5, -1));
    R(pwrite(fd, BAD, 5, 0));
    R(writev(fd, good, 2));
    R(writev(fd, bad, 1));
    R(writev(fd, NIL, 1));
    R(writev(fd, good, negative));
    R(writev(fd, good, big));
    R(pwritev(fd, good, 2, 10));
    R(pwritev64(fd, bad, 1, 10));
    R(pwritev(fd, good, 2, -7));
    R(pwritev2(fd, good, 2, 5, 0));
    R(pwritev2(fd, good, 2, -1, 0));
    R(pwritev2(fd, good, 2, -1, RWF_APPEND));
    R(pwritev64v2(fd, good, 2, 0, RWF_SYNC));
    R(pwritev64v2(fd, good, 2, 0, 0x4000));
    R(ftruncate(fd, 100));
    R(ftruncate64(fd, -1));
    R(fallocate(fd, 0, 0, 4096));
    R(fallocate64(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, 0, 4096));
    R(fallocate(fd, 0x4000, 0, 4096));
    R(fallocate(fd, 0, -1, 4096));
    R(posix_fallocate(fd, 0, 8192));
    R(posix_fallocate64(fd, 0, 0));
    R(posix_fallocate(fd, -1, 10));
    R(lseek(fd, 0, SEEK_CUR));
    R(fchmod(fd, 0640));
    R(fchown(fd, (uid_t)-1, (gid_t)-1));
    R(futimes(fd, NIL));
    R(futimes(fd, wrong));
    R(futimens(fd, NIL));
    R(futimens(fd, BAD));
    R(fsetxattr(fd, "user.x", "v", 1, 0));
    R(fsetxattr(fd, BAD, "v", 1, 0));
    R(fsetxattr(fd, "user.x", "v", 1, XATTR_CREATE));
    R(fremovexattr(fd, "user.x"));
    R(fremovexattr(fd, "user.x"));
    R(utimensat(fd, NIL, NIL, 0));
    R(utimensat(fd, "", NIL, AT_EMPTY_PATH));
    R(futimesat(fd, NIL, NIL));
    R(fchmodat(fd, "", 0640, 0));
    R(fchownat(fd, "", (uid_t)-1, (gid_t)-1, AT_EMPTY_PATH));
}

/* The same by number: the results of the kernel, and errno set by `syscall`. */
static void by_number(int fd) {
    struct iovec good[2] = {{"abc", 3}, {"defg", 4}}, bad[1] = {{BAD, 4}};
    struct { uint64_t flags, mode, resolve; } how = {O_RDWR, 0, 0}, wrong_how = {O_RDWR, 0600, 77};
    off64_t at = 5;
    int got;
    R(syscall(SYS_write, fd, "hello", 5));
    R(syscall(SYS_write, fd, BAD, 5));
    R(syscall(SYS_writev, fd, good, 2));
    R(syscall(SYS_writev, fd, bad, 1));
    R(syscall(SYS_pwrite64, fd, "hello", 5, -1));
    R(syscall(SYS_pwritev, fd, good, 2, 10, 0));
    R(syscall(SYS_pwritev2, fd, good, 2, -1, 0, 0));
    R(syscall(SYS_pwritev2, fd, good, 2, 0, 0, 0x4000));
    R(syscall(SYS_ftruncate, fd, 100));
    R(syscall(SYS_ftruncate, fd, -1));
    R(syscall(SYS_fallocate, fd, 0x4000, 0, 4096));
    R(syscall(SYS_copy_file_range, fd, &at, fd, BAD, 10, 0));
    R(syscall(SYS_sendfile, fd, fd, BAD, 10));
    R(syscall(SYS_splice, fd, BAD, fd, NIL, 10, 0));
    R(syscall(SYS_lseek, fd, 0, SEEK_CUR));
    R(syscall(SYS_fchmod, fd, 0640));
    R(syscall(SYS_fchmodat2, fd, "", 0640, AT_EMPTY_PATH));
    R(syscall(SYS_fchmodat2, fd, NIL, 0640, 0));
    R(syscall(SYS_setxattrat, fd, "", AT_EMPTY_PATH, "user.x", BAD, 16));
    R(syscall(SYS_removexattrat, fd, NIL, 0, "user.x"));
    R(syscall(SYS_file_setattr, fd, "", BAD, 24, AT_EMPTY_PATH));
    R((got = (int)syscall(SYS_openat2, fd, "a", &how, sizeof how)) >= 0);
    if (got >= 0) close(got);
    R(syscall(SYS_openat2, fd, "a", &wrong_how, sizeof wrong_how));
    R(syscall(SYS_openat2, fd, "a", BAD, sizeof how));
    R(syscall(SYS_openat2, fd, BAD, &how, 3));
    R(syscall(SYS_dup3, fd, fd, 0));
    R(syscall(SYS_dup3, fd, -1, 0));
    R(syscall(SYS_close, BADFD));
    R(syscall(SYS_close_range, 9999, 9998, 0));
    R(syscall(SYS_getpid) > 0);
    R(syscall(99999, fd, BAD, BAD, BAD, BAD, BAD));
    R(syscall(-1, fd, BAD, BAD, BAD, BAD, BAD));
}

static void requesting(int fd, int other) {
    int number = 0;
    long flags = 0;
    struct file_clone_range range = {other, 0, 0, 4096}, none = {BADFD, 0, 0, 0};
    struct { struct file_dedupe_range head; struct file_dedupe_range_info info; } same = {{0, 4096, 1, 0, 0}, {other, 0, 0, 0, 0}};
    int moving[10] = {0, other};
    R(ioctl(fd, FIONREAD, &number));
    R(number);
    R(ioctl(fd, FIONREAD, BAD));
    R(ioctl(fd, FIONBIO, &number));
    R(ioctl(fd, TIOCGWINSZ, BAD));
    R(ioctl(fd, FICLONE, other));
    R(ioctl(fd, FICLONE, BADFD));
    R(ioctl(fd, FICLONERANGE, &range));
    R(ioctl(fd, FICLONERANGE, &none));
    R(ioctl(fd, FICLONERANGE, BAD));
    R(ioctl(fd, FIDEDUPERANGE, &same));
    R(same.info.status);
    R(ioctl(fd, FS_IOC_GETFLAGS, &flags));
    R(ioctl(fd, FS_IOC_SETFLAGS, &flags));
    R(ioctl(fd, FS_IOC_SETFLAGS, BAD));
    R(ioctl(fd, FS_IOC_FSSETXATTR, BAD));
    R(ioctl(fd, _IOW('X', 42, char[48]), BAD));
    R(ioctl(fd, _IOWR('f', 15, char[40]), moving));
    R(ioctl(fd, _IOWR('f', 15, char[40]), BAD));
    R(ioctl(fd, _IOW('X', 129, char[40]), BAD));
    R(ioctl(fd, 0x12345678, BAD));
    R(ioctl(fd, (unsigned long)-1, BAD));
    R(syscall(SYS_ioctl, fd, FICLONE, other));
    R(syscall(SYS_ioctl, fd, FIONREAD, BAD));
}

static void copying(int out, int in_) {
    int empty[2], with[2], pair[2];
    off64_t at = 5, negative = -3;
    CHECK(pipe2(empty, O_NONBLOCK) == 0 && pipe(with) == 0);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    CHECK(write(with[1], "0123456789", 10) == 10);
    lseek(in_, 0, SEEK_SET);
    R(sendfile(out, in_, NIL, 10));
    R(sendfile64(out, in_, &at, 10));
    R(sendfile(out, in_, BAD, 10));
    R(sendfile(out, in_, &negative, 10));
    R(sendfile(out, empty[0], NIL, 10));
    R(sendfile(out, BADFD, NIL, 10));
    R(sendfile(pair[0], in_, NIL, 10));
    R(copy_file_range(in_, NIL, out, NIL, 10, 0));
    R(copy_file_range(in_, &at, out, &at, 10, 0));
    R(copy_file_range(in_, NIL, out, BAD, 10, 0));
    R(copy_file_range(in_, NIL, out, &negative, 10, 0));
    R(copy_file_range(in_, NIL, out, NIL, 10, 77));
    R(copy_file_range(empty[0], NIL, out, NIL, 10, 0));
    R(splice(with[0], NIL, out, NIL, 3, 0));
    at = 100;
    R(splice(with[0], NIL, out, &at, 3, 0));
    R(splice(with[0], NIL, out, BAD, 3, 0));
    R(splice(with[0], &at, out, NIL, 3, 0));
    R(splice(with[0], NIL, out, &negative, 3, 0));
    R(splice(with[0], NIL, out, NIL, 0, 0));
    R(splice(with[0], NIL, out, NIL, 1, 0x4000));
    R(splice(with[0], NIL, BADFD, NIL, 1, 0));
    R(splice(empty[0], NIL, out, NIL, 3, SPLICE_F_NONBLOCK));
    R(splice(empty[0], NIL, out, NIL, 3, 0));
    R(splice(empty[0], NIL, pair[0], NIL, 3, 0));
    R(splice(in_, NIL, with[1], NIL, 3, 0));
    R(splice(in_, NIL, out, NIL, 3, 0));
    close(with[1]);
    R(splice(with[0], NIL, out, NIL, 100, 0));
    R(splice(with[0], NIL, out, NIL, 100, 0));
    close(with[0]), close(empty[0]), close(empty[1]), close(pair[0]), close(pair[1]);
}

static void descriptors(void) {
    int fd = open("a", O_RDWR);
    R(dup2(fd, high));
    R(dup2(fd, fd));
    R(dup2(BADFD, high));
    R(dup2(fd, -1));
    R(__dup2(fd, high));
    R(dup3(fd, high, O_CLOEXEC));
    R(dup3(fd, fd, 0));
    R(dup3(fd, high, 77));
    R(close_range(high, high + 10, 0));
    R(close_range(high + 10, high, 0));
    R(close_range(high, high + 10, 64));
    R(close(fd));
    R(close(fd));
    R(__close(fd));
    R(close(-1));
    closefrom(high + 1);
}

static void names(void) {
    int dir = open(".", O_RDONLY | O_DIRECTORY);
    const char *paths[] = {"a", "new", "d", "missing/x", "a/x", "", "loop", NIL, BAD};
    for (size_t p = 0; p < sizeof paths / sizeof *paths; p++) {
        const char *path = paths[p];
        R(link("a", path));
        R(link(path, "linked"));
        R(linkat(dir, path, dir, "linked2", AT_SYMLINK_FOLLOW));
        R(linkat(dir, path, BADFD, "linked2", 0x40000));
        R(symlink("a", path));
        R(symlink(path, "sym"));
        R(symlinkat("a", dir, path));
        R(symlinkat("a", BADFD, path));
        R(mkdir(path, 0755));
        R(mkdirat(dir, path, 0755));
        R(mkdirat(BADFD, path, 0755));
        R(mkfifo(path, 0644));
        R(mkfifoat(dir, path, 0644));
        R(mknod(path, S_IFREG | 0644, 0));
        R(mknodat(dir, path, S_IFIFO | 0644, 0));
        R(mknod(path, 0777777, 0));
        dev_t none = 0;
        R(__xmknod(0, path, S_IFREG | 0644, &none));
        R(__xmknod(7, path, S_IFREG | 0644, &none));
        R(__xmknodat(0, dir, path, S_IFREG | 0644, &none));
        R(chmod(path, 0644));
        R(lchmod(path, 0644));
        R(fchmodat(dir, path, 0644, 0));
        R(fchmodat(BADFD, path, 0644, AT_SYMLINK_NOFOLLOW));
        R(fchmodat(dir, path, 0644, 0x7777));
        R(chown(path, (uid_t)-1, (gid_t)-1));
        R(lchown(path, (uid_t)-1, (gid_t)-1));
        R(fchownat(dir, path, (uid_t)-1, (gid_t)-1, AT_SYMLINK_NOFOLLOW));
        R(utime(path, NIL));

        R(utimes(path, NIL));
        R(utimes(path, wrong));
        R(lutimes(path, NIL));
        R(futimesat(dir, path, NIL));
        R(utimensat(dir, path, NIL, AT_SYMLINK_NOFOLLOW));
        R(utimensat(BADFD, path, NIL, 0));
        R(utimensat(dir, path, BAD, 0));
        R(syscall(SYS_linkat, dir, path, dir, "linked", 0));
        R(syscall(SYS_symlinkat, "a", dir, path));
        R(syscall(SYS_mkdirat, dir, path, 0755));
        R(syscall(SYS_mknodat, dir, path, S_IFREG | 0644, 0));
        R(syscall(SYS_fchmodat, dir, path, 0644));
        R(syscall(SYS_fchownat, dir, path, -1, -1, 0x7777));
        R(syscall(SYS_utimensat, dir, path, BAD, 0));
        R(syscall(SYS_setxattr, path, "user.x", "v", 1, 77));
        R(syscall(SYS_truncate, path, -1));
        R(syscall(SYS_renameat, dir, path, dir, "renamed"));
        R(syscall(SYS_renameat2, dir, "renamed", dir, path, RENAME_NOREPLACE));
        R(syscall(SYS_unlinkat, dir, path, 77));
        R(syscall(SYS_openat, dir, path, O_PATH | O_CREAT | O_EXCL | O_TRUNC, 0600) >= 0);
        R(setxattr(path, "user.x", "v", 1, 0));
        R(lsetxattr(path, "user.x", "v", 1, 0));
        R(removexattr(path, "user.x"));
        R(lremovexattr(path, "user.x"));
        R(truncate(path, 10));
        R(truncate64(path, -1));
        R(rename(path, "renamed"));
        R(rename("renamed", path));
        R(rename("a", path));
        R(rename(path, "a"));
        R(renameat(dir, path, dir, "renamed"));
        R(renameat2(dir, "renamed", dir, path, RENAME_NOREPLACE));
        R(renameat2(dir, "a", dir, path, RENAME_EXCHANGE));
        R(renameat2(dir, "a", BADFD, path, 77));
        R(rmdir(path));
        R(remove(path));
        R(unlink(path));
        R(unlinkat(dir, path, 0));
        R(unlinkat(dir, path, AT_REMOVEDIR));
        R(unlinkat(BADFD, path, 77));
        R(mkdir("full", 0755));
        R(mkdir("full/x", 0755));
        R(remove("full"));
        R(remove("full/x"));
        R(rmdir("full"));
        const char *left[] = {"linked", "linked2", "sym", "renamed"};
        for (size_t l = 0; l < 4; l++) R(unlink(left[l]));
        fill("a", 1000, 'a');
    }
    close(dir);
}

static void templates(void) {
    char good[] = "t-XXXXXX", bad[] = "t-XXXX", nowhere[] = "missing/XXXXXX", with[] = "t-XXXXXX.c";
    int fd;
    R((fd = mkstemp(good)) > 0);
    unlink(good), close(fd);
    R(mkstemp(bad));
    R(mkstemp64(nowhere));
    strcpy(good, "t-XXXXXX");
    R((fd = mkostemp(good, O_APPEND)) > 0);
    unlink(good), close(fd);
    R(mkostemp64(bad, 0));
    R((fd = mkstemps(with, 2)) > 0);
    unlink(with), close(fd);
    R(mkstemps64(bad, 2));
    strcpy(with, "t-XXXXXX.c");
    R((fd = mkostemps(with, 2, O_CLOEXEC)) > 0);
    unlink(with), close(fd);
    R(mkostemps64(bad, -1, 0));
    strcpy(good, "t-XXXXXX");
    R(mkdtemp(good) == good);
    rmdir(good);
    R(mkdtemp(bad) == NULL);
}

static void streams(void) {
    const char *paths[] = {"a", "new", "missing/x", "", ".", NIL}, *modes[] = {"r", "w", "a+", "wx", "r+e", "nonsense"};
    FILE *f;
    char byte;
    for (size_t p = 0; p < 5; p++) {
        for (size_t m = 0; m < 6; m++) {
            R((f = fopen(paths[p], modes[m])) != NULL);
            if (!f) continue;
            R(fileno(f));
            R(fputs("text", f));
            R(ftell(f));
            R((f = freopen(paths[p], "a", f)) != NULL);
            if (!f) continue;
            R(fputs("more", f));
            R(fclose(f));
            unlink("new");
        }
        R((f = fopen64(paths[p], "w")) != NULL);
        if (f) R((f = freopen64(NIL, "r", f)) != NULL);
        if (f) R(fread(&byte, 1, 1, f));
        if (f) R(fclose(f));
    }
    R((f = fmemopen(NIL, 100, "w")) != NULL);
    R(fileno(f));
    R(fclose(f));
    int pipes[2];
    CHECK(pipe(pipes) == 0);
    R((f = fdopen(pipes[1], "w")) != NULL);
    R(fputs("text", f));
    close(pipes[0]);
    R(fclose(f));
    R((f = fopen("/dev/full", "w")) != NULL);
    R(fputs("text", f));
    R(fclose(f));
    R(close(pipes[1]));
}

static void call_everything(const char *directory) {
    CHECK(chdir(directory) == 0);
    umask(022);
    signal(SIGPIPE, SIG_IGN);
    CHECK(symlink("loop", "loop") == 0);
    fill("a", 1000, 'a');
    opening();
    fill("a", 1000, 'a');
    int fd = open("a", O_RDWR), append = open("b", O_CREAT | O_RDWR | O_APPEND, 0644), read_only = open("a", O_RDONLY);
    int dir = open(".", O_RDONLY), out = open("c", O_CREAT | O_RDWR, 0644), pipes[2];
    /* A device node of its own: modes and owners of what is opened here are changed. */
    int null = mknod("null", S_IFCHR | 0666, makedev(1, 3)) == 0 ? open("null", O_WRONLY) : -1;
    if (null < 0) null = open("d", O_CREAT | O_WRONLY, 0644);
    CHECK(fd >= 0 && append >= 0 && read_only >= 0 && dir >= 0 && out >= 0 && null >= 0 && pipe(pipes) == 0);
    int all[] = {fd, append, read_only, dir, null, pipes[1], pipes[0], -1, BADFD, AT_FDCWD, INT_MAX, INT_MIN};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        writing(all[i]);
        by_number(all[i]);
        requesting(all[i], fd);
    }
    copying(out, fd);
    copying(append, fd);
    copying(pipes[1], fd);
    copying(BADFD, fd);
    close(fd), close(append), close(read_only), close(dir), close(out), close(pipes[0]), close(pipes[1]), close(null);
    descriptors();
    names();
    if (!only_signal_safe) templates(), streams();
}
#endif
