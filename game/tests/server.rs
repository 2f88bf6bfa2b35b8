//! A game server between a master and a session server that are made of bare links, over real sockets.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]
#![expect(clippy::wildcard_enum_match_arm, reason = "a test waits for one thing among all others")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use greenroom_game::{Game, GameConfig, GameError, Metrics, Registry, bind};
use greenroom_game_core::{
    CallId, Cx, Instance, Kind, Never, Raw, Reject, Search, Seat, StoreRefusal, StoreTicket,
    Stored, field,
};
use greenroom_games::{Arena, Crowd, Echo};
use greenroom_link::{ClusterKey, Incoming, Link, Me, Outgoing, accept, dial};
use greenroom_logs::read::{From, Reader};
use greenroom_logs::{LogWriter, LogsConfig};
use greenroom_protocol::search::FieldType;
use greenroom_protocol::wire::client_instance::{
    CALL, DOWN_ACK, EVENT, MESSAGE, PATCH, REPLY, SNAPSHOT_PIECE,
};
use greenroom_protocol::wire::master_game::{
    CreateInstance, DestroyInstance, FreeSeat, GameReport, GameToMaster, MasterToGame, Measure,
    Renewed, SeatState,
};
use greenroom_protocol::wire::master_game::{Restore, RestoredSeat};
use greenroom_protocol::wire::server_server::{Identity, Role};
use greenroom_protocol::wire::session_game::{
    Attach, Detach, FANOUT, GameToSession, SessionToGame, UNICAST, UP,
};
use greenroom_protocol::wire::session_master::{NewEpoch, Received, Welcome};
use greenroom_protocol::{
    Channel, Code, DownHeader, Epoch, Generation, Inbound, Incarnation, InstanceId, Key, KindName,
    Limits, LinkHeader, MemberId, PatchHeader, PieceHeader, Refusal, Seq, ServerName, SessionId,
    StampedHeader, UpHeader, UserId,
};
use greenroom_storage::{Body, Cause, Collection, Index, Schema, SetAside, Storage, StorageConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes; a test that waits as long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

fn key() -> ClusterKey {
    "11".repeat(32).parse().unwrap()
}

fn me(role: Role, name: &str) -> Me {
    let identity = Identity::new(
        "test".into(),
        role,
        ServerName::new(name).unwrap(),
        Incarnation(9),
        "test".into(),
    );
    Me { identity, key: key() }
}

/// A game server on its thread, and the ports of the two masters that it dials.
struct Server {
    masters: [TcpListener; 2],
    address: SocketAddr,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<Result<(), GameError>>>,
}

impl Server {
    async fn start() -> Self {
        Self::start_with(GameConfig::default()).await
    }
    async fn start_with(config: GameConfig) -> Self {
        Self::start_in(config, None).await
    }
    async fn start_in(config: GameConfig, store: Option<&Storage>) -> Self {
        let bind_any = || TcpListener::bind("127.0.0.1:0");
        let listeners = [bind_any().await.unwrap(), bind_any().await.unwrap()];
        let masters = listeners.iter().map(|of| of.local_addr().unwrap().to_string()).collect();
        let config = GameConfig { masters, ..config };
        let registry = Registry::new().with::<Arena>().with::<Crowd>().with::<Echo>();
        let registry = registry.with::<Flood>().with::<Tellall>().with::<Saga>().with::<Archive>();
        let game: Game = bind(&config, &"test".into(), &key(), &"test".into(), registry).unwrap();
        let game = store.into_iter().fold(game, |game, store| game.stored_in(store.clone()));
        let (address, metrics) = (game.address(), game.metrics());
        let stop = CancellationToken::new();
        let stopping = stop.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(game.run(stopping))
        });
        Self { masters: listeners, address, metrics, stop, thread: Some(thread) }
    }
    /// The first master decides over the next link to it, and knows these streams.
    async fn master(&self, streams: u64) -> Master {
        Master::welcome(self.dialled(0).await, streams).await
    }
    /// A master that says nothing yet.
    async fn linked(&self, master: usize) -> Master {
        Master::accept(self.dialled(master).await).await
    }
    async fn dialled(&self, master: usize) -> TcpStream {
        timeout(PATIENCE, self.masters[master].accept()).await.unwrap().unwrap().0
    }
    async fn session(&self, name: &str) -> Session {
        let address = self.address.to_string();
        let link = dial(&address, &me(Role::Session, name), &[Role::Game]).await.unwrap();
        let Link { incoming, outgoing, writer, .. } = link;
        tokio::task::spawn_local(writer.run());
        Session { incoming, outgoing }
    }
    /// Waits until the server has stopped.
    async fn stopped(&mut self) -> Result<(), GameError> {
        let thread = self.thread.take().unwrap();
        timeout(PATIENCE, tokio::task::spawn_blocking(|| thread.join().unwrap()))
            .await
            .unwrap()
            .unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

struct Master {
    incoming: Incoming,
    outgoing: Outgoing,
    sent: u64,
    epoch: Epoch,
    inbound: Inbound,
    report: Option<GameReport>,
    /// Whether what comes in the stream is acknowledged.
    acknowledges: bool,
    /// Whether loads are confirmed, which renews the lease.
    renews: bool,
    /// How many were.
    renewed: u32,
}

impl Drop for Master {
    fn drop(&mut self) {
        self.outgoing.close();
    }
}

impl Master {
    /// Opens the link, decides, hears the report or that the server goes on, and welcomes it.
    async fn welcome(socket: TcpStream, streams: u64) -> Self {
        let mut master = Self::accept(socket).await;
        if let GameToMaster::Report(report) = master.decides(1, Some(streams)).await {
            master.report = Some(report);
        }
        master.say_outside(&Welcome { streams }.into());
        master
    }
    /// Says that it decides from here on; gives the answer.
    async fn decides(&mut self, epoch: u32, streams: Option<u64>) -> GameToMaster {
        self.epoch = Epoch { era: 1, epoch };
        self.say_outside(&NewEpoch { streams }.into());
        let answer = self.hear_any().await;
        assert!(matches!(answer, GameToMaster::Report(_) | GameToMaster::Resume(_)), "{answer:?}");
        answer
    }
    /// Opens the link.
    async fn accept(socket: TcpStream) -> Self {
        let link = accept(socket, &me(Role::Master, "m1"), &[Role::Game]).await.unwrap();
        let Link { incoming, outgoing, writer, .. } = link;
        tokio::task::spawn_local(writer.run());
        Self {
            incoming,
            outgoing,
            sent: 0,
            epoch: Epoch { era: 1, epoch: 1 },
            inbound: Inbound::default(),
            report: None,
            acknowledges: true,
            renews: true,
            renewed: 0,
        }
    }
    /// The next message but loads and acknowledgements.
    async fn hear(&mut self) -> GameToMaster {
        loop {
            let message = self.hear_any().await;
            if !matches!(message, GameToMaster::Load(_) | GameToMaster::Received(_)) {
                return message;
            }
        }
    }
    async fn hear_any(&mut self) -> GameToMaster {
        loop {
            if let Some(frame) = self.incoming.next_frame().unwrap() {
                let payload = &self.incoming.bytes()[frame.payload];
                let (header, body) = StampedHeader::split(payload).unwrap();
                let message =
                    GameToMaster::decode(frame.header.kind, body, Limits::SERVER).unwrap();
                if header.n > 0 {
                    assert!(self.inbound.accept(header.n), "{} is not next: {message:?}", header.n);
                    if self.acknowledges {
                        self.say_outside(&Received { n: header.n }.into());
                    }
                }
                if let GameToMaster::Load(load) = &message
                    && self.renews
                {
                    self.renewed += 1;
                    self.say_outside(&Renewed { sent: load.sent }.into());
                }
                return message;
            }
            timeout(PATIENCE, self.incoming.fill()).await.expect("the server says more").unwrap();
        }
    }
    fn say_outside(&self, message: &MasterToGame) {
        self.say(message, 0);
    }
    /// Waits until the server says that this master's epoch is over.
    async fn fenced(&mut self) {
        assert!(matches!(self.hear().await, GameToMaster::Fenced(_)));
    }
    fn order(&mut self, message: &MasterToGame) {
        self.sent += 1;
        self.say(message, self.sent);
    }
    fn say(&self, message: &MasterToGame, n: u64) {
        let mut payload = StampedHeader { epoch: self.epoch, n }.bytes().to_vec();
        message.encode_into(&mut payload);
        self.outgoing.push(LinkHeader { kind: message.kind(), target: 0 }, &[&payload]);
    }
    /// Has an instance made.
    async fn create(&mut self, kind: &str, id: u128) -> GameToMaster {
        self.order(&order(kind, id).into());
        self.hear().await
    }
    /// Has an instance with a unique key made.
    async fn create_with_key(&mut self, kind: &str, id: u128) {
        let key = Some(Key::new(format!("{kind} {id}")).unwrap());
        self.order(&CreateInstance { key, ..order(kind, id) }.into());
        assert!(matches!(self.hear().await, GameToMaster::Running(_)));
    }
    /// Waits for what is said of a seat.
    async fn seat(&mut self) -> (Seat, SeatState) {
        loop {
            if let GameToMaster::SeatChanged(changed) = self.hear().await {
                return (changed.seat, changed.state);
            }
        }
    }
}

fn order(kind: &str, id: u128) -> CreateInstance {
    CreateInstance {
        instance: InstanceId(id),
        incarnation: Incarnation(1),
        kind: KindName::new(kind).unwrap(),
        params: Default::default(),
        seed: [1; 32],
        owner: None,
        key: None,
        created_ms: 0,
        private: false,
        restore: None,
    }
}

fn destroy(id: u128) -> DestroyInstance {
    let refusal = Refusal::new(Code::Destroyed, "it runs elsewhere");
    DestroyInstance { instance: InstanceId(id), incarnation: Incarnation(1), refusal }
}

struct Session {
    incoming: Incoming,
    outgoing: Outgoing,
}

/// What a session server hears.
#[derive(Debug)]
enum Heard {
    Control(GameToSession),
    /// A frame for a member: kind, header, payload.
    Down(MemberId, DownHeader, Vec<u8>),
    Piece(PieceHeader, usize),
    OwnPatch,
    Fanout(Channel, PatchHeader),
}

impl Session {
    fn say(&self, message: &SessionToGame) {
        let mut payload = Vec::new();
        message.encode_into(&mut payload);
        self.outgoing.push(LinkHeader { kind: message.kind(), target: 0 }, &[&payload]);
    }
    fn attach(&self, member: u32, channel: u32, instance: u128, seat: u16, generation: u32) {
        self.attach_to(1, member, channel, instance, seat, generation);
    }
    /// The same, to a later life of it.
    fn attach_to(
        &self,
        life: u64,
        member: u32,
        channel: u32,
        instance: u128,
        seat: u16,
        generation: u32,
    ) {
        self.say(&SessionToGame::Attach(Attach {
            member: MemberId(member),
            channel: Channel(channel),
            instance: InstanceId(instance),
            incarnation: Incarnation(life),
            seat: Seat(seat),
            user: UserId::new(format!("user-{seat}")).unwrap(),
            name: "Somebody".into(),
            session: SessionId(u64::from(seat) + 100),
            generation: Generation(generation),
            options: Default::default(),
        }));
    }
    fn up(&self, member: u32, kind: u8, number: u32, ack: u32, payload: &[u8]) {
        let up = UpHeader { kind, channel: Channel(0), number: Seq(number), ack: Seq(ack) };
        let header = LinkHeader { kind: UP, target: member };
        self.outgoing.push(header, &[&up.bytes(), payload]);
    }
    async fn hear(&mut self) -> Heard {
        loop {
            if let Some(frame) = self.incoming.next_frame().unwrap() {
                let payload = &self.incoming.bytes()[frame.payload];
                let member = frame.header.member();
                return match frame.header.kind {
                    FANOUT => {
                        let (header, _) = PatchHeader::split(payload).unwrap();
                        assert_eq!(header.channel, frame.header.channel());
                        Heard::Fanout(header.channel, header)
                    }
                    UNICAST if payload[0] == SNAPSHOT_PIECE => {
                        let (header, piece) = PieceHeader::split(payload).unwrap();
                        Heard::Piece(header, piece.len())
                    }
                    UNICAST if payload[0] == PATCH => Heard::OwnPatch,
                    UNICAST => {
                        let (header, payload) = DownHeader::split(payload).unwrap();
                        Heard::Down(member, header, payload.to_vec())
                    }
                    kind => Heard::Control(
                        GameToSession::decode(kind, payload, Limits::SERVER).unwrap(),
                    ),
                };
            }
            timeout(PATIENCE, self.incoming.fill()).await.expect("the server says more").unwrap();
        }
    }
    async fn control(&mut self) -> GameToSession {
        loop {
            if let Heard::Control(message) = self.hear().await {
                return message;
            }
        }
    }
    /// The next frame for a member that is not only an acknowledgement.
    async fn down(&mut self) -> (MemberId, DownHeader, Vec<u8>) {
        loop {
            match self.hear().await {
                Heard::Down(member, header, payload) if header.kind != DOWN_ACK => {
                    return (member, header, payload);
                }
                _ => {}
            }
        }
    }
}

/// Runs a test on one thread, as links want it.
fn run<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async { timeout(PATIENCE * 3, test).await.unwrap() });
}

