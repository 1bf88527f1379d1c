//! Hooks at the gate against the engine that arms, cuts, opens, gives up, and starts anew.

use std::cell::Cell;
use std::time::Duration;

use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;

use super::{Block, check, forever};
use crate::gate::{Gate, Inside, Slot, State, Word, here};

const CALL: Word = Word::descriptor(3);
const IN_TIME: Duration = Duration::from_secs(1);

/// A host with one file of one block per thread, and its backup.
struct World {
    gate: Gate,
    slots: Vec<Slot>,
    source: Vec<Block>,
    /// The marks of the first and of the second session.
    marked: [Vec<AtomicU32>; 2],
    session: AtomicU32,
    /// Real calls under way.
    calls: AtomicU32,
}

impl World {
    fn new(threads: usize) -> &'static World {
        forever(World {
            gate: Gate::new(),
            slots: (0..threads).map(|_| Slot::new()).collect(),
            source: (0..threads).map(|_| Block::new()).collect(),
            marked: [0, 1].map(|_| (0..threads).map(|_| AtomicU32::new(0)).collect()),
            session: AtomicU32::new(0),
            calls: AtomicU32::new(0),
        })
    }

    /// What `intercept::around` does for a write of `value` by thread `me`.
    fn write(&self, me: usize, value: u32, time_left: impl Fn() -> Option<Duration>) {
        self.write_joining(me, value, time_left, |inside, gate| inside.join(gate));
    }

    fn write_joining(
        &self,
        me: usize,
        value: u32,
        time_left: impl Fn() -> Option<Duration>,
        join: impl Fn(&Inside<'_>, &Gate) -> State,
    ) {
        if let Some(_passing) = self.slots[me].pass(CALL, here(), &self.gate) {
            return self.real_write(me, value);
        }
        let inside = self.slots[me].enter(CALL, here());
        if self.gate.state() == State::Idle {
            return self.real_write(me, value);
        }
        let mut state = join(&inside, &self.gate);
        while state == State::Closed {
            inside.step_out();
            self.gate.wait(&time_left);
            inside.step_in();
            state = join(&inside, &self.gate);
        }
        if state == State::Idle {
            return self.real_write(me, value);
        }
        let marked = self.marks(me);
        self.real_write(me, value);
        marked.fetch_or(1, Ordering::AcqRel);
    }

    /// The mark that the present session has for the block of thread `me`.
    fn marks(&self, me: usize) -> &AtomicU32 {
        &self.marked[self.session.load(Ordering::Acquire) as usize][me]
    }

    fn real_write(&self, me: usize, value: u32) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.source[me].write(value);
        self.calls.fetch_sub(1, Ordering::Relaxed);
    }

    fn wait_until_outside(&self, matters: impl Fn(Word) -> bool) {
        for slot in &self.slots {
            while slot.word() != Word::NOTHING && matters(slot.word()) {
                thread::yield_now();
            }
        }
    }
}

/// The engine with its copy.
struct Engine {
    world: &'static World,
    copy: Vec<u32>,
}

impl Engine {
    fn new(world: &'static World) -> Engine {
        Engine {
            world,
            // No block ever holds this.
            copy: vec![u32::MAX; world.source.len()],
        }
    }

    /// Starts to capture, and copies everything once.
    fn arm(&mut self) {
        self.world.gate.set(State::Open);
        self.world.wait_until_outside(|word| word.0 & Word::CAPTURED == 0);
        self.copy = self.world.source.iter().map(Block::read).collect();
    }

    fn copy_marked(&mut self) {
        for (i, copy) in self.copy.iter_mut().enumerate() {
            if self.world.marks(i).swap(0, Ordering::AcqRel) != 0 {
                *copy = self.world.source[i].read();
            }
        }
    }

