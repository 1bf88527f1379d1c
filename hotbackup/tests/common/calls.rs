//! Captured calls: what hooks do, done by hand around the C library's functions.
//!
//! Every call here goes through `hotbackup::intercept`, and every one checks that errno afterwards is what the real
//! call left, whatever the engine did around it. With [`unseen`] a thread makes its calls behind the engine's back.

use std::cell::Cell;
use std::ffi::{CStr, CString, c_int, c_void};
use std::os::fd::RawFd;

use hotbackup::intercept::{
    At, Change, around, ending_descriptor, ending_descriptors, mapping, moving_position,
};

/// The result of a call, or errno.
pub type Ret = Result<i64, i32>;

thread_local! {
    static UNSEEN: Cell<bool> = const { Cell::new(false) };
}

/// Runs `calls` without the engine seeing them.
pub fn unseen<R>(calls: impl FnOnce() -> R) -> R {
    UNSEEN.set(true);
    let result = calls();
    UNSEEN.set(false);
    result
}

pub fn is_unseen() -> bool {
    UNSEEN.get()
}

fn errno() -> c_int {
    // SAFETY: the C library returns a valid pointer to the calling thread's errno.
    unsafe { *libc::__errno_location() }
}

fn set_errno(value: c_int) {
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = value }
}

/// What a system call by number returned.
pub fn returned(result: i64) -> Ret {
    if result < 0 { Err(errno()) } else { Ok(result) }
}

fn captured(change: Change, call: impl FnOnce() -> i64) -> Ret {
    let left = Cell::new(0);
    let watched = || {
        set_errno(4242);
        let result = call();
        left.set(errno());
        result
    };
    let result = if UNSEEN.get() { watched() } else { around(change, watched) };
    let now = errno();
    assert_eq!(now, left.get(), "errno was altered around {change:?}");
    if result < 0 { Err(now) } else { Ok(result) }
}

/// A path below a directory descriptor.
#[derive(Clone, Copy)]
pub struct Name<'a> {
    pub dir: RawFd,
    pub path: &'a CStr,
}

impl Name<'_> {
    fn at(self) -> At {
        At::new(self.dir, self.path.as_ptr())
    }
}

pub fn c(path: &str) -> CString {
    CString::new(path).expect("no NUL in a path")
}

pub fn openat(file: Name<'_>, flags: c_int, mode: u32) -> Ret {
    let change = Change::Open { file: file.at(), flags };
    captured(change, || {
        // SAFETY: the path is NUL-terminated and outlives the call.
        unsafe { libc::openat(file.dir, file.path.as_ptr(), flags | libc::O_CLOEXEC, mode) }.into()
    })
}

pub fn close(fd: RawFd) -> Ret {
    ending(fd, || {
        // SAFETY: closing a number touches no memory; the tests close only what they opened.
        unsafe { libc::close(fd) }
    })
}

pub fn dup(fd: RawFd) -> Ret {
    dup_from(fd, 0)
}

/// The same, to a number that no thread takes for one of the table's, which may have been closed and given out again.
pub fn dup_apart(fd: RawFd) -> Ret {
    dup_from(fd, 512)
}

fn dup_from(fd: RawFd, lowest: RawFd) -> Ret {
    // SAFETY: duplicating a number touches no memory.
    let result = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, lowest) };
    if result < 0 { Err(errno()) } else { Ok(result.into()) }
}

pub fn dup2(from: RawFd, to: RawFd) -> Ret {
    ending(to, || {
        // SAFETY: duplicating a number touches no memory; `to` is one of the tests' own.
        unsafe { libc::dup3(from, to, libc::O_CLOEXEC) }
    })
}

fn ending(fd: RawFd, call: impl FnOnce() -> c_int) -> Ret {
    let result = if UNSEEN.get() { call() } else { ending_descriptor(fd, call) };
    if result < 0 { Err(errno()) } else { Ok(result.into()) }
}

/// Closes one descriptor as a range.
pub fn close_range(fd: RawFd) -> Ret {
    let number = fd.cast_unsigned();
    let call = || {
        // SAFETY: closing a number touches no memory; the tests close only what they opened.
        unsafe { libc::syscall(libc::SYS_close_range, number, number, 0) }
    };
    let result = if UNSEEN.get() { call() } else { ending_descriptors(call) };
    if result < 0 { Err(errno()) } else { Ok(result) }
}

