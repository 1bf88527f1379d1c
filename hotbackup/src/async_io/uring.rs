//! io_uring: how requests, their ends and liburing's handle are laid out (`linux/io_uring.h`, `liburing.h`).
//!
//! Two counters of a ring say all: the tail of the submissions, which the program moves on, and the tail of the ends, which the
//! kernel moves on. Requests are read before they are submitted; how far the tail of submissions may have come by that is kept,
//! so that a submission by any other way shows. A ring's mapping begins with both counters, at places that the kernel tells
//! whoever makes a ring.

use std::cell::Cell;
use std::os::fd::RawFd;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::rings::{self, Ring};
use super::unfollowed;
use super::{
    Noted, Request, Submission, Untracked, Where, aio, bytes, mark, submit, submit_and_wait, untracked,
};
use crate::crossings;
use crate::flights::{Late, Name, Target};
use crate::gate::State;
use crate::registry::WATCH;
use crate::sys;
use crate::sys::raw::Entering;

pub(super) const REQUEST_SIZE: usize = 64;
const HANDLE_SIZE: usize = 216;
/// Whoever has more ends than this in a ring has set it up by hand.
const MOST_ENDS: u32 = 1 << 16;

/// Flags of a ring: polled by a kernel thread, or by whoever waits; the sizes of ends and requests; ends of both sizes.
pub(super) const SETUP_IOPOLL: u32 = 1 << 0;
pub(super) const SETUP_SQPOLL: u32 = 1 << 1;
const SETUP_SQE128: u32 = 1 << 10;
const SETUP_CQE32: u32 = 1 << 11;
/// What has ended is told when the thread that submits asks for it, not before.
pub(super) const SETUP_DEFER_TASKRUN: u32 = 1 << 13;
pub(super) const SETUP_CQE_MIXED: u32 = 1 << 18;

/// Flags of a request: its descriptor is an index; it waits for all before it, and all behind it for it; the next one waits for it;
/// another thread makes it; its end is not told.
const FIXED_FILE: u8 = 1 << 0;
const DRAIN: u8 = 1 << 1;
const LINK: u8 = 1 << 2 | 1 << 3;
const ASYNC: u8 = 1 << 4;
const SKIP_SUCCESS: u8 = 1 << 6;

/// A flag of an end: the request goes on.
const MORE_TO_COME: u32 = 1 << 1;
/// Another: this is the second end of a request.
const NOTIFICATION: u32 = 1 << 3;

/// Makes the call `real`, which submits what was prepared in the ring of io_uring that liburing's handle at the address
/// `handle` is of (io_uring_submit(3)).
///
/// For hooks. Returns what `real` returned, with errno as it left it.
#[inline(always)]
pub fn submitting_prepared<R>(handle: u64, real: impl FnOnce() -> R) -> R {
    let note = |state, noted: &mut Noted| note_prepared(handle, state, noted);
    submit(submission(handle, note), real, |_| {})
}

/// Makes the call `real`, which does so and then waits for `least` ends, for as long as it likes (io_uring_submit_and_wait(3)).
///
/// While a session runs the two are made apart, `submit_only` and the wait, so that no cut waits for what the program waits for.
/// What is returned is the same: how many requests were submitted, if any were, whatever becomes of the wait.
#[inline(always)]
pub fn submitting_prepared_and_waiting(
    handle: u64,
    least: u32,
    real: impl FnOnce() -> i32,
    submit_only: impl FnOnce() -> i32,
) -> i32 {
    let (apart, real) = (Cell::new(None), Cell::new(Some(real)));
    let whole = || real.take().map_or(0, |real| real());
    let note = |state, noted: &mut Noted| {
        apart.set(Handle::read(handle).and_then(|handle| handle.apart(least)));
        note_prepared(handle, state, noted);
    };
    let first = || match apart.get() {
        Some(Apart::Nothing) => 0,
        Some(_) => submit_only(),
        None => whole(),
    };
    let wait = |submitted: i32| match apart.get() {
        Some(Apart::Nothing) => whole(),
        Some(Apart::All { ring, count }) if u32::try_from(submitted) == Ok(count) => {
            let _ = ring.wait_for(least);
            submitted
        }
        // What is returned is how many the kernel's thread has not taken yet; if none, what the wait does.
        Some(Apart::Polled { ring }) if submitted >= 0 => match ring.wait_for(least) {
            Ok(_) => submitted,
            Err(errno) if submitted == 0 => -errno.raw_os_error(),
            Err(_) => submitted,
        },
        _ => submitted,
    };
    submit_and_wait(submission(handle, note), whole, first, |_| {}, wait)
}

