//! The server's own lock around the instant of a backup (`tokudb_backup_lock`), and who may ask for backups.
//!
//! Method: as in `server.rs`. One client writes tables without transactions, the same number into each, while backups are made
//! with the lock; in a server that is started on the copy these tables have to be in order at once, and to hold the same numbers.

mod common;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{How, Product, Server, failure, last, status};
use mysql::Conn;
use mysql::prelude::Queryable;

fn back_up(connection: &mut Conn, directory: &Path) -> mysql::Result<()> {
    connection.query_drop(format!("SET tokudb_backup_dir='{}'", directory.display()))
}

/// Tables without transactions, each of its engine.
fn engines(product: &Product) -> &'static [(&'static str, &'static str)] {
    match product.is_mariadb() {
        true => &[
            ("m", "ENGINE=MyISAM"),
            ("c", "ENGINE=CSV"),
            ("a", "ENGINE=Aria TRANSACTIONAL=0"),
            ("t", "ENGINE=Aria TRANSACTIONAL=1"),
        ],
        false => &[("m", "ENGINE=MyISAM"), ("c", "ENGINE=CSV")],
    }
}

fn furnish(product: &Product, connection: &mut Conn) {
    connection.query_drop("CREATE DATABASE plain").expect("a database");
    for (name, options) in engines(product) {
        let key = if *name == "c" { "" } else { ", KEY (n)" };
        let statement = format!(
            "CREATE TABLE plain.{name} (n BIGINT NOT NULL, filler VARCHAR(200) NOT NULL{key}) {options}"
        );
        connection.query_drop(&statement).expect(&statement);
    }
    connection
        .query_drop("CREATE TABLE plain.i (n BIGINT PRIMARY KEY) ENGINE=InnoDB")
        .expect("a table with transactions");
}

/// Writes one number after the other into all tables. `written` is the last one that is in all of them.
fn write(product: &Product, connection: &mut Conn, stop: &AtomicBool, written: &AtomicU64) {
    for number in 1u64.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        for (name, _) in engines(product).iter().chain(&[("i", "")]) {
            let values = if *name == "i" { "(n)" } else { "(n, filler)" };
            let filler = if *name == "i" { "" } else { ", REPEAT('f', 150)" };
            let statement = format!("INSERT INTO plain.{name} {values} VALUES ({number}{filler})");
            connection.query_drop(&statement).expect(&statement);
        }
        written.store(number, Ordering::SeqCst);
    }
}

/// What `CHECK TABLE` says.
fn check(connection: &mut Conn, table: &str) -> Vec<(String, String)> {
    let rows: Vec<(String, String, String, String)> =
        connection.query(format!("CHECK TABLE plain.{table}")).expect("checked");
    rows.into_iter().map(|(_, _, kind, text)| (kind, text)).collect()
}

/// Every table is in order without repair, and holds the numbers of one instant, written after `least` was.
fn check_copy(product: &Product, connection: &mut Conn, least: u64, most: u64) {
    let mut before = most;
    // In the order in which each number was written: no table is ahead of the one before, and none a whole number behind.
    for (table, _) in engines(product).iter().chain(&[("i", "")]) {
        assert_eq!(check(connection, table), [("status".to_owned(), "OK".to_owned())], "{table}");
        let query = format!("SELECT COUNT(*), COALESCE(MAX(n), 0) FROM plain.{table}");
        let (count, last): (u64, u64) = connection.query_first(query).expect("the numbers").expect("a row");
        assert_eq!(count, last, "{table} has gaps");
        assert!((least..=before).contains(&last), "{table} ends at {last}, not between {least} and {before}");
        before = last;
    }
}

