//! What a bucket needs before it is a store: a scope, collections and indexes. Made if it is not there, or only named.

use std::collections::BTreeSet;
use std::future::Future;
use std::time::Duration;

use couchbase::durability_level::DurabilityLevel;
use couchbase::error::{Error, ErrorKind};
use couchbase::management::collections::collection_settings::CreateCollectionSettings;
use couchbase::options::kv_options::UpsertOptions;
use couchbase::options::query_index_mgmt_options::CreateQueryIndexOptions;
use couchbase::options::query_options::QueryOptions;
use ecow::{EcoString, eco_format};
use futures_util::future::join_all;
use tokio::time::{Instant, timeout};

use super::connection::{Connection, Keeper};
use crate::{Collection, OpenError, Schema};

/// The index by which every query can be answered, if none is better: of all ids.
const ALL_IDS: &str = "by_id";

/// How long a scope or a collection that was made may take until the nodes know it.
const KNOWN: Duration = Duration::from_secs(30);

/// Documents that are written to see whether that is possible.
const PROBES: usize = 32;

/// What is there.
#[derive(Debug)]
struct There {
    has_scope: bool,
    collections: BTreeSet<String>,
    /// By collection and name; those that are built. Or why they can't be listed.
    indexes: Result<BTreeSet<(String, String)>, EcoString>,
}

/// An index that the store needs.
struct Wanted {
    collection: Collection,
    name: String,
    keys: Vec<String>,
}

fn wanted(schema: &Schema) -> Vec<Wanted> {
    let of_all_ids = Collection::ALL.into_iter().map(|collection| Wanted {
        collection,
        name: ALL_IDS.to_owned(),
        keys: vec!["META().id".to_owned()],
    });
    let of_fields = schema.indexes().iter().map(|index| {
        let fields = index.fields.iter().map(|(name, _)| format!("`{name}`"));
        Wanted {
            collection: index.collection,
            name: index.name(),
            keys: fields.chain(["META().id".to_owned()]).collect(),
        }
    });
    of_all_ids.chain(of_fields).collect()
}

/// A call under the time-out of connecting.
async fn call<T>(
    keeper: &Keeper,
    request: impl Future<Output = Result<T, Error>>,
) -> Result<T, EcoString> {
    let patience = keeper.config().connect_timeout;
    match timeout(patience, request).await {
        Ok(answer) => answer.map_err(|error| told(&error, keeper)),
        Err(_) => Err(eco_format!("{} did not answer in {patience:?}", keeper.url())),
    }
}

fn told(error: &Error, keeper: &Keeper) -> EcoString {
    let user = &keeper.config().user;
    let text = error.to_string();
    let is_forbidden = *error.kind() == ErrorKind::AuthenticationFailure
        || text.contains("Forbidden")
        || text.contains("permissions");
    if is_forbidden {
        eco_format!("the user {user:?} has no right to do that ({text})")
    } else {
        text.into()
    }
}

async fn look(keeper: &Keeper, connection: &Connection) -> Result<There, EcoString> {
    let config = keeper.config();
    let (mut has_scope, mut collections) = (false, BTreeSet::new());
    let scopes = call(keeper, connection.bucket.collections().get_all_scopes(None)).await;
    let scopes = scopes.map_err(|why| eco_format!("listing scopes: {why}"))?;
    for scope in scopes.iter().filter(|scope| scope.name() == config.scope.as_str()) {
        has_scope = true;
        let names = scope.collections().iter().map(|collection| collection.name().to_owned());
        collections.extend(names);
    }
    let indexes = look_for_indexes(keeper, connection, &collections).await;
    Ok(There { has_scope, collections, indexes })
}

async fn look_for_indexes(
    keeper: &Keeper,
    connection: &Connection,
    collections: &BTreeSet<String>,
) -> Result<BTreeSet<(String, String)>, EcoString> {
    let mut all = BTreeSet::new();
    for collection in Collection::ALL {
        if !collections.contains(collection.name()) {
            continue;
        }
        let listing = connection.collection(collection).query_indexes();
        let indexes = call(keeper, listing.get_all_indexes(None)).await;
        let indexes =
            indexes.map_err(|why| eco_format!("listing indexes of {collection}: {why}"))?;
        let built = indexes.iter().filter(|index| index.state() == "online");
        all.extend(built.map(|index| (collection.name().to_owned(), index.name().to_owned())));
    }
    Ok(all)
}