/// Makes the call `real`, which gives back the ring of io_uring that liburing's handle at the address `handle` is of
/// (io_uring_queue_exit(3)).
#[inline(always)]
pub fn leaving<R>(handle: u64, real: impl FnOnce() -> R) -> R {
    let note = |_, _: &mut Noted| {
        let Some(handle) = Handle::read(handle) else { return };
        if let Some(ring) = WATCH.async_io.find(handle.ring).filter(|ring| ring.kind() == rings::URING) {
            if WATCH.async_io.is_taken_up() {
                look_at(ring);
                unfollowed::see_off(ring);
            }
            ring.set_kind(rings::GONE);
        }
    };
    submit(Submission { ring: handle, is_blind: || false, note, waiting: || false }, real, |_| {})
}

fn note_prepared(handle: u64, state: State, noted: &mut Noted) {
    if !WATCH.async_io.is_taken_up() {
        return;
    }
    let Some(handle) = Handle::read(handle) else { return untracked(Untracked::Unreadable) };
    match handle.meet() {
        Some(ring) if ring.is_unfollowed() => {}
        Some(ring) => handle.note(ring, state, noted),
        None => untracked(Untracked::Unreadable),
    }
}

fn submission<N>(handle: u64, note: N) -> Submission<impl Fn() -> bool, N, impl Fn() -> bool> {
    let (is_blind, waiting) = (move || is_blind(handle), move || defer_no_more(handle));
    Submission { ring: handle, is_blind, note, waiting }
}

/// Whether a file is written by what is prepared that cannot be looked up.
fn is_blind(handle: u64) -> bool {
    let readable =
        |handle: Handle| handle.prepared().map_while(|text| text).any(|text| is_of_registered(&text));
    Handle::read(handle).is_some_and(readable)
}

/// Whether a request writes to a registered file.
pub(super) fn is_of_registered(text: &[u8; REQUEST_SIZE]) -> bool {
    text[1] & FIXED_FILE != 0 && matches!(meaning(text), Meaning::Write(_))
}

/// What has ended in a ring that waits to be asked is told, so that a thread that waits at the gate holds no end back. False for
/// other rings.
fn defer_no_more(handle: u64) -> bool {
    let handle = Handle::read(handle).filter(|handle| handle.flags & SETUP_DEFER_TASKRUN != 0);
    handle.is_some_and(|handle| handle.descriptor.wait_for(0).is_ok())
}

/// A call that submits and waits, made as two.
#[derive(Clone, Copy)]
enum Apart {
    /// There is nothing to submit.
    Nothing,
    /// So many requests are to be submitted, those included that the kernel has not taken before.
    All { ring: Entering, count: u32 },
    /// A thread of the kernel's takes them.
    Polled { ring: Entering },
}

/// What liburing's handle says of its ring (`struct io_uring`).
pub(super) struct Handle {
    sq_head: u64,
    sq_tail: u64,
    sq_mask: u64,
    requests: u64,
    /// Requests that were prepared and not yet published are those from the one to the other.
    head: u32,
    tail: u32,
    pub(super) ring: u64,
    cq_tail: u64,
    cq_mask: u64,
    ends: u64,
    flags: u32,
    own_descriptor: RawFd,
    /// How the kernel is to be called.
    descriptor: Entering,
}

impl Handle {
    pub(super) fn read(address: u64) -> Option<Handle> {
        let mut text = [0; HANDLE_SIZE];
        sys::raw::read_memory(address, &mut text).ok()?;
        let pointer = |at| u64::from_ne_bytes(bytes(&text, at));
        let word = |at| u32::from_ne_bytes(bytes(&text, at));
        Some(Handle {
            sq_head: pointer(0),
            sq_tail: pointer(8),
            sq_mask: pointer(16),
            requests: pointer(56),
            head: word(64),
            tail: word(68),
            ring: pointer(80),
            cq_tail: pointer(112),
            cq_mask: pointer(120),
            ends: pointer(152),
            flags: word(192),
            own_descriptor: word(196).cast_signed(),
            // The second number is that of a registered descriptor, which liburing 2.0 and 2.1 do not have.
            descriptor: match text[208] & 1 {
                0 => Entering { fd: word(196).cast_signed(), is_registered: false },
                _ => Entering { fd: word(204).cast_signed(), is_registered: true },
            },
        })
    }

