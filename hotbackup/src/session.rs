//! A running backup, seen from the host: the thread that waits for it and calls back, and handles for other threads.
//!
//! Engine threads ask for callbacks through a channel; the thread inside [`Session::finish`] answers. Nothing here is
//! used while the gate is closed.

use std::cell::Cell;
use std::fmt;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::backup::{Backup, Report};
use crate::conductor;
use crate::error::{Error, Op, Result};
use crate::intercept;
use crate::progress::{Pace, Phase, Progress};
use crate::sys;
use crate::throttle::{Limiter, Throttle};

/// How often a progress callback is called at least while work goes on.
const TICK: Duration = Duration::from_millis(50);

/// The process that has a session; 0 is none. A forked child finds its parent's number, and has no session.
static OWNER: AtomicU32 = AtomicU32::new(0);

/// The session of the process [`OWNER`].
static CURRENT: Mutex<Option<Arc<Control>>> = Mutex::new(None);

/// Makes `control` the session of this process, if it has none. A child that was forked while its parent had one is
/// refused for good: it has inherited locks and lists of waiting threads that nobody will ever tidy up.
fn take_turn(control: &Arc<Control>) -> Result<()> {
    if OWNER.compare_exchange(0, sys::raw::getpid(), Ordering::SeqCst, Ordering::SeqCst).is_err() {
        return Err(Error::Busy);
    }
    *CURRENT.lock() = Some(Arc::clone(control));
    Ok(())
}

/// What engine threads, the calling thread and handles share.
pub(crate) struct Control {
    pub(crate) limiter: Limiter,
    pub(crate) meter: Mutex<Progress>,
    pace: Mutex<Pace>,
    cancelled: AtomicBool,
    /// The phase that was logged last.
    told: AtomicU8,
    begun: Instant,
    /// `Some` once the session has ended: whether it succeeded.
    ended: Mutex<Option<bool>>,
    has_ended: Condvar,
}

impl Control {
    fn new(throttle: Throttle) -> Control {
        Control {
            limiter: Limiter::new(throttle),
            meter: Mutex::new(Progress::default()),
            pace: Mutex::new(Pace::default()),
            cancelled: AtomicBool::new(false),
            told: AtomicU8::new(u8::MAX),
            begun: Instant::now(),
            ended: Mutex::new(None),
            has_ended: Condvar::new(),
        }
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    fn progress(&self) -> Progress {
        let mut progress = self.meter.lock().clone();
        progress.elapsed = self.begun.elapsed();
        self.pace.lock().estimate(&mut progress);
        progress
    }

    fn end(&self, success: bool) {
        let mut ended = self.ended.lock();
        if ended.is_none() {
            *ended = Some(success);
            *CURRENT.lock() = None;
            OWNER.store(0, Ordering::SeqCst);
        }
        self.has_ended.notify_all();
    }
}

/// What an engine thread asks of the calling thread.
pub(crate) enum Request {
    /// Capture is armed; copy when told to.
    Armed,
    /// Call `before_cut`.
    BeforeCut,
    /// Call `after_cut`.
    AfterCut,
    /// Is this source path to be left out?
    LeaveOut(PathBuf),
}

/// The engine's end of the conversation with the calling thread.
pub(crate) struct Caller {
    requests: Sender<Request>,
    answers: Receiver<bool>,
    /// A posted request has not been answered yet: the next answer is that one's.
    posted: Cell<bool>,
}

impl Caller {
    /// Has the calling thread deal with `request`; `None` if it is gone (the session was dropped).
    pub(crate) fn ask(&self, request: Request) -> Option<bool> {
        debug_assert!(!self.is_busy(), "the answer would be that to another request");
        self.requests.send(request).ok()?;
        self.answers.recv().ok()
    }

    /// Hands `request` to the calling thread and does not wait for its answer: see [`Caller::answered`].
    pub(crate) fn post(&self, request: Request) -> Option<()> {
        self.requests.send(request).ok()?;
        self.posted.set(true);
        Some(())
    }

    /// Whether a posted request is being dealt with, so that nothing can be asked.
    pub(crate) fn is_busy(&self) -> bool {
        self.posted.get()
    }

    /// Whether the request posted last was dealt with; `None` if the calling thread is gone.
    pub(crate) fn answered(&self) -> Option<bool> {
        match self.answers.try_recv() {
            Ok(_) => {
                self.posted.set(false);
                Some(true)
            }
            Err(std::sync::mpsc::TryRecvError::Empty) => Some(false),
            Err(std::sync::mpsc::TryRecvError::Disconnected) => None,
        }
    }

    /// Waits until the request posted last was dealt with, for `time` at most; false if it was not. `None` if the calling thread
    /// is gone.
    pub(crate) fn wait_at_most(&self, time: Duration) -> Option<bool> {
        match self.answers.recv_timeout(time) {
            Ok(_) => {
                self.posted.set(false);
                Some(true)
            }
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => Some(false),
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => None,
        }
    }
}

/// A running session; changes are captured since it was made.
///
/// Dropping it cancels the session and waits until its threads have ended.
pub struct Session<'a> {
    control: Arc<Control>,
    wishes: Backup<'a>,
    requests: Receiver<Request>,
    answers: Option<Sender<bool>>,
    lead: Option<std::thread::JoinHandle<Result<Report>>>,
}

/// A handle on a session for other threads. It stays valid, and does nothing, once the session has ended.
#[derive(Clone)]
pub struct SessionHandle {
    control: Arc<Control>,
}

