//! Waiting until every thread has left the calls that it began through a slot before that led to us.
//!
//! Such a call never stood in the gate, so the gate cannot wait for it. But a thread that is *not* inside one any more
//! shows it, in one of these ways:
//!
//! - it begins or ends a call of ours: the word in its slot changes;
//! - it sleeps in a system call that no hooked function makes (`/proc/self/task/TID/syscall`, which is not ours to read in a
//!   process that has changed its user, as a server that root has started), or in a function of the kernel in which no call on a file
//!   sleeps (`wchan`): a write to a pipe that nobody reads;
//! - it has computed for a tenth of a second: what a hooked function does outside of the kernel is done in a moment;
//! - it has ended;
//! - it waits for the ends of native asynchronous requests, and for less long than we have: a call from before is over.
//!
//! Threads that begin later find the slots as they are now.

use std::collections::HashMap;
use std::ffi::c_long;
use std::time::{Duration, Instant};

use hotbackup::{Error, intercept};

use crate::asynchronous::SYS_IO_PGETEVENTS;

/// How long a thread may stay inside.
const PATIENCE: Duration = Duration::from_secs(10);
/// So much time of its own, in the kernel's hundredths of a second, shows that a thread is elsewhere.
const COMPUTED: u64 = 10;

/// How much later than asked for the kernel may wake a thread.
const SLACK: Duration = Duration::from_millis(200);

/// A thread that the kernel keeps for io_uring (`PF_IO_WORKER`): it is in the list of the process's threads, and seems to be in the
/// system call of whoever it was copied from.
const IO_WORKER: u64 = 0x10;

/// System calls that no hooked function makes, in which threads sleep.
const ELSEWHERE: &[c_long] = &[
    libc::SYS_futex,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_epoll_pwait,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_sigsuspend,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_flock,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_select,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_pause,
];

/// Functions of the kernel in which nothing sleeps but such system calls and writes to pipes, by the names of several versions
/// (proc_pid_wchan(5)). What sleeps in `io_cqring_wait` has submitted what it had to: the ring tells of it.
const ELSEWHERE_IN_THE_KERNEL: &[&str] = &[
    "do_epoll_wait",
    "ep_poll",
    "poll_schedule_timeout",
    "do_poll",
    "do_sys_poll",
    "do_select",
    "hrtimer_nanosleep",
    "do_nanosleep",
    "do_sigtimedwait",
    "sigsuspend",
    "__do_sys_pause",
    "io_cqring_wait",
    "anon_pipe_read",
    "pipe_read",
    "anon_pipe_write",
    "pipe_write",
    "wait_woken",
    "sk_wait_data",
    "unix_stream_read_generic",
    "unix_stream_data_wait",
    "__skb_wait_for_more_packets",
    "inet_csk_accept",
    "inet_csk_wait_for_connect",
    "do_wait",
];

/// A thread that may be inside.
struct Thread {
    id: u32,
    /// The word in its slot, if it had one.
    word: Option<u64>,
    computed: u64,
}

/// Waits until no thread is inside a call that it began before this; at most for a while.
pub(crate) fn settle() -> Result<(), Error> {
    settle_within(PATIENCE)
}

