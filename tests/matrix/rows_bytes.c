/* Bytes and sizes, by calls of the C library on descriptors and paths. */
#include "matrix.h"

#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/uio.h>

/* Names that headers hide. */
ssize_t __write(int fd, const void *bytes, size_t len);
ssize_t __pwrite64(int fd, const void *bytes, size_t len, off64_t at);

static struct iovec *halves(void) {
    static struct iovec pieces[2];
    pieces[0] = (struct iovec){ground.piece, PIECE / 2};
    pieces[1] = (struct iovec){ground.piece + PIECE / 2, PIECE / 2};
    return pieces;
}

/* Writes at both places through a descriptor of the target. */
static void write_through(int fd) {
    CHECK(fd >= 0);
    AT_BOTH(at) {
        CHECK(lseek(fd, at, SEEK_SET) == at);
        CHECK(write(fd, ground.piece, PIECE) == PIECE);
    }
}

static int opened(int flags) {
    int fd = open(ground.target, flags);
    CHECK(fd >= 0);
    return fd;
}

#define GROUP "Writing through a descriptor"
ROW(write, "`write`", 0) { write_through(ground.fd); }
ROW(__write, "`__write`", 0) {
    AT_BOTH(at) {
        CHECK(lseek(ground.fd, at, SEEK_SET) == at);
        CHECK(__write(ground.fd, ground.piece, PIECE) == PIECE);
    }
}
ROW(write_append, "`write`, O_APPEND", 0) { CHECK(write(opened(O_WRONLY | O_APPEND), ground.piece, PIECE) == PIECE); }
ROW(write_setfl, "`write`, O_APPEND by F_SETFL", 0) {
    CHECK(fcntl(ground.fd, F_SETFL, O_APPEND) == 0);
    CHECK(write(ground.fd, ground.piece, PIECE) == PIECE);
}
ROW(write_sync, "`write`, O_SYNC", 0) { write_through(opened(O_WRONLY | O_SYNC)); }
ROW(write_direct, "`write`, O_DIRECT", 0) { write_through(opened(O_WRONLY | O_DIRECT)); }
ROW(write_behind_end, "`write` behind the end", 0) {
    CHECK(lseek(ground.fd, SIZE + 100000, SEEK_SET) > 0);
    CHECK(write(ground.fd, ground.piece, PIECE) == PIECE);
}
ROW(write_short, "`write` that comes out short (RLIMIT_FSIZE)", CALM) {
    struct rlimit limit, all;
    signal(SIGXFSZ, SIG_IGN);
    CHECK(getrlimit(RLIMIT_FSIZE, &all) == 0);
    limit = (struct rlimit){SIZE + 100, all.rlim_max};
    CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    CHECK(lseek(ground.fd, 0, SEEK_END) == SIZE);
    CHECK(write(ground.fd, ground.piece, PIECE) == 100);
    CHECK(setrlimit(RLIMIT_FSIZE, &all) == 0);
}
ROW(write_fault, "`writev` that fails half-way (EFAULT)", 0) {
    AT_BOTH(at) {
        struct iovec pieces[2] = {{ground.piece, 1000}, {(void *)8, 1000}};
        CHECK(lseek(ground.fd, at, SEEK_SET) == at);
        CHECK(writev(ground.fd, pieces, 2) == 1000);
    }
}
ROW(writev, "`writev`", 0) {
    AT_BOTH(at) {
        CHECK(lseek(ground.fd, at, SEEK_SET) == at);
        CHECK(writev(ground.fd, halves(), 2) == PIECE);
    }
}
ROW(pwrite, "`pwrite`", 0) { AT_BOTH(at) CHECK(pwrite(ground.fd, ground.piece, PIECE, at) == PIECE); }
ROW(pwrite64, "`pwrite64`", 0) { AT_BOTH(at) CHECK(pwrite64(ground.fd, ground.piece, PIECE, at) == PIECE); }
ROW(__pwrite64, "`__pwrite64`", 0) { AT_BOTH(at) CHECK(__pwrite64(ground.fd, ground.piece, PIECE, at) == PIECE); }
ROW(pwrite_append, "`pwrite` on an O_APPEND descriptor, which appends", 0) {
    CHECK(pwrite(opened(O_WRONLY | O_APPEND), ground.piece, PIECE, EARLY) == PIECE);
}
ROW(pwritev, "`pwritev`", 0) { AT_BOTH(at) CHECK(pwritev(ground.fd, halves(), 2, at) == PIECE); }
ROW(pwritev64, "`pwritev64`", 0) { AT_BOTH(at) CHECK(pwritev64(ground.fd, halves(), 2, at) == PIECE); }
ROW(pwritev2, "`pwritev2`", 0) { AT_BOTH(at) CHECK(pwritev2(ground.fd, halves(), 2, at, 0) == PIECE); }
ROW(pwritev64v2, "`pwritev64v2`", 0) { AT_BOTH(at) CHECK(pwritev64v2(ground.fd, halves(), 2, at, 0) == PIECE); }
ROW(pwritev2_position, "`pwritev2` at -1, the position", 0) {
    AT_BOTH(at) {
        CHECK(lseek(ground.fd, at, SEEK_SET) == at);
        CHECK(pwritev2(ground.fd, halves(), 2, -1, 0) == PIECE);
    }
}
ROW(pwritev2_append, "`pwritev2`, RWF_APPEND", 0) { CHECK(pwritev2(ground.fd, halves(), 2, 0, RWF_APPEND) == PIECE); }
ROW(pwritev2_dsync, "`pwritev2`, RWF_DSYNC", 0) { AT_BOTH(at) CHECK(pwritev2(ground.fd, halves(), 2, at, RWF_DSYNC) == PIECE); }
#ifndef RWF_NOAPPEND
#define RWF_NOAPPEND 0x20
#endif
ROW(pwritev2_noappend, "`pwritev2`, RWF_NOAPPEND on an O_APPEND descriptor", 0) {
    int fd = opened(O_WRONLY | O_APPEND);
    AT_BOTH(at) CHECK(pwritev2(fd, halves(), 2, at, RWF_NOAPPEND) == PIECE);
}

