//! A call of the host that alters a file, as data.
//!
//! A hook builds a [`Change`] from its arguments and hands it to [`intercept::around`](crate::intercept::around)
//! together with the real call. It says which file or which directory entries the call may alter, never what is
//! written: the source file itself is the truth, and the engine reads it from there.

use std::ffi::{c_char, c_int};
use std::os::fd::RawFd;

/// A path as a system call takes it: relative to a directory descriptor, or to the current directory
/// (`libc::AT_FDCWD`).
///
/// The pointer comes from the host and may be anything; it is only ever read by way of the kernel, which refuses a bad
/// one, so it is never dereferenced.
#[derive(Clone, Copy, Debug)]
pub struct At {
    /// The directory descriptor.
    pub dir: RawFd,
    /// The NUL-terminated path.
    pub path: *const c_char,
}

impl At {
    /// A path relative to the current directory.
    #[inline]
    pub const fn cwd(path: *const c_char) -> At {
        At { dir: libc::AT_FDCWD, path }
    }

    /// A path relative to `dir`.
    #[inline]
    pub const fn new(dir: RawFd, path: *const c_char) -> At {
        At { dir, path }
    }
}

/// What a captured call may alter. Over-stating is always right, under-stating never.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Change {
    /// Bytes at the descriptor's position (`write`, `writev`), or at the end if it is in append mode.
    /// The call's result is the number of bytes.
    Write {
        /// The descriptor written to.
        fd: RawFd,
    },
    /// Bytes at a given offset (`pwrite`, `pwritev`); at the end if the descriptor is in append mode (pwrite(2), BUGS).
    /// An offset of -1 means the position, as in pwritev2(2).
    WriteAt {
        /// The descriptor written to.
        fd: RawFd,
        /// The offset in bytes.
        at: i64,
    },
    /// Bytes at the end, whatever the descriptor's mode (`RWF_APPEND`).
    Append {
        /// The descriptor written to.
        fd: RawFd,
    },
    /// `ftruncate`.
    Resize {
        /// The descriptor of the file.
        fd: RawFd,
        /// The new size in bytes.
        len: i64,
    },
    /// `truncate`.
    ResizePath {
        /// The file.
        file: At,
        /// The new size in bytes.
        len: i64,
    },
    /// `fallocate` in any mode, `posix_fallocate` (mode 0).
    Allocate {
        /// The descriptor of the file.
        fd: RawFd,
        /// The mode, as in fallocate(2).
        mode: c_int,
        /// Where the range begins.
        at: i64,
        /// How long it is.
        len: i64,
    },
    /// Bytes anywhere in the file, in a way that the arguments do not tell.
    WriteAny {
        /// The descriptor of the file.
        fd: RawFd,
    },
    /// A stream of the C library (`fclose`, `freopen`) that may write what it has held back, and may have written before.
    Stream {
        /// Its descriptor.
        fd: RawFd,
    },
    /// `open` and its family; the result is the descriptor. Only `O_CREAT`, `O_TRUNC` and `O_TMPFILE` change anything.
    Open {
        /// The file.
        file: At,
        /// The flags, as in open(2).
        flags: c_int,
    },
    /// An entry comes into being: `mkdir`, `mknod`, `symlink`, `mkfifo`, `mkstemp` and their families.
    Create {
        /// The new entry. For a template, its directory is what counts.
        name: At,
    },
    /// An entry goes: `unlink`, `rmdir`, `remove`.
    Remove {
        /// The entry.
        name: At,
    },
    /// `rename` and its family, exchanging ones too.
    Rename {
        /// The entry that moves.
        from: At,
        /// Where it moves to.
        to: At,
    },
    /// `link`, `linkat`.
    Link {
        /// The file.
        from: At,
        /// Its new entry.
        to: At,
        /// Whether `from` is followed if it is a symbolic link (`AT_SYMLINK_FOLLOW`).
        follow: bool,
    },
    /// Mode, owner, times or extended attributes by descriptor.
    Attributes {
        /// The descriptor of the file.
        fd: RawFd,
    },
    /// Mode, owner, times or extended attributes by path.
    AttributesPath {
        /// The file.
        file: At,
        /// Whether a symbolic link is followed.
        follow: bool,
    },
}

/// What came of a captured call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// It succeeded; the number is its result (bytes written, a descriptor, or 0).
    Success(u64),
    /// It failed with this errno.
    Failure(c_int),
}

/// The result type of a real call, as far as the engine needs to understand it.
pub trait Outcome {
    /// Whether the call succeeded, and with what.
    fn done(&self) -> Done;
}

macro_rules! signed_outcome {
    ($($t:ty),*) => {$(
        impl Outcome for $t {
            #[inline]
            fn done(&self) -> Done {
                u64::try_from(*self).map_or_else(|_| Done::Failure(crate::sys::errno::get()), Done::Success)
            }
        }
    )*};
}
signed_outcome!(i32, i64, isize);

/// For calls that return their error number and leave errno alone (`posix_fallocate`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct ErrorNumber(pub c_int);

impl Outcome for ErrorNumber {
    #[inline]
    fn done(&self) -> Done {
        if self.0 == 0 { Done::Success(0) } else { Done::Failure(self.0) }
    }
}

impl<T> Outcome for *mut T {
    #[inline]
    fn done(&self) -> Done {
        if self.is_null() { Done::Failure(crate::sys::errno::get()) } else { Done::Success(0) }
    }
}

impl Outcome for std::io::Result<()> {
    fn done(&self) -> Done {
        match self {
            Ok(()) => Done::Success(0),
            Err(e) => Done::Failure(e.raw_os_error().unwrap_or(libc::EIO)),
        }
    }
}

impl Outcome for std::io::Result<usize> {
    fn done(&self) -> Done {
        match self {
            Ok(n) => Done::Success(*n as u64),
            Err(e) => Done::Failure(e.raw_os_error().unwrap_or(libc::EIO)),
        }
    }
}
