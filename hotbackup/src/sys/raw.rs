//! System calls that rustix does not offer, made without libc, which may be hooked.

use std::ffi::{CStr, c_char, c_void};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use rustix::fs::{AtFlags, Statx, StatxFlags};
use rustix::io::Errno;
use rustix::thread::{MembarrierCommand, membarrier as sys_membarrier};
use syscalls::{Sysno, syscall};

fn errno(e: syscalls::Errno) -> Errno {
    Errno::from_raw_os_error(e.into_raw())
}

/// Registers this process for [`membarrier`]. False if the kernel does not allow it.
pub(crate) fn can_fence() -> bool {
    sys_membarrier(MembarrierCommand::RegisterPrivateExpedited).is_ok()
        && sys_membarrier(MembarrierCommand::PrivateExpedited).is_ok()
}

/// Makes every thread of the process pass a full fence (16 us were seen).
pub(crate) fn membarrier() {
    // `can_fence` has tried it; the kernel knows no other reason to refuse.
    let _ = sys_membarrier(MembarrierCommand::PrivateExpedited);
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
}

/// The process id as the kernel knows it.
#[inline]
pub(crate) fn getpid() -> u32 {
    rustix::process::getpid().as_raw_nonzero().get().cast_unsigned()
}

/// The thread id.
pub(crate) fn gettid() -> u32 {
    rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned()
}

/// Asks statx(2) and has `read` see what the kernel answers where it lies: rustix's copies it.
#[inline]
pub(crate) fn statx_in_place<T>(
    dir: BorrowedFd<'_>,
    path: &CStr,
    flags: AtFlags,
    wanted: StatxFlags,
    read: impl FnOnce(&Statx) -> T,
) -> Result<T, Errno> {
    let mut found = MaybeUninit::<Statx>::uninit();
    let (flags, wanted) = (flags.bits(), wanted.bits());
    // SAFETY: the path ends with NUL; `Statx` is the kernel's struct, which rustix hands to it in the same way.
    unsafe { syscall!(Sysno::statx, dir.as_raw_fd(), path.as_ptr(), flags, wanted, found.as_mut_ptr()) }
        .map_err(errno)?;
    // SAFETY: the kernel has filled it.
    Ok(read(unsafe { found.assume_init_ref() }))
}

/// Copies the NUL-terminated string at `path` into `buffer` by way of the kernel, so that a bad pointer is an error
/// and not a fault. Returns its length without the NUL.
pub(crate) fn read_path(path: *const c_char, buffer: &mut [u8]) -> Result<usize, Errno> {
    read_path_of(getpid(), path as usize, buffer)
}

/// Copies memory at `address`, which may be anything, by way of the kernel: as much as `buffer` takes, or an error.
pub(crate) fn read_memory(address: u64, buffer: &mut [u8]) -> Result<(), Errno> {
    let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast::<c_void>(), iov_len: buffer.len() };
    let remote = libc::iovec { iov_base: address as *mut c_void, iov_len: buffer.len() };
    // SAFETY: the kernel writes at most the length of the buffer to it, and refuses a remote address that is not readable.
    let got =
        unsafe { syscall!(Sysno::process_vm_readv, getpid(), &raw const local, 1, &raw const remote, 1, 0) }
            .map_err(errno)?;
    if got == buffer.len() { Ok(()) } else { Err(Errno::FAULT) }
}

/// Where the mapping of a ring of io_uring has what is in it (`struct io_uring_params`).
#[derive(Clone, Copy)]
pub(crate) struct RingPlaces {
    /// The head, the tail and the mask of submissions.
    pub(crate) sq_head: u32,
    pub(crate) sq_tail: u32,
    pub(crate) sq_mask: u32,
    /// The tail and the mask of ends, and the ends.
    pub(crate) cq_tail: u32,
    pub(crate) cq_mask: u32,
    pub(crate) ends: u32,
}

/// Finds that out by making a ring (io_uring_setup(2)). For engine threads: the ring takes a descriptor for a moment.
pub(crate) fn ring_places() -> Result<RingPlaces, Errno> {
    // Ten words, then the offsets of submissions (head, tail, ...) and of ends, ten words each.
    let mut parameters = [0u32; 30];
    // SAFETY: the kernel reads and writes the parameters, and makes a descriptor that nobody else knows.
    let ring = unsafe { syscall!(Sysno::io_uring_setup, 1, parameters.as_mut_ptr()) }.map_err(errno)?;
    let ring = RawFd::try_from(ring).map_err(|_| Errno::BADF)?;
    // SAFETY: the kernel has just given it to us.
    drop(unsafe { OwnedFd::from_raw_fd(ring) });
    Ok(RingPlaces {
        sq_head: parameters[10],
        sq_tail: parameters[11],
        sq_mask: parameters[12],
        cq_tail: parameters[21],
        cq_mask: parameters[22],
        ends: parameters[25],
    })
}

