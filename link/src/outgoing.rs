//! The writing end: one buffer that everybody appends to, one task that writes all of it at once.

use std::{
    cell::{Cell, RefCell},
    fmt, mem,
    rc::Rc,
    time::{Duration, Instant},
};

use greenroom_protocol::{LINK_HEADER_BYTES, LinkHeader};
use tokio::{io::AsyncWriteExt, net::tcp::OwnedWriteHalf, sync::Notify, time};

use crate::LinkError;

/// Kind byte of the frame that only says "I am here"; readers drop it.
pub(crate) const ALIVE: u8 = 0x00;

/// How long [`Outgoing::append_soon`] may hold a frame back; the timer rounds it up by as much again.
const SOON: Duration = Duration::from_millis(1);

/// The buffer is full: the frame was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the link's buffer is full")]
pub struct Full;

/// What a link has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames appended.
    pub frames: u64,
    /// Write calls to the socket that took bytes.
    pub writes: u64,
    /// Bytes written.
    pub bytes: u64,
    /// Frames refused because the buffer was full.
    pub refused: u64,
}

struct Shared {
    buffer: RefCell<Vec<u8>>,
    bytes_max: usize,
    /// Whether the writer was told of what waits.
    told: Cell<bool>,
    ready: Notify,
    /// Something waits that may wait a little longer.
    soon: Notify,
    room: Notify,
    closing: Cell<bool>,
    counters: Cell<Counters>,
    heard: Cell<Instant>,
}

/// The writing end of a link; clones append to the same buffer.
///
/// The bound: [`Outgoing::append`] refuses a frame once `bytes_max` wait, and its caller says what then happens to
/// that frame. [`Outgoing::push`] is for what must not be lost while the link lives: it takes up to twice the bound,
/// and past that ends the link, since a peer that takes nothing is gone.
#[derive(Clone)]
pub struct Outgoing(Rc<Shared>);

impl fmt::Debug for Outgoing {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Outgoing({} bytes wait)", self.waiting())
    }
}

impl Outgoing {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self(Rc::new(Shared {
            buffer: RefCell::default(),
            bytes_max,
            told: Cell::new(false),
            ready: Notify::new(),
            soon: Notify::new(),
            room: Notify::new(),
            closing: Cell::new(false),
            counters: Cell::default(),
            heard: Cell::new(Instant::now()),
        }))
    }

    /// Appends a frame of several parts, if there is room.
    ///
    /// # Errors
    /// [`Full`] when `bytes_max` bytes wait already, or the link is closing.
    pub fn append(&self, header: LinkHeader, parts: &[&[u8]]) -> Result<(), Full> {
        self.admit()?;
        self.put(header, parts);
        Ok(())
    }

    /// Appends a frame that is not waited for before the next millisecond or two: it leaves with what comes until
    /// then, in one write, so that a peer on another core is woken once for many.
    ///
    /// # Errors
    /// As [`Outgoing::append`].
    pub fn append_soon(&self, header: LinkHeader, parts: &[&[u8]]) -> Result<(), Full> {
        self.admit()?;
        if self.write_to_buffer(header, parts) {
            self.0.soon.notify_one();
        }
        Ok(())
    }

    fn admit(&self) -> Result<(), Full> {
        if self.waiting() >= self.0.bytes_max || self.0.closing.get() {
            self.count(|counters| counters.refused += 1);
            return Err(Full);
        }
        Ok(())
    }

    /// Appends a frame that must not be lost while the link lives. When twice the bound waits, the link ends.
    pub fn push(&self, header: LinkHeader, parts: &[&[u8]]) {
        if self.waiting() >= self.0.bytes_max * 2 {
            self.close();
        }
        if !self.0.closing.get() {
            self.put(header, parts);
        }
    }

    fn put(&self, header: LinkHeader, parts: &[&[u8]]) {
        self.write_to_buffer(header, parts);
        if !self.0.told.replace(true) {
            self.0.ready.notify_one();
        }
    }

    /// Gives whether the buffer was empty.
    fn write_to_buffer(&self, header: LinkHeader, parts: &[&[u8]]) -> bool {
        let mut buffer = self.0.buffer.borrow_mut();
        let was_empty = buffer.is_empty();
        buffer.extend_from_slice(&header.bytes(parts.iter().map(|part| part.len()).sum()));
        for part in parts {
            buffer.extend_from_slice(part);
        }
        self.count(|counters| counters.frames += 1);
        was_empty
    }

    /// Bytes that wait for the writer.
    pub fn waiting(&self) -> usize {
        self.0.buffer.borrow().len()
    }

    /// Waits until at most half of the bound waits, or the link is closing.
    pub async fn room(&self) {
        loop {
            let room = self.0.room.notified();
            if self.waiting() <= self.0.bytes_max / 2 || self.0.closing.get() {
                return;
            }
            room.await;
        }
    }

    /// Ends the link after what waits has been written.
    pub fn close(&self) {
        self.0.closing.set(true);
        self.0.ready.notify_one();
        self.0.room.notify_waiters();
    }

    /// Whether the link is closing or closed.
    pub fn is_closing(&self) -> bool {
        self.0.closing.get()
    }

    /// What the link has done so far.
    pub fn counters(&self) -> Counters {
        self.0.counters.get()
    }

    pub(crate) fn heard(&self) {
        self.0.heard.set(Instant::now());
    }

    fn count(&self, change: impl FnOnce(&mut Counters)) {
        let mut counters = self.0.counters.get();
        change(&mut counters);
        self.0.counters.set(counters);
    }
}