pub fn write(fd: RawFd, data: &[u8]) -> Ret {
    captured(Change::Write { fd }, || {
        // SAFETY: the pointer and length are of one slice.
        unsafe { libc::write(fd, data.as_ptr().cast(), data.len()) as i64 }
    })
}

fn vectors(data: &[u8]) -> [libc::iovec; 2] {
    let (first, second) = data.split_at(data.len() / 3);
    [first, second]
        .map(|part| libc::iovec { iov_base: part.as_ptr().cast_mut().cast::<c_void>(), iov_len: part.len() })
}

pub fn writev(fd: RawFd, data: &[u8]) -> Ret {
    let parts = vectors(data);
    captured(Change::Write { fd }, || {
        // SAFETY: the vectors point into `data`, which outlives the call and is only read.
        unsafe { libc::writev(fd, parts.as_ptr(), 2) as i64 }
    })
}

pub fn pwrite(fd: RawFd, data: &[u8], at: i64) -> Ret {
    captured(Change::WriteAt { fd, at }, || {
        // SAFETY: the pointer and length are of one slice.
        unsafe { libc::pwrite64(fd, data.as_ptr().cast(), data.len(), at) as i64 }
    })
}

/// `pwrite` from memory that direct I/O takes.
pub fn pwrite_aligned(fd: RawFd, data: &[u8], at: i64) -> Ret {
    const PAGE: usize = 4096;
    let mut memory = vec![0; data.len() + PAGE];
    let skip = memory.as_ptr().align_offset(PAGE);
    let aligned = &mut memory[skip..skip + data.len()];
    aligned.copy_from_slice(data);
    pwrite(fd, aligned, at)
}

/// `splice` of these bytes from a pipe, which holds them already, to an offset or to the position.
pub fn splice(data: &[u8], to: RawFd, at: Option<i64>) -> Ret {
    let (out, into) = pipe();
    // SAFETY: the pointer and length are of one slice.
    let held = unsafe { libc::write(into, data.as_ptr().cast(), data.len()) };
    assert_eq!(held, data.len() as isize, "a new pipe holds 64 KiB");
    let mut offset = at.unwrap_or(0);
    let pointer = if at.is_some() { &raw mut offset } else { std::ptr::null_mut() };
    let change = at.map_or(Change::Write { fd: to }, |at| Change::WriteAt { fd: to, at });
    let result = captured(change, || {
        // SAFETY: the offset is a live local, or there is none.
        unsafe { libc::splice(out, std::ptr::null_mut(), to, pointer, data.len(), 0) as i64 }
    });
    for fd in [out, into] {
        close(fd).expect("the pipe closes");
    }
    result
}

pub fn pwritev(fd: RawFd, data: &[u8], at: i64) -> Ret {
    let parts = vectors(data);
    captured(Change::WriteAt { fd, at }, || {
        // SAFETY: the vectors point into `data`, which outlives the call and is only read.
        unsafe { libc::pwritev64(fd, parts.as_ptr(), 2, at) as i64 }
    })
}

/// `pwritev2` with `RWF_APPEND` at the position: appends, and moves the position.
pub fn append(fd: RawFd, data: &[u8]) -> Ret {
    let parts = vectors(data);
    captured(Change::Append { fd }, || {
        // SAFETY: the vectors point into `data`, which outlives the call and is only read.
        unsafe { libc::pwritev2(fd, parts.as_ptr(), 2, -1, libc::RWF_APPEND) as i64 }
    })
}

pub fn copy_file_range(from: RawFd, from_at: i64, to: RawFd, to_at: i64, len: usize) -> Ret {
    let (mut from_at, mut out_at) = (from_at, to_at);
    captured(Change::WriteAt { fd: to, at: to_at }, || {
        // SAFETY: both offsets are live locals.
        unsafe { libc::copy_file_range(from, &raw mut from_at, to, &raw mut out_at, len, 0) as i64 }
    })
}

