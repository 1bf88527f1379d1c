//! Method: manifests written to memory or a temporary file, read back, and damaged byte by byte and at random.

use super::*;
use crate::backup::Warning;
use crate::error::Error;

fn attributes(kind: FileType, size: u64) -> Attributes {
    Attributes {
        kind,
        mode: 0o4751,
        uid: 1,
        gid: u32::MAX - 1,
        atime: Time { seconds: -2, nanoseconds: 999_999_999 },
        mtime: Time { seconds: 1_700_000_000, nanoseconds: 5 },
        size,
        nlink: 1,
        room_or_device: 8 << 32 | 17,
    }
}

fn header() -> Header {
    Header {
        started: SystemTime::UNIX_EPOCH,
        cut: SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789),
        freeze: Duration::from_micros(1500),
        trees: vec![("/a \"b\"".into(), "/c".into()), (OsStr::from_bytes(b"/\xff").into(), "/d".into())],
        beside: None,
    }
}

fn sample() -> Vec<u8> {
    let mut writer = ManifestWriter::begin(Vec::new(), &header()).expect("memory");
    let no_blocks = None::<[Run; 0]>;
    let of = |path: &'static [u8], attributes| Entry {
        tree: 0,
        path: Path::new(OsStr::from_bytes(path)),
        attributes,
        target: None,
        group: None,
        xattrs: 0,
    };
    let directory = attributes(FileType::Directory, 4096);
    writer.entry(&of(b"", &directory), no_blocks).expect("memory");
    let file = attributes(FileType::RegularFile, 5 * BLOCK_BYTES as u64 + 1);
    let zeros = Run { digest: zeros_digest(BLOCK_BYTES), blocks: 2 };
    let runs = [Run::from(7), zeros, zeros, Run::from(u64::MAX)];
    let mut entry = of(b"not \xff text\n", &file);
    entry.group = Some(3);
    entry.xattrs = 0xabc;
    writer.entry(&entry, Some(runs)).expect("memory");
    entry.path = Path::new("again");
    entry.tree = 1;
    writer.entry(&entry, no_blocks).expect("memory");
    let link = attributes(FileType::Symlink, 3);
    let mut entry = of(b"line\nbreak \xe2\x82\xac \"", &link);
    entry.target = Some(Path::new(OsStr::from_bytes(b"\xf0/..")));
    writer.entry(&entry, no_blocks).expect("memory");
    let node = attributes(FileType::BlockDevice, 0);
    writer.entry(&of(b"node", &node), no_blocks).expect("memory");
    let warning = Warning { path: Some("/x".into()), text: "],\"checksum\":\"".into() };
    writer.finish(&[warning]).expect("memory")
}

fn read(bytes: &[u8]) -> Result<Vec<reader::Expected>, Error> {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), bytes).expect("written");
    let mut manifest = Manifest::open(file.path())?;
    let mut entries = Vec::new();
    while let Some(entry) = manifest.next_entry()? {
        entries.push(entry);
    }
    Ok(entries)
}

/// Puts the right checksum behind `bytes`.
fn sealed(body: &[u8]) -> Vec<u8> {
    let mut sealed = body.to_vec();
    sealed.extend(checksum_line(xxh3_64(body)).into_bytes());
    sealed
}

#[test]
fn what_was_written_is_read_back() {
    let entries = read(&sample()).expect("a manifest");
    let paths: Vec<_> = entries.iter().map(|e| e.path.as_os_str().as_bytes()).collect();
    let wanted: [&[u8]; 5] = [b"", b"not \xff text\n", b"again", b"line\nbreak \xe2\x82\xac \"", b"node"];
    assert_eq!(paths, wanted);
    let file = &entries[1];
    assert_eq!((file.kind, file.mode, file.uid, file.gid), (Kind::File, 0o4751, 1, u32::MAX - 1));
    assert_eq!(
        (file.mtime, file.group, file.xattrs),
        (Time { seconds: 1_700_000_000, nanoseconds: 5 }, Some(3), 0xabc)
    );
    let zeros = Run { digest: zeros_digest(BLOCK_BYTES), blocks: 4 };
    assert_eq!(file.blocks.as_deref(), Some(&[Run::from(7), zeros, Run::from(u64::MAX)][..]));
    assert_eq!((entries[2].tree, entries[2].blocks.as_deref()), (1, None));
    assert_eq!(entries[3].target.as_deref(), Some(Path::new(OsStr::from_bytes(b"\xf0/.."))));
    assert_eq!(entries[4].device, Some((8, 17)));
}

#[test]
fn it_is_one_json_document_with_an_entry_to_a_line() {
    let bytes = sample();
    let whole: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
    assert_eq!(whole["hotbackup_manifest"], 1);
    assert_eq!(whole["cut"], "2023-11-14T22:13:20.123456789Z");
    assert_eq!(whole["trees"][1]["source"]["hex"], "2fff");
    assert_eq!(whole["entries"].as_array().map(Vec::len), Some(5));
    assert_eq!(whole["entries"][1]["atime"], "-2.999999999");
    assert_eq!((&whole["files"], &whole["directories"]), (&1.into(), &1.into()));
    assert_eq!(whole["warnings"][0], "/x: ],\"checksum\":\"");
    assert_eq!(bytes.iter().filter(|&&b| b == b'\n').count(), 1 + 5 + 1 + 1);
}

