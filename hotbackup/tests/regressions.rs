//! Defects that were found once stay mended.
//!
//! Method: every test is named after the symptom of one defect and sets up the few calls that showed it, most of them in
//! `before_cut`, when nothing but the marks can tell the engine of a change. Then the copy is compared with the source, or
//! the report is looked at. Where a test waits, it is for files to be old enough that they are not copied again for their
//! youth alone.

mod common;

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, UNIX_EPOCH};

use common::calls::{self, Name};
use common::rng::Rng;
use common::tree::{Compare, Tree};
use common::{Place, Scratch, run};
use hotbackup::intercept::{Change, around};
use hotbackup::{Backup, Report, Session, Throttle};

fn place(test: &str) -> Place {
    Place::new(Scratch::new(true), test)
}

/// A file that is old enough to be judged by its marks alone.
fn old_file(place: &Place, bytes: &[u8]) -> File {
    let path = place.source.join("file");
    fs::write(&path, bytes).expect("a source file");
    std::thread::sleep(Duration::from_millis(400));
    File::options().write(true).open(path).expect("the source file")
}

#[track_caller]
fn is_copied(place: &Place) {
    let source = Tree::read(&place.source).expect("the source");
    let copy = Tree::read_destination(&place.destination).expect("the copy");
    let differences = source.differences(&copy, Compare { times: false, allocation: false }, 10);
    assert!(differences.is_empty(), "{differences:#?}");
}

/// A direct read fails with EIO where a store to a mapping has made a page dirty since the kernel wrote the file's pages back: "Direct
/// I/O collision with buffered writes" (fs/iomap/direct-io.c), for blocks whose allocation is delayed.
#[test]
fn stores_to_a_mapping_of_a_file_used_with_o_direct_do_not_fail_the_backup() {
    let _alone = common::alone();
    const FILES: usize = 8;
    const SIZE: i64 = 2 << 20;
    for _ in 0..3 {
        let place = Place::new(Scratch::new(false), "stores beside direct reads");
        let open = |number: usize| {
            let path = place.source.join(number.to_string());
            let direct =
                File::options().read(true).write(true).create(true).custom_flags(libc::O_DIRECT).open(path);
            direct.expect("a filesystem with O_DIRECT")
        };
        let files: Vec<File> = (0..FILES).map(open).collect();
        files.iter().for_each(|file| file.set_len(SIZE.cast_unsigned()).expect("a hole"));
        let (stop, resting) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for seed in 0..2 {
                let (files, stop, resting) = (&files, &stop, &resting);
                scope.spawn(move || {
                    let mut rng = Rng::new(seed);
                    while !stop.load(Ordering::Relaxed) {
                        let fd = files[rng.below(FILES as u64) as usize].as_raw_fd();
                        let at = rng.below(SIZE as u64 - 8192).cast_signed();
                        calls::store(fd, &[7; 5000], at).expect("stored");
                        if rng.one_in(64) {
                            let hole = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                            calls::fallocate(fd, hole, 0, SIZE).expect("a hole");
                        }
                    }
                    resting.fetch_add(1, Ordering::Relaxed);
                });
            }
            let outcome = place.backup().before_cut(|| {
                stop.store(true, Ordering::Relaxed);
                while resting.load(Ordering::Relaxed) < 2 {
                    std::thread::yield_now();
                }
            });
            let outcome = outcome.start().and_then(Session::finish);
            stop.store(true, Ordering::Relaxed);
            outcome.expect("the backup");
        });
        is_copied(&place);
    }
}

