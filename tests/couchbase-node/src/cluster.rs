//! A cluster of nodes in one process: starting, stopping, and what a test does to it.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Ports;
use crate::faults::Faults;
use crate::journal::Journal;
use crate::state::{BucketRecord, Node, State, User};
use crate::{Clock, Shared, http, kv};

/// A certificate for 127.0.0.1 with its key, both in PEM.
#[derive(Clone)]
pub struct Tls {
    /// The certificate, and those above it.
    pub certificate: String,
    /// The certificate's key.
    pub key: String,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// What a cluster is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where each node listens; as many as there are nodes. Free ports by default.
    pub ports: Vec<Ports>,
    /// The name of the bucket that is there from the start; none by default only when left empty.
    pub bucket: String,
    /// Copies of each document beside the active one.
    pub copies: u8,
    /// Parts of a bucket. Real clusters have 128 or 1,024; fewer keep the map short.
    pub vbuckets: u16,
    /// Who may log in.
    pub users: Vec<User>,
    /// Where the documents are kept; in memory alone when left out.
    pub folder: Option<PathBuf>,
    /// Listens for TLS too.
    pub tls: Option<Tls>,
    /// Makes the dice of the faults, and the nonces.
    pub seed: u64,
}

impl Options {
    /// So many nodes on free ports, a bucket `greenroom` with one copy beside the active one if there is a second node,
    /// and a user `Administrator` with the password `password`.
    pub fn nodes(nodes: usize) -> Self {
        Self {
            ports: vec![Ports::default(); nodes],
            bucket: "greenroom".to_owned(),
            copies: u8::from(nodes > 1),
            vbuckets: 64,
            users: vec![User::administrator("Administrator", "password")],
            folder: None,
            tls: None,
            seed: 1,
        }
    }
}

/// A running cluster. Dropping it stops its nodes at the next chance; [`Cluster::stop`] waits for them.
pub struct Cluster {
    shared: Arc<Shared>,
    tls: Option<TlsAcceptor>,
    running: Mutex<BTreeMap<usize, Running>>,
    /// Of the runtime that it was started in, where its nodes run.
    runtime: tokio::runtime::Handle,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("ports", &self.ports()).finish_non_exhaustive()
    }
}

/// The tasks of a node.
#[derive(Debug)]
struct Running {
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The sockets of a node before it takes connections.
struct Listeners {
    kv: TcpListener,
    http: TcpListener,
    tls: Option<(TcpListener, TcpListener)>,
}

impl Listeners {
    fn bind(ports: Ports, with_tls: bool) -> io::Result<Self> {
        let listen = |port: u16| {
            let socket = TcpSocket::new_v4()?;
            // A node that comes back on its ports must not wait for the connections of its last life.
            socket.set_reuseaddr(true)?;
            socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
            socket.listen(1024)
        };
        let tls =
            with_tls.then(|| Ok((listen(ports.kv_tls)?, listen(ports.http_tls)?))).transpose();
        let tls: Option<(TcpListener, TcpListener)> = tls.map_err(|error: io::Error| error)?;
        Ok(Self { kv: listen(ports.kv)?, http: listen(ports.http)?, tls })
    }

