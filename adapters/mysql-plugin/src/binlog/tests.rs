//! Method: logs are put together from events as the servers write them, and read; then every log is cut off at every byte,
//! and damaged at random, which may be refused but not panic nor be taken for more than there is. The tagged events are bytes
//! that MySQL 9.7 wrote.

use std::io::Cursor;

use super::*;

const UUID: [u8; 16] = *b"0123456789abcdef";
const UUID_TEXT: &str = "30313233-3435-3637-3839-616263646566";

/// A log under construction.
struct Sample {
    bytes: Vec<u8>,
    checksums: bool,
}

impl Sample {
    fn new(checksums: bool) -> Sample {
        let mut sample = Sample { bytes: MAGIC.to_vec(), checksums };
        let mut body = vec![0; 2 + 50 + 4 + 1 + 40];
        body.push(u8::from(checksums));
        if !checksums {
            // The room for a checksum is there all the same.
            body.extend([0; CHECKSUM]);
        }
        sample.event(kind::FORMAT_DESCRIPTION, &body);
        sample
    }

    fn mysql(checksums: bool, intervals: &[(u64, u64)]) -> Sample {
        let mut body = u64::from(!intervals.is_empty()).to_le_bytes().to_vec();
        if !intervals.is_empty() {
            body.extend(UUID);
            body.extend((intervals.len() as u64).to_le_bytes());
            intervals.iter().for_each(|(a, b)| body.extend([a.to_le_bytes(), b.to_le_bytes()].concat()));
        }
        let mut sample = Sample::new(checksums);
        sample.event(kind::PREVIOUS_GTIDS, &body);
        sample
    }

    fn mariadb(entries: &[(u32, u32, u64)]) -> Sample {
        let mut body = (entries.len() as u32).to_le_bytes().to_vec();
        for (domain, server, sequence) in entries {
            body.extend([domain.to_le_bytes(), server.to_le_bytes()].concat());
            body.extend(sequence.to_le_bytes());
        }
        let mut sample = Sample::new(true);
        sample.event(kind::MARIADB_GTID_LIST, &body);
        sample
    }

    /// Adds an event, and returns where it ends.
    fn event(&mut self, kind: u8, body: &[u8]) -> u64 {
        let len = HEADER + body.len() + if self.checksums { CHECKSUM } else { 0 };
        let begin = self.bytes.len();
        self.bytes.extend([0, 0, 0, 0, kind, 7, 0, 0, 0]);
        self.bytes.extend((len as u32).to_le_bytes());
        self.bytes.extend(((begin + len) as u32).to_le_bytes());
        self.bytes.extend([0, 0]);
        self.bytes.extend(body);
        if self.checksums {
            let checksum = crc32(&[&self.bytes[begin..]]);
            self.bytes.extend(checksum.to_le_bytes());
        }
        if kind == kind::FORMAT_DESCRIPTION {
            self.bytes[begin + 17] = IN_USE;
        }
        self.end()
    }

