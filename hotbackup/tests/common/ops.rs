//! Random operations on a small tree, as data, and hands that carry them out by captured calls.
//!
//! Names are drawn from a small pool so that operations collide: renames over each other, unlinks of open files,
//! directories moved into each other, inodes that are used again. Many operations fail; that is part of the mix.

use std::ffi::{CString, c_int};
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, Ordering};

use super::calls::{self, Name, Ret};
use super::rng::Rng;
use super::{aio, uring};

/// Open files that a table holds.
pub const SLOTS: usize = 8;

/// A path below one of the roots.
#[derive(Clone, Debug)]
pub struct Place {
    pub root: usize,
    pub path: String,
}

#[derive(Clone, Debug)]
pub enum Op {
    Open {
        file: Place,
        flags: c_int,
        mode: u32,
        slot: usize,
    },
    Tmpfile {
        dir: Place,
        slot: usize,
    },
    /// With `close_range` if `range`.
    Close {
        slot: usize,
        range: bool,
    },
    Dup {
        from: usize,
        to: usize,
    },
    Dup2 {
        from: usize,
        to: usize,
    },
    Write {
        slot: usize,
        data: Fill,
        vector: bool,
    },
    Pwrite {
        slot: usize,
        data: Fill,
        at: i64,
        vector: bool,
    },
    Append {
        slot: usize,
        data: Fill,
    },
    /// From memory, to a place and of a length that direct I/O takes.
    Direct {
        slot: usize,
        data: Fill,
        at: i64,
    },
    /// Begun by one call, and waited for.
    Asynchronous {
        slot: usize,
        data: Fill,
        at: i64,
        vector: bool,
        way: Way,
    },
    /// Through a shared mapping that is made for it.
    Store {
        slot: usize,
        data: Fill,
        at: i64,
    },
    /// `FICLONE`, where the filesystem shares blocks.
    Clone {
        from: usize,
        to: usize,
    },
    /// From a pipe, to the position or to an offset.
    Splice {
        slot: usize,
        data: Fill,
        at: Option<i64>,
    },
    /// A temporary file beside the name, then renamed to it, and a temporary directory likewise.
    Mkstemp {
        file: Place,
        slot: usize,
        data: Fill,
    },
    Mkdtemp {
        name: Place,
    },
    CopyRange {
        from: usize,
        from_at: i64,
        to: usize,
        to_at: i64,
        len: usize,
    },
    Sendfile {
        from: usize,
        from_at: i64,
        to: usize,
        len: usize,
    },
    Seek {
        slot: usize,
        to: i64,
    },
    SetAppend {
        slot: usize,
        on: bool,
    },
    Ftruncate {
        slot: usize,
        len: i64,
    },
    Truncate {
        file: Place,
        len: i64,
    },
    Fallocate {
        slot: usize,
        mode: c_int,
        at: i64,
        len: i64,
    },
    Rename {
        from: Place,
        to: Place,
        flags: u32,
    },
    Link {
        from: Place,
        to: Place,
        follow: bool,
    },
    LinkOpen {
        slot: usize,
        to: Place,
        by_proc: bool,
    },
    Symlink {
        target: String,
        name: Place,
    },
    Unlink {
        name: Place,
    },
    Rmdir {
        name: Place,
    },
    Mkdir {
        name: Place,
        mode: u32,
    },
    Mkfifo {
        name: Place,
        mode: u32,
    },
    Device {
        name: Place,
        mode: u32,
        device: u64,
    },
    Chmod {
        file: Place,
        mode: u32,
    },
    Fchmod {
        slot: usize,
        mode: u32,
    },
    Chown {
        file: Place,
        uid: u32,
        gid: u32,
        follow: bool,
    },
    Fchown {
        slot: usize,
        uid: u32,
        gid: u32,
    },
    Utimens {
        file: Place,
        mtime: i64,
        follow: bool,
    },
    Futimens {
        slot: usize,
        mtime: i64,
    },
    Setxattr {
        file: Place,
        name: String,
        value: Fill,
    },
    Fsetxattr {
        slot: usize,
        name: String,
        value: Fill,
    },
    Removexattr {
        file: Place,
        name: String,
    },
}

