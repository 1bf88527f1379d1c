//! Files that may change without a captured call: who else holds them open for writing, or has them mapped.
//!
//! Looked for before each try of the cut and once more behind it. Such a file is copied whole in the freeze. Between
//! two looks, fanotify tells which other process closed a file that it had open for writing, where it is permitted.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, StatxFlags, openat, statx};
use rustix::io::Errno;

use crate::backup::OnUnseenChange;
use crate::beneath;
use crate::conductor::Engine;
use crate::copier::Side;
use crate::direct::host_table;
use crate::error::Result;
use crate::extents::Marks;
use crate::intercept::device;
use crate::mappings::{self, Text};
use crate::registry::WATCH;
use crate::sys;
use crate::sys::handle::FileHandle;
use crate::tree::{NodeId, Tree};

/// What makes a file suspect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Another process has it open for writing.
    Process(u32),
    /// Another process has mapped it shared and writable.
    MappedBy(u32),
    /// This process has, and stores to it cannot be watched.
    Mapping,
}

/// A file that has been found to be written in some way.
struct Written {
    marks: &'static Marks,
    /// Tells its inode from another of the same number: other processes' files get the numbers of files that are gone.
    handle: u64,
    way: Way,
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Way::Process(pid) => write!(f, "{}, which had it open for writing", process(*pid)),
            Way::MappedBy(pid) => write!(f, "{}, which had it mapped for writing", process(*pid)),
            Way::Mapping => f.write_str("a shared writable mapping of this process"),
        }
    }
}

impl Way {
    /// The same of one that is looked at now, to go behind the file.
    pub(crate) fn now(self) -> String {
        match self {
            Way::Process(pid) => format!("is open for writing in {}", process(pid)),
            Way::MappedBy(pid) => format!("is mapped for writing in {}", process(pid)),
            Way::Mapping => "is mapped for writing in this process".into(),
        }
    }
}

fn process(pid: u32) -> String {
    // A process that has ended has no name any more.
    match read(&format!("/proc/{pid}/comm")) {
        Some(name) => format!("process {pid} ({})", name.trim()),
        None => format!("process {pid}"),
    }
}

impl Engine<'_> {
    /// Finds the files of the sources that may change without a trace. Returns the new ones.
    pub(crate) fn suspect_writers(&mut self) -> Result<Vec<NodeId>> {
        let mut found = Vec::new();
        self.find_writers(&mut found);
        for marks in self.take_unwatchable() {
            let Some(node) = self.tree.get(marks.node()) else { continue };
            found.push(Written { marks, handle: node.handle, way: Way::Mapping });
        }
        self.heed_fanotify();
        found.extend(self.fanotify.closed.drain().map(|(id, pid)| {
            let node = self.tree.node(id);
            Written { marks: node.marks, handle: node.handle, way: Way::Process(pid) }
        }));
        let mut fresh = Vec::new();
        for Written { marks, handle, way } in found {
            let id = marks.node();
            let Some(node) = self.tree.get(id) else { continue };
            if node.handle != handle || node.suspect || node.excluded || !node.is_file() {
                continue;
            }
            let fails = self.plan.on_unseen_change == OnUnseenChange::Fail && way != Way::Mapping;
            if fails && self.is_changed_unseen(id).map_err(|t| self.explain(t))? {
                return Err(self.unsteady(id));
            }
            self.tree.node_mut(id).suspect = true;
            self.suspects.push(id);
            fresh.push(id);
            marks.mark_all(&WATCH.ledger);
            let path = self.path_of(id, Side::Source);
            let text = match way {
                Way::Mapping => mappings::MAPPED.into(),
                Way::Process(_) | Way::MappedBy(_) => {
                    format!("was also being written by {way}; it was copied whole at the cut")
                }
            };
            self.warn(Some(path), text);
        }
        Ok(fresh)
    }
}

