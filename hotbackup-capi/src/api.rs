//! The functions of `hotbackup.h`, in the header's order.
//!
//! The doc comments here become the header, which is the C programmer's manual. Every function runs inside
//! `guard`.

use std::ffi::{c_char, c_int, c_void};
use std::sync::{Mutex, PoisonError};

use hotbackup::{SessionHandle, Throttle};

pub use crate::declarations::Status;
use crate::declarations::{Attachment, OnFinding, Options, Progress, Report};
use crate::guard::{self, Failure, guard};
use crate::options::{self, copy_in};
use crate::reports::{copy_out, tell};

impl Status {
    pub(crate) fn of(error: &hotbackup::Error) -> Status {
        use hotbackup::Error;
        match error {
            Error::Io { .. } => Status::Io,
            Error::Busy => Status::Busy,
            Error::NoSource | Error::Pattern { .. } => Status::InvalidArgument,
            Error::SourceNotDirectory { .. } | Error::DestinationNotDirectory { .. } => Status::NotADirectory,
            Error::DestinationNotEmpty { .. } => Status::NotEmpty,
            Error::DestinationIncomplete { .. } => Status::IncompleteBackup,
            Error::Same { .. }
            | Error::Nested { .. }
            | Error::Repeated { .. }
            | Error::DirectoryTwice { .. } => Status::Overlap,
            Error::ReservedName { .. } => Status::ReservedName,
            Error::NoSpace { .. } => Status::NoSpace,
            Error::Cancelled => Status::Cancelled,
            Error::Stalled { .. } => Status::Stalled,
            Error::NoCut { .. } => Status::NoCut,
            Error::NotArmed { .. } => Status::NotArmed,
            Error::HookNotLive { .. } => Status::HookNotLive,
            Error::Unseen { .. } => Status::Unseen,
            Error::AsyncWrites { .. } => Status::AsyncWrites,
            Error::NotABackup { .. } => Status::NotABackup,
            Error::Manifest { .. } => Status::BadManifest,
            _ => Status::Defect,
        }
    }
}

/// The version of the library, such as "0.1.0". The string lives for ever.
///
/// A program that is to work with and without a preloaded library asks dlsym(RTLD_DEFAULT, "hotbackup_version").
#[unsafe(no_mangle)]
pub extern "C" fn hotbackup_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// What went wrong in the last call on this thread that failed: one sentence that names the operation, the file and
/// the reason; "" if none has failed yet. The string lives until the next failing call on this thread.
#[unsafe(no_mangle)]
pub extern "C" fn hotbackup_last_error() -> *const c_char {
    guard::last_error()
}

/// The error number (errno.h) that says most nearly what went wrong in the last failing call on this thread.
#[unsafe(no_mangle)]
pub extern "C" fn hotbackup_last_errno() -> c_int {
    guard::last_errno()
}

/// Fills `options` with the defaults; `size` is sizeof(hotbackup_options) as the caller knows it.
///
/// Errors: HOTBACKUP_STATUS_INVALID_ARGUMENT if `options` is NULL or `size` is too small to hold `size` itself.
///
/// # Safety
/// `options` is NULL or writable for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hotbackup_options_init(options: *mut Options, size: usize) -> Status {
    // SAFETY: the caller says so.
    guard(|| unsafe { copy_out(&Options::default(), options, size) })
}

/// Has calls of the running program reach the library, if it was loaded with dlopen: no restart, no preload. Every place
/// through which a loaded object calls a hooked function is made to lead here, or none is. `attachment` may be NULL; else
/// its `size` is set. Where calls reach the library already, because it was preloaded, linked or attached, nothing is changed.
///
/// The program goes on meanwhile. Objects that it loads later are taken care of by every session. The library stays
/// loaded for good.
///
/// Call it from any thread, but not from a constructor of a library that is just being loaded.
///
/// Errors: HOTBACKUP_STATUS_HOOK_NOT_LIVE with the object and the function in the text, if some call cannot be led here.
/// Everything is as it was before then.
///
/// # Safety
/// `attachment` is NULL or begins with its size and is writable for that many bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hotbackup_attach(attachment: *mut Attachment) -> Status {
    guard(|| {
        let attached = crate::attach::attach()?;
        // SAFETY: the caller says so.
        unsafe { attached.fill(attachment) }
    })
}

