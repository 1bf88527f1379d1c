//! Backups of real servers by SQL.
//!
//! Method: the server that `HOTBACKUP_SERVER` names (`tests/servers/template`) runs on a data directory of its own with the
//! preloaded library and the plugin, and is used as people do, by SQL over its socket. Copies are judged by a second server that is
//! started on them. `HOTBACKUP_BACKUPS` says how many backups are made in a row under load.

mod common;

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::beside;
use common::load::{self, Pace, Tally};
use common::{How, Product, Server, failure, last, status};
use mysql::Conn;
use mysql::prelude::Queryable;

fn back_up(connection: &mut Conn, directory: &Path) -> mysql::Result<()> {
    connection.query_drop(format!("SET tokudb_backup_dir='{}'", directory.display()))
}

/// Tries again where a table was being made at the very instant, with which MySQL 5.6 cannot do.
fn back_up_between_definitions(connection: &mut Conn, directory: &Path) -> mysql::Result<()> {
    for _ in 0..5 {
        match back_up(connection, directory) {
            Err(e) if e.to_string().contains("was being made at the instant of the backup") => {
                common::say(&format!("once more: {e}"));
                std::fs::remove_dir_all(directory).expect("removed");
            }
            outcome => return outcome,
        }
    }
    back_up(connection, directory)
}

/// Backups in a row beside clients, `usually` so many; every copy is started and checked.
fn under_load(product: &Product, how: &How, usually: usize) {
    let server = Server::start(product, how);
    let mut connection = server.with_plugin();
    load::furnish(product, &mut connection);
    let backups = std::env::var("HOTBACKUP_BACKUPS").ok().and_then(|n| n.parse().ok()).unwrap_or(usually);
    let tally = Tally::default();
    let copies: Vec<_> = std::thread::scope(|scope| {
        load::start(scope, &server, &tally);
        let pause = || {
            let pace = Pace::from_now(&tally);
            std::thread::sleep(Duration::from_millis(500));
            pace.said(&tally)
        };
        let copies = (0..backups).map(|number| {
            let before = pause();
            let directory = server.room().join(format!("backup{number}"));
            let least = tally.sequence.load(Ordering::SeqCst);
            let (pace, begun) = (Pace::from_now(&tally), Instant::now());
            let outcome = back_up_between_definitions(&mut connection, &directory);
            let (took, during) = (begun.elapsed(), pace.said(&tally));
            if outcome.is_err() {
                tally.stop.store(true, Ordering::Relaxed);
            }
            outcome.unwrap_or_else(|e| panic!("backup {number}: {e}"));
            // The number being committed right now is not counted yet.
            let most = tally.sequence.load(Ordering::SeqCst) + 1;
            let freeze = status(&mut connection, "last_good_freeze_microseconds");
            let after = if number + 1 == backups { pause() } else { "see the next".to_owned() };
            common::say(&format!(
                "backup {number}: {took:.1?}, freeze {freeze} us; transfers before {before}, meanwhile {during}, \
                 after: {after}"
            ));
            (directory, least, most)
        });
        let copies = copies.collect();
        tally.stop.store(true, Ordering::Relaxed);
        copies
    });
    assert_eq!(last(&mut connection), (0, None));
    assert!(tally.definitions.load(Ordering::Relaxed) > 5 * backups as u64, "tables were hardly defined");
    assert_eq!(tally.resizes.load(Ordering::Relaxed) > 0, product.name != "mysql56", "the redo log's size");
    drop(connection);
    let mut later: Option<Replayed> = None;
    // The newest first.
    for (directory, least, most) in copies.into_iter().rev() {
        let mode = std::fs::metadata(&directory).expect("the backup").permissions().mode();
        assert_eq!(mode & 0o7777, 0o700, "the backup is open to others");
        let copy = Server::start_on_copy(product, how, &directory.join("mysql_data_dir"));
        let info = beside::assignments(&directory.join("tokubackup_binlog_info"));
        beside::check_position(product, &copy, &info);
        load::check(product, &mut copy.connect(), least, most);
        let sums = load::sums(&mut copy.connect());
        if let Some(later) = later {
            later.into(product, &copy, &info);
        }
        later = Some(Replayed { data: directory.join("mysql_data_dir"), info, sums });
    }
}

