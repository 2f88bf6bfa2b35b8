use greenroom_protocol::{
    Key, SessionKey,
    search::{FILTER_DEPTH_MAX, Filter, LIMIT_MAX},
    wire::{
        client_session::{
            Changes, CheckIn, Create, Created, Found, Join, JoinOrCreate, Leave, Left, Listed,
            MetaValue, Rank, RankPart, Ranking, Search, Unwatch, Unwatched, Watch, Watching,
        },
        session_game::{AttachRefused, Ended},
        session_master::{Answer, BindRefused, EndSession, NewEpoch, SeatLost, Welcome},
    },
};
use proptest::prelude::*;

use super::*;

const ARENA: InstanceId = InstanceId(77);
const LIFE: Incarnation = Incarnation(5);
const GAME_LIFE: Incarnation = Incarnation(9);
const FIRST: MasterLink = MasterLink(0);
const SECOND: MasterLink = MasterLink(1);

/// A core, the moment, and what came out of it and was not looked at yet.
struct Desk {
    core: Core,
    now: Moment,
    out: Out,
}

/// What a client is told.
#[derive(Debug, PartialEq)]
enum Said {
    Control(SessionToClient),
    Pong(Vec<u8>),
    Reply(u32, Reply),
    Seat(u8, Channel, Code),
}

impl Desk {
    fn new() -> Self {
        let config = CoreConfig {
            name: ServerName::new("session-1").unwrap(),
            build: "test".into(),
            urls: vec!["tcp://one".into()],
            connections_max: 64,
            heartbeat_ms: 30_000,
            limits: ClientLimits::default(),
            wall_start_ms: 1_000_000,
            takes_traces: true,
        };
        Self { core: Core::new(config), now: Moment(0), out: Vec::new() }
    }
    /// With a master that said welcome.
    fn with_master() -> Self {
        let mut desk = Self::new();
        desk.master_linked(1);
        desk.out.clear();
        desk
    }
    /// The first master decides, and says welcome to these streams.
    fn master_linked(&mut self, streams: u64) {
        let epoch = self.core.follow.epoch();
        self.decides(FIRST, epoch, Some(streams));
        self.says(FIRST, epoch, 0, Welcome { streams });
    }
    fn decides(&mut self, link: MasterLink, epoch: Epoch, streams: Option<u64>) {
        self.says(link, epoch, 0, NewEpoch { streams });
    }
    fn says(
        &mut self,
        link: MasterLink,
        epoch: Epoch,
        n: u64,
        message: impl Into<MasterToSession>,
    ) {
        let header = StampedHeader { epoch, n };
        self.core.from_master(self.now, link, header, message.into(), &mut self.out);
    }
    fn master(&mut self, message: impl Into<MasterToSession>) {
        self.streamed(0, message);
    }
    /// A message of the stream of the master that decides, or beside it for 0.
    fn streamed(&mut self, n: u64, message: impl Into<MasterToSession>) {
        let (link, epoch) = (self.core.follow.link().unwrap_or(FIRST), self.core.follow.epoch());
        self.says(link, epoch, n, message);
    }
    fn connect(&mut self) -> ConnId {
        self.core.connect(self.now, IpAddr::from([127, 0, 0, 1])).unwrap()
    }
    fn send(&mut self, conn: ConnId, frame: &[u8]) {
        self.core.frame(self.now, conn, frame, &mut self.out);
    }
    fn after(&mut self, ms: u64) {
        self.now = Moment(self.now.0 + ms);
        self.core.tick(self.now, &mut self.out);
    }
    /// A client of which the authenticator said who it is.
    fn authenticated(&mut self, session: u8) -> ConnId {
        let conn = self.connect();
        self.send(conn, &hello(1, 1));
        self.send(conn, &check_in(session));
        let user = UserId::new(format!("user-{session}")).unwrap();
        self.core.authenticated(self.now, conn, Ok((user, "Ann".into())), &mut self.out);
        conn
    }
    /// A client that is checked in.
    fn checked_in(&mut self, session: u8) -> ConnId {
        let conn = self.authenticated(session);
        let number = self.core.binds;
        self.bound(number, session, 1);
        self.out.clear();
        conn
    }
    fn bound(&mut self, number: u64, session: u8, generation: u32) {
        let elsewhere =
            |name: &str| SessionServer { name: name.into(), urls: vec!["tcp://x".into()] };
        self.master(Bound {
            number,
            session: SessionId(session.into()),
            generation: Generation(generation),
            session_servers: vec![elsewhere("session-1"), elsewhere("session-2")],
        });
    }
    fn answer(&mut self, session: u8, id: u32, outcome: Outcome) {
        self.master(Answer { session: SessionId(session.into()), id: RequestId(id), outcome });
    }
    /// A client asks for a seat, and the master grants it.
    fn granted(&mut self, conn: ConnId, session: u8, id: u32, seat: u16) {
        self.send(conn, &join(id));
        self.answer(session, id, Outcome::Granted(grant(seat)));
    }
    /// A client that has a seat, on a game server that is linked.
    fn seated(&mut self, session: u8) -> (ConnId, MemberId, Channel) {
        let conn = self.checked_in(session);
        self.granted(conn, session, 1, session.into());
        if !self.core.is_linked(GameId(0)) {
            self.core.game_linked(GameId(0), GAME_LIFE, &mut self.out);
        }
        let (member, channel) = self.attach_asked();
        self.attached(member);
        self.out.clear();
        (conn, member, channel)
    }
    fn attached(&mut self, member: MemberId) {
        let attached = Attached { member, up_received: 3, down_next: 4, tick_rate: 20 };
        self.core.from_game(GameId(0), attached.into(), &mut self.out);
    }
    /// The last attach that a game server was asked for.
    fn attach_asked(&self) -> (MemberId, Channel) {
        let attach = self.out.iter().rev().find_map(|output| match output {
            Output::Game(_, SessionToGame::Attach(attach)) => Some((attach.member, attach.channel)),
            _ => None,
        });
        attach.unwrap()
    }
    fn to_master(&self) -> Vec<(u64, SessionToMaster)> {
        let said = self.out.iter().filter_map(|output| match output {
            Output::Master(_, header, message) => Some((header.n, message.clone())),
            _ => None,
        });
        said.collect()
    }
    /// What was said to a master since this was last asked for; everything else is forgotten.
    fn said_to(&mut self, link: MasterLink) -> Vec<(u64, SessionToMaster)> {
        self.out.retain(|output| matches!(output, Output::Master(to, ..) if *to == link));
        let said = self.to_master();
        self.out.clear();
        said
    }
    fn to_game(&self) -> Vec<SessionToGame> {
        let said = self.out.iter().filter_map(|output| match output {
            Output::Game(_, message) => Some(message.clone()),
            _ => None,
        });
        said.collect()
    }
    /// What a client was told since this was last asked for; everything else is forgotten.
    fn told(&mut self, conn: ConnId) -> Vec<Said> {
        let out = std::mem::take(&mut self.out);
        let mut told = Vec::new();
        for output in &out {
            match output {
                Output::Client(to, frame) if *to == conn => told.push(said(frame)),
                Output::Changes(to, changes) => {
                    for (_, header) in to.iter().filter(|(to, _)| *to == conn) {
                        told.push(said(&[&header.bytes()[..], changes].concat()));
                    }
                }
                _ => {}
            }
        }
        told
    }
    /// The reason with which a client's connection is being closed.
    fn closed(&mut self, conn: ConnId) -> Code {
        assert!(
            self.out.iter().any(|output| matches!(output, Output::Close(of, _) if *of == conn))
        );
        match self.told(conn).pop() {
            Some(Said::Control(SessionToClient::Closing(refusal))) => {
                assert!(refusal.message.len() > 15, "it says what to do: {refusal}");
                refusal.code
            }
            other => panic!("told last: {other:?}"),
        }
    }
    /// The only thing that a client was told: that its request is refused.
    fn refused(&mut self, conn: ConnId, id: u32) -> Code {
        match self.told(conn).as_slice() {
            [Said::Reply(of, Reply::Refused(refusal))] if *of == id => refusal.code.clone(),
            other => panic!("told: {other:?}"),
        }
    }
    /// Every index says the same.
    fn check(&self) {
        let core = &self.core;
        for (number, member) in core.members.iter() {
            let id = MemberId(number);
            let connection = core.conns.get(member.conn.0).expect("a member has a connection");
            let (_, up) = connection.seats.iter().find(|(of, _)| *of == member.channel).unwrap();
            assert_eq!((up.member, up.game), (id, member.game));
            let place = core.channels.get(member.channel.0).expect("a member has a place");
            assert_eq!(place.attached.contains(&(id, member.conn)), member.attached);
            assert!(core.games.get(member.game.0).is_some(), "a member has a game server");
        }
        let seats = core.conns.iter().map(|(_, connection)| connection.seats.len()).sum::<usize>();
        assert_eq!(seats, core.members.len());
        for (number, place) in core.channels.iter() {
            let channel = Channel(number);
            let of = core.members.iter().filter(|(_, member)| member.channel == channel).count();
            assert_eq!(of, place.members as usize);
            assert!(of > 0, "a place without members is forgotten");
            assert!(place.attached.len() <= of);
            let key = (place.instance, place.incarnation);
            assert_eq!(core.by_instance.get(&key), Some(&channel));
        }
        assert_eq!(core.by_instance.len(), core.channels.len());
        assert_eq!(core.by_name.len(), core.games.len());
        for (session, conn) in &core.by_session {
            let held = core.conns.get(conn.0).and_then(Connection::held);
            assert_eq!(held.map(|held| held.session), Some(*session));
        }
        for (number, conn) in &core.binding {
            let stage = core.conns.get(conn.0).map(|connection| &connection.stage);
            assert!(matches!(stage, Some(Stage::Binding(bind)) if bind.number == *number));
        }
    }
}

fn said(frame: &[u8]) -> Said {
    let (kind, limits) = (frame[0], Limits::SERVER);
    if kind == client_session::SERVER_PONG {
        Said::Pong(frame[1..].to_vec())
    } else if client_session::REPLIES.contains(&kind) {
        let (header, payload) = ReplyHeader::split(frame).unwrap();
        Said::Reply(header.id.0, Reply::decode(kind, payload, limits).unwrap())
    } else if client_instance::DOWN.contains(&kind) {
        let (header, payload) = DownHeader::split(frame).unwrap();
        let refusal: Refusal = greenroom_protocol::decode(payload, limits).unwrap();
        Said::Seat(kind, header.channel, refusal.code)
    } else {
        Said::Control(SessionToClient::decode(kind, &frame[1..], limits).unwrap())
    }
}

