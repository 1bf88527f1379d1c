//! Method: the same calls by std and by ours, each in a directory of its own; what they return, errors included, and
//! what they leave behind must be the same. No session runs; sessions have tests of their own.

use std::collections::BTreeMap;
use std::io::{IoSlice, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::*;

/// Runs the same text with std's and with our names and compares the outcomes.
macro_rules! same {
    (|$dir:ident, $fs:ident| $body:block) => {{
        fn with_std($dir: &Path) -> Vec<String> {
            use std::fs as $fs;
            #[allow(unused_imports)]
            use std::os::unix::fs::{chown, fchown, lchown, symlink};
            $body
        }
        fn with_ours($dir: &Path) -> Vec<String> {
            use crate::fs as $fs;
            #[allow(unused_imports)]
            use crate::fs::{chown, fchown, lchown, symlink};
            $body
        }
        let run = |body: fn(&Path) -> Vec<String>| {
            let dir = tempfile::tempdir().expect("a directory");
            let said = body(dir.path());
            let below = dir.path().display().to_string();
            (said.into_iter().map(|text| text.replace(&below, "")).collect::<Vec<_>>(), tree(dir.path()))
        };
        assert_eq!(run(with_std), run(with_ours));
    }};
}

/// Every entry with its kind, mode, links, size and contents.
fn tree(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        let metadata = path.symlink_metadata().expect("metadata");
        let what = if metadata.is_dir() {
            left.extend(std::fs::read_dir(&path).expect("listed").flatten().map(|e| e.path()));
            String::new()
        } else if metadata.is_symlink() {
            format!("{:?}", std::fs::read_link(&path).expect("read").file_name())
        } else {
            format!("{} {:?}", metadata.len(), std::fs::read(&path).expect("read"))
        };
        let below = path.strip_prefix(root).expect("below").to_owned();
        let mode = metadata.mode();
        found.insert(
            below,
            format!("{mode:o} {} {}:{} {what}", metadata.nlink(), metadata.uid(), metadata.gid()),
        );
    }
    found
}

fn said<T: std::fmt::Debug>(result: io::Result<T>) -> String {
    match result {
        Ok(value) => format!("{value:?}"),
        Err(e) => format!("{:?} {:?} {e}", e.kind(), e.raw_os_error()),
    }
}

#[test]
fn paths_have_the_same_effects_and_errors() {
    same!(|dir, fs| {
        let at = |name: &str| dir.join(name);
        vec![
            said(fs::write(at("file"), "text")),
            said(fs::write(at("no/file"), "text")),
            said(fs::write(at("nul\0"), "text")),
            said(fs::write("", "text")),
            said(fs::create_dir(at("dir"))),
            said(fs::create_dir(at("dir"))),
            said(fs::create_dir(at("x/y"))),
            said(fs::create_dir_all(at("x/y/../y/z"))),
            said(fs::create_dir_all(at("x/y"))),
            said(fs::create_dir_all(at("file/below"))),
            said(fs::create_dir_all(at("file"))),
            said(fs::create_dir_all("")),
            said(fs::create_dir_all("nul\0")),
            said(fs::hard_link(at("file"), at("file2"))),
            said(fs::hard_link(at("file"), at("file2"))),
            said(fs::hard_link(at("file"), "nul\0")),
            said(symlink("file", at("link"))),
            said(symlink("file", at("link"))),
            said(symlink("none", at("broken"))),
            said(fs::hard_link(at("broken"), at("broken2"))),
            said(fs::rename(at("file2"), at("dir"))),
            said(fs::rename(at("file2"), at("dir/file3"))),
            said(fs::rename(at("none"), at("dir/none"))),
            said(fs::rename("nul\0", at("dir/none"))),
            said(fs::remove_file(at("dir"))),
            said(fs::remove_file(at("none"))),
            said(fs::remove_dir(at("dir"))),
            said(fs::remove_dir(at("file"))),
            said(fs::set_permissions(at("link"), PermissionsExt::from_mode(0o604))),
            said(fs::set_permissions(at("none"), PermissionsExt::from_mode(0o604))),
            said(chown(at("file"), None, None)),
            said(lchown(at("broken"), None, None)),
            said(chown(at("broken"), Some(1), None)),
        ]
    });
}

#[test]
fn whole_trees_go_and_what_links_lead_to_stays() {
    same!(|dir, fs| {
        let at = |name: &str| dir.join(name);
        let mut all = vec![
            said(fs::create_dir_all(at("a/b/c"))),
            said(fs::create_dir_all(at("kept/in"))),
            said(symlink("../kept", at("a/link"))),
            said(symlink("kept", at("link"))),
            said(symlink("nowhere", at("a/b/broken"))),
        ];
        for i in 0..300 {
            all.push(said(fs::write(at(&format!("a/b/{i}")), "x")));
        }
        all.extend([
            said(fs::remove_dir_all(at("a"))),
            said(fs::remove_dir_all(at("a"))),
            said(fs::remove_dir_all(at("link"))),
            said(fs::write(at("file"), "x")),
            said(fs::remove_dir_all(at("file"))),
            said(fs::remove_dir_all("nul\0")),
            said(fs::remove_dir_all("")),
        ]);
        all
    });
}

