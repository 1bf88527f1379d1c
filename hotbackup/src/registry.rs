//! Threads and inodes: every thread's slot, and which inodes a session watches.
//!
//! The inode table is only filled by the engine and only read by hooks. An inode is entered before the engine reads
//! anything of it; a hook looks it up after its call. So a hook that does not find an inode changed it before the
//! engine read it, and nothing is owed.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::async_io::AsyncIo;
use crate::crossings::Crossings;
use crate::extents::{Ledger, Marks};
use crate::gate::{Gate, Slot, Word};
use crate::mappings::Notes;
use crate::sys;
use crate::sys::mem::{AtomicRef, zeroed};

/// Tests that capture, or set the gate, do so one at a time.
#[cfg(test)]
pub(crate) static ALONE: parking_lot::Mutex<()> = parking_lot::Mutex::new(());

/// Threads that can have a slot at the same time.
const SLOTS: usize = 1 << 16;

static GATE: AtomicRef<Gate> = AtomicRef::none();
static SLOT_TABLE: AtomicRef<SlotTable> = AtomicRef::none();

zeroed! {
    struct SlotTable {
        slots: [Slot; SLOTS],
    }
}

/// Slots that were ever given out lie below this index.
static SLOTS_USED: AtomicUsize = AtomicUsize::new(0);

/// The gate, or `None` before any thread has had a slot.
#[inline(always)]
pub(crate) fn gate() -> Option<&'static Gate> {
    GATE.load(Ordering::Relaxed)
}

/// The calling thread's slot if it has one.
#[inline(always)]
pub(crate) fn known_slot() -> Option<&'static Slot> {
    sys::tls::with(|own| own.slot.get())
}

/// The calling thread's slot, which is made; `None` only if there is no memory or there are too many threads, which is counted.
#[inline(always)]
pub(crate) fn slot() -> Option<&'static Slot> {
    known_slot().or_else(first_slot)
}

#[cold]
#[inline(never)]
fn first_slot() -> Option<&'static Slot> {
    let slot = set_up().and_then(|table| claim_slot(&table.slots, sys::raw::gettid()));
    match slot {
        Some(_) => sys::tls::with(|own| own.slot.set(slot)),
        None => SLOTLESS.store(true, Ordering::Relaxed),
    }
    slot
}

/// Whether a thread could not have a slot since the session began: its calls cannot be waited for.
pub(crate) static SLOTLESS: AtomicBool = AtomicBool::new(false);

/// Maps the gate and the slots, once per process; lock-free, and safe in a signal handler.
fn set_up() -> Option<&'static SlotTable> {
    if GATE.load(Ordering::Acquire).is_none() {
        let _ = GATE.replace(None, Some(sys::mem::wiped_on_fork::<Gate>()?));
    }
    if let Some(table) = SLOT_TABLE.load(Ordering::Acquire) {
        return Some(table);
    }
    let table = sys::mem::reserve::<SlotTable>(1)?.first()?;
    match SLOT_TABLE.replace(None, Some(table)) {
        Ok(()) => Some(table),
        Err(winner) => winner,
    }
}

fn claim_slot(slots: &'static [Slot], tid: u32) -> Option<&'static Slot> {
    // At every power of two the slots of threads that have ended are looked for before new ones are taken.
    loop {
        let used = SLOTS_USED.load(Ordering::Acquire);
        if used >= 64 && used.is_power_of_two() || used >= slots.len() {
            let free = slots.iter().take(used).find(|slot| {
                let old = slot.tid();
                (old == tid || !sys::raw::thread_exists(old)) && slot.claim(old, tid)
            });
            if free.is_some() || used >= slots.len() {
                return free;
            }
        }
        if SLOTS_USED.compare_exchange(used, used + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            let slot = &slots[used];
            slot.claim(0, tid);
            return Some(slot);
        }
    }
}

/// Every slot that was ever given out.
fn slots() -> &'static [Slot] {
    let used = SLOTS_USED.load(Ordering::Acquire);
    SLOT_TABLE.load(Ordering::Acquire).map_or(&[], |table| &table.slots[..used.min(SLOTS)])
}

/// The threads that have slots, each with what its slot holds: it changes when the thread enters or leaves a call.
pub(crate) fn standing() -> impl Iterator<Item = (u32, u64)> {
    slots().iter().map(|slot| (slot.tid(), slot.word().0))
}

