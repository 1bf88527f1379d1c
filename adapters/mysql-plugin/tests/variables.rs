//! The plugin's variables in every way that SQL has to set and to read them.
//!
//! Method: as in `server.rs`. What the server says of each variable is compared with the table in `docs/mysql.md`; backups are
//! asked for from wherever statements can come.

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use common::{How, Product, Server, failure, last, status};
use mysql::Conn;
use mysql::prelude::Queryable;

const MOST: u64 = u64::MAX;

/// Name, whether it is of the session, whether it can be set, default, and for numbers the range; comment.
type Row = (&'static str, bool, bool, Option<&'static str>, Option<(u64, u64)>, &'static str);

const TABLE: [Row; 15] = [
    ("allowed_prefix", false, false, None, None, "destination directory prefix"),
    ("dir", true, true, None, None, "name of the directory where the backup is stored"),
    (
        "exclude",
        true,
        true,
        Some("(mysqld_safe\\.pid)+"),
        None,
        "exclude source files matching this posix extended regular expression",
    ),
    (
        "keep_free",
        true,
        true,
        Some("18446744073709551615"),
        Some((0, MOST)),
        "bytes of the destination's filesystem that stay free. default is 5 percent, and at least 1 GiB",
    ),
    ("last_error", true, false, Some("0"), Some((0, MOST)), "last error"),
    ("last_error_string", true, false, None, None, "last error string"),
    (
        "lock",
        true,
        true,
        Some("none"),
        None,
        "which lock of the server is held around the instant of the backup: none, binlog or tables",
    ),
    (
        "lock_timeout",
        true,
        true,
        Some("60"),
        Some((1, 86_400)),
        "seconds in which the lock must be had, and for which it is held at most",
    ),
    (
        "max_lag",
        true,
        true,
        Some("18446744073709551615"),
        Some((0, MOST)),
        "bytes that the backup may be behind before writes wait. default is automatic",
    ),
    (
        "plugin_version",
        false,
        false,
        Some(env!("CARGO_PKG_VERSION")),
        None,
        "version of the tokudb backup plugin",
    ),
    (
        "safe_slave",
        false,
        true,
        Some("OFF"),
        None,
        "on a replica, have the SQL thread rest around the instant of the backup, when it holds no temporary tables",
    ),
    (
        "safe_slave_timeout",
        false,
        true,
        Some("0"),
        Some((0, MOST)),
        "how many seconds safe_slave waits for that",
    ),
    ("threads", true, true, Some("2"), Some((1, 64)), "threads that copy"),
    (
        "throttle",
        true,
        true,
        Some("18446744073709551615"),
        Some((0, MOST)),
        "backup throttle on write rate in bytes per second.  default is unlimited",
    ),
    ("version", false, false, Some(env!("CARGO_PKG_VERSION")), None, "version of the tokutek backup library"),
];

/// What MariaDB says of all variables.
fn said_by_mariadb(connection: &mut Conn) {
    type Said =
        (String, String, String, Option<String>, Option<String>, Option<String>, Option<String>, String);
    let rows: Vec<Said> = connection
        .query(
            "SELECT LOWER(VARIABLE_NAME), VARIABLE_SCOPE, READ_ONLY, DEFAULT_VALUE, GLOBAL_VALUE, NUMERIC_MIN_VALUE, \
             NUMERIC_MAX_VALUE, VARIABLE_COMMENT FROM information_schema.SYSTEM_VARIABLES \
             WHERE VARIABLE_NAME LIKE 'tokudb\\_backup\\_%' ORDER BY 1",
        )
        .expect("all variables");
    assert_eq!(rows.len(), TABLE.len());
    for (said, (name, of_session, settable, default, range, comment)) in rows.iter().zip(TABLE) {
        assert_eq!(said.0, format!("tokudb_backup_{name}"));
        assert_eq!(said.1, if of_session { "SESSION" } else { "GLOBAL" }, "{name}");
        assert_eq!(said.2, if settable { "NO" } else { "YES" }, "{name}");
        // A text without a value is an empty one here.
        assert_eq!(said.4.as_deref().unwrap_or_default(), default.unwrap_or_default(), "{name}");
        if settable {
            assert_eq!(said.3.as_deref().unwrap_or_default(), default.unwrap_or_default(), "{name}");
        }
        if let Some((least, most)) = range {
            assert_eq!(said.5.as_deref(), Some(&*least.to_string()), "{name}");
            assert_eq!(said.6.as_deref(), Some(&*most.to_string()), "{name}");
        }
        assert_eq!(said.7, comment, "{name}");
    }
}

/// What MySQL 9 says.
fn said_by_mysql(connection: &mut Conn) {
    let rows: Vec<(String, String, String, String, String)> = connection
        .query(
            "SELECT VARIABLE_NAME, VARIABLE_SCOPE, MIN_VALUE, MAX_VALUE, DOCUMENTATION \
             FROM performance_schema.variables_metadata WHERE VARIABLE_NAME LIKE 'tokudb\\_backup\\_%' ORDER BY 1",
        )
        .expect("all variables");
    assert_eq!(rows.len(), TABLE.len());
    for (said, (name, of_session, _, _, range, comment)) in rows.iter().zip(TABLE) {
        assert_eq!(said.0, format!("tokudb_backup_{name}"));
        assert_eq!(said.1, if of_session { "SESSION" } else { "GLOBAL" }, "{name}");
        if let Some((least, most)) = range {
            assert_eq!((&*said.2, &*said.3), (&*least.to_string(), &*most.to_string()), "{name}");
        }
        assert_eq!(said.4, comment, "{name}");
    }
}

#[test]
fn the_server_says_of_the_variables_what_the_table_says() {
    let _alone = common::alone();
    let Some(product) = Product::wanted() else { return };
    let server = Server::start(product, &How::usual());
    let mut connection = server.with_plugin();
    match &*product.name {
        "mysql56" => {}
        "mysql97" => said_by_mysql(&mut connection),
        _ => said_by_mariadb(&mut connection),
    }
    for (name, of_session, settable, default, range, _) in TABLE {
        let variable = format!("tokudb_backup_{name}");
        let value: Option<(String, Option<String>)> =
            connection.query_first(format!("SHOW GLOBAL VARIABLES LIKE '{variable}'")).expect("the variable");
        assert_eq!(value.expect("a row").1.unwrap_or_default(), default.unwrap_or_default(), "{name}");
        // Where it can be set: 1229 is for a global one, 1238 for one that cannot.
        let set = |scope: &str| format!("SET {scope} {variable}=DEFAULT");
        match (of_session, settable) {
            (true, true) => connection.query_drop(set("SESSION")).expect("of the session"),
            (false, true) => assert_eq!(failure(&mut connection, &set("SESSION")).0, 1229, "{name}"),
            (_, false) => {
                assert!(matches!(failure(&mut connection, &set("SESSION")).0, 1229 | 1238), "{name}");
                assert_eq!(failure(&mut connection, &set("GLOBAL")).0, 1238, "{name}");
            }
        }
        let Some((least, most)) = range.filter(|_| settable) else { continue };
        let scope = if of_session { "SESSION" } else { "GLOBAL" };
        let mut becomes = |number: &str, expected: u64| {
            connection.query_drop(format!("SET {scope} {variable}={number}")).expect("set");
            let is: Option<u64> =
                connection.query_first(format!("SELECT @@{scope}.{variable}")).expect("read");
            assert_eq!(is, Some(expected), "{name}={number}");
        };
        becomes(&least.to_string(), least);
        becomes(&most.to_string(), most);
        if (least, most) != (0, MOST) {
            becomes(&(least - 1).to_string(), least);
            becomes(&(most + 1).to_string(), most);
        }
        for wrong in ["'x'", "1.5", "NULL"] {
            let (code, text) = failure(&mut connection, &format!("SET {scope} {variable}={wrong}"));
            assert!(matches!(code, 1231 | 1232), "{name}={wrong}: {code} {text}");
        }
        connection.query_drop(format!("SET {scope} {variable}=DEFAULT")).expect("set");
    }
}

/// A server, and where backups of it go.
struct Asked<'a> {
    server: &'a Server,
    connection: Conn,
}

