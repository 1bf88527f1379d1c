//! Writes that go on after the call that began them: captured when they are submitted, marked when they have ended.
//!
//! Bytes of such a write reach the file at any time between the call that submits it and its end. So a submission is a
//! captured call, which waits at the closed gate like any other; what it writes is noted in [`Flights`] and marked when its
//! end is seen: by the hook of the call that tells the program, or by the engine in the ring itself, for whoever would ask
//! may wait at the gate. The cut waits until nothing flies.
//!
//! What was submitted before the session began is not known. It is marked when it ends, from what the request says; so that
//! it ends before the cut, there is none within the first second.

mod aio;
mod engine;
mod entered;
mod examine;
mod posix;
mod rings;
mod unfollowed;
mod uring;

pub use aio::{destroying, reaping, submitting};
pub use entered::{Entry, entering, registering, set_up, unmapping};
pub(crate) use examine::examine;
pub use posix::{asking, queueing, queueing_list, suspended};
pub(crate) use unfollowed::{Unfollowed, never_at_rest};
pub use uring::{leaving, submitting_prepared, submitting_prepared_and_waiting};

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering, fence};

use crate::crossings;
use crate::extents;
use crate::flights::{Flights, Late, Target};
use crate::gate::{self, Gate, Inside, State, Word};
use crate::intercept::{self, Found};
use crate::registry::{self, WATCH};
use crate::sys;
use rings::{Ring, Rings};

/// What a session knows of asynchronous writes.
pub(crate) struct AsyncIo {
    flights: sys::mem::AtomicRef<Flights>,
    rings: sys::mem::AtomicRef<Rings>,
    /// Whether the rings of io_uring that were there when the session began have been taken up. Until then what is submitted
    /// need not be noted: it ends before anything is copied.
    taken_up: AtomicBool,
    untracked: AtomicU32,
    /// How many times a ring was found to be one that cannot be followed, or went after that.
    given_up: AtomicU32,
    /// When the session began, in nanoseconds since the epoch.
    begun: AtomicI64,
    /// Counts the calls that met a ring which is not known, and those of them that the engine has looked it up for.
    asked: AtomicU32,
    answered: AtomicU32,
}

/// Why asynchronous writes could not be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Untracked {
    TooMany = 1,
    Descriptor,
    Unreadable,
    Before,
    Ring,
    Submission,
    Request,
    SetUp,
    Unending,
}

/// The reasons, in the order of [`Untracked`].
const REASONS: [&str; 9] = [
    "more of them are under way, or more rings were used in the session, than there is room for",
    "a descriptor was closed while a write to it was being submitted",
    "a request or a ring could not be read",
    "one that was submitted before the backup began has ended, and what it wrote cannot be told",
    "a ring of io_uring is one that a kernel thread polls, or that is polled, or has ends of a kind that is not known",
    "requests were submitted to a ring of io_uring by a way that is not captured",
    "a request of io_uring is of a kind that cannot be captured",
    "requests were submitted to a ring of io_uring whose set-up was not seen",
    "requests that were submitted to a ring of io_uring before the backup began do not end",
];

/// The session cannot follow a write. The first reason counts.
#[cold]
fn untracked(why: Untracked) {
    let _ = WATCH.async_io.untracked.compare_exchange(0, why as u32, Ordering::SeqCst, Ordering::Relaxed);
}

/// `N` bytes of a buffer, which is long enough.
fn bytes<const N: usize>(buffer: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&buffer[at..at + N]);
    bytes
}

impl AsyncIo {
    pub(crate) const fn new() -> AsyncIo {
        AsyncIo {
            flights: sys::mem::AtomicRef::none(),
            rings: sys::mem::AtomicRef::none(),
            taken_up: AtomicBool::new(false),
            untracked: AtomicU32::new(0),
            given_up: AtomicU32::new(0),
            begun: AtomicI64::new(0),
            asked: AtomicU32::new(0),
            answered: AtomicU32::new(0),
        }
    }

    /// Readies everything for a new session; false without memory.
    pub(crate) fn reset(&self, pool: &sys::mem::Pool) -> bool {
        self.untracked.store(0, Ordering::Relaxed);
        self.given_up.store(0, Ordering::Relaxed);
        self.taken_up.store(false, Ordering::Relaxed);
        self.begun.store(sys::raw::realtime_ns(), Ordering::Relaxed);
        self.flights.store(pool.one::<Flights>(), Ordering::Release);
        self.rings.store(pool.one::<Rings>(), Ordering::Release);
        self.flights().is_some() && self.rings.load(Ordering::Relaxed).is_some()
    }

