//! Many clients on one thread: one epoll, one scratch buffer, one write for what a client has to say.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use greenroom_protocol::{Channel, Seq};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;

use crate::wire::{Item, Outbox, Transport};

/// Bytes read at once.
const SCRATCH_BYTES: usize = 256 * 1024;
/// Events taken at once.
const EVENTS_MAX: usize = 1024;
/// Clients that are between connecting and ready at the same time: below the servers' accept queues.
const OPENING_MAX: usize = 64;
/// The longest that nothing may happen while clients connect.
const OPENING_SILENCE_MAX: Duration = Duration::from_secs(10);
/// Bytes that wait for a server that takes nothing, for one client.
const UNSENT_BYTES_MAX: usize = 256 * 1024;

/// How far a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Something has been asked that must be answered before it takes part.
    Opening,
    /// It takes part.
    Ready,
    /// The connection is gone.
    Closed,
}

/// One client.
#[derive(Debug)]
pub(crate) struct Peer {
    /// Its number, from 0.
    pub(crate) index: usize,
    pub(crate) stage: Stage,
    /// Its instance's channel, once it has a seat.
    pub(crate) channel: Channel,
    /// The last reliable message that it sent.
    pub(crate) sent: Seq,
    /// The last reliable message that it received.
    pub(crate) received: Seq,
    /// The last of its messages that the instance has acknowledged.
    pub(crate) acknowledged: Seq,
    /// Version of the view that it has, once it has one.
    pub(crate) version: Option<u32>,
    /// When its request under way left.
    pub(crate) asked: Instant,
    /// What the server said when it closed.
    pub(crate) farewell: Option<String>,
    socket: TcpStream,
    /// The beginning of a frame whose end has not come.
    rest: Vec<u8>,
    /// What the socket did not take.
    unsent: Vec<u8>,
}

/// What clients do with what they receive.
pub(crate) trait Script {
    /// The connection is there: says the first words. The client is ready if nothing must be answered.
    fn connected(&mut self, peer: &mut Peer, out: &mut Outbox);
    /// A frame came.
    ///
    /// # Errors
    /// When the measurement can't go on.
    fn frame(&mut self, peer: &mut Peer, frame: &[u8], out: &mut Outbox) -> anyhow::Result<()>;
}

/// What went over the clients' sockets.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) frames_down: u64,
    pub(crate) bytes_down: u64,
    pub(crate) bytes_up: u64,
}

/// All clients.
pub(crate) struct Fleet {
    pub(crate) peers: Vec<Peer>,
    pub(crate) traffic: Traffic,
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
    scratch: Vec<u8>,
    out: Outbox,
    transport: Transport,
}

