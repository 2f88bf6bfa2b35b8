//! `conversations/`: whole conversations between a client and the cluster, as they pass over the wire.

use greenroom_delta::Encoder;
use greenroom_protocol::{
    Channel, Code, PatchHeader, PieceHeader, Refusal, RequestId, Seat, ViewId, encode,
    search::{Considered, Explain, Order},
    wire::{client_instance as instance, client_session::*},
};
use serde_bytes::ByteBuf;

use super::frames::{
    Down, INCARNATION, INSTANCE, SESSION_KEY, checked_in, client_hello, create, down, filter,
    guest, join_or_create, joined, kind_name, listed, plain, reply, request, search, server_hello,
    servers, to_call, up,
};
use super::game::{Event, Hand, Input, Question, World};
use super::json::{Json, file as json_file, hex, object};

/// Every conversation, in the order in which a reader learns from them.
pub(crate) fn all() -> Vec<Talk> {
    vec![
        check_in(),
        refused_check_in(),
        version_mismatch(),
        unexpected_kind(),
        arena(),
        calls_and_queries(),
        resume(),
        restarted_instance(),
        send_again(),
        superseded(),
        go_away(),
        search_pages(),
        watch(),
    ]
}

const ABOUT: &[&str] = &[
    "Steps in their order. `from` with `hex`: who sends this frame (without the transport's length). `connection`: \
     `opened` or `lost`; what was sent before and marked `lost` did not arrive.",
    "`then` says what a client has after a server's frame: `view`, `version` and `state` (that view's MessagePack as \
     JSON); `delivered` (what the application gets, as JSON); `dropped` (why nothing happens); `ask` (a snapshot of \
     that view is to be asked for); `found` (ids of instances, in their order) and `more` (there is a cursor to ask on \
     with); `watch` (number of a live search) and `set` (each instance that it lets through, with its `seats_taken`; \
     null until the set is whole). A client that is fed the server's frames comes to these; what it sends may differ \
     where the specification leaves it free.",
];

/// The handle of the instance on the first connection, and on the second.
const CHANNEL: u32 = 7;
const CHANNEL_AGAIN: u32 = 19;

/// One conversation.
pub(crate) struct Talk {
    pub(crate) name: &'static str,
    story: &'static str,
    steps: Vec<Json>,
}

impl Talk {
    fn new(name: &'static str, story: &'static str) -> Self {
        Self { name, story, steps: Vec::new() }
    }
    pub(crate) fn file(&self) -> String {
        let about = std::iter::once(&self.story).chain(ABOUT).map(|&line| line.into());
        json_file(&[("about", about.collect()), ("steps", self.steps.clone())])
    }
    fn step(&mut self, from: &str, frame: &[u8], note: &str) -> Json {
        object! { "from": from, "hex": hex(frame), "note": note }
    }
    fn client(&mut self, frame: &[u8], note: &str) {
        let step = self.step("client", frame, note);
        self.steps.push(step);
    }
    fn server(&mut self, frame: &[u8], note: &str) {
        let step = self.step("server", frame, note);
        self.steps.push(step);
    }
    /// A frame of either side that the network loses with its connection.
    fn lost(&mut self, from: &str, frame: &[u8], note: &str) {
        let step = self.step(from, frame, note).with("lost", true);
        self.steps.push(step);
    }
    fn server_then(&mut self, frame: &[u8], note: &str, then: Json) {
        let step = self.step("server", frame, note).with("then", then);
        self.steps.push(step);
    }
    fn connection(&mut self, what: &str, note: &str) {
        self.steps.push(object! { "connection": what, "note": note });
    }
    /// Opens a connection and says hello.
    fn hello(&mut self, note: &str) {
        self.connection("opened", note);
        self.client(&plain(0x01, &client_hello()), "hello: versions 1 to 1");
        self.server(&plain(0x81, &server_hello()), "hello: version 1, a ping every 30 s");
    }
    /// Opens a connection and checks in.
    fn check_in(&mut self, note: &str) {
        self.hello(note);
        self.client(&plain(0x02, &guest()), "check-in as a guest; the session key is 000102…0f");
        self.server(
            &plain(0x82, &checked_in()),
            "checked in: the session, and all session servers",
        );
    }
    /// Takes the seat for the first time.
    fn join(&mut self) {
        let wanted = request(1, 0, &join_or_create().into());
        self.client(
            &wanted,
            "request 1: a seat in any instance of the kind arena, or in a new one",
        );
        let note = "seat 3; frames of this instance carry channel 7 on this connection";
        self.server(&reply(1, &joined().into()), note);
    }
}

