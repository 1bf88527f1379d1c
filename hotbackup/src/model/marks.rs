//! Hooks that mark against engine threads that clear, read and write.

use loom::sync::Mutex;
use loom::sync::atomic::{AtomicU32, Ordering, fence};
use loom::thread;

use super::{Block, check, forever};
use crate::extents::{BLOCK, ENTRIES, Ledger, Marks};

/// A file of two blocks, what it owes, and its copy.
struct File {
    marks: &'static Marks,
    source: [Block; 2],
    copy: [Block; 2],
    claim: Mutex<()>,
}

impl File {
    fn new() -> &'static File {
        forever(File {
            marks: forever(Marks::new()),
            source: [Block::new(), Block::new()],
            copy: [Block::new(), Block::new()],
            claim: Mutex::new(()),
        })
    }

    /// A hook: the change comes first, the mark second.
    fn write(&self, ledger: &Ledger, block: usize, value: u32) {
        self.source[block].write(value);
        let at = block as u64 * BLOCK;
        self.marks.mark_range(ledger, at, at + BLOCK);
    }

    /// A hook that appends: the tail from `block` on.
    fn append(&self, ledger: &Ledger, block: usize, value: u32) {
        self.source[block].write(value);
        self.marks.mark_tail(ledger, block as u64 * BLOCK, BLOCK);
    }

    /// The engine: clears the marks first, reads second.
    fn copy_marked(&self, ledger: &Ledger) {
        if let Some(from) = self.marks.take_tail(ledger) {
            self.copy_blocks(from..2 * BLOCK);
        }
        let mut from = 0;
        while let Some(run) = self.marks.take_run(ledger, from, 2 * BLOCK, 2 * BLOCK) {
            from = run.end.max(from + BLOCK);
            self.copy_blocks(run);
        }
    }

    fn copy_blocks(&self, range: std::ops::Range<u64>) {
        for block in (range.start / BLOCK)..(range.end / BLOCK) {
            self.copy[block as usize].write(self.source[block as usize].read());
        }
    }

    fn assert_copied(&self) {
        for (source, copy) in self.source.iter().zip(&self.copy) {
            assert_eq!(source.read(), copy.read(), "a change was lost");
        }
    }
}

