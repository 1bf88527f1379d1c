/* Requests of ioctl that change files, and ways to a file that are no path of its own. All was copied when they come; all of
 * them have to be captured: the copy is equal, the first cut is the right one, and the audit finds nothing unseen.
 *
 *   control SOURCE DESTINATION NAME...     NAMEs are the requests that have to work on this filesystem */
#include "common.h"
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>

enum { BYTES = 1 << 18 };
static const char *source;
static int dir, round_;
static char **wanted;
static unsigned performed;

static void must_work(const char *name, int result) {
    performed += result >= 0;
    for (char **w = wanted; *w; w++)
        if (strcmp(*w, name) == 0 && result < 0) {
            fprintf(stderr, "%s: %s\n", name, strerror(errno));
            exit(1);
        }
}

/* Opens a file of `what`'s own; in the first round it is made, and there is nothing more to do. */
static int file_of(const char *what, char with) {
    if (round_ == 0) fill(in(source, what), BYTES, with);
    int fd = open(in(source, what), O_RDWR);
    CHECK(fd >= 0);
    /* Blocks can be moved about when they have a place on the disk. */
    if (round_ == 0) CHECK(fsync(fd) == 0);
    return fd;
}

#define ON(name, ...)                                                                                      \
    do {                                                                                                   \
        int fd = file_of(name, 'f'), other = file_of(name " other", 'o');                                  \
        if (round_ > 0) must_work(name, (int)(__VA_ARGS__));                                               \
        close(fd), close(other);                                                                           \
    } while (0)

/* XFS: exchanges the bytes of two files (`struct xfs_swapext`, with `struct xfs_bstat` in it). */
static int swap_extents(int fd, int other) {
    struct stat found;
    CHECK(fstat(fd, &found) == 0);
    struct { int64_t version, fd, other, at, len; char pad[16], about[136]; } swap = {
        .fd = fd, .other = other, .len = found.st_size};
    struct { uint64_t *ino; int count; void *to; int *got; } ask = {&(uint64_t){found.st_ino}, 1, swap.about, NULL};
    if (ioctl(fd, _IOWR('X', 102, char[32]), &ask) != 0) return -1;
    return ioctl(fd, _IOWR('X', 109, char[192]), &swap);
}

static void requests(void) {
    long flags = 0, no_extents = FS_NODUMP_FL;
    struct { unsigned words[7]; } attributes = {{0x80}};
    int sixteen = 16;
    struct { short type, whence; int pad; int64_t start, len; int sysid; unsigned pid; int more[4]; }
        space = {.start = 4096, .len = 65536}, tail = {.start = BYTES, .len = 65536};
    ON("clone", ioctl(fd, FICLONE, other));
    ON("clone range", ioctl(fd, FICLONERANGE, &(struct file_clone_range){other, 4096, 8192, 65536}));
    ON("clone by number", syscall(SYS_ioctl, fd, FICLONE, other));
    ON("flags", ioctl(fd, FS_IOC_GETFLAGS, &flags) | (flags |= FS_NODUMP_FL, ioctl(fd, FS_IOC_SETFLAGS, &flags)));
    /* ext4 refuses that, having moved the file's time. */
    ON("flags refused", ioctl(fd, FS_IOC_SETFLAGS, &no_extents));
    ON("attributes", ioctl(fd, FS_IOC_FSSETXATTR, &attributes));
    ON("version", ioctl(fd, _IOW('v', 2, long), &sixteen));
    ON("hole", ioctl(fd, _IOW('X', 43, char[48]), &space));
    ON("zeros", ioctl(fd, _IOW('X', 57, char[48]), &space));
    ON("reserve", ioctl(fd, _IOW('X', 42, char[48]), &tail));
    /* The file keeps its bytes; what the donor has then is nobody's business, and differs with what is cached. */
    struct { unsigned reserved, donor; uint64_t from, to, len, moved; } move = {.len = BYTES / 4096};
    ON("move extents", (move.donor = (unsigned)other, ioctl(fd, _IOWR('f', 15, char[40]), &move)));
    struct { int file; unsigned pad; uint64_t at, to, len, flags; } exchange = {.len = 65536};
    ON("exchange range", (exchange.file = other, ioctl(fd, _IOW('X', 129, char[40]), &exchange)));
    ON("swap extents", swap_extents(fd, other));
    struct { int64_t fd; char name[4088]; } subvolume = {0, "subvolume"}, gone = {0, "gone"};
    if (round_ == 0) {
        ioctl(dir, _IOW(0x94, 14, char[4096]), &gone);
    } else {
        must_work("subvolume", ioctl(dir, _IOW(0x94, 14, char[4096]), &subvolume));
        must_work("subvolume gone", ioctl(dir, _IOW(0x94, 15, char[4096]), &gone));
    }
}

