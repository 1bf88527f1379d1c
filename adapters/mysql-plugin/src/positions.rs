//! Positions at the cut, from what the copy itself holds: `tokubackup_binlog_info` and `tokubackup_slave_info`.
//!
//! A position that the server would tell at some moment around the cut may be another one than the copy's. So the copied logs
//! and files are read, and what they do not tell exactly is said to be so, with the statement that tells it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::binlog::{self, Gtids};
use crate::copies::{Copies, quoted};
use crate::host::{self, Family, Server};
use crate::lock::Rested;
use crate::replica::Channel;

/// Beside the copy: where its binary log ends.
pub(crate) const BINLOG_INFO: &str = "tokubackup_binlog_info";
/// Beside the copy of a replica: how far it has come with its source.
pub(crate) const SLAVE_INFO: &str = "tokubackup_slave_info";

/// Where the copied binary log ends.
pub(crate) struct Position {
    pub(crate) file: String,
    pub(crate) at: u64,
    pub(crate) gtids: Gtids,
}

/// The path of a log, from the bytes of a setting or of an index.
fn path(bytes: &[u8]) -> PathBuf {
    OsStr::from_bytes(bytes).into()
}

/// The live path of the binary logs' index.
pub(crate) fn binary_log_index() -> Option<PathBuf> {
    host::binary_log_index().map(|index| path(&index))
}

/// The live paths of the logs that a copied index lists, as they stand there.
pub(crate) fn listed(index: &Path) -> std::io::Result<Vec<PathBuf>> {
    let text = fs::read(index)?;
    Ok(text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).map(path).collect())
}

/// Where the copied binary log of the server ends. The refusal says why that cannot be told.
pub(crate) fn of_binary_log(copies: Copies<'_>) -> Result<Position, String> {
    of_logs(copies, &binary_log_index().ok_or("the server does not say where its binary log is")?)
}

/// The same for the logs that the index at `live` lists.
fn of_logs(copies: Copies<'_>, live: &Path) -> Result<Position, String> {
    let index = copies.now(live).ok_or_else(|| format!("{} is not in the backup", live.display()))?;
    let logs = listed(&index).map_err(|e| format!("cannot read the copy of {}: {e}", live.display()))?;
    // A log that has not begun ends where the one before it does; there may be none.
    let mut last = None;
    for log in logs.iter().rev() {
        match of_log(copies, live, log).map_err(|why| format!("{}: {why}", log.display()))? {
            Some((position, true)) => return Ok(position),
            Some((position, false)) => last = last.or(Some(position)),
            None => {}
        }
    }
    last.ok_or_else(|| "its index lists no log that is there".into())
}

/// Where one of the logs that the index at `live` lists ends, if it is there, and whether it has begun.
fn of_log(copies: Copies<'_>, live: &Path, log: &Path) -> Result<Option<(Position, bool)>, String> {
    // A name without a directory lies beside the index.
    let bare = log.parent().is_none_or(|parent| parent.as_os_str().is_empty());
    let place = if bare { live.with_file_name(log) } else { log.to_owned() };
    let copy = copies.now(&place).ok_or("it is not in the backup")?;
    let found = match File::open(&copy) {
        Ok(file) => binlog::read(file)?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        Err(e) => return Err(e.to_string()),
    };
    let file = log.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(found.map(|found| (Position { file, at: found.position, gtids: found.gtids }, found.has_begun)))
}

/// The text of [`BINLOG_INFO`]: lines that a shell reads as assignments.
pub(crate) fn binlog_info(position: &Result<Position, String>, server: Server) -> String {
    let mode =
        host::gtid_mode(server).map_or_else(String::new, |mode| format!("gtid_mode={}\n", quoted(mode)));
    match position {
        Ok(Position { file, at, gtids }) => format!(
            "filename={}\nposition={at}\n{mode}gtid_set={}\n",
            quoted(file),
            quoted(&gtids.to_string())
        ),
        Err(reason) => format!("error={}\n{mode}", quoted(reason)),
    }
}

/// The text of [`SLAVE_INFO`]; `None` if the server is no replica. `gtids` are those of the copied binary log; `rested` is
/// there if the replica's SQL threads did at the cut.
pub(crate) fn slave_info(
    copies: Copies<'_>,
    server: Server,
    gtids: Option<&Gtids>,
    rested: Option<&Rested>,
) -> Option<String> {
    let executed = gtids.filter(|_| host::logs_what_it_replicates()).map(ToString::to_string);
    let of_copy = || host::replication_files().map_or_else(Vec::new, |files| channels(copies, &files));
    let in_tables = || {
        Err("this server keeps the positions of its channels in tables, which only a server can read"
            .to_owned())
    };
    let channels = match rested.and_then(|rested| rested.positions.clone()) {
        Some(Ok(told)) if told.is_empty() => return None,
        Some(told) => told,
        None => match of_copy() {
            none if none.is_empty() => {
                let lists = |index: PathBuf| listed(&copies.now(&index)?).ok();
                if relay_indexes(copies).into_iter().filter_map(lists).all(|logs| logs.is_empty()) {
                    return None;
                }
                in_tables()
            }
            found => Ok(found),
        },
    };
    let executed = executed.map_or_else(String::new, |set| format!("executed_gtid_set={}\n", quoted(&set)));
    let statement = format!("statement={}\n", quoted(&statement(server)));
    Some(match channels {
        Err(why) => format!("error={}\n{executed}{statement}", quoted(&why)),
        Ok(channels) => {
            let exactly = if rested.is_some() { EXACTLY } else { ABOUT };
            let paragraph = |channel| format!("{}{executed}{exactly}{statement}\n", assignments(channel));
            channels.iter().map(paragraph).collect()
        }
    })
}

