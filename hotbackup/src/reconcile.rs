//! Directories: making the names of the copy match those of the cut.
//!
//! It is done once, when the cut has been found right: the listings tell where every node goes. First everything that
//! lies elsewhere moves into limbo, then all is placed from the top down; so no order of renames can collide. What no
//! listing claims stays in limbo and goes with it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dev, FileType, Mode, OFlags, linkat, makedev, mkdirat, mknodat, openat, renameat, symlinkat,
    unlinkat,
};
use rustix::io::Errno;

use crate::beneath;
use crate::conductor::{Engine, Trouble};
use crate::converge::{Hurry, Space};
use crate::copier::{Holes, copy_range, on_destination};
use crate::error::{Error, Op, Result};
use crate::source::Source;
use crate::tree::{Copy, NO_NODE, Name, Node, NodeId, Placed, Text};

impl Engine<'_> {
    /// Puts every node of the cut at its place in the staged tree. Returns the directories, parents first.
    pub(crate) fn reconcile(&mut self) -> Result<Vec<NodeId>> {
        self.held.clear();
        let live = self.live_nodes()?;
        self.want(&live);
        for directories in [false, true] {
            for id in self
                .tree
                .ids()
                .filter(|&id| self.tree.node(id).is_directory() == directories)
                .collect::<Vec<_>>()
            {
                self.set_aside(id).map_err(|t| self.explain(t))?;
            }
        }
        let directories: Vec<NodeId> =
            live.into_iter().filter(|&id| self.tree.node(id).is_directory()).collect();
        for &id in &directories {
            self.place_entries(id).map_err(|t| self.explain(t))?;
        }
        Ok(directories)
    }

    /// Notes of every live node that it is one, and makes the first place that it goes to the one that it is known by.
    fn want(&mut self, live: &[NodeId]) {
        for &id in live {
            let node = self.tree.node_mut(id);
            if node.parent == NO_NODE {
                node.wanted = true;
            }
        }
        for &directory in live {
            if !self.tree.node(directory).is_directory() {
                continue;
            }
            for index in 0..self.tree.entries(directory) {
                let (child, name) = self.tree.entry(directory, index);
                if !self.tree.node(child).excluded {
                    self.tree.node_mut(child).pair = self.tree.node(directory).pair;
                    let keep = self.is_placed_at(child, directory, name);
                    let node = self.tree.node_mut(child);
                    if !node.wanted || keep {
                        (node.wanted, node.parent, node.name) = (true, directory, name);
                    }
                }
            }
        }
    }

    /// Whether the copy of a node lies at a place already.
    pub(crate) fn is_placed_at(&self, id: NodeId, directory: NodeId, name: Text) -> bool {
        match self.tree.node(id).placed {
            Placed::In(parent, placed) => {
                parent == directory && self.tree.text(placed) == self.tree.text(name)
            }
            _ => false,
        }
    }

    /// Moves a copy that lies elsewhere than it should into limbo.
    fn set_aside(&mut self, id: NodeId) -> Result<(), Trouble> {
        let node = self.tree.node(id);
        let Placed::In(parent, name) = node.placed else {
            return Ok(());
        };
        let stays = node.wanted && self.is_placed_at(id, node.parent, node.name);
        let crosses = node.wanted && node.pair != node.pair_of_copy;
        if parent == NO_NODE || stays && !crosses {
            return Ok(());
        }
        let pair = node.pair_of_copy as usize;
        let directory = self.open_staged(parent)?;
        let (from, to) = (self.tree.name(name), Name::number(id));
        renameat(&directory, from.as_c_str(), &self.pairs[pair].destination.limbo, to.as_c_str())
            .map_err(|errno| Trouble::Fault(id, on_destination(Op::Rename)(errno)))?;
        self.tree.node_mut(id).placed = Placed::Limbo;
        Ok(())
    }

    /// Opens the copy of a directory, wherever in the staging area it lies now.
    pub(crate) fn open_staged(&mut self, id: NodeId) -> Result<OwnedFd, Trouble> {
        let fault = |errno| Trouble::Fault(id, on_destination(Op::Open)(errno));
        let pair = self.tree.node(id).pair_of_copy as usize;
        // The nearest ancestor that lies in limbo, if there is one, is where the path begins.
        let mut top = id;
        while let Placed::In(parent, _) = self.tree.node(top).placed {
            if parent == NO_NODE {
                break;
            }
            top = parent;
        }
        let staging = &self.pairs[pair].destination;
        let in_limbo = self.tree.node(top).placed == Placed::Limbo;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = if in_limbo {
            openat(&staging.limbo, Name::number(top).as_c_str(), flags, Mode::empty()).map_err(fault)?
        } else {
            staging.tree.try_clone().map_err(|e| Trouble::from(Error::io(Op::Open, &staging.path, e)))?
        };
        let place = |node: &Node| match node.placed {
            Placed::In(parent, name) => Some((parent, name)),
            Placed::Limbo => Some((NO_NODE, Text::default())),
            Placed::No => None,
        };
        if self.tree.path_by(id, &mut self.path, place).is_none() {
            return Err(self.no_place(id));
        }
        beneath::open(root.as_fd(), &mut self.path, flags, Mode::empty()).map_err(fault)
    }

    /// Places the entries of a directory that is itself in place.
    fn place_entries(&mut self, directory: NodeId) -> Result<(), Trouble> {
        if self.tree.entries(directory) == 0 {
            return Ok(());
        }
        let at = self.open_staged(directory)?;
        for index in 0..self.tree.entries(directory) {
            let (child, name) = self.tree.entry(directory, index);
            if self.tree.node(child).excluded || self.is_placed_at(child, directory, name) {
                continue;
            }
            let text = self.tree.name(name);
            let node = self.tree.node(child);
            if (node.parent, node.name) == (directory, name) {
                self.place(child, at.as_fd(), &text)?;
                let pair = self.tree.node(directory).pair;
                let node = self.tree.node_mut(child);
                node.placed = Placed::In(directory, name);
                node.pair_of_copy = pair;
            } else if !self.place_link(child, at.as_fd(), &text)? {
                self.apart.insert((directory, index));
            }
        }
        Ok(())
    }

    /// Gives a node its first name: moves its copy there, or makes it.
    fn place(&mut self, id: NodeId, at: BorrowedFd<'_>, name: &Name) -> Result<(), Trouble> {
        let node = self.tree.node(id);
        let limbo = &self.pairs[node.pair_of_copy as usize].destination.limbo;
        if node.placed == Placed::Limbo {
            return match renameat(limbo, Name::number(id).as_c_str(), at, name.as_c_str()) {
                // What was in it has gone to limbo by itself, for it crosses too.
                Err(Errno::XDEV) if node.is_directory() => {
                    mkdirat(at, name.as_c_str(), Mode::from_raw_mode(0o700))
                        .map_err(|errno| Trouble::Fault(id, on_destination(Op::Create)(errno)))
                }
                Err(Errno::XDEV) => self.copy_across(id, at, name),
                moved => moved.map_err(|errno| Trouble::Fault(id, on_destination(Op::Rename)(errno))),
            };
        }
        self.make(id, at, name)
    }

    /// Makes the copy of what has no bytes.
    fn make(&mut self, id: NodeId, at: BorrowedFd<'_>, name: &Name) -> Result<(), Trouble> {
        let node = self.tree.node(id);
        let mode = Mode::from_raw_mode(0o600);
        let made = match node.kind() {
            FileType::Directory => mkdirat(at, name.as_c_str(), Mode::from_raw_mode(0o700)),
            FileType::Symlink => {
                let target = std::ffi::CString::new(self.tree.text(node.content)).unwrap_or_default();
                symlinkat(target.as_c_str(), at, name.as_c_str())
            }
            FileType::RegularFile => {
                debug_assert!(node.copy != Copy::Done, "a copied file has a place");
                let path = self.path_of(id, crate::copier::Side::Source);
                return Err(Error::Defect(format!("{} was not copied", path.display())).into());
            }
            kind => {
                let (major, minor) = node.attributes.device().unwrap_or_default();
                let device: Dev = makedev(major, minor);
                match mknodat(at, name.as_c_str(), kind, mode, device) {
                    Err(Errno::PERM) if kind != FileType::Fifo => {
                        let path = self.path_of(id, crate::copier::Side::Source);
                        self.warn(Some(path), "is a device node, which this process may not make: left out");
                        self.tree.node_mut(id).excluded = true;
                        Ok(())
                    }
                    made => made,
                }
            }
        };
        made.map_err(|errno| Trouble::Fault(id, on_destination(Op::Create)(errno)))
    }

    /// Gives a node one more name. Its first one may come later in the order: then it is linked from limbo. False if
    /// the destinations lie on several filesystems, so that this name got a copy of its own.
    fn place_link(&mut self, id: NodeId, at: BorrowedFd<'_>, name: &Name) -> Result<bool, Trouble> {
        if self.tree.node(id).placed == Placed::No {
            // A symbolic link, FIFO or device that is not made yet.
            let pair = self.tree.node(id).pair;
            let limbo = self.pairs[pair as usize].destination.limbo.try_clone();
            let limbo = limbo.map_err(|e| Trouble::from(Error::io(Op::Open, "limbo", e)))?;
            let number = Name::number(id);
            let _ = unlinkat(&limbo, number.as_c_str(), AtFlags::empty());
            self.make(id, limbo.as_fd(), &number)?;
            let node = self.tree.node_mut(id);
            if node.excluded {
                return Ok(true);
            }
            (node.placed, node.pair_of_copy) = (Placed::Limbo, pair);
        }
        let node = self.tree.node(id);
        let linked = match node.placed {
            Placed::In(parent, first) => {
                let first = self.tree.name(first);
                linkat(self.open_staged(parent)?, first.as_c_str(), at, name.as_c_str(), AtFlags::empty())
            }
            _ => {
                let limbo = &self.pairs[node.pair_of_copy as usize].destination.limbo;
                linkat(limbo, Name::number(id).as_c_str(), at, name.as_c_str(), AtFlags::empty())
            }
        };
        match linked {
            Ok(()) => Ok(true),
            Err(Errno::XDEV) if self.tree.node(id).is_file() => {
                self.copy_across(id, at, name).map(|()| false)
            }
            Err(Errno::XDEV) => self.make(id, at, name).map(|()| false),
            Err(errno) => Err(Trouble::Fault(id, on_destination(Op::Link)(errno))),
        }
    }

    /// Copies the copy of a file to another destination's filesystem: its source was moved from one source to another,
    /// or has names in both.
    fn copy_across(&mut self, id: NodeId, at: BorrowedFd<'_>, name: &Name) -> Result<(), Trouble> {
        let fault = |fault| Trouble::Fault(id, fault);
        let from = match self.tree.node(id).placed {
            Placed::In(parent, first) => {
                let directory = self.open_staged(parent)?;
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                openat(&directory, self.tree.name(first).as_c_str(), flags, Mode::empty())
                    .map_err(|errno| fault(on_destination(Op::Open)(errno)))?
            }
            _ => self.open_copy(id, OFlags::RDONLY)?,
        };
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let to = openat(at, name.as_c_str(), flags, Mode::from_raw_mode(0o600))
            .map_err(|errno| fault(on_destination(Op::Create)(errno)))?;
        let size = self.tree.node(id).copied_size;
        let reserve = self.pairs[self.tree.node(id).pair as usize].reserve;
        let space = Space { desk: &self.desk, copy: to.as_fd(), reserve };
        let mut hurry = Hurry::new(0, &self.control, space);
        copy_range(
            &Source::through_cache(from),
            to.as_fd(),
            0..size,
            Holes { likely: true, fresh: true },
            &mut self.buffer,
            &mut hurry,
        )
        .map_err(fault)?;
        rustix::fs::ftruncate(&to, size).map_err(|errno| fault(on_destination(Op::Resize)(errno)))
    }
}
