//! Rings of io_uring that a program enters by itself: by the number of the system call, or through liburing's bare functions.
//!
//! Such a call names a descriptor. Which ring that is, and where it is mapped, the engine finds out in /proc: when the session
//! begins, and when a call meets a ring that was made since. What kind of ring it is only its set-up says, so those are kept,
//! by the descriptor that they returned.

use std::cell::Cell;
use std::ops::Range;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::rings::{self, Ring};
use super::uring::{
    self, Noting, REQUEST_SIZE, SETUP_CQE_MIXED, SETUP_DEFER_TASKRUN, is_not_behind, is_of_registered, look,
    look_at, read,
};
use super::{Noted, Submission, Untracked, bytes, ended, submit_and_wait, unfollowed, untracked};
use crate::flights::Name;
use crate::gate::{self, State};
use crate::intercept;
use crate::registry::WATCH;
use crate::sys;
use crate::sys::raw::{ENTER_GETEVENTS, ENTER_REGISTERED_RING, enter_ring};

/// Flags of rings that are followed: CQSIZE, CLAMP, ATTACH_WQ, R_DISABLED, SUBMIT_ALL, COOP_TASKRUN, TASKRUN_FLAG, SINGLE_ISSUER,
/// DEFER_TASKRUN, NO_SQARRAY. Others change how a ring is laid out, or who takes requests and tells ends when.
const FOLLOWED: u32 = 0b1_0011_0011_1111_1000;
const SETUP_NO_SQARRAY: u32 = 1 << 16;

/// Flags of io_uring_enter(2) that have to do with the wait only.
const WAITING: u32 = 0b1110_1001;

/// How long a call waits for the engine to look a ring up.
const PATIENCE: Duration = Duration::from_secs(1);
const SLICE: Duration = Duration::from_millis(20);

/// Descriptors of rings whose set-up is remembered; of two that share a place, the later one.
const SET_UPS: usize = 1024;
const SEEN: u64 = 1 << 63;
static SET_UP: [AtomicU64; SET_UPS] = [const { AtomicU64::new(0) }; SET_UPS];

/// A ring was set up with these flags and has this descriptor (io_uring_setup(2)). One store, whether a session runs or not.
pub fn set_up(fd: RawFd, flags: u32) {
    let number = fd.cast_unsigned();
    SET_UP[number as usize % SET_UPS]
        .store(SEEN | u64::from(number) << 32 | u64::from(flags), Ordering::Relaxed);
}

pub(super) fn flags_of(fd: RawFd) -> Option<u32> {
    let number = fd.cast_unsigned();
    let word = SET_UP[number as usize % SET_UPS].load(Ordering::Relaxed);
    (word >> 32 == (SEEN >> 32 | u64::from(number))).then_some(word as u32)
}

/// A call of io_uring_enter(2).
#[derive(Clone, Copy)]
pub struct Entry {
    /// The ring.
    pub fd: RawFd,
    /// How many requests it submits at most.
    pub to_submit: u32,
    /// How many ends it waits for.
    pub least: u32,
    /// `IORING_ENTER_*`.
    pub flags: u32,
    /// What says how to wait, and its size.
    pub argument: usize,
    /// See there.
    pub size: usize,
}

/// Makes the call `real`, which is `call`. `result` is what it returns if the kernel says so, or that error number; `count` is
/// how many requests were submitted, if it returned that.
///
/// For hooks. While a session runs a call that submits and waits is made in two parts: see
/// [`submitting_prepared_and_waiting`](super::submitting_prepared_and_waiting).
#[inline(always)]
pub fn entering<R>(
    call: Entry,
    real: impl FnOnce() -> R,
    result: impl Fn(Result<u32, i32>) -> R,
    count: impl Fn(&R) -> Option<u32>,
) -> R {
    if call.to_submit == 0 {
        let result = real();
        call.take_ends();
        return result;
    }
    if intercept::is_capturing() {
        call.meet();
    }
    let (real, claimed) = (Cell::new(Some(real)), Cell::new(None));
    // It is there: one of the two below is called, once.
    let whole = || real.take().map_or_else(|| result(Err(libc::ENOSYS)), |real| real());
    let first = || match call.can_be_made_apart() {
        true => result(call.submit_only()),
        false => whole(),
    };
    let wait = |submitted: R| {
        if call.can_be_made_apart() && count(&submitted) == Some(call.to_submit) {
            let _ = call.wait_only();
        }
        call.take_ends();
        submitted
    };
    let note = |state, noted: &mut Noted| claimed.set(call.note(state, noted));
    let taken = |_: &R| claimed.get().into_iter().for_each(|(ring, to)| call.forget_from(ring, to));
    let (ring, is_blind) = (call.fd.cast_unsigned().into(), || call.is_blind());
    let submission = Submission { ring, is_blind, note, waiting: || call.defers_no_more() };
    submit_and_wait(submission, whole, first, taken, wait)
}