/// Whether the last binary log of a copy ends where a transaction does, and not in the middle of one or of an event.
fn ends_between_transactions(data: &Path) -> bool {
    const QUERY: u8 = 2;
    const XID: u8 = 16;
    const MARIADB_GTID: u8 = 162;
    let is_log =
        |name: &str| name.strip_prefix("binlog.").is_some_and(|number| number.parse::<u32>().is_ok());
    let names = std::fs::read_dir(data).expect("the copy").flatten();
    let names = names.map(|entry| entry.file_name().into_string().expect("a name"));
    let last = names.filter(|name| is_log(name)).max().expect("a binary log");
    let log = std::fs::read(data.join(&last)).expect("the log");
    let (mut at, mut is_inside) = (4, false);
    while at < log.len() {
        let Some(head) = log.get(at..at + 19) else { return false };
        let len = u32::from_le_bytes([head[9], head[10], head[11], head[12]]) as usize;
        let Some(event) = log.get(at..at + len) else { return false };
        // The text of a statement is the last thing in its event, but for a checksum.
        let ends_with =
            |text: &str| event[len - text.len() - 4..].windows(text.len()).any(|w| w == text.as_bytes());
        match head[4] {
            XID => is_inside = false,
            QUERY if ends_with("COMMIT") => is_inside = false,
            QUERY if ends_with("BEGIN") => is_inside = true,
            // What is not a group of events by itself.
            MARIADB_GTID => is_inside = event[19 + 12] & 1 == 0,
            _ => {}
        }
        at += len;
    }
    !is_inside
}

/// Transactions that are little work but for the binary log, which takes many writes for each.
fn commit_much(connection: &mut Conn, stop: &AtomicBool) {
    let statements = [
        "SET SESSION binlog_format=ROW",
        "CREATE TABLE plain.much (n INT PRIMARY KEY, small INT, data LONGBLOB) ENGINE=InnoDB",
        "INSERT INTO plain.much VALUES (1, 0, REPEAT('m', 1000000)), (2, 0, REPEAT('m', 1000000))",
    ];
    statements.iter().for_each(|statement| connection.query_drop(statement).expect(statement));
    while !stop.load(Ordering::Relaxed) {
        connection.query_drop("UPDATE plain.much SET small = small + 1").expect("committed");
    }
}

/// Tells clients to stop when it goes, also if a test fails.
struct AtEnd<'a>(&'a AtomicBool);

impl Drop for AtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn with_the_lock_all_tables_are_in_order_at_once_and_the_log_ends_between_transactions() {
    let _alone = common::alone();
    let Some(product) = Product::wanted() else { return };
    let server = Server::start(product, &How::usual());
    let mut connection = server.with_plugin();
    furnish(product, &mut connection);
    let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut copies = Vec::new();
    std::thread::scope(|scope| {
        let (mut writer, mut committer, stop, written) =
            (server.connect(), server.connect(), &stop, &written);
        scope.spawn(move || write(product, &mut writer, stop, written));
        scope.spawn(move || commit_much(&mut committer, stop));
        let _stop = AtEnd(stop);
        for kind in ["tables", "binlog"] {
            std::thread::sleep(Duration::from_millis(500));
            let directory = server.room().join(kind);
            let least = written.load(Ordering::SeqCst);
            let outcome = connection
                .query_drop(format!("SET tokudb_backup_lock='{kind}'"))
                .and_then(|()| back_up(&mut connection, &directory));
            let most = written.load(Ordering::SeqCst) + 1;
            outcome.unwrap_or_else(|e| panic!("lock={kind}: {e}"));
            // The server's writes go on.
            let begun = Instant::now();
            while written.load(Ordering::SeqCst) <= most {
                assert!(begun.elapsed() < Duration::from_secs(10), "lock={kind}: a lock was left behind");
                std::thread::sleep(Duration::from_millis(10));
            }
            copies.push((directory.join("mysql_data_dir"), least, most));
        }
    });
    for (data, ..) in &copies {
        assert!(ends_between_transactions(data), "{}", data.display());
    }
    let (data, least, most) = copies.swap_remove(0);
    let copy = Server::start_on_copy(product, &How::usual(), &data);
    check_copy(product, &mut copy.connect(), least, most);
}

