//! Finding what there is: directories are listed whole, and every inode is watched before anything of it is read.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use rustix::fs::{FileType, Mode, OFlags, RawDir, StatxFlags, mkdirat, readlinkat_raw};
use rustix::io::Errno;

use crate::attributes::{self, Attributes};
use crate::backup::ManifestPlace;
use crate::beneath;
use crate::conductor::{Engine, Trouble};
use crate::copier::{Fault, Finished, Job, Side, YOUTH, examine, on_destination, on_source};
use crate::digests::Digests;
use crate::error::{Error, Op, Result};
use crate::extents;
use crate::intercept::{device, stamp};
use crate::manifest::{INCOMPLETE_MARK, MANIFEST_NAME};
use crate::registry::WATCH;
use crate::session::Request;
use crate::sys;
use crate::tree::{Copy, NO_NODE, Name, Node, NodeId, Placed, Text};

const READ_DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);

impl Engine<'_> {
    /// Watches the root of a pair.
    pub(crate) fn admit_root(&mut self, index: usize) -> Result<()> {
        let pair = &self.pairs[index];
        let examined = beneath::examine(pair.root.as_fd(), c"", StatxFlags::BASIC_STATS);
        let (found, handle) = examined.map_err(|e| Error::io(Op::Examine, &pair.source, e))?;
        let marks = WATCH
            .enter(device(&found), found.stx_ino)
            .ok_or_else(|| Error::io(Op::Arm, &pair.source, Errno::NOMEM))?;
        let attributes = Attributes::from_statx(&found);
        let mut node = new_node(marks, attributes, handle, NO_NODE, Text::default(), index as u16);
        node.placed = Placed::In(NO_NODE, Text::default());
        let id = self.tree.add(node).map_err(|t| self.explain(t.into()))?;
        marks.set_node(id);
        self.pairs[index].root_node = id;
        self.to_list.push(id);
        Ok(())
    }

    /// Lists a directory for the first time, makes its copy, and has its files copied.
    pub(crate) fn list_first(&mut self, id: NodeId) -> Result<(), Trouble> {
        // One that has no place in the copy yet gets it when the backup is published.
        self.make_copy_directory(id)?;
        match self.list(id) {
            Err(Trouble::Vanished) => {
                self.give_up_for_now(id);
                Ok(())
            }
            done => done,
        }
    }

    /// Makes the copy of a directory if its parent's copy exists and its name there is free.
    fn make_copy_directory(&mut self, id: NodeId) -> Result<bool, Trouble> {
        let node = self.tree.node(id);
        let (parent, name) = (node.parent, node.name);
        if node.placed != Placed::No
            || !matches!(self.tree.get(parent).map(|p| p.placed), Some(Placed::In(..)))
        {
            return Ok(false);
        }
        let directory = match self.open_copy_directory(parent) {
            Ok(directory) => directory,
            Err(Trouble::Vanished) => return Ok(false),
            Err(trouble) => return Err(trouble),
        };
        match mkdirat(&directory, self.tree.name(name).as_c_str(), Mode::from_raw_mode(0o700)) {
            Ok(()) => {
                let pair_of_copy = self.tree.node(parent).pair_of_copy;
                let node = self.tree.node_mut(id);
                (node.placed, node.pair_of_copy) = (Placed::In(parent, name), pair_of_copy);
                Ok(true)
            }
            Err(Errno::EXIST) => Ok(false),
            Err(errno) => Err(Trouble::Fault(id, on_destination(Op::Create)(errno))),
        }
    }

    /// Opens the copy of a directory in the staged tree.
    pub(crate) fn open_copy_directory(&mut self, id: NodeId) -> Result<OwnedFd, Trouble> {
        let placed = |node: &Node| match node.placed {
            Placed::In(parent, name) => Some((parent, name)),
            _ => None,
        };
        let pair = self.tree.node(id).pair_of_copy as usize;
        self.tree.path_by(id, &mut self.path, placed).ok_or(Trouble::Vanished)?;
        let flags = READ_DIRECTORY;
        beneath::open(self.pairs[pair].destination.tree.as_fd(), &mut self.path, flags, Mode::empty())
            .map_err(|errno| Trouble::Fault(id, on_destination(Op::Open)(errno)))
    }

    /// Opens the place in the source where a node was seen last.
    pub(crate) fn open_place(&mut self, id: NodeId, flags: OFlags) -> Result<OwnedFd, Trouble> {
        let pair = self.tree.pair_of(id);
        self.tree.path_below(id, &mut self.path).ok_or(Trouble::Vanished)?;
        // openat2 takes O_PATH with few other flags.
        let quiet = if flags.contains(OFlags::PATH) { flags } else { flags | OFlags::NOATIME };
        let root = self.pairs[pair].root.as_fd();
        let mut opened = beneath::open(root, &mut self.path, quiet, Mode::empty());
        if opened.as_ref().is_err_and(|&errno| errno == Errno::PERM) {
            opened = beneath::open(root, &mut self.path, flags, Mode::empty());
        }
        opened.map_err(|errno| match errno {
            errno if beneath::is_vanished(errno) => Trouble::Vanished,
            errno => Trouble::Fault(id, on_source(Op::Open)(errno)),
        })
    }

    /// Lists a directory whole. Its marks are cleared first, so that a change meanwhile marks it again.
    pub(crate) fn list(&mut self, id: NodeId) -> Result<(), Trouble> {
        let directory = self.open_place(id, READ_DIRECTORY)?;
        let (found, handle) = beneath::examine(directory.as_fd(), c"", StatxFlags::empty())
            .map_err(|errno| Trouble::Fault(id, on_source(Op::Examine)(errno)))?;
        let node = self.tree.node(id);
        if !node.marks.is(device(&found), found.stx_ino) || node.handle != handle {
            return Err(Trouble::Vanished);
        }
        let marks = node.marks;
        marks.take(extents::ENTRIES);
        let mut attributes = node.attributes;
        let xattrs = self
            .tree
            .store_again(node.xattrs, |heap, fixed| {
                let (now, _, range) = examine(directory.as_fd(), marks, heap, fixed)?;
                attributes = now;
                Ok(range)
            })
            .map_err(|errno: Errno| no_room_or(id, Op::Examine, errno))?;
        let node = self.tree.node_mut(id);
        node.attributes = attributes;
        node.xattrs = xattrs;
        let mut entries = std::mem::take(&mut self.entries);
        entries.clear();
        let listed = self
            .list_entries(id, directory.as_fd(), device(&found), &mut entries)
            .and_then(|()| Ok(self.tree.finish_listing(id, &entries)?));
        self.entries = entries;
        listed?;
        self.tree.node_mut(id).copy = Copy::Done;
        Ok(())
    }

    fn list_entries(
        &mut self,
        id: NodeId,
        directory: BorrowedFd<'_>,
        device: u64,
        entries: &mut Vec<(NodeId, Text)>,
    ) -> Result<(), Trouble> {
        let mut dirents = std::mem::take(&mut self.dirents);
        let mut listing = RawDir::new(directory, &mut dirents);
        let mut seen = 0u32;
        let listed = loop {
            let (name, inode) = match listing.next() {
                None => break Ok(()),
                Some(Err(Errno::NOENT)) => break Err(Trouble::Vanished),
                Some(Err(errno)) => break Err(Trouble::Fault(id, on_source(Op::List)(errno))),
                Some(Ok(entry)) => (Name::new(entry.file_name().to_bytes()), entry.ino()),
            };
            let Some(name) = name else {
                break Err(Trouble::Fault(id, on_source(Op::List)(Errno::NAMETOOLONG)));
            };
            if matches!(name.as_bytes(), b"." | b"..") {
                continue;
            }
            seen += 1;
            if seen.is_multiple_of(256) && self.is_late() {
                break Err(Trouble::Void("a directory took too long to list"));
            }
            match self.list_entry(id, directory, &name, self.known_at(id, &name, device, inode)) {
                Ok(Some(entry)) if entries.len() < entries.capacity() || !self.tree.is_fixed() => {
                    entries.push(entry);
                }
                Ok(Some(_)) => break Err(Trouble::NoRoom),
                Ok(None) => {}
                Err(trouble) => break Err(trouble),
            }
        };
        self.dirents = dirents;
        listed
    }

    /// Whether the gate has to open again before long.
    pub(crate) fn is_late(&self) -> bool {
        self.deadline_ns != 0 && sys::raw::monotonic_ns() >= self.deadline_ns
    }

    /// The node that was seen under this name and inode number at the last listing.
    fn known_at(&self, directory: NodeId, name: &Name, device: u64, inode: u64) -> Option<NodeId> {
        let id = WATCH.find(device, inode)?.node();
        let node =
            self.tree.get(id).filter(|node| node.parent == directory && !node.missing && !node.replaced)?;
        (self.tree.text(node.name) == name.as_bytes()).then_some(id)
    }

    fn list_entry(
        &mut self,
        directory: NodeId,
        opened: BorrowedFd<'_>,
        name: &Name,
        known: Option<NodeId>,
    ) -> Result<Option<(NodeId, Text)>, Trouble> {
        if self.tree.node(directory).parent == NO_NODE && self.is_reserved(directory, name)? {
            return Ok(None);
        }
        if let Some(id) = known.map(|id| (id, self.tree.node(id)))
            // Whoever takes its name marks it: it need not be examined, so that a large directory is listed quickly.
            && node_is_settled(id.1)
        {
            return Ok(Some((id.0, id.1.name)));
        }
        if known.is_none() && self.is_left_out(directory, name)? {
            return Ok(None);
        }
        let text = self.tree.store(name.as_bytes())?;
        Ok(self.admit(directory, opened, name, text)?.map(|child| (child, text)))
    }

    /// Names at the top of a source that the destination needs for itself.
    fn is_reserved(&mut self, root: NodeId, name: &Name) -> Result<bool, Trouble> {
        let pair = self.tree.node(root).pair as usize;
        if name.as_bytes() == INCOMPLETE_MARK.as_bytes() {
            let rooted = [b"/", name.as_bytes()].concat();
            if self.plan.exclude.as_ref().is_some_and(|set| set.is_match(&rooted)) {
                return Ok(true);
            }
            if self.tree.is_fixed() {
                return Err(Trouble::Void("the mark of an incomplete backup appeared in a source"));
            }
            let path = self.pairs[pair].source.clone();
            return Err(Error::ReservedName { path, name: INCOMPLETE_MARK.into() }.into());
        }
        let ours = pair == 0 && self.plan.manifest == ManifestPlace::FirstDestination;
        if ours && name.as_bytes() == MANIFEST_NAME.as_bytes() {
            if !self.tree.is_fixed() && !self.warnings.iter().any(|w| w.text.contains("earlier backup")) {
                let path = self.pairs[pair].source.join(MANIFEST_NAME);
                self.warn(Some(path), "the manifest of an earlier backup was left out");
            }
            return Ok(true);
        }
        Ok(false)
    }

    /// The node of a directory entry; a new one is watched before anything of it is read. `None` for what is not
    /// backed up: sockets, and what vanished.
    fn admit(
        &mut self,
        parent: NodeId,
        directory: BorrowedFd<'_>,
        name: &Name,
        text: Text,
    ) -> Result<Option<NodeId>, Trouble> {
        let failed = |errno| Trouble::Fault(parent, on_source(Op::Examine)(errno));
        let (found, handle) = match beneath::examine(directory, name.as_c_str(), StatxFlags::BASIC_STATS) {
            Err(Errno::NOENT) => return Ok(None),
            examined => examined.map_err(failed)?,
        };
        let attributes = Attributes::from_statx(&found);
        if attributes.kind == FileType::Socket {
            return Ok(None);
        }
        let (dev, ino) = (device(&found), found.stx_ino);
        let known = WATCH.find(dev, ino);
        if let Some(marks) = known {
            let id = marks.node();
            let node = self.tree.node(id);
            if node.handle == handle && node.kind() == attributes.kind {
                self.sight(id, parent, name)?;
                return Ok(Some(id));
            }
            self.tree.node_mut(id).replaced = true;
            marks.discount(&WATCH.ledger);
        }
        let marks = known.or_else(|| WATCH.enter(dev, ino)).ok_or(Trouble::NoRoom)?;
        let pair = self.tree.node(parent).pair;
        let id = self.tree.add(new_node(marks, attributes, handle, parent, text, pair))?;
        marks.set_node(id);
        marks.set_stamp(stamp(&found));
        self.tree.node_mut(id).direct = self.direct_files.contains(&(dev, ino));
        self.watch_mappings_of((dev, ino))?;
        self.begin(id, directory, name)?;
        Ok(Some(id))
    }

    /// A node that is known was seen at a place.
    fn sight(&mut self, id: NodeId, parent: NodeId, name: &Name) -> Result<(), Trouble> {
        if std::mem::take(&mut self.tree.node_mut(id).missing) {
            let uncertain = std::mem::take(&mut self.tree.node_mut(id).is_uncertain);
            let node = self.tree.node(id);
            if uncertain {
                node.marks.mark_all(&WATCH.ledger);
            }
            match (node.is_directory(), node.is_file() && node.copy == Copy::Owed) {
                (true, _) => push(&mut self.to_list, id, self.tree.is_fixed())?,
                (_, true) => push(&mut self.to_copy, id, self.tree.is_fixed())?,
                _ => node.marks.mark_flags(&WATCH.ledger, extents::EXAMINE),
            }
            self.count_for_lag(id);
        }
        let node = self.tree.node(id);
        let moved = node.parent != parent || self.tree.text(node.name) != name.as_bytes();
        if moved && node.is_directory() {
            push(&mut self.moved, id, self.tree.is_fixed())?;
            self.judge_anew_below(id)?;
        }
        self.tree.node_mut(id).linked |= moved;
        Ok(())
    }

    /// A directory has moved: names below it that were left out have other paths now, and the caller is asked anew. In the
    /// freeze nobody can be asked and nothing may be freed, so the cut is tried again.
    fn judge_anew_below(&mut self, moved: NodeId) -> Result<(), Trouble> {
        if !self.left_out.keys().any(|&directory| self.tree.lies_below(directory, moved)) {
            return Ok(());
        }
        self.judge_anew = true;
        if self.tree.is_fixed() {
            return Err(Trouble::Void("a directory below which names are left out has moved"));
        }
        Ok(())
    }

    /// Has the directories listed again from which names were left out, if one of them has moved.
    pub(crate) fn ask_again(&mut self) {
        if std::mem::take(&mut self.judge_anew) {
            for (directory, _) in std::mem::take(&mut self.left_out) {
                self.tree.node(directory).marks.mark_flags(&WATCH.ledger, extents::ENTRIES);
            }
        }
    }

    /// Starts to deal with a new node.
    fn begin(&mut self, id: NodeId, directory: BorrowedFd<'_>, name: &Name) -> Result<(), Trouble> {
        let fixed = self.tree.is_fixed();
        match self.tree.node(id).kind() {
            FileType::Directory => push(&mut self.to_list, id, fixed),
            FileType::RegularFile => {
                let size = self.tree.node(id).attributes.size;
                self.count(|meter| {
                    meter.files_total += 1;
                    meter.bytes_total += size;
                });
                self.owe(id);
                push(&mut self.to_copy, id, fixed)
            }
            _ => match self.read_special(id, directory, name) {
                Err(Trouble::Vanished) => push(&mut self.lost, id, fixed),
                read => read,
            },
        }
    }

    /// Reads all there is of a symbolic link, a FIFO or a device node.
    pub(crate) fn read_special(
        &mut self,
        id: NodeId,
        directory: BorrowedFd<'_>,
        name: &Name,
    ) -> Result<(), Trouble> {
        let failed = |errno: Errno| match errno {
            errno if beneath::is_vanished(errno) => Trouble::Vanished,
            Errno::NOMEM => Trouble::NoRoom,
            errno => Trouble::Fault(id, on_source(Op::Examine)(errno)),
        };
        let marks = self.tree.node(id).marks;
        marks.take(extents::ATTRIBUTES | extents::EXAMINE);
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(directory, name.as_c_str(), flags, Mode::empty());
        let file = match opened {
            // It has another name, or none: it is looked for again when directories were re-listed.
            Err(errno) if beneath::is_vanished(errno) => return Err(Trouble::Vanished),
            opened => opened.map_err(failed)?,
        };
        let (found, handle) = beneath::examine(file.as_fd(), c"", StatxFlags::BASIC_STATS).map_err(failed)?;
        let attributes = Attributes::from_statx(&found);
        // A file may have got this one's name and its number; between the two looks of `admit`, so that it has its handle too.
        let node = self.tree.node(id);
        let same = marks.is(device(&found), found.stx_ino) && handle == node.handle;
        if !same || attributes.kind != node.kind() {
            return Err(Trouble::Vanished);
        }
        marks.set_stamp(stamp(&found));
        let content = if attributes.kind == FileType::Symlink {
            let mut target = [std::mem::MaybeUninit::uninit(); 4096];
            let target = readlinkat_raw(&file, c"", &mut target).map_err(failed)?.0;
            let same = self.tree.text(self.tree.node(id).content) == &*target;
            if same { self.tree.node(id).content } else { self.tree.store(target)? }
        } else {
            Text::default()
        };
        let old = self.tree.node(id).xattrs;
        let xattrs = self
            .tree
            .store_again(old, |heap, fixed| attributes::append_xattrs(file.as_fd(), heap, fixed))
            .map_err(failed)?;
        let node = self.tree.node_mut(id);
        node.attributes = attributes;
        node.content = content;
        node.xattrs = xattrs;
        node.copy = Copy::Done;
        Ok(())
    }

    /// Whether the caller wants this name left out. In the freeze, and while the caller is inside `before_cut`, nobody
    /// is asked: the entry is taken, and looked at again when the gate is open.
    fn is_left_out(&mut self, directory: NodeId, name: &Name) -> Result<bool, Trouble> {
        if self.plan.exclude.is_none() && !self.plan.asks_to_exclude {
            return Ok(false);
        }
        if self.left_out.get(&directory).is_some_and(|names| names.contains(name.as_bytes())) {
            return Ok(true);
        }
        if self.tree.is_fixed() || self.caller.is_busy() {
            if self.tree.is_fixed() && self.to_ask.len() == self.to_ask.capacity() {
                return Err(Trouble::NoRoom);
            }
            self.to_ask.push((directory, *name));
            return Ok(false);
        }
        let out = self.asks_to_leave_out(directory, name)?;
        if out {
            self.left_out.entry(directory).or_default().insert(name.as_bytes().into());
        }
        Ok(out)
    }

    /// Asks whether the caller wants an entry left out.
    pub(crate) fn asks_to_leave_out(&self, directory: NodeId, name: &Name) -> Result<bool, Trouble> {
        use std::os::unix::ffi::OsStrExt;
        let below = self.tree.display_path(directory).join(std::ffi::OsStr::from_bytes(name.as_bytes()));
        let rooted = std::path::Path::new("/").join(&below);
        if self.plan.exclude.as_ref().is_some_and(|set| set.is_match(rooted.as_os_str().as_bytes())) {
            return Ok(true);
        }
        if !self.plan.asks_to_exclude {
            return Ok(false);
        }
        let full = self.pairs[self.tree.pair_of(directory)].source.join(below);
        self.caller.ask(Request::LeaveOut(full)).ok_or_else(|| Error::Cancelled.into())
    }

    /// Gives files that wait to be copied to the copiers, as long as those have room.
    pub(crate) fn hand_out(&mut self) -> Result<(), Trouble> {
        let mut directory: Option<(NodeId, Arc<OwnedFd>, Option<Arc<OwnedFd>>)> = None;
        while !self.desk.is_full() {
            let Some(id) = self.to_copy.pop() else {
                return Ok(());
            };
            if self.walked.is_some_and(|count| id >= count) {
                self.new_files.push(id);
                continue;
            }
            let node = self.tree.node(id);
            if node.replaced || node.excluded || node.copy != Copy::Owed {
                continue;
            }
            let parent = node.parent;
            if directory.as_ref().is_none_or(|(known, ..)| *known != parent) {
                let source = match self.open_place(parent, READ_DIRECTORY) {
                    Err(Trouble::Vanished) => {
                        self.give_up_for_now(id);
                        continue;
                    }
                    opened => Arc::new(opened?),
                };
                let copy = match self.open_copy_directory(parent) {
                    Err(Trouble::Vanished) => None,
                    opened => Some(Arc::new(opened?)),
                };
                directory = Some((parent, source, copy));
            }
            if let Some((_, source, copy)) = &directory {
                let (source, copy) = (Arc::clone(source), copy.clone());
                self.hand_in(id, source, copy)?;
            }
        }
        Ok(())
    }

    fn hand_in(
        &mut self,
        id: NodeId,
        source: Arc<OwnedFd>,
        copy: Option<Arc<OwnedFd>>,
    ) -> Result<(), Trouble> {
        let node = self.tree.node(id);
        let (marks, handle, parent, text) = (node.marks, node.handle, node.parent, node.name);
        let (direct, size) = (node.direct, node.attributes.size);
        let name = self.tree.name(text);
        // A file that a first walk finds gets its name in the copy, if that is free.
        let (place, placed) = match copy {
            Some(copy) if node.placed == Placed::No => (Some(copy), Placed::In(parent, text)),
            _ => (None, Placed::Limbo),
        };
        // A directory's copy stays in the pair that it was first seen in, and so does what is put into it.
        let pair_of_copy = match placed {
            Placed::In(parent, _) => self.tree.node(parent).pair_of_copy,
            _ => node.pair_of_copy,
        };
        let node = self.tree.node_mut(id);
        node.copy = Copy::Running;
        (node.placed, node.pair_of_copy) = (placed, pair_of_copy);
        let pair = &self.pairs[pair_of_copy as usize];
        let (reserve, limbo) = (pair.reserve, Arc::clone(&pair.destination.limbo));
        let (directory, disk) = (source, Arc::clone(&pair.disk));
        self.desk.hand_in(Job {
            id,
            marks,
            handle,
            direct,
            directory,
            name,
            place,
            limbo,
            reserve,
            disk,
            size,
        });
        Ok(())
    }

    /// A file's first copy is complete.
    pub(crate) fn accept(&mut self, id: NodeId, finished: Finished) -> Result<(), Trouble> {
        match finished.copy {
            Some(copy) => drop(self.copies.insert(id, copy)),
            // They are of use only all together.
            None => self.copies.clear(),
        }
        let xattrs = self.tree.store(&finished.xattrs)?;
        if finished.young {
            self.young.push(id);
            self.young_until = Instant::now() + YOUTH;
        }
        let node = self.tree.node_mut(id);
        node.attributes = finished.attributes;
        node.copied_size = finished.attributes.size;
        node.digests = finished.digests;
        node.xattrs = xattrs;
        node.copy = Copy::Done;
        if finished.in_limbo {
            node.placed = Placed::Limbo;
        }
        if node.replaced {
            // Its marks are those of what has its inode number now.
            return Ok(());
        }
        node.marks.count_for_lag(&WATCH.ledger);
        if node.marks.owes_data() {
            // What was marked before a copier had it may have left the queue; from here on somebody may wait for it.
            node.marks.mark_flags(&WATCH.ledger, 0);
        }
        Ok(())
    }

    /// A node was not found where it was seen last: it is looked for again when directories were re-listed.
    pub(crate) fn give_up_for_now(&mut self, id: NodeId) {
        let node = self.tree.node_mut(id);
        if node.is_file() && node.copy == Copy::Running {
            node.copy = Copy::Owed;
            node.placed = Placed::No;
        }
        self.lost.push(id);
    }
}

