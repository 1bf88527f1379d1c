//! One backup of the busy database: before, during, after, and the check of the copy.

use std::cell::RefCell;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hotbackup::{Backup, Report, Throttle};
use rusqlite::Connection;
use serde_json::{Value, json};

use crate::args::{Args, Mode};
use crate::bank::Bank;
use crate::check::{self, Verdict};
use crate::problem::Problem;
use crate::show::{Show, bytes, quoted, short};
use crate::tellers::{Period, Tellers, Transfer};

/// For how long the transfers are measured before and after the backup.
const MEASURED: Duration = Duration::from_secs(2);
/// For how long the tellers warm up.
const WARMING_UP: Duration = Duration::from_millis(300);

/// What came of one backup.
#[derive(Debug)]
pub struct Outcome {
    mode: Mode,
    /// The directory that it is in.
    pub backup: PathBuf,
    before: Period,
    during: Period,
    after: Period,
    took: Duration,
    result: Result<(Report, Verdict), String>,
}

impl Outcome {
    /// Whether the backup is there and right.
    pub fn ok(&self) -> bool {
        self.result.as_ref().is_ok_and(|(_, verdict)| verdict.ok())
    }

    /// All figures.
    pub fn json(&self) -> Value {
        let mut value = json!({
            "mode": self.mode.name(),
            "ok": self.ok(),
            "backup": self.backup,
            "backup_seconds": self.took.as_secs_f64(),
            "transfers": {
                "before": period_json(&self.before),
                "during": period_json(&self.during),
                "after": period_json(&self.after),
            },
        });
        match &self.result {
            Ok((report, verdict)) => {
                value["report"] = report_json(report);
                value["copy"] = verdict_json(verdict);
            }
            Err(reason) => value["error"] = json!(reason),
        }
        value
    }
}

fn period_json(period: &Period) -> Value {
    let us = |time: Duration| time.as_nanos() as f64 / 1e3;
    json!({
        "seconds": period.time.as_secs_f64(),
        "count": period.latencies.count(),
        "per_second": period.rate(),
        "median_us": us(period.latencies.quantile(0.5)),
        "p99_us": us(period.latencies.quantile(0.99)),
        "longest_us": us(period.latencies.longest()),
    })
}

fn report_json(report: &Report) -> Value {
    json!({
        "files": report.files,
        "bytes_copied": report.bytes_copied,
        "bytes_recopied": report.bytes_recopied,
        "freeze_ms": report.freeze.as_secs_f64() * 1e3,
        "cut_unix_ns": crate::tellers::ns(report.cut),
        "cut_attempts": report.cut_attempts,
        "captured_calls": report.captured_calls,
        "phase_seconds": {
            "prepare": report.phases.prepare.as_secs_f64(),
            "copy": report.phases.copy.as_secs_f64(),
            "converge": report.phases.converge.as_secs_f64(),
            "cut": report.phases.cut.as_secs_f64(),
            "audit": report.phases.audit.as_secs_f64(),
            "publish": report.phases.publish.as_secs_f64(),
        },
        "unseen": report.unseen,
        "warnings": report.warnings.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "manifest": report.manifest,
    })
}

fn verdict_json(verdict: &Verdict) -> Value {
    let checks = verdict.findings.iter();
    json!({
        "transfers": verdict.transfers,
        "newest_transfer_before_cut_ms": verdict.newest_before_cut_ns.map(|ns| ns as f64 / 1e6),
        "checks": checks.map(|f| json!({ "name": f.name, "ok": f.ok, "found": f.text })).collect::<Vec<_>>(),
    })
}

