//! The vectors in `protocol/vectors/v1/`: they are what this build makes, every kind of frame is among them, a client
//! that is fed the recorded conversations comes to what they say, and `PROTOCOL.md` says the same as the code.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail it by panicking")]

mod common;
mod replay;

use std::{collections::BTreeSet, fs, path::PathBuf};

use greenroom_protocol::{
    Code, DownHeader, InstanceFrame, Limits, PatchHeader, PieceHeader, ReplyHeader, RequestHeader,
    TraceContext, UpHeader, encode_into,
    wire::{
        client_instance as instance,
        client_session::{self as session, ClientToSession, Reply, Request, SessionToClient},
    },
};
use serde_json::Value;

#[test]
fn the_vectors_are_what_this_build_makes() {
    for (name, text) in common::files() {
        let there = fs::read_to_string(folder().join(&name)).unwrap_or_default();
        let same = there == text;
        assert!(same, "{name} differs: `cargo xtask vectors` writes it anew, if it may change");
    }
}

#[test]
fn every_kind_between_a_client_and_the_cluster_has_a_vector() {
    let there: BTreeSet<u8> = frames().iter().map(|vector| bytes(&vector["frame"])[0]).collect();
    let missing: Vec<String> = (0..=u8::MAX)
        .filter(|kind| is_known(*kind) && !there.contains(kind))
        .map(|kind| format!("{kind:#04x}"))
        .collect();
    assert!(missing.is_empty(), "without a vector: {missing:?}");
    assert!(there.iter().all(|kind| is_known(*kind)));
}

/// Whether version 1 has this kind between a client and the cluster.
fn is_known(kind: u8) -> bool {
    macro_rules! is_kind_of {
        ($direction:ident) => {
            !matches!($direction::decode(kind, &[0x80], Limits::SERVER), Ok($direction::Unknown(_)))
        };
    }
    is_kind_of!(ClientToSession)
        || is_kind_of!(SessionToClient)
        || is_kind_of!(Request)
        || is_kind_of!(Reply)
        || WITHOUT_ENUM.contains(&kind)
}

/// Kinds whose payload is not one of the protocol's structs.
const WITHOUT_ENUM: &[u8] = &[
    session::PING,
    session::PONG,
    session::SERVER_PING,
    session::SERVER_PONG,
    session::TRACE,
    instance::MESSAGE,
    instance::CALL,
    instance::QUERY,
    instance::ACK,
    instance::NEED_SNAPSHOT,
    instance::EVENT,
    instance::REPLY,
    instance::REPLY_REFUSED,
    instance::QUERY_REPLY,
    instance::QUERY_REFUSED,
    instance::DOWN_ACK,
    instance::SEAT_ENDED,
    instance::SEND_AGAIN,
    instance::PATCH,
    instance::SNAPSHOT_PIECE,
];

#[test]
fn every_frame_survives_being_read_and_written() {
    for vector in frames() {
        let frame = bytes(&vector["frame"]);
        assert_eq!(reread(&frame, &vector["header"]), frame, "{vector}");
        assert_eq!(Value::from(frame[0]), vector["kind"], "{vector}");
        let sender = if frame[0] < 0x80 { "client" } else { "server" };
        assert_eq!(vector["from"], sender, "{vector}");
        assert!(frame.ends_with(&bytes(&vector["payload"])), "{vector}");
    }
}

