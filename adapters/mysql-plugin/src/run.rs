//! One backup, from the statement that asks for it to its end.

use std::ffi::{CStr, CString, OsStr, OsString, c_char, c_int, c_void};
use std::fs::{self, DirBuilder, Permissions};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::copies::{self, Copies};
use crate::declarations::{HOTBACKUP_MANIFEST_IN_FILE, Pair, Phase, Progress, Report};
use crate::host::{self, Server};
use crate::keys;
use crate::library::{Failure, Library};
use crate::lock::{Locking, Rested};
use crate::positions::{self, BINLOG_INFO, SLAVE_INFO};
use crate::regex::Regex;
use crate::restore::{self, RESTORE};
use crate::sources::{Source, Sources};
use crate::status;
use crate::tablespaces;
use crate::variable::Thd;
use crate::variables::Wishes;

/// Left out of every backup, as paths below a source: what says that a server is running, and InnoDB's temporary tablespaces,
/// which it makes anew when it starts.
const LEFT_OUT: [&CStr; 3] = [c"^/[^/]+\\.pid$", c"^/ibtmp1$", c"^/#innodb_temp(/|$)"];

/// The names of the engine's own entries in a backup (hotbackup's documentation).
const MANIFEST: &str = "hotbackup-manifest.json";
const INCOMPLETE: &str = "HOTBACKUP-INCOMPLETE";

/// Backs the server up to `directory`, on the thread of `thd`.
pub(crate) fn backup(thd: Thd, directory: &[u8], wishes: &Wishes) -> Result<(), Failure> {
    status_of(directory, || {
        let library = Library::find()?;
        let server = Server::here().ok_or_else(|| Failure::new(libc::ENOSYS, "this server is not known"))?;
        let exclude = wishes.exclude.as_deref().map(Regex::new).transpose()?;
        let is_excluded = |path: &Path| exclude.as_ref().is_some_and(|exclude| exclude.is_in(&c_path(path)));
        let sources = Sources::of(server, &is_excluded)?;
        let destination = Destination::claim(directory, wishes, &sources.list)?;
        let outcome = run(thd, library, &sources, &destination, wishes, exclude.as_ref()).and_then(
            |(report, rested)| {
                sources.check(&destination.parts, &is_excluded)?;
                tablespaces::check(server, &destination.parts)?;
                let copies = Copies { sources: &sources.list, directory: &destination.path };
                complete(server, copies, rested.as_ref()).map(|()| report)
            },
        );
        match &outcome {
            Ok(_) => keys::warnings(server, &sources)
                .iter()
                .for_each(|text| host::log(&format!("warning: {text}"))),
            Err(_) => destination.abandon(),
        }
        outcome
    })
}

/// Notes for the status variables what comes of `backup`. One that is refused because another one runs leaves no trace.
fn status_of(directory: &[u8], backup: impl FnOnce() -> Result<Report, Failure>) -> Result<(), Failure> {
    use std::sync::atomic::{AtomicBool, Ordering};
    static RUNNING: AtomicBool = AtomicBool::new(false);
    if RUNNING.swap(true, Ordering::AcqRel) {
        return Err(Failure::new(libc::EBUSY, "Another backup is in progress."));
    }
    status::begun(&String::from_utf8_lossy(directory));
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(backup));
    let outcome =
        outcome.unwrap_or_else(|_| Err(Failure::new(libc::EINVAL, "the plugin panicked: please report it")));
    let outcome = outcome.map(|report| report.freeze_ns);
    status::ended(&outcome);
    RUNNING.store(false, Ordering::Release);
    outcome.map(drop)
}

/// The directory that receives a backup, with a directory in it for every source.
struct Destination {
    path: PathBuf,
    /// It was made for this backup.
    is_new: bool,
    parts: Vec<PathBuf>,
}

pub(crate) fn failed<'a>(what: &'a str, path: &'a Path) -> impl Fn(std::io::Error) -> Failure + 'a {
    move |e| {
        Failure::new(e.raw_os_error().unwrap_or(libc::EIO), format!("cannot {what} {}: {e}", path.display()))
    }
}

