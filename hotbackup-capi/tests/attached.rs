//! The library attached to a program in mid-run: it captures every call, and its copies are what the linked library's are.
//!
//! Method: threads of this program, which is not linked to the library, change files all the time. The library is loaded and
//! attached at some moment, takes a backup, and is detached; the copies are judged as in the differential test of the crate
//! `hotbackup`, with its operations and its model. And with the program under `strace`, as many calls are captured as system
//! calls were made. `HOTBACKUP_SESSIONS` and `HOTBACKUP_SEED` are those of that test.

#[path = "../../hotbackup/tests/common/mod.rs"]
mod common;
#[allow(
    dead_code,
    unused_imports,
    reason = "a program that finds the library at run time needs a part of it"
)]
#[path = "../src/declarations.rs"]
mod declarations;
mod library;

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_void};
use std::mem::MaybeUninit;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::ptr;
use std::sync::{Barrier, OnceLock};
use std::time::{Duration, Instant};

use common::calls::{self, Name};
use common::load::Mix;
use common::rng::Rng;
use common::sessions::{AtCut, Lanes, Outcome, Taker, Variant, stopped, through};
use common::{Place, Scratch};
use declarations::{HOTBACKUP_AUTOMATIC, Options, Pair, Report, Status};

type Attach = unsafe extern "C" fn(*mut c_void) -> Status;
type Detach = unsafe extern "C" fn() -> Status;
type OptionsInit = unsafe extern "C" fn(*mut Options, usize) -> Status;
type BackUp = unsafe extern "C-unwind" fn(*const Options, *mut Report) -> Status;
type LastError = unsafe extern "C" fn() -> *const c_char;

/// The functions of the library that this program finds in it.
struct Loaded {
    attach: Attach,
    detach: Detach,
    options_init: OptionsInit,
    backup: BackUp,
    last_error: LastError,
}

impl Loaded {
    /// Loaded at the first call, and never unloaded.
    fn get() -> &'static Loaded {
        static LOADED: OnceLock<Loaded> = OnceLock::new();
        LOADED.get_or_init(|| {
            let path = calls::c(library::built().to_str().expect("an ordinary path"));
            // SAFETY: the library is ours, and its constructors do nothing to this program.
            let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
            assert!(!library.is_null(), "the library can be loaded");
            let find = |name: &CStr| {
                // SAFETY: the name is NUL-terminated and the library stays loaded.
                let found = unsafe { libc::dlsym(library, name.as_ptr()) };
                assert!(!found.is_null(), "{name:?}");
                found
            };
            // SAFETY: the types are those of the header, which the library's own test keeps up to date.
            unsafe {
                Loaded {
                    attach: std::mem::transmute::<*mut c_void, Attach>(find(c"hotbackup_attach")),
                    detach: std::mem::transmute::<*mut c_void, Detach>(find(c"hotbackup_detach")),
                    options_init: std::mem::transmute::<*mut c_void, OptionsInit>(find(
                        c"hotbackup_options_init",
                    )),
                    backup: std::mem::transmute::<*mut c_void, BackUp>(find(c"hotbackup_backup")),
                    last_error: std::mem::transmute::<*mut c_void, LastError>(find(c"hotbackup_last_error")),
                }
            }
        })
    }

    fn attach(&self) {
        // SAFETY: it may be NULL.
        let status = unsafe { (self.attach)(ptr::null_mut()) };
        assert_eq!(status, Status::Ok, "{}", self.last_error());
    }

    fn detach(&self) {
        // SAFETY: it takes nothing.
        let status = unsafe { (self.detach)() };
        assert_eq!(status, Status::Ok, "{}", self.last_error());
    }

    fn last_error(&self) -> String {
        // SAFETY: a string that lives until this thread's next call of the library.
        unsafe { CStr::from_ptr((self.last_error)()) }.to_string_lossy().into_owned()
    }

    fn back_up(
        &self,
        pairs: &[(&Path, &Path)],
        settings: impl FnOnce(&mut Options),
        before_cut: AtCut<'_>,
        after_cut: AtCut<'_>,
    ) -> Result<Report, (Status, String)> {
        let name = |path: &Path| CString::new(path.to_str().expect("ordinary")).expect("no NUL");
        let names: Vec<_> = pairs.iter().map(|&(from, to)| (name(from), name(to))).collect();
        let pairs: Vec<_> =
            names.iter().map(|(from, to)| Pair { source: from.as_ptr(), destination: to.as_ptr() }).collect();
        let mut calls = Calls { before_cut, after_cut };
        let mut options = MaybeUninit::<Options>::uninit();
        // SAFETY: all zeros is a report of no size.
        let mut report: Report = unsafe { std::mem::zeroed() };
        report.size = size_of::<Report>();
        // SAFETY: the options are filled before they are read; names, pairs and callbacks outlive the session.
        unsafe {
            let status = (self.options_init)(options.as_mut_ptr(), size_of::<Options>());
            assert_eq!(status, Status::Ok);
            let options = options.assume_init_mut();
            options.pairs = pairs.as_ptr();
            options.pair_count = pairs.len();
            options.keep_free = 0;
            options.before_cut = Some(before);
            options.after_cut = Some(after);
            options.user_data = (&raw mut calls).cast();
            settings(options);
            match (self.backup)(options, &raw mut report) {
                Status::Ok => Ok(report),
                status => Err((status, self.last_error())),
            }
        }
    }
}

