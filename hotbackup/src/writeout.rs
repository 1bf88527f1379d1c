//! Writing copies out while they are made.
//!
//! Whatever the disk has still to do for us, an fsync of the host's waits for. So a copy is written out right behind its copier, a
//! mebibyte at a time, and a small file as soon as it is complete; little is left for when the backup is synced. Copiers take turns at
//! the disk. While it is the disk that they wait for, one of those that copy large files is enough: with more of them the backup is
//! made no faster, and the host waits longer for the disk and for a processor.

use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::io::Errno;

use crate::copier::{Fault, LARGE, on_destination};
use crate::error::Op;
use crate::{source, sys};

/// How much of a copy is written out at a time.
pub(crate) const STEP: u64 = 1 << 20;

/// Writes out a range of a copy, or begins to. Everything is synced later; but who syncs may not be told of an error that was told
/// here, which is any where it waits. Where the call is not known there is nothing to write out early.
pub(crate) fn write_out(copy: BorrowedFd<'_>, range: &Range<u64>, wait: bool) -> Result<(), Fault> {
    // No length would mean up to the end of the file.
    if range.is_empty() {
        return Ok(());
    }
    match sys::raw::write_out(copy, range.start, range.end - range.start, wait) {
        Err(Errno::NOSYS) => Ok(()),
        Err(Errno::INVAL | Errno::SPIPE) if !wait => Ok(()),
        done => done.map_err(on_destination(Op::Sync)),
    }
}

/// A filesystem that copies are written to.
pub(crate) struct Disk {
    dev: u64,
    /// Held by the copier that gives the disk more to do and waits for what came before.
    turn: Mutex<()>,
    /// How many copiers are at large files, and how often one has come or gone.
    copiers: AtomicU32,
    changes: AtomicU32,
    /// It is what they wait for, as far as is known: until one of them has tried, the others stay away.
    is_limit: AtomicBool,
}

impl Disk {
    /// The one among `known` that has the device number `dev`, or one more.
    pub(crate) fn among<'a>(known: impl IntoIterator<Item = &'a Arc<Disk>>, dev: u64) -> Arc<Disk> {
        known.into_iter().find(|disk| disk.dev == dev).map_or_else(|| Arc::new(Disk::new(dev)), Arc::clone)
    }

    fn new(dev: u64) -> Disk {
        let (copiers, changes) = (AtomicU32::new(0), AtomicU32::new(0));
        Disk { dev, turn: Mutex::new(()), copiers, changes, is_limit: AtomicBool::new(true) }
    }

    /// Whether one more copier of a large file would only wait.
    pub(crate) fn is_busy(&self) -> bool {
        self.is_limit.load(Ordering::Relaxed) && self.copiers.load(Ordering::Relaxed) > 0
    }
}

/// Whether as many copiers are at the large files of a disk as can be of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crew {
    Right,
    /// The disk is not what is waited for, as it seemed to be: more are welcome.
    TooSmall,
    /// Without the one who asks the disk would have as much to do.
    TooLarge,
}

/// Has what one copier writes to a copy written out behind it, and the cache let go of it if the file is large.
pub(crate) struct Trail<'a> {
    copy: BorrowedFd<'a>,
    disk: &'a Disk,
    is_large: bool,
    /// Where it was written last, with the gaps in it, and how much.
    fresh: Range<u64>,
    bytes: u64,
    /// What came before, which is being written out.
    under_way: Range<u64>,
    /// When it was looked at last whether the crew is right, and how long the disk was waited for since.
    looked: Instant,
    waited: Duration,
    /// How often one had come or gone by then.
    changes: u32,
}

impl<'a> Trail<'a> {
    pub(crate) fn behind(copy: BorrowedFd<'a>, size: u64, disk: &'a Disk) -> Trail<'a> {
        let is_large = size > LARGE;
        disk.copiers.fetch_add(is_large.into(), Ordering::Relaxed);
        let changes = disk.changes.fetch_add(is_large.into(), Ordering::Relaxed) + u32::from(is_large);
        let (looked, waited) = (Instant::now(), Duration::ZERO);
        Trail { copy, disk, is_large, fresh: 0..0, bytes: 0, under_way: 0..0, looked, waited, changes }
    }

    /// What is in the range was written.
    pub(crate) fn wrote(&mut self, range: Range<u64>) -> Result<(), Fault> {
        if self.fresh.is_empty() {
            self.fresh.start = range.start;
        }
        self.fresh.end = range.end;
        self.bytes += range.end - range.start;
        if self.bytes < STEP {
            return Ok(());
        }
        self.bytes = 0;
        let end = self.fresh.end;
        let before = std::mem::replace(&mut self.under_way, std::mem::replace(&mut self.fresh, end..end));
        let begun = Instant::now();
        {
            let _turn = self.disk.turn.lock();
            write_out(self.copy, &self.under_way, false)?;
            write_out(self.copy, &before, true)?;
        }
        self.waited += begun.elapsed();
        if self.is_large && !before.is_empty() {
            source::let_go(self.copy, before.start, before.end - before.start);
        }
        Ok(())
    }

    /// Looks, behind each chunk of a large file. Of smaller ones nobody can be sent away.
    pub(crate) fn look(&mut self) -> Crew {
        if !self.is_large {
            return Crew::Right;
        }
        let (age, waited) = (self.looked.elapsed(), std::mem::take(&mut self.waited));
        self.looked = Instant::now();
        let changes = self.disk.changes.load(Ordering::Relaxed);
        if std::mem::replace(&mut self.changes, changes) != changes {
            // How long another crew has waited says nothing about this one.
            return Crew::Right;
        }
        let is_limit = waited > age / 8;
        let was_limit = self.disk.is_limit.swap(is_limit, Ordering::Relaxed);
        match self.disk.copiers.load(Ordering::Relaxed) {
            copiers if copiers > 1 && waited * copiers >= age => Crew::TooLarge,
            _ if was_limit && !is_limit => Crew::TooSmall,
            _ => Crew::Right,
        }
    }
}

impl Drop for Trail<'_> {
    fn drop(&mut self) {
        self.disk.copiers.fetch_sub(self.is_large.into(), Ordering::Relaxed);
        self.disk.changes.fetch_add(self.is_large.into(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
