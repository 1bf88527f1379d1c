//! Files whose changes are captured.

use std::fmt;
use std::fs::{self, FileTimes, Metadata, Permissions};
use std::io::{self, IoSlice, IoSliceMut, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use rustix::fs::FallocateFlags;

use super::at_path;
use crate::intercept::{Change, Done, Outcome, around, ending_descriptor, prepare};

/// An open file, like [`std::fs::File`], whose changes running sessions know of.
///
/// It reads, writes and seeks like std's, by `&File` too, and has its methods. [`From`] converts both ways; what is
/// written to std's file or to the bare descriptor is not captured.
pub struct File {
    /// Only `None` while it is dropped or converted.
    inner: Option<fs::File>,
}

impl File {
    /// Opens a file for reading: see [`std::fs::File::open`].
    ///
    /// # Errors
    /// Those of std, for instance if there is no such file.
    pub fn open(path: impl AsRef<Path>) -> io::Result<File> {
        OpenOptions::new().read(true).open(path)
    }

    /// Opens a file for writing, creating it or emptying it: see [`std::fs::File::create`].
    ///
    /// # Errors
    /// Those of std, for instance if the directory does not exist.
    pub fn create(path: impl AsRef<Path>) -> io::Result<File> {
        OpenOptions::new().write(true).create(true).truncate(true).open(path)
    }

    /// Creates a file that must not exist yet, for reading and writing: see [`std::fs::File::create_new`].
    ///
    /// # Errors
    /// Those of std, for instance if the file exists.
    pub fn create_new(path: impl AsRef<Path>) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).create_new(true).open(path)
    }

    /// The same as [`OpenOptions::new`].
    pub fn options() -> OpenOptions {
        OpenOptions::new()
    }

    /// The file itself: it is there whenever a method can be called.
    fn std(&self) -> &fs::File {
        self.inner.as_ref().expect("a file that is not being dropped")
    }

    fn changing<T>(&self, change: Change, real: impl FnOnce(&fs::File) -> io::Result<T>) -> io::Result<T>
    where
        io::Result<T>: Outcome,
    {
        around(change, || real(self.std()))
    }

    fn changing_attributes(&self, real: impl FnOnce(&fs::File) -> io::Result<()>) -> io::Result<()> {
        self.changing(Change::Attributes { fd: self.as_raw_fd() }, real)
    }

    /// Changes the size, cutting off or adding zeros: see [`std::fs::File::set_len`].
    ///
    /// # Errors
    /// Those of std, for instance if the file is not open for writing.
    pub fn set_len(&self, size: u64) -> io::Result<()> {
        let fd = self.as_raw_fd();
        // A size that does not fit is refused by std, and changes nothing.
        let len = i64::try_from(size).unwrap_or(0);
        self.changing(Change::Resize { fd, len }, |file| file.set_len(size))
    }

    /// Has space on disk for a range and makes the file at least as long as its end (fallocate(2), mode 0).
    ///
    /// # Errors
    /// Those of the system call, for instance if there is no space or the filesystem cannot.
    pub fn allocate(&self, at: u64, len: u64) -> io::Result<()> {
        self.fallocate(FallocateFlags::empty(), at, len)
    }

    /// Makes a range read as zeros and gives its space back; the size stays (fallocate(2), `FALLOC_FL_PUNCH_HOLE`).
    ///
    /// # Errors
    /// Those of the system call, for instance if the filesystem cannot.
    pub fn punch_hole(&self, at: u64, len: u64) -> io::Result<()> {
        self.fallocate(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, at, len)
    }

    fn fallocate(&self, mode: FallocateFlags, at: u64, len: u64) -> io::Result<()> {
        let change = Change::Allocate {
            fd: self.as_raw_fd(),
            mode: mode.bits().cast_signed(),
            at: offset(at),
            len: i64::try_from(len).unwrap_or(i64::MAX),
        };
        self.changing(change, |file| rustix::fs::fallocate(file, mode, at, len).map_err(io::Error::from))
    }

    /// Waits until contents and attributes are on disk: see [`std::fs::File::sync_all`].
    ///
    /// # Errors
    /// Those of std: what was written may be lost.
    pub fn sync_all(&self) -> io::Result<()> {
        self.std().sync_all()
    }

    /// Waits until the contents are on disk: see [`std::fs::File::sync_data`].
    ///
    /// # Errors
    /// Those of std: what was written may be lost.
    pub fn sync_data(&self) -> io::Result<()> {
        self.std().sync_data()
    }

    /// What is known about the file: see [`std::fs::File::metadata`].
    ///
    /// # Errors
    /// Those of std.
    pub fn metadata(&self) -> io::Result<Metadata> {
        self.std().metadata()
    }

    /// Another handle on the same open file, with the same position: see [`std::fs::File::try_clone`].
    ///
    /// # Errors
    /// Those of std, for instance if the process has too many open files.
    pub fn try_clone(&self) -> io::Result<File> {
        self.std().try_clone().map(File::from)
    }

    /// Changes the permissions: see [`std::fs::File::set_permissions`].
    ///
    /// # Errors
    /// Those of std, for instance if the file belongs to someone else.
    pub fn set_permissions(&self, permissions: Permissions) -> io::Result<()> {
        self.changing_attributes(|file| file.set_permissions(permissions))
    }

    /// Changes the times: see [`std::fs::File::set_times`].
    ///
    /// # Errors
    /// Those of std, for instance if the file belongs to someone else.
    pub fn set_times(&self, times: FileTimes) -> io::Result<()> {
        self.changing_attributes(|file| file.set_times(times))
    }

    /// Changes the modification time: see [`std::fs::File::set_modified`].
    ///
    /// # Errors
    /// Those of [`File::set_times`].
    pub fn set_modified(&self, time: SystemTime) -> io::Result<()> {
        self.set_times(FileTimes::new().set_modified(time))
    }

    /// What std's file becomes, which nobody has to close any more.
    fn into_std(mut self) -> fs::File {
        self.inner.take().expect("a file that is not being dropped")
    }
}

