//! Files that this process has mapped shared: which of their pages were stored to.
//!
//! A store is no call, so nobody is asked and nobody waits. Pages of such mappings are watched from before their file is read
//! ([`StoreWatch`]); what was stored to is marked each time before the marks are worked off, for the last time in the freeze.
//! A mapping is known from `/proc/self/maps`, and from a note that [`mapping`] makes if it is made while a session runs, so
//! that one which has come and gone between two looks is known as well.
//!
//! Invariant: an entry of [`Mappings::watched`] has been watched without a gap since its range was marked or its file had
//! nothing read of it. Whatever breaks that (munmap, mremap, another mapping in its place) shows in the next scan, and all of
//! its range is marked.

mod lines;
mod notes;

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::ops::Range;
use std::os::fd::RawFd;
use std::time::Duration;

use rustix::io::Errno;

use crate::conductor::{Engine, Trouble};
use crate::copier::Side;
use crate::extents::{self, Marks};
use crate::gate::{self, Gate, Inside, State, Word};
use crate::intercept::{self, Found};
use crate::registry::{self, WATCH};
use crate::sys;
use crate::sys::userfault::StoreWatch;
use crate::tree::{Copy, NodeId};
use lines::Line;
pub(crate) use lines::{Text, each, may_hold_shared};
pub(crate) use notes::Notes;

/// So much is watched at most: the kernel's notes of it take a 512th of that, until it is unmapped.
const MOST: u64 = 64 << 30;
/// How often a mapped file is looked at in the freeze until its times explain themselves.
const LOOKS: u32 = 5;

/// Makes the call `real`, which maps `len` bytes at `from` of the file `fd` shared, and returns the address (mmap(2)).
///
/// For hooks. Returns what `real` returned, with errno as it left it.
#[inline(always)]
pub fn mapping<R>(
    fd: RawFd,
    from: i64,
    len: usize,
    real: impl FnOnce() -> R,
    mapped: impl FnOnce(&R) -> Option<usize>,
) -> R {
    let Some(slot) = registry::slot() else { return real() };
    let inside = slot.enter(Word::descriptor(fd), gate::here());
    match registry::gate() {
        Some(gate) if gate.state() != State::Idle => captured(&inside, gate, fd, (from, len), real, mapped),
        _ => real(),
    }
}

#[cold]
#[inline(never)]
fn captured<R>(
    inside: &Inside<'_>,
    gate: &Gate,
    fd: RawFd,
    (from, len): (i64, usize),
    real: impl FnOnce() -> R,
    mapped: impl FnOnce(&R) -> Option<usize>,
) -> R {
    if sys::thread::is_engine() {
        inside.step_out();
        return real();
    }
    let state = intercept::pass_the_gate(inside, gate, || false);
    if state == State::Idle {
        return real();
    }
    // Behind the cut this audits the file: what is stored from here on is no change that nobody saw.
    let find = || {
        let found = intercept::guarded(|| Found::descriptor(fd, state)).flatten();
        // Of what is open for reading only nothing can be stored to.
        (found.map(|found| (found.dev, found.ino)), intercept::can_read_and_write(fd))
    };
    let endings = WATCH.endings(fd);
    let before = find();
    let result = real();
    let _errno = sys::errno::Preserve::new();
    if let Some(start) = mapped(&result) {
        let (start, offset) = (start as u64, u64::try_from(from).unwrap_or(0));
        let note = |(file, can_be_stored_to)| {
            if can_be_stored_to {
                WATCH.mapped.note(file, start..start.saturating_add(len as u64), offset);
            }
        };
        note(before);
        // The number may have come to stand for another file meanwhile; if more than once, for any.
        if WATCH.endings_since(fd, endings) > 0 {
            note(find());
        }
        if WATCH.endings_since(fd, endings) > 1 {
            note((None, true));
        }
    }
    result
}

