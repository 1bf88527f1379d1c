//! What the kernel, or a sandbox, offers and refuses, where that changes what a backup can promise.

use std::os::fd::AsFd;
use std::path::PathBuf;

use rustix::fs::{CWD, Mode, OFlags, openat};

use super::{Finding, Kind, Verdict};
use crate::suspects::{self, Fanotify};
use crate::{beneath, mappings, sys};

/// Adds one finding for each facility.
pub(super) fn examine(sources: &[PathBuf], found: &mut Vec<Finding>) {
    let mut add = |subject: &str, verdict, text: &str| {
        found.push(Finding::new(Kind::System, verdict, subject, text));
    };
    let either = |works, otherwise| if works { Verdict::Captured } else { otherwise };
    let memory = sys::raw::can_read_paths();
    add(
        "process_vm_readv(2)",
        either(memory, Verdict::Refuses),
        match memory {
            true => "works on this process, so that hooks can read paths",
            false => "is forbidden on this process, so that hooks cannot read paths: sessions are refused",
        },
    );
    let fence = sys::raw::can_fence();
    add(
        "membarrier(2)",
        either(fence, Verdict::Refuses),
        match fence {
            true => "works",
            false => "does not work, so that it cannot be told who is inside a call: sessions are refused",
        },
    );
    let stores = mappings::store_watch();
    add(
        "userfaultfd(2)",
        either(stores.is_ok(), Verdict::CopiedAgain),
        match stores.map(drop) {
            Ok(()) => "can watch stores to mapped files",
            Err(rustix::io::Errno::BUSY) => {
                "is used by the program itself: mapped files are copied whole in the freeze"
            }
            Err(_) => {
                "cannot watch stores here (Linux 6.7, and no sandbox): mapped files are copied whole in the freeze"
            }
        },
    );
    let openat2 = beneath::has_openat2();
    add(
        "openat2(2)",
        either(openat2, Verdict::Note),
        match openat2 {
            true => "works",
            false => "is forbidden or missing: paths are opened component by component, which is slower",
        },
    );
    if !sources.is_empty() {
        let fanotify = can_watch(sources);
        add(
            "fanotify(7)",
            either(fanotify, Verdict::CopiedAgain),
            match fanotify {
                true => "can tell which other processes have written to files of the sources",
                false => {
                    "is not permitted, or not for these filesystems: what another process opens, writes and closes between two looks \
                 is told by the file's times alone, unless a captured call changes the same file in between"
                }
            },
        );
        let hidden = suspects::count_hidden_processes();
        if hidden > 0 {
            let text = format!(
                "hides the descriptors of {hidden} other processes: what they have open is not known, and what they change is \
                 told by the file's times alone, unless a captured call changes the same file in between"
            );
            add("/proc", Verdict::CopiedAgain, &text);
        }
    }
    let status = suspects::read("/proc/thread-self/status").unwrap_or_default();
    if status.lines().any(|line| line.strip_prefix("Seccomp:").is_some_and(|mode| mode.trim() != "0")) {
        let text = "filters the system calls of this process; what that forbids a backup is said here where it is known";
        add("seccomp(2)", Verdict::Note, text);
    }
}

fn can_watch(sources: &[PathBuf]) -> bool {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let roots: Result<Vec<_>, _> =
        sources.iter().map(|source| openat(CWD, source, flags, Mode::empty())).collect();
    roots.is_ok_and(|roots| Fanotify::watch(roots.iter().map(AsFd::as_fd)).is_on())
}
