//! What the tests on real servers share: servers of their own, started on a copy of a fresh data directory.
#![allow(dead_code, reason = "every test program compiles this module and uses a part of it")]

pub mod beside;
pub mod load;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use mysql::prelude::Queryable;
use mysql::{Conn, OptsBuilder};

/// Servers of one test program run one after the other: the machine is small.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What `tests/servers/template` says of the server that `HOTBACKUP_SERVER` names.
pub struct Product {
    pub name: String,
    said: Vec<(String, String)>,
}

impl Product {
    /// `None`, with a word, if no server is named.
    pub fn wanted() -> Option<&'static Product> {
        static PRODUCT: OnceLock<Option<Product>> = OnceLock::new();
        PRODUCT
            .get_or_init(|| {
                let Ok(name) = std::env::var("HOTBACKUP_SERVER") else {
                    say("skipped: HOTBACKUP_SERVER names no server");
                    return None;
                };
                let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/servers/template");
                let output =
                    Command::new(script).arg(&name).stderr(Stdio::inherit()).output().expect("the script");
                assert!(output.status.success(), "there is no server {name}");
                let text = String::from_utf8(output.stdout).expect("UTF-8");
                let pair = |line: &str| line.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()));
                Some(Product { name, said: text.lines().filter_map(pair).collect() })
            })
            .as_ref()
    }

    pub fn is_mariadb(&self) -> bool {
        self.name.starts_with("mariadb")
    }

    /// Where this server was unpacked.
    fn folder(&self) -> &Path {
        Path::new(self.one("datadir")).ancestors().nth(2).expect("FOLDER/template/datadir")
    }

    /// Where its own plugins are.
    pub fn plugins(&self) -> PathBuf {
        self.folder().join("usr/lib/mysql/plugin")
    }

    /// Puts one of its own plugins where a server on this data directory will look for it.
    pub fn give_plugin(&self, data: &Path, name: &str) {
        let plugins = data.with_file_name("plugins");
        std::fs::create_dir_all(&plugins).expect("a directory");
        let of_server = self.plugins().join(name);
        let found = if of_server.exists() { of_server } else { self.service().join(name) };
        std::fs::copy(&found, plugins.join(name)).unwrap_or_else(|e| panic!("{}: {e}", found.display()));
    }

    /// The plugins of MariaDB 10.11 that another package has.
    fn service(&self) -> PathBuf {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/servers/fetch");
        let output = Command::new(script).arg(format!("{}-service", self.name)).output().expect("the script");
        PathBuf::from(String::from_utf8(output.stdout).expect("UTF-8").trim()).join("usr/lib/mysql/plugin")
    }

    /// A copy of it that everybody may read, which says of the homes of root that not everybody can.
    pub fn copy_to(&self, folder: &Path) -> Product {
        std::fs::create_dir(folder).expect("a directory");
        let names =
            std::fs::read_dir(self.folder()).expect("the folder").map(|entry| entry.expect("a name").path());
        let parts = names.filter(|path| path.file_name() != Some("template".as_ref()));
        let copied = Command::new("cp").arg("-a").args(parts).arg(folder).status();
        assert!(copied.expect("cp").success(), "the server is copied");
        let (from, to) = (self.folder().to_str().expect("UTF-8"), folder.to_str().expect("UTF-8"));
        let moved =
            |key: &str, value: &str| if key == "datadir" { value.into() } else { value.replace(from, to) };
        let said = self.said.iter().map(|(key, value)| (key.clone(), moved(key, value)));
        Product { name: self.name.clone(), said: said.collect() }
    }

    fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.said.iter().filter(move |(k, _)| k == key).map(|(_, value)| &**value)
    }

    fn one<'a>(&'a self, key: &'a str) -> &'a str {
        self.all(key).next().unwrap_or_else(|| panic!("{} has no {key}", self.name))
    }
}

