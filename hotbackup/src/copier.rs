//! Copying bytes: ranges of one file, whole files by a few threads, large files in pieces.
//!
//! Before anything is read its marks are cleared, so that a change during the read marks it again. A file that a
//! copier has is nobody else's: the conductor looks at its marks only when its first copy is complete. The pieces of
//! a large file never overlap.

use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::fs::{
    AtFlags, FallocateFlags, FileType, Mode, OFlags, SeekFrom, Statx, StatxFlags, fallocate, openat, seek,
    statx,
};
use rustix::io::{Errno, fcntl_dupfd_cloexec, pwrite};

use crate::attributes::{self, Attributes};
use crate::beneath::{self, Table};
use crate::digests::{Digests, blocks_of};
use crate::error::Op;
use crate::extents::{self, BLOCK, Marks, Stamp};
use crate::intercept::{device, stamp};
use crate::manifest::{BLOCK_BYTES, Digester};
use crate::registry::WATCH;
use crate::session::Control;
use crate::source::Source;
use crate::sys;
use crate::sys::mem::PageBuffer;
use crate::tree::{Name, NodeId};
use crate::writeout::{Crew, Disk, Trail, write_out};

/// The size of one read and write.
pub(crate) const PIECE: usize = 1 << 20;
/// Files above this are copied in chunks by whoever is free.
pub(crate) const LARGE: u64 = 32 << 20;
const CHUNK: u64 = 8 << 20;
/// Files that wait for a copier at the most; the walk waits when there are more. Each may keep two directories open.
const BACKLOG: u64 = 192;
/// Copies that stay open until they are synced at the most.
const MOST_KEPT: u64 = 1024;
/// How much is written between two looks at the free space.
const SPACE_CHECK: u64 = 16 << 20;

/// Which side of a copy a fault is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Source,
    Destination,
}

/// Why a copy stopped.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// A system call failed.
    Sys { op: Op, side: Side, errno: Errno },
    /// The session was cancelled, or the cut's deadline has passed.
    Interrupted,
    /// The reserve of free space on the destination is reached.
    Full,
    /// A copier panicked.
    Defect,
}

pub(crate) fn on_source(op: Op) -> impl Fn(Errno) -> Fault {
    move |errno| Fault::Sys { op, side: Side::Source, errno }
}

pub(crate) fn on_destination(op: Op) -> impl Fn(Errno) -> Fault {
    move |errno| Fault::Sys { op, side: Side::Destination, errno }
}

/// Is asked before and told behind every piece of a copy.
pub(crate) trait Pace {
    /// How many of `len` bytes may be copied at once.
    fn piece(&mut self, len: usize) -> usize;
    /// May `len` bytes be written now? Waits if need be.
    fn before(&mut self, len: u64) -> Result<(), Fault>;
    /// `bytes` were written at `at`.
    fn wrote(&mut self, at: u64, bytes: &[u8]) -> Result<(), Fault>;
    /// The range is a hole.
    fn skipped(&mut self, range: Range<u64>);
}

/// What is known of the holes of a source and of its copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Holes {
    /// The source occupies less than its size: it pays to ask for holes before reading.
    pub(crate) likely: bool,
    /// The copy has nothing in the range yet: holes need not be punched.
    pub(crate) fresh: bool,
}

