//! The whole story of a backup: a builder, a running session, a report.
//!
//! [`Backup`] collects what is wanted, [`Backup::start`] arms the capture, [`Session::finish`] copies, converges,
//! cuts and publishes. The work is done by engine threads (`conductor`); the thread that calls us runs the
//! callbacks and waits.

use std::fmt;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::error::Result;
use crate::progress::Progress;
use crate::session::Session;
use crate::throttle::Throttle;

/// How much of the destination's filesystem stays free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepFree {
    /// 5 % of the filesystem, and at least 1 GiB (on a filesystem smaller than 20 GiB: 5 %).
    Default,
    /// So many bytes.
    Bytes(u64),
}

/// Where the manifest goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ManifestPlace {
    /// At the root of the first destination, as `hotbackup-manifest.json`.
    #[default]
    FirstDestination,
    /// To this file, which must not exist.
    File(PathBuf),
    /// Nowhere: the destination holds the tree and nothing else.
    None,
}

/// What becomes of a backup if a file is changed by something that is not captured: a call that we do not see, or another
/// process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnUnseenChange {
    /// The file is copied again, in the freeze if need be, until it has kept still while it was read. If it never does, the
    /// backup fails and names it.
    #[default]
    Retry,
    /// The first such change that is found fails the backup, which names the file.
    Fail,
    /// The file is copied again a few times. If it never keeps still, the backup completes all the same, with a warning, also in
    /// the manifest, that names the file: its copy may mix what it held at different moments.
    Warn,
}

type OnProgress<'a> = Box<dyn FnMut(&Progress) -> ControlFlow<()> + 'a>;
type Exclude<'a> = Box<dyn FnMut(&Path) -> bool + 'a>;
type AtCut<'a> = Box<dyn FnMut() + 'a>;

/// What the caller wants; nothing happens before [`Backup::start`].
///
/// ```no_run
/// use std::ops::ControlFlow;
/// use hotbackup::{Backup, Throttle};
///
/// let report = Backup::from("/var/lib/app").to("/backups/monday")
///     .throttle(Throttle::bytes_per_sec(64 << 20))
///     .on_progress(|p| { println!("{:.0} %", 100.0 * p.fraction()); ControlFlow::Continue(()) })
///     .start()?      // changes are captured from here on
///     .finish()?;    // copies, converges, cuts, publishes
/// println!("frozen for {:?}", report.freeze);
/// # Ok::<(), hotbackup::Error>(())
/// ```
///
/// All callbacks come on the thread that calls [`Backup::start`] and [`Session::finish`], while engine threads work on.
/// They may block for long, and what the program writes inside one is captured like anything else.
pub struct Backup<'a> {
    pub(crate) pairs: Vec<(PathBuf, PathBuf)>,
    pub(crate) exclude: Vec<String>,
    pub(crate) exclude_fn: Option<Exclude<'a>>,
    pub(crate) throttle: Throttle,
    pub(crate) max_lag: Option<u64>,
    pub(crate) max_stall: Duration,
    pub(crate) keep_free: KeepFree,
    pub(crate) threads: usize,
    pub(crate) share_blocks: bool,
    pub(crate) manifest: ManifestPlace,
    pub(crate) on_unseen_change: OnUnseenChange,
    pub(crate) on_progress: Option<OnProgress<'a>>,
    pub(crate) before_cut: Option<AtCut<'a>>,
    pub(crate) after_cut: Option<AtCut<'a>>,
}

/// A source that waits for its destination: see [`Backup::from`].
#[derive(Debug)]
pub struct Source(PathBuf);

impl Source {
    /// Names the directory that receives the copy. It must exist and be empty.
    pub fn to<'a>(self, destination: impl Into<PathBuf>) -> Backup<'a> {
        Backup::new().pair(self.0, destination)
    }
}

impl Default for Backup<'_> {
    fn default() -> Self {
        Backup::new()
    }
}

