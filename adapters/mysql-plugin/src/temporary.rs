//! What the server makes anew when it starts, wherever it lies: temporary tablespaces and tables. It is not backed up.
//!
//! Files for sorting and the like, in `tmpdir` and `innodb_tmpdir`, have no names by the time that anybody could see them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::host::{self, Server};
use crate::plugins;
use crate::sources::{names_of_files, places_of_file};

#[derive(Default)]
pub(crate) struct Temporary {
    /// The shared temporary tablespace.
    files: Vec<PathBuf>,
    /// Where the temporary tablespaces of sessions are.
    tablespaces: Option<PathBuf>,
    /// Where temporary tables are.
    tables: Vec<PathBuf>,
}

impl Temporary {
    pub(crate) fn of(server: Server, data: &Path) -> Temporary {
        let text = |variable| plugins::text(server, c"InnoDB", variable).unwrap_or_default();
        let (files, home) = (text(c"innodb_temp_data_file_path"), text(c"innodb_data_home_dir"));
        let files = names_of_files(&files).flat_map(|name| places_of_file(data, &home, name));
        let directory = |text: &[u8]| std::fs::canonicalize(data.join(OsStr::from_bytes(text))).ok();
        let tablespaces = text(c"innodb_temp_tablespaces_dir");
        let tables = host::text_at(c"opt_mysql_tmpdir").unwrap_or_default();
        Temporary {
            files: files.filter_map(|file| std::fs::canonicalize(file).ok()).collect(),
            tablespaces: Some(tablespaces).filter(|text| !text.is_empty()).and_then(|text| directory(&text)),
            tables: tables
                .split(|&b| b == b':')
                .filter(|one| !one.is_empty())
                .filter_map(directory)
                .collect(),
        }
    }

    /// Whether this is one, by its path, which is free of links.
    pub(crate) fn holds(&self, path: &Path) -> bool {
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return false };
        let name = name.as_bytes();
        let is = |one: &PathBuf| one == directory;
        self.files.iter().any(|file| file == path)
            || self.tablespaces.as_ref().is_some_and(is)
                && name.starts_with(b"temp_")
                && name.ends_with(b".ibt")
            || self.tables.iter().any(is) && is_temporary_table(name)
    }
}

/// Tables that ALTER TABLE makes on the way are named alike, with a minus: what becomes of these is decided by recovery.
fn is_temporary_table(name: &[u8]) -> bool {
    let of_session = name.strip_prefix(b"#sql").and_then(<[u8]>::first).is_some_and(|&next| next != b'-');
    of_session || name.starts_with(b"#sql-temptable-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_made_anew_is_temporary() {
        let temporary = Temporary {
            files: vec!["/data/temp/one".into()],
            tablespaces: Some("/data/spaces".into()),
            tables: vec!["/data/tmp".into()],
        };
        let temporary = |path: &str| temporary.holds(Path::new(path));
        assert!(temporary("/data/temp/one"));
        assert!(temporary("/data/spaces/temp_1.ibt"));
        assert!(temporary("/data/tmp/#sql3a_2_0.MYD"));
        assert!(temporary("/data/tmp/#sql-temptable-3a-2-0.MAD"));
        for kept in ["/data/temp/two", "/data/spaces", "/data/spaces/t.ibd", "/data/temp_1.ibt"] {
            assert!(!temporary(kept), "{kept}");
        }
        for kept in
            ["/data/tmp/#sql-3a_2.ibd", "/data/tmp/SQL_LOAD-1.data", "/data/tmp", "/data/#sql3a_2_0.MYD"]
        {
            assert!(!temporary(kept), "{kept}");
        }
    }
}
