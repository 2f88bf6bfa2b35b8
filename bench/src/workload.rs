//! What the clients do in each workload, toward the bare servers and toward Greenroom.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail, ensure};
use greenroom_protocol::search::Filter;
use greenroom_protocol::wire::client_instance::{
    CALL, DOWN, DOWN_ACK, EVENT, LATEST, MESSAGE, NEED_SNAPSHOT, NeedSnapshot, PATCH, REPLY,
    REPLY_REFUSED, SEAT_ENDED, SEND_AGAIN, SNAPSHOT_PIECE,
};
use greenroom_protocol::wire::client_session::{
    CheckIn, ClientHello, ClientToSession, Credentials, JoinOrCreate, Joined, PONG, REPLIES, Reply,
    Request, SERVER_PING, SERVER_PONG, SessionToClient,
};
use greenroom_protocol::{
    Channel, DownHeader, Key, KindName, Limits, PROTOCOL_MAX, PROTOCOL_MIN, PatchHeader,
    PieceHeader, ReplyHeader, RequestHeader, RequestId, Seq, SessionKey, UpHeader, VIEW_BYTES_MAX,
    ViewId, encode,
};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::fleet::{Peer, Script, Stage};
use crate::wire::{Outbox, Random};

/// Players of a room, and connections of an echo's instance.
pub(crate) const PLAYERS_OF_A_ROOM: usize = 16;
/// Between two ticks of a room.
pub(crate) const TICK: Duration = Duration::from_millis(50);
/// Bytes of a request and of its answer.
const REQUEST_BYTES: usize = 32;
/// Patches of a room that are kept to compare what its other clients get.
const RECENT_MAX: usize = 64;
/// Latencies are counted from 1 µs to a minute, to three digits.
const LATENCY_MICROS_MAX: u64 = 60_000_000;

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Subject {
    /// One process, one hop, nothing but the sockets.
    Bare,
    /// Master, session server and game server, a process each.
    Greenroom,
}

/// Wall clock in milliseconds since 1970, which the servers on this machine share with us.
pub(crate) fn wall_ms() -> f64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    now.as_secs_f64() * 1000.0
}

/// What must be zero, and what should be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Integrity {
    /// Messages and patches that never came.
    pub(crate) lost: u64,
    /// Those that came twice.
    pub(crate) doubled: u64,
    /// Those that came after a later one.
    pub(crate) out_of_order: u64,
    /// Patches that are not the same bytes for all clients of a room, or don't fit their base.
    pub(crate) mismatched: u64,
    /// Snapshots in place of patches, for a client that was too slow. Nothing is lost by them.
    pub(crate) resyncs: u64,
}

/// Latencies of one window.
#[derive(Debug)]
pub(crate) struct Latencies(Histogram<u32>);

impl Latencies {
    pub(crate) fn new() -> Self {
        let histogram = Histogram::new_with_bounds(1, LATENCY_MICROS_MAX, 3);
        Self(histogram.expect("the bounds are in order and three digits are allowed"))
    }

    pub(crate) fn record(&mut self, micros: u64) {
        self.0.saturating_record(micros);
    }

    pub(crate) fn reset(&mut self) {
        self.0.reset();
    }

    pub(crate) fn len(&self) -> u64 {
        self.0.len()
    }

    /// Microseconds below which `share` of them lie.
    pub(crate) fn quantile(&self, share: f64) -> u64 {
        self.0.value_at_quantile(share)
    }
}

/// The way in: nothing for a bare server; for Greenroom hello, check-in and a seat if one is wanted.
#[derive(Debug)]
pub(crate) struct Entrance {
    subject: Subject,
    /// Which kind the clients take seats in, 16 to an instance; none for those that stay idle.
    kind: Option<KindName>,
    /// Begins the names of the users and the keys of their instances.
    prefix: &'static str,
}

impl Entrance {
    /// # Errors
    /// When `kind` can't be a kind's name.
    pub(crate) fn new(subject: Subject, kind: Option<&str>) -> anyhow::Result<Self> {
        Ok(Self { subject, kind: kind.map(KindName::new).transpose()?, prefix: "bench" })
    }

