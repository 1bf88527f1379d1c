//! Where the copies of the sources lie, and what is written beside them.
//!
//! Until everything is written and synced, the directories of a backup have names that end in [`SUFFIX`]: whoever looks at it
//! sees that it is not complete, also while the engine's own mark is gone or not there yet. Then they are renamed, the data
//! directory's last.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::library::Failure;
use crate::run::failed;
use crate::sources::Source;

/// Ends the name of a directory in a backup that is not complete.
pub(crate) const SUFFIX: &str = ".incomplete";

/// The copies of a backup in `directory`.
#[derive(Clone, Copy)]
pub(crate) struct Copies<'a> {
    pub(crate) sources: &'a [Source],
    pub(crate) directory: &'a Path,
}

impl Copies<'_> {
    /// Where the copy of a source is made.
    pub(crate) fn part(directory: &Path, source: &Source) -> PathBuf {
        directory.join(format!("{}{SUFFIX}", source.name))
    }

    /// Where the copy of a file of the server lies now.
    pub(crate) fn now(&self, live: &Path) -> Option<PathBuf> {
        self.find(live).map(|(source, rest)| join(&Copies::part(self.directory, source), &rest))
    }

    /// Where it will lie in the complete backup.
    pub(crate) fn published(&self, live: &Path) -> Option<PathBuf> {
        self.find(live).map(|(source, rest)| join(&self.directory.join(&source.name), &rest))
    }

    /// The source that a file of the server lies in, which may be named through links, and where in it.
    fn find(&self, live: &Path) -> Option<(&Source, PathBuf)> {
        let data = &self.sources.first()?.path;
        let live = data.join(live);
        // What a log was called may be gone by now, its directory is there.
        let resolved = match (live.parent(), live.file_name()) {
            (Some(parent), Some(name)) => fs::canonicalize(parent).map(|parent| parent.join(name)),
            _ => fs::canonicalize(&live),
        };
        let live = resolved.unwrap_or(live);
        let within = |source: &Source| live.strip_prefix(&source.path).map(Path::to_owned).ok();
        self.sources.iter().find_map(|source| Some((source, within(source)?)))
    }

    /// Writes a file beside the copies, synced, readable by nobody else.
    pub(crate) fn write(&self, name: &str, text: &[u8]) -> Result<(), Failure> {
        let path = self.directory.join(name);
        let written =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).and_then(|mut file| {
                file.set_permissions(Permissions::from_mode(0o600))?;
                file.write_all(text)?;
                file.sync_all()
            });
        written.map_err(failed("write", &path))
    }

    /// Gives the directories their names: from then on the backup counts as complete.
    pub(crate) fn publish(&self) -> Result<(), Failure> {
        let sync = || File::open(self.directory).and_then(|directory| directory.sync_all());
        sync().map_err(failed("sync", self.directory))?;
        for source in self.sources.iter().rev() {
            let (from, to) = (Copies::part(self.directory, source), self.directory.join(&source.name));
            if source == &self.sources[0] {
                // None of the others may be found unnamed beside it after a power failure.
                sync().map_err(failed("sync", self.directory))?;
            }
            fs::rename(&from, &to).map_err(failed("rename", &from))?;
        }
        sync().map_err(failed("sync", self.directory))
    }
}

/// Without the slash that joining nothing leaves behind.
fn join(directory: &Path, rest: &Path) -> PathBuf {
    if rest.as_os_str().is_empty() { directory.to_owned() } else { directory.join(rest) }
}

/// The text as one word for a shell.
pub(crate) fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_found_by_the_live_path_and_named_at_the_end() {
        let scratch = tempfile::tempdir().expect("a directory");
        let root = scratch.path().canonicalize().expect("resolved");
        let (data, logs, backup) = (root.join("data"), root.join("logs"), root.join("backup"));
        for directory in [&data, &logs, &backup] {
            fs::create_dir(directory).expect("a directory");
        }
        std::os::unix::fs::symlink(&logs, data.join("link")).expect("a link");
        let source = |name: &str, path: &Path| Source::whole(name, path);
        let sources = [source("mysql_data_dir", &data), source("mysql_log_bin", &logs)];
        for source in &sources {
            fs::create_dir(Copies::part(&backup, source)).expect("a directory");
        }
        let copies = Copies { sources: &sources, directory: &backup };
        let now = |path: &str| copies.now(Path::new(path));
        assert_eq!(now("./log.1"), Some(backup.join("mysql_data_dir.incomplete/log.1")));
        assert_eq!(now("link/log.1"), Some(backup.join("mysql_log_bin.incomplete/log.1")));
        assert_eq!(copies.published(&logs), Some(backup.join("mysql_log_bin")));
        assert_eq!(now("/elsewhere/log.1"), None);
        copies.publish().expect("published");
        let mut names: Vec<_> = fs::read_dir(&backup).expect("it").flatten().map(|e| e.file_name()).collect();
        names.sort();
        assert_eq!(names, ["mysql_data_dir", "mysql_log_bin"]);
    }

    #[test]
    fn words_are_safe_in_a_shell() {
        assert_eq!(quoted("it's $(x)"), "'it'\\''s $(x)'");
    }
}
