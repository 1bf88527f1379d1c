//! What a C program wants of a backup.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::ops::ControlFlow;
use std::ptr;
use std::time::Duration;

use hotbackup::{Backup, KeepFree, ManifestPlace, Throttle};

use crate::guard::{self, Failure};
use crate::reports::Progress;

/// No bound on the rate of the copying.
pub const HOTBACKUP_UNLIMITED: u64 = u64::MAX;
/// What the library finds best, for `max_lag` and `keep_free`.
pub const HOTBACKUP_AUTOMATIC: u64 = u64::MAX;

/// For `manifest_place`: at the root of the first destination, as hotbackup-manifest.json.
pub const HOTBACKUP_MANIFEST_IN_FIRST_DESTINATION: u32 = 0;
/// For `manifest_place`: in the file `manifest`, which must not exist.
pub const HOTBACKUP_MANIFEST_IN_FILE: u32 = 1;
/// For `manifest_place`: nowhere. The backup can then not be verified.
pub const HOTBACKUP_MANIFEST_NONE: u32 = 2;

/// A source directory and the directory that receives its copy, which must exist and be empty.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Pair {
    /// The directory tree to back up.
    pub source: *const c_char,
    /// Where its copy goes.
    pub destination: *const c_char,
}

/// Is told how far the session has come; anything but 0 cancels it. `progress` and what it points to die when it
/// returns.
pub type OnProgress =
    Option<unsafe extern "C-unwind" fn(progress: *const Progress, user_data: *mut c_void) -> c_int>;
/// Anything but 0 leaves the entry at this full source path out. The string dies when it returns.
pub type ExcludeIf =
    Option<unsafe extern "C-unwind" fn(path: *const c_char, user_data: *mut c_void) -> c_int>;
/// Is called around the cut.
pub type AtCut = Option<unsafe extern "C-unwind" fn(user_data: *mut c_void)>;
/// Is told what the reader of a report should know though the backup is right. The string dies when it returns.
pub type OnWarning = Option<unsafe extern "C-unwind" fn(text: *const c_char, user_data: *mut c_void)>;

/// What is wanted. Always fill it with hotbackup_options_init first, so that fields which later versions add have their
/// defaults.
///
/// Callbacks may be NULL. They come on the thread that calls hotbackup_backup, or hotbackup_start and
/// hotbackup_finish, while threads of the library work on. They may block for long, and what the program writes inside
/// one is captured like anything else. A callback has to return: no exception, no longjmp; a cancellation of its thread
/// waits until the library has returned.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Options {
    /// sizeof(hotbackup_options); hotbackup_options_init sets it.
    pub size: usize,
    /// The sources and their destinations; all show the same instant.
    pub pairs: *const Pair,
    /// How many there are.
    pub pair_count: usize,
    /// Regular expressions (UTF-8) on the path below its source, which begins with a slash: what matches is left out, a
    /// directory with all that is in it.
    pub exclude: *const *const c_char,
    /// How many there are.
    pub exclude_count: usize,
    /// Is asked about what no expression matches.
    pub exclude_if: ExcludeIf,
    /// Bytes per second that the first copy writes at most; 0 pauses. HOTBACKUP_UNLIMITED by default.
    pub throttle: u64,
    /// The most bytes that files already copied may owe the destination: over it, calls of the program wait. 0 makes
    /// every write of a copied file wait until it is on the backup file. HOTBACKUP_AUTOMATIC by default.
    pub max_lag: u64,
    /// The longest that any call of the program may be made to wait, in milliseconds. 1000 by default.
    pub max_stall_ms: u64,
    /// Bytes of the destination's filesystem that stay free. HOTBACKUP_AUTOMATIC by default: 5 %, and at least 1 GiB.
    pub keep_free: u64,
    /// How many threads copy, from 1 to 64. 2 by default.
    pub threads: u32,
    /// 1 lets source and destination share blocks where the filesystem can. Afterwards overwriting existing blocks of
    /// the source can fail on a full filesystem. 0 by default.
    pub share_blocks: u32,
    /// HOTBACKUP_MANIFEST_IN_FIRST_DESTINATION by default, HOTBACKUP_MANIFEST_IN_FILE, or HOTBACKUP_MANIFEST_NONE.
    pub manifest_place: u32,
    /// 0.
    pub reserved: u32,
    /// The manifest for HOTBACKUP_MANIFEST_IN_FILE, NULL otherwise.
    pub manifest: *const c_char,
    /// First called before anything is checked, then when changes are captured and nothing is copied yet (the copying
    /// begins when that call has returned), then at least every 100 ms while work goes on.
    pub on_progress: OnProgress,
    /// Is called before the cut: the place to take locks or to quiesce. Once; again only if a change that nobody saw
    /// was found behind the cut, so that it has to be repeated.
    pub before_cut: AtCut,
    /// Is called just after the cut, or when there will be none, once for each call of before_cut: the place to give
    /// back what that took.
    pub after_cut: AtCut,
    /// Is called for each warning when the backup is complete.
    pub on_warning: OnWarning,
    /// What the callbacks are given.
    pub user_data: *mut c_void,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            size: size_of::<Options>(),
            pairs: ptr::null(),
            pair_count: 0,
            exclude: ptr::null(),
            exclude_count: 0,
            exclude_if: None,
            throttle: HOTBACKUP_UNLIMITED,
            max_lag: HOTBACKUP_AUTOMATIC,
            max_stall_ms: 1000,
            keep_free: HOTBACKUP_AUTOMATIC,
            threads: 2,
            share_blocks: 0,
            manifest_place: HOTBACKUP_MANIFEST_IN_FIRST_DESTINATION,
            reserved: 0,
            manifest: ptr::null(),
            on_progress: None,
            before_cut: None,
            after_cut: None,
            on_warning: None,
            user_data: ptr::null_mut(),
        }
    }
}

