//! Which pages of a mapping were stored to: userfaultfd(2) in its asynchronous write-protecting mode (since Linux 6.7), and
//! the `PAGEMAP_SCAN` of ioctl_pagemap_scan(2).
//!
//! The first store to a protected page takes a fault that the kernel resolves by itself: it notes that the page was stored to
//! and lets the store go on. Nobody is ever asked or waits, and what the memory holds or allows does not change; so any range
//! of addresses may be given here. For engine threads: the descriptors are in their table.

use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::ioctl::{Opcode, opcode};
use syscalls::{Sysno, syscall};

/// Faults of system calls need no handling by whoever has the descriptor: they are resolved like all others. So no privilege is
/// needed.
const USER_MODE_ONLY: i32 = 1;
const API: u64 = 0xAA;
const FEATURE_WP_ASYNC: u64 = 1 << 15;
const REGISTER_MODE_WP: u64 = 1 << 1;
const WRITEPROTECT_MODE_WP: u64 = 1;

const UFFDIO_API: Opcode = opcode::read_write::<[u64; 3]>(0xAA, 0x3F);
const UFFDIO_REGISTER: Opcode = opcode::read_write::<[u64; 4]>(0xAA, 0x00);
const UFFDIO_WRITEPROTECT: Opcode = opcode::read_write::<[u64; 3]>(0xAA, 0x06);
const PAGEMAP_SCAN: Opcode = opcode::read_write::<Scan>(b'f', 16);

/// Protect again what is found.
const SCAN_WP_MATCHING: u64 = 1 << 0;
/// Fail with EPERM if some of the range is not registered in the asynchronous mode.
const SCAN_CHECK_WPASYNC: u64 = 1 << 1;
const PAGE_IS_WRITTEN: u64 = 1 << 1;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Default)]
struct Scan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    regions: u64,
    room: u64,
    max_pages: u64,
    inverted: u64,
    wanted: u64,
    any_of: u64,
    returned: u64,
}

/// `struct page_region`: pages of one kind.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    kind: u64,
}

/// Regions that one call returns at most.
const REGIONS: usize = 512;
/// How much is protected, or no longer, in one call: the kernel holds a lock meanwhile that the host's own mapping waits for.
const STRETCH: u64 = 64 << 20;

/// Sees stores to the ranges of memory that it watches. When it goes, nothing is watched any more.
pub(crate) struct StoreWatch {
    userfault: OwnedFd,
    pagemap: OwnedFd,
    regions: Box<[Region; REGIONS]>,
}

impl StoreWatch {
    /// Fails where the kernel is too old (EINVAL), or somebody forbids it.
    pub(crate) fn new() -> Result<StoreWatch, Errno> {
        let flags = USER_MODE_ONLY | libc::O_CLOEXEC;
        // SAFETY: takes no pointers.
        let fd = unsafe { syscall!(Sysno::userfaultfd, flags) }.map_err(errno)?;
        // SAFETY: the kernel has just made this descriptor for us.
        let userfault = unsafe { OwnedFd::from_raw_fd(RawFd::try_from(fd).map_err(|_| Errno::BADF)?) };
        ioctl(&userfault, UFFDIO_API, &mut [API, FEATURE_WP_ASYNC, 0])?;
        let pagemap = open(c"/proc/self/pagemap", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(StoreWatch { userfault, pagemap, regions: Box::new([Region::default(); REGIONS]) })
    }

    /// Watches all of a mapping. Fails with EPERM if nobody can store to it, and EBUSY if another userfaultfd has it.
    pub(crate) fn watch(&self, range: Range<u64>) -> Result<(), Errno> {
        let len = range.end - range.start;
        ioctl(&self.userfault, UFFDIO_REGISTER, &mut [range.start, len, REGISTER_MODE_WP, 0])?;
        self.protect(range, WRITEPROTECT_MODE_WP)
    }

    /// Protects a range no longer, so that little is left to do when this goes. What is gone from the range needs nothing.
    pub(crate) fn unprotect(&self, range: Range<u64>) {
        let _ = self.protect(range, 0);
    }

    fn protect(&self, range: Range<u64>, mode: u64) -> Result<(), Errno> {
        let mut at = range.start;
        while at < range.end {
            let len = STRETCH.min(range.end - at);
            ioctl(&self.userfault, UFFDIO_WRITEPROTECT, &mut [at, len, mode])?;
            at += len;
        }
        Ok(())
    }

    /// Tells `store` of all pages in the range that were stored to since the last time, and watches them again. Fails if the
    /// range is not, or was not all the time, what [`StoreWatch::watch`] was given.
    pub(crate) fn stores(
        &mut self,
        range: Range<u64>,
        mut store: impl FnMut(Range<u64>),
    ) -> Result<(), Errno> {
        let written = Scan { wanted: PAGE_IS_WRITTEN, returned: PAGE_IS_WRITTEN, ..Scan::default() };
        self.each(range.clone(), written, &mut store)?;
        // What was unmapped before the scan reached it is a gap. What was mapped in its place meanwhile is not registered: the
        // next scan fails.
        check_mapped(range.clone())?;
        // Where nothing is known of a page, the kernel has given the table back that said it.
        let neither = PAGE_IS_PRESENT | PAGE_IS_SWAPPED;
        let lost = Scan { inverted: neither, wanted: neither, returned: neither, ..Scan::default() };
        self.each(range, lost, &mut store)
    }

    fn each(
        &mut self,
        range: Range<u64>,
        mut scan: Scan,
        store: &mut impl FnMut(Range<u64>),
    ) -> Result<(), Errno> {
        (scan.walk_end, scan.end) = (range.start, range.end);
        while scan.walk_end < range.end {
            scan.start = scan.walk_end;
            let found = self.scan(&mut scan)?;
            self.regions[..found].iter().for_each(|region| store(region.start..region.end));
        }
        Ok(())
    }

    /// One scan; returns how many regions there are, and has `walk_end` say how far it went.
    fn scan(&mut self, scan: &mut Scan) -> Result<usize, Errno> {
        scan.size = size_of::<Scan>() as u64;
        scan.flags = SCAN_WP_MATCHING | SCAN_CHECK_WPASYNC;
        scan.regions = self.regions.as_mut_ptr() as u64;
        scan.room = REGIONS as u64;
        let found = ioctl(&self.pagemap, PAGEMAP_SCAN, scan)?;
        Ok(found.min(REGIONS))
    }
}

/// Whether something is mapped at every page of a range: msync(2) says so, and without MS_SYNC does nothing else.
fn check_mapped(range: Range<u64>) -> Result<(), Errno> {
    // SAFETY: the kernel looks at what is mapped there and reads no memory.
    unsafe { syscall!(Sysno::msync, range.start, range.end - range.start, libc::MS_ASYNC) }
        .map(drop)
        .map_err(errno)
}

/// Makes one of the calls above with what it takes.
fn ioctl<T>(fd: &OwnedFd, call: Opcode, argument: &mut T) -> Result<usize, Errno> {
    // SAFETY: each call is only made with the type that its number was made of, which the kernel reads and writes. A scan also
    // has the kernel write to its regions, which live as long as it and are only read behind it.
    unsafe { syscall!(Sysno::ioctl, fd.as_raw_fd(), call, std::ptr::from_mut(argument)) }.map_err(errno)
}

fn errno(e: syscalls::Errno) -> Errno {
    Errno::from_raw_os_error(e.into_raw())
}
