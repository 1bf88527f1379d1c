//! The text in the mark of an incomplete backup: for the person who finds it, and for the next session.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::SystemTime;

use super::rfc3339;

/// The text's name in [`INCOMPLETE_MARK`](super::INCOMPLETE_MARK).
pub(crate) const MARK_TEXT_NAME: &str = "README.txt";

const BEGUN: &str = "begun: ";
const PID: &str = "by process: ";

/// What the mark's text says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    /// In UTC, RFC 3339.
    pub(crate) begun: String,
    pub(crate) pid: u32,
}

impl Mark {
    /// Understands what [`mark_text`] wrote, also if its end is missing.
    pub(crate) fn parse(text: &[u8]) -> Option<Mark> {
        let text = String::from_utf8_lossy(text);
        let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key));
        Some(Mark { begun: value(BEGUN)?.to_owned(), pid: value(PID)?.parse().ok()? })
    }
}

/// The text for the mark `mark`, a directory, of a backup that process `pid` began at `begun`.
pub(crate) fn mark_text(mark: &Path, begun: SystemTime, pid: u32) -> Vec<u8> {
    let mut text = format!(
        "This backup is not complete. Do not use or restore anything here.\n\n\
         {BEGUN}{}\n{PID}{pid}\n\n\
         While that process is at it, leave this directory alone: it goes when the backup is complete.\n\
         If the process has ended, the backup never will be complete. Remove it with:\n\n    rm -rf ",
        rfc3339(begun)
    )
    .into_bytes();
    text.extend(quoted(mark.as_os_str().as_bytes()));
    text.push(b'\n');
    text
}

/// The bytes as one word for a shell.
fn quoted(word: &[u8]) -> Vec<u8> {
    let mut quoted = vec![b'\''];
    for &byte in word {
        match byte {
            b'\'' => quoted.extend(b"'\\''"),
            _ => quoted.push(byte),
        }
    }
    quoted.push(b'\'');
    quoted
}
