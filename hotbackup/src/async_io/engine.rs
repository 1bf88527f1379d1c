//! What the engine does about asynchronous writes: it takes up the rings that are there when a session begins, looks up those that
//! a call meets later, and waits in the freeze until nothing flies.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::rings::{self, Ring};
use super::uring::{self, Mapped, Places};
use super::{REASONS, Untracked, aio, posix, untracked};
use crate::conductor::{Engine, Trouble};
use crate::error::{Error, Result};
use crate::flights::Flights;
use crate::gate::{self, State};
use crate::registry::{self, WATCH};
use crate::suspects;
use crate::sys;

/// How long after arming there is no cut if there are rings of native AIO: what was submitted before has ended by then.
const SETTLING: Duration = Duration::from_secs(1);

/// How long submissions are held up while a session begins, for what was submitted to io_uring before to end, at the first
/// try and, twice as long each time, at further ones.
const QUIETING: Duration = Duration::from_millis(20);
const QUIETINGS: u32 = 5;

/// A mapping: where it begins, at which place of what is mapped, and the inode of that.
type Mapping = (u64, u64, u64);

/// Mappings of this process whose name holds `kind`.
pub(super) fn mappings(kind: &str) -> Vec<Mapping> {
    let maps = suspects::read("/proc/self/maps").unwrap_or_default();
    let mapping = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let (range, offset, inode) = (words.next()?, words.nth(1)?, words.nth(1)?);
        let number = |text| u64::from_str_radix(text, 16).ok();
        Some((number(range.split('-').next()?)?, number(offset)?, inode.parse().ok()?))
    };
    maps.lines().filter(|line| line.contains(kind)).filter_map(mapping).collect()
}

/// Where a ring of io_uring has its counters and ends, and where its requests (`IORING_OFF_SQ_RING`, `IORING_OFF_SQES`).
const COUNTERS: u64 = 0;
const REQUESTS: u64 = 0x1000_0000;

/// The rings of io_uring that are mapped.
pub(super) fn mapped_rings() -> Vec<Mapped> {
    let mappings = mappings("anon_inode:[io_uring]");
    let requests: HashMap<u64, u64> =
        mappings.iter().filter(|mapping| mapping.1 == REQUESTS).map(|&(at, _, inode)| (inode, at)).collect();
    let counters = mappings.into_iter().filter(|mapping| mapping.1 == COUNTERS);
    let ring =
        |(address, _, inode)| Mapped { address, requests: requests.get(&inode).copied().unwrap_or(0), inode };
    counters.map(ring).collect()
}

/// A descriptor of the host's of the ring with this inode.
fn descriptor_of(inode: u64) -> Option<u32> {
    let is_it = |&fd: &u32| sys::raw::inode_of_ring(fd.cast_signed()) == Some(inode);
    suspects::numbers("/proc/self/fd").into_iter().find(is_it)
}

fn is_known(mapped: &Mapped) -> bool {
    WATCH.async_io.find(mapped.address).is_some_and(|ring| ring.kind() == rings::URING)
}

/// The rings of io_uring that were used and that no captured call has met: one enters a ring before it submits. `places` is
/// asked for when it is needed.
fn used_rings(places: &mut Option<Places>) -> Vec<(Mapped, Places)> {
    let mut found = mapped_rings();
    found.retain(|mapped| !is_known(mapped));
    if !found.is_empty() && places.is_none() {
        *places = Places::ask();
        if places.is_none() {
            untracked(Untracked::Unreadable);
        }
    }
    let used = |mapped: Mapped| {
        let places = (*places)?;
        (places.was_used(mapped.address) && !is_known(&mapped)).then_some((mapped, places))
    };
    found.into_iter().filter_map(used).collect()
}

/// Takes up the rings that were made since the session began, and are not known.
fn take_up_new_rings() {
    let mut places = None;
    for mapped in mapped_rings() {
        if is_known(&mapped) {
            continue;
        }
        places = places.or_else(Places::ask);
        let Some((places, ring)) = places.zip(WATCH.async_io.enter(mapped.address)) else { return };
        places.take_up(ring, mapped);
    }
}

/// Lets go of rings that a program has unmapped. All that was submitted to such a ring has to have been seen to end.
fn forget_unmapped_rings() {
    let mapped = mapped_rings();
    let is_there = |ring: &Ring| {
        let inode = ring.inode.load(Ordering::Relaxed);
        mapped.iter().any(|mapped| mapped.address == ring.address() && mapped.inode == inode)
    };
    for ring in WATCH.async_io.rings() {
        let by_hand = ring.kind() == rings::URING && ring.by_handle.load(Ordering::Relaxed) == 0;
        if by_hand && !is_there(ring) {
            if WATCH.async_io.flights().is_some_and(|flights| flights.any_flies(ring.address())) {
                untracked(Untracked::Unreadable);
            }
            ring.set_kind(rings::GONE);
        }
    }
}

impl Engine<'_> {
    /// Takes up the rings that are there already. Submissions to io_uring are held up until what was submitted before has
    /// ended; of native AIO nobody knows what was.
    pub(crate) fn take_up_rings(&mut self) -> Result<()> {
        let aio = mappings("/[aio]").into_iter().filter(|mapping| mapping.1 == 0);
        aio.for_each(|(address, ..)| WATCH.async_io.follow_aio(address));
        let mut places = None;
        for quieting in 0..QUIETINGS {
            for (mapped, places) in used_rings(&mut places) {
                let Some(ring) = WATCH.async_io.enter(mapped.address) else { continue };
                places.take_up(ring, mapped);
                ring.descriptor.store(descriptor_of(mapped.inode).map_or(0, |fd| fd + 1), Ordering::Relaxed);
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

    /// Looks up the rings that calls have met and that are not known.
    pub(crate) fn meet_rings(&self) {
        let (asked, answered) = (&WATCH.async_io.asked, &WATCH.async_io.answered);
        let ticket = asked.load(Ordering::SeqCst);
        if ticket != answered.load(Ordering::SeqCst) {
            forget_unmapped_rings();
            take_up_new_rings();
            answered.store(ticket, Ordering::SeqCst);
            gate::wake(answered);
        }
    }

    /// Looks for rings of io_uring that were used and that no captured call has met.
    pub(crate) fn look_for_rings(&self) -> Result<()> {
        forget_unmapped_rings();
        take_up_new_rings();
        WATCH.async_io.rings().filter(|ring| ring.kind() == rings::URING).for_each(uring::check);
        self.check_rings()
    }

    /// Lets the time pass in which what was submitted before the session ends.
    pub(crate) fn settle_rings(&mut self) -> Result<(), Trouble> {
        let has_unknown = || posix::is_used() || WATCH.async_io.rings().any(|ring| ring.kind() == rings::AIO);
        while has_unknown() && self.armed.elapsed() < SETTLING {
            self.check()?;
            self.converge_once()?;
        }
        Ok(())
    }

    /// Waits until every asynchronous write has ended, and marks what was written. Everyone is outside.
    pub(crate) fn land_writes(&mut self) -> Result<(), Trouble> {
        let mut all = true;
        loop {
            let flights = WATCH.async_io.flights();
            let ended = flights.is_none_or(Flights::none_flies);
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
            flights.filter(|_| posix::is_used()).into_iter().for_each(posix::look);
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
