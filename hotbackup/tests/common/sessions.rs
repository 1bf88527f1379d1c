//! Sessions under random changes, and what their copies are compared with; the test programs say who takes the backups.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::load::{self, Lane, Mix, Parking, Windows};
use super::ops::{Roots, Table};
use super::rng::Rng;
use super::tree::{Compare, Tree};
use super::{Scratch, Watchdog, unverified};

const EVERYTHING: Compare = Compare { times: true, allocation: true };

/// What is called at the cut.
pub type AtCut<'a> = &'a mut (dyn FnMut() + Send);

/// What came of a session.
#[derive(Debug)]
pub enum Outcome {
    /// It is complete; so many files were found changed unseen. The text is for people.
    Done(usize, String),
    /// It failed because of an unseen change.
    Unseen(String),
    /// It failed otherwise.
    Failed(String),
}

/// Who takes the backups of a test program.
pub trait Taker {
    /// The arguments of cargo that name the program.
    const PROGRAM: &str;
    /// Whether it can follow rings of io_uring that the program enters by hand: their set-up has to have been seen.
    const RINGS: bool;

    /// Takes a backup of every source while threads change them.
    fn back_up(
        &self,
        mix: &Mix,
        from: &[PathBuf],
        to: &[PathBuf],
        before_cut: AtCut<'_>,
        after_cut: AtCut<'_>,
    ) -> Outcome;
}

/// Says how a session failed, and how to see it again.
pub fn report<T: Taker>(_: &T, test: &str, mix: &Mix, what: &str) -> ! {
    panic!("{what}\nwith {mix:#?}\nagain: HOTBACKUP_SEED={} cargo test {} {test}", mix.seed, T::PROGRAM);
}

/// The backup must agree with its own manifest.
fn verified(taker: &impl Taker, test: &str, mix: &Mix, destinations: &[PathBuf]) {
    let wrong = unverified(&destinations[0]);
    if !wrong.is_empty() {
        report(taker, test, mix, &format!("the backup does not verify: {wrong:#?}"));
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Variant {
    /// The threads stop at `before_cut` for good.
    Parked,
    /// They go on at `after_cut`.
    Released,
    /// As `Parked`, and one thread works behind the engine's back.
    Unseen,
}

/// One session in which all threads stop at `before_cut`.
pub fn stopped<T: Taker>(taker: &T, seed: u64, variant: Variant, test: &str) {
    let mut mix = Mix::of(seed, true);
    mix.shape.rings = T::RINGS;
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
        let mut before_cut = || {
            parking.park(mix.threads);
            *at_cut.lock().expect("no panic") = Some(read());
        };
        let mut after_cut = || {
            if variant == Variant::Released {
                parking.release();
            }
        };
        let outcome = taker.back_up(&mix, &sources, &destinations, &mut before_cut, &mut after_cut);
        if matches!(outcome, Outcome::Done(..)) && variant != Variant::Released {
            *at_cut.lock().expect("no panic") = Some(read());
        }
        parking.stop();
        outcome
    });
    let session = match outcome {
        Outcome::Done(unseen, session) if unseen == 0 || variant == Variant::Unseen => session,
        Outcome::Unseen(_) if variant == Variant::Unseen => return,
        outcome => report(taker, test, &mix, &format!("{outcome:?}")),
    };
    verified(taker, test, &mix, &destinations);
    let expected = at_cut.into_inner().expect("no panic").expect("before_cut ran");
    for (number, (expected, destination)) in expected.iter().zip(&destinations).enumerate() {
        let found = Tree::read_destination(destination).expect("the destination can be read");
        let differences = expected.differences(&found, EVERYTHING, 20);
        if !differences.is_empty() {
            let lines = differences.join("\n  ");
            report(taker, test, &mix, &format!("destination {number} differs:\n  {lines}\n{session}"));
        }
    }
}

/// How the sources are divided among logs.
#[derive(Clone, Copy, Debug)]
pub enum Lanes {
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
pub fn through<T: Taker>(taker: &T, seed: u64, how: Lanes, test: &str) {
    let mut mix = Mix::of(seed, false);
    mix.shape.rings = T::RINGS;
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
        let mut before_cut = || *low.lock().expect("no panic") = lengths();
        let mut after_cut = || *high.lock().expect("no panic") = lengths();
        let outcome = taker.back_up(&mix, &sources, &destinations, &mut before_cut, &mut after_cut);
        stop.store(true, Ordering::Relaxed);
        outcome
    });
    let session = match outcome {
        Outcome::Done(0, session) => session,
        outcome => report(taker, test, &mix, &format!("{outcome:?}")),
    };
    verified(taker, test, &mix, &destinations);
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
                "lane {number} is of no instant in the cut, which had {range:?} operations:\n  {lines}\n{session}"
            );
            report(taker, test, &mix, &what);
        }
        all.push(windows);
    }
    if common_instant(&all).is_none() {
        report(taker, test, &mix, &format!("the lanes show different instants: {all:?}"));
    }
}