/// The lines that tell of one channel.
fn assignments(channel: &Channel) -> String {
    let lines = [
        ("channel", &channel.name),
        ("host", &channel.host),
        ("user", &channel.user),
        ("port", &channel.port),
        ("source_log_file", &channel.file),
        ("source_log_position", &channel.position),
    ];
    lines.iter().map(|(key, value)| format!("{key}={}\n", quoted(value))).collect()
}

/// The SQL threads rested (`tokudb_backup_safe_slave`).
const EXACTLY: &str = "exact='yes: the SQL thread had stopped'\n";
/// Servers write these files after the commit that they tell of, and MariaDB less often than that with GTIDs.
const ABOUT: &str = "exact='no: the copied files may be behind what the copied tables hold'\n";

/// What tells the position exactly, once the copy is started without its replication.
pub(crate) fn statement(server: Server) -> String {
    match (server.family, server.version) {
        (Family::MariaDb, _) => "SELECT @@GLOBAL.gtid_slave_pos; SHOW ALL SLAVES STATUS".into(),
        (_, 80_022..) => "SELECT @@GLOBAL.gtid_executed; SHOW REPLICA STATUS".into(),
        _ => "SELECT @@GLOBAL.gtid_executed; SHOW SLAVE STATUS".into(),
    }
}

/// Where relay logs lie, directory and beginning of their names. MariaDB does not tell that it calls them by the machine's
/// name: then it is what its file names, without the number.
pub(crate) fn relay_log(copies: Copies<'_>) -> Option<PathBuf> {
    let told = host::relay_log().filter(|base| !base.is_empty());
    told.map(|base| path(&base)).or_else(|| {
        let [_, file] = host::replication_files()?;
        let text = fs::read(copies.now(&path(&file))?).ok()?;
        lines(&text).first().filter(|log| !log.is_empty()).map(|log| Path::new(log).with_extension(""))
    })
}

/// The live paths of the relay logs' indexes: the one by its name, and one for each channel.
pub(crate) fn relay_indexes(copies: Copies<'_>) -> Vec<PathBuf> {
    let beside = |base: PathBuf| path(&[base.as_os_str().as_bytes(), b".index"].concat());
    let told = host::relay_log_index().map(|index| path(&index));
    let Some(index) = told.or_else(|| relay_log(copies).map(beside)) else { return Vec::new() };
    let mut all = vec![index.clone()];
    let (Some(directory), Some(stem)) = (index.parent(), index.file_stem()) else { return all };
    let beginning = [stem.as_bytes(), b"-"].concat();
    let copied = copies.now(&index).and_then(|copy| fs::read_dir(copy.parent()?).ok());
    for entry in copied.into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name.as_bytes().starts_with(&beginning) && name.as_bytes().ends_with(b".index") {
            all.push(directory.join(name));
        }
    }
    all
}

/// The channels that the copied files tell of: `master.info`, and MariaDB's `master-NAME.info`, each with its
/// `relay-log.info`.
fn channels(copies: Copies<'_>, [source, relay]: &[Vec<u8>; 2]) -> Vec<Channel> {
    let (source, relay) = (path(source), path(relay));
    let Some(copy) = copies.now(&source) else { return Vec::new() };
    let stem = source.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let entries = copy.parent().and_then(|directory| fs::read_dir(directory).ok());
    let mut names: Vec<String> = entries
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let name = name.strip_suffix(".info")?.strip_prefix(&stem)?;
            if name.is_empty() { Some(String::new()) } else { name.strip_prefix('-').map(str::to_owned) }
        })
        .collect();
    names.sort();
    let of_channel = |file: &Path, name: &str| {
        let stem = file.file_stem().unwrap_or_default().to_string_lossy();
        let dash = if name.is_empty() { "" } else { "-" };
        fs::read(copies.now(&file.with_file_name(format!("{stem}{dash}{name}.info")))?).ok()
    };
    let known = |name: &String| {
        let mut channel = Channel { name: name.clone(), ..Channel::default() };
        channel.read_source(&of_channel(&source, name)?)?;
        channel.read_relay(&of_channel(&relay, name).unwrap_or_default());
        Some(channel)
    };
    names.iter().filter_map(known).collect()
}

/// The lines of one of these files. The first may say how many there are.
fn lines(text: &[u8]) -> Vec<String> {
    let mut lines: Vec<_> = String::from_utf8_lossy(text).lines().map(str::to_owned).collect();
    if lines.first().is_some_and(|line| !line.is_empty() && line.bytes().all(|byte| byte.is_ascii_digit())) {
        lines.remove(0);
    }
    lines
}

