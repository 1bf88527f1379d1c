//! `/proc/PID/maps`, line by line (proc_pid_maps(5)). Allocates nothing: it is also read in the freeze.

use std::ffi::CStr;
use std::io::Write;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, openat, statx};

use crate::intercept::device;
use crate::sys;

/// Room for what is read at a time, and for the longest line.
const ROOM: usize = 64 << 10;

/// A buffer for reading.
#[derive(Default)]
pub(crate) struct Text(Vec<u8>);

impl Text {
    pub(crate) fn new() -> Text {
        Text(vec![0; ROOM])
    }
}

/// What is mapped at a range of addresses.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Line<'a> {
    pub(crate) start: u64,
    pub(crate) end: u64,
    mode: [u8; 4],
    /// Where in the file it begins.
    pub(crate) offset: u64,
    device: u64,
    /// 0 if it is no file's.
    pub(crate) inode: u64,
    path: &'a [u8],
}

impl<'a> Line<'a> {
    fn parse(line: &'a [u8]) -> Option<Line<'a>> {
        let mut words = line.splitn(6, |&byte| byte == b' ');
        let mut word = || words.next();
        let hex = |text: &[u8]| u64::from_str_radix(std::str::from_utf8(text).ok()?, 16).ok();
        let mut bounds = word()?.split(|&byte| byte == b'-');
        let (start, end) = (hex(bounds.next()?)?, hex(bounds.next()?)?);
        let mode = word()?.try_into().ok()?;
        let offset = hex(word()?)?;
        let mut numbers = word()?.split(|&byte| byte == b':');
        let device = hex(numbers.next()?)? << 32 | hex(numbers.next()?)?;
        let inode = std::str::from_utf8(word()?).ok()?.parse().ok()?;
        let path = word().unwrap_or_default().trim_ascii_start();
        Some(Line { start, end, mode, offset, device, inode, path })
    }

    pub(crate) fn is_shared(&self) -> bool {
        self.mode[3] == b's'
    }

    pub(crate) fn is_writable(&self) -> bool {
        self.mode[1] == b'w'
    }

    /// Device and inode of the file, if the line is one of `/proc/self/maps`.
    pub(crate) fn file_of_this_process(&self) -> Option<(u64, u64)> {
        let mut path = [0; 64];
        write!(&mut path[..63], "/proc/self/map_files/{:x}-{:x}", self.start, self.end).ok()?;
        // Which takes a privilege.
        file_at(CStr::from_bytes_until_nul(&path).ok()?).or_else(|| self.file())
    }

    /// Device and inode of the file, as far as the line tells: Btrfs has devices here that are not its files'.
    pub(crate) fn file(&self) -> Option<(u64, u64)> {
        let mut path = [0; 4096];
        let len = self.path.len();
        path.get_mut(..len)?.copy_from_slice(self.path);
        let at_path = path.get(len).and_then(|_| file_at(CStr::from_bytes_until_nul(&path).ok()?));
        // Another file may have its name now, if it has been removed or the path is another process's.
        at_path.filter(|file| file.1 == self.inode).or(Some((self.device, self.inode)))
    }
}

fn file_at(path: &CStr) -> Option<(u64, u64)> {
    // A file on a server that does not answer must not hold us up.
    let found = statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::INO).ok()?;
    Some((device(&found), found.stx_ino))
}

/// Whether the maps at `path` may hold a file that is mapped shared and writable. Printing all of them takes the kernel ten
/// times as long.
pub(crate) fn may_hold_shared(path: &CStr) -> bool {
    let file = openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    file.is_ok_and(|file| sys::maps::holds_shared_writable(file.as_fd()).unwrap_or(true))
}

/// Tells `visit` of every line of the file at `path`; of none if it cannot be read.
pub(crate) fn each<E>(
    path: &CStr,
    text: &mut Text,
    mut visit: impl FnMut(Line<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let Ok(file) = openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) else {
        return Ok(());
    };
    let buffer = &mut text.0;
    let mut have = 0;
    while let Ok(got @ 1..) = rustix::io::read(&file, &mut buffer[have..]) {
        have += got;
        let whole = buffer[..have].iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1);
        for line in buffer[..whole].split(|&byte| byte == b'\n') {
            Line::parse(line).map_or(Ok(()), &mut visit)?;
        }
        buffer.copy_within(whole..have, 0);
        have -= whole;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_what_they_say() {
        let line = b"7f12a000-7f12b000 rw-s 00003000 08:1f 42                     /a path/with spaces";
        let line = Line::parse(line).expect("a line");
        assert_eq!((line.start, line.end, line.offset), (0x7f12_a000, 0x7f12_b000, 0x3000));
        assert_eq!((line.device, line.inode), (8 << 32 | 0x1f, 42));
        assert_eq!(line.path, b"/a path/with spaces");
        assert!(line.is_shared() && line.is_writable());
        let line = Line::parse(b"7ffd0000-7ffd1000 r-xp 00000000 00:00 0  [vdso]").expect("a line");
        assert!(!line.is_shared() && !line.is_writable() && line.inode == 0);
        assert_eq!(Line::parse(b""), None);
    }

    #[test]
    fn a_mapped_file_of_this_process_is_found() {
        use std::os::unix::fs::MetadataExt;
        // The test program is mapped, though not shared.
        let own = std::fs::metadata("/proc/self/exe").expect("this program");
        let mut found = false;
        let _ = each(c"/proc/self/maps", &mut Text::new(), |line| {
            found |= line.file_of_this_process().is_some_and(|file| file.1 == own.ino());
            Ok::<(), ()>(())
        });
        assert!(found);
    }
}
