//! The link to the other master: dialled by side `a`, taken by side `b`, and what travels on it.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use greenroom_link::{Frame, Incoming, Link, LinkError, Me, Outgoing, dial};
use greenroom_master_core::Record;
use greenroom_master_core::replica::{self as pair, BadEntry, Entry, Logged, Message};
use greenroom_protocol::wire::Opaque;
use greenroom_protocol::wire::master_standby::{
    Ack, Append, Fenced, Forward, Handover, Join, MasterToMaster, Pairing, Slice, SliceAck, Stamp,
};
use greenroom_protocol::wire::master_witness::Side;
use greenroom_protocol::wire::server_server::{Identity, Role};
use greenroom_protocol::{
    Code, DecodeError, Incarnation, Limits, LinkHeader, Refusal, TraceContext, decode, encode,
};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::inbox::Inbox;

/// What one master says to the other.
pub(crate) type Envelope = pair::Envelope<Logged, Record>;

/// How long a probe of the other master's address may take: what takes longer is no refusal, and its silence counts.
const PROBE_MAX: Duration = Duration::from_millis(250);
/// How long somebody who took a probe has to show that he lives by not hanging up.
const PROBE_HELD: Duration = Duration::from_millis(20);
/// Between two attempts to dial: doubles from the first to the last.
const PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(200));
/// Bytes of entries, pieces or commands in one frame, unless one of them alone is longer.
const FRAME_BYTES: usize = 1 << 20;

/// What happens on the link.
#[derive(Debug)]
pub(crate) enum FromPeer {
    /// A link is open, and the two fit.
    Linked(Identity, Outgoing),
    /// With the traces of those entries that are sampled.
    Said(Box<Envelope>, Vec<(u64, TraceContext)>),
    /// The link is lost, and somebody still listens there, or nobody knows.
    Lost(Incarnation),
    /// Nobody listens there any more, or another life does: this one is over.
    Gone(Incarnation),
    /// The two can't be a pair.
    Misfit(Refusal),
}

/// Why a frame of the other master's was not taken.
#[derive(Debug, thiserror::Error)]
enum PeerError {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error(transparent)]
    Entry(#[from] BadEntry),
    #[error("the two masters can't be a pair: {0}")]
    Misfit(Refusal),
    #[error("a message of kind {0:#04x} has no place here")]
    Unexpected(u8),
}

/// Keeps the link.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) me: Rc<Me>,
    pub(crate) pairing: Pairing,
    /// Where the other master listens; empty if there is none.
    pub(crate) address: String,
    pub(crate) inbox: Inbox<FromPeer>,
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
    /// The life of the other master that was linked last.
    pub(crate) known: Rc<Cell<Option<Incarnation>>>,
}

