//! What Greenroom is measured against: one hop, one thread, nothing but the sockets.
//!
//! The servers are the tuned ones of the baseline: they read with `poll_read` into the thread's one scratch buffer,
//! and write with `try_write` at once, with the same framing as the session server. No check-in, no limits.

use std::cell::RefCell;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener as StdListener};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, ready};

use anyhow::{Context, bail, ensure};
use greenroom_link::framing::{Fragments, Framing, HEADROOM, Item};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_util::task::TaskTracker;

use crate::wire::Transport;
use crate::workload::{PLAYERS_OF_A_ROOM, TICK, wall_ms};

/// Longest frame that is taken.
const FRAME_BYTES_MAX: usize = 64 * 1024;
/// Bytes that wait for one client before it is dropped.
const BACKLOG_BYTES_MAX: usize = 256 * 1024;

/// What a bare server does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Mode {
    /// Every frame comes back.
    Echo,
    /// Rooms of 16 at 20 Hz, filled in the order of connecting.
    Rooms,
}

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; HEADROOM + FRAME_BYTES_MAX + 64]);
}

/// Serves until it is killed.
///
/// # Errors
/// When it cannot listen.
pub(crate) fn serve(mode: Mode, transport: Transport) -> anyhow::Result<()> {
    let listener = StdListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listening")?;
    writeln!(std::io::stdout(), "ready {}", listener.local_addr()?)?;
    serve_on(listener, mode, transport)
}

/// Serves whoever connects.
///
/// # Errors
/// When it cannot accept.
pub(crate) fn serve_on(
    listener: StdListener,
    mode: Mode,
    transport: Transport,
) -> anyhow::Result<()> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::from_std(listener)?;
        let tasks = TaskTracker::new();
        let mut rooms: Vec<Arc<Mutex<Room>>> = Vec::new();
        for n in 0.. {
            let (stream, _) = listener.accept().await.context("accepting")?;
            stream.set_nodelay(true)?;
            match mode {
                Mode::Echo => drop(tasks.spawn(echo(stream, transport))),
                Mode::Rooms => {
                    let (room, seat) = (n / PLAYERS_OF_A_ROOM, n % PLAYERS_OF_A_ROOM);
                    if seat == 0 {
                        rooms.push(Arc::default());
                        drop(tasks.spawn(run_room(Arc::clone(&rooms[room]), room)));
                    }
                    drop(tasks.spawn(play(stream, transport, Arc::clone(&rooms[room]), seat)));
                }
            }
        }
        Ok(())
    })
}

/// One connection's reading end.
struct Reader {
    socket: OwnedReadHalf,
    framing: Framing,
    fragments: Fragments,
    /// The beginning of a frame whose end has not come; normally empty.
    rest: Vec<u8>,
}

impl Reader {
    /// Reads one chunk and shows every whole frame of it, in a buffer with room before it for its header.
    async fn read(
        &mut self,
        mut show: impl FnMut(&mut [u8], std::ops::Range<usize>),
    ) -> anyhow::Result<()> {
        std::future::poll_fn(|cx| {
            SCRATCH.with_borrow_mut(|scratch| {
                let kept = HEADROOM + self.rest.len();
                scratch[HEADROOM..kept].copy_from_slice(&self.rest);
                let mut chunk = ReadBuf::new(&mut scratch[kept..]);
                ready!(Pin::new(&mut self.socket).poll_read(cx, &mut chunk))?;
                let end = kept + chunk.filled().len();
                if end == kept {
                    return Poll::Ready(Err(anyhow::anyhow!("the client is gone")));
                }
                let mut at = HEADROOM;
                while let Some(item) = self.framing.next(
                    &mut scratch[..end],
                    &mut at,
                    FRAME_BYTES_MAX,
                    &mut self.fragments,
                )? {
                    match item {
                        Item::Frame(range) => show(scratch, range),
                        Item::Assembled(_) | Item::Ping(_) | Item::Nothing => {}
                        Item::Close => return Poll::Ready(Err(anyhow::anyhow!("closed"))),
                    }
                }
                self.rest.clear();
                self.rest.extend_from_slice(&scratch[at..end]);
                Poll::Ready(Ok(()))
            })
        })
        .await
    }
}

/// Splits the connection, after the WebSocket's handshake if it is one.
async fn open(
    mut stream: TcpStream,
    transport: Transport,
) -> anyhow::Result<(Reader, OwnedWriteHalf)> {
    let framing = match transport {
        Transport::Tcp => Framing::LengthPrefixed,
        Transport::Ws => {
            Box::pin(upgrade(&mut stream)).await?;
            Framing::WebSocket
        }
    };
    let (socket, write) = stream.into_split();
    Ok((Reader { socket, framing, fragments: Fragments::default(), rest: Vec::new() }, write))
}

async fn upgrade(stream: &mut TcpStream) -> anyhow::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        ensure!(request.len() < 4096, "a request that does not end");
        ensure!(stream.read_buf(&mut request).await? > 0, "the client is gone");
    }
    let request = String::from_utf8_lossy(&request);
    let key = request.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: "));
    let Some(key) = key else { bail!("no key") };
    let accept = derive_accept_key(key.trim().as_bytes());
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    stream.write_all(answer.as_bytes()).await?;
    Ok(())
}