/// Makes `range` of the copy equal to the source's: data is copied, holes are punched unless the copy is fresh and
/// has none of it. Stops where the source ends.
///
/// A block of zeros that was read is looked up with `SEEK_DATA`, and where holes are likely, what follows a short read: of a hole
/// nothing is in the cache. `SEEK_HOLE` is never asked: on tmpfs it walks all the data up to the next hole, so that a file copied in
/// pieces would cost the square of its size.
pub(crate) fn copy_range(
    source: &Source,
    copy: BorrowedFd<'_>,
    range: Range<u64>,
    holes: Holes,
    buffer: &mut PageBuffer,
    pace: &mut impl Pace,
) -> Result<(), Fault> {
    let mut at = range.start;
    let mut ask = holes.likely;
    while at < range.end {
        if std::mem::take(&mut ask) {
            let data = next_data(source.as_fd(), at, range.end);
            if data > at {
                if !holes.fresh {
                    punch(copy, at..data, buffer)?;
                }
                pace.skipped(at..data);
                at = data;
                continue;
            }
        }
        // Whole blocks of the manifest: their digests are made of what is written.
        let most = if holes.likely { BLOCK_BYTES - at as usize % BLOCK_BYTES } else { buffer.len() };
        let most = usize::try_from(range.end - at).unwrap_or(usize::MAX).min(most).min(buffer.len());
        let most = whole_blocks(at, pace.piece(most), range.end);
        let bytes = source.read(at, most, buffer).map_err(on_source(Op::Read))?;
        if bytes.is_empty() {
            return Ok(());
        }
        let data = data_before_hole(source.as_fd(), bytes, at, range.end);
        ask = data < bytes.len() || holes.likely && bytes.len() < most;
        if data > 0 {
            pace.before(data as u64)?;
            write_all(copy, &bytes[..data], at)?;
            pace.wrote(at, &bytes[..data])?;
            at += data as u64;
        }
    }
    Ok(())
}

/// Less than `most`, if what follows it in the range would begin within a block, which would be read twice then.
fn whole_blocks(at: u64, most: usize, end: u64) -> usize {
    let stop = at + most as u64;
    let whole = stop / BLOCK * BLOCK;
    if stop < end && whole > at { (whole - at) as usize } else { most }
}

/// Waits for the end of writes to a file that are under way, whoever makes them: their bytes land behind the times that they have
/// moved when they began. Looking for data takes the lock that they hold on ext4, tmpfs and Btrfs; on XFS every read does. Those of
/// direct I/O hold none.
pub(crate) fn wait_for_writes(source: BorrowedFd<'_>) {
    let _ = seek(source, SeekFrom::Data(0));
}

/// Where data begins at or behind `at`.
pub(crate) fn next_data(source: BorrowedFd<'_>, at: u64, end: u64) -> u64 {
    match seek(source, SeekFrom::Data(at)) {
        Ok(data) => data.clamp(at, end),
        Err(Errno::NXIO) => end,
        Err(_) => at,
    }
}

/// How many of `bytes`, which were read at `at`, come before the first hole among them.
fn data_before_hole(source: BorrowedFd<'_>, bytes: &[u8], at: u64, end: u64) -> usize {
    const ZEROS: [u8; BLOCK as usize] = [0; BLOCK as usize];
    let mut from = (at.next_multiple_of(BLOCK) - at) as usize;
    while let Some(block) = bytes.get(from..from + ZEROS.len()) {
        if block == ZEROS && next_data(source, at + from as u64, end) > at + from as u64 {
            return from;
        }
        from += ZEROS.len();
    }
    bytes.len()
}

fn write_all(copy: BorrowedFd<'_>, mut bytes: &[u8], mut at: u64) -> Result<(), Fault> {
    while !bytes.is_empty() {
        match pwrite(copy, bytes, at) {
            Ok(0) => return Err(on_destination(Op::Write)(Errno::IO)),
            Ok(done) => {
                bytes = &bytes[done..];
                at += done as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(on_destination(Op::Write)(errno)),
        }
    }
    Ok(())
}

/// Makes a range of the copy read as zeros, without blocks where the filesystem can.
fn punch(copy: BorrowedFd<'_>, range: Range<u64>, buffer: &mut [u8]) -> Result<(), Fault> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match fallocate(copy, flags, range.start, range.end - range.start) {
        Ok(()) => return Ok(()),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
        Err(errno) => return Err(on_destination(Op::PunchHole)(errno)),
    }
    let mut at = range.start;
    buffer.fill(0);
    while at < range.end {
        let len = usize::try_from(range.end - at).unwrap_or(usize::MAX).min(buffer.len());
        write_all(copy, &buffer[..len], at)?;
        at += len as u64;
    }
    Ok(())
}