/// A journal, written in one call and truncated in another: no cut can find it at any other length.
#[test]
fn an_interrupted_patch_leaves_no_tail() {
    let _alone = common::alone();
    const FULL: usize = 64 << 20;
    let data = vec![b'J'; FULL];
    for round in 0..8 {
        let place = place("tail");
        let path = place.source.join("journal");
        let journal = File::create(&path).expect("a journal");
        let (begun, stop) = (AtomicBool::new(false), AtomicBool::new(false));
        let outcome = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !begun.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
                while !stop.load(Ordering::Relaxed) {
                    assert_eq!(calls::pwrite(journal.as_raw_fd(), &data, 0), Ok(FULL as i64));
                    let asked = Instant::now();
                    calls::ftruncate(journal.as_raw_fd(), 0).expect("truncated");
                    // It waited at the gate, so a patch may have been interrupted: leave the journal empty.
                    if asked.elapsed() > Duration::from_millis(5) {
                        break;
                    }
                }
            });
            let backup = place.backup().max_lag(1 << 30).max_stall(Duration::from_millis(45));
            let outcome = backup.before_cut(|| begun.store(true, Ordering::Relaxed)).start();
            let outcome = outcome.and_then(Session::finish);
            begun.store(true, Ordering::Relaxed);
            stop.store(true, Ordering::Relaxed);
            outcome
        });
        // So short a stall may be too short for a cut.
        if outcome.is_ok() {
            let len = fs::metadata(place.destination.join("journal")).expect("the copy").len();
            assert!(len == 0 || len == FULL as u64, "round {round}: {len} bytes");
        }
    }
}

/// More files than wait for a copier at a time, so that most are still to be handed out when their directory moves.
#[test]
fn a_renamed_directory_does_not_escape_the_throttle() {
    let _alone = common::alone();
    let place = place("throttle");
    let old = place.source.join("old");
    fs::create_dir(&old).expect("a directory");
    for i in 0..1000 {
        fs::write(old.join(format!("file {i}")), vec![1; 40 << 10]).expect("a source file");
    }
    let [from, to] = ["old", "new"].map(|name| calls::c(place.source.join(name).to_str().expect("ordinary")));
    let at = |path| Name { dir: libc::AT_FDCWD, path };
    let begun = Instant::now();
    let session = place.backup().throttle(Throttle::bytes_per_sec(20 << 20)).start().expect("it starts");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(200));
            calls::rename(at(&from), at(&to), 0).expect("renamed");
        });
        session.finish().expect("the backup");
    });
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(1200), "39 MiB at 20 MiB/s took {took:?}");
    is_copied(&place);
}

/// Names are excluded, not inodes: which of two names is seen first does not matter.
#[test]
fn a_name_left_out_is_judged_anew_when_its_directory_moves() {
    let _alone = common::alone();
    let place = place("left out, then moved");
    fs::create_dir(place.source.join("cache")).expect("a directory");
    fs::write(place.source.join("cache/file"), b"kept when it is no cache").expect("a file");
    let moved = place.source.join("data");
    let backup = place.backup().exclude("^/cache/").before_cut(|| {
        hotbackup::fs::rename(place.source.join("cache"), &moved).expect("renamed");
    });
    run(backup);
    assert!(place.destination.join("data/file").is_file(), "what is no longer excluded is missing");
}

/// On ext4 a file gets the number of the link that was removed just before. While the sources are copied their
/// directories are not listed again.
#[test]
fn a_file_in_the_place_of_a_link_is_not_taken_for_it() {
    let _alone = common::alone();
    let place = Place::new(Scratch::new(false), "link, then file");
    let name = |i: i32| place.source.join(format!("name {i}"));
    for i in 0..50 {
        std::os::unix::fs::symlink("nowhere", name(i)).expect("a link");
    }
    fs::write(place.source.join("large"), vec![b'x'; 2 << 20]).expect("a source file");
    let session = place.backup().max_lag(1 << 20).throttle(Throttle::bytes_per_sec(2 << 20)).start();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(300));
            for text in ["first", "second"] {
                for i in 0..50 {
                    if text == "first" {
                        hotbackup::fs::remove_file(name(i)).expect("removed");
                    }
                    hotbackup::fs::write(name(i), text).expect("written");
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        session.and_then(Session::finish).expect("the backup");
    });
    is_copied(&place);
}

#[test]
fn an_excluded_hard_link_is_left_out_and_the_other_name_is_not() {
    let _alone = common::alone();
    let place = place("excluded link");
    for i in 0..20 {
        let name = place.source.join(format!("file {i}"));
        fs::write(&name, b"x").expect("a source file");
        fs::hard_link(&name, place.source.join(format!("file {i}.bak"))).expect("a hard link");
    }
    run(place.backup().exclude(r"\.bak$"));
    for i in 0..20 {
        fs::remove_file(place.source.join(format!("file {i}.bak"))).expect("the link goes");
    }
    is_copied(&place);
}