/// Says something to whoever watches the tests.
pub fn say(text: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// A library of this workspace, built with the same profile as this test.
fn library(name: &str) -> PathBuf {
    let program = std::env::current_exe().expect("this program");
    let directory = program.ancestors().nth(2).expect("target/PROFILE/deps/PROGRAM");
    let path = directory.join(name);
    assert!(path.is_file(), "{} has to be built first", path.display());
    path
}

/// Has a library say that it is of version 0.0.9.
fn age(library: &Path) {
    let mut bytes = std::fs::read(library).expect("the library");
    let version = concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes();
    let places: Vec<usize> = (0..bytes.len()).filter(|&at| bytes[at..].starts_with(version)).collect();
    assert!(!places.is_empty(), "the library says its version");
    for at in places {
        bytes[at..at + version.len()].fill(0);
        bytes[at..at + 5].copy_from_slice(b"0.0.9");
    }
    std::fs::write(library, bytes).expect("the library");
}

/// How a server is started.
#[derive(Clone, Default)]
pub struct How {
    pub options: Vec<String>,
    pub without_library: bool,
    /// Not preloaded: it lies beside the plugin. So it is if `HOTBACKUP_ATTACH` is set, but
    /// for what only a preloaded library can do.
    pub attached: bool,
    /// Once more, from another file.
    pub library_twice: bool,
    /// One that says that it is of another version.
    pub other_version: bool,
    /// As the user nobody.
    pub unprivileged: bool,
    /// Setting up io_uring is refused.
    pub without_uring: bool,
}

impl How {
    /// The server's defaults, which are native asynchronous I/O, and a binary log.
    pub fn usual() -> How {
        How::with(&["--log-bin=binlog", "--server-id=1"])
    }

    pub fn with(options: &[&str]) -> How {
        How { options: options.iter().map(|&option| option.to_owned()).collect(), ..How::default() }
    }

    pub fn and(mut self, option: impl Into<String>) -> How {
        self.options.push(option.into());
        self
    }
}

/// A running server, ended when this goes.
pub struct Server {
    process: Child,
    scratch: tempfile::TempDir,
    data: PathBuf,
}

impl Server {
    /// Starts a server on a fresh data directory.
    pub fn start(product: &Product, how: &How) -> Server {
        Server::start_after(product, how, |_| ())
    }

    /// Starts a server on a fresh data directory that `prepare` has had its way with.
    pub fn start_after(product: &Product, how: &How, prepare: impl FnOnce(&Path)) -> Server {
        let scratch = tempfile::Builder::new().prefix("hotbackup-server-").tempdir().expect("a directory");
        let data = scratch.path().join("data");
        let copied = Command::new("cp").arg("-a").arg(product.one("datadir")).arg(&data).status();
        assert!(copied.expect("cp").success(), "the data directory is copied");
        prepare(&data);
        Server::on(product, how, scratch, data)
    }

    /// Starts a server on what a backup holds.
    pub fn start_on_copy(product: &Product, how: &How, data: &Path) -> Server {
        let scratch = tempfile::Builder::new().prefix("hotbackup-server-").tempdir().expect("a directory");
        Server::on(product, &How { without_library: true, ..how.clone() }, scratch, data.to_owned())
    }

    /// The same with the library, so that the copy can be backed up in turn.
    pub fn start_on(product: &Product, how: &How, data: &Path) -> Server {
        let scratch = tempfile::Builder::new().prefix("hotbackup-server-").tempdir().expect("a directory");
        Server::on(product, how, scratch, data.to_owned())
    }

    /// Ends the server as a power failure of its machine would, but for what the kernel holds.
    pub fn kill(&mut self) {
        self.process.kill().expect("killed");
        self.process.wait().expect("it was our child");
    }

    /// What the server has open: where the links in its `/proc/PID/fd` lead.
    pub fn open_files(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(format!("/proc/{}/fd", self.process.id())).expect("its descriptors");
        entries.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok()).collect()
    }

    fn on(product: &Product, how: &How, scratch: tempfile::TempDir, data: PathBuf) -> Server {
        let plugins = scratch.path().join("plugins");
        std::fs::create_dir_all(&plugins).expect("a directory");
        // What a test has put beside the data.
        for given in std::fs::read_dir(data.with_file_name("plugins")).into_iter().flatten().flatten() {
            if given.path().parent() != Some(&plugins) {
                std::fs::copy(given.path(), plugins.join(given.file_name())).expect("a plugin");
            }
        }
        std::fs::copy(library("libtokudb_backup.so"), plugins.join("tokudb_backup.so")).expect("the plugin");
        let log = File::create(scratch.path().join("log")).expect("a log");
        let place = |option: &str, path: &Path| format!("--{option}={}", path.display());
        let mut command = Command::new(product.one("server"));
        let mut options: Vec<_> = product.all("option").collect();
        if how.unprivileged {
            command = Command::new("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--", product.one("server")]);
            options.retain(|option| !option.starts_with("--user="));
            std::os::unix::fs::chown(scratch.path(), Some(65534), Some(65534)).expect("given away");
        }
        command.args(product.all("argument")).args(options);
        command.envs(product.all("environment").filter_map(|pair| pair.split_once('=')));
        command.arg(place("datadir", &data));
        command.arg(place("socket", &scratch.path().join("socket")));
        command.arg(place("pid-file", &scratch.path().join("pid")));
        command.arg(place("plugin-dir", &plugins));
        // Of its own: a server that starts removes the temporary tables of others in it, and MariaDB 10.11 crashes then.
        command.arg(place("tmpdir", scratch.path()));
        command.args(&how.options);
        let needs_preload = how.library_twice || how.without_uring || how.other_version;
        let attached = how.attached || std::env::var_os("HOTBACKUP_ATTACH").is_some() && !needs_preload;
        if attached && !how.without_library {
            std::fs::copy(library("libHotBackup.so"), plugins.join("libHotBackup.so")).expect("the library");
        } else if !how.without_library {
            // Its path may lie where not everybody may look.
            let preloaded = scratch.path().join("libHotBackup.so");
            std::fs::copy(library("libHotBackup.so"), &preloaded).expect("the library");
            if how.other_version {
                age(&preloaded);
            }
            let mut preload = preloaded.clone().into_os_string();
            if how.library_twice {
                let again = scratch.path().join("libHotBackup-again.so");
                std::fs::copy(&preloaded, &again).expect("the library");
                preload.push(":");
                preload.push(again);
            }
            command.env("LD_PRELOAD", preload);
        }
        if how.without_uring {
            command.env("HOTBACKUP_IO_URING", "refuse");
        }
        command.stdout(log.try_clone().expect("the log")).stderr(log).stdin(Stdio::null());
        let process = command.spawn().expect("the server starts");
        let mut server = Server { process, scratch, data };
        server.wait_until_ready();
        server
    }

    pub fn process_id(&self) -> u32 {
        self.process.id()
    }

    fn wait_until_ready(&mut self) {
        let begun = Instant::now();
        while self.try_connect("root").is_err() {
            let ended = self.process.try_wait().expect("the server is our child");
            let in_time = begun.elapsed() < Duration::from_secs(60);
            assert!(ended.is_none() && in_time, "the server is not ready ({ended:?}):\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn try_connect(&self, user: &str) -> mysql::Result<Conn> {
        let socket = self.scratch.path().join("socket");
        let options = OptsBuilder::new().user(Some(user)).socket(socket.to_str()).prefer_socket(true);
        Conn::new(options)
    }

    pub fn connect(&self) -> Conn {
        self.connect_as("root")
    }

    pub fn connect_as(&self, user: &str) -> Conn {
        self.try_connect(user).unwrap_or_else(|e| panic!("cannot connect: {e}\n{}", self.log()))
    }

    /// A connection to a server that has the plugin.
    pub fn with_plugin(&self) -> Conn {
        let mut connection = self.connect();
        connection.query_drop("INSTALL PLUGIN tokudb_backup SONAME 'tokudb_backup.so'").expect("the plugin");
        connection
    }

    /// Has the server execute what these binary logs hold, from a position in the first to one in the last, whatever fails.
    pub fn replay(&self, product: &Product, logs: &[PathBuf], from: &str, to: &str) {
        let mut reader = Command::new(product.one("mysqlbinlog"));
        reader.arg(format!("--start-position={from}")).arg(format!("--stop-position={to}")).args(logs);
        if product.name == "mysql97" {
            // This server has logged statements of its own since then, by the same numbers.
            reader.arg("--skip-gtids");
        }
        let mut reader = reader.stdout(Stdio::piped()).spawn().expect("mysqlbinlog");
        let mut client = Command::new(product.one("client"));
        client
            .args(["--user=root", "--force", "--binary-mode"])
            .arg("--socket")
            .arg(self.room().join("socket"));
        client.stdin(reader.stdout.take().expect("a pipe")).stdout(Stdio::null());
        client.status().expect("the client");
        assert!(reader.wait().expect("our child").success(), "mysqlbinlog fails");
    }

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.scratch.path().join("log")).unwrap_or_default())
            .into_owned()
    }

    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Tells it to shut down.
    pub fn ask_to_stop(&mut self) {
        let pid = libc::pid_t::try_from(self.process.id()).unwrap_or(0);
        if self.process.try_wait().is_ok_and(|ended| ended.is_none()) {
            // SAFETY: sends a signal to a child that was not waited for.
            unsafe { libc::kill(pid, libc::SIGTERM) };
        }
    }

    /// Shuts it down; its data stays as long as this.
    pub fn stop(&mut self) {
        self.ask_to_stop();
        let begun = Instant::now();
        while self.process.try_wait().is_ok_and(|ended| ended.is_none()) {
            if begun.elapsed() > Duration::from_secs(30) {
                let _ = self.process.kill();
                let _ = self.process.wait();
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Room for backups and the like, beside the data directory.
    pub fn room(&self) -> &Path {
        self.scratch.path()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            // Of a server that has crashed, all that it says of that.
            let crash =
                lines.iter().position(|line| line.contains(" got signal ") || line.contains("Got signal "));
            let from = crash.map_or(lines.len().saturating_sub(15), |crash| crash.saturating_sub(5));
            lines[from..].iter().for_each(|line| say(line));
        }
    }
}

/// The number and text of the error that a statement must fail with.
#[track_caller]
pub fn failure(connection: &mut Conn, statement: &str) -> (u16, String) {
    match connection.query_drop(statement) {
        Err(mysql::Error::MySqlError(e)) => (e.code, e.message),
        other => panic!("{statement}: {other:?}"),
    }
}

/// The session's last_error and last_error_string.
pub fn last(connection: &mut Conn) -> (u64, Option<String>) {
    let row: Option<(u64, Option<String>)> = connection
        .query_first("SELECT @@tokudb_backup_last_error, @@tokudb_backup_last_error_string")
        .expect("both are there");
    row.expect("a row")
}

/// A status variable of the plugin.
pub fn status(connection: &mut Conn, name: &str) -> String {
    let row: Option<(String, String)> = connection
        .query_first(format!("SHOW GLOBAL STATUS LIKE 'tokudb_backup_{name}'"))
        .expect("it is there");
    row.expect("a row").1
}
