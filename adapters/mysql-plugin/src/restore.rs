//! `tokubackup_restore.txt`: how a server is started on the copy, and what leads from it back to the live server.
//!
//! Files with absolute paths are copied as they are, and the commands that correct them are written down. To correct them in
//! the copy would make it differ from its manifest, which the engine writes: a backup that does not verify is no use, and one
//! whose manifest was written anew by somebody else proves less.

use std::fmt::Write;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::copies::{Copies, quoted};
use crate::host::{self, Family, Server};
use crate::plugins;
use crate::positions::{self, BINLOG_INFO, Position, SLAVE_INFO};

/// The name of the file beside the copy.
pub(crate) const RESTORE: &str = "tokubackup_restore.txt";

/// What leads back to the live server.
struct Lead {
    /// What does, and where to.
    text: String,
    /// The shell's command that corrects it, if there is one.
    command: Option<String>,
    /// It leads to a tablespace.
    is_tablespace: bool,
}

/// What [`RESTORE`] says.
pub(crate) struct Restore {
    pub(crate) text: String,
    /// How many paths lead back.
    pub(crate) leads: usize,
}

/// Looks through the copies, which are complete but for their names.
pub(crate) fn describe(
    copies: Copies<'_>,
    server: Server,
    position: Option<&Result<Position, String>>,
    is_replica: bool,
) -> Restore {
    let leads = leads(copies);
    let directory = copies.directory.display();
    let mut text = format!(
        "How to start a server on this backup. Lines that begin with \"$ \" are commands for a shell, lines that begin with \"--\"\n\
         are options of the server, one each. They are for a backup that lies in {directory}. If it is moved, replace that\n\
         directory in this file first.\n\n\
         1. Paths that lead back to the server that was backed up\n\n"
    );
    if leads.is_empty() {
        text += "None were found.\n";
    } else {
        text += "A server started on the copy as it is would write to files of the live server, or delete them. The manifest has the\n\
                 files as they were copied: verify the backup before they are corrected.\n\n";
    }
    for lead in &leads {
        let _ = writeln!(text, "{}", lead.text);
        if let Some(command) = &lead.command {
            let _ = writeln!(text, "$ {command}");
        }
    }
    if server.family == Family::MariaDb && leads.iter().any(|lead| lead.is_tablespace) {
        text += "\nMariaDB's redo log names the tables that .isl files lead to as well, and recovery opens them where they were: the live ones,\n\
                 if they are there. Put their copies back to where they were, on a machine without the live ones, and start and stop the\n\
                 server once; then they can be moved and the .isl files corrected.\n";
    }
    text += "\n2. Options of the server\n\n";
    for option in options(copies, server, is_replica) {
        let _ = writeln!(text, "{option}");
    }
    text += "\nWhat it needs besides, if the source had it: its key ring and encryption plugins; port, socket and pid file of its own\n\
             if it runs beside the source. The server's user has to own the copy. Tables that are not InnoDB's may need REPAIR TABLE.\n";
    text += "\n3. Positions\n\n";
    match position {
        None => text += "The source had no binary log.\n",
        Some(Ok(position)) => {
            let (file, at, gtids) = (&position.file, position.at, &position.gtids);
            let _ = writeln!(
                text,
                "The binary log of the copy ends at {file} {at}, GTID set '{gtids}' ({BINLOG_INFO})."
            );
        }
        Some(Err(reason)) => {
            let _ = writeln!(text, "The position in the binary log is not known: {reason}.");
        }
    }
    if is_replica {
        let statement = positions::statement(server);
        let _ = writeln!(
            text,
            "The source was a replica ({SLAVE_INFO}). Exactly how far it had come: {statement}."
        );
    }
    if server.family == Family::MySql {
        let auto = copies.directory.join(format!("{}/auto.cnf", copies.sources[0].name));
        let _ = writeln!(
            text,
            "To make a replica of the copy, give it another --server-id, and remove the source's identity before it is started:\n\
             rm -f {}",
            quoted(&auto.to_string_lossy())
        );
    } else {
        text += "To make a replica of the copy, give it another --server-id.\n";
    }
    Restore { text, leads: leads.len() }
}

