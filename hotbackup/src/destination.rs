//! The copy's side: claiming a destination, its staging area, and making it whole.
//!
//! Until it is published everything lies below the directory [`INCOMPLETE_MARK`] at the destination's root, so that
//! nobody takes half a copy for a whole one: `tree` mirrors the source, `limbo` holds what has no place yet, by
//! number. Publishing renames the tree's top entries to the root, syncs, and removes the mark last.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, StatxFlags, mkdirat, openat, renameat, statx, unlinkat};
use rustix::io::Errno;

use crate::backup::KeepFree;
use crate::error::{Error, Op, Result};
use crate::intercept::device;
use crate::manifest::{self, INCOMPLETE_MARK, MARK_TEXT_NAME, Mark};
use crate::sys;

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const README: &CStr = c"README.txt";
const TREE: &CStr = c"tree";
const LIMBO: &CStr = c"limbo";

/// A destination that this session has claimed.
pub(crate) struct Destination {
    pub(crate) path: PathBuf,
    root: OwnedFd,
    mark: OwnedFd,
    pub(crate) tree: OwnedFd,
    pub(crate) limbo: Arc<OwnedFd>,
}

/// Refuses a destination that is missing, no directory, or not empty. Changes nothing.
pub(crate) fn check_empty(path: &Path) -> Result<()> {
    let entries = std::fs::read_dir(path).map_err(|e| match e.raw_os_error() {
        Some(libc::ENOTDIR) => Error::DestinationNotDirectory { path: path.to_owned() },
        _ => Error::io(Op::Open, path, e),
    })?;
    let names = entries.map(|entry| entry.map(|entry| entry.file_name()));
    let mut names = names.collect::<Result<Vec<_>, _>>().map_err(|e| Error::io(Op::List, path, e))?;
    names.sort();
    if names.iter().any(|name| name == INCOMPLETE_MARK) {
        let mark = path.join(INCOMPLETE_MARK);
        let since = mark_begun(&mark);
        return Err(Error::DestinationIncomplete { path: path.to_owned(), mark, since });
    }
    match names.into_iter().next() {
        Some(found) => Err(Error::DestinationNotEmpty { path: path.to_owned(), found: found.into() }),
        None => Ok(()),
    }
}