/// Makes what is missing, and names it. Somebody else may do the same at the same time.
pub(super) async fn prepare(keeper: &Keeper, schema: &Schema) -> Result<Vec<EcoString>, OpenError> {
    let connection = keeper.current();
    make(keeper, &connection, schema).await.map_err(OpenError::Backend)
}

async fn make(
    keeper: &Keeper,
    connection: &Connection,
    schema: &Schema,
) -> Result<Vec<EcoString>, EcoString> {
    let mut all = Vec::new();
    let scope = keeper.config().scope.as_str();
    let there = look(keeper, connection).await?;
    let manager = connection.bucket.collections();
    let missing = |what: String, why: EcoString| {
        eco_format!(
            "{what} is missing and can't be made: {why}; run `greenroom store init` once as somebody who may"
        )
    };
    let mut is_new = false;
    if !there.has_scope {
        let made = call(keeper, made_or_there(manager.create_scope(scope, None))).await;
        made.map_err(|why| missing(format!("the scope {scope:?}"), why))?;
        all.push(eco_format!("the scope {scope:?}"));
        is_new = true;
    }
    for collection in Collection::ALL {
        if there.collections.contains(collection.name()) {
            continue;
        }
        let settings = CreateCollectionSettings::new();
        let create = manager.create_collection(scope, collection.name(), settings, None);
        let made = call(keeper, made_or_there(create)).await;
        made.map_err(|why| missing(format!("the collection {scope}.{collection}"), why))?;
        all.push(eco_format!("the collection {scope}.{collection}"));
        is_new = true;
    }
    if is_new {
        until_known(keeper, connection).await?;
    }
    let indexes = there.indexes?;
    for index in wanted(schema) {
        if indexes.contains(&(index.collection.name().to_owned(), index.name.clone())) {
            continue;
        }
        let manager = connection.collection(index.collection).query_indexes();
        let options = CreateQueryIndexOptions::new().ignore_if_exists(true);
        let made =
            call(keeper, manager.create_index(index.name.clone(), index.keys, options)).await;
        made.map_err(|why| {
            missing(format!("the index {} of {}", index.name, index.collection), why)
        })?;
        let watch = manager.watch_indexes(vec![index.name.clone()], None);
        let built = call(keeper, watch).await;
        built.map_err(|why| eco_format!("the index {} is not built yet: {why}", index.name))?;
        all.push(eco_format!("the index {} of {}", index.name, index.collection));
    }
    Ok(all)
}

async fn made_or_there(request: impl Future<Output = Result<(), Error>>) -> Result<(), Error> {
    match request.await {
        Err(error)
            if matches!(error.kind(), ErrorKind::ScopeExists | ErrorKind::CollectionExists) =>
        {
            Ok(())
        }
        other => other,
    }
}

/// Waits until every collection can be read: the nodes hear of a new one a little later than its maker.
async fn until_known(keeper: &Keeper, connection: &Connection) -> Result<(), EcoString> {
    let begun = Instant::now();
    for collection in Collection::ALL {
        let read = connection.collection(collection).get("health", None);
        match timeout(KNOWN.saturating_sub(begun.elapsed()), read).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) if *error.kind() == ErrorKind::DocumentNotFound => {}
            Ok(Err(error)) => return Err(told(&error, keeper)),
            Err(_) => {
                return Err(eco_format!(
                    "the collection {collection} was made, and can't be read after {KNOWN:?}"
                ));
            }
        }
    }
    Ok(())
}

