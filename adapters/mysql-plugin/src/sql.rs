//! Sessions of our own inside the server, which run SQL: how each server offers that to plugins.
//!
//! A session belongs to the thread that opened it, which must be one of our own: on a thread of the server's it would be
//! mixed up with what that thread is doing. It is nobody's connection, so no client can use it or end it.

mod command;
mod embedded;
mod local;

use std::ffi::CString;

use crate::host::{Family, Server};
use crate::library::Failure;

/// What the server says of a statement that failed.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    /// The number of the error; 0 if the server does not tell.
    pub(crate) number: u32,
    pub(crate) text: String,
}

/// One way to run SQL.
trait Run {
    fn run(&mut self, statement: &str) -> Result<(), Refusal>;
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
}
