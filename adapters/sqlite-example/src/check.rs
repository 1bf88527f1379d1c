//! Is the copy right? It is opened as anybody would who needs it, and everything that must hold is looked at.
//!
//! SQLite changes a database when it opens one that was in use: it rolls a journal back, or takes a log over. So that
//! the backup stays as it was taken, and can still be verified against its manifest, a copy of it is opened.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rusqlite::Connection;

use crate::bank::{self, Bank, FIRST_BALANCE};
use crate::problem::Problem;
use crate::tellers::{Transfer, ns};

/// One thing that must hold.
#[derive(Debug)]
pub struct Finding {
    /// What was looked at.
    pub name: &'static str,
    /// Whether it holds.
    pub ok: bool,
    /// What was found.
    pub text: String,
}

/// Everything that was looked at.
#[derive(Debug, Default)]
pub struct Verdict {
    /// In the order in which it was looked at.
    pub findings: Vec<Finding>,
    /// How many transfers the copy holds.
    pub transfers: i64,
    /// How long before the cut its newest transfer was entered, in nanoseconds.
    pub newest_before_cut_ns: Option<i64>,
}

impl Verdict {
    /// Whether everything holds.
    pub fn ok(&self) -> bool {
        !self.findings.is_empty() && self.findings.iter().all(|finding| finding.ok)
    }

    fn add(&mut self, name: &'static str, ok: bool, text: impl Into<String>) {
        self.findings.push(Finding { name, ok, text: text.into() });
    }
}

/// Checks the backup of `bank` in the directory `backup`, which shows the instant `cut`; `seen` are the transfers that
/// the tellers remember from around it.
pub fn check(bank: &Bank, backup: &Path, cut: SystemTime, seen: &[Transfer]) -> Result<Verdict, Problem> {
    let mut verdict = Verdict::default();
    let copy = Copy::of(backup)?;
    let path = copy.0.join(bank.path.file_name().unwrap_or_default());
    let unreadable = |e: rusqlite::Error| Problem::failed("read the database", &path, e);
    let connection = bank::connect(&path).map_err(unreadable)?;
    integrity(&connection, &mut verdict).map_err(unreadable)?;
    let books = Books::read(&connection, bank).map_err(unreadable)?;
    books.judge(bank, &mut verdict);
    newest(&books, ns(cut), seen, &mut verdict);
    Ok(verdict)
}

/// A copy of the backup to open, removed when it is dropped.
struct Copy(PathBuf);

impl Copy {
    fn of(backup: &Path) -> Result<Copy, Problem> {
        let mut name = backup.file_name().unwrap_or_default().to_owned();
        name.push(".opened");
        let copy = Copy(backup.with_file_name(name));
        let failed = |e| Problem::failed("open a copy of", backup, e);
        fs::create_dir(&copy.0).map_err(failed)?;
        for entry in fs::read_dir(backup).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            fs::copy(entry.path(), copy.0.join(entry.file_name())).map_err(failed)?;
        }
        Ok(copy)
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// SQLite's own opinion.
fn integrity(connection: &Connection, verdict: &mut Verdict) -> rusqlite::Result<()> {
    let mut statement = connection.prepare("PRAGMA integrity_check(3)")?;
    let lines: Vec<String> = statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    let ok = lines == ["ok"];
    verdict.add("integrity_check", ok, lines.join("; "));
    Ok(())
}

/// What the copy holds.
#[derive(Debug, Default)]
struct Books {
    accounts: i64,
    sum: i64,
    /// Accounts whose balance is not what the ledger makes of it.
    wrong: i64,
    transfers: i64,
    newest_id: i64,
    newest_at_ns: i64,
    /// Whether every row of the ledger is later than the one before it.
    in_order: bool,
}

impl Books {
    fn read(connection: &Connection, bank: &Bank) -> rusqlite::Result<Books> {
        let mut books = Books { in_order: true, ..Books::default() };
        let mut balances = vec![FIRST_BALANCE; usize::try_from(bank.accounts).unwrap_or(0) + 1];
        let mut statement =
            connection.prepare("SELECT id, at_ns, source, target, amount FROM ledger ORDER BY id")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (id, at_ns): (i64, i64) = (row.get(0)?, row.get(1)?);
            books.transfers += 1;
            books.in_order &= id > books.newest_id && at_ns > books.newest_at_ns;
            (books.newest_id, books.newest_at_ns) = (id, at_ns);
            let amount: i64 = row.get(4)?;
            let (source, target): (i64, i64) = (row.get(2)?, row.get(3)?);
            for (account, change) in [(source, -amount), (target, amount)] {
                if let Some(balance) = usize::try_from(account).ok().and_then(|id| balances.get_mut(id)) {
                    *balance += change;
                }
            }
        }
        let mut statement = connection.prepare("SELECT id, balance FROM account")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (id, balance): (i64, i64) = (row.get(0)?, row.get(1)?);
            books.accounts += 1;
            books.sum += balance;
            let expected = usize::try_from(id).ok().and_then(|id| balances.get(id));
            books.wrong += i64::from(expected != Some(&balance));
        }
        Ok(books)
    }

    fn judge(&self, bank: &Bank, verdict: &mut Verdict) {
        let (sum, expected) = (count(self.sum), count(bank.sum()));
        let ok = self.sum == bank.sum() && self.accounts == bank.accounts;
        let text = if ok { format!("{sum}, as at first") } else { format!("{sum} instead of {expected}") };
        verdict.add("sum of balances", ok, text);
        let gaps = self.newest_id - self.transfers;
        let transfers = count(self.transfers);
        let text = match (self.wrong, gaps) {
            (0, 0) if self.in_order => {
                format!("{transfers} transfers make up all {} balances", count(self.accounts))
            }
            (0, 0) => "transfers are out of order".into(),
            (0, _) => format!("{} transfers are missing in between", count(gaps)),
            (wrong, _) => {
                format!("{} balances are not what {transfers} transfers make of them", count(wrong))
            }
        };
        verdict.add("ledger", self.wrong == 0 && gaps == 0 && self.in_order, text);
        verdict.transfers = self.transfers;
    }
}

