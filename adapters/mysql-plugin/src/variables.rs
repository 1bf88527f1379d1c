//! The plugin's system variables, and what setting them does.

use std::collections::{HashMap, VecDeque};
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::host;
use crate::library::{Failure, Library};
use crate::lock;
use crate::regex::Regex;
use crate::run;
use crate::variable::{Kind, NO_OPTION, NO_PERSIST, READ_ONLY, Thd, Value, Variable};

/// "Variable '...' can't be set to the value of '...'": the number, whose SQLSTATE is 42000.
const WRONG_VALUE: c_uint = 1231;
/// No timeout is longer, in seconds.
const YEAR: usize = 365 * 24 * 3600;
/// The servers cut the text of an error there.
const LONGEST_ERROR: usize = 500;

static PLUGIN_VERSION: Variable = Variable::empty();
static VERSION: Variable = Variable::empty();
static ALLOWED_PREFIX: Variable = Variable::empty();
static THROTTLE: Variable = Variable::empty();
static DIR: Variable = Variable::empty();
static LAST_ERROR: Variable = Variable::empty();
static LAST_ERROR_STRING: Variable = Variable::empty();
static EXCLUDE: Variable = Variable::empty();
static SAFE_SLAVE: Variable = Variable::empty();
static SAFE_SLAVE_TIMEOUT: Variable = Variable::empty();
static MAX_LAG: Variable = Variable::empty();
static THREADS: Variable = Variable::empty();
static KEEP_FREE: Variable = Variable::empty();
static LOCK: Variable = Variable::empty();
static LOCK_TIMEOUT: Variable = Variable::empty();

/// Where the server keeps the values of global variables.
static PLUGIN_VERSION_VALUE: AtomicUsize = AtomicUsize::new(0);
static VERSION_VALUE: AtomicUsize = AtomicUsize::new(0);
static ALLOWED_PREFIX_VALUE: AtomicUsize = AtomicUsize::new(0);
static SAFE_SLAVE_VALUE: AtomicUsize = AtomicUsize::new(0);
static SAFE_SLAVE_TIMEOUT_VALUE: AtomicUsize = AtomicUsize::new(0);

const COUNT: usize = 15;
static POINTERS: [AtomicUsize; COUNT + 1] = [const { AtomicUsize::new(0) }; COUNT + 1];