/// Flags of io_uring_enter(2): wait for ends; the ring is named by the number that its descriptor was registered under.
pub(crate) const ENTER_GETEVENTS: u32 = 1 << 0;
pub(crate) const ENTER_REGISTERED_RING: u32 = 1 << 4;

/// How io_uring_enter(2) is told of a ring.
#[derive(Clone, Copy)]
pub(crate) struct Entering {
    pub(crate) fd: RawFd,
    pub(crate) is_registered: bool,
}

impl Entering {
    /// Waits for so many ends; with 0 only takes what is there.
    pub(crate) fn wait_for(self, least: u32) -> Result<u32, Errno> {
        let registered = if self.is_registered { ENTER_REGISTERED_RING } else { 0 };
        enter_ring(self.fd, 0, least, ENTER_GETEVENTS | registered, 0, 0)
    }
}

/// io_uring_enter(2), as a call of the host's or a part of one.
pub(crate) fn enter_ring(
    fd: RawFd,
    to_submit: u32,
    least: u32,
    flags: u32,
    argument: usize,
    size: usize,
) -> Result<u32, Errno> {
    // SAFETY: the kernel only reads the argument, if it can. What it writes to is what the requests in the ring say, and whoever put
    // them there has answered for that.
    let done = unsafe { syscall!(Sysno::io_uring_enter, fd, to_submit, least, flags, argument, size) };
    done.map(|count| count as u32).map_err(errno)
}

/// The inode of a descriptor of the host's, if it is that of a ring of io_uring.
pub(crate) fn inode_of_ring(fd: RawFd) -> Option<u64> {
    use rustix::fs::{AtFlags, CWD, StatxFlags, readlinkat_raw, statx};
    let path = ProcPath::new().text("/proc/self/fd/").number(u32::try_from(fd).ok()?);
    let mut name = [MaybeUninit::uninit(); 32];
    let (name, _) = readlinkat_raw(CWD, path.as_c_str(), &mut name).ok()?;
    if &*name != b"anon_inode:[io_uring]" {
        return None;
    }
    statx(CWD, path.as_c_str(), AtFlags::empty(), StatxFlags::INO).ok().map(|found| found.stx_ino)
}

/// Whether [`read_path`] works here: a sandbox may forbid it.
pub(crate) fn can_read_paths() -> bool {
    read_path(c"/".as_ptr(), &mut [0; 8]) == Ok(1)
}

fn read_path_of(pid: u32, address: usize, buffer: &mut [u8]) -> Result<usize, Errno> {
    let mut have = 0;
    while have < buffer.len() {
        // Never reads across a page boundary in one go: what lies behind the string may not be mapped.
        let from = address.checked_add(have).ok_or(Errno::FAULT)?;
        let piece = (4096 - from % 4096).min(buffer.len() - have).min(if have == 0 { 256 } else { 4096 });
        let local = libc::iovec { iov_base: buffer[have..].as_mut_ptr().cast::<c_void>(), iov_len: piece };
        let remote = libc::iovec { iov_base: from as *mut c_void, iov_len: piece };
        // SAFETY: the kernel writes at most `piece` bytes to the buffer, and refuses a remote address that is not
        // readable.
        let got =
            unsafe { syscall!(Sysno::process_vm_readv, pid, &raw const local, 1, &raw const remote, 1, 0) }
                .map_err(errno)?;
        if let Some(end) = buffer[have..have + got].iter().position(|&b| b == 0) {
            return Ok(have + end);
        }
        have += got;
        if got == 0 {
            return Err(Errno::FAULT);
        }
    }
    Err(Errno::NAMETOOLONG)
}

/// Gives the calling thread a descriptor table of its own, with nothing of the host's in it (close_range(2)).
pub(crate) fn leave_descriptor_table() -> Result<(), Errno> {
    const CLOSE_RANGE_UNSHARE: u32 = 2;
    // SAFETY: takes no pointers. The descriptors closed are those of a private copy of the table, which only the
    // calling engine thread sees and which nothing has been opened in.
    unsafe { syscall!(Sysno::close_range, 0u32, u32::MAX, CLOSE_RANGE_UNSHARE) }.map_err(errno)?;
    occupy_low_descriptors()
}

