//! What stands around every function of the C interface: NULL checks, panics, cancellation, and the last error.
//!
//! A panic never leaves the library, and no thread is cancelled while it is inside: either would unwind through code
//! that does not expect it. A cancellation that was asked for meanwhile takes effect once the function has returned.

use std::cell::RefCell;
use std::ffi::{CStr, CString, OsStr, c_char, c_int};
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use hotbackup::Error;

use crate::api::Status;

/// Why a function of the C interface failed.
pub(crate) struct Failure {
    pub(crate) status: Status,
    pub(crate) errno: c_int,
    pub(crate) text: String,
}

impl Failure {
    /// The caller gave us something that we cannot use.
    pub(crate) fn argument(text: impl Into<String>) -> Failure {
        Failure { status: Status::InvalidArgument, errno: libc::EINVAL, text: text.into() }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure { status: Status::of(&error), errno: error.errno(), text: error.to_string() }
    }
}

thread_local! {
    static LAST_ERRNO: RefCell<c_int> = const { RefCell::new(0) };
    static LAST_ERROR: RefCell<Option<CString>> = const { RefCell::new(None) };
}

/// Runs one function of the interface and keeps its error for `hotbackup_last_error`.
pub(crate) fn guard(function: impl FnOnce() -> Result<(), Failure>) -> Status {
    let _uncancelled = Uncancelled::begin();
    let outcome = catch_unwind(AssertUnwindSafe(function)).unwrap_or_else(|_| {
        Err(Failure {
            status: Status::Defect,
            errno: libc::EIO,
            text: "a defect in hotbackup ended the call".into(),
        })
    });
    let Err(failure) = outcome else {
        return Status::Ok;
    };
    // A thread that is ending may have lost its storage; it then loses the text only.
    let _ = LAST_ERRNO.try_with(|errno| errno.replace(failure.errno));
    let _ = LAST_ERROR.try_with(|text| text.replace(Some(c_string(failure.text))));
    failure.status
}

/// The text of the calling thread's last error; it lives until the next failure on this thread.
pub(crate) fn last_error() -> *const c_char {
    LAST_ERROR
        .try_with(|text| text.borrow().as_ref().map_or(c"".as_ptr(), |text| text.as_ptr()))
        .unwrap_or(c"".as_ptr())
}

pub(crate) fn last_errno() -> c_int {
    LAST_ERRNO.try_with(|errno| *errno.borrow()).unwrap_or(0)
}

/// Text for C, which ends at the first NUL.
pub(crate) fn c_string(text: impl Into<Vec<u8>>) -> CString {
    let mut bytes = text.into();
    bytes.retain(|&byte| byte != 0);
    CString::new(bytes).unwrap_or_default()
}

/// A path for C.
pub(crate) fn c_path(path: &Path) -> CString {
    c_string(path.as_os_str().as_bytes())
}

/// A path that the caller gave.
///
/// # Safety
/// `path` is NULL or a string that stays as it is while the result is used.
pub(crate) unsafe fn path<'a>(path: *const c_char, what: &str) -> Result<&'a Path, Failure> {
    if path.is_null() {
        return Err(Failure::argument(format!("{what} is NULL")));
    }
    // SAFETY: the caller says so.
    let bytes = unsafe { CStr::from_ptr(path) }.to_bytes();
    Ok(Path::new(OsStr::from_bytes(bytes)))
}

/// Cancellation of the calling thread, put off while this lives.
pub(crate) struct Uncancelled(c_int);

unsafe extern "C" {
    fn pthread_setcancelstate(state: c_int, old: *mut c_int) -> c_int;
}

const PTHREAD_CANCEL_DISABLE: c_int = 1;

impl Uncancelled {
    pub(crate) fn begin() -> Uncancelled {
        let mut old = 0;
        // SAFETY: `old` is writable; the call cannot fail with a valid state.
        unsafe { pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &mut old) };
        Uncancelled(old)
    }
}

impl Drop for Uncancelled {
    fn drop(&mut self) {
        // SAFETY: it puts back the state that the first call returned.
        unsafe { pthread_setcancelstate(self.0, std::ptr::null_mut()) };
    }
}
