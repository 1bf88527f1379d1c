//! The instant cut: source and destination share blocks.
//!
//! Method: on XFS and on Btrfs, in a file that is mounted, a file of 256 MiB is backed up with `share_blocks` while a
//! thread goes on writing to it. The copy must hold a prefix of what that thread wrote, in order, the filesystem must
//! have given next to no room for it, and the reserve must be kept. Where blocks cannot be shared, the report says so.

mod common;

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::mounted::Mounted;
use common::{Scratch, Watchdog, calls};
use hotbackup::{Backup, Error, KeepFree, Session};

const SIZE: usize = 256 << 20;
const RECORDS: usize = 64;
/// Where records begin, so far apart that each has a block of its own.
const SPACING: i64 = 1 << 20;

fn furnish(source: &Path) -> File {
    let path = source.join("large");
    fs::write(&path, vec![b'x'; SIZE]).expect("room for the file");
    File::options().read(true).write(true).open(path).expect("the file")
}

/// Writes round after round of numbered records until told to stop.
fn keep_writing(file: &File, stop: &AtomicBool) {
    let mut number = 0u64;
    while !stop.load(Ordering::Relaxed) {
        let at = (number % RECORDS as u64).cast_signed() * SPACING;
        number += 1;
        assert_eq!(calls::pwrite(file.as_raw_fd(), &number.to_be_bytes(), at), Ok(8));
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// The records of a copy, if they are what one instant shows: the newest, and those that it did not overwrite.
fn is_of_one_instant(copy: &Path) -> bool {
    let bytes = fs::read(copy).expect("the copy");
    let record = |i: usize| {
        let at = i * SPACING as usize;
        u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
    };
    let written = |number: &u64| *number < u64::from_be_bytes(*b"xxxxxxxx");
    let mut all: Vec<u64> = (0..RECORDS).map(record).filter(written).collect();
    all.sort_unstable();
    bytes.len() == SIZE && all.windows(2).all(|pair| pair[1] == pair[0] + 1)
}

fn shares(make: &str, arguments: &[&str]) {
    let _alone = common::alone();
    let _watchdog = Watchdog::new(make.to_owned(), Duration::from_secs(120));
    let scratch = Scratch::new(false);
    let Some(mounted) = Mounted::new(&scratch, make, arguments) else { return };
    let (source, destination) = (mounted.dir("source"), mounted.dir("destination"));
    let file = furnish(&source);
    rustix::fs::fsync(&file).expect("synced");
    std::thread::sleep(Duration::from_millis(400));
    let free = mounted.free();
    let (begun, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    let report = std::thread::scope(|scope| {
        let backup =
            Backup::from(&source).to(&destination).share_blocks(true).keep_free(KeepFree::Bytes(1 << 20));
        // A file that was written just before it is shared, by a call that is not captured yet, is copied whole for its youth.
        let writes = || {
            begun.store(true, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(20));
        };
        scope.spawn(|| {
            while !begun.load(Ordering::Relaxed) && !stop.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(1));
            }
            keep_writing(&file, &stop);
        });
        let session = backup.before_cut(writes).start();
        let report = session.and_then(Session::finish);
        stop.store(true, Ordering::Relaxed);
        report
    });
    let report = report.expect("a backup");
    assert!(report.warnings.is_empty(), "{:?}", report.warnings);
    assert!(is_of_one_instant(&destination.join("large")));
    let taken = free.saturating_sub(mounted.free());
    assert!(taken < SIZE as u64 / 4, "{taken} bytes were taken, {report:?}");
    assert!(common::unverified(&destination).is_empty());
    let more = mounted.free() + (1 << 30);
    let again = mounted.dir("again");
    let backup = Backup::from(&source).to(&again).share_blocks(true).keep_free(KeepFree::Bytes(more));
    let error = backup.start().and_then(Session::finish).expect_err("less is free than is to stay free");
    assert!(matches!(error, Error::NoSpace { .. }), "{error}");
}

#[test]
fn a_copy_on_xfs_shares_its_blocks_and_is_of_one_instant() {
    shares("mkfs.xfs", &["-q", "-m", "reflink=1"]);
}

#[test]
fn a_copy_on_btrfs_shares_its_blocks_and_is_of_one_instant() {
    shares("mkfs.btrfs", &["-q"]);
}

/// Files grow by a page and shrink again, and stand still at the cut.
fn keeps_the_length(make: &str, arguments: &[&str]) {
    const FILES: usize = 32;
    const LENGTH: usize = 4 << 20;
    let _alone = common::alone();
    let _watchdog = Watchdog::new(make.to_owned(), Duration::from_secs(120));
    let scratch = Scratch::new(false);
    let Some(mounted) = Mounted::new(&scratch, make, arguments) else { return };
    let (source, destination) = (mounted.dir("source"), mounted.dir("destination"));
    let name = |i: usize| i.to_string();
    let files: Vec<File> = (0..FILES)
        .map(|i| {
            fs::write(source.join(name(i)), vec![i as u8; LENGTH]).expect("room for the file");
            File::options().write(true).open(source.join(name(i))).expect("the file")
        })
        .collect();
    let (stop, stopped) = (AtomicBool::new(false), AtomicBool::new(false));
    let outcome = std::thread::scope(|scope| {
        scope.spawn(|| {
            let length = LENGTH as i64;
            for file in files.iter().cycle().take_while(|_| !stop.load(Ordering::Relaxed)) {
                assert_eq!(calls::pwrite(file.as_raw_fd(), &[1; 4096], length), Ok(4096));
                assert_eq!(calls::ftruncate(file.as_raw_fd(), length), Ok(0));
            }
            stopped.store(true, Ordering::Release);
        });
        let still = || {
            stop.store(true, Ordering::Relaxed);
            while !stopped.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
        };
        let backup = Backup::from(&source).to(&destination).share_blocks(true);
        let outcome = backup.keep_free(KeepFree::Bytes(1 << 20)).before_cut(still).start();
        let outcome = outcome.and_then(Session::finish);
        still();
        outcome
    });
    outcome.expect("a backup");
    for i in 0..FILES {
        let copy = fs::read(destination.join(name(i))).expect("the copy");
        assert!(copy == vec![i as u8; LENGTH], "file {i} has {} bytes", copy.len());
    }
    assert!(common::unverified(&destination).is_empty());
}

#[test]
fn a_copy_on_xfs_has_the_length_of_the_cut() {
    keeps_the_length("mkfs.xfs", &["-q", "-m", "reflink=1"]);
}

#[test]
fn a_copy_on_btrfs_has_the_length_of_the_cut() {
    keeps_the_length("mkfs.btrfs", &["-q"]);
}

#[test]
fn where_blocks_cannot_be_shared_they_are_copied_and_the_report_says_so() {
    let _alone = common::alone();
    let scratch = Scratch::new(true);
    let (source, destination) = (scratch.dir("source"), scratch.dir("destination"));
    fs::write(source.join("file"), vec![b'x'; 100_000]).expect("a file");
    let backup = Backup::from(&source).to(&destination).share_blocks(true).keep_free(KeepFree::Bytes(0));
    let report = backup.start().and_then(Session::finish).expect("a backup");
    assert_eq!(fs::read(destination.join("file")).expect("the copy"), vec![b'x'; 100_000]);
    assert!(report.warnings.iter().any(|w| w.text.contains("could not share")), "{:?}", report.warnings);
}