/// Waits until something is so that nobody tells of.
async fn found<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let mut found = None;
    until(what, async || {
        found = look().await;
        found.is_some()
    })
    .await;
    found.unwrap()
}

async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let waited = timeout(PATIENCE, async {
        while !so().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("it never came that {what}"));
}

/// A view of 200 kB that is another one at each of 128 ticks a second: no link takes that for long.
struct Flood(Vec<u64>);

impl Instance for Flood {
    const KIND: Kind<Self> =
        Kind::new("flood").tick_rate(128).patch_interval(Duration::from_millis(7));
    type Params = ();
    type Meta = ();
    type In = Raw;
    type Query = Never;
    type Reply = Raw;
    type Out = Never;
    type Timer = Never;
    type View<'a> = &'a [u64];
    type PrivateView<'a> = ();

    fn create((): (), _: &mut Cx<Self>) -> Result<Self, Reject> {
        Ok(Self(vec![u64::MAX; 22_000]))
    }
    fn message(&mut self, _: Seat, input: Raw, cx: &mut Cx<Self>) {
        cx.reply(input);
    }
    fn tick(&mut self, cx: &mut Cx<Self>) {
        for n in &mut self.0 {
            *n = u64::from(cx.random().below(u32::MAX)) << 32 | 1 << 63;
        }
    }
    fn view(&self) -> &[u64] {
        &self.0
    }
}

/// Tells everybody what it hears, at once.
struct Tellall;

impl Instance for Tellall {
    const KIND: Kind<Self> = Kind::new("tellall").weight(7);
    type Params = ();
    type Meta = ();
    type In = u32;
    type Query = Never;
    type Reply = ();
    type Out = u32;
    type Timer = Never;
    type View<'a> = ();
    type PrivateView<'a> = ();

    fn create((): (), cx: &mut Cx<Self>) -> Result<Self, Reject> {
        cx.set_open(false);
        Ok(Self)
    }
    fn message(&mut self, _: Seat, input: u32, cx: &mut Cx<Self>) {
        assert_ne!(input, 13, "told to panic");
        cx.broadcast(input);
    }
    fn view(&self) {}
}

#[test]
fn an_instance_is_made_and_a_seat_is_answered() {
    run(async {
        let server = Server::start().await;
        let mut master = server.master(1).await;
        let report = master.report.take().unwrap();
        assert_eq!(report.address, server.address.to_string());
        assert!(
            report.kinds.iter().any(|kind| kind.name.as_str() == "arena" && kind.tick_rate == 20)
        );
        assert!(matches!(master.create("echo", 5).await, GameToMaster::Running(_)));

        let mut session = server.session("s1").await;
        session.attach(3, 8, 5, 0, 1);
        let GameToSession::Attached(attached) = session.control().await else { panic!() };
        assert_eq!(
            (attached.member, attached.up_received, attached.down_next),
            (MemberId(3), 0, 1)
        );
        assert_eq!(master.seat().await, (Seat(0), SeatState::Taken));
        session.up(3, CALL, 1, 0, b"hello");
        let (member, header, payload) = session.down().await;
        assert_eq!((member, header.kind, header.number), (MemberId(3), REPLY, Seq(1)));
        assert_eq!((header.channel, header.ack), (Channel(8), Seq(1)));
        assert_eq!(payload, b"\x01\0\0\0hello");

        session.say(&Detach { member: MemberId(3) }.into());
        assert_eq!(master.seat().await, (Seat(0), SeatState::Away));
        session.up(3, CALL, 2, 0, b"anybody?"); // Nobody: it is dropped and counted.
        session.attach(4, 9, 5, 0, 2);
        assert_eq!(master.seat().await, (Seat(0), SeatState::Taken));
        assert_eq!(server.metrics.late.load(Relaxed), 1);
    });
}