/// A file to be copied for the first time.
pub(crate) struct Job {
    pub(crate) id: NodeId,
    pub(crate) marks: &'static Marks,
    pub(crate) handle: u64,
    /// The host uses it with `O_DIRECT`.
    pub(crate) direct: bool,
    pub(crate) directory: Arc<OwnedFd>,
    pub(crate) name: Name,
    /// Where its copy is to lie, if that is known yet and nothing else lies there.
    pub(crate) place: Option<Arc<OwnedFd>>,
    /// Where it lies else, by its node's number.
    pub(crate) limbo: Arc<OwnedFd>,
    /// Bytes to be left free on the copy's filesystem.
    pub(crate) reserve: u64,
    pub(crate) disk: Arc<Disk>,
    /// How long it was when it was looked at last.
    pub(crate) size: u64,
}

/// A file whose first copy is complete.
pub(crate) struct Finished {
    pub(crate) attributes: Attributes,
    pub(crate) xattrs: Vec<u8>,
    pub(crate) digests: Digests,
    /// It had been changed a moment before it was read, by no captured call.
    pub(crate) young: bool,
    /// Its copy lies in limbo.
    pub(crate) in_limbo: bool,
    /// The copy, of which nothing has been synced yet, unless there are too many to keep.
    pub(crate) copy: Option<OwnedFd>,
}

/// What became of a job.
pub(crate) enum Outcome {
    Finished(Finished),
    /// The name leads elsewhere now; its directory is marked.
    Vanished,
    Failed(Fault),
}

/// Work of any other kind. Whoever sends one sees to it that what it finds out comes back.
pub(crate) type Errand = Box<dyn FnOnce() + Send>;

/// How the copiers are to go about it.
pub(crate) struct Manner {
    pub(crate) digests: bool,
    pub(crate) share_blocks: bool,
}

#[derive(Default)]
struct Work {
    jobs: VecDeque<Job>,
    errands: VecDeque<Errand>,
    large: VecDeque<Arc<Large>>,
    outcomes: Vec<(NodeId, Outcome)>,
    running: usize,
    closed: bool,
}

/// The copiers' shared desk.
pub(crate) struct Desk {
    work: Mutex<Work>,
    /// There is work: copiers wait for it.
    came: Condvar,
    /// Work was done, and there is room for more: the conductor waits for it.
    done: Condvar,
    /// So many files may wait.
    backlog: usize,
    control: Arc<Control>,
    manner: Manner,
    unchecked: AtomicU64,
    pub(crate) written: AtomicU64,
    /// Files that were to share blocks and could not.
    pub(crate) unshared: AtomicU64,
    /// Copies that were to stay open until they are synced, and how many may.
    kept: AtomicU64,
    most_kept: u64,
}

/// A large file that several copiers work on.
struct Large {
    open: Opened,
    cursor: Mutex<Cursor>,
    digests: Mutex<Digests>,
    fault: Mutex<Option<Fault>>,
    /// How long the copy is.
    length: AtomicU64,
}

/// Which chunks of a file are taken.
struct Cursor {
    /// Where the next one begins.
    next: u64,
    /// How many are being copied.
    running: u32,
}

/// A file that was opened, examined and given a copy to fill.
struct Opened {
    id: NodeId,
    marks: &'static Marks,
    source: Source,
    copy: OwnedFd,
    attributes: Attributes,
    xattrs: Vec<u8>,
    young: bool,
    in_limbo: bool,
    reserve: u64,
    disk: Arc<Disk>,
}

impl Large {
    /// The next chunk to copy. Long holes are left out: a sparse file may be far larger than its data. The last chunk
    /// is always handed out, so that somebody finishes the file.
    fn take_chunk(&self) -> Option<Range<u64>> {
        let size = self.open.attributes.size;
        let mut cursor = self.cursor.lock();
        if cursor.next >= size {
            return None;
        }
        if is_sparse(&self.open.attributes) {
            let data = next_data(self.open.source.as_fd(), cursor.next, size);
            let last = (size - 1) / CHUNK * CHUNK;
            cursor.next = cursor.next.max((data / CHUNK * CHUNK).min(last));
        }
        let start = cursor.next;
        cursor.next = start.saturating_add(CHUNK);
        cursor.running += 1;
        Some(start..size.min(cursor.next))
    }

