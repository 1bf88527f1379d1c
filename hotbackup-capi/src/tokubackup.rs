//! The original's C interface: three symbols, with its callback protocol and its error texts.
//!
//! What used to go wrong (a destination inside its source, a source that is a file, one destination for two sources) is
//! an error here. Every error is told once, through the error callback, and its number is returned. The destination
//! holds the tree and nothing else: no manifest is written.

use std::cell::Cell;
use std::ffi::{CStr, CString, OsStr, c_char, c_float, c_int, c_ulong, c_void};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use hotbackup::{Backup, Error, ManifestPlace, Phase, Progress, Throttle};

use crate::guard::{self, Uncancelled};

/// Is told how far the backup has come, from 0.0 to 1.0, and in words; anything but 0 aborts it and is what
/// tokubackup_create_backup returns. The string dies when it returns.
pub type TokubackupPoll = Option<
    unsafe extern "C-unwind" fn(
        progress: c_float,
        progress_string: *const c_char,
        extra: *mut c_void,
    ) -> c_int,
>;
/// Is told an error: its number and a text. The string dies when it returns.
pub type TokubackupError =
    Option<unsafe extern "C-unwind" fn(error_number: c_int, error_string: *const c_char, extra: *mut c_void)>;
/// Anything but 0 leaves the file out. The string dies when it returns.
pub type TokubackupExclude =
    Option<unsafe extern "C-unwind" fn(source_file: *const c_char, extra: *mut c_void) -> c_int>;
/// Is called around the end of the capture.
pub type TokubackupStop = Option<unsafe extern "C-unwind" fn(extra: *mut c_void)>;

/// A string that never changes, as C sees it.
#[repr(transparent)]
pub struct ConstantString(*const c_char);

// SAFETY: it points to a string that nobody can change.
unsafe impl Sync for ConstantString {}

