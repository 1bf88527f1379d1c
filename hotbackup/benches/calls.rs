//! What a hook adds to a call: without a session, with one, and while it converges.
//!
//! Every call writes to the same place of one file, so that the kernel's share is small and steady. `plain` is the call
//! by itself. In `captured` the session's copying is paused; in `converging` its engine copies what is written all
//! the while, on another processor if there is one.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use divan::{Bencher, black_box};
use hotbackup::intercept::{Change, around};
use hotbackup::{Backup, KeepFree, SessionHandle, Throttle};
use tempfile::TempDir;

const SIZES: [usize; 2] = [16, 4096];

fn main() {
    divan::main();
}

/// A source with one file of 1 MiB, and a destination.
struct Place {
    _directory: TempDir,
    source: std::path::PathBuf,
    destination: std::path::PathBuf,
    file: File,
}

fn place() -> Place {
    let root = std::env::var_os("HOTBACKUP_BENCH_DIR").unwrap_or_else(|| std::env::temp_dir().into());
    let directory = TempDir::new_in(root).expect("a directory to work in");
    let (source, destination) = (directory.path().join("source"), directory.path().join("destination"));
    std::fs::create_dir(&source).expect("a source");
    std::fs::create_dir(&destination).expect("a destination");
    std::fs::write(source.join("file"), vec![1; 1 << 20]).expect("a file");
    let file = File::options().read(true).write(true).open(source.join("file")).expect("the file");
    Place { _directory: directory, source, destination, file }
}

fn pwrite(file: &File, bytes: &[u8]) -> io::Result<usize> {
    Ok(rustix::io::pwrite(file, bytes, 0)?)
}

fn captured_pwrite(file: &File, bytes: &[u8]) -> io::Result<usize> {
    around(Change::WriteAt { fd: file.as_raw_fd(), at: 0 }, || pwrite(file, bytes))
}

fn write(file: &File, bytes: &[u8]) -> io::Result<usize> {
    Ok(rustix::io::write(file, bytes)?)
}

fn captured_write(file: &File, bytes: &[u8]) -> io::Result<usize> {
    around(Change::Write { fd: file.as_raw_fd() }, || write(file, bytes))
}

fn run(bencher: Bencher<'_, '_>, len: usize, call: fn(&File, &[u8]) -> io::Result<usize>) {
    let place = place();
    measure(bencher, len, &place.file, call);
}

fn measure(bencher: Bencher<'_, '_>, len: usize, file: &File, call: fn(&File, &[u8]) -> io::Result<usize>) {
    let bytes = vec![7u8; len];
    let mut calls = 0u32;
    bencher.bench_local(|| {
        // `write` moves the position; one call in 256 sets it back, so that the file stays small.
        calls = calls.wrapping_add(1);
        if calls.is_multiple_of(256) {
            rustix::fs::seek(file, rustix::fs::SeekFrom::Start(0)).expect("a file can be rewound");
        }
        call(file, black_box(&bytes)).expect("the write succeeds")
    });
}

/// A session that captures; it is cancelled when this goes.
struct Running {
    handle: SessionHandle,
    go_on: Option<Sender<()>>,
    backup: Option<JoinHandle<()>>,
}

impl Running {
    /// With its copying paused.
    fn paused(place: &Place) -> Running {
        Running::start(place, Throttle::PAUSED)
    }

    /// Held in `before_cut`, where it converges without end.
    fn converging(place: &Place) -> Running {
        Running::start(place, Throttle::UNLIMITED)
    }

    fn start(place: &Place, throttle: Throttle) -> Running {
        let (started_in, started) = channel();
        let (at_cut_in, at_cut) = channel();
        let (go_on, wait) = channel::<()>();
        let (source, destination) = (place.source.clone(), place.destination.clone());
        let backup = std::thread::spawn(move || {
            let backup =
                Backup::from(source).to(destination).keep_free(KeepFree::Bytes(0)).throttle(throttle);
            let held = backup.before_cut(|| {
                let _ = at_cut_in.send(());
                let _ = wait.recv();
            });
            let session = held.start().expect("a session");
            let _ = started_in.send(session.handle());
            let _ = session.finish();
        });
        let handle = started.recv().expect("the session starts");
        if throttle != Throttle::PAUSED {
            at_cut.recv().expect("the session comes to the cut");
        }
        Running { handle, go_on: Some(go_on), backup: Some(backup) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.handle.cancel();
        self.go_on = None;
        if let Some(backup) = self.backup.take() {
            let _ = backup.join();
        }
    }
}

#[divan::bench_group]
mod pwrite_call {
    use super::*;

    #[divan::bench(args = SIZES, sample_count = 100, sample_size = 2000)]
    fn plain(bencher: Bencher<'_, '_>, len: usize) {
        run(bencher, len, pwrite);
    }

    #[divan::bench(args = SIZES, sample_count = 100, sample_size = 2000)]
    fn idle(bencher: Bencher<'_, '_>, len: usize) {
        run(bencher, len, captured_pwrite);
    }

    #[divan::bench(args = SIZES, sample_count = 100, sample_size = 2000)]
    fn captured(bencher: Bencher<'_, '_>, len: usize) {
        let place = place();
        let _session = Running::paused(&place);
        measure(bencher, len, &place.file, captured_pwrite);
    }

    #[divan::bench(args = SIZES, sample_count = 100, sample_size = 2000)]
    fn converging(bencher: Bencher<'_, '_>, len: usize) {
        let place = place();
        let _session = Running::converging(&place);
        measure(bencher, len, &place.file, captured_pwrite);
    }
}

#[divan::bench_group]
mod write_call {
    use super::*;

    #[divan::bench(args = SIZES, sample_count = 100, sample_size = 2000)]
    fn plain(bencher: Bencher<'_, '_>, len: usize) {
        run(bencher, len, write);
    }

    #[divan::bench(args = SIZES, sample_count = 100, sample_size = 2000)]
    fn idle(bencher: Bencher<'_, '_>, len: usize) {
        run(bencher, len, captured_write);
    }

    #[divan::bench(args = SIZES, sample_count = 100, sample_size = 2000)]
    fn captured(bencher: Bencher<'_, '_>, len: usize) {
        let place = place();
        let _session = Running::paused(&place);
        measure(bencher, len, &place.file, captured_write);
    }
}

/// The hook alone, around nothing.
#[divan::bench(sample_count = 100, sample_size = 100_000)]
fn idle_hook_alone() -> isize {
    around(Change::WriteAt { fd: 0, at: 0 }, || black_box(16isize))
}
