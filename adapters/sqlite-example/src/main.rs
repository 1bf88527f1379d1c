//! A live, busy SQLite database; a hot backup of it; a check of the copy.
//!
//! [`vfs`] is the adapter, and all that another program needs to have its SQLite databases backed up hot. The rest
//! shows it at work: [`bank`] is the database, [`tellers`] keep it busy, [`run`] backs it up, [`check`] opens the copy.
#![deny(clippy::undocumented_unsafe_blocks)]

mod args;
mod bank;
mod check;
mod latency;
mod problem;
mod run;
mod show;
mod tellers;
mod vfs;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use serde_json::json;

use crate::args::{Args, DEFAULT_SIZE};
use crate::bank::Bank;
use crate::problem::Problem;
use crate::run::Outcome;
use crate::show::{Show, bytes, quoted, short};

fn main() -> ExitCode {
    let args = Args::parse();
    let show = Show::new(args.json);
    match story(&args, show) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(problem) => {
            show.complain(format_args!("sqlite-example: {}", problem.text()));
            show.json(&json!({ "ok": false, "error": problem.text() }));
            ExitCode::from(problem.status())
        }
    }
}

/// True if every backup is right.
fn story(args: &Args, show: Show) -> Result<bool, Problem> {
    let place = args::default_place();
    let default_database =
        || place.join(format!("database-{}", args.size.unwrap_or(DEFAULT_SIZE))).join("bank.db");
    let database = absolute(args.database.clone().unwrap_or_else(default_database))?;
    let to = absolute(args.to.clone().unwrap_or(place))?;
    Bank::check(&database)?;
    run::check_destination(&to, &database)?;
    vfs::install().map_err(|e| Problem::Failed(e.to_string()))?;

    show.line("A live SQLite database, backed up while it is written to\n");
    let is_new = !database.exists();
    if is_new {
        let size = bytes(args.size.unwrap_or(DEFAULT_SIZE));
        show.item("database", format_args!("making {} ({size}) ...", short(&database)));
    }
    let bank = Bank::open_or_make(&database, args.size)?;
    show.item("database", short(&bank.path));
    let made = bank.made_in.map(|time| format!(", made in {:.1} s", time.as_secs_f64())).unwrap_or_default();
    show.item("", format_args!("{}, {} accounts{made}", bytes(bank.bytes), check::count(bank.accounts)));
    show.item("connections", format_args!("{}, each moving money without a pause", args.writers));

    let mut outcomes = Vec::new();
    for &mode in args.mode.each() {
        outcomes.push(run::run(args, &bank, mode, &to, show)?);
    }
    let ok = outcomes.iter().all(Outcome::ok);
    next_steps(args, &bank, &outcomes, show);
    show.json(&json!({
        "ok": ok,
        "database": bank.path,
        "database_bytes": bank.bytes,
        "accounts": bank.accounts,
        "writers": args.writers,
        "sqlite": rusqlite::version(),
        "runs": outcomes.iter().map(Outcome::json).collect::<Vec<_>>(),
    }));
    Ok(ok)
}

fn absolute(path: PathBuf) -> Result<PathBuf, Problem> {
    std::path::absolute(&path).map_err(|e| Problem::bad("use the path", &path, e))
}

/// Commands that work, for who wants to see more.
fn next_steps(args: &Args, bank: &Bank, outcomes: &[Outcome], show: Show) {
    let Some(good) = outcomes.iter().find(|outcome| outcome.ok()) else {
        return;
    };
    let copy = good.backup.join(bank.path.file_name().unwrap_or_default());
    show.line("\nWhat to try next");
    if has_sqlite_shell() {
        show.line("  Look into a backup (SQLite then makes a plain database of it, as after a crash):");
        show.line(format_args!("    sqlite3 {} 'SELECT count(*), sum(balance) FROM account'", quoted(&copy)));
        show.line("  Write from outside during the next backup, which nobody can capture; it is found out:");
        let sql = "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 5000000)
                   UPDATE account SET holder = holder WHERE id IN (SELECT i FROM n)";
        let sql = sql.split_whitespace().collect::<Vec<_>>().join(" ");
        show.line(format_args!("    sqlite3 -cmd '.timeout 10000' {} '{sql}'", quoted(&bank.path)));
    }
    show.line("  Copy slowly, and see that the transfers go on all the while:");
    let same = same_place(args);
    show.line(format_args!("    cargo run --release -p sqlite-example -- --mode wal --throttle 64M{same}"));
    show.line("  Remove the backups:");
    let backups: Vec<String> = outcomes.iter().map(|outcome| quoted(&outcome.backup)).collect();
    show.line(format_args!("    rm -r {}", backups.join(" ")));
}

/// The options that say which database is backed up, and where to.
fn same_place(args: &Args) -> String {
    let path = |name: &str, path: &Option<PathBuf>| {
        path.as_ref().map(|path| format!(" --{name} {}", quoted(path))).unwrap_or_default()
    };
    let size = args.size.map(|size| format!(" --size {size}")).unwrap_or_default();
    path("database", &args.database) + &path("to", &args.to) + &size
}

fn has_sqlite_shell() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory: PathBuf| Path::new(&directory).join("sqlite3").is_file())
}
