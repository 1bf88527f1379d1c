//! Writes that go on after the call that began them: captured when they are submitted, marked when they have ended.
//!
//! Bytes of such a write reach the file at any time between the call that submits it and its end. So a submission is a
//! captured call, which waits at the closed gate like any other; what it writes is noted in [`Flights`] and marked when its
//! end is seen: by the hook of the call that tells the program, or by the engine in the ring itself, for whoever would ask
//! may wait at the gate. The cut waits until nothing flies.
//!
//! What was submitted before the session began is not known. It is marked when it ends, from what the request says; so that
//! it ends before the cut, there is none within the first second ([`SETTLING`]).

mod aio;
mod rings;
mod uring;

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use std::time::Duration;

use crate::conductor::{Engine, Trouble};
use crate::crossings;
use crate::error::{Error, Result};
use crate::flights::{Flights, Name, Target};
use crate::gate::{Gate, Inside, State, Word};
use crate::intercept::{self, Found};
use crate::registry::{self, WATCH};
use crate::sys;
use rings::{Ring, Rings};

/// How long after arming there is no cut if there are rings of native AIO: what was submitted before has ended by then.
const SETTLING: Duration = Duration::from_secs(1);

/// How long submissions are held up while a session begins, for what was submitted to io_uring before to end, at the first
/// try and, twice as long each time, at further ones.
const QUIETING: Duration = Duration::from_millis(20);
const QUIETINGS: u32 = 5;

/// What a session knows of asynchronous writes.
pub(crate) struct AsyncIo {
    flights: sys::mem::AtomicRef<Flights>,
    rings: sys::mem::AtomicRef<Rings>,
    /// Whether the rings of io_uring that were there when the session began have been taken up. Until then what is submitted
    /// need not be noted: it ends before anything is copied.
    taken_up: AtomicBool,
    untracked: AtomicU32,
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
    FixedFile,
}

/// The reasons, in the order of [`Untracked`].
const REASONS: [&str; 8] = [
    "more of them, or more rings, are in use at the same time than there is room for",
    "a descriptor was closed while a write to it was being submitted",
    "a request or a ring could not be read",
    "one that was submitted before the backup began has ended, and what it wrote cannot be told",
    "a ring of io_uring is one that a kernel thread polls, or that is polled, or has ends of a kind that is not known",
    "requests were submitted to a ring of io_uring by other means than liburing's io_uring_submit and io_uring_submit_and_wait",
    "a request of io_uring is of a kind that cannot be captured",
    "a request of io_uring writes to a registered file",
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
        }
    }

    /// Readies everything for a new session; false without memory.
    pub(crate) fn reset(&self, pool: &sys::mem::Pool) -> bool {
        self.untracked.store(0, Ordering::Relaxed);
        self.taken_up.store(false, Ordering::Relaxed);
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

    fn find(&self, address: u64) -> Option<&'static Ring> {
        self.rings.load(Ordering::Acquire)?.find(address)
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
    if *target == Target::NOTHING {
        return;
    }
    if target.is_names() {
        return WATCH.crossings.report(crossings::ANYWHERE | crossings::NAMES | crossings::DATA);
    }
    // As in `Pending::mark`: the file has changed, then the inode is looked up.
    fence(Ordering::SeqCst);
    let Some(marks) = WATCH.find(target.dev, target.ino) else { return };
    match target.to {
        u64::MAX => marks.mark_all(&WATCH.ledger),
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
        Some(Some(Target { dev: found.dev, ino: found.ino, from, to }))
    }
}

/// Makes the call `real`, which submits `count` requests of native AIO to the ring `ring`; `requests` is the address of an
/// array of pointers to them (io_submit(2)). `submitted` says how many the kernel has taken.
///
/// For hooks. Returns what `real` returned, with errno as it left it.
#[inline(always)]
pub fn submitting<R>(
    ring: u64,
    requests: u64,
    count: usize,
    real: impl FnOnce() -> R,
    submitted: impl FnOnce(&R) -> usize,
) -> R {
    let batch = Batch { ring, requests, count };
    let (note, taken) = (
        |state, noted: &mut Noted| batch.note(state, noted),
        |result: &R| batch.forget_from(submitted(result)),
    );
    submit(ring, note, real, taken)
}

/// Makes the call `real`, which submits what was prepared in the ring of io_uring that liburing's handle at the address
/// `handle` is of (io_uring_submit(3)).
///
/// For hooks. Returns what `real` returned, with errno as it left it.
#[inline(always)]
pub fn submitting_prepared<R>(handle: u64, real: impl FnOnce() -> R) -> R {
    let note = |state, noted: &mut Noted| {
        if !WATCH.async_io.taken_up.load(Ordering::SeqCst) {
            return;
        }
        let Some(handle) = uring::Handle::read(handle) else { return untracked(Untracked::Unreadable) };
        match handle.meet() {
            Some(ring) => handle.note(ring, state, noted),
            None => untracked(Untracked::Unreadable),
        }
    };
    submit(handle, note, real, |_| {})
}

