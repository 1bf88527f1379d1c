//! What every captured call passes through, and where adapters plug in.
//!
//! [`around`] is called by hooks (the C library's symbol table, SQLite's system-call table, [`crate::fs`]) with the
//! [`Change`] that a call may make and the real call. Without a session it makes the call and nothing else. With one,
//! it waits at the closed gate, finds out which inodes the call is about, makes the call, and marks what it changed.
//! It never fails the call, never changes its result or errno, allocates nothing from the host, and takes no lock.

use std::ffi::{CStr, c_char, c_int};
use std::os::fd::RawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, FileType, OFlags, SeekFrom, Statx, StatxFlags};

pub use crate::async_io::{
    Entry, asking, destroying, entering, leaving, queueing, queueing_list, reaping, registering, set_up,
    submitting, submitting_prepared, submitting_prepared_and_waiting, suspended, unmapping,
};
pub use crate::change::{At, Change, Done, ErrorNumber, Outcome};
use crate::crossings;
use crate::extents::{self, Marks, Stamp};
use crate::gate::{self, Frame, Gate, Inside, Passing, State, Word};
pub use crate::mappings::{making_userfaultfd, mapping};
use crate::registry::{self, WATCH};
use crate::sys;
use crate::sys::scratch::PATH_MAX;

/// Makes the call `real`, which may make the change `change`, and has a running session know of it.
///
/// Returns what `real` returned, with errno as it left it. Safe in signal handlers, in any thread, and in forked and
/// vforked children. A panic or a cancellation of the thread inside `real` passes through.
#[inline(always)]
pub fn around<R: Outcome>(change: Change, real: impl FnOnce() -> R) -> R {
    let (word, frame) = (change.word(), gate::here());
    match pass(word, frame) {
        Some(_passing) => real(),
        None => captured(Entering { word, frame }, Call { change, real }),
    }
}

/// Stands in the thread's slot if it has one and stands nowhere else, and no session runs.
#[inline(always)]
fn pass(word: Word, frame: Frame) -> Option<Passing<'static>> {
    let slot = registry::known_slot()?;
    registry::gate().and_then(|gate| slot.pass(word, frame, gate))
}

/// Makes the call `real`, which may close the descriptor `fd` or have it stand for another file: `close`, `dup2`,
/// `dup3`. It changes no file; but a write that runs beside it may land in another file than expected.
#[inline(always)]
pub fn ending_descriptor<R>(fd: RawFd, real: impl FnOnce() -> R) -> R {
    beside(fd, || WATCH.count_ending(Some(fd)), real)
}

/// Makes the call `real`, which may close many descriptors at once: `close_range`, `closefrom`.
#[inline(always)]
pub fn ending_descriptors<R>(real: impl FnOnce() -> R) -> R {
    beside(0, || WATCH.count_ending(None), real)
}

/// Makes the call `real`, which may move the position of the descriptor `fd` backwards: `lseek`. It changes no file;
/// but a write at the position that runs beside it may land elsewhere than expected.
#[inline(always)]
pub fn moving_position<R>(fd: RawFd, real: impl FnOnce() -> R) -> R {
    beside(fd, || WATCH.seeking.begin(), real)
}

/// Makes a call that changes no file, and has it counted while a session runs.
#[inline(always)]
fn beside<R, C>(fd: RawFd, count: impl FnOnce() -> C, real: impl FnOnce() -> R) -> R {
    let (word, frame) = (Word::harmless(fd), gate::here());
    match pass(word, frame) {
        Some(_passing) => real(),
        None => counted(Entering { word, frame }, count, real),
    }
}

#[cold]
#[inline(never)]
fn counted<R, C>(
    Entering { word, frame }: Entering,
    count: impl FnOnce() -> C,
    real: impl FnOnce() -> R,
) -> R {
    let Some(slot) = registry::slot() else { return real() };
    let inside = slot.enter(word, frame);
    if registry::gate().is_none_or(|gate| gate.state() == State::Idle) {
        return real();
    }
    inside.captured();
    let _counted = count();
    real()
}

/// Whether a session is capturing now; it may begin or end at any moment. For hooks that have to ask the kernel
/// something before they can name their [`Change`], and must not do so without a session.
#[inline(always)]
pub fn is_capturing() -> bool {
    registry::gate().is_some_and(|gate| gate.state() != State::Idle)
}

/// Readies the process for sessions: call it once where the first hooks are installed, outside of any hook.
pub fn prepare() {
    registry::prepare();
}

impl Change {
    #[inline(always)]
    fn word(&self) -> Word {
        match *self {
            Change::Write { fd }
            | Change::WriteAt { fd, .. }
            | Change::Append { fd }
            | Change::Resize { fd, .. }
            | Change::Allocate { fd, .. }
            | Change::WriteAny { fd }
            | Change::Stream { fd }
            | Change::Attributes { fd } => Word::descriptor(fd),
            Change::ResizePath { file, .. }
            | Change::Open { file, .. }
            | Change::AttributesPath { file, .. } => Word::path(file.path),
            Change::Create { name } | Change::Remove { name } => Word::path(name.path),
            Change::Rename { from, .. } | Change::Link { from, .. } => Word::path(from.path),
        }
    }
}

