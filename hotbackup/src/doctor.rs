//! What a backup of the running process could promise, found out without making one.
//!
//! The crate knows the program, rings, mappings, streams, other processes and the kernel; of hooks and loaded objects an adapter
//! tells ([`crate::intercept::register_examiner`]). Everything is looked at on a thread with a descriptor table of its own, from
//! outside: nothing is opened in the host's table, nothing is marked, and no call is held up. So this can be asked at any time.

mod files;
mod kernel;
mod program;

use std::fmt;
use std::path::{Path, PathBuf};

use crate::async_io;
use crate::conductor::resolve_source;
use crate::error::Result;
use crate::intercept;
use crate::verify::on_own_thread;

/// What a [`Finding`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// How calls of the program are captured.
    Hooks,
    /// A loaded object, or the program itself, whose calls are not.
    Object,
    /// Instructions in a loaded object's text that look like system calls of its own.
    RawCalls,
    /// A ring in which the kernel tells of asynchronous requests: of io_uring, or of native AIO.
    Ring,
    /// A file of the sources that this process has mapped shared and writable.
    Mapping,
    /// A file of the sources that this process writes through a stream of the C library.
    Stream,
    /// A file of the sources that another process has open for writing, or mapped shared and writable.
    Process,
    /// Something that the kernel offers or refuses.
    System,
}

/// What a [`Finding`] means for a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Verdict {
    /// It is captured, or as it should be.
    Captured,
    /// The backup is right; its reader should know this.
    Note,
    /// Changes are found and copied again; one that never comes to rest fails the backup, which names the file.
    CopiedAgain,
    /// A backup is refused, or fails and says why.
    Refuses,
    /// Whether changes go by cannot be told. See `docs/limits.md` for when a copy is wrong then.
    Untold,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::Captured => "captured",
            Verdict::Note => "note",
            Verdict::CopiedAgain => "copied again",
            Verdict::Refuses => "refuses",
            Verdict::Untold => "cannot be told",
        })
    }
}

/// One thing that [`doctor`] has found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// What it is about.
    pub kind: Kind,
    /// What it means for a backup.
    pub verdict: Verdict,
    /// The file, object or facility.
    pub subject: PathBuf,
    /// What was found and what that means, to go behind the subject.
    pub text: String,
}

impl Finding {
    /// For adapters: see [`crate::intercept::register_examiner`].
    pub fn new(
        kind: Kind,
        verdict: Verdict,
        subject: impl Into<PathBuf>,
        text: impl Into<String>,
    ) -> Finding {
        Finding { kind, verdict, subject: subject.into(), text: text.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.verdict, self.subject.display(), self.text)
    }
}

/// Examines the running process: how its calls are captured and what goes by that, and which rings, mappings, streams and other
/// processes there are on the files of `sources`, of which there may be none. Each finding says what it means for a backup.
///
/// Changes nothing, and can be asked at any time from any thread, during a session too; what it says holds for that moment. The
/// sources are listed if there is anything to look for in them.
///
/// # Errors
/// A source is not a directory, or something in it cannot be listed.
pub fn doctor<P: AsRef<Path>>(sources: impl IntoIterator<Item = P>) -> Result<Vec<Finding>> {
    let sources: Vec<PathBuf> =
        sources.into_iter().map(|source| resolve_source(source.as_ref())).collect::<Result<_>>()?;
    on_own_thread("the examination", move || {
        let mut found = hooks();
        let of_hooks = found.iter().find(|finding| finding.kind == Kind::Hooks);
        let of_hooks = of_hooks.map_or(Verdict::Untold, |finding| finding.verdict);
        program::examine(&mut found);
        found.extend(async_io::examine(of_hooks));
        kernel::examine(&sources, &mut found);
        files::examine(&sources, &mut found)?;
        Ok(found)
    })
}

/// What adapters tell of their hooks.
fn hooks() -> Vec<Finding> {
    let mut found = intercept::examine();
    if found.is_empty() {
        let text = "no library captures its calls, but for those made through hotbackup::fs: what others change is found and \
                    copied again";
        found.push(Finding::new(Kind::Hooks, Verdict::CopiedAgain, "the program", text));
    }
    found
}