/// All of a file, by sharing its blocks (ioctl_ficlone(2)).
pub fn clone(from: RawFd, to: RawFd) -> Ret {
    captured(Change::WriteAny { fd: to }, || {
        // SAFETY: touches no memory.
        unsafe { libc::ioctl(to, libc::FICLONE, from) }.into()
    })
}

/// Stores to a shared mapping that is made for it. The kernel stores, from a pipe: where the file ends before the data does, or is
/// made to beside it, that is no signal.
pub fn store(fd: RawFd, data: &[u8], at: i64) -> Ret {
    store_behind(fd, data, at, || {})
}

/// The same, with something else done between the hook's look at the descriptor and the call.
pub fn store_behind(fd: RawFd, data: &[u8], at: i64, before: impl FnOnce()) -> Ret {
    let (from, skip) = (at & !4095, (at & 4095) as usize);
    let len = skip + data.len();
    let map = || {
        before();
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at a place that the kernel chooses.
        unsafe { libc::mmap(std::ptr::null_mut(), len, protection, libc::MAP_SHARED, fd, from) }
    };
    let mapped = |&at: &*mut c_void| (at != libc::MAP_FAILED).then_some(at as usize);
    let place = if UNSEEN.get() { map() } else { mapping(fd, from, len, map, mapped) };
    if place == libc::MAP_FAILED {
        return Err(errno());
    }
    let (out, into) = pipe();
    // SAFETY: the pointer and length are of one slice; what is read goes to the mapping, which is as long, and is then unmapped.
    let stored = unsafe {
        assert_eq!(libc::write(into, data.as_ptr().cast(), data.len()), data.len() as isize);
        let stored = libc::read(out, place.byte_add(skip), data.len());
        assert_eq!(libc::munmap(place, len), 0);
        stored
    };
    for fd in [out, into] {
        close(fd).expect("the pipe closes");
    }
    if stored < 0 { Err(libc::EFAULT) } else { Ok(stored as i64) }
}

pub fn sendfile(from: RawFd, from_at: i64, to: RawFd, len: usize) -> Ret {
    let mut from_at = from_at;
    captured(Change::Write { fd: to }, || {
        // SAFETY: the offset is a live local.
        unsafe { libc::sendfile64(to, from, &raw mut from_at, len) as i64 }
    })
}

/// Not a change, but a write at the position that runs beside it may land elsewhere.
pub fn seek(fd: RawFd, to: i64) -> Ret {
    let call = || {
        // SAFETY: touches no memory.
        unsafe { libc::lseek64(fd, to, libc::SEEK_SET) }
    };
    let result = if UNSEEN.get() { call() } else { moving_position(fd, call) };
    if result < 0 { Err(errno()) } else { Ok(result) }
}

/// Not a change: switches append mode.
pub fn set_append(fd: RawFd, on: bool) -> Ret {
    // SAFETY: touches no memory.
    let result = unsafe {
        let flags = libc::fcntl(fd, libc::F_GETFL);
        let flags = if on { flags | libc::O_APPEND } else { flags & !libc::O_APPEND };
        libc::fcntl(fd, libc::F_SETFL, flags)
    };
    if result < 0 { Err(errno()) } else { Ok(result.into()) }
}

pub fn ftruncate(fd: RawFd, len: i64) -> Ret {
    captured(Change::Resize { fd, len }, || {
        // SAFETY: touches no memory.
        unsafe { libc::ftruncate64(fd, len) }.into()
    })
}

pub fn truncate(path: &CStr, len: i64) -> Ret {
    let file = At::cwd(path.as_ptr());
    captured(Change::ResizePath { file, len }, || {
        // SAFETY: the path is NUL-terminated and outlives the call.
        unsafe { libc::truncate64(path.as_ptr(), len) }.into()
    })
}

pub fn fallocate(fd: RawFd, mode: c_int, at: i64, len: i64) -> Ret {
    captured(Change::Allocate { fd, mode, at, len }, || {
        // SAFETY: touches no memory.
        unsafe { libc::fallocate64(fd, mode, at, len) }.into()
    })
}

pub fn rename(from: Name<'_>, to: Name<'_>, flags: u32) -> Ret {
    let change = Change::Rename { from: from.at(), to: to.at() };
    captured(change, || {
        // SAFETY: both paths are NUL-terminated and outlive the call.
        unsafe { libc::renameat2(from.dir, from.path.as_ptr(), to.dir, to.path.as_ptr(), flags) }.into()
    })
}

