//! The plugin `tokudb_backup` for MySQL 5.6 to 9.x and MariaDB: one library for all of them, without their headers.
//!
//! `SET tokudb_backup_dir = '/backups/monday'` makes a backup and returns when it is complete. The engine is not linked in: a
//! plugin finds it in a libHotBackup.so that the server was started with, or loads and attaches one, because two copies in one
//! process would see different worlds.
//!
//! A server reads the declarations by name right after it has loaded the library; what they must hold depends on the
//! server. So they are filled by a constructor, which runs before that. `abi` and `variable` are structures of the servers,
//! `host` and `services` what we call of theirs, `sql` sessions of our own in them, `library` the engine; `variables` and
//! `status` are what SQL sees; `run` makes a backup of what `sources` finds, while `lock` holds the server's lock
//! and has a `replica` rest. What lies beside the copies says `copies`, `positions` (by `binlog`) and `restore`.

mod abi;
mod binlog;
mod copies;
#[allow(dead_code, missing_docs, reason = "the library's own types, of which a part is used here")]
#[path = "../../../hotbackup-capi/src/declarations.rs"]
mod declarations;
mod host;
mod keys;
mod library;
mod links;
mod lock;
mod plugins;
mod positions;
mod regex;
mod replica;
mod restore;
mod run;
mod services;
mod sources;
mod sql;
mod status;
mod tablespaces;
mod temporary;
mod variable;
mod variables;

use std::ffi::{CStr, c_int, c_void};

use abi::{Declaration, MARIADB, MYSQL};
use declarations::Way;
use host::Server;
use library::Library;

const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
    Ok(version) => version,
    Err(_) => panic!("a version holds no NUL"),
};

/// Called by the server when the plugin is installed: anything but 0 means that it cannot be.
extern "C" fn init(_plugin: *mut c_void) -> c_int {
    match Library::load().and_then(|()| Library::find()).and_then(|library| library.attach()) {
        Ok(attachment) => {
            if attachment.way == Way::Attached {
                let declarations::Attachment { objects, slots, pointers, took_ns, .. } = attachment;
                host::log(&format!(
                    "attached in {} us: {slots} slots and {pointers} pointers of {objects} objects",
                    took_ns / 1000
                ));
            }
            if !Server::here().is_some_and(Server::is_tested) {
                host::log("this series of servers is not among those that it is tested with (docs/mysql.md)");
            }
            0
        }
        Err(failure) => {
            host::raise(1105, &failure.text);
            host::log(&failure.text);
            1
        }
    }
}

/// Called by MySQL 8 and later before the plugin is uninstalled: anything but 0 refuses. They would not wait for a backup.
extern "C" fn check_uninstall(_plugin: *mut c_void) -> c_int {
    c_int::from(status::is_running())
}

/// Called by the server when the plugin is uninstalled. Other servers wait for statements that use its variables.
extern "C" fn end(_plugin: *mut c_void) -> c_int {
    lock::settle();
    if let Err(failure) = Library::find().and_then(|library| library.detach()) {
        host::log(&failure.text);
    }
    0
}

extern "C" fn declare() {
    let server = Server::here();
    let declaration = Declaration {
        name: c"tokudb_backup",
        author: c"The hotbackup authors",
        description: c"Hot backup by SQL",
        version: 0x0001,
        version_text: VERSION,
        init,
        end,
        check_uninstall,
        status: status::declare(),
        variables: variables::declare(VERSION),
    };
    MYSQL.declare(&declaration, server);
    MARIADB.declare(&declaration, server);
}

/// Has the dynamic loader call [`declare`] when the library is loaded.
#[used]
// SAFETY: the section is an array of functions of this very type, and `declare` needs nothing that is initialised
// later: it reads what the process exports and stores to atomics of this library.
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = declare;