fn framed(message: &ClientToSession) -> Vec<u8> {
    let mut frame = vec![message.kind()];
    message.encode_into(&mut frame);
    frame
}
fn hello(protocol_min: u16, protocol_max: u16) -> Vec<u8> {
    let (features, agent) = (Vec::new(), "test".into());
    framed(&ClientHello { protocol_min, protocol_max, features, agent }.into())
}
fn check_in(session: u8) -> Vec<u8> {
    let credentials = Credentials { scheme: "guest".into(), token: "t".into(), name: "Ann".into() };
    framed(&CheckIn { session_key: SessionKey([session; 16]), credentials }.into())
}
fn asked(id: u32, request: impl Into<Request>) -> Vec<u8> {
    let request = request.into();
    let (id, answered) = (RequestId(id), RequestId(0));
    let mut frame = RequestHeader { kind: request.kind(), id, answered }.bytes().to_vec();
    request.encode_into(&mut frame);
    frame
}
fn join(id: u32) -> Vec<u8> {
    asked(id, Join { instance: ARENA, options: Opaque::from(vec![0xc0]) })
}
fn search(id: u32) -> Vec<u8> {
    asked(id, searching(Filter::default(), 10))
}
fn searching(filter: Filter, limit: u16) -> Search {
    Search { kind: kind(), filter, order: None, limit, cursor: None, explain: false }
}
fn watch(id: u32) -> Vec<u8> {
    asked(id, Watch { kind: kind(), filter: Filter::default() })
}
fn unwatch(id: u32, watch: u32) -> Vec<u8> {
    asked(id, Unwatch { watch: RequestId(watch) })
}
fn seen(watch: u32, n: u64) -> Vec<u8> {
    framed(&client_session::Seen { watch: RequestId(watch), n }.into())
}
fn changes(n: u64) -> Changes {
    let listed = Listed {
        instance: ARENA,
        seats_taken: 1,
        seats_max: 16,
        created_ms: 5,
        meta: client_session::Meta::new(),
    };
    Changes { n, anew: n == 1, more: false, instances: vec![listed], gone: vec![], ended: None }
}
/// To a session, of a generation, under the number of its live search.
fn watcher((session, generation, watch): (u64, u32, u32)) -> Watcher {
    let (session, generation) = (SessionId(session), Generation(generation));
    Watcher { session, generation, watch: RequestId(watch) }
}
fn changed<const N: usize>(to: [(u64, u32, u32); N], n: u64) -> Changed {
    let changes = Opaque::from(greenroom_protocol::encode(&changes(n)));
    Changed { to: to.map(watcher).to_vec(), changes }
}
fn join_or_create() -> JoinOrCreate {
    JoinOrCreate {
        kind: kind(),
        key: None,
        filter: Filter::default(),
        params: Opaque::new(),
        private: false,
        expected: Vec::new(),
        options: Opaque::new(),
    }
}
fn kind() -> KindName {
    KindName::new("arena").unwrap()
}
fn grant(seat: u16) -> Granted {
    Granted {
        instance: ARENA,
        kind: kind(),
        incarnation: LIFE,
        seat: Seat(seat),
        server: ServerName::new("game-1").unwrap(),
        address: "10.0.0.1:4200".into(),
        durable: false,
    }
}
fn up(channel: Channel) -> Vec<u8> {
    let (number, ack) = (Seq(1), Seq(0));
    let kind = client_instance::MESSAGE;
    greenroom_protocol::UpHeader { kind, channel, number, ack }.bytes().to_vec()
}
fn refusal(code: Code) -> Refusal {
    Refusal::new(code, "a text that says what to do")
}

// Checking in ----------------------------------------------------------------------------------------------------

#[test]
fn a_client_says_hello_checks_in_and_is_told_who_it_is_and_where_else_it_may_go() {
    let mut desk = Desk::with_master();
    let conn = desk.connect();
    assert_eq!(desk.core.frame_max(conn), HELLO_BYTES_MAX);
    desk.send(conn, &hello(1, 9));
    let Said::Control(SessionToClient::Hello(answer)) = &desk.told(conn)[0] else { panic!() };
    assert_eq!((answer.protocol, answer.heartbeat_ms), (1, 30_000));
    desk.send(conn, &check_in(7));
    assert!(matches!(desk.out.as_slice(), [Output::Authenticate(of, _)] if *of == conn));
    desk.out.clear();
    let user = UserId::new("ann").unwrap();
    desk.core.authenticated(desk.now, conn, Ok((user.clone(), "Ann".into())), &mut desk.out);
    let said = desk.to_master();
    let [(0, SessionToMaster::Bind(bind))] = said.as_slice() else { panic!("{said:?}") };
    assert_eq!((&bind.user, bind.session_key), (&user, SessionKey([7; 16])));
    desk.bound(bind.number, 7, 1);
    let told = desk.told(conn);
    let [Said::Control(SessionToClient::CheckedIn(checked_in))] = told.as_slice() else {
        panic!("{told:?}")
    };
    assert_eq!((&checked_in.user, checked_in.session), (&user, SessionId(7)));
    assert_eq!(checked_in.session_servers.len(), 2);
    assert_eq!(desk.core.frame_max(conn), greenroom_protocol::CLIENT_FRAME_BYTES_MAX);
    desk.check();
}

#[test]
fn a_client_of_no_common_version_is_told_both_ranges() {
    for (min, max) in [(2, 9), (0, 0)] {
        let mut desk = Desk::with_master();
        let conn = desk.connect();
        desk.send(conn, &hello(min, max));
        let text = format!("{:?}", desk.out);
        assert!(text.contains("versions 1 to 1") && text.contains(&format!("{min} to {max}")));
        assert_eq!(desk.closed(conn), Code::VersionMismatch);
    }
}

#[test]
fn what_has_no_place_in_the_conversation_ends_it_with_a_reason() {
    let ping = [&[client_session::PING], &[7; 8][..]].concat();
    let cases: [(&[Vec<u8>], Code); 7] = [
        (&[check_in(1)], Code::NotCheckedIn),
        (&[join(1)], Code::NotCheckedIn),
        (&[vec![0x0f]], Code::NotCheckedIn),
        (&[hello(1, 1), hello(1, 1)], Code::UnexpectedKind),
        (&[hello(1, 1), check_in(1), check_in(1)], Code::NotCheckedIn),
        (&[[hello(1, 1), vec![0xc0]].concat()], Code::Malformed),
        (&[vec![0x01]], Code::Malformed),
    ];
    for (frames, code) in cases {
        let mut desk = Desk::with_master();
        let conn = desk.connect();
        for frame in frames {
            desk.send(conn, &ping);
            desk.send(conn, frame);
        }
        assert_eq!(desk.closed(conn), code, "{frames:02x?}");
        desk.send(conn, &hello(1, 1));
        assert_eq!(desk.told(conn), [], "a closing connection is not listened to");
    }
    let mut desk = Desk::with_master();
    let conn = desk.checked_in(1);
    desk.send(conn, &ping);
    assert_eq!(desk.told(conn), [Said::Pong(vec![7; 8])]);
    desk.send(conn, &[]);
    desk.send(conn, &[client_session::PING]);
    assert_eq!(desk.told(conn), [Said::Pong(Vec::new())]);
    desk.send(conn, &hello(1, 1));
    assert_eq!(desk.closed(conn), Code::UnexpectedKind);
}

#[test]
fn credentials_that_are_refused_end_the_connection_with_their_reason() {
    let mut desk = Desk::with_master();
    let conn = desk.connect();
    desk.send(conn, &hello(1, 1));
    desk.send(conn, &check_in(1));
    let no = Err(refusal(Code::TokenExpired));
    desk.core.authenticated(desk.now, conn, no.clone(), &mut desk.out);
    assert_eq!(desk.closed(conn), Code::TokenExpired);
    // Said twice, or after the client went away, it changes nothing.
    desk.core.authenticated(desk.now, conn, no, &mut desk.out);
    desk.core.disconnect(conn, &mut desk.out);
    let user = UserId::new("ann").unwrap();
    desk.core.authenticated(desk.now, conn, Ok((user, "Ann".into())), &mut desk.out);
    assert_eq!(desk.out, []);
}

#[test]
fn a_client_that_does_not_check_in_is_sent_away_after_five_seconds() {
    let mut desk = Desk::with_master();
    let (mute, slow) = (desk.connect(), desk.connect());
    desk.send(slow, &hello(1, 1));
    let there = desk.checked_in(3);
    desk.after(5_000);
    assert_eq!(desk.told(mute), []);
    desk.after(1);
    let out = desk.out.clone();
    assert_eq!(desk.closed(mute), Code::CheckInTimeout);
    desk.out = out;
    assert_eq!(desk.closed(slow), Code::CheckInTimeout);
    assert!(!desk.core.is_closing(there));
}

#[test]
fn a_check_in_without_a_master_waits_and_is_then_refused() {
    let mut desk = Desk::new();
    // Late, but in time: the master gets its own time to answer.
    let conn = desk.connect();
    desk.send(conn, &hello(1, 1));
    desk.after(4_900);
    desk.send(conn, &check_in(1));
    let user = UserId::new("ann").unwrap();
    desk.core.authenticated(desk.now, conn, Ok((user, "Ann".into())), &mut desk.out);
    desk.after(4_500);
    assert!(!desk.core.is_closing(conn));
    desk.after(1);
    assert_eq!(desk.closed(conn), Code::Unavailable);
    // A master that comes now does not check in who was sent away.
    desk.master_linked(1);
    desk.bound(1, 1, 1);
    assert_eq!(desk.told(conn), []);
    assert!(desk.core.by_session.is_empty());
    desk.core.disconnect(conn, &mut desk.out);
    desk.check();
    assert!(desk.core.binding.is_empty());
}

#[test]
fn a_check_in_that_waits_goes_to_the_master_once_there_is_one() {
    let mut desk = Desk::new();
    let conn = desk.authenticated(4);
    assert_eq!(desk.to_master(), []);
    desk.master_linked(1);
    let said = desk.to_master();
    let [(0, SessionToMaster::Report(report)), (0, SessionToMaster::Bind(bind))] = said.as_slice()
    else {
        panic!("{said:?}")
    };
    assert_eq!(report.sessions, []);
    // The link breaks before the answer: it is asked again, with the same number.
    desk.core.master_lost(FIRST);
    desk.out.clear();
    desk.master_linked(1);
    assert_eq!(desk.to_master()[1], (0, SessionToMaster::Bind(bind.clone())));
    desk.bound(bind.number, 4, 1);
    assert!(matches!(desk.told(conn).as_slice(), [Said::Control(SessionToClient::CheckedIn(_))]));
}

#[test]
fn a_master_that_refuses_a_binding_is_heard() {
    let mut desk = Desk::with_master();
    let conn = desk.authenticated(1);
    desk.master(BindRefused { number: 1, refusal: refusal(Code::SessionExpired) });
    assert_eq!(desk.closed(conn), Code::SessionExpired);
    assert!(desk.core.binding.is_empty());
}

