//! The smallest client that keeps the rules: it is fed the server's frames of a recorded conversation and compares what
//! it then has with what the recording says. Whoever writes a client in another language can read it as a model.

use std::collections::BTreeMap;

use greenroom_protocol::{
    Channel, DownHeader, Incarnation, InstanceId, Limits, PatchHeader, PieceHeader, Refusal,
    ReplyHeader, RequestHeader, RequestId, UpHeader, VIEW_BYTES_MAX, ViewId, decode,
    wire::{
        Opaque, client_instance as instance,
        client_session::{
            self as session, Changes, ClientToSession, Reply, Request, SessionToClient,
        },
    },
};
use serde_json::{Value, json};

use super::{bytes, common::json::Json, steps};

/// Feeds a client with every frame of the conversation that arrives.
pub(crate) fn replay(conversation: &Value, name: &str) {
    let mut client = Client::default();
    for (number, step) in steps(conversation).iter().enumerate() {
        let place = format!("{name}, step {number}: {step}");
        if let Some(what) = step.get("connection") {
            client.connected = what == "opened";
            client.channel = None;
            client.lives.values_mut().for_each(Live::reconnected);
            continue;
        }
        assert!(client.connected, "a frame without a connection: {place}");
        let frame = bytes(&step["hex"]);
        if step["from"] == "client" {
            let arrives = step.get("lost").is_none();
            client.check_sent(&frame, arrives, &place);
            continue;
        }
        if step.get("lost").is_some() {
            continue;
        }
        let then = client.take(&frame, &place);
        match step.get("then") {
            Some(expected) if expected.get("dropped").is_some() => {
                assert!(then.get("dropped").is_some(), "{place}: {then}");
            }
            Some(expected) => assert_eq!(&then, expected, "{place}"),
            None => assert!(then.is_null(), "{place}: the recording does not say {then}"),
        }
    }
}

#[derive(Default)]
struct Client {
    connected: bool,
    channel: Option<Channel>,
    incarnation: Option<Incarnation>,
    /// The last reliable message that was delivered.
    received: u32,
    /// The last one of ours that has arrived.
    acknowledged: u32,
    views: BTreeMap<ViewId, View>,
    /// From the answer to the last search.
    cursor: Option<Opaque>,
    lives: BTreeMap<RequestId, Live>,
}

/// A live search.
#[derive(Default)]
struct Live {
    /// Of the newest message that came.
    n: u64,
    /// The set was begun on this connection.
    begun: bool,
    /// What came is not acknowledged.
    waits: bool,
    /// Each instance, and its seats that are taken.
    set: BTreeMap<InstanceId, u16>,
}

#[derive(Default)]
struct View {
    version: u32,
    bytes: Vec<u8>,
    /// A snapshot on its way: its version, length, and what of it has come.
    pieces: Option<(u32, usize, Vec<u8>)>,
    /// A snapshot is wanted or on its way: patches wait for it.
    waiting: bool,
    held: Vec<(PatchHeader, Vec<u8>)>,
}

impl Client {
    /// The recorded client keeps the rules too.
    fn check_sent(&mut self, frame: &[u8], arrives: bool, place: &str) {
        match frame[0] {
            kind if instance::UP.contains(&kind) => {
                let (head, _) = UpHeader::split(frame).unwrap();
                assert_eq!(Some(head.channel), self.channel, "{place}");
                assert!(head.ack.0 <= self.received, "acknowledges what did not come: {place}");
                if matches!(kind, instance::MESSAGE | instance::CALL) {
                    assert!(
                        head.number.0 > self.acknowledged,
                        "sent though it has arrived: {place}"
                    );
                }
            }
            kind if session::REQUESTS.contains(&kind) => {
                let (head, payload) = RequestHeader::split(frame).unwrap();
                assert!(head.answered < head.id, "{place}");
                self.asked(head.id, Request::decode(head.kind, payload, Limits::CLIENT).unwrap());
            }
            kind if kind <= 0x0f => {
                let sent = ClientToSession::decode(kind, &frame[1..], Limits::CLIENT);
                if let Ok(ClientToSession::Seen(seen)) = sent {
                    let live = self.lives.get_mut(&seen.watch).expect(place);
                    assert_eq!((seen.n, live.waits), (live.n, true), "{place}");
                    live.waits = !arrives;
                }
            }
            _ => {}
        }
    }

