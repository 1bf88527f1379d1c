//! POSIX ACLs as the kernel gives them: a version, then (tag, rights, id) for each entry, little-endian (acl(5)).
//!
//! `apply` needs to know which permission bits an ACL sets, and which are harmless where it cannot be kept.

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

fn entries(acl: &[u8]) -> impl Iterator<Item = (u16, u32)> {
    let (entries, _) = acl.get(4..).unwrap_or_default().as_chunks::<8>();
    entries.iter().map(|entry| {
        let [tag0, tag1, rights0, rights1, ..] = *entry;
        let rights = u16::from_le_bytes([rights0, rights1]) & 0o7;
        (u16::from_le_bytes([tag0, tag1]), rights.into())
    })
}

fn of(acl: &[u8], tag: u16) -> Option<u32> {
    entries(acl).find(|entry| entry.0 == tag).map(|entry| entry.1)
}

/// The permission bits (0777) of an inode with this ACL: its group bits are the mask.
pub(crate) fn rights(acl: &[u8]) -> Option<u32> {
    let group = of(acl, MASK).or(of(acl, GROUP_OBJ))?;
    Some(of(acl, USER_OBJ)? << 6 | group << 3 | of(acl, OTHER)?)
}

/// The group's and others' bits (077) where the ACL cannot be kept: no more than every group, user and other
/// that it names would have got, since each of them may now be counted among the group or the others.
pub(crate) fn least(acl: &[u8], mode: u32) -> u32 {
    let mask = of(acl, MASK).unwrap_or(0o7);
    let named = entries(acl)
        .filter(|(tag, _)| matches!(*tag, USER | GROUP))
        .fold(0o7, |least, (_, rights)| least & rights & mask);
    let group = of(acl, GROUP_OBJ).unwrap_or(0) & mask & named;
    group << 3 | mode & 0o7 & named
}
