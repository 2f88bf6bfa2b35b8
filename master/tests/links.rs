//! The master as its servers see it: over real sockets, with a session server and a game server made of a few lines.
#![expect(clippy::unwrap_used, reason = "helpers of tests may fail as tests do")]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use greenroom_link::{ClusterKey, Incoming, LinkError, Me, Outgoing};
use greenroom_master::{Master, MasterConfig, MasterError, MasterHandle, Weighted};
use greenroom_protocol::wire::admin_master::{Action, Find, Table};
use greenroom_protocol::wire::client_session::{JoinOrCreate, Rank, RankPart, Request, Search};
use greenroom_protocol::wire::master_game::{
    CreateInstance, GameReport, GameToMaster, HeldInstance, HeldSeat, KindInfo, MasterToGame,
    Running, Scored,
};
use greenroom_protocol::wire::server_server::{Identity, Role};
use greenroom_protocol::wire::session_master::{
    Ask, Bind, Bound, MasterToSession, Outcome, SessionReport, SessionToMaster,
};
use greenroom_protocol::{
    Code, Incarnation, InstanceId, KindName, Limits, LinkHeader, RequestId, Seat, ServerName,
    SessionId, SessionKey, StampedHeader, UserId,
};
use tokio::net::TcpListener;
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;

/// Runs a master on a free port and a story beside it, on one thread.
fn beside_a_master<F: Future<Output = ()>>(
    story: impl FnOnce(SocketAddr, ClusterKey, MasterHandle) -> F,
) {
    beside_a_master_in(tempfile::tempdir().unwrap().path(), story);
}

/// The same, with what is in this folder.
fn beside_a_master_in<F: Future<Output = ()>>(
    folder: &Path,
    story: impl FnOnce(SocketAddr, ClusterKey, MasterHandle) -> F,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let key = "5".repeat(64).parse::<ClusterKey>().unwrap();
        let config = MasterConfig {
            listen: "127.0.0.1:0".into(),
            folder: folder.join("master"),
            ..MasterConfig::default()
        };
        let master = Master::bind(&config, key.clone(), Arc::new(Weighted)).await.unwrap();
        let (address, handle) = (master.address(), master.handle());
        let stop = CancellationToken::new();
        let running = tokio::task::spawn_local(master.run(stop.clone()));
        let story = story(address, key, handle);
        tokio::time::timeout(Duration::from_secs(60), story).await.expect("the story ends");
        stop.cancel();
        running.await.unwrap();
    });
}

fn me(role: Role, name: &str, incarnation: u64, key: &ClusterKey) -> Me {
    let identity = Identity::new(
        "greenroom".into(),
        role,
        ServerName::new(name).unwrap(),
        Incarnation(incarnation),
        "test".into(),
    );
    Me { identity, key: key.clone() }
}

/// A server's end of its link to the master.
struct End {
    incoming: Incoming,
    outgoing: Outgoing,
}

/// As when the process dies.
impl Drop for End {
    fn drop(&mut self) {
        self.outgoing.close();
    }
}

impl End {
    async fn dial(address: SocketAddr, me: &Me) -> Result<Self, LinkError> {
        let link = greenroom_link::dial(&address.to_string(), me, &[Role::Master]).await?;
        tokio::task::spawn_local(link.writer.run());
        Ok(Self { incoming: link.incoming, outgoing: link.outgoing })
    }
    fn say(&self, kind: u8, n: u64, payload: &[u8]) {
        let stamp = StampedHeader { n, ..StampedHeader::default() }.bytes();
        self.outgoing.push(LinkHeader { kind, target: 0 }, &[&stamp, payload]);
    }
    async fn hear(&mut self) -> Option<(u8, StampedHeader, Vec<u8>)> {
        loop {
            if let Some(frame) = self.incoming.next_frame().unwrap() {
                let payload = &self.incoming.bytes()[frame.payload];
                let (stamp, message) = StampedHeader::split(payload).unwrap();
                return Some((frame.header.kind, stamp, message.to_vec()));
            }
            self.incoming.fill().await.ok()?;
        }
    }
}

struct SessionServer(End);

