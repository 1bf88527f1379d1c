//! The places through which loaded objects reach hooked functions, and how they are made to lead to ours and back.
//!
//! Such a place is a slot that the loader fills (of a procedure linkage table, of an object's table of addresses, or a
//! variable that begins with the address), or a word in an object's data that holds the function's address because the
//! program has stored it there. Only what holds the C library's own address is changed: a function of another library, or of
//! the program itself, that stands before it stays in force, and is followed where *it* calls the C library.
//!
//! Nothing is remembered between walks: each finds out anew what is there, so an object may be unloaded at any time.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use hotbackup::Error;

use crate::elf::{Import, Use};
use crate::hooks::TABLE;
use crate::objects::{self, Excepted, Object, look_up, owner};

/// What a walk is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Find out whether everything can be led to us.
    Examine,
    /// Lead everything to us.
    Attach,
    /// Lead everything to the C library again.
    Detach,
}

/// What a walk has found and done.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    /// Objects with places that lead to us now.
    pub(crate) objects: u32,
    /// Slots that lead to us now.
    pub(crate) slots: u64,
    /// Words in data that lead to us now.
    pub(crate) pointers: u64,
    /// Places that this walk has changed.
    pub(crate) changed: u64,
}

/// Why a walk was given up.
pub(crate) enum Obstacle {
    /// An object's calls of a function cannot be led to us, and where they go.
    Stands(String, usize, Cause),
    /// Objects come and go.
    Moving,
}

/// What keeps a place from being led to us.
pub(crate) enum Cause {
    /// It leads to another function, at this address.
    Elsewhere(usize),
    /// It lies in code or constants.
    Constant,
    /// The kernel would not let it be changed.
    Refused(io::Error),
    /// A function of that name stands before the C library's, and does not lead there by any way that is known.
    Interposed,
}

impl From<Obstacle> for Error {
    /// Asks the loader who owns an address, which must not be done during a walk.
    fn from(obstacle: Obstacle) -> Error {
        let (object, symbol, reason) = match obstacle {
            Obstacle::Moving => {
                ("the program".into(), "dlopen".into(), "it loads libraries without a pause".into())
            }
            Obstacle::Stands(object, hook, cause) => {
                let reason = match cause {
                    Cause::Elsewhere(address) => format!("they go to {}", owner(address)),
                    Cause::Constant => "its code holds the function's address (DT_TEXTREL)".into(),
                    Cause::Refused(error) => format!("the slot cannot be changed: {error}"),
                    Cause::Interposed => {
                        "a function of its own stands before the C library's, and nothing was found by \
                                          which it calls that one"
                            .into()
                    }
                };
                (object, objects::text(TABLE[hook].name), reason)
            }
        };
        Error::HookNotLive { object, symbol, reason }
    }
}

/// Everything that walks compare with.
pub(crate) struct Places {
    index: HashMap<&'static [u8], usize>,
    /// Per hook: the function that ours calls, 0 if there is none.
    real: Vec<usize>,
    /// Per hook: what a search by name finds first.
    first: Vec<usize>,
    /// Hooks by the address of the function that they call, and by their own, in order.
    by_real: Vec<(usize, usize)>,
    by_ours: Vec<(usize, usize)>,
    excepted: Excepted,
    memory: Memory,
    page: usize,
}

