//! One client's connection: what waits to be written to it, and how it is written.
//!
//! Frames of one batch are gathered per client and leave in one write. A frame that is alone goes straight from the
//! chunk it came in, its transport header written over the link's header; only what a socket does not take is copied
//! and kept.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    fmt, io, mem,
    ops::Range,
    rc::Rc,
    task::Waker,
    time::Instant,
};

use greenroom_link::framing::{Framing, HEADROOM, close as websocket_close};
use greenroom_protocol::{
    MemberId, Moment, PieceHeader, RequestId, SERVER_FRAME_BYTES_MAX, TraceContext,
    wire::client_instance,
};
use greenroom_session_core::ConnId;
use greenroom_telemetry::Span;
use smallvec::SmallVec;
use tokio::{net::tcp::OwnedWriteHalf, sync::Notify, task::AbortHandle};

use crate::{metrics::Metrics, round_trips::RoundTrips};

/// Frames that must not be lost and may wait for a client.
const FRAMES_MAX: usize = 256;
/// Bytes of them. One frame alone may be longer.
const BYTES_MAX: usize = 256 * 1024;
/// Frames that may wait before patches are replaced by one fresh snapshot. Snapshots do not count: patches that follow
/// one which is still on its way apply to it.
const PATCH_FRAMES_MAX: usize = 64;
/// Bytes that may wait before patches are replaced by one fresh snapshot, snapshots not counted.
const PATCH_BYTES_MAX: usize = 64 * 1024;
/// Bytes that may wait in all before snapshots are put off as well: a client gets two of the longest views at once.
const SNAPSHOT_BYTES_MAX: usize = 2 * SERVER_FRAME_BYTES_MAX;
/// What an outbox keeps when it is empty: enough for an ordinary batch, little enough for ten thousand idle clients.
const KEPT_BYTES: usize = 512;
/// Requests whose time is taken, at most: more than the core lets wait, each of which gets an answer.
const REQUESTS_MAX: usize = 16;

/// How bytes get to the client.
pub(crate) enum Sink {
    /// Straight to the socket.
    Tcp(OwnedWriteHalf),
    /// By a task of the connection's own.
    Task(Writer),
}

/// The task that writes to a stream that is no bare socket.
#[derive(Default)]
pub(crate) struct Writer {
    /// There is something to be written, or the connection is closing.
    pub(crate) ready: Notify,
    /// Ends it, however long the client takes nothing.
    pub(crate) task: Cell<Option<AbortHandle>>,
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Queued {
    /// It will be written.
    Taken,
    /// It was of a view, for a client that is too slow for it: its member needs a snapshot once there is room.
    PatchDropped,
    /// Nothing is queued for this connection any more.
    Closed,
    /// It may not be lost, and there is no room: the connection ends.
    Overflow,
}

pub(crate) struct Connection {
    pub(crate) id: ConnId,
    framing: Framing,
    sink: Sink,
    outbox: RefCell<Outbox>,
    /// A frame of the chunk that is being worked through, if it is the only one for this client.
    direct: RefCell<Option<Range<usize>>>,
    /// In the list of connections to be flushed.
    listed: Cell<bool>,
    closing: Cell<bool>,
    /// Something was lost that may not be: what an instance sends is not queued any more, so that there is never a gap.
    overflowed: Cell<bool>,
    /// Of the task that reads, to tell it that the connection is closing.
    reader: RefCell<Option<Waker>>,
    pub(crate) heard: Cell<Moment>,
    /// Since when a ping waits for its answer.
    pub(crate) pinged: Cell<Option<Moment>>,
    /// How long the way to its client and back takes.
    pub(crate) round_trips: RefCell<RoundTrips>,
    /// When it was made.
    pub(crate) since: Moment,
    /// Since when there is a part of a frame.
    pub(crate) partial: Cell<Option<Moment>>,
    /// Its requests to the directory that have no answer yet.
    requests: RefCell<Vec<Waiting>>,
    /// Of its check-in, if that is sampled; it ends with the answer.
    check_in: Cell<Option<Span>>,
}

/// A request that waits for its answer.
struct Waiting {
    id: RequestId,
    since: Instant,
    /// If it is sampled; ends when it is dropped.
    span: Option<Span>,
}

#[derive(Default)]
struct Outbox {
    bytes: Vec<u8>,
    written: usize,
    /// Of each waiting frame: its bytes on the wire, and what it is.
    frames: VecDeque<(u32, Class)>,
    kept: Count,
    patches: Count,
    /// A task waits for the socket to take more.
    draining: bool,
    /// Members whose patches were dropped, and whether their snapshot was asked for.
    stale: SmallVec<[(MemberId, bool); 1]>,
}

#[derive(Clone, Copy, Default)]
struct Count {
    frames: usize,
    bytes: usize,
}

/// What a frame is to who runs out of room.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    /// It may not be lost.
    Kept,
    /// A snapshot is as good.
    Patch,
    /// It comes again when it is asked for.
    Piece,
}