/// The engine has looked at the descriptor, and expects the bytes at an offset; then they go to the end.
#[test]
fn append_mode_turned_on_beside_a_pwrite_loses_nothing() {
    let _alone = common::alone();
    let place = place("append");
    let file = old_file(&place, &[b'a'; 8192]);
    run(place.backup().before_cut(|| {
        let written = around(Change::WriteAt { fd: file.as_raw_fd(), at: 0 }, || {
            calls::set_append(file.as_raw_fd(), true).expect("append mode");
            file.write_at(b"LOST", 0)
        });
        assert_eq!(written.expect("written"), 4);
    }));
    is_copied(&place);
    assert_eq!(fs::metadata(place.destination.join("file")).expect("the copy").len(), 8196);
}

/// The descriptor stands for another file when the call is made, and for a third one behind it. A captured write elsewhere explains
/// the file's times.
#[test]
fn a_descriptor_that_changes_twice_beside_a_write_loses_nothing() {
    let _alone = common::alone();
    let place = place("changes twice");
    let file = old_file(&place, &[b'a'; 8192]);
    let others = ["before", "behind"].map(|name| File::create(place.source.join(name)).expect("a file"));
    run(place.backup().before_cut(|| {
        let fd = calls::dup(others[0].as_raw_fd()).expect("a descriptor") as RawFd;
        assert_eq!(calls::pwrite(file.as_raw_fd(), b"C", 0), Ok(1));
        let written = around(Change::WriteAt { fd, at: 4096 }, || {
            calls::dup2(file.as_raw_fd(), fd).expect("another file");
            let written = file.write_at(b"LOST", 4096);
            calls::dup2(others[1].as_raw_fd(), fd).expect("a third file");
            written
        });
        assert_eq!(written.expect("written"), 4);
        calls::close(fd).expect("closed");
    }));
    is_copied(&place);
}

/// The descriptor is one for reading only before the call, and for writing when the file is mapped.
#[test]
fn a_descriptor_that_changes_beside_a_mapping_loses_nothing() {
    let _alone = common::alone();
    let place = place("changes beside mmap");
    old_file(&place, &[b'a'; 8192]);
    let path = place.source.join("file");
    let file = File::options().read(true).write(true).open(&path).expect("the source file");
    let other = File::open(&path).expect("the source file");
    run(place.backup().before_cut(|| {
        let fd = calls::dup(other.as_raw_fd()).expect("a descriptor") as RawFd;
        assert_eq!(calls::pwrite(file.as_raw_fd(), b"C", 0), Ok(1));
        let stored = calls::store_behind(fd, b"LOST", 4096, || {
            calls::dup2(file.as_raw_fd(), fd).expect("another description");
        });
        assert_eq!(stored, Ok(4));
        calls::close(fd).expect("closed");
    }));
    is_copied(&place);
}

/// A range that is to become zeros can run out of space halfway. A captured write elsewhere explains the file's times.
#[test]
fn an_allocation_that_fails_halfway_is_not_taken_for_nothing() {
    let _alone = common::alone();
    let place = place("zeros");
    let file = old_file(&place, &[b'a'; 1 << 20]);
    let fd = file.as_raw_fd();
    let zeros = Change::Allocate { fd, mode: libc::FALLOC_FL_ZERO_RANGE, at: 0, len: 1 << 30 };
    run(place.backup().before_cut(|| {
        let failed = around(zeros, || {
            file.write_all_at(&[0; 65536], 0)?;
            Err::<(), _>(io::Error::from_raw_os_error(libc::ENOSPC))
        });
        assert!(failed.is_err());
        assert_eq!(calls::pwrite(fd, b"C", 900_000), Ok(1));
    }));
    is_copied(&place);
}

