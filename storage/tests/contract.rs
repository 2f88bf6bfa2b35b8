//! The contract of a store, for those that need no network.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::sync::Arc;
use std::time::Duration;

use greenroom_storage::backend::memory::Memory;
use greenroom_storage::backend::sqlite::Sqlite;
use greenroom_storage::backend::{Backend, Boxed};
use greenroom_storage::contract::{Fixture, schema};
use greenroom_storage::{Clock, Hand, Storage, StorageConfig};

/// A store whose clock is moved by hand.
struct Local {
    storage: Storage,
    hand: Hand,
    /// Removed with it.
    _folder: Option<tempfile::TempDir>,
}

impl Fixture for Local {
    fn storage(&self) -> Storage {
        self.storage.clone()
    }

    fn advance(&self, span: Duration) -> Boxed<'_, ()> {
        self.hand.advance(span);
        Box::pin(std::future::ready(()))
    }
}

/// Machines that run the tests may be slow; nothing is tested that waits for it.
fn config() -> StorageConfig {
    StorageConfig { deadline: Duration::from_secs(60), ..StorageConfig::default() }
}

fn memory() -> Local {
    let (clock, hand) = Clock::by_hand();
    let make = async move || Ok(Arc::new(Memory::new(clock)) as Arc<dyn Backend>);
    Local { storage: Storage::start(&config(), schema(), make).unwrap(), hand, _folder: None }
}

fn sqlite() -> Local {
    let (clock, hand) = Clock::by_hand();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("store.sqlite");
    let make = async move || Ok(Arc::new(Sqlite::open(&file, clock)?) as Arc<dyn Backend>);
    Local {
        storage: Storage::start(&config(), schema(), make).unwrap(),
        hand,
        _folder: Some(folder),
    }
}

mod in_memory {
    greenroom_storage::contract_tests!(super::memory());
}

mod in_sqlite {
    greenroom_storage::contract_tests!(super::sqlite());
}
