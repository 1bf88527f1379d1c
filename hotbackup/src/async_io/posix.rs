//! POSIX asynchronous writes (aio(7)): glibc makes them on threads of its own, inside itself, where no hook sees them.
//!
//! A request is a control block of the program's, which the program must leave alone until the request has ended. Until then
//! glibc keeps `EINPROGRESS` in it: that is what aio_error(3) returns, and what is read here by way of the kernel. So an end
//! needs nobody to ask for it. A control block has one request at a time, so its address is the name.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Noted, Request, Submission, Untracked, Where, aio, bytes, ended, mark, submit, untracked};
use crate::flights::{Flights, Name};
use crate::gate::State;
use crate::intercept;
use crate::registry::WATCH;
use crate::sys;

/// What stands for a ring: no ring is at this address.
const RING: u64 = 1;

/// Whether the program has ever used any of this. Only stored to, so that it costs nothing.
static USED: AtomicBool = AtomicBool::new(false);

pub(super) fn is_used() -> bool {
    USED.load(Ordering::Relaxed)
}

/// What a control block says (`struct aiocb` of glibc).
struct ControlBlock {
    fd: RawFd,
    writes: bool,
    place: Where,
    in_progress: bool,
}

const CONTROL_BLOCK_SIZE: usize = 136;
/// `aio_lio_opcode` of a write; glibc adds a bit for the 64-bit spelling where that is another one.
const LIO_WRITE: u32 = 1;
const LIO_64: u32 = 128;

impl ControlBlock {
    fn read(address: u64) -> Option<ControlBlock> {
        let mut text = [0; CONTROL_BLOCK_SIZE];
        sys::raw::read_memory(address, &mut text).ok()?;
        let (count, at) = (u64::from_ne_bytes(bytes(&text, 24)), i64::from_ne_bytes(bytes(&text, 128)));
        Some(ControlBlock {
            fd: RawFd::from_ne_bytes(bytes(&text, 0)),
            writes: u32::from_ne_bytes(bytes(&text, 4)) & !LIO_64 == LIO_WRITE,
            place: Where::at(at, count),
            in_progress: i32::from_ne_bytes(bytes(&text, 112)) == libc::EINPROGRESS,
        })
    }

    fn request(&self) -> Request {
        Request { fd: self.fd, place: self.place }
    }
}

/// Makes the call `real`, which has the C library write what the control block at the address `request` says (aio_write(3));
/// `queued` says whether it does.
///
/// For hooks. Returns what `real` returned, with errno as it left it.
#[inline(always)]
pub fn queueing<R>(request: u64, real: impl FnOnce() -> R, queued: impl FnOnce(&R) -> bool) -> R {
    USED.store(true, Ordering::Relaxed);
    let note = |state, _: &mut Noted| note(request, true, state);
    let taken = |result: &R| {
        if !queued(result) {
            let name = Name { ring: RING, cookie: request };
            WATCH.async_io.flights().into_iter().for_each(|flights| flights.forget(name, mark));
        }
    };
    submit(submission(note), real, taken)
}

/// Makes the call `real`, which does so with every control block of an array of `count` pointers to them, at the address
/// `requests`, that says that it is to be written (lio_listio(3)). It may wait until all are written.
#[inline(always)]
pub fn queueing_list<R>(requests: u64, count: usize, real: impl FnOnce() -> R) -> R {
    USED.store(true, Ordering::Relaxed);
    let each =
        || (0..count).map_while(move |index| aio::address(requests, index)).filter(|&request| request != 0);
    let note = |state, _: &mut Noted| each().for_each(|request| note(request, false, state));
    // What was not queued has ended by what its control block says.
    submit(submission(note), real, |_| each().for_each(|request| told(request, false)))
}

/// Makes the call `real`, which tells the program whether the request at this address has ended (aio_error(3)) or, with
/// `for_good`, how, after which nobody asks any more (aio_return(3)).
#[inline(always)]
pub fn asking<R>(request: u64, for_good: bool, real: impl FnOnce() -> R) -> R {
    let result = real();
    if intercept::is_capturing() {
        ended(RING, || told(request, for_good));
    }
    result
}

/// Makes the call `real`, which waits until one of these requests has ended (aio_suspend(3)), for as long as it likes.
#[inline(always)]
pub fn suspended<R>(requests: u64, count: usize, real: impl FnOnce() -> R) -> R {
    let result = real();
    if intercept::is_capturing() {
        ended(RING, || {
            let all = (0..count).map_while(|index| aio::address(requests, index));
            all.filter(|&request| request != 0).for_each(|request| told(request, false));
        });
    }
    result
}

fn submission<N>(note: N) -> Submission<impl Fn() -> bool, N, impl Fn() -> bool> {
    Submission { ring: RING, is_blind: || false, note, waiting: || false }
}

/// Notes a request that is about to be queued. What cannot be read faults in the C library too.
fn note(request: u64, writes: bool, state: State) {
    let (Some(flights), Some(block)) = (WATCH.async_io.flights(), ControlBlock::read(request)) else {
        return;
    };
    let name = Name { ring: RING, cookie: request };
    // The program may use a control block again when its request has ended, without having asked.
    flights.land(name, true, mark);
    if !writes && !block.writes {
        return;
    }
    // The C library looks the descriptor up when it writes, which may be long after the call.
    if !flights.note(name, block.request().late_target(state)) {
        untracked(Untracked::TooMany);
    }
}

/// Lands the request if it has ended. One that was not noted was queued before the session began: it is marked by what its
/// control block still says.
fn told(request: u64, for_good: bool) {
    let Some(block) = ControlBlock::read(request) else { return };
    if block.in_progress {
        return;
    }
    let name = Name { ring: RING, cookie: request };
    let is_known = WATCH.async_io.flights().is_some_and(|flights| flights.land(name, for_good, mark));
    if !is_known && block.writes {
        match block.request().target(State::Open) {
            Some(Some(target)) => mark(&target),
            Some(None) => {}
            None => untracked(Untracked::Before),
        }
    }
}

/// Lands whatever has ended. Everyone is outside: no call is about to queue what is noted.
pub(super) fn look(flights: &Flights) {
    // Memory that is gone is that of a request that has ended.
    let has_ended = |request| ControlBlock::read(request).is_none_or(|block| !block.in_progress);
    flights.land_where(RING, has_ended, mark);
}
