//! io_uring: how requests, their ends and liburing's handle are laid out (`linux/io_uring.h`, `liburing.h`).
//!
//! Two counters of a ring say all: the tail of the submissions, which the program moves on, and the tail of the ends, which the
//! kernel moves on. Requests are read before they are submitted; how far the tail of submissions may have come by that is kept,
//! so that a submission by any other way shows. A ring's mapping begins with both counters, at places that the kernel tells
//! whoever makes a ring.

use std::os::fd::RawFd;
use std::sync::atomic::Ordering;

use super::rings::{self, Ring};
use super::{Request, Untracked, Where, aio, bytes, mark, untracked};
use crate::crossings;
use crate::flights::{Name, Target};
use crate::gate::State;
use crate::registry::WATCH;
use crate::sys;

const REQUEST_SIZE: usize = 64;
const HANDLE_SIZE: usize = 208;
/// Whoever has more ends than this in a ring has set it up by hand.
const MOST_ENDS: u32 = 1 << 16;

/// Flags of a ring: polled by a kernel thread, or by whoever waits; the sizes of ends and requests; ends of both sizes.
const SETUP_IOPOLL: u32 = 1 << 0;
const SETUP_SQPOLL: u32 = 1 << 1;
const SETUP_SQE128: u32 = 1 << 10;
const SETUP_CQE32: u32 = 1 << 11;
const SETUP_CQE_MIXED: u32 = 1 << 18;

/// Flags of a request: its descriptor is an index, and its end is not told.
const FIXED_FILE: u8 = 1 << 0;
const SKIP_SUCCESS: u8 = 1 << 6;

