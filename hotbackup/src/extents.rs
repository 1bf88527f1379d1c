//! What one inode still owes the destination.
//!
//! [`Marks`] is a bitmap of blocks and a tail (everything from an offset to the end of the file), which both are made with the
//! first mark of bytes, and flags for attributes and directory entries. A hook marks after its call has returned; the engine clears a mark before it reads
//! what is marked, so that a change during the read marks it again. Everything is done by unconditional atomic
//! read-modify-writes in memory of our own: a signal handler may mark while its thread is marking.
//!
//! Invariants: an inode with a mark is in the [`Queue`] or about to be put there by whoever marked it. Marking too
//! much is always right.

use std::ops::Range;

use crate::sys::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
use crate::sys::mem::{AtomicRef, zeroed};
#[cfg(not(loom))]
use crate::sys::mem::{Pool, Zeroed};

/// The size of a block that a mark stands for.
pub(crate) const BLOCK: u64 = 4096;
/// Blocks that the first word covers: all of a small file.
const FIRST: u64 = 64;
/// Words in a leaf; with [`BLOCK`] a leaf covers 128 MiB.
const LEAF_WORDS: usize = 512;
const LEAF_BLOCKS: u64 = LEAF_WORDS as u64 * 64;
/// Leaves in a root, which so covers 32 GiB.
const ROOT_LEAVES: usize = 256;
/// Roots that a file may have; beyond 4 TiB there is only the tail.
const ROOTS: u64 = 128;

/// The inode is in the queue.
const QUEUED: u32 = 1 << 0;
/// Mode, owner, times or extended attributes may have changed.
pub(crate) const ATTRIBUTES: u32 = 1 << 1;
/// What does not move the time of the last write may have changed: names, or attributes, if a call has missed its inode.
pub(crate) const EXAMINE: u32 = 1 << 4;
/// Bytes were marked since the inode was examined last, also if they have been copied since.
pub(crate) const DATA: u32 = 1 << 5;
/// The directory's entries may have changed.
pub(crate) const ENTRIES: u32 = 1 << 2;
/// A stream of the C library that wrote the file was closed. Stays set for the session.
pub(crate) const STREAM: u32 = 1 << 6;
/// All bytes are marked, since there was no memory for saying which.
const WHOLE: u32 = 1 << 7;
/// The inode was marked at some time in this session: that it is young is explained.
const MARKED: u32 = 1 << 3;

/// What the audit compares: times and size as they were before the data was read last (of a pipe or a device, mode and
/// owner).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) size: u64,
    /// Nanoseconds since the epoch.
    pub(crate) mtime: i64,
    pub(crate) ctime: i64,
}

zeroed! {
    /// The marks of one inode. Zeroed memory is an inode without marks.
    pub(crate) struct Marks {
        dev: AtomicU32,
        ino: AtomicU64,
        flags: AtomicU32,
        /// The engine's number for what this inode is now.
        node: AtomicU32,
        /// Twice the number of dirty blocks, plus one if they count for the lag.
        dirty: AtomicU64,
        /// Which bytes are marked; none if none ever were, as in most files.
        bytes: AtomicRef<Bytes>,
        size: AtomicU64,
        mtime: AtomicI64,
        ctime: AtomicI64,
        /// Twice the generation of the cut that this inode was audited for, plus one if it was found changed.
        audited: AtomicU32,
        next: AtomicRef<Marks>,
        chain: AtomicRef<Marks>,
    }
}

zeroed! {
    /// Which bytes of one inode are marked.
    struct Bytes {
        first: AtomicU64,
        /// The complement of the offset from which on everything is marked; 0 is no tail.
        tail: AtomicU64,
        /// The dirty blocks that the tail stands for.
        tail_dirty: AtomicU64,
        leaves: AtomicRef<Root>,
    }
}

/// A device number, of which the kernel has 12 bits for the major and 20 for the minor number (kdev_t.h), in one word of 32.
fn short(dev: u64) -> Option<u32> {
    let (major, minor) = (dev >> 32, dev & u64::from(u32::MAX));
    (major < 1 << 12 && minor < 1 << 20).then_some((major << 20 | minor) as u32)
}

fn long(short: u32) -> u64 {
    u64::from(short >> 20) << 32 | u64::from(short & ((1 << 20) - 1))
}

/// The marks of 128 MiB.
type Leaf = [AtomicU64; LEAF_WORDS];