/// An offset as system calls have it. One that does not fit is refused by them, and changes nothing.
fn offset(at: u64) -> i64 {
    i64::try_from(at).unwrap_or(0)
}

impl Drop for File {
    fn drop(&mut self) {
        if let Some(file) = self.inner.take() {
            ending_descriptor(file.as_raw_fd(), || drop(file));
        }
    }
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.std().fmt(f)
    }
}

impl Read for &File {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.std().read(buffer)
    }

    fn read_vectored(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        self.std().read_vectored(buffers)
    }

    fn read_to_end(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        self.std().read_to_end(buffer)
    }

    fn read_to_string(&mut self, buffer: &mut String) -> io::Result<usize> {
        self.std().read_to_string(buffer)
    }
}

impl Write for &File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.changing(Change::Write { fd: self.as_raw_fd() }, |mut file| file.write(bytes))
    }

    fn write_vectored(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        let change = Change::Write { fd: self.as_raw_fd() };
        self.changing(change, |mut file| file.write_vectored(buffers))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for &File {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.std().seek(to)
    }
}

impl Read for File {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self).read(buffer)
    }

    fn read_vectored(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        (&*self).read_vectored(buffers)
    }

    fn read_to_end(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        (&*self).read_to_end(buffer)
    }

    fn read_to_string(&mut self, buffer: &mut String) -> io::Result<usize> {
        (&*self).read_to_string(buffer)
    }
}

impl Write for File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self).write(bytes)
    }

    fn write_vectored(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        (&*self).write_vectored(buffers)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for File {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        (&*self).seek(to)
    }
}

impl FileExt for File {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        self.std().read_at(buffer, at)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize> {
        let change = Change::WriteAt { fd: self.as_raw_fd(), at: offset(at) };
        self.changing(change, |file| file.write_at(bytes, at))
    }
}

impl AsFd for File {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.std().as_fd()
    }
}

impl AsRawFd for File {
    fn as_raw_fd(&self) -> RawFd {
        self.std().as_raw_fd()
    }
}

impl IntoRawFd for File {
    fn into_raw_fd(self) -> RawFd {
        self.into_std().into_raw_fd()
    }
}

impl From<fs::File> for File {
    fn from(file: fs::File) -> File {
        File { inner: Some(file) }
    }
}

