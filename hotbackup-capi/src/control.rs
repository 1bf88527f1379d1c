//! `ioctl`: the few of its requests that change files.
//!
//! A request is told by its type and number alone (ioctl(2) has its size and direction above these), so that the 32-bit
//! spellings are covered as well; to take another one for it would mark too much, which is right. All other requests go
//! straight through.

use std::ffi::{c_int, c_ulong};

use hotbackup::intercept::{self, At, Change, Outcome};

use crate::meaning::{Meaning, anywhere, peek};

/// A call of `ioctl`.
pub(crate) struct Control {
    pub(crate) fd: c_int,
    pub(crate) request: c_ulong,
    pub(crate) argument: usize,
}

/// Type and number of a request.
const fn request(kind: u8, number: u8) -> u16 {
    u16::from_be_bytes([kind, number])
}

// Requests of Btrfs, two of which the kernel has made everybody's; `linux/btrfs.h`, `linux/fs.h`.
const CLONE: u16 = request(0x94, 9);
const CLONE_RANGE: u16 = request(0x94, 13);
const ENCODED_WRITE: u16 = request(0x94, 64);
const SNAPSHOT_CREATE: u16 = request(0x94, 1);
const SNAPSHOT_CREATE_2: u16 = request(0x94, 23);
const SUBVOLUME_CREATE: u16 = request(0x94, 14);
const SUBVOLUME_CREATE_2: u16 = request(0x94, 24);
const SUBVOLUME_DESTROY: u16 = request(0x94, 15);
const SUBVOLUME_DESTROY_2: u16 = request(0x94, 63);

// Flags and versions, which are not copied but move the inode's time; `linux/fs.h`, and ext4's own.
const SET_FLAGS: u16 = request(b'f', 2);
const SET_VERSION: u16 = request(b'v', 2);
const SET_VERSION_EXT4: u16 = request(b'f', 4);
const SET_ATTRIBUTES: u16 = request(b'X', 32);

// Allocation and holes in the manner of XFS, which every filesystem takes; `linux/falloc.h`, and XFS's own.
const ALLOCATE: u16 = request(b'X', 10);
const FREE: u16 = request(b'X', 11);
const ALLOCATE_64: u16 = request(b'X', 36);
const FREE_64: u16 = request(b'X', 37);
const RESERVE: u16 = request(b'X', 40);
const UNRESERVE: u16 = request(b'X', 41);
const RESERVE_64: u16 = request(b'X', 42);
const UNRESERVE_64: u16 = request(b'X', 43);
const ZERO_RANGE: u16 = request(b'X', 57);

// What exchanges bytes of two files; ext4's and XFS's own.
const MOVE_EXTENTS: u16 = request(b'f', 15);
const SWAP_BOOT: u16 = request(b'f', 17);
const SWAP_EXTENTS: u16 = request(b'X', 109);
const EXCHANGE_RANGE: u16 = request(b'X', 129);
const COMMIT_RANGE: u16 = request(b'X', 131);

impl<R: Outcome> Meaning<R> for Control {
    #[inline(always)]
    fn pass(self, real: impl FnOnce() -> R) -> R {
        let fd = self.fd;
        match self.request as u16 {
            CLONE | CLONE_RANGE | ENCODED_WRITE | ALLOCATE | FREE | ALLOCATE_64 | FREE_64 | RESERVE
            | UNRESERVE | RESERVE_64 | UNRESERVE_64 | ZERO_RANGE | SWAP_BOOT => {
                Change::WriteAny { fd }.pass(real)
            }
            SET_FLAGS | SET_VERSION | SET_VERSION_EXT4 | SET_ATTRIBUTES => {
                Change::Attributes { fd }.pass(real)
            }
            SNAPSHOT_CREATE | SNAPSHOT_CREATE_2 | SUBVOLUME_CREATE | SUBVOLUME_CREATE_2
            | SUBVOLUME_DESTROY | SUBVOLUME_DESTROY_2 => {
                Change::Create { name: At::new(fd, c"subvolume".as_ptr()) }.pass(real)
            }
            MOVE_EXTENTS | SWAP_EXTENTS | EXCHANGE_RANGE | COMMIT_RANGE => self.exchange(real),
            _ => real(),
        }
    }
}

impl Control {
    /// Both files change: each call is inside the other.
    #[cold]
    fn exchange<R: Outcome>(self, real: impl FnOnce() -> R) -> R {
        let this = Change::WriteAny { fd: self.fd };
        match self.other_file() {
            Some(fd) => Change::WriteAny { fd }.pass(move || this.pass(real)),
            None => anywhere().pass(move || this.pass(real)),
        }
    }

    /// The descriptor of the other file, which lies in the caller's memory: nobody asks the kernel for it without a session.
    fn other_file(&self) -> Option<c_int> {
        let words = intercept::is_capturing().then(|| peek::<[c_int; 6]>(self.argument as *const _))??;
        Some(match self.request as u16 {
            // `struct move_extent` begins with a reserved word.
            MOVE_EXTENTS => words[1],
            // `struct xfs_swapext` names both files, behind its version.
            SWAP_EXTENTS if words[2] == self.fd => words[4],
            SWAP_EXTENTS => words[2],
            _ => words[0],
        })
    }
}
