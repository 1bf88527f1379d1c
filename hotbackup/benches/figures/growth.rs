//! How memory and time grow with what is copied, on tmpfs. Memory is that of a process of its own.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use crate::measure::{Done, Figure, Target, interleave, is_small, note, rounds, scaled};
use crate::page;
use crate::place::{Place, backup, make_file, make_files, run, seconds};

const MIB: f64 = (1 << 20) as f64;

/// The most memory that a process takes for a backup, beyond what it had before.
pub fn memory() -> Done {
    let place = Place::tmpfs()?;
    let sparse = place.directory("sparse")?;
    make_file(&sparse.join("file"), scaled(100 << 20, 4 << 20), 1024)?;
    let taken = memory_of(&place, &sparse)?.iter().map(|bytes| bytes / MIB).collect();
    note(Figure::alone("memory", "100 GiB sparse file", "MiB", taken).target(Target::WorstAtMost(32.0)))?;
    let (many, count) = (place.directory("many")?, scaled(1_000_000, 2_000));
    make_files(&many, count, |_| 64)?;
    let taken = memory_of(&place, &many)?.iter().map(|bytes| bytes / count as f64).collect();
    let figure = Figure::alone("memory", "1,000,000 files", "B/file", taken);
    note(figure.target(Target::WorstAtMost(256.0)))
}

fn memory_of(place: &Place, source: &Path) -> Done<Vec<f64>> {
    let once = || -> Done<f64> {
        let to = place.destination()?;
        let program = std::env::current_exe()?;
        let text = run(Command::new(program).arg(CHILD).arg(source).arg(to.path()))?;
        Ok(text.trim().parse()?)
    };
    (0..rounds()).map(|_| once()).collect()
}

const CHILD: &str = "--memory-of-a-backup";

/// Makes a backup and prints what memory it took, if that is what this process was started for.
pub fn child() -> Option<ExitCode> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [name, source, destination] = arguments.as_slice() else { return None };
    if name != CHILD {
        return None;
    }
    let work = || -> Done {
        let before = from_status("VmRSS:")?;
        backup(Path::new(source), Path::new(destination))?;
        page::print(&format!("{}\n", from_status("VmHWM:")? - before));
        Ok(())
    };
    Some(match work() {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            page::complain("a backup", problem);
            ExitCode::FAILURE
        }
    })
}

/// A line of this process's status, in bytes.
fn from_status(name: &str) -> Done<f64> {
    let text = fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)).ok_or("no such line")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? * 1024.0)
}

/// Time per GiB of a sparse file (16 MiB of data in each), and of a dense one on the disk, and per file: each against that
/// of the size before. What is linear stays as it is.
pub fn growth() -> Done {
    let (memory, disk) = (Place::tmpfs()?, Place::disk()?);
    let file =
        |spacing: u64| move |at: &Path, gib: u64| make_file(&at.join("file"), (gib << 30) / spacing, spacing);
    steps(&memory, "GiB, sparse", &[1, 10, 100], file(64))?;
    steps(&disk, "GiB, dense", if is_small() { &[1] } else { &[1, 10] }, file(1))?;
    let counts: &[u64] = if is_small() { &[1_000, 10_000] } else { &[1_000, 10_000, 100_000, 1_000_000] };
    steps(&memory, "files", counts, |at, count| make_files(at, count, |_| 64))
}

/// The figure of a size is the time by that size; its other side is that of the size before.
fn steps(place: &Place, unit: &str, sizes: &[u64], make: impl Fn(&Path, u64) -> Done) -> Done {
    let mut sides = Vec::new();
    for &size in sizes {
        let source = place.directory(&format!("{size} {unit}"))?;
        make(&source, size)?;
        sides.push(move || -> Done<f64> {
            let to = place.destination()?;
            Ok(seconds(|| backup(&source, to.path()))? * 1e3 / size as f64)
        });
    }
    let mut turns: Vec<&mut dyn FnMut() -> Done<f64>> = Vec::new();
    for side in &mut sides {
        turns.push(side);
    }
    let seen = interleave(&mut turns)?;
    for (number, &size) in sizes.iter().enumerate() {
        let what = format!("{size} {unit}");
        let figure = match number.checked_sub(1) {
            None => Figure::alone("growth", what, "ms each", seen[0].clone()),
            Some(before) => {
                let other = format!("{} {unit}", sizes[before]);
                Figure::new("growth", what, "ms each", seen[number].clone(), (&other, &seen[before]))
                    .target(Target::RatioAtMost(1.2))
            }
        };
        note(figure)?;
    }
    Ok(())
}
