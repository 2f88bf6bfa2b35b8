//! The management and query routes of a node.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use crate::Shared;
use crate::config::{self, bucket_map, cluster_map};
use crate::query;
use crate::state::{Bucket, BucketRecord, Collection, Right, Scope, State, User};

/// Bytes of the longest body that a node reads.
const BODY_BYTES_MAX: usize = 21 * 1024 * 1024;

/// An answer that is complete.
pub(crate) type Answer = Response<Full<Bytes>>;

/// What a request gets that cannot be done: the status and the body.
type Refusal = (StatusCode, Value);

/// Serves the connection until either side ends it.
pub(crate) async fn serve<S>(stream: S, shared: Arc<Shared>, node: usize, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    serve_with(stream, stop, move |request| {
        let shared = Arc::clone(&shared);
        async move { route(&shared, node, request).await }
    })
    .await;
}

/// Serves the connection with any router.
pub(crate) async fn serve_with<S, R, F>(stream: S, stop: CancellationToken, router: R)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    R: Fn(Asked) -> F,
    F: Future<Output = Answer>,
{
    let service = service_fn(|request: Request<Incoming>| {
        let asked = read(request);
        let router = &router;
        async move {
            let answer = match asked.await {
                Ok(asked) => router(asked).await,
                Err(refusal) => refused(refusal),
            };
            Ok::<_, Infallible>(answer)
        }
    });
    let connection =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        () = stop.cancelled() => {}
        served = connection => {
            if let Err(error) = served {
                tracing::debug!(%error, "a connection ended early");
            }
        }
    }
}

/// A request that was read whole.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) method: Method,
    /// The steps of the path, decoded.
    pub(crate) path: Vec<String>,
    /// Who asks, with which password.
    credentials: Option<(String, String)>,
    pub(crate) body: Bytes,
}

impl Asked {
    /// The pairs of a form.
    fn form(&self) -> BTreeMap<String, String> {
        let text = String::from_utf8_lossy(&self.body);
        let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
        pairs.map(|(name, value)| (decoded(name), decoded(value))).collect()
    }
}

/// Undoes percent signs and pluses.
fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = bytes.get(at + 1..at + 3).and_then(|hex| std::str::from_utf8(hex).ok());
        match (bytes[at], hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 2;
            }
            (b'+', _) => out.push(b' '),
            (byte, _) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

async fn read(request: Request<Incoming>) -> Result<Asked, Refusal> {
    let (head, body) = request.into_parts();
    let path = head.uri.path().trim_matches('/').split('/').map(decoded).collect();
    let basic = (head.headers.get(AUTHORIZATION))
        .and_then(|value| value.to_str().ok()?.strip_prefix("Basic "))
        .and_then(|encoded| String::from_utf8(STANDARD.decode(encoded).ok()?).ok());
    let credentials = basic.and_then(|pair| {
        let (user, password) = pair.split_once(':')?;
        Some((user.to_owned(), password.to_owned()))
    });
    let body = Limited::new(body, BODY_BYTES_MAX).collect().await;
    let body = body.map_err(|error| (StatusCode::BAD_REQUEST, json!(error.to_string())))?;
    Ok(Asked { method: head.method, path, credentials, body: body.to_bytes() })
}

pub(crate) fn answered(status: StatusCode, body: &Value) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body.to_string())));
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, "application/json".parse().expect("it is the value of a header"));
    if status == StatusCode::UNAUTHORIZED {
        answer.headers_mut().insert(
            WWW_AUTHENTICATE,
            "Basic realm=\"Couchbase\"".parse().expect("it is the value of a header"),
        );
    }
    answer
}

fn refused((status, body): Refusal) -> Answer {
    answered(status, &body)
}

fn not_found(words: &str) -> Refusal {
    (StatusCode::NOT_FOUND, json!(words))
}

fn broken(error: &std::io::Error) -> Refusal {
    (StatusCode::INTERNAL_SERVER_ERROR, json!(error.to_string()))
}

async fn route(shared: &Shared, node: usize, asked: Asked) -> Answer {
    let path: Vec<&str> = asked.path.iter().map(String::as_str).collect();
    if let ["admin", "ping"] = *path {
        return answered(StatusCode::OK, &json!({}));
    }
    let user = match authenticate(shared, &asked) {
        Ok(user) => user,
        Err(refusal) if *path == ["query", "service"] => {
            let (status, body) = query::not_authenticated(&refusal.1);
            return answered(status, &body);
        }
        Err(refusal) => return refused(refusal),
    };
    if let ["query", "service"] = *path {
        let (status, body) = query::serve(shared, &user, &asked.body);
        return answered(status, &body);
    }
    manage(shared, node, &user, &asked, &path).unwrap_or_else(refused)
}

