//! Finishing the entries of a backup before it is published: checksums that are still missing, then attributes.
//!
//! Attributes are given to many files at a time, by the copiers, which have nothing else to do then; the engine's tree is
//! only touched by the conductor. A directory gets its own when everything in it has: it may close itself to us.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags, SeekFrom, openat};
use rustix::io::Errno;

use crate::attributes::{self, Applied, Attributes, xattr_digest};
use crate::backup::ManifestPlace;
use crate::conductor::{Engine, Trouble};
use crate::copier::{LARGE, Side, next_data, on_destination};
use crate::digests::{UNKNOWN, blocks_of};
use crate::error::{Error, Op, Result};
use crate::manifest::{BLOCK_BYTES, Run, block_count, block_digest, zeros_digest};
use crate::source;
use crate::tree::{NO_NODE, Name, NodeId};
use crate::writeout::{STEP, write_out};

/// Digests of extended attributes, of those nodes that have any in the destination.
pub(crate) type XattrDigests = HashMap<NodeId, u64>;

/// Files that a copier is given at once.
const BATCH: usize = 128;
/// Batches that may wait for a copier.
const WAITING: usize = 8;
/// How much of a copy is written out at once: an fsync of the host's waits for it.
const AT_ONCE: u64 = 4 << 20;

/// One entry that is to get its attributes.
struct ToGive {
    id: NodeId,
    name: Name,
    attributes: Attributes,
    xattrs: Vec<u8>,
}

/// What became of it.
struct Given {
    id: NodeId,
    result: Result<Applied>,
    /// The digest of the extended attributes that it has now.
    xattrs: u64,
    notes: Vec<String>,
}

/// Entries of one directory.
struct Batch {
    at: Arc<OwnedFd>,
    /// The directory's path, for people.
    path: PathBuf,
    /// Whether they may have inherited an ACL.
    inherits: bool,
    entries: Vec<ToGive>,
}

impl Batch {
    fn give(&self) -> impl Iterator<Item = Given> {
        let path = |entry: &ToGive| self.path.join(OsStr::from_bytes(entry.name.as_bytes()));
        self.entries.iter().map(move |entry| entry.give(self.at.as_fd(), &path(entry), self.inherits))
    }
}

impl ToGive {
    fn give(&self, at: BorrowedFd<'_>, path: &Path, inherits: bool) -> Given {
        let mut notes = Vec::new();
        let name = self.name.as_c_str();
        let result =
            attributes::apply(at, name, path, &self.attributes, &self.xattrs, inherits, &mut |note| {
                notes.push(note);
            });
        let xattrs = match &result {
            Ok(given) if given.xattrs => xattr_digest(&self.xattrs),
            Ok(_) => digest_of_copy(at, &self.name),
            Err(_) => 0,
        };
        Given { id: self.id, result, xattrs, notes }
    }
}

