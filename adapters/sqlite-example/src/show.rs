//! What is printed: calm lines for people, or one JSON object for programs.
//!
//! The story goes to standard output, the progress of the copying and errors to standard error. With --json the story
//! is silent. Writing never fails the program: who closed the pipe does not want to know.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use hotbackup::{Phase, Progress};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::check::count;
use crate::tellers::Period;

/// How often a line of progress is printed where no bar can be drawn.
const PLAIN_LINE_EVERY: Duration = Duration::from_secs(2);

/// Where the story goes.
#[derive(Clone, Copy, Debug)]
pub struct Show {
    json: bool,
}

impl Show {
    /// Tells the story, unless `json`.
    pub fn new(json: bool) -> Show {
        Show { json }
    }

    /// A line of the story.
    pub fn line(self, text: impl Display) {
        if !self.json {
            let _ = writeln!(std::io::stdout(), "{text}");
        }
    }

    /// A line that says one thing under its name.
    pub fn item(self, name: &str, text: impl Display) {
        self.line(format_args!("  {name:<18}{text}"));
    }

    /// How the tellers did.
    pub fn period(self, name: &str, period: &Period) {
        let ms = |time: Duration| format!("{:.2} ms", time.as_secs_f64() * 1e3);
        let (rate, latencies) = (count(period.rate().round() as i64), &period.latencies);
        let (median, longest) = (ms(latencies.quantile(0.5)), ms(latencies.longest()));
        self.item(name, format_args!("{rate:>7} transfers/s   one takes {median:>8}, at most {longest:>10}"));
    }

    /// The one JSON object.
    pub fn json(self, value: &serde_json::Value) {
        if self.json {
            let _ = writeln!(std::io::stdout(), "{value:#}");
        }
    }

    /// A sentence for standard error.
    pub fn complain(self, text: impl Display) {
        let _ = writeln!(std::io::stderr(), "{text}");
    }

    /// What shows the progress of one backup.
    pub fn bar(self) -> Bar {
        if std::io::stderr().is_terminal() {
            let style = ProgressStyle::with_template("  {prefix:<18}{bar:32} {msg}");
            let bar = ProgressBar::with_draw_target(Some(1000), ProgressDrawTarget::stderr());
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
            Bar::Drawn(bar)
        } else if self.json {
            Bar::Silent
        } else {
            Bar::Lines(Instant::now())
        }
    }
}

/// Shows how far a backup has come.
#[derive(Debug)]
pub enum Bar {
    /// On a terminal.
    Drawn(ProgressBar),
    /// Elsewhere: a line now and then. Holds when the last one was printed.
    Lines(Instant),
    /// Not at all.
    Silent,
}

impl Bar {
    /// Shows the progress; never ends the backup.
    pub fn update(&mut self, progress: &Progress) -> ControlFlow<()> {
        match self {
            Bar::Drawn(bar) => {
                bar.set_position((progress.fraction() * 1000.0) as u64);
                bar.set_prefix(phase(progress.phase));
                bar.set_message(detail(progress));
            }
            Bar::Lines(last) if last.elapsed() >= PLAIN_LINE_EVERY => {
                *last = Instant::now();
                let percent = progress.fraction() * 100.0;
                let (phase, detail) = (phase(progress.phase), detail(progress));
                let _ = writeln!(std::io::stderr(), "  {phase:<18}{percent:3.0} %   {detail}");
            }
            Bar::Lines(_) | Bar::Silent => {}
        }
        ControlFlow::Continue(())
    }

    /// Removes the bar.
    pub fn end(self) {
        if let Bar::Drawn(bar) = self {
            bar.finish_and_clear();
        }
    }
}

fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Prepare => "preparing",
        Phase::Copy => "copying",
        Phase::Converge => "catching up",
        Phase::Cut => "cutting",
        Phase::Audit => "auditing",
        Phase::Publish => "syncing",
        _ => "done",
    }
}

fn detail(progress: &Progress) -> String {
    match progress.phase {
        Phase::Copy => {
            let left = progress
                .eta
                .map(|eta| format!(", {:.0} s left", eta.as_secs_f64().ceil()))
                .unwrap_or_default();
            let (done, total) = (bytes(progress.bytes_done), bytes(progress.bytes_total));
            format!("{done} of {total}, {}/s{left}", bytes(progress.rate))
        }
        Phase::Converge => format!("{} still to copy again", bytes(progress.lag)),
        _ => String::new(),
    }
}

/// A number of bytes as people write it.
pub fn bytes(number: u64) -> String {
    let mut amount = number as f64;
    for unit in ["B", "KiB", "MiB"] {
        if amount < 1023.5 {
            let places = usize::from(amount < 9.95 && unit != "B");
            return format!("{amount:.places$} {unit}");
        }
        amount /= 1024.0;
    }
    format!("{amount:.1} GiB")
}

/// A path as it is typed from here: relative if it lies below the current directory.
pub fn short(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    let relative = path.strip_prefix(&here).ok().filter(|below| !below.as_os_str().is_empty());
    relative.unwrap_or(path).display().to_string()
}

/// The path as one word for a shell.
pub fn quoted(path: &Path) -> String {
    let text = short(path);
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%,=".contains(c);
    if text.chars().all(plain) && !text.starts_with('-') {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_short() {
        let shown = [0, 999, 1024, 9_900_000, 314_572_800, (1 << 30) - 1, 5 << 30].map(bytes);
        assert_eq!(shown, ["0 B", "999 B", "1.0 KiB", "9.4 MiB", "300 MiB", "1.0 GiB", "5.0 GiB"]);
    }

    #[test]
    fn paths_are_one_word_for_a_shell() {
        assert_eq!(quoted(Path::new("/a/b-c.db")), "/a/b-c.db");
        assert_eq!(quoted(Path::new("/a b/it's")), r"'/a b/it'\''s'");
        let here = std::env::current_dir().expect("a current directory");
        assert_eq!(quoted(&here.join("x/y")), "x/y");
    }
}
