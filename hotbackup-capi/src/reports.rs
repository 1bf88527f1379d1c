//! What a C program is told: how far a session has come, and what came of it.

use std::ffi::c_char;
use std::ptr;
use std::time::{Duration, UNIX_EPOCH};

use crate::guard::Failure;
use crate::options::Warn;

/// Where a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub enum Phase {
    /// The arguments are being checked and capture is being armed.
    Prepare = 0,
    /// The files are being copied for the first time.
    Copy = 1,
    /// What changed meanwhile is being copied until little is left.
    Converge = 2,
    /// The instant that the backup shows.
    Cut = 3,
    /// Changes that nobody saw are being looked for.
    Audit = 4,
    /// Names, owners, times are set, everything is synced, the mark is removed.
    Publish = 5,
    /// The session has ended.
    Done = 6,
}

/// A look at a running session.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Progress {
    /// sizeof(hotbackup_progress), as whoever made the struct knows it.
    pub size: usize,
    /// Where the session stands.
    pub phase: Phase,
    /// The part that is done, from 0.0 to 1.0; it never goes down and is 1.0 only at the end.
    pub fraction: f32,
    /// Bytes that the copying has dealt with, holes included.
    pub bytes_done: u64,
    /// Bytes known of so far; grows while the sources are being walked.
    pub bytes_total: u64,
    /// Files copied for the first time.
    pub files_done: u64,
    /// Files known of so far.
    pub files_total: u64,
    /// Bytes copied again because the program changed them meanwhile.
    pub bytes_recopied: u64,
    /// Bytes of files already copied that the destination does not have yet, and 256 KiB or more for each file found since.
    pub lag: u64,
    /// Bytes per second over the last second.
    pub rate: u64,
    /// An estimate of the milliseconds that are left; UINT64_MAX while there is no ground for one.
    pub eta_ms: u64,
    /// How long the session has run, in milliseconds.
    pub elapsed_ms: u64,
    /// The file that was begun last, or NULL. The string dies when the callback returns.
    pub file: *const c_char,
}

impl From<&hotbackup::Progress> for Progress {
    fn from(now: &hotbackup::Progress) -> Progress {
        Progress {
            size: size_of::<Progress>(),
            phase: match now.phase {
                hotbackup::Phase::Prepare => Phase::Prepare,
                hotbackup::Phase::Copy => Phase::Copy,
                hotbackup::Phase::Converge => Phase::Converge,
                hotbackup::Phase::Cut => Phase::Cut,
                hotbackup::Phase::Audit => Phase::Audit,
                hotbackup::Phase::Publish => Phase::Publish,
                _ => Phase::Done,
            },
            fraction: now.fraction() as f32,
            bytes_done: now.bytes_done,
            bytes_total: now.bytes_total,
            files_done: now.files_done,
            files_total: now.files_total,
            bytes_recopied: now.bytes_recopied,
            lag: now.lag,
            rate: now.rate,
            eta_ms: now.eta.map_or(u64::MAX, milliseconds),
            elapsed_ms: milliseconds(now.elapsed),
            file: ptr::null(),
        }
    }
}

impl Progress {
    /// # Safety
    /// `progress` is NULL or begins with its size and is writable for that many bytes.
    pub(crate) unsafe fn fill(progress: *mut Progress, now: &hotbackup::Progress) -> Result<(), Failure> {
        // SAFETY: the caller says so.
        unsafe { copy_out(&Progress::from(now), progress, size_at(progress)?) }
    }
}

