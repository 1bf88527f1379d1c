//! The load: several connections that move money between accounts without a pause, and what they measure.
//!
//! Each teller is a thread with a connection of its own. One transfer is one transaction: two balances and a row of the
//! ledger. [`Tellers::period`] tells how fast they were since it was asked before.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

use crate::bank::{self, Bank};
use crate::latency::Latencies;
use crate::problem::Problem;

/// How many of its last transfers a teller remembers; after the cut, how many more.
const REMEMBERED: usize = 50_000;

/// After how many transfers of all tellers one of them has the write-ahead log taken over into the database (about 13
/// MiB of log). Left to itself SQLite does so only in moments when nobody writes; here there are none, and the log would
/// grow without end.
const CHECKPOINT_EVERY: u64 = 1_000;

/// The largest transfer.
const MOST: u64 = 100;

/// A transfer as its teller saw it: when its transaction began, and when its commit had returned.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    /// Its number in the ledger.
    pub id: i64,
    /// Nanoseconds since 1970.
    pub begun_ns: i64,
    /// Nanoseconds since 1970.
    pub done_ns: i64,
}

/// How fast all tellers together were over some time.
#[derive(Debug)]
pub struct Period {
    /// How long it was.
    pub time: Duration,
    /// How long each transfer took.
    pub latencies: Latencies,
}

impl Period {
    /// Transfers per second.
    pub fn rate(&self) -> f64 {
        self.latencies.count() as f64 / self.time.as_secs_f64()
    }
}

/// All tellers of a bank, at work.
#[derive(Debug)]
pub struct Tellers {
    common: Arc<Common>,
    notes: Vec<Arc<Mutex<Notes>>>,
    threads: Vec<JoinHandle<rusqlite::Result<()>>>,
    asked: Instant,
}

/// What the tellers share.
#[derive(Debug)]
struct Common {
    accounts: i64,
    stop: AtomicBool,
    /// The time of the newest row of the ledger; rows get strictly increasing ones.
    newest_ns: AtomicI64,
    /// Transfers since the write-ahead log was taken over last.
    logged: AtomicU64,
}

/// What one teller writes down.
#[derive(Debug, Default)]
struct Notes {
    latencies: Latencies,
    last: VecDeque<Transfer>,
    /// After the cut nothing is forgotten: the transfers around it are what matters.
    keep: bool,
}

impl Tellers {
    /// Sets `number` tellers to work.
    pub fn start(bank: &Bank, number: u8) -> Result<Tellers, Problem> {
        let failed = |e| Problem::failed("read the database", &bank.path, e);
        let newest: Option<i64> = bank::connect(&bank.path)
            .and_then(|c| {
                c.query_row("SELECT at_ns FROM ledger ORDER BY id DESC LIMIT 1", [], |row| row.get(0))
                    .optional()
            })
            .map_err(failed)?;
        let common = Arc::new(Common {
            accounts: bank.accounts,
            stop: AtomicBool::new(false),
            newest_ns: AtomicI64::new(newest.unwrap_or(0)),
            logged: AtomicU64::new(0),
        });
        let mut tellers = Tellers { common, notes: Vec::new(), threads: Vec::new(), asked: Instant::now() };
        for seed in 1..=u64::from(number) {
            tellers.add(&bank.path, seed)?;
        }
        Ok(tellers)
    }

    fn add(&mut self, path: &Path, seed: u64) -> Result<(), Problem> {
        let connection = bank::connect(path).map_err(|e| Problem::failed("open the database", path, e))?;
        let notes = Arc::new(Mutex::new(Notes::default()));
        let (common, own) = (Arc::clone(&self.common), Arc::clone(&notes));
        let thread = std::thread::Builder::new()
            .name(format!("teller {seed}"))
            .spawn(move || work(connection, &common, &own, seed))
            .map_err(|e| Problem::Failed(format!("cannot start a thread: {e}")))?;
        self.notes.push(notes);
        self.threads.push(thread);
        Ok(())
    }

    /// How fast they were since this was asked before.
    pub fn period(&mut self) -> Period {
        let now = Instant::now();
        let mut latencies = Latencies::default();
        for notes in &self.notes {
            latencies.add(&std::mem::take(&mut lock(notes).latencies));
        }
        Period { time: now - std::mem::replace(&mut self.asked, now), latencies }
    }

    /// Something to call right after the cut: the transfers around it are remembered from then on.
    pub fn cut_bell(&self) -> impl Fn() + use<> {
        let notes = self.notes.clone();
        move || notes.iter().for_each(|notes| lock(notes).keep = true)
    }

    /// Lets them finish; returns the transfers that they remember.
    pub fn stop(mut self) -> Result<Vec<Transfer>, Problem> {
        self.common.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            match thread.join() {
                Ok(Ok(())) => {}
                Ok(Err(e)) => return Err(Problem::Failed(format!("a transfer failed: {e}"))),
                Err(_) => return Err(Problem::Failed("a teller panicked".into())),
            }
        }
        Ok(self.notes.iter().flat_map(|notes| std::mem::take(&mut lock(notes).last)).collect())
    }
}

