//! The actor over memory: what it promises whatever the store is.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::time::Duration;

use greenroom_protocol::Epoch;
use greenroom_protocol::search::{FieldType, Filter};
use greenroom_storage::{
    Body, Change, Collection, Expiry, Index, Key, Merge, Owner, Query, Schema, Storage,
    StorageConfig, StorageError, Write,
};

fn open() -> Storage {
    let config = StorageConfig { store: "memory".into(), ..StorageConfig::default() };
    let index = Index::new(Collection::Documents, &[("level", FieldType::Number)]).unwrap();
    greenroom_storage::open(&config, Schema::new(vec![index]).unwrap()).unwrap()
}

fn key(id: &str) -> Key {
    Key::new(Collection::Documents, id).unwrap()
}

fn body(level: i64) -> Body {
    Body::of(&serde_json::json!({ "level": level })).unwrap()
}

#[tokio::test]
async fn the_operations_do_what_their_names_say() {
    let storage = open();
    let first = storage.insert(key("a"), body(1)).await.unwrap();
    assert!(matches!(storage.insert(key("a"), body(2)).await, Err(StorageError::Exists { .. })));
    let second = storage.replace(key("a"), body(2), first).await.unwrap();
    let late = storage.replace(key("a"), body(3), first).await;
    assert!(matches!(late, Err(StorageError::VersionMismatch { .. })));
    assert_eq!(storage.get(key("a")).await.unwrap().unwrap().version, second);
    for _ in 0..3 {
        storage.count(key("n"), 5).await.unwrap();
    }
    assert_eq!(storage.count(key("n"), -1).await.unwrap(), 14);
    let after = storage
        .update(key("a"), |before| {
            assert_eq!(before.unwrap().body, body(2));
            Ok(Change::Write(body(7), Expiry::Keep))
        })
        .await
        .unwrap();
    assert_eq!(storage.get(key("a")).await.unwrap(), after);
    let owner = |lsn| Owner::Master { epoch: Epoch { era: 1, epoch: 1 }, lsn };
    storage.put_owned(key("o"), owner(5), body(5)).await.unwrap();
    storage.put_owned(key("o"), owner(5), body(6)).await.unwrap();
    let deposed = storage.put_owned(key("o"), owner(4), body(4)).await;
    assert!(matches!(deposed, Err(StorageError::Deposed { .. })));
    assert_eq!(storage.get(key("o")).await.unwrap().unwrap().body, body(5));
    storage.remove_owned(key("o"), owner(6)).await.unwrap();
    assert_eq!(storage.get(key("o")).await.unwrap(), None);
    let deposed = storage.put_owned(key("o"), owner(5), body(5)).await;
    assert!(matches!(deposed, Err(StorageError::Deposed { .. })));
    let filter = Filter::parse("level >= 7").unwrap();
    let found = storage.query(Query::new(Collection::Documents, filter)).await.unwrap();
    assert_eq!(found.documents.len(), 1);
    storage.close().await;
    assert!(matches!(storage.get(key("a")).await, Err(StorageError::Closed)));
}

#[tokio::test]
async fn writes_of_one_key_that_may_be_merged_are_one_write_with_one_answer() {
    let storage = open();
    let tickets: Vec<_> = (0..100)
        .map(|level| {
            let write = Write::upsert(key("m"), body(level)).merge(Merge::Allowed);
            storage.try_submit(write).unwrap()
        })
        .collect();
    let mut last = None;
    for ticket in tickets {
        last = Some(ticket.await.unwrap());
    }
    let stored = storage.get(key("m")).await.unwrap().unwrap();
    assert_eq!((Some(stored.version), stored.body), (last, body(99)));
}

#[tokio::test]
async fn a_panicking_update_fails_alone() {
    let storage = open().with_deadline(Duration::from_secs(2));
    let failed = storage.update(key("p"), |_| panic!("a bug of the game's")).await;
    assert!(matches!(failed, Err(StorageError::Backend(_))));
    storage.insert(key("p"), body(1)).await.unwrap();
}
