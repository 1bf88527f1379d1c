//! The program as its users run it: its status, its JSON, its errors.
//!
//! Method: the built program runs on a small database in a directory of its own. For the writer from outside, this test
//! process opens the same database and writes beside the program, which cannot capture that.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rusqlite::Connection;
use serde_json::Value;

fn program(place: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sqlite-example"))
        .args(args)
        .current_dir(place)
        .output()
        .expect("the program runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {} {}", text(&output.stdout), text(&output.stderr)))
}

const SMALL: &[&str] = &["--database", "live/bank.db", "--to", "backups", "--size", "4M", "--writers", "3"];

#[test]
fn both_modes_are_backed_up_and_right_twice() {
    let place = tempfile::tempdir().expect("a directory");
    for _ in 0..2 {
        let output = program(place.path(), &[SMALL, &["--json"]].concat());
        let told = json(&output);
        assert_eq!(output.status.code(), Some(0), "{told:#} {}", text(&output.stderr));
        assert_eq!(told["ok"], true);
        let runs = told["runs"].as_array().expect("runs");
        assert_eq!([&runs[0]["mode"], &runs[1]["mode"]], ["wal", "rollback"]);
        for run in runs {
            for period in ["before", "during", "after"] {
                assert!(run["transfers"][period]["count"].as_u64() > Some(0), "{period}: {run:#}");
            }
            assert!(run["report"]["freeze_ms"].as_f64() < Some(600.0), "{run:#}");
            assert!(run["copy"]["newest_transfer_before_cut_ms"].as_f64() >= Some(0.0), "{run:#}");
            assert!(
                run["copy"]["checks"].as_array().expect("checks").iter().all(|check| check["ok"] == true)
            );
            let backup = Path::new(run["backup"].as_str().expect("a path"));
            assert!(backup.join("bank.db").is_file());
            assert!(!backup.join("bank.db-shm").exists());
        }
    }
    assert_eq!(std::fs::read_dir(place.path().join("backups")).expect("listed").count(), 4);
}

#[test]
fn people_get_a_story() {
    let place = tempfile::tempdir().expect("a directory");
    let output = program(place.path(), &[SMALL, &["--mode", "rollback"]].concat());
    let story = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{story} {}", text(&output.stderr));
    for part in ["before", "during the backup", "after", "frozen for", "integrity_check", "What to try next"]
    {
        assert!(story.contains(part), "no {part:?} in {story}");
    }
    let again = "--mode wal --throttle 64M --database live/bank.db --to backups --size 4194304\n";
    assert!(story.contains(again), "no {again:?} in {story}");
}

/// Its size is nothing that one has to remember; another one is refused.
#[test]
fn a_database_that_is_there_is_used_whatever_its_size() {
    let place = tempfile::tempdir().expect("a directory");
    let same = &SMALL[..4];
    for (args, status) in
        [(&["--size", "2M"][..], 0), (&[], 0), (&["--size", "2M"], 0), (&["--size", "3M"], 2)]
    {
        let output = program(place.path(), &[same, &["--mode", "wal"], args].concat());
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{args:?}: {said}");
        assert_eq!(said.contains("was made with --size 2097152"), status == 2, "{said}");
    }
}

/// On a terminal, which script(1) makes, there is a bar for the copying.
#[test]
fn a_terminal_gets_a_bar() {
    let place = tempfile::tempdir().expect("a directory");
    let args = SMALL.join(" ") + " --mode wal --throttle 16M";
    let command = format!("{} {args}", env!("CARGO_BIN_EXE_sqlite-example"));
    let shown = Command::new("script")
        .args(["--quiet", "--return", "--command", &command, "/dev/null"])
        .current_dir(place.path())
        .output();
    let Ok(shown) = shown else {
        return drop(writeln!(std::io::stderr(), "skipped: there is no script(1)"));
    };
    let screen = text(&shown.stdout);
    assert!(shown.status.success(), "{screen}");
    for part in ["copying", "=> ", " of ", "/s", "frozen for"] {
        assert!(screen.contains(part), "no {part:?} in {screen}");
    }
}

