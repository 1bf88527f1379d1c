//! Figures: what both sides took, round by round, and what is to be reached.
//!
//! The sides take turns within one run, so what else the machine does meets both. Ratios and differences are those of one
//! round, and the median of them counts. Figures are kept as JSON lines in `target/bench` (`target/bench/small` for a
//! smoke run); a figure that is measured again replaces the old one.
#![allow(clippy::print_stdout, reason = "printing figures is what it is for")]

use std::error::Error;
use std::fs;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What a row comes to.
pub type Done<T = ()> = Result<T, Box<dyn Error>>;

/// What to reach.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub enum Target {
    /// Ours by the other's.
    RatioAtMost(f64),
    /// Ours by the other's.
    RatioAtLeast(f64),
    /// Ours less the other's.
    AddedAtMost(f64),
    /// Of ours.
    MedianAtMost(f64),
    /// Of ours.
    WorstAtMost(f64),
}

/// One figure of both sides.
#[derive(Clone, Serialize, Deserialize)]
pub struct Figure {
    /// The row of the harness that measures it.
    pub row: String,
    /// What it is of.
    pub what: String,
    /// Of all its numbers.
    pub unit: String,
    /// One number a round.
    pub ours: Vec<f64>,
    /// The name of the other side; empty where ours stand alone.
    pub other: String,
    /// One number a round.
    pub others: Vec<f64>,
    /// May be none.
    pub targets: Vec<Target>,
}

impl Figure {
    /// One of which nothing is known of another side.
    pub fn alone(row: &str, what: impl Into<String>, unit: &str, ours: Vec<f64>) -> Figure {
        Figure::new(row, what, unit, ours, ("", &[]))
    }

    /// One of both sides.
    pub fn new(
        row: &str,
        what: impl Into<String>,
        unit: &str,
        ours: Vec<f64>,
        (other, others): (&str, &[f64]),
    ) -> Figure {
        let (row, what, unit, other) = (row.to_owned(), what.into(), unit.to_owned(), other.to_owned());
        Figure { row, what, unit, ours, other, others: others.to_vec(), targets: Vec::new() }
    }

    /// The same with something to reach.
    pub fn target(mut self, target: Target) -> Figure {
        self.targets.push(target);
        self
    }

    /// Combines both sides' numbers of each round.
    fn rounds(&self, combine: impl Fn(f64, f64) -> f64) -> Vec<f64> {
        self.ours.iter().zip(&self.others).map(|(&ours, &other)| combine(ours, other)).collect()
    }

    /// Ours by the other's, in each round.
    pub fn ratios(&self) -> Vec<f64> {
        self.rounds(|ours, other| ours / other)
    }

    /// The number that a target is about.
    fn seen(&self, target: Target) -> f64 {
        match target {
            Target::RatioAtMost(_) | Target::RatioAtLeast(_) => Spread::of(&self.ratios()).median,
            Target::AddedAtMost(_) => Spread::of(&self.rounds(|ours, other| ours - other)).median,
            Target::MedianAtMost(_) => Spread::of(&self.ours).median,
            Target::WorstAtMost(_) => Spread::of(&self.ours).max,
        }
    }

    /// What is to be reached, what is, and whether that is enough; for each target.
    pub fn verdicts(&self) -> Vec<(String, String, bool)> {
        let verdict = |&target: &Target| {
            let seen = self.seen(target);
            let (name, bound, reached) = match target {
                Target::RatioAtMost(bound) => ("ratio at most", bound, seen <= bound),
                Target::RatioAtLeast(bound) => ("ratio at least", bound, seen >= bound),
                Target::AddedAtMost(bound) => ("added at most", bound, seen <= bound),
                Target::MedianAtMost(bound) => ("median at most", bound, seen <= bound),
                Target::WorstAtMost(bound) => ("worst at most", bound, seen <= bound),
            };
            (format!("{name} {}", short(bound)), short(seen), reached)
        };
        self.targets.iter().map(verdict).collect()
    }
}

/// The least, the middle and the most of some numbers.
#[derive(Clone, Copy)]
pub struct Spread {
    pub min: f64,
    pub median: f64,
    pub max: f64,
}