    fn note_digest(&self) -> impl FnMut(u64, u64) {
        |index, digest| {
            if let Some(place) = self.digests.lock().get_mut(index as usize) {
                *place = digest;
            }
        }
    }
}

impl Desk {
    pub(crate) fn new(control: Arc<Control>, manner: Manner) -> Arc<Desk> {
        Arc::new(Desk {
            work: Mutex::new(Work::default()),
            came: Condvar::new(),
            done: Condvar::new(),
            // Of the descriptors at most three eighths; with the usual 1,024 these are not fewer files.
            backlog: (sys::raw::most_descriptors() / 16 * 3).clamp(4, BACKLOG) as usize,
            control,
            manner,
            unchecked: AtomicU64::new(0),
            written: AtomicU64::new(0),
            unshared: AtomicU64::new(0),
            kept: AtomicU64::new(0),
            most_kept: (sys::raw::most_descriptors() / 16).min(MOST_KEPT),
        })
    }

    /// Starts `threads` copiers, which share the calling thread's descriptor table.
    pub(crate) fn hire(
        self: &Arc<Self>,
        threads: usize,
        table: Table,
    ) -> std::io::Result<Vec<std::thread::JoinHandle<()>>> {
        (0..threads)
            .map(|_| {
                let desk = Arc::clone(self);
                let buffer = PageBuffer::new(PIECE).ok_or(Errno::NOMEM)?;
                sys::thread::spawn("hotbackup-copy", move || {
                    table.use_here();
                    desk.serve(buffer);
                })
            })
            .collect()
    }

    /// Hands in a job; false while there is no room for it.
    pub(crate) fn is_full(&self) -> bool {
        self.work.lock().jobs.len() >= self.backlog
    }

    pub(crate) fn hand_in(&self, job: Job) {
        self.work.lock().jobs.push_back(job);
        self.came.notify_one();
    }

    /// Hands in an errand.
    pub(crate) fn send(&self, errand: Errand) {
        self.work.lock().errands.push_back(errand);
        self.came.notify_one();
    }

    /// Errands that no copier has begun with.
    pub(crate) fn errands(&self) -> usize {
        self.work.lock().errands.len()
    }

    /// Waits until something was done, at most `time`.
    pub(crate) fn wait(&self, time: std::time::Duration) {
        let mut work = self.work.lock();
        self.done.wait_for(&mut work, time);
    }

    /// Takes what was finished. If `wait` says so, it waits so long at the most for something to be finished, or while so
    /// much is waiting to be copied that more need not be handed in.
    pub(crate) fn collect(&self, wait: Option<std::time::Duration>, into: &mut Vec<(NodeId, Outcome)>) {
        let mut work = self.work.lock();
        if (work.outcomes.is_empty() || work.jobs.len() > self.backlog / 2)
            && let Some(time) = wait
        {
            self.done.wait_for(&mut work, time);
        }
        into.append(&mut work.outcomes);
    }

    /// Whether nothing is left to do and everything was collected.
    pub(crate) fn is_idle(&self) -> bool {
        let work = self.work.lock();
        let begun = work.large.is_empty() && work.running == 0 && work.outcomes.is_empty();
        begun && work.jobs.is_empty() && work.errands.is_empty()
    }

    /// Sends the copiers home as soon as they have finished what they are at.
    pub(crate) fn close(&self) {
        let mut work = self.work.lock();
        work.closed = true;
        work.jobs.clear();
        work.errands.clear();
        // Where all is done there is none: the session has failed, and nobody needs the rest.
        for large in &work.large {
            large.fault.lock().get_or_insert(Fault::Interrupted);
        }
        self.came.notify_all();
    }

