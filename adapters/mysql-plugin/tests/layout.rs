//! Backups of servers whose data lies in many places.
//!
//! Method: as in `server.rs`. Everything that the server at hand can have outside of its data directory lies outside, beside
//! things of others, and is written to while it is backed up. Then all of it is moved away, the paths in the copy are corrected to the
//! copied directories, and a second server is started on these.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{How, Product, Server, failure, last};
use mysql::Conn;
use mysql::prelude::Queryable;

fn back_up(connection: &mut Conn, directory: &Path) -> mysql::Result<()> {
    connection.query_drop(format!("SET tokudb_backup_dir='{}'", directory.display()))
}

/// What lies in a backup, without the files that tell about it.
fn copies(backup: &Path) -> Vec<String> {
    names(backup).into_iter().filter(|name| !name.starts_with("tokubackup_")).collect()
}

/// The names in a directory.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
    let mut names: Vec<_> =
        entries.map(|entry| entry.expect("a name").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// All files below a directory, by their paths.
fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("a name"));
    let below = entries.flat_map(|entry| match entry.file_type().expect("a type").is_dir() {
        true => files(&entry.path()),
        false => vec![entry.path()],
    });
    below.collect()
}

/// Directories of a server, by what their copies are called, and the options that say where they are.
struct Layout<'a> {
    product: &'a Product,
    /// Where each directory lies.
    places: BTreeMap<&'static str, PathBuf>,
}

impl<'a> Layout<'a> {
    fn new(product: &'a Product, root: &Path) -> Layout<'a> {
        let of_server: &[_] = match &*product.name {
            "mysql56" => &[],
            "mysql97" => &["innodb_undo_directory", "innodb_doublewrite_dir", "innodb_directories"],
            _ => &["innodb_undo_directory", "aria_log_dir_path"],
        };
        let of_all =
            ["innodb_data_file_path", "innodb_log_group_home_dir", "mysql_log_bin", "mysql_relay_log"];
        let places = of_all.iter().chain(of_server).map(|&name| {
            let directory = root.join(name);
            fs::create_dir(&directory).expect("a directory");
            fs::write(directory.join("of somebody else"), "x").expect("a file");
            (name, directory)
        });
        Layout { product, places: places.collect() }
    }

    fn at(&self, name: &str) -> &Path {
        &self.places[name]
    }

    /// How a server finds its directories.
    fn how(&self) -> How {
        let mut how = How::with(&[
            "--innodb-use-native-aio=0",
            "--server-id=1",
            "--symbolic-links",
            "--innodb-data-home-dir=",
        ]);
        for (name, place) in &self.places {
            let place = place.display();
            how = how.and(match *name {
                "mysql_log_bin" => format!("--log-bin={place}/bin"),
                "mysql_relay_log" => format!("--relay-log={place}/relay"),
                "innodb_data_file_path" => format!("--innodb-data-file-path={place}/ibdata1:12M:autoextend"),
                directory => format!("--{}={place}", directory.replace('_', "-")),
            });
        }
        how
    }

    /// Moves what a fresh data directory holds to where it is to be.
    fn spread(&self, data: &Path) {
        for name in names(data) {
            let directory = match &*name {
                "ibdata1" => "innodb_data_file_path",
                redo if redo.starts_with("ib_logfile") || redo == "#innodb_redo" => {
                    "innodb_log_group_home_dir"
                }
                undo if undo.starts_with("undo") => "innodb_undo_directory",
                pages if pages.ends_with(".dblwr") => "innodb_doublewrite_dir",
                aria if aria.starts_with("aria_log") => "aria_log_dir_path",
                _ => continue,
            };
            let moved =
                std::process::Command::new("mv").arg(data.join(&name)).arg(self.at(directory)).status();
            assert!(moved.expect("mv").success(), "{name} is moved");
        }
    }

    /// The same layout, with the directories of a backup.
    fn of_copy(&self, backup: &Path) -> Layout<'a> {
        let places = self.places.keys().map(|&name| (name, backup.join(name))).collect();
        Layout { product: self.product, places }
    }
}

