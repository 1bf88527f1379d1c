//! The numbers of the system calls in the hook table, by the names that the C library gives them.
//!
//! Those that the kernel has had since before it had aarch64 do not exist there: each then is a number of its own that no call
//! has, so that the table is the same everywhere.
#![allow(non_upper_case_globals, reason = "they have the names of the C library")]

use std::ffi::c_long;

pub(crate) use libc::{
    SYS_close, SYS_close_range, SYS_copy_file_range, SYS_dup3, SYS_fallocate, SYS_fchmod, SYS_fchmodat,
    SYS_fchown, SYS_fchownat, SYS_fremovexattr, SYS_fsetxattr, SYS_ftruncate, SYS_ioctl, SYS_linkat,
    SYS_lremovexattr, SYS_lseek, SYS_lsetxattr, SYS_mkdirat, SYS_mknodat, SYS_munmap, SYS_open_by_handle_at,
    SYS_openat, SYS_openat2, SYS_pwrite64, SYS_pwritev, SYS_pwritev2, SYS_removexattr, SYS_renameat,
    SYS_renameat2, SYS_sendfile, SYS_setxattr, SYS_splice, SYS_symlinkat, SYS_truncate, SYS_unlinkat,
    SYS_utimensat, SYS_write, SYS_writev,
};

// Younger than names that libc has everywhere; the same on every architecture.
pub(crate) const SYS_fchmodat2: c_long = 452;
pub(crate) const SYS_setxattrat: c_long = 463;
pub(crate) const SYS_removexattrat: c_long = 466;
pub(crate) const SYS_file_setattr: c_long = 469;

#[cfg(target_arch = "x86_64")]
pub(crate) use libc::{
    SYS_chmod, SYS_chown, SYS_creat, SYS_dup2, SYS_futimesat, SYS_lchown, SYS_link, SYS_mkdir, SYS_mknod,
    SYS_open, SYS_rename, SYS_rmdir, SYS_symlink, SYS_unlink, SYS_utime, SYS_utimes,
};

#[cfg(not(target_arch = "x86_64"))]
pub(crate) use absent::*;

#[cfg(not(target_arch = "x86_64"))]
mod absent {
    use std::ffi::c_long;

    macro_rules! absent {
        ($($name:ident = $number:literal),*) => { $( pub(crate) const $name: c_long = $number; )* };
    }
    absent!(
        SYS_chmod = -1001,
        SYS_chown = -1002,
        SYS_creat = -1003,
        SYS_dup2 = -1004,
        SYS_futimesat = -1005,
        SYS_lchown = -1006,
        SYS_link = -1007,
        SYS_mkdir = -1008,
        SYS_mknod = -1009,
        SYS_open = -1010,
        SYS_rename = -1011,
        SYS_rmdir = -1012,
        SYS_symlink = -1013,
        SYS_unlink = -1014,
        SYS_utime = -1015,
        SYS_utimes = -1016
    );
}
