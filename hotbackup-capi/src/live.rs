//! The proof that every loaded object calls our hooks, given at the start of every session.
//!
//! A call that bypasses a hook is a change that nobody sees: the original shipped two years of silently inconsistent
//! backups because one symbol had fallen out of its exports. So every slot through which a loaded object calls a hooked
//! function, or keeps its address, has to hold our address, or, where it is bound on the first call only, has to be
//! bound to ours when that comes. The first one that does not is named.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hotbackup::{Error, Result, intercept};

use crate::asynchronous::look_at_environment;
use crate::attach;
use crate::doctor;
use crate::elf::{Import, Tables, Use};
use crate::hooks::{Hook, TABLE, look_up_all};
use crate::objects::{self, Excepted, Object, look_up, owner, owner_base, program_header, text};
use crate::scope::{LinkMap, Namespace, SearchLists};

/// Looks up the real functions and has every session ask for the proof. Further calls do nothing.
pub(crate) extern "C" fn begin() {
    static BEGUN: AtomicBool = AtomicBool::new(false);
    if !BEGUN.swap(true, Ordering::AcqRel) {
        look_up_all();
        look_at_environment();
        intercept::register(prove);
        intercept::register_examiner(doctor::examine);
    }
}

/// Runs [`begin`] when the library is loaded.
#[cfg(not(test))]
#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = begin;

/// How many objects had ever been loaded when the last proof was given.
static PROVED: AtomicU64 = AtomicU64::new(0);

/// Fails with the first object that bypasses a hook. While a session runs, only what was loaded meanwhile can have changed
/// anything, unless the slots are ours to look after.
fn prove() -> Result<()> {
    if attach::is_attached() {
        return attach::keep();
    }
    let added = objects::count_added();
    if intercept::is_engine() {
        if PROVED.load(Ordering::Relaxed) == added {
            return Ok(());
        }
        attach::wait_for_loader()?;
    }
    look_up_all();
    in_force()?;
    PROVED.store(added, Ordering::Relaxed);
    Ok(())
}

/// Fails with the first object that bypasses a hook, where the loader itself has bound calls to ours.
pub(crate) fn in_force() -> Result<()> {
    let mut census = Census::new();
    census.first_in_search_order()?;
    objects::for_each(|object| census.visit(object));
    census.other_namespaces();
    census.bypass.map_or(Ok(()), |bypass| Err(bypass.into()))
}

/// All objects that bypass a hook, each with the first one that it does, where the loader itself has bound calls to ours. Fails if
/// calls do not reach us at all.
pub(crate) fn all_bypasses() -> Result<Vec<Error>> {
    let mut census = Census::new();
    census.first_in_search_order()?;
    let mut all: Vec<Error> = Vec::new();
    // Names are kept only of an object with which a walk ends: so there is one for each. Objects may come meanwhile.
    while all.len() < MOST_BYPASSES {
        census.to_skip = all.len();
        objects::for_each(|object| census.visit(object));
        census.other_namespaces();
        match census.bypass.take() {
            Some(bypass) => all.push(bypass.into()),
            None => break,
        }
    }
    Ok(all)
}

/// How many hooks stand before the function that they replace, and how many there are.
pub(crate) fn count_hooks() -> (usize, usize) {
    let is_first = |hook: &&Hook| look_up(hook.name) == hook.ours as usize && hook.real.known() != 0;
    (TABLE.iter().filter(is_first).count(), TABLE.len())
}

/// So many objects that bypass a hook are told of at most.
const MOST_BYPASSES: usize = 64;

/// Fails with an object that calls a hooked function of another C library than ours.
pub(crate) fn one_namespace() -> Result<()> {
    let mut census = Census::new();
    census.other_namespaces();
    census.bypass.map_or(Ok(()), |bypass| Err(bypass.into()))
}

/// A call that does not reach us.
struct Bypass {
    object: String,
    symbol: CString,
    way: Way,
}

/// Where such a call goes.
enum Way {
    To(usize),
    Deep,
    OtherNamespace,
}

impl From<Bypass> for Error {
    /// Asks the loader who owns an address, which must not be done while it shows its objects: another thread that
    /// loads a library takes the same two locks the other way round.
    fn from(bypass: Bypass) -> Error {
        let reason = match bypass.way {
            Way::To(address) => format!("they go to {}", owner(address)),
            Way::Deep => "they will go to its own libraries first (RTLD_DEEPBIND)".into(),
            Way::OtherNamespace => "dlmopen put it into a namespace with a C library of its own".into(),
        };
        Error::HookNotLive { object: bypass.object, symbol: text(&bypass.symbol), reason }
    }
}

/// What the proof compares with.
struct Census {
    index: HashMap<&'static [u8], usize>,
    /// Per hook: where a new look-up by name leads.
    found: Vec<usize>,
    /// Per hook: where the program has others find it instead (see [`Import::stand_in`]).
    stand_in: Vec<Option<usize>>,
    excepted: Excepted,
    /// Our own namespace, as the loader describes it.
    space: *const Namespace,
    search_lists: OnceCell<Option<SearchLists>>,
    /// So many objects that bypass a hook are passed over.
    to_skip: usize,
    /// The object at hand is one of those.
    is_skipped: bool,
    bypass: Option<Bypass>,
}

