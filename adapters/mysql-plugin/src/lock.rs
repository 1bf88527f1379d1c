//! `tokudb_backup_lock` and `tokudb_backup_safe_slave`: the server's own lock, held just around the cut, and a replica's SQL
//! threads at rest meanwhile.
//!
//! A thread of our own sees to both, first to the rest: a SQL thread that waits for the lock could not stop. It takes the lock
//! in a session of its own ([`crate::sql`]) and holds it until it is told to give it back, so it goes whatever happens to the
//! statement that makes the backup. One try never waits for longer than a second, and between two tries there is a pause:
//! whoever had to wait behind our request gets on, and a killed statement need not wait for the thread.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::host::{self, Family, Server};
use crate::library::Failure;
use crate::replica::{AtRest, Channel, GRACE};
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

/// Whether this server's replication can be stopped and started; if not, the reason.
pub(crate) fn can_rest() -> Result<(), Failure> {
    Session::is_possible(server()?)
}

fn server() -> Result<Server, Failure> {
    Server::here().ok_or_else(|| Failure::new(libc::ENOSYS, "this server is not known"))
}

/// No statement of ours waits for longer, in seconds.
const PATIENCE: &str = "SET SESSION lock_wait_timeout=1";
const PAUSE: Duration = Duration::from_millis(300);
/// How often the statement that makes the backup looks whether it is killed.
const TICK: Duration = Duration::from_millis(20);

/// What a backup wants held.
#[derive(Clone, Copy)]
struct Wanted {
    kind: Kind,
    /// The time in which the lock must be had.
    timeout: Duration,
    /// The time in which the replica must be without temporary tables, if it is to rest.
    rest: Option<Duration>,
}

/// What a replica's rest tells of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rested {
    /// The positions, where only the server can read them.
    pub(crate) positions: Option<Result<Vec<Channel>, String>>,
}

/// The lock of a backup: which one it wants, and what has become of it.
pub(crate) struct Locking {
    wanted: Wanted,
    lock: Option<Lock>,
    /// What the replica was like at the cut, if it rested.
    pub(crate) rested: Option<Rested>,
    /// Why the backup has to do without, and so to fail.
    pub(crate) failure: Option<Failure>,
}

impl Locking {
    pub(crate) fn of(wishes: &Wishes) -> Result<Locking, Failure> {
        let kind = wishes.lock.as_deref().map_or(Ok(Kind::None), wanted)?;
        if wishes.safe_slave.is_some() {
            can_rest()?;
        }
        let wanted = Wanted { kind, timeout: wishes.lock_timeout, rest: wishes.safe_slave };
        Ok(Locking { wanted, lock: None, rested: None, failure: None })
    }

    pub(crate) fn is_wanted(&self) -> bool {
        self.wanted.kind != Kind::None || self.wanted.rest.is_some()
    }

