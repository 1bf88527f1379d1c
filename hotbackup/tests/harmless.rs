//! The host never notices a backup.
//!
//! Method: sessions run while the host does what programs do (locks, forks, signals, cancelled threads, blocked calls,
//! hundreds of threads, tight limits), and the host's own view is compared before, during and after: its descriptors, its
//! locks, its directory, its masks, and the results of its calls. Where it writes to the source, the copy must hold every
//! record up to the cut and none beyond it.

mod common;

use std::ffi::{c_int, c_void};
use std::fs;
use std::ops::ControlFlow;
use std::os::fd::{AsRawFd as _, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::time::Duration;

use common::calls::{self, CThread};
use common::records::{How, Target, records};
use common::rng::Rng;
use common::{Scratch, Watchdog};
use hotbackup::{Backup, KeepFree, Report, Session, Throttle};

struct Place {
    scratch: Scratch,
    source: PathBuf,
    sessions: AtomicU64,
    _watchdog: Watchdog,
}

impl Place {
    fn new(test: &str) -> Place {
        Place::on(Scratch::new(true), test)
    }

    fn on(scratch: Scratch, test: &str) -> Place {
        let source = scratch.dir("source");
        for i in 0..20 {
            fs::write(source.join(format!("file {i}")), vec![i; 50_000]).expect("a source file");
        }
        Place {
            scratch,
            source,
            sessions: AtomicU64::new(0),
            _watchdog: Watchdog::new(test.to_owned(), Duration::from_secs(120)),
        }
    }

    fn destination(&self) -> PathBuf {
        let number = self.sessions.fetch_add(1, Ordering::Relaxed);
        self.scratch.dir(&format!("destination{number}"))
    }

    fn backup<'a>(&self, destination: &Path) -> Backup<'a> {
        let backup = Backup::from(&self.source).to(destination);
        backup.keep_free(KeepFree::Bytes(0)).max_stall(Duration::from_secs(20))
    }

    /// A whole session that must succeed.
    #[track_caller]
    fn session(&self) -> Report {
        let destination = self.destination();
        let report = run(self.backup(&destination));
        fs::remove_dir_all(destination).expect("the copy goes");
        report
    }
}

#[track_caller]
fn run(backup: Backup<'_>) -> Report {
    let outcome = backup.start().and_then(Session::finish);
    outcome.unwrap_or_else(|e| panic!("the backup failed: {e}"))
}

/// Threads that write numbered records while `work` runs, on descriptors opened before.
fn while_writing<R>(targets: &[Target], threads: u64, work: impl FnOnce() -> R) -> R {
    let stop = AtomicBool::new(false);
    let last = Mutex::new(0);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (stop, last) = (&stop, &last);
            scope.spawn(move || {
                let mut rng = Rng::new(thread);
                while !stop.load(Ordering::Relaxed) {
                    let mut last = last.lock().expect("no panic while writing");
                    *last += 1;
                    targets[rng.below(targets.len() as u64) as usize].put(How::Append, *last);
                    drop(last);
                    if rng.one_in(3) {
                        std::thread::sleep(Duration::from_micros(rng.below(500)));
                    }
                }
            });
        }
        let result = work();
        stop.store(true, Ordering::Relaxed);
        result
    })
}

fn targets(source: &Path, count: usize) -> Vec<Target> {
    let open = |i| Target::open(&source.join(format!("records {i}")), How::Append);
    (0..count).map(open).collect()
}

/// The copy holds every record up to some last one.
#[track_caller]
fn is_of_one_instant(destination: &Path, count: usize) -> usize {
    let read = |i: usize| records(&destination.join(format!("records {i}")));
    let mut all: Vec<u64> = (0..count).flat_map(read).collect();
    all.sort_unstable();
    let gap = all.iter().zip(1..).find(|(number, expected)| **number != *expected);
    assert_eq!(gap, None, "found instead of the expected record, of {}", all.len());
    all.len()
}