/// Declares the variables, and returns the address of the array that the server reads.
pub(crate) fn declare(plugin_version: &'static CStr) -> usize {
    let library_version =
        Library::load().and_then(|()| Library::find()).map_or(c"", |library| library.version());
    let any = Kind::SessionNumber;
    let fixed = READ_ONLY | NO_OPTION;
    PLUGIN_VERSION.declare(
        c"plugin_version",
        c"version of the tokudb backup plugin",
        fixed,
        &Kind::Text(&PLUGIN_VERSION_VALUE, plugin_version),
        None,
        None,
    );
    VERSION.declare(
        c"version",
        c"version of the tokutek backup library",
        fixed,
        &Kind::Text(&VERSION_VALUE, library_version),
        None,
        None,
    );
    let prefix = Kind::NoText(&ALLOWED_PREFIX_VALUE);
    ALLOWED_PREFIX.declare(
        c"allowed_prefix",
        c"destination directory prefix",
        READ_ONLY,
        &prefix,
        None,
        None,
    );
    THROTTLE.declare(
        c"throttle",
        c"backup throttle on write rate in bytes per second.  default is unlimited",
        0,
        &any(u64::MAX, 0, u64::MAX),
        Some(check_throttle),
        Some(set_throttle),
    );
    let backs_up = NO_OPTION | NO_PERSIST;
    let comment = c"name of the directory where the backup is stored";
    DIR.declare(c"dir", comment, backs_up, &Kind::SessionText(None), Some(check_dir), None);
    LAST_ERROR.declare(c"last_error", c"last error", fixed, &Kind::SessionLong(0, 0, u64::MAX), None, None);
    LAST_ERROR_STRING.declare(
        c"last_error_string",
        c"last error string",
        fixed,
        &Kind::SessionLent,
        None,
        None,
    );
    EXCLUDE.declare(
        c"exclude",
        c"exclude source files matching this posix extended regular expression",
        0,
        &Kind::SessionText(Some(c"(mysqld_safe\\.pid)+")),
        Some(check_exclude),
        None,
    );
    SAFE_SLAVE.declare(
        c"safe_slave",
        c"on a replica, have the SQL thread rest around the instant of the backup, when it holds no temporary tables",
        0,
        &Kind::Switch(&SAFE_SLAVE_VALUE),
        Some(check_safe_slave),
        None,
    );
    SAFE_SLAVE_TIMEOUT.declare(
        c"safe_slave_timeout",
        c"how many seconds safe_slave waits for that",
        0,
        &Kind::Number(&SAFE_SLAVE_TIMEOUT_VALUE, 0, 0, u64::MAX),
        None,
        None,
    );
    MAX_LAG.declare(
        c"max_lag",
        c"bytes that the backup may be behind before writes wait. default is automatic",
        0,
        &any(u64::MAX, 0, u64::MAX),
        None,
        None,
    );
    THREADS.declare(c"threads", c"threads that copy", 0, &Kind::SessionLong(2, 1, 64), None, None);
    KEEP_FREE.declare(
        c"keep_free",
        c"bytes of the destination's filesystem that stay free. default is 5 percent, and at least 1 GiB",
        0,
        &any(u64::MAX, 0, u64::MAX),
        None,
        None,
    );
    LOCK.declare(
        c"lock",
        c"which lock of the server is held around the instant of the backup: none, binlog or tables",
        0,
        &Kind::SessionText(Some(lock::Kind::None.name())),
        Some(check_lock),
        None,
    );
    LOCK_TIMEOUT.declare(
        c"lock_timeout",
        c"seconds in which the lock must be had, and for which it is held at most",
        0,
        &Kind::SessionLong(60, 1, 86_400),
        None,
        None,
    );
    let all: [&'static Variable; COUNT] = [
        &PLUGIN_VERSION,
        &VERSION,
        &ALLOWED_PREFIX,
        &THROTTLE,
        &DIR,
        &LAST_ERROR,
        &LAST_ERROR_STRING,
        &EXCLUDE,
        &SAFE_SLAVE,
        &SAFE_SLAVE_TIMEOUT,
        &MAX_LAG,
        &THREADS,
        &KEEP_FREE,
        &LOCK,
        &LOCK_TIMEOUT,
    ];
    for (pointer, variable) in POINTERS.iter().zip(all) {
        pointer.store(std::ptr::from_ref(variable) as usize, Ordering::Relaxed);
    }
    POINTERS.as_ptr() as usize
}

/// What a session wants of a backup.
pub(crate) struct Wishes {
    pub(crate) throttle: u64,
    pub(crate) max_lag: u64,
    pub(crate) threads: u32,
    pub(crate) keep_free: u64,
    pub(crate) exclude: Option<Vec<u8>>,
    pub(crate) allowed_prefix: Option<Vec<u8>>,
    /// As it was set, because options of the command line are not checked.
    pub(crate) lock: Option<Vec<u8>>,
    pub(crate) lock_timeout: Duration,
    /// How long to wait until a replica can rest, if it shall.
    pub(crate) safe_slave: Option<Duration>,
}