impl Engine<'_> {
    /// Reads what fanotify has to tell, before its queue is full. If it was, every file is copied again.
    pub(crate) fn heed_fanotify(&mut self) {
        if self.fanotify.read(&self.tree) {
            self.copy_everything_again();
            self.warn(None, "more files were closed than the kernel could tell of: all were copied again");
        }
    }

    fn find_writers(&self, found: &mut Vec<Written>) {
        each_writer(
            |dev, ino| WATCH.find(dev, ino),
            |marks, way, place| {
                let handle = match place {
                    Some(place) => handle_at(place),
                    None => self.tree.get(marks.node()).map(|node| node.handle),
                };
                found.extend(handle.map(|handle| Written { marks, handle, way }));
            },
        );
    }

    pub(crate) fn copy_everything_again(&mut self) {
        for id in self.tree.ids() {
            let node = self.tree.node_mut(id);
            if node.missing {
                node.is_uncertain = true;
            } else if node.is_file() && !node.replaced && !node.excluded {
                node.marks.mark_all(&WATCH.ledger);
            }
        }
    }
}

/// Tells `found` of files that other processes have open for writing or mapped such that they can store to them (proc_pid_fd(5),
/// proc_pid_fdinfo(5), proc_pid_maps(5)): of those that `find` makes something of by device and inode. With a descriptor comes
/// where it stands in /proc.
pub(crate) fn each_writer<T>(
    find: impl Fn(u64, u64) -> Option<T>,
    mut found: impl FnMut(T, Way, Option<&OsStr>),
) {
    let own = sys::raw::getpid();
    let mut text = Text::new();
    for pid in numbers("/proc").into_iter().filter(|&pid| pid != own) {
        for fd in numbers(&format!("/proc/{pid}/fd")) {
            let place = format!("/proc/{pid}/fd/{fd}");
            if let Some(file) = file_at(&place).and_then(|(dev, ino)| find(dev, ino))
                && is_writable(&format!("/proc/{pid}"), fd)
            {
                found(file, Way::Process(pid), Some(OsStr::new(&place)));
            }
        }
        let Ok(maps) = CString::new(format!("/proc/{pid}/maps")) else { continue };
        if !mappings::may_hold_shared(&maps) {
            continue;
        }
        let _ = mappings::each(&maps, &mut text, |line| {
            if line.is_shared()
                && line.is_writable()
                && line.inode != 0
                && let Some(file) = line.file().and_then(|(dev, ino)| find(dev, ino))
            {
                found(file, Way::MappedBy(pid), None);
            }
            Ok::<(), Infallible>(())
        });
    }
}

/// The files that this process has open for writing, of those that `find` makes something of by device and inode.
pub(crate) fn own_files<T>(find: impl Fn(u64, u64) -> Option<T>) -> Vec<T> {
    let table = host_table();
    let file = |fd: u32| {
        let (dev, ino) = file_at(&format!("{table}/fd/{fd}"))?;
        find(dev, ino).filter(|_| is_writable(&table, fd))
    };
    numbers(&format!("{table}/fd")).into_iter().filter_map(file).collect()
}

/// The files that are registered with the ring of io_uring that this descriptor of the host's stands for (`UserFiles` in its fdinfo), of
/// those that `find` makes something of. `None` if that cannot be read.
pub(crate) fn registered_files<T>(fd: u32, find: impl Fn(u64, u64) -> Option<T>) -> Option<Vec<T>> {
    let info = read(&format!("{}/fdinfo/{fd}", host_table()))?;
    let mut lines = info.lines().skip_while(|line| !line.starts_with("UserFiles:"));
    let count: usize = lines.next()?.strip_prefix("UserFiles:")?.trim().parse().ok()?;
    let names = lines.take_while(|line| line.starts_with(' ')).take(count);
    // One that was unlinked, or is none, leads to nothing that is backed up.
    let file = |line: &str| file_at(line.split_once(": ")?.1).and_then(|(dev, ino)| find(dev, ino));
    Some(names.filter_map(file).collect())
}

/// How many other processes do not show us what they have open.
pub(crate) fn count_hidden_processes() -> usize {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let is_hidden = |pid: &u32| {
        matches!(openat(CWD, format!("/proc/{pid}/fd"), flags, Mode::empty()), Err(Errno::ACCESS))
    };
    numbers("/proc").iter().filter(|pid| is_hidden(pid)).count()
}

/// The names in a directory of /proc that are numbers; none if it cannot be read.
pub(crate) fn numbers(path: &str) -> Vec<u32> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(directory) = openat(CWD, path, flags, Mode::empty()) else {
        return Vec::new();
    };
    let Ok(entries) = Dir::read_from(&directory) else {
        return Vec::new();
    };
    entries.filter_map(|entry| entry.ok()?.file_name().to_str().ok()?.parse().ok()).collect()
}