impl From<OwnedFd> for File {
    fn from(fd: OwnedFd) -> File {
        fs::File::from(fd).into()
    }
}

impl From<File> for fs::File {
    fn from(file: File) -> fs::File {
        file.into_std()
    }
}

impl From<File> for OwnedFd {
    fn from(file: File) -> OwnedFd {
        file.into_std().into()
    }
}

impl From<File> for std::process::Stdio {
    fn from(file: File) -> std::process::Stdio {
        file.into_std().into()
    }
}

impl Outcome for io::Result<fs::File> {
    fn done(&self) -> Done {
        match self {
            Ok(file) => Done::Success(file.as_raw_fd().try_into().unwrap_or(0)),
            Err(e) => Done::Failure(e.raw_os_error().unwrap_or(libc::EIO)),
        }
    }
}

/// How to open a file, like [`std::fs::OpenOptions`]. [`OpenOptionsExt`] works on it too.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    inner: fs::OpenOptions,
    create: bool,
    create_new: bool,
    truncate: bool,
    custom_flags: i32,
}

impl Default for OpenOptions {
    fn default() -> Self {
        OpenOptions::new()
    }
}

impl OpenOptions {
    /// Options that are all off.
    pub fn new() -> OpenOptions {
        OpenOptions {
            inner: fs::OpenOptions::new(),
            create: false,
            create_new: false,
            truncate: false,
            custom_flags: 0,
        }
    }

    /// For reading.
    pub fn read(&mut self, read: bool) -> &mut Self {
        self.inner.read(read);
        self
    }

    /// For writing.
    pub fn write(&mut self, write: bool) -> &mut Self {
        self.inner.write(write);
        self
    }

    /// For writing at the end.
    pub fn append(&mut self, append: bool) -> &mut Self {
        self.inner.append(append);
        self
    }

    /// Empties the file.
    pub fn truncate(&mut self, truncate: bool) -> &mut Self {
        self.inner.truncate(truncate);
        self.truncate = truncate;
        self
    }

    /// Creates the file if there is none.
    pub fn create(&mut self, create: bool) -> &mut Self {
        self.inner.create(create);
        self.create = create;
        self
    }

    /// Creates the file, and fails if there is one.
    pub fn create_new(&mut self, create_new: bool) -> &mut Self {
        self.inner.create_new(create_new);
        self.create_new = create_new;
        self
    }

    /// Opens a file: see [`std::fs::OpenOptions::open`].
    ///
    /// # Errors
    /// Those of std, for instance if the options contradict each other.
    pub fn open(&self, path: impl AsRef<Path>) -> io::Result<File> {
        prepare_once();
        let path = path.as_ref();
        let flags = self.flags();
        let real = || self.inner.open(path);
        let opened = if changes_something(flags) {
            at_path(path, |file| Change::Open { file, flags }, real)
        } else {
            real()
        };
        opened.map(File::from)
    }

    /// The flags that matter to a session.
    fn flags(&self) -> i32 {
        let mut flags = self.custom_flags & !libc::O_ACCMODE;
        if self.truncate && !self.create_new {
            flags |= libc::O_TRUNC;
        }
        if self.create || self.create_new {
            flags |= libc::O_CREAT;
        }
        if self.create_new {
            flags |= libc::O_EXCL;
        }
        flags
    }
}

/// What opens a file and does no more is not captured: it may block for long, on a pipe for instance.
fn changes_something(flags: i32) -> bool {
    flags & (libc::O_CREAT | libc::O_TRUNC) != 0 || flags & libc::O_TMPFILE == libc::O_TMPFILE
}

fn prepare_once() {
    static PREPARED: AtomicBool = AtomicBool::new(false);
    if !PREPARED.load(Ordering::Relaxed) {
        prepare();
        PREPARED.store(true, Ordering::Relaxed);
    }
}

impl OpenOptionsExt for OpenOptions {
    fn mode(&mut self, mode: u32) -> &mut Self {
        self.inner.mode(mode);
        self
    }

    fn custom_flags(&mut self, flags: i32) -> &mut Self {
        self.inner.custom_flags(flags);
        self.custom_flags = flags;
        self
    }
}