pub fn link(from: Name<'_>, to: Name<'_>, flags: c_int) -> Ret {
    let change = Change::Link { from: from.at(), to: to.at(), follow: flags & libc::AT_SYMLINK_FOLLOW != 0 };
    captured(change, || {
        // SAFETY: both paths are NUL-terminated and outlive the call.
        unsafe { libc::linkat(from.dir, from.path.as_ptr(), to.dir, to.path.as_ptr(), flags) }.into()
    })
}

pub fn symlink(target: &CStr, name: Name<'_>) -> Ret {
    captured(Change::Create { name: name.at() }, || {
        // SAFETY: both paths are NUL-terminated and outlive the call.
        unsafe { libc::symlinkat(target.as_ptr(), name.dir, name.path.as_ptr()) }.into()
    })
}

pub fn unlink(name: Name<'_>, flags: c_int) -> Ret {
    captured(Change::Remove { name: name.at() }, || {
        // SAFETY: the path is NUL-terminated and outlives the call.
        unsafe { libc::unlinkat(name.dir, name.path.as_ptr(), flags) }.into()
    })
}

pub fn mkdir(name: Name<'_>, mode: u32) -> Ret {
    captured(Change::Create { name: name.at() }, || {
        // SAFETY: the path is NUL-terminated and outlives the call.
        unsafe { libc::mkdirat(name.dir, name.path.as_ptr(), mode) }.into()
    })
}

/// A name for a temporary file or directory beside `path`.
fn template(path: &CStr) -> Vec<u8> {
    [path.to_bytes(), b"XXXXXX\0"].concat()
}

fn filled_in(template: Vec<u8>) -> CString {
    CString::from_vec_with_nul(template).expect("only the six letters have changed")
}

/// `mkstemp` beside `path`: the descriptor and the name.
pub fn mkstemp(path: &CStr) -> Result<(RawFd, CString), i32> {
    let mut name = template(path);
    let change = Change::Create { name: At::cwd(name.as_ptr().cast()) };
    let fd = captured(change, || {
        // SAFETY: the template is NUL-terminated and outlives the call, which writes to its last six letters only.
        unsafe { libc::mkostemp(name.as_mut_ptr().cast(), libc::O_CLOEXEC) }.into()
    })?;
    Ok((fd as RawFd, filled_in(name)))
}

/// `mkdtemp` beside `path`: the name.
pub fn mkdtemp(path: &CStr) -> Result<CString, i32> {
    let mut name = template(path);
    let change = Change::Create { name: At::cwd(name.as_ptr().cast()) };
    captured(change, || {
        // SAFETY: as above.
        let made = unsafe { libc::mkdtemp(name.as_mut_ptr().cast()) };
        if made.is_null() { -1 } else { 0 }
    })?;
    Ok(filled_in(name))
}

pub fn mknod(name: Name<'_>, mode: u32, device: u64) -> Ret {
    captured(Change::Create { name: name.at() }, || {
        // SAFETY: the path is NUL-terminated and outlives the call.
        unsafe { libc::mknodat(name.dir, name.path.as_ptr(), mode, device) }.into()
    })
}

pub fn chmod(file: Name<'_>, mode: u32) -> Ret {
    let change = Change::AttributesPath { file: file.at(), follow: true };
    captured(change, || {
        // SAFETY: the path is NUL-terminated and outlives the call.
        unsafe { libc::fchmodat(file.dir, file.path.as_ptr(), mode, 0) }.into()
    })
}

pub fn fchmod(fd: RawFd, mode: u32) -> Ret {
    captured(Change::Attributes { fd }, || {
        // SAFETY: touches no memory.
        unsafe { libc::fchmod(fd, mode) }.into()
    })
}

fn no_follow(follow: bool) -> c_int {
    if follow { 0 } else { libc::AT_SYMLINK_NOFOLLOW }
}

pub fn chown(file: Name<'_>, uid: u32, gid: u32, follow: bool) -> Ret {
    let change = Change::AttributesPath { file: file.at(), follow };
    captured(change, || {
        // SAFETY: the path is NUL-terminated and outlives the call.
        unsafe { libc::fchownat(file.dir, file.path.as_ptr(), uid, gid, no_follow(follow)) }.into()
    })
}

