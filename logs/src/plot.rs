//! Pictures of answers: a line over the first column, or a bar for each row.

use std::fmt::Write as _;

use crate::sql::{Answer, Cell};

/// Size of the picture, and room for what is written around its field.
const WIDTH: f64 = 800.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 70.0;
const TOP: f64 = 50.0;
const RIGHT: f64 = 20.0;
const BOTTOM: f64 = 70.0;
/// Rows that have room side by side; the first are shown.
const BARS_MAX: usize = 24;
/// Names below the line, at most.
const NAMES_MAX: usize = 6;
/// Letters of a name; the rest does not fit.
const NAME_CHARS_MAX: usize = 18;

/// What a picture is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// The second column over the first, which is a time.
    Line,
    /// The second column, for each name in the first.
    Bars,
}

/// A picture.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plot {
    pub(crate) title: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) shape: Shape,
}

/// A text as it stands in a page.
pub(crate) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            letter => out.push(letter),
        }
    }
    out
}

fn number(cell: Option<&Cell>) -> f64 {
    match cell {
        #[expect(clippy::cast_precision_loss, reason = "a picture has a thousand steps")]
        Some(Cell::Integer(value)) => *value as f64,
        Some(Cell::Real(value)) if value.is_finite() => *value,
        Some(Cell::Real(_) | Cell::Text(_) | Cell::Null) | None => 0.0,
    }
}

/// 1, 2 or 5 times a power of ten, at least this.
fn round_up(value: f64) -> f64 {
    let decade = 10f64.powf(value.max(1e-3).log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * decade);
    steps.into_iter().find(|&step| step >= value).unwrap_or(10.0 * decade)
}

impl Plot {
    pub(crate) fn svg(&self, answer: &Answer) -> String {
        let rows: Vec<(String, f64)> = answer
            .rows
            .iter()
            .take(if self.shape == Shape::Bars { BARS_MAX } else { usize::MAX })
            .map(|row| (row.first().map(Cell::shown).unwrap_or_default(), number(row.get(1))))
            .collect();
        let top = round_up(rows.iter().map(|(_, value)| *value).fold(0.0, f64::max));
        let (bottom_y, field_height) = (HEIGHT - BOTTOM, HEIGHT - BOTTOM - TOP);
        let y = |value: f64| bottom_y - value.max(0.0) / top * field_height;
        #[expect(clippy::cast_precision_loss, reason = "some thousands of rows")]
        let step = (WIDTH - LEFT - RIGHT) / rows.len().max(1) as f64;
        #[expect(clippy::cast_precision_loss, reason = "some thousands of rows")]
        let x = |n: usize| LEFT + step * (n as f64 + 0.5);
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"system-ui, \
             sans-serif\" font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\n"
        );
        let mut put = |text: std::fmt::Arguments<'_>| {
            out.write_fmt(text).expect("writing to a text");
            out.push('\n');
        };
        let what = answer.columns.get(1).map(String::as_str).unwrap_or_default();
        put(format_args!(
            "<text x=\"{LEFT}\" y=\"22\" font-size=\"15\" font-weight=\"600\">{}</text>",
            escaped(self.title)
        ));
        put(format_args!(
            "<text x=\"{LEFT}\" y=\"40\" fill=\"#666\">{} ({})</text>",
            escaped(what),
            escaped(self.unit)
        ));
        for share in [0.0, 0.25, 0.5, 0.75, 1.0] {
            let at = y(top * share);
            put(format_args!(
                "<line x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{}\" y2=\"{at:.1}\" stroke=\"#ddd\"/><text x=\"{}\" \
                 y=\"{:.1}\" text-anchor=\"end\" fill=\"#666\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                at + 4.0,
                top * share
            ));
        }
        match self.shape {
            Shape::Line => {
                let points = rows.iter().enumerate();
                let points = points.map(|(n, (_, value))| format!("{:.1},{:.1}", x(n), y(*value)));
                put(format_args!(
                    "<polyline fill=\"none\" stroke=\"#2563eb\" stroke-width=\"2\" points=\"{}\"/>",
                    points.collect::<Vec<_>>().join(" ")
                ));
                if let [(_, value)] = rows.as_slice() {
                    put(format_args!(
                        "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"#2563eb\"/>",
                        x(0),
                        y(*value)
                    ));
                }
            }
            Shape::Bars => {
                for (n, (_, value)) in rows.iter().enumerate() {
                    let (width, at) = ((step * 0.7).min(60.0), y(*value));
                    put(format_args!(
                        "<rect x=\"{:.1}\" y=\"{at:.1}\" width=\"{width:.1}\" height=\"{:.1}\" fill=\"#2563eb\"/><text \
                         x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{value}</text>",
                        x(n) - width / 2.0,
                        bottom_y - at,
                        x(n),
                        at - 4.0
                    ));
                }
            }
        }
        let every = match self.shape {
            Shape::Line => rows.len().div_ceil(NAMES_MAX).max(1),
            Shape::Bars => 1,
        };
        for (n, (name, _)) in rows.iter().enumerate().step_by(every) {
            let name: String = name.chars().take(NAME_CHARS_MAX).collect();
            let (at, under) = (x(n), bottom_y + 14.0);
            let turned = rows.len() > 6 || self.shape == Shape::Line;
            let (anchor, turn) = match turned {
                true => ("end", format!(" transform=\"rotate(-25 {at:.1} {under:.1})\"")),
                false => ("middle", String::new()),
            };
            put(format_args!(
                "<text x=\"{at:.1}\" y=\"{under:.1}\" text-anchor=\"{anchor}\" fill=\"#444\"{turn}>{}</text>",
                escaped(&name)
            ));
        }
        out.push_str("</svg>\n");
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(rows: &[(&str, i64)]) -> Answer {
        let columns = vec!["who".into(), "times".into()];
        let row =
            |(name, value): &(&str, i64)| vec![Cell::Text((*name).into()), Cell::Integer(*value)];
        Answer { columns, rows: rows.iter().map(row).collect(), is_cut: false }
    }

    #[test]
    fn the_longest_bar_stands_below_the_top_and_names_are_escaped() {
        let plot = Plot { title: "a < b", unit: "times", shape: Shape::Bars };
        let svg = plot.svg(&answer(&[("<script>", 40), ("b", 10)]));
        assert!(svg.contains("&lt;script&gt;") && !svg.contains("<script"), "{svg}");
        // 50 is the top: 40 is four fifths of 200, and 10 one fifth.
        assert!(svg.contains("height=\"160.0\"") && svg.contains("height=\"40.0\""), "{svg}");
    }

    #[test]
    fn an_axis_ends_at_a_round_number() {
        for (value, top) in [(0.0, 0.001), (1.0, 1.0), (7.0, 10.0), (11.0, 20.0), (499.0, 500.0)] {
            assert!((round_up(value) - top).abs() < 1e-9, "{value}: {}", round_up(value));
        }
    }
}
