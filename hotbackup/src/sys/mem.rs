//! Memory of our own, which hooks can take from without touching the host's allocator.
//!
//! A [`Pool`] hands out zeroed objects that live forever: its chunks are mapped once and never unmapped. What a session
//! took is given back as a whole with [`Pool::recycle`], which returns the pages to the kernel and leaves the addresses
//! valid (they read as zeros), so that a straggler's late store can do no harm. Only types for which zeros and
//! arbitrary concurrent access are fine can be had from a pool ([`Zeroed`]).

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::atomic::AtomicPtr;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};

/// Types that are valid when all their bytes are zero, need no drop, and are only ever changed by atomics.
///
/// # Safety
/// All-zero bytes must be a valid value, it must stay valid if they turn to zero at any time, and it must be `Sync`.
pub(crate) unsafe trait Zeroed: Sync + 'static {}

// SAFETY: an atomic integer of value zero.
unsafe impl Zeroed for std::sync::atomic::AtomicU64 {}
// SAFETY: an atomic null pointer is `None`.
unsafe impl<T: Zeroed> Zeroed for AtomicRef<T> {}
// SAFETY: all elements are.
unsafe impl<T: Zeroed, const N: usize> Zeroed for [T; N] {}

// SAFETY: an atomic integer of value zero.
unsafe impl Zeroed for std::sync::atomic::AtomicU32 {}
// SAFETY: an atomic integer of value zero.
unsafe impl Zeroed for std::sync::atomic::AtomicI64 {}

/// Declares a struct that can live in a [`Pool`]: all its fields can.
macro_rules! zeroed {
    ($(#[$meta:meta])* $vis:vis struct $name:ident { $($(#[$field_meta:meta])* $field_vis:vis $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        $vis struct $name { $($(#[$field_meta])* $field_vis $field: $type,)* }

        #[cfg(not(loom))]
        const _: () = {
            const fn zeroed<T: $crate::sys::mem::Zeroed>() {}
            $(zeroed::<$type>();)*
            // SAFETY: all fields are `Zeroed`, as the lines above have checked.
            #[expect(unsafe_code, reason = "the trait is unsafe; its condition was checked field by field")]
            unsafe impl $crate::sys::mem::Zeroed for $name {}
        };
    };
}
pub(crate) use zeroed;

/// No kernel that we run on has larger pages.
const LARGEST_PAGE: usize = 64 << 10;
const CHUNK: usize = 4 << 20;
const CHUNKS: usize = 4096;

/// Chunks of our own memory, handed out front to back.
pub(crate) struct Pool {
    chunks: [std::sync::atomic::AtomicPtr<u8>; CHUNKS],
    /// The index of the next free byte, counted over all chunks.
    next: AtomicUsize,
}

impl Pool {
    pub(crate) const fn new() -> Pool {
        Pool {
            chunks: [const { std::sync::atomic::AtomicPtr::new(std::ptr::null_mut()) }; CHUNKS],
            next: AtomicUsize::new(0),
        }
    }

    /// A zeroed `T`, or `None` when there is no memory.
    pub(crate) fn one<T: Zeroed>(&self) -> Option<&'static T> {
        // SAFETY: the memory is zeroed, aligned, large enough, lives forever, and `T: Zeroed` allows that.
        self.take(size_of::<T>(), align_of::<T>()).map(|p| unsafe { &*p.cast::<T>() })
    }

    /// Bytes taken so far.
    #[cfg(test)]
    pub(crate) fn used(&self) -> usize {
        self.next.load(Ordering::Relaxed)
    }

    /// Lock-free and async-signal-safe.
    fn take(&self, bytes: usize, align: usize) -> Option<*mut u8> {
        if bytes > CHUNK || align > 64 {
            return None;
        }
        let mut at = self.next.load(Ordering::Relaxed);
        let start = loop {
            let mut start = at.next_multiple_of(align.max(8));
            if start % CHUNK + bytes > CHUNK {
                start = start.next_multiple_of(CHUNK);
            }
            match self.next.compare_exchange_weak(at, start + bytes, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => break start,
                Err(now) => at = now,
            }
        };
        let chunk = self.chunk(start / CHUNK)?;
        // SAFETY: `start % CHUNK + bytes <= CHUNK`, so this stays within the chunk.
        Some(unsafe { chunk.add(start % CHUNK) })
    }

    fn chunk(&self, index: usize) -> Option<*mut u8> {
        let slot = self.chunks.get(index)?;
        let known = slot.load(Ordering::Acquire);
        if !known.is_null() {
            return Some(known);
        }
        let fresh = map(CHUNK)?;
        match slot.compare_exchange(std::ptr::null_mut(), fresh, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Some(fresh),
            Err(winner) => {
                // SAFETY: we mapped it just now and nobody else has seen it.
                let _ = unsafe { rustix::mm::munmap(fresh.cast(), CHUNK) };
                Some(winner)
            }
        }
    }

    /// Takes back all that was handed out; every object reads as zeros from now on. To be called when nobody is meant
    /// to use any of it any more.
    pub(crate) fn recycle(&self) {
        let used = self.next.load(Ordering::Relaxed);
        for slot in self.chunks.iter().take(used.div_ceil(CHUNK)) {
            let chunk = slot.load(Ordering::Acquire);
            if !chunk.is_null() {
                // SAFETY: our own private anonymous mapping, whose objects are all `Zeroed`.
                let _ = unsafe { madvise(chunk.cast(), CHUNK, Advice::LinuxDontNeed) };
            }
        }
        self.next.store(0, Ordering::Release);
    }
}

