//! How long calls wait, how fast files are copied, and how often a caller is told.
//!
//! Method: one large file is copied at a rate, and what each call of the progress callback says is noted with its time. Machines
//! that do other things as well are late now and then, so what is counted is how many of the intervals keep the promise, and
//! only what lateness cannot explain (too much in a second) is asserted of all. For the deadlines of calls the destination is
//! frozen by the kernel, which needs root.

mod common;

use std::fs;
use std::ops::ControlFlow;
use std::os::fd::RawFd;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::calls::{self, Name};
use common::mounted::Mounted;
use common::{Place, Scratch, run};
use hotbackup::{Backup, Error, KeepFree, Phase, Session, Throttle};

fn open(path: &Path) -> RawFd {
    let path = calls::c(path.to_str().expect("ordinary"));
    let name = Name { dir: libc::AT_FDCWD, path: &path };
    calls::openat(name, libc::O_CREAT | libc::O_RDWR, 0o600).expect("a file") as RawFd
}

/// The most bytes that were copied within `span`.
fn most_in(span: Duration, looks: &[(Duration, u64)]) -> u64 {
    let after = |&(since, before): &(Duration, u64)| {
        let within = looks.iter().take_while(|(at, _)| *at <= since + span);
        within.map(|(_, done)| done - before.min(*done)).max().unwrap_or(0)
    };
    looks.iter().map(after).max().unwrap_or(0)
}

#[test]
fn one_huge_file_is_copied_evenly_and_told_of_all_the_while() {
    const RATE: u64 = 20_000_000;
    let _alone = common::alone();
    let place = Place::new(Scratch::new(true), "pace");
    fs::write(place.source.join("huge"), vec![b'x'; 60_000_000]).expect("a source file");
    let mut looks: Vec<(Duration, u64)> = Vec::new();
    let begun = Instant::now();
    let session = place.backup().throttle(Throttle::bytes_per_sec(RATE)).on_progress(|progress| {
        if progress.phase == Phase::Copy {
            looks.push((begun.elapsed(), progress.bytes_done));
        }
        ControlFlow::Continue(())
    });
    let session = session.start().expect("it starts");
    let handle = session.handle();
    let doubled = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(1500));
            doubled.store(begun.elapsed().as_millis() as u64, Ordering::Relaxed);
            handle.set_throttle(Throttle::bytes_per_sec(2 * RATE));
        });
        session.finish().expect("the backup");
    });
    let doubled = Duration::from_millis(doubled.into_inner());
    let (first, second): (Vec<_>, Vec<_>) = looks.iter().partition(|(at, _)| *at < doubled);
    // What is saved up, and a piece that overdraws the account, come on top of the rate.
    let limit = RATE + RATE / 5;
    assert!(most_in(Duration::from_secs(1), &first) <= limit, "a burst: {first:?}");
    assert!(most_in(Duration::from_secs(1), &second) <= 2 * limit, "a burst at the new rate: {second:?}");
    let rate = |looks: &[(Duration, u64)]| {
        let (from, to) = (looks[looks.len() / 4], looks[looks.len() - 1]);
        (to.1 - from.1) as f64 / (to.0 - from.0).as_secs_f64()
    };
    let (slow, fast) = (rate(&first), rate(&second));
    assert!(slow > 0.6 * RATE as f64 && fast > 1.4 * slow, "{slow} and {fast} bytes per second");
    let pairs = || looks.windows(2).map(|pair| (pair[1].0 - pair[0].0, pair[1].1 - pair[0].1));
    let late = pairs().filter(|(time, _)| *time > Duration::from_millis(100)).count();
    let idle = pairs().filter(|(_, bytes)| *bytes == 0).count();
    let jumps = pairs().filter(|(_, bytes)| *bytes > RATE / 2).count();
    let few = looks.len() / 4;
    assert!(looks.len() >= 20, "told {} times in {:?}", looks.len(), begun.elapsed());
    assert!(late <= few && idle <= few && jumps <= 2, "{late} late, {idle} idle, {jumps} jumps: {looks:?}");
}

/// The classic mirror: what a call has written is on the backup file when it returns.
#[test]
fn with_no_lag_allowed_a_write_is_on_the_backup_file_when_it_returns() {
    let _alone = common::alone();
    let place = Place::new(Scratch::new(true), "no lag");
    fs::write(place.source.join("file"), vec![b'x'; 100_000]).expect("a source file");
    let fd = open(&place.source.join("file"));
    let copy = place.destination.join("HOTBACKUP-INCOMPLETE/tree/file");
    let mut compared = 0;
    run(place.backup().max_lag(0).before_cut(|| {
        for number in 0..200u64 {
            let (at, bytes) = ((number * 7919 % 120_000) as usize, number.to_be_bytes());
            assert_eq!(calls::pwrite(fd, &bytes, at as i64), Ok(8));
            let copied = fs::read(&copy).expect("the copy so far");
            assert_eq!(copied.get(at..at + 8), Some(&bytes[..]), "write {number} at {at}");
            compared += 1;
        }
    }));
    assert_eq!(compared, 200);
    calls::close(fd).expect("closes");
}

/// Has the kernel hold up everybody who writes to a filesystem, until this goes.
struct Frozen<'a>(&'a Path);

impl<'a> Frozen<'a> {
    fn new(place: &'a Path) -> Option<Frozen<'a>> {
        let done = Command::new("fsfreeze").arg("--freeze").arg(place).output();
        done.is_ok_and(|output| output.status.success()).then_some(Frozen(place))
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze").arg("--unfreeze").arg(self.0).output();
    }
}

/// The session fails and says why, the call goes on.
#[test]
fn a_call_waits_for_a_destination_that_hangs_no_longer_than_it_is_told_to() {
    const MOST: Duration = Duration::from_millis(400);
    let _alone = common::alone();
    let place = Place::new(Scratch::new(true), "stalled");
    let scratch = Scratch::new(true);
    let Some(mounted) = Mounted::new(&scratch, "mkfs.ext4", &["-q", "-F"]) else { return };
    let destination = mounted.dir("destination");
    fs::write(place.source.join("file"), vec![b'x'; 100_000]).expect("a source file");
    let fd = open(&place.source.join("file"));
    let mut waited = Duration::ZERO;
    let backup = Backup::from(&place.source).to(&destination).keep_free(KeepFree::Bytes(0));
    let outcome = backup.max_lag(0).max_stall(MOST).before_cut(|| {
        let Some(_frozen) = Frozen::new(&destination) else { return common::say("skipped: no fsfreeze") };
        let begun = Instant::now();
        assert_eq!(calls::pwrite(fd, b"held up", 5), Ok(7));
        waited = begun.elapsed();
        assert_eq!(calls::pwrite(fd, b"no more", 5), Ok(7));
        assert!(begun.elapsed() < MOST + Duration::from_secs(2), "the next call waited as well");
    });
    let outcome = outcome.start().and_then(Session::finish).map(drop);
    calls::close(fd).expect("closes");
    if waited.is_zero() {
        return;
    }
    assert!((MOST..MOST + Duration::from_secs(2)).contains(&waited), "the call waited for {waited:?}");
    match outcome {
        Err(Error::Stalled { waited, limit }) => assert!(limit == MOST && waited >= MOST, "{waited:?}"),
        other => panic!("{other:?}"),
    }
}