impl Class {
    fn of(kind: u8) -> Self {
        match kind {
            client_instance::SNAPSHOT_PIECE => Self::Piece,
            latest if client_instance::LATEST.contains(&latest) => Self::Patch,
            _ => Self::Kept,
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Connection({:?}, {} bytes wait)", self.id, self.waiting())
    }
}

impl Connection {
    pub(crate) fn new(id: ConnId, framing: Framing, sink: Sink, now: Moment) -> Self {
        Self {
            id,
            framing,
            sink,
            outbox: RefCell::default(),
            direct: RefCell::default(),
            listed: Cell::new(false),
            closing: Cell::new(false),
            overflowed: Cell::new(false),
            reader: RefCell::default(),
            heard: Cell::new(now),
            pinged: Cell::new(None),
            round_trips: RefCell::default(),
            since: now,
            partial: Cell::new(None),
            requests: RefCell::default(),
            check_in: Cell::default(),
        }
    }

    /// Its client checks in, and that is sampled.
    pub(crate) fn checks_in(&self, span: Span) {
        self.check_in.set(Some(span));
    }

    /// The trace of its check-in, if it is sampled and has no answer.
    pub(crate) fn check_in_trace(&self) -> Option<TraceContext> {
        let span = self.check_in.take()?;
        let trace = span.context();
        self.check_in.set(Some(span));
        Some(trace)
    }

    /// Its client has checked in, or is refused.
    pub(crate) fn checked_in(&self, is_in: bool) {
        if let Some(mut span) = self.check_in.take()
            && !is_in
        {
            span.fail("refused");
        }
    }

    /// A request has come. One that is asked again is the same.
    pub(crate) fn asks(&self, id: RequestId, span: Option<Span>) {
        let mut requests = self.requests.borrow_mut();
        if let Some(known) = requests.iter_mut().find(|waiting| waiting.id == id) {
            known.span = span.or(known.span.take());
        } else if requests.len() < REQUESTS_MAX {
            requests.push(Waiting { id, since: Instant::now(), span });
        }
    }

    /// A request is answered. Gives when it had come, and its span.
    pub(crate) fn answered(&self, id: RequestId) -> Option<(Instant, Option<Span>)> {
        let mut requests = self.requests.borrow_mut();
        let at = requests.iter().position(|waiting| waiting.id == id)?;
        let Waiting { since, span, .. } = requests.swap_remove(at);
        Some((since, span))
    }

    pub(crate) const fn framing(&self) -> Framing {
        self.framing
    }

    pub(crate) const fn sink(&self) -> &Sink {
        &self.sink
    }

    pub(crate) fn waiting(&self) -> usize {
        self.outbox.borrow().waiting()
    }

    /// Whether this connection was not yet in the list of those to be flushed; it is now.
    pub(crate) fn list(&self) -> bool {
        !self.listed.replace(true)
    }

