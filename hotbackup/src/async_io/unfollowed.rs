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
use super::uring::rest;
use super::{REASONS, Untracked, mark, untracked};
use crate::backup::OnUnseenChange;
use crate::conductor::{Engine, Trouble};
use crate::error::Error;
use crate::extents;
use crate::intercept::audit;
use crate::registry::WATCH;
use crate::suspects;
use crate::sys;
use crate::tree::NodeId;

/// How long is waited for a moment of rest in the freeze, and before each try of it.
const PATIENCE: Duration = Duration::from_millis(20);
const PATIENCE_BEFORE: Duration = Duration::from_secs(1);

/// What the engine knows of such rings.
#[derive(Default)]
pub(crate) struct Unfollowed {
    /// How many times a ring was given up, or went after that, when files were looked for last.
    known: u32,
    /// Whether the files have been marked whole since the rings were seen at rest.
    at_rest: bool,
    /// The files that may be written through them, in order.
    files: Vec<NodeId>,
}

/// From now on nobody knows what is submitted to the ring. The first reason counts.
#[cold]
pub(super) fn give_up(ring: &Ring, why: Untracked) {
    if ring.unfollowed.compare_exchange(0, why as u32, Ordering::SeqCst, Ordering::Relaxed).is_ok() {
        WATCH.async_io.given_up.fetch_add(1, Ordering::SeqCst);
    }
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
        for ring in rings().filter(|ring| ring.descriptor.load(Ordering::Relaxed) == 0) {
            let descriptor = descriptor_of(ring.inode.load(Ordering::Relaxed));
            ring.descriptor.store(descriptor.map_or(0, |fd| fd + 1), Ordering::Relaxed);
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
        // What was opened since has not been written through them.
        let fresh = self.find_ring_files();
        if self.plan.on_unseen_change == OnUnseenChange::Fail {
            for id in fresh {
                if self.is_changed_unseen(id)? {
                    return Err(Trouble::Unsteady(id));
                }
            }
        }
        if !have_rested {
            for &id in &self.unfollowed.files {
                self.tree.node(id).marks.mark_all(&WATCH.ledger);
                self.tree.node(id).marks.mark_flags(&WATCH.ledger, extents::ATTRIBUTES);
            }
        }
        Ok(())
    }

    /// Finds the files that this process has open for writing, or has closed since; returns the new ones.
    fn find_ring_files(&mut self) -> Vec<NodeId> {
        self.heed_fanotify();
        let files = &mut self.unfollowed.files;
        let mut fresh: Vec<NodeId> = suspects::own_files(|dev, ino| WATCH.find(dev, ino))
            .into_iter()
            .map(|marks| marks.node())
            .chain(self.fanotify.closed_by_us.iter().copied())
            .filter(|&id| self.tree.get(id).is_some_and(|node| node.is_file() && !node.excluded))
            .filter(|id| files.binary_search(id).is_err())
            .collect();
        fresh.sort_unstable();
        fresh.dedup();
        files.extend(&fresh);
        files.sort_unstable();
        fresh
    }

    /// In the freeze, when everything captured is copied: sees to it that the rings are at rest, and that the files are as they left
    /// them. Allocates nothing.
    pub(crate) fn copy_ring_files(&mut self) -> Result<(), Trouble> {
        let known = given_up();
        if known == 0 {
            return Ok(());
        }
        if known != self.unfollowed.known {
            return Err(Trouble::Void("a ring of io_uring turned out to be one that cannot be followed"));
        }
        let rest = wait_for_rest();
        self.unfollowed.at_rest &= rest == Some(true);
        if rest.is_none() {
            return Err(Trouble::Busy);
        }
        let files = std::mem::take(&mut self.unfollowed.files);
        let copied = files.iter().try_for_each(|&id| match self.unfollowed.at_rest {
            true => self.is_as_it_was(id),
            // It was written meanwhile, for all that is known through one of them.
            false => self.copy_suspect(id).map_err(|trouble| match trouble {
                Trouble::Unsteady(_) => Trouble::Busy,
                other => other,
            }),
        });
        self.unfollowed.files = files;
        copied?;
        self.settle_all()?;
        if wait_for_rest() != Some(true) || given_up() != known {
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
    pub(crate) fn missed_ring_files(&mut self) -> bool {
        let known = given_up();
        let is_known = known == self.unfollowed.known;
        known > 0 && (!is_known || !self.unfollowed.at_rest && !self.find_ring_files().is_empty())
    }

    /// Says so in the report.
    pub(crate) fn warn_of_rings(&mut self) {
        if let Some(reason) = reason() {
            let files = self.unfollowed.files.len();
            let text = format!(
                "{reason}; the files that the program had open for writing, {files} of this backup, were copied whole when it had \
                 come to rest"
            );
            self.warn(None, text);
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
