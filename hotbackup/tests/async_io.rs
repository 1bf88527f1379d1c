//! Writes that go on after the call that began them are in the copy if they were submitted before the cut, else not.
//!
//! Method: threads write slots of files of their own by native AIO, by POSIX aio, and by rings of io_uring that they fill by hand, with
//! several in flight at a time and rings that come and go; others write with `pwrite`. Each write is of a number that is handed
//! out under a lock which the submission is made under, so that the order of the numbers is the order of the submissions. The copy
//! must be what the writes up to some last number make of the files.

mod common;

use std::fs::OpenOptions;
use std::io::Write;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::aio::{BLOCK, Block, DEPTH, Native, Posix, Ring};
use common::rng::Rng;
use common::uring::{ByHand, Manner};
use common::{Scratch, Watchdog, calls, uring};
use hotbackup::{Backup, KeepFree};

const SLOTS: u64 = 512;
/// Writes that are submitted by one call.
const MOST_AT_ONCE: usize = 3;

/// Every write, in the order of their numbers: its file and slot, and what is in that then.
type Log = Mutex<Vec<(usize, u64, u64)>>;

struct Writer<'a> {
    file: usize,
    path: PathBuf,
    log: &'a Log,
    stop: &'a AtomicBool,
}

impl Writer<'_> {
    /// Takes the next numbers and begins the writes of them to these slots. If `holes`, the first of several is a hole.
    fn write(&self, slots: &[u64], holes: bool, begin: impl FnOnce(&[Block])) {
        let mut log = self.log.lock().expect("no panic while writing");
        let mut block = |(place, &slot): (usize, &u64)| {
            let is_hole = holes && place == 0 && slots.len() > 1;
            let value = if is_hole { 0 } else { log.len() as u64 + 1 };
            log.push((self.file, slot, value));
            Block { at: slot * BLOCK as u64, value }
        };
        let blocks: Vec<_> = slots.iter().enumerate().map(&mut block).collect();
        begin(&blocks);
    }

    fn run(&self, rng: Rng) {
        let by_hand = |asks, makes_holes| {
            let manner = Manner { asks, makes_holes };
            move |rng: &mut Rng| -> Box<dyn Ring> {
                match uring::is_there() {
                    true => Box::new(ByHand::new(manner, rng)),
                    false => Box::new(Native::new()),
                }
            }
        };
        match self.file {
            0 => self.asynchronously(rng, |_| Box::new(Native::new())),
            1 => self.asynchronously(rng, |_| Box::new(Posix::new())),
            2 => self.asynchronously(rng, by_hand(true, false)),
            3 => self.asynchronously(rng, by_hand(true, true)),
            4 => self.asynchronously(rng, by_hand(false, false)),
            _ => self.synchronously(rng),
        }
    }

    fn asynchronously(&self, mut rng: Rng, make: impl Fn(&mut Rng) -> Box<dyn Ring>) {
        let flags = if rng.one_in(3) { 0 } else { libc::O_DIRECT };
        let file = OpenOptions::new().write(true).custom_flags(flags).open(&self.path);
        let file = file.expect("a filesystem with O_DIRECT");
        let lives = *rng.pick(&[8, 50, 400]);
        let mut ring = make(&mut rng);
        while !self.stop.load(Ordering::Relaxed) {
            let free = if ring.has_to_be_asked() { DEPTH } else { MOST_AT_ONCE };
            while ring.in_flight().free() < free {
                ring.reap();
            }
            let mut slots: Vec<u64> =
                (0..=rng.below(MOST_AT_ONCE as u64 - 1)).map(|_| rng.below(SLOTS)).collect();
            slots.sort_unstable();
            slots.dedup();
            // Two writes to one slot in flight at the same time would have no order.
            slots.retain(|slot| !ring.in_flight().holds(slot * BLOCK as u64));
            let holes = ring.makes_holes() && rng.one_in(8);
            self.write(&slots, holes, |blocks| ring.submit(file.as_raw_fd(), blocks, &mut rng));
            if rng.one_in(lives) {
                // A new one has most likely the same address.
                drop(ring);
                ring = make(&mut rng);
            }
            if rng.one_in(64) {
                // Ends lie in the ring for a while.
                std::thread::sleep(Duration::from_micros(rng.below(3000)));
            }
        }
    }

    fn synchronously(&self, mut rng: Rng) {
        let file = OpenOptions::new().write(true).open(&self.path).expect("the file");
        let mut block = [0; BLOCK];
        while !self.stop.load(Ordering::Relaxed) {
            let slot = rng.below(SLOTS);
            self.write(&[slot], false, |blocks| {
                let (at, value) = (blocks[0].at.cast_signed(), blocks[0].value);
                block.chunks_mut(8).for_each(|word| word.copy_from_slice(&value.to_ne_bytes()));
                assert_eq!(calls::pwrite(file.as_raw_fd(), &block, at), Ok(BLOCK as i64));
            });
            std::thread::sleep(Duration::from_micros(rng.below(100)));
        }
    }
}