/// A view at the instance: what is sent, and what a client must then have.
struct View {
    id: ViewId,
    version: u32,
    bytes: Vec<u8>,
}

impl View {
    fn new(id: ViewId, version: u32, state: &impl serde::Serialize) -> Self {
        Self { id, version, bytes: encode(state) }
    }
    fn then(&self) -> Json {
        let state = Json::of_message_pack(&self.bytes);
        object! { "view": self.id.0, "version": self.version, "state": state }
    }
    fn piece(&self, tick: u32, from: usize, to: usize) -> Vec<u8> {
        let length = |bytes: usize| u32::try_from(bytes).expect("a small view");
        let header = PieceHeader {
            kind: instance::SNAPSHOT_PIECE,
            channel: Channel(CHANNEL),
            view: self.id,
            tick,
            offset: length(from),
            version: self.version,
            total: length(self.bytes.len()),
        };
        [&header.bytes()[..], &self.bytes[from..to]].concat()
    }
    fn snapshot(&self, tick: u32) -> Vec<u8> {
        self.piece(tick, 0, self.bytes.len())
    }
    /// The next version, and the patch to it.
    fn changed(&self, tick: u32, state: &impl serde::Serialize) -> (Self, Vec<u8>) {
        let next = Self::new(self.id, self.version + 1, state);
        let header = PatchHeader {
            kind: instance::PATCH,
            channel: Channel(CHANNEL),
            view: self.id,
            tick,
            base: self.version,
            version: next.version,
        };
        let mut patch = header.bytes().to_vec();
        Encoder::new().encode(&self.bytes, &next.bytes, &mut patch);
        (next, patch)
    }
}

fn delivered(message: &impl serde::Serialize) -> Json {
    object! { "delivered": Json::of_message_pack(&encode(message)) }
}
fn dropped(why: &str) -> Json {
    object! { "dropped": why }
}
fn closing(code: Code, text: &str) -> Vec<u8> {
    plain(0x85, &Refusal::new(code, text))
}
fn to_seat(kind: u8, number: u32, ack: u32, tick: u32, payload: &[u8]) -> Vec<u8> {
    down(kind, &Down { channel: CHANNEL, number, ack, tick }, payload)
}
/// A frame of the instance, as it is on the second connection.
fn again(mut frame: Vec<u8>) -> Vec<u8> {
    frame[1..5].copy_from_slice(&CHANNEL_AGAIN.to_le_bytes());
    frame
}
/// A reply as the application gets it.
fn replied(call: u32, reply: &impl serde::Serialize) -> Json {
    delivered(reply).with("call", call)
}

fn check_in() -> Talk {
    let mut talk = Talk::new(
        "check_in",
        "A guest checks in; heartbeats both ways; a session server is added.",
    );
    talk.check_in("any of the well-known session servers");
    talk.client(&[PING, 0, 0, 0, 0, 0, 0, 0, 1], "ping: the client had nothing to say for 30 s");
    talk.server(&[SERVER_PONG, 0, 0, 0, 0, 0, 0, 0, 1], "pong with the same 8 bytes");
    talk.server(&[SERVER_PING, 9, 9, 9, 9, 0, 0, 0, 2], "ping of the server");
    talk.client(&[PONG, 9, 9, 9, 9, 0, 0, 0, 2], "pong with the same 8 bytes");
    let mut session_servers = servers();
    session_servers.push(SessionServer {
        name: "session-3".into(),
        urls: vec!["tls://three.example:7000".into()],
    });
    let note = "the list has grown: the client keeps it for its next connection";
    talk.server(&plain(0x87, &SessionServers { session_servers }), note);
    talk.server_then(
        &[0xef, 1, 2, 3],
        "a kind that version 1 does not have",
        dropped("a client ignores kinds that it does not know"),
    );
    talk.connection("lost", "the client closes: its session goes on for a while without it");
    talk
}