impl Engine<'_> {
    /// Finishes everything but the top directories, which get their attributes when they have moved to their final places.
    /// Returns digests of the extended attributes.
    pub(crate) fn finish(&mut self, directories: &[NodeId]) -> Result<XattrDigests> {
        let mut xattrs = XattrDigests::new();
        let given = Arc::new(Mutex::new(Vec::new()));
        let mut owed = 0;
        // All directories of a copy are ours and have what the topmost one has inherited. A file may have been made in any.
        let inherits = self.pairs.iter().any(|pair| attributes::passes_on_acl(pair.destination.tree.as_fd()));
        for &id in directories {
            self.check().map_err(|t| self.explain(t))?;
            owed += self.finish_files(id, inherits, &given).map_err(|t| self.explain(t))?;
            self.absorb(&given, &mut owed, &mut xattrs)?;
        }
        while owed > 0 && !self.desk.is_idle() {
            self.check().map_err(|t| self.explain(t))?;
            self.desk.wait(Duration::from_millis(10));
            self.absorb(&given, &mut owed, &mut xattrs)?;
        }
        self.absorb(&given, &mut owed, &mut xattrs)?;
        if owed > 0 {
            return Err(Error::Defect("a copier panicked".into()));
        }
        for &id in directories.iter().rev() {
            self.finish_directories(id, &mut xattrs)?;
            self.check().map_err(|t| self.explain(t))?;
        }
        Ok(xattrs)
    }

    /// Completes the checksums of a directory's files, and has everything in it that is no directory given its attributes.
    /// Returns to how many.
    fn finish_files(
        &mut self,
        directory: NodeId,
        inherits: bool,
        given: &Arc<Mutex<Vec<Given>>>,
    ) -> Result<usize, Trouble> {
        let entries = self.first_entries(directory, false);
        if entries.is_empty() {
            return Ok(0);
        }
        let at = Arc::new(self.open_staged(directory)?);
        let path = self.path_of(directory, Side::Destination);
        let mut handed_in = 0;
        for ids in entries.chunks(BATCH) {
            let mut entries = Vec::with_capacity(ids.len());
            for &(id, name) in ids {
                if self.tree.node(id).is_file() {
                    self.complete_digests(id, at.as_fd(), &name)?;
                    self.write_out_copy(id, at.as_fd(), &name)?;
                }
                entries.push(self.to_give(id, name));
            }
            handed_in += entries.len();
            let batch = Batch { at: Arc::clone(&at), path: path.clone(), inherits, entries };
            if self.desk.errands() < WAITING {
                let given = Arc::clone(given);
                self.desk.send(Box::new(move || {
                    let done: Vec<Given> = batch.give().collect();
                    given.lock().extend(done);
                }));
            } else {
                let done: Vec<Given> = batch.give().collect();
                given.lock().extend(done);
            }
        }
        Ok(handed_in)
    }

    fn finish_directories(&mut self, directory: NodeId, xattrs: &mut XattrDigests) -> Result<()> {
        let entries = self.first_entries(directory, true);
        if self.tree.node(directory).parent == NO_NODE || entries.is_empty() {
            return Ok(());
        }
        let at = self.open_staged(directory).map_err(|t| self.explain(t))?;
        entries.into_iter().try_for_each(|(id, name)| self.give(id, at.as_fd(), &name, xattrs))
    }

    /// The entries of a directory that are directories, or that are not. A node with several names is dealt with once.
    pub(crate) fn first_entries(&self, directory: NodeId, directories: bool) -> Vec<(NodeId, Name)> {
        let all = (0..self.tree.entries(directory)).map(|index| (index, self.tree.entry(directory, index)));
        all.filter(|&(index, (id, name))| {
            let node = self.tree.node(id);
            let first = self.is_placed_at(id, directory, name) || self.apart.contains(&(directory, index));
            node.is_directory() == directories && !node.excluded && first
        })
        .map(|(_, (id, name))| (id, self.tree.name(name)))
        .collect()
    }

    fn to_give(&self, id: NodeId, name: Name) -> ToGive {
        let node = self.tree.node(id);
        ToGive { id, name, attributes: node.attributes, xattrs: self.tree.text(node.xattrs).to_vec() }
    }

    /// Gives one entry its attributes, and notes what it has got of them.
    pub(crate) fn give(
        &mut self,
        id: NodeId,
        at: BorrowedFd<'_>,
        name: &Name,
        xattrs: &mut XattrDigests,
    ) -> Result<()> {
        let given = self.to_give(id, *name).give(at, &self.path_of(id, Side::Destination), true);
        self.note_given(given, xattrs)
    }

    fn absorb(
        &mut self,
        given: &Mutex<Vec<Given>>,
        owed: &mut usize,
        xattrs: &mut XattrDigests,
    ) -> Result<()> {
        let done = std::mem::take(&mut *given.lock());
        *owed -= done.len();
        done.into_iter().try_for_each(|given| self.note_given(given, xattrs))
    }

    fn note_given(&mut self, given: Given, xattrs: &mut XattrDigests) -> Result<()> {
        let Given { id, result, xattrs: digest, notes } = given;
        let result = result?;
        if digest != 0 {
            xattrs.insert(id, digest);
        }
        for note in notes {
            self.warn(Some(self.path_of(id, Side::Destination)), note);
        }
        let attributes = &mut self.tree.node_mut(id).attributes;
        (attributes.mode, attributes.uid, attributes.gid) = (result.mode, result.uid, result.gid);
        Ok(())
    }

    /// Reads from the copy the blocks whose checksums are not known: those that were patched.
    fn complete_digests(&mut self, id: NodeId, at: BorrowedFd<'_>, name: &Name) -> Result<(), Trouble> {
        if self.plan.manifest == ManifestPlace::None {
            return Ok(());
        }
        let size = self.tree.node(id).copied_size;
        let fault = |op| move |errno| Trouble::Fault(id, on_destination(op)(errno));
        let open = || {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            openat(at, name.as_c_str(), flags, Mode::empty()).map_err(fault(Op::Open))
        };
        let mut digests = std::mem::take(&mut self.tree.node_mut(id).digests);
        digests.resize(blocks_of(size));
        if size > 0 && digests.is_empty() {
            let runs = digest_runs(open()?.as_fd(), size, &mut self.buffer).map_err(fault(Op::Read))?;
            self.huge.insert(id, runs);
        } else if digests.contains(&UNKNOWN) {
            let copy = open()?;
            let mut copy = HoleAware { copy: copy.as_fd(), data: 0..0, size };
            for (index, digest) in digests.iter_mut().enumerate().filter(|(_, digest)| **digest == UNKNOWN) {
                *digest = copy.digest(index as u64, &mut self.buffer).map_err(fault(Op::Read))?;
            }
        }
        self.tree.node_mut(id).digests = digests;
        Ok(())
    }

    /// Writes the copy of a file out, little at a time, and has the cache let go of it if it is large: the host has better use for
    /// the room.
    fn write_out_copy(&self, id: NodeId, at: BorrowedFd<'_>, name: &Name) -> Result<(), Trouble> {
        let size = self.tree.node(id).copied_size;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if size > STEP
            && let Ok(copy) = openat(at, name.as_c_str(), flags, Mode::empty())
        {
            let mut from = next_data(copy.as_fd(), 0, size);
            while from < size {
                if self.control.is_cancelled() {
                    return Err(Error::Cancelled.into());
                }
                let range = from..size.min(from + AT_ONCE);
                write_out(copy.as_fd(), &range, true).map_err(|fault| Trouble::Fault(id, fault))?;
                from = next_data(copy.as_fd(), range.end, size);
            }
            if size > LARGE {
                source::let_go(copy.as_fd(), 0, size);
            }
        }
        Ok(())
    }
}

