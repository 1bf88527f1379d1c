//! Method: a tree in a temporary directory, a manifest written from what is in it, one change, and the difference that
//! must be named.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::time::{Duration, SystemTime};

use rustix::fs::FileType;

use super::*;
use crate::manifest::{BLOCK_BYTES, Entry, Header, ManifestWriter, Run, block_digest, mark_text};

struct Sample(tempfile::TempDir);

impl Sample {
    /// A tree with one of everything, and its manifest.
    fn new() -> Sample {
        let sample = Sample(tempfile::tempdir().expect("a directory"));
        let at = |name: &str| sample.path(name);
        fs::create_dir_all(at("dir/empty")).expect("mkdir");
        fs::write(at("dir/small"), "some text").expect("written");
        fs::write(at("dir/nothing"), "").expect("written");
        let large: Vec<u8> = (0..3 * BLOCK_BYTES + 17).map(|i| (i / 1000) as u8).collect();
        fs::write(at("large"), large).expect("written");
        let sparse = fs::File::create(at("sparse")).expect("created");
        sparse.set_len(40 * BLOCK_BYTES as u64 + 5).expect("size");
        sparse.write_all_at(b"data", 7 * BLOCK_BYTES as u64 + 9).expect("written");
        sparse.write_all_at(&[0; BLOCK_BYTES], 9 * BLOCK_BYTES as u64).expect("written");
        fs::hard_link(at("large"), at("dir/large_too")).expect("link");
        symlink("../large", at("dir/link")).expect("symlink");
        symlink("dir", at("link_to_dir")).expect("symlink");
        rustix::fs::mknodat(CWD, at("pipe"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).expect("mkfifo");
        set(&at("dir/small"), "user.x", b"y");
        sample.write_manifest();
        sample
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write_manifest(&self) {
        let header = Header {
            started: SystemTime::now(),
            cut: SystemTime::now(),
            freeze: Duration::ZERO,
            trees: vec![("/source".into(), self.0.path().into())],
            beside: None,
        };
        let root = self.0.path();
        let times = root.metadata().expect("metadata");
        let times = fs::FileTimes::new().set_modified(times.modified().expect("mtime"));
        let out = fs::File::create(self.path(MANIFEST_NAME)).expect("created");
        fs::File::open(root).and_then(|root| root.set_times(times)).expect("times");
        let mut writer = ManifestWriter::begin(out, &header).expect("begun");
        let mut groups = HashMap::new();
        self.add(&mut writer, &mut groups, Path::new(""));
        writer.finish(&[]).expect("finished");
    }

    fn add(&self, writer: &mut ManifestWriter<fs::File>, groups: &mut HashMap<u64, u64>, below: &Path) {
        let path = self.0.path().join(below);
        let fd = rustix::fs::open(&path, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty()).expect("opened");
        let found = statx(&fd, c"", AtFlags::EMPTY_PATH, Attributes::WANTED).expect("statx");
        let attributes = Attributes::from_statx(&found);
        let mut heap = Vec::new();
        append_xattrs(fd.as_fd(), &mut heap, false).expect("xattrs");
        let target = fs::read_link(&path).ok();
        let mut first = true;
        let group = (attributes.nlink > 1 && attributes.kind == FileType::RegularFile).then(|| {
            let new = groups.len() as u64;
            *groups.entry(found.stx_ino).and_modify(|_| first = false).or_insert(new)
        });
        let blocks = (first && attributes.kind == FileType::RegularFile).then(|| {
            let bytes = fs::read(&path).expect("read");
            bytes.chunks(BLOCK_BYTES).map(|block| Run::from(block_digest(block))).collect::<Vec<_>>()
        });
        let entry = Entry {
            tree: 0,
            path: below,
            attributes: &attributes,
            target: target.as_deref(),
            group,
            xattrs: xattr_digest(&heap),
        };
        writer.entry(&entry, blocks).expect("written");
        if attributes.kind == FileType::Directory {
            let mut names: Vec<_> =
                fs::read_dir(&path).expect("listed").flatten().map(|e| e.file_name()).collect();
            names.sort();
            for name in names.into_iter().filter(|name| name != MANIFEST_NAME) {
                self.add(writer, groups, &below.join(name));
            }
        }
    }

    /// The differences as "name: text".
    fn differences(&self) -> Vec<String> {
        let found = verify(self.0.path()).expect("verified");
        let root = format!("{}/", self.0.path().display());
        let below = |d: &Difference| d.path.strip_prefix(self.0.path()).expect("below").display().to_string();
        found.differences.iter().map(|d| format!("{}: {}", below(d), d.text.replace(&root, ""))).collect()
    }

    /// What `change` makes different, without the times that it moves on the way.
    fn after(change: impl FnOnce(&Sample)) -> Vec<String> {
        let sample = Sample::new();
        change(&sample);
        let mut differences = sample.differences();
        differences.retain(|text| !text.contains("modification time"));
        differences
    }
}

fn set(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, rustix::fs::XattrFlags::empty()).expect("set");
}

fn overwrite(path: &Path, at: u64, byte: u8) {
    let file = fs::OpenOptions::new().write(true).open(path).expect("opened");
    file.write_all_at(&[byte], at).expect("written");
}

#[test]
fn an_untouched_backup_has_no_differences() {
    let sample = Sample::new();
    assert_eq!(sample.differences(), [""; 0]);
    let found = verify(sample.0.path()).expect("verified");
    assert!(found.is_ok());
    assert_eq!((found.files, found.directories), (4, 3));
    assert_eq!(found.bytes, 9 + 3 * BLOCK_BYTES as u64 + 17 + 40 * BLOCK_BYTES as u64 + 5);
}

#[test]
fn every_difference_is_named() {
    let block = BLOCK_BYTES as u64;
    let after_mode = Sample::after(|s| {
        fs::set_permissions(s.path("large"), PermissionsExt::from_mode(0o604)).expect("mode")
    });
    assert_eq!(after_mode.len(), 2, "both names of the file: {after_mode:?}");
    assert!(after_mode[0].contains("dir/large_too: mode is 0604 instead of 0"), "{after_mode:?}");
    assert_eq!(
        Sample::after(|s| fs::remove_file(s.path("dir/nothing")).expect("removed")),
        ["dir/nothing: is missing"]
    );
    assert_eq!(
        Sample::after(|s| fs::write(s.path("dir/empty/new"), "").expect("written")),
        ["dir/empty/new: is not in the manifest"]
    );
    assert_eq!(
        Sample::after(|s| overwrite(&s.path("large"), 2 * block + 5, 255)),
        [format!("dir/large_too: contents differ in the block at byte {}", 2 * block)]
    );
    assert_eq!(
        Sample::after(|s| overwrite(&s.path("sparse"), 30 * block, 1)),
        [format!("sparse: contents differ in the block at byte {}", 30 * block)]
    );
    assert_eq!(
        Sample::after(|s| overwrite(&s.path("sparse"), 40 * block + 4, 1)),
        [format!("sparse: contents differ in the block at byte {}", 40 * block)]
    );
    assert_eq!(
        Sample::after(|s| overwrite(&s.path("sparse"), 7 * block + 9, 0)),
        [format!("sparse: contents differ in the block at byte {}", 7 * block)]
    );
    assert_eq!(
        Sample::after(|s| fs::OpenOptions::new()
            .append(true)
            .open(s.path("dir/small"))
            .and_then(|mut f| f.write_all(b"!"))
            .expect("written")),
        ["dir/small: size is 10 instead of 9"]
    );
    assert_eq!(
        Sample::after(|s| set(&s.path("dir/small"), "user.x", b"z")),
        ["dir/small: extended attributes or ACLs are different"]
    );
}

#[test]
fn links_and_kinds_are_compared() {
    let relink = |s: &Sample, target: &str| {
        fs::remove_file(s.path("dir/link")).expect("removed");
        symlink(target, s.path("dir/link")).expect("symlink");
    };
    assert_eq!(
        Sample::after(|s| relink(s, "/large")),
        ["dir/link: link target is /large instead of ../large"]
    );
    assert_eq!(
        Sample::after(|s| {
            fs::rename(s.path("large"), s.path("tmp")).expect("renamed");
            fs::copy(s.path("tmp"), s.path("large")).expect("copied");
            fs::remove_file(s.path("tmp")).expect("removed");
        }),
        ["large: is not a hard link of dir/large_too"]
    );
    let merged = Sample::after(|s| {
        fs::remove_file(s.path("dir/nothing")).expect("removed");
        fs::hard_link(s.path("dir/small"), s.path("dir/nothing")).expect("linked");
    });
    assert!(
        merged.contains(&"dir/small: is a hard link of dir/nothing, and should not be".into()),
        "{merged:?}"
    );
    assert_eq!(
        Sample::after(|s| fs::hard_link(s.path("dir/small"), s.path("extra")).expect("linked")),
        ["extra: is not in the manifest"]
    );
    assert_eq!(
        Sample::after(|s| {
            fs::remove_file(s.path("dir/small")).expect("removed");
            fs::create_dir(s.path("dir/small")).expect("mkdir");
        }),
        ["dir/small: is a directory instead of a file"]
    );
}

#[test]
fn a_device_node_with_another_number_is_named() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let sample = Sample::new();
    let node = |major, minor| {
        let (mode, number) = (Mode::from_raw_mode(0o600), rustix::fs::makedev(major, minor));
        rustix::fs::mknodat(CWD, sample.path("node"), FileType::CharacterDevice, mode, number)
            .expect("mknod");
    };
    node(1, 3);
    sample.write_manifest();
    assert_eq!(sample.differences(), [""; 0]);
    fs::remove_file(sample.path("node")).expect("removed");
    node(1, 70_000);
    let number = "node: device number is 1:70000 instead of 1:3".to_owned();
    assert!(sample.differences().contains(&number), "{:?}", sample.differences());
}

