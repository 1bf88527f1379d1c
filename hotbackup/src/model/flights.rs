//! A write that goes on behind its call, told of by the kernel, against the engine that waits for it.

use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;

use super::{Block, check, forever};
use crate::flights::{Flights, Name, Target};

const NAME: Name = Name { ring: 1, cookie: 2 };
const TARGET: Target = Target { dev: 3, ino: 4, from: 0, to: 1, late: None };

/// A file, a ring, and whether the file is marked.
struct Scene {
    flights: Flights,
    block: Block,
    /// The kernel's word in the ring: the write has ended.
    ended: AtomicU32,
    marked: AtomicU32,
}

impl Scene {
    /// The write has been submitted; from here on the gate is closed.
    fn new() -> &'static Scene {
        let scene = Scene {
            flights: Flights::new(),
            block: Block::new(),
            ended: AtomicU32::new(0),
            marked: AtomicU32::new(0),
        };
        assert!(scene.flights.note(NAME, TARGET));
        forever(scene)
    }

    /// The kernel: the bytes first, the word second.
    fn write(&self) {
        self.block.write(1);
        self.ended.store(1, Ordering::Release);
    }

    fn mark(&self) {
        self.marked.fetch_or(1, Ordering::AcqRel);
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire) == 1
    }

    /// A thread of the program that the kernel tells of the end.
    fn reap(&self, marks_first: bool) {
        if self.has_ended() {
            match marks_first {
                true => drop(self.flights.land(NAME, true, |_| self.mark())),
                false => {
                    self.flights.land(NAME, true, |_| {});
                    self.mark();
                }
            }
        }
    }

    /// The engine: looks into the ring; if nothing flies it copies what is marked. What it copied, if it did.
    fn freeze(&self, looks: bool) -> Option<u32> {
        if looks && self.has_ended() {
            self.flights.land(NAME, false, |_| self.mark());
        }
        self.flights.none_flies().then(|| {
            assert_eq!(self.marked.load(Ordering::Acquire), 1, "a write was lost");
            self.block.read()
        })
    }
}

fn scene(marks_first: bool, looks: bool) {
    check(3, move || {
        let scene = Scene::new();
        let kernel = thread::spawn(|| scene.write());
        let reaper = thread::spawn(move || scene.reap(marks_first));
        if let Some(copied) = scene.freeze(looks) {
            assert_eq!(copied, 1, "a write was copied half");
        }
        kernel.join().expect("the kernel");
        reaper.join().expect("the reaper");
        // Whoever saw the end first, it was seen once and for all.
        scene.reap(true);
        assert!(scene.flights.none_flies() && scene.marked.load(Ordering::Acquire) == 1);
    });
}

#[test]
fn a_write_that_is_not_known_to_fly_is_marked_and_in_its_file() {
    scene(true, false);
    scene(true, true);
}

#[test]
#[should_panic(expected = "a write was lost")]
fn a_write_marked_after_it_landed_is_found() {
    scene(false, false);
}

/// Two writes with one name, whose ends two threads are told of: each is marked after it has ended, whoever comes first.
#[test]
fn two_writes_with_one_name_are_both_marked_after_their_ends() {
    check(3, || {
        let (flights, ended, seen) = forever((
            Flights::new(),
            [AtomicU32::new(0), AtomicU32::new(0)],
            [AtomicU32::new(0), AtomicU32::new(0)],
        ));
        for from in 0..2 {
            assert!(flights.note(NAME, Target { from, ..TARGET }));
        }
        // A mark sees whether its write had ended.
        let mark = |target: &Target| {
            let which = target.from as usize;
            seen[which].fetch_or(ended[which].load(Ordering::SeqCst), Ordering::SeqCst);
        };
        let told = move |which: usize| {
            ended[which].store(1, Ordering::SeqCst);
            flights.land(NAME, true, mark);
        };
        let other = thread::spawn(move || told(0));
        told(1);
        if flights.none_flies() {
            assert!(seen.iter().all(|seen| seen.load(Ordering::SeqCst) == 1), "a write was lost");
        }
        other.join().expect("the other thread");
        assert!(flights.none_flies() && seen.iter().all(|seen| seen.load(Ordering::SeqCst) == 1));
    });
}
