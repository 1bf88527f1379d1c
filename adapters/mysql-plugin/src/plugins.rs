//! Variables of the server's plugins, read where these keep them.
//!
//! Plugins that are built in stand in two arrays that every server exports. Others are libraries, each with its declarations
//! under the names that the server looked for when it loaded it.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::PathBuf;

use crate::abi;
use crate::host::{Family, Server, symbol};
use crate::variable::Foreign;

/// What plugins have in front of their variables. The array ends with one of zeros.
type Declarations = *const usize;

/// The text of the global variable `variable` of the plugin `plugin`, unless it is NULL or there is no such thing.
pub(crate) fn text(server: Server, plugin: &CStr, variable: &CStr) -> Option<Vec<u8>> {
    ask(server, plugin, variable, |variable| variable.text())
}

/// The number in the global variable `variable` of the plugin `plugin`.
pub(crate) fn number(server: Server, plugin: &CStr, variable: &CStr) -> Option<u64> {
    ask(server, plugin, variable, |variable| variable.number())
}

fn ask<T>(
    server: Server,
    plugin: &CStr,
    variable: &CStr,
    question: impl Fn(&Foreign<'_>) -> Option<T>,
) -> Option<T> {
    if let Some(found) = built_in(server, plugin, variable) {
        return question(&found);
    }
    libraries().into_iter().find_map(|path| {
        let library = Loaded::open(&path)?;
        let (declarations, words) = library.declarations(server)?;
        // SAFETY: the library's own declarations, which it keeps as long as it is held; zeros end them.
        unsafe {
            let all = (0..).map(|number| declarations.add(number * words)).take_while(|at| *at.add(1) != 0);
            all.filter_map(|at| of_plugin(server, at, plugin, variable)).find_map(|found| question(&found))
        }
    })
}

fn built_in(server: Server, plugin: &CStr, variable: &CStr) -> Option<Foreign<'static>> {
    let arrays = [c"mysql_mandatory_plugins", c"mysql_optional_plugins"];
    arrays.into_iter().find_map(|array| {
        let mut at = symbol(&[array])?.cast::<Declarations>().cast_const();
        // SAFETY: an array of pointers to declarations that NULL ends.
        unsafe {
            while !(*at).is_null() {
                if let Some(found) = of_plugin(server, *at, plugin, variable) {
                    return Some(found);
                }
                at = at.add(1);
            }
        }
        None
    })
}

/// The variable, if this is the declaration of its plugin.
///
/// # Safety
/// `declaration` is that of a plugin that stays loaded while the variable is used.
unsafe fn of_plugin(
    server: Server,
    declaration: Declarations,
    plugin: &CStr,
    variable: &CStr,
) -> Option<Foreign<'static>> {
    // SAFETY: a declaration has more words than are read; the third is its name, and variables end with NULL.
    unsafe {
        let words = std::slice::from_raw_parts(declaration, abi::LONGEST - 2);
        let name = words[2] as *const c_char;
        if name.is_null() || CStr::from_ptr(name) != plugin {
            return None;
        }
        Foreign::find(words[abi::system_variables_at(server)] as *const *const usize, variable)
    }
}

/// Where the libraries lie that this process has loaded.
pub(crate) fn libraries() -> Vec<PathBuf> {
    unsafe extern "C" fn note(info: *mut libc::dl_phdr_info, _: usize, paths: *mut c_void) -> c_int {
        use std::os::unix::ffi::OsStringExt;
        // SAFETY: the loader gives a struct whose name is a string or NULL, and what `libraries` gave it.
        unsafe {
            let name = (*info).dlpi_name;
            if !name.is_null() && *name != 0 {
                let name = CStr::from_ptr(name).to_bytes().to_vec();
                (*paths.cast::<Vec<PathBuf>>()).push(std::ffi::OsString::from_vec(name).into());
            }
        }
        0
    }
    let mut paths = Vec::<PathBuf>::new();
    // SAFETY: the function takes what it is given here.
    unsafe { libc::dl_iterate_phdr(Some(note), (&raw mut paths).cast()) };
    paths
}

/// A library that is loaded, and stays so while this is held.
struct Loaded(*mut c_void);

impl Loaded {
    fn open(path: &std::path::Path) -> Option<Loaded> {
        use std::os::unix::ffi::OsStrExt;
        let path = CString::new(path.as_os_str().as_bytes()).ok()?;
        // SAFETY: loads nothing: it takes one more reference to what is there, or there is none.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
        (!handle.is_null()).then(|| Loaded(handle))
    }

    /// The declarations that this server has read from it, and how many words there are to each.
    fn declarations(&self, server: Server) -> Option<(Declarations, usize)> {
        let of = |array: &CStr, size: &CStr| {
            // SAFETY: the handle is open; asking has no effect.
            let (array, size) = unsafe {
                (libc::dlsym(self.0, array.as_ptr()), libc::dlsym(self.0, size.as_ptr()).cast::<c_int>())
            };
            if array.is_null() || size.is_null() {
                return None;
            }
            // SAFETY: a number that says how long one declaration is.
            let words = usize::try_from(unsafe { *size }).ok()? / size_of::<usize>();
            (words >= abi::LONGEST - 2).then_some((array.cast::<usize>().cast_const(), words))
        };
        let mysql = || of(c"_mysql_plugin_declarations_", c"_mysql_sizeof_struct_st_plugin_");
        match server.family {
            Family::MySql => mysql(),
            Family::MariaDb => {
                of(c"_maria_plugin_declarations_", c"_maria_sizeof_struct_st_plugin_").or_else(mysql)
            }
        }
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        // SAFETY: it was opened, and nothing of it is used any more.
        unsafe { libc::dlclose(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loaded_libraries_are_found_and_ordinary_ones_declare_nothing() {
        let all = libraries();
        let c = all.iter().find(|path| path.to_string_lossy().contains("libc.so")).expect("the C library");
        let library = Loaded::open(c).expect("it is loaded");
        assert!(library.declarations(Server::parse("10.11.6-MariaDB").expect("a version")).is_none());
        assert!(Loaded::open(std::path::Path::new("/nowhere/at/all.so")).is_none());
    }
}
