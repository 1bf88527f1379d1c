//! Backups of a server that runs as an ordinary user.
//!
//! Method: as in `server.rs`, but the server and its data belong to nobody (setpriv), and what it may not read or write belongs to
//! root. Needs root.

mod common;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::{How, Product, Server, failure, last};
use mysql::prelude::Queryable;

/// Makes something of root's that others may not look into.
fn keep_private(path: &Path) {
    fs::set_permissions(path, Permissions::from_mode(0o700)).expect("closed");
}

#[test]
fn what_the_server_may_not_read_or_write_is_named() {
    let _alone = common::alone();
    let Some(product) = Product::wanted() else { return };
    // SAFETY: takes nothing and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        return common::say("skipped: only root can become somebody else");
    }
    let scratch = tempfile::tempdir().expect("a directory");
    fs::set_permissions(scratch.path(), Permissions::from_mode(0o755)).expect("open");
    let product = &product.copy_to(&scratch.path().join("server"));
    let how = How { unprivileged: true, ..How::usual() };
    let server = Server::start_after(product, &how, |data| {
        let given = std::process::Command::new("chown").args(["-R", "65534:65534"]).arg(data).status();
        assert!(given.expect("chown").success(), "the data is given away");
        fs::create_dir(data.join("lost+found")).expect("a directory");
        keep_private(&data.join("lost+found"));
    });
    let mut connection = server.with_plugin();
    connection.query_drop("CREATE DATABASE bank").expect("a database");
    connection.query_drop("CREATE TABLE bank.t (n INT) ENGINE=InnoDB").expect("a table");
    connection.query_drop("INSERT INTO bank.t VALUES (7)").expect("a row");
    let mut refused = |statement: &str| {
        let (code, text) = failure(&mut connection, statement);
        assert_eq!(code, 1231, "{text}");
        let (number, said) = last(&mut connection);
        assert_eq!(number, libc::EACCES as u64, "{said:?}");
        said.expect("a reason")
    };

    let closed = scratch.path().join("closed");
    fs::create_dir(&closed).expect("a directory");
    let said = refused(&format!("SET tokudb_backup_dir='{}'", closed.join("backup").display()));
    assert!(said.starts_with(&format!("cannot make the directory {}/backup: ", closed.display())), "{said}");

    let backup = server.room().join("backup");
    let set = format!("SET tokudb_backup_dir='{}'", backup.display());
    let said = refused(&set);
    assert!(said.contains(&format!("{}/lost+found", server.data().display())), "{said}");
    fs::remove_dir_all(&backup).expect("what did not complete is removed");
    fs::write(server.data().join("secret"), "x").expect("a file");
    keep_private(&server.data().join("secret"));
    let exclude = |what: &str| format!("SET tokudb_backup_exclude='{what}'");
    let lost = "/lost\\\\+found($|/)";
    connection.query_drop(exclude(lost)).expect("set");
    failure(&mut connection, &set);
    let said = last(&mut connection).1.expect("a reason");
    assert!(said.contains(&format!("{}/secret", server.data().display())), "{said}");
    fs::remove_dir_all(&backup).expect("what did not complete is removed");

    connection.query_drop(exclude(&format!("{lost}|/secret$"))).expect("set");
    connection.query_drop(&set).unwrap_or_else(|e| panic!("{e}: {:?}", last(&mut server.connect())));
    let copy = backup.join("mysql_data_dir");
    assert!(!copy.join("lost+found").exists() && !copy.join("secret").exists());
    let second = Server::start_on_copy(product, &how, &copy);
    let row: Option<u64> = second.connect().query_first("SELECT n FROM bank.t").expect("the table");
    assert_eq!(row, Some(7));
}