    /// How a call that submits and waits is made apart, if it can be.
    fn apart(&self, least: u32) -> Option<Apart> {
        if least == 0 || self.flags & SETUP_IOPOLL != 0 {
            return None;
        }
        let ring = self.descriptor;
        match self.tail.wrapping_sub(read(self.sq_head)?) {
            _ if self.flags & SETUP_SQPOLL != 0 => Some(Apart::Polled { ring }),
            0 => Some(Apart::Nothing),
            count => Some(Apart::All { ring, count }),
        }
    }

    /// Takes the ring up, or on, and lands what has ended since the last submission. To be called before a submission.
    pub(super) fn meet(&self) -> Option<&'static Ring> {
        if self.flags & SETUP_CQE_MIXED != 0 {
            untracked(Untracked::Ring);
        }
        let mask = read(self.cq_mask)?;
        let ring = WATCH.async_io.enter(self.ring)?;
        // The engine may have found it mapped; or another one, which a program has made by hand and unmapped since.
        let is_by_hand = |ring: &Ring| ring.by_handle.load(Ordering::Relaxed) == 0;
        if is_by_hand(ring)
            && ring.kind() == rings::URING
            && let Some(inode) = sys::raw::inode_of_ring(self.own_descriptor)
        {
            let_go(ring, |ring| is_by_hand(ring) && ring.inode.load(Ordering::Relaxed) != inode);
        }
        let is_handle = |ring: &Ring| {
            ring.inode.store(sys::raw::inode_of_ring(self.own_descriptor).unwrap_or(0), Ordering::Relaxed);
            ring.requests.store(self.requests, Ordering::Relaxed);
            ring.sq_mask.store(read(self.sq_mask).unwrap_or(0), Ordering::Relaxed);
            ring.by_handle.store(1, Ordering::Relaxed);
        };
        if !ring.be_uring(is_handle) {
            untracked(Untracked::Ring);
        }
        for (place, value) in [
            (&ring.sq_head, self.sq_head),
            (&ring.sq_tail, self.sq_tail),
            (&ring.cq_tail, self.cq_tail),
            (&ring.ends, self.ends),
        ] {
            place.store(value, Ordering::Relaxed);
        }
        ring.stride.store(if self.flags & SETUP_CQE32 != 0 { 32 } else { 16 }, Ordering::Relaxed);
        ring.mask.store(mask, Ordering::Relaxed);
        ring.by_handle.store(1, Ordering::Relaxed);
        if self.flags & SETUP_IOPOLL != 0 {
            unfollowed::give_up(ring, Untracked::Ring);
        }
        look_at(ring);
        Some(ring)
    }

    /// The requests that are about to be published, each as far as it can be read.
    fn prepared(&self) -> impl Iterator<Item = Option<[u8; REQUEST_SIZE]>> {
        let (mask, requests, head) = (read(self.sq_mask), self.requests, self.head);
        let size = REQUEST_SIZE as u64 * if self.flags & SETUP_SQE128 != 0 { 2 } else { 1 };
        (0..self.tail.wrapping_sub(head)).map(move |count| {
            let mut text = [0; REQUEST_SIZE];
            let at = requests + u64::from(head.wrapping_add(count) & mask?) * size;
            sys::raw::read_memory(at, &mut text).ok().map(|()| text)
        })
    }

    /// Notes every request that is about to be published.
    pub(super) fn note(&self, ring: &Ring, state: State, noted: &mut Noted) {
        let mut noting = Noting::of(ring, self.flags & SETUP_SQPOLL != 0);
        for text in self.prepared() {
            let Some(text) = text else { return untracked(Untracked::Unreadable) };
            noting.note(&text, state, noted);
        }
        ring.expected.store(self.tail, Ordering::Relaxed);
    }
}

/// Notes requests of one call, in their order.
pub(super) struct Noting<'a> {
    ring: &'a Ring,
    is_polled: bool,
    /// Whether the next one waits for the end of the last.
    follows: bool,
}