    fn end(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn query(&mut self, text: &str) -> u64 {
        let mut body = vec![0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 3, 0];
        body.extend(b"\x01\x02\x03db\0");
        body.extend(text.as_bytes());
        self.event(kind::QUERY, &body)
    }

    fn gtid(&mut self, number: u64) -> u64 {
        let mut body = vec![0];
        body.extend(UUID);
        body.extend(number.to_le_bytes());
        body.extend([2; 17]);
        self.event(kind::GTID, &body)
    }

    fn mariadb_gtid(&mut self, domain: u32, number: u64, flags: u8) -> u64 {
        let mut body = number.to_le_bytes().to_vec();
        body.extend(domain.to_le_bytes());
        body.extend([flags, 0, 0, 0, 0, 0, 0]);
        self.event(kind::MARIADB_GTID, &body)
    }

    fn transaction(&mut self) -> u64 {
        self.query("BEGIN");
        self.event(kind::TABLE_MAP, &[1; 30]);
        self.event(kind::ROWS[6], &[2; 50]);
        self.event(kind::XID, &[3; 8])
    }

    fn read(&self) -> Option<(u64, String)> {
        let found = read(Cursor::new(&self.bytes)).unwrap_or_else(|e| panic!("{e}"));
        found.filter(|found| found.has_begun).map(|found| (found.position, found.gtids.to_string()))
    }
}

/// A log of MySQL with one of each, and the places where it has complete groups, with the numbers logged by then.
fn of_mysql(checksums: bool) -> (Sample, Vec<(u64, String)>) {
    let mut sample = Sample::mysql(checksums, &[(1, 5), (7, 8)]);
    let set = |text: &str| format!("{UUID_TEXT}:{text}");
    let mut ends = vec![(sample.end(), set("1-4:7"))];
    sample.gtid(6);
    ends.push((sample.transaction(), set("1-4:6-7")));
    sample.gtid(5);
    ends.push((sample.query("CREATE TABLE t (i INT)"), set("1-7")));
    sample.gtid(8);
    sample.event(kind::TRANSACTION_PAYLOAD, &[9; 500]);
    ends.push((sample.end(), set("1-8")));
    sample.gtid(9);
    sample.query("XA START X'78',X'',1");
    sample.event(kind::ROWS[6], &[2; 50]);
    sample.query("XA END X'78',X'',1");
    ends.push((sample.event(kind::XA_PREPARE, &[0; 9]), set("1-9")));
    sample.event(kind::ANONYMOUS_GTID, &[0; 42]);
    sample.query("BEGIN");
    sample.event(kind::INTVAR, &[0; 9]);
    sample.query("INSERT INTO t VALUES (1)");
    sample.query("SAVEPOINT `s`");
    ends.push((sample.query("COMMIT"), set("1-9")));
    ends.push((sample.event(4, b"\x04\0\0\0\0\0\0\0next.000002"), set("1-9")));
    (sample, ends)
}

fn of_mariadb() -> (Sample, Vec<(u64, String)>) {
    let mut sample = Sample::mariadb(&[(0, 1, 40), (0, 2, 39), (5, 1, 3)]);
    let mut ends = vec![(sample.end(), "0-2-39,5-1-3".into())];
    ends.push((sample.event(161, b"\x08\0\0\0log.0001"), "0-2-39,5-1-3".into()));
    sample.mariadb_gtid(0, 41, 1);
    sample.event(kind::INTVAR, &[0; 9]);
    ends.push((sample.query("CREATE TABLE t (i INT)"), "0-7-41,5-1-3".into()));
    sample.mariadb_gtid(5, 4, 4);
    sample.event(kind::ANNOTATE_ROWS, b"INSERT");
    sample.event(kind::TABLE_MAP, &[1; 30]);
    sample.event(166, &[2; 50]);
    ends.push((sample.event(kind::XID, &[3; 8]), "0-7-41,5-7-4".into()));
    sample.mariadb_gtid(0, 42, 0);
    sample.query("INSERT INTO m VALUES (1)");
    ends.push((sample.query("COMMIT"), "0-7-42,5-7-4".into()));
    (sample, ends)
}

#[test]
fn wherever_a_log_breaks_off_its_complete_groups_count() {
    for (sample, ends) in [of_mysql(true), of_mysql(false), of_mariadb()] {
        for len in 0..=sample.bytes.len() {
            let cut = Sample { bytes: sample.bytes[..len].to_vec(), checksums: sample.checksums };
            let expected = ends.iter().rev().find(|(end, _)| *end <= len as u64);
            assert_eq!(cut.read().as_ref(), expected, "of {len} bytes");
        }
    }
}

/// As MySQL 5.6 makes one without GTIDs.
#[test]
fn a_new_log_may_have_nothing_before_its_first_group() {
    let mut sample = Sample::new(true);
    let found = read(Cursor::new(&sample.bytes)).expect("a log").expect("its beginning is there");
    assert_eq!((found.position, found.has_begun), (sample.end(), false));
    let end = sample.transaction();
    assert_eq!(sample.read(), Some((end, String::new())));
}

#[test]
fn groups_without_gtids_are_known_by_their_statements() {
    let mut sample = Sample::mysql(true, &[]);
    let end = sample.transaction();
    sample.query("BEGIN");
    sample.query("ROLLBACK TO `s`");
    assert_eq!(sample.read(), Some((end, String::new())));
    let end = sample.query("ROLLBACK");
    assert_eq!(sample.read(), Some((end, String::new())));
    let end = sample.query(&"x".repeat(3 * STATEMENT));
    assert_eq!(sample.read(), Some((end, String::new())));
}

/// A UUID, then two tags of it, and a transaction under one of them.
#[test]
fn tagged_gtids_are_as_mysql_9_writes_them() {
    let uuid = b"\x9f\x6e\xd2\x68\xe8\xe9\x11\xf1\x9b\x2c\x02\xfc\x00\x00\x00\x01";
    let one = |tag: &[u8], end: u64| {
        [&uuid[..], tag, &1u64.to_le_bytes(), &1u64.to_le_bytes(), &end.to_le_bytes()].concat()
    };
    let head = b"\x01\x03\0\0\0\0\0\x01".to_vec();
    let previous = [head, one(b"\0", 4), one(b"\x04ab", 2), one(b"\x0etag_one", 3)].concat();
    let mut sample = Sample::new(true);
    let begin = sample.event(kind::PREVIOUS_GTIDS, &previous);
    let name = "9f6ed268-e8e9-11f1-9b2c-02fc00000001";
    assert_eq!(sample.read(), Some((begin, format!("{name}:1-3:ab:1:tag_one:1-2"))));
    let gtid = b"\x02\x6e\0\0\0\x02\x7d\x02\xdc\x49\x03\xd0\xa1\x03\xa5\x03\x22\xc5\x03\x6d\x02\x58\x04\xf1\x03\0\0\0\
        \x02\x04\x08\x06\x04ab\x08\0\x0a\x04\x0c\x7f\xcd\x2d\xbc\xf4\x1b\x61\x06\x10\x9d\x03\x12\x83\x12\x0b\xeb";
    sample.event(kind::TAGGED_GTID, gtid);
    let end = sample.event(kind::TRANSACTION_PAYLOAD, &[0; 90]);
    assert_eq!(sample.read(), Some((end, format!("{name}:1-3:ab:1-2:tag_one:1-2"))));
}

#[test]
fn numbers_are_as_long_as_they_need() {
    let of = |bytes: &[u8]| Compact(bytes).number();
    assert_eq!((of(b"\x02"), of(b"\x7d\x02"), of(b"\x03\0\x10")), (Some(1), Some(0x9f), Some(0x2_0000)));
    assert_eq!(of(b"\xff\x01\x02\x03\x04\x05\x06\x07\x08"), Some(0x0807_0605_0403_0201));
    assert_eq!((of(b""), of(b"\x01"), of(b"\xff\x01")), (None, None, None));
}

#[test]
fn what_is_encrypted_is_refused() {
    let refusal = read(Cursor::new(b"\xfdbin and what not")).expect_err("encrypted");
    assert_eq!(refusal, ENCRYPTED);
    let mut sample = Sample::new(true);
    sample.event(kind::START_ENCRYPTION, &[1; 17]);
    sample.bytes.extend([0x5a; 1000]);
    assert_eq!(read(Cursor::new(&sample.bytes)).expect_err("encrypted"), ENCRYPTED);
    let refusal = read(Cursor::new(b"[mysqld]")).expect_err("no log");
    assert!(refusal.contains("does not begin like"), "{refusal}");
}

#[test]
fn damage_is_refused_or_harmless() {
    let seed = std::env::var("HOTBACKUP_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1u64);
    let mut random = seed;
    let mut below = |limit: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % limit
    };
    let samples = [of_mysql(true), of_mysql(false), of_mariadb()];
    let (mut refused, mut read_on) = (0, 0);
    for round in 0..100_000 {
        let (sample, _) = &samples[round % samples.len()];
        let mut bytes = sample.bytes[..=below(sample.bytes.len())].to_vec();
        for _ in 0..=below(4) {
            let at = below(bytes.len());
            bytes[at] ^= 1 << below(8);
        }
        match read(Cursor::new(&bytes)) {
            Err(_) => refused += 1,
            Ok(found) => {
                read_on += 1;
                let position = found.map_or(0, |found| found.position);
                assert!(position <= bytes.len() as u64, "seed {seed}, round {round}");
            }
        }
    }
    assert!(refused > 10_000 && read_on > 10_000, "{refused} refused, {read_on} not: that proves little");
}

/// What every log begins with.
pub(crate) fn beginning() -> Vec<u8> {
    Sample::new(true).bytes
}

/// A log with a transaction, and where that ends, with another that breaks off.
pub(crate) fn with_a_transaction() -> (Vec<u8>, u64) {
    let mut sample = Sample::mysql(true, &[]);
    let end = sample.transaction();
    sample.transaction();
    sample.bytes.pop();
    (sample.bytes, end)
}
