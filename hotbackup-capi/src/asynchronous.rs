//! What the calls of asynchronous input and output mean to the engine: of libaio, of liburing, of the C library's own, and by number.

use std::ffi::{c_char, c_int, c_long, c_uint, c_void};
use std::sync::atomic::{AtomicU32, Ordering};

use hotbackup::intercept::{self, Entry};
use libc::ssize_t;

use crate::hooks;
use crate::meaning::Meaning;
use crate::real::{Unavailable, set_errno};

/// `io_submit`.
pub(crate) struct Submits {
    pub(crate) ring: usize,
    pub(crate) count: usize,
    pub(crate) requests: usize,
}

/// `io_getevents` and `io_pgetevents`.
pub(crate) struct Reaps {
    pub(crate) ring: usize,
    pub(crate) events: usize,
}

/// `io_destroy`.
pub(crate) struct Destroys {
    pub(crate) ring: usize,
}

/// `io_uring_submit`.
pub(crate) struct Prepared {
    pub(crate) handle: usize,
}

/// `io_uring_queue_exit`.
pub(crate) struct Leaves {
    pub(crate) handle: usize,
}

/// `io_uring_submit_and_wait`.
pub(crate) struct PreparedAndWaits {
    pub(crate) handle: *mut c_void,
    pub(crate) least: c_uint,
}

/// `io_uring_setup`.
pub(crate) struct SetsUp {
    pub(crate) parameters: *const c_void,
}

/// Other functions that set a ring of io_uring up: the engine need not know, but they can be refused.
pub(crate) struct MakesRing;

/// `io_uring_register` and its family, by which files may be registered.
pub(crate) struct Registers;

/// `io_uring_enter`.
pub(crate) struct Enters(pub(crate) Entry);

/// `aio_write`.
pub(crate) struct Queues {
    pub(crate) request: usize,
}

/// `lio_listio`.
pub(crate) struct QueuesList {
    pub(crate) requests: usize,
    pub(crate) count: c_int,
}

/// `aio_error`, and `aio_return`, behind which nobody asks any more.
pub(crate) struct Asks {
    pub(crate) request: usize,
    pub(crate) for_good: bool,
}

/// `aio_suspend`.
pub(crate) struct Suspends {
    pub(crate) requests: usize,
    pub(crate) count: c_int,
}

/// `syscall`: the table says what the number means, but for the calls of asynchronous input and output, whose result and error are
/// not those of the libraries' functions.
pub(crate) struct ByNumber {
    pub(crate) number: c_long,
    pub(crate) registers: [usize; 6],
}

/// The number of io_pgetevents(2), which libc does not have for every architecture.
#[cfg(target_arch = "x86_64")]
pub(crate) const SYS_IO_PGETEVENTS: c_long = 333;
#[cfg(not(target_arch = "x86_64"))]
pub(crate) const SYS_IO_PGETEVENTS: c_long = 292;

/// A call of libaio's that this thread is inside of, by ring and argument: libaio makes the same call by `syscall`, which has nothing more to do then.
/// Only `syscall` asks: a call of libaio's that longjmp has left behind must not hide the next one.
struct Within {
    outer: (usize, usize),
}

impl Within {
    #[inline(always)]
    fn enter(call: (usize, usize)) -> Within {
        Within { outer: intercept::replace_words(call) }
    }
}

impl Drop for Within {
    fn drop(&mut self) {
        intercept::replace_words(self.outer);
    }
}

impl<R: Copy + TryInto<usize>> Meaning<R> for Submits {
    #[inline(always)]
    fn pass(self, real: impl FnOnce() -> R) -> R {
        let _within = Within::enter((self.ring, self.requests));
        // A negative count is refused.
        let count = if isize::try_from(self.count).is_ok() { self.count } else { 0 };
        let taken = |result: &R| (*result).try_into().unwrap_or(0);
        intercept::submitting(self.ring as u64, self.requests as u64, count, real, taken)
    }
}

impl<R: Copy + TryInto<usize>> Meaning<R> for Reaps {
    #[inline(always)]
    fn pass(self, real: impl FnOnce() -> R) -> R {
        let _within = Within::enter((self.ring, self.events));
        let events = |result: &R| (self.events as u64, (*result).try_into().unwrap_or(0));
        intercept::reaping(self.ring as u64, real, events)
    }
}

impl<R: Copy + TryInto<usize>> Meaning<R> for Destroys {
    #[inline(always)]
    fn pass(self, real: impl FnOnce() -> R) -> R {
        let _within = Within::enter((self.ring, 0));
        intercept::destroying(self.ring as u64, real, |result| (*result).try_into().is_ok())
    }
}

impl Meaning<c_int> for Prepared {
    #[inline(always)]
    fn pass(self, real: impl FnOnce() -> c_int) -> c_int {
        intercept::submitting_prepared(self.handle as u64, real)
    }
}

impl Meaning<()> for Leaves {
    #[inline(always)]
    fn pass(self, real: impl FnOnce()) {
        intercept::leaving(self.handle as u64, real);
    }
}

impl Meaning<c_int> for PreparedAndWaits {
    #[inline(always)]
    fn pass(self, real: impl FnOnce() -> c_int) -> c_int {
        let PreparedAndWaits { handle, least } = self;
        // SAFETY: the caller keeps the contract of io_uring_submit_and_wait, which asks for all that io_uring_submit does.
        let submit_only = || unsafe { hooks::submit_only(handle) };
        intercept::submitting_prepared_and_waiting(handle as u64, least, real, submit_only)
    }
}

impl Meaning<c_int> for SetsUp {
    fn pass(self, real: impl FnOnce() -> c_int) -> c_int {
        if refuses_rings() {
            return -libc::ENOSYS;
        }
        let ring = real();
        remember(ring.into(), self.parameters);
        ring
    }
}

