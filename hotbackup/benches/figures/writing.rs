//! What a program feels of a backup: its writes before and during a session, the freeze, and its fsync.

use std::fs::{self, File};
use std::hint::black_box;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hotbackup::intercept::{Change, around};
use hotbackup::{Report, Throttle};

use crate::measure::{Done, Figure, Spread, Target, interleave, is_small, note, scaled};
use crate::place::{Place, backup, copy, make_file, make_files, ours, seconds, sync};

const PIECE: usize = 16 << 10;

/// Threads that write 16 KiB to random places of `source/file`, through the hooks.
pub struct Load<'a> {
    pub source: &'a Path,
    pub writers: u64,
    /// Between the beginnings of two calls of a thread; none for as fast as it can.
    pub pause: Duration,
}

/// One write: when it began, in nanoseconds since 1970, and how many it took.
#[derive(Clone, Copy)]
struct Call {
    at: u64,
    took: u64,
}

/// From when to when something went on.
type Part = (SystemTime, SystemTime);

/// The calls of some time.
pub struct Calls {
    calls: Vec<Call>,
    time: Duration,
}

impl Load<'_> {
    /// Does the work while the threads write; returns the calls of just this time.
    pub fn during<T>(&self, work: impl FnOnce() -> Done<T>) -> Done<(Calls, T)> {
        self.during_parts(|parts| {
            let begun = SystemTime::now();
            let result = work();
            parts.push((begun, SystemTime::now()));
            result
        })
    }

    /// The same for work of which only some parts count, which it notes.
    fn during_parts<T>(&self, work: impl FnOnce(&mut Vec<Part>) -> Done<T>) -> Done<(Calls, T)> {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let done = &done;
            let threads: Vec<_> =
                (1..=self.writers).map(|seed| scope.spawn(move || self.write(done, seed))).collect();
            // To warm up.
            std::thread::sleep(Duration::from_millis(300));
            let mut parts = Vec::new();
            let result = work(&mut parts);
            done.store(true, Ordering::Relaxed);
            let mut calls = Vec::new();
            for thread in threads {
                calls.extend(thread.join().map_err(|_| "a writer failed")??);
            }
            let parts: Vec<_> = parts.into_iter().map(|(from, to)| (unix_ns(from), unix_ns(to))).collect();
            calls.retain(|call| parts.iter().any(|&(from, to)| call.at + call.took >= from && call.at <= to));
            let time = Duration::from_nanos(parts.iter().map(|&(from, to)| to.saturating_sub(from)).sum());
            Ok((Calls { calls, time }, result?))
        })
    }

    fn write(&self, done: &AtomicBool, seed: u64) -> io::Result<Vec<Call>> {
        let file = File::options().write(true).open(self.source.join("file"))?;
        let pieces = file.metadata()?.len() / PIECE as u64;
        let (bytes, mut random) = (vec![2u8; PIECE], 0x9E37_79B9_7F4A_7C15 ^ seed);
        // Touched now: the first touch of memory can take longer than a write.
        let mut calls = vec![Call { at: 1, took: 1 }; if self.pause.is_zero() { 4 << 20 } else { 1 << 16 }];
        calls.clear();
        let (unix, begun) = (unix_ns(SystemTime::now()), Instant::now());
        let mut due = begun;
        while !done.load(Ordering::Relaxed) {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let call = Instant::now();
            write_at(&file, &bytes, random % pieces * PIECE as u64)?;
            let at = unix + ns(call - begun);
            calls.push(Call { at, took: ns(call.elapsed()) });
            if !self.pause.is_zero() {
                due += self.pause;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
        }
        Ok(calls)
    }
}

impl Calls {
    fn per_second(&self) -> f64 {
        self.calls.len() as f64 / self.time.as_secs_f64()
    }

    /// In microseconds, the time that the given part of all calls stays below.
    fn quantile(&self, part: f64) -> f64 {
        let mut times: Vec<u64> = self.calls.iter().map(|call| call.took).collect();
        times.sort_unstable();
        times.get((part * (times.len() as f64 - 1.0)) as usize).map_or(f64::NAN, |&ns| ns as f64 / 1e3)
    }

    /// In milliseconds, the longest call of which no part lies in one of the freezes.
    fn longest_outside(&self, reports: &[Report]) -> f64 {
        // The instant noted lies in the freeze, we do not know where.
        let freezes: Vec<_> = reports.iter().map(|report| (unix_ns(report.cut), ns(report.freeze))).collect();
        let outside = |call: &&Call| {
            freezes.iter().all(|&(cut, freeze)| call.at > cut + freeze || call.at + call.took + freeze < cut)
        };
        self.calls.iter().filter(outside).map(|call| call.took).max().unwrap_or(0) as f64 / 1e6
    }
}