impl SessionServer {
    async fn up(address: SocketAddr, key: &ClusterKey) -> Self {
        let mut server = Self(End::dial(address, &me(Role::Session, "s1", 1, key)).await.unwrap());
        assert!(matches!(server.hear().await, MasterToSession::NewEpoch(_)));
        let report = SessionReport {
            urls: vec!["tcp://127.0.0.1:4000".into()],
            build: "test".into(),
            connections_max: 100,
            sessions: Vec::new(),
        };
        server.say(&report.into());
        server
    }
    fn say(&self, message: &SessionToMaster) {
        let mut payload = Vec::new();
        message.encode_into(&mut payload);
        self.0.say(message.kind(), 0, &payload);
    }
    async fn hear(&mut self) -> MasterToSession {
        let (kind, _, payload) = self.0.hear().await.expect("the link lives");
        MasterToSession::decode(kind, &payload, Limits::SERVER).unwrap()
    }
    async fn bind(&mut self, user: &str) -> Bound {
        let bind = Bind {
            number: 7,
            session_key: SessionKey([9; 16]),
            user: UserId::new(user).unwrap(),
            name: user.into(),
            trace: None,
        };
        self.say(&bind.into());
        loop {
            if let MasterToSession::Bound(bound) = self.hear().await {
                return bound;
            }
        }
    }
    fn ask(&self, session: SessionId, id: u32, request: &Request) {
        let mut payload = Vec::new();
        request.encode_into(&mut payload);
        self.ask_raw(session, id, request.kind(), payload);
    }
    fn ask_raw(&self, session: SessionId, id: u32, kind: u8, payload: Vec<u8>) {
        let answered = RequestId(id - 1);
        let request = payload.into();
        let id = RequestId(id);
        self.say(&Ask { session, id, answered, kind, request, trace: None }.into());
    }
    async fn answer(&mut self) -> Outcome {
        loop {
            if let MasterToSession::Answer(answer) = self.hear().await {
                return answer.outcome;
            }
        }
    }
}

struct GameServer(End);

impl GameServer {
    async fn up(address: SocketAddr, key: &ClusterKey) -> Self {
        Self::up_as(address, &me(Role::Game, "g1", 1, key)).await
    }
    async fn up_as(address: SocketAddr, me: &Me) -> Self {
        Self::up_with(address, me, Vec::new()).await
    }
    async fn up_with(address: SocketAddr, me: &Me, instances: Vec<HeldInstance>) -> Self {
        let mut server = Self(End::dial(address, me).await.unwrap());
        assert!(matches!(server.hear().await, (0, MasterToGame::NewEpoch(_))));
        let kind = KindInfo {
            name: KindName::new("duel").unwrap(),
            seats_max: 2,
            tick_rate: 20,
            version: 1,
            fields: Vec::new(),
            needs: Vec::new(),
            weight: 1,
            durable: false,
        };
        let report = GameReport {
            address: "127.0.0.1:4200".into(),
            build: "test".into(),
            kinds: vec![kind],
            capacity: 10,
            labels: Vec::new(),
            instances,
        };
        server.say(0, &report.into());
        server
    }
    fn say(&self, n: u64, message: &GameToMaster) {
        let mut payload = Vec::new();
        message.encode_into(&mut payload);
        self.0.say(message.kind(), n, &payload);
    }
    async fn hear(&mut self) -> (u64, MasterToGame) {
        let (kind, stamp, payload) = self.0.hear().await.expect("the link lives");
        (stamp.n, MasterToGame::decode(kind, &payload, Limits::SERVER).unwrap())
    }
    async fn create(&mut self) -> (u64, CreateInstance) {
        loop {
            if let (n, MasterToGame::Create(create)) = self.hear().await {
                return (n, create);
            }
        }
    }
    fn runs(&self, n: u64, create: &CreateInstance) {
        let CreateInstance { instance, incarnation, .. } = *create;
        let meta = Default::default();
        self.say(n, &Running { instance, incarnation, meta, open: true, private: false }.into());
    }
}

fn join_or_create() -> Request {
    JoinOrCreate {
        kind: KindName::new("duel").unwrap(),
        key: None,
        filter: Default::default(),
        params: Default::default(),
        private: false,
        expected: Vec::new(),
        options: Default::default(),
    }
    .into()
}

