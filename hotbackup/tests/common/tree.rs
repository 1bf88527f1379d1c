//! A directory tree as it lies on disk, read whole, and how two of them differ.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CString, OsStr};
use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::Path;

pub const BLOCK: u64 = 4096;
const ZEROS: [u8; BLOCK as usize] = [0; BLOCK as usize];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    Directory,
    Symlink,
    Fifo,
    Device,
    Socket,
}

/// One inode.
#[derive(Clone, Debug)]
pub struct Node {
    pub kind: Kind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Nanoseconds; `None` in a model that does not know.
    pub mtime: Option<i64>,
    pub device: u64,
    pub link: String,
    pub xattrs: BTreeMap<String, Vec<u8>>,
    pub size: u64,
    /// The blocks that hold anything but zeros.
    pub blocks: BTreeMap<u64, Vec<u8>>,
    /// Bytes allocated, and data extents, if read from disk.
    pub allocated: Option<(u64, u64)>,
}

/// Names (relative, the root is "") and inodes.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    pub names: BTreeMap<String, usize>,
    pub nodes: Vec<Node>,
}

/// What to compare besides types, modes, owners, xattrs, link targets, hard links and bytes.
#[derive(Clone, Copy)]
pub struct Compare {
    pub times: bool,
    pub allocation: bool,
}

impl Tree {
    /// Reads the tree at `root`. Sockets are left out, as they are by a backup.
    pub fn read(root: &Path) -> io::Result<Tree> {
        let mut tree = Tree::read_all(root)?;
        tree.names.retain(|_, &mut node| tree.nodes[node].kind != Kind::Socket);
        Ok(tree)
    }

    /// Reads a destination: its manifest does not count. A socket there would be one too many.
    pub fn read_destination(root: &Path) -> io::Result<Tree> {
        let mut tree = Tree::read_all(root)?;
        tree.names.remove("hotbackup-manifest.json");
        Ok(tree)
    }

    fn read_all(root: &Path) -> io::Result<Tree> {
        let mut tree = Tree::default();
        let mut seen = HashMap::new();
        tree.add(root, String::new(), &mut seen)?;
        Ok(tree)
    }

    fn add(&mut self, path: &Path, name: String, seen: &mut HashMap<(u64, u64), usize>) -> io::Result<()> {
        let found = fs::symlink_metadata(path)?;
        let id = (found.dev(), found.ino());
        let number = match seen.get(&id) {
            Some(&number) => number,
            None => {
                self.nodes.push(read_node(path, &found)?);
                seen.insert(id, self.nodes.len() - 1);
                self.nodes.len() - 1
            }
        };
        self.names.insert(name.clone(), number);
        if found.is_dir() {
            for entry in fs::read_dir(path)? {
                let entry = entry?;
                let leaf = entry.file_name().to_string_lossy().into_owned();
                let below = if name.is_empty() { leaf } else { format!("{name}/{leaf}") };
                self.add(&entry.path(), below, seen)?;
            }
        }
        Ok(())
    }

    /// What of this tree lies below `base`, as a tree.
    pub fn below(&self, base: &str) -> Tree {
        let names = self.names.iter().filter_map(|(name, &node)| {
            let rest = name.strip_prefix(base)?;
            match rest.strip_prefix('/') {
                _ if base.is_empty() => Some((name.clone(), node)),
                Some(rest) => Some((rest.to_owned(), node)),
                None if rest.is_empty() => Some((String::new(), node)),
                None => None,
            }
        });
        Tree { names: names.collect(), nodes: self.nodes.clone() }
    }

    /// The first name of every inode.
    fn first_names(&self) -> HashMap<usize, &str> {
        let mut first = HashMap::new();
        for (name, &node) in &self.names {
            first.entry(node).or_insert(name.as_str());
        }
        first
    }

