//! The port over which a test in another process says what goes wrong.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::http::{self, Answer, Asked, answered};
use crate::{Cluster, Fault};

/// The body of a request that sets the clock ahead.
#[derive(Debug, Deserialize)]
struct Ahead {
    seconds: u64,
}

/// Answers on the control port until it is told to stop.
///
/// `POST /faults` adds a [`Fault`], `DELETE /faults` takes all back, `GET /faults` says how often one happened and
/// how many requests are put off;
/// `POST /clock` with `{"seconds": 60}` sets the clock ahead; `POST /nodes/0/stop`, `/start` and `/fail-over` do
/// so with a node, `POST /rebalance` takes all in again; `GET /documents/bucket/scope/collection` shows what is
/// stored, and `GET /` where the nodes listen.
///
/// # Errors
/// When the port takes no connections any more.
pub async fn serve(
    listener: TcpListener,
    cluster: Arc<Cluster>,
    stop: CancellationToken,
) -> io::Result<()> {
    let tasks = TaskTracker::new();
    loop {
        let (stream, _) = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted?,
        };
        let cluster = Arc::clone(&cluster);
        tasks.spawn(http::serve_with(stream, stop.clone(), move |asked| {
            let cluster = Arc::clone(&cluster);
            async move { answer(&cluster, &asked).await }
        }));
    }
    tasks.close();
    tasks.wait().await;
    Ok(())
}

async fn answer(cluster: &Cluster, asked: &Asked) -> Answer {
    match route(cluster, asked).await {
        Ok(body) => answered(StatusCode::OK, &body),
        Err(words) => answered(StatusCode::BAD_REQUEST, &json!({ "error": words })),
    }
}

async fn route(cluster: &Cluster, asked: &Asked) -> Result<Value, String> {
    let path: Vec<&str> = asked.path.iter().map(String::as_str).collect();
    let words = |error: &dyn std::error::Error| error.to_string();
    let done = Ok(json!({}));
    let node = |text: &str| {
        let node = text.parse().ok().filter(|node: &usize| *node < cluster.ports().len());
        node.ok_or_else(|| format!("there is no node {text:?}"))
    };
    match (&asked.method, path.as_slice()) {
        (&Method::GET, [""]) => Ok(json!({
            "address": cluster.connection_string(),
            "ports": cluster.ports(),
        })),
        (&Method::POST, ["faults"]) => {
            let fault: Fault =
                serde_json::from_slice(&asked.body).map_err(|error| words(&error))?;
            cluster.faults().add(fault);
            done
        }
        (&Method::DELETE, ["faults"]) => {
            cluster.faults().clear();
            done
        }
        (&Method::GET, ["faults"]) => Ok(json!({
            "happened": cluster.faults().happened(),
            "put_off": cluster.faults().put_off(),
        })),
        (&Method::POST, ["clock"]) => {
            let ahead: Ahead =
                serde_json::from_slice(&asked.body).map_err(|error| words(&error))?;
            cluster.clock().advance(Duration::from_secs(ahead.seconds));
            done
        }
        (&Method::POST, ["nodes", number, "stop"]) => {
            cluster.stop_node(node(number)?).await;
            done
        }
        (&Method::POST, ["nodes", number, "start"]) => {
            cluster.start_node(node(number)?).map_err(|error| words(&error))?;
            done
        }
        (&Method::POST, ["nodes", number, "fail-over"]) => {
            cluster.fail_over(node(number)?);
            done
        }
        (&Method::POST, ["rebalance"]) => {
            cluster.rebalance();
            done
        }
        (&Method::GET, ["documents", bucket, scope, collection]) => {
            Ok(json!(cluster.documents(bucket, scope, collection)))
        }
        (method, path) => Err(format!("{method} /{} is unknown", path.join("/"))),
    }
}
