//! Clients that keep a server busy, and what the copy of their tables has to hold.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::Scope;
use std::time::{Duration, Instant};

use mysql::Conn;
use mysql::prelude::Queryable;

use super::{Product, Server};

const ACCOUNTS: u64 = 200;
const BALANCE: u64 = 1000;

/// What clients have done so far.
#[derive(Default)]
pub struct Tally {
    pub stop: AtomicBool,
    /// The greatest number of the sequence that is committed.
    pub sequence: AtomicU64,
    pub transfers: AtomicU64,
    pub definitions: AtomicU64,
    /// How often the redo log got another size.
    pub resizes: AtomicU64,
    /// The longest that a client waited for one commit, in microseconds. Nobody else writes its table.
    longest: AtomicU64,
}

/// Ends the clients when it goes, also when a test fails.
pub struct Stop<'a>(pub &'a Tally);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

/// What clients did since a moment.
pub struct Pace {
    since: Instant,
    transfers: u64,
}

impl Pace {
    pub fn from_now(tally: &Tally) -> Pace {
        tally.longest.store(0, Ordering::Relaxed);
        Pace { since: Instant::now(), transfers: tally.transfers.load(Ordering::Relaxed) }
    }

    /// Transfers per second since then, and the longest commit.
    pub fn said(&self, tally: &Tally) -> String {
        let transfers = tally.transfers.load(Ordering::Relaxed) - self.transfers;
        let rate = transfers as f64 / self.since.elapsed().as_secs_f64();
        let longest = Duration::from_micros(tally.longest.load(Ordering::Relaxed));
        format!("{rate:.0}/s (longest commit {longest:.1?})")
    }
}

/// Tables of every kind that the server has.
pub fn furnish(product: &Product, connection: &mut Conn) {
    // What makes smaller pages of pages, and an engine of MariaDB's own, where there are such things.
    let (compressed, own) = match &*product.name {
        "mysql56" => ("ROW_FORMAT=COMPRESSED KEY_BLOCK_SIZE=8", "MyISAM"),
        "mysql97" => ("COMPRESSION='zlib'", "MyISAM"),
        _ => ("PAGE_COMPRESSED=1", "Aria"),
    };
    if product.name == "mysql56" {
        connection.query_drop("SET GLOBAL innodb_file_format=Barracuda").expect("set");
    }
    let packed = format!(
        "CREATE TABLE bank.packed (id INT PRIMARY KEY, data VARCHAR(4000)) ENGINE=InnoDB {compressed}"
    );
    let own = format!("CREATE TABLE bank.own (n BIGINT PRIMARY KEY, filler VARCHAR(200)) ENGINE={own}");
    let statements = [
        "CREATE DATABASE bank",
        "CREATE TABLE bank.account (id INT PRIMARY KEY, balance INT NOT NULL) ENGINE=InnoDB",
        "CREATE TABLE bank.sequence (n BIGINT PRIMARY KEY, filler VARCHAR(200)) ENGINE=InnoDB",
        "CREATE TABLE bank.large (id INT PRIMARY KEY, data LONGBLOB) ENGINE=InnoDB",
        "CREATE TABLE bank.parts (id INT PRIMARY KEY, data VARCHAR(100)) ENGINE=InnoDB PARTITION BY HASH(id) PARTITIONS 4",
        "CREATE TABLE bank.plain (n BIGINT PRIMARY KEY, filler VARCHAR(200)) ENGINE=MyISAM",
        "CREATE TABLE bank.lines (n BIGINT NOT NULL, filler VARCHAR(200) NOT NULL) ENGINE=CSV",
        &*packed,
        &*own,
    ];
    statements.iter().for_each(|statement| connection.query_drop(statement).expect(statement));
    for id in 0..ACCOUNTS {
        connection
            .query_drop(format!("INSERT INTO bank.account VALUES ({id}, {BALANCE})"))
            .expect("an account");
    }
}