/// Who makes an asynchronous write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// A ring of native AIO that is there for it alone.
    Native,
    /// The thread's ring of io_uring; after `Last` it makes a new one.
    Ring,
    Last,
}

/// Bytes that tell which operation wrote them and where in it they stood. Some are zeros.
#[derive(Clone, Copy, Debug)]
pub struct Fill {
    pub id: u64,
    pub len: usize,
}

impl Fill {
    pub fn bytes(self) -> Vec<u8> {
        if self.id.is_multiple_of(13) {
            return vec![0; self.len];
        }
        let words = (0..=self.len as u64 / 8).flat_map(|i| (self.id << 20 | i).to_be_bytes());
        words.take(self.len).collect()
    }
}

/// What the random mix may hold.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub roots: usize,
    /// Extremes that a model in memory does not follow: huge sparse files, set-id bits, devices, links to nowhere.
    pub exotic: bool,
    /// How often out of 100 an operation is on data rather than on names or attributes.
    pub data: u64,
    /// Paths below the root have at most so many directories.
    pub depth: u64,
    /// The largest offset of ordinary writes.
    pub span: u64,
    pub changes_owners: bool,
    /// Whether there are rings of native AIO, with which no cut comes within a second.
    pub native: bool,
    /// Whether there are rings of io_uring.
    pub rings: bool,
}

const DIRECTORIES: [&str; 4] =
    ["p", "q", "r", "a long directory name, \u{e4}\n\t with what nobody expects in it"];
const LEAVES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", ".h"];

impl Shape {
    fn place(&self, rng: &mut Rng, directory: bool) -> Place {
        let mut path = String::new();
        for _ in 0..rng.below(self.depth + 1) {
            path.push_str(self.directory(rng));
            path.push('/');
        }
        let leaf = if directory || rng.one_in(7) { self.directory(rng) } else { rng.pick(&LEAVES) };
        path.push_str(leaf);
        Place { root: rng.below(self.roots as u64) as usize, path }
    }

