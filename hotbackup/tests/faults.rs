//! What goes wrong with a backup is said by the backup, and nobody else notices.
//!
//! Method: every test makes one thing wrong (arguments, permissions, space, a callback), has a writer going meanwhile
//! where that matters, and looks at three things: the error names the place, the host's calls all succeeded, and nothing
//! changed outside the destination (the scratch directory is read before and after). Tests that mount or drop
//! privileges need root and say so when they are skipped.

mod common;

use std::fs;
use std::ops::ControlFlow;
use std::os::fd::RawFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use common::calls::{self, Name};
use common::tree::{Compare, Tree};
use common::{Scratch, Watchdog};
use hotbackup::intercept::{Change, around};
use hotbackup::{Backup, Error, KeepFree, Phase, Report, Session, Throttle};

const EVERYTHING: Compare = Compare { times: true, allocation: false };

fn is_root() -> bool {
    calls::effective_ids().0 == 0
}

/// A scratch directory with a furnished source and an empty destination.
struct Place {
    scratch: Scratch,
    source: PathBuf,
    destination: PathBuf,
    _watchdog: Watchdog,
}

impl Place {
    fn new(test: &str) -> Place {
        let scratch = Scratch::new(true);
        let (source, destination) = (scratch.dir("source"), scratch.dir("destination"));
        fs::create_dir_all(source.join("in/ner")).expect("directories");
        for (name, len) in [("small", 10), ("in/ner/large", 3 << 20), ("in/middle", 70_000)] {
            fs::write(source.join(name), vec![b'x'; len]).expect("a source file");
        }
        Place {
            scratch,
            source,
            destination,
            _watchdog: Watchdog::new(test.to_owned(), Duration::from_secs(60)),
        }
    }

    fn backup<'a>(&self) -> Backup<'a> {
        small(Backup::from(&self.source).to(&self.destination))
    }

    /// What lies in the scratch directory, without what is below the destination.
    fn outside(&self) -> Tree {
        let mut tree = Tree::read(self.scratch.path()).expect("the scratch directory can be read");
        // Writers beside the session write to files of their own, which makes those and nothing else differ.
        // The scratch directory itself has another time when the destination is taken away.
        tree.names
            .retain(|name, _| !name.is_empty() && !name.starts_with("destination") && name != "source/hot");
        tree
    }

    /// Has `run` leave everything outside of the destination as it is.
    fn untouched<R>(&self, run: impl FnOnce() -> R) -> R {
        let before = self.outside();
        let result = run();
        let changed = before.differences(&self.outside(), EVERYTHING, 10);
        assert!(changed.is_empty(), "changed outside of the destination: {changed:#?}");
        result
    }

    /// Runs this backup, which must fail, and leave everything outside of the destination as it is.
    fn fails(&self, backup: Backup<'_>) -> Error {
        let error = self.untouched(|| run(backup).expect_err("this backup cannot succeed"));
        assert!(hotbackup::current().is_none(), "a session is left over");
        error
    }

    /// The engine must still be good for a backup.
    fn still_works(&self) {
        let again = self.scratch.dir("again");
        let outcome = run(small(Backup::from(&self.source).to(&again)));
        let report = outcome.expect("the next backup");
        assert_eq!(report.cut_attempts, 1);
        let source = Tree::read(&self.source).expect("the source");
        let copy = Tree::read_destination(&again).expect("the copy");
        let differences = source.differences(&copy, EVERYTHING, 10);
        assert!(differences.is_empty(), "{differences:#?}");
        fs::remove_dir_all(again).expect("the copy goes");
    }
}

fn small(backup: Backup<'_>) -> Backup<'_> {
    backup.keep_free(KeepFree::Bytes(0))
}

fn run(backup: Backup<'_>) -> hotbackup::Result<Report> {
    backup.start().and_then(Session::finish)
}

fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).expect("the directory").next().is_none()
}

