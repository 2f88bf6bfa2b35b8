//! The client against a session server that says exactly what each test wants, over real sockets.

#![expect(clippy::unwrap_used, reason = "a script that fails is a test that fails")]

use std::{
    net::SocketAddr,
    sync::{Arc, LazyLock},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use greenroom_client::{
    Answer, Builder, Client, ClientError, Code, Event, Filter, InstanceId, Listed, Meta, Opaque,
    Ranked, Ranking, Refusal, Seat, Status, Watch, WatchEvent, field,
};
use greenroom_delta::Encoder;
use greenroom_protocol::{
    Channel, DownHeader, Incarnation, KindName, Limits, PatchHeader, PieceHeader, ReplyHeader,
    RequestHeader, RequestId, Seq, SessionId, UpHeader, UserId, ViewId, decode, encode,
    search::Order,
    wire::{
        client_instance::{self as kinds, NeedSnapshot},
        client_session::{
            self as wire, Changes, CheckIn, CheckedIn, ClientToSession, Found, GoAway, Joined,
            Left, RankPart, Reply, Request, ServerHello, SessionServer, SessionToClient,
        },
    },
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        handshake::server::{Request as HttpRequest, Response as HttpResponse},
        http::header::SEC_WEBSOCKET_PROTOCOL,
    },
};
use tokio_util::task::TaskTracker;

const ARENA: InstanceId = InstanceId(42);
const CHANNEL: Channel = Channel(5);
/// Each test waits for the handles that it gets.
static TASKS: LazyLock<TaskTracker> = LazyLock::new(TaskTracker::new);

struct Server {
    listener: TcpListener,
}

/// A byte stream, encrypted or not.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

enum Peer {
    Tcp(Box<dyn Stream>),
    Web(Box<WebSocketStream<Box<dyn Stream>>>),
}

impl Server {
    async fn start() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").await.unwrap() }
    }
    fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }
    fn url(&self) -> String {
        format!("tcp://{}", self.address())
    }
    fn client(&self) -> Builder {
        Client::builder().servers([self.url()]).guest("Ann")
    }
    async fn accept(&self) -> Peer {
        Peer::Tcp(Box::new(self.socket().await))
    }
    async fn socket(&self) -> TcpStream {
        soon(self.listener.accept()).await.unwrap().0
    }
    /// A client that is checked in, and its connection.
    async fn connected(&self, builder: Builder) -> (Client, Peer) {
        let (client, peer) = tokio::join!(soon(builder.connect()), async {
            let mut peer = self.accept().await;
            peer.check_in().await;
            peer
        });
        (client.unwrap(), peer)
    }
    /// A client with a seat in the arena.
    async fn seated(&self) -> (Client, greenroom_client::Room, Peer) {
        let (client, mut peer) = self.connected(self.client()).await;
        let (room, ()) =
            tokio::join!(soon(async { client.join_or_create("arena").await }), async {
                let (header, request) = peer.request().await;
                assert!(matches!(request, Request::JoinOrCreate(_)));
                peer.reply(header.id, joined(0, 1)).await;
            });
        (client, room.unwrap(), peer)
    }
}

impl Peer {
    async fn frame(&mut self) -> Bytes {
        soon(async {
            match self {
                Self::Tcp(stream) => {
                    let len = stream.read_u32_le().await.unwrap() as usize;
                    let mut frame = vec![0; len];
                    stream.read_exact(&mut frame).await.unwrap();
                    frame.into()
                }
                Self::Web(socket) => loop {
                    if let Message::Binary(frame) = socket.next().await.unwrap().unwrap() {
                        break frame;
                    }
                },
            }
        })
        .await
    }
    /// The next frame that is neither a heartbeat nor a mere acknowledgement.
    async fn next(&mut self) -> Bytes {
        loop {
            let frame = self.frame().await;
            if ![0x03, 0x04, kinds::ACK].contains(&frame[0]) {
                return frame;
            }
        }
    }
    /// Lives, and does nothing else, until something is asked.
    async fn next_request(&mut self) -> (RequestHeader, Request) {
        loop {
            let frame = self.frame().await;
            match frame[0] {
                wire::PING => self.raw(&[&[wire::SERVER_PONG], &frame[1..]].concat()).await,
                wire::PONG => {}
                kind => {
                    let (header, payload) = RequestHeader::split(&frame).unwrap();
                    return (header, Request::decode(kind, payload, Limits::CLIENT).unwrap());
                }
            }
        }
    }
    async fn raw(&mut self, frame: &[u8]) {
        match self {
            Self::Tcp(stream) => {
                let len = u32::try_from(frame.len()).unwrap().to_le_bytes();
                stream.write_all(&[&len[..], frame].concat()).await.unwrap();
            }
            Self::Web(socket) => {
                socket.send(Message::Binary(frame.to_vec().into())).await.unwrap();
            }
        }
    }
    async fn say(&mut self, message: impl Into<SessionToClient>) {
        let message = message.into();
        let mut frame = vec![message.kind()];
        message.encode_into(&mut frame);
        self.raw(&frame).await;
    }
    async fn hello(&mut self) -> CheckIn {
        let frame = self.next().await;
        let hello = ClientToSession::decode(frame[0], &frame[1..], Limits::CLIENT).unwrap();
        assert!(matches!(hello, ClientToSession::Hello(_)), "{hello:?}");
        self.say(ServerHello {
            protocol: 1,
            features: vec![],
            agent: "script".into(),
            heartbeat_ms: 1_000,
        })
        .await;
        let frame = self.next().await;
        let second = ClientToSession::decode(frame[0], &frame[1..], Limits::CLIENT).unwrap();
        let ClientToSession::CheckIn(check_in) = second else { panic!("{second:?}") };
        check_in
    }
    async fn check_in(&mut self) -> CheckIn {
        self.check_in_with(vec![]).await
    }
    async fn check_in_with(&mut self, urls: Vec<String>) -> CheckIn {
        let check_in = self.hello().await;
        self.checked_in(SessionId(9), urls).await;
        check_in
    }
    async fn checked_in(&mut self, session: SessionId, urls: Vec<String>) {
        self.say(CheckedIn {
            user: UserId::new("ann").unwrap(),
            name: "Ann".into(),
            session,
            session_servers: servers(urls),
            server_time_ms: 0,
        })
        .await;
    }
    async fn check_in_as(&mut self, session: SessionId) {
        self.hello().await;
        self.checked_in(session, vec![]).await;
    }
    async fn request(&mut self) -> (RequestHeader, Request) {
        let frame = self.next().await;
        let (header, payload) = RequestHeader::split(&frame).unwrap();
        (header, Request::decode(header.kind, payload, Limits::CLIENT).unwrap())
    }
    async fn reply(&mut self, id: RequestId, reply: impl Into<Reply>) {
        let reply = reply.into();
        let mut frame = ReplyHeader { kind: reply.kind(), id }.bytes().to_vec();
        reply.encode_into(&mut frame);
        self.raw(&frame).await;
    }
    async fn up(&mut self) -> (u8, u32, Bytes) {
        let frame = self.next().await;
        let (header, payload) = UpHeader::split(&frame).unwrap();
        assert_eq!(header.channel, CHANNEL);
        (header.kind, header.number.0, frame.slice_ref(payload))
    }
    async fn down(&mut self, kind: u8, number: u32, ack: u32, payload: &[u8]) {
        let header =
            DownHeader { kind, channel: CHANNEL, number: Seq(number), ack: Seq(ack), tick: 7 };
        self.raw(&[&header.bytes()[..], payload].concat()).await;
    }
    async fn patch(&mut self, base: u32, version: u32, delta: &[u8]) {
        let (view, channel) = (ViewId::SHARED, CHANNEL);
        let header =
            PatchHeader { kind: kinds::PATCH, channel, view, tick: version, base, version };
        self.raw(&[&header.bytes()[..], delta].concat()).await;
    }
    async fn piece(&mut self, version: u32, offset: usize, total: usize, bytes: &[u8]) {
        let header = PieceHeader {
            kind: kinds::SNAPSHOT_PIECE,
            channel: CHANNEL,
            view: ViewId::SHARED,
            tick: version,
            offset: u32::try_from(offset).unwrap(),
            version,
            total: u32::try_from(total).unwrap(),
        };
        self.raw(&[&header.bytes()[..], bytes].concat()).await;
    }
    async fn need_snapshot(&mut self) -> NeedSnapshot {
        let (kind, _, payload) = self.up().await;
        assert_eq!(kind, kinds::NEED_SNAPSHOT);
        decode(&payload, Limits::CLIENT).unwrap()
    }
}