/// Captured calls of all sessions so far.
pub(crate) fn captured_calls() -> u64 {
    slots().iter().map(Slot::captured).sum()
}

/// Memory that outlives sessions.
static PERMANENT: sys::mem::Pool = sys::mem::Pool::new();

/// The path buffers of the thread in `slot`.
pub(crate) fn scratch(slot: &Slot) -> Option<&'static sys::scratch::Scratch> {
    slot.scratch(|| PERMANENT.one())
}

/// In a forked child: this thread lives on under another id.
pub(crate) extern "C" fn after_fork() {
    if let Some(slot) = sys::tls::with(|own| own.slot.get()) {
        slot.rename(sys::raw::gettid());
    }
}

/// Makes the gate and readies fork handling; called by whoever starts to capture, outside of any hook.
pub(crate) fn prepare() -> Option<&'static Gate> {
    static FORK: AtomicBool = AtomicBool::new(false);
    if !FORK.swap(true, Ordering::AcqRel) {
        sys::thread::after_fork_in_child(after_fork);
    }
    set_up()?;
    gate()
}

/// A thread that stays inside.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inside {
    pub(crate) tid: u32,
    pub(crate) word: Word,
}

/// Waits until no thread is inside a call that `matters`, at most until `deadline` says so. Threads that are gone are
/// cleared, and calls on something that no backup is about (sockets, pipes, terminals) are passed over.
pub(crate) fn wait_until_outside(
    matters: impl Fn(Word) -> bool,
    expired: impl Fn() -> bool,
) -> Result<(), Inside> {
    for slot in slots() {
        let mut tries = 0u32;
        loop {
            let word = slot.word();
            if word == Word::NOTHING || !matters(word) {
                break;
            }
            tries += 1;
            match tries {
                0..200 => std::hint::spin_loop(),
                200..264 => sys::thread::nap(Duration::from_micros(10)),
                _ => {
                    let tid = slot.tid();
                    if !sys::raw::thread_exists(tid) {
                        slot.repair(tid, sys::raw::thread_exists);
                    } else if word.may_be_passed_over() && is_beside_the_point(tid, word) {
                        break;
                    } else if expired() {
                        return Err(Inside { tid, word });
                    }
                    sys::thread::nap(Duration::from_micros(50));
                }
            }
        }
    }
    Ok(())
}

/// Whether a call may change a file, and so has to be outside when the gate is closed.
pub(crate) fn changes_files(word: Word) -> bool {
    !word.is_harmless()
}

/// Whether what `word` names is no file of anybody's: a call on it may take for ever and changes nothing of ours.
fn is_beside_the_point(tid: u32, word: Word) -> bool {
    let kind = if let Some(fd) = word.as_descriptor() {
        let kind = sys::raw::kind_of_descriptor(tid, fd);
        // A close that lingers has taken its descriptor away before.
        if word.is_harmless() && kind.is_none() {
            return true;
        }
        kind
    } else if let Some(path) = word.as_path() {
        sys::raw::kind_of_path(tid, path)
    } else if word.is_ring() && !word.knows_of_a_session() {
        // It began before the session. A call that knows of one does not wait inside.
        return sys::raw::waits_for_ends(tid);
    } else {
        None
    };
    use rustix::fs::FileType;
    matches!(kind, Some(FileType::Fifo | FileType::Socket | FileType::CharacterDevice))
}

/// Chains of the inode table.
const CHAINS: usize = 1 << 18;

zeroed! {
    /// The inodes that a session watches, hashed by number. Only the engine enters any.
    struct InodeTable {
        chains: [AtomicRef<Marks>; CHAINS],
    }
}

/// Counts calls of one kind, so that another call can tell whether it ran beside one.
pub(crate) struct Epoch {
    begun: AtomicU64,
    ended: AtomicU64,
}

/// A call that an [`Epoch`] counts, until this goes.
pub(crate) struct Counted<'a>(&'a Epoch);

impl Epoch {
    const fn new() -> Epoch {
        Epoch { begun: AtomicU64::new(0), ended: AtomicU64::new(0) }
    }

    /// A call of the kind begins.
    pub(crate) fn begin(&self) -> Counted<'_> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        Counted(self)
    }

    /// What [`Epoch::since`] takes.
    pub(crate) fn read(&self) -> u64 {
        self.ended.load(Ordering::SeqCst)
    }

    /// How many calls of the kind may have run since `before` was read: those that were under way and those that came.
    pub(crate) fn since(&self, before: u64) -> u64 {
        self.begun.load(Ordering::SeqCst).wrapping_sub(before)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::SeqCst);
    }
}

