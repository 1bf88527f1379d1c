//! Asynchronous requests that have been given to the kernel and are not known to have ended.
//!
//! A write is noted before the call that submits it, and marks what it writes when it has ended: the bytes may reach the file
//! at any time between. Requests that write nothing are noted too, for a program may call several by one name, and an end
//! tells no more than the name. Invariant: a write that is noted while the gate is open, and taken off the table, has marked its
//! range before. So when everyone is outside and nothing flies, every write of the program is in its file and marked.
//!
//! Hooks note, land and forget; the engine lands what it finds ended in a ring; both say how to mark. No locks: a place is claimed by a
//! compare-and-exchange, and filled before it can be found.

use crate::sys::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::sys::mem::zeroed;

/// Requests that can be noted at the same time. A place is searched for in a window, and a table this large is never full in
/// practice: the kernel allows 65,536 requests of native AIO in all by default (`/proc/sys/fs/aio-max-nr`).
const PLACES: usize = if cfg!(loom) { 2 } else { 1 << 14 };
const WINDOW: usize = if cfg!(loom) { 2 } else { 64 };

const FREE: u32 = 0;
/// Being filled.
const TAKEN: u32 = 1;
/// Given to the kernel, or about to be.
const FLYING: u32 = 2;
/// One of its name has ended, which may be this one. It is marked whenever one of them ends, until all have.
const SPENT: u32 = 3;
/// Ended and marked; the program has not been told yet.
const LANDED: u32 = 4;

/// Which write: its ring, and what the program calls it there. Nothing hinders a program from using a name twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) ring: u64,
    pub(crate) cookie: u64,
}

/// What a write will change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) dev: u64,
    pub(crate) ino: u64,
    pub(crate) from: u64,
    /// `u64::MAX` stands for the whole file.
    pub(crate) to: u64,
    /// If it may turn out to be another file.
    pub(crate) late: Option<Late>,
}

/// A request for which the kernel looks up the file when it comes to it, which may be after the call that submits it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Late {
    /// Its descriptor; -1 if it names its file by something else, so that any may be hit.
    pub(crate) fd: i32,
    /// What [`endings`](crate::registry::Watch::endings) said of the descriptor when the file was looked up.
    pub(crate) endings: u64,
    /// When that was, in nanoseconds since the epoch: a file that it hits bears a time from behind this.
    pub(crate) since: i64,
}

impl Target {
    const fn none(ino: u64) -> Target {
        Target { dev: u64::MAX, ino, from: 0, to: 0, late: None }
    }

    /// Of a request that writes to no file that could be backed up.
    pub(crate) const NOTHING: Target = Target::none(u64::MAX);

    /// What a request changes that names files by path: nobody knows which.
    pub(crate) const NAMES: Target = Target::none(u64::MAX - 1);

    /// Of a write of which only `late` is known.
    pub(crate) fn some_file(late: Late) -> Target {
        Target { late: Some(late), ..Target::none(u64::MAX - 2) }
    }

    pub(crate) fn is_names(&self) -> bool {
        *self == Target::NAMES
    }

    /// Whether this is a file.
    pub(crate) fn is_file(&self) -> bool {
        self.dev != u64::MAX
    }

    /// Whether the cut has to wait for it. What it waits for otherwise may be a socket.
    fn writes(&self) -> bool {
        self.is_file() || self.ino != Target::NOTHING.ino
    }

    /// Whether it is no file, but may turn out to be one.
    fn is_unsure(&self) -> bool {
        !self.writes() && self.late.is_some()
    }
}

zeroed! {
    struct Place {
        state: AtomicU32,
        ring: AtomicU64,
        cookie: AtomicU64,
        dev: AtomicU64,
        ino: AtomicU64,
        from: AtomicU64,
        to: AtomicU64,
        /// One more than the descriptor of a late one, with 0 for none known; `u32::MAX` if it is not late.
        late: AtomicU32,
        endings: AtomicU64,
        since: AtomicU64,
    }
}

