//! Writes of blocks by native AIO and by POSIX aio, submitted as hooks would.
//!
//! Requests and rings are laid out as `linux/aio_abi.h` says.

use std::alloc::{Layout, alloc_zeroed, dealloc};

use hotbackup::intercept;

use super::calls::{self, Ret};
use super::rng::Rng;

pub const BLOCK: usize = 4096;
pub const DEPTH: usize = 8;

/// A block that is to be written: every word of it is the value. 0 is a hole, where the ring can make one.
#[derive(Clone, Copy, Debug)]
pub struct Block {
    pub at: u64,
    pub value: u64,
}

/// A way to write blocks while the thread goes on, at most [`DEPTH`] at a time.
pub trait Ring {
    /// Begins to write blocks, in one call if there is such.
    fn submit(&mut self, fd: i32, blocks: &[Block], rng: &mut Rng);

    /// Waits for an end at least.
    fn reap(&mut self);

    fn in_flight(&self) -> &InFlight;

    fn makes_holes(&self) -> bool {
        false
    }

    /// Whether ends come only when the thread asks for them: then it must not wait for anybody else while something flies.
    fn has_to_be_asked(&self) -> bool {
        false
    }
}

/// The memory of a block as direct I/O takes it.
pub struct Memory(*mut u8);

const LAYOUT: Layout = match Layout::from_size_align(BLOCK, BLOCK) {
    Ok(layout) => layout,
    Err(_) => panic!("a power of two"),
};

impl Memory {
    fn new() -> Memory {
        // SAFETY: the layout is not empty.
        let at = unsafe { alloc_zeroed(LAYOUT) };
        assert!(!at.is_null(), "memory");
        Memory(at)
    }

    fn fill(&mut self, value: u64) {
        // SAFETY: the memory is ours, of this size, and nothing flies that reads it.
        let bytes = unsafe { std::slice::from_raw_parts_mut(self.0, BLOCK) };
        bytes.chunks_mut(8).for_each(|word| word.copy_from_slice(&value.to_ne_bytes()));
    }

    pub fn address(&self) -> u64 {
        self.0 as u64
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: it was allocated so.
        unsafe { dealloc(self.0, LAYOUT) }
    }
}

/// Which blocks fly, and the memory of each.
pub struct InFlight {
    places: Vec<Option<u64>>,
    memory: Vec<Memory>,
}

impl Default for InFlight {
    fn default() -> Self {
        InFlight { places: vec![None; DEPTH], memory: (0..DEPTH).map(|_| Memory::new()).collect() }
    }
}

impl InFlight {
    /// Takes a free number for this block: the number, and where its bytes are.
    pub fn begin(&mut self, block: &Block) -> (usize, u64) {
        let number = self.places.iter().position(Option::is_none).expect("one is free");
        self.places[number] = Some(block.at);
        self.memory[number].fill(block.value);
        (number, self.memory[number].address())
    }

    pub fn end(&mut self, number: usize) {
        assert!(self.places[number].take().is_some(), "it flies");
    }

    pub fn free(&self) -> usize {
        DEPTH - self.numbers().count()
    }

    pub fn numbers(&self) -> impl Iterator<Item = usize> {
        (0..DEPTH).filter(|&number| self.places[number].is_some())
    }

    /// Whether a write to this place is under way: two at a time would have no order.
    pub fn holds(&self, at: u64) -> bool {
        self.places.contains(&Some(at))
    }

    pub fn memory(&self) -> &[Memory] {
        &self.memory
    }
}

/// A request (`struct iocb`).
#[repr(C)]
#[derive(Default, Clone, Copy)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: u32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buffer: u64,
    count: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    event_fd: u32,
}

/// The end of a request (`struct io_event`).
#[repr(C)]
#[derive(Default, Clone, Copy)]
struct Event {
    data: u64,
    request: u64,
    result: i64,
    result2: i64,
}

/// A ring of native AIO.
pub struct Native {
    id: u64,
    requests: Box<[(Iocb, [u64; 2]); DEPTH]>,
    in_flight: InFlight,
}

impl Native {
    pub fn new() -> Native {
        let mut id = 0u64;
        // SAFETY: the kernel writes the ring's address to `id`.
        let made = unsafe { libc::syscall(libc::SYS_io_setup, DEPTH, &raw mut id) };
        assert_eq!(made, 0, "a ring");
        Native { id, requests: Box::default(), in_flight: InFlight::default() }
    }

    /// Fills a request in and returns its address.
    fn prepare(&mut self, fd: i32, block: &Block) -> u64 {
        let (number, memory) = self.in_flight.begin(block);
        self.fill(number, fd, block.at.cast_signed(), (memory, BLOCK), block.value.is_multiple_of(3))
    }

    fn fill(&mut self, number: usize, fd: i32, offset: i64, bytes: (u64, usize), as_vector: bool) -> u64 {
        let (request, vector) = &mut self.requests[number];
        *vector = [bytes.0, bytes.1 as u64];
        let (opcode, buffer, count) = match as_vector {
            false => (1, vector[0], vector[1]),
            true => (8, vector.as_ptr() as u64, 1),
        };
        let (fd, data) = (fd.cast_unsigned(), number as u64);
        *request = Iocb { data, opcode, fd, buffer, count, offset, ..Iocb::default() };
        std::ptr::from_ref(request) as u64
    }

