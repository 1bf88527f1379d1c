//! Room for two paths, per thread, outside its stack: a signal handler's stack may be no larger than that.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicU32, Ordering};

use super::mem::Zeroed;

/// The longest path the kernel takes, with its NUL (path_resolution(7)).
pub(crate) const PATH_MAX: usize = 4096;

/// Two path buffers that one user at a time can have.
pub(crate) struct Scratch {
    busy: AtomicU32,
    paths: UnsafeCell<[[u8; PATH_MAX]; 2]>,
}

// SAFETY: `paths` is only reached by whoever turned `busy` from 0 to 1.
unsafe impl Sync for Scratch {}
// SAFETY: zeros are a free scratch; memory of this type is never recycled while in use, since it is never recycled.
unsafe impl Zeroed for Scratch {}

impl Scratch {
    /// Runs `work` with the buffers, unless someone has them: then this is a signal handler, or what longjmp left.
    pub(crate) fn with<T>(&self, work: impl FnOnce(&mut [[u8; PATH_MAX]; 2]) -> T) -> Option<T> {
        if self.busy.swap(1, Ordering::Acquire) != 0 {
            return None;
        }
        let _free = Free(&self.busy);
        // SAFETY: `busy` was 0 and is 1 until `_free` goes, so there is no other reference.
        Some(work(unsafe { &mut *self.paths.get() }))
    }
}

struct Free<'a>(&'a AtomicU32);

impl Drop for Free<'_> {
    fn drop(&mut self) {
        self.0.store(0, Ordering::Release);
    }
}
