//! `tokudb_backup_lock`: the server's own lock, held just around the cut.
//!
//! A thread of our own takes it in a session of its own ([`crate::sql`]) and holds it until it is told to give it back, so
//! it goes whatever happens to the statement that makes the backup. One try never waits for longer than a second, and between
//! two tries there is a pause: whoever had to wait behind our request gets on, and a killed statement need not
//! wait for the thread.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::host::{self, Family, Server};
use crate::library::Failure;
use crate::services;
use crate::sql::{Account, Refusal, Session};
use crate::variable::Thd;
use crate::variables::Wishes;

/// What is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    None,
    /// Commits, so that the binary log ends between two transactions.
    Binlog,
    /// Everything that writes tables, which are written out first.
    Tables,
}

impl Kind {
    /// The one of this name, in whatever case.
    pub(crate) fn parse(name: &[u8]) -> Option<Kind> {
        [Kind::None, Kind::Binlog, Kind::Tables]
            .into_iter()
            .find(|kind| kind.name().to_bytes().eq_ignore_ascii_case(name))
    }

    pub(crate) fn name(self) -> &'static std::ffi::CStr {
        match self {
            Kind::None => c"none",
            Kind::Binlog => c"binlog",
            Kind::Tables => c"tables",
        }
    }
}

/// How a server is asked for a lock.
struct Statements {
    take: &'static [&'static str],
    give_back: &'static str,
}

/// The statements for this server. None of them offers a lock that holds commits alone, so [`Kind::Binlog`] and
/// [`Kind::Tables`] are the same.
fn statements(server: Server) -> Statements {
    const READ_LOCK: Statements =
        Statements { take: &["FLUSH TABLES WITH READ LOCK"], give_back: "UNLOCK TABLES" };
    const STAGES: Statements = Statements {
        take: &["BACKUP STAGE START", "BACKUP STAGE BLOCK_COMMIT"],
        give_back: "BACKUP STAGE END",
    };
    match server.family {
        Family::MySql => READ_LOCK,
        Family::MariaDb => STAGES,
    }
}

/// The lock that `name` names, if this server can be asked for it; if not, the reason.
pub(crate) fn wanted(name: &[u8]) -> Result<Kind, Failure> {
    let kind = Kind::parse(name)
        .ok_or_else(|| Failure::new(libc::EINVAL, "tokudb_backup_lock is one of none, binlog and tables"))?;
    if kind != Kind::None {
        Session::is_possible(server()?)?;
    }
    Ok(kind)
}

fn server() -> Result<Server, Failure> {
    Server::here().ok_or_else(|| Failure::new(libc::ENOSYS, "this server is not known"))
}

/// No statement of ours waits for longer, in seconds.
const PATIENCE: &str = "SET SESSION lock_wait_timeout=1";
const PAUSE: Duration = Duration::from_millis(300);
/// How often the statement that makes the backup looks whether it is killed.
const TICK: Duration = Duration::from_millis(20);

/// The lock of a backup: which one it wants, and what has become of it.
pub(crate) struct Locking {
    kind: Kind,
    timeout: Duration,
    lock: Option<Lock>,
    /// Why the backup has to do without, and so to fail.
    pub(crate) failure: Option<Failure>,
}

impl Locking {
    pub(crate) fn of(wishes: &Wishes) -> Result<Locking, Failure> {
        let kind = wishes.lock.as_deref().map_or(Ok(Kind::None), wanted)?;
        Ok(Locking { kind, timeout: wishes.lock_timeout, lock: None, failure: None })
    }

    pub(crate) fn is_wanted(&self) -> bool {
        self.kind != Kind::None
    }

    /// Takes the lock; false if it cannot be had.
    pub(crate) fn take(&mut self, thd: Thd) -> bool {
        match Lock::take(thd, self.kind, self.timeout) {
            Ok(lock) => self.lock = Some(lock),
            Err(failure) => self.failure = Some(failure),
        }
        self.lock.is_some()
    }

    /// Gives it back, if it was taken.
    pub(crate) fn give_back(&mut self) {
        self.lock = None;
    }

    /// Whether the backup has to fail, because the server would have to bear its lock for too long.
    pub(crate) fn is_lost(&mut self) -> bool {
        if self.lock.as_ref().is_some_and(|lock| lock.since.elapsed() > self.timeout) {
            let text = format!(
                "the lock of the server (tokudb_backup_lock={}) was held for {} s, and the instant of the backup had not come",
                self.kind.name().to_string_lossy(),
                self.timeout.as_secs()
            );
            self.failure.get_or_insert(Failure::new(libc::ETIMEDOUT, text));
        }
        self.failure.is_some()
    }
}

/// A lock that is held, until it is given back or this goes.
struct Lock {
    thread: Option<JoinHandle<()>>,
    /// Closing it is the word to give the lock back.
    keep: Option<Sender<()>>,
    since: Instant,
}