/// The error says where the trouble is.
#[track_caller]
fn names(error: &Error, path: &Path) {
    let text = error.to_string();
    assert!(
        text.contains(path.to_str().expect("an ordinary path")),
        "{text:?} does not name {}",
        path.display()
    );
}

/// A thread that writes to a file while a test runs; every call must succeed.
struct Writer {
    stop: AtomicBool,
    written: AtomicU64,
    fd: RawFd,
}

impl Writer {
    fn open(path: &Path) -> Writer {
        let name = calls::c(path.to_str().expect("an ordinary path"));
        let file = Name { dir: libc::AT_FDCWD, path: &name };
        let fd = calls::openat(file, libc::O_CREAT | libc::O_RDWR, 0o600).expect("a file to write to");
        Writer { stop: AtomicBool::new(false), written: AtomicU64::new(0), fd: fd as RawFd }
    }

    /// Runs `test` beside the writer; the writer must have come on at its end.
    fn beside<R>(&self, test: impl FnOnce() -> R) -> R {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let block = [7u8; 512];
                while !self.stop.load(Ordering::Relaxed) {
                    let at = (self.written.fetch_add(1, Ordering::Relaxed) % 64) * 512;
                    assert_eq!(calls::pwrite(self.fd, &block, at.cast_signed()), Ok(512));
                    std::thread::sleep(Duration::from_micros(50));
                }
            });
            let result = test();
            let before = self.written.load(Ordering::Relaxed);
            while self.written.load(Ordering::Relaxed) < before + 3 {
                std::thread::yield_now();
            }
            self.stop.store(true, Ordering::Relaxed);
            result
        })
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = calls::close(self.fd);
    }
}

#[test]
fn a_destination_that_is_not_empty_is_left_alone() {
    let _alone = common::alone();
    let place = Place::new("not_empty");
    let precious = place.destination.join("precious");
    fs::write(&precious, "mine").expect("a file in the destination");
    let error = place.fails(place.backup());
    assert!(matches!(error, Error::DestinationNotEmpty { .. }), "{error}");
    names(&error, &place.destination);
    assert_eq!(fs::read(&precious).expect("still there"), b"mine");
    assert_eq!(fs::read_dir(&place.destination).expect("the destination").count(), 1);
    place.still_works();
}

/// What it is about, sources with their destinations, and the path that the error names.
type Case<'a> = (&'a str, Vec<(&'a Path, &'a Path)>, &'a Path);

#[test]
fn wrong_arguments_are_named_and_nothing_is_made() {
    let _alone = common::alone();
    let place = Place::new("arguments");
    let (source, destination) = (&place.source, &place.destination);
    let missing = place.scratch.path().join("missing");
    let file = source.join("small");
    let inside = source.join("in");
    let link = place.scratch.path().join("link");
    std::os::unix::fs::symlink(source, &link).expect("a symbolic link");
    let other = place.scratch.dir("other");
    let second = place.scratch.dir("second");
    let nested = other.join("nested");
    fs::create_dir(&nested).expect("a directory");
    let cases: [Case<'_>; 14] = [
        ("missing source", vec![(&missing, destination)], &missing),
        ("missing destination", vec![(source, &missing)], &missing),
        ("a file as source", vec![(&file, destination)], &file),
        ("a file as destination", vec![(source, &file)], &file),
        ("same", vec![(source, source)], source),
        ("same by a link", vec![(source, &link)], source),
        ("destination inside", vec![(source, &inside)], &inside),
        ("destination inside, by a link", vec![(&link, &inside)], &inside),
        ("destination around", vec![(source, place.scratch.path())], source),
        ("source twice", vec![(source, destination), (source, &other)], source),
        ("nested sources", vec![(source, destination), (&inside, &nested)], &inside),
        ("destination twice", vec![(source, destination), (&inside, destination)], destination),
        ("destination in the other source", vec![(source, destination), (&other, &inside)], &inside),
        ("nested destinations", vec![(source, &nested), (&second, &other)], &nested),
    ];
    for (case, pairs, culprit) in cases {
        let add = |backup: Backup<'static>, (from, to): &(&Path, &Path)| backup.pair(from, to);
        let error = place.fails(small(pairs.iter().fold(Backup::new(), add)));
        let text = error.to_string();
        let path = culprit.to_str().expect("an ordinary path");
        assert!(text.contains(path), "{case}: {text:?} does not name {path}");
        assert!(is_empty(destination), "{case}: something was made in the destination");
    }
    assert!(matches!(place.fails(Backup::new()), Error::NoSource));
    let error = place.fails(place.backup().exclude("(unclosed"));
    assert!(matches!(error, Error::Pattern { .. }), "{error}");
    place.still_works();
}

