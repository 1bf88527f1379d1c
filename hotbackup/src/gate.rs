//! Who may be inside a captured call, and how the cut closes the door.
//!
//! Every thread of the host has a [`Slot`]. A hook stores one word in it, reads the [`Gate`]'s state, makes the real
//! call and puts the word back: that is all when no session runs. The engine, having changed the state, passes a heavy
//! fence and looks at the slots: a thread either had stored its word (and is waited for) or sees the new state. So the
//! hooks need neither an atomic read-modify-write nor a fence.
//!
//! Invariant: while the state is [`State::Closed`] and [`Slots::wait_until_outside`] has returned success, no thread
//! is inside a captured call.

use std::mem::MaybeUninit;

use crate::sys::atomic::{AtomicU32, AtomicU64, Ordering, fence_heavy, fence_light};
use crate::sys::mem::{AtomicRef, zeroed};
use crate::sys::scratch::Scratch;

/// What the gate says to a thread that arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum State {
    /// No session: make the real call. Also what a forked child reads, whose page was wiped.
    Idle = 0,
    /// A session captures changes.
    Open = 1,
    /// The cut: wait.
    Closed = 2,
    /// Behind the cut: captured, and a file's first change audits it before.
    Audit = 3,
}

const STATE: u32 = 3;

zeroed! {
    /// The door. Its state word also counts the closings, so that a waiter never opens a later one.
    pub(crate) struct Gate {
        word: AtomicU32,
    }
}

impl Gate {
    #[cfg(loom)]
    pub(crate) fn new() -> Gate {
        Gate { word: AtomicU32::new(0) }
    }

    /// The state as one relaxed load; the caller stands in its slot.
    #[inline(always)]
    pub(crate) fn state(&self) -> State {
        Self::decode(self.word.load(Ordering::Acquire))
    }

    #[inline(always)]
    fn decode(word: u32) -> State {
        match word & STATE {
            0 => State::Idle,
            1 => State::Open,
            2 => State::Closed,
            _ => State::Audit,
        }
    }

    /// Sets the state; from now on every thread that enters sees it, and every one that did not is found in its slot.
    pub(crate) fn set(&self, state: State) {
        let word = self.word.load(Ordering::Relaxed);
        let next = (word & !STATE).wrapping_add(STATE + 1) | state as u32;
        self.word.store(next, Ordering::SeqCst);
        fence_heavy();
        if Self::decode(word) == State::Closed {
            wake(&self.word);
        }
    }

    /// What [`Gate::open_from`] wants to see unchanged.
    pub(crate) fn ticket(&self) -> u32 {
        self.word.load(Ordering::Acquire)
    }

    /// Opens the gate if it is still closed as it was when `ticket` was read. Both the engine and a waiter past the
    /// deadline do this; whoever comes first wins.
    pub(crate) fn open_from(&self, ticket: u32, state: State) -> bool {
        if Self::decode(ticket) != State::Closed {
            return false;
        }
        let next = (ticket & !STATE) | state as u32;
        let won = self.word.compare_exchange(ticket, next, Ordering::SeqCst, Ordering::Relaxed).is_ok();
        wake(&self.word);
        won
    }

    /// Waits outside while the gate is closed, until `remaining` says that no time is left; then opens it.
    #[cfg(loom)]
    pub(crate) fn wait(&self, remaining: impl Fn() -> Option<std::time::Duration>) {
        while self.state() == State::Closed {
            self.wait_for_a_while(std::time::Duration::MAX, &remaining);
        }
    }

    /// Waits outside if the gate is closed, for `time` at most, or, when `remaining` says that no time is left, opens it.
    pub(crate) fn wait_for_a_while(
        &self,
        time: std::time::Duration,
        remaining: impl Fn() -> Option<std::time::Duration>,
    ) {
        let word = self.word.load(Ordering::Acquire);
        if Self::decode(word) != State::Closed {
            return;
        }
        match remaining() {
            Some(left) => wait(&self.word, word, left.min(time)),
            None => drop(self.open_from(word, State::Open)),
        }
    }
}

/// Sleeps while `word` is `value`, at most `time`.
pub(crate) fn wait(word: &AtomicU32, value: u32, time: std::time::Duration) {
    #[cfg(loom)]
    crate::model::futex::wait(word, value, time);
    #[cfg(not(loom))]
    {
        use rustix::thread::futex;
        let timeout = rustix::time::Timespec {
            tv_sec: time.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: time.subsec_nanos().into(),
        };
        let _ = futex::wait(word, futex::Flags::PRIVATE, value, Some(&timeout));
    }
}

