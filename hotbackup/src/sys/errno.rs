//! The calling thread's errno: read after a real call, put back after our own work.

use std::ffi::c_int;

/// The calling thread's errno.
#[inline]
pub(crate) fn get() -> c_int {
    // SAFETY: `__errno_location` returns a valid pointer to the calling thread's errno.
    unsafe { *libc::__errno_location() }
}

/// Sets the calling thread's errno.
#[inline]
pub(crate) fn set(value: c_int) {
    // SAFETY: `__errno_location` returns a valid pointer to the calling thread's errno.
    unsafe { *libc::__errno_location() = value }
}

/// Puts errno back to what it was when this was made, however the scope is left.
pub(crate) struct Preserve(c_int);

impl Preserve {
    pub(crate) fn new() -> Preserve {
        Preserve(get())
    }
}

impl Drop for Preserve {
    fn drop(&mut self) {
        set(self.0);
    }
}
