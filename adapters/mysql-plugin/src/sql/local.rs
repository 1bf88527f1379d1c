//! MariaDB (10.6 and later): the functions of its service `sql`, which connect a client in the server to itself.

use std::ffi::{CStr, c_char, c_int, c_uint, c_ulong, c_void};

use super::{Refusal, Rows, Run, texts};

// What they are is in mysql/service_sql.h.
functions! {
    begin_thread = c"my_thread_init": extern "C" fn() -> c_int;
    end_thread = c"my_thread_end": extern "C" fn();
    init = c"server_mysql_init": extern "C" fn(*mut c_void) -> *mut c_void;
    connect = c"mysql_real_connect_local": extern "C" fn(*mut c_void) -> *mut c_void;
    query = c"server_mysql_real_query": extern "C" fn(*mut c_void, *const c_char, c_ulong) -> c_int;
    result = c"server_mysql_store_result": extern "C" fn(*mut c_void) -> *mut c_void;
    columns = c"server_mysql_num_fields": extern "C" fn(*mut c_void) -> c_uint;
    row = c"server_mysql_fetch_row": extern "C" fn(*mut c_void) -> *const *const c_char;
    forget = c"server_mysql_free_result": extern "C" fn(*mut c_void);
    number = c"server_mysql_errno": extern "C" fn(*mut c_void) -> c_uint;
    error = c"server_mysql_error": extern "C" fn(*mut c_void) -> *const c_char;
    close = c"server_mysql_close": extern "C" fn(*mut c_void);
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

impl Session {
    fn refusal(&self) -> Refusal {
        let functions = &self.functions;
        // SAFETY: the text of the last error, a string that lives until the next statement.
        let text = unsafe { CStr::from_ptr((functions.error)(self.connection)) };
        let number = (functions.number)(self.connection);
        Refusal { number, text: text.to_string_lossy().into_owned() }
    }
}

impl Run for Session {
    fn run(&mut self, statement: &str) -> Result<(), Refusal> {
        let len = statement.len() as c_ulong;
        match (self.functions.query)(self.connection, statement.as_ptr().cast(), len) {
            0 => Ok(()),
            _ => Err(self.refusal()),
        }
    }

    fn rows(&mut self, statement: &str) -> Result<Rows, Refusal> {
        self.run(statement)?;
        let functions = &self.functions;
        let result = (functions.result)(self.connection);
        if result.is_null() {
            return Err(self.refusal());
        }
        let columns = (functions.columns)(result) as usize;
        let rows = std::iter::repeat_with(|| (functions.row)(result)).take_while(|row| !row.is_null());
        // SAFETY: a row of the result, which has so many columns.
        let rows = rows.map(|row| unsafe { texts(row, columns) }).collect();
        (functions.forget)(result);
        Ok(rows)
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
