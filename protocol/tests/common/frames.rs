//! `frames.json`: every kind of frame between a client and the cluster.

use greenroom_delta::Encoder;
use greenroom_protocol::{
    Channel, Code, DownHeader, Incarnation, InstanceId, Key, KindName, Limits, PatchHeader,
    PieceHeader, Refusal, ReplyHeader, RequestHeader, RequestId, Seat, Seq, SessionId, SessionKey,
    TraceContext, UpHeader, UserId, ViewId, encode,
    search::{Considered, Explain, Filter, Order},
    wire::{client_instance as instance, client_session::*},
};
use serde::Serialize;
use serde_bytes::ByteBuf;

use super::game::{Event, Input, Question, World};
use super::json::{Json, file as json_file, hex, object};

pub(crate) fn file() -> String {
    json_file(&[
        ("about", ABOUT.iter().map(|&line| line.into()).collect()),
        ("frames", session().into_iter().chain(directory()).chain(instances()).collect()),
        ("tolerated", tolerated()),
    ])
}

const ABOUT: &[&str] = &[
    "`frames`: the frame in hexadecimal as this build writes it, without the transport's length. `from` says who sends \
     it, `header` what its fixed header says after the kind byte, `payload` is what follows the header.",
    "`fields` is the payload's MessagePack as JSON, null where it is none; `{\"$bin\": \"…\"}` stands for bytes \
     (`bin`). What follows a `call` in the header begins after its four bytes. Writers may order keys otherwise and \
     choose other widths: compare what is decoded.",
    "`tolerated`: frames that others may write and that are read like `same_as`, a frame above: fields missing that \
     have a default, fields that nobody knows, keys in another order, integers wider than needed.",
];

/// A frame with only its kind before the payload.
pub(crate) fn plain(kind: u8, message: &impl Serialize) -> Vec<u8> {
    [&[kind][..], &encode(message)].concat()
}
pub(crate) fn request(id: u32, answered: u32, request: &Request) -> Vec<u8> {
    let header =
        RequestHeader { kind: request.kind(), id: RequestId(id), answered: RequestId(answered) };
    let mut frame = header.bytes().to_vec();
    request.encode_into(&mut frame);
    frame
}
pub(crate) fn reply(id: u32, reply: &Reply) -> Vec<u8> {
    let mut frame = ReplyHeader { kind: reply.kind(), id: RequestId(id) }.bytes().to_vec();
    reply.encode_into(&mut frame);
    frame
}
pub(crate) fn up(kind: u8, channel: u32, number: u32, ack: u32, payload: &[u8]) -> Vec<u8> {
    let header = UpHeader { kind, channel: Channel(channel), number: Seq(number), ack: Seq(ack) };
    [&header.bytes()[..], payload].concat()
}
pub(crate) struct Down {
    pub(crate) channel: u32,
    pub(crate) number: u32,
    pub(crate) ack: u32,
    pub(crate) tick: u32,
}
pub(crate) fn down(kind: u8, header: &Down, payload: &[u8]) -> Vec<u8> {
    let header = DownHeader {
        kind,
        channel: Channel(header.channel),
        number: Seq(header.number),
        ack: Seq(header.ack),
        tick: header.tick,
    };
    [&header.bytes()[..], payload].concat()
}
/// The number of a call, then the reply to it.
pub(crate) fn to_call(call: u32, reply: &impl Serialize) -> Vec<u8> {
    [&call.to_le_bytes()[..], &encode(reply)].concat()
}

