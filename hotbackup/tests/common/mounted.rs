//! Filesystems of a kind that a test asks for.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Scratch, calls, say};

/// A filesystem in a file, mounted until this goes.
pub struct Mounted {
    image: PathBuf,
    place: PathBuf,
}

impl Mounted {
    /// `None`, with a word, where that cannot be done.
    pub fn new(scratch: &Scratch, make: &str, arguments: &[&str]) -> Option<Mounted> {
        let image = scratch.path().join("image");
        File::create(&image).and_then(|file| file.set_len(2 << 30)).expect("a sparse file");
        let place = scratch.dir("mounted");
        let done = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
        let made = calls::effective_ids().0 == 0
            && done(Command::new(make).args(arguments).arg(&image))
            && done(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&place));
        if !made {
            say(&format!("skipped: {make} and mounting need root and the program"));
        }
        made.then_some(Mounted { image, place })
    }

    /// A filesystem in memory of so much room, on a directory.
    pub fn tmpfs(place: &Path, size: &str) -> Option<Mounted> {
        let options = format!("size={size}");
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "none"]).arg(place).output();
        let made = done.is_ok_and(|output| output.status.success());
        if !made {
            say("skipped: mounting needs root");
        }
        made.then(|| Mounted { image: PathBuf::new(), place: place.to_owned() })
    }

    /// What a power cut does: it goes on with what has reached the disk by now.
    pub fn cut_power(&self) {
        let run = |command: &mut Command| {
            let output = command.output().expect("the program is there");
            assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        };
        let left = self.image.with_extension("left");
        run(Command::new("cp").arg("--sparse=always").arg(&self.image).arg(&left));
        run(Command::new("umount").arg(&self.place));
        fs::rename(&left, &self.image).expect("the image can be replaced");
        run(Command::new("mount").args(["-o", "loop"]).arg(&self.image).arg(&self.place));
    }

    pub fn dir(&self, name: &str) -> PathBuf {
        let path = self.place.join(name);
        fs::create_dir(&path).expect("a directory");
        path
    }

    /// How many bytes were written to the disk since it was mounted.
    pub fn written(&self) -> u64 {
        let device = rustix::fs::stat(&self.place).expect("the filesystem").st_dev;
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let statistics =
            fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).expect("a block device");
        // The seventh is sectors written, which are of 512 bytes everywhere (Documentation/block/stat.rst of Linux).
        let sectors = statistics.split_whitespace().nth(6).and_then(|sectors| sectors.parse::<u64>().ok());
        sectors.expect("a number of sectors") * 512
    }

    pub fn free(&self) -> u64 {
        let found = rustix::fs::statvfs(&self.place).expect("the filesystem");
        found.f_bavail * found.f_frsize
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.place).output();
    }
}
