//! Re-reads a backup and names every difference from its manifest.
//!
//! [`verify`] works on a thread of ours with its own descriptor table: closing a file in the host's would drop the
//! locks that the host holds on it. It reads beneath the given directories only, follows no symbolic link, opens
//! nothing but files and directories, and leaves access times as they are where it is allowed to.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, Statx, StatxFlags, openat, statx};
use rustix::io::Errno;

use crate::attributes::{Attributes, append_xattrs, xattr_digest};
use crate::error::{Error, Op, Result};
use crate::manifest::{
    Expected, INCOMPLETE_MARK, Kind, MANIFEST_NAME, MARK_TEXT_NAME, Manifest, Mark, identity,
};

mod beneath;
mod contents;

/// Ends the name of a destination for as long as a program has something to add to the backup.
const INCOMPLETE_ENDING: &str = ".incomplete";

/// One way in which a backup is not what its manifest says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Difference {
    /// The entry.
    pub path: PathBuf,
    /// What is different about it.
    pub text: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.text)
    }
}

/// What a verification looked at, and what it found.
#[derive(Clone, Debug, Default)]
#[must_use = "a damaged backup is no error: ask is_ok"]
#[non_exhaustive]
pub struct Verification {
    /// The instant that the backup shows, in UTC, as RFC 3339 writes it.
    pub cut: String,
    /// Regular files compared, each inode once.
    pub files: u64,
    /// Directories compared, the roots included.
    pub directories: u64,
    /// Bytes of file contents compared, holes included.
    pub bytes: u64,
    /// Every difference, in the order of the manifest; entries that it does not know come last.
    pub differences: Vec<Difference>,
}

impl Verification {
    /// Whether the backup is what its manifest says.
    pub fn is_ok(&self) -> bool {
        self.differences.is_empty()
    }
}

/// Compares the backup in `dir` with the manifest at its root: what entries there are, their types, sizes, modes,
/// owners, modification times, extended attributes, ACLs, link targets, hard links, and their contents. The further
/// destinations of a backup with several are looked for where they were made; see [`verify_with`]. If all destinations lay
/// below the manifest's directory, they are looked for below `dir`, also by a name without the ending `.incomplete` that
/// a program may give them until its own part of the backup is done; while one still has it, `dir` is no backup.
///
/// # Errors
/// [`Error::NotABackup`] if `dir` has no manifest or is marked as incomplete, [`Error::Manifest`] if the manifest was
/// altered, [`Error::Io`] if a destination or the manifest cannot be read. A single entry that cannot be read is a
/// difference.
///
/// # Threads
/// May be called on any thread and beside a running session. Reading is done by a thread of ours.
pub fn verify(dir: impl AsRef<Path>) -> Result<Verification> {
    let dir = dir.as_ref().to_owned();
    on_own_thread("the verification", move || {
        refuse_incomplete(&dir)?;
        let path = dir.join(MANIFEST_NAME);
        let manifest = Manifest::open(&path).map_err(|e| match e {
            Error::Io { source, .. } if source.raw_os_error() == Some(libc::ENOENT) => {
                Error::NotABackup { path: dir.clone(), reason: format!("it has no {MANIFEST_NAME}") }
            }
            e => e,
        })?;
        if let Some(below) = &manifest.below {
            let dirs = below.iter().map(|below| find_below(&dir, below)).collect::<Result<_>>()?;
            return compare(manifest, dirs);
        }
        let mut dirs = manifest.destinations.clone();
        match dirs.first_mut() {
            Some(first) => first.clone_from(&dir),
            None => return Err(manifest.unusable("it is about no directory")),
        }
        compare(manifest, dirs)
    })
}

