//! Where the server keeps its data: the data directory, and what lies outside of it.
//!
//! A directory that a variable names is the server's, and backed up whole. One that only some file of the server lies in may
//! hold anything else: of it we take the files that the server was told of, and files of tables, whoever makes them and whenever.
//! No source lies in another one. `links` finds what the data leads to, and `run` backs up what stands here.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, OsStr, OsString};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::host::{self, Server};
use crate::library::Failure;
use crate::links::Links;
use crate::plugins;
use crate::temporary::Temporary;

/// A directory to back up, and what its copy is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) part: Part,
}

/// How much of a directory is the server's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Whole,
    /// Files in these directories below it (it is "" itself): those of tables, and those named here.
    Files(BTreeMap<PathBuf, BTreeSet<OsString>>),
}

/// What the names of tables' files end in: InnoDB, MyISAM, Aria, and what these make on the way.
const OF_TABLES: [&str; 8] = ["ibd", "MYD", "MYI", "MAD", "MAI", "TMD", "TMM", "OLD"];

fn is_of_table(name: &OsStr) -> bool {
    Path::new(name).extension().is_some_and(|extension| OF_TABLES.iter().any(|one| extension == *one))
}

/// Whether `name` is the file `told`, or one that MariaDB names after it: master-CONNECTION.info, multi-master.info.
fn goes_with(told: &OsStr, name: &OsStr) -> bool {
    let (told, name) = (Path::new(told), Path::new(name));
    let stem = |path: &Path| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    told.extension() == name.extension() && stem(name).contains(&stem(told))
}

impl Source {
    /// A directory, all of it.
    pub(crate) fn whole(name: impl Into<String>, path: impl Into<PathBuf>) -> Source {
        Source { name: name.into(), path: path.into(), part: Part::Whole }
    }

    /// Whether an entry at this path below the source is backed up: a directory if anything in it may be.
    pub(crate) fn keeps(&self, below: &Path) -> bool {
        let Part::Files(directories) = &self.part else { return true };
        if directories.keys().any(|directory| directory.starts_with(below)) {
            return true;
        }
        let (Some(parent), Some(name)) = (below.parent(), below.file_name()) else { return false };
        directories
            .get(parent)
            .is_some_and(|told| is_of_table(name) || told.iter().any(|told| goes_with(told, name)))
    }
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

/// Files that may lie anywhere: where the server says so, what their names end in if nothing is said, and what the copy of
/// the directory is called.
const FILES: [(&CStr, &str, &str); 6] = [
    (c"log_bin_index", "index", "mysql_log_bin_index"),
    (c"relay_log_index", "index", "mysql_relay_log_index"),
    (c"master_info_file", "info", "mysql_master_info"),
    (c"relay_log_info_file", "info", "mysql_relay_log_info"),
    (c"opt_tc_log_file", "log", "mysql_tc_log"),
    (c"opt_ddl_recovery_file", "log", "mysql_ddl_recovery_log"),
];

fn path(bytes: &[u8]) -> PathBuf {
    OsString::from_vec(bytes.to_vec()).into()
}

/// All that is backed up.
pub(crate) struct Sources {
    /// The data directory is the first.
    pub(crate) list: Vec<Source>,
    temporary: Temporary,
    pub(crate) links: Links,
    files: Vec<(&'static str, PathBuf)>,
}

impl Sources {
    /// Finds out what this server has. What `is_excluded` says of is not followed.
    pub(crate) fn of(
        server: Server,
        is_excluded: &(dyn Fn(&Path) -> bool + Sync),
    ) -> Result<Sources, Failure> {
        apart(|| Sources::look(server, is_excluded))
    }

    fn look(server: Server, is_excluded: &dyn Fn(&Path) -> bool) -> Result<Sources, Failure> {
        let data = host::data_directory()
            .ok_or_else(|| Failure::new(libc::EINVAL, "the server has no data directory"))?;
        let data = resolve(&data, "the data directory")?;
        let mut sources = Sources::on(&data, Links::new(server, &data));
        sources.temporary = Temporary::of(server, &data);
        for (plugin, variable) in DIRECTORIES {
            let directories = plugins::text(server, plugin, variable).unwrap_or_default();
            for (number, one) in directories.split(|&b| b == b';').filter(|one| !one.is_empty()).enumerate() {
                let name = variable.to_string_lossy();
                let name = if number == 0 { name.into_owned() } else { format!("{name}.{number}") };
                sources.add_whole(name, &data.join(path(one)))?;
            }
        }
        for (base, name) in [(host::binary_log(), "mysql_log_bin"), (host::relay_log(), "mysql_relay_log")] {
            if let Some(base) = base.filter(|base| !base.is_empty())
                && let Some(directory) = data.join(path(&base)).parent()
            {
                sources.add_whole(name.into(), directory)?;
            }
        }
        for file in system_tablespace(server, &data)? {
            sources.add_file("innodb_data_file_path", &file)?;
        }
        sources.files = files(&data);
        for (name, file) in sources.files.clone() {
            // Where its directory is missing, the file cannot be there either.
            if file.parent().is_some_and(Path::is_dir) {
                sources.add_file(name, &file)?;
            }
        }
        Links::follow(&mut sources, is_excluded)?;
        Ok(sources)
    }