impl Destination {
    fn claim(directory: &[u8], wishes: &Wishes, sources: &[Source]) -> Result<Destination, Failure> {
        let given = PathBuf::from(OsString::from_vec(directory.to_vec()));
        let path = resolve(&given)?;
        if let Some(prefix) = &wishes.allowed_prefix {
            let prefix = Path::new(OsStr::from_bytes(prefix));
            let resolved = fs::canonicalize(prefix).map_err(failed("find the allowed prefix", prefix))?;
            if !path.starts_with(&resolved) {
                let text =
                    format!("{} does not lie below {}, the allowed prefix", path.display(), prefix.display());
                return Err(Failure::new(libc::EACCES, text));
            }
        }
        if let Some(source) = sources.iter().find(|source| path.starts_with(&source.path)) {
            let text = format!("{} is a child of {}", path.display(), source.path.display());
            return Err(Failure::new(libc::EINVAL, text));
        }
        let is_new = match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => true,
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                check_empty(&path)?;
                false
            }
            Err(e) => return Err(failed("make the directory", &path)(e)),
        };
        let mut destination = Destination { path, is_new, parts: Vec::new() };
        match destination.make_parts(sources) {
            Ok(()) => Ok(destination),
            Err(failure) => {
                destination.abandon();
                Err(failure)
            }
        }
    }

    fn make_parts(&mut self, sources: &[Source]) -> Result<(), Failure> {
        let private = Permissions::from_mode(0o700);
        fs::set_permissions(&self.path, private).map_err(failed("set the mode of", &self.path))?;
        for source in sources {
            let part = Copies::part(&self.path, source);
            DirBuilder::new().mode(0o700).create(&part).map_err(failed("make the directory", &part))?;
            self.parts.push(part);
        }
        Ok(())
    }

    /// Leaves nothing behind of a backup that copied nothing. What was copied stays, marked as incomplete.
    fn abandon(&self) {
        self.parts.iter().for_each(|part| drop(fs::remove_dir(part)));
        if self.is_new {
            let _ = fs::remove_dir(&self.path);
        }
    }
}

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap_or_default()
}

/// The path without links and dots; its last component need not exist.
fn resolve(given: &Path) -> Result<PathBuf, Failure> {
    if given.as_os_str().is_empty() {
        return Err(Failure::new(libc::EINVAL, "no directory is named"));
    }
    if given.as_os_str().as_bytes().contains(&0) {
        return Err(Failure::new(libc::EINVAL, "the name of the directory holds a NUL"));
    }
    if !given.is_absolute() {
        let text = "the name of the directory has to begin with a slash";
        return Err(Failure::new(libc::EINVAL, text));
    }
    match fs::canonicalize(given) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        found => return found.map_err(failed("find", given)),
    }
    let (Some(parent), Some(name)) = (given.parent(), given.file_name()) else {
        let text = format!("{} is no name for a directory", given.display());
        return Err(Failure::new(libc::EINVAL, text));
    };
    let missing = "find the directory that is to hold it,";
    Ok(fs::canonicalize(parent).map_err(failed(missing, parent))?.join(name))
}

fn check_empty(path: &Path) -> Result<(), Failure> {
    if !path.is_dir() {
        let text = format!("Backup destination {} is not a directory", path.display());
        return Err(Failure::new(libc::EINVAL, text));
    }
    let mut is_empty = true;
    for entry in fs::read_dir(path).map_err(failed("read", path))?.flatten() {
        is_empty = false;
        let mark = entry.path().join(INCOMPLETE);
        if mark.is_dir() || entry.file_name().as_bytes().ends_with(copies::SUFFIX.as_bytes()) {
            let begun = begun(path, &mark).unwrap_or_else(|| "at an unknown time".into());
            let place = copies::quoted(&path.to_string_lossy());
            let text = format!(
                "{} holds a backup, begun {begun}, that did not complete; remove it with: rm -rf {place}",
                path.display()
            );
            return Err(Failure::new(libc::EINVAL, text));
        }
    }
    if !is_empty {
        let text = format!("Backup directory {} is not empty", path.display());
        return Err(Failure::new(libc::EINVAL, text));
    }
    Ok(())
}

/// When a backup began that did not complete: as the engine's mark says, or its manifest, which comes before the mark goes.
fn begun(path: &Path, mark: &Path) -> Option<String> {
    if let Ok(text) = fs::read_to_string(mark.join("README.txt")) {
        return text.lines().find_map(|line| line.strip_prefix("begun: ")).map(str::to_owned);
    }
    let mut head = Vec::new();
    fs::File::open(path.join(MANIFEST)).ok()?.take(4096).read_to_end(&mut head).ok()?;
    let head = String::from_utf8_lossy(&head);
    let (_, rest) = head.split_once("\"started\":\"")?;
    rest.split_once('"').map(|(time, _)| time.to_owned())
}

