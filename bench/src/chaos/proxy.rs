//! A bad network: proxies between two processes that delay, stall or reset what goes through, each direction by itself.

use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::wire::Random;

/// Bytes that are read at once.
const CHUNK: usize = 64 * 1024;
/// Chunks under way in one direction: past it the sender feels that nothing is taken, as on a slow network.
const CHUNKS_MAX: usize = 64;
/// Listeners that wait to be served.
const LISTENERS_MAX: usize = 64;

/// Who dials whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) from: &'static str,
    pub(crate) to: &'static str,
}

impl Route {
    /// Whether it connects these two, whoever dials.
    pub(crate) fn is_between(self, one: &str, other: &str) -> bool {
        (self.from == one && self.to == other) || (self.from == other && self.to == one)
    }
}

/// What happens to bytes of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Weather {
    /// Nothing arrives, and nothing is lost: it arrives when this is over.
    pub(crate) stalled: bool,
    /// Everything arrives later by this, …
    pub(crate) delay: Duration,
    /// … and by up to this more, in order.
    pub(crate) jitter: Duration,
}

/// Both directions, and how often connections were reset.
#[derive(Clone, Copy, Debug, Default)]
struct Sky {
    /// From who dialled.
    up: Weather,
    /// To who dialled.
    down: Weather,
    resets: u64,
}

#[derive(Debug)]
struct Opened {
    route: Route,
    sky: watch::Sender<Sky>,
}

/// All proxies of a run, which live on a thread of their own. Dropping this ends them.
#[derive(Debug)]
pub(crate) struct Proxies {
    opened: Arc<std::sync::Mutex<Vec<Opened>>>,
    listeners: mpsc::Sender<(StdListener, SocketAddr, watch::Receiver<Sky>)>,
}

impl Proxies {
    /// Starts the thread.
    ///
    /// # Errors
    /// When it can't be started.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let (listeners, mut new) = mpsc::channel(LISTENERS_MAX);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("starting a runtime")?;
        thread::Builder::new()
            .name("proxies".to_owned())
            .spawn(move || {
                runtime.block_on(async move {
                    let mut serving = JoinSet::new();
                    while let Some((listener, target, sky)) = new.recv().await {
                        serving.spawn(serve(listener, target, sky));
                    }
                });
            })
            .context("starting the proxies' thread")?;
        Ok(Self { opened: Arc::default(), listeners })
    }

    /// Gives an address that leads to `target`.
    ///
    /// # Errors
    /// When there is no port.
    pub(crate) fn open(&self, route: Route, target: SocketAddr) -> anyhow::Result<SocketAddr> {
        let listener = StdListener::bind((Ipv4Addr::LOCALHOST, 0)).context("binding a proxy")?;
        listener.set_nonblocking(true).context("binding a proxy")?;
        let address = listener.local_addr().context("binding a proxy")?;
        let (sky, under) = watch::channel(Sky::default());
        self.listeners
            .blocking_send((listener, target, under))
            .context("the proxies' thread has ended")?;
        self.all().push(Opened { route, sky });
        Ok(address)
    }

    fn all(&self) -> std::sync::MutexGuard<'_, Vec<Opened>> {
        self.opened.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Changes what happens to bytes that `from` sends to `to`, whoever dialled.
    pub(crate) fn set(&self, from: &str, to: &str, weather: Weather) {
        for Opened { route, sky } in self.all().iter() {
            if route.from == from && route.to == to {
                sky.send_modify(|sky| sky.up = weather);
            } else if route.from == to && route.to == from {
                sky.send_modify(|sky| sky.down = weather);
            }
        }
    }

    /// The same in both directions.
    pub(crate) fn set_both(&self, one: &str, other: &str, weather: Weather) {
        self.set(one, other, weather);
        self.set(other, one, weather);
    }

    /// Resets every connection between these two.
    pub(crate) fn reset(&self, one: &str, other: &str) {
        for Opened { sky, .. } in
            self.all().iter().filter(|opened| opened.route.is_between(one, other))
        {
            sky.send_modify(|sky| sky.resets += 1);
        }
    }

    /// Fair weather everywhere.
    pub(crate) fn clear(&self) {
        for Opened { sky, .. } in self.all().iter() {
            sky.send_modify(|sky| (sky.up, sky.down) = (Weather::default(), Weather::default()));
        }
    }
}

