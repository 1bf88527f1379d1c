//! What we need of the server that loaded us, by the names that it exports.
//!
//! Servers differ in what they export and how C++ has mangled it; whatever is missing is missing by name.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_ulong, c_void};
use std::path::PathBuf;

use crate::services;
use crate::variable::Thd;

/// The two families, whose plugins are declared differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    MySql,
    MariaDb,
}

/// Which server this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Server {
    pub(crate) family: Family,
    /// Major * 10,000 + minor * 100 + patch.
    pub(crate) version: i32,
}

impl Server {
    /// The server that this process is, by the variable `server_version` that all of them export.
    pub(crate) fn here() -> Option<Server> {
        // SAFETY: in every server it is an array of char that a NUL ends and that is set before plugins are loaded.
        let text = unsafe { CStr::from_ptr(symbol(&[c"server_version"])?.cast::<c_char>()) };
        Server::parse(text.to_str().ok()?)
    }

    pub(crate) fn parse(text: &str) -> Option<Server> {
        let family = if text.contains("MariaDB") { Family::MariaDb } else { Family::MySql };
        // MariaDB may put "5.5.5-" before its own version, for old replicas.
        let text = text.strip_prefix("5.5.5-").filter(|_| family == Family::MariaDb).unwrap_or(text);
        let end = text.find(|c: char| c != '.' && !c.is_ascii_digit());
        let mut numbers = text[..end.unwrap_or(text.len())].split('.').map(str::parse::<i32>);
        let mut next = || numbers.next()?.ok().filter(|number| *number < 100);
        Some(Server { family, version: next()? * 10_000 + next()? * 100 + next().unwrap_or(0) })
    }

    /// Whether this version is one that the plugin is tested with.
    pub(crate) fn is_tested(self) -> bool {
        let series = self.version / 100;
        match self.family {
            Family::MySql => matches!(series, 506 | 907),
            Family::MariaDb => matches!(series, 1011 | 1108),
        }
    }
}

/// The first of these symbols that the process has.
pub(crate) fn symbol(names: &[&CStr]) -> Option<*mut c_void> {
    // SAFETY: the names are C strings, and looking up a symbol has no effect.
    let found = names.iter().map(|name| unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) });
    found.into_iter().find(|address| !address.is_null())
}

/// A text that the server exports as a pointer.
pub(crate) fn text_at(name: &CStr) -> Option<Vec<u8>> {
    // SAFETY: the variables asked for are pointers to strings, or NULL, in every server that has them.
    unsafe {
        let text = *symbol(&[name])?.cast::<*const c_char>();
        (!text.is_null()).then(|| CStr::from_ptr(text).to_bytes().to_vec())
    }
}

/// The same, if it is not empty.
fn setting(name: &CStr) -> Option<Vec<u8>> {
    text_at(name).filter(|text| !text.is_empty())
}

/// The low 32 bits of a number that the server exports.
pub(crate) fn number_at(name: &CStr) -> Option<u32> {
    // SAFETY: the variables asked for are numbers of at least 32 bits, which the server may change, in every server that has
    // them.
    symbol(&[name]).map(|at| unsafe { at.cast::<u32>().read_volatile() })
}

/// A switch that the server exports.
fn is_on(name: &CStr) -> bool {
    // SAFETY: the variables asked for are of one byte in every server that has them.
    symbol(&[name]).is_some_and(|at| unsafe { at.cast::<u8>().read_volatile() } != 0)
}

/// Writes to the server's error log, which is its stderr.
pub(crate) fn log(text: &str) {
    let line = format!("Plugin tokudb_backup: {text}\n");
    // SAFETY: the pointer and length are those of a string.
    unsafe { libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len()) };
}

/// Has the statement that is running fail with this error.
pub(crate) fn raise(number: c_uint, text: &str) {
    let names = [c"my_printf_error", c"_Z15my_printf_errorjPKciz"];
    let Some(raise) = symbol(&names) else { return log(text) };
    // SAFETY: a function of this type in every server; flags of an int or of a long are passed alike.
    let raise: extern "C" fn(c_uint, *const c_char, c_ulong, ...) = unsafe { std::mem::transmute(raise) };
    raise(number, c"%s".as_ptr(), 0, c_text(text).as_ptr());
}

pub(crate) fn c_text(text: &str) -> CString {
    CString::new(text.replace('\0', "?")).unwrap_or_default()
}