/// What the callbacks of a session call.
struct Calls<'a> {
    before_cut: AtCut<'a>,
    after_cut: AtCut<'a>,
}

unsafe extern "C-unwind" fn before(calls: *mut c_void) {
    // SAFETY: the options say so, and one thread calls both.
    (unsafe { &mut *calls.cast::<Calls<'_>>() }.before_cut)();
}

unsafe extern "C-unwind" fn after(calls: *mut c_void) {
    // SAFETY: as above.
    (unsafe { &mut *calls.cast::<Calls<'_>>() }.after_cut)();
}

/// The library, attached for one session at a time.
struct Attached;

impl Taker for Attached {
    const PROGRAM: &str = "-p hotbackup-capi --test attached";
    // The threads' were made before the library was there, which docs/limits.md says is refused.
    const RINGS: bool = false;

    fn back_up(
        &self,
        mix: &Mix,
        from: &[PathBuf],
        to: &[PathBuf],
        before_cut: AtCut<'_>,
        after_cut: AtCut<'_>,
    ) -> Outcome {
        let library = Loaded::get();
        std::thread::sleep(Duration::from_micros(Rng::new(mix.seed ^ 0xA7).below(20_000)));
        library.attach();
        let pairs: Vec<_> = from.iter().map(PathBuf::as_path).zip(to.iter().map(PathBuf::as_path)).collect();
        let settings = |options: &mut Options| {
            options.throttle = mix.throttle.rate();
            options.max_lag = mix.max_lag.unwrap_or(HOTBACKUP_AUTOMATIC);
            options.threads = mix.copiers as u32;
            options.max_stall_ms = 20_000;
        };
        let outcome = match library.back_up(&pairs, settings, before_cut, after_cut) {
            Ok(report) => Outcome::Done(report.unseen_files as usize, format!("{report:?}")),
            Err((Status::Unseen, text)) => Outcome::Unseen(text),
            Err((status, text)) => Outcome::Failed(format!("{status:?}: {text}")),
        };
        library.detach();
        outcome
    }
}

#[test]
fn a_copy_equals_the_source_that_stands_still() {
    let _alone = common::alone();
    for seed in common::seeds(12) {
        stopped(&Attached, seed, Variant::Parked, "stands_still");
    }
}

#[test]
fn a_copy_equals_the_source_as_it_was_at_the_cut() {
    let _alone = common::alone();
    for seed in common::seeds(12) {
        stopped(&Attached, seed, Variant::Released, "as_it_was_at_the_cut");
    }
}

#[test]
fn a_copy_is_a_prefix_of_what_happened() {
    let _alone = common::alone();
    for seed in common::seeds(12) {
        through(&Attached, seed, Lanes::One, "prefix_of_what_happened");
    }
}

#[test]
fn a_copy_shows_one_instant_of_all_threads() {
    let _alone = common::alone();
    for seed in common::seeds(12) {
        through(&Attached, seed, Lanes::Each, "one_instant_of_all_threads");
    }
}

/// Changes of every kind that a worker makes, one system call each.
const TRACED: &str = "pwrite64,write,pwritev,pwritev2,ftruncate,fallocate,openat,renameat,renameat2,linkat,unlinkat,mkdirat,\
                      symlinkat,fchmod,fsetxattr,utimensat";

/// Makes calls on names of its own below `source`; returns how many.
fn work(source: &Path, number: usize) -> u64 {
    let own = |what: &str| calls::c(source.join(format!("{what}{number}")).to_str().expect("ordinary"));
    let (file, other, link, directory, symlink) =
        (own("file"), own("other"), own("link"), own("directory"), own("symlink"));
    let at = |path| Name { dir: libc::AT_FDCWD, path };
    let mut made = 0;
    for round in 0..200i64 {
        let fd =
            calls::openat(at(&file), libc::O_CREAT | libc::O_TRUNC | libc::O_RDWR, 0o600).expect("opened");
        let fd = fd as RawFd;
        let results = [
            calls::write(fd, b"at the position"),
            calls::pwrite(fd, &[7; 5000], round * 100),
            calls::ftruncate(fd, 4000 + round),
            calls::fallocate(fd, 0, 0, 8192),
            calls::link(at(&file), at(&link), 0),
            calls::rename(at(&file), at(&other), 0),
            calls::symlink(&link, at(&symlink)),
            calls::mkdir(at(&directory), 0o700),
            calls::fchmod(fd, 0o640),
            calls::unlink(at(&directory), libc::AT_REMOVEDIR),
            calls::unlink(at(&other), 0),
            calls::unlink(at(&link), 0),
            calls::unlink(at(&symlink), 0),
        ];
        for (number, result) in results.iter().enumerate() {
            assert!(result.is_ok(), "call {number}: {result:?}");
        }
        made += 1 + results.len() as u64;
        calls::close(fd).expect("closed");
    }
    made
}

/// Traces this process, all its threads, until the calls are counted.
struct Strace {
    process: Child,
    output: PathBuf,
}

impl Strace {
    fn attach(output: PathBuf) -> Strace {
        calls::let_anybody_trace();
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-e", TRACED, "-o"]).arg(&output);
        strace.args(["-p", &std::process::id().to_string()]).stdin(Stdio::null());
        let process = strace.spawn().expect("strace runs");
        let is_traced = |task: std::fs::DirEntry| {
            let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
            !status.contains("TracerPid:\t0\n")
        };
        let all = || std::fs::read_dir("/proc/self/task").expect("tasks").flatten().all(is_traced);
        let begun = Instant::now();
        while !all() {
            assert!(begun.elapsed() < Duration::from_secs(20), "strace attaches");
            std::thread::sleep(Duration::from_millis(5));
        }
        Strace { process, output }
    }

    /// Detaches it; returns how many calls each thread has made.
    fn counts(mut self) -> BTreeMap<u32, u64> {
        let number = libc::pid_t::try_from(self.process.id()).expect("a process id");
        calls::end(number);
        self.process.wait().expect("strace ends");
        let text = std::fs::read_to_string(&self.output).expect("its output");
        let mut counts = BTreeMap::new();
        // A call that another thread's came into the middle of has two lines.
        for line in text.lines().filter(|line| !line.contains(" resumed>")) {
            let thread = line.split_whitespace().next().and_then(|number| number.parse().ok());
            *counts.entry(thread.expect("a thread's number")).or_default() += 1;
        }
        counts
    }
}

#[test]
fn as_many_calls_are_captured_as_strace_sees() {
    const WORKERS: usize = 4;
    let _alone = common::alone();
    let place = Place::new(Scratch::new(true), "strace");
    let output = tempfile::NamedTempFile::new().expect("a file");
    let library = Loaded::get();
    library.attach();
    let gate = Barrier::new(WORKERS + 1);
    let (made, threads) = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|number| {
                let (gate, source) = (&gate, &place.source);
                scope.spawn(move || {
                    gate.wait();
                    let made = work(source, number);
                    gate.wait();
                    (made, calls::thread_id())
                })
            })
            .collect();
        let mut strace = None;
        let mut let_work = || {
            // Once: the cut may be tried again.
            if strace.is_none() {
                strace = Some(Strace::attach(output.path().to_owned()));
                gate.wait();
                gate.wait();
            }
        };
        let pairs = [(place.source.as_path(), place.destination.as_path())];
        let report = library.back_up(&pairs, |_| {}, &mut let_work, &mut || {}).expect("the backup");
        let seen = strace.expect("before_cut was called").counts();
        let done: Vec<_> = workers.into_iter().map(|worker| worker.join().expect("a worker")).collect();
        let made: u64 = done.iter().map(|&(made, _)| made).sum();
        let traced: u64 = done.iter().map(|(_, thread)| seen.get(thread).copied().unwrap_or(0)).sum();
        assert_eq!(traced, made, "strace sees all that the workers do");
        assert_eq!(report.captured_calls, made, "captured, of the calls that strace sees");
        (made, done.len())
    });
    library.detach();
    common::say(&format!("  {made} calls of {threads} threads, as many captured"));
}