/// Corrects the absolute paths in a copy: `moved` says where each directory is now.
fn correct(copy: &Path, moved: &[(&Path, &Path)]) {
    let corrected = |path: &Path| {
        let found = moved.iter().find_map(|(from, to)| Some(to.join(path.strip_prefix(from).ok()?)));
        // It may have been corrected before.
        let is_right = path.is_relative() || moved.iter().any(|(_, to)| path.starts_with(to));
        let found = found.or_else(|| is_right.then(|| path.to_owned()));
        found.unwrap_or_else(|| panic!("{} is in none of {moved:?}", path.display()))
    };
    for file in files(copy) {
        if file.is_symlink() {
            let target = corrected(&fs::read_link(&file).expect("a link"));
            fs::remove_file(&file).expect("removed");
            symlink(target, &file).expect("a link");
        } else if file.extension().is_some_and(|extension| extension == "isl" || extension == "index") {
            let text = fs::read(&file).expect("read");
            let lines = text.split(|&b| b == b'\n').filter(|line| !line.is_empty());
            let lines = lines.map(|line| corrected(Path::new(std::ffi::OsStr::from_bytes(line))));
            let lines: Vec<_> = lines.map(|line| line.to_str().expect("UTF-8").to_owned()).collect();
            let end = if file.extension().is_some_and(|extension| extension == "index") { "\n" } else { "" };
            fs::write(&file, lines.join("\n") + end).expect("written");
        }
    }
}

/// Tables of every engine in every place, and a database that is elsewhere.
struct Tables {
    transactional: Vec<&'static str>,
    others: Vec<&'static str>,
}

impl Tables {
    fn furnish(
        product: &Product,
        server: &Server,
        connection: &mut Conn,
        root: &Path,
        spaces: &Path,
    ) -> Tables {
        let elsewhere = root.join("elsewhere");
        let tables = root.join("tables");
        fs::create_dir(&tables).expect("a directory");
        fs::write(tables.join("of somebody else"), "x").expect("a file");
        let mut run =
            |statement: &str| connection.query_drop(statement).unwrap_or_else(|e| panic!("{statement}: {e}"));
        run("CREATE DATABASE spread");
        run("CREATE DATABASE moved");
        fs::rename(server.data().join("moved"), &elsewhere).expect("moved");
        symlink(&elsewhere, server.data().join("moved")).expect("a link");
        let columns = "(n BIGINT PRIMARY KEY, filler VARCHAR(200))";
        let (there, here) = (spaces.display(), tables.display());
        run(&format!("CREATE TABLE spread.near {columns} ENGINE=InnoDB"));
        run(&format!("CREATE TABLE spread.far {columns} ENGINE=InnoDB DATA DIRECTORY='{there}'"));
        run(&format!("CREATE TABLE moved.rows_ {columns} ENGINE=InnoDB"));
        run(&format!("CREATE TABLE moved.plain {columns} ENGINE=MyISAM"));
        run(&format!(
            "CREATE TABLE spread.plain {columns} ENGINE=MyISAM DATA DIRECTORY='{here}' INDEX DIRECTORY='{here}'"
        ));
        let mut tables = Tables {
            transactional: vec!["spread.near", "spread.far", "moved.rows_"],
            others: vec!["moved.plain", "spread.plain"],
        };
        if product.is_mariadb() {
            run(&format!("CREATE TABLE spread.aria {columns} ENGINE=Aria DATA DIRECTORY='{here}'"));
            tables.others.push("spread.aria");
        }
        if product.name == "mysql97" {
            run(&format!("CREATE TABLESPACE wide ADD DATAFILE '{there}/wide.ibd'"));
            run(&format!("CREATE TABLE spread.general {columns} TABLESPACE wide"));
            tables.transactional.push("spread.general");
        }
        tables
    }

    /// Writes one row after the other to every table.
    fn write(&self, connection: &mut Conn, stop: &AtomicBool, committed: &AtomicU64) {
        for number in 1.. {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            let mut run = |statement: &str| {
                connection.query_drop(statement).unwrap_or_else(|e| panic!("{statement}: {e}"))
            };
            let insert = |table: &&str| format!("INSERT INTO {table} VALUES ({number}, REPEAT('r', 150))");
            run("BEGIN");
            self.transactional.iter().map(insert).for_each(|statement| run(&statement));
            run("COMMIT");
            self.others.iter().map(insert).for_each(|statement| run(&statement));
            committed.store(number, Ordering::SeqCst);
        }
    }