/// Makes the call `real`, which gives the program a userfaultfd. With it, it could not watch what the engine watches; so that ends
/// before, for the rest of the session.
///
/// For hooks. Waits for the engine, at most `max_stall`.
pub fn making_userfaultfd<R>(real: impl FnOnce() -> R) -> R {
    if intercept::is_capturing() && !sys::thread::is_engine() {
        WATCH.mapped.call_off();
        let limit = WATCH.max_stall_ns.load(std::sync::atomic::Ordering::Relaxed);
        let begun = sys::raw::monotonic_ns();
        let waits = || sys::raw::monotonic_ns() - begun < limit && intercept::is_capturing();
        while !WATCH.mapped.has_made_way() && waits() {
            sys::thread::nap(Duration::from_micros(200));
        }
    }
    real()
}

/// A file mapped into memory.
#[derive(Clone, Copy, Debug)]
struct Mapping {
    /// Device and inode.
    file: (u64, u64),
    start: u64,
    end: u64,
    /// Where in the file it begins.
    offset: u64,
    /// It can be stored to now.
    writable: bool,
}

impl Mapping {
    fn len(&self) -> u64 {
        self.end - self.start
    }

    fn overlaps(&self, other: &Mapping) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// Whether it shows what `other` shows there, and all of it.
    fn covers(&self, other: &Mapping) -> bool {
        let within = self.start <= other.start && other.end <= self.end;
        within && self.file == other.file && self.offset + (other.start - self.start) == other.offset
    }

    fn bytes(&self) -> Range<u64> {
        self.offset..self.offset.saturating_add(self.len())
    }
}

/// A mapping of a file that the session watches.
struct Watched {
    mapping: Mapping,
    marks: &'static Marks,
    /// Nobody can store to it, whatever mprotect(2) says.
    unwritable: bool,
    /// The last look has found it.
    found: bool,
    /// Something was stored to it when it was scanned last.
    stored: bool,
}

/// What the engine knows of the process's shared mappings.
pub(crate) struct Mappings {
    stores: Option<StoreWatch>,
    /// Why stores cannot be watched, once that was tried.
    refused: Option<Errno>,
    /// By address; no two overlap.
    watched: Vec<Watched>,
    /// Those of files that are not in the sources, as far as is known.
    others: HashMap<(u64, u64), Vec<Mapping>>,
    /// Notes that no look has dealt with yet.
    notes: Vec<Mapping>,
    text: Text,
    /// How many notes there had been at the last look.
    seen: u32,
    /// Files that can be stored to unwatched.
    unwatchable: Vec<&'static Marks>,
    warned: HashSet<NodeId>,
}

impl Mappings {
    pub(crate) fn new() -> Mappings {
        Mappings {
            stores: None,
            refused: None,
            watched: Vec::new(),
            others: HashMap::new(),
            notes: Vec::new(),
            text: Text::new(),
            seen: 0,
            unwatchable: Vec::new(),
            warned: HashSet::new(),
        }
    }

    /// Reserves what the freeze may add.
    pub(crate) fn make_room(&mut self) {
        self.watched.reserve(notes::ROOM);
        self.notes.reserve(notes::ROOM);
    }

    /// Takes over the notes of captured calls, before there are more of them than there is room for. False if there were.
    #[must_use]
    pub(crate) fn take_notes(&mut self) -> bool {
        let notes = &mut self.notes;
        WATCH.mapped.take(|file, range, offset| {
            notes.push(Mapping { file, start: range.start, end: range.end, offset, writable: true });
        })
    }

    /// Watches nothing any more if the program wants to: its mapped files are suspect from the next look on.
    fn make_way(&mut self) {
        if WATCH.mapped.is_called_off() && !WATCH.mapped.has_made_way() {
            self.watched.iter().for_each(|entry| mark(entry.marks, entry.mapping.bytes()));
            self.release();
            self.refused = Some(Errno::BUSY);
            WATCH.mapped.make_way();
        }
    }

    /// Ends the watching.
    pub(crate) fn release(&mut self) {
        if let Some(stores) = self.stores.take() {
            let watched = self.watched.iter().filter(|entry| !entry.unwritable);
            watched.for_each(|entry| stores.unprotect(entry.mapping.start..entry.mapping.end));
        }
        self.watched.clear();
    }

    fn bytes_watched(&self) -> u64 {
        self.watched.iter().filter(|entry| !entry.unwritable).map(|entry| entry.mapping.len()).sum()
    }

