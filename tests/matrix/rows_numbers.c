/* The same changes by syscall(2), and by the instruction itself, which no library sees. */
#include "matrix.h"

#include <linux/openat2.h>
#include <sys/mman.h>
#include <sys/uio.h>

#ifndef SYS_fchmodat2
#define SYS_fchmodat2 452
#endif
#ifndef SYS_setxattrat
#define SYS_setxattrat 463
#endif
#ifndef SYS_removexattrat
#define SYS_removexattrat 466
#endif
#ifndef SYS_file_setattr
#define SYS_file_setattr 469
#endif

static const struct timespec old[2] = {{1000000000, 123456789}, {1100000000, 987654321}};
static const struct open_how creating = {.flags = O_CREAT | O_EXCL | O_WRONLY, .mode = 0600};
static const struct xattr_args {
    uint64_t value;
    uint32_t size, flags;
} attribute = {0, 0, 0};
static const struct {
    uint64_t xflags;
    uint32_t extsize, nextents, projid, cowextsize;
} no_dump = {.xflags = 0x80};

static struct iovec *whole(void) {
    static struct iovec vector;
    vector = (struct iovec){ground.piece, PIECE};
    return &vector;
}

#define GROUP "By number: `syscall()`"
#define CALL(...) CHECK(syscall(__VA_ARGS__) >= 0)
ROW(n_write, "`syscall(SYS_write)`", 0) {
    AT_BOTH(at) {
        CHECK(lseek(ground.fd, at, SEEK_SET) == at);
        CALL(SYS_write, ground.fd, ground.piece, PIECE);
    }
}
ROW(n_pwrite64, "`syscall(SYS_pwrite64)`", 0) { AT_BOTH(at) CALL(SYS_pwrite64, ground.fd, ground.piece, PIECE, at); }
ROW(n_writev, "`syscall(SYS_writev)`", 0) {
    AT_BOTH(at) {
        CHECK(lseek(ground.fd, at, SEEK_SET) == at);
        CALL(SYS_writev, ground.fd, whole(), 1);
    }
}
ROW(n_pwritev, "`syscall(SYS_pwritev)`", 0) { AT_BOTH(at) CALL(SYS_pwritev, ground.fd, whole(), 1, at, 0); }
ROW(n_pwritev2, "`syscall(SYS_pwritev2)`, RWF_APPEND", 0) { CALL(SYS_pwritev2, ground.fd, whole(), 1, 0, 0, RWF_APPEND); }
ROW(n_ftruncate, "`syscall(SYS_ftruncate)`", 0) { CALL(SYS_ftruncate, ground.fd, MIDDLE); }
ROW(n_truncate, "`syscall(SYS_truncate)`", 0) { CALL(SYS_truncate, ground.target, MIDDLE); }
ROW(n_fallocate, "`syscall(SYS_fallocate)`, ZERO_RANGE", 0) {
    AT_BOTH(at) CALL(SYS_fallocate, ground.fd, FALLOC_FL_ZERO_RANGE, at, (long)PIECE);
}
ROW(n_openat, "`syscall(SYS_openat)`, O_TRUNC", 0) { CALL(SYS_openat, AT_FDCWD, ground.target, O_WRONLY | O_TRUNC); }
ROW(n_openat2, "`syscall(SYS_openat2)`, O_CREAT", 0) {
    CALL(SYS_openat2, ground.directory, "new", &creating, sizeof creating);
}
ROW(n_copy_file_range, "`syscall(SYS_copy_file_range)`", 0) {
    AT_BOTH(at) {
        off64_t from = 0, to = at;
        CALL(SYS_copy_file_range, ground.donor, &from, ground.fd, &to, (long)PIECE, 0);
    }
}
ROW(n_sendfile, "`syscall(SYS_sendfile)`", 0) {
    AT_BOTH(at) {
        CHECK(lseek(ground.fd, at, SEEK_SET) == at);
        CALL(SYS_sendfile, ground.fd, ground.donor, NULL, (long)PIECE);
    }
}
ROW(n_splice, "`syscall(SYS_splice)`", 0) {
    int ends[2];
    CHECK(pipe(ends) == 0);
    AT_BOTH(at) {
        off64_t to = at;
        CHECK(write(ends[1], ground.piece, PIECE) == PIECE);
        CALL(SYS_splice, ends[0], NULL, ground.fd, &to, (long)PIECE, 0);
    }
}
ROW(n_renameat2, "`syscall(SYS_renameat2)`", 0) {
    CALL(SYS_renameat2, ground.directory, "victim", ground.directory, "new", 0);
}
ROW(n_unlinkat, "`syscall(SYS_unlinkat)`", 0) { CALL(SYS_unlinkat, ground.directory, "victim", 0); }
ROW(n_linkat, "`syscall(SYS_linkat)`", 0) { CALL(SYS_linkat, ground.directory, "target", ground.directory, "new", 0); }
ROW(n_symlinkat, "`syscall(SYS_symlinkat)`", 0) { CALL(SYS_symlinkat, "victim", ground.directory, "new"); }
ROW(n_mkdirat, "`syscall(SYS_mkdirat)`", 0) { CALL(SYS_mkdirat, ground.directory, "new", 0700); }
ROW(n_mknodat, "`syscall(SYS_mknodat)`", 0) { CALL(SYS_mknodat, ground.directory, "new", S_IFIFO | 0600, 0); }
ROW(n_fchmod, "`syscall(SYS_fchmod)`", 0) { CALL(SYS_fchmod, ground.fd, 0711); }
ROW(n_fchmodat2, "`syscall(SYS_fchmodat2)`", 0) { CALL(SYS_fchmodat2, ground.directory, "target", 0711, 0); }
ROW(n_fchownat, "`syscall(SYS_fchownat)`", 0) { CALL(SYS_fchownat, ground.directory, "target", 1, 1, 0); }
ROW(n_utimensat, "`syscall(SYS_utimensat)`", 0) { CALL(SYS_utimensat, ground.directory, "target", old, 0); }
ROW(n_setxattr, "`syscall(SYS_setxattr)`", 0) { CALL(SYS_setxattr, ground.target, "user.new", "value", 5L, 0); }
ROW(n_setxattrat, "`syscall(SYS_setxattrat)`", 0) {
    CALL(SYS_setxattrat, ground.directory, "target", 0, "user.new", &attribute, sizeof attribute);
}
ROW(n_file_setattr, "`syscall(SYS_file_setattr)`; flags are not kept", INVISIBLE) {
    CALL(SYS_file_setattr, ground.directory, "target", &no_dump, sizeof no_dump, 0);
}
#if defined(__x86_64__)
ROW(n_rename, "`syscall(SYS_rename)`", 0) { CALL(SYS_rename, inside("victim"), inside("new")); }
ROW(n_unlink, "`syscall(SYS_unlink)`", 0) { CALL(SYS_unlink, inside("victim")); }
ROW(n_creat, "`syscall(SYS_creat)`", 0) { CALL(SYS_creat, ground.target, 0600); }
ROW(n_chmod, "`syscall(SYS_chmod)`", 0) { CALL(SYS_chmod, ground.target, 0711); }
#endif

