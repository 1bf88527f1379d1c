//! The host's page cache is as it was before the backup, and files that the host uses with `O_DIRECT` are read so.
//!
//! Method: files on the filesystem of /var/tmp (or of `HOTBACKUP_CACHE_DIR`) are put out of the cache, or left in it, or both halfway; behind a session
//! mincore(2) tells which pages are there. How the engine reads a file is seen from its descriptors of it, which a thread
//! looks through during the session. A writer with `O_DIRECT` puts increasing numbers into blocks in a fixed order, so
//! that a copy shows whether it is of one instant. Tests say so when the filesystem cannot do what they need.

mod common;

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::ops::ControlFlow;
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::calls;
use common::{Place, Scratch, run};
use hotbackup::Throttle;

const PAGE: usize = 4096;
/// The number of cachestat(2) on every architecture; libc does not have it yet.
const CACHESTAT: libc::c_long = 451;

fn directory() -> PathBuf {
    std::env::var_os("HOTBACKUP_CACHE_DIR").unwrap_or_else(|| "/var/tmp".into()).into()
}

fn place(test: &str) -> Place {
    Place::new(Scratch::below(&directory()), test)
}

/// A file of `len` bytes that is on the disk, and not in the cache; its path.
fn cold(place: &Place, name: &str, len: usize) -> PathBuf {
    let path = place.source.join(name);
    let mut file = File::create(&path).expect("a source file");
    let bytes: Vec<u8> = (0..len).map(|i| (i / PAGE * 31 + i % 251) as u8).collect();
    file.write_all(&bytes).expect("room for it");
    file.sync_all().expect("it reaches the disk");
    // SAFETY: touches no memory.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    path
}

#[track_caller]
fn is_copied(place: &Place, name: &str) {
    let source = fs::read(place.source.join(name)).expect("the source");
    assert!(source == fs::read(place.destination.join(name)).expect("the copy"), "{name} differs");
}

/// The numbers of the pages of a file that are in the cache.
fn resident(path: &Path) -> Vec<usize> {
    let file = File::open(path).expect("the file");
    let len = file.metadata().expect("its size").len() as usize;
    let mut pages = vec![0u8; len.div_ceil(PAGE)];
    // SAFETY: a new mapping, which is never read, of the file's length; mincore writes one byte for each of its pages.
    unsafe {
        let map =
            libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0);
        assert_ne!(map, libc::MAP_FAILED, "mmap of {}", path.display());
        assert_eq!(libc::mincore(map, len, pages.as_mut_ptr()), 0, "mincore of {}", path.display());
        libc::munmap(map, len);
    }
    (0..pages.len()).filter(|&page| pages[page] & 1 != 0).collect()
}

#[track_caller]
fn nothing_resident(path: &Path) {
    let pages = resident(path);
    assert!(
        pages.is_empty(),
        "{} pages of {} are in the cache, the first {:?}",
        pages.len(),
        path.display(),
        pages[0]
    );
}

/// Whether pages can be put out of the cache here, and are let go: tmpfs and old kernels do not.
fn lets_go(cold: &Path) -> bool {
    if !resident(cold).is_empty() {
        common::say("skipped: the filesystem keeps its pages in the cache");
        return false;
    }
    let file = File::open(cold).expect("the file");
    let (range, mut counts) = ([0u64, PAGE as u64], [0u64; 5]);
    // SAFETY: cachestat(2) reads two words and writes five.
    let told = unsafe { libc::syscall(CACHESTAT, file.as_raw_fd(), range.as_ptr(), counts.as_mut_ptr(), 0) };
    if told != 0 {
        common::say("skipped: this kernel does not tell what is in the cache");
    }
    told == 0
}

/// Opens a file as a database with a cache of its own does; `None` where that is refused.
fn open_direct(path: &Path) -> Option<File> {
    let opened = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(path);
    if opened.is_err() {
        common::say("skipped: the filesystem refuses O_DIRECT");
    }
    opened.ok()
}

/// What `/proc` says of the flags of every descriptor that engine threads have of a file.
fn engine_flags(path: &Path) -> BTreeSet<i32> {
    let entries = |path: PathBuf| fs::read_dir(path).into_iter().flatten().flatten().map(|e| e.path());
    let is_engine = |task: &PathBuf| {
        fs::read_to_string(task.join("comm")).is_ok_and(|name| name.starts_with("hotbackup"))
    };
    let mut flags = BTreeSet::new();
    for task in entries("/proc/self/task".into()).filter(is_engine) {
        for fd in entries(task.join("fd")).filter(|fd| fs::read_link(fd).is_ok_and(|to| to == path)) {
            let info = task.join("fdinfo").join(fd.file_name().unwrap_or_default());
            let info = fs::read_to_string(info).unwrap_or_default();
            let octal = info.lines().find_map(|line| line.strip_prefix("flags:"));
            flags.extend(octal.and_then(|octal| i32::from_str_radix(octal.trim(), 8).ok()));
        }
    }
    flags.retain(|flags| flags & libc::O_PATH == 0);
    flags
}

