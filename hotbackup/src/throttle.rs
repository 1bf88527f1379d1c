//! How fast the copying may write: a rate that any thread may change at any time.
//!
//! Copiers call [`Limiter::take`] for every piece before they write it. The allowance builds up for at most
//! [`BURST`], so the rate is smooth over a tenth of a second. It bounds the first copy only: capture and converging
//! are never throttled, or a backup under load would not end.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The most that an idle limiter saves up.
const BURST: Duration = Duration::from_millis(100);
/// How long a copier sleeps at the most before it looks at the rate again.
const NAP: Duration = Duration::from_millis(20);

/// A bound on what the copying writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Throttle(u64);

impl Throttle {
    /// No bound.
    pub const UNLIMITED: Throttle = Throttle(u64::MAX);
    /// The copying stands still, and so does the session, until another rate is set. Capture goes on.
    pub const PAUSED: Throttle = Throttle(0);

    /// At most so many bytes per second; 0 pauses.
    pub const fn bytes_per_sec(rate: u64) -> Throttle {
        Throttle(rate)
    }

    /// The rate in bytes per second; `u64::MAX` is unlimited.
    pub const fn rate(self) -> u64 {
        self.0
    }
}

impl Default for Throttle {
    fn default() -> Self {
        Throttle::UNLIMITED
    }
}

/// Hands out the allowance of one session.
#[derive(Debug)]
pub(crate) struct Limiter {
    rate_bytes_per_sec: AtomicU64,
    account: Mutex<Account>,
}

#[derive(Debug)]
struct Account {
    /// Bytes that may be written now; negative after a piece larger than the allowance.
    balance: f64,
    filled: Instant,
}

impl Limiter {
    pub(crate) fn new(throttle: Throttle) -> Limiter {
        Limiter {
            rate_bytes_per_sec: AtomicU64::new(throttle.rate()),
            account: Mutex::new(Account { balance: 0.0, filled: Instant::now() }),
        }
    }

    pub(crate) fn set(&self, throttle: Throttle) {
        self.rate_bytes_per_sec.store(throttle.rate(), Ordering::Relaxed);
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.rate_bytes_per_sec.load(Ordering::Relaxed) == 0
    }

    /// The largest piece that keeps the flow smooth at the present rate: a twentieth of a second, within bounds.
    pub(crate) fn piece(&self, largest: usize) -> usize {
        let rate = self.rate_bytes_per_sec.load(Ordering::Relaxed);
        usize::try_from(rate / 20).unwrap_or(largest).clamp(largest.min(4096), largest)
    }

    /// Waits until `bytes` may be written. Returns false if `cancelled` became true meanwhile.
    pub(crate) fn take(&self, bytes: u64, cancelled: impl Fn() -> bool) -> bool {
        loop {
            if cancelled() {
                return false;
            }
            let wait = match self.rate_bytes_per_sec.load(Ordering::Relaxed) {
                u64::MAX => return true,
                0 => NAP,
                rate => match self.try_take(bytes, rate) {
                    None => return true,
                    Some(wait) => wait.min(NAP),
                },
            };
            std::thread::sleep(wait);
        }
    }

    /// Takes `bytes` if the balance is not overdrawn; else says how long to wait.
    fn try_take(&self, bytes: u64, rate: u64) -> Option<Duration> {
        let mut account = self.account.lock();
        let now = Instant::now();
        let gained = now.duration_since(account.filled).as_secs_f64() * rate as f64;
        account.filled = now;
        account.balance = (account.balance + gained).min(BURST.as_secs_f64() * rate as f64);
        if account.balance < 0.0 {
            return Some(Duration::from_secs_f64(-account.balance / rate as f64));
        }
        account.balance -= bytes as f64;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_is_a_twentieth_of_a_second() {
        assert_eq!(Limiter::new(Throttle::UNLIMITED).piece(1 << 20), 1 << 20);
        assert_eq!(Limiter::new(Throttle::bytes_per_sec(1_000_000)).piece(1 << 20), 50_000);
        assert_eq!(Limiter::new(Throttle::bytes_per_sec(1)).piece(1 << 20), 4096);
    }

    #[test]
    fn a_paused_limiter_gives_nothing_until_it_is_cancelled() {
        let limiter = Limiter::new(Throttle::PAUSED);
        let asked = std::cell::Cell::new(0);
        assert!(!limiter.take(1, || {
            asked.set(asked.get() + 1);
            asked.get() > 2
        }));
    }

    #[test]
    fn an_overdrawn_account_says_how_long_to_wait() {
        let limiter = Limiter::new(Throttle::bytes_per_sec(1000));
        assert_eq!(limiter.try_take(1000, 1000), None);
        let wait = limiter.try_take(1, 1000).expect("overdrawn by a second's worth");
        assert!(wait > Duration::from_millis(800) && wait <= Duration::from_secs(1), "{wait:?}");
    }

    #[test]
    fn an_idle_limiter_saves_up_a_tenth_of_a_second() {
        let limiter = Limiter::new(Throttle::bytes_per_sec(1000));
        limiter.account.lock().filled -= Duration::from_secs(60);
        assert_eq!(limiter.try_take(60, 1000), None);
        assert_eq!(limiter.try_take(60, 1000), None, "40 bytes are left, which may be overdrawn");
        assert!(limiter.try_take(60, 1000).is_some());
    }

    #[test]
    fn no_more_is_taken_than_the_rate_allows() {
        const RATE: u64 = 10_000_000;
        let limiter = Limiter::new(Throttle::bytes_per_sec(RATE));
        let piece = limiter.piece(1 << 20) as u64;
        let begun = Instant::now();
        let mut taken = 0;
        while begun.elapsed() < Duration::from_millis(300) {
            assert!(limiter.take(piece, || false));
            taken += piece;
        }
        let allowed = (begun.elapsed() + BURST).as_secs_f64() * RATE as f64 + piece as f64;
        assert!(taken as f64 <= allowed, "{taken} bytes, {allowed} allowed");
    }

    #[test]
    fn a_new_rate_counts_at_once() {
        let limiter = Limiter::new(Throttle::PAUSED);
        std::thread::scope(|scope| {
            let copier = scope.spawn(|| limiter.take(1 << 30, || false));
            limiter.set(Throttle::UNLIMITED);
            assert!(copier.join().expect("the copier runs to its end"));
        });
    }
}