impl Peer {
    /// Dials the other master, and again when the link is lost, until told to stop. Only side `a` does.
    pub(crate) async fn stay_linked(self) {
        let mut pause = PAUSE.0;
        while !self.stop.is_cancelled() {
            let roles = [Role::Master];
            let dialled = dial(&self.address, &self.me, &roles);
            let Some(dialled) = self.stop.run_until_cancelled(dialled).await else { return };
            match dialled {
                Ok(link) => {
                    if self.serve(link).await {
                        pause = PAUSE.0;
                        // At once: nobody who listens there any more is the quickest proof that it is gone.
                        continue;
                    }
                }
                Err(LinkError::Dial { source, .. })
                    if source.kind() == io::ErrorKind::ConnectionRefused =>
                {
                    self.gone();
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, address = self.address, "no link to the other master");
                }
            }
            if self.stop.run_until_cancelled(time::sleep(pause)).await.is_none() {
                return;
            }
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    /// Holds a link that the other master dialled.
    pub(crate) async fn taken(&self, link: Link) {
        let _were_linked = self.serve(link).await;
        let probe = time::timeout(PROBE_MAX, is_refused(&self.address));
        if let Some(Ok(true)) = self.stop.run_until_cancelled(probe).await {
            self.gone();
        }
    }

    fn gone(&self) {
        if let Some(incarnation) = self.known.get() {
            self.say(FromPeer::Gone(incarnation));
        }
    }

    fn say(&self, what: FromPeer) {
        self.inbox.push(what);
    }

    /// Holds a link to its end. Whether the two fitted.
    async fn serve(&self, link: Link) -> bool {
        let Link { peer, mut incoming, outgoing, writer, .. } = link;
        let (name, incarnation) = (peer.name.clone(), peer.incarnation);
        self.tasks.spawn_local(async move {
            if let Err(error) = writer.run().await {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "writing to the other master ended");
            }
        });
        push(&outgoing, &self.pairing.clone().into());
        let mut unknown = Some(peer);
        let read = self.read(&mut unknown, &mut incoming, &outgoing);
        let end = self.stop.run_until_cancelled(read).await;
        outgoing.close();
        if let Some(Err(error)) = end {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, master = %name, "the link to the other master is lost");
        }
        self.say(FromPeer::Lost(incarnation));
        unknown.is_none()
    }

    async fn read(
        &self,
        unknown: &mut Option<Identity>,
        incoming: &mut Incoming,
        outgoing: &Outgoing,
    ) -> Result<(), PeerError> {
        loop {
            while let Some(Frame { header, payload }) = incoming.next_frame()? {
                let payload = &incoming.bytes()[payload];
                let message = MasterToMaster::decode(header.kind, payload, Limits::SERVER)?;
                if unknown.is_some() {
                    self.fits(&message, outgoing)?;
                }
                if let Some(identity) = unknown.take() {
                    // A later life listens there: the one before is over.
                    if self.known.get().is_some_and(|known| known != identity.incarnation) {
                        self.gone();
                    }
                    self.known.set(Some(identity.incarnation));
                    self.say(FromPeer::Linked(identity, outgoing.clone()));
                } else {
                    let traces = if let MasterToMaster::Append(append) = &message {
                        append.traces.clone()
                    } else {
                        Vec::new()
                    };
                    self.say(FromPeer::Said(Box::new(open(message)?), traces));
                }
            }
            self.inbox.room().await;
            incoming.fill().await?;
        }
    }

    /// Whether the two can be a pair, by the first word of the other.
    fn fits(&self, message: &MasterToMaster, outgoing: &Outgoing) -> Result<(), PeerError> {
        let pairing = match message {
            MasterToMaster::Pairing(pairing) => pairing,
            MasterToMaster::Refused(refusal) => {
                self.say(FromPeer::Misfit(refusal.clone()));
                return Err(PeerError::Misfit(refusal.clone()));
            }
            other @ (MasterToMaster::Append(_)
            | MasterToMaster::Ack(_)
            | MasterToMaster::Join(_)
            | MasterToMaster::Slice(_)
            | MasterToMaster::SliceAck(_)
            | MasterToMaster::Handover(_)
            | MasterToMaster::Forward(_)
            | MasterToMaster::Fenced(_)
            | MasterToMaster::Unknown(_)) => return Err(PeerError::Unexpected(other.kind())),
        };
        let name = &self.me.identity.name;
        let refusal = if pairing.side == self.pairing.side {
            let side = pairing.side;
            let text = format!(
                "both masters are side {side}: set `[master] side` of one of them to {}",
                Side::other(side)
            );
            Refusal::new(Code::WrongRole, text)
        } else if pairing.version != self.pairing.version {
            let text = format!(
                "master {name} applies commands by rules {}, the other by rules {}: run the same build on both",
                self.pairing.version, pairing.version
            );
            Refusal::new(Code::VersionMismatch, text)
        } else {
            return Ok(());
        };
        push(outgoing, &refusal.clone().into());
        self.say(FromPeer::Misfit(refusal.clone()));
        Err(PeerError::Misfit(refusal))
    }
}

