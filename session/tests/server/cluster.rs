//! The servers around the clients: a session server as it is, a master and a game server as the test wants them.

use std::{
    cell::{Cell, RefCell},
    fmt::Write,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, Mutex, Once, atomic::Ordering::Relaxed},
    thread::{self, JoinHandle, ThreadId},
    time::Duration,
};

use ecow::EcoString;
use greenroom_link::{ClusterKey, Incoming, Link, Me, Outgoing, accept};
use greenroom_protocol::{
    Channel, Epoch, Generation, Incarnation, InstanceId, KindName, Limits, LinkHeader, MemberId,
    Seat, ServerName, SessionId, StampedHeader,
    wire::{
        client_session::{Found, SessionServer},
        server_server::{Identity, Role},
        session_game::{Attach, Attached, GameToSession, SessionToGame},
        session_master::{
            Answer, Ask, Bind, Bound, Granted, MasterToSession, NewEpoch, Outcome, Received,
            SessionLoad, SessionToMaster, Welcome,
        },
    },
};
use greenroom_session::{Additions, LimitsProfile, Metrics, SessionConfig, auth::Place, bind};
use greenroom_telemetry::{Source as _, Value};
use tokio::{
    net::TcpListener,
    sync::Notify,
    task::LocalSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

pub(crate) const ARENA: InstanceId = InstanceId(77);
pub(crate) const LIFE: Incarnation = Incarnation(5);
/// Longer than anything takes, unless it never ends.
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// Runs a story on one thread, as links want it.
pub(crate) fn story<F: Future<Output = ()>>(story: impl FnOnce(Cluster) -> F) {
    story_with(SessionConfig::default(), Additions::default(), story);
}

pub(crate) fn story_with<F: Future<Output = ()>>(
    config: SessionConfig,
    additions: Additions,
    story: impl FnOnce(Cluster) -> F,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let cluster = Cluster::start(config, additions).await;
        timeout(2 * LONG, story(cluster)).await.expect("the story has an end");
    });
}

/// Waits until something is so.
pub(crate) async fn until(what: &str, so: impl Fn() -> bool) {
    let waited = timeout(LONG, async {
        while !so() {
            sleep(Duration::from_millis(2)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("it never came that {what}"));
}

pub(crate) struct Cluster {
    /// Decides from the beginning.
    pub(crate) master: Rc<Master>,
    pub(crate) standby: Rc<Master>,
    pub(crate) game: Rc<Game>,
    pub(crate) session: Session,
}

impl Cluster {
    async fn start(config: SessionConfig, additions: Additions) -> Self {
        let key = ClusterKey::generate().unwrap();
        let game = Game::start(me(Role::Game, &key)).await;
        let master = Master::start(me(Role::Master, &key), game.address).await;
        master.epoch.set(Epoch { era: 1, epoch: 1 });
        master.decides.set(true);
        let standby = Master::start(me(Role::Master, &key), game.address).await;
        let masters = match config.masters.as_slice() {
            [own] if own != "127.0.0.1:4100" => config.masters,
            _ => vec![standby.address.to_string(), master.address.to_string()],
        };
        let session = Session::start(SessionConfig { masters, ..config }, &key, additions);
        Self { master, standby, game, session }
    }
}

fn me(role: Role, key: &ClusterKey) -> Me {
    let identity = Identity::new(
        "test".into(),
        role,
        ServerName::new(format!("{role}-1")).unwrap(),
        Incarnation(9),
        "test".into(),
    );
    Me { identity, key: key.clone() }
}

/// What nobody listens on.
pub(crate) async fn nowhere() -> String {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string()
}

// The session server ---------------------------------------------------------------------------------------------

pub(crate) struct Session {
    pub(crate) urls: Vec<EcoString>,
    pub(crate) metrics: Arc<Metrics>,
    stop: CancellationToken,
    thread: JoinHandle<()>,
}

impl Session {
    fn start(config: SessionConfig, key: &ClusterKey, additions: Additions) -> Self {
        let any = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
        let config = SessionConfig { tcp: any, ws: any, ..config };
        let (cluster, build) = ("test".into(), "test".into());
        let session = bind(&config, &cluster, key, &build, Place::Development, additions).unwrap();
        let (urls, metrics) = (session.urls().to_vec(), session.metrics());
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        notice_panics();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(session.run(stopped)).unwrap();
        });
        Self { urls, metrics, stop, thread }
    }
    /// The URL of this scheme.
    pub(crate) fn url(&self, scheme: &str) -> &str {
        let prefix = format!("{scheme}://");
        self.urls.iter().find(|url| url.starts_with(&prefix)).unwrap()
    }
    pub(crate) fn counted(&self, name: &str) -> u64 {
        let name = format!("greenroom.session.{name}");
        let mut counted = None;
        self.metrics.read(&mut |of, value| {
            if let (true, Value::Whole(count)) = (of.name == name, value) {
                counted = Some(count);
            }
        });
        counted.unwrap_or_else(|| panic!("{name} is not counted"))
    }
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }
    pub(crate) async fn stopped(&self) {
        until("the server stops", || self.thread.is_finished()).await;
    }
    fn panicked(&self) -> bool {
        PANICKED.lock().unwrap().contains(&self.thread.thread().id())
    }
    pub(crate) fn writes(&self) -> u64 {
        self.metrics.writes.load(Relaxed)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.stop.cancel();
        assert!(thread::panicking() || !self.panicked(), "the server panicked, see above");
    }
}