/// A session server uses a member's place again, with another number: what was under way to the one before reaches
/// nobody, however high numbers get.
#[test]
fn a_place_that_is_used_again_is_another_member() {
    run(async {
        let server = Server::start().await;
        let mut master = server.master(1).await;
        master.create("echo", 5).await;
        let mut session = server.session("s1").await;
        let numbers = [7, 1 << 20 | 7, 0xfff << 20 | 7];
        for (seat, number) in (0u16..).zip(numbers) {
            session.attach(number, 8, 5, seat, 1);
            let attached = loop {
                if let GameToSession::Attached(attached) = session.control().await {
                    break attached;
                }
            };
            assert_eq!(attached.member, MemberId(number));
            for old in numbers.into_iter().take_while(|&old| old != number) {
                session.up(old, CALL, 1, 0, b"late");
            }
            session.up(number, CALL, 1, 0, b"mine");
            let (member, _, payload) = session.down().await;
            assert_eq!((member, &payload[4..]), (MemberId(number), &b"mine"[..]));
        }
        assert_eq!(server.metrics.late.load(Relaxed), 3);
    });
}

#[test]
fn a_patch_goes_once_to_each_channel_and_fits_the_snapshot() {
    run(async {
        let server = Server::start().await;
        let mut master = server.master(1).await;
        master.create("crowd", 5).await;
        let (mut one, mut other) = (server.session("s1").await, server.session("s2").await);
        for seat in 0..3 {
            one.attach(u32::from(seat), 8, 5, seat, 1);
        }
        other.attach(0, 80, 5, 3, 1);
        for (session, channel, members) in [(&mut one, 8, 3), (&mut other, 80, 1)] {
            let mut versions = Vec::new();
            while versions.len() < members {
                if let Heard::Piece(header, bytes) = session.hear().await {
                    assert_eq!(header.total as usize, bytes);
                    versions.push(header.version);
                }
            }
            let mut patches: Vec<PatchHeader> = Vec::new();
            while patches.len() < 4 {
                if let Heard::Fanout(of, header) = session.hear().await {
                    assert_eq!(of, Channel(channel));
                    patches.push(header);
                }
            }
            let follow = patches.windows(2).all(|pair| pair[0].version == pair[1].base);
            assert!(follow, "no patch comes twice and none is missing: {patches:?}");
            assert!(patches.windows(2).all(|pair| pair[1].tick == pair[0].tick + 1));
        }
        assert!(server.metrics.ticks.load(Relaxed) > 0);
        assert_eq!(server.metrics.ticks_given_up.load(Relaxed), 0);
    });
}

#[test]
fn what_was_not_acknowledged_is_sent_again_over_a_new_link() {
    run(async {
        let server = Server::start().await;
        let mut master = server.master(1).await;
        master.create("tellall", 5).await;
        let mut session = server.session("s1").await;
        session.attach(1, 8, 5, 0, 1);
        session.control().await;
        for n in 1..=5 {
            session.up(1, MESSAGE, n, 0, &[u8::try_from(n).unwrap()]);
        }
        for _ in 1..=5 {
            assert_eq!(session.down().await.1.kind, EVENT);
        }
        session.up(1, MESSAGE, 6, 2, &[6]); // It has the first two.
        session.outgoing.close();
        let states = [master.seat().await, master.seat().await];
        assert_eq!(states, [(Seat(0), SeatState::Taken), (Seat(0), SeatState::Away)]);

        let mut session = server.session("s2").await;
        session.attach(70, 9, 5, 0, 2);
        let GameToSession::Attached(attached) = session.control().await else { panic!() };
        assert_eq!((attached.up_received, attached.down_next), (6, 3));
        for n in 3..=6u8 {
            let (member, header, payload) = session.down().await;
            assert_eq!((member, header.number), (MemberId(70), Seq(n.into())));
            assert_eq!(payload, [n]);
        }
    });
}

#[test]
fn a_seat_that_moves_to_another_link_is_told_on_the_old_one() {
    run(async {
        let server = Server::start().await;
        let mut master = server.master(1).await;
        master.create("echo", 5).await;
        let mut old = server.session("s1").await;
        old.attach(1, 8, 5, 0, 1);
        old.control().await;
        let mut new = server.session("s2").await;
        new.attach(2, 9, 5, 0, 2);
        new.control().await;
        let GameToSession::Ended(ended) = old.control().await else { panic!() };
        assert_eq!((ended.member, ended.refusal.code), (MemberId(1), Code::Superseded));
        new.up(2, CALL, 1, 0, b"x");
        assert_eq!(new.down().await.0, MemberId(2));
    });
}

#[test]
fn a_lost_master_stops_nothing_and_the_next_one_learns_everything() {
    run(async {
        let server = Server::start().await;
        let mut master = server.master(1).await;
        let GameToMaster::Running(running) = master.create("tellall", 5).await else { panic!() };
        assert!(!running.open && !running.private);
        let mut session = server.session("s1").await;
        session.attach(1, 8, 5, 0, 1);
        session.control().await;
        drop(master);
        session.up(1, MESSAGE, 1, 0, &[7]);
        assert_eq!(session.down().await.2, [7]);

        let mut master = server.master(2).await;
        let report = master.report.take().unwrap();
        let [held] = &report.instances[..] else { panic!("{report:?}") };
        assert_eq!((held.instance, held.seats.len(), held.open), (InstanceId(5), 1, false));
        assert!(matches!(master.create("echo", 6).await, GameToMaster::Running(_)));

        // The same master over a new link: both streams go on.
        let (sent, inbound) = (master.sent, master.inbound);
        drop(master);
        session.attach(2, 9, 6, 0, 1);
        let mut master = server.master(2).await;
        assert!(master.report.is_none());
        (master.sent, master.inbound) = (sent, inbound);
        assert_eq!(master.seat().await, (Seat(0), SeatState::Taken));
    });
}

/// More than 4 MiB of instances, by long keys and owners.
#[test]
fn a_server_with_very_many_instances_reports_all_of_them_to_the_next_master() {
    const INSTANCES: usize = 14_000;
    run(async {
        let config = GameConfig { capacity: 20_000, ..GameConfig::default() };
        let server = Server::start_with(config).await;
        let mut master = server.master(1).await;
        for n in 0..INSTANCES {
            let key = Some(greenroom_protocol::Key::new(format!("{n:x>128}")).unwrap());
            let owner = Some(greenroom_protocol::UserId::new("x".repeat(64)).unwrap());
            let id = u128::try_from(n).unwrap() + 1;
            master.order(&CreateInstance { key, owner, ..order("echo", id) }.into());
            // One by one, as far as the link's buffer goes.
            assert!(matches!(master.hear().await, GameToMaster::Running(_)));
        }
        drop(master);
        let mut master = server.master(2).await;
        let report = master.report.take().unwrap();
        assert_eq!(report.instances.len(), INSTANCES);
        let mut bytes = Vec::new();
        GameToMaster::from(report).encode_into(&mut bytes);
        assert!(bytes.len() > 4 << 20, "{} bytes", bytes.len());
        // It goes on with a master that knows it.
        assert!(matches!(master.create("echo", 99_999).await, GameToMaster::Running(_)));
    });
}

/// Two masters. The active dies with an order that it has not seen carried out; the standby has the same directory.
#[test]
fn a_standby_that_takes_over_hears_what_was_not_acknowledged_and_nothing_twice() {
    run(async {
        let server = Server::start().await;
        let (mut active, mut standby) = (server.linked(0).await, server.linked(1).await);
        assert!(matches!(active.decides(1, None).await, GameToMaster::Report(_)));
        active.say_outside(&Welcome { streams: 70 }.into());
        assert!(matches!(active.create("echo", 5).await, GameToMaster::Running(_)));
        active.acknowledges = false;
        let mut session = server.session("s1").await;
        session.attach(1, 8, 5, 0, 1);
        assert_eq!(active.seat().await, (Seat(0), SeatState::Taken));
        drop(active);

        assert!(matches!(standby.decides(2, Some(70)).await, GameToMaster::Resume(_)));
        // What the active has acknowledged was committed, so the standby has it.
        standby.inbound = Inbound::up_to(1);
        standby.say_outside(&Welcome { streams: 70 }.into());
        let GameToMaster::SeatChanged(changed) = standby.hear().await else { panic!() };
        assert_eq!((changed.instance, changed.state), (InstanceId(5), SeatState::Taken));
        standby.order(&order("echo", 5).into()); // It does not know whether that came.
        assert!(matches!(standby.create("echo", 6).await, GameToMaster::Running(_)));
        assert_eq!(server.metrics.created.load(Relaxed), 2);
        session.control().await;
        session.up(1, CALL, 1, 0, b"x");
        assert_eq!(session.down().await.0, MemberId(1), "nobody had to attach again");
    });
}