fn servers(urls: Vec<String>) -> Vec<SessionServer> {
    let urls = urls.into_iter().map(Into::into).collect();
    vec![SessionServer { name: "s".into(), urls }]
}

fn joined(up_received: u32, down_next: u32) -> Joined {
    Joined {
        instance: ARENA,
        kind: KindName::new("arena").unwrap(),
        incarnation: Incarnation(1),
        channel: CHANNEL,
        seat: Seat(3),
        up_received,
        down_next,
        tick_rate: 20,
    }
}

fn nothing_found() -> Found {
    Found { instances: vec![], cursor: None, explain: None }
}

/// An instance with so many seats taken.
fn listed(instance: u128, seats_taken: u16) -> Listed {
    let (instance, meta) = (InstanceId(instance), Meta::new());
    Listed { instance, seats_taken, seats_max: 16, created_ms: 1, meta }
}

fn refusal(code: Code) -> Refusal {
    Refusal::new(code, "because the script says so")
}

fn delta(base: &[u8], target: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    Encoder::default().encode(base, target, &mut out);
    out
}

/// Everything here happens at once, or never.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(20), future).await.expect("this should have happened by now")
}

async fn message(room: &mut greenroom_client::Room) -> String {
    loop {
        if let Event::Message(message) = soon(room.next_event()).await.expect("the seat is there") {
            return message.decode().unwrap();
        }
    }
}

async fn state(room: &mut greenroom_client::Room, version: u32) -> String {
    loop {
        let event = soon(room.next_event()).await.expect("the seat is there");
        if matches!(event, Event::State { version: found, .. } if found == version) {
            return room.state().unwrap();
        }
    }
}