/// Undoes hotbackup_attach: calls of the program go straight to the C library again. hotbackup_attach can follow again.
/// Where calls reach the library in another way nothing is changed.
///
/// From any thread.
///
/// Errors: HOTBACKUP_STATUS_BUSY while a session runs; HOTBACKUP_STATUS_HOOK_NOT_LIVE if a place could not be changed, and
/// then calls may still reach the library, which does no harm.
#[unsafe(no_mangle)]
pub extern "C" fn hotbackup_detach() -> Status {
    guard(|| Ok(crate::attach::detach()?))
}

/// Examines the running process, and says what a backup of it could promise: which hooks are live, which loaded objects bypass them,
/// which rings, mappings and streams there are, which other processes are on the files of the `count` directories `sources`, and what
/// the kernel refuses. Each finding comes to `on_finding` on the calling thread, with what it means for a backup, when all are known.
///
/// It changes nothing, and can be called at any time, with a session or without, from any thread, but not from a constructor of a
/// library that is just being loaded. What it says holds for that moment. `count` may be 0: then nothing is said of files.
///
/// Errors: HOTBACKUP_STATUS_NOT_A_DIRECTORY or HOTBACKUP_STATUS_IO if a source is none or something in it cannot be listed; then
/// nothing is told.
///
/// # Safety
/// `sources` holds `count` strings; `on_finding` is NULL or what its type says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hotbackup_doctor(
    sources: *const *const c_char,
    count: usize,
    on_finding: OnFinding,
    user_data: *mut c_void,
) -> Status {
    guard(|| {
        // SAFETY: the caller says so.
        let given = unsafe { options::slice(sources, count, "sources") }?;
        // SAFETY: the caller says so.
        let paths = given.iter().map(|&path| unsafe { guard::path(path, "a source") });
        let paths = paths.collect::<Result<Vec<_>, _>>()?;
        crate::live::begin();
        let found = hotbackup::doctor(paths)?;
        found.iter().for_each(|finding| tell(finding, on_finding, user_data));
        Ok(())
    })
}

/// Makes one backup and returns when it is complete and on disk, or has failed: hotbackup_start, hotbackup_finish and
/// hotbackup_free in one call. `report` may be NULL; else its `size` is set.
///
/// Callbacks come on the calling thread. Other threads can follow and steer the session by giving NULL for it.
///
/// Errors: whatever stood in the way. The program and its files are as if nothing had been; the destination is
/// untouched if the arguments were at fault, and marked as incomplete otherwise.
///
/// # Safety
/// The pointers are NULL or what their types say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hotbackup_backup(options: *const Options, report: *mut Report) -> Status {
    guard(|| {
        // SAFETY: the caller says so.
        let options = unsafe { copy_in(options) }?;
        // SAFETY: the strings in the options live until this call returns.
        let (backup, warn) = unsafe { (options.backup()?, options.warn()) };
        crate::live::begin();
        // SAFETY: the caller says so.
        unsafe { Report::fill(report, &backup.start()?.finish()?, &warn) }
    })
}

/// A session: from hotbackup_start to hotbackup_free.
pub struct Session {
    handle: SessionHandle,
    running: Mutex<Option<hotbackup::Session<'static>>>,
    warn: crate::options::Warn,
}

/// Begins a session: when this returns, changes are captured, and nothing is copied yet. `*session` is set only on
/// success; the caller then owes one hotbackup_free. The options and what they point to may go once this has returned,
/// apart from `user_data`.
///
/// Errors: HOTBACKUP_STATUS_BUSY while another session runs; what is wrong with the arguments;
/// HOTBACKUP_STATUS_HOOK_NOT_LIVE if the library is not in force. No file was changed then.
///
/// # Safety
/// The pointers are NULL or what their types say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hotbackup_start(options: *const Options, session: *mut *mut Session) -> Status {
    guard(|| {
        if session.is_null() {
            return Err(Failure::argument("session is NULL"));
        }
        // SAFETY: the caller says so.
        let options = unsafe { copy_in(options) }?;
        // SAFETY: the strings in the options live until this call returns.
        let (backup, warn) = unsafe { (options.backup()?, options.warn()) };
        crate::live::begin();
        let running = backup.start()?;
        let begun = Session { handle: running.handle(), running: Mutex::new(Some(running)), warn };
        // SAFETY: it is not NULL, and the caller says that it is writable.
        unsafe { session.write(Box::into_raw(Box::new(begun))) };
        Ok(())
    })
}

