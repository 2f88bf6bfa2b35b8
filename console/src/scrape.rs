//! The port of a process that has no admin port, for Prometheus.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{ConsoleError, Metrics, serve};

/// The content type of Prometheus's text format.
const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A port that answers `GET /metrics` and nothing else.
#[derive(Debug)]
pub struct Scrape {
    listener: TcpListener,
    address: SocketAddr,
    router: Router,
    metrics: Arc<Metrics>,
}

impl Scrape {
    /// Listens at `listen`, which is `host:port`; `read` gives the text.
    ///
    /// # Errors
    /// [`ConsoleError::Listen`] when the address can't be listened on.
    pub async fn bind(
        listen: &str,
        read: impl Fn() -> String + Clone + Send + Sync + 'static,
    ) -> Result<Self, ConsoleError> {
        let failed = |source| ConsoleError::Listen { address: listen.to_owned(), source };
        let listener = TcpListener::bind(listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let router = Router::new()
            .route("/metrics", get(async move || answer(read())))
            .fallback(async || (StatusCode::NOT_FOUND, "here is only GET /metrics\n"));
        Ok(Self { listener, address, router, metrics: Arc::default() })
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

    /// Answers until `stop`; who is still asking then gets no answer.
    pub async fn run(self, stop: CancellationToken) {
        let serve = serve::serve(self.listener, self.router, stop.clone(), self.metrics);
        stop.run_until_cancelled(serve).await;
    }
}

pub(crate) fn answer(text: String) -> Response {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response()
}