#[test]
fn a_join_or_create_goes_to_the_game_server_and_comes_back_as_a_seat() {
    beside_a_master(async |address, key, handle| {
        let mut session_server = SessionServer::up(address, &key).await;
        assert!(matches!(session_server.hear().await, MasterToSession::Welcome(_)));
        let mut game_server = GameServer::up(address, &key).await;
        assert!(matches!(game_server.hear().await, (0, MasterToGame::Welcome(_))));

        let bound = session_server.bind("ann").await;
        assert_eq!(bound.session_servers.len(), 1);
        session_server.ask(bound.session, 1, &join_or_create());
        let (n, create) = game_server.create().await;
        assert_eq!(n, 1);
        game_server.runs(1, &create);
        let (_, acknowledged) = game_server.hear().await;
        assert!(matches!(acknowledged, MasterToGame::Received(received) if received.n == 1));
        let Outcome::Granted(granted) = session_server.answer().await else { panic!("no seat") };
        assert_eq!(granted.instance, create.instance);
        assert_eq!(granted.address, "127.0.0.1:4200");

        // A read sees every write that was acknowledged before it.
        let search = Search {
            kind: granted.kind.clone(),
            filter: Default::default(),
            order: None,
            limit: 10,
            cursor: None,
            explain: false,
        };
        session_server.ask(bound.session, 2, &search.into());
        let Outcome::Found(found) = session_server.answer().await else { panic!("not found") };
        assert_eq!(found.instances[0].seats_taken, 1);
        // People are shown when it was made.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let created = Duration::from_millis(found.instances[0].created_ms);
        assert!(created <= now && now - created < Duration::from_secs(60), "{created:?}");

        let status = handle.status().await.unwrap();
        assert_eq!((status.users, status.instances), (1, 1));
        assert_eq!(status.masters[0].role, "active");
        assert_eq!((status.sessions.len(), status.games[0].load), (1, 1));
    });
}

#[test]
fn a_score_is_read_by_the_next_request_and_operators_search_and_ask_for_placements() {
    beside_a_master(async |address, key, handle| {
        let mut session_server = SessionServer::up(address, &key).await;
        let mut game_server = GameServer::up(address, &key).await;
        let bound = session_server.bind("ann").await;
        session_server.ask(bound.session, 1, &join_or_create());
        let (_, create) = game_server.create().await;
        game_server.runs(1, &create);
        let CreateInstance { instance, incarnation, .. } = create;
        let (user, name) = (UserId::new("ann").unwrap(), "Ann".into());
        let board = "week".into();
        let scored = Scored { instance, incarnation, board, user, name, score: Some(7) };
        game_server.say(2, &scored.into());
        loop {
            // Everything that is acknowledged is read.
            let (_, heard) = game_server.hear().await;
            if matches!(heard, MasterToGame::Received(received) if received.n == 2) {
                break;
            }
        }
        assert!(matches!(session_server.answer().await, Outcome::Granted(_)));
        let rank = Rank { board: "week".into(), part: RankPart::Around(None), limit: 3 };
        session_server.ask(bound.session, 2, &rank.into());
        let Outcome::Ranking(ranking) = session_server.answer().await else { panic!("no rank") };
        assert_eq!((ranking.members, ranking.ranks[0].score), (1, 7));

        let find = Find {
            table: Table::Users,
            filter: Default::default(),
            order: None,
            limit: 10,
            cursor: None,
        };
        let rows = handle.find(find.clone()).await.unwrap().rows;
        assert_eq!(rows.len(), 1);
        let refused = handle.find(Find { limit: 0, ..find }).await.unwrap_err();
        assert_eq!(refused.code, Code::LimitInvalid);
        let placement = handle.placement(KindName::new("duel").unwrap()).await.unwrap();
        assert_eq!(placement.server, Some(ServerName::new("g1").unwrap()));
        assert_eq!((placement.considered[0].load, placement.considered[0].capacity), (1, 10));
        let unknown = handle.placement(KindName::new("chess").unwrap()).await.unwrap_err();
        assert_eq!(unknown.code, Code::KindUnknown);
    });
}

#[test]
fn what_was_not_acknowledged_comes_again_on_a_new_link() {
    beside_a_master(async |address, key, handle| {
        let mut session_server = SessionServer::up(address, &key).await;
        let mut game_server = GameServer::up(address, &key).await;
        game_server.hear().await;
        let bound = session_server.bind("ann").await;
        session_server.ask(bound.session, 1, &join_or_create());
        let (n, create) = game_server.create().await;
        drop(game_server);
        // The master notices by the closed link, with no timer.
        loop {
            let status = handle.status().await.unwrap();
            if status.games[0].state == "suspect" {
                break;
            }
        }
        let mut game_server = GameServer::up(address, &key).await;
        assert!(matches!(game_server.hear().await, (0, MasterToGame::Welcome(_))));
        assert_eq!(game_server.create().await, (n, create.clone()));
        game_server.runs(1, &create);
        // Said twice, it counts once.
        game_server.runs(1, &create);
        assert!(matches!(session_server.answer().await, Outcome::Granted(_)));
        assert_eq!(handle.status().await.unwrap().games[0].state, "up");
    });
}