/// Whether nobody listens there. A process that dies closes its links before its listening socket, which goes on to
/// take connections for a moment and hangs up: that is asked again.
async fn is_refused(address: &str) -> bool {
    let mut pause = PAUSE.0;
    loop {
        match TcpStream::connect(address).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return true,
            Err(_) => {}
            Ok(mut socket) => {
                let hung_up = time::timeout(PROBE_HELD, socket.read(&mut [0])).await;
                if hung_up.is_err() {
                    return false;
                }
            }
        }
        time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

fn push(outgoing: &Outgoing, message: &MasterToMaster) {
    let mut payload = Vec::new();
    message.encode_into(&mut payload);
    outgoing.push(LinkHeader { kind: message.kind(), target: 0 }, &[&payload]);
}

/// Sends a message, in several frames if it is long; `traces` are those of its entries that are sampled.
pub(crate) fn send(outgoing: &Outgoing, envelope: Envelope, traces: &[(u64, TraceContext)]) {
    let Envelope { from, to, at, body } = envelope;
    let stamp = Stamp { from, to, at };
    match body {
        Message::Append { mut before, entries, beat, commit, rec, check } => {
            let mut rest = &entries[..];
            loop {
                let mut bytes = Vec::new();
                let start = before;
                while let Some((entry, others)) = rest.split_first() {
                    if !bytes.is_empty() && bytes.len() + entry.encoded_len() > FRAME_BYTES {
                        break;
                    }
                    let len = u32::try_from(entry.encoded_len());
                    let len = len.expect("a command came in a frame, which is shorter than that");
                    bytes.extend_from_slice(&len.to_le_bytes());
                    entry.encode_into(&mut bytes);
                    before = entry.position();
                    rest = others;
                }
                let entries = Opaque::from(bytes);
                let here = start.lsn + 1..=before.lsn;
                let traces = traces.iter().filter(|(lsn, _)| here.contains(lsn)).copied().collect();
                let append =
                    Append { stamp, before: start, entries, beat, commit, rec, check, traces };
                push(outgoing, &append.into());
                if rest.is_empty() {
                    return;
                }
            }
        }
        Message::Ack { upto, beat, gap, ready } => {
            push(outgoing, &Ack { stamp, upto, beat, gap, ready }.into());
        }
        Message::Join { have, version, cold } => {
            push(outgoing, &Join { stamp, have, version, cold }.into());
        }
        Message::Slice { start, index, pieces } => {
            let mut index = index as u64;
            let mut parts = split(pieces.iter().map(encode));
            if parts.is_empty() {
                parts.push(Vec::new());
            }
            for pieces in parts {
                let next = index + pieces.len() as u64;
                push(outgoing, &Slice { stamp, start, index, pieces }.into());
                index = next;
            }
        }
        Message::SliceAck { start, next } => {
            push(outgoing, &SliceAck { stamp, start, next: next as u64 }.into());
        }
        Message::Handover { rec } => push(outgoing, &Handover { stamp, rec }.into()),
        Message::Forward { commands } => {
            let (seeds, commands): (Vec<u64>, Vec<Logged>) = commands.into_iter().unzip();
            let mut seeds = seeds.into_iter();
            for part in split(commands.iter().map(|command| command.bytes().to_vec())) {
                let commands = seeds.by_ref().zip(part).collect();
                push(outgoing, &Forward { stamp, commands }.into());
            }
        }
        Message::Fenced => push(outgoing, &Fenced { stamp }.into()),
    }
}

/// Values in parts of about [`FRAME_BYTES`].
fn split(values: impl Iterator<Item = Vec<u8>>) -> Vec<Vec<Opaque>> {
    let (mut parts, mut part, mut bytes) = (Vec::new(), Vec::new(), 0);
    for value in values {
        if !part.is_empty() && bytes + value.len() > FRAME_BYTES {
            parts.push(std::mem::take(&mut part));
            bytes = 0;
        }
        bytes += value.len();
        part.push(Opaque::from(value));
    }
    if !part.is_empty() {
        parts.push(part);
    }
    parts
}

/// What a frame says.
fn open(message: MasterToMaster) -> Result<Envelope, PeerError> {
    let (stamp, body) = match message {
        MasterToMaster::Append(append) => {
            let Append { stamp, before, entries, beat, commit, rec, check, traces: _ } = append;
            let entries = open_entries(entries.into_vec().into())?;
            (stamp, Message::Append { before, entries, beat, commit, rec, check })
        }
        MasterToMaster::Ack(Ack { stamp, upto, beat, gap, ready }) => {
            (stamp, Message::Ack { upto, beat, gap, ready })
        }
        MasterToMaster::Join(Join { stamp, have, version, cold }) => {
            (stamp, Message::Join { have, version, cold })
        }
        MasterToMaster::Slice(Slice { stamp, start, index, pieces }) => {
            let pieces = pieces.iter().map(|piece| decode(piece, Limits::SERVER));
            let pieces = pieces.collect::<Result<_, _>>()?;
            let index = usize::try_from(index).unwrap_or(usize::MAX);
            (stamp, Message::Slice { start, index, pieces })
        }
        MasterToMaster::SliceAck(SliceAck { stamp, start, next }) => {
            let next = usize::try_from(next).unwrap_or(usize::MAX);
            (stamp, Message::SliceAck { start, next })
        }
        MasterToMaster::Handover(Handover { stamp, rec }) => (stamp, Message::Handover { rec }),
        MasterToMaster::Forward(Forward { stamp, commands }) => {
            let commands = commands.into_iter();
            let commands = commands
                .map(|(seed, bytes)| Ok((seed, Logged::decode(bytes.into_vec().into())?)))
                .collect::<Result<_, DecodeError>>()?;
            (stamp, Message::Forward { commands })
        }
        MasterToMaster::Fenced(Fenced { stamp }) => (stamp, Message::Fenced),
        other @ (MasterToMaster::Pairing(_)
        | MasterToMaster::Refused(_)
        | MasterToMaster::Unknown(_)) => return Err(PeerError::Unexpected(other.kind())),
    };
    let Stamp { from, to, at } = stamp;
    Ok(Envelope { from, to, at, body })
}

fn open_entries(mut bytes: Bytes) -> Result<Vec<Entry<Logged>>, PeerError> {
    let mut entries = Vec::new();
    while bytes.has_remaining() {
        let short = BadEntry::Short(bytes.len());
        if bytes.len() < 4 {
            return Err(short.into());
        }
        let len = bytes.get_u32_le() as usize;
        if len > bytes.len() {
            return Err(short.into());
        }
        entries.push(Entry::decode(bytes.split_to(len))?);
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use greenroom_master_core::{Command, Header};
    use greenroom_protocol::Epoch;

    use super::*;

    fn entry(lsn: u64) -> Entry<Logged> {
        let header = Header { lsn, epoch: Epoch { era: 1, epoch: 2 }, now_ms: 3, seed: 4 };
        let command = Arc::new(Logged::new(Command::Expire));
        Entry { header, version: 1, chain: u128::from(lsn) << 90, command }
    }

    #[test]
    fn entries_survive_their_frame_and_a_torn_frame_is_refused() {
        let entries: Vec<_> = (1..=3).map(entry).collect();
        let mut bytes = Vec::new();
        for entry in &entries {
            bytes.extend_from_slice(&u32::try_from(entry.encoded_len()).unwrap().to_le_bytes());
            entry.encode_into(&mut bytes);
        }
        let whole = Bytes::from(bytes);
        assert_eq!(open_entries(whole.clone()).unwrap(), entries);
        let each = whole.len() / 3;
        for len in (0..whole.len()).filter(|len| len % each != 0) {
            assert!(open_entries(whole.slice(..len)).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn what_is_long_travels_in_parts_of_which_none_is_empty() {
        let long = || std::iter::repeat_n(vec![7; FRAME_BYTES / 3], 8);
        let parts = split(long());
        assert_eq!(parts.iter().map(Vec::len).collect::<Vec<_>>(), [3, 3, 2]);
        assert!(split(std::iter::empty()).is_empty());
        assert_eq!(split(std::iter::once(vec![0; 5 * FRAME_BYTES])).len(), 1);
    }
}
