//! What the engine does about asynchronous writes: it takes up the rings that are there when a session begins, looks up those that
//! a call meets later, and waits in the freeze until nothing flies.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::rings::{self, Ring};
use super::uring::{self, Mapped, Places};
use super::{REASONS, Untracked, aio, mark, posix, unfollowed, untracked};
use crate::conductor::{Engine, Trouble};
use crate::direct::host_table;
use crate::error::{Error, Result};
use crate::flights::{Flights, Late};
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
    let ring = |(address, _, inode)| Mapped { address, requests: requests.get(&inode).copied(), inode };
    counters.map(ring).collect()
}

/// A descriptor of the host's of the ring with this inode.
pub(super) fn descriptor_of(inode: u64) -> Option<u32> {
    let is_it = |&fd: &u32| sys::raw::inode_of_ring(fd.cast_signed()) == Some(inode);
    suspects::numbers("/proc/self/fd").into_iter().find(is_it)
}

/// Whether a thread of the kernel's takes requests from the ring with this descriptor of the host's (`SqThread` in its fdinfo). Some
/// kernels do not tell while the ring is in use.
pub(super) fn has_thread(fd: u32) -> bool {
    let info = suspects::read(&format!("{}/fdinfo/{fd}", host_table())).unwrap_or_default();
    let thread = info.lines().find_map(|line| line.strip_prefix("SqThread:")?.trim().parse::<i64>().ok());
    thread.is_some_and(|thread| thread >= 0)
}

/// Whether there is any such thread; since Linux 5.12 they are threads of the process.
fn has_polling_threads() -> bool {
    let is_it = |thread: u32| {
        suspects::read(&format!("/proc/self/task/{thread}/comm"))
            .is_some_and(|name| name.starts_with("iou-sqp-"))
    };
    suspects::numbers("/proc/self/task").into_iter().any(is_it)
}

fn is_known(mapped: &Mapped) -> bool {
    let known = WATCH.async_io.find(mapped.address).filter(|ring| ring.kind() == rings::URING);
    // One that was met by its handle need not have been seen mapped.
    known.is_some_and(|ring| [0, mapped.inode].contains(&ring.inode.load(Ordering::Relaxed)))
}

/// Takes up the rings that are not known.
fn take_up(places: Places, rings: impl Iterator<Item = Mapped>) {
    for mapped in rings.filter(|mapped| !is_known(mapped)) {
        let Some(ring) = WATCH.async_io.enter(mapped.address) else { return };
        places.take_up(ring, mapped);
    }
}

/// Takes up the rings that were used before the session began.
fn take_up_used_rings(places: Places) {
    let used = mapped_rings().into_iter().filter(|mapped| places.was_used(mapped.address));
    let used: Vec<u64> = used.map(|mapped| mapped.inode).collect();
    // A ring that was half mapped when it was listed, and used when it was looked at, is mapped by now.
    let mapped = mapped_rings();
    forget_unmapped_rings(&mapped);
    take_up(places, mapped.into_iter().filter(|mapped| used.contains(&mapped.inode)));
}

/// Takes up the rings that were made since, and whose requests are mapped as well: before that none can be submitted.
fn take_up_new_rings() {
    let mut mapped = mapped_rings();
    forget_unmapped_rings(&mapped);
    mapped.retain(|mapped| mapped.requests.is_some() && !is_known(mapped));
    if mapped.is_empty() {
        return;
    }
    match Places::ask() {
        Some(places) => take_up(places, mapped.into_iter()),
        None => untracked(Untracked::Unreadable),
    }
}

/// The rings of io_uring that are followed.
fn urings() -> impl Iterator<Item = &'static Ring> {
    WATCH.async_io.rings().filter(|ring| ring.kind() == rings::URING)
}

/// Lets go of rings that a program has unmapped, and made another in the place of, perhaps. All that was submitted to such a ring
/// has to have been seen to end.
fn forget_unmapped_rings(mapped: &[Mapped]) {
    let is_gone = |ring: &Ring| {
        let (by_handle, inode) = (&ring.by_handle, ring.inode.load(Ordering::Relaxed));
        let is_it = |mapped: &Mapped| mapped.address == ring.address() && mapped.inode == inode;
        by_handle.load(Ordering::Relaxed) == 0 && !mapped.iter().any(is_it)
    };
    urings().filter(|ring| is_gone(ring)).for_each(|ring| uring::let_go(ring, is_gone));
}