fn authenticate(shared: &Shared, asked: &Asked) -> Result<User, Refusal> {
    let refusal = || (StatusCode::UNAUTHORIZED, json!("Unauthorized"));
    let (name, password) = asked.credentials.as_ref().ok_or_else(refusal)?;
    let state = shared.lock();
    let user = state.users.get(name).filter(|user| user.password == *password);
    user.cloned().ok_or_else(refusal)
}

fn manage(
    shared: &Shared,
    node: usize,
    user: &User,
    asked: &Asked,
    path: &[&str],
) -> Result<Answer, Refusal> {
    let ok = |body: Value| Ok(answered(StatusCode::OK, &body));
    if asked.method != Method::GET && !user.rights.contains(&Right::Manage) {
        let words = "Forbidden. User needs the following permissions";
        let permissions = json!({"message": words, "permissions": ["cluster.collections!write"]});
        return Err((StatusCode::FORBIDDEN, permissions));
    }
    match (&asked.method, path) {
        (&Method::GET, ["pools", "default"]) => ok(full_cluster(&shared.lock())),
        (&Method::GET, ["pools", "default", "nodeServices"]) => {
            ok(cluster_map(&shared.lock(), node))
        }
        (&Method::GET, ["pools", "default", "b", name]) => {
            let state = shared.lock();
            ok(bucket_map(&state, bucket(&state, name)?, node))
        }
        (&Method::GET, ["pools", "default", "buckets"]) => {
            let state = shared.lock();
            ok(state.buckets.values().map(|bucket| full_bucket(&state, bucket, node)).collect())
        }
        (&Method::POST, ["pools", "default", "buckets"]) => {
            create_bucket(shared, &asked.form())?;
            Ok(answered(StatusCode::ACCEPTED, &json!("")))
        }
        (&Method::GET, ["pools", "default", "buckets", name]) => {
            let state = shared.lock();
            ok(full_bucket(&state, bucket(&state, name)?, node))
        }
        (&Method::POST, ["pools", "default", "buckets", name]) => {
            let mut record = bucket(&shared.lock(), name)?.record.clone();
            set_bucket(&mut record, &asked.form());
            shared.change(|state| state.save_bucket(record)).map_err(|error| broken(&error))?;
            ok(json!(""))
        }
        (&Method::DELETE, ["pools", "default", "buckets", name]) => {
            let dropped = shared.change(|state| state.drop_bucket(name));
            if dropped.map_err(|error| broken(&error))? {
                ok(json!(""))
            } else {
                Err(not_found("Requested resource not found."))
            }
        }
        (&Method::POST, ["pools", "default", "buckets", name, "controller", "doFlush"]) => {
            if !bucket(&shared.lock(), name)?.record.is_flushable {
                let words = "Flush is disabled for the bucket";
                return Err((StatusCode::BAD_REQUEST, json!({"_": words})));
            }
            let flushed = shared.change(|state| state.flush_bucket(name));
            flushed.map_err(|error| broken(&error))?;
            ok(json!(""))
        }
        (&Method::GET, ["pools", "default", "buckets", name, "scopes"]) => {
            ok(manifest(&bucket(&shared.lock(), name)?.record))
        }
        (method, ["pools", "default", "buckets", name, "scopes", rest @ ..]) => {
            let mut record = bucket(&shared.lock(), name)?.record.clone();
            change_scopes(&mut record, method, rest, &asked.form())?;
            record.manifest += 1;
            let uid = format!("{:x}", record.manifest);
            shared.change(|state| state.save_bucket(record)).map_err(|error| broken(&error))?;
            ok(json!({"uid": uid}))
        }
        (method, path) => {
            let words = format!("{method} /{} is not known to this node", path.join("/"));
            Err((StatusCode::NOT_FOUND, json!(words)))
        }
    }
}

fn bucket<'a>(state: &'a State, name: &str) -> Result<&'a Bucket, Refusal> {
    state.buckets.get(name).ok_or_else(|| not_found("Requested resource not found."))
}

