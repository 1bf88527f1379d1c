//! What safe Rust cannot express: raw system calls, memory of our own, libc's threads and errno.
//!
//! The only place of this crate where `unsafe` is allowed. Every function here has a safe face whose safety does not
//! depend on its callers. Nothing here calls a libc function on a path that a hook can take, because that function
//! may be the very one that is hooked.

pub(crate) mod atomic;
pub(crate) mod errno;
pub(crate) mod fanotify;
pub(crate) mod handle;
#[cfg(not(loom))]
pub(crate) mod maps;
pub(crate) mod mem;
#[cfg(not(loom))]
pub(crate) mod program;
pub(crate) mod raw;
pub(crate) mod scratch;
pub(crate) mod streams;
pub(crate) mod thread;
pub(crate) mod tls;
#[cfg(not(loom))]
pub(crate) mod userfault;
