//! The contract of a store on Couchbase: on nodes of ours, or on the cluster that `GREENROOM_COUCHBASE` names.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::time::Duration;

use greenroom_couchbase_node::{Background, Options};
use greenroom_storage::backend::Boxed;
use greenroom_storage::contract::{Fixture, schema};
use greenroom_storage::{Schema, Storage, StorageConfig, open};

/// A storage on a cluster.
struct Remote {
    storage: Storage,
    /// None when it is somebody else's.
    cluster: Option<Background>,
}

impl Fixture for Remote {
    fn storage(&self) -> Storage {
        self.storage.clone()
    }

    fn advance(&self, span: Duration) -> Boxed<'_, ()> {
        match &self.cluster {
            Some(cluster) => {
                cluster.clock().advance(span);
                Box::pin(std::future::ready(()))
            }
            // A real cluster's clock is not ours to move.
            None => Box::pin(tokio::time::sleep(span)),
        }
    }
}

fn config(address: &str) -> StorageConfig {
    let setting = |name: &str, default: &str| {
        std::env::var(format!("GREENROOM_COUCHBASE_{name}")).unwrap_or_else(|_| default.to_owned())
    };
    StorageConfig {
        store: address.into(),
        deadline: Duration::from_secs(60),
        couchbase_user: setting("USER", "Administrator").into(),
        couchbase_password: setting("PASSWORD", "password").into(),
        couchbase_bucket: setting("BUCKET", "greenroom").into(),
        couchbase_scope: setting("SCOPE", "greenroom").into(),
        ..StorageConfig::default()
    }
}

fn start(schema: Schema) -> Remote {
    let (cluster, address) = match std::env::var("GREENROOM_COUCHBASE") {
        Ok(address) => (None, address),
        Err(_) => {
            let cluster = Background::start(Options::nodes(3)).unwrap();
            let address = cluster.connection_string();
            (Some(cluster), address)
        }
    };
    let storage = open(&config(&address), schema).unwrap();
    Remote { storage, cluster }
}

mod on_couchbase {
    greenroom_storage::contract_tests!(super::start(super::schema()));
}