/// What a game server says of itself whose port this is.
fn game_at(listener: &TcpListener, incarnation: u64, key: &ClusterKey) -> Me {
    let mut me = me(Role::Game, "g1", incarnation, key);
    me.identity.listens = Some(listener.local_addr().unwrap().to_string().into());
    me
}

async fn state_of_g1(handle: &MasterHandle, state: &str) {
    while handle.status().await.unwrap().games[0].state != state {}
}

/// A process that lost its link, or is stopped, is looked for, and kept for as long as it may still run something.
#[test]
fn a_game_server_is_given_up_at_once_when_its_port_is_closed_and_not_before() {
    beside_a_master(async |address, key, handle| {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let this = game_at(&listener, 1, &key);
        let mut game_server = GameServer::up_as(address, &this).await;
        assert!(matches!(game_server.hear().await, (0, MasterToGame::Welcome(_))));
        drop(game_server);
        // It takes links still: here is one that it can't answer, and one that it answers.
        drop(listener.accept().await.unwrap());
        let (looks, _) = listener.accept().await.unwrap();
        greenroom_link::accept(looks, &this, &[Role::Master]).await.unwrap();
        let (looks, _) = listener.accept().await.unwrap();
        state_of_g1(&handle, "suspect").await;
        drop((looks, listener));
        state_of_g1(&handle, "down").await;
    });
}

/// Its port belongs to its next life by now, which has not reported yet.
#[test]
fn a_game_server_is_given_up_at_once_when_another_life_of_it_has_its_port() {
    beside_a_master(async |address, key, handle| {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut game_server = GameServer::up_as(address, &game_at(&listener, 1, &key)).await;
        assert!(matches!(game_server.hear().await, (0, MasterToGame::Welcome(_))));
        drop(game_server);
        // Somebody who has not the cluster's key proves nothing.
        let (looks, _) = listener.accept().await.unwrap();
        let stranger = game_at(&listener, 2, &ClusterKey::generate().unwrap());
        greenroom_link::accept(looks, &stranger, &[Role::Master]).await.unwrap_err();
        let (looks, _) = listener.accept().await.unwrap();
        state_of_g1(&handle, "suspect").await;
        let next = game_at(&listener, 2, &key);
        greenroom_link::accept(looks, &next, &[Role::Master]).await.unwrap();
        state_of_g1(&handle, "down").await;
    });
}

#[test]
fn an_operator_is_answered_and_the_session_server_is_told() {
    beside_a_master(async |address, key, handle| {
        let mut session_server = SessionServer::up(address, &key).await;
        let bound = session_server.bind("ann").await;
        let user = UserId::new("ann").unwrap();
        handle.act(Action::Kick { user: user.clone() }).await.unwrap();
        let end = loop {
            if let MasterToSession::EndSession(end) = session_server.hear().await {
                break end;
            }
        };
        assert_eq!((end.session, end.refusal.code), (bound.session, Code::Kicked));
        assert_eq!(handle.act(Action::Kick { user }).await.unwrap_err().code, Code::UserUnknown);
    });
}

#[test]
fn a_request_that_is_none_is_refused_to_the_one_who_sent_it() {
    beside_a_master(async |address, key, _| {
        let mut session_server = SessionServer::up(address, &key).await;
        let bound = session_server.bind("ann").await;
        session_server.ask_raw(bound.session, 1, join_or_create().kind(), vec![0xc1]);
        let Outcome::Refused(refusal) = session_server.answer().await else { panic!("taken") };
        assert_eq!(refusal.code, Code::Malformed);
    });
}

#[test]
fn a_server_with_another_key_or_another_role_gets_no_link() {
    beside_a_master(async |address, key, _| {
        let stranger = me(Role::Game, "g1", 1, &ClusterKey::generate().unwrap());
        assert!(End::dial(address, &stranger).await.is_err());
        let refused = End::dial(address, &me(Role::Master, "m2", 1, &key)).await;
        let Err(LinkError::RefusedByPeer { refusal, .. }) = refused else { panic!("taken") };
        assert_eq!(refusal.code, Code::WrongRole);
    });
}