/// Reads the caller's options, of whatever size they are.
///
/// # Safety
/// `options` is NULL or begins with its size and is readable for that many bytes.
pub(crate) unsafe fn copy_in(options: *const Options) -> Result<Options, Failure> {
    if options.is_null() {
        return Err(Failure::argument("options is NULL"));
    }
    // SAFETY: the struct begins with its size.
    let size = unsafe { options.cast::<usize>().read() };
    let known = size_of::<Options>();
    if size < size_of::<usize>() || size > 1 << 16 {
        return Err(Failure::argument("options->size is not set; call hotbackup_options_init first"));
    }
    // SAFETY: the caller's struct is readable for its size, ours is writable; every bit pattern of it is valid.
    unsafe {
        let beyond = (known..size).map(|at| options.cast::<u8>().add(at).read());
        if { beyond }.any(|byte| byte != 0) {
            return Err(Failure::argument("options asks for something that this version does not know"));
        }
        let mut copy = MaybeUninit::new(Options::default());
        ptr::copy_nonoverlapping(options.cast::<u8>(), copy.as_mut_ptr().cast::<u8>(), size.min(known));
        Ok(copy.assume_init())
    }
}

impl Options {
    /// The backup that these options describe.
    ///
    /// # Safety
    /// The pointers are NULL or what their types say; the strings live until this returns, the callbacks and their
    /// data as long as the session.
    pub(crate) unsafe fn backup(&self) -> Result<Backup<'static>, Failure> {
        let mut backup = Backup::new()
            .throttle(Throttle::bytes_per_sec(self.throttle))
            .max_stall(Duration::from_millis(self.max_stall_ms))
            .threads(self.threads as usize)
            .share_blocks(self.share_blocks != 0);
        // SAFETY: the caller says so.
        let (pairs, exclude) = unsafe {
            (
                slice(self.pairs, self.pair_count, "pairs")?,
                slice(self.exclude, self.exclude_count, "exclude")?,
            )
        };
        for pair in pairs {
            // SAFETY: the caller says so.
            let (source, destination) = unsafe {
                (guard::path(pair.source, "a source")?, guard::path(pair.destination, "a destination")?)
            };
            backup = backup.pair(source, destination);
        }
        for &pattern in exclude {
            // SAFETY: the caller says so.
            backup = backup.exclude(unsafe { utf8(pattern, "an expression in exclude")? });
        }
        if self.max_lag != HOTBACKUP_AUTOMATIC {
            backup = backup.max_lag(self.max_lag);
        }
        if self.keep_free != HOTBACKUP_AUTOMATIC {
            backup = backup.keep_free(KeepFree::Bytes(self.keep_free));
        }
        // SAFETY: the caller says so.
        backup = backup.manifest(unsafe { self.manifest_place()? });
        Ok(self.with_callbacks(backup))
    }

    unsafe fn manifest_place(&self) -> Result<ManifestPlace, Failure> {
        match self.manifest_place {
            HOTBACKUP_MANIFEST_IN_FIRST_DESTINATION => Ok(ManifestPlace::FirstDestination),
            // SAFETY: the caller says so.
            HOTBACKUP_MANIFEST_IN_FILE => unsafe {
                Ok(ManifestPlace::File(guard::path(self.manifest, "manifest")?.to_owned()))
            },
            HOTBACKUP_MANIFEST_NONE => Ok(ManifestPlace::None),
            other => Err(Failure::argument(format!("manifest_place is {other}, which means nothing"))),
        }
    }

    fn with_callbacks(&self, mut backup: Backup<'static>) -> Backup<'static> {
        let user_data = self.user_data;
        if let Some(leave_out) = self.exclude_if {
            // SAFETY: the caller gave a function of this type; the path lives until it returns.
            backup = backup
                .exclude_if(move |path| unsafe { leave_out(guard::c_path(path).as_ptr(), user_data) != 0 });
        }
        if let Some(tell) = self.on_progress {
            backup = backup.on_progress(move |now| {
                let file = now.file.as_deref().map(guard::c_path);
                let mut now = Progress::from(now);
                now.file = file.as_ref().map_or(ptr::null(), |file| file.as_ptr());
                // SAFETY: the caller gave a function of this type; the struct and its string live until it returns.
                match unsafe { tell(&now, user_data) } {
                    0 => ControlFlow::Continue(()),
                    _ => ControlFlow::Break(()),
                }
            });
        }
        if let Some(call) = self.before_cut {
            // SAFETY: the caller gave a function of this type.
            backup = backup.before_cut(move || unsafe { call(user_data) });
        }
        if let Some(call) = self.after_cut {
            // SAFETY: the caller gave a function of this type.
            backup = backup.after_cut(move || unsafe { call(user_data) });
        }
        backup
    }

    /// Whom to tell warnings.
    pub(crate) fn warn(&self) -> Warn {
        Warn { call: self.on_warning, user_data: self.user_data }
    }
}