/// The numbers in the slots of a copied file.
fn slots(path: &Path) -> Vec<u64> {
    let file = std::fs::File::open(path).expect("a copied file");
    let mut block = [0; BLOCK];
    let numbers = (0..SLOTS).map(|slot| {
        file.read_exact_at(&mut block, slot * BLOCK as u64).expect("a whole slot");
        let words: Vec<_> =
            block.chunks(8).map(|word| u64::from_ne_bytes(word.try_into().expect("eight bytes"))).collect();
        assert!(words.iter().all(|&word| word == words[0]), "slot {slot} of {} is torn", path.display());
        words[0]
    });
    numbers.collect()
}

fn session(seed: u64) {
    let _watchdog = Watchdog::new(format!("async_io, seed {seed}"), Duration::from_secs(120));
    let scratch = Scratch::new(false);
    let (source, destination) = (scratch.dir("source"), scratch.dir("destination"));
    let (files, log, stop) = (6, Log::default(), AtomicBool::new(false));
    let path = |directory: &Path, file: usize| directory.join(format!("file {file}"));
    for file in 0..files {
        std::fs::write(path(&source, file), vec![0; BLOCK * SLOTS as usize]).expect("a file");
    }
    std::thread::scope(|scope| {
        for file in 0..files {
            let writer = Writer { file, path: path(&source, file), log: &log, stop: &stop };
            let rng = Rng::new(seed << 8 | file as u64);
            scope.spawn(move || writer.run(rng));
        }
        std::thread::sleep(Duration::from_millis(seed % 20));
        let backup = Backup::from(&source).to(&destination).keep_free(KeepFree::Bytes(0));
        let outcome = backup.max_stall(Duration::from_secs(20)).start().and_then(hotbackup::Session::finish);
        stop.store(true, Ordering::Relaxed);
        let report = outcome.unwrap_or_else(|e| panic!("seed {seed}: the backup failed: {e}"));
        // The audit would make up for marks that are lost.
        assert!(report.unseen.is_empty(), "seed {seed}: taken for unseen changes: {:?}", report.unseen);
    });
    let copied: Vec<_> = (0..files).map(|file| slots(&path(&destination, file))).collect();
    let last = copied.iter().flatten().copied().max().expect("slots");
    let log = log.into_inner().expect("no panic while writing");
    assert!(last > 0 && (last as usize) < log.len(), "writes went on before and behind the cut");
    let mut expected = vec![vec![0; SLOTS as usize]; files];
    for &(file, slot, value) in &log[..last as usize] {
        expected[file][slot as usize] = value;
    }
    for (file, (copied, expected)) in copied.iter().zip(&expected).enumerate() {
        let wrong = copied.iter().zip(expected).position(|(copied, expected)| copied != expected);
        if let Some(slot) = wrong {
            let (found, right) = (copied[slot], expected[slot]);
            panic!(
                "seed {seed}: slot {slot} of file {file} is {found} instead of {right}; the last number is {last}"
            );
        }
    }
}

#[test]
fn a_copy_holds_every_asynchronous_write_up_to_the_last_and_none_beyond() {
    let _alone = common::alone();
    common::seeds(8).into_iter().for_each(session);
}

/// As one that was submitted before the session, whose end the program has not asked for by the cut: nobody noted it. The
/// engine finds its end in the ring, and marks what it wrote; else the audit would have the cut repeated.
#[test]
fn a_write_that_nobody_noted_is_found_in_its_ring() {
    let _alone = common::alone();
    let place = common::Place::new(Scratch::new(false), "async_io, not noted");
    let path = place.source.join("file");
    std::fs::write(&path, vec![0; BLOCK * 8]).expect("a file");
    let file = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(&path).expect("O_DIRECT");
    let ring = std::cell::RefCell::new(Native::new());
    let submitted = std::cell::Cell::new(false);
    let report = common::run(place.backup().before_cut(|| {
        if !submitted.replace(true) {
            let block = Block { at: 3 * BLOCK as u64, value: 77 };
            ring.borrow_mut().submit_unseen(file.as_raw_fd(), &block);
            std::thread::sleep(Duration::from_millis(100));
        }
    }));
    let block = std::fs::read(place.destination.join("file")).expect("the copy")[3 * BLOCK..][..8].to_vec();
    assert_eq!(block, 77u64.to_ne_bytes());
    assert_eq!(report.cut_attempts, 1, "the audit had to find it");
    ring.borrow_mut().reap();
}

