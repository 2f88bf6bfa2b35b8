//! `greenroom bots`: simulated clients, on the SDK that players use.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context, Result, bail};
use clap::ArgMatches;
use greenroom_client::bots::{self, BotsConfig};
use greenroom_console::client;
use tokio_util::sync::CancellationToken;

use crate::operator::{admin, print};

/// Reads a span of time such as `30s`.
pub(crate) fn span(text: &str) -> Result<Duration, String> {
    #[derive(serde::Deserialize)]
    struct Span(#[serde(with = "humantime_serde")] Duration);
    toml::Value::String(text.into())
        .try_into::<Span>()
        .map(|span| span.0)
        .map_err(|_| format!("{text:?} is no span of time, such as 30s or 5m"))
}

pub(crate) fn run(matches: &ArgMatches) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let text = |name: &str| matches.get_one::<String>(name).context("it has a default");
    let report = runtime.block_on(async {
        let servers: Vec<String> = match matches.get_many::<String>("servers") {
            Some(servers) => servers.cloned().collect(),
            None => {
                let status = client::status(admin(matches)?).await?;
                let up = status.sessions.iter().filter(|server| server.state == "up");
                up.flat_map(|server| server.addresses.iter().map(ToString::to_string)).collect()
            }
        };
        if servers.is_empty() {
            bail!("no session server is up: start one, or name some with --servers");
        }
        let game: bots::Game = text("game")?.parse()?;
        let config = BotsConfig {
            users: *matches.get_one("users").context("it has a default")?,
            duration: *matches.get_one("for").context("it has a default")?,
            game,
            calls_per_s: game.calls_per_s(),
            transport: text("transport")?.parse()?,
            servers,
            trust_file: matches.get_one::<String>("trust").map(Into::into),
            seed: *matches.get_one("seed").context("it has a default")?,
            ..BotsConfig::default()
        };
        let stop = CancellationToken::new();
        let interrupted = stop.clone();
        let playing = bots::run(config, stop);
        tokio::pin!(playing);
        loop {
            tokio::select! {
                report = &mut playing => break Ok(report?),
                Ok(()) = tokio::signal::ctrl_c(), if !interrupted.is_cancelled() => interrupted.cancel(),
            }
        }
    })?;
    if let Some(file) = matches.get_one::<String>("results") {
        let lines: String = report.result_ids.iter().map(|id| format!("{id}\n")).collect();
        std::fs::write(file, lines).with_context(|| format!("writing {file}"))?;
    }
    if matches.get_flag("json") {
        print(&format!("{}\n", serde_json::to_string(&report)?))?;
    } else {
        print(&format!("{report}\n"))?;
    }
    let clean = report.errors + report.lost + report.doubled + report.out_of_order == 0;
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