fn settle_within(patience: Duration) -> Result<(), Error> {
    let begun = Instant::now();
    let words: HashMap<u32, u64> = intercept::threads().collect();
    let own = own_id();
    let others = tasks()?.into_iter().filter(|&id| id != own);
    let look = |id| Some(Thread { id, word: words.get(&id).copied(), computed: computed(id)? });
    let mut threads: Vec<_> = others.filter_map(look).collect();
    loop {
        let words: HashMap<u32, u64> = intercept::threads().collect();
        threads.retain(|thread| !thread.is_elsewhere(&words, begun));
        let Some(thread) = threads.first() else { return Ok(()) };
        if begun.elapsed() > patience {
            return Err(Error::NotArmed { thread: thread.id, what: thread.describe() });
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

impl Thread {
    fn is_elsewhere(&self, words: &HashMap<u32, u64>, begun: Instant) -> bool {
        if words.get(&self.id).copied() != self.word {
            return true;
        }
        let sleeps = || {
            let call = system_call(self.id).as_deref().and_then(parse);
            call.is_some_and(|(number, arguments)| {
                sleeps_elsewhere(number, &arguments) || has_waited_less(number, &arguments, begun.elapsed())
            })
        };
        let waits = || wait_channel(self.id).is_some_and(|name| waits_elsewhere(&name));
        sleeps() || waits() || computed(self.id).is_none_or(|now| now >= self.computed + COMPUTED)
    }

    fn describe(&self) -> String {
        match system_call(self.id).as_deref().and_then(parse) {
            Some((number, arguments)) => {
                format!(
                    "system call {number}{arguments:x?} (under way since before the hooks were installed)"
                )
            }
            None => {
                format!("something unknown ({:?} in the kernel)", wait_channel(self.id).unwrap_or_default())
            }
        }
    }
}

/// What a sleeping thread's line says; `None` for one that runs.
fn parse(line: &str) -> Option<(c_long, [u64; 6])> {
    let mut words = line.split_whitespace();
    let number = words.next()?.parse().ok().filter(|&number| number >= 0)?;
    let mut arguments = [0; 6];
    for argument in &mut arguments {
        *argument = u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()?;
    }
    Some((number, arguments))
}

fn sleeps_elsewhere(number: c_long, arguments: &[u64; 6]) -> bool {
    // One that submits nothing only waits for ends, which are read from the ring itself.
    let only_waits = number == libc::SYS_io_uring_enter && arguments[1] == 0;
    only_waits || ELSEWHERE.contains(&number)
}

/// Whether a thread that is in a function of the kernel sleeps in a system call that no hooked function makes.
fn waits_elsewhere(place: &str) -> bool {
    // Compilers add to the name of a function of which they make another one.
    let name = place.split_once('.').map_or(place, |(name, _)| name);
    name.starts_with("futex_") || ELSEWHERE_IN_THE_KERNEL.contains(&name)
}

/// Whether a thread that waits for ends has done so for less than `time`.
fn has_waited_less(number: c_long, arguments: &[u64; 6], time: Duration) -> bool {
    let timeout = match number {
        libc::SYS_io_getevents | SYS_IO_PGETEVENTS => timeout_at(arguments[4]),
        _ => None,
    };
    timeout.is_some_and(|timeout| timeout.saturating_add(SLACK) < time)
}

/// The time that lies at an address, which may be anything, so that it is read by way of the kernel.
fn timeout_at(address: u64) -> Option<Duration> {
    let mut time = [0i64; 2];
    let ours = libc::iovec { iov_base: (&raw mut time).cast(), iov_len: size_of_val(&time) };
    let theirs = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: size_of_val(&time) };
    // SAFETY: `ours` is writable for its length; the kernel checks `theirs`.
    let read = unsafe { libc::process_vm_readv(libc::getpid(), &ours, 1, &theirs, 1, 0) };
    let [seconds, nanoseconds] = time;
    (usize::try_from(read) == Ok(size_of_val(&time)))
        .then(|| Some(Duration::new(u64::try_from(seconds).ok()?, u32::try_from(nanoseconds).ok()?)))?
}

fn system_call(id: u32) -> Option<String> {
    std::fs::read_to_string(format!("/proc/self/task/{id}/syscall")).ok()
}

fn wait_channel(id: u32) -> Option<String> {
    std::fs::read_to_string(format!("/proc/self/task/{id}/wchan")).ok()
}

/// How long a thread has computed outside of the kernel; `None` if it has ended, or never leaves the kernel.
fn computed(id: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/self/task/{id}/stat")).ok()?;
    let mut words = text.rsplit_once(')')?.1.split_whitespace();
    let state = words.next()?;
    let flags: u64 = words.nth(5)?.parse().ok()?;
    let is_over = state == "Z" || state == "X" || flags & IO_WORKER != 0;
    (!is_over).then(|| words.nth(4)?.parse().ok())?
}

fn tasks() -> Result<Vec<u32>, Error> {
    let unreadable = |error: std::io::Error| Error::NotArmed {
        thread: own_id(),
        what: format!("nothing that could be seen, because /proc/self/task cannot be read ({error})"),
    };
    let entries = std::fs::read_dir("/proc/self/task").map_err(unreadable)?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

fn own_id() -> u32 {
    // SAFETY: it takes nothing.
    unsafe { libc::gettid() }.cast_unsigned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernel_are_understood() {
        let parsed = parse("202 0x7f 0x80 0x2 0x0 0x0 0xffffffff 0x7ffd 0x7f12\n");
        assert_eq!(parsed, Some((202, [0x7f, 0x80, 2, 0, 0, 0xffff_ffff])));
        assert_eq!(parse("running\n"), None);
        assert_eq!(parse("-1 0x7ffd 0x7f12\n"), None);
    }

    #[test]
    fn who_writes_or_submits_is_not_elsewhere() {
        assert!(!sleeps_elsewhere(libc::SYS_pwrite64, &[3, 0, 0, 0, 0, 0]));
        assert!(!sleeps_elsewhere(libc::SYS_io_getevents, &[3, 0, 0, 0, 0, 0]));
        assert!(!sleeps_elsewhere(libc::SYS_io_uring_enter, &[3, 1, 1, 1, 0, 0]));
        assert!(sleeps_elsewhere(libc::SYS_io_uring_enter, &[3, 0, 1, 1, 0, 0]));
        assert!(sleeps_elsewhere(libc::SYS_futex, &[0; 6]));
        assert!(waits_elsewhere("futex_do_wait") && waits_elsewhere("poll_schedule_timeout.constprop.0"));
        // A running thread, one whose place is not told, one that waits for a disk, one that waits for ends and would take them.
        assert!(!["", "0", "folio_wait_bit_common", "read_events"].into_iter().any(waits_elsewhere));
    }

    #[test]
    fn who_waits_for_ends_has_begun_after_its_time() {
        let half_a_second = [0i64, 500_000_000];
        let arguments = [3, 1, 256, 0, half_a_second.as_ptr() as u64, 0];
        let after = |ms| has_waited_less(libc::SYS_io_getevents, &arguments, Duration::from_millis(ms));
        assert!(!after(600) && after(800));
        assert!(!has_waited_less(libc::SYS_io_getevents, &[3, 1, 256, 0, 0, 0], Duration::from_secs(9)));
    }

    #[test]
    fn a_thread_that_waits_or_computes_is_elsewhere_and_one_in_a_write_is_not() {
        use std::io::Write as _;
        use std::os::fd::AsRawFd as _;

        let (output, input) = std::io::pipe().expect("a pipe");
        let (tell, told) = std::sync::mpsc::channel::<()>();
        let waits = std::thread::spawn(move || told.recv());
        settle_within(PATIENCE).expect("it waits in futex");
        let place = |id| wait_channel(id).expect("a thread of ours");
        assert!(tasks().expect("ours").into_iter().any(|id| id != own_id() && waits_elsewhere(&place(id))));
        // More than the pipe takes. A plain write changes no file; one by splice(2) does not show that it does not.
        let file = std::fs::File::open("/proc/self/exe").expect("a file");
        let writes = std::thread::spawn({
            let mut input = input.try_clone().expect("a descriptor");
            move || drop(input.write_all(&[0; 1 << 24]))
        });
        std::thread::sleep(Duration::from_millis(100));
        settle_within(PATIENCE).expect("it waits for the pipe");
        let stuck = std::thread::spawn(move || {
            let (id, none) = (own_id(), std::ptr::null_mut());
            // SAFETY: descriptors.
            let moved = unsafe { libc::splice(file.as_raw_fd(), none, input.as_raw_fd(), none, 1 << 24, 0) };
            (id, moved)
        });
        std::thread::sleep(Duration::from_millis(100));
        let outcome = settle_within(Duration::from_millis(500));
        let Err(Error::NotArmed { thread, .. }) = outcome else { panic!("{outcome:?}") };
        assert!(!waits_elsewhere(&place(thread)), "{}", place(thread));
        drop(output);
        let (id, _) = stuck.join().expect("it ends");
        assert_eq!(thread, id);
        drop(tell);
        let _ = (waits.join(), writes.join());
    }
}
