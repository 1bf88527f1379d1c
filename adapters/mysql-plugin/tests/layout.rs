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
use std::time::Duration;

use common::{How, Product, Server, last};
use mysql::Conn;
use mysql::prelude::Queryable;

fn back_up(connection: &mut Conn, directory: &Path) -> mysql::Result<()> {
    connection.query_drop(format!("SET tokudb_backup_dir='{}'", directory.display()))
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
    assert_eq!(names(&backup), expected);
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
