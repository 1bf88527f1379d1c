//! `SHOW GLOBAL STATUS LIKE 'tokudb_backup%'`: the backup that runs, and what came of those before. Session variables die
//! with the connection that made the backup; these stay as long as the plugin.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::declarations::{Phase, Progress};
use crate::library::{self, Failure, Library};
use crate::variable::Thd;

const CHAR: usize = 5;
const FUNCTION: usize = 8;
/// Behind the type, where servers since MySQL 5.7 have a scope and others nothing.
const GLOBAL: usize = 1 << 32;
/// What the servers give for a value, at the least.
const ROOM: usize = 1024;

/// What came of backups.
#[derive(Default)]
struct History {
    running: bool,
    started: Option<SystemTime>,
    ended: Option<SystemTime>,
    directory: String,
    failure: Option<Failure>,
    good_ended: Option<SystemTime>,
    good_directory: String,
    freeze_ns: u64,
}

static HISTORY: Mutex<Option<History>> = Mutex::new(None);

fn history() -> MutexGuard<'static, Option<History>> {
    HISTORY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notes that a backup to `directory` begins.
pub(crate) fn begun(directory: &str) {
    let mut history = history();
    let history = history.get_or_insert_default();
    history.running = true;
    (history.started, history.ended) = (Some(SystemTime::now()), None);
    directory.clone_into(&mut history.directory);
    history.failure = None;
}

/// Notes what came of it: how long calls of the server had to wait around the cut, in nanoseconds.
pub(crate) fn ended(outcome: &Result<u64, Failure>) {
    let mut history = history();
    let history = history.get_or_insert_default();
    history.running = false;
    history.ended = Some(SystemTime::now());
    match outcome {
        Ok(freeze_ns) => {
            history.freeze_ns = *freeze_ns;
            history.good_ended = history.ended;
            history.good_directory.clone_from(&history.directory);
        }
        Err(failure) => history.failure = Some(failure.clone()),
    }
}

/// Whether a backup runs.
pub(crate) fn is_running() -> bool {
    history().as_ref().is_some_and(|history| history.running)
}

/// The time in UTC, as SQL writes it.
pub(crate) fn utc(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let seconds = libc::time_t::try_from(seconds).unwrap_or(0);
    // SAFETY: the struct is numbers and a pointer that may be NULL; gmtime_r writes it.
    let parts = unsafe {
        let mut parts: libc::tm = std::mem::zeroed();
        libc::gmtime_r(&raw const seconds, &raw mut parts);
        parts
    };
    format!(
        "{:04}-{:02}-{:02} {:02}:{:02}:{:02}",
        parts.tm_year + 1900,
        parts.tm_mon + 1,
        parts.tm_mday,
        parts.tm_hour,
        parts.tm_min,
        parts.tm_sec
    )
}

fn phase(progress: &Progress) -> &'static str {
    match progress.phase {
        Phase::Prepare => "prepare",
        Phase::Copy => "copy",
        Phase::Converge => "converge",
        Phase::Cut => "cut",
        Phase::Audit => "audit",
        Phase::Publish => "publish",
        Phase::Done => "done",
    }
}

/// What a value is made of: the backup that runs, if one does, and the others.
struct Now {
    progress: Option<Progress>,
    history: MutexGuard<'static, Option<History>>,
}

impl Now {
    fn running(&self, value: impl Fn(&Progress) -> u64) -> String {
        self.progress.as_ref().map_or_else(|| "0".to_owned(), |progress| value(progress).to_string())
    }

    fn past(&self, value: impl Fn(&History) -> String) -> String {
        self.history.as_ref().map_or_else(String::new, value)
    }

    fn time(&self, value: impl Fn(&History) -> Option<SystemTime>) -> String {
        self.past(|history| value(history).map_or_else(String::new, utc))
    }
}