/// Writes down beside the copies what they hold and how they are used, and gives them their names.
fn complete(server: Server, copies: Copies<'_>, rested: Option<&Rested>) -> Result<(), Failure> {
    let position = host::has_binary_log().then(|| positions::of_binary_log(copies));
    if let Some(position) = &position {
        if let Err(reason) = position {
            host::log(&format!("warning: the backup has no position in the binary log: {reason}"));
        }
        copies.write(BINLOG_INFO, positions::binlog_info(position, server).as_bytes())?;
    }
    let gtids = position.as_ref().and_then(|position| position.as_ref().ok()).map(|position| &position.gtids);
    let replica = positions::slave_info(copies, server, gtids, rested);
    if let Some(text) = &replica {
        copies.write(SLAVE_INFO, text.as_bytes())?;
    }
    let restore = restore::describe(copies, server, position.as_ref(), replica.is_some());
    if restore.leads > 0 {
        let (leads, place) = (restore.leads, copies.directory.display());
        host::log(&format!(
            "warning: {leads} paths in the backup lead to this server: see {place}/{RESTORE}"
        ));
    }
    copies.write(RESTORE, restore.text.as_bytes())?;
    copies.publish()
}

/// What the callbacks work with.
struct Run<'a> {
    thd: Thd,
    exclude: Option<&'a Regex>,
    sources: &'a Sources,
    /// What the processlist shows, and what it showed before: one who reads it may still be at that.
    state: CString,
    before: CString,
    killed: bool,
    library: Library,
    lock: Locking,
}

fn run(
    thd: Thd,
    library: Library,
    sources: &Sources,
    destination: &Destination,
    wishes: &Wishes,
    exclude: Option<&Regex>,
) -> Result<(Report, Option<Rested>), Failure> {
    let lock = Locking::of(wishes)?;
    let (state, before) = Default::default();
    let mut run = Run { thd, exclude, sources, state, before, killed: false, library, lock };
    let paths: Vec<(CString, CString)> = sources
        .list
        .iter()
        .zip(&destination.parts)
        .map(|(from, to)| (c_path(&from.path), c_path(to)))
        .collect();
    let pairs: Vec<Pair> = paths
        .iter()
        .map(|(source, destination)| Pair { source: source.as_ptr(), destination: destination.as_ptr() })
        .collect();
    let left_out = LEFT_OUT.map(CStr::as_ptr);
    let manifest = c_path(&destination.path.join(MANIFEST));
    let mut options = library.options();
    (options.pairs, options.pair_count) = (pairs.as_ptr(), pairs.len());
    (options.exclude, options.exclude_count) = (left_out.as_ptr(), left_out.len());
    options.exclude_if = Some(leave_out);
    (options.throttle, options.max_lag) = (wishes.throttle, wishes.max_lag);
    (options.threads, options.keep_free) = (wishes.threads, wishes.keep_free);
    (options.manifest_place, options.manifest) = (HOTBACKUP_MANIFEST_IN_FILE, manifest.as_ptr());
    options.on_progress = Some(on_progress);
    options.on_warning = Some(on_warning);
    if run.lock.is_wanted() {
        (options.before_cut, options.after_cut) = (Some(before_cut as _), Some(after_cut as _));
    }
    options.user_data = (&raw mut run).cast();
    let shown = host::show_state(thd, c"tokudb backup".as_ptr());
    // SAFETY: everything lives until this returns; the callbacks are given the `Run` that they expect.
    let outcome = unsafe { library.backup(&options) };
    host::show_state(thd, shown);
    let rested = run.lock.rested.take();
    outcome.map(|report| (report, rested)).map_err(|failure| match (run.killed, run.lock.failure.take()) {
        (true, _) => {
            Failure::new(libc::EINTR, "the statement was killed; what was copied is marked as incomplete")
        }
        (false, of_lock) => of_lock.unwrap_or(failure),
    })
}

/// What `user_data` is.
///
/// # Safety
/// It is that of the options of a backup that runs, and nobody else uses it meanwhile.
unsafe fn run_of<'a>(user_data: *mut c_void) -> &'a mut Run<'a> {
    // SAFETY: callbacks come one at a time, on the thread that called the backup, which keeps the `Run` and leaves it alone.
    unsafe { &mut *user_data.cast::<Run<'_>>() }
}