fn ns(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn unix_ns(time: SystemTime) -> u64 {
    ns(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// A function of its own, as the C library's is: to return from one behind a system call takes some 200 ns on some machines.
#[inline(never)]
fn pwrite(file: &File, bytes: &[u8], at: u64) -> io::Result<usize> {
    Ok(rustix::io::pwrite(file, bytes, at)?)
}

/// As a hook does it.
fn write_at(file: &File, bytes: &[u8], at: u64) -> io::Result<usize> {
    around(Change::WriteAt { fd: file.as_raw_fd(), at: at.cast_signed() }, || pwrite(file, bytes, at))
}

/// What a load saw in one round, and the backups made meanwhile.
struct Round {
    calls: Calls,
    /// Of the first copy, in seconds.
    took: f64,
    reports: Vec<Report>,
}

fn without(load: &Load<'_>, time: Duration) -> Done<Round> {
    sync(load.source)?;
    let (calls, ()) = load.during(|| {
        std::thread::sleep(time);
        Ok(())
    })?;
    Ok(Round { calls, took: f64::NAN, reports: Vec::new() })
}

/// Backups one after the other until the time is over, at least one.
fn within(load: &Load<'_>, place: &Place, time: Duration) -> Done<Round> {
    again_and_again(load, place, time, |to| Ok(Some(backup(load.source, to)?)))
}

/// What a host feels of a copy that knows nothing of it.
const BESIDE_CP: &str = "beside cp -a; sync -f";

/// Copies by `cp` one after the other until the time is over, at least one.
fn beside_cp(load: &Load<'_>, place: &Place, time: Duration) -> Done<Round> {
    again_and_again(load, place, time, |to| copy(&["cp", "-a"], load.source, to).map(|()| None))
}

/// The load while its files are copied. That the copies are removed again is no part of it.
fn again_and_again(
    load: &Load<'_>,
    place: &Place,
    time: Duration,
    mut once: impl FnMut(&Path) -> Done<Option<Report>>,
) -> Done<Round> {
    let to = place.destination()?;
    let (calls, (took, reports)) = load.during_parts(|parts| {
        let (begun, mut took, mut reports) = (Instant::now(), Vec::new(), Vec::new());
        while took.is_empty() || begun.elapsed() < time {
            let own = to.path().join(took.len().to_string());
            fs::create_dir(&own)?;
            let (from, session) = (SystemTime::now(), Instant::now());
            reports.extend(once(&own)?);
            parts.push((from, SystemTime::now()));
            took.push(session.elapsed().as_secs_f64());
            fs::remove_dir_all(&own)?;
        }
        Ok((took[0], reports))
    })?;
    Ok(Round { calls, took, reports })
}

/// Their freezes, in milliseconds.
fn freezes(rounds: &[Round]) -> Vec<f64> {
    rounds.iter().flat_map(|round| &round.reports).map(|report| report.freeze.as_secs_f64() * 1e3).collect()
}

/// One number of each round.
fn of(rounds: &[Round], number: impl Fn(&Round) -> f64) -> Vec<f64> {
    rounds.iter().map(number).collect()
}

/// The longest call, which no freeze explains, in each round.
fn longest(row: &str, what: &str, own: &[Round], idle: &[Round], beside_cp: &[Round]) -> Done {
    let of_rounds = |rounds| of(rounds, |round: &Round| round.calls.longest_outside(&round.reports));
    let what = format!("longest call outside the freeze, {what}");
    let figure =
        |other, others| Figure::new(row, what.clone(), "ms", of_rounds(own), (other, &of_rounds(others)));
    note(figure("no backup", idle).target(Target::AddedAtMost(2.0)))?;
    note(figure(BESIDE_CP, beside_cp))
}

fn writing_time() -> Duration {
    Duration::from_secs(scaled(10, 1))
}

/// As fast as it can, in a tree of 2 GiB.
pub fn saturating() -> Done {
    for place in Place::both()? {
        let source = place.directory("source")?;
        make_file(&source.join("file"), scaled(2 << 30, 64 << 20), 1)?;
        for (writers, target) in [(1, 0.6), (2, 0.5)] {
            let load = Load { source: &source, writers, pause: Duration::ZERO };
            let mut cp = || -> Done<Round> {
                let to = place.destination()?;
                let took = seconds(|| copy(&["cp", "-a"], &source, to.path()))?;
                Ok(Round { took, ..without(&load, Duration::ZERO)? })
            };
            let seen = interleave(&mut [
                &mut || within(&load, &place, Duration::ZERO),
                &mut || without(&load, Duration::from_secs(scaled(3, 1))),
                &mut cp,
                &mut || beside_cp(&load, &place, Duration::ZERO),
            ])?;
            let what = format!("{writers} saturating, {}", place.name);
            let rates = |side: usize| of(&seen[side], |round| round.calls.per_second());
            let note_rates = |other: &str, side: usize, target: Option<Target>| {
                let writes = format!("writes, {what}");
                let mut figure = Figure::new("saturating", writes, "/s", rates(0), (other, &rates(side)));
                figure.targets.extend(target);
                note(figure)
            };
            note_rates("no backup", 1, Some(Target::RatioAtLeast(target)))?;
            note_rates(BESIDE_CP, 3, None)?;
            let took = |side: usize| of(&seen[side], |round| round.took);
            let session = Figure::new(
                "saturating",
                format!("session, {what}"),
                "s",
                took(0),
                ("cp -a; sync -f, idle file", &took(2)),
            );
            note(session.target(Target::RatioAtMost(2.2)))?;
            longest("saturating", &what, &seen[0], &seen[1], &seen[3])?;
            let freeze = Figure::alone("saturating", format!("freeze, {what}"), "ms", freezes(&seen[0]));
            note(freeze.target(Target::MedianAtMost(2.0)).target(Target::WorstAtMost(10.0)))?;
        }
    }
    Ok(())
}

/// 1,000 times a second, in a tree of 2 GiB.
pub fn paced() -> Done {
    for place in Place::both()? {
        let source = place.directory("source")?;
        make_file(&source.join("file"), scaled(2 << 30, 64 << 20), 1)?;
        let load = Load { source: &source, writers: 1, pause: Duration::from_millis(1) };
        let seen = interleave(&mut [
            &mut || within(&load, &place, writing_time()),
            &mut || without(&load, writing_time()),
            &mut || beside_cp(&load, &place, writing_time()),
        ])?;
        for (name, part, target) in [("p50", 0.5, 1.5), ("p99", 0.99, 2.0), ("p99.9", 0.999, 4.0)] {
            let times = |side: usize| of(&seen[side], |round| round.calls.quantile(part));
            let what = format!("{name}, 1,000 writes/s, {}", place.name);
            let figure = Figure::new("paced", what.clone(), "us", times(0), ("no backup", &times(1)));
            note(figure.target(Target::RatioAtMost(target)))?;
            note(Figure::new("paced", what, "us", times(0), (BESIDE_CP, &times(2))))?;
        }
        longest("paced", &format!("1,000 writes/s, {}", place.name), &seen[0], &seen[1], &seen[2])?;
        note(Figure::alone(
            "paced",
            format!("freeze, 1,000 writes/s, {}", place.name),
            "ms",
            freezes(&seen[0]),
        ))?;
    }
    Ok(())
}

/// The freeze with many files.
pub fn files() -> Done {
    for place in Place::both()? {
        let source = place.directory("source")?;
        make_file(&source.join("file"), scaled(64 << 20, 16 << 20), 1)?;
        make_files(&source, scaled(100_000, 2_000), |_| 100)?;
        let load = Load { source: &source, writers: 1, pause: Duration::from_millis(1) };
        let seen = interleave(&mut [&mut || within(&load, &place, Duration::ZERO)])?;
        let what = format!("freeze, 100,000 files, 1,000 writes/s, {}", place.name);
        let figure = Figure::alone("files", what, "ms", freezes(&seen[0]));
        note(figure.target(Target::WorstAtMost(30.0)))?;
    }
    Ok(())
}

/// What a call costs during a session.
pub fn session() -> Done {
    for (bytes, name) in [(16, "16 B"), (4096, "4 KiB")] {
        let place = Place::tmpfs()?;
        let source = place.directory("source")?;
        make_file(&source.join("file"), 1 << 20, 1)?;
        let file = File::options().write(true).open(source.join("file"))?;
        let data = vec![7; bytes];
        let plain = || median_call(|| pwrite(&file, &data, 0));
        let hooked = || median_call(|| write_at(&file, &data, 0));
        for (state, throttle) in [("copying paused", Throttle::PAUSED), ("converging", Throttle::UNLIMITED)] {
            let mut own = || in_session(&place, &source, throttle, hooked);
            let seen = interleave(&mut [&mut own, &mut || Ok(plain()?)])?;
            let what = format!("pwrite of {name}, {state}");
            let figure = Figure::new("session", what, "ns", seen[0].clone(), ("the plain call", &seen[1]));
            note(figure.target(Target::AddedAtMost(600.0)))?;
        }
    }
    let nothing = || black_box(16isize);
    let mut hook = || Ok(median_call(|| Ok(around(Change::WriteAt { fd: 0, at: 0 }, nothing)))?);
    let seen = interleave(&mut [&mut hook, &mut || Ok(median_call(|| Ok(nothing()))?)])?;
    note(Figure::new("session", "the hook alone, no session", "ns", seen[0].clone(), ("nothing", &seen[1])))
}

/// The median of 100 batches, in nanoseconds a call.
fn median_call<T>(call: impl Fn() -> io::Result<T>) -> io::Result<f64> {
    let size = scaled(2000, 200);
    let mut batches = Vec::with_capacity(100);
    for _ in 0..100 {
        let begun = Instant::now();
        for _ in 0..size {
            black_box(call()?);
        }
        batches.push(begun.elapsed().as_nanos() as f64 / size as f64);
    }
    Ok(Spread::of(&batches).median)
}

/// Does the work while a session captures: one whose copying is paused, or one that is held in `before_cut`, where it
/// converges without end. It is cancelled then.
fn in_session(
    place: &Place,
    source: &Path,
    throttle: Throttle,
    work: impl FnOnce() -> io::Result<f64>,
) -> Done<f64> {
    let to = place.destination()?;
    let (handle_in, handle) = channel();
    let (at_cut_in, at_cut) = channel();
    let (go_on, wait) = channel::<()>();
    let to = to.path();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let held = ours(source, to).throttle(throttle).before_cut(|| {
                let _ = at_cut_in.send(());
                let _ = wait.recv();
            });
            let session = held.start()?;
            let _ = handle_in.send(session.handle());
            drop(handle_in);
            session.finish().map(drop)
        });
        let handle = handle.recv().map_err(|_| "no session")?;
        if throttle != Throttle::PAUSED {
            at_cut.recv().map_err(|_| "the session does not come to the cut")?;
        }
        let took = work();
        handle.cancel();
        drop(go_on);
        Ok(took?)
    })
}