    fn asked(&mut self, id: RequestId, request: Request) {
        match request {
            Request::Search(search) => {
                assert!(
                    search.cursor.is_none() || search.cursor == self.cursor,
                    "another's cursor"
                );
            }
            Request::Watch(_) => {
                self.lives.entry(id).or_default();
            }
            Request::Unwatch(unwatch) => {
                self.lives.remove(&unwatch.watch).expect("there is such a live search");
            }
            Request::Create(_)
            | Request::Join(_)
            | Request::JoinOrCreate(_)
            | Request::Leave(_)
            | Request::Destroy(_)
            | Request::Rank(_)
            | Request::Unknown(_) => {}
        }
    }

    /// Takes a frame of the server; tells what the application or the recording should know of it.
    fn take(&mut self, frame: &[u8], place: &str) -> Value {
        match frame[0] {
            session::SERVER_PING | session::SERVER_PONG => Value::Null,
            0x80..=0x8f => match SessionToClient::decode(frame[0], &frame[1..], Limits::SERVER)
                .unwrap()
            {
                SessionToClient::Closing(refusal) => json!({ "closed": refusal.code.name() }),
                SessionToClient::GoAway(away) => json!({ "go_away": away.session_servers[0].name }),
                SessionToClient::Unknown(_) => json!({ "dropped": "an unknown kind" }),
                SessionToClient::Hello(_)
                | SessionToClient::CheckedIn(_)
                | SessionToClient::Rejoined(_)
                | SessionToClient::SessionServers(_) => Value::Null,
            },
            kind if session::REPLIES.contains(&kind) => self.answered(frame),
            kind if instance::DOWN.contains(&kind) => self.told(frame, place),
            instance::PATCH => {
                let (head, delta) = PatchHeader::split(frame).unwrap();
                assert_eq!(Some(head.channel), self.channel, "{place}");
                self.views.entry(head.view).or_default().patched(head, delta)
            }
            instance::SNAPSHOT_PIECE => {
                let (head, piece) = PieceHeader::split(frame).unwrap();
                assert_eq!(Some(head.channel), self.channel, "{place}");
                self.views.entry(head.view).or_default().pieced(&head, piece)
            }
            _ => json!({ "dropped": "an unknown kind" }),
        }
    }

    fn answered(&mut self, frame: &[u8]) -> Value {
        let (head, payload) = ReplyHeader::split(frame).unwrap();
        match Reply::decode(head.kind, payload, Limits::SERVER).unwrap() {
            Reply::Joined(joined) => {
                let before = self.incarnation.replace(joined.incarnation);
                let restarted = before.is_some_and(|before| before != joined.incarnation);
                self.channel = Some(joined.channel);
                if before.is_none() || restarted {
                    self.received = joined.down_next - 1;
                    self.views.clear();
                }
                assert!(joined.down_next <= self.received + 1, "messages are missing");
                self.acknowledged = joined.up_received;
                for view in self.views.values_mut() {
                    view.wait();
                }
                if restarted { json!({ "restarted": true }) } else { Value::Null }
            }
            Reply::Left(_) => {
                self.channel = None;
                Value::Null
            }
            Reply::Found(found) => {
                let ids: Vec<String> =
                    found.instances.iter().map(|listed| listed.instance.to_string()).collect();
                self.cursor = found.cursor;
                json!({ "found": ids, "more": self.cursor.is_some() })
            }
            Reply::Changes(changes) => match self.lives.get_mut(&head.id) {
                Some(live) => live.changed(head.id, changes),
                None => json!({ "dropped": "there is no such live search, or not any more" }),
            },
            Reply::Refused(refusal) => json!({ "refused": refusal.code.name() }),
            Reply::Created(_)
            | Reply::Destroyed(_)
            | Reply::Watching(_)
            | Reply::Unwatched(_)
            | Reply::Ranking(_)
            | Reply::Unknown(_) => Value::Null,
        }
    }

