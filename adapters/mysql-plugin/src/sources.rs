//! Where the server keeps its data: the data directory, and what lies outside of it.

use std::ffi::{CStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::host::{self, Server};
use crate::library::Failure;

/// A directory to back up, and what its copy is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
}

/// Global variables of the server's plugins that name directories. Copies are called after them.
const DIRECTORIES: [(&CStr, &CStr); 10] = [
    (c"InnoDB", c"innodb_data_home_dir"),
    (c"InnoDB", c"innodb_log_group_home_dir"),
    (c"InnoDB", c"innodb_undo_directory"),
    (c"InnoDB", c"innodb_doublewrite_dir"),
    (c"InnoDB", c"innodb_directories"),
    (c"Aria", c"aria_log_dir_path"),
    (c"ROCKSDB", c"rocksdb_datadir"),
    (c"ROCKSDB", c"rocksdb_wal_dir"),
    (c"TokuDB", c"tokudb_data_dir"),
    (c"TokuDB", c"tokudb_log_dir"),
];

fn path(bytes: &[u8]) -> PathBuf {
    OsString::from_vec(bytes.to_vec()).into()
}

/// The directories of this server, resolved.
pub(crate) fn of(server: Server) -> Result<Vec<Source>, Failure> {
    let data = host::data_directory()
        .ok_or_else(|| Failure::new(libc::EINVAL, "the server has no data directory"))?;
    let data = resolve(&data, "the data directory")?;
    let mut sources = vec![Source { name: "mysql_data_dir".into(), path: data.clone() }];
    let text = |plugin, variable| host::plugin_variable(server, plugin, variable)?.text();
    for (plugin, variable) in DIRECTORIES {
        let directories = text(plugin, variable).unwrap_or_default();
        for (number, one) in directories.split(|&b| b == b';').filter(|one| !one.is_empty()).enumerate() {
            let name = variable.to_string_lossy();
            let name = if number == 0 { name.into_owned() } else { format!("{name}.{number}") };
            add(&mut sources, name, &data.join(path(one)))?;
        }
    }
    let files = text(c"InnoDB", c"innodb_data_file_path").unwrap_or_default();
    refuse_files_outside(&files, &sources)?;
    for (base, name) in [(host::binary_log(), "mysql_log_bin"), (host::relay_log(), "mysql_relay_log")] {
        if let Some(base) = base.filter(|base| !base.is_empty())
            && let Some(directory) = data.join(path(&base)).parent()
        {
            add(&mut sources, name.into(), directory)?;
        }
    }
    refuse_what_leads_out(&sources)?;
    Ok(sources)
}

fn resolve(path: &Path, what: &str) -> Result<PathBuf, Failure> {
    std::fs::canonicalize(path).map_err(|e| {
        Failure::new(
            e.raw_os_error().unwrap_or(libc::EINVAL),
            format!("cannot find {what} {}: {e}", path.display()),
        )
    })
}

/// Adds a directory, unless it lies in one that is there already.
fn add(sources: &mut Vec<Source>, name: String, directory: &Path) -> Result<(), Failure> {
    let path = resolve(directory, &name)?;
    if sources.iter().any(|source| path.starts_with(&source.path)) {
        return Ok(());
    }
    if let Some(inner) = sources.iter().find(|source| source.path.starts_with(&path)) {
        let text =
            format!("{name} {} is a parent of {} {}", path.display(), inner.name, inner.path.display());
        return Err(Failure::new(libc::EINVAL, text));
    }
    sources.push(Source { name, path });
    Ok(())
}

/// InnoDB's system tablespace may have files anywhere.
fn refuse_files_outside(files: &[u8], sources: &[Source]) -> Result<(), Failure> {
    for file in files.split(|&b| b == b';').filter(|file| file.starts_with(b"/")) {
        let end = file.iter().position(|&b| b == b':').unwrap_or(file.len());
        let file = path(&file[..end]);
        if !sources.iter().any(|source| file.starts_with(&source.path)) {
            let text = format!(
                "innodb_data_file_path names {}, which lies outside of the data directory: not supported yet",
                file.display()
            );
            return Err(Failure::new(libc::EINVAL, text));
        }
    }
    Ok(())
}