/// A copy whose log is replayed into an older one.
struct Replayed {
    data: PathBuf,
    /// Where it ends.
    info: HashMap<String, String>,
    sums: Vec<(String, Option<u64>)>,
}

impl Replayed {
    /// Replays what is in the log since `from`, where the copy on which this server was started ends. Definitions may fail: a
    /// server may have completed one when it recovered.
    fn into(self, product: &Product, older: &Server, from: &HashMap<String, String>) {
        let names = std::fs::read_dir(&self.data).expect("the copy").flatten();
        let names = names.map(|entry| entry.file_name().into_string().expect("a name"));
        let wanted = &from["filename"]..=&self.info["filename"];
        let mut logs: Vec<_> = names
            .filter(|name| wanted.contains(&name) && !name.ends_with(".index") && !name.ends_with(".idx"))
            .map(|name| self.data.join(name))
            .collect();
        logs.sort();
        common::say(&format!("replays {} logs", logs.len()));
        // Without transactions a table is not exact: rows may be there that are yet to come.
        let mut connection = older.connect();
        for table in ["plain", "own"] {
            connection.query_drop(format!("TRUNCATE TABLE bank.{table}")).expect("emptied");
        }
        older.replay(product, &logs, &from["position"], &self.info["position"]);
        assert_eq!(load::sums(&mut connection), self.sums, "replayed, it is not the later copy");
    }
}

#[test]
fn copies_made_under_load_are_of_one_instant() {
    let _alone = common::alone();
    let Some(product) = Product::wanted() else { return };
    under_load(product, &How::usual(), 2);
}

#[test]
fn copies_of_a_server_without_native_asynchronous_io_are_of_one_instant() {
    let _alone = common::alone();
    let Some(product) = Product::wanted() else { return };
    under_load(product, &How::usual().and("--innodb-use-native-aio=0"), 1);
}

/// MariaDB has native AIO to fall back on.
#[test]
fn copies_of_a_server_that_is_refused_io_uring_are_of_one_instant() {
    let _alone = common::alone();
    let Some(product) = Product::wanted() else { return };
    if product.name != "mariadb1011" {
        return;
    }
    let uses_rings = |server: &Server, kind: &str| {
        let maps = format!("/proc/{}/maps", server.process_id());
        std::fs::read_to_string(maps).expect("its mappings").contains(kind)
    };
    let usual = Server::start(product, &How::usual());
    assert!(uses_rings(&usual, "[io_uring]"), "it uses io_uring unless that is refused");
    drop(usual);
    let how = How { without_uring: true, ..How::usual() };
    let server = Server::start(product, &how);
    assert!(!uses_rings(&server, "[io_uring]") && uses_rings(&server, "[aio]"), "{}", server.log());
    drop(server);
    under_load(product, &how, 1);
}

#[test]
fn copies_of_a_server_that_flushes_by_fsync_are_of_one_instant() {
    let _alone = common::alone();
    let Some(product) = Product::wanted() else { return };
    let method = if product.name == "mysql56" { "O_DIRECT" } else { "fsync" };
    under_load(product, &How::usual().and(format!("--innodb-flush-method={method}")), 1);
}

#[test]
fn without_the_library_the_plugin_says_what_to_do() {
    let _alone = common::alone();
    let Some(product) = Product::wanted() else { return };
    let server = Server::start(product, &How { without_library: true, ..How::usual() });
    let mut connection = server.connect();
    let (_, text) = failure(&mut connection, "INSTALL PLUGIN tokudb_backup SONAME 'tokudb_backup.so'");
    assert!(text.contains("LD_PRELOAD"), "{text}");
    assert!(server.log().contains("LD_PRELOAD"), "{}", server.log());
}

