//! A filesystem in memory on which a log of operations is replayed: what the kernel would have made of them.
//!
//! Only operations that had an effect are replayed, so the model knows no permissions and few errors; an operation that
//! it cannot carry out is a defect of the log or of the model, and says so.

use std::collections::BTreeMap;
use std::path::Path;

use super::calls;
use super::ops::{Op, Place, SLOTS, Touched};
use super::tree::{self, Kind, Node, Tree};

/// An operation that took effect.
#[derive(Clone, Debug)]
pub struct Entry {
    pub op: Op,
    /// Negative: it failed, and is here because even so something may have changed.
    pub result: i64,
    /// Modification times read just after it.
    pub times: Vec<(Touched, i64)>,
    /// Where it began and ended in the order of all operations.
    pub begun: u64,
    pub ended: u64,
}

/// An open file description.
#[derive(Clone)]
struct Handle {
    inode: usize,
    position: u64,
    appends: bool,
}

#[derive(Clone)]
struct Inode {
    node: Node,
    data: Vec<u8>,
    entries: BTreeMap<String, usize>,
}

impl Inode {
    fn is(&self, found: &Node) -> bool {
        let mine = &self.node;
        let attributes = |node: &Node| (node.kind, node.mode, node.uid, node.gid, node.device);
        attributes(mine) == attributes(found)
            && self.data.len() as u64 == found.size
            && (mine.mtime.is_none() || mine.mtime == found.mtime || mine.kind == Kind::Fifo)
            && mine.link == found.link
            && mine.xattrs == found.xattrs
            && tree::holds(&self.data, &found.blocks)
    }
}

/// Says what the log asks for and the model cannot do.
type Done<T = ()> = Result<T, String>;

#[derive(Clone)]
pub struct Model {
    inodes: Vec<Inode>,
    /// One per root.
    roots: Vec<usize>,
    handles: Vec<Handle>,
    slots: [Option<usize>; SLOTS],
    umask: u32,
}

/// Where a path ends: in a directory, under a name, at an inode if there is one.
struct Found {
    parent: usize,
    name: String,
    inode: Option<usize>,
}

impl Model {
    /// A model of these directories, which are empty.
    pub fn of(roots: &[std::path::PathBuf]) -> Model {
        let mut model = Model {
            inodes: Vec::new(),
            roots: Vec::new(),
            handles: Vec::new(),
            slots: [None; SLOTS],
            umask: calls::umask(),
        };
        for root in roots {
            let found = Tree::read(Path::new(root)).expect("the empty root can be read");
            model.inodes.push(Inode {
                node: found.nodes[0].clone(),
                data: Vec::new(),
                entries: BTreeMap::new(),
            });
            model.roots.push(model.inodes.len() - 1);
        }
        model
    }

    /// What a reader of root number `root` would find.
    pub fn tree(&self, root: usize) -> Tree {
        let mut tree = Tree::default();
        let mut numbers = BTreeMap::new();
        self.add(self.roots[root], String::new(), &mut tree, &mut numbers);
        tree
    }

    fn add(&self, inode: usize, name: String, tree: &mut Tree, numbers: &mut BTreeMap<usize, usize>) {
        let found = &self.inodes[inode];
        let number = *numbers.entry(inode).or_insert_with(|| {
            let mut node = found.node.clone();
            node.size = found.data.len() as u64;
            node.blocks = tree::blocks_of(&found.data);
            tree.nodes.push(node);
            tree.nodes.len() - 1
        });
        tree.names.insert(name.clone(), number);
        for (leaf, &below) in &found.entries {
            let path = if name.is_empty() { leaf.clone() } else { format!("{name}/{leaf}") };
            self.add(below, path, tree, numbers);
        }
    }

    /// Whether root number `root` is as `found`: quick, without saying what is different.
    pub fn equals(&self, root: usize, found: &Tree) -> bool {
        let mut pairs = BTreeMap::new();
        let mut count = 0;
        self.is_as(self.roots[root], "", found, &mut pairs, &mut count)
            && count == found.names.len()
            && pairs.values().collect::<std::collections::BTreeSet<_>>().len() == pairs.len()
            && pairs.iter().all(|(&inode, &node)| self.inodes[inode].is(&found.nodes[node]))
    }