    fn directory(&self, rng: &mut Rng) -> &'static str {
        if rng.one_in(12) { DIRECTORIES[3] } else { DIRECTORIES[rng.below(3) as usize] }
    }

    fn file(&self, rng: &mut Rng) -> Place {
        self.place(rng, false)
    }

    /// A random operation; `id` is its number.
    pub fn op(&self, rng: &mut Rng, id: u64) -> Op {
        let what = rng.below(100);
        if what < self.data {
            self.data_op(rng, id)
        } else if what < self.data + (100 - self.data) * 7 / 10 {
            self.name_op(rng)
        } else {
            self.attribute_op(rng, id)
        }
    }

    /// Operations that give a root something to back up.
    pub fn furnish(&self, rng: &mut Rng, id: u64) -> Op {
        match rng.below(6) {
            0 => Op::Mkdir { name: self.place(rng, true), mode: 0o755 },
            1 | 2 => Op::Open {
                file: self.file(rng),
                flags: libc::O_RDWR | libc::O_CREAT | libc::O_NONBLOCK,
                mode: 0o644,
                slot: rng.below(SLOTS as u64) as usize,
            },
            _ => self.data_op(rng, id),
        }
    }

    fn open(&self, rng: &mut Rng) -> Op {
        let mut flags = libc::O_NONBLOCK | if rng.one_in(5) { libc::O_WRONLY } else { libc::O_RDWR };
        let mut flag = |flag, n| {
            if rng.one_in(n) {
                flags |= flag;
            }
        };
        flag(libc::O_TRUNC, 4);
        flag(libc::O_APPEND, 4);
        flag(libc::O_EXCL, 6);
        flag(libc::O_NOFOLLOW, 6);
        if !rng.one_in(4) {
            flags |= libc::O_CREAT;
        } else {
            flags &= !libc::O_EXCL;
        }
        if self.exotic && rng.one_in(8) {
            // A direct write that fails may have written a part, which no log would hold.
            flags |= libc::O_DIRECT;
        }
        Op::Open {
            file: self.file(rng),
            flags,
            mode: *rng.pick(&[0o644, 0o600, 0o640, 0o755]),
            slot: rng.below(SLOTS as u64) as usize,
        }
    }

    fn data_op(&self, rng: &mut Rng, id: u64) -> Op {
        let slot = rng.below(SLOTS as u64) as usize;
        let other = rng.below(SLOTS as u64) as usize;
        let sizes = [1, 8, 100, 4096, 5000, 16384];
        let len = *rng.pick(&sizes) + rng.below(3) as usize;
        let data = Fill { id, len };
        let mut at = rng.below(self.span).cast_signed();
        if rng.one_in(3) {
            at &= !4095;
        }
        if self.exotic && rng.one_in(150) {
            at += 1 << *rng.pick(&[28, 31, 35, 39]);
        }
        match rng.below(100) {
            0..20 => self.open(rng),
            20..22 => Op::Tmpfile { dir: self.place(rng, true), slot },
            // Their random names are in no log.
            22..24 if self.exotic => Op::Mkstemp { file: self.file(rng), slot, data },
            22..28 => Op::Close { slot, range: rng.one_in(3) },
            28..30 => Op::Dup { from: slot, to: other },
            30..32 => Op::Dup2 { from: slot, to: other },
            32..43 => Op::Write { slot, data, vector: rng.one_in(3) },
            43..46 => Op::Splice { slot, data, at: rng.one_in(2).then_some(at) },
            46..53 => Op::Direct { slot, data: Fill { id, len: (1 + len / 4096) * 4096 }, at: at & !4095 },
            53..56 if self.rings => {
                let way = match rng.below(16) {
                    0 if self.native => Way::Native,
                    1..3 => Way::Last,
                    _ => Way::Ring,
                };
                Op::Asynchronous { slot, data, at, vector: rng.one_in(3), way }
            }
            // Not a call, so no part of an order; and where the file ends beside it, it stops in the midst.
            56..58 if self.exotic => Op::Store { slot, data, at },
            58..59 => Op::Clone { from: slot, to: other },
            56..65 => Op::Pwrite { slot, data, at, vector: rng.one_in(3) },
            65..70 => Op::Append { slot, data },
            70..73 => Op::CopyRange {
                from: slot,
                from_at: rng.below(self.span).cast_signed(),
                to: other,
                to_at: at,
                len,
            },
            // Within one file it reads what it has just written, which the model does not follow.
            73..75 if self.exotic => {
                Op::Sendfile { from: slot, from_at: rng.below(self.span / 4).cast_signed(), to: other, len }
            }
            73..79 => Op::Seek { slot, to: at },
            79..81 => Op::SetAppend { slot, on: rng.one_in(2) },
            81..86 => Op::Ftruncate { slot, len: if rng.one_in(4) { 0 } else { at } },
            86..89 => Op::Truncate { file: self.file(rng), len: if rng.one_in(4) { 0 } else { at } },
            _ => self.fallocate(rng, slot, at),
        }
    }

    fn fallocate(&self, rng: &mut Rng, slot: usize, at: i64) -> Op {
        use libc::{
            FALLOC_FL_COLLAPSE_RANGE, FALLOC_FL_INSERT_RANGE, FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE,
            FALLOC_FL_ZERO_RANGE,
        };
        let modes = [
            0,
            FALLOC_FL_KEEP_SIZE,
            FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
            FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
            FALLOC_FL_ZERO_RANGE,
            FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
            FALLOC_FL_COLLAPSE_RANGE,
            FALLOC_FL_INSERT_RANGE,
        ];
        let mode = *rng.pick(&modes);
        let whole = mode == FALLOC_FL_COLLAPSE_RANGE || mode == FALLOC_FL_INSERT_RANGE;
        // Only the small offsets: the model and this machine's disk hold what is allocated here.
        let at = at % (1 << 20);
        let len = 1 + rng.below(20_000).cast_signed();
        Op::Fallocate {
            slot,
            mode,
            at: if whole { at & !4095 } else { at },
            len: if whole { (len + 4095) & !4095 } else { len },
        }
    }

    fn name_op(&self, rng: &mut Rng) -> Op {
        let mode = *rng.pick(&[0o755, 0o700, 0o711]);
        match rng.below(100) {
            0..2 if self.exotic => Op::Mkdtemp { name: self.place(rng, true) },
            0..12 => Op::Mkdir { name: self.place(rng, true), mode },
            12..17 => Op::Rmdir { name: self.place(rng, true) },
            17..30 => Op::Rename {
                from: self.file(rng),
                to: self.file(rng),
                flags: *rng.pick(&[0, 0, 0, libc::RENAME_NOREPLACE, libc::RENAME_EXCHANGE]),
            },
            30..42 => Op::Rename {
                from: self.place(rng, true),
                to: self.place(rng, true),
                flags: *rng.pick(&[0, 0, libc::RENAME_NOREPLACE, libc::RENAME_EXCHANGE]),
            },
            42..52 => Op::Link { from: self.file(rng), to: self.file(rng), follow: rng.one_in(3) },
            52..57 => Op::LinkOpen {
                slot: rng.below(SLOTS as u64) as usize,
                to: self.file(rng),
                by_proc: rng.one_in(2),
            },
            57..64 => Op::Symlink { target: self.target(rng), name: self.file(rng) },
            64..82 => Op::Unlink { name: self.file(rng) },
            82..86 => Op::Mkfifo { name: self.file(rng), mode: 0o640 },
            86..87 if self.exotic => {
                Op::Device { name: self.file(rng), mode: libc::S_IFCHR | 0o600, device: libc::makedev(1, 3) }
            }
            _ => self.open(rng),
        }
    }

    fn target(&self, rng: &mut Rng) -> String {
        // Never upwards: through two such links operations would leave the test's own directory.
        if self.exotic && rng.one_in(6) {
            return (*rng.pick(&["/nowhere/at/all", "."])).to_owned();
        }
        let directory = rng.one_in(4);
        self.place(rng, directory).path
    }

    fn attribute_op(&self, rng: &mut Rng, id: u64) -> Op {
        let file = if rng.one_in(3) { self.place(rng, true) } else { self.file(rng) };
        let slot = rng.below(SLOTS as u64) as usize;
        let mut mode = *rng.pick(&[0o755, 0o700, 0o644, 0o600, 0o444, 0o777]);
        if self.exotic && rng.one_in(6) {
            mode |= *rng.pick(&[libc::S_ISUID, libc::S_ISGID, libc::S_ISVTX]);
        }
        let (uid, gid) = if self.changes_owners {
            (rng.below(3) as u32 * 1000, rng.below(3) as u32 * 100)
        } else {
            calls::effective_ids()
        };
        let follow = !rng.one_in(3);
        let mtime = rng.below(2_000_000_000_000_000_000).cast_signed();
        let name = (*rng.pick(&["user.a", "user.b"])).to_owned();
        let value = Fill { id, len: rng.below(60) as usize };
        match rng.below(9) {
            0 => Op::Chmod { file, mode },
            1 => Op::Fchmod { slot, mode },
            2 => Op::Chown { file, uid, gid, follow },
            3 => Op::Fchown { slot, uid, gid },
            4 => Op::Utimens { file, mtime, follow },
            5 => Op::Futimens { slot, mtime },
            6 => Op::Setxattr { file, name, value },
            7 => Op::Fsetxattr { slot, name, value },
            _ => Op::Removexattr { file, name },
        }
    }
}