#[test]
fn a_library_of_another_version_is_refused() {
    let _alone = common::alone();
    let Some(product) = Product::wanted() else { return };
    let server = Server::start(product, &How { other_version: true, ..How::usual() });
    let mut connection = server.connect();
    failure(&mut connection, "INSTALL PLUGIN tokudb_backup SONAME 'tokudb_backup.so'");
    let said = format!("of version 0.0.9, the plugin of {}: install both", env!("CARGO_PKG_VERSION"));
    assert!(server.log().contains(&said), "{}", server.log());
}

#[test]
fn variables_are_as_documented() {
    let _alone = common::alone();
    let Some(product) = Product::wanted() else { return };
    let server = Server::start(product, &How::usual().and("--skip-log-bin"));
    let mut connection = server.with_plugin();
    let rows: Vec<(String, String)> =
        connection.query("SHOW VARIABLES LIKE 'tokudb_backup%'").expect("variables");
    let unlimited = u64::MAX.to_string();
    let expected = [
        ("allowed_prefix", ""),
        ("dir", ""),
        ("exclude", "(mysqld_safe\\.pid)+"),
        ("keep_free", &*unlimited),
        ("last_error", "0"),
        ("last_error_string", ""),
        ("lock", "none"),
        ("lock_timeout", "60"),
        ("max_lag", &*unlimited),
        ("plugin_version", env!("CARGO_PKG_VERSION")),
        ("safe_slave", "OFF"),
        ("safe_slave_timeout", "0"),
        ("threads", "2"),
        ("throttle", &*unlimited),
        ("version", env!("CARGO_PKG_VERSION")),
    ];
    let expected: Vec<_> =
        expected.iter().map(|(name, value)| (format!("tokudb_backup_{name}"), (*value).to_owned())).collect();
    assert_eq!(rows, expected);
    for name in ["plugin_version", "version", "allowed_prefix", "last_error", "last_error_string"] {
        let (code, text) = failure(&mut connection, &format!("SET SESSION tokudb_backup_{name}=DEFAULT"));
        assert!(matches!(code, 1229 | 1238), "{name}: {code} {text}");
    }
    for name in ["safe_slave", "safe_slave_timeout"] {
        let (code, text) = failure(&mut connection, &format!("SET SESSION tokudb_backup_{name}=0"));
        assert_eq!(code, 1229, "{name} is global: {text}");
        connection.query_drop(format!("SET GLOBAL tokudb_backup_{name}=0")).expect("set");
    }
    for name in ["throttle", "exclude", "max_lag", "keep_free", "threads", "dir", "lock", "lock_timeout"] {
        connection.query_drop(format!("SET SESSION tokudb_backup_{name}=DEFAULT")).expect("of the session");
    }
    connection
        .query_drop("SET tokudb_backup_throttle=18446744073709551615, tokudb_backup_threads=64")
        .expect("set");
    let (code, text) = failure(&mut connection, "SET tokudb_backup_throttle=-1");
    assert_eq!(code, 1231, "{text}");
    for (value, is) in [("ON", 1), ("'off'", 0), ("TRUE", 1), ("0", 0)] {
        connection.query_drop(format!("SET GLOBAL tokudb_backup_safe_slave={value}")).expect(value);
        let now: Option<u64> = connection.query_first("SELECT @@tokudb_backup_safe_slave").expect("a row");
        assert_eq!(now, Some(is), "{value}");
    }
    for value in ["'perhaps'", "2", "NULL"] {
        let (code, text) = failure(&mut connection, &format!("SET GLOBAL tokudb_backup_safe_slave={value}"));
        assert!(code == 1231 && text.ends_with("it is ON or OFF"), "{value}: {text}");
    }
    // While it is there: a server without a binary log has no position.
    let directory = server.room().join("backup");
    back_up(&mut connection, &directory).expect("a backup");
    beside::verify(&directory);
    for name in ["tokubackup_binlog_info", "tokubackup_slave_info"] {
        assert!(!directory.join(name).exists(), "there is {name}");
    }
    let text = std::fs::read_to_string(directory.join("tokubackup_restore.txt")).expect("it is text");
    assert!(text.lines().any(|line| line == "--skip-log-bin"), "{text}");
}