    /// With another prefix: for somebody who only looks whether the way in is open.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub(crate) fn named(
        subject: Subject,
        kind: Option<&str>,
        prefix: &'static str,
    ) -> anyhow::Result<Self> {
        Ok(Self { prefix, ..Self::new(subject, kind)? })
    }

    pub(crate) fn connected(&self, peer: &mut Peer, out: &mut Outbox) {
        match self.subject {
            Subject::Bare => peer.stage = Stage::Ready,
            Subject::Greenroom => say(
                out,
                &ClientHello {
                    protocol_min: PROTOCOL_MIN,
                    protocol_max: PROTOCOL_MAX,
                    features: Vec::new(),
                    agent: concat!("greenroom-bench ", env!("CARGO_PKG_VERSION")).into(),
                }
                .into(),
            ),
        }
    }

    fn check_in(&self, index: usize) -> anyhow::Result<CheckIn> {
        let mut session_key = [0; 16];
        getrandom::fill(&mut session_key).context("drawing a session key")?;
        Ok(CheckIn {
            session_key: SessionKey(session_key),
            credentials: Credentials {
                scheme: "guest".into(),
                token: format!("greenroom-{}-{index:08}", self.prefix),
                name: format!("{} {index}", self.prefix).into(),
            },
        })
    }

    /// Handles what is not of the instance.
    pub(crate) fn frame(
        &self,
        peer: &mut Peer,
        frame: &[u8],
        out: &mut Outbox,
    ) -> anyhow::Result<()> {
        let (&kind, payload) = frame.split_first().context("an empty frame")?;
        if kind == SERVER_PING {
            out.frame(&[&[PONG], payload]);
        } else if kind == SERVER_PONG {
        } else if REPLIES.contains(&kind) {
            let (_, body) = ReplyHeader::split(frame)?;
            match Reply::decode(kind, body, Limits::SERVER)? {
                Reply::Joined(joined) => {
                    seated(peer, &joined);
                    peer.stage = Stage::Ready;
                }
                Reply::Refused(refusal) => bail!("client {}: no seat: {refusal}", peer.index),
                other @ (Reply::Created(_)
                | Reply::Left(_)
                | Reply::Destroyed(_)
                | Reply::Found(_)
                | Reply::Watching(_)
                | Reply::Unwatched(_)
                | Reply::Ranking(_)
                | Reply::Changes(_)
                | Reply::Unknown(_)) => {
                    bail!("client {} asked for a seat and got {other:?}", peer.index)
                }
            }
        } else {
            match SessionToClient::decode(kind, payload, Limits::SERVER)? {
                SessionToClient::Hello(_) => say(out, &self.check_in(peer.index)?.into()),
                SessionToClient::CheckedIn(_) => match &self.kind {
                    None => peer.stage = Stage::Ready,
                    Some(kind) => {
                        let room = peer.index / PLAYERS_OF_A_ROOM;
                        ask(
                            out,
                            RequestId(1),
                            &Request::JoinOrCreate(JoinOrCreate {
                                kind: kind.clone(),
                                key: Some(Key::new(format!("{}-{room}", self.prefix))?),
                                filter: Filter::default(),
                                params: Vec::new().into(),
                                private: false,
                                expected: Vec::new(),
                                options: Vec::new().into(),
                            }),
                        );
                    }
                },
                SessionToClient::Closing(refusal) => peer.farewell = Some(refusal.to_string()),
                SessionToClient::Rejoined(joined) => seated(peer, &joined),
                SessionToClient::GoAway(_) | SessionToClient::SessionServers(_) => {}
                SessionToClient::Unknown(kind) => bail!("a frame of the unknown kind {kind:#04x}"),
            }
        }
        Ok(())
    }
}

fn say(out: &mut Outbox, message: &ClientToSession) {
    let mut payload = Vec::new();
    message.encode_into(&mut payload);
    out.frame(&[&[message.kind()], &payload]);
}

/// A request of a client that has every answer to those before.
pub(crate) fn ask(out: &mut Outbox, id: RequestId, request: &Request) {
    let answered = RequestId(id.0.saturating_sub(1));
    let header = RequestHeader { kind: request.kind(), id, answered }.bytes();
    let mut payload = Vec::new();
    request.encode_into(&mut payload);
    out.frame(&[&header, &payload]);
}