/// The longest of the host's fsyncs while backups are made, while `cp` copies, and while nothing does.
pub fn fsync() -> Done {
    let place = Place::disk()?;
    let source = place.directory("source")?;
    make_file(&source.join("file"), scaled(2 << 30, 64 << 20), 1)?;
    let beside = |once: &dyn Fn(&Path) -> Done| -> Done<f64> {
        longest_fsync(&source, |host| {
            while !host.has_enough() {
                let to = place.destination()?;
                host.counts.store(true, Ordering::Relaxed);
                let result = once(to.path());
                host.counts.store(false, Ordering::Relaxed);
                result?;
            }
            Ok(())
        })
    };
    let mut idle = || -> Done<f64> {
        sync(&source)?;
        longest_fsync(&source, |host| {
            host.counts.store(true, Ordering::Relaxed);
            Ok(())
        })
    };
    let seen =
        interleave(&mut [&mut || beside(&|to| Ok(backup(&source, to).map(drop)?)), &mut idle, &mut || {
            beside(&|to| copy(&["cp", "-a"], &source, to))
        }])?;
    let what = format!("longest fsync in {} s, {}", FSYNCS.as_secs(), place.name);
    let figure = Figure::new("fsync", what.clone(), "ms", seen[0].clone(), ("no backup", &seen[1]));
    note(figure.target(Target::RatioAtMost(2.0)))?;
    note(Figure::new("fsync", what, "ms", seen[0].clone(), (BESIDE_CP, &seen[2])))
}

