//! What a hooked call means to the engine, where a plain [`Change`] does not say it.
//!
//! The hooks hand a [`Meaning`] and the real call to [`Meaning::pass`]. Whatever takes a system call of ours is done
//! only while a session runs: the idle path makes the real call and nothing else.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::ptr;

use hotbackup::intercept::{self, At, Change, Outcome};
use libc::{iovec, off64_t, size_t, ssize_t};

use crate::real::{get_errno, set_errno};

/// How a call passes through the engine.
pub(crate) trait Meaning<R>: Sized {
    fn pass(self, real: impl FnOnce() -> R) -> R;
}

impl<R: Outcome> Meaning<R> for Change {
    #[inline(always)]
    fn pass(self, real: impl FnOnce() -> R) -> R {
        intercept::around(self, real)
    }
}

/// `None` changes nothing: the engine need not know of the call.
impl<R: Outcome> Meaning<R> for Option<Change> {
    #[inline(always)]
    fn pass(self, real: impl FnOnce() -> R) -> R {
        match self {
            Some(change) => intercept::around(change, real),
            None => real(),
        }
    }
}

/// The call may close many descriptors.
pub(crate) struct EndsMany;

impl<R> Meaning<R> for EndsMany {
    #[inline(always)]
    fn pass(self, real: impl FnOnce() -> R) -> R {
        intercept::ending_descriptors(real)
    }
}

/// The call may move this descriptor's position backwards.
pub(crate) struct Moves(pub(crate) c_int);

impl<R> Meaning<R> for Moves {
    #[inline(always)]
    fn pass(self, real: impl FnOnce() -> R) -> R {
        intercept::moving_position(self.0, real)
    }
}

/// The call may close this descriptor, or have it stand for another file.
pub(crate) struct Ends(pub(crate) c_int);

impl<R> Meaning<R> for Ends {
    #[inline(always)]
    fn pass(self, real: impl FnOnce() -> R) -> R {
        intercept::ending_descriptor(self.0, real)
    }
}

/// `mmap`.
pub(crate) struct Maps {
    pub(crate) len: size_t,
    pub(crate) flags: c_int,
    pub(crate) fd: c_int,
    pub(crate) at: off64_t,
}

impl Meaning<*mut c_void> for Maps {
    /// Allocators map memory while they hold their locks: that takes a look at the flags and no more.
    #[inline(always)]
    fn pass(self, real: impl FnOnce() -> *mut c_void) -> *mut c_void {
        let kind = self.flags & libc::MAP_TYPE;
        let shared = kind == libc::MAP_SHARED || kind == libc::MAP_SHARED_VALIDATE;
        if !shared || self.flags & libc::MAP_ANONYMOUS != 0 || !intercept::is_capturing() {
            return real();
        }
        let Maps { len, fd, at, .. } = self;
        intercept::mapping(fd, at, len, real, |&address| {
            (address != libc::MAP_FAILED).then_some(address as usize)
        })
    }
}

/// `munmap`.
pub(crate) struct Unmaps {
    pub(crate) place: usize,
    pub(crate) len: size_t,
}

impl<R> Meaning<R> for Unmaps {
    /// Allocators hold their locks here, too.
    #[inline(always)]
    fn pass(self, real: impl FnOnce() -> R) -> R {
        intercept::unmapping(self.place, self.len, real)
    }
}

/// An argument as the kernel takes it out of a register: it looks at no more of it than its type has.
pub(crate) trait Register {
    fn read(register: usize) -> Self;
}

macro_rules! registers {
    ($($t:ty),*) => {$(
        impl Register for $t {
            #[inline(always)]
            fn read(register: usize) -> Self {
                register as $t
            }
        }
    )*};
}
registers!(c_int, c_uint, off64_t, u64, usize);

impl<T> Register for *const T {
    #[inline(always)]
    fn read(register: usize) -> Self {
        register as *const T
    }
}

impl<T> Register for *mut T {
    #[inline(always)]
    fn read(register: usize) -> Self {
        register as *mut T
    }
}

/// `open` and its family: only what may create or empty a file is a change.
#[inline(always)]
pub(crate) fn opening(file: At, flags: c_int) -> Option<Change> {
    let changes = flags & (libc::O_CREAT | libc::O_TRUNC) != 0 || flags & libc::O_TMPFILE == libc::O_TMPFILE;
    changes.then_some(Change::Open { file, flags })
}

/// A change of bytes of which nobody knows where they are. Its path can be read by nobody.
#[inline(always)]
pub(crate) fn anywhere() -> Change {
    Change::ResizePath { file: At::cwd(ptr::null()), len: 0 }
}

/// `open_by_handle_at`: it creates nothing, but may empty the file; which one, the resulting descriptor tells.
#[inline(always)]
pub(crate) fn opening_by_handle(mount: c_int, flags: c_int) -> Option<Change> {
    let change = Change::Open { file: At::new(mount, c"".as_ptr()), flags: libc::O_TRUNC };
    (flags & libc::O_TRUNC != 0).then_some(change)
}

/// `openat2`, whose flags lie in the caller's memory (`struct open_how`: flags, mode, how the path is resolved).
#[inline(always)]
pub(crate) fn opening_how(dir: c_int, path: *const c_char, how: *const u64) -> Option<Change> {
    let anything = libc::O_CREAT | libc::O_TRUNC;
    if !intercept::is_capturing() {
        return Some(Change::Open { file: At::new(dir, path), flags: anything });
    }
    let Some([flags, _, resolve]) = peek::<[u64; 3]>(how.cast()) else {
        return Some(Change::Open { file: At::new(dir, path), flags: anything });
    };
    // Within a root of its own the path means something else to us: then nobody knows what the call is about.
    let path = if resolve & RESOLVE_IN_ROOT == 0 { path } else { ptr::null() };
    opening(At::new(dir, path), flags as c_int)
}