/// Copies, converges, cuts and publishes; returns when the backup is complete and on disk, or has failed. `report` may
/// be NULL; else its `size` is set. The session stays to be asked until hotbackup_free.
///
/// Call it once, from any thread; the callbacks come on that thread.
///
/// Errors: whatever stood in the way; HOTBACKUP_STATUS_FINISHED on a second call. The program goes on as if nothing
/// had been; the destination is marked as incomplete.
///
/// # Safety
/// `session` comes from hotbackup_start and has not been freed; `report` is NULL or what its type says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hotbackup_finish(session: *mut Session, report: *mut Report) -> Status {
    guard(|| {
        // SAFETY: the caller says so.
        let session = unsafe { session.as_ref() }.ok_or_else(|| Failure::argument("session is NULL"))?;
        let running = session.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        let running = running.ok_or_else(|| Failure {
            status: Status::Finished,
            errno: libc::EALREADY,
            text: "the session has been finished already".into(),
        })?;
        // SAFETY: the caller says so.
        unsafe { Report::fill(report, &running.finish()?, &session.warn) }
    })
}

/// The handle of `session`, or of the session that runs in this process if it is NULL.
unsafe fn handle(session: *const Session) -> Result<SessionHandle, Failure> {
    // SAFETY: the caller says that it is NULL or a live session.
    match unsafe { session.as_ref() } {
        Some(session) => Ok(session.handle.clone()),
        None => hotbackup::current().ok_or_else(|| Failure::argument("no session runs in this process")),
    }
}

/// Says how far `session` has come, or, if it is NULL, the session that runs in this process. `progress->size` is set
/// by the caller; `progress->file` is always NULL here, because the string would have no owner.
///
/// From any thread, between hotbackup_start and hotbackup_free.
///
/// Errors: HOTBACKUP_STATUS_INVALID_ARGUMENT if `progress` is NULL or no session runs.
///
/// # Safety
/// `session` is NULL or has not been freed; `progress` is NULL or what its type says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hotbackup_progress_now(session: *const Session, progress: *mut Progress) -> Status {
    guard(|| {
        // SAFETY: the caller says so.
        let now = unsafe { handle(session) }?.progress();
        // SAFETY: the caller says so.
        unsafe { Progress::fill(progress, &now) }
    })
}

/// Bounds what the first copy writes, in bytes per second, at once: HOTBACKUP_UNLIMITED, or 0 to pause the copying
/// while capture goes on. NULL is the session that runs in this process.
///
/// From any thread, between hotbackup_start and hotbackup_free.
///
/// Errors: HOTBACKUP_STATUS_INVALID_ARGUMENT if no session runs.
///
/// # Safety
/// `session` is NULL or has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hotbackup_throttle(session: *const Session, bytes_per_second: u64) -> Status {
    guard(|| {
        // SAFETY: the caller says so.
        unsafe { handle(session) }?.set_throttle(Throttle::bytes_per_sec(bytes_per_second));
        Ok(())
    })
}

/// Ends the session soon: hotbackup_finish then returns HOTBACKUP_STATUS_CANCELLED. NULL is the session that runs in
/// this process.
///
/// From any thread, between hotbackup_start and hotbackup_free.
///
/// Errors: HOTBACKUP_STATUS_INVALID_ARGUMENT if no session runs.
///
/// # Safety
/// `session` is NULL or has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hotbackup_cancel(session: *const Session) -> Status {
    guard(|| {
        // SAFETY: the caller says so.
        unsafe { handle(session) }?.cancel();
        Ok(())
    })
}