/// Wakes everyone who sleeps on `word`.
pub(crate) fn wake(word: &AtomicU32) {
    #[cfg(loom)]
    crate::model::futex::wake(word);
    #[cfg(not(loom))]
    let _ =
        rustix::thread::futex::wake(word, rustix::thread::futex::Flags::PRIVATE, i32::MAX.cast_unsigned());
}

/// What a thread is inside of, in one word: 0 is nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Word(pub(crate) u64);

impl Word {
    pub(crate) const NOTHING: Word = Word(0);
    const BY_DESCRIPTOR: u64 = 1 << 62;
    const BY_PATH: u64 = 2 << 62;
    const BY_RING: u64 = 3 << 62;
    /// Inside another captured call (a signal handler): it always counts, whatever the inner one is about.
    pub(crate) const NESTED: u64 = 1 << 61;
    /// The thread has seen the session and will mark what it does.
    pub(crate) const CAPTURED: u64 = 1 << 60;
    /// The call ends or moves a descriptor and changes no file.
    const HARMLESS: u64 = 1 << 59;

    #[inline(always)]
    pub(crate) const fn descriptor(fd: i32) -> Word {
        Word(Self::BY_DESCRIPTOR | fd.cast_unsigned() as u64)
    }

    /// A call on a descriptor that changes no file.
    #[inline(always)]
    pub(crate) const fn harmless(fd: i32) -> Word {
        Word(Self::BY_DESCRIPTOR | Self::HARMLESS | fd.cast_unsigned() as u64)
    }

    #[inline(always)]
    pub(crate) fn path(path: *const std::ffi::c_char) -> Word {
        Word(Self::BY_PATH | (path as u64 & (Self::HARMLESS - 1)))
    }

    /// A call on a ring of asynchronous requests.
    #[inline(always)]
    pub(crate) const fn ring(ring: u64) -> Word {
        Word(Self::BY_RING | (ring & (Self::HARMLESS - 1)))
    }

    pub(crate) fn is_harmless(self) -> bool {
        self.as_descriptor().is_some() && self.0 & (Self::HARMLESS | Self::NESTED) == Self::HARMLESS
    }

    pub(crate) fn is_ring(self) -> bool {
        self.0 >> 62 == 3
    }

    pub(crate) fn as_descriptor(self) -> Option<i32> {
        (self.0 >> 62 == 1).then(|| (self.0 as u32).cast_signed())
    }

    pub(crate) fn as_path(self) -> Option<usize> {
        (self.0 >> 62 == 2).then_some((self.0 & (Self::HARMLESS - 1)) as usize)
    }

    /// Whether the call may use what belongs to a session, or may have interrupted one that does.
    pub(crate) fn knows_of_a_session(self) -> bool {
        self.0 & (Self::CAPTURED | Self::NESTED) != 0
    }

    pub(crate) fn is_nested(self) -> bool {
        self.0 & Self::NESTED != 0
    }

    /// Whether nobody need wait for the call if what it names is nothing that is backed up. A captured call on a descriptor has seen
    /// that it is; a vfork child's descriptors are not those of our table.
    pub(crate) fn may_be_passed_over(self) -> bool {
        let has_looked =
            self.0 & Self::CAPTURED != 0 && self.as_descriptor().is_some() && !self.is_harmless();
        !self.is_nested() && !has_looked
    }
}

/// No thread has this number (tgkill(2) takes positive ones); a slot that has it is being repaired.
const HELD: u32 = u32::MAX;

zeroed! {
    /// Where one thread stands. Only its own thread stores; the engine reads, and clears what a dead thread left.
    #[repr(align(64))]
    pub(crate) struct Slot {
        word: AtomicU64,
        /// The stack address of the hook that stored the word: tells a live outer call from one left by longjmp.
        frame: AtomicU64,
        tid: AtomicU32,
        /// How many calls in it were captured, by whichever threads have had it.
        captured: AtomicU64,
        /// Path buffers, made when the slot's thread first needs them.
        scratch: AtomicRef<Scratch>,
    }
}

impl Slot {
    #[cfg(loom)]
    pub(crate) fn new() -> Slot {
        Slot {
            word: AtomicU64::new(0),
            frame: AtomicU64::new(0),
            tid: AtomicU32::new(1),
            captured: AtomicU64::new(0),
            scratch: AtomicRef::none(),
        }
    }