impl Asked<'_> {
    fn place(&self, name: &str) -> String {
        self.server.room().join(name).to_str().expect("UTF-8").to_owned()
    }

    fn run(&mut self, statement: impl AsRef<str>) {
        let statement = statement.as_ref();
        self.connection.query_drop(statement).unwrap_or_else(|e| panic!("{statement}: {e}"));
    }

    /// There is a good backup at `name`, made by the statements; `%` stands for its place.
    fn makes(&mut self, name: &str, statements: &[&str]) {
        let place = self.place(name);
        for statement in statements {
            self.run(statement.replace('%', &place));
        }
        assert_eq!(last(&mut self.connection), (0, None), "{statements:?}");
        self.is_good(name);
    }

    fn is_good(&mut self, name: &str) {
        let place = self.place(name);
        assert_eq!(status(&mut self.connection, "last_good_directory"), place);
        assert!(Path::new(&place).join("hotbackup-manifest.json").is_file(), "there is no backup at {place}");
    }

    /// The statement fails with this error, whose text holds `why`.
    fn fails(&mut self, statement: &str, number: u16, why: &str) {
        let (code, text) = failure(&mut self.connection, statement);
        assert_eq!(code, number, "{statement}: {text}");
        assert!(text.contains(why), "{statement}: {text}");
    }
}