fn refused_check_in() -> Talk {
    let mut talk = Talk::new(
        "refused_check_in",
        "A token has expired: the client is told, and the connection ends.",
    );
    talk.hello("");
    let credentials = Credentials {
        scheme: "jwt".into(),
        token: "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbm4iLCJleHAiOjF9.AAAA".into(),
        name: "".into(),
    };
    let note = "check-in with a token";
    talk.client(&plain(0x02, &CheckIn { session_key: SESSION_KEY, credentials }), note);
    let text = "the token expired at 1: get a new one from the service that issued it";
    talk.server_then(
        &closing(Code::TokenExpired, text),
        "no: trying again with the same token is of no use",
        object! { "closed": "token_expired" },
    );
    talk.connection("lost", "the server closes after it");
    talk
}

fn version_mismatch() -> Talk {
    let mut talk = Talk::new(
        "version_mismatch",
        "A client of the future: no version is spoken by both sides.",
    );
    talk.connection("opened", "");
    let hello = ClientHello { protocol_min: 7, protocol_max: 9, ..client_hello() };
    talk.client(&plain(0x01, &hello), "hello: versions 7 to 9");
    let text = "this server speaks versions 1 to 1 of the protocol, the client 7 to 9: upgrade the older one";
    talk.server_then(
        &closing(Code::VersionMismatch, text),
        "both ranges are named",
        object! { "closed": "version_mismatch" },
    );
    talk.connection("lost", "the server closes after it");
    talk
}

fn unexpected_kind() -> Talk {
    let mut talk = Talk::new(
        "unexpected_kind",
        "A client sends kinds that no version has: a request is refused, anything else ends the conversation.",
    );
    talk.check_in("");
    let unknown = [0x1e, 1, 0, 0, 0, 0, 0, 0, 0, 0x80];
    talk.client(&unknown, "request 1, of a kind that version 1 does not have");
    let text = "this version knows no request of kind 0x1e";
    let refused = Refusal::new(Code::UnexpectedKind, text).into();
    talk.server_then(
        &reply(1, &refused),
        "it is refused as any other request",
        object! { "refused": "unexpected_kind" },
    );
    talk.client(&[0x7e, 1, 2, 3], "no such kind");
    let text = "a frame of kind 0x7e: version 1 of the protocol has no such kind from a client";
    talk.server_then(
        &closing(Code::UnexpectedKind, text),
        "what goes up is never ignored",
        object! { "closed": "unexpected_kind" },
    );
    talk.connection("lost", "the server closes after it");
    talk
}

