//! What the preloaded library adds to the calls of a C program while no session runs.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::measure::{Done, Figure, Target, interleave_often, note, scaled};
use crate::place::{Place, run};

/// The call, its bytes, threads, how often it is made, and what it may cost more.
type Case = (&'static str, &'static str, &'static str, u64, f64);

const CASES: [Case; 16] = [
    ("pwrite", "16", "1", 200_000, 5.0),
    ("pwrite", "4096", "1", 200_000, 5.0),
    ("write", "16", "1", 200_000, 5.0),
    ("write", "4096", "1", 200_000, 5.0),
    ("pread", "16", "1", 200_000, 5.0),
    ("pread", "4096", "1", 200_000, 5.0),
    ("pwrite", "16", "2", 200_000, 5.0),
    ("pwrite", "4096", "2", 200_000, 5.0),
    ("write", "16", "2", 200_000, 5.0),
    ("write", "4096", "2", 200_000, 5.0),
    ("pread", "16", "2", 200_000, 5.0),
    ("pread", "4096", "2", 200_000, 5.0),
    ("open", "16", "1", 50_000, 30.0),
    ("open", "16", "2", 50_000, 30.0),
    ("create", "16", "1", 20_000, 30.0),
    ("create", "16", "2", 20_000, 30.0),
];

fn name((call, bytes, threads, ..): Case) -> String {
    let call = match call {
        "open" => "open and close".to_owned(),
        "create" => "create, close and unlink".to_owned(),
        _ => format!("{call} of {bytes} B"),
    };
    if threads == "1" { call } else { format!("{call}, {threads} threads") }
}

/// The C program, and the library to preload.
fn programs(place: &Place) -> Done<(PathBuf, PathBuf)> {
    let program = place.path().join("idle");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/figures/idle.c");
    run(Command::new("gcc").args(["-O2", "-pthread", source, "-o"]).arg(&program))?;
    let own = std::env::current_exe()?;
    let library = own.ancestors().nth(2).unwrap_or(Path::new("")).join("libHotBackup.so");
    if !library.exists() {
        return Err(format!("there is no {}; see tests/run", library.display()).into());
    }
    Ok((program, library))
}

/// A library that does nothing but count which calls are under way.
fn wrapper(place: &Place) -> Done<PathBuf> {
    let library = place.path().join("wrapper.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/figures/wrapper.c");
    let options = ["-O2", "-shared", "-fPIC", "-ftls-model=initial-exec", source, "-o"];
    run(Command::new("gcc").args(options).arg(&library))?;
    Ok(library)
}

/// Nanoseconds a call, on tmpfs.
pub fn idle() -> Done {
    let place = Place::tmpfs()?;
    let (program, library) = programs(&place)?;
    let wrapper = wrapper(&place)?;
    for case in CASES {
        let (call, bytes, threads, count, target) = case;
        let side = |preload: &Path| -> Done<f64> {
            let mut command = Command::new(&program);
            command.args([call, bytes, threads, &scaled(count, 2_000).to_string()]).arg(place.path());
            Ok(run(command.env("LD_PRELOAD", preload))?.trim().parse()?)
        };
        let seen = interleave_often(
            5,
            &mut [&mut || side(&library), &mut || side(Path::new("")), &mut || side(&wrapper)],
        )?;
        let figure = Figure::new("idle", name(case), "ns", seen[0].clone(), ("not preloaded", &seen[1]));
        note(figure.target(Target::AddedAtMost(target)))?;
        if call.ends_with("write") || call == "open" {
            let what = format!("{}, an empty wrapper", name(case));
            let figure = Figure::new("idle", what, "ns", seen[2].clone(), ("not preloaded", &seen[1]));
            note(figure.target(Target::AddedAtMost(target)))?;
        }
    }
    Ok(())
}

/// Instructions a call: how many more a run with twice as many calls takes. They are the same in each round.
pub fn instructions() -> Done {
    let place = Place::tmpfs()?;
    let (program, library) = programs(&place)?;
    for case in CASES.into_iter().filter(|&(_, bytes, threads, ..)| (bytes, threads) == ("16", "1")) {
        let per_call = |preload: &Path| -> Done<f64> {
            let all = |count: u64| collected(&program, preload, case.0, count, place.path());
            Ok((all(20_000)? - all(10_000)?) / 10_000.0)
        };
        let (ours, other) = (vec![per_call(&library)?], vec![per_call(Path::new(""))?]);
        let figure = Figure::new("instructions", name(case), "instructions", ours, ("not preloaded", &other));
        // What the issue allows for one call; these are two and three.
        let calls = match case.0 {
            "open" => 2.0,
            "create" => 3.0,
            _ => 1.0,
        };
        note(figure.target(Target::AddedAtMost(40.0 * calls)))?;
    }
    Ok(())
}

/// All instructions that a run takes, as callgrind counts them.
fn collected(program: &Path, preload: &Path, call: &str, count: u64, directory: &Path) -> Done<f64> {
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(program);
    let text =
        run(command.args([call, "16", "1", &count.to_string()]).arg(directory).env("LD_PRELOAD", preload))?;
    let number =
        text.lines().find_map(|line| line.split_once("Collected :")).ok_or("callgrind says no number")?;
    Ok(number.1.trim().parse()?)
}