/// A flag of openat2(2).
const RESOLVE_IN_ROOT: u64 = 0x10;

/// Flags of `pwritev2` that do not say where the bytes go (preadv2(2); the last two are younger than libc's names).
const RWF_ELSEWHERE: c_int =
    !(libc::RWF_HIPRI | libc::RWF_DSYNC | libc::RWF_SYNC | libc::RWF_NOWAIT | RWF_ATOMIC | RWF_DONTCACHE);
const RWF_ATOMIC: c_int = 0x40;
const RWF_DONTCACHE: c_int = 0x80;

/// `pwritev2`, whose flags may say that the bytes go to the end, or not to the end, or what nobody knows yet.
#[inline(always)]
pub(crate) fn writing(fd: c_int, at: off64_t, flags: c_int) -> Change {
    match flags & RWF_ELSEWHERE {
        0 => Change::WriteAt { fd, at },
        libc::RWF_APPEND => Change::Append { fd },
        _ => Change::WriteAny { fd },
    }
}

/// Bytes at an offset that lies in the caller's memory, or at the position if there is none.
#[inline(always)]
pub(crate) fn writing_at_pointer(fd: c_int, at: *const off64_t) -> Change {
    if at.is_null() {
        Change::Write { fd }
    } else if intercept::is_capturing() {
        peek(at).map_or(Change::WriteAny { fd }, |at| Change::WriteAt { fd, at })
    } else {
        Change::WriteAny { fd }
    }
}

/// Mode, owner, times or extended attributes of what a path names.
#[inline(always)]
pub(crate) fn attributes(file: At, follow: bool) -> Change {
    Change::AttributesPath { file, follow }
}

/// The same for calls with a directory and `AT_*` flags; without a path they are about the descriptor.
#[inline(always)]
pub(crate) fn attributes_at(dir: c_int, path: *const c_char, flags: c_int) -> Change {
    if path.is_null() {
        Change::Attributes { fd: dir }
    } else {
        attributes(At::new(dir, path), flags & libc::AT_SYMLINK_NOFOLLOW == 0)
    }
}

/// `splice`. From an empty pipe it waits for whoever writes into that pipe; the cut must not wait for them too, so a
/// session has this wait done before the call is inside the gate.
pub(crate) struct Splice {
    pub(crate) from: c_int,
    pub(crate) from_at: *const off64_t,
    pub(crate) fd: c_int,
    pub(crate) at: *const off64_t,
    pub(crate) len: size_t,
    pub(crate) flags: c_uint,
}

impl<R: Outcome + From<i8>> Meaning<R> for Splice {
    #[inline(always)]
    fn pass(self, real: impl FnOnce() -> R) -> R {
        if intercept::is_capturing() && self.may_wait() && !wait_for_input(self.from) {
            return R::from(-1);
        }
        intercept::around(writing_at_pointer(self.fd, self.at), real)
    }
}

impl Splice {
    /// Whether the call is valid, writes to a file, and may have to wait for its input.
    #[cold]
    fn may_wait(&self) -> bool {
        let flags = libc::SPLICE_F_MOVE | libc::SPLICE_F_MORE | libc::SPLICE_F_GIFT;
        let errno = get_errno();
        // SAFETY: it moves nothing and takes no pointer; a bad descriptor is refused.
        let into_file = unsafe { libc::lseek(self.fd, 0, libc::SEEK_CUR) } >= 0;
        set_errno(errno);
        into_file && self.len > 0 && self.from_at.is_null() && self.flags & !flags == 0
    }
}

unsafe extern "C-unwind" {
    /// Declared here because a thread may be cancelled in it, which unwinds.
    fn read(fd: c_int, bytes: *mut c_void, len: size_t) -> ssize_t;
}

/// Waits until a pipe has input or no writer; false with errno set if a signal ended the wait, as it would have ended
/// the splice. A read to nowhere does just that and takes nothing out of the pipe, and unlike poll(2) it goes on
/// behind a signal handler that was installed with `SA_RESTART`.
#[cold]
fn wait_for_input(pipe: c_int) -> bool {
    let errno = get_errno();
    // SAFETY: the kernel finds the page at address 0 unmapped and answers EFAULT; no memory of ours is touched.
    let read = unsafe { read(pipe, ptr::without_provenance_mut(1), 1) };
    if read < 0 && get_errno() == libc::EINTR {
        return false;
    }
    set_errno(errno);
    true
}

/// Numbers, of which any bytes are one.
pub(crate) trait Numbers: Copy + Default {}
impl Numbers for u8 {}
impl Numbers for c_int {}
impl Numbers for u64 {}
impl Numbers for off64_t {}
impl<T: Numbers, const N: usize> Numbers for [T; N] where [T; N]: Default {}

/// Reads numbers by way of the kernel, because the pointer may be anything. errno stays as it is.
#[cold]
pub(crate) fn peek<T: Numbers>(at: *const T) -> Option<T> {
    let errno = get_errno();
    let mut value = T::default();
    let size = size_of::<T>();
    let ours = iovec { iov_base: (&raw mut value).cast(), iov_len: size };
    let theirs = iovec { iov_base: at.cast_mut().cast::<c_void>(), iov_len: size };
    // SAFETY: `ours` is writable for its length, and any bytes are numbers; the kernel checks `theirs` and fails with EFAULT if
    // it is not readable.
    let read = unsafe { libc::process_vm_readv(libc::getpid(), &ours, 1, &theirs, 1, 0) };
    set_errno(errno);
    (usize::try_from(read) == Ok(size)).then_some(value)
}