impl Engine<'_> {
    /// Takes up the rings that are there already. Submissions to io_uring are held up until what was submitted before has
    /// ended; of native AIO nobody knows what was.
    pub(crate) fn take_up_rings(&mut self) -> Result<()> {
        let aio = mappings("/[aio]").into_iter().filter(|mapping| mapping.1 == 0);
        aio.for_each(|(address, ..)| WATCH.async_io.follow_aio(address));
        if mapped_rings().is_empty() {
            WATCH.async_io.taken_up.store(true, Ordering::SeqCst);
            // One may have been made, and used, before that was done.
            if mapped_rings().is_empty() {
                return self.check_rings();
            }
            WATCH.async_io.taken_up.store(false, Ordering::SeqCst);
        }
        let Some(places) = Places::ask() else {
            untracked(Untracked::Unreadable);
            return self.check_rings();
        };
        for quieting in 0..QUIETINGS {
            // Most of it is done before anybody has to wait.
            take_up_used_rings(places);
            let descriptors: Vec<_> =
                urings().map(|ring| (ring, descriptor_of(ring.inode.load(Ordering::Relaxed)))).collect();
            // One that is made from here on has no descriptor that is known.
            let are_polled = has_polling_threads();
            for (ring, descriptor) in descriptors {
                ring.descriptor.store(descriptor.map_or(0, |fd| fd + 1), Ordering::Relaxed);
                let may_be_polled = are_polled || descriptor.is_none_or(has_thread);
                ring.may_be_polled.store(may_be_polled.into(), Ordering::Relaxed);
            }
            let is_last = quieting + 1 == QUIETINGS;
            if self.quiet_rings(places, QUIETING * (1 << quieting), is_last) {
                return self.check_rings();
            }
            sys::thread::nap(QUIETING);
        }
        Err(Error::AsyncWrites {
            reason: "a call of the program did not return while its rings of io_uring were taken up".into(),
        })
    }

    /// Holds submissions up, at most for `time`, until nothing is under way in any ring of io_uring that was used. What is
    /// submitted behind that is noted. The `last` time those that do not come to rest are given up.
    fn quiet_rings(&mut self, places: Places, time: Duration, last: bool) -> bool {
        let ticket = self.close_gate();
        let deadline = sys::raw::monotonic_ns() + u64::try_from(time.as_nanos()).unwrap_or(0);
        let expired = || sys::raw::monotonic_ns() >= deadline;
        let mut is_quiet = false;
        if registry::wait_until_outside(registry::changes_files, expired).is_ok() {
            take_up_used_rings(places);
            while !is_quiet && !expired() {
                is_quiet = urings().all(uring::is_quiet);
                sys::thread::nap(Duration::from_micros(20));
            }
            if is_quiet || last {
                unfollowed::begin();
            }
            if last && !is_quiet {
                // What a program has unmapped meanwhile is not busy.
                forget_unmapped_rings(&mapped_rings());
                let busy = urings().filter(|ring| !uring::is_quiet(ring));
                busy.for_each(|ring| unfollowed::give_up(ring, Untracked::Unending));
                is_quiet = true;
            }
        }
        if is_quiet {
            // Some may have been noted while no ring was known.
            if let Some(flights) = WATCH.async_io.flights().filter(|flights| !flights.is_empty()) {
                urings().for_each(|ring| flights.land_all(ring.name(), mark));
            }
            // What a call found of the rings before, when it did not know which were used, is nothing: still nobody is inside.
            let untracked = &WATCH.async_io.untracked;
            let found = Untracked::Submission as u32;
            let _ = untracked.compare_exchange(found, 0, Ordering::SeqCst, Ordering::Relaxed);
            WATCH.async_io.taken_up.store(true, Ordering::SeqCst);
        }
        self.deadline_ns = 0;
        self.gate.open_from(ticket, State::Open) && is_quiet
    }

    /// Looks up the rings that calls have met and that are not known.
    pub(crate) fn meet_rings(&self) {
        let (asked, answered) = (&WATCH.async_io.asked, &WATCH.async_io.answered);
        let ticket = asked.load(Ordering::SeqCst);
        if ticket != answered.load(Ordering::SeqCst) {
            take_up_new_rings();
            answered.store(ticket, Ordering::SeqCst);
            gate::wake(answered);
        }
    }

    /// Looks for rings of io_uring that were used and that no captured call has met.
    pub(crate) fn look_for_rings(&self) -> Result<()> {
        take_up_new_rings();
        let suspects: Vec<&Ring> = urings().filter(|ring| !uring::seems_followed(ring)).collect();
        if !suspects.is_empty() {
            // Those that are still there were there when they were read.
            forget_unmapped_rings(&mapped_rings());
            let is_there = |ring: &&&Ring| ring.kind() == rings::URING;
            suspects
                .iter()
                .filter(is_there)
                .for_each(|ring| unfollowed::give_up(ring, Untracked::Submission));
        }
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
        unfollowed::land_all();
        loop {
            let flights = WATCH.async_io.flights();
            let may_fly = |flights: &&Flights| !flights.none_flies() || flights.has_unsure();
            if posix::is_used() {
                flights.filter(may_fly).into_iter().for_each(posix::look);
            }
            // What was no file when it was submitted, and may be one now, is waited for as well.
            let is_sure = |flights: &Flights| !flights.any_unsure(Late::may_be_another);
            let ended = flights.is_none_or(|flights| flights.none_flies() && is_sure(flights));
            for ring in WATCH.async_io.rings() {
                match ring.kind() {
                    rings::AIO => aio::look(ring.address(), all || ended),
                    // If it is there before the next try, that will say so.
                    rings::URING if !uring::look(ring) => {
                        return Err(Trouble::Void("a ring of io_uring is not what it was"));
                    }
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
    pub(super) fn check_rings(&self) -> Result<()> {
        match WATCH.async_io.untracked.load(Ordering::SeqCst) {
            0 => Ok(()),
            code => Err(Error::AsyncWrites { reason: REASONS[code as usize - 1].into() }),
        }
    }
}
