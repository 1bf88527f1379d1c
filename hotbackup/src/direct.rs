//! Which files the host uses with `O_DIRECT`.
//!
//! It may have opened them long before the session, and hooks keep no table of descriptors: so its descriptors are
//! looked through, before the sources are walked and before each try of the cut. Engine threads have a table of their
//! own, so it is the thread group leader's that is read; if that thread is gone, another one's.

use rustix::fs::{AtFlags, CWD, FileType, StatxFlags, statx};

use crate::conductor::Engine;
use crate::intercept::device;
use crate::registry::WATCH;
use crate::suspects::{flags_of_descriptor, numbers, read};
use crate::sys;

/// The names of engine threads (`sys::thread::spawn`).
const OURS: [&str; 3] = ["hotbackup", "hotbackup-copy", "hotbackup-check"];

impl Engine<'_> {
    /// Notes which files the host has open with `O_DIRECT` now. Those not watched yet are remembered for the walk.
    pub(crate) fn note_direct_files(&mut self) {
        for file in direct_files() {
            if !self.direct_files.insert(file) {
                continue;
            }
            let Some(id) = WATCH.find(file.0, file.1).map(|marks| marks.node()) else { continue };
            if self.tree.get(id).is_some() {
                self.tree.node_mut(id).direct = true;
                // It was opened the other way.
                self.held.forget(id);
            }
        }
    }
}

/// Whether the host has a userfaultfd(2).
pub(crate) fn host_has_userfaultfd() -> bool {
    let table = host_table();
    let mut target = [std::mem::MaybeUninit::uninit(); 64];
    numbers(&format!("{table}/fd")).into_iter().any(|fd| {
        let link = rustix::fs::readlinkat_raw(CWD, format!("{table}/fd/{fd}"), &mut target);
        link.is_ok_and(|(target, _)| target == b"anon_inode:[userfaultfd]")
    })
}

/// Device and inode of the regular files that the host has open with `O_DIRECT`.
fn direct_files() -> Vec<(u64, u64)> {
    let table = host_table();
    let descriptors = numbers(&format!("{table}/fd"));
    descriptors.into_iter().filter_map(|fd| direct_file(&table, fd)).collect()
}

/// Where in /proc the host's descriptors stand.
pub(crate) fn host_table() -> String {
    format!("/proc/{}/task/{}", sys::raw::getpid(), host_thread())
}

/// A thread that has the host's descriptors: the thread group's leader, or, if that is gone, another one.
pub(crate) fn host_thread() -> u32 {
    let leader = sys::raw::getpid();
    let has_descriptors = |task: u32| !numbers(&format!("/proc/{leader}/task/{task}/fd")).is_empty();
    if has_descriptors(leader) {
        return leader;
    }
    let own = sys::raw::gettid();
    let is_host = |&task: &u32| {
        let name = read(&format!("/proc/{leader}/task/{task}/comm"));
        task != own && name.is_some_and(|name| !OURS.contains(&name.trim_end())) && has_descriptors(task)
    };
    numbers(&format!("/proc/{leader}/task")).into_iter().find(is_host).unwrap_or(leader)
}

fn direct_file(table: &str, fd: u32) -> Option<(u64, u64)> {
    // A file on a server that does not answer must not hold us up.
    let (quick, wanted) = (AtFlags::STATX_DONT_SYNC, StatxFlags::INO | StatxFlags::TYPE);
    let found = statx(CWD, format!("{table}/fd/{fd}"), quick, wanted).ok()?;
    let regular = FileType::from_raw_mode(found.stx_mode.into()) == FileType::RegularFile;
    let direct = regular
        && flags_of_descriptor(table, fd).is_some_and(|flags| flags & libc::O_DIRECT.cast_unsigned() != 0);
    direct.then(|| (device(&found), found.stx_ino))
}
