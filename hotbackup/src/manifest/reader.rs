//! Reads a manifest line by line, once its checksum has been found right.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Statx, StatxFlags, statx};
use serde::Deserialize;
use xxhash_rust::xxh3::Xxh3;

use super::{
    BLOCK_BYTES, CHECKSUM_LINE, ENTRIES_BEGIN, EntryLine, FORMAT, FooterLine, HeaderLine, Kind, Run,
    block_count, checksum_line, number_of, time_of, zeros_digest,
};
use crate::attributes::Time;
use crate::error::{Error, Op, Result};

/// An open manifest that is what was once written.
pub(crate) struct Manifest {
    path: PathBuf,
    lines: BufReader<File>,
    line: String,
    /// Device and inode of the manifest itself.
    pub(crate) identity: (u32, u32, u64),
    /// The destinations as they were called when the backup was made.
    pub(crate) destinations: Vec<PathBuf>,
    /// The same as seen from the manifest's directory, if all lie below that.
    pub(crate) below: Option<Vec<PathBuf>>,
    /// The instant that the backup shows, in UTC, RFC 3339.
    pub(crate) cut: String,
    entries: u64,
}

/// An entry as a manifest has it.
#[derive(Debug)]
pub(crate) struct Expected {
    pub(crate) tree: usize,
    /// Below the tree's root; made of plain names only.
    pub(crate) path: PathBuf,
    pub(crate) kind: Kind,
    pub(crate) size: u64,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    pub(crate) target: Option<PathBuf>,
    pub(crate) device: Option<(u32, u32)>,
    pub(crate) group: Option<u64>,
    pub(crate) xattrs: u64,
    /// `None` if an earlier entry of the group has them, and for other kinds than files.
    pub(crate) blocks: Option<Vec<Run>>,
}

/// Device and inode.
pub(crate) fn identity(found: &Statx) -> (u32, u32, u64) {
    (found.stx_dev_major, found.stx_dev_minor, found.stx_ino)
}

impl Manifest {
    /// Opens a manifest and checks it against its checksum. `ENOENT` is an [`Error::Io`] like any other failure to
    /// read it; what is no manifest is an [`Error::Manifest`].
    pub(crate) fn open(path: &Path) -> Result<Manifest> {
        let opening = |e: rustix::io::Errno| Error::io(Op::Open, path, e);
        // A pipe of this name must not keep us waiting.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(opening)?;
        let found = statx(fd.as_fd(), c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)
            .map_err(|e| Error::io(Op::Examine, path, e))?;
        if FileType::from_raw_mode(found.stx_mode.into()) != FileType::RegularFile {
            return Err(unusable(path, "it is not a file"));
        }
        let mut file = File::from(fd);
        check(&mut file, found.stx_size, path)?;
        let mut manifest = Manifest {
            path: path.to_owned(),
            lines: BufReader::with_capacity(64 << 10, file),
            line: String::new(),
            identity: identity(&found),
            destinations: Vec::new(),
            below: None,
            cut: String::new(),
            entries: 0,
        };
        manifest.read_header()?;
        Ok(manifest)
    }

    pub(crate) fn unusable(&self, reason: impl Into<String>) -> Error {
        unusable(&self.path, reason)
    }

    fn read_line(&mut self) -> Result<()> {
        self.line.clear();
        self.lines.read_line(&mut self.line).map_err(|e| Error::io(Op::Read, &self.path, e)).map(drop)
    }

    fn read_header(&mut self) -> Result<()> {
        #[derive(Deserialize)]
        struct Version {
            hotbackup_manifest: u32,
        }
        self.read_line()?;
        let Some(header) = self.line.strip_suffix(ENTRIES_BEGIN) else {
            return Err(self.unusable("it does not begin like a manifest"));
        };
        let header = format!("{header}}}");
        let not_json = |e: serde_json::Error| self.unusable(e.to_string());
        let version: Version = serde_json::from_str(&header).map_err(not_json)?;
        if version.hotbackup_manifest > FORMAT {
            return Err(self.unusable(format!(
                "its format is {}, and this version of hotbackup understands {FORMAT} and older",
                version.hotbackup_manifest
            )));
        }
        let header: HeaderLine<'_> = serde_json::from_str(&header).map_err(not_json)?;
        if header.block_bytes != BLOCK_BYTES as u64 {
            return Err(self.unusable(format!("its blocks have {} bytes", header.block_bytes)));
        }
        let destinations: Option<Vec<_>> = header.trees.iter().map(|tree| tree.destination.path()).collect();
        let below = header.trees.iter().map(|tree| tree.below.as_ref()?.path()).collect();
        let (destinations, cut) = (destinations, header.cut.into_owned());
        self.destinations = destinations.ok_or_else(|| self.unusable("a destination has no name"))?;
        (self.below, self.cut) = (below, cut);
        Ok(())
    }

