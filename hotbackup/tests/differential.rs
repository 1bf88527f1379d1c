//! Sessions under random changes, compared with what the sources were.
//!
//! Method: threads carry out a seeded mix of all captured operations in small trees whose names collide, while a
//! session runs.
//! - *parked*: at `before_cut` all threads are stopped, and the copy must equal the source in everything;
//! - *released*: at `before_cut` they are stopped, the source is read, at `after_cut` they go on; the copy must equal what
//!   was read;
//! - *through the cut*: nobody stops. Operations are logged in the order in which they took effect, one log for all threads
//!   or several with their own locks. The copy must equal the replay of a prefix of every log on a model in memory, the
//!   prefixes must belong to one instant, and that instant lies between `before_cut` and `after_cut`;
//! - *unseen*: one thread changes files of its own behind the engine's back; the copy must be right or the backup fail.
//!
//! `HOTBACKUP_SESSIONS` sets how many sessions each test runs, `HOTBACKUP_SEED` repeats one seed. The seed determines the
//! operations of each thread; the order of the threads is the machine's.

mod common;

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::load::{self, Lane, Mix, Parking, Windows};
use common::ops::{Roots, Table};
use common::rng::Rng;
use common::tree::{Compare, Tree};
use common::{Scratch, Watchdog};

const EVERYTHING: Compare = Compare { times: true, allocation: true };

const EXCEPT_ALLOCATION: Compare = Compare { times: true, allocation: false };

/// Says how a session failed, and how to see it again.
fn report(test: &str, mix: &Mix, what: &str) -> ! {
    panic!(
        "{what}\nwith {mix:#?}\nagain: HOTBACKUP_SEED={} cargo test -p hotbackup --test differential {test}",
        mix.seed
    );
}

