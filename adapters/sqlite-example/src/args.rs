//! What the user asks for, read from the command line.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use clap::{Parser, ValueEnum};

/// Moves money between the accounts of a SQLite database with several connections, backs the database up meanwhile,
/// and checks the copy.
#[derive(Debug, Parser)]
#[command(version, after_long_help = EXAMPLES, after_help = EXAMPLES)]
pub struct Args {
    /// The database, in a directory of its own; made if there is none [default: bank.db below target/sqlite-example]
    #[arg(long, value_name = "FILE")]
    pub database: Option<PathBuf>,

    /// The directory that receives the backups, each in a new directory named by mode and time
    /// [default: target/sqlite-example]
    #[arg(long, value_name = "DIRECTORY")]
    pub to: Option<PathBuf>,

    /// The most that the copying reads and writes per second: 64M, 500K, 1G [default: no limit]
    #[arg(long, value_name = "BYTES", value_parser = throttle)]
    pub throttle: Option<u64>,

    /// How large a new database is made [default: 300M]
    #[arg(long, value_name = "BYTES", value_parser = size)]
    pub size: Option<u64>,

    /// How many connections move money at once, 1 to 64
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u8).range(1..=64), default_value_t = 4)]
    pub writers: u8,

    /// SQLite's journal: a write-ahead log, a rollback journal, or one after the other
    #[arg(long, value_enum, default_value_t = Modes::Both)]
    pub mode: Modes,

    /// Print one JSON object, and nothing else, to standard output
    #[arg(long)]
    pub json: bool,
}

/// How large a new database is made if nobody says.
pub const DEFAULT_SIZE: u64 = 300 << 20;

const EXAMPLES: &str = "\
Examples:
  cargo run --release -p sqlite-example
  cargo run --release -p sqlite-example -- --mode wal --throttle 64M
  cargo run --release -p sqlite-example -- --size 1G --writers 8
  cargo run --release -p sqlite-example -- --database /srv/bank/bank.db --to /backups --json

Exit status: 0 the backups are right, 1 a backup failed or is not right, 2 the arguments cannot be used.";

/// Which journal modes to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum Modes {
    Wal,
    Rollback,
    Both,
}

impl Modes {
    /// One after the other.
    pub fn each(self) -> &'static [Mode] {
        match self {
            Modes::Wal => &[Mode::Wal],
            Modes::Rollback => &[Mode::Rollback],
            Modes::Both => &[Mode::Wal, Mode::Rollback],
        }
    }
}

/// How SQLite makes its transactions atomic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Changed pages go to the end of a log (`-wal`), and later to the database.
    Wal,
    /// Old pages go to a journal (`-journal`), which is unlinked when the database holds the new ones.
    Rollback,
}

impl Mode {
    /// The mode in one word.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Wal => "wal",
            Mode::Rollback => "rollback",
        }
    }

    /// What `PRAGMA journal_mode` calls it.
    pub fn pragma(self) -> &'static str {
        match self {
            Mode::Wal => "wal",
            Mode::Rollback => "delete",
        }
    }
}

/// A number of bytes with an optional K, M, G or T (of 1024).
fn bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 1,
        "K" | "KB" | "KIB" => 1 << 10,
        "M" | "MB" | "MIB" => 1 << 20,
        "G" | "GB" | "GIB" => 1 << 30,
        "T" | "TB" | "TIB" => 1_u64 << 40,
        other => {
            return Err(format!("{other} is no unit of bytes; use K, M, G or T, as in 64M"));
        }
    };
    let number: u64 =
        digits.trim_end().parse().map_err(|_| "a whole number of bytes is needed, as in 64M".to_string())?;
    number.checked_mul(unit).ok_or_else(|| "that is more than there can be".into())
}

fn throttle(text: &str) -> Result<u64, String> {
    match bytes(text)? {
        0 => Err("at 0 bytes per second the backup would never end".into()),
        rate => Ok(rate),
    }
}

fn size(text: &str) -> Result<u64, String> {
    match bytes(text)? {
        small if small < 1 << 20 => Err("the database has to have at least 1M".into()),
        large if large > 1 << 40 => Err("the database can have at most 1T".into()),
        size => Ok(size),
    }
}

/// Where database and backups lie by default: below the target directory that this program was built in.
pub fn default_place() -> PathBuf {
    target_directory(std::env::var_os("CARGO_TARGET_DIR").as_deref(), std::env::current_exe().ok().as_deref())
        .join("sqlite-example")
}

/// Cargo marks its target directory with a file; a program that was installed elsewhere uses ./target.
fn target_directory(from_environment: Option<&OsStr>, program: Option<&Path>) -> PathBuf {
    let marked = |directory: &&Path| directory.join("CACHEDIR.TAG").is_file();
    match (program.and_then(|program| program.ancestors().skip(1).find(marked)), from_environment) {
        (Some(directory), _) => directory.to_owned(),
        (None, Some(directory)) if !directory.is_empty() => directory.into(),
        _ => "target".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_may_have_units() {
        assert_eq!(bytes("4096"), Ok(4096));
        assert_eq!(bytes("64M"), Ok(64 << 20));
        assert_eq!(bytes("64 MiB"), Ok(64 << 20));
        assert_eq!(bytes("1g"), Ok(1 << 30));
        assert_eq!(bytes(" 5kb "), Ok(5 << 10));
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in
            ["", "M", "-1", "1.5G", "12X", "64M per second", "99999999999999999999", "18446744073709551615K"]
        {
            assert!(bytes(text).is_err(), "{text:?}");
        }
        assert!(throttle("0").is_err());
        assert!(size("10K").is_err());
        assert!(size("2T").is_err());
    }

    #[test]
    fn the_command_line_is_understood() {
        let args =
            Args::try_parse_from(["x", "--throttle", "64M", "--mode", "wal", "--writers", "8", "--json"]);
        let args = args.expect("parsed");
        assert_eq!((args.throttle, args.size, args.writers), (Some(64 << 20), None, 8));
        assert_eq!(args.mode.each(), [Mode::Wal]);
        assert!(args.json);
    }

    #[test]
    fn bad_arguments_are_refused_by_name() {
        for (flag, value) in [
            ("--throttle", "fast"),
            ("--size", "0"),
            ("--writers", "0"),
            ("--writers", "65"),
            ("--mode", "log"),
        ] {
            let error = Args::try_parse_from(["x", flag, value]).expect_err("refused").to_string();
            assert!(error.contains(flag) && error.contains(value), "{error}");
        }
        assert!(Args::try_parse_from(["x", "database.db"]).is_err());
    }

    #[test]
    fn the_target_directory_is_the_one_that_cargo_marked() {
        let root = tempfile::tempdir().expect("a directory");
        std::fs::write(root.path().join("CACHEDIR.TAG"), "").expect("written");
        let program = root.path().join("release/sqlite-example");
        assert_eq!(target_directory(None, Some(&program)), root.path());
        assert_eq!(target_directory(Some(OsStr::new("t")), Some(Path::new("/nowhere/x"))), Path::new("t"));
        assert_eq!(target_directory(None, None), Path::new("target"));
    }
}