#[test]
fn a_binding_of_a_client_that_went_away_is_undone() {
    let mut desk = Desk::with_master();
    let conn = desk.authenticated(1);
    desk.core.disconnect(conn, &mut desk.out);
    desk.out.clear();
    desk.bound(1, 1, 6);
    let (session, generation) = (SessionId(1), Generation(6));
    let unbind = SessionToMaster::Unbind(Unbind { session, generation });
    assert_eq!(desk.to_master(), [(1, unbind)]);
}

#[test]
fn a_newer_connection_of_a_session_ends_the_older_one_here() {
    let mut desk = Desk::with_master();
    let older = desk.checked_in(1);
    let newer = desk.authenticated(1);
    desk.bound(desk.core.binds, 1, 2);
    let out = desk.out.clone();
    assert_eq!(desk.closed(older), Code::Superseded);
    desk.out = out;
    assert!(matches!(desk.told(newer).last(), Some(Said::Control(SessionToClient::CheckedIn(_)))));
    // The older one going away does not take the newer one's place with it.
    desk.core.disconnect(older, &mut desk.out);
    assert_eq!(desk.core.by_session.get(&SessionId(1)), Some(&newer));
    desk.check();
}

// The master -----------------------------------------------------------------------------------------------------

#[test]
fn a_session_ends_by_its_generation_and_a_newer_binding_lives_on() {
    let mut desk = Desk::with_master();
    let conn = desk.authenticated(1);
    desk.bound(1, 1, 5);
    desk.out.clear();
    let end = |generation| EndSession {
        session: SessionId(1),
        generation: Generation(generation),
        refusal: refusal(Code::Kicked),
    };
    desk.streamed(1, end(4));
    assert!(!desk.core.is_closing(conn));
    desk.streamed(2, end(5));
    assert_eq!(desk.closed(conn), Code::Kicked);
}

#[test]
fn a_stream_is_taken_in_order_once_and_acknowledged_also_when_it_comes_again() {
    let mut desk = Desk::with_master();
    let list = SessionServers { session_servers: Vec::new() };
    for (n, acknowledged) in [(1, 1), (1, 1), (3, 1), (2, 2), (3, 3), (2, 3)] {
        desk.streamed(n, list.clone());
        let received = SessionToMaster::Received(Received { n: acknowledged });
        assert_eq!(desk.to_master(), [(0, received)], "number {n}");
        desk.out.clear();
    }
}

fn epoch(epoch: u32) -> Epoch {
    Epoch { era: 0, epoch }
}

fn unbind(session: u64) -> SessionToMaster {
    Unbind { session: SessionId(session), generation: Generation(1) }.into()
}

/// Two masters. The active has acknowledged one unbind and not the other, has not answered a search, and has a live
/// search, when it dies.
#[test]
fn a_standby_that_takes_over_goes_on_where_the_active_was() {
    let mut desk = Desk::new();
    desk.decides(FIRST, epoch(4), None);
    desk.says(FIRST, epoch(4), 0, Welcome { streams: 70 });
    let [ann, bo, cy] = [1, 2, 3].map(|session| desk.checked_in(session));
    desk.send(ann, &watch(1));
    desk.answer(1, 1, Outcome::Watching(Watching {}));
    desk.send(ann, &search(2));
    desk.streamed(1, changed([(1, 1, 1)], 1));
    desk.core.disconnect(bo, &mut desk.out);
    desk.core.disconnect(cy, &mut desk.out);
    desk.master(Received { n: 1 });
    desk.core.master_lost(FIRST);
    desk.out.clear();

    desk.decides(SECOND, epoch(5), Some(70));
    assert_eq!(desk.said_to(SECOND), [(0, Resume {}.into())], "no report");
    desk.core.load(1, 0, &mut desk.out);
    assert_eq!(desk.out, [], "nothing more before it says welcome");
    desk.says(SECOND, epoch(5), 0, Welcome { streams: 70 });
    let out = desk.out.clone();
    assert_eq!(desk.told(ann), [], "its live search goes on");
    desk.out = out;
    let said = desk.said_to(SECOND);
    let [(2, SessionToMaster::Unbind(unbound)), (0, SessionToMaster::Ask(ask))] = said.as_slice()
    else {
        panic!("{said:?}")
    };
    assert_eq!((unbound.session, ask.id), (SessionId(3), RequestId(2)));

    // What the active had told already comes again, and is only acknowledged.
    desk.streamed(1, changed([(1, 1, 1)], 1));
    assert_eq!(desk.told(ann), []);
    desk.streamed(2, changed([(1, 1, 1)], 2));
    assert_eq!(desk.to_master(), [(0, Received { n: 2 }.into())]);
    assert_eq!(desk.told(ann).len(), 1);
}

/// The active was stopped for a while, and does not know yet that another one decides.
#[test]
fn a_deposed_master_is_told_so_once_and_not_obeyed() {
    let mut desk = Desk::with_master();
    let conn = desk.checked_in(1);
    desk.decides(SECOND, epoch(2), Some(1));
    desk.says(SECOND, epoch(2), 0, Welcome { streams: 1 });
    desk.out.clear();
    let end = |code| {
        let (session, generation) = (SessionId(1), Generation(9));
        EndSession { session, generation, refusal: refusal(code) }
    };
    desk.says(FIRST, Epoch::default(), 1, end(Code::Kicked));
    let stamp = StampedHeader { epoch: epoch(2), n: 0 };
    let told = Output::Tell(Told::StaleEpoch(FIRST, Epoch::default()));
    assert_eq!(desk.out, [told, Output::Master(FIRST, stamp, Fenced {}.into())]);
    desk.out.clear();
    desk.says(FIRST, Epoch::default(), 2, end(Code::Kicked));
    desk.decides(FIRST, epoch(1), Some(1));
    assert_eq!(desk.out, []);
    // Over a new link it may be another process, which does not know either.
    desk.core.master_lost(FIRST);
    desk.decides(FIRST, epoch(1), Some(1));
    assert_eq!(desk.said_to(FIRST), [(0, Fenced {}.into())]);
    // It has become the standby, and takes over later.
    desk.decides(FIRST, epoch(3), Some(1));
    assert_eq!(desk.said_to(FIRST), [(0, Resume {}.into())]);
    desk.says(FIRST, epoch(3), 0, Welcome { streams: 1 });
    desk.says(SECOND, epoch(2), 1, end(Code::Kicked));
    assert_eq!(desk.said_to(SECOND), [(0, Fenced {}.into())]);
    desk.says(FIRST, epoch(3), 1, end(Code::Destroyed));
    assert_eq!(desk.closed(conn), Code::Destroyed);
}

#[test]
fn a_master_that_does_not_say_that_it_decides_changes_nothing() {
    let mut desk = Desk::with_master();
    let conn = desk.checked_in(1);
    let end = EndSession {
        session: SessionId(1),
        generation: Generation(9),
        refusal: refusal(Code::Kicked),
    };
    desk.says(SECOND, Epoch::default(), 1, end.clone());
    desk.says(SECOND, Epoch::default(), 0, Welcome { streams: 5 });
    desk.core.master_lost(SECOND);
    assert_eq!(desk.out, []);
    desk.send(conn, &search(1));
    assert_eq!(desk.said_to(FIRST).len(), 1);
    // Nor does one that does, before it says welcome.
    desk.decides(SECOND, Epoch::default(), Some(1));
    desk.out.clear();
    desk.says(SECOND, Epoch::default(), 1, end);
    assert_eq!(desk.out, []);
    assert!(!desk.core.is_closing(conn));
}

#[test]
fn a_master_that_decides_and_does_not_say_welcome_is_dialled_again() {
    let mut desk = Desk::new();
    desk.decides(SECOND, epoch(1), None);
    desk.after(WELCOME_MS);
    let closed = |desk: &Desk| desk.out.contains(&Output::CloseMaster(SECOND));
    assert!(!closed(&desk));
    desk.after(1);
    assert!(closed(&desk));
    desk.out.clear();
    desk.after(60_000);
    assert!(!closed(&desk), "once");
    desk.core.master_lost(SECOND);
    desk.decides(SECOND, epoch(1), None);
    desk.says(SECOND, epoch(1), 0, Welcome { streams: 1 });
    desk.out.clear();
    desk.after(60_000);
    assert!(!closed(&desk), "one that has may be silent for as long as its link is there");
}

/// Whoever went meanwhile is told to the master that comes back.
#[test]
fn while_both_masters_are_away_nothing_is_said_and_afterwards_everything() {
    let mut desk = Desk::with_master();
    let conns = [1, 2].map(|session| desk.checked_in(session));
    desk.core.master_lost(SECOND);
    desk.core.master_lost(FIRST);
    desk.core.disconnect(conns[0], &mut desk.out);
    desk.send(conns[1], &search(1));
    desk.core.load(1, 0, &mut desk.out);
    assert_eq!(desk.to_master(), []);
    desk.decides(SECOND, epoch(9), Some(1));
    desk.says(SECOND, epoch(9), 0, Welcome { streams: 1 });
    let said = desk.said_to(SECOND);
    let [resume, unbound, (0, SessionToMaster::Ask(_))] = said.as_slice() else {
        panic!("{said:?}")
    };
    assert_eq!([resume, unbound], [&(0, Resume {}.into()), &(1, unbind(1))]);
}

#[test]
fn who_went_away_is_said_until_the_master_has_it() {
    let mut desk = Desk::with_master();
    let conns = [1, 2, 3].map(|session| desk.checked_in(session));
    let unbinds = |desk: &mut Desk| {
        let said = desk.to_master().into_iter().filter_map(|(n, message)| match message {
            SessionToMaster::Unbind(unbind) => Some((n, unbind.session.0)),
            _ => None,
        });
        let said: Vec<_> = said.collect();
        desk.out.clear();
        said
    };
    desk.core.disconnect(conns[0], &mut desk.out);
    assert_eq!(unbinds(&mut desk), [(1, 1)]);
    desk.core.master_lost(FIRST);
    desk.core.disconnect(conns[1], &mut desk.out);
    assert_eq!(unbinds(&mut desk), []);
    // The same master again: both are said again.
    desk.master_linked(1);
    assert_eq!(unbinds(&mut desk), [(1, 1), (2, 2)]);
    desk.master(Received { n: 1 });
    desk.core.master_lost(FIRST);
    desk.master_linked(1);
    assert_eq!(unbinds(&mut desk), [(2, 2)]);
    // A master without memory: the report tells it who is here. Who goes after the report is in its new stream.
    desk.core.master_lost(FIRST);
    desk.decides(FIRST, Epoch::default(), None);
    desk.core.disconnect(conns[2], &mut desk.out);
    assert_eq!(unbinds(&mut desk), []);
    desk.master(Welcome { streams: 2 });
    assert_eq!(unbinds(&mut desk), [(1, 3)]);
}