/// A pipe or a link in the place of a file or directory neither makes us wait nor leads us elsewhere.
#[test]
fn pipes_and_links_in_the_way_are_named_and_not_followed() {
    let differences = Sample::after(|s| {
        for name in ["dir/small", "sparse"] {
            fs::remove_file(s.path(name)).expect("removed");
        }
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(CWD, s.path("dir/small"), FileType::Fifo, mode, 0).expect("mkfifo");
        fs::rename(s.path("large"), s.path("elsewhere")).expect("renamed");
        symlink("elsewhere", s.path("large")).expect("symlink");
        symlink("large", s.path("sparse")).expect("symlink");
    });
    assert_eq!(
        differences,
        [
            "dir/small: is a named pipe instead of a file",
            "large: is a symbolic link instead of a file",
            "sparse: is a symbolic link instead of a file",
            "elsewhere: is not in the manifest",
        ]
    );
    let differences = Sample::after(|s| {
        fs::rename(s.path("dir"), s.path("moved")).expect("renamed");
        symlink("moved", s.path("dir")).expect("symlink");
    });
    assert_eq!(differences[0], "dir: is a symbolic link instead of a directory");
    assert!(differences.contains(&"dir/small: is missing".into()), "{differences:?}");
    assert!(differences.contains(&"moved: is not in the manifest".into()), "{differences:?}");
}

