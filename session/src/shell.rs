//! Sockets, tasks and clocks around the core. One thread; nothing here is awaited while the core decides.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fmt, io,
    net::{IpAddr, SocketAddr, TcpListener as StdListener},
    pin::Pin,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::ready,
    time::{Duration, Instant, SystemTime},
};

use ecow::{EcoString, eco_format};
use greenroom_link::{
    ClusterKey, HasMasters, Incoming, Link, LinkError, Me, Outgoing, dial,
    framing::{Fragments, Framing, FramingError, Item, pong},
    stay_linked,
};
use greenroom_logs::{Logs, kinds::ConnectionEnded};
use greenroom_protocol::{
    CLIENT_FRAME_BYTES_MAX, Code, Incarnation, InstanceFrame, Limits, LinkHeader, MasterLink,
    MemberId, Moment, Refusal, ReplyHeader, RequestHeader, ServerName, StampedHeader,
    wire::{
        client_instance,
        client_session::{self, SessionToClient},
        server_server::{Identity, Role},
        session_game::{self, GameToSession},
        session_master::MasterToSession,
    },
};
use greenroom_session_core::{
    CONNECTIONS_MAX, Charge, ConnId, Core, CoreConfig, GameId, Output, Told,
};
use greenroom_telemetry::{Span, Tracer};
use smallvec::SmallVec;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf},
    net::TcpListener,
    task::LocalSet,
    time,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Acceptor, Metrics, Pages, SessionConfig, SessionError, Stream,
    acceptor::{Accepted, Doors, Opened, Port, upgrade},
    auth::{Authenticator, Authenticators, Place},
    connection::{Connection, Connections, Queued, Shared, Sink, Writer},
    refusals::Refusals,
    round_trips::Summary,
    traces::{Traces, trace_header},
};

/// Files that are kept for links, logs and the runtime when connections are bounded by the limit on open files.
const FILES_KEPT: u64 = 64;
/// How long opening a stream (TLS, the WebSocket's upgrade) may take.
const OPENING_MAX: Duration = Duration::from_secs(5);
/// Clients that are told at once why they are not admitted; more are dropped without a word.
const FAREWELLS_MAX: usize = 32;
/// How long a client may take for what is still to be told to it when its connection closes.
const FAREWELL_MAX: Duration = Duration::from_secs(1);
/// A part of a frame may not wait longer than this for its rest.
const PARTIAL_MS: u64 = 10_000;
/// How often clients' silence is looked at, and load is reported.
const SWEEP: Duration = Duration::from_secs(1);
/// Room for the longest frame of a client and what was left of the one before.
const SCRATCH_BYTES: usize = 2 * CLIENT_FRAME_BYTES_MAX;
/// Kind byte of the answer that refuses a request.
const REFUSED: u8 = 0x9f;

thread_local! {
    /// What clients send is read into this, whoever they are: no connection has a read buffer of its own.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; SCRATCH_BYTES]);
}

/// A session server that has its ports and is not running yet. It can be sent to the thread that runs it.
pub struct Session {
    core: CoreConfig,
    me: Me,
    masters: Vec<String>,
    ports: Vec<(StdListener, Framing, Option<TlsAcceptor>)>,
    acceptors: Vec<MakeAcceptor>,
    auth: Authenticators,
    doors: Doors,
    pages: Pages,
    page_url: Option<EcoString>,
    drain_timeout: Duration,
    round_trip_every: Duration,
    labels: Option<EcoString>,
    logs: Logs,
    metrics: Arc<Metrics>,
    tracer: Tracer,
}

/// Makes an acceptor on the thread that it will run on.
pub type MakeAcceptor = Box<dyn FnOnce() -> io::Result<Box<dyn Acceptor>> + Send>;

impl fmt::Debug for Session {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Session({}, {:?})", self.core.name, self.core.urls)
    }
}

/// What a studio adds to a session server.
#[derive(Default)]
pub struct Additions {
    /// Transports of its own.
    pub acceptors: Vec<MakeAcceptor>,
    /// Authenticators of its own.
    pub authenticators: Vec<Box<dyn Authenticator>>,
    /// Pages for browsers, on the port where WebSocket clients connect (see `session.pages`).
    pub pages: Pages,
}

impl fmt::Debug for Additions {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "Additions({} acceptors, {} authenticators, {:?})",
            self.acceptors.len(),
            self.authenticators.len(),
            self.pages
        )
    }
}