const IN_TIME: u32 = u32::MAX;

impl Place {
    fn is(&self, name: Name) -> bool {
        self.ring.load(Ordering::Relaxed) == name.ring && self.cookie.load(Ordering::Relaxed) == name.cookie
    }

    fn target(&self) -> Target {
        let late = Some(self.late.load(Ordering::Relaxed)).filter(|&late| late != IN_TIME);
        Target {
            dev: self.dev.load(Ordering::Relaxed),
            ino: self.ino.load(Ordering::Relaxed),
            from: self.from.load(Ordering::Relaxed),
            to: self.to.load(Ordering::Relaxed),
            late: late.map(|late| Late {
                fd: late.cast_signed() - 1,
                endings: self.endings.load(Ordering::Relaxed),
                since: self.since.load(Ordering::Relaxed).cast_signed(),
            }),
        }
    }

    fn fill(&self, name: Name, target: Target) {
        for (word, value) in [
            (&self.ring, name.ring),
            (&self.cookie, name.cookie),
            (&self.dev, target.dev),
            (&self.ino, target.ino),
            (&self.from, target.from),
            (&self.to, target.to),
            (&self.endings, target.late.map_or(0, |late| late.endings)),
            (&self.since, target.late.map_or(0, |late| late.since.cast_unsigned())),
        ] {
            word.store(value, Ordering::Relaxed);
        }
        let late = target.late.map_or(IN_TIME, |late| (late.fd + 1).cast_unsigned());
        self.late.store(late, Ordering::Relaxed);
    }

    fn turns(&self, from: u32, to: u32) -> bool {
        self.state.compare_exchange(from, to, Ordering::SeqCst, Ordering::Relaxed).is_ok()
    }
}

zeroed! {
    /// The table.
    pub(crate) struct Flights {
        flying: AtomicU64,
        /// Those that are not waited for and may turn out to write to a file.
        unsure: AtomicU64,
        places: [Place; PLACES],
    }
}

impl Flights {
    #[cfg(loom)]
    pub(crate) fn new() -> Flights {
        let word = || AtomicU64::new(0);
        let place = |_| Place {
            state: AtomicU32::new(FREE),
            ring: word(),
            cookie: word(),
            dev: word(),
            ino: word(),
            from: word(),
            to: word(),
            late: AtomicU32::new(0),
            endings: word(),
            since: word(),
        };
        Flights { flying: word(), unsure: word(), places: std::array::from_fn(place) }
    }

    /// Notes a request. False if there is no room.
    pub(crate) fn note(&self, name: Name, target: Target) -> bool {
        // What the program calls by the same name and was not seen to be told of has been told.
        self.forget_landed(name);
        // What has landed need not stay: if the program is told of it yet, it is taken for one from before the session.
        let mut free =
            [FREE, LANDED].into_iter().flat_map(|state| self.window(name).map(move |place| (place, state)));
        let Some((place, _)) = free.find(|(place, state)| place.turns(*state, TAKEN)) else { return false };
        place.fill(name, target);
        self.counter(&target).map(|counter| counter.fetch_add(1, Ordering::SeqCst));
        place.state.store(FLYING, Ordering::SeqCst);
        true
    }

    /// A request was not submitted after all.
    pub(crate) fn forget(&self, name: Name, mark: impl Fn(&Target)) {
        match self.known(name).count() {
            0 => {}
            1 => self.known(name).for_each(|place| self.take_off(place, FLYING, FREE)),
            // Nobody knows which one: as if it had ended.
            _ => drop(self.land(name, true, mark)),
        }
    }

