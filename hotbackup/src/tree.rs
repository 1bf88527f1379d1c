//! What the session knows of the sources: one node per inode, one listing per directory.
//!
//! Listings are replaced whole by every re-list. All names, listings, link targets and extended attributes lie in one
//! heap, so that everything that the freeze may need room for can be reserved before: while the tree is *fixed*,
//! nothing here allocates, and what does not fit is [`NoRoom`].

use std::ffi::{CStr, OsStr};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::FileType;
use rustix::io::Errno;
use smallvec::SmallVec;

use crate::attributes::Attributes;
use crate::extents::Marks;

/// The number of a node; also kept in the inode's marks.
pub(crate) type NodeId = u32;

/// No node: the parent of a root.
pub(crate) const NO_NODE: NodeId = u32::MAX;

/// Nodes, heap bytes and list entries that one freeze may add.
const FREEZE_NODES: usize = 4096;
const FREEZE_HEAP: usize = 4 << 20;

/// A reservation made before the freeze was too small: the cut has to be tried again.
#[derive(Debug)]
pub(crate) struct NoRoom;

/// Where the copy of a node lies in the destination's staging area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placed {
    /// There is none (yet).
    No,
    /// At its name in the copy of its directory.
    In(NodeId, Text),
    /// In limbo, under its number.
    Limbo,
}

/// How far the copy of a node has come. Directories and what has no bytes are done when they have been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Copy {
    /// Not begun, or to be begun anew.
    Owed,
    /// A copier has it.
    Running,
    /// Complete but for the marks.
    Done,
}

/// A piece of the heap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Text {
    at: u32,
    len: u32,
}

impl Text {
    fn range(self) -> Range<usize> {
        self.at as usize..self.at as usize + self.len as usize
    }
}

/// Digests of a file's blocks: those of most files take no memory of their own.
pub(crate) type Digests = SmallVec<[u64; 2]>;

/// One inode of a source. There may be millions: what is seldom there is elsewhere, or small.
pub(crate) struct Node {
    pub(crate) marks: &'static Marks,
    pub(crate) attributes: Attributes,
    /// Tells this inode from another of the same number.
    pub(crate) handle: u64,
    /// The directory it was seen in last, and its name there.
    pub(crate) parent: NodeId,
    pub(crate) name: Text,
    /// Which pair it belongs to.
    pub(crate) pair: u16,
    /// In which pair's staging area its copy lies.
    pub(crate) pair_of_copy: u16,
    pub(crate) copy: Copy,
    /// Left out because it cannot be made.
    pub(crate) excluded: bool,
    /// Its inode number now belongs to another node.
    pub(crate) replaced: bool,
    /// It was seen at more than one place: it may have several names.
    pub(crate) linked: bool,
    /// It was not where it had been seen last. If it is seen again, it has to be dealt with.
    pub(crate) missing: bool,
    /// While it was missing its bytes may have changed unmarked.
    pub(crate) is_uncertain: bool,
    /// The last look at everything that has found it.
    pub(crate) looked_at: u32,
    /// It may be changed in ways that leave no trace: copied whole in the freeze.
    pub(crate) suspect: bool,
    /// It is changed all the time by something that is not captured, and the caller takes its copy as it is.
    pub(crate) conceded: bool,
    /// A directory that is to be listed again when the first walk has ended.
    pub(crate) put_off: bool,
    /// The host uses it with `O_DIRECT`, and so do we.
    pub(crate) direct: bool,
    pub(crate) placed: Placed,
    /// A directory's listing, or a symbolic link's target.
    pub(crate) content: Text,
    pub(crate) xattrs: Text,
    /// The size of its copy, which only the copier that has it changes.
    pub(crate) copied_size: u64,
    /// Digests of the copy's blocks, as far as they are known.
    pub(crate) digests: Digests,
    /// It is part of the backup, and goes where `parent` and `name` say: set by `reconcile`.
    pub(crate) wanted: bool,
}

// What each file takes (docs/benchmarks.md) is to grow on purpose only.
const _: () = assert!(size_of::<Node>() <= 176 && size_of::<Marks>() <= 104);

