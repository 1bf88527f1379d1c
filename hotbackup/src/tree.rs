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

use crate::attributes::Attributes;
use crate::digests::Digests;
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

/// A piece of the heap: where it begins. Its length stands there, seven bits a byte, the low ones first, and all of these
/// bytes but the last with the high bit set; then come its own. An empty one lies at the heap's beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Text(u32);

impl Text {
    /// Where its bytes lie.
    fn range(self, heap: &[u8]) -> Range<usize> {
        let (mut at, mut len, mut shift) = (self.0 as usize, 0, 0);
        loop {
            let byte = heap[at];
            len |= usize::from(byte & 0x7f) << shift;
            at += 1;
            shift += 7;
            if byte & 0x80 == 0 {
                return at..at + len;
            }
        }
    }

    fn bytes(self, heap: &[u8]) -> &[u8] {
        &heap[self.range(heap)]
    }

    fn to_le_bytes(self) -> [u8; 4] {
        self.0.to_le_bytes()
    }
}

/// How many bytes a length takes.
fn width(len: usize) -> usize {
    (usize::BITS - len.leading_zeros()).div_ceil(7).max(1) as usize
}

/// Writes a length into as many bytes as `place` has: at least its [`width`].
fn put_length(place: &mut [u8], len: usize) {
    let last = place.len() - 1;
    for (index, byte) in place.iter_mut().enumerate() {
        let more = if index < last { 0x80 } else { 0 };
        *byte = (len >> (7 * index)) as u8 & 0x7f | more;
    }
}

/// Appends the length of a text, whose bytes are to follow.
fn begin_text(heap: &mut Vec<u8>, len: usize) -> Text {
    if len == 0 {
        return Text::default();
    }
    let at = heap.len();
    heap.resize(at + width(len), 0);
    put_length(&mut heap[at..], len);
    Text(at as u32)
}

/// Appends `bytes`.
fn push_text(heap: &mut Vec<u8>, bytes: &[u8]) -> Text {
    let text = begin_text(heap, bytes.len());
    heap.extend_from_slice(bytes);
    text
}

