//! Which rings there are, and whether a session can follow them, for [`crate::doctor()`].

use super::engine::{has_thread, mapped_rings, mappings};
use super::entered::flags_of;
use super::uring::{SETUP_CQE_MIXED, SETUP_IOPOLL, SETUP_SQPOLL};
use crate::direct::host_table;
use crate::doctor::{Finding, Kind, Verdict};
use crate::suspects::numbers;
use crate::sys;

/// One finding for each ring. `hooks` is what was found of the hooks.
pub(crate) fn examine(hooks: Verdict) -> Vec<Finding> {
    let aio = mappings("/[aio]").into_iter().filter(|mapping| mapping.1 == 0);
    let mut found: Vec<Finding> = aio.map(|(address, ..)| native(address, hooks)).collect();
    let mut mapped = mapped_rings();
    for fd in numbers(&format!("{}/fd", host_table())) {
        let Some(inode) = sys::raw::inode_of_ring(fd.cast_signed()) else { continue };
        let is_mapped = mapped.iter().any(|ring| ring.inode == inode);
        mapped.retain(|ring| ring.inode != inode);
        let (verdict, text) = judge(fd, is_mapped, hooks);
        found.push(Finding::new(Kind::Ring, verdict, format!("io_uring, descriptor {fd}"), text));
    }
    // Its descriptor was closed, or registered with the kernel.
    found.extend(mapped.into_iter().map(|ring| {
        let (verdict, text) = if hooks == Verdict::Captured { SET_UP_UNSEEN } else { not_captured(hooks) };
        Finding::new(Kind::Ring, verdict, format!("io_uring, mapped at {:#x}", ring.address), text)
    }));
    found
}

fn native(address: u64, hooks: Verdict) -> Finding {
    let (verdict, text) = match hooks {
        Verdict::Captured => (
            Verdict::Captured,
            "it is followed; while there is a ring of native AIO, the cut comes no sooner than a second after arming",
        ),
        Verdict::Refuses => not_captured(hooks),
        _ => (
            Verdict::CopiedAgain,
            "nothing captures what is submitted to it: what that changes is found and copied again",
        ),
    };
    Finding::new(Kind::Ring, verdict, format!("native AIO, ring at {address:#x}"), text)
}

fn not_captured(hooks: Verdict) -> (Verdict, &'static str) {
    match hooks {
        Verdict::Refuses => {
            (hooks, "it is followed if all hooks are live; sessions are refused until they are")
        }
        _ => (
            Verdict::CopiedAgain,
            "nothing captures what is submitted to it: while a backup runs it has to come to rest, and the files that are open for \
             writing are copied whole",
        ),
    }
}

const SET_UP_UNSEEN: (Verdict, &str) = (
    Verdict::Captured,
    "its set-up was not seen: what is submitted through liburing is followed; if the program enters it by itself while a backup \
     runs, it has to come to rest, and the files that are open for writing are copied whole",
);

/// What a ring with a descriptor means.
fn judge(fd: u32, is_mapped: bool, hooks: Verdict) -> (Verdict, &'static str) {
    let flags = flags_of(fd.cast_signed());
    let has = |wanted: u32| flags.is_some_and(|flags| flags & wanted != 0);
    match () {
        () if has(SETUP_CQE_MIXED) => (
            Verdict::Refuses,
            "it has ends of several sizes, and cannot be followed: a backup fails if something is submitted to it meanwhile",
        ),
        () if hooks != Verdict::Captured => not_captured(hooks),
        () if has(SETUP_IOPOLL) => (
            Verdict::CopiedAgain,
            "it is polled (IORING_SETUP_IOPOLL) and cannot be followed: while a backup runs it has to come to rest, and the files that \
             are open for writing are copied whole",
        ),
        () if !is_mapped => (
            Verdict::Untold,
            "it has no mapping of its own: what is submitted through liburing is followed, what is by a call that is not \
             captured goes by",
        ),
        () if has_thread(fd) || has(SETUP_SQPOLL) => (
            Verdict::Captured,
            "a kernel thread polls it (IORING_SETUP_SQPOLL): what is submitted through liburing is followed; if the program publishes \
             requests by itself while a backup runs, it has to come to rest, and the files that are open for writing are copied whole",
        ),
        () if flags.is_none() => SET_UP_UNSEEN,
        () => (
            Verdict::Captured,
            "what is submitted to it by captured calls is followed; if something is by another way while a backup runs, it has to \
             come to rest, and the files that are open for writing are copied whole",
        ),
    }
}
