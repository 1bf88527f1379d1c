//! The copy shows one instant of a known order of writes.
//!
//! Method: writers put strictly increasing numbers, as records of 8 bytes, into many files. The copy must hold every
//! number up to some last one and none beyond it, in its place and whole. In one variant the numbers are handed out
//! under a lock, so that their order is the order of the writes; in the other only the begin and the end of each
//! write are ordered: no write in the copy may have begun after one that is missing had ended.

mod common;

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use common::records::{How, Target, records};
use common::rng::Rng;
use common::{Scratch, Watchdog};
use hotbackup::{Backup, KeepFree, Throttle};

const FILES: usize = 24;

fn backup(seed: u64, source: &Path, destination: &Path) -> hotbackup::Report {
    let mut rng = Rng::new(seed);
    let mut backup = Backup::from(source)
        .to(destination)
        .keep_free(KeepFree::Bytes(0))
        .max_stall(Duration::from_secs(20))
        .threads(1 + rng.below(3) as usize);
    if rng.one_in(2) {
        backup = backup.throttle(Throttle::bytes_per_sec(5 << 20));
    }
    if let Some(lag) = *rng.pick(&[None, None, Some(0), Some(16 << 10)]) {
        backup = backup.max_lag(lag);
    }
    let outcome = backup.start().and_then(hotbackup::Session::finish);
    outcome.unwrap_or_else(|e| panic!("seed {seed}: the backup failed: {e}"))
}

/// Runs writers that call `write` until a backup is complete; returns where it lies.
fn with_writers(seed: u64, how: How, write: impl Fn(&Target, &mut Rng) + Sync) -> (Scratch, Vec<Vec<u64>>) {
    let _watchdog = Watchdog::new(format!("point_in_time {how:?} {seed}"), Duration::from_secs(120));
    let scratch = Scratch::new(seed.is_multiple_of(2));
    let (source, destination) = (scratch.dir("source"), scratch.dir("destination"));
    let path = |directory: &Path, i: usize| directory.join(format!("records {i}"));
    let targets: Vec<_> = (0..FILES).map(|i| Target::open(&path(&source, i), how)).collect();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (targets, stop, write) = (&targets, &stop, &write);
        for thread in 0..2 + seed % 4 {
            scope.spawn(move || {
                let mut rng = Rng::new(seed << 8 | thread);
                while !stop.load(Ordering::Relaxed) {
                    // Some files are hot, some are hardly ever written.
                    let file = rng.below(FILES as u64).min(rng.below(FILES as u64));
                    write(&targets[file as usize], &mut rng);
                }
            });
        }
        std::thread::sleep(Duration::from_millis(seed % 20));
        backup(seed, &source, &destination);
        stop.store(true, Ordering::Relaxed);
    });
    let copied = (0..FILES).map(|i| records(&path(&destination, i))).collect();
    (scratch, copied)
}

/// Numbers handed out under a lock: the copy is exactly 1..=last.
fn in_order(seed: u64, how: How) {
    let last = Mutex::new(0);
    let (_scratch, copied) = with_writers(seed, how, |target, _| {
        let mut last = last.lock().expect("no panic while writing");
        *last += 1;
        target.put(how, *last);
    });
    for file in &copied {
        assert!(file.is_sorted(), "{how:?}, seed {seed}: records out of order in {file:?}");
    }
    let mut all: Vec<u64> = copied.concat();
    all.sort_unstable();
    let gap = all.iter().zip(1..).find(|(number, expected)| **number != *expected);
    assert_eq!(
        gap,
        None,
        "{how:?}, seed {seed}: found instead of the expected number; the last is {:?}, HOTBACKUP_SEED={seed} repeats it",
        all.last()
    );
}

/// Begin and end of each write in one order: what is missing did not end before something present began.
fn at_one_instant(seed: u64, how: How) {
    let clock = AtomicU64::new(1);
    let done: Mutex<Vec<(u64, u64)>> = Mutex::default();
    let (_scratch, copied) = with_writers(seed, how, |target, rng| {
        let begun = clock.fetch_add(1, Ordering::SeqCst);
        target.put(how, begun);
        let ended = clock.fetch_add(1, Ordering::SeqCst);
        done.lock().expect("no panic while writing").push((begun, ended));
        if rng.one_in(50) {
            std::thread::sleep(Duration::from_micros(rng.below(200)));
        }
    });
    let mut present: Vec<u64> = copied.concat();
    present.sort_unstable();
    assert_ne!(present.first(), Some(&0), "{how:?}, seed {seed}: a record was not written");
    let twice = present.windows(2).find(|pair| pair[0] == pair[1]);
    assert_eq!(twice, None, "{how:?}, seed {seed}: a record is there twice");
    let newest = present.last().copied().unwrap_or(0);
    let done = done.into_inner().expect("no panic while writing");
    let is_missing = |begun: &u64| present.binary_search(begun).is_err();
    let lost = done.iter().find(|(begun, ended)| *ended < newest && is_missing(begun));
    assert_eq!(
        lost, None,
        "{how:?}, seed {seed}: this write ended before that of record {newest} began, and only the latter is there"
    );
}

#[test]
fn a_copy_holds_every_record_up_to_the_last_and_none_beyond() {
    let _alone = common::alone();
    for seed in common::seeds(24) {
        for how in [How::Append, How::At, How::Position] {
            in_order(seed, how);
        }
    }
}

#[test]
fn no_record_is_missing_that_was_written_before_one_that_is_there() {
    let _alone = common::alone();
    for seed in common::seeds(24) {
        for how in [How::Append, How::At, How::Position] {
            at_one_instant(seed, how);
        }
    }
}