zeroed! {
    /// The leaves of 32 GiB, and the way to those of the next.
    pub(crate) struct Root {
        leaves: [AtomicRef<Leaf>; ROOT_LEAVES],
        next: AtomicRef<Root>,
    }
}

/// What marking needs beyond the inode: memory, the queue, the lag.
pub(crate) struct Ledger {
    #[cfg(not(loom))]
    pool: Pool,
    #[cfg(loom)]
    has_memory: bool,
    queue: AtomicRef<Marks>,
    lag_blocks: AtomicI64,
}

impl Ledger {
    #[cfg(not(loom))]
    pub(crate) const fn new() -> Ledger {
        Ledger { pool: Pool::new(), queue: AtomicRef::none(), lag_blocks: AtomicI64::new(0) }
    }

    #[cfg(loom)]
    pub(crate) fn new() -> Ledger {
        Ledger::with(true)
    }

    #[cfg(loom)]
    pub(crate) fn with(has_memory: bool) -> Ledger {
        Ledger { has_memory, queue: AtomicRef::none(), lag_blocks: AtomicI64::new(0) }
    }

    /// Bytes that inodes already copied owe the destination.
    pub(crate) fn lag(&self) -> u64 {
        u64::try_from(self.lag_blocks.load(Ordering::Relaxed)).unwrap_or(0) * BLOCK
    }
}

#[cfg(not(loom))]
impl Ledger {
    /// Memory of the session; gone with [`Ledger::recycle`].
    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Marks for one inode, or `None` when there is no memory.
    pub(crate) fn watch(&self, dev: u64, ino: u64) -> Option<&'static Marks> {
        let marks = self.pool.one::<Marks>()?;
        marks.dev.store(short(dev)?, Ordering::Relaxed);
        marks.ino.store(ino, Ordering::Relaxed);
        Some(marks)
    }

    /// Forgets everything. Nobody may be marking any more.
    pub(crate) fn recycle(&self) {
        self.queue.store(None, Ordering::Release);
        self.lag_blocks.store(0, Ordering::Relaxed);
        self.pool.recycle();
    }
}

impl Ledger {
    /// Takes every queued inode at once; follow [`Marks::queued_after`].
    pub(crate) fn take_queue(&self) -> Option<&'static Marks> {
        self.queue.swap(None, Ordering::AcqRel)
    }

    pub(crate) fn queue_is_empty(&self) -> bool {
        self.queue.load(Ordering::Acquire).is_none()
    }

    fn enqueue(&self, marks: &'static Marks) {
        let mut head = self.queue.load(Ordering::Acquire);
        loop {
            marks.next.store(head, Ordering::Relaxed);
            match self.queue.replace(head, Some(marks)) {
                Ok(()) => return,
                Err(now) => head = now,
            }
        }
    }
}

impl Marks {
    #[cfg(loom)]
    pub(crate) fn new() -> Marks {
        let word = || AtomicU64::new(0);
        Marks {
            dev: AtomicU32::new(0),
            ino: word(),
            flags: AtomicU32::new(0),
            node: AtomicU32::new(0),
            dirty: word(),
            bytes: AtomicRef::none(),
            size: word(),
            mtime: AtomicI64::new(0),
            ctime: AtomicI64::new(0),
            audited: AtomicU32::new(0),
            next: AtomicRef::none(),
            chain: AtomicRef::none(),
        }
    }

    pub(crate) fn is(&self, dev: u64, ino: u64) -> bool {
        Some(self.dev.load(Ordering::Relaxed)) == short(dev) && self.ino.load(Ordering::Relaxed) == ino
    }

