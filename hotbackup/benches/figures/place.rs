//! Where the harness works, what it copies, and the two ways to copy.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use hotbackup::{Backup, KeepFree, Report, Session};
use tempfile::TempDir;

use crate::measure::Done;

/// A directory of our own on some filesystem; all in it goes with it.
pub struct Place {
    /// The filesystem's.
    pub name: &'static str,
    directory: TempDir,
    mounted: bool,
}

impl Place {
    /// In `parent`.
    fn new(name: &'static str, parent: &Path) -> Done<Place> {
        Ok(Place { name, directory: TempDir::new_in(parent)?, mounted: false })
    }

    /// In memory.
    pub fn tmpfs() -> Done<Place> {
        Place::new("tmpfs", Path::new("/dev/shm"))
    }

    /// On the disk: in `HOTBACKUP_BENCH_DIR`, or where temporary files are.
    pub fn disk() -> Done<Place> {
        let parent = disk();
        let name = match rustix::fs::statfs(&parent)?.f_type {
            0xEF53 => "ext4",
            0x5846_5342 => "xfs",
            0x0102_1994 => "tmpfs too",
            _ => "disk",
        };
        Place::new(name, &parent)
    }

    /// Both.
    pub fn both() -> Done<[Place; 2]> {
        Ok([Place::tmpfs()?, Place::disk()?])
    }

    /// A filesystem of our own, of `bytes`, in a file on the disk.
    pub fn mount(name: &'static str, bytes: u64) -> Done<Place> {
        let image = tempfile::NamedTempFile::new_in(disk())?;
        image.as_file().set_len(bytes)?;
        run(Command::new(format!("mkfs.{name}")).arg("-q").arg(image.path()))?;
        let mut place = Place::new(name, &disk())?;
        // The mount holds the file as long as it needs it.
        run(Command::new("mount").args(["-o", "loop"]).arg(image.path()).arg(place.path()))?;
        place.mounted = true;
        Ok(place)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A new directory in it.
    pub fn directory(&self, name: &str) -> Done<PathBuf> {
        let path = self.path().join(name);
        fs::create_dir(&path)?;
        Ok(path)
    }

    /// A new directory to copy to, which goes when it is dropped. What was dirty before is on the disk.
    pub fn destination(&self) -> Done<TempDir> {
        let directory = TempDir::new_in(self.path())?;
        sync(self.path())?;
        Ok(directory)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.mounted {
            let _ = Command::new("umount").arg("-l").arg(self.path()).status();
        }
    }
}

fn disk() -> PathBuf {
    std::env::var_os("HOTBACKUP_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from)
}

/// Runs a command that has to succeed.
pub fn run(command: &mut Command) -> Done<String> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("{command:?}: {text}").into());
    }
    Ok(text.into_owned())
}

/// What `sync -f` does.
pub fn sync(path: &Path) -> Done {
    Ok(rustix::fs::syncfs(File::open(path)?.as_fd())?)
}

/// A backup, as those who use the library make it by default, but for the reserve: the harness fills what it likes.
pub fn backup(source: &Path, destination: &Path) -> hotbackup::Result<Report> {
    ours(source, destination).start().and_then(Session::finish)
}

/// The same, not yet started.
pub fn ours<'a>(source: &Path, destination: &Path) -> Backup<'a> {
    Backup::from(source).to(destination).keep_free(KeepFree::Bytes(0))
}

/// Another program's copy, synced: `cp -a` or the like.
pub fn copy(program: &[&str], source: &Path, destination: &Path) -> Done {
    run(Command::new(program[0]).args(&program[1..]).arg(source.join(".")).arg(destination))?;
    sync(destination)
}

/// How long it takes, in seconds.
pub fn seconds<T, E>(work: impl FnOnce() -> Result<T, E>) -> Result<f64, E> {
    let begun = Instant::now();
    work()?;
    Ok(begun.elapsed().as_secs_f64())
}

/// Where times are coarse, a file that was written within 250 ms before it is read is read again (docs/limits.md).
const AGE: Duration = Duration::from_millis(300);

/// A file of `bytes` in pieces of 1 MiB, one in `spacing` of its length; it is in the page cache, and on the disk.
pub fn make_file(path: &Path, bytes: u64, spacing: u64) -> Done {
    let file = File::create(path)?;
    let piece: Vec<u8> = (0..1 << 20).map(|i: u32| (i % 251) as u8).collect();
    for at in (0..bytes).step_by(piece.len()) {
        let len = piece.len().min(usize::try_from(bytes - at)?);
        rustix::io::pwrite(&file, &piece[..len], at * spacing)?;
    }
    file.set_len(bytes * spacing)?;
    file.sync_all()?;
    std::thread::sleep(AGE);
    Ok(())
}

/// `count` files in directories of 1,000; file n has `size(n)` bytes.
pub fn make_files(directory: &Path, count: u64, size: impl Fn(u64) -> u64) -> Done {
    for number in 0..count {
        let parent = directory.join((number / 1000).to_string());
        if number % 1000 == 0 {
            fs::create_dir(&parent)?;
        }
        fs::write(parent.join(number.to_string()), vec![7; usize::try_from(size(number))?])?;
    }
    sync(directory)?;
    std::thread::sleep(AGE);
    Ok(())
}