impl Lock {
    /// Takes the lock for the session `thd`, whose thread this is. Fails after `timeout`, and when the session is killed.
    fn take(thd: Thd, kind: Kind, timeout: Duration) -> Result<Lock, Failure> {
        let server = server()?;
        let statements = statements(server);
        let account = services::account(thd);
        // One that was told to go may still be in its last second.
        settle();
        let (keep, kept) = channel();
        let (tell, told) = channel();
        let holder = Holder { server, account, statements, until: Instant::now() + timeout, kept };
        let thread = std::thread::Builder::new().name("tokudb_lock".into()).spawn(move || holder.hold(&tell));
        let thread = thread.map_err(|e| {
            Failure::new(e.raw_os_error().unwrap_or(libc::EAGAIN), format!("cannot start a thread: {e}"))
        })?;
        let mut lock = Lock { thread: Some(thread), keep: Some(keep), since: Instant::now() };
        let outcome = loop {
            match told.recv_timeout(TICK) {
                Ok(outcome) => break outcome,
                Err(RecvTimeoutError::Disconnected) => {
                    break Err(Failure::new(libc::EIO, "the thread that takes the lock panicked"));
                }
                Err(RecvTimeoutError::Timeout) if host::is_killed(thd) => {
                    lock.leave();
                    return Err(Failure::new(libc::EINTR, "the statement was killed"));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        };
        lock.since = Instant::now();
        outcome.map(|()| lock).map_err(|failure| explain(kind, timeout, failure))
    }

    /// Tells the thread to give the lock back, and does not wait for it.
    fn leave(&mut self) {
        self.keep = None;
        *LEAVING.lock().unwrap_or_else(PoisonError::into_inner) = self.thread.take();
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.keep = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn explain(kind: Kind, timeout: Duration, failure: Failure) -> Failure {
    let kind = kind.name().to_string_lossy();
    let within = match failure.number {
        libc::ETIMEDOUT => format!(" within {} s", timeout.as_secs()),
        _ => String::new(),
    };
    let text =
        format!("the server did not give its lock (tokudb_backup_lock={kind}){within}: {}", failure.text);
    Failure::new(failure.number, text)
}

/// A thread that was told to go and not waited for.
static LEAVING: Mutex<Option<JoinHandle<()>>> = Mutex::new(None);

/// Waits until no thread of ours is left.
pub(crate) fn settle() {
    if let Some(thread) = LEAVING.lock().unwrap_or_else(PoisonError::into_inner).take() {
        let _ = thread.join();
    }
}

/// What the thread works with.
struct Holder {
    server: Server,
    account: Option<Account>,
    statements: Statements,
    until: Instant,
    kept: Receiver<()>,
}

impl Holder {
    fn hold(self, tell: &Sender<Result<(), Failure>>) {
        match self.take() {
            Ok(mut session) => {
                let _ = tell.send(Ok(()));
                // Nothing is ever sent: it is closed when the lock is to go.
                let _ = self.kept.recv();
                let _ = session.run(self.statements.give_back);
            }
            Err(failure) => drop(tell.send(Err(failure))),
        }
    }

    fn take(&self) -> Result<Session, Failure> {
        let mut session = Session::open(self.server, self.account.as_ref())?;
        session.run(PATIENCE).map_err(|refusal| Failure::new(libc::EIO, refusal.text))?;
        loop {
            let begun = Instant::now();
            let Err(refusal) = self.try_to_take(&mut session) else { return Ok(session) };
            // What was taken of it has to go; it may be nothing.
            let _ = session.run(self.statements.give_back);
            if !refusal.is_timeout(begun) {
                return Err(Failure::new(libc::EACCES, refusal.text));
            }
            if Instant::now() >= self.until {
                let text = "a statement that takes long or a lock of another session is in the way";
                return Err(Failure::new(libc::ETIMEDOUT, text));
            }
            if self.is_to_go_after(PAUSE) {
                return Err(Failure::new(libc::EINTR, "it is not wanted any more"));
            }
        }
    }

    fn try_to_take(&self, session: &mut Session) -> Result<(), Refusal> {
        self.statements.take.iter().try_for_each(|statement| {
            if self.is_to_go_after(Duration::ZERO) {
                return Err(Refusal { number: 0, text: "it is not wanted any more".into() });
            }
            session.run(statement)
        })
    }

    fn is_to_go_after(&self, pause: Duration) -> bool {
        self.kept.recv_timeout(pause) == Err(RecvTimeoutError::Disconnected)
    }
}

impl Refusal {
    /// Whether the statement, begun at `begun`, waited in vain.
    fn is_timeout(&self, begun: Instant) -> bool {
        const LOCK_WAIT_TIMEOUT: u32 = 1205;
        match self.number {
            0 => begun.elapsed() >= Duration::from_millis(900),
            number => number == LOCK_WAIT_TIMEOUT,
        }
    }
}
