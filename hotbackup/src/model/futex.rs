//! A futex as the kernel has it: comparing and falling asleep are one step, and whoever wakes comes before or behind it.

use std::time::Duration;

use loom::sync::atomic::{AtomicU32, Ordering};
use loom::sync::{Condvar, Mutex};

loom::lazy_static! {
    /// One bucket for all words: who is woken for another's word looks again and sleeps on.
    static ref BUCKET: (Mutex<()>, Condvar) = (Mutex::new(()), Condvar::new());
}

/// Sleeps while `word` is `value`; a `time` of zero is over before it has begun, any other one never ends.
pub(crate) fn wait(word: &AtomicU32, value: u32, time: Duration) {
    let (lock, sleepers) = &*BUCKET;
    let mut bucket = lock.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if time > Duration::ZERO && word.load(Ordering::Relaxed) == value {
        bucket = sleepers.wait(bucket).unwrap_or_else(std::sync::PoisonError::into_inner);
    }
    drop(bucket);
}

/// Wakes everyone who sleeps on `word`.
pub(crate) fn wake(_word: &AtomicU32) {
    let (lock, sleepers) = &*BUCKET;
    let bucket = lock.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    sleepers.notify_all();
    drop(bucket);
}