/// Takes the ports of a session server. It accepts nobody until [`Session::run`].
///
/// # Errors
/// When a port, a certificate or a key can't be used, or nobody could connect or check in.
pub fn bind(
    config: &SessionConfig,
    cluster: &EcoString,
    key: &ClusterKey,
    build: &EcoString,
    place: Place,
    additions: Additions,
) -> Result<Session, SessionError> {
    if config.tcp.is_none() && config.ws.is_none() && additions.acceptors.is_empty() {
        return Err(SessionError::NoListener);
    }
    let spans = Duration::from_millis(100)..=Duration::from_secs(3_600);
    if !spans.contains(&config.heartbeat) {
        return Err(SessionError::Heartbeat(config.heartbeat));
    }
    if !spans.contains(&config.round_trip_every) {
        return Err(SessionError::RoundTrips(config.round_trip_every));
    }
    let tls = match &config.tls {
        Some(tls) => Some(TlsAcceptor::from(tls.load()?)),
        None => None,
    };
    let auth =
        Authenticators::new(&config.auth, place, &key.derive("guests"), additions.authenticators)?;
    let mut ports = Vec::new();
    let mut urls = Vec::new();
    let mut page_url = None;
    let mut first_port = 0;
    for (address, framing, setting, schemes) in [
        (config.tcp, Framing::LengthPrefixed, "session.tcp", ["tcp", "tls"]),
        (config.ws, Framing::WebSocket, "session.ws", ["ws", "wss"]),
    ] {
        let Some(address) = address else { continue };
        let listen = |source| SessionError::Listen { address, setting, source };
        let listener = listen_on(address).map_err(listen)?;
        let bound = listener.local_addr().map_err(listen)?;
        first_port = if first_port == 0 { bound.port() } else { first_port };
        urls.push(eco_format!("{}://{bound}", schemes[usize::from(tls.is_some())]));
        if framing == Framing::WebSocket {
            let scheme = if tls.is_some() { "https" } else { "http" };
            page_url = Some(eco_format!("{scheme}://{bound}/"));
        }
        ports.push((listener, framing, tls.clone()));
    }
    let are_served = config.pages.unwrap_or(place == Place::Development);
    let pages = if are_served { additions.pages } else { Pages::default() };
    if !config.public_urls.is_empty() {
        urls.clone_from(&config.public_urls);
    }
    let name = config.name.clone().unwrap_or_else(|| {
        ServerName::new(eco_format!("session-{first_port}"))
            .expect("a short name without control characters")
    });
    let identity = Identity::new(
        cluster.clone(),
        Role::Session,
        name.clone(),
        Incarnation(getrandom::u64().expect("randomness: the cluster's key was made from it")),
        build.clone(),
    );
    let logs = config.logs.of(name.as_str(), "session");
    let core = CoreConfig {
        name,
        build: build.clone(),
        urls,
        connections_max: config
            .connections_max
            .unwrap_or_else(connections_max)
            .min(CONNECTIONS_MAX),
        heartbeat_ms: u32::try_from(config.heartbeat.as_millis()).unwrap_or(u32::MAX).max(100),
        limits: config.limits.limits(),
        wall_start_ms: wall_ms(),
        takes_traces: false,
    };
    Ok(Session {
        core,
        me: Me { identity, key: key.clone() },
        masters: config.masters.clone(),
        ports,
        acceptors: additions.acceptors,
        auth,
        doors: Doors::new(config, config.ws.is_some_and(|ws| ws.ip().is_loopback())),
        page_url: page_url.filter(|_| !pages.is_empty()),
        pages,
        drain_timeout: config.drain_timeout,
        round_trip_every: config.round_trip_every,
        labels: (!config.labels.is_empty()).then(|| config.labels.join(",").into()),
        logs,
        metrics: Arc::default(),
        tracer: Tracer::default(),
    })
}

fn listen_on(address: SocketAddr) -> io::Result<StdListener> {
    let socket =
        socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(4_096)?;
    Ok(socket.into())
}

fn connections_max() -> u32 {
    let files =
        rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(1 << 20);
    u32::try_from(files.saturating_sub(FILES_KEPT) / 10 * 9)
        .unwrap_or(u32::MAX)
        .clamp(16, CONNECTIONS_MAX)
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "milliseconds since 1970 fit for 584 million years"
)]
fn wall_ms() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}

impl Session {
    /// Its name in the cluster.
    pub fn name(&self) -> &ServerName {
        &self.core.name
    }

    /// Where clients reach it.
    pub fn urls(&self) -> &[EcoString] {
        &self.core.urls
    }

    /// Where a browser finds its pages, if it has any.
    pub fn page_url(&self) -> Option<&EcoString> {
        self.page_url.as_ref()
    }

    /// Has it trace what is sampled, by its clients or by itself.
    #[must_use]
    pub fn traced(mut self, tracer: Tracer) -> Self {
        self.core.takes_traces = tracer.is_on();
        self.tracer = tracer;
        self
    }

    /// What it counts.
    pub fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.metrics)
    }

    /// Runs until `stop`, then sends its clients elsewhere and returns when they are gone or the drain's time is over.
    /// To be called on the thread that is to be this server, inside a runtime of that thread only.
    ///
    /// # Errors
    /// When an acceptor can't be made.
    pub async fn run(self, stop: CancellationToken) -> Result<(), SessionError> {
        let local = LocalSet::new();
        local.run_until(self.run_locally(stop)).await
    }

    async fn run_locally(self, stop: CancellationToken) -> Result<(), SessionError> {
        let mut core = self.core;
        let mut acceptors: Vec<Box<dyn Acceptor>> = Vec::new();
        for (listener, framing, tls) in self.ports {
            let address = listener.local_addr().unwrap_or_else(|_| SocketAddr::from(([0; 4], 0)));
            let setting = if framing == Framing::WebSocket { "session.ws" } else { "session.tcp" };
            let listener = TcpListener::from_std(listener)
                .map_err(|source| SessionError::Listen { address, setting, source })?;
            acceptors.push(Box::new(Port { listener, framing, tls }));
        }
        for make in self.acceptors {
            let address = SocketAddr::from(([0; 4], 0));
            let acceptor = make().map_err(|source| SessionError::Listen {
                address,
                setting: "a custom acceptor",
                source,
            })?;
            core.urls.push(acceptor.url());
            acceptors.push(acceptor);
        }
        let heartbeat_ms = u64::from(core.heartbeat_ms);
        let shell = Rc::new(Shell {
            core: RefCell::new(Core::new(core)),
            outputs: RefCell::default(),
            connections: RefCell::default(),
            games: RefCell::default(),
            masters: RefCell::default(),
            flushes: RefCell::default(),
            auth: self.auth,
            me: self.me,
            doors: self.doors,
            pages: self.pages,
            started: Instant::now(),
            busy: Cell::new((Duration::ZERO, Instant::now())),
            heartbeat_ms,
            round_trip_every: self.round_trip_every,
            labels: self.labels,
            logs: self.logs.clone(),
            tasks: TaskTracker::new(),
            stopped: CancellationToken::new(),
            farewells: Cell::new(0),
            refusals: Refusals::new(self.logs),
            metrics: self.metrics,
            traces: Traces::new(self.tracer),
        });
        for acceptor in acceptors {
            shell.spawn(Rc::clone(&shell).accept(acceptor, stop.clone()));
        }
        for (place, address) in self.masters.into_iter().enumerate() {
            shell.spawn(Rc::clone(&shell).stay_linked(MasterLink(place), address));
        }
        shell.spawn(Rc::clone(&shell).sweep());
        stop.cancelled().await;
        let busy = shell.busy_permille();
        shell.decide(None, |core, _, out| {
            core.drain(out);
            // Not with the next sweep: until the master knows, it sends clients here.
            core.load(busy, shell.metrics.frames_up.load(Relaxed), out);
        });
        let gone = async {
            while shell.core.borrow().connections() > 0 {
                time::sleep(Duration::from_millis(20)).await;
            }
        };
        if time::timeout(self.drain_timeout, gone).await.is_err() {
            shell.decide(None, |core, _, out| core.close_all(out));
        }
        shell.tasks.close();
        let farewells = async {
            while shell.core.borrow().connections() > 0 {
                time::sleep(Duration::from_millis(20)).await;
            }
        };
        if time::timeout(FAREWELL_MAX * 2, farewells).await.is_err() {
            tracing::debug!("some clients took no farewell");
        }
        shell.stopped.cancel();
        // What the master and the game servers are still to be told goes out before the links end.
        for link in shell.masters.borrow().values() {
            link.close();
        }
        for link in shell.games.borrow().values() {
            link.close();
        }
        if time::timeout(FAREWELL_MAX, shell.tasks.wait()).await.is_err() {
            tracing::debug!("some tasks did not end in time");
        }
        Ok(())
    }
}