    /// A request has ended: has what it wrote marked. Of several with one name nobody knows which it was: all are marked, and
    /// stay, until as many have ended. With `told` the program knows of this end. False if there is no such request.
    pub(crate) fn land(&self, name: Name, told: bool, mark: impl Fn(&Target)) -> bool {
        self.known(name).for_each(|place| mark(&place.target()));
        match self.known(name).count() {
            0 => return self.find(name, LANDED).is_some_and(|place| !told || place.turns(LANDED, FREE)),
            1 => {}
            // An end that lies in its ring is seen more than once.
            _ if !told => return true,
            _ => {}
        }
        let _ = self.known(name).find(|place| place.turns(FLYING, SPENT));
        if self.find(name, FLYING).is_none() {
            let to = if told { FREE } else { LANDED };
            self.known(name).for_each(|place| self.take_off(place, SPENT, to));
        }
        true
    }

    /// Lands those of a ring that have ended as their names tell, each name being that of one request at a time. The program
    /// has not been told.
    pub(crate) fn land_where(&self, ring: u64, has_ended: impl Fn(u64) -> bool, mark: impl Fn(&Target)) {
        for place in self.places.iter().filter(|place| place.ring.load(Ordering::Relaxed) == ring) {
            let cookie = place.cookie.load(Ordering::Relaxed);
            if place.state.load(Ordering::SeqCst) == FLYING && has_ended(cookie) {
                mark(&place.target());
                self.take_off(place, FLYING, LANDED);
            }
        }
    }

    /// The requests of a ring get another name for it.
    pub(crate) fn rename(&self, ring: u64, to: u64) {
        for place in &self.places {
            let _ = place.ring.compare_exchange(ring, to, Ordering::SeqCst, Ordering::Relaxed);
        }
    }

    /// Every request of a ring has ended, and nobody will be told.
    pub(crate) fn land_all(&self, ring: u64, mark: impl Fn(&Target)) {
        for place in self.places.iter().filter(|place| place.ring.load(Ordering::Relaxed) == ring) {
            if matches!(place.state.load(Ordering::SeqCst), FLYING | SPENT) {
                mark(&place.target());
                self.take_off(place, FLYING, FREE);
                self.take_off(place, SPENT, FREE);
            }
            place.turns(LANDED, FREE);
        }
    }

    /// What was marked is not waited for any more.
    fn take_off(&self, place: &Place, from: u32, to: u32) {
        let target = place.target();
        if place.turns(from, to) {
            self.counter(&target).map(|counter| counter.fetch_sub(1, Ordering::SeqCst));
        }
    }

    fn counter(&self, target: &Target) -> Option<&AtomicU64> {
        match target.writes() {
            true => Some(&self.flying),
            false => target.is_unsure().then_some(&self.unsure),
        }
    }

    /// Whether one that has not ended is no file for all that is known, but `may_be` one.
    pub(crate) fn any_unsure(&self, may_be: impl Fn(&Late) -> bool) -> bool {
        let is_it = |place: &&Place| matches!(place.state.load(Ordering::SeqCst), FLYING | SPENT);
        let may_be = |target: Target| target.is_unsure() && target.late.as_ref().is_some_and(&may_be);
        self.has_unsure() && self.places.iter().filter(is_it).any(|place| may_be(place.target()))
    }

    /// Whether any is no file for all that is known, but may be one yet.
    pub(crate) fn has_unsure(&self) -> bool {
        self.unsure.load(Ordering::SeqCst) > 0
    }

    /// Whether no write is known that may not have ended.
    pub(crate) fn none_flies(&self) -> bool {
        self.flying.load(Ordering::SeqCst) == 0
    }

