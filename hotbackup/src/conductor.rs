//! Leads a session from arming to the report.
//!
//! One engine thread, the conductor, owns the tree and talks to the calling thread; copiers do the first copies for
//! it. The steps are in the order of the design: arm, copy, converge, cut, audit, publish.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use regex::bytes::RegexSet;
use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::async_io::Unfollowed;
use crate::backup::{Backup, KeepFree, ManifestPlace, OnUnseenChange, PhaseTimes, Report, Warning};
use crate::beneath::Table;
use crate::converge::Held;
use crate::copier::{Desk, Fault, Manner, Outcome, Side};
use crate::crossings::Quiet;
use crate::destination::{self, Destination};
use crate::error::{Error, Op, Result};
use crate::gate::{Gate, State, Word};
use crate::manifest::Run;
use crate::mappings::Mappings;
use crate::progress::Phase;
use crate::registry::{self, WATCH};
use crate::session::{Caller, Control, Request, full_path};
use crate::streams::Look;
use crate::suspects::Fanotify;
use crate::sys;
use crate::sys::mem::PageBuffer;
use crate::tree::{Name, NoRoom, NodeId, Text, Tree};
use crate::writeout::Disk;

/// How long calls that were under way when the session began are waited for.
const ARM_PATIENCE: Duration = Duration::from_secs(10);

/// How often the bound on the lag is lifted because calls had waited as long as they may, before the session fails.
const STALLS: u32 = 8;

/// How often what moved away from the first walk is looked for before converging does so.
const SEARCHES: u32 = 3;

/// What a session is to do, checked.
pub(crate) struct Plan {
    pub(crate) pairs: Vec<(PathBuf, PathBuf)>,
    pub(crate) exclude: Option<RegexSet>,
    pub(crate) asks_to_exclude: bool,
    pub(crate) max_lag: Option<u64>,
    pub(crate) max_stall: Duration,
    pub(crate) keep_free: KeepFree,
    pub(crate) threads: usize,
    pub(crate) share_blocks: bool,
    pub(crate) manifest: ManifestPlace,
    pub(crate) on_unseen_change: OnUnseenChange,
    pub(crate) calls_before_cut: bool,
}

impl Plan {
    /// Checks what the caller wants, on the calling thread. Changes nothing.
    pub(crate) fn check(wishes: &Backup<'_>) -> Result<Plan> {
        if wishes.pairs.is_empty() {
            return Err(Error::NoSource);
        }
        let exclude = compile(&wishes.exclude)?;
        let mut pairs = Vec::new();
        for (source, destination) in &wishes.pairs {
            let (source, destination) = (resolve_source(source)?, resolve(destination)?);
            if !destination.is_dir() {
                return Err(Error::DestinationNotDirectory { path: destination });
            }
            pairs.push((source, destination));
        }
        check_apart(&pairs)?;
        Ok(Plan {
            pairs,
            exclude,
            asks_to_exclude: wishes.exclude_fn.is_some(),
            max_lag: wishes.max_lag,
            max_stall: wishes.max_stall,
            keep_free: wishes.keep_free,
            threads: wishes.threads,
            share_blocks: wishes.share_blocks,
            manifest: wishes.manifest.clone(),
            on_unseen_change: wishes.on_unseen_change,
            calls_before_cut: wishes.before_cut.is_some(),
        })
    }
}

fn resolve(path: &Path) -> Result<PathBuf> {
    std::fs::canonicalize(path).map_err(|e| Error::io(Op::Resolve, path, e))
}

/// Where a source really is, which has to be a directory.
pub(crate) fn resolve_source(path: &Path) -> Result<PathBuf> {
    let path = resolve(path)?;
    if path.is_dir() { Ok(path) } else { Err(Error::SourceNotDirectory { path }) }
}

