//! What the engine does with a mark that is not queued: whoever waits has it dealt with, and no cut counts without it.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use rustix::fs::{AtFlags, StatxFlags, statx};

use crate::intercept::{Change, around, device};
use crate::registry::{ALONE, WATCH};
use crate::{Backup, KeepFree, Report};

/// A session in which, shortly before the cut, a file owes a block and is not queued; then another one is written.
fn back_up_with_a_lost_mark(max_lag: Option<u64>) -> Report {
    let _alone = ALONE.lock();
    let scratch = tempfile::tempdir().expect("a directory");
    let dir = |name: &str| {
        let path = scratch.path().join(name);
        fs::create_dir(&path).expect("a directory");
        path
    };
    let (source, destination) = (dir("source"), dir("destination"));
    for name in ["file", "other"] {
        fs::write(source.join(name), [b'x'; 8192]).expect("a source file");
    }
    let other = File::open(source.join("other")).expect("opened");
    let file = File::options().write(true).open(source.join("file")).expect("opened");
    let flags = AtFlags::EMPTY_PATH;
    let found = statx(&other, c"", flags, StatxFlags::BASIC_STATS).expect("its inode");
    let mut lost = false;
    let mut lose_a_mark = || {
        if std::mem::replace(&mut lost, true) {
            return;
        }
        WATCH.find(device(&found), found.stx_ino).expect("it is watched").mark_unqueued(&WATCH.ledger, 1);
        let change = Change::WriteAt { fd: file.as_raw_fd(), at: 0 };
        let written = around(change, || file.write_at(b"captured", 0).map_or(-1, |len| len as i64));
        assert_eq!(written, 8);
    };
    let mut backup = Backup::from(&source)
        .to(&destination)
        .keep_free(KeepFree::Bytes(0))
        .max_stall(Duration::from_secs(3))
        .before_cut(&mut lose_a_mark);
    if let Some(max_lag) = max_lag {
        backup = backup.max_lag(max_lag);
    }
    let report = backup.start().expect("a session").finish().expect("the backup");
    let copy = fs::read(destination.join("file")).expect("the copy");
    assert_eq!(copy, [&b"captured"[..], &[b'x'; 8184]].concat());
    report
}

#[test]
fn no_cut_counts_while_something_is_owed() {
    let report = back_up_with_a_lost_mark(None);
    assert_eq!((report.cut_attempts, report.unseen.len()), (2, 0), "{report:?}");
}

#[test]
fn a_call_that_waits_has_dealt_with_what_is_not_queued() {
    // The call waits until its own write is in the backup and nothing is owed; in vain, it would fail the session.
    let report = back_up_with_a_lost_mark(Some(0));
    assert_eq!((report.cut_attempts, report.unseen.len()), (1, 0), "{report:?}");
}