    fn check(&self, connection: &mut Conn, least: u64, most: u64) {
        let count = |connection: &mut Conn, table: &str| -> (u64, u64) {
            let row = connection.query_first(format!("SELECT COUNT(*), COALESCE(MAX(n), 0) FROM {table}"));
            row.unwrap_or_else(|e| panic!("{table}: {e}")).expect("a row")
        };
        for table in &self.others {
            connection.query_drop(format!("REPAIR TABLE {table}")).expect("repaired");
        }
        for table in self.transactional.iter().chain(&self.others) {
            let rows: Vec<(String, String, String, String)> =
                connection.query(format!("CHECK TABLE {table}")).expect("checked");
            assert_eq!(rows.last().map(|row| &*row.3), Some("OK"), "{rows:?}");
            let (rows, last) = count(connection, table);
            assert_eq!(rows, last, "{table} has gaps");
            assert!((least..=most).contains(&last), "{table} ends at {last}, not between {least} and {most}");
        }
        // One transaction wrote to all of these.
        let counts = self.transactional.iter().map(|table| count(connection, table));
        let counts: Vec<_> = counts.collect();
        assert!(counts.windows(2).all(|two| two[0] == two[1]), "not of one instant: {counts:?}");
        for table in self.transactional.iter().chain(&self.others) {
            connection
                .query_drop(format!("INSERT INTO {table} VALUES (0, 'zero')"))
                .expect("it can be written");
        }
    }
}

#[test]
fn a_server_that_is_spread_over_many_directories_is_backed_up_as_one() {
    let _alone = common::alone();
    let Some(product) = Product::wanted() else { return };
    let scratch = tempfile::tempdir().expect("a directory");
    let scratch = scratch.path().canonicalize().expect("resolved");
    let (root, backup) = (scratch.join("outside"), scratch.join("backup"));
    fs::create_dir(&root).expect("a directory");
    let layout = Layout::new(product, &root);
    let server = Server::start_after(product, &layout.how(), |data| layout.spread(data));
    let mut connection = server.with_plugin();
    // MySQL 8 and later have tablespaces in known directories only, and then their names with them.
    let known = layout.places.get("innodb_directories").cloned();
    let spaces = known.clone().unwrap_or_else(|| root.join("spaces"));
    let tables = Tables::furnish(product, &server, &mut connection, &root, &spaces);
    fs::write(spaces.join("spread/of somebody else"), "x").expect("a file");
    let (stop, committed) = (AtomicBool::new(false), AtomicU64::new(0));
    let (least, most) = std::thread::scope(|scope| {
        scope.spawn(|| tables.write(&mut server.connect(), &stop, &committed));
        std::thread::sleep(Duration::from_millis(300));
        let least = committed.load(Ordering::SeqCst);
        let outcome = back_up(&mut connection, &backup);
        stop.store(true, Ordering::Relaxed);
        outcome.unwrap_or_else(|e| panic!("{e}\n{:?}", last(&mut server.connect())));
        (least, committed.load(Ordering::SeqCst) + 1)
    });
    let data = server.data().to_owned();
    drop(connection);
    drop(server);
    fs::rename(&root, scratch.join("away")).expect("moved");

    let (rows, plain) = (backup.join("innodb_data_directory"), backup.join("data_directory"));
    let mut expected: Vec<_> = layout.places.keys().map(|name| (*name).to_owned()).collect();
    expected.extend(
        ["data_directory", "hotbackup-manifest.json", "mysql_data_dir", "symlink"].map(str::to_owned),
    );
    if known.is_none() {
        expected.push("innodb_data_directory".to_owned());
        assert_eq!(names(&rows), ["far.ibd"]);
    }
    expected.sort();
    assert_eq!(copies(&backup), expected);
    assert_eq!(names(&backup.join("innodb_data_file_path")), ["ibdata1"]);
    assert!(!names(&plain).contains(&"of somebody else".to_owned()), "a stranger's file was copied");
    assert!(names(&plain).contains(&"plain.MYD".to_owned()));

    let copies = layout.of_copy(&backup);
    let copy = backup.join("mysql_data_dir");
    let (spread, link) = (spaces.join("spread"), backup.join("symlink"));
    let (of_tables, elsewhere) = (root.join("tables"), root.join("elsewhere"));
    let mut moved: Vec<_> = layout.places.iter().map(|(name, place)| (&**place, copies.at(name))).collect();
    moved.extend([(&*of_tables, &*plain), (&*elsewhere, &*link), (&*data, &*copy)]);
    if product.is_mariadb() {
        // Its log names tablespaces by their paths: until it has recovered they have to be where they were.
        fs::create_dir_all(&spaces).expect("a directory");
        fs::rename(&rows, &spread).expect("put back");
        moved.push((&spread, &spread));
    } else if known.is_none() {
        moved.push((&spread, &rows));
    }
    correct(&backup, &moved);
    let second = Server::start_on_copy(product, &copies.how(), &copy);
    tables.check(&mut second.connect(), least, most);
    drop(second);
    if product.is_mariadb() {
        fs::rename(&spread, &rows).expect("moved");
        moved.pop();
        moved.push((&spread, &rows));
        correct(&backup, &moved);
        let third = Server::start_on_copy(product, &copies.how(), &copy);
        let zero: Option<String> =
            third.connect().query_first("SELECT filler FROM spread.far WHERE n=0").expect("the table");
        assert_eq!(zero.as_deref(), Some("zero"));
    }
}

