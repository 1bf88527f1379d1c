//! Method: a session with a short queue of fanotify, as a kernel without memory has one, while a shell closes more files than
//! there is room for. Takes root.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;

use crate::{Backup, KeepFree, Phase, Throttle};

const LIMIT: &str = "/proc/sys/fs/fanotify/max_queued_events";
const BULK: usize = 4 << 20;

/// What the limit was, given back when this goes.
struct ShortQueue(String);

impl ShortQueue {
    fn new() -> Option<ShortQueue> {
        let before = fs::read_to_string(LIMIT).ok()?;
        fs::write(LIMIT, "16").ok()?;
        super::QUEUE_IS_SHORT.store(true, std::sync::atomic::Ordering::SeqCst);
        Some(ShortQueue(before))
    }
}

impl Drop for ShortQueue {
    fn drop(&mut self) {
        super::QUEUE_IS_SHORT.store(false, std::sync::atomic::Ordering::SeqCst);
        fs::write(LIMIT, &self.0).expect("the limit as it was");
    }
}

fn close_many_files(directory: &Path) {
    let script = "i=0; while [ $i -lt 3000 ]; do : >>\"$0/$i\"; i=$((i + 1)); done";
    assert!(Command::new("sh").arg("-c").arg(script).arg(directory).status().expect("a shell").success());
}

#[test]
fn if_events_are_lost_everything_is_copied_again() {
    let _alone = crate::registry::ALONE.lock();
    let scratch = tempfile::tempdir().expect("a directory");
    let dir = |name: &str| {
        let path = scratch.path().join(name);
        fs::create_dir(&path).expect("a directory");
        path
    };
    let (source, destination, elsewhere) = (dir("source"), dir("destination"), dir("elsewhere"));
    fs::write(source.join("bulk"), vec![b'x'; BULK]).expect("a source file");
    let Some(short) = ShortQueue::new() else { return };
    let mut closed = false;
    let backup = Backup::from(&source).to(&destination).keep_free(KeepFree::Bytes(0));
    let backup = backup.throttle(Throttle::bytes_per_sec(8 << 20)).on_progress(|progress| {
        if progress.phase == Phase::Copy && progress.bytes_done > 0 && !std::mem::replace(&mut closed, true) {
            close_many_files(&elsewhere);
        }
        ControlFlow::Continue(())
    });
    let session = backup.start().expect("a session");
    // The queue's length is settled.
    drop(short);
    let report = session.finish().expect("the backup");
    assert!(closed);
    let lost = report
        .warnings
        .iter()
        .filter(|w| w.path.is_none() && w.text.contains("than the kernel could tell of"));
    assert!(lost.count() > 0, "{:?}", report.warnings);
    assert!(report.bytes_recopied >= BULK as u64, "{} bytes were copied again", report.bytes_recopied);
}
