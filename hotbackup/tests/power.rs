//! A backup that was reported as complete is still there, and right, when the power goes; and what reaches the disk before.
//!
//! Method: the destination lies on a filesystem in a file. The moment the backup is reported, that file is copied: it holds what has
//! reached the disk. The copy is mounted. What the host had written there and not synced tells how the backup was synced: beside few
//! files of ours much that is dirty stays dirty, beside many files the whole filesystem is synced.

mod common;

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use common::Scratch;
use common::mounted::Mounted;
use common::tree::{Compare, Tree};
use hotbackup::{Backup, KeepFree, Session};

/// What a host leaves dirty beside the backup.
const DIRTY: usize = 256 << 20;

/// Makes a source with `files` files of several kinds.
fn make_source(source: &Path, files: usize) {
    for i in 0..files {
        let directory = source.join(format!("d{}/e{}", i % 3, i % 2));
        fs::create_dir_all(&directory).expect("a directory");
        let file = directory.join(format!("file {i}"));
        fs::write(&file, vec![i as u8; i % 5 * 10_007]).expect("a file");
        if i % 7 == 0 {
            fs::hard_link(&file, source.join(format!("second name {i}"))).expect("a second name");
        }
    }
    fs::write(source.join("large"), vec![0x5a; 40 << 20]).expect("a large file");
    let sparse = File::create(source.join("sparse")).expect("a file");
    sparse.set_len(64 << 20).expect("a size");
    rustix::io::pwrite(&sparse, b"in the middle", 32 << 20).expect("a write");
}

fn back_up_and_cut_power(make: &str, arguments: &[&str], files: usize) -> Option<bool> {
    let scratch = Scratch::new(true);
    let disk = Mounted::new(&scratch, make, arguments)?;
    let source = scratch.dir("source");
    make_source(&source, files);
    let (destination, hosts) = (disk.dir("destination"), disk.dir("host"));
    File::open(&hosts).and_then(|directory| directory.sync_all()).expect("the host's directory is there");
    let mut dirty = File::create(hosts.join("dirty")).expect("a file");
    dirty.write_all(&vec![7; DIRTY]).expect("room");
    drop(dirty);
    let backup = Backup::from(&source).to(&destination).keep_free(KeepFree::Bytes(0));
    backup.start().and_then(Session::finish).expect("a backup");
    disk.cut_power();
    let wrong = common::unverified(&destination);
    assert!(wrong.is_empty(), "{make}, {files} files: {wrong:#?}");
    let wanted = Tree::read(&source).expect("the source");
    let found = Tree::read_destination(&destination).expect("the copy");
    let differences = wanted.differences(&found, Compare { times: true, allocation: false }, 10);
    assert!(differences.is_empty(), "{make}, {files} files: {differences:#?}");
    Some(fs::metadata(hosts.join("dirty")).is_ok_and(|dirty| dirty.len() == DIRTY as u64))
}

#[test]
fn a_power_cut_behind_a_backup_loses_nothing_of_it() {
    let _alone = common::alone();
    for (make, arguments) in [("mkfs.ext4", &["-q"][..]), ("mkfs.xfs", &["-q"]), ("mkfs.btrfs", &["-q"])] {
        for (files, syncs_the_host) in [(20, false), (3000, true)] {
            let Some(host_was_synced) = back_up_and_cut_power(make, arguments, files) else { continue };
            assert_eq!(host_was_synced, syncs_the_host, "{make}, {files} files");
        }
    }
}

/// So that an fsync of the host's finds little of ours before it in the disk's queue, whenever it comes.
#[test]
fn what_is_copied_is_written_out_meanwhile() {
    let _alone = common::alone();
    let scratch = Scratch::new(true);
    let Some(disk) = Mounted::new(&scratch, "mkfs.ext4", &["-q", "-E", "lazy_itable_init=0"]) else { return };
    let source = scratch.dir("source");
    let sizes = [(1, 40 << 20), (50, 4 << 20), (2000, 8 << 10)];
    for (count, size) in sizes {
        for i in 0..count {
            fs::write(source.join(format!("{size} {i}")), vec![0x5a; size]).expect("a file");
        }
    }
    let bytes = sizes.iter().map(|(count, size)| (count * size) as u64).sum::<u64>();
    let before = disk.written();
    let written = || disk.written() - before;
    let backup = Backup::from(&source).to(disk.dir("destination")).keep_free(KeepFree::Bytes(0));
    let held = backup.before_cut(|| {
        // The kernel by itself would begin half a minute later.
        let mut patience = 100;
        while written() + (4 << 20) < bytes && patience > 0 {
            patience -= 1;
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(patience > 0, "{} of {bytes} bytes have reached the disk before the cut", written());
    });
    held.start().and_then(Session::finish).expect("a backup");
}

/// A disk of which, when it has been made, little more can be written than its tables.
#[test]
fn a_disk_that_loses_what_is_written_out_is_no_place_for_a_backup() {
    let _alone = common::alone();
    // Without a symbolic link, which cannot be, each file is synced by itself. What is larger than a mebibyte is waited for before.
    for (files, size, link) in [(30, 1 << 20, true), (30, 1 << 20, false), (10, 4 << 20, false)] {
        let scratch = Scratch::new(true);
        let small = scratch.dir("small");
        let Some(_room) = Mounted::tmpfs(&small, "64m") else { return };
        let Some(other) = Mounted::new(&scratch, "mkfs.ext4", &["-q"]) else { return };
        fs::write(other.dir("host").join("dirty"), vec![7; DIRTY]).expect("room");
        // Without a journal, which would end at the first error.
        let full = ["-q", "-O", "^has_journal", "-E", "lazy_itable_init=0,nodiscard", "-T", "largefile4"];
        let inside = Scratch::below(&small);
        let Some(disk) = Mounted::new(&inside, "mkfs.ext4", &full) else { return };
        let filler = File::create(small.join("filler")).expect("a file");
        while rustix::io::write(&filler, &[0; 4096]).is_ok() {}
        filler.set_len(filler.metadata().expect("a file").len() - (8 << 20)).expect("a size");
        let source = scratch.dir("source");
        for i in 0..files {
            fs::write(source.join(format!("file {i}")), vec![0x5a; size]).expect("a file");
        }
        if link {
            std::os::unix::fs::symlink("file 0", source.join("link")).expect("a link");
        }
        let backup = Backup::from(&source).to(disk.dir("destination")).keep_free(KeepFree::Bytes(0));
        let outcome = backup.start().and_then(Session::finish);
        let error = outcome.expect_err("most of it has not reached the disk").to_string();
        assert!(error.starts_with("cannot sync"), "{error}");
        assert_eq!(error.contains("/file "), !link, "{error}");
    }
}