/// The program unmaps a ring, and a file comes to lie where it was. What is read there says nothing about the ring.
#[test]
fn a_file_in_the_place_of_a_ring_is_not_taken_for_it() {
    if !uring::is_there() {
        return;
    }
    let _alone = common::alone();
    let place = common::Place::new(Scratch::new(true), "async_io, in the place of a ring");
    let path = place.source.join("file");
    std::fs::write(&path, [0; 2 * BLOCK]).expect("a file");
    let file = OpenOptions::new().write(true).open(&path).expect("the file");
    let other = tempfile::tempfile().expect("another file");
    other.write_all_at(&[0x11; BLOCK], 0).expect("it is filled");
    let mapped_over = std::cell::Cell::default();
    common::run(place.backup().before_cut(|| {
        uring::write(file.as_raw_fd(), b"kept", 0, false, false).expect("a ring");
        let mapped = std::fs::read_to_string("/proc/self/maps").expect("the mappings");
        let rings = mapped.lines().filter(|line| line.contains("[io_uring]") && line.contains(" 00000000 "));
        let starts = rings.filter_map(|line| usize::from_str_radix(line.split('-').next()?, 16).ok());
        let starts: Vec<usize> = starts.collect();
        uring::write(file.as_raw_fd(), b"this, too", BLOCK as i64, false, true).expect("a ring");
        assert!(!starts.is_empty());
        for &start in &starts {
            let flags = libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE;
            // SAFETY: a new mapping, where none is.
            let at =
                unsafe { libc::mmap(start as *mut _, BLOCK, libc::PROT_READ, flags, other.as_raw_fd(), 0) };
            assert_eq!(at.addr(), start, "the place is free");
        }
        mapped_over.set(starts);
    }));
    for start in mapped_over.take() {
        // SAFETY: the file's mapping, which nobody has used.
        assert_eq!(unsafe { libc::munmap(start as *mut _, BLOCK) }, 0);
    }
    let copy = std::fs::read(place.destination.join("file")).expect("the copy");
    assert!(copy.starts_with(b"kept") && copy[BLOCK..].starts_with(b"this, too"));
}

/// Work in `before_cut`, once, whose changes have to be in the copy of two files, without the audit having to find them.
fn is_copied_in_the_first_cut(name: &str, work: impl Fn(&[std::fs::File; 2])) {
    if !uring::is_there() {
        return;
    }
    let _alone = common::alone();
    let place = common::Place::new(Scratch::new(false), name);
    let paths = ["first", "second"].map(|file| place.source.join(file));
    let files = paths.each_ref().map(|path| {
        std::fs::write(path, [0; BLOCK]).expect("a file");
        OpenOptions::new().write(true).open(path).expect("the file")
    });
    let worked = std::cell::Cell::new(false);
    let report = common::run(place.backup().before_cut(|| {
        if !worked.replace(true) {
            work(&files);
        }
    }));
    assert!(report.unseen.is_empty() && report.cut_attempts == 1, "the audit had to find it: {report:?}");
    let (changed, read) = (|bytes: &Vec<u8>| bytes.starts_with(b"late"), |path: &Path| std::fs::read(path));
    let copied = ["first", "second"].map(|file| read(&place.destination.join(file)).expect("the copy"));
    let original = paths.map(|path| read(&path).expect("the file"));
    assert_eq!(copied.each_ref().map(changed), original.each_ref().map(changed));
    assert!(original.iter().any(changed), "it was written");
    assert_eq!(copied, original);
}

/// The kernel looks up what the descriptor of a request stands for when the request before it, to which it is linked, has ended.
#[test]
fn a_linked_write_is_captured_in_the_file_that_it_hits_in_the_end() {
    is_copied_in_the_first_cut("async_io, linked", |[first, second]| {
        let (wait, mut go_on) = std::io::pipe().expect("a pipe");
        let fd = calls::dup_apart(first.as_raw_fd()).expect("a descriptor") as RawFd;
        uring::write_behind(wait.as_raw_fd(), fd, b"late", || {
            assert_eq!(calls::dup2(second.as_raw_fd(), fd), Ok(fd.into()));
            go_on.write_all(b"!").expect("the pipe is open");
        });
        calls::close(fd).expect("it is closed");
    });
}

#[test]
fn a_write_to_a_registered_file_is_captured() {
    is_copied_in_the_first_cut("async_io, registered", |[first, _]| {
        uring::write_registered(first.as_raw_fd(), b"late", || true);
    });
}

/// Nobody can audit a file that is not known before a call changes it behind the cut: the call comes behind the audit.
#[test]
fn writes_to_a_registered_file_without_a_pause_are_not_taken_for_unseen_changes() {
    if !uring::is_there() {
        return;
    }
    let _alone = common::alone();
    let place = common::Place::new(Scratch::new(false), "async_io, registered, without a pause");
    // The audit comes to it last.
    let path = place.source.join("directory/file");
    std::fs::create_dir(place.source.join("directory")).expect("a directory");
    std::fs::write(&path, [0; BLOCK]).expect("a file");
    for other in 0..2000 {
        std::fs::write(place.source.join(other.to_string()), b"for the audit to look at").expect("a file");
    }
    let file = OpenOptions::new().write(true).open(&path).expect("the file");
    let stop = AtomicBool::new(false);
    let report = std::thread::scope(|scope| {
        scope.spawn(|| {
            uring::write_registered(file.as_raw_fd(), b"again and again", || stop.load(Ordering::Relaxed))
        });
        std::thread::sleep(Duration::from_millis(20));
        let outcome = place.backup().start().and_then(hotbackup::Session::finish);
        stop.store(true, Ordering::Relaxed);
        outcome.expect("the backup")
    });
    assert!(report.unseen.is_empty() && report.cut_attempts == 1, "{report:?}");
}