/// The active was stopped for a while; when it goes on, the standby has taken over.
#[test]
fn a_deposed_master_that_speaks_is_told_that_its_epoch_is_over() {
    run(async {
        let server = Server::start().await;
        let (mut deposed, mut master) = (server.master(1).await, server.linked(1).await);
        // A report of the load that it confirmed would be one more message of its old epoch.
        deposed.renews = false;
        assert!(matches!(deposed.create("echo", 5).await, GameToMaster::Running(_)));
        master.decides(2, Some(1)).await;
        (master.sent, master.inbound) = (deposed.sent, deposed.inbound);
        master.say_outside(&Welcome { streams: 1 }.into());
        deposed.order(&destroy(5).into());
        deposed.fenced().await;
        deposed.order(&destroy(5).into());
        deposed.say_outside(&NewEpoch { streams: Some(1) }.into());
        // It is the standby by now, and takes over again: what it said before was not answered.
        assert!(matches!(deposed.decides(3, Some(1)).await, GameToMaster::Resume(_)));
        deposed.say_outside(&Welcome { streams: 1 }.into());
        (deposed.sent, deposed.inbound) = (master.sent, master.inbound);
        assert!(matches!(deposed.create("echo", 6).await, GameToMaster::Running(_)));
        assert_eq!(server.metrics.deposed.load(Relaxed), 3);
        assert_eq!(server.metrics.closed.load(Relaxed), 0);
    });
}

#[test]
fn a_standby_that_comes_and_goes_and_never_speaks_disturbs_nothing() {
    run(async {
        let server = Server::start().await;
        let mut master = server.master(1).await;
        for id in 1..=8 {
            let mut standby = server.linked(1).await;
            if id % 2 == 0 {
                // It speaks, and does not decide.
                standby.order(&order("echo", 100 + id).into());
            }
            master.order(&order("echo", id).into());
            // Those of before end, since nobody comes.
            while !matches!(master.hear().await, GameToMaster::Running(running) if running.instance.0 == id)
            {
            }
        }
        assert_eq!(server.metrics.created.load(Relaxed), 8);
    });
}

#[test]
fn what_happens_while_both_masters_are_away_is_told_to_the_one_that_comes_back() {
    run(async {
        let server = Server::start().await;
        let (mut master, standby) = (server.master(1).await, server.linked(1).await);
        assert!(matches!(master.create("echo", 5).await, GameToMaster::Running(_)));
        let inbound = master.inbound;
        drop(master);
        drop(standby);
        let mut session = server.session("s1").await;
        session.attach(1, 8, 5, 0, 1);
        session.control().await;
        let (_other, mut master) = (server.linked(0).await, server.linked(1).await);
        assert!(matches!(master.decides(9, Some(1)).await, GameToMaster::Resume(_)));
        master.inbound = inbound;
        master.say_outside(&Welcome { streams: 1 }.into());
        assert_eq!(master.seat().await, (Seat(0), SeatState::Taken));
    });
}

#[test]
fn a_master_that_decides_and_does_not_say_welcome_is_dialled_again() {
    run(async {
        let server = Server::start().await;
        let mut master = server.linked(0).await;
        master.decides(1, None).await;
        let mut again = server.linked(0).await;
        assert!(matches!(again.decides(1, None).await, GameToMaster::Report(_)));
        again.say_outside(&Welcome { streams: 1 }.into());
        assert!(matches!(again.create("echo", 5).await, GameToMaster::Running(_)));
    });
}

/// The shortest lease that there may be: what is waited for takes as long.
const LEASE: Duration = Duration::from_secs(2);

/// A server with four instances, and seat 0 of each on one link: members and channels have the instances' numbers.
/// 5 is a crowd and 7 an echo, both with a unique key; 6 is a crowd and 8 an echo without one.
async fn with_and_without_a_key() -> (Server, Master, Session) {
    let config = GameConfig { lease: LEASE, ..GameConfig::default() };
    let server = Server::start_with(config).await;
    let mut master = server.master(1).await;
    master.create_with_key("crowd", 5).await;
    master.create("crowd", 6).await;
    master.create_with_key("echo", 7).await;
    master.create("echo", 8).await;
    let session = server.session("s1").await;
    for number in 5..9 {
        session.attach(number, number, u128::from(number), 0, 1);
    }
    for _ in 5..9 {
        assert_eq!(master.seat().await, (Seat(0), SeatState::Taken));
    }
    (server, master, session)
}

/// Waits until everything has come that was sent by now; `number` is that of the next call to instance 8.
async fn barrier(session: &mut Session, number: &mut u32) -> Vec<Heard> {
    session.up(8, CALL, *number, *number - 1, b"now?");
    let mut heard = Vec::new();
    loop {
        match session.hear().await {
            Heard::Down(MemberId(8), header, _)
                if header.kind == REPLY && header.number.0 == *number =>
            {
                *number += 1;
                return heard;
            }
            other => heard.push(other),
        }
    }
}

fn is_of(heard: &Heard, number: u32) -> bool {
    match heard {
        Heard::Down(member, header, _) => *member == MemberId(number) && header.kind != DOWN_ACK,
        Heard::Fanout(channel, _) => *channel == Channel(number),
        Heard::Piece(..) | Heard::OwnPatch | Heard::Control(_) => false,
    }
}

/// Method: the master's link is cut. Until the lease is over, all play on; then those with a key say nothing, and what
/// they are told waits for a master that has acknowledged them.
#[test]
fn an_instance_with_a_unique_key_stands_still_without_a_master_and_goes_on_with_one() {
    run(async {
        let (server, master, mut session) = with_and_without_a_key().await;
        drop(master);
        let (mut with_key, mut without) = (0, 0);
        while server.metrics.frozen.load(Relaxed) == 0 {
            let heard = session.hear().await;
            with_key += u32::from(is_of(&heard, 5));
            without += u32::from(is_of(&heard, 6));
        }
        assert!(with_key > 0 && without > 0, "both play on while the lease lasts");
        assert_eq!(server.metrics.frozen.load(Relaxed), 2);

        let mut number = 1;
        barrier(&mut session, &mut number).await;
        session.up(7, CALL, 1, 0, b"anybody?");
        let mut patches = 0;
        while patches < 10 {
            let heard = barrier(&mut session, &mut number).await;
            assert!(!heard.iter().any(|heard| is_of(heard, 5) || is_of(heard, 7)), "{heard:?}");
            patches += heard.iter().filter(|heard| is_of(heard, 6)).count();
        }

        let mut master = server.master(2).await;
        let report = master.report.take().unwrap();
        let keys: Vec<_> = report.instances.iter().filter_map(|held| held.key.clone()).collect();
        assert_eq!(keys.iter().map(Key::as_str).collect::<Vec<_>>(), ["crowd 5", "echo 7"]);
        let mut named = Vec::new();
        while named.len() < 2 {
            // The master is welcome, and has not acknowledged both.
            assert_eq!(server.metrics.frozen.load(Relaxed), 2);
            if let GameToMaster::MetaChanged(changed) = master.hear().await {
                named.push(changed.instance.0);
            }
        }
        assert_eq!(named, [5, 7]);
        let (mut patched, mut answered) = (false, false);
        while !patched || !answered {
            match session.hear().await {
                Heard::Fanout(Channel(5), _) => patched = true,
                Heard::Down(MemberId(7), header, payload) if header.kind == REPLY => {
                    assert_eq!(payload, b"\x01\0\0\0anybody?");
                    answered = true;
                }
                _ => {}
            }
        }
        assert_eq!(server.metrics.frozen.load(Relaxed), 0);
        assert_eq!(server.metrics.leases_lost.load(Relaxed), 1);
        assert_eq!(server.metrics.ticks_given_up.load(Relaxed), 0, "its time stood still");
    });
}

/// The link is there, and says that it is alive; whatever else the master does, it has not confirmed a load.
#[test]
fn a_master_that_is_heard_and_confirms_nothing_does_not_keep_the_lease() {
    run(async {
        let (server, mut master, mut session) = with_and_without_a_key().await;
        master.renews = false;
        let again = server.dialled(0).await;
        assert_eq!(server.metrics.frozen.load(Relaxed), 2);
        let (sent, inbound) = (master.sent, master.inbound);
        let mut master = Master::welcome(again, 1).await;
        (master.sent, master.inbound) = (sent, inbound);
        assert!(master.report.is_none(), "it knows what runs here");
        assert!(matches!(master.hear().await, GameToMaster::MetaChanged(_)));
        assert!(matches!(master.hear().await, GameToMaster::MetaChanged(_)));
        while !is_of(&session.hear().await, 5) {}
        while server.metrics.frozen.load(Relaxed) > 0 {
            session.hear().await;
        }
    });
}

/// However rarely the load is to be told, it is told often enough for the lease.
#[test]
fn a_lease_that_is_renewed_is_kept() {
    run(async {
        let report_interval = Duration::from_secs(3_600);
        let config = GameConfig { lease: LEASE, report_interval, ..GameConfig::default() };
        let server = Server::start_with(config).await;
        let mut master = server.master(1).await;
        master.create_with_key("crowd", 5).await;
        // One of them comes every half second, and one with the welcome.
        while master.renewed < 7 {
            master.hear_any().await;
        }
        assert_eq!(server.metrics.leases_lost.load(Relaxed), 0);
    });
}