/* Shares blocks that are equal: no byte changes, so nothing has to be captured. */
static void deduplicate(void) {
    int fd = file_of("same", 's'), other = file_of("same other", 's');
    struct { struct file_dedupe_range head; struct file_dedupe_range_info info; } same = {
        {0, 65536, 1, 0, 0}, {other, 0, 0, 0, 0}};
    if (round_ > 0) {
        int result = ioctl(fd, FIDEDUPERANGE, &same);
        must_work("deduplicate", result < 0 || same.info.status != FILE_DEDUPE_RANGE_SAME ? -1 : 0);
    }
    close(fd), close(other);
}

static int with_path(const char *directory, int fd, int (*call)(const char *)) {
    char path[64];
    snprintf(path, sizeof path, "%s/%d", directory, fd);
    return call(path);
}
static int cut_to_ten(const char *path) { return truncate(path, 10); }
static int empty(const char *path) { return close(open(path, O_WRONLY | O_TRUNC)); }
static int create_over(const char *path) { return close(open(path, O_WRONLY | O_TRUNC | O_CREAT, 0600)); }
static int change_mode(const char *path) { return chmod(path, 0640); }

static int through_a_socket(int fd) {
    int pair[2];
    char byte = 'x', space[CMSG_SPACE(sizeof fd)] = {0};
    struct iovec piece = {&byte, 1};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET, head->cmsg_type = SCM_RIGHTS, head->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(head), &fd, sizeof fd);
    CHECK(sendmsg(pair[0], &message, 0) == 1);
    CHECK(recvmsg(pair[1], &message, 0) == 1);
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
    close(pair[0]), close(pair[1]);
    return fd;
}

static int by_handle(const char *path, int flags) {
    static char space[sizeof(struct file_handle) + MAX_HANDLE_SZ];
    struct file_handle *handle = (void *)space;
    int mount;
    handle->handle_bytes = MAX_HANDLE_SZ;
    if (name_to_handle_at(AT_FDCWD, path, handle, &mount, 0) != 0) return -1;
    return open_by_handle_at(dir, handle, flags);
}

static int write_and_close(int fd) {
    return fd < 0 ? fd : (int)pwrite(fd, "through", 7, 100000) + close(fd);
}

/* Files are told by what they are, not by how they were come by. */
static void other_ways(void) {
    int pipes[2], more[2], memory = memfd_create("not ours", 0);
    CHECK(pipe(pipes) == 0 && pipe(more) == 0 && memory >= 0);
    ON("truncate of a link in proc", with_path("/proc/self/fd", fd, cut_to_ten));
    ON("open of a link in proc", with_path("/proc/self/fd", fd, empty));
    ON("creat of a link in proc", with_path("/proc/self/fd", fd, create_over));
    ON("chmod of a link in proc", with_path("/proc/self/fd", fd, change_mode));
    ON("truncate of a link in dev", with_path("/dev/fd", fd, cut_to_ten));
    ON("open of a link in dev", with_path("/dev/fd", fd, empty));
    ON("socket", write_and_close(through_a_socket(fd)));
    ON("pidfd", write_and_close((int)syscall(SYS_pidfd_getfd, (int)syscall(SYS_pidfd_open, getpid(), 0), fd, 0)));
    ON("handle", write_and_close(by_handle(in(source, "handle"), O_RDWR)));
    ON("handle that empties", write_and_close(by_handle(in(source, "handle that empties"), O_RDWR | O_TRUNC)));
    if (round_ == 0) return;
    /* Pipes and memory are nobody's files, and keep nobody waiting. */
    struct iovec piece = {"pipe", 4};
    CHECK(vmsplice(pipes[1], &piece, 1, 0) == 4 && tee(pipes[0], more[1], 4, 0) == 4);
    CHECK(write(memory, "memory", 6) == 6 && ftruncate(memory, 100) == 0);
    ON("splice", splice(more[0], NULL, fd, &(off64_t){5000}, 4, 0) == 4 ? 0 : -1);
}

static void call_all(void *unused) {
    (void)unused;
    if (performed > 0) return;
    requests();
    deduplicate();
    other_ways();
    if (round_++ == 0) fill(in(source, "splice"), BYTES, 'f'), fill(in(source, "splice other"), BYTES, 'o');
}

int main(int argc, char **argv) {
    CHECK(argc >= 3);
    source = argv[1], wanted = argv + 3;
    CHECK((dir = open(source, O_RDONLY | O_DIRECTORY)) >= 0);
    call_all(NULL);
    hotbackup_report report = backup_with(argv[1], argv[2], call_all);
    printf("  %u calls, %lu files changed unseen, cut %lu\n", performed, report.unseen_files, report.cut_attempts);
    CHECK(report.cut_attempts == 1);
    return 0;
}