/// A client has a seat.
pub(crate) fn seated(peer: &mut Peer, joined: &Joined) {
    peer.channel = joined.channel;
    peer.sent = Seq(joined.up_received);
    peer.acknowledged = peer.sent;
    peer.received = Seq(joined.down_next.wrapping_sub(1));
}

/// A reliable message to the client's instance.
pub(crate) fn up(peer: &mut Peer, kind: u8, payload: &[u8], out: &mut Outbox) {
    peer.sent = peer.sent.next();
    let header =
        UpHeader { kind, channel: peer.channel, number: peer.sent, ack: peer.received }.bytes();
    out.frame(&[&header, payload]);
}

/// Takes a frame to one client: checks its number, remembers what it acknowledges. Gives what a message says.
pub(crate) fn down<'a>(
    peer: &mut Peer,
    integrity: &mut Integrity,
    frame: &'a [u8],
) -> anyhow::Result<(DownHeader, &'a [u8])> {
    let (header, payload) = DownHeader::split(frame)?;
    if header.ack > peer.acknowledged {
        peer.acknowledged = header.ack;
    }
    match header.kind {
        EVENT | REPLY | REPLY_REFUSED => {
            let next = peer.received.next();
            match header.number {
                number if number == next => peer.received = next,
                number if number == peer.received => integrity.doubled += 1,
                number if number < peer.received => integrity.out_of_order += 1,
                number => {
                    integrity.lost += u64::from(number.0 - next.0);
                    peer.received = number;
                }
            }
            if header.kind == REPLY_REFUSED {
                bail!("client {}: a message is refused: {}", peer.index, refusal(&payload[4..]));
            }
        }
        SEND_AGAIN => integrity.lost += 1,
        SEAT_ENDED => peer.farewell = Some(refusal(payload)),
        DOWN_ACK => {}
        kind => bail!("an unexpected frame of kind {kind:#04x}"),
    }
    Ok((header, payload))
}

fn refusal(payload: &[u8]) -> String {
    match greenroom_protocol::decode::<greenroom_protocol::Refusal>(payload, Limits::SERVER) {
        Ok(refusal) => refusal.to_string(),
        Err(error) => format!("no refusal: {error}"),
    }
}

/// W3: clients that have checked in and say nothing.
#[derive(Debug)]
pub(crate) struct Idle(pub(crate) Entrance);

impl Script for Idle {
    fn connected(&mut self, peer: &mut Peer, out: &mut Outbox) {
        self.0.connected(peer, out);
    }

    fn frame(&mut self, peer: &mut Peer, frame: &[u8], out: &mut Outbox) -> anyhow::Result<()> {
        match frame[0] {
            // What its instance says, if it has a seat, is nothing to it.
            kind if DOWN.contains(&kind) || LATEST.contains(&kind) => Ok(()),
            _ => self.0.frame(peer, frame, out),
        }
    }
}

/// W1: each client asks, waits for the answer, asks again.
#[derive(Debug)]
pub(crate) struct Echo {
    pub(crate) entrance: Entrance,
    pub(crate) latencies: Latencies,
    pub(crate) integrity: Integrity,
    /// Requests that clients ask before they fall silent.
    pub(crate) left: u64,
}

impl Echo {
    /// The next request of a client, if there is to be one.
    pub(crate) fn ask(&mut self, peer: &mut Peer, out: &mut Outbox) {
        if self.left == 0 {
            return;
        }
        self.left -= 1;
        peer.asked = Instant::now();
        match self.entrance.subject {
            Subject::Bare => {
                peer.sent = peer.sent.next();
                out.frame(&[&request(peer.sent)]);
            }
            Subject::Greenroom => {
                let payload = request(peer.sent.next());
                up(peer, CALL, &payload, out);
            }
        }
    }

    fn answered(&mut self, peer: &mut Peer, answer: &[u8], out: &mut Outbox) -> anyhow::Result<()> {
        ensure!(
            answer == request(peer.sent),
            "client {} got another answer than it asked for: {:?}",
            peer.index,
            String::from_utf8_lossy(answer)
        );
        self.latencies.record(peer.asked.elapsed().as_micros().try_into().unwrap_or(u64::MAX));
        self.ask(peer, out);
        Ok(())
    }
}

