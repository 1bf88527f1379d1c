//! Rings in which the kernel says that asynchronous requests have ended.
//!
//! A ring is known by its address. Hooks enter the rings that they meet, the engine those that it finds mapped; entries stay
//! until the session ends. What an entry says of a ring of io_uring is changed by whoever submits to it, of whom there is one
//! at a time (io_uring(7)), and read by the engine when everyone is outside.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::sys::mem::zeroed;

/// Rings that can be followed in one session.
const RINGS: usize = 1024;

/// Kinds of rings; 0 is one that was just entered. Of native AIO.
pub(super) const AIO: u32 = 1;
/// Of io_uring.
pub(super) const URING: u32 = 2;
/// The program has given it back.
pub(super) const GONE: u32 = 3;
/// Of io_uring, and being taken up.
const TAKING: u32 = 4;
/// A ring is taken up in much less than this many looks; but a signal handler may have interrupted who does it.
const LOOKS: u32 = 1 << 20;

zeroed! {
    /// One ring.
    pub(super) struct Ring {
        address: AtomicU64,
        kind: AtomicU32,
        /// How far its ends have been looked at.
        pub(super) seen: AtomicU32,
        /// Where the tail of its submissions is if nothing was submitted but by captured calls.
        pub(super) expected: AtomicU32,
        /// Whether liburing's handle was met: liburing publishes nothing but in the calls that submit it.
        pub(super) by_handle: AtomicU32,
        /// Whether the program is about to unmap it.
        leaving: AtomicU32,
        /// Why what is submitted to it is not known; 0 if it is. Holds for whatever comes to be at this address.
        pub(super) unfollowed: AtomicU32,
        /// How much of what is not followed had been taken and had ended when it was seen at rest last.
        pub(super) rest: AtomicU64,
        /// The inode of its descriptors, if it was found mapped: every ring has one of its own.
        pub(super) inode: AtomicU64,
        /// One of its descriptors, if it was used before the session; one more than that, for 0 is none.
        pub(super) descriptor: AtomicU32,
        /// Whether a thread of the kernel's may take requests from it, so that they are submitted by being published.
        pub(super) may_be_polled: AtomicU32,
        /// Whether a request waited for those before it in this session, and those behind it for that.
        pub(super) drains: AtomicU32,
        /// The addresses of the counters of io_uring: submissions taken and published, requests ended.
        pub(super) sq_head: AtomicU64,
        pub(super) sq_tail: AtomicU64,
        pub(super) cq_tail: AtomicU64,
        /// Where the requests lie, if it was found mapped.
        pub(super) requests: AtomicU64,
        pub(super) sq_mask: AtomicU32,
        /// Where its ends begin, how far one is from the next, and how many there is room for, less one. All are 0 until a
        /// captured call has submitted to it.
        pub(super) ends: AtomicU64,
        pub(super) stride: AtomicU32,
        pub(super) mask: AtomicU32,
    }
}

impl Ring {
    pub(super) fn address(&self) -> u64 {
        self.address.load(Ordering::Acquire)
    }

    /// What its requests are named by if it is one of io_uring. A ring of native AIO that was at the same address may still have
    /// some under way: the kernel unmaps it before it waits for them (io_destroy(2)).
    pub(super) fn name(&self) -> u64 {
        self.address() | 2
    }

    pub(super) fn leave(&self) {
        self.leaving.store(1, Ordering::SeqCst);
    }

    /// Whether the program is about to unmap it, or has: then something else may be there.
    pub(super) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::SeqCst) != 0
    }

    /// Whether it is not known what is submitted to it.
    pub(super) fn is_unfollowed(&self) -> bool {
        self.unfollowed.load(Ordering::SeqCst) != 0
    }

    pub(super) fn kind(&self) -> u32 {
        self.kind.load(Ordering::Acquire)
    }

    /// Where the indices of the requests that are submitted lie, if the ring has such: behind the ends, from the next cache line on.
    pub(super) fn indices(&self, has_indices: bool) -> Option<u64> {
        let (ends, mask) = (self.ends.load(Ordering::Relaxed), self.mask.load(Ordering::Relaxed));
        let behind = ends + (u64::from(mask) + 1) * u64::from(self.stride.load(Ordering::Relaxed));
        has_indices.then_some(behind.next_multiple_of(64))
    }

    /// How many of its requests wait for a socket or a pipe, if that can be told.
    pub(super) fn polled(&self) -> Option<u32> {
        let descriptor = self.descriptor.load(Ordering::Relaxed).checked_sub(1)?;
        crate::sys::raw::polled_requests(descriptor.cast_signed())
    }

    /// Makes the entry that of a ring of io_uring by `take_up`, unless it is already. False if another thread does not get done
    /// with that.
    pub(super) fn be_uring(&self, take_up: impl FnOnce(&Ring)) -> bool {
        let claim =
            |from| self.kind.compare_exchange(from, TAKING, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        for _ in 0..LOOKS {
            match self.kind() {
                URING => return true,
                TAKING => std::hint::spin_loop(),
                other if claim(other) => {
                    // Nothing was submitted to it before this session met it: else that shows.
                    self.seen.store(0, Ordering::Relaxed);
                    self.expected.store(0, Ordering::Relaxed);
                    self.leaving.store(0, Ordering::Relaxed);
                    self.may_be_polled.store(1, Ordering::Relaxed);
                    self.drains.store(0, Ordering::Relaxed);
                    take_up(self);
                    self.set_kind(URING);
                    return true;
                }
                _ => {}
            }
        }
        false
    }

    /// Makes the entry one of a ring that is gone, if it `is_gone` still when nobody takes it up. Returns whether it did.
    pub(super) fn let_go(&self, is_gone: impl Fn(&Ring) -> bool) -> bool {
        let claim = self.kind.compare_exchange(URING, TAKING, Ordering::SeqCst, Ordering::SeqCst);
        let lets_go = claim.is_ok() && is_gone(self);
        if claim.is_ok() {
            self.set_kind(if lets_go { GONE } else { URING });
        }
        lets_go
    }

    pub(super) fn set_kind(&self, kind: u32) {
        self.kind.store(kind, Ordering::Release);
    }
}

zeroed! {
    /// The rings of a session.
    pub(super) struct Rings {
        rings: [Ring; RINGS],
    }
}

impl Rings {
    /// The rings that were entered.
    pub(super) fn all(&self) -> impl Iterator<Item = &Ring> {
        self.rings.iter().take_while(|ring| ring.address() != 0)
    }

    pub(super) fn find(&self, address: u64) -> Option<&Ring> {
        self.all().find(|ring| ring.address() == address)
    }

    /// The ring of io_uring that the descriptors of this inode stand for.
    pub(super) fn of_inode(&self, inode: u64) -> Option<&Ring> {
        self.all().find(|ring| ring.kind() == URING && ring.inode.load(Ordering::Relaxed) == inode)
    }

    /// The ring's entry, a fresh one of no kind if it had none. `None` if there is no room.
    pub(super) fn enter(&self, address: u64) -> Option<&Ring> {
        self.rings.iter().find(|ring| {
            let known = ring.address();
            known == address
                || known == 0
                    && ring
                        .address
                        .compare_exchange(0, address, Ordering::SeqCst, Ordering::SeqCst)
                        .map_or_else(|winner| winner == address, |_| true)
        })
    }
}