/// Descriptors share counters by their number's remainder: closing a socket does not disturb a write to a file, but with more
/// descriptors than most programs may have.
const DESCRIPTOR_EPOCHS: usize = 1 << 14;

/// What hooks and engine share while a session runs. One per process: there is one session at a time.
pub(crate) struct Watch {
    pub(crate) ledger: Ledger,
    inodes: AtomicRef<InodeTable>,
    /// Calls that end a descriptor: a write that ran beside one looks again at what it wrote to.
    descriptors: [Epoch; DESCRIPTOR_EPOCHS],
    /// Calls that end a range of descriptors.
    descriptor_ranges: Epoch,
    /// All calls that end descriptors.
    pub(crate) endings: Epoch,
    /// Calls that may move a descriptor's position backwards: a write at the position that ran beside one does not
    /// trust it.
    pub(crate) seeking: Epoch,
    /// Calls that take a name from what it stood for: a call on a file by path that ran beside one does not trust its
    /// look-up.
    pub(crate) names: Epoch,
    /// Which inodes such calls are about, and what changes could not be marked exactly.
    pub(crate) crossings: Crossings,
    /// Writes that go on after the call that began them.
    pub(crate) async_io: AsyncIo,
    /// Files that are mapped shared meanwhile.
    pub(crate) mapped: Notes,
    /// The lag over which calls wait, in bytes; `u64::MAX` is none.
    pub(crate) lag_bound: AtomicU64,
    /// Where the bound glides down to, in bytes; 0 if it stays.
    pub(crate) lag_floor: AtomicU64,
    /// Counts marks, for calls that wait until theirs is dealt with.
    pub(crate) marked: AtomicU64,
    /// What `marked` was when the engine last took the queue and dealt with all of it.
    pub(crate) drained: AtomicU64,
    /// Counts how often the engine has dealt with all of the queue that it took.
    pub(crate) rounds: AtomicU32,
    /// Changes whenever lag was worked off; those who wait for it sleep on it.
    pub(crate) relief: AtomicU32,
    pub(crate) waiters: AtomicU32,
    /// Changes when the engine should look at the queue at once; it sleeps on it.
    pub(crate) work: AtomicU32,
    /// Counts tries of the cut; changed only while everyone is outside.
    pub(crate) generation: AtomicU32,
    /// When the gate has to be open again, in nanoseconds of the monotonic clock.
    pub(crate) freeze_deadline_ns: AtomicU64,
    pub(crate) max_stall_ns: AtomicU64,
    /// How long a call had waited, in nanoseconds, when it gave up and failed the session; 0 if none did.
    pub(crate) stalled_ns: AtomicU64,
}

pub(crate) static WATCH: Watch = Watch {
    ledger: Ledger::new(),
    inodes: AtomicRef::none(),
    descriptors: [const { Epoch::new() }; DESCRIPTOR_EPOCHS],
    descriptor_ranges: Epoch::new(),
    endings: Epoch::new(),
    seeking: Epoch::new(),
    names: Epoch::new(),
    crossings: Crossings::new(),
    async_io: AsyncIo::new(),
    mapped: Notes::new(),
    lag_bound: AtomicU64::new(u64::MAX),
    lag_floor: AtomicU64::new(0),
    marked: AtomicU64::new(0),
    drained: AtomicU64::new(0),
    rounds: AtomicU32::new(0),
    relief: AtomicU32::new(0),
    waiters: AtomicU32::new(0),
    work: AtomicU32::new(0),
    generation: AtomicU32::new(0),
    freeze_deadline_ns: AtomicU64::new(0),
    max_stall_ns: AtomicU64::new(0),
    stalled_ns: AtomicU64::new(0),
};