impl Destination {
    /// Marks the destination as incomplete and makes its staging area, readable by nobody else.
    pub(crate) fn claim(path: &Path) -> Result<Destination> {
        let root = openat(CWD, path, DIRECTORY, Mode::empty()).map_err(|e| Error::io(Op::Open, path, e))?;
        let mark_path = path.join(INCOMPLETE_MARK);
        let make = |at: BorrowedFd<'_>, name: &CStr| -> Result<OwnedFd, Errno> {
            mkdirat(at, name, Mode::from_raw_mode(0o700))?;
            openat(at, name, DIRECTORY, Mode::empty())
        };
        let failed = |e: Errno| match e {
            Errno::EXIST => {
                let since = mark_begun(&mark_path);
                Error::DestinationIncomplete { path: path.to_owned(), mark: mark_path.clone(), since }
            }
            _ => Error::io(Op::Create, &mark_path, e),
        };
        let name = CString::new(INCOMPLETE_MARK).unwrap_or_default();
        let mark = make(root.as_fd(), &name).map_err(failed)?;
        let text = manifest::mark_text(&mark_path, SystemTime::now(), sys::raw::getpid());
        let claimed = (|| {
            let readme = openat(
                &mark,
                README,
                OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC,
                Mode::from_raw_mode(0o600),
            )?;
            write_all(readme.as_fd(), &text)?;
            let tree = make(mark.as_fd(), TREE)?;
            let limbo = make(mark.as_fd(), LIMBO)?;
            // The first has a journal commit all; the others then find nothing left to do.
            rustix::fs::fsync(&readme)?;
            rustix::fs::fsync(&mark)?;
            rustix::fs::fsync(&root)?;
            Ok((tree, limbo))
        })();
        let (tree, limbo) = claimed.map_err(|e: Errno| Error::io(Op::Create, &mark_path, e))?;
        Ok(Destination { path: path.to_owned(), root, mark, tree, limbo: Arc::new(limbo) })
    }

    /// Takes the mark back from a destination that nothing was copied to.
    pub(crate) fn disclaim(self) {
        for name in [TREE, LIMBO] {
            let _ = unlinkat(&self.mark, name, AtFlags::REMOVEDIR);
        }
        let _ = unlinkat(&self.mark, README, AtFlags::empty());
        let name = CString::new(INCOMPLETE_MARK).unwrap_or_default();
        let _ = unlinkat(&self.root, name.as_c_str(), AtFlags::REMOVEDIR);
    }

    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// The device number of its filesystem.
    pub(crate) fn dev(&self) -> Result<u64> {
        let found = rustix::fs::fstat(&self.root).map_err(|e| Error::io(Op::Examine, &self.path, e))?;
        Ok(found.st_dev)
    }

    /// Bytes free for us, and the reserve to be kept.
    pub(crate) fn space(&self, keep: KeepFree) -> Result<(u64, u64)> {
        let found = rustix::fs::fstatvfs(&self.root).map_err(|e| Error::io(Op::Examine, &self.path, e))?;
        let size = found.f_blocks * found.f_frsize;
        let reserve = match keep {
            KeepFree::Bytes(bytes) => bytes,
            KeepFree::Default if size < 20 << 30 => size / 20,
            KeepFree::Default => (size / 20).max(1 << 30),
        };
        Ok((found.f_bavail * found.f_frsize, reserve))
    }

    /// Writes a file of ours beside the staged tree, to be put in place by [`Destination::publish_file`]; `synced`, if the
    /// filesystem is not synced behind that.
    pub(crate) fn stage_file(
        &self,
        name: &CStr,
        synced: bool,
        fill: impl FnOnce(&mut dyn std::io::Write) -> std::io::Result<()>,
    ) -> Result<()> {
        let path = || self.path.join(INCOMPLETE_MARK).join(OsStr::from_bytes(name.to_bytes()));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = openat(&self.mark, name, flags, Mode::from_raw_mode(0o600))
            .map_err(|e| Error::io(Op::Create, path(), e))?;
        let mut buffered = std::io::BufWriter::with_capacity(1 << 18, Raw(file));
        fill(&mut buffered)
            .and_then(|()| std::io::Write::flush(&mut buffered))
            .map_err(|e| Error::io(Op::Write, path(), e))?;
        if synced {
            rustix::fs::fsync(&buffered.get_ref().0).map_err(|e| Error::io(Op::Sync, path(), e))?;
        }
        Ok(())
    }

    /// Moves a staged file to the destination's root.
    pub(crate) fn publish_file(&self, name: &CStr) -> Result<()> {
        renameat(&self.mark, name, &self.root, name)
            .map_err(|e| Error::io(Op::Rename, self.path.join(OsStr::from_bytes(name.to_bytes())), e))
    }

    /// Moves one entry of the staged tree's top to the destination's root.
    pub(crate) fn publish_entry(&self, name: &CStr) -> Result<(), Errno> {
        renameat(&self.tree, name, &self.root, name)
    }

    /// Fails if the destination no longer lies at its path.
    pub(crate) fn check_in_place(&self) -> Result<()> {
        let gone = |e| Error::io(Op::Resolve, &self.path, e);
        let wanted = StatxFlags::INO | StatxFlags::TYPE;
        let there = statx(CWD, &self.path, AtFlags::empty(), wanted).map_err(gone)?;
        let ours = statx(&self.root, c"", AtFlags::EMPTY_PATH, wanted).map_err(gone)?;
        if (device(&there), there.stx_ino) == (device(&ours), ours.stx_ino) {
            Ok(())
        } else {
            Err(gone(Errno::NOENT))
        }
    }

    /// Fails if the destination's root holds an entry that was not expected.
    pub(crate) fn check_holds_only(&self, expected: impl Fn(&[u8]) -> bool) -> Result<()> {
        let list = |e| Error::io(Op::List, &self.path, e);
        for entry in Dir::read_from(&self.root).map_err(list)? {
            let entry = entry.map_err(list)?;
            let name = entry.file_name().to_bytes();
            if !matches!(name, b"." | b"..") && !expected(name) {
                let found = OsStr::from_bytes(name).into();
                return Err(Error::DestinationNotEmpty { path: self.path.clone(), found });
            }
        }
        Ok(())
    }

    /// Syncs the whole filesystem of the destination.
    pub(crate) fn sync_all(&self) -> Result<()> {
        rustix::fs::syncfs(&self.root).map_err(|e| Error::io(Op::Sync, &self.path, e))
    }

    pub(crate) fn sync_root(&self) -> Result<()> {
        rustix::fs::fsync(&self.root).map_err(|e| Error::io(Op::Sync, &self.path, e))
    }

    /// Removes what is left of the staging area but for the mark itself.
    pub(crate) fn clear_staging(&self) -> Result<()> {
        remove_below(self.limbo.as_fd())
            .and_then(|()| remove_below(self.tree.as_fd()))
            .and_then(|()| unlinkat(&self.mark, LIMBO, AtFlags::REMOVEDIR))
            .and_then(|()| unlinkat(&self.mark, TREE, AtFlags::REMOVEDIR))
            .map_err(|e| Error::io(Op::Remove, self.path.join(INCOMPLETE_MARK), e))
    }

    /// Takes the mark away: from now on the backup counts as complete. Everything has been synced before.
    pub(crate) fn unmark(&self) -> Result<()> {
        let name = CString::new(INCOMPLETE_MARK).unwrap_or_default();
        unlinkat(&self.mark, README, AtFlags::empty())
            .and_then(|()| unlinkat(&self.root, name.as_c_str(), AtFlags::REMOVEDIR))
            .map_err(|e| Error::io(Op::Remove, self.path.join(INCOMPLETE_MARK), e))
    }
}

/// When the backup that left a mark began, if its text tells.
fn mark_begun(mark: &Path) -> Option<String> {
    let text = std::fs::read(mark.join(MARK_TEXT_NAME)).ok()?;
    Some(Mark::parse(&text)?.begun)
}

/// Removes everything below a directory of our own staging area.
fn remove_below(directory: BorrowedFd<'_>) -> Result<(), Errno> {
    let entries: Vec<CString> = Dir::read_from(directory)?
        .filter_map(|entry| entry.ok().map(|entry| entry.file_name().to_owned()))
        .filter(|name| name.as_bytes() != b"." && name.as_bytes() != b"..")
        .collect();
    for name in entries {
        match unlinkat(directory, &name, AtFlags::empty()) {
            Err(Errno::ISDIR | Errno::PERM) => {
                let below = openat(directory, &name, DIRECTORY, Mode::empty())?;
                remove_below(below.as_fd())?;
                unlinkat(directory, &name, AtFlags::REMOVEDIR)?;
            }
            done => done?,
        }
    }
    Ok(())
}

/// A descriptor to write to by raw system calls: std's `File` would go through the host's hooks.
pub(crate) struct Raw(pub(crate) OwnedFd);

impl std::io::Write for Raw {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Ok(rustix::io::write(&self.0, bytes)?)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn write_all(file: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        let done = rustix::io::write(file, bytes)?;
        bytes = &bytes[done..];
    }
    Ok(())
}