impl<'a> Session<'a> {
    pub(crate) fn start(mut wishes: Backup<'a>) -> Result<Session<'a>> {
        let control = Arc::new(Control::new(wishes.throttle));
        tell(&control, &mut wishes)?;
        take_turn(&control)?;
        let checked = conductor::Plan::check(&wishes).and_then(|plan| intercept::prove().map(|()| plan));
        let plan = checked.inspect_err(|_| control.end(false))?;
        let (requests_in, requests) = channel();
        let (answers, answers_in) = channel();
        let caller = Caller { requests: requests_in, answers: answers_in, posted: Cell::new(false) };
        // The engine asks again and heeds the answer. While the caller is the only thread, the first time costs nothing; later the
        // kernel waits for all processors (10 to 30 ms were seen).
        let _ = sys::raw::can_fence();
        let lead = sys::thread::spawn("hotbackup", {
            let control = Arc::clone(&control);
            move || conductor::run(plan, &control, &caller)
        });
        let lead = lead.map_err(|e| {
            control.end(false);
            Error::io(Op::StartThread, "the backup", e)
        })?;
        let mut session = Session { control, wishes, requests, answers: Some(answers), lead: Some(lead) };
        loop {
            match session.requests.recv_timeout(TICK) {
                Ok(Request::Armed) => return Ok(session),
                Err(RecvTimeoutError::Timeout) => session.tell(),
                _ => return Err(session.join().err().unwrap_or(Error::Cancelled)),
            }
        }
    }

    /// Tells the progress callback where the session stands, and cancels it if that is what it wants.
    fn tell(&mut self) {
        if !self.control.is_cancelled() && tell(&self.control, &mut self.wishes).is_err() {
            self.control.cancelled.store(true, Ordering::Relaxed);
        }
    }

    /// A handle for other threads.
    pub fn handle(&self) -> SessionHandle {
        SessionHandle { control: Arc::clone(&self.control) }
    }

    /// Copies, converges, cuts, publishes; returns when the backup is complete and synced, or has failed.
    ///
    /// # Errors
    /// What stood in the way. The destination is then marked as incomplete, and the program goes on as if nothing had
    /// been.
    pub fn finish(mut self) -> Result<Report> {
        self.tell();
        self.answer(true);
        loop {
            match self.requests.recv_timeout(TICK) {
                Ok(Request::Armed) => self.answer(true),
                Ok(Request::BeforeCut) => {
                    if let Some(call) = &mut self.wishes.before_cut {
                        call();
                    }
                    self.answer(true);
                }
                Ok(Request::AfterCut) => {
                    if let Some(call) = &mut self.wishes.after_cut {
                        call();
                    }
                    self.answer(true);
                }
                Ok(Request::LeaveOut(path)) => {
                    let out = self.wishes.exclude_fn.as_mut().is_some_and(|leave_out| leave_out(&path));
                    self.answer(out);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.tell();
        }
        let outcome = self.join();
        if outcome.is_ok() {
            let _ = tell(&self.control, &mut self.wishes);
        }
        outcome
    }

    fn answer(&self, answer: bool) {
        if let Some(answers) = &self.answers {
            let _ = answers.send(answer);
        }
    }

    fn join(&mut self) -> Result<Report> {
        self.answers = None;
        let outcome = match self.lead.take().map(std::thread::JoinHandle::join) {
            Some(Ok(outcome)) => outcome,
            Some(Err(_)) => Err(Error::Defect("the conductor panicked".into())),
            None => Err(Error::Cancelled),
        };
        self.control.meter.lock().phase = Phase::Done;
        self.control.end(outcome.is_ok());
        outcome
    }
}

/// Tells the progress callback where the session stands; an error if it wants the session to end.
///
/// Events are emitted here and not on engine threads: what a subscriber writes on this thread is captured.
fn tell(control: &Control, wishes: &mut Backup<'_>) -> Result<()> {
    let progress = control.progress();
    if control.told.swap(progress.phase as u8, Ordering::Relaxed) != progress.phase as u8 {
        tracing::debug!(phase = progress.phase.name(), bytes_done = progress.bytes_done, lag = progress.lag);
    }
    let Some(on_progress) = &mut wishes.on_progress else {
        return Ok(());
    };
    match on_progress(&progress) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Cancelled),
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        if self.lead.is_some() {
            self.control.cancelled.store(true, Ordering::Relaxed);
            let _ = self.join();
        }
    }
}

impl fmt::Debug for Session<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("progress", &self.control.progress()).finish_non_exhaustive()
    }
}

impl SessionHandle {
    /// Where the session stands now.
    pub fn progress(&self) -> Progress {
        self.control.progress()
    }

    /// Changes the rate of the copying at once. [`Throttle::PAUSED`] pauses it while capture goes on.
    pub fn set_throttle(&self, throttle: Throttle) {
        self.control.limiter.set(throttle);
    }

    /// Ends the session soon; [`Session::finish`] then returns [`Error::Cancelled`].
    pub fn cancel(&self) {
        self.control.cancelled.store(true, Ordering::Relaxed);
    }

    /// Waits until the session has ended; true if the backup is complete.
    pub fn wait(&self) -> bool {
        let mut ended = self.control.ended.lock();
        loop {
            if let Some(success) = *ended {
                return success;
            }
            self.control.has_ended.wait(&mut ended);
        }
    }
}

impl fmt::Debug for SessionHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionHandle").field("progress", &self.progress()).finish()
    }
}

/// A handle on the session that runs in this process, if there is one.
pub fn current() -> Option<SessionHandle> {
    if OWNER.load(Ordering::SeqCst) != sys::raw::getpid() {
        return None;
    }
    CURRENT.lock().as_ref().map(|control| SessionHandle { control: Arc::clone(control) })
}

/// The full path of what lies at `below` in `source`.
pub(crate) fn full_path(source: &Path, below: &Path) -> PathBuf {
    if below.as_os_str().is_empty() { source.to_owned() } else { source.join(below) }
}