/// Threads that panicked, also inside a task, where the runtime would hide it.
static PANICKED: Mutex<Vec<ThreadId>> = Mutex::new(Vec::new());

fn notice_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICKED.lock().unwrap().push(thread::current().id());
            usual(panic);
        }));
    });
}

// The master -----------------------------------------------------------------------------------------------------

/// The streams that the masters know.
const STREAMS: u64 = 70;

pub(crate) struct Master {
    epoch: Cell<Epoch>,
    decides: Cell<bool>,
    address: SocketAddr,
    game: SocketAddr,
    link: RefCell<Option<Outgoing>>,
    said: RefCell<Vec<SessionToMaster>>,
    heard: Notify,
    /// Whether requests are answered.
    pub(crate) answers: Cell<bool>,
    generations: Cell<u32>,
}

impl Master {
    async fn start(me: Me, game: SocketAddr) -> Rc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let master = Rc::new(Self {
            epoch: Cell::default(),
            decides: Cell::new(false),
            address: listener.local_addr().unwrap(),
            game,
            link: RefCell::default(),
            said: RefCell::default(),
            heard: Notify::new(),
            answers: Cell::new(true),
            generations: Cell::new(0),
        });
        let accepting = Rc::clone(&master);
        tokio::task::spawn_local(async move {
            while let Ok((socket, _)) = listener.accept().await {
                if let Ok(link) = accept(socket, &me, &[Role::Session]).await {
                    let Link { incoming, outgoing, writer, .. } = link;
                    tokio::task::spawn_local(writer.run());
                    accepting.link.replace(Some(outgoing));
                    if accepting.decides.get() {
                        accepting.say(NewEpoch { streams: Some(STREAMS) });
                    }
                    tokio::task::spawn_local(Rc::clone(&accepting).listen(incoming));
                }
            }
        });
        master
    }

    async fn listen(self: Rc<Self>, mut incoming: Incoming) {
        while incoming.fill().await.is_ok() {
            while let Some(frame) = incoming.next_frame().unwrap() {
                let payload = &incoming.bytes()[frame.payload];
                let (header, body) = StampedHeader::split(payload).unwrap();
                let kind = frame.header.kind;
                let message = SessionToMaster::decode(kind, body, Limits::SERVER).unwrap();
                self.hear(header.n, &message);
                self.said.borrow_mut().push(message);
                self.heard.notify_waiters();
            }
        }
    }

    fn hear(&self, n: u64, message: &SessionToMaster) {
        if n > 0 {
            self.say(Received { n });
        }
        match message {
            SessionToMaster::Report(_) | SessionToMaster::Resume(_) => {
                self.say(Welcome { streams: STREAMS });
            }
            SessionToMaster::Bind(bind) => self.bind(bind),
            SessionToMaster::Ask(ask) if self.answers.get() => self.answer(ask),
            _ => {}
        }
    }

    fn bind(&self, bind: &Bind) {
        self.generations.set(self.generations.get() + 1);
        let elsewhere =
            SessionServer { name: "session-2".into(), urls: vec!["tcp://else:1".into()] };
        self.say(Bound {
            number: bind.number,
            session: SessionId(bind.session_key.0[0].into()),
            generation: Generation(self.generations.get()),
            session_servers: vec![elsewhere],
        });
    }

    pub(crate) fn answer(&self, ask: &Ask) {
        let outcome = match ask.kind {
            0x11 | 0x12 => Outcome::Granted(Granted {
                instance: ARENA,
                kind: KindName::new("arena").unwrap(),
                incarnation: LIFE,
                seat: Seat(u16::try_from(ask.session.0).unwrap()),
                server: ServerName::new("game-1").unwrap(),
                address: self.game.to_string().into(),
                durable: false,
            }),
            _ => Outcome::Found(Found { instances: Vec::new(), cursor: None, explain: None }),
        };
        self.say(Answer { session: ask.session, id: ask.id, outcome });
    }

    fn say(&self, message: impl Into<MasterToSession>) {
        self.stream(0, message);
    }

    /// Says something with this number of its stream.
    pub(crate) fn stream(&self, n: u64, message: impl Into<MasterToSession>) {
        let message = message.into();
        let mut payload = StampedHeader { n, epoch: self.epoch.get() }.bytes().to_vec();
        message.encode_into(&mut payload);
        if let Some(link) = &*self.link.borrow() {
            link.push(LinkHeader { kind: message.kind(), target: 0 }, &[&payload]);
        }
    }

    pub(crate) fn break_link(&self) {
        self.link.take().unwrap().close();
    }
    /// It decides from here on.
    pub(crate) async fn takes_over(&self, epoch: u32) {
        until("there is a link", || self.link.borrow().is_some()).await;
        self.epoch.set(Epoch { era: 1, epoch });
        self.decides.set(true);
        self.say(NewEpoch { streams: Some(STREAMS) });
    }

    pub(crate) fn heard<T>(&self, pick: impl Fn(&SessionToMaster) -> Option<T>) -> Vec<T> {
        self.said.borrow().iter().filter_map(pick).collect()
    }
    pub(crate) fn asks(&self) -> Vec<Ask> {
        self.heard(|message| match message {
            SessionToMaster::Ask(ask) => Some(ask.clone()),
            _ => None,
        })
    }
    /// The newest load that it was told.
    pub(crate) fn load(&self) -> Option<SessionLoad> {
        let loads = self.heard(|message| match message {
            SessionToMaster::Load(load) => Some(load.clone()),
            _ => None,
        });
        loads.into_iter().next_back()
    }
}

