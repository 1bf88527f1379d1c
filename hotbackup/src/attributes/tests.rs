//! Method: a source and a copy in a temporary directory, on whatever filesystem that is; the copy gets the source's
//! attributes and both are compared. Who is refused what is tried on threads that gave up being root.

use std::ffi::CString;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{XattrFlags, lsetxattr, open, statx};

use super::acl as acls;
use super::*;

/// An ACL with `user:1234` and a mask that reaches further than the owning group's rights.
fn acl(group: u16, user: u16, mask: u16) -> Vec<u8> {
    let none = u32::MAX;
    let entries = [(1, 6, none), (2, user, 1234), (4, group, none), (0x10, mask, none), (0x20, 0, none)];
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, rights, id) in entries {
        bytes.extend(u16::to_le_bytes(tag));
        bytes.extend(u16::to_le_bytes(rights));
        bytes.extend(u32::to_le_bytes(id));
    }
    bytes
}

struct Room(tempfile::TempDir);

impl Room {
    fn new() -> Room {
        Room(tempfile::tempdir().expect("a temporary directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, mode: u32) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, name).expect("written");
        rustix::fs::chmodat(CWD, &path, Mode::from_raw_mode(mode), AtFlags::empty()).expect("mode");
        path
    }

    fn dir(&self) -> OwnedFd {
        open(self.0.path(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).expect("opened")
    }
}

fn attributes(path: &Path) -> Attributes {
    let found = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, Attributes::WANTED).expect("statx");
    Attributes::from_statx(&found)
}

fn xattrs(path: &Path) -> Vec<u8> {
    let fd = open(path, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty()).expect("opened");
    let mut heap = Vec::new();
    let range = append_xattrs(fd.as_fd(), &mut heap, false).expect("read");
    assert_eq!(range, 0..heap.len());
    heap
}

fn set(path: &Path, name: &str, value: &[u8]) {
    lsetxattr(path, name, value, XattrFlags::empty()).expect("set");
}

fn give(room: &Room, to: &str, wanted: &Attributes, xattrs: &[u8], inherits: bool) -> (Applied, Vec<String>) {
    let mut notes = Vec::new();
    let name = CString::new(to).expect("no NUL");
    let applied = apply(room.dir().as_fd(), &name, &room.path(to), wanted, xattrs, inherits, &mut |note| {
        notes.push(note)
    });
    (applied.expect("applied"), notes)
}

fn same(from: &Path, to: &Path) {
    let (from_has, to_has) = (attributes(from), attributes(to));
    let key = |a: &Attributes| (a.kind, a.mode, a.uid, a.gid, a.atime, a.mtime);
    assert_eq!(key(&from_has), key(&to_has));
    assert_eq!(xattr_digest(&xattrs(from)), xattr_digest(&xattrs(to)));
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Runs `work` on a thread with another user's rights.
fn as_user(uid: u32, work: impl FnOnce() + Send + 'static) {
    let worked = std::thread::spawn(move || {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(uid));
        rustix::thread::set_thread_groups(&[]).expect("groups");
        rustix::thread::set_thread_res_gid(gid, gid, gid).expect("gid");
        rustix::thread::set_thread_res_uid(uid, uid, uid).expect("uid");
        work();
    });
    worked.join().expect("the work was done");
}

#[test]
fn a_file_gets_all_that_its_source_has() {
    let room = Room::new();
    let from = room.file("from", 0o640);
    set(&from, "user.empty", b"");
    set(&from, "user.large", &[7; 1500]);
    for i in 0..20 {
        set(&from, &format!("user.a_name_of_some_length_number_{i}"), &[i; 9]);
    }
    if is_root() {
        std::os::unix::fs::chown(&from, Some(4321), Some(8765)).expect("chown");
        set(&from, "trusted.mine", b"1");
        set(&from, "security.capability", &[1, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        set(&from, "system.posix_acl_access", &acl(4, 4, 4));
        rustix::fs::chmodat(CWD, &from, Mode::from_raw_mode(0o6740), AtFlags::empty()).expect("mode");
    }
    let to = room.file("to", 0o600);
    let (applied, notes) = give(&room, "to", &attributes(&from), &xattrs(&from), true);
    assert_eq!(notes, [""; 0]);
    assert!(applied.xattrs);
    same(&from, &to);
    assert_eq!(applied.mode, attributes(&from).mode);
    // Once more changes nothing.
    give(&room, "to", &attributes(&from), &xattrs(&from), false);
    same(&from, &to);
}

#[test]
fn links_directories_pipes_and_nodes_get_theirs() {
    let room = Room::new();
    room.file("target", 0o604);
    let target = attributes(&room.path("target"));
    for name in ["link", "link_copy"] {
        std::os::unix::fs::symlink("target", room.path(name)).expect("symlink");
    }
    for name in ["dir", "dir_copy"] {
        std::fs::create_dir(room.path(name)).expect("mkdir");
    }
    let nodes = [("pipe", FileType::Fifo, 0), ("null", FileType::CharacterDevice, rustix::fs::makedev(1, 3))];
    let nodes = &nodes[..if is_root() { 2 } else { 1 }];
    for &(name, kind, dev) in nodes {
        for (name, mode) in [(name.to_owned(), 0o644), (format!("{name}_copy"), 0o600)] {
            rustix::fs::mknodat(CWD, room.path(&name), kind, Mode::from_raw_mode(mode), dev).expect("mknod");
        }
    }
    set(&room.path("dir"), "user.x", b"y");
    set(&room.path("dir"), "system.posix_acl_default", &acl(5, 7, 7));
    rustix::fs::chmodat(CWD, room.path("dir"), Mode::from_raw_mode(0o3751), AtFlags::empty()).expect("mode");
    if is_root() {
        set(&room.path("link"), "trusted.t", b"on the link");
        rustix::fs::chownat(CWD, room.path("link"), Some(Uid::from_raw(77)), None, AtFlags::SYMLINK_NOFOLLOW)
            .expect("chown");
        std::os::unix::fs::chown(room.path("pipe"), Some(77), Some(78)).expect("chown");
    }
    for name in ["link", "dir", "pipe", "null"] {
        let from = room.path(name);
        if from.symlink_metadata().is_err() {
            continue;
        }
        let copy = format!("{name}_copy");
        let mut wanted = attributes(&from);
        wanted.mtime = Time { seconds: 1_000_000_000, nanoseconds: 123_456_789 };
        let (_, notes) = give(&room, &copy, &wanted, &xattrs(&from), true);
        assert_eq!(notes, [""; 0]);
        let has = attributes(&room.path(&copy));
        assert_eq!((has.mode, has.uid, has.mtime), (wanted.mode, wanted.uid, wanted.mtime), "{name}");
        assert_eq!(xattr_digest(&xattrs(&from)), xattr_digest(&xattrs(&room.path(&copy))), "{name}");
    }
    let after = attributes(&room.path("target"));
    assert_eq!((after.mode, after.uid, after.mtime), (target.mode, target.uid, target.mtime));
}

#[test]
fn inherited_acls_are_removed() {
    let room = Room::new();
    set(room.0.path(), "system.posix_acl_default", &acl(7, 7, 7));
    std::fs::create_dir(room.path("dir")).expect("mkdir");
    std::fs::write(room.path("file"), "").expect("written");
    let other = Room::new();
    std::fs::create_dir(other.path("dir")).expect("mkdir");
    other.file("file", 0o644);
    for name in ["dir", "file"] {
        assert_ne!(xattrs(&room.path(name)), b"");
        give(&room, name, &attributes(&other.path(name)), b"", true);
        same(&other.path(name), &room.path(name));
    }
}

#[test]
fn another_kind_of_entry_under_the_name_is_left_alone() {
    let room = Room::new();
    room.file("file", 0o600);
    std::os::unix::fs::symlink("file", room.path("link")).expect("symlink");
    rustix::fs::mknodat(CWD, room.path("pipe"), FileType::Fifo, Mode::from_raw_mode(0o600), 0)
        .expect("mkfifo");
    let mut wanted = attributes(&room.path("file"));
    wanted.mode = 0o777;
    for name in [c"link", c"pipe", c"none"] {
        let failed = apply(room.dir().as_fd(), name, Path::new("x"), &wanted, b"", true, &mut |_| {});
        assert!(failed.is_err(), "{name:?}");
    }
    assert_eq!(attributes(&room.path("file")).mode, 0o600);
}

#[test]
fn with_a_fixed_heap_nothing_grows() {
    let room = Room::new();
    let from = room.file("from", 0o600);
    set(&from, "user.a", &[1; 100]);
    set(&from, "user.b", &[2; 2000]);
    let fd = open(&from, OFlags::RDONLY, Mode::empty()).expect("opened");
    let whole = xattrs(&from);
    for room in 0..whole.len() {
        let mut heap = Vec::with_capacity(room + 1);
        heap.push(9);
        let capacity = heap.capacity();
        if capacity < whole.len() + 1 {
            assert_eq!(append_xattrs(fd.as_fd(), &mut heap, true), Err(Errno::NOMEM));
            assert_eq!((&heap[..], heap.capacity()), (&[9][..], capacity));
        }
    }
    let mut heap = Vec::with_capacity(whole.len());
    assert_eq!(append_xattrs(fd.as_fd(), &mut heap, true), Ok(0..whole.len()));
    assert_eq!(heap, whole);
}

#[test]
fn the_digest_does_not_depend_on_the_order() {
    let mut one = Vec::new();
    let mut two = Vec::new();
    xattrs::append_record(&mut one, c"user.a", b"1", false).expect("room");
    xattrs::append_record(&mut one, c"user.b", b"2", false).expect("room");
    xattrs::append_record(&mut two, c"user.b", b"2", false).expect("room");
    xattrs::append_record(&mut two, c"user.a", b"1", false).expect("room");
    assert_eq!(xattr_digest(&one), xattr_digest(&two));
    xattrs::append_record(&mut two, c"user.c", b"", false).expect("room");
    assert_ne!(xattr_digest(&one), xattr_digest(&two));
    for end in 0..one.len() {
        assert!(records(&one[..end]).count() < 2);
    }
}

#[test]
fn a_refused_owner_never_opens_the_copy_to_others() {
    if !is_root() {
        return;
    }
    let room = Room::new();
    std::fs::set_permissions(room.0.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777))
        .expect("mode");
    let from = room.file("from", 0o640);
    std::os::unix::fs::chown(&from, Some(4321), Some(8765)).expect("chown");
    set(&from, "user.note", b"kept");
    set(&from, "trusted.t", b"refused");
    let mut wanted = attributes(&from);
    let has = xattrs(&from);
    as_user(5555, move || {
        for (name, mode, left) in
            [("a", 0o640, 0o600), ("b", 0o6755, 0o755), ("c", 0o604, 0o600), ("d", 0o444, 0o444)]
        {
            std::fs::write(room.path(name), "").expect("written");
            wanted.mode = mode;
            let (applied, notes) = give(&room, name, &wanted, &has, true);
            assert_eq!((applied.mode, applied.uid, applied.gid), (left, 5555, 5555), "{name}");
            assert_eq!(attributes(&room.path(name)).mode, left);
            assert!(!applied.xattrs);
            assert!(notes.iter().any(|note| note.contains("4321:8765")), "{notes:?}");
            assert!(notes.iter().any(|note| note.contains("trusted.t")), "{notes:?}");
            let kept = xattrs(&room.path(name));
            assert_eq!(records(&kept).collect::<Vec<_>>(), [(c"user.note", &b"kept"[..])]);
        }
        // An ACL of another group's file is not given to ours.
        std::fs::write(room.path("e"), "").expect("written");
        wanted.mode = 0o660;
        let mut listed = Vec::new();
        xattrs::append_record(&mut listed, c"system.posix_acl_access", &acl(0, 6, 6), false).expect("room");
        let (applied, _) = give(&room, "e", &wanted, &listed, true);
        assert_eq!((applied.mode, applied.xattrs), (0o600, false));
        // What is right already is no reason to complain, even if we could not open it.
        std::fs::write(room.path("f"), "").expect("written");
        wanted = attributes(&room.path("f"));
        wanted.mode = 0;
        for _ in 0..2 {
            assert_eq!(give(&room, "f", &wanted, b"", true).1, [""; 0]);
        }
    });
}

#[test]
fn where_an_acl_is_lost_nobody_gains() {
    assert_eq!(acls::rights(&acl(0, 6, 6)), Some(0o660));
    assert_eq!(acls::least(&acl(0, 6, 6), 0o664), 0o004);
    assert_eq!(acls::least(&acl(6, 6, 4), 0o664), 0o044);
    assert_eq!(acls::least(&acl(6, 0, 6), 0o664), 0o000);
    assert_eq!(acls::rights(b"\x02\0\0\0short"), None);
    assert_eq!(acls::least(b"", 0o777), 0o007);
}
