//! What the data leads to: symbolic links, and what InnoDB notes of tablespaces that lie elsewhere.
//!
//! It is looked for before a backup, and what is found becomes a source. It is looked for once more in the copies, which show
//! what was there at the cut: something that came meanwhile, in a directory that is no source, fails the backup.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::FileType;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::host::{Family, Server};
use crate::library::Failure;
use crate::sources::{Part, Source, Sources};

/// How this server leads from one place to another.
#[derive(Default)]
pub(crate) struct Links {
    data: PathBuf,
    /// `NAME.isl` holds the path of `NAME.ibd`. MySQL has a dictionary for that since 8.0.
    has_isl: bool,
    /// What led to nothing, or to a device or the like, from the beginning: place and target.
    idle: BTreeSet<(PathBuf, PathBuf)>,
}

/// Where MySQL keeps its dictionary, since 8.0.
const DICTIONARY: &str = "mysql.ibd";

impl Links {
    pub(crate) fn new(server: Server, data: &Path) -> Links {
        let has_isl = server.family == Family::MariaDb || server.version < 80_000;
        Links { data: data.into(), has_isl, idle: BTreeSet::new() }
    }

    /// What the entry at `place` leads to, free of links. It may be a copy, read `at` another place.
    fn target(&self, at: &Path, place: &Path, kind: FileType) -> Option<PathBuf> {
        let target = if kind.is_symlink() {
            place.parent()?.join(std::fs::read_link(at).ok()?)
        } else if self.has_isl && kind.is_file() && place.extension() == Some(OsStr::new("isl")) {
            let text = std::fs::read(at).ok()?;
            self.data.join(OsStr::from_bytes(text.trim_ascii()))
        } else {
            return None;
        };
        // If it is not there, its directory may be.
        let directory = || Some(std::fs::canonicalize(target.parent()?).ok()?.join(target.file_name()?));
        Some(std::fs::canonicalize(&target).ok().or_else(directory).unwrap_or(target))
    }

    /// Makes sources of what the sources lead to, and of what that leads to.
    pub(crate) fn follow(sources: &mut Sources, is_excluded: &dyn Fn(&Path) -> bool) -> Result<(), Failure> {
        loop {
            let before = sources.list.clone();
            for source in &before {
                for (below, kind) in entries(source, &source.path) {
                    sources.follow(&source.path.join(below), kind, is_excluded)?;
                }
            }
            if sources.list == before {
                break;
            }
        }
        check_dictionary(sources, &sources.data().join(DICTIONARY))
    }

    pub(crate) fn check(
        &self,
        sources: &Sources,
        copies: &[PathBuf],
        is_excluded: &dyn Fn(&Path) -> bool,
    ) -> Result<(), Failure> {
        for (source, copy) in sources.list.iter().zip(copies) {
            for (below, kind) in entries(source, copy) {
                let place = source.path.join(&below);
                let Some(target) = self.target(&copy.join(&below), &place, kind) else { continue };
                let idle = !is_something(&target) && self.idle.contains(&(place.clone(), target.clone()));
                if !sources.cover(&target) && !idle && !is_excluded(&place) {
                    let text = format!(
                        "{} leads to {}, and came while the backup was made: that directory is not in it. Make another one",
                        place.display(),
                        target.display()
                    );
                    return Err(Failure::new(libc::EINVAL, text));
                }
            }
        }
        copies.first().map_or(Ok(()), |copy| check_dictionary(sources, &copy.join(DICTIONARY)))
    }
}

impl Sources {
    /// Adds what one entry leads to.
    fn follow(
        &mut self,
        place: &Path,
        kind: FileType,
        is_excluded: &dyn Fn(&Path) -> bool,
    ) -> Result<(), Failure> {
        let Some(target) = self.links.target(place, place, kind) else { return Ok(()) };
        if self.cover(&target) || is_excluded(place) {
            return Ok(());
        }
        let kind = match place.extension().and_then(OsStr::to_str) {
            Some("isl") => "innodb_data_directory",
            Some("MYD" | "MYI" | "MAD" | "MAI") => "data_directory",
            _ => "symlink",
        };
        let added = if target.is_dir() {
            self.add_whole(self.free_name(kind), &target)
        } else if target.is_file() {
            self.add_file(kind, &target)
        } else {
            self.links.idle.insert((place.into(), target.clone()));
            Ok(())
        };
        added.map_err(|failure| {
            let text = format!("{} leads to {}: {}", place.display(), target.display(), failure.text);
            Failure::new(failure.number, text)
        })
    }
}