    /// What is different in `found`, at most `most` lines; this tree is what was expected.
    pub fn differences(&self, found: &Tree, what: Compare, most: usize) -> Vec<String> {
        let mut lines = Vec::new();
        let (mine, theirs) = (self.first_names(), found.first_names());
        for (name, &node) in &self.names {
            if lines.len() >= most {
                break;
            }
            let shown = shown(name);
            let Some(&other) = found.names.get(name) else {
                lines.push(format!("{shown}: missing ({:?})", self.nodes[node].kind));
                continue;
            };
            let (first, other_first) = (mine[&node], theirs[&other]);
            if first != other_first {
                lines.push(format!("{shown}: is one file with {other_first:?} instead of with {first:?}"));
            } else if first == name {
                self.nodes[node].compare(&found.nodes[other], &shown, what, &mut lines);
            }
        }
        for (name, &node) in &found.names {
            if !self.names.contains_key(name) && lines.len() < most {
                lines.push(format!("{}: should not be there ({:?})", shown(name), found.nodes[node].kind));
            }
        }
        lines
    }
}

fn shown(name: &str) -> String {
    if name.is_empty() { "(root)".to_owned() } else { name.escape_debug().to_string() }
}

impl Node {
    fn compare(&self, found: &Node, name: &str, what: Compare, lines: &mut Vec<String>) {
        let mut check = |field: &str, same: bool, expected: String, is: String| {
            if !same {
                lines.push(format!("{name}: {field} is {is} instead of {expected}"));
            }
        };
        macro_rules! same {
            ($($field:ident),*) => {$(
                check(
                    stringify!($field),
                    self.$field == found.$field,
                    format!("{:?}", self.$field),
                    format!("{:?}", found.$field),
                );
            )*};
        }
        same!(kind, uid, gid, device, link, xattrs, size);
        check("mode", self.mode == found.mode, format!("{:o}", self.mode), format!("{:o}", found.mode));
        // Using a pipe or a device moves its times, and nobody can wait for that to end.
        let moves = matches!(self.kind, Kind::Fifo | Kind::Device);
        if what.times && self.mtime.is_some() && !moves {
            same!(mtime);
        }
        if self.blocks != found.blocks {
            lines.push(format!("{name}: {}", self.first_block_difference(found)));
        }
        if what.allocation
            && let (Some((mine, extents)), Some((theirs, _))) = (self.allocated, found.allocated)
            && theirs > mine + BLOCK * (extents + 2)
        {
            lines.push(format!("{name}: {theirs} bytes are allocated instead of {mine} ({extents} extents)"));
        }
    }

    fn first_block_difference(&self, found: &Node) -> String {
        let zeros = vec![0; BLOCK as usize];
        let blocks = self.blocks.keys().chain(found.blocks.keys());
        let block = blocks
            .copied()
            .filter(|block| self.blocks.get(block) != found.blocks.get(block))
            .min()
            .unwrap_or(0);
        let mine = self.blocks.get(&block).unwrap_or(&zeros);
        let theirs = found.blocks.get(&block).unwrap_or(&zeros);
        let at = (0..BLOCK as usize).find(|&i| mine[i] != theirs[i]).unwrap_or(0);
        let at = at / 8 * 8;
        format!(
            "bytes differ from {} on: {:02x?} instead of {:02x?} (size {})",
            block * BLOCK + at as u64,
            &theirs[at..at + 8],
            &mine[at..at + 8],
            self.size
        )
    }
}

fn read_node(path: &Path, found: &Metadata) -> io::Result<Node> {
    let kind = match found.file_type() {
        t if t.is_file() => Kind::File,
        t if t.is_dir() => Kind::Directory,
        t if t.is_symlink() => Kind::Symlink,
        t if t.is_fifo() => Kind::Fifo,
        t if t.is_socket() => Kind::Socket,
        _ => Kind::Device,
    };
    let link = if kind == Kind::Symlink {
        fs::read_link(path)?.to_string_lossy().into_owned()
    } else {
        String::new()
    };
    let mut node = Node {
        kind,
        mode: found.mode() & 0o7777,
        uid: found.uid(),
        gid: found.gid(),
        mtime: Some(found.mtime() * 1_000_000_000 + found.mtime_nsec()),
        device: found.rdev(),
        link,
        xattrs: read_xattrs(path)?,
        size: 0,
        blocks: BTreeMap::new(),
        allocated: None,
    };
    if kind == Kind::File {
        node.size = found.size();
        let extents = read_data(&File::open(path)?, &mut node.blocks)?;
        node.allocated = Some((found.blocks() * 512, extents));
    }
    Ok(node)
}