/// Numbers below this are what libraries take for themselves when a process starts.
const LOW_DESCRIPTORS: u64 = 256;

/// How many descriptors this process may have; the limit holds for each table that it has.
pub(crate) fn most_descriptors() -> u64 {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Occupies the low numbers of the calling thread's own, empty descriptor table, at most a quarter of those that the process
/// may use, with a pipe that nobody else has: reading from it finds nothing, what is written to it goes nowhere.
///
/// The host's allocator runs on our threads, and a library behind it may keep descriptors by their numbers: libunwind, which
/// tcmalloc asks for stack traces, writes to a pipe and reads what it wrote. In an empty table it would take that for closed,
/// close our descriptors in its stead, and use what it gets for them in the host's table too.
fn occupy_low_descriptors() -> Result<(), Errno> {
    use rustix::fs::{Mode, OFlags, open};
    let count = LOW_DESCRIPTORS.min(most_descriptors() / 4);
    let (end, _) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK | rustix::pipe::PipeFlags::CLOEXEC)?;
    let path = ProcPath::new().text("/proc/thread-self/fd/").number(end.as_raw_fd().cast_unsigned());
    let both_ends = open(path.as_c_str(), OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
    drop(end);
    for _ in 1..count {
        keep_open(rustix::io::fcntl_dupfd_cloexec(&both_ends, 0)?);
    }
    keep_open(both_ends);
    Ok(())
}

/// Gives the calling thread a current directory and umask of its own.
pub(crate) fn leave_current_directory() -> Result<(), Errno> {
    // SAFETY: takes no pointers; unsharing CLONE_FS has no effect on memory or descriptors.
    unsafe { syscall!(Sysno::unshare, libc::CLONE_FS) }.map(drop).map_err(errno)
}

/// Starts writing out, without waiting, what is dirty in a range (sync_file_range(2)); with `wait`, waits for it too.
pub(crate) fn write_out(fd: BorrowedFd<'_>, at: u64, len: u64, wait: bool) -> Result<(), Errno> {
    const WAIT_BEFORE: u32 = 1;
    const WRITE: u32 = 2;
    const WAIT_AFTER: u32 = 4;
    let flags = if wait { WAIT_BEFORE | WRITE | WAIT_AFTER } else { WRITE };
    // SAFETY: takes no pointers.
    unsafe { syscall!(Sysno::sync_file_range, fd.as_raw_fd(), at, len, flags) }.map(drop).map_err(errno)
}

/// How many pages of a range are in the cache (cachestat(2), since Linux 6.5).
pub(crate) fn cached_pages(fd: BorrowedFd<'_>, at: u64, len: u64) -> Result<u64, Errno> {
    let range = [at, len];
    // Resident, dirty, under writeback, evicted, evicted of late.
    let mut counts = [0u64; 5];
    // SAFETY: the kernel reads the two words of `range` and writes the five of `counts`.
    unsafe { syscall!(Sysno::cachestat, fd.as_raw_fd(), range.as_ptr(), counts.as_mut_ptr(), 0) }
        .map_err(errno)?;
    Ok(counts[0])
}

/// Borrows a descriptor number of the host's for system calls that are safe on any number.
#[inline]
pub(crate) fn borrow(fd: RawFd) -> Option<BorrowedFd<'static>> {
    if fd < 0 && fd != libc::AT_FDCWD {
        return None;
    }
    // SAFETY: -1 is excluded. The number may be closed or reused at any time; it is only used for statx, lseek with
    // SEEK_CUR and F_GETFL, which then fail or describe another file, and callers are prepared for both.
    Some(unsafe { BorrowedFd::borrow_raw(fd) })
}

/// A descriptor of an engine thread's table that stays open until the last thread that shares the table has ended.
pub(crate) fn keep_open(file: OwnedFd) -> BorrowedFd<'static> {
    // SAFETY: nobody owns the descriptor any more, so nobody closes it; it goes with its table. In another table the number
    // may be another file's or nobody's, which memory safety does not depend on.
    unsafe { BorrowedFd::borrow_raw(file.into_raw_fd()) }
}

/// Whether a thread of this process exists.
pub(crate) fn thread_exists(tid: u32) -> bool {
    // SAFETY: signal 0 sends nothing and takes no pointers.
    let sent = unsafe { syscall!(Sysno::tgkill, getpid(), tid, 0) };
    sent != Err(syscalls::Errno::ESRCH)
}

