//! What an inode is besides its bytes: kind, mode, owner, times, ACLs, extended attributes.
//!
//! The engine reads attributes from a source ([`Attributes::from_statx`], [`append_xattrs`]), partly while the gate is
//! closed, and gives them to the copy when it publishes ([`apply`]).
//!
//! Invariant: at no moment can more people read an entry of the destination than can read its source. `apply` finds it
//! open to its owner only, and gives it, in this order: its owner; none of the ACLs that it inherited from its
//! directory; extended attributes and capabilities; its ACL and mode; its times. So nobody new gets in before the
//! owner is right, and what is left out because it was refused only ever takes rights away.

use std::ffi::CStr;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Statx, StatxFlags, StatxTimestamp, Timespec, Timestamps, Uid,
    statx, utimensat,
};
use rustix::io::Errno;

use crate::error::{Error, Op, Result};
use crate::sys;

mod acl;
mod xattrs;

pub(crate) use xattrs::ByPath;
use xattrs::Handle;
pub(crate) use xattrs::{append_xattrs, records, xattr_digest};

const ACCESS_ACL: &CStr = c"system.posix_acl_access";
const DEFAULT_ACL: &CStr = c"system.posix_acl_default";
const CAPABILITY: &CStr = c"security.capability";

/// The set-user-ID and set-group-ID bits, which lend the owner's rights to whoever runs the file.
const LENDING: u32 = 0o6000;
const SET_GROUP_ID: u32 = 0o2000;

/// A time since the epoch, in no more memory than it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, packed(4))]
pub(crate) struct Time {
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}

/// As the manifest has it.
impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Time { seconds, nanoseconds } = *self;
        write!(f, "{seconds}.{nanoseconds:09}")
    }
}

/// What an inode is besides its bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attributes {
    pub(crate) kind: FileType,
    /// The permission, set-ID and sticky bits (07777).
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) atime: Time,
    pub(crate) mtime: Time,
    pub(crate) size: u64,
    /// How many names it has, or more than that many.
    pub(crate) nlink: u16,
    /// Of a device node its major and minor number, 32 bits each; of anything else the bytes of disk that it takes.
    pub(crate) room_or_device: u64,
}

impl Attributes {
    /// What a statx must ask for.
    pub(crate) const WANTED: StatxFlags = StatxFlags::BASIC_STATS;

    pub(crate) fn from_statx(found: &Statx) -> Attributes {
        let time = |time: StatxTimestamp| Time { seconds: time.tv_sec, nanoseconds: time.tv_nsec };
        let kind = FileType::from_raw_mode(found.stx_mode.into());
        Attributes {
            kind,
            mode: u32::from(found.stx_mode) & 0o7777,
            uid: found.stx_uid,
            gid: found.stx_gid,
            atime: time(found.stx_atime),
            mtime: time(found.stx_mtime),
            size: found.stx_size,
            nlink: found.stx_nlink.try_into().unwrap_or(u16::MAX),
            room_or_device: if is_device(kind) {
                u64::from(found.stx_rdev_major) << 32 | u64::from(found.stx_rdev_minor)
            } else {
                found.stx_blocks.saturating_mul(512)
            },
        }
    }

    /// Bytes of disk that it takes.
    pub(crate) fn allocated(&self) -> u64 {
        if is_device(self.kind) { 0 } else { self.room_or_device }
    }

    /// Major and minor number, if it is a device node.
    pub(crate) fn device(&self) -> Option<(u32, u32)> {
        is_device(self.kind).then_some(((self.room_or_device >> 32) as u32, self.room_or_device as u32))
    }

    /// Both times, as the calls that set them take them.
    pub(crate) fn times(&self) -> Timestamps {
        let time = |time: Time| Timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds.into() };
        Timestamps { last_access: time(self.atime), last_modification: time(self.mtime) }
    }
}

fn is_device(kind: FileType) -> bool {
    matches!(kind, FileType::CharacterDevice | FileType::BlockDevice)
}

/// What [`apply`] was able to give: what the copy has now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Applied {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// False if an extended attribute or an ACL was refused.
    pub(crate) xattrs: bool,
}

