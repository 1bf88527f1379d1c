//! System variables as the servers read them: structures that begin alike and go on by scope and type.
//!
//! All fields are pointers, 64-bit numbers, or 32-bit numbers aligned like them; so a variable is written as words. The
//! server keeps the address and fills the last two of a session variable: where its value lies in a session, and a function
//! that finds it.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};

const TEXT: usize = 5;
const INT: usize = 2;
const LONG: usize = 3;
const LONGLONG: usize = 4;
const BOOL: usize = 1;
const UNSIGNED: usize = 0x80;
const SESSION: usize = 0x100;
/// `SET` cannot change it.
pub(crate) const READ_ONLY: usize = 0x200;
/// It is no option of the command line.
pub(crate) const NO_OPTION: usize = 0x800;
/// The server copies a text that is set, and frees it.
const COPIED: usize = 0x8000;
/// `SET PERSIST` is refused, where there is such a thing.
pub(crate) const NO_PERSIST: usize = 0x1_0000;

/// A session of the server.
pub(crate) type Thd = *mut c_void;

/// What `SET` gives, to be asked for as text or as a number.
#[repr(C)]
pub(crate) struct Value {
    kind: extern "C" fn(*mut Value) -> c_int,
    text: extern "C" fn(*mut Value, *mut c_char, *mut c_int) -> *const c_char,
    real: extern "C" fn(*mut Value, *mut f64) -> c_int,
    integer: extern "C" fn(*mut Value, *mut i64) -> c_int,
    is_unsigned: extern "C" fn(*mut Value) -> c_int,
}

impl Value {
    /// The text, of whatever length; `None` for NULL.
    ///
    /// # Safety
    /// `value` is what a server gave to a check function that is running.
    pub(crate) unsafe fn text(value: *mut Value) -> Option<Vec<u8>> {
        let mut buffer = [0u8; 1024];
        let mut len = buffer.len() as c_int;
        // SAFETY: the buffer is as long as `len` says; the server gives back it or memory of its own, and the length.
        unsafe {
            let text = ((*value).text)(value, buffer.as_mut_ptr().cast(), &raw mut len);
            let len = usize::try_from(len).unwrap_or(0);
            (!text.is_null()).then(|| std::slice::from_raw_parts(text.cast::<u8>(), len).to_vec())
        }
    }

    /// What a switch is set to; `None` for what is neither on nor off.
    ///
    /// # Safety
    /// As for [`Value::text`].
    pub(crate) unsafe fn switch(value: *mut Value) -> Option<bool> {
        // SAFETY: as the caller says; texts are of kind 0.
        unsafe {
            if ((*value).kind)(value) != 0 {
                return Value::number(value).filter(|number| *number < 2).map(|number| number == 1);
            }
            let text = Value::text(value)?.to_ascii_lowercase();
            [("on", true), ("off", false), ("true", true), ("false", false)]
                .into_iter()
                .find_map(|(name, on)| (text == name.as_bytes()).then_some(on))
        }
    }

    /// The number; `None` for NULL and for one below zero.
    ///
    /// # Safety
    /// As for [`Value::text`].
    pub(crate) unsafe fn number(value: *mut Value) -> Option<u64> {
        let mut number = 0i64;
        // SAFETY: the server writes one number.
        unsafe {
            let is_null = ((*value).integer)(value, &raw mut number) != 0;
            let is_unsigned = ((*value).is_unsigned)(value) != 0;
            (!is_null && (is_unsigned || number >= 0)).then_some(number.cast_unsigned())
        }
    }
}

/// Called before a variable is set; anything but 0 refuses.
pub(crate) type Check = extern "C" fn(Thd, *const Variable, *mut c_void, *mut Value) -> c_int;
/// Sets a variable to what the check has saved.
pub(crate) type Update = extern "C" fn(Thd, *const Variable, *mut c_void, *const c_void);

