//! What goes wrong on command, as a client sees it: only our nodes do it.

mod support;

use std::time::Duration;

use couchbase::authenticator::PasswordAuthenticator;
use couchbase::cluster::Cluster as Client;
use couchbase::durability_level::DurabilityLevel;
use couchbase::error::ErrorKind;
use couchbase::options::cluster_options::{ClusterOptions, TlsOptions};
use couchbase::options::kv_options::{GetOptions, UpsertOptions};
use greenroom_couchbase_node::{Cluster, Fault, Misbehaviour, Options, Requests, Right, Tls, User};
use serde_json::json;
use tokio::time::{Instant, timeout};

use support::{connect, never, new_key, on, on_ours};

/// An upsert that is not retried.
fn once() -> UpsertOptions {
    UpsertOptions::new().retry_strategy(never())
}

#[test]
fn refusals_have_their_kinds_and_apply_nothing() {
    on_ours(2, async |place| {
        let (collection, faults) = (place.collection(), place.ours().faults().clone());
        for (what, kind) in [
            (Misbehaviour::TemporaryFailure, ErrorKind::TemporaryFailure),
            (Misbehaviour::Locked, ErrorKind::DocumentLocked),
            (Misbehaviour::DurabilityImpossible, ErrorKind::DurabilityImpossible),
            (Misbehaviour::AmbiguousLost, ErrorKind::DurabilityAmbiguous),
            (Misbehaviour::SyncWriteInProgress, ErrorKind::DurabilityWriteInProgress),
            (Misbehaviour::SyncWriteRecommit, ErrorKind::DurableWriteRecommitInProgress),
        ] {
            let key = new_key();
            faults.add(Fault::new(what).key(&key).times(1));
            let error = collection.upsert(&key, 1, once()).await.unwrap_err();
            assert_eq!(error.kind(), &kind, "{what:?}");
            let nothing = collection.get(&key, None).await.unwrap_err();
            assert_eq!(nothing.kind(), &ErrorKind::DocumentNotFound, "{what:?}");
        }
        assert_eq!(faults.happened(), 6);
    });
}

#[test]
fn an_answer_that_is_lost_leaves_the_write_and_nobody_told() {
    on_ours(1, async |place| {
        let (collection, faults) = (place.collection(), place.ours().faults().clone());
        for what in
            [Misbehaviour::AnswerSwallowed, Misbehaviour::HalfAnswer, Misbehaviour::CutAfter]
        {
            let key = new_key();
            faults.add(Fault::new(what).key(&key).times(1));
            let told =
                timeout(Duration::from_millis(500), collection.upsert(&key, 1, once())).await;
            if let Ok(told) = told {
                let error = told.unwrap_err().to_string();
                assert!(error.contains("Closed in flight"), "{what:?}: {error}");
            }
            assert!(collection.get(&key, None).await.is_ok(), "{what:?}");
        }
        for what in [Misbehaviour::RequestSwallowed, Misbehaviour::CutBefore] {
            let key = new_key();
            faults.add(Fault::new(what).key(&key).times(1));
            let told =
                timeout(Duration::from_millis(500), collection.upsert(&key, 1, once())).await;
            assert!(told.is_err() || told.unwrap().is_err());
            let nothing = collection.get(&key, None).await.unwrap_err();
            assert_eq!(nothing.kind(), &ErrorKind::DocumentNotFound, "{what:?}");
        }
    });
}

#[test]
fn a_late_answer_is_overtaken() {
    on_ours(1, async |place| {
        let (collection, faults) = (place.collection(), place.ours().faults().clone());
        let key = new_key();
        faults.add(Fault::new(Misbehaviour::Late(1_000)).key(&key));
        let begun = Instant::now();
        let (late, other) = (collection.upsert(&key, 1, once()), async {
            collection.upsert("other", 1, once()).await.unwrap();
            begun.elapsed()
        });
        let (late, other) = tokio::join!(late, other);
        late.unwrap();
        assert!(begun.elapsed() >= Duration::from_secs(1) && other < Duration::from_secs(1));
    });
}

