//! The writing half of [`std::fs`], captured: for Rust programs that want hot backups of files they write themselves.
//!
//! Put `hotbackup::fs` where `std::fs` was. Everything has the name, the arguments, the effect and the errors that it
//! has there; what only reads is std's own. While a [`Session`](crate::Session) runs, it knows of every change that is
//! made this way, and for the instant of the cut calls wait. Without a session, a call does what std's would and
//! almost nothing else.
//!
//! What is written in other ways, such as by [`std::fs::File`], by C libraries, or to a file descriptor taken from a
//! [`File`], is not captured: a session detects it and copies such files again, or fails and names them.
//!
//! ```
//! use std::io::Write;
//! use hotbackup::fs;
//!
//! # let dir = tempfile::tempdir()?;
//! # let dir = dir.path();
//! fs::create_dir_all(dir.join("a/b"))?;
//! let mut file = fs::File::create(dir.join("a/b/data"))?;
//! file.write_all(b"captured")?;
//! file.sync_all()?;
//! fs::rename(dir.join("a/b/data"), dir.join("a/data"))?;
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! # Threads
//! Everything here may be used by any thread at any time, as in std.

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use rustix::path::Arg;

use crate::intercept::{At, Change, Outcome, around};

mod copy;
mod file;
mod tree;

pub use copy::copy;
pub use file::{File, OpenOptions};
pub use std::fs::{
    DirEntry, FileTimes, FileType, Metadata, Permissions, ReadDir, canonicalize, exists, metadata, read,
    read_dir, read_link, read_to_string, symlink_metadata,
};
pub use tree::{DirBuilder, create_dir_all, remove_dir_all};

/// Makes a captured call on one path. A path that no system call would take is left to `real` to refuse.
fn at_path<T>(path: &Path, change: impl Fn(At) -> Change, real: impl Fn() -> io::Result<T>) -> io::Result<T>
where
    io::Result<T>: Outcome,
{
    let mut result = None;
    let _ = path.into_with_c_str(|text| {
        result = Some(around(change(At::cwd(text.as_ptr())), &real));
        Ok(())
    });
    result.unwrap_or_else(&real)
}

/// Makes a captured call on two paths.
fn at_paths<T>(
    from: &Path,
    to: &Path,
    change: impl Fn(At, At) -> Change,
    real: impl Fn() -> io::Result<T>,
) -> io::Result<T>
where
    io::Result<T>: Outcome,
{
    let mut result = None;
    let _ = from.into_with_c_str(|from| {
        to.into_with_c_str(|to| {
            let change = change(At::cwd(from.as_ptr()), At::cwd(to.as_ptr()));
            result = Some(around(change, &real));
            Ok(())
        })
    });
    result.unwrap_or_else(&real)
}

/// Writes `contents` to the file at `path`, creating it or replacing what it held: see [`std::fs::write`].
///
/// # Errors
/// Those of [`File::create`] and of writing; the file may then hold a part.
pub fn write(path: impl AsRef<Path>, contents: impl AsRef<[u8]>) -> io::Result<()> {
    use std::io::Write;
    File::create(path)?.write_all(contents.as_ref())
}

/// Creates an empty directory: see [`std::fs::create_dir`].
///
/// # Errors
/// Those of std, for instance if `path` exists or its parent does not.
pub fn create_dir(path: impl AsRef<Path>) -> io::Result<()> {
    DirBuilder::new().create(path)
}

/// Removes a file or a symbolic link: see [`std::fs::remove_file`].
///
/// # Errors
/// Those of std, for instance if `path` is a directory or does not exist.
pub fn remove_file(path: impl AsRef<Path>) -> io::Result<()> {
    let path = path.as_ref();
    at_path(path, |name| Change::Remove { name }, || std::fs::remove_file(path))
}

/// Removes an empty directory: see [`std::fs::remove_dir`].
///
/// # Errors
/// Those of std, for instance if the directory is not empty.
pub fn remove_dir(path: impl AsRef<Path>) -> io::Result<()> {
    let path = path.as_ref();
    at_path(path, |name| Change::Remove { name }, || std::fs::remove_dir(path))
}

/// Renames a file or directory, replacing what has the new name: see [`std::fs::rename`].
///
/// # Errors
/// Those of std, for instance if the two lie on different filesystems.
pub fn rename(from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<()> {
    let (from, to) = (from.as_ref(), to.as_ref());
    at_paths(from, to, |from, to| Change::Rename { from, to }, || std::fs::rename(from, to))
}

/// Gives a file another name: see [`std::fs::hard_link`]. A symbolic link is linked itself.
///
/// # Errors
/// Those of std, for instance if `link` exists.
pub fn hard_link(original: impl AsRef<Path>, link: impl AsRef<Path>) -> io::Result<()> {
    let (original, link) = (original.as_ref(), link.as_ref());
    let change = |from, to| Change::Link { from, to, follow: false };
    at_paths(original, link, change, || std::fs::hard_link(original, link))
}

/// Creates a symbolic link: see [`std::os::unix::fs::symlink`].
///
/// # Errors
/// Those of std, for instance if `link` exists.
pub fn symlink(original: impl AsRef<Path>, link: impl AsRef<Path>) -> io::Result<()> {
    let (original, link) = (original.as_ref(), link.as_ref());
    let real = || std::os::unix::fs::symlink(original, link);
    at_path(link, |name| Change::Create { name }, real)
}

/// Changes the permissions of what `path` leads to: see [`std::fs::set_permissions`].
///
/// # Errors
/// Those of std, for instance if the file belongs to someone else.
pub fn set_permissions(path: impl AsRef<Path>, permissions: Permissions) -> io::Result<()> {
    let path = path.as_ref();
    attributes(path, true, || std::fs::set_permissions(path, permissions.clone()))
}

/// Changes the owner of what `path` leads to; `None` leaves one as it is: see [`std::os::unix::fs::chown`].
///
/// # Errors
/// Those of std: most processes may not.
pub fn chown(path: impl AsRef<Path>, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
    let path = path.as_ref();
    attributes(path, true, || std::os::unix::fs::chown(path, uid, gid))
}

/// Changes the owner of what `path` names, be it a symbolic link: see [`std::os::unix::fs::lchown`].
///
/// # Errors
/// Those of std: most processes may not.
pub fn lchown(path: impl AsRef<Path>, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
    let path = path.as_ref();
    attributes(path, false, || std::os::unix::fs::lchown(path, uid, gid))
}

/// Changes the owner of an open file: see [`std::os::unix::fs::fchown`].
///
/// # Errors
/// Those of std: most processes may not.
pub fn fchown(file: &File, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
    let fd = file.as_raw_fd();
    around(Change::Attributes { fd }, || std::os::unix::fs::fchown(file, uid, gid))
}

fn attributes(path: &Path, follow: bool, real: impl Fn() -> io::Result<()>) -> io::Result<()> {
    at_path(path, |file| Change::AttributesPath { file, follow }, real)
}

#[cfg(test)]
mod tests;
