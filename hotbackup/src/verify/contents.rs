//! Reads files block by block and compares their checksums. Holes are not read.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, SeekFrom, StatxFlags, openat, seek, statx};
use rustix::io::{Errno, pread};

use crate::attributes::ByPath;
use crate::manifest::{BLOCK_BYTES, Run, block_digest, zeros_digest};

/// A file that cannot be read from `at` on.
pub(super) struct Unreadable {
    pub(super) at: u64,
    pub(super) errno: Errno,
}

/// Room for one block.
pub(super) fn buffer() -> Vec<u8> {
    vec![0; BLOCK_BYTES]
}

/// Opens the file or directory that an `O_PATH` descriptor refers to for reading, without touching its access time if
/// that is allowed.
pub(super) fn reopen(fd: &OwnedFd, more: OFlags) -> Result<OwnedFd, Errno> {
    let path = ByPath::new(fd.as_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC | more;
    match openat(CWD, path.as_c_str(), flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => openat(CWD, path.as_c_str(), flags, Mode::empty()),
        other => other,
    }
}

/// Compares the first `comparable` bytes of a file with the checksums of a file of `size` bytes, which are for all its
/// blocks. Returns the offset of the first block that differs.
pub(super) fn compare(
    fd: &OwnedFd,
    runs: &[Run],
    size: u64,
    comparable: u64,
    buffer: &mut [u8],
) -> Result<Option<u64>, Unreadable> {
    if comparable == 0 {
        return Ok(None);
    }
    let fd = reopen(fd, OFlags::empty()).map_err(|errno| Unreadable { at: 0, errno })?;
    let mut data = Data { fd: &fd, next: 0, asked: false };
    let mut at = 0u64;
    for run in runs {
        let end = at.saturating_add(run.blocks.saturating_mul(BLOCK_BYTES as u64)).min(size);
        while at < end {
            if at >= comparable {
                return Ok(None);
            }
            // What lies between here and the next data is a hole: blocks of zeros.
            let hole_end = data.next_from(at).min(end);
            let whole = (hole_end - at) / BLOCK_BYTES as u64;
            if run.digest == zeros_digest(BLOCK_BYTES) && whole > 0 {
                at += whole * BLOCK_BYTES as u64;
                continue;
            }
            let len = usize::try_from((end - at).min(BLOCK_BYTES as u64)).unwrap_or(BLOCK_BYTES);
            if !block(&fd, at, run.digest, &mut buffer[..len], hole_end - at >= len as u64)? {
                return Ok(Some(at));
            }
            at += len as u64;
        }
    }
    Ok(None)
}

/// Whether the block at `at` has this checksum, or the checksum of a whole block of zeros and only zeros.
fn block(fd: &OwnedFd, at: u64, digest: u64, block: &mut [u8], hole: bool) -> Result<bool, Unreadable> {
    if hole {
        return Ok(digest == zeros_digest(block.len()) || digest == zeros_digest(BLOCK_BYTES));
    }
    let mut have = 0;
    while have < block.len() {
        match pread(fd, &mut block[have..], at + have as u64) {
            // It became shorter while it was read.
            Ok(0) => return Ok(false),
            Ok(got) => have += got,
            Err(Errno::INTR) => {}
            Err(errno) => {
                let at = at + have as u64;
                return Err(Unreadable { at, errno });
            }
        }
    }
    let is = block_digest(block);
    Ok(is == digest || (digest == zeros_digest(BLOCK_BYTES) && is == zeros_digest(block.len())))
}

/// Where the data of a file lies.
struct Data<'a> {
    fd: &'a OwnedFd,
    /// Where the next data begins, as far as was asked.
    next: u64,
    asked: bool,
}

impl Data<'_> {
    /// Where data begins at or behind `at`; `at` itself where the filesystem cannot tell.
    fn next_from(&mut self, at: u64) -> u64 {
        if !self.asked || self.next < at {
            self.asked = true;
            self.next = match seek(self.fd, SeekFrom::Data(at)) {
                Ok(next) => next,
                Err(Errno::NXIO) => u64::MAX,
                Err(_) => at,
            };
        }
        self.next.max(at)
    }
}

/// The contents of a small file, if it is one.
pub(super) fn small_text(path: &Path) -> Option<Vec<u8>> {
    const MOST: usize = 4096;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = openat(CWD, path, flags, Mode::empty()).ok()?;
    let found = statx(&fd, c"", AtFlags::EMPTY_PATH, StatxFlags::TYPE).ok()?;
    if FileType::from_raw_mode(found.stx_mode.into()) != FileType::RegularFile {
        return None;
    }
    let fd = reopen(&fd, OFlags::empty()).ok()?;
    let mut text = vec![0; MOST];
    let len = pread(&fd, &mut text[..], 0).ok()?;
    text.truncate(len);
    Some(text)
}