impl Watch {
    /// Readies everything for a new session. Nobody is inside the gate with a view of an old one.
    pub(crate) fn reset(&self, max_stall: Duration) -> bool {
        self.inodes.store(None, Ordering::Release);
        self.ledger.recycle();
        let inodes = self.ledger.pool().one::<InodeTable>();
        self.inodes.store(inodes, Ordering::Release);
        self.lag_bound.store(u64::MAX, Ordering::Relaxed);
        self.lag_floor.store(0, Ordering::Relaxed);
        self.marked.store(0, Ordering::Relaxed);
        self.drained.store(0, Ordering::Relaxed);
        self.stalled_ns.store(0, Ordering::Relaxed);
        self.generation.store(0, Ordering::Relaxed);
        SLOTLESS.store(false, Ordering::Relaxed);
        let stall = u64::try_from(max_stall.as_nanos()).unwrap_or(u64::MAX);
        self.max_stall_ns.store(stall, Ordering::Relaxed);
        let pool = self.ledger.pool();
        inodes.is_some() && self.crossings.reset() && self.async_io.reset(pool) && self.mapped.reset(pool)
    }

    /// Counts a call that ends the descriptor `fd`, or any without one.
    pub(crate) fn count_ending(&self, fd: Option<i32>) -> [Counted<'_>; 2] {
        [self.endings.begin(), fd.map_or(&self.descriptor_ranges, |fd| self.endings_of(fd)).begin()]
    }

    fn endings_of(&self, fd: i32) -> &Epoch {
        &self.descriptors[fd.cast_unsigned() as usize % DESCRIPTOR_EPOCHS]
    }

    /// What [`Watch::endings_since`] takes.
    pub(crate) fn endings(&self, fd: i32) -> u64 {
        self.endings_of(fd).read().wrapping_add(self.descriptor_ranges.read())
    }

    /// How many calls may have ended the descriptor `fd` since `before` was read.
    pub(crate) fn endings_since(&self, fd: i32, before: u64) -> u64 {
        self.endings_of(fd).since(before).wrapping_add(self.descriptor_ranges.since(0))
    }

    fn chain(dev: u64, ino: u64) -> usize {
        let mixed = (ino ^ dev.rotate_left(40)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (mixed >> (64 - CHAINS.trailing_zeros())) as usize
    }

    /// The marks of an inode, if the session watches it.
    pub(crate) fn find(&self, dev: u64, ino: u64) -> Option<&'static Marks> {
        let inodes = self.inodes.load(Ordering::Acquire)?;
        let mut marks = inodes.chains[Self::chain(dev, ino)].load(Ordering::Acquire);
        while let Some(found) = marks {
            if found.is(dev, ino) {
                return Some(found);
            }
            marks = found.chained_after();
        }
        None
    }

    /// Watches an inode. Only the conductor calls this. `None` without memory.
    pub(crate) fn enter(&self, dev: u64, ino: u64) -> Option<&'static Marks> {
        let inodes = self.inodes.load(Ordering::Acquire)?;
        let marks = self.ledger.watch(dev, ino)?;
        let place = &inodes.chains[Self::chain(dev, ino)];
        marks.chain_before(place.load(Ordering::Relaxed));
        place.store(Some(marks), Ordering::Release);
        // Whatever the engine reads of the inode from now on, it reads behind this: see `Pending::mark`.
        std::sync::atomic::fence(Ordering::SeqCst);
        Some(marks)
    }

    /// Nanoseconds until the gate has to be open again.
    pub(crate) fn freeze_time_left(&self) -> Option<Duration> {
        let deadline = self.freeze_deadline_ns.load(Ordering::Acquire);
        match deadline.saturating_sub(sys::raw::monotonic_ns()) {
            0 => None,
            ns => Some(Duration::from_nanos(ns)),
        }
    }

    /// Lets those who wait for the lag look again.
    pub(crate) fn relieve(&self) {
        self.relief.fetch_add(1, Ordering::SeqCst);
        if self.waiters.load(Ordering::SeqCst) > 0 {
            crate::gate::wake(&self.relief);
        }
    }

    /// Has the engine look at the queue.
    pub(crate) fn call_for_work(&self) {
        self.work.fetch_add(1, Ordering::SeqCst);
        crate::gate::wake(&self.work);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn a_call_on_a_pipe_is_passed_over_unless_it_is_captured() {
        let _alone = ALONE.lock();
        let (output, _input) = std::io::pipe().expect("a pipe");
        let slot = slot().expect("a slot");
        let outside = || wait_until_outside(|word| word == slot.word(), || true);
        let inside = slot.enter(Word::descriptor(output.as_raw_fd()), crate::gate::here());
        outside().expect("nobody waits for a call on a pipe");
        inside.captured();
        outside().expect_err("in a vfork child the number may stand for a file");
    }
}