    /// Marks what was stored to since the last time. Returns whether a mapping has gone or changed: all that it showed is
    /// marked.
    fn mark_stores(&mut self) -> bool {
        let Some(stores) = &mut self.stores else { return false };
        let before = self.watched.len();
        self.watched.retain_mut(|entry| entry.unwritable || entry.scan(stores));
        self.watched.len() < before
    }

    /// The same for one file; returns whether anything was stored to.
    fn mark_stores_to(&mut self, marks: &'static Marks) -> bool {
        let Some(stores) = &mut self.stores else { return false };
        let mut stored = false;
        for entry in self.watched.iter_mut().filter(|entry| std::ptr::eq(entry.marks, marks)) {
            stored |= !entry.unwritable && (!entry.scan(stores) || entry.stored);
        }
        stored
    }

    /// Whether a mapping of a file has gone since it was scanned last: then another one may be that one, moved.
    fn has_lost_one_of(&mut self, marks: &'static Marks) -> bool {
        let Some(stores) = &mut self.stores else { return false };
        let of_file =
            self.watched.iter_mut().filter(|entry| std::ptr::eq(entry.marks, marks) && !entry.unwritable);
        { of_file }.any(|entry| !entry.scan(stores))
    }

    /// Whether stores to a file are watched.
    pub(crate) fn watches(&self, marks: &'static Marks) -> bool {
        self.watched.iter().any(|entry| std::ptr::eq(entry.marks, marks) && !entry.unwritable)
    }

    /// Whether this mapping is watched already.
    fn knows(&mut self, mapping: &Mapping) -> bool {
        let behind = self.watched.partition_point(|entry| entry.mapping.start <= mapping.start);
        let Some(entry) = behind.checked_sub(1).map(|at| &mut self.watched[at]) else { return false };
        let known = entry.mapping.covers(mapping) && !(entry.unwritable && mapping.writable);
        entry.found |= known;
        known
    }

    /// Watches a mapping. `None` if its stores cannot be seen.
    fn watch(&mut self, mapping: Mapping, marks: &'static Marks, fixed: bool) -> Option<Result<(), Trouble>> {
        for entry in self.watched.extract_if(.., |entry| entry.mapping.overlaps(&mapping)) {
            mark(entry.marks, entry.mapping.bytes());
        }
        if !fixed {
            self.prepare();
        }
        let stores = self.stores.as_ref()?;
        if self.bytes_watched() + mapping.len() > MOST {
            return None;
        }
        let unwritable = match stores.watch(mapping.start..mapping.end) {
            Ok(()) => false,
            Err(Errno::PERM) => true,
            Err(_) => return None,
        };
        if fixed && self.watched.len() == self.watched.capacity() {
            return Some(Err(Trouble::NoRoom));
        }
        let at = self.watched.partition_point(|entry| entry.mapping.start < mapping.start);
        self.watched.insert(at, Watched { mapping, marks, unwritable, found: true, stored: false });
        Some(Ok(()))
    }

    fn prepare(&mut self) {
        if self.stores.is_some() || self.refused.is_some() {
            return;
        }
        match store_watch() {
            Ok(stores) => self.stores = Some(stores),
            Err(errno) => self.refused = Some(errno),
        }
    }
}

impl Watched {
    /// Marks what was stored to. If it has not been what it was all the time, all of it is marked: false.
    fn scan(&mut self, stores: &mut StoreWatch) -> bool {
        let (mapping, marks) = (self.mapping, self.marks);
        let mut stored = false;
        let scanned = stores.stores(mapping.start..mapping.end, |pages| {
            stored = true;
            let at = |address: u64| mapping.offset + (address - mapping.start);
            marks.mark_range(&WATCH.ledger, at(pages.start), at(pages.end));
        });
        self.stored = stored;
        if scanned.is_err() {
            mark(marks, mapping.bytes());
        }
        scanned.is_ok()
    }
}

/// Marks bytes of a file, of which there may be fewer.
fn mark(marks: &'static Marks, bytes: Range<u64>) {
    let size = marks.stamp().size;
    if bytes.end >= size {
        marks.mark_tail(&WATCH.ledger, bytes.start, size.saturating_sub(bytes.start).max(1));
    } else {
        marks.mark_range(&WATCH.ledger, bytes.start, bytes.end);
    }
}

