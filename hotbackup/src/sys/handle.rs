//! File handles: what tells an inode from a later one of the same number (name_to_handle_at(2)).

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

use syscalls::{Sysno, syscall};

/// The kernel makes none that are longer.
const LONGEST: usize = 128;

/// A file handle, which holds the inode's generation. Its fields lie as in `struct file_handle`.
#[repr(C)]
pub(crate) struct FileHandle {
    len: u32,
    kind: i32,
    bytes: [u8; LONGEST],
}

impl FileHandle {
    /// The handle of the entry `name` of `directory`, or of `directory` itself if the name is empty; a link is not followed.
    /// `None` where the filesystem has no handles.
    pub(crate) fn of(directory: BorrowedFd<'_>, name: &CStr) -> Option<FileHandle> {
        let mut handle = FileHandle { len: LONGEST as u32, kind: 0, bytes: [0; LONGEST] };
        let mut mount = MaybeUninit::<i32>::uninit();
        let flags = if name.is_empty() { libc::AT_EMPTY_PATH } else { 0 };
        // SAFETY: the kernel writes at most `len` bytes behind the header and one int to `mount`.
        let made = unsafe {
            syscall!(
                Sysno::name_to_handle_at,
                directory.as_raw_fd(),
                name.as_ptr(),
                &raw mut handle,
                mount.as_mut_ptr(),
                flags
            )
        };
        made.is_ok().then_some(handle)
    }

    /// A handle that the kernel has put into something else.
    pub(crate) fn new(kind: i32, bytes: &[u8]) -> Option<FileHandle> {
        let mut handle = FileHandle { len: u32::try_from(bytes.len()).ok()?, kind, bytes: [0; LONGEST] };
        handle.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(handle)
    }

    /// A number that stands for it.
    pub(crate) fn digest(&self) -> u64 {
        let bytes = &self.bytes[..(self.len as usize).min(LONGEST)];
        xxhash_rust::xxh3::xxh3_64_with_seed(bytes, self.kind.cast_unsigned().into())
    }
}
