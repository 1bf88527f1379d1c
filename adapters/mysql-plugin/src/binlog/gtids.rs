//! Sets of global transaction identifiers, as both families log and write them.

use std::collections::BTreeMap;
use std::fmt;

use super::number;

/// Who made a transaction in MySQL: a server's UUID, and a tag or nothing.
type Origin = ([u8; 16], String);

/// One transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Gtid {
    MySql(Origin, u64),
    MariaDb { domain: u32, server: u32, sequence: u64 },
}

impl Gtid {
    /// From a Gtid event of MySQL.
    pub(super) fn plain(body: &[u8]) -> Option<Gtid> {
        let uuid = body.get(1..17)?.try_into().ok()?;
        Some(Gtid::MySql((uuid, String::new()), transaction(number::<8>(body, 17)?)?))
    }

    /// From a Gtid_tagged event of MySQL 8.3 and later: fields with their numbers, of which the first are wanted. They are
    /// the flags (0), the UUID (1), the number (2) and the tag (3).
    pub(super) fn tagged(body: &[u8]) -> Option<Gtid> {
        let mut input = Compact(body);
        // Version of the format, size of the event, and the last field that a reader has to know.
        let (version, _, _) = (input.number()?, input.number()?, input.number()?);
        let _flags = (input.number()? == 0).then(|| input.number())??;
        let mut uuid = [0; 16];
        if version != 1 || input.number()? != 1 {
            return None;
        }
        for byte in &mut uuid {
            *byte = u8::try_from(input.number()?).ok()?;
        }
        // A number with a sign, which is in its lowest bit.
        let sequence = (input.number()? == 2).then(|| input.number())??;
        let tag = (input.number()? == 3).then(|| input.text())??;
        Some(Gtid::MySql((uuid, tag), transaction((sequence & 1 == 0).then_some(sequence >> 1)?)?))
    }

    /// From a Gtid event of MariaDB, and whether its group is one statement alone.
    pub(super) fn mariadb(body: &[u8], server: u32) -> Option<(Gtid, bool)> {
        const STANDALONE: u8 = 1;
        let domain = u32::try_from(number::<4>(body, 8)?).ok()?;
        let gtid = Gtid::MariaDb { domain, server, sequence: number::<8>(body, 0)? };
        Some((gtid, body.get(12)? & STANDALONE != 0))
    }
}

/// A transaction's number, if it is one.
fn transaction(number: u64) -> Option<u64> {
    (1..1 << 63).contains(&number).then_some(number)
}

/// Numbers that take as many bytes as they need: the first byte's lowest bits that are set count those that follow it.
pub(super) struct Compact<'a>(pub(super) &'a [u8]);

impl Compact<'_> {
    pub(super) fn number(&mut self) -> Option<u64> {
        let more = self.0.first()?.trailing_ones() as usize;
        let bytes = self.0.get(..=more)?;
        let whole = bytes.iter().rev().fold(0u128, |number, &byte| number << 8 | u128::from(byte));
        self.0 = &self.0[more + 1..];
        u64::try_from(whole >> (more + 1).min(8)).ok()
    }

    fn text(&mut self) -> Option<String> {
        let len = usize::try_from(self.number()?).ok()?;
        let text = String::from_utf8(self.0.get(..len)?.to_vec()).ok()?;
        self.0 = &self.0[len..];
        // What the servers allow: it goes into files that others read.
        text.bytes().all(|byte| byte == b'_' || byte.is_ascii_alphanumeric()).then_some(text)
    }
}

/// A set of transactions. One of the two is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Gtids {
    /// Half-open intervals of numbers, in order, that do not overlap.
    mysql: BTreeMap<Origin, Vec<(u64, u64)>>,
    /// The last transaction of every domain: by which server, and its number.
    mariadb: BTreeMap<u32, (u32, u64)>,
}