#undef GROUP
#define GROUP "Descriptors that come about in other ways"
ROW(via_dup, "`write`, descriptor from `dup`", 0) { write_through(dup(ground.fd)); }
ROW(via_dup2, "`write`, descriptor from `dup2`", 0) { write_through(dup2(ground.fd, 100)); }
ROW(via_dup3, "`write`, descriptor from `dup3`", 0) { write_through(dup3(ground.fd, 100, O_CLOEXEC)); }
ROW(via_dupfd, "`write`, descriptor from `fcntl(F_DUPFD)`", 0) { write_through(fcntl(ground.fd, F_DUPFD_CLOEXEC, 200)); }
ROW(via_proc, "`write`, descriptor from `/proc/self/fd/N`", 0) {
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", ground.fd);
    write_through(open(path, O_WRONLY));
}
ROW(via_dev_fd, "`write`, descriptor from `/dev/fd/N`", 0) {
    char path[64];
    snprintf(path, sizeof path, "/dev/fd/%d", ground.fd);
    write_through(open(path, O_WRONLY));
}
ROW(via_o_path, "`write`, descriptor from O_PATH, opened again", 0) {
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", opened(O_PATH));
    write_through(open(path, O_WRONLY));
}
ROW(via_handle, "`write`, descriptor from `open_by_handle_at`", 0) {
    struct file_handle *handle = calloc(1, sizeof *handle + MAX_HANDLE_SZ);
    int mount;
    handle->handle_bytes = MAX_HANDLE_SZ;
    CHECK(name_to_handle_at(AT_FDCWD, ground.target, handle, &mount, 0) == 0);
    write_through(open_by_handle_at(ground.directory, handle, O_WRONLY));
}
ROW(via_link, "`write`, opened by a symbolic link", 0) { write_through(open(inside("symbolic"), O_WRONLY)); }
ROW(via_other_name, "`write`, opened by its other name", 0) {
    int fd = open(inside("twin"), O_WRONLY);
    CHECK(fd >= 0);
    CHECK(write(fd, ground.piece, 100) == 100);
}
ROW(via_socket, "`write`, descriptor from SCM_RIGHTS", 0) {
    int ends[2];
    CHECK(socketpair(AF_UNIX, SOCK_DGRAM, 0, ends) == 0);
    char byte = 0, control[CMSG_SPACE(sizeof(int))];
    struct iovec vector = {&byte, 1};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    *header = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int))};
    memcpy(CMSG_DATA(header), &ground.fd, sizeof(int));
    CHECK(sendmsg(ends[0], &message, 0) == 1);
    CHECK(recvmsg(ends[1], &message, 0) == 1);
    int fd;
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
    CHECK(fd != ground.fd);
    write_through(fd);
}
ROW(via_pidfd, "`write`, descriptor from `pidfd_getfd`", 0) {
    int self = (int)syscall(SYS_pidfd_open, getpid(), 0);
    CHECK(self >= 0);
    write_through((int)syscall(SYS_pidfd_getfd, self, ground.fd, 0));
}