#[test]
fn locks_on_source_files_are_kept() {
    let _alone = common::alone();
    let place = Place::new("locks");
    let open = |i: usize| {
        let path = place.source.join(format!("file {i}"));
        fs::File::options().read(true).write(true).open(path).expect("a source file")
    };
    let files: Vec<_> = (0..20).map(open).collect();
    for file in &files {
        calls::lock(file.as_raw_fd()).expect("nobody else has it");
    }
    let all_held = |when: &str| {
        let child = calls::fork(|| {
            for (i, file) in files.iter().enumerate() {
                let asked = calls::lock(file.as_raw_fd());
                assert!(asked == Err(libc::EAGAIN) || asked == Err(libc::EACCES), "file {i}: {asked:?}");
            }
        });
        assert_eq!(calls::wait_for(child), 0, "{when}: a lock was lost");
    };
    all_held("before");
    for _ in 0..3 {
        let destination = place.destination();
        let backup = place.backup(&destination).threads(3).after_cut(|| all_held("after the cut"));
        run(backup.before_cut(|| {
            for file in &files {
                assert_eq!(calls::pwrite(file.as_raw_fd(), b"changed", 4000), Ok(7));
            }
            all_held("before the cut");
        }));
        all_held("after the session");
    }
}

/// Number and target of every descriptor of this process.
fn descriptors() -> Vec<(String, PathBuf)> {
    let entries: Vec<_> = fs::read_dir("/proc/self/fd").expect("own descriptors").collect();
    let mut list: Vec<_> = entries
        .into_iter()
        .map(|entry| {
            let path = entry.expect("a descriptor").path();
            let number = path.file_name().expect("a number").to_string_lossy().into_owned();
            (number, fs::read_link(&path).unwrap_or_default())
        })
        // The reading of the directory itself has one, which is closed by now.
        .filter(|(_, target)| !target.as_os_str().is_empty())
        .collect();
    list.sort();
    list
}

/// What else belongs to a process and not to one call.
fn surroundings() -> Vec<String> {
    let status = fs::read_to_string("/proc/self/status").expect("own status");
    let kept = ["Umask", "SigIgn", "SigCgt", "Uid", "Gid", "Groups", "NoNewPrivs", "Cpus_allowed"];
    let kept = |line: &&str| kept.iter().any(|key| line.starts_with(key));
    let mut all: Vec<String> = status.lines().filter(kept).map(str::to_owned).collect();
    let own = fs::read_to_string("/proc/thread-self/status").expect("own status");
    let masks = |line: &&str| line.starts_with("SigBlk") || line.starts_with("SigPnd");
    all.extend(own.lines().filter(masks).map(str::to_owned));
    all.push(format!("{:?}", std::env::current_dir()));
    all.push(fs::read_to_string("/proc/self/limits").expect("own limits"));
    all.push(fs::read_link("/proc/self/root").expect("own root").display().to_string());
    all
}

#[test]
fn descriptors_directory_and_masks_stay_as_they_are() {
    let _alone = common::alone();
    let place = Place::new("surroundings");
    place.session();
    let before = (descriptors(), surroundings());
    for round in 0..5 {
        let destination = place.destination();
        let same = |when: &str| {
            assert_eq!(descriptors(), before.0, "{when}, round {round}");
            assert_eq!(surroundings(), before.1, "{when}, round {round}");
        };
        let backup = place.backup(&destination).threads(3).before_cut(|| same("before the cut"));
        let backup = backup.after_cut(|| same("after the cut")).exclude_if(|_| {
            same("while walking");
            false
        });
        run(backup.on_progress(|_| {
            same("while working");
            ControlFlow::Continue(())
        }));
        same("after the session");
    }
}

/// How many threads write at once.
const CROWD: usize = 1000;

/// Each thread has a file and a counter of its own, and no lock orders them: every file of the copy holds what its thread had
/// written at the cut, from the first record to the last.
#[test]
fn a_thousand_writing_threads_lose_nothing() {
    let _alone = common::alone();
    let place = Place::new("threads");
    let old = calls::limit(libc::RLIMIT_NOFILE, None);
    calls::limit(libc::RLIMIT_NOFILE, Some(old.max(2 * CROWD as u64)));
    let targets = targets(&place.source, CROWD);
    let written: Vec<AtomicU64> = (0..CROWD).map(|_| AtomicU64::new(0)).collect();
    let counts = || -> Vec<u64> { written.iter().map(|count| count.load(Ordering::SeqCst)).collect() };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for (target, count) in targets.iter().zip(&written) {
            let write = || {
                while !stop.load(Ordering::Relaxed) {
                    target.put(How::Append, count.load(Ordering::SeqCst) + 1);
                    count.fetch_add(1, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(20));
                }
            };
            std::thread::Builder::new().stack_size(1 << 18).spawn_scoped(scope, write).expect("a thread");
        }
        for _ in 0..3 {
            let destination = place.destination();
            let (low, high) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
            let backup = place.backup(&destination);
            let backup = backup.before_cut(|| *low.lock().expect("no panic") = counts());
            run(backup.after_cut(|| *high.lock().expect("no panic") = counts()));
            let (low, high) = (low.into_inner().expect("no panic"), high.into_inner().expect("no panic"));
            for i in 0..CROWD {
                let copied = records(&destination.join(format!("records {i}")));
                assert!(copied.iter().copied().eq(1..=copied.len() as u64), "thread {i}: {copied:?}");
                // The next one may be in its file and not counted yet.
                let window = low[i]..=high[i] + 1;
                assert!(
                    window.contains(&(copied.len() as u64)),
                    "thread {i}: {} of {window:?}",
                    copied.len()
                );
            }
            fs::remove_dir_all(destination).expect("the copy goes");
        }
        stop.store(true, Ordering::Relaxed);
    });
    drop(targets);
    calls::limit(libc::RLIMIT_NOFILE, Some(old));
}