pub fn fchown(fd: RawFd, uid: u32, gid: u32) -> Ret {
    captured(Change::Attributes { fd }, || {
        // SAFETY: touches no memory.
        unsafe { libc::fchown(fd, uid, gid) }.into()
    })
}

fn timespecs(mtime_ns: i64) -> [libc::timespec; 2] {
    let time = libc::timespec {
        tv_sec: mtime_ns.div_euclid(1_000_000_000),
        tv_nsec: mtime_ns.rem_euclid(1_000_000_000),
    };
    [time, time]
}

pub fn utimens(file: Name<'_>, mtime_ns: i64, follow: bool) -> Ret {
    let change = Change::AttributesPath { file: file.at(), follow };
    let times = timespecs(mtime_ns);
    captured(change, || {
        // SAFETY: the path and the two times outlive the call.
        unsafe { libc::utimensat(file.dir, file.path.as_ptr(), times.as_ptr(), no_follow(follow)) }.into()
    })
}

pub fn futimens(fd: RawFd, mtime_ns: i64) -> Ret {
    let times = timespecs(mtime_ns);
    captured(Change::Attributes { fd }, || {
        // SAFETY: the two times outlive the call.
        unsafe { libc::futimens(fd, times.as_ptr()) }.into()
    })
}

pub fn setxattr(path: &CStr, name: &CStr, value: &[u8]) -> Ret {
    let file = At::cwd(path.as_ptr());
    captured(Change::AttributesPath { file, follow: true }, || {
        // SAFETY: path, name and value outlive the call; the length is the value's.
        unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) }.into()
    })
}

pub fn fsetxattr(fd: RawFd, name: &CStr, value: &[u8]) -> Ret {
    captured(Change::Attributes { fd }, || {
        // SAFETY: name and value outlive the call; the length is the value's.
        unsafe { libc::fsetxattr(fd, name.as_ptr(), value.as_ptr().cast(), value.len(), 0) }.into()
    })
}

pub fn removexattr(path: &CStr, name: &CStr) -> Ret {
    let file = At::cwd(path.as_ptr());
    captured(Change::AttributesPath { file, follow: true }, || {
        // SAFETY: path and name outlive the call.
        unsafe { libc::removexattr(path.as_ptr(), name.as_ptr()) }.into()
    })
}

/// A directory as a descriptor, for [`Name::dir`].
pub fn directory(path: &std::path::Path) -> RawFd {
    use std::os::unix::ffi::OsStrExt as _;
    let path = CString::new(path.as_os_str().as_bytes()).expect("no NUL in a path");
    // SAFETY: the path is NUL-terminated and outlives the call.
    let fd = unsafe { libc::open(path.as_ptr(), libc::O_DIRECTORY | libc::O_CLOEXEC) };
    assert!(fd >= 0, "cannot open {path:?}: {}", errno());
    fd
}

/// The modification time in nanoseconds of what a path (not followed) or, with an empty path, a descriptor names.
pub fn mtime(name: Name<'_>, follow: bool) -> Option<i64> {
    // SAFETY: all zeros is a valid stat buffer.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    let flags = libc::AT_EMPTY_PATH | no_follow(follow);
    // SAFETY: the path is NUL-terminated, the buffer is live.
    let result = unsafe { libc::fstatat(name.dir, name.path.as_ptr(), &raw mut stat, flags) };
    (result == 0).then_some(stat.st_mtime * 1_000_000_000 + stat.st_mtime_nsec)
}

/// Whether the descriptor is of a regular file.
pub fn is_file(fd: RawFd) -> bool {
    // SAFETY: all zeros is a valid stat buffer, and it is live.
    let mode = unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        libc::fstat(fd, &raw mut stat);
        stat.st_mode
    };
    mode & libc::S_IFMT == libc::S_IFREG
}

/// The process's umask, which can only be read by setting it.
pub fn umask() -> u32 {
    // SAFETY: touches no memory. The tests are the only ones to care for it.
    unsafe {
        let mask = libc::umask(0o022);
        libc::umask(mask);
        mask
    }
}

