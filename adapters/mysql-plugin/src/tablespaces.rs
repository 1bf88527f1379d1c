//! Tablespaces that were being made at the instant of the backup.
//!
//! MySQL before 8 makes the file of a table full of zeros, and then writes its first page. A server that crashes in between,
//! or is started on a copy of that very instant, does not start ("space header page consists of zero bytes"). Later servers,
//! and MariaDB, make such files anew from the redo log.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::host::{Family, Server};
use crate::library::Failure;

/// A tablespace's first page begins with more than this, which is not all zeros once it is written.
const HEADER: usize = 1024;

/// Fails if one of the copies in `parts` holds a table that was being made, and this server cannot do with that.
pub(crate) fn check(server: Server, parts: &[PathBuf]) -> Result<(), Failure> {
    if server.family != Family::MySql || server.version >= 80_000 {
        return Ok(());
    }
    let below =
        |part: &PathBuf| half_made(part).map(|path| path.strip_prefix(part).unwrap_or(&path).to_owned());
    match parts.iter().find_map(below) {
        None => Ok(()),
        Some(path) => Err(Failure::new(
            libc::EAGAIN,
            format!(
                "{} was being made at the instant of the backup, and this server does not start on such a copy: try again",
                path.display()
            ),
        )),
    }
}

/// The first tablespace below a directory that has no first page. Links are not followed.
fn half_made(directory: &Path) -> Option<PathBuf> {
    fs::read_dir(directory).ok()?.flatten().find_map(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => half_made(&entry.path()),
        Ok(kind) if kind.is_file() => {
            let path = entry.path();
            let is_table = path.extension().is_some_and(|extension| extension == "ibd");
            (is_table && lacks_header(&path)).then_some(path)
        }
        _ => None,
    })
}

/// One that cannot be read is not said to lack it.
fn lacks_header(path: &Path) -> bool {
    let mut header = Vec::new();
    let read = File::open(path).and_then(|file| file.take(HEADER as u64).read_to_end(&mut header));
    read.is_ok() && header.iter().all(|&byte| byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MYSQL_56: Server = Server { family: Family::MySql, version: 50_624 };

    #[test]
    fn a_table_that_was_being_made_fails_the_backup_where_the_server_would_not_start() {
        let scratch = tempfile::tempdir().expect("a directory");
        let database = scratch.path().join("bank");
        fs::create_dir(&database).expect("a directory");
        let write = |name: &str, bytes: &[u8]| fs::write(database.join(name), bytes).expect("a file");
        let parts = [scratch.path().to_owned()];
        write("whole.ibd", &[&[0; 40][..], &[1], &[0; 8192]].concat());
        write("zeros.MYD", &[0; 4096]);
        check(MYSQL_56, &parts).expect("all tables are whole");
        for half in [&[0; 98_304][..], &[]] {
            write("half.ibd", half);
            let failure = check(MYSQL_56, &parts).expect_err("one is not");
            assert_eq!(failure.number, libc::EAGAIN);
            assert!(failure.text.starts_with("bank/half.ibd was being made"), "{}", failure.text);
        }
        check(Server { version: 90_700, ..MYSQL_56 }, &parts).expect("it makes the file anew");
        check(Server { family: Family::MariaDb, version: 101_100 }, &parts).expect("it makes the file anew");
    }
}
