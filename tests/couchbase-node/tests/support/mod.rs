//! What the conformance tests share: a cluster of ours, or a real one that the environment names.
#![allow(dead_code, reason = "each test file uses its part")]
#![expect(clippy::unwrap_used, reason = "a test that cannot begin fails")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use couchbase::authenticator::PasswordAuthenticator;
use couchbase::bucket::Bucket;
use couchbase::cluster::Cluster as Client;
use couchbase::collection::Collection;
use couchbase::options::cluster_options::ClusterOptions;
use couchbase::retry::{RetryAction, RetryReason, RetryRequest, RetryStrategy};
use greenroom_couchbase_node::{Cluster, Options};

/// How long a single test may take.
const TEST_MAX: Duration = Duration::from_secs(60);

/// Where a test runs.
pub(crate) struct Place {
    /// Our cluster, when it is ours.
    pub(crate) cluster: Option<Cluster>,
    pub(crate) client: Client,
    pub(crate) bucket: Bucket,
}

impl Place {
    pub(crate) fn collection(&self) -> Collection {
        self.bucket.default_collection()
    }

    pub(crate) fn ours(&self) -> &Cluster {
        self.cluster.as_ref().expect("this test runs on our nodes alone")
    }
}

/// Never retries: what goes wrong is seen at once.
#[derive(Debug)]
pub(crate) struct Never;

impl RetryStrategy for Never {
    fn retry_after(&self, _: &RetryRequest, _: &RetryReason) -> Option<RetryAction> {
        None
    }
}

pub(crate) async fn connect(address: &str, user: &str, password: &str) -> Client {
    let authenticator = PasswordAuthenticator::new(user, password);
    let options = ClusterOptions::new(authenticator.into());
    Client::connect(address, options).await.expect("the cluster answers")
}

/// A key that no other test and no other run uses.
pub(crate) fn new_key() -> String {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let run = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    format!("conformance-{run}-{}", NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// A short name for a scope or a collection that nobody else uses.
pub(crate) fn new_name() -> String {
    new_key().replace("conformance", "c")
}

pub(crate) fn never() -> Arc<Never> {
    Arc::new(Never)
}

/// Runs a test on a cluster of ours with so many nodes.
pub(crate) fn on_ours(nodes: usize, test: impl AsyncFnOnce(Place)) {
    on(Options::nodes(nodes), test);
}

/// Runs a test on a cluster of ours.
pub(crate) fn on(options: Options, test: impl AsyncFnOnce(Place)) {
    run(async {
        let cluster = Cluster::start(options).expect("the ports are free");
        let client = connect(&cluster.connection_string(), "Administrator", "password").await;
        let bucket = client.bucket("greenroom");
        bucket.wait_until_ready(None).await.expect("the bucket is there");
        test(Place { cluster: Some(cluster), client, bucket }).await;
    });
}

/// Runs a test wherever the environment says: on a real cluster (`GREENROOM_COUCHBASE`, with
/// `GREENROOM_COUCHBASE_USER`, `_PASSWORD` and `_BUCKET`), else on three nodes of ours.
pub(crate) fn anywhere(test: impl AsyncFnOnce(Place)) {
    let Ok(address) = std::env::var("GREENROOM_COUCHBASE") else { return on_ours(3, test) };
    let setting = |name: &str, default: &str| {
        std::env::var(format!("GREENROOM_COUCHBASE_{name}")).unwrap_or_else(|_| default.to_owned())
    };
    run(async {
        let (user, password) = (setting("USER", "Administrator"), setting("PASSWORD", "password"));
        let client = connect(&address, &user, &password).await;
        let bucket = client.bucket(setting("BUCKET", "greenroom"));
        bucket.wait_until_ready(None).await.expect("the bucket is there");
        test(Place { cluster: None, client, bucket }).await;
    });
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        tokio::time::timeout(TEST_MAX, test).await.expect("a test ends in its time");
    });
}
