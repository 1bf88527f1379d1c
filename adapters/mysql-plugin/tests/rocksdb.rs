//! Backups of a server with MyRocks tables, in its data directory and elsewhere.
//!
//! Method: as in `server.rs`, for the server `mariadb1011-rocksdb`, which has the plugin.

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use common::{How, Product, Server};
use mysql::prelude::Queryable;

const ACCOUNTS: u64 = 100;

/// Money moves, and every transfer has a number; all in one transaction.
fn transfer(server: &Server, stop: &AtomicBool, committed: &AtomicU64) {
    let mut connection = server.connect();
    for number in 1u64.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let (from, to) = (number * 7 % ACCOUNTS, number * 13 % ACCOUNTS);
        for statement in [
            "BEGIN".to_owned(),
            format!("UPDATE rocks.account SET balance = balance - 1 WHERE id = {from}"),
            format!("UPDATE rocks.account SET balance = balance + 1 WHERE id = {to}"),
            format!("INSERT INTO rocks.sequence VALUES ({number}, REPEAT('r', 2000))"),
            "COMMIT".to_owned(),
        ] {
            connection.query_drop(&statement).unwrap_or_else(|e| panic!("{statement}: {e}"));
        }
        committed.store(number, Ordering::SeqCst);
    }
}

#[test]
fn tables_of_rocksdb_are_of_one_instant() {
    let _alone = common::alone();
    let Some(product) = Product::wanted().filter(|product| product.name == "mariadb1011-rocksdb") else {
        return common::say("skipped: HOTBACKUP_SERVER is not mariadb1011-rocksdb");
    };
    let away = tempfile::tempdir().expect("a directory");
    let elsewhere = away.path().canonicalize().expect("resolved").join("rocks");
    // A small memtable, so that files come and go.
    let how = How::usual().and("--plugin-load-add=ha_rocksdb").and(
        "--rocksdb-default-cf-options=write_buffer_size=256k;target_file_size_base=256k;level0_file_num_compaction_trigger=2",
    );
    for place in [None, Some(&elsewhere)] {
        let at = |how: &How, place: Option<&std::path::Path>| match place {
            Some(place) => how.clone().and(format!("--rocksdb-datadir={}", place.display())),
            None => how.clone(),
        };
        let server = Server::start_after(product, &at(&how, place.map(|place| &**place)), |data| {
            product.give_plugin(data, "ha_rocksdb.so");
        });
        let mut connection = server.with_plugin();
        for statement in [
            "CREATE DATABASE rocks",
            "CREATE TABLE rocks.account (id INT PRIMARY KEY, balance INT NOT NULL) ENGINE=ROCKSDB",
            "CREATE TABLE rocks.sequence (n BIGINT PRIMARY KEY, filler VARCHAR(3000)) ENGINE=ROCKSDB",
        ] {
            connection.query_drop(statement).unwrap_or_else(|e| panic!("{statement}: {e}"));
        }
        for id in 0..ACCOUNTS {
            connection
                .query_drop(format!("INSERT INTO rocks.account VALUES ({id}, 1000)"))
                .expect("an account");
        }
        let (stop, committed) = (AtomicBool::new(false), AtomicU64::new(0));
        let copies: Vec<_> = std::thread::scope(|scope| {
            scope.spawn(|| transfer(&server, &stop, &committed));
            let copies = (0..3).map(|number| {
                std::thread::sleep(Duration::from_millis(700));
                let directory = server.room().join(format!("backup{number}"));
                let least = committed.load(Ordering::SeqCst);
                let outcome =
                    connection.query_drop(format!("SET tokudb_backup_dir='{}'", directory.display()));
                stop.store(number == 2 || outcome.is_err(), Ordering::Relaxed);
                outcome.unwrap_or_else(|e| panic!("backup {number}: {e}"));
                (directory, least, committed.load(Ordering::SeqCst) + 1)
            });
            copies.collect()
        });
        for (directory, least, most) in copies {
            let rocks = place.map(|_| directory.join("rocksdb_datadir"));
            let data = directory.join("mysql_data_dir");
            assert!(rocks.as_ref().unwrap_or(&data.join("#rocksdb")).is_dir(), "where is it?");
            product.give_plugin(&data, "ha_rocksdb.so");
            let copy = Server::start_on_copy(product, &at(&how, rocks.as_deref()), &data);
            let mut connection = copy.connect();
            let rows: Vec<(String, String, String, String)> =
                connection.query("CHECK TABLE rocks.account, rocks.sequence").expect("checked");
            assert!(rows.iter().all(|row| row.3 == "OK"), "{rows:?}");
            let sum: Option<u64> =
                connection.query_first("SELECT SUM(balance) FROM rocks.account").expect("the sum");
            assert_eq!(sum, Some(ACCOUNTS * 1000));
            let (count, last): (u64, u64) = connection
                .query_first("SELECT COUNT(*), COALESCE(MAX(n), 0) FROM rocks.sequence")
                .expect("the sequence")
                .expect("a row");
            common::say(&format!("{last} of {least} to {most}, elsewhere: {}", place.is_some()));
            assert_eq!(count, last, "the sequence has gaps");
            assert!((least..=most).contains(&last), "it ends at {last}, not between {least} and {most}");
        }
    }
}
