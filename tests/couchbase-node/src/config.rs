//! Where the nodes listen, and the maps that tell clients.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::state::{Bucket, State};

/// Part of every revision; real clusters change it when somebody forces a failover.
pub(crate) const EPOCH: u64 = 1;

/// Where a node listens, all on the loopback address. 0 asks for a free port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    /// Key-value requests.
    pub kv: u16,
    /// Management and queries.
    pub http: u16,
    /// Key-value requests over TLS, if the cluster has a certificate.
    #[serde(default)]
    pub kv_tls: u16,
    /// Management and queries over TLS, if the cluster has a certificate.
    #[serde(default)]
    pub http_tls: u16,
}

/// The members as a client sees them, and the place of each node among them.
fn members(state: &State, this: usize) -> (Vec<Value>, Vec<Value>, Vec<Option<i16>>) {
    let mut nodes = Vec::new();
    let mut extended = Vec::new();
    let mut places = vec![None; state.nodes.len()];
    for node in state.members() {
        places[node] = i16::try_from(nodes.len()).ok();
        let ports = state.nodes[node].ports;
        nodes.push(json!({
            "hostname": format!("127.0.0.1:{}", ports.http),
            "ports": {"direct": ports.kv},
        }));
        let mut services = json!({"kv": ports.kv, "mgmt": ports.http, "n1ql": ports.http});
        if ports.kv_tls != 0 {
            services["kvSSL"] = ports.kv_tls.into();
            services["mgmtSSL"] = ports.http_tls.into();
            services["n1qlSSL"] = ports.http_tls.into();
        }
        let mut extra = json!({"hostname": "127.0.0.1", "services": services});
        if node == this {
            extra["thisNode"] = true.into();
        }
        extended.push(extra);
    }
    (nodes, extended, places)
}

/// The map of the cluster without a bucket.
pub(crate) fn cluster_map(state: &State, this: usize) -> Value {
    let (_, extended, _) = members(state, this);
    json!({
        "rev": state.revision,
        "revEpoch": EPOCH,
        "nodesExt": extended,
        "clusterCapabilitiesVer": [1, 0],
        "clusterCapabilities": {"n1ql": ["enhancedPreparedStatements"]},
        "clusterName": "couchbase-node",
        "clusterUUID": "6772656e-726f6f6d",
    })
}

/// The map of a bucket.
pub(crate) fn bucket_map(state: &State, bucket: &Bucket, this: usize) -> Value {
    let (nodes, extended, places) = members(state, this);
    let record = &bucket.record;
    let map: Vec<Vec<i16>> = (bucket.map.iter())
        .map(|holders| {
            let place = |holder: &Option<usize>| holder.and_then(|node| places[node]).unwrap_or(-1);
            holders.iter().map(place).collect()
        })
        .collect();
    let servers: Vec<String> = (state.members().into_iter())
        .map(|node| format!("127.0.0.1:{}", state.nodes[node].ports.kv))
        .collect();
    json!({
        "rev": state.revision,
        "revEpoch": EPOCH,
        "name": record.name,
        "uuid": uuid(&record.name),
        "uri": format!("/pools/default/buckets/{}", record.name),
        "streamingUri": format!("/pools/default/bucketsStreaming/{}", record.name),
        "nodeLocator": "vbucket",
        "collectionsManifestUid": format!("{:x}", record.manifest),
        "bucketCapabilitiesVer": "",
        "bucketCapabilities": ["collections", "durableWrite", "couchapi", "subdoc.ReplaceBodyWithXattr",
            "subdoc.DocumentMacroSupport", "dcp", "cbhello", "touch", "cccp", "xdcrCheckpointing", "nodesExt", "xattr"],
        "nodes": nodes,
        "nodesExt": extended,
        "vBucketServerMap": {
            "hashAlgorithm": "CRC",
            "numReplicas": record.copies,
            "serverList": servers,
            "vBucketMap": map,
        },
        "clusterCapabilitiesVer": [1, 0],
        "clusterCapabilities": {"n1ql": ["enhancedPreparedStatements"]},
        "clusterName": "couchbase-node",
        "clusterUUID": "6772656e-726f6f6d",
    })
}

/// The identity of a bucket, the same in each life of the cluster.
pub(crate) fn uuid(name: &str) -> String {
    format!("{:08x}{:08x}", crc32fast::hash(name.as_bytes()), name.len())
}

fn error(name: &str, about: &str, attributes: &[&str]) -> Value {
    json!({"name": name, "desc": about, "attrs": attributes})
}

/// What the statuses mean, in the form in which clients ask for it. None asks a client to retry by itself.
pub(crate) fn error_map() -> Value {
    json!({
        "version": 2,
        "revision": 4,
        "errors": {
            "0": error("SUCCESS", "Success", &["success"]),
            "1": error("KEY_ENOENT", "Not found", &["item-only"]),
            "2": error("KEY_EEXISTS", "Exists already, or another version does", &["item-only"]),
            "3": error("E2BIG", "Too large", &["item-only", "invalid-input"]),
            "4": error("EINVAL", "Invalid request", &["internal", "invalid-input"]),
            "5": error("NOT_STORED", "Not stored", &["item-only"]),
            "7": error("NOT_MY_VBUCKET", "Another node has this part", &["fetch-config", "invalid-input"]),
            "9": error("LOCKED", "Locked", &["item-locked", "item-only", "retry-now"]),
            "1f": error("AUTH_STALE", "Authenticate again", &["conn-state-invalidated", "auth"]),
            "20": error("AUTH_ERROR", "Authentication failed", &["conn-state-invalidated", "auth"]),
            "24": error("EACCESS", "Not allowed", &["support"]),
            "81": error("UNKNOWN_COMMAND", "Unknown command", &["support"]),
            "84": error("EINTERNAL", "Internal error", &["internal"]),
            "85": error("EBUSY", "Busy", &["temp", "retry-now"]),
            "86": error("ETMPFAIL", "Temporary failure", &["temp", "retry-now"]),
            "88": error("UNKNOWN_COLLECTION", "Unknown collection", &["item-only"]),
        },
    })
}