/// Waits until the session has ended, that is until hotbackup_finish is about to return on its thread. `*complete`,
/// unless `complete` is NULL, becomes 1 if the backup is complete and 0 if not. NULL is the session that runs in this
/// process.
///
/// From any thread but the one that finishes the session, between hotbackup_start and hotbackup_free.
///
/// Errors: HOTBACKUP_STATUS_INVALID_ARGUMENT if no session runs.
///
/// # Safety
/// `session` is NULL or has not been freed; `complete` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hotbackup_wait(session: *const Session, complete: *mut c_int) -> Status {
    guard(|| {
        // SAFETY: the caller says so.
        let success = unsafe { handle(session) }?.wait();
        // SAFETY: the caller says so.
        if let Some(complete) = unsafe { complete.as_mut() } {
            *complete = success.into();
        }
        Ok(())
    })
}

/// Frees a session; NULL is nothing to do. One that was not finished is cancelled, and this returns when its threads
/// have ended. No other function may be using the session, or use it afterwards.
///
/// # Safety
/// `session` is NULL or comes from hotbackup_start and has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hotbackup_free(session: *mut Session) {
    guard(|| {
        if !session.is_null() {
            // SAFETY: it came from `Box::into_raw`, and the caller frees it once.
            drop(unsafe { Box::from_raw(session) });
        }
        Ok(())
    });
}

/// What hotbackup_verify tells about one difference: the path below the backup, and one sentence. Both strings die
/// when it returns.
pub type OnDifference =
    Option<unsafe extern "C-unwind" fn(path: *const c_char, text: *const c_char, user_data: *mut c_void)>;

/// Reads the backup at `directory` again and compares it with the manifest in it. Every difference is told to
/// `on_difference`, which may be NULL, on the calling thread, and counted in `*differences`, which may be NULL.
///
/// Errors: HOTBACKUP_STATUS_DIFFERENT if there are differences; HOTBACKUP_STATUS_NOT_A_BACKUP and
/// HOTBACKUP_STATUS_BAD_MANIFEST if there is nothing to compare.
///
/// # Safety
/// `directory` is NULL or a string, `differences` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hotbackup_verify(
    directory: *const c_char,
    on_difference: OnDifference,
    user_data: *mut c_void,
    differences: *mut u64,
) -> Status {
    guard(|| {
        // SAFETY: the caller says so.
        let directory = unsafe { guard::path(directory, "directory") }?;
        let found = hotbackup::verify(directory)?;
        // SAFETY: the caller says so.
        unsafe { tell_differences(&found, on_difference, user_data, differences) }
    })
}

/// The same for a backup whose manifest lies elsewhere: `directories` are its destinations in the order of its pairs,
/// or, if `count` is 0, those that the manifest names.
///
/// # Safety
/// `manifest` is NULL or a string, `directories` holds `count` strings, `differences` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hotbackup_verify_with(
    manifest: *const c_char,
    directories: *const *const c_char,
    count: usize,
    on_difference: OnDifference,
    user_data: *mut c_void,
    differences: *mut u64,
) -> Status {
    guard(|| {
        // SAFETY: the caller says so.
        let (manifest, given) = unsafe {
            (guard::path(manifest, "manifest")?, options::slice(directories, count, "directories")?)
        };
        // SAFETY: the caller says so.
        let paths = given.iter().map(|&path| unsafe { guard::path(path, "a directory") });
        let found = hotbackup::verify_with(manifest, paths.collect::<Result<Vec<_>, _>>()?)?;
        // SAFETY: the caller says so.
        unsafe { tell_differences(&found, on_difference, user_data, differences) }
    })
}

/// # Safety
/// `count` is NULL or writable.
unsafe fn tell_differences(
    found: &hotbackup::Verification,
    on_difference: OnDifference,
    user_data: *mut c_void,
    count: *mut u64,
) -> Result<(), Failure> {
    let differences = &found.differences;
    // SAFETY: the caller says so.
    if let Some(count) = unsafe { count.as_mut() } {
        *count = differences.len() as u64;
    }
    for difference in differences {
        let (path, text) = (guard::c_path(&difference.path), guard::c_string(difference.text.as_str()));
        if let Some(tell) = on_difference {
            // SAFETY: the caller gave a function of this type; the strings live until it returns.
            unsafe { tell(path.as_ptr(), text.as_ptr(), user_data) };
        }
    }
    match differences.first() {
        None => Ok(()),
        Some(first) => Err(Failure {
            status: Status::Different,
            errno: libc::EBADMSG,
            text: format!("{} differences from the manifest, the first: {first}", differences.len()),
        }),
    }
}
