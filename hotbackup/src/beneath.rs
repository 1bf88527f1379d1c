//! Opening what lies beneath a directory, and nothing else.
//!
//! No symbolic link is followed and no `..` leads out (openat2(2), `RESOLVE_BENEATH` and `RESOLVE_NO_SYMLINKS`); where
//! the kernel has no openat2, the path is walked component by component. Mount points are crossed. Nothing here
//! allocates, so that it can be used in the freeze.

use std::cell::Cell;
use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, Statx, StatxFlags, openat, openat2, statx};
use rustix::io::Errno;

use crate::sys;
use crate::sys::handle::FileHandle;

/// The longest path handed to the kernel at once.
const LONGEST: usize = 4000;

/// How a directory on the way is opened.
const STEP: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

static NO_OPENAT2: AtomicBool = AtomicBool::new(false);

/// Opens the path in `path`, which is relative and holds no empty component, beneath `root`. The empty path is the
/// root itself. `path` is used as scratch space and is the same afterwards.
pub(crate) fn open(
    root: BorrowedFd<'_>,
    path: &mut [u8],
    flags: OFlags,
    mode: Mode,
) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let len = path.iter().position(|&b| b == 0).ok_or(Errno::INVAL)?;
    if len == 0 {
        return openat(root, c".", flags, mode);
    }
    if !NO_OPENAT2.load(Ordering::Relaxed) {
        match by_stretches(root, &mut path[..=len], flags, mode) {
            Err(Errno::NOSYS | Errno::PERM) => NO_OPENAT2.store(true, Ordering::Relaxed),
            found => return found,
        }
    }
    by_components(root, &mut path[..=len], flags, mode)
}

/// Whether the kernel, and whoever stands before it, lets us use openat2(2).
pub(crate) fn has_openat2() -> bool {
    !matches!(one(CWD, c".", STEP, Mode::empty()), Err(Errno::NOSYS | Errno::PERM))
}

/// Opens as much of the path at once as the kernel takes.
fn by_stretches(root: BorrowedFd<'_>, path: &mut [u8], flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    let mut held: Option<OwnedFd> = None;
    let mut start = 0;
    while path.len() - start > LONGEST {
        let slash =
            path[start..start + LONGEST].iter().rposition(|&b| b == b'/').ok_or(Errno::NAMETOOLONG)?;
        let slash = start + slash;
        path[slash] = 0;
        let at = held.as_ref().map_or(root, AsFd::as_fd);
        let next = c_str(&path[start..]).and_then(|stretch| one(at, stretch, STEP, Mode::empty()));
        path[slash] = b'/';
        held = Some(next?);
        start = slash + 1;
    }
    one(held.as_ref().map_or(root, AsFd::as_fd), c_str(&path[start..])?, flags, mode)
}

fn one(root: BorrowedFd<'_>, path: &CStr, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    loop {
        match openat2(root, path, flags, mode, how) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            found => return found,
        }
    }
}

fn by_components(root: BorrowedFd<'_>, path: &mut [u8], flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    let mut held: Option<OwnedFd> = None;
    let mut start = 0;
    while let Some(slash) = path[start..].iter().position(|&b| b == b'/').map(|at| start + at) {
        path[slash] = 0;
        let at = held.as_ref().map_or(root, AsFd::as_fd);
        let next = c_str(&path[start..]).and_then(|name| openat(at, name, STEP, Mode::empty()));
        path[slash] = b'/';
        held = Some(next?);
        start = slash + 1;
    }
    openat(held.as_ref().map_or(root, AsFd::as_fd), c_str(&path[start..])?, flags, mode)
}

fn c_str(path: &[u8]) -> Result<&CStr, Errno> {
    CStr::from_bytes_until_nul(path).map_err(|_| Errno::INVAL)
}

thread_local! {
    static TABLE: Cell<Option<Table>> = const { Cell::new(None) };
}

/// The descriptor table of the engine threads, as a directory of /proc: the long way there takes longer than opening a file.
/// It is for the threads that share the table alone.
#[derive(Clone, Copy)]
pub(crate) struct Table(BorrowedFd<'static>);

impl Table {
    /// The table of the calling thread, which is not the host's.
    pub(crate) fn open() -> Result<Table, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(CWD, c"/proc/thread-self/fd", flags, Mode::empty()).map(sys::raw::keep_open).map(Table)
    }

    /// Has the calling thread, which shares the table, use it in [`reopen`].
    pub(crate) fn use_here(self) {
        TABLE.set(Some(self));
    }
}

/// Opens once more, with `flags`, what a descriptor of the calling thread's own table (an `O_PATH` one, say) refers to.
pub(crate) fn reopen(fd: BorrowedFd<'_>, flags: OFlags) -> Result<OwnedFd, Errno> {
    if let Some(Table(table)) = TABLE.get() {
        let number = crate::tree::Name::number(fd.as_raw_fd().cast_unsigned());
        return openat(table, number.as_c_str(), flags | OFlags::CLOEXEC, Mode::empty());
    }
    let mut path = [0u8; 40];
    let prefix = b"/proc/thread-self/fd/";
    path[..prefix.len()].copy_from_slice(prefix);
    let number = crate::tree::Name::number(fd.as_raw_fd().cast_unsigned());
    path[prefix.len()..prefix.len() + number.as_bytes().len()].copy_from_slice(number.as_bytes());
    openat(CWD, c_str(&path)?, flags | OFlags::CLOEXEC, Mode::empty())
}

/// Opens for reading, with `more` flags, disturbing neither the access time (where that is allowed) nor a program at the
/// other end.
pub(crate) fn reopen_to_read(fd: BorrowedFd<'_>, more: OFlags) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | more;
    match reopen(fd, flags | OFlags::NOATIME) {
        Err(Errno::PERM) => reopen(fd, flags),
        found => found,
    }
}

/// Whether an error means that a name no longer leads where it did: not a failure, for the directory is marked.
pub(crate) fn is_vanished(errno: Errno) -> bool {
    matches!(errno, Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV | Errno::STALE)
}

/// Looks at the entry `name` of `directory`, or at `directory` itself if the name is empty, without following a link.
pub(crate) fn look(directory: BorrowedFd<'_>, name: &CStr, wanted: StatxFlags) -> Result<Statx, Errno> {
    let flags = if name.is_empty() { AtFlags::EMPTY_PATH } else { AtFlags::SYMLINK_NOFOLLOW };
    statx(directory, name, flags, wanted | StatxFlags::INO | StatxFlags::TYPE)
}

/// Examines the entry `name` of `directory`, or `directory` itself if the name is empty, without following a link.
/// The second value tells this inode from another of the same number: a digest of its file handle, or where the
/// filesystem has none, its birth time.
pub(crate) fn examine(
    directory: BorrowedFd<'_>,
    name: &CStr,
    wanted: StatxFlags,
) -> Result<(Statx, u64), Errno> {
    let found = look(directory, name, wanted | StatxFlags::BTIME)?;
    let birth = found.stx_btime.tv_sec.wrapping_mul(1_000_000_000) + i64::from(found.stx_btime.tv_nsec);
    let handle = FileHandle::of(directory, name);
    let digest = handle.map_or(birth.cast_unsigned(), |handle| handle.digest());
    Ok((found, digest))
}