/// 32 ASCII bytes that are another text for each number.
fn request(number: Seq) -> [u8; REQUEST_BYTES] {
    let mut payload = *b"00000000 the payload of a call..";
    for (place, byte) in payload[..8].iter_mut().enumerate() {
        *byte = b'a' + u8::try_from(number.0 >> (28 - 4 * place) & 0xf).unwrap_or(0);
    }
    payload
}

impl Script for Echo {
    fn connected(&mut self, peer: &mut Peer, out: &mut Outbox) {
        self.entrance.connected(peer, out);
    }

    fn frame(&mut self, peer: &mut Peer, frame: &[u8], out: &mut Outbox) -> anyhow::Result<()> {
        if self.entrance.subject == Subject::Bare {
            return self.answered(peer, frame, out);
        }
        if LATEST.contains(&frame[0]) {
            return Ok(()); // An echo's view is empty; each client gets it once.
        }
        if !DOWN.contains(&frame[0]) {
            return self.entrance.frame(peer, frame, out);
        }
        let (header, payload) = down(peer, &mut self.integrity, frame)?;
        if header.kind == REPLY {
            let (call, answer) = payload.split_first_chunk::<4>().context("a reply's number")?;
            ensure!(u32::from_le_bytes(*call) == peer.sent.0, "a reply to another call");
            self.answered(peer, answer, out)?;
        }
        Ok(())
    }
}

/// W2: rooms of 16 at 20 Hz.
#[derive(Debug)]
pub(crate) struct Rooms {
    pub(crate) entrance: Entrance,
    pub(crate) latencies: Latencies,
    pub(crate) integrity: Integrity,
    rooms: HashMap<Channel, Room>,
    /// Pieces of snapshots that are not whole, by client.
    pieces: HashMap<usize, Vec<u8>>,
    inputs: Random,
}

/// What is known of an instance, from all its clients together.
#[derive(Debug, Default)]
struct Room {
    version: u32,
    view: Vec<u8>,
    spare: Vec<u8>,
    recent: VecDeque<Recent>,
}

#[derive(Debug)]
struct Recent {
    version: u32,
    t: f64,
    delta: Vec<u8>,
}

/// The part of the view that is looked at.
#[derive(Debug, Deserialize)]
struct View {
    t: f64,
}

/// What a player asks for.
#[derive(Debug, Serialize)]
struct Input {
    dx: f32,
    dy: f32,
}

impl Rooms {
    pub(crate) fn new(entrance: Entrance) -> Self {
        Self {
            entrance,
            latencies: Latencies::new(),
            integrity: Integrity::default(),
            rooms: HashMap::new(),
            pieces: HashMap::new(),
            inputs: Random::new(7),
        }
    }

    /// One input of a client.
    pub(crate) fn play(&mut self, peer: &mut Peer, out: &mut Outbox) {
        let draw = self.inputs.next();
        // Multiples of 1/4 from -4 to 4.
        let step = |bits: u64| f32::from(i8::try_from(bits % 33).unwrap_or(0) - 16) / 4.0;
        let (dx, dy) = (step(draw), step(draw >> 16));
        match self.entrance.subject {
            Subject::Bare => out.frame(&[&dx.to_le_bytes(), &dy.to_le_bytes()]),
            Subject::Greenroom => up(peer, MESSAGE, &encode(&Input { dx, dy }), out),
        }
    }