fn arena() -> Talk {
    let mut talk = Talk::new(
        "arena",
        "A seat in a real-time instance: a snapshot in two pieces, patches, one that does not fit, one that is \
         damaged, patches that were left out for a slow client, leaving.",
    );
    talk.check_in("");
    talk.join();
    let world = World::at_the_start();
    let start = View::new(ViewId::SHARED, 40, &world);
    let half = start.bytes.len() / 2;
    talk.server(&start.piece(800, 0, half), "the shared view at version 40, its first half");
    let moved = world.moved("bo", 21.0, 40.5);
    let (second, patch) = start.changed(801, &moved);
    let note = "a patch between the pieces: held back until the snapshot is whole";
    talk.server_then(&patch, note, dropped("held until the snapshot is whole"));
    talk.server_then(
        &start.piece(800, half, start.bytes.len()),
        "the other half, and with it the patch that was held back",
        second.then(),
    );
    let hand = View::new(ViewId::of_seat(Seat(3)), 1, &Hand { ammunition: 6 });
    talk.server_then(&hand.snapshot(801), "the view of seat 3 alone: number 0x8003", hand.then());
    talk.client(
        &up(instance::MESSAGE, CHANNEL, 1, 0, &encode(&Input::Move { x: 2.5, y: 3.0 })),
        "message 1",
    );
    talk.client(&up(instance::MESSAGE, CHANNEL, 2, 0, &encode(&Input::Shoot)), "message 2");
    let moved = moved.moved("ann", 2.5, 3.0).hit("bo", 30);
    let (third, patch) = second.changed(802, &moved);
    talk.server_then(&patch, "a step's patch comes before its messages", third.then());
    let (hand, patch) = hand.changed(802, &Hand { ammunition: 5 });
    talk.server_then(&patch, "a patch of the seat's own view", hand.then());
    let hit = Event::Hit { seat: 1, damage: 30 };
    talk.server_then(
        &to_seat(instance::EVENT, 1, 2, 802, &encode(&hit)),
        "event 1, which acknowledges messages 1 and 2",
        delivered(&hit),
    );
    talk.client(
        &up(instance::ACK, CHANNEL, 0, 1, &[]),
        "the client has event 1 and nothing else to say",
    );

    // A patch whose base the client does not have.
    let moved = moved.moved("cem", 301.0, 600.0);
    let (fourth, _not_sent) = third.changed(803, &moved);
    let moved = moved.moved("cem", 302.0, 600.0);
    let (fifth, patch) = fourth.changed(804, &moved);
    let ask = object! { "ask": fifth.id.0, "version": third.version };
    talk.server_then(&patch, "a patch from 43 to 44, but the client has 42: it does not fit", ask);
    let need = |version: u32, reason: &str| {
        let reason = reason.into();
        let need = instance::NeedSnapshot { view: ViewId::SHARED.0, version, reason };
        up(instance::NEED_SNAPSHOT, CHANNEL, 0, 1, &encode(&need))
    };
    let note = "one question, however many patches do not fit";
    talk.client(&need(42, "patch 43 to 44 does not fit version 42"), note);
    talk.server_then(&fifth.snapshot(804), "the whole view again", fifth.then());

    // A patch that was damaged: its checksum is another.
    let moved = moved.hit("dee", 10);
    let (sixth, mut patch) = fifth.changed(805, &moved);
    let last = patch.len() - 2;
    patch[last] = if patch[last] == b'0' { b'1' } else { b'0' };
    let ask = object! { "ask": sixth.id.0, "version": fifth.version };
    talk.server_then(&patch, "a patch that fits, but its result does not have its checksum", ask);
    talk.client(
        &need(44, "patch 44 to 45: the checksum is another"),
        "the view stays as it was until then",
    );
    talk.server_then(&sixth.snapshot(805), "the whole view again", sixth.then());
    let (seventh, patch) = sixth.changed(806, &moved.hit("dee", 20));
    talk.server_then(&patch, "patches go on", seventh.then());
    talk.server_then(
        &patch,
        "the same patch once more (this does not happen, and harms nobody)",
        dropped("the client has this version"),
    );

    // The client read slowly: patches were left out, and a fresh snapshot comes unasked.
    let ninth = View::new(ViewId::SHARED, 60, &moved.hit("dee", 90));
    let note = "the client read slowly: patches were left out for it, this comes unasked";
    talk.server_then(&ninth.snapshot(821), note, ninth.then());

    talk.client(
        &request(2, 1, &Leave { instance: INSTANCE }.into()),
        "request 2: leave; the answer to 1 has come",
    );
    talk.server(
        &reply(2, &Left { instance: INSTANCE }.into()),
        "the seat is free, channel 7 is not used again",
    );
    talk
}

