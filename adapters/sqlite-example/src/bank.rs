//! The database: accounts that hold money, and a ledger of all transfers between them.
//!
//! Two things hold after every transaction: the balances add up to what they were at first, and every balance is what
//! the ledger makes of it. Ledger rows are numbered without a gap and carry strictly increasing times.

use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};

use crate::args::{DEFAULT_SIZE, Mode};
use crate::problem::Problem;

/// What every account begins with.
pub const FIRST_BALANCE: i64 = 10_000;

/// How our databases are told from others: `PRAGMA application_id`, which lies at a fixed place in the file.
const APPLICATION_ID: i32 = 0x6862_4e4b;
const APPLICATION_ID_AT: usize = 68;
const HEADER_LEN: usize = 100;
const MAGIC: &[u8] = b"SQLite format 3\0";

/// About what a row of `accounts` takes in the file.
const ACCOUNT_BYTES: u64 = 224;

/// How often and for how long a connection that finds the database locked tries again.
const NAP: Duration = Duration::from_micros(100);
const NAPS: i32 = 100_000;

const SCHEMA: &str = "
    CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL, holder TEXT NOT NULL) STRICT;
    CREATE TABLE ledger (id INTEGER PRIMARY KEY, at_ns INTEGER NOT NULL, source INTEGER NOT NULL,
                         target INTEGER NOT NULL, amount INTEGER NOT NULL) STRICT;
    CREATE TABLE made (size INTEGER NOT NULL) STRICT;
";

/// A database on disk.
#[derive(Debug)]
pub struct Bank {
    /// The file.
    pub path: PathBuf,
    /// How many accounts there are; they are numbered from 1.
    pub accounts: i64,
    /// How large the file was when the program began.
    pub bytes: u64,
    /// How long it took to make it, if it was made now.
    pub made_in: Option<Duration>,
}

impl Bank {
    /// Says why `path` cannot be used, and changes nothing.
    pub fn check(path: &Path) -> Result<(), Problem> {
        let bad = |reason: &str| Err(Problem::bad("use the database", path, reason));
        let Some(name) = path.file_name() else {
            return bad("it names no file");
        };
        let directory = directory_of(path);
        for above in directory.ancestors().filter(|above| !above.as_os_str().is_empty()) {
            match fs::metadata(above) {
                Ok(found) if !found.is_dir() => {
                    return bad(&format!("{} is not a directory", above.display()));
                }
                Ok(_) => break,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return bad(&e.to_string()),
            }
        }
        match fs::metadata(path) {
            Ok(found) if !found.is_file() => return bad("it is not a regular file"),
            Ok(_) => check_header(path)?,
            Err(_) => {}
        }
        let own = ["", "-wal", "-shm", "-journal", "-new"].map(|suffix| with_suffix(name, suffix));
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if !own.contains(&entry.file_name()) {
                return bad(&format!(
                    "its directory holds {} too, and the whole directory is backed up; give the database a directory \
                     of its own",
                    entry.file_name().display()
                ));
            }
        }
        Ok(())
    }

    /// Opens the database at `path`; makes it if there is none. With a `size` it has to be one that was made with about so
    /// many bytes.
    pub fn open_or_make(path: &Path, size: Option<u64>) -> Result<Bank, Problem> {
        let begun = Instant::now();
        let is_new = !path.exists();
        if is_new {
            fs::create_dir_all(directory_of(path))
                .map_err(|e| Problem::bad("create the directory", directory_of(path), e))?;
            make(path, size.unwrap_or(DEFAULT_SIZE))
                .map_err(|reason| Problem::failed("make the database", path, reason))?;
        }
        let made_in = is_new.then(|| begun.elapsed());
        let unusable = |e| Problem::failed("read the database", path, e);
        let connection = connect(path).map_err(unusable)?;
        let number = |sql| connection.query_row(sql, [], |row| row.get::<_, i64>(0));
        let made_with = number("SELECT size FROM made").map_err(unusable)?;
        if size.is_some_and(|size| u64::try_from(made_with) != Ok(size)) {
            let reason = format!("it was made with --size {made_with}, which cannot be changed");
            return Err(Problem::bad("use the database", path, reason));
        }
        let accounts = number("SELECT max(id) FROM account").map_err(unusable)?;
        let bytes = fs::metadata(path).map_err(|e| Problem::failed("examine", path, e))?.len();
        let path = path.to_owned();
        Ok(Bank { path, accounts, bytes, made_in })
    }

    /// The directory that the database lies in: the source of the backup.
    pub fn directory(&self) -> &Path {
        directory_of(&self.path)
    }

    /// What all balances add up to, always.
    pub fn sum(&self) -> i64 {
        self.accounts * FIRST_BALANCE
    }

    /// Makes `mode` the journal mode of the database. No other connection may be open.
    pub fn set_mode(&self, mode: Mode) -> Result<(), Problem> {
        let refused = |e: &dyn std::fmt::Display| {
            Problem::failed(&format!("set the journal mode {} of", mode.pragma()), &self.path, e)
        };
        let connection = connect(&self.path).map_err(|e| refused(&e))?;
        let set: String = connection
            .pragma_update_and_check(None, "journal_mode", mode.pragma(), |row| row.get(0))
            .map_err(|e| refused(&format!("{e}; does another program use it?")))?;
        if set == mode.pragma() { Ok(()) } else { Err(refused(&format!("it stays {set}"))) }
    }
}

