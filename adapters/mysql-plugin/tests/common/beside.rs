//! What lies beside a copy, and whether it is true.

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use mysql::Conn;
use mysql::prelude::Queryable;

use super::{Product, Server};

/// What a shell makes of a file of assignments.
pub fn assignments(file: &Path) -> HashMap<String, String> {
    let mode = file.metadata().unwrap_or_else(|e| panic!("{}: {e}", file.display())).permissions().mode();
    assert_eq!(mode & 0o7777, 0o600, "{} is open to others", file.display());
    let script = r#". "$0" && sed -n 's/^\([a-z_]*\)=.*/\1/p' "$0" | while read -r key; do eval "echo $key=\"\$$key\""; done"#;
    let output = Command::new("sh").args(["-c", script]).arg(file).output().expect("a shell");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    text.lines().filter_map(|line| line.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

pub fn one(connection: &mut Conn, statement: &str) -> String {
    let value: Option<Option<String>> =
        connection.query_first(statement).unwrap_or_else(|e| panic!("{statement}: {e}"));
    value.flatten().unwrap_or_default().replace('\n', "")
}

/// A backup whose manifest agrees, and in which nothing is left that says that it is not complete.
pub fn verify(directory: &Path) {
    let found = hotbackup::verify(directory).unwrap_or_else(|e| panic!("{e}"));
    assert!(found.is_ok(), "{:?}", found.differences);
    let names = std::fs::read_dir(directory).expect("the backup").flatten().map(|entry| entry.file_name());
    let names: Vec<_> = names.filter_map(|name| name.into_string().ok()).collect();
    assert!(names.iter().all(|name| !name.ends_with(".incomplete")), "{names:?}");
    assert!(names.iter().any(|name| name == "tokubackup_restore.txt"), "{names:?}");
}

/// The server of a copy, just started, says of itself what was recorded.
pub fn check_position(product: &Product, copy: &Server, info: &HashMap<String, String>) {
    let mut connection = copy.connect();
    assert!(!info.contains_key("error"), "there is no position: {info:?}");
    let (file, position) = (&info["filename"], info["position"].parse::<u64>().expect("a number"));
    if product.is_mariadb() {
        let said = one(&mut connection, &format!("SELECT BINLOG_GTID_POS('{file}', {position})"));
        assert_eq!(said, info["gtid_set"], "the position and the GTIDs are not of one moment");
        // A definition that was begun is completed when the server recovers, and logged then, in a log of its own.
        if !copy.log().contains("DDL_LOG: Crash recovery executed") {
            assert_eq!(one(&mut connection, "SELECT @@GLOBAL.gtid_binlog_pos"), info["gtid_set"]);
        }
        assert!(!info.contains_key("gtid_mode"));
    } else {
        // What is behind the last complete transaction was cut off when the server recovered.
        let kept = copy.data().join(file).metadata().expect("the log").len();
        assert_eq!(kept, position, "of {file}");
        assert_eq!(one(&mut connection, "SELECT @@GLOBAL.gtid_executed"), info["gtid_set"]);
        assert_eq!(one(&mut connection, "SELECT @@GLOBAL.gtid_mode"), info["gtid_mode"]);
    }
}