fn calls_and_queries() -> Talk {
    let mut talk = Talk::new(
        "calls_and_queries",
        "Messages that are answered, questions, refusals of both; then the seat is taken away.",
    );
    talk.check_in("");
    talk.join();
    let buy = encode(&Question::Buy { item: "boots" });
    talk.client(&up(instance::CALL, CHANNEL, 1, 0, &buy), "call: message 1");
    let bought = Event::Bought { gold: 70 };
    let note = "reply to message 1: event 1";
    talk.server_then(
        &to_seat(instance::REPLY, 1, 1, 10, &to_call(1, &bought)),
        note,
        replied(1, &bought),
    );
    talk.client(&up(instance::CALL, CHANNEL, 2, 1, &buy), "call: message 2; event 1 has come");
    let refused = Refusal::new(Code::Rejected, "you have boots");
    talk.server_then(
        &to_seat(instance::REPLY_REFUSED, 2, 2, 11, &to_call(2, &refused)),
        "the game refuses it: event 2",
        replied(2, &refused),
    );
    let dance = [0xa5, b'D', b'a', b'n', b'c', b'e'];
    let note = "message 3: the game does not know it";
    talk.client(&up(instance::MESSAGE, CHANNEL, 3, 2, &dance), note);
    let unknown = Refusal::new(Code::MessageUnknown, "unknown variant `Dance`");
    talk.server_then(
        &to_seat(instance::REPLY_REFUSED, 3, 3, 12, &to_call(3, &unknown)),
        "messages without an answer are refused the same way: event 3",
        replied(3, &unknown),
    );
    let score = encode(&Question::Score);
    talk.client(
        &up(instance::QUERY, CHANNEL, 1, 3, &score),
        "query 1: numbers of the client's own",
    );
    talk.client(&up(instance::QUERY, CHANNEL, 2, 3, &buy), "query 2");
    let note = "the answer to query 1; not numbered among events";
    let answer = Event::Score(1_250);
    talk.server_then(
        &to_seat(instance::QUERY_REPLY, 1, 3, 12, &encode(&answer)),
        note,
        delivered(&answer).with("query", 1u8),
    );
    let refused = Refusal::new(Code::Rejected, "that is no question");
    talk.server_then(
        &to_seat(instance::QUERY_REFUSED, 2, 3, 12, &encode(&refused)),
        "query 2 is refused",
        delivered(&refused).with("query", 2u8),
    );
    let kicked = Refusal::new(Code::Kicked, "an operator removed you");
    talk.server_then(
        &to_seat(instance::SEAT_ENDED, 0, 3, 13, &encode(&kicked)),
        "the seat is gone; the session goes on",
        object! { "seat_ended": "kicked" },
    );
    talk
}

fn resume() -> Talk {
    let mut talk = Talk::new(
        "resume",
        "A connection is lost with messages of both sides on their way: the client checks in with the same session \
         key, joins again, both sides send again what was not acknowledged, and drop what they have.",
    );
    talk.check_in("");
    talk.join();
    let hit = Event::Hit { seat: 3, damage: 5 };
    let event = to_seat(instance::EVENT, 1, 0, 30, &encode(&hit));
    talk.server_then(&event, "event 1", delivered(&hit));
    let buy = encode(&Question::Buy { item: "boots" });
    talk.client(
        &up(instance::CALL, CHANNEL, 1, 1, &buy),
        "call: message 1, which acknowledges event 1",
    );
    let after = Event::RoundOver;
    talk.server_then(
        &to_seat(instance::EVENT, 2, 0, 31, &encode(&after)),
        "event 2",
        delivered(&after),
    );
    let score = encode(&Question::Score);
    talk.lost(
        "client",
        &up(instance::CALL, CHANNEL, 2, 2, &score),
        "call: message 2, acknowledges event 2",
    );
    let bought = Event::Bought { gold: 70 };
    let answer = to_seat(instance::REPLY, 3, 1, 32, &to_call(1, &bought));
    talk.lost("server", &answer, "the reply to message 1: event 3");
    let create = request(2, 1, &create("echo").into());
    talk.lost("client", &create, "request 2: an instance of the kind echo");
    talk.connection("lost", "");

    talk.check_in("another session server of the list, the same session key: the same session");
    talk.client(
        &create,
        "request 2 again, with the same id: it happens once, however often it is asked",
    );
    let join = Join { instance: INSTANCE, options: ByteBuf::new() };
    talk.client(&request(3, 1, &join.into()), "request 3: the seat again");
    let made = Created { instance: greenroom_protocol::InstanceId(INSTANCE.0 ^ 1) };
    talk.server(&reply(2, &made.into()), "answers come in any order");
    let channel = Channel(CHANNEL_AGAIN);
    let seated = Joined { channel, up_received: 1, down_next: 2, ..joined() };
    let note =
        "the same seat and incarnation: it has message 1, and sends from event 2 on; channel 19";
    talk.server(&reply(3, &seated.into()), note);
    let event = again(to_seat(instance::EVENT, 2, 1, 31, &encode(&after)));
    talk.server_then(&event, "event 2 was not acknowledged", dropped("event 2 was delivered"));
    talk.server_then(&again(answer), "event 3, the reply that was lost", replied(1, &bought));
    let world = View::new(ViewId::SHARED, 77, &World::at_the_start());
    let note = "a snapshot without being asked for: patches are not kept for anybody";
    talk.server_then(&again(world.snapshot(90)), note, world.then());
    talk.client(
        &again(up(instance::CALL, CHANNEL, 2, 3, &score)),
        "message 2 again: 1 had arrived, 2 had not",
    );
    let value = Event::Score(12);
    talk.server_then(
        &again(to_seat(instance::REPLY, 4, 2, 91, &to_call(2, &value))),
        "its reply: event 4",
        replied(2, &value),
    );
    talk
}

