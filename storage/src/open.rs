//! Opens the store that the settings name.

use std::path::PathBuf;
use std::sync::Arc;

use crate::backend::Backend;
#[cfg(feature = "couchbase")]
use crate::backend::couchbase::Couchbase;
use crate::backend::memory::Memory;
use crate::backend::sqlite::Sqlite;
use crate::handle::scheme;
use crate::{Clock, OpenError, Schema, Storage, StorageConfig};

/// Starts a storage actor on the store that `config.store` names.
///
/// # Errors
/// When a setting is out of range, or the store can't be opened: it says what is wrong, and what to do.
pub fn open(config: &StorageConfig, schema: Schema) -> Result<Storage, OpenError> {
    let url = config.store.clone();
    match scheme(&url) {
        "memory" if url == "memory" => Storage::start(config, schema, async || {
            Ok(Arc::new(Memory::new(Clock::system())) as Arc<dyn Backend>)
        }),
        "sqlite" if url.len() > "sqlite:".len() => {
            let file = PathBuf::from(&url["sqlite:".len()..]);
            Storage::start(config, schema, async move || {
                Ok(Arc::new(Sqlite::open(&file, Clock::system())?) as Arc<dyn Backend>)
            })
        }
        #[cfg(feature = "couchbase")]
        "couchbase" | "couchbases" => {
            let opened = config.clone();
            Storage::start(config, schema, async move || {
                Ok(Arc::new(Couchbase::open(&opened).await?) as Arc<dyn Backend>)
            })
        }
        #[cfg(not(feature = "couchbase"))]
        "couchbase" | "couchbases" => Err(OpenError::NoCouchbase { url }),
        _ => Err(OpenError::BadUrl { url }),
    }
}