    /// Closes the gate, copies what is left, opens it. False if somebody else opened it meanwhile.
    fn cut(&mut self, then: State) -> bool {
        let gate = &self.world.gate;
        gate.set(State::Closed);
        let ticket = gate.ticket();
        self.world.wait_until_outside(|_| true);
        self.copy_marked();
        let calls = self.world.calls.load(Ordering::Relaxed);
        let source: Vec<u32> = self.world.source.iter().map(Block::read).collect();
        let good = gate.open_from(ticket, then);
        if good {
            assert_eq!(calls, 0, "a thread is inside while the gate is closed");
            assert_eq!(self.copy, source, "a change is missing at the cut");
        }
        good
    }
}

fn backup(world: &'static World) {
    let mut engine = Engine::new(world);
    engine.arm();
    assert!(engine.cut(State::Open), "nobody but the engine opens in time");
}

#[test]
fn a_change_before_the_cut_is_in_the_copy() {
    check(4, || {
        let world = World::new(1);
        let host = thread::spawn(move || {
            world.write(0, 1, || Some(IN_TIME));
            world.write(0, 2, || Some(IN_TIME));
        });
        backup(world);
        host.join().expect("the host's thread runs to its end");
    });
}

#[test]
fn changes_of_two_threads_are_in_the_copy() {
    check(2, || {
        let world = World::new(2);
        let hosts = [0, 1].map(|me| thread::spawn(move || world.write(me, 1, || Some(IN_TIME))));
        backup(world);
        for host in hosts {
            host.join().expect("the host's thread runs to its end");
        }
    });
}

#[test]
fn a_call_at_the_closed_gate_goes_on_when_it_opens() {
    check(4, || {
        let world = World::new(1);
        let mut engine = Engine::new(world);
        engine.arm();
        let host = thread::spawn(move || world.write(0, 1, || Some(IN_TIME)));
        assert!(engine.cut(State::Audit));
        host.join().expect("the host's thread runs to its end");
        assert_eq!(world.source[0].read(), 1);
    });
}

#[test]
#[should_panic(expected = "at the cut")]
fn a_hook_that_looks_before_it_enters_is_found() {
    check(3, || {
        let world = World::new(1);
        let host = thread::spawn(move || {
            let watched = world.gate.state() != State::Idle;
            let inside = world.slots[0].enter(CALL, here());
            if watched {
                inside.captured();
            }
            world.real_write(0, 1);
            if watched {
                world.marks(0).fetch_or(1, Ordering::AcqRel);
            }
        });
        backup(world);
        host.join().expect("the host's thread runs to its end");
    });
}

#[test]
#[should_panic(expected = "at the cut")]
fn an_engine_that_does_not_wait_for_old_calls_is_found() {
    check(3, || {
        let world = World::new(1);
        let host = thread::spawn(move || world.write(0, 1, || Some(IN_TIME)));
        let mut engine = Engine::new(world);
        world.gate.set(State::Open);
        engine.copy = vec![world.source[0].read()];
        engine.cut(State::Open);
        host.join().expect("the host's thread runs to its end");
    });
}

/// The engine may hang in the kernel: then the first waiter past the deadline opens.
#[test]
fn a_waiter_past_the_deadline_opens_and_voids_the_cut() {
    check(4, || {
        let world = World::new(1);
        let mut engine = Engine::new(world);
        engine.arm();
        let host = thread::spawn(move || {
            let looks = Cell::new(0);
            world.write(0, 1, || {
                looks.set(looks.get() + 1);
                (looks.get() < 2).then_some(Duration::ZERO)
            });
        });
        if !engine.cut(State::Open) {
            // The next try has all the time that it needs, and all that was marked meanwhile.
            host.join().expect("the host's thread runs to its end");
            assert!(engine.cut(State::Open));
            assert_eq!(engine.copy, [1]);
            return;
        }
        host.join().expect("the host's thread runs to its end");
    });
}

#[test]
fn exactly_one_opens() {
    check(4, || {
        let world = World::new(0);
        let gate = &world.gate;
        gate.set(State::Open);
        gate.set(State::Closed);
        let ticket = gate.ticket();
        let waiters = [0, 1].map(|_| thread::spawn(move || gate.open_from(gate.ticket(), State::Open)));
        let mine = gate.open_from(ticket, State::Audit);
        let theirs = waiters.map(|waiter| waiter.join().expect("the waiter runs to its end"));
        let wins = [mine, theirs[0], theirs[1]].iter().filter(|won| **won).count();
        assert_eq!(wins, 1);
        assert_eq!(gate.state(), if mine { State::Audit } else { State::Open });
    });
}