impl Engine<'_> {
    /// Finds the shared mappings of this process, and watches those of files in the sources. Marks what mappings that have come
    /// and gone showed.
    pub(crate) fn look_at_mappings(&mut self) -> Result<(), Trouble> {
        let fixed = self.tree.is_fixed();
        // Read first: what is noted from here on is looked at the next time.
        self.mappings.seen = WATCH.mapped.count();
        if !self.note_mappings() && fixed {
            return Err(Trouble::Void("more files were mapped than there is room for"));
        }
        if !fixed {
            self.mappings.others.clear();
        }
        self.mappings.watched.iter_mut().for_each(|entry| entry.found = false);
        let mut text = std::mem::take(&mut self.mappings.text);
        let looked = each(c"/proc/self/maps", &mut text, |line| match shared(&line) {
            Some(mapping) if !self.mappings.knows(&mapping) => self.meet(mapping),
            _ => Ok(()),
        });
        self.mappings.text = text;
        looked?;
        for entry in self.mappings.watched.extract_if(.., |entry| !entry.found) {
            mark(entry.marks, entry.mapping.bytes());
        }
        for note in self.mappings.notes.drain(..) {
            if let Some(marks) = WATCH.find(note.file.0, note.file.1) {
                mark(marks, note.bytes());
            }
        }
        Ok(())
    }

    /// Deals with a mapping that is not known.
    fn meet(&mut self, mapping: Mapping) -> Result<(), Trouble> {
        let (fixed, file) = (self.tree.is_fixed(), mapping.file);
        let Some(marks) = WATCH.find(file.0, file.1) else {
            if !fixed {
                self.mappings.others.entry(file).or_default().push(mapping);
            }
            return Ok(());
        };
        let Some(node) = self.tree.get(marks.node()).filter(|node| node.is_file() && !node.excluded) else {
            return Ok(());
        };
        let (suspect, is_copied) = (node.suspect, node.copy != Copy::Owed);
        match self.mappings.watch(mapping, marks, fixed) {
            Some(watched) => {
                watched?;
                if is_copied {
                    mark(marks, mapping.bytes());
                }
            }
            // It can be made writable for a moment only: see docs/limits.md.
            None if !mapping.writable || suspect => {}
            None if fixed => return Err(Trouble::Void("a file was mapped whose stores cannot be watched")),
            None => self.mappings.unwatchable.push(marks),
        }
        Ok(())
    }

    /// Watches the mappings of a file that has just been found, before anything of it is read.
    pub(crate) fn watch_mappings_of(&mut self, file: (u64, u64)) -> Result<(), Trouble> {
        if self.tree.is_fixed() {
            return Ok(());
        }
        let mappings = self.mappings.others.remove(&file).unwrap_or_default();
        mappings.into_iter().try_for_each(|mapping| self.meet(mapping))
    }

    /// Takes over what captured calls have mapped; false if they have mapped more than there was room for.
    pub(crate) fn note_mappings(&mut self) -> bool {
        if !self.tree.is_fixed() {
            self.mappings.make_way();
        }
        let all = self.mappings.take_notes();
        if !all && !self.tree.is_fixed() {
            self.copy_everything_again();
            self.warn(None, "more files were mapped than could be followed: all were copied again");
        }
        all
    }

    /// Marks what was stored to since the last time.
    pub(crate) fn mark_stores(&mut self) -> Result<(), Trouble> {
        let lost = self.mappings.mark_stores();
        if lost || self.mappings.seen != WATCH.mapped.count() {
            self.look_at_mappings()?;
        }
        Ok(())
    }

    /// In the freeze, when everything is copied: sees to it that the times of mapped files are those of what was copied, and
    /// that stores behind the cut do not count for changes before it.
    pub(crate) fn settle_mapped(&mut self) -> Result<(), Trouble> {
        let generation = WATCH.generation.load(std::sync::atomic::Ordering::SeqCst);
        for index in 0..self.mappings.watched.len() {
            let Some(entry) = self.mappings.watched.get(index) else { break };
            let marks = entry.marks;
            if !entry.unwritable && marks.audited(generation).is_none() && self.explain_times(marks)? {
                marks.set_audited(generation, false);
            }
        }
        Ok(())
    }

    /// Copies a mapped file's pages until its times are those from before they were read, or stores alone keep moving them. False
    /// if it is gone.
    fn explain_times(&mut self, marks: &'static Marks) -> Result<bool, Trouble> {
        let id = marks.node();
        for look in 0..LOOKS {
            match self.stamp_now(id) {
                Ok(now) if now == marks.stamp() => return Ok(true),
                Err(Trouble::Vanished) => return Ok(false),
                now => now.map(drop)?,
            }
            let stored = self.mappings.mark_stores_to(marks);
            if stored && look == LOOKS - 1 {
                // Whoever stores has not come to rest for the cut.
                return Ok(true);
            }
            if !stored {
                marks.mark_all(&WATCH.ledger);
            }
            marks.mark_flags(&WATCH.ledger, extents::ATTRIBUTES);
            self.settle_all()?;
        }
        Err(Trouble::Unsteady(id))
    }

    /// Behind the cut: files mapped such that they can be stored to, which were not known to be.
    pub(crate) fn find_unknown_mappings(&mut self) -> Vec<NodeId> {
        self.note_mappings();
        let mut unknown = Vec::new();
        let mut text = std::mem::take(&mut self.mappings.text);
        let _ = each(c"/proc/self/maps", &mut text, |line| {
            let Some(mapping) = shared(&line).filter(|mapping| mapping.writable) else { return Ok(()) };
            // A captured call that made one since the cut has waited for it.
            let noted = self.mappings.notes.iter().any(|note| note.overlaps(&mapping));
            if !noted
                && !self.mappings.knows(&mapping)
                && let Some(marks) = WATCH.find(mapping.file.0, mapping.file.1)
                && self.tree.get(marks.node()).is_some_and(|node| node.is_file() && !node.suspect)
                && !self.mappings.has_lost_one_of(marks)
            {
                unknown.push(marks.node());
            }
            Ok::<(), Trouble>(())
        });
        self.mappings.text = text;
        unknown
    }

    /// The files that were found to be mapped so that stores to them cannot be seen.
    pub(crate) fn take_unwatchable(&mut self) -> Vec<&'static Marks> {
        std::mem::take(&mut self.mappings.unwatchable)
    }

    /// Says of each mapped file what its copy is worth.
    pub(crate) fn warn_of_mappings(&mut self) {
        let watched = self.mappings.watched.iter();
        let writable = watched.filter(|entry| entry.mapping.writable || entry.stored);
        let nodes: Vec<NodeId> = writable.map(|entry| entry.marks.node()).collect();
        for id in nodes {
            if self.mappings.warned.insert(id) {
                self.warn(Some(self.path_of(id, Side::Source)), MAPPED);
            }
        }
    }
}