fn is_something(path: &Path) -> bool {
    path.is_dir() || path.is_file()
}

/// What is in a source, or in its copy at `root`, by the paths below it. A directory that cannot be read is left to the backup,
/// which fails and names it.
fn entries(source: &Source, root: &Path) -> Vec<(PathBuf, FileType)> {
    let mut found = Vec::new();
    let (mut directories, deep) = match &source.part {
        Part::Whole => (vec![PathBuf::new()], true),
        Part::Files(directories) => (directories.keys().cloned().collect(), false),
    };
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(root.join(&directory)).into_iter().flatten().flatten() {
            let below = directory.join(entry.file_name());
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() && deep {
                directories.push(below);
            } else if source.keeps(&below) {
                found.push((below, kind));
            }
        }
    }
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    found
}

/// MySQL 8 and later create no tablespace in a directory that `innodb_directories` does not know, but open one that is there from
/// before, and warn that it cannot be recovered. So it could not be from a copy: the server would not find it.
fn check_dictionary(sources: &Sources, dictionary: &Path) -> Result<(), Failure> {
    let bytes = std::fs::read(dictionary).unwrap_or_default();
    match tablespaces(&bytes, sources.data()).into_iter().find(|file| !sources.cover(file)) {
        Some(file) => {
            let text = format!(
                "{} is a tablespace outside of the directories that InnoDB looks for tablespaces in: \
                 add its directory to innodb_directories, without which it could not be recovered either",
                file.display()
            );
            Err(Failure::new(libc::EINVAL, text))
        }
        None => Ok(()),
    }
}