impl Places {
    /// `memory` is how the process's memory is protected now.
    pub(crate) fn new(memory: Memory) -> Places {
        let real: Vec<usize> = TABLE.iter().map(|hook| hook.real.known()).collect();
        let sorted = |addresses: &mut dyn Iterator<Item = usize>| {
            let mut list: Vec<_> = addresses.zip(0..).filter(|&(address, _)| address != 0).collect();
            list.sort_unstable();
            list.dedup_by_key(|&mut (address, _)| address);
            list
        };
        Places {
            index: TABLE.iter().zip(0..).map(|(hook, i)| (hook.name.to_bytes(), i)).collect(),
            first: TABLE.iter().map(|hook| look_up(hook.name)).collect(),
            by_real: sorted(&mut real.iter().copied()),
            by_ours: sorted(&mut TABLE.iter().map(|hook| hook.ours as usize)),
            real,
            excepted: Excepted::new(),
            memory,
            // SAFETY: it reads a number.
            page: usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096),
        }
    }

    /// The same with what is known of the memory by now.
    pub(crate) fn with(self, memory: Memory) -> Places {
        Places { memory, ..self }
    }

    /// Walks through all objects. `added` is how many had ever been loaded when `memory` was read and all were ready.
    pub(crate) fn walk(&self, purpose: Purpose, added: u64) -> Result<Tally, Obstacle> {
        let mut walk = Walk {
            places: self,
            purpose,
            tally: Tally::default(),
            stand_ins: vec![None; TABLE.len()],
            fronts: self.fronts(),
            in_variables: 0,
        };
        let mut obstacle = None;
        let now = objects::for_each(|object| {
            let done = if self.excepted.has(object) { Ok(()) } else { walk.visit(object) };
            obstacle = done.err();
            obstacle.is_none()
        });
        match obstacle {
            // An object that was not ready when the walk began explains anything.
            _ if now != added => Err(Obstacle::Moving),
            Some(obstacle) => Err(obstacle),
            None => walk.judge_fronts().map(|()| walk.tally),
        }
    }

    /// The functions that stand before the C library's.
    fn fronts(&self) -> Vec<Front> {
        let all = self.first.iter().zip(&self.real).zip(0..);
        all.filter(|&((&first, &real), hook)| ![0, real, TABLE[hook].ours as usize].contains(&first))
            .map(|((&address, _), hook)| Front { hook, address, leads_on: false })
            .collect()
    }

    fn find(list: &[(usize, usize)], address: usize) -> Option<usize> {
        list.binary_search_by_key(&address, |&(known, _)| known).ok().map(|at| list[at].1)
    }

    /// Stores `new` where `old` is, also on pages that are protected; false if something else is there by now.
    fn store(&self, slot: *const AtomicUsize, old: usize, new: usize) -> io::Result<bool> {
        let protection = self.memory.protection(slot as usize).unwrap_or(libc::PROT_NONE);
        let page = slot as usize & !(self.page - 1);
        let protect = |protection| {
            // SAFETY: the page holds data of a loaded object, which others only read while it is protected. It gets one
            // right more for a moment, and then those that it had.
            match unsafe { libc::mprotect(page as *mut libc::c_void, self.page, protection) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        };
        let is_writable = protection & libc::PROT_WRITE != 0;
        if !is_writable {
            protect(protection | libc::PROT_READ | libc::PROT_WRITE)?;
        }
        // SAFETY: the caller says that it is an aligned word of a loaded object; it is writable now.
        let stored = unsafe { &*slot }.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        if !is_writable {
            protect(protection)?;
        }
        Ok(stored)
    }
}

/// One walk under way.
struct Walk<'p> {
    places: &'p Places,
    purpose: Purpose,
    tally: Tally,
    /// Per hook: where the program has others find it instead (see [`Import::stand_in`]).
    stand_ins: Vec<Option<usize>>,
    fronts: Vec<Front>,
    /// Slots of the object at hand that lie where words are looked for too.
    in_variables: u64,
}

/// A function that a search by a hooked name finds before the C library's.
struct Front {
    hook: usize,
    address: usize,
    /// Its object has a place for the C library's function that leads to us.
    leads_on: bool,
}

/// What a place holds.
enum Holds {
    /// Our function.
    Ours,
    /// The C library's function, or a way there that is not bound yet.
    Theirs,
    /// What does not concern us.
    Other,
}