impl<'a> Backup<'a> {
    /// A backup with no source yet: see [`Backup::pair`].
    pub fn new() -> Backup<'a> {
        Backup {
            pairs: Vec::new(),
            exclude: Vec::new(),
            exclude_fn: None,
            throttle: Throttle::UNLIMITED,
            max_lag: None,
            max_stall: Duration::from_secs(1),
            keep_free: KeepFree::Default,
            threads: 2,
            share_blocks: false,
            manifest: ManifestPlace::FirstDestination,
            on_unseen_change: OnUnseenChange::Retry,
            on_progress: None,
            before_cut: None,
            after_cut: None,
        }
    }

    /// A backup of the directory tree `source`; follow it with [`Source::to`].
    #[allow(clippy::should_implement_trait)]
    pub fn from(source: impl Into<PathBuf>) -> Source {
        Source(source.into())
    }

    /// Adds a source and its destination. All pairs show the same instant.
    pub fn pair(mut self, source: impl Into<PathBuf>, destination: impl Into<PathBuf>) -> Self {
        self.pairs.push((source.into(), destination.into()));
        self
    }

    /// Leaves out every entry whose path below its source, which begins with a slash (`/db/app.db-shm`), matches this
    /// regular expression ([syntax](https://docs.rs/regex/latest/regex/#syntax)). A directory that matches is left out
    /// with all that is in it. May be called several times.
    pub fn exclude(mut self, pattern: impl Into<String>) -> Self {
        self.exclude.push(pattern.into());
        self
    }

    /// Leaves out every entry for whose full source path `leave_out` returns true. It is asked at least once for each
    /// entry that no [`Backup::exclude`] pattern matches, on the calling thread.
    pub fn exclude_if(mut self, leave_out: impl FnMut(&Path) -> bool + 'a) -> Self {
        self.exclude_fn = Some(Box::new(leave_out));
        self
    }

    /// Bounds what the first copy writes; see [`SessionHandle::set_throttle`](crate::SessionHandle::set_throttle). Unlimited by default.
    pub fn throttle(mut self, throttle: Throttle) -> Self {
        self.throttle = throttle;
        self
    }

    /// The most bytes that files already copied may owe the destination: over it, calls of the program wait. 0 makes
    /// every write of a copied file wait until it is on the backup file. By default the bound glides down by itself
    /// while the session converges.
    pub fn max_lag(mut self, bytes: u64) -> Self {
        self.max_lag = Some(bytes);
        self
    }

    /// The longest that any call of the program may be made to wait (1 s by default). Past it the session fails and
    /// the call goes on.
    pub fn max_stall(mut self, limit: Duration) -> Self {
        self.max_stall = limit;
        self
    }

    /// How much of the destination's filesystem stays free.
    pub fn keep_free(mut self, keep: KeepFree) -> Self {
        self.keep_free = keep;
        self
    }

    /// How many threads copy (2 by default, at least 1, at most 64).
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads.clamp(1, 64);
        self
    }

    /// Lets source and destination share blocks where the filesystem can (`FICLONE`). Off by default, because
    /// afterwards overwriting existing blocks of the source allocates new ones, and so can fail on a full filesystem.
    pub fn share_blocks(mut self, share: bool) -> Self {
        self.share_blocks = share;
        self
    }

    /// Where the manifest goes.
    pub fn manifest(mut self, place: ManifestPlace) -> Self {
        self.manifest = place;
        self
    }

    /// What becomes of the backup if a file is changed by something that is not captured.
    pub fn on_unseen_change(mut self, what: OnUnseenChange) -> Self {
        self.on_unseen_change = what;
        self
    }

    /// Is told how far the session has come: at every change of phase and at least every 100 ms while work goes on.
    /// [`ControlFlow::Break`] cancels the session. It is first called before anything is checked
    /// ([`Phase::Prepare`](crate::Phase::Prepare)), and a second time when changes are captured and nothing is copied yet ([`Phase::Copy`](crate::Phase::Copy));
    /// the copying begins when that second call has returned.
    pub fn on_progress(mut self, progress: impl FnMut(&Progress) -> ControlFlow<()> + 'a) -> Self {
        self.on_progress = Some(Box::new(progress));
        self
    }

    /// Is called when little is left to copy and before the cut: the place to take locks or to quiesce. Called once,
    /// and again only if the audit behind the cut finds a change that nobody saw, so that the cut has to be repeated.
    pub fn before_cut(mut self, call: impl FnMut() + 'a) -> Self {
        self.before_cut = Some(Box::new(call));
        self
    }

    /// Is called just after the cut, or when there will be none, once for each call of `before_cut`: the place to give
    /// back what that took.
    pub fn after_cut(mut self, call: impl FnMut() + 'a) -> Self {
        self.after_cut = Some(Box::new(call));
        self
    }

    /// Checks everything and begins to capture changes.
    ///
    /// # Errors
    /// [`Error::Busy`](crate::Error::Busy) while another session runs; else what was wrong with the arguments. Nothing was changed then.
    pub fn start(self) -> Result<Session<'a>> {
        Session::start(self)
    }
}

impl fmt::Debug for Backup<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backup").field("pairs", &self.pairs).finish_non_exhaustive()
    }
}

/// How long each part of a session took.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
#[allow(missing_docs)]
pub struct PhaseTimes {
    pub prepare: Duration,
    pub copy: Duration,
    pub converge: Duration,
    pub cut: Duration,
    pub audit: Duration,
    pub publish: Duration,
}

/// Something that the reader of a report should know, though the backup is right.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Warning {
    /// The file or directory, if it is about one.
    pub path: Option<PathBuf>,
    /// One sentence.
    pub text: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => write!(f, "{}: {}", path.display(), self.text),
            None => f.write_str(&self.text),
        }
    }
}

/// What a completed backup holds and what it took.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Report {
    /// Regular files in the backup, each inode counted once.
    pub files: u64,
    /// Directories, the roots included.
    pub directories: u64,
    /// Bytes of data written by the first copy.
    pub bytes_copied: u64,
    /// Bytes written again because they had changed meanwhile.
    pub bytes_recopied: u64,
    /// The instant that the backup shows.
    pub cut: SystemTime,
    /// How long calls of the program had to wait around it.
    pub freeze: Duration,
    /// How many attempts the cut took; 1 is the rule.
    pub cut_attempts: u32,
    /// Calls of the program on files and names anywhere, in the sources or not, that the session has captured; requests to
    /// `io_submit`, io_uring and the like are not counted.
    pub captured_calls: u64,
    /// How long each phase took.
    pub phases: PhaseTimes,
    /// Files that had to be copied again because something that we do not see had changed them.
    pub unseen: Vec<PathBuf>,
    /// What else the reader should know.
    pub warnings: Vec<Warning>,
    /// Where the manifest lies.
    pub manifest: Option<PathBuf>,
}