#[test]
fn times_are_compared_to_the_nanosecond() {
    let sample = Sample::new();
    let path = sample.path("large");
    let time = path.metadata().and_then(|m| m.modified()).expect("mtime") + Duration::from_nanos(1);
    fs::File::open(&path).and_then(|f| f.set_modified(time)).expect("times");
    let differences = sample.differences();
    assert_eq!(differences.len(), 2, "{differences:?}");
    assert!(differences[0].starts_with("dir/large_too: modification time is "), "{differences:?}");
}

#[test]
fn a_verification_leaves_no_trace() {
    let sample = Sample::new();
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
    for name in ["large", "dir"] {
        let times = fs::FileTimes::new().set_accessed(old);
        fs::File::open(sample.path(name)).and_then(|f| f.set_times(times)).expect("times");
    }
    assert_eq!(sample.differences(), [""; 0]);
    for name in ["large", "dir"] {
        let accessed = sample.path(name).metadata().and_then(|m| m.accessed()).expect("atime");
        assert_eq!(accessed, old, "{name}");
    }
}

#[test]
fn what_is_no_complete_backup_is_refused() {
    let sample = Sample::new();
    let mark = sample.path(INCOMPLETE_MARK);
    fs::create_dir(&mark).expect("mkdir");
    let refused = verify(sample.0.path()).expect_err("incomplete");
    assert!(matches!(refused, Error::NotABackup { .. }) && refused.to_string().contains(INCOMPLETE_MARK));
    fs::write(mark.join(MARK_TEXT_NAME), mark_text(&mark, SystemTime::UNIX_EPOCH, 77)).expect("written");
    let refused = verify(sample.0.path()).expect_err("incomplete").to_string();
    assert!(refused.contains("1970-01-01") && refused.contains("process 77"), "{refused}");
    let manifest = sample.path(MANIFEST_NAME);
    assert!(matches!(verify_with(&manifest, [sample.0.path()]), Err(Error::NotABackup { .. })));
    fs::remove_dir_all(&mark).expect("removed");
    overwrite(&manifest, 40, b'X');
    assert!(matches!(verify(sample.0.path()), Err(Error::Manifest { .. })));
    fs::remove_file(&manifest).expect("removed");
    assert!(matches!(verify(sample.0.path()), Err(Error::NotABackup { .. })));
    assert!(matches!(verify(sample.path("none")), Err(Error::NotABackup { .. } | Error::Io { .. })));
    rustix::fs::mknodat(CWD, &manifest, FileType::Fifo, Mode::from_raw_mode(0o600), 0).expect("mkfifo");
    assert!(matches!(verify(sample.0.path()), Err(Error::Manifest { .. })));
}