impl Walk<'_> {
    fn visit(&mut self, object: &Object<'_>) -> Result<(), Obstacle> {
        let before = self.tally.slots + self.tally.pointers;
        if let Some(tables) = object.tables() {
            for import in tables.imports() {
                self.visit_slot(object, &import)?;
            }
        }
        for data in object.data() {
            self.visit_data(object, data)?;
        }
        self.tally.pointers -= std::mem::take(&mut self.in_variables).min(self.tally.pointers);
        self.tally.objects += u32::from(self.tally.slots + self.tally.pointers > before);
        Ok(())
    }

    fn visit_slot(&mut self, object: &Object<'_>, import: &Import<'_>) -> Result<(), Obstacle> {
        let Some(&i) = self.places.index.get(import.name.to_bytes()) else {
            return Ok(());
        };
        if import.stand_in.is_some() && object.is_program {
            self.stand_ins[i] = import.stand_in;
        }
        let stands = |cause| Obstacle::Stands(object.name(), i, cause);
        match self.holds(object, import, i).map_err(stands)? {
            Holds::Ours if self.purpose == Purpose::Detach => {
                self.put(import.slot, import.value, self.places.real[i]).map_err(stands)?;
            }
            Holds::Ours => self.count_slot(object, import.slot, i),
            Holds::Theirs if self.purpose != Purpose::Detach => {
                if !object.data().any(|data| data.contains(&(import.slot as usize)))
                    || !import.slot.is_aligned()
                {
                    return Err(stands(Cause::Constant));
                }
                self.put(import.slot, import.value, TABLE[i].ours as usize).map_err(stands)?;
                self.count_slot(object, import.slot, i);
            }
            Holds::Theirs | Holds::Other => {}
        }
        Ok(())
    }

    fn count_slot(&mut self, object: &Object<'_>, slot: *const AtomicUsize, hook: usize) {
        self.tally.slots += 1;
        self.in_variables += u64::from(!object.constant_data().contains(&(slot as usize)));
        self.note_lead(object, hook);
    }

    /// Notes that `object` leads to us, if something of it stands before the C library.
    fn note_lead(&mut self, object: &Object<'_>, hook: usize) {
        for front in &mut self.fronts {
            front.leads_on |=
                self.places.real[front.hook] == self.places.real[hook] && object.contains(front.address);
        }
    }

    fn holds(&mut self, object: &Object<'_>, import: &Import<'_>, i: usize) -> Result<Holds, Cause> {
        let (value, real) = (import.value, self.places.real[i]);
        if value == TABLE[i].ours as usize {
            return Ok(Holds::Ours);
        }
        if value == 0 || Some(value) == self.stand_ins[i] {
            return Ok(Holds::Other);
        }
        if value == real {
            return Ok(Holds::Theirs);
        }
        if import.way == Use::Variable || self.purpose == Purpose::Detach {
            return Ok(Holds::Other);
        }
        let is_unbound = import.way == Use::Call && !import.is_defined && object.contains(value);
        let goes_to = if is_unbound { self.places.first[i] } else { value };
        if is_unbound && (goes_to == real || Some(goes_to) == self.stand_ins[i] || goes_to == 0) {
            return Ok(Holds::Theirs);
        }
        if goes_to == TABLE[i].ours as usize {
            return Ok(Holds::Theirs);
        }
        if goes_to != self.places.first[i] {
            return Err(Cause::Elsewhere(goes_to));
        }
        Ok(Holds::Other)
    }

    /// Whatever stands before the C library has to lead there by a place that leads to us now.
    fn judge_fronts(&self) -> Result<(), Obstacle> {
        let stays = |front: &&Front| !front.leads_on && self.stand_ins[front.hook] != Some(front.address);
        match self.fronts.iter().find(stays) {
            Some(front) if self.purpose != Purpose::Detach => {
                Err(Obstacle::Stands(owner(front.address), front.hook, Cause::Interposed))
            }
            _ => Ok(()),
        }
    }

    /// Looks for addresses that the program has stored in an object's data.
    fn visit_data(&mut self, object: &Object<'_>, data: Range<usize>) -> Result<(), Obstacle> {
        let constant = object.constant_data();
        let before = data.start..data.end.min(constant.start.max(data.start));
        let behind = data.start.max(constant.end.min(data.end))..data.end;
        let parts = if constant.is_empty() || constant.start >= data.end || constant.end <= data.start {
            [data, 0..0]
        } else {
            [before, behind]
        };
        for part in parts {
            for piece in self.places.memory.writable(part) {
                self.visit_words(object, piece)?;
            }
        }
        Ok(())
    }

    fn visit_words(&mut self, object: &Object<'_>, piece: Range<usize>) -> Result<(), Obstacle> {
        const WORD: usize = size_of::<usize>();
        let list = match self.purpose {
            Purpose::Detach => &self.places.by_ours,
            _ => &self.places.by_real,
        };
        let ours = &self.places.by_ours;
        let ends = |list: &[(usize, usize)]| Some((list.first()?.0, list.last()?.0));
        let (Some(wanted), Some(own)) = (ends(list), ends(ours)) else { return Ok(()) };
        for at in (piece.start.next_multiple_of(WORD)..piece.end & !(WORD - 1)).step_by(WORD) {
            let place = at as *const AtomicUsize;
            // SAFETY: an aligned word in memory that was readable when it was looked up, of an object that stays loaded.
            let value = unsafe { &*place }.load(Ordering::Relaxed);
            if value >= wanted.0
                && value <= wanted.1
                && let Some(hook) = Places::find(list, value)
            {
                let new = match self.purpose {
                    Purpose::Detach => self.places.real[hook],
                    _ => TABLE[hook].ours as usize,
                };
                self.put(place, value, new).map_err(|cause| Obstacle::Stands(object.name(), hook, cause))?;
                self.count_pointer(object, hook);
            } else if value >= own.0
                && value <= own.1
                && let Some(hook) = Places::find(ours, value)
            {
                self.count_pointer(object, hook);
            }
        }
        Ok(())
    }

    fn count_pointer(&mut self, object: &Object<'_>, hook: usize) {
        self.tally.pointers += 1;
        self.note_lead(object, hook);
    }

    fn put(&mut self, slot: *const AtomicUsize, old: usize, new: usize) -> Result<(), Cause> {
        if new == 0 {
            return Ok(());
        }
        if self.purpose == Purpose::Examine || self.places.store(slot, old, new).map_err(Cause::Refused)? {
            self.tally.changed += 1;
        }
        Ok(())
    }
}

