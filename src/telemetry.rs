//! What this process tells of itself: metrics to Prometheus, spans and metrics to a collector.

use std::{fmt::Write as _, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use greenroom_console::{Metrics as PortMetrics, Scrape};
use greenroom_telemetry::{
    Description, Export, Exported, Kind, Process, Registry, TelemetryConfig, Tracer, Who,
    prometheus_name,
};
use tokio_util::sync::CancellationToken;

use crate::{roles::Role, settings::Settings};

/// How long a process that stops waits for its last spans and metrics to be taken.
const FLUSH_MAX: Duration = Duration::from_secs(2);

/// Who counts in this process, and how it is shown.
#[derive(Debug)]
pub(crate) struct Telemetry {
    pub(crate) registry: Registry,
    /// Of the ports for operators.
    pub(crate) ports: Arc<PortMetrics>,
    export: Export,
    /// The port of its own, if it has one.
    scrape: Option<Role<SocketAddr>>,
}

impl Telemetry {
    pub(crate) fn start(settings: &Settings, stop: &CancellationToken) -> Result<Self> {
        let config: TelemetryConfig = settings.table("telemetry")?;
        let registry = Registry::default();
        registry.add(Who::process(), Arc::new(Process::starting_now()));
        let ports = Arc::new(PortMetrics::default());
        registry.add(Who::process(), ports.clone());
        let export = Export::start(&config, &registry)?;
        let scrape = match config.listen.as_str() {
            "" => None,
            _ => {
                let (listen, registry, ports) = (config.listen, registry.clone(), ports.clone());
                Some(Role::start("metrics", stop, async move |ready, stop| {
                    let read = move || registry.prometheus();
                    let scrape = Scrape::bind(&listen, read).await.context("telemetry.listen")?;
                    let scrape = scrape.counted(ports);
                    ready.send(scrape.address()).context("nobody waits for the metrics' port")?;
                    scrape.run(stop).await;
                    Ok(())
                })?)
            }
        };
        Ok(Self { registry, ports, export, scrape })
    }

    /// A tracer for a server of this process: off unless there is a collector.
    pub(crate) fn tracer(&self, who: Who) -> Tracer {
        self.export.tracer(who)
    }

    /// Ends what it has: after the servers, so that their last words are counted.
    pub(crate) fn stop(self) -> Result<()> {
        self.export.stop(FLUSH_MAX);
        self.scrape.map_or(Ok(()), Role::stop)
    }
}

/// Every metric, by who has it.
const METRICS: &[(&str, &[Description])] = &[
    ("session server", greenroom_session::Metrics::DESCRIPTIONS),
    ("master", greenroom_master::Metrics::DESCRIPTIONS),
    ("game server", greenroom_game::Metrics::DESCRIPTIONS),
    ("process", Process::DESCRIPTIONS),
    ("process's ports for operators", PortMetrics::DESCRIPTIONS),
    ("process that has a store", greenroom_storage::Metrics::DESCRIPTIONS),
    ("process's event log", greenroom_logs::Metrics::DESCRIPTIONS),
    ("process that has a collector", Exported::DESCRIPTIONS),
    #[cfg(feature = "kinesis")]
    ("process that ships its events", greenroom_logs::ship::Metrics::DESCRIPTIONS),
];

/// Every metric as a table in Markdown, for `greenroom metrics` and `docs/observability.md`.
pub(crate) fn reference() -> String {
    let mut text = String::new();
    for (who, metrics) in METRICS {
        if !text.is_empty() {
            text.push('\n');
        }
        write!(text, "**Of a {who}**\n\n| OpenTelemetry | Prometheus | Kind | Unit | Is |\n|---|---|---|---|---|\n")
            .expect("writing to a text");
        for metric in *metrics {
            let kind = match metric.kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Histogram => "histogram",
            };
            let (name, prometheus) = (metric.name, prometheus_name(metric));
            let (unit, help) = (metric.unit.ucum(), metric.help);
            writeln!(text, "| `{name}` | `{prometheus}` | {kind} | `{unit}` | {help} |")
                .expect("writing to a text");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_page_has_the_table_of_every_metric_as_it_is() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/observability.md");
        let page = std::fs::read_to_string(page).unwrap();
        let table = reference();
        assert!(
            page.contains(&table),
            "docs/observability.md shows other metrics than there are; they are:\n{table}"
        );
    }

    #[test]
    fn every_metric_has_a_name_of_its_own_by_the_rules() {
        let mut names = BTreeSet::new();
        for metric in METRICS.iter().flat_map(|(_, metrics)| *metrics) {
            assert!(names.insert(prometheus_name(metric)), "{} is there twice", metric.name);
            let is_named = metric.name.split('.').all(|part| {
                part.starts_with(|c: char| c.is_ascii_lowercase())
                    && part
                        .chars()
                        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
            });
            assert!(is_named, "{} is no name", metric.name);
            assert!(metric.help.ends_with('.'), "{}: {}", metric.name, metric.help);
        }
    }
}