/// The version of the library.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals, reason = "the original's name")]
pub static tokubackup_version_string: ConstantString =
    ConstantString(concat!("hotbackup ", env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast());

/// What tokubackup_throttle_backup said last; it holds for the backups to come.
static RATE_BYTES_PER_SEC: AtomicU64 = AtomicU64::new(u64::MAX);

/// Bounds the copying of the running backup and of those to come, in bytes per second; 0 stops the copying while
/// capture goes on, ULONG_MAX is unlimited. From any thread, at any time.
#[unsafe(no_mangle)]
pub extern "C" fn tokubackup_throttle_backup(bytes_per_second: c_ulong) {
    RATE_BYTES_PER_SEC.store(bytes_per_second, Ordering::SeqCst);
    guard::guard(|| {
        if let Some(session) = hotbackup::current() {
            session.set_throttle(Throttle::bytes_per_sec(bytes_per_second));
        }
        Ok(())
    });
}

/// Backs up `dir_count` directories, all as of one instant, and returns when it is done: 0, an error number
/// (errno.h), or what `poll` returned if that was not 0. An error is told once through `error`.
///
/// All callbacks come on the calling thread, and may block while capture goes on. `poll` is called first with 0 and
/// "Preparing backup" before anything is checked, then when capture is on and nothing is copied yet, then as the
/// copying goes on. `before_stop_capture` comes when the copying is done and capture is still on,
/// `after_stop_capture` right after it ended. The callbacks may be NULL. These two come a second time if a change that
/// nobody saw was found behind the cut, so that it has to be repeated; the original called them once, whatever happened.
///
/// # Safety
/// Both arrays hold `dir_count` strings or NULLs.
#[unsafe(no_mangle)]
#[allow(clippy::too_many_arguments, reason = "the original's signature")]
pub unsafe extern "C" fn tokubackup_create_backup(
    source_dirs: *mut *const c_char,
    dest_dirs: *mut *const c_char,
    dir_count: c_int,
    poll: TokubackupPoll,
    poll_extra: *mut c_void,
    error: TokubackupError,
    error_extra: *mut c_void,
    exclude_copy: TokubackupExclude,
    exclude_extra: *mut c_void,
    before_stop_capture: TokubackupStop,
    before_extra: *mut c_void,
    after_stop_capture: TokubackupStop,
    after_extra: *mut c_void,
) -> c_int {
    let _uncancelled = Uncancelled::begin();
    let host = Host {
        poll: (poll, poll_extra),
        exclude: (exclude_copy, exclude_extra),
        before: (before_stop_capture, before_extra),
        after: (after_stop_capture, after_extra),
        aborted: Cell::new(0),
    };
    // SAFETY: the caller says so.
    let outcome = catch_unwind(AssertUnwindSafe(|| unsafe { host.run(source_dirs, dest_dirs, dir_count) }));
    let (number, text) = match outcome {
        Ok(Ok(())) => return 0,
        Ok(Err(Refusal { number, text })) => (number, text),
        Err(_) => (libc::EIO, "A defect in hotbackup ended the backup".into()),
    };
    if let Some(tell) = error {
        let text = guard::c_string(format!("{text}  error {number} ({})", words(number)));
        // SAFETY: the caller gave a function of this type; the string lives until it returns.
        unsafe { tell(number, text.as_ptr(), error_extra) };
    }
    number
}

/// The caller's functions, each with its own argument.
struct Host {
    poll: (TokubackupPoll, *mut c_void),
    exclude: (TokubackupExclude, *mut c_void),
    before: (TokubackupStop, *mut c_void),
    after: (TokubackupStop, *mut c_void),
    /// What `poll` returned, once it was not 0.
    aborted: Cell<c_int>,
}

struct Refusal {
    number: c_int,
    text: String,
}

impl Refusal {
    fn invalid(text: impl Into<String>) -> Refusal {
        Refusal { number: libc::EINVAL, text: text.into() }
    }

    fn io(error: &io::Error, text: impl Into<String>) -> Refusal {
        Refusal { number: error.raw_os_error().unwrap_or(libc::EIO), text: text.into() }
    }
}

impl Host {
    unsafe fn run(
        &self,
        sources: *const *const c_char,
        destinations: *const *const c_char,
        count: c_int,
    ) -> Result<(), Refusal> {
        self.poll(0.0, "Preparing backup").map_err(|()| self.abort())?;
        // SAFETY: the caller says so.
        let pairs = unsafe { pairs(sources, destinations, count) }?;
        for (source, destination) in &pairs {
            check(source, destination)?;
        }
        crate::live::begin();
        let mut begun = false;
        let mut backup = Backup::new()
            .manifest(ManifestPlace::None)
            .throttle(Throttle::bytes_per_sec(RATE_BYTES_PER_SEC.load(Ordering::SeqCst)))
            .exclude_if(|path| self.leaves_out(path))
            .before_cut(|| call(self.before))
            .after_cut(|| call(self.after))
            .on_progress(move |now| {
                // The first call of the engine comes before its own checks; ours has been made already.
                if !std::mem::replace(&mut begun, true) {
                    return ControlFlow::Continue(());
                }
                match self.poll(now.fraction() as c_float, &describe(now)) {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(()) => ControlFlow::Break(()),
                }
            });
        for (source, destination) in pairs {
            backup = backup.pair(source, destination);
        }
        let session = backup.start().map_err(|error| self.refusal(&error))?;
        // The rate may have been set while the session began.
        session.handle().set_throttle(Throttle::bytes_per_sec(RATE_BYTES_PER_SEC.load(Ordering::SeqCst)));
        session.finish().map(|_| ()).map_err(|error| self.refusal(&error))
    }

    fn poll(&self, fraction: c_float, text: &str) -> Result<(), ()> {
        let (Some(poll), extra) = self.poll else {
            return Ok(());
        };
        if self.aborted.get() != 0 {
            return Err(());
        }
        // SAFETY: the caller gave a function of this type; the string lives until it returns.
        match unsafe { poll(fraction, guard::c_string(text).as_ptr(), extra) } {
            0 => Ok(()),
            other => {
                self.aborted.set(other);
                Err(())
            }
        }
    }

    fn leaves_out(&self, path: &Path) -> bool {
        let (Some(exclude), extra) = self.exclude else {
            return false;
        };
        // SAFETY: the caller gave a function of this type; the string lives until it returns.
        unsafe { exclude(guard::c_path(path).as_ptr(), extra) != 0 }
    }

    fn abort(&self) -> Refusal {
        Refusal { number: self.aborted.get(), text: "User aborted backup".into() }
    }

    /// The engine's error in the original's words where those are known to people and scripts.
    fn refusal(&self, error: &Error) -> Refusal {
        let text = match error {
            Error::Cancelled if self.aborted.get() != 0 => return self.abort(),
            Error::Busy => "Another backup is in progress.".into(),
            Error::DestinationNotEmpty { path, .. } => {
                format!("Backup directory {} is not empty", path.display())
            }
            Error::DestinationIncomplete { path, .. } => {
                format!("Backup directory {} is not empty: {error}", path.display())
            }
            other => format!("Backup failed: {other}"),
        };
        Refusal { number: error.errno(), text }
    }
}

fn call((function, extra): (TokubackupStop, *mut c_void)) {
    if let Some(function) = function {
        // SAFETY: the caller gave a function of this type.
        unsafe { function(extra) };
    }
}

unsafe fn pairs(
    sources: *const *const c_char,
    destinations: *const *const c_char,
    count: c_int,
) -> Result<Vec<(PathBuf, PathBuf)>, Refusal> {
    let null = || Refusal::invalid("One of the source/destination directories is NULL");
    if sources.is_null() || destinations.is_null() {
        return Err(null());
    }
    let count = usize::try_from(count).unwrap_or(0);
    if count == 0 {
        return Err(Refusal::invalid("No source directory was given"));
    }
    let path = |name: *const c_char| {
        // SAFETY: it is not NULL, and the caller says that it is a string then.
        (!name.is_null())
            .then(|| PathBuf::from(OsStr::from_bytes(unsafe { CStr::from_ptr(name) }.to_bytes())))
    };
    (0..count)
        .map(|at| {
            // SAFETY: the caller says that both arrays are so long.
            let (source, destination) = unsafe { (*sources.add(at), *destinations.add(at)) };
            path(source).zip(path(destination)).ok_or_else(null)
        })
        .collect()
}

/// What the original checked first, in its order and words; the engine checks the rest.
fn check(source: &Path, destination: &Path) -> Result<(), Refusal> {
    let real_source = source.canonicalize().map_err(|e| {
        Refusal::io(&e, format!("Could not resolve source directory path. {}", source.display()))
    })?;
    let real_destination = destination.canonicalize().map_err(|e| {
        let shown = destination.display();
        Refusal::io(&e, format!("Could not resolve destination directory path. {shown}"))
    })?;
    if real_source == real_destination {
        return Err(Refusal::invalid("Source and destination directories are the same."));
    }
    if !real_source.is_dir() {
        return Err(Refusal {
            number: libc::ENOTDIR,
            text: format!("Backup source {} is not a directory", source.display()),
        });
    }
    if !real_destination.is_dir() {
        return Err(Refusal::invalid(format!(
            "Backup destination {} is not a directory",
            destination.display()
        )));
    }
    // Without opening anything: the descriptor would be one of the host's table.
    may(&real_source, libc::R_OK | libc::X_OK, "read source directory")?;
    may(&real_destination, libc::R_OK | libc::X_OK, "read destination directory")?;
    may(&real_destination, libc::W_OK, "write to destination directory")
}

fn may(directory: &Path, mode: c_int, what: &str) -> Result<(), Refusal> {
    let name = guard::c_path(directory);
    // SAFETY: the name is a string.
    if unsafe { libc::access(name.as_ptr(), mode) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    Err(Refusal::io(&error, format!("Could not {what} {}", directory.display())))
}

/// The original's progress line, for people.
fn describe(now: &Progress) -> String {
    let more = now.files_total.saturating_sub(now.files_done);
    let head = format!(
        "Backup progress {} bytes, {} files. {more} more files known of.",
        now.bytes_done, now.files_done
    );
    match (now.phase, &now.file) {
        (Phase::Copy, Some(file)) => format!("{head} Copying file {}", file.display()),
        (Phase::Copy, None) => head,
        (phase, _) => format!("{head} Phase: {}", phase.name()),
    }
}

/// The words of the system for an error number.
fn words(number: c_int) -> String {
    let mut buffer = [0 as c_char; 256];
    // SAFETY: the buffer is writable for its length; `strerror_r` ends what it writes with NUL.
    unsafe { libc::strerror_r(number, buffer.as_mut_ptr(), buffer.len()) };
    // SAFETY: it ends with NUL, since the last byte was 0 at first and is never written with anything else.
    CString::from(unsafe { CStr::from_ptr(buffer.as_ptr()) }).to_string_lossy().into_owned()
}
