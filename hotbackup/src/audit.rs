//! Behind the cut: has anything changed that nobody saw?
//!
//! Every inode's size and times are compared with what they were before its data was read last. All captured changes
//! were over by then, so a difference means a change that no captured call made. A captured call on an inode that was
//! not audited yet audits it first ([`crate::intercept::audit`]), so the sweep never takes its change for an unseen one.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{Dir, FileType, Mode, OFlags, Statx, openat};

use crate::backup::OnUnseenChange;
use crate::beneath;
use crate::conductor::{Engine, Trouble};
use crate::copier::{Side, on_source};
use crate::error::{Error, Op, Result};
use crate::extents::{self, Stamp};
use crate::intercept::{STAMP, audit, device, stamp};
use crate::progress::Phase;
use crate::registry::WATCH;
use crate::tree::{Copy, Node, NodeId};

/// How often the sources are swept for inodes that captured calls moved away meanwhile.
const SWEEPS: u32 = 20;
/// A file changed unseen in so many cuts is taken for one that cannot be captured.
const PATIENCE: u32 = 6;

impl Engine<'_> {
    /// Audits every inode of the backup. Returns those that were changed unseen.
    pub(crate) fn audit_all(&mut self) -> Result<Vec<NodeId>> {
        self.enter(Phase::Audit);
        let live = self.live_nodes()?;
        let generation = WATCH.generation.load(Ordering::SeqCst);
        for index in 0..self.pairs.len() {
            self.audit_root(index).map_err(|t| self.explain(t))?;
        }
        for &id in &live {
            self.audit_entries(id).map_err(|t| self.explain(t))?;
            self.meet_rings();
        }
        let is_left = |node: &Node| node.marks.audited(generation).is_none();
        let mut left = live.iter().filter(|&&id| is_left(self.tree.node(id))).count();
        // What a captured rename of its directory has moved meanwhile is looked for where everything is now.
        for _ in 0..SWEEPS {
            if left == 0 {
                break;
            }
            self.check().map_err(|t| self.explain(t))?;
            self.sweep().map_err(|t| self.explain(t))?;
            left = live.iter().filter(|&&id| is_left(self.tree.node(id))).count();
        }
        self.name_streams();
        let mut unseen = self.suspect_writers()?;
        unseen.extend(self.find_unknown_mappings());
        unseen.retain(|&id| !self.tree.node(id).conceded);
        // What is gone without a captured call having taken it was taken unseen. What the listings name and could not
        // be found was so too.
        unseen.extend(live.iter().filter(|&&id| self.has_changed(id, generation)));
        Ok(unseen)
    }

    /// Whether the audit of the cut `generation` has found an inode changed, or not found it where it ought to be.
    fn has_changed(&self, id: NodeId, generation: u32) -> bool {
        let node = self.tree.node(id);
        let changed = node.marks.audited(generation) != Some(false) && !node.conceded;
        node.copy != Copy::Done || node.missing || changed
    }

    /// All nodes that can be reached from the roots, each once. A directory reached twice is an error.
    pub(crate) fn live_nodes(&self) -> Result<Vec<NodeId>> {
        let mut seen = vec![false; self.tree.len()];
        let mut live: Vec<NodeId> = self.pairs.iter().map(|pair| pair.root_node).collect();
        for &root in &live {
            seen[root as usize] = true;
        }
        let mut next = 0;
        while let Some(&id) = live.get(next) {
            next += 1;
            if !self.tree.node(id).is_directory() {
                continue;
            }
            for index in 0..self.tree.entries(id) {
                let (child, name) = self.tree.entry(id, index);
                let node = self.tree.node(child);
                if node.excluded {
                    continue;
                }
                if !std::mem::replace(&mut seen[child as usize], true) {
                    live.push(child);
                } else if node.is_directory() {
                    let name = String::from_utf8_lossy(self.tree.text(name)).into_owned();
                    return Err(Error::DirectoryTwice {
                        first: self.path_of(child, Side::Source),
                        second: self.path_of(id, Side::Source).join(name),
                    });
                }
            }
        }
        Ok(live)
    }

    fn audit_root(&mut self, index: usize) -> Result<(), Trouble> {
        let id = self.pairs[index].root_node;
        match self.stamp_now(id) {
            Ok(now) => audit(self.tree.node(id).marks, now),
            Err(Trouble::Vanished) => {}
            Err(trouble) => return Err(trouble),
        }
        Ok(())
    }

    /// Audits what a directory held at the cut, as far as it is still there.
    fn audit_entries(&mut self, directory: NodeId) -> Result<(), Trouble> {
        if self.tree.entries(directory) == 0 {
            return Ok(());
        }
        let opened = match self.open_place(directory, OFlags::PATH | OFlags::DIRECTORY) {
            Err(Trouble::Vanished) => return Ok(()),
            opened => opened?,
        };
        let generation = WATCH.generation.load(Ordering::SeqCst);
        for index in 0..self.tree.entries(directory) {
            let (id, name) = self.tree.entry(directory, index);
            let node = self.tree.node(id);
            if node.excluded || node.marks.audited(generation).is_some() {
                continue;
            }
            let name = self.tree.name(name);
            let failed = |errno| Trouble::Fault(id, on_source(Op::Examine)(errno));
            // An inode with its number and its times is the same one; of another one with its number the handle tells.
            let found = match beneath::look(opened.as_fd(), name.as_c_str(), STAMP) {
                Ok(found) if self.is_unchanged(id, &found) => Ok((found, node.handle)),
                Ok(_) => beneath::examine(opened.as_fd(), name.as_c_str(), STAMP),
                Err(errno) => Err(errno),
            };
            match found {
                Err(errno) if beneath::is_vanished(errno) => {}
                found => {
                    let (found, handle) = found.map_err(failed)?;
                    if node.marks.is(device(&found), found.stx_ino) && node.handle == handle {
                        audit(node.marks, stamp(&found));
                    }
                }
            }
        }
        Ok(())
    }

    fn is_unchanged(&self, id: NodeId, found: &Statx) -> bool {
        let marks = self.tree.node(id).marks;
        marks.is(device(found), found.stx_ino) && marks.stamp() == stamp(found)
    }

    /// Walks the sources as they are now, and audits what has not been yet.
    fn sweep(&mut self) -> Result<(), Trouble> {
        let generation = WATCH.generation.load(Ordering::SeqCst);
        let mut directories = Vec::new();
        for index in 0..self.pairs.len() {
            let root = self.open_place(self.pairs[index].root_node, OFlags::RDONLY | OFlags::DIRECTORY)?;
            directories.push((Arc::new(root), c".".to_owned()));
        }
        // Of a directory with many below it, one is open at a time.
        while let Some((parent, name)) = directories.pop() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let Ok(directory) = openat(&*parent, &name, flags, Mode::empty()) else { continue };
            let directory = Arc::new(directory);
            let Ok(entries) = Dir::read_from(&*directory) else { continue };
            for entry in entries.flatten().filter(|e| !matches!(e.file_name().to_bytes(), b"." | b"..")) {
                let Ok((found, handle)) = beneath::examine(directory.as_fd(), entry.file_name(), STAMP)
                else {
                    continue;
                };
                if let Some(marks) = WATCH.find(device(&found), found.stx_ino)
                    && self.tree.get(marks.node()).is_some_and(|node| node.handle == handle)
                    && marks.audited(generation).is_none()
                {
                    audit(marks, stamp(&found));
                }
                if FileType::from_raw_mode(found.stx_mode.into()) == FileType::Directory {
                    directories.push((Arc::clone(&directory), entry.file_name().to_owned()));
                }
            }
        }
        Ok(())
    }

    /// Size and times of an inode now.
    pub(crate) fn stamp_now(&mut self, id: NodeId) -> Result<Stamp, Trouble> {
        let place = self.open_place(id, OFlags::PATH)?;
        let (found, handle) = beneath::examine(place.as_fd(), c"", STAMP)
            .map_err(|errno| Trouble::Fault(id, on_source(Op::Examine)(errno)))?;
        let node = self.tree.node(id);
        if !node.marks.is(device(&found), found.stx_ino) || node.handle != handle {
            return Err(Trouble::Vanished);
        }
        Ok(stamp(&found))
    }

    /// Has the inodes that were changed unseen copied again, for the reason that is returned; fails for one that keeps changing.
    /// `None` if the caller takes them as they are.
    pub(crate) fn distrust(&mut self, unseen: &[NodeId], caught: u32) -> Result<Option<String>> {
        if unseen.is_empty() {
            return Ok(Some("other processes closed more files than could be told".into()));
        }
        let generation = WATCH.generation.load(Ordering::SeqCst);
        let not_found = |&id: &NodeId| self.tree.node(id).marks.audited(generation).is_none();
        // A call that hit another inode than it had found has audited the wrong one: the change may be its own. And what
        // the sweeps did not find may have been moved from place to place before them.
        let may_have_moved = caught < PATIENCE;
        if may_have_moved && (WATCH.crossings.any() || unseen.iter().all(not_found)) {
            self.copy_again(unseen);
            return Ok(Some("names moved too fast while changes were looked for".into()));
        }
        for &id in unseen {
            let node = self.tree.node_mut(id);
            if node.is_file() && node.copy == Copy::Done && !std::mem::replace(&mut node.suspect, true) {
                self.suspects.push(id);
            }
            // What was found open for writing elsewhere in the audit, a child's inherited descriptor for one, may not have changed.
            let is_elsewhere = may_have_moved && self.tree.node(id).marks.audited(generation).is_none();
            if !is_elsewhere && self.has_changed(id, generation) {
                self.note_unseen(id);
            }
        }
        // Others may only be suspect since the audit.
        let changed = |&&id: &&NodeId| self.tree.node(id).marks.audited(generation) == Some(true);
        let (changed, first) = (unseen.iter().find(changed), unseen.first());
        let path = changed.or(first).map(|&id| self.path_of(id, Side::Source)).unwrap_or_default();
        let by = "calls that are not captured, in this process or another".to_owned();
        let is_copied = |&id: &NodeId| self.tree.node(id).copy == Copy::Done && !self.tree.node(id).missing;
        match self.plan.on_unseen_change {
            // Not if events were lost that might name more.
            OnUnseenChange::Warn
                if caught >= PATIENCE && !self.fanotify.overflowed && unseen.iter().all(is_copied) =>
            {
                unseen.iter().for_each(|&id| self.concede(id));
                return Ok(None);
            }
            OnUnseenChange::Fail if changed.is_some() => return Err(Error::Unseen { path, by }),
            _ if caught >= PATIENCE => return Err(Error::Unseen { path, by }),
            _ => {}
        }
        self.copy_again(unseen);
        Ok(Some(by))
    }

    /// Notes a file that something unseen has changed; the one that did last stands last.
    fn note_unseen(&mut self, id: NodeId) {
        let path = self.path_of(id, Side::Source);
        self.unseen.retain(|noted| *noted != path);
        self.unseen.push(path);
    }

    /// Takes the copy of a file as it is from now on, and says so.
    fn concede(&mut self, id: NodeId) {
        if !std::mem::replace(&mut self.tree.node_mut(id).conceded, true) {
            let text = "was changed at the cut as well, by calls that are not captured, in this process or another: \
                        its copy may mix what it held at different moments";
            self.warn(Some(self.path_of(id, Side::Source)), text);
        }
    }

    /// Deals with a suspect file that could not be read at rest within the freeze, `unsteady` times by now one was not. Fails if the
    /// caller wants that.
    pub(crate) fn give_way(&mut self, id: NodeId, unsteady: u32) -> Result<()> {
        self.note_unseen(id);
        match self.plan.on_unseen_change {
            OnUnseenChange::Fail => Err(self.unsteady(id)),
            OnUnseenChange::Warn if unsteady >= PATIENCE / 2 => {
                self.concede(id);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// That a file was changed while it was not to be.
    pub(crate) fn unsteady(&self, id: NodeId) -> Error {
        let by = "it was changed while nothing captured was, by this process or another".to_owned();
        Error::Unseen { path: self.path_of(id, Side::Source), by }
    }

    /// Whether nothing but something unseen can have changed a file since it was copied. A captured change hides it.
    pub(crate) fn is_changed_unseen(&mut self, id: NodeId) -> Result<bool, Trouble> {
        let node = self.tree.node(id);
        let marks = node.marks;
        if node.copy != Copy::Done || marks.was_marked() {
            return Ok(false);
        }
        match self.stamp_now(id) {
            Ok(now) => Ok(now != marks.stamp() && !marks.was_marked()),
            Err(Trouble::Vanished) => Ok(false),
            Err(trouble) => Err(trouble),
        }
    }

    fn copy_again(&mut self, unseen: &[NodeId]) {
        for &id in unseen {
            let node = self.tree.node_mut(id);
            node.missing = false;
            if node.is_file() && node.copy == Copy::Owed {
                self.to_copy.push(id);
                continue;
            }
            let flag = if node.is_directory() { extents::ENTRIES } else { extents::ATTRIBUTES };
            node.marks.mark_flags(&WATCH.ledger, flag);
            if node.is_file() {
                node.marks.mark_all(&WATCH.ledger);
            }
        }
    }

    /// Asks the caller about names that were found while nobody could be asked.
    pub(crate) fn ask_about_new(&mut self) -> Result<()> {
        for (directory, name) in std::mem::take(&mut self.to_ask) {
            if self.asks_to_leave_out(directory, &name).map_err(|t| self.explain(t))? {
                self.tree.remove_entry(directory, &name);
            }
        }
        Ok(())
    }
}
