//! Threads that change the sources of a session, and the random settings that a seed stands for.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use hotbackup::{Backup, KeepFree, Throttle};

use super::model::{Entry, Model};
use super::ops::{self, Op, Roots, Shape, Table};
use super::rng::Rng;
use super::tree::{Compare, Tree};
use super::{Scratch, calls};

const EXCEPT_ALLOCATION: Compare = Compare { times: true, allocation: false };

/// What a seed stands for.
#[derive(Debug)]
pub struct Mix {
    pub seed: u64,
    pub threads: usize,
    pub copiers: usize,
    pub pairs: usize,
    pub in_memory: bool,
    pub throttle: Throttle,
    pub max_lag: Option<u64>,
    /// All threads work with one table of open files.
    pub shared_table: bool,
    /// Microseconds between the operations of a thread.
    pub pause: u64,
    /// Operations that furnish the sources.
    pub furniture: u64,
    pub shape: Shape,
}

impl Mix {
    pub fn of(seed: u64, exotic: bool) -> Mix {
        let mut rng = Rng::new(seed);
        let pairs = if rng.one_in(4) { 2 } else { 1 };
        Mix {
            seed,
            threads: 2 + rng.below(7) as usize,
            copiers: 1 + rng.below(3) as usize,
            pairs,
            in_memory: !rng.one_in(3),
            throttle: match rng.below(4) {
                0 => Throttle::bytes_per_sec(10 << 20),
                1 => Throttle::bytes_per_sec(100 << 20),
                _ => Throttle::UNLIMITED,
            },
            max_lag: *rng.pick(&[None, None, Some(0), Some(64 << 10)]),
            shared_table: rng.one_in(2),
            pause: *rng.pick(&[0, 0, 20, 200]),
            furniture: 100 + rng.below(200),
            shape: Shape {
                roots: pairs,
                exotic,
                data: *rng.pick(&[30, 50, 50, 80]),
                depth: 1 + rng.below(3),
                span: *rng.pick(&[20_000, 200_000, 200_000, 1_000_000]),
                changes_owners: calls::effective_ids().0 == 0,
                native: seed % 40 == 7,
                rings: true,
            },
        }
    }

    /// A backup of every source to its destination, with these settings and no reserve.
    pub fn backup<'a>(&self, sources: &[PathBuf], destinations: &[PathBuf]) -> Backup<'a> {
        let mut backup = Backup::new()
            .throttle(self.throttle)
            .threads(self.copiers)
            .keep_free(KeepFree::Bytes(0))
            // The tests share a small machine with others.
            .max_stall(Duration::from_secs(20));
        if let Some(lag) = self.max_lag {
            backup = backup.max_lag(lag);
        }
        for (source, destination) in sources.iter().zip(destinations) {
            backup = backup.pair(source, destination);
        }
        backup
    }

    pub fn directories(&self, scratch: &Scratch) -> (Vec<PathBuf>, Vec<PathBuf>) {
        let numbered = |name: &str| (0..self.pairs).map(|i| scratch.dir(&format!("{name}{i}"))).collect();
        (numbered("source"), numbered("destination"))
    }
}

/// Stops threads between two operations and keeps them there.
#[derive(Default)]
pub struct Parking {
    wanted: AtomicBool,
    stopped: AtomicBool,
    here: Mutex<usize>,
    changed: Condvar,
}

impl Parking {
    /// Stays while the threads are to be parked; false when they are to end.
    pub fn pass(&self) -> bool {
        if self.wanted.load(Ordering::SeqCst) {
            let mut here = self.here.lock().expect("no panic while parking");
            *here += 1;
            self.changed.notify_all();
            while self.wanted.load(Ordering::SeqCst) {
                here = self.changed.wait(here).expect("no panic while parking");
            }
            *here -= 1;
        }
        !self.stopped.load(Ordering::SeqCst)
    }

    /// Returns when `all` threads are parked.
    pub fn park(&self, all: usize) {
        self.wanted.store(true, Ordering::SeqCst);
        let mut here = self.here.lock().expect("no panic while parking");
        while *here < all {
            here = self.changed.wait(here).expect("no panic while parking");
        }
    }

    pub fn release(&self) {
        let _here = self.here.lock().expect("no panic while parking");
        self.wanted.store(false, Ordering::SeqCst);
        self.changed.notify_all();
    }

    pub fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.release();
    }
}

fn rest(micros: u64, rng: &mut Rng) {
    if micros > 0 && rng.one_in(3) {
        std::thread::sleep(Duration::from_micros(rng.below(2 * micros)));
    }
}

/// Gives the sources something to hold.
pub fn furnish(mix: &Mix, roots: &Roots) {
    let table = Table::default();
    let mut rng = Rng::new(mix.seed ^ 0xF0);
    for id in 0..mix.furniture {
        let op = mix.shape.furnish(&mut rng, id);
        let _ = ops::apply(&op, roots, &table);
    }
}

/// Threads that carry out random operations without a log, together and on the same names.
pub fn crowd<'scope>(
    scope: &'scope Scope<'scope, '_>,
    mix: &'scope Mix,
    roots: &'scope Roots,
    tables: &'scope [Table],
    parking: &'scope Parking,
    unseen: Option<&'scope Roots>,
) -> Vec<ScopedJoinHandle<'scope, ()>> {
    let thread = |number: usize| {
        move || {
            let mut rng = Rng::new(mix.seed << 8 | number as u64);
            let mut id = (number as u64) << 32;
            while parking.pass() {
                id += 1;
                let op = mix.shape.op(&mut rng, id);
                let table = &tables[number % tables.len()];
                match unseen {
                    // One thread works behind the engine's back, on files that nobody else touches.
                    Some(own) if number == 0 => {
                        let _ = calls::unseen(|| ops::apply(&op, own, table));
                        std::thread::sleep(Duration::from_micros(rng.below(2000)));
                    }
                    _ => drop(ops::apply(&op, roots, table)),
                }
                rest(mix.pause, &mut rng);
            }
        }
    };
    (0..mix.threads).map(|number| scope.spawn(thread(number))).collect()
}

