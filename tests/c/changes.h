/* Every captured call that changes something, once, with a directory of its own in which nothing else happens: what the call
 * does has to arrive in a copy that was made before it, and a call that the library does not understand cannot hide
 * behind another one. */
#ifndef CHANGES_H
#define CHANGES_H
#include "calls.h"

/* What every directory holds, and names that a call may give. */
static struct {
    char directory[PATH_MAX], file[PATH_MAX], other[PATH_MAX], empty[PATH_MAX], link[PATH_MAX], new[PATH_MAX], below[PATH_MAX],
        template[PATH_MAX], with_suffix[PATH_MAX];
    int dir, fd;
} place;
static const char *places;
static int input, full_pipe[2];
/* Which call is to be made, and how many there are. */
static int wanted, changes;
enum { ALL = -1, NONE = -2 };

/* Makes the directory of a call. */
static void make_place(void) {
    CHECK(mkdir(place.directory, 0755) == 0 && mkdir(place.empty, 0755) == 0);
    fill(place.file, 100000, 'o');
    fill(place.other, 1000, 'x');
    CHECK(setxattr(place.file, "user.old", "old", 3, 0) == 0);
    CHECK(symlink("file", place.link) == 0);
}

/* Finds the directory of a call; whether the call is to be made now. */
static bool enter(const char *call) {
    if (changes++ != wanted && wanted >= 0) return false;
    char *end = stpcpy(stpcpy(place.directory, places), "/of ");
    for (; *call && end < place.directory + PATH_MAX - 100; call++) *end++ = *call == '/' ? '_' : *call;
    *end = 0;
    stpcpy(stpcpy(place.file, place.directory), "/file");
    stpcpy(stpcpy(place.other, place.directory), "/other");
    stpcpy(stpcpy(place.empty, place.directory), "/empty");
    stpcpy(stpcpy(place.link, place.directory), "/link");
    stpcpy(stpcpy(place.new, place.directory), "/new");
    stpcpy(stpcpy(place.below, place.directory), "/empty/below");
    stpcpy(stpcpy(place.template, place.directory), "/XXXXXX");
    stpcpy(stpcpy(place.with_suffix, place.directory), "/XXXXXX.c");
    if (wanted == NONE) {
        make_place();
        return false;
    }
    place.dir = open(place.directory, O_RDONLY | O_DIRECTORY);
    place.fd = open(place.file, O_RDWR);
    CHECK(place.dir >= 0 && place.fd >= 0);
    return true;
}

static void leave(void) {
    CHECK(close(place.fd) == 0 && close(place.dir) == 0);
}

#define MAKE(name, calls)                                                                                  \
    do {                                                                                                   \
        if (enter(name)) {                                                                                 \
            CHECK(calls);                                                                                  \
            leave();                                                                                       \
        }                                                                                                  \
    } while (0)
#define ON(call) MAKE(#call, (call) >= 0)
#define ON_ALL(calls) MAKE(#calls, calls)

/* What some filesystems cannot do. */
static int if_known(int result) {
    return result < 0 && errno == EOPNOTSUPP ? 0 : result;
}