#[test]
fn unanswered_requests_are_asked_again_with_their_ids_and_answered_once() {
    let mut desk = Desk::with_master();
    let conn = desk.checked_in(1);
    desk.send(conn, &search(1));
    desk.core.master_lost(FIRST);
    desk.send(conn, &search(2));
    assert_eq!(desk.to_master().len(), 1);
    desk.out.clear();
    desk.master_linked(2);
    let ids: Vec<_> = desk
        .to_master()
        .into_iter()
        .filter_map(|(_, message)| match message {
            SessionToMaster::Ask(ask) => Some(ask.id.0),
            _ => None,
        })
        .collect();
    assert_eq!(ids, [1, 2]);
    desk.out.clear();
    let found = Found { instances: Vec::new(), cursor: None, explain: None };
    for _ in 0..2 {
        desk.answer(1, 2, Outcome::Found(found.clone()));
    }
    assert_eq!(desk.told(conn), [Said::Reply(2, Reply::Found(found))]);
    desk.answer(1, 1, Outcome::Created(Created { instance: ARENA }));
    assert_eq!(desk.told(conn), [Said::Reply(1, Reply::Created(Created { instance: ARENA }))]);
}

// Searches -------------------------------------------------------------------------------------------------------

#[test]
fn a_search_a_live_search_and_a_rank_go_to_the_master_as_they_came_and_are_answered() {
    let mut desk = Desk::with_master();
    let conn = desk.checked_in(1);
    let part = RankPart::Around(None);
    let rank = asked(4, Rank { board: "wins".into(), part, limit: LIMIT_MAX });
    let frames = [search(1), watch(2), unwatch(3, 2), rank];
    for frame in &frames {
        desk.send(conn, frame);
    }
    let asks = desk.to_master().into_iter().map(|(_, message)| match message {
        SessionToMaster::Ask(ask) => (ask.kind, ask.request.into_vec()),
        other => panic!("{other:?}"),
    });
    let header = RequestHeader::BYTES;
    let sent = frames.iter().map(|frame| (frame[0], frame[header..].to_vec()));
    assert_eq!(asks.collect::<Vec<_>>(), sent.collect::<Vec<_>>());
    desk.out.clear();
    let found = Found { instances: Vec::new(), cursor: None, explain: None };
    let ranking = Ranking { members: 0, ranks: Vec::new() };
    for (id, outcome, reply) in [
        (1, Outcome::Found(found.clone()), Reply::Found(found)),
        (2, Outcome::Watching(Watching {}), Reply::Watching(Watching {})),
        (3, Outcome::Unwatched(Unwatched {}), Reply::Unwatched(Unwatched {})),
        (4, Outcome::Ranking(ranking.clone()), Reply::Ranking(ranking)),
    ] {
        desk.answer(1, id, outcome);
        assert_eq!(desk.told(conn), [Said::Reply(id, reply)]);
    }
}

#[test]
fn what_can_not_be_asked_is_refused_by_name_and_the_master_is_not_asked() {
    let nested = |depth| {
        let innermost = Filter::Eq("mode".into(), MetaValue::Bool(true));
        (0..depth).fold(innermost, |inner, _| Filter::And(vec![inner]))
    };
    let watching = |filter| asked(1, Watch { kind: kind(), filter });
    let joining = |filter| asked(1, JoinOrCreate { filter, ..join_or_create() });
    let long = || Filter::In("level".into(), vec![MetaValue::Int(1); 65]);
    let ranked = |limit| asked(1, Rank { board: "wins".into(), part: RankPart::From(1), limit });
    let users = |count| (0..count).map(|n| UserId::new(format!("user-{n}")).unwrap()).collect();
    let creating = |count| {
        let (key, params, expected) = (None, Opaque::new(), users(count));
        asked(1, Create { kind: kind(), key, params, private: true, expected })
    };
    let expecting = |count| asked(1, JoinOrCreate { expected: users(count), ..join_or_create() });
    let mut refused = Vec::new();
    // One too deep is read and refused; 100 are more than is read at all.
    for depth in [FILTER_DEPTH_MAX + 1, 100] {
        refused.push((asked(1, searching(nested(depth), 1)), Code::FilterTooDeep));
        refused.push((watching(nested(depth)), Code::FilterTooDeep));
        refused.push((joining(nested(depth)), Code::FilterTooDeep));
    }
    refused.extend([
        (asked(1, searching(long(), 1)), Code::FilterTooLarge),
        (watching(long()), Code::FilterTooLarge),
        (joining(long()), Code::FilterTooLarge),
        (asked(1, searching(Filter::default(), 0)), Code::LimitInvalid),
        (asked(1, searching(Filter::default(), LIMIT_MAX + 1)), Code::LimitInvalid),
        (ranked(0), Code::LimitInvalid),
        (ranked(u16::MAX), Code::LimitInvalid),
        (creating(33), Code::Malformed),
        (expecting(33), Code::Malformed),
    ]);
    for (frame, code) in refused {
        let mut desk = Desk::with_master();
        let conn = desk.checked_in(1);
        desk.send(conn, &frame);
        assert_eq!(desk.to_master(), []);
        assert_eq!(desk.refused(conn, 1), code, "{frame:02x?}");
    }
    let deepest = nested(FILTER_DEPTH_MAX);
    let taken = [asked(1, searching(deepest, LIMIT_MAX)), ranked(1), creating(32), expecting(32)];
    for frame in taken {
        let mut desk = Desk::with_master();
        let conn = desk.checked_in(1);
        desk.send(conn, &frame);
        assert_eq!(desk.to_master().len(), 1, "{frame:02x?}");
    }
}

#[test]
fn live_searches_cost_as_much_as_making_an_instance_and_searches_a_fifth_of_it() {
    type Asks = fn(u32) -> Vec<u8>;
    let asks: [(Asks, usize); 3] = [(search, 20), (watch, 4), (|id| unwatch(id, 1), 40)];
    for (ask, burst) in asks {
        let mut desk = Desk::with_master();
        let conn = desk.checked_in(1);
        for id in 1..=41 {
            desk.send(conn, &ask(id));
            desk.answer(1, id, Outcome::Refused(refusal(Code::TooBroad)));
        }
        let codes = desk.told(conn).into_iter().filter(|said| match said {
            Said::Reply(_, Reply::Refused(refusal)) => refusal.code == Code::TooBroad,
            other => panic!("{other:?}"),
        });
        assert_eq!(codes.count(), burst);
    }
}

#[test]
fn changes_go_with_the_same_bytes_to_every_watcher_that_is_bound_here_as_the_master_says() {
    let mut desk = Desk::with_master();
    let (ann, bo) = (desk.checked_in(1), desk.checked_in(2));
    // Session 2 with a generation that is over and one that is to come; session 3 is not here.
    let message = changed([(1, 1, 8), (2, 1, 9), (2, 0, 9), (2, 2, 9), (3, 1, 9)], 1);
    desk.streamed(1, message.clone());
    let header = |id| ReplyHeader { kind: 0x99, id: RequestId(id) };
    let out = Output::Changes(vec![(ann, header(8)), (bo, header(9))], message.changes.clone());
    let received = Output::Master(FIRST, StampedHeader::default(), Received { n: 1 }.into());
    assert_eq!(desk.out, [out, received.clone()]);
    assert_eq!(desk.told(bo), [Said::Reply(9, Reply::Changes(changes(1)))]);
    // The link broke before the acknowledgement: it comes again, and is told once.
    desk.streamed(1, message.clone());
    assert_eq!(desk.out, [received]);
    desk.out.clear();
    desk.core.close(ann, refusal(Code::Kicked), &mut desk.out);
    desk.core.disconnect(bo, &mut desk.out);
    desk.out.clear();
    desk.streamed(2, message);
    assert!(matches!(desk.out[..], [Output::Master(..)]), "nobody is told who is on the way out");
}

/// A master says welcome on a new link.
fn welcome(desk: &mut Desk, streams: u64, era: u32, epoch: u32) {
    desk.core.master_lost(FIRST);
    let epoch = Epoch { era, epoch };
    desk.decides(FIRST, epoch, Some(streams));
    desk.out.clear();
    desk.says(FIRST, epoch, 0, Welcome { streams });
}

/// The live searches of which a client is told that they are forgotten.
fn forgotten(desk: &mut Desk, conn: ConnId) -> Vec<u32> {
    let ids = desk.told(conn).into_iter().map(|said| match said {
        Said::Reply(id, Reply::Changes(changes)) => {
            assert_eq!((changes.n, changes.anew, changes.instances.len()), (0, false, 0));
            assert_eq!(changes.ended.map(|refusal| refusal.code), Some(Code::WatchUnknown));
            id
        }
        other => panic!("{other:?}"),
    });
    ids.collect()
}

#[test]
fn who_watches_is_told_when_the_master_has_lost_its_memory_and_not_when_a_standby_takes_over() {
    let mut desk = Desk::new();
    welcome(&mut desk, 1, 7, 1);
    let (ann, bo) = (desk.checked_in(1), desk.checked_in(2));
    for id in [1, 2] {
        desk.send(ann, &watch(id));
        desk.answer(1, id, Outcome::Watching(Watching {}));
    }
    desk.send(ann, &unwatch(3, 1));
    desk.answer(1, 3, Outcome::Unwatched(Unwatched {}));
    // Set up over another session server: it is known by what it tells.
    desk.streamed(1, changed([(2, 1, 9)], 1));
    // One that tells before it is answered is asked for again at any master.
    desk.send(ann, &watch(4));
    desk.streamed(2, changed([(1, 1, 4)], 1));
    // The same master over a new link, and a standby in its place, know them all.
    for epoch in [1, 2] {
        welcome(&mut desk, 1, 7, epoch);
        let out = desk.out.clone();
        assert_eq!(forgotten(&mut desk, ann), []);
        desk.out = out;
        assert_eq!(forgotten(&mut desk, bo), []);
    }
    welcome(&mut desk, 1, 8, 3);
    assert_eq!(desk.to_master().len(), 1, "the request that is under way");
    let out = desk.out.clone();
    assert_eq!(forgotten(&mut desk, ann), [2]);
    desk.out = out;
    assert_eq!(forgotten(&mut desk, bo), [9]);
    // They are told once.
    welcome(&mut desk, 1, 9, 4);
    assert_eq!(forgotten(&mut desk, ann), []);
}

#[test]
fn a_master_that_gave_this_server_up_for_other_streams_has_lost_its_memory_too() {
    let mut desk = Desk::new();
    welcome(&mut desk, 1, 7, 1);
    let conn = desk.checked_in(1);
    desk.send(conn, &watch(1));
    desk.answer(1, 1, Outcome::Watching(Watching {}));
    welcome(&mut desk, 2, 7, 1);
    assert_eq!(forgotten(&mut desk, conn), [1]);
}

#[test]
fn of_endless_live_searches_those_are_remembered_that_were_heard_of_last() {
    let mut desk = Desk::with_master();
    let conn = desk.checked_in(1);
    for (n, watch) in (1..=100).chain([90]).enumerate() {
        desk.streamed(u64::try_from(n).unwrap() + 1, changed([(1, 1, watch)], 1));
    }
    welcome(&mut desk, 2, 1, 1);
    let remembered = (85..=89).chain(91..=100).chain([90]);
    assert_eq!(forgotten(&mut desk, conn), remembered.collect::<Vec<_>>());
}