/// Waits until the processlist says that the session `id` waits for the lock.
fn wait_until_it_waits(connection: &mut Conn, id: u32) {
    let begun = Instant::now();
    let query = format!("SELECT STATE FROM information_schema.PROCESSLIST WHERE ID={id}");
    loop {
        let state: Option<Option<String>> = connection.query_first(&query).expect("the processlist");
        let state = state.flatten().unwrap_or_default();
        if state.ends_with("Waiting for the lock of the server") {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "the processlist shows {state:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What another session holds, and what it does to let it go.
fn in_the_way(product: &Product) -> [(&'static str, &'static str); 2] {
    match product.is_mariadb() {
        true => [("LOCK TABLES plain.m WRITE", "UNLOCK TABLES"), ("BACKUP STAGE START", "BACKUP STAGE END")],
        false => {
            [("LOCK TABLES plain.m WRITE", "UNLOCK TABLES"), ("LOCK TABLES plain.i WRITE", "UNLOCK TABLES")]
        }
    }
}

/// Some sessions of a server.
struct Scene {
    server: Server,
    /// Makes the backups.
    backup: Conn,
    /// Holds what is in the way.
    other: Conn,
    watcher: Conn,
    writer: Conn,
}

impl Scene {
    fn set(product: &Product) -> Scene {
        let server = Server::start(product, &How::usual());
        let mut backup = server.with_plugin();
        furnish(product, &mut backup);
        let (other, watcher, writer) = (server.connect(), server.connect(), server.connect());
        Scene { server, backup, other, watcher, writer }
    }

    fn statement(&self, directory: &str) -> String {
        format!("SET tokudb_backup_dir='{}'", self.server.room().join(directory).display())
    }

    /// The server's writes go on.
    fn write(&mut self, when: &str) {
        let begun = Instant::now();
        self.writer.query_drop("INSERT INTO plain.c VALUES (1, 'x')").expect("written");
        assert!(begun.elapsed() < Duration::from_secs(3), "{when}: a write took {:?}", begun.elapsed());
    }

    /// Has a backup wait for the lock while another session locks a table; what that fails with after `act`.
    fn while_it_waits(&mut self, directory: &str, act: impl FnOnce(&mut Scene, u32)) -> (u16, String) {
        self.other.query_drop("LOCK TABLES plain.m WRITE").expect("locked");
        let (set, id) = (self.statement(directory), self.backup.connection_id());
        let mut backup = std::mem::replace(&mut self.backup, self.server.connect());
        std::thread::scope(|scope| {
            let outcome = scope.spawn(|| failure(&mut backup, &set));
            wait_until_it_waits(&mut self.watcher, id);
            act(self, id);
            outcome.join().expect("no panic")
        })
    }
}

#[test]
fn a_lock_that_cannot_be_had_fails_the_backup_in_time() {
    let _alone = common::alone();
    let Some(product) = Product::wanted() else { return };
    let mut scene = Scene::set(product);
    scene.backup.query_drop("SET tokudb_backup_lock='tables', tokudb_backup_lock_timeout=1").expect("set");
    for (number, (hold, release)) in in_the_way(product).into_iter().enumerate() {
        scene.other.query_drop(hold).expect(hold);
        let directory = format!("late{number}");
        let (set, begun) = (scene.statement(&directory), Instant::now());
        let (code, _) = failure(&mut scene.backup, &set);
        assert!(begun.elapsed() < Duration::from_secs(6), "{hold}: it took {:?}", begun.elapsed());
        assert_eq!(code, 1231);
        let (error, text) = last(&mut scene.backup);
        let expected = "the server did not give its lock (tokudb_backup_lock=tables) within 1 s: \
                        a statement that takes long or a lock of another session is in the way";
        assert_eq!((error, text.as_deref()), (libc::ETIMEDOUT as u64, Some(expected)), "{hold}");
        let mark = scene.server.room().join(directory).join("mysql_data_dir.incomplete/HOTBACKUP-INCOMPLETE");
        assert!(mark.is_dir(), "it looks complete");
        scene.write(hold);
        scene.other.query_drop(release).expect(release);
    }
    let set = scene.statement("good");
    scene.backup.query_drop(set).expect("a backup");
    scene.write("a good one");
}

#[test]
fn no_lock_is_left_behind_by_a_backup_that_is_killed_or_paused() {
    let _alone = common::alone();
    let Some(product) = Product::wanted() else { return };
    let mut scene = Scene::set(product);
    scene.backup.query_drop("SET tokudb_backup_lock='tables'").expect("set");
    let mut asked = Instant::now();
    let (code, text) = scene.while_it_waits("killed", |scene, id| {
        scene.write("it waits");
        asked = Instant::now();
        scene.watcher.query_drop(format!("KILL QUERY {id}")).expect("killed");
    });
    assert!(asked.elapsed() < Duration::from_secs(1), "it took {:?} to end", asked.elapsed());
    assert!(matches!(code, 1231 | 1317), "{code} {text}");
    // The plugin can go while its thread is in its last second of waiting.
    scene.watcher.query_drop("UNINSTALL PLUGIN tokudb_backup").expect("uninstalled");
    scene.write("uninstalled");
    scene.other.query_drop("UNLOCK TABLES").expect("unlocked");
    scene.backup = scene.server.with_plugin();

    let timeout = "SET tokudb_backup_lock='tables', tokudb_backup_lock_timeout=2";
    scene.backup.query_drop(timeout).expect("set");
    let (_, text) = scene.while_it_waits("paused", |scene, _| {
        scene.watcher.query_drop("SET tokudb_backup_throttle=0").expect("paused");
        scene.other.query_drop("UNLOCK TABLES").expect("unlocked");
    });
    assert!(text.ends_with("was held for 2 s, and the instant of the backup had not come"), "{text}");
    scene.write("paused");
    assert_eq!(status(&mut scene.watcher, "state"), "idle");
}

#[test]
fn what_is_no_lock_is_refused() {
    let _alone = common::alone();
    let Some(product) = Product::wanted() else { return };
    let how = How::usual().and("--plugin-load=tokudb_backup.so").and("--tokudb-backup-lock=whatever");
    let server = Server::start(product, &how);
    let mut connection = server.connect();
    let why = "tokudb_backup_lock is one of none, binlog and tables";
    for value in ["'whatever'", "''", "NULL"] {
        let (code, text) = failure(&mut connection, &format!("SET tokudb_backup_lock={value}"));
        assert_eq!(code, 1231, "{text}");
        assert!(text.ends_with(why), "{text}");
    }
    // Options at the start of the server are not checked until they are used.
    let directory = server.room().join("backup");
    let set = format!("SET tokudb_backup_dir='{}'", directory.display());
    let (_, text) = failure(&mut connection, &set);
    assert!(text.ends_with(why), "{text}");
    assert!(!directory.exists(), "something was made");
    connection.query_drop("SET tokudb_backup_lock='Tables'").expect("in whatever case");
    let value: Option<String> = connection.query_first("SELECT @@tokudb_backup_lock").expect("a row");
    assert_eq!(value.as_deref(), Some("tables"));
    connection.query_drop(&set).expect("a backup");

    // In MySQL 8 and later the lock is asked for as the one who makes the backup.
    if product.name == "mysql97" {
        connection.query_drop("CREATE USER 'backup'@'localhost'").expect("a user");
        connection.query_drop("GRANT BACKUP_ADMIN ON *.* TO 'backup'@'localhost'").expect("granted");
        let mut backup = server.connect_as("backup");
        backup.query_drop("SET tokudb_backup_lock='tables'").expect("set");
        let set = format!("SET tokudb_backup_dir='{}'", server.room().join("denied").display());
        let (_, text) = failure(&mut backup, &set);
        assert!(
            text.contains("the server did not give its lock (tokudb_backup_lock=tables): Access denied"),
            "{text}"
        );
        connection.query_drop("GRANT FLUSH_TABLES ON *.* TO 'backup'@'localhost'").expect("granted");
        back_up(&mut backup, &server.room().join("granted")).expect("a backup");
    }
}
