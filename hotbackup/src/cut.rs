//! The cut: converge until little is left, close the gate, copy the rest, open it, and audit.
//!
//! Between closing and opening nothing is allocated from the host, nothing is logged, nobody is called, and no lock is
//! taken: a thread that waits at the gate may hold any of them. A try that does not end in time is given up, by the
//! engine or by the first waiter that passes the deadline, and the next one needs less to be left.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use crate::async_io;
use crate::backup::OnUnseenChange;
use crate::conductor::{ANSWERING, Engine, Trouble};
use crate::converge::PER_FILE;
use crate::copier::{self, Fault, Side};
use crate::error::{Error, Result};
use crate::extents;
use crate::gate::State;
use crate::intercept;
use crate::progress::Phase;
use crate::registry::{self, WATCH};
use crate::session::Request;
use crate::sys;
use crate::tree::{Copy, NodeId};

/// What may be left to copy when the gate closes, at first.
pub(crate) const LITTLE: u64 = 2 << 20;
/// How long the gate is closed at most, unless `max_stall` is less.
const FREEZE: Duration = Duration::from_millis(500);
/// Tries of the cut before the session fails.
const ATTEMPTS: u32 = 12;
/// List entries that one freeze may add.
const ROOM: usize = 4096;
/// How often the stores to mapped files are looked at and copied before the freeze is to copy them.
const SCANS: u32 = 4;
/// How often a file that someone else writes is read in the freeze until it keeps still.
const READS: u32 = 5;

/// The instant that the backup shows.
pub(crate) struct Cut {
    pub(crate) instant: SystemTime,
    pub(crate) freeze: Duration,
    pub(crate) attempts: u32,
}