/// Makes the call `real`, after which other files may be registered with a ring (io_uring_register(2)).
#[inline(always)]
pub fn registering<R>(real: impl FnOnce() -> R) -> R {
    let result = real();
    if intercept::is_capturing() {
        ask();
    }
    result
}

/// Makes the call `real`, after which the memory of these addresses is not mapped any more (munmap(2)).
///
/// For hooks. A program takes the ends of requests out of a ring by itself, and the ring away then: this is the last that can be
/// seen of them.
#[inline(always)]
pub fn unmapping<R>(address: usize, len: usize, real: impl FnOnce() -> R) -> R {
    if !intercept::is_capturing() {
        return real();
    }
    let addresses = address as u64..(address as u64).saturating_add(len as u64);
    each_ring_at(&addresses, see_last_of);
    let result = real();
    // Another ring may be at the address by now: what of this one still flew was seen before.
    each_ring_at(&addresses, |ring| {
        ring.let_go(Ring::is_leaving);
    });
    result
}

/// Does this with the rings of io_uring at these addresses.
#[cold]
fn each_ring_at(addresses: &Range<u64>, work: impl Fn(&Ring)) {
    let is_there = |ring: &&Ring| ring.kind() == rings::URING && addresses.contains(&ring.address());
    for ring in WATCH.async_io.rings().filter(is_there) {
        ended(ring.address(), || work(ring));
    }
}

/// Lands what has ended in a ring that is about to go. Nobody reads it any more: another mapping may be in its place at once.
fn see_last_of(ring: &Ring) {
    if WATCH.async_io.is_taken_up() {
        unfollowed::see_off(ring);
        if !look(ring) {
            // It may have been unmapped long ago. If it was not, whatever it has written by now is found by its times.
            WATCH.crossings.report_write_since(WATCH.async_io.begun.load(Ordering::Relaxed));
        }
        if !ring.is_unfollowed() && !uring::has_landed(ring) {
            untracked(Untracked::Unreadable);
        }
        ring.leave();
    }
}

impl Entry {
    fn can_be_made_apart(&self) -> bool {
        let known = self.flags & !(WAITING | ENTER_REGISTERED_RING) == 0;
        self.least > 0 && self.flags & ENTER_GETEVENTS != 0 && known
    }

    fn submit_only(&self) -> Result<u32, i32> {
        let flags = self.flags & ENTER_REGISTERED_RING;
        enter_ring(self.fd, self.to_submit, 0, flags, 0, 0).map_err(rustix::io::Errno::raw_os_error)
    }

    fn wait_only(&self) -> Result<u32, rustix::io::Errno> {
        enter_ring(self.fd, 0, self.least, self.flags, self.argument, self.size)
    }