impl Change {
    /// Whether a call on a path may take bytes from the file that it names.
    fn takes_bytes(&self) -> bool {
        match *self {
            Change::ResizePath { .. } => true,
            Change::Open { flags, .. } => flags & libc::O_TRUNC != 0,
            _ => false,
        }
    }

    /// Whether a call that failed with `errno` has left the bytes of its file alone.
    fn is_refused(&self, fd: RawFd, errno: c_int) -> bool {
        use libc::*;
        match errno {
            EBADF | EPERM | EACCES | EISDIR | EFBIG | ENOSYS | ESPIPE | ENODEV | ETXTBSY => true,
            // Direct I/O goes from extent to extent, and may have written some before one is not to its liking.
            EINVAL | EFAULT | EAGAIN | EOPNOTSUPP => {
                flags(fd).is_some_and(|flags| !flags.contains(OFlags::DIRECT))
            }
            // A plain write that got anywhere returns how far. One that waits for the disk may have got there before.
            EINTR | ENOSPC | EDQUOT => {
                let writes =
                    matches!(self, Change::Write { .. } | Change::WriteAt { .. } | Change::Append { .. });
                writes
                    && !flags(fd)
                        .is_none_or(|flags| flags.intersects(OFlags::DIRECT | OFlags::DSYNC | OFlags::SYNC))
            }
            _ => false,
        }
    }
}

/// What a hook stands in its slot with.
struct Entering {
    word: Word,
    frame: Frame,
}

/// A call of the host. Handed over whole, so that the way without a session keeps all of it in registers.
struct Call<F> {
    change: Change,
    real: F,
}

#[cold]
#[inline(never)]
fn captured<R: Outcome>(
    Entering { word, frame }: Entering,
    Call { change, real }: Call<impl FnOnce() -> R>,
) -> R {
    let Some(slot) = registry::slot() else { return real() };
    let inside = &slot.enter(word, frame);
    let Some(gate) = registry::gate().filter(|gate| gate.state() != State::Idle) else {
        return real();
    };
    if sys::thread::is_engine() {
        inside.step_out();
        return real();
    }
    let _errno;
    let result = {
        // Filled and used where it lies: it is large.
        let mut pending = None;
        wait_and_look(inside, gate, change, &mut pending);
        let Some(about) = &mut pending else { return real() };
        if about.is_beside_the_point() {
            about.forget();
            drop(pending);
            inside.step_out();
            return real();
        }
        inside.slot().count();
        let result = real();
        _errno = sys::errno::Preserve::new();
        about.done = Some(result.done());
        result
    };
    if !inside.is_nested() {
        inside.step_out();
        wait_for_relief();
    }
    result
}

/// How often a thread that waits at the gate does what only it can do.
const PAUSE: Duration = Duration::from_micros(200);

/// Joins the session, having waited at the closed gate; [`State::Idle`] if there is none any more. `waiting` is called while it
/// is closed, again and again if it says so.
pub(crate) fn pass_the_gate(inside: &Inside<'_>, gate: &Gate, waiting: impl Fn() -> bool) -> State {
    let mut state = inside.join(gate);
    // A signal handler inside a captured call must not wait: the gate waits for the call that it interrupted.
    while !inside.is_nested() && state == State::Closed {
        inside.step_out();
        let pause = if waiting() { PAUSE } else { Duration::MAX };
        gate.wait_for_a_while(pause, || WATCH.freeze_time_left());
        inside.step_in();
        state = inside.join(gate);
    }
    state
}

/// A call that waits for the end of an audit, since what it changes cannot be audited before. The audit is short: the call comes
/// behind it.
#[derive(Default)]
struct BehindAudit {
    begun: Option<u64>,
}

impl BehindAudit {
    /// Whether it has to wait in this state.
    fn has_to_wait(&mut self, inside: &Inside<'_>, state: State) -> bool {
        if state != State::Audit || inside.is_nested() {
            return false;
        }
        let now = sys::raw::monotonic_ns();
        let waited = now.saturating_sub(*self.begun.get_or_insert(now));
        waited < WATCH.max_stall_ns.load(Ordering::Relaxed)
    }

    fn wait(inside: &Inside<'_>) {
        inside.step_out();
        sys::thread::nap(Duration::from_micros(200));
        inside.step_in();
    }
}

/// The same as [`pass_the_gate`] for a call that comes behind the audit if it `is_blind`.
pub(crate) fn pass_the_gate_and_audit(
    inside: &Inside<'_>,
    gate: &Gate,
    waiting: impl Fn() -> bool,
    is_blind: impl Fn() -> bool,
) -> State {
    let mut behind = BehindAudit::default();
    loop {
        let state = pass_the_gate(inside, gate, &waiting);
        if !behind.has_to_wait(inside, state) || !is_blind() {
            return state;
        }
        BehindAudit::wait(inside);
    }
}

/// Waits at the closed gate, then finds out what the call is about; nothing if the session has ended.
fn wait_and_look(inside: &Inside<'_>, gate: &Gate, change: Change, about: &mut Option<Pending>) {
    let mut behind = BehindAudit::default();
    loop {
        let state = pass_the_gate(inside, gate, || false);
        if state == State::Idle {
            return;
        }
        if guarded(|| *about = Some(Pending::look(inside, change, state))).is_none() {
            *about = Some(Pending::blind(change));
        }
        if !about.as_ref().is_some_and(Pending::is_blind) || !behind.has_to_wait(inside, state) {
            return;
        }
        if let Some(pending) = about {
            pending.forget();
        }
        *about = None;
        BehindAudit::wait(inside);
    }
}