    /// Pairs inodes with nodes by name.
    fn is_as(
        &self,
        inode: usize,
        name: &str,
        found: &Tree,
        pairs: &mut BTreeMap<usize, usize>,
        count: &mut usize,
    ) -> bool {
        *count += 1;
        let Some(&node) = found.names.get(name) else {
            return false;
        };
        if *pairs.entry(inode).or_insert(node) != node {
            return false;
        }
        self.inodes[inode].entries.iter().all(|(leaf, &below)| {
            let path = if name.is_empty() { leaf.clone() } else { format!("{name}/{leaf}") };
            self.is_as(below, &path, found, pairs, count)
        })
    }

    fn make(&mut self, kind: Kind, mode: u32) -> usize {
        let (uid, gid) = calls::effective_ids();
        let masked = if kind == Kind::Symlink { 0o777 } else { mode & !self.umask };
        let node = Node {
            kind,
            mode: masked,
            uid,
            gid,
            mtime: None,
            device: 0,
            link: String::new(),
            xattrs: BTreeMap::new(),
            size: 0,
            blocks: BTreeMap::new(),
            allocated: None,
        };
        self.inodes.push(Inode { node, data: Vec::new(), entries: BTreeMap::new() });
        self.inodes.len() - 1
    }

    /// Follows `place`; the last component only if `follow`.
    fn find(&self, place: &Place, follow: bool) -> Done<Found> {
        let mut budget = 41;
        self.walk(self.roots[place.root], &place.path, follow, &mut budget)
    }

    fn walk(&self, from: usize, path: &str, follow: bool, budget: &mut u32) -> Done<Found> {
        *budget = budget.checked_sub(1).ok_or("too many symbolic links")?;
        let mut dir = from;
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let (last, before) = parts.split_last().ok_or("an empty path")?;
        for part in before {
            let found = self.walk(dir, part, true, budget)?;
            dir = found.inode.ok_or_else(|| format!("{part} in {path} is missing"))?;
        }
        if self.inodes[dir].node.kind != Kind::Directory {
            return Err(format!("{last} in {path} lies in no directory"));
        }
        let inode = self.inodes[dir].entries.get(*last).copied();
        if let Some(inode) = inode.filter(|_| follow)
            && self.inodes[inode].node.kind == Kind::Symlink
        {
            return self.walk(dir, &self.inodes[inode].node.link, true, budget);
        }
        Ok(Found { parent: dir, name: (*last).to_owned(), inode })
    }

    fn existing(&self, place: &Place, follow: bool) -> Done<usize> {
        let found = self.find(place, follow)?;
        found.inode.ok_or_else(|| format!("{place:?} is missing"))
    }

    fn open_file(&self, slot: usize) -> Done<&Handle> {
        let handle = self.slots[slot].map(|handle| &self.handles[handle]);
        handle.ok_or_else(|| format!("slot {slot} is empty"))
    }

    fn open_file_mut(&mut self, slot: usize) -> Done<&mut Handle> {
        let handle = self.slots[slot].map(|handle| &mut self.handles[handle]);
        handle.ok_or_else(|| format!("slot {slot} is empty"))
    }

    fn enter(&mut self, place: &Found, inode: usize) {
        self.set_entry(place.parent, &place.name, Some(inode));
    }

    fn set_entry(&mut self, parent: usize, name: &str, inode: Option<usize>) {
        let directory = &mut self.inodes[parent];
        directory.node.mtime = None;
        match inode {
            Some(inode) => directory.entries.insert(name.to_owned(), inode),
            None => directory.entries.remove(name),
        };
    }