/// Keeps how a ring was set up, if it was.
fn remember(ring: c_long, parameters: *const c_void) {
    if let Ok(fd) = u32::try_from(ring) {
        // SAFETY: the kernel has just read its third word, the flags, from there (`struct io_uring_params`), and written the rest.
        let flags = unsafe { parameters.cast::<u32>().add(2).read_volatile() };
        intercept::set_up(fd.cast_signed(), flags);
    }
}

/// What a function returns that is refused.
pub(crate) trait Refused {
    fn refused() -> Self;
}

impl Refused for c_int {
    fn refused() -> c_int {
        -libc::ENOSYS
    }
}

impl Refused for *mut c_char {
    fn refused() -> *mut c_char {
        std::ptr::null_mut()
    }
}

impl<R: Refused> Meaning<R> for MakesRing {
    #[inline(always)]
    fn pass(self, real: impl FnOnce() -> R) -> R {
        if refuses_rings() { R::refused() } else { real() }
    }
}

impl<R> Meaning<R> for Registers {
    #[inline(always)]
    fn pass(self, real: impl FnOnce() -> R) -> R {
        intercept::registering(real)
    }
}

impl Meaning<c_int> for Enters {
    #[inline(always)]
    fn pass(self, real: impl FnOnce() -> c_int) -> c_int {
        let result = |done: Result<u32, c_int>| done.map_or_else(|errno| -errno, u32::cast_signed);
        intercept::entering(self.0, real, result, |&count| u32::try_from(count).ok())
    }
}

impl Meaning<c_int> for Queues {
    #[inline(always)]
    fn pass(self, real: impl FnOnce() -> c_int) -> c_int {
        intercept::queueing(self.request as u64, real, |&result| result == 0)
    }
}

impl Meaning<c_int> for QueuesList {
    #[inline(always)]
    fn pass(self, real: impl FnOnce() -> c_int) -> c_int {
        intercept::queueing_list(self.requests as u64, self.count.try_into().unwrap_or(0), real)
    }
}

impl Meaning<c_int> for Asks {
    #[inline(always)]
    fn pass(self, real: impl FnOnce() -> c_int) -> c_int {
        intercept::asking(self.request as u64, self.for_good, real)
    }
}

impl Meaning<ssize_t> for Asks {
    #[inline(always)]
    fn pass(self, real: impl FnOnce() -> ssize_t) -> ssize_t {
        intercept::asking(self.request as u64, self.for_good, real)
    }
}

impl Meaning<c_int> for Suspends {
    #[inline(always)]
    fn pass(self, real: impl FnOnce() -> c_int) -> c_int {
        intercept::suspended(self.requests as u64, self.count.try_into().unwrap_or(0), real)
    }
}

impl Meaning<c_long> for ByNumber {
    #[inline(always)]
    fn pass(self, real: impl FnOnce() -> c_long) -> c_long {
        let [ring, b, c, d, e, f] = self.registers;
        let is_new = |argument| intercept::words() != (ring, argument);
        match self.number {
            libc::SYS_io_submit if is_new(c) => Submits { ring, count: b, requests: c }.pass(real),
            libc::SYS_io_getevents | SYS_IO_PGETEVENTS if is_new(d) => Reaps { ring, events: d }.pass(real),
            libc::SYS_io_destroy if is_new(0) => Destroys { ring }.pass(real),
            libc::SYS_io_uring_setup if refuses_rings() => c_long::unavailable(),
            libc::SYS_io_uring_setup => {
                let made = real();
                remember(made, b as *const c_void);
                made
            }
            libc::SYS_io_uring_enter => by_number(entry([ring, b, c, d, e, f]), real),
            libc::SYS_io_uring_register => Registers.pass(real),
            libc::SYS_userfaultfd => intercept::making_userfaultfd(real),
            _ => hooks::pass_by_number(self.number, self.registers, real),
        }
    }
}

/// The arguments of io_uring_enter(2), of which the kernel takes 32 bits each but for the fifth and sixth.
fn entry([fd, to_submit, least, flags, argument, size]: [usize; 6]) -> Entry {
    Entry {
        fd: fd as c_int,
        to_submit: to_submit as u32,
        least: least as u32,
        flags: flags as u32,
        argument,
        size,
    }
}

#[inline(always)]
fn by_number(entry: Entry, real: impl FnOnce() -> c_long) -> c_long {
    let result = |done: Result<u32, c_int>| match done {
        Ok(count) => count.into(),
        Err(errno) => {
            set_errno(errno);
            -1
        }
    };
    intercept::entering(entry, real, result, |&count| u32::try_from(count).ok())
}

/// What `HOTBACKUP_IO_URING` says, once it has been looked at.
static RINGS: AtomicU32 = AtomicU32::new(0);
const FOLLOWED: u32 = 1;
const REFUSED: u32 = 2;

/// Whether setting up rings of io_uring is to fail, as on a kernel that has none: `HOTBACKUP_IO_URING=refuse`.
pub(crate) fn refuses_rings() -> bool {
    let known = match RINGS.load(Ordering::Relaxed) {
        0 => look_at_environment(),
        known => known,
    };
    known == REFUSED
}

/// Looks once, when the library is loaded: what the program does to its environment later counts for its children.
#[cold]
pub(crate) fn look_at_environment() -> u32 {
    // SAFETY: the name ends with NUL, and so does what is found; nobody changes the environment while libraries are loaded.
    let refuses = unsafe {
        let value = libc::getenv(c"HOTBACKUP_IO_URING".as_ptr());
        !value.is_null() && std::ffi::CStr::from_ptr(value) == c"refuse"
    };
    let found = if refuses { REFUSED } else { FOLLOWED };
    RINGS.store(found, Ordering::Relaxed);
    found
}
