//! The declarations as the servers read them, by the names of the C symbols.
//!
//! Both families have an array of structures that ends with one of zeros, a number for the size of one, and a number
//! for the version of the layout. All fields are pointers, or 32-bit numbers that are aligned like pointers; so a
//! declaration is written here as words.

use std::ffi::{CStr, c_int, c_void};
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

use crate::host::{Family, Server};

#[cfg(not(all(target_pointer_width = "64", target_endian = "little")))]
compile_error!("a declaration's numbers lie at the low end of 64-bit words");

/// What a declaration says, whatever the server.
pub(crate) struct Declaration {
    pub(crate) name: &'static CStr,
    pub(crate) author: &'static CStr,
    pub(crate) description: &'static CStr,
    /// Major and minor number in a byte each.
    pub(crate) version: usize,
    pub(crate) version_text: &'static CStr,
    pub(crate) init: extern "C" fn(*mut c_void) -> c_int,
    pub(crate) end: extern "C" fn(*mut c_void) -> c_int,
    /// Anything but 0 keeps the plugin. Asked by MySQL 8 and later; other servers wait for statements that use its variables.
    pub(crate) check_uninstall: extern "C" fn(*mut c_void) -> c_int,
    /// Address of an array of status variables that one of zeros ends.
    pub(crate) status: usize,
    /// Address of an array of pointers to system variables that NULL ends.
    pub(crate) variables: usize,
}

/// Which word of a declaration says where the system variables are.
pub(crate) fn system_variables_at(server: Server) -> usize {
    if has_check_uninstall(server) { 11 } else { 10 }
}

fn has_check_uninstall(server: Server) -> bool {
    server.family == Family::MySql && server.version >= 80_000
}

const DAEMON: usize = 3;
/// The nearest of the licences that the servers know to MIT OR Apache-2.0.
const LICENCE_BSD: usize = 2;
/// MariaDB's word for "not proved for long yet": what is below is refused by default, without a reason of ours.
const MATURITY_GAMMA: usize = 4;

/// Words in the longest declaration.
pub(crate) const LONGEST: usize = 14;
const WORD: usize = size_of::<usize>();

/// An array of one declaration and the zeros that end it.
#[repr(transparent)]
pub(crate) struct Array([AtomicUsize; 2 * LONGEST]);

/// What a daemon plugin tells of itself: the server version that it was made for, in its upper bytes.
static INTERFACE: AtomicI32 = AtomicI32::new(0);

/// The symbols that one family of servers reads.
pub(crate) struct Symbols {
    family: Family,
    array: &'static Array,
    size: &'static AtomicI32,
    layout: &'static AtomicI32,
}

