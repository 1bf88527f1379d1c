//! Linux native AIO (io_submit(2)): how the kernel lays out requests and rings (`linux/aio_abi.h` and `fs/aio.c`).
//!
//! A ring is memory of the program's that the kernel writes the ends of requests to. Reading it takes nothing out of it. All
//! of it is read by way of the kernel, because the program may unmap it at any time.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Noted, Request, Submission, Untracked, Where, bytes, ended, mark, submit, untracked};
use crate::flights::{Name, Target};
use crate::gate::State;
use crate::intercept;
use crate::registry::WATCH;
use crate::sys;

const REQUEST_SIZE: usize = 64;
const EVENT_SIZE: usize = 32;
const HEADER_SIZE: usize = 32;
/// What the fifth word of a ring is.
const MAGIC: u32 = 0xA10A_10A1;
/// The kernel's opcodes for writing.
const PWRITE: u16 = 1;
const PWRITEV: u16 = 8;
/// No kernel allows rings with more events.
const MOST_EVENTS: u32 = 1 << 24;

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
    submit(Submission { ring, is_blind: || false, note, waiting: || false }, real, taken)
}

/// Makes the call `real`, which tells the program of requests of the ring `ring` that have ended (io_getevents(2)); `events`
/// says at which address and how many. The call may wait for as long as it likes.
#[inline(always)]
pub fn reaping<R>(ring: u64, real: impl FnOnce() -> R, events: impl FnOnce(&R) -> (u64, usize)) -> R {
    let result = real();
    if intercept::is_capturing() {
        ended(ring, || {
            let (events, count) = events(&result);
            told(ring, events, count);
        });
    }
    result
}

/// Makes the call `real`, which waits for all requests of the ring `ring` to end and destroys it; `destroyed` says whether it
/// has (io_destroy(2)).
#[inline(always)]
pub fn destroying<R>(ring: u64, real: impl FnOnce() -> R, destroyed: impl FnOnce(&R) -> bool) -> R {
    if !intercept::is_capturing() {
        return real();
    }
    // While the kernel waits for what is under way, another ring may be made at the address.
    let going = GOING.fetch_add(4, Ordering::Relaxed);
    let flights = || WATCH.async_io.flights().into_iter();
    ended(ring, || flights().for_each(|flights| flights.rename(ring, going)));
    let result = real();
    ended(ring, || match destroyed(&result) {
        true => flights().for_each(|flights| flights.land_all(going, mark)),
        false => flights().for_each(|flights| flights.rename(going, ring)),
    });
    result
}

/// The next name for the requests of a ring that is being destroyed: no address, nor a name of another kind of ring.
static GOING: AtomicU64 = AtomicU64::new(3);

/// Requests of one call.
struct Batch {
    ring: u64,
    requests: u64,
    count: usize,
}

impl Batch {
    fn names(&self) -> impl Iterator<Item = Option<Name>> {
        (0..self.count)
            .map(|index| address(self.requests, index).map(|cookie| Name { ring: self.ring, cookie }))
    }

    /// Notes every request. What cannot be read is refused by the kernel too, and everything behind it.
    fn note(&self, state: State, noted: &mut Noted) {
        WATCH.async_io.follow_aio(self.ring);
        let Some(flights) = WATCH.async_io.flights() else { return };
        for name in self.names() {
            let Some(name) = name else { return };
            let Ok(request) = request(name.cookie) else { return };
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

/// The address of the request at `index` in an array of pointers.
pub(super) fn address(requests: u64, index: usize) -> Option<u64> {
    let mut pointer = [0; size_of::<u64>()];
    let at = requests.checked_add(u64::try_from(index * size_of::<u64>()).ok()?)?;
    sys::raw::read_memory(at, &mut pointer).ok()?;
    Some(u64::from_ne_bytes(pointer))
}

/// What the request at `address` asks for: `Err` if it cannot be read, `None` if it writes nothing.
pub(super) fn request(address: u64) -> Result<Option<Request>, rustix::io::Errno> {
    let mut text = [0; REQUEST_SIZE];
    sys::raw::read_memory(address, &mut text)?;
    let opcode = u16::from_ne_bytes(bytes(&text, 16));
    if opcode != PWRITE && opcode != PWRITEV {
        return Ok(None);
    }
    let flags = i32::from_ne_bytes(bytes(&text, 12));
    let count = u64::from_ne_bytes(bytes(&text, 32));
    let place = match i64::from_ne_bytes(bytes(&text, 40)) {
        at if flags & libc::RWF_APPEND == 0 && opcode == PWRITE => Where::at(at, count),
        at if flags & libc::RWF_APPEND == 0 => vector_at(at, u64::from_ne_bytes(bytes(&text, 24)), count),
        _ => Where::Anywhere,
    };
    Ok(Some(Request { fd: RawFd::from_ne_bytes(bytes(&text, 20)), place }))
}

/// The place of a write of `count` pieces that `pieces` points to.
pub(super) fn vector_at(at: i64, pieces: u64, count: u64) -> Where {
    let mut len = 0u64;
    for index in 0..count.min(1024) {
        let mut piece = [0; 16];
        let Some(address) = pieces.checked_add(index * 16) else { return Where::Anywhere };
        if sys::raw::read_memory(address, &mut piece).is_err() {
            return Where::Anywhere;
        }
        len = len.saturating_add(u64::from_ne_bytes(bytes(&piece, 8)));
    }
    Where::at(at, len)
}

/// Lands the writes whose ends `events` tells of, as the program has been told.
pub(super) fn told(ring: u64, events: u64, count: usize) {
    for index in 0..count {
        let mut event = [0; EVENT_SIZE];
        let at = events.checked_add((index * EVENT_SIZE) as u64);
        match at.map(|at| sys::raw::read_memory(at, &mut event)) {
            Some(Ok(())) => end(Name { ring, cookie: u64::from_ne_bytes(bytes(&event, 8)) }, true),
            _ => untracked(Untracked::Unreadable),
        }
    }
}

/// A request has ended. One that was not noted was submitted before the session began: what it wrote is marked by what the
/// request still says.
fn end(name: Name, told: bool) {
    let known = WATCH.async_io.flights().is_some_and(|flights| flights.land(name, told, mark));
    if known {
        return;
    }
    match request(name.cookie) {
        Ok(None) => {}
        Ok(Some(request)) => match request.target(State::Open) {
            Some(Some(target)) => mark(&target),
            Some(None) => {}
            None => untracked(Untracked::Before),
        },
        Err(_) => untracked(Untracked::Before),
    }
}

/// Lands the writes whose ends lie in a ring. What was submitted before the session is marked if `all`.
pub(super) fn look(ring: u64, all: bool) {
    let mut header = [0; HEADER_SIZE];
    if sys::raw::read_memory(ring, &mut header).is_err() {
        return;
    }
    let word = |index: usize| u32::from_ne_bytes(bytes(&header, index * 4));
    let (size, head, tail) = (word(1), word(2), word(3));
    if word(4) != MAGIC || size == 0 || size > MOST_EVENTS || head >= size || tail >= size {
        return;
    }
    let mut index = head;
    while index != tail {
        let mut event = [0; EVENT_SIZE];
        let at = ring + HEADER_SIZE as u64 + u64::from(index) * EVENT_SIZE as u64;
        if sys::raw::read_memory(at, &mut event).is_err() {
            return;
        }
        let name = Name { ring, cookie: u64::from_ne_bytes(bytes(&event, 8)) };
        match all {
            true => end(name, false),
            false => {
                let _ = WATCH.async_io.flights().map(|flights| flights.land(name, false, mark));
            }
        }
        index = (index + 1) % size;
    }
}
