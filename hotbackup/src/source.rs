//! Reading the bytes of a file, and leaving the host's page cache as it was.
//!
//! A file that the host reads and writes with `O_DIRECT` is read the same way: it has no pages in the cache, and gets
//! none. Of any other file, pages that were in the cache are used and stay, and those that a read brings in go again.
//! Nothing is read ahead: what is read ahead and not asked for soon stays, or is thrown away and read twice.
//!
//! A filesystem may refuse each way to read but the last. Then the file is read in the next one from there on, by
//! whichever thread: the ways only ever go down.

use std::io::IoSliceMut;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use rustix::fs::{Advice, AtFlags, OFlags, Statx, StatxFlags, fadvise, fcntl_getfl, fcntl_setfl, statx};
use rustix::io::{Errno, ReadWriteFlags, pread, preadv2};
use rustix::param::page_size;

use crate::beneath;
use crate::copier::PIECE;
use crate::intercept::device;
use crate::sys::mem::PageBuffer;
use crate::sys::raw;

/// A piece that is in the cache in part is read in smaller ones, none smaller than this.
const FINEST: usize = 64 << 10;
/// What an offset for `O_DIRECT` is a multiple of, where the filesystem does not say or would take less.
const ALIGNMENT: u64 = 4096;
/// The largest alignment that is served; a file that needs more is read through the cache.
const LARGEST_ALIGNMENT: u64 = 64 << 10;
/// `RWF_DONTCACHE` of preadv2(2), since Linux 6.14: what the read brings into the cache goes again.
const DONT_CACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);

/// How a file is read, the first being the best.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Way {
    /// With `O_DIRECT`, past the cache.
    Direct,
    /// The kernel lets go of the pages that it brought in.
    DontCache,
    /// We let go of pieces of which no page was there before (cachestat(2), since Linux 6.5).
    LetGo,
    /// The pages stay.
    Keep,
}

impl Way {
    const ALL: [Way; 4] = [Way::Direct, Way::DontCache, Way::LetGo, Way::Keep];
}

/// A file to copy from, open for reading.
pub(crate) struct Source {
    file: OwnedFd,
    way: AtomicU8,
    alignment: u64,
    device: u64,
}

/// The device that refused [`Way::DontCache`] last: the next file of its need not be tried.
static REFUSED: AtomicU64 = AtomicU64::new(u64::MAX);

impl Source {
    /// Opens what a descriptor of the calling thread's own table refers to, with `O_DIRECT` if that is wanted and possible.
    /// `found` tells its size and its device.
    pub(crate) fn open(path: BorrowedFd<'_>, found: &Statx, direct: bool) -> Result<Source, Errno> {
        let device = device(found);
        if direct {
            match beneath::reopen_to_read(path, OFlags::DIRECT) {
                Ok(file) => return Ok(Source { device, ..Source::direct(file) }),
                Err(Errno::INVAL) => {}
                Err(errno) => return Err(errno),
            }
        }
        let file = beneath::reopen_to_read(path, OFlags::empty())?;
        let source = match found.stx_size > PIECE as u64 {
            true => Source::through_cache(file),
            // There is nothing to read ahead in what is read at once.
            false => Source::new(file),
        };
        let refused = REFUSED.load(Ordering::Relaxed) == device;
        let way = if refused { Way::LetGo } else { Way::DontCache };
        Ok(Source { device, way: AtomicU8::new(way as u8), ..source })
    }

    fn new(file: OwnedFd) -> Source {
        Source { file, way: AtomicU8::new(Way::DontCache as u8), alignment: 1, device: 0 }
    }

    /// Reads a file that was opened without `O_DIRECT`.
    pub(crate) fn through_cache(file: OwnedFd) -> Source {
        // Where it is not understood, there is nothing to turn off.
        let _ = fadvise(&file, 0, None, Advice::Random);
        Source::new(file)
    }

    fn direct(file: OwnedFd) -> Source {
        let alignment = alignment(file.as_fd());
        let source = Source { alignment: alignment.unwrap_or(1), ..Source::through_cache(file) };
        source.way.store(Way::Direct as u8, Ordering::Relaxed);
        if alignment.is_none() {
            source.leave(Way::Direct);
        }
        source
    }