/// The task that writes: spawn [`Writer::run`] on the link's thread.
#[derive(Debug)]
pub struct Writer {
    pub(crate) outgoing: Outgoing,
    pub(crate) socket: OwnedWriteHalf,
    pub(crate) alive_interval: Duration,
    pub(crate) silence_max: Duration,
}

impl Writer {
    /// Writes what is appended until the link ends, and says that it is alive when there is nothing else to say.
    /// When it returns, the reading end sees the end as well.
    ///
    /// # Errors
    /// [`LinkError::Socket`], [`LinkError::Silent`] or [`LinkError::Stuck`]; [`LinkError::Closed`] never.
    pub async fn run(mut self) -> Result<(), LinkError> {
        let result = self.write_all().await;
        self.outgoing.close();
        // The reader may wait for bytes on the other half: this wakes it with an end of stream.
        let _already_gone =
            socket2::SockRef::from(self.socket.as_ref()).shutdown(std::net::Shutdown::Both);
        result
    }

    async fn write_all(&mut self) -> Result<(), LinkError> {
        let shared = Rc::clone(&self.outgoing.0);
        let mut batch = Vec::new();
        let mut alive =
            time::interval_at(time::Instant::now() + self.alive_interval, self.alive_interval);
        alive.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = shared.ready.notified() => {}
                () = async {
                    shared.soon.notified().await;
                    time::sleep(SOON).await;
                } => {}
                _ = alive.tick() => {
                    let silent = shared.heard.get().elapsed();
                    if silent > self.silence_max {
                        return Err(LinkError::Silent(silent));
                    }
                    if shared.buffer.borrow().is_empty() {
                        self.outgoing.put(LinkHeader { kind: ALIVE, target: 0 }, &[]);
                    }
                }
            }
            shared.told.set(false);
            loop {
                mem::swap(&mut batch, &mut *shared.buffer.borrow_mut());
                if batch.is_empty() {
                    break;
                }
                let mut rest = &batch[..];
                while !rest.is_empty() {
                    // A peer that takes nothing may not hold this task for ever: the bound on its silence holds here.
                    let taken = match self.socket.try_write(rest) {
                        Ok(taken) => taken,
                        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                            match time::timeout(self.silence_max, self.socket.write(rest)).await {
                                Ok(taken) => taken.map_err(LinkError::Socket)?,
                                Err(_) => {
                                    return Err(LinkError::Stuck(
                                        rest.len() + self.outgoing.waiting(),
                                    ));
                                }
                            }
                        }
                        Err(error) => return Err(LinkError::Socket(error)),
                    };
                    rest = &rest[taken..];
                    self.outgoing.count(|counters| {
                        counters.writes += 1;
                        counters.bytes += taken as u64;
                    });
                }
                batch.clear();
                // A burst may have grown it: what is kept is what a busy link needs.
                batch.shrink_to(1 << 20);
                shared.room.notify_waiters();
            }
            if shared.closing.get() {
                return Ok(());
            }
        }
    }
}

/// A frame's header and payload in one `Vec`, for the handshake.
pub(crate) fn whole_frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(LINK_HEADER_BYTES + payload.len());
    frame.extend_from_slice(&LinkHeader { kind, target: 0 }.bytes(payload.len()));
    frame.extend_from_slice(payload);
    frame
}