#[test]
fn a_moved_backup_and_one_with_its_manifest_elsewhere_verify() {
    let sample = Sample::new();
    let other = tempfile::tempdir().expect("a directory");
    let manifest = other.path().join("m.json");
    fs::copy(sample.path(MANIFEST_NAME), &manifest).expect("copied");
    let found = verify_with(&manifest, [sample.0.path()]).expect("verified");
    // The manifest in the tree is not the one that is used, so it is an entry that does not belong there.
    assert_eq!(found.differences.len(), 1, "{found:?}");
    assert!(matches!(verify_with(&manifest, ["/a", "/b"]), Err(Error::Manifest { .. })));
    let moved = other.path().join("moved");
    fs::rename(sample.0.path(), &moved).expect("renamed");
    assert!(verify(&moved).expect("verified").is_ok());
    let nowhere = [""; 0];
    assert!(matches!(verify_with(&manifest, nowhere), Err(Error::Io { .. })));
    fs::rename(&moved, sample.0.path()).expect("renamed");
}

/// Random damage to a random file is always found, and in the right block.
#[test]
fn random_damage_is_found_where_it_is() {
    let sample = Sample::new();
    let mut state = 12345u64;
    for _ in 0..60 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (name, seen, size) = [
            ("large", "dir/large_too", 3 * BLOCK_BYTES as u64 + 17),
            ("sparse", "sparse", 40 * BLOCK_BYTES as u64 + 5),
            ("dir/small", "dir/small", 9),
        ][(state >> 60) as usize % 3];
        let at = (state >> 16) % size;
        let file = fs::File::open(sample.path(name)).expect("opened");
        let mut byte = [0];
        file.read_at(&mut byte, at).expect("read");
        overwrite(&sample.path(name), at, byte[0] ^ (1 << (state >> 56 & 7)));
        let found: Vec<_> =
            sample.differences().into_iter().filter(|text| text.contains("contents")).collect();
        let block = at / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
        assert_eq!(
            found,
            [format!("{seen}: contents differ in the block at byte {block}")],
            "byte {at} of {name}"
        );
        overwrite(&sample.path(name), at, byte[0]);
    }
}

/// Destinations below the manifest's directory, which are renamed when a program has done its part, and then moved together.
#[test]
fn destinations_below_their_manifest_are_found() {
    let sample = Sample::new();
    let outside = tempfile::tempdir().expect("a directory");
    let (made, moved) = (outside.path().join("made"), outside.path().join("moved"));
    fs::create_dir(&made).expect("a directory");
    let header = Header {
        started: SystemTime::now(),
        cut: SystemTime::now(),
        freeze: Duration::ZERO,
        trees: vec![("/source".into(), made.join("data.incomplete"))],
        beside: Some(made.clone()),
    };
    fs::remove_file(sample.path(MANIFEST_NAME)).expect("removed");
    let out = fs::File::create(made.join(MANIFEST_NAME)).expect("created");
    let mut writer = ManifestWriter::begin(out, &header).expect("begun");
    sample.add(&mut writer, &mut HashMap::new(), Path::new(""));
    writer.finish(&[]).expect("finished");
    fs::rename(sample.0.path(), made.join("data.incomplete")).expect("renamed");
    let why = verify(&made).expect_err("incomplete").to_string();
    assert!(why.contains("data.incomplete says that it is not complete"), "{why}");
    fs::rename(made.join("data.incomplete"), made.join("data")).expect("renamed");
    let found = verify(&made).expect("verified");
    assert_eq!((found.is_ok(), found.files), (true, 4), "{:?}", found.differences);
    let nowhere: [&Path; 0] = [];
    assert!(verify_with(made.join(MANIFEST_NAME), nowhere).expect("verified").is_ok());
    fs::rename(&made, &moved).expect("renamed");
    assert!(verify(&moved).expect("verified").is_ok());
    fs::write(moved.join("data/large"), "short").expect("written");
    assert!(!verify(&moved).expect("verified").is_ok());
}