fn create_bucket(shared: &Shared, form: &BTreeMap<String, String>) -> Result<(), Refusal> {
    let wrong = |field: &str, words: &str| {
        (StatusCode::BAD_REQUEST, json!({"errors": {field: words}, "summaries": {}}))
    };
    let name = form.get("name").filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| wrong("name", "Bucket name needs to be specified"))?;
    let is_letter = |char: char| char.is_ascii_alphanumeric() || "_-.%".contains(char);
    if name.len() > 100 || !name.chars().all(is_letter) {
        let words = "Bucket name can only contain characters in range A-Z, a-z, 0-9 as well as \
                     underscore, period, dash & percent.";
        return Err(wrong("name", words));
    }
    if shared.lock().buckets.contains_key(name) {
        return Err(wrong("name", "Bucket with given name already exists"));
    }
    let mut record = BucketRecord::new(name, 64, 1);
    set_bucket(&mut record, form);
    shared.change(|state| state.save_bucket(record)).map_err(|error| broken(&error))
}

fn set_bucket(record: &mut BucketRecord, form: &BTreeMap<String, String>) {
    fn read<T: std::str::FromStr>(form: &BTreeMap<String, String>, name: &str, into: &mut T) {
        if let Some(value) = form.get(name).and_then(|value| value.parse().ok()) {
            *into = value;
        }
    }
    read(form, "replicaNumber", &mut record.copies);
    read(form, "numVBuckets", &mut record.vbuckets);
    read(form, "ramQuotaMB", &mut record.quota_mb);
    read(form, "maxTTL", &mut record.max_ttl);
    if let Some(flush) = form.get("flushEnabled") {
        record.is_flushable = flush == "1";
    }
    if let Some(kind) = form.get("bucketType") {
        record.is_ephemeral = kind == "ephemeral";
    }
}

fn change_scopes(
    record: &mut BucketRecord,
    method: &Method,
    path: &[&str],
    form: &BTreeMap<String, String>,
) -> Result<(), Refusal> {
    let wrong = |words: String| (StatusCode::BAD_REQUEST, json!({"errors": {"_": words}}));
    let no_scope = |name: &str| {
        let words = format!("Scope with name {name:?} is not found");
        (StatusCode::NOT_FOUND, json!({"errors": {"_": words}}))
    };
    let no_collection = |scope: &str, name: &str| {
        let words = format!("Collection with name {name:?} in scope {scope:?} is not found");
        (StatusCode::NOT_FOUND, json!({"errors": {"_": words}}))
    };
    let name = || -> Result<String, Refusal> {
        let name = form.get("name").map_or("", String::as_str);
        let is_letter = |char: char| char.is_ascii_alphanumeric() || "_-%".contains(char);
        if name.is_empty() || name.len() > 251 || !name.chars().all(is_letter) {
            return Err(wrong(format!("{name:?} is not the name of a scope or a collection")));
        }
        if name.starts_with(['_', '%']) {
            return Err(wrong("First character must not be _ or %".to_owned()));
        }
        Ok(name.to_owned())
    };
    match (method, path) {
        (&Method::POST, []) => {
            let name = name()?;
            if record.scopes.contains_key(&name) {
                return Err(wrong(format!("Scope with name {name:?} already exists")));
            }
            let scope = Scope { id: record.take_id(), collections: BTreeMap::new() };
            record.scopes.insert(name, scope);
        }
        (&Method::DELETE, ["_default"]) => {
            return Err(wrong("Deleting _default scope is not allowed".to_owned()));
        }
        (&Method::DELETE, [scope]) => {
            record.scopes.remove(*scope).ok_or_else(|| no_scope(scope))?;
            record.indexes.retain(|index| index.scope != *scope);
        }
        (&Method::POST, [scope, "collections"]) => {
            let name = name()?;
            let id = record.take_id();
            let into = record.scopes.get_mut(*scope).ok_or_else(|| no_scope(scope))?;
            if into.collections.contains_key(&name) {
                let words =
                    format!("Collection with name {name:?} in scope {scope:?} already exists");
                return Err(wrong(words));
            }
            let max_ttl = form.get("maxTTL").and_then(|text| text.parse().ok()).unwrap_or(0);
            let history = form.get("history").is_some_and(|text| text == "true");
            into.collections.insert(name, Collection { id, max_ttl, history });
        }
        (&Method::PATCH, [scope, "collections", name]) => {
            let of = record.scopes.get_mut(*scope).ok_or_else(|| no_scope(scope))?;
            let collection =
                of.collections.get_mut(*name).ok_or_else(|| no_collection(scope, name))?;
            if let Some(max_ttl) = form.get("maxTTL").and_then(|text| text.parse().ok()) {
                collection.max_ttl = max_ttl;
            }
        }
        (&Method::DELETE, [scope, "collections", name]) => {
            let of = record.scopes.get_mut(*scope).ok_or_else(|| no_scope(scope))?;
            of.collections.remove(*name).ok_or_else(|| no_collection(scope, name))?;
            record.indexes.retain(|index| index.scope != *scope || index.collection != *name);
        }
        (method, path) => {
            let words = format!("{method} scopes/{} is not known to this node", path.join("/"));
            return Err((StatusCode::NOT_FOUND, json!(words)));
        }
    }
    Ok(())
}

