//! Engine threads: made by libc, so that it knows them, and cut off from the host's signals, descriptors and directory.

use std::io;
use std::mem::MaybeUninit;
use std::thread::JoinHandle;

/// Whether the calling thread is one of ours, whose calls are never captured.
#[inline]
pub(crate) fn is_engine() -> bool {
    super::tls::with(|own| own.is_engine.get())
}

/// Starts a thread that shares the caller's descriptor table. All signals are blocked in it by `pthread_sigmask`,
/// which leaves libc's own two open (with a raw all-ones mask the host's setgid would hang).
pub(crate) fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let previous = block_all_signals();
    let handle = std::thread::Builder::new().name(name.to_owned()).stack_size(1 << 20).spawn(move || {
        super::tls::with(|own| own.is_engine.set(true));
        work()
    });
    restore_signals(&previous);
    handle
}

fn block_all_signals() -> libc::sigset_t {
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    let mut previous = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: both sets are valid for writing, `all` is filled before it is used, and an all-zero set is valid.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), previous.as_mut_ptr());
        previous.assume_init()
    }
}

fn restore_signals(previous: &libc::sigset_t) {
    // SAFETY: `previous` is a valid set and no old one is asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, previous, std::ptr::null_mut()) };
}

/// Has `repair` called in the child after every fork of this process.
pub(crate) fn after_fork_in_child(repair: extern "C" fn()) {
    // SAFETY: `repair` is a plain function of this library; where the library is unloaded, libc forgets its handlers.
    unsafe { libc::pthread_atfork(None, None, Some(repair)) };
}

/// How often the calling thread had its processor taken away while it had work to do (getrusage(2)).
pub(crate) fn preemptions() -> i64 {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the kernel writes one such struct, of which an all-zero one is valid too.
    unsafe {
        libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr());
        usage.assume_init().ru_nivcsw
    }
}

/// Sleeps by a raw system call: allocates nothing, and leaves errno alone.
pub(crate) fn nap(time: std::time::Duration) {
    let time = rustix::time::Timespec {
        tv_sec: time.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: time.subsec_nanos().into(),
    };
    let _ = rustix::thread::nanosleep(&time);
}