    /// The table of writes; `None` before the first session.
    fn flights(&self) -> Option<&'static Flights> {
        self.flights.load(Ordering::Acquire)
    }

    fn rings(&self) -> impl Iterator<Item = &'static Ring> {
        self.rings.load(Ordering::Acquire).into_iter().flat_map(Rings::all)
    }

    /// Whether the program has used rings of io_uring in this session, for all that is known.
    pub(crate) fn has_urings(&self) -> bool {
        self.rings().any(|ring| ring.kind() == rings::URING)
    }

    fn is_taken_up(&self) -> bool {
        self.taken_up.load(Ordering::SeqCst)
    }

    fn find(&self, address: u64) -> Option<&'static Ring> {
        self.rings.load(Ordering::Acquire)?.find(address)
    }

    fn of_inode(&self, inode: u64) -> Option<&'static Ring> {
        self.rings.load(Ordering::Acquire)?.of_inode(inode)
    }

    /// The entry of a ring, which may be new.
    fn enter(&self, address: u64) -> Option<&'static Ring> {
        let ring = self.rings.load(Ordering::Acquire)?.enter(address);
        if ring.is_none() {
            untracked(Untracked::TooMany);
        }
        ring
    }

    /// Has the engine look at a ring of native AIO.
    fn follow_aio(&self, address: u64) {
        if let Some(ring) = self.enter(address) {
            ring.set_kind(rings::AIO);
        }
    }
}

/// Marks what a write that has ended has changed, if the session watches the file.
fn mark(target: &Target) {
    if let Some(late) = target.late.filter(Late::may_be_another) {
        WATCH.crossings.report_write_since(late.since);
    }
    if target.is_names() {
        return WATCH.crossings.report(crossings::ANYWHERE | crossings::NAMES | crossings::DATA);
    }
    if !target.is_file() {
        return;
    }
    // As in `Pending::mark`: the file has changed, then the inode is looked up.
    fence(Ordering::SeqCst);
    let Some(marks) = WATCH.find(target.dev, target.ino) else { return };
    match target.to {
        u64::MAX => {
            marks.mark_all(&WATCH.ledger);
            marks.mark_flags(&WATCH.ledger, extents::ATTRIBUTES);
        }
        to => marks.mark_range(&WATCH.ledger, target.from, to),
    }
    WATCH.marked.fetch_add(1, Ordering::SeqCst);
}

/// An asynchronous write as a request says it.
struct Request {
    fd: RawFd,
    place: Where,
}

/// Where it goes.
#[derive(Clone, Copy)]
enum Where {
    At(u64, u64),
    Anywhere,
}

impl Where {
    fn at(at: i64, len: u64) -> Where {
        u64::try_from(at).map_or(Where::Anywhere, |at| Where::At(at, at.saturating_add(len)))
    }
}

impl Request {
    /// Looks up the file: `None` if that is not possible, `Some(None)` if it is none that could be backed up.
    fn target(&self, state: State) -> Option<Option<Target>> {
        let by_engine = sys::thread::is_engine();
        let found = match by_engine {
            true => Found::descriptor_of_host(self.fd, state)?,
            false => Found::descriptor(self.fd, state)?,
        };
        if !found.may_be_backed_up() {
            return Some(None);
        }
        let (from, to) = match self.place {
            Where::At(from, to) if !by_engine && !intercept::appends(self.fd) => (from, to),
            _ => (0, u64::MAX),
        };
        Some(Some(Target { dev: found.dev, ino: found.ino, from, to, late: None }))
    }

    /// The same for a request that is about to be made, and whose descriptor counts when the kernel comes to it.
    fn late_target(&self, state: State) -> Target {
        let late = Late::now(self.fd);
        match self.target(state) {
            Some(target) => Target { late: Some(late), ..target.unwrap_or(Target::NOTHING) },
            // It may be a descriptor by then.
            None => Target::some_file(Late { fd: -1, ..late }),
        }
    }
}

impl Late {
    /// To be asked for before the file is looked up.
    fn now(fd: RawFd) -> Late {
        Late { fd, endings: WATCH.endings(fd), since: sys::raw::realtime_ns() }
    }

    /// Whether the kernel may have found another file than was looked up.
    fn may_be_another(&self) -> bool {
        self.fd < 0 || WATCH.endings_since(self.fd, self.endings) > 0
    }
}