/// The way from idle to armed and back, many times, while threads write all along.
#[test]
fn no_call_is_lost_while_sessions_come_and_go() {
    let _alone = common::alone();
    let place = Place::new("transitions");
    let targets = targets(&place.source, 6);
    let sessions = common::number("HOTBACKUP_SESSIONS").unwrap_or(40);
    while_writing(&targets, 4, || {
        for number in 0..sessions {
            let destination = place.destination();
            let backup = place.backup(&destination);
            if number % 7 == 3 {
                // Armed and cancelled at once: nothing of it may be left in the next session.
                drop(backup.start().expect("it starts"));
            } else {
                run(backup);
                is_of_one_instant(&destination, 6);
            }
            fs::remove_dir_all(destination).expect("the copy goes");
        }
    });
}

/// Calls that block on a full pipe, a full socket, a terminal that nobody reads and a FIFO without a reader; begun before the session and during it.
#[test]
fn blocked_calls_hold_nobody_up() {
    let _alone = common::alone();
    let place = Place::new("blocked");
    let (pipe_out, pipe_in) = calls::pipe();
    let (near, far) = calls::sockets();
    let (screen, terminal) = calls::terminal();
    let fifo = calls::c(place.source.join("fifo").to_str().expect("ordinary"));
    let name = calls::Name { dir: libc::AT_FDCWD, path: &fifo };
    calls::mknod(name, libc::S_IFIFO | 0o600, 0).expect("a FIFO");
    let full = vec![0u8; 4 << 20];
    std::thread::scope(|scope| {
        let block = |what: &'static str| {
            let (full, fifo) = (&full, &fifo);
            scope.spawn(move || match what {
                "pipe" => drop(calls::write(pipe_in, full)),
                "socket" => drop(calls::write(near, full)),
                "terminal" => drop(calls::write(terminal, full)),
                _ => drop(calls::open_and_block(fifo).and_then(|fd| calls::close(fd as RawFd))),
            })
        };
        let blocked: Vec<_> = ["pipe", "socket", "terminal", "fifo"].map(block).into();
        std::thread::sleep(Duration::from_millis(50));
        for _ in 0..3 {
            let report = place.session();
            assert_eq!(report.cut_attempts, 1, "a blocked call was waited for: {report:?}");
        }
        let destination = place.destination();
        let mut more = Vec::new();
        let report = run(place.backup(&destination).before_cut(|| {
            more = ["pipe", "socket", "terminal", "fifo"].map(block).into();
            std::thread::sleep(Duration::from_millis(30));
        }));
        assert_eq!(report.cut_attempts, 1, "a blocked call was waited for: {report:?}");
        assert!(blocked.iter().chain(&more).all(|thread| !thread.is_finished()));
        let _reader = fs::File::open(place.source.join("fifo")).expect("the FIFO opens");
        for fd in [pipe_out, far, screen] {
            scope.spawn(move || calls::drain(fd));
        }
        for thread in blocked.into_iter().chain(more) {
            thread.join().expect("it goes on");
        }
        calls::close(pipe_in).expect("closes");
        calls::close(near).expect("closes");
        calls::close(terminal).expect("closes");
    });
    calls::close(screen).expect("closes");
    calls::close(pipe_out).expect("closes");
    calls::close(far).expect("closes");
}

