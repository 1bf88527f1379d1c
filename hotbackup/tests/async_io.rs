//! Writes that go on after the call that began them are in the copy if they were submitted before the cut, else not.
//!
//! Method: threads submit writes of native AIO, with `O_DIRECT` and several in flight at a time, to slots of files of their own;
//! others write with `pwrite`. Each write is of a number that is handed out under a lock which the submission is made under,
//! so that the order of the numbers is the order of the submissions. The copy must be what the writes up to some last number
//! make of the files. Requests and rings are laid out as `linux/aio_abi.h` says.

mod common;

use std::alloc::{Layout, alloc_zeroed};
use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::rng::Rng;
use common::{Scratch, Watchdog, calls};
use hotbackup::{Backup, KeepFree, intercept};

const BLOCK: usize = 4096;
const SLOTS: u64 = 512;
const DEPTH: usize = 8;

/// A request (`struct iocb`).
#[repr(C)]
#[derive(Default, Clone, Copy)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: u32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buffer: u64,
    count: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    event_fd: u32,
}

/// The end of a request (`struct io_event`).
#[repr(C)]
#[derive(Default, Clone, Copy)]
struct Event {
    data: u64,
    request: u64,
    result: i64,
    result2: i64,
}

/// One write in flight: its request and its block, which the kernel reads meanwhile.
struct Flight {
    request: Box<Iocb>,
    vector: Box<[u64; 2]>,
    block: &'static mut [u8],
}

impl Flight {
    fn new() -> Flight {
        let layout = Layout::from_size_align(BLOCK, BLOCK).expect("a layout");
        // SAFETY: fresh zeroed memory of that size, which is never given back.
        let block = unsafe { std::slice::from_raw_parts_mut(alloc_zeroed(layout), BLOCK) };
        Flight { request: Box::default(), vector: Box::default(), block }
    }

    fn fill(&mut self, fd: i32, slot: u64, number: u64, as_vector: bool) {
        self.block.chunks_mut(8).for_each(|word| word.copy_from_slice(&number.to_ne_bytes()));
        *self.vector = [self.block.as_ptr() as u64, BLOCK as u64];
        let (opcode, buffer, count) = match as_vector {
            false => (1, self.vector[0], self.vector[1]),
            true => (8, self.vector.as_ptr() as u64, 1),
        };
        let (fd, offset) = (fd.cast_unsigned(), (slot * BLOCK as u64).cast_signed());
        *self.request = Iocb { opcode, fd, buffer, count, offset, ..Iocb::default() };
    }
}

/// A ring and what flies.
struct Ring {
    id: u64,
    flying: Vec<Flight>,
    free: Vec<Flight>,
}

impl Ring {
    fn new() -> Ring {
        let mut id = 0u64;
        // SAFETY: the kernel writes the ring's address to `id`.
        let made = unsafe { libc::syscall(libc::SYS_io_setup, DEPTH, &raw mut id) };
        assert_eq!(made, 0, "a ring");
        Ring { id, flying: Vec::new(), free: (0..DEPTH).map(|_| Flight::new()).collect() }
    }

    fn submit(&mut self, fd: i32, slot: u64, number: u64, as_vector: bool) {
        let mut flight = self.free.pop().expect("one is free");
        flight.fill(fd, slot, number, as_vector);
        let requests = [std::ptr::from_ref(&*flight.request) as u64];
        let id = self.id;
        let taken = intercept::submitting(
            id,
            requests.as_ptr() as u64,
            1,
            // SAFETY: the request and what it points to live, unchanged, until its end is reaped.
            || unsafe { libc::syscall(libc::SYS_io_submit, id, 1, requests.as_ptr()) },
            |&taken| usize::try_from(taken).unwrap_or(0),
        );
        assert_eq!(taken, 1, "the kernel takes a request: {}", std::io::Error::last_os_error());
        self.flying.push(flight);
    }

    /// Waits for `least` ends.
    fn reap(&mut self, least: usize) {
        let mut events = [Event::default(); DEPTH];
        let (id, at) = (self.id, events.as_mut_ptr());
        let count = intercept::reaping(
            id,
            // SAFETY: the kernel writes at most as many events as there is room for.
            || unsafe { libc::syscall(libc::SYS_io_getevents, id, least, DEPTH, at, 0) },
            |&count| (at as u64, usize::try_from(count).unwrap_or(0)),
        );
        for event in &events[..usize::try_from(count).expect("events")] {
            assert_eq!(event.result, BLOCK as i64, "a write ends well");
            let is_it = |flight: &Flight| std::ptr::from_ref(&*flight.request) as u64 == event.request;
            let place = self.flying.iter().position(is_it).expect("it flies");
            self.free.push(self.flying.swap_remove(place));
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let id = self.id;
        // The writes that are left end in here, and nobody asks for them.
        // SAFETY: the ring is ours and nobody uses it any more.
        let destroy = || unsafe { libc::syscall(libc::SYS_io_destroy, id) };
        intercept::destroying(id, destroy, |&result| result == 0);
    }
}

/// Every write: its number, its file and slot.
type Log = Mutex<Vec<(usize, u64)>>;

struct Writer<'a> {
    file: usize,
    path: PathBuf,
    log: &'a Log,
    stop: &'a AtomicBool,
}