    /// Queues a frame that stands in `chunk`, with [`HEADROOM`] bytes before it that may be written over. Until the
    /// flush it is only remembered, if it is alone.
    pub(crate) fn queue_in_place(
        &self,
        chunk: &[u8],
        frame: Range<usize>,
        member: MemberId,
    ) -> Queued {
        if self.closing.get() || self.overflowed.get() {
            return Queued::Closed;
        }
        let mut outbox = self.outbox.borrow_mut();
        if !outbox.has_room(&chunk[frame.clone()], member) {
            return Queued::PatchDropped;
        }
        let mut direct = self.direct.borrow_mut();
        if outbox.bytes.is_empty() && direct.is_none() && matches!(self.sink, Sink::Tcp(_)) {
            *direct = Some(frame);
            return Queued::Taken;
        }
        if let Some(first) = direct.take() {
            outbox.put(self.framing, &chunk[first]);
        }
        outbox.put(self.framing, &chunk[frame]);
        self.verdict(&outbox)
    }

    /// Queues a frame of this server's own. `chunk` is what is being worked through, if anything is.
    pub(crate) fn queue(&self, chunk: Option<&[u8]>, frame: &[u8]) -> Queued {
        self.queue_parts(chunk, &[frame])
    }

    /// Queues a frame of this server's own that is in several parts, none of them empty.
    pub(crate) fn queue_parts(&self, chunk: Option<&[u8]>, parts: &[&[u8]]) -> Queued {
        if self.closing.get() {
            return Queued::Closed;
        }
        self.settle(chunk);
        let mut outbox = self.outbox.borrow_mut();
        outbox.put_parts(self.framing, parts);
        self.verdict(&outbox)
    }

    /// Copies a frame that was only remembered: something follows it that is not of its chunk.
    pub(crate) fn settle(&self, chunk: Option<&[u8]>) {
        if let Some(first) = self.direct.borrow_mut().take() {
            let chunk =
                chunk.expect("a frame is only remembered while its chunk is worked through");
            self.outbox.borrow_mut().put(self.framing, &chunk[first]);
        }
    }

    /// Queues bytes that are whole on the wire as they are: a WebSocket's control frames.
    pub(crate) fn queue_raw(&self, bytes: &[u8]) -> Queued {
        let mut outbox = self.outbox.borrow_mut();
        outbox.bytes.extend_from_slice(bytes);
        outbox.count(bytes.len(), Class::Kept);
        self.verdict(&outbox)
    }

    fn verdict(&self, outbox: &Outbox) -> Queued {
        let Count { frames, bytes } = outbox.kept;
        let over = frames > FRAMES_MAX || (bytes > BYTES_MAX && frames > 1);
        match over && !self.overflowed.replace(true) {
            true => Queued::Overflow,
            false => Queued::Taken,
        }
    }

    /// Writes what is queued, in one write. Gives whether a task has to wait for the socket.
    pub(crate) fn flush(&self, chunk: Option<&mut [u8]>, metrics: &Metrics) -> bool {
        self.listed.set(false);
        let socket = match &self.sink {
            Sink::Task(writer) => {
                writer.ready.notify_one();
                return false;
            }
            Sink::Tcp(socket) => socket,
        };
        let direct = self.direct.borrow_mut().take();
        let mut outbox = self.outbox.borrow_mut();
        if outbox.draining {
            return false;
        }
        match (direct, chunk) {
            (Some(frame), Some(chunk)) => {
                let len = frame.len();
                let header =
                    self.framing.put_header(len, &mut chunk[frame.start - HEADROOM..frame.start]);
                let bytes = &chunk[frame.start - header..frame.end];
                Metrics::add(&metrics.writes, 1);
                match socket.try_write(bytes) {
                    Ok(taken) if taken == bytes.len() => {}
                    Ok(taken) => outbox.keep(bytes, taken, chunk[frame.start]),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        outbox.keep(bytes, 0, chunk[frame.start]);
                    }
                    // The reading task sees the same error and ends the connection.
                    Err(_) => return false,
                }
            }
            _ => {
                outbox.write(socket, metrics);
            }
        }
        if outbox.bytes.is_empty() {
            // Patches of this batch may have been dropped although the socket then took all of it.
            outbox.draining = outbox.stale.iter().any(|(_, asked)| !asked);
            return outbox.draining;
        }
        Metrics::add(&metrics.slow_writes, 1);
        outbox.draining = true;
        true
    }

