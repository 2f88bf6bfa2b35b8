//! The connection to the cluster: made under a deadline of ours, watched, and made anew when it answers no more.

use std::collections::VecDeque;
use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use couchbase::authenticator::PasswordAuthenticator;
use couchbase::bucket::Bucket;
use couchbase::cluster::Cluster;
use couchbase::collection::Collection as Handle;
use couchbase::error::ErrorKind;
use couchbase::options::cluster_options::{ClusterOptions, KvOptions, TlsOptions};
use couchbase::options::diagnostic_options::WaitUntilReadyOptions;
use couchbase::retry::{RetryAction, RetryReason, RetryRequest, RetryStrategy};
use couchbase::scope::Scope;
use couchbase::service_type::ServiceType;
use ecow::{EcoString, eco_format};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::instrument::WithSubscriber as _;

use super::CouchbaseConfig;
use super::durability::place;
use crate::{Collection, OpenError};

/// So many answers that did not come, within [`SILENCE`], and the connection is made anew. A connection that is wedged
/// (stale authentication) says nothing at all, and the SDK never lets go of it.
const SILENCES: usize = 3;
/// See [`SILENCES`].
const SILENCE: Duration = Duration::from_secs(5);
/// How long a new connection is left alone, and how long until another attempt after one that failed.
const REST: Duration = Duration::from_secs(2);

/// How often the SDK itself may look again for a connection, and how long it waits between.
const LOOKS: u32 = 20;
const LOOK: Duration = Duration::from_millis(50);

/// Our strategy of retries: the SDK tries again only while a request has gone nowhere, and that a few times.
/// Its own has no end.
#[derive(Debug)]
struct Bounded;

impl RetryStrategy for Bounded {
    fn retry_after(&self, request: &RetryRequest, reason: &RetryReason) -> Option<RetryAction> {
        let went_nowhere = matches!(
            reason,
            RetryReason::SocketNotAvailable
                | RetryReason::ServiceNotAvailable
                | RetryReason::NotReady
        );
        (went_nowhere && request.retry_attempts() < LOOKS).then(|| RetryAction::new(LOOK))
    }
}

/// A cluster object with its handles.
pub(super) struct Connection {
    /// Everything else ends when it is dropped.
    pub(super) cluster: Cluster,
    pub(super) bucket: Bucket,
    pub(super) scope: Scope,
    collections: Vec<Handle>,
    made: Instant,
}

impl fmt::Debug for Connection {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Connection").field("bucket", &self.bucket.name()).finish_non_exhaustive()
    }
}

impl Connection {
    pub(super) fn collection(&self, collection: Collection) -> &Handle {
        &self.collections[place(collection)]
    }

    /// Connects, or says in words why not.
    pub(super) async fn make(url: &str, config: &CouchbaseConfig) -> Result<Self, EcoString> {
        let (user, password) = (config.user.to_string(), config.password.to_string());
        let options = ClusterOptions::new(PasswordAuthenticator::new(user, password).into())
            .kv_options(KvOptions::new().connect_timeout(config.connect_timeout))
            .default_retry_strategy(Arc::new(Bounded));
        let options = match &config.certificate {
            Some(file) => options.tls_options(certificate(file)?),
            None => options,
        };
        // It never returns when it can't: what it says in its log meanwhile is why.
        let ear = Ear::default();
        let connecting = Cluster::connect(url, options).with_subscriber(ear.clone());
        let cluster = match timeout(config.connect_timeout, connecting).await {
            Ok(Ok(cluster)) => cluster,
            Ok(Err(error)) => return Err(eco_format!("{url}: {error}")),
            Err(_) => return Err(ear.why(url, config)),
        };
        let bucket_name = config.bucket.as_str();
        let buckets = cluster.buckets();
        let looked = timeout(config.connect_timeout, buckets.get_bucket(bucket_name, None));
        if let Ok(Err(error)) = looked.await
            && *error.kind() == ErrorKind::BucketNotFound
        {
            return Err(eco_format!(
                "there is no bucket {bucket_name:?}: create it, or name another in storage.couchbase_bucket"
            ));
        }
        let bucket = cluster.bucket(bucket_name);
        let ready = WaitUntilReadyOptions::new().service_types(vec![ServiceType::KV]);
        match timeout(config.connect_timeout, bucket.wait_until_ready(ready)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(eco_format!("the bucket {bucket_name:?}: {error}")),
            Err(_) => {
                return Err(eco_format!(
                    "the bucket {bucket_name:?} is not ready in {:?}: it is not there, its nodes are away, or \
                     {:?} may not use it",
                    config.connect_timeout,
                    config.user
                ));
            }
        }
        let scope = bucket.scope(config.scope.as_str());
        let collections = Collection::ALL.map(|collection| scope.collection(collection.name()));
        let collections = collections.into();
        Ok(Self { cluster, bucket, scope, collections, made: Instant::now() })
    }
}

