//! Working off the marks: what changed since it was copied is copied again, directories are listed again.
//!
//! The same code runs while the session converges and in the freeze. There it must not allocate from the host, so
//! everything it adds to was given room before, and it gives up when the deadline is near.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatxFlags, openat};
use rustix::io::Errno;

use crate::beneath;
use crate::conductor::{Engine, Trouble};
use crate::copier::{self, Desk, Fault, Holes, PIECE, Pace, copy_range, examine, on_destination, on_source};
use crate::error::{Error, Op};
use crate::extents::{self, Marks};
use crate::manifest::BLOCK_BYTES;
use crate::progress::Progress;
use crate::registry::WATCH;
use crate::session::Control;
use crate::source::Source;
use crate::sys;
use crate::sys::mem::PageBuffer;
use crate::tree::{Copy, NO_NODE, Name, Node, NodeId, Placed};

/// Files kept open for the next time, two descriptors each, at the most.
const HELD: u64 = 48;
/// What making a file costs, in bytes that can be copied instead.
pub(crate) const PER_FILE: u64 = 256 << 10;
/// How long files that were found are copied before marks are looked at again.
const ROUND: Duration = Duration::from_millis(20);
/// Waiting calls are woken each time so much was copied (more seldom, and single calls wait long).
const RELIEF: u64 = 64 << 10;

/// A source file and its copy, open.
struct Pair {
    id: NodeId,
    source: Source,
    copy: OwnedFd,
}

/// The files that were patched last, kept open: the next change is most likely theirs.
pub(crate) struct Held {
    pairs: Vec<Pair>,
    most: usize,
    next: usize,
}

impl Held {
    pub(crate) fn new() -> Held {
        let most = (sys::raw::most_descriptors() / 16).clamp(2, HELD) as usize;
        Held { pairs: Vec::with_capacity(most), most, next: 0 }
    }

    fn take(&mut self, id: NodeId) -> Option<Pair> {
        let at = self.pairs.iter().position(|pair| pair.id == id)?;
        Some(self.pairs.swap_remove(at))
    }

    fn keep(&mut self, pair: Pair) {
        if self.pairs.len() == self.most {
            self.next = (self.next + 1) % self.most;
            self.pairs[self.next] = pair;
        } else {
            self.pairs.push(pair);
        }
    }

    /// Closes a file, so that it is opened anew the next time.
    pub(crate) fn forget(&mut self, id: NodeId) {
        self.pairs.retain(|pair| pair.id != id);
    }

    pub(crate) fn clear(&mut self) {
        self.pairs.clear();
    }
}

/// The filesystem that a copy is written to, and what is to stay free there.
pub(crate) struct Space<'a> {
    pub(crate) desk: &'a Desk,
    pub(crate) copy: BorrowedFd<'a>,
    pub(crate) reserve: u64,
}

/// The pace of converging: never throttled; in the freeze it stops at the deadline.
pub(crate) struct Hurry<'a> {
    pub(crate) deadline_ns: u64,
    pub(crate) control: &'a Control,
    space: Space<'a>,
    pub(crate) bytes: u64,
    relieved: u64,
}

impl<'a> Hurry<'a> {
    pub(crate) fn new(deadline_ns: u64, control: &'a Control, space: Space<'a>) -> Hurry<'a> {
        Hurry { deadline_ns, control, space, bytes: 0, relieved: 0 }
    }
}

impl Pace for Hurry<'_> {
    fn piece(&mut self, len: usize) -> usize {
        len.min(256 << 10)
    }

    fn before(&mut self, len: u64) -> Result<(), Fault> {
        let late = self.deadline_ns != 0 && sys::raw::monotonic_ns() >= self.deadline_ns;
        if late || self.control.is_cancelled() {
            return Err(Fault::Interrupted);
        }
        self.space.desk.check_space(self.space.copy, len, self.space.reserve)
    }

    fn wrote(&mut self, _at: u64, bytes: &[u8]) -> Result<(), Fault> {
        let len = bytes.len() as u64;
        self.bytes += len;
        self.relieved += len;
        if self.relieved >= RELIEF {
            glide(self.relieved);
            self.relieved = 0;
            WATCH.relieve();
        }
        Ok(())
    }

    fn skipped(&mut self, _range: Range<u64>) {}
}

