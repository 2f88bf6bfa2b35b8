//! A snapshot that no build can read is kept, shown to whoever looks, and is of use again when a build can.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use greenroom::client::{Client, Code, Event, InstanceId, Room};
use greenroom_games::vault::{Add, Vault};
use greenroom_protocol::search::Filter;
use greenroom_storage::{Blob, Body, Collection, Key, Query, Schema, Storage, StorageConfig};
use serde_json::Value;

use crate::harness::{Cluster, error_of, event, run, wait_until};

/// The version of its kind, as a snapshot has it: a field of a map in MessagePack.
const AS_WRITTEN: &[u8] = b"\xa7version\x01";
const OF_A_NEWER_GAME: &[u8] = b"\xa7version\x02";

/// The same snapshot, as another version of its kind wrote it.
fn of_version(body: &Body, from: &[u8], to: &[u8]) -> Body {
    let mut json: Value = body.decode().unwrap();
    let state: Blob = serde_json::from_value(json["state"].take()).unwrap();
    let mut state = state.0.to_vec();
    let at = state.windows(from.len()).position(|part| part == from).unwrap();
    state[at..at + to.len()].copy_from_slice(to);
    json["state"] = serde_json::to_value(Blob(state.into())).unwrap();
    Body::of(&json).unwrap()
}

async fn added(room: &mut Room, count: u64) {
    let is_it = |room: &mut Room| {
        let kept = i64::try_from(count).unwrap();
        room.state::<Vault>().is_ok_and(|vault| vault == Vault { added: count, kept })
    };
    if !is_it(room) {
        event(room, "what was added", |room, _| is_it(room).then_some(())).await;
    }
}

/// What `greenroom store` says, and whether it ended well.
fn store(cluster: &Cluster, args: &[&str]) -> (bool, String) {
    let output = run(&[&["store"], args, &["--data", cluster.folder.text()]].concat());
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.success(), said + &String::from_utf8_lossy(&output.stderr))
}

fn restore(cluster: &Cluster, instance: InstanceId) -> (bool, String) {
    store(cluster, &["restore", &instance.to_string(), "--admin", cluster.admin()])
}

/// The monitor's first page.
fn page(cluster: &Cluster) -> String {
    let mut stream = TcpStream::connect(cluster.admin()).unwrap();
    write!(
        stream,
        "GET / HTTP/1.1\r\nhost: localhost\r\naccept: text/html\r\nconnection: close\r\n\r\n"
    )
    .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// A game server reads a snapshot that a newer game wrote. It is kept and told of: by `store check`, `status` and the
/// monitor. It is tried again when an operator says so, and set aside again as long as it can't be read; then it goes
/// on, whole and with its key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_cannot_be_read_is_kept_and_shown_and_goes_on_once_it_can() {
    let mut cluster = Cluster::start(1, 1);
    let connect =
        async |name: &str| -> Client { cluster.client().guest(name).connect().await.unwrap() };
    let (ann, bo) = (connect("Ann").await, connect("Bo").await);
    let mut room = ann.join_or_create("vault").key("safe").await.unwrap();
    let instance = room.instance();
    room.send(&Add).unwrap();
    added(&mut room, 1).await;

    let url = format!("sqlite:{}", cluster.folder.path().join("store.sqlite").display()).into();
    let config = StorageConfig { store: url, ..StorageConfig::default() };
    let storage: Storage = greenroom_storage::open(&config, Schema::default()).unwrap();
    let own = Key::new(Collection::Snapshots, instance.to_string()).unwrap();
    let tick = u64::from(room.view().unwrap().tick);
    let stored = loop {
        let stored = storage.get(own.clone()).await.unwrap().unwrap();
        if stored.body.decode::<Value>().unwrap()["tick"].as_u64() >= Some(tick) {
            break stored;
        }
        tokio::task::yield_now().await;
    };
    cluster.games.remove(0).kill();
    let newer = of_version(&stored.body, AS_WRITTEN, OF_A_NEWER_GAME);
    storage.replace(own.clone(), newer, stored.version).await.unwrap();
    cluster.start_game(&[]);
    let why = event(&mut room, "the end", |_, event| match event {
        Event::Left(refusal) => Some(refusal),
        _ => None,
    });
    assert_eq!(why.await.code, Code::InstanceFailed);

    // Whoever looks is told.
    let mut said = String::new();
    wait_until("the note of it", || {
        let is_well;
        (is_well, said) = store(&cluster, &["check"]);
        !is_well
    });
    for part in [
        &*instance.to_string(),
        "\"vault\"",
        "of version 2",
        "version 2 of this kind can't be read",
        "store restore",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let is_told = |status: &greenroom_protocol::wire::admin_master::Status| {
        status.masters[0].troubles.iter().any(|trouble| trouble.contains("1 snapshot is set aside"))
    };
    cluster.wait_for("the word of it in the status", is_told);
    wait_until("the word of it on the page", || page(&cluster).contains("1 snapshot is set aside"));
    assert!(storage.get(own.clone()).await.unwrap().is_none(), "its key in the store is free");

    // Tried again, it is no better.
    let (is_well, said) = restore(&cluster, instance);
    assert!(!is_well && said.contains("set aside again") && said.contains("version 2"), "{said}");
    let (is_well, said) = store(&cluster, &["check"]);
    assert!(!is_well && said.matches(&instance.to_string()).count() >= 1, "{said}");
    assert_eq!(said.lines().count(), 1, "the newest life alone is noted: {said}");

    // A build that can read it. Here, it is as the one at hand wrote it.
    let kept =
        storage.query(Query::new(Collection::Snapshots, Filter::And(Vec::new()))).await.unwrap();
    let kept = kept.documents.into_iter().find(|(key, _)| key.id().starts_with("unreadable/"));
    let (key, document) = kept.unwrap();
    let readable = of_version(&document.body, OF_A_NEWER_GAME, AS_WRITTEN);
    storage.upsert(key, readable).await.unwrap();
    // Somebody else has its unique key meanwhile.
    let other = bo.create("vault").key("safe").await.unwrap();
    assert_ne!(other, instance);
    let (is_well, said) = restore(&cluster, instance);
    assert!(!is_well && said.contains("key_taken") && said.contains(&other.to_string()), "{said}");
    bo.destroy(other).await.unwrap();

    let (is_well, said) = restore(&cluster, instance);
    assert!(is_well && said.contains("goes on, on "), "{said}");
    let mut room = bo.join_or_create("vault").key("safe").await.unwrap();
    assert_eq!(room.instance(), instance);
    added(&mut room, 1).await;
    room.send(&Add).unwrap();
    added(&mut room, 2).await;
    let (is_well, said) = store(&cluster, &["check"]);
    assert!(is_well, "{said}");
    cluster.wait_for("the end of the trouble", |status| !is_told(status));
    let nothing =
        run(&["store", "restore", &instance.to_string(), "--data", cluster.folder.text()]);
    assert!(error_of(&nothing).contains("is set aside"), "{nothing:?}");
}