/// Who creates files here.
pub fn effective_ids() -> (u32, u32) {
    // SAFETY: cannot fail and touches no memory.
    unsafe { (libc::geteuid(), libc::getegid()) }
}

// Declared here because the C library's crate says "C": a cancelled thread unwinds through the call.
mod cancellable {
    use std::ffi::{c_char, c_int, c_void};
    unsafe extern "C-unwind" {
        pub fn write(fd: c_int, data: *const c_void, len: usize) -> isize;
        pub fn open(path: *const c_char, flags: c_int, ...) -> c_int;
        pub fn pthread_create(
            thread: *mut libc::pthread_t,
            attributes: *const libc::pthread_attr_t,
            start: extern "C-unwind" fn(*mut c_void) -> *mut c_void,
            argument: *mut c_void,
        ) -> c_int;
    }
}

/// A captured write that stays until somebody reads or cancels the thread.
pub fn write_and_block(fd: RawFd, data: &[u8]) -> Ret {
    let result = around(Change::Write { fd }, || {
        // SAFETY: the pointer and length are of one slice.
        unsafe { cancellable::write(fd, data.as_ptr().cast(), data.len()) as i64 }
    });
    if result < 0 { Err(errno()) } else { Ok(result) }
}

/// A captured open for writing of a FIFO that stays until somebody opens it for reading or cancels the thread.
pub fn open_and_block(path: &CStr) -> Ret {
    let (file, flags) = (At::cwd(path.as_ptr()), libc::O_WRONLY | libc::O_CREAT | libc::O_CLOEXEC);
    let result = around(Change::Open { file, flags }, || {
        // SAFETY: the path is NUL-terminated and outlives the call.
        i64::from(unsafe { cancellable::open(path.as_ptr(), flags, 0o600) })
    });
    if result < 0 { Err(errno()) } else { Ok(result) }
}

/// A thread of the C library's, which unlike a Rust thread may be cancelled.
pub struct CThread(libc::pthread_t);

impl CThread {
    pub fn spawn(start: extern "C-unwind" fn(*mut c_void) -> *mut c_void, argument: usize) -> CThread {
        let mut thread = 0;
        // SAFETY: the thread's number is a live local; the argument is only a number.
        let result = unsafe {
            cancellable::pthread_create(&raw mut thread, std::ptr::null(), start, argument as *mut c_void)
        };
        assert_eq!(result, 0, "a thread could not be made");
        CThread(thread)
    }

    /// Cancels the thread and waits until it has ended.
    pub fn cancel(self) {
        // SAFETY: the thread has not been joined yet.
        unsafe {
            assert_eq!(libc::pthread_cancel(self.0), 0);
            assert_eq!(libc::pthread_join(self.0, std::ptr::null_mut()), 0);
        }
    }

    pub fn join(self) {
        // SAFETY: the thread has not been joined yet.
        assert_eq!(unsafe { libc::pthread_join(self.0, std::ptr::null_mut()) }, 0);
    }
}

/// Sends a signal to a thread of this process.
pub fn signal(thread: libc::pthread_t, number: c_int) {
    // SAFETY: the tests end their threads only when nobody signals them any more.
    assert_eq!(unsafe { libc::pthread_kill(thread, number) }, 0);
}

pub fn this_thread() -> libc::pthread_t {
    // SAFETY: touches no memory.
    unsafe { libc::pthread_self() }
}

/// Has `handler` called for a signal; system calls that it interrupts go on.
pub fn handle(number: c_int, handler: extern "C" fn(c_int)) {
    // SAFETY: all zeros is a valid action; the handler does only what handlers may.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_RESTART;
        assert_eq!(libc::sigaction(number, &raw const action, std::ptr::null_mut()), 0);
    }
}

/// A pipe, its reading end first.
pub fn pipe() -> (RawFd, RawFd) {
    let mut ends = [0; 2];
    // SAFETY: there is room for two numbers.
    assert_eq!(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) }, 0);
    (ends[0], ends[1])
}

/// Two connected sockets.
pub fn sockets() -> (RawFd, RawFd) {
    let mut ends = [0; 2];
    // SAFETY: there is room for two numbers.
    let result = unsafe {
        libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0, ends.as_mut_ptr())
    };
    assert_eq!(result, 0);
    (ends[0], ends[1])
}