    /// The ring, if it is known.
    fn ring(&self) -> Option<&'static Ring> {
        if self.flags & ENTER_REGISTERED_RING != 0 {
            return None;
        }
        WATCH.async_io.of_inode(sys::raw::inode_of_ring(self.fd)?)
    }

    /// Has the engine look for the ring if it is not known. To be called outside of the gate.
    #[cold]
    fn meet(&self) {
        let _errno = sys::errno::Preserve::new();
        let is_new = || WATCH.async_io.is_taken_up() && self.ring().is_none();
        if !sys::thread::is_engine() && is_new() && sys::raw::inode_of_ring(self.fd).is_some() {
            ask();
        }
    }

    /// What has ended in a ring that waits to be asked is told, as in [`uring`]. False for other rings.
    fn defers_no_more(&self) -> bool {
        let defers = flags_of(self.fd).is_some_and(|flags| flags & SETUP_DEFER_TASKRUN != 0);
        let flags = ENTER_GETEVENTS | self.flags & ENTER_REGISTERED_RING;
        defers && enter_ring(self.fd, 0, 0, flags, 0, 0).is_ok()
    }

    /// Whether a file is written by what is about to be submitted that cannot be looked up.
    fn is_blind(&self) -> bool {
        let Some((ring, flags)) = self.ring().zip(flags_of(self.fd)) else { return false };
        let Some((head, to)) = self.range(ring) else { return false };
        requests(ring, flags, head, to).any(|text| text.flatten().is_some_and(|text| is_of_registered(&text)))
    }

    /// The submissions that the kernel may take in this call.
    fn range(&self, ring: &Ring) -> Option<(u32, u32)> {
        let head = read(ring.sq_head.load(Ordering::Relaxed))?;
        let tail = read(ring.sq_tail.load(Ordering::Relaxed))?;
        Some((head, head.wrapping_add(self.to_submit.min(tail.wrapping_sub(head)))))
    }

    /// Notes the requests that the call is about to submit. Returns the ring and how far its submissions are noted then.
    fn note(&self, state: State, noted: &mut Noted) -> Option<(&'static Ring, u32)> {
        if !WATCH.async_io.is_taken_up() {
            return None;
        }
        let found = self.ring().or_else(|| {
            // It was not asked for before, because the rings were not taken up yet.
            ask();
            self.ring()
        });
        if !WATCH.async_io.is_taken_up() {
            return None;
        }
        let Some(ring) = found else {
            if self.flags & ENTER_REGISTERED_RING != 0 || sys::raw::inode_of_ring(self.fd).is_some() {
                untracked(Untracked::Submission);
            }
            return None;
        };
        let flags = flags_of(self.fd);
        match flags {
            None => unfollowed::give_up(ring, Untracked::SetUp),
            Some(flags) if flags & SETUP_CQE_MIXED != 0 => untracked(Untracked::Ring),
            Some(flags) if flags & !FOLLOWED != 0 => unfollowed::give_up(ring, Untracked::Ring),
            Some(_) if ring.is_unfollowed() => {}
            Some(_) => {
                ring.by_handle.store(0, Ordering::Relaxed);
                look_at(ring);
            }
        }
        let flags = flags.filter(|_| !ring.is_unfollowed())?;
        let range = self.claim(ring);
        let noted_all = range.and_then(|(from, to)| note_range(ring, flags, from, to, state, noted));
        if noted_all.is_none() {
            untracked(Untracked::Unreadable);
        }
        range.map(|(_, to)| (ring, to))
    }

    /// Which submissions are noted by this call: those that the kernel may take in it and that are not noted yet.
    fn claim(&self, ring: &Ring) -> Option<(u32, u32)> {
        let (_, to) = self.range(ring)?;
        let mut from = ring.expected.load(Ordering::SeqCst);
        loop {
            if is_not_behind(from, to) {
                return Some((to, to));
            }
            match ring.expected.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return Some((from, to)),
                Err(now) => from = now,
            }
        }
    }

    /// Takes back what the kernel has not taken, which the program may still change.
    fn forget_from(&self, ring: &Ring, to: u32) {
        let (Some(head), Some(flags)) = (read(ring.sq_head.load(Ordering::Relaxed)), flags_of(self.fd))
        else {
            return untracked(Untracked::Unreadable);
        };
        if is_not_behind(head, to)
            || ring.expected.compare_exchange(to, head, Ordering::SeqCst, Ordering::SeqCst).is_err()
        {
            return;
        }
        let Some(flights) = WATCH.async_io.flights() else { return };
        for text in requests(ring, flags, head, to) {
            match text {
                Some(Some(text)) => {
                    let name = Name { ring: ring.name(), cookie: u64::from_ne_bytes(bytes(&text, 32)) };
                    flights.forget(name, super::mark);
                }
                Some(None) => {}
                None => return untracked(Untracked::Unreadable),
            }
        }
    }

    /// Lands what has ended meanwhile.
    fn take_ends(&self) {
        if intercept::is_capturing() {
            ended(self.fd.cast_unsigned().into(), || {
                if WATCH.async_io.is_taken_up() {
                    self.ring().into_iter().for_each(look_at);
                }
            });
        }
    }
}

fn note_range(ring: &Ring, flags: u32, from: u32, to: u32, state: State, noted: &mut Noted) -> Option<()> {
    let mut noting = Noting::of(ring, false);
    for text in requests(ring, flags, from, to) {
        if let Some(text) = text? {
            noting.note(&text, state, noted);
        }
    }
    Some(())
}

/// The requests at these places of the submissions: `None` for one that cannot be read, `Some(None)` for one that the kernel
/// drops because its index is none.
fn requests(
    ring: &Ring,
    flags: u32,
    from: u32,
    to: u32,
) -> impl Iterator<Item = Option<Option<[u8; REQUEST_SIZE]>>> {
    let (indices, mask) = (ring.indices(flags & SETUP_NO_SQARRAY == 0), ring.sq_mask.load(Ordering::Relaxed));
    let base = ring.requests.load(Ordering::Relaxed);
    (0..to.wrapping_sub(from)).map(move |count| {
        let place = from.wrapping_add(count) & mask;
        let index = match indices {
            Some(indices) => read(indices + u64::from(place) * 4)?,
            None => place,
        };
        if index > mask {
            return Some(None);
        }
        let mut text = [0; REQUEST_SIZE];
        sys::raw::read_memory(base + u64::from(index) * REQUEST_SIZE as u64, &mut text).ok()?;
        Some(Some(text))
    })
}

/// Has the engine look for rings, and for the files that are registered with them, and waits until it has.
#[cold]
fn ask() {
    let _errno = sys::errno::Preserve::new();
    if sys::thread::is_engine() {
        return;
    }
    let (asked, answered) = (&WATCH.async_io.asked, &WATCH.async_io.answered);
    let ticket = asked.fetch_add(1, Ordering::SeqCst).wrapping_add(1);
    WATCH.call_for_work();
    let begun = sys::raw::monotonic_ns();
    let is_patient = || u128::from(sys::raw::monotonic_ns().saturating_sub(begun)) < PATIENCE.as_nanos();
    loop {
        let now = answered.load(Ordering::SeqCst);
        let is_futile = !intercept::is_capturing() || !WATCH.async_io.is_taken_up();
        if is_not_behind(now, ticket) || is_futile || !is_patient() {
            return;
        }
        gate::wait(answered, now, SLICE);
    }
}