impl Spread {
    /// All three are not numbers if there are none.
    pub fn of(numbers: &[f64]) -> Spread {
        let mut sorted = numbers.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
        let last = sorted.len().saturating_sub(1);
        Spread { min: at(0), median: (at(last / 2) + at(last.div_ceil(2))) / 2.0, max: at(last) }
    }

    /// All three in few characters.
    pub fn text(self) -> String {
        format!("{} / {} / {}", short(self.min), short(self.median), short(self.max))
    }
}

/// A number with three digits that count.
pub fn short(number: f64) -> String {
    if number == 0.0 || !number.is_finite() {
        return if number == 0.0 { "0".into() } else { "-".into() };
    }
    let digits = number.abs().log10().floor();
    let decimals = (2.0 - digits).clamp(0.0, 6.0) as usize;
    let text = format!("{number:.decimals$}");
    if decimals == 0 { text } else { text.trim_end_matches('0').trim_end_matches('.').to_owned() }
}

/// Whether this is a smoke run, which shows that the harness works and measures nothing of worth.
pub fn is_small() -> bool {
    std::env::var_os("HOTBACKUP_BENCH_SCALE").is_some_and(|scale| scale == "small")
}

/// The size to work with.
pub fn scaled(full: u64, small: u64) -> u64 {
    if is_small() { small } else { full }
}

/// How often each side has its turn.
pub fn rounds() -> usize {
    let asked = std::env::var("HOTBACKUP_BENCH_ROUNDS").ok().and_then(|rounds| rounds.parse().ok());
    asked.unwrap_or(if is_small() { 2 } else { 5 })
}

/// The rows that were asked for; none for all.
pub fn chosen() -> Vec<String> {
    let asked = std::env::var("HOTBACKUP_BENCH_ROWS").unwrap_or_default();
    asked.split_whitespace().map(str::to_owned).collect()
}

/// Whether this row was asked for.
pub fn is_chosen(row: &str) -> bool {
    let asked = chosen();
    asked.is_empty() || asked.iter().any(|name| name == row)
}

/// Has every side do its work, in turn, again and again. The first turn of each warms up and does not count.
pub fn interleave<T>(sides: &mut [&mut dyn FnMut() -> Done<T>]) -> Done<Vec<Vec<T>>> {
    interleave_often(1, sides)
}

/// The same with so many times as many rounds, for what is short and differs little.
pub fn interleave_often<T>(times: usize, sides: &mut [&mut dyn FnMut() -> Done<T>]) -> Done<Vec<Vec<T>>> {
    let mut seen: Vec<Vec<T>> = sides.iter().map(|_| Vec::new()).collect();
    for round in 0..=times * rounds() {
        for (side, seen) in sides.iter_mut().zip(&mut seen) {
            let number = side()?;
            if round > 0 {
                seen.push(number);
            }
        }
    }
    Ok(seen)
}

/// The directory that all output goes to.
pub fn output() -> Done<PathBuf> {
    // This program is in target/release/deps.
    let program = std::env::current_exe()?;
    let target = program.ancestors().nth(3).ok_or("this program lies in no target directory")?;
    let directory = target.join(if is_small() { "bench/small" } else { "bench" });
    fs::create_dir_all(&directory)?;
    Ok(directory)
}

/// All figures of earlier runs and this one.
pub fn all() -> Done<Vec<Figure>> {
    let lines = fs::read_to_string(output()?.join("figures.jsonl")).unwrap_or_default();
    Ok(lines.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
}

/// Keeps a figure.
pub fn note(figure: Figure) -> Done {
    let Spread { median, .. } = Spread::of(&figure.ours);
    println!("{:12} {}: {} {}", figure.row, figure.what, short(median), figure.unit);
    let is_same =
        |old: &Figure| (&old.row, &old.what, &old.other) == (&figure.row, &figure.what, &figure.other);
    let mut figures = all()?;
    match figures.iter().position(is_same) {
        Some(place) => figures[place] = figure,
        None => figures.push(figure),
    }
    let lines = figures.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
    Ok(fs::write(output()?.join("figures.jsonl"), lines.join("\n") + "\n")?)
}