/// Bytes of an entry in a directory's listing: the numbers of its node and of its name.
const ENTRY: usize = 8;

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
const _: () = assert!(size_of::<Node>() <= 144 && size_of::<Marks>() <= 80);

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
        Tree { nodes: Vec::new(), heap: vec![0], fixed: false, garbage: 0 }
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
        let directories = self.nodes.iter().filter(|n| n.is_directory());
        let longest = directories.map(|n| self.text(n.content).len()).max().unwrap_or(0);
        self.nodes.reserve(FREEZE_NODES);
        self.heap.reserve(FREEZE_HEAP + 2 * longest);
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
        text.bytes(&self.heap)
    }

    pub(crate) fn name(&self, text: Text) -> Name {
        Name::new(self.text(text)).unwrap_or(Name { bytes: [0; 256], len: 0 })
    }

    /// Puts `bytes` on the heap.
    pub(crate) fn store(&mut self, bytes: &[u8]) -> Result<Text, NoRoom> {
        self.room(width(bytes.len()) + bytes.len())?;
        Ok(push_text(&mut self.heap, bytes))
    }

    /// Has `fill` append to the heap, within its capacity while the tree is fixed, what takes the place of `old`. If it is
    /// the same, `old` goes on.
    pub(crate) fn store_again(
        &mut self,
        old: Text,
        fill: impl FnOnce(&mut Vec<u8>, bool) -> Result<Range<usize>, Errno>,
    ) -> Result<Text, Errno> {
        let range = fill(&mut self.heap, self.fixed)?;
        if self.heap[range.clone()] == *self.text(old) {
            self.heap.truncate(range.start);
            return Ok(old);
        }
        let garbage = self.garbage + self.text(old).len();
        if range.is_empty() {
            self.garbage = garbage;
            return Ok(Text::default());
        }
        let width = width(range.len());
        if self.room(width).is_err() {
            self.heap.truncate(range.start);
            return Err(Errno::NOMEM);
        }
        self.garbage = garbage;
        // The length goes before what is there.
        self.heap.resize(range.end + width, 0);
        self.heap.copy_within(range.clone(), range.start + width);
        put_length(&mut self.heap[range.start..range.start + width], range.len());
        Ok(Text(range.start as u32))
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
        let len = entries.len() * ENTRY;
        self.room(width(len) + len)?;
        let content = begin_text(&mut self.heap, len);
        for (id, name) in entries {
            self.heap.extend_from_slice(&id.to_le_bytes());
            self.heap.extend_from_slice(&name.to_le_bytes());
        }
        let pair = self.node(directory).pair;
        for &(id, name) in entries {
            let node = self.node_mut(id);
            node.parent = directory;
            node.name = name;
            node.pair = pair;
        }
        let old = std::mem::replace(&mut self.node_mut(directory).content, content);
        self.garbage += self.text(old).len() * 3;
        Ok(())
    }

    /// How many entries a node's listing has; none if it is no directory.
    pub(crate) fn entries(&self, directory: NodeId) -> usize {
        if !self.node(directory).is_directory() {
            return 0;
        }
        self.text(self.node(directory).content).len() / ENTRY
    }

    /// One entry of a directory.
    pub(crate) fn entry(&self, directory: NodeId, index: usize) -> (NodeId, Text) {
        let listing = self.text(self.node(directory).content);
        let entry = &listing[index * ENTRY..(index + 1) * ENTRY];
        (word(entry, 0), Text(word(entry, 1)))
    }

    /// Takes the entry `name` out of a directory's listing, if it is there.
    pub(crate) fn remove_entry(&mut self, directory: NodeId, name: &Name) {
        let count = self.entries(directory);
        let found = (0..count).find(|&index| self.text(self.entry(directory, index).1) == name.as_bytes());
        if let Some(index) = found {
            let content = self.node(directory).content;
            let range = content.range(&self.heap);
            let at = range.start + index * ENTRY;
            self.heap.copy_within(at + ENTRY..range.end, at);
            put_length(&mut self.heap[content.0 as usize..range.start], range.len() - ENTRY);
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
            len += self.text(name).len() + 1;
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
            let name = self.text(name);
            let start = end - 1 - name.len();
            buffer[start..end - 1].copy_from_slice(name);
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
        heap.push(0);
        let mut keep = |text: Text| push_text(&mut heap, text.bytes(&old));
        for node in &mut self.nodes {
            node.name = keep(node.name);
            node.xattrs = keep(node.xattrs);
            if let Placed::In(parent, name) = node.placed {
                node.placed = Placed::In(parent, keep(name));
            }
            if !node.is_directory() {
                node.content = keep(node.content);
            }
        }
        for node in self.nodes.iter_mut().filter(|node| node.is_directory()) {
            let mut listing = node.content.bytes(&old).to_vec();
            for entry in listing.chunks_exact_mut(ENTRY) {
                let name = push_text(&mut heap, Text(word(entry, 1)).bytes(&old));
                entry[4..].copy_from_slice(&name.to_le_bytes());
            }
            node.content = push_text(&mut heap, &listing);
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
    use rustix::fs::{AtFlags, CWD, statx};

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
    fn a_text_may_be_of_any_length() {
        let mut tree = Tree::new();
        for len in [0, 1, 127, 128, 255, 16_383, 16_384, 3 << 20] {
            let bytes = vec![len as u8 | 1; len];
            let (stored, read) =
                (tree.store(&bytes).expect("room"), store_again(&mut tree, Text::default(), &bytes));
            assert!(tree.text(stored) == bytes && tree.text(read) == bytes, "{len} bytes");
        }
    }

    #[test]
    fn a_fixed_tree_has_no_room_for_more_than_it_has_reserved() {
        let mut tree = Tree::new();
        let first = store_again(&mut tree, Text::default(), b"user.x=1");
        let left = b"user.x=2".len();
        tree.heap.reserve(left);
        while tree.heap.capacity() - tree.heap.len() > left {
            tree.heap.push(0);
        }
        tree.fixed = true;
        let (before, capacity) = (tree.heap.clone(), tree.heap.capacity());
        let read = |heap: &mut Vec<u8>, bytes: &[u8]| {
            let at = heap.len();
            heap.extend_from_slice(bytes);
            Ok(at..heap.len())
        };
        // The bytes fit, their length does not.
        let stored = tree.store_again(first, |heap, _| read(heap, b"user.x=2"));
        assert_eq!(stored, Err(Errno::NOMEM));
        assert!(tree.store(b"user.x=2").is_err());
        assert_eq!((&tree.heap, tree.heap.capacity(), tree.garbage), (&before, capacity, 0));
        assert_eq!(tree.store_again(first, |heap, _| read(heap, b"user.x=1")), Ok(first));
        assert_eq!(tree.store_again(first, |heap, _| read(heap, b"")), Ok(Text::default()));
        assert_eq!((&tree.heap, tree.heap.capacity()), (&before, capacity));
    }

    /// A directory of `entries` files, each named after the number of its node.
    fn directory(entries: u32) -> Tree {
        let mut tree = Tree::new();
        let ledger = Box::leak(Box::new(crate::extents::Ledger::new()));
        let found = statx(CWD, c"/", AtFlags::empty(), Attributes::WANTED);
        let attributes = Attributes::from_statx(&found.expect("the root"));
        for ino in 0..=entries {
            let marks = ledger.watch(1, ino.into()).expect("memory");
            let name = tree.store(ino.to_string().as_bytes()).expect("room");
            let parent = if ino == 0 { NO_NODE } else { 0 };
            let mut attributes = attributes;
            if ino != 0 {
                attributes.kind = FileType::RegularFile;
            }
            tree.add(crate::walk::new_node(marks, attributes, 0, parent, name, 0)).expect("room");
        }
        let listing: Vec<_> = (1..=entries).map(|id| (id, tree.node(id).name)).collect();
        tree.finish_listing(0, &listing).expect("room");
        tree
    }

    fn listed(tree: &Tree) -> Vec<(NodeId, Vec<u8>)> {
        let entry = |index| tree.entry(0, index);
        (0..tree.entries(0)).map(entry).map(|(id, name)| (id, tree.text(name).to_vec())).collect()
    }

    #[test]
    fn entries_are_taken_out_of_listings_and_names_survive_the_moving_of_the_heap() {
        let mut tree = directory(300);
        let mut expected: Vec<_> = (1..=300u32).map(|id| (id, id.to_string().into_bytes())).collect();
        assert_eq!(listed(&tree), expected);
        for gone in [1u32, 300, 150].into_iter().chain(2..=149).chain(151..290) {
            tree.remove_entry(0, &Name::new(gone.to_string().as_bytes()).expect("short"));
            expected.retain(|(id, _)| *id != gone);
            assert_eq!(listed(&tree), expected);
        }
        let [target, place] =
            ["a target", "an old name"].map(|text| tree.store(text.as_bytes()).expect("room"));
        let xattrs = store_again(&mut tree, Text::default(), b"user.x=1");
        let node = tree.node_mut(5);
        (node.content, node.xattrs, node.placed) = (target, xattrs, Placed::In(0, place));
        tree.store(&vec![b'x'; 20 << 20]).expect("room");
        tree.garbage += 20 << 20;
        let before = tree.heap.len();
        tree.compact();
        assert!(tree.heap.len() < before / 2, "nothing was given back");
        assert_eq!(listed(&tree), expected);
        let is_named = |id: NodeId| tree.text(tree.node(id).name) == id.to_string().as_bytes();
        assert!((1..=300).all(is_named), "a name is lost");
        let node = tree.node(5);
        let Placed::In(0, place) = node.placed else { panic!("{:?}", node.placed) };
        let kept = [node.content, node.xattrs, place].map(|text| tree.text(text));
        assert_eq!(kept, [&b"a target"[..], b"user.x=1", b"an old name"]);
        assert_eq!(tree.text(tree.node(6).xattrs), b"");
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