/// The flags that a descriptor was opened with and given since. `table` is where in /proc it stands.
pub(crate) fn flags_of_descriptor(table: &str, fd: u32) -> Option<u32> {
    let info = read(&format!("{table}/fdinfo/{fd}"))?;
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
    u32::from_str_radix(flags.trim(), 8).ok()
}

fn is_writable(table: &str, fd: u32) -> bool {
    flags_of_descriptor(table, fd).is_none_or(|flags| {
        flags & libc::O_ACCMODE.cast_unsigned() != 0 && flags & libc::O_PATH.cast_unsigned() == 0
    })
}

/// Device and inode of the regular file at a path.
fn file_at(path: &str) -> Option<(u64, u64)> {
    let found = statx(CWD, path, AtFlags::empty(), StatxFlags::INO | StatxFlags::TYPE).ok()?;
    let is_file = FileType::from_raw_mode(found.stx_mode.into()) == FileType::RegularFile;
    is_file.then(|| (device(&found), found.stx_ino))
}

/// What tells the inode of the file at a path from another of the same number.
fn handle_at(path: &OsStr) -> Option<u64> {
    let file = openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
    Some(beneath::examine(file.as_fd(), c"", StatxFlags::empty()).ok()?.1)
}

pub(crate) fn read(path: &str) -> Option<String> {
    let file = openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut bytes = Vec::new();
    let mut piece = [0u8; 8192];
    loop {
        match rustix::io::read(&file, &mut piece).ok()? {
            0 => return Some(String::from_utf8_lossy(&bytes).into_owned()),
            got => bytes.extend_from_slice(&piece[..got]),
        }
    }
}

/// Whether the queue of events is as short as the system's limit says, which a test wants.
fn is_queue_short() -> bool {
    #[cfg(test)]
    return QUEUE_IS_SHORT.load(std::sync::atomic::Ordering::SeqCst);
    #[cfg(not(test))]
    false
}

#[cfg(test)]
static QUEUE_IS_SHORT: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

/// Tells of files that another process had open for writing and closed (fanotify(7)).
pub(crate) struct Fanotify {
    group: Option<OwnedFd>,
    /// The nodes by their handles: those below `indexed`.
    nodes: HashMap<u64, NodeId>,
    indexed: NodeId,
    /// Those told of and not dealt with yet, and by which process they were closed last.
    closed: HashMap<NodeId, u32>,
    /// Those that this process has closed, since it was seen to use io_uring.
    pub(crate) closed_by_us: HashSet<NodeId>,
    /// Events were lost.
    pub(crate) overflowed: bool,
}

impl Fanotify {
    /// Watches the filesystems of the sources, as far as this process may.
    pub(crate) fn watch<'r>(mut roots: impl Iterator<Item = BorrowedFd<'r>>) -> Fanotify {
        let group = sys::fanotify::group(!is_queue_short()).ok().filter(|group| {
            roots.all(|root| {
                // What is told of is found by its handle.
                FileHandle::of(root, c"").is_some() && sys::fanotify::watch(group.as_fd(), root).is_ok()
            })
        });
        Fanotify {
            group,
            nodes: HashMap::new(),
            indexed: 0,
            closed: HashMap::new(),
            closed_by_us: HashSet::new(),
            overflowed: false,
        }
    }

    /// Whether it may.
    pub(crate) fn is_on(&self) -> bool {
        self.group.is_some()
    }

    /// Takes the events that wait; true if some were lost. A file that is not known yet will be read behind its event.
    fn read(&mut self, tree: &Tree) -> bool {
        let Some(group) = &self.group else { return false };
        let own = sys::raw::getpid();
        let uses_rings = WATCH.async_io.has_urings();
        let mut lost = false;
        sys::fanotify::read(group.as_fd(), |file, pid| match file {
            None => lost = true,
            Some(_) if pid == own && !uses_rings => {}
            Some(file) => {
                let unindexed = self.indexed..tree.len() as NodeId;
                self.indexed = unindexed.end;
                self.nodes.extend(unindexed.map(|id| (tree.node(id).handle, id)));
                match self.nodes.get(&file.digest()) {
                    Some(&id) if pid == own => drop(self.closed_by_us.insert(id)),
                    Some(&id) => drop(self.closed.insert(id, pid)),
                    None => {}
                }
            }
        });
        self.overflowed |= lost;
        lost
    }
}

#[cfg(test)]
mod tests;
