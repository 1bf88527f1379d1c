//! What a C program is told: how far a session has come, and what came of it.

use std::ffi::c_void;
use std::ptr;
use std::time::{Duration, UNIX_EPOCH};

use crate::declarations::{Attachment, Finding, Kind, OnFinding, Phase, Progress, Report, Verdict};
use crate::guard::{self, Failure};
use crate::options::Warn;

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

impl Attachment {
    /// # Safety
    /// `attachment` is NULL or begins with its size and is writable for that many bytes.
    pub(crate) unsafe fn fill(&self, attachment: *mut Attachment) -> Result<(), Failure> {
        if attachment.is_null() {
            return Ok(());
        }
        // SAFETY: the caller says so.
        unsafe { copy_out(self, attachment, size_at(attachment)?) }
    }
}

/// Hands one finding of the doctor's to the caller's function, for as long as that takes.
pub(crate) fn tell(finding: &hotbackup::Finding, on_finding: OnFinding, user_data: *mut c_void) {
    let Some(tell) = on_finding else { return };
    let (subject, text) = (guard::c_path(&finding.subject), guard::c_string(finding.text.as_str()));
    let finding = Finding {
        size: size_of::<Finding>(),
        kind: match finding.kind {
            hotbackup::Kind::Hooks => Kind::Hooks,
            hotbackup::Kind::Object => Kind::Object,
            hotbackup::Kind::RawCalls => Kind::RawCalls,
            hotbackup::Kind::Ring => Kind::Ring,
            hotbackup::Kind::Mapping => Kind::Mapping,
            hotbackup::Kind::Stream => Kind::Stream,
            hotbackup::Kind::Process => Kind::Process,
            _ => Kind::System,
        },
        verdict: match finding.verdict {
            hotbackup::Verdict::Captured => Verdict::Captured,
            hotbackup::Verdict::Note => Verdict::Note,
            hotbackup::Verdict::CopiedAgain => Verdict::CopiedAgain,
            hotbackup::Verdict::Refuses => Verdict::Refuses,
            _ => Verdict::Untold,
        },
        subject: subject.as_ptr(),
        text: text.as_ptr(),
    };
    // SAFETY: the caller gave a function of this type; the struct and its strings live until it returns.
    unsafe { tell(&finding, user_data) };
}

impl Progress {
    /// # Safety
    /// `progress` is NULL or begins with its size and is writable for that many bytes.
    pub(crate) unsafe fn fill(progress: *mut Progress, now: &hotbackup::Progress) -> Result<(), Failure> {
        // SAFETY: the caller says so.
        unsafe { copy_out(&Progress::from(now), progress, size_at(progress)?) }
    }
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
            captured_calls: done.captured_calls,
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