/// What a variable is, apart from its name.
pub(crate) enum Kind {
    /// A text of each session that the server copies.
    SessionText(Option<&'static CStr>),
    /// A text of each session that lies in memory of ours.
    SessionLent,
    /// A number of each session: its default, least and greatest value.
    SessionNumber(u64, u64, u64),
    /// The same as C's `unsigned long`.
    SessionLong(u64, u64, u64),
    /// A text of the server, at this place.
    Text(&'static AtomicUsize, &'static CStr),
    /// One that is NULL by default.
    NoText(&'static AtomicUsize),
    /// A switch of the server, which is off.
    Switch(&'static AtomicUsize),
    /// A number of the server: its place, default, least and greatest value.
    Number(&'static AtomicUsize, u64, u64, u64),
}

/// A system variable.
#[repr(transparent)]
pub(crate) struct Variable([AtomicUsize; 11]);

const OFFSET: usize = 5;

impl Variable {
    pub(crate) const fn empty() -> Variable {
        Variable([const { AtomicUsize::new(0) }; 11])
    }

    /// Fills it in, before the server reads it.
    pub(crate) fn declare(
        &self,
        name: &'static CStr,
        comment: &'static CStr,
        flags: usize,
        kind: &Kind,
        check: Option<Check>,
        update: Option<Update>,
    ) {
        let text = |text: &'static CStr| text.as_ptr() as usize;
        let place = |place: &'static AtomicUsize| place.as_ptr() as usize;
        // What a session has lies -1 bytes from its beginning until the server says where.
        let unknown = (-1i32).cast_unsigned() as usize;
        let (kind, rest): (usize, [usize; 5]) = match *kind {
            Kind::SessionText(default) => {
                (TEXT | SESSION | COPIED, [unknown, default.map_or(0, text), 0, 0, 0])
            }
            Kind::SessionLent => (TEXT | SESSION, [unknown, 0, 0, 0, 0]),
            Kind::SessionNumber(default, least, most) => {
                (LONGLONG | UNSIGNED | SESSION, [unknown, default as usize, least as usize, most as usize, 0])
            }
            Kind::SessionLong(default, least, most) => {
                (LONG | UNSIGNED | SESSION, [unknown, default as usize, least as usize, most as usize, 0])
            }
            Kind::Text(at, default) => {
                // What is no option is not set to its default by the server.
                at.store(text(default), Ordering::Relaxed);
                (TEXT, [place(at), text(default), 0, 0, 0])
            }
            Kind::NoText(at) => (TEXT, [place(at), 0, 0, 0, 0]),
            Kind::Switch(at) => (BOOL, [place(at), 0, 0, 0, 0]),
            Kind::Number(at, default, least, most) => {
                (LONGLONG | UNSIGNED, [place(at), default as usize, least as usize, most as usize, 0])
            }
        };
        let check = check.map_or(0, |check| check as *const () as usize);
        let update = update.map_or(0, |update| update as *const () as usize);
        let words = [kind | flags, text(name), text(comment), check, update].into_iter().chain(rest);
        for (slot, word) in self.0.iter().zip(words) {
            slot.store(word, Ordering::Relaxed);
        }
    }

    fn word(&self, index: usize) -> usize {
        self.0[index].load(Ordering::Relaxed)
    }

    /// Where a session's value lies.
    ///
    /// # Safety
    /// `thd` is a session that is running a statement, and `T` is what the variable's kind says.
    unsafe fn place<T>(&self, thd: Thd) -> Option<*mut T> {
        let resolve = self.word(if self.word(0) & 0x7f == TEXT { 7 } else { 10 });
        if resolve == 0 {
            return None;
        }
        // SAFETY: the server has put a function of this type there, and the offset that it wants.
        let resolve: extern "C" fn(Thd, c_int) -> *mut T = unsafe { std::mem::transmute(resolve) };
        Some(resolve(thd, self.word(OFFSET) as u32 as c_int)).filter(|place| !place.is_null())
    }

    /// A session's number.
    ///
    /// # Safety
    /// `thd` is a session that is running a statement, and the variable a number of sessions.
    pub(crate) unsafe fn number(&self, thd: Thd) -> Option<u64> {
        // SAFETY: both types of number have 64 bits.
        unsafe { self.place::<u64>(thd).map(|place| *place) }
    }

    /// Sets a session's number.
    ///
    /// # Safety
    /// As for [`Variable::number`].
    pub(crate) unsafe fn set_number(&self, thd: Thd, number: u64) {
        // SAFETY: as above.
        if let Some(place) = unsafe { self.place::<u64>(thd) } {
            // SAFETY: as above.
            unsafe { *place = number };
        }
    }

    /// A session's text.
    ///
    /// # Safety
    /// `thd` is a session that is running a statement, and the variable a text of sessions.
    pub(crate) unsafe fn text(&self, thd: Thd) -> Option<Vec<u8>> {
        // SAFETY: a text is a pointer to a string, or NULL.
        unsafe {
            let text = *self.place::<*const c_char>(thd)?;
            (!text.is_null()).then(|| CStr::from_ptr(text).to_bytes().to_vec())
        }
    }

    /// Has a session's text be one that is lent to it.
    ///
    /// # Safety
    /// `thd` is a session that is running a statement, the variable is [`Kind::SessionLent`], and the text lives until the
    /// session has another one.
    pub(crate) unsafe fn lend(&self, thd: Thd, text: *const c_char) {
        // SAFETY: as above.
        if let Some(place) = unsafe { self.place::<*const c_char>(thd) } {
            // SAFETY: as above.
            unsafe { *place = text };
        }
    }
}

/// A read of a global variable of some plugin of the server, by the name that it declares.
pub(crate) struct Foreign<'a> {
    words: &'a [usize],
}

impl Foreign<'_> {
    /// The global variable `name` among the NULL-terminated `variables` of a plugin.
    ///
    /// # Safety
    /// `variables` is what a loaded plugin declares, or NULL.
    pub(crate) unsafe fn find(variables: *const *const usize, name: &CStr) -> Option<Foreign<'static>> {
        let mut at = variables;
        // SAFETY: the array ends with NULL, its entries are variables, which begin with flags, name and comment.
        unsafe {
            while !at.is_null() && !(*at).is_null() {
                let words = std::slice::from_raw_parts(*at, 6);
                let found = words[1] as *const c_char;
                if !found.is_null() && CStr::from_ptr(found) == name && words[0] & SESSION == 0 {
                    return Some(Foreign { words });
                }
                at = at.add(1);
            }
        }
        None
    }

    /// Its text, if it is one and not NULL.
    pub(crate) fn text(&self) -> Option<Vec<u8>> {
        if self.words[0] & 0x7f != TEXT || self.words[5] == 0 {
            return None;
        }
        // SAFETY: a global text's sixth word points to a pointer to a string, or NULL.
        unsafe {
            let text = *(self.words[5] as *const *const c_char);
            (!text.is_null()).then(|| CStr::from_ptr(text).to_bytes().to_vec())
        }
    }

    /// Its number, if it is one.
    pub(crate) fn number(&self) -> Option<u64> {
        // SAFETY: a global number's sixth word points to it, and its type says how long it is.
        unsafe {
            match self.words[0] & 0x7f {
                _ if self.words[5] == 0 => None,
                INT => Some(u64::from(*(self.words[5] as *const u32))),
                LONG | LONGLONG => Some(*(self.words[5] as *const u64)),
                _ => None,
            }
        }
    }
}