/// Shows `state` in the processlist; it has to live until another one is shown. Returns what was shown before.
pub(crate) fn show_state(thd: Thd, state: *const c_char) -> *const c_char {
    let Some(show) = symbol(&[c"set_thd_proc_info"]) else { return std::ptr::null() };
    type Show = extern "C" fn(Thd, *const c_char, *const c_char, *const c_char, c_uint) -> *const c_char;
    // SAFETY: a function of this type in every server.
    let show: Show = unsafe { std::mem::transmute(show) };
    show(thd, state, c"backup".as_ptr(), c"tokudb_backup".as_ptr(), 0)
}

/// Whether the statement that is running is to end.
pub(crate) fn is_killed(thd: Thd) -> bool {
    let Some(killed) = symbol(&[c"thd_killed"]) else { return false };
    // SAFETY: a function of this type in every server.
    let killed: extern "C" fn(Thd) -> c_int = unsafe { std::mem::transmute(killed) };
    killed(thd) != 0
}

/// Whether what is set is set for one statement only: MariaDB's `SET STATEMENT ... FOR ...`, which sets it back afterwards.
pub(crate) fn is_for_one_statement(thd: Thd) -> bool {
    /// The number of the command SET.
    const SET: c_int = 31;
    #[repr(C)]
    struct Text(*const c_char, usize);
    if !matches!(Server::here(), Some(Server { family: Family::MariaDb, .. })) {
        return false;
    }
    let (Some(command), Some(query)) = (symbol(&[c"thd_sql_command"]), symbol(&[c"thd_query_string"])) else {
        return false;
    };
    // SAFETY: functions of these types in every MariaDB that has them; the session runs the statement that is asked about.
    let (command, text) = unsafe {
        let command: extern "C" fn(Thd) -> c_int = std::mem::transmute(command);
        let query: extern "C" fn(Thd) -> *const Text = std::mem::transmute(query);
        let text = query(thd).as_ref().filter(|text| !text.0.is_null());
        (command(thd), text.map_or(&[][..], |text| std::slice::from_raw_parts(text.0.cast::<u8>(), text.1)))
    };
    // Were SET another number in some other MariaDB, ordinary statements have to go on working there.
    let word = b"STATEMENT";
    command != SET && text.windows(word.len()).any(|part| part.eq_ignore_ascii_case(word))
}

/// Whether the session may back the server up: with SUPER, or what the server has for this, which is BACKUP_ADMIN in MySQL 8
/// and later, and in MariaDB what it asks for its own BACKUP statements, RELOAD. If not, the server's own access error has
/// been raised.
pub(crate) fn may_back_up(server: Server, thd: Thd) -> bool {
    const RELOAD: c_ulong = 1 << 6;
    const SUPER: c_ulong = 1 << 15;
    match server.family {
        Family::MariaDb => has_any(thd, SUPER | RELOAD),
        Family::MySql if server.version < 80_000 => has_any(thd, SUPER),
        Family::MySql => {
            if services::has_privilege(thd, c"BACKUP_ADMIN") || services::is_super(thd) {
                return true;
            }
            lacks(c"SUPER or BACKUP_ADMIN");
            false
        }
    }
}

/// Whether the session has any of these privileges. If not, the server's own access error has been raised.
fn has_any(thd: Thd, privileges: c_ulong) -> bool {
    let names = [c"_Z19check_global_accessP3THDm", c"_Z19check_global_accessP3THD11privilege_tb"];
    let Some(check) = symbol(&names) else {
        let text = "tokudb_backup cannot tell who may back up this server: it exports no check_global_access";
        raise(1105, text);
        return false;
    };
    // SAFETY: of this type in every server; what has fewer arguments ignores the last.
    let check: extern "C" fn(Thd, c_ulong, c_int) -> bool = unsafe { std::mem::transmute(check) };
    !check(thd, privileges, 0)
}

/// Raises the server's own access error, in its words and language.
fn lacks(privileges: &CStr) {
    const SPECIFIC_ACCESS_DENIED: c_int = 1227;
    let Some(raise_own) = symbol(&[c"my_error", c"_Z8my_erroriiz"]) else {
        return raise(1227, &format!("Access denied; you need {}", privileges.to_string_lossy()));
    };
    // SAFETY: of this type in every server; the text of this error has one `%s`.
    let raise_own: extern "C" fn(c_int, c_int, ...) = unsafe { std::mem::transmute(raise_own) };
    raise_own(SPECIFIC_ACCESS_DENIED, 0, privileges.as_ptr());
}