    fn serve(&self, mut buffer: PageBuffer) {
        let mut crowd = Crowd::none();
        loop {
            let task = {
                let mut work = self.work.lock();
                loop {
                    // A file that is being copied in chunks comes before the next one.
                    let is_crowded = work.running > 0 && crowd.is_felt();
                    let mut large =
                        work.large.iter().filter(|large| !is_crowded && !large.open.disk.is_busy());
                    if let Some(large) = large.next().cloned() {
                        work.running += 1;
                        break Task::Help(large);
                    }
                    let job = work.jobs.iter().position(|job| job.size <= LARGE || !job.disk.is_busy());
                    if let Some(job) = job.and_then(|job| work.jobs.remove(job)) {
                        work.running += 1;
                        break Task::Copy(job);
                    }
                    if let Some(errand) = work.errands.pop_front() {
                        work.running += 1;
                        break Task::Run(errand);
                    }
                    if work.closed {
                        return;
                    }
                    match work.large.is_empty() && work.jobs.is_empty() {
                        true => self.came.wait(&mut work),
                        false => drop(self.came.wait_for(&mut work, AWAY)),
                    }
                }
            };
            let id = match &task {
                Task::Copy(job) => Some(job.id),
                Task::Help(large) => Some(large.open.id),
                Task::Run(_) => None,
            };
            let done = catch_unwind(AssertUnwindSafe(|| match task {
                Task::Copy(job) => self.begin(job, &mut buffer),
                Task::Help(large) => self.help(&large, &mut buffer, || crowd.feel()),
                Task::Run(errand) => errand(),
            }));
            if done.is_err()
                && let Some(id) = id
            {
                self.report(id, Outcome::Failed(Fault::Defect));
            }
            let mut work = self.work.lock();
            work.running -= 1;
            if work.jobs.len() <= self.backlog / 2 {
                self.done.notify_one();
            }
        }
    }

    fn report(&self, id: NodeId, outcome: Outcome) {
        self.work.lock().outcomes.push((id, outcome));
    }

    fn begin(&self, job: Job, buffer: &mut PageBuffer) {
        let id = job.id;
        let open = match self.open(&job) {
            Ok(Some(open)) => open,
            Ok(None) => return self.report(id, Outcome::Vanished),
            Err(fault) => return self.report(id, Outcome::Failed(fault)),
        };
        {
            let mut meter = self.control.meter.lock();
            meter.file = Some(std::ffi::OsStr::from_bytes(job.name.as_bytes()).into());
        }
        let size = open.attributes.size;
        let shared = self.manner.share_blocks && size > 0 && self.share(&open);
        let blocks = if self.manner.digests { blocks_of(size) } else { 0 };
        let large = Large {
            cursor: Mutex::new(Cursor { next: if shared { size } else { 0 }, running: 0 }),
            digests: Mutex::new(Digests::unknown(blocks)),
            fault: Mutex::new(None),
            // The kernel clones what the file has become meanwhile: how long such a copy is is not known.
            length: AtomicU64::new(0),
            open,
        };
        if shared {
            // Cleared marks and times are from before the clone, so whatever came after them is still owed.
            self.control.meter.lock().bytes_done += size;
        }
        if shared || size == 0 {
            return self.finish(&large);
        }
        let large = Arc::new(large);
        if size > LARGE {
            let mut work = self.work.lock();
            if work.closed {
                return;
            }
            work.large.push_back(Arc::clone(&large));
            self.came.notify_all();
        }
        self.help(&large, buffer, || false);
    }

    /// Has the copy share the source's blocks, if the filesystem can. The kernel writes out what is dirty first, and holds
    /// writers up meanwhile; so most of it is written out before.
    fn share(&self, open: &Opened) -> bool {
        let _ = sys::raw::write_out(open.source.as_fd(), 0, open.attributes.size, true);
        let shared = rustix::fs::ioctl_ficlone(&open.copy, open.source.as_fd()).is_ok();
        self.unshared.fetch_add(u64::from(!shared), Ordering::Relaxed);
        shared
    }

