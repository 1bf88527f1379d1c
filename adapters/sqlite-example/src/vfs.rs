//! The adapter: hotbackup's hooks in SQLite's own table of system calls.
//!
//! SQLite reaches the operating system through a table that `xSetSystemCall` may change; every VFS for Unix ("unix",
//! "unix-excl", "unix-dotfile" ...) shares it. [`install`] puts our functions into each row that changes files. Each
//! one tells [`hotbackup::intercept`] what the call may change and makes the call that stood there before, so nothing
//! changes for SQLite. The rows are installed once, before the first connection, and stay for the life of the process;
//! every backup proves, while it starts, that they are still in force.
//!
//! What SQLite changes through a memory mapping is no call. A write-ahead log's index (`-shm`) is such a mapping: it
//! is rebuilt from the log whenever a database is opened, so a backup leaves it out.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use hotbackup::Error;
use hotbackup::intercept::{self, At, Change, ErrorNumber};
use rusqlite::ffi;

/// Any function, as SQLite's table holds it.
type Function = unsafe extern "C" fn();

/// One row of SQLite's table that is ours.
struct Hook {
    name: &'static CStr,
    ours: fn() -> Function,
    /// What stood there before; null if this build of SQLite has no such call, or before [`install`].
    real: &'static AtomicPtr<c_void>,
}

/// One row per call: SQLite's name for it, its prototype in SQLite's table, what it may change.
macro_rules! hooks {
    ($($name:ident ($($arg:ident: $type:ty),*) -> $result:ty => $make:expr;)*) => {
        $(mod $name {
            use super::*;

            pub(super) static REAL: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());

            pub(super) unsafe extern "C-unwind" fn hook($($arg: $type),*) -> $result {
                let real = REAL.load(Ordering::Acquire);
                // SAFETY: REAL was stored before SQLite could call this function, and is what the row of this name
                // held, which has this prototype (`struct unix_syscall aSyscall` in SQLite's os_unix.c).
                let real: unsafe extern "C-unwind" fn($($type),*) -> $result = unsafe { std::mem::transmute(real) };
                // SAFETY: The arguments are SQLite's, passed on as they came.
                let real = || unsafe { real($($arg),*) };
                $make(real)
            }

            pub(super) fn ours() -> Function {
                // SAFETY: A function pointer keeps its value; SQLite casts it back to the prototype before a call.
                unsafe {
                    std::mem::transmute::<unsafe extern "C-unwind" fn($($type),*) -> $result, Function>(hook)
                }
            }
        })*

        static HOOKS: &[Hook] = &[
            $(Hook { name: name_of(stringify!($name), concat!(stringify!($name), "\0")), ours: $name::ours, real: &$name::REAL },)*
        ];
    };
}