static void change_bytes(void) {
    char *three = (char[]){"three"};
    struct iovec pieces[1] = {{three, 5}};
    off64_t at = 70000, zero_at = 0;
    ON(write(place.fd, three, 5));
    ON(__write(place.fd, three, 5));
    ON(writev(place.fd, pieces, 1));
    ON(pwrite(place.fd, three, 5, 99998));
    ON(pwrite64(place.fd, three, 5, 50000));
    ON(__pwrite64(place.fd, three, 5, 200000));
    ON(pwritev(place.fd, pieces, 1, 4095));
    ON(pwritev64(place.fd, pieces, 1, 4096));
    ON(pwritev2(place.fd, pieces, 1, -1, 0));
    ON(pwritev2(place.fd, pieces, 1, 30000, 0));
    ON(pwritev64v2(place.fd, pieces, 1, 0, RWF_APPEND));
    ON_ALL(fcntl(place.fd, F_SETFL, O_APPEND) == 0 && pwrite(place.fd, three, 5, 10) == 5);
    ON_ALL(fcntl64(place.fd, F_SETFL, O_APPEND) == 0 && write(place.fd, three, 5) == 5);
    ON_ALL(lseek(place.fd, 5000, SEEK_SET) == 5000 && write(place.fd, three, 5) == 5);
    ON_ALL(lseek64(place.fd, -5000, SEEK_END) == 95000 && write(place.fd, three, 5) == 5);
    ON(copy_file_range(input, &zero_at, place.fd, NULL, 5000, 0));
    ON(copy_file_range(input, NULL, place.fd, &at, 5000, 0));
    ON(sendfile(place.fd, input, &zero_at, 5000));
    ON(sendfile64(place.fd, input, NULL, 5000));
    ON(splice(full_pipe[0], NULL, place.fd, NULL, 3, 0));
    ON(splice(full_pipe[0], NULL, place.fd, &at, 3, 0));
    ON_ALL(dup2(place.fd, high) == high && write(high, three, 5) == 5 && close(high) == 0);
    ON_ALL(__dup2(place.fd, high) == high && write(high, three, 5) == 5 && __close(high) == 0);
    ON_ALL(dup3(place.fd, high, O_CLOEXEC) == high && write(high, three, 5) == 5 && close(high) == 0);
    ON_ALL(dup2(input, high) == high && close_range((unsigned)high, (unsigned)high, 0) == 0 &&
           dup2(place.fd, high) == high && write(high, three, 5) == 5 && close(high) == 0);
}

static void change_sizes(void) {
    ON(ftruncate(place.fd, 10));
    ON(ftruncate64(place.fd, 300000));
    ON(truncate(place.file, 12345));
    ON(truncate64(place.file, 0));
    ON(fallocate(place.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 4096, 8192));
    ON(if_known(fallocate(place.fd, FALLOC_FL_COLLAPSE_RANGE, 4096, 8192)));
    ON(if_known(fallocate64(place.fd, FALLOC_FL_INSERT_RANGE, 4096, 8192)));
    ON(if_known(fallocate(place.fd, FALLOC_FL_ZERO_RANGE, 5000, 8192)));
    ON(if_known(fallocate64(place.fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, 99000, 8192)));
    ON(fallocate64(place.fd, 0, 0, 200000));
    ON(posix_fallocate(place.fd, 0, 150000));
    ON(posix_fallocate64(place.fd, 100000, 1));
}

/* Opening with O_TRUNC by the file's handle, which takes root. */
static int empty_by_handle(void) {
    union {
        struct file_handle head;
        char room[sizeof(struct file_handle) + MAX_HANDLE_SZ];
    } handle;
    int mount;
    handle.head.handle_bytes = MAX_HANDLE_SZ;
    if (geteuid() != 0 || name_to_handle_at(AT_FDCWD, place.file, &handle.head, &mount, 0) < 0) return 0;
    return close(open_by_handle_at(place.dir, &handle.head, O_WRONLY | O_TRUNC));
}