    fn bare_patch(&mut self, frame: &[u8]) -> anyhow::Result<()> {
        let (t, rest) = frame.split_first_chunk::<8>().context("a patch without time")?;
        let (&count, mut rest) = rest.split_first().context("a patch without players")?;
        for _ in 0..count {
            let &[_, mask, ..] = rest else { bail!("a patch that ends early") };
            rest = rest.get(10 + usize::from(mask >> 1)..).context("a patch that ends early")?;
        }
        ensure!(rest.is_empty(), "a patch with something behind it");
        self.ticked(f64::from_le_bytes(*t));
        Ok(())
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "not negative; the cast saturates"
    )]
    fn ticked(&mut self, t: f64) {
        self.latencies.record(((wall_ms() - t).max(0.0) * 1000.0) as u64);
    }

    fn patch(&mut self, peer: &mut Peer, frame: &[u8], out: &mut Outbox) -> anyhow::Result<()> {
        let (header, delta) = PatchHeader::split(frame)?;
        if header.view != ViewId::SHARED {
            return Ok(());
        }
        // Before its snapshot a client can do nothing with a patch.
        let Some(version) = peer.version else { return Ok(()) };
        if header.base != version {
            match header.version {
                same if same == version => self.integrity.doubled += 1,
                earlier if earlier < version => self.integrity.out_of_order += 1,
                _ => {
                    self.integrity.lost += 1;
                    peer.version = None;
                    need_snapshot(peer, version, out);
                }
            }
            return Ok(());
        }
        peer.version = Some(header.version);
        let room = self.rooms.entry(header.channel).or_default();
        match room.take(&header, delta) {
            Ok(t) => self.ticked(t),
            Err(Unfit) => self.integrity.mismatched += 1,
        }
        Ok(())
    }

    fn piece(&mut self, peer: &mut Peer, frame: &[u8]) -> anyhow::Result<()> {
        let (header, piece) = PieceHeader::split(frame)?;
        if header.view != ViewId::SHARED {
            return Ok(());
        }
        let pieces = self.pieces.entry(peer.index).or_default();
        if header.offset == 0 {
            pieces.clear();
        }
        ensure!(pieces.len() == header.offset as usize, "pieces of a snapshot are out of order");
        pieces.extend_from_slice(piece);
        if pieces.len() < header.total as usize {
            return Ok(());
        }
        let view = self.pieces.remove(&peer.index).unwrap_or_default();
        if peer.version.replace(header.version).is_some() {
            self.integrity.resyncs += 1;
        }
        let room = self.rooms.entry(header.channel).or_default();
        if room.view.is_empty() || header.version > room.version {
            (room.version, room.view) = (header.version, view);
        } else if header.version == room.version && view != room.view {
            self.integrity.mismatched += 1;
        }
        Ok(())
    }
}

/// A patch that is not what it should be.
struct Unfit;

impl Room {
    /// The first client of a room to get a patch applies it; the others compare bytes. Gives the view's time.
    fn take(&mut self, header: &PatchHeader, delta: &[u8]) -> Result<f64, Unfit> {
        if header.base == self.version && header.version > self.version {
            greenroom_delta::apply(&self.view, delta, VIEW_BYTES_MAX, &mut self.spare)
                .map_err(|_| Unfit)?;
            std::mem::swap(&mut self.view, &mut self.spare);
            self.version = header.version;
            let view: View =
                greenroom_protocol::decode(&self.view, Limits::SERVER).map_err(|_| Unfit)?;
            let mut recent = match self.recent.len() {
                RECENT_MAX => self.recent.pop_front(),
                _ => None,
            }
            .unwrap_or(Recent { version: 0, t: 0.0, delta: Vec::new() });
            (recent.version, recent.t) = (header.version, view.t);
            recent.delta.clear();
            recent.delta.extend_from_slice(delta);
            self.recent.push_back(recent);
            return Ok(view.t);
        }
        let recent = self.recent.iter().rev().find(|recent| recent.version == header.version);
        recent.filter(|recent| recent.delta == delta).map(|recent| recent.t).ok_or(Unfit)
    }
}

fn need_snapshot(peer: &Peer, version: u32, out: &mut Outbox) {
    let header =
        UpHeader { kind: NEED_SNAPSHOT, channel: peer.channel, number: Seq(0), ack: peer.received };
    let reason = "a patch is missing".into();
    let payload = encode(&NeedSnapshot { view: ViewId::SHARED.0, version, reason });
    out.frame(&[&header.bytes(), &payload]);
}

impl Script for Rooms {
    fn connected(&mut self, peer: &mut Peer, out: &mut Outbox) {
        self.entrance.connected(peer, out);
    }

    fn frame(&mut self, peer: &mut Peer, frame: &[u8], out: &mut Outbox) -> anyhow::Result<()> {
        if self.entrance.subject == Subject::Bare {
            return self.bare_patch(frame);
        }
        match frame[0] {
            PATCH => self.patch(peer, frame, out),
            SNAPSHOT_PIECE => self.piece(peer, frame),
            kind if LATEST.contains(&kind) => Ok(()),
            kind if DOWN.contains(&kind) => down(peer, &mut self.integrity, frame).map(drop),
            _ => self.entrance.frame(peer, frame, out),
        }
    }
}
