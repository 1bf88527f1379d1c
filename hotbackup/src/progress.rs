//! What callbacks and handles are told while a session runs.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Duration;

/// Where a session stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
#[repr(u8)]
pub enum Phase {
    /// The arguments are being checked and capture is being armed.
    #[default]
    Prepare,
    /// The files are being copied for the first time.
    Copy,
    /// What changed meanwhile is being copied until little is left.
    Converge,
    /// The gate is closed, or about to be: the instant that the backup shows.
    Cut,
    /// Changes that nobody saw are being looked for.
    Audit,
    /// Names, owners, times are set, everything is synced, the mark is removed.
    Publish,
    /// The session has ended.
    Done,
}

impl Phase {
    /// The phase as one English word, for logs and status lines.
    pub const fn name(self) -> &'static str {
        match self {
            Phase::Prepare => "prepare",
            Phase::Copy => "copy",
            Phase::Converge => "converge",
            Phase::Cut => "cut",
            Phase::Audit => "audit",
            Phase::Publish => "publish",
            Phase::Done => "done",
        }
    }
}

/// A look at a running session.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Progress {
    /// Where the session stands.
    pub phase: Phase,
    /// Bytes that the copying has dealt with, holes included.
    pub bytes_done: u64,
    /// Bytes known of so far; grows while the sources are being walked.
    pub bytes_total: u64,
    /// Files copied for the first time.
    pub files_done: u64,
    /// Files known of so far.
    pub files_total: u64,
    /// Bytes copied again because the host changed them meanwhile.
    pub bytes_recopied: u64,
    /// Bytes of files already copied that the destination does not have yet, and 256 KiB or more for each file found since.
    pub lag: u64,
    /// Bytes per second over the last second.
    pub rate: u64,
    /// An estimate of the time that is left, once there is ground for one.
    pub eta: Option<Duration>,
    /// How long the session has run.
    pub elapsed: Duration,
    /// The name of the file that a copier began with last.
    pub file: Option<PathBuf>,
    fraction: f64,
}

impl Progress {
    /// The part that is done, from 0.0 to 1.0. It never goes down within a session, and is 1.0 only at its end.
    pub fn fraction(&self) -> f64 {
        self.fraction
    }

    /// The part that is done as far as this look alone tells: while the sources are walked more is found to do.
    fn momentary(&self) -> f64 {
        match self.phase {
            Phase::Prepare => 0.0,
            Phase::Copy => 0.95 * (self.bytes_done as f64 / self.bytes_total.max(1) as f64).min(1.0),
            Phase::Converge => 0.95,
            Phase::Cut => 0.96,
            Phase::Audit => 0.97,
            Phase::Publish => 0.98,
            Phase::Done => 1.0,
        }
    }
}

/// How fast a session has been lately: the looks of the last second.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Time and bytes done.
    looks: VecDeque<(Duration, u64)>,
    furthest: f64,
}

impl Pace {
    /// Fills in what follows from earlier looks: the rate, the time that is left, the part that is done.
    pub(crate) fn estimate(&mut self, now: &mut Progress) {
        let bytes = now.bytes_done + now.bytes_recopied;
        self.looks.push_back((now.elapsed, bytes));
        while self.looks.len() > 2 && now.elapsed.saturating_sub(self.looks[1].0) >= Duration::from_secs(1) {
            self.looks.pop_front();
        }
        if let Some(&(since, before)) = self.looks.front() {
            let seconds = now.elapsed.saturating_sub(since).as_secs_f64();
            if seconds > 0.01 {
                now.rate = (bytes.saturating_sub(before) as f64 / seconds) as u64;
            }
        }
        let left = now.bytes_total.saturating_sub(now.bytes_done) + now.lag;
        if now.phase == Phase::Copy && now.rate > 0 {
            now.eta = Some(Duration::from_secs_f64(left as f64 / now.rate as f64));
        }
        self.furthest = self.furthest.max(now.momentary());
        now.fraction = self.furthest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(pace: &mut Pace, ms: u64, done: u64, total: u64) -> Progress {
        let mut now = Progress {
            phase: Phase::Copy,
            bytes_done: done,
            bytes_total: total,
            elapsed: Duration::from_millis(ms),
            ..Progress::default()
        };
        pace.estimate(&mut now);
        now
    }

    #[test]
    fn the_part_done_never_goes_down_when_more_is_found() {
        let mut pace = Pace::default();
        let half = look(&mut pace, 100, 50, 100).fraction();
        assert!(look(&mut pace, 200, 60, 1000).fraction() >= half);
    }

    #[test]
    fn rate_and_time_left_follow_from_the_last_second() {
        let mut pace = Pace::default();
        look(&mut pace, 0, 0, 10_000);
        look(&mut pace, 1000, 1000, 10_000);
        let now = look(&mut pace, 2000, 4000, 10_000);
        assert_eq!(now.rate, 3000);
        assert_eq!(now.eta, Some(Duration::from_secs(2)));
    }
}
