//! The manifest: what a complete backup holds, written last, and the mark of one that is not complete.
//!
//! `conductor` writes it while it publishes, [`verify`](crate::verify()) reads it. It is one JSON document with one
//! entry to a line, so both go through it without holding it in memory; docs/manifest.md describes it for others.
//!
//! Invariant: the last line is a checksum of every byte before it, so whatever was cut off or altered by accident is
//! not taken for a manifest.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::FileType;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::attributes::{Attributes, Time};

mod digester;
mod mark;
mod reader;
mod writer;

pub(crate) use digester::Digester;
pub(crate) use mark::{MARK_TEXT_NAME, Mark, mark_text};
pub(crate) use reader::{Expected, Manifest, identity};
pub(crate) use writer::ManifestWriter;

/// The name of the manifest at the root of a destination.
pub const MANIFEST_NAME: &str = "hotbackup-manifest.json";
/// The directory at the root of a destination that says that its backup is not complete.
pub const INCOMPLETE_MARK: &str = "HOTBACKUP-INCOMPLETE";

/// The format that this version writes, and the newest that it reads.
const FORMAT: u32 = 1;
/// The bytes of a file that one checksum is about; the last one may be about fewer.
pub(crate) const BLOCK_BYTES: usize = 256 << 10;

static ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

/// The checksum of one block: XXH3, 64 bits, seed 0. It finds accidents, not forgery.
pub(crate) fn block_digest(block: &[u8]) -> u64 {
    xxh3_64(block)
}

/// So many zeros, at most [`BLOCK_BYTES`].
fn zeros(len: usize) -> &'static [u8] {
    &ZEROS[..len]
}

/// The checksum of a block of `len` zeros, at most [`BLOCK_BYTES`].
pub(crate) fn zeros_digest(len: usize) -> u64 {
    static WHOLE: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    if len < BLOCK_BYTES { block_digest(zeros(len)) } else { *WHOLE.get_or_init(|| block_digest(&ZEROS)) }
}

/// How many blocks a file of `size` bytes has.
pub(crate) fn block_count(size: u64) -> u64 {
    size.div_ceil(BLOCK_BYTES as u64)
}

/// So many blocks in a row with one checksum: holes can be long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) digest: u64,
    pub(crate) blocks: u64,
}

impl From<u64> for Run {
    fn from(digest: u64) -> Run {
        Run { digest, blocks: 1 }
    }
}

/// What the manifest says about the backup as a whole.
#[derive(Clone, Debug)]
pub(crate) struct Header {
    pub(crate) started: SystemTime,
    pub(crate) cut: SystemTime,
    pub(crate) freeze: Duration,
    /// Every source with its destination.
    pub(crate) trees: Vec<(PathBuf, PathBuf)>,
    /// The directory that the manifest lies in, if that is none of the destinations.
    pub(crate) beside: Option<PathBuf>,
}

/// One entry of a tree.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry<'a> {
    /// Which of [`Header::trees`] it is in.
    pub(crate) tree: usize,
    /// Its path below the tree's root; empty for the root itself.
    pub(crate) path: &'a Path,
    /// What it has in the destination: see [`Applied`](crate::attributes::Applied).
    pub(crate) attributes: &'a Attributes,
    /// What a symbolic link says.
    pub(crate) target: Option<&'a Path>,
    /// A number that the entries of one inode share, where it has several; unique among all trees.
    pub(crate) group: Option<u64>,
    /// [`xattr_digest`](crate::attributes::xattr_digest) of what it has in the destination.
    pub(crate) xattrs: u64,
}

/// The words for kinds of entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    Fifo,
    Character,
    Block,
    Socket,
    Unknown,
}

impl From<FileType> for Kind {
    fn from(kind: FileType) -> Kind {
        match kind {
            FileType::RegularFile => Kind::File,
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Symlink,
            FileType::Fifo => Kind::Fifo,
            FileType::CharacterDevice => Kind::Character,
            FileType::BlockDevice => Kind::Block,
            FileType::Socket => Kind::Socket,
            FileType::Unknown => Kind::Unknown,
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Kind::File => "a file",
            Kind::Directory => "a directory",
            Kind::Symlink => "a symbolic link",
            Kind::Fifo => "a named pipe",
            Kind::Character => "a character device",
            Kind::Block => "a block device",
            Kind::Socket => "a socket",
            Kind::Unknown => "of no known kind",
        })
    }
}

