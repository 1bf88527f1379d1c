//! Marks against plain sets of blocks, above all where words, leaves and roots meet.

#![expect(clippy::single_range_in_vec_init, reason = "a list of one range is what is meant")]

use std::collections::BTreeSet;

use super::*;

/// The first block of the second word, leaf and root.
const BORDERS: [u64; 3] = [FIRST, LEAF_BLOCKS, ROOT_LEAVES as u64 * LEAF_BLOCKS];
const EVERYTHING: u64 = u64::MAX / BLOCK * BLOCK;

fn ledger() -> &'static Ledger {
    Box::leak(Box::new(Ledger::new()))
}

/// A file that counts for the lag.
fn file(ledger: &Ledger) -> &'static Marks {
    let marks = ledger.watch(1, 2).expect("there is memory");
    marks.count_for_lag(ledger);
    marks
}

fn mark_blocks(marks: &'static Marks, ledger: &Ledger, blocks: Range<u64>) {
    marks.mark_range(ledger, blocks.start * BLOCK, blocks.end * BLOCK);
}

/// Takes every run, as ranges of blocks.
fn take_all(marks: &Marks, ledger: &Ledger) -> Vec<Range<u64>> {
    let take = |from: &mut u64| {
        let run = marks.take_run(ledger, *from, EVERYTHING, u64::MAX)?;
        *from = run.end;
        Some(run.start / BLOCK..run.end / BLOCK)
    };
    let mut from = 0;
    std::iter::from_fn(|| take(&mut from)).collect()
}

fn queued(ledger: &Ledger) -> Vec<u64> {
    let mut found = Vec::new();
    let mut next = ledger.take_queue();
    while let Some(marks) = next {
        next = marks.queued_after();
        assert!(marks.unqueue());
        found.push(marks.device_and_inode().1);
    }
    found
}

#[test]
fn a_byte_marks_its_block() {
    let ledger = ledger();
    let marks = file(ledger);
    marks.mark_range(ledger, BLOCK - 1, BLOCK);
    marks.mark_range(ledger, 3 * BLOCK, 3 * BLOCK + 1);
    marks.mark_range(ledger, 6 * BLOCK - 1, 6 * BLOCK + 1);
    assert_eq!(take_all(marks, ledger), [0..1, 3..4, 5..7]);
    assert!(!marks.owes_data());
}

#[test]
fn an_empty_range_marks_nothing() {
    let ledger = ledger();
    let marks = file(ledger);
    marks.mark_range(ledger, 5, 5);
    marks.mark_range(ledger, 9, 5);
    assert!(!marks.owes_data());
    assert!(ledger.queue_is_empty());
}

#[test]
fn a_range_across_a_border_is_one_run() {
    for border in BORDERS {
        for (before, behind) in [(1, 1), (3, 0), (0, 3), (70, 70)] {
            let ledger = ledger();
            let marks = file(ledger);
            if before + behind > border {
                continue;
            }
            let range = border.saturating_sub(before)..border + behind;
            mark_blocks(marks, ledger, range.clone());
            assert_eq!(ledger.lag(), (range.end - range.start) * BLOCK);
            assert!(marks.owes_data());
            assert_eq!(take_all(marks, ledger), [range]);
            assert_eq!(ledger.lag(), 0);
            assert!(!marks.owes_data());
        }
    }
}

#[test]
fn single_blocks_beside_every_border_are_found_from_anywhere() {
    let ledger = ledger();
    let marks = file(ledger);
    let blocks: BTreeSet<u64> = BORDERS.iter().flat_map(|b| [b - 1, *b]).collect();
    for &from in blocks.iter().chain([&0, &1, &65, &40_000]) {
        for &block in &blocks {
            mark_blocks(marks, ledger, block..block + 1);
        }
        let expected = blocks.range(from..).next().copied();
        let found = marks.take_run(ledger, from * BLOCK, EVERYTHING, BLOCK);
        assert_eq!(found.map(|run| run.start / BLOCK), expected, "from block {from}");
    }
}

