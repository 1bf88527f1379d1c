//! MariaDB (10.6 and later): the functions of its service `sql`, which connect a client in the server to itself.

use std::ffi::{CStr, c_char, c_int, c_uint, c_ulong, c_void};

use super::{Refusal, Run};
use crate::host::symbol;

pub(super) struct Functions {
    begin_thread: extern "C" fn() -> c_int,
    end_thread: extern "C" fn(),
    init: extern "C" fn(*mut c_void) -> *mut c_void,
    connect: extern "C" fn(*mut c_void) -> *mut c_void,
    query: extern "C" fn(*mut c_void, *const c_char, c_ulong) -> c_int,
    number: extern "C" fn(*mut c_void) -> c_uint,
    error: extern "C" fn(*mut c_void) -> *const c_char,
    close: extern "C" fn(*mut c_void),
}

impl Functions {
    #[expect(clippy::missing_transmute_annotations, reason = "each field says what its function is")]
    pub(super) fn find() -> Option<Functions> {
        use std::mem::transmute as function;
        // SAFETY: the functions have these types in every server that exports them (mysql/service_sql.h).
        unsafe {
            Some(Functions {
                begin_thread: function(symbol(&[c"my_thread_init"])?),
                end_thread: function(symbol(&[c"my_thread_end"])?),
                init: function(symbol(&[c"server_mysql_init"])?),
                connect: function(symbol(&[c"mysql_real_connect_local"])?),
                query: function(symbol(&[c"server_mysql_real_query"])?),
                number: function(symbol(&[c"server_mysql_errno"])?),
                error: function(symbol(&[c"server_mysql_error"])?),
                close: function(symbol(&[c"server_mysql_close"])?),
            })
        }
    }
}

pub(super) struct Session {
    functions: Functions,
    connection: *mut c_void,
}

/// Opens a session, which may do everything.
pub(super) fn open() -> Option<Session> {
    let functions = Functions::find()?;
    if (functions.begin_thread)() != 0 {
        return None;
    }
    // From here on the session's end is that of what the thread was given.
    let session = Session { connection: (functions.init)(std::ptr::null_mut()), functions };
    if session.connection.is_null() || (session.functions.connect)(session.connection).is_null() {
        return None;
    }
    Some(session)
}

impl Run for Session {
    fn run(&mut self, statement: &str) -> Result<(), Refusal> {
        let functions = &self.functions;
        let len = statement.len() as c_ulong;
        if (functions.query)(self.connection, statement.as_ptr().cast(), len) == 0 {
            return Ok(());
        }
        // SAFETY: the text of the last error, a string that lives until the next statement.
        let text = unsafe { CStr::from_ptr((functions.error)(self.connection)) };
        let number = (functions.number)(self.connection);
        Err(Refusal { number, text: text.to_string_lossy().into_owned() })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.connection.is_null() {
            (self.functions.close)(self.connection);
        }
        (self.functions.end_thread)();
    }
}