/// Reads all data into blocks that are not all zeros and returns the number of extents.
fn read_data(file: &File, blocks: &mut BTreeMap<u64, Vec<u8>>) -> io::Result<u64> {
    let seek = |at: u64, whence| {
        // SAFETY: touches no memory; the descriptor is the file's.
        let result = unsafe { libc::lseek64(file.as_raw_fd(), at.cast_signed(), whence) };
        u64::try_from(result).ok()
    };
    let (mut at, mut extents) = (0, 0);
    while let Some(data) = seek(at, libc::SEEK_DATA) {
        let hole = seek(data, libc::SEEK_HOLE).unwrap_or(data + BLOCK);
        extents += 1;
        let mut block = data / BLOCK;
        while block * BLOCK < hole {
            add_block(file, block, blocks)?;
            block += 1;
        }
        at = hole.max(data + 1);
    }
    Ok(extents)
}

fn add_block(file: &File, block: u64, blocks: &mut BTreeMap<u64, Vec<u8>>) -> io::Result<()> {
    let mut data = vec![0; BLOCK as usize];
    let mut len = 0;
    loop {
        match file.read_at(&mut data[len..], block * BLOCK + len as u64)? {
            0 => break,
            n => len += n,
        }
        if len == data.len() {
            break;
        }
    }
    if data[..] != ZEROS {
        blocks.insert(block, data);
    }
    Ok(())
}

/// Whether bytes in memory are these blocks that are not all zeros.
pub fn holds(data: &[u8], blocks: &BTreeMap<u64, Vec<u8>>) -> bool {
    let mut held = 0;
    let same =
        data.chunks(BLOCK as usize).enumerate().all(|(number, chunk)| match blocks.get(&(number as u64)) {
            Some(block) => {
                held += 1;
                block[..chunk.len()] == *chunk && block[chunk.len()..] == ZEROS[chunk.len()..]
            }
            None => *chunk == ZEROS[..chunk.len()],
        });
    same && held == blocks.len()
}

/// Splits bytes in memory into blocks that are not all zeros.
pub fn blocks_of(data: &[u8]) -> BTreeMap<u64, Vec<u8>> {
    let filled = data.chunks(BLOCK as usize).enumerate();
    let filled = filled.filter(|(_, chunk)| **chunk != ZEROS[..chunk.len()]);
    filled
        .map(|(number, chunk)| {
            let mut block = chunk.to_vec();
            block.resize(BLOCK as usize, 0);
            (number as u64, block)
        })
        .collect()
}

fn read_xattrs(path: &Path) -> io::Result<BTreeMap<String, Vec<u8>>> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut list = vec![0u8; 4096];
    // SAFETY: the path is NUL-terminated, the buffer is as long as said.
    let len = unsafe { libc::llistxattr(path.as_ptr(), list.as_mut_ptr().cast(), list.len()) };
    let Ok(len) = usize::try_from(len) else {
        return Ok(BTreeMap::new());
    };
    let mut xattrs = BTreeMap::new();
    for name in list[..len].split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        let text = OsStr::from_bytes(name).to_string_lossy().into_owned();
        let name = CString::new(name)?;
        let mut value = vec![0u8; 4096];
        // SAFETY: path and name are NUL-terminated, the buffer is as long as said.
        let len =
            unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
        let Ok(len) = usize::try_from(len) else {
            return Err(io::Error::last_os_error());
        };
        value.truncate(len);
        xattrs.insert(text, value);
    }
    Ok(xattrs)
}