impl Writer<'_> {
    /// Takes the next number and begins its write.
    fn write(&self, slot: u64, begin: impl FnOnce(u64)) {
        let mut log = self.log.lock().expect("no panic while writing");
        log.push((self.file, slot));
        begin(log.len() as u64);
    }

    fn asynchronously(&self, mut rng: Rng) {
        let file = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(&self.path);
        let file = file.expect("a filesystem with O_DIRECT");
        let mut ring = Ring::new();
        let mut busy = VecDeque::new();
        while !self.stop.load(Ordering::Relaxed) {
            // Two writes to one slot in flight at the same time would have no order.
            let slot = rng.below(SLOTS);
            if busy.contains(&slot) {
                continue;
            }
            if ring.free.is_empty() {
                ring.reap(1);
                let flying: Vec<_> =
                    ring.flying.iter().map(|flight| flight.request.offset as u64 / BLOCK as u64).collect();
                busy.retain(|slot| flying.contains(slot));
            }
            if busy.contains(&slot) {
                continue;
            }
            busy.push_back(slot);
            self.write(slot, |number| ring.submit(file.as_raw_fd(), slot, number, number % 3 == 0));
            if rng.one_in(400) {
                // What flies ends with its ring; a new one has most likely the same address.
                drop(ring);
                ring = Ring::new();
                busy.clear();
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
            self.write(slot, |number| {
                block.chunks_mut(8).for_each(|word| word.copy_from_slice(&number.to_ne_bytes()));
                let at = (slot * BLOCK as u64).cast_signed();
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
    let (files, log, stop) = (4, Log::default(), AtomicBool::new(false));
    let path = |directory: &Path, file: usize| directory.join(format!("file {file}"));
    for file in 0..files {
        std::fs::write(path(&source, file), vec![0; BLOCK * SLOTS as usize]).expect("a file");
    }
    std::thread::scope(|scope| {
        for file in 0..files {
            let writer = Writer { file, path: path(&source, file), log: &log, stop: &stop };
            let rng = Rng::new(seed << 8 | file as u64);
            scope.spawn(
                move || if file == 3 { writer.synchronously(rng) } else { writer.asynchronously(rng) },
            );
        }
        std::thread::sleep(Duration::from_millis(seed % 20));
        let backup = Backup::from(&source).to(&destination).keep_free(KeepFree::Bytes(0));
        let outcome = backup.max_stall(Duration::from_secs(20)).start().and_then(hotbackup::Session::finish);
        stop.store(true, Ordering::Relaxed);
        outcome.unwrap_or_else(|e| panic!("seed {seed}: the backup failed: {e}"));
    });
    let copied: Vec<_> = (0..files).map(|file| slots(&path(&destination, file))).collect();
    let last = copied.iter().flatten().copied().max().expect("slots");
    let log = log.into_inner().expect("no panic while writing");
    assert!(last > 0 && (last as usize) < log.len(), "writes went on before and behind the cut");
    let mut expected = vec![vec![0; SLOTS as usize]; files];
    for (number, &(file, slot)) in (1..=last).zip(&log) {
        expected[file][slot as usize] = number;
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
    let (mut ring, mut flight) = (Ring::new(), Flight::new());
    flight.fill(file.as_raw_fd(), 3, 77, false);
    let requests = [std::ptr::from_ref(&*flight.request) as u64];
    let id = ring.id;
    let submitted = std::cell::Cell::new(false);
    let report = common::run(place.backup().before_cut(|| {
        if !submitted.replace(true) {
            // SAFETY: the request and its block live until the ring is destroyed.
            let taken = unsafe { libc::syscall(libc::SYS_io_submit, id, 1, requests.as_ptr()) };
            assert_eq!(taken, 1);
            std::thread::sleep(Duration::from_millis(100));
        }
    }));
    let block = std::fs::read(place.destination.join("file")).expect("the copy")[3 * BLOCK..][..8].to_vec();
    assert_eq!(block, 77u64.to_ne_bytes());
    assert_eq!(report.cut_attempts, 1, "the audit had to find it");
    ring.flying.push(flight);
    ring.reap(1);
}