/// What watches stores, if that is possible.
pub(crate) fn store_watch() -> Result<StoreWatch, Errno> {
    // The program could not register for itself what we have registered.
    if crate::direct::host_has_userfaultfd() { Err(Errno::BUSY) } else { StoreWatch::new() }
}

/// Tells of each file that this process has mapped shared and writable, by device and inode.
pub(crate) fn each_writable(mut visit: impl FnMut((u64, u64))) {
    let _ = each(c"/proc/self/maps", &mut Text::new(), |line| {
        let mapping = shared(&line).filter(|mapping| mapping.writable);
        mapping.into_iter().for_each(|mapping| visit(mapping.file));
        Ok::<(), Infallible>(())
    });
}

/// What the reader of a report has to know of a mapped file.
pub(crate) const MAPPED: &str = "is mapped: its copy is as consistent as the program keeps the mapping at the cut, by coming to rest in before_cut";

/// The mapping that a line of `/proc/self/maps` is about, if it is a file's and shared.
fn shared(line: &Line<'_>) -> Option<Mapping> {
    if !line.is_shared() || line.inode == 0 {
        return None;
    }
    let file = line.file_of_this_process()?;
    let Line { start, end, offset, .. } = *line;
    Some(Mapping { file, start, end, offset, writable: line.is_writable() })
}