    pub(crate) fn on(data: &Path, links: Links) -> Sources {
        let data = Source::whole("mysql_data_dir", data);
        Sources { list: vec![data], temporary: Temporary::default(), links, files: Vec::new() }
    }

    pub(crate) fn data(&self) -> &Path {
        &self.list[0].path
    }

    /// The source that a path lies in.
    fn source_of(&self, path: &Path) -> Option<&Source> {
        self.list.iter().find(|source| path.starts_with(&source.path))
    }

    /// Whether what lies at this path, which is free of links, is backed up.
    pub(crate) fn cover(&self, path: &Path) -> bool {
        self.source_of(path)
            .is_some_and(|source| path.strip_prefix(&source.path).is_ok_and(|below| source.keeps(below)))
    }

    /// Whether an entry of a source is left out: it is not the server's, or temporary.
    pub(crate) fn leave_out(&self, path: &Path) -> bool {
        self.temporary.holds(path) || !self.cover(path)
    }

    /// Looks into the copies, in the order of the sources, for what leads to something that is not in them: it came while
    /// they were made.
    pub(crate) fn check(
        &self,
        copies: &[PathBuf],
        is_excluded: &dyn Fn(&Path) -> bool,
    ) -> Result<(), Failure> {
        let stray = self.files.iter().find(|(_, file)| resolved(file).is_some_and(|file| !self.cover(&file)));
        if let Some((name, file)) = stray {
            let text = format!(
                "{} ({name}) came while the backup was made, in a directory that is not in it",
                file.display()
            );
            return Err(Failure::new(libc::EINVAL, text));
        }
        self.links.check(self, copies, is_excluded)
    }

    /// A name that no source has yet.
    pub(crate) fn free_name(&self, kind: &str) -> String {
        let names = std::iter::once(kind.to_owned()).chain((1..).map(|number| format!("{kind}.{number}")));
        names.into_iter().find(|name| self.list.iter().all(|source| source.name != *name)).unwrap_or_default()
    }

    /// Adds a directory with all that is in it, unless it lies in one that is there already.
    pub(crate) fn add_whole(&mut self, name: String, directory: &Path) -> Result<(), Failure> {
        let path = resolve(directory, &name)?;
        match self.source_of(&path) {
            Some(Source { part: Part::Whole, .. }) => return Ok(()),
            Some(outer) if outer.path != path => {
                return Err(parent(&outer.name, &outer.path, &name, &path));
            }
            _ => {}
        }
        self.take_in(&name, &path)?;
        self.list.push(Source::whole(name, path));
        Ok(())
    }

    /// Adds a file, and with it the files of tables in its directory.
    pub(crate) fn add_file(&mut self, kind: &str, file: &Path) -> Result<(), Failure> {
        let (Some(directory), Some(file)) = (file.parent(), file.file_name()) else { return Ok(()) };
        let path = resolve(directory, kind)?;
        let inside = self.list.iter_mut().find(|source| path.starts_with(&source.path));
        if let Some(Source { path: outer, part, .. }) = inside {
            if let Part::Files(directories) = part {
                let below = path.strip_prefix(outer).unwrap_or(&path).to_owned();
                directories.entry(below).or_default().insert(file.into());
            }
            return Ok(());
        }
        let mut directories: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for inner in self.take_in(kind, &path)? {
            let below = inner.path.strip_prefix(&path).unwrap_or(&inner.path).to_owned();
            if let Part::Files(files) = inner.part {
                directories
                    .extend(files.into_iter().map(|(directory, files)| (below.join(directory), files)));
            }
        }
        directories.entry(PathBuf::new()).or_default().insert(file.into());
        self.list.push(Source { name: self.free_name(kind), path, part: Part::Files(directories) });
        Ok(())
    }