/// Open files that one or several threads work with.
pub struct Table([AtomicI32; SLOTS]);

impl Default for Table {
    fn default() -> Self {
        Table([const { AtomicI32::new(-1) }; SLOTS])
    }
}

impl Table {
    fn get(&self, slot: usize) -> Result<RawFd, i32> {
        match self.0[slot].load(Ordering::SeqCst) {
            -1 => Err(libc::EBADF),
            fd => Ok(fd),
        }
    }

    fn put(&self, slot: usize, fd: RawFd) {
        let old = self.0[slot].swap(fd, Ordering::SeqCst);
        if old != -1 {
            let _ = calls::close(old);
        }
    }

    fn end(&self, slot: usize, range: bool) -> Ret {
        match self.0[slot].swap(-1, Ordering::SeqCst) {
            -1 => Err(libc::EBADF),
            fd if range => calls::close_range(fd),
            fd => calls::close(fd),
        }
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        for slot in 0..SLOTS {
            self.put(slot, -1);
        }
    }
}

/// The roots, as descriptors and as paths.
pub struct Roots {
    directories: Vec<(RawFd, PathBuf)>,
}

impl Roots {
    pub fn open(paths: &[PathBuf]) -> Roots {
        let open = |path: &PathBuf| (calls::directory(path), path.clone());
        Roots { directories: paths.iter().map(open).collect() }
    }