/// One instant: every transfer that was committed before the cut is in the copy, and none that was begun after it.
fn newest(books: &Books, cut_ns: i64, seen: &[Transfer], verdict: &mut Verdict) {
    let before = cut_ns - books.newest_at_ns;
    let committed = seen.iter().filter(|t| t.done_ns < cut_ns && t.id > books.newest_id).count();
    let begun_later = seen.iter().filter(|t| t.begun_ns > cut_ns && t.id <= books.newest_id).count();
    let text = if committed > 0 {
        format!("{committed} transfers that were committed before the cut are missing")
    } else if begun_later > 0 {
        format!("{begun_later} transfers that were begun after the cut are in it")
    } else if before < 0 {
        format!("{:.3} ms after the cut", -before as f64 / 1e6)
    } else {
        format!("{:.3} ms before the cut", before as f64 / 1e6)
    };
    verdict.add("newest transfer", committed == 0 && begun_later == 0 && before >= 0, text);
    verdict.newest_before_cut_ns = Some(before);
}

/// A number as people write it: 1,234,567.
pub fn count(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if number < 0 { format!("-{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::args::Mode;
    use crate::tellers::Tellers;

    #[test]
    fn numbers_have_commas() {
        assert_eq!(
            [0, 999, 1000, 1_234_567, -45_678].map(count),
            ["0", "999", "1,000", "1,234,567", "-45,678"]
        );
    }

    /// A bank whose tellers rest, the directory it is in, and what they remember.
    fn quiet_bank(place: &Path) -> (Bank, SystemTime, Vec<Transfer>) {
        let bank = Bank::open_or_make(&place.join("live/bank.db"), Some(1 << 20)).expect("made");
        bank.set_mode(Mode::Wal).expect("set");
        let tellers = Tellers::start(&bank, 2).expect("started");
        std::thread::sleep(Duration::from_millis(200));
        let seen = tellers.stop().expect("stopped");
        (bank, SystemTime::now(), seen)
    }

    fn wrong(verdict: &Verdict) -> Vec<&'static str> {
        verdict.findings.iter().filter(|finding| !finding.ok).map(|finding| finding.name).collect()
    }

    #[test]
    fn a_plain_copy_of_a_quiet_bank_is_right_and_stays_as_it_is() {
        let place = tempfile::tempdir().expect("a directory");
        let (bank, cut, seen) = quiet_bank(place.path());
        let verdict = check(&bank, bank.directory(), cut, &seen).expect("checked");
        assert!(verdict.ok(), "{verdict:?}");
        assert_eq!(fs::read_dir(place.path()).expect("listed").count(), 1);
    }

    #[test]
    fn every_kind_of_wrong_copy_is_found() {
        let place = tempfile::tempdir().expect("a directory");
        let (bank, cut, seen) = quiet_bank(place.path());
        let change = |sql: &str| {
            bank::connect(&bank.path).and_then(|c| c.execute_batch(sql)).expect(sql);
            check(&bank, bank.directory(), cut, &seen).expect("checked")
        };
        assert_eq!(
            wrong(&change("UPDATE account SET balance = balance + 1 WHERE id = 7")),
            ["sum of balances", "ledger"]
        );
        assert_eq!(wrong(&change("UPDATE account SET balance = balance - 1 WHERE id = 8")), ["ledger"]);
        change(
            "UPDATE account SET balance = balance - 1 WHERE id = 7; UPDATE account SET balance = balance + 1 WHERE id = 8",
        );
        let newest = "FROM ledger WHERE id = (SELECT max(id) FROM ledger)";
        let undo = format!(
            "UPDATE account SET balance = balance + (SELECT amount {newest}) WHERE id = (SELECT source {newest});
             UPDATE account SET balance = balance - (SELECT amount {newest}) WHERE id = (SELECT target {newest});
             DELETE {newest}"
        );
        assert_eq!(wrong(&change(&undo)), ["newest transfer"]);
        let early = check(&bank, bank.directory(), cut - Duration::from_secs(60), &seen).expect("checked");
        assert_eq!(wrong(&early), ["newest transfer"]);
    }
}