/// Lowers the bound on the lag by three quarters of what was copied, down to where a cut is short: so whoever writes without a pause
/// adds a quarter of what is copied meanwhile. With half of it, converging takes half as long again.
fn glide(copied: u64) {
    let floor = WATCH.lag_floor.load(Ordering::Relaxed);
    let bound = WATCH.lag_bound.load(Ordering::Relaxed);
    if floor != 0 && bound != u64::MAX && bound > floor {
        WATCH.lag_bound.store(bound.saturating_sub(copied - copied / 4).max(floor), Ordering::Relaxed);
    }
}

impl Engine<'_> {
    /// Deals with everything that is marked now. Returns whether there was anything.
    pub(crate) fn settle_queue(&mut self) -> Result<bool, Trouble> {
        let seen = WATCH.marked.load(Ordering::SeqCst);
        let mut any = false;
        let mut settled = 0u32;
        let mut next = WATCH.ledger.take_queue();
        while let Some(marks) = next {
            settled += 1;
            if settled.is_multiple_of(256) && !self.tree.is_fixed() {
                self.heed_fanotify();
                self.note_mappings();
            }
            // Read first: from `unqueue` on, a new mark puts it into the next queue.
            next = marks.queued_after();
            marks.unqueue();
            any = true;
            if let Err(trouble) = self.settle(marks) {
                // What was not reached has to be found again.
                while let Some(left) = next {
                    next = left.queued_after();
                    left.unqueue();
                    left.mark_flags(&WATCH.ledger, 0);
                }
                marks.mark_flags(&WATCH.ledger, 0);
                return Err(trouble);
            }
        }
        any |= self.recall_later();
        if !self.walking {
            self.settle_found()?;
            if !self.moved.is_empty() {
                self.recall_missing()?;
            }
            any |= self.retry_lost()?;
        }
        // A thread that has marked an inode and not queued it yet keeps the lag above nothing.
        if WATCH.ledger.lag() == 0 {
            WATCH.drained.fetch_max(seen, Ordering::SeqCst);
        }
        WATCH.rounds.fetch_add(1, Ordering::SeqCst);
        WATCH.relieve();
        Ok(any)
    }

    /// Deals with the directories and files that settling has found; files go to the copiers as long as these work.
    fn settle_found(&mut self) -> Result<(), Trouble> {
        while let Some(id) = self.to_list.pop() {
            match self.list(id) {
                Err(Trouble::Vanished) => self.lose(id)?,
                Err(trouble) => {
                    self.to_list.push(id);
                    return Err(trouble);
                }
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// Copies what was found and waits to be copied, without the copiers; outside of the freeze for one round, so that what
    /// is made meanwhile is found in time.
    pub(crate) fn copy_found(&mut self) -> Result<bool, Trouble> {
        let mut any = false;
        let begun = Instant::now();
        // Files that do not count for the lag hold nobody up: only all at once are they ever done.
        let whole = self.tree.is_fixed() || !self.counts_new_files();
        while whole || begun.elapsed() < ROUND {
            if self.is_late() {
                return Err(Trouble::Void("new files took too long to copy"));
            }
            let Some(id) = self.to_copy.pop() else { break };
            any = true;
            match self.copy_fresh(id) {
                Err(Trouble::Vanished) => self.lose(id)?,
                Err(trouble) => {
                    self.to_copy.push(id);
                    return Err(trouble);
                }
                Ok(()) => {}
            }
        }
        Ok(any)
    }

    /// Has everything that is missing below a directory that was found at a new place looked for again. What its
    /// directory's listing no longer names is not there.
    fn recall_missing(&mut self) -> Result<(), Trouble> {
        // What was seen at different times may claim that two directories lie in each other.
        let mut left = self.tree.len();
        while let Some(directory) = self.moved.pop().filter(|_| left > 0) {
            left -= 1;
            for index in 0..self.tree.entries(directory) {
                let (id, _) = self.tree.entry(directory, index);
                let node = self.tree.node_mut(id);
                if node.replaced || node.excluded {
                    continue;
                }
                let was_missing = std::mem::take(&mut node.missing);
                if std::mem::take(&mut node.is_uncertain) {
                    node.marks.mark_all(&WATCH.ledger);
                }
                if node.is_directory() && node.parent == directory {
                    crate::walk::push(&mut self.moved, id, self.tree.is_fixed())?;
                }
                if was_missing {
                    self.lose(id)?;
                }
            }
        }
        self.moved.clear();
        Ok(())
    }

    fn lose(&mut self, id: NodeId) -> Result<(), Trouble> {
        // Until it is found again nobody waits for what it owes.
        self.tree.node(id).marks.discount(&WATCH.ledger);
        crate::walk::push(&mut self.lost, id, self.tree.is_fixed())
    }

    fn settle(&mut self, marks: &'static Marks) -> Result<(), Trouble> {
        let id = marks.node();
        let Some(node) = self.tree.get(id) else {
            return Ok(());
        };
        if node.excluded {
            return Ok(());
        }
        self.heed_stream(id)?;
        let node = self.tree.node(id);
        let outcome = match node.kind() {
            FileType::Directory if self.walking => return self.put_off(id),
            FileType::Directory => self.list(id),
            FileType::RegularFile => match node.copy {
                Copy::Done => self.patch(id),
                Copy::Running => crate::walk::push(&mut self.later, id, self.tree.is_fixed()),
                Copy::Owed => Ok(()),
            },
            _ => self.settle_special(id),
        };
        match outcome {
            Err(Trouble::Vanished) => self.lose(id),
            outcome => outcome,
        }
    }

    fn settle_special(&mut self, id: NodeId) -> Result<(), Trouble> {
        let node = self.tree.node(id);
        let (parent, name) = (node.parent, node.name);
        if parent == NO_NODE {
            return Ok(());
        }
        let directory = self.open_place(parent, OFlags::PATH | OFlags::DIRECTORY)?;
        let name = self.tree.name(name);
        self.read_special(id, directory.as_fd(), &name)
    }

    /// While the sources are walked and copied, directories are not listed again: where names change fast, nothing else
    /// would be done.
    fn put_off(&mut self, id: NodeId) -> Result<(), Trouble> {
        let node = self.tree.node_mut(id);
        if !std::mem::replace(&mut node.put_off, true) {
            self.put_off.push(id);
        }
        Ok(())
    }

    /// Has the directories that were put off listed with the rest.
    pub(crate) fn end_walk(&mut self) {
        self.walking = false;
        for id in std::mem::take(&mut self.put_off) {
            self.tree.node_mut(id).put_off = false;
            self.tree.node(id).marks.mark_flags(&WATCH.ledger, extents::ENTRIES);
        }
    }

    /// Has files looked at that were marked while a copier had them.
    fn recall_later(&mut self) -> bool {
        let mut any = false;
        for _ in 0..self.later.len() {
            let id = self.later.swap_remove(0);
            let node = self.tree.node(id);
            if node.copy == Copy::Running {
                self.later.push(id);
            } else {
                node.marks.mark_flags(&WATCH.ledger, 0);
                any = true;
            }
        }
        any
    }

    /// Looks again for nodes that were not where they had been seen, now that directories were re-listed. What is not
    /// found any more has lost its last name.
    fn retry_lost(&mut self) -> Result<bool, Trouble> {
        let mut any = false;
        for _ in 0..self.lost.len() {
            let id = self.lost.swap_remove(0);
            if self.tree.node(id).replaced {
                continue;
            }
            match self.retry(id) {
                // If it is seen again, its directory's listing brings it back.
                // Until then nobody waits for what it owes.
                Err(Trouble::Vanished) => {
                    let node = self.tree.node_mut(id);
                    node.missing = true;
                    node.marks.discount(&WATCH.ledger);
                    // Another inode of its number may have its name now.
                    if let Some(directory) = self.tree.get(self.tree.node(id).parent) {
                        directory.marks.mark_flags(&WATCH.ledger, extents::ENTRIES);
                        any = true;
                    }
                }
                Err(trouble) => {
                    self.lost.push(id);
                    return Err(trouble);
                }
                Ok(()) => {
                    any = true;
                    self.count_for_lag(id);
                }
            }
        }
        Ok(any)
    }

    /// Has a file count for the lag. While the bound is ours, files that are still to be copied count as well: else a session
    /// would not end while files are made faster than they are copied. A caller's bound is about what is written to files
    /// that the backup has.
    pub(crate) fn count_for_lag(&self, id: NodeId) {
        let node = self.tree.node(id);
        let counts = match node.copy {
            Copy::Done => true,
            Copy::Owed => !self.walking && self.counts_new_files(),
            Copy::Running => false,
        };
        if node.is_file() && counts {
            node.marks.count_for_lag(&WATCH.ledger);
        }
    }

    pub(crate) fn counts_new_files(&self) -> bool {
        self.plan.max_lag.is_none()
    }

    /// Deals with everything that counts for the lag, whether it is queued or not: whoever has marked a file last may not have queued
    /// it yet. What has no bytes to copy no longer counts.
    pub(crate) fn settle_what_is_owed(&mut self) -> Result<(), Trouble> {
        if WATCH.ledger.lag() == 0 {
            return Ok(());
        }
        for id in self.tree.ids() {
            let node = self.tree.node(id);
            let marks = node.marks;
            if node.replaced || !marks.owes_lag() {
                continue;
            }
            match node.copy {
                _ if !node.is_file() || node.missing => marks.discount(&WATCH.ledger),
                Copy::Owed => self.to_copy.push(id),
                Copy::Running => {}
                // It stays queued, if it is: who has said so has not put it into the queue yet.
                Copy::Done => self.settle(marks).inspect_err(|_| marks.mark_flags(&WATCH.ledger, 0))?,
            }
        }
        Ok(())
    }

    /// Has a file that was found while converging count for the lag. Nobody waits for one that was large when it was found:
    /// it has been moved here, and whoever writes does not do so faster for it.
    pub(crate) fn owe(&self, id: NodeId) {
        let node = self.tree.node(id);
        // The marks of one that was replaced are those of what has its inode number now.
        if !self.walking && !node.replaced && !copier::is_large(&node.attributes) {
            let bytes = node.attributes.size.min(node.attributes.allocated());
            node.marks.mark_tail(&WATCH.ledger, 0, bytes.max(PER_FILE));
            self.count_for_lag(id);
        }
    }

    fn retry(&mut self, id: NodeId) -> Result<(), Trouble> {
        let first = self.retry_here(id);
        if !matches!(first, Err(Trouble::Vanished)) || !self.tree.node(id).linked {
            return first;
        }
        // It was seen at several places. Some of them may be stale, so each is tried.
        for directory in self.tree.ids() {
            for index in 0..self.tree.entries(directory) {
                let (entry, name) = self.tree.entry(directory, index);
                if entry != id {
                    continue;
                }
                let node = self.tree.node_mut(id);
                (node.parent, node.name) = (directory, name);
                let again = self.retry_here(id);
                if !matches!(again, Err(Trouble::Vanished)) {
                    return again;
                }
            }
        }
        first
    }

    fn retry_here(&mut self, id: NodeId) -> Result<(), Trouble> {
        let node = self.tree.node(id);
        match node.kind() {
            FileType::Directory => self.list(id),
            FileType::RegularFile => match node.copy {
                Copy::Done => self.patch(id),
                Copy::Owed if self.tree.is_fixed() => self.copy_fresh(id),
                // The copiers are to have it, at their pace.
                Copy::Owed => self.open_file(id).map(|_| self.to_copy.push(id)),
                Copy::Running => Ok(()),
            },
            _ => self.settle_special(id),
        }
    }

    /// Opens a file and its copy, or finds them open.
    fn open_pair(&mut self, id: NodeId) -> Result<Pair, Trouble> {
        if let Some(pair) = self.held.take(id) {
            return Ok(pair);
        }
        let source = self.open_file(id)?;
        let copy = self.open_copy(id, OFlags::RDWR)?;
        Ok(Pair { id, source, copy })
    }

    /// Opens a regular file where it was seen last, if it is there.
    fn open_file(&mut self, id: NodeId) -> Result<Source, Trouble> {
        let path = self.open_place(id, OFlags::PATH)?;
        let node = self.tree.node(id);
        let fault = |fault| Trouble::Fault(id, fault);
        let found = copier::find_same(path.as_fd(), node.marks, node.handle).map_err(fault)?;
        let found = found.ok_or(Trouble::Vanished)?;
        Source::open(path.as_fd(), &found, node.direct).map_err(|errno| fault(on_source(Op::Open)(errno)))
    }

    /// Opens the copy of a file.
    pub(crate) fn open_copy(&mut self, id: NodeId, flags: OFlags) -> Result<OwnedFd, Trouble> {
        let node = self.tree.node(id);
        let staging = &self.pairs[node.pair_of_copy as usize].destination;
        let fault = |errno| Trouble::Fault(id, on_destination(Op::Open)(errno));
        if node.placed == Placed::Limbo {
            let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            return openat(&staging.limbo, Name::number(id).as_c_str(), flags, Mode::empty()).map_err(fault);
        }
        let placed = |node: &Node| match node.placed {
            Placed::In(parent, name) => Some((parent, name)),
            _ => None,
        };
        if self.tree.path_by(id, &mut self.path, placed).is_none() {
            return Err(self.no_place(id));
        }
        beneath::open(staging.tree.as_fd(), &mut self.path, flags, Mode::empty()).map_err(fault)
    }

    /// That the copy of a node cannot be found, and everything that may tell why.
    pub(crate) fn no_place(&self, id: NodeId) -> Trouble {
        if self.tree.is_fixed() {
            return Trouble::Void("a copy has no place");
        }
        let mut text = String::from("a copy has no place:");
        let (mut at, mut steps) = (id, 0);
        while let Some(node) = self.tree.get(at).filter(|_| steps < 20) {
            let name = String::from_utf8_lossy(self.tree.text(node.name)).into_owned();
            text += &format!(" [{at} {name:?} {:?} {:?} {:?}]", node.kind(), node.copy, node.placed);
            let Placed::In(parent, _) = node.placed else { break };
            (at, steps) = (parent, steps + 1);
        }
        Error::Defect(text).into()
    }

    /// Copies what is marked of a file whose first copy is complete.
    fn patch(&mut self, id: NodeId) -> Result<(), Trouble> {
        let pair = self.open_pair(id)?;
        let patched = self.patch_pair(id, &pair);
        if !matches!(patched, Err(Trouble::Vanished)) {
            self.held.keep(pair);
        }
        if patched.is_err() {
            // The marks may have been cleared before the copy stopped.
            self.tree.node(id).marks.mark_all(&WATCH.ledger);
            self.tree.node(id).marks.mark_flags(&WATCH.ledger, extents::ATTRIBUTES);
        }
        patched
    }

    fn patch_pair(&mut self, id: NodeId, pair: &Pair) -> Result<(), Trouble> {
        let tail = self.examine_pair(id, pair)?;
        if tail == Some(0) && self.tree.node(id).suspect {
            copier::wait_for_writes(pair.source.as_fd());
        }
        let tail = self.fit_copy(id, pair, tail)?;
        let node = self.tree.node_mut(id);
        let reserve = self.pairs[node.pair_of_copy as usize].reserve;
        let space = Space { desk: &self.desk, copy: pair.copy.as_fd(), reserve };
        let mut hurry = Hurry::new(self.deadline_ns, &self.control, space);
        let patched = patch_marked(node, pair, tail, &mut self.buffer, &mut hurry);
        let bytes = hurry.bytes;
        self.recopied += bytes;
        glide(bytes % RELIEF);
        patched.map_err(|fault| Trouble::Fault(id, fault))
    }

    /// Clears what is marked beyond single blocks, and reads what the file is now. Returns where its tail mark began.
    fn examine_pair(&mut self, id: NodeId, pair: &Pair) -> Result<Option<u64>, Trouble> {
        let node = self.tree.node(id);
        let (marks, old) = (node.marks, node.xattrs);
        let mut attributes = node.attributes;
        let mut tail = None;
        let xattrs = self
            .tree
            .store_again(old, |heap, fixed| {
                let (now, at, range) = examine(pair.source.as_fd(), marks, heap, fixed)?;
                (attributes, tail) = (now, at);
                Ok(range)
            })
            .map_err(|errno| match errno {
                Errno::NOMEM => Trouble::NoRoom,
                errno => Trouble::Fault(id, on_source(Op::Examine)(errno)),
            })?;
        if attributes.nlink == 0 {
            // It has lost its last name, which another inode of its number may get once it is closed.
            return Err(Trouble::Vanished);
        }
        let node = self.tree.node_mut(id);
        node.attributes = attributes;
        node.xattrs = xattrs;
        Ok(tail)
    }

    /// Gives the copy the file's size, before anything else: if the patch stops, the next one has to know how long the
    /// copy is. What the file has grown by is copied whole, whoever wrote it; so the tail may begin earlier.
    fn fit_copy(&mut self, id: NodeId, pair: &Pair, tail: Option<u64>) -> Result<Option<u64>, Trouble> {
        let node = self.tree.node(id);
        let (size, copied) = (node.attributes.size, node.copied_size);
        if size != copied {
            rustix::fs::ftruncate(&pair.copy, size)
                .map_err(|errno| Trouble::Fault(id, on_destination(Op::Resize)(errno)))?;
            self.tree.node_mut(id).copied_size = size;
            self.forget_digests(id, size.min(copied)..size.max(copied));
        }
        let grown = (size > copied).then_some(copied);
        Ok(tail.into_iter().chain(grown).min())
    }

    fn forget_digests(&mut self, id: NodeId, range: Range<u64>) {
        self.tree.node_mut(id).digests.forget(&range);
    }

    /// Copies a file for the first time, into limbo, without the copiers.
    pub(crate) fn copy_fresh(&mut self, id: NodeId) -> Result<(), Trouble> {
        let node = self.tree.node(id);
        if node.replaced || node.excluded || node.copy != Copy::Owed {
            return Ok(());
        }
        let fault = |fault| Trouble::Fault(id, fault);
        let source = self.open_file(id)?;
        let limbo = &self.pairs[self.tree.node(id).pair_of_copy as usize].destination.limbo;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let copy = openat(limbo, Name::number(id).as_c_str(), flags, Mode::from_raw_mode(0o600))
            .map_err(|errno| fault(on_destination(Op::Create)(errno)))?;
        let marks = self.tree.node(id).marks;
        let node = self.tree.node_mut(id);
        node.placed = Placed::Limbo;
        node.digests.forget_all();
        node.copied_size = 0;
        // Everything is owed: patching it copies it whole.
        marks.mark_tail(&WATCH.ledger, 0, 1);
        glide(PER_FILE);
        marks.mark_flags(&WATCH.ledger, extents::ATTRIBUTES);
        let pair = Pair { id, source, copy };
        let done = self.patch_pair(id, &pair);
        self.held.keep(pair);
        match done {
            Ok(()) => {
                self.tree.node_mut(id).copy = Copy::Done;
                marks.count_for_lag(&WATCH.ledger);
                let copied = self.tree.node(id).copied_size;
                self.count(|meter| {
                    meter.files_done += 1;
                    meter.bytes_done += copied;
                });
                Ok(())
            }
            Err(trouble) => {
                self.held.take(id);
                Err(trouble)
            }
        }
    }

    /// Brings the figures of the progress up to date. In the freeze nobody is waited for: who holds the lock may wait
    /// for a thread that waits at the gate.
    pub(crate) fn count(&self, update: impl FnOnce(&mut Progress)) {
        if !self.tree.is_fixed() {
            update(&mut self.control.meter.lock());
        } else if let Some(mut meter) = self.control.meter.try_lock() {
            update(&mut meter);
        }
    }

    /// Sleeps until there is work, at most `time`.
    pub(crate) fn rest(&self, time: Duration) {
        let work = WATCH.work.load(Ordering::SeqCst);
        if WATCH.ledger.queue_is_empty() {
            crate::gate::wait(&WATCH.work, work, time);
        }
    }
}

/// Copies the marked blocks of a file, then its tail.
fn patch_marked(
    node: &mut Node,
    pair: &Pair,
    tail: Option<u64>,
    buffer: &mut PageBuffer,
    hurry: &mut Hurry<'_>,
) -> Result<(), Fault> {
    let (marks, size, ledger) = (node.marks, node.attributes.size, &WATCH.ledger);
    let tail_holes = Holes { likely: copier::is_sparse(&node.attributes), fresh: false };
    let tail = tail.map(|tail| tail.min(size)..size);
    if let Some(tail) = &tail {
        marks.clear(ledger, tail.clone());
    }
    let patch = Holes { likely: false, fresh: false };
    let mut at = 0;
    while let Some(run) = marks.take_run(ledger, at, u64::MAX - BLOCK_BYTES as u64, PIECE as u64) {
        at = run.end;
        if run.end > size && size_of(pair).map_err(on_source(Op::Examine))? > size {
            // It has grown since it was examined. The mark that came with that is needed by the next round.
            marks.mark_range(ledger, run.start.max(size), run.end);
        }
        let run = run.start.min(size)..run.end.min(size);
        node.digests.forget(&run);
        copy_range(&pair.source, pair.copy.as_fd(), run, patch, buffer, hurry)?;
    }
    if let Some(tail) = tail {
        node.digests.forget(&tail);
        copy_range(&pair.source, pair.copy.as_fd(), tail, tail_holes, buffer, hurry)?;
    }
    Ok(())
}

/// The size of a source file now.
fn size_of(pair: &Pair) -> Result<u64, Errno> {
    let found = rustix::fs::statx(&pair.source, c"", AtFlags::EMPTY_PATH, StatxFlags::SIZE)?;
    Ok(found.stx_size)
}

#[cfg(test)]
mod tests;
