//! A server that was started without the library is attached by `INSTALL PLUGIN`, while clients keep it busy.
//!
//! Method: a stock server on a data directory of its own; libHotBackup.so lies beside the plugin. The clients of the other tests
//! run before, during and after, for 20 seconds; a statement of theirs that fails ends the test. The plugin is uninstalled and installed again
//! `HOTBACKUP_CYCLES` times under load, then a backup is made, and a second server is started on it and checked, as is the first.

mod common;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::load::{self, Tally};
use common::{How, Product, Server, status};
use mysql::Conn;
use mysql::prelude::Queryable;

const INSTALL: &str = "INSTALL PLUGIN tokudb_backup SONAME 'tokudb_backup.so'";

/// How long the clients run before the server is attached, in all at least, and after the backup at least.
const BEFORE: Duration = Duration::from_secs(5);
const IN_ALL: Duration = Duration::from_secs(20);
const AFTER: Duration = Duration::from_secs(2);

/// Sets the directory, and tries again where a table was being made at the very instant, with which MySQL 5.6 cannot do.
fn back_up(server: &Server, connection: &mut Conn) -> std::path::PathBuf {
    for number in 0.. {
        let directory = server.room().join(format!("backup{number}"));
        match connection.query_drop(format!("SET tokudb_backup_dir='{}'", directory.display())) {
            Err(e) if number < 5 && e.to_string().contains("was being made at the instant") => {}
            outcome => {
                outcome.unwrap_or_else(|e| panic!("the backup: {e}"));
                return directory;
            }
        }
    }
    unreachable!("a backup was made or failed")
}

#[test]
fn a_running_server_is_attached_under_load() {
    let _alone = common::alone();
    let Some(product) = Product::wanted() else { return };
    let how = How { attached: true, ..How::usual() };
    let server = Server::start(product, &how);
    let mut connection = server.connect();
    load::furnish(product, &mut connection);
    let cycles = std::env::var("HOTBACKUP_CYCLES").ok().and_then(|n| n.parse().ok()).unwrap_or(3);
    let tally = Tally::default();
    let (directory, least, most) = std::thread::scope(|scope| {
        let begun = Instant::now();
        load::start(scope, &server, &tally);
        std::thread::sleep(BEFORE);
        let work = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..cycles {
                connection.query_drop(INSTALL).expect("attached");
                assert_eq!(status(&mut connection, "attach"), "attached");
                std::thread::sleep(Duration::from_millis(20));
                connection.query_drop("UNINSTALL PLUGIN tokudb_backup").expect("detached");
            }
            connection.query_drop(INSTALL).expect("attached");
            let least = tally.sequence.load(Ordering::SeqCst);
            let directory = back_up(&server, &mut connection);
            // The number being committed right now is not counted yet.
            let most = tally.sequence.load(Ordering::SeqCst) + 1;
            std::thread::sleep(IN_ALL.saturating_sub(begun.elapsed()).max(AFTER));
            (directory, least, most)
        }));
        tally.stop.store(true, Ordering::Relaxed);
        work.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    server.log().lines().filter(|line| line.contains(": attached in")).for_each(common::say);
    let copy = Server::start_on_copy(product, &how, &directory.join("mysql_data_dir"));
    load::check(product, &mut copy.connect(), least, most);
    let end = tally.sequence.load(Ordering::SeqCst);
    load::check(product, &mut server.connect(), end, end + 1);
}

#[test]
fn a_preloaded_library_is_taken_as_it_is() {
    let _alone = common::alone();
    let Some(product) = Product::wanted() else { return };
    let server = Server::start(product, &How::usual());
    let mut connection = server.with_plugin();
    let expected = if std::env::var_os("HOTBACKUP_ATTACH").is_some() { "attached" } else { "preloaded" };
    assert_eq!(status(&mut connection, "attach"), expected);
}