/// Gives the entry `name` of `dir`, which only its owner may access yet, the attributes `wanted` and the extended
/// attributes `xattrs`; a symbolic link is never followed. `path` is for errors. `inherits` says that entries of the
/// destination may have inherited ACLs, which are removed.
///
/// What the process is not allowed to give, or the filesystem cannot keep, becomes a `note`, with as few rights for
/// others as the source gives; everything else that fails is an error. Nothing is synced.
pub(crate) fn apply(
    dir: BorrowedFd<'_>,
    name: &CStr,
    path: &Path,
    wanted: &Attributes,
    xattrs: &[u8],
    inherits: bool,
    note: &mut dyn FnMut(String),
) -> Result<Applied> {
    if wanted.kind == FileType::RegularFile
        && xattrs.is_empty()
        && !inherits
        && let Some(applied) = apply_plain(dir, name, path, wanted)?
    {
        return Ok(applied);
    }
    let target = Target::open(dir, name, path, wanted)?;
    let handle = target.handle();
    let (uid, gid) = target.set_owner(note)?;
    let owner = Ownership { uid: uid == wanted.uid, gid: gid == wanted.gid };
    if inherits && wanted.kind != FileType::Symlink {
        target.remove_inherited(&handle)?;
    }
    let mut complete = true;
    for (name, value) in records(xattrs).filter(|(name, _)| *name != ACCESS_ACL) {
        complete &= target.set_xattr(&handle, name, value, owner, note)?;
    }
    let acl = records(xattrs).find(|(name, _)| *name == ACCESS_ACL);
    let (mode, kept) = target.set_rights(&handle, acl.map(|(_, acl)| acl), owner, note)?;
    target.set_times()?;
    Ok(Applied { mode, uid, gid, xattrs: complete && kept })
}

/// Gives a file that needs no more than mode and times these by its name, which is quicker than opening it. `None` if it
/// needs more, or was refused something.
fn apply_plain(
    dir: BorrowedFd<'_>,
    name: &CStr,
    path: &Path,
    wanted: &Attributes,
) -> Result<Option<Applied>> {
    let failed = |op: Op| move |e: Errno| Error::io(op, path, e);
    let now = statx(dir, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS);
    let now = Attributes::from_statx(&now.map_err(failed(Op::Examine))?);
    let same_owner = (now.uid, now.gid) == (wanted.uid, wanted.gid);
    if now.kind != wanted.kind || !same_owner || (now.mode | wanted.mode) & LENDING != 0 {
        return Ok(None);
    }
    if now.mode != wanted.mode {
        match sys::raw::chmod_entry(dir, name, wanted.mode) {
            Err(e) if is_refusal(e) => return Ok(None),
            set => set.map_err(failed(Op::SetMode))?,
        }
    }
    let set = utimensat(dir, name, &wanted.times(), AtFlags::SYMLINK_NOFOLLOW);
    set.map_err(failed(Op::SetTimes))?;
    Ok(Some(Applied { mode: wanted.mode, uid: now.uid, gid: now.gid, xattrs: true }))
}

/// Whether what is made in a directory inherits an ACL, as far as one can tell.
pub(crate) fn passes_on_acl(directory: BorrowedFd<'_>) -> bool {
    !matches!(Handle::Descriptor(directory).get(DEFAULT_ACL, &mut []), Err(Errno::NODATA | Errno::OPNOTSUPP))
}

/// Which of the owners the copy has in common with its source.
#[derive(Clone, Copy)]
struct Ownership {
    uid: bool,
    gid: bool,
}

/// The entry that receives attributes, opened once, so that every step is about the same inode.
struct Target<'a> {
    fd: OwnedFd,
    /// The descriptor is an `O_PATH` one.
    by_path: bool,
    dir: BorrowedFd<'a>,
    name: &'a CStr,
    path: &'a Path,
    wanted: &'a Attributes,
    now: Attributes,
}