#[test]
fn what_a_client_has_seen_goes_on_to_the_master_that_is_there_and_is_not_kept_for_another() {
    let mut desk = Desk::with_master();
    let conn = desk.checked_in(1);
    desk.send(conn, &seen(8, 3));
    let said = |watch, n| {
        let (session, watch) = (SessionId(1), RequestId(watch));
        (0, SessionToMaster::Seen(Seen { session, watch, n }))
    };
    assert_eq!(desk.to_master(), [said(8, 3)]);
    desk.core.master_lost(FIRST);
    desk.out.clear();
    desk.send(conn, &seen(8, 4));
    desk.master_linked(1);
    assert!(desk.to_master().iter().all(|(_, said)| !matches!(said, SessionToMaster::Seen(_))));
    desk.out.clear();
    desk.send(conn, &[0x05, 0xc0]);
    assert_eq!(desk.closed(conn), Code::Malformed);
    let stranger = desk.connect();
    desk.send(stranger, &seen(8, 3));
    assert_eq!(desk.closed(stranger), Code::NotCheckedIn);
}

#[test]
fn what_was_seen_over_the_limit_is_told_a_little_later_and_only_the_newest() {
    let mut desk = Desk::with_master();
    let conn = desk.checked_in(1);
    for (watch, n) in [(1, 1), (2, 5), (1, 2)] {
        desk.core.over_limits(conn, &seen(watch, n), &mut desk.out);
    }
    for watch in 3..1_000 {
        desk.core.over_limits(conn, &seen(watch, 1), &mut desk.out);
    }
    assert_eq!(desk.out, []);
    desk.after(1_000);
    let told = desk.to_master().into_iter().filter_map(|(_, message)| match message {
        SessionToMaster::Seen(seen) => Some((seen.watch.0, seen.n)),
        _ => None,
    });
    let told: Vec<_> = told.collect();
    assert_eq!((&told[..2], told.len()), (&[(1, 2), (2, 5)][..], LATE_SEEN_MAX));
    desk.out.clear();
    desk.after(1_000);
    assert_eq!(desk.to_master(), []);
}

#[test]
fn a_new_master_is_told_who_is_here_with_the_session_s_secret_and_name() {
    let mut desk = Desk::with_master();
    desk.checked_in(7);
    desk.master_linked(2);
    let said = desk.to_master();
    let (_, SessionToMaster::Report(report)) = &said[0] else { panic!("{said:?}") };
    let held = HeldSession {
        session: SessionId(7),
        generation: Generation(1),
        user: UserId::new("user-7").unwrap(),
        session_key: SessionKey([7; 16]),
        name: "Ann".into(),
    };
    assert_eq!(report.sessions, [held]);
}

#[test]
fn a_report_of_as_many_sessions_as_there_can_be_fits_one_frame() {
    let longest = HeldSession {
        session: SessionId(u64::MAX),
        generation: Generation(u32::MAX),
        user: UserId::new("u".repeat(UserId::BYTES_MAX)).unwrap(),
        session_key: SessionKey([9; 16]),
        name: EcoString::new(),
    };
    let bytes = greenroom_protocol::encode(&longest).len();
    assert!(bytes <= REPORTED_BYTES, "{bytes}");
    // The header of a longer name.
    assert!(bytes + 4 <= REPORTED_BYTES, "{bytes}");
}

#[test]
fn a_ninth_request_is_busy_and_one_of_the_eight_may_be_repeated() {
    let mut desk = Desk::with_master();
    let conn = desk.checked_in(1);
    for id in 1..=8 {
        desk.send(conn, &asked(id, Leave { instance: ARENA }));
    }
    assert_eq!(desk.told(conn), []);
    desk.send(conn, &asked(9, Leave { instance: ARENA }));
    assert_eq!(desk.refused(conn, 9), Code::Busy);
    desk.send(conn, &asked(8, Leave { instance: ARENA }));
    assert_eq!(desk.told(conn), []);
    desk.answer(1, 3, Outcome::Left(Left { instance: ARENA }));
    desk.out.clear();
    desk.send(conn, &asked(9, Leave { instance: ARENA }));
    assert_eq!(desk.told(conn), []);
}

#[test]
fn a_request_that_can_not_be_is_refused_and_the_conversation_goes_on() {
    let mut desk = Desk::with_master();
    let conn = desk.checked_in(1);
    desk.send(conn, &[&join(1)[..], &[0xc0]].concat());
    assert_eq!(desk.refused(conn, 1), Code::Malformed);
    let unknown = RequestHeader { kind: 0x1e, id: RequestId(2), answered: RequestId(0) };
    desk.send(conn, &unknown.bytes());
    assert_eq!(desk.refused(conn, 2), Code::UnexpectedKind);
    let create = JoinOrCreate { key: Some(Key::new("k").unwrap()), ..join_or_create() };
    for id in 3..7 {
        desk.send(conn, &asked(id, create.clone()));
        assert_eq!(desk.told(conn), []);
    }
    desk.send(conn, &asked(7, create));
    assert_eq!(desk.refused(conn, 7), Code::RateLimited);
    // A header that is cut off has no id to answer to.
    desk.send(conn, &[0x10, 1, 0]);
    assert_eq!(desk.closed(conn), Code::Malformed);
}

#[test]
fn a_request_without_a_master_is_unavailable_and_one_without_an_answer_undecided() {
    let mut desk = Desk::with_master();
    let conn = desk.checked_in(1);
    desk.send(conn, &search(1));
    desk.core.master_lost(FIRST);
    desk.send(conn, &search(2));
    desk.after(4_500);
    assert_eq!(desk.told(conn), []);
    desk.after(1);
    assert_eq!(desk.refused(conn, 2), Code::Unavailable);
    desk.after(25_499);
    assert_eq!(desk.told(conn), []);
    desk.after(1);
    assert_eq!(desk.refused(conn, 1), Code::Undecided);
    desk.after(60_000);
    assert_eq!(desk.told(conn), []);
}

// Seats ----------------------------------------------------------------------------------------------------------

#[test]
fn a_grant_becomes_an_attach_and_an_attach_a_seat() {
    let mut desk = Desk::with_master();
    let conn = desk.checked_in(1);
    desk.granted(conn, 1, 1, 3);
    assert!(desk.out.iter().any(|output| matches!(output, Output::DialGame(GameId(0), _))));
    assert_eq!(desk.to_game(), [], "the link is not open yet");
    desk.core.game_linked(GameId(0), GAME_LIFE, &mut desk.out);
    let [SessionToGame::Attach(attach)] = &desk.to_game()[..] else { panic!() };
    assert_eq!((attach.instance, attach.incarnation, attach.seat), (ARENA, LIFE, Seat(3)));
    assert_eq!((attach.session, attach.generation), (SessionId(1), Generation(1)));
    assert_eq!(attach.options[..], [0xc0]);
    let (member, channel) = (attach.member, attach.channel);
    assert_eq!(desk.core.audience(channel), []);
    desk.out.clear();
    desk.attached(member);
    let told = desk.told(conn);
    let [Said::Reply(1, Reply::Joined(joined))] = &told[..] else { panic!("{told:?}") };
    assert_eq!((joined.channel, joined.seat, joined.down_next), (channel, Seat(3), 4));
    assert_eq!(desk.core.audience(channel), [(member, conn)]);
    let up = Up { game: GameId(0), member, ticks: true };
    assert_eq!(desk.core.route_up(conn, channel), Some(up));
    assert_eq!(desk.core.down(member, &[]), Some(conn));
    desk.check();
}

#[test]
fn everybody_in_an_instance_has_the_same_channel() {
    let mut desk = Desk::with_master();
    let (ann, first, channel) = desk.seated(1);
    let (bo, second, other) = desk.seated(2);
    assert_eq!(channel, other);
    assert_eq!(desk.core.audience(channel), [(first, ann), (second, bo)]);
    desk.core.disconnect(ann, &mut desk.out);
    assert_eq!(desk.to_game(), [SessionToGame::Detach(Detach { member: first })]);
    assert_eq!(desk.core.audience(channel), [(second, bo)]);
    desk.core.disconnect(bo, &mut desk.out);
    assert_eq!(desk.core.audience(channel), []);
    assert!(desk.core.members.is_empty() && desk.core.channels.is_empty());
    desk.check();
}

#[test]
fn a_game_that_refuses_a_seat_refuses_the_join() {
    let mut desk = Desk::with_master();
    let conn = desk.checked_in(1);
    desk.granted(conn, 1, 1, 0);
    desk.core.game_linked(GameId(0), GAME_LIFE, &mut desk.out);
    let (member, channel) = desk.attach_asked();
    desk.out.clear();
    let refused = AttachRefused { member, refusal: refusal(Code::Rejected) };
    // Another game server can't refuse what it was not asked.
    desk.core.from_game(GameId(1), refused.clone().into(), &mut desk.out);
    assert_eq!(desk.out, []);
    desk.core.from_game(GameId(0), refused.into(), &mut desk.out);
    assert_eq!(desk.refused(conn, 1), Code::Rejected);
    assert_eq!(desk.core.route_up(conn, channel), None);
    desk.check();
}

#[test]
fn a_seat_that_ends_is_told_and_what_was_under_way_to_it_does_no_harm() {
    let mut desk = Desk::with_master();
    let (conn, member, channel) = desk.seated(1);
    let ended = Ended { member, refusal: refusal(Code::Destroyed) };
    desk.core.from_game(GameId(0), ended.into(), &mut desk.out);
    let told = Said::Seat(client_instance::SEAT_ENDED, channel, Code::Destroyed);
    assert_eq!(desk.told(conn), [told]);
    desk.send(conn, &up(channel));
    let told = Said::Seat(client_instance::SEAT_ENDED, channel, Code::NotSeated);
    assert_eq!(desk.told(conn), [told]);
    assert!(!desk.core.is_closing(conn));
    desk.check();
}