/// Compares a backup with the manifest at the path `manifest`: see [`verify`]. `dirs` are the destinations in the order
/// in which the backup was given them; with none, they are looked for where they were made.
///
/// # Errors
/// Those of [`verify`], and [`Error::Manifest`] if the number of `dirs` is not that of the backup's destinations.
pub fn verify_with<D: AsRef<Path>>(
    manifest: impl AsRef<Path>,
    dirs: impl IntoIterator<Item = D>,
) -> Result<Verification> {
    let path = manifest.as_ref().to_owned();
    let mut dirs: Vec<_> = dirs.into_iter().map(|dir| dir.as_ref().to_owned()).collect();
    on_own_thread("the verification", move || {
        let manifest = Manifest::open(&path)?;
        if dirs.is_empty() {
            dirs = manifest.destinations.iter().map(|made| renamed(made).unwrap_or(made.clone())).collect();
        }
        let (given, wanted) = (dirs.len(), manifest.destinations.len());
        if given != wanted {
            return Err(
                manifest.unusable(format!("it is about {wanted} destinations, and {given} were given"))
            );
        }
        compare(manifest, dirs)
    })
}

/// Does something on a thread with a descriptor table of its own; `what` is its name in errors.
pub(crate) fn on_own_thread<T: Send + 'static>(
    what: &str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let thread = crate::sys::thread::spawn("hotbackup-check", move || {
        // Where the kernel cannot (before 5.9), only the host's locks on what is opened are at stake.
        let _ = crate::sys::raw::leave_descriptor_table();
        work()
    });
    let thread = thread.map_err(|e| Error::io(Op::StartThread, what, e))?;
    thread.join().unwrap_or_else(|_| Err(Error::Defect(format!("{what} panicked"))))
}

/// The directory without the ending that says that it is not complete, if it has that and lies there no longer.
fn renamed(made: &Path) -> Option<PathBuf> {
    let name = made.as_os_str().as_bytes().strip_suffix(INCOMPLETE_ENDING.as_bytes())?;
    (!made.exists()).then(|| OsStr::from_bytes(name).into())
}

/// Finds a destination below the directory of its manifest.
fn find_below(dir: &Path, below: &Path) -> Result<PathBuf> {
    let not_a_backup = |reason: String| Error::NotABackup { path: dir.to_owned(), reason };
    if below.components().any(|part| !matches!(part, std::path::Component::Normal(_))) {
        return Err(not_a_backup(format!("its manifest leads to {}", below.display())));
    }
    let made = dir.join(below);
    match renamed(&made) {
        Some(renamed) => Ok(renamed),
        None if below.as_os_str().as_bytes().ends_with(INCOMPLETE_ENDING.as_bytes()) => {
            Err(not_a_backup(format!("the name {} says that it is not complete", below.display())))
        }
        None => Ok(made),
    }
}

/// A directory with the mark of an incomplete backup is not a backup, whatever else it holds.
fn refuse_incomplete(dir: &Path) -> Result<()> {
    let mark = dir.join(INCOMPLETE_MARK);
    match statx(CWD, &mark, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::TYPE) {
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTDIR) => return Err(Error::DestinationNotDirectory { path: dir.to_owned() }),
        Err(e) => return Err(Error::io(Op::Examine, mark, e)),
        Ok(_) => {}
    }
    let since = contents::small_text(&mark.join(MARK_TEXT_NAME)).and_then(|text| Mark::parse(&text));
    let since = since.map_or(String::new(), |mark| format!(", begun {} by process {}", mark.begun, mark.pid));
    Err(Error::NotABackup {
        path: dir.to_owned(),
        reason: format!("{INCOMPLETE_MARK} marks it as incomplete{since}"),
    })
}

fn compare(mut manifest: Manifest, dirs: Vec<PathBuf>) -> Result<Verification> {
    let mut check = Check {
        roots: Vec::with_capacity(dirs.len()),
        manifest: manifest.identity,
        seen: HashSet::new(),
        directories: Vec::new(),
        groups: HashMap::new(),
        inodes: HashMap::new(),
        heap: Vec::new(),
        buffer: contents::buffer(),
        found: Verification { cut: manifest.cut.clone(), ..Verification::default() },
    };
    for path in dirs {
        refuse_incomplete(&path)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = openat(CWD, &path, flags, Mode::empty()).map_err(|e| Error::io(Op::Open, &path, e))?;
        check.roots.push(Root { path, fd });
    }
    while let Some(entry) = manifest.next_entry()? {
        check.entry(&entry, &manifest)?;
    }
    check.look_for_others();
    Ok(check.found)
}