/// A name as JSON has it: text, or hexadecimal digits if it is not UTF-8.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum Name<'a> {
    Text(#[serde(borrow)] Cow<'a, str>),
    Hex { hex: Cow<'a, str> },
}

impl<'a> Name<'a> {
    fn of(path: &'a Path) -> Name<'a> {
        match path.to_str() {
            Some(text) => Name::Text(Cow::Borrowed(text)),
            None => Name::Hex { hex: hex_of(path.as_os_str().as_bytes()).into() },
        }
    }

    fn path(&self) -> Option<PathBuf> {
        match self {
            Name::Text(text) => Some(PathBuf::from(&**text)),
            Name::Hex { hex } => Some(PathBuf::from(OsStr::from_bytes(&bytes_of(hex)?))),
        }
    }
}

fn hex_of(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes_of(hex: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = hex.as_bytes().as_chunks::<2>();
    let byte = |pair: &[u8; 2]| u8::try_from(number_of(pair)?).ok();
    rest.is_empty().then(|| pairs.iter().map(byte).collect())?
}

/// The number that lower-case hexadecimal digits stand for; nothing else is accepted (`from_str_radix` takes a sign).
fn number_of(digits: &[u8]) -> Option<u64> {
    let ok = |d: &u8| d.is_ascii_digit() || (b'a'..=b'f').contains(d);
    let text = digits.iter().all(ok).then(|| std::str::from_utf8(digits).ok())??;
    u64::from_str_radix(text, 16).ok()
}

/// The first line, without the entries that follow.
#[derive(Debug, Serialize, Deserialize)]
struct HeaderLine<'a> {
    hotbackup_manifest: u32,
    library: Cow<'a, str>,
    started: Cow<'a, str>,
    cut: Cow<'a, str>,
    freeze_ns: u64,
    block_bytes: u64,
    #[serde(borrow)]
    trees: Vec<TreeLine<'a>>,
}

#[derive(Debug, Serialize, Deserialize)]
struct TreeLine<'a> {
    #[serde(borrow)]
    source: Name<'a>,
    #[serde(borrow)]
    destination: Name<'a>,
    /// The destination as seen from the manifest's directory, if it lies below that.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    below: Option<Name<'a>>,
}

/// The line of an entry, but for the checksums of its blocks, which come last.
#[derive(Debug, Serialize, Deserialize)]
struct EntryLine<'a> {
    #[serde(default, skip_serializing_if = "is_zero")]
    tree: usize,
    #[serde(borrow)]
    path: Name<'a>,
    #[serde(rename = "type")]
    kind: Kind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    mode: Cow<'a, str>,
    uid: u32,
    gid: u32,
    mtime: Cow<'a, str>,
    atime: Cow<'a, str>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    target: Option<Name<'a>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    device: Option<(u32, u32)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    group: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    xattrs: Option<Cow<'a, str>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    blocks: Option<Cow<'a, str>>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the shape that serde asks for")]
fn is_zero(tree: &usize) -> bool {
    *tree == 0
}

/// The line behind the entries.
#[derive(Debug, Default, Serialize, Deserialize)]
struct FooterLine<'a> {
    entries_count: u64,
    files: u64,
    directories: u64,
    bytes: u64,
    #[serde(borrow)]
    warnings: Vec<Cow<'a, str>>,
}

/// What follows the header's own fields on the first line.
const ENTRIES_BEGIN: &str = ",\"entries\":[\n";
/// How the last line begins and ends; 16 hexadecimal digits lie between.
const CHECKSUM_BEGIN: &str = "\"checksum\":\"";
const CHECKSUM_END: &str = "\"}\n";
const CHECKSUM_LINE: usize = CHECKSUM_BEGIN.len() + 16 + CHECKSUM_END.len();

fn checksum_line(digest: u64) -> String {
    format!("{CHECKSUM_BEGIN}{digest:016x}{CHECKSUM_END}")
}

/// Seconds since 1970 and nanoseconds, which always count forwards, as the kernel has them.
fn time_of(text: &str) -> Option<Time> {
    let (seconds, nanoseconds) = text.split_once('.')?;
    Some(Time { seconds: seconds.parse().ok()?, nanoseconds: nanoseconds.parse().ok()? })
}

/// A time in UTC as RFC 3339 writes it, with nanoseconds.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    let since = |from: SystemTime, to: SystemTime| to.duration_since(from).unwrap_or_default();
    let (after, before) = (since(SystemTime::UNIX_EPOCH, time), since(time, SystemTime::UNIX_EPOCH));
    let ns = i128::try_from(after.as_nanos()).unwrap_or(0) - i128::try_from(before.as_nanos()).unwrap_or(0);
    let sec = i64::try_from(ns.div_euclid(1_000_000_000)).unwrap_or(0);
    let (day, of_day) = (sec.div_euclid(86_400), sec.rem_euclid(86_400));
    let (year, month, day) = civil(day);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:09}Z",
        of_day / 3600,
        of_day / 60 % 60,
        of_day % 60,
        ns.rem_euclid(1_000_000_000)
    )
}

/// The date of a day counted from 1970-01-01. Years are taken to begin in March, so that a leap day is a year's last.
fn civil(day: i64) -> (i64, i64, i64) {
    const DAYS_IN_400_YEARS: i64 = 146_097;
    let day = day + 719_468;
    let era = day.div_euclid(DAYS_IN_400_YEARS);
    let day = day.rem_euclid(DAYS_IN_400_YEARS);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let march_month = (5 * of_year + 2) / 153;
    let of_month = of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (era * 400 + year + i64::from(month <= 2), month, of_month)
}

#[cfg(test)]
mod tests;