    /// Removes the sources below a directory that is to be one itself, and returns them. One that is backed up whole has its
    /// own place in the backup, and cannot be removed.
    fn take_in(&mut self, name: &str, path: &Path) -> Result<Vec<Source>, Failure> {
        let whole = |source: &&Source| source.path.starts_with(path) && source.part == Part::Whole;
        if let Some(inner) = self.list.iter().find(whole) {
            return Err(parent(name, path, &inner.name, &inner.path));
        }
        let (inner, others) =
            std::mem::take(&mut self.list).into_iter().partition(|source| source.path.starts_with(path));
        self.list = others;
        Ok(inner)
    }
}

fn parent(outer: &str, outer_path: &Path, inner: &str, inner_path: &Path) -> Failure {
    let text = format!("{outer} {} is a parent of {inner} {}", outer_path.display(), inner_path.display());
    Failure::new(libc::EINVAL, text)
}

fn resolve(path: &Path, what: &str) -> Result<PathBuf, Failure> {
    std::fs::canonicalize(path).map_err(|e| {
        Failure::new(
            e.raw_os_error().unwrap_or(libc::EINVAL),
            format!("cannot find {what} {}: {e}", path.display()),
        )
    })
}

/// The path free of links, of a file that is there.
fn resolved(path: &Path) -> Option<PathBuf> {
    std::fs::canonicalize(path).ok()
}

/// The files of InnoDB's system tablespace, wherever they lie.
fn system_tablespace(server: Server, data: &Path) -> Result<Vec<PathBuf>, Failure> {
    let text = |variable| plugins::text(server, c"InnoDB", variable).unwrap_or_default();
    let (files, home) = (text(c"innodb_data_file_path"), text(c"innodb_data_home_dir"));
    names_of_files(&files).map(|name| place_of_file(data, &home, name)).collect()
}

/// The names in `innodb_data_file_path` or its like: what comes before the first colon of each part.
pub(crate) fn names_of_files(files: &[u8]) -> impl Iterator<Item = &[u8]> {
    let names = files.split(|&b| b == b';').filter_map(|file| file.split(|&b| b == b':').next());
    names.filter(|name| !name.is_empty())
}

/// Where such a file can lie: some servers put the home directory even before an absolute path.
pub(crate) fn places_of_file(data: &Path, home: &[u8], name: &[u8]) -> [PathBuf; 2] {
    [
        data.join(path(&[home, b"/", name].concat().split_off(usize::from(home.is_empty())))),
        data.join(path(name)),
    ]
}

fn place_of_file(data: &Path, home: &[u8], name: &[u8]) -> Result<PathBuf, Failure> {
    let places = places_of_file(data, home, name);
    let found = places.iter().find_map(|place| resolved(place));
    let found = found.ok_or_else(|| {
        let text = format!("innodb_data_file_path names {}, which is not there", places[1].display());
        Failure::new(libc::ENOENT, text)
    })?;
    if found.is_file() {
        return Ok(found);
    }
    let text = format!("innodb_data_file_path names {}, which is not a file", found.display());
    Err(Failure::new(libc::ENOTSUP, text))
}

/// Where the server says that single files lie.
fn files(data: &Path) -> Vec<(&'static str, PathBuf)> {
    let told = FILES.into_iter().filter_map(|(variable, extension, name)| {
        let mut file = data.join(path(&host::text_at(variable).filter(|text| !text.is_empty())?));
        if file.extension().is_none() {
            file.set_extension(extension);
        }
        Some((name, file))
    });
    told.collect()
}

/// Runs `work` on a thread with a descriptor table of its own. Closing any descriptor of a file in the server's table would
/// drop the locks by which InnoDB keeps a second server off that file.
fn apart<T: Send>(work: impl FnOnce() -> Result<T, Failure> + Send) -> Result<T, Failure> {
    let panicked = || Failure::new(libc::EINVAL, "the plugin panicked: please report it");
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, || {
            // SAFETY: has an effect on this thread alone.
            if unsafe { libc::unshare(libc::CLONE_FILES) } != 0 {
                let e = std::io::Error::last_os_error();
                let text = format!("cannot look at the data apart from the server's descriptors: {e}");
                return Err(Failure::new(e.raw_os_error().unwrap_or(libc::EINVAL), text));
            }
            work()
        });
        let thread = thread.map_err(|e| Failure::new(libc::EAGAIN, format!("cannot start a thread: {e}")))?;
        thread.join().unwrap_or_else(|_| Err(panicked()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(data: &Path) -> Sources {
        Sources::on(data, Links::new(Server::parse("5.6.24").expect("a version"), data))
    }

    fn scratch(directories: &[&str]) -> (tempfile::TempDir, PathBuf) {
        let scratch = tempfile::tempdir().expect("a directory");
        let root = scratch.path().canonicalize().expect("resolved");
        directories.iter().for_each(|one| std::fs::create_dir_all(root.join(one)).expect("directories"));
        (scratch, root)
    }

    #[test]
    fn directories_inside_are_left_out_and_parents_refused() {
        let (_scratch, root) = scratch(&["data/undo", "logs"]);
        let mut sources = sources(&root.join("data"));
        sources.add_whole("undo".into(), &root.join("data/undo")).expect("inside");
        sources.add_whole("logs".into(), &root.join("data/../logs")).expect("outside");
        let found: Vec<_> = sources.list.iter().map(|source| (&*source.name, source.path.clone())).collect();
        assert_eq!(found, [("mysql_data_dir", root.join("data")), ("logs", root.join("logs"))]);
        let failure = sources.add_whole("all".into(), &root).expect_err("a parent");
        assert!(failure.text.contains("is a parent of mysql_data_dir"), "{}", failure.text);
        let failure = sources.add_file("file", &root.join("ibdata1")).expect_err("a parent");
        assert!(failure.text.contains("is a parent of mysql_data_dir"), "{}", failure.text);
        let failure = sources.add_whole("gone".into(), &root.join("gone")).expect_err("it does not exist");
        assert_eq!(failure.number, libc::ENOENT);
    }

    #[test]
    fn of_a_directory_with_other_things_only_the_servers_files_are_taken() {
        let (_scratch, root) = scratch(&["data", "far/db", "far/other"]);
        let mut sources = sources(&root.join("data"));
        sources.add_file("data_directory", &root.join("far/db/t.ibd")).expect("a file");
        sources.add_file("innodb_data_file_path", &root.join("far/ibdata1")).expect("a file");
        // The directory above has taken in the one below.
        assert_eq!(sources.list.len(), 2);
        assert_eq!(sources.list[1].name, "innodb_data_file_path");
        let covered = |below: &str| sources.cover(&root.join("far").join(below));
        for kept in ["", "ibdata1", "db", "db/t.ibd", "db/new.ibd", "new.MYD"] {
            assert!(covered(kept), "{kept} is left out");
        }
        for other in ["other", "other/t.ibd", "ibdata1.bak", "db/notes", "db/x/t.ibd", "mail"] {
            assert!(!covered(other), "{other} is taken");
        }
        let failure =
            sources.add_whole("symlink".into(), &root.join("far/other")).expect_err("it lies inside");
        assert!(failure.text.contains("is a parent of symlink"), "{}", failure.text);
    }

    #[test]
    fn a_whole_directory_takes_in_the_files_below_it() {
        let (_scratch, root) = scratch(&["data", "far/db"]);
        let mut sources = sources(&root.join("data"));
        sources.add_file("data_directory", &root.join("far/db/t.ibd")).expect("a file");
        sources.add_whole("symlink".into(), &root.join("far")).expect("a directory");
        assert_eq!(sources.list.len(), 2);
        assert_eq!((&*sources.list[1].name, &sources.list[1].part), ("symlink", &Part::Whole));
        assert_eq!(sources.free_name("symlink"), "symlink.1");
    }

    #[test]
    fn names_after_the_one_told_are_kept() {
        let goes = |told: &str, name: &str| goes_with(told.as_ref(), name.as_ref());
        assert!(goes("master.info", "master.info"));
        assert!(goes("master.info", "master-west.info"));
        assert!(goes("master.info", "multi-master.info"));
        assert!(!goes("master.info", "master.txt"));
        assert!(!goes("ibdata1", "ibdata1.old"));
    }

    #[test]
    fn files_of_the_system_tablespace_are_found_as_the_servers_do() {
        let names: Vec<_> = names_of_files(b"ibdata1:12M;/far/ibdata2:12M:autoextend").collect();
        assert_eq!(names, [&b"ibdata1"[..], b"/far/ibdata2"]);
        let places = |home: &[u8], name: &[u8]| places_of_file(Path::new("/data"), home, name);
        assert_eq!(places(b"", b"ibdata1")[0], Path::new("/data/ibdata1"));
        assert_eq!(places(b"", b"/far/ibdata2")[0], Path::new("/far/ibdata2"));
        assert_eq!(places(b"/home", b"ibdata1")[0], Path::new("/home/ibdata1"));
        let failure = place_of_file(Path::new("/data"), b"", b"/dev/null").expect_err("a device");
        assert!(failure.text.ends_with("names /dev/null, which is not a file"), "{}", failure.text);
    }
}
