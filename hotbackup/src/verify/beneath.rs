//! Opens what lies beneath a directory, by way of plain directories only.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

/// The longest path that one call takes, with its NUL.
const PATH_MAX: usize = 4096;

/// An `O_PATH` descriptor of `below`, which is made of plain names (`root` itself if there is none). A symbolic link in
/// the middle is an error (`ENOTDIR` or `ELOOP`), one at the end is opened itself.
pub(super) fn open(root: BorrowedFd<'_>, below: &Path) -> Result<OwnedFd, Errno> {
    if below.as_os_str().is_empty() {
        return openat(root, c".", OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    if below.as_os_str().len() >= PATH_MAX {
        return step_by_step(root, below);
    }
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match openat2(root, below, flags, Mode::empty(), resolve) {
        // EPERM: old sandboxes refuse calls that they do not know.
        Err(Errno::NOSYS | Errno::PERM | Errno::AGAIN) => step_by_step(root, below),
        other => other,
    }
}

fn step_by_step(root: BorrowedFd<'_>, below: &Path) -> Result<OwnedFd, Errno> {
    let mut parts = below.as_os_str().as_bytes().split(|&b| b == b'/').peekable();
    let mut at: Option<OwnedFd> = None;
    while let Some(part) = parts.next() {
        if part.is_empty() || part == b"." || part == b".." {
            return Err(Errno::XDEV);
        }
        let mut flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        flags.set(OFlags::DIRECTORY, parts.peek().is_some());
        let dir = at.as_ref().map_or(root, AsFd::as_fd);
        at = Some(openat(dir, part, flags, Mode::empty())?);
    }
    at.ok_or(Errno::NOENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_open_the_same_and_no_way_leads_out() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir_all(dir.path().join("in/a/b")).expect("mkdir");
        std::fs::write(dir.path().join("in/a/file"), "x").expect("written");
        std::fs::write(dir.path().join("secret"), "x").expect("written");
        for (target, name) in [("..", "in/up"), ("a", "in/link"), ("/", "in/a/root"), ("self", "in/self")] {
            std::os::unix::fs::symlink(target, dir.path().join(name)).expect("symlink");
        }
        let root =
            openat(rustix::fs::CWD, dir.path().join("in"), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
                .expect("opened");
        for (below, found) in [
            ("a/b", true),
            ("a/file", true),
            ("up", true),
            ("link/file", false),
            ("up/secret", false),
            ("a/root/etc", false),
            ("../secret", false),
            ("a/file/x", false),
            ("none", false),
            ("self/self", false),
        ] {
            assert_eq!(open(root.as_fd(), Path::new(below)).is_ok(), found, "{below}");
            assert_eq!(step_by_step(root.as_fd(), Path::new(below)).is_ok(), found, "{below}");
        }
    }
}
