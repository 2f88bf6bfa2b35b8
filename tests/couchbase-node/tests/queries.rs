//! Queries and indexes as the SDK's own tests expect them, and what this node adds or refuses.

#![expect(clippy::unwrap_used, reason = "the helpers of a test fail with it")]

mod support;

use couchbase::error::ErrorKind;
use couchbase::options::query_index_mgmt_options::{
    CreatePrimaryQueryIndexOptions, CreateQueryIndexOptions,
};
use couchbase::options::query_options::QueryOptions;
use couchbase::results::query_results::QueryStatus;
use couchbase::scope::Scope;
use futures_util::StreamExt;
use serde_json::{Value, json};

use support::{Place, anywhere, new_name, on_ours};

async fn rows(scope: &Scope, statement: &str, options: QueryOptions) -> Vec<Value> {
    let mut result = scope.query(statement, options).await.unwrap();
    let mut rows = Vec::new();
    while let Some(row) = result.rows::<Value>().next().await {
        rows.push(row.unwrap());
    }
    rows
}

async fn refusal(scope: &Scope, statement: &str) -> couchbase::error::Error {
    match scope.query(statement, QueryOptions::new()).await {
        Ok(_) => panic!("{statement} is answered"),
        Err(error) => error,
    }
}

/// A collection of its own in a scope of its own.
async fn collection(place: &Place) -> (String, String) {
    let (scope, name) = (new_name(), new_name());
    let manager = place.bucket.collections();
    manager.create_scope(&scope, None).await.unwrap();
    manager.create_collection(&scope, &name, None, None).await.unwrap();
    (scope, name)
}

#[test]
fn a_query_without_a_collection_is_answered_with_its_metadata() {
    anywhere(async |place| {
        let scope = place.bucket.scope("_default");
        let mut result =
            scope.query("SELECT 1=1", QueryOptions::new().metrics(true)).await.unwrap();
        let mut rows = Vec::new();
        while let Some(row) = result.rows::<Value>().next().await {
            rows.push(row.unwrap());
        }
        assert_eq!(rows, [json!({"$1": true})]);
        let meta = result.metadata().unwrap();
        assert!(!meta.request_id.is_empty() && !meta.client_context_id.is_empty());
        assert_eq!(meta.status, QueryStatus::Success);
        let metrics = meta.metrics.as_ref().unwrap();
        assert!(!metrics.elapsed_time.is_zero());
        assert_eq!((metrics.result_count, metrics.mutation_count), (1, 0));
        assert_eq!(meta.signature.as_ref().unwrap().get(), "{\"$1\":\"boolean\"}");
    });
}

#[test]
fn a_typo_is_a_syntax_error() {
    anywhere(async |place| {
        let error = refusal(&place.bucket.scope("_default"), "SELEC 1=1").await;
        assert_eq!(error.kind(), &ErrorKind::ParsingFailure);
        assert!(error.to_string().contains("3000") && error.to_string().contains("syntax error"));
    });
}

#[test]
fn indexes_are_made_built_watched_and_dropped() {
    anywhere(async |place| {
        let (scope, name) = collection(&place).await;
        let indexes = place.bucket.scope(&scope).collection(&name).query_indexes();
        let of_all_keys = CreatePrimaryQueryIndexOptions::new().ignore_if_exists(true);
        indexes.create_primary_index(of_all_keys.clone()).await.unwrap();
        indexes.create_primary_index(of_all_keys).await.unwrap();
        let deferred = CreateQueryIndexOptions::new().ignore_if_exists(true).deferred(true);
        let create = |name: &str, fields: &[&str]| {
            let fields: Vec<String> = fields.iter().map(|field| (*field).to_owned()).collect();
            indexes.create_index(name.to_owned(), fields, deferred.clone())
        };
        create("test_index", &["name"]).await.unwrap();
        create(
            "test_index_nested",
            &["d.firstName", "d.permissions.`/admin/role`", "`d.firstName`"],
        )
        .await
        .unwrap();
        let all = indexes.get_all_indexes(None).await.unwrap();
        assert_eq!(all.len(), 3);
        let find = |name: &str| all.iter().find(|index| index.name() == name).unwrap();
        assert!(find("#primary").is_primary());
        assert_eq!(find("#primary").state(), "online");
        assert!(!find("test_index").is_primary());
        assert_eq!(
            (find("test_index").state(), find("test_index").keyspace()),
            ("deferred", name.as_str())
        );
        let keys = find("test_index_nested").index_key();
        assert!(keys[0].contains("`d`") && keys[0].contains("`firstName`"));
        assert!(keys[1].contains("`permissions`") && keys[1].contains("`/admin/role`"));
        assert_eq!(keys[2], "`d.firstName`");
        indexes.build_deferred_indexes(None).await.unwrap();
        let names = vec!["test_index".to_owned(), "test_index_nested".to_owned()];
        indexes.watch_indexes(names, None).await.unwrap();
        indexes.drop_primary_index(None).await.unwrap();
        indexes.drop_index("test_index".to_owned(), None).await.unwrap();
        indexes.drop_index("test_index_nested".to_owned(), None).await.unwrap();
        let gone = indexes.drop_index("test_index".to_owned(), None).await.unwrap_err();
        assert_eq!(gone.kind(), &ErrorKind::IndexNotFound);
        assert!(indexes.get_all_indexes(None).await.unwrap().is_empty());
        place.bucket.collections().drop_scope(&scope, None).await.unwrap();
    });
}