    /// Copies chunks of a file until none is left to take, or `is_enough`; whoever finishes the last one finishes the file.
    fn help(&self, large: &Arc<Large>, buffer: &mut PageBuffer, mut is_enough: impl FnMut() -> bool) {
        let size = large.open.attributes.size;
        let mut trail = Trail::behind(large.open.copy.as_fd(), size, &large.open.disk);
        while let Some(range) = large.take_chunk() {
            let stopped = large.fault.lock().is_some();
            if !stopped && let Err(fault) = self.copy_chunk(large, range, buffer, &mut trail) {
                large.fault.lock().get_or_insert(fault);
            }
            let last = {
                let mut cursor = large.cursor.lock();
                cursor.running -= 1;
                cursor.running == 0 && cursor.next >= size
            };
            if last {
                self.work.lock().large.retain(|other| !Arc::ptr_eq(other, large));
                return self.finish(large);
            }
            if large.fault.lock().is_some() {
                // The rest is passed over at once, so that the fault is reported.
                continue;
            }
            match trail.look() {
                // Who comes by takes it up again.
                Crew::TooLarge => return,
                Crew::TooSmall => drop(self.came.notify_all()),
                Crew::Right => {}
            }
            if is_enough() {
                return;
            }
        }
        self.work.lock().large.retain(|other| !Arc::ptr_eq(other, large));
    }

    fn copy_chunk(
        &self,
        large: &Large,
        range: Range<u64>,
        buffer: &mut PageBuffer,
        trail: &mut Trail<'_>,
    ) -> Result<(), Fault> {
        let open = &large.open;
        open.marks.clear(&WATCH.ledger, range.clone());
        let mut pace = FirstPace { desk: self, large, digester: Digester::new(), trail };
        let holes = Holes { likely: is_sparse(&open.attributes), fresh: true };
        copy_range(&open.source, open.copy.as_fd(), range, holes, buffer, &mut pace)
    }

    fn finish(&self, large: &Large) {
        let open = &large.open;
        let fault = large.fault.lock().take();
        let size = open.attributes.size;
        let done =
            fault.map_or(Ok(()), Err).and_then(|()| match large.length.load(Ordering::Acquire) == size {
                true => Ok(()),
                false => rustix::fs::ftruncate(&open.copy, size).map_err(on_destination(Op::Resize)),
            });
        let done = done.and_then(|()| write_out(open.copy.as_fd(), &(0..size), false));
        if let Err(fault) = done {
            return self.report(open.id, Outcome::Failed(fault));
        }
        self.control.meter.lock().files_done += 1;
        self.report(
            open.id,
            Outcome::Finished(Finished {
                attributes: open.attributes,
                xattrs: open.xattrs.clone(),
                digests: std::mem::take(&mut large.digests.lock()),
                young: open.young && !open.marks.was_marked(),
                in_limbo: open.in_limbo,
                copy: self.keep(open.copy.as_fd()),
            }),
        );
    }

    /// One more descriptor of the same open file: only to that does the kernel tell all errors of writing it out, whoever else has been
    /// told of them (errseq_t).
    fn keep(&self, copy: BorrowedFd<'_>) -> Option<OwnedFd> {
        let fits = self.kept.fetch_add(1, Ordering::Relaxed) < self.most_kept;
        fits.then(|| fcntl_dupfd_cloexec(copy, 0).ok()).flatten()
    }

    /// Opens a job's file if it still is what the walk saw, and makes its copy.
    fn open(&self, job: &Job) -> Result<Option<Opened>, Fault> {
        let Some((source, attributes)) = open_source(job)? else {
            return Ok(None);
        };
        let mut xattrs = Vec::new();
        attributes::append_xattrs(source.as_fd(), &mut xattrs, false).map_err(on_source(Op::Examine))?;
        let (copy, in_limbo) = make_copy(job).map_err(on_destination(Op::Create))?;
        Ok(Some(Opened {
            id: job.id,
            marks: job.marks,
            source,
            copy,
            attributes,
            xattrs,
            young: is_young(job.marks.stamp()),
            in_limbo,
            reserve: job.reserve,
            disk: Arc::clone(&job.disk),
        }))
    }

