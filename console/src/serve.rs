//! The connections of a port: how many there may be, how long each may take to say what it wants, and how long to take
//! anything of the answer.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time;
use tokio_util::sync::CancellationToken;

use crate::{
    Metrics,
    patient::{Patient, STALL_MAX},
};

/// Connections at once: pages that are kept up to date, and room for who asks beside them.
const CONNECTIONS_MAX: usize = 256;
/// Connections at once that are told that they are too many; beyond, they are closed without a word.
const REFUSED_MAX: usize = 64;
/// How long one that is refused may take to hear it.
const FAREWELL_MAX: Duration = Duration::from_secs(1);
/// How long a request's head may take, and how long a connection waits for the next request.
const HEAD_MAX: Duration = Duration::from_secs(5);
/// Bytes that are read ahead of a connection. A head is smaller, or is refused.
const BUFFER_BYTES: usize = 64 << 10;
/// How long the port waits when the system has no more files for it.
const PAUSE: Duration = Duration::from_secs(1);

const TOO_MANY: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\n\
    Content-Length: 80\r\nConnection: close\r\nRetry-After: 5\r\n\r\n\
    this port has as many connections as it takes: close some, or come again later\r\n";

/// Answers until `stop`, and finishes what was asked before. Whatever is under way ends with this future.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    stop: CancellationToken,
    metrics: Arc<Metrics>,
) {
    serve_who_reads(listener, router, stop, metrics, STALL_MAX).await;
}

/// The same, with how long somebody may take nothing of an answer.
async fn serve_who_reads(
    listener: TcpListener,
    router: Router,
    stop: CancellationToken,
    metrics: Arc<Metrics>,
    stall_max: Duration,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let farewells = Arc::new(Semaphore::new(REFUSED_MAX));
    let mut tasks = JoinSet::new();
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        while tasks.try_join_next().is_some() {}
        let socket = match accepted {
            Ok((socket, _)) => socket,
            Err(error) if is_of_one(&error) => continue,
            Err(error) => {
                tracing::warn!(%error, "the port takes no connection for a moment");
                let _stopped = stop.run_until_cancelled(time::sleep(PAUSE)).await;
                continue;
            }
        };
        if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
            let (router, stop) = (router.clone(), stop.clone());
            let open = Open::new(&metrics);
            let socket = Patient::new(socket, stall_max, Arc::clone(&metrics));
            tasks.spawn(async move {
                answer(socket, router, stop).await;
                drop((open, place));
            });
            continue;
        }
        Metrics::add(&metrics.refused);
        if let Ok(place) = Arc::clone(&farewells).try_acquire_owned() {
            tasks.spawn(async move {
                let _heard = time::timeout(FAREWELL_MAX, refuse(socket)).await;
                drop(place);
            });
        }
    }
    drop(listener);
    while tasks.join_next().await.is_some() {}
}

/// Counts a connection for as long as it is open, however it ends.
struct Open(Arc<Metrics>);

impl Open {
    fn new(metrics: &Arc<Metrics>) -> Self {
        Metrics::add(&metrics.open);
        Self(Arc::clone(metrics))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        Metrics::sub(&self.0.open);
    }
}

/// Whether only this connection is lost.
fn is_of_one(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
    )
}

async fn answer(socket: Patient<TcpStream>, router: Router, stop: CancellationToken) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_MAX)
        .max_buf_size(BUFFER_BYTES)
        .serve_connection(TokioIo::new(socket), TowerToHyperService::new(router));
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection of the admin port ended");
    }
}

/// Says why, and listens until the other side has heard it: with unread bytes, closing would take the answer back.
async fn refuse(mut socket: TcpStream) -> io::Result<()> {
    socket.write_all(TOO_MANY).await?;
    socket.shutdown().await?;
    let mut nowhere = [0; 1024];
    while socket.read(&mut nowhere).await? > 0 {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use axum::routing::get;
    use tokio::net::TcpStream;

    use super::*;

    async fn ask(address: std::net::SocketAddr, path: &str) -> TcpStream {
        let mut socket = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        socket
    }

    async fn answer_of(address: std::net::SocketAddr) -> String {
        let mut answer = String::new();
        ask(address, "/").await.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn one_connection_too_many_is_told_so_and_takes_a_place_that_is_free_again() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (asked, stop) = (Arc::new(Semaphore::new(0)), CancellationToken::new());
        let metrics = Arc::new(Metrics::default());
        let waits = Arc::clone(&asked);
        let wait = async move || {
            waits.add_permits(1);
            std::future::pending::<()>().await;
        };
        let router = Router::new().route("/", get(async || "here")).route("/wait", get(wait));
        let story = async {
            let mut open = Vec::new();
            for _ in 0..CONNECTIONS_MAX {
                open.push(ask(address, "/wait").await);
                asked.acquire().await.unwrap().forget();
            }
            assert_eq!(metrics.open.load(Relaxed), CONNECTIONS_MAX as u64);
            let refused = answer_of(address).await;
            assert_eq!(metrics.refused.load(Relaxed), 1);
            assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
            assert!(refused.ends_with("close some, or come again later\r\n"), "{refused}");
            drop(open);
            while !answer_of(address).await.starts_with("HTTP/1.1 200") {}
            stop.cancel();
        };
        tokio::join!(serve(listener, router, stop.clone(), Arc::clone(&metrics)), story);
        assert_eq!(metrics.open.load(Relaxed), 0);
    }

    /// An answer that no socket's buffers hold, to somebody who does not read it: its connection ends, and says why.
    #[tokio::test]
    async fn who_asks_and_does_not_read_the_answer_loses_the_connection() {
        const LONG: usize = 64 << 20;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let metrics = Arc::new(Metrics::default());
        let router = Router::new().route("/", get(async || vec![b'x'; LONG]));
        let story = async {
            let mut silent = ask(address, "/").await;
            let ended = async {
                while metrics.stuck.load(Relaxed) == 0 || metrics.open.load(Relaxed) > 0 {
                    time::sleep(Duration::from_millis(5)).await;
                }
            };
            time::timeout(Duration::from_secs(60), ended).await.unwrap();
            // What the buffers had is there; the rest of it is not.
            let mut heard = Vec::new();
            let read = silent.read_to_end(&mut heard).await;
            assert!(read.is_err() || heard.len() < LONG, "all of it came");
            stop.cancel();
        };
        let patience = Duration::from_millis(200);
        let served =
            serve_who_reads(listener, router, stop.clone(), Arc::clone(&metrics), patience);
        tokio::join!(served, story);
        assert_eq!((metrics.stuck.load(Relaxed), metrics.open.load(Relaxed)), (1, 0));
    }
}
