//! MySQL 5.6: it has no service for this, but exports what its own replication makes a session with
//! (`Rpl_info_table_access`) and a class that runs SQL in one (`Ed_connection`).
//!
//! Nothing of the layout of its classes is known here: the server makes the session itself, and builds the other objects in
//! memory of ours that is several times as large as they are.

use std::ffi::{c_char, c_int};

use super::{Refusal, Run};
use crate::host::symbol;
use crate::variable::Thd;

/// Objects of 16 and 768 bytes are built in so much.
type Room = [u64; 512];

/// The classes' functions, whose first argument is the object.
pub(super) struct Functions {
    begin_thread: extern "C" fn() -> c_int,
    end_thread: extern "C" fn(),
    create: extern "C" fn(*mut Room) -> Thd,
    destroy: extern "C" fn(*mut Room, Thd) -> bool,
    connect: extern "C" fn(*mut Room, Thd),
    run: extern "C" fn(*mut Room, *const c_char, usize) -> bool,
    forget: extern "C" fn(*mut Room),
}

impl Functions {
    #[expect(clippy::missing_transmute_annotations, reason = "each field says what its function is")]
    pub(super) fn find() -> Option<Functions> {
        use std::mem::transmute as function;
        // SAFETY: what the names say that the functions take; a LEX_STRING by value is a pointer and a length.
        unsafe {
            Some(Functions {
                begin_thread: function(symbol(&[c"my_thread_init"])?),
                end_thread: function(symbol(&[c"my_thread_end"])?),
                create: function(symbol(&[c"_ZN21Rpl_info_table_access10create_thdEv"])?),
                destroy: function(symbol(&[c"_ZN21Rpl_info_table_access8drop_thdEP3THD"])?),
                connect: function(symbol(&[c"_ZN13Ed_connectionC1EP3THD"])?),
                run: function(symbol(&[c"_ZN13Ed_connection14execute_directE19st_mysql_lex_string"])?),
                forget: function(symbol(&[c"_ZN13Ed_connection15free_old_resultEv"])?),
            })
        }
    }
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
}

impl Drop for Session {
    fn drop(&mut self) {
        (self.functions.forget)(&raw mut *self.connection);
        (self.functions.destroy)(&raw mut *self.access, self.thd);
        (self.functions.end_thread)();
    }
}