/// Where the calling thread's alternate signal stack lies.
pub(crate) enum AlternateStack {
    /// The thread runs on it now.
    Active,
    /// It has one, and does not run on it.
    Inactive {
        /// Its lowest address.
        from: u64,
        /// Behind its highest.
        to: u64,
    },
    /// It has none.
    None,
}

/// Whether the calling thread runs on its alternate signal stack (sigaltstack(2)).
pub(crate) fn alternate_stack() -> AlternateStack {
    let mut stack = MaybeUninit::<libc::stack_t>::zeroed();
    // SAFETY: a null new stack changes nothing; the old one is written to `stack`, for which zeros are valid too.
    let stack = unsafe {
        let _ = syscall!(Sysno::sigaltstack, std::ptr::null::<libc::stack_t>(), stack.as_mut_ptr());
        stack.assume_init()
    };
    if stack.ss_flags & libc::SS_ONSTACK != 0 {
        AlternateStack::Active
    } else if stack.ss_flags & libc::SS_DISABLE != 0 || stack.ss_size == 0 {
        AlternateStack::None
    } else {
        AlternateStack::Inactive { from: stack.ss_sp as u64, to: stack.ss_sp as u64 + stack.ss_size as u64 }
    }
}

/// The monotonic clock in nanoseconds, without a system call where the kernel maps it.
pub(crate) fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

/// The wall clock in nanoseconds since the epoch.
pub(crate) fn realtime_ns() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

/// A path under /proc, put together without allocating.
struct ProcPath {
    bytes: [u8; 64],
    len: usize,
}

impl ProcPath {
    fn new() -> ProcPath {
        ProcPath { bytes: [0; 64], len: 0 }
    }

    fn text(mut self, text: &str) -> ProcPath {
        self.bytes[self.len..self.len + text.len()].copy_from_slice(text.as_bytes());
        self.len += text.len();
        self
    }

    fn number(mut self, number: u32) -> ProcPath {
        let mut digits = [0u8; 10];
        let mut at = digits.len();
        let mut left = number;
        loop {
            at -= 1;
            digits[at] = b'0' + (left % 10) as u8;
            left /= 10;
            if left == 0 {
                break;
            }
        }
        let digits = &digits[at..];
        self.bytes[self.len..self.len + digits.len()].copy_from_slice(digits);
        self.len += digits.len();
        self
    }

    fn as_c_str(&self) -> &std::ffi::CStr {
        // At most 60 bytes are ever put together, so a NUL is left.
        std::ffi::CStr::from_bytes_until_nul(&self.bytes).unwrap_or_default()
    }
}

fn kind_of(path: &std::ffi::CStr) -> Option<rustix::fs::FileType> {
    use rustix::fs::{AtFlags, CWD, FileType, StatxFlags, statx};
    let found = statx(CWD, path, AtFlags::empty(), StatxFlags::TYPE).ok()?;
    Some(FileType::from_raw_mode(found.stx_mode.into()))
}

/// Hands on the path under /proc of the host's descriptor `fd`. Allocates nothing.
pub(crate) fn with_path_of_descriptor<T>(fd: RawFd, work: impl FnOnce(&std::ffi::CStr) -> T) -> Option<T> {
    let path = ProcPath::new().text("/proc/self/fd/").number(u32::try_from(fd).ok()?);
    Some(work(path.as_c_str()))
}

/// The same of the descriptor `fd` of the host's thread `tid`.
pub(crate) fn with_path_of_descriptor_of<T>(
    tid: u32,
    fd: RawFd,
    work: impl FnOnce(&std::ffi::CStr) -> T,
) -> Option<T> {
    let path =
        ProcPath::new().text("/proc/self/task/").number(tid).text("/fd/").number(u32::try_from(fd).ok()?);
    Some(work(path.as_c_str()))
}

/// What kind of file the descriptor `fd` of the host's thread `tid` refers to. Allocates nothing.
pub(crate) fn kind_of_descriptor(tid: u32, fd: RawFd) -> Option<rustix::fs::FileType> {
    with_path_of_descriptor_of(tid, fd, kind_of)?
}