/// Runs `meanwhile` while a slow backup copies, then has it go on as fast as it can.
fn slowly(server: &Server, directory: &Path, meanwhile: impl FnOnce(&mut Conn)) -> mysql::Result<()> {
    let (mut slow, mut other) = (server.connect(), server.connect());
    slow.query_drop("SET tokudb_backup_throttle=1000000").expect("set");
    std::thread::scope(|scope| {
        let backup = scope.spawn(|| back_up(&mut slow, directory));
        let begun = Instant::now();
        while common::status(&mut other, "phase") != "copy" {
            assert!(begun.elapsed() < Duration::from_secs(20), "it does not copy");
            std::thread::sleep(Duration::from_millis(20));
        }
        meanwhile(&mut other);
        other.query_drop("SET tokudb_backup_throttle=DEFAULT").expect("set");
        backup.join().expect("no panic")
    })
}

#[test]
fn tables_that_come_meanwhile_are_in_the_backup_or_fail_it() {
    let _alone = common::alone();
    let Some(product) = Product::wanted() else { return };
    let scratch = tempfile::tempdir().expect("a directory");
    let root = scratch.path().canonicalize().expect("resolved");
    let server = Server::start(product, &How::usual().and("--symbolic-links"));
    let mut connection = server.with_plugin();
    // MySQL 8 and later make InnoDB's tables in known directories only: another engine's are left to try.
    let engine = if product.name == "mysql97" { "MyISAM" } else { "InnoDB" };
    let create = |table: &str, place: &str| {
        let place = root.join(place);
        fs::create_dir_all(&place).expect("a directory");
        let place = place.display();
        format!("CREATE TABLE bank.{table} (n INT) ENGINE={engine} DATA DIRECTORY='{place}'")
    };
    connection.query_drop("CREATE DATABASE bank").expect("a database");
    connection.query_drop(create("known", "known")).expect("a table");
    let backup = server.room().join("known place");
    slowly(&server, &backup, |other| other.query_drop(create("new", "known")).expect("a table"))
        .expect("the directory is a source");
    let (copy, file) = match engine {
        "InnoDB" => ("innodb_data_directory", "new.ibd"),
        _ => ("data_directory", "new.MYD"),
    };
    assert!(backup.join(copy).join(file).is_file(), "it is not in the backup");

    let backup = server.room().join("new place");
    let outcome =
        slowly(&server, &backup, |other| other.query_drop(create("newer", "new")).expect("a table"));
    let text = outcome.expect_err("its directory is no source").to_string();
    assert!(
        text.contains(&format!("bank/newer.{}", if engine == "InnoDB" { "isl" } else { "MYD" })),
        "{text}"
    );
    let (code, text) = failure(&mut connection, &format!("SET tokudb_backup_dir='{}'", backup.display()));
    assert_eq!(code, 1231);
    assert!(text.contains("that did not complete"), "the half-done backup looks done: {text}");
    let said = common::status(&mut connection, "last_result_string");
    assert!(said.contains("that did not complete"), "{said}");
    assert!(!backup.join("mysql_data_dir").exists(), "the half-done backup looks done");
    // From the beginning it is a source.
    let backup = server.room().join("another");
    back_up(&mut connection, &backup).expect("a backup");
    assert!(backup.join(format!("{copy}.1")).is_dir());
}

