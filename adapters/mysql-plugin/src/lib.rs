//! The plugin `tokudb_backup` for MySQL 5.6 to 9.x and MariaDB: one library for all of them, without their headers.
//!
//! In this version it declares itself and refuses to be installed, with a sentence in the server's error log. The
//! engine is not linked in: a plugin finds it in the preloaded libHotBackup.so, because two copies in one process
//! would see different worlds.
//!
//! A server reads the declarations by name right after it has loaded the library; what they must hold depends on the
//! server. So they are filled by a constructor, which runs before that.

mod abi;
mod server;

use std::ffi::{c_int, c_void};

use abi::{Declaration, MARIADB, MYSQL};
use server::Server;

/// What a server would list the plugin as.
const DECLARATION: Declaration = Declaration {
    name: c"tokudb_backup",
    author: c"The hotbackup authors",
    description: c"Hot backup by SQL",
    version: 0x0001,
    version_text: c"0.1",
    init: refuse,
};

const REFUSAL: &str = "Plugin tokudb_backup: backup by SQL is not built in this version of hotbackup; \
                       use the C API of the preloaded libHotBackup.so.\n";

/// Called by the server when the plugin is installed: anything but 0 means that it cannot be.
extern "C" fn refuse(_plugin: *mut c_void) -> c_int {
    server::log(REFUSAL);
    1
}

extern "C" fn declare() {
    let server = Server::here();
    MYSQL.declare(&DECLARATION, server);
    MARIADB.declare(&DECLARATION, server);
}

/// Has the dynamic loader call [`declare`] when the library is loaded.
#[used]
// SAFETY: the section is an array of functions of this very type, and `declare` needs nothing that is initialised
// later: it reads one exported string and stores to atomics of this library.
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = declare;
