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

/// What only our nodes do: going wrong on command.
mod when_it_goes_wrong {
    use greenroom_couchbase_node::{Background, Fault, Misbehaviour, Options, Requests};
    use greenroom_storage::contract::schema;
    use greenroom_storage::{
        Body, Collection, Expiry, Key, Owner, Storage, StorageConfig, StorageError, Write, open,
    };
    use serde_json::json;

    use super::*;

    fn start(deadline: Duration, request: Duration) -> (Background, Storage) {
        let cluster = Background::start(Options::nodes(3)).unwrap();
        let config = StorageConfig {
            deadline,
            couchbase_request_timeout: request,
            ..super::config(&cluster.connection_string())
        };
        let storage = open(&config, schema()).unwrap();
        (cluster, storage)
    }

    fn key(id: &str) -> Key {
        Key::new(Collection::Documents, id).unwrap()
    }

    /// Waits until every request that was put off is applied, or gone with its connection.
    async fn nothing_wanders(cluster: &Background) {
        let gone = async {
            while cluster.faults().put_off() > 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), gone).await.unwrap();
    }

    /// Under every kind of misbehaviour at once, each counter is what was acknowledged, and each key keeps its order.
    #[tokio::test]
    async fn nothing_is_lost_nothing_happens_twice_and_the_order_stays() {
        const KEYS: usize = 8;
        const ROUNDS: i64 = 25;
        let (cluster, storage) = start(Duration::from_secs(60), Duration::from_millis(250));
        for what in [
            Misbehaviour::AnswerSwallowed,
            Misbehaviour::AmbiguousApplied,
            Misbehaviour::AmbiguousLost,
            Misbehaviour::RequestSwallowed,
            Misbehaviour::TemporaryFailure,
            Misbehaviour::Locked,
            Misbehaviour::SyncWriteInProgress,
            Misbehaviour::NotMyVbucket,
            // Applied when it has long been given up: by then the document has another version.
            Misbehaviour::Slow(400),
            Misbehaviour::Late(400),
        ] {
            cluster.faults().add(Fault::new(what).probability(0.02));
        }
        for what in [Misbehaviour::HalfAnswer, Misbehaviour::CutAfter, Misbehaviour::CutBefore] {
            cluster.faults().add(Fault::new(what).probability(0.005));
        }
        let busy = Fault::new(Misbehaviour::Busy).on(Requests::Reads);
        cluster.faults().add(busy.probability(0.02));
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..KEYS {
            let storage = storage.clone();
            tasks.spawn(async move {
                let (counted, ordered) =
                    (key(&format!("count {number}")), key(&format!("order {number}")));
                let mut last = None;
                for round in 1..=ROUNDS {
                    assert_eq!(storage.count(counted.clone(), 1).await.unwrap(), round);
                    let body = Body::of(&json!({ "round": round })).unwrap();
                    last =
                        Some(storage.submit(Write::upsert(ordered.clone(), body)).await.unwrap());
                }
                last.unwrap().await.unwrap();
                let read = storage.get(ordered).await.unwrap().unwrap();
                assert_eq!(read.body.decode::<serde_json::Value>().unwrap()["round"], ROUNDS);
            });
        }
        while let Some(task) = tasks.join_next().await {
            task.unwrap();
        }
        assert!(cluster.faults().happened() > 20, "{} went wrong", cluster.faults().happened());
        // What wandered about is applied by now, if it could be; and still nothing has changed.
        cluster.faults().clear();
        nothing_wanders(&cluster).await;
        let stored = cluster.documents("greenroom", "greenroom", "documents");
        for number in 0..KEYS {
            assert_eq!(stored[&format!("count {number}")]["count"], ROUNDS);
            assert_eq!(stored[&format!("order {number}")]["round"], ROUNDS);
        }
        storage.close().await;
    }

    /// A removal whose insert still wanders about stays a removal.
    #[tokio::test]
    async fn a_late_insert_does_not_bring_back_what_was_removed() {
        let (cluster, storage) = start(Duration::from_secs(20), Duration::from_millis(200));
        cluster.faults().add(Fault::new(Misbehaviour::Slow(5_000)).key("late").times(1));
        let body = Body::of(&json!({})).unwrap();
        storage.insert(key("late"), body).await.unwrap();
        storage.remove(key("late"), None).await.unwrap();
        assert_eq!(cluster.faults().put_off(), 1, "the first attempt still wanders about");
        nothing_wanders(&cluster).await;
        assert_eq!(storage.get(key("late")).await.unwrap(), None);
    }

    /// An answer that never comes is told as undecided, and by the id in the document it is decided later.
    #[tokio::test]
    async fn what_nobody_knows_at_the_deadline_is_undecided() {
        let (cluster, storage) = start(Duration::from_secs(3), Duration::from_millis(500));
        cluster
            .faults()
            .add(Fault::new(Misbehaviour::RequestSwallowed).key("silent").on(Requests::All));
        let body = Body::of(&json!({})).unwrap();
        let told = storage.upsert(key("silent"), body.clone()).await;
        assert!(matches!(told, Err(StorageError::Unavailable(_))), "{told:?}");
        cluster.faults().clear();
        cluster.faults().add(Fault::new(Misbehaviour::AnswerSwallowed).key("half"));
        cluster
            .faults()
            .add(Fault::new(Misbehaviour::RequestSwallowed).key("half").on(Requests::Reads));
        let told = storage.insert(key("half"), body).await;
        assert!(matches!(told, Err(StorageError::Undecided { .. })), "{told:?}");
        cluster.faults().clear();
        assert!(storage.get(key("half")).await.unwrap().is_some());
    }

    /// After stale authentication the SDK's connection is wedged for ever: ours is made anew.
    #[tokio::test]
    async fn a_wedged_connection_is_made_anew() {
        let (cluster, storage) = start(Duration::from_secs(30), Duration::from_millis(300));
        cluster.faults().add(Fault::new(Misbehaviour::StaleAuthentication).times(1));
        for number in 0..20 {
            let body = Body::of(&json!({ "number": number })).unwrap();
            storage.upsert(key(&format!("wedge {number}")), body).await.unwrap();
        }
    }

    /// The whole cluster goes and comes back on its ports: what is asked meanwhile waits, and is stored once.
    #[tokio::test]
    async fn a_cluster_that_goes_and_comes_back_is_written_to_again() {
        let (cluster, storage) = start(Duration::from_secs(60), Duration::from_millis(500));
        for node in 0..3 {
            cluster.stop_node(node).await;
        }
        let asked = {
            let owner = Owner::Instance { incarnation: 1, n: 1 };
            let body = Body::of(&json!({ "result": "won" })).unwrap();
            storage.submit(Write::owned(key("match"), owner, body)).await.unwrap()
        };
        let short = storage.with_deadline(Duration::from_millis(300));
        let told = short.touch(key("other"), Expiry::Never).await;
        assert!(matches!(told, Err(StorageError::Unavailable(_))), "{told:?}");
        for node in 0..3 {
            cluster.start_node(node).unwrap();
        }
        asked.await.unwrap();
        assert_eq!(
            cluster.documents("greenroom", "greenroom", "documents")["match"]["result"],
            "won"
        );
    }

    /// Each wrong setting is told in words that say what to do.
    #[tokio::test]
    async fn what_is_wrong_is_said_in_words() {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let tls = greenroom_couchbase_node::Tls {
            certificate: made.cert.pem(),
            key: made.signing_key.serialize_pem(),
        };
        let cluster = Background::start(Options { tls: Some(tls), ..Options::nodes(1) }).unwrap();
        let right = StorageConfig {
            couchbase_connect_timeout: Duration::from_secs(2),
            ..super::config(&cluster.connection_string())
        };
        let said =
            |config: StorageConfig| open(&config, schema()).map(|_| ()).unwrap_err().to_string();
        let wrong = said(StorageConfig { couchbase_password: "guess".into(), ..right.clone() });
        assert!(wrong.contains("couchbase_password is wrong"), "{wrong}");
        let wrong = said(StorageConfig { couchbase_bucket: "nowhere".into(), ..right.clone() });
        assert!(wrong.contains("there is no bucket \"nowhere\""), "{wrong}");
        let wrong =
            said(StorageConfig { store: "couchbase://127.0.0.1:9".into(), ..right.clone() });
        assert!(wrong.contains("can't be reached"), "{wrong}");
        let wrong =
            said(StorageConfig { store: cluster.tls_connection_string().into(), ..right.clone() });
        assert!(wrong.contains("does not verify"), "{wrong}");
        let wrong = said(StorageConfig { couchbase_durability: "most".into(), ..right });
        assert!(wrong.contains("\"most\" is no durability"), "{wrong}");
    }
}