unsafe extern "C-unwind" fn leave_out(path: *const c_char, user_data: *mut c_void) -> c_int {
    // SAFETY: the library gives a string, and what the options said.
    let (run, path) = unsafe { (run_of(user_data), CStr::from_ptr(path)) };
    let is_excluded = run.exclude.is_some_and(|exclude| exclude.is_in(path));
    c_int::from(is_excluded || run.sources.leave_out(Path::new(OsStr::from_bytes(path.to_bytes()))))
}

unsafe extern "C-unwind" fn on_warning(text: *const c_char, _user_data: *mut c_void) {
    // SAFETY: the library gives a string.
    host::log(&format!("warning: {}", unsafe { CStr::from_ptr(text) }.to_string_lossy()));
}

unsafe extern "C-unwind" fn on_progress(progress: *const Progress, user_data: *mut c_void) -> c_int {
    // SAFETY: the library gives a struct whose string lives until this returns, and what the options said.
    let (run, progress) = unsafe { (run_of(user_data), &*progress) };
    // SAFETY: NULL or a string.
    let file = (!progress.file.is_null()).then(|| unsafe { CStr::from_ptr(progress.file) }.to_string_lossy());
    run.show(describe(progress, file.as_deref()));
    run.killed |= host::is_killed(run.thd);
    c_int::from(run.killed || run.lock.is_lost())
}

unsafe extern "C-unwind" fn before_cut(user_data: *mut c_void) {
    // SAFETY: the library gives what the options said.
    let run = unsafe { run_of(user_data) };
    let fraction = run.library.progress().map_or(0.0, |progress| progress.fraction);
    run.show(format!("{}: {}", done(fraction), run.lock.awaited()));
    let taken = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run.lock.take(run.thd)));
    run.killed |= host::is_killed(run.thd);
    if run.killed || !matches!(taken, Ok(true)) {
        // Without the lock there must be no cut.
        run.library.cancel();
    }
}

unsafe extern "C-unwind" fn after_cut(user_data: *mut c_void) {
    // SAFETY: the library gives what the options said.
    unsafe { run_of(user_data) }.lock.give_back();
}

impl Run<'_> {
    fn show(&mut self, state: String) {
        self.before = std::mem::replace(&mut self.state, host::c_text(&state));
        host::show_state(self.thd, self.state.as_ptr());
    }
}

fn describe(progress: &Progress, file: Option<&str>) -> String {
    let doing = match progress.phase {
        Phase::Prepare => "Preparing backup".to_owned(),
        Phase::Copy => {
            let known = progress.files_total.saturating_sub(progress.files_done);
            let file = file.map_or_else(String::new, |file| format!(" Copying file {file}"));
            let (bytes, files) = (progress.bytes_done, progress.files_done);
            format!("Backup progress {bytes} bytes, {files} files. {known} more files known of.{file}")
        }
        Phase::Converge => format!("Copying what has changed meanwhile, {} bytes", progress.lag),
        Phase::Cut => "Reaching one instant".to_owned(),
        Phase::Audit => "Looking for changes that nobody saw".to_owned(),
        Phase::Publish | Phase::Done => "Syncing the backup".to_owned(),
    };
    format!("{}: {doing}", done(progress.fraction))
}

fn done(fraction: f32) -> String {
    format!("tokudb backup about {:.0}% done", f64::from(fraction * 100.0).floor())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Between the engine's end and the last rename only the names tell, and after a kill before its beginning too.
    #[test]
    fn what_a_failed_run_left_is_refused_with_its_date() {
        let scratch = tempfile::tempdir().expect("a directory");
        let at = |name: &str| scratch.path().join(name);
        check_empty(scratch.path()).expect("it is empty");
        fs::create_dir(at("mysql_data_dir.incomplete")).expect("a directory");
        let refused = || check_empty(scratch.path()).expect_err("it is not complete").text;
        let command = format!("remove it with: rm -rf '{}'", scratch.path().display());
        assert!(refused().contains("begun at an unknown time"), "{}", refused());
        fs::write(at(MANIFEST), "{\"hotbackup_manifest\":1,\"started\":\"2026-11-25T16:00:00Z\",")
            .expect("written");
        assert!(refused().contains("begun 2026-11-25T16:00:00Z, that did not complete"), "{}", refused());
        let mark = at("mysql_data_dir.incomplete").join(INCOMPLETE);
        fs::create_dir(&mark).expect("a directory");
        fs::write(mark.join("README.txt"), "x\nbegun: yesterday\n").expect("written");
        assert!(refused().contains("begun yesterday, that"), "{}", refused());
        assert!(refused().ends_with(&command), "{}", refused());
    }
}
