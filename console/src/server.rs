//! The admin port.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router, body::Bytes};
use greenroom_protocol::wire::admin_master::{Action, Status};
use greenroom_protocol::{Code, Refusal};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{AdminToken, ConsoleConfig, ConsoleError, Problem};

/// Longest request body: an action is a name and an id.
const BODY_BYTES_MAX: usize = 16 * 1024;

/// How long a stopping port waits for who is still asking: half a request must not keep the process alive.
const DRAIN_MAX: Duration = Duration::from_secs(2);

/// What a [`Cluster`] answers, when it does.
pub type Reply<'a, T> = Pin<Box<dyn Future<Output = Result<T, Refusal>> + Send + 'a>>;

/// What the admin port asks: a running cluster, wherever it is.
pub trait Cluster: Send + Sync + 'static {
    /// The cluster at a glance.
    fn status(&self) -> Reply<'_, Status>;
    /// Does what an operator wants.
    fn act(&self, action: Action) -> Reply<'_, ()>;
}

/// An admin port that listens and does not answer yet.
#[derive(Debug)]
pub struct Console {
    listener: TcpListener,
    address: SocketAddr,
    router: Router,
}

struct Admin {
    cluster: Box<dyn Cluster>,
    token: AdminToken,
    /// For people: the file that the token is in.
    token_place: String,
}

impl Console {
    /// Listens. `token_place` says where operators find the token; it is part of what a refused one is told.
    ///
    /// # Errors
    /// [`ConsoleError::Listen`] when the address can't be listened on.
    pub async fn bind(
        config: &ConsoleConfig,
        cluster: impl Cluster,
        token: AdminToken,
        token_place: impl Into<String>,
    ) -> Result<Self, ConsoleError> {
        let failed = |source| ConsoleError::Listen { address: config.listen.clone(), source };
        let listener = TcpListener::bind(&config.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        if !address.ip().is_loopback() {
            tracing::warn!(%address, "the admin port is not on loopback: anybody who reaches it reads the status");
        }
        let admin = Admin { cluster: Box::new(cluster), token, token_place: token_place.into() };
        let router = Router::new()
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/status", get(status))
            .route("/actions", post(act))
            .fallback(|| async { problem(StatusCode::NOT_FOUND, "not_found", NOT_FOUND) })
            .method_not_allowed_fallback(|| async {
                problem(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", NOT_FOUND)
            })
            .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
            .with_state(Arc::new(admin));
        Ok(Self { listener, address, router })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `stop`, and finishes what was asked before.
    ///
    /// # Errors
    /// [`ConsoleError::Serve`] when the socket fails.
    pub async fn run(self, stop: CancellationToken) -> Result<(), ConsoleError> {
        let patience = {
            let stop = stop.clone();
            async move {
                stop.cancelled().await;
                tokio::time::sleep(DRAIN_MAX).await;
            }
        };
        let serve = axum::serve(self.listener, self.router)
            .with_graceful_shutdown(stop.cancelled_owned())
            .into_future();
        tokio::select! {
            served = serve => served.map_err(ConsoleError::Serve),
            () = patience => Ok(()),
        }
    }
}

const NOT_FOUND: &str = "this is Greenroom's admin port: GET /status, POST /actions, GET /healthz";

async fn status(State(admin): State<Arc<Admin>>) -> Response {
    match admin.cluster.status().await {
        Ok(status) => Json(status).into_response(),
        Err(refusal) => refused(&refusal),
    }
}

async fn act(
    State(admin): State<Arc<Admin>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = given.and_then(|value| value.strip_prefix("Bearer "));
    if !given.is_some_and(|given| admin.token.is(given.trim())) {
        let wrong = if given.is_some() { "the token is not this cluster's" } else { "no token" };
        let message = format!(
            "{wrong}: actions need the header `Authorization: Bearer TOKEN`; the token is in {}",
            admin.token_place
        );
        return problem(StatusCode::UNAUTHORIZED, "unauthorized", message);
    }
    let body = match body {
        Ok(body) => body,
        Err(rejection) => {
            return problem(rejection.status(), Code::TooLarge.name(), rejection.body_text());
        }
    };
    let action = match serde_json::from_slice::<Action>(&body) {
        Ok(action) => action,
        Err(error) => {
            let message = format!(
                "{error}; an action is {{\"destroy\": {{\"instance\": ID}}}} or {{\"kick\": {{\"user\": ID}}}}"
            );
            return problem(StatusCode::BAD_REQUEST, Code::Malformed.name(), message);
        }
    };
    match admin.cluster.act(action).await {
        Ok(()) => Json(serde_json::json!({})).into_response(),
        Err(refusal) => refused(&refusal),
    }
}

fn refused(refusal: &Refusal) -> Response {
    // The code in the body is what counts; of HTTP's, the closest.
    let code = &refusal.code;
    let status = if matches!(code, Code::InstanceUnknown | Code::UserUnknown) {
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
