/* Names: what opening makes and empties, what comes, moves and goes. */
#include "matrix.h"

#include <linux/fs.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>
#include <sys/un.h>

/* Names that headers hide. */
int __open(const char *path, int flags, ...);
int __open64(const char *path, int flags, ...);
int __open_2(const char *path, int flags);
int __open64_2(const char *path, int flags);
int __openat_2(int directory, const char *path, int flags);
int __openat64_2(int directory, const char *path, int flags);
int __xmknod(int version, const char *path, mode_t mode, dev_t *device);
int __xmknodat(int version, int directory, const char *path, mode_t mode, dev_t *device);

/* Writes into a new file. */
static void fill(int fd) {
    CHECK(fd >= 0);
    CHECK(write(fd, ground.piece, PIECE) == PIECE);
    CHECK(close(fd) == 0);
}

static void opened(int fd) { CHECK(fd >= 0); }

enum { NEW = O_CREAT | O_EXCL | O_WRONLY, EMPTIED = O_WRONLY | O_TRUNC };

#define GROUP "Opening"
ROW(open_creat, "`open`, O_CREAT", 0) { fill(open(inside("new"), NEW, 0600)); }
ROW(open64_creat, "`open64`, O_CREAT", 0) { fill(open64(inside("new"), NEW, 0600)); }
ROW(__open, "`__open`, O_CREAT", 0) { fill(__open(inside("new"), NEW, 0600)); }
ROW(__open64, "`__open64`, O_CREAT", 0) { fill(__open64(inside("new"), NEW, 0600)); }
ROW(openat_creat, "`openat`, O_CREAT", 0) { fill(openat(ground.directory, "new", NEW, 0600)); }
ROW(openat64_creat, "`openat64`, O_CREAT", 0) { fill(openat64(ground.directory, "new", NEW, 0600)); }
ROW(creat, "`creat`", 0) { fill(creat(inside("new"), 0600)); }
ROW(creat64, "`creat64` over a file", 0) { fill(creat64(ground.target, 0600)); }
ROW(open_trunc, "`open`, O_TRUNC", 0) { opened(open(ground.target, EMPTIED)); }
ROW(open_trunc_rdonly, "`open`, O_RDONLY and O_TRUNC", 0) { opened(open(ground.target, O_RDONLY | O_TRUNC)); }
ROW(openat_trunc, "`openat`, O_TRUNC", 0) { opened(openat(ground.directory, "target", EMPTIED)); }
ROW(__open_2, "`__open_2`, O_TRUNC", 0) { opened(__open_2(ground.target, EMPTIED)); }
ROW(__open64_2, "`__open64_2`, O_TRUNC", 0) { opened(__open64_2(ground.target, EMPTIED)); }
ROW(__openat_2, "`__openat_2`, O_TRUNC", 0) { opened(__openat_2(ground.directory, "target", EMPTIED)); }
ROW(__openat64_2, "`__openat64_2`, O_TRUNC", 0) { opened(__openat64_2(ground.directory, "target", EMPTIED)); }
ROW(open_tmpfile, "`open`, O_TMPFILE, then `linkat` by /proc/self/fd", 0) {
    char path[64];
    int fd = open(ground.source, O_TMPFILE | O_RDWR, 0600);
    CHECK(fd >= 0);
    CHECK(write(fd, ground.piece, PIECE) == PIECE);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    CHECK(linkat(AT_FDCWD, path, ground.directory, "new", AT_SYMLINK_FOLLOW) == 0);
    CHECK(pwrite(fd, ground.piece, PIECE, PIECE) == PIECE);
}
ROW(open_tmpfile_empty_path, "`open`, O_TMPFILE, then `linkat`, AT_EMPTY_PATH", 0) {
    int fd = open(ground.source, O_TMPFILE | O_RDWR, 0600);
    CHECK(fd >= 0);
    CHECK(write(fd, ground.piece, PIECE) == PIECE);
    CHECK(linkat(fd, "", ground.directory, "new", AT_EMPTY_PATH) == 0);
}
ROW(mkstemp, "`mkstemp`", 0) { fill(mkstemp((char *)inside("new.XXXXXX"))); }
ROW(mkstemp64, "`mkstemp64`", 0) { fill(mkstemp64((char *)inside("new.XXXXXX"))); }
ROW(mkostemp, "`mkostemp`", 0) { fill(mkostemp((char *)inside("new.XXXXXX"), O_CLOEXEC)); }
ROW(mkostemp64, "`mkostemp64`", 0) { fill(mkostemp64((char *)inside("new.XXXXXX"), O_CLOEXEC)); }
ROW(mkstemps, "`mkstemps`", 0) { fill(mkstemps((char *)inside("XXXXXX.c"), 2)); }
ROW(mkstemps64, "`mkstemps64`", 0) { fill(mkstemps64((char *)inside("XXXXXX.c"), 2)); }
ROW(mkostemps, "`mkostemps`", 0) { fill(mkostemps((char *)inside("XXXXXX.c"), 2, O_CLOEXEC)); }
ROW(mkostemps64, "`mkostemps64`", 0) { fill(mkostemps64((char *)inside("XXXXXX.c"), 2, O_CLOEXEC)); }