/// Children are idle: their calls go through, whatever state the parent's session is in.
#[test]
fn forked_children_go_on_by_themselves() {
    let _alone = common::alone();
    let place = Place::new("fork");
    let targets = targets(&place.source, 6);
    let outside = Target::open(&place.scratch.path().join("outside"), How::Append);
    let stop = AtomicBool::new(false);
    let forked = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let child = calls::fork(|| {
                    for number in 0..20 {
                        outside.put(How::Append, number);
                    }
                });
                assert_eq!(calls::wait_for(child), 0, "a child failed");
                forked.fetch_add(1, Ordering::Relaxed);
            }
        });
        while_writing(&targets, 3, || {
            for _ in 0..10 {
                let destination = place.destination();
                run(place.backup(&destination).throttle(Throttle::bytes_per_sec(20 << 20)));
                is_of_one_instant(&destination, 6);
            }
        });
        stop.store(true, Ordering::Relaxed);
    });
    assert!(forked.load(Ordering::Relaxed) > 10);
}

/// What the signal handler below writes to, and how often it did.
static HANDLER_FD: AtomicI32 = AtomicI32::new(-1);
static HANDLED: AtomicU64 = AtomicU64::new(0);

extern "C" fn write_a_byte(_: c_int) {
    assert_eq!(calls::write(HANDLER_FD.load(Ordering::Relaxed), b"x"), Ok(1));
    HANDLED.fetch_add(1, Ordering::SeqCst);
}

/// Handlers that make captured calls interrupt threads in captured calls. Nothing is lost and nothing hangs.
#[test]
fn handlers_write_in_the_middle_of_captured_calls() {
    let _alone = common::alone();
    let place = Place::new("handlers");
    let by_handler = Target::open(&place.source.join("by handler"), How::Append);
    HANDLER_FD.store(by_handler.fd, Ordering::Relaxed);
    calls::handle(libc::SIGUSR1, write_a_byte);
    let open = |i| Target::open(&place.source.join(format!("records {i}")), How::At);
    let targets: Vec<_> = (0..4).map(open).collect();
    let pause = common::load::Parking::default();
    let (stop, ready) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for thread in 0..3u64 {
            let (targets, ready, stop) = (&targets, &ready, &stop);
            scope.spawn(move || {
                ready.lock().expect("no panic").push(calls::this_thread());
                let mut rng = Rng::new(thread);
                while !stop.load(Ordering::Relaxed) {
                    let target = &targets[rng.below(4) as usize];
                    let _ = calls::pwrite(target.fd, &[9; 5000], rng.below(100_000).cast_signed());
                }
            });
        }
        scope.spawn(|| {
            let mut rng = Rng::new(77);
            while pause.pass() {
                let threads = ready.lock().expect("no panic").clone();
                if threads.len() < 3 {
                    continue;
                }
                let before = HANDLED.load(Ordering::SeqCst);
                calls::signal(*rng.pick(&threads), libc::SIGUSR1);
                while HANDLED.load(Ordering::SeqCst) == before {
                    std::thread::yield_now();
                }
            }
        });
        for _ in 0..20 {
            let destination = place.destination();
            let mut sent = 0;
            run(place.backup(&destination).before_cut(|| {
                pause.park(1);
                sent = HANDLED.load(Ordering::SeqCst);
            }));
            let copied = fs::metadata(destination.join("by handler")).expect("the copy").len();
            assert_eq!(copied, sent, "bytes written by handlers");
            pause.release();
        }
        pause.stop();
        stop.store(true, Ordering::Relaxed);
    });
}

extern "C-unwind" fn block_in_a_write(fd: *mut c_void) -> *mut c_void {
    let full = [0u8; 65536];
    loop {
        let _ = calls::write_and_block(fd as usize as RawFd, &full);
    }
}

/// A thread cancelled inside a captured call leaves nothing behind that a session would wait for.
#[test]
fn cancelled_threads_leave_nothing_behind() {
    let _alone = common::alone();
    let place = Place::new("cancelled");
    for _ in 0..5 {
        let (pipe_out, pipe_in) = calls::pipe();
        let idle = CThread::spawn(block_in_a_write, pipe_in as usize);
        std::thread::sleep(Duration::from_millis(20));
        idle.cancel();
        assert_eq!(place.session().cut_attempts, 1);
        let destination = place.destination();
        let report = run(place.backup(&destination).before_cut(|| {
            let armed = CThread::spawn(block_in_a_write, pipe_in as usize);
            std::thread::sleep(Duration::from_millis(20));
            armed.cancel();
        }));
        assert_eq!(report.cut_attempts, 1);
        calls::close(pipe_in).expect("closes");
        calls::close(pipe_out).expect("closes");
    }
}