#[test]
fn two_joins_to_one_instance_are_one_seat_and_both_are_answered() {
    let mut desk = Desk::with_master();
    let conn = desk.checked_in(1);
    for id in [1, 2, 2] {
        desk.granted(conn, 1, id, 0);
    }
    desk.core.game_linked(GameId(0), GAME_LIFE, &mut desk.out);
    let (member, _) = desk.attach_asked();
    desk.out.clear();
    desk.attached(member);
    let ids: Vec<_> = desk
        .told(conn)
        .into_iter()
        .map(|said| match said {
            Said::Reply(id, Reply::Joined(_)) => id,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(ids.len(), 2);
    assert!(ids.contains(&1) && ids.contains(&2));
    desk.check();
}

#[test]
fn who_leaves_and_joins_at_once_gets_the_new_seat_and_not_the_end_of_the_old_one() {
    let mut desk = Desk::with_master();
    let (conn, old, _) = desk.seated(1);
    desk.send(conn, &asked(2, Leave { instance: ARENA }));
    desk.answer(1, 2, Outcome::Left(Left { instance: ARENA }));
    desk.out.clear();
    desk.granted(conn, 1, 3, 1);
    let (new, _) = desk.attach_asked();
    assert_ne!(old, new);
    desk.out.clear();
    // The game server says only now that the old seat is gone.
    desk.core.from_game(
        GameId(0),
        Ended { member: old, refusal: refusal(Code::Left) }.into(),
        &mut desk.out,
    );
    assert_eq!(desk.told(conn), []);
    desk.attached(new);
    assert!(matches!(desk.told(conn)[..], [Said::Reply(3, Reply::Joined(_))]));
    desk.check();
}

#[test]
fn a_grant_of_another_seat_replaces_the_one_that_ended() {
    let mut desk = Desk::with_master();
    let (conn, old, _) = desk.seated(1);
    desk.granted(conn, 1, 2, 8);
    let (new, channel) = desk.attach_asked();
    assert_ne!(old, new);
    assert_eq!(desk.core.audience(channel), []);
    desk.out.clear();
    desk.attached(new);
    let told = desk.told(conn);
    assert!(matches!(&told[..], [Said::Reply(2, Reply::Joined(joined))] if joined.seat == Seat(8)));
    desk.check();
}

#[test]
fn a_broken_link_to_a_game_is_dialled_again_and_its_members_send_again() {
    let mut desk = Desk::with_master();
    let (conn, member, channel) = desk.seated(1);
    desk.core.game_lost(GameId(0), &mut desk.out);
    assert!(matches!(desk.out[..], [Output::DialGame(GameId(0), _)]));
    desk.out.clear();
    desk.core.game_linked(GameId(0), GAME_LIFE, &mut desk.out);
    assert_eq!(desk.attach_asked(), (member, channel));
    desk.out.clear();
    desk.attached(member);
    let told = Said::Seat(client_instance::SEND_AGAIN, channel, Code::Busy);
    assert_eq!(desk.told(conn), [told]);
    assert_eq!(desk.core.audience(channel), [(member, conn)]);
    desk.check();
}

#[test]
fn a_game_server_that_started_anew_lost_its_instances() {
    let mut desk = Desk::with_master();
    let (conn, _, channel) = desk.seated(1);
    desk.core.game_lost(GameId(0), &mut desk.out);
    desk.out.clear();
    desk.core.game_linked(GameId(0), Incarnation(10), &mut desk.out);
    let told = Said::Seat(client_instance::SEAT_ENDED, channel, Code::InstanceLost);
    assert_eq!(desk.told(conn), [told]);
    assert!(desk.core.members.is_empty() && desk.core.channels.is_empty());
    desk.check();
}

#[test]
fn a_game_server_that_can_not_be_reached_ends_its_seats_and_joins() {
    let mut desk = Desk::with_master();
    let (ann, _, channel) = desk.seated(1);
    desk.core.game_lost(GameId(0), &mut desk.out);
    let bo = desk.checked_in(2);
    desk.granted(bo, 2, 1, 2);
    desk.out.clear();
    desk.core.game_unreachable(GameId(0), "refused", &mut desk.out);
    let out = desk.out.clone();
    let told = Said::Seat(client_instance::SEAT_ENDED, channel, Code::InstanceLost);
    assert_eq!(desk.told(ann), [told]);
    desk.out = out;
    assert_eq!(desk.refused(bo, 1), Code::InstanceLost);
    assert!(desk.core.games.is_empty() && desk.core.by_name.is_empty());
    // The next grant there dials anew.
    desk.granted(bo, 2, 2, 2);
    assert!(desk.out.iter().any(|output| matches!(output, Output::DialGame(..))));
    desk.check();
}

/// Somebody in a seat of an instance that goes on elsewhere when its game server is lost.
fn seated_durably(desk: &mut Desk) -> (ConnId, MemberId, Channel) {
    let conn = desk.checked_in(1);
    desk.send(conn, &join(1));
    let outcome = Outcome::Granted(Granted { durable: true, ..grant(0) });
    desk.master(Answer { session: SessionId(1), id: RequestId(1), outcome });
    desk.core.game_linked(GameId(0), GAME_LIFE, &mut desk.out);
    let (member, channel) = desk.attach_asked();
    desk.out.clear();
    desk.attached(member);
    desk.out.clear();
    (conn, member, channel)
}
/// Where that instance goes on.
fn elsewhere() -> Granted {
    Granted {
        incarnation: Incarnation(LIFE.0 + 1),
        server: ServerName::new("game-2").unwrap(),
        address: "10.0.0.2:4200".into(),
        durable: true,
        ..grant(0)
    }
}
fn goes_on(desk: &mut Desk) {
    desk.master(Moved { session: SessionId(1), granted: elsewhere() });
}
fn dialled(desk: &Desk) -> Vec<&str> {
    let dialled = desk.out.iter().filter_map(|output| match output {
        Output::DialGame(_, address) => Some(address.as_str()),
        _ => None,
    });
    dialled.collect()
}

#[test]
fn a_seat_follows_its_instance_into_another_life_and_its_client_is_told() {
    let mut desk = Desk::with_master();
    let (conn, member, channel) = seated_durably(&mut desk);
    desk.core.game_lost(GameId(0), &mut desk.out);
    desk.core.game_unreachable(GameId(0), "refused", &mut desk.out);
    desk.out.clear();
    assert_eq!(desk.told(conn), [], "the seat waits");
    goes_on(&mut desk);
    assert_eq!(dialled(&desk), ["10.0.0.2:4200"]);
    // What its client sends meanwhile is to be sent again, on whichever channel it knows.
    desk.out.clear();
    desk.send(conn, &up(channel));
    assert_eq!(desk.told(conn), [Said::Seat(client_instance::SEND_AGAIN, channel, Code::Busy)]);
    let game = desk.core.game_of(desk.core.seat_in(SessionId(1), ARENA).unwrap().1).unwrap();
    desk.core.game_linked(game, GAME_LIFE, &mut desk.out);
    let said = desk.out.clone();
    let [Output::Game(to, SessionToGame::Attach(attach))] = &said[..] else { panic!("{said:?}") };
    assert_eq!((*to, attach.incarnation), (game, elsewhere().incarnation));
    assert_ne!((attach.member, attach.channel), (member, channel));
    desk.out.clear();
    let attached = Attached { member: attach.member, up_received: 0, down_next: 1, tick_rate: 20 };
    desk.core.from_game(game, attached.into(), &mut desk.out);
    let told = desk.told(conn);
    let [Said::Control(SessionToClient::Rejoined(joined))] = &told[..] else { panic!("{told:?}") };
    assert_eq!((joined.incarnation, joined.channel), (elsewhere().incarnation, attach.channel));
    assert_eq!(desk.core.audience(attach.channel), [(attach.member, conn)]);
    assert!(desk.core.route_up(conn, channel).is_none());
    desk.check();
}

#[test]
fn a_game_server_that_started_anew_keeps_seats_of_what_goes_on_waiting() {
    let mut desk = Desk::with_master();
    let (conn, ..) = seated_durably(&mut desk);
    desk.core.game_lost(GameId(0), &mut desk.out);
    desk.out.clear();
    desk.core.game_linked(GameId(0), Incarnation(10), &mut desk.out);
    assert_eq!(desk.out, [], "it is attached to nothing there");
    // The same server takes it up itself.
    let granted = Granted { incarnation: Incarnation(LIFE.0 + 1), durable: true, ..grant(0) };
    desk.master(Moved { session: SessionId(1), granted });
    let (member, channel) = desk.attach_asked();
    desk.out.clear();
    desk.attached(member);
    let told = desk.told(conn);
    assert!(
        matches!(&told[..], [Said::Control(SessionToClient::Rejoined(joined))] if joined.channel == channel)
    );
    desk.check();
}

#[test]
fn a_seat_whose_instance_does_not_go_on_ends_by_the_masters_word_or_after_two_minutes() {
    let mut desk = Desk::with_master();
    let (conn, _, channel) = seated_durably(&mut desk);
    desk.core.game_lost(GameId(0), &mut desk.out);
    desk.core.game_unreachable(GameId(0), "refused", &mut desk.out);
    desk.out.clear();
    let lost =
        SeatLost { session: SessionId(1), instance: ARENA, refusal: refusal(Code::InstanceFailed) };
    desk.master(lost);
    let told = Said::Seat(client_instance::SEAT_ENDED, channel, Code::InstanceFailed);
    assert_eq!(desk.told(conn), [told]);
    desk.after(1);
    assert!(desk.core.games.is_empty(), "nobody waits for it any more");

    let mut desk = Desk::with_master();
    let (conn, _, channel) = seated_durably(&mut desk);
    desk.core.game_lost(GameId(0), &mut desk.out);
    desk.core.game_unreachable(GameId(0), "refused", &mut desk.out);
    desk.out.clear();
    desk.after(60_000);
    assert_eq!(dialled(&desk), ["10.0.0.1:4200"], "it may be this server alone");
    desk.core.game_unreachable(GameId(0), "refused", &mut desk.out);
    desk.out.clear();
    desk.after(60_001);
    let told = Said::Seat(client_instance::SEAT_ENDED, channel, Code::InstanceLost);
    assert_eq!(desk.told(conn), [told]);
    desk.check();
}

#[test]
fn a_seat_that_is_refused_where_it_goes_on_ends_on_the_channel_that_its_client_knows() {
    let mut desk = Desk::with_master();
    let (conn, _, channel) = seated_durably(&mut desk);
    goes_on(&mut desk);
    let (_, member) = desk.core.seat_in(SessionId(1), ARENA).unwrap();
    let game = desk.core.game_of(member).unwrap();
    desk.core.game_linked(game, GAME_LIFE, &mut desk.out);
    desk.out.clear();
    let refused = AttachRefused { member, refusal: refusal(Code::Rejected) };
    desk.core.from_game(game, refused.into(), &mut desk.out);
    assert_eq!(desk.told(conn), [Said::Seat(client_instance::SEAT_ENDED, channel, Code::Rejected)]);
    desk.check();
}

#[test]
fn who_asks_for_a_seat_while_its_instance_moves_gets_it_where_it_goes_on() {
    let mut desk = Desk::with_master();
    let conn = desk.checked_in(1);
    desk.send(conn, &join(1));
    let outcome = Outcome::Granted(Granted { durable: true, ..grant(0) });
    desk.master(Answer { session: SessionId(1), id: RequestId(1), outcome });
    desk.core.game_unreachable(GameId(0), "refused", &mut desk.out);
    desk.out.clear();
    goes_on(&mut desk);
    // Said again, it changes nothing.
    goes_on(&mut desk);
    let (_, member) = desk.core.seat_in(SessionId(1), ARENA).unwrap();
    let game = desk.core.game_of(member).unwrap();
    desk.core.game_linked(game, GAME_LIFE, &mut desk.out);
    desk.out.clear();
    let attached = Attached { member, up_received: 0, down_next: 1, tick_rate: 20 };
    desk.core.from_game(game, attached.into(), &mut desk.out);
    let told = desk.told(conn);
    let [Said::Reply(1, Reply::Joined(joined))] = &told[..] else { panic!("{told:?}") };
    assert_eq!(joined.incarnation, elsewhere().incarnation);
    desk.check();
}

#[test]
fn a_link_that_nobody_needs_is_not_dialled_again() {
    let mut desk = Desk::with_master();
    let (conn, ..) = desk.seated(1);
    desk.core.disconnect(conn, &mut desk.out);
    desk.out.clear();
    desk.core.game_lost(GameId(0), &mut desk.out);
    assert_eq!(desk.out, []);
    assert!(desk.core.games.is_empty());
}

#[test]
fn a_game_server_that_does_not_answer_has_ten_seconds_and_is_told_that_it_was_too_late() {
    let mut desk = Desk::with_master();
    let conn = desk.checked_in(1);
    desk.granted(conn, 1, 1, 0);
    desk.core.game_linked(GameId(0), GAME_LIFE, &mut desk.out);
    let (member, channel) = desk.attach_asked();
    desk.out.clear();
    desk.after(10_000);
    assert_eq!(desk.out, []);
    desk.after(1);
    assert_eq!(desk.to_game(), [SessionToGame::Detach(Detach { member })]);
    assert_eq!(desk.refused(conn, 1), Code::Unavailable);
    desk.attached(member);
    assert_eq!(desk.out, []);
    assert_eq!(desk.core.audience(channel), []);
    desk.check();
}

// Limits ---------------------------------------------------------------------------------------------------------

#[test]
fn over_the_limit_a_frame_is_sent_back_in_its_own_form() {
    let mut desk = Desk::with_master();
    let (conn, _, channel) = desk.seated(1);
    let mut charge = |at| desk.core.charge(Moment(at), conn, 20, &mut desk.out);
    assert_eq!((0..121).filter(|_| charge(0) == Charge::Fine).count(), 120);
    desk.core.over_limits(conn, &up(channel), &mut desk.out);
    let told = Said::Seat(client_instance::SEND_AGAIN, channel, Code::RateLimited);
    assert_eq!(desk.told(conn), [told]);
    desk.core.over_limits(conn, &search(5), &mut desk.out);
    assert_eq!(desk.refused(conn, 5), Code::RateLimited);
    for without_an_answer in [&[][..], &[0x20, 1], &[0x10, 1], &[client_session::PING]] {
        desk.core.over_limits(conn, without_an_answer, &mut desk.out);
        assert_eq!(desk.out, []);
    }
}

#[test]
fn the_fourth_burst_over_the_limit_ends_the_connection_and_one_is_forgiven_in_ten_seconds() {
    let mut desk = Desk::with_master();
    let conn = desk.checked_in(1);
    let burst = |desk: &mut Desk, at: u64| {
        let charges = (0..500).map(|_| desk.core.charge(Moment(at), conn, 20, &mut desk.out));
        charges.last().unwrap()
    };
    for second in [1, 2, 3, 14, 25, 36] {
        assert_eq!(burst(&mut desk, second * 2_000), Charge::Over, "second {second}");
    }
    let mut desk = Desk::with_master();
    let conn = desk.checked_in(1);
    let burst = |desk: &mut Desk, at: u64| {
        let charges = (0..500).map(|_| desk.core.charge(Moment(at), conn, 20, &mut desk.out));
        charges.last().unwrap()
    };
    for second in [0, 2, 4] {
        assert_eq!(burst(&mut desk, second * 1_000), Charge::Over);
    }
    assert_eq!(desk.told(conn), []);
    assert!(matches!(burst(&mut desk, 6_000), Charge::Over | Charge::Closed));
    assert_eq!(desk.closed(conn), Code::RateLimited);
}

#[test]
fn the_longest_frame_fits_the_burst() {
    let mut desk = Desk::with_master();
    let conn = desk.checked_in(1);
    let longest = greenroom_protocol::CLIENT_FRAME_BYTES_MAX;
    assert_eq!(desk.core.charge(Moment(0), conn, longest, &mut desk.out), Charge::Fine);
    assert_eq!(desk.core.charge(Moment(0), conn, longest, &mut desk.out), Charge::Fine);
    assert_eq!(desk.core.charge(Moment(0), conn, longest, &mut desk.out), Charge::Over);
}

#[test]
fn limits_of_addresses_do_not_hold_for_this_machine_and_the_server_s_own_does() {
    let mut desk = Desk::new();
    for _ in 0..64 {
        desk.connect();
    }
    let full = desk.core.connect(desk.now, IpAddr::from([127, 0, 0, 1])).unwrap_err();
    assert_eq!(full.code, Code::Busy);
    let mut desk = Desk::new();
    let away = IpAddr::from([192, 0, 2, 1]);
    let connected = (0..64).filter(|_| desk.core.connect(Moment(0), away).is_ok()).count();
    assert_eq!(connected, 60);
    assert_eq!(desk.core.connect(Moment(0), away).unwrap_err().code, Code::RateLimited);
}

// Drain ----------------------------------------------------------------------------------------------------------

#[test]
fn a_drain_sends_clients_elsewhere_also_those_that_were_just_checking_in() {
    let mut desk = Desk::with_master();
    let there = desk.checked_in(1);
    let coming = desk.authenticated(2);
    desk.out.clear();
    desk.core.drain(&mut desk.out);
    let told = desk.told(there);
    let [Said::Control(SessionToClient::GoAway(go_away))] = &told[..] else { panic!("{told:?}") };
    assert_eq!(go_away.session_servers.len(), 1);
    assert_eq!(go_away.session_servers[0].name, "session-2");
    let refused = desk.core.connect(desk.now, IpAddr::from([127, 0, 0, 1])).unwrap_err();
    assert_eq!(refused.code, Code::Draining);
    desk.bound(desk.core.binds, 2, 1);
    let told = desk.told(coming);
    let [Said::Control(SessionToClient::CheckedIn(_)), Said::Control(SessionToClient::GoAway(_))] =
        &told[..]
    else {
        panic!("{told:?}")
    };
    desk.core.close_all(&mut desk.out);
    let out = desk.out.clone();
    assert_eq!(desk.closed(there), Code::Draining);
    desk.out = out;
    assert_eq!(desk.closed(coming), Code::Draining);
}

// Anything at all ------------------------------------------------------------------------------------------------

#[derive(Clone, Debug)]
enum Call {
    Connect(u8),
    /// A client comes and checks in.
    Arrive(u8),
    /// A session asks, and the master answers.
    Ask(u8, u32, Outcome),
    Disconnect(usize),
    Close(usize),
    Frame(usize, Vec<u8>),
    /// A frame that is over its client's limits.
    Over(usize, Vec<u8>),
    Charge(usize, usize),
    Authenticated(usize, bool),
    /// A master decides, and says welcome to these streams.
    Welcomed(usize, u32, u64),
    MasterLost(usize),
    FromMaster(usize, u64, u32, MasterToSession),
    GameLinked(u32, u64),
    GameLost(u32),
    GameUnreachable(u32),
    FromGame(u32, GameToSession),
    Tick(u64),
    Drain,
}

fn frames() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        6 => Just(hello(1, 1)),
        6 => (0u8..4).prop_map(check_in),
        6 => (0u32..6).prop_map(join),
        2 => (0u32..6).prop_map(search),
        2 => (0u32..6).prop_map(|id| asked(id, Leave { instance: ARENA })),
        1 => (0u32..6).prop_map(watch),
        1 => (0u32..6, 0u32..6).prop_map(|(id, of)| unwatch(id, of)),
        1 => (0u32..6, 0u64..3).prop_map(|(watch, n)| seen(watch, n)),
        2 => (0u32..4).prop_map(|channel| up(Channel(channel))),
        1 => proptest::collection::vec(any::<u8>(), 0..40),
    ]
}