#[test]
fn refusals_say_why_and_change_nothing() {
    let _alone = common::alone();
    let Some(product) = Product::wanted() else { return };
    let prefix = tempfile::tempdir().expect("a directory");
    let below = prefix.path().join("backups");
    std::fs::create_dir(&below).expect("a directory");
    // The plugin is loaded at start: only then can its options be given.
    let how = How::usual()
        .and("--plugin-load=tokudb_backup.so")
        .and(format!("--tokudb-backup-allowed-prefix={}", below.display()));
    let server = Server::start(product, &how);
    let mut connection = server.connect();
    let allowed: Option<String> =
        connection.query_first("SELECT @@tokudb_backup_allowed_prefix").expect("a row");
    assert_eq!(allowed.as_deref(), below.to_str());
    std::fs::create_dir(below.join("full")).expect("a directory");
    std::fs::write(below.join("full/file"), b"x").expect("a file");
    std::fs::write(below.join("file"), b"x").expect("a file");
    std::os::unix::fs::symlink(prefix.path(), below.join("link")).expect("a link");
    std::os::unix::fs::symlink(server.data(), below.join("data")).expect("a link");
    let at = |name: &str| below.join(name).to_str().expect("ordinary").to_owned();
    let cases = [
        (format!("'{}'", at("missing/one")), libc::ENOENT, "cannot find the directory that is to hold it"),
        (format!("'{}'", at("full")), libc::EINVAL, "is not empty"),
        (format!("'{}'", at("file")), libc::EINVAL, "is not a directory"),
        (format!("'{}'", at("link/x")), libc::EACCES, "does not lie below"),
        (format!("'{}'", at("../x")), libc::EACCES, "does not lie below"),
        (format!("'{}'", at("data/x")), libc::EACCES, "does not lie below"),
        ("'relative'".into(), libc::EINVAL, "has to begin with a slash"),
        ("''".into(), libc::EINVAL, "no directory is named"),
        ("NULL".into(), libc::EINVAL, "no directory is named"),
        (format!("REPEAT('/{}', 100)", "x".repeat(50)), libc::ENOENT, "cannot find the directory"),
        (format!("'/{}'", "x".repeat(300)), libc::ENAMETOOLONG, "File name too long"),
    ];
    for (value, number, why) in cases {
        let (code, text) = failure(&mut connection, &format!("SET tokudb_backup_dir={value}"));
        assert_eq!(code, 1231, "{value}: {text}");
        assert!(text.starts_with("Variable 'tokudb_backup_dir' can't be set to the value of '"), "{text}");
        let (error, string) = last(&mut connection);
        assert_eq!(error, number as u64, "{value}: {string:?}");
        let string = string.expect("a reason");
        assert!(string.contains(why), "{value}: {string}");
        assert!(text.contains(&*string) || text.ends_with("..."), "{text}");
    }
    let (code, text) = failure(&mut connection, "SET tokudb_backup_exclude='('");
    assert_eq!(code, 1231);
    assert!(text.contains("not a POSIX extended regular expression"), "{text}");
    let left: Vec<_> = std::fs::read_dir(&below).expect("the directory").flatten().collect();
    assert_eq!(left.len(), 4, "something was made: {left:?}");
    // A good one forgets the error.
    back_up(&mut connection, &below.join("good")).expect("a backup");
    assert_eq!(last(&mut connection), (0, None));
    assert_eq!(status(&mut connection, "last_good_directory"), at("good"));
}

