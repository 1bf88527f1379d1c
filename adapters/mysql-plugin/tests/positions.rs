//! What is written beside a copy: positions, how to start it, and that it is complete.
//!
//! Method: as for `server.rs`. A recorded position is right if the copy's own server says the same of itself, and if a replica
//! that begins there goes on without an error and ends up equal to its source: beginning too early it would insert rows that
//! are there, too late it would miss some. `HOTBACKUP_BACKUPS` says how often a server is killed.

mod common;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::beside::{assignments, check_position, one, verify};
use common::load::{self, Stop, Tally};
use common::{How, Product, Server, failure};
use mysql::prelude::Queryable;
use mysql::{Conn, Row};

fn back_up(connection: &mut Conn, directory: &Path) {
    connection
        .query_drop(format!("SET tokudb_backup_dir='{}'", directory.display()))
        .unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port()
}

/// Logs the source's own GTIDs; listens on loopback.
fn networked(product: &Product, how: How, port: u16) -> How {
    let how = how
        .and("--skip-networking=0")
        .and("--bind-address=127.0.0.1")
        .and("--skip-name-resolve")
        .and(format!("--port={port}"));
    if product.is_mariadb() {
        return how.and("--log-slave-updates");
    }
    let how = how.and("--gtid-mode=ON").and("--enforce-gtid-consistency");
    if product.name == "mysql56" { how.and("--log-slave-updates") } else { how }
}

fn follow(product: &Product, connection: &mut Conn, info: &HashMap<String, String>, port: u16) {
    let (file, position, gtids) = (&info["filename"], &info["position"], &info["gtid_set"]);
    let at = format!("LOG_FILE='{file}', MASTER_LOG_POS={position}");
    let statements = if product.is_mariadb() {
        vec![
            format!("SET GLOBAL gtid_slave_pos='{gtids}'"),
            format!(
                "CHANGE MASTER TO MASTER_HOST='127.0.0.1', MASTER_PORT={port}, MASTER_USER='follower', \
                 MASTER_PASSWORD='SECRET-word', MASTER_USE_GTID=slave_pos"
            ),
            "START SLAVE".into(),
        ]
    } else if product.name == "mysql56" {
        vec![
            format!(
                "CHANGE MASTER TO MASTER_HOST='127.0.0.1', MASTER_PORT={port}, MASTER_USER='follower', \
                 MASTER_PASSWORD='SECRET-word', MASTER_{at}"
            ),
            "START SLAVE".into(),
        ]
    } else {
        vec![
            format!(
                "CHANGE REPLICATION SOURCE TO SOURCE_HOST='127.0.0.1', SOURCE_PORT={port}, SOURCE_USER='follower', \
                 SOURCE_PASSWORD='SECRET-word', SOURCE_LOG_FILE='{file}', SOURCE_LOG_POS={position}, \
                 GET_SOURCE_PUBLIC_KEY=1"
            ),
            "START REPLICA".into(),
        ]
    };
    statements.iter().for_each(|s| connection.query_drop(s).unwrap_or_else(|e| panic!("{s}: {e}")));
}

/// The row that says how a replica fares.
fn fares(product: &Product, replica: &mut Conn) -> Row {
    let word = if product.name == "mysql97" { "REPLICA" } else { "SLAVE" };
    replica.query_first(format!("SHOW {word} STATUS")).expect("the status").expect("it is a replica")
}

