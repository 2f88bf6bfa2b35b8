//! Durable writes to three nodes of ours, in a process beside this one.
//!
//! What it says of Couchbase is nothing: the nodes keep documents in memory. What it says is what the actor costs this
//! process beside the SDK that it goes through.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use couchbase::authenticator::PasswordAuthenticator;
use couchbase::cluster::Cluster;
use couchbase::collection::Collection;
use couchbase::durability_level::DurabilityLevel;
use couchbase::options::cluster_options::ClusterOptions;
use couchbase::options::kv_options::UpsertOptions;
use couchbase::transcoding::{DataType, encode_common_flags};
use greenroom_storage::{Schema, StorageConfig};
use tokio::task::LocalSet;

use super::load::{self, Taken, drive};
use super::{Run, actor, in_turn};
use crate::report::{Figures, progress};

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

/// On three nodes.
pub(crate) fn upserts(size: usize, runs: u16, window: Duration) -> anyhow::Result<Figures> {
    let nodes = Nodes::start()?;
    // Makes the collections, which the bare SDK writes to as well.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(greenroom_storage::init(&nodes.config(), &Schema::default()))?;
    in_turn("Couchbase", size, runs, |_| {
        let run = Run {
            bare: Some(bare(&nodes.address, size, window)?),
            by_hand: by_hand(&nodes.address, size, window)?,
            actor: actor(nodes.config(), size, window)?,
        };
        Ok(run.figures())
    })
}

/// The handles end with the cluster object.
async fn connect(address: &str) -> anyhow::Result<(Cluster, Collection)> {
    let user = PasswordAuthenticator::new("Administrator", "password");
    let cluster = Cluster::connect(address, ClusterOptions::new(user.into())).await?;
    let bucket = cluster.bucket("greenroom");
    bucket.wait_until_ready(None).await?;
    Ok((cluster, bucket.scope("greenroom").collection("documents")))
}

/// As durable as the actor's.
async fn upsert(documents: &Collection, id: &str, json: &str) -> anyhow::Result<()> {
    let options = UpsertOptions::new().durability_level(DurabilityLevel::MAJORITY);
    let flags = encode_common_flags(DataType::Json);
    documents.upsert_raw(id, json.as_bytes(), flags, options).await?;
    Ok(())
}

/// The SDK by itself.
fn bare(address: &str, size: usize, window: Duration) -> anyhow::Result<Taken> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(LocalSet::new().run_until(async {
        let (_cluster, documents) = connect(address).await?;
        drive(size, window, async move |id: String, json: String| {
            upsert(&documents, &id, &json).await
        })
        .await
    }))
}

/// A thread that calls the SDK, with a task for each upsert.
fn by_hand(address: &str, size: usize, window: Duration) -> anyhow::Result<Taken> {
    let address = address.to_owned();
    load::by_hand(size, window, move |mut asked| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(LocalSet::new().run_until(async {
            let (_cluster, documents) = connect(&address).await?;
            while let Some(asked) = asked.recv().await {
                let documents = documents.clone();
                tokio::task::spawn_local(async move {
                    if let Err(error) = upsert(&documents, &asked.id, &asked.json).await {
                        // Who asked has no answer, which ends the run.
                        return progress(&format!("an upsert failed: {error}"));
                    }
                    asked.answer();
                });
            }
            Ok(())
        }))
    })
}
