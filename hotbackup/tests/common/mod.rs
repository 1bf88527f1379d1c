//! What the test programs of this directory share: captured calls, random operations on a small tree, a model of a
//! filesystem to replay them on, and a reader of trees that says how two of them differ.
#![allow(dead_code, reason = "every test program compiles this module and uses a part of it")]

pub mod aio;
pub mod calls;
pub mod load;
pub mod model;
pub mod mounted;
pub mod ops;
pub mod records;
pub mod rng;
pub mod sessions;
pub mod tree;
pub mod uring;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hotbackup::{Backup, KeepFree, Report, Session};

/// The tests of one program run in threads of one process, which can have one session at a time.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The number in the environment variable `name`.
pub fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// The seeds that a test with random choices runs: `default` of them from 1 on, `HOTBACKUP_SESSIONS` of them if that is set, or
/// `HOTBACKUP_SEED` over and over, since the order of threads is not in the seed.
pub fn seeds(default: u64) -> Vec<u64> {
    let count = number("HOTBACKUP_SESSIONS");
    match number("HOTBACKUP_SEED") {
        Some(seed) => vec![seed; count.unwrap_or(50) as usize],
        None => {
            let from = number("HOTBACKUP_FIRST_SEED").unwrap_or(1);
            (from..from + count.unwrap_or(default)).collect()
        }
    }
}

/// Says something to whoever watches the tests.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// A directory of its own for one session; removed at the end unless the test fails.
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// In memory if there is such a filesystem and `in_memory` says so, else where temporary files go.
    pub fn new(in_memory: bool) -> Scratch {
        let shm = Path::new("/dev/shm");
        let place = if in_memory && shm.is_dir() { shm.to_owned() } else { std::env::temp_dir() };
        Scratch::below(&place)
    }

    /// Where the test wants it.
    pub fn below(place: &Path) -> Scratch {
        let dir =
            tempfile::Builder::new().prefix("hotbackup-").tempdir_in(place).expect("a directory for a test");
        Scratch { path: dir.keep() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a directory in it.
    pub fn dir(&self, name: &str) -> PathBuf {
        let path = self.path.join(name);
        std::fs::create_dir(&path).expect("a directory in the scratch directory");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !std::thread::panicking() || std::env::var_os("HOTBACKUP_KEEP").is_none() {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// Ends the process with a word about what hung if it is not dropped in time: a hanging test says nothing by itself.
pub struct Watchdog {
    alive: std::sync::Arc<std::sync::atomic::AtomicBool>,
}

impl Watchdog {
    pub fn new(what: String, limit: Duration) -> Watchdog {
        let alive = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
        let watched = std::sync::Arc::clone(&alive);
        std::thread::spawn(move || {
            let begun = Instant::now();
            while watched.load(std::sync::atomic::Ordering::Relaxed) {
                if begun.elapsed() > limit {
                    say(&format!("HANGS for {limit:?}: {what}"));
                    if let Some(session) = hotbackup::current() {
                        say(&format!("{session:?}"));
                    }
                    threads().iter().for_each(|thread| say(thread));
                    std::process::abort();
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        Watchdog { alive }
    }
}

/// What each thread of this process is at, as far as the kernel tells (proc_pid_stat(5), proc_pid_syscall(5), proc_pid_stack(5)).
fn threads() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let about = |task: std::fs::DirEntry| {
        let read = |name| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
        // The state, and the times in user and kernel mode, are in `stat`.
        ["stat", "syscall", "stack"].map(|name| read(name).trim_end().to_owned()).join("\n    ")
    };
    tasks.map(about).collect()
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.alive.store(false, std::sync::atomic::Ordering::Relaxed);
    }
}

/// A source, an empty destination, and somebody who notices if the test hangs.
pub struct Place {
    pub source: PathBuf,
    pub destination: PathBuf,
    _scratch: Scratch,
    _watchdog: Watchdog,
}

impl Place {
    pub fn new(scratch: Scratch, test: &str) -> Place {
        let (source, destination) = (scratch.dir("source"), scratch.dir("destination"));
        let watchdog = Watchdog::new(test.to_owned(), Duration::from_secs(120));
        Place { source, destination, _scratch: scratch, _watchdog: watchdog }
    }

    pub fn backup<'a>(&self) -> Backup<'a> {
        Backup::from(&self.source).to(&self.destination).keep_free(KeepFree::Bytes(0))
    }
}

/// A whole session that must succeed.
#[track_caller]
pub fn run(backup: Backup<'_>) -> Report {
    backup.start().and_then(Session::finish).expect("the backup")
}

/// What `hotbackup::verify` finds wrong with a backup.
pub fn unverified(destination: &Path) -> Vec<String> {
    match hotbackup::verify(destination) {
        Err(e) => vec![e.to_string()],
        Ok(found) => found.differences.iter().take(10).map(|difference| format!("{difference:?}")).collect(),
    }
}
