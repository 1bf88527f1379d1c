//! How fast trees are copied, against `cp -a` and rsync. Sources are in the page cache; both sides end synced.

use std::cell::RefCell;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hotbackup::{ManifestPlace, Session, Throttle};

use crate::measure::{Done, Figure, Spread, Target, interleave, note, scaled};
use crate::place::{Place, backup, copy, make_file, make_files, ours, seconds};
use crate::writing::Load;

const CP: &[&str] = &["cp", "-a"];
/// Also what has holes keeps them, as with the others.
const RSYNC: &[&str] = &["rsync", "-aS"];
const GIB: u64 = 1 << 30;

/// One large file.
pub fn large() -> Done {
    for place in Place::both()? {
        let source = place.directory("source")?;
        make_file(&source.join("file"), scaled(4 * GIB, 64 << 20), 1)?;
        against("large", &format!("4 GiB file, {}", place.name), &place, &source, 1.0)?;
    }
    Ok(())
}

/// Many small files: 4 to 16 KiB.
pub fn small() -> Done {
    for place in Place::both()? {
        let source = place.directory("source")?;
        make_files(&source, scaled(20_000, 500), |number| 4096 + number * 2_654_435_761 % 12_289)?;
        against("small", &format!("20,000 files, {}", place.name), &place, &source, 0.6)?;
    }
    Ok(())
}

/// One sparse file, and what its copy takes of the filesystem.
pub fn sparse() -> Done {
    for place in Place::both()? {
        let source = place.directory("source")?;
        make_file(&source.join("file"), scaled(64 << 20, 4 << 20), 128)?;
        against("sparse", &format!("8 GiB with 64 MiB of data, {}", place.name), &place, &source, 1.2)?;
        let mib = |path: &Path| -> Done<f64> {
            Ok(fs::metadata(path.join("file"))?.blocks() as f64 * 512.0 / f64::from(1 << 20))
        };
        let destination = place.destination()?;
        backup(&source, destination.path())?;
        let (ours, other) = (vec![mib(destination.path())?], vec![mib(&source)?]);
        let figure =
            Figure::new("sparse", format!("allocated, {}", place.name), "MiB", ours, ("source", &other));
        note(figure.target(Target::RatioAtMost(1.0)).target(Target::RatioAtLeast(1.0)))?;
    }
    Ok(())
}

/// Seconds of a backup against those of the two programs; the target is for the first.
fn against(row: &str, what: &str, place: &Place, source: &Path, target: f64) -> Done {
    let by = |program: &[&str]| -> Done<f64> {
        let to = place.destination()?;
        seconds(|| copy(program, source, to.path()))
    };
    let mut own = || -> Done<f64> {
        let to = place.destination()?;
        Ok(seconds(|| backup(source, to.path()))?)
    };
    let seen = interleave(&mut [&mut own, &mut || by(CP), &mut || by(RSYNC)])?;
    let figure = Figure::new(row, what, "s", seen[0].clone(), ("cp -a; sync -f", &seen[1]));
    note(figure.target(Target::RatioAtMost(target)))?;
    note(Figure::new(row, what, "s", seen[0].clone(), ("rsync -aS; sync -f", &seen[2])))
}