#[test]
fn bad_input_is_named_and_changes_nothing() {
    let place = tempfile::tempdir().expect("a directory");
    let path = |name: &str| place.path().join(name);
    std::fs::create_dir_all(path("other")).expect("made");
    std::fs::write(path("other/notes.txt"), "text").expect("written");
    Connection::open(path("theirs.db")).and_then(|c| c.execute_batch("CREATE TABLE t (x)")).expect("made");
    let before = listing(place.path());
    let cases: &[(&[&str], &str)] = &[
        (&["--size", "big"], "'big' for '--size"),
        (&["--size", "1K"], "at least 1M"),
        (&["--throttle", "0"], "never end"),
        (&["--throttle", "1.5M"], "'1.5M' for '--throttle"),
        (&["--writers", "0"], "'0' for '--writers"),
        (&["--mode", "fast"], "'fast' for '--mode"),
        (&["--nonsense"], "--nonsense"),
        (&["--database", "other"], "other: it is not a regular file"),
        (&["--database", "other/notes.txt"], "it is not a SQLite database"),
        (&["--database", "other/bank.db"], "its directory holds notes.txt too"),
        (&["--database", "theirs.db"], "it was not made by this program"),
        (&["--database", "other/notes.txt/bank.db"], "notes.txt is not a directory"),
        (&["--database", "new/bank.db", "--to", "theirs.db"], "theirs.db is not a directory"),
        (&["--database", "new/bank.db", "--to", "new/backups"], "the backup would hold itself"),
        (&["--database", "new/bank.db", "--to", "new"], "the backup would hold itself"),
    ];
    for (args, reason) in cases {
        let output = program(place.path(), args);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.contains(reason), "{args:?}: {said}");
        assert!(output.stdout.is_empty(), "{args:?}: {}", text(&output.stdout));
        assert_eq!(listing(place.path()), before, "{args:?}");
    }
}

/// Every entry with its size and time of change.
fn listing(place: &Path) -> Vec<String> {
    let mut entries = Vec::new();
    let mut left = vec![place.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in std::fs::read_dir(directory).expect("listed") {
            let entry = entry.expect("an entry");
            let found = entry.metadata().expect("examined");
            entries.push(format!("{:?} {} {:?}", entry.path(), found.len(), found.modified().ok()));
            if found.is_dir() {
                left.push(entry.path());
            }
        }
    }
    entries.sort();
    entries
}

#[test]
fn a_writer_from_outside_is_found_out() {
    // Each mode has a database of its own: an outside connection would not let the mode be changed.
    for mode in ["wal", "rollback"] {
        let place = tempfile::tempdir().expect("a directory");
        let database = place.path().join("live/bank.db");
        let stop = AtomicBool::new(false);
        let output = std::thread::scope(|scope| {
            scope.spawn(|| write_beside(&database, &stop));
            // Also when the program cannot be run: the scope waits for its threads.
            let _stopper = Stopper(&stop);
            program(place.path(), &[SMALL, &["--json", "--throttle", "8M", "--mode", mode]].concat())
        });
        let told = json(&output);
        let run = &told["runs"][0];
        let outside = |text: &str| text.contains("bank.db");
        match output.status.code() {
            // All of it is in the backup, and the report says that something else had written.
            Some(0) => {
                let unseen = run["report"]["unseen"].as_array().expect("unseen");
                let warnings = run["report"]["warnings"].as_array().expect("warnings");
                let mut said = unseen.iter().chain(warnings).filter_map(Value::as_str);
                assert!(said.any(outside), "{mode}: {told:#}");
            }
            // Or there is no backup, and the error names the file.
            Some(1) => assert!(run["error"].as_str().is_some_and(outside), "{mode}: {told:#}"),
            code => panic!("{mode}: {code:?} {told:#} {}", text(&output.stderr)),
        }
    }
}

/// Ends a thread's work however the scope is left.
struct Stopper<'a>(&'a AtomicBool);

impl Drop for Stopper<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Changes what no check looks at, on and on, as another program might.
fn write_beside(database: &Path, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(2));
        let Ok(connection) =
            Connection::open_with_flags(database, rusqlite::OpenFlags::SQLITE_OPEN_READ_WRITE)
        else {
            continue;
        };
        // It fails while the database is being made and when it is too busy.
        let _ = connection.busy_timeout(Duration::from_secs(1));
        for _ in 0..20 {
            let _ = connection
                .execute("UPDATE account SET holder = holder || '.' WHERE id = 1 + abs(random()) % 100", []);
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}