/// Runs our own work so that a defect in it cannot reach the host; the session then has to look everywhere.
pub(crate) fn guarded<T>(work: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(work))
        .inspect_err(|_| WATCH.crossings.report(crossings::ANYWHERE | crossings::DATA))
        .ok()
}

/// The part of `max_stall` after which a call need not wait for others that saturate the engine.
const FAIR_SHARE: u64 = 4;

/// Waits until the engine has caught up, if it is behind; at most `max_stall`, then the session fails.
///
/// Of many that wait the same ones may come too late again and again. So whoever has waited for a while goes on when all that
/// was owed when it came was dealt with, whatever others owe by now. With the bound 0 each waits for its own anyway.
pub(crate) fn wait_for_relief() {
    let bound = WATCH.lag_bound.load(Ordering::Relaxed);
    if bound == u64::MAX {
        return;
    }
    let ticket = WATCH.marked.load(Ordering::SeqCst);
    let behind = || match WATCH.lag_bound.load(Ordering::Relaxed) {
        u64::MAX => false,
        0 => WATCH.drained.load(Ordering::SeqCst) < ticket,
        bound => WATCH.ledger.lag() > bound,
    };
    if !behind() {
        return;
    }
    let begun = sys::raw::monotonic_ns();
    let limit = WATCH.max_stall_ns.load(Ordering::Relaxed);
    let share = limit / FAIR_SHARE;
    let rounds = WATCH.rounds.load(Ordering::SeqCst);
    // One round may have been under way.
    let dealt_with = || WATCH.rounds.load(Ordering::SeqCst).wrapping_sub(rounds) >= 2;
    WATCH.waiters.fetch_add(1, Ordering::SeqCst);
    if bound == 0 {
        WATCH.call_for_work();
    }
    loop {
        let relief = WATCH.relief.load(Ordering::SeqCst);
        if !behind() {
            break;
        }
        let waited = sys::raw::monotonic_ns().saturating_sub(begun);
        if bound != 0 && waited >= share && dealt_with() {
            break;
        }
        if waited >= limit {
            let _ = WATCH.stalled_ns.compare_exchange(0, waited, Ordering::SeqCst, Ordering::Relaxed);
            WATCH.lag_bound.store(u64::MAX, Ordering::SeqCst);
            WATCH.call_for_work();
            WATCH.relieve();
            break;
        }
        let until = if waited < share { share } else { limit };
        gate::wait(&WATCH.relief, relief, Duration::from_nanos(until - waited));
    }
    WATCH.waiters.fetch_sub(1, Ordering::SeqCst);
}

/// An inode as a hook finds it.
#[derive(Clone, Copy)]
pub(crate) struct Found {
    pub(crate) dev: u64,
    pub(crate) ino: u64,
    kind: FileType,
    size: u64,
    /// The marks, if the session watched it before the call.
    marks: Option<&'static Marks>,
}

impl Found {
    /// Looks without asking for times: asking makes the kernel stamp every following write anew (ext4: 736 to
    /// 2,453 ns a write). Only behind the cut, for an inode not yet audited, times are asked for.
    fn look(dir: RawFd, path: &CStr, flags: AtFlags, state: State) -> Option<Found> {
        let dir = match sys::raw::borrow(dir) {
            Some(dir) => dir,
            None if path.to_bytes().first() == Some(&b'/') => CWD,
            None => return None,
        };
        let flags = if path.is_empty() { flags | AtFlags::EMPTY_PATH } else { flags };
        let wanted = StatxFlags::INO | StatxFlags::TYPE | StatxFlags::SIZE;
        let found = sys::raw::statx_in_place(dir, path, flags, wanted, Found::from).ok()?;
        if state == State::Audit
            && let Some(marks) = found.marks
            && marks.audited(WATCH.generation.load(Ordering::SeqCst)).is_none()
        {
            let wanted = wanted | STAMP;
            let audit_now = |now: &Statx| {
                if Found::from(now).is(&found) {
                    audit(marks, stamp(now));
                }
            };
            sys::raw::statx_in_place(dir, path, flags, wanted, audit_now).ok()?;
        }
        Some(found)
    }

    fn from(found: &Statx) -> Found {
        let dev = device(found);
        Found {
            dev,
            ino: found.stx_ino,
            kind: FileType::from_raw_mode(found.stx_mode.into()),
            size: found.stx_size,
            marks: WATCH.find(dev, found.stx_ino),
        }
    }

    pub(crate) fn descriptor(fd: RawFd, state: State) -> Option<Found> {
        if fd < 0 { None } else { Found::look(fd, c"", AtFlags::empty(), state) }
    }

    /// The same on an engine thread, whose own descriptors are others.
    pub(crate) fn descriptor_of_host(fd: RawFd, state: State) -> Option<Found> {
        sys::raw::with_path_of_descriptor(fd, |path| Found::look(-1, path, AtFlags::empty(), state))?
    }

    fn is(&self, other: &Found) -> bool {
        (self.dev, self.ino) == (other.dev, other.ino)
    }