/// The options with which a server finds in the copy what the source had.
fn options(copies: Copies<'_>, server: Server, is_replica: bool) -> Vec<String> {
    let data = copies.directory.join(&copies.sources[0].name);
    let mut options = vec![format!("--datadir={}", data.display())];
    let mut add = |name: &str, value: String| {
        let is = if value.is_empty() { "" } else { "=" };
        options.push(format!("--{}{is}{value}", name.replace('_', "-")));
    };
    let log = |base: &[u8]| moved(copies, base, &data);
    match host::binary_log().filter(|_| host::has_binary_log()) {
        Some(base) => add("log_bin", log(&base)),
        None => add("skip_log_bin", String::new()),
    }
    if let Some(index) = host::binary_log_index().filter(|_| host::has_binary_log()) {
        add("log_bin_index", log(&index));
    }
    if let Some(id) = host::server_id().filter(|&id| id != 0) {
        add("server_id", id.to_string());
    }
    if is_replica {
        if let Some(base) = positions::relay_log(copies) {
            add("relay_log", log(base.as_os_str().as_bytes()));
        }
        if let Some(index) = host::relay_log_index() {
            add("relay_log_index", log(&index));
        }
        let new = server.family == Family::MySql && server.version >= 80_026;
        add(if new { "skip_replica_start" } else { "skip_slave_start" }, String::new());
    }
    if let Some(number) = host::lower_case_table_names() {
        add("lower_case_table_names", number.to_string());
    }
    for (plugin, name) in DIRECTORIES {
        let value = plugins::text(server, plugin, name);
        let value = value.filter(|value| !matches!(&value[..], b"" | b"." | b"./")).unwrap_or_default();
        let parts = value.split(|&byte| byte == b';').filter(|part| !part.is_empty());
        let parts: Vec<String> = parts.map(|part| moved(copies, part, &data)).collect();
        if !parts.is_empty() && parts != [""] {
            add(&name.to_string_lossy(), parts.join(";"));
        }
    }
    let before_8 = server.family == Family::MySql && server.version < 80_000;
    for name in [
        c"innodb_page_size",
        c"innodb_log_file_size",
        c"innodb_log_files_in_group",
        c"innodb_undo_tablespaces",
    ] {
        let value = plugins::number(server, c"InnoDB", name);
        if let Some(value) = value.filter(|_| before_8 || name == c"innodb_page_size") {
            add(&name.to_string_lossy(), value.to_string());
        }
    }
    options
}

const DIRECTORIES: [(&std::ffi::CStr, &std::ffi::CStr); 7] = [
    (c"InnoDB", c"innodb_data_home_dir"),
    (c"InnoDB", c"innodb_data_file_path"),
    (c"InnoDB", c"innodb_log_group_home_dir"),
    (c"InnoDB", c"innodb_undo_directory"),
    (c"InnoDB", c"innodb_doublewrite_dir"),
    (c"InnoDB", c"innodb_directories"),
    (c"Aria", c"aria_log_dir_path"),
];

/// What a path of a setting is for the copy: below the data directory relative to it, so nothing for that itself.
fn moved(copies: Copies<'_>, given: &[u8], data: &Path) -> String {
    let given = Path::new(std::ffi::OsStr::from_bytes(given));
    if !given.is_absolute() && !given.starts_with("..") {
        let plain: PathBuf = given.components().filter(|part| part.as_os_str() != ".").collect();
        return plain.to_string_lossy().into_owned();
    }
    let there = copies.published(given).unwrap_or_else(|| given.to_owned());
    there.strip_prefix(data).unwrap_or(&there).to_string_lossy().into_owned()
}

/// Everything in the copies that leads back.
fn leads(copies: Copies<'_>) -> Vec<Lead> {
    let mut leads = Vec::new();
    let mut files = positions::relay_indexes(copies);
    files.extend(positions::binary_log_index());
    files.extend(
        host::replication_files().map(|[_, relay]| PathBuf::from(std::ffi::OsStr::from_bytes(&relay))),
    );
    for file in files {
        add_text(copies, &file, &mut leads);
    }
    for source in copies.sources {
        walk(copies, &source.path, &mut leads);
    }
    leads
}

/// Walks through the copy of a live directory: tablespaces' links, symbolic links, and MySQL's persisted settings.
fn walk(copies: Copies<'_>, live: &Path, leads: &mut Vec<Lead>) {
    let Some(copy) = copies.now(live) else { return };
    let mut entries: Vec<_> = fs::read_dir(copy).into_iter().flatten().flatten().collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let live = live.join(entry.file_name());
        match entry.file_type() {
            Ok(kind) if kind.is_symlink() => add_link(copies, &live, leads),
            Ok(kind) if kind.is_dir() => walk(copies, &live, leads),
            _ if live.extension().is_some_and(|extension| extension == "isl") => {
                add_text(copies, &live, leads)
            }
            _ if entry.file_name() == "mysqld-auto.cnf" => add_persisted(copies, &live, leads),
            _ => {}
        }
    }
}

