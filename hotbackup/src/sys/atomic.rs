//! The atomics that `loom` can take over, and the two halves of an asymmetric fence.

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicI64, AtomicPtr, AtomicU32, AtomicU64, Ordering};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicI64, AtomicPtr, AtomicU32, AtomicU64, Ordering};

/// The cheap half: orders a store before a later load as far as the compiler goes. Together with [`fence_heavy`] on
/// the other side it has the effect of a full fence on both sides (membarrier(2)).
#[inline(always)]
pub(crate) fn fence_light() {
    #[cfg(loom)]
    loom::sync::atomic::fence(Ordering::SeqCst);
    #[cfg(not(loom))]
    std::sync::atomic::compiler_fence(Ordering::SeqCst);
}

/// The dear half: every thread of the process passes a full fence before this returns. [`super::raw::can_fence`] must
/// have said yes before.
pub(crate) fn fence_heavy() {
    #[cfg(loom)]
    loom::sync::atomic::fence(Ordering::SeqCst);
    #[cfg(not(loom))]
    super::raw::membarrier();
}