/// Maps zeroed private memory that is only committed when it is touched.
fn map(len: usize) -> Option<*mut u8> {
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a new anonymous mapping at an address of the kernel's choice disturbs nothing.
    unsafe { mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, flags) }
        .ok()
        .map(|p| p.cast())
}

/// A zeroed `T` on pages of its own that a forked child finds zeroed again (madvise(2), `MADV_WIPEONFORK`).
/// `None` when there is no memory or the kernel is older than 4.14.
pub(crate) fn wiped_on_fork<T: Zeroed>() -> Option<&'static T> {
    let len = size_of::<T>().next_multiple_of(LARGEST_PAGE);
    let page = map(len)?;
    // SAFETY: our own new private anonymous mapping.
    unsafe { madvise(page.cast(), len, Advice::LinuxWipeOnFork) }.ok()?;
    // SAFETY: zeroed, page-aligned, large enough, never unmapped, and `T: Zeroed` allows wiping.
    Some(unsafe { &*page.cast::<T>() })
}

/// Room for data on pages of its own, as reading and writing with `O_DIRECT` needs it. A forked child does not have it
/// (madvise(2), `MADV_DONTFORK`): of a page that a fork turns into two, the disk may fill the one that is not ours.
pub(crate) struct PageBuffer {
    bytes: NonNull<[u8]>,
}

// SAFETY: it owns its mapping, which any thread may use and unmap.
unsafe impl Send for PageBuffer {}

impl PageBuffer {
    /// `len` bytes of zeros, `None` when there is no memory.
    pub(crate) fn new(len: usize) -> Option<PageBuffer> {
        let start = NonNull::new(map(len)?)?;
        let buffer = PageBuffer { bytes: NonNull::slice_from_raw_parts(start, len) };
        // SAFETY: our own new private anonymous mapping.
        unsafe { madvise(start.as_ptr().cast(), len, Advice::LinuxDontFork) }.ok()?;
        Some(buffer)
    }
}

impl std::ops::Deref for PageBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: mapped for as long as this lives, initialised (zeros), and borrowed like this is.
        unsafe { self.bytes.as_ref() }
    }
}

impl std::ops::DerefMut for PageBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { self.bytes.as_mut() }
    }
}

impl Drop for PageBuffer {
    fn drop(&mut self) {
        // SAFETY: our own mapping, to which no reference is left.
        let _ = unsafe { rustix::mm::munmap(self.bytes.as_ptr().cast(), self.bytes.len()) };
    }
}

/// A `Zeroed` slice of `len` on pages of its own, `None` when there is no memory.
pub(crate) fn reserve<T: Zeroed>(len: usize) -> Option<&'static [T]> {
    // SAFETY: zeroed, page-aligned, large enough and never unmapped.
    map(size_of::<T>().checked_mul(len)?).map(|p| unsafe { std::slice::from_raw_parts(p.cast::<T>(), len) })
}

/// An atomic `Option<&'static T>`; zeroed memory is `None`.
pub(crate) struct AtomicRef<T: 'static> {
    pointer: AtomicPtr<T>,
    holds: PhantomData<&'static T>,
}

impl<T: Sync> AtomicRef<T> {
    #[cfg(not(loom))]
    pub(crate) const fn none() -> AtomicRef<T> {
        AtomicRef { pointer: AtomicPtr::new(std::ptr::null_mut()), holds: PhantomData }
    }

    #[cfg(loom)]
    pub(crate) fn none() -> AtomicRef<T> {
        AtomicRef { pointer: AtomicPtr::new(std::ptr::null_mut()), holds: PhantomData }
    }

    #[inline]
    pub(crate) fn load(&self, order: Ordering) -> Option<&'static T> {
        // SAFETY: only `&'static T`s are ever stored, and zero is null.
        unsafe { self.pointer.load(order).as_ref() }
    }

    pub(crate) fn store(&self, value: Option<&'static T>, order: Ordering) {
        self.pointer.store(Self::raw(value), order);
    }

    pub(crate) fn swap(&self, value: Option<&'static T>, order: Ordering) -> Option<&'static T> {
        // SAFETY: as in `load`.
        unsafe { self.pointer.swap(Self::raw(value), order).as_ref() }
    }

    /// Stores `new` if `old` is there; else returns what is.
    pub(crate) fn replace(
        &self,
        old: Option<&'static T>,
        new: Option<&'static T>,
    ) -> Result<(), Option<&'static T>> {
        match self.pointer.compare_exchange(
            Self::raw(old),
            Self::raw(new),
            Ordering::AcqRel,
            Ordering::Acquire,
        ) {
            Ok(_) => Ok(()),
            // SAFETY: as in `load`.
            Err(now) => Err(unsafe { now.as_ref() }),
        }
    }

    fn raw(value: Option<&'static T>) -> *mut T {
        value.map_or(std::ptr::null_mut(), |v| std::ptr::from_ref(v).cast_mut())
    }
}