/// Method: the master's thread is blocked, so that its link is there and says nothing. The server gives the link up,
/// and dials anew.
#[test]
fn a_master_that_hangs_is_as_good_as_none() {
    run(async {
        let config = GameConfig { lease: LEASE, ..GameConfig::default() };
        let server = Server::start_with(config).await;
        let socket = server.dialled(0).await.into_std().unwrap();
        let (_until_the_end, hangs) = std::sync::mpsc::channel::<()>();
        let (ready, is_ready) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            run(async move {
                let mut master = Master::welcome(TcpStream::from_std(socket).unwrap(), 1).await;
                master.create_with_key("crowd", 5).await;
                master.create("crowd", 6).await;
                ready.send(()).unwrap();
                hangs.recv().unwrap_err();
            });
        });
        is_ready.await.unwrap();
        let mut session = server.session("s1").await;
        session.attach(5, 5, 5, 0, 1);
        session.attach(6, 6, 6, 0, 1);
        while server.metrics.frozen.load(Relaxed) == 0 {
            session.hear().await;
        }
        let mut master = server.master(2).await;
        assert!(matches!(master.hear().await, GameToMaster::MetaChanged(_)));
        while server.metrics.frozen.load(Relaxed) > 0 {
            session.hear().await;
        }
        while !is_of(&session.hear().await, 5) {}
        assert_eq!(server.metrics.leases_lost.load(Relaxed), 1);
    });
}

#[test]
fn an_instance_that_runs_elsewhere_by_now_never_goes_on() {
    run(async {
        let (server, master, mut session) = with_and_without_a_key().await;
        drop(master);
        while server.metrics.frozen.load(Relaxed) == 0 {
            session.hear().await;
        }
        let mut number = 1;
        barrier(&mut session, &mut number).await;
        session.up(7, CALL, 1, 0, b"anybody?");
        // Another connection of the same session wants its seat back meanwhile.
        session.attach(9, 9, 7, 0, 2);
        barrier(&mut session, &mut number).await;
        let mut master = server.master(2).await;
        for id in [5, 7] {
            master.order(&destroy(id).into());
        }
        let mut ended = Vec::new();
        while ended.len() < 3 {
            match session.hear().await {
                Heard::Control(GameToSession::Ended(end)) => {
                    ended.push((end.member.0, end.refusal.code))
                }
                Heard::Control(GameToSession::AttachRefused(end)) => {
                    ended.push((end.member.0, end.refusal.code));
                }
                heard => assert!(!is_of(&heard, 5) && !is_of(&heard, 7), "{heard:?}"),
            }
        }
        ended.sort_by_key(|(member, _)| *member);
        let (destroyed, unknown) = (Code::Destroyed, Code::InstanceUnknown);
        assert_eq!(ended, [(5, destroyed.clone()), (7, destroyed), (9, unknown)]);
        let mut closed = 0;
        while closed < 2 {
            closed += u32::from(matches!(master.hear().await, GameToMaster::Closed(_)));
        }
        assert_eq!(server.metrics.frozen.load(Relaxed), 0);
        assert!(matches!(master.create("echo", 10).await, GameToMaster::Running(_)));
    });
}

#[test]
fn who_comes_and_goes_while_an_instance_stands_still_is_there_or_not_when_it_goes_on() {
    run(async {
        let (server, master, mut session) = with_and_without_a_key().await;
        drop(master);
        let mut other = server.session("s2").await;
        while server.metrics.frozen.load(Relaxed) == 0 {
            session.hear().await;
        }
        other.attach(1, 1, 7, 1, 1);
        other.attach(2, 2, 7, 2, 1);
        other.say(&Detach { member: MemberId(2) }.into());
        other.attach(3, 3, 8, 3, 1); // It is attached at once, so the rest has been heard by then.
        let GameToSession::Attached(attached) = other.control().await else { panic!() };
        assert_eq!(attached.member, MemberId(3));
        session.say(&Detach { member: MemberId(7) }.into());
        let mut number = 1;
        barrier(&mut session, &mut number).await;
        let mut master = server.master(2).await;
        let report = master.report.take().unwrap();
        let held: Vec<_> = report.instances.iter().map(|held| held.seats.len()).collect();
        assert_eq!(held, [1, 1, 1, 2], "who came to instance 7 waits, and who went is still there");
        let mut seats = Vec::new();
        while seats.len() < 2 {
            if let GameToMaster::SeatChanged(changed) = master.hear().await {
                seats.push((changed.instance.0, changed.seat.0, changed.state));
            }
        }
        let (taken, away) = (SeatState::Taken, SeatState::Away);
        assert_eq!(seats, [(7, 1, taken), (7, 0, away)]);
        let GameToSession::Attached(attached) = other.control().await else { panic!() };
        assert_eq!(attached.member, MemberId(1));
    });
}

#[test]
fn a_master_that_is_not_the_newest_is_not_obeyed() {
    run(async {
        let server = Server::start().await;
        let mut master = server.master(1).await;
        // A report of the load that it confirmed would be one more message of an old epoch.
        master.renews = false;
        master.epoch = Epoch { era: 1, epoch: 7 };
        assert!(matches!(master.create("echo", 5).await, GameToMaster::Running(_)));
        master.epoch = Epoch { era: 1, epoch: 6 };
        let refusal = Refusal::new(Code::Destroyed, "no");
        let (instance, incarnation) = (InstanceId(5), Incarnation(1));
        master.say(&DestroyInstance { instance, incarnation, refusal }.into(), 2);
        master.fenced().await;
        master.epoch = Epoch { era: 1, epoch: 7 };
        assert!(matches!(master.create("echo", 6).await, GameToMaster::Running(_)));
        assert_eq!(server.metrics.deposed.load(Relaxed), 1);
        assert_eq!(server.metrics.closed.load(Relaxed), 0);
    });
}

#[test]
fn what_can_not_be_is_refused_by_name() {
    run(async {
        let config = GameConfig { capacity: 10, ..GameConfig::default() };
        let server = Server::start_with(config).await;
        let mut master = server.master(1).await;
        let GameToMaster::CreateRefused(refused) = master.create("chess", 4).await else {
            panic!()
        };
        assert_eq!(refused.refusal.code, Code::KindUnknown);
        assert!(
            refused.refusal.message.contains("chess") && refused.refusal.message.contains("arena")
        );
        master.create("tellall", 5).await;
        // One more weighs 7 as well, and 3 are free.
        let GameToMaster::CreateRefused(refused) = master.create("tellall", 6).await else {
            panic!()
        };
        assert_eq!(refused.refusal.code, Code::NoCapacity);
        let text = refused.refusal.message;
        assert!(text.contains("takes 7") && text.contains("3 of 10"), "{text}");
        for id in 6..9 {
            assert!(matches!(master.create("echo", id).await, GameToMaster::Running(_)));
        }
        assert!(matches!(master.create("echo", 9).await, GameToMaster::CreateRefused(_)));
        master.order(&destroy(5).into());
        assert!(matches!(master.hear().await, GameToMaster::Closed(_)));
        assert!(matches!(master.create("echo", 9).await, GameToMaster::Running(_)));
        let mut session = server.session("s1").await;
        session.attach(1, 8, 99, 0, 1);
        let GameToSession::AttachRefused(refused) = session.control().await else { panic!() };
        assert_eq!(refused.refusal.code, Code::InstanceUnknown);

        let taken = GameConfig { listen: server.address, ..GameConfig::default() };
        let registry = Registry::new().with::<Echo>();
        let error = bind(&taken, &"test".into(), &key(), &"test".into(), registry).unwrap_err();
        assert!(error.to_string().contains("is the port in use?"), "{error}");
        let none = bind(&taken, &"test".into(), &key(), &"test".into(), Registry::new());
        assert!(matches!(none, Err(GameError::NoKinds)));
        let refused = |config: &GameConfig| {
            let registry = Registry::new().with::<Echo>();
            let error = bind(config, &"test".into(), &key(), &"test".into(), registry).unwrap_err();
            error.to_string()
        };
        let text = refused(&GameConfig { capacity: 0, ..GameConfig::default() });
        assert!(text.contains("game.capacity is 0") && text.contains("10000"), "{text}");
        for lease in [Duration::from_millis(1_999), Duration::from_millis(10_001)] {
            let text = refused(&GameConfig { lease, ..GameConfig::default() });
            assert!(text.contains("game.lease") && text.contains("2 s to 10 s"), "{text}");
        }
    });
}

