//! Rings of io_uring whose requests are not read before the kernel takes them.
//!
//! What a program has open for writing may be written through such a ring at any time. Times alone do not tell: they move when a
//! write begins, and its bytes land later. But the counters of the ring tell when it is at rest: what was taken has ended. So the files
//! that may have been written are read whole behind a moment of rest, and the cut is one at which the counters are those of that moment
//! still; or they are read whole in the freeze, and the counters are the same before and behind. A ring that does not come to rest
//! fails the session.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::engine::descriptor_of;
use super::rings::{self, Ring};
use super::uring::{has_partial_ends, rest};
use super::{REASONS, Untracked, mark, untracked};
use crate::backup::OnUnseenChange;
use crate::conductor::{Engine, Trouble};
use crate::error::{Error, Result};
use crate::extents;
use crate::intercept::audit;
use crate::registry::WATCH;
use crate::suspects;
use crate::sys;
use crate::tree::NodeId;

/// How long is waited for a moment of rest in the freeze, and before each try of it.
const PATIENCE: Duration = Duration::from_millis(20);
const PATIENCE_BEFORE: Duration = Duration::from_secs(1);
/// How often a ring is asked for its files, a millisecond apart.
const LOOKS: u32 = 200;

/// What the engine knows of such rings.
#[derive(Default)]
pub(crate) struct Unfollowed {
    /// How many times a ring was given up, or went after that, when files were looked for last.
    known: u32,
    /// Whether the files have been marked whole since the rings were seen at rest.
    at_rest: bool,
    /// The files that may be written through them, in order.
    files: Vec<NodeId>,
    /// How many files were marked whole.
    copied: usize,
}

/// From now on nobody knows what is submitted to the ring. The first reason counts.
#[cold]
pub(super) fn give_up(ring: &Ring, why: Untracked) {
    if ring.unfollowed.compare_exchange(0, why as u32, Ordering::SeqCst, Ordering::Relaxed).is_ok() {
        WATCH.async_io.given_up.fetch_add(1, Ordering::SeqCst);
    }
}

/// What calls have found of rings before the session took them up is nothing. Everyone is outside.
pub(super) fn begin() {
    WATCH.async_io.rings().for_each(|ring| ring.unfollowed.store(0, Ordering::SeqCst));
    WATCH.async_io.given_up.store(0, Ordering::SeqCst);
}

/// A ring goes, which may be one that was given up: what it has under way then is not heard of any more.
pub(super) fn see_off(ring: &Ring) {
    if ring.is_unfollowed() {
        if rest(ring).is_none() {
            untracked(Untracked::Unreadable);
        }
        WATCH.async_io.given_up.fetch_add(1, Ordering::SeqCst);
    }
}

fn rings() -> impl Iterator<Item = &'static Ring> {
    WATCH.async_io.rings().filter(|ring| ring.kind() == rings::URING && ring.is_unfollowed())
}

/// What is noted of requests that were submitted before their ring was given up: nobody is told of their ends. Everyone is outside.
pub(super) fn land_all() {
    let Some(flights) = WATCH.async_io.flights() else { return };
    for ring in WATCH.async_io.rings().filter(|ring| ring.is_unfollowed()) {
        flights.land_all(ring.name(), mark);
    }
}

fn given_up() -> u32 {
    WATCH.async_io.given_up.load(Ordering::SeqCst)
}

/// Notes where the counters of a ring at rest stand: `None` if it is not, else whether they stand where they stood.
fn note_rest(ring: &Ring) -> Option<bool> {
    let (taken, ended) = rest(ring)?;
    let now = u64::from(taken) << 32 | u64::from(ended);
    Some(ring.rest.swap(now, Ordering::Relaxed) == now)
}

/// Waits until all rings are at rest: `None` if they are not in time, and then nothing is known of them; else whether they have been
/// since this was asked last.
fn wait_for_rest() -> Option<bool> {
    let deadline = sys::raw::monotonic_ns() + PATIENCE.as_nanos() as u64;
    let mut is_same = true;
    for ring in rings() {
        loop {
            match note_rest(ring) {
                Some(same) => break is_same &= same,
                None if sys::raw::monotonic_ns() >= deadline => return None,
                None => sys::thread::nap(Duration::from_micros(20)),
            }
        }
    }
    Some(is_same)
}

