//! Model checking with loom: every interleaving, and every value that the memory model allows, of the gate and the
//! marks as they are built, with hooks and an engine boiled down to a few lines.
//!
//! Run with `tests/run model`. What a file holds is an atomic that is only ever accessed relaxed, so that the order a
//! model proves comes from the gate and the marks alone. Loom knows fences that are sequentially consistent but takes
//! such accesses as acquire and release, so that it can only find too much, never too little; both halves of the
//! asymmetric fence (membarrier(2)) are full fences here. A test whose name ends in `is_found` breaks a rule on
//! purpose and expects the loss: it shows that the models can see one.

#[cfg(test)]
mod flights;
pub(crate) mod futex;
#[cfg(test)]
mod gate;
#[cfg(test)]
mod marks;

use loom::sync::atomic::{AtomicU32, Ordering};

/// Checks every interleaving with at most so many preemptions; two find nearly all defects there are.
fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 10_000;
    builder.check(model);
}

/// What lives as long as the process does in the real thing.
fn forever<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

/// A block of a file, as reads and writes of the kernel see it.
struct Block(AtomicU32);

impl Block {
    fn new() -> Block {
        Block(AtomicU32::new(0))
    }

    fn read(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    fn write(&self, value: u32) {
        self.0.store(value, Ordering::Relaxed);
    }
}
