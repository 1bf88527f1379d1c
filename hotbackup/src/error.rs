//! What can go wrong with a backup, said so that a person knows what to do.
//!
//! Every error names the operation, the thing it was done to and the reason. None of them ever reaches the host's own
//! calls: a failing backup fails by itself.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What was tried when an [`Error::Io`] came up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum Op {
    Open,
    Resolve,
    Examine,
    List,
    Read,
    Write,
    Create,
    Resize,
    PunchHole,
    Rename,
    Link,
    Remove,
    SetOwner,
    SetMode,
    SetTimes,
    SetAttributes,
    Sync,
    Clone,
    StartThread,
    Arm,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Op::Open => "open",
            Op::Resolve => "resolve",
            Op::Examine => "examine",
            Op::List => "list",
            Op::Read => "read",
            Op::Write => "write",
            Op::Create => "create",
            Op::Resize => "resize",
            Op::PunchHole => "punch a hole in",
            Op::Rename => "rename",
            Op::Link => "link",
            Op::Remove => "remove",
            Op::SetOwner => "set the owner of",
            Op::SetMode => "set the mode of",
            Op::SetTimes => "set the times of",
            Op::SetAttributes => "set the extended attributes of",
            Op::Sync => "sync",
            Op::Clone => "share the blocks of",
            Op::StartThread => "start a thread for",
            Op::Arm => "capture the changes of",
        })
    }
}