#[test]
fn a_full_destination_fails_the_backup_and_no_write() {
    let _alone = common::alone();
    let place = Place::new("full");
    if !is_root() {
        return common::say("skipped: mounting needs root");
    }
    let _mounted = Mounted::new(&place.destination, "size=2m");
    let writer = Writer::open(&place.source.join("hot"));
    let error = writer.beside(|| place.fails(place.backup()));
    assert_eq!(error.errno(), libc::ENOSPC, "{error}");
    names(&error, &place.destination);
}

/// The estimate fits, but then the source grows: the space ends in the middle.
#[test]
fn a_destination_that_fills_up_meanwhile_fails_the_backup_and_no_write() {
    let _alone = common::alone();
    let place = Place::new("fills up");
    if !is_root() {
        return common::say("skipped: mounting needs root");
    }
    let _mounted = Mounted::new(&place.destination, "size=5m");
    let writer = Writer::open(&place.source.join("hot"));
    let source = place.source.clone();
    let error = writer.beside(|| {
        let growing = Writer::open(&source.join("hot"));
        let backup = place.backup().before_cut(|| {
            for at in 0..100 {
                assert_eq!(calls::pwrite(growing.fd, &[1; 65536], at << 16), Ok(65536));
            }
        });
        place.fails(backup)
    });
    assert_eq!(error.errno(), libc::ENOSPC, "{error}");
    names(&error, &place.destination);
    assert!(has_mark(&place.destination), "the destination is not marked as incomplete");
}

/// What stays free of the destination's filesystem stays free while the session converges, too.
#[test]
fn a_source_that_grows_while_converging_leaves_the_reserve_alone() {
    let _alone = common::alone();
    let place = Place::new("reserve");
    if !is_root() {
        return common::say("skipped: mounting needs root");
    }
    let _mounted = Mounted::new(&place.destination, "size=256m");
    let keep = 128 << 20;
    let source = place.source.clone();
    let growing = Writer::open(&source.join("hot"));
    let backup = place.backup().keep_free(KeepFree::Bytes(keep)).before_cut(|| {
        let block = vec![1; 1 << 20];
        for at in 0..200 {
            assert_eq!(calls::pwrite(growing.fd, &block, at << 20), Ok(1 << 20));
        }
    });
    let error = place.fails(backup);
    assert_eq!(error.errno(), libc::ENOSPC, "{error}");
    names(&error, &place.destination);
    let left = calls::free_space(&place.destination);
    assert!(left + (16 << 20) >= keep, "{left} bytes are left");
}

/// Each filesystem has its own reserve: a large one's would not fit on a small one.
#[test]
fn a_small_destination_beside_a_large_one_needs_only_its_own_reserve() {
    let _alone = common::alone();
    let place = Place::new("two reserves");
    if !is_root() {
        return common::say("skipped: mounting needs root");
    }
    let on_disk = Scratch::new(false);
    let large = on_disk.dir("large");
    let other = place.scratch.dir("other");
    fs::write(other.join("file"), vec![1; 20 << 20]).expect("a source file");
    let _mounted = Mounted::new(&place.destination, "size=64m");
    let backup = Backup::new().pair(&place.source, &large).pair(&other, &place.destination);
    assert_eq!(run(backup).expect("there is room for both").files, 4);
}

fn has_mark(destination: &Path) -> bool {
    destination.join("HOTBACKUP-INCOMPLETE").exists()
}