pub(crate) const USER: &str = "guest-4q9c2m7x0d1fk";
pub(crate) const SESSION: SessionId = SessionId(0x1122_3344_5566_7788);
pub(crate) const SESSION_KEY: SessionKey =
    SessionKey([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
pub(crate) const INSTANCE: InstanceId = InstanceId(0x0123_4567_89ab_cdef_fedc_ba98_7654_3210);
pub(crate) const INCARNATION: Incarnation = Incarnation(0x0000_0000_0000_002a);

pub(crate) fn kind_name(name: &str) -> KindName {
    KindName::new(name).expect("a kind's name of ours")
}
pub(crate) fn user() -> UserId {
    UserId::new(USER).expect("a user's id of ours")
}
pub(crate) fn servers() -> Vec<SessionServer> {
    let urls = |host: &str| {
        vec![format!("tls://{host}:7000").into(), format!("wss://{host}:7001/").into()]
    };
    vec![
        SessionServer { name: "session-1".into(), urls: urls("one.example") },
        SessionServer { name: "session-2".into(), urls: urls("two.example") },
    ]
}
pub(crate) fn client_hello() -> ClientHello {
    ClientHello { protocol_min: 1, protocol_max: 1, features: vec![], agent: "example/1.0".into() }
}
pub(crate) fn server_hello() -> ServerHello {
    let agent = "greenroom/0.1.0".into();
    ServerHello { protocol: 1, features: vec![], agent, heartbeat_ms: 30_000 }
}
pub(crate) fn guest() -> CheckIn {
    let credentials = Credentials {
        scheme: "guest".into(),
        token: "a text that the client keeps".into(),
        name: "Ann".into(),
    };
    CheckIn { session_key: SESSION_KEY, credentials }
}
pub(crate) fn checked_in() -> CheckedIn {
    CheckedIn {
        user: user(),
        name: "Ann".into(),
        session: SESSION,
        session_servers: servers(),
        server_time_ms: 1_800_000_000_123,
    }
}
pub(crate) fn join_or_create() -> JoinOrCreate {
    JoinOrCreate {
        kind: kind_name("arena"),
        key: None,
        filter: Filter::default(),
        params: ByteBuf::new(),
        private: false,
        expected: vec![],
        options: ByteBuf::new(),
    }
}
pub(crate) fn create(kind: &str) -> Create {
    let kind = kind_name(kind);
    Create { kind, key: None, params: ByteBuf::new(), private: false, expected: vec![] }
}
/// A search without anything that can be left out.
pub(crate) fn search(limit: u16) -> Search {
    let filter = Filter::default();
    let kind = kind_name("arena");
    Search { kind, filter, order: None, limit, cursor: None, explain: false }
}
pub(crate) fn filter(text: &str) -> Filter {
    Filter::parse(text).expect("a filter of ours")
}
/// An instance of a listing: `last` tells it from others.
pub(crate) fn listed(last: u8, seats_taken: u16, created_ms: u64, meta: Meta) -> Listed {
    let instance = InstanceId(INSTANCE.0 & !0xff | u128::from(last));
    Listed { instance, seats_taken, seats_max: 16, created_ms, meta }
}
pub(crate) fn joined() -> Joined {
    Joined {
        instance: INSTANCE,
        kind: kind_name("arena"),
        incarnation: INCARNATION,
        channel: Channel(7),
        seat: Seat(3),
        up_received: 0,
        down_next: 1,
        tick_rate: 20,
    }
}

/// One vector. `header` holds what stands between the kind byte and the payload.
fn vector(
    name: &str,
    header: Json,
    bytes: &[u8],
    payload_at: usize,
    message_at: Option<usize>,
) -> Json {
    let kind = bytes[0];
    let fields = message_at.map_or(Json::Null, |at| Json::of_message_pack(&bytes[at..]));
    object! {
        "name": name,
        "from": if kind < 0x80 { "client" } else { "server" },
        "kind": kind,
        "header": header,
        "fields": fields,
        "payload": hex(&bytes[payload_at..]),
        "frame": hex(bytes),
    }
}

fn of_session(name: &str, bytes: &[u8]) -> Json {
    vector(name, object! {}, bytes, 1, Some(1))
}

fn session() -> Vec<Json> {
    let features = vec!["one".into(), "two".into()];
    let closing = |code: Code, text: &str| plain(0x85, &Refusal::new(code, text));
    let go_away = GoAway { message: "maintenance".into(), session_servers: servers() };
    vec![
        of_session("hello", &plain(0x01, &client_hello())),
        of_session(
            "hello with features and a range",
            &plain(
                0x01,
                &ClientHello { protocol_max: 2, features: features.clone(), ..client_hello() },
            ),
        ),
        of_session("check_in", &plain(0x02, &guest())),
        of_session("seen", &plain(0x05, &Seen { watch: RequestId(14), n: 3 })),
        of_session("hello of the server", &plain(0x81, &server_hello())),
        of_session(
            "hello of the server with features",
            &plain(0x81, &ServerHello { features, ..server_hello() }),
        ),
        of_session("checked_in", &plain(0x82, &checked_in())),
        of_session(
            "closing",
            &closing(Code::Superseded, "ann checked in with a newer session: this one is over"),
        ),
        of_session(
            "closing with a newer code",
            &closing(Code::Unknown("moon_phase".into()), "wait"),
        ),
        of_session("go_away", &plain(0x86, &go_away)),
        of_session("session_servers", &plain(0x87, &SessionServers { session_servers: servers() })),
        of_session("rejoined", &plain(0x88, &Joined { channel: Channel(8), ..joined() })),
        vector("ping", object! {}, &[PING, 1, 2, 3, 4, 5, 6, 7, 8], 1, None),
        vector("pong", object! {}, &[PONG, 8, 7, 6, 5, 4, 3, 2, 1], 1, None),
        vector("trace: the next frame is sampled", object! {}, &trace(), 1, None),
        vector("ping of the server", object! {}, &[SERVER_PING, 8, 7, 6, 5, 4, 3, 2, 1], 1, None),
        vector("pong of the server", object! {}, &[SERVER_PONG, 1, 2, 3, 4, 5, 6, 7, 8], 1, None),
    ]
}

/// The example of W3C's Trace Context.
fn trace() -> Vec<u8> {
    let trace = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736_u128.to_be_bytes();
    let span = 0x00f0_67aa_0ba9_02b7_u64.to_be_bytes();
    [&[TRACE][..], &TraceContext { trace, span }.bytes()].concat()
}

fn directory() -> Vec<Json> {
    let requests = requests().into_iter().zip(1u32..).map(|((name, message), id)| {
        let header = object! { "id": id, "answered": id / 2 };
        let bytes = request(id, id / 2, &message);
        vector(name, header, &bytes, RequestHeader::BYTES, Some(RequestHeader::BYTES))
    });
    let replies = replies().into_iter().zip(0x0102_0304u32..).map(|((name, message), id)| {
        let bytes = reply(id, &message);
        vector(name, object! { "id": id }, &bytes, ReplyHeader::BYTES, Some(ReplyHeader::BYTES))
    });
    requests.chain(replies).collect()
}

fn requests() -> Vec<(&'static str, Request)> {
    let params = ByteBuf::from(vec![0x81, 0xa3, b'm', b'a', b'p', 0x02]);
    let options = ByteBuf::from(vec![0xa3, b'r', b'e', b'd']);
    let key = || Some(Key::new("lobby-7").expect("a key of ours"));
    let friend = || UserId::new("steam-76561198000000001").expect("a user's id of ours");
    let newest = || Some(Order { field: "created".into(), descending: true });
    let ranks = |part| Rank { board: "elo".into(), part, limit: 3 };
    vec![
        ("create", create("arena").into()),
        (
            "create with everything",
            Create {
                key: key(),
                params: params.clone(),
                private: true,
                expected: vec![user(), friend()],
                ..create("arena")
            }
            .into(),
        ),
        ("join", Join { instance: INSTANCE, options: ByteBuf::new() }.into()),
        ("join with options", Join { instance: INSTANCE, options: options.clone() }.into()),
        ("join_or_create", join_or_create().into()),
        (
            "join_or_create with everything",
            JoinOrCreate {
                kind: kind_name("arena"),
                key: key(),
                filter: filter("mode = 'ranked' and not locked_to in (1, 2)"),
                params,
                private: true,
                expected: vec![friend()],
                options,
            }
            .into(),
        ),
        ("leave", Leave { instance: INSTANCE }.into()),
        ("destroy", Destroy { instance: INSTANCE }.into()),
        ("search", search(20).into()),
        (
            "search with everything",
            Search {
                filter: filter("rating between 1400 and 1600"),
                order: newest(),
                cursor: Some(ByteBuf::from(vec![1, 2, 3, 4])),
                explain: true,
                ..search(100)
            }
            .into(),
        ),
        (
            "search with every operator",
            Search {
                filter: filter(
                    "(a = 'x' or b != -1 or not c in (1, true, 'y')) and d < 1 and e <= 300 and f > 70000 and \
                     g >= 5000000000 and h between -5 and 5 and i prefix 'de' and (true or false)",
                ),
                ..search(1)
            }
            .into(),
        ),
        ("watch", Watch { kind: kind_name("arena"), filter: Filter::default() }.into()),
        (
            "watch with a filter",
            Watch { kind: kind_name("arena"), filter: filter("open and seats_free > 0") }.into(),
        ),
        ("unwatch", Unwatch { watch: RequestId(12) }.into()),
        ("rank from the best on", ranks(RankPart::From(1)).into()),
        ("rank around the caller", ranks(RankPart::Around(None)).into()),
        ("rank around a user", ranks(RankPart::Around(Some(friend()))).into()),
    ]
}

fn replies() -> Vec<(&'static str, Reply)> {
    let meta: Meta = [
        ("map".into(), MetaValue::Text("desert".into())),
        ("ranked".into(), MetaValue::Bool(true)),
        ("round".into(), MetaValue::Int(-3)),
    ]
    .into();
    let instances =
        || vec![listed(0x10, 3, 1_800_000_000_000, meta.clone()), listed(0x11, 0, 0, Meta::new())];
    let explain = Explain {
        index: "ranked = true".into(),
        examined: 7,
        matched: 2,
        ordered_by_index: false,
        considered: vec![
            Considered { index: "ranked = true".into(), entries: 7 },
            Considered { index: "every record, by id".into(), entries: 5_000_000_000 },
        ],
    };
    let refused =
        Refusal::new(Code::InstanceFull, "every seat is taken: look for another instance");
    let closed = Refusal::new(Code::TooBroad, "the filter lets too many instances through");
    let changes =
        Changes { n: 1, anew: false, more: false, instances: vec![], gone: vec![], ended: None };
    let ranked = |rank, score| Ranked { rank, user: user(), name: "Ann".into(), score };
    vec![
        ("created", Created { instance: INSTANCE }.into()),
        ("joined", joined().into()),
        ("left", Left { instance: INSTANCE }.into()),
        ("destroyed", Destroyed { instance: INSTANCE }.into()),
        (
            "found",
            Found {
                instances: instances(),
                cursor: Some(ByteBuf::from(vec![1, 2, 3, 4])),
                explain: Some(explain),
            }
            .into(),
        ),
        ("found nothing", Found { instances: vec![], cursor: None, explain: None }.into()),
        ("watching", Watching {}.into()),
        ("unwatched", Unwatched {}.into()),
        (
            "ranking",
            Ranking { members: 1_000_000, ranks: vec![ranked(1, 2_400), ranked(2, -3)] }.into(),
        ),
        (
            "changes, the set begins",
            Changes { anew: true, more: true, instances: instances(), ..changes.clone() }.into(),
        ),
        (
            "changes",
            Changes { n: 12, instances: instances(), gone: vec![INSTANCE], ..changes.clone() }
                .into(),
        ),
        ("changes, the end", Changes { n: 13, ended: Some(closed), ..changes }.into()),
        ("refused", refused.into()),
    ]
}

fn instances() -> Vec<Json> {
    const CHANNEL: u32 = 0x0000_0007;
    let from_client = |name: &str, kind: u8, number: u32, ack: u32, payload: &[u8]| {
        let header = object! { "channel": CHANNEL, "number": number, "ack": ack };
        let bytes = up(kind, CHANNEL, number, ack, payload);
        let message_at = (!payload.is_empty()).then_some(UpHeader::BYTES);
        vector(name, header, &bytes, UpHeader::BYTES, message_at)
    };
    let to_client = |name: &str, kind: u8, number: u32, payload: &[u8], call: Option<u32>| {
        let at = Down { channel: CHANNEL, number, ack: 17, tick: 0xfffe_0001 };
        let mut header = object! {
            "channel": at.channel, "number": at.number, "ack": at.ack, "tick": at.tick,
        };
        if let Some(call) = call {
            header = header.with("call", call);
        }
        let bytes = down(kind, &at, payload);
        let skipped = if call.is_some() { 4 } else { 0 };
        let message_at = (!payload.is_empty()).then_some(DownHeader::BYTES + skipped);
        vector(name, header, &bytes, DownHeader::BYTES, message_at)
    };
    let lost = instance::NeedSnapshot {
        view: ViewId::of_seat(Seat(3)).0,
        version: 41,
        reason: "patch 43 to 44 does not fit version 41".into(),
    };
    let refused = Refusal::new(Code::Rejected, "the shop is closed");
    let unknown = Refusal::new(Code::MessageUnknown, "unknown variant `Dance`");
    let ended = Refusal::new(Code::Kicked, "an operator removed you");
    let full = Refusal::new(Code::Busy, "the instance's queue is full: send again after a pause");
    vec![
        from_client("message without data", instance::MESSAGE, 1, 0, &encode(&Input::Shoot)),
        from_client(
            "message with fields",
            instance::MESSAGE,
            2,
            5,
            &encode(&Input::Move { x: 1.5, y: -2.0 }),
        ),
        from_client(
            "message with a value",
            instance::MESSAGE,
            u32::MAX,
            0x0102_0304,
            &encode(&Input::Say("hé")),
        ),
        from_client("call", instance::CALL, 3, 5, &encode(&Question::Buy { item: "boots" })),
        from_client("query", instance::QUERY, 9, 5, &encode(&Question::Score)),
        from_client("ack", instance::ACK, 0, 6, &[]),
        from_client("need_snapshot", instance::NEED_SNAPSHOT, 0, 6, &encode(&lost)),
        to_client(
            "event with fields",
            instance::EVENT,
            1,
            &encode(&Event::Hit { seat: 2, damage: 30 }),
            None,
        ),
        to_client("event without data", instance::EVENT, 2, &encode(&Event::RoundOver), None),
        to_client("reply", instance::REPLY, 3, &to_call(3, &Event::Bought { gold: 70 }), Some(3)),
        to_client("reply_refused", instance::REPLY_REFUSED, 4, &to_call(4, &refused), Some(4)),
        to_client(
            "reply_refused to a message",
            instance::REPLY_REFUSED,
            5,
            &to_call(6, &unknown),
            Some(6),
        ),
        to_client("query_reply", instance::QUERY_REPLY, 9, &encode(&Event::Score(1_250)), None),
        to_client("query_refused", instance::QUERY_REFUSED, 10, &encode(&refused), None),
        to_client("down_ack", instance::DOWN_ACK, 0, &[], None),
        to_client("seat_ended", instance::SEAT_ENDED, 0, &encode(&ended), None),
        to_client("send_again", instance::SEND_AGAIN, 0, &encode(&full), None),
        patch_vector(CHANNEL),
        piece_vector("snapshot_piece, the first", CHANNEL, 0, 24),
        piece_vector("snapshot_piece, the last", CHANNEL, 24, usize::MAX),
    ]
}

fn patch_vector(channel: u32) -> Json {
    let before = World::at_the_start();
    let mut delta = Vec::new();
    let after = encode(&before.moved("bo", 21.0, 40.5));
    Encoder::new().encode(&encode(&before), &after, &mut delta);
    let header = PatchHeader {
        kind: instance::PATCH,
        channel: Channel(channel),
        view: ViewId::SHARED,
        tick: 120,
        base: 57,
        version: 58,
    };
    let described = object! {
        "channel": channel, "view": header.view.0, "tick": header.tick, "base": header.base,
        "version": header.version,
    };
    vector("patch", described, &[&header.bytes()[..], &delta].concat(), PatchHeader::BYTES, None)
}

fn piece_vector(name: &str, channel: u32, from: usize, to: usize) -> Json {
    let view = encode(&World::at_the_start());
    let length = |bytes: usize| u32::try_from(bytes).expect("a small view");
    let header = PieceHeader {
        kind: instance::SNAPSHOT_PIECE,
        channel: Channel(channel),
        view: ViewId::of_seat(Seat(3)),
        tick: 121,
        offset: length(from),
        version: 59,
        total: length(view.len()),
    };
    let described = object! {
        "channel": channel, "view": header.view.0, "tick": header.tick, "offset": header.offset,
        "version": header.version, "total": header.total,
    };
    let piece = &view[from..to.min(view.len())];
    vector(name, described, &[&header.bytes()[..], piece].concat(), PieceHeader::BYTES, None)
}

fn tolerated() -> Vec<Json> {
    let bare_hello = ClientHello { agent: "".into(), ..client_hello() };
    let short_hello = b"\x01\x82\xacprotocol_min\x01\xacprotocol_max\x01".to_vec();
    let wide_hello =
        b"\x01\x82\xacprotocol_max\xcf\0\0\0\0\0\0\0\x01\xacprotocol_min\xce\0\0\0\x01".to_vec();
    let newer_hello =
        b"\x01\x83\xacprotocol_min\x01\xa7weather\x81\xa4rain\x92\x01\xc0\xacprotocol_max\x01"
            .to_vec();
    let short_join = [&request_head(0x12)[..], b"\x81\xa4kind\xa5arena"].concat();
    let empty = request(1, 0, &join_or_create().into());
    let short_search = [&request_head(0x15)[..], b"\x82\xa4kind\xa5arena\xa5limit\x14"].concat();
    let bare_search = request(1, 0, &search(20).into());
    let wide_filter = [
        &request_head(0x16)[..],
        b"\x82\xa6filter\x81\xd9\x02eq\xdc\0\x02\xd9\x01a\xd3\0\0\0\0\0\0\0\x05\xa4kind\xa5arena",
    ]
    .concat();
    let narrow_filter =
        request(1, 0, &Watch { kind: kind_name("arena"), filter: filter("a = 5") }.into());
    let hello = plain(0x01, &bare_hello);
    let decodes = |bytes: &[u8]| {
        if bytes[0] == 0x01 {
            let read = ClientToSession::decode(bytes[0], &bytes[1..], Limits::CLIENT);
            let mut out = vec![bytes[0]];
            read.expect("it is tolerated").encode_into(&mut out);
            out
        } else {
            let (header, payload) = RequestHeader::split(bytes).expect("a whole header");
            let read =
                Request::decode(header.kind, payload, Limits::CLIENT).expect("it is tolerated");
            request(header.id.0, header.answered.0, &read)
        }
    };
    let vectors = [
        ("hello without what has a default", short_hello, &hello),
        ("hello with wide integers, in another order", wide_hello, &hello),
        ("hello with a field of a newer version", newer_hello, &hello),
        ("join_or_create with a kind alone", short_join, &empty),
        ("search with a kind and a limit alone", short_search, &bare_search),
        ("watch with wide integers and lengths in its filter", wide_filter, &narrow_filter),
    ];
    vectors
        .iter()
        .map(|(name, bytes, same_as)| {
            assert_eq!(decodes(bytes), **same_as, "{name}");
            object! { "name": *name, "frame": hex(bytes), "same_as": hex(same_as) }
        })
        .collect()
}

fn request_head(kind: u8) -> [u8; RequestHeader::BYTES] {
    RequestHeader { kind, id: RequestId(1), answered: RequestId(0) }.bytes()
}