/// Why a backup failed. [`Error::errno`] gives the number that the C interfaces return.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call on one file failed.
    #[error("cannot {op} {}: {source}", path.display())]
    Io {
        /// What was tried.
        op: Op,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A session is already running in this process; it goes on untouched.
    #[error("another backup is in progress in this process")]
    Busy,
    /// No source and destination were given.
    #[error("no source was given to back up")]
    NoSource,
    /// The source is something else than a directory.
    #[error("source {} is not a directory", path.display())]
    SourceNotDirectory {
        /// The source.
        path: PathBuf,
    },
    /// The destination is something else than a directory.
    #[error("destination {} is not a directory", path.display())]
    DestinationNotDirectory {
        /// The destination.
        path: PathBuf,
    },
    /// The destination holds something already.
    #[error("destination {} is not empty: it holds {}", path.display(), found.display())]
    DestinationNotEmpty {
        /// The destination.
        path: PathBuf,
        /// The first entry found in it.
        found: PathBuf,
    },
    /// The destination was left by a backup that did not complete.
    #[error("destination {} holds an incomplete backup{}; remove it with: rm -rf {}",
        path.display(), since.as_ref().map(|s| format!(" begun {s}")).unwrap_or_default(), mark.display())]
    DestinationIncomplete {
        /// The destination.
        path: PathBuf,
        /// The mark in it.
        mark: PathBuf,
        /// When that backup began, if its mark tells.
        since: Option<String>,
    },
    /// Source and destination are one directory.
    #[error("source and destination are the same directory: {}", path.display())]
    Same {
        /// The directory.
        path: PathBuf,
    },
    /// One of the given directories lies inside another.
    #[error("{} lies inside {}: {why}", inner.display(), outer.display())]
    Nested {
        /// The directory inside.
        inner: PathBuf,
        /// The directory around it.
        outer: PathBuf,
        /// What they are to each other.
        why: &'static str,
    },
    /// One directory was given twice.
    #[error("{} was given twice as {role}", path.display())]
    Repeated {
        /// The directory.
        path: PathBuf,
        /// "a source" or "a destination".
        role: &'static str,
    },
    /// One directory is reachable by two paths below the sources (a bind mount).
    #[error("directory {} is also reachable as {}: back up one of them", first.display(), second.display())]
    DirectoryTwice {
        /// One path.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// A source holds a name that the backup needs for itself.
    #[error("source {} holds {name}, the mark of an incomplete backup: remove it or exclude it", path.display())]
    ReservedName {
        /// The source.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// The backup does not fit, or would leave less free space than `keep_free` asks for.
    #[error("not enough space on the filesystem of {}: {needed} more bytes are needed, {available} are free \
             above the reserve of {reserve}", path.display())]
    NoSpace {
        /// The destination.
        path: PathBuf,
        /// Bytes still to write.
        needed: u64,
        /// Bytes free above the reserve.
        available: u64,
        /// The reserve, in bytes.
        reserve: u64,
    },
    /// A callback or [`SessionHandle::cancel`](crate::SessionHandle::cancel) ended the session.
    #[error("the backup was cancelled")]
    Cancelled,
    /// A captured call would have had to wait longer than `max_stall`; it went on, and the session ended.
    #[error(
        "the backup could not keep up: a call of the program waited {waited:?} for it, the limit is {limit:?}"
    )]
    Stalled {
        /// How long the call waited.
        waited: Duration,
        /// The limit that was set.
        limit: Duration,
    },
    /// No attempt at the cut came to its end within its deadline.
    #[error("no cut in {attempts} attempts: {reason}")]
    NoCut {
        /// How many were made.
        attempts: u32,
        /// What stood in the way of the last one.
        reason: String,
    },
    /// A call that began before the session could not be waited for.
    #[error(
        "cannot capture every change: thread {thread} has been inside a call on {what} since before the session"
    )]
    NotArmed {
        /// The thread.
        thread: u32,
        /// The descriptor or path that its call names.
        what: String,
    },
    /// A hook that the session relies on is not in force for one loaded object.
    #[error("calls of {object} to {symbol} are not captured: {reason}")]
    HookNotLive {
        /// The loaded object.
        object: String,
        /// The symbol that bypasses us.
        symbol: String,
        /// What was found.
        reason: String,
    },
    /// A file kept being changed in a way that we do not see.
    #[error("{} is being changed by something that cannot be captured: {by}", path.display())]
    Unseen {
        /// The file.
        path: PathBuf,
        /// Who or what, as far as it is known.
        by: String,
    },
    /// Asynchronous writes of the program could not be followed.
    #[error("asynchronous writes of the program cannot be followed: {reason}")]
    AsyncWrites {
        /// What stood in the way.
        reason: String,
    },
    /// A directory does not hold a complete backup.
    #[error("{} does not hold a complete backup: {reason}", path.display())]
    NotABackup {
        /// The directory.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// The manifest cannot be understood, or was altered.
    #[error("manifest {} is unusable: {reason}", path.display())]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// An expression given to exclude files is not valid.
    #[error("cannot use {pattern:?} to exclude files: {reason}")]
    Pattern {
        /// The expression.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An engine thread panicked. The host goes on; the backup failed.
    #[error("a defect in hotbackup ended the backup: {0}")]
    Defect(String),
}

impl Error {
    /// The error number that says most nearly what happened, for the C interfaces and for exit codes.
    pub fn errno(&self) -> i32 {
        match self {
            Error::Io { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
            Error::Busy => libc::EBUSY,
            Error::SourceNotDirectory { .. } => libc::ENOTDIR,
            Error::NoSource
            | Error::DestinationNotDirectory { .. }
            | Error::DestinationNotEmpty { .. }
            | Error::DestinationIncomplete { .. }
            | Error::Same { .. }
            | Error::Nested { .. }
            | Error::Repeated { .. }
            | Error::DirectoryTwice { .. }
            | Error::ReservedName { .. }
            | Error::Pattern { .. }
            | Error::Manifest { .. }
            | Error::NotABackup { .. } => libc::EINVAL,
            Error::NoSpace { .. } => libc::ENOSPC,
            Error::Cancelled => libc::ECANCELED,
            Error::Stalled { .. } | Error::NoCut { .. } | Error::NotArmed { .. } => libc::ETIMEDOUT,
            Error::HookNotLive { .. } => libc::ENOSYS,
            Error::Unseen { .. } => libc::ESTALE,
            Error::AsyncWrites { .. } => libc::ENOTSUP,
            Error::Defect(_) => libc::EIO,
        }
    }

    /// An [`Error::Io`] for `op` on `path`.
    pub(crate) fn io(op: Op, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Error {
        Error::Io { op, path: path.into(), source: source.into() }
    }
}