#[test]
fn one_without_entries_is_one_too() {
    let bytes = ManifestWriter::begin(Vec::new(), &header()).and_then(|writer| writer.finish(&[]));
    let bytes = bytes.expect("memory");
    assert!(serde_json::from_slice::<serde_json::Value>(&bytes).is_ok());
    assert_eq!(read(&bytes).expect("a manifest").len(), 0);
}

#[test]
fn no_altered_byte_and_no_cut_goes_unnoticed() {
    let bytes = sample();
    let mut random = Random(1);
    for at in 0..bytes.len() {
        let mut altered = bytes.clone();
        altered[at] ^= 1 << random.below(8);
        assert!(matches!(read(&altered), Err(Error::Manifest { .. })), "byte {at}");
        assert!(matches!(read(&bytes[..at]), Err(Error::Manifest { .. })), "cut at {at}");
    }
    let mut longer = bytes;
    longer.push(b'\n');
    assert!(read(&longer).is_err());
}

/// Even with the checksum set right, nonsense is an error or other entries, never a panic or a long wait.
#[test]
fn nonsense_with_a_right_checksum_never_panics() {
    let bytes = sample();
    let body = &bytes[..bytes.len() - CHECKSUM_LINE];
    let mut random = Random(2);
    for _ in 0..3000 {
        let mut altered = body.to_vec();
        for _ in 0..=random.below(3) {
            let at = random.below(altered.len());
            match random.below(4) {
                0 => altered[at] = b"{}[]\",:z\n0f-."[random.below(13)],
                1 => drop(
                    altered.drain(at..(at + random.below(40)).min(body.len()).max(at).min(altered.len())),
                ),
                2 => altered.insert(at, b"\"9]\n"[random.below(4)]),
                _ => altered[at] ^= 1 << random.below(8),
            }
            if altered.is_empty() {
                break;
            }
        }
        let _ = read(&sealed(&altered));
    }
}

#[test]
fn paths_that_lead_out_are_refused() {
    let bytes = sample();
    let body = std::str::from_utf8(&bytes[..bytes.len() - CHECKSUM_LINE]).expect("text");
    for bad in ["/etc/passwd", "../x", "a/../../x", "a//b", "a/", "./a", "a\\u0000b"] {
        let altered = body.replace("\"again\"", &format!("\"{bad}\""));
        assert_ne!(altered, body);
        assert!(matches!(read(&sealed(altered.as_bytes())), Err(Error::Manifest { .. })), "{bad}");
    }
    for (from, to) in [
        ("\"tree\":1", "\"tree\":2"),
        ("z000000000000004", "z000000000000005"),
        ("z000000000000004", "zfffffffffffffff"),
        ("\"hotbackup_manifest\":1", "\"hotbackup_manifest\":2"),
        ("\"entries_count\":5", "\"entries_count\":4"),
        ("\"4751\"", "\"14751\""),
    ] {
        let altered = body.replace(from, to);
        assert_ne!(altered, body);
        assert!(matches!(read(&sealed(altered.as_bytes())), Err(Error::Manifest { .. })), "{to}");
    }
}

#[test]
fn dates_are_those_of_the_calendar() {
    let at = |sec: u64| rfc3339(SystemTime::UNIX_EPOCH + Duration::from_secs(sec));
    assert_eq!(at(0), "1970-01-01T00:00:00.000000000Z");
    assert_eq!(at(951_827_696), "2000-02-29T12:34:56.000000000Z");
    assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00.000000000Z");
    let before = SystemTime::UNIX_EPOCH - Duration::from_nanos(1);
    assert_eq!(rfc3339(before), "1969-12-31T23:59:59.999999999Z");
    // Every day of 800 years is the day after the one before it.
    let mut last = civil(-146_097);
    for day in -146_096..146_097 {
        let (year, month, of_month) = civil(day);
        let next = [(last.0, last.1, last.2 + 1), (last.0, last.1 + 1, 1), (last.0 + 1, 1, 1)];
        assert!(next.contains(&(year, month, of_month)) && of_month <= 31 && month <= 12, "{day}");
        last = (year, month, of_month);
    }
}

#[test]
fn zeros_have_the_checksum_of_zeros() {
    for len in [0, 1, 4096, BLOCK_BYTES - 1, BLOCK_BYTES] {
        assert_eq!(zeros_digest(len), block_digest(&vec![0; len]));
    }
}

#[test]
fn the_mark_says_who_began_and_how_to_remove_it() {
    let mark = Path::new("/backups/it's/HOTBACKUP-INCOMPLETE");
    let text = mark_text(mark, SystemTime::UNIX_EPOCH, 42);
    let wanted = Mark { begun: "1970-01-01T00:00:00.000000000Z".into(), pid: 42 };
    assert_eq!(Mark::parse(&text), Some(wanted));
    let text = String::from_utf8(text).expect("text");
    assert!(text.contains("rm -rf '/backups/it'\\''s/HOTBACKUP-INCOMPLETE'\n"), "{text}");
    assert_eq!(Mark::parse(b"something else"), None);
}

struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % end.max(1) as u64).unwrap_or(0)
    }
}
