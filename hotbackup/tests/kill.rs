//! A killed backup never looks like a complete one.
//!
//! Method: this program starts itself again. The child backs up a source, into one destination after the other, while
//! threads of it write numbered records; it is killed with SIGKILL at a random moment. Every destination that it left
//! is then either untouched, or marked as incomplete, or complete: then it verifies, and shows one instant.
//! `HOTBACKUP_KILLS` sets how often (15).

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use common::records::{How, Target, records};
use common::rng::Rng;
use common::{Scratch, Watchdog};
use hotbackup::{Backup, KeepFree, Session, Throttle};

const CHILD: &str = "HOTBACKUP_KILL_CHILD";
const FILES: usize = 16;

/// The child's part; without the variable this is no test at all.
#[test]
fn child() {
    let Some(directory) = std::env::var_os(CHILD).map(PathBuf::from) else {
        return;
    };
    let source = directory.join("source");
    let path = |i: usize| source.join(format!("d{}/records {i}", i % 3));
    let targets: Vec<_> = (0..FILES).map(|i| Target::open(&path(i), How::Append)).collect();
    let last = Mutex::new(0);
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (last, targets) = (&last, &targets);
            scope.spawn(move || {
                let mut rng = Rng::new(thread);
                loop {
                    let mut last = last.lock().expect("no panic while writing");
                    *last += 1;
                    targets[rng.below(FILES as u64) as usize].put(How::Append, *last);
                    drop(last);
                    if rng.one_in(20) {
                        std::thread::sleep(Duration::from_micros(100));
                    }
                }
            });
        }
        for number in 0.. {
            let destination = directory.join(format!("destination{number}"));
            fs::create_dir(&destination).expect("a destination");
            let backup = Backup::from(&source).to(&destination).keep_free(KeepFree::Bytes(0));
            let backup = match number % 3 {
                0 => backup.throttle(Throttle::bytes_per_sec(8 << 20)),
                _ => backup,
            };
            let outcome = backup.start().and_then(Session::finish);
            outcome.unwrap_or_else(|e| panic!("backup {number}: {e}"));
            fs::write(directory.join(format!("done{number}")), "").expect("a note of success");
        }
    });
}

#[derive(Debug, PartialEq, Eq)]
enum Left {
    Untouched,
    Marked,
    Complete,
}

fn judge(destination: &Path) -> Left {
    let entries = fs::read_dir(destination).expect("the destination can be read");
    let names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    if names.is_empty() {
        return Left::Untouched;
    }
    if names.iter().any(|name| name == "HOTBACKUP-INCOMPLETE") {
        return Left::Marked;
    }
    assert!(
        names.iter().any(|name| name == "hotbackup-manifest.json"),
        "neither marked nor with a manifest: {names:?}"
    );
    let wrong = common::unverified(destination);
    assert!(wrong.is_empty(), "neither marked nor right: {wrong:#?}");
    let copy = |i: usize| records(&destination.join(format!("d{}/records {i}", i % 3)));
    let mut all: Vec<u64> = (0..FILES).flat_map(copy).collect();
    all.sort_unstable();
    let gap = all.iter().zip(1..).find(|(number, expected)| **number != *expected);
    assert_eq!(gap, None, "a record is missing in {}", destination.display());
    assert!(destination.join("ballast").metadata().expect("the ballast").len() == 4 << 20);
    Left::Complete
}

#[test]
fn what_a_killed_process_leaves_is_complete_or_marked() {
    let _alone = common::alone();
    let kills = common::number("HOTBACKUP_KILLS").unwrap_or(15);
    let first = common::number("HOTBACKUP_SEED").unwrap_or(1);
    let (mut marked, mut complete) = (0, 0);
    for seed in first..first + kills {
        let _watchdog = Watchdog::new(format!("kill, seed {seed}"), Duration::from_secs(60));
        let mut rng = Rng::new(seed);
        let scratch = Scratch::new(rng.one_in(2));
        let source = scratch.dir("source");
        for i in 0..3 {
            fs::create_dir(source.join(format!("d{i}"))).expect("a directory");
        }
        fs::write(source.join("ballast"), vec![5; 4 << 20]).expect("a large file");
        let program = std::env::current_exe().expect("this program");
        let mut child = Command::new(program)
            .args(["child", "--exact", "--nocapture"])
            .env(CHILD, scratch.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("the child starts");
        while !scratch.path().join("destination0").exists() {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(rng.below(rng_span(seed))));
        child.kill().expect("the child runs");
        let status = child.wait().expect("the child ended");
        assert_eq!(status.code(), None, "seed {seed}: the child failed by itself");
        for number in 0.. {
            let destination = scratch.path().join(format!("destination{number}"));
            if !destination.exists() {
                break;
            }
            let left = judge(&destination);
            let done = scratch.path().join(format!("done{number}")).exists();
            assert!(!done || left == Left::Complete, "seed {seed}: reported as a success, but {left:?}");
            marked += u32::from(left == Left::Marked);
            complete += u32::from(left == Left::Complete);
        }
    }
    common::say(&format!("{kills} kills: {marked} destinations marked, {complete} complete"));
}

/// Some children die in their first backup, some after many.
fn rng_span(seed: u64) -> u64 {
    if seed.is_multiple_of(3) { 60_000 } else { 1_000_000 }
}