    /// Takes a slot that nobody has for the thread `tid`.
    pub(crate) fn claim(&self, old: u32, tid: u32) -> bool {
        let won = self.tid.compare_exchange(old, tid, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if won {
            self.word.store(0, Ordering::Release);
        }
        won
    }

    /// After fork: the thread that lives on has another id.
    pub(crate) fn rename(&self, tid: u32) {
        self.tid.store(tid, Ordering::Release);
    }

    /// The path buffers of this slot's thread; `make` gets them from memory that is never given back.
    pub(crate) fn scratch(
        &self,
        make: impl FnOnce() -> Option<&'static Scratch>,
    ) -> Option<&'static Scratch> {
        use std::sync::atomic::Ordering;
        match self.scratch.load(Ordering::Acquire) {
            Some(scratch) => Some(scratch),
            None => match self.scratch.replace(None, Some(make()?)) {
                Ok(()) => self.scratch.load(Ordering::Acquire),
                Err(winner) => winner,
            },
        }
    }

    pub(crate) fn tid(&self) -> u32 {
        self.tid.load(Ordering::Acquire)
    }

    /// Counts a captured call. A signal handler may come between any two instructions.
    pub(crate) fn count(&self) {
        self.captured.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn captured(&self) -> u64 {
        self.captured.load(Ordering::Relaxed)
    }

    pub(crate) fn word(&self) -> Word {
        Word(self.word.load(Ordering::Acquire))
    }

    /// Clears what the thread `tid` left behind, if it is dead. The slot is held meanwhile, so that no new thread can
    /// take it over and stand in it when it is cleared; one that comes now looks for another slot.
    pub(crate) fn repair(&self, tid: u32, exists: impl FnOnce(u32) -> bool) {
        let held = self.tid.compare_exchange(tid, HELD, Ordering::AcqRel, Ordering::Relaxed);
        if held.is_ok() {
            // A new thread of the same number may have taken the slot over just before.
            if !exists(tid) {
                self.word.store(0, Ordering::Release);
            }
            self.tid.store(tid, Ordering::Release);
        }
    }

    /// Stands in the slot until the guard goes, however the call is left: return, panic, or cancellation. For a thread that
    /// stands nowhere else while no session runs; otherwise `None`, and the thread is where it was: it has to
    /// [`enter`](Slot::enter). `frame` is the caller's [`here`].
    ///
    /// The frame is put back as well: a signal handler may have come between the caller's storing of its own and of its word.
    #[inline(always)]
    pub(crate) fn pass(&self, word: Word, frame: Frame, gate: &Gate) -> Option<Passing<'_>> {
        if self.word.load(Ordering::Relaxed) != 0 {
            return None;
        }
        let outer_frame = self.frame.load(Ordering::Relaxed);
        self.frame.store(frame.0, Ordering::Relaxed);
        self.word.store(word.0, Ordering::Relaxed);
        fence_light();
        let passing = Passing { slot: self, outer_frame };
        (gate.state() == State::Idle).then_some(passing)
    }

    /// Stands in the slot until the guard goes, whatever the thread is inside of, and whether a session runs or not. `frame` is
    /// the caller's [`here`].
    #[inline(always)]
    pub(crate) fn enter(&self, word: Word, frame: Frame) -> Inside<'_> {
        let mut outer = self.word.load(Ordering::Relaxed);
        let outer_frame = self.frame.load(Ordering::Relaxed);
        let mut store = word.0;
        if outer != 0 {
            outer = live_outer(outer, outer_frame, frame.0);
            if outer != 0 && !Word(outer).is_harmless() {
                store |= Word::NESTED;
            }
        }
        self.frame.store(frame.0, Ordering::Relaxed);
        self.word.store(store, Ordering::Relaxed);
        fence_light();
        Inside { slot: self, outer, outer_frame, word: store }
    }
}

/// Where on its stack a hook runs.
#[derive(Clone, Copy)]
pub(crate) struct Frame(u64);

/// The calling function's frame.
#[inline(always)]
pub(crate) fn here() -> Frame {
    let marker = MaybeUninit::<u8>::uninit();
    Frame(std::ptr::from_ref(&marker) as u64)
}

