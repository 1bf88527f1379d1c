//! Files that another process writes to are found and named.
//!
//! Method: another process holds one file of the source open for writing, and opens and closes another one while files are
//! copied, without changing either: no time moves, so nothing but /proc and fanotify tells of it.

mod common;

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::mounted::Mounted;
use common::{Place, Scratch, calls, run};
use hotbackup::{Backup, KeepFree, OnUnseenChange, Phase, Throttle};

/// Has a shell open `path` for writing, which it does not change, and closes it when the handle is dropped.
struct Opened(std::process::Child);

impl Opened {
    fn by_a_shell(path: &Path) -> Opened {
        let mut shell = Command::new("sh");
        shell.arg("-c").arg("exec 3>>\"$0\"; echo; read end").arg(path);
        let mut shell = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a shell");
        let mut said = [0];
        let out = shell.stdout.as_mut().expect("a pipe");
        std::io::Read::read_exact(out, &mut said).expect("the shell has opened the file");
        Opened(shell)
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().expect("the shell ends");
    }
}

fn others_are_named(source: &Path, destination: &Path) {
    for name in ["held", "closed", "untouched"] {
        fs::write(source.join(name), name).expect("a source file");
    }
    let bulk = File::create(source.join("bulk")).expect("a source file");
    rustix::fs::fallocate(&bulk, rustix::fs::FallocateFlags::empty(), 0, 8 << 20).expect("room for it");
    std::io::Write::write_all(&mut &bulk, &vec![b'x'; 8 << 20]).expect("room for it");
    let held = Opened::by_a_shell(&source.join("held"));
    let mut told = false;
    let backup = Backup::from(source).to(destination).keep_free(KeepFree::Bytes(0));
    let backup = backup.throttle(Throttle::bytes_per_sec(10 << 20)).on_progress(|progress| {
        if progress.phase == Phase::Copy && progress.bytes_done > 0 && !told {
            told = true;
            drop(Opened::by_a_shell(&source.join("closed")));
        }
        ControlFlow::Continue(())
    });
    let report = run(backup);
    drop(held);
    assert!(told, "no progress was reported while files were copied");
    let named = |name: &str| {
        let path = source.join(name);
        let about = |w: &&hotbackup::Warning| w.path.as_ref() == Some(&path);
        report.warnings.iter().find(about).map_or("", |warning| &*warning.text).contains("by process")
    };
    let found = ["held", "closed", "untouched", "bulk"].map(named);
    assert_eq!(found, [true, true, false, false], "{:?}", report.warnings);
}

/// fanotify needs root.
fn on(scratch: &Scratch) {
    if calls::effective_ids().0 != 0 {
        return common::say("skipped: fanotify needs root");
    }
    others_are_named(&scratch.dir("source"), &scratch.dir("destination"));
}

#[test]
fn on_tmpfs() {
    let _alone = common::alone();
    on(&Scratch::new(true));
}

#[test]
fn on_the_disk() {
    let _alone = common::alone();
    on(&Scratch::new(false));
}

#[test]
fn on_mounted_filesystems() {
    let _alone = common::alone();
    for (make, arguments) in [("mkfs.ext4", ["-q"]), ("mkfs.xfs", ["-q"]), ("mkfs.btrfs", ["-q"])] {
        let scratch = Scratch::new(true);
        if let Some(mounted) = Mounted::new(&scratch, make, &arguments) {
            others_are_named(&mounted.dir("source"), &mounted.dir("destination"));
        }
    }
}

#[test]
fn from_one_filesystem_to_another() {
    let _alone = common::alone();
    let (memory, disk) = (Scratch::new(true), Scratch::new(false));
    if calls::effective_ids().0 == 0 {
        others_are_named(&memory.dir("source"), &disk.dir("destination"));
    }
}

/// A directory that something unseen changes all the while is taken as it is, if the caller wants that. What it wants left out is left
/// out all the same, also what comes into being at the cut.
#[test]
fn what_is_left_out_stays_out_if_an_unsteady_directory_is_taken() {
    let _alone = common::alone();
    for _ in 0..4 {
        let scratch = Scratch::new(true);
        let place = Place::new(scratch, "unsteady");
        let busy = place.source.join("busy");
        fs::create_dir(&busy).expect("a source directory");
        // So that it takes a while behind the cut until the audit comes to it.
        for number in 0..2000 {
            fs::write(place.source.join(format!("still-{number}")), "").expect("a source file");
        }
        let stop = AtomicBool::new(false);
        let report = std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in (0_u64..).take_while(|_| !stop.load(Ordering::Relaxed)) {
                    let name = busy.join(number.to_string());
                    calls::unseen(|| fs::write(&name, "x").and_then(|()| fs::remove_file(&name)))
                        .expect("a file");
                    std::thread::sleep(Duration::from_micros(100));
                }
            });
            scope.spawn(|| {
                for number in (0_u64..).take_while(|_| !stop.load(Ordering::Relaxed)) {
                    let name = place.source.join(format!("left-out-{number}"));
                    hotbackup::fs::write(&name, "x").expect("a file");
                    hotbackup::fs::remove_file(&name).expect("the file");
                }
            });
            let is_left_out = |path: &Path| path.to_string_lossy().contains("left-out");
            let backup = place.backup().on_unseen_change(OnUnseenChange::Warn).exclude_if(is_left_out);
            let outcome = backup.start().and_then(hotbackup::Session::finish);
            stop.store(true, Ordering::Relaxed);
            outcome
        });
        let report = report.expect("a backup");
        let names = fs::read_dir(&place.destination)
            .expect("the copy")
            .map(|entry| entry.expect("a name").file_name());
        let left: Vec<_> = names.filter(|name| name.to_string_lossy().contains("left-out")).collect();
        assert!(left.is_empty(), "{left:?} after {} tries", report.cut_attempts);
        assert!(
            report.warnings.iter().any(|warning| warning.path.as_deref() == Some(busy.as_path())),
            "{:?}",
            report.warnings
        );
    }
}