#[test]
fn a_freed_seat_and_a_destroyed_instance_end_their_members() {
    run(async {
        let server = Server::start().await;
        let mut master = server.master(1).await;
        master.create("arena", 5).await;
        let mut session = server.session("s1").await;
        for seat in 0..2 {
            session.attach(u32::from(seat), 8, 5, seat, 1);
            session.control().await;
        }
        let (instance, incarnation) = (InstanceId(5), Incarnation(1));
        let refusal = Refusal::new(Code::Left, "bye");
        let session_of_0 = SessionId(100);
        master.order(
            &FreeSeat { instance, incarnation, seat: Seat(0), session: session_of_0, refusal }
                .into(),
        );
        let GameToSession::Ended(ended) = session.control().await else { panic!() };
        assert_eq!((ended.member, ended.refusal.code), (MemberId(0), Code::Left));
        let refusal = Refusal::new(Code::Destroyed, "an operator did it");
        master.order(&DestroyInstance { instance, incarnation, refusal }.into());
        let GameToSession::Ended(ended) = session.control().await else { panic!() };
        assert_eq!((ended.member, ended.refusal.code), (MemberId(1), Code::Destroyed));
        loop {
            if let GameToMaster::Closed(closed) = master.hear().await {
                break assert_eq!(closed.refusal.code, Code::Destroyed);
            }
        }
    });
}

#[test]
fn an_instance_that_panics_takes_nobody_with_it() {
    run(async {
        let server = Server::start().await;
        let mut master = server.master(1).await;
        master.create("tellall", 5).await;
        master.create("tellall", 6).await;
        let mut session = server.session("s1").await;
        session.attach(1, 8, 5, 0, 1);
        session.attach(2, 9, 6, 0, 1);
        session.up(1, MESSAGE, 1, 0, &[13]);
        session.up(2, MESSAGE, 1, 0, &[14]);
        let (mut failed, mut told) = (false, false);
        while !failed || !told {
            match session.hear().await {
                Heard::Control(GameToSession::Ended(ended)) => {
                    assert_eq!(
                        (ended.member, ended.refusal.code),
                        (MemberId(1), Code::InstanceFailed)
                    );
                    failed = true;
                }
                Heard::Down(MemberId(2), header, payload) if header.kind == EVENT => {
                    assert_eq!(payload, [14]);
                    told = true;
                }
                _ => {}
            }
        }
        assert_eq!(server.metrics.failed.load(Relaxed), 1);
    });
}

#[test]
fn a_server_that_stops_tells_the_master_and_its_members_and_ends() {
    run(async {
        let config =
            GameConfig { drain_timeout: Duration::from_millis(300), ..GameConfig::default() };
        let mut server = Server::start_with(config).await;
        let mut master = server.master(1).await;
        master.create("arena", 5).await;
        let mut session = server.session("s1").await;
        session.attach(1, 8, 5, 0, 1);
        session.control().await;
        server.stop.cancel();
        loop {
            if let GameToMaster::Load(load) = master.hear_any().await
                && load.draining
            {
                break;
            }
        }
        master.order(&order("echo", 6).into());
        let mut seen = Vec::new();
        while seen.len() < 2 {
            match master.hear().await {
                GameToMaster::CreateRefused(refused) => seen.push(refused.refusal.code),
                GameToMaster::Closed(closed) => seen.push(closed.refusal.code),
                _ => {}
            }
        }
        assert_eq!(seen, [Code::Draining, Code::Draining]);
        let GameToSession::Ended(ended) = session.control().await else { panic!() };
        assert_eq!((ended.member, ended.refusal.code), (MemberId(1), Code::Draining));
        server.stopped().await.unwrap();
    });
}

/// Nobody is connected any more, so a server that stops waits for nobody, however long it may.
#[test]
fn a_server_that_stops_does_not_wait_for_who_is_away() {
    run(async {
        let config =
            GameConfig { drain_timeout: Duration::from_secs(86_400), ..GameConfig::default() };
        let mut server = Server::start_with(config).await;
        let mut master = server.master(1).await;
        master.create("arena", 5).await;
        let mut session = server.session("s1").await;
        session.attach(1, 8, 5, 0, 1);
        session.control().await;
        assert_eq!(master.seat().await, (Seat(0), SeatState::Taken));
        server.stop.cancel();
        session.say(&Detach { member: MemberId(1) }.into());
        loop {
            if let GameToMaster::Closed(closed) = master.hear().await {
                assert_eq!(closed.refusal.code, Code::Draining);
                break;
            }
        }
        server.stopped().await.unwrap();
    });
}

/// Method: a session server reads nothing until patches were dropped for it, while another one reads on; then it reads
/// again, and its views come anew and go on from there.
#[test]
fn a_session_server_that_reads_too_slowly_misses_patches_and_is_refreshed() {
    run(async {
        let server = Server::start().await;
        let mut master = server.master(1).await;
        master.create("flood", 5).await;
        let (mut slow, mut quick) = (server.session("slow").await, server.session("quick").await);
        slow.attach(1, 8, 5, 0, 1);
        slow.control().await;
        quick.attach(1, 9, 5, 1, 1);
        while server.metrics.patches_dropped.load(Relaxed) == 0 {
            quick.hear().await;
        }
        let (mut whole, mut last) = (None, 0);
        let next = loop {
            match slow.hear().await {
                Heard::Piece(header, _) if server.metrics.refreshes.load(Relaxed) > 0 => {
                    whole = Some(header.version);
                }
                Heard::Fanout(_, header) if Some(header.base) == whole => break header,
                Heard::Fanout(_, header) => last = header.version,
                _ => {}
            }
        };
        assert!(next.base > last, "patches between {last} and {next:?} were dropped");
        slow.up(1, CALL, 1, 0, b"still there?");
        assert_eq!(slow.down().await.2, b"\x01\0\0\0still there?");
    });
}

// What is durable.

/// Counts calls, keeps the count as a document too, and answers once that is stored.
#[derive(serde::Serialize, serde::Deserialize)]
struct Saga {
    calls: u32,
    waiting: Vec<(StoreTicket, CallId)>,
}

impl Instance for Saga {
    const KIND: Kind<Self> = Kind::new("saga").durable_every(1).stays_when_empty();
    type Params = ();
    type Meta = ();
    type In = Raw;
    type Query = Never;
    type Reply = Raw;
    type Out = Never;
    type Timer = Never;
    type View<'a> = u32;
    type PrivateView<'a> = ();

    fn create((): (), _: &mut Cx<'_, Self>) -> Result<Self, Reject> {
        Ok(Self { calls: 0, waiting: Vec::new() })
    }
    fn message(&mut self, _: Seat, input: Raw, cx: &mut Cx<'_, Self>) {
        self.calls += 1;
        assert_ne!(*input, *b"fail", "told to panic");
        let asked =
            cx.store().upsert("calls", &std::collections::BTreeMap::from([("n", self.calls)]));
        let ticket = asked.unwrap();
        self.waiting.extend(cx.keep_call().map(|call| (ticket, call)));
    }
    fn stored(
        &mut self,
        what: StoreTicket,
        outcome: Result<Stored, StoreRefusal>,
        cx: &mut Cx<'_, Self>,
    ) {
        let is_written = matches!(outcome, Ok(Stored::Written(_)));
        for (_, call) in self.waiting.extract_if(.., |(ticket, _)| *ticket == what) {
            cx.reply_to(call, Raw::from([u8::from(is_written)].as_slice()));
        }
    }
    fn view(&self) -> u32 {
        self.calls
    }
}

fn in_memory() -> Storage {
    with_indexes(Vec::new())
}
fn with_indexes(indexes: Vec<Index>) -> Storage {
    let config = StorageConfig { store: "memory".into(), ..StorageConfig::default() };
    greenroom_storage::open(&config, Schema::new(indexes).unwrap()).unwrap()
}

/// Keeps each number that it is called with as a document, and says which are the largest.
#[derive(Default, serde::Serialize, serde::Deserialize)]
struct Archive {
    waiting: Vec<(StoreTicket, CallId)>,
    pages: Vec<u8>,
}

impl Archive {
    fn look(call: CallId, search: Search, cx: &mut Cx<'_, Self>) -> (StoreTicket, CallId) {
        (cx.store().find("", search).unwrap(), call)
    }
    fn largest() -> Search {
        Search::new(field("n").ge(3)).order_by("n").descending().limit(2)
    }
}

impl Instance for Archive {
    const KIND: Kind<Self> = Kind::new("archive");
    type Params = ();
    type Meta = ();
    type In = Raw;
    type Query = Never;
    type Reply = Raw;
    type Out = Never;
    type Timer = Never;
    type View<'a> = ();
    type PrivateView<'a> = ();