    fn ports(&self) -> io::Result<Ports> {
        let port = |listener: &TcpListener| listener.local_addr().map(|address| address.port());
        let (kv_tls, http_tls) = match &self.tls {
            Some((kv, http)) => (port(kv)?, port(http)?),
            None => (0, 0),
        };
        Ok(Ports { kv: port(&self.kv)?, http: port(&self.http)?, kv_tls, http_tls })
    }
}

impl Cluster {
    /// Starts the nodes; they take connections when this returns.
    ///
    /// # Errors
    /// When a port is taken, the folder cannot be used, or the certificate is none.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(options: Options) -> io::Result<Self> {
        let tls = options.tls.as_ref().map(acceptor).transpose()?;
        let mut listeners = Vec::new();
        let mut nodes = Vec::new();
        for ports in options.ports {
            let bound = Listeners::bind(ports, tls.is_some())?;
            nodes.push(Node { ports: bound.ports()?, is_up: true, is_member: true });
            listeners.push(bound);
        }
        // The time of the start, so that a cluster that comes back has newer maps than in its last life.
        let revision =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_secs());
        let mut state = State::new(nodes, revision);
        state.users = options.users.into_iter().map(|user| (user.name.clone(), user)).collect();
        if let Some(folder) = &options.folder {
            state.restore(Journal::open(folder)?)?;
        }
        if !options.bucket.is_empty() && !state.buckets.contains_key(&options.bucket) {
            let record = BucketRecord::new(options.bucket, options.vbuckets, options.copies);
            state.save_bucket(record)?;
        }
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            faults: Faults::seeded(options.seed),
            clock: Clock::default(),
            map_changes: tokio::sync::watch::Sender::new(()),
            seeds: options.seed.into(),
        });
        let runtime = tokio::runtime::Handle::current();
        let cluster = Self { shared, tls, running: Mutex::default(), runtime };
        for (node, listeners) in listeners.into_iter().enumerate() {
            cluster.run(node, listeners);
        }
        Ok(cluster)
    }

    fn run(&self, node: usize, listeners: Listeners) {
        let running = Running { stop: CancellationToken::new(), tasks: TaskTracker::new() };
        let accept = |listener: TcpListener, tls: Option<TlsAcceptor>, kind: Kind| {
            let shared = Arc::clone(&self.shared);
            let (stop, tasks) = (running.stop.clone(), running.tasks.clone());
            let accepting = accept_all(listener, tls, kind, node, shared, stop, tasks);
            running.tasks.spawn_on(accepting, &self.runtime);
        };
        accept(listeners.kv, None, Kind::KeyValue);
        accept(listeners.http, None, Kind::Http);
        if let Some((kv, http)) = listeners.tls {
            accept(kv, self.tls.clone(), Kind::KeyValue);
            accept(http, self.tls.clone(), Kind::Http);
        }
        let mut all = self.running.lock().expect("nobody panics while holding it");
        all.insert(node, running);
    }

    /// What goes wrong on command.
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// The wall clock of every node.
    pub fn clock(&self) -> &Clock {
        &self.shared.clock
    }

    /// Where each node listens.
    pub fn ports(&self) -> Vec<Ports> {
        self.shared.lock().nodes.iter().map(|node| node.ports).collect()
    }

    /// How a client reaches the cluster.
    pub fn connection_string(&self) -> String {
        let hosts: Vec<String> =
            self.ports().iter().map(|ports| format!("127.0.0.1:{}", ports.kv)).collect();
        format!("couchbase://{}", hosts.join(","))
    }

    /// How a client reaches the cluster over TLS.
    pub fn tls_connection_string(&self) -> String {
        let hosts: Vec<String> =
            self.ports().iter().map(|ports| format!("127.0.0.1:{}", ports.kv_tls)).collect();
        format!("couchbases://{}", hosts.join(","))
    }

    /// Adds somebody who may log in, or changes what is known of them.
    pub fn put_user(&self, user: User) {
        self.shared.lock().users.insert(user.name.clone(), user);
    }

    /// Adds a bucket.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub fn create_bucket(&self, name: &str, vbuckets: u16, copies: u8) -> io::Result<()> {
        let record = BucketRecord::new(name, vbuckets, copies);
        self.shared.change(|state| state.save_bucket(record))
    }

    /// Every document of a collection by key; a value that is not JSON is its bytes as a list of numbers.
    pub fn documents(
        &self,
        bucket: &str,
        scope: &str,
        collection: &str,
    ) -> BTreeMap<String, Value> {
        http::documents(&self.shared, bucket, scope, collection)
    }

    /// Stops a node as a crash would: its listeners and connections are gone at once. It stays a member.
    pub async fn stop_node(&self, node: usize) {
        self.shared.lock().nodes[node].is_up = false;
        let running = {
            let mut all = self.running.lock().expect("nobody panics while holding it");
            all.remove(&node)
        };
        if let Some(running) = running {
            running.stop.cancel();
            running.tasks.close();
            running.tasks.wait().await;
        }
    }

    /// Starts a stopped node on the ports that it had; it fetches what it missed.
    ///
    /// # Errors
    /// When somebody else has taken its ports.
    pub fn start_node(&self, node: usize) -> io::Result<()> {
        let ports = self.shared.lock().nodes[node].ports;
        let _entered = self.runtime.enter();
        let listeners = Listeners::bind(ports, self.tls.is_some())?;
        self.shared.change(|state| state.return_of(node));
        self.run(node, listeners);
        Ok(())
    }

    /// Takes a node out of the cluster: standbys become active for its parts. What only it had is lost.
    pub fn fail_over(&self, node: usize) {
        self.shared.change(|state| state.fail_over(node));
    }

    /// Makes every node that is up a member and spreads the parts anew.
    pub fn rebalance(&self) {
        self.shared.change(State::rebalance);
    }

    /// Makes another node the active one for a part of a bucket. With `in_secret`, no client is told.
    pub fn move_part(&self, bucket: &str, part: u16, to: usize, in_secret: bool) {
        if in_secret {
            self.shared.lock().move_part(bucket, part, to);
        } else {
            self.shared.change(|state| state.move_part(bucket, part, to));
        }
    }

    /// Whether writes reach the standby copies. While they do not, a failover loses what was not durable.
    pub fn set_copying(&self, is_copying: bool) {
        self.shared.change(|state| state.set_copying(is_copying));
    }

    /// Stops every node and waits until their tasks have ended.
    pub async fn stop(self) {
        for node in 0..self.ports().len() {
            self.stop_node(node).await;
        }
    }
}