impl Census {
    fn new() -> Census {
        Census {
            index: TABLE.iter().enumerate().map(|(i, hook)| (hook.name.to_bytes(), i)).collect(),
            found: TABLE.iter().map(|hook| look_up(hook.name)).collect(),
            stand_in: vec![None; TABLE.len()],
            excepted: Excepted::new(),
            space: look_up(c"_r_debug") as *const Namespace,
            search_lists: OnceCell::new(),
            to_skip: 0,
            is_skipped: false,
            bypass: None,
        }
    }

    /// Whether calls reach us at all: they do not if the library was loaded with dlopen(3), or behind another one that
    /// replaces the same functions.
    fn first_in_search_order(&self) -> Result<()> {
        for (hook, &found) in TABLE.iter().zip(&self.found) {
            // A function of a library that is not loaded: nobody calls it. Where a library came with it in a scope of its own,
            // the slots of whoever calls it tell.
            if found == 0 {
                continue;
            }
            if found != hook.ours as usize && !self.may_stand_in(found) {
                return Err(Error::HookNotLive {
                    object: "the program".into(),
                    symbol: text(hook.name),
                    reason: format!(
                        "they reach {} first; name libHotBackup.so first in LD_PRELOAD, or link the program with it \
                         (in a library that was loaded with dlopen, call hotbackup_attach)",
                        owner(found)
                    ),
                });
            }
        }
        Ok(())
    }

    /// Whether an address may be the program's own stand-in for a hook; its slot is checked like any other.
    fn may_stand_in(&self, address: usize) -> bool {
        owner_base(address) == owner_base(program_header())
    }

    /// Takes one object into account; false when there is no need to see more.
    fn visit(&mut self, object: &Object<'_>) -> bool {
        if self.excepted.has(object) {
            return true;
        }
        let is_deep = OnceCell::new();
        self.is_skipped = false;
        if let Some(tables) = object.tables() {
            tables.imports().for_each(|import| self.check(object, &is_deep, &import));
        }
        self.bypass.is_none()
    }

    fn check(&mut self, object: &Object<'_>, is_deep: &OnceCell<bool>, import: &Import<'_>) {
        let Some(&i) = self.index.get(import.name.to_bytes()) else {
            return;
        };
        if import.stand_in.is_some() && object.is_program {
            self.stand_in[i] = import.stand_in;
        }
        let hook = &TABLE[i];
        let ours = |address: usize| address == hook.ours as usize || Some(address) == self.stand_in[i];
        let waits = import.way == Use::Call && object.contains(import.value);
        let is_deep = waits && *is_deep.get_or_init(|| self.is_deep(object));
        let address = if waits { self.found[i] } else { import.value };
        // The program may have stored what it likes in a variable; only the real function there is a bypass.
        let is_bypass = match import.way {
            Use::Variable => address == hook.real.address() as usize,
            _ => is_deep || !ours(address),
        };
        if is_bypass && self.bypass.is_none() && !self.skips() {
            let way = if is_deep { Way::Deep } else { Way::To(address) };
            self.bypass = Some(Bypass { object: object.name(), symbol: hook.name.into(), way });
        }
    }

    /// Whether the object at hand, which bypasses a hook, is to be passed over.
    fn skips(&mut self) -> bool {
        if !self.is_skipped && self.to_skip > 0 {
            self.to_skip -= 1;
            self.is_skipped = true;
        }
        self.is_skipped
    }

    /// Whether an object's calls that are still to be bound will be looked up in its own libraries first.
    fn is_deep(&self, object: &Object<'_>) -> bool {
        if object.is_program || self.space.is_null() {
            return false;
        }
        // SAFETY: the loader holds its list still while it shows us its objects.
        unsafe {
            let first = (*self.space).first;
            let Some(lists) = self.search_lists.get_or_init(|| SearchLists::find(first)) else {
                return false;
            };
            let mut map: *const LinkMap = first;
            while !map.is_null() && ((*map).base != object.base() || Some((*map).dynamic) != object.dynamic())
            {
                map = (*map).next;
            }
            !map.is_null() && lists.is_deep(map)
        }
    }

    /// Objects that dlmopen(3) put into a namespace of their own have a C library of their own.
    fn other_namespaces(&mut self) {
        // SAFETY: the loader's description of itself is what debuggers rely on; from version 2 on it has a successor
        // for every further namespace. A namespace is only ever added while a program runs.
        unsafe {
            let mut space = self.space;
            while !space.is_null() && (*space).version >= 2 {
                space = (*space).next;
                if !space.is_null() {
                    self.other_namespace((*space).first);
                }
            }
        }
    }

    /// # Safety
    /// `map` is the first object of a namespace.
    unsafe fn other_namespace(&mut self, mut map: *const LinkMap) {
        while !map.is_null() && self.bypass.is_none() {
            // SAFETY: the loader's list holds valid objects.
            let (object, tables) = unsafe { (&*map, Tables::read((*map).base, (*map).dynamic)) };
            map = object.next;
            let Some(tables) = tables else { continue };
            let soname = tables.soname().unwrap_or(c"").to_bytes();
            if soname == b"libc.so.6" || soname.starts_with(b"ld-linux") {
                continue;
            }
            let mut names = tables.imports().map(|import| import.name);
            let name = names.find(|name| self.index.contains_key(name.to_bytes()));
            self.is_skipped = false;
            if let Some(name) = name.filter(|_| !self.skips()) {
                // SAFETY: the loader's names end with NUL.
                let object = text(unsafe { CStr::from_ptr(object.name) });
                self.bypass = Some(Bypass { object, symbol: name.into(), way: Way::OtherNamespace });
            }
        }
    }
}