/// What is missing or wrong, each in a sentence that says what to do.
pub(super) async fn findings(keeper: &Keeper, schema: &Schema) -> Vec<EcoString> {
    let connection = keeper.current();
    let config = keeper.config();
    let scope = config.scope.as_str();
    let mut findings = Vec::new();
    let there = match look(keeper, &connection).await {
        Ok(there) => there,
        Err(why) => {
            findings.push(why);
            return findings;
        }
    };
    let init = "`greenroom store init` makes it, run as somebody who may manage the bucket";
    if !there.has_scope {
        findings.push(eco_format!("the scope {scope:?} is missing: {init}"));
    }
    for collection in Collection::ALL.into_iter().filter(|_| there.has_scope) {
        if !there.collections.contains(collection.name()) {
            findings.push(eco_format!("the collection {scope}.{collection} is missing: {init}"));
        }
    }
    match &there.indexes {
        Ok(indexes) => {
            let lacks = |index: &Wanted| {
                let of = index.collection.name().to_owned();
                there.collections.contains(&of) && !indexes.contains(&(of, index.name.clone()))
            };
            findings.extend(wanted(schema).into_iter().filter(lacks).map(|index| {
                let Wanted { collection, name, .. } = index;
                eco_format!("the index {name} of {collection} is missing or not built: {init}")
            }));
        }
        Err(why) => findings.push(why.clone()),
    }
    findings.extend(copies(keeper, &connection).await);
    if there.collections.contains(Collection::Cluster.name()) {
        findings.extend(probe(keeper, &connection).await);
    }
    // A question that reads documents: one that reads none needs no right.
    let statement = match there.collections.contains(Collection::Documents.name()) {
        true => "SELECT META(d).id AS id FROM `documents` AS d WHERE META(d).id >= '' LIMIT 1",
        false => "SELECT 1 AS one",
    };
    let query = connection.scope.query(statement, QueryOptions::new().read_only(true));
    if let Err(why) = call(keeper, async { query.await.map(|_| ()) }).await {
        findings.push(eco_format!("queries are not possible: {why}"));
    }
    findings
}

/// Whether the bucket keeps a second copy of what is acknowledged. Who may not see that is told nothing.
async fn copies(keeper: &Keeper, connection: &Connection) -> Option<EcoString> {
    let name = keeper.config().bucket.as_str();
    let buckets = connection.cluster.buckets();
    let bucket = call(keeper, buckets.get_bucket(name, None)).await.ok()?;
    (bucket.num_replicas == Some(0)).then(|| {
        eco_format!(
            "the bucket {name:?} keeps one copy of each document, so that what was acknowledged is lost with its \
             node: give it a replica at least, and nodes to hold it"
        )
    })
}

/// Writes documents of no meaning at each level that is in use, so many that every node has some.
async fn probe(keeper: &Keeper, connection: &Connection) -> Vec<EcoString> {
    let mut findings = Vec::new();
    let levels = Collection::ALL.map(|collection| keeper.config().durability.level(collection));
    let mut tried: Vec<Option<DurabilityLevel>> = Vec::new();
    for level in levels {
        if tried.contains(&level) {
            continue;
        }
        let probes = (0..PROBES).map(|number| probe_one(keeper, connection, &level, number));
        for finding in join_all(probes).await.into_iter().flatten() {
            if !findings.contains(&finding) {
                findings.push(finding);
            }
        }
        tried.push(level);
    }
    findings
}

async fn probe_one(
    keeper: &Keeper,
    connection: &Connection,
    level: &Option<DurabilityLevel>,
    number: usize,
) -> Option<EcoString> {
    let mut options = UpsertOptions::new().expiry(Duration::from_secs(60));
    options.durability_level = level.clone();
    let collection = connection.collection(Collection::Cluster);
    let id = format!("probe/{number}");
    let write = collection.upsert(id, serde_json::json!({"_gone": true}), options);
    // As for every call here: who looks after a store has time, and a busy node is no finding.
    let patience = keeper.config().connect_timeout;
    let name = level.as_ref().map_or("none".to_owned(), ToString::to_string);
    match timeout(patience, write).await {
        Ok(Ok(_)) => None,
        Ok(Err(error)) if *error.kind() == ErrorKind::DurabilityImpossible => Some(eco_format!(
            "no write can be durable at the level {name}, of some documents at least: the bucket wants more copies \
             than there are nodes up; start nodes, or lower the bucket's number of replicas"
        )),
        Ok(Err(error)) => {
            Some(eco_format!("writing at the level {name}: {}", told(&error, keeper)))
        }
        Err(_) => Some(eco_format!(
            "writing at the level {name}: no answer in {patience:?}, of some documents at least; a node is away"
        )),
    }
}