    pub(crate) fn may_be_backed_up(&self) -> bool {
        matches!(
            self.kind,
            FileType::RegularFile | FileType::Directory | FileType::Symlink | FileType::BlockDevice
        )
    }
}

/// The device number of a statx result as one word.
pub(crate) fn device(found: &Statx) -> u64 {
    u64::from(found.stx_dev_major) << 32 | u64::from(found.stx_dev_minor)
}

/// What the audit compares, from a statx result.
pub(crate) const STAMP: StatxFlags = StatxFlags::SIZE
    .union(StatxFlags::MTIME)
    .union(StatxFlags::CTIME)
    .union(StatxFlags::MODE)
    .union(StatxFlags::UID)
    .union(StatxFlags::GID);

/// What the audit compares, from a statx result. Whoever uses a pipe or a device moves its times, and changes nothing
/// that is backed up: of these it is mode and owner.
pub(crate) fn stamp(found: &Statx) -> Stamp {
    let kind = FileType::from_raw_mode(found.stx_mode.into());
    if !matches!(kind, FileType::RegularFile | FileType::Directory | FileType::Symlink) {
        let owner = i64::from(found.stx_uid);
        return Stamp { size: found.stx_mode.into(), mtime: owner, ctime: found.stx_gid.into() };
    }
    let ns = |t: rustix::fs::StatxTimestamp| t.tv_sec * 1_000_000_000 + i64::from(t.tv_nsec);
    Stamp { size: found.stx_size, mtime: ns(found.stx_mtime), ctime: ns(found.stx_ctime) }
}

/// Behind the cut: has this inode been changed by something unseen since its data was read? Whoever comes first, a
/// captured call or the engine's sweep, says so; who comes later must not, for the first one's own change shows.
pub(crate) fn audit(marks: &Marks, now: Stamp) {
    let generation = WATCH.generation.load(Ordering::SeqCst);
    let unseen = marks.stamp() != now;
    if marks.audited(generation).is_none() {
        marks.set_audited(generation, unseen);
    }
}

/// What was found out before the call, and what has to be marked behind it: dropping it marks.
struct Pending {
    about: About,
    /// `None` while the call runs: if it never returns (cancellation), anything may have happened.
    done: Option<Done>,
    /// What the call counts as while this lives: one that gives or takes names.
    _counts: Option<registry::Counted<'static>>,
}

enum About {
    /// The look-up failed for a reason of ours: this is reported if the call succeeds.
    Blind(u32),
    /// A socket, pipe or terminal.
    BesideThePoint,
    Data(Data),
    Resize(ResizePath),
    Names(Names),
}

/// A call on the bytes of one file by descriptor.
struct Data {
    change: Change,
    fd: RawFd,
    found: Option<Found>,
    /// Where the bytes go, as far as it is known before the call.
    place: Place,
    /// What counts the calls that may end the descriptor, and those that may move a position back.
    endings: u64,
    seeking: u64,
}

#[derive(Clone, Copy)]
enum Place {
    /// To the end of the file.
    End,
    /// The same if the descriptor is still in append mode after the call.
    Appended,
    /// To the descriptor's position, which was this.
    Position(u64),
    /// There, or, in append mode, to the end: whatever a file has grown by is copied, so that needs no mark of its own.
    At(u64),
    /// Not asked, because the file is not watched, or not known.
    Anywhere,
}

/// `truncate`.
struct ResizePath {
    len: u64,
    found: Option<Found>,
    names: u64,
}

/// A call on directory entries or attributes by path, or on attributes by descriptor.
struct Names {
    touched: [Option<(Found, u32)>; 4],
    /// Something that the call cannot do without was not found: if it succeeds, it has hit something else.
    is_missing: bool,
    /// The descriptor that an `open` returns is of a file that may have been emptied.
    opened: bool,
    /// For a call by path: what counted the calls that give and take names before it, and how many of them it is.
    names: Option<(u64, u64)>,
}

impl Pending {
    fn new(about: About) -> Pending {
        Pending { about, done: None, _counts: None }
    }

    fn blind(change: Change) -> Pending {
        let data = if change.takes_bytes() { crossings::DATA } else { 0 };
        Pending::new(About::Blind(crossings::ANYWHERE | data))
    }

    fn look(inside: &Inside<'_>, change: Change, state: State) -> Pending {
        match change {
            Change::Write { fd }
            | Change::WriteAt { fd, .. }
            | Change::Append { fd }
            | Change::Resize { fd, .. }
            | Change::Allocate { fd, .. }
            | Change::WriteAny { fd } => Pending::data(change, fd, state),
            Change::Stream { fd } => {
                let found = Found::descriptor(fd, state).filter(|found| found.kind == FileType::RegularFile);
                found.map_or(Pending::new(About::BesideThePoint), |found| {
                    Pending::names([Some((found, extents::STREAM)), None, None, None])
                })
            }
            Change::Attributes { fd } => {
                let touched = Found::descriptor(fd, state).map(|found| (found, extents::ATTRIBUTES));
                if touched.is_some_and(|(found, _)| found.kind == FileType::Socket) {
                    return Pending::new(About::BesideThePoint);
                }
                Pending::names([touched, None, None, None])
            }
            _ => {
                // A signal handler that interrupted a look-up finds the buffers taken.
                let looked = registry::scratch(inside.slot())
                    .and_then(|scratch| scratch.with(|paths| Pending::by_path(change, state, paths)));
                looked.flatten().unwrap_or_else(|| Pending::blind(change))
            }
        }
    }