/// A tmpfs, unmounted at the end.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    fn new(at: &'a Path, options: &str) -> Mounted<'a> {
        let mount = ["-t", "tmpfs", "-o", options, "tmpfs"];
        let status = std::process::Command::new("mount").args(mount).arg(at).status();
        assert!(status.expect("mount runs").success());
        Mounted(at)
    }

    fn remount(&self, options: &str) {
        let mount = ["-o", &format!("remount,{options}")];
        let status = std::process::Command::new("mount").args(mount).arg(self.0).status();
        assert!(status.expect("mount runs").success());
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[test]
fn a_read_only_destination_is_named() {
    let _alone = common::alone();
    let place = Place::new("read only");
    if !is_root() {
        return common::say("skipped: mounting needs root");
    }
    let mounted = Mounted::new(&place.destination, "size=50m");
    mounted.remount("ro");
    let writer = Writer::open(&place.source.join("hot"));
    let error = writer.beside(|| place.fails(place.backup()));
    assert_eq!(error.errno(), libc::EROFS, "{error}");
    names(&error, &place.destination);
}

/// Takes the destination away, in several ways, in the middle of the session.
#[test]
fn a_destination_that_vanishes_fails_the_backup_and_no_write() {
    let _alone = common::alone();
    for way in ["removed", "renamed", "emptied"] {
        let place = Place::new("vanishes");
        let writer = Writer::open(&place.source.join("hot"));
        let (destination, away) = (place.destination.clone(), place.scratch.path().join("destination-away"));
        let mut gone = false;
        let error = writer.beside(|| {
            let backup = place.backup().throttle(Throttle::bytes_per_sec(20 << 20));
            place.fails(backup.on_progress(|progress| {
                if !gone && progress.phase >= Phase::Copy && progress.bytes_done > 0 {
                    gone = true;
                    match way {
                        "removed" => drop(fs::remove_dir_all(&destination)),
                        "renamed" => fs::rename(&destination, &away).expect("it can be renamed"),
                        _ => {
                            for entry in fs::read_dir(&destination).expect("the destination") {
                                let path = entry.expect("an entry").path();
                                let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
                            }
                        }
                    }
                }
                ControlFlow::Continue(())
            }))
        });
        assert!(gone, "{way}: the session never said that it was copying");
        names(&error, &place.destination);
        place.still_works();
    }
}

/// Copying the rest of the large file would take a minute and a half: the watchdog would bite.
#[test]
fn a_backup_that_has_failed_does_not_copy_the_rest_of_a_large_file() {
    let _alone = common::alone();
    let place = Place::new("the rest of a large file");
    fs::write(place.source.join("in/ner/large"), vec![b'x'; 400 << 20]).expect("a large file");
    for i in 0..1000 {
        fs::write(place.source.join(format!("small {i}")), vec![b'x'; 64 << 10]).expect("a small file");
    }
    let staged = place.destination.join("HOTBACKUP-INCOMPLETE");
    let copy = staged.join("tree/in/ner/large");
    let mut begun = false;
    let backup = place.backup().threads(2).throttle(Throttle::bytes_per_sec(4 << 20));
    let error = place.fails(backup.on_progress(|_| {
        if !begun && copy.metadata().is_ok_and(|copy| copy.len() > 0) {
            begun = true;
            fs::remove_dir_all(&staged).expect("it can be removed");
        }
        ControlFlow::Continue(())
    }));
    assert!(begun, "the large file was not being copied: {error}");
    names(&error, &place.destination);
}

/// Someone else's files turn up in the destination while the session runs.
#[test]
fn a_destination_that_somebody_else_writes_to_never_looks_complete_and_wrong() {
    let _alone = common::alone();
    for name in ["small", "in", "intruder"] {
        let place = Place::new("intruder");
        let mut put = false;
        let intruder = place.destination.join(name);
        let backup = place.backup().throttle(Throttle::bytes_per_sec(20 << 20));
        let outcome = run(backup.on_progress(|progress| {
            if !put && progress.phase == Phase::Copy {
                put = true;
                let _ = fs::write(&intruder, "not of the source");
            }
            ControlFlow::Continue(())
        }));
        match outcome {
            Err(error) => names(&error, &place.destination),
            Ok(_) => {
                let source = Tree::read(&place.source).expect("the source");
                let copy = Tree::read_destination(&place.destination).expect("the copy");
                let differences = source.differences(&copy, EVERYTHING, 10);
                assert!(differences.is_empty(), "{name}: {differences:#?}");
            }
        }
    }
}

/// A symbolic link put in the place of a directory of the destination must not lead us out of it.
#[test]
fn a_link_in_the_destination_leads_nobody_out() {
    let _alone = common::alone();
    for name in ["in", "in/ner"] {
        let place = Place::new("link");
        let outside = place.scratch.dir("outside");
        fs::write(outside.join("large"), "keep me").expect("a file outside");
        let writer = Writer::open(&place.source.join("in/ner/hot"));
        let target = place.destination.join(name);
        let mut put = 0;
        let outcome = writer.beside(|| {
            let backup = place.backup().throttle(Throttle::bytes_per_sec(20 << 20));
            run(backup.on_progress(|progress| {
                if put == 0 && progress.bytes_done > 0 && target.is_dir() {
                    put = 1;
                    fs::rename(&target, place.destination.join("moved")).expect("a directory moves");
                    std::os::unix::fs::symlink(&outside, &target).expect("a symbolic link");
                }
                ControlFlow::Continue(())
            }))
        });
        let held = Tree::read(&outside).expect("the directory outside");
        let found: Vec<_> = held.names.keys().collect();
        assert_eq!(found, ["", "large"], "{name}: something got out");
        assert_eq!(fs::read(outside.join("large")).expect("still there"), b"keep me");
        if let Err(error) = outcome {
            names(&error, &place.destination);
        }
    }
}

#[test]
fn a_source_that_holds_the_mark_is_refused() {
    let _alone = common::alone();
    let place = Place::new("mark");
    fs::create_dir(place.source.join("HOTBACKUP-INCOMPLETE")).expect("a directory of that name");
    let error = place.fails(place.backup());
    assert!(matches!(error, Error::ReservedName { .. }), "{error}");
    names(&error, &place.source);
    let excluded = run(place.backup().exclude("^/HOTBACKUP-INCOMPLETE$"));
    excluded.expect("the hint of the error helps");
}

#[test]
fn an_incomplete_backup_is_not_overwritten() {
    let _alone = common::alone();
    let place = Place::new("incomplete");
    let cancel = |progress: &hotbackup::Progress| match progress.phase {
        Phase::Prepare => ControlFlow::Continue(()),
        _ if progress.bytes_done == 0 => ControlFlow::Continue(()),
        _ => ControlFlow::Break(()),
    };
    let backup = place.backup().throttle(Throttle::bytes_per_sec(10 << 20));
    let error = place.fails(backup.on_progress(cancel));
    assert!(matches!(error, Error::Cancelled), "{error}");
    assert!(has_mark(&place.destination), "a cancelled backup is not marked");
    let error = place.fails(place.backup());
    assert!(matches!(error, Error::DestinationIncomplete { .. }), "{error}");
    names(&error, &place.destination);
    place.still_works();
}

/// Runs `test` in a forked child as nobody. A child has no session of its parent's; this one starts its own.
fn as_nobody(test: impl FnOnce()) {
    let child = calls::fork(|| {
        calls::become_nobody();
        test();
    });
    assert_eq!(calls::wait_for(child), 0, "the test in the child failed");
}

#[test]
fn what_may_not_be_read_is_named() {
    let _alone = common::alone();
    if !is_root() {
        return common::say("skipped: becoming nobody needs root");
    }
    for (name, mode) in [("in/middle", 0o000), ("in/ner", 0o000), ("in/ner", 0o600), ("", 0o000)] {
        let place = Place::new("unreadable");
        let open = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o777));
        open(place.scratch.path()).expect("open to everybody");
        open(&place.destination).expect("open to everybody");
        let secret = place.source.join(name);
        // Opened before, and written to by whoever may not open it any more.
        let writer = Writer::open(&place.source.join("hot"));
        open(&place.source.join("hot")).expect("open to everybody");
        fs::set_permissions(&secret, fs::Permissions::from_mode(mode)).expect("closed to everybody");
        place.untouched(|| {
            as_nobody(|| {
                let error = writer.beside(|| run(place.backup()).expect_err("it cannot be read"));
                assert_eq!(error.errno(), libc::EACCES, "{name}: {error}");
                // The root itself may be named by a path with or without its slash.
                names(&error, Path::new(secret.to_str().expect("ordinary").trim_end_matches('/')));
            });
        });
    }
}