/// Says why backups cannot be put into `to`, and changes nothing.
pub fn check_destination(to: &Path, database: &Path) -> Result<(), Problem> {
    let bad = |reason: &str| Err(Problem::bad("put backups into", to, reason));
    let mut existing = to;
    loop {
        match fs::metadata(existing) {
            Ok(found) if found.is_dir() => break,
            Ok(_) => return bad(&format!("{} is not a directory", existing.display())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return bad(&e.to_string()),
        }
        match existing.parent() {
            Some(parent) => existing = parent,
            None => break,
        }
    }
    let source = crate::bank::directory_of(database);
    let resolved = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let whole = resolved(existing).join(to.strip_prefix(existing).unwrap_or(to));
    if whole.starts_with(resolved(source)) {
        return bad("it lies in the directory of the database, so the backup would hold itself");
    }
    Ok(())
}

/// Keeps the bank busy in `mode`, backs it up into a new directory below `to` meanwhile, and checks the copy.
pub fn run(args: &Args, bank: &Bank, mode: Mode, to: &Path, show: Show) -> Result<Outcome, Problem> {
    let title = match mode {
        Mode::Wal => "Write-ahead log (PRAGMA journal_mode=wal)",
        Mode::Rollback => "Rollback journal (PRAGMA journal_mode=delete)",
    };
    show.line(format_args!("\n{title}"));
    bank.set_mode(mode)?;
    let mut tellers = Tellers::start(bank, args.writers)?;
    std::thread::sleep(WARMING_UP);
    tellers.period();
    let measure = |name, tellers: &mut Tellers| {
        std::thread::sleep(MEASURED);
        let period = tellers.period();
        show.period(name, &period);
        period
    };
    let before = measure("before", &mut tellers);

    let destination = make_destination(to, mode)?;
    let begun = Instant::now();
    tellers.period();
    let report = back_up(args, bank, &destination, &tellers, show);
    let took = begun.elapsed();
    let during = tellers.period();
    show.period("during the backup", &during);
    let after = measure("after", &mut tellers);
    let seen = tellers.stop()?;

    let result = report.map_err(|e| e.to_string()).and_then(|report| {
        tell_report(&report, took, &destination, show);
        let verdict = judge(bank, &destination, &report, &seen, show).map_err(|e| e.text().to_owned())?;
        Ok((report, verdict))
    });
    if let Err(reason) = &result {
        tell_failure(reason, &destination, show);
    }
    Ok(Outcome { mode, backup: destination, before, during, after, took, result })
}

/// The backup itself: this is what a program that embeds hotbackup writes.
fn back_up(args: &Args, bank: &Bank, to: &Path, tellers: &Tellers, show: Show) -> hotbackup::Result<Report> {
    let bar = RefCell::new(show.bar());
    let cut_bell = tellers.cut_bell();
    let result = Backup::from(bank.directory())
        .to(to)
        // The index of the write-ahead log is a memory mapping, and is made anew from the log.
        .exclude(r"-shm$")
        .throttle(args.throttle.map_or(Throttle::UNLIMITED, Throttle::bytes_per_sec))
        .on_progress(|progress| bar.borrow_mut().update(progress))
        .after_cut(cut_bell)
        .start()
        .and_then(|session| session.finish());
    bar.into_inner().end();
    result
}

/// A new empty directory, named by mode and time.
fn make_destination(to: &Path, mode: Mode) -> Result<PathBuf, Problem> {
    let time: String = Connection::open_in_memory()
        .and_then(|c| c.query_row("SELECT strftime('%Y-%m-%dT%H-%M-%SZ', 'now')", [], |row| row.get(0)))
        .map_err(|e| Problem::Failed(format!("cannot tell the time: {e}")))?;
    fs::create_dir_all(to).map_err(|e| Problem::bad("create the directory", to, e))?;
    for number in 1.. {
        let again = if number > 1 { format!("-{number}") } else { String::new() };
        let destination = to.join(format!("backup-{}-{time}{again}", mode.name()));
        match fs::create_dir(&destination) {
            Ok(()) => return Ok(destination),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(Problem::bad("create the directory", &destination, e)),
        }
    }
    unreachable!("the loop has no end of its own")
}

fn tell_report(report: &Report, took: Duration, destination: &Path, show: Show) {
    let (first, again) = (bytes(report.bytes_copied), bytes(report.bytes_recopied));
    show.item("backup", short(destination));
    show.item("", format_args!("{first} in {:.1} s, {again} of it copied again", took.as_secs_f64()));
    show.item("frozen for", format_args!("{:.2} ms", report.freeze.as_secs_f64() * 1e3));
    for path in &report.unseen {
        show.item(
            "written outside",
            format_args!("{}: something else wrote to it; copied again", short(path)),
        );
    }
    for warning in &report.warnings {
        show.item("note", warning);
    }
}

fn judge(
    bank: &Bank,
    backup: &Path,
    report: &Report,
    seen: &[Transfer],
    show: Show,
) -> Result<Verdict, Problem> {
    let verdict = check::check(bank, backup, report.cut, seen)?;
    show.line("  the copy, opened");
    for finding in &verdict.findings {
        let mark = if finding.ok { "" } else { "WRONG: " };
        show.item(&format!("  {}", finding.name), format_args!("{mark}{}", finding.text));
    }
    if !verdict.ok() {
        show.complain(format_args!("sqlite-example: the copy in {} is not right", backup.display()));
    }
    Ok(verdict)
}

/// What was begun is marked as incomplete; what was not even begun leaves nothing.
fn tell_failure(reason: &str, destination: &Path, show: Show) {
    show.complain(format_args!("sqlite-example: the backup failed: {reason}"));
    if fs::remove_dir(destination).is_err() {
        show.item("incomplete", format_args!("remove it with: rm -r {}", quoted(destination)));
    }
}