struct Root {
    path: PathBuf,
    fd: OwnedFd,
}

type Identity = (u32, u32, u64);

struct Check {
    roots: Vec<Root>,
    /// The manifest itself, which may lie in a tree without being an entry of it.
    manifest: Identity,
    seen: HashSet<(usize, PathBuf)>,
    /// Those of them that are directories.
    directories: Vec<(usize, PathBuf)>,
    /// For every group of hard links: its inode here, and its first entry.
    groups: HashMap<u64, (Option<Identity>, PathBuf)>,
    /// For every inode with several links: its group, and its first entry.
    inodes: HashMap<Identity, (Option<u64>, PathBuf)>,
    heap: Vec<u8>,
    buffer: Vec<u8>,
    found: Verification,
}

impl Check {
    fn full_path(&self, tree: usize, below: &Path) -> PathBuf {
        match below.as_os_str().is_empty() {
            true => self.roots[tree].path.clone(),
            false => self.roots[tree].path.join(below),
        }
    }

    fn differs(&mut self, entry: &Expected, text: impl Into<String>) {
        let path = self.full_path(entry.tree, &entry.path);
        self.found.differences.push(Difference { path, text: text.into() });
    }

    /// Compares one entry. An error is about the manifest only.
    fn entry(&mut self, entry: &Expected, manifest: &Manifest) -> Result<()> {
        let path = self.full_path(entry.tree, &entry.path);
        let in_known_group = entry.group.is_some_and(|group| self.groups.contains_key(&group));
        if entry.kind == Kind::File && entry.blocks.is_none() && !in_known_group {
            return Err(manifest.unusable(format!("it has no checksums of {}", path.display())));
        }
        if !self.seen.insert((entry.tree, entry.path.clone())) {
            return Err(manifest.unusable(format!("it has {} twice", path.display())));
        }
        match beneath::open(self.roots[entry.tree].fd.as_fd(), &entry.path) {
            Ok(fd) => self.inode(entry, &fd),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => self.differs(entry, "is missing"),
            Err(e) => self.differs(entry, format!("cannot be opened: {e}")),
        }
        if let Some(group) = entry.group {
            // A group whose first entry is missing has an inode no longer, so its others are no copies of it.
            self.groups.entry(group).or_insert((None, path));
        }
        Ok(())
    }

    fn inode(&mut self, entry: &Expected, fd: &OwnedFd) {
        let found = match statx(fd, c"", AtFlags::EMPTY_PATH, Attributes::WANTED) {
            Ok(found) => found,
            Err(e) => return self.differs(entry, format!("cannot be examined: {e}")),
        };
        let has = Attributes::from_statx(&found);
        let kind = Kind::from(has.kind);
        if kind != entry.kind {
            return self.differs(entry, format!("is {kind} instead of {}", entry.kind));
        }
        self.attributes(entry, &has);
        self.links(entry, &found);
        self.xattrs(entry, fd);
        match kind {
            Kind::Directory => {
                self.found.directories += 1;
                self.directories.push((entry.tree, entry.path.clone()));
            }
            Kind::Symlink => self.target(entry, fd),
            Kind::File => self.contents(entry, fd, has.size),
            _ => {}
        }
    }

    fn attributes(&mut self, entry: &Expected, has: &Attributes) {
        let mut differs = |what: &str, is: String, should: String| {
            if is != should {
                self.differs(entry, format!("{what} is {is} instead of {should}"));
            }
        };
        if entry.kind != Kind::Symlink {
            differs("mode", format!("{:04o}", has.mode), format!("{:04o}", entry.mode));
        }
        let owner = |uid, gid| format!("{uid}:{gid}");
        differs("owner", owner(has.uid, has.gid), owner(entry.uid, entry.gid));
        differs("modification time", has.mtime.to_string(), entry.mtime.to_string());
        if entry.kind == Kind::File {
            differs("size", has.size.to_string(), entry.size.to_string());
        }
        if entry.device.is_some() {
            let number = |device: Option<(u32, u32)>| {
                device.map_or("none".to_owned(), |(major, minor)| format!("{major}:{minor}"))
            };
            differs("device number", number(has.device()), number(entry.device));
        }
    }

