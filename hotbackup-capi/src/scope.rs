//! The dynamic loader's own lists: namespaces, objects, and where an object looks for symbols.
//!
//! The first two are what debuggers read. The last is private: a slot that is bound on its first call does not show
//! yet where that call will go, and an object loaded with `RTLD_DEEPBIND` will look in its own libraries first. So the
//! place of the search list in the loader's records is found by comparing records whose list is known; if that fails,
//! nothing is claimed.

use std::ffi::{c_char, c_int};

use crate::elf::DynamicEntry;

/// The loader's list of namespaces (`struct r_debug_extended`).
#[repr(C)]
pub(crate) struct Namespace {
    pub(crate) version: c_int,
    pub(crate) first: *const LinkMap,
    brk: usize,
    state: c_int,
    loader: usize,
    pub(crate) next: *const Namespace,
}

/// The public head of the loader's record of an object (`struct link_map`).
#[repr(C)]
pub(crate) struct LinkMap {
    pub(crate) base: usize,
    pub(crate) name: *const c_char,
    pub(crate) dynamic: *const DynamicEntry,
    pub(crate) next: *const LinkMap,
    previous: *const LinkMap,
}

/// One list of objects to search (`struct r_scope_elem`).
#[repr(C)]
struct List {
    objects: *const *const LinkMap,
    count: u32,
}

/// In words, more than the public head of a record and less than a whole one in any glibc so far.
const RECORD_WORDS: std::ops::Range<usize> = 5..138;

/// Where records keep their search lists.
pub(crate) struct SearchLists {
    word: usize,
    /// The list that ordinary objects begin with: the program and what it was started with.
    global: usize,
}

impl SearchLists {
    /// Finds the place, from the records of the objects that the program was started with.
    ///
    /// # Safety
    /// `first` is the first record of the program's own namespace, and the list stands still.
    pub(crate) unsafe fn find(first: *const LinkMap) -> Option<SearchLists> {
        let mut others = Vec::new();
        // SAFETY: the caller says so.
        let mut map = unsafe { first.as_ref()? }.next;
        // The two behind the program are there from the start: the vDSO or a preloaded library, then one more.
        while !map.is_null() && others.len() < 2 {
            others.push(map);
            // SAFETY: as above.
            map = unsafe { (*map).next };
        }
        RECORD_WORDS.clone().find_map(|word| {
            // SAFETY: a record is at least that long, and what points into it can be read.
            unsafe {
                let global = inner_list(first, word).filter(|&list| is_inside(first, list))?;
                let agree = others.iter().all(|&other| inner_list(other, word) == Some(global));
                (agree && others.len() == 2).then_some(SearchLists { word, global })
            }
        })
    }

    /// Whether an object looks in its own libraries before the program's.
    ///
    /// # Safety
    /// `map` is the record of a loaded object.
    pub(crate) unsafe fn is_deep(&self, map: *const LinkMap) -> bool {
        // SAFETY: the record has its search lists at the place where the others have them.
        unsafe {
            let lists = map.cast::<*const *const List>().add(self.word).read();
            let first = lists.read();
            // An object linked with -Bsymbolic looks into itself first; that is no bypass.
            let only_itself = (*first).count == 1 && *(*first).objects == map;
            let first = if only_itself { lists.add(1).read() } else { first };
            first as usize != self.global
        }
    }
}

/// The first search list of a record, if its array is the one inside the record at `word`.
unsafe fn inner_list(map: *const LinkMap, word: usize) -> Option<usize> {
    // SAFETY: the caller says that the record is longer than `word` words; the array lies inside the record.
    unsafe {
        let array = map.cast::<usize>().add(word).read();
        (array.is_multiple_of(size_of::<usize>()) && is_inside(map, array))
            .then(|| (array as *const usize).read())
    }
}

fn is_inside(map: *const LinkMap, address: usize) -> bool {
    let begin = map as usize;
    (begin + size_of::<LinkMap>()..begin + RECORD_WORDS.end * size_of::<usize>()).contains(&address)
}