/// A cluster on a thread of its own, for tests that block theirs. Dropped, it is stopped.
#[derive(Debug)]
pub struct Background {
    cluster: Arc<Cluster>,
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Background {
    /// Starts the nodes; they take connections when this returns.
    ///
    /// # Errors
    /// As [`Cluster::start`]; when a thread cannot be started.
    pub fn start(options: Options) -> io::Result<Self> {
        let (ready, started) = std::sync::mpsc::sync_channel(1);
        let stop = CancellationToken::new();
        let until = stop.clone();
        let body = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let cluster = runtime.and_then(|runtime| {
                let cluster = runtime.block_on(async { Cluster::start(options) })?;
                Ok((runtime, Arc::new(cluster)))
            });
            match cluster {
                Ok((runtime, cluster)) => {
                    let told = ready.send(Ok(cluster));
                    if told.is_ok() {
                        runtime.block_on(until.cancelled());
                    }
                }
                // Nobody waits for it any more when this fails.
                Err(error) => drop(ready.send(Err(error))),
            }
        };
        let thread = std::thread::Builder::new().name("couchbase-node".into()).spawn(body)?;
        let cluster = started.recv().map_err(io::Error::other)??;
        Ok(Self { cluster, stop, thread: Some(thread) })
    }
}

impl std::ops::Deref for Background {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of the nodes has panicked");
        }
    }
}

/// Which protocol a listener speaks.
#[derive(Debug, Clone, Copy)]
enum Kind {
    KeyValue,
    Http,
}

async fn accept_all(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    kind: Kind,
    node: usize,
    shared: Arc<Shared>,
    stop: CancellationToken,
    tasks: TaskTracker,
) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else { continue };
        let (shared, stop, tls) = (Arc::clone(&shared), stop.clone(), tls.clone());
        tasks.spawn(async move {
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "a connection ended before it began");
                return;
            }
            match tls {
                None => serve(stream, kind, node, shared, stop).await,
                Some(tls) => serve_tls(stream, tls, kind, node, shared, stop).await,
            }
        });
    }
}

async fn serve_tls(
    stream: TcpStream,
    tls: TlsAcceptor,
    kind: Kind,
    node: usize,
    shared: Arc<Shared>,
    stop: CancellationToken,
) {
    let accepted = tokio::select! {
        () = stop.cancelled() => return,
        accepted = tls.accept(stream) => accepted,
    };
    match accepted {
        Ok(stream) => serve(stream, kind, node, shared, stop).await,
        Err(error) => tracing::debug!(%error, "a client did not take the certificate"),
    }
}

async fn serve<S>(stream: S, kind: Kind, node: usize, shared: Arc<Shared>, stop: CancellationToken)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    match kind {
        Kind::KeyValue => kv::serve(stream, shared, node, stop).await,
        Kind::Http => http::serve(stream, shared, node, stop).await,
    }
}

fn acceptor(tls: &Tls) -> io::Result<TlsAcceptor> {
    let wrong = |error: &dyn std::fmt::Display| io::Error::other(error.to_string());
    let certificates: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(tls.certificate.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| wrong(&error))?;
    let key = PrivateKeyDer::from_pem_slice(tls.key.as_bytes()).map_err(|error| wrong(&error))?;
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .map_err(|error| wrong(&error))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
