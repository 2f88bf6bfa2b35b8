use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use ecow::EcoString;
use serde::Deserialize;

use crate::OpenError;

/// Bytes of a document that Couchbase takes, and by that everybody.
const DOCUMENT_BYTES_MAX: usize = 20 * 1024 * 1024;

/// The `[storage]` table of the configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StorageConfig {
    /// Where documents are: `sqlite:FILE`, `memory`, or `couchbase://HOST,HOST`. Empty: `store.sqlite` in the data
    /// folder, which whoever reads the settings fills in.
    pub store: EcoString,
    /// Tasks that keys are spread over.
    pub lanes: NonZeroUsize,
    /// Operations of one lane that the store works on at once, at most; further keys wait in the lane.
    pub lane_under_way_max: NonZeroUsize,
    /// Operations that wait or are under way, at most.
    pub queue_count_max: NonZeroUsize,
    /// Bytes of their documents, at most; at least as many as one document may have.
    pub queue_bytes_max: usize,
    /// Bytes of one document, at most 20 MiB.
    pub document_bytes_max: usize,
    /// Folder where owners' writes are kept while the store is away. Empty: a folder of this server's in the data
    /// folder, which whoever reads the settings fills in; a storage without one has no spool.
    pub spool: PathBuf,
    /// Bytes of the spool, at most.
    pub spool_bytes_max: u64,
    /// How long an operation may take, e.g. "5s".
    #[serde(with = "humantime_serde")]
    pub deadline: Duration,
    /// Who logs in to Couchbase.
    pub couchbase_user: EcoString,
    /// With which password.
    pub couchbase_password: EcoString,
    /// File (PEM) with the issuer of the certificate of `couchbases://`; empty for those that the SDK trusts.
    pub couchbase_certificate: PathBuf,
    /// The bucket.
    pub couchbase_bucket: EcoString,
    /// The scope in it, which is ours alone.
    pub couchbase_scope: EcoString,
    /// How safe a write is before it is answered: `none`, `majority`, `majority_and_persist_active` or
    /// `persist_to_majority`, and behind it exceptions: `majority,snapshots=none`.
    pub couchbase_durability: EcoString,
    /// How long connecting may take, e.g. "10s".
    #[serde(with = "humantime_serde")]
    pub couchbase_connect_timeout: Duration,
    /// How long one request may take before its outcome is looked up, e.g. "1s": less than `deadline`.
    #[serde(with = "humantime_serde")]
    pub couchbase_request_timeout: Duration,
}

impl Default for StorageConfig {
    fn default() -> Self {
        const fn count(number: usize) -> NonZeroUsize {
            NonZeroUsize::new(number).expect("not zero")
        }
        Self {
            store: EcoString::new(),
            lanes: count(8),
            lane_under_way_max: count(256),
            queue_count_max: count(100_000),
            queue_bytes_max: 256 * 1024 * 1024,
            document_bytes_max: DOCUMENT_BYTES_MAX,
            spool: PathBuf::new(),
            spool_bytes_max: 256 * 1024 * 1024,
            deadline: Duration::from_secs(5),
            couchbase_user: "greenroom".into(),
            couchbase_password: EcoString::new(),
            couchbase_certificate: PathBuf::new(),
            couchbase_bucket: "greenroom".into(),
            couchbase_scope: "greenroom".into(),
            couchbase_durability: "majority".into(),
            couchbase_connect_timeout: Duration::from_secs(10),
            couchbase_request_timeout: Duration::from_secs(1),
        }
    }
}

impl StorageConfig {
    /// Whether each setting is in its range.
    pub(crate) fn check(&self) -> Result<(), OpenError> {
        let bad = |setting, why: &str| Err(OpenError::BadSetting { setting, why: why.into() });
        if self.lanes.get() > 1_024 {
            return bad("lanes", "1 to 1024 are possible");
        }
        if self.queue_count_max.get() > 10_000_000 {
            return bad("queue_count_max", "1 to 10000000 are possible");
        }
        if self.document_bytes_max == 0 || self.document_bytes_max > DOCUMENT_BYTES_MAX {
            return bad("document_bytes_max", "1 to 20971520 are possible");
        }
        if self.queue_bytes_max < self.document_bytes_max.saturating_mul(2)
            || self.queue_bytes_max > 1 << 40
        {
            return bad(
                "queue_bytes_max",
                "it takes two documents of document_bytes_max at least, and 1 TiB at most",
            );
        }
        if self.deadline < Duration::from_millis(10) || self.deadline > Duration::from_secs(600) {
            return bad("deadline", "10ms to 10m are possible");
        }
        Ok(())
    }
}
