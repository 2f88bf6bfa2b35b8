//! Figures of several runs as one row: medians, for people or as JSON.

use std::io::Write;

use serde_json::{Map, Value};

use crate::wire::Transport;
use crate::workload::Subject;

/// Names and values of one run, units in the names.
pub(crate) type Figures = Vec<(&'static str, f64)>;

/// A line for somebody who waits.
pub(crate) fn progress(line: &str) {
    // Nobody may be listening, which is no reason to stop.
    drop(writeln!(std::io::stderr(), "{line}"));
}

/// One part of the directory's benchmark, which has no transport and no bare server beside it.
#[derive(Debug)]
pub(crate) struct Alone {
    pub(crate) part: &'static str,
    /// What `size` counts: `users` or `instances`.
    pub(crate) counts: &'static str,
    pub(crate) size: usize,
    pub(crate) figures: Vec<(String, f64)>,
}

impl Alone {
    pub(crate) fn json(&self) -> Map<String, Value> {
        let mut object = Map::new();
        object.insert("bench".to_owned(), "directory".into());
        object.insert("part".to_owned(), self.part.into());
        object.insert(self.counts.to_owned(), self.size.into());
        for (name, value) in &self.figures {
            object.insert(name.clone(), number(*value));
        }
        object
    }

    /// A figure a line.
    pub(crate) fn text(&self) -> String {
        let mut text = format!("\ndirectory, {}, {} {}\n", self.part, self.size, self.counts);
        for (name, value) in &self.figures {
            text += &format!("  {name:48}{:>16}\n", shown(*value));
        }
        text
    }
}

/// All runs of one size over one transport.
#[derive(Debug)]
pub(crate) struct Row {
    /// `w1` to `w4`.
    pub(crate) bench: &'static str,
    pub(crate) transport: Transport,
    /// What `size` counts: `connections`, `players`, `workers` or `instances`.
    pub(crate) counts: &'static str,
    pub(crate) size: usize,
    pub(crate) bare: Vec<Figures>,
    pub(crate) greenroom: Vec<Figures>,
    /// Whether the servers kept up, where that is asked.
    pub(crate) held: Option<bool>,
}

/// Median, least and most of one figure.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Spread {
    least: f64,
    median: f64,
    most: f64,
}

fn spread(runs: &[Figures], name: &str) -> Option<Spread> {
    let mut values: Vec<f64> = (runs.iter().flatten())
        .filter(|(found, _)| *found == name)
        .map(|(_, value)| *value)
        .collect();
    values.sort_by(f64::total_cmp);
    let (&least, &most) = (values.first()?, values.last()?);
    let middle = values.len() / 2;
    let median = match values.len() % 2 {
        0 => f64::midpoint(values[middle - 1], values[middle]),
        _ => values[middle],
    };
    Some(Spread { least, median, most })
}

/// The median of a figure over `runs`.
pub(crate) fn median(runs: &[Figures], name: &str) -> Option<f64> {
    spread(runs, name).map(|spread| spread.median)
}

/// The largest value of a figure over `runs`.
pub(crate) fn most(runs: &[Figures], name: &str) -> Option<f64> {
    spread(runs, name).map(|spread| spread.most)
}

impl Row {
    pub(crate) fn runs_mut(&mut self, subject: Subject) -> &mut Vec<Figures> {
        match subject {
            Subject::Bare => &mut self.bare,
            Subject::Greenroom => &mut self.greenroom,
        }
    }