/// Whom to tell warnings, once the options are gone.
pub(crate) struct Warn {
    call: OnWarning,
    user_data: *mut c_void,
}

impl Warn {
    pub(crate) fn tell(&self, warning: &str) {
        if let Some(call) = self.call {
            // SAFETY: the caller gave a function of this type; the string lives until it returns.
            unsafe { call(guard::c_string(warning).as_ptr(), self.user_data) };
        }
    }
}

/// What the caller gave as an array.
///
/// # Safety
/// `count` of them lie there, and stay as they are while the result is used.
pub(crate) unsafe fn slice<'a, T>(first: *const T, count: usize, what: &str) -> Result<&'a [T], Failure> {
    match (first.is_null(), count) {
        (_, 0) => Ok(&[]),
        (true, _) => Err(Failure::argument(format!("{what} is NULL"))),
        // SAFETY: the caller says that so many lie there.
        (false, _) => Ok(unsafe { std::slice::from_raw_parts(first, count) }),
    }
}

unsafe fn utf8<'a>(text: *const c_char, what: &str) -> Result<&'a str, Failure> {
    if text.is_null() {
        return Err(Failure::argument(format!("{what} is NULL")));
    }
    // SAFETY: the caller says that it is a string.
    let text = unsafe { CStr::from_ptr(text) }.to_str();
    text.map_err(|_| Failure::argument(format!("{what} is not UTF-8")))
}
