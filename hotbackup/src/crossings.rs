//! Changes that hooks could not mark exactly, most of them calls on paths that ran beside calls which give and take names.
//!
//! A hook looks up what a path stands for before its call. If another call moves names meanwhile, the call may hit
//! another inode than the one that was found, and mark the wrong one. The inode that it did hit was then put there by a
//! call that noted it ([`Crossings::note`]), or has only been there since. So a call that finds that names moved beside
//! it says so ([`Crossings::report`]), and the engine marks every inode noted, and every one that is new, since the last
//! *quiet moment*: one at which nobody was inside a captured call. Chains of such calls do not reach across it.
//!
//! Where a directory or a symbolic link was noted, or nothing is known of the inode, everything may have been hit. But
//! whatever was hit was changed, and bears a time from behind the quiet moment: so every inode's times are looked at
//! ([`Engine::look`]), and only what has such a time is marked.
//!
//! The engine makes a quiet moment just before the cut if there was anything of the kind, and works off the marks in the
//! open. What comes between that moment and the cut is little, and is dealt with in the freeze.

use std::sync::atomic::{AtomicI64, AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use std::os::fd::AsFd;

use rustix::fs::{FileType, OFlags, Statx};

use crate::beneath;
use crate::conductor::{Engine, Trouble};
use crate::copier::on_source;
use crate::error::Op;
use crate::extents::{self, Marks};
use crate::gate::State;
use crate::intercept::{STAMP, device, prove_again, stamp};
use crate::registry::{self, WATCH};
use crate::sys;
use crate::sys::mem::{AtomicRef, zeroed};
use crate::tree::{Copy, Node, NodeId};

/// How many inodes are noted between two quiet moments; with more, every inode counts as noted.
const NOTES: usize = 1 << 16;

/// A call may have changed names or attributes of an inode that it did not find.
pub(crate) const NAMES: u32 = 1;
/// A call may have changed the bytes of such an inode.
pub(crate) const DATA: u32 = 2;
/// Nothing is known of the inode that a call has changed.
pub(crate) const ANYWHERE: u32 = 4;

/// It did so since the last quiet moment; else it is known since when.
const RECENT: u32 = 8;

/// Stamps of files lag behind the clock by a tick of at most 10 ms; a file is taken for new rather than for old.
const TICKS: Duration = Duration::from_millis(100);

zeroed! {
    struct Notes {
        marks: [AtomicRef<Marks>; NOTES],
    }
}

/// What hooks tell the engine of calls on names.
pub(crate) struct Crossings {
    notes: AtomicRef<Notes>,
    next: AtomicUsize,
    crossed: AtomicU32,
    /// When the first of the writes to unknown files began that have ended since the engine last dealt with them, in nanoseconds
    /// since the epoch; `i64::MAX` if there were none.
    since: AtomicI64,
}

/// What was reported.
#[derive(Clone, Copy)]
struct Crossed {
    what: u32,
    since: i64,
}

impl Crossings {
    pub(crate) const fn new() -> Crossings {
        Crossings {
            notes: AtomicRef::none(),
            next: AtomicUsize::new(0),
            crossed: AtomicU32::new(0),
            since: AtomicI64::new(i64::MAX),
        }
    }

    /// Readies it for a new session. False without memory.
    pub(crate) fn reset(&self) -> bool {
        let notes = WATCH.ledger.pool().one::<Notes>();
        self.notes.store(notes, Ordering::Release);
        self.next.store(0, Ordering::Relaxed);
        self.take();
        notes.is_some()
    }

    /// Notes an inode whose name a call is about to give or take; `None` for a directory or link that is not watched.
    pub(crate) fn note(&self, marks: Option<&'static Marks>) {
        if let Some(notes) = self.notes.load(Ordering::Acquire) {
            let index = self.next.fetch_add(1, Ordering::SeqCst);
            notes.marks[index % NOTES].store(marks, Ordering::SeqCst);
        }
    }

    /// Says that a call may have changed something that it did not mark.
    pub(crate) fn report(&self, what: u32) {
        self.cross(what | RECENT);
    }

    fn cross(&self, what: u32) {
        self.crossed.fetch_or(what, Ordering::SeqCst);
        WATCH.marked.fetch_add(1, Ordering::SeqCst);
    }

    /// Says that a write to a file that nobody knows has ended, which began after `since`.
    pub(crate) fn report_write_since(&self, since: i64) {
        self.since.fetch_min(since, Ordering::SeqCst);
        self.cross(ANYWHERE | DATA);
    }

    fn take(&self) -> Crossed {
        let what = self.crossed.swap(0, Ordering::SeqCst);
        let since = self.since.swap(i64::MAX, Ordering::SeqCst);
        // Who reports an end need not wait at the gate, and may be between its two words.
        let unknown = if since == i64::MAX { 0 } else { ANYWHERE | DATA };
        Crossed { what: what | unknown, since }
    }

    fn give_back(&self, crossed: Crossed) {
        self.since.fetch_min(crossed.since, Ordering::SeqCst);
        self.cross(crossed.what);
    }

    /// Whether there was such a call since the engine last dealt with them.
    pub(crate) fn any(&self) -> bool {
        self.crossed.load(Ordering::SeqCst) != 0
    }

    /// The inodes noted from the note number `from` on; `None` if there were too many.
    fn since(&self, from: usize) -> Option<impl Iterator<Item = Option<&'static Marks>>> {
        let to = self.next.load(Ordering::SeqCst);
        let notes = self.notes.load(Ordering::Acquire)?;
        let all = (to - from <= NOTES).then_some(from..to)?;
        Some(all.map(|index| notes.marks[index % NOTES].load(Ordering::SeqCst)))
    }
}