/// What our types make of a frame and write again; `header` is compared on the way.
fn reread(frame: &[u8], header: &Value) -> Vec<u8> {
    let kind = frame[0];
    let is = |field: &str, value: u32| assert_eq!(header[field], value, "{field} of {kind:#04x}");
    let mut out;
    match kind {
        session::PING | session::PONG | session::SERVER_PING | session::SERVER_PONG => {
            assert_eq!(frame.len(), 9);
            out = frame.to_vec();
        }
        session::TRACE => {
            let context = TraceContext::from_bytes(&frame[1..]).unwrap();
            out = [&[kind][..], &context.bytes()].concat();
        }
        0x01..=0x0f => {
            out = vec![kind];
            let message = ClientToSession::decode(kind, &frame[1..], Limits::CLIENT).unwrap();
            message.encode_into(&mut out);
        }
        0x81..=0x8f => {
            out = vec![kind];
            let message = SessionToClient::decode(kind, &frame[1..], Limits::SERVER).unwrap();
            message.encode_into(&mut out);
        }
        kind if session::REQUESTS.contains(&kind) => {
            let (head, payload) = RequestHeader::split(frame).unwrap();
            is("id", head.id.0);
            is("answered", head.answered.0);
            out = head.bytes().to_vec();
            Request::decode(kind, payload, Limits::CLIENT).unwrap().encode_into(&mut out);
        }
        kind if session::REPLIES.contains(&kind) => {
            let (head, payload) = ReplyHeader::split(frame).unwrap();
            is("id", head.id.0);
            out = head.bytes().to_vec();
            Reply::decode(kind, payload, Limits::SERVER).unwrap().encode_into(&mut out);
        }
        kind if instance::UP.contains(&kind) => {
            let (head, payload) = UpHeader::split(frame).unwrap();
            is("channel", head.channel.0);
            is("number", head.number.0);
            is("ack", head.ack.0);
            out = head.bytes().to_vec();
            if kind == instance::NEED_SNAPSHOT {
                let need: instance::NeedSnapshot =
                    greenroom_protocol::decode(payload, Limits::CLIENT).unwrap();
                encode_into(&need, &mut out);
            } else {
                out.extend_from_slice(payload);
            }
        }
        kind if instance::DOWN.contains(&kind) => {
            let (head, payload) = DownHeader::split(frame).unwrap();
            is("channel", head.channel.0);
            is("number", head.number.0);
            is("ack", head.ack.0);
            is("tick", head.tick);
            if let Some(call) = header.get("call") {
                assert_eq!(*call, u32::from_le_bytes(*payload.first_chunk().unwrap()));
            }
            out = [&head.bytes()[..], payload].concat();
        }
        instance::PATCH => {
            let (head, payload) = PatchHeader::split(frame).unwrap();
            is("view", head.view.0.into());
            is("tick", head.tick);
            is("base", head.base);
            is("version", head.version);
            out = [&head.bytes()[..], payload].concat();
        }
        instance::SNAPSHOT_PIECE => {
            let (head, payload) = PieceHeader::split(frame).unwrap();
            is("view", head.view.0.into());
            is("tick", head.tick);
            is("offset", head.offset);
            is("version", head.version);
            is("total", head.total);
            out = [&head.bytes()[..], payload].concat();
        }
        _ => panic!("a kind that has no vector: {kind:#04x}"),
    }
    if header.get("channel").is_some() {
        is("channel", InstanceFrame::channel(frame).unwrap().0);
    }
    out
}

#[test]
fn kinds_of_a_newer_version_are_unknown_and_no_error() {
    let limits = Limits::SERVER;
    assert_eq!(
        SessionToClient::decode(0x8e, b"\xff\xff", limits),
        Ok(SessionToClient::Unknown(0x8e))
    );
    assert_eq!(ClientToSession::decode(0x0e, &[], limits), Ok(ClientToSession::Unknown(0x0e)));
    assert_eq!(Request::decode(0x1e, &[0xc1], limits), Ok(Request::Unknown(0x1e)));
    assert_eq!(Reply::decode(0x9e, &[], limits), Ok(Reply::Unknown(0x9e)));
}

#[test]
fn every_recorded_conversation_leads_a_client_where_it_says() {
    for name in conversations() {
        replay::replay(&json(&format!("conversations/{name}")), &name);
    }
}