impl Drop for Tellers {
    fn drop(&mut self) {
        self.common.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn lock(notes: &Mutex<Notes>) -> MutexGuard<'_, Notes> {
    notes.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Notes {
    fn note(&mut self, transfer: Transfer, took: Duration) {
        self.latencies.note(took);
        if self.last.len() == REMEMBERED && !self.keep {
            self.last.pop_front();
        }
        if self.last.len() < 2 * REMEMBERED {
            self.last.push_back(transfer);
        }
    }
}

fn work(
    mut connection: Connection,
    common: &Common,
    notes: &Mutex<Notes>,
    seed: u64,
) -> rusqlite::Result<()> {
    let mut dice = Dice(now_ns().cast_unsigned() ^ (seed << 56));
    while !common.stop.load(Ordering::Relaxed) {
        let (begun, begun_ns) = (Instant::now(), now_ns());
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        // A transfer that was refused is rolled back when the transaction is dropped.
        if let Some(id) = transfer(&transaction, common, &mut dice)? {
            transaction.commit()?;
            lock(notes).note(Transfer { id, begun_ns, done_ns: now_ns() }, begun.elapsed());
            // Whoever comes first does it: a teller of a fixed number may not get its turn for long.
            if common.logged.fetch_add(1, Ordering::Relaxed) + 1 == CHECKPOINT_EVERY {
                common.logged.store(0, Ordering::Relaxed);
                connection.query_row("PRAGMA wal_checkpoint(RESTART)", [], |_| Ok(()))?;
            }
        }
    }
    Ok(())
}

/// Moves some money; `None` if the account has not got it.
fn transfer(
    transaction: &Transaction<'_>,
    common: &Common,
    dice: &mut Dice,
) -> rusqlite::Result<Option<i64>> {
    let accounts = common.accounts.cast_unsigned();
    let amount = 1 + dice.below(MOST).cast_signed();
    let source = 1 + dice.below(accounts).cast_signed();
    let target = 1 + (source.cast_unsigned() + dice.below(accounts - 1)).rem_euclid(accounts).cast_signed();
    let mut take = transaction
        .prepare_cached("UPDATE account SET balance = balance - ?1 WHERE id = ?2 AND balance >= ?1")?;
    if take.execute([amount, source])? == 0 {
        return Ok(None);
    }
    transaction
        .prepare_cached("UPDATE account SET balance = balance + ?1 WHERE id = ?2")?
        .execute([amount, target])?;
    // Only one transaction writes at a time, so this is the order in which they are committed.
    let at_ns = now_ns().max(common.newest_ns.load(Ordering::Relaxed) + 1);
    common.newest_ns.store(at_ns, Ordering::Relaxed);
    transaction
        .prepare_cached("INSERT INTO ledger (at_ns, source, target, amount) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![at_ns, source, target, amount])?;
    Ok(Some(transaction.last_insert_rowid()))
}

fn now_ns() -> i64 {
    ns(SystemTime::now())
}

/// Nanoseconds since 1970.
pub fn ns(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}

/// Random numbers (splitmix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transfers_around_the_cut_are_remembered() {
        let mut notes = Notes::default();
        let note = |notes: &mut Notes, id| {
            notes.note(Transfer { id, begun_ns: 0, done_ns: 0 }, Duration::from_micros(1));
        };
        (0..60_000).for_each(|id| note(&mut notes, id));
        notes.keep = true;
        (60_000..200_000).for_each(|id| note(&mut notes, id));
        let ids = (notes.last.front().map(|t| t.id), notes.last.back().map(|t| t.id));
        assert_eq!(ids, (Some(10_000), Some(109_999)));
    }

    #[test]
    fn tellers_keep_the_books() {
        let place = tempfile::tempdir().expect("a directory");
        let bank = Bank::open_or_make(&place.path().join("bank.db"), Some(1 << 20)).expect("made");
        bank.set_mode(crate::args::Mode::Wal).expect("set");
        let mut tellers = Tellers::start(&bank, 3).expect("started");
        std::thread::sleep(Duration::from_millis(300));
        assert!(tellers.period().rate() > 0.0);
        let last = tellers.stop().expect("stopped");
        let connection = bank::connect(&bank.path).expect("opened");
        let number = |sql| connection.query_row(sql, [], |row| row.get::<_, i64>(0)).expect(sql);
        assert_eq!(number("SELECT sum(balance) FROM account"), bank.sum());
        assert_eq!(number("SELECT max(id) FROM ledger"), last.iter().map(|t| t.id).max().expect("some"));
        assert_eq!(number("SELECT count(*) FROM ledger"), number("SELECT max(id) FROM ledger"));
        assert_eq!(number("SELECT count(*) FROM ledger WHERE source = target"), 0);
    }
}
