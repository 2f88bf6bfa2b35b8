//! Durable writes to three nodes of ours, in a process beside this one: the bare SDK, and the actor on it.
//!
//! What it says of Couchbase is nothing: the nodes keep documents in memory. What it says is what the actor costs this
//! process beside the SDK that it goes through.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use couchbase::authenticator::PasswordAuthenticator;
use couchbase::cluster::Cluster;
use couchbase::collection::Collection;
use couchbase::durability_level::DurabilityLevel;
use couchbase::options::cluster_options::ClusterOptions;
use couchbase::options::kv_options::UpsertOptions;
use couchbase::transcoding::{DataType, encode_common_flags};
use greenroom_storage::{Schema, StorageConfig};
use hdrhistogram::Histogram;
use tokio::task::LocalSet;

use super::{Figures, Taken, figures, id, json, micros, taken, through};
use crate::machine;
use crate::report::progress;

/// The nodes, which end with this.
struct Nodes {
    child: Child,
    address: String,
}

impl Drop for Nodes {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            progress(&format!("the nodes stay: {error}"));
        }
    }
}

impl Nodes {
    fn start() -> anyhow::Result<Self> {
        let program = std::env::current_exe()?.with_file_name("couchbase-node");
        ensure!(
            program.exists(),
            "{} is not there: `cargo xtask bench store` builds it",
            program.display()
        );
        let mut command = Command::new(program);
        command.args(["--nodes", "3"]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().context("starting the nodes")?;
        let out = child.stdout.take().context("the nodes' output")?;
        let mut nodes = Self { child, address: String::new() };
        let mut line = String::new();
        BufReader::new(out).read_line(&mut line).context("the nodes end before they are ready")?;
        let ready: serde_json::Value = serde_json::from_str(&line).context("what the nodes say")?;
        nodes.address = ready["address"].as_str().context("their address")?.to_owned();
        Ok(nodes)
    }

    fn config(&self) -> StorageConfig {
        StorageConfig {
            store: self.address.as_str().into(),
            couchbase_user: "Administrator".into(),
            couchbase_password: "password".into(),
            ..StorageConfig::default()
        }
    }
}

/// Measures one number of keys under way, the bare SDK and the actor in turn. The figures are medians.
pub(crate) fn upserts(size: usize, runs: u16, seconds: f64) -> anyhow::Result<Figures> {
    let nodes = Nodes::start()?;
    let window = Duration::from_secs_f64(seconds);
    // Makes the collections, which the bare SDK writes to as well.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(greenroom_storage::init(&nodes.config(), &Schema::default()))?;
    let mut all = Vec::new();
    for run in 1..=runs {
        progress(&format!("store on Couchbase, {size} keys under way, run {run} of {runs}"));
        let bare = bare(&nodes.address, size, window)?;
        let actor = through(nodes.config(), size, window)?;
        all.push(vec![
            ("upserts_per_s", actor.per_s),
            ("p50_ms", actor.p50_ms),
            ("p99_ms", actor.p99_ms),
            ("cpu_us_per_upsert", actor.cpu_us),
            ("bare_upserts_per_s", bare.per_s),
            ("bare_p99_ms", bare.p99_ms),
            ("bare_cpu_us_per_upsert", bare.cpu_us),
            ("cpu_percent_more", (actor.cpu_us / bare.cpu_us - 1.0) * 100.0),
        ]);
    }
    Ok(figures(&all))
}

/// The SDK by itself: a task for each key under way, at the same durability.
fn bare(address: &str, size: usize, window: Duration) -> anyhow::Result<Taken> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(LocalSet::new().run_until(async {
        let user = PasswordAuthenticator::new("Administrator", "password");
        let cluster = Cluster::connect(address, ClusterOptions::new(user.into())).await?;
        let bucket = cluster.bucket("greenroom");
        bucket.wait_until_ready(None).await?;
        let documents = bucket.scope("greenroom").collection("documents");
        let (began, cpu) = (Instant::now(), machine::cpu(std::process::id())?);
        let workers: Vec<_> = (0..size)
            .map(|worker| tokio::task::spawn_local(write(documents.clone(), worker, began, window)))
            .collect();
        let (mut count, mut times) = (0, Histogram::<u64>::new(3)?);
        for worker in workers {
            for time in worker.await?? {
                times.record(time)?;
                count += 1;
            }
        }
        taken(count, began, cpu, &times)
    }))
}

async fn write(
    documents: Collection,
    worker: usize,
    began: Instant,
    window: Duration,
) -> anyhow::Result<Vec<u64>> {
    let mut times = Vec::new();
    for round in 0.. {
        if began.elapsed() >= window {
            break;
        }
        let started = Instant::now();
        let options = UpsertOptions::new().durability_level(DurabilityLevel::MAJORITY);
        let (body, flags) = (json(round), encode_common_flags(DataType::Json));
        documents.upsert_raw(id(worker, round), body.as_bytes(), flags, options).await?;
        times.push(micros(started.elapsed()));
    }
    Ok(times)
}