    /// Waits until the socket took everything; gives the members that need a snapshot now.
    pub(crate) async fn drain(&self, metrics: &Metrics) -> SmallVec<[MemberId; 1]> {
        let Sink::Tcp(socket) = &self.sink else { return SmallVec::new() };
        loop {
            if socket.writable().await.is_err() {
                return SmallVec::new();
            }
            let mut outbox = self.outbox.borrow_mut();
            outbox.write(socket, metrics);
            if outbox.bytes.is_empty() {
                outbox.draining = false;
                return outbox.ask();
            }
        }
    }

    /// Takes everything that waits, for a task that writes by itself.
    pub(crate) fn take(&self) -> (Vec<u8>, SmallVec<[MemberId; 1]>) {
        let mut outbox = self.outbox.borrow_mut();
        let bytes = mem::take(&mut outbox.bytes);
        let stale = outbox.ask();
        outbox.reset();
        (bytes, stale)
    }

    /// From here on nothing more is queued, and the reading task ends.
    pub(crate) fn close(&self) {
        if self.framing == Framing::WebSocket && !self.closing.get() {
            // If there is no room left for it, the socket's end says the same.
            let _overflow = self.queue_raw(&websocket_close(1000, "see the last message"));
        }
        self.closing.set(true);
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
        if let Sink::Task(writer) = &self.sink {
            writer.ready.notify_one();
        }
    }

    /// The client is gone, or was given time enough: what still waits for it is dropped, and so is the socket. A task
    /// that waits for the client to take something would keep both for as long as the client likes.
    pub(crate) fn end(&self) {
        self.close();
        self.outbox.borrow_mut().reset();
        match &self.sink {
            Sink::Tcp(socket) => {
                let _already_gone =
                    socket2::SockRef::from(socket.as_ref()).shutdown(std::net::Shutdown::Both);
            }
            Sink::Task(writer) => {
                if let Some(task) = writer.task.take() {
                    task.abort();
                }
            }
        }
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.get()
    }

    /// Remembers the reading task.
    pub(crate) fn park(&self, waker: &Waker) {
        let mut reader = self.reader.borrow_mut();
        if !reader.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *reader = Some(waker.clone());
        }
    }
}

impl Outbox {
    fn waiting(&self) -> usize {
        self.bytes.len() - self.written
    }

    /// Whether a frame for `member` is to be queued. What is of a view may be left out: the member is stale then.
    fn has_room(&mut self, frame: &[u8], member: MemberId) -> bool {
        let class = Class::of(frame[0]);
        if class == Class::Kept {
            return true;
        }
        let known = self.stale.iter().position(|(of, _)| *of == member);
        if class == Class::Piece {
            let begins = PieceHeader::split(frame).is_ok_and(|(header, _)| header.offset == 0);
            if self.waiting() > SNAPSHOT_BYTES_MAX {
                // Also when it had been asked for: it is needed once more.
                match known {
                    Some(at) => self.stale[at].1 = false,
                    None => self.stale.push((member, false)),
                }
                return false;
            }
            // The snapshot that was asked for, or one for a seat just taken: patches apply to it from here on. The rest
            // of one that lost its beginning is of no use.
            if let (true, Some(at)) = (begins, known) {
                self.stale.swap_remove(at);
            }
            return begins || known.is_none();
        }
        let frames = self.kept.frames + self.patches.frames;
        let bytes = self.kept.bytes + self.patches.bytes;
        let full = frames > PATCH_FRAMES_MAX || bytes > PATCH_BYTES_MAX;
        if full && known.is_none() {
            self.stale.push((member, false));
        }
        !full && known.is_none()
    }

    /// The members whose snapshots are due to be asked for. They stay stale until the first piece comes by.
    fn ask(&mut self) -> SmallVec<[MemberId; 1]> {
        let unasked = self.stale.iter_mut().filter(|(_, asked)| !asked);
        unasked
            .map(|(member, asked)| {
                *asked = true;
                *member
            })
            .collect()
    }

