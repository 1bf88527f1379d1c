//! Extended attributes, ACLs and capabilities among them, read and carried as records in one flat buffer.
//!
//! Reading works on any descriptor, and in the freeze too: into a buffer of fixed size, without allocating.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::BorrowedFd;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

/// The path by which a system call reaches what a descriptor of the calling thread refers to, whatever it was opened
/// for. Engine threads have a descriptor table of their own, so /proc/self would be another thread's.
pub(crate) struct ByPath([u8; 40]);

impl ByPath {
    pub(crate) fn new(fd: BorrowedFd<'_>) -> ByPath {
        use std::io::Write;
        use std::os::fd::AsRawFd;
        let mut text = [0; 40];
        // 21 bytes and at most 10 digits: it fits, and a NUL is left.
        let _ = write!(&mut text[..], "/proc/thread-self/fd/{}", fd.as_raw_fd());
        ByPath(text)
    }

    pub(crate) fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0).unwrap_or_default()
    }
}

/// An inode whose extended attributes are wanted: an `O_PATH` descriptor serves by its path only.
pub(super) enum Handle<'a> {
    Descriptor(BorrowedFd<'a>),
    Path(ByPath),
}

impl Handle<'_> {
    fn list<'b>(&self, names: &'b mut [MaybeUninit<u8>]) -> Result<&'b [u8], Errno> {
        match self {
            Handle::Descriptor(fd) => rustix::fs::flistxattr(fd, names),
            Handle::Path(path) => rustix::fs::listxattr(path.as_c_str(), names),
        }
        .map(|(names, _)| &*names)
    }

    pub(super) fn get<'b>(&self, name: &CStr, value: &'b mut [MaybeUninit<u8>]) -> Result<&'b [u8], Errno> {
        match self {
            Handle::Descriptor(fd) => rustix::fs::fgetxattr(fd, name, value),
            Handle::Path(path) => rustix::fs::getxattr(path.as_c_str(), name, value),
        }
        .map(|(value, _)| &*value)
    }

    pub(super) fn set(&self, name: &CStr, value: &[u8]) -> Result<(), Errno> {
        match self {
            Handle::Descriptor(fd) => rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty()),
            Handle::Path(path) => rustix::fs::setxattr(path.as_c_str(), name, value, XattrFlags::empty()),
        }
    }

    pub(super) fn remove(&self, name: &CStr) -> Result<(), Errno> {
        let removed = match self {
            Handle::Descriptor(fd) => rustix::fs::fremovexattr(fd, name),
            Handle::Path(path) => rustix::fs::removexattr(path.as_c_str(), name),
        };
        match removed {
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
            other => other,
        }
    }
}

/// The most that Linux lets a list of names, and a value, take up (XATTR_LIST_MAX, XATTR_SIZE_MAX).
const XATTR_MAX: usize = 65536;
/// What most of them fit in: larger buffers cost the kernel more.
const XATTR_USUAL: usize = 512;

/// Appends all extended attributes of `fd`, ACLs and capabilities included, to `heap` as records for [`records`], and
/// says where they lie. The descriptor may be an `O_PATH` one, of a symbolic link too.
///
/// With `fixed` it allocates nothing: if `heap` has no room left, the error is `ENOMEM` and `heap` is as it was.
pub(crate) fn append_xattrs(
    fd: BorrowedFd<'_>,
    heap: &mut Vec<u8>,
    fixed: bool,
) -> Result<Range<usize>, Errno> {
    let begin = heap.len();
    let appended = match append_all(&Handle::Descriptor(fd), heap, fixed) {
        Err(Errno::BADF) => append_all(&Handle::Path(ByPath::new(fd)), heap, fixed),
        other => other,
    };
    match appended {
        Ok(()) => Ok(begin..heap.len()),
        Err(e) => {
            heap.truncate(begin);
            Err(e)
        }
    }
}

fn append_all(handle: &Handle<'_>, heap: &mut Vec<u8>, fixed: bool) -> Result<(), Errno> {
    let mut names = [const { MaybeUninit::uninit() }; XATTR_USUAL];
    match handle.list(&mut names) {
        Ok(names) => append_listed(handle, names, heap, fixed),
        Err(Errno::OPNOTSUPP) => Ok(()),
        Err(Errno::RANGE) => append_many(handle, heap, fixed),
        Err(e) => Err(e),
    }
}

/// For the rare inode with a long list of names. Kept apart so that only it needs the stack.
#[cold]
#[inline(never)]
fn append_many(handle: &Handle<'_>, heap: &mut Vec<u8>, fixed: bool) -> Result<(), Errno> {
    let mut names = [const { MaybeUninit::uninit() }; XATTR_MAX];
    append_listed(handle, handle.list(&mut names)?, heap, fixed)
}

fn append_listed(handle: &Handle<'_>, names: &[u8], heap: &mut Vec<u8>, fixed: bool) -> Result<(), Errno> {
    for name in names.split_inclusive(|&b| b == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else {
            continue;
        };
        let mut value = [const { MaybeUninit::uninit() }; XATTR_USUAL];
        let appended = match handle.get(name, &mut value) {
            Ok(value) => append_record(heap, name, value, fixed),
            Err(Errno::RANGE) => append_large(handle, name, heap, fixed),
            Err(e) => Err(e),
        };
        match appended {
            // An attribute without data went away since it was listed.
            Ok(()) | Err(Errno::NODATA) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cold]
#[inline(never)]
fn append_large(handle: &Handle<'_>, name: &CStr, heap: &mut Vec<u8>, fixed: bool) -> Result<(), Errno> {
    let mut value = [const { MaybeUninit::uninit() }; XATTR_MAX];
    append_record(heap, name, handle.get(name, &mut value)?, fixed)
}

/// A record: the lengths of name (with its NUL) and value as 32-bit words in the machine's order, name, value.
pub(super) fn append_record(heap: &mut Vec<u8>, name: &CStr, value: &[u8], fixed: bool) -> Result<(), Errno> {
    let name = name.to_bytes_with_nul();
    if fixed && heap.capacity() - heap.len() < 8 + name.len() + value.len() {
        return Err(Errno::NOMEM);
    }
    for len in [name.len(), value.len()] {
        heap.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_ne_bytes());
    }
    heap.extend_from_slice(name);
    heap.extend_from_slice(value);
    Ok(())
}

/// The names and values in records that [`append_xattrs`] made.
pub(crate) fn records(records: &[u8]) -> impl Iterator<Item = (&CStr, &[u8])> {
    let mut left = records;
    std::iter::from_fn(move || {
        let (name_len, rest) = take_len(left)?;
        let (value_len, rest) = take_len(rest)?;
        let (name, rest) = rest.split_at_checked(name_len)?;
        let (value, rest) = rest.split_at_checked(value_len)?;
        left = rest;
        Some((CStr::from_bytes_with_nul(name).ok()?, value))
    })
}

fn take_len(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<4>()?;
    Some((usize::try_from(u32::from_ne_bytes(*len)).ok()?, rest))
}

/// A digest of extended attributes that does not depend on the order in which a filesystem lists them; 0 for none.
pub(crate) fn xattr_digest(xattrs: &[u8]) -> u64 {
    let mut sorted: Vec<_> = records(xattrs).collect();
    if sorted.is_empty() {
        return 0;
    }
    sorted.sort_unstable();
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    for (name, value) in sorted {
        hash.update(name.to_bytes_with_nul());
        hash.update(&(value.len() as u64).to_le_bytes());
        hash.update(value);
    }
    hash.digest()
}
