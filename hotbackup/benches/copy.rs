//! How fast trees are copied, against `cp -a`. The files' contents are in the page cache.
//!
//! `HOTBACKUP_BENCH_DIR` says where (the temporary directory by default); a tmpfs shows the work itself. A backup ends
//! when it is synced; so `cp -a` is followed by `sync -f` in `cp_and_sync`.

use std::path::{Path, PathBuf};
use std::process::Command;

use divan::Bencher;
use divan::counter::BytesCount;
use hotbackup::{Backup, KeepFree};
use tempfile::TempDir;

fn main() {
    divan::main();
}

/// A tree to copy.
#[derive(Clone, Copy, Debug)]
enum Tree {
    /// One file of 1 GiB.
    Large,
    /// 20,000 files of 4 KiB in 100 directories.
    Small,
    /// One file of 8 GiB that holds 64 MiB.
    Sparse,
}

const TREES: [Tree; 3] = [Tree::Large, Tree::Small, Tree::Sparse];

fn directory() -> TempDir {
    let root = std::env::var_os("HOTBACKUP_BENCH_DIR").unwrap_or_else(|| std::env::temp_dir().into());
    TempDir::new_in(root).expect("a directory to work in")
}

impl Tree {
    fn make(self) -> (TempDir, u64) {
        let directory = directory();
        let bytes = match self {
            Tree::Large => large(directory.path(), 1 << 30, 1),
            Tree::Small => small(directory.path()),
            Tree::Sparse => large(directory.path(), 64 << 20, 128),
        };
        (directory, bytes)
    }
}

/// A file of `bytes` in pieces of 1 MiB, one in `spacing` of its length.
fn large(directory: &Path, bytes: u64, spacing: u64) -> u64 {
    let file = std::fs::File::create(directory.join("file")).expect("a file");
    let piece: Vec<u8> = (0..1 << 20).map(|i: u32| (i % 251) as u8).collect();
    for at in (0..bytes).step_by(1 << 20) {
        rustix::io::pwrite(&file, &piece, at * spacing).expect("room for the file");
    }
    rustix::fs::ftruncate(&file, bytes * spacing).expect("room for the file");
    bytes
}

fn small(directory: &Path) -> u64 {
    for number in 0..20_000 {
        let parent = directory.join(format!("{}", number % 100));
        std::fs::create_dir_all(&parent).expect("a directory");
        std::fs::write(parent.join(format!("{number}")), [7; 4096]).expect("a file");
    }
    20_000 * 4096
}

fn measure(bencher: Bencher<'_, '_>, tree: Tree, copy: impl Fn(&Path, PathBuf)) {
    let (source, bytes) = tree.make();
    bencher.counter(BytesCount::new(bytes)).with_inputs(directory).bench_local_values(|destination| {
        copy(source.path(), destination.path().join("copy"));
        destination
    });
}

#[divan::bench(args = TREES, sample_count = 5, sample_size = 1)]
fn hot_backup(bencher: Bencher<'_, '_>, tree: Tree) {
    measure(bencher, tree, |source, destination| {
        std::fs::create_dir(&destination).expect("a destination");
        let backup = Backup::from(source).to(destination).keep_free(KeepFree::Bytes(0));
        backup.start().and_then(hotbackup::Session::finish).expect("a backup");
    });
}

fn cp(source: &Path, destination: &Path) {
    let status = Command::new("cp").arg("-a").arg(source).arg(destination).status();
    assert!(status.expect("cp is there").success());
}

#[divan::bench(args = TREES, sample_count = 5, sample_size = 1)]
fn cp_a(bencher: Bencher<'_, '_>, tree: Tree) {
    measure(bencher, tree, |source, destination| cp(source, &destination));
}

#[divan::bench(args = TREES, sample_count = 5, sample_size = 1)]
fn cp_a_and_sync(bencher: Bencher<'_, '_>, tree: Tree) {
    measure(bencher, tree, |source, destination| {
        cp(source, &destination);
        let status = Command::new("sync").arg("-f").arg(&destination).status();
        assert!(status.expect("sync is there").success());
    });
}