fn outcomes() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        6 => (0u16..3, 0u128..3, 0u64..2, 1u8..3).prop_map(|(seat, instance, life, server)| {
            Outcome::Granted(Granted {
                instance: InstanceId(instance),
                incarnation: Incarnation(life),
                server: ServerName::new(format!("game-{server}")).unwrap(),
                durable: instance == 2,
                ..grant(seat)
            })
        }),
        1 => (0u128..3).prop_map(|instance| Outcome::Left(Left { instance: InstanceId(instance) })),
        1 => Just(Outcome::Refused(refusal(Code::InstanceFull))),
        1 => Just(Outcome::Watching(Watching {})),
        1 => Just(Outcome::Unwatched(Unwatched {})),
    ]
}

fn master_says() -> impl Strategy<Value = MasterToSession> {
    prop_oneof![
        1 => (0u64..3).prop_map(|streams| Welcome { streams }.into()),
        1 => proptest::option::of(0u64..3).prop_map(|streams| NewEpoch { streams }.into()),
        8 => (0u64..12, 0u64..4, 0u32..4).prop_map(|(number, session, generation)| {
            Bound {
                number,
                session: SessionId(session),
                generation: Generation(generation),
                session_servers: Vec::new(),
            }
            .into()
        }),
        1 => (0u64..12).prop_map(|number| BindRefused { number, refusal: refusal(Code::Busy) }.into()),
        12 => (0u64..4, 0u32..6, outcomes()).prop_map(|(session, id, outcome)| {
            Answer { session: SessionId(session), id: RequestId(id), outcome }.into()
        }),
        1 => (0u64..4, 0u32..4).prop_map(|(session, generation)| {
            let (session, generation) = (SessionId(session), Generation(generation));
            EndSession { session, generation, refusal: refusal(Code::Kicked) }.into()
        }),
        1 => (0u64..9).prop_map(|n| Received { n }.into()),
        1 => Just(SessionServers { session_servers: Vec::new() }.into()),
        3 => (proptest::collection::vec((0u64..4, 0u32..4, 0u32..6), 0..4)).prop_map(|to| {
            let to = to.into_iter().map(watcher).collect();
            Changed { to, changes: Opaque::from(greenroom_protocol::encode(&changes(1))) }.into()
        }),
        2 => (0u64..4, 0u64..4, 0u128..3, 1u8..3).prop_map(|(session, life, instance, server)| {
            let granted = Granted {
                instance: InstanceId(instance),
                incarnation: Incarnation(life),
                server: ServerName::new(format!("game-{server}")).unwrap(),
                durable: true,
                ..grant(0)
            };
            Moved { session: SessionId(session), granted }.into()
        }),
        1 => (0u64..4, 0u128..3).prop_map(|(session, instance)| {
            let (session, instance) = (SessionId(session), InstanceId(instance));
            SeatLost { session, instance, refusal: refusal(Code::InstanceLost) }.into()
        }),
        1 => any::<u8>().prop_map(MasterToSession::Unknown),
    ]
}