fn restarted_instance() -> Talk {
    let mut talk = Talk::new(
        "restarted_instance",
        "The instance begins another incarnation while the client is away: numbers and views begin anew, and the \
         client knows that something was lost.",
    );
    talk.check_in("");
    talk.join();
    let hit = Event::Hit { seat: 3, damage: 5 };
    talk.server_then(
        &to_seat(instance::EVENT, 1, 0, 30, &encode(&hit)),
        "event 1",
        delivered(&hit),
    );
    talk.lost("client", &up(instance::MESSAGE, CHANNEL, 1, 1, &encode(&Input::Shoot)), "message 1");
    talk.connection("lost", "");
    talk.check_in("");
    let join = Join { instance: INSTANCE, options: ByteBuf::new() };
    talk.client(&request(2, 1, &join.into()), "request 2: the seat again");
    let channel = Channel(CHANNEL_AGAIN);
    let incarnation = greenroom_protocol::Incarnation(INCARNATION.0 + 1);
    let seated = Joined { channel, incarnation, ..joined() };
    let note = "another incarnation: message 1 is lost, event 1 is a new one, views are forgotten";
    talk.server_then(&reply(2, &seated.into()), note, object! { "restarted": true });
    let over = Event::RoundOver;
    talk.server_then(
        &again(to_seat(instance::EVENT, 1, 0, 2, &encode(&over))),
        "event 1 of this life",
        delivered(&over),
    );
    let world = View::new(ViewId::SHARED, 1, &World::at_the_start());
    talk.server_then(&again(world.snapshot(3)), "versions begin anew as well", world.then());
    talk
}

fn send_again() -> Talk {
    let mut talk = Talk::new(
        "send_again",
        "A queue on the way to the instance is full: messages are thrown away, and sent again after a pause.",
    );
    talk.check_in("");
    talk.join();
    let say =
        |number: u32, text| up(instance::MESSAGE, CHANNEL, number, 0, &encode(&Input::Say(text)));
    talk.client(&say(1, "one"), "message 1");
    talk.client(&say(2, "two"), "message 2: thrown away, a queue is full");
    talk.client(
        &say(3, "three"),
        "message 3: there is room again, but it is not the next number: not taken",
    );
    let full = Refusal::new(Code::Busy, "the instance's queue is full: send again after a pause");
    talk.server_then(
        &to_seat(instance::SEND_AGAIN, 0, 0, 0, &encode(&full)),
        "says nothing of what has arrived: `ack` is 0",
        object! { "send_again": true },
    );
    talk.server_then(
        &to_seat(instance::DOWN_ACK, 0, 1, 50, &[]),
        "message 1 has arrived",
        object! { "acknowledged": 1u8 },
    );
    talk.client(
        &say(2, "two"),
        "after a pause, everything from the first that is not acknowledged: message 2",
    );
    talk.client(&say(3, "three"), "message 3");
    talk.server_then(
        &to_seat(instance::DOWN_ACK, 0, 3, 52, &[]),
        "all have arrived, each once and in order",
        object! { "acknowledged": 3u8 },
    );
    talk
}

fn superseded() -> Talk {
    let mut talk =
        Talk::new("superseded", "The same user checks in elsewhere: the newer session wins.");
    talk.check_in("");
    talk.join();
    let text = "this user checked in with a newer session: this one is over";
    talk.server_then(
        &closing(Code::Superseded, text),
        "the client does not check in again by itself: two of them would throw each other out for ever",
        object! { "closed": "superseded" },
    );
    talk.connection("lost", "the server closes after it");
    talk
}