#[test]
fn the_specification_has_every_refusal_with_its_meaning() {
    let text = specification();
    for code in Code::ALL {
        let line = format!("| `{code}` | {} |", code.meaning());
        assert!(text.contains(&line), "PROTOCOL.md has no line {line:?}");
    }
}

#[test]
fn the_specification_has_every_kind_and_every_field() {
    let text = specification();
    for vector in frames() {
        let kind = format!("`{:#04x}`", bytes(&vector["frame"])[0]);
        assert!(text.contains(&kind), "PROTOCOL.md does not have {kind}: {vector}");
        let is_ours = !matches!(bytes(&vector["frame"])[0], 0x20..=0x22 | 0xa0 | 0xa1 | 0xa3);
        let mut names = BTreeSet::new();
        if is_ours {
            field_names(&vector["fields"], &mut names);
        }
        for name in names {
            assert!(text.contains(&format!("`{name}`")), "PROTOCOL.md has no field `{name}`");
        }
    }
}

/// The names of a message's fields and of what is in them, less those that a game has chosen.
fn field_names(fields: &Value, names: &mut BTreeSet<String>) {
    match fields {
        Value::Object(fields) => {
            for (name, field) in fields.iter().filter(|(name, _)| *name != "$bin") {
                names.insert(name.clone());
                if name != "meta" {
                    field_names(field, names);
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| field_names(value, names)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// The example of the specification is copied from the recorded conversations; a copy must not grow old.
#[test]
fn the_bytes_in_the_specification_are_the_recorded_ones() {
    let recorded: BTreeSet<String> = conversations()
        .iter()
        .flat_map(|name| steps(&json(&format!("conversations/{name}"))))
        .filter_map(|step| Some(step.get("hex")?.as_str()?.to_owned()))
        .collect();
    let text = specification();
    // A line `C <hex>` or `S <hex>`, and lines indented by two that go on with it.
    let (mut shown, mut in_frame) = (Vec::<String>::new(), false);
    for line in text.lines() {
        let digits = |line: &str| line.chars().filter(char::is_ascii_hexdigit).collect::<String>();
        match line.split_at_checked(2) {
            Some(("C " | "S ", hex)) => {
                shown.push(digits(hex));
                in_frame = true;
            }
            Some(("  ", hex)) if in_frame => shown.last_mut().unwrap().push_str(&digits(hex)),
            _ => in_frame = false,
        }
    }
    assert!(shown.len() >= 8, "the example has {} frames", shown.len());
    for frame in shown {
        assert!(
            recorded.contains(&frame),
            "PROTOCOL.md shows a frame that is not recorded: {frame}"
        );
    }
}

#[test]
fn the_delta_in_the_specification_makes_what_it_says() {
    assert!(specification().contains("\nB␊6@0,5:therexz4NK; "));
    let mut target = Vec::new();
    greenroom_delta::apply(b"hello world", b"B\n6@0,5:therexz4NK;", 11, &mut target).unwrap();
    assert_eq!(target, b"hello there");
}

fn frames() -> Vec<Value> {
    let frames = json("frames.json")["frames"].as_array().unwrap().clone();
    assert!(!frames.is_empty());
    frames
}

fn conversations() -> Vec<String> {
    let files = fs::read_dir(folder().join("conversations")).unwrap();
    let mut names: Vec<String> =
        files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert!(!names.is_empty());
    names
}

fn steps(conversation: &Value) -> Vec<Value> {
    conversation["steps"].as_array().unwrap().clone()
}

fn json(name: &str) -> Value {
    let text = fs::read_to_string(folder().join(name)).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn folder() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "vectors", "v1"].iter().collect()
}

fn specification() -> String {
    fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../PROTOCOL.md")).unwrap()
}

/// The bytes of a text of hexadecimal digits.
fn bytes(digits: &Value) -> Vec<u8> {
    let digits = digits.as_str().unwrap();
    assert!(digits.len().is_multiple_of(2), "{digits} ends in half a byte");
    (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap())
        .collect()
}