/// Starts clients that go on until they are told to stop.
pub fn start<'scope>(scope: &'scope Scope<'scope, '_>, server: &'scope Server, tally: &'scope Tally) {
    run(
        scope,
        server,
        tally,
        &[transfer, transfer, transfer, append, rewrite, write_without_transactions, define, resize],
    );
}

/// The same, but the redo log keeps its size.
pub fn start_but_resizing<'scope>(
    scope: &'scope Scope<'scope, '_>,
    server: &'scope Server,
    tally: &'scope Tally,
) {
    run(
        scope,
        server,
        tally,
        &[transfer, transfer, transfer, append, rewrite, write_without_transactions, define],
    );
}

/// The same, with transactions only, and a new binary log every now and then.
pub fn start_transactions<'scope>(
    scope: &'scope Scope<'scope, '_>,
    server: &'scope Server,
    tally: &'scope Tally,
) {
    run(scope, server, tally, &[transfer, transfer, transfer, append, rewrite, rotate]);
}

fn run<'scope>(
    scope: &'scope Scope<'scope, '_>,
    server: &'scope Server,
    tally: &'scope Tally,
    clients: &[fn(&mut Conn, &Tally)],
) {
    for &client in clients {
        scope.spawn(move || {
            let mut connection = server.connect();
            client(&mut connection, tally);
        });
    }
}

fn going(tally: &Tally) -> bool {
    !tally.stop.load(Ordering::Relaxed)
}

/// Money moves between accounts; the sum never changes.
fn transfer(connection: &mut Conn, tally: &Tally) {
    let mut at = u64::from(connection.connection_id());
    while going(tally) {
        at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (from, to) = ((at >> 33) % ACCOUNTS, (at >> 13) % ACCOUNTS);
        let done = ["BEGIN".to_owned()]
            .into_iter()
            .chain([
                format!("UPDATE bank.account SET balance = balance - 1 WHERE id = {from}"),
                format!("UPDATE bank.account SET balance = balance + 1 WHERE id = {to}"),
                "COMMIT".to_owned(),
            ])
            .try_for_each(|statement| connection.query_drop(statement));
        match done {
            Ok(()) => drop(tally.transfers.fetch_add(1, Ordering::Relaxed)),
            // Two clients may have waited for each other.
            Err(_) => connection.query_drop("ROLLBACK").expect("rolled back"),
        }
    }
}

/// A number after the other, each committed before the next.
fn append(connection: &mut Conn, tally: &Tally) {
    for number in 1.. {
        if !going(tally) {
            return;
        }
        let statement = format!("INSERT INTO bank.sequence VALUES ({number}, REPEAT('s', 150))");
        let begun = Instant::now();
        connection.query_drop(statement).expect("appended");
        let took = u64::try_from(begun.elapsed().as_micros()).expect("not that long");
        tally.longest.fetch_max(took, Ordering::Relaxed);
        tally.sequence.store(number, Ordering::SeqCst);
    }
}

/// Values larger than a page, partitions, and compressed pages.
fn rewrite(connection: &mut Conn, tally: &Tally) {
    for number in (0u64..).take_while(|_| going(tally)) {
        let id = number % 20;
        let length = 1000 + number % 7 * 20_000;
        let large = format!("REPLACE INTO bank.large VALUES ({id}, REPEAT(CHAR(65 + {id}), {length}))");
        connection.query_drop(large).expect("replaced");
        let part = format!("REPLACE INTO bank.parts VALUES ({}, '{number}')", number % 500);
        connection.query_drop(part).expect("replaced");
        let packed = format!("REPLACE INTO bank.packed VALUES ({}, REPEAT('{number} ', 500))", number % 200);
        connection.query_drop(packed).expect("replaced");
    }
}