    fn full(&self, place: &Place) -> CString {
        use std::os::unix::ffi::OsStrExt as _;
        let path: &Path = &self.directories[place.root].1.join(&place.path);
        CString::new(path.as_os_str().as_bytes()).expect("no NUL in a path")
    }

    /// Calls `call` with the name, sometimes as a path from the root directory on.
    fn name(&self, place: &Place) -> (RawFd, CString) {
        if place.path.len().is_multiple_of(4) {
            (libc::AT_FDCWD, self.full(place))
        } else {
            (self.directories[place.root].0, calls::c(&place.path))
        }
    }
}

impl Drop for Roots {
    fn drop(&mut self) {
        for (fd, _) in &self.directories {
            let _ = calls::close(*fd);
        }
    }
}

fn at((dir, path): &(RawFd, CString)) -> Name<'_> {
    Name { dir: *dir, path }
}

/// Carries out `op`.
pub fn apply(op: &Op, roots: &Roots, table: &Table) -> Ret {
    match op {
        Op::Open { file, flags, mode, slot } => {
            let fd = calls::openat(at(&roots.name(file)), *flags, *mode)?;
            table.put(*slot, fd as RawFd);
            Ok(fd)
        }
        Op::Tmpfile { dir, slot } => {
            let flags = libc::O_TMPFILE | libc::O_RDWR;
            let fd = calls::openat(at(&roots.name(dir)), flags, 0o640)?;
            table.put(*slot, fd as RawFd);
            Ok(fd)
        }
        Op::Close { slot, range } => table.end(*slot, *range),
        Op::Dup { from, to } => {
            let fd = calls::dup(table.get(*from)?)?;
            table.put(*to, fd as RawFd);
            Ok(fd)
        }
        Op::Dup2 { from, to } => calls::dup2(table.get(*from)?, table.get(*to)?),
        Op::Write { .. }
        | Op::Pwrite { .. }
        | Op::Append { .. }
        | Op::Direct { .. }
        | Op::Asynchronous { .. }
        | Op::Store { .. }
        | Op::Clone { .. }
        | Op::Splice { .. }
        | Op::CopyRange { .. }
        | Op::Sendfile { .. }
        | Op::Seek { .. }
        | Op::SetAppend { .. }
        | Op::Ftruncate { .. }
        | Op::Truncate { .. }
        | Op::Fallocate { .. } => apply_to_data(op, roots, table),
        Op::Chmod { .. }
        | Op::Fchmod { .. }
        | Op::Chown { .. }
        | Op::Fchown { .. }
        | Op::Utimens { .. }
        | Op::Futimens { .. }
        | Op::Setxattr { .. }
        | Op::Fsetxattr { .. }
        | Op::Removexattr { .. } => apply_to_attributes(op, roots, table),
        _ => apply_to_names(op, roots, table),
    }
}