#[test]
fn a_backup_by_an_ordinary_user_works() {
    let _alone = common::alone();
    if !is_root() {
        return common::say("skipped: becoming nobody needs root");
    }
    let place = Place::new("nobody");
    let open = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o777));
    open(place.scratch.path()).expect("open to everybody");
    std::os::unix::fs::chown(&place.destination, Some(65534), Some(65534)).expect("given away");
    as_nobody(|| {
        let report = run(place.backup()).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(report.files, 3);
    });
}

/// The source's root lets nobody in, so what is readable below it is not to be read by others in the copy either,
/// not even before the copy's root has its mode.
#[test]
fn nobody_can_read_a_private_source_in_its_copy() {
    let _alone = common::alone();
    if !is_root() {
        return common::say("skipped: becoming nobody needs root");
    }
    let place = Place::new("private");
    let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
    set(place.scratch.path(), 0o755).expect("open to everybody");
    set(&place.destination, 0o755).expect("open to everybody");
    set(&place.source, 0o700).expect("closed");
    set(&place.source.join("small"), 0o644).expect("only the root protects it");
    for i in 0..1000 {
        fs::write(place.source.join(format!("more {i}")), b"x").expect("a source file");
    }
    let (secret, end) = (place.destination.join("small"), place.scratch.path().join("end"));
    let spy = calls::fork(|| {
        calls::become_nobody();
        while !end.exists() {
            assert!(fs::File::open(&secret).is_err(), "nobody can read the copy");
        }
    });
    let outcome = run(place.backup());
    fs::write(end, b"").expect("a file outside");
    assert_eq!(calls::wait_for(spy), 0, "the spy got in");
    outcome.expect("it ends well");
}