// The game server ------------------------------------------------------------------------------------------------

pub(crate) struct Game {
    pub(crate) address: SocketAddr,
    link: RefCell<Option<Outgoing>>,
    attached: RefCell<Vec<Attach>>,
    /// What is not for the server itself: kind, member, frame.
    passed: RefCell<Vec<(u8, MemberId, Vec<u8>)>>,
    detached: RefCell<Vec<MemberId>>,
    gone: CancellationToken,
}

impl Game {
    async fn start(me: Me) -> Rc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gone = CancellationToken::new();
        let game = Rc::new(Self {
            address: listener.local_addr().unwrap(),
            link: RefCell::default(),
            attached: RefCell::default(),
            passed: RefCell::default(),
            detached: RefCell::default(),
            gone: gone.clone(),
        });
        let accepting = Rc::clone(&game);
        tokio::task::spawn_local(async move {
            while let Some(Ok((socket, _))) = gone.run_until_cancelled(listener.accept()).await {
                let link = accept(socket, &me, &[Role::Session]).await.unwrap();
                let Link { incoming, outgoing, writer, .. } = link;
                tokio::task::spawn_local(writer.run());
                accepting.link.replace(Some(outgoing));
                tokio::task::spawn_local(Rc::clone(&accepting).listen(incoming));
            }
        });
        game
    }

    async fn listen(self: Rc<Self>, mut incoming: Incoming) {
        while incoming.fill().await.is_ok() {
            while let Some(frame) = incoming.next_frame().unwrap() {
                let payload = &incoming.bytes()[frame.payload];
                let kind = frame.header.kind;
                match SessionToGame::decode(kind, payload, Limits::SERVER).unwrap() {
                    SessionToGame::Attach(attach) => {
                        let member = attach.member;
                        self.attached.borrow_mut().push(attach);
                        let attached =
                            Attached { member, up_received: 0, down_next: 1, tick_rate: 20 };
                        let message = GameToSession::from(attached);
                        let mut payload = Vec::new();
                        message.encode_into(&mut payload);
                        self.send(&[(message.kind(), 0, payload)]);
                    }
                    SessionToGame::Detach(detach) => {
                        self.detached.borrow_mut().push(detach.member);
                    }
                    SessionToGame::Unknown(kind) => {
                        let passed = (kind, frame.header.member(), payload.to_vec());
                        self.passed.borrow_mut().push(passed);
                    }
                }
            }
        }
    }

    /// Sends frames in one batch: kind, target, payload.
    pub(crate) fn send(&self, frames: &[(u8, u32, Vec<u8>)]) {
        if let Some(link) = &*self.link.borrow() {
            for (kind, target, payload) in frames {
                link.push(LinkHeader { kind: *kind, target: *target }, &[payload]);
            }
        }
    }

    /// It dies: nothing listens there any more.
    pub(crate) fn die(&self) {
        self.gone.cancel();
        if let Some(link) = self.link.take() {
            link.close();
        }
    }
    /// Its link breaks, and it lives on.
    pub(crate) fn break_link(&self) {
        self.link.take().unwrap().close();
    }

    /// What a session is called: its member and channel.
    pub(crate) fn member(&self, session: u8) -> (MemberId, Channel) {
        let attached = self.attached.borrow();
        let of = |attach: &&Attach| attach.session == SessionId(session.into());
        let attach = attached.iter().rev().find(of).unwrap();
        (attach.member, attach.channel)
    }
    pub(crate) fn attaches(&self) -> usize {
        self.attached.borrow().len()
    }
    pub(crate) fn passed(&self, kind: u8, member: MemberId) -> Vec<Vec<u8>> {
        let passed = self.passed.borrow();
        let of = passed.iter().filter(|(of, from, _)| (*of, *from) == (kind, member));
        of.map(|(.., frame)| frame.clone()).collect()
    }
    pub(crate) fn has_detached(&self, member: MemberId) -> bool {
        self.detached.borrow().contains(&member)
    }
}

/// Limits that a test is not to run into.
pub(crate) fn unlimited() -> SessionConfig {
    SessionConfig { limits: LimitsProfile::Load, ..SessionConfig::default() }
}

/// Bytes as a person compares them.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}