#[test]
fn who_may_not_back_up_is_refused_by_the_server() {
    let _alone = common::alone();
    let Some(product) = Product::wanted() else { return };
    let server = Server::start(product, &How::usual());
    let mut connection = server.with_plugin();
    let own = match &*product.name {
        "mysql56" => None,
        "mysql97" => Some("BACKUP_ADMIN"),
        _ => Some("RELOAD"),
    };
    // One who may do everything else.
    let but_these = match own {
        None => "RELOAD, FILE, PROCESS, SHUTDOWN, REPLICATION CLIENT",
        Some("RELOAD") => "FILE, PROCESS, SHUTDOWN, BINLOG ADMIN, CONNECTION ADMIN",
        Some(_) => "RELOAD, FILE, PROCESS, SHUTDOWN, SYSTEM_VARIABLES_ADMIN, CLONE_ADMIN",
    };
    for (user, privileges) in [("nobody", "USAGE"), ("other", but_these)] {
        connection.query_drop(format!("CREATE USER '{user}'@'localhost'")).expect("a user");
        connection.query_drop(format!("GRANT {privileges} ON *.* TO '{user}'@'localhost'")).expect("granted");
        let mut nobody = server.connect_as(user);
        let directory = server.room().join(user);
        let set = format!("SET tokudb_backup_dir='{}'", directory.display());
        for statement in [&*set, "SET tokudb_backup_throttle=1", "SET tokudb_backup_throttle=DEFAULT"] {
            let (code, text) = failure(&mut nobody, statement);
            assert_eq!(code, 1227, "{text}");
            let named = text.contains("SUPER") && own.is_none_or(|own| text.contains(own));
            assert!(text.starts_with("Access denied; you need") && named, "{text}");
        }
        assert!(!directory.exists(), "something was made");
        assert_eq!(status(&mut nobody, "last_start"), "", "something was begun");
    }
    for privilege in ["SUPER"].into_iter().chain(own) {
        let user = privilege.to_lowercase();
        connection.query_drop(format!("CREATE USER '{user}'@'localhost'")).expect("a user");
        connection.query_drop(format!("GRANT {privilege} ON *.* TO '{user}'@'localhost'")).expect("granted");
        let mut somebody = server.connect_as(&user);
        somebody.query_drop("SET tokudb_backup_throttle=18446744073709551615").expect(privilege);
        back_up(&mut somebody, &server.room().join(&user)).expect(privilege);
    }
}

#[test]
fn the_plugin_comes_and_goes() {
    let _alone = common::alone();
    let Some(product) = Product::wanted() else { return };
    let server = Server::start(product, &How::usual());
    let install = "INSTALL PLUGIN tokudb_backup SONAME 'tokudb_backup.so'";
    for round in 0..3 {
        let mut connection = server.connect();
        connection.query_drop(install).expect("installed");
        let (_, text) = failure(&mut connection, install);
        assert!(text.contains("already"), "{text}");
        let (error, _) = last(&mut connection);
        assert_eq!(error, 0);
        failure(&mut connection, "SET tokudb_backup_dir='/nowhere/at/all'");
        assert_eq!(last(&mut connection).0, libc::ENOENT as u64);
        back_up(&mut connection, &server.room().join(format!("backup{round}"))).expect("a backup");
        assert_eq!(status(&mut connection, "last_result"), "0");
        connection.query_drop("UNINSTALL PLUGIN tokudb_backup").expect("uninstalled");
        let rows: Vec<(String, String)> =
            connection.query("SHOW VARIABLES LIKE 'tokudb%'").expect("variables");
        assert_eq!(rows, []);
    }
}