/// Directories whose changes one log holds, in the order in which they took effect.
pub struct Lane {
    pub roots: Roots,
    paths: Vec<PathBuf>,
    table: Table,
    shape: Shape,
    log: Mutex<Vec<Entry>>,
    times: bool,
    start: Mutex<Option<Model>>,
}

/// The order of everything in all lanes.
pub static CLOCK: AtomicU64 = AtomicU64::new(1);

pub fn tick() -> u64 {
    CLOCK.fetch_add(1, Ordering::SeqCst)
}

impl Lane {
    /// A lane of these directories, which are empty.
    pub fn new(paths: Vec<PathBuf>, shape: Shape, times: bool) -> Lane {
        Lane {
            roots: Roots::open(&paths),
            start: Mutex::new(Some(Model::of(&paths))),
            table: Table::default(),
            shape: Shape { roots: paths.len(), ..shape },
            log: Mutex::default(),
            times,
            paths,
        }
    }

    /// One random operation, done and logged under the lane's lock.
    pub fn step(&self, rng: &mut Rng, id: u64, furnish: bool) {
        let op = if furnish { self.shape.furnish(rng, id) } else { self.shape.op(rng, id) };
        let mut log = self.log.lock().expect("no panic in a lane");
        let begun = tick();
        let result = ops::apply(&op, &self.roots, &self.table);
        let ended = tick();
        let result = match result {
            Ok(result) => result,
            Err(errno) if matches!(op, Op::Fallocate { .. }) && errno != libc::EBADF => -1,
            Err(_) => return,
        };
        let mut times = Vec::new();
        if self.times {
            let touched = op.touched().into_iter();
            times.extend(touched.filter_map(|t| t.mtime(&self.roots, &self.table).map(|mtime| (t, mtime))));
        }
        log.push(Entry { op, result, times, begun, ended });
    }

    pub fn len(&self) -> usize {
        self.log.lock().expect("no panic in a lane").len()
    }

    /// The whole log and the model that it begins from.
    pub fn into_history(self) -> History {
        let start = self.start.lock().expect("no panic").take();
        History {
            paths: self.paths.clone(),
            log: std::mem::take(&mut *self.log.lock().expect("no panic in a lane")),
            start: start.expect("taken once"),
        }
    }
}

/// The prefixes of a log that equal the copy, as the times between which the cut then was.
pub type Windows = Vec<(u64, u64)>;

/// A log and what it began from.
pub struct History {
    pub paths: Vec<PathBuf>,
    pub log: Vec<Entry>,
    pub start: Model,
}

impl History {
    /// Calls `look` with the model after the first `low` to `high` operations, until it has seen enough.
    pub fn replay(&self, (low, high): (usize, usize), mut look: impl FnMut(usize, &Model) -> bool) {
        let mut model = self.start.clone();
        for count in 0..=high.min(self.log.len()) {
            if count > 0
                && let Err(e) = model.apply(&self.log[count - 1])
            {
                panic!("the log cannot be replayed: {e}: {:?}", self.log[count - 1]);
            }
            if count >= low && !look(count, &model) {
                return;
            }
        }
    }

    /// The prefixes of `range` operations that `found` equals.
    pub fn windows(&self, range: (usize, usize), found: &[Tree]) -> Windows {
        let mut windows = Windows::new();
        self.replay(range, |count, model| {
            if found.iter().enumerate().all(|(root, found)| model.equals(root, found)) {
                let after = count.checked_sub(1).map_or(0, |last| self.log[last].begun);
                let before = self.log.get(count).map_or(u64::MAX, |next| next.ended);
                windows.push((after, before));
            }
            true
        });
        windows
    }

    /// What is different from the prefix that is nearest to `found`.
    pub fn nearest(&self, range: (usize, usize), found: &[Tree]) -> Vec<String> {
        let mut nearest = Vec::new();
        let mut least = 100;
        let begun = Instant::now();
        self.replay(range, |count, model| {
            let mut differences = Vec::new();
            for (root, found) in found.iter().enumerate() {
                differences.extend(model.tree(root).differences(found, EXCEPT_ALLOCATION, least));
            }
            if differences.len() < least {
                least = differences.len();
                differences.push(format!("(nearest: {count} of {range:?} operations)"));
                let around = self.log[count.saturating_sub(3)..(count + 3).min(self.log.len())].iter();
                differences.extend(around.map(|entry| format!("   {entry:?}")));
                nearest = differences;
            }
            begun.elapsed() < Duration::from_secs(20)
        });
        nearest
    }
}

/// Threads of one lane.
pub fn queue<'scope>(
    scope: &'scope Scope<'scope, '_>,
    mix: &'scope Mix,
    lane: &'scope Lane,
    number: usize,
    threads: usize,
    stop: &'scope AtomicBool,
) {
    for thread in 0..threads {
        let number = (number * 16 + thread) as u64;
        scope.spawn(move || {
            let mut rng = Rng::new(mix.seed << 16 | number);
            let mut id = number << 32;
            while !stop.load(Ordering::Relaxed) {
                id += 1;
                lane.step(&mut rng, id, false);
                rest(mix.pause, &mut rng);
            }
        });
    }
}

/// A path of a root relative to the source that it lies in.
pub fn relative(root: &Path, source: &Path) -> String {
    let below = root.strip_prefix(source).expect("roots lie in sources");
    below.to_string_lossy().into_owned()
}