/// The engine works off the queue once; `next_first` is how it has to follow it.
fn drain(ledger: &Ledger, files: &[&'static File], next_first: bool) {
    let mut queued = ledger.take_queue();
    while let Some(marks) = queued {
        let next = marks.queued_after();
        marks.unqueue();
        for file in files.iter().filter(|file| std::ptr::eq(file.marks, marks)) {
            file.copy_marked(ledger);
        }
        queued = if next_first { next } else { marks.queued_after() };
    }
}

/// Everybody is outside: what is drained now is the last.
fn assert_drained(ledger: &Ledger, files: &[&'static File]) {
    drain(ledger, files, true);
    for file in files {
        file.assert_copied();
        assert!(!file.marks.owes_data(), "a mark is not in the queue");
    }
    assert_eq!(ledger.lag(), 0, "the lag does not come to zero");
}

#[test]
fn a_change_beside_the_copying_is_copied_again() {
    check(3, || {
        let (ledger, file) = (forever(Ledger::new()), File::new());
        file.marks.count_for_lag(ledger);
        let host = thread::spawn(move || {
            file.write(ledger, 0, 1);
            file.write(ledger, 1, 2);
            file.write(ledger, 0, 3);
        });
        drain(ledger, &[file], true);
        host.join().expect("the host's thread runs to its end");
        assert_drained(ledger, &[file]);
    });
}

#[test]
fn changes_of_two_threads_to_one_file_are_copied() {
    check(2, || {
        let (ledger, file) = (forever(Ledger::new()), File::new());
        file.marks.count_for_lag(ledger);
        let hosts = [0, 1].map(|block| thread::spawn(move || file.write(ledger, block, 1)));
        drain(ledger, &[file], true);
        for host in hosts {
            host.join().expect("the host's thread runs to its end");
        }
        assert_drained(ledger, &[file]);
    });
}

fn two_files(next_first: bool) {
    check(3, move || {
        let (ledger, files) = (forever(Ledger::new()), [File::new(), File::new()]);
        files[0].write(ledger, 0, 1);
        files[1].write(ledger, 0, 1);
        let host = thread::spawn(move || files[1].write(ledger, 0, 2));
        drain(ledger, &files, next_first);
        host.join().expect("the host's thread runs to its end");
        assert_drained(ledger, &files);
    });
}

#[test]
fn a_file_queued_again_leaves_the_others_in_the_queue() {
    two_files(true);
}

#[test]
#[should_panic(expected = "a change was lost")]
fn an_engine_that_follows_the_queue_too_late_is_found() {
    two_files(false);
}

#[test]
#[should_panic(expected = "a change was lost")]
fn an_engine_that_reads_before_it_clears_is_found() {
    check(3, || {
        let (ledger, file) = (forever(Ledger::new()), File::new());
        let host = thread::spawn(move || file.write(ledger, 0, 1));
        file.copy_blocks(0..BLOCK);
        file.marks.clear(ledger, 0..BLOCK);
        host.join().expect("the host's thread runs to its end");
        assert_drained(ledger, &[file]);
    });
}

fn two_copiers(claimed: bool) {
    check(3, move || {
        let (ledger, file) = (forever(Ledger::new()), File::new());
        file.write(ledger, 0, 1);
        let copier = move || {
            let claim = claimed.then(|| file.claim.lock());
            file.copy_marked(ledger);
            drop(claim);
        };
        let other = thread::spawn(copier);
        let host = thread::spawn(move || file.write(ledger, 0, 2));
        copier();
        other.join().expect("the copier runs to its end");
        host.join().expect("the host's thread runs to its end");
        assert_drained(ledger, &[file]);
    });
}

#[test]
fn two_copiers_with_a_claim_lose_nothing() {
    two_copiers(true);
}

#[test]
#[should_panic(expected = "a change was lost")]
fn two_copiers_without_a_claim_are_found() {
    two_copiers(false);
}

/// The first marks of a file: what holds them is made by whoever comes first, or there is no memory for it.
fn first_marks(has_memory: bool) {
    check(3, move || {
        let (ledger, file) = (forever(Ledger::with(has_memory)), File::new());
        file.marks.count_for_lag(ledger);
        let host = thread::spawn(move || file.write(ledger, 0, 1));
        let other = thread::spawn(move || file.append(ledger, 1, 1));
        drain(ledger, &[file], true);
        host.join().expect("the host's thread runs to its end");
        other.join().expect("the host's other thread runs to its end");
        assert!(ledger.lag() > 0 || !file.marks.owes_data());
        assert_drained(ledger, &[file]);
    });
}

#[test]
fn the_first_marks_of_a_file_lose_nothing() {
    first_marks(true);
}

#[test]
fn marks_without_memory_lose_nothing() {
    first_marks(false);
}

#[test]
fn tail_marks_lose_nothing() {
    check(3, || {
        let (ledger, file) = (forever(Ledger::new()), File::new());
        file.marks.count_for_lag(ledger);
        let host = thread::spawn(move || {
            file.append(ledger, 1, 1);
            file.append(ledger, 0, 2);
        });
        drain(ledger, &[file], true);
        host.join().expect("the host's thread runs to its end");
        assert_drained(ledger, &[file]);
    });
}

#[test]
fn the_lag_is_zero_when_all_is_drained() {
    check(3, || {
        let (ledger, file) = (forever(Ledger::new()), File::new());
        let host = thread::spawn(move || {
            file.write(ledger, 0, 1);
            file.append(ledger, 1, 1);
        });
        // Each of these comes before, between or behind the marks.
        file.marks.count_for_lag(ledger);
        file.marks.discount(ledger);
        file.marks.count_for_lag(ledger);
        drain(ledger, &[file], true);
        host.join().expect("the host's thread runs to its end");
        assert_drained(ledger, &[file]);
    });
}

#[test]
fn what_is_owed_counts_for_the_lag() {
    check(3, || {
        let (ledger, file) = (forever(Ledger::new()), File::new());
        file.marks.count_for_lag(ledger);
        let host = thread::spawn(move || {
            file.write(ledger, 0, 1);
            file.append(ledger, 1, 1);
        });
        drain(ledger, &[file], true);
        host.join().expect("the host's thread runs to its end");
        assert!(ledger.lag() > 0 || !file.marks.owes_data());
        assert_drained(ledger, &[file]);
    });
}

#[test]
fn flags_are_taken_by_whoever_finds_the_inode_queued() {
    check(3, || {
        let (ledger, marks) = (forever(Ledger::new()), forever(Marks::new()));
        let entries = forever(Block::new());
        let host = thread::spawn(move || {
            entries.write(1);
            marks.mark_flags(ledger, ENTRIES);
        });
        let list = || {
            let queued = ledger.take_queue()?;
            queued.unqueue();
            (queued.take(ENTRIES) != 0).then(|| entries.read())
        };
        let mut copy = list().unwrap_or(0);
        host.join().expect("the host's thread runs to its end");
        copy = list().unwrap_or(copy);
        assert_eq!(copy, 1, "a change was lost");
        assert!(ledger.queue_is_empty());
    });
}

/// A hook that does not find the inode owes nothing, for the engine reads the inode only after it has entered it. That
/// holds only with a full fence on both sides: each stores first and loads what the other has stored.
fn entering(fenced: bool) {
    check(3, move || {
        let (ledger, file) = (forever(Ledger::new()), File::new());
        let watched = forever(AtomicU32::new(0));
        let full_fence = move || {
            if fenced {
                fence(Ordering::SeqCst);
            }
        };
        let host = thread::spawn(move || {
            file.source[0].write(1);
            full_fence();
            if watched.load(Ordering::Acquire) != 0 {
                file.marks.mark_range(ledger, 0, BLOCK);
            }
        });
        watched.store(1, Ordering::Release);
        full_fence();
        file.copy_blocks(0..BLOCK);
        host.join().expect("the host's thread runs to its end");
        assert_drained(ledger, &[file]);
    });
}

#[test]
fn an_inode_entered_before_it_is_read_loses_nothing() {
    entering(true);
}

#[test]
#[should_panic(expected = "a change was lost")]
fn entering_without_fences_is_found() {
    entering(false);
}