impl Engine<'_> {
    /// Has the files that may be written through rings that are not followed copied whole, if those have been at work since
    /// that was done last. To be called before each try of the cut.
    pub(crate) fn rest_rings(&mut self) -> Result<(), Trouble> {
        let known = given_up();
        if known == 0 {
            return Ok(());
        }
        if rings().any(has_partial_ends) {
            untracked(Untracked::Request);
            return self.check_rings().map_err(Trouble::from);
        }
        let begun = Instant::now();
        let mut rest = wait_for_rest();
        let have_rested = rest == Some(true) && self.unfollowed.at_rest && self.unfollowed.known == known;
        while rest.is_none() && begun.elapsed() < PATIENCE_BEFORE {
            self.check()?;
            self.converge_once()?;
            rest = wait_for_rest();
        }
        (self.unfollowed.known, self.unfollowed.at_rest) = (known, rest.is_some());
        let open = self.open_files()?;
        let closed = std::mem::take(&mut self.fanotify.closed_by_us);
        // What was opened since they were at rest has not been written through them.
        let written = open.iter().copied().filter(|_| !have_rested);
        let written = written.chain(closed.into_iter().filter(|&id| self.is_copied_file(id)));
        let written: Vec<NodeId> = written.collect();
        for &id in &written {
            let fails = self.plan.on_unseen_change == OnUnseenChange::Fail;
            if fails && self.is_changed_unseen(id)? {
                return Err(Trouble::Unsteady(id));
            }
            self.tree.node(id).marks.mark_all(&WATCH.ledger);
            self.tree.node(id).marks.mark_flags(&WATCH.ledger, extents::ATTRIBUTES);
        }
        self.unfollowed.copied += written.len();
        // What was closed before a moment of rest is written no more.
        self.unfollowed.files = if rest.is_some() { open } else { written };
        self.unfollowed.files.sort_unstable();
        Ok(())
    }

    fn is_copied_file(&self, id: NodeId) -> bool {
        self.tree.get(id).is_some_and(|node| node.is_file() && !node.excluded)
    }

    /// The files that this process has open for writing, and those that are registered with the rings; in order.
    fn open_files(&mut self) -> Result<Vec<NodeId>, Trouble> {
        let mut files = suspects::own_files(|dev, ino| WATCH.find(dev, ino));
        for ring in rings() {
            let descriptor = descriptor_of(ring.inode.load(Ordering::Relaxed));
            // Some kernels do not tell while somebody is at the ring.
            let look = |look| {
                if look > 0 {
                    sys::thread::nap(Duration::from_millis(1));
                }
                suspects::registered_files(descriptor?, |dev, ino| WATCH.find(dev, ino))
            };
            match (0..LOOKS).find_map(look) {
                Some(registered) => files.extend(registered),
                // It may have been unmapped without our knowing, which shows.
                None => untracked(Untracked::Unreadable),
            }
        }
        self.check_rings()?;
        // Behind that, or a file that is closed meanwhile would be in neither.
        self.heed_fanotify();
        let mut files: Vec<NodeId> =
            files.into_iter().map(|marks| marks.node()).filter(|&id| self.is_copied_file(id)).collect();
        files.sort_unstable();
        files.dedup();
        Ok(files)
    }

    /// In the freeze, before anything suspect is read: waits until the rings are at rest. Allocates nothing, as what follows.
    pub(crate) fn await_rest(&mut self) -> Result<(), Trouble> {
        if given_up() != self.unfollowed.known {
            return Err(Trouble::Void("a ring of io_uring turned out to be one that cannot be followed"));
        }
        let rest = wait_for_rest();
        self.unfollowed.at_rest &= rest == Some(true);
        if rest.is_none() { Err(Trouble::Busy) } else { Ok(()) }
    }

    /// In the freeze, when everything captured is copied: sees to it that the rings have been at rest, and that the files are as they
    /// left them.
    pub(crate) fn copy_ring_files(&mut self) -> Result<(), Trouble> {
        let files = std::mem::take(&mut self.unfollowed.files);
        let fails = self.plan.on_unseen_change == OnUnseenChange::Fail;
        let copied = files.iter().try_for_each(|&id| match self.unfollowed.at_rest {
            _ if sys::raw::monotonic_ns() >= self.deadline_ns => {
                Err(Trouble::Void("what was left to copy took too long"))
            }
            true => self.is_as_it_was(id),
            // It was written meanwhile, for all that is known through one of them.
            false => self.copy_suspect(id).map_err(|trouble| match trouble {
                Trouble::Unsteady(_) if !fails => Trouble::Busy,
                other => other,
            }),
        });
        self.unfollowed.files = files;
        copied?;
        self.settle_all()?;
        if wait_for_rest() != Some(true) || given_up() != self.unfollowed.known {
            self.unfollowed.at_rest = false;
            return Err(Trouble::Busy);
        }
        Ok(())
    }

    /// Audits a file in the freeze that has been copied whole before.
    fn is_as_it_was(&mut self, id: NodeId) -> Result<(), Trouble> {
        if self.tree.node(id).replaced || self.tree.node(id).excluded || self.tree.node(id).conceded {
            return Ok(());
        }
        match self.stamp_now(id) {
            Ok(now) => {
                audit(self.tree.node(id).marks, now);
                Ok(())
            }
            Err(Trouble::Vanished) => Ok(()),
            Err(trouble) => Err(trouble),
        }
    }

    /// Whether a file may have been written before the cut, through a ring that is not followed, that was not known of then. To be
    /// called behind it.
    pub(crate) fn missed_ring_files(&mut self) -> Result<bool> {
        let known = given_up();
        if known == 0 {
            return Ok(false);
        }
        if known != self.unfollowed.known {
            return Ok(true);
        }
        let open = self.open_files().map_err(|t| self.explain(t))?;
        let is_new = |id: &NodeId| self.unfollowed.files.binary_search(id).is_err();
        Ok(!self.unfollowed.at_rest
            && (open.iter().any(is_new) || self.fanotify.closed_by_us.iter().any(is_new)))
    }

    /// Says so in the report.
    pub(crate) fn warn_of_rings(&mut self) {
        if let Some(reason) = reason() {
            let text =
                "the files that the program had open for writing were copied whole when it had come to rest";
            let (files, text) = (self.unfollowed.copied, format!("{reason}; {text}"));
            self.warn(None, format!("{text} ({files} copies)"));
        }
    }
}

/// Why the first of the rings was given up.
fn reason() -> Option<&'static str> {
    let of = |ring: &Ring| ring.unfollowed.load(Ordering::SeqCst).checked_sub(1);
    REASONS.get(WATCH.async_io.rings().find_map(of)? as usize).copied()
}

/// That there was no cut because of them.
pub(crate) fn never_at_rest() -> Error {
    let why = reason().unwrap_or_default();
    Error::AsyncWrites { reason: format!("{why}, and that did not come to rest for a cut") }
}