#[test]
fn a_moved_part_is_followed_whether_or_not_the_client_is_told() {
    on_ours(3, async |place| {
        let collection = place.collection();
        for (round, in_secret) in [(0, true), (1, false)] {
            for part in 0..64 {
                place.ours().move_part(
                    "greenroom",
                    part,
                    (usize::from(part) + round) % 3,
                    in_secret,
                );
            }
            for number in 0..100 {
                let key = format!("moved-{number}");
                collection.upsert(&key, round, None).await.unwrap();
                let got = collection.get(&key, None).await.unwrap();
                assert_eq!(got.content_as::<usize>().unwrap(), round);
            }
        }
        assert_eq!(place.ours().documents("greenroom", "_default", "_default").len(), 100);
    });
}

#[test]
fn a_failover_keeps_what_was_copied_and_durable_writes_need_the_copies() {
    on_ours(3, async |place| {
        let (collection, cluster) = (place.collection(), place.ours());
        let durable = || once().durability_level(DurabilityLevel::MAJORITY);
        for number in 0..60 {
            collection.upsert(format!("copied-{number}"), number, durable()).await.unwrap();
        }
        cluster.set_copying(false);
        collection.upsert("alone", 1, once()).await.unwrap();
        let error = collection.upsert("alone", 2, durable()).await.unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::DurabilityAmbiguous);
        cluster.set_copying(true);
        cluster.stop_node(2).await;
        let mut impossible = 0;
        for number in 0..60 {
            let key = format!("copied-{number}");
            let upsert =
                timeout(Duration::from_millis(200), collection.upsert(&key, number, durable()));
            if let Ok(Err(error)) = upsert.await {
                assert_eq!(error.kind(), &ErrorKind::DurabilityImpossible);
                impossible += 1;
            }
            if impossible == 3 {
                break;
            }
        }
        assert_eq!(impossible, 3);
        cluster.fail_over(2);
        for number in 0..60 {
            let got = collection.get(format!("copied-{number}"), None).await.unwrap();
            assert_eq!(got.content_as::<u64>().unwrap(), number);
        }
        cluster.start_node(2).unwrap();
        cluster.rebalance();
        collection.upsert("whole again", 1, durable()).await.unwrap();
    });
}

#[test]
fn a_node_comes_back_on_its_ports_and_the_client_goes_on() {
    on_ours(1, async |place| {
        let (collection, cluster) = (place.collection(), place.ours());
        collection.upsert("key", 1, None).await.unwrap();
        cluster.stop_node(0).await;
        assert!(timeout(Duration::from_millis(300), collection.get("key", None)).await.is_err());
        cluster.start_node(0).unwrap();
        let got = timeout(Duration::from_secs(20), collection.get("key", None)).await.unwrap();
        assert_eq!(got.unwrap().content_as::<u64>().unwrap(), 1);
    });
}

#[test]
fn documents_buckets_and_collections_outlive_the_cluster() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { folder: Some(folder.path().to_owned()), ..Options::nodes(2) };
    let ports = std::cell::RefCell::new(Vec::new());
    on(options.clone(), async |place| {
        let manager = place.bucket.collections();
        manager.create_scope("kept", None).await.unwrap();
        manager.create_collection("kept", "docs", None, None).await.unwrap();
        let documents = place.bucket.scope("kept").collection("docs");
        documents.upsert("a", json!({"n": 1}), None).await.unwrap();
        documents.upsert("b", json!({"n": 2}), None).await.unwrap();
        documents.remove("b", None).await.unwrap();
        *ports.borrow_mut() = place.ours().ports();
    });
    let options = Options { ports: ports.take(), ..options };
    on(options.clone(), async |place| {
        assert_eq!(place.ours().ports(), options.ports);
        let documents = place.bucket.scope("kept").collection("docs");
        let got = documents.get("a", None).await.unwrap();
        assert_eq!(got.content_as::<serde_json::Value>().unwrap(), json!({"n": 1}));
        let gone = documents.get("b", None).await.unwrap_err();
        assert_eq!(gone.kind(), &ErrorKind::DocumentNotFound);
    });
}