    fn names(touched: [Option<(Found, u32)>; 4]) -> Pending {
        let names = Names { touched, is_missing: false, opened: false, names: None };
        Pending::new(About::Names(names))
    }

    fn data(change: Change, fd: RawFd, state: State) -> Pending {
        let endings = WATCH.endings(fd);
        let seeking = WATCH.seeking.read();
        let found = Found::descriptor(fd, state);
        if found.is_some_and(|found| !found.may_be_backed_up()) {
            return Pending::new(About::BesideThePoint);
        }
        let place = match (change, found) {
            (Change::Append { .. }, _) => Place::End,
            (Change::WriteAt { at, .. }, _) if at >= 0 => Place::At(at.cast_unsigned()),
            // Also of a file that is not watched yet: it may be behind the call.
            (Change::Write { .. }, Some(found)) => match position(fd) {
                // At the end it makes no difference.
                Some(before) if before != found.size && appends(fd) => Place::Appended,
                Some(before) => Place::Position(before),
                None => Place::Anywhere,
            },
            _ => Place::Anywhere,
        };
        Pending::new(About::Data(Data { change, fd, found, place, endings, seeking }))
    }

    /// `None` if the paths cannot be read; the kernel will most likely refuse them as well.
    fn by_path(change: Change, state: State, [first, second]: &mut [[u8; PATH_MAX]; 2]) -> Option<Pending> {
        // Read before anything is looked up; what moves from here on is seen behind the call.
        let names = WATCH.names.read();
        let moves = matches!(change, Change::Remove { .. } | Change::Rename { .. } | Change::Link { .. });
        let counted = moves.then(|| WATCH.names.begin());
        let mut pending = match change {
            Change::ResizePath { file, len } => {
                let found = PathText::read(file, first)?.target(state, true);
                let len = u64::try_from(len).unwrap_or(0);
                return Some(Pending::new(About::Resize(ResizePath { len, found, names })));
            }
            Change::AttributesPath { file, follow } => {
                let file = PathText::read(file, first)?.target(state, follow);
                let file = file.map(|found| (found, extents::ATTRIBUTES));
                Pending::needing([file], [None; 3])
            }
            Change::Open { file, flags } => Pending::open(change, PathText::read(file, first)?, flags, state),
            Change::Create { name } => {
                Pending::needing([PathText::read(name, first)?.parent(state)], [None; 3])
            }
            Change::Remove { name } => {
                let mut name = PathText::read(name, first)?;
                Pending::needing([name.parent(state), name.named(state, false)], [None; 2])
            }
            Change::Rename { from, to } => {
                let mut from = PathText::read(from, first)?;
                let mut to = PathText::read(to, second)?;
                let replaced = to.named(state, false);
                let needed = [from.parent(state), to.parent(state), from.named(state, false)];
                Pending::needing(needed, [replaced])
            }
            Change::Link { from, to, follow } => {
                let file = PathText::read(from, first)?.named(state, follow);
                let parent = PathText::read(to, second)?.parent(state);
                Pending::needing([parent, file], [None; 2])
            }
            _ => return None,
        };
        if let About::Names(about) = &mut pending.about {
            about.names = Some((names, u64::from(moves)));
            let moved = about.touched.iter().flatten().filter(|(_, flags)| *flags == extents::EXAMINE);
            if moves {
                let leads_on = |found: &Found| matches!(found.kind, FileType::Directory | FileType::Symlink);
                let moved = moved.map(|(found, _)| found);
                moved
                    .filter(|found| found.marks.is_some() || leads_on(found))
                    .for_each(|found| WATCH.crossings.note(found.marks));
            }
        }
        pending._counts = counted;
        Some(pending)
    }

    /// A call that cannot succeed without all that is `needed`, and may touch `others`.
    fn needing<const N: usize, const M: usize>(
        needed: [Option<(Found, u32)>; N],
        others: [Option<(Found, u32)>; M],
    ) -> Pending {
        const { assert!(N + M == 4) };
        let mut touched = [None; 4];
        touched[..N].copy_from_slice(&needed);
        touched[N..].copy_from_slice(&others);
        let mut pending = Pending::names(touched);
        if let About::Names(names) = &mut pending.about {
            names.is_missing = needed.iter().any(Option::is_none);
        }
        pending
    }

    fn open(change: Change, mut file: PathText<'_>, flags: c_int, state: State) -> Pending {
        let flags = OFlags::from_bits_retain(flags.cast_unsigned());
        let follow = !flags.contains(OFlags::NOFOLLOW);
        let found = file.target(state, follow);
        if found.is_some_and(|found| found.kind == FileType::Fifo || found.kind == FileType::CharacterDevice)
        {
            return Pending::new(About::BesideThePoint);
        }
        let creates = flags.contains(OFlags::CREATE) && !flags.contains(OFlags::TMPFILE);
        let mut touched = [None; 4];
        if creates && found.is_some() {
            touched[0] = file.parent(state).map(|(parent, _)| (parent, 0));
        } else if creates {
            touched[0] = file.parent(state);
            // The file may come into being where a symbolic link points: then its directory is not known.
            if follow && file.target(state, false).is_some() {
                return Pending::blind(change);
            }
        }
        let mut pending = Pending::names(touched);
        if let About::Names(names) = &mut pending.about {
            names.is_missing = creates && found.is_none() && touched[0].is_none();
            names.opened = flags.contains(OFlags::TRUNC);
            names.touched[1] = found.map(|found| (found, 0));
        }
        pending
    }