    /// Replays one operation.
    pub fn apply(&mut self, entry: &Entry) -> Done {
        match &entry.op {
            // ext4's fallocate moves the time before it finds a reason to fail.
            Op::Fallocate { slot, .. } if entry.result < 0 => {
                let inode = self.open_file(*slot)?.inode;
                self.inodes[inode].node.mtime = None;
            }
            Op::Open { file, flags, mode, slot } => self.open(file, *flags, *mode, *slot)?,
            Op::Tmpfile { slot, .. } => {
                let inode = self.make(Kind::File, 0o640);
                self.set_slot(*slot, inode, false);
            }
            Op::Close { slot, .. } => self.slots[*slot] = None,
            Op::Dup { from, to } | Op::Dup2 { from, to } => {
                self.open_file(*from)?;
                self.slots[*to] = self.slots[*from];
            }
            Op::Symlink { .. }
            | Op::Mkdir { .. }
            | Op::Mkfifo { .. }
            | Op::Device { .. }
            | Op::Link { .. }
            | Op::LinkOpen { .. }
            | Op::Rename { .. }
            | Op::Unlink { .. }
            | Op::Rmdir { .. } => self.apply_to_names(&entry.op)?,
            Op::Chmod { .. }
            | Op::Fchmod { .. }
            | Op::Chown { .. }
            | Op::Fchown { .. }
            | Op::Utimens { .. }
            | Op::Futimens { .. }
            | Op::Setxattr { .. }
            | Op::Fsetxattr { .. }
            | Op::Removexattr { .. } => self.apply_to_attributes(&entry.op)?,
            op => self.apply_to_data(op, entry.result)?,
        }
        for (touched, mtime) in &entry.times {
            if let Some(inode) = self.touched(touched)? {
                self.inodes[inode].node.mtime = Some(*mtime);
            }
        }
        Ok(())
    }

    fn touched(&self, touched: &Touched) -> Done<Option<usize>> {
        Ok(match touched {
            Touched::Slot(slot) => Some(self.open_file(*slot)?.inode),
            Touched::Entry(place) => self.find(place, false).ok().and_then(|found| found.inode),
            Touched::Parent(place) => self.find(place, false).ok().map(|found| found.parent),
        })
    }

    fn set_slot(&mut self, slot: usize, inode: usize, appends: bool) {
        self.handles.push(Handle { inode, position: 0, appends });
        self.slots[slot] = Some(self.handles.len() - 1);
    }

    fn open(&mut self, file: &Place, flags: i32, mode: u32, slot: usize) -> Done {
        let exclusive = flags & libc::O_EXCL != 0;
        let follow = flags & libc::O_NOFOLLOW == 0 && !exclusive;
        let found = self.find(file, follow)?;
        let inode = match found.inode {
            Some(inode) => inode,
            None if flags & libc::O_CREAT != 0 => {
                let inode = self.make(Kind::File, mode);
                self.enter(&found, inode);
                inode
            }
            None => return Err(format!("{file:?} is opened and does not exist")),
        };
        if flags & libc::O_TRUNC != 0 && self.inodes[inode].node.kind == Kind::File {
            self.resize(inode, 0);
        }
        self.set_slot(slot, inode, flags & libc::O_APPEND != 0);
        Ok(())
    }

    fn resize(&mut self, inode: usize, len: u64) {
        let inode = &mut self.inodes[inode];
        inode.data.resize(len as usize, 0);
        inode.node.mtime = None;
    }

    /// Writes to a file; to anything else nothing is kept.
    fn write(&mut self, inode: usize, at: u64, data: &[u8]) {
        let inode = &mut self.inodes[inode];
        if inode.node.kind != Kind::File || data.is_empty() {
            return;
        }
        let (at, end) = (at as usize, at as usize + data.len());
        if inode.data.len() < end {
            inode.data.resize(end, 0);
        }
        inode.data[at..end].copy_from_slice(data);
        inode.node.mtime = None;
    }

    fn len(&self, inode: usize) -> u64 {
        self.inodes[inode].data.len() as u64
    }