    /// The next entry; `None` behind the last, if there are as many as there should be.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Expected>> {
        self.read_line()?;
        let line = self.line.trim_end_matches('\n');
        if line.is_empty() && self.entries == 0 && self.line == "\n" {
            self.read_line()?;
            return self.read_footer().map(|()| None);
        }
        if line.starts_with(']') {
            return self.read_footer().map(|()| None);
        }
        let number = self.entries + 1;
        let line = line.strip_suffix(',').unwrap_or(line);
        let entry: EntryLine<'_> =
            serde_json::from_str(line).map_err(|e| self.unusable(format!("entry {number}: {e}")))?;
        let wrong = |what: &str| self.unusable(format!("entry {number}: {what}"));
        let expected = expected(&entry).map_err(wrong)?;
        if expected.tree >= self.destinations.len() {
            return Err(wrong("there is no such tree"));
        }
        self.entries = number;
        Ok(Some(expected))
    }

    fn read_footer(&self) -> Result<()> {
        let footer = self.line.strip_prefix("],").and_then(|line| line.strip_suffix(",\n"));
        let footer = format!("{{{}}}", footer.ok_or_else(|| self.unusable("its entries have no end"))?);
        let footer: FooterLine<'_> =
            serde_json::from_str(&footer).map_err(|e| self.unusable(e.to_string()))?;
        if footer.entries_count != self.entries {
            return Err(
                self.unusable(format!("it has {} entries instead of {}", self.entries, footer.entries_count))
            );
        }
        Ok(())
    }
}

fn unusable(path: &Path, reason: impl Into<String>) -> Error {
    Error::Manifest { path: path.to_owned(), reason: reason.into() }
}

/// Compares the checksum at the end of the manifest with the bytes before it, and goes back to the beginning.
fn check(file: &mut File, size: u64, path: &Path) -> Result<()> {
    let reading = |e: std::io::Error| Error::io(Op::Read, path, e);
    let Some(mut left) = size.checked_sub(CHECKSUM_LINE as u64) else {
        return Err(unusable(path, "it is too short"));
    };
    let mut hash = Xxh3::new();
    let mut buffer = vec![0; 64 << 10];
    while left > 0 {
        let piece = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let got = file.read(&mut buffer[..piece]).map_err(reading)?;
        if got == 0 {
            return Err(unusable(path, "it became shorter"));
        }
        hash.update(&buffer[..got]);
        left -= got as u64;
    }
    let mut last = Vec::with_capacity(CHECKSUM_LINE);
    file.take(CHECKSUM_LINE as u64 + 1).read_to_end(&mut last).map_err(reading)?;
    if last != checksum_line(hash.digest()).as_bytes() {
        return Err(unusable(path, "its checksum is wrong, so it was altered or cut off"));
    }
    file.seek(SeekFrom::Start(0)).map_err(reading)?;
    Ok(())
}

/// Understands a line, or says what is wrong with it.
fn expected(entry: &EntryLine<'_>) -> Result<Expected, &'static str> {
    let path = entry.path.path().ok_or("its path is not hexadecimal")?;
    if !is_plain(&path) {
        return Err("its path leaves the tree");
    }
    let size = entry.size.unwrap_or(0);
    let digest = |text: &str| (text.len() == 16).then(|| number_of(text.as_bytes()))?;
    let mode = u32::from_str_radix(&entry.mode, 8).ok();
    Ok(Expected {
        tree: entry.tree,
        path,
        kind: entry.kind,
        size,
        mode: mode.filter(|mode| *mode <= 0o7777).ok_or("its mode is no mode")?,
        uid: entry.uid,
        gid: entry.gid,
        mtime: time_of(&entry.mtime).ok_or("its time is no time")?,
        target: match &entry.target {
            Some(target) => Some(target.path().ok_or("its target is not hexadecimal")?),
            None => None,
        },
        device: entry.device,
        group: entry.group,
        xattrs: match entry.xattrs.as_deref() {
            Some(text) => digest(text).ok_or("the checksum of its attributes is none")?,
            None => 0,
        },
        blocks: match &entry.blocks {
            Some(blocks) => {
                Some(runs(blocks, size).ok_or("the checksums of its blocks do not fit its size")?)
            }
            None => None,
        },
    })
}

/// Whether every component is a plain name, with nothing that leads elsewhere.
fn is_plain(path: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let bytes = path.as_os_str().as_bytes();
    let plain = |part: &[u8]| !part.is_empty() && part != b"." && part != b"..";
    bytes.is_empty() || (!bytes.contains(&0) && bytes.split(|&b| b == b'/').all(plain))
}

fn runs(text: &str, size: u64) -> Option<Vec<Run>> {
    let (parts, rest) = text.as_bytes().as_chunks::<16>();
    let mut runs = Vec::with_capacity(parts.len());
    let mut blocks = 0u64;
    for part in parts {
        let run = match part {
            [b'z', count @ ..] => Run { digest: zeros_digest(BLOCK_BYTES), blocks: number_of(count)? },
            digest => Run::from(number_of(digest)?),
        };
        blocks = blocks.checked_add(run.blocks)?;
        runs.push(run);
    }
    (rest.is_empty() && blocks == block_count(size)).then_some(runs)
}