macro_rules! symbols {
    ($($(#[$doc:meta])* $name:ident: $t:ty = $value:expr;)*) => {$(
        $(#[$doc])*
        // SAFETY: no other symbol of a process has this name, except those of plugins, which are loaded apart.
        #[unsafe(no_mangle)]
        #[allow(non_upper_case_globals, reason = "the server looks for this name")]
        pub(crate) static $name: $t = $value;
    )*};
}

symbols! {
    /// Read by MySQL.
    _mysql_plugin_declarations_: Array = Array([const { AtomicUsize::new(0) }; 2 * LONGEST]);
    /// Read by MySQL: what it divides the array by.
    _mysql_sizeof_struct_st_plugin_: AtomicI32 = AtomicI32::new((13 * WORD) as i32);
    /// Read by MySQL: the version of the layout.
    _mysql_plugin_interface_version_: AtomicI32 = AtomicI32::new(0x0104);
    /// Read by MariaDB.
    _maria_plugin_declarations_: Array = Array([const { AtomicUsize::new(0) }; 2 * LONGEST]);
    /// Read by MariaDB: what it divides the array by.
    _maria_sizeof_struct_st_plugin_: AtomicI32 = AtomicI32::new((13 * WORD) as i32);
    /// Read by MariaDB: the version of the layout.
    _maria_plugin_interface_version_: AtomicI32 = AtomicI32::new(0x010d);
}

pub(crate) static MYSQL: Symbols = Symbols {
    family: Family::MySql,
    array: &_mysql_plugin_declarations_,
    size: &_mysql_sizeof_struct_st_plugin_,
    layout: &_mysql_plugin_interface_version_,
};
pub(crate) static MARIADB: Symbols = Symbols {
    family: Family::MariaDb,
    array: &_maria_plugin_declarations_,
    size: &_maria_sizeof_struct_st_plugin_,
    layout: &_maria_plugin_interface_version_,
};

impl Symbols {
    /// Fills the declaration for `server`; for one of the other family, or none, it stays empty.
    pub(crate) fn declare(&self, declaration: &Declaration, server: Option<Server>) {
        let Some(server) = server.filter(|server| server.family == self.family) else {
            return;
        };
        INTERFACE.store(server.version << 8, Ordering::Relaxed);
        let text = |text: &'static CStr| text.as_ptr() as usize;
        let mut words = vec![
            DAEMON,
            &raw const INTERFACE as usize,
            text(declaration.name),
            text(declaration.author),
            text(declaration.description),
            LICENCE_BSD,
            declaration.init as *const () as usize,
        ];
        if has_check_uninstall(server) {
            words.push(declaration.check_uninstall as *const () as usize);
            self.layout.store(0x010b, Ordering::Relaxed);
        }
        let end = declaration.end as *const () as usize;
        words.extend([end, declaration.version, declaration.status, declaration.variables]);
        words.extend(match server.family {
            Family::MySql => [0, 0],
            Family::MariaDb => [text(declaration.version_text), MATURITY_GAMMA],
        });
        for (slot, word) in self.array.0.iter().zip(&words) {
            slot.store(*word, Ordering::Relaxed);
        }
        let size = i32::try_from(words.len() * WORD).unwrap_or(0);
        self.size.store(size, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    extern "C" fn init(_: *mut c_void) -> c_int {
        0
    }

    const SAMPLE: Declaration = Declaration {
        name: c"name",
        author: c"author",
        description: c"description",
        version: 7,
        version_text: c"0.7",
        init,
        end: init,
        check_uninstall: init,
        status: 21,
        variables: 42,
    };

    fn declared(version: &str) -> (Vec<usize>, i32, i32) {
        let server = Server::parse(version).expect("a version");
        let array = Box::leak(Box::new(Array([const { AtomicUsize::new(0) }; 2 * LONGEST])));
        let size = Box::leak(Box::new(AtomicI32::new(104)));
        let layout = Box::leak(Box::new(AtomicI32::new(0x0104)));
        let symbols = Symbols { family: server.family, array, size, layout };
        symbols.declare(&SAMPLE, Some(server));
        let words = symbols.array.0.iter().map(|word| word.load(Ordering::Relaxed)).collect();
        let number = |n: &AtomicI32| n.load(Ordering::Relaxed);
        (words, number(symbols.size), number(symbols.layout))
    }

    #[test]
    fn each_family_finds_the_fields_where_it_looks() {
        let (old, size, layout) = declared("5.6.24");
        assert_eq!((old[0], old[5], old[8], size, layout), (3, 2, 7, 104, 0x0104));
        assert_eq!(old[9..11], [21, 42]);
        assert!(old[11..].iter().all(|&word| word == 0));
        let (new, size, layout) = declared("9.7.0");
        assert_eq!(new[system_variables_at(Server::parse("9.7.0").expect("a version"))], 42);
        let init = init as *const () as usize;
        assert_eq!((new[6], new[7], new[9], size, layout), (init, init, 7, 112, 0x010b));
        let (maria, size, _) = declared("10.11.6-MariaDB-0+deb12u1");
        assert_eq!((maria[8], maria[12], size), (7, MATURITY_GAMMA, 104));
        assert_eq!(maria[11], SAMPLE.version_text.as_ptr() as usize);
        assert!(maria[13..].iter().all(|&word| word == 0));
    }

    #[test]
    fn the_other_family_is_told_nothing() {
        MYSQL.declare(&SAMPLE, Server::parse("11.8.2-MariaDB"));
        MARIADB.declare(&SAMPLE, None);
        for array in [&_mysql_plugin_declarations_, &_maria_plugin_declarations_] {
            assert!(array.0.iter().all(|word| word.load(Ordering::Relaxed) == 0));
        }
    }
}
