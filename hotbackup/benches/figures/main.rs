//! The figures of docs/benchmarks.md.
//!
//! ```sh
//! tests/run bench                                                   # all rows, an hour or two; then writes the page
//! HOTBACKUP_BENCH_ROWS="large sparse" tests/run bench               # these
//! HOTBACKUP_BENCH_SCALE=small tests/run bench                       # to see that it works; the page stays as it is
//! ```
//!
//! `HOTBACKUP_BENCH_DIR` is the directory on disk to work in (the temporary one), `HOTBACKUP_BENCH_ROUNDS` how often
//! each side has its turn (5).
//!
//! [`measure`] says what a figure is, [`page`] shows them; a row is a function of one of the other modules.

mod copying;
mod growth;
mod idle;
mod measure;
mod page;
mod place;
mod writing;

use std::process::ExitCode;

use measure::Done;

/// Its name and what measures it.
type Row = (&'static str, fn() -> Done);

/// In the order of the page.
const ROWS: [Row; 14] = [
    ("idle", idle::idle),
    ("instructions", idle::instructions),
    ("large", copying::large),
    ("small", copying::small),
    ("sparse", copying::sparse),
    ("shared", copying::shared),
    ("saturating", writing::saturating),
    ("paced", writing::paced),
    ("files", writing::files),
    ("session", writing::session),
    ("fsync", writing::fsync),
    ("memory", growth::memory),
    ("throttle", copying::throttle),
    ("growth", growth::growth),
];

/// Measured by adapters/sqlite-example/benches/sqlite.rs.
const ELSEWHERE: &str = "sqlite";

/// Status 1 if a row could not be measured; a target that is missed is only shown.
fn main() -> ExitCode {
    if let Some(status) = growth::child() {
        return status;
    }
    let is_row = |asked: &str| asked == ELSEWHERE || ROWS.iter().any(|&(name, _)| name == asked);
    if let Some(wrong) = measure::chosen().into_iter().find(|asked| !is_row(asked)) {
        let rows = ROWS.map(|(name, _)| name).join(" ");
        page::complain(&wrong, format!("no such row; there are {rows} {ELSEWHERE}"));
        return ExitCode::FAILURE;
    }
    let mut status = ExitCode::SUCCESS;
    for (name, row) in ROWS {
        if measure::is_chosen(name)
            && let Err(problem) = row()
        {
            page::complain(name, problem);
            status = ExitCode::FAILURE;
        }
    }
    if let Err(problem) = page::write() {
        page::complain("the page", problem);
        status = ExitCode::FAILURE;
    }
    status
}
