//! Rings of io_uring that are filled by hand, without liburing, and entered as a hook of syscall(2) would.
//!
//! Rings and requests are laid out as `linux/io_uring.h` and io_uring_setup(2) say.

use std::cell::RefCell;
use std::os::fd::RawFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use hotbackup::intercept::{self, Entry};

use super::aio::{BLOCK, Block, DEPTH, InFlight, Ring};
use super::calls::{self, Ret};
use super::rng::Rng;
use super::say;

const SETUP_SINGLE_ISSUER: u32 = 1 << 12;
const SETUP_DEFER_TASKRUN: u32 = 1 << 13;
const SETUP_NO_SQARRAY: u32 = 1 << 16;
const ENTER_GETEVENTS: u32 = 1;
const REGISTER_BUFFERS: u32 = 0;
const REGISTER_FILES: u32 = 2;
const COUNTERS: i64 = 0;
const REQUESTS: i64 = 0x1000_0000;

const WRITEV: u8 = 2;
const WRITE_FIXED: u8 = 5;
const FALLOCATE: u8 = 17;
const READ: u8 = 22;
const WRITE: u8 = 23;
/// Flags of a request: its descriptor is the place of a registered file; the next one begins when this one has ended.
const FIXED_FILE: u8 = 1 << 0;
const LINK: u8 = 1 << 2;

/// Whether the kernel lets us make rings. With `CI=true` it has to.
pub fn is_there() -> bool {
    static IS_THERE: OnceLock<bool> = OnceLock::new();
    *IS_THERE.get_or_init(|| match Uring::new(0) {
        Ok(_) => true,
        Err(errno) => {
            let has_to = std::env::var("CI").is_ok_and(|value| value == "true");
            assert!(!has_to && [libc::ENOSYS, libc::EPERM].contains(&errno), "no io_uring: {errno}");
            say("io_uring is not allowed here: native AIO is used in its place");
            false
        }
    })
}

/// A request (`struct io_uring_sqe`).
#[repr(C)]
#[derive(Default, Clone, Copy)]
struct Request {
    opcode: u8,
    flags: u8,
    priority: u16,
    fd: RawFd,
    at: u64,
    address: u64,
    len: u32,
    write_flags: u32,
    cookie: u64,
    buffer: u16,
    personality: u16,
    splice_fd: i32,
    more: [u64; 2],
}

/// Mapped memory of a ring.
struct Mapping {
    at: *mut u8,
    len: usize,
}

impl Mapping {
    fn new(fd: RawFd, what: i64, len: u32) -> Mapping {
        let (len, protection) = (len as usize, libc::PROT_READ | libc::PROT_WRITE);
        let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
        // SAFETY: a new mapping at a place that the kernel chooses.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, fd, what) };
        assert_ne!(at, libc::MAP_FAILED, "a ring can be mapped");
        Mapping { at: at.cast(), len }
    }