    fn create((): (), _: &mut Cx<'_, Self>) -> Result<Self, Reject> {
        Ok(Self::default())
    }
    fn message(&mut self, _: Seat, input: Raw, cx: &mut Cx<'_, Self>) {
        let call = cx.keep_call().unwrap();
        let asked = match &*input {
            b"largest" => Self::look(call, Self::largest(), cx),
            b"by colour" => Self::look(call, Search::new(field("colour").eq("red")), cx),
            number => {
                let document = std::collections::BTreeMap::from([("n", number[0])]);
                (cx.store().insert(&number[0].to_string(), &document).unwrap(), call)
            }
        };
        self.waiting.push(asked);
    }
    fn stored(
        &mut self,
        what: StoreTicket,
        outcome: Result<Stored, StoreRefusal>,
        cx: &mut Cx<'_, Self>,
    ) {
        let (_, call) = self.waiting.pop_if(|(ticket, _)| *ticket == what).unwrap();
        match outcome {
            Ok(Stored::Page { documents, next }) => {
                for found in documents {
                    let found: std::collections::BTreeMap<String, u8> = found.decode().unwrap();
                    self.pages.push(found["n"]);
                }
                match next {
                    Some(next) => {
                        self.pages.push(b'|');
                        self.waiting.push(Self::look(call, Self::largest().after(next), cx));
                    }
                    None => cx.reply_to(call, Raw::from(self.pages.as_slice())),
                }
            }
            Ok(_) => cx.reply_to(call, Raw::from([].as_slice())),
            Err(refusal) => cx.reply_to(call, Raw::from(refusal.to_string().as_bytes())),
        }
    }
    fn view(&self) {}
}

/// A game asks which of its documents are the largest, page by page, and for what no index has.
#[test]
fn a_game_searches_its_own_documents_and_is_told_what_can_not_be_searched_for() {
    run(async {
        let index = Index::new(Collection::Documents, &[("n", FieldType::Number)]).unwrap();
        let store = with_indexes(vec![index]);
        let others = greenroom_storage::Key::new(Collection::Documents, "others/9").unwrap();
        store.upsert(others, Body::new("{\"n\":9}").unwrap()).await.unwrap();
        let server = Server::start_in(GameConfig::default(), Some(&store)).await;
        let mut master = server.master(1).await;
        master.create("archive", 7).await;
        let mut ann = server.session("s1").await;
        ann.attach(1, 3, 7, 0, 1);
        ann.control().await;
        let mut number = 0;
        let mut call = async |what: &[u8]| {
            number += 1;
            ann.up(1, CALL, number, 0, what);
            loop {
                let (_, header, payload) = ann.down().await;
                if header.kind == REPLY {
                    break payload[4..].to_vec();
                }
            }
        };
        for number in 1..=6 {
            call(&[number]).await;
        }
        assert_eq!(call(b"largest").await, [6, 5, b'|', 4, 3]);
        let refused = String::from_utf8(call(b"by colour").await).unwrap();
        assert!(refused.contains("no field \"colour\" in an index; there are: n"), "{refused}");
    });
}

fn take_up(incarnation: u64, seats: Vec<RestoredSeat>) -> CreateInstance {
    let restore = Some(Restore { seats });
    CreateInstance { incarnation: Incarnation(incarnation), restore, ..order("saga", 7) }
}

/// Two game servers with one store; the first is cut off from its master, which has the second take the instance up.
#[test]
fn an_instance_is_taken_up_from_the_store_by_another_server_and_its_former_life_is_deposed() {
    run(async {
        let store = in_memory();
        let first = Server::start_in(GameConfig::default(), Some(&store)).await;
        let mut master = first.master(1).await;
        let kinds = &master.report.as_ref().unwrap().kinds;
        assert!(kinds.iter().any(|kind| kind.name.as_str() == "saga" && kind.durable));
        assert!(matches!(master.create("saga", 7).await, GameToMaster::Running(_)));
        let mut ann = first.session("s1").await;
        ann.attach(1, 3, 7, 0, 1);
        assert!(matches!(ann.control().await, GameToSession::Attached(_)));
        ann.up(1, CALL, 1, 0, &[]);
        let reply = loop {
            let (_, header, payload) = ann.down().await;
            if header.kind == REPLY {
                break payload;
            }
        };
        assert_eq!(reply[4..], [1], "it is answered once its document is stored");
        let key = greenroom_storage::Key::new(Collection::Documents, "saga/calls").unwrap();
        assert_eq!(store.get(key).await.unwrap().unwrap().body.text(), "{\"n\":1}");
        // One of its creation, and one after the steps that it made since.
        until("two snapshots are stored", async || first.metrics.snapshots.load(Relaxed) >= 2)
            .await;

        let folder =
            std::env::temp_dir().join(format!("greenroom-game-logs-{}", std::process::id()));
        let log = LogWriter::start(&LogsConfig::default(), &folder, "second").unwrap();
        let logged = GameConfig { logs: log.logs().clone(), ..GameConfig::default() };
        let second = Server::start_in(logged, Some(&store)).await;
        let mut other = second.master(1).await;
        let session = SessionId(100);
        let held = RestoredSeat { seat: Seat(0), session };
        other.order(&take_up(2, vec![held]).into());
        let GameToMaster::Running(running) = other.hear().await else { panic!() };
        assert_eq!(running.incarnation, Incarnation(2));
        // The former life does not know, and its next snapshot is refused.
        ann.up(1, CALL, 2, 0, &[]);
        let closed = loop {
            if let GameToMaster::Closed(closed) = master.hear().await {
                break closed;
            }
        };
        assert_eq!((closed.incarnation, closed.refusal.code), (Incarnation(1), Code::InstanceLost));
        assert_eq!(first.metrics.snapshots_deposed.load(Relaxed), 1);
        assert_eq!(second.metrics.restored.load(Relaxed), 1);

        // What can't be read is set aside, and the master is told so by name.
        let broken = greenroom_storage::Key::new(Collection::Snapshots, InstanceId(8).to_string());
        let broken = broken.unwrap();
        let body = Body::new(&b"{\"kind\":\"saga\",\"tick\":3,\"state\":\"AAAA\"}"[..]).unwrap();
        store.upsert(broken.clone(), body.clone()).await.unwrap();
        let order = CreateInstance { instance: InstanceId(8), ..take_up(5, Vec::new()) };
        other.order(&order.into());
        let GameToMaster::CreateRefused(refused) = other.hear().await else { panic!() };
        assert_eq!(refused.refusal.code, Code::InstanceFailed);
        assert!(refused.refusal.message.contains("saga"), "{}", refused.refusal.message);
        let aside = format!("unreadable/{}/{}", InstanceId(8), Incarnation(5));
        let aside = greenroom_storage::Key::new(Collection::Snapshots, aside).unwrap();
        until("what can't be read is set aside", async || {
            store.get(aside.clone()).await.unwrap().is_some_and(|found| found.body == body)
        })
        .await;
        until("nothing is left under its own id", async || {
            store.get(broken.clone()).await.unwrap().is_none()
        })
        .await;
        assert!(store.get(aside).await.unwrap().is_some());
        let [note] = &SetAside::of(&store, InstanceId(8)).await.unwrap()[..] else { panic!() };
        assert_eq!((note.incarnation, note.cause), (Incarnation(5), Cause::Unreadable));
        assert_eq!((note.kind.as_str(), note.version), ("saga", None));
        assert!(!note.why.is_empty());
        // It is told as an event, with the place where it is kept.
        let kept = format!("snapshots/unreadable/{}/{}", InstanceId(8), Incarnation(5));
        let told = || {
            let (mut events, mut told) = (Reader::open(&folder, From::Start).unwrap(), Vec::new());
            while let Some(record) = events.next_record().unwrap() {
                told.extend(record.text.contains("snapshot_unreadable").then_some(record.text));
            }
            told
        };
        until("that is told", async || !told().is_empty()).await;
        log.stop();
        let told = told();
        assert!(told.len() == 1 && told[0].contains(&kept), "{told:?}");
        std::fs::remove_dir_all(&folder).unwrap();
        // And of what was never stored, nothing is made.
        let order = CreateInstance { instance: InstanceId(9), ..take_up(5, Vec::new()) };
        other.order(&order.into());
        let GameToMaster::CreateRefused(refused) = other.hear().await else { panic!() };
        assert_eq!(refused.refusal.code, Code::InstanceLost);
    });
}