#[test]
fn a_second_session_is_refused_and_the_first_goes_on() {
    let _alone = common::alone();
    let place = Place::new("busy");
    let other = place.scratch.dir("other");
    let mut refused = 0;
    let backup = place.backup().on_progress(|_| {
        if hotbackup::current().is_some() {
            let error = small(Backup::from(&place.source).to(&other)).start().map(drop);
            assert!(matches!(error, Err(Error::Busy)), "{error:?}");
            refused += 1;
        }
        ControlFlow::Continue(())
    });
    let source = Tree::read(&place.source).expect("the source");
    run(backup).expect("the first goes on");
    assert!(refused > 0);
    assert!(is_empty(&other), "the refused session made something");
    let copy = Tree::read_destination(&place.destination).expect("the copy");
    assert!(source.differences(&copy, EVERYTHING, 10).is_empty());
}

#[test]
fn a_session_is_cancelled_from_any_side() {
    let _alone = common::alone();
    for way in ["callback at once", "callback", "handle", "handle while paused", "drop", "current"] {
        let place = Place::new("cancel");
        let writer = Writer::open(&place.source.join("hot"));
        let backup = match way {
            "handle while paused" => place.backup().throttle(Throttle::PAUSED),
            _ => place.backup().throttle(Throttle::bytes_per_sec(4 << 20)),
        };
        let backup = backup.on_progress(|progress| match (way, progress.phase) {
            ("callback at once", _) => ControlFlow::Break(()),
            ("callback", Phase::Copy) => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        });
        let outcome = writer.beside(|| {
            let session = backup.start()?;
            let handle = session.handle();
            match way {
                "drop" => {
                    drop(session);
                    assert!(!handle.wait(), "a dropped session has not succeeded");
                    return Err(Error::Cancelled);
                }
                "current" => hotbackup::current().expect("it runs").cancel(),
                _ => {}
            }
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    std::thread::sleep(Duration::from_millis(20));
                    if way.starts_with("handle") {
                        handle.cancel();
                    }
                    assert!(!handle.wait(), "{way}: it was cancelled");
                });
                session.finish()
            })
        });
        let error = outcome.map(drop).expect_err(way);
        assert!(matches!(error, Error::Cancelled), "{way}: {error}");
        assert_eq!(error.errno(), libc::ECANCELED);
        assert!(hotbackup::current().is_none(), "{way}: a session is left over");
        place.still_works();
    }
}