impl Engine<'_> {
    /// Converges, cuts and audits until a cut has been found right.
    pub(crate) fn converge_and_cut(&mut self) -> Result<Cut> {
        self.to_copy.iter().for_each(|&id| self.owe(id));
        let cut = self.cut_until_right();
        if self.quiesced {
            // What `before_cut` took has to be given back, also if there was no cut.
            let _ = self.caller.post(Request::AfterCut).and_then(|()| self.wait_for_caller());
        }
        cut
    }

    fn cut_until_right(&mut self) -> Result<Cut> {
        let mut little = LITTLE;
        let mut reason = String::new();
        // Whether the last try failed because of a file that something unseen changes, or of a ring that is not followed.
        let (mut is_of_file, mut is_of_ring) = (false, false);
        // Tries behind which a change was found that nobody saw, and in which a file did not keep still.
        let (mut caught, mut unsteady) = (0, 0);
        for attempts in 1..=ATTEMPTS {
            self.approach(little)?;
            self.enter(Phase::Cut);
            match self.try_cut(little) {
                Ok((instant, freeze)) => {
                    let unseen = self.audit_behind_cut()?;
                    self.look_for_rings()?;
                    let missed = intercept::prove_again()?;
                    let is_right = unseen.is_empty() && !self.fanotify.overflowed;
                    caught += u32::from(!is_right);
                    (is_of_file, is_of_ring) = (!unseen.is_empty(), false);
                    match if is_right { None } else { self.distrust(&unseen, caught)? } {
                        Some(why) => reason = why,
                        None if missed => {
                            reason =
                                "libraries were loaded whose calls are not captured from the first on".into()
                        }
                        None if self.missed_ring_files()? => {
                            reason = "a ring of io_uring turned out to be one that cannot be followed".into();
                        }
                        None => {
                            self.ask_about_new()?;
                            self.warn_of_rings();
                            return Ok(Cut { instant, freeze, attempts });
                        }
                    }
                }
                Err(Trouble::Fatal(error)) => return Err(*error),
                Err(Trouble::Fault(id, fault @ (Fault::Sys { .. } | Fault::Full | Fault::Defect))) => {
                    return Err(self.explain(Trouble::Fault(id, fault)));
                }
                Err(trouble) => {
                    reason = self.describe(&trouble);
                    (is_of_file, is_of_ring) = (false, matches!(trouble, Trouble::Busy));
                    if let Trouble::Unsteady(id) | Trouble::Fault(id, Fault::Interrupted) = trouble
                        && self.tree.node(id).suspect
                    {
                        unsteady += 1;
                        is_of_file = true;
                        self.give_way(id, unsteady)?;
                    }
                    self.settle_what_is_owed().map_err(|t| self.explain(t))?;
                    self.give_time(self.held_up).map_err(|t| self.explain(t))?;
                }
            }
            self.check().map_err(|t| self.explain(t))?;
            little = (little / 2).max(64 << 10);
        }
        // The file that is to blame is named where it is known.
        if is_of_ring {
            return Err(async_io::never_at_rest());
        }
        Err(match self.unseen.last().filter(|_| is_of_file) {
            Some(path) => Error::Unseen { path: path.clone(), by: reason },
            None => Error::NoCut { attempts: ATTEMPTS, reason },
        })
    }

    /// Has calls wait while more than so much is owed that it would not become little: from what is owed now the bound
    /// glides down to there. A caller's bound holds besides.
    fn bound_lag(&self, little: u64) {
        let floor = little - little / 4;
        let most = self.plan.max_lag.unwrap_or(u64::MAX);
        if most > floor {
            WATCH.lag_floor.store(floor, Ordering::SeqCst);
            WATCH.lag_bound.store(WATCH.ledger.lag().clamp(floor, most), Ordering::SeqCst);
        } else {
            WATCH.lag_floor.store(0, Ordering::SeqCst);
            WATCH.lag_bound.store(most, Ordering::SeqCst);
        }
    }

    /// Does what can be done before a try of the cut. Nobody waits for what is owed, but for a caller's bound, before that is worked
    /// off without a pause: to look through what all processes have open takes tens of milliseconds.
    fn approach(&mut self, little: u64) -> Result<()> {
        self.enter(Phase::Converge);
        WATCH.lag_floor.store(0, Ordering::SeqCst);
        WATCH.lag_bound.store(self.plan.max_lag.unwrap_or(u64::MAX), Ordering::SeqCst);
        WATCH.relieve();
        self.look_at_mappings().map_err(|t| self.explain(t))?;
        self.suspect_writers()?;
        self.suspect_streams().map_err(|t| self.explain(t))?;
        self.name_streams();
        self.warn_of_mappings();
        self.note_direct_files();
        self.fanotify.overflowed = false;
        self.outgrow().and_then(|()| self.settle_rings()).map_err(|t| self.explain(t))?;
        self.look_for_rings()?;
        self.rest_rings().map_err(|t| self.explain(t))?;
        intercept::prove_again()?;
        self.bound_lag(little);
        self.converge(little).map_err(|t| self.explain(t))?;
        if self.plan.calls_before_cut && !self.quiesced {
            self.quiesced = true;
            self.quiesce(little)?;
        }
        Ok(())
    }

    /// Has `after_cut` called, and audits meanwhile. Returns what was changed unseen.
    fn audit_behind_cut(&mut self) -> Result<Vec<NodeId>> {
        self.quiesced = false;
        // Behind the cut nothing is worked off, so nobody may wait for it.
        WATCH.lag_bound.store(u64::MAX, Ordering::SeqCst);
        WATCH.relieve();
        self.caller.post(Request::AfterCut).ok_or(Error::Cancelled)?;
        let unseen = self.audit_all();
        // A call that waits for the audit may hold a lock that `after_cut` wants.
        self.gate.set(State::Open);
        self.wait_for_caller().ok_or(Error::Cancelled)?;
        unseen
    }

    /// Waits until the caller has done what it was asked for, which may wait for a lock that a call holds that asks us: see
    /// [`Engine::meet_rings`]. `None` if it was cancelled.
    pub(crate) fn wait_for_caller(&self) -> Option<()> {
        while !self.caller.wait_at_most(ANSWERING)? {
            self.meet_rings();
        }
        Some(())
    }

    fn describe(&self, trouble: &Trouble) -> String {
        match trouble {
            Trouble::Void(reason) => (*reason).to_owned(),
            Trouble::Busy => "a ring of io_uring did not come to rest".into(),
            Trouble::NoRoom => "more changed in the freeze than there was room for".into(),
            Trouble::Unsteady(id) => {
                format!("{} did not keep still", self.path_of(*id, Side::Source).display())
            }
            Trouble::Fault(id, Fault::Interrupted) => {
                format!("the rest of {} took too long to copy", self.path_of(*id, Side::Source).display())
            }
            _ => "a name could not be found again".into(),
        }
    }

    /// Has `before_cut` called while the session goes on converging: what is written in it is captured.
    fn quiesce(&mut self, little: u64) -> Result<()> {
        self.caller.post(Request::BeforeCut).ok_or(Error::Cancelled)?;
        while !self.caller.answered().ok_or(Error::Cancelled)? {
            self.check().map_err(|t| self.explain(t))?;
            self.converge_once().map_err(|t| self.explain(t))?;
        }
        self.rest_rings().and_then(|()| self.converge(little)).map_err(|t| self.explain(t))
    }

    /// Has files read again that had been changed by something unseen a moment before they were read: the bytes of such
    /// a change may have landed behind the read, and its times do not tell.
    fn outgrow(&mut self) -> Result<(), Trouble> {
        while !self.young.is_empty() && Instant::now() < self.young_until {
            self.check()?;
            self.converge_once()?;
        }
        for id in std::mem::take(&mut self.young) {
            if self.mappings.watches(self.tree.node(id).marks) {
                // The stores to it tell of themselves.
                continue;
            }
            if self.plan.on_unseen_change == OnUnseenChange::Fail && self.is_changed_unseen(id)? {
                return Err(Trouble::Unsteady(id));
            }
            self.tree.node(id).marks.mark_all(&WATCH.ledger);
        }
        Ok(())
    }

    /// Works off the marks until at most `little` is left.
    fn converge(&mut self, little: u64) -> Result<(), Trouble> {
        let mut scans = 0;
        loop {
            self.check()?;
            while self.control.limiter.is_paused() {
                self.check()?;
                self.converge_once()?;
            }
            let idle = !self.converge_once()?;
            let lag = WATCH.ledger.lag();
            {
                let mut meter = self.control.meter.lock();
                meter.lag = lag;
                meter.bytes_recopied = self.recopied;
            }
            if self.to_list.is_empty() && self.to_copy_is_little(little) && (idle || lag <= little) {
                scans += 1;
                if scans > SCANS || !self.owes_stores(little)? {
                    return Ok(());
                }
            }
        }
    }

    /// Marks what was stored to mapped files; whether that is more than can be left to the freeze.
    fn owes_stores(&mut self, little: u64) -> Result<bool, Trouble> {
        self.mark_stores()?;
        Ok(self.owes_more(little))
    }

    /// Whether more is owed than can be left to the freeze, by what the engine itself has marked just now: whoever makes a captured
    /// call is not to wait for all of that at once.
    fn owes_more(&self, little: u64) -> bool {
        let owes = WATCH.ledger.lag() > little;
        if owes && WATCH.lag_floor.load(Ordering::Relaxed) != 0 {
            self.bound_lag(little);
        }
        owes
    }

    /// Whether the files that wait to be copied can be left to the freeze, because they are part of the lag.
    fn to_copy_is_little(&self, little: u64) -> bool {
        let few = self.to_copy.len() as u64 * PER_FILE <= little;
        let is_large = |&id: &NodeId| copier::is_large(&self.tree.node(id).attributes);
        self.to_copy.is_empty() || self.counts_new_files() && few && !self.to_copy.iter().any(is_large)
    }

    /// One round; false if there was nothing to do.
    pub(crate) fn converge_once(&mut self) -> Result<bool, Trouble> {
        self.tree.compact();
        self.heed_fanotify();
        self.note_mappings();
        self.ask_again();
        let settled = self.settle_queue()?;
        let copied = self.copy_found()?;
        if settled || copied {
            return Ok(true);
        }
        if WATCH.waiters.load(Ordering::SeqCst) > 0 {
            self.settle_what_is_owed()?;
        }
        self.rest(Duration::from_micros(200));
        Ok(false)
    }

    /// Closes the gate, copies what is left, opens it. Returns the instant and how long the gate was closed.
    fn try_cut(&mut self, little: u64) -> Result<(SystemTime, Duration), Trouble> {
        self.uncross()?;
        self.owes_more(little);
        self.converge(little)?;
        self.make_room();
        let begun = Instant::now();
        let ticket = self.close_gate();
        let done = self.freeze();
        let instant = SystemTime::now();
        let opened = self.gate.open_from(ticket, if done.is_ok() { State::Audit } else { State::Open });
        let freeze = begun.elapsed();
        self.held_up = freeze;
        self.deadline_ns = 0;
        self.tree.release();
        done?;
        if !opened {
            return Err(Trouble::Void("a call of the program had waited for as long as it may"));
        }
        Ok((instant, freeze))
    }

    /// Closes the gate and notes when it has to be open again. Returns the ticket to open it with.
    pub(crate) fn close_gate(&mut self) -> u32 {
        let budget = FREEZE.min(self.plan.max_stall);
        let budget_ns = u64::try_from(budget.as_nanos()).unwrap_or(u64::MAX);
        let deadline_ns = sys::raw::monotonic_ns() + budget_ns;
        WATCH.freeze_deadline_ns.store(deadline_ns, Ordering::Release);
        self.deadline_ns = deadline_ns - budget_ns / 20;
        self.gate.set(State::Closed);
        self.gate.ticket()
    }

    /// Lets the program run for as long as it has just been held up, and works off marks meanwhile.
    fn give_time(&mut self, held: Duration) -> Result<(), Trouble> {
        let begun = Instant::now();
        while begun.elapsed() < held {
            self.check()?;
            self.converge_once()?;
        }
        Ok(())
    }

    /// Reserves everything that the freeze may add to.
    fn make_room(&mut self) {
        let longest = self.tree.ids().map(|id| self.tree.node(id)).filter(|node| node.is_directory());
        let longest = longest.map(|node| self.tree.entries(node.marks.node())).max().unwrap_or(0);
        self.entries.clear();
        self.entries.reserve(longest + ROOM);
        // A whole first walk's have waited there.
        self.to_copy.shrink_to(0);
        for list in [&mut self.to_list, &mut self.to_copy, &mut self.lost, &mut self.later, &mut self.moved] {
            list.reserve(ROOM);
        }
        self.to_ask.reserve(ROOM);
        self.suspects.reserve(ROOM);
        self.look.make_room(ROOM);
        self.mappings.make_room();
        self.tree.fix();
    }

    /// What is done while the gate is closed.
    fn freeze(&mut self) -> Result<(), Trouble> {
        let deadline = self.deadline_ns;
        let expired = || sys::raw::monotonic_ns() >= deadline;
        registry::wait_until_outside(registry::changes_files, expired)
            .map_err(|_| Trouble::Void("a call of the program did not return in time"))?;
        if registry::SLOTLESS.load(Ordering::Relaxed) {
            return Err(Trouble::Void("a thread of the program cannot be waited for: there are too many"));
        }
        WATCH.generation.fetch_add(1, Ordering::SeqCst);
        self.land_writes()?;
        self.await_rest()?;
        self.mark_stores()?;
        self.settle_all()?;
        while self.uncross_frozen()? {
            self.settle_all()?;
        }
        self.suspect_streams()?;
        let mut index = 0;
        while let Some(&id) = self.suspects.get(index) {
            self.copy_suspect(id)?;
            index += 1;
        }
        self.settle_all()?;
        if WATCH.ledger.lag() > 0 {
            // What is marked is queued, so there is nothing, or the end of a request that two threads have marked. But no cut counts
            // in which something may be missing.
            return Err(Trouble::Void("what was marked was not all copied"));
        }
        self.settle_mapped()?;
        self.copy_ring_files()
    }

    pub(crate) fn settle_all(&mut self) -> Result<(), Trouble> {
        loop {
            let settled = self.settle_queue()?;
            let copied = self.copy_found()?;
            if !settled && !copied {
                return Ok(());
            }
            if sys::raw::monotonic_ns() >= self.deadline_ns {
                return Err(Trouble::Void("what was left to copy took too long"));
            }
        }
    }

    /// Reads a file whole that may change without a trace, until two looks at it agree.
    pub(crate) fn copy_suspect(&mut self, id: NodeId) -> Result<(), Trouble> {
        let node = self.tree.node(id);
        if node.replaced || node.excluded || node.conceded || !node.is_file() {
            return Ok(());
        }
        let marks = node.marks;
        let fails = self.plan.on_unseen_change == OnUnseenChange::Fail;
        // Every captured change is dealt with.
        if fails && node.copy == Copy::Done && self.stamp_now(id).is_ok_and(|now| now != marks.stamp()) {
            return Err(Trouble::Unsteady(id));
        }
        for _ in 0..READS {
            marks.mark_all(&WATCH.ledger);
            marks.mark_flags(&WATCH.ledger, extents::ATTRIBUTES);
            self.settle_all()?;
            match self.stamp_now(id) {
                Ok(now) if now == marks.stamp() => {
                    // Read whole, and the same before and behind: what it becomes later is no concern of this cut.
                    marks.set_audited(WATCH.generation.load(Ordering::SeqCst), false);
                    return Ok(());
                }
                Err(Trouble::Vanished) => return Ok(()),
                Ok(_) => {}
                Err(trouble) => return Err(trouble),
            }
        }
        Err(Trouble::Unsteady(id))
    }
}