#[test]
fn a_late_waiter_does_not_open_the_next_closing() {
    check(4, || {
        let world = World::new(0);
        let gate = &world.gate;
        gate.set(State::Open);
        gate.set(State::Closed);
        let first = gate.ticket();
        let late = thread::spawn(move || gate.open_from(first, State::Open));
        gate.open_from(first, State::Open);
        gate.set(State::Closed);
        let second = gate.ticket();
        late.join().expect("the waiter runs to its end");
        assert!(gate.open_from(second, State::Audit), "the first closing's waiter opened the second");
    });
}

/// Ends a session and starts the next one while a call of the host is under way, which joins a session by `join`;
/// `matters` is which calls the engine waits for in between.
fn two_sessions(matters: fn(Word) -> bool, join: fn(&Inside<'_>, &Gate) -> State) {
    check(3, move || {
        let world = World::new(1);
        Engine::new(world).arm();
        let host = thread::spawn(move || world.write_joining(0, 1, || Some(IN_TIME), join));
        world.gate.set(State::Idle);
        world.wait_until_outside(matters);
        world.session.store(1, Ordering::Release);
        backup(world);
        host.join().expect("the host's thread runs to its end");
    });
}

#[test]
fn a_call_of_the_last_session_is_waited_for() {
    two_sessions(Word::knows_of_a_session, |inside, gate| inside.join(gate));
}

#[test]
#[should_panic(expected = "at the cut")]
fn a_session_that_begins_beside_a_call_of_the_last_one_is_found() {
    two_sessions(|_| false, |inside, gate| inside.join(gate));
}

/// A hook may have seen the last session and not have said so yet; when it does, the next one takes it for its own.
#[test]
#[should_panic(expected = "at the cut")]
fn a_call_that_joins_a_session_without_looking_again_is_found() {
    two_sessions(Word::knows_of_a_session, |inside, gate| {
        let state = gate.state();
        if state != State::Idle {
            inside.captured();
        }
        state
    });
}

/// Who says that it knows of a session when there is none has to take it back, and to look once more.
#[test]
#[should_panic(expected = "at the cut")]
fn a_call_that_looks_only_once_whether_there_is_a_session_is_found() {
    two_sessions(Word::knows_of_a_session, |inside, gate| {
        inside.captured();
        gate.state()
    });
}

#[test]
fn a_gate_that_closed_and_goes_idle_lets_everyone_go() {
    check(4, || {
        let world = World::new(1);
        world.gate.set(State::Open);
        world.gate.set(State::Closed);
        let host = thread::spawn(move || world.write(0, 1, || Some(IN_TIME)));
        // A session that fails in the cut.
        world.gate.set(State::Idle);
        host.join().expect("the host's thread runs to its end");
    });
}

/// A thread ended inside a call (longjmp out of a handler, then exit); while the engine clears what it left, a new
/// thread takes the slot over and makes the same call.
#[test]
fn clearing_a_dead_threads_slot_leaves_its_new_owner_alone() {
    const DEAD: u32 = 1;
    const NEW: u32 = 2;
    check(4, || {
        let world = World::new(1);
        world.gate.set(State::Open);
        std::mem::forget(world.slots[0].enter(CALL, here()));
        let host = thread::spawn(move || {
            if world.slots[0].claim(DEAD, NEW) {
                world.write(0, 1, || Some(IN_TIME));
            }
        });
        world.gate.set(State::Closed);
        let ticket = world.gate.ticket();
        let slot = &world.slots[0];
        while slot.word() != Word::NOTHING {
            if slot.tid() == DEAD {
                slot.repair(DEAD, |tid| tid != DEAD);
            }
            thread::yield_now();
        }
        assert_eq!(world.calls.load(Ordering::Relaxed), 0, "a thread is inside while the gate is closed");
        world.gate.open_from(ticket, State::Open);
        host.join().expect("the host's thread runs to its end");
    });
}
