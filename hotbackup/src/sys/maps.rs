//! A question about a process's mappings that the kernel answers without printing them all.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::ioctl::{Opcode, opcode};
use syscalls::{Sysno, syscall};

/// `struct procmap_query`: its size, what is asked for, from which address on; then what was found.
type Query = [u64; 13];
const PROCMAP_QUERY: Opcode = opcode::read_write::<Query>(b'f', 17);
const WRITABLE: u64 = 1 << 1;
const SHARED: u64 = 1 << 3;
const COVERING_OR_NEXT: u64 = 1 << 4;
const FILE_BACKED: u64 = 1 << 5;

/// Whether a file is mapped shared and writable in the process whose `/proc/PID/maps` is open as `maps`. `None` if the kernel
/// does not tell (before Linux 6.11).
pub(crate) fn holds_shared_writable(maps: BorrowedFd<'_>) -> Option<bool> {
    let mut query: Query = [0; 13];
    query[0] = size_of::<Query>() as u64;
    query[1] = WRITABLE | SHARED | COVERING_OR_NEXT | FILE_BACKED;
    // SAFETY: the kernel reads and writes the query, whose size it is told, and nothing else: no room for names is offered.
    match unsafe { syscall!(Sysno::ioctl, maps.as_raw_fd(), PROCMAP_QUERY, query.as_mut_ptr()) } {
        Ok(_) => Some(true),
        // No such mapping, or no process any more.
        Err(syscalls::Errno::ENOENT | syscalls::Errno::ESRCH) => Some(false),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    #[test]
    fn a_process_without_shared_files_says_so() {
        let maps = std::fs::File::open("/proc/self/maps").expect("the maps of this process");
        let text = std::fs::read_to_string("/proc/self/maps").expect("the same");
        let is_shared = |line: &str| {
            line.split(' ').nth(1).is_some_and(|mode| mode.starts_with("rw") && mode.ends_with('s'))
        };
        let told = super::holds_shared_writable(maps.as_fd());
        assert!(told.is_none_or(|told| told == text.lines().any(is_shared)), "{text}");
    }
}