/// A call that was under way may hold up the beginning for ten seconds; meanwhile the caller is told, and may have enough.
#[test]
fn a_session_is_cancelled_while_it_waits_for_a_call_under_way() {
    let _alone = common::alone();
    let place = Place::new("cancel arming");
    let writer = Writer::open(&place.source.join("hot"));
    let (inside, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    let begun = std::time::Instant::now();
    let mut told = 0;
    let outcome = std::thread::scope(|scope| {
        scope.spawn(|| {
            around(Change::WriteAt { fd: writer.fd, at: 0 }, || {
                inside.store(true, Ordering::Relaxed);
                while !stop.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(1));
                }
                0
            })
        });
        while !inside.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        let backup = place.backup().on_progress(|progress| {
            assert_eq!(progress.phase, Phase::Prepare);
            told += 1;
            if told < 4 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        let outcome = backup.start().map(drop);
        stop.store(true, Ordering::Relaxed);
        outcome
    });
    assert!(matches!(outcome, Err(Error::Cancelled)), "{outcome:?}");
    assert!(begun.elapsed() < Duration::from_secs(8), "cancelled after {:?}", begun.elapsed());
    assert!(is_empty(&place.destination), "something was left in the destination");
    place.still_works();
}

#[test]
fn a_paused_session_copies_nothing_and_goes_on_when_told() {
    let _alone = common::alone();
    let place = Place::new("pause");
    let writer = Writer::open(&place.source.join("hot"));
    let session = place.backup().throttle(Throttle::PAUSED).start().expect("it starts");
    let handle = session.handle();
    let done = writer.beside(|| {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(300));
                let progress = handle.progress();
                assert_eq!(progress.bytes_done, 0, "copied while paused: {progress:?}");
                assert!(progress.phase <= Phase::Copy, "{progress:?}");
                handle.set_throttle(Throttle::UNLIMITED);
                assert!(handle.wait());
            });
            session.finish()
        })
    });
    assert_eq!(done.expect("it ends well").files, 4);
}

#[test]
fn callbacks_come_on_the_calling_thread_in_their_order() {
    let _alone = common::alone();
    let place = Place::new("callbacks");
    let me = std::thread::current().id();
    let seen = std::cell::RefCell::new(Vec::new());
    let note = |what: &str| {
        assert_eq!(std::thread::current().id(), me, "{what} came on another thread");
        seen.borrow_mut().push(what.to_owned());
    };
    let source = place.source.clone();
    let backup = place
        .backup()
        .on_progress(|progress| {
            note(progress.phase.name());
            assert!((0.0..=1.0).contains(&progress.fraction()));
            ControlFlow::Continue(())
        })
        .exclude_if(|path| {
            note("exclude");
            assert!(path.starts_with(&source), "{} is no source path", path.display());
            path.ends_with("middle")
        })
        .before_cut(|| note("before"))
        .after_cut(|| note("after"));
    run(backup).expect("it ends well");
    assert!(!place.destination.join("in/middle").exists(), "the excluded file was copied");
    let seen = seen.into_inner();
    let at =
        |what: &str| seen.iter().position(|s| s == what).unwrap_or_else(|| panic!("no {what}: {seen:?}"));
    let count = |what: &str| seen.iter().filter(|s| *s == what).count();
    assert_eq!(seen[0], "prepare");
    assert_eq!(seen[1], "copy");
    assert_eq!(seen.last().map(String::as_str), Some("done"));
    assert!(at("copy") < at("exclude") && at("exclude") < at("before") && at("before") < at("after"));
    assert_eq!((count("before"), count("after")), (1, 1));
}