    /// Whether no request is known at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.places.iter().all(|place| place.state.load(Ordering::SeqCst) == FREE)
    }

    /// Whether a request of this ring is known that may not have ended.
    pub(crate) fn any_flies(&self, ring: u64) -> bool {
        self.places.iter().any(|place| {
            matches!(place.state.load(Ordering::SeqCst), FLYING | SPENT)
                && place.ring.load(Ordering::Relaxed) == ring
                && place.target().writes()
        })
    }

    fn forget_landed(&self, name: Name) {
        if let Some(place) = self.find(name, LANDED) {
            place.turns(LANDED, FREE);
        }
    }

    fn find(&self, name: Name, state: u32) -> Option<&Place> {
        self.window(name).find(|place| place.state.load(Ordering::SeqCst) == state && place.is(name))
    }

    /// Those of this name that are not known to have ended.
    fn known(&self, name: Name) -> impl Iterator<Item = &Place> {
        let is_known = |place: &Place| matches!(place.state.load(Ordering::SeqCst), FLYING | SPENT);
        self.window(name).filter(move |place| is_known(place) && place.is(name))
    }

    /// Where a request can stand.
    fn window(&self, name: Name) -> impl Iterator<Item = &Place> {
        let mixed = (name.cookie ^ name.ring.rotate_left(32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let start = (mixed >> 40) as usize;
        (0..WINDOW).map(move |i| &self.places[start.wrapping_add(i) % PLACES])
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn table() -> &'static Flights {
        crate::sys::mem::reserve::<Flights>(1).and_then(|tables| tables.first()).expect("memory")
    }

    fn ignore(_: &Target) {}

    const TARGET: Target = Target { dev: 1, ino: 2, from: 0, to: 1, late: None };

    fn name(cookie: u64) -> Name {
        Name { ring: 7, cookie }
    }

    #[test]
    fn a_write_flies_until_it_lands_or_is_forgotten() {
        let table = table();
        assert!(table.none_flies() && table.is_empty());
        assert!(table.note(name(1), TARGET) && table.note(name(2), TARGET) && !table.is_empty());
        assert!(!table.land(Name { ring: 8, cookie: 1 }, true, ignore), "another ring's");
        assert!(table.land(name(1), true, ignore) && !table.none_flies());
        assert!(!table.land(name(1), true, ignore), "it has landed");
        table.forget(name(2), ignore);
        assert!(table.none_flies());
    }

    /// The second of two may be the one that ends first.
    #[test]
    fn of_two_with_one_name_both_are_marked_until_both_have_landed() {
        let (table, marked) = (table(), std::cell::RefCell::new(Vec::new()));
        let other = Target { from: 7, to: 8, ..TARGET };
        let land = |told| {
            marked.borrow_mut().clear();
            let known = table.land(name(1), told, |target| marked.borrow_mut().push(*target));
            marked.borrow_mut().sort_by_key(|target| target.from);
            (known, marked.borrow().clone())
        };
        assert!(table.note(name(1), TARGET) && table.note(name(1), other));
        for told in [false, false, true] {
            // Seen in its ring, again and again, it is one end.
            assert_eq!(land(told), (true, vec![TARGET, other]));
            assert!(!table.none_flies());
        }
        assert_eq!(land(true), (true, vec![TARGET, other]));
        assert!(table.none_flies() && land(true) == (false, vec![]));
    }

    #[test]
    fn a_request_that_writes_nothing_is_not_waited_for_but_for_its_name() {
        let table = table();
        assert!(table.note(name(1), Target::NOTHING) && table.none_flies());
        assert!(table.note(name(1), TARGET) && !table.none_flies());
        assert!(table.land(name(1), true, ignore) && !table.none_flies(), "which one has ended?");
        assert!(table.land(name(1), true, ignore) && table.none_flies());
        // The one that is taken back may be the other.
        assert!(table.note(name(1), Target::NOTHING) && table.note(name(1), TARGET));
        table.forget(name(1), ignore);
        assert!(!table.none_flies() && table.land(name(1), true, ignore) && table.none_flies());
    }

    #[test]
    fn what_is_known_of_a_late_one_is_kept() {
        let (table, seen) = (table(), std::cell::Cell::new(None));
        let late = |fd| Some(Late { fd, endings: 3, since: -4 });
        let socket = Target { late: late(0), ..Target::NOTHING };
        for target in
            [Target { late: late(7), ..TARGET }, Target { late: late(-1), ..TARGET }, TARGET, socket]
        {
            assert!(table.note(name(1), target) && table.none_flies() == (target == socket));
            assert!(table.land(name(1), true, |target| seen.set(Some(*target))) && table.none_flies());
            assert_eq!(seen.take(), Some(target));
        }
        assert!(
            !table.has_unsure() && table.note(name(1), socket) && table.any_unsure(|late| late.endings == 3)
        );
        assert!(
            !table.any_unsure(|late| late.endings == 4)
                && table.land(name(1), true, ignore)
                && !table.has_unsure()
        );
        let some = Target::some_file(Late { fd: -1, endings: 0, since: 5 });
        assert!(table.note(name(1), some) && !table.none_flies(), "the cut waits for it");
    }

    #[test]
    fn what_the_engine_saw_end_is_known_when_the_program_is_told() {
        let table = table();
        assert!(table.note(name(1), TARGET));
        assert!(table.land(name(1), false, ignore) && table.none_flies());
        assert!(table.land(name(1), false, ignore), "it lies in the ring still");
        assert!(table.land(name(1), true, ignore), "told");
        assert!(!table.land(name(1), true, ignore));
        // A program that reads the ring by itself is told without our knowing, and uses the name again.
        assert!(
            table.note(name(1), TARGET) && table.land(name(1), false, ignore) && table.note(name(1), TARGET)
        );
        assert!(
            !table.none_flies() && table.land(name(1), true, ignore) && !table.land(name(1), true, ignore)
        );
    }

    #[test]
    fn a_ring_that_goes_takes_its_writes_along() {
        let table = table();
        assert!(table.note(name(1), TARGET) && table.note(name(2), TARGET));
        assert!(table.note(Name { ring: 8, cookie: 1 }, TARGET));
        table.land_all(7, ignore);
        assert!(
            !table.none_flies()
                && table.land(Name { ring: 8, cookie: 1 }, true, ignore)
                && table.none_flies()
        );
    }

    /// The kernel unmaps a ring before it waits for its requests, and another one may come to the address.
    #[test]
    fn a_ring_that_goes_leaves_those_of_another_at_its_address() {
        let (table, marked) = (table(), std::cell::Cell::new(0));
        assert!(table.note(name(1), TARGET));
        table.rename(7, 3);
        assert!(
            table.note(name(1), Target { from: 5, ..TARGET }) && table.any_flies(7) && table.any_flies(3)
        );
        table.land_all(3, |target| marked.set(marked.get() + 1 + target.from));
        assert!(marked.get() == 1 && table.any_flies(7) && !table.any_flies(3) && !table.none_flies());
        assert!(table.land(name(1), true, ignore) && table.none_flies());
    }

    #[test]
    fn those_that_have_ended_by_their_names_land_and_stay_known() {
        let (table, marked) = (table(), std::cell::RefCell::new(Vec::new()));
        assert!(table.note(name(1), TARGET) && table.note(name(2), TARGET));
        assert!(table.note(Name { ring: 8, cookie: 1 }, TARGET));
        assert!(table.any_flies(7) && table.any_flies(8) && !table.any_flies(9));
        for _ in 0..2 {
            table.land_where(7, |cookie| cookie == 1, |target| marked.borrow_mut().push(*target));
            assert_eq!(*marked.borrow(), [TARGET], "once");
        }
        assert!(table.land(name(1), true, ignore) && !table.land(name(1), true, ignore));
        assert!(table.any_flies(7) && table.land(name(2), true, ignore) && !table.any_flies(7));
    }

    #[test]
    fn a_full_window_is_told() {
        let table = table();
        let noted = (0..200).filter(|_| table.note(name(1), TARGET)).count();
        assert_eq!(noted, WINDOW);
        // What has landed makes room.
        table.land_where(7, |_| true, ignore);
        assert!(table.none_flies() && table.note(name(1), TARGET) && !table.none_flies());
    }
}