struct Shell {
    core: RefCell<Core>,
    /// Taken while outputs are performed, so that its memory is used again.
    outputs: RefCell<Vec<Output>>,
    connections: RefCell<Connections>,
    games: RefCell<BTreeMap<GameId, Outgoing>>,
    masters: RefCell<BTreeMap<MasterLink, Outgoing>>,
    /// Connections that have something to be written at the end of the batch.
    flushes: RefCell<Vec<Shared>>,
    auth: Authenticators,
    me: Me,
    doors: Doors,
    pages: Pages,
    started: Instant,
    /// Processor time of this thread, and when it was read.
    busy: Cell<(Duration, Instant)>,
    heartbeat_ms: u64,
    round_trip_every: Duration,
    /// What its events about connections have of this server.
    labels: Option<EcoString>,
    logs: Logs,
    tasks: TaskTracker,
    stopped: CancellationToken,
    /// Clients that are being told why they are not admitted.
    farewells: Cell<usize>,
    refusals: Refusals,
    metrics: Arc<Metrics>,
    traces: Traces,
}

/// Why a client's connection ends.
enum End {
    /// The client closed it, or it broke.
    Gone,
    /// We close it, after what is queued.
    Closing,
}

impl Shell {
    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.tasks.spawn_local(task);
    }

    #[expect(clippy::cast_possible_truncation, reason = "584 million years of milliseconds fit")]
    fn now(&self) -> Moment {
        Moment(self.started.elapsed().as_millis() as u64)
    }

    /// Microseconds since this server began: what pings are sent with.
    fn micros(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Lets the core decide, and performs what it says. `chunk` is what is being worked through, if anything is.
    fn decide<T>(
        self: &Rc<Self>,
        chunk: Option<&mut [u8]>,
        decision: impl FnOnce(&mut Core, Moment, &mut Vec<Output>) -> T,
    ) -> T {
        let mut outputs = self.outputs.take();
        let result = decision(&mut self.core.borrow_mut(), self.now(), &mut outputs);
        let flush = chunk.is_none();
        let chunk = chunk.map(|chunk| &*chunk);
        for output in outputs.drain(..) {
            self.perform(chunk, output);
        }
        self.outputs.replace(outputs);
        if flush {
            self.flush(None);
        }
        result
    }

    fn perform(self: &Rc<Self>, chunk: Option<&[u8]>, output: Output) {
        match output {
            Output::Client(conn, frame) => {
                let connection = self.connections.borrow().get(conn).cloned();
                if let Some(connection) = connection {
                    self.answers(&connection, &frame);
                    let queued = connection.queue(chunk, &frame);
                    self.queued(&connection, queued);
                }
            }
            Output::Changes(to, changes) => {
                let connections = self.connections.borrow();
                for (conn, header) in to {
                    if let Some(connection) = connections.get(conn) {
                        let queued = connection.queue_parts(chunk, &[&header.bytes(), &changes]);
                        self.queued(connection, queued);
                    }
                }
            }
            Output::Close(conn, _) => {
                if let Some(connection) = self.connections.borrow().get(conn) {
                    // What was queued for it before in this batch goes first.
                    connection.settle(chunk);
                    self.closing(connection);
                }
            }
            Output::Authenticate(conn, credentials) => {
                let shell = Rc::clone(self);
                self.spawn(async move {
                    let Some(address) = shell.address(conn) else { return };
                    let checked = shell.auth.check(address, shell.now(), credentials).await;
                    let result = checked.map(|identity| (identity.user, identity.name));
                    shell.decide(None, |core, now, out| {
                        core.authenticated(now, conn, result, out);
                    });
                });
            }
            Output::Master(link, header, message) => {
                if let Some(master) = self.masters.borrow().get(&link) {
                    let mut payload = header.bytes().to_vec();
                    message.encode_into(&mut payload);
                    master.push(LinkHeader { kind: message.kind(), target: 0 }, &[&payload]);
                }
            }
            Output::CloseMaster(link) => {
                if let Some(master) = self.masters.borrow().get(&link) {
                    master.close();
                }
            }
            Output::Game(game, message) => {
                if let Some(link) = self.games.borrow().get(&game) {
                    let mut payload = Vec::with_capacity(256);
                    message.encode_into(&mut payload);
                    link.push(LinkHeader { kind: message.kind(), target: 0 }, &[&payload]);
                }
            }
            Output::TraceGame(game, member, trace) => {
                if let Some(link) = self.games.borrow().get(&game) {
                    link.push(trace_header(member), &[&trace.bytes()]);
                }
            }
            Output::DialGame(game, address) => self.spawn(Rc::clone(self).play_on(game, address)),
            Output::Tell(told) => self.tell(&told),
        }
    }

    /// If a frame is the answer to a request, takes its time.
    fn answers(&self, connection: &Connection, frame: &[u8]) {
        if let Ok((ReplyHeader { kind, id }, _)) = ReplyHeader::split(frame)
            && client_session::REPLIES.contains(&kind)
            && let Some((since, span)) = connection.answered(id)
        {
            self.metrics.request_duration.record(since.elapsed());
            if let (Some(mut span), REFUSED) = (span, kind) {
                span.fail("refused");
            }
        } else if let Some(&kind) = frame.first()
            && (kind == client_session::CHECKED_IN || kind == client_session::CLOSING)
        {
            let is_in = kind == client_session::CHECKED_IN;
            connection.checked_in(is_in);
            if is_in {
                connection.round_trips.borrow_mut().begin(self.now(), self.round_trip_every);
            }
        }
    }

    fn tell(&self, told: &Told) {
        match told {
            Told::CheckedIn(user, session) => {
                Metrics::add(&self.metrics.check_ins, 1);
                tracing::debug!(%user, %session, "checked in");
            }
            Told::TurnedAway(conn, holder, refusal) => {
                Metrics::add(&self.metrics.turned_away, 1);
                tracing::debug!(?conn, %refusal, "turned a client away");
                let connection = self.connections.borrow().get(*conn).cloned();
                let trace = connection.and_then(|connection| connection.check_in_trace());
                let (now, address) = (self.now(), self.address(*conn));
                self.refusals.tell(now, address, holder.as_ref(), refusal, trace);
            }
            Told::StaleEpoch(MasterLink(link), epoch) => {
                tracing::warn!(link, %epoch, "a master whose epoch is over is told so");
            }
            Told::Follows(MasterLink(link), epoch) => {
                tracing::info!(link, %epoch, "a master decides from here on");
            }
            Told::NotWelcomed(MasterLink(link)) => {
                tracing::warn!(link, "the master did not welcome this server; it is dialled again");
            }
            Told::GameLost(name, why) => {
                tracing::warn!(%name, %why, "a game server is lost to its players")
            }
            Told::UnknownKind(kind) => {
                tracing::debug!(kind, "ignored a message of a newer version")
            }
        }
    }

    fn address(&self, conn: ConnId) -> Option<IpAddr> {
        self.core.borrow().address_of(conn)
    }

    fn queued(self: &Rc<Self>, connection: &Shared, queued: Queued) {
        match queued {
            Queued::Taken => Metrics::add(&self.metrics.frames_down, 1),
            Queued::PatchDropped => return Metrics::add(&self.metrics.patches_dropped, 1),
            Queued::Closed => return Metrics::add(&self.metrics.late, 1),
            Queued::Overflow => {
                Metrics::add(&self.metrics.frames_down, 1);
                Metrics::add(&self.metrics.slow_consumers, 1);
                let conn = connection.id;
                let shell = Rc::clone(self);
                // Not from within a decision: the core may be in the middle of one.
                self.spawn(async move {
                    let text = "more waits for this client than it reads: 256 messages or 256 KiB";
                    let refusal = Refusal::new(Code::SlowConsumer, text);
                    shell.decide(None, |core, _, out| core.close(conn, refusal, out));
                });
            }
        }
        self.list(connection);
    }

    fn closing(&self, connection: &Shared) {
        connection.close();
        self.list(connection);
    }

    /// Has a connection flushed at the end of the batch.
    fn list(&self, connection: &Shared) {
        if connection.list() {
            self.flushes.borrow_mut().push(Rc::clone(connection));
        }
    }

    /// Writes what was queued in this batch: one write for each client.
    fn flush(self: &Rc<Self>, mut chunk: Option<&mut [u8]>) {
        let mut flushes = self.flushes.take();
        for connection in flushes.drain(..) {
            if connection.flush(chunk.as_deref_mut(), &self.metrics) {
                let shell = Rc::clone(self);
                self.spawn(async move {
                    let stale = connection.drain(&shell.metrics).await;
                    shell.refresh(&stale);
                });
            }
        }
        self.flushes.replace(flushes);
    }

    /// Asks the game servers of members whose patches were dropped for a snapshot.
    fn refresh(&self, stale: &[MemberId]) {
        for &member in stale {
            let game = self.core.borrow().game_of(member);
            let games = self.games.borrow();
            if let Some(link) = game.and_then(|game| games.get(&game)) {
                link.push(LinkHeader { kind: session_game::REFRESH, target: member.0 }, &[]);
            }
        }
    }

    // Clients ----------------------------------------------------------------------------------------------------

    async fn accept(self: Rc<Self>, acceptor: Box<dyn Acceptor>, stop: CancellationToken) {
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = acceptor.accept() => accepted,
            };
            match accepted {
                Ok(accepted) => {
                    Metrics::add(&self.metrics.connections, 1);
                    // Boxed, and gone once the stream is open: an idle client pays for what it uses.
                    self.spawn(Rc::clone(&self).open(accepted));
                }
                // One client's own: it hung up while it waited for its turn.
                Err(error) if is_of_one_client(&error) => {
                    tracing::debug!(%error, "a client went away before it was accepted");
                }
                Err(error) => {
                    // Out of files, most likely: those that are connected live on, new ones wait in the kernel.
                    tracing::warn!(%error, "accepting clients failed; trying again in 100 ms");
                    time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// Opens a client's stream, then leaves it to the task that reads it.
    async fn open(self: Rc<Self>, accepted: Accepted) {
        let admitted = self.core.borrow_mut().connect(self.now(), accepted.address.ip());
        let conn = match admitted {
            Ok(conn) => conn,
            Err(refusal) => return Box::pin(self.turn_away(accepted, refusal)).await,
        };
        let framing = accepted.framing;
        let plain = framing == Framing::LengthPrefixed && accepted.tls.is_none();
        let opened = match accepted.stream {
            Stream::Tcp(socket) if plain => Ok((Stream::Tcp(socket), Vec::new())),
            stream @ (Stream::Tcp(_) | Stream::Other(_)) => {
                let opening = Box::pin(self.open_slowly(stream, framing, accepted.tls));
                time::timeout(OPENING_MAX, opening)
                    .await
                    .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            }
        };
        let (stream, rest) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                tracing::debug!(%error, "a client's stream did not open");
                return self.decide(None, |core, _, out| core.disconnect(conn, out));
            }
        };
        if self.core.borrow().is_closing(conn) {
            // Its time was over, or this server's, while the stream was opening.
            return self.decide(None, |core, _, out| core.disconnect(conn, out));
        }
        match stream {
            Stream::Tcp(socket) => {
                let (read, write) = socket.into_split();
                let connection =
                    Rc::new(Connection::new(conn, framing, Sink::Tcp(write), self.now()));
                self.connections.borrow_mut().insert(Rc::clone(&connection));
                self.spawn(Rc::clone(&self).serve(connection, read, rest));
            }
            Stream::Other(stream) => {
                let (read, mut write) = tokio::io::split(stream);
                let sink = Sink::Task(Writer::default());
                let connection = Rc::new(Connection::new(conn, framing, sink, self.now()));
                self.connections.borrow_mut().insert(Rc::clone(&connection));
                let (shell, writer) = (Rc::clone(&self), Rc::clone(&connection));
                let task = self.tasks.spawn_local(async move {
                    let Sink::Task(Writer { ready, .. }) = writer.sink() else { return };
                    loop {
                        let (bytes, stale) = writer.take();
                        if bytes.is_empty() && writer.is_closing() {
                            // Whatever comes of it, the reading half ends by itself.
                            let _gone = write.shutdown().await;
                            return;
                        }
                        if bytes.is_empty() {
                            ready.notified().await;
                        } else if write.write_all(&bytes).await.is_err()
                            || write.flush().await.is_err()
                        {
                            return writer.close();
                        } else {
                            Metrics::add(&shell.metrics.writes, 1);
                            shell.refresh(&stale);
                        }
                    }
                });
                if let Sink::Task(writer) = connection.sink() {
                    writer.task.set(Some(task.abort_handle()));
                }
                self.spawn(Rc::clone(&self).serve(connection, read, rest));
            }
        }
    }

    async fn open_slowly(
        &self,
        stream: Stream,
        framing: Framing,
        tls: Option<TlsAcceptor>,
    ) -> io::Result<(Stream, Vec<u8>)> {
        let mut stream = match (stream, tls) {
            (Stream::Tcp(socket), Some(tls)) => Stream::Other(Box::new(tls.accept(socket).await?)),
            (stream, _) => stream,
        };
        if framing == Framing::LengthPrefixed {
            return Ok((stream, Vec::new()));
        }
        let opened = match &mut stream {
            Stream::Tcp(socket) => upgrade(socket, &self.doors, &self.pages).await?,
            Stream::Other(socket) => upgrade(socket, &self.doors, &self.pages).await?,
        };
        match opened {
            Opened::Client(rest) => Ok((stream, rest)),
            Opened::Page => Err(io::Error::other("it was a browser, and has its page")),
            Opened::Refused(refusal) => Err(io::Error::other(refusal.to_string())),
        }
    }

    /// Tells a client that was not admitted why, as far as it listens.
    async fn turn_away(&self, accepted: Accepted, refusal: Refusal) {
        Metrics::add(&self.metrics.turned_away, 1);
        self.refusals.tell(self.now(), Some(accepted.address.ip()), None, &refusal, None);
        if self.farewells.get() >= FAREWELLS_MAX {
            // Whoever knocks in such numbers may not take the files that players need.
            return;
        }
        self.farewells.set(self.farewells.get() + 1);
        self.say_no(accepted, refusal).await;
        self.farewells.set(self.farewells.get() - 1);
    }

    async fn say_no(&self, accepted: Accepted, refusal: Refusal) {
        tracing::debug!(address = %accepted.address, %refusal, "turned a client away");
        let (Stream::Tcp(mut socket), Framing::LengthPrefixed, None) =
            (accepted.stream, accepted.framing, accepted.tls)
        else {
            return;
        };
        let message = SessionToClient::Closing(refusal);
        let mut frame = vec![message.kind()];
        message.encode_into(&mut frame);
        #[expect(clippy::cast_possible_truncation, reason = "a short text")]
        let len = (frame.len() as u32).to_le_bytes();
        let farewell = async {
            socket.write_all(&[&len[..], &frame].concat()).await?;
            socket.shutdown().await?;
            socket.read(&mut [0; 64]).await
        };
        if let Ok(Err(error)) = time::timeout(FAREWELL_MAX, farewell).await {
            tracing::debug!(%error, "a client that was turned away did not listen");
        }
    }

    /// Reads one client until one side closes.
    async fn serve(
        self: Rc<Self>,
        connection: Shared,
        mut socket: impl AsyncRead + Unpin + 'static,
        mut rest: Vec<u8>,
    ) {
        let mut fragments = Fragments::default();
        if !rest.is_empty() {
            self.read(&connection, &mut rest, &mut fragments);
        }
        let end = loop {
            let step = std::future::poll_fn(|cx| {
                if connection.is_closing() {
                    return std::task::Poll::Ready(Err(End::Closing));
                }
                connection.park(cx.waker());
                SCRATCH.with_borrow_mut(|scratch| {
                    scratch[..rest.len()].copy_from_slice(&rest);
                    let mut buffer = ReadBuf::new(&mut scratch[rest.len()..]);
                    let taken = match ready!(Pin::new(&mut socket).poll_read(cx, &mut buffer)) {
                        Ok(()) if !buffer.filled().is_empty() => rest.len() + buffer.filled().len(),
                        Ok(()) | Err(_) => return std::task::Poll::Ready(Err(End::Gone)),
                    };
                    let used =
                        self.work_through(&connection, &mut scratch[..taken], &mut fragments);
                    rest.clear();
                    rest.extend_from_slice(&scratch[used..taken]);
                    if rest.is_empty() && rest.capacity() > 0 {
                        rest = Vec::new();
                    }
                    std::task::Poll::Ready(Ok(()))
                })
            });
            if let Err(end) = step.await {
                break end;
            }
        };
        if matches!(end, End::Closing) {
            Box::pin(self.farewell(&connection, socket)).await;
        }
        connection.end();
        self.tell_end(&connection);
        self.traces.forget(connection.id);
        self.connections.borrow_mut().remove(connection.id);
        self.decide(None, |core, _, out| core.disconnect(connection.id, out));
    }

    /// Tells that a connection is over, if its client had checked in: strangers decide how many others there are.
    fn tell_end(&self, connection: &Connection) {
        let Some((user, session)) = self.core.borrow().holder_of(connection.id) else { return };
        let Summary { count, p50, p99, last } = connection.round_trips.borrow().summary();
        let lasted = self.now().0.saturating_sub(connection.since.0);
        self.logs.emit(&ConnectionEnded {
            user,
            session,
            labels: self.labels.clone(),
            lasted_ms: Duration::from_millis(lasted),
            round_trips: count,
            round_trip_p50_ms: p50,
            round_trip_p99_ms: p99,
            round_trip_last_ms: last,
        });
    }

    fn read(self: &Rc<Self>, connection: &Shared, rest: &mut Vec<u8>, fragments: &mut Fragments) {
        let used = self.work_through(connection, rest, fragments);
        rest.drain(..used);
    }

    /// Lets a client take what is still to be told to it, and reads what it still sends into nowhere: closing a socket
    /// with unread bytes would reset it, and the client might never see the reason.
    async fn farewell(&self, connection: &Connection, mut socket: impl AsyncRead + Unpin) {
        let farewell = async {
            if let Sink::Tcp(write) = connection.sink() {
                while connection.waiting() > 0 {
                    connection.drain(&self.metrics).await;
                }
                let shut =
                    socket2::SockRef::from(write.as_ref()).shutdown(std::net::Shutdown::Write);
                if shut.is_err() {
                    return;
                }
            }
            let mut nowhere = [0; 1024];
            while let Ok(1..) = socket.read(&mut nowhere).await {}
        };
        if time::timeout(FAREWELL_MAX, farewell).await.is_err() {
            tracing::debug!(?connection, "a client took no farewell");
        }
    }

    /// Works through what a client sent; gives how many bytes of it were whole frames.
    fn work_through(
        self: &Rc<Self>,
        connection: &Shared,
        bytes: &mut [u8],
        fragments: &mut Fragments,
    ) -> usize {
        let conn = connection.id;
        let now = self.now();
        connection.heard.set(now);
        connection.pinged.set(None);
        let mut at = 0;
        let mut whole = false;
        while !connection.is_closing() {
            let frame_max = self.core.borrow().frame_max(conn);
            match connection.framing().next(bytes, &mut at, frame_max, fragments) {
                Ok(Some(Item::Frame(frame))) => {
                    whole = true;
                    self.from_client(now, connection, &bytes[frame]);
                }
                Ok(Some(Item::Assembled(frame))) => {
                    whole = true;
                    self.from_client(now, connection, &frame);
                }
                Ok(Some(Item::Ping(ping))) => self.ping(now, connection, &bytes[ping]),
                Ok(Some(Item::Close)) => {
                    self.closing(connection);
                }
                Ok(Some(Item::Nothing)) => {}
                Ok(None) => break,
                Err(error) => {
                    let code = match &error {
                        FramingError::TooLong { .. } => Code::TooLarge,
                        FramingError::Empty | FramingError::Text | FramingError::WebSocket(_) => {
                            Code::Malformed
                        }
                    };
                    let refusal = Refusal::new(code, eco_format!("{error}"));
                    self.decide(None, |core, _, out| core.close(conn, refusal, out));
                }
            }
        }
        // A frame that was whole meanwhile makes the part behind it a new one.
        let since = connection.partial.get().filter(|_| !whole);
        let partial = at < bytes.len() || fragments.is_open();
        connection.partial.set(partial.then(|| since.unwrap_or(now)));
        self.flush(None);
        at
    }

    /// A WebSocket's ping. It counts as a message: else it would be a way to have this server work and keep answers
    /// without a limit.
    fn ping(self: &Rc<Self>, now: Moment, connection: &Shared, payload: &[u8]) {
        let charge =
            self.decide(None, |core, _, out| core.charge(now, connection.id, payload.len(), out));
        match charge {
            Charge::Fine => {
                let queued = connection.queue_raw(&pong(payload));
                self.queued(connection, queued);
            }
            Charge::Over => Metrics::add(&self.metrics.over_limits, 1),
            Charge::Closed => {}
        }
    }

    /// A frame of a client. What is for an instance goes straight to its game server's link.
    fn from_client(self: &Rc<Self>, now: Moment, connection: &Shared, frame: &[u8]) {
        let conn = connection.id;
        Metrics::add(&self.metrics.frames_up, 1);
        let mut outputs = self.outputs.take();
        let mut core = self.core.borrow_mut();
        let charge = core.charge(now, conn, frame.len(), &mut outputs);
        let kind = frame[0];
        let up = client_instance::UP
            .contains(&kind)
            .then(|| InstanceFrame::channel(frame).ok())
            .flatten();
        let span = self.traces.of(conn, frame);
        let route =
            up.and_then(|channel| core.route_up(conn, channel).map(|route| (channel, route)));
        match (charge, route) {
            (Charge::Closed, _) => {}
            (Charge::Over, _) => {
                Metrics::add(&self.metrics.over_limits, 1);
                core.over_limits(conn, frame, &mut outputs);
            }
            (Charge::Fine, Some((channel, route))) => {
                let games = self.games.borrow();
                let header = LinkHeader { kind: session_game::UP, target: route.member.0 };
                // A call is waited for; what only waits for the next tick can leave with others.
                let may_wait =
                    route.ticks && matches!(kind, client_instance::MESSAGE | client_instance::ACK);
                let sent = games.get(&route.game).map(|link| {
                    if let Some(span) = &span {
                        link.append_soon(trace_header(route.member), &[&span.context().bytes()])?;
                    }
                    match may_wait {
                        true => link.append_soon(header, &[frame]),
                        false => link.append(header, &[frame]),
                    }
                });
                if !matches!(sent, Some(Ok(()))) {
                    Metrics::add(&self.metrics.sent_back, 1);
                    let text =
                        "the way to the game server is full or broken: send it again in a moment";
                    core.send_again(conn, channel, Code::Busy, text, &mut outputs);
                }
            }
            (Charge::Fine, None) => {
                if let Ok((RequestHeader { id, .. }, _)) = RequestHeader::split(frame)
                    && client_session::REQUESTS.contains(&kind)
                {
                    let trace = span.as_ref().map(Span::context);
                    connection.asks(id, span);
                    match trace {
                        Some(trace) => core.traced_frame(now, conn, frame, trace, &mut outputs),
                        None => core.frame(now, conn, frame, &mut outputs),
                    }
                } else if let Some(span) = span
                    && kind == client_session::CHECK_IN
                {
                    let trace = span.context();
                    connection.checks_in(span);
                    core.traced_frame(now, conn, frame, trace, &mut outputs);
                } else if kind == client_session::TRACE && self.traces.is_on() {
                    self.traces.announce(now, conn, frame);
                } else {
                    if kind == client_session::PONG {
                        let mut round_trips = connection.round_trips.borrow_mut();
                        if let Some(took) = round_trips.answered(&frame[1..], self.micros()) {
                            self.metrics.round_trip.record(took);
                        }
                    }
                    core.frame(now, conn, frame, &mut outputs);
                }
            }
        }
        drop(core);
        for output in outputs.drain(..) {
            self.perform(None, output);
        }
        self.outputs.replace(outputs);
    }

    /// Looks at clients that are silent, once a second, asks those whose round trip is to be measured, and says how
    /// busy this server is.
    async fn sweep(self: Rc<Self>) {
        let half = Duration::from_millis(self.heartbeat_ms / 2);
        let mut every = time::interval(SWEEP.min(half).min(self.round_trip_every));
        every.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        while self.stopped.run_until_cancelled(every.tick()).await.is_some() {
            let now = self.now();
            let mut silent: SmallVec<[(ConnId, Refusal); 4]> = SmallVec::new();
            for connection in self.connections.borrow().iter() {
                let quiet_ms = now.0.saturating_sub(connection.heard.get().0);
                let stuck = connection
                    .partial
                    .get()
                    .is_some_and(|since| now.0.saturating_sub(since.0) > PARTIAL_MS);
                // Counted from the ping as well: after a pause of this process the client has not been asked yet.
                let unanswered = connection
                    .pinged
                    .get()
                    .is_some_and(|since| now.0.saturating_sub(since.0) >= self.heartbeat_ms * 2);
                if unanswered && quiet_ms >= self.heartbeat_ms * 3 {
                    let quiet = Duration::from_millis(quiet_ms);
                    let text = eco_format!("nothing was heard for {quiet:?}, and no ping answered");
                    silent.push((connection.id, Refusal::new(Code::IdleTimeout, text)));
                } else if stuck {
                    let text = "the rest of a frame did not come within 10 s";
                    silent.push((connection.id, Refusal::new(Code::IdleTimeout, text)));
                } else if quiet_ms >= self.heartbeat_ms && connection.pinged.get().is_none() {
                    connection.pinged.set(Some(now));
                    let ping = [&[client_session::SERVER_PING], &now.0.to_le_bytes()[..]].concat();
                    let queued = connection.queue(None, &ping);
                    self.queued(connection, queued);
                }
                // The clock is read for each that is asked: writing to those before it takes time, too.
                let mut round_trips = connection.round_trips.borrow_mut();
                let asked = round_trips.ask(now, || self.micros(), self.round_trip_every);
                drop(round_trips);
                if let Some(stamp) = asked {
                    let ping = [&[client_session::SERVER_PING], &stamp.to_le_bytes()[..]].concat();
                    let queued = connection.queue(None, &ping);
                    self.queued(connection, queued);
                }
            }
            let busy = self.busy_permille();
            let open = self.core.borrow().connections();
            Metrics::set(&self.metrics.open, open as u64);
            let frames = self.metrics.frames_up.load(Relaxed);
            self.decide(None, |core, now, out| {
                for (conn, refusal) in silent {
                    core.close(conn, refusal, out);
                }
                core.tick(now, out);
                core.load(busy, frames, out);
            });
        }
    }

    fn busy_permille(&self) -> u16 {
        let spent = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        let spent =
            Duration::new(spent.tv_sec.unsigned_abs(), u32::try_from(spent.tv_nsec).unwrap_or(0));
        let (before, at) = self.busy.replace((spent, Instant::now()));
        let wall = at.elapsed().as_micros().max(1);
        u16::try_from(spent.saturating_sub(before).as_micros() * 1_000 / wall)
            .unwrap_or(1_000)
            .min(1_000)
    }

    // Game servers -----------------------------------------------------------------------------------------------

    /// Holds a link to a game server until it breaks.
    async fn play_on(self: Rc<Self>, game: GameId, address: EcoString) {
        let link = match dial(&address, &self.me, &[Role::Game]).await {
            Ok(link) => link,
            Err(error) => {
                tracing::warn!(%address, %error, "a game server can't be reached");
                let why = error.to_string();
                return self.decide(None, |core, _, out| core.game_unreachable(game, &why, out));
            }
        };
        let Link { peer, mut incoming, outgoing, writer, .. } = link;
        self.games.borrow_mut().insert(game, outgoing.clone());
        self.spawn(async move {
            if let Err(error) = writer.run().await {
                tracing::debug!(%error, "writing to a game server ended");
            }
        });
        self.decide(None, |core, _, out| core.game_linked(game, peer.incarnation, out));
        let ended = loop {
            let filled = tokio::select! {
                () = self.stopped.cancelled() => break LinkError::Closed,
                filled = incoming.fill() => filled,
            };
            if let Err(error) = filled {
                break error;
            }
            let worked = loop {
                match incoming.next_frame() {
                    Ok(Some(frame)) => {
                        let fits =
                            self.from_game(game, incoming.bytes_mut(), frame.header, frame.payload);
                        if let Err(error) = fits {
                            break Err(error);
                        }
                    }
                    Ok(None) => break Ok(()),
                    Err(error) => break Err(error),
                }
            };
            self.flush(Some(incoming.bytes_mut()));
            if let Err(error) = worked {
                break error;
            }
        };
        tracing::debug!(%address, error = %ended, "the link to a game server ended");
        outgoing.close();
        self.games.borrow_mut().remove(&game);
        if !self.stopped.is_cancelled() {
            self.decide(None, |core, _, out| core.game_lost(game, out));
        }
    }

    /// A frame of a game server: for one client, for all of an instance, or for this server.
    fn from_game(
        self: &Rc<Self>,
        game: GameId,
        chunk: &mut [u8],
        header: LinkHeader,
        payload: std::ops::Range<usize>,
    ) -> Result<(), LinkError> {
        match header.kind {
            session_game::UNICAST | session_game::FANOUT if payload.is_empty() => {}
            session_game::UNICAST => {
                let connections = self.connections.borrow();
                let conn = self.core.borrow_mut().down(header.member(), &chunk[payload.clone()]);
                match conn.and_then(|conn| connections.get(conn)) {
                    Some(connection) => {
                        let queued = connection.queue_in_place(chunk, payload, header.member());
                        self.queued(connection, queued);
                    }
                    None => Metrics::add(&self.metrics.late, 1),
                }
            }
            session_game::FANOUT => {
                let connections = self.connections.borrow();
                let core = self.core.borrow();
                for &(member, conn) in core.audience(header.channel()) {
                    if let Some(connection) = connections.get(conn) {
                        let queued = connection.queue_in_place(chunk, payload.clone(), member);
                        self.queued(connection, queued);
                    }
                }
            }
            kind => {
                let message = GameToSession::decode(kind, &chunk[payload], Limits::SERVER)?;
                self.decide(Some(chunk), |core, _, out| core.from_game(game, message, out));
            }
        }
        Ok(())
    }

    // The master -------------------------------------------------------------------------------------------------

    /// Keeps a link to a master until this server stops.
    async fn stay_linked(self: Rc<Self>, master: MasterLink, address: String) {
        self.stopped.run_until_cancelled(stay_linked(master, &address, &self.me, &self)).await;
    }
}