fn go_away() -> Talk {
    let mut talk =
        Talk::new("go_away", "The session server stops: the client goes on at another one.");
    talk.check_in("session-1");
    talk.join();
    let mut others = servers();
    others.remove(0);
    let away = GoAway { message: "session-1 is stopping".into(), session_servers: others };
    talk.server_then(&plain(0x86, &away), "where to go", object! { "go_away": "session-2" });
    talk.client(
        &up(instance::MESSAGE, CHANNEL, 1, 0, &encode(&Input::Shoot)),
        "what is under way still passes",
    );
    talk.server_then(
        &to_seat(instance::DOWN_ACK, 0, 1, 60, &[]),
        "and is acknowledged",
        object! { "acknowledged": 1u8 },
    );
    talk.connection("lost", "the client closes when it is ready to go");
    talk.check_in("session-2, the same session key");
    let join = Join { instance: INSTANCE, options: ByteBuf::new() };
    talk.client(&request(2, 1, &join.into()), "request 2: the seat again");
    let seated = Joined { channel: Channel(CHANNEL_AGAIN), up_received: 1, ..joined() };
    talk.server(&reply(2, &seated.into()), "the same seat; nothing was lost");
    talk
}

fn search_pages() -> Talk {
    let mut talk = Talk::new(
        "search",
        "Instances of a kind are looked for: with a filter and an order, page by page; then two searches that are \
         refused.",
    );
    talk.check_in("");
    let wanted = Search {
        filter: filter("mode = 'ranked' and rating between 1400 and 1600 and seats_free > 0"),
        order: Some(Order { field: "created".into(), descending: true }),
        explain: true,
        ..search(2)
    };
    talk.client(
        &request(1, 0, &wanted.clone().into()),
        "request 1: mode = \"ranked\" and rating between 1400 and 1600 and seats_free > 0 order by created desc \
         limit 2, and how it was answered",
    );
    let ranked = |last, seats_taken, created_ms, rating| {
        let meta = [
            ("mode".into(), MetaValue::Text("ranked".into())),
            ("rating".into(), MetaValue::Int(rating)),
        ];
        listed(last, seats_taken, created_ms, meta.into())
    };
    let explain = Explain {
        index: "rating between 1400 and 1600".into(),
        examined: 5,
        matched: 3,
        ordered_by_index: false,
        considered: vec![
            Considered { index: "rating between 1400 and 1600".into(), entries: 5 },
            Considered { index: "mode = \"ranked\"".into(), entries: 40 },
            Considered { index: "every record, by created".into(), entries: 212 },
        ],
    };
    let cursor = Some(ByteBuf::from(vec![0x5c, 0x01, 0xd0, 0x07, 0x12]));
    let first = Found {
        instances: vec![ranked(0x13, 15, 3_000, 1_600), ranked(0x12, 0, 2_000, 1_400)],
        cursor: cursor.clone(),
        explain: Some(explain),
    };
    talk.server_then(
        &reply(1, &first.clone().into()),
        "the two newest, and a cursor: there are more",
        found(&first),
    );
    talk.client(
        &request(2, 1, &Search { cursor, explain: false, ..wanted.clone() }.into()),
        "request 2: the same search, with the cursor of its answer",
    );
    let rest =
        Found { instances: vec![ranked(0x11, 4, 1_000, 1_502)], cursor: None, explain: None };
    talk.server_then(
        &reply(2, &rest.clone().into()),
        "what follows there; no cursor: that was all",
        found(&rest),
    );
    let unknown = Search { filter: filter("elo > 1000"), ..search(20) };
    talk.client(
        &request(3, 2, &unknown.into()),
        "request 3: a field that the kind does not declare",
    );
    let text =
        "the kind arena has no field elo: it has map, mode and rating, and what every instance has";
    talk.server_then(
        &reply(3, &Refusal::new(Code::FieldUnknown, text).into()),
        "it is refused by name",
        object! { "refused": "field_unknown" },
    );
    talk.client(&request(4, 3, &search(0).into()), "request 4: a limit of 0");
    let text = "a limit of 0: 1 to 100 are found at once";
    talk.server_then(
        &reply(4, &Refusal::new(Code::LimitInvalid, text).into()),
        "it is refused by name",
        object! { "refused": "limit_invalid" },
    );
    talk
}