    fn write_at_position(&mut self, slot: usize, append: bool, data: &[u8]) -> Done {
        let handle = self.open_file(slot)?;
        let (inode, mut position, appends) = (handle.inode, handle.position, handle.appends);
        if self.inodes[inode].node.kind != Kind::File {
            // A pipe keeps nothing, but its time moves.
            self.inodes[inode].node.mtime = None;
            return Ok(());
        }
        if append || appends {
            position = self.len(inode);
        }
        self.write(inode, position, data);
        self.open_file_mut(slot)?.position = position + data.len() as u64;
        Ok(())
    }

    fn read(&self, slot: usize, at: i64, len: i64) -> Done<Vec<u8>> {
        let inode = self.open_file(slot)?.inode;
        let (from, to) = (at as usize, (at + len) as usize);
        match self.inodes[inode].data.get(from..to) {
            Some(data) => Ok(data.to_vec()),
            None if len == 0 => Ok(Vec::new()),
            None => Err(format!("{len} bytes at {at} were read of slot {slot}, which has fewer")),
        }
    }

    fn apply_to_data(&mut self, op: &Op, result: i64) -> Done {
        let count = result as usize;
        match op {
            Op::Write { slot, data, .. } => {
                self.write_at_position(*slot, false, &data.bytes()[..count])?;
            }
            Op::Append { slot, data } => self.write_at_position(*slot, true, &data.bytes()[..count])?,
            Op::Splice { slot, data, at: None } => {
                self.write_at_position(*slot, false, &data.bytes()[..count])?;
            }
            Op::Splice { slot, data, at: Some(at) } => {
                let inode = self.open_file(*slot)?.inode;
                self.write(inode, *at as u64, &data.bytes()[..count]);
            }
            Op::Sendfile { from, from_at, to, .. } => {
                let data = self.read(*from, *from_at, result)?;
                self.write_at_position(*to, false, &data)?;
            }
            Op::Pwrite { slot, data, at, .. }
            | Op::Direct { slot, data, at }
            | Op::Asynchronous { slot, data, at, .. } => {
                let handle = self.open_file(*slot)?;
                let inode = handle.inode;
                let at = if handle.appends { self.len(inode) } else { *at as u64 };
                self.write(inode, at, &data.bytes()[..count]);
            }
            Op::CopyRange { from, from_at, to, to_at, .. } => {
                let data = self.read(*from, *from_at, result)?;
                let inode = self.open_file(*to)?.inode;
                self.write(inode, *to_at as u64, &data);
            }
            Op::Clone { from, to } => {
                let data = self.inodes[self.open_file(*from)?.inode].data.clone();
                let inode = self.open_file(*to)?.inode;
                self.write(inode, 0, &data);
                self.inodes[inode].node.mtime = None;
            }
            Op::Seek { slot, to } => self.open_file_mut(*slot)?.position = *to as u64,
            Op::SetAppend { slot, on } => self.open_file_mut(*slot)?.appends = *on,
            Op::Ftruncate { slot, len } => {
                let inode = self.open_file(*slot)?.inode;
                self.resize(inode, *len as u64);
            }
            Op::Truncate { file, len } => {
                let inode = self.existing(file, true)?;
                self.resize(inode, *len as u64);
            }
            Op::Fallocate { slot, mode, at, len } => {
                self.fallocate(*slot, *mode, *at as usize, *len as usize)?
            }
            _ => return Err(format!("not known: {op:?}")),
        }
        Ok(())
    }

    fn fallocate(&mut self, slot: usize, mode: i32, at: usize, len: usize) -> Done {
        let inode = self.open_file(slot)?.inode;
        let inode = &mut self.inodes[inode];
        inode.node.mtime = None;
        let data = &mut inode.data;
        let keeps = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        if mode & libc::FALLOC_FL_COLLAPSE_RANGE != 0 {
            data.drain(at..at + len);
        } else if mode & libc::FALLOC_FL_INSERT_RANGE != 0 {
            data.splice(at..at, std::iter::repeat_n(0, len));
        } else {
            if !keeps && data.len() < at + len {
                data.resize(at + len, 0);
            }
            if mode & (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE) != 0 {
                let end = (at + len).min(data.len());
                if at < end {
                    data[at..end].fill(0);
                }
            }
        }
        Ok(())
    }

