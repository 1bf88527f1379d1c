//! What fanotify(7) tells: which files of a filesystem were closed after having been open for writing, and by whom.

use std::mem::offset_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use libc::{fanotify_event_info_fid as Info, fanotify_event_metadata as Event};
use rustix::io::Errno;
use syscalls::{Sysno, syscall};

use super::handle::FileHandle;

fn errno(e: syscalls::Errno) -> Errno {
    Errno::from_raw_os_error(e.into_raw())
}

/// A group whose events name files by their handles (since Linux 5.1): events that open their files would keep alive what the
/// host deletes, and make their reader free it.
pub(crate) fn group(unlimited: bool) -> Result<OwnedFd, Errno> {
    let mut flags = libc::FAN_CLASS_NOTIF | libc::FAN_REPORT_FID | libc::FAN_CLOEXEC | libc::FAN_NONBLOCK;
    if unlimited {
        // Our own copies are told of as well, thousands at once: the usual length of the queue would lose some.
        flags |= libc::FAN_UNLIMITED_QUEUE;
    }
    // SAFETY: takes no pointers.
    let fd = unsafe { syscall!(Sysno::fanotify_init, flags, libc::O_RDONLY) }.map_err(errno)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(RawFd::try_from(fd).unwrap_or(-1)) })
}

/// Has `group` told of every file that is closed after writing on the filesystem of `directory`.
pub(crate) fn watch(group: BorrowedFd<'_>, directory: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM;
    let events = libc::FAN_CLOSE_WRITE;
    // SAFETY: the path is NUL-terminated and only read.
    unsafe {
        syscall!(Sysno::fanotify_mark, group.as_raw_fd(), flags, events, directory.as_raw_fd(), c".".as_ptr())
    }
    .map(drop)
    .map_err(errno)
}

/// Reads the events that wait in a group; it does not go on for those that come meanwhile. `event` is told the file, if there
/// is one (an overflow of the queue has none), and the process.
pub(crate) fn read(group: BorrowedFd<'_>, mut event: impl FnMut(Option<&FileHandle>, u32)) {
    // The kernel counts so many bytes for an event, whatever else comes with it.
    let waiting = rustix::io::ioctl_fionread(group).unwrap_or(0) / size_of::<Event>() as u64;
    let mut buffer = [0; 1 << 14];
    let mut seen = 0;
    while seen < waiting
        && let Ok(len @ 1..) = rustix::io::read(group, &mut buffer)
    {
        let mut rest = &buffer[..len];
        while let Some((one, others)) = split(rest) {
            seen += 1;
            rest = others;
            let overflowed = word::<8>(one, offset_of!(Event, mask))
                .is_some_and(|mask| u64::from_ne_bytes(mask) & libc::FAN_Q_OVERFLOW != 0);
            let file = file_of(one);
            if overflowed || file.is_some() {
                let pid = word(one, offset_of!(Event, pid)).map_or(0, u32::from_ne_bytes);
                event(file.as_ref().filter(|_| !overflowed), pid);
            }
        }
    }
}

/// The first of several events.
fn split(events: &[u8]) -> Option<(&[u8], &[u8])> {
    let len = u32::from_ne_bytes(word(events, offset_of!(Event, event_len))?) as usize;
    events.split_at_checked(len.max(size_of::<Event>()))
}

/// The handle in the first record behind an event.
fn file_of(event: &[u8]) -> Option<FileHandle> {
    let len = u16::from_ne_bytes(word(event, offset_of!(Event, metadata_len))?);
    let info = event.get(usize::from(len)..)?;
    if *info.first()? != libc::FAN_EVENT_INFO_TYPE_FID {
        return None;
    }
    let handle = info.get(offset_of!(Info, handle)..)?;
    let (len, kind) = (u32::from_ne_bytes(word(handle, 0)?), i32::from_ne_bytes(word(handle, 4)?));
    FileHandle::new(kind, handle.get(8..)?.get(..len as usize)?)
}

fn word<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}