#[test]
fn a_backup_can_be_asked_for_from_anywhere() {
    let _alone = common::alone();
    let Some(product) = Product::wanted() else { return };
    let server = Server::start(product, &How::usual().and("--log-bin-trust-function-creators=1"));
    let mut asked = Asked { server: &server, connection: server.with_plugin() };
    asked.run("CREATE DATABASE t");
    asked.makes("variable", &["SET @place='%'", "SET tokudb_backup_dir=@place"]);
    asked.makes(
        "prepared",
        &["PREPARE s FROM 'SET tokudb_backup_dir=?'", "SET @place='%'", "EXECUTE s USING @place"],
    );
    asked.run("SET @place='/nowhere/at/all'");
    asked.fails("EXECUTE s USING @place", 1231, "/nowhere/at: No such file");
    asked.fails("EXECUTE s USING @unset", 1231, "no directory is named");
    asked.makes(
        "procedure",
        &["CREATE PROCEDURE t.p(place VARCHAR(500)) SET tokudb_backup_dir=place", "CALL t.p('%')"],
    );
    asked.fails("CALL t.p('/nowhere/at/all')", 1231, "/nowhere/at: No such file");
    asked.makes(
        "function",
        &[
            "CREATE FUNCTION t.f(place VARCHAR(500)) RETURNS INT BEGIN SET tokudb_backup_dir=place; RETURN 1; END",
            "DO t.f('%')",
        ],
    );
    // What is set globally is where sessions begin; a backup is made all the same.
    asked.makes("global", &["SET GLOBAL tokudb_backup_dir='%'"]);
    let begins: Option<String> = server.connect().query_first("SELECT @@tokudb_backup_dir").expect("a row");
    assert_eq!(begins, Some(asked.place("global")));
    asked.run("SET GLOBAL tokudb_backup_dir=DEFAULT");
    asked.run("SET GLOBAL event_scheduler=ON");
    let place = asked.place("event");
    asked.run(format!("CREATE EVENT t.e ON SCHEDULE AT NOW() DO SET tokudb_backup_dir='{place}'"));
    let begun = Instant::now();
    while status(&mut asked.connection, "last_good_directory") != place {
        assert!(begun.elapsed() < Duration::from_secs(20), "the event makes no backup");
        std::thread::sleep(Duration::from_millis(50));
    }
    asked.is_good("event");
    if product.name == "mysql97" {
        asked.run("SET GLOBAL super_read_only=ON");
    } else {
        asked.run("SET GLOBAL read_only=ON");
    }
    asked.makes("read only", &["SET tokudb_backup_dir='%'"]);
    asked.run("SET GLOBAL read_only=OFF");
    // A name is bytes, not text.
    asked.run(format!("SET tokudb_backup_dir=CONCAT('{}', 0xFF)", asked.place("")));
    assert!(status(&mut asked.connection, "last_good_directory").ends_with('\u{fffd}'));
}