impl Channel {
    /// Log file, position, host, user, password, port: the password is passed over. Without a host it is no replica.
    fn read_source(&mut self, text: &[u8]) -> Option<()> {
        let lines = lines(text);
        self.host = lines.get(2).filter(|host| !host.is_empty())?.clone();
        self.user = lines.get(3)?.clone();
        self.port = lines.get(5)?.clone();
        Some(())
    }

    /// Relay log and position, then the source's log and position as far as they are executed.
    fn read_relay(&mut self, text: &[u8]) {
        let lines = lines(text);
        let line = |number: usize| lines.get(number).cloned().unwrap_or_default();
        (self.file, self.position) = (line(2), line(3));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::Source;

    #[test]
    fn channels_are_read_without_their_passwords() {
        let scratch = tempfile::tempdir().expect("a directory");
        let root = scratch.path().canonicalize().expect("resolved");
        let sources = [Source::whole("mysql_data_dir", root.join("data"))];
        let copies = Copies { sources: &sources, directory: &root };
        let copy = root.join("mysql_data_dir.incomplete");
        fs::create_dir_all(&copy).expect("a directory");
        fs::create_dir(root.join("data")).expect("a directory");
        let write = |name: &str, text: &str| fs::write(copy.join(name), text).expect("written");
        write("master.info", "23\nbin.000007\n4711\nsource.example\nrepl\nSECRET\n3306\n60\n0\n");
        write("relay-log.info", "7\n./relay-bin.000002\n283\nbin.000007\n4600\n0\n0\n1\n");
        write("master-east.info", "bin.000001\n4\n10.0.0.2\nrepl2\nSECRET\n3307\n60\n");
        write("master-gone.info", "33\n\n4\n\n\n\n3306\n60\n");
        let found = channels(copies, &[b"master.info".to_vec(), b"relay-log.info".to_vec()]);
        let text = |text: &str| text.to_owned();
        let main = Channel {
            name: String::new(),
            host: text("source.example"),
            user: text("repl"),
            port: text("3306"),
            file: text("bin.000007"),
            position: text("4600"),
        };
        let east = Channel {
            name: text("east"),
            host: text("10.0.0.2"),
            user: text("repl2"),
            port: text("3307"),
            ..Channel::default()
        };
        assert_eq!(found, [main, east]);
        assert!(!format!("{found:?}").contains("SECRET"));
    }

    /// A new log that is listed and not there, empty, or has only its beginning, and no log at all.
    #[test]
    fn the_last_log_that_has_begun_counts() {
        let scratch = tempfile::tempdir().expect("a directory");
        let root = scratch.path().canonicalize().expect("resolved");
        let sources = [Source::whole("mysql_data_dir", root.join("data"))];
        let copies = Copies { sources: &sources, directory: &root };
        let copy = root.join("mysql_data_dir.incomplete");
        fs::create_dir_all(&copy).expect("a directory");
        fs::create_dir(root.join("data")).expect("a directory");
        let of = |index: &str| {
            fs::write(copy.join("log.index"), index).expect("written");
            of_logs(copies, &root.join("data/log.index")).map(|position| (position.file, position.at))
        };
        assert!(of("").expect_err("no log").contains("lists no log"));
        fs::write(copy.join("log.2"), binlog::tests::beginning()).expect("written");
        fs::write(copy.join("log.3"), b"").expect("written");
        let beginning = binlog::tests::beginning().len() as u64;
        assert_eq!(of("./log.2\n./log.3\n./log.4\n"), Ok(("log.2".into(), beginning)));
        let (bytes, end) = binlog::tests::with_a_transaction();
        fs::write(copy.join("log.1"), bytes).expect("written");
        assert_eq!(of("./log.1\n./log.2\n./log.3\n"), Ok(("log.1".into(), end)));
        // By its name alone, and by an absolute path.
        assert_eq!(of("log.1\n"), Ok(("log.1".into(), end)));
        assert_eq!(of(&format!("{}/data/log.1\n", root.display())), Ok(("log.1".into(), end)));
        assert!(
            of("/nowhere/log.1\n")
                .expect_err("elsewhere")
                .contains("/nowhere/log.1: it is not in the backup")
        );
        fs::write(copy.join("log.5"), b"\xfdbin...").expect("written");
        assert!(
            of("./log.1\n./log.5\n").expect_err("encrypted").contains("./log.5: the binary log is encrypted")
        );
    }

    #[test]
    fn a_position_is_a_shells_assignments() {
        let server = Server::parse("11.8.2-MariaDB").expect("a version");
        let position = Position { file: "it's.000001".into(), at: 4711, gtids: Gtids::default() };
        let text = binlog_info(&Ok(position), server);
        assert_eq!(text, "filename='it'\\''s.000001'\nposition=4711\ngtid_set=''\n");
        let text = binlog_info(&Err("it is encrypted".into()), server);
        assert_eq!(text, "error='it is encrypted'\n");
    }
}