fn apply_to_data(op: &Op, roots: &Roots, table: &Table) -> Ret {
    match op {
        Op::Write { slot, data, vector } => {
            let write = if *vector { calls::writev } else { calls::write };
            write(table.get(*slot)?, &data.bytes())
        }
        Op::Pwrite { slot, data, at, vector } => {
            let write = if *vector { calls::pwritev } else { calls::pwrite };
            write(table.get(*slot)?, &data.bytes(), *at)
        }
        Op::Append { slot, data } => calls::append(table.get(*slot)?, &data.bytes()),
        Op::Direct { slot, data, at } => calls::pwrite_aligned(table.get(*slot)?, &data.bytes(), *at),
        Op::Asynchronous { slot, data, at, vector, way } => {
            asynchronously(table.get(*slot)?, &data.bytes(), *at, *vector, *way)
        }
        Op::Store { slot, data, at } => calls::store(table.get(*slot)?, &data.bytes(), *at),
        Op::Clone { from, to } => calls::clone(table.get(*from)?, table.get(*to)?),
        Op::Splice { slot, data, at } => calls::splice(&data.bytes(), table.get(*slot)?, *at),
        Op::CopyRange { from, from_at, to, to_at, len } => {
            calls::copy_file_range(table.get(*from)?, *from_at, table.get(*to)?, *to_at, *len)
        }
        Op::Sendfile { from, from_at, to, len } => {
            calls::sendfile(table.get(*from)?, *from_at, table.get(*to)?, *len)
        }
        Op::Seek { slot, to } => calls::seek(table.get(*slot)?, *to),
        Op::SetAppend { slot, on } => calls::set_append(table.get(*slot)?, *on),
        Op::Ftruncate { slot, len } => calls::ftruncate(table.get(*slot)?, *len),
        Op::Truncate { file, len } => calls::truncate(&roots.full(file), *len),
        Op::Fallocate { slot, mode, at, len } => calls::fallocate(table.get(*slot)?, *mode, *at, *len),
        _ => unreachable!("not on data: {op:?}"),
    }
}

/// The write is to a descriptor of our own: another thread that closes the one in the table while it is submitted leaves nobody
/// able to say which file it is to, and the session fails.
fn asynchronously(fd: RawFd, data: &[u8], at: i64, vector: bool, way: Way) -> Ret {
    let fd = calls::dup_apart(fd)? as RawFd;
    let result = match way {
        // A pipe that is full would be waited for.
        _ if !calls::is_file(fd) => Err(libc::ESPIPE),
        // A session fails by name if somebody submits behind its back.
        _ if calls::is_unseen() => calls::pwrite(fd, data, at),
        Way::Native => aio::write(fd, data, at, vector),
        _ if !uring::is_there() => aio::write(fd, data, at, vector),
        _ => uring::write(fd, data, at, vector, way == Way::Last),
    };
    let _ = calls::close(fd);
    result
}

fn apply_to_names(op: &Op, roots: &Roots, table: &Table) -> Ret {
    match op {
        Op::Rename { from, to, flags } => calls::rename(at(&roots.name(from)), at(&roots.name(to)), *flags),
        Op::Link { from, to, follow } => {
            let flags = if *follow { libc::AT_SYMLINK_FOLLOW } else { 0 };
            calls::link(at(&roots.name(from)), at(&roots.name(to)), flags)
        }
        Op::LinkOpen { slot, to, by_proc } => {
            let fd = table.get(*slot)?;
            let to = roots.name(to);
            if *by_proc {
                let path = calls::c(&format!("/proc/self/fd/{fd}"));
                let from = (libc::AT_FDCWD, path);
                calls::link(at(&from), at(&to), libc::AT_SYMLINK_FOLLOW)
            } else {
                calls::link(at(&(fd, CString::default())), at(&to), libc::AT_EMPTY_PATH)
            }
        }
        Op::Symlink { target, name } => calls::symlink(&calls::c(target), at(&roots.name(name))),
        Op::Unlink { name } => calls::unlink(at(&roots.name(name)), 0),
        Op::Rmdir { name } => calls::unlink(at(&roots.name(name)), libc::AT_REMOVEDIR),
        Op::Mkdir { name, mode } => calls::mkdir(at(&roots.name(name)), *mode),
        Op::Mkstemp { file, slot, data } => {
            let (fd, made) = calls::mkstemp(&roots.full(file))?;
            let _ = calls::write(fd, &data.bytes());
            table.put(*slot, fd);
            let to = (libc::AT_FDCWD, roots.full(file));
            let made = (libc::AT_FDCWD, made);
            calls::rename(at(&made), at(&to), 0).or_else(|_| calls::unlink(at(&made), 0))
        }
        Op::Mkdtemp { name } => {
            let made = (libc::AT_FDCWD, calls::mkdtemp(&roots.full(name))?);
            let to = (libc::AT_FDCWD, roots.full(name));
            calls::rename(at(&made), at(&to), 0).or_else(|_| calls::unlink(at(&made), libc::AT_REMOVEDIR))
        }
        Op::Mkfifo { name, mode } => calls::mknod(at(&roots.name(name)), libc::S_IFIFO | mode, 0),
        Op::Device { name, mode, device } => calls::mknod(at(&roots.name(name)), *mode, *device),
        _ => unreachable!("not on names: {op:?}"),
    }
}