impl Node {
    pub(crate) fn kind(&self) -> FileType {
        self.attributes.kind
    }

    pub(crate) fn is_directory(&self) -> bool {
        self.kind() == FileType::Directory
    }

    pub(crate) fn is_file(&self) -> bool {
        self.kind() == FileType::RegularFile
    }
}

/// The name of one directory entry, on the stack.
#[derive(Clone, Copy)]
pub(crate) struct Name {
    bytes: [u8; 256],
    len: usize,
}

impl Name {
    pub(crate) fn new(name: &[u8]) -> Option<Name> {
        let mut bytes = [0; 256];
        bytes.get_mut(..name.len()).filter(|_| name.len() < 256)?.copy_from_slice(name);
        Some(Name { bytes, len: name.len() })
    }

    pub(crate) fn number(number: u32) -> Name {
        let mut name = Name { bytes: [0; 256], len: 0 };
        let mut digits = [0u8; 10];
        let mut at = digits.len();
        let mut left = number;
        loop {
            at -= 1;
            digits[at] = b'0' + (left % 10) as u8;
            left /= 10;
            if left == 0 {
                break;
            }
        }
        name.len = digits.len() - at;
        name.bytes[..name.len].copy_from_slice(&digits[at..]);
        name
    }

    pub(crate) fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes).unwrap_or_default()
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// All nodes of a session.
pub(crate) struct Tree {
    nodes: Vec<Node>,
    heap: Vec<u8>,
    fixed: bool,
    /// Heap bytes that nothing refers to any more.
    garbage: usize,
}

impl Tree {
    pub(crate) fn new() -> Tree {
        Tree { nodes: Vec::new(), heap: Vec::new(), fixed: false, garbage: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(crate) fn ids(&self) -> Range<NodeId> {
        0..self.nodes.len() as NodeId
    }

    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id as usize]
    }