    /// Reads at most `len` bytes at `at` into `buffer`, none only at the end of the file. `at` and `len` may be any;
    /// what comes back may begin anywhere in the buffer.
    pub(crate) fn read<'a>(
        &self,
        at: u64,
        len: usize,
        buffer: &'a mut PageBuffer,
    ) -> Result<&'a [u8], Errno> {
        let len = len.min(buffer.len());
        loop {
            let way = self.way();
            let got = match way {
                Way::Direct => self.read_direct(at, len, buffer),
                Way::DontCache => {
                    let mut parts = [IoSliceMut::new(&mut buffer[..len])];
                    preadv2(&self.file, &mut parts, at, DONT_CACHE).map(|got| 0..got)
                }
                Way::LetGo => self.read_and_let_go(at, &mut buffer[..len]).map(|got| 0..got),
                Way::Keep => pread(&self.file, &mut buffer[..len], at).map(|got| 0..got),
            };
            match got {
                Ok(range) => return Ok(&buffer[range]),
                Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) if way != Way::Keep => self.leave(way),
                // A direct read fails so where a store to a mapping has made a page dirty since the kernel wrote the file's pages back, and
                // its blocks are not allocated yet (fs/iomap/direct-io.c): what the file holds there is in the cache. What cannot be
                // read at all shows in the next way.
                Err(Errno::IO) if way == Way::Direct => self.leave(way),
                Err(errno) => return Err(errno),
            }
        }
    }

    fn way(&self) -> Way {
        Way::ALL[self.way.load(Ordering::Relaxed) as usize % Way::ALL.len()]
    }

    /// Goes on to the way behind `refused`, unless another thread has done so.
    fn leave(&self, refused: Way) {
        if refused == Way::Direct
            && let Ok(flags) = fcntl_getfl(&self.file)
        {
            // If this is refused, the next reads say so.
            let _ = fcntl_setfl(&self.file, flags - OFlags::DIRECT);
        }
        if refused == Way::DontCache {
            REFUSED.store(self.device, Ordering::Relaxed);
        }
        self.way.fetch_max(refused as u8 + 1, Ordering::Relaxed);
    }

    /// Reads whole blocks around what is wanted; returns where that lies in the buffer.
    fn read_direct(&self, at: u64, len: usize, buffer: &mut PageBuffer) -> Result<Range<usize>, Errno> {
        let skip = (at % self.alignment) as usize;
        let alignment = self.alignment as usize;
        let whole = (skip + len).next_multiple_of(alignment).min(buffer.len() / alignment * alignment);
        let start = at - skip as u64;
        // Some filesystems take the flag and read through the cache all the same (Btrfs, where it keeps checksums).
        let absent = self.cached(start, whole) == Ok(0);
        let got = pread(&self.file, &mut buffer[..whole], start)?;
        if absent {
            let_go(self.file.as_fd(), start, got as u64);
        }
        let wanted = skip.min(got)..got.min(skip + len);
        if wanted.is_empty() && at < self.size()? {
            // A short read that is not the end of the file: a read through the cache knows how to go on.
            return Err(Errno::INVAL);
        }
        Ok(wanted)
    }

    fn size(&self) -> Result<u64, Errno> {
        Ok(statx(&self.file, c"", AtFlags::EMPTY_PATH, StatxFlags::SIZE)?.stx_size)
    }

    fn read_and_let_go(&self, at: u64, bytes: &mut [u8]) -> Result<usize, Errno> {
        let mut len = bytes.len();
        let absent = loop {
            // Not to be told is no reason not to read.
            let cached = self.cached(at, len).map_err(|_| Errno::NOSYS)?;
            if cached == 0 || cached >= len.div_ceil(page_size()) as u64 || len <= FINEST {
                break cached == 0;
            }
            len = half(at, len);
        };
        let got = pread(&self.file, &mut bytes[..len], at)?;
        if absent {
            let_go(self.file.as_fd(), at, got as u64);
        }
        Ok(got)
    }

    fn cached(&self, at: u64, len: usize) -> Result<u64, Errno> {
        raw::cached_pages(self.file.as_fd(), at, len as u64)
    }
}

/// The length of about the first half of a range of more than [`FINEST`], which ends at a multiple of that.
fn half(at: u64, len: usize) -> usize {
    let finest = FINEST as u64;
    let end = (at + len as u64 / 2) / finest * finest;
    (end.max(at / finest * finest + finest) - at) as usize
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Has the cache let go of the clean pages that a range touches. What is dirty stays.
pub(crate) fn let_go(file: BorrowedFd<'_>, at: u64, len: u64) {
    let page = page_size() as u64;
    let (start, end) = (at / page * page, at.saturating_add(len).next_multiple_of(page));
    if let Some(len) = NonZeroU64::new(end - start) {
        // It is a hint: where it is not taken, the kernel does with the pages as it likes.
        let _ = fadvise(file, start, Some(len), Advice::DontNeed);
    }
}

/// What offsets and lengths have to be multiples of; `None` if the file cannot be read with `O_DIRECT`.
fn alignment(file: BorrowedFd<'_>) -> Option<u64> {
    let wanted = StatxFlags::DIOALIGN;
    let found = statx(file, c"", AtFlags::EMPTY_PATH, wanted).ok();
    let Some(found) = found.filter(|found| found.stx_mask & wanted.bits() != 0) else {
        return Some(ALIGNMENT);
    };
    let (offset, memory) = (u64::from(found.stx_dio_offset_align), u64::from(found.stx_dio_mem_align));
    let alignment = offset.max(ALIGNMENT);
    let served = offset != 0 && alignment.is_power_of_two() && alignment <= LARGEST_ALIGNMENT;
    (served && memory <= ALIGNMENT).then_some(alignment)
}

#[cfg(test)]
mod tests;