    /// Entries of one group are one inode, and entries of different groups are not.
    fn links(&mut self, entry: &Expected, found: &Statx) {
        let inode = identity(found);
        let path = self.full_path(entry.tree, &entry.path);
        if let Some(group) = entry.group {
            let (first, of) = self.groups.entry(group).or_insert((Some(inode), path.clone())).clone();
            if first != Some(inode) {
                return self.differs(entry, format!("is not a hard link of {}", of.display()));
            }
        }
        if found.stx_nlink > 1 && entry.kind != Kind::Directory {
            let (group, of) = self.inodes.entry(inode).or_insert((entry.group, path.clone())).clone();
            if of != path && (group.is_none() || group != entry.group) {
                self.differs(entry, format!("is a hard link of {}, and should not be", of.display()));
            }
        }
    }

    fn xattrs(&mut self, entry: &Expected, fd: &OwnedFd) {
        self.heap.clear();
        match append_xattrs(fd.as_fd(), &mut self.heap, false) {
            Ok(_) if xattr_digest(&self.heap) == entry.xattrs => {}
            Ok(_) => self.differs(entry, "extended attributes or ACLs are different"),
            Err(e) => self.differs(entry, format!("extended attributes cannot be read: {e}")),
        }
    }

    fn target(&mut self, entry: &Expected, fd: &OwnedFd) {
        let is = match rustix::fs::readlinkat(fd, c"", Vec::new()) {
            Ok(is) => is,
            Err(e) => return self.differs(entry, format!("link target cannot be read: {e}")),
        };
        let should = entry.target.as_deref().unwrap_or(Path::new(""));
        if is.as_bytes() != should.as_os_str().as_bytes() {
            let is = is.to_string_lossy().into_owned();
            self.differs(entry, format!("link target is {is} instead of {}", should.display()));
        }
    }

    fn contents(&mut self, entry: &Expected, fd: &OwnedFd, size: u64) {
        let Some(runs) = &entry.blocks else {
            return;
        };
        self.found.files += 1;
        let comparable = size.min(entry.size);
        match contents::compare(fd, runs, entry.size, comparable, &mut self.buffer) {
            Ok(None) => {}
            Ok(Some(at)) => self.differs(entry, format!("contents differ in the block at byte {at}")),
            Err(contents::Unreadable { at, errno }) => {
                self.differs(entry, format!("cannot be read at byte {at}: {errno}"));
            }
        }
        self.found.bytes += comparable;
    }

    /// Lists every directory that the manifest knows, for entries that it does not.
    fn look_for_others(&mut self) {
        let mut others = Vec::new();
        for (tree, below) in &self.directories {
            let root = self.roots[*tree].fd.as_fd();
            let mut look = |name: &Path, at: Identity| {
                if at != self.manifest {
                    let path = self.full_path(*tree, &below.join(name));
                    others.push((path, "is not in the manifest".to_owned()));
                }
            };
            let known = |name: &Path| self.seen.contains(&(*tree, below.join(name)));
            let listed = beneath::open(root, below).and_then(|dir| list(&dir, known, &mut look));
            if let Err(e) = listed {
                others.push((self.full_path(*tree, below), format!("cannot be listed: {e}")));
            }
        }
        others.sort();
        let others = others.into_iter().map(|(path, text)| Difference { path, text });
        self.found.differences.extend(others);
    }
}

/// Tells `look` of every name in a directory that is not `known`, with the inode that it stands for.
fn list(
    dir: &OwnedFd,
    known: impl Fn(&Path) -> bool,
    look: &mut dyn FnMut(&Path, Identity),
) -> Result<(), Errno> {
    let dir = contents::reopen(dir, OFlags::DIRECTORY)?;
    for entry in Dir::read_from(&dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let path = Path::new(OsStr::from_bytes(name.to_bytes()));
        if name == c"." || name == c".." || known(path) {
            continue;
        }
        let found = statx(&dir, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::INO);
        look(path, found.map_or((0, 0, 0), |found| identity(&found)));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
