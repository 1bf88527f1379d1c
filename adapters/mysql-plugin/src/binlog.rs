//! Reading a binary log: where its last complete group of events ends, and which transactions were logged by then.
//!
//! That is what a server keeps when it recovers from a crash: a transaction whose last event is in the log is committed,
//! one whose events break off is rolled back. Only headers and a few small kinds of events are read, others are skipped;
//! compressed transactions are one event, which need not be opened. A small part of the format is needed, for both families
//! of servers at once (MySQL's tagged GTIDs, MariaDB's GTIDs), and the plugin is to stay small: so this is no library's.
//!
//! Whatever is not understood is refused with a sentence, never guessed. Memory is bounded by [`LONGEST`].

mod gtids;
#[cfg(test)]
pub(crate) mod tests;

use std::io::{BufReader, ErrorKind, Read, Seek};

#[cfg(test)]
use gtids::Compact;
use gtids::Gtid;
pub(crate) use gtids::Gtids;

/// The numbers of the kinds of events that say where groups begin and end.
mod kind {
    pub(super) const QUERY: u8 = 2;
    pub(super) const INTVAR: u8 = 5;
    pub(super) const APPEND_BLOCK: u8 = 9;
    pub(super) const RAND: u8 = 13;
    pub(super) const USER_VAR: u8 = 14;
    pub(super) const FORMAT_DESCRIPTION: u8 = 15;
    pub(super) const XID: u8 = 16;
    pub(super) const BEGIN_LOAD_QUERY: u8 = 17;
    pub(super) const EXECUTE_LOAD_QUERY: u8 = 18;
    pub(super) const TABLE_MAP: u8 = 19;
    /// Rows in the forms of three versions.
    pub(super) const ROWS: [u8; 10] = [20, 21, 22, 23, 24, 25, 30, 31, 32, 39];
    pub(super) const INCIDENT: u8 = 26;
    pub(super) const ROWS_QUERY: u8 = 29;
    pub(super) const GTID: u8 = 33;
    pub(super) const ANONYMOUS_GTID: u8 = 34;
    pub(super) const PREVIOUS_GTIDS: u8 = 35;
    pub(super) const XA_PREPARE: u8 = 38;
    pub(super) const TRANSACTION_PAYLOAD: u8 = 40;
    pub(super) const TAGGED_GTID: u8 = 42;
    /// From here on they are MariaDB's.
    pub(super) const ANNOTATE_ROWS: u8 = 160;
    pub(super) const MARIADB_GTID: u8 = 162;
    pub(super) const MARIADB_GTID_LIST: u8 = 163;
    pub(super) const START_ENCRYPTION: u8 = 164;
    pub(super) const QUERY_COMPRESSED: u8 = 165;
    pub(super) const ROWS_COMPRESSED: std::ops::RangeInclusive<u8> = 166..=171;
}

const MAGIC: &[u8; 4] = b"\xfebin";
const ENCRYPTED_MAGIC: &[u8; 4] = b"\xfdbin";
const HEADER: usize = 19;
const CHECKSUM: usize = 4;
/// Of an event's flags, in its header: the server did not close this log. The checksum does not cover it.
const IN_USE: u8 = 1;
/// The longest event that is read whole: a list of GTIDs with millions of gaps.
const LONGEST: usize = 64 << 20;
/// What is read of a statement at most: its text may be gigabytes, and what is wanted lies at its beginning.
const STATEMENT: usize = 128 << 10;

const ENCRYPTED: &str = "the binary log is encrypted, and its key is the server's";

/// What a log holds.
#[derive(Debug)]
pub(crate) struct Found {
    /// The end of the last complete group.
    pub(crate) position: u64,
    /// What was logged until then, in this log and, as it says of itself, in those before it.
    pub(crate) gtids: Gtids,
    /// There is more in it than what every log begins with: if not, what was logged before it may not be there yet.
    pub(crate) has_begun: bool,
}

/// Reads a log to its end, or to where it breaks off. `None` if not even what every log begins with is there.
pub(crate) fn read(log: impl Read + Seek) -> Result<Option<Found>, String> {
    let Some(mut log) = Log::open(log)? else { return Ok(None) };
    let mut walk = Walk::default();
    while let Some(event) = log.next()? {
        walk.take(&event)?;
    }
    let Walk { position, gtids, has_begun, .. } = walk;
    Ok((position > 0).then_some(Found { position, gtids, has_begun }))
}

