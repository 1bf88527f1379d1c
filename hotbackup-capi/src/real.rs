//! The functions that the hooks replace, found on first use.
//!
//! Another library's constructor may call a hook before ours has run, and a signal handler may do so at any time: so
//! the address is kept in an atomic, which at first holds that of a stand-in that looks the function up, and a race writes the
//! same value twice. Our constructor looks all of them up, and every proof those of libraries that have come since; so a hook enters
//! the loader only if it is the first to call a function of such a library. Should that be in a freeze while another thread loads a
//! library and waits at the gate, the freeze is over in time, and the cut is tried again.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use hotbackup::intercept::ErrorNumber;

/// The next definition of one function behind ours.
pub(crate) struct Real {
    name: &'static CStr,
    /// Stands in until the function has been looked up: does so, and calls it.
    unknown: StandIn,
    /// Stands in where this C library does not have the function.
    missing: StandIn,
    address: AtomicPtr<c_void>,
}

/// A function whose true signature only its hook knows.
pub(crate) type StandIn = unsafe extern "C-unwind" fn();

impl Real {
    pub(crate) const fn new(name: &'static CStr, unknown: StandIn, missing: StandIn) -> Real {
        Real { name, unknown, missing, address: AtomicPtr::new(unknown as *mut c_void) }
    }

    /// The address to call; never null.
    #[inline(always)]
    pub(crate) fn address(&self) -> *mut c_void {
        self.address.load(Ordering::Relaxed)
    }

    /// The address if a library has the function, else 0.
    pub(crate) fn known(&self) -> usize {
        let address = self.address.load(Ordering::Relaxed);
        let stand_ins = [self.unknown, self.missing];
        if stand_ins.iter().any(|&ours| ours as *mut c_void == address) { 0 } else { address as usize }
    }

    /// Has the hook call the function of the C library itself, or of the library that has it, whatever stands before that
    /// one: what a slot is led to us for is that function. A library that was loaded late is not behind the others in any
    /// order, so the next definition behind ours says nothing.
    pub(crate) fn aim_behind_all(&self) {
        let found = in_libraries(self.name);
        if !found.is_null() {
            self.address.store(found, Ordering::Relaxed);
        }
    }

    /// Looks the function up; errno stays as it is.
    #[cold]
    #[inline(never)]
    pub(crate) fn look_up(&self) -> *mut c_void {
        let errno = get_errno();
        // SAFETY: `name` is NUL-terminated. No hooked function has a second version in any glibc that is another function and
        // could be picked (the test `every_hooked_name_has_one_version` holds this).
        let mut address = unsafe { libc::dlsym(libc::RTLD_NEXT, self.name.as_ptr()) };
        let library = library(self.name.to_bytes());
        if let Some(library) = library {
            let pinned = pinned(library, self.name);
            address = if pinned.is_null() { address } else { pinned };
        }
        let is_missing = address.is_null();
        if is_missing {
            address = self.missing as *mut c_void;
        }
        // The library may be loaded later.
        if !(is_missing && library.is_some()) {
            self.address.store(address, Ordering::Relaxed);
        }
        set_errno(errno);
        address
    }
}

/// The library that a function is of, if the program may load it long after us, for one library only, and unload it again.
fn library(name: &[u8]) -> Option<&'static CStr> {
    // glibc has POSIX asynchronous input and output in itself since 2.34.
    [(&b"io_uring_"[..], c"liburing.so.2"), (b"aio_", c"librt.so.1"), (b"lio_", c"librt.so.1")]
        .into_iter()
        .find_map(|(prefix, library)| name.starts_with(prefix).then_some(library))
}

/// A function of the C library, or of those for asynchronous input and output where one is loaded; these are then kept.
fn in_libraries(name: &CStr) -> *mut c_void {
    let libraries = [c"libc.so.6", c"librt.so.1", c"libaio.so.1", c"libaio.so.1t64", c"liburing.so.2"];
    for library in libraries {
        // SAFETY: strings. Nothing is loaded; a reference is given back only if nothing was found.
        unsafe {
            let handle = libc::dlopen(library.as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD);
            if handle.is_null() {
                continue;
            }
            let found = libc::dlsym(handle, name.as_ptr());
            if !found.is_null() {
                return found;
            }
            libc::dlclose(handle);
        }
    }
    ptr::null_mut()
}

/// A function of a library, if that is loaded.
fn pinned(library: &CStr, name: &CStr) -> *mut c_void {
    // SAFETY: strings. Nothing is loaded. The reference that is taken is never given back, so the address stays good.
    unsafe {
        let library = libc::dlopen(library.as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD);
        if library.is_null() { ptr::null_mut() } else { libc::dlsym(library, name.as_ptr()) }
    }
}

/// What a call returns where neither the C library nor the kernel has it.
pub(crate) trait Unavailable {
    fn unavailable() -> Self;
}

impl Unavailable for c_int {
    fn unavailable() -> Self {
        set_errno(libc::ENOSYS);
        -1
    }
}

impl Unavailable for i64 {
    fn unavailable() -> Self {
        set_errno(libc::ENOSYS);
        -1
    }
}

impl Unavailable for isize {
    fn unavailable() -> Self {
        set_errno(libc::ENOSYS);
        -1
    }
}

impl Unavailable for ErrorNumber {
    fn unavailable() -> Self {
        ErrorNumber(libc::ENOSYS)
    }
}

impl Unavailable for *mut c_void {
    fn unavailable() -> Self {
        set_errno(libc::ENOSYS);
        libc::MAP_FAILED
    }
}

impl Unavailable for *mut c_char {
    fn unavailable() -> Self {
        set_errno(libc::ENOSYS);
        ptr::null_mut()
    }
}

impl Unavailable for () {
    fn unavailable() -> Self {}
}

/// The calling thread's errno.
pub(crate) fn get_errno() -> c_int {
    // SAFETY: `__errno_location` returns a valid pointer to the calling thread's errno.
    unsafe { *libc::__errno_location() }
}

/// Sets the calling thread's errno.
pub(crate) fn set_errno(value: c_int) {
    // SAFETY: `__errno_location` returns a valid pointer to the calling thread's errno.
    unsafe { *libc::__errno_location() = value }
}