/// A copy whose blocks are digested without reading holes: a sparse file can be far larger than its data.
struct HoleAware<'a> {
    copy: BorrowedFd<'a>,
    /// The data found last, as far as it was looked at.
    data: Range<u64>,
    size: u64,
}

impl HoleAware<'_> {
    /// The digest of block `index`; the ones asked for go up.
    fn digest(&mut self, index: u64, buffer: &mut [u8]) -> Result<u64, Errno> {
        let block = BLOCK_BYTES as u64;
        let start = index * block;
        let len = usize::try_from(self.size - start).unwrap_or(BLOCK_BYTES).min(BLOCK_BYTES);
        if start >= self.data.end {
            let from = self.next_data(start)?;
            self.data = from..(from / block + 1) * block;
        }
        if start + len as u64 <= self.data.start {
            return Ok(zeros_digest(len));
        }
        read_exactly(self.copy, &mut buffer[..len], start)?;
        Ok(block_digest(&buffer[..len]))
    }

    /// Where data begins at or behind `at`; the end of the file if there is none.
    fn next_data(&self, at: u64) -> Result<u64, Errno> {
        match rustix::fs::seek(self.copy, SeekFrom::Data(at)) {
            Ok(data) => Ok(data.min(self.size)),
            Err(Errno::NXIO) => Ok(self.size),
            // A filesystem that does not know its holes has none.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(at),
            Err(errno) => Err(errno),
        }
    }
}

/// The digests of a file that is too large to keep one for each block: runs of zeros in holes are one each.
fn digest_runs(copy: BorrowedFd<'_>, size: u64, buffer: &mut [u8]) -> Result<Vec<Run>, Errno> {
    let mut copy = HoleAware { copy, data: 0..0, size };
    let (mut runs, mut index) = (Vec::new(), 0);
    while index < block_count(size) {
        let hole = copy.next_data(index * BLOCK_BYTES as u64)? / BLOCK_BYTES as u64;
        let whole = hole.min(size / BLOCK_BYTES as u64).saturating_sub(index);
        if whole > 0 {
            runs.push(Run { digest: zeros_digest(BLOCK_BYTES), blocks: whole });
            index += whole;
            continue;
        }
        runs.push(Run::from(copy.digest(index, buffer)?));
        index += 1;
    }
    Ok(runs)
}

/// The digest of the extended attributes that a copy has; 0 where they cannot be read.
fn digest_of_copy(at: BorrowedFd<'_>, name: &Name) -> u64 {
    let mut xattrs = Vec::new();
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(at, name.as_c_str(), flags, Mode::empty())
        .and_then(|copy| attributes::append_xattrs(copy.as_fd(), &mut xattrs, false))
        .map_or(0, |_| xattr_digest(&xattrs))
}

fn read_exactly(file: BorrowedFd<'_>, mut buffer: &mut [u8], mut at: u64) -> Result<(), Errno> {
    while !buffer.is_empty() {
        match rustix::io::pread(file, &mut *buffer, at) {
            Ok(0) => return Err(Errno::IO),
            Ok(got) => {
                buffer = &mut buffer[got..];
                at += got as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
