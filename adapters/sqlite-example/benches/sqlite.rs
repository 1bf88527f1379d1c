//! A backup of a live SQLite database against SQLite's own two ways: its Online Backup API and `VACUUM INTO`.
//!
//! Two connections write all the while, each transaction two rows of a table and a new one of another, with SQLite's
//! defaults but for `synchronous = normal`. All copies end synced. The row is called `sqlite`; how rows are
//! chosen and scaled, see hotbackup/benches/figures/main.rs, which puts what is measured here into the page.
#![allow(clippy::print_stderr, reason = "a program that says why it fails")]

#[path = "../../../hotbackup/benches/figures/measure.rs"]
#[allow(dead_code, reason = "shared")]
mod measure;
#[path = "../src/vfs.rs"]
#[allow(unused_imports, reason = "its test runs elsewhere")]
mod vfs;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hotbackup::{Backup, KeepFree, Session};
use rusqlite::{Connection, TransactionBehavior, backup};
use tempfile::TempDir;

use measure::{Done, Figure, interleave, is_chosen, note, scaled};

/// About what an account takes in the database.
const ACCOUNT: u64 = 224;
/// Pages that the Online Backup API copies in one step, if not all.
const STEP: i32 = 1000;
/// When a copy that begins again with each write is given up.
const PATIENCE: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    if !is_chosen("sqlite") {
        return ExitCode::SUCCESS;
    }
    match vfs::install().map_err(Into::into).and_then(|()| row()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("sqlite: {problem}");
            ExitCode::FAILURE
        }
    }
}

/// A live database.
struct Bank {
    directory: TempDir,
    accounts: i64,
}

/// What the writers saw while one copy was made, and how that went.
struct Seen {
    took: f64,
    per_second: f64,
    longest_ms: f64,
    /// How often the copy had to begin or wait again.
    retries: u32,
}

/// A number of what was seen: its name, its unit, and how to get it.
type Number = (&'static str, &'static str, fn(&Seen) -> f64);

fn row() -> Done {
    for mode in ["wal", "delete"] {
        let bank = Bank::make(mode)?;
        let seen = interleave(&mut [
            &mut || bank.copied(hot),
            &mut || bank.copied(|from, to| online(from, to, -1)),
            &mut || bank.copied(|from, to| online(from, to, STEP)),
            &mut || bank.copied(vacuum),
            &mut || bank.copied(nothing),
        ])?;
        let others =
            ["Online Backup, one step", "Online Backup, 1,000 pages a step", "VACUUM INTO", "no backup"];
        let of = |side: usize, number: fn(&Seen) -> f64| seen[side].iter().map(number).collect::<Vec<_>>();
        let numbers: [Number; 4] = [
            ("time", "s", |seen| seen.took),
            ("transactions meanwhile", "/s", |seen| seen.per_second),
            ("longest transaction", "ms", |seen| seen.longest_ms),
            ("retries", "times", |seen| f64::from(seen.retries)),
        ];
        for (name, unit, number) in numbers {
            for (side, other) in others.iter().enumerate() {
                // What nobody does takes no time and no retry.
                if *other == "no backup" && (unit == "s" || unit == "times") {
                    continue;
                }
                let what = format!("{name}, journal mode {mode}");
                note(Figure::new("sqlite", what, unit, of(0, number), (other, &of(side + 1, number))))?;
            }
        }
    }
    Ok(())
}