/// Waits until the replica has executed everything of its source, which has come to rest.
fn catch_up(product: &Product, source: &mut Conn, replica: &mut Conn) -> (String, u64) {
    let log = if product.name == "mysql97" { "BINARY LOG" } else { "MASTER" };
    let begun = Instant::now();
    loop {
        // Also at rest a server writes a checkpoint to its log now and then.
        let row: Row = source.query_first(format!("SHOW {log} STATUS")).expect("the status").expect("a row");
        let end: (String, u64) = (row.get(0).expect("a file"), row.get(1).expect("a position"));
        let row = fares(product, replica);
        let text = |names: [&str; 2]| -> String {
            names.iter().find_map(|name| row.get::<Option<String>, _>(*name)).flatten().unwrap_or_default()
        };
        let error = text(["Last_SQL_Error", "Last_Error"]) + &text(["Last_IO_Error", "Last_IO_Error"]);
        assert_eq!(error, "", "the replica stopped");
        let file = text(["Relay_Master_Log_File", "Relay_Source_Log_File"]);
        let at = text(["Exec_Master_Log_Pos", "Exec_Source_Log_Pos"]);
        if (&file, &at) == (&end.0, &end.1.to_string()) {
            return end;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "the replica is at {file} {at}, its source at {end:?}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_replica_from_a_copy_becomes_equal_to_its_source() {
    let _alone = common::alone();
    let Some(product) = Product::wanted() else { return };
    let (port, other_port) = (free_port(), free_port());
    let server = Server::start(product, &networked(product, How::usual(), port));
    let mut source = server.with_plugin();
    load::furnish(product, &mut source);
    source.query_drop("CREATE USER 'follower'@'127.0.0.1' IDENTIFIED BY 'SECRET-word'").expect("a user");
    source.query_drop("GRANT REPLICATION SLAVE ON *.* TO 'follower'@'127.0.0.1'").expect("granted");
    let (tally, backup) = (Tally::default(), server.room().join("backup"));
    let how = How::with(&["--log-bin=binlog", "--server-id=2"]);
    let how = networked(product, how, other_port);
    let copy = std::thread::scope(|scope| {
        load::start_transactions(scope, &server, &tally);
        let end = Stop(&tally);
        std::thread::sleep(Duration::from_millis(500));
        back_up(&mut source, &backup);
        verify(&backup);
        let data = backup.join("mysql_data_dir");
        let _ = std::fs::remove_file(data.join("auto.cnf"));
        let copy = Server::start_on(product, &how.clone().and("--skip-slave-start"), &data);
        let info = assignments(&backup.join("tokubackup_binlog_info"));
        common::say(&format!("the copy is at {info:?}"));
        check_position(product, &copy, &info);
        follow(product, &mut copy.connect(), &info, port);
        std::thread::sleep(Duration::from_millis(500));
        drop(end);
        copy
    });
    let mut replica = copy.connect();
    let at = catch_up(product, &mut source, &mut replica);
    assert_eq!(load::sums(&mut source), load::sums(&mut replica));
    let rows = one(&mut replica, "SELECT MAX(n) FROM bank.sequence");
    assert_eq!(rows, tally.sequence.load(Ordering::SeqCst).to_string());
    check_safe_slave(product, &copy, &mut source, port);
    let at = catch_up(product, &mut source, &mut replica).max(at);
    check_replica(product, &copy, &mut replica, &at, port);
}

/// Words for replication that servers have changed.
fn replication(product: &Product, verb: &str) -> String {
    format!("{verb} {}", if product.name == "mysql97" { "REPLICA" } else { "SLAVE" })
}

/// Whether the SQL threads of the replica's channels run, by the channels' names.
fn running(product: &Product, replica: &mut Conn) -> Vec<(String, String)> {
    let show = if product.is_mariadb() {
        "SHOW ALL SLAVES STATUS".into()
    } else {
        replication(product, "SHOW") + " STATUS"
    };
    let rows: Vec<Row> = replica.query(show).expect("the status");
    let text = |row: &Row, names: [&str; 2]| -> String {
        names.iter().find_map(|name| row.get::<Option<String>, _>(*name)).flatten().unwrap_or_default()
    };
    let channel = |row: &Row| {
        let name = text(row, ["Connection_name", "Channel_Name"]);
        (name, text(row, ["Slave_SQL_Running", "Replica_SQL_Running"]))
    };
    rows.iter().map(channel).collect()
}

/// With temporary tables of its source's there is no backup of a replica that shall be safe, and one without them is exact.
/// Whatever happens, the SQL threads that were running run afterwards, and the others do not.
fn check_safe_slave(product: &Product, server: &Server, source: &mut Conn, port: u16) {
    let mut replica = server.connect();
    // MySQL 5.6 has one channel only; the others have one without a source, and one that rests.
    for (name, start) in [("it''s", true), ("east", false)] {
        let (change, start) = match &*product.name {
            "mysql56" => break,
            "mysql97" => (
                format!("CHANGE REPLICATION SOURCE TO SOURCE_HOST='127.0.0.1' FOR CHANNEL '{name}'"),
                start.then(|| format!("START REPLICA SQL_THREAD FOR CHANNEL '{name}'")),
            ),
            _ => (
                format!("CHANGE MASTER '{name}' TO MASTER_HOST='127.0.0.1'"),
                start.then(|| format!("START SLAVE '{name}' SQL_THREAD")),
            ),
        };
        [Some(change), start]
            .iter()
            .flatten()
            .for_each(|s| replica.query_drop(s).unwrap_or_else(|e| panic!("{s}: {e}")));
    }
    let before = running(product, &mut replica);
    common::say(&format!("SQL threads: {before:?}"));
    source.query_drop("SET SESSION binlog_format=STATEMENT").expect("set");
    source.query_drop("CREATE TEMPORARY TABLE bank.passing (n INT)").expect("a table");
    catch_up(product, source, &mut replica);
    let open: Option<(String, u64)> =
        replica.query_first(r"SHOW GLOBAL STATUS LIKE '%\_open\_temp\_tables'").expect("the status");
    assert_eq!(open.expect("a row").1, 1, "the replica has no temporary table");
    replica.query_drop("SET GLOBAL tokudb_backup_safe_slave=ON").expect("set");
    let (at, late) = (server.room().join("safe"), server.room().join("late"));
    let (_, text) = failure(&mut replica, &format!("SET tokudb_backup_dir='{}'", late.display()));
    assert!(text.ends_with("within 0 s: its SQL thread holds temporary tables (1)"), "{text}");
    assert_eq!(running(product, &mut replica), before);
    replica.query_drop("SET GLOBAL tokudb_backup_safe_slave_timeout=30").expect("set");
    let id = replica.connection_id();
    let (tally, mut watcher) = (Tally::default(), server.connect());
    std::thread::scope(|scope| {
        let _stop = Stop(&tally);
        scope.spawn(|| {
            source.query_drop("USE bank").expect("a database");
            for number in 1_000_000.. {
                if tally.stop.load(Ordering::Relaxed) {
                    return;
                }
                let state = format!("SELECT STATE FROM information_schema.PROCESSLIST WHERE ID={id}");
                if one(&mut watcher, &state).ends_with("Waiting for the SQL thread") {
                    source.query_drop("DROP TEMPORARY TABLE IF EXISTS passing").expect("dropped");
                }
                source.query_drop(format!("INSERT INTO sequence VALUES ({number}, '')")).expect("inserted");
            }
        });
        back_up(&mut replica, &at);
    });
    assert_eq!(running(product, &mut replica), before);
    verify(&at);
    let info = main_channel(&at);
    assert!(info["exact"].starts_with("yes"), "{info:?}");
    // Another replica goes on from the position that was told.
    let data = at.join("mysql_data_dir");
    let _ = std::fs::remove_file(data.join("auto.cnf"));
    let how = networked(product, How::with(&["--log-bin=binlog", "--server-id=3"]), free_port());
    let other = Server::start_on_copy(product, &how.and("--skip-slave-start"), &data);
    let mut third = other.connect();
    go_on(product, &mut third, &info, port);
    catch_up(product, source, &mut third);
    assert_eq!(load::sums(source), load::sums(&mut third));
}

/// What is told of the channel without a name.
fn main_channel(backup: &Path) -> HashMap<String, String> {
    let text = std::fs::read_to_string(backup.join("tokubackup_slave_info")).expect("it is there");
    let paragraph = text.split("\n\n").find(|lines| lines.contains("channel=''")).expect("a channel");
    let lines = paragraph.lines().filter_map(|line| line.split_once('='));
    lines.map(|(key, value)| (key.to_owned(), value.trim_matches('\'').to_owned())).collect()
}

/// Has a replica forget how far it has come, and begin at a position.
fn go_on(product: &Product, replica: &mut Conn, info: &HashMap<String, String>, port: u16) {
    let (file, position) = (&info["source_log_file"], &info["source_log_position"]);
    let statements = match &*product.name {
        "mysql97" => vec![
            "RESET REPLICA ALL".to_owned(),
            format!(
                "CHANGE REPLICATION SOURCE TO SOURCE_HOST='127.0.0.1', SOURCE_PORT={port}, SOURCE_USER='follower', \
                 SOURCE_PASSWORD='SECRET-word', SOURCE_LOG_FILE='{file}', SOURCE_LOG_POS={position}, \
                 GET_SOURCE_PUBLIC_KEY=1 FOR CHANNEL ''"
            ),
            "START REPLICA FOR CHANNEL ''".to_owned(),
        ],
        _ => vec![
            format!(
                "CHANGE MASTER TO MASTER_HOST='127.0.0.1', MASTER_PORT={port}, MASTER_USER='follower', \
                 MASTER_PASSWORD='SECRET-word', MASTER_LOG_FILE='{file}', MASTER_LOG_POS={position}{}",
                if product.is_mariadb() { ", MASTER_USE_GTID=no" } else { "" }
            ),
            "START SLAVE".to_owned(),
        ],
    };
    statements.iter().for_each(|s| replica.query_drop(s).unwrap_or_else(|e| panic!("{s}: {e}")));
}

/// What a backup of a replica at rest says of it.
fn check_replica(product: &Product, server: &Server, connection: &mut Conn, at: &(String, u64), port: u16) {
    let backup = server.room().join("backup");
    connection
        .query_drop(if product.name == "mysql97" { "STOP REPLICA" } else { "STOP SLAVE" })
        .expect("stopped");
    back_up(connection, &backup);
    verify(&backup);
    let file = backup.join("tokubackup_slave_info");
    let is_running = running(product, connection).iter().any(|(name, is)| name.is_empty() && is != "No");
    assert!(!is_running, "what was stopped was started");
    let info = assignments(&file);
    let text = std::fs::read_to_string(&file).expect("it is text");
    assert!(!text.contains("SECRET"), "a password was written");
    let status = if product.name == "mysql97" { "SHOW REPLICA STATUS" } else { "SLAVE" };
    assert!(info["statement"].contains(status), "{info:?}");
    {
        let info = main_channel(&backup);
        let expected = [
            ("channel", String::new()),
            ("host", "127.0.0.1".into()),
            ("user", "follower".into()),
            ("port", port.to_string()),
            ("source_log_file", at.0.clone()),
            ("source_log_position", at.1.to_string()),
        ];
        expected.iter().for_each(|(key, value)| assert_eq!(&info[*key], value, "{key}"));
    }
    if !product.is_mariadb() {
        assert_eq!(info["executed_gtid_set"], one(connection, "SELECT @@GLOBAL.gtid_executed"));
    }
    let restore = std::fs::read_to_string(backup.join("tokubackup_restore.txt")).expect("it is text");
    assert!(restore.contains("\n--relay-log="), "{restore}");
}

/// MariaDB 10.11, whose packages have a keyring that it can be started with.
#[test]
fn an_encrypted_log_tells_no_position_and_why() {
    let _alone = common::alone();
    let Some(product) = Product::wanted().filter(|product| product.name == "mariadb1011") else { return };
    let keys = tempfile::tempdir().expect("a directory");
    let file = keys.path().canonicalize().expect("resolved").join("keys");
    std::fs::write(&file, "1;770A8A65DA156D24EE2A093277530142\n").expect("a key");
    let how = How::usual().and("--plugin-load-add=file_key_management").and("--encrypt-binlog");
    let how = how.and(format!("--file-key-management-filename={}", file.display()));
    let server =
        Server::start_after(product, &how, |data| product.give_plugin(data, "file_key_management.so"));
    let mut connection = server.with_plugin();
    connection.query_drop("CREATE DATABASE secret").expect("a database");
    let backup = server.room().join("backup");
    back_up(&mut connection, &backup);
    verify(&backup);
    let info = assignments(&backup.join("tokubackup_binlog_info"));
    assert!(info["error"].contains("the binary log is encrypted"), "{info:?}");
    assert!(!info.contains_key("position") && !info.contains_key("gtid_set"), "{info:?}");
    let log = server.log();
    assert!(log.contains("warning: the backup has no position in the binary log: "), "{log}");
    assert!(log.contains(&format!("the keys in {} ", file.display())), "{log}");
    // The copy is as good as any, with the keys.
    let data = backup.join("mysql_data_dir");
    product.give_plugin(&data, "file_key_management.so");
    let copy = Server::start_on_copy(product, &how, &data);
    assert_eq!(one(&mut copy.connect(), "SHOW DATABASES LIKE 'secret'"), "secret");
}

/// As docs/mysql.md has it.
const CORRECT: &str = r"grep '^\$ ' tokubackup_restore.txt | cut -c3- | sh -e";

/// The live server's files by name, and what the logs hold. MariaDB completes its indexes of logs (`.idx`) whenever it likes.
fn live(data: &Path, logs: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let directories = [data.to_owned(), data.join("bank"), logs.to_owned()];
    let files = directories.iter().flat_map(|directory| std::fs::read_dir(directory).expect("it").flatten());
    let paths = files.map(|entry| entry.path());
    let paths = paths.filter(|path| path.extension().is_none_or(|extension| extension != "idx"));
    let contents = |path: &Path| {
        (path.parent() == Some(logs) && path.is_file()).then(|| std::fs::read(path).expect("read"))
    };
    paths.map(|path| (path.clone(), contents(&path))).collect()
}

#[test]
fn a_copy_beside_its_source_leaves_it_alone() {
    let _alone = common::alone();
    let Some(product) = Product::wanted() else { return };
    let away = tempfile::tempdir().expect("a directory");
    let logs = away.path().canonicalize().expect("resolved").join("the logs");
    std::fs::create_dir(&logs).expect("a directory");
    let how = How::with(&["--server-id=1"]);
    let server = Server::start(product, &how.and(format!("--log-bin={}/binlog", logs.display())));
    let mut connection = server.with_plugin();
    load::furnish(product, &mut connection);
    for statement in [
        "FLUSH BINARY LOGS",
        "INSERT INTO bank.plain VALUES (1, 'p')",
        "INSERT INTO bank.lines VALUES (1, 'l')",
    ] {
        connection.query_drop(statement).expect(statement);
    }
    let backup = server.room().join("backup");
    back_up(&mut connection, &backup);
    verify(&backup);
    let index = backup.join("mysql_log_bin/binlog.index");
    let leads = |text: &str| text.contains(&format!("{}/", logs.display()));
    assert!(
        leads(&std::fs::read_to_string(&index).expect("the index")),
        "nothing leads back: this proves nothing"
    );
    let before = live(server.data(), &logs);

    // What the file says is done, to the letter.
    let text = std::fs::read_to_string(backup.join("tokubackup_restore.txt")).expect("it is text");
    let correct = Command::new("sh").current_dir(&backup).args(["-ec", CORRECT]).status().expect("a shell");
    assert!(correct.success(), "{text}");
    assert!(!leads(&std::fs::read_to_string(&index).expect("the index")), "{text}");
    let options: Vec<&str> = text.lines().filter(|line| line.starts_with("--")).collect();
    let data = backup.join("mysql_data_dir");
    assert!(options.contains(&&*format!("--datadir={}", data.display())), "{text}");
    let copy = Server::start_on_copy(product, &How::with(&options), &data);
    let mut other = copy.connect();
    let row: Option<String> =
        other.query_first("SHOW BINARY LOGS").expect("the logs").map(|row: Row| row.get(0).expect("a name"));
    assert_eq!(row.as_deref(), Some("binlog.000001"), "the copy does not know its logs");
    let reset = if product.name == "mysql97" { "RESET BINARY LOGS AND GTIDS" } else { "RESET MASTER" };
    other.query_drop(reset).expect("purged");
    let tables: Vec<String> = other.query("SHOW TABLES FROM bank").expect("the tables");
    assert!(tables.len() >= 6);
    for table in tables {
        if matches!(&*table, "plain" | "lines" | "own") {
            other.query_drop(format!("REPAIR TABLE bank.{table}")).expect("repaired");
        }
        other.query_drop(format!("ALTER TABLE bank.{table} COMMENT='the copy'")).expect("altered");
        other
            .query_drop(format!("INSERT INTO bank.{table} SELECT * FROM bank.{table} LIMIT 0"))
            .expect("inserted");
        other.query_drop(format!("DELETE FROM bank.{table}")).expect("emptied");
    }
    other.query_drop("FLUSH TABLES").expect("written out");
    let theirs = |path: &Path| path.starts_with(&logs) || path.starts_with(server.data());
    let open: Vec<_> = copy.open_files().into_iter().filter(|path| theirs(path)).collect();
    assert!(open.is_empty(), "the copy has files of its source open: {open:?}");
    drop(other);
    drop(copy);

    let now = live(server.data(), &logs);
    let all: BTreeSet<_> = before.keys().chain(now.keys()).collect();
    // The live server may add to its log meanwhile (MariaDB notes its checkpoints there).
    let is_same = |path: &&PathBuf| match (before.get(*path), now.get(*path)) {
        (Some(Some(before)), Some(Some(now))) => now.starts_with(before),
        (before, now) => before == now,
    };
    let touched: Vec<_> = all.into_iter().filter(|path| !is_same(path)).collect();
    assert!(touched.is_empty(), "files of the live server were touched: {touched:?}");
    assert_eq!(one(&mut connection, "SELECT SUM(balance) FROM bank.account"), "200000");
    connection.query_drop("FLUSH TABLES").expect("read anew");
    assert_eq!(one(&mut connection, "SELECT COUNT(*) FROM bank.plain"), "1");
    assert_eq!(one(&mut connection, "SELECT COUNT(*) FROM bank.lines"), "1");
    connection.query_drop("INSERT INTO bank.sequence VALUES (1, 'one')").expect("it goes on");
}

/// A server that is killed while it backs itself up, once at the very moment at which the engine is about to be done.
#[test]
fn a_backup_that_was_killed_is_seen_to_be_incomplete() {
    let _alone = common::alone();
    let Some(product) = Product::wanted() else { return };
    let kills = std::env::var("HOTBACKUP_BACKUPS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let mut servers: Vec<Server> = Vec::new();
    let mut took = Duration::from_millis(500);
    for kill in 0..kills {
        let mut server = match servers.first() {
            None => Server::start(product, &How::usual()),
            Some(first) => Server::start_on(product, &How::usual(), first.data()),
        };
        let mut connection = server.connect();
        let _ = connection.query_drop("INSTALL PLUGIN tokudb_backup SONAME 'tokudb_backup.so'");
        let room = tempfile::tempdir().expect("a directory");
        let backup = room.path().join("backup");
        let begun = Instant::now();
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _ = connection.query_drop(format!("SET tokudb_backup_dir='{}'", backup.display()));
                ended.store(true, Ordering::Relaxed);
            });
            let due = |manifest: &Path| match kill % 2 {
                0 => manifest.exists(),
                _ => begun.elapsed() > took.mul_f64(f64::from(kill % 10) / 10.0),
            };
            while !due(&backup.join("hotbackup-manifest.json")) && !ended.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
            server.kill();
        });
        took = begun.elapsed().max(took);
        if backup.join("mysql_data_dir").exists() {
            verify(&backup);
        } else if backup.exists() {
            assert!(hotbackup::verify(&backup).is_err(), "kill {kill} left what passes for a backup");
            let again = Server::start_on(product, &How::usual(), server.data());
            let (_, text) =
                failure(&mut again.connect(), &format!("SET tokudb_backup_dir='{}'", backup.display()));
            assert!(text.contains("that did not complete; remove it with: rm -rf '"), "{text}");
            if kill % 2 == 0 {
                assert!(text.contains("begun 20"), "{text}");
            }
        }
        common::say(&format!("kill {kill}: complete {}", backup.join("mysql_data_dir").exists()));
        servers.push(server);
    }
}