/// Reads the certificates that the cluster's own must be signed by.
fn certificate(file: &Path) -> Result<TlsOptions, EcoString> {
    let wrong = |why: &dyn fmt::Display| {
        eco_format!("storage.couchbase_certificate, {}: {why}", file.display())
    };
    let text = fs::read(file).map_err(|error| wrong(&error))?;
    let read = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
    let read = read.map_err(|error| wrong(&error))?;
    if read.is_empty() {
        return Err(wrong(&"there is no certificate in it (PEM)"));
    }
    Ok(TlsOptions::new().add_ca_certificates(read))
}

/// Hears what the SDK says while it connects, since it says it nowhere else.
#[derive(Clone, Debug, Default)]
struct Ear {
    heard: Arc<Mutex<String>>,
}

impl Ear {
    /// Why there is no connection, in words that say what to do.
    fn why(&self, url: &str, config: &CouchbaseConfig) -> EcoString {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let lower = heard.to_lowercase();
        let says = |words: &[&str]| words.iter().any(|word| lower.contains(word));
        if says(&["auth error", "authentication", "auth failed"]) {
            return eco_format!(
                "{url} refuses the user {:?}: storage.couchbase_user or storage.couchbase_password is wrong",
                config.user
            );
        }
        if says(&["certificate", "unknownissuer", "invalid peer"]) {
            return eco_format!(
                "the certificate of {url} does not verify: name the file with its issuer in \
                 storage.couchbase_certificate ({heard})"
            );
        }
        if says(&["refused", "connect"]) {
            return eco_format!(
                "{url} can't be reached: is it running, and is the port right? ({heard})"
            );
        }
        let time = config.connect_timeout;
        eco_format!(
            "{url} did not answer in {time:?}{}{heard}",
            if heard.is_empty() { "" } else { ": " }
        )
    }
}

impl tracing::Subscriber for Ear {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN && metadata.target().starts_with("couchbase")
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        struct Words(String);
        impl tracing::field::Visit for Words {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn fmt::Debug) {
                if field.name() == "message" {
                    self.0 = format!("{value:?}");
                }
            }
        }
        let mut words = Words(String::new());
        event.record(&mut words);
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        // The authentication that failed is said first, and then that there is no connection.
        if !heard.to_lowercase().contains("auth failed") {
            *heard = words.0;
        }
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

/// Holds the connection, and has it made anew when it answers no more.
#[derive(Debug)]
pub(super) struct Keeper {
    url: EcoString,
    config: CouchbaseConfig,
    current: watch::Sender<Arc<Connection>>,
    silences: Mutex<VecDeque<Instant>>,
    wanted: Notify,
}

impl Keeper {
    pub(super) async fn open(url: &str, config: &CouchbaseConfig) -> Result<Self, OpenError> {
        let made = Connection::make(url, config).await.map_err(OpenError::Backend)?;
        Ok(Self {
            url: url.into(),
            config: config.clone(),
            current: watch::Sender::new(Arc::new(made)),
            silences: Mutex::default(),
            wanted: Notify::new(),
        })
    }

    pub(super) fn config(&self) -> &CouchbaseConfig {
        &self.config
    }

    pub(super) fn url(&self) -> &EcoString {
        &self.url
    }

    pub(super) fn current(&self) -> Arc<Connection> {
        self.current.borrow().clone()
    }

    /// An answer did not come on this connection.
    pub(super) fn note_silence(&self, on: &Connection) {
        let now = Instant::now();
        let mut silences = self.silences.lock().unwrap_or_else(PoisonError::into_inner);
        if on.made != self.current.borrow().made {
            return;
        }
        while silences.front().is_some_and(|first| now.duration_since(*first) > SILENCE) {
            silences.pop_front();
        }
        silences.push_back(now);
        if silences.len() >= SILENCES {
            silences.clear();
            drop(silences);
            self.ask_anew(on);
        }
    }

    /// This connection is of no more use.
    pub(super) fn ask_anew(&self, on: &Connection) {
        let is_current = on.made == self.current.borrow().made;
        if is_current && on.made.elapsed() >= REST {
            self.wanted.notify_one();
        }
    }

    /// Makes the connection anew whenever that is asked for.
    pub(super) async fn run(&self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.wanted.notified() => {}
            }
            tracing::warn!(url = %self.url, "Couchbase answers no more on this connection; it is made anew");
            let made = tokio::select! {
                () = stop.cancelled() => return,
                made = Connection::make(&self.url, &self.config) => made,
            };
            match made {
                Ok(made) => {
                    self.current.send_replace(Arc::new(made));
                    tracing::info!(url = %self.url, "Couchbase is connected again");
                }
                // The old one stays: its nodes may come back. Whoever has no answer asks again.
                Err(why) => tracing::warn!(%why, "Couchbase can't be connected again"),
            }
        }
    }
}