fn manifest(record: &BucketRecord) -> Value {
    let scopes: Vec<Value> = (record.scopes.iter())
        .map(|(name, scope)| {
            let collections: Vec<Value> = (scope.collections.iter())
                .map(|(name, collection)| {
                    json!({
                        "name": name,
                        "uid": format!("{:x}", collection.id),
                        "maxTTL": collection.max_ttl,
                        "history": collection.history,
                    })
                })
                .collect();
            json!({"name": name, "uid": format!("{:x}", scope.id), "collections": collections})
        })
        .collect();
    json!({"uid": format!("{:x}", record.manifest), "scopes": scopes})
}

fn full_cluster(state: &State) -> Value {
    let names: Vec<Value> = (state.buckets.keys())
        .map(|name| json!({"bucketName": name, "uuid": config::uuid(name)}))
        .collect();
    json!({"name": "default", "nodes": full_nodes(state), "bucketNames": names})
}

fn full_nodes(state: &State) -> Vec<Value> {
    let members = state.members().into_iter();
    members
        .map(|node| {
            let ports = state.nodes[node].ports;
            json!({
                "hostname": format!("127.0.0.1:{}", ports.http),
                "status": if state.nodes[node].is_up { "healthy" } else { "unhealthy" },
                "clusterMembership": "active",
                "services": ["kv", "n1ql", "index"],
                "version": "7.6.2-0000-enterprise",
                "ports": {"direct": ports.kv},
            })
        })
        .collect()
}

fn full_bucket(state: &State, bucket: &Bucket, node: usize) -> Value {
    let record = &bucket.record;
    let bytes = record.quota_mb * 1024 * 1024;
    let mut full = bucket_map(state, bucket, node);
    let rest = json!({
        "bucketType": if record.is_ephemeral { "ephemeral" } else { "membase" },
        "storageBackend": "couchstore",
        "replicaIndex": false,
        "replicaNumber": record.copies,
        "numVBuckets": record.vbuckets,
        "quota": {"ram": bytes, "rawRAM": bytes},
        "controllers": if record.is_flushable { json!({"flush": "on"}) } else { json!({}) },
        "evictionPolicy": if record.is_ephemeral { "noEviction" } else { "valueOnly" },
        "durabilityMinLevel": "none",
        "conflictResolutionType": "seqno",
        "maxTTL": record.max_ttl,
        "compressionMode": "passive",
        "nodes": full_nodes(state),
    });
    if let (Value::Object(full), Value::Object(rest)) = (&mut full, rest) {
        full.extend(rest);
    }
    full
}

/// Every document of a collection by key, for the test that looks behind the protocol.
pub(crate) fn documents(
    shared: &Shared,
    bucket: &str,
    scope: &str,
    collection: &str,
) -> BTreeMap<String, Value> {
    let now = shared.clock.seconds();
    let state = shared.lock();
    let Some(bucket) = state.buckets.get(bucket) else { return BTreeMap::new() };
    let Some(collection) = bucket.record.collection(scope, collection) else {
        return BTreeMap::new();
    };
    let documents = bucket.documents(collection.id, now).into_iter();
    documents
        .map(|(key, document)| {
            let plain = document.plain();
            let value = serde_json::from_slice(&plain).unwrap_or_else(|_| json!(plain.to_vec()));
            (String::from_utf8_lossy(key).into_owned(), value)
        })
        .collect()
}