/// What a client has of a search's answer.
fn found(found: &Found) -> Json {
    let ids: Vec<String> =
        found.instances.iter().map(|listed| listed.instance.to_string()).collect();
    object! { "found": ids, "more": found.cursor.is_some() }
}

/// What a client has of a live search: each instance with its seats that are taken.
fn watched(watch: u32, set: &[&Listed]) -> Json {
    let set = set.iter().map(|listed| (listed.instance.to_string(), listed.seats_taken.into()));
    object! { "watch": watch, "set": Json::Map(set.collect()) }
}

fn watch() -> Talk {
    let mut talk = Talk::new(
        "watch",
        "A live search: the whole set in two messages, an instance that changes, one that leaves the set, the set anew \
         on another connection, and the end. Each message is acknowledged before the next one comes.",
    );
    talk.check_in("");
    let wanted = Watch { kind: kind_name("arena"), filter: filter("seats_free > 0") };
    talk.client(
        &request(1, 0, &wanted.into()),
        "request 1: instances of the kind arena with a free seat, and what changes; 1 is the live search's number",
    );
    talk.server(&reply(1, &Watching {}.into()), "it is set up");
    let seen = |n| plain(0x05, &Seen { watch: RequestId(1), n });
    let changes =
        |n| Changes { n, anew: false, more: false, instances: vec![], gone: vec![], ended: None };
    let [one, two, three] =
        [1u8, 2, 3].map(|last| listed(last, u16::from(last), 1_000 * u64::from(last), Meta::new()));
    let begun =
        Changes { anew: true, more: true, instances: vec![one.clone(), two.clone()], ..changes(2) };
    talk.server_then(
        &reply(1, &begun.into()),
        "the set begins, and more of it follows",
        object! { "watch": 1u32, "set": Json::Null },
    );
    talk.client(&seen(2), "these have arrived: the rest may come");
    talk.server_then(
        &reply(1, &Changes { instances: vec![three.clone()], ..changes(3) }.into()),
        "the rest of the set: it is whole",
        watched(1, &[&one, &two, &three]),
    );
    talk.client(&seen(3), "it has arrived");
    let two_later = Listed { seats_taken: 9, ..two };
    talk.server_then(
        &reply(1, &Changes { instances: vec![two_later.clone()], ..changes(10) }.into()),
        "seven seats were taken since: merged into the instance as it is now",
        watched(1, &[&one, &two_later, &three]),
    );
    talk.client(&seen(10), "it has arrived");
    talk.server_then(
        &reply(1, &Changes { gone: vec![one.instance], ..changes(11) }.into()),
        "one is full, closed, private or locked: it has left the set",
        watched(1, &[&two_later, &three]),
    );
    talk.lost("client", &seen(11), "it has arrived");
    talk.connection("lost", "");

    talk.check_in("the same session key: the same session, and its live search goes on");
    let three_later = Listed { seats_taken: 4, ..three };
    let anew =
        Changes { anew: true, more: true, instances: vec![two_later.clone()], ..changes(10) };
    talk.server_then(
        &reply(1, &anew.into()),
        "without being asked: the set anew, as it is now; what was told before is void, and so is its number",
        object! { "watch": 1u32, "set": Json::Null },
    );
    talk.client(&seen(10), "it has arrived");
    talk.server_then(
        &reply(1, &Changes { instances: vec![three_later.clone()], ..changes(12) }.into()),
        "the rest of the set: it is whole",
        watched(1, &[&two_later, &three_later]),
    );
    talk.client(&seen(12), "it has arrived");
    talk.client(
        &request(2, 1, &Unwatch { watch: RequestId(1) }.into()),
        "request 2: enough of live search 1",
    );
    let late = Changes { gone: vec![three_later.instance], ..changes(13) };
    talk.server_then(
        &reply(1, &late.into()),
        "this was on its way",
        dropped("the client has ended this live search"),
    );
    talk.server(&reply(2, &Unwatched {}.into()), "nothing of it follows");
    talk
}
