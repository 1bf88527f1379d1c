//! Files of the sources that are changed in a way of their own: mapped, by streams, by other processes.
//!
//! All such files of the system are looked up first, and then the sources are listed for their inodes: a path would not tell a
//! hard link, and of most files nothing has to be known.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, StatxFlags, openat};
use rustix::io::Errno;

use super::{Finding, Kind, Verdict};
use crate::error::{Error, Op, Result};
use crate::intercept::device;
use crate::sys::streams::Streams;
use crate::{beneath, direct, mappings, streams, suspects};

const MAPPED: &str = "is mapped: pages stored to before the cut are in the copy, which is as consistent as the program keeps the \
                      mapping at the cut, by coming to rest in before_cut";
const MAPPED_UNWATCHED: &str = "is mapped, and stores to it cannot be watched: it is copied whole in the freeze, and is as \
                                consistent as the program keeps the mapping at the cut";
const STREAM: &str = "is written through a stream of the C library: it is copied whole in the freeze, without what the stream may \
                      hold back";

/// What is found out about files before it is known which are in the sources, by device and inode.
#[derive(Default)]
struct Candidates {
    files: HashMap<(u64, u64), Vec<Finding>>,
}

/// Adds what is found of the files below `sources`.
pub(super) fn examine(sources: &[PathBuf], found: &mut Vec<Finding>) -> Result<()> {
    if sources.is_empty() {
        return Ok(());
    }
    let mut candidates = Candidates::default();
    candidates.add_mappings();
    if !candidates.add_streams() {
        let text = "open and close too fast to be told";
        found.push(Finding::new(Kind::Stream, Verdict::Untold, "streams of the C library", text));
    }
    suspects::each_writer(
        |dev, ino| Some((dev, ino)),
        |file, way, _| {
            let text =
                format!("{}: it is copied whole in the freeze, until two looks at it agree", way.now());
            candidates.add(file, Kind::Process, Verdict::CopiedAgain, &text);
        },
    );
    for source in sources {
        candidates.find_below(source, found)?;
    }
    Ok(())
}

impl Candidates {
    fn add(&mut self, file: (u64, u64), kind: Kind, verdict: Verdict, text: &str) {
        let known = self.files.entry(file).or_default();
        if known.iter().all(|other| other.text != text) {
            known.push(Finding::new(kind, verdict, PathBuf::new(), text));
        }
    }

    fn add_mappings(&mut self) {
        let (verdict, text) = match mappings::store_watch() {
            Ok(_) => (Verdict::Captured, MAPPED),
            Err(_) => (Verdict::CopiedAgain, MAPPED_UNWATCHED),
        };
        mappings::each_writable(|file| self.add(file, Kind::Mapping, verdict, text));
    }

    /// False if the streams cannot be told.
    fn add_streams(&mut self) -> bool {
        let thread = direct::host_thread();
        let mut add = |file| self.add(file, Kind::Stream, Verdict::CopiedAgain, STREAM);
        // A C library without such a list is said to have none in docs/limits.md.
        Streams::find().is_none_or(|list| streams::each_file(list, thread, &mut add))
    }

    /// Tells of those that are below `source`, each at the first path that is found to it.
    fn find_below(&mut self, source: &Path, found: &mut Vec<Finding>) -> Result<()> {
        let root = openat(CWD, source, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| Error::io(Op::Open, source, errno))?;
        let mut inodes: HashSet<u64> = self.files.keys().map(|file| file.1).collect();
        let mut to_list = vec![PathBuf::new()];
        while let Some(below) = to_list.pop().filter(|_| !self.files.is_empty()) {
            let list = || -> Result<(OwnedFd, Dir), Errno> {
                let directory = open(root.as_fd(), &below)?;
                let entries = Dir::read_from(&directory)?;
                Ok((directory, entries))
            };
            let failed = |errno| Error::io(Op::List, source.join(&below), errno);
            let (directory, entries) = match list() {
                Err(errno) if beneath::is_vanished(errno) => continue,
                listed => listed.map_err(failed)?,
            };
            for entry in entries {
                let entry = entry.map_err(failed)?;
                let name = entry.file_name();
                let kind = entry.file_type();
                let is_candidate = kind != FileType::Directory && inodes.contains(&entry.ino());
                if name == c"." || name == c".." || !(is_candidate || may_be_directory(kind)) {
                    continue;
                }
                // What has gone meanwhile is no finding.
                let Ok(now) = beneath::look(directory.as_fd(), name, StatxFlags::empty()) else { continue };
                let path = below.join(OsStr::from_bytes(name.to_bytes()));
                if FileType::from_raw_mode(now.stx_mode.into()) == FileType::Directory {
                    to_list.push(path);
                } else if let Some(known) = self.files.remove(&(device(&now), now.stx_ino)) {
                    let path = source.join(path);
                    let of_file = known.into_iter();
                    found.extend(of_file.map(|finding| Finding { subject: path.clone(), ..finding }));
                    inodes = self.files.keys().map(|file| file.1).collect();
                }
            }
        }
        Ok(())
    }
}

/// Not every filesystem says what an entry is.
fn may_be_directory(kind: FileType) -> bool {
    matches!(kind, FileType::Directory | FileType::Unknown)
}

/// Opens a directory to list it.
fn open(root: BorrowedFd<'_>, below: &Path) -> Result<OwnedFd, Errno> {
    let mut path = below.as_os_str().as_bytes().to_vec();
    path.push(0);
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let directory = beneath::open(root, &mut path, flags, Mode::empty())?;
    beneath::reopen_to_read(directory.as_fd(), OFlags::DIRECTORY)
}