    /// Looks now and then whether what is to stay free of the copy's filesystem still is.
    pub(crate) fn check_space(&self, copy: BorrowedFd<'_>, written: u64, reserve: u64) -> Result<(), Fault> {
        if self.unchecked.fetch_add(written, Ordering::Relaxed) + written < SPACE_CHECK {
            return Ok(());
        }
        self.unchecked.store(0, Ordering::Relaxed);
        let free = rustix::fs::fstatvfs(copy).map_err(on_destination(Op::Examine))?;
        if free.f_bavail * free.f_frsize < reserve.saturating_add(SPACE_CHECK) {
            return Err(Fault::Full);
        }
        Ok(())
    }
}

/// Whether there are more threads with work to do than processors, as one of them feels it. A second copier would take from the
/// program then what the backup hardly gains.
struct Crowd {
    since: Instant,
    preemptions: i64,
    felt: Option<Instant>,
}

/// For how long a copier is looked at, how often it has to lose its processor in that time, and for how long it stays away then.
const LOOKING: Duration = Duration::from_millis(20);
const PREEMPTIONS: i64 = 3;
const AWAY: Duration = Duration::from_millis(200);

impl Crowd {
    fn none() -> Crowd {
        Crowd { since: Instant::now(), preemptions: 0, felt: None }
    }

    fn is_felt(&self) -> bool {
        self.felt.is_some_and(|felt| felt.elapsed() < AWAY)
    }

    /// Looks, behind each piece of work.
    fn feel(&mut self) -> bool {
        let age = self.since.elapsed();
        if age < LOOKING {
            return false;
        }
        let (before, now) = (self.preemptions, sys::thread::preemptions());
        (self.since, self.preemptions) = (Instant::now(), now);
        // What was before an idle time says nothing.
        let is_crowded = age < 3 * LOOKING && now - before >= PREEMPTIONS;
        self.felt = is_crowded.then_some(self.since);
        is_crowded
    }
}

#[expect(clippy::large_enum_variant, reason = "one is on a copier's stack for a moment")]
enum Task {
    Copy(Job),
    Help(Arc<Large>),
    Run(Errand),
}

/// Opens a job's file for reading if its name still leads to it. Nothing of it has been read yet, so its marks, which may
/// have been another inode's before, are cleared.
fn open_source(job: &Job) -> Result<Option<(Source, Attributes)>, Fault> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let path = match openat(&*job.directory, job.name.as_c_str(), flags, Mode::empty()) {
        Err(errno) if beneath::is_vanished(errno) => return Ok(None),
        opened => opened.map_err(on_source(Op::Open))?,
    };
    // By its handle, which the open descriptor holds: the marks are another node's if that has got the inode's number.
    let marks = job.marks;
    let failed = on_source(Op::Examine);
    if find_same(path.as_fd(), marks, job.handle)?.is_none() {
        return Ok(None);
    }
    marks.take(extents::ATTRIBUTES | extents::EXAMINE | extents::DATA);
    marks.take_tail(&WATCH.ledger);
    let found = beneath::look(path.as_fd(), c"", StatxFlags::BASIC_STATS).map_err(failed)?;
    marks.set_stamp(stamp(&found));
    match Source::open(path.as_fd(), &found, job.direct) {
        Ok(source) => {
            wait_for_writes(source.as_fd());
            Ok(Some((source, Attributes::from_statx(&found))))
        }
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(on_source(Op::Open)(errno)),
    }
}

/// Makes a job's copy at its place, or in limbo if another file has that place: true then.
fn make_copy(job: &Job) -> Result<(OwnedFd, bool), Errno> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(0o600);
    if let Some(place) = &job.place {
        match openat(&**place, job.name.as_c_str(), flags | OFlags::EXCL, mode) {
            Err(Errno::EXIST) => {}
            made => return Ok((made?, false)),
        }
    }
    let name = Name::number(job.id);
    Ok((openat(&*job.limbo, name.as_c_str(), flags | OFlags::TRUNC, mode)?, true))
}

/// What there is to know of `file`, if it is the regular file that `marks` and `handle` are about.
pub(crate) fn find_same(file: BorrowedFd<'_>, marks: &Marks, handle: u64) -> Result<Option<Statx>, Fault> {
    let (found, digest) = beneath::examine(file, c"", StatxFlags::SIZE).map_err(on_source(Op::Examine))?;
    Ok(Some(found).filter(|found| is_this(found, digest, marks, handle)))
}