fn compile(patterns: &[String]) -> Result<Option<RegexSet>> {
    for pattern in patterns {
        regex::bytes::Regex::new(pattern)
            .map_err(|e| Error::Pattern { pattern: pattern.clone(), reason: e.to_string() })?;
    }
    if patterns.is_empty() {
        return Ok(None);
    }
    RegexSet::new(patterns)
        .map(Some)
        .map_err(|e| Error::Pattern { pattern: patterns.join("|"), reason: e.to_string() })
}

/// Refuses directories that are one, or lie inside each other. The paths are resolved.
fn check_apart(pairs: &[(PathBuf, PathBuf)]) -> Result<()> {
    let id = |path: &Path| {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(path).map(|m| (m.dev(), m.ino())).map_err(|e| Error::io(Op::Examine, path, e))
    };
    for (i, (source, destination)) in pairs.iter().enumerate() {
        for (other_source, _) in pairs {
            if id(other_source)? == id(destination)? {
                return Err(Error::Same { path: destination.clone() });
            }
            if destination.starts_with(other_source) {
                let why = "the backup would copy itself";
                return Err(Error::Nested { inner: destination.clone(), outer: other_source.clone(), why });
            }
            if other_source.starts_with(destination) {
                let why = "the source lies inside the destination";
                return Err(Error::Nested { inner: other_source.clone(), outer: destination.clone(), why });
            }
        }
        for (other_source, other_destination) in &pairs[..i] {
            if id(other_source)? == id(source)? {
                return Err(Error::Repeated { path: source.clone(), role: "a source" });
            }
            if id(other_destination)? == id(destination)? {
                return Err(Error::Repeated { path: destination.clone(), role: "a destination" });
            }
            check_not_nested(source, other_source, "sources must not overlap")?;
            check_not_nested(destination, other_destination, "destinations must not overlap")?;
        }
    }
    Ok(())
}

fn check_not_nested(a: &Path, b: &Path, why: &'static str) -> Result<()> {
    let (inner, outer) = if a.starts_with(b) {
        (a, b)
    } else if b.starts_with(a) {
        (b, a)
    } else {
        return Ok(());
    };
    Err(Error::Nested { inner: inner.to_owned(), outer: outer.to_owned(), why })
}

/// Why a step stopped. Nothing here allocates, for it is also made in the freeze.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// A name leads elsewhere now; what marked its directory will tell where.
    Vanished,
    /// The room reserved for the freeze is used up.
    NoRoom,
    /// A copy stopped.
    Fault(NodeId, Fault),
    /// This try of the cut is given up: the reason is for people.
    Void(&'static str),
    /// A file did not keep still in the freeze.
    Unsteady(NodeId),
    /// A ring of io_uring that cannot be followed was not at rest in the freeze.
    Busy,
    /// The session fails.
    Fatal(Box<Error>),
}

