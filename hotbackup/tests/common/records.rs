//! Files of increasing numbers, as records of 8 bytes, written by captured calls.

use std::os::fd::RawFd;
use std::path::Path;
use std::sync::Mutex;

use super::calls::{self, Name};

pub const RECORD: usize = 8;

#[derive(Clone, Copy, Debug)]
pub enum How {
    /// Descriptors in append mode, shared by all threads.
    Append,
    /// `pwrite` to the next place of the file.
    At,
    /// `write` at the position of a shared descriptor.
    Position,
}

/// A file of records; its lock orders the writes to it where their places are counted.
pub struct Target {
    pub fd: RawFd,
    len: Mutex<i64>,
}

impl Target {
    pub fn open(path: &Path, how: How) -> Target {
        let name = calls::c(path.to_str().expect("an ordinary path"));
        let mut flags = libc::O_CREAT | libc::O_RDWR;
        if matches!(how, How::Append) {
            flags |= libc::O_APPEND;
        }
        let file = Name { dir: libc::AT_FDCWD, path: &name };
        let fd = calls::openat(file, flags, 0o600).expect("a file of records");
        Target { fd: fd as RawFd, len: Mutex::new(0) }
    }

    pub fn put(&self, how: How, number: u64) {
        let record = number.to_be_bytes();
        let written = match how {
            How::Append | How::Position => calls::write(self.fd, &record),
            How::At => {
                let mut len = self.len.lock().expect("no panic while writing");
                let written = calls::pwrite(self.fd, &record, *len);
                *len += RECORD as i64;
                written
            }
        };
        assert_eq!(written, Ok(RECORD as i64), "the write of record {number}");
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = calls::close(self.fd);
    }
}

/// The numbers in a copied file.
pub fn records(path: &Path) -> Vec<u64> {
    let data = std::fs::read(path).expect("a copied file can be read");
    assert_eq!(data.len() % RECORD, 0, "{} ends in a torn record", path.display());
    let number = |record: &[u8]| u64::from_be_bytes(record.try_into().expect("eight bytes"));
    data.chunks(RECORD).map(number).collect()
}