#undef GROUP
#define GROUP "Names that come"
ROW(mkdir, "`mkdir`, and a file in it", 0) {
    CHECK(mkdir(inside("new"), 0750) == 0);
    fill(open(inside("new/file"), NEW, 0600));
}
ROW(mkdirat, "`mkdirat`", 0) { CHECK(mkdirat(ground.directory, "new", 0750) == 0); }
ROW(mkdtemp, "`mkdtemp`", 0) { CHECK(mkdtemp((char *)inside("new.XXXXXX"))); }
ROW(mkfifo, "`mkfifo`", 0) { CHECK(mkfifo(inside("new"), 0600) == 0); }
ROW(mkfifoat, "`mkfifoat`", 0) { CHECK(mkfifoat(ground.directory, "new", 0600) == 0); }
ROW(mknod, "`mknod` of a device", 0) { CHECK(mknod(inside("new"), S_IFCHR | 0600, makedev(1, 3)) == 0); }
ROW(mknod_file, "`mknod` of a file", 0) { CHECK(mknod(inside("new"), S_IFREG | 0600, 0) == 0); }
ROW(mknodat, "`mknodat`", 0) { CHECK(mknodat(ground.directory, "new", S_IFIFO | 0600, 0) == 0); }
#if defined(__x86_64__)
ROW(__xmknod, "`__xmknod`, of programs built before glibc 2.33", 0) {
    __typeof__(&__xmknod) call = dlvsym(RTLD_DEFAULT, "__xmknod", "GLIBC_2.2.5");
    dev_t device = 0;
    CHECK(call && call(0, inside("new"), S_IFREG | 0600, &device) == 0);
}
ROW(__xmknodat, "`__xmknodat`, likewise", 0) {
    __typeof__(&__xmknodat) call = dlvsym(RTLD_DEFAULT, "__xmknodat", "GLIBC_2.4");
    dev_t device = 0;
    CHECK(call && call(0, ground.directory, "new", S_IFREG | 0600, &device) == 0);
}
#endif
ROW(link, "`link`", 0) { CHECK(link(ground.target, inside("new")) == 0); }
ROW(linkat, "`linkat`", 0) { CHECK(linkat(ground.directory, "target", ground.directory, "empty/new", 0) == 0); }
ROW(linkat_follow, "`linkat`, AT_SYMLINK_FOLLOW", 0) {
    CHECK(linkat(ground.directory, "symbolic", ground.directory, "new", AT_SYMLINK_FOLLOW) == 0);
}
ROW(link_from_outside, "`link` of a file from outside", 0) { CHECK(link(outside("donor"), inside("new")) == 0); }
ROW(symlink, "`symlink`", 0) { CHECK(symlink("victim", inside("new")) == 0); }
ROW(symlinkat, "`symlinkat`", 0) { CHECK(symlinkat("victim", ground.directory, "new") == 0); }
ROW(bind, "`bind` of a socket, which is left out", 0) {
    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "socket"};
    int socket_fd = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(socket_fd >= 0 && chdir(ground.source) == 0);
    CHECK(bind(socket_fd, (struct sockaddr *)&address, sizeof address) == 0);
}