    fn is_blind(&self) -> bool {
        matches!(self.about, About::Blind(_))
    }

    fn is_beside_the_point(&self) -> bool {
        matches!(self.about, About::BesideThePoint)
    }

    /// Has nothing marked when this is dropped.
    fn forget(&mut self) {
        self.done = Some(Done::Failure(0));
    }

    fn mark(&mut self) {
        // The call has changed the file, then the inode is looked up; the engine enters the inode, then reads the file.
        // Without a full fence on both sides both could miss the other.
        fence(Ordering::SeqCst);
        let result = match self.done {
            Some(Done::Success(result)) => Some(result),
            Some(Done::Failure(errno)) if self.has_failed(errno) => return self.mark_failure(),
            _ => None,
        };
        match &self.about {
            About::Blind(what) => WATCH.crossings.report(*what),
            About::BesideThePoint => {}
            About::Data(data) => data.mark(result),
            About::Resize(resize) => resize.mark(),
            About::Names(names) => names.mark(result),
        }
    }

    /// Whether a call that returned `errno` has changed nothing but times. Else nobody knows what it did before.
    fn has_failed(&self, errno: c_int) -> bool {
        match &self.about {
            About::Data(data) => data.change.is_refused(data.fd, errno),
            _ => errno != libc::EIO,
        }
    }

    /// A call that fails may have moved the file's times before it found the reason (ext4: fallocate, a write without
    /// space, flags), and a stream may have written something.
    fn mark_failure(&self) {
        if let About::Names(names) = &self.about {
            let kept = extents::ATTRIBUTES | extents::STREAM;
            let marked = names.touched.iter().flatten().filter(|(_, flags)| *flags & kept != 0);
            marked.for_each(|(found, flags)| mark_flags(found, *flags));
        }
        if let About::Data(Data { found: Some(found), .. })
        | About::Resize(ResizePath { found: Some(found), .. }) = &self.about
        {
            mark_flags(found, extents::ATTRIBUTES);
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        guarded(|| self.mark());
    }
}

impl Data {
    /// Marks what the call changed; `result` is `None` if that is unknown.
    fn mark(&self, result: Option<u64>) {
        if result == Some(0)
            && matches!(self.change, Change::Write { .. } | Change::WriteAt { .. } | Change::Append { .. })
        {
            return;
        }
        if WATCH.endings_since(self.fd, self.endings) > 0 || self.found.is_none() {
            // The number may have stood for another file when the call was made: for this one, or, if it was ended more than
            // once, for any.
            mark_all(Found::descriptor(self.fd, State::Open));
            if WATCH.endings_since(self.fd, self.endings) > 1 || self.found.is_none() {
                WATCH.crossings.report(crossings::ANYWHERE | crossings::DATA);
            }
            return mark_all(self.found);
        }
        let Some(found) = self.found else { return };
        // If it was not watched before the call, and is now, the engine may have read it before or behind the change.
        let Some(marks) = found.marks.or_else(|| WATCH.find(found.dev, found.ino)) else { return };
        let Some(result) = result else {
            return mark_all(self.found);
        };
        let ledger = &WATCH.ledger;
        match self.change {
            Change::Resize { len, .. } => {
                marks.mark_tail(ledger, u64::try_from(len).unwrap_or(0).min(found.size), 1)
            }
            Change::Allocate { mode, at, len, .. } => mark_allocated(marks, found.size, mode, at, len),
            Change::WriteAny { .. } => marks.mark_all(ledger),
            _ => self.mark_written(marks, found.size, result),
        }
        marked();
    }