/// One event: its header, and of its body what is wanted, without the checksum.
struct Event {
    kind: u8,
    server: u32,
    body: Vec<u8>,
    end: u64,
}

/// A log that is read from its beginning.
struct Log<R> {
    input: BufReader<R>,
    at: u64,
    size: u64,
    has_checksums: bool,
}

impl<R: Read + Seek> Log<R> {
    fn open(mut log: R) -> Result<Option<Log<R>>, String> {
        let size = log.seek(std::io::SeekFrom::End(0)).and_then(|size| log.rewind().map(|()| size));
        let mut log = Log {
            input: BufReader::with_capacity(64 << 10, log),
            at: 0,
            size: size.map_err(|e| e.to_string())?,
            has_checksums: false,
        };
        let mut magic = [0; 4];
        if !log.fill(&mut magic)? {
            return Ok(None);
        }
        match &magic {
            MAGIC => Ok(Some(log)),
            ENCRYPTED_MAGIC => Err(ENCRYPTED.into()),
            _ => Err("it does not begin like a binary log".into()),
        }
    }

    /// Fills the buffer, or says that the log ends before.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<bool, String> {
        match self.input.read_exact(buffer) {
            Ok(()) => {
                self.at += buffer.len() as u64;
                Ok(true)
            }
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => Ok(false),
            Err(e) => Err(e.to_string()),
        }
    }

    /// The next event; `None` at the end, also if an event is not there in full.
    fn next(&mut self) -> Result<Option<Event>, String> {
        let (begin, mut header) = (self.at, [0; HEADER]);
        if !self.fill(&mut header)? {
            return Ok(None);
        }
        let damaged = || format!("the event at {begin} is damaged");
        let len = number::<4>(&header, 9).ok_or_else(damaged)?;
        let end = begin + len;
        let body = usize::try_from(len).ok().and_then(|len| len.checked_sub(HEADER)).ok_or_else(damaged)?;
        if end > self.size {
            return Ok(None);
        }
        let kind = header[4];
        let wanted = match kind {
            kind::QUERY => body.min(STATEMENT),
            kind::FORMAT_DESCRIPTION
            | kind::GTID
            | kind::TAGGED_GTID
            | kind::PREVIOUS_GTIDS
            | kind::MARIADB_GTID
            | kind::MARIADB_GTID_LIST => body,
            _ => 0,
        };
        if wanted > LONGEST {
            return Err(format!("the event at {begin} is longer than any that is expected"));
        }
        let mut bytes = vec![0; wanted];
        if !self.fill(&mut bytes)? {
            return Ok(None);
        }
        if kind == kind::FORMAT_DESCRIPTION {
            // Its checksum's kind, and the checksum, come last, whether checksums are on or not.
            let at = bytes.len().checked_sub(CHECKSUM + 1).ok_or_else(damaged)?;
            self.has_checksums = match bytes[at] {
                0 => false,
                1 => true,
                other => return Err(format!("its checksums are of the unknown kind {other}")),
            };
            header[17] &= !IN_USE;
        }
        if self.has_checksums && wanted == body {
            let text = body.checked_sub(CHECKSUM).ok_or_else(damaged)?;
            if number::<4>(&bytes, text) != Some(u64::from(crc32(&[&header, &bytes[..text]]))) {
                return Err(format!("the event at {begin} does not have its checksum"));
            }
            bytes.truncate(text);
        }
        let skipped = i64::try_from(end - self.at).map_err(|_| damaged())?;
        self.input.seek_relative(skipped).map_err(|e| e.to_string())?;
        self.at = end;
        let server = u32::try_from(number::<4>(&header, 5).unwrap_or(0)).unwrap_or(0);
        Ok(Some(Event { kind, server, body: bytes, end }))
    }
}

/// The little-endian number of `N` bytes at `at`.
fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(N)?)?;
    Some(bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
}