    fn put(&mut self, framing: Framing, frame: &[u8]) {
        self.put_parts(framing, &[frame]);
    }

    fn put_parts(&mut self, framing: Framing, parts: &[&[u8]]) {
        let len = parts.iter().map(|part| part.len()).sum();
        let mut room = [0; HEADROOM];
        let header = framing.put_header(len, &mut room);
        self.bytes.extend_from_slice(&room[HEADROOM - header..]);
        for part in parts {
            self.bytes.extend_from_slice(part);
        }
        self.count(header + len, Class::of(parts[0][0]));
    }

    /// Keeps what a socket did not take of a frame that was written straight from its chunk.
    fn keep(&mut self, bytes: &[u8], taken: usize, kind: u8) {
        self.bytes.extend_from_slice(&bytes[taken..]);
        self.count(bytes.len() - taken, Class::of(kind));
    }

    #[expect(clippy::cast_possible_truncation, reason = "frames are bounded far below 4 GiB")]
    fn count(&mut self, bytes: usize, class: Class) {
        self.frames.push_back((bytes as u32, class));
        if let Some(count) = self.counted(class) {
            count.frames += 1;
            count.bytes += bytes;
        }
    }

    fn counted(&mut self, class: Class) -> Option<&mut Count> {
        match class {
            Class::Kept => Some(&mut self.kept),
            Class::Patch => Some(&mut self.patches),
            Class::Piece => None,
        }
    }

    fn write(&mut self, socket: &OwnedWriteHalf, metrics: &Metrics) {
        if self.bytes.is_empty() {
            return;
        }
        Metrics::add(&metrics.writes, 1);
        match socket.try_write(&self.bytes[self.written..]) {
            Ok(taken) => self.wrote(taken),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // The reading task sees the same error and ends the connection; nothing is to be written any more.
            Err(_) => self.reset(),
        }
    }

    fn wrote(&mut self, taken: usize) {
        self.written += taken;
        if self.written == self.bytes.len() {
            return self.reset();
        }
        let mut taken = taken;
        while let Some((left, class)) = self.frames.front_mut() {
            let part = taken.min(*left as usize);
            #[expect(clippy::cast_possible_truncation, reason = "at most what is left of a frame")]
            let part_u32 = part as u32;
            *left -= part_u32;
            taken -= part;
            let (whole, class) = (*left == 0, *class);
            if let Some(count) = self.counted(class) {
                count.bytes -= part;
                count.frames -= usize::from(whole);
            }
            if !whole {
                break;
            }
            self.frames.pop_front();
        }
        // What is written moves out once it is half of the buffer, so that a client that is always a little late does
        // not make it grow.
        if self.written * 2 > self.bytes.len() {
            self.bytes.drain(..self.written);
            self.written = 0;
        }
    }

    fn reset(&mut self) {
        self.bytes.clear();
        if self.bytes.capacity() > KEPT_BYTES {
            self.bytes = Vec::new();
        }
        self.written = 0;
        self.frames.clear();
        if self.frames.capacity() > 64 {
            self.frames = VecDeque::new();
        }
        self.kept = Count::default();
        self.patches = Count::default();
    }
}

/// A connection, as the tasks that work for it hold it.
pub(crate) type Shared = Rc<Connection>;

/// Every connection, at the place that its number names: looking one up is one step.
#[derive(Default)]
pub(crate) struct Connections(Vec<Option<Shared>>);

impl Connections {
    pub(crate) fn insert(&mut self, connection: Shared) {
        let place = connection.id.place();
        if place >= self.0.len() {
            self.0.resize(place + 1, None);
        }
        self.0[place] = Some(connection);
    }

    pub(crate) fn get(&self, id: ConnId) -> Option<&Shared> {
        self.0.get(id.place())?.as_ref().filter(|connection| connection.id == id)
    }

    pub(crate) fn remove(&mut self, id: ConnId) {
        if self.get(id).is_some() {
            self.0[id.place()] = None;
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Shared> {
        self.0.iter().flatten()
    }
}

#[cfg(test)]
mod tests;