impl<'a> Noting<'a> {
    pub(super) fn of(ring: &'a Ring, is_polled: bool) -> Noting<'a> {
        Noting { ring, is_polled, follows: false }
    }

    pub(super) fn note(&mut self, text: &[u8; REQUEST_SIZE], state: State, noted: &mut Noted) {
        let name = Name { ring: self.ring.name(), cookie: u64::from_ne_bytes(bytes(text, 32)) };
        let (flags, fd) = (text[1], RawFd::from_ne_bytes(bytes(text, 4)));
        if flags & SKIP_SUCCESS != 0 {
            return untracked(Untracked::Request);
        }
        if flags & DRAIN != 0 {
            self.ring.drains.store(1, Ordering::Relaxed);
        }
        // The kernel looks the file up when it comes to the request. It may leave that to another thread for these; the first of a
        // chain among them, if the chain is not closed or one of it drains, and what it never does at once: FALLOCATE, SPLICE,
        // FSETXATTR and FTRUNCATE.
        let drains = self.ring.drains.load(Ordering::Relaxed) != 0;
        let waits = self.follows || drains || flags & (LINK | ASYNC) != 0;
        let is_late = self.is_polled || waits || matches!(text[0], 17 | 30 | 41 | 55);
        self.follows = flags & LINK != 0;
        let target = match meaning(text) {
            Meaning::Unknown => return untracked(Untracked::Request),
            Meaning::Harmless => Target::NOTHING,
            Meaning::Write(_) if flags & FIXED_FILE != 0 => Target::some_file(Late::now(-1)),
            Meaning::Write(place) if is_late => Request { fd, place }.late_target(state),
            Meaning::Write(place) => match (Request { fd, place }).target(state) {
                Some(Some(target)) => {
                    noted.add(fd, target);
                    target
                }
                _ => Target::NOTHING,
            },
            Meaning::Names => {
                WATCH.crossings.report(crossings::ANYWHERE | crossings::NAMES | crossings::DATA);
                Target::NAMES
            }
        };
        if !WATCH.async_io.flights().is_some_and(|flights| flights.note(name, target)) {
            untracked(Untracked::TooMany);
        }
    }
}

/// What a request changes.
enum Meaning {
    Harmless,
    Write(Where),
    /// Directory entries, or a file that it names by path.
    Names,
    Unknown,
}

fn meaning(text: &[u8; REQUEST_SIZE]) -> Meaning {
    let at = i64::from_ne_bytes(bytes(text, 8));
    let len = u64::from(u32::from_ne_bytes(bytes(text, 24)));
    let appends = u32::from_ne_bytes(bytes(text, 28)) & libc::RWF_APPEND.cast_unsigned() != 0;
    // The numbers of `enum io_uring_op`, in its order.
    match text[0] {
        // WRITEV; its vector is where WRITE has its bytes.
        2 if !appends => Meaning::Write(aio::vector_at(at, u64::from_ne_bytes(bytes(text, 16)), len)),
        // WRITE_FIXED and WRITE.
        5 | 23 if !appends => Meaning::Write(Where::at(at, len)),
        // The same to the end; FALLOCATE, SPLICE, FSETXATTR, FTRUNCATE, WRITEV_FIXED.
        2 | 5 | 23 | 17 | 30 | 41 | 55 | 61 => Meaning::Write(Where::Anywhere),
        // OPENAT, OPENAT2, RENAMEAT, UNLINKAT, MKDIRAT, SYMLINKAT, LINKAT, SETXATTR.
        18 | 28 | 35..=39 | 42 => Meaning::Names,
        // CLOSE: a call beside it may hit another file than it was found to be about. MSG_RING: the end of a request that was
        // never made.
        19 | 40 => Meaning::Unknown,
        0..=62 => Meaning::Harmless,
        _ => Meaning::Unknown,
    }
}

/// A counter of a ring.
pub(super) fn read(address: u64) -> Option<u32> {
    let mut word = [0; 4];
    sys::raw::read_memory(address, &mut word).ok()?;
    Some(u32::from_ne_bytes(word))
}

/// Whether nothing was submitted but by captured calls, as far as the ring tells: `None` if it cannot be read.
fn is_followed(ring: &Ring) -> Option<bool> {
    let expected = ring.expected.load(Ordering::Relaxed);
    // Who fills a ring by hand publishes requests before the call that submits them: what counts is what the kernel took.
    match ring.by_handle.load(Ordering::Relaxed) {
        0 => Some(is_not_behind(expected, read(ring.sq_head.load(Ordering::Relaxed))?)),
        _ => Some(read(ring.sq_tail.load(Ordering::Relaxed))? == expected),
    }
}

/// Whether the counter `a` is at `b` or before it: they wrap around.
pub(super) fn is_not_behind(a: u32, b: u32) -> bool {
    a.wrapping_sub(b).cast_signed() >= 0
}

/// Lands what has ended. Ends stay readable until the program has taken them and submitted more: a ring has room for the ends of
/// all that flies. False if something was submitted but by captured calls, or something else lies where the ring was.
pub(super) fn look(ring: &Ring) -> bool {
    if ring.is_unfollowed() {
        return true;
    }
    let (followed, ended) = (is_followed(ring), read(ring.cq_tail.load(Ordering::Relaxed)));
    if ring.is_leaving() {
        return true;
    }
    match (followed, ended) {
        (Some(true), Some(tail)) => land_up_to(ring, tail),
        (Some(false), _) => return false,
        _ => lose(ring, Untracked::Unreadable),
    }
    true
}

/// The same for a ring that is there for sure.
pub(super) fn look_at(ring: &Ring) {
    if !look(ring) {
        unfollowed::give_up(ring, Untracked::Submission);
    }
}

/// Whether nothing was submitted to the ring but by captured calls, as far as it can be read where it was. Some may be under way now,
/// between the two words that they change: what counts is what the kernel took, which is noted before. Nor if that is known.
pub(super) fn seems_followed(ring: &Ring) -> bool {
    let taken = read(ring.sq_head.load(Ordering::Relaxed));
    ring.is_unfollowed()
        || ring.is_leaving()
        || taken.is_none_or(|taken| is_not_behind(ring.expected.load(Ordering::SeqCst), taken))
}

/// A ring is not what it was. A program that has made it by hand may have unmapped it without our knowing; that does no harm if all
/// has ended that was submitted to it, and the engine lets go of it before the next try of the cut.
#[cold]
fn lose(ring: &Ring, why: Untracked) {
    let by_hand = ring.by_handle.load(Ordering::Relaxed) == 0;
    let flights = WATCH.async_io.flights();
    if !by_hand || flights.is_none_or(|flights| flights.any_flies(ring.name())) {
        untracked(why);
    }
}

/// Whether all that was submitted to a ring has been seen to end. Another thread may have taken an end to land it, and may have been
/// interrupted before it did.
pub(super) fn has_landed(ring: &Ring) -> bool {
    const LOOKS: u32 = 1000;
    let Some(flights) = WATCH.async_io.flights() else { return true };
    (0..LOOKS).any(|look| {
        if look > 0 {
            sys::thread::nap(Duration::from_micros(100));
        }
        !flights.any_flies(ring.name())
    })
}

/// Lets go of a ring that `is_gone` still: all that was submitted to it has to have been seen to end.
pub(super) fn let_go(ring: &Ring, is_gone: impl Fn(&Ring) -> bool) {
    // What one that is not followed had under way when it went is not known.
    let was_unfollowed = ring.is_unfollowed() && !ring.is_leaving();
    if ring.let_go(is_gone) && (was_unfollowed || !has_landed(ring)) {
        untracked(Untracked::Unreadable);
    }
}

fn land_up_to(ring: &Ring, tail: u32) {
    let ends = ring.ends.load(Ordering::Relaxed);
    if ends == 0 {
        // Nothing that is noted flies in it.
        return;
    }
    let (mut index, mask) = (ring.seen.load(Ordering::SeqCst), ring.mask.load(Ordering::Relaxed));
    while index != tail {
        if mask >= MOST_ENDS || tail.wrapping_sub(index) > mask + 1 {
            return lose(ring, Untracked::Ring);
        }
        let mut end = [0; 16];
        let at = ends + u64::from(index & mask) * u64::from(ring.stride.load(Ordering::Relaxed));
        if sys::raw::read_memory(at, &mut end).is_err() {
            return lose(ring, Untracked::Unreadable);
        }
        let next = index.wrapping_add(1);
        // Two threads may look at the same time: one of them lands it.
        let ours = ring.seen.compare_exchange(index, next, Ordering::SeqCst, Ordering::SeqCst);
        let name = Name { ring: ring.name(), cookie: u64::from_ne_bytes(bytes(&end, 0)) };
        if ours.is_ok() && u32::from_ne_bytes(bytes(&end, 12)) & MORE_TO_COME == 0 {
            let _ = WATCH.async_io.flights().map(|flights| flights.land(name, true, mark));
        }
        index = match ours {
            Ok(_) => next,
            // The other one may have seen more than we.
            Err(theirs) if is_not_behind(theirs, tail) => return,
            Err(theirs) => theirs,
        };
    }
}

/// Where the mapping of a ring has what is in it; the same for all rings of a kernel.
#[derive(Clone, Copy)]
pub(super) struct Places(sys::raw::RingPlaces);

/// A ring as it is mapped.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Mapped {
    pub(super) address: u64,
    pub(super) requests: Option<u64>,
    pub(super) inode: u64,
}