/// Declares two global variables of a plugin on the server, as if that were there.
fn declare(product: &Product, server: &Server, plugin: &str, first: [&str; 2], second: [&str; 2]) {
    let mut connection = server.connect();
    let version: Option<String> = connection.query_first("SELECT VERSION()").expect("the version");
    let version = version.expect("a row");
    let numbers = version.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse::<u32>().ok());
    let version = numbers.take(3).fold(0, |version, number| version * 100 + number);
    let library = format!("{plugin}.so");
    let mut compiler = std::process::Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-o"]).arg(server.room().join("plugins").join(&library));
    compiler.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/common/declares.c"));
    compiler.arg(format!("-DVERSION={version}"));
    if product.is_mariadb() {
        compiler.arg("-DMARIADB");
    }
    let texts = [("NAME", plugin), ("FIRST", first[0]), ("FIRST_VALUE", first[1])];
    for (name, text) in texts.into_iter().chain([("SECOND", second[0]), ("SECOND_VALUE", second[1])]) {
        compiler.arg(format!("-D{name}=\"{text}\""));
    }
    assert!(compiler.status().expect("a C compiler").success(), "{plugin} is compiled");
    connection.query_drop(format!("INSTALL PLUGIN {plugin} SONAME '{library}'")).expect("installed");
}

/// A filesystem of its own, in memory.
struct Mount(PathBuf);