impl From<NoRoom> for Trouble {
    fn from(NoRoom: NoRoom) -> Trouble {
        Trouble::NoRoom
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Trouble {
        Trouble::Fatal(Box::new(error))
    }
}

/// One source and where its copy goes.
pub(crate) struct Pair {
    pub(crate) source: PathBuf,
    pub(crate) root: OwnedFd,
    pub(crate) root_node: NodeId,
    pub(crate) destination: Destination,
    pub(crate) reserve: u64,
    pub(crate) disk: Arc<Disk>,
}

/// All that the conductor works with.
pub(crate) struct Engine<'c> {
    pub(crate) plan: Plan,
    pub(crate) control: Arc<Control>,
    pub(crate) caller: &'c Caller,
    pub(crate) gate: &'static Gate,
    pub(crate) pairs: Vec<Pair>,
    pub(crate) tree: Tree,
    pub(crate) desk: Arc<Desk>,
    pub(crate) held: Held,
    /// Copies that are open until they are synced.
    pub(crate) copies: HashMap<NodeId, OwnedFd>,
    /// Room for one piece of data.
    pub(crate) buffer: PageBuffer,
    /// Room for one path below a root.
    pub(crate) path: Vec<u8>,
    /// Room for one block of directory entries.
    pub(crate) dirents: Vec<std::mem::MaybeUninit<u8>>,
    pub(crate) entries: Vec<(NodeId, Text)>,
    /// Directories found and not yet listed, files found and not yet copied.
    pub(crate) to_list: Vec<NodeId>,
    pub(crate) to_copy: Vec<NodeId>,
    /// How many nodes the first walk has found, when it has ended; files found later that are not copied yet.
    pub(crate) walked: Option<NodeId>,
    pub(crate) new_files: Vec<NodeId>,
    /// The sources are being walked and copied; directories that were marked meanwhile.
    pub(crate) walking: bool,
    pub(crate) put_off: Vec<NodeId>,
    /// Nodes that could not be found where they were seen last.
    pub(crate) lost: Vec<NodeId>,
    /// Directories that were seen at a new place: what was missing below them may be found now.
    pub(crate) moved: Vec<NodeId>,
    /// Files that were marked while a copier had them.
    pub(crate) later: Vec<NodeId>,
    /// Files that may change without a trace.
    pub(crate) suspects: Vec<NodeId>,
    /// Device and inode of the files that the host was seen to use with `O_DIRECT`.
    pub(crate) direct_files: HashSet<(u64, u64)>,
    /// Files that had been changed a moment before they were read, by no captured call, and until when they are young.
    pub(crate) young: Vec<NodeId>,
    pub(crate) young_until: Instant,
    pub(crate) fanotify: Fanotify,
    pub(crate) unfollowed: Unfollowed,
    pub(crate) look: Look,
    pub(crate) mappings: Mappings,
    /// When nobody was inside a captured call last.
    pub(crate) quiet: Quiet,
    table: Table,
    /// Looks at everything so far.
    pub(crate) looks: u32,
    /// Names that the caller wants left out, by directory.
    pub(crate) left_out: HashMap<NodeId, HashSet<Box<[u8]>>>,
    /// A directory has moved below which names are left out: they have to be judged anew.
    pub(crate) judge_anew: bool,
    /// Names found when nobody could be asked whether to leave them out.
    pub(crate) to_ask: Vec<(NodeId, Name)>,
    /// When the gate has to be open again, in nanoseconds of the monotonic clock; 0 outside of the freeze.
    pub(crate) deadline_ns: u64,
    /// `before_cut` was called, and `after_cut` is owed.
    pub(crate) quiesced: bool,
    /// How long the last try of the cut held the program up.
    pub(crate) held_up: Duration,
    pub(crate) recopied: u64,
    /// How often a call of the host had waited as long as it may, and was let go.
    stalls: u32,
    pub(crate) warnings: Vec<Warning>,
    pub(crate) unseen: Vec<PathBuf>,
    /// Places, by directory and index, of names that got a copy of their own because their destinations lie on several
    /// filesystems.
    pub(crate) apart: HashSet<(NodeId, usize)>,
    /// Checksums of files too large to keep one for each block.
    pub(crate) huge: HashMap<NodeId, Vec<Run>>,
    pub(crate) phases: PhaseTimes,
    phase_begun: Instant,
    /// When it is to be looked at next whether the rest fits.
    space_due: Instant,
    /// Since when changes are captured.
    pub(crate) armed: Instant,
    /// Calls that sessions before this one have captured.
    captured_before: u64,
    pub(crate) begun: SystemTime,
}