    fn told(&mut self, frame: &[u8], place: &str) -> Value {
        let (head, payload) = DownHeader::split(frame).unwrap();
        assert_eq!(Some(head.channel), self.channel, "{place}");
        let before = self.acknowledged;
        self.acknowledged = before.max(head.ack.0);
        let refusal = |payload| decode::<Refusal>(payload, Limits::SERVER).unwrap();
        match head.kind {
            instance::EVENT | instance::REPLY | instance::REPLY_REFUSED => {
                if head.number.0 <= self.received {
                    return json!({ "dropped": "it has been delivered" });
                }
                assert_eq!(head.number.0, self.received + 1, "a gap: {place}");
                self.received = head.number.0;
                if head.kind == instance::EVENT {
                    return json!({ "delivered": message(payload) });
                }
                let (call, reply) = payload.split_first_chunk::<4>().unwrap();
                json!({ "delivered": message(reply), "call": u32::from_le_bytes(*call) })
            }
            instance::QUERY_REPLY | instance::QUERY_REFUSED => {
                json!({ "delivered": message(payload), "query": head.number.0 })
            }
            instance::SEAT_ENDED => {
                self.channel = None;
                json!({ "seat_ended": refusal(payload).code.name() })
            }
            instance::SEND_AGAIN => json!({ "send_again": true }),
            instance::DOWN_ACK => {
                assert!(head.ack.0 > before, "{place}");
                json!({ "acknowledged": head.ack.0 })
            }
            _ => json!({ "dropped": "an unknown kind" }),
        }
    }
}

impl Live {
    fn reconnected(&mut self) {
        (self.begun, self.waits) = (false, false);
    }

    fn changed(&mut self, number: RequestId, changes: Changes) -> Value {
        assert!(!self.waits, "the message before is not acknowledged");
        if changes.anew {
            self.set.clear();
        }
        assert!(changes.anew || self.begun, "the first message on a connection begins anew");
        assert!(changes.anew || changes.n > self.n, "numbers grow until a set begins anew");
        (self.n, self.begun, self.waits) = (changes.n, true, true);
        for listed in changes.instances {
            self.set.insert(listed.instance, listed.seats_taken);
        }
        for gone in changes.gone {
            // It may have come and gone between two messages.
            self.set.remove(&gone);
        }
        assert_eq!(changes.ended, None);
        if changes.more {
            return json!({ "watch": number.0, "set": null });
        }
        let set = self.set.iter().map(|(id, taken)| (id.to_string(), json!(taken)));
        json!({ "watch": number.0, "set": Value::Object(set.collect()) })
    }
}

impl View {
    fn wait(&mut self) {
        self.waiting = true;
        self.pieces = None;
        self.held.clear();
    }

    fn patched(&mut self, head: PatchHeader, delta: &[u8]) -> Value {
        if self.waiting {
            self.held.push((head, delta.to_vec()));
            return json!({ "dropped": "held until the snapshot is there" });
        }
        if head.version <= self.version {
            return json!({ "dropped": "this version is there" });
        }
        let mut target = Vec::new();
        if head.base != self.version
            || greenroom_delta::apply(&self.bytes, delta, VIEW_BYTES_MAX, &mut target).is_err()
        {
            self.wait();
            self.held.push((head, delta.to_vec()));
            return json!({ "ask": head.view.0, "version": self.version });
        }
        (self.version, self.bytes) = (head.version, target);
        self.state(head.view)
    }

    fn pieced(&mut self, head: &PieceHeader, piece: &[u8]) -> Value {
        self.waiting = true;
        if head.offset == 0 {
            self.pieces = Some((head.version, head.total as usize, Vec::new()));
        }
        let Some((version, total, mut there)) = self.pieces.take() else {
            return json!({ "dropped": "its beginning did not come" });
        };
        assert_eq!((version, total), (head.version, head.total as usize));
        assert_eq!(there.len(), head.offset as usize);
        there.extend_from_slice(piece);
        assert!(there.len() <= total);
        if there.len() < total {
            self.pieces = Some((version, total, there));
            return Value::Null;
        }
        (self.version, self.bytes, self.waiting) = (version, there, false);
        for (patch, delta) in std::mem::take(&mut self.held) {
            self.patched(patch, &delta);
        }
        self.state(head.view)
    }

    fn state(&self, view: ViewId) -> Value {
        json!({ "view": view.0, "version": self.version, "state": message(&self.bytes) })
    }
}

/// MessagePack as the recordings write it.
fn message(payload: &[u8]) -> Value {
    serde_json::from_str(&Json::of_message_pack(payload).to_string()).unwrap()
}