/// Runs `session` and returns the flags that engine threads were seen to have the file open with meanwhile.
fn watching(path: &Path, session: impl FnOnce()) -> BTreeSet<i32> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let seen = scope.spawn(|| {
            let mut seen = BTreeSet::new();
            while !stop.load(Ordering::Relaxed) {
                seen.append(&mut engine_flags(path));
                std::thread::sleep(Duration::from_micros(200));
            }
            seen
        });
        session();
        stop.store(true, Ordering::Relaxed);
        seen.join().expect("the watcher")
    })
}

#[track_caller]
fn only_direct(flags: &BTreeSet<i32>) {
    assert!(!flags.is_empty(), "the engine was never seen to have the file open");
    assert!(flags.iter().all(|flags| flags & libc::O_DIRECT != 0), "opened without O_DIRECT: {flags:?}");
}

#[test]
fn a_file_that_the_host_has_open_with_o_direct_is_read_with_o_direct() {
    let _alone = common::alone();
    let place = place("direct");
    // Neither a multiple of a block nor of a piece, and one that is copied in chunks.
    for (name, len) in [("small", 5 * PAGE + 123), ("large", (40 << 20) + 4567)] {
        let path = cold(&place, name, len);
        let (Some(_open), true) = (open_direct(&path), lets_go(&path)) else { return };
        let destination = &place.destination;
        fs::create_dir_all(destination).expect("a destination");
        let flags = watching(&path, || {
            run(place.backup().throttle(Throttle::bytes_per_sec(len as u64 * 4)));
        });
        only_direct(&flags);
        nothing_resident(&path);
        is_copied(&place, name);
        fs::remove_dir_all(destination).expect("the copy goes");
    }
}

/// What is opened with O_DIRECT in the middle of the session is noted when it begins to converge.
#[test]
fn a_file_that_the_host_opens_with_o_direct_during_the_session_is_read_with_o_direct_from_then_on() {
    let _alone = common::alone();
    let place = place("direct later");
    let path = cold(&place, "file", 100_000);
    let Some(_) = open_direct(&path) else { return };
    let (mut host, mut block) = (None, Block::new());
    let flags = watching(&path, || {
        let backup = place.backup().throttle(Throttle::bytes_per_sec(400_000)).on_progress(|progress| {
            if host.is_none() && progress.bytes_done > 0 {
                host = open_direct(&path);
            }
            ControlFlow::Continue(())
        });
        // Only what is marked is read behind the first copy.
        run(backup.before_cut(|| {
            let writer = OpenOptions::new().write(true).open(&path).expect("the file");
            assert_eq!(calls::pwrite(writer.as_raw_fd(), block.filled(1), 0), Ok(PAGE as i64));
            std::thread::sleep(Duration::from_millis(50));
        }));
    });
    assert!(host.is_some(), "the session never said that it was copying");
    assert!(flags.iter().any(|flags| flags & libc::O_DIRECT != 0), "never opened with O_DIRECT: {flags:?}");
    is_copied(&place, "file");
}

/// A block of memory as `O_DIRECT` wants it.
struct Block(*mut u8);

impl Block {
    fn new() -> Block {
        let layout = std::alloc::Layout::from_size_align(PAGE, PAGE).expect("a valid layout");
        // SAFETY: the size is not zero.
        let block = unsafe { std::alloc::alloc_zeroed(layout) };
        assert!(!block.is_null());
        Block(block)
    }

    fn filled(&mut self, number: u64) -> &[u8] {
        // SAFETY: a page of our own, initialised, and borrowed like `self`.
        let bytes = unsafe { std::slice::from_raw_parts_mut(self.0, PAGE) };
        for record in bytes.chunks_exact_mut(8) {
            record.copy_from_slice(&number.to_be_bytes());
        }
        bytes
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let layout = std::alloc::Layout::from_size_align(PAGE, PAGE).expect("a valid layout");
        // SAFETY: allocated in `new` with this layout.
        unsafe { std::alloc::dealloc(self.0, layout) };
    }
}

