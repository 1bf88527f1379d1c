//! What a C program wants of a backup.

use std::ffi::{CStr, c_char, c_void};
use std::mem::MaybeUninit;
use std::ops::ControlFlow;
use std::ptr;
use std::time::Duration;

use hotbackup::{Backup, KeepFree, ManifestPlace, OnUnseenChange, Throttle};

use crate::declarations::*;
use crate::guard::{self, Failure};

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
        backup = backup.on_unseen_change(match self.on_unseen_change {
            HOTBACKUP_UNSEEN_RETRY => OnUnseenChange::Retry,
            HOTBACKUP_UNSEEN_FAIL => OnUnseenChange::Fail,
            HOTBACKUP_UNSEEN_WARN => OnUnseenChange::Warn,
            other => {
                return Err(Failure::argument(format!("on_unseen_change is {other}, which means nothing")));
            }
        });
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