/// A connection for reading and writing an existing database.
pub fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    connection.busy_handler(Some(|tries| {
        std::thread::sleep(NAP);
        tries < NAPS
    }))?;
    connection.pragma_update(None, "synchronous", "normal")?;
    connection.pragma_update(None, "temp_store", "memory")?;
    // The tellers do it themselves, and an automatic one under way would turn them away.
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    // The database itself is read and written by calls only: what goes through a mapping is not captured.
    connection.pragma_update(None, "mmap_size", 0)?;
    Ok(connection)
}

/// Makes the database under another name and renames it when it is whole, so that a run that was interrupted leaves
/// none that is not.
fn make(path: &Path, size: u64) -> Result<(), Box<dyn std::error::Error>> {
    let new = directory_of(path).join(with_suffix(path.file_name().unwrap_or_default(), "-new"));
    match fs::remove_file(&new) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
        _ => {}
    }
    let mut connection = Connection::open(&new)?;
    connection.pragma_update(None, "journal_mode", "off")?;
    connection.pragma_update(None, "synchronous", "off")?;
    connection.pragma_update(None, "application_id", APPLICATION_ID)?;
    let transaction = connection.transaction()?;
    transaction.execute_batch(SCHEMA)?;
    transaction.execute("INSERT INTO made VALUES (?1)", [i64::try_from(size)?])?;
    transaction.execute(
        "INSERT INTO account
         WITH RECURSIVE number(id) AS (VALUES (1) UNION ALL SELECT id + 1 FROM number WHERE id < ?1)
         SELECT id, ?2, printf('holder %09d of ', id) || hex(randomblob(92)) FROM number",
        [i64::try_from(size / ACCOUNT_BYTES)?.max(2), FIRST_BALANCE],
    )?;
    transaction.commit()?;
    connection.close().map_err(|(_, e)| e)?;
    fs::File::open(&new)?.sync_all()?;
    Ok(fs::rename(&new, path)?)
}

/// Reads the head of the file itself: opening a database of somebody else's with SQLite might change it.
fn check_header(path: &Path) -> Result<(), Problem> {
    let mut header = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(HEADER_LEN as u64).read_to_end(&mut header))
        .map_err(|e| Problem::bad("read the database", path, e))?;
    if header.len() < HEADER_LEN || !header.starts_with(MAGIC) {
        return Err(Problem::bad("use the database", path, "it is not a SQLite database"));
    }
    if header[APPLICATION_ID_AT..].starts_with(&APPLICATION_ID.to_be_bytes()) {
        Ok(())
    } else {
        Err(Problem::bad(
            "use the database",
            path,
            "it was not made by this program, which moves money in its own only",
        ))
    }
}

/// The directory of a file; "." for a plain name.
pub fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    }
}

fn with_suffix(name: &std::ffi::OsStr, suffix: &str) -> OsString {
    let mut name = name.to_owned();
    name.push(suffix);
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bank_is_made_once_and_opened_again() {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("new/bank.db");
        Bank::check(&path).expect("usable");
        let made = Bank::open_or_make(&path, Some(1 << 20)).expect("made");
        assert!(made.made_in.is_some());
        assert!(made.bytes > 900_000 && made.bytes < 1_200_000, "{}", made.bytes);
        Bank::check(&path).expect("usable still");
        let opened = Bank::open_or_make(&path, Some(1 << 20)).expect("opened");
        assert_eq!((opened.accounts, opened.made_in), (made.accounts, None));
        let error = Bank::open_or_make(&path, Some(2 << 20)).expect_err("another size");
        assert_eq!(error.status(), 2);
        opened.set_mode(Mode::Wal).expect("set");
        opened.set_mode(Mode::Rollback).expect("set back");
    }

    #[test]
    fn what_is_not_ours_is_left_alone() {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("other.db");
        Connection::open(&path).and_then(|c| c.execute_batch("CREATE TABLE t (x)")).expect("made");
        assert!(Bank::check(&path).expect_err("refused").text().contains("not made by this program"));
        fs::write(&path, "text").expect("written");
        assert!(Bank::check(&path).expect_err("refused").text().contains("not a SQLite database"));
        assert!(Bank::check(place.path()).expect_err("refused").text().contains("not a regular file"));
        assert!(
            Bank::check(&path.join("bank.db")).expect_err("refused").text().contains("is not a directory")
        );
        let beside = Bank::check(&place.path().join("bank.db")).expect_err("refused");
        assert!(beside.text().contains("holds other.db too"), "{}", beside.text());
    }
}