/// The backup must agree with its own manifest.
fn verified(test: &str, mix: &Mix, destinations: &[PathBuf]) {
    let wrong = common::unverified(&destinations[0]);
    if !wrong.is_empty() {
        report(test, mix, &format!("the backup does not verify: {wrong:#?}"));
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Variant {
    Parked,
    Released,
    Unseen,
}

/// One session in which all threads stop at `before_cut`.
fn stopped(seed: u64, variant: Variant, test: &str) {
    let mix = Mix::of(seed, true);
    let _watchdog = Watchdog::new(format!("{test}, seed {seed}"), Duration::from_secs(120));
    let scratch = Scratch::new(mix.in_memory);
    let (sources, destinations) = mix.directories(&scratch);
    let roots = Roots::open(&sources);
    load::furnish(&mix, &roots);
    let tables: Vec<Table> = match (mix.shared_table, variant) {
        // Threads share descriptors, and so also close them under each other's hands.
        (true, Variant::Parked | Variant::Released) => vec![Table::default()],
        _ => (0..mix.threads).map(|_| Table::default()).collect(),
    };
    let parking = Parking::default();
    let own: Vec<_> = sources.iter().map(|source| source.join("unseen")).collect();
    let unseen = (variant == Variant::Unseen).then(|| {
        own.iter().for_each(|path| std::fs::create_dir(path).expect("a directory"));
        Roots::open(&own)
    });
    let at_cut = Mutex::new(None);
    let read = || -> Vec<Tree> {
        let read = |source: &PathBuf| Tree::read(source).expect("the source can be read");
        sources.iter().map(read).collect()
    };
    let outcome = std::thread::scope(|scope| {
        load::crowd(scope, &mix, &roots, &tables, &parking, unseen.as_ref());
        let backup = mix.backup(&sources, &destinations).before_cut(|| {
            parking.park(mix.threads);
            *at_cut.lock().expect("no panic") = Some(read());
        });
        let backup = backup.after_cut(|| {
            if variant == Variant::Released {
                parking.release();
            }
        });
        let outcome = backup.start().and_then(hotbackup::Session::finish);
        if outcome.is_ok() && variant != Variant::Released {
            *at_cut.lock().expect("no panic") = Some(read());
        }
        parking.stop();
        outcome
    });
    let session = match outcome {
        Ok(session) => session,
        Err(hotbackup::Error::Unseen { .. }) if variant == Variant::Unseen => return,
        Err(e) => report(test, &mix, &format!("the backup failed: {e}")),
    };
    if variant != Variant::Unseen && !session.unseen.is_empty() {
        report(test, &mix, &format!("taken for unseen changes: {:?}", session.unseen));
    }
    verified(test, &mix, &destinations);
    let expected = at_cut.into_inner().expect("no panic").expect("before_cut ran");
    for (number, (expected, destination)) in expected.iter().zip(&destinations).enumerate() {
        let found = Tree::read_destination(destination).expect("the destination can be read");
        let differences = expected.differences(&found, EVERYTHING, 20);
        if !differences.is_empty() {
            let lines = differences.join("\n  ");
            report(test, &mix, &format!("destination {number} differs:\n  {lines}\n{session:?}"));
        }
    }
}

#[test]
fn a_copy_equals_the_source_that_stands_still() {
    let _alone = common::alone();
    for seed in common::seeds(50) {
        stopped(seed, Variant::Parked, "stands_still");
    }
}

#[test]
fn a_copy_equals_the_source_as_it_was_at_the_cut() {
    let _alone = common::alone();
    for seed in common::seeds(60) {
        stopped(seed, Variant::Released, "as_it_was_at_the_cut");
    }
}

#[test]
fn what_nobody_saw_is_copied_or_fails_the_backup() {
    let _alone = common::alone();
    for seed in common::seeds(30) {
        stopped(seed, Variant::Unseen, "nobody_saw");
    }
}

/// How the sources are divided among logs.
#[derive(Clone, Copy, Debug)]
enum Lanes {
    /// One log over all sources: renames and links go anywhere.
    One,
    /// Every thread has its own directory and its own log.
    Each,
}

/// An instant that lies in a window of every lane.
fn common_instant(lanes: &[Windows]) -> Option<u64> {
    let starts = lanes.iter().flatten().map(|&(after, _)| after);
    let is_in = |lane: &Windows, at| lane.iter().any(|&(after, before)| after <= at && at < before);
    let mut starts: Vec<u64> = starts.collect();
    starts.sort_unstable();
    starts.into_iter().find(|&at| lanes.iter().all(|lane| is_in(lane, at)))
}

/// One session during which nobody stops.
fn through(seed: u64, how: Lanes, test: &str) {
    let mix = Mix::of(seed, false);
    let _watchdog = Watchdog::new(format!("{test}, seed {seed}"), Duration::from_secs(120));
    let scratch = Scratch::new(mix.in_memory);
    let (sources, destinations) = mix.directories(&scratch);
    let with_times = seed.is_multiple_of(2);
    // Where each lane's roots lie: number of the source, path below it.
    let places: Vec<Vec<(usize, String)>> = match how {
        Lanes::One => vec![(0..mix.pairs).map(|i| (i, String::new())).collect()],
        Lanes::Each => (0..mix.threads).map(|i| vec![(i % mix.pairs, format!("lane{i}"))]).collect(),
    };
    let make = |place: &(usize, String)| {
        let path = sources[place.0].join(&place.1);
        std::fs::create_dir_all(&path).expect("a lane's directory");
        path
    };
    let make = |places: &Vec<_>| Lane::new(places.iter().map(make).collect(), mix.shape, with_times);
    let lanes: Vec<Lane> = places.iter().map(make).collect();
    for (number, lane) in lanes.iter().enumerate() {
        let mut rng = Rng::new(seed << 4 | number as u64);
        for id in 0..mix.furniture / lanes.len() as u64 {
            lane.step(&mut rng, id, true);
        }
    }
    let stop = AtomicBool::new(false);
    let lengths = || -> Vec<usize> { lanes.iter().map(Lane::len).collect() };
    let (low, high) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let outcome = std::thread::scope(|scope| {
        let per_lane = if lanes.len() == 1 { mix.threads } else { 1 };
        for (number, lane) in lanes.iter().enumerate() {
            load::queue(scope, &mix, lane, number, per_lane, &stop);
        }
        let backup = mix.backup(&sources, &destinations);
        let backup = backup.before_cut(|| *low.lock().expect("no panic") = lengths());
        let backup = backup.after_cut(|| *high.lock().expect("no panic") = lengths());
        let outcome = backup.start().and_then(hotbackup::Session::finish);
        stop.store(true, Ordering::Relaxed);
        outcome
    });
    let session = match outcome {
        Ok(session) if session.unseen.is_empty() => session,
        Ok(session) => report(test, &mix, &format!("taken for unseen changes: {:?}", session.unseen)),
        Err(e) => report(test, &mix, &format!("the backup failed: {e}")),
    };
    verified(test, &mix, &destinations);
    let read = |path: &PathBuf| Tree::read_destination(path).expect("the destination can be read");
    let copies: Vec<Tree> = destinations.iter().map(read).collect();
    let (low, high) = (low.into_inner().expect("no panic"), high.into_inner().expect("no panic"));
    let mut all = Vec::new();
    for (number, (lane, places)) in lanes.into_iter().zip(&places).enumerate() {
        let found: Vec<Tree> = places.iter().map(|(copy, base)| copies[*copy].below(base)).collect();
        let history = lane.into_history();
        let range = (low[number], high[number]);
        let windows = history.windows(range, &found);
        if windows.is_empty() {
            let lines = history.nearest((0, history.log.len()), &found).join("\n  ");
            let what = format!(
                "lane {number} is of no instant in the cut, which had {range:?} operations:\n  {lines}\n{session:?}"
            );
            report(test, &mix, &what);
        }
        all.push(windows);
    }
    if common_instant(&all).is_none() {
        report(test, &mix, &format!("the lanes show different instants: {all:?}"));
    }
}

#[test]
fn a_copy_is_a_prefix_of_what_happened() {
    let _alone = common::alone();
    for seed in common::seeds(40) {
        through(seed, Lanes::One, "prefix_of_what_happened");
    }
}

#[test]
fn a_copy_shows_one_instant_of_all_threads() {
    let _alone = common::alone();
    for seed in common::seeds(30) {
        through(seed, Lanes::Each, "one_instant_of_all_threads");
    }
}

/// The judge of the other tests: without it they could agree on a wrong thing.
#[test]
fn the_model_makes_of_a_log_what_the_kernel_made_of_it() {
    for seed in 1..=20 {
        let mix = Mix::of(seed, false);
        let scratch = Scratch::new(mix.in_memory);
        let (sources, _) = mix.directories(&scratch);
        let lane = Lane::new(sources, mix.shape, seed.is_multiple_of(2));
        let mut rng = Rng::new(seed);
        for id in 0..1500 {
            lane.step(&mut rng, id, id < mix.furniture);
        }
        let history = lane.into_history();
        let all = history.log.len();
        let mut last = None;
        history.replay((all, all), |_, model| {
            last = Some(model.clone());
            true
        });
        let model = last.expect("replayed");
        for (number, path) in history.paths.iter().enumerate() {
            let found = Tree::read(path).expect("the tree can be read");
            let differences = model.tree(number).differences(&found, EXCEPT_ALLOCATION, 20);
            if !differences.is_empty() {
                report("the_model", &mix, &differences.join("\n"));
            }
            assert!(model.equals(number, &found), "the two ways to compare disagree");
        }
    }
}
