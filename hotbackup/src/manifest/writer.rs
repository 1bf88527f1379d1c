//! Writes a manifest entry by entry.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::FileType;
use xxhash_rust::xxh3::Xxh3;

use super::{
    BLOCK_BYTES, ENTRIES_BEGIN, Entry, EntryLine, FORMAT, FooterLine, Header, HeaderLine, Kind, Name, Run,
    TreeLine, checksum_line, rfc3339, zeros_digest,
};
use crate::backup::Warning;

/// How much is gathered before it is written.
const BUFFER: usize = 64 << 10;

/// A manifest that is being written to `W`. Without [`ManifestWriter::finish`] what was written is no manifest.
pub(crate) struct ManifestWriter<W: Write> {
    out: W,
    buffer: Vec<u8>,
    hash: Xxh3,
    footer: FooterLine<'static>,
}

impl<W: Write> ManifestWriter<W> {
    pub(crate) fn begin(out: W, header: &Header) -> io::Result<Self> {
        let time = |time: SystemTime| rfc3339(time).into();
        let line = HeaderLine {
            hotbackup_manifest: FORMAT,
            library: env!("CARGO_PKG_VERSION").into(),
            started: time(header.started),
            cut: time(header.cut),
            freeze_ns: u64::try_from(header.freeze.as_nanos()).unwrap_or(u64::MAX),
            block_bytes: BLOCK_BYTES as u64,
            trees: header.trees.iter().map(|tree| tree_line(tree, header.beside.as_deref())).collect(),
        };
        let mut writer = ManifestWriter {
            out,
            buffer: Vec::with_capacity(2 * BUFFER),
            hash: Xxh3::new(),
            footer: FooterLine::default(),
        };
        serde_json::to_writer(&mut writer.buffer, &line)?;
        writer.buffer.pop();
        writer.put(ENTRIES_BEGIN.as_bytes())?;
        Ok(writer)
    }

    /// Adds an entry. A regular file comes with the checksums of all its blocks, except if an earlier entry of its
    /// [`Entry::group`] did; other kinds have none.
    pub(crate) fn entry<B>(&mut self, entry: &Entry<'_>, blocks: Option<B>) -> io::Result<()>
    where
        B: IntoIterator<Item = Run>,
    {
        if self.footer.entries_count > 0 {
            self.put(b",\n")?;
        }
        let is_file = entry.attributes.kind == FileType::RegularFile;
        serde_json::to_writer(&mut self.buffer, &line_of(entry))?;
        if let Some(blocks) = blocks.filter(|_| is_file) {
            self.buffer.pop();
            self.put(b",\"blocks\":\"")?;
            self.blocks(blocks)?;
            self.put(b"\"}")?;
            self.footer.files += 1;
            self.footer.bytes += entry.attributes.size;
        }
        self.footer.entries_count += 1;
        self.footer.directories += u64::from(entry.attributes.kind == FileType::Directory);
        self.put(b"")
    }

    /// One block of data is 16 hexadecimal digits, blocks of zeros in a row are a `z` and their number in 15.
    fn blocks(&mut self, runs: impl IntoIterator<Item = Run>) -> io::Result<()> {
        /// What 15 digits hold; more than any file has.
        const LONGEST: u64 = (1 << 60) - 1;
        let mut zeros = 0u64;
        for run in runs {
            if run.digest == zeros_digest(BLOCK_BYTES) {
                zeros = zeros.saturating_add(run.blocks).min(LONGEST);
                continue;
            }
            self.zeros(&mut zeros)?;
            for _ in 0..run.blocks {
                write!(self.buffer, "{:016x}", run.digest)?;
                self.put(b"")?;
            }
        }
        self.zeros(&mut zeros)
    }

    fn zeros(&mut self, blocks: &mut u64) -> io::Result<()> {
        match std::mem::take(blocks) {
            0 => Ok(()),
            blocks => write!(self.buffer, "z{blocks:015x}"),
        }
    }

    /// Adds what the reader of the backup should know, and the checksum of it all; returns the output, with everything
    /// written to it and nothing synced.
    pub(crate) fn finish(mut self, warnings: &[Warning]) -> io::Result<W> {
        self.put(b"\n],")?;
        let mut footer = std::mem::take(&mut self.footer);
        footer.warnings = warnings.iter().map(|warning| warning.to_string().into()).collect();
        let footer = serde_json::to_string(&footer)?;
        self.put(footer.trim_start_matches('{').trim_end_matches('}').as_bytes())?;
        self.put(b",\n")?;
        self.flush()?;
        self.out.write_all(checksum_line(self.hash.digest()).as_bytes())?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= BUFFER {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.hash.update(&self.buffer);
        self.out.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }
}

fn tree_line<'a>((source, destination): &'a (PathBuf, PathBuf), beside: Option<&Path>) -> TreeLine<'a> {
    let below = beside.and_then(|beside| destination.strip_prefix(beside).ok());
    let below = below.filter(|below| !below.as_os_str().is_empty()).map(Name::of);
    TreeLine { source: Name::of(source), destination: Name::of(destination), below }
}

fn line_of<'a>(entry: &Entry<'a>) -> EntryLine<'a> {
    let attributes = entry.attributes;
    let kind = Kind::from(attributes.kind);
    EntryLine {
        tree: entry.tree,
        path: Name::of(entry.path),
        kind,
        size: (kind == Kind::File).then_some(attributes.size),
        mode: format!("{:04o}", attributes.mode).into(),
        uid: attributes.uid,
        gid: attributes.gid,
        mtime: attributes.mtime.to_string().into(),
        atime: attributes.atime.to_string().into(),
        target: entry.target.map(Name::of),
        device: attributes.device(),
        group: entry.group,
        xattrs: (entry.xattrs != 0).then(|| format!("{:016x}", entry.xattrs).into()),
        blocks: None,
    }
}