#undef GROUP
#define GROUP "Names that move or go"
ROW(rename, "`rename`", 0) { CHECK(rename(inside("victim"), inside("directory/new")) == 0); }
ROW(rename_target, "`rename` of the file that is copied", 0) { CHECK(rename(ground.target, inside("new")) == 0); }
ROW(rename_over, "`rename` over a file", 0) { CHECK(rename(inside("victim"), ground.target) == 0); }
ROW(rename_directory, "`rename` of a directory", 0) { CHECK(rename(inside("directory"), inside("empty/new")) == 0); }
ROW(rename_in, "`rename` of a file from outside", 0) { CHECK(rename(outside("donor"), inside("new")) == 0); }
ROW(rename_out, "`rename` of a file to outside", 0) { CHECK(rename(inside("victim"), outside("new")) == 0); }
ROW(rename_directory_in, "`rename` of a directory from outside", 0) {
    CHECK(mkdir(outside("tree"), 0755) == 0);
    fill(open(outside("tree/file"), NEW, 0600));
    CHECK(rename(outside("tree"), inside("new")) == 0);
}
ROW(renameat, "`renameat`", 0) { CHECK(renameat(ground.directory, "victim", ground.directory, "new") == 0); }
ROW(renameat2, "`renameat2`, RENAME_NOREPLACE", 0) {
    CHECK(renameat2(ground.directory, "victim", ground.directory, "new", RENAME_NOREPLACE) == 0);
}
ROW(renameat2_exchange, "`renameat2`, RENAME_EXCHANGE", 0) {
    CHECK(renameat2(ground.directory, "victim", ground.directory, "target", RENAME_EXCHANGE) == 0);
}
ROW(renameat2_exchange_directories, "`renameat2`, RENAME_EXCHANGE of directories", 0) {
    CHECK(renameat2(ground.directory, "directory", ground.directory, "empty", RENAME_EXCHANGE) == 0);
}
ROW(renameat2_whiteout, "`renameat2`, RENAME_WHITEOUT", 0) {
    CHECK(renameat2(ground.directory, "victim", ground.directory, "new", RENAME_WHITEOUT) == 0);
}
ROW(unlink, "`unlink`", 0) { CHECK(unlink(inside("victim")) == 0); }
ROW(unlink_target, "`unlink` of the file that is copied", 0) { CHECK(unlink(ground.target) == 0); }
ROW(unlink_twin, "`unlink` of one of two names", 0) { CHECK(unlink(inside("linked")) == 0); }
ROW(unlink_and_make, "`unlink`, and another file of that name", 0) {
    CHECK(unlink(ground.target) == 0);
    fill(open(ground.target, NEW, 0600));
}
ROW(unlinkat, "`unlinkat`", 0) { CHECK(unlinkat(ground.directory, "victim", 0) == 0); }
ROW(unlinkat_directory, "`unlinkat`, AT_REMOVEDIR", 0) { CHECK(unlinkat(ground.directory, "empty", AT_REMOVEDIR) == 0); }
ROW(remove, "`remove` of a file", 0) { CHECK(remove(inside("symbolic")) == 0); }
ROW(remove_directory, "`remove` of a directory", 0) { CHECK(remove(inside("empty")) == 0); }
ROW(rmdir, "`rmdir`", 0) { CHECK(rmdir(inside("empty")) == 0); }