/// Blocks shared with the source, while a program writes 1,000 times a second.
pub fn shared() -> Done {
    for filesystem in ["xfs", "btrfs"] {
        let place = Place::mount(filesystem, scaled(12 * GIB, GIB))?;
        let source = place.directory("source")?;
        make_file(&source.join("file"), scaled(4 * GIB, 64 << 20), 1)?;
        let load = Load { source: &source, writers: 1, pause: Duration::from_millis(1) };
        let freezes = RefCell::new(Vec::new());
        let own = |manifest| -> Done<f64> {
            let to = place.destination()?;
            let shared = || -> hotbackup::Result<()> {
                let backup = ours(&source, to.path()).share_blocks(true).manifest(manifest);
                let report = backup.start().and_then(Session::finish)?;
                freezes.borrow_mut().push(report.freeze.as_secs_f64() * 1e3);
                Ok(())
            };
            Ok(load.during(|| Ok(seconds(shared)?))?.1)
        };
        let mut reflink = || -> Done<f64> {
            let to = place.destination()?;
            let cp = || copy(&["cp", "-a", "--reflink=always"], &source, to.path());
            Ok(load.during(|| seconds(cp))?.1)
        };
        let seen = interleave(&mut [
            &mut || own(ManifestPlace::FirstDestination),
            &mut || own(ManifestPlace::None),
            &mut reflink,
        ])?;
        let what = format!("4 GiB file, 1,000 writes/s, {filesystem}");
        // One turn of each does not count.
        let freezes = Figure::alone("shared", format!("freeze, {what}"), "ms", freezes.take().split_off(2));
        note(freezes.target(Target::WorstAtMost(10.0)))?;
        let cp = ("cp -a --reflink; sync -f", &seen[2][..]);
        note(Figure::new("shared", format!("{what}, without a manifest"), "s", seen[1].clone(), cp))?;
        note(Figure::new("shared", what, "s", seen[0].clone(), cp))?;
    }
    Ok(())
}

/// How far off the rate of a throttled session is, in the worst window of one second.
pub fn throttle() -> Done {
    let place = Place::tmpfs()?;
    for rate in [1_000_000, 10_000_000, 100_000_000, 1_000_000_000] {
        let source = place.directory(&format!("source-{rate}"))?;
        make_file(&source.join("file"), (rate * scaled(6, 2)).min(scaled(4, 1) * GIB), 1)?;
        let mut once = || -> Done<f64> {
            let to = place.destination()?;
            let throttle = Throttle::bytes_per_sec(rate);
            let written = written_during(|| {
                ours(&source, to.path()).throttle(throttle).start().and_then(Session::finish)
            })?;
            Ok(worst_window(&written, rate as f64))
        };
        let off = interleave(&mut [&mut once])?.remove(0);
        fs::remove_dir_all(&source)?;
        let what = format!("{} MB/s asked for", rate / 1_000_000);
        note(Figure::alone("throttle", what, "% off", off).target(Target::WorstAtMost(5.0)))?;
    }
    Ok(())
}

/// What this process has passed to the kernel to write, in time: seconds and bytes.
type Written = Vec<(f64, f64)>;

/// Looks every 20 ms.
fn written_during<T>(work: impl FnOnce() -> hotbackup::Result<T>) -> Done<Written> {
    let done = AtomicBool::new(false);
    let begun = Instant::now();
    let look = || {
        let text = fs::read_to_string("/proc/self/io").unwrap_or_default();
        let bytes = text.lines().find_map(|line| line.strip_prefix("wchar: "));
        (begun.elapsed().as_secs_f64(), bytes.and_then(|bytes| bytes.parse().ok()).unwrap_or(0.0))
    };
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut seen = Vec::new();
            while !done.load(Ordering::Relaxed) {
                seen.push(look());
                std::thread::sleep(Duration::from_millis(20));
            }
            seen
        });
        let result = work();
        done.store(true, Ordering::Relaxed);
        let seen = watch.join().map_err(|_| "the watching thread failed")?;
        result?;
        Ok(seen)
    })
}

/// By how many percent of `rate` the worst second between the first byte and the last is off.
fn worst_window(written: &Written, rate: f64) -> f64 {
    let (first, last) = (written.first().map_or(0.0, |w| w.1), written.last().map_or(0.0, |w| w.1));
    // Without the manifest and the like at both ends.
    let copying = |&&(_, bytes): &&(f64, f64)| bytes > first + 65_536.0 && bytes < last - 65_536.0;
    let within: Vec<(f64, f64)> = written.iter().filter(copying).copied().collect();
    let off = within.iter().filter_map(|&(time, bytes)| {
        let &(end, more) = within.iter().find(|&&(later, _)| later >= time + 1.0)?;
        Some(((more - bytes) / (end - time) / rate - 1.0).abs() * 100.0)
    });
    Spread::of(&off.collect::<Vec<_>>()).max
}