impl Wishes {
    fn of(thd: Thd) -> Wishes {
        let prefix = ALLOWED_PREFIX_VALUE.load(Ordering::Relaxed) as *const c_char;
        // SAFETY: the session runs the statement that asks, each variable is of the type that is read, and the server keeps
        // a string or NULL in the global one.
        unsafe {
            let number = |variable: &Variable, default| variable.number(thd).unwrap_or(default);
            Wishes {
                throttle: number(&THROTTLE, u64::MAX),
                max_lag: number(&MAX_LAG, u64::MAX),
                threads: u32::try_from(number(&THREADS, 2)).unwrap_or(2),
                keep_free: number(&KEEP_FREE, u64::MAX),
                exclude: EXCLUDE.text(thd).filter(|text| !text.is_empty()),
                allowed_prefix: (!prefix.is_null()).then(|| CStr::from_ptr(prefix).to_bytes().to_vec()),
                lock: LOCK.text(thd),
                lock_timeout: Duration::from_secs(number(&LOCK_TIMEOUT, 60)),
                safe_slave: (SAFE_SLAVE_VALUE.load(Ordering::Relaxed) & 0xff != 0).then(|| {
                    Duration::from_secs(SAFE_SLAVE_TIMEOUT_VALUE.load(Ordering::Relaxed).min(YEAR) as u64)
                }),
            }
        }
    }
}

/// Runs a check: no panic gets into the server. 0 if it succeeded.
fn guarded(check: impl FnOnce() -> bool) -> c_int {
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(check));
    c_int::from(!done.unwrap_or_else(|_| {
        host::raise(WRONG_VALUE, "tokudb_backup panicked: please report this defect");
        false
    }))
}

fn refuse(variable: &str, value: &[u8], why: &str) {
    let value = String::from_utf8_lossy(value);
    let mut text =
        format!("Variable 'tokudb_backup_{variable}' can't be set to the value of '{value}': {why}");
    if text.len() > LONGEST_ERROR {
        let end = (0..=LONGEST_ERROR - 3).rev().find(|&at| text.is_char_boundary(at));
        text.truncate(end.unwrap_or(0));
        text.push_str("...");
    }
    host::raise(WRONG_VALUE, &text);
}

/// Whether the session may. If not, an error has been raised.
fn may_back_up(thd: Thd) -> bool {
    host::Server::here().is_some_and(|server| host::may_back_up(server, thd))
}

extern "C" fn check_dir(thd: Thd, _: *const Variable, save: *mut c_void, value: *mut Value) -> c_int {
    guarded(|| {
        if !may_back_up(thd) {
            return false;
        }
        // SAFETY: the server gave the value to this check, which is running.
        let directory = unsafe { Value::text(value) };
        let outcome = match &directory {
            None => Err(Failure::new(libc::EINVAL, "no directory is named")),
            // Setting it back would make another backup, to where the last one went.
            Some(_) if host::is_for_one_statement(thd) => Err(Failure::new(
                libc::EINVAL,
                "it cannot be set for one statement: use SET tokudb_backup_dir",
            )),
            Some(directory) => run::backup(thd, directory, &Wishes::of(thd)),
        };
        remember(thd, outcome.as_ref().err());
        if let Err(failure) = &outcome {
            refuse("dir", directory.as_deref().unwrap_or(b"NULL"), &failure.text);
            return false;
        }
        let text = host::statement_text(thd, &directory.unwrap_or_default());
        // SAFETY: the server gives room for a pointer to a string, and copies that.
        unsafe { *save.cast::<*const c_char>() = text.unwrap_or(std::ptr::null_mut()) };
        true
    })
}

extern "C" fn check_throttle(thd: Thd, _: *const Variable, save: *mut c_void, value: *mut Value) -> c_int {
    guarded(|| {
        if !may_back_up(thd) {
            return false;
        }
        // SAFETY: the server gave the value to this check, which is running, and gives room for a number.
        unsafe {
            let Some(number) = Value::number(value) else {
                refuse("throttle", b"NULL", "it is a number of bytes per second that is not negative");
                return false;
            };
            *save.cast::<u64>() = number;
        }
        true
    })
}