impl Places {
    /// Asks the kernel, by making a ring (io_uring_setup(2)), until it has told.
    pub(super) fn ask() -> Option<Places> {
        static TOLD: OnceLock<Places> = OnceLock::new();
        if let Some(&told) = TOLD.get() {
            return Some(told);
        }
        let told = Places(sys::raw::ring_places().ok()?);
        Some(*TOLD.get_or_init(|| told))
    }

    /// Takes up a ring that was found mapped, if it is not known.
    pub(super) fn take_up(self, ring: &Ring, mapped: Mapped) {
        let at = |place: u32| mapped.address + u64::from(place);
        let masks = read(at(self.0.sq_mask)).zip(read(at(self.0.cq_mask)));
        let done = ring.be_uring(|ring| {
            for (word, value) in [
                (&ring.sq_head, at(self.0.sq_head)),
                (&ring.sq_tail, at(self.0.sq_tail)),
                (&ring.cq_tail, at(self.0.cq_tail)),
                (&ring.ends, masks.map_or(0, |_| at(self.0.ends))),
                (&ring.requests, mapped.requests.unwrap_or(0)),
                (&ring.inode, mapped.inode),
            ] {
                word.store(value, Ordering::Relaxed);
            }
            let (sq_mask, mask) = masks.unwrap_or_default();
            // Rings with larger ends are not entered by hand: see `entered`.
            for (word, value) in
                [(&ring.sq_mask, sq_mask), (&ring.mask, mask), (&ring.stride, 16), (&ring.by_handle, 0)]
            {
                word.store(value, Ordering::Relaxed);
            }
        });
        if !done {
            untracked(Untracked::Ring);
        }
    }

