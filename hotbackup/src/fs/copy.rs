//! Copying a file.

use std::fs::Metadata;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::io::Errno;

use super::{File, OpenOptions};
use crate::intercept::{Change, around};

/// How much is copied in one call: no call may hold up a cut for long.
const PIECE: usize = 1 << 20;

/// Copies the contents and the permissions of a file, creating `to` or replacing what it held; returns how many bytes:
/// see [`std::fs::copy`].
///
/// # Errors
/// Those of std, for instance if `from` is no file; `to` may then hold a part.
pub fn copy(from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<u64> {
    let mut reader = File::open(from)?;
    let metadata = reader.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the source path is neither a regular file nor a symlink to a regular file",
        ));
    }
    let mut writer = open_for(&metadata, to.as_ref())?;
    let mut copied = 0;
    loop {
        match copy_piece(&reader, &writer) {
            // Files below /proc say that they are empty.
            Ok(0) if copied == 0 => break,
            Ok(0) => return Ok(copied),
            Ok(bytes) => copied += bytes as u64,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if copied == 0 && cannot_be_copied(&e) => break,
            Err(e) => return Err(e),
        }
    }
    read_and_write(&mut reader, &mut writer)
}

/// Opens the target with the source's permissions. What is no file keeps its own.
fn open_for(metadata: &Metadata, to: &Path) -> io::Result<File> {
    let permissions = metadata.permissions();
    let writer =
        OpenOptions::new().write(true).create(true).truncate(true).mode(permissions.mode()).open(to)?;
    if writer.metadata()?.is_file() {
        writer.set_permissions(permissions)?;
    }
    Ok(writer)
}

/// Copies from one position to the other within the kernel.
fn copy_piece(reader: &File, writer: &File) -> io::Result<usize> {
    let fd = writer.as_raw_fd();
    around(Change::Write { fd }, || {
        rustix::fs::copy_file_range(reader, None, writer, None, PIECE).map_err(io::Error::from)
    })
}

/// Whether reading and writing may do what copying within the kernel cannot.
fn cannot_be_copied(e: &io::Error) -> bool {
    matches!(
        e.raw_os_error().map(Errno::from_raw_os_error),
        Some(
            Errno::NOSYS
                | Errno::XDEV
                | Errno::INVAL
                | Errno::PERM
                | Errno::OPNOTSUPP
                | Errno::BADF
                | Errno::OVERFLOW
                | Errno::TXTBSY
        )
    )
}

fn read_and_write(reader: &mut File, writer: &mut File) -> io::Result<u64> {
    let mut buffer = vec![0; 64 << 10];
    let mut copied = 0;
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(copied),
            Ok(bytes) => {
                writer.write_all(&buffer[..bytes])?;
                copied += bytes as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}