#[test]
fn a_run_is_no_longer_than_asked_for() {
    let ledger = ledger();
    let marks = file(ledger);
    mark_blocks(marks, ledger, 10..200);
    let take = |from, limit, most| marks.take_run(ledger, from, limit, most);
    assert_eq!(take(0, EVERYTHING, 4 * BLOCK), Some(10 * BLOCK..14 * BLOCK));
    assert_eq!(take(0, EVERYTHING, 1), Some(14 * BLOCK..15 * BLOCK), "never less than a block");
    assert_eq!(take(0, 17 * BLOCK, u64::MAX), Some(15 * BLOCK..17 * BLOCK));
    assert_eq!(
        take(0, 17 * BLOCK + 1, u64::MAX),
        Some(17 * BLOCK..18 * BLOCK),
        "a limit within a block takes that block"
    );
    assert_eq!(take(0, 18 * BLOCK, u64::MAX), None);
    assert_eq!(take(100 * BLOCK, EVERYTHING, u64::MAX), Some(100 * BLOCK..200 * BLOCK));
    assert_eq!(take_all(marks, ledger), [18..100]);
}

#[test]
fn clearing_leaves_blocks_that_are_only_partly_in_the_range() {
    let ledger = ledger();
    let marks = file(ledger);
    mark_blocks(marks, ledger, 60..70);
    marks.clear(ledger, 61 * BLOCK - 1..68 * BLOCK + 1);
    assert_eq!(take_all(marks, ledger), [60..61, 68..70]);
    mark_blocks(marks, ledger, 60..70);
    marks.clear(ledger, 61 * BLOCK + 1..61 * BLOCK + 2);
    assert_eq!(take_all(marks, ledger), [60..70]);
}

#[test]
fn beyond_the_last_root_there_is_only_the_tail() {
    let ledger = ledger();
    let marks = file(ledger);
    let last = ROOTS * ROOT_LEAVES as u64 * LEAF_BLOCKS;
    mark_blocks(marks, ledger, last - 1..last + 2);
    assert_eq!(take_all(marks, ledger), [last - 1..last]);
    assert_eq!(ledger.lag(), 2 * BLOCK);
    assert_eq!(marks.take_tail(ledger), Some(last * BLOCK));
    assert_eq!(ledger.lag(), 0);
}

#[test]
fn the_lowest_tail_counts() {
    let ledger = ledger();
    let marks = file(ledger);
    assert_eq!(marks.take_tail(ledger), None);
    marks.mark_tail(ledger, 10_000, 1);
    marks.mark_tail(ledger, 5_000, 2 * BLOCK);
    marks.mark_tail(ledger, 20_000, 1);
    assert!(marks.owes_data());
    assert_eq!(ledger.lag(), 4 * BLOCK);
    assert_eq!(marks.take_tail(ledger), Some(5_000));
    assert_eq!(marks.take_tail(ledger), None);
    assert!(!marks.owes_data());
    assert_eq!(ledger.lag(), 0);
    marks.mark_tail(ledger, 0, 0);
    assert_eq!(marks.take_tail(ledger), Some(0));
}

#[test]
fn marking_everything_counts_the_whole_file() {
    let ledger = ledger();
    let marks = file(ledger);
    marks.set_stamp(Stamp { size: 10 * BLOCK + 1, ..Stamp::default() });
    marks.mark_all(ledger);
    assert_eq!(ledger.lag(), 11 * BLOCK);
    assert_eq!(marks.take_tail(ledger), Some(0));
}

#[test]
fn a_block_marked_twice_counts_once() {
    let ledger = ledger();
    let marks = file(ledger);
    mark_blocks(marks, ledger, 0..100);
    mark_blocks(marks, ledger, 50..150);
    assert_eq!(ledger.lag(), 150 * BLOCK);
}

