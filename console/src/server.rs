//! The admin port.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{
    Json, Router,
    body::{self, Body, Bytes},
};
use greenroom_protocol::wire::admin_master::{
    Action, Find, InstanceStatus, Placement, Promote, Rows, Status,
};
use greenroom_protocol::{Code, InstanceId, KindName, Refusal};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::watch::Watch;
use crate::{AdminToken, ConsoleConfig, ConsoleError, Metrics, Problem, monitor, serve};

/// Longest request body: an action is a name and an id, a filter has 64 conditions at most.
const BODY_BYTES_MAX: usize = 16 * 1024;

/// How long a body may take after the request's head.
const BODY_MAX: Duration = Duration::from_secs(5);

/// Pages that are kept up to date at once. Each holds a connection of this process.
const VIEWERS_MAX: usize = 64;

/// Pages of the log that are read at once, each on a thread of its own; the next waits for one of them.
const READERS_MAX: usize = 4;

/// Open pages that look at the log's tail at once, each on a thread of its own; the next waits for one of them.
const LOOKS_MAX: usize = 4;

/// How long a stopping port waits for who is still asking: half a request must not keep the process alive.
const DRAIN_MAX: Duration = Duration::from_secs(2);

/// What a [`Cluster`] answers, when it does.
pub type Reply<'a, T> = Pin<Box<dyn Future<Output = Result<T, Refusal>> + Send + 'a>>;

/// What the admin port asks: a running cluster, wherever it is.
pub trait Cluster: Send + Sync + 'static {
    /// The cluster at a glance.
    fn status(&self) -> Reply<'_, Status>;
    /// Looks for instances, users or servers.
    fn find(&self, find: Find) -> Reply<'_, Rows>;
    /// One instance with its seats.
    fn instance(&self, id: InstanceId) -> Reply<'_, InstanceStatus>;
    /// Where an instance of the kind would be placed now, and why.
    fn placement(&self, kind: KindName) -> Reply<'_, Placement>;
    /// Does what an operator wants.
    fn act(&self, action: Action) -> Reply<'_, ()>;
    /// Makes the standby the active, and this master the standby.
    fn switchover(&self) -> Reply<'_, ()>;
    /// Makes this master the active.
    fn promote(&self, promote: Promote) -> Reply<'_, ()>;
    /// What this process counts, as Prometheus reads it.
    fn metrics(&self) -> String;
}

/// An admin port that listens and does not answer yet.
#[derive(Debug)]
pub struct Console {
    listener: TcpListener,
    address: SocketAddr,
    router: Router,
    admin: Arc<Admin>,
    metrics: Arc<Metrics>,
}

pub(crate) struct Admin {
    pub(crate) cluster: Box<dyn Cluster>,
    token: AdminToken,
    /// For people: the file that the token is in.
    token_place: String,
    /// The other master's admin port; empty for none.
    pub(crate) other: String,
    /// Where this machine's processes have their event logs.
    pub(crate) logs: PathBuf,
    pub(crate) watch: Watch,
    /// Places for pages that are kept up to date.
    pub(crate) viewers: Arc<Semaphore>,
    /// Places for pages of the log that are read.
    pub(crate) readers: Arc<Semaphore>,
    /// Places for looks at the log's tail.
    pub(crate) looks: Arc<Semaphore>,
    /// The port stops: streams that have no end of their own end.
    pub(crate) closing: CancellationToken,
    /// Only this machine reaches the port.
    is_local: bool,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Admin({:?}, {})", self.token, self.token_place)
    }
}