/// A slow backup is watched, sped up, refused to a second session, and killed.
#[test]
fn a_backup_is_watched_and_killed_from_other_sessions() {
    let _alone = common::alone();
    let Some(product) = Product::wanted() else { return };
    let mut server = Server::start(product, &How::usual());
    let mut slow = server.with_plugin();
    let mut other = server.connect();
    let (killed, busy) = (server.room().join("killed"), server.room().join("busy"));
    slow.query_drop("SET tokudb_backup_throttle=1000000").expect("set");
    let id = slow.connection_id();
    let (code, text) = std::thread::scope(|scope| {
        let backup =
            scope.spawn(|| failure(&mut slow, &format!("SET tokudb_backup_dir='{}'", killed.display())));
        let begun = Instant::now();
        loop {
            let state: Option<Option<String>> = other
                .query_first(format!("SELECT STATE FROM information_schema.PROCESSLIST WHERE ID={id}"))
                .expect("the processlist");
            let state = state.flatten().unwrap_or_default();
            if state.starts_with("tokudb backup about ") && state.contains("Backup progress") {
                break;
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "the processlist shows {state:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(status(&mut other, "state"), "running");
        assert_eq!(status(&mut other, "phase"), "copy");
        let mut states = std::collections::HashSet::new();
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(2) {
            let shown: Vec<mysql::Row> = other.query("SHOW FULL PROCESSLIST").expect("the processlist");
            let own = shown.iter().find(|row| row.get::<u32, _>("Id") == Some(id)).expect("the session");
            states.insert(own.get::<Option<String>, _>("State").flatten());
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(states.len() >= 4, "it was refreshed less than twice a second: {states:?}");
        let (code, text) = failure(&mut other, &format!("SET tokudb_backup_dir='{}'", busy.display()));
        assert_eq!(code, 1231);
        assert!(text.ends_with("Another backup is in progress."), "{text}");
        let asked = Instant::now();
        other.query_drop(format!("KILL QUERY {id}")).expect("killed");
        let failure = backup.join().expect("no panic");
        common::say(&format!("killed, it ended in {:?}", asked.elapsed()));
        assert!(asked.elapsed() < Duration::from_secs(1), "it took {:?} to end", asked.elapsed());
        failure
    });
    assert!(matches!(code, 1231 | 1317), "{code} {text}");
    assert_eq!(status(&mut other, "state"), "idle");
    assert!(!busy.exists(), "the second backup made something");
    // What was killed is refused, with the command that removes it.
    let (code, text) = failure(&mut slow, &format!("SET tokudb_backup_dir='{}'", killed.display()));
    assert_eq!(code, 1231);
    let (_, string) = last(&mut slow);
    let string = string.expect("a reason");
    assert!(string.contains("that did not complete; remove it with: rm -rf '"), "{text}\n{string}");
    // Unthrottled from another session, it ends soon.
    let sped_up = server.room().join("sped up");
    std::thread::scope(|scope| {
        let backup = scope.spawn(|| back_up(&mut slow, &sped_up));
        std::thread::sleep(Duration::from_millis(500));
        other.query_drop("SET tokudb_backup_throttle=DEFAULT").expect("set");
        let begun = Instant::now();
        backup.join().expect("no panic").expect("the backup");
        assert!(begun.elapsed() < Duration::from_secs(15), "it took {:?}", begun.elapsed());
    });
    // The server shuts down beside one.
    let late = server.room().join("late");
    slow.query_drop("SET tokudb_backup_throttle=1000000").expect("set");
    std::thread::scope(|scope| {
        let backup = scope.spawn(|| back_up(&mut slow, &late));
        while status(&mut other, "phase") != "copy" {
            std::thread::sleep(Duration::from_millis(20));
        }
        let asked = Instant::now();
        server.ask_to_stop();
        backup.join().expect("no panic").expect_err("it cannot be complete");
        common::say(&format!("in a server that shuts down, it ended in {:?}", asked.elapsed()));
        assert!(asked.elapsed() < Duration::from_secs(1), "it took {:?} to end", asked.elapsed());
    });
    server.stop();
    assert!(late.join("mysql_data_dir.incomplete/HOTBACKUP-INCOMPLETE").is_dir(), "it looks complete");
}