/// Making the store and looking after it.
mod set_up {
    use greenroom_couchbase_node::{Background, Options, Right, User};
    use greenroom_storage::contract::schema;
    use greenroom_storage::{Index, Schema, StorageConfig, check, init};

    fn start(nodes: usize) -> (Background, StorageConfig) {
        let user = |name: &str, rights: &[Right]| User {
            name: name.to_owned(),
            password: "password".to_owned(),
            rights: rights.iter().copied().collect(),
        };
        let mut options = Options::nodes(nodes);
        options.users.extend([
            user("player", &[Right::Read, Right::Write, Right::Query]),
            user("reader", &[Right::Read]),
        ]);
        let cluster = Background::start(options).unwrap();
        let config = StorageConfig {
            couchbase_connect_timeout: std::time::Duration::from_secs(60),
            ..super::config(&cluster.connection_string())
        };
        (cluster, config)
    }

    fn as_user(config: &StorageConfig, name: &str) -> StorageConfig {
        StorageConfig { couchbase_user: name.into(), ..config.clone() }
    }

    #[tokio::test]
    async fn what_is_missing_is_named_then_made_once_and_then_nothing_is_wrong() {
        let (_cluster, config) = start(3);
        let found = check(&config, &schema()).await.unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("the scope \"greenroom\" is missing"), "{found:?}");
        assert!(found[0].contains("greenroom store init"), "{found:?}");