impl Gtids {
    /// From a Previous_gtids event of MySQL.
    pub(super) fn previous(body: &[u8]) -> Option<Gtids> {
        let count = number::<8>(body, 0)?;
        // Since there are tags, the highest byte tells whether they are there, and the lowest tells it too.
        let is_tagged = count >> 56 == 1;
        let count = if is_tagged { count << 8 >> 16 } else { count };
        let mut at = Compact(body.get(8..)?);
        let mut gtids = Gtids::default();
        for _ in 0..count {
            let uuid = at.0.get(..16)?.try_into().ok()?;
            at.0 = &at.0[16..];
            let tag = if is_tagged { at.text()? } else { String::new() };
            let intervals = number::<8>(at.0, 0)?;
            at.0 = &at.0[8..];
            let mine = gtids.mysql.entry((uuid, tag)).or_default();
            for _ in 0..intervals {
                let (start, end) = (number::<8>(at.0, 0)?, number::<8>(at.0, 8)?);
                at.0 = &at.0[16..];
                // They are in order, and at.0 bounds how many there are.
                if transaction(start)? >= end || mine.last().is_some_and(|&(_, last)| last > start) {
                    return None;
                }
                mine.push((start, end));
            }
        }
        Some(gtids)
    }

    /// From a Gtid_list event of MariaDB. Of a domain's servers, the one that logged last comes last.
    pub(super) fn list(body: &[u8]) -> Option<Gtids> {
        let count = usize::try_from(number::<4>(body, 0)? & 0x0fff_ffff).ok()?;
        let entries = body.get(4..4 + count.checked_mul(16)?)?;
        let mut gtids = Gtids::default();
        for entry in entries.chunks(16) {
            let small = |at| number::<4>(entry, at).and_then(|number| u32::try_from(number).ok());
            gtids.mariadb.insert(small(0)?, (small(4)?, number::<8>(entry, 8)?));
        }
        Some(gtids)
    }

    pub(super) fn add(&mut self, gtid: Gtid) {
        match gtid {
            Gtid::MariaDb { domain, server, sequence } => {
                self.mariadb.insert(domain, (server, sequence));
            }
            Gtid::MySql(origin, number) => {
                let intervals = self.mysql.entry(origin).or_default();
                let after = intervals.partition_point(|&(start, _)| start <= number);
                let joins_before = after > 0 && intervals[after - 1].1 >= number;
                let joins_after = intervals.get(after).is_some_and(|&(start, _)| start == number + 1);
                match (joins_before, joins_after) {
                    (true, true) => intervals[after - 1].1 = intervals.remove(after).1,
                    (true, false) => {
                        let end = &mut intervals[after - 1].1;
                        *end = (*end).max(number + 1);
                    }
                    (false, true) => intervals[after].0 = number,
                    (false, false) => intervals.insert(after, (number, number + 1)),
                }
            }
        }
    }
}

impl fmt::Display for Gtids {
    /// As the server writes it: `UUID:1-5:7:tag:1-2,UUID:...` or `domain-server-number,...`, in one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut before: Option<&[u8; 16]> = None;
        for ((uuid, tag), intervals) in &self.mysql {
            if before != Some(uuid) {
                f.write_str(if before.is_some() { "," } else { "" })?;
                write_uuid(f, uuid)?;
            }
            before = Some(uuid);
            if !tag.is_empty() {
                write!(f, ":{tag}")?;
            }
            for (start, end) in intervals {
                write!(f, ":{start}")?;
                if end - start > 1 {
                    write!(f, "-{}", end - 1)?;
                }
            }
        }
        for (index, (domain, (server, sequence))) in self.mariadb.iter().enumerate() {
            write!(f, "{}{domain}-{server}-{sequence}", if index > 0 { "," } else { "" })?;
        }
        Ok(())
    }
}

fn write_uuid(f: &mut fmt::Formatter<'_>, uuid: &[u8; 16]) -> fmt::Result {
    for (index, byte) in uuid.iter().enumerate() {
        let dash = if matches!(index, 4 | 6 | 8 | 10) { "-" } else { "" };
        write!(f, "{dash}{byte:02x}")?;
    }
    Ok(())
}