impl Fleet {
    pub(crate) fn new(transport: Transport) -> anyhow::Result<Self> {
        Ok(Self {
            peers: Vec::new(),
            traffic: Traffic::default(),
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC).context("making an epoll")?,
            events: Vec::with_capacity(EVENTS_MAX),
            scratch: vec![0; SCRATCH_BYTES],
            out: Outbox::new(transport),
            transport,
        })
    }

    /// Connects `count` clients, and returns when all are ready.
    ///
    /// # Errors
    /// When one can't connect, is refused, or hears nothing.
    pub(crate) fn open(
        &mut self,
        address: SocketAddr,
        count: usize,
        script: &mut impl Script,
    ) -> anyhow::Result<()> {
        let started = Instant::now();
        let (mut progress, mut told) = ((started, 0), started);
        loop {
            let ready = self.peers.iter().filter(|peer| peer.stage == Stage::Ready).count();
            if ready == count {
                return Ok(());
            }
            if let Some(peer) = self.peers.iter().find(|peer| peer.stage == Stage::Closed) {
                let why = peer.farewell.as_deref().unwrap_or("it said nothing");
                bail!("the server closed the connection of client {}: {why}", peer.index);
            }
            if ready > progress.1 {
                progress = (Instant::now(), ready);
            }
            ensure!(
                progress.0.elapsed() < OPENING_SILENCE_MAX,
                "{ready} of {count} clients are ready, and no further one for {} s",
                OPENING_SILENCE_MAX.as_secs()
            );
            if told.elapsed() > Duration::from_secs(2) {
                told = Instant::now();
                crate::report::progress(&format!("  {ready} of {count} clients are ready"));
            }
            while self.peers.len() < count && self.peers.len() - ready < OPENING_MAX {
                self.connect(address, script)?;
            }
            self.turn(Duration::from_millis(5), script)?;
        }
    }

    fn connect(&mut self, address: SocketAddr, script: &mut impl Script) -> anyhow::Result<()> {
        let index = self.peers.len();
        let mut socket = TcpStream::connect(address)
            .with_context(|| format!("connecting client {index} to {address}"))?;
        socket.set_nodelay(true)?;
        let rest = match self.transport {
            Transport::Tcp => Vec::new(),
            Transport::Ws => upgrade(&mut socket, address)
                .with_context(|| format!("opening the WebSocket of client {index} at {address}"))?,
        };
        socket.set_nonblocking(true)?;
        let data = epoll::EventData::new_u64(index as u64);
        epoll::add(&self.epoll, &socket, data, epoll::EventFlags::IN).context("epoll_ctl")?;
        self.peers.push(Peer {
            index,
            stage: Stage::Opening,
            channel: Channel(0),
            sent: Seq(0),
            received: Seq(0),
            acknowledged: Seq(0),
            version: None,
            asked: Instant::now(),
            farewell: None,
            socket,
            rest,
            unsent: Vec::new(),
        });
        self.say(index, |peer, out| script.connected(peer, out));
        Ok(())
    }

    /// Lets a client say something.
    pub(crate) fn say(&mut self, index: usize, words: impl FnOnce(&mut Peer, &mut Outbox)) {
        let peer = &mut self.peers[index];
        words(peer, &mut self.out);
        self.traffic.bytes_up += peer.write(&mut self.out.bytes);
    }

    /// Waits until something came or `wait` is over, and handles what came.
    ///
    /// # Errors
    /// When the script says so, or a server breaks the framing.
    pub(crate) fn turn(&mut self, wait: Duration, script: &mut impl Script) -> anyhow::Result<()> {
        let timeout = Timespec {
            tv_sec: wait.as_secs().try_into().unwrap_or(1),
            tv_nsec: wait.subsec_nanos().into(),
        };
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("waiting for the clients' sockets"),
        }
        for event in self.events.drain(..) {
            let index = usize::try_from(event.data.u64()).expect("we gave it an index");
            let peer = &mut self.peers[index];
            let kept = peer.rest.len();
            if kept + 64 * 1024 > self.scratch.len() {
                self.scratch.resize(kept + SCRATCH_BYTES, 0);
            }
            self.scratch[..kept].copy_from_slice(&peer.rest);
            let read = match peer.socket.read(&mut self.scratch[kept..]) {
                Ok(0) => None,
                Ok(read) => Some(read),
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                Err(_) => None,
            };
            let Some(read) = read else {
                peer.stage = Stage::Closed;
                epoll::delete(&self.epoll, &peer.socket).context("epoll_ctl")?;
                continue;
            };
            self.traffic.bytes_down += read as u64;
            let bytes = &self.scratch[..kept + read];
            let mut at = 0;
            while let Some(item) = self.transport.next(bytes, &mut at)? {
                match item {
                    Item::Frame(range) => {
                        self.traffic.frames_down += 1;
                        script.frame(peer, &bytes[range], &mut self.out)?;
                    }
                    Item::Ping(range) => self.out.pong(&bytes[range]),
                    Item::Close => {}
                }
            }
            peer.rest.clear();
            peer.rest.extend_from_slice(&bytes[at..]);
            self.traffic.bytes_up += peer.write(&mut self.out.bytes);
        }
        Ok(())
    }

    /// Clients whose connection is gone.
    pub(crate) fn closed(&self) -> usize {
        self.peers.iter().filter(|peer| peer.stage == Stage::Closed).count()
    }
}

impl Peer {
    /// Writes `bytes`, keeps what the socket does not take, and leaves `bytes` empty. Gives how many it was.
    fn write(&mut self, bytes: &mut Vec<u8>) -> u64 {
        if bytes.is_empty() && self.unsent.is_empty() || self.stage == Stage::Closed {
            bytes.clear();
            return 0;
        }
        let len = bytes.len();
        if self.unsent.is_empty() {
            let written = self.socket.write(bytes).unwrap_or(0);
            self.unsent.extend_from_slice(&bytes[written..]);
        } else {
            self.unsent.extend_from_slice(bytes);
            let written = self.socket.write(&self.unsent).unwrap_or(0);
            self.unsent.drain(..written);
        }
        bytes.clear();
        if self.unsent.len() > UNSENT_BYTES_MAX {
            self.farewell = Some("the server reads nothing any more".to_owned());
            self.stage = Stage::Closed;
        }
        len as u64
    }
}

/// The client's half of the WebSocket handshake. Gives what came after it: a bare room may tick before its first client
/// has said anything.
fn upgrade(socket: &mut TcpStream, address: SocketAddr) -> anyhow::Result<Vec<u8>> {
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    let request = format!(
        "GET / HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Protocol: greenroom.v1\r\n\r\n"
    );
    socket.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    let mut chunk = [0; 1024];
    let end = loop {
        let read = socket.read(&mut chunk)?;
        ensure!(read > 0 && answer.len() < 8192, "no answer to the handshake");
        answer.extend_from_slice(&chunk[..read]);
        if let Some(at) = answer.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
    };
    let line: Range<usize> = 0..answer.iter().position(|&byte| byte == b'\r').unwrap_or(0);
    ensure!(
        answer.starts_with(b"HTTP/1.1 101 "),
        "the handshake is refused: {}",
        String::from_utf8_lossy(&answer[line])
    );
    Ok(answer.split_off(end))
}
