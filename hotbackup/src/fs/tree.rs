//! Making and removing directories with all that is above or below them. Each step is a captured call of its own.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;
use rustix::path::Arg;

use super::{File, at_path, remove_file};
use crate::intercept::{At, Change, around};

/// How to create a directory, like [`std::fs::DirBuilder`]. [`DirBuilderExt`] works on it too.
#[derive(Debug)]
pub struct DirBuilder {
    inner: fs::DirBuilder,
    recursive: bool,
}

impl Default for DirBuilder {
    fn default() -> Self {
        DirBuilder::new()
    }
}

impl DirBuilder {
    /// For one directory, with the permissions that the umask leaves.
    pub fn new() -> DirBuilder {
        DirBuilder { inner: fs::DirBuilder::new(), recursive: false }
    }

    /// Creates the directories above as well, and succeeds if the directory exists.
    pub fn recursive(&mut self, recursive: bool) -> &mut Self {
        self.recursive = recursive;
        self
    }

    /// Creates a directory: see [`std::fs::DirBuilder::create`].
    ///
    /// # Errors
    /// Those of std, for instance if something of another kind has the name.
    pub fn create(&self, path: impl AsRef<Path>) -> io::Result<()> {
        let path = path.as_ref();
        if self.recursive { self.create_all(path) } else { self.create_one(path) }
    }

    fn create_one(&self, path: &Path) -> io::Result<()> {
        at_path(path, |name| Change::Create { name }, || self.inner.create(path))
    }

    fn create_all(&self, path: &Path) -> io::Result<()> {
        // From the lowest up until one can be made, and down again.
        let mut missing = Vec::new();
        let all = path.ancestors().take_while(|above| !above.as_os_str().is_empty());
        for above in all {
            match self.create_or_find(above) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => missing.push(above),
                Err(e) => return Err(e),
                Ok(()) => break,
            }
        }
        missing.iter().rev().try_for_each(|below| self.create_or_find(below))
    }

    fn create_or_find(&self, path: &Path) -> io::Result<()> {
        match self.create_one(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound && path.is_dir() => Ok(()),
            result => result,
        }
    }
}

impl DirBuilderExt for DirBuilder {
    fn mode(&mut self, mode: u32) -> &mut Self {
        self.inner.mode(mode);
        self
    }
}

/// Creates a directory and those above it that are missing: see [`std::fs::create_dir_all`].
///
/// # Errors
/// Those of std; some of the directories may then have been created.
pub fn create_dir_all(path: impl AsRef<Path>) -> io::Result<()> {
    DirBuilder::new().recursive(true).create(path)
}

/// Removes a directory with all that is in it, or a symbolic link: see [`std::fs::remove_dir_all`]. No symbolic link is
/// followed, nor one that is put in the way meanwhile.
///
/// # Errors
/// Those of std; a part may then have been removed.
pub fn remove_dir_all(path: impl AsRef<Path>) -> io::Result<()> {
    let path = path.as_ref();
    if fs::symlink_metadata(path)?.is_symlink() {
        return remove_file(path);
    }
    // symlink_metadata has refused what is no C string.
    let removed = path.into_with_c_str(|name| Ok(remove_all(None, name)));
    removed.map_err(io::Error::from)?
}

fn remove_all(parent: Option<BorrowedFd<'_>>, name: &CStr) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = match openat(parent.unwrap_or(CWD), name, flags, Mode::empty()) {
        // What is no directory has no entries; but the one that we were asked to remove has to be one.
        Err(Errno::NOTDIR | Errno::LOOP) if parent.is_some() => {
            return remove(parent, name, AtFlags::empty());
        }
        opened => Closing(Some(opened?)),
    };
    for entry in Dir::read_from(dir.as_fd())? {
        let entry = entry?;
        let child = entry.file_name();
        if child == c"." || child == c".." {
            continue;
        }
        let removed = match entry.file_type() {
            FileType::Directory | FileType::Unknown => remove_all(Some(dir.as_fd()), child),
            _ => remove(Some(dir.as_fd()), child, AtFlags::empty()),
        };
        or_gone(removed)?;
    }
    drop(dir);
    or_gone(remove(parent, name, AtFlags::REMOVEDIR))
}

fn remove(parent: Option<BorrowedFd<'_>>, name: &CStr, flags: AtFlags) -> io::Result<()> {
    let dir = parent.unwrap_or(CWD);
    let change = Change::Remove { name: At::new(dir.as_raw_fd(), name.as_ptr()) };
    around(change, || unlinkat(dir, name, flags).map_err(io::Error::from))
}

/// What someone else has removed meanwhile is removed.
fn or_gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// A directory's descriptor, whose end sessions know of like that of a [`File`].
struct Closing(Option<OwnedFd>);

impl Closing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_ref().map_or(CWD, AsFd::as_fd)
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        drop(self.0.take().map(File::from));
    }
}