    /// The inode behind this one in the registry's chain.
    pub(crate) fn chained_after(&self) -> Option<&'static Marks> {
        self.chain.load(Ordering::Acquire)
    }

    /// Puts this inode before `next` in the registry's chain.
    pub(crate) fn chain_before(&self, next: Option<&'static Marks>) {
        self.chain.store(next, Ordering::Release);
    }

    pub(crate) fn device_and_inode(&self) -> (u64, u64) {
        (long(self.dev.load(Ordering::Relaxed)), self.ino.load(Ordering::Relaxed))
    }

    pub(crate) fn node(&self) -> u32 {
        self.node.load(Ordering::Relaxed)
    }

    pub(crate) fn set_node(&self, node: u32) {
        self.node.store(node, Ordering::Relaxed);
    }

    pub(crate) fn stamp(&self) -> Stamp {
        Stamp {
            size: self.size.load(Ordering::Relaxed),
            mtime: self.mtime.load(Ordering::Relaxed),
            ctime: self.ctime.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn set_stamp(&self, stamp: Stamp) {
        self.size.store(stamp.size, Ordering::Relaxed);
        self.mtime.store(stamp.mtime, Ordering::Relaxed);
        self.ctime.store(stamp.ctime, Ordering::Relaxed);
    }

    /// The audit's finding for the cut `generation`: whether something unseen had changed this inode.
    pub(crate) fn audited(&self, generation: u32) -> Option<bool> {
        let word = self.audited.load(Ordering::SeqCst);
        (word >> 1 == generation).then_some(word & 1 == 1)
    }

    /// Notes the audit's finding for the cut `generation`.
    pub(crate) fn set_audited(&self, generation: u32, unseen: bool) {
        self.audited.store(generation << 1 | u32::from(unseen), Ordering::SeqCst);
    }

    /// Whether any of `flags` is set.
    pub(crate) fn has(&self, flags: u32) -> bool {
        self.flags.load(Ordering::Acquire) & flags != 0
    }

    /// Clears `flags` and says which of them were set.
    pub(crate) fn take(&self, flags: u32) -> u32 {
        self.flags.fetch_and(!flags, Ordering::AcqRel) & flags
    }

    /// Counts the blocks dirty from now on for the lag, as well as those that are.
    pub(crate) fn count_for_lag(&self, ledger: &Ledger) {
        let before = self.dirty.fetch_or(1, Ordering::AcqRel);
        if before & 1 == 0 {
            ledger.lag_blocks.fetch_add(before.cast_signed() >> 1, Ordering::Relaxed);
        }
    }

    /// No longer counts this inode for the lag: it is being copied from scratch.
    pub(crate) fn discount(&self, ledger: &Ledger) {
        let before = self.dirty.fetch_and(!1, Ordering::AcqRel);
        if before & 1 == 1 {
            ledger.lag_blocks.fetch_sub(before.cast_signed() >> 1, Ordering::Relaxed);
        }
    }

    /// Whether any of the lag is this inode's.
    pub(crate) fn owes_lag(&self) -> bool {
        let dirty = self.dirty.load(Ordering::Acquire);
        dirty & 1 == 1 && dirty >> 1 != 0
    }

    fn add_dirty(&self, ledger: &Ledger, blocks: i64) {
        if blocks != 0 {
            let before = self.dirty.fetch_add((blocks << 1).cast_unsigned(), Ordering::AcqRel);
            if before & 1 == 1 {
                ledger.lag_blocks.fetch_add(blocks, Ordering::Relaxed);
            }
        }
    }

    /// Marks the bytes `from..to`.
    pub(crate) fn mark_range(&'static self, ledger: &Ledger, from: u64, to: u64) {
        if from >= to {
            return;
        }
        let Some(bytes) = self.bytes_or_make(ledger) else { return self.mark_whole(ledger) };
        let (mut block, end) = (from / BLOCK, to.div_ceil(BLOCK));
        while block < end {
            let bit = block % 64;
            let count = (64 - bit).min(end - block);
            let Some(word) = bytes.word(block, Some(ledger)) else {
                return self.mark_tail(ledger, block * BLOCK, (end - block) * BLOCK);
            };
            let mask = (u64::MAX >> (64 - count)) << bit;
            let fresh = mask & !word.fetch_or(mask, Ordering::AcqRel);
            self.add_dirty(ledger, i64::from(fresh.count_ones()));
            block += count;
        }
        self.queue(ledger, DATA);
    }

    /// Marks one of the first blocks, and queues nothing.
    #[cfg(test)]
    pub(crate) fn mark_unqueued(&self, ledger: &Ledger, block: u64) {
        let mask = 1 << block;
        let bytes = self.bytes_or_make(ledger).expect("memory");
        let fresh = mask & !bytes.first.fetch_or(mask, Ordering::AcqRel);
        self.add_dirty(ledger, i64::from(fresh.count_ones()));
    }

    /// Marks everything from `from` to the end of the file; `len` bytes of it are new.
    pub(crate) fn mark_tail(&'static self, ledger: &Ledger, from: u64, len: u64) {
        let Some(bytes) = self.bytes_or_make(ledger) else { return self.mark_whole(ledger) };
        let blocks = len.div_ceil(BLOCK).max(1);
        // `take_tail` goes the other way round, so that a tail that is owed always counts for the lag.
        bytes.tail.fetch_max(!from, Ordering::AcqRel);
        bytes.tail_dirty.fetch_add(blocks, Ordering::AcqRel);
        self.add_dirty(ledger, blocks.cast_signed());
        self.queue(ledger, DATA);
    }

    /// Marks everything without any memory. As with the tail, what is owed always counts for the lag.
    #[cold]
    fn mark_whole(&'static self, ledger: &Ledger) {
        self.add_dirty(ledger, 1);
        if self.flags.fetch_or(WHOLE, Ordering::AcqRel) & WHOLE != 0 {
            self.add_dirty(ledger, -1);
        }
        self.queue(ledger, DATA);
    }

    /// Marks everything.
    pub(crate) fn mark_all(&'static self, ledger: &Ledger) {
        let len = self.size.load(Ordering::Relaxed);
        self.mark_tail(ledger, 0, len);
    }

    /// Marks attributes or entries.
    pub(crate) fn mark_flags(&'static self, ledger: &Ledger, flags: u32) {
        self.queue(ledger, flags);
    }

    fn queue(&'static self, ledger: &Ledger, flags: u32) {
        let before = self.flags.fetch_or(flags | QUEUED | MARKED, Ordering::AcqRel);
        if before & QUEUED == 0 {
            ledger.enqueue(self);
        }
    }

    /// Takes this inode out of the queue's count, so that the next mark queues it again. To be called before its marks
    /// are cleared.
    pub(crate) fn unqueue(&self) -> bool {
        self.take(QUEUED) != 0
    }

    /// Whether anything of this inode was ever marked in this session.
    pub(crate) fn was_marked(&self) -> bool {
        self.flags.load(Ordering::Acquire) & MARKED != 0
    }

    /// The inode queued before this one. To be read before [`Marks::unqueue`]: from then on a hook may queue this
    /// inode again, with another one behind it.
    pub(crate) fn queued_after(&self) -> Option<&'static Marks> {
        self.next.load(Ordering::Relaxed)
    }

    /// Clears the tail mark and returns where it began.
    pub(crate) fn take_tail(&self, ledger: &Ledger) -> Option<u64> {
        let whole = self.take(WHOLE) != 0;
        if whole {
            self.add_dirty(ledger, -1);
        }
        let tail = self.bytes().map_or(0, |bytes| {
            let blocks = bytes.tail_dirty.swap(0, Ordering::AcqRel);
            let tail = bytes.tail.swap(0, Ordering::AcqRel);
            self.add_dirty(ledger, -blocks.cast_signed());
            tail
        });
        match tail {
            _ if whole => Some(0),
            0 => None,
            tail => Some(!tail),
        }
    }

    /// Clears the next run of marked blocks at or behind the byte `from` and before `limit`, at most `most` bytes long,
    /// and returns it.
    pub(crate) fn take_run(&self, ledger: &Ledger, from: u64, limit: u64, most: u64) -> Option<Range<u64>> {
        let bytes = self.bytes()?;
        let end = limit.div_ceil(BLOCK);
        let mut block = bytes.next_marked(from / BLOCK, end)?;
        let start = block;
        let stop = end.min(start + (most / BLOCK).max(1));
        while block < stop {
            let Some(word) = bytes.word(block, None) else {
                break;
            };
            let bit = block % 64;
            let room = (64 - bit).min(stop - block);
            let set = word.load(Ordering::Acquire) >> bit;
            let count = u64::from(set.trailing_ones()).min(room);
            if count == 0 {
                break;
            }
            let mask = (u64::MAX >> (64 - count)) << bit;
            let taken = mask & word.fetch_and(!mask, Ordering::AcqRel);
            self.add_dirty(ledger, -i64::from(taken.count_ones()));
            block += count;
            if count < room {
                break;
            }
        }
        Some(start * BLOCK..block * BLOCK)
    }

    /// Clears all block marks that lie wholly in `range`, which is about to be read.
    pub(crate) fn clear(&self, ledger: &Ledger, range: Range<u64>) {
        let mut from = range.start.next_multiple_of(BLOCK);
        let limit = range.end / BLOCK * BLOCK;
        while from < limit {
            match self.take_run(ledger, from, limit, limit - from) {
                Some(run) => from = run.end,
                None => break,
            }
        }
    }

    /// Whether data is marked at all.
    pub(crate) fn owes_data(&self) -> bool {
        self.has(WHOLE) || self.bytes().is_some_and(Bytes::owe)
    }

    /// A mark that is not seen here, since what holds it is not, is in an inode that is yet to be queued.
    fn bytes(&self) -> Option<&'static Bytes> {
        self.bytes.load(Ordering::Acquire)
    }

    fn bytes_or_make(&self, ledger: &Ledger) -> Option<&'static Bytes> {
        self.bytes().or_else(|| get_or_make(&self.bytes, ledger))
    }
}

