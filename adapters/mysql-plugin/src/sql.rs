//! Sessions of our own inside the server, which run SQL: how each server offers that to plugins.
//!
//! A session belongs to the thread that opened it, which must be one of our own: on a thread of the server's it would be
//! mixed up with what that thread is doing. It is nobody's connection, so no client can use it or end it.

/// Declares `Functions`: functions of the server's, each by the name that it exports it under.
macro_rules! functions {
    ($($field:ident = $name:literal: $kind:ty;)*) => {
        pub(super) struct Functions {
            $($field: $kind,)*
        }

        impl Functions {
            /// `None` if the server does not export all of them.
            pub(super) fn find() -> Option<Functions> {
                // SAFETY: each row says of what type the function of this name is in every server that exports it.
                unsafe {
                    Some(Functions {
                        $($field: std::mem::transmute::<*mut std::ffi::c_void, $kind>(crate::host::symbol(&[$name])?),)*
                    })
                }
            }
        }
    };
}

mod command;
mod embedded;
mod local;

use std::ffi::{CStr, CString, c_char};

use crate::host::{Family, Server};
use crate::library::Failure;

/// What the server says of a statement that failed.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    /// The number of the error; 0 if the server does not tell.
    pub(crate) number: u32,
    pub(crate) text: String,
}

/// Rows of text; NULL is an empty one.
pub(crate) type Rows = Vec<Vec<String>>;

/// One way to run SQL.
trait Run {
    fn run(&mut self, statement: &str) -> Result<(), Refusal>;

    fn rows(&mut self, statement: &str) -> Result<Rows, Refusal>;
}

/// What a server gives for a row of so many columns: an array of strings, and NULL for what is NULL.
///
/// # Safety
/// It is such an array.
unsafe fn texts(row: *const *const c_char, columns: usize) -> Vec<String> {
    // SAFETY: as the caller says.
    let values = unsafe { std::slice::from_raw_parts(row, columns) };
    let text = |&value: &*const c_char| match value.is_null() {
        true => String::new(),
        // SAFETY: what is not NULL is a string.
        false => unsafe { CStr::from_ptr(value) }.to_string_lossy().into_owned(),
    };
    values.iter().map(text).collect()
}

/// A session.
pub(crate) struct Session(Box<dyn Run>);

/// An account of the server, by user and host: where sessions cannot do without one, they act as this.
pub(crate) type Account = (CString, CString);

impl Session {
    /// Whether this server lets a plugin have a session; if not, the reason.
    pub(crate) fn is_possible(server: Server) -> Result<(), Failure> {
        let possible = match (server.family, server.version / 100) {
            (Family::MariaDb, _) => local::Functions::find().is_some(),
            // Its classes changed afterwards.
            (Family::MySql, 506) => embedded::Functions::find().is_some(),
            (Family::MySql, series) => series >= 800 && command::Services::find().is_some(),
        };
        if possible {
            return Ok(());
        }
        Err(Failure::new(libc::ENOTSUP, "this server offers plugins no session to run SQL in"))
    }

    /// Opens a session on this thread, which has none yet and is not one of the server's.
    pub(crate) fn open(server: Server, account: Option<&Account>) -> Result<Session, Failure> {
        Session::is_possible(server)?;
        let failed = || Failure::new(libc::EIO, "the server did not give the plugin a session to run SQL in");
        let session: Option<Box<dyn Run>> = match (server.family, server.version / 100) {
            (Family::MariaDb, _) => local::open().map(|session| Box::new(session) as _),
            (Family::MySql, 506) => embedded::open().map(|session| Box::new(session) as _),
            _ => account.and_then(command::open).map(|session| Box::new(session) as _),
        };
        session.map(Session).ok_or_else(failed)
    }

    /// Runs a statement that returns no rows.
    pub(crate) fn run(&mut self, statement: &str) -> Result<(), Refusal> {
        self.0.run(statement)
    }

    /// Runs a statement that returns rows. MySQL 5.6 gives a plugin none.
    pub(crate) fn rows(&mut self, statement: &str) -> Result<Rows, Refusal> {
        self.0.rows(statement)
    }

    /// Whether a condition holds, asked so that a server without rows can answer: by a statement that fails if it does not.
    pub(crate) fn holds(&mut self, condition: &str) -> Result<bool, Refusal> {
        let unless =
            |failing: &str| format!("SET @tokudb_backup=IF({failing}, (SELECT 1 UNION ALL SELECT 2), 0)");
        if self.run(&unless(&format!("NOT ({condition})"))).is_ok() {
            return Ok(true);
        }
        self.run(&unless(condition)).map(|()| false)
    }
}
