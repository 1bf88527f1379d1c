//! How long many things took, in little memory.
//!
//! A time is counted in a bucket with 1/16 of its size, so a quantile is right to about 3 %; the longest is exact.

use std::time::Duration;

const STEPS: u32 = 16;
const BUCKETS: usize = 61 * STEPS as usize;

/// Counted times.
#[derive(Clone, Debug)]
pub struct Latencies {
    buckets: Vec<u64>,
    count: u64,
    longest_ns: u64,
}

impl Default for Latencies {
    fn default() -> Self {
        Latencies { buckets: vec![0; BUCKETS], count: 0, longest_ns: 0 }
    }
}

impl Latencies {
    /// Counts one.
    pub fn note(&mut self, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket(ns)] += 1;
        self.count += 1;
        self.longest_ns = self.longest_ns.max(ns);
    }

    /// Counts all that `other` has counted.
    pub fn add(&mut self, other: &Latencies) {
        for (bucket, more) in self.buckets.iter_mut().zip(&other.buckets) {
            *bucket += more;
        }
        self.count += other.count;
        self.longest_ns = self.longest_ns.max(other.longest_ns);
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The time that the given part of all stays below: 0.5 for the median.
    pub fn quantile(&self, part: f64) -> Duration {
        let wanted = ((self.count as f64 * part).ceil() as u64).max(1);
        let mut seen = 0;
        for (number, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return Duration::from_nanos(middle(number).min(self.longest_ns));
            }
        }
        self.longest()
    }

    /// The longest.
    pub fn longest(&self) -> Duration {
        Duration::from_nanos(self.longest_ns)
    }
}

/// Up to 16 ns each has a bucket of its own; from there on every power of two is cut into 16.
fn bucket(ns: u64) -> usize {
    let shift = (63 - (ns | u64::from(STEPS)).leading_zeros()) - STEPS.ilog2();
    (shift * STEPS) as usize + (ns >> shift) as usize
}

/// The middle of a bucket.
fn middle(number: usize) -> u64 {
    let (number, steps) = (number as u64, u64::from(STEPS));
    let shift = (number / steps).saturating_sub(1);
    let low = (number - shift * steps) << shift;
    low + (1 << shift) / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_has_a_bucket_whose_middle_is_near() {
        for ns in [0, 1, 15, 16, 17, 31, 32, 1_000, 123_456, 999_999_999, u64::MAX / 3, u64::MAX] {
            let middle = middle(bucket(ns)) as f64;
            assert!((middle - ns as f64).abs() <= ns as f64 / 30.0 + 0.5, "{ns} {middle}");
        }
    }

    #[test]
    fn quantiles_are_about_right() {
        let (mut some, mut others) = (Latencies::default(), Latencies::default());
        (1..=500).for_each(|us| some.note(Duration::from_micros(us)));
        (501..=1000).for_each(|us| others.note(Duration::from_micros(us)));
        some.add(&others);
        let median = some.quantile(0.5).as_secs_f64() * 1e6;
        assert!((480.0..520.0).contains(&median), "{median}");
        assert_eq!((some.count(), some.longest()), (1000, Duration::from_micros(1000)));
        assert_eq!(Latencies::default().quantile(0.5), Duration::ZERO);
    }
}