static void change_by_opening(void) {
    ON(close(open(place.file, O_WRONLY | O_TRUNC)));
    ON(close(open64(place.file, O_WRONLY | O_TRUNC)));
    ON(close(__open(place.file, O_WRONLY | O_TRUNC)));
    ON(close(__open64(place.file, O_WRONLY | O_TRUNC)));
    ON(close(__open_2(place.file, O_WRONLY | O_TRUNC)));
    ON(close(__open64_2(place.file, O_WRONLY | O_TRUNC)));
    ON(close(openat(place.dir, "file", O_WRONLY | O_TRUNC)));
    ON(close(openat64(place.dir, "file", O_WRONLY | O_TRUNC)));
    ON(close(__openat_2(place.dir, "file", O_WRONLY | O_TRUNC)));
    ON(close(__openat64_2(place.dir, "file", O_WRONLY | O_TRUNC)));
    ON(close(creat(place.file, 0600)));
    ON(close(creat64(place.file, 0600)));
    ON(empty_by_handle());
    ON(close(open(place.new, O_WRONLY | O_CREAT, 0640)));
    ON(close(open64(place.new, O_WRONLY | O_CREAT | O_EXCL, 0640)));
    ON(close(__open(place.new, O_WRONLY | O_CREAT, 0640)));
    ON(close(__open64(place.new, O_WRONLY | O_CREAT, 0640)));
    ON(close(openat(place.dir, "new", O_WRONLY | O_CREAT, 0640)));
    ON(close(openat64(place.dir, "new", O_WRONLY | O_CREAT, 0640)));
    ON(close(creat(place.new, 0600)));
    ON(close(creat64(place.new, 0600)));
    if (only_signal_safe) return;
    ON(close(mkstemp(place.template)));
    ON(close(mkstemp64(place.template)));
    ON(close(mkostemp(place.template, O_APPEND)));
    ON(close(mkostemp64(place.template, O_APPEND)));
    ON(close(mkstemps(place.with_suffix, 2)));
    ON(close(mkstemps64(place.with_suffix, 2)));
    ON(close(mkostemps(place.with_suffix, 2, O_CLOEXEC)));
    ON(close(mkostemps64(place.with_suffix, 2, O_CLOEXEC)));
    ON(mkdtemp(place.template) ? 0 : -1);
}

/* A file without a name gets one. */
static int name_the_nameless(void) {
    int fd = openat(place.dir, ".", O_TMPFILE | O_WRONLY, 0640);
    if (fd < 0) return if_known(fd);
    CHECK(write(fd, "nameless", 8) == 8);
    /* By another descriptor's number, because AT_EMPTY_PATH takes root. */
    char link[] = "/proc/self/fd/000000";
    for (int digit = (int)sizeof link - 2, rest = fd; digit > (int)sizeof link - 8; digit--, rest /= 10)
        link[digit] = (char)('0' + rest % 10);
    char *number = link + sizeof "/proc/self/fd/" - 1, *significant = number + strspn(number, "0");
    memmove(number, significant, strlen(significant) + 1);
    CHECK(linkat(AT_FDCWD, link, place.dir, "new", AT_SYMLINK_FOLLOW) == 0);
    return close(fd);
}

static void change_names(void) {
    dev_t device = 0;
    ON(unlink(place.file));
    ON(unlinkat(place.dir, "file", 0));
    ON(unlinkat(place.dir, "empty", AT_REMOVEDIR));
    ON(rmdir(place.empty));
    ON(remove(place.file));
    ON(remove(place.empty));
    ON(rename(place.file, place.new));
    ON(rename(place.file, place.other));
    ON(rename(place.file, place.below));
    ON(rename(place.empty, place.new));
    ON(renameat(place.dir, "file", place.dir, "other"));
    ON(renameat(place.dir, "file", place.dir, "empty/below"));
    ON(renameat2(place.dir, "file", place.dir, "new", RENAME_NOREPLACE));
    ON(renameat2(place.dir, "file", place.dir, "empty", RENAME_EXCHANGE));
    ON(link(place.file, place.new));
    ON(linkat(place.dir, "file", place.dir, "empty/below", 0));
    ON(linkat(place.dir, "link", place.dir, "new", AT_SYMLINK_FOLLOW));
    ON(linkat(place.dir, "link", place.dir, "new", 0));
    ON(name_the_nameless());
    ON(symlink("other", place.new));
    ON(symlinkat("other", place.dir, "new"));
    ON(mkdir(place.new, 0750));
    ON(mkdirat(place.dir, "new", 0750));
    ON(mkfifo(place.new, 0640));
    ON(mkfifoat(place.dir, "new", 0640));
    ON(mknod(place.new, S_IFREG | 0640, 0));
    ON(mknodat(place.dir, "new", S_IFIFO | 0640, 0));
    ON(__xmknod(0, place.new, S_IFREG | 0640, &device));
    ON(__xmknodat(0, place.dir, "new", S_IFIFO | 0640, &device));
}