    /// Whether anything was ever submitted to the ring at this address.
    pub(super) fn was_used(self, address: u64) -> bool {
        read(address + u64::from(self.0.sq_tail)) != Some(0)
    }
}

/// How many requests had been taken from the ring, and how many had ended, if all have that are known of. `None` too if it cannot be
/// read.
pub(super) fn rest(ring: &Ring) -> Option<(u32, u32)> {
    let [published, taken, ended] =
        [&ring.sq_tail, &ring.sq_head, &ring.cq_tail].map(|place| read(place.load(Ordering::Relaxed)));
    // What is published and not taken is submitted by who waits at the gate, and read then; or a thread of the kernel's is about
    // to take it; or a call that is not captured is at it, which says that it has taken requests when it has made them.
    let is_unfollowed = ring.is_unfollowed();
    let counts = is_unfollowed || ring.may_be_polled.load(Ordering::Relaxed) != 0;
    if counts && published != taken {
        return None;
    }
    taken.zip(ended).filter(|(taken, ended)| match taken.wrapping_sub(*ended) {
        0 => true,
        // What waits for a socket or a pipe writes to no file. Those are known when nobody may submit; of others each may be a write.
        _ if is_unfollowed => false,
        under_way => ring.polled() == Some(under_way),
    })
}

/// Whether an end that lies in the ring is one of several of its request: then the counters do not tell what has ended. Those that
/// lie no more in it are not seen.
pub(super) fn has_partial_ends(ring: &Ring) -> bool {
    let (ends, mask) = (ring.ends.load(Ordering::Relaxed), ring.mask.load(Ordering::Relaxed));
    if ends == 0 || mask >= MOST_ENDS {
        return false;
    }
    let stride = u64::from(ring.stride.load(Ordering::Relaxed));
    (0..=mask).any(|index| {
        let flags = read(ends + u64::from(index) * stride + 12);
        flags.is_some_and(|flags| flags & (MORE_TO_COME | NOTIFICATION) != 0)
    })
}

/// Whether all that was submitted to the ring has ended; if so, what comes from now on is followed. Nobody may submit meanwhile.
pub(super) fn is_quiet(ring: &Ring) -> bool {
    let rest = rest(ring);
    if let Some((taken, ended)) = rest {
        ring.seen.store(ended, Ordering::Relaxed);
        ring.expected.store(taken, Ordering::Relaxed);
    }
    rest.is_some()
}