/// What a complete backup holds and what it took. Set `size` before the call.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Report {
    /// sizeof(hotbackup_report).
    pub size: usize,
    /// Regular files in the backup, each inode counted once.
    pub files: u64,
    /// Directories, the roots included.
    pub directories: u64,
    /// Bytes of data written by the first copy.
    pub bytes_copied: u64,
    /// Bytes written again because they had changed meanwhile.
    pub bytes_recopied: u64,
    /// The instant that the backup shows, in nanoseconds since 1970 (UTC).
    pub cut_unix_ns: u64,
    /// How long calls of the program had to wait around it, in nanoseconds.
    pub freeze_ns: u64,
    /// How many attempts the cut took.
    pub cut_attempts: u64,
    /// Files that had to be copied again because something that the library does not see had changed them.
    pub unseen_files: u64,
    /// How many warnings on_warning was told.
    pub warnings: u64,
    /// How long the phases took, in milliseconds.
    pub prepare_ms: u64,
    /// See prepare_ms.
    pub copy_ms: u64,
    /// See prepare_ms.
    pub converge_ms: u64,
    /// See prepare_ms.
    pub cut_ms: u64,
    /// See prepare_ms.
    pub audit_ms: u64,
    /// See prepare_ms.
    pub publish_ms: u64,
}

impl Report {
    /// Tells the warnings and fills the caller's report, if there is one.
    ///
    /// # Safety
    /// `report` is NULL or begins with its size and is writable for that many bytes.
    pub(crate) unsafe fn fill(
        report: *mut Report,
        done: &hotbackup::Report,
        warn: &Warn,
    ) -> Result<(), Failure> {
        for warning in &done.warnings {
            warn.tell(&warning.to_string());
        }
        if report.is_null() {
            return Ok(());
        }
        // SAFETY: the caller says so.
        unsafe { copy_out(&Report::from(done), report, size_at(report)?) }
    }
}

impl From<&hotbackup::Report> for Report {
    fn from(done: &hotbackup::Report) -> Report {
        let phases = &done.phases;
        Report {
            size: size_of::<Report>(),
            files: done.files,
            directories: done.directories,
            bytes_copied: done.bytes_copied,
            bytes_recopied: done.bytes_recopied,
            cut_unix_ns: nanoseconds(done.cut.duration_since(UNIX_EPOCH).unwrap_or_default()),
            freeze_ns: nanoseconds(done.freeze),
            cut_attempts: done.cut_attempts.into(),
            unseen_files: done.unseen.len() as u64,
            warnings: done.warnings.len() as u64,
            prepare_ms: milliseconds(phases.prepare),
            copy_ms: milliseconds(phases.copy),
            converge_ms: milliseconds(phases.converge),
            cut_ms: milliseconds(phases.cut),
            audit_ms: milliseconds(phases.audit),
            publish_ms: milliseconds(phases.publish),
        }
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// The size that a struct of the caller's begins with.
///
/// # Safety
/// `place` is NULL or begins with its size.
unsafe fn size_at<T>(place: *const T) -> Result<usize, Failure> {
    if place.is_null() {
        return Err(Failure::argument("the struct to fill is NULL"));
    }
    // SAFETY: the caller says so.
    Ok(unsafe { place.cast::<usize>().read() })
}

/// Fills a struct of the caller's, which may be of another version's size, and sets its size to what was asked for.
///
/// # Safety
/// `place` is NULL or writable for `size` bytes. `T` begins with its size as a `usize`.
pub(crate) unsafe fn copy_out<T>(value: &T, place: *mut T, size: usize) -> Result<(), Failure> {
    if place.is_null() {
        return Err(Failure::argument("the struct to fill is NULL"));
    }
    if !(size_of::<usize>()..=1 << 16).contains(&size) {
        return Err(Failure::argument(format!("{size} is not the size of a struct of this library")));
    }
    // SAFETY: the caller says so; what lies beyond our own size is set to zero, which is every field's empty value.
    unsafe {
        let (place, known) = (place.cast::<u8>(), size_of::<T>().min(size));
        ptr::copy_nonoverlapping(ptr::from_ref(value).cast::<u8>(), place, known);
        ptr::write_bytes(place.add(known), 0, size - known);
        place.cast::<usize>().write_unaligned(size);
    }
    Ok(())
}