/// The outer word if the call that stored it can still be running, else 0: its frame was left by longjmp.
#[cold]
#[inline(never)]
fn live_outer(outer: u64, outer_frame: u64, frame: u64) -> u64 {
    #[cfg(loom)]
    {
        let _ = (outer_frame, frame);
        outer
    }
    #[cfg(not(loom))]
    match crate::sys::raw::alternate_stack() {
        // On the alternate stack addresses say nothing about who called whom: take it as live.
        crate::sys::raw::AlternateStack::Active => outer,
        // The outer call ran on the alternate stack, which has been left.
        crate::sys::raw::AlternateStack::Inactive { from, to } if (from..to).contains(&outer_frame) => 0,
        _ if outer_frame <= frame => 0,
        _ => outer,
    }
}

/// A thread's presence in its slot while no session runs and it stands nowhere else.
pub(crate) struct Passing<'a> {
    slot: &'a Slot,
    outer_frame: u64,
}

impl Drop for Passing<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        self.slot.word.store(0, Ordering::Release);
        self.slot.frame.store(self.outer_frame, Ordering::Relaxed);
    }
}

/// A thread's presence in its slot.
pub(crate) struct Inside<'a> {
    slot: &'a Slot,
    outer: u64,
    outer_frame: u64,
    word: u64,
}

impl Inside<'_> {
    /// Whether this call was made from inside another captured call, by a signal handler, so that the gate waits for
    /// that one. It does not wait for a call that changes no file, nor for one that arming has passed over (on a socket,
    /// say), which does not know of the session.
    #[inline(always)]
    pub(crate) fn is_nested(&self) -> bool {
        self.outer & Word::CAPTURED != 0 && !Word(self.outer).is_harmless()
    }

    /// Tells the engine that this call knows of the session. A call in a signal handler says so only if the call that
    /// it interrupted does: else arming would pass that one over.
    pub(crate) fn captured(&self) {
        if self.outer == 0 || self.outer & Word::CAPTURED != 0 {
            self.slot.word.store(self.word | Word::CAPTURED, Ordering::Release);
            fence_light();
        }
    }

    /// Joins the session that is under way, and returns the state; from here on the next session waits for this call. With
    /// [`State::Idle`] there is no session to join.
    pub(crate) fn join(&self, gate: &Gate) -> State {
        loop {
            self.captured();
            // A session that ended before that was said does not wait for this call.
            let state = gate.state();
            if state != State::Idle {
                return state;
            }
            // One that begins passes over who says so; it is seen here if it did.
            self.step_in();
            if gate.state() == State::Idle {
                return State::Idle;
            }
        }
    }

    /// Steps outside for a while: to wait, or to make a call that the gate has nothing to do with.
    pub(crate) fn step_out(&self) {
        self.slot.word.store(self.outer, Ordering::Release);
    }

    /// Steps inside again; the state has to be read anew after this.
    pub(crate) fn step_in(&self) {
        self.slot.word.store(self.word, Ordering::Relaxed);
        fence_light();
    }

    pub(crate) fn slot(&self) -> &Slot {
        self.slot
    }
}

impl Drop for Inside<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        self.slot.word.store(self.outer, Ordering::Release);
        self.slot.frame.store(self.outer_frame, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn slot() -> &'static Slot {
        crate::sys::mem::reserve::<Slot>(1).and_then(|slots| slots.first()).expect("memory")
    }

    /// Further down the stack, as a signal handler is.
    #[inline(never)]
    fn in_a_handler(slot: &Slot, check: &dyn Fn(&Inside<'_>)) {
        let room = std::hint::black_box([0u8; 512]);
        check(&slot.enter(Word::descriptor(4), here()));
        std::hint::black_box(room);
    }

    #[test]
    fn a_handler_does_not_claim_that_the_call_it_interrupted_is_captured() {
        let slot = slot();
        let outer = slot.enter(Word::descriptor(3), here());
        in_a_handler(slot, &|inner| {
            inner.captured();
            assert_eq!(slot.word().0 & Word::CAPTURED, 0);
            assert!(!inner.is_nested(), "arming has passed the outer call over, and so does the cut");
        });
        outer.captured();
        in_a_handler(slot, &|inner| {
            inner.captured();
            assert_ne!(slot.word().0 & Word::CAPTURED, 0);
            assert!(inner.is_nested() && slot.word().is_nested());
        });
    }

    #[test]
    fn a_handler_inside_a_close_waits_at_the_gate() {
        let slot = slot();
        let outer = slot.enter(Word::harmless(3), here());
        outer.captured();
        in_a_handler(slot, &|inner| {
            inner.captured();
            assert!(!inner.is_nested() && !slot.word().is_harmless());
            inner.step_out();
            assert!(slot.word().is_harmless());
        });
    }
}