/// Makes the call `real`, which gives back the ring of io_uring that liburing's handle at the address `handle` is of
/// (io_uring_queue_exit(3)).
#[inline(always)]
pub fn leaving<R>(handle: u64, real: impl FnOnce() -> R) -> R {
    let note = |_, _: &mut Noted| {
        let Some(handle) = uring::Handle::read(handle) else { return };
        if let Some(ring) = WATCH.async_io.find(handle.ring).filter(|ring| ring.kind() == rings::URING) {
            uring::look(ring);
            ring.set_kind(rings::GONE);
        }
    };
    submit(handle, note, real, |_| {})
}

#[inline(always)]
fn submit<R>(
    ring: u64,
    note: impl FnOnce(State, &mut Noted),
    real: impl FnOnce() -> R,
    taken: impl FnOnce(&R),
) -> R {
    let Some(slot) = registry::slot() else { return real() };
    let inside = slot.enter(Word::ring(ring));
    match registry::gate() {
        Some(gate) if gate.state() != State::Idle => captured(&inside, gate, note, real, taken),
        _ => real(),
    }
}

/// Makes the call `real`, which tells the program of requests of the ring `ring` that have ended (io_getevents(2)); `events`
/// says at which address and how many. The call may wait for as long as it likes.
#[inline(always)]
pub fn reaping<R>(ring: u64, real: impl FnOnce() -> R, events: impl FnOnce(&R) -> (u64, usize)) -> R {
    let result = real();
    if intercept::is_capturing() {
        ended(ring, || {
            let (events, count) = events(&result);
            aio::told(ring, events, count);
        });
    }
    result
}

/// Makes the call `real`, which waits for all requests of the ring `ring` to end and destroys it; `destroyed` says whether it
/// has (io_destroy(2)).
#[inline(always)]
pub fn destroying<R>(ring: u64, real: impl FnOnce() -> R, destroyed: impl FnOnce(&R) -> bool) -> R {
    let result = real();
    if intercept::is_capturing() && destroyed(&result) {
        ended(ring, || WATCH.async_io.flights().into_iter().for_each(|flights| flights.land_all(ring, mark)));
    }
    result
}

/// Requests of one call.
struct Batch {
    ring: u64,
    requests: u64,
    count: usize,
}

#[cold]
#[inline(never)]
fn captured<R>(
    inside: &Inside<'_>,
    gate: &Gate,
    note: impl FnOnce(State, &mut Noted),
    real: impl FnOnce() -> R,
    taken: impl FnOnce(&R),
) -> R {
    if intercept::is_not_ours() {
        inside.step_out();
        return real();
    }
    let state = intercept::pass_the_gate(inside, gate);
    if state == State::Idle {
        return real();
    }
    let endings = WATCH.endings();
    let mut noted = Noted::default();
    intercept::guarded(|| note(state, &mut noted));
    let result = real();
    let _errno = sys::errno::Preserve::new();
    intercept::guarded(|| {
        taken(&result);
        if endings.is_none() || WATCH.endings() != endings {
            noted.look_again();
        }
    });
    if !inside.is_nested() {
        inside.step_out();
        intercept::wait_for_relief();
    }
    result
}

impl Batch {
    fn names(&self) -> impl Iterator<Item = Option<Name>> {
        (0..self.count)
            .map(|index| aio::address(self.requests, index).map(|cookie| Name { ring: self.ring, cookie }))
    }

    /// Notes every request. What cannot be read is refused by the kernel too, and everything behind it.
    fn note(&self, state: State, noted: &mut Noted) {
        WATCH.async_io.follow_aio(self.ring);
        let Some(flights) = WATCH.async_io.flights() else { return };
        for name in self.names() {
            let Some(name) = name else { return };
            let Ok(request) = aio::request(name.cookie) else { return };
            let target = request.and_then(|request| Some((request.fd, request.target(state).flatten()?)));
            target.into_iter().for_each(|(fd, target)| noted.add(fd, target));
            if !flights.note(name, target.map_or(Target::NOTHING, |(_, target)| target)) {
                untracked(Untracked::TooMany);
            }
        }
    }

    /// Takes back the writes that the kernel has not taken.
    fn forget_from(&self, taken: usize) {
        let Some(flights) = WATCH.async_io.flights() else { return };
        self.names().skip(taken).map_while(|name| name).for_each(|name| flights.forget(name, mark));
    }
}

/// How many writes of one call are looked at again when descriptors were closed beside it.
const LOOKED_AT_AGAIN: usize = 32;

/// Which files the descriptors of a call's writes stood for.
#[derive(Default)]
struct Noted {
    files: [(RawFd, u64, u64); LOOKED_AT_AGAIN],
    count: usize,
}

impl Noted {
    fn add(&mut self, fd: RawFd, target: Target) {
        if let Some(place) = self.files.get_mut(self.count) {
            *place = (fd, target.dev, target.ino);
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
    if intercept::is_not_ours() {
        return;
    }
    let (Some(slot), Some(gate)) = (registry::slot(), registry::gate()) else { return };
    let inside = slot.enter(Word::ring(ring));
    // It does not wait at the closed gate: it changes no file, and the cut may wait for what it says.
    if inside.join(gate) != State::Idle {
        intercept::guarded(land);
    }
}

/// Mappings of this process whose name holds `kind`, and which begin where the thing that is mapped does.
fn mapped(kind: &str) -> Vec<u64> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let address = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let (range, offset) = (words.next()?, words.nth(1)?);
        (offset.trim_start_matches('0').is_empty() && line.contains(kind))
            .then(|| u64::from_str_radix(range.split('-').next()?, 16).ok())?
    };
    maps.lines().filter_map(address).collect()
}

