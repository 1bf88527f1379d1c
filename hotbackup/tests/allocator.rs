//! The host's allocator keeps descriptors for itself, and is used by engine threads as well.
//!
//! Method: an allocator that does at every allocation of an engine thread what libunwind does for tcmalloc: it has a pipe, by
//! number, tries it, and closes it and makes it anew if it does not work. A session must be right all the same, and the host keep all its descriptors.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use common::{Place, Scratch, run};

struct Sampling;

/// The two ends of the pipe, when there is one.
static PIPE: [AtomicI32; 2] = [const { AtomicI32::new(-1) }; 2];
/// Allocations of engine threads; how many of them found that the pipe did not work.
static SEEN: AtomicU32 = AtomicU32::new(0);
static FAILED: AtomicU32 = AtomicU32::new(0);

fn is_engine_thread() -> bool {
    let mut name = [0u8; 16];
    // SAFETY: the kernel writes a thread's name, which has at most 16 bytes.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    name.starts_with(b"hotbackup")
}

/// Takes a byte from the pipe, if there is one, and writes another; what does not work is closed, by number, and made anew.
fn try_pipe() {
    let [from, to] = PIPE.each_ref().map(|end| end.load(Ordering::SeqCst));
    if from < 0 || !is_engine_thread() {
        return;
    }
    SEEN.fetch_add(1, Ordering::SeqCst);
    let mut byte = 7u8;
    // SAFETY: reads and writes one byte, which is there; errno is where libc says.
    let works = unsafe {
        let byte = (&raw mut byte).cast();
        let empty = |got: isize| got == -1 && *libc::__errno_location() == libc::EAGAIN;
        let got = libc::read(from, byte, 1);
        (got == 1 || empty(got)) && libc::write(to, byte, 1) == 1
    };
    if !works {
        FAILED.fetch_add(1, Ordering::SeqCst);
        // SAFETY: closes numbers, as the library that this stands for does.
        unsafe {
            libc::close(from);
            libc::close(to);
        }
        make_pipe();
    }
}

fn make_pipe() {
    let mut made: [RawFd; 2] = [-1; 2];
    // SAFETY: the kernel writes two numbers.
    unsafe { libc::pipe2(made.as_mut_ptr(), libc::O_NONBLOCK | libc::O_CLOEXEC) };
    PIPE.iter().zip(made).for_each(|(end, new)| end.store(new, Ordering::SeqCst));
}

// SAFETY: all of it is the system's allocator.
unsafe impl GlobalAlloc for Sampling {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        try_pipe();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Sampling = Sampling;

/// What every descriptor of the host refers to.
fn descriptors() -> Vec<(PathBuf, PathBuf)> {
    let all = fs::read_dir("/proc/self/fd").expect("the descriptors").flatten();
    let mut all: Vec<_> = all.filter_map(|fd| Some((fd.path(), fs::read_link(fd.path()).ok()?))).collect();
    all.sort();
    all
}

#[test]
fn an_allocator_with_descriptors_of_its_own_disturbs_nobody() {
    let place = Place::new(Scratch::new(true), "allocator");
    for i in 0..300 {
        fs::write(place.source.join(i.to_string()), vec![i as u8; 10_000]).expect("a source file");
    }
    make_pipe();
    for round in 0..3 {
        let destination = place.destination.join(round.to_string());
        fs::create_dir(&destination).expect("a directory");
        let before = descriptors();
        let report = run(hotbackup::Backup::from(&place.source)
            .to(&destination)
            .keep_free(hotbackup::KeepFree::Bytes(0)));
        assert_eq!(report.files, 300);
        assert_eq!(descriptors(), before, "descriptors of the host have changed");
        assert_eq!(common::unverified(&destination), Vec::<String>::new());
    }
    assert!(SEEN.load(Ordering::SeqCst) > 0, "no engine thread has used the allocator");
    assert_eq!(
        FAILED.load(Ordering::SeqCst),
        0,
        "the allocator's descriptors did not work on an engine thread"
    );
}