/// A node of which only its place is known.
pub(crate) fn new_node(
    marks: &'static extents::Marks,
    attributes: Attributes,
    handle: u64,
    parent: NodeId,
    name: Text,
    pair: u16,
) -> Node {
    Node {
        marks,
        attributes,
        handle,
        parent,
        name,
        pair,
        pair_of_copy: pair,
        copy: Copy::Owed,
        excluded: false,
        replaced: false,
        linked: false,
        missing: false,
        is_uncertain: false,
        looked_at: 0,
        suspect: false,
        conceded: false,
        put_off: false,
        direct: false,
        placed: Placed::No,
        content: Text::default(),
        xattrs: Text::default(),
        copied_size: 0,
        digests: Digests::default(),
        wanted: false,
    }
}

/// Whether all there is to know of a node is known, and nothing says that it has changed.
fn node_is_settled(node: &Node) -> bool {
    (node.is_file() || node.is_directory())
        && node.copy == Copy::Done
        && !node.marks.has(extents::ATTRIBUTES | extents::EXAMINE)
}

/// Adds to a list, within its capacity while the tree is fixed.
pub(crate) fn push(list: &mut Vec<NodeId>, id: NodeId, fixed: bool) -> Result<(), Trouble> {
    if fixed && list.len() == list.capacity() {
        return Err(Trouble::NoRoom);
    }
    list.push(id);
    Ok(())
}

fn no_room_or(id: NodeId, op: Op, errno: Errno) -> Trouble {
    match errno {
        Errno::NOMEM => Trouble::NoRoom,
        errno => Trouble::Fault(id, Fault::Sys { op, side: Side::Source, errno }),
    }
}