/// A copy of `text` that lives as long as the statement.
pub(crate) fn statement_text(thd: Thd, text: &[u8]) -> Option<*mut c_char> {
    let make = symbol(&[c"thd_strmake", c"_Z11thd_strmakeP3THDPKcm"])?;
    // SAFETY: a function of this type in every server.
    let make: extern "C" fn(Thd, *const c_char, usize) -> *mut c_char = unsafe { std::mem::transmute(make) };
    Some(make(thd, text.as_ptr().cast(), text.len())).filter(|made| !made.is_null())
}

/// The data directory, absolute.
pub(crate) fn data_directory() -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    // SAFETY: an array of char that a NUL ends, in every server.
    let text = unsafe { CStr::from_ptr(symbol(&[c"mysql_real_data_home"])?.cast::<c_char>()) };
    Some(std::ffi::OsString::from_vec(text.to_bytes().to_vec()).into())
}

/// Where binary logs lie: directory and beginning of their names, absolute or below the data directory.
pub(crate) fn binary_log() -> Option<Vec<u8>> {
    text_at(c"log_bin_basename").or_else(|| text_at(c"opt_bin_logname"))
}

/// The same for relay logs.
pub(crate) fn relay_log() -> Option<Vec<u8>> {
    text_at(c"relay_log_basename").or_else(|| text_at(c"opt_relay_logname"))
}

/// Whether there is a binary log.
pub(crate) fn has_binary_log() -> bool {
    is_on(c"opt_bin_log")
}

/// Whether what a replica executes is in its binary log too.
pub(crate) fn logs_what_it_replicates() -> bool {
    is_on(c"opt_log_replica_updates") || is_on(c"opt_log_slave_updates")
}

/// The file that lists the binary logs.
pub(crate) fn binary_log_index() -> Option<Vec<u8>> {
    setting(c"log_bin_index")
}

/// The file that lists the relay logs.
pub(crate) fn relay_log_index() -> Option<Vec<u8>> {
    setting(c"relay_log_index")
}

/// The files in which a replica keeps whom it follows and how far it has come, where it keeps that in files.
pub(crate) fn replication_files() -> Option<[Vec<u8>; 2]> {
    Some([setting(c"master_info_file")?, setting(c"relay_log_info_file")?])
}

pub(crate) fn server_id() -> Option<u32> {
    number_at(c"server_id")
}

pub(crate) fn lower_case_table_names() -> Option<u32> {
    number_at(c"lower_case_table_names")
}

/// What the variable gtid_mode says, where there is one.
pub(crate) fn gtid_mode(server: Server) -> Option<&'static str> {
    let names = match server.version {
        ..50_700 => ["OFF", "UPGRADE_STEP_1", "UPGRADE_STEP_2", "ON"],
        _ => ["OFF", "OFF_PERMISSIVE", "ON_PERMISSIVE", "ON"],
    };
    let number = number_at(c"gtid_mode").or_else(|| number_at(c"_ZN9Gtid_mode11sysvar_modeE"))?;
    names.get(usize::try_from(number).ok()?).copied().filter(|_| server.family == Family::MySql)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_understood() {
        let of = |text| Server::parse(text).map(|server| (server.family, server.version));
        assert_eq!(of("5.6.24"), Some((Family::MySql, 50_624)));
        assert_eq!(of("9.7.0-debug"), Some((Family::MySql, 90_700)));
        assert_eq!(of("10.11.6-MariaDB-0+deb12u1"), Some((Family::MariaDb, 101_106)));
        assert_eq!(of("5.5.5-10.11.6-MariaDB"), Some((Family::MariaDb, 101_106)));
        assert_eq!(of("8.4"), Some((Family::MySql, 80_400)));
        assert_eq!(of("none"), None);
        assert_eq!(of(""), None);
    }

    #[test]
    fn untested_servers_are_known() {
        let of = |text| Server::parse(text).expect("a version").is_tested();
        assert_eq!(["5.6.24", "9.7.1", "10.11.6-MariaDB", "11.8.2-MariaDB"].map(of), [true; 4]);
        assert_eq!(["5.7.44", "8.0.36", "8.4.0", "10.6.1-MariaDB"].map(of), [false; 4]);
    }
}
