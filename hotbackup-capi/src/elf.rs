//! The relocations of a loaded object, read from memory as the dynamic loader left it.
//!
//! Everything here trusts the loader: the tables that the dynamic section names are those that it has worked with.

use std::ffi::{CStr, c_char};
use std::sync::atomic::AtomicUsize;

#[cfg(target_arch = "x86_64")]
mod kind {
    pub(super) const ABSOLUTE: u64 = 1;
    pub(super) const DATA: u64 = 6;
    pub(super) const CALL: u64 = 7;
}
#[cfg(target_arch = "aarch64")]
mod kind {
    pub(super) const ABSOLUTE: u64 = 257;
    pub(super) const DATA: u64 = 1025;
    pub(super) const CALL: u64 = 1026;
}

const DT_NULL: u64 = 0;
const DT_NEEDED: u64 = 1;
const DT_PLTRELSZ: u64 = 2;
const DT_STRTAB: u64 = 5;
const DT_SYMTAB: u64 = 6;
const DT_RELA: u64 = 7;
const DT_RELASZ: u64 = 8;
const DT_SONAME: u64 = 14;
const DT_JMPREL: u64 = 23;

/// One entry of a dynamic section.
#[repr(C)]
pub(crate) struct DynamicEntry {
    tag: u64,
    value: u64,
}

#[repr(C)]
struct Symbol {
    name: u32,
    info: u8,
    other: u8,
    section: u16,
    value: u64,
    size: u64,
}

#[repr(C)]
struct Relocation {
    offset: u64,
    info: u64,
    addend: i64,
}

/// How an object uses a symbol that another object may define.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// A slot of its procedure linkage table, which may be bound on the first call only.
    Call,
    /// A slot that holds the address for good.
    Address,
    /// A variable that began with the address; the program may have stored another one since.
    Variable,
}

/// A relocation against a symbol.
pub(crate) struct Import<'a> {
    pub(crate) name: &'a CStr,
    pub(crate) way: Use,
    /// Where the address is kept.
    pub(crate) slot: *const AtomicUsize,
    /// What the slot holds now.
    pub(crate) value: usize,
    /// The object defines the symbol itself.
    pub(crate) is_defined: bool,
    /// Where the object has other objects find the function if it does not define it: the entry of its own procedure
    /// linkage table. That is how a program that is not position-independent takes a function's address.
    pub(crate) stand_in: Option<usize>,
}

/// The tables of one object.
pub(crate) struct Tables {
    base: usize,
    symbols: *const Symbol,
    strings: *const c_char,
    soname: Option<u64>,
    dynamic: *const DynamicEntry,
    /// Begin and length of each relocation table, in entries.
    relocations: [(*const Relocation, usize); 2],
}

impl Tables {
    /// Finds the tables of the object that is loaded at `base`; `None` if it has no symbols.
    ///
    /// # Safety
    /// `dynamic` is the dynamic section of an object that stays loaded as long as the result is used.
    pub(crate) unsafe fn read(base: usize, dynamic: *const DynamicEntry) -> Option<Tables> {
        let (mut symbols, mut strings, mut soname) = (0, 0, None);
        let (mut rela, mut rela_bytes, mut calls, mut call_bytes) = (0, 0, 0, 0);
        let mut entry = dynamic;
        loop {
            // SAFETY: the section ends with DT_NULL, which ends this loop.
            let DynamicEntry { tag, value } = unsafe { entry.read() };
            match tag {
                DT_NULL => break,
                DT_SYMTAB => symbols = value,
                DT_STRTAB => strings = value,
                DT_SONAME => soname = Some(value),
                DT_RELA => rela = value,
                DT_RELASZ => rela_bytes = value,
                DT_JMPREL => calls = value,
                DT_PLTRELSZ => call_bytes = value,
                _ => {}
            }
            // SAFETY: as above.
            entry = unsafe { entry.add(1) };
        }
        // glibc turns these entries into addresses when it loads an object, unless the section is read-only.
        let address = |value: u64| {
            let value = value as usize;
            if value < base { base + value } else { value }
        };
        let table = |value: u64, bytes: u64| {
            let count = if value == 0 { 0 } else { bytes as usize / size_of::<Relocation>() };
            (address(value) as *const Relocation, count)
        };
        (symbols != 0 && strings != 0).then(|| Tables {
            base,
            symbols: address(symbols) as *const Symbol,
            strings: address(strings) as *const c_char,
            soname,
            dynamic,
            relocations: [table(rela, rela_bytes), table(calls, call_bytes)],
        })
    }

    /// The name that the object gives itself.
    pub(crate) fn soname(&self) -> Option<&CStr> {
        // SAFETY: the offset is one into the object's string table, whose strings end with NUL.
        self.soname.map(|at| unsafe { CStr::from_ptr(self.strings.add(at as usize)) })
    }

    /// The libraries that it asks for.
    pub(crate) fn needed(&self) -> impl Iterator<Item = &CStr> {
        // SAFETY: the section ends with DT_NULL.
        let entries =
            (0..).map(|at| unsafe { &*self.dynamic.add(at) }).take_while(|entry| entry.tag != DT_NULL);
        // SAFETY: the value is an offset into the object's string table, whose strings end with NUL.
        let name = |entry: &DynamicEntry| unsafe { CStr::from_ptr(self.strings.add(entry.value as usize)) };
        entries.filter(|entry| entry.tag == DT_NEEDED).map(name)
    }

    /// Every use of a symbol by name.
    pub(crate) fn imports(&self) -> impl Iterator<Item = Import<'_>> {
        self.relocations.iter().flat_map(move |&(table, count)| {
            (0..count).filter_map(move |at| {
                // SAFETY: the table has `count` entries.
                let relocation = unsafe { &*table.add(at) };
                self.import(relocation)
            })
        })
    }

    fn import(&self, relocation: &Relocation) -> Option<Import<'_>> {
        let way = match relocation.info & 0xffff_ffff {
            kind::CALL => Use::Call,
            kind::DATA => Use::Address,
            kind::ABSOLUTE if relocation.addend == 0 => Use::Variable,
            _ => return None,
        };
        let index = (relocation.info >> 32) as usize;
        if index == 0 {
            return None;
        }
        // SAFETY: the relocation names a symbol of the object's table, and that symbol a string of its string table;
        // the slot lies in the object's memory, which may change at any time (and may be unaligned in code), so it is read
        // volatile.
        unsafe {
            let symbol = &*self.symbols.add(index);
            let slot = (self.base + relocation.offset as usize) as *const AtomicUsize;
            Some(Import {
                name: CStr::from_ptr(self.strings.add(symbol.name as usize)),
                way,
                slot,
                value: slot.cast::<usize>().read_volatile(),
                is_defined: symbol.section != 0,
                stand_in: (symbol.section == 0 && symbol.value != 0)
                    .then(|| self.base + symbol.value as usize),
            })
        }
    }
}