#[tokio::test]
async fn the_list_is_walked_until_a_server_answers_and_the_list_learned_there_is_kept() {
    let gone = Server::start().await.url(); // Bound once, and dropped: nobody listens.
    let full = Server::start().await;
    let open = Server::start().await;
    let file = std::env::temp_dir().join(format!("greenroom-servers-{}", std::process::id()));
    let builder = Client::builder()
        .servers([gone.clone(), full.url(), open.url()])
        .server_list_file(&file)
        .guest("Ann");
    let learned = vec!["tcp://10.0.0.1:4000".to_owned(), "ws://10.0.0.1:4001".to_owned()];
    let refuse = async {
        loop {
            let mut peer = full.accept().await;
            peer.hello().await;
            peer.say(refusal(Code::Busy)).await;
        }
    };
    let admit = async {
        let mut peer = open.accept().await;
        (peer.check_in_with(learned).await, peer)
    };
    let ((client, (check_in, _peer)), ()) = tokio::select! {
        both = async { (tokio::join!(soon(builder.connect()), admit), ()) } => both,
        () = refuse => unreachable!(),
    };
    let client = client.unwrap();
    assert_eq!(client.identity().server, open.url());
    assert_eq!(check_in.credentials.scheme, "guest");
    assert_eq!(check_in.credentials.name, "Ann");
    assert_eq!(check_in.credentials, *client.credentials());
    client.close().await;
    // The file is written beside the task; only addresses of a scheme that was asked for are kept.
    let text = soon(async {
        loop {
            if let Ok(text) = std::fs::read_to_string(&file) {
                break text;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    std::fs::remove_file(&file).unwrap();
    assert_eq!(text, "tcp://10.0.0.1:4000\n");
}

#[tokio::test]
async fn who_gets_in_nowhere_is_told_the_reason_of_every_address() {
    let gone = Server::start().await.url();
    let full = Server::start().await;
    let refuse = async {
        loop {
            let mut peer = full.accept().await;
            peer.hello().await;
            peer.say(refusal(Code::Busy)).await;
        }
    };
    let connecting = Client::builder()
        .servers([gone.clone(), full.url()])
        .connect_within(Duration::from_secs(3))
        .connect();
    let error = tokio::select! {
        client = connecting => client.unwrap_err(),
        () = refuse => unreachable!(),
    };
    let text = error.to_string();
    let ClientError::NoServer { attempts } = error else { panic!("{text}") };
    assert_eq!(attempts.len(), 2);
    assert!(text.contains(&format!("{gone}: connecting: ")), "{text}");
    assert!(text.contains(&format!("{}: busy: because the script says so", full.url())), "{text}");
}

#[tokio::test]
async fn wrong_credentials_end_the_walk_at_once() {
    let server = Server::start().await;
    let (client, ()) = tokio::join!(soon(server.client().jwt("x").connect()), async {
        let mut peer = server.accept().await;
        assert_eq!(peer.hello().await.credentials.scheme, "jwt");
        peer.say(refusal(Code::TokenExpired)).await;
    });
    assert_eq!(
        client.unwrap_err().to_string(),
        "refused: token_expired: because the script says so"
    );
}

/// Opens a WebSocket as the specification wants it: the client offers the subprotocol, the server selects it.
#[expect(clippy::result_large_err, reason = "the callback's type is tungstenite's")]
async fn accept_web<S: AsyncRead + AsyncWrite + Unpin>(stream: S) -> WebSocketStream<S> {
    let select = |request: &HttpRequest, mut answer: HttpResponse| {
        let offered = request.headers().get("sec-websocket-protocol").cloned();
        assert_eq!(offered.as_ref().map(|value| value.as_bytes()), Some(&b"greenroom.v1"[..]));
        answer.headers_mut().extend(offered.map(|value| (SEC_WEBSOCKET_PROTOCOL, value)));
        Ok(answer)
    };
    tokio_tungstenite::accept_hdr_async(stream, select).await.unwrap()
}

#[tokio::test]
async fn the_same_frames_travel_over_websocket() {
    let server = Server::start().await;
    let url = format!("ws://{}", server.address());
    let (client, mut peer) =
        tokio::join!(soon(Client::builder().servers([url]).guest("Ann").connect()), async {
            let Peer::Tcp(stream) = server.accept().await else { unreachable!() };
            let socket = accept_web(stream).await;
            let mut peer = Peer::Web(Box::new(socket));
            peer.check_in().await;
            peer
        });
    let client = client.unwrap();
    let (listing, ()) = tokio::join!(soon(client.search("arena").limit(10).into_future()), async {
        let (header, request) = peer.request().await;
        assert!(matches!(request, Request::Search(search) if search.limit == 10));
        peer.reply(header.id, nothing_found()).await;
    });
    assert!(listing.unwrap().instances.is_empty());
}

/// A certificate for `localhost` that signs itself: what a server presents, and the file that a client trusts.
fn self_signed(name: &str) -> (TlsAcceptor, std::path::PathBuf) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let file = std::env::temp_dir().join(format!("greenroom-{name}-{}.pem", std::process::id()));
    std::fs::write(&file, made.cert.pem()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    (TlsAcceptor::from(Arc::new(config)), file)
}

#[tokio::test]
async fn a_certificate_that_is_trusted_lets_in_by_tls_and_by_secure_websocket() {
    let (acceptor, file) = self_signed("trusted");
    for scheme in ["tls", "wss"] {
        let server = Server::start().await;
        let url = format!("{scheme}://localhost:{}", server.address().port());
        let connecting =
            Client::builder().servers([url.clone()]).trust_file(&file).guest("Ann").connect();
        let (client, _peer) = tokio::join!(soon(connecting), async {
            let stream: Box<dyn Stream> =
                Box::new(soon(acceptor.accept(server.socket().await)).await.unwrap());
            let mut peer = if scheme == "wss" {
                Peer::Web(Box::new(accept_web(stream).await))
            } else {
                Peer::Tcp(stream)
            };
            peer.check_in().await;
            peer
        });
        assert_eq!(client.unwrap().identity().server, url);
    }
    std::fs::remove_file(&file).unwrap();
}

#[tokio::test]
async fn a_certificate_that_is_not_trusted_keeps_the_client_out() {
    let (acceptor, its_file) = self_signed("presented");
    let (_, other_file) = self_signed("other");
    let server = Server::start().await;
    let connecting = Client::builder()
        .servers([format!("tls://localhost:{}", server.address().port())])
        .trust_file(&other_file)
        .connect_within(Duration::from_secs(3))
        .connect();
    let present = async {
        loop {
            // Refused by the client, which is what the test is about.
            drop(acceptor.accept(server.socket().await).await);
        }
    };
    let error = tokio::select! {
        client = connecting => client.unwrap_err().to_string(),
        () = present => unreachable!(),
    };
    assert!(error.contains("agreeing on TLS: invalid peer certificate"), "{error}");
    std::fs::remove_file(&its_file).unwrap();
    std::fs::remove_file(&other_file).unwrap();
    let missing = Client::builder().servers(["tls://localhost:1"]).trust_file(&its_file).connect();
    assert!(matches!(missing.await, Err(ClientError::File { .. })));
}

#[tokio::test]
async fn calls_and_queries_are_answered_and_refused_with_the_games_own_words() {
    let server = Server::start().await;
    let (_client, room, mut peer) = server.seated().await;
    assert_eq!((room.seat(), room.tick_rate(), room.instance()), (Seat(3), 20, ARENA));
    let ask = async {
        let first: String = soon(room.call("first")).await.unwrap();
        let second = soon(room.call::<_, String>("second")).await.unwrap_err();
        let third: u32 = soon(room.query("third")).await.unwrap();
        (first, second.to_string(), third)
    };
    let (answers, ()) = tokio::join!(ask, async {
        assert_eq!(peer.up().await, (kinds::CALL, 1, encode("first").into()));
        let reply = [&1u32.to_le_bytes()[..], &encode("one")].concat();
        peer.down(kinds::REPLY, 1, 1, &reply).await;
        assert_eq!(peer.up().await, (kinds::CALL, 2, encode("second").into()));
        let reply = [&2u32.to_le_bytes()[..], &encode(&refusal(Code::Rejected))].concat();
        peer.down(kinds::REPLY_REFUSED, 2, 2, &reply).await;
        assert_eq!(peer.up().await, (kinds::QUERY, 1, encode("third").into()));
        peer.down(kinds::QUERY_REPLY, 1, 2, &encode(&3u32)).await;
    });
    assert_eq!(answers, ("one".into(), "refused: rejected: because the script says so".into(), 3));
    assert_eq!(room.unacknowledged(), 0);
}

#[tokio::test]
async fn a_patch_that_does_not_fit_is_healed_by_one_snapshot() {
    let server = Server::start().await;
    let (client, mut room, mut peer) = server.seated().await;
    let views: Vec<Vec<u8>> = ["zero", "one", "two", "three"].iter().map(|v| encode(*v)).collect();
    assert!(matches!(room.state::<String>(), Err(ClientError::NoView)));
    peer.piece(1, 0, views[0].len(), &views[0][..2]).await;
    // In between, a patch on top of the snapshot that is not yet whole.
    peer.patch(1, 2, &delta(&views[0], &views[1])).await;
    peer.piece(1, 2, views[0].len(), &views[0][2..]).await;
    assert_eq!(state(&mut room, 2).await, "one");
    // Version 3 was lost on the way: this does not fit, and neither do those after it, which do not ask again.
    peer.patch(3, 4, &delta(&views[2], &views[3])).await;
    peer.patch(4, 5, &delta(&views[3], &views[0])).await;
    let need = peer.need_snapshot().await;
    assert_eq!((need.view, need.version), (0, 2));
    assert_eq!(need.reason, "patch 3 to 4 does not fit version 2");
    assert_eq!(room.state::<String>().unwrap(), "one", "the old view is there in the meantime");
    peer.piece(4, 0, views[3].len(), &views[3]).await;
    assert_eq!(state(&mut room, 5).await, "zero");
    // A patch that is damaged, so that its checksum is wrong.
    let mut damaged = delta(&views[0], &views[1]);
    let end = damaged.len() - 2;
    damaged[end] ^= 1;
    peer.patch(5, 6, &damaged).await;
    assert!(peer.need_snapshot().await.reason.starts_with("patch 5 to 6: "));
    peer.piece(6, 0, views[1].len(), &views[1]).await;
    assert_eq!(state(&mut room, 6).await, "one");
    assert_eq!((client.stats().desyncs, client.stats().misbehaved), (2, 0));
}

#[tokio::test]
async fn what_comes_twice_is_given_once_and_what_never_comes_is_told() {
    let server = Server::start().await;
    let (client, mut room, mut peer) = server.seated().await;
    peer.down(kinds::EVENT, 1, 0, &encode("a")).await;
    peer.down(kinds::EVENT, 1, 0, &encode("a")).await;
    peer.down(kinds::EVENT, 2, 0, &encode("b")).await;
    peer.down(kinds::EVENT, 5, 0, &encode("e")).await;
    assert_eq!(message(&mut room).await, "a");
    assert_eq!(message(&mut room).await, "b");
    assert_eq!(soon(room.next_event()).await, Some(Event::Missed { messages: 2 }));
    assert_eq!(message(&mut room).await, "e");
    assert_eq!((client.stats().duplicates_dropped, client.stats().missed), (1, 2));
    // Nothing goes up, so that a frame of its own acknowledges.
    loop {
        let frame = peer.frame().await;
        if frame[0] == kinds::ACK && UpHeader::split(&frame).unwrap().0.ack == Seq(5) {
            break;
        }
    }
}

#[tokio::test]
async fn a_lost_connection_is_replaced_and_both_streams_go_on() {
    let server = Server::start().await;
    let (client, mut room, mut peer) = server.seated().await;
    for text in ["one", "two", "three"] {
        room.send(text).unwrap();
    }
    for number in 1..=3 {
        assert_eq!(peer.up().await.1, number);
    }
    peer.down(kinds::EVENT, 1, 1, &encode("a")).await;
    assert_eq!(message(&mut room).await, "a");
    let listing = TASKS.spawn({
        let client = client.clone();
        async move { client.search("arena").await }
    });
    let (asked, _) = peer.request().await;
    drop(peer);

    let mut peer = server.accept().await;
    peer.check_in().await;
    // First what was under way, with the same id; then the seat.
    let (again, request) = peer.request().await;
    assert_eq!(again.id, asked.id);
    assert!(matches!(request, Request::Search(_)));
    let (rejoin, request) = peer.request().await;
    assert!(matches!(request, Request::Join(join) if join.instance == ARENA));
    assert!(rejoin.id > asked.id && rejoin.answered < asked.id);
    room.send("four").unwrap();
    // The instance has the first two: only the others are sent again.
    peer.reply(rejoin.id, joined(2, 1)).await;
    peer.reply(again.id, Found { cursor: Some(vec![7].into()), ..nothing_found() }).await;
    assert_eq!(peer.up().await, (kinds::MESSAGE, 3, encode("three").into()));
    assert_eq!(peer.up().await, (kinds::MESSAGE, 4, encode("four").into()));
    // The instance repeats what it has no acknowledgement of.
    peer.down(kinds::EVENT, 1, 4, &encode("a")).await;
    peer.down(kinds::EVENT, 2, 4, &encode("b")).await;
    assert_eq!(message(&mut room).await, "b");
    assert!(soon(listing).await.unwrap().unwrap().cursor.is_some());
    assert_eq!(*client.status().borrow(), Status::Resumed);
    let stats = client.stats();
    assert_eq!((stats.reconnects, stats.duplicates_dropped, stats.missed), (1, 1, 0));
}

#[tokio::test]
async fn a_seat_that_is_gone_after_a_reconnect_ends_its_room_with_the_reason() {
    let server = Server::start().await;
    let (client, mut room, peer) = server.seated().await;
    let call = TASKS.spawn(room.call_bytes(encode("x").into()));
    drop(peer);
    let mut peer = server.accept().await;
    peer.check_in().await;
    let (rejoin, _) = peer.request().await;
    peer.reply(rejoin.id, refusal(Code::Busy)).await;
    // That passes, so it is tried again; this does not.
    let (rejoin, _) = peer.request().await;
    peer.reply(rejoin.id, refusal(Code::InstanceLost)).await;
    let left = loop {
        match soon(room.next_event()).await {
            Some(Event::Left(refusal)) => break refusal,
            Some(_) => {}
            None => panic!("the reason comes first"),
        }
    };
    assert_eq!(left.code, Code::InstanceLost);
    assert_eq!(soon(room.next_event()).await, None);
    assert!(matches!(soon(call).await.unwrap(), Err(ClientError::Left(_))));
    assert!(matches!(room.send("y"), Err(ClientError::Left(_))));
    assert_eq!(*client.status().borrow(), Status::Resumed);
}

#[tokio::test]
async fn a_seat_that_is_being_given_up_is_not_taken_again_after_a_reconnect() {
    let server = Server::start().await;
    let (client, room, mut peer) = server.seated().await;
    let leaving = TASKS.spawn(room.leave());
    let (asked, _) = peer.request().await;
    drop(peer);

    let mut peer = server.accept().await;
    peer.check_in().await;
    let (again, request) = peer.request().await;
    assert!(matches!(request, Request::Leave(leave) if leave.instance == ARENA));
    assert_eq!(again.id, asked.id);
    peer.reply(again.id, Left { instance: ARENA }).await;
    soon(leaving).await.unwrap().unwrap();
    // Had it asked for its seat, that would have come before this.
    let _listing = TASKS.spawn(async move { client.search("arena").await });
    assert!(matches!(peer.request().await.1, Request::Search(_)));
}

#[tokio::test]
async fn a_new_life_of_the_instance_begins_new_numbers_and_says_so() {
    let server = Server::start().await;
    let (_client, mut room, mut peer) = server.seated().await;
    room.send("old").unwrap();
    peer.up().await;
    drop(peer);
    let mut peer = server.accept().await;
    peer.check_in().await;
    let (rejoin, _) = peer.request().await;
    peer.reply(rejoin.id, Joined { incarnation: Incarnation(2), ..joined(0, 1) }).await;
    let rewound = loop {
        let event = soon(room.next_event()).await.unwrap();
        if let Event::Rewound { .. } = event {
            break event;
        }
    };
    assert_eq!(rewound, Event::Rewound { incarnation: Incarnation(2), unacknowledged: 1 });
    room.send("new").unwrap();
    assert_eq!(peer.up().await, (kinds::MESSAGE, 1, encode("new").into()));
    peer.down(kinds::EVENT, 1, 1, &encode("hello")).await;
    assert_eq!(message(&mut room).await, "hello");
}

#[tokio::test]
async fn what_a_full_queue_threw_away_is_sent_again_from_the_first_that_is_missing() {
    let server = Server::start().await;
    let (client, room, mut peer) = server.seated().await;
    for text in ["one", "two", "three"] {
        room.send(text).unwrap();
        peer.up().await;
    }
    peer.down(kinds::SEND_AGAIN, 0, 1, &encode(&refusal(Code::Busy))).await;
    peer.down(kinds::SEND_AGAIN, 0, 1, &encode(&refusal(Code::Busy))).await;
    assert_eq!(peer.up().await, (kinds::MESSAGE, 2, encode("two").into()));
    assert_eq!(peer.up().await, (kinds::MESSAGE, 3, encode("three").into()));
    peer.down(kinds::DOWN_ACK, 0, 3, &[]).await;
    room.send("four").unwrap();
    assert_eq!(peer.up().await.1, 4);
    assert_eq!(client.stats().sent_again, 2);
}

#[tokio::test]
async fn a_full_window_refuses_to_queue_more() {
    let server = Server::start().await;
    let (_client, room, mut peer) = server.seated().await;
    for _ in 0..64 {
        room.send("x").unwrap();
    }
    assert!(matches!(room.send("x"), Err(ClientError::Full { messages: 64, .. })));
    for _ in 0..64 {
        peer.up().await;
    }
    peer.down(kinds::EVENT, 1, 64, &encode("done")).await;
    let mut room = room;
    message(&mut room).await;
    room.send("x").unwrap();
}

#[tokio::test]
async fn garbage_from_the_server_is_an_error_and_the_next_connection_goes_on() {
    let server = Server::start().await;
    let (client, mut room, mut peer) = server.seated().await;
    let bad: Vec<Vec<u8>> = vec![
        vec![],
        vec![0x90],
        vec![0xa0, 5, 0, 0, 0, 1],
        vec![0x81, 0xc1],
        [&DownHeader {
            kind: kinds::DOWN_ACK,
            channel: CHANNEL,
            number: Seq(0),
            ack: Seq(99),
            tick: 0,
        }
        .bytes()[..]]
        .concat(),
    ];
    // One short of what closes a client whose server never makes sense.
    for (round, frame) in bad.iter().enumerate().take(4) {
        peer.raw(frame).await;
        peer = server.accept().await;
        peer.check_in().await;
        let (rejoin, _) = peer.request().await;
        peer.reply(rejoin.id, joined(0, 1)).await;
        soon(async {
            while client.stats().reconnects <= round as u64 {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    assert_eq!(client.stats().misbehaved, 4);
    peer.raw(&bad[4]).await;
    let mut status = client.status();
    let closed = soon(status.wait_for(|status| matches!(status, Status::Closed(_)))).await;
    let Status::Closed(refusal) = closed.unwrap().clone() else { unreachable!() };
    assert_eq!(refusal.code, Code::Malformed);
    assert!(refusal.message.contains("message 99 is acknowledged"), "{refusal}");
    while let Some(event) = soon(room.next_event()).await {
        if let Event::Left(left) = event {
            assert_eq!(left, refusal);
        }
    }
}

#[tokio::test]
async fn a_frame_that_claims_to_be_huge_is_not_waited_for() {
    let server = Server::start().await;
    let (client, peer) = server.connected(server.client()).await;
    let Peer::Tcp(mut stream) = peer else { unreachable!() };
    stream.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
    let mut peer = server.accept().await;
    peer.check_in().await;
    let mut status = client.status();
    soon(status.wait_for(|status| *status == Status::Resumed)).await.unwrap();
}

#[tokio::test]
async fn who_is_superseded_is_closed_and_told_why() {
    let server = Server::start().await;
    let (client, mut room, mut peer) = server.seated().await;
    peer.say(refusal(Code::Superseded)).await;
    let mut status = client.status();
    let closed = soon(status.wait_for(|status| matches!(status, Status::Closed(_)))).await;
    assert_eq!(*closed.unwrap(), Status::Closed(refusal(Code::Superseded)));
    assert_eq!(soon(room.next_event()).await, Some(Event::Left(refusal(Code::Superseded))));
    assert!(matches!(client.search("arena").await, Err(ClientError::Closed(_))));
}

#[tokio::test]
async fn a_server_that_goes_away_is_left_for_another() {
    let old = Server::start().await;
    let new = Server::start().await;
    let (client, mut peer) = old.connected(old.client()).await;
    peer.say(GoAway { message: "upgrade".into(), session_servers: servers(vec![new.url()]) }).await;
    let mut peer = new.accept().await;
    peer.check_in().await;
    let mut status = client.status();
    soon(status.wait_for(|status| *status == Status::Resumed)).await.unwrap();
    assert_eq!(client.identity().server, new.url());
}

#[tokio::test]
async fn an_undecided_request_can_be_asked_again_with_the_same_id() {
    let server = Server::start().await;
    let (client, mut peer) =
        server.connected(server.client().request_within(Duration::from_secs(2))).await;
    let (undecided, (first, _)) =
        tokio::join!(soon(async { client.create("arena").await }), peer.request());
    let ClientError::Undecided { id } = undecided.unwrap_err() else { panic!() };
    assert_eq!(id, first.id);
    let (answer, ()) = tokio::join!(soon(client.ask_again(id)), async {
        let (again, request) = peer.request().await;
        assert_eq!(again.id, id);
        assert!(matches!(request, Request::Create(_)));
        let created = greenroom_protocol::wire::client_session::Created { instance: ARENA };
        peer.reply(id, created).await;
    });
    assert!(matches!(answer.unwrap(), Answer::Created(ARENA)));
    assert!(matches!(client.ask_again(id).await, Err(ClientError::NotAsked { .. })));
}

#[tokio::test]
async fn a_search_says_on_the_wire_what_was_built() {
    let server = Server::start().await;
    let (client, mut peer) = server.connected(server.client()).await;
    let search = client
        .search("arena")
        .filter(field("mode").eq("ranked") & field("rating").between(1400, 1600))
        .filter_text("seats_free > 0")
        .order_by("created")
        .descending()
        .limit(5)
        .cursor(Opaque::from(vec![1, 2]))
        .explain();
    let (found, request) = tokio::join!(soon(search.into_future()), async {
        let (header, request) = peer.request().await;
        let instances = vec![listed(1, 3)];
        peer.reply(header.id, Found { instances, ..nothing_found() }).await;
        request
    });
    assert_eq!(found.unwrap().instances, [listed(1, 3)]);
    let all = "mode = \"ranked\" and rating between 1400 and 1600 and seats_free > 0";
    let expected = wire::Search {
        kind: KindName::new("arena").unwrap(),
        filter: Filter::parse(all).unwrap(),
        order: Some(Order { field: "created".into(), descending: true }),
        limit: 5,
        cursor: Some(vec![1, 2].into()),
        explain: true,
    };
    assert_eq!(request, Request::Search(expected));
    // What can't be read is not asked.
    let error = client.search("arena").filter_text("mode =").filter_text("x = 1").await;
    let Err(ClientError::Filter(error)) = error else { panic!("{error:?}") };
    assert_eq!(error, Filter::parse("mode =").unwrap_err());
}

#[tokio::test]
async fn ranks_and_friends_and_private_instances_are_asked_for_as_they_are_written() {
    let server = Server::start().await;
    let (client, mut peer) = server.connected(server.client()).await;
    let bo = || UserId::new("bo").unwrap();
    let parts = [
        (client.rank("wins").top(3), RankPart::From(1), 3),
        (client.rank("wins").from(101), RankPart::From(101), 20),
        (client.rank("wins").around(bo()).limit(5), RankPart::Around(Some(bo())), 5),
        (client.rank("wins").around_me(7), RankPart::Around(None), 7),
    ];
    for (asked, part, limit) in parts {
        let ranked = Ranked { rank: 1, user: bo(), name: "Bo".into(), score: 9 };
        let ranking = Ranking { members: 1, ranks: vec![ranked] };
        let (got, request) = tokio::join!(soon(asked.into_future()), async {
            let (header, request) = peer.request().await;
            peer.reply(header.id, ranking.clone()).await;
            request
        });
        assert_eq!(got.unwrap(), ranking);
        assert_eq!(request, wire::Rank { board: "wins".into(), part, limit }.into());
    }
    let create = client.create("arena").private().expect([bo()]);
    let (refused, request) = tokio::join!(soon(create.into_future()), async {
        let (header, request) = peer.request().await;
        peer.reply(header.id, refusal(Code::NoCapacity)).await;
        request
    });
    assert!(matches!(refused, Err(ClientError::Refused(_))));
    let Request::Create(create) = request else { panic!("{request:?}") };
    assert_eq!((create.private, create.expected), (true, vec![bo()]));
    let join = client.join_or_create("arena").filter(field("map").eq("lava")).private();
    let (refused, request) = tokio::join!(soon(join.expect([bo()]).into_future()), async {
        let (header, request) = peer.request().await;
        peer.reply(header.id, refusal(Code::NoCapacity)).await;
        request
    });
    assert!(matches!(refused, Err(ClientError::Refused(_))));
    let Request::JoinOrCreate(join) = request else { panic!("{request:?}") };
    assert_eq!(join.filter, Filter::from(field("map").eq("lava")));
    assert_eq!((join.private, join.expected), (true, vec![bo()]));
}

/// A client with a live search, and the number of its request.
async fn watching(server: &Server) -> (Client, Watch, Peer, RequestId) {
    let (client, mut peer) = server.connected(server.client()).await;
    let starting = client.watch("arena").filter(field("mode").eq("ranked"));
    let (watch, id) = tokio::join!(soon(starting.into_future()), async {
        let (header, request) = peer.request().await;
        let Request::Watch(watch) = request else { panic!("{request:?}") };
        assert_eq!(watch.filter, Filter::from(field("mode").eq("ranked")));
        peer.reply(header.id, wire::Watching {}).await;
        header.id
    });
    (client, watch.unwrap(), peer, id)
}

/// One message of a live search.
fn changes(n: u64, instances: &[Listed], gone: &[u128]) -> Changes {
    let gone = gone.iter().copied().map(InstanceId).collect();
    let instances = instances.to_vec();
    Changes { n, anew: false, more: false, instances, gone, ended: None }
}

impl Peer {
    /// The next acknowledgement of a live search.
    async fn seen(&mut self, watch: RequestId) -> u64 {
        let frame = self.next().await;
        let said = ClientToSession::decode(frame[0], &frame[1..], Limits::CLIENT).unwrap();
        let ClientToSession::Seen(seen) = said else { panic!("{said:?}") };
        assert_eq!(seen.watch, watch);
        seen.n
    }
}

#[tokio::test]
async fn a_live_search_shows_after_a_reconnect_only_what_is_different() {
    let server = Server::start().await;
    let (client, mut watch, mut peer, id) = watching(&server).await;
    // The first set comes in two parts, of which each is acknowledged.
    let first = [listed(1, 0), listed(2, 0)];
    peer.reply(id, Changes { anew: true, more: true, ..changes(1, &first, &[]) }).await;
    for one in first {
        assert_eq!(soon(watch.next()).await, Some(WatchEvent::Added(one)));
    }
    assert_eq!(peer.seen(id).await, 1);
    peer.reply(id, changes(2, &[listed(3, 0)], &[])).await;
    assert_eq!(soon(watch.next()).await, Some(WatchEvent::Added(listed(3, 0))));
    assert_eq!(soon(watch.next()).await, Some(WatchEvent::Ready));
    assert_eq!(peer.seen(id).await, 2);
    peer.reply(id, changes(3, &[listed(1, 5)], &[2])).await;
    assert_eq!(soon(watch.next()).await, Some(WatchEvent::Changed(listed(1, 5))));
    assert_eq!(soon(watch.next()).await, Some(WatchEvent::Removed(InstanceId(2))));
    assert_eq!(peer.seen(id).await, 3);
    // Told twice, it is shown once.
    peer.reply(id, changes(3, &[listed(9, 9)], &[1])).await;
    drop(peer);

    let mut peer = server.accept().await;
    peer.check_in().await;
    // 3 is gone meanwhile, 4 has come, 1 is as it was. The first part alone says of nothing that it is gone.
    let anew = changes(4, &[listed(4, 1)], &[]);
    peer.reply(id, Changes { anew: true, more: true, ..anew }).await;
    assert_eq!(soon(watch.next()).await, Some(WatchEvent::Added(listed(4, 1))));
    assert_eq!(peer.seen(id).await, 4);
    peer.reply(id, changes(5, &[listed(1, 5)], &[])).await;
    assert_eq!(soon(watch.next()).await, Some(WatchEvent::Removed(InstanceId(3))));
    assert_eq!(peer.seen(id).await, 5);
    assert!(watch.current().eq(&[listed(1, 5), listed(4, 1)]));
    // Nothing different is no event, and is acknowledged as soon as the application comes to look.
    peer.reply(id, changes(6, &[listed(1, 5)], &[77])).await;
    peer.reply(id, Changes { ended: Some(refusal(Code::Draining)), ..changes(7, &[], &[4]) }).await;
    assert_eq!(soon(watch.next()).await, Some(WatchEvent::Removed(InstanceId(4))));
    assert_eq!(soon(watch.next()).await, Some(WatchEvent::Ended(refusal(Code::Draining))));
    assert_eq!(soon(watch.next()).await, None);
    assert_eq!(client.stats().misbehaved, 0);
}

/// The end of a live search that the cluster has forgotten.
fn forgotten() -> Changes {
    Changes { ended: Some(refusal(Code::WatchUnknown)), ..changes(0, &[], &[]) }
}

#[tokio::test]
async fn a_live_search_that_the_cluster_has_forgotten_is_asked_again_and_shows_what_is_different() {
    let server = Server::start().await;
    let (client, mut watch, mut peer, id) = watching(&server).await;
    let set = [listed(1, 0), listed(2, 0)];
    peer.reply(id, Changes { anew: true, ..changes(70, &set, &[]) }).await;
    for event in [WatchEvent::Added(listed(1, 0)), WatchEvent::Added(listed(2, 0))] {
        assert_eq!(soon(watch.next()).await, Some(event));
    }
    assert_eq!(soon(watch.next()).await, Some(WatchEvent::Ready));
    assert_eq!(peer.seen(id).await, 70);
    peer.reply(id, forgotten()).await;
    let (again, request) = peer.request().await;
    assert!(again.id > id);
    let Request::Watch(asked) = request else { panic!("{request:?}") };
    assert_eq!(asked.filter, Filter::from(field("mode").eq("ranked")));
    // A master that has just begun knows no kind until a game server has reported.
    peer.reply(again.id, refusal(Code::KindUnknown)).await;
    let (again, request) = peer.request().await;
    assert_eq!(request, asked.clone().into());
    // What comes under the old number is of nobody.
    peer.reply(id, Changes { anew: true, ..changes(71, &[], &[]) }).await;
    peer.reply(again.id, wire::Watching {}).await;
    peer.reply(again.id, Changes { anew: true, ..changes(1, &[listed(1, 5), listed(3, 0)], &[]) })
        .await;
    let events = [
        WatchEvent::Changed(listed(1, 5)),
        WatchEvent::Added(listed(3, 0)),
        WatchEvent::Removed(InstanceId(2)),
    ];
    for event in events {
        assert_eq!(soon(watch.next()).await, Some(event));
    }
    assert_eq!(peer.seen(again.id).await, 1);
    // Refused for good, it is over.
    peer.reply(again.id, forgotten()).await;
    let (again, _) = peer.request().await;
    peer.reply(again.id, refusal(Code::TooBroad)).await;
    assert_eq!(soon(watch.next()).await, Some(WatchEvent::Ended(refusal(Code::TooBroad))));
    assert_eq!(client.stats().misbehaved, 0);
}

#[tokio::test]
async fn a_live_search_of_which_a_new_connection_brings_nothing_is_asked_again() {
    let server = Server::start().await;
    let (client, mut watch, mut peer, id) = watching(&server).await;
    peer.reply(id, Changes { anew: true, ..changes(1, &[listed(1, 0)], &[]) }).await;
    assert_eq!(soon(watch.next()).await, Some(WatchEvent::Added(listed(1, 0))));
    assert_eq!(soon(watch.next()).await, Some(WatchEvent::Ready));
    assert_eq!(peer.seen(id).await, 1);
    drop(peer);
    let mut peer = server.accept().await;
    peer.check_in().await;
    // It may live after all: it is ended first, so that there is room for it.
    let (ended, request) = peer.next_request().await;
    assert_eq!(request, wire::Unwatch { watch: id }.into());
    peer.reply(ended.id, refusal(Code::WatchUnknown)).await;
    let (again, request) = peer.request().await;
    assert!(matches!(request, Request::Watch(_)), "{request:?}");
    peer.reply(again.id, wire::Watching {}).await;
    peer.reply(again.id, Changes { anew: true, ..changes(1, &[listed(2, 0)], &[]) }).await;
    assert_eq!(soon(watch.next()).await, Some(WatchEvent::Added(listed(2, 0))));
    assert_eq!(soon(watch.next()).await, Some(WatchEvent::Removed(InstanceId(1))));
    assert_eq!(peer.seen(again.id).await, 1);
    // Dropped, it is ended under its new number.
    drop(watch);
    let (_, request) = peer.request().await;
    assert_eq!(request, wire::Unwatch { watch: again.id }.into());
    assert_eq!(client.stats().misbehaved, 0);
}

#[tokio::test]
async fn an_application_that_takes_its_time_holds_its_own_live_search_back_and_nothing_else() {
    let server = Server::start().await;
    let (client, mut watch, mut peer, id) = watching(&server).await;
    let set = [listed(1, 0), listed(2, 0)];
    peer.reply(id, Changes { anew: true, ..changes(1, &set, &[]) }).await;
    assert_eq!(soon(watch.next()).await, Some(WatchEvent::Added(listed(1, 0))));
    assert_eq!(soon(watch.next()).await, Some(WatchEvent::Added(listed(2, 0))));
    // One event is left: the next frame is another request's, and not an acknowledgement.
    let (found, ()) = tokio::join!(soon(client.search("arena").into_future()), async {
        let (header, request) = peer.request().await;
        assert!(matches!(request, Request::Search(_)), "{request:?}");
        peer.reply(header.id, nothing_found()).await;
    });
    found.unwrap();
    assert_eq!(soon(watch.next()).await, Some(WatchEvent::Ready));
    assert_eq!(peer.seen(id).await, 1);
    // A server that does not wait is merged: each instance comes once, as it is at last.
    for n in 2..200 {
        let gone: &[u128] = if n == 199 { &[2] } else { &[] };
        let taken = u16::try_from(n).unwrap();
        peer.reply(id, changes(n, &[listed(1, taken), listed(2 + 1_000, taken)], gone)).await;
    }
    let (found, ()) = tokio::join!(soon(client.search("arena").into_future()), async {
        let (header, _) = peer.request().await;
        peer.reply(header.id, nothing_found()).await;
    });
    found.unwrap();
    let told = [
        WatchEvent::Changed(listed(1, 199)),
        WatchEvent::Removed(InstanceId(2)),
        WatchEvent::Added(listed(1_002, 199)),
    ];
    for event in told {
        assert_eq!(soon(watch.next()).await, Some(event));
    }
    assert_eq!(peer.seen(id).await, 199);
    assert_eq!(watch.try_next(), None);
}

#[tokio::test]
async fn what_is_told_before_the_answer_to_the_request_is_not_lost() {
    let server = Server::start().await;
    let (client, mut peer) = server.connected(server.client()).await;
    let (watch, id) = tokio::join!(soon(client.watch("arena").into_future()), async {
        let (header, _) = peer.request().await;
        let set = Changes { anew: true, ..changes(1, &[listed(1, 0)], &[]) };
        peer.reply(header.id, set).await;
        peer.reply(header.id, wire::Watching {}).await;
        header.id
    });
    let mut watch = watch.unwrap();
    assert_eq!(soon(watch.next()).await, Some(WatchEvent::Added(listed(1, 0))));
    assert_eq!(soon(watch.next()).await, Some(WatchEvent::Ready));
    assert_eq!(peer.seen(id).await, 1);
}

#[tokio::test]
async fn a_live_search_that_is_dropped_is_ended_and_what_still_comes_of_it_is_ignored() {
    let server = Server::start().await;
    let (client, watch, mut peer, id) = watching(&server).await;
    drop(watch);
    let (header, request) = peer.request().await;
    assert_eq!(request, wire::Unwatch { watch: id }.into());
    peer.reply(id, Changes { anew: true, ..changes(1, &[listed(1, 0)], &[]) }).await;
    peer.reply(header.id, wire::Unwatched {}).await;
    // One whose handle is dropped before there is an answer is ended as well.
    let starting = TASKS.spawn({
        let client = client.clone();
        async move { client.watch("arena").await }
    });
    let (second, _) = peer.request().await;
    starting.abort();
    assert!(soon(starting).await.unwrap_err().is_cancelled());
    peer.reply(second.id, wire::Watching {}).await;
    let (_, request) = peer.request().await;
    assert_eq!(request, wire::Unwatch { watch: second.id }.into());
    assert_eq!(client.stats().misbehaved, 0);
}

#[tokio::test]
async fn live_searches_end_with_their_session_and_searches_are_asked_again_on_the_next() {
    let server = Server::start().await;
    let (client, mut watch, mut peer, id) = watching(&server).await;
    peer.reply(id, Changes { anew: true, ..changes(1, &[listed(1, 0)], &[]) }).await;
    let search = TASKS.spawn({
        let client = client.clone();
        async move { client.search("arena").await }
    });
    let (asked, _) = peer.request().await;
    drop(peer);
    let mut peer = server.accept().await;
    peer.check_in_as(SessionId(10)).await;
    let (again, request) = peer.request().await;
    assert_eq!(again.id, asked.id);
    assert!(matches!(request, Request::Search(_)), "{request:?}");
    peer.reply(again.id, nothing_found()).await;
    assert_eq!(soon(search).await.unwrap().unwrap(), nothing_found());
    // What was told before the end is still given.
    assert_eq!(soon(watch.next()).await, Some(WatchEvent::Added(listed(1, 0))));
    assert_eq!(soon(watch.next()).await, Some(WatchEvent::Ready));
    let Some(WatchEvent::Ended(why)) = soon(watch.next()).await else { panic!() };
    assert_eq!(why.code, Code::SessionExpired);
    assert_eq!(soon(watch.next()).await, None);
    // One that goes on until the application closes the client.
    let (second, ()) = tokio::join!(soon(client.watch("arena").into_future()), async {
        let (header, _) = peer.request().await;
        peer.reply(header.id, wire::Watching {}).await;
    });
    let mut second = second.unwrap();
    soon(client.close()).await;
    let Some(WatchEvent::Ended(why)) = soon(second.next()).await else { panic!() };
    assert_eq!(why.code, Code::Left);
}

#[tokio::test]
async fn a_live_search_that_was_undecided_can_be_asked_again_and_has_missed_nothing() {
    let server = Server::start().await;
    let (client, mut peer) =
        server.connected(server.client().request_within(Duration::from_secs(2))).await;
    let (undecided, (header, _)) =
        tokio::join!(soon(client.watch("arena").into_future()), peer.request());
    let ClientError::Undecided { id } = undecided.unwrap_err() else { panic!() };
    peer.reply(id, Changes { anew: true, ..changes(1, &[listed(1, 0)], &[]) }).await;
    let (answer, ()) = tokio::join!(soon(client.ask_again(id)), async {
        assert_eq!(peer.request().await.0.id, header.id);
        peer.reply(id, wire::Watching {}).await;
    });
    let Answer::Watching(mut watch) = answer.unwrap() else { panic!() };
    assert_eq!(soon(watch.next()).await, Some(WatchEvent::Added(listed(1, 0))));
    assert_eq!(soon(watch.next()).await, Some(WatchEvent::Ready));
    assert_eq!(peer.seen(id).await, 1);
}

#[tokio::test]
async fn a_live_search_that_is_refused_says_why_and_leaves_nothing_to_end() {
    let server = Server::start().await;
    let (client, mut peer) = server.connected(server.client()).await;
    let (refused, ()) = tokio::join!(soon(client.watch("arena").into_future()), async {
        let (header, _) = peer.request().await;
        peer.reply(header.id, refusal(Code::WatchesMax)).await;
    });
    assert!(matches!(refused, Err(ClientError::Refused(why)) if why.code == Code::WatchesMax));
    let (found, ()) = tokio::join!(soon(client.search("arena").into_future()), async {
        let (header, request) = peer.request().await;
        assert!(matches!(request, Request::Search(_)), "{request:?}");
        peer.reply(header.id, nothing_found()).await;
    });
    found.unwrap();
}

#[tokio::test]
async fn at_most_eight_requests_are_under_way() {
    let server = Server::start().await;
    let (client, mut peer) = server.connected(server.client()).await;
    let asking: Vec<_> = (0..9)
        .map(|_| {
            let client = client.clone();
            TASKS.spawn(async move { client.search("arena").await })
        })
        .collect();
    let mut ids = Vec::new();
    for _ in 0..8 {
        ids.push(peer.request().await.0.id);
    }
    // The ninth comes after an answer, and says that the first is answered.
    peer.reply(ids[0], nothing_found()).await;
    let (ninth, _) = peer.request().await;
    assert_eq!((ninth.id, ninth.answered), (RequestId(9), RequestId(1)));
    for id in ids.into_iter().skip(1).chain([ninth.id]) {
        peer.reply(id, nothing_found()).await;
    }
    for asked in asking {
        soon(asked).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_room_that_is_dropped_gives_its_seat_up() {
    let server = Server::start().await;
    let (client, room, mut peer) = server.seated().await;
    drop(room);
    drop(client);
    let (header, request) = peer.request().await;
    assert!(matches!(request, Request::Leave(leave) if leave.instance == ARENA));
    let left = greenroom_protocol::wire::client_session::Left { instance: ARENA };
    peer.reply(header.id, left).await;
    let Peer::Tcp(mut stream) = peer else { unreachable!() };
    let mut rest = Vec::new();
    soon(stream.read_to_end(&mut rest)).await.unwrap();
    assert!(rest.is_empty(), "the client says goodbye and closes");
}

#[tokio::test]
async fn an_application_that_does_not_read_stops_the_socket_and_loses_nothing() {
    let server = Server::start().await;
    let (_client, mut room, mut peer) = server.seated().await;
    for number in 1..=1_000u32 {
        peer.down(kinds::EVENT, number, 0, &encode(&number.to_string())).await;
    }
    // Acknowledged is what the queue took; the rest is still in the socket.
    let mut acknowledged = 0;
    while acknowledged < 256 {
        let frame = peer.frame().await;
        acknowledged = UpHeader::split(&frame).unwrap().0.ack.0;
    }
    assert_eq!(acknowledged, 256);
    for number in 1..=1_000u32 {
        assert_eq!(message(&mut room).await, number.to_string());
    }
}
