//! Syncing a backup: what is ours, and as little of the host's as can be.
//!
//! syncfs(2) writes out all that is dirty on a filesystem. Where the host writes to the same one that may be gigabytes, which a backup
//! has no need to wait for, and which the host is better off keeping. fsync(2) of each file and directory waits for what is ours alone,
//! but each has the disk empty its cache. So it is what costs less that is done.
//!
//! An error of writing a file out that the kernel came to by itself is told to every open file of that time, and, if nobody was told, to
//! the first that is opened later, as long as the inode is not thrown out of memory. So a file is synced through the descriptor that it
//! was written through, which was kept for that; if one was not, the filesystem is synced, whose own record of errors stays.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, Statx, StatxFlags, fsync, openat};
use rustix::io::{Errno, read};

use crate::beneath;
use crate::conductor::{Engine, Trouble};
use crate::copier::on_destination;
use crate::error::{Op, Result};
use crate::intercept::device;
use crate::tree::{Name, NodeId, Placed};

/// How much is written out in the time that one fsync takes. Either is a few milliseconds on the slowest disks, and less on others.
const WORTH_ONE: u64 = 512 << 10;

/// How a backup is synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Syncing {
    /// File by file, directory by directory.
    Each,
    /// Whole filesystems.
    All,
}

impl Engine<'_> {
    /// Syncs all that lies in the staging areas; returns how.
    pub(crate) fn sync_staged(&mut self, directories: &[NodeId]) -> Result<Syncing> {
        let each = self.is_better_synced_each() && self.sync_each_staged(directories)?;
        self.copies.clear();
        if each {
            return Ok(Syncing::Each);
        }
        self.sync_all()?;
        Ok(Syncing::All)
    }

    /// Syncs what has changed since: the roots and what was moved there.
    pub(crate) fn sync_placed(&self, how: Syncing) -> Result<()> {
        if how == Syncing::Each && self.sync_each_placed()? { Ok(()) } else { self.sync_all() }
    }

    fn sync_all(&self) -> Result<()> {
        self.pairs.iter().try_for_each(|pair| pair.destination.sync_all())
    }

    fn is_better_synced_each(&self) -> bool {
        // What was copied once more, to another filesystem, was not kept.
        if !self.apart.is_empty() {
            return false;
        }
        let mut count = 0;
        for id in self.tree.ids() {
            let node = self.tree.node(id);
            if node.excluded || node.placed == Placed::No {
                continue;
            }
            // Symbolic links, pipes and devices cannot be synced by themselves, and are not among them.
            if !node.is_directory() && !self.copies.contains_key(&id) {
                return false;
            }
            count += 1;
        }
        dirty_bytes().is_some_and(|dirty| count * WORTH_ONE <= dirty)
    }

    /// False if a directory could not be opened: it has its own mode by now. Or if a copy is not the one that was kept.
    fn sync_each_staged(&mut self, directories: &[NodeId]) -> Result<bool> {
        for &id in directories {
            let Ok(at) = self.open_staged(id) else { return Ok(false) };
            for (child, name) in self.first_entries(id, false) {
                self.check().map_err(|t| self.explain(t))?;
                let Some(copy) = self.copies.remove(&child) else { return Ok(false) };
                if !is_at(copy.as_fd(), at.as_fd(), &name) {
                    return Ok(false);
                }
                self.synced(child, fsync(&copy))?;
            }
            self.synced(id, fsync(&at))?;
        }
        Ok(true)
    }

    fn sync_each_placed(&self) -> Result<bool> {
        for pair in &self.pairs {
            let root = pair.destination.root();
            for entry in 0..self.tree.entries(pair.root_node) {
                let (id, name) = self.tree.entry(pair.root_node, entry);
                let node = self.tree.node(id);
                if node.excluded || node.placed == Placed::No || !node.is_directory() {
                    continue;
                }
                let Ok(directory) = open_directory(root, &self.tree.name(name)) else {
                    return Ok(false);
                };
                self.synced(id, fsync(&directory))?;
            }
            pair.destination.sync_root()?;
        }
        Ok(true)
    }

    fn synced(&self, id: NodeId, result: Result<(), Errno>) -> Result<()> {
        result.map_err(|errno| self.explain(Trouble::Fault(id, on_destination(Op::Sync)(errno))))
    }
}

fn open_directory(at: BorrowedFd<'_>, name: &Name) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(at, name.as_c_str(), flags, Mode::empty())
}

fn is_at(file: BorrowedFd<'_>, directory: BorrowedFd<'_>, name: &Name) -> bool {
    let there = beneath::look(directory, name.as_c_str(), StatxFlags::empty());
    let ours = beneath::look(file, c"", StatxFlags::empty());
    let place = |found: &Statx| (device(found), found.stx_ino);
    matches!((there, ours), (Ok(there), Ok(ours)) if place(&there) == place(&ours))
}

/// How much is to be written out on all filesystems together (proc_meminfo(5)); `None` if the system does not tell.
fn dirty_bytes() -> Option<u64> {
    let file = openat(CWD, c"/proc/meminfo", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut text = [0; 4096];
    let len = read(&file, &mut text).ok()?;
    parse_dirty(std::str::from_utf8(&text[..len]).ok()?)
}

fn parse_dirty(text: &str) -> Option<u64> {
    let kilobytes = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.strip_suffix("kB")?.trim().parse().ok()
    };
    Some((kilobytes("Dirty:")? + kilobytes("Writeback:")?) * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dirty_is_read_from_what_the_system_says() {
        let text = "MemTotal:  24617452 kB\nDirty:              1028 kB\nWriteback:             4 kB\nWritebackTmp:  9 kB\n";
        assert_eq!(parse_dirty(text), Some(1032 * 1024));
        assert_eq!(parse_dirty("MemTotal:  24617452 kB\n"), None);
        assert!(dirty_bytes().is_some());
    }
}