    fn word(&self, at: u32) -> &AtomicU32 {
        assert!(at as usize + 4 <= self.len);
        // SAFETY: it lies in the mapping, aligned, and is only ever reached by atomic operations.
        unsafe { AtomicU32::from_ptr(self.at.add(at as usize).cast()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let (at, len) = (self.at, self.len);
        // SAFETY: the mapping is ours and nobody uses it any more.
        let unmapped = intercept::unmapping(at.addr(), len, || unsafe { libc::munmap(at.cast(), len) });
        assert_eq!(unmapped, 0);
    }
}

/// A ring of io_uring.
struct Uring {
    fd: RawFd,
    counters: Mapping,
    requests: Mapping,
    /// What io_uring_setup(2) has told (`struct io_uring_params`).
    told: [u32; 30],
    prepared: u32,
}

// Words of what the kernel tells.
const SQ_ENTRIES: usize = 0;
const CQ_ENTRIES: usize = 1;
const FLAGS: usize = 2;
const SQ_TAIL: usize = 11;
const SQ_ARRAY: usize = 16;
const CQ_HEAD: usize = 20;
const CQ_TAIL: usize = 21;
const CQES: usize = 25;

impl Uring {
    fn new(flags: u32) -> Result<Uring, i32> {
        let mut told = [0; 30];
        told[FLAGS] = flags;
        // SAFETY: the kernel reads and writes 120 bytes.
        let made = unsafe { libc::syscall(libc::SYS_io_uring_setup, DEPTH, told.as_mut_ptr()) };
        let low = calls::returned(made)? as RawFd;
        let fd = calls::dup_apart(low)? as RawFd;
        // SAFETY: a descriptor.
        unsafe { libc::close(low) };
        intercept::set_up(fd, told[FLAGS]);
        let len = (told[SQ_ARRAY] + 4 * told[SQ_ENTRIES]).max(told[CQES] + 16 * told[CQ_ENTRIES]);
        let counters = Mapping::new(fd, COUNTERS, len);
        let requests = Mapping::new(fd, REQUESTS, told[SQ_ENTRIES] * size_of::<Request>() as u32);
        Ok(Uring { fd, counters, requests, told, prepared: 0 })
    }

    /// Registers buffers, which have to outlive the ring, or files.
    fn register<T>(&self, what: u32, all: &[T]) {
        let (fd, at, count) = (self.fd, all.as_ptr(), all.len());
        // SAFETY: the kernel reads `count` of what `what` names, which both callers pass; buffers outlive the ring.
        let call = || unsafe { libc::syscall(libc::SYS_io_uring_register, fd, what, at, count) };
        assert_eq!(intercept::registering(call), 0, "buffers and files can be registered");
    }

    /// Publishes a request. What it points to has to live until its end.
    fn prepare(&mut self, request: Request) {
        let mask = self.told[SQ_ENTRIES] - 1;
        let tail = self.counters.word(self.told[SQ_TAIL]);
        let at = tail.load(Ordering::Relaxed);
        let place = at & mask;
        let index = match self.told[FLAGS] & SETUP_NO_SQARRAY {
            // From the last one backwards, so that the array of indices counts.
            0 => mask - place,
            _ => place,
        };
        if self.told[FLAGS] & SETUP_NO_SQARRAY == 0 {
            self.counters.word(self.told[SQ_ARRAY] + 4 * place).store(index, Ordering::Relaxed);
        }
        // SAFETY: it lies in the mapping, and the kernel does not read it before it is published.
        unsafe { self.requests.at.cast::<Request>().add(index as usize).write(request) };
        tail.store(at.wrapping_add(1), Ordering::Release);
        self.prepared += 1;
    }

    /// Submits what was prepared and waits for `least` ends.
    fn enter(&mut self, least: u32) {
        let (fd, to_submit) = (self.fd, std::mem::take(&mut self.prepared));
        let flags = if least > 0 { ENTER_GETEVENTS } else { 0 };
        let call = Entry { fd, to_submit, least, flags, argument: 0, size: 0 };
        let real = || -> Ret {
            // SAFETY: what the requests point to lives until their ends.
            calls::returned(unsafe {
                libc::syscall(libc::SYS_io_uring_enter, fd, to_submit, least, flags, 0, 0)
            })
        };
        let count = |result: &Ret| result.ok().and_then(|count| u32::try_from(count).ok());
        let entered = intercept::entering(call, real, |done| done.map(i64::from), count);
        assert_eq!(entered, Ok(to_submit.into()), "the kernel takes all");
    }

    /// Takes the next end: the request's cookie, and its result.
    fn end(&mut self) -> Option<(u64, i32)> {
        let head = self.counters.word(self.told[CQ_HEAD]);
        let at = head.load(Ordering::Relaxed);
        if at == self.counters.word(self.told[CQ_TAIL]).load(Ordering::Acquire) {
            return None;
        }
        let place = self.told[CQES] + 16 * (at & (self.told[CQ_ENTRIES] - 1));
        let [cookie, _, result] =
            [0, 4, 8].map(|more| self.counters.word(place + more).load(Ordering::Relaxed));
        head.store(at.wrapping_add(1), Ordering::Release);
        Some((cookie.into(), result.cast_signed()))
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        let _ = calls::close(self.fd);
    }
}

/// How a thread uses its rings.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// Whether it waits for ends by calls; else it looks into the memory.
    pub asks: bool,
    /// Whether it makes holes, which are marked as if all of the file were written.
    pub makes_holes: bool,
}

/// A ring that blocks are written by.
pub struct ByHand {
    ring: Uring,
    manner: Manner,
    vectors: Box<[libc::iovec]>,
    in_flight: InFlight,
}

impl ByHand {
    pub fn new(manner: Manner, rng: &mut Rng) -> ByHand {
        // Only a call makes the ends known of one whose flags say that they are told when they are asked for.
        let deferred = if manner.asks { SETUP_SINGLE_ISSUER | SETUP_DEFER_TASKRUN } else { 0 };
        let flags = *rng.pick(&[0, 0, deferred, SETUP_NO_SQARRAY]);
        // An older kernel does not know them all.
        let ring = Uring::new(flags).or_else(|_| Uring::new(0)).expect("a ring");
        let in_flight = InFlight::default();
        let vector = |at: u64| libc::iovec { iov_base: at as *mut libc::c_void, iov_len: BLOCK };
        let vectors: Box<[_]> = in_flight.memory().iter().map(|memory| vector(memory.address())).collect();
        ring.register(REGISTER_BUFFERS, &vectors);
        ByHand { ring, manner, vectors, in_flight }
    }