    fn mark_written(&self, marks: &'static Marks, size: u64, len: u64) {
        let ledger = &WATCH.ledger;
        match self.place {
            Place::At(at) => marks.mark_range(ledger, at, at.saturating_add(len)),
            // A call that has made the file smaller meanwhile marks all behind its new end.
            Place::End => marks.mark_tail(ledger, size, len),
            Place::Appended if appends(self.fd) => marks.mark_tail(ledger, size, len),
            // Others may have moved the position on meanwhile; if they may have moved it back, nothing is known.
            Place::Position(before) if WATCH.seeking.since(self.seeking) == 0 => match position(self.fd) {
                Some(after) if after >= before.saturating_add(len) => marks.mark_range(ledger, before, after),
                _ => marks.mark_all(ledger),
            },
            Place::Appended | Place::Position(_) | Place::Anywhere => marks.mark_all(ledger),
        }
    }
}

/// Marks what fallocate(2) changes: holes and zeros in the range, everything behind it where the file is shifted, and
/// the size.
fn mark_allocated(marks: &'static Marks, size: u64, mode: c_int, at: i64, len: i64) {
    let ledger = &WATCH.ledger;
    let at = u64::try_from(at).unwrap_or(0);
    let end = at.saturating_add(u64::try_from(len).unwrap_or(0));
    if mode & (libc::FALLOC_FL_COLLAPSE_RANGE | libc::FALLOC_FL_INSERT_RANGE) != 0 {
        marks.mark_tail(ledger, at, 1);
    } else if mode & (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE) != 0 {
        // A range that passes the end is a tail, however long it claims to be.
        match end > size {
            true => marks.mark_tail(ledger, at.min(size), size.saturating_sub(at)),
            false => marks.mark_range(ledger, at, end),
        }
        marks.mark_flags(ledger, extents::ATTRIBUTES);
    } else if mode & !(libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_UNSHARE_RANGE) == 0 {
        // Plain allocation changes no byte that was there; the size is looked at whenever a file is.
        marks.mark_flags(ledger, extents::ATTRIBUTES);
    } else {
        marks.mark_all(ledger);
    }
}

impl ResizePath {
    fn mark(&self) {
        if WATCH.names.since(self.names) > 0 {
            WATCH.crossings.report(crossings::DATA);
        }
        match self.found {
            Some(found) => {
                if let Some(marks) = found.marks.or_else(|| WATCH.find(found.dev, found.ino)) {
                    marks.mark_tail(&WATCH.ledger, self.len.min(found.size), 1);
                    marked();
                }
            }
            None => WATCH.crossings.report(crossings::ANYWHERE | crossings::DATA),
        }
    }
}

impl Names {
    fn mark(&self, result: Option<u64>) {
        for (found, flags) in self.touched.iter().flatten() {
            mark_flags(found, *flags);
        }
        if self.opened {
            match result.and_then(|fd| RawFd::try_from(fd).ok()) {
                Some(fd) => mark_all(Found::descriptor(fd, State::Open)),
                None => mark_all(self.touched[1].map(|(found, _)| found)),
            }
        }
        if self.is_missing {
            WATCH.crossings.report(crossings::ANYWHERE | crossings::NAMES);
        }
        if let Some((names, own)) = self.names
            && WATCH.names.since(names) > own
        {
            WATCH.crossings.report(crossings::NAMES);
            // An `open` that found a file may have had to make it.
            let directories =
                self.touched.iter().flatten().filter(|(found, _)| found.kind == FileType::Directory);
            directories.for_each(|(found, _)| mark_flags(found, extents::ENTRIES));
        }
    }
}

fn mark_flags(found: &Found, flags: u32) {
    if flags != 0
        && let Some(marks) = found.marks.or_else(|| WATCH.find(found.dev, found.ino))
    {
        marks.mark_flags(&WATCH.ledger, flags);
        marked();
    }
}

fn mark_all(found: Option<Found>) {
    if let Some(marks) = found.and_then(|found| found.marks.or_else(|| WATCH.find(found.dev, found.ino))) {
        marks.mark_all(&WATCH.ledger);
        marked();
    }
}

fn marked() {
    WATCH.marked.fetch_add(1, Ordering::SeqCst);
}

/// Whether the descriptor is in append mode now (F_SETFL may change it at any time).
pub(crate) fn appends(fd: RawFd) -> bool {
    flags(fd).is_none_or(|flags| flags.contains(OFlags::APPEND))
}

fn flags(fd: RawFd) -> Option<OFlags> {
    rustix::fs::fcntl_getfl(sys::raw::borrow(fd)?).ok()
}

/// Whether the descriptor may be read from and written to, as far as is known.
pub(crate) fn can_read_and_write(fd: RawFd) -> bool {
    flags(fd).is_none_or(|flags| flags & OFlags::ACCMODE == OFlags::RDWR)
}

fn position(fd: RawFd) -> Option<u64> {
    rustix::fs::seek(sys::raw::borrow(fd)?, SeekFrom::Current(0)).ok()
}

/// A path of the host's in a buffer of ours.
struct PathText<'a> {
    dir: RawFd,
    buffer: &'a mut [u8; PATH_MAX],
    len: usize,
}