/// Looks at the databases for what leads out of the sources: it would not be in the backup.
fn refuse_what_leads_out(sources: &[Source]) -> Result<(), Failure> {
    let data = &sources[0].path;
    for entry in entries(data) {
        refuse_if_it_leads_out(&entry, sources)?;
        if entry.is_dir() {
            for file in entries(&entry) {
                refuse_if_it_leads_out(&file, sources)?;
            }
        }
    }
    Ok(())
}

/// What is in a directory. One that cannot be read is left to the backup, which fails and names it.
fn entries(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

fn refuse_if_it_leads_out(path: &Path, sources: &[Source]) -> Result<(), Failure> {
    let target = if path.is_symlink() {
        std::fs::canonicalize(path).ok()
    } else if path.extension().is_some_and(|extension| extension == "isl") {
        // The file holds the path of a tablespace.
        let text = std::fs::read(path).unwrap_or_default();
        Some(Path::new(std::ffi::OsStr::from_bytes(text.trim_ascii())).to_owned())
    } else {
        None
    };
    match target {
        Some(target)
            if target.is_absolute() && !sources.iter().any(|source| target.starts_with(&source.path)) =>
        {
            let text = format!(
                "{} leads to {}, which lies outside of the directories that are backed up: not supported yet",
                path.display(),
                target.display()
            );
            Err(Failure::new(libc::EINVAL, text))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(name: &str, path: &Path) -> Source {
        Source { name: name.into(), path: path.into() }
    }

    #[test]
    fn directories_inside_are_left_out_and_parents_refused() {
        let scratch = tempfile::tempdir().expect("a directory");
        let root = scratch.path().canonicalize().expect("resolved");
        let (data, logs) = (root.join("data"), root.join("logs"));
        std::fs::create_dir_all(data.join("undo")).expect("directories");
        std::fs::create_dir(&logs).expect("a directory");
        let mut sources = vec![source("mysql_data_dir", &data)];
        add(&mut sources, "undo".into(), &data.join("undo")).expect("inside");
        add(&mut sources, "logs".into(), &data.join("../logs")).expect("outside");
        assert_eq!(sources[1..], [source("logs", &logs)]);
        let failure = add(&mut sources, "all".into(), &root).expect_err("a parent");
        assert!(failure.text.contains("is a parent of mysql_data_dir"), "{}", failure.text);
        let failure = add(&mut sources, "gone".into(), &root.join("gone")).expect_err("it does not exist");
        assert_eq!(failure.number, libc::ENOENT);
    }

    #[test]
    fn what_leads_out_is_refused_by_name() {
        let scratch = tempfile::tempdir().expect("a directory");
        let root = scratch.path().canonicalize().expect("resolved");
        let (data, away) = (root.join("data"), root.join("away"));
        std::fs::create_dir_all(data.join("db")).expect("directories");
        std::fs::create_dir(&away).expect("a directory");
        let sources = [source("mysql_data_dir", &data)];
        std::os::unix::fs::symlink("db", data.join("inside")).expect("a link");
        std::fs::write(data.join("db/near.isl"), data.join("db/near.ibd").as_os_str().as_bytes())
            .expect("a file");
        refuse_what_leads_out(&sources).expect("nothing leads out");
        std::fs::write(data.join("db/far.isl"), away.join("far.ibd").as_os_str().as_bytes()).expect("a file");
        let failure = refuse_what_leads_out(&sources).expect_err("a tablespace lies elsewhere");
        assert!(failure.text.contains("far.isl leads to"), "{}", failure.text);
        std::fs::remove_file(data.join("db/far.isl")).expect("removed");
        std::os::unix::fs::symlink(&away, data.join("moved")).expect("a link");
        let failure = refuse_what_leads_out(&sources).expect_err("a database lies elsewhere");
        assert!(failure.text.contains("moved leads to"), "{}", failure.text);
    }

    #[test]
    fn files_of_the_system_tablespace_outside_are_refused() {
        let sources = [source("mysql_data_dir", Path::new("/data"))];
        refuse_files_outside(b"ibdata1:12M:autoextend", &sources).expect("inside");
        refuse_files_outside(b"/data/x/ibdata1:12M;ibdata2:12M", &sources).expect("inside");
        let failure = refuse_files_outside(b"ibdata1:12M;/far/ibdata2:12M", &sources).expect_err("outside");
        assert!(failure.text.contains("/far/ibdata2,"), "{}", failure.text);
    }
}