/// The host changes its group, its directory and its limits while relative paths are being backed up.
#[test]
fn the_host_moves_about_meanwhile() {
    let _alone = common::alone();
    let place = Place::new("moves about");
    let home = std::env::current_dir().expect("a directory");
    let elsewhere = place.scratch.dir("elsewhere");
    for round in 0..5 {
        std::env::set_current_dir(place.scratch.path()).expect("the scratch directory");
        fs::create_dir(format!("relative{round}")).expect("a destination");
        let backup = Backup::from("source").to(format!("relative{round}"));
        let backup = backup.keep_free(KeepFree::Bytes(0)).throttle(Throttle::bytes_per_sec(20 << 20));
        let mut calls_back = 0;
        let backup = backup.on_progress(|_| {
            calls_back += 1;
            // The first call comes before the paths are looked at.
            if calls_back > 1 {
                std::env::set_current_dir(&elsewhere).expect("elsewhere");
            }
            calls::set_group_again();
            ControlFlow::Continue(())
        });
        let outcome = backup.start().and_then(Session::finish);
        std::env::set_current_dir(&home).expect("back");
        let report = outcome.unwrap_or_else(|e| panic!("round {round}: {e}"));
        assert_eq!(report.files, 20);
        let copy = place.scratch.path().join(format!("relative{round}/file 7"));
        assert_eq!(fs::read(copy).expect("the copy"), vec![7; 50_000]);
    }
}

/// The host has used up its descriptors.
#[test]
fn a_host_without_free_descriptors_can_be_backed_up() {
    let _alone = common::alone();
    let place = Place::new("descriptors");
    place.session();
    let destination = place.destination();
    let backup = place.backup(&destination).threads(4);
    let old = calls::limit(libc::RLIMIT_NOFILE, Some(64));
    let mut taken = Vec::new();
    while let Ok(fd) = calls::dup(0) {
        taken.push(fd as RawFd);
    }
    let outcome = backup.start().and_then(Session::finish);
    for fd in taken {
        calls::close(fd).expect("closes");
    }
    calls::limit(libc::RLIMIT_NOFILE, Some(old));
    assert_eq!(outcome.unwrap_or_else(|e| panic!("{e}")).files, 20);
}

/// A limit on file sizes kills who exceeds it; the host must not die of our writing.
#[test]
fn a_limit_on_file_sizes_does_not_kill_the_host() {
    let _alone = common::alone();
    let place = Place::new("file size");
    fs::write(place.source.join("large"), vec![1; 2 << 20]).expect("a large file");
    let destination = place.destination();
    let backup = place.backup(&destination);
    let old = calls::limit(libc::RLIMIT_FSIZE, Some(1 << 20));
    let outcome = backup.start().and_then(Session::finish);
    calls::limit(libc::RLIMIT_FSIZE, Some(old));
    if let Err(error) = outcome {
        assert_eq!(error.errno(), libc::EFBIG, "{error}");
        assert!(error.to_string().contains("large"), "{error} names another file");
    }
    place.session();
}

/// Many short-lived threads: slots come and go.
#[test]
fn threads_that_end_leave_nothing_to_wait_for() {
    let _alone = common::alone();
    let place = Place::new("short-lived");
    let targets = targets(&place.source, 3);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                std::thread::scope(|inner| {
                    for _ in 0..8 {
                        inner.spawn(|| calls::pwrite(targets[2].fd, b"12345678", 0));
                    }
                });
            }
        });
        for _ in 0..10 {
            place.session();
        }
        stop.store(true, Ordering::Relaxed);
    });
}

/// A file that comes and goes all the time, as a database's journal does, is no unseen change.
#[test]
fn a_journal_that_comes_and_goes_is_seen() {
    let _alone = common::alone();
    // A disk's filesystem: it gives a new file the inode of the one that went.
    let place = Place::on(Scratch::new(false), "journal");
    let path = calls::c(place.source.join("journal").to_str().expect("ordinary"));
    let name = calls::Name { dir: libc::AT_FDCWD, path: &path };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let fd = calls::openat(name, libc::O_RDWR | libc::O_CREAT | libc::O_NOFOLLOW, 0o600);
                let fd = fd.expect("a journal") as RawFd;
                calls::pwrite(fd, b"a page", 0).expect("written");
                calls::close(fd).expect("closes");
                calls::unlink(name, 0).expect("it goes");
                std::thread::sleep(Duration::from_micros(100));
            }
        });
        for _ in 0..30 {
            let report = place.session();
            assert!(report.unseen.is_empty(), "taken for unseen changes: {:?}", report.unseen);
        }
        stop.store(true, Ordering::Relaxed);
    });
}