fn apply_to_attributes(op: &Op, roots: &Roots, table: &Table) -> Ret {
    match op {
        Op::Chmod { file, mode } => calls::chmod(at(&roots.name(file)), *mode),
        Op::Fchmod { slot, mode } => calls::fchmod(table.get(*slot)?, *mode),
        Op::Chown { file, uid, gid, follow } => calls::chown(at(&roots.name(file)), *uid, *gid, *follow),
        Op::Fchown { slot, uid, gid } => calls::fchown(table.get(*slot)?, *uid, *gid),
        Op::Utimens { file, mtime, follow } => calls::utimens(at(&roots.name(file)), *mtime, *follow),
        Op::Futimens { slot, mtime } => calls::futimens(table.get(*slot)?, *mtime),
        Op::Setxattr { file, name, value } => {
            calls::setxattr(&roots.full(file), &calls::c(name), &value.bytes())
        }
        Op::Fsetxattr { slot, name, value } => {
            calls::fsetxattr(table.get(*slot)?, &calls::c(name), &value.bytes())
        }
        Op::Removexattr { file, name } => calls::removexattr(&roots.full(file), &calls::c(name)),
        _ => unreachable!("not on attributes: {op:?}"),
    }
}

/// What an operation may have given another modification time.
#[derive(Clone, Debug)]
pub enum Touched {
    Slot(usize),
    /// The entry itself, not followed if it is a symbolic link.
    Entry(Place),
    Parent(Place),
}

impl Op {
    /// What may have another modification time after this.
    pub fn touched(&self) -> Vec<Touched> {
        let entry = |place: &Place| vec![Touched::Entry(place.clone()), Touched::Parent(place.clone())];
        match self {
            Op::Open { file, slot, .. } => vec![Touched::Slot(*slot), Touched::Parent(file.clone())],
            Op::Tmpfile { slot, .. }
            | Op::Write { slot, .. }
            | Op::Pwrite { slot, .. }
            | Op::Append { slot, .. }
            | Op::Direct { slot, .. }
            | Op::Asynchronous { slot, .. }
            | Op::Store { slot, .. }
            | Op::Splice { slot, .. }
            | Op::Ftruncate { slot, .. }
            | Op::Fallocate { slot, .. } => vec![Touched::Slot(*slot)],
            Op::CopyRange { to, .. } | Op::Sendfile { to, .. } | Op::Clone { to, .. } => {
                vec![Touched::Slot(*to)]
            }
            Op::Truncate { file, .. } => vec![Touched::Entry(file.clone())],
            Op::Rename { from, to, .. } => [entry(from), entry(to)].concat(),
            Op::Link { to, .. } | Op::LinkOpen { to, .. } => entry(to),
            Op::Symlink { name, .. }
            | Op::Unlink { name }
            | Op::Rmdir { name }
            | Op::Mkdir { name, .. }
            | Op::Mkfifo { name, .. }
            | Op::Device { name, .. } => entry(name),
            _ => Vec::new(),
        }
    }
}

impl Touched {
    /// The modification time now.
    pub fn mtime(&self, roots: &Roots, table: &Table) -> Option<i64> {
        match self {
            Touched::Slot(slot) => calls::mtime(at(&(table.get(*slot).ok()?, CString::default())), false),
            Touched::Entry(place) => calls::mtime(at(&roots.name(place)), false),
            Touched::Parent(place) => {
                let parent = place.path.rsplit_once('/').map_or(".", |(parent, _)| parent);
                let parent = Place { root: place.root, path: parent.to_owned() };
                calls::mtime(at(&roots.name(&parent)), true)
            }
        }
    }
}