/// The last moment at which nobody was inside a captured call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quiet {
    /// The number of the first note after it.
    note: usize,
    /// The first node that was found after it.
    node: NodeId,
    /// When it was, in nanoseconds since the epoch.
    at_ns: i64,
}

impl Quiet {
    /// A moment from which on all calls are captured, and behind which nothing was noted or found yet.
    pub(crate) fn beginning() -> Quiet {
        Quiet { note: 0, node: 0, at_ns: sys::raw::realtime_ns() }
    }
}

impl Engine<'_> {
    /// Makes a quiet moment if calls have crossed since the last one, and marks what they may have hit.
    pub(crate) fn uncross(&mut self) -> Result<(), Trouble> {
        if !WATCH.crossings.any() {
            return Ok(());
        }
        let ticket = self.close_gate();
        let deadline = self.deadline_ns;
        let left =
            registry::wait_until_outside(registry::changes_files, || sys::raw::monotonic_ns() >= deadline);
        let mut quiet = self.quiet;
        let mut crossed = WATCH.crossings.take();
        quiet.note = WATCH.crossings.next.load(Ordering::SeqCst);
        quiet.at_ns = sys::raw::realtime_ns();
        let opened = self.gate.open_from(ticket, State::Open);
        self.deadline_ns = 0;
        if left.is_err() || !opened {
            WATCH.crossings.give_back(crossed);
            return Err(Trouble::Void("a call of the program did not return in time"));
        }
        // What was missed before this moment was missed since the last one.
        if prove_again()? {
            crossed.what |= NAMES | DATA | ANYWHERE | RECENT;
        }
        if let Err(trouble) = self.mark_crossed(crossed) {
            WATCH.crossings.give_back(crossed);
            return Err(trouble);
        }
        quiet.node = self.tree.len() as NodeId;
        self.quiet = quiet;
        Ok(())
    }

    /// In the freeze, when everyone is outside and all marks are worked off: marks what calls may have changed unmarked
    /// since the last quiet moment. False if there were none.
    pub(crate) fn uncross_frozen(&mut self) -> Result<bool, Trouble> {
        if !WATCH.crossings.any() {
            return Ok(false);
        }
        let crossed = WATCH.crossings.take();
        let marked = self.mark_crossed(crossed);
        if marked.is_err() {
            WATCH.crossings.give_back(crossed);
        }
        marked.map(|()| true)
    }

    fn mark_crossed(&mut self, crossed: Crossed) -> Result<(), Trouble> {
        let Some(noted) = WATCH.crossings.since(self.quiet.note).filter(|_| crossed.what & ANYWHERE == 0)
        else {
            return self.look(crossed);
        };
        for marks in noted {
            let Some(marks) = marks else { return self.look(crossed) };
            let Some(node) = self.tree.get(marks.node()) else { continue };
            // Below a directory that moved, or beyond a link, anything may have been hit.
            if matches!(node.kind(), FileType::Directory | FileType::Symlink) {
                return self.look(crossed);
            }
            mark_hit(node, crossed);
        }
        for id in self.quiet.node..self.tree.len() as NodeId {
            let node = self.tree.node(id);
            if node.missing {
                continue;
            }
            match node.kind() {
                FileType::RegularFile | FileType::Directory
                    if self.is_new(node.marks.stamp().ctime, crossed) =>
                {
                    mark_hit(node, crossed)
                }
                FileType::Symlink if self.is_new(node.marks.stamp().ctime, crossed) => {
                    return self.look(crossed);
                }
                FileType::RegularFile | FileType::Directory | FileType::Symlink => {}
                _ => mark_hit(node, crossed),
            }
        }
        Ok(())
    }

    /// Whether an inode with this time may have been changed since the last quiet moment, or since such a write began.
    fn is_new(&self, ctime: i64, crossed: Crossed) -> bool {
        let recent = if crossed.what & RECENT != 0 { self.quiet.at_ns } else { i64::MAX };
        ctime >= recent.min(crossed.since).saturating_sub(TICKS.as_nanos() as i64)
    }

    /// Looks at the times of every inode, and marks those that may have been changed since the last quiet moment. Inodes
    /// that are not where they were seen last are marked unseen.
    fn look(&mut self, crossed: Crossed) -> Result<(), Trouble> {
        self.looks = self.looks.wrapping_add(1);
        for id in self.tree.ids() {
            let node = self.tree.node(id);
            if node.is_directory() && is_to_be_looked_at(node) {
                self.look_into(id, crossed)?;
            }
        }
        for id in self.tree.ids() {
            let node = self.tree.node_mut(id);
            if node.missing {
                // Its bytes are copied again if it is ever found.
                node.is_uncertain |= crossed.what & DATA != 0;
            } else if node.looked_at != self.looks && !node.replaced && !node.excluded {
                mark_hit(node, crossed);
            }
        }
        Ok(())
    }

    /// Looks at a directory, and at everything else in it that is not a directory.
    fn look_into(&mut self, id: NodeId, crossed: Crossed) -> Result<(), Trouble> {
        if self.is_late() {
            return Err(Trouble::Void(
                "what may have changed beside calls on names took too long to look at",
            ));
        }
        let directory = match self.open_place(id, OFlags::PATH | OFlags::DIRECTORY) {
            Err(Trouble::Vanished) => return Ok(()),
            opened => opened?,
        };
        let (found, handle) = beneath::examine(directory.as_fd(), c"", STAMP)
            .map_err(|errno| Trouble::Fault(id, on_source(Op::Examine)(errno)))?;
        if self.tree.node(id).handle != handle || !self.look_at(id, &found, crossed) {
            return Ok(());
        }
        for index in 0..self.tree.entries(id) {
            let (child, name) = self.tree.entry(id, index);
            let node = self.tree.node(child);
            if node.is_directory() || !is_to_be_looked_at(node) {
                continue;
            }
            let name = self.tree.name(name);
            let seen = beneath::look(directory.as_fd(), name.as_c_str(), STAMP)
                .is_ok_and(|found| self.look_at(child, &found, crossed));
            if !seen {
                self.tree.node(id).marks.mark_flags(&WATCH.ledger, extents::ENTRIES);
            }
        }
        Ok(())
    }

    /// Marks an inode if `found`, which is where it was seen last, tells that it may have been changed. False if it is
    /// another.
    fn look_at(&mut self, id: NodeId, found: &Statx, crossed: Crossed) -> bool {
        let node = self.tree.node(id);
        let now = stamp(found);
        if !node.marks.is(device(found), found.stx_ino) {
            return false;
        }
        let tells = matches!(node.kind(), FileType::RegularFile | FileType::Directory | FileType::Symlink);
        if !tells || now != node.marks.stamp() || self.is_new(now.ctime, crossed) {
            mark_hit(node, crossed);
        }
        self.tree.node_mut(id).looked_at = self.looks;
        true
    }
}

/// Whether all of an inode has been read, so that its times can tell what has happened since.
fn is_to_be_looked_at(node: &Node) -> bool {
    !node.replaced && !node.excluded && !node.missing && node.copy == Copy::Done
}

fn mark_hit(node: &Node, crossed: Crossed) {
    let flags = if node.is_directory() { extents::ENTRIES } else { extents::EXAMINE };
    node.marks.mark_flags(&WATCH.ledger, flags);
    if node.is_file() && crossed.what & DATA != 0 {
        node.marks.mark_all(&WATCH.ledger);
    }
}
