//! The component services of MySQL 8 and later: structures of functions, found by name in the server's registry.

use std::ffi::{CStr, CString, c_char, c_int, c_void};

use crate::host::symbol;
use crate::variable::Thd;

/// The registry itself is a service: what it finds is held until it is given back.
#[repr(C)]
struct Registry {
    acquire: extern "C" fn(*const c_char, *mut *const c_void) -> c_int,
    acquire_related: *const c_void,
    release: extern "C" fn(*const c_void) -> c_int,
}

/// A service that is held as long as this lives; `T` is its structure of functions.
pub(crate) struct Service<T: 'static> {
    functions: &'static T,
}

impl<T> Service<T> {
    /// The service `name`, if the server has one.
    ///
    /// # Safety
    /// `T` is the structure that the servers document for this name, or the beginning of it.
    pub(crate) unsafe fn find(name: &CStr) -> Option<Service<T>> {
        let mut found = std::ptr::null();
        with_registry(|registry| {
            // Their functions return a C++ bool: only the lowest byte counts, and 0 is success.
            let failed = (registry.acquire)(name.as_ptr(), &raw mut found) & 0xff != 0;
            (!failed && !found.is_null()).then_some(())
        })??;
        // SAFETY: the caller says what it is, and the server keeps it as long as it is held.
        Some(Service { functions: unsafe { &*found.cast::<T>() } })
    }
}

impl<T> std::ops::Deref for Service<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.functions
    }
}

impl<T> Drop for Service<T> {
    fn drop(&mut self) {
        with_registry(|registry| (registry.release)(std::ptr::from_ref(self.functions).cast()));
    }
}

fn with_registry<R>(call: impl FnOnce(&Registry) -> R) -> Option<R> {
    let acquire = symbol(&[c"mysql_plugin_registry_acquire", c"_Z29mysql_plugin_registry_acquirev"])?;
    let release = symbol(&[c"mysql_plugin_registry_release", REGISTRY_RELEASE])?;
    // SAFETY: functions of these types in every server that has them; the registry is used before it is given back.
    unsafe {
        let acquire: extern "C" fn() -> *const Registry = std::mem::transmute(acquire);
        let release: extern "C" fn(*const Registry) -> c_int = std::mem::transmute(release);
        let registry = acquire();
        let outcome = registry.as_ref().map(call);
        if outcome.is_some() {
            release(registry);
        }
        outcome
    }
}

const REGISTRY_RELEASE: &CStr = c"_Z29mysql_plugin_registry_releasePK16s_mysql_registry";

#[repr(C)]
struct ThdSecurityContext {
    get: extern "C" fn(Thd, *mut *mut c_void) -> c_int,
}

#[repr(C)]
struct SecurityContextOptions {
    get: extern "C" fn(*mut c_void, *const c_char, *mut c_void) -> c_int,
}

#[repr(C)]
struct GlobalGrants {
    has: extern "C" fn(*mut c_void, *const c_char, usize) -> c_int,
}

/// A text of the server's.
#[repr(C)]
struct Text {
    start: *const c_char,
    len: usize,
}

/// As whom a session of the server works.
fn security_context(thd: Thd) -> Option<*mut c_void> {
    let mut context = std::ptr::null_mut();
    // SAFETY: the structure begins so (mysql/components/services/security_context.h).
    let service = unsafe { Service::<ThdSecurityContext>::find(c"mysql_thd_security_context")? };
    let failed = (service.get)(thd, &raw mut context) & 0xff != 0;
    (!failed && !context.is_null()).then_some(context)
}

/// Whether the session's account has the dynamic privilege `name`.
pub(crate) fn has_privilege(thd: Thd, name: &CStr) -> bool {
    // SAFETY: the structure is so (mysql/components/services/dynamic_privilege.h).
    let service = unsafe { Service::<GlobalGrants>::find(c"global_grants_check") };
    let (Some(service), Some(context)) = (service, security_context(thd)) else { return false };
    (service.has)(context, name.as_ptr(), name.count_bytes()) & 0xff != 0
}

/// Whether it has SUPER.
pub(crate) fn is_super(thd: Thd) -> bool {
    let mut is_super = false;
    option(thd, c"privilege_super", (&raw mut is_super).cast()).is_some() && is_super
}

/// The account that the session's privileges are those of: user and host.
pub(crate) fn account(thd: Thd) -> Option<(CString, CString)> {
    let ask = |name: &CStr| {
        let mut answer = Text { start: std::ptr::null(), len: 0 };
        option(thd, name, (&raw mut answer).cast())?;
        if answer.start.is_null() {
            return None;
        }
        // SAFETY: these options are texts: a pointer, and a length.
        let text = unsafe { std::slice::from_raw_parts(answer.start.cast::<u8>(), answer.len) };
        CString::new(text).ok()
    };
    Some((ask(c"priv_user")?, ask(c"priv_host")?))
}

/// Writes what the session's security context has for `name` to `answer`.
fn option(thd: Thd, name: &CStr, answer: *mut c_void) -> Option<()> {
    // SAFETY: the structure begins so (mysql/components/services/security_context.h).
    let service = unsafe { Service::<SecurityContextOptions>::find(c"mysql_security_context_options")? };
    ((service.get)(security_context(thd)?, name.as_ptr(), answer) & 0xff == 0).then_some(())
}