#[test]
fn what_cannot_be_set_is_refused() {
    let _alone = common::alone();
    let Some(product) = Product::wanted() else { return };
    let server = Server::start(product, &How::usual());
    let mut asked = Asked { server: &server, connection: server.with_plugin() };
    let why = "has to begin with a slash";
    asked.fails("SET tokudb_backup_dir=0xFF", 1231, why);
    // The reason is behind what an error has room for.
    asked.fails("SET tokudb_backup_dir=REPEAT('x', 4096)", 1231, "xxx...");
    assert!(last(&mut asked.connection).1.expect("a reason").contains(why));
    asked.fails("SET tokudb_backup_dir=5", 1232, "");
    asked.fails("SET tokudb_backup_exclude=REPEAT('(', 4096)", 1231, "can't be set to the value of '(((");
    asked.fails("SET tokudb_backup_exclude=REPEAT('(', 300)", 1231, "64 groups");
    asked.fails("SET tokudb_backup_exclude='((((a{1,255}){1,255}){1,255}){1,255})'", 1231, "4096 bytes");
    asked.run("SET tokudb_backup_exclude=NULL");
    asked.run("SET tokudb_backup_exclude=''");
    asked.run("SET tokudb_backup_exclude=DEFAULT");
    // No backup, and no error either: it forgets the last place.
    asked.run("SET tokudb_backup_dir=DEFAULT");
    match &*product.name {
        "mysql56" => {}
        "mysql97" => {
            asked.fails("SET PERSIST tokudb_backup_dir='/nowhere/at/all'", 1238, "non persistent");
            asked.run("SET PERSIST tokudb_backup_throttle=1000000000");
            let is: Option<u64> =
                asked.connection.query_first("SELECT @@GLOBAL.tokudb_backup_throttle").expect("a row");
            assert_eq!(is, Some(1_000_000_000));
            asked.run("RESET PERSIST tokudb_backup_throttle");
        }
        _ => {
            asked.makes("first", &["SET tokudb_backup_dir='%'"]);
            let second = asked.place("second");
            let statement = format!("SET /* for */ STATEMENT tokudb_backup_dir='{second}' FOR SELECT 1");
            asked.fails(&statement, 1231, "cannot be set for one statement");
            assert!(!Path::new(&second).exists(), "something was made");
            // The others can, and are what they were afterwards.
            asked.run(
                "SET STATEMENT tokudb_backup_throttle=1000000000, tokudb_backup_exclude='x' FOR SELECT 1",
            );
            let is: Option<(u64, String)> = asked
                .connection
                .query_first("SELECT @@tokudb_backup_throttle, @@tokudb_backup_exclude")
                .expect("a row");
            assert_eq!(is, Some((MOST, "(mysqld_safe\\.pid)+".to_owned())));
            asked.makes("third", &["SET /* STATEMENT */ tokudb_backup_dir='%'"]);
        }
    }
}

#[test]
fn the_plugin_goes_after_the_backup_that_runs() {
    let _alone = common::alone();
    let Some(product) = Product::wanted() else { return };
    let server = Server::start(product, &How::usual());
    let (mut slow, mut other) = (server.with_plugin(), server.connect());
    let place = server.room().join("backup");
    slow.query_drop("SET tokudb_backup_throttle=30000000").expect("set");
    std::thread::scope(|scope| {
        let backup = scope.spawn(|| slow.query_drop(format!("SET tokudb_backup_dir='{}'", place.display())));
        let begun = Instant::now();
        while status(&mut other, "phase") != "copy" {
            assert!(begun.elapsed() < Duration::from_secs(20), "it does not copy");
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut third = server.connect();
        let gone = scope.spawn(move || third.query_drop("UNINSTALL PLUGIN tokudb_backup"));
        std::thread::sleep(Duration::from_millis(300));
        assert!(!backup.is_finished(), "the backup did not go on");
        // From now on nobody may be able to set it.
        let faster = other.query_drop("SET tokudb_backup_throttle=DEFAULT");
        let outcome = backup.join().expect("no panic");
        common::say(&format!("uninstalled meanwhile: throttle {faster:?}, backup {outcome:?}"));
        outcome.expect("the backup");
        let gone = gone.join().expect("no panic");
        match &*product.name {
            "mysql97" => assert!(gone.is_err(), "it was uninstalled while a backup ran"),
            _ => gone.expect("uninstalled when the backup had ended"),
        }
    });
    assert!(place.join("hotbackup-manifest.json").is_file());
    drop(slow);
    if product.name == "mysql97" {
        other.query_drop("UNINSTALL PLUGIN tokudb_backup").expect("uninstalled");
    }
    server.with_plugin();
}

/// The first one is in front of the second, and is the one that the plugin finds.
#[test]
fn the_library_may_be_preloaded_twice() {
    let _alone = common::alone();
    let Some(product) = Product::wanted() else { return };
    let how = How { library_twice: true, ..How::usual() };
    let server = Server::start(product, &how);
    let mut asked = Asked { server: &server, connection: server.with_plugin() };
    asked.run("CREATE DATABASE t");
    asked.run("CREATE TABLE t.t (n INT) ENGINE=InnoDB");
    asked.run("INSERT INTO t.t VALUES (7)");
    asked.makes("backup", &["SET tokudb_backup_dir='%'"]);
    let copy = Path::new(&asked.place("backup")).join("mysql_data_dir");
    let second = Server::start_on_copy(product, &How::usual(), &copy);
    let row: Option<u64> = second.connect().query_first("SELECT n FROM t.t").expect("the table");
    assert_eq!(row, Some(7));
}