#[test]
fn a_second_process_of_the_same_name_is_refused_while_the_first_lives() {
    beside_a_master(async |address, key, _| {
        let mut first = SessionServer::up(address, &key).await;
        assert!(matches!(first.hear().await, MasterToSession::Welcome(_)));
        let mut second = End::dial(address, &me(Role::Session, "s1", 2, &key)).await.unwrap();
        let report = SessionReport {
            urls: Vec::new(),
            build: "test".into(),
            connections_max: 1,
            sessions: Vec::new(),
        };
        second.hear().await.expect("it is told who decides, as everybody is");
        second.say(0x01, 0, &greenroom_protocol::encode(&report));
        assert!(second.hear().await.is_none(), "the second is not welcome");
        first.bind("ann").await;
    });
}

#[test]
fn a_server_that_says_what_is_no_message_loses_its_link_and_nobody_else_notices() {
    beside_a_master(async |address, key, _| {
        let mut session_server = SessionServer::up(address, &key).await;
        let mut game_server = GameServer::up(address, &key).await;
        game_server.hear().await;
        game_server.0.say(0x03, 1, b"\xc1");
        while game_server.0.hear().await.is_some() {}
        session_server.bind("ann").await;
    });
}

#[test]
fn a_port_in_use_is_named_with_what_to_do() {
    beside_a_master(async |address, key, _| {
        let data = tempfile::tempdir().unwrap();
        let listen = address.to_string();
        let config = MasterConfig { listen, folder: data.path().into(), ..MasterConfig::default() };
        let failed = Master::bind(&config, key, Arc::new(Weighted)).await.unwrap_err();
        assert!(matches!(failed, MasterError::Listen { .. }));
        assert!(failed.to_string().contains("[master] listen"), "{failed}");
    });
}

/// What a full game server reports is longer than 4 MiB. It is taken, is on the disk, and is taken again by a master
/// that knows nothing.
#[test]
fn twelve_thousand_instances_with_their_seats_are_reported_at_once_and_outlive_a_restart() {
    const INSTANCES: u128 = 12_000;
    let duel = KindName::new("duel").unwrap();
    let seat = |id: u128, seat: u16| {
        let number = u64::try_from(id).unwrap() * 2 + u64::from(seat);
        HeldSeat {
            seat: Seat(seat),
            user: UserId::new(format!("a-user-with-a-long-identity-{number:0>32}")).unwrap(),
            session: SessionId(number),
            away: false,
        }
    };
    let held = |id: u128| HeldInstance {
        instance: InstanceId(id),
        incarnation: Incarnation(1),
        kind: duel.clone(),
        key: None,
        owner: Some(UserId::new("the-one-who-made-it").unwrap()),
        created_ms: 1_800_000_000_000,
        seats: vec![seat(id, 0), seat(id, 1)],
        meta: Default::default(),
        open: false,
        private: false,
    };
    let instances: Vec<_> = (1..=INSTANCES).map(held).collect();
    let mut bytes = Vec::new();
    greenroom_protocol::encode_into(&instances, &mut bytes);
    assert!(bytes.len() > 4 << 20, "{} bytes", bytes.len());
    let all = u64::try_from(INSTANCES).unwrap();
    for _ in 0..2 {
        let data = tempfile::tempdir().unwrap();
        beside_a_master_in(data.path(), async |address, key, handle| {
            let me = me(Role::Game, "g1", 1, &key);
            let mut game = GameServer::up_with(address, &me, instances.clone()).await;
            assert!(matches!(game.hear().await, (0, MasterToGame::Welcome(_))));
            assert_eq!(handle.status().await.unwrap().instances, all);
            for id in [1, INSTANCES] {
                assert_eq!(handle.instance(InstanceId(id)).await.unwrap().seats.len(), 2);
            }
        });
        beside_a_master_in(data.path(), async |_, _, handle| {
            while handle.status().await.unwrap().masters[0].role != "active" {}
            assert_eq!(handle.status().await.unwrap().instances, all);
            assert_eq!(handle.instance(InstanceId(INSTANCES)).await.unwrap().seats.len(), 2);
        });
    }
}