impl<'a> PathText<'a> {
    fn read(at: At, buffer: &'a mut [u8; PATH_MAX]) -> Option<PathText<'a>> {
        let len = sys::raw::read_path(at.path as *const c_char, buffer).ok()?;
        Some(PathText { dir: at.dir, buffer, len })
    }

    fn as_c_str(&self, len: usize) -> Option<&CStr> {
        CStr::from_bytes_with_nul(self.buffer.get(..=len)?).ok()
    }

    /// What the path names; the symbolic link itself unless `follow`.
    fn target(&self, state: State, follow: bool) -> Option<Found> {
        let flags = if follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
        Found::look(self.dir, self.as_c_str(self.len)?, flags, state)
    }

    /// What the path names, which is about to get or lose a name.
    fn named(&self, state: State, follow: bool) -> Option<(Found, u32)> {
        self.target(state, follow).map(|found| (found, extents::EXAMINE))
    }

    /// The directory that the path's last component lies in.
    fn parent(&mut self, state: State) -> Option<(Found, u32)> {
        let end = self.buffer[..self.len].iter().rposition(|&b| b != b'/').map_or(0, |last| last + 1);
        let slash = self.buffer[..end].iter().rposition(|&b| b == b'/');
        let found = match slash {
            None => Found::look(self.dir, c".", AtFlags::empty(), state),
            Some(0) => Found::look(self.dir, c"/", AtFlags::empty(), state),
            Some(at) => {
                self.buffer[at] = 0;
                let found =
                    self.as_c_str(at).and_then(|dir| Found::look(self.dir, dir, AtFlags::empty(), state));
                self.buffer[at] = b'/';
                found
            }
        };
        found.map(|found| (found, extents::ENTRIES))
    }
}

/// The threads that have made captured calls, each with a word that changes whenever it begins or ends one. What the word
/// says is the engine's own affair; that it has changed proves that the thread has been in a hook meanwhile.
pub fn threads() -> impl Iterator<Item = (u32, u64)> {
    registry::standing()
}

/// Whether the calling thread is one of the engine's.
pub fn is_engine() -> bool {
    sys::thread::is_engine()
}

/// Does something on a thread of the engine's, which no signal of the host's reaches, and does not wait for it.
///
/// # Errors
/// There is no thread to be had.
pub fn aside(work: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    sys::thread::spawn("hotbackup-check", work).map(drop)
}

/// Two words that every thread has for an adapter, zeros at first. They are there from the thread's beginning, however late
/// the library was loaded: reading them allocates nothing.
#[inline(always)]
pub fn words() -> (usize, usize) {
    sys::tls::with(|own| own.adapter.get())
}

/// Sets [`words`]; returns what they were.
#[inline(always)]
pub fn replace_words(new: (usize, usize)) -> (usize, usize) {
    sys::tls::with(|own| own.adapter.replace(new))
}

/// Counts what [`missed`] was told.
static MISSED: AtomicU64 = AtomicU64::new(0);

/// Says that calls may have gone by unseen since the last proof: an adapter has found something that was not hooked, and
/// has hooked it. A running session then looks at the times of everything, and copies whole what was changed since it last
/// knew that nothing was missed.
pub fn missed() {
    MISSED.fetch_add(1, Ordering::SeqCst);
    WATCH.crossings.report(crossings::ANYWHERE | crossings::DATA | crossings::NAMES);
}

/// Proves that the hooks of one adapter are in force; returns [`Error::HookNotLive`](crate::Error::HookNotLive) if not.
pub type Proof = fn() -> crate::Result<()>;

static PROOFS: parking_lot::Mutex<Vec<Proof>> = parking_lot::Mutex::new(Vec::new());

/// Registers an adapter: every session calls `proof` before it arms, on the thread that calls
/// [`Backup::start`](crate::Backup::start), and on a thread of its own before and behind each try of the cut, because
/// libraries may have been loaded meanwhile. It fails if the proof fails. Registering one proof twice has no effect.
pub fn register(proof: Proof) {
    prepare();
    let mut proofs = PROOFS.lock();
    if !proofs.iter().any(|&known| std::ptr::fn_addr_eq(known, proof)) {
        proofs.push(proof);
    }
}

/// Says for [`doctor`](crate::doctor()) how an adapter's hooks are in force, and which loaded objects go by them: one finding is of
/// [`Kind::Hooks`](crate::Kind::Hooks). It changes nothing.
pub type Examiner = fn() -> Vec<crate::Finding>;

static EXAMINERS: parking_lot::Mutex<Vec<Examiner>> = parking_lot::Mutex::new(Vec::new());

/// Registers what an adapter knows. It is called on a thread of the engine's. Registering it twice has no effect.
pub fn register_examiner(examiner: Examiner) {
    let mut examiners = EXAMINERS.lock();
    if !examiners.iter().any(|&known| std::ptr::fn_addr_eq(known, examiner)) {
        examiners.push(examiner);
    }
}

/// What all adapters know.
pub(crate) fn examine() -> Vec<crate::Finding> {
    let examiners = EXAMINERS.lock().clone();
    examiners.into_iter().flat_map(|examiner| examiner()).collect()
}

/// Runs every registered proof.
pub(crate) fn prove() -> crate::Result<()> {
    let proofs = PROOFS.lock().clone();
    proofs.into_iter().try_for_each(|proof| proof())
}

/// The same while a session runs. True if calls may have been [missed].
pub(crate) fn prove_again() -> crate::Result<bool> {
    let before = MISSED.load(Ordering::SeqCst);
    prove()?;
    Ok(MISSED.load(Ordering::SeqCst) != before)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn an_ordinary_call_does_not_have_everything_looked_at() {
        let _alone = registry::ALONE.lock();
        let file = tempfile::tempfile().expect("a file");
        let gate = registry::prepare().expect("a gate");
        let slot = registry::slot().expect("a slot");
        gate.set(State::Open);
        let inside = slot.enter(Word::descriptor(file.as_raw_fd()), gate::here());
        let path = c"/proc/self/no-such-file";
        for change in [
            Change::Write { fd: file.as_raw_fd() },
            Change::Attributes { fd: file.as_raw_fd() },
            Change::Open { file: At::cwd(path.as_ptr()), flags: libc::O_CREAT },
        ] {
            let mut about = None;
            wait_and_look(&inside, gate, change, &mut about);
            let mut pending = about.expect("a session");
            assert!(!pending.is_blind(), "{change:?}");
            pending.forget();
        }
        gate.set(State::Idle);
        assert!(!WATCH.crossings.any());
    }
}