    /// Names of the figures in the order in which they were taken.
    fn names(&self) -> Vec<&'static str> {
        let mut names: Vec<&'static str> = Vec::new();
        for (name, _) in self.greenroom.iter().chain(&self.bare).flatten() {
            if !names.contains(name) {
                names.push(name);
            }
        }
        names
    }

    /// The medians, the bare server's with `echo_` before their names.
    pub(crate) fn json(&self) -> Map<String, Value> {
        let mut object = Map::new();
        object.insert("bench".to_owned(), self.bench.into());
        object.insert("transport".to_owned(), self.transport.name().into());
        object.insert(self.counts.to_owned(), self.size.into());
        object.insert("runs".to_owned(), self.greenroom.len().max(self.bare.len()).into());
        for name in self.names() {
            for (runs, prefix) in [(&self.greenroom, ""), (&self.bare, "echo_")] {
                if let Some(value) = median(runs, name) {
                    object.insert(format!("{prefix}{name}"), number(value));
                }
            }
        }
        if let Some(held) = self.held {
            object.insert("held".to_owned(), held.into());
        }
        object
    }

    /// A figure a line: median (least – most), the bare server's, and the ratio.
    pub(crate) fn text(&self) -> String {
        let runs = self.greenroom.len().max(self.bare.len());
        let held = match self.held {
            Some(true) => ", held",
            Some(false) => ", NOT held",
            None => "",
        };
        let mut text = format!(
            "\n{}, {}, {} {}{held} (median of {runs}, least – most)\n  {:34}{:>32}{:>32}{:>8}\n",
            self.bench,
            self.transport.name(),
            self.size,
            self.counts,
            "",
            "greenroom",
            "bare",
            "ratio"
        );
        for name in self.names() {
            let (ours, bare) = (spread(&self.greenroom, name), spread(&self.bare, name));
            let ratio = match (ours, bare) {
                (Some(ours), Some(bare)) if bare.median > 0.0 => {
                    format!("{:.2}", ours.median / bare.median)
                }
                _ => String::new(),
            };
            let cell = |spread: Option<Spread>| match spread {
                Some(s) if s.least < s.most => {
                    format!("{} ({} – {})", shown(s.median), shown(s.least), shown(s.most))
                }
                Some(s) => shown(s.median),
                None => "–".to_owned(),
            };
            text += &format!("  {name:34}{:>32}{:>32}{ratio:>8}\n", cell(ours), cell(bare));
        }
        text
    }
}

/// A whole number without a point, so that a count looks like one.
#[expect(clippy::cast_possible_truncation, reason = "whole and below 2^52")]
fn number(value: f64) -> Value {
    let rounded = rounded(value);
    if rounded.fract() == 0.0 { (rounded as i64).into() } else { rounded.into() }
}

/// Four digits that mean something.
fn rounded(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(value)
}

fn shown(value: f64) -> String {
    let rounded = rounded(value);
    let digits: usize = match rounded.abs() {
        0.0 | 100.0.. => 0,
        10.0.. => 1,
        1.0.. => 2,
        0.1.. => 3,
        _ => 4,
    };
    format!("{rounded:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_the_medians_of_both_under_the_names_that_do_not_change() {
        let runs = |values: [f64; 3]| {
            values.iter().map(|value| vec![("cpu_s_per_million", *value)]).collect::<Vec<_>>()
        };
        let row = Row {
            bench: "w1",
            transport: Transport::Tcp,
            counts: "connections",
            size: 64,
            bare: runs([5.0, 4.0, 4.5]),
            greenroom: runs([9.0, 5.4, 5.6]),
            held: None,
        };
        let json = row.json();
        assert_eq!(json["connections"], 64);
        assert_eq!(json["transport"], "tcp");
        assert_eq!(json["cpu_s_per_million"], 5.6);
        assert_eq!(json["echo_cpu_s_per_million"], 4.5);
        assert!(row.text().contains("5.60 (5.40 – 9.00)"), "{}", row.text());
        assert!(row.text().contains("1.24"), "{}", row.text());
    }

    #[test]
    fn the_median_of_an_even_count_lies_between_the_two_in_the_middle() {
        let runs = [4.0, 1.0, 2.0, 3.0].map(|value| vec![("x", value)]);
        assert_eq!(median(&runs, "x"), Some(2.5));
        assert_eq!(median(&runs, "y"), None);
    }
}