impl<'a> Target<'a> {
    fn open(
        dir: BorrowedFd<'a>,
        name: &'a CStr,
        path: &'a Path,
        wanted: &'a Attributes,
    ) -> Result<Target<'a>> {
        let failed = |op: Op| move |e: Errno| Error::io(op, path, e);
        let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let readable = match wanted.kind {
            FileType::RegularFile => Some(OFlags::NONBLOCK | OFlags::NOCTTY),
            FileType::Directory => Some(OFlags::DIRECTORY),
            _ => None,
        };
        // A file of ours may be closed even to ourselves, and what is neither a file nor a directory is not opened.
        let opened = match readable {
            Some(more) => rustix::fs::openat(dir, name, flags | more, Mode::empty()),
            None => Err(Errno::ACCESS),
        };
        let (fd, by_path) = match opened {
            Ok(fd) => (fd, false),
            Err(Errno::ACCESS) => {
                let fd = rustix::fs::openat(dir, name, flags | OFlags::PATH, Mode::empty());
                (fd.map_err(failed(Op::Open))?, true)
            }
            Err(e) => return Err(failed(Op::Open)(e)),
        };
        let now = rustix::fs::statx(&fd, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)
            .map_err(failed(Op::Examine))?;
        let now = Attributes::from_statx(&now);
        if now.kind != wanted.kind {
            return Err(failed(Op::SetAttributes)(Errno::STALE));
        }
        Ok(Target { fd, by_path, dir, name, path, wanted, now })
    }

    fn handle(&self) -> Handle<'_> {
        if self.by_path {
            Handle::Path(ByPath::new(self.fd.as_fd()))
        } else {
            Handle::Descriptor(self.fd.as_fd())
        }
    }

    fn error(&self, op: Op) -> impl Fn(Errno) -> Error + '_ {
        move |e| Error::io(op, self.path, e)
    }

    /// Gives the entry its owner and group, or its group alone, and returns what it has then.
    fn set_owner(&self, note: &mut dyn FnMut(String)) -> Result<(u32, u32)> {
        let (wanted, now) = (self.wanted, &self.now);
        if (wanted.uid, wanted.gid) == (now.uid, now.gid) {
            return Ok((now.uid, now.gid));
        }
        let Err(refusal) = self.chown(Some(wanted.uid), wanted.gid)? else {
            return Ok((wanted.uid, wanted.gid));
        };
        let gid = match self.chown(None, wanted.gid)? {
            Ok(()) => wanted.gid,
            Err(_) => now.gid,
        };
        note(format!(
            "its owner {}:{} could not be set ({}); it belongs to {}:{gid}",
            wanted.uid,
            wanted.gid,
            explain(refusal),
            now.uid
        ));
        Ok((now.uid, gid))
    }

    fn chown(&self, uid: Option<u32>, gid: u32) -> Result<Result<(), Errno>> {
        let uid = uid.map(Uid::from_raw_unchecked);
        let gid = Some(Gid::from_raw_unchecked(gid));
        match rustix::fs::chownat(&self.fd, c"", uid, gid, AtFlags::EMPTY_PATH) {
            Ok(()) => Ok(Ok(())),
            // EINVAL: an owner that this user namespace does not know.
            Err(e) if is_refusal(e) || e == Errno::INVAL => Ok(Err(e)),
            Err(e) => Err(self.error(Op::SetOwner)(e)),
        }
    }

    fn remove_inherited(&self, handle: &Handle<'_>) -> Result<()> {
        handle
            .remove(ACCESS_ACL)
            .and_then(|()| match self.wanted.kind {
                FileType::Directory => handle.remove(DEFAULT_ACL),
                _ => Ok(()),
            })
            .map_err(self.error(Op::SetAttributes))
    }

    /// True if the entry has it now, false if it was refused and noted.
    fn set_xattr(
        &self,
        handle: &Handle<'_>,
        name: &CStr,
        value: &[u8],
        owner: Ownership,
        note: &mut dyn FnMut(String),
    ) -> Result<bool> {
        let refusal = if name == CAPABILITY && !owner.uid {
            Errno::PERM
        } else {
            match handle.set(name, value) {
                Ok(()) => return Ok(true),
                // EINVAL: a property of one filesystem that another one knows with other values.
                Err(e) if is_refusal(e) || e == Errno::INVAL => e,
                Err(e) => return Err(self.error(Op::SetAttributes)(e)),
            }
        };
        note(format!(
            "its extended attribute {} could not be set ({})",
            name.to_string_lossy(),
            explain(refusal)
        ));
        Ok(false)
    }

    /// Sets ACL and mode; returns the mode, and whether the ACL was kept.
    fn set_rights(
        &self,
        handle: &Handle<'_>,
        acl: Option<&[u8]>,
        owner: Ownership,
        note: &mut dyn FnMut(String),
    ) -> Result<(u32, bool)> {
        if self.wanted.kind == FileType::Symlink {
            return Ok((self.now.mode, true));
        }
        let mut mode = self.wanted.mode;
        let mut has = self.now.mode;
        let mut kept = true;
        if let Some(acl) = acl {
            // The ACL comes before the mode: the mode's group bits are the ACL's mask, and would alone let in the group.
            kept = owner.gid && self.set_xattr(handle, ACCESS_ACL, acl, owner, note)?;
            match acl::rights(acl) {
                Some(rights) if kept => has = has & !0o777 | rights,
                _ => mode = mode & !0o077 | acl::least(acl, mode),
            }
            if !owner.gid {
                note("its ACL was left out, because its group could not be set".into());
            }
        }
        mode = self.with_owner(mode, owner, note);
        if mode != has || (self.now.mode & LENDING) != 0 {
            mode = self.chmod(handle, mode, note)?;
        }
        Ok((mode, kept))
    }

    /// The mode as far as it may be given to an entry with this owner.
    fn with_owner(&self, wanted: u32, owner: Ownership, note: &mut dyn FnMut(String)) -> u32 {
        let mut mode = wanted;
        if !owner.gid {
            // Who is in the source's group and who is not is mixed up now: both get what both had.
            let both = (mode >> 3) & mode & 0o7;
            mode = mode & !0o077 | both << 3 | both;
        }
        match self.wanted.kind {
            FileType::Directory if owner.gid => {}
            FileType::Directory => mode &= !SET_GROUP_ID,
            _ if owner.uid && owner.gid => {}
            _ => mode &= !LENDING,
        }
        if mode != wanted {
            note(format!(
                "its mode is {mode:04o} instead of {wanted:04o}, because its owner could not be set"
            ));
        }
        mode
    }

    fn chmod(&self, handle: &Handle<'_>, mode: u32, note: &mut dyn FnMut(String)) -> Result<u32> {
        let bits = Mode::from_raw_mode(mode);
        let set = match handle {
            Handle::Descriptor(fd) => rustix::fs::fchmod(fd, bits),
            Handle::Path(path) => rustix::fs::chmodat(CWD, path.as_c_str(), bits, AtFlags::empty()),
        };
        match set {
            Ok(()) if mode & LENDING == 0 => Ok(mode),
            Err(e) if !is_refusal(e) => Err(self.error(Op::SetMode)(e)),
            // Refused, or perhaps in part: the kernel drops set-group-ID silently.
            set => {
                let now = rustix::fs::statx(&self.fd, c"", AtFlags::EMPTY_PATH, StatxFlags::MODE)
                    .map_err(self.error(Op::Examine))?;
                let now = u32::from(now.stx_mode) & 0o7777;
                if now != mode {
                    let why = set.err().unwrap_or(Errno::PERM);
                    note(format!("its mode is {now:04o} instead of {mode:04o} ({})", explain(why)));
                }
                Ok(now)
            }
        }
    }

    fn set_times(&self) -> Result<()> {
        let times = self.wanted.times();
        if !self.by_path {
            return rustix::fs::futimens(&self.fd, &times).map_err(self.error(Op::SetTimes));
        }
        let set = match rustix::fs::utimensat(&self.fd, c"", &times, AtFlags::EMPTY_PATH) {
            // Linux before 5.8 knows no AT_EMPTY_PATH here.
            Err(Errno::INVAL | Errno::NOENT) => {
                rustix::fs::utimensat(self.dir, self.name, &times, AtFlags::SYMLINK_NOFOLLOW)
            }
            other => other,
        };
        set.map_err(self.error(Op::SetTimes))
    }
}

/// Whether an error says that the process may not, or the filesystem cannot, rather than that something is wrong.
fn is_refusal(e: Errno) -> bool {
    matches!(e, Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP | Errno::NOSYS)
}

fn explain(e: Errno) -> &'static str {
    match e {
        Errno::PERM | Errno::ACCESS => "not permitted",
        Errno::OPNOTSUPP | Errno::NOSYS => "not supported by the destination's filesystem",
        _ => "refused by the destination's filesystem",
    }
}

#[cfg(test)]
mod tests;
