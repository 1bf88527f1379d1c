//! What a program feels of a backup: its writes before and during a session, and the freeze.
//!
//! One thread writes 16 KiB to random places of a file of 1 GiB, through the hooks, as fast as it can or 1,000 times a
//! second, while sessions run. Prints one line per load: writes a second and their latency without and with a session, the
//! freeze, and how long a session took. `HOTBACKUP_BENCH_DIR` says where, `HOTBACKUP_BENCH_SESSIONS` how many (5).
#![expect(clippy::print_stdout, reason = "printing figures is what it is for")]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hotbackup::intercept::{Change, around};
use hotbackup::{Backup, KeepFree};
use tempfile::TempDir;

const SIZE: u64 = 1 << 30;
const PIECE: usize = 16 << 10;

fn main() {
    let root = std::env::var_os("HOTBACKUP_BENCH_DIR").unwrap_or_else(|| std::env::temp_dir().into());
    let sessions = std::env::var("HOTBACKUP_BENCH_SESSIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(5);
    println!(
        "{:>12} {:>8} {:>10} {:>8} {:>8} {:>8} {:>10} {:>10} {:>10}",
        "load", "", "writes/s", "p50 us", "p99 us", "max ms", "freeze ms", "worst ms", "session s"
    );
    for (name, pause) in [("saturating", Duration::ZERO), ("1000/s", Duration::from_millis(1))] {
        let directory = TempDir::new_in(&root).expect("a directory to work in");
        let source = directory.path().join("source");
        std::fs::create_dir(&source).expect("a source");
        fill(&source.join("file"));
        let begun = Instant::now();
        let idle = write_until(&source, pause, || begun.elapsed() >= Duration::from_secs(2));
        print_line(name, "idle", &idle, &[], Duration::ZERO);
        let (during, freezes, took) = in_sessions(directory.path(), &source, pause, sessions);
        print_line(name, "session", &during, &freezes, took);
    }
}

fn fill(path: &Path) {
    let file = File::create(path).expect("a file");
    let piece = vec![1u8; 1 << 20];
    for at in (0..SIZE).step_by(1 << 20) {
        rustix::io::pwrite(&file, &piece, at).expect("room for the file");
    }
}

/// Latencies of single writes, in nanoseconds, and over what time they were made.
struct Writes {
    nanoseconds: Vec<u64>,
    time: Duration,
}

fn write_until(source: &Path, pause: Duration, done: impl Fn() -> bool) -> Writes {
    let file = File::options().write(true).open(source.join("file")).expect("the file");
    let bytes = vec![2u8; PIECE];
    let (mut random, mut nanoseconds) = (0x9E37_79B9_7F4A_7C15_u64, Vec::with_capacity(1 << 22));
    let begun = Instant::now();
    while !done() {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let at = random % (SIZE / PIECE as u64) * PIECE as u64;
        let call = Instant::now();
        around(Change::WriteAt { fd: file.as_raw_fd(), at: at.cast_signed() }, || {
            Ok::<_, std::io::Error>(rustix::io::pwrite(&file, &bytes, at)?)
        })
        .expect("the write succeeds");
        nanoseconds.push(u64::try_from(call.elapsed().as_nanos()).unwrap_or(u64::MAX));
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
    }
    Writes { nanoseconds, time: begun.elapsed() }
}

/// Backs up again and again while a thread writes.
fn in_sessions(
    root: &Path,
    source: &Path,
    pause: Duration,
    count: usize,
) -> (Writes, Vec<Duration>, Duration) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| write_until(source, pause, || done.load(Ordering::Relaxed)));
        let mut freezes = Vec::new();
        let begun = Instant::now();
        for number in 0..count {
            let destination = root.join(number.to_string());
            std::fs::create_dir(&destination).expect("a destination");
            let backup = Backup::from(source).to(&destination).keep_free(KeepFree::Bytes(0));
            match backup.start().and_then(hotbackup::Session::finish) {
                Ok(report) => freezes.push(report.freeze),
                Err(error) => println!("no backup: {error}"),
            }
            std::fs::remove_dir_all(&destination).expect("the backup can be removed");
        }
        let took = begun.elapsed() / u32::try_from(count.max(1)).unwrap_or(1);
        done.store(true, Ordering::Relaxed);
        (writer.join().expect("the writer runs to its end"), freezes, took)
    })
}

fn print_line(load: &str, when: &str, writes: &Writes, freezes: &[Duration], session: Duration) {
    let mut sorted = writes.nanoseconds.clone();
    sorted.sort_unstable();
    let at =
        |part: f64| sorted.get((part * (sorted.len() as f64 - 1.0)) as usize).copied().unwrap_or(0) as f64;
    let mut frozen = freezes.to_vec();
    frozen.sort_unstable();
    let ms = |time: Option<&Duration>| time.map_or(0.0, |time| time.as_secs_f64() * 1e3);
    println!(
        "{load:>12} {when:>8} {:>10.0} {:>8.1} {:>8.1} {:>8.2} {:>10.2} {:>10.2} {:>10.2}",
        sorted.len() as f64 / writes.time.as_secs_f64(),
        at(0.5) / 1e3,
        at(0.99) / 1e3,
        at(1.0) / 1e6,
        ms(frozen.get(frozen.len() / 2)),
        ms(frozen.last()),
        session.as_secs_f64(),
    );
}