fn shown(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn add_link(copies: Copies<'_>, live: &Path, leads: &mut Vec<Lead>) {
    let (Some(copy), Some(published)) = (copies.now(live), copies.published(live)) else { return };
    let Ok(target) = fs::read_link(copy) else { return };
    if !target.is_absolute() {
        return;
    }
    let command = copies
        .published(&target)
        .map(|new| format!("ln -sfn {} {}", quoted(&shown(&new)), quoted(&shown(&published))));
    let text = format!("{} is a link to {}.", published.display(), target.display());
    leads.push(Lead { text, command, is_tablespace: false });
}

/// A file of which each line may be a path, or begin with one: the directories in it are replaced.
fn add_text(copies: Copies<'_>, live: &Path, leads: &mut Vec<Lead>) {
    let (Some(copy), Some(published)) = (copies.now(live), copies.published(live)) else { return };
    let Ok(lines) = positions::listed(&copy) else { return };
    let mut directories: Vec<&Path> =
        lines.iter().filter(|line| line.is_absolute()).filter_map(|line| line.parent()).collect();
    directories.sort();
    directories.dedup();
    for directory in directories {
        let old = format!("{}/", shown(directory).trim_end_matches('/'));
        let command = copies.published(directory).map(|new| {
            let script = format!("s,^{},{}/,", pattern(&old), replacement(&shown(&new)));
            format!("sed -i {} {}", quoted(&script), quoted(&shown(&published)))
        });
        let found = if command.is_some() { "" } else { ", which is not in this backup" };
        let text = format!("{} names files in {old}{found}.", published.display());
        let is_tablespace = live.extension().is_some_and(|extension| extension == "isl");
        leads.push(Lead { text, command, is_tablespace });
    }
}

fn add_persisted(copies: Copies<'_>, live: &Path, leads: &mut Vec<Lead>) {
    let text = copies.now(live).and_then(|copy| fs::read(copy).ok()).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    for source in copies.sources.iter().filter(|source| text.contains(&*source.path.to_string_lossy())) {
        let published = copies.published(live).unwrap_or_default();
        let text = format!(
            "{} holds persisted settings with paths in {}: edit it, or start with --persisted-globals-load=OFF as well.",
            published.display(),
            source.path.display()
        );
        leads.push(Lead { text, command: None, is_tablespace: false });
    }
}

/// The text as a regular expression of sed that means nothing else, in a command whose delimiter is a comma.
fn pattern(text: &str) -> String {
    escaped(text, "\\.*[^$,")
}

fn replacement(text: &str) -> String {
    escaped(text, "\\&,")
}

fn escaped(text: &str, special: &str) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        if special.contains(character) {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::Source;

    /// The commands are run as they stand, on names that shells and sed have other uses for.
    #[test]
    fn what_leads_back_is_corrected_by_the_commands() {
        let scratch = tempfile::tempdir().expect("a directory");
        let root = scratch.path().canonicalize().expect("resolved").join("it's a.b,c&d$");
        let (data, logs) = (root.join("data"), root.join("lo[gs"));
        let source = |name: &str, path: &Path| Source::whole(name, path);
        let sources = [source("mysql_data_dir", &data), source("mysql_log_bin", &logs)];
        let backup = root.join("backup");
        let copies = Copies { sources: &sources, directory: &backup };
        for directory in [&data, &logs, &backup] {
            fs::create_dir_all(directory).expect("a directory");
        }
        let parts: Vec<_> = sources.iter().map(|source| Copies::part(&backup, source)).collect();
        fs::create_dir_all(parts[0].join("db")).expect("a directory");
        fs::create_dir(&parts[1]).expect("a directory");
        let index = logs.join("log.index");
        let listed = format!("{0}/log.1\n./log.2\n{0}/log.3\n", logs.display());
        fs::write(copies.now(&index).expect("within"), listed).expect("written");
        fs::write(parts[0].join("db/t.isl"), shown(&logs.join("db/t.ibd"))).expect("written");
        std::os::unix::fs::symlink(&logs, parts[0].join("link")).expect("a link");
        std::os::unix::fs::symlink("db", parts[0].join("near")).expect("a link");
        let mut found = Vec::new();
        add_text(copies, &index, &mut found);
        walk(copies, &data, &mut found);
        copies.publish().expect("published");
        assert_eq!(found.len(), 3);
        for lead in found {
            let command = lead.command.expect("it is in the backup");
            let status = std::process::Command::new("sh").arg("-c").arg(&command).status().expect("a shell");
            assert!(status.success(), "{command}");
        }
        let there = backup.join("mysql_log_bin");
        let read = |path: PathBuf| fs::read_to_string(path).expect("read");
        assert_eq!(
            read(there.join("log.index")),
            format!("{0}/log.1\n./log.2\n{0}/log.3\n", there.display())
        );
        assert_eq!(read(backup.join("mysql_data_dir/db/t.isl")), shown(&there.join("db/t.ibd")));
        assert_eq!(fs::read_link(backup.join("mysql_data_dir/link")).expect("a link"), there);
    }
}