    fn apply_to_names(&mut self, op: &Op) -> Done {
        match op {
            Op::Symlink { target, name } => {
                let inode = self.make_entry(name, Kind::Symlink, 0)?;
                self.inodes[inode].node.link.clone_from(target);
            }
            Op::Mkdir { name, mode } => drop(self.make_entry(name, Kind::Directory, *mode)?),
            Op::Mkfifo { name, mode } => drop(self.make_entry(name, Kind::Fifo, *mode)?),
            Op::Device { name, mode, device } => {
                let inode = self.make_entry(name, Kind::Device, mode & 0o7777)?;
                self.inodes[inode].node.device = *device;
            }
            Op::Link { from, to, follow } => {
                let inode = self.existing(from, *follow)?;
                let to = self.find(to, false)?;
                self.enter(&to, inode);
            }
            Op::LinkOpen { slot, to, .. } => {
                let inode = self.open_file(*slot)?.inode;
                let to = self.find(to, false)?;
                self.enter(&to, inode);
            }
            Op::Unlink { name } | Op::Rmdir { name } => {
                let found = self.find(name, false)?;
                self.set_entry(found.parent, &found.name, None);
            }
            Op::Rename { from, to, flags } => self.rename(from, to, *flags)?,
            _ => return Err(format!("not known: {op:?}")),
        }
        Ok(())
    }

    fn make_entry(&mut self, name: &Place, kind: Kind, mode: u32) -> Done<usize> {
        let found = self.find(name, false)?;
        if found.inode.is_some() {
            return Err(format!("{name:?} exists already"));
        }
        let inode = self.make(kind, mode);
        self.enter(&found, inode);
        Ok(inode)
    }

    fn rename(&mut self, from: &Place, to: &Place, flags: u32) -> Done {
        let (from, to) = (self.find(from, false)?, self.find(to, false)?);
        let moved = from.inode.ok_or("what was renamed is missing")?;
        if to.inode == Some(moved) {
            return Ok(());
        }
        if flags & libc::RENAME_EXCHANGE != 0 {
            let other = to.inode.ok_or("what was exchanged is missing")?;
            self.enter(&from, other);
        } else {
            self.set_entry(from.parent, &from.name, None);
        }
        self.inodes[moved].node.mtime = None;
        self.enter(&to, moved);
        Ok(())
    }

    fn apply_to_attributes(&mut self, op: &Op) -> Done {
        let inode = match op {
            Op::Chmod { file, .. } | Op::Setxattr { file, .. } | Op::Removexattr { file, .. } => {
                self.existing(file, true)?
            }
            Op::Chown { file, follow, .. } | Op::Utimens { file, follow, .. } => {
                self.existing(file, *follow)?
            }
            Op::Fchmod { slot, .. }
            | Op::Fchown { slot, .. }
            | Op::Futimens { slot, .. }
            | Op::Fsetxattr { slot, .. } => self.open_file(*slot)?.inode,
            _ => return Err(format!("not known: {op:?}")),
        };
        let node = &mut self.inodes[inode].node;
        match op {
            Op::Chmod { mode, .. } | Op::Fchmod { mode, .. } => node.mode = *mode,
            Op::Chown { uid, gid, .. } | Op::Fchown { uid, gid, .. } => (node.uid, node.gid) = (*uid, *gid),
            Op::Utimens { mtime, .. } | Op::Futimens { mtime, .. } => node.mtime = Some(*mtime),
            Op::Setxattr { name, value, .. } | Op::Fsetxattr { name, value, .. } => {
                node.xattrs.insert(name.clone(), value.bytes());
            }
            Op::Removexattr { name, .. } => drop(node.xattrs.remove(name)),
            _ => {}
        }
        Ok(())
    }
}