/// For how long fsyncs are measured.
const FSYNCS: Duration = Duration::from_secs(30);

/// A host that syncs its log.
struct Host {
    /// Whether what it sees counts. To remove the last copy, which takes ext4 long, is no part of a backup.
    counts: AtomicBool,
    /// Of what counts.
    milliseconds: AtomicU64,
}

impl Host {
    fn has_enough(&self) -> bool {
        let enough = if is_small() { Duration::from_secs(1) } else { FSYNCS };
        u128::from(self.milliseconds.load(Ordering::Relaxed)) >= enough.as_millis()
    }

    /// Appends 4 KiB to a log and syncs it, 50 times a second; the longest sync.
    fn work(&self, log: &File) -> io::Result<Duration> {
        let (mut longest, mut end) = (Duration::ZERO, 0);
        while !self.has_enough() {
            let (begun, counts) = (Instant::now(), self.counts.load(Ordering::Relaxed));
            end += write_at(log, &[7; 4096], end)? as u64;
            let call = Instant::now();
            log.sync_all()?;
            let took = call.elapsed();
            std::thread::sleep(Duration::from_millis(20));
            if counts {
                longest = longest.max(took);
                let all = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                self.milliseconds.fetch_add(all, Ordering::Relaxed);
            }
        }
        Ok(longest)
    }
}

/// The longest sync beside the work, in milliseconds.
fn longest_fsync(source: &Path, work: impl FnOnce(&Host) -> Done) -> Done<f64> {
    let log = File::create(source.join("log"))?;
    let host = Host { counts: AtomicBool::new(false), milliseconds: AtomicU64::new(0) };
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| host.work(&log));
        let result = work(&host);
        if result.is_err() {
            host.milliseconds.store(u64::MAX / 2, Ordering::Relaxed);
        }
        let longest = thread.join().map_err(|_| "the host's thread failed")??;
        result?;
        Ok(longest.as_secs_f64() * 1e3)
    })
}