/// The C string in `with_nul`.
const fn name_of(name: &str, with_nul: &'static str) -> &'static CStr {
    match CStr::from_bytes_with_nul(with_nul.as_bytes()) {
        Ok(text) if text.count_bytes() == name.len() => text,
        _ => panic!("a name holds a NUL"),
    }
}

hooks! {
    // The C prototype is variadic; SQLite calls a wrapper of its own with three arguments.
    open(path: *const c_char, flags: c_int, mode: c_int) -> c_int
        => |real| intercept::around(Change::Open { file: At::cwd(path), flags }, real);
    close(fd: c_int) -> c_int
        => |real| intercept::ending_descriptor(fd, real);
    write(fd: c_int, bytes: *const c_void, len: usize) -> isize
        => |real| intercept::around(Change::Write { fd }, real);
    pwrite(fd: c_int, bytes: *const c_void, len: usize, at: i64) -> isize
        => |real| intercept::around(Change::WriteAt { fd, at }, real);
    pwrite64(fd: c_int, bytes: *const c_void, len: usize, at: i64) -> isize
        => |real| intercept::around(Change::WriteAt { fd, at }, real);
    ftruncate(fd: c_int, len: i64) -> c_int
        => |real| intercept::around(Change::Resize { fd, len }, real);
    // The row of this name holds posix_fallocate, which returns its error number.
    fallocate(fd: c_int, at: i64, len: i64) -> ErrorNumber
        => |real| intercept::around(Change::Allocate { fd, mode: 0, at, len }, real);
    fchmod(fd: c_int, mode: u32) -> c_int
        => |real| intercept::around(Change::Attributes { fd }, real);
    fchown(fd: c_int, owner: u32, group: u32) -> c_int
        => |real| intercept::around(Change::Attributes { fd }, real);
    unlink(path: *const c_char) -> c_int
        => |real| intercept::around(Change::Remove { name: At::cwd(path) }, real);
    mkdir(path: *const c_char, mode: u32) -> c_int
        => |real| intercept::around(Change::Create { name: At::cwd(path) }, real);
    rmdir(path: *const c_char) -> c_int
        => |real| intercept::around(Change::Remove { name: At::cwd(path) }, real);
}

/// Rows that change no file, or (openDirectory) only by way of other rows. The mappings are read-only, but for the
/// index of a write-ahead log.
const HARMLESS: &[&CStr] = &[
    c"access",
    c"fcntl",
    c"fstat",
    c"getcwd",
    c"geteuid",
    c"getpagesize",
    c"lstat",
    c"mmap",
    c"mremap",
    c"munmap",
    c"openDirectory",
    c"pread",
    c"pread64",
    c"read",
    c"readlink",
    c"stat",
];

/// Puts our functions into SQLite's table and registers the proof that they are there.
///
/// Call it before the first connection is opened. A second call changes nothing.
///
/// # Errors
/// [`Error::HookNotLive`] if this build of SQLite has no such table, or a call in it that is not known here.
pub fn install() -> Result<(), Error> {
    let table = Table::find()?;
    for hook in HOOKS {
        let Some(found) = table.get(hook.name) else {
            continue;
        };
        if ptr::fn_addr_eq(found, (hook.ours)()) {
            continue;
        }
        hook.real.store(found as *mut c_void, Ordering::Release);
        table.set(hook)?;
    }
    intercept::register(prove);
    prove()
}

/// Checks that SQLite makes every call that changes files through us.
fn prove() -> Result<(), Error> {
    let table = Table::find()?;
    for hook in HOOKS {
        let installed = !hook.real.load(Ordering::Acquire).is_null();
        let in_force = table.get(hook.name).is_some_and(|found| ptr::fn_addr_eq(found, (hook.ours)()));
        if installed && !in_force {
            return Err(not_live(hook.name, "another function has taken the place of hotbackup's"));
        }
    }
    for name in table.names() {
        let known =
            HOOKS.iter().any(|hook| hook.name == name && !hook.real.load(Ordering::Acquire).is_null());
        if !known && !HARMLESS.contains(&name) {
            return Err(not_live(name, "this build of SQLite makes a call that the adapter does not hook"));
        }
    }
    let writes = [c"write", c"pwrite", c"pwrite64"];
    if !writes.iter().any(|&name| table.get(name).is_some()) {
        return Err(not_live(c"write", "SQLite's table does not hold it"));
    }
    Ok(())
}

fn not_live(name: &CStr, reason: &str) -> Error {
    Error::HookNotLive {
        object: format!("SQLite {}", rusqlite::version()),
        symbol: name.to_string_lossy().into_owned(),
        reason: reason.into(),
    }
}

/// SQLite's table of system calls.
struct Table {
    vfs: *mut ffi::sqlite3_vfs,
    get: unsafe extern "C" fn(*mut ffi::sqlite3_vfs, *const c_char) -> ffi::sqlite3_syscall_ptr,
    set: unsafe extern "C" fn(*mut ffi::sqlite3_vfs, *const c_char, ffi::sqlite3_syscall_ptr) -> c_int,
    next: unsafe extern "C" fn(*mut ffi::sqlite3_vfs, *const c_char) -> *const c_char,
}

impl Table {
    /// The table of the default VFS.
    fn find() -> Result<Table, Error> {
        let none = || not_live(c"xSetSystemCall", "the default VFS has no table of system calls");
        // SAFETY: A null name asks for the default VFS; SQLite initializes itself first if need be.
        let vfs = unsafe { ffi::sqlite3_vfs_find(ptr::null()) };
        // SAFETY: SQLite's VFS objects are registered for good here (nothing unregisters one), so a non-null one can
        // be read.
        let Some(functions) = (unsafe { vfs.as_ref() }) else {
            return Err(none());
        };
        // Before version 3 the object ends ahead of these fields.
        if functions.iVersion < 3 {
            return Err(none());
        }
        match (functions.xGetSystemCall, functions.xSetSystemCall, functions.xNextSystemCall) {
            (Some(get), Some(set), Some(next)) => Ok(Table { vfs, get, set, next }),
            _ => Err(none()),
        }
    }

    /// The function in force; `None` if this build has no such call.
    fn get(&self, name: &CStr) -> Option<Function> {
        // SAFETY: The function belongs to this VFS and only reads the name.
        unsafe { (self.get)(self.vfs, name.as_ptr()) }
    }

    fn set(&self, hook: &Hook) -> Result<(), Error> {
        // SAFETY: The function belongs to this VFS; ours has the prototype of the row of this name.
        match unsafe { (self.set)(self.vfs, hook.name.as_ptr(), Some((hook.ours)())) } {
            ffi::SQLITE_OK => Ok(()),
            code => Err(not_live(hook.name, &format!("xSetSystemCall returned {code}"))),
        }
    }

    /// The names of all calls that this build has.
    fn names(&self) -> impl Iterator<Item = &'static CStr> {
        let after = |name: *const c_char| {
            // SAFETY: The function belongs to this VFS, takes null or a name of the table, and returns null or a
            // name of the table, which is a constant of SQLite's.
            unsafe {
                let name = (self.next)(self.vfs, name);
                (!name.is_null()).then(|| CStr::from_ptr::<'static>(name))
            }
        };
        std::iter::successors(after(ptr::null()), move |name| after(name.as_ptr()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hook_that_was_replaced_is_named() {
        install().expect("installed");
        install().expect("installed again, without a second layer");
        let table = Table::find().expect("a table");
        let hook = HOOKS.iter().find(|hook| hook.name == c"unlink").expect("a row");
        // SAFETY: This is what the row held before, and no connection is open in this test.
        unsafe { (table.set)(table.vfs, hook.name.as_ptr(), None) };
        let error = prove().expect_err("no longer ours").to_string();
        table.set(hook).expect("set again");
        assert!(error.contains("unlink") && error.contains("SQLite 3."), "{error}");
        prove().expect("ours again");
    }
}