/// Whoever leaves or breaks the protocol is forgotten: the generator notices if it did not mean to.
async fn echo(stream: TcpStream, transport: Transport) {
    if let Ok((mut reader, mut write)) = open(stream, transport).await {
        let framing = reader.framing;
        let mut backlog = Vec::new();
        loop {
            let read = reader.read(|scratch, range| {
                let header = framing.put_header(range.len(), &mut scratch[..range.start]);
                let frame = &scratch[range.start - header..range.end];
                write_or_keep(&write, &mut backlog, frame);
            });
            if read.await.is_err() {
                return;
            }
            if !backlog.is_empty() {
                if write.write_all(&backlog).await.is_err() {
                    return;
                }
                backlog.clear();
            }
        }
    }
}

/// Writes now what fits, and keeps the rest.
fn write_or_keep(write: &OwnedWriteHalf, backlog: &mut Vec<u8>, frame: &[u8]) {
    let written = if backlog.is_empty() { write.try_write(frame).unwrap_or(0) } else { 0 };
    if written < frame.len() {
        backlog.extend_from_slice(&frame[written..]);
    }
}

/// A player's state, and what of it has changed since the last tick.
#[derive(Debug, Default)]
struct Player {
    x: f32,
    y: f32,
    hp: u8,
    inputs: u32,
    has_moved: bool,
    has_new_hp: bool,
    link: Option<Member>,
}

#[derive(Debug)]
struct Member {
    write: OwnedWriteHalf,
    framing: Framing,
    backlog: Vec<u8>,
}

#[derive(Debug, Default)]
struct Room {
    players: Vec<Player>,
}

fn locked(room: &Mutex<Room>) -> MutexGuard<'_, Room> {
    room.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One client of a room.
async fn play(stream: TcpStream, transport: Transport, room: Arc<Mutex<Room>>, seat: usize) {
    let Ok((mut reader, write)) = open(stream, transport).await else { return };
    {
        let mut room = locked(&room);
        if room.players.len() <= seat {
            room.players.resize_with(seat + 1, Player::default);
        }
        let link = Some(Member { write, framing: reader.framing, backlog: Vec::new() });
        room.players[seat] = Player { hp: 100, link, ..Player::default() };
    }
    loop {
        let read = reader.read(|scratch, range| {
            if let Some(input) = scratch[range].first_chunk::<8>() {
                locked(&room).players[seat].handle(*input);
            }
        });
        if read.await.is_err() {
            locked(&room).players[seat].link = None;
            return;
        }
    }
}

impl Player {
    fn handle(&mut self, input: [u8; 8]) {
        let [a, b, c, d, e, f, g, h] = input;
        self.x += f32::from_le_bytes([a, b, c, d]);
        self.y += f32::from_le_bytes([e, f, g, h]);
        self.has_moved = true;
        self.inputs += 1;
        if self.inputs.is_multiple_of(10) {
            self.hp = self.hp.checked_sub(1).unwrap_or(100);
            self.has_new_hp = true;
        }
    }
}

/// Ticks one room; rooms are spread over the interval.
async fn run_room(room: Arc<Mutex<Room>>, n: usize) {
    let spread = u32::try_from(n * 619 % 1000).unwrap_or(0); // Any two neighbours are far apart.
    let mut ticks = interval_at(Instant::now() + TICK * spread / 1000, TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut patch = Vec::new();
    loop {
        ticks.tick().await;
        locked(&room).tick(&mut patch);
    }
}

impl Room {
    /// f64 t, u8 n, n times (u8 index, u8 mask, f32 x, f32 y, [u8 hp]): framed once, one write for each client.
    fn tick(&mut self, patch: &mut Vec<u8>) {
        patch.clear();
        patch.extend_from_slice(&[0; HEADROOM]);
        patch.extend_from_slice(&wall_ms().to_le_bytes());
        patch.push(0);
        let count = patch.len() - 1;
        for (index, player) in (0u8..).zip(&mut self.players) {
            if player.has_moved {
                patch[count] += 1;
                patch.extend_from_slice(&[index, 1 | u8::from(player.has_new_hp) << 1]);
                patch.extend_from_slice(&player.x.to_le_bytes());
                patch.extend_from_slice(&player.y.to_le_bytes());
                patch.extend(player.has_new_hp.then_some(player.hp));
                (player.has_moved, player.has_new_hp) = (false, false);
            }
        }
        for player in &mut self.players {
            let Some(member) = &mut player.link else { continue };
            let len = patch.len() - HEADROOM;
            let header = member.framing.put_header(len, &mut patch[..HEADROOM]);
            if !member.backlog.is_empty() {
                let written = member.write.try_write(&member.backlog).unwrap_or(0);
                member.backlog.drain(..written);
            }
            write_or_keep(&member.write, &mut member.backlog, &patch[HEADROOM - header..]);
            if member.backlog.len() > BACKLOG_BYTES_MAX {
                player.link = None;
            }
        }
    }
}