static void change_modes_and_owners(void) {
    /* Only root may give a file away. */
    uid_t user = geteuid() == 0 ? 1234 : geteuid();
    gid_t group = geteuid() == 0 ? 4321 : getegid();
    ON(chmod(place.file, 0600));
    ON(chmod(place.empty, 0700));
    ON(lchmod(place.file, 0600));
    ON(fchmod(place.fd, 0600));
    ON(fchmod(place.dir, 0700));
    ON(fchmodat(place.dir, "file", 0600, 0));
    ON(chown(place.file, user, group));
    ON(lchown(place.link, user, group));
    ON(fchown(place.fd, user, group));
    ON(fchownat(place.dir, "empty", user, group, 0));
    ON(fchownat(place.dir, "link", user, group, AT_SYMLINK_NOFOLLOW));
    ON(fchownat(place.fd, "", user, group, AT_EMPTY_PATH));
}

static void change_times(void) {
    struct utimbuf seconds = {1000000001, 1000000002};
    struct timeval microseconds[2] = {{1000000003, 123456}, {1000000004, 654321}};
    struct timespec nanoseconds[2] = {{1000000005, 123456789}, {1000000006, 987654321}}, accessed[2] = {{1000000007, 1}, {0, UTIME_OMIT}};
    ON(utime(place.file, &seconds));
    ON(utimes(place.file, microseconds));
    ON(lutimes(place.link, microseconds));
    ON(futimes(place.fd, microseconds));
    ON(futimens(place.fd, nanoseconds));
    ON(futimens(place.dir, nanoseconds));
    ON(futimesat(place.dir, "file", microseconds));
    ON(utimensat(place.dir, "file", nanoseconds, 0));
    ON(utimensat(place.dir, "file", accessed, 0));
    ON(utimensat(place.dir, "link", nanoseconds, AT_SYMLINK_NOFOLLOW));
    ON(utimensat(place.fd, "", nanoseconds, AT_EMPTY_PATH));
}

static void change_extended_attributes(void) {
    ON(setxattr(place.file, "user.new", "value", 5, XATTR_CREATE));
    ON(setxattr(place.empty, "user.new", "value", 5, 0));
    ON(lsetxattr(place.file, "user.old", "changed", 7, XATTR_REPLACE));
    ON(fsetxattr(place.fd, "user.new", "value", 5, 0));
    ON(fsetxattr(place.dir, "user.new", "value", 5, 0));
    ON(removexattr(place.file, "user.old"));
    ON(lremovexattr(place.file, "user.old"));
    ON(fremovexattr(place.fd, "user.old"));
}

static void change_each(int call) {
    wanted = call;
    changes = 0;
    change_bytes();
    change_sizes();
    change_by_opening();
    change_names();
    change_modes_and_owners();
    change_times();
    change_extended_attributes();
}

/* Makes the directories of all calls below one. */
static void prepare_changes(const char *directory) {
    const char *path = in(directory, "input");
    places = directory;
    fill(path, 100000, 'i');
    /* To read it is nothing that a session has to copy. */
    CHECK((input = open(path, O_RDONLY | O_NOATIME)) >= 0);
    CHECK(pipe(full_pipe) == 0 && write(full_pipe[1], "0123456789", 10) == 10);
    change_each(NONE);
}

static void end_changes(void) {
    CHECK(close(input) == 0 && close(full_pipe[0]) == 0 && close(full_pipe[1]) == 0);
}
#endif
