//! What the kernel, or a sandbox, offers and refuses, where that changes what a backup can promise.

use std::os::fd::AsFd;
use std::path::PathBuf;

use rustix::fs::{CWD, Mode, OFlags, openat};

use super::{Finding, Kind, Verdict};
use crate::suspects::{self, Fanotify};
use crate::{beneath, mappings, sys};

/// Adds one finding for each facility.
pub(super) fn examine(sources: &[PathBuf], found: &mut Vec<Finding>) {
    let mut add = |subject: &str, works: bool, good: &str, otherwise: Verdict, bad: &str| {
        let (verdict, text) = if works { (Verdict::Captured, good) } else { (otherwise, bad) };
        found.push(Finding::new(Kind::System, verdict, subject, text));
    };
    add(
        "process_vm_readv(2)",
        sys::raw::can_read_paths(),
        "works on this process, so that hooks can read paths",
        Verdict::Refuses,
        "is forbidden on this process, so that hooks cannot read paths: sessions are refused",
    );
    add(
        "membarrier(2)",
        sys::raw::can_fence(),
        "works",
        Verdict::Refuses,
        "does not work, so that it cannot be told who is inside a call: sessions are refused",
    );
    add(
        "userfaultfd(2)",
        mappings::store_watch().is_ok(),
        "can watch stores to mapped files",
        Verdict::CopiedAgain,
        "cannot watch stores to mapped files (before Linux 6.7, in a sandbox, or since the program has one itself): they are \
         copied whole in the freeze",
    );
    add(
        "openat2(2)",
        beneath::has_openat2(),
        "works",
        Verdict::Note,
        "is forbidden or missing: paths are opened component by component, which is slower",
    );
    if !sources.is_empty() {
        add(
            "fanotify(7)",
            can_watch(sources),
            "can tell which other processes have written to files of the sources",
            Verdict::Untold,
            "is not permitted, or not for these filesystems: what another process opens, writes and closes between two looks is \
             told by the file's times alone, and not if a captured call changes the same file in between",
        );
        let hidden = suspects::count_hidden_processes();
        add(
            "/proc",
            hidden == 0,
            "shows what other processes have open",
            Verdict::Untold,
            &format!(
                "hides what {hidden} other processes have open: what they change is told by the file's times alone, and not if a \
                 captured call changes the same file in between"
            ),
        );
    }
    let status = suspects::read("/proc/thread-self/status").unwrap_or_default();
    add(
        "seccomp(2)",
        status.lines().any(|line| line.strip_prefix("Seccomp:").is_some_and(|mode| mode.trim() == "0")),
        "filters no system calls of this process",
        Verdict::Note,
        "filters system calls of this process; what that forbids a backup stands above, as far as it is known",
    );
}

fn can_watch(sources: &[PathBuf]) -> bool {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let roots: Result<Vec<_>, _> =
        sources.iter().map(|source| openat(CWD, source, flags, Mode::empty())).collect();
    roots.is_ok_and(|roots| Fanotify::watch(roots.iter().map(AsFd::as_fd)).is_on())
}