#[test]
fn only_files_already_copied_count_for_the_lag() {
    let ledger = ledger();
    let marks = file(ledger);
    marks.discount(ledger);
    mark_blocks(marks, ledger, 0..3);
    assert_eq!(ledger.lag(), 0);
    marks.count_for_lag(ledger);
    marks.count_for_lag(ledger);
    assert_eq!(ledger.lag(), 3 * BLOCK);
    marks.discount(ledger);
    marks.discount(ledger);
    assert_eq!(ledger.lag(), 0);
}

#[test]
fn an_inode_is_queued_once_and_again_after_it_was_taken() {
    let ledger = ledger();
    let files: Vec<_> = (0..3).map(|ino| ledger.watch(7, ino).expect("there is memory")).collect();
    files[0].mark_range(ledger, 0, 1);
    files[1].mark_flags(ledger, ENTRIES);
    files[0].mark_tail(ledger, 0, 1);
    files[2].mark_all(ledger);
    assert_eq!(queued(ledger), [2, 1, 0]);
    assert!(ledger.queue_is_empty());
    assert_eq!(files[1].take(ENTRIES | ATTRIBUTES), ENTRIES);
    assert_eq!(files[1].take(ENTRIES | ATTRIBUTES), 0);
    files[1].set_audited(1, false);
    assert!(ledger.queue_is_empty(), "a note queues nothing");
    files[1].mark_flags(ledger, ATTRIBUTES);
    assert_eq!(queued(ledger), [1]);
    assert!(files[1].audited(1) == Some(false) && files[1].has(ATTRIBUTES) && !files[1].has(ENTRIES));
}

#[test]
fn a_recycled_ledger_knows_nothing() {
    let ledger = ledger();
    mark_blocks(file(ledger), ledger, 0..1000);
    ledger.recycle();
    assert!(ledger.queue_is_empty());
    assert_eq!((ledger.lag(), ledger.pool().used()), (0, 0));
    assert!(!file(ledger).owes_data());
}

#[test]
fn a_dirty_gigabyte_takes_34_kib() {
    let ledger = ledger();
    let marks = file(ledger);
    let before = ledger.pool().used();
    marks.mark_range(ledger, 0, 1 << 30);
    let used = ledger.pool().used() - before;
    assert!(used <= 35 << 10, "{used} bytes: one bit a block, and one root");
    marks.mark_range(ledger, 0, 1 << 30);
    assert_eq!(ledger.pool().used() - before, used);
}

/// Takes all memory that there is.
fn exhaust(ledger: &Ledger) {
    while ledger.pool().one::<[AtomicU64; 1 << 19]>().is_some() {}
}

#[test]
fn without_memory_the_rest_of_the_file_is_dirty() {
    let ledger = ledger();
    let marks = file(ledger);
    mark_blocks(marks, ledger, 5..6);
    exhaust(ledger);
    mark_blocks(marks, ledger, 60..200);
    assert_eq!(take_all(marks, ledger), [5..6, 60..64]);
    assert_eq!(ledger.lag(), 136 * BLOCK);
    assert_eq!(marks.take_tail(ledger), Some(64 * BLOCK));
    assert_eq!(ledger.lag(), 0);
}

#[test]
fn without_memory_a_file_that_was_never_marked_is_dirty_as_a_whole() {
    for mark in [Marks::mark_range, Marks::mark_tail] {
        let ledger = ledger();
        let marks = file(ledger);
        exhaust(ledger);
        for _ in 0..2 {
            mark(marks, ledger, 9 * BLOCK, 10 * BLOCK);
        }
        assert!(marks.owes_data() && marks.owes_lag());
        assert_eq!((ledger.lag(), queued(ledger)), (BLOCK, vec![2]));
        assert_eq!(marks.take_tail(ledger), Some(0));
        assert!(!marks.owes_data() && !marks.owes_lag());
        assert_eq!((ledger.lag(), marks.take_tail(ledger)), (0, None));
    }
}