fn write_without_transactions(connection: &mut Conn, tally: &Tally) {
    for number in (1u64..).take_while(|_| going(tally)) {
        for table in ["plain", "lines", "own"] {
            let statement = format!("INSERT INTO bank.{table} VALUES ({number}, REPEAT('p', 100))");
            connection.query_drop(statement).expect("inserted");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn rotate(connection: &mut Conn, tally: &Tally) {
    while going(tally) {
        connection.query_drop("FLUSH BINARY LOGS").expect("rotated");
        tally.definitions.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(30));
    }
}

/// The redo log gets another size, where a server can do that while it runs.
fn resize(connection: &mut Conn, tally: &Tally) {
    for size in [24u64, 40].into_iter().cycle().take_while(|_| going(tally)) {
        let resized = ["innodb_redo_log_capacity", "innodb_log_file_size"]
            .into_iter()
            .any(|variable| connection.query_drop(format!("SET GLOBAL {variable}={}", size << 20)).is_ok());
        tally.resizes.fetch_add(u64::from(resized), Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Tables come, change and go all the while, and binary logs too.
fn define(connection: &mut Conn, tally: &Tally) {
    for number in (0u64..).take_while(|_| going(tally)) {
        let (old, new) = (format!("bank.d{}", number % 5), format!("bank.e{}", number % 5));
        let statements = [
            format!("CREATE TABLE {old} (id INT PRIMARY KEY, data VARCHAR(100)) ENGINE=InnoDB"),
            format!("INSERT INTO {old} VALUES (1, 'one'), (2, 'two')"),
            format!("ALTER TABLE {old} ADD COLUMN more INT DEFAULT 7"),
            format!("RENAME TABLE {old} TO {new}"),
            format!("OPTIMIZE TABLE {new}"),
            format!("TRUNCATE TABLE {new}"),
            format!("DROP TABLE {new}"),
            "FLUSH BINARY LOGS".to_owned(),
        ];
        for statement in statements {
            connection.query_drop(&statement).unwrap_or_else(|e| panic!("{statement}: {e}"));
            tally.definitions.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The checksums of the tables with transactions that clients rewrite, but for those that come and go.
pub fn sums(connection: &mut Conn) -> Vec<(String, Option<u64>)> {
    let tables = "bank.account, bank.sequence, bank.large, bank.parts, bank.packed";
    connection.query(format!("CHECKSUM TABLE {tables}")).expect("checksums")
}

/// Checks a server that was started on a copy: what was committed before `least` and `most` bound where its sequence ends.
pub fn check(product: &Product, connection: &mut Conn, least: u64, most: u64) {
    let tables: Vec<String> = connection.query("SHOW TABLES FROM bank").expect("the tables");
    for table in tables {
        // Before MySQL 8 a table that is being defined is in one of two dictionaries, as after a crash.
        if product.name == "mysql56" && table.starts_with(['d', 'e']) {
            continue;
        }
        let engine: Option<String> = connection
            .query_first(format!(
                "SELECT ENGINE FROM information_schema.TABLES WHERE TABLE_SCHEMA='bank' AND TABLE_NAME='{table}'"
            ))
            .expect("the engine");
        if engine.as_deref() != Some("InnoDB") {
            // As after a crash: nobody closed it.
            connection.query_drop(format!("REPAIR TABLE bank.{table}")).expect("repaired");
        }
        type Row = (String, String, String, String);
        let rows: Vec<Row> = connection.query(format!("CHECK TABLE bank.{table}")).expect("checked");
        let last = rows.last().expect("an answer");
        // The cut came between the `DISCARD TABLESPACE` and the `DROP TABLE` that only such tables get, in `peers.rs`.
        if table.starts_with("ee") && rows.iter().any(|row| row.3.contains(" discarded for table")) {
            continue;
        }
        assert_eq!((&*last.2, &*last.3), ("status", "OK"), "{rows:?}");
    }
    let sum: Option<u64> = connection.query_first("SELECT SUM(balance) FROM bank.account").expect("the sum");
    assert_eq!(sum, Some(ACCOUNTS * BALANCE));
    let sequence: Option<(u64, u64)> = connection
        .query_first("SELECT COUNT(*), COALESCE(MAX(n), 0) FROM bank.sequence")
        .expect("the sequence");
    let (count, last) = sequence.expect("a row");
    assert_eq!(count, last, "the sequence has gaps");
    assert!((least..=most).contains(&last), "the copy ends at {last}, not between {least} and {most}");
}