/// What the host does inside callbacks is captured, and a callback that blocks for long holds nobody up.
#[test]
fn the_host_writes_in_every_callback() {
    let _alone = common::alone();
    let place = Place::new("callbacks write");
    let file = Writer::open(&place.source.join("written in callbacks"));
    let count = AtomicU64::new(0);
    let write = || {
        let at = count.fetch_add(1, Ordering::Relaxed).cast_signed();
        assert_eq!(calls::pwrite(file.fd, b"x", at), Ok(1));
    };
    let (before, after) = (AtomicU64::new(0), AtomicU64::new(0));
    let backup = place
        .backup()
        .on_progress(|_| {
            write();
            ControlFlow::Continue(())
        })
        .exclude_if(|_| {
            write();
            false
        })
        .before_cut(|| {
            write();
            std::thread::sleep(Duration::from_millis(100));
            write();
            before.store(count.load(Ordering::Relaxed), Ordering::Relaxed);
        })
        .after_cut(|| {
            after.store(count.load(Ordering::Relaxed), Ordering::Relaxed);
            write();
        });
    run(backup).expect("it ends well");
    let copied = fs::read(place.destination.join("written in callbacks")).expect("the copy").len() as u64;
    let cut = before.into_inner()..=after.into_inner();
    assert!(cut.contains(&copied), "{copied} writes instead of {cut:?}");
}

/// What `before_cut` took must be given back when a call that never ends makes the cut impossible.
#[test]
fn after_cut_is_called_although_the_cut_failed() {
    let _alone = common::alone();
    let place = Place::new("owed");
    let writer = Writer::open(&place.source.join("hot"));
    let (before, after, stop) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let outcome = std::thread::scope(|scope| {
        let stay = || {
            around(Change::WriteAt { fd: writer.fd, at: 0 }, || {
                while !stop.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(1));
                }
                0
            })
        };
        let backup = place.backup().max_stall(Duration::from_millis(50)).before_cut(|| {
            before.fetch_add(1, Ordering::Relaxed);
            scope.spawn(stay);
            std::thread::sleep(Duration::from_millis(30));
        });
        let outcome = run(backup.after_cut(|| {
            after.fetch_add(1, Ordering::Relaxed);
        }));
        stop.store(true, Ordering::Relaxed);
        outcome
    });
    outcome.expect_err("the call never ended");
    assert_eq!((before.into_inner(), after.into_inner()), (1, 1));
}

#[test]
fn a_panic_in_a_callback_reaches_the_caller_and_ends_the_session() {
    let _alone = common::alone();
    let place = Place::new("panic");
    for which in ["progress", "before", "after", "exclude"] {
        let destination = place.scratch.dir(which);
        let when = |this: &str| assert!(which != this, "the callback's own trouble");
        let mut calls = 0;
        let backup = small(Backup::from(&place.source).to(&destination))
            .on_progress(|_| {
                calls += 1;
                if calls > 2 {
                    when("progress");
                }
                ControlFlow::Continue(())
            })
            .exclude_if(|_| {
                when("exclude");
                false
            })
            .before_cut(|| when("before"))
            .after_cut(|| when("after"));
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(backup)));
        assert!(outcome.is_err(), "{which}: the panic was swallowed");
        assert!(hotbackup::current().is_none(), "{which}: a session is left over");
        fs::remove_dir_all(destination).expect("the copy goes");
    }
    place.still_works();
}