impl Mount {
    /// `None` where this user may not mount.
    fn on(directory: &Path) -> Option<Mount> {
        let mut mount = std::process::Command::new("mount");
        let done = mount.args(["-t", "tmpfs", "none"]).arg(directory).status();
        done.is_ok_and(|status| status.success()).then(|| Mount(directory.to_owned()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// What is temporary is left out wherever it lies, what only a variable or a plugin knows of is found, and a mount is entered.
#[test]
fn odd_places_are_known() {
    let _alone = common::alone();
    let Some(product) = Product::wanted() else { return };
    let scratch = tempfile::tempdir().expect("a directory");
    let root = scratch.path().canonicalize().expect("resolved");
    let place = |name: &str| {
        let place = root.join(name);
        fs::create_dir_all(&place).expect("a directory");
        fs::write(place.join("of somebody else"), "x").expect("a file");
        place.to_str().expect("UTF-8").to_owned()
    };
    let mut how = How::with(&["--innodb-use-native-aio=0", "--server-id=1", "--log-bin=binlog"])
        .and(format!("--innodb-data-home-dir={}", place("home")))
        .and(format!("--tmpdir={}", place("home/tmp")))
        .and(format!("--log-bin-index={}/binlog", place("index")));
    if product.name != "mysql56" {
        how = how.and("--innodb-temp-data-file-path=anew:12M:autoextend");
    }
    if product.name == "mysql97" {
        how = how.and(format!("--innodb-temp-tablespaces-dir={}", place("home/spaces")));
    } else {
        how = how.and(format!("--master-info-file={}/master.info", place("info")));
    }
    let mut mount = None;
    let server = Server::start_after(product, &how, |data| {
        fs::create_dir(data.join("mounted")).expect("a directory");
        mount = Mount::on(&data.join("mounted"));
        fs::write(data.join("mounted/file"), "x").expect("a file");
        let home = root.join("home/ibdata1");
        let moved = std::process::Command::new("mv").arg(data.join("ibdata1")).arg(home).status();
        assert!(moved.expect("mv").success(), "ibdata1 is moved");
    });
    let mut connection = server.with_plugin();
    let (rows, log) = (place("rows"), place("log"));
    declare(product, &server, "TokuDB", ["data_dir", &rows], ["log_dir", &log]);
    let keys = root.join("keys").to_str().expect("UTF-8").to_owned();
    let (ring, variable) = match product.is_mariadb() {
        true => ("file_key_management", "filename"),
        false => ("keyring_file", "data"),
    };
    declare(product, &server, ring, [variable, &keys], ["other", "/other"]);
    if product.is_mariadb() {
        connection.query_drop("CHANGE MASTER 'west' TO MASTER_HOST='nowhere'").expect("a source");
    }
    let more_keys = root.join("more keys");
    if product.name == "mysql97" {
        let component = "component_keyring_file";
        let plugins = server.room().join("plugins");
        fs::copy(product.plugins().join(format!("{component}.so")), plugins.join(format!("{component}.so")))
            .expect("the component");
        let configuration = format!("{{ \"path\": \"{}\", \"read_only\": false }}", more_keys.display());
        fs::write(plugins.join(format!("{component}.cnf")), configuration).expect("a file");
        connection.query_drop(format!("INSTALL COMPONENT 'file://{component}'")).expect("installed");
    }
    connection.query_drop("CREATE DATABASE t").expect("a database");
    connection.query_drop("CREATE TEMPORARY TABLE t.one (n INT) ENGINE=MyISAM").expect("a table");
    connection.query_drop("CREATE TEMPORARY TABLE t.two (n INT) ENGINE=InnoDB").expect("a table");
    let backup = server.room().join("backup");
    back_up(&mut connection, &backup).unwrap_or_else(|e| panic!("{e}: {:?}", last(&mut connection)));

    let data = backup.join("mysql_data_dir");
    let mut expected =
        ["hotbackup-manifest.json", "innodb_data_home_dir", "mysql_data_dir", "mysql_log_bin_index"].to_vec();
    expected.extend((product.name != "mysql97").then_some("mysql_master_info"));
    expected.extend(["tokudb_data_dir", "tokudb_log_dir"]);
    assert_eq!(copies(&backup), expected);
    assert_eq!(names(&backup.join("mysql_log_bin_index")), ["binlog.index"]);
    if product.is_mariadb() {
        assert_eq!(names(&backup.join("mysql_master_info")), ["master-west.info", "multi-master.info"]);
    }
    assert!(names(&root.join("home/tmp")).len() > 1, "there is no temporary table");
    assert_eq!(names(&backup.join("innodb_data_home_dir/tmp")), ["of somebody else"]);
    if product.name == "mysql97" {
        assert!(names(&root.join("home/spaces")).len() > 1, "there is no temporary tablespace");
        assert_eq!(names(&backup.join("innodb_data_home_dir/spaces")), ["of somebody else"]);
    }
    let is_temporary = |file: &&PathBuf| file.ends_with("anew") || file.ends_with("ibtmp1");
    let copied = files(&backup);
    assert_eq!(copied.iter().find(is_temporary), None);
    if product.name != "mysql56" {
        assert!(files(server.data()).iter().chain(&files(&root)).any(|file| file.ends_with("anew")));
    }
    assert!(copied.contains(&data.join("mounted/file")), "what is mounted is not in the backup");
    let log = server.log();
    assert!(
        log.contains(&format!("warning: the keys in {keys} ({ring}_{variable}) are not in the backup")),
        "{log}"
    );
    if product.name == "mysql97" {
        assert!(log.contains(&format!("the keys in {} (component_", more_keys.display())), "{log}");
    }
    drop(connection);
    drop(server);
    drop(mount);
}

/// MySQL 8 and later open a tablespace that is there from before, though they could not recover it, nor a copy of it.
#[test]
fn tablespaces_where_the_server_does_not_look_are_refused() {
    let _alone = common::alone();
    let Some(product) = Product::wanted().filter(|product| product.name == "mysql97") else { return };
    let scratch = tempfile::tempdir().expect("a directory");
    let root = scratch.path().canonicalize().expect("resolved");
    let known = How::usual().and(format!("--innodb-directories={}", root.display()));
    let mut first = Server::start(product, &known);
    let mut connection = first.connect();
    for statement in [
        "CREATE DATABASE t".to_owned(),
        format!("CREATE TABLE t.far (n INT) DATA DIRECTORY='{}'", root.display()),
        format!("CREATE TABLESPACE gone ADD DATAFILE '{}/gone.ibd'", root.display()),
        "DROP TABLESPACE gone".to_owned(),
    ] {
        connection.query_drop(&statement).unwrap_or_else(|e| panic!("{statement}: {e}"));
    }
    drop(connection);
    first.stop();
    let of_first = |data: &Path| {
        fs::remove_dir_all(data).expect("removed");
        let copied = std::process::Command::new("cp").arg("-a").arg(first.data()).arg(data).status();
        assert!(copied.expect("cp").success(), "the data directory is copied");
    };
    let second = Server::start_after(product, &How::usual(), of_first);
    let mut connection = second.with_plugin();
    let backup = second.room().join("backup");
    back_up(&mut connection, &backup).expect_err("it cannot be recovered from a copy");
    let said = last(&mut connection).1.expect("a reason");
    assert!(said.contains(&format!("{}/t/far.ibd is a tablespace outside", root.display())), "{said}");
    assert!(!backup.exists(), "something was made");
}