impl HasMasters for Shell {
    fn linked(
        self: &Rc<Self>,
        master: MasterLink,
        _: &Identity,
        outgoing: Outgoing,
        writer: greenroom_link::Writer,
    ) {
        self.masters.borrow_mut().insert(master, outgoing);
        self.spawn(async move {
            if let Err(error) = writer.run().await {
                tracing::debug!(%error, "writing to a master ended");
            }
        });
    }

    fn heard(
        self: &Rc<Self>,
        master: MasterLink,
        incoming: &mut Incoming,
    ) -> Result<(), LinkError> {
        while let Some(frame) = incoming.next_frame()? {
            let (header, body) = StampedHeader::split(&incoming.bytes()[frame.payload])?;
            let message = MasterToSession::decode(frame.header.kind, body, Limits::SERVER)?;
            self.decide(None, |core, now, out| {
                core.from_master(now, master, header, message, out);
            });
        }
        Ok(())
    }

    fn lost(self: &Rc<Self>, master: MasterLink) {
        self.masters.borrow_mut().remove(&master);
        self.decide(None, |core, _, _| core.master_lost(master));
    }
}

/// Whether accepting failed for the sake of who wanted to connect, and says nothing of the next one.
fn is_of_one_client(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::NotConnected
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::Interrupted
    )
}

#[cfg(test)]
mod tests {
    use tokio::net::tcp::OwnedReadHalf;

    use super::*;

    #[test]
    fn an_idle_client_keeps_a_small_future() {
        fn size<F>(_: impl FnOnce(Rc<Shell>, Shared, OwnedReadHalf, Vec<u8>) -> F) -> usize {
            size_of::<F>()
        }
        let bytes = size(Shell::serve);
        assert!(bytes <= 512, "{bytes} bytes for each idle client");
    }
}
