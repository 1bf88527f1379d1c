//! What captured calls map while a session runs, until the engine takes note of it.
//!
//! Hooks write, in any thread and in signal handlers, without a lock; only the conductor takes. A note is made before its call
//! returns, so before the first store.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crate::sys::mem::{AtomicRef, Pool, zeroed};

/// Notes that there is room for between two looks.
pub(super) const ROOM: usize = 512;

const FREE: u32 = 0;
const BEING_WRITTEN: u32 = 1;
const WRITTEN: u32 = 2;

zeroed! {
    struct Note {
        state: AtomicU32,
        dev: AtomicU64,
        ino: AtomicU64,
        start: AtomicU64,
        end: AtomicU64,
        offset: AtomicU64,
    }
}

zeroed! {
    struct Page {
        notes: [Note; ROOM],
    }
}

/// The notes of a session.
pub(crate) struct Notes {
    page: AtomicRef<Page>,
    /// How many were made, also those that there was no room for.
    count: AtomicU32,
    /// One was not made.
    lost: AtomicBool,
    /// The program wants to watch memory itself; and the engine has made way for it.
    called_off: AtomicBool,
    made_way: AtomicBool,
}

impl Notes {
    pub(crate) const fn new() -> Notes {
        Notes {
            page: AtomicRef::none(),
            count: AtomicU32::new(0),
            lost: AtomicBool::new(false),
            called_off: AtomicBool::new(false),
            made_way: AtomicBool::new(false),
        }
    }

    /// Readies everything for a new session; false without memory.
    pub(crate) fn reset(&self, pool: &Pool) -> bool {
        for flag in [&self.lost, &self.called_off, &self.made_way] {
            flag.store(false, Ordering::Relaxed);
        }
        self.page.store(pool.one::<Page>(), Ordering::Release);
        self.page.load(Ordering::Relaxed).is_some()
    }

    pub(crate) fn count(&self) -> u32 {
        self.count.load(Ordering::SeqCst)
    }

    /// Notes that `file` (device and inode; `None` if it is not known) was mapped at `range`, from its byte `offset` on.
    pub(super) fn note(&self, file: Option<(u64, u64)>, range: Range<u64>, offset: u64) {
        let place = self.page.load(Ordering::Acquire).and_then(|page| page.notes.iter().find(|n| n.claim()));
        match (place, file) {
            (Some(note), Some((dev, ino))) => note.write(dev, ino, range, offset),
            (place, _) => {
                place.into_iter().for_each(|note| note.state.store(FREE, Ordering::Release));
                self.lost.store(true, Ordering::SeqCst);
            }
        }
        self.count.fetch_add(1, Ordering::SeqCst);
    }

    /// Has the engine watch nothing any more in this session. Whether it has stopped is for [`Notes::has_made_way`] to say.
    pub(super) fn call_off(&self) {
        self.called_off.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_called_off(&self) -> bool {
        self.called_off.load(Ordering::SeqCst)
    }

    pub(super) fn make_way(&self) {
        self.made_way.store(true, Ordering::SeqCst);
    }

    pub(super) fn has_made_way(&self) -> bool {
        self.made_way.load(Ordering::SeqCst)
    }

    /// Takes all notes; false if some were not made.
    pub(super) fn take(&self, mut with: impl FnMut((u64, u64), Range<u64>, u64)) -> bool {
        for note in self.page.load(Ordering::Acquire).iter().flat_map(|page| &page.notes) {
            if note.state.load(Ordering::Acquire) == WRITTEN {
                let read = |word: &AtomicU64| word.load(Ordering::Relaxed);
                let range = read(&note.start)..read(&note.end);
                with((read(&note.dev), read(&note.ino)), range, read(&note.offset));
                note.state.store(FREE, Ordering::Release);
            }
        }
        !self.lost.swap(false, Ordering::SeqCst)
    }
}

impl Note {
    fn claim(&self) -> bool {
        self.state.compare_exchange(FREE, BEING_WRITTEN, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    fn write(&self, dev: u64, ino: u64, range: Range<u64>, offset: u64) {
        let store = |word: &AtomicU64, value| word.store(value, Ordering::Relaxed);
        store(&self.dev, dev);
        store(&self.ino, ino);
        store(&self.start, range.start);
        store(&self.end, range.end);
        store(&self.offset, offset);
        self.state.store(WRITTEN, Ordering::Release);
    }
}