/// A flag of an end: the request goes on.
const MORE_TO_COME: u32 = 1 << 1;

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
        })
    }

    /// Takes the ring up, or on, and lands what has ended since the last submission. To be called before a submission.
    pub(super) fn meet(&self) -> Option<&'static Ring> {
        if self.flags & (SETUP_SQPOLL | SETUP_IOPOLL | SETUP_CQE_MIXED) != 0 {
            untracked(Untracked::Ring);
        }
        let mask = read(self.cq_mask)?;
        let ring = WATCH.async_io.enter(self.ring)?;
        if ring.kind() != rings::URING {
            // It was made in this session: nothing was submitted to it before.
            ring.seen.store(0, Ordering::Relaxed);
            ring.expected.store(0, Ordering::Relaxed);
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
        ring.set_kind(rings::URING);
        look(ring);
        Some(ring)
    }

    /// Notes every request that is about to be published.
    pub(super) fn note(&self, ring: &Ring, state: State, noted: &mut super::Noted) {
        let Some(mask) = read(self.sq_mask) else { return untracked(Untracked::Unreadable) };
        let size = REQUEST_SIZE as u64 * if self.flags & SETUP_SQE128 != 0 { 2 } else { 1 };
        let mut index = self.head;
        while index != self.tail {
            let mut text = [0; REQUEST_SIZE];
            let at = self.requests + u64::from(index & mask) * size;
            if sys::raw::read_memory(at, &mut text).is_err() {
                return untracked(Untracked::Unreadable);
            }
            self.note_one(&text, state, noted);
            index = index.wrapping_add(1);
        }
        ring.expected.store(self.tail, Ordering::Relaxed);
    }

    fn note_one(&self, text: &[u8; REQUEST_SIZE], state: State, noted: &mut super::Noted) {
        let name = Name { ring: self.ring, cookie: u64::from_ne_bytes(bytes(text, 32)) };
        let fd = RawFd::from_ne_bytes(bytes(text, 4));
        let target = match meaning(text) {
            Meaning::Unknown => return untracked(Untracked::Request),
            _ if text[1] & SKIP_SUCCESS != 0 => return untracked(Untracked::Request),
            Meaning::Harmless => Target::NOTHING,
            Meaning::Write(_) if text[1] & FIXED_FILE != 0 => return untracked(Untracked::FixedFile),
            Meaning::Write(place) => match (Request { fd, place }).target(state) {
                Some(Some(target)) => target,
                _ => Target::NOTHING,
            },
            Meaning::Names => {
                WATCH.crossings.report(crossings::ANYWHERE | crossings::NAMES | crossings::DATA);
                Target::NAMES
            }
        };
        if !target.is_names() && target != Target::NOTHING {
            noted.add(fd, target);
        }
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
fn read(address: u64) -> Option<u32> {
    let mut word = [0; 4];
    sys::raw::read_memory(address, &mut word).ok()?;
    Some(u32::from_ne_bytes(word))
}

/// Lands what has ended, and sees whether anything was submitted but by captured calls. Ends stay readable until the program
/// has taken them and submitted more: a ring has room for the ends of all that flies.
pub(super) fn look(ring: &Ring) {
    let tails = read(ring.sq_tail.load(Ordering::Relaxed)).zip(read(ring.cq_tail.load(Ordering::Relaxed)));
    let Some((submitted, tail)) = tails else { return untracked(Untracked::Unreadable) };
    if submitted != ring.expected.load(Ordering::Relaxed) {
        return untracked(Untracked::Submission);
    }
    let ends = ring.ends.load(Ordering::Relaxed);
    if ends == 0 {
        // Nothing that is noted flies in it.
        return;
    }
    let (mut index, mask) = (ring.seen.load(Ordering::Relaxed), ring.mask.load(Ordering::Relaxed));
    if mask >= MOST_ENDS || tail.wrapping_sub(index) > mask + 1 {
        return untracked(Untracked::Ring);
    }
    while index != tail {
        let mut end = [0; 16];
        let at = ends + u64::from(index & mask) * u64::from(ring.stride.load(Ordering::Relaxed));
        if sys::raw::read_memory(at, &mut end).is_err() {
            return untracked(Untracked::Unreadable);
        }
        let name = Name { ring: ring.address(), cookie: u64::from_ne_bytes(bytes(&end, 0)) };
        if u32::from_ne_bytes(bytes(&end, 12)) & MORE_TO_COME == 0 {
            let _ = WATCH.async_io.flights().map(|flights| flights.land(name, true, mark));
        }
        index = index.wrapping_add(1);
    }
    ring.seen.store(tail, Ordering::Relaxed);
}

/// Where the mapping of a ring has its counters; the same for all rings of a kernel.
#[derive(Clone, Copy)]
pub(super) struct Places {
    sq_head: u64,
    sq_tail: u64,
    cq_tail: u64,
}

impl Places {
    /// Asks the kernel, by making a ring (io_uring_setup(2)).
    pub(super) fn ask() -> Option<Places> {
        let [sq_head, sq_tail, cq_tail] = sys::raw::ring_counters().ok()?.map(u64::from);
        Some(Places { sq_head, sq_tail, cq_tail })
    }

    /// Takes up a ring that was found mapped.
    pub(super) fn take_up(self, ring: &Ring) {
        ring.sq_head.store(ring.address() + self.sq_head, Ordering::Relaxed);
        ring.sq_tail.store(ring.address() + self.sq_tail, Ordering::Relaxed);
        ring.cq_tail.store(ring.address() + self.cq_tail, Ordering::Relaxed);
        ring.set_kind(rings::URING);
    }

    /// Whether anything was ever submitted to the ring at this address.
    pub(super) fn was_used(self, address: u64) -> bool {
        read(address + self.sq_tail) != Some(0)
    }
}

/// Whether all that was submitted to the ring has ended; if so, what comes from now on is followed. Nobody may submit meanwhile.
pub(super) fn is_quiet(ring: &Ring) -> bool {
    let [taken, submitted, ended] =
        [&ring.sq_head, &ring.sq_tail, &ring.cq_tail].map(|place| read(place.load(Ordering::Relaxed)));
    let is_quiet = taken.is_some() && taken == submitted && taken == ended;
    if let (true, Some(count)) = (is_quiet, taken) {
        ring.seen.store(count, Ordering::Relaxed);
        ring.expected.store(count, Ordering::Relaxed);
    }
    is_quiet
}
