//! Prometheus's text format 0.0.4, with names made from ours by OpenTelemetry's rules.

use std::fmt::Write as _;

use crate::histogram::Histogram;
use crate::instruments::{Description, Kind, Unit, Value};
use crate::registry::Read;

/// How Prometheus calls an instrument: underscores for dots, the unit behind it, and `_total` behind a counter.
pub fn name(description: &Description) -> String {
    let mut name = description.name.replace('.', "_");
    let unit = match description.unit {
        Unit::Of(_) => "",
        Unit::Bytes => "_bytes",
        Unit::Seconds => "_seconds",
    };
    if !name.ends_with(unit) {
        name.push_str(unit);
    }
    if description.kind == Kind::Counter {
        name.push_str("_total");
    }
    name
}

pub(crate) fn text(all: &[Read]) -> String {
    let mut text = String::with_capacity(all.len() * 256);
    for read in all {
        instrument(&mut text, read).expect("writing to a text does not fail");
    }
    text
}

fn instrument(out: &mut String, read: &Read) -> std::fmt::Result {
    let (name, kind) = (name(read.description), read.description.kind);
    let help = read.description.help.replace('\\', "\\\\").replace('\n', "\\n");
    writeln!(out, "# HELP {name} {help}")?;
    let kind = match kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram => "histogram",
    };
    writeln!(out, "# TYPE {name} {kind}")?;
    for (who, value) in &read.values {
        let server = label(&who.name);
        let braced = if server.is_empty() { String::new() } else { format!("{{{server}}}") };
        match value {
            Value::Whole(count) => writeln!(out, "{name}{braced} {count}")?,
            Value::Micros(us) => writeln!(out, "{name}{braced} {}", seconds(*us))?,
            Value::Distribution(spans) => {
                let comma = if server.is_empty() { "" } else { "," };
                let mut upto = 0;
                let bounds = Histogram::bounds_us().map(seconds).chain(["+Inf".to_owned()]);
                for (bound, count) in bounds.zip(&spans.buckets) {
                    upto += count;
                    writeln!(out, "{name}_bucket{{{server}{comma}le=\"{bound}\"}} {upto}")?;
                }
                writeln!(out, "{name}_sum{braced} {}", seconds(spans.sum_us))?;
                writeln!(out, "{name}_count{braced} {upto}")?;
            }
        }
    }
    Ok(())
}

/// Microseconds as seconds, exactly.
fn seconds(us: u64) -> String {
    let text = format!("{}.{:06}", us / 1_000_000, us % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn label(server: &str) -> String {
    if server.is_empty() {
        return String::new();
    }
    let escaped = server.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("server=\"{escaped}\"")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::Ordering::Relaxed;

    use crate::{Registry, Who};

    crate::instruments! {
        /// Of a game.
        struct Game;
        /// Frames of seats.
        counter frames = "greenroom.game.frames", "frame";
        /// Bytes that wait.
        gauge waiting = "greenroom.game.waiting", bytes;
        /// How late a step began.
        histogram late = "greenroom.game.tick.lateness";
    }

    #[test]
    fn the_text_is_what_prometheus_reads() {
        let (one, two) = (Arc::new(Game::default()), Arc::new(Game::default()));
        one.frames.store(7, Relaxed);
        two.waiting.store(9, Relaxed);
        one.late.record_us(20);
        one.late.record_us(1_500_000);
        let registry = Registry::default();
        registry.add(Who::new("game", "game-1"), one);
        registry.add(Who::new("game", "the \"other\"\\"), two);
        let text = registry.prometheus();
        let begins = "# HELP greenroom_game_frames_total Frames of seats.\n\
                      # TYPE greenroom_game_frames_total counter\n\
                      greenroom_game_frames_total{server=\"game-1\"} 7\n\
                      greenroom_game_frames_total{server=\"the \\\"other\\\"\\\\\"} 0\n\
                      # HELP greenroom_game_waiting_bytes Bytes that wait.\n\
                      # TYPE greenroom_game_waiting_bytes gauge\n";
        assert!(text.starts_with(begins), "{text}");
        for line in [
            "greenroom_game_tick_lateness_seconds_bucket{server=\"game-1\",le=\"0.000016\"} 0",
            "greenroom_game_tick_lateness_seconds_bucket{server=\"game-1\",le=\"0.000024\"} 1",
            "greenroom_game_tick_lateness_seconds_bucket{server=\"game-1\",le=\"1.572864\"} 2",
            "greenroom_game_tick_lateness_seconds_bucket{server=\"game-1\",le=\"+Inf\"} 2",
            "greenroom_game_tick_lateness_seconds_sum{server=\"game-1\"} 1.50002",
            "greenroom_game_tick_lateness_seconds_count{server=\"game-1\"} 2",
        ] {
            assert!(text.lines().any(|there| there == line), "{line}\nis not in\n{text}");
        }
    }
}