#[test]
fn opening_means_the_same() {
    same!(|dir, fs| {
        let at = |name: &str| dir.join(name);
        let mut all = Vec::new();
        // Every combination of options, on a file that is there and one that is not.
        for name in ["there", "missing"] {
            for bits in 0..64 {
                let _ = fs::write(at("there"), "before");
                let _ = fs::remove_file(at("missing"));
                let mut options = fs::OpenOptions::new();
                options.read(bits & 1 != 0).write(bits & 2 != 0).append(bits & 4 != 0);
                options.truncate(bits & 8 != 0).create(bits & 16 != 0).create_new(bits & 32 != 0);
                let opened = options.mode(0o640).open(at(name));
                all.push(said(
                    opened
                        .as_ref()
                        .map(|_| ())
                        .map_err(|e| io::Error::from_raw_os_error(e.raw_os_error().unwrap_or(0))),
                ));
                all.push(said(opened.and_then(|mut file| {
                    let wrote = said(file.write(b"after"));
                    let read = said(fs::read_to_string(at(name)));
                    let mode = file.metadata()?.permissions().mode();
                    Ok((wrote, read, mode))
                })));
            }
        }
        let tmpfile = fs::OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE).open(dir);
        all.push(said(tmpfile.and_then(|mut file| file.write_all(b"unnamed"))));
        all.push(said(fs::File::create_new(at("there")).map(drop)));
        all.push(said(fs::File::open(at("missing")).map(drop)));
        all.push(said(fs::File::open(dir).and_then(|mut d| d.read(&mut [0; 9]))));
        all.push(said(fs::DirBuilder::new().mode(0o710).create(at("d"))));
        all.push(said(fs::DirBuilder::new().mode(0o710).recursive(true).create(at("d/e/f"))));
        all
    });
}

#[test]
fn a_file_does_what_stds_does() {
    same!(|dir, fs| {
        let path = dir.join("file");
        let mut all = Vec::new();
        let opened = fs::OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path);
        let mut file = opened.expect("opened");
        all.push(said(file.write_all(b"hello world")));
        all.push(said(file.write_vectored(&[IoSlice::new(b", and"), IoSlice::new(b" more")])));
        all.push(said(write!(file, " {}", 5)));
        all.push(said(file.seek(SeekFrom::Start(3))));
        all.push(said((&file).write(b"LO")));
        all.push(said(file.write_at(b"W", 6)));
        all.push(said(file.write_all_at(b"end", 100)));
        all.push(said(file.write_at(b"x", u64::MAX)));
        let mut bytes = [0; 7];
        all.push(said(file.read_at(&mut bytes, 2).map(|n| (n, bytes))));
        all.push(said(file.read(&mut bytes).map(|n| (n, bytes))));
        all.push(said(file.set_len(40)));
        all.push(said(file.set_len(u64::MAX)));
        all.push(said(file.sync_all().and(file.sync_data()).and(file.flush())));
        let mut second = file.try_clone().expect("cloned");
        all.push(said(second.write_all(b"second")));
        all.push(said(file.stream_position()));
        all.push(said(file.set_permissions(PermissionsExt::from_mode(0o606))));
        let time = SystemTime::UNIX_EPOCH + Duration::new(1_000_000, 7);
        all.push(said(file.set_modified(time).and(file.metadata().and_then(|m| m.modified()))));
        all.push(said(file.set_times(std::fs::FileTimes::new().set_accessed(time))));
        all.push(said(fchown(&file, None, None)));
        all.push(said(file.rewind()));
        let mut text = String::new();
        all.push(said(file.read_to_string(&mut text).map(|n| (n, text))));
        let mut read_only = fs::File::open(&path).expect("opened");
        all.push(said(read_only.write(b"x")));
        all.push(said(read_only.set_len(1)));
        let fd: OwnedFd = second.into();
        all.push(said(fs::File::from(fd).write_all(b"!")));
        all
    });
}

#[test]
fn copies_are_the_same() {
    same!(|dir, fs| {
        let at = |name: &str| dir.join(name);
        let large: Vec<u8> = (0..3_000_001u32).map(|i| (i >> 8) as u8).collect();
        vec![
            said(fs::write(at("large"), large)),
            said(fs::set_permissions(at("large"), PermissionsExt::from_mode(0o741))),
            said(fs::copy(at("large"), at("copy"))),
            said(fs::write(at("small"), "x")),
            said(fs::copy(at("small"), at("copy"))),
            said(fs::copy(at("large"), at("second"))),
            said(fs::copy("/proc/sys/kernel/ostype", at("proc"))),
            said(fs::copy(at("small"), "/dev/null")),
            said(fs::copy(at("none"), at("other"))),
            said(fs::copy(dir, at("other"))),
            said(fs::copy(at("small"), dir)),
            said(fs::copy("/dev/null", at("other"))),
        ]
    });
}

#[test]
fn allocating_and_punching_change_what_they_should() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut file = File::create(dir.path().join("file")).expect("created");
    file.write_all(&[1; 16384]).expect("written");
    match file.punch_hole(4096, 4096) {
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => return,
        result => result.expect("punched"),
    }
    file.allocate(16384, 100).expect("allocated");
    let bytes = read(dir.path().join("file")).expect("read");
    assert_eq!(bytes.len(), 16484);
    assert!(bytes[4096..8192].iter().all(|&b| b == 0) && bytes[8192..16384].iter().all(|&b| b == 1));
    assert!(file.allocate(0, u64::MAX).is_err());
}

#[test]
fn converting_keeps_the_descriptor_open() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = File::create(dir.path().join("file")).expect("created");
    let fd = file.as_raw_fd();
    let mut file = std::fs::File::from(file);
    assert_eq!(file.as_raw_fd(), fd);
    file.write_all(b"still open").expect("written");
    let file = File::from(file);
    assert_eq!(file.as_raw_fd(), fd);
    assert!(format!("{file:?}").contains("file"));
}