impl Bank {
    fn make(mode: &str) -> Done<Bank> {
        let root = std::env::var_os("HOTBACKUP_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let accounts = i64::try_from(scaled(1 << 30, 8 << 20) / ACCOUNT)?;
        let bank = Bank { directory: TempDir::new_in(root)?, accounts };
        fs::create_dir(bank.source())?;
        let connection = Connection::open(bank.file())?;
        connection.pragma_update(None, "journal_mode", "off")?;
        connection.execute_batch(
            "CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL, holder TEXT NOT NULL);
             CREATE TABLE ledger (id INTEGER PRIMARY KEY, source INTEGER NOT NULL, target INTEGER NOT NULL);",
        )?;
        connection.execute(
            "INSERT INTO account
             WITH RECURSIVE number(id) AS (VALUES (1) UNION ALL SELECT id + 1 FROM number WHERE id < ?1)
             SELECT id, 0, hex(randomblob(100)) FROM number",
            [accounts],
        )?;
        connection.pragma_update(None, "journal_mode", mode)?;
        Ok(bank)
    }

    /// Of the database alone.
    fn source(&self) -> PathBuf {
        self.directory.path().join("source")
    }

    fn file(&self) -> PathBuf {
        self.source().join("bank.db")
    }

    /// Writes until it is done: how long each transaction took.
    fn write(&self, done: &AtomicBool, seed: i64) -> rusqlite::Result<Vec<(Instant, Duration)>> {
        let mut connection = connect(&self.file())?;
        let (mut taken, mut random) = (Vec::new(), seed);
        while !done.load(Ordering::Relaxed) {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let source = 1 + (random >> 32).rem_euclid(self.accounts);
            let target = 1 + (random >> 16).rem_euclid(self.accounts);
            let begun = Instant::now();
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let add = "UPDATE account SET balance = balance + ?1 WHERE id = ?2";
            transaction.prepare_cached(add)?.execute([-1, source])?;
            transaction.prepare_cached(add)?.execute([1, target])?;
            let insert = "INSERT INTO ledger (source, target) VALUES (?1, ?2)";
            transaction.prepare_cached(insert)?.execute([source, target])?;
            transaction.commit()?;
            taken.push((begun, begun.elapsed()));
        }
        Ok(taken)
    }

    /// Has a copy made while two connections write.
    fn copied(&self, copy: fn(&Path, &Path) -> Done<u32>) -> Done<Seen> {
        let to = TempDir::new_in(self.directory.path())?;
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let done = &done;
            let writers = [1, 2].map(|seed| scope.spawn(move || self.write(done, seed)));
            // To warm up.
            std::thread::sleep(Duration::from_millis(300));
            let begun = Instant::now();
            let retries = copy(&self.file(), to.path());
            let took = begun.elapsed();
            done.store(true, Ordering::Relaxed);
            let mut taken = Vec::new();
            for writer in writers {
                taken.extend(writer.join().map_err(|_| "a writer failed")??);
            }
            taken.retain(|&(at, took)| at + took >= begun);
            let longest = taken.iter().map(|&(_, took)| took).max().unwrap_or_default();
            let (took, count) = (took.as_secs_f64(), taken.len() as f64);
            let longest_ms = longest.as_secs_f64() * 1e3;
            Ok(Seen { took, per_second: count / took, longest_ms, retries: retries? })
        })
    }
}

/// A connection that waits for others as long as a copy may take.
fn connect(file: &Path) -> rusqlite::Result<Connection> {
    let mut connection = Connection::open(file)?;
    connection.busy_handler(Some(|_| {
        std::thread::sleep(Duration::from_micros(100));
        true
    }))?;
    connection.pragma_update(None, "synchronous", "normal")?;
    Ok(connection)
}

fn hot(file: &Path, to: &Path) -> Done<u32> {
    let source = file.parent().ok_or("a database lies in a directory")?;
    // The index of a write-ahead log is made anew from the log.
    let backup = Backup::from(source).to(to).exclude(r"-shm$").keep_free(KeepFree::Bytes(0));
    Ok(backup.start().and_then(Session::finish)?.cut_attempts - 1)
}

fn online(file: &Path, to: &Path, pages: i32) -> Done<u32> {
    let from = connect(file)?;
    let copy = to.join("copy.db");
    let mut connection = Connection::open(&copy)?;
    let backup = backup::Backup::new(&from, &mut connection)?;
    let (begun, mut retries, mut least) = (Instant::now(), 0, i32::MAX);
    while begun.elapsed() < PATIENCE {
        let result = backup.step(pages)?;
        // It begins again when another connection has written.
        let remaining = backup.progress().remaining;
        if remaining > least || matches!(result, backup::StepResult::Busy | backup::StepResult::Locked) {
            retries += 1;
        }
        least = remaining;
        if result == backup::StepResult::Done {
            break;
        }
    }
    drop(backup);
    File::open(&copy)?.sync_all()?;
    Ok(retries)
}

fn vacuum(file: &Path, to: &Path) -> Done<u32> {
    let copy = to.join("copy.db");
    connect(file)?.execute("VACUUM INTO ?1", [copy.to_str().ok_or("a name that is text")?])?;
    File::open(&copy)?.sync_all()?;
    Ok(0)
}

fn nothing(_: &Path, _: &Path) -> Done<u32> {
    std::thread::sleep(Duration::from_secs(scaled(5, 1)));
    Ok(0)
}