/// The rings of io_uring that were used and that no captured call has met: one enters a ring before it submits. `places` is
/// asked for when it is needed.
fn used_rings(places: &mut Option<uring::Places>) -> Vec<(u64, uring::Places)> {
    let is_unknown = |address: u64| WATCH.async_io.find(address).is_none();
    let mut found = mapped("anon_inode:[io_uring]");
    found.retain(|&address| is_unknown(address));
    if !found.is_empty() && places.is_none() {
        *places = uring::Places::ask();
        if places.is_none() {
            untracked(Untracked::Unreadable);
        }
    }
    let used = |address| {
        let places = (*places)?;
        (places.was_used(address) && is_unknown(address)).then_some((address, places))
    };
    found.into_iter().filter_map(used).collect()
}

impl Engine<'_> {
    /// Takes up the rings that are there already. Submissions to io_uring are held up until what was submitted before has
    /// ended; of native AIO nobody knows what was.
    pub(crate) fn take_up_rings(&mut self) -> Result<()> {
        mapped("/[aio]").into_iter().for_each(|address| WATCH.async_io.follow_aio(address));
        let mut places = None;
        for quieting in 0..QUIETINGS {
            for (address, places) in used_rings(&mut places) {
                WATCH.async_io.enter(address).into_iter().for_each(|ring| places.take_up(ring));
            }
            let is_quiet = self.quiet_rings(QUIETING * (1 << quieting));
            WATCH.async_io.taken_up.store(is_quiet, Ordering::SeqCst);
            // One may have been made, and used, before that was done.
            if is_quiet && used_rings(&mut places).is_empty() {
                return self.check_rings();
            }
            WATCH.async_io.taken_up.store(false, Ordering::SeqCst);
            sys::thread::nap(QUIETING);
        }
        Err(Error::AsyncWrites {
            reason: "requests that were submitted to a ring of io_uring before the backup began do not end"
                .into(),
        })
    }

    /// Holds submissions up, at most for `time`, until nothing is under way in any ring of io_uring.
    fn quiet_rings(&mut self, time: Duration) -> bool {
        let urings = || WATCH.async_io.rings().filter(|ring| ring.kind() == rings::URING);
        if urings().next().is_none() {
            return true;
        }
        let ticket = self.close_gate();
        let deadline = sys::raw::monotonic_ns() + u64::try_from(time.as_nanos()).unwrap_or(0);
        let expired = || sys::raw::monotonic_ns() >= deadline;
        let mut is_quiet = false;
        if registry::wait_until_outside(registry::changes_files, expired).is_ok() {
            while !is_quiet && !expired() {
                is_quiet = urings().all(uring::is_quiet);
                sys::thread::nap(Duration::from_micros(20));
            }
        }
        // Still nobody is inside: what comes finds it said.
        WATCH.async_io.taken_up.store(is_quiet, Ordering::SeqCst);
        self.deadline_ns = 0;
        self.gate.open_from(ticket, State::Open) && is_quiet
    }

    /// Looks for rings of io_uring that were used and that no captured call has met.
    pub(crate) fn look_for_rings(&self) -> Result<()> {
        if !used_rings(&mut None).is_empty() {
            untracked(Untracked::Submission);
        }
        self.check_rings()
    }

    /// Lets the time pass in which what was submitted before the session ends.
    pub(crate) fn settle_rings(&mut self) -> Result<(), Trouble> {
        while WATCH.async_io.rings().any(|ring| ring.kind() == rings::AIO) && self.armed.elapsed() < SETTLING
        {
            self.check()?;
            self.converge_once()?;
        }
        Ok(())
    }

    /// Waits until every asynchronous write has ended, and marks what was written. Everyone is outside.
    pub(crate) fn land_writes(&mut self) -> Result<(), Trouble> {
        let mut all = true;
        loop {
            let ended = WATCH.async_io.flights().is_none_or(Flights::none_flies);
            for ring in WATCH.async_io.rings() {
                match ring.kind() {
                    rings::AIO => aio::look(ring.address(), all || ended),
                    rings::URING => uring::look(ring),
                    _ => {}
                }
            }
            if ended {
                return Ok(());
            }
            all = false;
            if sys::raw::monotonic_ns() >= self.deadline_ns {
                return Err(Trouble::Void("an asynchronous write did not end in time"));
            }
            sys::thread::nap(Duration::from_micros(20));
        }
    }

    /// Fails if a write could not be followed.
    fn check_rings(&self) -> Result<()> {
        match WATCH.async_io.untracked.load(Ordering::SeqCst) {
            0 => Ok(()),
            code => Err(Error::AsyncWrites { reason: REASONS[code as usize - 1].into() }),
        }
    }
}