fn game_says() -> impl Strategy<Value = GameToSession> {
    let member = prop_oneof![9 => 0u32..8, 1 => any::<u32>()].prop_map(MemberId);
    (member, 0u8..8).prop_map(|(member, what)| match what {
        0..=4 => Attached { member, up_received: 0, down_next: 1, tick_rate: 20 }.into(),
        5 => AttachRefused { member, refusal: refusal(Code::Rejected) }.into(),
        6 => Ended { member, refusal: refusal(Code::Left) }.into(),
        _ => GameToSession::Unknown(0xff),
    })
}

fn calls() -> impl Strategy<Value = Call> {
    prop_oneof![
        4 => (0u8..4).prop_map(Call::Connect),
        8 => (0u8..4).prop_map(Call::Arrive),
        16 => (0u8..4, 0u32..6, outcomes()).prop_map(|(session, id, outcome)| {
            Call::Ask(session, id, outcome)
        }),
        3 => (0usize..10).prop_map(Call::Disconnect),
        1 => (0usize..10).prop_map(Call::Close),
        24 => (0usize..10, frames()).prop_map(|(conn, frame)| Call::Frame(conn, frame)),
        2 => (0usize..10, frames()).prop_map(|(conn, frame)| Call::Over(conn, frame)),
        2 => (0usize..10, 0usize..100_000).prop_map(|(conn, bytes)| Call::Charge(conn, bytes)),
        10 => (0usize..10, any::<bool>()).prop_map(|(conn, who)| Call::Authenticated(conn, who)),
        8 => (0usize..2, 0u32..3, 0u64..3)
            .prop_map(|(link, later, streams)| Call::Welcomed(link, later, streams)),
        1 => (0usize..2).prop_map(Call::MasterLost),
        24 => (0usize..2, 0u64..6, 0u32..3, master_says()).prop_map(|(link, n, epoch, message)| {
            Call::FromMaster(link, n.saturating_sub(3), epoch / 2, message)
        }),
        5 => (0u32..3, 0u64..2).prop_map(|(game, life)| Call::GameLinked(game, life)),
        2 => (0u32..3).prop_map(Call::GameLost),
        1 => (0u32..3).prop_map(Call::GameUnreachable),
        14 => (0u32..3, game_says()).prop_map(|(game, message)| Call::FromGame(game, message)),
        2 => (0u64..12_000).prop_map(Call::Tick),
        1 => Just(Call::Drain),
    ]
}

/// Does what a call says. Small numbers mean what is there, if it is: else nothing would ever fit together.
fn call(desk: &mut Desk, conns: &mut Vec<ConnId>, call: Call) {
    let of = |at: usize| conns.iter().rev().nth(at).copied().unwrap_or(ConnId(3_000_000_000));
    let game_of = |core: &Core, at: u32| {
        let there = core.games.iter().nth(at as usize);
        GameId(there.map_or(at, |(number, _)| number))
    };
    let now = desk.now;
    let (core, out) = (&mut desk.core, &mut desk.out);
    match call {
        Call::Connect(host) => {
            let address = IpAddr::from([192, 0, 2, host]);
            conns.extend(core.connect(now, address).ok());
        }
        Call::Arrive(session) => {
            if let Ok(conn) = core.connect(now, IpAddr::from([192, 0, 2, session])) {
                conns.push(conn);
                core.frame(now, conn, &hello(1, 1), out);
                core.frame(now, conn, &check_in(session), out);
                let user = UserId::new("ann").unwrap();
                core.authenticated(now, conn, Ok((user, "Ann".into())), out);
                let message = Bound {
                    number: core.binds,
                    session: SessionId(session.into()),
                    generation: Generation(1),
                    session_servers: Vec::new(),
                };
                desk.streamed(0, message);
            }
        }
        Call::Ask(session, id, outcome) => {
            let session = SessionId(session.into());
            if let Some(&conn) = core.by_session.get(&session) {
                core.frame(now, conn, &join(id), out);
                desk.streamed(0, Answer { session, id: RequestId(id), outcome });
            }
        }
        Call::Disconnect(at) => core.disconnect(of(at), out),
        Call::Close(at) => core.close(of(at), refusal(Code::Kicked), out),
        Call::Frame(at, frame) => core.frame(now, of(at), &frame, out),
        Call::Over(at, frame) => core.over_limits(of(at), &frame, out),
        Call::Charge(at, bytes) => {
            core.charge(now, of(at), bytes, out);
        }
        Call::Authenticated(at, true) => {
            let user = UserId::new("ann").unwrap();
            core.authenticated(now, of(at), Ok((user, "Ann".into())), out);
        }
        Call::Authenticated(at, false) => {
            core.authenticated(now, of(at), Err(refusal(Code::TokenEarly)), out);
        }
        Call::Welcomed(link, later, streams) => {
            let (link, mut epoch) = (MasterLink(link), core.follow.epoch());
            epoch.epoch += later / 2;
            desk.decides(link, epoch, Some(streams));
            desk.says(link, epoch, 0, Welcome { streams });
        }
        Call::MasterLost(link) => core.master_lost(MasterLink(link)),
        Call::FromMaster(link, n, earlier, message) => {
            let mut epoch = core.follow.epoch();
            epoch.epoch = epoch.epoch.saturating_sub(earlier);
            desk.says(MasterLink(link), epoch, n, message);
        }
        Call::GameLinked(game, life) => {
            core.game_linked(game_of(core, game), Incarnation(life), out);
        }
        Call::GameLost(game) => core.game_lost(game_of(core, game), out),
        Call::GameUnreachable(game) => core.game_unreachable(game_of(core, game), "gone", out),
        Call::FromGame(game, mut message) => {
            let mut game = game_of(core, game);
            if let GameToSession::Attached(Attached { member, .. })
            | GameToSession::AttachRefused(AttachRefused { member, .. })
            | GameToSession::Ended(Ended { member, .. }) = &mut message
                && let Some((number, known)) = core.members.iter().nth(member.0 as usize)
            {
                *member = MemberId(number);
                game = if number % 4 == 3 { game } else { known.game };
            }
            core.from_game(game, message, out);
        }
        Call::Tick(ms) => desk.after(ms),
        // Rarely: nobody connects any more after it.
        Call::Drain if now.0 % 17 == 3 => core.drain(out),
        Call::Drain => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    /// Whatever is called, in whatever order and with whatever numbers: nothing panics, all indexes agree, a
    /// connection is closed once, and when all clients are gone nothing is left of them.
    #[test]
    fn nothing_is_left_of_clients_that_are_gone(sequence in proptest::collection::vec(calls(), 0..160)) {
        let mut desk = Desk::new();
        let mut conns = Vec::new();
        let mut closed = Vec::new();
        for one in sequence {
            call(&mut desk, &mut conns, one);
            desk.check();
            let stamp = StampedHeader { epoch: desk.core.follow.epoch(), n: 0 };
            for output in desk.out.drain(..) {
                match output {
                    Output::Close(conn, _) => {
                        prop_assert!(!closed.contains(&conn), "closed twice");
                        closed.push(conn);
                    }
                    Output::Changes(to, _) => {
                        for (conn, _) in to {
                            let of = desk.core.conns.get(conn.0).and_then(Connection::held);
                            prop_assert!(of.is_some(), "changes for one who is not checked in");
                            prop_assert!(!closed.contains(&conn), "changes after the reason");
                        }
                    }
                    Output::Master(
                        _,
                        header,
                        SessionToMaster::Report(_)
                        | SessionToMaster::Resume(_)
                        | SessionToMaster::Fenced(_),
                    ) => prop_assert_eq!(header, stamp, "it is no part of the stream"),
                    Output::Master(link, header, message) => {
                        let follow = &desk.core.follow;
                        prop_assert_eq!((follow.link(), follow.is_welcomed()), (Some(link), true));
                        prop_assert_eq!(header.epoch, stamp.epoch);
                        if let SessionToMaster::Seen(seen) = message {
                            prop_assert_eq!(header, stamp, "it is no part of the stream");
                            prop_assert!(seen.session.0 < 4);
                        }
                    }
                    _ => {}
                }
            }
        }
        for conn in conns {
            desk.core.disconnect(conn, &mut desk.out);
            desk.check();
        }
        desk.after(3_000);
        let core = &desk.core;
        prop_assert!(core.conns.is_empty() && core.members.is_empty() && core.channels.is_empty());
        prop_assert!(core.by_session.is_empty() && core.by_instance.is_empty() && core.binding.is_empty());
        prop_assert_eq!(core.addresses.len(), 0);
    }
}

#[test]
fn the_calls_above_do_reach_seats() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    let mut runner = TestRunner::deterministic();
    let sequences = proptest::collection::vec(calls(), 160);
    let reached = (0..200).filter(|_| {
        let (mut desk, mut conns) = (Desk::new(), Vec::new());
        let sequence = sequences.new_tree(&mut runner).unwrap().current();
        sequence.into_iter().any(|one| {
            call(&mut desk, &mut conns, one);
            desk.core.members.iter().any(|(_, member)| member.attached)
        })
    });
    let reached = reached.count();
    assert!(reached > 40, "{reached} of 200");
}

/// A reliable message down to a seat, as a game server says it.
fn event(number: u32) -> Vec<u8> {
    let (channel, number, ack) = (Channel(0), Seq(number), Seq(0));
    DownHeader { kind: client_instance::EVENT, channel, number, ack, tick: 0 }.bytes().to_vec()
}

/// What is numbered and goes down is counted when it is missing, comes twice or comes late, for each attachment anew.
#[test]
fn what_is_lost_doubled_or_out_of_order_on_its_way_down_is_counted() {
    let mut desk = Desk::with_master();
    let (conn, member, _) = desk.seated(1);
    let down = |desk: &mut Desk, number| {
        assert_eq!(desk.core.down(member, &event(number)), Some(conn), "it goes on all the same");
        let SessionCounts { lost, doubled, out_of_order, .. } = desk.core.counts;
        [lost, doubled, out_of_order]
    };
    assert_eq!(down(&mut desk, 4), [0, 0, 0], "the first after the attach");
    assert_eq!(down(&mut desk, 5), [0, 0, 0]);
    assert_eq!(down(&mut desk, 5), [0, 1, 0]);
    assert_eq!(down(&mut desk, 9), [3, 1, 0], "6, 7 and 8 did not come");
    assert_eq!(down(&mut desk, 7), [3, 1, 1]);
    assert_eq!(down(&mut desk, 10), [3, 1, 1]);
    desk.attached(member);
    assert_eq!(
        down(&mut desk, 4),
        [3, 1, 1],
        "attached anew, it is told again what it has not acknowledged"
    );
    desk.core.load(1, 77, &mut desk.out);
    let said = desk.said_to(FIRST);
    let Some((_, SessionToMaster::Load(load))) = said.last() else { panic!("{said:?}") };
    assert_eq!((load.counts.check_ins, load.counts.frames, load.counts.lost), (1, 77, 3));
}