    fn take(&self, requests: &[u64]) -> Ret {
        let id = self.id;
        let taken = intercept::submitting(
            id,
            requests.as_ptr() as u64,
            requests.len(),
            || calls::returned(submit_unseen(id, requests)),
            |taken: &Ret| taken.map_or(0, |taken| taken as usize),
        )?;
        assert_eq!(taken, requests.len() as i64, "the kernel takes all");
        Ok(taken)
    }

    fn events(&mut self, least: usize) -> Vec<Event> {
        let mut events = [Event::default(); DEPTH];
        let (id, at) = (self.id, events.as_mut_ptr());
        let count = intercept::reaping(
            id,
            // SAFETY: the kernel writes at most as many events as there is room for.
            || unsafe { libc::syscall(libc::SYS_io_getevents, id, least, DEPTH, at, 0) },
            |&count| (at as u64, usize::try_from(count).unwrap_or(0)),
        );
        events[..usize::try_from(count).expect("events")].to_vec()
    }

    /// Submits a write behind the engine's back.
    pub fn submit_unseen(&mut self, fd: i32, block: &Block) {
        let requests = [self.prepare(fd, block)];
        assert_eq!(submit_unseen(self.id, &requests), 1);
    }
}

fn submit_unseen(id: u64, requests: &[u64]) -> i64 {
    // SAFETY: the requests and what they point to live, unchanged, until their ends are reaped or the ring is destroyed.
    unsafe { libc::syscall(libc::SYS_io_submit, id, requests.len(), requests.as_ptr()) }
}

impl Ring for Native {
    fn submit(&mut self, fd: i32, blocks: &[Block], _: &mut Rng) {
        let requests: Vec<u64> = blocks.iter().map(|block| self.prepare(fd, block)).collect();
        self.take(&requests).expect("the kernel takes requests");
    }

    fn reap(&mut self) {
        for event in self.events(1) {
            assert_eq!(event.result, BLOCK as i64, "a write ends well");
            self.in_flight.end(event.data as usize);
        }
    }

    fn in_flight(&self) -> &InFlight {
        &self.in_flight
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        let id = self.id;
        // The writes that are left end in here, and nobody asks for them.
        // SAFETY: the ring is ours and nobody uses it any more.
        let destroy = || unsafe { libc::syscall(libc::SYS_io_destroy, id) };
        intercept::destroying(id, destroy, |&result| result == 0);
    }
}

/// One write by a ring of its own, from its beginning to its end.
pub fn write(fd: i32, data: &[u8], at: i64, as_vector: bool) -> Ret {
    let mut ring = Native::new();
    let request = ring.fill(0, fd, at, (data.as_ptr() as u64, data.len()), as_vector);
    ring.take(&[request])?;
    let result = ring.events(1)[0].result;
    if result < 0 { Err(-result as i32) } else { Ok(result) }
}

/// Writes by threads of the C library (aio(7)).
pub struct Posix {
    // Zeroed is a valid control block, and the C library keeps their addresses.
    blocks: Box<[libc::aiocb; DEPTH]>,
    in_flight: InFlight,
}

impl Posix {
    pub fn new() -> Posix {
        // SAFETY: all zeros is a valid control block.
        Posix { blocks: Box::new(unsafe { std::mem::zeroed() }), in_flight: InFlight::default() }
    }

    fn has_ended(&mut self, number: usize) -> bool {
        let block = &raw mut self.blocks[number];
        // SAFETY: the control block has been queued and lives.
        let error = intercept::asking(block as u64, false, || unsafe { libc::aio_error(block) });
        if error == libc::EINPROGRESS {
            return false;
        }
        // SAFETY: as above, and its request has ended.
        let written = intercept::asking(block as u64, true, || unsafe { libc::aio_return(block) });
        assert_eq!(written, BLOCK as isize, "a write ends well");
        self.in_flight.end(number);
        true
    }
}

impl Ring for Posix {
    fn submit(&mut self, fd: i32, blocks: &[Block], _: &mut Rng) {
        for block in blocks {
            let (number, memory) = self.in_flight.begin(block);
            let control = &mut self.blocks[number];
            control.aio_fildes = fd;
            control.aio_buf = memory as *mut libc::c_void;
            control.aio_nbytes = BLOCK;
            control.aio_offset = block.at.cast_signed();
            let control = &raw mut *control;
            // SAFETY: the control block and the memory live until the end has been asked for.
            let queued = intercept::queueing(
                control as u64,
                || unsafe { libc::aio_write(control) },
                |&queued| queued == 0,
            );
            assert_eq!(queued, 0, "the C library queues a request");
        }
    }

    fn reap(&mut self) {
        let list: Vec<*const libc::aiocb> =
            self.in_flight.numbers().map(|number| &raw const self.blocks[number]).collect();
        let (at, count) = (list.as_ptr(), list.len());
        // SAFETY: the list and what it points to live; there is no time to wait for at most.
        let wait = || unsafe { libc::aio_suspend(at, count as i32, std::ptr::null()) };
        assert_eq!(intercept::suspended(at as u64, count, wait), 0, "one ends");
        let numbers: Vec<usize> = self.in_flight.numbers().collect();
        let ended = numbers.into_iter().filter(|&number| self.has_ended(number)).count();
        assert!(ended > 0, "one has ended");
    }

    fn in_flight(&self) -> &InFlight {
        &self.in_flight
    }
}

impl Drop for Posix {
    fn drop(&mut self) {
        while !std::thread::panicking() && self.in_flight.free() < DEPTH {
            self.reap();
        }
    }
}
