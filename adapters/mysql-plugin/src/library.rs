//! The preloaded libHotBackup.so, by the names that it exports.
//!
//! Never a copy of our own: two engines in one process would see different worlds.

use std::ffi::{CStr, c_char, c_int};

use crate::declarations::{Options, Progress, Report, Status};
use crate::host::symbol;

/// What to do where there is none.
const MISSING: &str = "libHotBackup.so is not loaded into this server: start it with LD_PRELOAD=/path/to/libHotBackup.so \
                       (a systemd service: Environment=LD_PRELOAD=..., mysqld_safe: --malloc-lib=...)";

/// Why something failed: a number (errno.h) and a sentence.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) number: c_int,
    pub(crate) text: String,
}

impl Failure {
    pub(crate) fn new(number: c_int, text: impl Into<String>) -> Failure {
        Failure { number, text: text.into() }
    }
}

/// The functions of the library.
#[derive(Clone, Copy)]
pub(crate) struct Library {
    version: unsafe extern "C" fn() -> *const c_char,
    last_error: unsafe extern "C" fn() -> *const c_char,
    last_errno: unsafe extern "C" fn() -> c_int,
    options_init: unsafe extern "C" fn(*mut Options, usize) -> Status,
    backup: unsafe extern "C" fn(*const Options, *mut Report) -> Status,
    throttle: unsafe extern "C" fn(*const std::ffi::c_void, u64) -> Status,
    cancel: unsafe extern "C" fn(*const std::ffi::c_void) -> Status,
    progress: unsafe extern "C" fn(*const std::ffi::c_void, *mut Progress) -> Status,
}

impl Library {
    /// The loaded library, if there is one of this plugin's version.
    pub(crate) fn find() -> Result<Library, Failure> {
        let missing = || Failure::new(libc::ENOSYS, MISSING);
        #[expect(clippy::missing_transmute_annotations, reason = "each field says what its function is")]
        // SAFETY: the library declares these functions with these types, and keeps to them (hotbackup.h).
        let library = unsafe {
            use std::mem::transmute as function;
            let address = |name| symbol(&[name]).ok_or_else(missing);
            Library {
                version: function(address(c"hotbackup_version")?),
                last_error: function(address(c"hotbackup_last_error")?),
                last_errno: function(address(c"hotbackup_last_errno")?),
                options_init: function(address(c"hotbackup_options_init")?),
                backup: function(address(c"hotbackup_backup")?),
                throttle: function(address(c"hotbackup_throttle")?),
                cancel: function(address(c"hotbackup_cancel")?),
                progress: function(address(c"hotbackup_progress_now")?),
            }
        };
        let (theirs, ours) = (library.version().to_string_lossy(), env!("CARGO_PKG_VERSION"));
        if theirs != ours {
            let text = format!(
                "libHotBackup.so is of version {theirs}, the plugin of {ours}: install both of one version"
            );
            return Err(Failure::new(libc::EINVAL, text));
        }
        Ok(library)
    }

    /// The version, which lives for ever.
    pub(crate) fn version(&self) -> &'static CStr {
        // SAFETY: takes nothing; the string lives for ever.
        unsafe { CStr::from_ptr((self.version)()) }
    }

    /// The defaults.
    pub(crate) fn options(&self) -> Options {
        let mut options = Options::default();
        // SAFETY: the struct is as large as it says.
        unsafe { (self.options_init)(&raw mut options, size_of::<Options>()) };
        options
    }

    /// Makes a backup.
    ///
    /// # Safety
    /// What the options point to lives until this returns, and the callbacks do what their types say.
    pub(crate) unsafe fn backup(&self, options: &Options) -> Result<Report, Failure> {
        // SAFETY: a report is numbers.
        let mut report: Report = unsafe { std::mem::zeroed() };
        report.size = size_of::<Report>();
        // SAFETY: the caller says so, and the report is as large as it says.
        unsafe {
            if (self.backup)(options, &raw mut report) == Status::Ok {
                return Ok(report);
            }
            let text = CStr::from_ptr((self.last_error)()).to_string_lossy().into_owned();
            Err(Failure::new((self.last_errno)(), text))
        }
    }

    /// Bounds the rate of the backup that runs, if one does.
    pub(crate) fn throttle(&self, bytes_per_second: u64) {
        // SAFETY: NULL is the session that runs.
        unsafe { (self.throttle)(std::ptr::null(), bytes_per_second) };
    }

    /// Ends the backup that runs, if one does.
    pub(crate) fn cancel(&self) {
        // SAFETY: NULL is the session that runs.
        unsafe { (self.cancel)(std::ptr::null()) };
    }

    /// How far the backup has come that runs, if one does.
    pub(crate) fn progress(&self) -> Option<Progress> {
        // SAFETY: a struct of numbers and a pointer that may be NULL, as large as it says; NULL is the session that runs.
        unsafe {
            let mut progress: Progress = std::mem::zeroed();
            progress.size = size_of::<Progress>();
            ((self.progress)(std::ptr::null(), &raw mut progress) == Status::Ok).then_some(progress)
        }
    }
}