/// Write number n goes to block n * 7 modulo their count, and is repeated all over it.
fn keep_writing(fd: RawFd, blocks: u64, stop: &AtomicBool) {
    let mut block = Block::new();
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let at = (number * 7 % blocks * PAGE as u64).cast_signed();
        assert_eq!(calls::pwrite(fd, block.filled(number), at), Ok(PAGE as i64));
        if number > blocks {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

#[test]
fn a_file_that_is_written_with_o_direct_meanwhile_is_copied_as_of_one_instant() {
    let _alone = common::alone();
    let place = place("direct writer");
    let blocks = 1021u64;
    let len = blocks as usize * PAGE + 77;
    let path = cold(&place, "file", len);
    let (Some(host), true) = (open_direct(&path), lets_go(&path)) else { return };
    let stop = AtomicBool::new(false);
    let flags = watching(&path, || {
        std::thread::scope(|scope| {
            scope.spawn(|| keep_writing(host.as_raw_fd(), blocks, &stop));
            std::thread::sleep(Duration::from_millis(300));
            run(place.backup().throttle(Throttle::bytes_per_sec(8 << 20)));
            stop.store(true, Ordering::Relaxed);
        });
    });
    only_direct(&flags);
    // A filesystem that keeps checksums writes through the cache even so, and leaves a page there now and then.
    assert!(resident(&path).len() < 16, "pages in the cache");
    let copy = fs::read(place.destination.join("file")).expect("the copy");
    assert_eq!(copy.len(), len);
    let number = |record: &[u8]| u64::from_be_bytes(record.try_into().expect("eight bytes"));
    let found: Vec<u64> = copy.chunks_exact(PAGE).map(|block| number(&block[..8])).collect();
    let last = *found.iter().max().expect("blocks");
    assert!(last > blocks, "the writer was slow: {last}");
    for (block, &first) in found.iter().enumerate() {
        let whole = copy[block * PAGE..(block + 1) * PAGE].chunks_exact(8).all(|r| number(r) == first);
        assert!(whole, "block {block} is torn");
        let newest = (last - blocks + 1..=last).find(|n| n * 7 % blocks == block as u64);
        assert_eq!(Some(first), newest, "block {block} beside write {last}");
    }
    assert_eq!(
        copy[blocks as usize * PAGE..],
        fs::read(&path).expect("the source")[blocks as usize * PAGE..]
    );
}

#[test]
fn what_was_not_in_the_cache_is_not_there_after_a_backup() {
    let _alone = common::alone();
    let place = place("cold");
    let names = [("tiny", 10), ("small", 300_000), ("middle", (9 << 20) + 5), ("large", 40 << 20)];
    let paths = names.map(|(name, len)| cold(&place, name, len));
    if !lets_go(&paths[0]) {
        return;
    }
    run(place.backup());
    for path in &paths {
        nothing_resident(path);
    }
    nothing_resident(&place.destination.join("large"));
    names.iter().for_each(|(name, _)| is_copied(&place, name));
}

#[test]
fn what_was_in_the_cache_is_there_after_a_backup() {
    let _alone = common::alone();
    let place = place("warm");
    let names = [("small", 300_000), ("large", 40 << 20)];
    for (name, len) in names {
        let path = cold(&place, name, len);
        if !lets_go(&path) {
            return;
        }
        warm(&path, len);
    }
    let before = names.map(|(name, _)| resident(&place.source.join(name)));
    assert!(before.iter().all(|pages| !pages.is_empty()));
    run(place.backup());
    for ((name, _), before) in names.iter().zip(before) {
        let (before, after) =
            (BTreeSet::from_iter(before), BTreeSet::from_iter(resident(&place.source.join(name))));
        let (gone, new) = (&before - &after, &after - &before);
        // The kernel takes a page now and then by itself (seen on an idle machine, without any backup).
        assert!(
            gone.len() * 10 < before.len() && new.is_empty(),
            "{name}: pages gone {gone:?}, and pages new {new:?}"
        );
        is_copied(&place, name);
    }
}

/// Reads every other stretch of 128 KiB of a file.
fn warm(path: &Path, len: usize) {
    use std::os::unix::fs::FileExt as _;
    let file = File::open(path).expect("the file");
    // SAFETY: touches no memory.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_RANDOM) };
    let mut bytes = vec![0; 128 << 10];
    for at in (0..len).step_by(256 << 10) {
        let len = bytes.len().min(len - at);
        file.read_exact_at(&mut bytes[..len], at as u64).expect("it can be read");
    }
}