    pub(crate) fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id as usize]
    }

    pub(crate) fn get(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id as usize)
    }

    /// Makes room for what a freeze may find, and allocates nothing from then on.
    pub(crate) fn fix(&mut self) {
        let longest =
            self.nodes.iter().filter(|n| n.is_directory()).map(|n| n.content.len).max().unwrap_or(0);
        self.nodes.reserve(FREEZE_NODES);
        self.heap.reserve(FREEZE_HEAP + 2 * longest as usize);
        self.fixed = true;
    }

    /// Allows allocating again.
    pub(crate) fn release(&mut self) {
        self.fixed = false;
    }

    pub(crate) fn is_fixed(&self) -> bool {
        self.fixed
    }

    pub(crate) fn add(&mut self, node: Node) -> Result<NodeId, NoRoom> {
        if self.fixed && self.nodes.len() == self.nodes.capacity() || self.nodes.len() >= NO_NODE as usize {
            return Err(NoRoom);
        }
        self.nodes.push(node);
        Ok((self.nodes.len() - 1) as NodeId)
    }

    pub(crate) fn text(&self, text: Text) -> &[u8] {
        &self.heap[text.range()]
    }

    pub(crate) fn name(&self, text: Text) -> Name {
        Name::new(self.text(text)).unwrap_or(Name { bytes: [0; 256], len: 0 })
    }

    /// Puts `bytes` on the heap.
    pub(crate) fn store(&mut self, bytes: &[u8]) -> Result<Text, NoRoom> {
        self.room(bytes.len())?;
        let at = self.heap.len();
        self.heap.extend_from_slice(bytes);
        Ok(Text { at: at as u32, len: bytes.len() as u32 })
    }

    /// Has `fill` append to the heap, within its capacity while the tree is fixed, what takes the place of `old`. If it is
    /// the same, `old` goes on.
    pub(crate) fn store_again(
        &mut self,
        old: Text,
        fill: impl FnOnce(&mut Vec<u8>, bool) -> Result<Range<usize>, Errno>,
    ) -> Result<Text, Errno> {
        let range = fill(&mut self.heap, self.fixed)?;
        if self.heap[range.clone()] == self.heap[old.range()] {
            self.heap.truncate(range.start);
            return Ok(old);
        }
        let end = u32::try_from(range.end).map_err(|_| Errno::NOMEM)?;
        self.garbage += old.len as usize;
        Ok(Text { at: range.start as u32, len: end - range.start as u32 })
    }

    fn room(&self, bytes: usize) -> Result<(), NoRoom> {
        let fits = !self.fixed || self.heap.capacity() - self.heap.len() >= bytes;
        if fits && self.heap.len() + bytes <= u32::MAX as usize { Ok(()) } else { Err(NoRoom) }
    }

    /// Makes `entries` the listing of `directory`, and every entry's node known by its place there.
    pub(crate) fn finish_listing(
        &mut self,
        directory: NodeId,
        entries: &[(NodeId, Text)],
    ) -> Result<(), NoRoom> {
        self.room(entries.len() * 12)?;
        let start = self.heap.len();
        for (id, name) in entries {
            self.heap.extend_from_slice(&id.to_le_bytes());
            self.heap.extend_from_slice(&name.at.to_le_bytes());
            self.heap.extend_from_slice(&name.len.to_le_bytes());
        }
        let pair = self.node(directory).pair;
        for &(id, name) in entries {
            let node = self.node_mut(id);
            node.parent = directory;
            node.name = name;
            node.pair = pair;
        }
        let len = self.heap.len() - start;
        let old = std::mem::replace(
            &mut self.node_mut(directory).content,
            Text { at: start as u32, len: len as u32 },
        );
        self.garbage += old.len as usize * 3;
        Ok(())
    }

    /// How many entries a node's listing has; none if it is no directory.
    pub(crate) fn entries(&self, directory: NodeId) -> usize {
        if !self.node(directory).is_directory() {
            return 0;
        }
        self.node(directory).content.len as usize / 12
    }

    /// One entry of a directory.
    pub(crate) fn entry(&self, directory: NodeId, index: usize) -> (NodeId, Text) {
        let at = self.node(directory).content.at as usize + index * 12;
        let entry = &self.heap[at..at + 12];
        (word(entry, 0), Text { at: word(entry, 1), len: word(entry, 2) })
    }

    /// Takes the entry `name` out of a directory's listing, if it is there.
    pub(crate) fn remove_entry(&mut self, directory: NodeId, name: &Name) {
        let count = self.entries(directory);
        let found = (0..count).find(|&index| self.text(self.entry(directory, index).1) == name.as_bytes());
        if let Some(index) = found {
            let content = self.node(directory).content;
            let (at, end) = (content.at as usize + index * 12, content.range().end);
            self.heap.copy_within(at + 12..end, at);
            self.node_mut(directory).content.len -= 12;
        }
    }

    /// Whether a node is `above`, or lies below it, by the places where they were seen last.
    pub(crate) fn lies_below(&self, id: NodeId, above: NodeId) -> bool {
        let mut at = id;
        for _ in 0..=self.nodes.len() {
            match self.get(at) {
                _ if at == above => return true,
                Some(node) => at = node.parent,
                None => return false,
            }
        }
        false
    }

    /// Which pair's source a node lies in, by the places where it and its directories were seen last.
    pub(crate) fn pair_of(&self, id: NodeId) -> usize {
        let mut at = id;
        for _ in 0..=self.nodes.len() {
            match self.get(at) {
                Some(node) if node.parent == NO_NODE => return node.pair as usize,
                Some(node) => at = node.parent,
                None => break,
            }
        }
        self.get(id).map_or(0, |node| node.pair as usize)
    }

    /// The path of a node below its source's root, as its last-seen places tell it. Writes it, with a NUL, to
    /// `buffer`, and returns its length without; `None` if it does not fit or leads nowhere.
    pub(crate) fn path_below(&self, id: NodeId, buffer: &mut Vec<u8>) -> Option<usize> {
        self.path_by(id, buffer, |node| Some((node.parent, node.name)))
    }

    /// Like [`Tree::path_below`], along the places that `place` tells; the root is where it says [`NO_NODE`].
    pub(crate) fn path_by(
        &self,
        id: NodeId,
        buffer: &mut Vec<u8>,
        place: impl Fn(&Node) -> Option<(NodeId, Text)>,
    ) -> Option<usize> {
        let capacity = buffer.capacity();
        let mut len = 0;
        let mut steps = 0;
        let mut at = id;
        loop {
            let (parent, name) = place(self.get(at)?)?;
            if parent == NO_NODE {
                break;
            }
            len += name.len as usize + 1;
            at = parent;
            steps += 1;
            if steps > self.nodes.len() {
                return None;
            }
        }
        if len + 1 > capacity {
            return None;
        }
        buffer.clear();
        buffer.resize(len + 1, 0);
        let mut end = len;
        let mut at = id;
        loop {
            let (parent, name) = place(self.get(at)?)?;
            if parent == NO_NODE {
                break;
            }
            buffer[end - 1] = 0;
            if end != len {
                buffer[end - 1] = b'/';
            }
            let start = end - 1 - name.len as usize;
            buffer[start..end - 1].copy_from_slice(self.text(name));
            end = start;
            at = parent;
        }
        buffer.truncate(len.max(1));
        if len == 0 {
            buffer[0] = 0;
        }
        Some(len.saturating_sub(1))
    }

    /// The path of a node below its source's root, for people. Allocates.
    pub(crate) fn display_path(&self, id: NodeId) -> PathBuf {
        let mut buffer = Vec::with_capacity(1 << 16);
        match self.path_below(id, &mut buffer) {
            Some(len) => PathBuf::from(OsStr::from_bytes(&buffer[..len])),
            None => PathBuf::from(format!("inode {}", self.node(id).marks.device_and_inode().1)),
        }
    }

    /// Gives back heap space that nothing refers to, when there is much of it.
    pub(crate) fn compact(&mut self) {
        if self.fixed || self.garbage < 8 << 20 || self.garbage < self.heap.len() / 2 {
            return;
        }
        let old = std::mem::take(&mut self.heap);
        let mut heap: Vec<u8> = Vec::with_capacity(old.len() / 2);
        let mut keep = |bytes: &[u8]| {
            let text = Text { at: heap.len() as u32, len: bytes.len() as u32 };
            heap.extend_from_slice(bytes);
            text
        };
        for node in &mut self.nodes {
            node.name = keep(&old[node.name.range()]);
            node.xattrs = keep(&old[node.xattrs.range()]);
            if let Placed::In(parent, name) = node.placed {
                node.placed = Placed::In(parent, keep(&old[name.range()]));
            }
            if !node.is_directory() {
                node.content = keep(&old[node.content.range()]);
                continue;
            }
            let mut listing = old[node.content.range()].to_vec();
            for entry in listing.chunks_exact_mut(12) {
                let name = keep(&old[Text { at: word(entry, 1), len: word(entry, 2) }.range()]);
                entry[4..8].copy_from_slice(&name.at.to_le_bytes());
                entry[8..].copy_from_slice(&name.len.to_le_bytes());
            }
            node.content = keep(&listing);
        }
        self.heap = heap;
        self.garbage = 0;
    }
}

/// The number at place `index` of a listing's entry.
fn word(entry: &[u8], index: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&entry[4 * index..4 * index + 4]);
    u32::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store_again(tree: &mut Tree, old: Text, bytes: &[u8]) -> Text {
        let fill = |heap: &mut Vec<u8>, _: bool| {
            let at = heap.len();
            heap.extend_from_slice(bytes);
            Ok(at..heap.len())
        };
        tree.store_again(old, fill).expect("room")
    }

    #[test]
    fn attributes_that_are_read_again_do_not_pile_up() {
        let mut tree = Tree::new();
        let first = store_again(&mut tree, Text::default(), b"user.x=1");
        let before = (tree.heap.len(), tree.garbage);
        assert_eq!(store_again(&mut tree, first, b"user.x=1"), first);
        assert_eq!((tree.heap.len(), tree.garbage), before);
        let second = store_again(&mut tree, first, b"user.x=22");
        assert_eq!((tree.text(first), tree.text(second)), (&b"user.x=1"[..], &b"user.x=22"[..]));
        assert_eq!(tree.garbage, before.1 + b"user.x=1".len());
    }
}