#undef GROUP
#define GROUP "Raw system calls: the instruction itself, as in Go"
ROW(r_write, "raw `write`", 0) {
    AT_BOTH(at) {
        CHECK(lseek(ground.fd, at, SEEK_SET) == at);
        CHECK_RAW(RAW_3(SYS_write, ground.fd, ground.piece, PIECE));
    }
}
ROW(r_pwrite64, "raw `pwrite64`", 0) { AT_BOTH(at) CHECK_RAW(RAW_4(SYS_pwrite64, ground.fd, ground.piece, PIECE, at)); }
ROW(r_pwrite64_early, "raw `pwrite64`, only where it has been read", 0) {
    CHECK_RAW(RAW_4(SYS_pwrite64, ground.fd, ground.piece, PIECE, EARLY));
}
ROW(r_writev, "raw `writev`", 0) {
    AT_BOTH(at) {
        CHECK(lseek(ground.fd, at, SEEK_SET) == at);
        CHECK_RAW(RAW_3(SYS_writev, ground.fd, whole(), 1));
    }
}
ROW(r_pwritev2, "raw `pwritev2`", 0) { AT_BOTH(at) CHECK_RAW(RAW_6(SYS_pwritev2, ground.fd, whole(), 1, at, 0, 0)); }
ROW(r_ftruncate, "raw `ftruncate`", 0) { CHECK_RAW(RAW_2(SYS_ftruncate, ground.fd, MIDDLE)); }
ROW(r_fallocate, "raw `fallocate`, PUNCH_HOLE", 0) {
    AT_BOTH(at) CHECK_RAW(RAW_4(SYS_fallocate, ground.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, PIECE));
}
ROW(r_copy_file_range, "raw `copy_file_range`", 0) {
    AT_BOTH(at) {
        off64_t from = 0, to = at;
        CHECK_RAW(RAW_6(SYS_copy_file_range, ground.donor, &from, ground.fd, &to, PIECE, 0));
    }
}
ROW(r_open_trunc, "raw `openat`, O_TRUNC", 0) { CHECK_RAW(RAW_4(SYS_openat, AT_FDCWD, ground.target, O_WRONLY | O_TRUNC, 0)); }
ROW(r_open_creat, "raw `openat`, O_CREAT", 0) {
    CHECK_RAW(RAW_4(SYS_openat, ground.directory, "new", O_WRONLY | O_CREAT | O_EXCL, 0600));
}
ROW(r_opened, "raw `openat`, then `pwrite`", 0) {
    int fd = (int)CHECK_RAW(RAW_4(SYS_openat, AT_FDCWD, ground.target, O_WRONLY, 0));
    AT_BOTH(at) CHECK(pwrite(fd, ground.piece, PIECE, at) == PIECE);
}
ROW(r_rename, "raw `renameat2`", 0) {
    CHECK_RAW(RAW_5(SYS_renameat2, ground.directory, "victim", ground.directory, "directory/new", 0));
}
ROW(r_rename_directory, "raw `renameat2` of a directory", 0) {
    CHECK_RAW(RAW_5(SYS_renameat2, ground.directory, "directory", ground.directory, "empty/new", 0));
}
ROW(r_exchange, "raw `renameat2`, RENAME_EXCHANGE", 0) {
    CHECK_RAW(RAW_5(SYS_renameat2, ground.directory, "victim", ground.directory, "target", 2));
}
ROW(r_unlink, "raw `unlinkat`", 0) { CHECK_RAW(RAW_3(SYS_unlinkat, ground.directory, "victim", 0)); }
ROW(r_unlink_target, "raw `unlinkat` of the file that is copied", 0) {
    CHECK_RAW(RAW_3(SYS_unlinkat, ground.directory, "target", 0));
}
ROW(r_link, "raw `linkat`", 0) { CHECK_RAW(RAW_5(SYS_linkat, ground.directory, "target", ground.directory, "new", 0)); }
ROW(r_symlink, "raw `symlinkat`", 0) { CHECK_RAW(RAW_3(SYS_symlinkat, "victim", ground.directory, "new")); }
ROW(r_mkdir, "raw `mkdirat`", 0) { CHECK_RAW(RAW_3(SYS_mkdirat, ground.directory, "directory/new", 0700)); }
ROW(r_chmod, "raw `fchmod`", 0) { CHECK_RAW(RAW_2(SYS_fchmod, ground.fd, 0711)); }
ROW(r_chown, "raw `fchown`", 0) { CHECK_RAW(RAW_3(SYS_fchown, ground.fd, 1, 1)); }
ROW(r_utimensat, "raw `utimensat`, which gives a past time", 0) {
    CHECK_RAW(RAW_4(SYS_utimensat, AT_FDCWD, ground.target, old, 0));
}
ROW(r_write_and_undo, "raw `pwrite64`, then raw `utimensat` back to the time before", 0) {
    struct stat before;
    CHECK(fstat(ground.fd, &before) == 0);
    struct timespec times[2] = {before.st_atim, before.st_mtim};
    AT_BOTH(at) CHECK_RAW(RAW_4(SYS_pwrite64, ground.fd, ground.piece, PIECE, at));
    CHECK_RAW(RAW_4(SYS_utimensat, ground.fd, NULL, times, 0));
}
ROW(r_setxattr, "raw `setxattr`", 0) { CHECK_RAW(RAW_5(SYS_setxattr, ground.target, "user.new", "value", 5, 0)); }