/// The two sides of a terminal, the one that a terminal's program has first. Nobody's controlling terminal.
pub fn terminal() -> (RawFd, RawFd) {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the name goes to a buffer of the length that is said, and is NUL-terminated.
    unsafe {
        let near = libc::posix_openpt(flags);
        assert!(near >= 0 && libc::grantpt(near) == 0 && libc::unlockpt(near) == 0);
        let mut name = [0; 64];
        assert_eq!(libc::ptsname_r(near, name.as_mut_ptr(), name.len()), 0);
        let far = libc::open(name.as_ptr(), flags);
        assert!(far >= 0);
        (near, far)
    }
}

/// Runs `work` in a forked child, which then ends with status 0, or 1 if `work` panicked.
pub fn fork(work: impl FnOnce()) -> libc::pid_t {
    // SAFETY: the child runs on with this thread alone and ends in here.
    match unsafe { libc::fork() } {
        0 => {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            // SAFETY: ends the child without the destructors of the parent.
            unsafe { libc::_exit(outcome.is_err().into()) }
        }
        child => {
            assert!(child > 0, "cannot fork");
            child
        }
    }
}

/// Waits for a child and returns its status.
pub fn wait_for(child: libc::pid_t) -> c_int {
    let mut status = 0;
    // SAFETY: the status is a live local.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    status
}

/// The number of the calling thread.
pub fn thread_id() -> u32 {
    // SAFETY: touches no memory.
    unsafe { libc::gettid() }.cast_unsigned()
}

/// Lets a process that is no ancestor trace this one, where only ancestors may (PR_SET_PTRACER(2const)).
pub fn let_anybody_trace() {
    // Where nobody is kept from it there is no such call.
    // SAFETY: numbers only.
    unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY, 0, 0, 0) };
}

/// Has a process end.
pub fn end(process: libc::pid_t) {
    // SAFETY: numbers only.
    assert_eq!(unsafe { libc::kill(process, libc::SIGTERM) }, 0);
}

/// Becomes user and group 65534.
pub fn become_nobody() {
    // SAFETY: numbers only.
    unsafe { assert!(libc::setgid(65534) == 0 && libc::setuid(65534) == 0) }
}

/// Sets the group to what it is: the C library has every thread of the process do it.
pub fn set_group_again() {
    // SAFETY: numbers only.
    unsafe { assert_eq!(libc::setgid(libc::getgid()), 0) }
}

/// Takes a lock on a whole file, or says that somebody else has it.
pub fn lock(fd: RawFd) -> Ret {
    // SAFETY: all zeros is a valid lock: the whole file.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as i16;
    // SAFETY: the lock is a live local.
    let result = unsafe { libc::fcntl(fd, libc::F_SETLK, &raw const lock) };
    if result < 0 { Err(errno()) } else { Ok(0) }
}

/// The soft limit of a resource; sets it to `new` if there is one.
pub fn limit(resource: libc::__rlimit_resource_t, new: Option<u64>) -> u64 {
    // SAFETY: all zeros is a valid limit.
    let mut limit: libc::rlimit = unsafe { std::mem::zeroed() };
    // SAFETY: the limit is a live local.
    unsafe {
        assert_eq!(libc::getrlimit(resource, &raw mut limit), 0);
        let old = limit.rlim_cur;
        if let Some(new) = new {
            limit.rlim_cur = new;
            assert_eq!(libc::setrlimit(resource, &raw const limit), 0);
        }
        old
    }
}

/// Bytes that are free on the filesystem of `path`.
pub fn free_space(path: &std::path::Path) -> u64 {
    let path = c(path.to_str().expect("ordinary"));
    // SAFETY: all zeros is a valid buffer; the path is NUL-terminated and the buffer is live.
    unsafe {
        let mut found: libc::statvfs = std::mem::zeroed();
        assert_eq!(libc::statvfs(path.as_ptr(), &raw mut found), 0);
        found.f_bavail * found.f_frsize
    }
}

/// Reads until the other end is closed.
pub fn drain(fd: RawFd) {
    let mut buffer = vec![0u8; 1 << 16];
    // SAFETY: the pointer and length are of one buffer.
    while unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len()) } > 0 {}
}