/// A bug of the game ends one step, not what was stored before it; one that comes back again and again ends the
/// instance, whose snapshot is kept for people.
#[test]
fn what_is_durable_goes_on_from_its_snapshot_when_it_fails_and_is_given_up_when_it_fails_again_and_again()
 {
    run(async {
        let store = in_memory();
        let server = Server::start_in(GameConfig::default(), Some(&store)).await;
        let mut master = server.master(1).await;
        assert!(matches!(master.create("saga", 7).await, GameToMaster::Running(_)));
        let mut ann = server.session("s1").await;
        let held = RestoredSeat { seat: Seat(0), session: SessionId(100) };
        for life in 1..=4_u32 {
            ann.attach_to(life.into(), life, 3, 7, 0, life);
            assert!(matches!(ann.control().await, GameToSession::Attached(_)));
            let before = server.metrics.snapshots.load(Relaxed);
            ann.up(life, CALL, 1, 0, &[]);
            // The call itself, and what became of its document.
            while server.metrics.snapshots.load(Relaxed) < before + 2 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            ann.up(life, CALL, 2, 0, b"fail");
            let told = loop {
                match master.hear().await {
                    GameToMaster::SeatChanged(_) | GameToMaster::MetaChanged(_) => {}
                    other => break other,
                }
            };
            if life == 4 {
                let GameToMaster::Closed(closed) = told else { panic!("{told:?}") };
                assert_eq!(closed.refusal.code, Code::InstanceFailed);
                assert!(closed.refusal.message.contains("given up"), "{}", closed.refusal.message);
                continue;
            }
            let GameToMaster::HandedOver(handed) = told else { panic!("{told:?}") };
            assert_eq!(handed.incarnation, Incarnation(life.into()));
            master.order(&take_up(u64::from(life) + 1, vec![held]).into());
            let GameToMaster::Running(running) = master.hear().await else { panic!() };
            assert_eq!(running.incarnation, Incarnation(u64::from(life) + 1));
        }
        // Only now is who was in it told anything.
        let GameToSession::Ended(ended) = ann.control().await else { panic!() };
        assert_eq!((ended.member, ended.refusal.code), (MemberId(4), Code::InstanceFailed));
        assert_eq!(server.metrics.failed.load(Relaxed), 4);
        let snapshot = |id: String| greenroom_storage::Key::new(Collection::Snapshots, id).unwrap();
        let own = snapshot(InstanceId(7).to_string());
        assert!(store.get(own).await.unwrap().is_none());
        let aside = snapshot(format!("failed/{}/{}", InstanceId(7), Incarnation(4)));
        let kept = store.get(aside).await.unwrap().unwrap();
        assert!(kept.body.text().contains("\"kind\":\"saga\""), "{}", kept.body.text());
        let [note] = &SetAside::of(&store, InstanceId(7)).await.unwrap()[..] else { panic!() };
        assert_eq!((note.incarnation, note.cause), (Incarnation(4), Cause::Failed));
        assert_eq!((note.kind.as_str(), note.version), ("saga", Some(1)));
        assert!(note.since_ms > 0 && !note.why.is_empty(), "{note:?}");
    });
}

#[test]
fn a_server_that_stops_stores_what_is_durable_and_hands_it_over() {
    run(async {
        let store = in_memory();
        let mut server = Server::start_in(GameConfig::default(), Some(&store)).await;
        let mut master = server.master(1).await;
        assert!(matches!(master.create("saga", 7).await, GameToMaster::Running(_)));
        let mut ann = server.session("s1").await;
        ann.attach(1, 3, 7, 0, 1);
        assert!(matches!(ann.control().await, GameToSession::Attached(_)));
        server.stop.cancel();
        loop {
            match master.hear().await {
                GameToMaster::HandedOver(handed) => {
                    assert_eq!(handed.instance, InstanceId(7));
                    break;
                }
                GameToMaster::SeatChanged(_) => {}
                other => panic!("{other:?}"),
            }
        }
        server.stopped().await.unwrap();
        let second = Server::start_in(GameConfig::default(), Some(&store)).await;
        let mut other = second.master(1).await;
        other.order(&take_up(2, Vec::new()).into());
        assert!(
            matches!(other.hear().await, GameToMaster::SeatChanged(changed) if changed.state == SeatState::Free)
        );
        assert!(matches!(other.hear().await, GameToMaster::Running(_)));
    });
}

/// Hears how a server that stops parts with the only instance that it has.
async fn parted(master: &mut Master) -> GameToMaster {
    loop {
        match master.hear().await {
            GameToMaster::SeatChanged(_) | GameToMaster::Running(_) => {}
            last => return last,
        }
    }
}

/// Nobody is there, so there is nobody to wait for; what is durable is waited for all the same.
#[test]
fn a_server_that_stops_hands_over_what_is_durable_also_where_nobody_is() {
    run(async {
        let store = in_memory();
        let mut server = Server::start_in(GameConfig::default(), Some(&store)).await;
        let mut master = server.master(1).await;
        assert!(matches!(master.create("saga", 7).await, GameToMaster::Running(_)));
        server.stop.cancel();
        let last = parted(&mut master).await;
        assert!(matches!(last, GameToMaster::HandedOver(_)), "{last:?}");
        server.stopped().await.unwrap();
    });
}

/// An operator stops one game server after the other: the second is asked to take up what the first had in the moment
/// in which it stops as well. It gives it back, or on, and closes it in no case.
#[test]
fn what_a_server_is_just_taking_up_when_it_stops_is_given_back() {
    run(async {
        let store = in_memory();
        let mut first = Server::start_in(GameConfig::default(), Some(&store)).await;
        let mut master = first.master(1).await;
        assert!(matches!(master.create("saga", 7).await, GameToMaster::Running(_)));
        first.stop.cancel();
        parted(&mut master).await;
        first.stopped().await.unwrap();
        for life in 2..12 {
            let mut next = Server::start_in(GameConfig::default(), Some(&store)).await;
            let mut master = next.master(1).await;
            master.order(&take_up(life, Vec::new()).into());
            while !matches!(master.hear_any().await, GameToMaster::Received(_)) {}
            // It is being read, or stored, or runs: that is the race.
            next.stop.cancel();
            match parted(&mut master).await {
                GameToMaster::CreateRefused(refused) => {
                    assert_eq!(refused.refusal.code, Code::Draining);
                }
                GameToMaster::HandedOver(handed) => {
                    assert_eq!(handed.incarnation, Incarnation(life));
                }
                other => panic!("{other:?}"),
            }
            next.stopped().await.unwrap();
        }
        let own = greenroom_storage::Key::new(Collection::Snapshots, InstanceId(7).to_string());
        assert!(store.get(own.unwrap()).await.unwrap().is_some(), "what was stored of it is there");
    });
}

/// The masters were stopped first, and the game servers once their leases were over: what stands still is not closed,
/// so that it is there when all of them are.
#[test]
fn a_server_that_stops_without_a_master_leaves_what_is_durable_as_it_is_stored() {
    run(async {
        let store = in_memory();
        let config = GameConfig { lease: Duration::from_secs(2), ..GameConfig::default() };
        let mut server = Server::start_in(config, Some(&store)).await;
        let mut master = server.master(1).await;
        assert!(matches!(master.create("saga", 7).await, GameToMaster::Running(_)));
        drop(master);
        until("it stands still", async || server.metrics.frozen.load(Relaxed) == 1).await;
        server.stop.cancel();
        server.stopped().await.unwrap();
        let own = greenroom_storage::Key::new(Collection::Snapshots, InstanceId(7).to_string());
        assert!(store.get(own.unwrap()).await.unwrap().is_some(), "what was stored of it is there");
    });
}

/// An operator looks at an instance: its game server measures that one from then on, and says what it costs.
#[test]
fn an_instance_that_is_looked_at_is_measured() {
    run(async {
        let store = in_memory();
        let server = Server::start_in(GameConfig::default(), Some(&store)).await;
        let mut master = server.master(1).await;
        master.create("flood", 5).await;
        assert!(matches!(master.create("saga", 7).await, GameToMaster::Running(_)));
        let mut session = server.session("s1").await;
        session.attach(1, 8, 5, 0, 1);
        session.control().await;
        let mut measures = async |id: u128| {
            master.say_outside(&Measure { instance: InstanceId(id) }.into());
            loop {
                if let GameToMaster::Measured(measured) = master.hear_any().await {
                    assert_eq!(measured.instance, InstanceId(id));
                    return measured.measures;
                }
            }
        };
        let first = measures(5).await;
        assert_eq!((first.steps, first.patch_bytes_per_s), (0, None), "nobody has looked before");
        let seen = async || {
            let now = measures(5).await;
            (now.steps > 5 && now.patch_bytes_per_s > Some(0)).then_some(now)
        };
        let seen = found("its steps and its patches", seen).await;
        assert!(seen.step_p50_us <= seen.step_p99_us && seen.step_p99_us > 0, "{seen:?}");
        assert!(seen.view_bytes > 100_000, "{seen:?}");
        // One that steps when it is spoken to, and is stored.
        let quiet = measures(7).await;
        assert!(quiet.state_bytes.is_some_and(|bytes| bytes > quiet.view_bytes), "{quiet:?}");
    });
}