extern "C" fn set_throttle(thd: Thd, _: *const Variable, place: *mut c_void, save: *const c_void) {
    // The default comes unchecked.
    if !may_back_up(thd) {
        return;
    }
    // SAFETY: the server gives the place of a number, and one that was checked or is the default.
    let number = unsafe {
        let number = *save.cast::<u64>();
        *place.cast::<u64>() = number;
        number
    };
    if let Ok(library) = Library::find() {
        library.throttle(number);
    }
}

extern "C" fn check_exclude(thd: Thd, _: *const Variable, save: *mut c_void, value: *mut Value) -> c_int {
    guarded(|| {
        // SAFETY: the server gave the value to this check, which is running.
        let text = unsafe { Value::text(value) };
        if let Some(text) = text.as_ref().filter(|text| !text.is_empty())
            && let Err(failure) = Regex::new(text)
        {
            refuse("exclude", text, &failure.text);
            return false;
        }
        let text = text.and_then(|text| host::statement_text(thd, &text));
        // SAFETY: the server gives room for a pointer to a string, and copies that.
        unsafe { *save.cast::<*const c_char>() = text.unwrap_or(std::ptr::null_mut()) };
        true
    })
}

extern "C" fn check_lock(_: Thd, _: *const Variable, save: *mut c_void, value: *mut Value) -> c_int {
    guarded(|| {
        // SAFETY: the server gave the value to this check, which is running.
        let text = unsafe { Value::text(value) }.unwrap_or_else(|| b"NULL".to_vec());
        match lock::wanted(&text) {
            Ok(kind) => {
                // SAFETY: the server gives room for a pointer to a string, and copies that.
                unsafe { *save.cast::<*const c_char>() = kind.name().as_ptr() };
                true
            }
            Err(failure) => {
                refuse("lock", &text, &failure.text);
                false
            }
        }
    })
}

extern "C" fn check_safe_slave(_: Thd, _: *const Variable, save: *mut c_void, value: *mut Value) -> c_int {
    guarded(|| {
        // SAFETY: the server gave the value to this check, which is running.
        let on = unsafe { Value::switch(value) };
        let refusal = match on {
            Some(false) => Ok(()),
            Some(true) => lock::can_rest(),
            None => Err(Failure::new(libc::EINVAL, "it is ON or OFF")),
        };
        match refusal {
            Ok(()) => {
                // SAFETY: the server gives room for a switch, which it reads as an int or less.
                unsafe { *save.cast::<c_int>() = c_int::from(on == Some(true)) };
                true
            }
            Err(failure) => {
                refuse("safe_slave", if on.is_some() { b"ON" } else { b"..." }, &failure.text);
                false
            }
        }
    })
}

/// Texts lent to sessions, by where the session lies in memory, and those that were lent before: another thread may still be
/// reading one.
struct Lent {
    now: HashMap<usize, CString>,
    before: VecDeque<CString>,
}

static LENT: Mutex<Option<Lent>> = Mutex::new(None);

/// Shows a session what came of its backup.
fn remember(thd: Thd, failure: Option<&Failure>) {
    let mut lent = LENT.lock().unwrap_or_else(PoisonError::into_inner);
    let lent = lent.get_or_insert_with(|| Lent { now: HashMap::new(), before: VecDeque::new() });
    let text = failure.map(|failure| host::c_text(&failure.text));
    let pointer = text.as_ref().map_or(std::ptr::null(), |text| text.as_ptr());
    // SAFETY: the session runs the statement that this is about; the text stays until the session, or one that lies in its
    // place, has had another for a while.
    unsafe {
        LAST_ERROR.set_number(thd, failure.map_or(0, |failure| u64::from(failure.number.unsigned_abs())));
        LAST_ERROR_STRING.lend(thd, pointer);
    }
    let old = match text {
        Some(text) => lent.now.insert(thd as usize, text),
        None => lent.now.remove(&(thd as usize)),
    };
    lent.before.extend(old);
    while lent.before.len() > 64 {
        lent.before.pop_front();
    }
}