    fn prepare(&mut self, fd: RawFd, block: &Block, flags: u8) {
        let (number, address) = self.in_flight.begin(block);
        let request = Request { flags, fd, at: block.at, cookie: number as u64, ..Request::default() };
        let (block_len, vector) = (BLOCK as u32, &raw const self.vectors[number]);
        self.ring.prepare(match block.value % 3 {
            _ if block.value == 0 => Request {
                opcode: FALLOCATE,
                address: BLOCK as u64,
                len: (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE).cast_unsigned(),
                ..request
            },
            0 => Request { opcode: WRITEV, address: vector as u64, len: 1, ..request },
            1 => Request { opcode: WRITE, address, len: block_len, ..request },
            _ => {
                let buffer = number as u16;
                Request { opcode: WRITE_FIXED, address, len: block_len, buffer, ..request }
            }
        });
    }

    fn take_ends(&mut self) -> usize {
        let mut count = 0;
        while let Some((number, result)) = self.ring.end() {
            assert!([0, BLOCK as i32].contains(&result), "a request ends well, not with {result}");
            self.in_flight.end(number as usize);
            count += 1;
        }
        count
    }
}

impl Ring for ByHand {
    fn submit(&mut self, fd: RawFd, blocks: &[Block], rng: &mut Rng) {
        let linked = rng.one_in(2);
        for (number, block) in blocks.iter().enumerate() {
            let is_last = number + 1 == blocks.len();
            self.prepare(fd, block, if linked && !is_last { LINK } else { 0 });
        }
        // One call submits, or it also waits.
        let waits = self.manner.asks && rng.one_in(3);
        self.ring.enter(waits.into());
        self.take_ends();
    }

    fn reap(&mut self) {
        while self.take_ends() == 0 {
            match self.manner.asks {
                true => self.ring.enter(1),
                false => std::thread::yield_now(),
            }
        }
    }

    fn in_flight(&self) -> &InFlight {
        &self.in_flight
    }

    fn makes_holes(&self) -> bool {
        self.manner.makes_holes
    }

    fn has_to_be_asked(&self) -> bool {
        self.ring.told[FLAGS] & SETUP_DEFER_TASKRUN != 0
    }
}

impl Drop for ByHand {
    fn drop(&mut self) {
        // Nobody would know when what still flies ends.
        while !std::thread::panicking() && self.in_flight.free() < DEPTH {
            self.reap();
        }
    }
}

/// Writes `data` to the file's beginning, as that is registered with a ring, again and again until `has_enough`.
pub fn write_registered(fd: RawFd, data: &[u8], has_enough: impl Fn() -> bool) {
    let mut ring = Uring::new(0).expect("a ring");
    ring.register(REGISTER_FILES, &[fd]);
    let (address, len) = (data.as_ptr() as u64, data.len() as u32);
    let request = Request { opcode: WRITE, flags: FIXED_FILE, fd: 0, address, len, ..Request::default() };
    loop {
        ring.prepare(request);
        ring.enter(1);
        assert_eq!(ring.end(), Some((0, len.cast_signed())));
        if has_enough() {
            return;
        }
    }
}

/// Submits a write of `data` to the beginning of the file `fd` that waits until something can be read from `pipe`, does `meanwhile`,
/// and waits for its end.
pub fn write_behind(pipe: RawFd, fd: RawFd, data: &[u8], meanwhile: impl FnOnce()) {
    let (mut ring, mut byte) = (Uring::new(0).expect("a ring"), 0u8);
    let address = &raw mut byte as u64;
    ring.prepare(Request { opcode: READ, flags: LINK, fd: pipe, address, len: 1, ..Request::default() });
    let (address, len) = (data.as_ptr() as u64, data.len() as u32);
    ring.prepare(Request { opcode: WRITE, fd, address, len, cookie: 1, ..Request::default() });
    ring.enter(0);
    meanwhile();
    for expected in [(0, 1), (1, len.cast_signed())] {
        let mut end = ring.end();
        while end.is_none() {
            std::thread::yield_now();
            end = ring.end();
        }
        assert_eq!(end, Some(expected));
    }
}

thread_local! {
    static OURS: RefCell<Option<Uring>> = const { RefCell::new(None) };
}

/// One write by the thread's ring, from its beginning to its end; `renews` has the next one made by a new ring.
pub fn write(fd: RawFd, data: &[u8], at: i64, as_vector: bool, renews: bool) -> Ret {
    let vector = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    let request = Request { fd, at: at.cast_unsigned(), cookie: 7, ..Request::default() };
    let request = match as_vector {
        true => Request { opcode: WRITEV, address: &raw const vector as u64, len: 1, ..request },
        false => Request { opcode: WRITE, address: data.as_ptr() as u64, len: data.len() as u32, ..request },
    };
    OURS.with_borrow_mut(|ours| {
        let ring = ours.get_or_insert_with(|| Uring::new(0).expect("a ring"));
        ring.prepare(request);
        ring.enter(1);
        let (_, result) = ring.end().expect("it was waited for");
        if renews {
            *ours = None;
        }
        if result < 0 { Err(-result) } else { Ok(result.into()) }
    })
}
