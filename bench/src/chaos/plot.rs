//! The gaps of a campaign as a picture: how many were how long, the targets beside them, and where the time went.

use std::fmt::Write;

use super::summary::{Outcome, Steps, Target, quantile};

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 560.0;
/// The field of the curve: left, top, right, bottom.
const FIELD: [f64; 4] = [72.0, 84.0, 920.0, 400.0];
/// Colours of the steps of a takeover, in their order.
const COLOURS: [&str; 5] = ["#4c78a8", "#72b7b2", "#eeca3b", "#b279a2", "#f58518"];
const FONT: &str =
    "font-family=\"system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif\"";

/// Draws them. `calm` are the longest silences of the seconds before each fault.
pub(crate) fn svg(title: &str, subtitle: &str, outcomes: &[Outcome], targets: &[Target]) -> String {
    let mut gaps: Vec<f64> = outcomes.iter().map(|one| one.gap_ms.max(0.1)).collect();
    let mut calm: Vec<f64> = outcomes.iter().map(|one| one.calm_gap_ms.max(0.1)).collect();
    gaps.sort_by(f64::total_cmp);
    calm.sort_by(f64::total_cmp);
    let scale =
        Scale::over(gaps.iter().chain(&calm).copied().chain(targets.iter().map(|it| it.most)));
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" {FONT} font-size=\"13\" \
         fill=\"#333\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
    );
    text(&mut out, [FIELD[0], 36.0], "font-size=\"20\" font-weight=\"600\" fill=\"#111\"", title);
    text(&mut out, [FIELD[0], 58.0], "fill=\"#666\"", subtitle);
    grid(&mut out, &scale);
    for target in targets {
        line_of(&mut out, &scale, target);
    }
    curve(&mut out, &scale, &calm, "#b8b8b8", 1.5);
    curve(&mut out, &scale, &gaps, "#d62728", 2.5);
    for (share, name) in [(0.5, "p50"), (0.99, "p99")] {
        let value = quantile(&gaps, share);
        let (x, y) = (scale.x(value), y(share));
        let _infallible = writeln!(
            out,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4.5\" fill=\"#d62728\" stroke=\"#fff\" stroke-width=\"1.5\"/>"
        );
        // Below the point and to its right, where the curve is not.
        let style = "font-weight=\"600\" fill=\"#a01515\" paint-order=\"stroke\" stroke=\"#fff\" stroke-width=\"4\"";
        // Near the end of the axis there is no room to the right.
        let is_far = x > FIELD[2] - 100.0;
        let side = if is_far { "text-anchor=\"end\"" } else { "" };
        let at = [if is_far { x - 9.0 } else { x + 9.0 }, y + 16.0];
        text(&mut out, at, &format!("{style} {side}"), &format!("{name} {}", shown(value)));
    }
    legend(&mut out);
    steps(&mut out, outcomes);
    out.push_str("</svg>\n");
    out
}

/// Milliseconds on an axis of decades.
struct Scale {
    least: f64,
    most: f64,
}

impl Scale {
    fn over(values: impl Iterator<Item = f64>) -> Self {
        let (least, most) = values
            .fold((f64::MAX, 0.0_f64), |(least, most), value| (least.min(value), most.max(value)));
        let least = least.clamp(0.1, 1.0).log10().floor();
        Self { least, most: most.max(10.0).log10().ceil().max(least + 1.0) }
    }

    fn x(&self, value: f64) -> f64 {
        let share = (value.log10() - self.least) / (self.most - self.least);
        FIELD[0] + share.clamp(0.0, 1.0) * (FIELD[2] - FIELD[0])
    }

    /// 1, 2, 5 of each decade.
    fn ticks(&self) -> Vec<f64> {
        let mut ticks = Vec::new();
        let mut decade = 10_f64.powf(self.least);
        let end = 10_f64.powf(self.most) * 1.001;
        while decade <= end {
            ticks.extend([1.0, 2.0, 5.0].map(|of| of * decade).into_iter().filter(|it| *it <= end));
            decade *= 10.0;
        }
        ticks
    }
}

fn y(share: f64) -> f64 {
    FIELD[3] - share * (FIELD[3] - FIELD[1])
}

fn text(out: &mut String, [x, y]: [f64; 2], style: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let _infallible = writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" {style}>{text}</text>");
}

fn stroke(out: &mut String, [x1, y1, x2, y2]: [f64; 4], style: &str) {
    let _infallible = writeln!(
        out,
        "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" {style}/>"
    );
}

fn grid(out: &mut String, scale: &Scale) {
    for value in scale.ticks() {
        let x = scale.x(value);
        stroke(out, [x, FIELD[1], x, FIELD[3]], "stroke=\"#ececec\"");
        text(out, [x, FIELD[3] + 20.0], "text-anchor=\"middle\" fill=\"#666\"", &shown(value));
    }
    for percent in [0.0, 25.0, 50.0, 75.0, 100.0] {
        let y = y(percent / 100.0);
        stroke(out, [FIELD[0], y, FIELD[2], y], "stroke=\"#ececec\"");
        let style = "text-anchor=\"end\" fill=\"#666\"";
        text(out, [FIELD[0] - 8.0, y + 4.0], style, &format!("{percent:.0} %"));
    }
    let style = "text-anchor=\"middle\" fill=\"#666\"";
    let middle = f64::midpoint(FIELD[0], FIELD[2]);
    text(
        out,
        [middle, FIELD[3] + 40.0],
        style,
        "longest time without an acknowledged write, around each fault",
    );
}

