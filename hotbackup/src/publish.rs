//! Publishing: syncing, the manifest, and the mark that goes last.
//!
//! The order is what makes promise 6 hold: everything is in place and synced before the mark of an incomplete backup
//! goes, in every destination.

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat};
use rustix::io::Errno;

use crate::attributes::Attributes;
use crate::backup::ManifestPlace;
use crate::conductor::{Engine, Trouble};
use crate::copier::on_destination;
use crate::cut::Cut;
use crate::destination::Raw;
use crate::durable::Syncing;
use crate::error::{Error, Op, Result};
use crate::finish::XattrDigests;
use crate::manifest::{Entry, Header, INCOMPLETE_MARK, MANIFEST_NAME, ManifestWriter, Run};
use crate::tree::{NO_NODE, Name, NodeId, Placed};

impl Engine<'_> {
    /// Makes the destinations whole. Returns where the manifest lies.
    pub(crate) fn publish(&mut self, cut: &Cut) -> Result<Option<PathBuf>> {
        let directories = self.reconcile()?;
        let mut xattrs = self.finish(&directories)?;
        let syncing = self.sync_staged(&directories)?;
        for index in 0..self.pairs.len() {
            self.move_into_place(index, &mut xattrs)?;
        }
        let manifest = self.write_manifest(cut, &directories, &xattrs, syncing)?;
        for pair in &self.pairs {
            pair.destination.clear_staging()?;
        }
        self.sync_placed(syncing)?;
        for index in 0..self.pairs.len() {
            self.check_alone(index)?;
        }
        for index in 0..self.pairs.len() {
            self.pairs[index].destination.unmark()?;
        }
        for pair in &self.pairs {
            // The backup is complete. That removing the mark has touched the root's times is no reason to fail it.
            let times = self.tree.node(pair.root_node).attributes.times();
            let _ = rustix::fs::futimens(pair.destination.root(), &times);
            let _ = pair.destination.sync_root();
        }
        Ok(manifest)
    }

    /// Nobody may have put anything beside the backup, or moved its destination away, while it was made.
    fn check_alone(&self, index: usize) -> Result<()> {
        let pair = &self.pairs[index];
        pair.destination.check_in_place()?;
        let root = pair.root_node;
        let expected = (0..self.tree.entries(root))
            .map(|entry| self.tree.entry(root, entry))
            .filter(|&(child, _)| !self.tree.node(child).excluded)
            .map(|(_, name)| self.tree.text(name));
        let mut expected: std::collections::HashSet<&[u8]> = expected.collect();
        expected.insert(INCOMPLETE_MARK.as_bytes());
        if index == 0 && self.plan.manifest == ManifestPlace::FirstDestination {
            expected.insert(MANIFEST_NAME.as_bytes());
        }
        pair.destination.check_holds_only(|name| expected.contains(name))
    }

    /// Renames the top entries of a staged tree to the destination's root, and gives directories their attributes
    /// there: a directory that may not be written could not be moved.
    fn move_into_place(&mut self, index: usize, xattrs: &mut XattrDigests) -> Result<()> {
        let root = self.pairs[index].root_node;
        let at = self.clone_root(index)?;
        self.close_root(index)?;
        for entry in 0..self.tree.entries(root) {
            let (child, name) = self.tree.entry(root, entry);
            let node = self.tree.node(child);
            if node.excluded || node.placed == Placed::No {
                continue;
            }
            let name = self.tree.name(name);
            let moved = self.pairs[index].destination.publish_entry(name.as_c_str());
            moved.map_err(|e| self.explain(Trouble::Fault(child, on_destination(Op::Rename)(e))))?;
            if node_is_directory(self, child) {
                self.give(child, at.as_fd(), &name, xattrs)?;
            }
        }
        self.apply_root(index, xattrs)
    }

    /// Lets nobody else into a destination while its entries have their modes and its root has not. One that belongs to
    /// somebody else keeps its mode; it must not let more people in than the source does.
    fn close_root(&self, index: usize) -> Result<()> {
        let pair = &self.pairs[index];
        let failed = |errno| Error::io(Op::SetMode, &pair.destination.path, errno);
        match rustix::fs::fchmod(pair.destination.root(), Mode::from_raw_mode(0o700)) {
            Err(Errno::PERM) => {
                let found = rustix::fs::fstat(pair.destination.root()).map_err(failed)?;
                let wanted = self.tree.node(pair.root_node).attributes.mode;
                let more = found.st_mode & !wanted & 0o077;
                if more == 0 { Ok(()) } else { Err(failed(Errno::PERM)) }
            }
            closed => closed.map_err(failed),
        }
    }

    fn clone_root(&self, index: usize) -> Result<OwnedFd> {
        let destination = &self.pairs[index].destination;
        let root = destination.root().try_clone_to_owned();
        root.map_err(|e| Error::io(Op::Open, &destination.path, e))
    }

    fn apply_root(&mut self, index: usize, xattrs: &mut XattrDigests) -> Result<()> {
        let at = self.clone_root(index)?;
        let Some(name) = Name::new(b".") else { return Ok(()) };
        let root = self.pairs[index].root_node;
        match self.give(root, at.as_fd(), &name, xattrs) {
            // A destination that belongs to somebody else is a good one all the same.
            Err(Error::Io { source, .. }) if source.raw_os_error() == Some(libc::EPERM) => {
                let path = self.pairs[index].destination.path.clone();
                let found = rustix::fs::statx(&at, c"", AtFlags::EMPTY_PATH, Attributes::WANTED)
                    .map_err(|e| Error::io(Op::Examine, &path, e))?;
                self.tree.node_mut(root).attributes = Attributes::from_statx(&found);
                self.warn(Some(path), "belongs to another user: it keeps its own mode, owner and times");
                Ok(())
            }
            applied => applied,
        }
    }

    /// Writes the manifest where it is wanted, and syncs it, if nothing else will. At a destination it comes into place by a rename, whole.
    fn write_manifest(
        &mut self,
        cut: &Cut,
        directories: &[NodeId],
        xattrs: &XattrDigests,
        syncing: Syncing,
    ) -> Result<Option<PathBuf>> {
        let fill = |out: &mut dyn io::Write| self.fill_manifest(out, cut, directories, xattrs);
        match &self.plan.manifest {
            ManifestPlace::None => Ok(None),
            ManifestPlace::FirstDestination => {
                let name = CString::new(MANIFEST_NAME).unwrap_or_default();
                let destination = &self.pairs[0].destination;
                destination.stage_file(&name, syncing == Syncing::Each, fill)?;
                destination.publish_file(&name)?;
                Ok(Some(destination.path.join(MANIFEST_NAME)))
            }
            ManifestPlace::File(path) => {
                write_file(path, fill)?;
                Ok(Some(path.clone()))
            }
        }
    }

    fn fill_manifest(
        &self,
        out: &mut dyn io::Write,
        cut: &Cut,
        directories: &[NodeId],
        xattrs: &XattrDigests,
    ) -> io::Result<()> {
        let trees = self.pairs.iter().map(|pair| (pair.source.clone(), pair.destination.path.clone()));
        let beside = match &self.plan.manifest {
            ManifestPlace::File(path) => path.parent().map(Path::to_owned),
            _ => None,
        };
        let (started, cut, freeze) = (self.begun, cut.instant, cut.freeze);
        let header = Header { started, cut, freeze, trees: trees.collect(), beside };
        let mut manifest = ManifestWriter::begin(out, &header)?;
        let links = self.count_links(directories);
        for &id in directories {
            let below = self.tree.display_path(id);
            let pair = self.tree.node(id).pair as usize;
            if self.tree.node(id).parent == NO_NODE {
                self.write_entry(&mut manifest, id, (&below, pair), None, true, xattrs)?;
            }
            for index in 0..self.tree.entries(id) {
                let (child, name) = self.tree.entry(id, index);
                let node = self.tree.node(child);
                if node.excluded || node.placed == Placed::No {
                    continue;
                }
                let path = below.join(OsStr::from_bytes(self.tree.text(name)));
                let place = (id, index);
                let links = links.get(&child).filter(|_| !self.apart.contains(&place));
                let group = links.map(|_| u64::from(child));
                let first = links.is_none_or(|&first| first == place);
                self.write_entry(&mut manifest, child, (&path, pair), group, first, xattrs)?;
            }
        }
        manifest.finish(&self.warnings).map(drop)
    }

    /// The nodes with several names in the backup, each with the place of its first one.
    fn count_links(&self, directories: &[NodeId]) -> HashMap<NodeId, (NodeId, usize)> {
        let mut first = HashMap::new();
        let mut several = HashMap::new();
        for &id in directories {
            for index in 0..self.tree.entries(id) {
                let (child, _) = self.tree.entry(id, index);
                let node = self.tree.node(child);
                let apart = self.apart.contains(&(id, index));
                if node.excluded || node.is_directory() || node.attributes.nlink < 2 && !node.linked || apart
                {
                    continue;
                }
                if let Some(place) = first.insert(child, (id, index)) {
                    several.entry(child).or_insert(place);
                }
            }
        }
        several
    }

    fn write_entry(
        &self,
        manifest: &mut ManifestWriter<&mut dyn io::Write>,
        id: NodeId,
        (path, tree): (&Path, usize),
        group: Option<u64>,
        first: bool,
        xattrs: &XattrDigests,
    ) -> io::Result<()> {
        let node = self.tree.node(id);
        let target = node.kind() == rustix::fs::FileType::Symlink;
        let target = target.then(|| Path::new(OsStr::from_bytes(self.tree.text(node.content))));
        let entry = Entry {
            tree,
            path,
            attributes: &node.attributes,
            target,
            group,
            xattrs: xattrs.get(&id).copied().unwrap_or(0),
        };
        let runs = self.huge.get(&id).map_or(&[][..], Vec::as_slice);
        let blocks = || node.digests.iter().map(|&digest| Run::from(digest)).chain(runs.iter().copied());
        manifest.entry(&entry, (node.is_file() && first).then(blocks))
    }
}

fn node_is_directory(engine: &Engine<'_>, id: NodeId) -> bool {
    engine.tree.node(id).is_directory()
}

/// Writes a new file, synced with its directory.
fn write_file(path: &Path, fill: impl FnOnce(&mut dyn io::Write) -> io::Result<()>) -> Result<()> {
    let error = |op| move |e: Errno| Error::io(op, path, e);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = openat(CWD, path, flags, Mode::from_raw_mode(0o600)).map_err(error(Op::Create))?;
    let mut out = Raw(file);
    fill(&mut out).map_err(|e| Error::io(Op::Write, path, e))?;
    rustix::fs::fsync(&out.0).map_err(error(Op::Sync))?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = openat(CWD, directory, flags, Mode::empty()).map_err(error(Op::Open))?;
    rustix::fs::fsync(&directory).map_err(error(Op::Sync))
}