#[test]
fn a_document_goes_when_the_clock_says_so() {
    on_ours(2, async |place| {
        let collection = place.collection();
        let options = UpsertOptions::new().expiry(Duration::from_secs(60));
        collection.upsert("short", 1, options).await.unwrap();
        place.ours().clock().advance(Duration::from_secs(58));
        assert!(collection.get("short", GetOptions::new()).await.is_ok());
        place.ours().clock().advance(Duration::from_secs(3));
        let gone = collection.get("short", None).await.unwrap_err();
        assert_eq!(gone.kind(), &ErrorKind::DocumentNotFound);
        collection.insert("short", 2, None).await.unwrap();
    });
}

#[test]
fn a_user_does_what_its_rights_allow_and_a_wrong_password_is_refused_for_ever() {
    on_ours(1, async |place| {
        let cluster = place.ours();
        let rights = [Right::Read].into();
        cluster.put_user(User { name: "reader".into(), password: "p,=ass".into(), rights });
        place.collection().upsert("key", 1, None).await.unwrap();
        let client = connect(&cluster.connection_string(), "reader", "p,=ass").await;
        let bucket = client.bucket("greenroom");
        bucket.wait_until_ready(None).await.unwrap();
        let collection = bucket.default_collection();
        assert!(collection.get("key", None).await.is_ok());
        let error = collection.upsert("key", 2, once()).await.unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::AuthenticationFailure);
        let Err(error) = client.query("SELECT 1", None).await else { panic!("no right to ask") };
        assert_eq!(error.kind(), &ErrorKind::AuthenticationFailure);
        assert!(bucket.collections().create_scope("s", None).await.is_err());
        let options = ClusterOptions::new(PasswordAuthenticator::new("reader", "wrong").into());
        let address = cluster.connection_string();
        let wrong = timeout(Duration::from_millis(1500), Client::connect(address, options)).await;
        assert!(wrong.is_err());
    });
}

#[test]
fn over_tls_the_certificate_must_verify() {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let tls = Tls { certificate: made.cert.pem(), key: made.signing_key.serialize_pem() };
    let other = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let options = Options { tls: Some(tls), ..Options::nodes(1) };
    on(options, async |place| {
        let address = place.ours().tls_connection_string();
        let with = |certificate: &rcgen::Certificate| {
            let tls = TlsOptions::new().add_ca_certificate(certificate.der().clone());
            let authenticator = PasswordAuthenticator::new("Administrator", "password");
            let options = ClusterOptions::new(authenticator.into()).tls_options(tls);
            Client::connect(address.clone(), options)
        };
        let client = with(&made.cert).await.unwrap();
        let bucket = client.bucket("greenroom");
        bucket.wait_until_ready(None).await.unwrap();
        bucket.default_collection().upsert("key", 1, None).await.unwrap();
        client.query("SELECT 1", None).await.unwrap();
        let wrong = timeout(Duration::from_millis(1500), with(&other.cert)).await;
        assert!(wrong.is_err());
    });
}

#[test]
fn stale_authentication_is_told_and_reads_may_go_wrong_too() {
    on_ours(1, async |place| {
        let (collection, faults) = (place.collection(), place.ours().faults().clone());
        collection.upsert("key", 1, None).await.unwrap();
        faults.add(Fault::new(Misbehaviour::StaleAuthentication).times(1));
        let error = collection.upsert("key", 2, once()).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::OtherFailure(_)), "{error:?}");
        faults.add(Fault::new(Misbehaviour::TemporaryFailure).on(Requests::Reads).times(1));
        let options = GetOptions::new().retry_strategy(never());
        let error = timeout(Duration::from_secs(2), collection.get("key", options)).await;
        // The connection may be of no more use after stale authentication: then nothing is told at all.
        if let Ok(told) = error {
            assert_eq!(told.unwrap_err().kind(), &ErrorKind::TemporaryFailure);
        }
    });
}

#[test]
fn a_cluster_stops_and_leaves_its_ports() {
    on_ours(1, async |place| {
        let cluster = place.cluster.unwrap();
        let ports = cluster.ports();
        cluster.stop().await;
        let again = Cluster::start(Options { ports, ..Options::nodes(1) });
        assert!(again.is_ok());
    });
}