impl Console {
    /// Listens. `token_place` says where operators find the token; it is part of what a refused one is told. `logs` is
    /// the folder in which this machine's processes have their event logs, whether or not it is there.
    ///
    /// # Errors
    /// [`ConsoleError::Listen`] when the address can't be listened on.
    pub async fn bind(
        config: &ConsoleConfig,
        cluster: impl Cluster,
        token: AdminToken,
        token_place: impl Into<String>,
        logs: PathBuf,
    ) -> Result<Self, ConsoleError> {
        let failed = |source| ConsoleError::Listen { address: config.listen.clone(), source };
        let listener = TcpListener::bind(&config.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        if !address.ip().is_loopback() {
            tracing::warn!(%address, "the admin port is not on loopback: anybody who reaches it reads the status");
        }
        let admin = Arc::new(Admin {
            cluster: Box::new(cluster),
            token,
            token_place: token_place.into(),
            other: config.other.clone(),
            logs,
            watch: Watch::default(),
            viewers: Arc::new(Semaphore::new(VIEWERS_MAX)),
            readers: Arc::new(Semaphore::new(READERS_MAX)),
            looks: Arc::new(Semaphore::new(LOOKS_MAX)),
            closing: CancellationToken::new(),
            is_local: address.ip().is_loopback(),
        });
        let router = monitor::routes()
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/status", get(status))
            .route("/metrics", get(metrics))
            .route("/find", post(find))
            .route("/placement/{kind}", get(placement))
            .route("/actions", post(act))
            .route("/switchover", post(switchover))
            .route("/promote", post(promote))
            .fallback(|headers: HeaderMap| async move {
                // Only browsers want HTML before anything else.
                let wants = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
                match wants {
                    Some(accept) if accept.starts_with("text/html") => monitor::nothing_here(),
                    _ => problem(StatusCode::NOT_FOUND, "not_found", NOT_FOUND),
                }
            })
            .method_not_allowed_fallback(|| async {
                problem(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", NOT_FOUND)
            })
            .layer(middleware::from_fn(with_its_body))
            .layer(middleware::from_fn_with_state(Arc::clone(&admin), named_rightly))
            .with_state(Arc::clone(&admin));
        Ok(Self { listener, address, router, admin, metrics: Arc::default() })
    }

    /// Has it count its connections here.
    #[must_use]
    pub fn counted(mut self, metrics: Arc<Metrics>) -> Self {
        self.metrics = metrics;
        self
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `stop`, and finishes what was asked before.
    pub async fn run(self, stop: CancellationToken) {
        let admin = self.admin;
        let patience = {
            let (stop, closing) = (stop.clone(), admin.closing.clone());
            async move {
                stop.cancelled().await;
                closing.cancel();
                tokio::time::sleep(DRAIN_MAX).await;
            }
        };
        tokio::select! {
            () = serve::serve(self.listener, self.router, stop, self.metrics) => {}
            () = patience => {}
            never = admin.watch.run(&*admin.cluster) => match never {},
        }
    }
}

/// Reads the body first, all of it: it has a bound and a deadline, whoever asks for whatever.
async fn with_its_body(request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    match tokio::time::timeout(BODY_MAX, body::to_bytes(body, BODY_BYTES_MAX)).await {
        Ok(Ok(bytes)) => next.run(Request::from_parts(parts, Body::from(bytes))).await,
        Ok(Err(error)) => {
            let text =
                format!("the body can't be read; it has {BODY_BYTES_MAX} bytes at most: {error}");
            problem(StatusCode::PAYLOAD_TOO_LARGE, Code::TooLarge.name(), text)
        }
        Err(_) => {
            let text = format!("the body did not come within {BODY_MAX:?}");
            problem(StatusCode::REQUEST_TIMEOUT, "timeout", text)
        }
    }
}

/// A page that was led to this machine by a name that changed its meaning must not read what is shown here to everybody
/// who reaches the port: on loopback it answers to addresses and to `localhost`, which nobody else can give away.
async fn named_rightly(State(admin): State<Arc<Admin>>, request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    if admin.is_local && !host.is_some_and(is_own_name) {
        let text = "this port is on loopback and answers to localhost and to addresses only, such as \
                    http://127.0.0.1:4080; through another name, set `[console] listen` to an address that is not \
                    loopback, behind something that asks who comes";
        return problem(StatusCode::MISDIRECTED_REQUEST, "misdirected", text);
    }
    next.run(request).await
}

fn is_own_name(host: &str) -> bool {
    let (is_own, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let Some((name, port)) = rest.split_once(']') else { return false };
            (name.parse::<std::net::Ipv6Addr>().is_ok(), port)
        }
        None => {
            let (name, port) = host.split_at(host.find(':').unwrap_or(host.len()));
            let name = name.to_ascii_lowercase();
            let is_name = |name: &str| {
                name.chars().all(|letter| letter.is_ascii_alphanumeric() || "-_.".contains(letter))
            };
            let is_local = name == "localhost" || name.ends_with(".localhost") && is_name(&name);
            (is_local || name.parse::<std::net::Ipv4Addr>().is_ok(), port)
        }
    };
    // What follows is a port or nothing: whatever else a text has, a name of somebody else may be in it.
    let digits = |port: &str| port.bytes().all(|digit| digit.is_ascii_digit());
    is_own && (port.is_empty() || port.strip_prefix(':').is_some_and(digits))
}

const NOT_FOUND: &str = "this is Greenroom's admin port: GET / shows pages, GET /status, GET /metrics, \
                         POST /find, GET /placement/KIND, \
                         POST /actions, POST /switchover, POST /promote, GET /healthz";

async fn status(State(admin): State<Arc<Admin>>) -> Response {
    answer(admin.cluster.status().await)
}

async fn metrics(State(admin): State<Arc<Admin>>) -> Response {
    crate::scrape::answer(admin.cluster.metrics())
}

async fn find(State(admin): State<Arc<Admin>>, body: Bytes) -> Response {
    let form = "a search is {\"table\": {\"instances\": KIND} or \"users\" or \"servers\", \"filter\": \
                {\"eq\": [FIELD, VALUE]}, \"order\": {\"field\": FIELD}, \"limit\": 20}";
    match read(&body, form) {
        Ok(find) => answer(admin.cluster.find(find).await),
        Err(problem) => *problem,
    }
}

async fn placement(State(admin): State<Arc<Admin>>, Path(kind): Path<String>) -> Response {
    match KindName::new(kind) {
        Ok(kind) => answer(admin.cluster.placement(kind).await),
        Err(error) => problem(StatusCode::BAD_REQUEST, Code::NameInvalid.name(), error.to_string()),
    }
}

async fn act(State(admin): State<Arc<Admin>>, headers: HeaderMap, body: Bytes) -> Response {
    if let Err(problem) = authorized(&admin, &headers) {
        return *problem;
    }
    let form = "an action is {\"destroy\": {\"instance\": ID}}, {\"kick\": {\"user\": ID}}, \
                {\"drain\": {\"server\": NAME}} or {\"restore\": {…}}, as PROTOCOL.md says";
    match read(&body, form) {
        Ok(action) => answer(admin.cluster.act(action).await.map(|()| serde_json::Map::new())),
        Err(problem) => *problem,
    }
}

async fn switchover(State(admin): State<Arc<Admin>>, headers: HeaderMap) -> Response {
    match authorized(&admin, &headers) {
        Ok(()) => answer(admin.cluster.switchover().await.map(|()| serde_json::Map::new())),
        Err(problem) => *problem,
    }
}

async fn promote(State(admin): State<Arc<Admin>>, headers: HeaderMap, body: Bytes) -> Response {
    if let Err(problem) = authorized(&admin, &headers) {
        return *problem;
    }
    match read(&body, "it is {\"accept_loss\": false}") {
        Ok(wish) => answer(admin.cluster.promote(wish).await.map(|()| serde_json::Map::new())),
        Err(problem) => *problem,
    }
}

/// Whether who asks has the token, else the answer that says what is missing.
fn authorized(admin: &Admin, headers: &HeaderMap) -> Result<(), Box<Response>> {
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = given.and_then(|value| value.strip_prefix("Bearer "));
    if given.is_some_and(|given| admin.token.is(given.trim())) {
        return Ok(());
    }
    let wrong = if given.is_some() { "the token is not this cluster's" } else { "no token" };
    let message = format!(
        "{wrong}: actions need the header `Authorization: Bearer TOKEN`; the token is in {}",
        admin.token_place
    );
    Err(Box::new(problem(StatusCode::UNAUTHORIZED, "unauthorized", message)))
}

/// The body as what it should be, else the answer that says what that is.
fn read<T: DeserializeOwned>(body: &[u8], form: &str) -> Result<T, Box<Response>> {
    serde_json::from_slice(body).map_err(|error| {
        let message = format!("{error}; {form}");
        Box::new(problem(StatusCode::BAD_REQUEST, Code::Malformed.name(), message))
    })
}

fn answer<T: Serialize>(result: Result<T, Refusal>) -> Response {
    match result {
        Ok(value) => Json(value).into_response(),
        Err(refusal) => refused(&refusal),
    }
}

fn refused(refusal: &Refusal) -> Response {
    // The code in the body is what counts; of HTTP's, the closest.
    let code = &refusal.code;
    let status = if matches!(
        code,
        Code::InstanceUnknown | Code::UserUnknown | Code::ServerUnknown | Code::KindUnknown
    ) {
        StatusCode::NOT_FOUND
    } else if matches!(code, Code::Busy | Code::Unavailable) {
        StatusCode::SERVICE_UNAVAILABLE
    } else {
        StatusCode::CONFLICT
    };
    problem(status, refusal.code.name(), refusal.message.as_str())
}

fn problem(status: StatusCode, code: &str, message: impl Into<String>) -> Response {
    (status, Json(Problem { code: code.into(), message: message.into() })).into_response()
}