/// Leads the session; the calling engine thread has nothing of the host's but its memory.
pub(crate) fn run(plan: Plan, control: &Arc<Control>, caller: &Caller) -> Result<Report> {
    let begun = Instant::now();
    let isolate = sys::raw::leave_descriptor_table().and_then(|()| sys::raw::leave_current_directory());
    isolate.map_err(|e| Error::io(Op::StartThread, "the backup", e))?;
    let table = Table::open().map_err(|e| Error::io(Op::StartThread, "the backup", e))?;
    table.use_here();
    let gate = registry::prepare()
        .filter(|_| sys::raw::can_fence() && sys::raw::can_read_paths())
        .ok_or_else(|| Error::io(Op::Arm, "this process", rustix::io::Errno::NOSYS))?;
    let pairs = claim(&plan)?;
    let manner = Manner { digests: plan.manifest != ManifestPlace::None, share_blocks: plan.share_blocks };
    let desk = Desk::new(Arc::clone(control), manner);
    let buffer = PageBuffer::new(crate::copier::PIECE)
        .ok_or_else(|| Error::io(Op::Arm, "this process", rustix::io::Errno::NOMEM))?;
    let mut engine = Engine {
        control: Arc::clone(control),
        caller,
        gate,
        tree: Tree::new(),
        held: Held::new(),
        copies: HashMap::new(),
        buffer,
        path: Vec::with_capacity(1 << 17),
        dirents: vec![std::mem::MaybeUninit::uninit(); 1 << 16],
        entries: Vec::new(),
        to_list: Vec::new(),
        to_copy: Vec::new(),
        walked: None,
        new_files: Vec::new(),
        walking: true,
        put_off: Vec::new(),
        lost: Vec::new(),
        moved: Vec::new(),
        later: Vec::new(),
        suspects: Vec::new(),
        direct_files: HashSet::new(),
        young: Vec::new(),
        young_until: begun,
        fanotify: Fanotify::watch(pairs.iter().map(|pair| pair.root.as_fd())),
        unfollowed: Unfollowed::default(),
        look: Look::new(),
        mappings: Mappings::new(),
        table,
        quiet: Quiet::beginning(),
        looks: 0,
        left_out: HashMap::new(),
        judge_anew: false,
        to_ask: Vec::new(),
        deadline_ns: 0,
        quiesced: false,
        held_up: Duration::ZERO,
        recopied: 0,
        stalls: 0,
        warnings: Vec::new(),
        unseen: Vec::new(),
        apart: HashSet::new(),
        huge: HashMap::new(),
        phases: PhaseTimes::default(),
        phase_begun: begun,
        space_due: begun,
        armed: begun,
        captured_before: 0,
        begun: SystemTime::now(),
        pairs,
        desk,
        plan,
    };
    // Whatever happens in here, the host's calls must not find the gate closed behind us.
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| engine.lead()));
    let outcome = outcome.unwrap_or_else(|_| Err(Error::Defect("the conductor panicked".into())));
    engine.disarm();
    engine.desk.close();
    if outcome.is_err() && engine.tree.len() <= engine.pairs.len() {
        // Nothing was copied: the destinations are left as they were found.
        engine.pairs.drain(..).for_each(|pair| pair.destination.disclaim());
    }
    outcome
}

/// Opens the sources and claims the destinations; all or none.
fn claim(plan: &Plan) -> Result<Vec<Pair>> {
    let mut pairs: Vec<Pair> = Vec::new();
    for (source, destination) in &plan.pairs {
        let opened = (|| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let root =
                openat(CWD, source, flags, Mode::empty()).map_err(|e| Error::io(Op::Open, source, e))?;
            destination::check_empty(destination)?;
            let destination = Destination::claim(destination)?;
            match destination.space(plan.keep_free).and_then(|(_, reserve)| Ok((reserve, destination.dev()?)))
            {
                Ok((reserve, dev)) => {
                    let disk = Disk::among(pairs.iter().map(|pair| &pair.disk), dev);
                    Ok(Pair { source: source.clone(), root, root_node: 0, destination, reserve, disk })
                }
                Err(error) => {
                    destination.disclaim();
                    Err(error)
                }
            }
        })();
        match opened {
            Ok(pair) => pairs.push(pair),
            Err(error) => {
                pairs.into_iter().for_each(|pair| pair.destination.disclaim());
                return Err(error);
            }
        }
    }
    Ok(pairs)
}