/// What kind of file the path at `address` names, as seen by thread `tid`, which waits in a call with it. Allocates
/// nothing.
pub(crate) fn kind_of_path(tid: u32, address: usize) -> Option<rustix::fs::FileType> {
    use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatxFlags, open, statx};
    let mut buffer = [0u8; 4096];
    let len = read_path_of(getpid(), address, &mut buffer).ok()?;
    let name = std::ffi::CStr::from_bytes_with_nul(&buffer[..=len]).ok()?;
    let base = ProcPath::new().text("/proc/self/task/").number(tid);
    let base = match openat_directory(tid, address) {
        Some(fd) => base.text("/fd/").number(fd),
        None => base.text("/cwd"),
    };
    let dir = open(base.as_c_str(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let found = statx(&dir, name, AtFlags::empty(), StatxFlags::TYPE).ok()?;
    Some(FileType::from_raw_mode(found.stx_mode.into()))
}

/// The directory's descriptor, if thread `tid` waits in an openat(2) with the path at `address`.
fn openat_directory(tid: u32, address: usize) -> Option<u32> {
    let (number, [directory, path, ..]) = system_call_of(tid)?;
    let matches = number == libc::SYS_openat && path == address as u64;
    // AT_FDCWD is negative.
    u32::try_from(directory).ok().filter(|&fd| matches && i32::try_from(fd).is_ok())
}

/// The system call that thread `tid` waits in, and its arguments (proc_pid_syscall(5)).
fn system_call_of(tid: u32) -> Option<(i64, [u64; 6])> {
    let path = ProcPath::new().text("/proc/self/task/").number(tid).text("/syscall");
    let mut text = [0u8; 256];
    let text = read_start(path.as_c_str(), &mut text)?;
    let mut words = text.split(' ');
    let number = words.next()?.parse().ok()?;
    let mut arguments = [0; 6];
    for argument in &mut arguments {
        *argument = u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()?;
    }
    Some((number, arguments))
}

/// The beginning of a text under /proc.
fn read_start<'a>(path: &std::ffi::CStr, buffer: &'a mut [u8]) -> Option<&'a str> {
    use rustix::fs::{Mode, OFlags, open};
    let file = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let len = rustix::io::read(&file, &mut *buffer).ok()?;
    std::str::from_utf8(&buffer[..len]).ok()
}

/// Whether thread `tid` waits for ends of a ring of io_uring in which nothing is left to submit: what it does from now on changes no
/// file. Allocates nothing.
pub(crate) fn waits_for_ends(tid: u32) -> bool {
    let Some((libc::SYS_io_uring_enter, [fd, _, least, flags, ..])) = system_call_of(tid) else {
        return false;
    };
    let is_wait =
        least as u32 > 0 && flags as u32 & (ENTER_GETEVENTS | ENTER_REGISTERED_RING) == ENTER_GETEVENTS;
    is_wait && u32::try_from(fd).is_ok_and(|fd| has_nothing_to_submit(fd) == Some(true))
}

fn has_nothing_to_submit(ring: u32) -> Option<bool> {
    let path = ProcPath::new().text("/proc/self/fdinfo/").number(ring);
    let mut text = [0u8; 512];
    let text = read_start(path.as_c_str(), &mut text)?;
    let number = |name: &str| -> Option<u32> {
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
    };
    Some(number("SqHead:")? == number("SqTail:")?)
}

/// How many requests of a ring of io_uring wait for something that can be polled, which no file is: a socket, a pipe. Allocates
/// nothing.
pub(crate) fn polled_requests(ring: RawFd) -> Option<u32> {
    use rustix::fs::{Mode, OFlags, open};
    let path = ProcPath::new().text("/proc/self/fdinfo/").number(u32::try_from(ring).ok()?);
    let file = open(path.as_c_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let (mut line, mut len, mut count, mut is_list) = ([0u8; 16], 0, 0, false);
    loop {
        let mut piece = [0u8; 1024];
        let got = rustix::io::read(&file, &mut piece).ok()?;
        if got == 0 {
            return Some(count);
        }
        for &byte in &piece[..got] {
            if byte != b'\n' {
                line.get_mut(len).into_iter().for_each(|place| *place = byte);
                len += 1;
                continue;
            }
            let text = &line[..len.min(line.len())];
            match text.first() {
                Some(b' ') if is_list && text.starts_with(b"  op=") => count += 1,
                _ => is_list = text.starts_with(b"PollList:"),
            }
            len = 0;
        }
    }
}

/// Sets the mode of the entry `name` of `directory`, never of what a link points to (fchmodat2, since Linux 6.6).
pub(crate) fn chmod_entry(directory: BorrowedFd<'_>, name: &std::ffi::CStr, mode: u32) -> Result<(), Errno> {
    let flags = libc::AT_SYMLINK_NOFOLLOW;
    // SAFETY: `name` is NUL-terminated and only read.
    unsafe { syscall!(Sysno::fchmodat2, directory.as_raw_fd(), name.as_ptr(), mode, flags) }
        .map(drop)
        .map_err(errno)
}
