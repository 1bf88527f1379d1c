//! MySQL 8 and later: the component services `mysql_command_*`.
//!
//! A session acts as an account of the server: it is given that of whoever asks for the backup, and no more.

use std::ffi::{CStr, c_char, c_int, c_uint, c_ulong, c_void};

use super::{Account, Refusal, Rows, Run, texts};
use crate::services::Service;

type Handle = *mut c_void;

#[repr(C)]
pub(super) struct Factory {
    init: extern "C" fn(*mut Handle) -> c_int,
    connect: extern "C" fn(Handle) -> c_int,
    reset: *const c_void,
    close: extern "C" fn(Handle) -> c_int,
}

#[repr(C)]
pub(super) struct Options {
    set: extern "C" fn(Handle, c_int, *const c_void) -> c_int,
}

/// The options that name the account (mysql/components/services/mysql_command_services.h).
const USER_NAME: c_int = 1038;
const HOST_NAME: c_int = 1039;

#[repr(C)]
pub(super) struct Query {
    query: extern "C" fn(Handle, *const c_char, c_ulong) -> c_int,
}

#[repr(C)]
pub(super) struct QueryResult {
    store: extern "C" fn(Handle, *mut Handle) -> c_int,
    free: extern "C" fn(Handle) -> c_int,
    unused: [*const c_void; 3],
    row: extern "C" fn(Handle, *mut *const *const c_char) -> c_int,
}

#[repr(C)]
pub(super) struct FieldInfo {
    unused: *const c_void,
    columns: extern "C" fn(Handle, *mut c_uint) -> c_int,
}

#[repr(C)]
pub(super) struct ErrorInfo {
    number: extern "C" fn(Handle, *mut c_uint) -> c_int,
    /// Copies the text to where the pointer leads, whatever its length.
    text: extern "C" fn(Handle, *mut *mut c_char) -> c_int,
}

#[repr(C)]
pub(super) struct Thread {
    init: extern "C" fn() -> c_int,
    end: extern "C" fn() -> c_int,
}

pub(super) struct Services {
    factory: Service<Factory>,
    options: Service<Options>,
    query: Service<Query>,
    results: Service<QueryResult>,
    fields: Service<FieldInfo>,
    errors: Service<ErrorInfo>,
    thread: Service<Thread>,
}

impl Services {
    pub(super) fn find() -> Option<Services> {
        // SAFETY: the structures begin so (mysql/components/services/mysql_command_services.h).
        unsafe {
            Some(Services {
                factory: Service::find(c"mysql_command_factory")?,
                options: Service::find(c"mysql_command_options")?,
                query: Service::find(c"mysql_command_query")?,
                results: Service::find(c"mysql_command_query_result")?,
                fields: Service::find(c"mysql_command_field_info")?,
                errors: Service::find(c"mysql_command_error_info")?,
                thread: Service::find(c"mysql_command_thread")?,
            })
        }
    }
}

/// The servers' functions return a C++ bool, which is one byte.
fn succeeded(answer: c_int) -> bool {
    answer & 0xff == 0
}

pub(super) struct Session {
    services: Services,
    handle: Handle,
}

/// Opens a session that acts as `account`.
pub(super) fn open((user, host): &Account) -> Option<Session> {
    let services = Services::find()?;
    if !succeeded((services.thread.init)()) {
        return None;
    }
    let mut session = Session { services, handle: std::ptr::null_mut() };
    let services = &session.services;
    if !succeeded((services.factory.init)(&raw mut session.handle)) {
        return None;
    }
    let set =
        |option, text: &CStr| succeeded((services.options.set)(session.handle, option, text.as_ptr().cast()));
    let is_set = set(USER_NAME, user) && set(HOST_NAME, host);
    (is_set && succeeded((services.factory.connect)(session.handle))).then_some(session)
}

impl Session {
    fn refusal(&self) -> Refusal {
        let services = &self.services;
        let mut number = 0;
        (services.errors.number)(self.handle, &raw mut number);
        // Errors of the servers have 512 bytes at most.
        let mut room = vec![0u8; 8192];
        let mut text = room.as_mut_ptr().cast::<c_char>();
        (services.errors.text)(self.handle, &raw mut text);
        // SAFETY: it still leads to the room, which ends with a NUL.
        let text = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
        Refusal { number, text }
    }
}

impl Run for Session {
    fn run(&mut self, statement: &str) -> Result<(), Refusal> {
        let len = statement.len() as c_ulong;
        match succeeded((self.services.query.query)(self.handle, statement.as_ptr().cast(), len)) {
            true => Ok(()),
            false => Err(self.refusal()),
        }
    }

    fn rows(&mut self, statement: &str) -> Result<Rows, Refusal> {
        self.run(statement)?;
        let (results, mut result) = (&self.services.results, std::ptr::null_mut());
        if !succeeded((results.store)(self.handle, &raw mut result)) || result.is_null() {
            return Err(self.refusal());
        }
        let mut columns = 0;
        (self.services.fields.columns)(result, &raw mut columns);
        let mut rows = Rows::new();
        loop {
            let mut row = std::ptr::null();
            if !succeeded((results.row)(result, &raw mut row)) || row.is_null() {
                break;
            }
            // SAFETY: a row of the result, which has so many columns.
            rows.push(unsafe { texts(row, columns as usize) });
        }
        (results.free)(result);
        Ok(rows)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.handle.is_null() {
            (self.services.factory.close)(self.handle);
        }
        (self.services.thread.end)();
    }
}