/// The blocks that are there are written before the kernel finds that the end behind it is not aligned; then it says EINVAL.
#[test]
fn a_direct_write_that_is_refused_halfway_is_not_taken_for_nothing() {
    let _alone = common::alone();
    // Not in memory, where everything is taken.
    let place = Place::new(Scratch::new(false), "half a direct write");
    let file = old_file(&place, &[b'x'; 8192]);
    let direct = calls::c(place.source.join("file").to_str().expect("ordinary"));
    let name = Name { dir: libc::AT_FDCWD, path: &direct };
    let fd = calls::openat(name, libc::O_RDWR | libc::O_DIRECT, 0).expect("opened") as RawFd;
    run(place.backup().before_cut(|| {
        let _ = calls::pwrite_aligned(fd, &[b'D'; 16386], 0);
        // This explains the times.
        assert_eq!(calls::pwrite(file.as_raw_fd(), b"C", 8000), Ok(1));
    }));
    calls::close(fd).expect("closed");
    is_copied(&place);
}

/// It names a program that listens, and nobody listens in a copy.
#[test]
fn sockets_are_left_out() {
    let _alone = common::alone();
    let place = place("sockets");
    fs::create_dir(place.source.join("run")).expect("a directory");
    let listen =
        |name: &str| std::os::unix::net::UnixListener::bind(place.source.join(name)).expect("a socket");
    let _before = listen("run/before");
    let mut meanwhile = None;
    run(place.backup().before_cut(|| {
        meanwhile.get_or_insert_with(|| listen("meanwhile"));
    }));
    is_copied(&place);
    assert!(fs::read_dir(place.destination.join("run")).expect("the copy").next().is_none());
}

/// How long a freeze may take beside a program that never rests.
const LONGEST: Duration = Duration::from_millis(100);

/// Runs a session while `loads` run, which end when they are told to.
fn beside(backup: Backup<'_>, loads: &[&(dyn Fn(&AtomicBool) + Sync)]) -> Report {
    let stop = AtomicBool::new(false);
    let outcome = std::thread::scope(|scope| {
        for load in loads {
            let stop = &stop;
            scope.spawn(move || load(stop));
        }
        let outcome = backup.start().and_then(Session::finish);
        stop.store(true, Ordering::Relaxed);
        outcome
    });
    outcome.expect("the backup")
}

#[track_caller]
fn is_cut_soon(report: &Report) {
    assert!(report.freeze <= LONGEST, "a freeze of {:?}", report.freeze);
    assert!(report.cut_attempts <= 3, "{} tries", report.cut_attempts);
}