fn is_this(found: &Statx, digest: u64, marks: &Marks, handle: u64) -> bool {
    marks.is(device(found), found.stx_ino) && is_file(found) && digest == handle
}

/// Clears the marks for everything that lies beyond single blocks, then reads what the inode is now: its attributes,
/// its stamp, its extended attributes. Returns also where the tail mark began, if there was one.
pub(crate) fn examine(
    file: BorrowedFd<'_>,
    marks: &Marks,
    xattrs: &mut Vec<u8>,
    fixed: bool,
) -> Result<(Attributes, Option<u64>, Range<usize>), Errno> {
    let why = marks.take(extents::ATTRIBUTES | extents::EXAMINE | extents::DATA);
    let tail = marks.take_tail(&WATCH.ledger);
    let found = statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?;
    let (before, now) = (marks.stamp(), stamp(&found));
    // If nothing was marked that would have moved the time of the last write, somebody unseen has: the audit is to find it.
    let unexplained = why == extents::EXAMINE && before != Stamp::default() && is_file(&found);
    if !unexplained || (before.size, before.mtime) == (now.size, now.mtime) {
        // Whatever changes from here on is marked, or moves the times away from this stamp.
        marks.set_stamp(now);
    }
    let range = attributes::append_xattrs(file, xattrs, fixed)?;
    Ok((Attributes::from_statx(&found), tail, range))
}

fn is_file(found: &Statx) -> bool {
    FileType::from_raw_mode(found.stx_mode.into()) == FileType::RegularFile
}

/// A write moves the times when it begins and lands its bytes later: one that began so long ago has landed them.
pub(crate) const YOUTH: std::time::Duration = std::time::Duration::from_millis(250);

/// Whether a stamp is so fresh that the change behind it may still be under way.
fn is_young(stamp: Stamp) -> bool {
    sys::raw::realtime_ns() - stamp.mtime.max(stamp.ctime) < YOUTH.as_nanos() as i64
}

/// Whether there is so much in a file that copying it takes a while.
pub(crate) fn is_large(attributes: &Attributes) -> bool {
    attributes.size.min(attributes.allocated()) > LARGE
}

/// Whether a file occupies less than its size.
pub(crate) fn is_sparse(attributes: &Attributes) -> bool {
    attributes.allocated() < attributes.size
}

/// The pace of first copies: throttled, cancellable, and noting digests.
struct FirstPace<'a, 'b> {
    desk: &'a Desk,
    large: &'a Large,
    digester: Digester,
    trail: &'a mut Trail<'b>,
}

impl Pace for FirstPace<'_, '_> {
    fn piece(&mut self, len: usize) -> usize {
        self.desk.control.limiter.piece(len)
    }

    fn before(&mut self, len: u64) -> Result<(), Fault> {
        let cancelled = || self.desk.control.is_cancelled();
        if !self.desk.control.limiter.take(len, cancelled) {
            return Err(Fault::Interrupted);
        }
        self.desk.check_space(self.large.open.copy.as_fd(), len, self.large.open.reserve)
    }

    fn wrote(&mut self, at: u64, bytes: &[u8]) -> Result<(), Fault> {
        let len = bytes.len() as u64;
        self.large.length.fetch_max(at + len, Ordering::AcqRel);
        self.desk.written.fetch_add(len, Ordering::Relaxed);
        self.desk.control.meter.lock().bytes_done += len;
        if self.desk.manner.digests {
            let large = self.large;
            self.digester.piece(large.open.attributes.size, at..at + len, Some(bytes), large.note_digest());
        }
        self.trail.wrote(at..at + len)
    }

    fn skipped(&mut self, range: Range<u64>) {
        self.desk.control.meter.lock().bytes_done += range.end - range.start;
        if self.desk.manner.digests {
            let large = self.large;
            self.digester.piece(large.open.attributes.size, range, None, large.note_digest());
        }
    }
}
