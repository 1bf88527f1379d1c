//! MySQL 5.6: it has no service for this, but exports what its own replication makes a session with
//! (`Rpl_info_table_access`) and a class that runs SQL in one (`Ed_connection`).
//!
//! Nothing of the layout of its classes is known here: the server makes the session itself, and builds the other objects in
//! memory of ours that is several times as large as they are.

use std::ffi::{c_char, c_int};

use super::{Refusal, Rows, Run};
use crate::variable::Thd;

/// Objects of 16 and 768 bytes are built in so much.
type Room = [u64; 512];

// The classes' functions have the object for their first argument; a LEX_STRING by value is a pointer and a length.
functions! {
    begin_thread = c"my_thread_init": extern "C" fn() -> c_int;
    end_thread = c"my_thread_end": extern "C" fn();
    create = c"_ZN21Rpl_info_table_access10create_thdEv": extern "C" fn(*mut Room) -> Thd;
    destroy = c"_ZN21Rpl_info_table_access8drop_thdEP3THD": extern "C" fn(*mut Room, Thd) -> bool;
    connect = c"_ZN13Ed_connectionC1EP3THD": extern "C" fn(*mut Room, Thd);
    run = c"_ZN13Ed_connection14execute_directE19st_mysql_lex_string": extern "C" fn(*mut Room, *const c_char, usize) -> bool;
    forget = c"_ZN13Ed_connection15free_old_resultEv": extern "C" fn(*mut Room);
}

pub(super) struct Session {
    functions: Functions,
    access: Box<Room>,
    connection: Box<Room>,
    thd: Thd,
}

/// Opens a session, which may do everything.
pub(super) fn open() -> Option<Session> {
    let functions = Functions::find()?;
    if (functions.begin_thread)() != 0 {
        return None;
    }
    let (mut access, mut connection) = (Box::new([0; 512]), Box::new([0; 512]));
    let thd = (functions.create)(&raw mut *access);
    (functions.connect)(&raw mut *connection, thd);
    Some(Session { functions, access, connection, thd })
}

impl Run for Session {
    fn run(&mut self, statement: &str) -> Result<(), Refusal> {
        // What went wrong stands in an object of the server's whose layout is not known here.
        match (self.functions.run)(&raw mut *self.connection, statement.as_ptr().cast(), statement.len()) {
            true => Err(Refusal { number: 0, text: "the server refused".into() }),
            false => Ok(()),
        }
    }

    /// They lie in objects of the server's whose layout is not known here.
    fn rows(&mut self, _: &str) -> Result<Rows, Refusal> {
        Err(Refusal { number: 0, text: "this server gives a plugin no rows".into() })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        (self.functions.forget)(&raw mut *self.connection);
        (self.functions.destroy)(&raw mut *self.access, self.thd);
        (self.functions.end_thread)();
    }
}