fn make_and_remove(path: &Path, stop: &AtomicBool) {
    let path = calls::c(path.to_str().expect("ordinary"));
    let name = Name { dir: libc::AT_FDCWD, path: &path };
    while !stop.load(Ordering::Relaxed) {
        let fd = calls::openat(name, libc::O_CREAT | libc::O_WRONLY, 0o600).expect("made");
        calls::close(fd as RawFd).expect("closed");
        calls::unlink(name, 0).expect("removed");
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// It is listed again in every freeze, which must not examine every entry, nor go on when its time is over.
#[test]
fn a_large_directory_that_changes_all_the_while_is_cut_soon() {
    let _alone = common::alone();
    let place = place("large directory");
    for i in 0..50_000 {
        File::create(place.source.join(format!("an entry with a name of some length {i}")))
            .expect("an entry");
    }
    let load = |stop: &AtomicBool| make_and_remove(&place.source.join("comes and goes"), stop);
    let report = beside(place.backup().max_stall(LONGEST), &[&load]);
    is_cut_soon(&report);
    assert!(report.files >= 50_000, "{} files", report.files);
}

/// Files that are made faster than they are copied.
#[test]
fn a_session_ends_while_files_are_made_without_end() {
    let _alone = common::alone();
    let place = place("files without end");
    let threads = AtomicU64::new(0);
    let make = |stop: &AtomicBool| {
        let thread = threads.fetch_add(1, Ordering::Relaxed);
        for directory in 0.. {
            let directory = place.source.join(format!("{thread}.{directory}"));
            hotbackup::fs::create_dir(&directory).expect("a directory");
            for file in 0..1000 {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                hotbackup::fs::write(directory.join(file.to_string()), b"little").expect("a file");
            }
        }
    };
    beside(place.backup().max_stall(Duration::from_secs(20)), &[&make, &make, &make, &make]);
}

/// What a caller allows to be owed while files are copied is far more than a freeze can make up for.
#[test]
fn a_session_with_a_high_bound_on_the_lag_ends_while_writers_saturate() {
    const SIZE: usize = 64 << 20;
    let _alone = common::alone();
    let place = place("high bound");
    let path = place.source.join("file");
    fs::write(&path, vec![1; SIZE]).expect("a source file");
    let threads = AtomicU64::new(0);
    let write = |stop: &AtomicBool| {
        let mut at = threads.fetch_add(1, Ordering::Relaxed);
        let file = hotbackup::fs::File::options().write(true).open(&path).expect("the source file");
        let block = vec![at as u8; 1 << 20];
        while !stop.load(Ordering::Relaxed) {
            at = (at + 7) % (SIZE as u64 >> 20);
            file.write_all_at(&block, at << 20).expect("written");
        }
    };
    let backup = place.backup().max_lag(1 << 30).max_stall(Duration::from_secs(20));
    let report = beside(backup, &[&write, &write, &write, &write]);
    assert!(report.cut_attempts <= 3, "{} tries", report.cut_attempts);
}

/// A call that finds names moving beside it may have hit any file; that must not have them all copied in the freeze.
#[test]
fn directories_that_are_renamed_beside_calls_on_paths_do_not_hold_up_the_cut() {
    let _alone = common::alone();
    let place = place("crossings");
    let (old, new) = (place.source.join("old"), place.source.join("new"));
    fs::create_dir(&old).expect("a directory");
    for i in 0..5_000 {
        fs::write(place.source.join(i.to_string()), [i as u8; 50_000]).expect("a file");
    }
    let rename = |stop: &AtomicBool| {
        while !stop.load(Ordering::Relaxed) {
            hotbackup::fs::rename(&old, &new).expect("renamed");
            hotbackup::fs::rename(&new, &old).expect("renamed back");
        }
    };
    let truncate = |stop: &AtomicBool| {
        let path = calls::c(place.source.join("0").to_str().expect("ordinary"));
        for length in (0..10_000).cycle().take_while(|_| !stop.load(Ordering::Relaxed)) {
            calls::truncate(&path, length).expect("truncated");
        }
    };
    is_cut_soon(&beside(place.backup().max_stall(LONGEST), &[&rename, &truncate]));
}

/// The kernel tells of every file that is closed after writing on the same filesystem. Reading of them must end while more are
/// closed all the while, and must not make the engine the one that has to free what was deleted meanwhile.
#[test]
fn files_opened_and_closed_without_end_do_not_hold_up_a_session() {
    let _alone = common::alone();
    let scratch = Scratch::new(true);
    let elsewhere = scratch.dir("elsewhere");
    let place = Place::new(scratch, "closed without end");
    fs::write(place.source.join("file"), b"little").expect("a source file");
    let threads = AtomicU64::new(0);
    let close = |stop: &AtomicBool| {
        let thread = threads.fetch_add(1, Ordering::Relaxed);
        for number in (0..500).cycle().take_while(|_| !stop.load(Ordering::Relaxed)) {
            let path = elsewhere.join(format!("{thread}.{number}"));
            fs::write(&path, [1; 100_000]).expect("a file elsewhere");
            fs::remove_file(&path).expect("the file elsewhere");
        }
    };
    beside(place.backup().max_stall(Duration::from_secs(20)), &[&close as &(dyn Fn(&AtomicBool) + Sync); 16]);
}

/// On ext4 a file gets the number of the link that was removed just before. A name that changes its kind between two looks at it
/// has the kind of one and the handle of the other.
#[test]
fn names_that_change_their_kind_all_the_while_are_copied_as_what_they_are() {
    let _alone = common::alone();
    for _ in 0..40 {
        let place = Place::new(Scratch::new(false), "kinds");
        let threads = AtomicU64::new(0);
        let change = |stop: &AtomicBool| {
            let thread = threads.fetch_add(1, Ordering::Relaxed);
            for number in (0..30).cycle().take_while(|_| !stop.load(Ordering::Relaxed)) {
                let path = place.source.join(format!("{thread}.{number}"));
                let _ = hotbackup::fs::remove_file(&path);
                hotbackup::fs::symlink("nowhere", &path).expect("a link");
                hotbackup::fs::remove_file(&path).expect("the link");
                hotbackup::fs::write(&path, b"a file").expect("a file");
            }
        };
        beside(place.backup().max_stall(Duration::from_secs(20)), &[&change, &change, &change]);
    }
}

/// Nobody's permission comes from where the backup goes to.
#[test]
fn a_list_of_permissions_of_the_destination_is_not_inherited() {
    let _alone = common::alone();
    let place = place("default list");
    fs::create_dir(place.source.join("directory")).expect("a directory");
    fs::write(place.source.join("directory/file"), b"of nobody else").expect("a file");
    fs::create_dir_all(&place.destination).expect("the destination");
    let set = Command::new("setfacl").args(["-d", "-m", "u:1234:rwx"]).arg(&place.destination).status();
    assert!(set.expect("setfacl runs").success());
    let late = place.source.join("directory/late");
    run(place.backup().before_cut(|| fs::write(&late, b"found at the cut").expect("a file")));
    is_copied(&place);
}

#[test]
fn a_mode_that_is_changed_through_a_link_is_the_file_s() {
    let _alone = common::alone();
    let place = place("through a link");
    old_file(&place, b"public");
    std::os::unix::fs::symlink("file", place.source.join("link")).expect("a link");
    let link = calls::c(place.source.join("link").to_str().expect("ordinary"));
    run(place.backup().before_cut(|| {
        calls::chmod(Name { dir: libc::AT_FDCWD, path: &link }, 0o600).expect("changed");
    }));
    is_copied(&place);
}

/// Of the copy and, which the backup reads, of the source.
#[test]
fn the_time_of_the_last_access_is_kept() {
    let _alone = common::alone();
    let place = place("times");
    let (file, directory) = (place.source.join("directory/file"), place.source.join("directory"));
    fs::create_dir(&directory).expect("a directory");
    fs::write(&file, b"read long ago").expect("a file");
    let [accessed, modified] =
        [123_456_789, 987_654_321].map(|ns| UNIX_EPOCH + Duration::new(1_000_000_000, ns));
    let times = fs::FileTimes::new().set_accessed(accessed).set_modified(modified);
    for path in [&file, &directory] {
        File::open(path).and_then(|file| file.set_times(times)).expect("times are set");
    }
    run(place.backup());
    for root in [&place.source, &place.destination] {
        for name in ["directory/file", "directory"] {
            let found = fs::symlink_metadata(root.join(name)).expect("a file");
            assert_eq!(
                (found.accessed().ok(), found.modified().ok()),
                (Some(accessed), Some(modified)),
                "{name}"
            );
        }
    }
}

/// A call that begins before its file is watched, and ends behind that, marks what it wrote; it marked the whole file, so that every
/// large file that is written to without a pause was copied twice.
#[test]
fn a_write_to_a_file_that_comes_to_be_watched_meanwhile_has_no_more_copied_again_than_it_wrote() {
    let _alone = common::alone();
    const SIZE: usize = 8 << 20;
    for at_position in [false, true] {
        let place = place("comes to be watched");
        let outside = place.source.with_file_name("outside");
        fs::write(&outside, vec![1; SIZE]).expect("a file outside of the source");
        let file = File::options().write(true).open(&outside).expect("the file");
        let [from, to] =
            [&outside, &place.source.join("file")].map(|path| calls::c(path.to_str().expect("UTF-8")));
        let come_in = || {
            let at = |path| Name { dir: libc::AT_FDCWD, path };
            calls::rename(at(&from), at(&to), 0).expect("renamed");
            // Now the engine finds it and copies it.
            std::thread::sleep(Duration::from_millis(600));
        };
        let write = || -> io::Result<usize> {
            std::thread::scope(|scope| drop(scope.spawn(come_in)));
            if at_position { (&file).write(&[2; 4096]) } else { file.write_at(&[2; 4096], 0) }
        };
        let fd = file.as_raw_fd();
        let change = if at_position { Change::Write { fd } } else { Change::WriteAt { fd, at: 0 } };
        let report = run(place.backup().before_cut(|| {
            if outside.exists() {
                assert_eq!(around(change, write).expect("a write"), 4096);
            }
        }));
        is_copied(&place);
        let copied = report.bytes_copied + report.bytes_recopied;
        assert!((SIZE as u64..SIZE as u64 + 16384).contains(&copied), "{report:?}");
    }
}