/// How long a call of the host waits at most for a question that only we can answer, while we wait for the caller.
pub(crate) const ANSWERING: Duration = Duration::from_millis(20);

impl Engine<'_> {
    fn lead(&mut self) -> Result<Report> {
        self.arm()?;
        self.enter(Phase::Copy);
        self.caller.post(Request::Armed).ok_or(Error::Cancelled)?;
        self.wait_for_caller().ok_or(Error::Cancelled)?;
        let copiers = self
            .desk
            .hire(self.plan.threads, self.table)
            .map_err(|e| Error::io(Op::StartThread, "the copying", e))?;
        let led = self.lead_armed();
        self.desk.close();
        for copier in copiers {
            let _ = copier.join();
        }
        led
    }

    fn lead_armed(&mut self) -> Result<Report> {
        self.note_direct_files();
        self.copy().map_err(|t| self.explain(t))?;
        let unshared = self.desk.unshared.load(Ordering::Relaxed);
        if unshared > 0 {
            self.warn(
                None,
                format!("{unshared} files could not share their blocks with the backup and were copied"),
            );
        }
        self.enter(Phase::Converge);
        let cut = self.converge_and_cut()?;
        self.enter(Phase::Publish);
        self.disarm();
        let manifest = self.publish(&cut)?;
        self.enter(Phase::Done);
        Ok(self.report(&cut, manifest))
    }

    /// Begins to capture: from here on every change of a captured call is marked.
    fn arm(&mut self) -> Result<()> {
        let begun = Instant::now();
        // Whoever still stands inside from the last session must leave before its memory is used anew.
        self.wait_outside(Word::knows_of_a_session, begun)?;
        if !WATCH.reset(self.plan.max_stall) {
            return Err(Error::io(Op::Arm, "this process", rustix::io::Errno::NOMEM));
        }
        if let Some(bound) = self.plan.max_lag {
            WATCH.lag_bound.store(bound, Ordering::SeqCst);
        }
        for index in 0..self.pairs.len() {
            self.admit_root(index)?;
        }
        self.quiet = Quiet::beginning();
        self.captured_before = registry::captured_calls();
        self.gate.set(State::Open);
        let not_yet_captured = |word: Word| word.0 & Word::CAPTURED == 0;
        self.wait_outside(not_yet_captured, begun)?;
        if registry::SLOTLESS.load(Ordering::Relaxed) {
            return Err(Error::io(Op::Arm, "every thread of this process", rustix::io::Errno::NOMEM));
        }
        self.armed = Instant::now();
        self.look_at_mappings().map_err(|t| self.explain(t))?;
        self.take_up_rings()
    }

    fn wait_outside(&self, matters: impl Fn(Word) -> bool, since: Instant) -> Result<()> {
        let expired = || since.elapsed() > ARM_PATIENCE || self.control.is_cancelled();
        registry::wait_until_outside(matters, expired).map_err(|inside| {
            if self.control.is_cancelled() {
                return Error::Cancelled;
            }
            let what = match (inside.word.as_descriptor(), inside.word.as_path()) {
                (Some(fd), _) => format!("descriptor {fd}"),
                (_, Some(_)) => "a path".to_owned(),
                _ => "a ring of asynchronous requests".to_owned(),
            };
            Error::NotArmed { thread: inside.tid, what }
        })
    }

    /// Ends the capture. Calls that are inside go on and mark what nobody reads any more.
    fn disarm(&mut self) {
        if self.gate.state() != State::Idle {
            self.gate.set(State::Idle);
        }
        WATCH.lag_bound.store(u64::MAX, Ordering::SeqCst);
        WATCH.relieve();
        self.mappings.release();
    }

    pub(crate) fn enter(&mut self, phase: Phase) {
        let mut meter = self.control.meter.lock();
        let time = self.phase_begun.elapsed();
        match meter.phase {
            Phase::Prepare => self.phases.prepare += time,
            Phase::Copy => self.phases.copy += time,
            Phase::Converge => self.phases.converge += time,
            Phase::Cut => self.phases.cut += time,
            Phase::Audit => self.phases.audit += time,
            Phase::Publish | Phase::Done => self.phases.publish += time,
        }
        meter.phase = phase;
        self.phase_begun = Instant::now();
    }

    /// Fails if the session is to end, or a call of the host had to wait too long.
    pub(crate) fn check(&mut self) -> Result<(), Trouble> {
        self.meet_rings();
        let stalled = WATCH.stalled_ns.swap(0, Ordering::Relaxed);
        let lag = WATCH.ledger.lag();
        let glides = self.plan.max_lag.is_none() || WATCH.lag_floor.load(Ordering::Relaxed) != 0;
        if stalled != 0 && glides && self.stalls < STALLS {
            // The destination was slow for a while: the bound glides down once more.
            self.stalls += 1;
            let most = self.plan.max_lag.unwrap_or(u64::MAX);
            WATCH.lag_bound.store(lag.max(crate::cut::LITTLE).min(most), Ordering::SeqCst);
        } else if stalled != 0 {
            let (waited, limit) = (Duration::from_nanos(stalled), self.plan.max_stall);
            return Err(Error::Stalled { waited, limit }.into());
        }
        if self.control.is_cancelled() {
            return Err(Error::Cancelled.into());
        }
        Ok(())
    }

    /// The error that a trouble outside of the freeze amounts to.
    pub(crate) fn explain(&self, trouble: Trouble) -> Error {
        match trouble {
            Trouble::Fatal(error) => *error,
            Trouble::Fault(_, Fault::Interrupted) => Error::Cancelled,
            Trouble::Fault(id, Fault::Full) => self.no_space(id),
            Trouble::Fault(_, Fault::Defect) => Error::Defect("a copier panicked".into()),
            Trouble::Fault(id, Fault::Sys { op, side, errno }) => {
                Error::io(op, self.path_of(id, side), errno)
            }
            Trouble::Vanished => Error::Defect("a name could not be found again".into()),
            Trouble::NoRoom => Error::io(Op::Arm, "every file", rustix::io::Errno::NOMEM),
            Trouble::Void(reason) => Error::NoCut { attempts: 0, reason: reason.into() },
            Trouble::Unsteady(id) => self.unsteady(id),
            Trouble::Busy => crate::async_io::never_at_rest(),
        }
    }

    fn no_space(&self, id: NodeId) -> Error {
        let pair = &self.pairs[self.tree.get(id).map_or(0, |node| node.pair as usize)];
        let (free, reserve) = pair.destination.space(self.plan.keep_free).unwrap_or((0, pair.reserve));
        let meter = self.control.meter.lock();
        Error::NoSpace {
            path: pair.destination.path.clone(),
            needed: meter.bytes_total.saturating_sub(meter.bytes_done),
            available: free.saturating_sub(reserve),
            reserve,
        }
    }

    /// The path of a node, for people.
    pub(crate) fn path_of(&self, id: NodeId, side: Side) -> PathBuf {
        let pair = &self.pairs[self.tree.pair_of(id)];
        let root = match side {
            Side::Source => &pair.source,
            Side::Destination => &pair.destination.path,
        };
        full_path(root, &self.tree.display_path(id))
    }

    pub(crate) fn warn(&mut self, path: Option<PathBuf>, text: impl Into<String>) {
        self.warnings.push(Warning { path, text: text.into() });
    }

    /// Walks the sources and copies every file once. What comes into being behind the walk is left to converging, or
    /// this would not end while files keep coming.
    fn copy(&mut self) -> Result<(), Trouble> {
        let mut searches = 0;
        loop {
            self.check()?;
            self.collect(None)?;
            if let Some(directory) = self.to_list.pop() {
                self.list_first(directory)?;
            }
            if self.to_list.is_empty() && self.walked.is_none() {
                self.walked = Some(self.tree.len() as NodeId);
            }
            self.hand_out()?;
            self.heed_fanotify();
            self.note_mappings();
            if self.plan.max_lag.is_some() {
                self.tree.compact();
                self.settle_queue()?;
            }
            if self.to_list.is_empty() && self.to_copy.is_empty() && self.desk.is_idle() {
                if self.lost.is_empty() || searches == SEARCHES {
                    break;
                }
                // What moved away from the walk is found again through the marks of its directories.
                searches += 1;
                self.end_walk();
                self.settle_queue()?;
                self.walking = true;
                continue;
            }
            if self.to_list.is_empty() || self.desk.is_full() {
                let wait = if self.plan.max_lag.is_some() { 1 } else { 20 };
                self.collect(Some(Duration::from_millis(wait)))?;
            }
            if self.to_list.is_empty() && Instant::now() >= self.space_due {
                self.check_space()?;
            }
        }
        self.to_copy.append(&mut self.new_files);
        self.end_walk();
        Ok(())
    }

    /// Refuses as soon as it is known that the rest does not fit. Shared blocks take no room now, but the reserve has to be
    /// there: overwriting them takes room later.
    ///
    /// It looks at all that waits to be copied, so the next time is due when this one is a small part of what was done meanwhile.
    fn check_space(&mut self) -> Result<(), Trouble> {
        let begun = Instant::now();
        for index in 0..self.pairs.len() {
            let pair = &self.pairs[index];
            let (free, reserve) = pair.destination.space(self.plan.keep_free)?;
            let owed = if self.plan.share_blocks { 0 } else { self.owed_by(index) };
            if (owed > 0 || self.plan.share_blocks) && free < owed.saturating_add(reserve) {
                let available = free.saturating_sub(reserve);
                let path = pair.destination.path.clone();
                return Err(Error::NoSpace { path, needed: owed, available, reserve }.into());
            }
        }
        self.space_due = Instant::now() + (begun.elapsed() * 100).min(Duration::from_secs(1));
        Ok(())
    }

    /// Allocated bytes of the files of a pair that are not begun.
    fn owed_by(&self, pair: usize) -> u64 {
        let nodes = self.to_copy.iter().map(|&id| self.tree.node(id));
        nodes.filter(|node| node.pair as usize == pair).map(|node| node.attributes.allocated()).sum()
    }

    /// Takes over what the copiers have finished.
    pub(crate) fn collect(&mut self, wait: Option<Duration>) -> Result<(), Trouble> {
        let mut outcomes = Vec::new();
        self.desk.collect(wait, &mut outcomes);
        for (id, outcome) in outcomes {
            match outcome {
                Outcome::Finished(finished) => self.accept(id, finished)?,
                Outcome::Vanished => self.give_up_for_now(id),
                Outcome::Failed(fault) => return Err(Trouble::Fault(id, fault)),
            }
        }
        Ok(())
    }

    fn report(&self, cut: &crate::cut::Cut, manifest: Option<PathBuf>) -> Report {
        let live = || self.tree.ids().map(|id| self.tree.node(id)).filter(|node| node.wanted);
        Report {
            files: live().filter(|node| node.is_file()).count() as u64,
            directories: live().filter(|node| node.is_directory()).count() as u64,
            bytes_copied: self.desk.written.load(Ordering::Relaxed),
            bytes_recopied: self.recopied,
            cut: cut.instant,
            freeze: cut.freeze,
            cut_attempts: cut.attempts,
            captured_calls: registry::captured_calls().wrapping_sub(self.captured_before),
            phases: self.phases,
            unseen: self.unseen.clone(),
            warnings: self.warnings.clone(),
            manifest,
        }
    }
}
