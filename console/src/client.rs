//! The client of the admin port: what operators' commands ask with.

use std::io;
use std::time::Duration;

use greenroom_protocol::wire::admin_master::{Action, Find, Placement, Promote, Rows, Status};
use greenroom_protocol::{Code, KindName};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio::time;

use crate::text::in_url;
use crate::{AdminToken, Problem};

/// How long an answer may take, connecting included.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Longest answer: the status of a few thousand servers.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Why there is no answer, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there, or the way is cut.
    #[error(
        "no cluster answers at {address}: is it running? `--admin HOST:PORT` or GREENROOM_ADMIN says where its \
         admin port is"
    )]
    Connect {
        /// Where it was looked for.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// It took too long.
    #[error("the admin port at {address} did not answer within {after:?}")]
    Timeout {
        /// Where it was asked.
        address: String,
        /// The bound.
        after: Duration,
    },
    /// The conversation broke off.
    #[error("asking the admin port at {address}")]
    Http {
        /// Where it was asked.
        address: String,
        /// What went wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Something else listens there.
    #[error(
        "what answers at {address} is not Greenroom's admin port (status {status}): `--admin HOST:PORT` or \
         GREENROOM_ADMIN says where that is"
    )]
    NotOurs {
        /// Where it was asked.
        address: String,
        /// What it answered.
        status: u16,
    },
    /// The cluster said no.
    #[error("{}: {}", .0.code, .0.message)]
    Refused(Problem),
}

/// The cluster at a glance, from the admin ports of its masters: `host:port`, with a comma between two of them. Of the
/// one that decides, if it is among them.
///
/// # Errors
/// See [`ClientError`].
pub async fn status(admin: &str) -> Result<Status, ClientError> {
    let mut best: Option<Result<Status, ClientError>> = None;
    for address in admin.split(',') {
        let status: Result<Status, _> =
            ask_one(address, Method::GET, "/status", None, Bytes::new()).await;
        if let Ok(status) = &status
            && status.masters.first().is_some_and(|this| this.role == "active")
        {
            best = Some(Ok(status.clone()));
            break;
        }
        if status.is_ok() || best.as_ref().is_none_or(Result::is_err) {
            best = Some(status);
        }
    }
    best.expect("a split text has at least one part")
}

/// Looks for instances, users or servers.
///
/// # Errors
/// See [`ClientError`].
pub async fn find(admin: &str, find: &Find) -> Result<Rows, ClientError> {
    ask(admin, Method::POST, "/find", None, json(admin, find)?).await
}

/// Where an instance of the kind would be placed now, and why.
///
/// # Errors
/// See [`ClientError`].
pub async fn placement(admin: &str, kind: &KindName) -> Result<Placement, ClientError> {
    // Kinds may have any letter in their names.
    let path = format!("/placement/{}", in_url(kind.as_str()));
    ask(admin, Method::GET, &path, None, Bytes::new()).await
}

/// Has the cluster do something. Needs its token.
///
/// # Errors
/// See [`ClientError`].
pub async fn act(admin: &str, token: &AdminToken, action: &Action) -> Result<(), ClientError> {
    let done: serde_json::Map<_, _> =
        ask(admin, Method::POST, "/actions", Some(token), json(admin, action)?).await?;
    tracing::debug!(?done, "the cluster has acted");
    Ok(())
}

/// Makes the standby the active, and the active at `admin` the standby. Needs the cluster's token.
///
/// # Errors
/// See [`ClientError`].
pub async fn switchover(admin: &str, token: &AdminToken) -> Result<(), ClientError> {
    let done: serde_json::Map<_, _> =
        ask(admin, Method::POST, "/switchover", Some(token), Bytes::new()).await?;
    tracing::debug!(?done, "the masters have changed their roles");
    Ok(())
}

/// Makes the master at `admin` the active: that one, and no other. Needs the cluster's token.
///
/// # Errors
/// See [`ClientError`].
pub async fn promote(
    admin: &str,
    token: &AdminToken,
    promote: &Promote,
) -> Result<(), ClientError> {
    let body = json(admin, promote)?;
    let done: serde_json::Map<_, _> =
        ask_one(admin, Method::POST, "/promote", Some(token), body).await?;
    tracing::debug!(?done, "the master is the active");
    Ok(())
}

fn json<T: serde::Serialize>(admin: &str, value: &T) -> Result<Bytes, ClientError> {
    serde_json::to_vec(value)
        .map(Bytes::from)
        .map_err(|error| ClientError::Http { address: admin.into(), source: error.into() })
}

/// Asks the masters in turn, until one answers that decides.
async fn ask<T: DeserializeOwned>(
    admin: &str,
    method: Method,
    path: &str,
    token: Option<&AdminToken>,
    body: Bytes,
) -> Result<T, ClientError> {
    let mut refused = None;
    for address in admin.split(',') {
        match ask_one(address, method.clone(), path, token, body.clone()).await {
            Err(ClientError::Refused(problem)) if problem.code == Code::Unavailable.name() => {
                refused = Some(ClientError::Refused(problem));
            }
            // What a master that is there says, says more than that another is not.
            Err(error @ ClientError::Connect { .. }) => {
                refused.get_or_insert(error);
            }
            other => return other,
        }
    }
    Err(refused
        .expect("a split text has at least one part, and each that did not return left an error"))
}

async fn ask_one<T: DeserializeOwned>(
    admin: &str,
    method: Method,
    path: &str,
    token: Option<&AdminToken>,
    body: Bytes,
) -> Result<T, ClientError> {
    let address = admin.trim_start_matches("http://").trim_end_matches('/');
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| ClientError::Http {
        address: address.into(),
        source,
    };
    let exchange = async {
        let socket = TcpStream::connect(address)
            .await
            .map_err(|source| ClientError::Connect { address: address.into(), source })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket))
            .await
            .map_err(|error| failed(error.into()))?;
        let mut request = Request::builder().method(method).uri(path).header(HOST, address);
        request = request.header(CONTENT_TYPE, "application/json");
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, format!("Bearer {}", token.expose()));
        }
        let request = request.body(Full::new(body)).map_err(|error| failed(error.into()))?;
        let answer = async move {
            let answer = sender.send_request(request).await?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await?;
            // The sender goes here: the connection has nothing more to wait for and ends.
            drop(sender);
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>((status, body.to_bytes()))
        };
        let (answer, end) = tokio::join!(answer, connection);
        if let Err(error) = end {
            tracing::debug!(%error, "the connection to the admin port ended");
        }
        answer.map_err(failed)
    };
    let timeout = || ClientError::Timeout { address: address.into(), after: ANSWER_MAX };
    let (status, body) = time::timeout(ANSWER_MAX, exchange).await.map_err(|_| timeout())??;
    let not_ours = || ClientError::NotOurs { address: address.into(), status: status.as_u16() };
    if status == StatusCode::OK {
        return serde_json::from_slice(&body).map_err(|_| not_ours());
    }
    Err(serde_json::from_slice(&body).map_or_else(|_| not_ours(), ClientError::Refused))
}
