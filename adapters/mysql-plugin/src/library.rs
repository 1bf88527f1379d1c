//! libHotBackup.so, by the names that it exports: the one that was preloaded or linked, else one that is loaded now.
//!
//! Never a copy of our own: two engines in one process would see different worlds.

use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU8, Ordering};

use crate::declarations::{Attachment, Options, Progress, Report, Status, Way};
use crate::host::symbol;

/// What to do where there is none.
const MISSING: &str = "libHotBackup.so is neither beside the plugin, nor where the dynamic loader looks, nor in /usr/local/lib: put \
                       it there, or start the server with LD_PRELOAD=/path/to/libHotBackup.so (a systemd service: \
                       Environment=LD_PRELOAD=..., mysqld_safe: --malloc-lib=...)";

/// The library that was loaded from here; NULL if it came with the server.
static LOADED: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());

/// How calls of the server reach it.
static WAY: AtomicU8 = AtomicU8::new(Way::None as u8);

/// For people: how calls of the server reach the library.
pub(crate) fn way() -> &'static str {
    let is = |way: Way| WAY.load(Ordering::Relaxed) == way as u8;
    match () {
        () if is(Way::Preloaded) => "preloaded",
        () if is(Way::Linked) => "linked",
        () if is(Way::Attached) => "attached",
        () => "",
    }
}

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
    attach: unsafe extern "C" fn(*mut Attachment) -> Status,
    detach: unsafe extern "C" fn() -> Status,
}

impl Library {
    /// The loaded library, if there is one of this plugin's version.
    pub(crate) fn find() -> Result<Library, Failure> {
        let missing = || Failure::new(libc::ENOSYS, MISSING);
        #[expect(clippy::missing_transmute_annotations, reason = "each field says what its function is")]
        // SAFETY: the library declares these functions with these types, and keeps to them (hotbackup.h).
        let library = unsafe {
            use std::mem::transmute as function;
            let address = |name| Library::address(name).ok_or_else(missing);
            Library {
                version: function(address(c"hotbackup_version")?),
                last_error: function(address(c"hotbackup_last_error")?),
                last_errno: function(address(c"hotbackup_last_errno")?),
                options_init: function(address(c"hotbackup_options_init")?),
                backup: function(address(c"hotbackup_backup")?),
                throttle: function(address(c"hotbackup_throttle")?),
                cancel: function(address(c"hotbackup_cancel")?),
                progress: function(address(c"hotbackup_progress_now")?),
                attach: function(address(c"hotbackup_attach")?),
                detach: function(address(c"hotbackup_detach")?),
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

    /// A function of the library: of the server's, if it has one, else of the one that was loaded.
    fn address(name: &CStr) -> Option<*mut c_void> {
        let loaded = LOADED.load(Ordering::Acquire);
        symbol(&[name]).or_else(|| {
            // SAFETY: a library that is never unloaded, and a string.
            let found = (!loaded.is_null()).then(|| unsafe { libc::dlsym(loaded, name.as_ptr()) })?;
            (!found.is_null()).then_some(found)
        })
    }

    /// Loads the library into a server that was started without it: the first of [`places`] that there is.
    pub(crate) fn load() -> Result<(), Failure> {
        if Library::address(c"hotbackup_version").is_some() {
            return Ok(());
        }
        let mut reasons = String::new();
        for place in places() {
            let name = CString::new(place.as_os_str().as_bytes()).unwrap_or_default();
            // SAFETY: a string; the constructors of that library may run at any time. It stays loaded for good.
            let loaded = unsafe {
                libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL | libc::RTLD_NODELETE)
            };
            if !loaded.is_null() {
                LOADED.store(loaded, Ordering::Release);
                return Ok(());
            }
            // SAFETY: the loader's last error is a string, or NULL.
            let reason = unsafe { libc::dlerror().as_ref().map(|text| CStr::from_ptr(text)) };
            reasons += &reason.map_or_else(String::new, |text| format!("; {}", text.to_string_lossy()));
        }
        Err(Failure::new(libc::ENOSYS, format!("{MISSING}{reasons}")))
    }

    /// Has calls of the server reach the library, where they do not yet.
    pub(crate) fn attach(&self) -> Result<Attachment, Failure> {
        let mut attachment = Attachment {
            size: size_of::<Attachment>(),
            way: Way::None,
            objects: 0,
            slots: 0,
            pointers: 0,
            took_ns: 0,
        };
        // SAFETY: the struct is as large as it says.
        if unsafe { (self.attach)(&raw mut attachment) } != Status::Ok {
            return Err(self.last_failure());
        }
        WAY.store(attachment.way as u8, Ordering::Relaxed);
        Ok(attachment)
    }

    /// Has calls of the server go straight to the C library again, if [`attach`](Library::attach) has led them elsewhere.
    pub(crate) fn detach(&self) -> Result<(), Failure> {
        // SAFETY: it takes nothing.
        if unsafe { (self.detach)() } != Status::Ok {
            return Err(self.last_failure());
        }
        WAY.store(Way::None as u8, Ordering::Relaxed);
        Ok(())
    }

    fn last_failure(&self) -> Failure {
        // SAFETY: the string lives until the next failure on this thread.
        unsafe {
            let text = CStr::from_ptr((self.last_error)()).to_string_lossy().into_owned();
            Failure::new((self.last_errno)(), text)
        }
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
            Err(self.last_failure())
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

/// Where a library is looked for: beside the plugin, where the dynamic loader looks, and where the manual puts it.
fn places() -> Vec<PathBuf> {
    let names = ["libHotBackup.so.0", "libHotBackup.so"];
    let beside = own_directory().into_iter().flat_map(|directory| names.map(|name| directory.join(name)));
    let beside = beside.filter(|path| path.exists());
    beside.chain(["libHotBackup.so.0".into(), "/usr/local/lib/libHotBackup.so.0".into()]).collect()
}

/// Where this plugin was loaded from.
fn own_directory() -> Option<PathBuf> {
    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::uninit();
    let own = (places as *const ()).cast::<c_void>();
    // SAFETY: an address of this plugin; the answer is only read if there is one, and its name is a string.
    let path = unsafe {
        if libc::dladdr(own, info.as_mut_ptr()) == 0 {
            return None;
        }
        CStr::from_ptr(info.assume_init().dli_fname)
    };
    Path::new(OsStr::from_bytes(path.to_bytes())).parent().map(Path::to_path_buf)
}