/// A plain model of one file's marks.
#[derive(Default)]
struct Plain {
    blocks: BTreeSet<u64>,
    tail: Option<u64>,
    tail_blocks: u64,
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    /// A byte offset near the beginning or near a border.
    fn place(&mut self) -> u64 {
        let near = [0, BORDERS[0], BORDERS[1], BORDERS[2], 3 * LEAF_BLOCKS][self.below(5) as usize];
        (near.saturating_sub(100) + self.below(200)) * BLOCK + self.below(BLOCK)
    }
}

impl Plain {
    fn next(&self, from: u64) -> Option<u64> {
        self.blocks.range(from..).next().copied()
    }

    fn step(&mut self, marks: &'static Marks, ledger: &Ledger, random: &mut Random) {
        let from = random.place();
        let to = from + random.below(150 * BLOCK);
        match random.below(8) {
            0..=3 => {
                marks.mark_range(ledger, from, to);
                if from < to {
                    self.blocks.extend(from / BLOCK..to.div_ceil(BLOCK));
                }
            }
            4 => {
                marks.clear(ledger, from..to);
                let whole = from.div_ceil(BLOCK)..to / BLOCK;
                self.blocks.retain(|block| !whole.contains(block));
            }
            5 => self.take_run(marks, ledger, from, random.below(100 * BLOCK)),
            6 => {
                marks.mark_tail(ledger, from, to - from);
                self.tail = Some(self.tail.unwrap_or(u64::MAX).min(from));
                self.tail_blocks += (to - from).div_ceil(BLOCK).max(1);
            }
            _ => {
                assert_eq!(marks.take_tail(ledger), self.tail.take());
                self.tail_blocks = 0;
            }
        }
    }

    fn take_run(&mut self, marks: &'static Marks, ledger: &Ledger, from: u64, most: u64) {
        let run = marks.take_run(ledger, from, EVERYTHING, most);
        let start = self.next(from / BLOCK);
        assert_eq!(run.as_ref().map(|run| run.start / BLOCK), start);
        let Some(start) = start else { return };
        let mut end = start;
        while end < start + (most / BLOCK).max(1) && self.blocks.remove(&end) {
            end += 1;
        }
        assert_eq!(run, Some(start * BLOCK..end * BLOCK));
    }
}

#[test]
fn random_marks_are_those_of_a_plain_set() {
    for seed in 1..=200 {
        let ledger = ledger();
        let marks = file(ledger);
        let (mut plain, mut random) = (Plain::default(), Random(seed * 0x9E37_79B9_7F4A_7C15));
        for step in 0..200 {
            plain.step(marks, ledger, &mut random);
            let owed = plain.blocks.len() as u64 + plain.tail_blocks;
            assert_eq!(ledger.lag(), owed * BLOCK, "seed {seed}, step {step}");
            assert_eq!(marks.owes_data(), owed > 0, "seed {seed}, step {step}");
        }
        let left: Vec<u64> = take_all(marks, ledger).into_iter().flatten().collect();
        assert!(left.iter().eq(&plain.blocks), "seed {seed}");
        marks.take_tail(ledger);
        assert_eq!(ledger.lag(), 0, "seed {seed}");
        ledger.recycle();
    }
}

#[test]
fn threads_that_mark_and_one_that_takes_leave_no_lag() {
    const THREADS: u64 = 4;
    const ROUNDS: u64 = 20_000;
    let ledger = ledger();
    let marks = file(ledger);
    std::thread::scope(|scope| {
        let hosts: Vec<_> = (1..=THREADS)
            .map(|seed| {
                scope.spawn(move || {
                    let mut random = Random(seed);
                    for _ in 0..ROUNDS {
                        let from = random.place();
                        marks.mark_range(ledger, from, from + random.below(4 * BLOCK));
                        marks.mark_tail(ledger, from, 1);
                    }
                })
            })
            .collect();
        while !hosts.iter().all(|host| host.is_finished()) {
            marks.take_tail(ledger);
            take_all(marks, ledger);
        }
    });
    marks.take_tail(ledger);
    take_all(marks, ledger);
    assert_eq!(ledger.lag(), 0);
    assert!(!marks.owes_data());
}