        let told = init(&as_user(&config, "player"), &schema()).await.unwrap_err().to_string();
        assert!(told.contains("\"player\" has no right") && told.contains("store init"), "{told}");

        // Two at once make it together.
        let (config, schema) = (&config, &schema());
        let (one, other) = tokio::join!(init(config, schema), init(config, schema));
        assert!(one.unwrap().len() + other.unwrap().len() > 0);
        assert!(init(config, schema).await.unwrap().is_empty(), "it is all there");
        assert_eq!(check(config, schema).await.unwrap(), [""; 0]);
        // Who may only use it needs no more.
        assert!(init(&as_user(config, "player"), schema).await.unwrap().is_empty());
        assert_eq!(check(&as_user(config, "player"), schema).await.unwrap(), [""; 0]);
    }

    #[tokio::test]
    async fn a_missing_right_is_named_with_what_it_is_needed_for() {
        let (_cluster, config) = start(1);
        init(&config, &schema()).await.unwrap();
        let found = check(&as_user(&config, "reader"), &schema()).await.unwrap().join("\n");
        assert!(
            found.contains("writing at the level") && found.contains("\"reader\" has no right"),
            "{found}"
        );
        assert!(found.contains("queries are not possible"), "{found}");
    }

    #[tokio::test]
    async fn a_missing_index_is_named_and_made() {
        let (_cluster, config) = start(3);
        init(&config, &Schema::default()).await.unwrap();
        let found = check(&config, &schema()).await.unwrap();
        let names: Vec<String> = schema().indexes().iter().map(Index::name).collect();
        assert_eq!(found.len(), names.len(), "{found:?}");
        for name in names {
            assert!(
                found.iter().any(|found| found.contains(&format!("the index {name} of"))),
                "{found:?}"
            );
        }
        init(&config, &schema()).await.unwrap();
        assert_eq!(check(&config, &schema()).await.unwrap(), [""; 0]);
    }

    #[tokio::test]
    async fn durability_that_the_present_nodes_cannot_give_is_named() {
        let (cluster, config) = start(2);
        init(&config, &schema()).await.unwrap();
        cluster.fail_over(1);
        let found = check(&config, &schema()).await.unwrap().join("\n");
        assert!(found.contains("no write can be durable at the level"), "{found}");
        assert!(found.contains("start nodes"), "{found}");
        let without = StorageConfig { couchbase_durability: "none".into(), ..config };
        assert_eq!(check(&without, &schema()).await.unwrap(), [""; 0]);
    }

    #[tokio::test]
    async fn a_bucket_with_one_copy_of_each_document_is_named() {
        let (_cluster, config) = start(1);
        init(&config, &schema()).await.unwrap();
        let found = check(&config, &schema()).await.unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("keeps one copy of each document"), "{found:?}");
    }
}
