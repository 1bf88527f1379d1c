//! What other tools fail at: tables that are defined anew under the copier, and a redo log that wraps while they read it.
//!
//! Method: as in `server.rs`, with the smallest redo log that the server takes, and a throttle that makes the copying last until the
//! log has wrapped several times. With `HOTBACKUP_BACKUPS` the throttle stays to the end.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::load::{self, Tally};
use common::{How, Product, Server, status};
use mysql::Conn;
use mysql::prelude::Queryable;

/// How often the redo log has to wrap.
const WRAPS: u64 = 4;

/// The smallest redo log, in bytes, and the option for it.
fn small_redo(product: &Product, how: How) -> (u64, How) {
    match &*product.name {
        "mysql56" => (
            2 << 20,
            how.and("--innodb-log-file-size=1M")
                .and("--innodb-log-files-in-group=2")
                .and("--innodb-file-per-table"),
        ),
        "mysql97" => (8 << 20, how.and("--innodb-redo-log-capacity=8M")),
        _ => (4 << 20, how.and("--innodb-log-file-size=4M")),
    }
}

/// How many bytes of redo were ever written.
fn redo_written(connection: &mut Conn) -> u64 {
    let row: Option<(String, String, String)> =
        connection.query_first("SHOW ENGINE INNODB STATUS").expect("the status");
    let text = row.expect("a row").2;
    let line = text.lines().find_map(|line| line.trim().strip_prefix("Log sequence number"));
    line.expect("a line").trim().parse().expect("a number")
}

/// Tables of some size, which take the copier a while: filled, optimised, moved, renamed, emptied, dropped, made anew.
fn define(product: &Product, connection: &mut Conn, stop: &AtomicBool) -> u64 {
    let mut run = |statement: String| {
        connection.query_drop(&statement).unwrap_or_else(|e| panic!("{statement}: {e}"));
    };
    let is_new = product.name == "mysql97";
    if is_new {
        run("CREATE TABLESPACE shared ADD DATAFILE 'shared.ibd'".into());
    }
    for round in 0.. {
        if stop.load(Ordering::Relaxed) {
            return round;
        }
        let (table, other) = (format!("bank.dd{}", round % 3), format!("bank.ee{}", round % 3));
        run(format!("CREATE TABLE {table} (id INT AUTO_INCREMENT PRIMARY KEY, data LONGBLOB) ENGINE=InnoDB"));
        // MySQL 5.6 takes no value that is larger than a tenth of the redo log.
        for letter in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"] {
            run(format!("INSERT INTO {table} (data) VALUES (REPEAT('{letter}', 150000))"));
        }
        run(format!("OPTIMIZE TABLE {table}"));
        if is_new {
            run(format!("ALTER TABLE {table} TABLESPACE shared"));
            run(format!("ALTER TABLE {table} TABLESPACE innodb_file_per_table"));
        }
        run(format!("RENAME TABLE {table} TO {other}"));
        run(format!("TRUNCATE TABLE {other}"));
        run(format!("INSERT INTO {other} (data) VALUES (REPEAT('z', 150000))"));
        // One of another shape in the old one's place.
        run(format!("CREATE TABLE {table} (n INT PRIMARY KEY) ENGINE=InnoDB"));
        run(format!("ALTER TABLE {other} DISCARD TABLESPACE"));
        run(format!("DROP TABLE {table}, {other}"));
    }
    unreachable!("it goes on for ever")
}

#[test]
fn tables_under_the_copier_and_a_redo_log_that_wraps() {
    let _alone = common::alone();
    let Some(product) = Product::wanted() else { return };
    let (redo, how) = small_redo(product, How::usual());
    let server = Server::start(product, &how);
    let (mut connection, mut watcher) = (server.with_plugin(), server.connect());
    load::furnish(product, &mut connection);
    connection.query_drop("SET tokudb_backup_throttle=1000000").expect("set");
    let (tally, backup) = (Tally::default(), server.room().join("backup"));
    let (least, most) = std::thread::scope(|scope| {
        let stop = load::Stop(&tally);
        load::start_but_resizing(scope, &server, &tally);
        let definer = scope.spawn(|| define(product, &mut server.connect(), &tally.stop));
        let least = tally.sequence.load(Ordering::SeqCst);
        let begun = Instant::now();
        let set = format!("SET tokudb_backup_dir='{}'", backup.display());
        let outcome = scope.spawn(|| connection.query_drop(set));
        // The first session of a library that was attached waits for threads that have been inside of calls since before.
        while status(&mut watcher, "phase") != "copy" {
            assert!(
                !outcome.is_finished() && begun.elapsed() < Duration::from_secs(60),
                "it does not begin to copy"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        let before = redo_written(&mut watcher);
        let wraps = |watcher: &mut Conn| (redo_written(watcher) - before) / redo;
        while wraps(&mut watcher) < WRAPS {
            assert!(!outcome.is_finished(), "it ended after {} wraps of the redo log", wraps(&mut watcher));
            assert!(begun.elapsed() < Duration::from_secs(60), "the redo log does not wrap");
            std::thread::sleep(Duration::from_millis(100));
        }
        assert_eq!(status(&mut watcher, "phase"), "copy");
        if std::env::var("HOTBACKUP_BACKUPS").is_err() {
            watcher.query_drop("SET tokudb_backup_throttle=DEFAULT").expect("set");
        }
        outcome.join().expect("no panic").unwrap_or_else(|e| panic!("{e}"));
        let (wraps, most) = (wraps(&mut watcher), tally.sequence.load(Ordering::SeqCst) + 1);
        drop(stop);
        let rounds = definer.join().expect("no panic");
        assert!(rounds > 0, "no table was dropped");
        common::say(&format!(
            "{:?}: {wraps} wraps of the redo log, {rounds} rounds of definitions",
            begun.elapsed()
        ));
        (least, most)
    });
    let copy = Server::start_on_copy(product, &how, &backup.join("mysql_data_dir"));
    load::check(product, &mut copy.connect(), least, most);
}
