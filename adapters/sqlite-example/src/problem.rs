//! Why the program ends early.

use std::fmt::Display;
use std::path::Path;

/// What was tried, on what, and why not, in one sentence; and with it the exit status.
#[derive(Debug)]
pub enum Problem {
    /// The arguments cannot be used; nothing was changed.
    BadInput(String),
    /// Something failed on the way.
    Failed(String),
}

impl Problem {
    /// "cannot {operation} {path}: {reason}", because of what the user asked for.
    pub fn bad(operation: &str, path: &Path, reason: impl Display) -> Problem {
        Problem::BadInput(format!("cannot {operation} {}: {reason}", path.display()))
    }

    /// "cannot {operation} {path}: {reason}".
    pub fn failed(operation: &str, path: &Path, reason: impl Display) -> Problem {
        Problem::Failed(format!("cannot {operation} {}: {reason}", path.display()))
    }

    /// The sentence.
    pub fn text(&self) -> &str {
        match self {
            Problem::BadInput(text) | Problem::Failed(text) => text,
        }
    }

    /// The exit status of the program.
    pub fn status(&self) -> u8 {
        match self {
            Problem::BadInput(_) => 2,
            Problem::Failed(_) => 1,
        }
    }
}