#undef GROUP
#define GROUP "From file to file, within the kernel"
ROW(copy_file_range, "`copy_file_range` at offsets", 0) {
    AT_BOTH(at) {
        off64_t from = 0, to = at;
        CHECK(copy_file_range(ground.donor, &from, ground.fd, &to, PIECE, 0) == PIECE);
    }
}
ROW(copy_file_range_position, "`copy_file_range` at the positions", 0) {
    AT_BOTH(at) {
        CHECK(lseek(ground.fd, at, SEEK_SET) == at);
        CHECK(copy_file_range(ground.donor, NULL, ground.fd, NULL, PIECE, 0) == PIECE);
    }
}
ROW(copy_file_range_within, "`copy_file_range` within one file", 0) {
    AT_BOTH(at) {
        off64_t from = MIDDLE, to = at;
        CHECK(copy_file_range(ground.fd, &from, ground.fd, &to, PIECE, 0) == PIECE);
    }
}
ROW(sendfile, "`sendfile`", 0) {
    AT_BOTH(at) {
        off_t from = 0;
        CHECK(lseek(ground.fd, at, SEEK_SET) == at);
        CHECK(sendfile(ground.fd, ground.donor, &from, PIECE) == PIECE);
    }
}
ROW(sendfile64, "`sendfile64`", 0) {
    AT_BOTH(at) {
        CHECK(lseek(ground.fd, at, SEEK_SET) == at);
        CHECK(sendfile64(ground.fd, ground.donor, NULL, PIECE) == PIECE);
    }
}
static int full_pipe(void) {
    int ends[2];
    CHECK(pipe(ends) == 0);
    CHECK(write(ends[1], ground.piece, PIECE) == PIECE);
    return ends[0];
}
ROW(splice, "`splice` from a pipe, at an offset", 0) {
    AT_BOTH(at) {
        off64_t to = at;
        CHECK(splice(full_pipe(), NULL, ground.fd, &to, PIECE, 0) == PIECE);
    }
}
ROW(splice_position, "`splice` from a pipe, at the position", 0) {
    AT_BOTH(at) {
        CHECK(lseek(ground.fd, at, SEEK_SET) == at);
        CHECK(splice(full_pipe(), NULL, ground.fd, NULL, PIECE, 0) == PIECE);
    }
}
ROW(vmsplice, "`vmsplice`, `tee`, then `splice`", 0) {
    AT_BOTH(at) {
        int first[2], second[2];
        struct iovec vector = {ground.piece, PIECE};
        off64_t to = at;
        CHECK(pipe(first) == 0 && pipe(second) == 0);
        CHECK(vmsplice(first[1], &vector, 1, 0) == PIECE);
        CHECK(tee(first[0], second[1], PIECE, 0) == PIECE);
        CHECK(splice(second[0], NULL, ground.fd, &to, PIECE, 0) == PIECE);
    }
}
ROW(ficlone, "`ioctl(FICLONE)`", XFS) { CHECK(ioctl(ground.fd, FICLONE, ground.donor) == 0); }
ROW(ficlonerange, "`ioctl(FICLONERANGE)`", XFS) {
    AT_BOTH(at) {
        struct file_clone_range range = {ground.donor, 0, PIECE, (uint64_t)at};
        CHECK(ioctl(ground.fd, FICLONERANGE, &range) == 0);
    }
}
ROW(fideduperange, "`ioctl(FIDEDUPERANGE)`, which changes no byte", XFS | INVISIBLE) {
    CHECK(pwrite(ground.donor, ground.piece, PIECE, 0) == PIECE);
    struct file_dedupe_range *range = calloc(1, sizeof *range + sizeof range->info[0]);
    range->src_length = PIECE;
    range->dest_count = 1;
    range->info[0].dest_fd = ground.fd;
    range->info[0].dest_offset = EARLY;
    CHECK(ioctl(ground.donor, FIDEDUPERANGE, range) == 0);
}
ROW(copy_file_range_reflink, "`copy_file_range` that shares blocks", XFS) {
    AT_BOTH(at) {
        off64_t from = 0, to = at;
        CHECK(copy_file_range(ground.donor, &from, ground.fd, &to, PIECE, 0) == PIECE);
    }
}
struct exchange {
    int32_t file1_fd;
    uint32_t pad;
    uint64_t file1_offset, file2_offset, length, flags;
};
ROW(exchange_range, "`ioctl(XFS_IOC_EXCHANGE_RANGE)`", XFS) {
    struct exchange exchange = {.file1_fd = ground.donor, .length = SIZE};
    CHECK(ioctl(ground.fd, _IOW('X', 129, struct exchange), &exchange) == 0);
}
struct extents {
    uint32_t reserved, donor;
    uint64_t start, donor_start, len, moved;
};
ROW(move_extents, "`ioctl(EXT4_IOC_MOVE_EXT)`, which swaps blocks with another file", INVISIBLE) {
    struct extents extents = {.donor = (uint32_t)ground.donor, .len = SIZE / PIECE};
    CHECK(fsync(ground.fd) == 0 && fsync(ground.donor) == 0);
    CHECK(ioctl(ground.fd, _IOWR('f', 15, struct extents), &extents) == 0);
}