/// The checksum of IEEE 802.3, as zlib has it.
fn crc32(pieces: &[&[u8]]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            let (mut value, mut bit) = (byte as u32, 0);
            while bit < 8 {
                value = (value >> 1) ^ if value & 1 == 1 { 0xedb8_8320 } else { 0 };
                bit += 1;
            }
            table[byte] = value;
            byte += 1;
        }
        table
    };
    let bytes = pieces.iter().copied().flatten();
    !bytes.fold(!0, |crc: u32, &byte| (crc >> 8) ^ TABLE[usize::from(crc as u8 ^ byte)])
}

/// Where a walk through a log has come.
#[derive(Default)]
struct Walk {
    has_begun: bool,
    position: u64,
    gtids: Gtids,
    /// The GTID of the group that is open.
    gtid: Option<Gtid>,
    is_open: bool,
    /// The group ends with a commit, not with its first statement.
    is_transaction: bool,
}

impl Walk {
    fn take(&mut self, event: &Event) -> Result<(), String> {
        let damaged = || format!("the event that ends at {} is damaged", event.end);
        self.has_begun |= event.kind != kind::FORMAT_DESCRIPTION;
        match event.kind {
            kind::START_ENCRYPTION => return Err(ENCRYPTED.into()),
            kind::PREVIOUS_GTIDS => {
                self.gtids = Gtids::previous(&event.body).ok_or_else(damaged)?;
                self.outside(event.end);
            }
            kind::MARIADB_GTID_LIST => {
                self.gtids = Gtids::list(&event.body).ok_or_else(damaged)?;
                self.outside(event.end);
            }
            kind::GTID | kind::TAGGED_GTID => {
                let tagged = event.kind == kind::TAGGED_GTID;
                let gtid = if tagged { Gtid::tagged(&event.body) } else { Gtid::plain(&event.body) };
                self.begin(Some(gtid.ok_or_else(damaged)?), false);
            }
            kind::ANONYMOUS_GTID => self.begin(None, false),
            kind::MARIADB_GTID => {
                let (gtid, alone) = Gtid::mariadb(&event.body, event.server).ok_or_else(damaged)?;
                self.begin(Some(gtid), !alone);
            }
            kind::QUERY => self.statement(statement(&event.body).ok_or_else(damaged)?, event.end),
            kind::QUERY_COMPRESSED | kind::EXECUTE_LOAD_QUERY | kind::INCIDENT => {
                self.statement(b"", event.end);
            }
            kind::XID | kind::XA_PREPARE | kind::TRANSACTION_PAYLOAD => self.complete(event.end),
            kind::INTVAR | kind::RAND | kind::USER_VAR | kind::TABLE_MAP | kind::ROWS_QUERY => {
                self.is_open = true;
            }
            kind::BEGIN_LOAD_QUERY | kind::APPEND_BLOCK | kind::ANNOTATE_ROWS => self.is_open = true,
            rows if kind::ROWS.contains(&rows) || kind::ROWS_COMPRESSED.contains(&rows) => {
                self.is_open = true
            }
            _ => self.outside(event.end),
        }
        Ok(())
    }

    /// What belongs to no group.
    fn outside(&mut self, end: u64) {
        if !self.is_open {
            self.position = end;
        }
    }

    fn begin(&mut self, gtid: Option<Gtid>, is_transaction: bool) {
        (self.gtid, self.is_open, self.is_transaction) = (gtid, true, is_transaction);
    }

    fn statement(&mut self, text: &[u8], end: u64) {
        let ends = matches!(text, b"COMMIT" | b"ROLLBACK")
            || text.starts_with(b"XA COMMIT ")
            || text.starts_with(b"XA ROLLBACK ");
        if text == b"BEGIN" || text.starts_with(b"XA START ") {
            (self.is_open, self.is_transaction) = (true, true);
        } else if ends || !self.is_transaction {
            self.complete(end);
        }
    }

    fn complete(&mut self, end: u64) {
        if let Some(gtid) = self.gtid.take() {
            self.gtids.add(gtid);
        }
        (self.is_open, self.is_transaction) = (false, false);
        self.position = end;
    }
}

/// The text of a statement, or its beginning if it is long.
fn statement(body: &[u8]) -> Option<&[u8]> {
    const FIXED: usize = 13;
    let database = usize::from(*body.get(8)?);
    let status = usize::try_from(number::<2>(body, 11)?).ok()?;
    body.get(FIXED + status + database + 1..)
}