#[test]
fn documents_are_found_sorted_and_paged() {
    on_ours(3, async |place| {
        let (scope, name) = collection(&place).await;
        let scope = place.bucket.scope(&scope);
        let documents = scope.collection(&name);
        for (id, document) in [
            ("a", json!({"level": 3, "name": "ann", "tags": ["x"]})),
            ("b", json!({"level": 1, "name": "bo"})),
            ("c", json!({"level": "high", "name": "cy", "guild": null})),
            ("d", json!({"name": "di_%"})),
        ] {
            documents.upsert(id, document, None).await.unwrap();
        }
        let nothing =
            refusal(&scope, &format!("SELECT d.* FROM `{name}` AS d WHERE d.level > 0")).await;
        assert_eq!(nothing.kind(), &ErrorKind::PlanningFailure);
        assert!(nothing.to_string().contains("No index available"));
        documents
            .query_indexes()
            .create_index("by_id".to_owned(), vec!["META().id".to_owned()], None)
            .await
            .unwrap();
        let ids = async |condition: &str, parameters: &[(&str, Value)]| {
            let mut options = QueryOptions::new();
            for (name, value) in parameters {
                options = options.add_named_parameter(*name, value.clone()).unwrap();
            }
            let statement = format!(
                "SELECT META(d).id FROM `{name}` AS d WHERE META(d).id >= '' AND ({condition}) ORDER BY META(d).id"
            );
            let rows = rows(&scope, &statement, options).await;
            rows.iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect::<String>()
        };
        assert_eq!(ids("true", &[]).await, "abcd");
        assert_eq!(ids("ISNUMBER(d.level) AND d.level <= $most", &[("most", json!(2))]).await, "b");
        assert_eq!(ids("d.level IS MISSING", &[]).await, "d");
        assert_eq!(ids("d.level IS NOT MISSING AND d.guild IS NULL", &[]).await, "c");
        assert_eq!(ids("d.name IN $names", &[("names", json!(["bo", "cy"]))]).await, "bc");
        assert_eq!(ids("d.name NOT IN ['bo', 'cy']", &[]).await, "ad");
        assert_eq!(ids("d.name LIKE 'di\\\\_\\\\%'", &[]).await, "d");
        assert_eq!(ids("NOT (d.level = 3)", &[]).await, "bc");
        assert_eq!(ids("d.level BETWEEN 1 AND 2 OR ARRAY_CONTAINS(d.tags, 'x')", &[]).await, "ab");
        let statement = format!(
            "SELECT META(d).id, d.`level` FROM `{name}` AS d WHERE META(d).id > 'a' \
             ORDER BY CASE WHEN ISNUMBER(d.level) THEN 0 ELSE 1 END, d.level DESC, META(d).id LIMIT $limit"
        );
        let options = QueryOptions::new().add_named_parameter("limit", 2).unwrap();
        let page = rows(&scope, &statement, options).await;
        assert_eq!(page, [json!({"id": "b", "level": 1}), json!({"id": "c", "level": "high"})]);
        let statement = format!("SELECT COUNT(*) AS n FROM `{name}` AS d WHERE META(d).id >= ''");
        assert_eq!(rows(&scope, &statement, QueryOptions::new()).await, [json!({"n": 4})]);
    });
}

#[test]
fn what_is_not_known_is_refused_by_its_name() {
    on_ours(1, async |place| {
        let scope = place.bucket.scope("_default");
        for (statement, name) in [
            ("UPDATE `greenroom` SET a = 1", "UPDATE"),
            ("SELECT DISTINCT 1", "DISTINCT"),
            ("SELECT REGEXP_LIKE('a', 'b')", "REGEXP_LIKE"),
            ("SELECT * FROM system:keyspaces", "system:keyspaces"),
        ] {
            let error = refusal(&scope, statement).await.to_string();
            assert!(error.contains(name), "{statement}: {error}");
        }
        let error = refusal(&scope, "SELECT $nobody").await.to_string();
        assert!(error.contains("nobody"), "{error}");
        let error = refusal(&scope, "SELECT d.* FROM `nowhere` AS d").await;
        assert_eq!(error.kind(), &ErrorKind::CollectionNotFound);
    });
}