#undef GROUP
#define GROUP "Sizes and blocks"
ROW(ftruncate_less, "`ftruncate` to less", 0) { CHECK(ftruncate(ground.fd, MIDDLE) == 0); }
ROW(ftruncate_more, "`ftruncate` to more", 0) { CHECK(ftruncate(ground.fd, SIZE + 12345) == 0); }
ROW(ftruncate64, "`ftruncate64`, to nothing and back", 0) {
    CHECK(ftruncate64(ground.fd, 0) == 0);
    CHECK(ftruncate64(ground.fd, SIZE) == 0);
}
ROW(truncate, "`truncate`", 0) { CHECK(truncate(ground.target, EARLY) == 0); }
ROW(truncate64, "`truncate64`", 0) { CHECK(truncate64(ground.target, SIZE + 1) == 0); }
ROW(fallocate, "`fallocate` behind the end", 0) { CHECK(fallocate(ground.fd, 0, SIZE, PIECE) == 0); }
ROW(fallocate64, "`fallocate64`", 0) { CHECK(fallocate64(ground.fd, 0, SIZE, PIECE) == 0); }
ROW(fallocate_keep, "`fallocate`, KEEP_SIZE", INVISIBLE) {
    CHECK(fallocate(ground.fd, FALLOC_FL_KEEP_SIZE, SIZE, PIECE) == 0);
}
ROW(fallocate_punch, "`fallocate`, PUNCH_HOLE", 0) {
    AT_BOTH(at) CHECK(fallocate(ground.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, PIECE) == 0);
}
ROW(fallocate_zero, "`fallocate`, ZERO_RANGE", 0) {
    AT_BOTH(at) CHECK(fallocate(ground.fd, FALLOC_FL_ZERO_RANGE, at, PIECE) == 0);
}
ROW(fallocate_collapse, "`fallocate`, COLLAPSE_RANGE", 0) {
    CHECK(fallocate(ground.fd, FALLOC_FL_COLLAPSE_RANGE, EARLY, PIECE) == 0);
}
ROW(fallocate_insert, "`fallocate`, INSERT_RANGE", 0) {
    CHECK(fallocate(ground.fd, FALLOC_FL_INSERT_RANGE, EARLY, PIECE) == 0);
}
ROW(fallocate_unshare, "`fallocate`, UNSHARE_RANGE", XFS | INVISIBLE) {
    CHECK(fallocate(ground.fd, FALLOC_FL_UNSHARE_RANGE, EARLY, PIECE) == 0);
}
ROW(posix_fallocate, "`posix_fallocate`", 0) { CHECK((errno = posix_fallocate(ground.fd, SIZE, 5000)) == 0); }
ROW(posix_fallocate64, "`posix_fallocate64`", 0) { CHECK((errno = posix_fallocate64(ground.fd, SIZE, 5000)) == 0); }