/// The files that exist among the paths that lead out of the data directory in a dictionary. It holds them as plain text.
fn tablespaces(dictionary: &[u8], data: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut seen = BTreeSet::new();
    for end in dictionary.windows(4).enumerate().filter(|(_, four)| matches!(*four, b".ibd" | b".ibu")) {
        let end = end.0 + 4;
        let longest = &dictionary[end.saturating_sub(600)..end];
        let begin = longest.iter().rposition(|byte| byte.is_ascii_control()).map_or(0, |at| at + 1);
        if !seen.insert(&longest[begin..]) {
            continue;
        }
        // What is stored in front of a text may look like one.
        let starts = (begin..longest.len()).filter(|&at| matches!(longest[at], b'/' | b'.'));
        let texts =
            starts.map(|at| &longest[at..]).filter(|text| text.starts_with(b"/") || text.starts_with(b"../"));
        let paths = texts.map(|text| data.join(OsString::from(OsStr::from_bytes(text))));
        found.extend(paths.filter(|path| path.is_file()).find_map(|path| std::fs::canonicalize(path).ok()));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing_is_excluded(_: &Path) -> bool {
        false
    }

    /// `data/db` and `away/db`, and sources that know of the data directory alone.
    fn scratch(version: &str) -> (tempfile::TempDir, PathBuf, Sources) {
        let scratch = tempfile::tempdir().expect("a directory");
        let root = scratch.path().canonicalize().expect("resolved");
        for directory in ["data/db", "away/db", "copy/db"] {
            std::fs::create_dir_all(root.join(directory)).expect("directories");
        }
        let data = root.join("data");
        let sources = Sources::on(&data, Links::new(Server::parse(version).expect("a version"), &data));
        (scratch, root, sources)
    }

    fn write(path: PathBuf, text: impl AsRef<[u8]>) {
        std::fs::write(path, text).expect("a file");
    }

    fn names(sources: &Sources) -> Vec<(&str, &Path, bool)> {
        let list = sources.list.iter();
        list.map(|source| (&*source.name, &*source.path, source.part == Part::Whole)).collect()
    }

    #[test]
    fn what_leads_out_becomes_a_source() {
        use std::os::unix::fs::symlink;
        let (_scratch, root, mut sources) = scratch("10.11.6-MariaDB");
        let (data, away) = (root.join("data"), root.join("away"));
        symlink("db", data.join("inside")).expect("a link");
        write(data.join("db/near.isl"), data.join("db/near.ibd").as_os_str().as_bytes());
        Links::follow(&mut sources, &nothing_is_excluded).expect("nothing leads out");
        assert_eq!(sources.list.len(), 1);
        // A tablespace, a table with a directory of its own, a database, and what that leads to.
        write(away.join("db/far.ibd"), "x");
        write(data.join("db/far.isl"), away.join("db/far.ibd").as_os_str().as_bytes());
        std::fs::create_dir_all(root.join("tables")).expect("a directory");
        write(root.join("tables/t.MYD"), "x");
        symlink(root.join("tables/t.MYD"), data.join("db/t.MYD")).expect("a link");
        std::fs::create_dir_all(root.join("moved")).expect("a directory");
        symlink(root.join("moved"), data.join("moved")).expect("a link");
        std::fs::create_dir_all(root.join("further")).expect("a directory");
        symlink(root.join("further"), root.join("moved/on")).expect("a link");
        symlink("/dev/null", data.join("nothing")).expect("a link");
        Links::follow(&mut sources, &nothing_is_excluded).expect("all can be backed up");
        assert_eq!(
            names(&sources),
            [
                ("mysql_data_dir", &*data, true),
                ("innodb_data_directory", &*away.join("db"), false),
                ("data_directory", &*root.join("tables"), false),
                ("symlink", &*root.join("moved"), true),
                ("symlink.1", &*root.join("further"), true),
            ]
        );
        symlink(&root, data.join("all")).expect("a link");
        let failure = Links::follow(&mut sources, &nothing_is_excluded).expect_err("a parent");
        assert!(failure.text.contains("data/all leads to"), "{}", failure.text);
        assert!(failure.text.contains("is a parent of mysql_data_dir"), "{}", failure.text);
        Links::follow(&mut sources, &|path| path.ends_with("all")).expect("it is excluded");
    }

    #[test]
    fn what_came_meanwhile_is_found_in_the_copy() {
        use std::os::unix::fs::symlink;
        let (_scratch, root, mut sources) = scratch("5.6.24");
        let (data, copy) = (root.join("data"), root.join("copy"));
        symlink(root.join("missing"), data.join("idle")).expect("a link");
        symlink(root.join("missing"), copy.join("idle")).expect("a link");
        Links::follow(&mut sources, &nothing_is_excluded).expect("nothing leads out");
        let check = || sources.check(std::slice::from_ref(&copy), &nothing_is_excluded);
        check().expect("it led to nothing all along");
        // The table may be gone already.
        write(copy.join("db/new.isl"), root.join("away/db/new.ibd").as_os_str().as_bytes());
        let failure = check().expect_err("its data is not in the copy");
        assert!(failure.text.contains("data/db/new.isl leads to"), "{}", failure.text);
        std::fs::remove_file(copy.join("db/new.isl")).expect("removed");
        symlink(root.join("away/db"), copy.join("linked")).expect("a link");
        let failure = check().expect_err("its data is not in the copy");
        assert!(failure.text.contains("data/linked leads to"), "{}", failure.text);
        sources.check(std::slice::from_ref(&copy), &|path| path.ends_with("linked")).expect("it is excluded");
        std::fs::remove_file(copy.join("linked")).expect("removed");
        // What led to nothing leads to something now.
        write(root.join("missing"), "x");
        check().expect_err("it is not in the copy");
    }

    #[test]
    fn tablespaces_that_innodb_does_not_look_for_are_found_in_the_dictionary() {
        let (_scratch, root, mut sources) = scratch("9.7.4");
        let (far, data) = (root.join("away/db/far.ibd"), root.join("data"));
        let entry = |path: &Path| [b"\x80\x00/", path.as_os_str().as_bytes(), b"\x00\x01"].concat();
        write(data.join("db/t.ibd"), "x");
        write(data.join(DICTIONARY), [entry(&far), entry(&data.join("db/t.ibd"))].concat());
        Links::follow(&mut sources, &nothing_is_excluded).expect("that one is gone");
        write(far.clone(), "x");
        let failure = Links::follow(&mut sources, &nothing_is_excluded).expect_err("it is there");
        assert!(failure.text.contains("away/db/far.ibd is a tablespace outside"), "{}", failure.text);
        write(data.join(DICTIONARY), b"\x00../away/db/far.ibd\x00");
        Links::follow(&mut sources, &nothing_is_excluded).expect_err("it is there");
        sources.add_whole("innodb_directories".into(), &root.join("away")).expect("a directory");
        Links::follow(&mut sources, &nothing_is_excluded).expect("it is known");
    }
}