    /// What the processlist says meanwhile, which has room for 64 characters.
    pub(crate) fn awaited(&self) -> &'static str {
        match self.wanted.kind {
            Kind::None => "Waiting for the SQL thread",
            _ => "Waiting for the lock of the server",
        }
    }

    /// Takes the lock; false if it cannot be had.
    pub(crate) fn take(&mut self, thd: Thd) -> bool {
        match Lock::take(thd, self.wanted) {
            Ok((lock, rested)) => (self.lock, self.rested) = (Some(lock), rested),
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
        let Wanted { kind, timeout, .. } = self.wanted;
        let is_late = |lock: &Lock| kind != Kind::None && lock.since.elapsed() > timeout;
        if self.lock.as_ref().is_some_and(is_late) {
            let text = format!(
                "the lock of the server (tokudb_backup_lock={}) was held for {} s, and the instant of the backup had not come",
                kind.name().to_string_lossy(),
                timeout.as_secs()
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
    /// Takes what is wanted for the session `thd`, whose thread this is. Fails when it takes too long, and when the session is
    /// killed.
    fn take(thd: Thd, wanted: Wanted) -> Result<(Lock, Option<Rested>), Failure> {
        let server = server()?;
        let account = services::account(thd);
        // One that was told to go may still be in its last second.
        settle();
        let (keep, kept) = channel();
        let (tell, told) = channel();
        let holder = Holder { server, account, wanted, kept };
        let thread = std::thread::Builder::new().name("tokudb_lock".into()).spawn(move || holder.hold(&tell));
        let thread = thread.map_err(|e| {
            Failure::new(e.raw_os_error().unwrap_or(libc::EAGAIN), format!("cannot start a thread: {e}"))
        })?;
        let mut lock = Lock { thread: Some(thread), keep: Some(keep), since: Instant::now() };
        let latest = wanted.rest.map(|rest| lock.since + rest + GRACE + wanted.timeout);
        loop {
            match told.recv_timeout(TICK) {
                Ok(outcome) => {
                    lock.since = Instant::now();
                    return outcome.map(|rested| (lock, rested));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Failure::new(libc::EIO, "the thread that takes the lock panicked"));
                }
                Err(RecvTimeoutError::Timeout) if host::is_killed(thd) => {
                    lock.leave();
                    return Err(Failure::new(libc::EINTR, "the statement was killed"));
                }
                // It is at something long, and is started again when it has stopped.
                Err(RecvTimeoutError::Timeout) if latest.is_some_and(|latest| Instant::now() > latest) => {
                    lock.leave();
                    return Err(Failure::new(libc::ETIMEDOUT, "the replica's SQL thread does not stop"));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
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
    wanted: Wanted,
    kept: Receiver<()>,
}

impl Holder {
    fn hold(self, tell: &Sender<Result<Option<Rested>, Failure>>) {
        if let Err(failure) = self.rest_and_hold(tell) {
            let _ = tell.send(Err(failure));
        }
    }

    /// With the replica at rest, if that is wanted.
    fn rest_and_hold(&self, tell: &Sender<Result<Option<Rested>, Failure>>) -> Result<(), Failure> {
        let mut session = Session::open(self.server, self.account.as_ref())?;
        let Some(timeout) = self.wanted.rest else { return self.lock_and_hold(&mut session, None, tell) };
        let mut rest = AtRest::begin(self.server, &mut session, timeout, |pause| self.is_to_go_after(pause))
            .map_err(|failure| {
                explain("the replica does not rest (tokudb_backup_safe_slave)", timeout, failure)
            })?;
        let rested = Rested { positions: rest.positions() };
        self.lock_and_hold(rest.session, Some(rested), tell)
    }

    /// With the lock, if that is wanted. Tells of it, and waits until it is to go.
    fn lock_and_hold(
        &self,
        session: &mut Session,
        rested: Option<Rested>,
        tell: &Sender<Result<Option<Rested>, Failure>>,
    ) -> Result<(), Failure> {
        let kind = self.wanted.kind;
        let lock = (kind != Kind::None).then(|| statements(self.server));
        if let Some(lock) = &lock {
            let what = format!(
                "the server did not give its lock (tokudb_backup_lock={})",
                kind.name().to_string_lossy()
            );
            self.take(lock, session).map_err(|failure| explain(&what, self.wanted.timeout, failure))?;
        }
        let _ = tell.send(Ok(rested));
        // Nothing is ever sent: it is closed when the lock is to go.
        let _ = self.kept.recv();
        if let Some(lock) = &lock {
            let _ = session.run(lock.give_back);
        }
        Ok(())
    }

    fn take(&self, lock: &Statements, session: &mut Session) -> Result<(), Failure> {
        let until = Instant::now() + self.wanted.timeout;
        session.run(PATIENCE).map_err(|refusal| Failure::new(libc::EIO, refusal.text))?;
        loop {
            let begun = Instant::now();
            let Err(refusal) = self.try_to_take(lock, session) else { return Ok(()) };
            // What was taken of it has to go; it may be nothing.
            let _ = session.run(lock.give_back);
            if !refusal.is_timeout(begun) {
                return Err(Failure::new(libc::EACCES, refusal.text));
            }
            if Instant::now() >= until {
                let text = "a statement that takes long or a lock of another session is in the way";
                return Err(Failure::new(libc::ETIMEDOUT, text));
            }
            if self.is_to_go_after(PAUSE) {
                return Err(Failure::new(libc::EINTR, "it is not wanted any more"));
            }
        }
    }

    fn try_to_take(&self, lock: &Statements, session: &mut Session) -> Result<(), Refusal> {
        lock.take.iter().try_for_each(|statement| {
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

fn explain(what: &str, timeout: Duration, failure: Failure) -> Failure {
    let within = match failure.number {
        libc::ETIMEDOUT => format!(" within {} s", timeout.as_secs()),
        _ => String::new(),
    };
    Failure::new(failure.number, format!("{what}{within}: {}", failure.text))
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
