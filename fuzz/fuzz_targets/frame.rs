//! Frames in a client's byte stream, and what they say: the decoders of both framings, every fixed header, and every
//! message of every direction.
//!
//! The first byte says which framing and how long a frame may be, the second how many bytes come at once.
#![no_main]

use greenroom_link::framing::{Fragments, Framing, FramingError, HEADROOM, Item};
use greenroom_protocol::{
    CLIENT_FRAME_BYTES_MAX, DecodeError, DownHeader, HELLO_BYTES_MAX, InstanceFrame, Limits,
    LinkHeader, PatchHeader, PieceHeader, ReplyHeader, RequestHeader, StampedHeader, UpHeader,
    decode, encode,
    wire::{
        client_instance::NeedSnapshot,
        client_session::{ClientToSession, Reply, Request, SessionToClient},
        master_game::{GameToMaster, MasterToGame},
        server_server::{Dialler, Listener},
        session_game::{GameToSession, SessionToGame},
        session_master::{MasterToSession, SessionToMaster},
    },
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((&[choice, piece], stream)) = input.split_first_chunk() else { return };
    let framing = if choice & 1 == 0 { Framing::LengthPrefixed } else { Framing::WebSocket };
    let frame_max =
        [16, 200, HELLO_BYTES_MAX, CLIENT_FRAME_BYTES_MAX][usize::from(choice >> 1 & 3)];
    let (frames, ended) = read(framing, stream, stream.len(), frame_max);
    if piece > 0 {
        let again = read(framing, stream, usize::from(piece), frame_max);
        assert_eq!(again, (frames.clone(), ended), "the cutting of the stream shows");
    }
    for frame in &frames {
        assert!((1..=frame_max).contains(&frame.len()));
        decode_everything(frame);
        round_trip(frame);
    }
    if !stream.is_empty() {
        decode_everything(stream);
    }
});

/// Reads a stream that comes in pieces, as a connection does: its frames, and how it ended.
fn read(
    framing: Framing,
    stream: &[u8],
    piece: usize,
    frame_max: usize,
) -> (Vec<Vec<u8>>, Option<FramingError>) {
    let (mut frames, mut rest, mut fragments) = (Vec::new(), Vec::new(), Fragments::default());
    for piece in stream.chunks(piece.max(1)) {
        rest.extend_from_slice(piece);
        let mut at = 0;
        loop {
            let before = at;
            match framing.next(&mut rest, &mut at, frame_max, &mut fragments) {
                Ok(Some(Item::Frame(range))) => frames.push(rest[range].to_vec()),
                Ok(Some(Item::Assembled(frame))) => frames.push(frame),
                Ok(Some(Item::Ping(range))) => assert!(range.len() <= 125),
                Ok(Some(Item::Close | Item::Nothing)) => {}
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
            assert!(before < at && at <= rest.len(), "every item has bytes");
        }
        rest.drain(..at);
    }
    (frames, None)
}

/// What a server writes is a frame for the one who reads a length before it.
fn round_trip(frame: &[u8]) {
    let mut room = [0; HEADROOM];
    let header = Framing::LengthPrefixed.put_header(frame.len(), &mut room);
    let mut stream = [&room[HEADROOM - header..], frame].concat();
    let mut fragments = Fragments::default();
    let mut at = 0;
    let item = Framing::LengthPrefixed.next(&mut stream, &mut at, frame.len(), &mut fragments);
    assert_eq!(item, Ok(Some(Item::Frame(4..4 + frame.len()))));
}

/// Reads a frame as each header and as each message; what can be read survives being written.
fn decode_everything(frame: &[u8]) {
    macro_rules! header { ($($header:ident)*) => { $(
        match $header::split(frame) {
            Ok((header, payload)) => {
                assert_eq!([&header.bytes()[..], payload].concat(), frame);
            }
            Err(DecodeError::ShortHeader { header, len, .. }) => assert!(len < header),
            Err(error) => panic!("{error}"),
        }
    )* } }
    header!(RequestHeader ReplyHeader UpHeader DownHeader PatchHeader PieceHeader StampedHeader);
    assert_eq!(InstanceFrame::channel(frame).is_ok(), frame.len() >= 5);
    assert_eq!(LinkHeader::split(frame).is_ok(), frame.len() >= 6);

    let payloads = [1, RequestHeader::BYTES, ReplyHeader::BYTES, UpHeader::BYTES, 16, 6];
    for payload in payloads.into_iter().filter_map(|at| frame.get(at..)) {
        macro_rules! message { ($($direction:ident $limits:ident)*) => { $(
            if let Ok(message) = $direction::decode(frame[0], payload, Limits::$limits) {
                let mut again = Vec::new();
                message.encode_into(&mut again);
                assert_eq!($direction::decode(frame[0], &again, Limits::SERVER), Ok(message));
            }
        )* } }
        message!(
            ClientToSession CLIENT SessionToClient SERVER Request CLIENT Reply SERVER
            Dialler CLIENT Listener CLIENT
            SessionToMaster SERVER MasterToSession SERVER
            SessionToGame SERVER GameToSession SERVER
            GameToMaster SERVER MasterToGame SERVER
        );
        if let Ok(need) = decode::<NeedSnapshot>(payload, Limits::CLIENT) {
            assert_eq!(decode(&encode(&need), Limits::SERVER), Ok(need));
        }
    }
}
