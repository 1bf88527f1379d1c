//! The figures as a table of text, as tables and plots of docs/benchmarks.md.
//!
//! Tables lie in the page between `<!-- figures: ROW... -->` and `<!-- end -->`; what lies between the two is replaced once
//! all of these rows have been measured, and stays until then. A smoke run writes beside its figures instead, and leaves docs alone.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "printing figures is what it is for")]

use std::fmt::{Display, Write as _};
use std::fs;
use std::path::Path;

use crate::measure::{self, Done, Figure, Spread, is_small, short};

const HEAD: [&str; 8] = ["figure", "unit", "hotbackup", "against", "its", "ratio", "target", "reached"];
const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs");

pub fn print(text: &str) {
    print!("{text}");
}

pub fn complain(what: &str, problem: impl Display) {
    eprintln!("{what}: {problem}");
}

/// Writes and prints all that was measured, now and before.
pub fn write() -> Done {
    let figures = measure::all()?;
    let table = plain_table(&figures);
    fs::write(measure::output()?.join("table.txt"), &table)?;
    print(&table);
    let docs = if is_small() { measure::output()? } else { DOCS.into() };
    let page = fs::read_to_string(Path::new(DOCS).join("benchmarks.md"))?;
    fs::create_dir_all(docs.join("benchmarks"))?;
    let page = filled(&page, &figures, &docs.join("benchmarks"))?;
    Ok(fs::write(docs.join("benchmarks.md"), page)?)
}

/// The page with its tables made anew; writes their plots.
fn filled(page: &str, figures: &[Figure], plots: &Path) -> Done<String> {
    let mut whole = String::new();
    let mut rest = page;
    while let Some((before, behind)) = rest.split_once("<!-- figures:") {
        let (rows, behind) = behind.split_once("-->").ok_or("a mark of the page does not end")?;
        let (old, behind) = behind.split_once("<!-- end -->").ok_or("a table of the page has no end")?;
        let names: Vec<&str> = rows.split_whitespace().collect();
        let of_row = |name: &&str| figures.iter().filter(|figure| figure.row == **name).collect::<Vec<_>>();
        let of_rows: Vec<_> = names.iter().map(of_row).collect();
        let new = match names.first() {
            Some(name) if of_rows.iter().all(|figures| !figures.is_empty()) => {
                let of_rows = of_rows.concat();
                fs::write(plots.join(format!("{name}.svg")), plot(&of_rows))?;
                format!("\n{}\n![{}](benchmarks/{name}.svg)\n", markdown(&of_rows), names.join(", "))
            }
            _ => old.to_owned(),
        };
        write!(whole, "{before}<!-- figures:{rows}-->{new}<!-- end -->")?;
        rest = behind;
    }
    Ok(whole + rest)
}

/// A figure's cells, as in `HEAD`.
fn cells(figure: &Figure) -> [String; 8] {
    let has_other = !figure.other.is_empty();
    let if_other = |text: String| if has_other { text } else { String::new() };
    let (mut targets, mut reached) = (Vec::new(), Vec::new());
    for (target, seen, is_reached) in figure.verdicts() {
        targets.push(target);
        reached.push(format!("{} {seen}", if is_reached { "yes:" } else { "NO:" }));
    }
    [
        figure.what.clone(),
        figure.unit.clone(),
        Spread::of(&figure.ours).text(),
        figure.other.clone(),
        if_other(Spread::of(&figure.others).text()),
        if_other(short(Spread::of(&figure.ratios()).median)),
        targets.join("; "),
        reached.join("; "),
    ]
}

fn markdown(figures: &[&Figure]) -> String {
    let mut text = format!("| {} |\n|{}\n", HEAD.join(" | "), "---|".repeat(HEAD.len()));
    for figure in figures {
        text += &format!("| {} |\n", cells(figure).join(" | "));
    }
    text
}

fn plain_table(figures: &[Figure]) -> String {
    let mut lines = vec![HEAD.map(str::to_owned)];
    lines.extend(figures.iter().map(cells));
    let width = |column: usize| lines.iter().map(|cells| cells[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
    let line = |cells: &[String; 8]| -> String {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    let text: String = lines.iter().map(line).collect();
    let small = if is_small() { " A smoke run: sizes are not those named." } else { "" };
    format!("Numbers are min / median / max of the rounds; a ratio is the median of theirs.{small}\n\n{text}")
}

/// Bars of the medians, ours above the other's, with a line from the least to the most; each pair has a scale of its own.
fn plot(figures: &[&Figure]) -> String {
    const LEFT: f64 = 330.0;
    const LENGTH: f64 = 360.0;
    let mut y = 10.0;
    let mut bars = String::new();
    for figure in figures {
        let (ours, others) = (Spread::of(&figure.ours), Spread::of(&figure.others));
        let scale = LENGTH / ours.max.max(others.max).max(f64::MIN_POSITIVE);
        let label = escaped(&figure.what);
        bars +=
            &format!("<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{label}</text>\n", LEFT - 8.0, y + 12.0);
        let sides = [("#2a6fb0", "hotbackup", ours), ("#b0b0b0", figure.other.as_str(), others)];
        for (color, name, spread) in sides.into_iter().filter(|side| side.2.median.is_finite()) {
            let (width, from, to) =
                (spread.median * scale, spread.min * scale, (spread.max - spread.min) * scale);
            let text = escaped(&format!("{} {}, {name}", short(spread.median), figure.unit));
            bars += &format!(
                "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{width:.1}\" height=\"14\" fill=\"{color}\"/>\
                 <rect x=\"{:.1}\" y=\"{}\" width=\"{to:.1}\" height=\"1\"/>\
                 <text x=\"{}\" y=\"{}\">{text}</text>\n",
                LEFT + from,
                y + 7.0,
                LEFT + LENGTH + 8.0,
                y + 12.0,
            );
            y += 16.0;
        }
        y += 8.0;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"960\" height=\"{y}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{bars}</svg>\n"
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