fn line_of(out: &mut String, scale: &Scale, target: &Target) {
    let x = scale.x(target.most);
    let style = "stroke=\"#2a7a2a\" stroke-width=\"1.5\" stroke-dasharray=\"5 4\"";
    stroke(out, [x, FIELD[1] - 6.0, x, FIELD[3]], style);
    let name = target.figure.trim_start_matches("gap_").trim_end_matches("_ms");
    let label = format!("{name} ≤ {}", shown(target.most));
    text(out, [x + 4.0, FIELD[1] - 8.0], "fill=\"#2a7a2a\" font-size=\"12\"", &label);
}

/// The share of values at or below each, as steps.
fn curve(out: &mut String, scale: &Scale, sorted: &[f64], colour: &str, width: f64) {
    let mut path = format!("M{:.1} {:.1}", FIELD[0], FIELD[3]);
    for (at, value) in sorted.iter().enumerate() {
        let (before, after) = (share(at, sorted.len()), share(at + 1, sorted.len()));
        let x = scale.x(*value);
        let _infallible = write!(path, "L{x:.1} {:.1}L{x:.1} {:.1}", y(before), y(after));
    }
    let _infallible = write!(path, "L{:.1} {:.1}", FIELD[2], y(1.0));
    let _infallible = writeln!(
        out,
        "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\" stroke-linejoin=\"round\"/>"
    );
}

#[expect(clippy::cast_precision_loss, reason = "counts of faults")]
fn share(of: usize, all: usize) -> f64 {
    of as f64 / all.max(1) as f64
}

fn legend(out: &mut String) {
    let lines = [("#d62728", 2.5, "around the fault"), ("#b8b8b8", 1.5, "in the second before it")];
    let _infallible = writeln!(
        out,
        "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"190\" height=\"42\" fill=\"#fff\"/>",
        FIELD[2] - 196.0,
        FIELD[3] - 52.0
    );
    for (at, (colour, width, name)) in lines.into_iter().enumerate() {
        let y = FIELD[3] - 34.0 + share(at, 1) * 20.0;
        let style = format!("stroke=\"{colour}\" stroke-width=\"{width}\"");
        stroke(out, [FIELD[2] - 190.0, y - 4.0, FIELD[2] - 162.0, y - 4.0], &style);
        text(out, [FIELD[2] - 154.0, y], "fill=\"#444\"", name);
    }
}

/// One bar: the medians of where the time of a takeover went.
fn steps(out: &mut String, outcomes: &[Outcome]) {
    let taken: Vec<[f64; 5]> =
        outcomes.iter().filter_map(|one| Some(one.steps?.values())).collect();
    if taken.is_empty() {
        return;
    }
    let median = |at: usize| {
        let mut values: Vec<f64> = taken.iter().map(|values| values[at]).collect();
        values.sort_by(f64::total_cmp);
        quantile(&values, 0.5)
    };
    let medians: Vec<f64> = (0..Steps::NAMES.len()).map(median).collect();
    let sum: f64 = medians.iter().sum::<f64>().max(1e-9);
    let title = format!("where the time of a takeover went: medians of {}", taken.len());
    text(out, [FIELD[0], 478.0], "font-weight=\"600\" fill=\"#111\"", &title);
    let (mut x, mut label) = (FIELD[0], FIELD[0]);
    for ((name, value), colour) in Steps::NAMES.iter().zip(medians).zip(COLOURS) {
        let width = value / sum * (FIELD[2] - FIELD[0]);
        let _infallible = writeln!(
            out,
            "<rect x=\"{x:.1}\" y=\"490\" width=\"{width:.1}\" height=\"20\" fill=\"{colour}\"/>\n\
             <rect x=\"{label:.1}\" y=\"526\" width=\"10\" height=\"10\" rx=\"2\" fill=\"{colour}\"/>"
        );
        let words = format!("{} {}", name.replace('_', " "), shown(value));
        text(out, [label + 15.0, 535.0], "fill=\"#444\"", &words);
        x += width;
        label += (FIELD[2] - FIELD[0]) / 5.0;
    }
}

/// With its unit, and no more digits than say something.
fn shown(ms: f64) -> String {
    match ms {
        1_000.0.. => format!("{} s", digits(ms / 1_000.0)),
        _ => format!("{} ms", digits(ms)),
    }
}

fn digits(value: f64) -> String {
    let text = match value {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    };
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::faults::Only;
    use crate::chaos::summary::targets;

    #[test]
    fn the_picture_has_the_targets_and_the_percentiles_in_words() {
        let outcome = |gap_ms| Outcome {
            number: 1,
            fault: "kill active",
            at_s: 0.0,
            gap_ms,
            calm_gap_ms: 2.0,
            slowest_ms: gap_ms,
            healed_ms: 900.0,
            rewound: 0,
            restored_ms: 0.0,
            steps: Some(Steps {
                detect_ms: 1.0,
                intent_ms: 2.0,
                claim_ms: 3.0,
                announce_ms: 0.5,
                first_write_ms: 1.5,
            }),
        };
        let outcomes: Vec<Outcome> = (1..=100).map(|gap| outcome(f64::from(gap) / 5.0)).collect();
        let picture = svg("SIGKILL & more", "100 times", &outcomes, &targets(Only::Active, 0));
        for words in ["SIGKILL &amp; more", "p50 10 ms", "p99 19.8 ms", "p99 ≤ 50 ms", "claim 3 ms"]
        {
            assert!(picture.contains(words), "{words}: {picture}");
        }
        assert!(!picture.contains("NaN"));
    }

    #[test]
    fn an_axis_has_ticks_at_its_ends() {
        let scale = Scale::over([0.4, 37.0].into_iter());
        let ticks = scale.ticks();
        assert_eq!((ticks.first(), ticks.last()), (Some(&0.1), Some(&100.0)));
        assert!((scale.x(100.0) - FIELD[2]).abs() < 1e-9);
    }
}