async fn serve(listener: StdListener, target: SocketAddr, sky: watch::Receiver<Sky>) {
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => {
                    connections.spawn(connection(socket, target, sky.clone()));
                }
                Err(_) => return,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One connection, until either side ends it or somebody resets it.
async fn connection(near: TcpStream, target: SocketAddr, mut sky: watch::Receiver<Sky>) {
    let resets = sky.borrow().resets;
    // Nobody there: who dialled sees a reset, as it would without us.
    let Ok(far) = TcpStream::connect(target).await else {
        return drop(near.set_zero_linger());
    };
    // Without these the kernel's own delays come on top of ours.
    if near.set_nodelay(true).is_err() || far.set_nodelay(true).is_err() {
        return;
    }
    // A reset of one side is one of the other, too; so is the end of a process.
    drop(near.set_zero_linger());
    drop(far.set_zero_linger());
    let (from_near, to_near) = near.into_split();
    let (from_far, to_far) = far.into_split();
    let mut pumps = JoinSet::new();
    pumps.spawn(pump(from_near, to_far, sky.clone(), |sky| sky.up));
    pumps.spawn(pump(from_far, to_near, sky.clone(), |sky| sky.down));
    let is_reset = async {
        // An error says that the proxies end.
        while sky.borrow_and_update().resets == resets && sky.changed().await.is_ok() {}
    };
    tokio::select! {
        _ = pumps.join_next() => {}
        () = is_reset => {}
    }
    pumps.shutdown().await;
}

/// Carries bytes of one direction until it ends.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut sky: watch::Receiver<Sky>,
    of: fn(&Sky) -> Weather,
) {
    let (sender, mut carried) = mpsc::channel::<(Instant, Vec<u8>)>(CHUNKS_MAX);
    let weather = sky.clone();
    let read = async move {
        let mut dice = Random::new(1);
        let mut buffer = vec![0; CHUNK];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            let Weather { delay, jitter, .. } = of(&weather.borrow());
            let more = u32::try_from(dice.next() % 1_000).unwrap_or(0);
            let due = Instant::now() + delay + jitter * more / 1_000;
            if sender.send((due, buffer[..length].to_vec())).await.is_err() {
                return;
            }
        }
    };
    let write = async move {
        while let Some((due, bytes)) = carried.recv().await {
            sleep_until(due).await;
            while of(&sky.borrow_and_update()).stalled {
                if sky.changed().await.is_err() {
                    return;
                }
            }
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    // What was read before the end still arrives.
    tokio::join!(read, write);
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use super::*;

    const ROUTE: Route = Route { from: "a", to: "b" };

    fn both() -> (Proxies, TcpStream, TcpStream) {
        let listener = StdListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let proxies = Proxies::start().unwrap();
        let near = TcpStream::connect(proxies.open(ROUTE, listener.local_addr().unwrap()).unwrap());
        let (far, _) = listener.accept().unwrap();
        (proxies, near.unwrap(), far)
    }

    fn read(socket: &mut TcpStream) -> std::io::Result<[u8; 2]> {
        let mut two = [0; 2];
        socket.read_exact(&mut two)?;
        Ok(two)
    }

    #[test]
    fn a_stalled_direction_keeps_what_is_said_and_the_other_goes_on() {
        let (proxies, mut near, mut far) = both();
        proxies.set("b", "a", Weather { stalled: true, ..Weather::default() });
        far.write_all(b"no").unwrap();
        near.write_all(b"up").unwrap();
        assert_eq!(&read(&mut far).unwrap(), b"up");
        near.set_nonblocking(true).unwrap();
        let early = read(&mut near).unwrap_err();
        assert_eq!(early.kind(), std::io::ErrorKind::WouldBlock);
        near.set_nonblocking(false).unwrap();
        proxies.clear();
        assert_eq!(&read(&mut near).unwrap(), b"no");
    }

    #[test]
    fn a_reset_ends_both_sides() {
        let (proxies, mut near, mut far) = both();
        near.write_all(b"up").unwrap();
        read(&mut far).unwrap();
        proxies.reset("b", "a");
        assert!(read(&mut near).is_err() && read(&mut far).is_err());
    }
}