fn answer(variable: *mut [usize; 3], room: *mut c_char, value: impl FnOnce(&Now) -> String) -> c_int {
    let progress = Library::find().ok().and_then(|library| library.progress());
    let progress = progress.filter(|_| history().as_ref().is_some_and(|history| history.running));
    let value = value(&Now { progress, history: history() });
    let len = value.len().min(ROOM - 1);
    // SAFETY: the server gives a variable to fill in and room for so many bytes.
    unsafe {
        std::ptr::copy_nonoverlapping(value.as_ptr(), room.cast::<u8>(), len);
        *room.add(len) = 0;
        (*variable)[1] = room as usize;
        (*variable)[2] = CHAR | GLOBAL;
    }
    0
}

macro_rules! status {
    ($($name:literal: $value:expr;)*) => {
        type Function = extern "C" fn(Thd, *mut [usize; 3], *mut c_char, *mut c_void, c_int) -> c_int;
        const VARIABLES: &[(&CStr, Function)] = &[$(($name, {
            extern "C" fn show(_: Thd, variable: *mut [usize; 3], room: *mut c_char, _: *mut c_void, _: c_int) -> c_int {
                answer(variable, room, $value)
            }
            show
        })),*];
    };
}

status! {
    c"tokudb_backup_state": |now| {
        let running = now.history.as_ref().is_some_and(|history| history.running);
        if running { "running" } else { "idle" }.to_owned()
    };
    c"tokudb_backup_attach": |_| library::way().to_owned();
    c"tokudb_backup_phase": |now| now.progress.as_ref().map_or("", phase).to_owned();
    c"tokudb_backup_percent": |now| now.running(|p| (p.fraction * 100.0) as u64);
    c"tokudb_backup_bytes_done": |now| now.running(|p| p.bytes_done);
    c"tokudb_backup_bytes_total": |now| now.running(|p| p.bytes_total);
    c"tokudb_backup_files_done": |now| now.running(|p| p.files_done);
    c"tokudb_backup_files_total": |now| now.running(|p| p.files_total);
    c"tokudb_backup_lag": |now| now.running(|p| p.lag);
    c"tokudb_backup_rate": |now| now.running(|p| p.rate);
    c"tokudb_backup_eta_seconds": |now| match &now.progress {
        Some(p) if p.eta_ms != u64::MAX => (p.eta_ms / 1000).to_string(),
        _ => String::new(),
    };
    c"tokudb_backup_last_start": |now| now.time(|h| h.started);
    c"tokudb_backup_last_end": |now| now.time(|h| h.ended);
    c"tokudb_backup_last_directory": |now| now.past(|h| h.directory.clone());
    c"tokudb_backup_last_result": |now| now.past(|h| h.failure.as_ref().map_or(0, |f| f.number).to_string());
    c"tokudb_backup_last_result_string": |now| {
        now.past(|h| h.failure.as_ref().map_or_else(String::new, |f| f.text.clone()))
    };
    c"tokudb_backup_last_good_end": |now| now.time(|h| h.good_ended);
    c"tokudb_backup_last_good_directory": |now| now.past(|h| h.good_directory.clone());
    c"tokudb_backup_last_good_freeze_microseconds": |now| now.past(|h| (h.freeze_ns / 1000).to_string());
}

static ARRAY: [AtomicUsize; 3 * (VARIABLES.len() + 1)] =
    [const { AtomicUsize::new(0) }; 3 * (VARIABLES.len() + 1)];

/// Fills in the array that the server reads, and returns its address.
pub(crate) fn declare() -> usize {
    for (words, (name, function)) in ARRAY.chunks(3).zip(VARIABLES) {
        words[0].store(name.as_ptr() as usize, Ordering::Relaxed);
        words[1].store(*function as *const () as usize, Ordering::Relaxed);
        words[2].store(FUNCTION | GLOBAL, Ordering::Relaxed);
    }
    ARRAY.as_ptr() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_sql_does() {
        let at = |seconds| utc(UNIX_EPOCH + std::time::Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01 00:00:00");
        assert_eq!(at(951_827_696), "2000-02-29 12:34:56");
    }
}
