//! Writing copies out while they are made.

use std::ops::Range;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use crate::copier::{Fault, LARGE, on_destination};
use crate::error::Op;
use crate::{source, sys};

/// Writes out a range of a copy, or begins to. Everything is synced later; but who syncs may not be told of an error that was told
/// here. Where the call is not known there is nothing to write out early.
pub(crate) fn write_out(copy: BorrowedFd<'_>, range: &Range<u64>, wait: bool) -> Result<(), Fault> {
    match sys::raw::write_out(copy, range.start, range.end - range.start, wait) {
        Err(Errno::NOSYS | Errno::INVAL | Errno::SPIPE) => Ok(()),
        done => done.map_err(on_destination(Op::Sync)),
    }
}

/// Has what a copier writes to a large file written out right behind it, little at a time, and the cache let go of it: an fsync of
/// the host's waits for all that the disk has to do for us just then.
pub(crate) struct Trail<'a> {
    copy: Option<BorrowedFd<'a>>,
    /// Where it was written last, with the gaps in it, and how much.
    fresh: Range<u64>,
    bytes: u64,
    /// What came before, which is being written out.
    under_way: Range<u64>,
}

impl<'a> Trail<'a> {
    /// How much is written out at a time.
    const STEP: u64 = 1 << 20;

    pub(crate) fn behind(copy: BorrowedFd<'a>, size: u64) -> Trail<'a> {
        Trail { copy: (size > LARGE).then_some(copy), fresh: 0..0, bytes: 0, under_way: 0..0 }
    }

    pub(crate) fn wrote(&mut self, range: Range<u64>) -> Result<(), Fault> {
        let Some(copy) = self.copy else { return Ok(()) };
        if self.fresh.is_empty() {
            self.fresh.start = range.start;
        }
        self.fresh.end = range.end;
        self.bytes += range.end - range.start;
        if self.bytes < Trail::STEP {
            return Ok(());
        }
        self.bytes = 0;
        self.step(copy)
    }

    fn step(&mut self, copy: BorrowedFd<'_>) -> Result<(), Fault> {
        let end = self.fresh.end;
        let before = std::mem::replace(&mut self.under_way, std::mem::replace(&mut self.fresh, end..end));
        // No length would mean up to the end of the file.
        if !self.under_way.is_empty() {
            write_out(copy, &self.under_way, false)?;
        }
        if !before.is_empty() {
            write_out(copy, &before, true)?;
            source::let_go(copy, before.start, before.end - before.start);
        }
        Ok(())
    }
}
