//! What we need of the server that loaded us.

use std::ffi::{CStr, c_char};

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
        // SAFETY: the name is a C string, and looking up a symbol has no effect.
        let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"server_version".as_ptr()) };
        if found.is_null() {
            return None;
        }
        // SAFETY: in every server it is an array of char that a NUL ends and that is set before plugins are loaded.
        let text = unsafe { CStr::from_ptr(found.cast::<c_char>()) };
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
}

/// Writes to the server's error log, which is its stderr.
pub(crate) fn log(text: &str) {
    // SAFETY: the pointer and length are those of a string.
    unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len()) };
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
}