/// How the process's memory is protected, piece by piece.
pub(crate) struct Memory(Vec<(Range<usize>, i32)>);

impl Memory {
    /// Reads it from the kernel.
    pub(crate) fn read() -> io::Result<Memory> {
        let text = std::fs::read_to_string("/proc/self/maps")?;
        Ok(Memory(text.lines().filter_map(Memory::piece).collect()))
    }

    /// `BEGIN-END rwxp ...`
    fn piece(line: &str) -> Option<(Range<usize>, i32)> {
        let (range, rest) = line.split_once(' ')?;
        let (begin, end) = range.split_once('-')?;
        let address = |text| usize::from_str_radix(text, 16).ok();
        let rights = rest.bytes().zip([libc::PROT_READ, libc::PROT_WRITE, libc::PROT_EXEC]);
        let rights = rights.filter(|&(letter, _)| letter != b'-').fold(0, |all, (_, right)| all | right);
        Some((address(begin)?..address(end)?, rights))
    }

    fn protection(&self, address: usize) -> Option<i32> {
        let behind = self.0.partition_point(|(range, _)| range.start <= address);
        let (range, rights) = self.0.get(behind.checked_sub(1)?)?;
        range.contains(&address).then_some(*rights)
    }

    /// The pieces of a range that can be read and written.
    fn writable(&self, part: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        let first = self.0.partition_point(|(range, _)| range.end <= part.start);
        let end = part.end;
        self.0[first..]
            .iter()
            .take_while(move |(range, _)| range.start < end)
            .filter(|(_, rights)| {
                rights & (libc::PROT_READ | libc::PROT_WRITE) == libc::PROT_READ | libc::PROT_WRITE
            })
            .map(move |(range, _)| range.start.max(part.start)..range.end.min(part.end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protections_are_read() {
        let lines =
            ["1000-3000 r-xp 00000000 08:01 1 /x", "3000-4000 r--p 0 0:0 0", "5000-8000 rw-p 0 0:0 0"];
        let memory = Memory(lines.into_iter().filter_map(Memory::piece).collect());
        assert_eq!(memory.protection(0x2fff), Some(libc::PROT_READ | libc::PROT_EXEC));
        assert_eq!(memory.protection(0x3000), Some(libc::PROT_READ));
        assert_eq!((memory.protection(0x4000), memory.protection(0xfff)), (None, None));
        let first = |range| memory.writable(range).next();
        assert_eq!(first(0x2000..0x6000), Some(0x5000..0x6000));
        assert_eq!(first(0x6000..0x9000), Some(0x6000..0x8000));
        assert_eq!(first(0x1000..0x5000), None);
    }
}
