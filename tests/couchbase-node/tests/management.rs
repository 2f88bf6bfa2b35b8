//! Scopes, collections, buckets, pings and connections as the SDK's own tests expect them.

mod support;

use std::time::Duration;

use couchbase::diagnostics::ConnectionState;
use couchbase::error::ErrorKind;
use couchbase::management::buckets::bucket_settings::BucketSettings;
use couchbase::management::collections::collection_settings::{
    CreateCollectionSettings, MaxExpiryValue, UpdateCollectionSettings,
};
use couchbase::options::diagnostic_options::PingOptions;
use couchbase::results::diagnostics::PingState;
use couchbase::service_type::ServiceType;
use tokio::time::timeout;

use support::{anywhere, connect, new_key, new_name, on_ours};

#[test]
fn scopes_and_collections_come_change_and_go() {
    anywhere(async |place| {
        let manager = place.bucket.collections();
        let (scope, name) = (new_name(), new_name());
        manager.create_scope(&scope, None).await.unwrap();
        let again = manager.create_scope(&scope, None).await.unwrap_err();
        assert_eq!(again.kind(), &ErrorKind::ScopeExists);
        let settings = |seconds| MaxExpiryValue::Seconds(Duration::from_secs(seconds));
        let create = CreateCollectionSettings::new().max_expiry(settings(2000));
        manager.create_collection(&scope, &name, create.clone(), None).await.unwrap();
        let again = manager.create_collection(&scope, &name, create, None).await.unwrap_err();
        assert_eq!(again.kind(), &ErrorKind::CollectionExists);
        let update = UpdateCollectionSettings::new().max_expiry(settings(7000));
        manager.update_collection(&scope, &name, update, None).await.unwrap();
        let scopes = manager.get_all_scopes(None).await.unwrap();
        let found = scopes.iter().find(|found| found.name() == scope).unwrap();
        let [collection] = found.collections() else { panic!("one collection") };
        assert_eq!((collection.name(), collection.scope_name()), (name.as_str(), scope.as_str()));
        assert_eq!(collection.max_expiry(), settings(7000));
        assert!(!collection.history());

        let documents = place.bucket.scope(&scope).collection(&name);
        let key = new_key();
        documents.upsert(&key, "here", None).await.unwrap();
        let elsewhere = place.collection().get(&key, None).await.unwrap_err();
        assert_eq!(elsewhere.kind(), &ErrorKind::DocumentNotFound);
        assert_eq!(
            documents.get(&key, None).await.unwrap().content_as::<String>().unwrap(),
            "here"
        );

        manager.drop_collection(&scope, &name, None).await.unwrap();
        let again = manager.drop_collection(&scope, &name, None).await.unwrap_err();
        assert_eq!(again.kind(), &ErrorKind::CollectionNotFound);
        manager.drop_scope(&scope, None).await.unwrap();
        let again = manager.drop_scope(&scope, None).await.unwrap_err();
        assert_eq!(again.kind(), &ErrorKind::ScopeNotFound);
    });
}

#[test]
fn a_collection_that_is_not_there_is_waited_for_without_an_end() {
    anywhere(async |place| {
        let nowhere = place.bucket.scope("_default").collection(new_name());
        let waited = timeout(Duration::from_millis(500), nowhere.get("key", None)).await;
        assert!(waited.is_err());
    });
}

#[test]
fn a_bucket_that_is_not_there_is_waited_for_without_an_end() {
    anywhere(async |place| {
        let nowhere = place.client.bucket("idonotexistonthiscluster").default_collection();
        let waited = timeout(Duration::from_millis(500), nowhere.upsert("key", "test", None)).await;
        assert!(waited.is_err());
    });
}

#[test]
fn buckets_come_and_go() {
    on_ours(2, async |place| {
        let manager = place.client.buckets();
        let settings = BucketSettings::new("second").ram_quota_mb(100_u64);
        manager.create_bucket(settings.clone(), None).await.unwrap();
        let again = manager.create_bucket(settings, None).await.unwrap_err();
        assert_eq!(again.kind(), &ErrorKind::BucketExists);
        let bucket = place.client.bucket("second");
        bucket.wait_until_ready(None).await.unwrap();
        bucket.default_collection().upsert("key", 1, None).await.unwrap();
        let names: Vec<String> = manager
            .get_all_buckets(None)
            .await
            .unwrap()
            .into_iter()
            .map(|found| found.name)
            .collect();
        assert_eq!(names, ["greenroom", "second"]);
        manager.drop_bucket("second", None).await.unwrap();
        let again = manager.drop_bucket("second", None).await.unwrap_err();
        assert_eq!(again.kind(), &ErrorKind::BucketNotFound);
    });
}

#[test]
fn every_node_answers_a_ping() {
    on_ours(3, async |place| {
        let services = vec![ServiceType::KV, ServiceType::QUERY];
        let options =
            PingOptions::new().service_types(services).kv_timeout(Duration::from_secs(10));
        let report = place.bucket.ping(options).await.unwrap();
        assert!(report.config_rev > 0);
        for service in [ServiceType::KV, ServiceType::QUERY] {
            let nodes = &report.services[&service];
            assert_eq!(nodes.len(), 3);
            assert!(nodes.iter().all(|node| node.state == PingState::Ok && node.error.is_none()));
        }
    });
}

#[test]
fn the_client_says_where_it_is_connected() {
    on_ours(1, async |place| {
        place.client.wait_until_ready(None).await.unwrap();
        let report = place.client.diagnostics(None).await.unwrap();
        assert!(report.config_rev > 0);
        let nodes = &report.services[&ServiceType::KV];
        assert!(!nodes.is_empty());
        assert!(nodes.iter().all(|node| node.state == ConnectionState::Connected));
    });
}

#[test]
fn a_dropped_client_says_so() {
    on_ours(1, async |place| {
        let collection = {
            let address = place.ours().connection_string();
            let client = connect(&address, "Administrator", "password").await;
            let bucket = client.bucket("greenroom");
            bucket.wait_until_ready(None).await.unwrap();
            bucket.default_collection()
        };
        let refusal = collection.upsert("key", 1, None).await.unwrap_err();
        assert_eq!(refusal.kind(), &ErrorKind::ClusterDropped);
    });
}
