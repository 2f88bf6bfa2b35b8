//! Documents in Couchbase, through its official SDK: one bucket, one scope, a collection of ours in each of its own.
//!
//! Every write is a compare-and-set on the version that was seen, and brings an id that stands in the document. So an
//! attempt whose outcome nobody knows is decided by a look, and one that comes late meets another version and changes
//! nothing: what is answered has happened once. That is why a removal leaves a marker for a while, and why nothing is
//! ever written blindly.

mod connection;
mod crew;
mod documents;
mod durability;
mod outcome;
mod queries;
mod seen;
mod setup;
mod statement;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ecow::EcoString;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::connection::Keeper;
use self::crew::{Alarm, Crew};
use self::durability::Durability;
use self::seen::Seen;
use super::{Backend, Boxed, Job, Operation};
use crate::{Collection, Key, OpenError, Schema, StorageConfig, StorageError};

/// What of the configuration is for Couchbase.
#[derive(Clone)]
struct CouchbaseConfig {
    user: EcoString,
    password: EcoString,
    certificate: Option<PathBuf>,
    bucket: EcoString,
    scope: EcoString,
    durability: Durability,
    connect_timeout: Duration,
    request_timeout: Duration,
    document_bytes_max: usize,
}

impl std::fmt::Debug for CouchbaseConfig {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the password.
        out.debug_struct("CouchbaseConfig")
            .field("user", &self.user)
            .field("bucket", &self.bucket)
            .field("scope", &self.scope)
            .field("durability", &self.durability)
            .finish_non_exhaustive()
    }
}

impl CouchbaseConfig {
    fn read(config: &StorageConfig) -> Result<Self, OpenError> {
        let bad = |setting, why: EcoString| OpenError::BadSetting { setting, why };
        let durability = config.couchbase_durability.parse();
        let durability = durability.map_err(|error: durability::BadDurability| {
            bad("couchbase_durability", ecow::eco_format!("{error}"))
        })?;
        let seconds =
            |span: Duration| (Duration::from_millis(10)..=Duration::from_secs(600)).contains(&span);
        if !seconds(config.couchbase_connect_timeout) {
            return Err(bad("couchbase_connect_timeout", "10ms to 10m are possible".into()));
        }
        if !seconds(config.couchbase_request_timeout) {
            return Err(bad("couchbase_request_timeout", "10ms to 10m are possible".into()));
        }
        let certificate = &config.couchbase_certificate;
        Ok(Self {
            user: config.couchbase_user.clone(),
            password: config.couchbase_password.clone(),
            certificate: (!certificate.as_os_str().is_empty()).then(|| certificate.clone()),
            bucket: config.couchbase_bucket.clone(),
            scope: config.couchbase_scope.clone(),
            durability,
            connect_timeout: config.couchbase_connect_timeout,
            request_timeout: config.couchbase_request_timeout,
            document_bytes_max: config.document_bytes_max,
        })
    }
}

/// How long before its deadline an operation is given up: who asked hears what is known, and not only that time is
/// over.
const EARLY: Duration = Duration::from_millis(50);

/// A store in a Couchbase cluster.
#[derive(Debug)]
pub struct Couchbase {
    inner: Arc<Inner>,
    crew: Arc<Crew>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

#[derive(Debug)]
struct Inner {
    keeper: Keeper,
    seen: Seen,
    schema: Mutex<Arc<Schema>>,
}

impl Couchbase {
    /// Connects to the cluster that `config.store` names: `couchbase://HOST,HOST`, or `couchbases://` over TLS.
    ///
    /// # Errors
    /// When a setting is wrong, or there is no connection in `couchbase_connect_timeout`: it says why, and what to do.
    pub async fn open(config: &StorageConfig) -> Result<Self, OpenError> {
        let keeper = Keeper::open(&config.store, &CouchbaseConfig::read(config)?).await?;
        let inner = Arc::new(Inner { keeper, seen: Seen::default(), schema: Mutex::default() });
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let (watched, until) = (Arc::clone(&inner), stop.clone());
        tasks.spawn(async move { watched.keeper.run(until).await });
        Ok(Self { inner, crew: Arc::new(Crew::new()), tasks, stop })
    }

    /// Makes what a store of this schema needs and has not, and names it.
    ///
    /// # Errors
    /// When something is missing and can't be made: it says why.
    pub async fn make(&self, schema: &Schema) -> Result<Vec<EcoString>, OpenError> {
        *self.inner.schema.lock().unwrap_or_else(PoisonError::into_inner) =
            Arc::new(schema.clone());
        setup::prepare(&self.inner.keeper, schema).await
    }

    /// What is missing or wrong for a store of this schema, each in a sentence that says what to do. Changes nothing.
    pub async fn findings(&self, schema: &Schema) -> Vec<EcoString> {
        setup::findings(&self.inner.keeper, schema).await
    }
}

impl Inner {
    fn schema(&self) -> Arc<Schema> {
        self.schema.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn run(&self, job: Job, alarm: &mut Alarm) {
        let now = tokio::time::Instant::now();
        let deadline = job.deadline().checked_sub(EARLY).unwrap_or(now).max(now);
        let answer = match job.operation() {
            Operation::Get { key } => self.get(key, deadline, alarm).await,
            Operation::Put(put) => self.put(put, deadline, alarm).await,
            Operation::Remove { key, version, write } => {
                self.remove(key, *version, *write, deadline, alarm).await
            }
            Operation::Touch { key, expiry, write } => {
                self.touch(key, *expiry, *write, deadline, alarm).await
            }
            Operation::Query(query) => self.query(query, deadline).await,
            Operation::Raw(query) => self.raw(query, deadline).await,
        };
        job.answer(answer);
    }
}

impl Backend for Couchbase {
    fn name(&self) -> &'static str {
        "couchbase"
    }

    fn begin(&self, jobs: Vec<Job>) {
        for place in self.crew.begin(jobs) {
            let inner = Arc::clone(&self.inner);
            self.tasks.spawn(async move {
                let mut alarm = Alarm::new();
                while let Some(job) = place.next().await {
                    inner.run(job, &mut alarm).await;
                }
            });
        }
    }

    fn prepare<'a>(&'a self, schema: &'a Schema) -> Boxed<'a, Result<(), OpenError>> {
        Box::pin(async { self.make(schema).await.map(drop) })
    }

    fn health(&self) -> Boxed<'_, Result<(), StorageError>> {
        Box::pin(async move {
            let key = Key::new(Collection::Cluster, "health").map_err(StorageError::BadKey)?;
            let deadline =
                tokio::time::Instant::now() + self.inner.keeper.config().request_timeout * 2;
            self.inner.get(&key, deadline, &mut Alarm::new()).await.map(|_| ())
        })
    }

    fn close(&self) -> Boxed<'_, ()> {
        Box::pin(async move {
            self.stop.cancel();
            self.crew.close();
            self.tasks.close();
            self.tasks.wait().await;
        })
    }
}
