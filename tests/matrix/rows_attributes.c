/* Modes, owners, times, extended attributes and flags. */
#include "matrix.h"

#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/time.h>
#include <sys/xattr.h>
#include <utime.h>

static const struct timespec old[2] = {{1000000000, 123456789}, {1100000000, 987654321}};
static const struct timeval old_us[2] = {{1000000000, 123456}, {1100000000, 987654}};

#define GROUP "Modes and owners"
ROW(chmod, "`chmod`", 0) { CHECK(chmod(ground.target, 04711) == 0); }
ROW(lchmod, "`lchmod`", 0) { CHECK(lchmod(ground.target, 0711) == 0); }
ROW(fchmod, "`fchmod`", 0) { CHECK(fchmod(ground.fd, 0711) == 0); }
ROW(fchmodat, "`fchmodat`", 0) { CHECK(fchmodat(ground.directory, "symbolic", 0711, 0) == 0); }
ROW(fchmodat_nofollow, "`fchmodat`, AT_SYMLINK_NOFOLLOW", 0) {
    CHECK(fchmodat(ground.directory, "target", 0711, AT_SYMLINK_NOFOLLOW) == 0);
}
ROW(chmod_directory, "`chmod` of a directory", 0) { CHECK(chmod(inside("directory"), 0700) == 0); }
ROW(chown, "`chown`", 0) { CHECK(chown(ground.target, 1, 1) == 0); }
ROW(lchown, "`lchown` of a symbolic link", 0) { CHECK(lchown(inside("symbolic"), 1, 1) == 0); }
ROW(fchown, "`fchown`", 0) { CHECK(fchown(ground.fd, 1, (gid_t)-1) == 0); }
ROW(fchownat, "`fchownat`", 0) { CHECK(fchownat(ground.directory, "target", (uid_t)-1, 1, 0) == 0); }
ROW(fchownat_nofollow, "`fchownat`, AT_SYMLINK_NOFOLLOW", 0) {
    CHECK(fchownat(ground.directory, "symbolic", 1, 1, AT_SYMLINK_NOFOLLOW) == 0);
}
ROW(fchownat_empty, "`fchownat`, AT_EMPTY_PATH", 0) { CHECK(fchownat(ground.fd, "", 1, 1, AT_EMPTY_PATH) == 0); }

#undef GROUP
#define GROUP "Times"
ROW(utime, "`utime`", 0) {
    struct utimbuf times = {1000000000, 1100000000};
    CHECK(utime(ground.target, &times) == 0);
}
ROW(utime_now, "`utime`, now", 0) { CHECK(utime(ground.target, NULL) == 0); }
ROW(utimes, "`utimes`", 0) { CHECK(utimes(ground.target, old_us) == 0); }
ROW(lutimes, "`lutimes` of a symbolic link", 0) { CHECK(lutimes(inside("symbolic"), old_us) == 0); }
ROW(futimes, "`futimes`", 0) { CHECK(futimes(ground.fd, old_us) == 0); }
ROW(futimesat, "`futimesat`", 0) { CHECK(futimesat(ground.directory, "target", old_us) == 0); }
ROW(futimens, "`futimens`", 0) { CHECK(futimens(ground.fd, old) == 0); }
ROW(utimensat, "`utimensat`", 0) { CHECK(utimensat(ground.directory, "symbolic", old, 0) == 0); }
ROW(utimensat_nofollow, "`utimensat`, AT_SYMLINK_NOFOLLOW", 0) {
    CHECK(utimensat(ground.directory, "symbolic", old, AT_SYMLINK_NOFOLLOW) == 0);
}
ROW(utimensat_omit, "`utimensat`, UTIME_OMIT: only the time of access", 0) {
    struct timespec times[2] = {old[0], {0, UTIME_OMIT}};
    CHECK(utimensat(AT_FDCWD, ground.target, times, 0) == 0);
}
ROW(utimensat_directory, "`utimensat` of a directory", 0) { CHECK(utimensat(AT_FDCWD, inside("directory"), old, 0) == 0); }

#undef GROUP
#define GROUP "Extended attributes and flags"
static void give_attribute(void) {
    CHECK(setxattr(ground.target, "user.given", "before", 6, 0) == 0);
}
static const struct {
    uint32_t version;
    struct {
        uint16_t tag, rights;
        uint32_t id;
    } entries[5];
} acl = {2, {{1, 6, -1u}, {2, 4, 1}, {4, 0, -1u}, {16, 4, -1u}, {32, 0, -1u}}};
static const uint32_t capability[5] = {0x02000001, 1 << 10, 0, 0, 0};

ROW(setxattr, "`setxattr`", 0) { CHECK(setxattr(ground.target, "user.new", "value", 5, 0) == 0); }
ROW(lsetxattr, "`lsetxattr`", 0) { CHECK(lsetxattr(ground.target, "user.new", "value", 5, 0) == 0); }
ROW(fsetxattr, "`fsetxattr`", 0) { CHECK(fsetxattr(ground.fd, "user.new", "value", 5, 0) == 0); }
PREPARED(removexattr, "`removexattr`", 0, give_attribute) { CHECK(removexattr(ground.target, "user.given") == 0); }
PREPARED(lremovexattr, "`lremovexattr`", 0, give_attribute) { CHECK(lremovexattr(ground.target, "user.given") == 0); }
PREPARED(fremovexattr, "`fremovexattr`", 0, give_attribute) { CHECK(fremovexattr(ground.fd, "user.given") == 0); }
ROW(setxattr_acl, "`setxattr` of an ACL", 0) {
    CHECK(setxattr(ground.target, "system.posix_acl_access", &acl, sizeof acl, 0) == 0);
}
ROW(setxattr_capability, "`setxattr` of a capability", 0) {
    CHECK(setxattr(ground.target, "security.capability", capability, sizeof capability, 0) == 0);
}
ROW(setxattr_directory, "`setxattr` of a directory", 0) {
    CHECK(setxattr(inside("directory"), "user.new", "value", 5, 0) == 0);
}
ROW(fs_ioc_setflags, "`ioctl(FS_IOC_SETFLAGS)`; flags are not kept", INVISIBLE) {
    int flags;
    CHECK(ioctl(ground.fd, FS_IOC_GETFLAGS, &flags) == 0);
    flags |= FS_NODUMP_FL;
    CHECK(ioctl(ground.fd, FS_IOC_SETFLAGS, &flags) == 0);
}
ROW(fs_ioc_fssetxattr, "`ioctl(FS_IOC_FSSETXATTR)`; likewise", INVISIBLE) {
    struct fsxattr flags;
    CHECK(ioctl(ground.fd, FS_IOC_FSGETXATTR, &flags) == 0);
    flags.fsx_xflags |= FS_XFLAG_NODUMP;
    CHECK(ioctl(ground.fd, FS_IOC_FSSETXATTR, &flags) == 0);
}
