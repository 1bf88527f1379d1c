//! The calls on streams of the C library that open and close files.

use std::ffi::{c_char, c_int, c_void};

use hotbackup::intercept::{self, At, Change, Done, Outcome};

use crate::meaning::{Meaning, peek};
use crate::real::{Unavailable, get_errno, set_errno};

/// A stream (FILE).
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Stream(*mut c_void);

impl Stream {
    /// Where a stream has its descriptor (`struct _IO_FILE`, the same on all 64-bit machines).
    const DESCRIPTOR: usize = 112;

    /// The stream's descriptor; negative if it has none, or if there is no stream.
    fn descriptor(self) -> c_int {
        if self.0.is_null() {
            return -1;
        }
        // SAFETY: it is a stream of the C library, which reads the same place in the call that follows, or has just made it.
        unsafe { self.0.cast::<u8>().add(Stream::DESCRIPTOR).cast::<c_int>().read() }
    }
}

impl Outcome for Stream {
    fn done(&self) -> Done {
        match u64::try_from(self.descriptor()) {
            Ok(fd) => Done::Success(fd),
            Err(_) => Done::Failure(get_errno()),
        }
    }
}

impl Unavailable for Stream {
    fn unavailable() -> Self {
        set_errno(libc::ENOSYS);
        Stream(std::ptr::null_mut())
    }
}

/// `fopen`: only what may create or empty a file is a change; the stream itself is found when it is looked for.
#[inline(always)]
pub(crate) fn opening(path: *const c_char, mode: *const c_char) -> Option<Change> {
    let flags = if intercept::is_capturing() {
        // A mode that cannot be read is one that the C library cannot read either.
        match peek(mode.cast::<u8>())? {
            b'w' => libc::O_CREAT | libc::O_TRUNC,
            b'a' => libc::O_CREAT,
            _ => return None,
        }
    } else {
        libc::O_CREAT | libc::O_TRUNC
    };
    Some(Change::Open { file: At::cwd(path), flags })
}

/// `freopen`: the end of a stream, and another one in its place. Without a path it is the same file in another mode.
pub(crate) struct Reopens {
    pub(crate) path: *const c_char,
    pub(crate) mode: *const c_char,
    pub(crate) stream: Stream,
}

impl Meaning<Stream> for Reopens {
    #[inline(always)]
    fn pass(self, real: impl FnOnce() -> Stream) -> Stream {
        let Reopens { path, mode, stream } = self;
        let change = if path.is_null() { None } else { opening(path, mode) };
        Closes(stream).pass(move || change.pass(real))
    }
}

/// `fclose`, which also ends the descriptor.
pub(crate) struct Closes(pub(crate) Stream);

impl<R: Outcome> Meaning<R> for Closes {
    #[inline(always)]
    fn pass(self, real: impl FnOnce() -> R) -> R {
        let fd = self.0.descriptor();
        if fd < 0 {
            return real();
        }
        intercept::around(Change::Stream { fd }, move || intercept::ending_descriptor(fd, real))
    }
}