impl Bytes {
    fn owe(&self) -> bool {
        self.tail.load(Ordering::Acquire) != 0 || self.next_marked(0, u64::MAX / BLOCK).is_some()
    }

    fn next_marked(&self, from: u64, end: u64) -> Option<u64> {
        let mut block = from;
        while block < end {
            if block >= FIRST && block.is_multiple_of(LEAF_BLOCKS) || block == FIRST {
                block = self.next_leaf(block)?;
                if block >= end {
                    return None;
                }
            }
            let set = self.word(block, None).map_or(0, |w| w.load(Ordering::Acquire)) >> (block % 64);
            if set != 0 {
                block += u64::from(set.trailing_zeros());
                return (block < end).then_some(block);
            }
            block = (block / 64 + 1) * 64;
        }
        None
    }
}

#[cfg(loom)]
impl Bytes {
    fn word(&self, block: u64, _make: Option<&Ledger>) -> Option<&AtomicU64> {
        (block < FIRST).then_some(&self.first)
    }

    fn next_leaf(&self, _block: u64) -> Option<u64> {
        None
    }
}

#[cfg(not(loom))]
impl Bytes {
    /// The word that holds the mark of `block`; made if it is missing and there is a ledger to `make` it from. `None` without
    /// memory, or beyond what leaves cover.
    fn word(&self, block: u64, make: Option<&Ledger>) -> Option<&AtomicU64> {
        if block < FIRST {
            return Some(&self.first);
        }
        let (leaf, within) = (block / LEAF_BLOCKS, block % LEAF_BLOCKS);
        let root = self.root(leaf / ROOT_LEAVES as u64, make)?;
        let place = &root.leaves[(leaf % ROOT_LEAVES as u64) as usize];
        let leaf = match (place.load(Ordering::Acquire), make) {
            (Some(leaf), _) => leaf,
            (None, Some(ledger)) => get_or_make(place, ledger)?,
            (None, None) => return None,
        };
        Some(&leaf[(within / 64) as usize])
    }