/// What a call that submits is about.
struct Submission<B, N, W> {
    ring: u64,
    /// Says whether files are written that cannot be looked up.
    is_blind: B,
    /// Notes what is about to be submitted.
    note: N,
    /// Called while the call waits at the gate, again and again if it says so.
    waiting: W,
}

/// Makes a call that submits; `taken` sees what became of it.
#[inline(always)]
fn submit<R>(
    what: Submission<impl Fn() -> bool, impl FnOnce(State, &mut Noted), impl Fn() -> bool>,
    real: impl FnOnce() -> R,
    taken: impl FnOnce(&R),
) -> R {
    let Some(slot) = registry::slot() else { return real() };
    let inside = slot.enter(Word::ring(what.ring), gate::here());
    match registry::gate() {
        Some(gate) if gate.state() != State::Idle => captured(&inside, gate, what, real, taken),
        _ => real(),
    }
}

/// The same with a call that also waits for ends: while a session runs, `first` submits inside the gate and `wait` waits outside,
/// and returns what the `whole` call would have.
#[inline(always)]
fn submit_and_wait<R>(
    what: Submission<impl Fn() -> bool, impl FnOnce(State, &mut Noted), impl Fn() -> bool>,
    whole: impl FnOnce() -> R,
    first: impl FnOnce() -> R,
    taken: impl FnOnce(&R),
    wait: impl FnOnce(R) -> R,
) -> R {
    let Some(slot) = registry::slot() else { return whole() };
    let inside = slot.enter(Word::ring(what.ring), gate::here());
    match registry::gate() {
        Some(gate) if gate.state() != State::Idle => {
            let submitted = captured(&inside, gate, what, first, taken);
            if !inside.is_nested() {
                inside.step_out();
            }
            wait(submitted)
        }
        _ => whole(),
    }
}

#[cold]
#[inline(never)]
fn captured<R>(
    inside: &Inside<'_>,
    gate: &Gate,
    what: Submission<impl Fn() -> bool, impl FnOnce(State, &mut Noted), impl Fn() -> bool>,
    real: impl FnOnce() -> R,
    taken: impl FnOnce(&R),
) -> R {
    if sys::thread::is_engine() {
        inside.step_out();
        return real();
    }
    let state = intercept::pass_the_gate_and_audit(inside, gate, what.waiting, what.is_blind);
    if state == State::Idle {
        return real();
    }
    let endings = WATCH.endings.read();
    let mut noted = Noted::default();
    intercept::guarded(|| (what.note)(state, &mut noted));
    let result = real();
    let _errno = sys::errno::Preserve::new();
    intercept::guarded(|| {
        taken(&result);
        if WATCH.endings.since(endings) > 0 {
            noted.look_again();
        }
    });
    if !inside.is_nested() {
        inside.step_out();
        intercept::wait_for_relief();
    }
    result
}

/// How many descriptors of one call's writes are looked at again when descriptors were closed beside it.
const LOOKED_AT_AGAIN: usize = 32;

/// Which files the descriptors of a call's writes stood for.
#[derive(Default)]
struct Noted {
    files: [(RawFd, u64, u64); LOOKED_AT_AGAIN],
    count: usize,
}

impl Noted {
    fn add(&mut self, fd: RawFd, target: Target) {
        let file = (fd, target.dev, target.ino);
        if self.files.iter().take(self.count).any(|&known| known == file) {
            return;
        }
        if let Some(place) = self.files.get_mut(self.count) {
            *place = file;
        }
        self.count += 1;
    }

    /// Descriptors were closed beside the call: one that stands for another file now may have done so when the kernel took the
    /// write. By now the request may have ended, so that it cannot be noted any more.
    fn look_again(&self) {
        let is_same = |&(fd, dev, ino): &(RawFd, u64, u64)| {
            Found::descriptor(fd, State::Open).is_some_and(|now| (now.dev, now.ino) == (dev, ino))
        };
        let known = self.files.get(..self.count);
        if !known.is_some_and(|files| files.iter().all(is_same)) {
            untracked(Untracked::Descriptor);
        }
    }
}

/// Does what is due when requests have ended, inside the session if it goes on.
#[cold]
#[inline(never)]
fn ended(ring: u64, land: impl FnOnce()) {
    let _errno = sys::errno::Preserve::new();
    if sys::thread::is_engine() {
        return;
    }
    let (Some(slot), Some(gate)) = (registry::slot(), registry::gate()) else { return };
    let inside = slot.enter(Word::ring(ring), gate::here());
    // It does not wait at the closed gate: it changes no file, and the cut may wait for what it says.
    if inside.join(gate) != State::Idle {
        intercept::guarded(land);
    }
}