    fn root(&self, index: u64, make: Option<&Ledger>) -> Option<&'static Root> {
        if index >= ROOTS {
            return None;
        }
        let mut place = &self.leaves;
        let mut left = index;
        loop {
            let root = match (place.load(Ordering::Acquire), make) {
                (Some(root), _) => root,
                (None, Some(ledger)) => get_or_make(place, ledger)?,
                (None, None) => return None,
            };
            if left == 0 {
                return Some(root);
            }
            left -= 1;
            place = &root.next;
        }
    }

    /// The first block at or behind `block`, which begins a leaf, that a leaf exists for.
    fn next_leaf(&self, block: u64) -> Option<u64> {
        let mut leaf = block / LEAF_BLOCKS;
        let mut index = leaf / ROOT_LEAVES as u64;
        let mut root = self.root(index, None)?;
        loop {
            for i in (leaf % ROOT_LEAVES as u64)..ROOT_LEAVES as u64 {
                if root.leaves[i as usize].load(Ordering::Acquire).is_some() {
                    return Some(((index * ROOT_LEAVES as u64 + i) * LEAF_BLOCKS).max(block));
                }
            }
            root = root.next.load(Ordering::Acquire)?;
            index += 1;
            leaf = 0;
        }
    }
}

#[cfg(not(loom))]
fn get_or_make<T: Zeroed>(place: &AtomicRef<T>, ledger: &Ledger) -> Option<&'static T> {
    let fresh = ledger.pool.one::<T>()?;
    match place.replace(None, Some(fresh)) {
        Ok(()) => Some(fresh),
        Err(winner) => winner,
    }
}

#[cfg(loom)]
fn get_or_make(place: &AtomicRef<Bytes>, ledger: &Ledger) -> Option<&'static Bytes> {
    if !ledger.has_memory {
        return None;
    }
    let word = || AtomicU64::new(0);
    let fresh = Bytes { first: word(), tail: word(), tail_dirty: word(), leaves: AtomicRef::none() };
    let fresh: &'static Bytes = Box::leak(Box::new(fresh));
    match place.replace(None, Some(fresh)) {
        Ok(()) => Some(fresh),
        Err(winner) => winner,
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
