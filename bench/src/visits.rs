//! W4: the directory over the whole path. Workers that make, enter and leave instances, and searches among many.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use greenroom_protocol::search::Filter;
use greenroom_protocol::wire::client_instance::{DOWN, LATEST, MESSAGE};
use greenroom_protocol::wire::client_session::{
    Create, Join, JoinOrCreate, Leave, REPLIES, Reply, Request,
};
use greenroom_protocol::{InstanceId, Key, KindName, Limits, ReplyHeader, RequestId, encode};
use serde::Serialize;

use crate::core::{About, LOBBY, SEARCHES, below, rating, search};
use crate::fleet::{Fleet, Peer, Script, Stage};
use crate::measure::{OPEN_MAX, Order, TRY_INTERVAL, Window, float, run};
use crate::report::{Figures, progress};
use crate::servers::Servers;
use crate::wire::{Outbox, Random};
use crate::workload::{Entrance, Integrity, Latencies, Subject, ask as request, down, seated, up};

/// The kind whose instances close when the last seat is free.
const VISIT: &str = "visit";
/// Instances that a game server takes beside those that are searched.
const CAPACITY: usize = 10_000;
/// The longest that the last instances may take to close.
const CLOSING_MAX: Duration = Duration::from_secs(10);
/// The longest that what was asked last may take.
const ANSWERS_MAX: Duration = Duration::from_secs(10);
/// The longest that nothing may be made while lobbies are.
const FILLING_SILENCE_MAX: Duration = Duration::from_secs(20);
/// Connections that search.
const SEARCHERS: usize = 8;
/// Updates a second beside searches, and the longest that the next ones are late.
const UPDATES_PER_S: f64 = 5_000.0;
const UPDATES_LATE_MAX: Duration = Duration::from_millis(1);

/// The next request of a client that has every answer to those before.
fn ask(out: &mut Outbox, asked: &mut u32, what: &Request) {
    *asked += 1;
    request(out, RequestId(*asked), what);
}

/// What is answered; nothing for a frame that is no answer.
fn answer(peer: &Peer, frame: &[u8]) -> anyhow::Result<Option<Reply>> {
    if !REPLIES.contains(&frame[0]) {
        return Ok(None);
    }
    let (_, body) = ReplyHeader::split(frame)?;
    let reply = Reply::decode(frame[0], body, Limits::SERVER)?;
    if let Reply::Refused(refusal) = &reply {
        bail!("client {} is refused: {refusal}", peer.index);
    }
    Ok(Some(reply))
}

/// One worker of W4.
#[derive(Clone, Copy, Debug)]
struct Worker {
    asked: u32,
    cycles: u64,
    began: Instant,
    is_away: bool,
}

/// W4: each worker makes an instance with a key that nobody had before, by joining it; leaves; begins again.
#[derive(Debug)]
struct Visits {
    entrance: Entrance,
    kind: KindName,
    /// Begins the keys.
    prefix: &'static str,
    workers: Vec<Worker>,
    latencies: Latencies,
    /// No new cycle begins.
    is_over: bool,
}

impl Visits {
    fn new(prefix: &'static str, workers: usize) -> anyhow::Result<Self> {
        let idle = Worker { asked: 0, cycles: 0, began: Instant::now(), is_away: false };
        Ok(Self {
            entrance: Entrance::named(Subject::Greenroom, None, prefix)?,
            kind: KindName::new(VISIT)?,
            prefix,
            workers: vec![idle; workers],
            latencies: Latencies::new(),
            is_over: false,
        })
    }

    fn begin(&mut self, index: usize, out: &mut Outbox) -> anyhow::Result<()> {
        let worker = &mut self.workers[index];
        (worker.began, worker.is_away) = (Instant::now(), true);
        let join = JoinOrCreate {
            kind: self.kind.clone(),
            key: Some(Key::new(format!("{}-{index}-{}", self.prefix, worker.cycles))?),
            filter: Filter::default(),
            params: Vec::new().into(),
            private: false,
            expected: Vec::new(),
            options: Vec::new().into(),
        };
        ask(out, &mut worker.asked, &join.into());
        Ok(())
    }

    fn cycles(&self) -> u64 {
        self.workers.iter().map(|worker| worker.cycles).sum()
    }

    /// Lets every worker begin.
    fn start(&mut self, fleet: &mut Fleet) -> anyhow::Result<()> {
        for index in 0..self.workers.len() {
            let mut begun = Ok(());
            fleet.say(index, |_, out| begun = self.begin(index, out));
            begun?;
        }
        Ok(())
    }

    /// Lets every worker end its cycle.
    fn finish(&mut self, fleet: &mut Fleet) -> anyhow::Result<()> {
        self.is_over = true;
        let asked = Instant::now();
        while self.workers.iter().any(|worker| worker.is_away) {
            ensure!(fleet.closed() == 0, "{} connections were closed", fleet.closed());
            ensure!(asked.elapsed() < ANSWERS_MAX, "a cycle does not end");
            fleet.turn(Duration::from_millis(20), self)?;
        }
        Ok(())
    }
}

impl Script for Visits {
    fn connected(&mut self, peer: &mut Peer, out: &mut Outbox) {
        self.entrance.connected(peer, out);
    }

    fn frame(&mut self, peer: &mut Peer, frame: &[u8], out: &mut Outbox) -> anyhow::Result<()> {
        if DOWN.contains(&frame[0]) || LATEST.contains(&frame[0]) {
            return Ok(()); // An empty view, and that the seat is gone when it was left.
        }
        let Some(reply) = answer(peer, frame)? else {
            return self.entrance.frame(peer, frame, out);
        };
        let worker = &mut self.workers[peer.index];
        if let Reply::Joined(joined) = reply {
            ask(out, &mut worker.asked, &Leave { instance: joined.instance }.into());
        } else if let Reply::Left(_) = reply {
            self.latencies.record(micros(worker.began.elapsed()));
            worker.cycles += 1;
            worker.is_away = false;
            if !self.is_over {
                self.begin(peer.index, out)?;
            }
        } else {
            bail!("worker {} got {reply:?}", peer.index);
        }
        Ok(())
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Servers are ready before they know each other: one worker tries until it was in an instance and out of it again.
fn wait_until_open(order: &Order, servers: &Servers) -> anyhow::Result<()> {
    let started = Instant::now();
    loop {
        let mut fleet = Fleet::new(order.transport)?;
        let mut probe = Visits::new("probe", 1)?;
        let visited = (fleet.open(servers.address, 1, &mut probe))
            .and_then(|()| probe.start(&mut fleet))
            .and_then(|()| probe.finish(&mut fleet));
        match visited {
            Ok(()) => return Ok(()),
            Err(error) if started.elapsed() > OPEN_MAX => {
                return Err(error.context("no client gets in"));
            }
            Err(_) => run(&mut fleet, &mut probe, Instant::now() + TRY_INTERVAL)?,
        }
    }
}

/// W4, one run.
///
/// # Errors
/// When servers don't start, anything is refused, or an instance is left over.
pub(crate) fn w4(order: &Order) -> anyhow::Result<Figures> {
    let servers = Servers::greenroom(&order.setup, order.transport, CAPACITY)?;
    servers.explained(wait_until_open(order, &servers).and_then(|()| cycles(order, &servers)))
}

fn cycles(order: &Order, servers: &Servers) -> anyhow::Result<Figures> {
    let mut fleet = Fleet::new(order.transport)?;
    let mut visits = Visits::new("bench", order.size)?;
    fleet.open(servers.address, order.size, &mut visits)?;
    visits.start(&mut fleet)?;
    run(&mut fleet, &mut visits, Instant::now() + order.warm_up)?;
    visits.latencies.reset();
    let window = Window::open(servers, &fleet)?;
    let (before, applied) = (Roles::of(servers)?, commands(servers)?);
    run(&mut fleet, &mut visits, Instant::now() + order.window)?;
    let (after, applied) = (Roles::of(servers)?, commands(servers)? - applied);
    let used = window.close(servers, &fleet)?;
    let latencies = std::mem::replace(&mut visits.latencies, Latencies::new());
    let sagas = latencies.len();
    ensure!(sagas > 0, "no cycle was completed");
    visits.finish(&mut fleet)?;
    ensure!(fleet.closed() == 0, "{} connections were closed", fleet.closed());
    let closing = wait_until_empty(servers, &mut fleet, &mut visits)?;
    let each = |seconds: f64| seconds * 1e3 / float(sagas);
    let role = |now: Duration, then: Duration| each(now.saturating_sub(then).as_secs_f64());
    Ok(vec![
        ("cpu_ms_per_saga", each(used.servers)),
        ("master_cpu_ms_per_saga", role(after.master, before.master)),
        ("session_cpu_ms_per_saga", role(after.session, before.session)),
        ("game_cpu_ms_per_saga", role(after.game, before.game)),
        ("sagas_per_s", float(sagas) / used.seconds),
        ("p50_ms", float(latencies.quantile(0.5)) / 1e3),
        ("p99_ms", float(latencies.quantile(0.99)) / 1e3),
        // Ask, running, taken, ask, free, closed: six, and acknowledgements now and then.
        ("commands_per_saga", float(applied) / float(sagas)),
        ("sagas_in_all", float(visits.cycles())),
        ("instances_left", 0.0),
        ("last_closed_after_ms", closing.as_secs_f64() * 1e3),
        ("server_cores", used.servers / used.seconds),
        ("generator_cores", used.generator),
        ("others_cores", used.others),
    ])
}

/// Processor time of each server so far.
#[derive(Clone, Copy, Debug)]
struct Roles {
    master: Duration,
    session: Duration,
    game: Duration,
}

impl Roles {
    fn of(servers: &Servers) -> anyhow::Result<Self> {
        Ok(Self {
            master: servers.cpu_of("master")?,
            session: servers.cpu_of("session")?,
            game: servers.cpu_of("game")?,
        })
    }
}

/// Waits until the master has no instance any more: every one that was made is closed. Gives how long that took.
fn wait_until_empty(
    servers: &Servers,
    fleet: &mut Fleet,
    visits: &mut Visits,
) -> anyhow::Result<Duration> {
    let asked = Instant::now();
    loop {
        let left = servers.status()?.instances;
        if left == 0 {
            return Ok(asked.elapsed());
        }
        ensure!(
            asked.elapsed() < CLOSING_MAX,
            "{left} instances are left after {} s, and nobody is in them",
            CLOSING_MAX.as_secs()
        );
        run(fleet, visits, Instant::now() + TRY_INTERVAL)?;
    }
}

/// What whoever makes a lobby says of it: the parameters of the kind.
#[derive(Debug, Serialize)]
struct Params {
    mode: &'static str,
    rating: u16,
    name: String,
    map: &'static str,
    level: u16,
}

/// A message to a lobby.
#[derive(Debug, Serialize)]
struct Rate {
    rating: u16,
}

/// Many lobbies. The first clients make them, take a seat each and rate theirs anew; the last ones search.
#[derive(Debug)]
struct Lobbies {
    entrance: Entrance,
    kind: KindName,
    random: Random,
    wanted: usize,
    asked_for: usize,
    made: usize,
    clients: Vec<Client>,
    latencies: Latencies,
    integrity: Integrity,
    found: u64,
    is_over: bool,
}

#[derive(Clone, Copy, Debug)]
struct Client {
    asked: u32,
    began: Instant,
    /// The lobby that it made last.
    lobby: Option<InstanceId>,
    is_seated: bool,
    waits: bool,
}

impl Lobbies {
    fn new(clients: usize, wanted: usize) -> anyhow::Result<Self> {
        let client =
            Client { asked: 0, began: Instant::now(), lobby: None, is_seated: false, waits: false };
        Ok(Self {
            entrance: Entrance::named(Subject::Greenroom, None, "bench")?,
            kind: KindName::new(LOBBY)?,
            random: Random::new(21),
            wanted,
            asked_for: 0,
            made: 0,
            clients: vec![client; clients],
            latencies: Latencies::new(),
            integrity: Integrity::default(),
            found: 0,
            is_over: false,
        })
    }

    /// The next lobby, or a seat in the last one when there are enough.
    fn make(&mut self, index: usize, out: &mut Outbox) {
        let client = &mut self.clients[index];
        if self.asked_for == self.wanted {
            if let Some(instance) = client.lobby {
                let join = Join { instance, options: Vec::new().into() };
                ask(out, &mut client.asked, &join.into());
            }
            return;
        }
        self.asked_for += 1;
        let About { mode, rating, name, map, level } = About::draw(&mut self.random);
        let create = Create {
            kind: self.kind.clone(),
            key: None,
            params: encode(&Params { mode, rating, name, map, level }).into(),
            private: false,
            expected: Vec::new(),
        };
        ask(out, &mut client.asked, &create.into());
    }

    fn search(&mut self, index: usize, out: &mut Outbox) -> anyhow::Result<()> {
        let what = search(below(&mut self.random, SEARCHES.len()), &mut self.random)?;
        let client = &mut self.clients[index];
        (client.began, client.waits) = (Instant::now(), true);
        ask(out, &mut client.asked, &what.into());
        Ok(())
    }

    /// A player rates its lobby anew.
    fn rate(&mut self, peer: &mut Peer, out: &mut Outbox) {
        let rate = Rate { rating: rating(&mut self.random) };
        up(peer, MESSAGE, &encode(&rate), out);
    }
}

impl Script for Lobbies {
    fn connected(&mut self, peer: &mut Peer, out: &mut Outbox) {
        self.entrance.connected(peer, out);
    }

    fn frame(&mut self, peer: &mut Peer, frame: &[u8], out: &mut Outbox) -> anyhow::Result<()> {
        if LATEST.contains(&frame[0]) {
            return Ok(()); // The view is empty.
        }
        if DOWN.contains(&frame[0]) {
            return down(peer, &mut self.integrity, frame).map(drop);
        }
        let Some(reply) = answer(peer, frame)? else {
            return self.entrance.frame(peer, frame, out);
        };
        let client = &mut self.clients[peer.index];
        if let Reply::Created(created) = reply {
            client.lobby = Some(created.instance);
            self.made += 1;
            self.make(peer.index, out);
        } else if let Reply::Joined(joined) = reply {
            client.is_seated = true;
            seated(peer, &joined);
        } else if let Reply::Found(found) = reply {
            client.waits = false;
            self.latencies.record(micros(client.began.elapsed()));
            self.found += found.instances.len() as u64;
            if !self.is_over {
                self.search(peer.index, out)?;
            }
        } else {
            bail!("client {} got {reply:?}", peer.index);
        }
        Ok(())
    }
}

/// Searches among many lobbies as clients see them, while players go on changing some.
///
/// # Errors
/// When servers don't start, anything is refused, or nothing is found.
pub(crate) fn searches(order: &Order) -> anyhow::Result<Figures> {
    let servers = Servers::greenroom(&order.setup, order.transport, CAPACITY + order.size)?;
    servers.explained(wait_until_open(order, &servers).and_then(|()| searching(order, &servers)))
}

fn searching(order: &Order, servers: &Servers) -> anyhow::Result<Figures> {
    let instances = order.size;
    let writers = order.workers.min(instances);
    let mut fleet = Fleet::new(order.transport)?;
    let mut lobbies = Lobbies::new(writers + SEARCHERS, instances)?;
    fleet.open(servers.address, writers, &mut lobbies)?;
    let filling = Instant::now();
    fill(&mut fleet, &mut lobbies, writers)?;
    let filling = filling.elapsed().as_secs_f64();
    progress(&format!("  {instances} lobbies are there after {filling:.1} s"));
    fleet.open(servers.address, writers + SEARCHERS, &mut lobbies)?;
    for index in writers..writers + SEARCHERS {
        let mut asked = Ok(());
        fleet.say(index, |_, out| asked = lobbies.search(index, out));
        asked?;
    }
    let mut updates = Updates { began: Instant::now(), sent: 0 };
    updates.run(&mut fleet, &mut lobbies, writers, Instant::now() + order.warm_up)?;
    lobbies.latencies.reset();
    let found = lobbies.found;
    let before = commands(servers)?;
    let (window, sent) = (Window::open(servers, &fleet)?, updates.sent);
    updates.run(&mut fleet, &mut lobbies, writers, Instant::now() + order.window)?;
    let used = window.close(servers, &fleet)?;
    let applied = commands(servers)? - before;
    let (sent, found) = (updates.sent - sent, lobbies.found - found);
    let searches = lobbies.latencies.len();
    let (p50, p99) = (lobbies.latencies.quantile(0.5), lobbies.latencies.quantile(0.99));
    ensure!(searches > 0 && found > 0, "nothing was found");
    lobbies.is_over = true;
    let asked = Instant::now();
    while lobbies.clients.iter().any(|client| client.waits)
        || fleet.peers[..writers].iter().any(|peer| peer.acknowledged != peer.sent)
    {
        ensure!(asked.elapsed() < ANSWERS_MAX, "a search or an update is not answered");
        fleet.turn(Duration::from_millis(20), &mut lobbies)?;
    }
    let Integrity { lost, doubled, out_of_order, .. } = lobbies.integrity;
    ensure!(lost + doubled + out_of_order == 0, "{:?}", lobbies.integrity);
    ensure!(fleet.closed() == 0, "{} connections were closed", fleet.closed());
    Ok(vec![
        ("search_client_p99_ms", float(p99) / 1e3),
        ("search_client_p50_ms", float(p50) / 1e3),
        ("searches_per_s", float(searches) / used.seconds),
        ("found_per_search", float(found) / float(searches)),
        ("updates_per_s", float(sent) / used.seconds),
        ("commands_per_s", float(applied) / used.seconds),
        ("created_per_s", float(instances as u64) / filling),
        ("server_cores", used.servers / used.seconds),
        ("generator_cores", used.generator),
        ("others_cores", used.others),
    ])
}

/// Commands that the master has applied so far.
fn commands(servers: &Servers) -> anyhow::Result<u64> {
    let status = servers.status()?;
    Ok(status.masters.first().context("a cluster has a master")?.lsn)
}

/// Makes the lobbies, and seats whoever made them.
fn fill(fleet: &mut Fleet, lobbies: &mut Lobbies, writers: usize) -> anyhow::Result<()> {
    for index in 0..writers {
        fleet.say(index, |_, out| lobbies.make(index, out));
    }
    let mut progress = (Instant::now(), 0);
    while lobbies.clients[..writers].iter().any(|client| !client.is_seated) {
        if lobbies.made > progress.1 {
            progress = (Instant::now(), lobbies.made);
        }
        ensure!(
            progress.0.elapsed() < FILLING_SILENCE_MAX,
            "{} lobbies are there, and no further one",
            lobbies.made
        );
        ensure!(fleet.closed() == 0, "{} connections were closed", fleet.closed());
        fleet.turn(Duration::from_millis(20), lobbies)?;
    }
    Ok(())
}

/// The players' messages, by the clock, in turn.
struct Updates {
    began: Instant,
    sent: u64,
}

impl Updates {
    fn run(
        &mut self,
        fleet: &mut Fleet,
        lobbies: &mut Lobbies,
        writers: usize,
        until: Instant,
    ) -> anyhow::Result<()> {
        while Instant::now() < until {
            let due = self.began.elapsed().as_secs_f64() * UPDATES_PER_S;
            while float(self.sent) < due {
                let index = usize::try_from(self.sent % writers as u64)?;
                if fleet.peers[index].stage == Stage::Ready {
                    fleet.say(index, |peer, out| lobbies.rate(peer, out));
                }
                self.sent += 1;
            }
            fleet.turn(UPDATES_LATE_MAX, lobbies)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
    use std::sync::mpsc::{self, Sender};
    use std::thread;

    use greenroom_protocol::wire::client_session::{
        CheckedIn, ClientToSession, Joined, Left, REQUESTS, ServerHello, SessionToClient,
    };
    use greenroom_protocol::{
        Channel, Code, Incarnation, Refusal, RequestHeader, Seat, SessionId, UserId,
    };

    use super::*;
    use crate::wire::Transport;

    /// The longest that a test waits for what should come at once.
    const PATIENCE: Duration = Duration::from_secs(20);

    /// A session server that gives everybody every seat, and tells which keys were asked for; or refuses all of them.
    fn session_server(refuses: bool) -> (SocketAddr, mpsc::Receiver<String>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let (keys, asked) = mpsc::channel();
        thread::spawn(move || {
            for socket in listener.incoming() {
                let keys = keys.clone();
                // It ends when the client hangs up in the middle of a frame that never begins.
                thread::spawn(move || drop(serve(socket.unwrap(), refuses, &keys)));
            }
        });
        (address, asked)
    }

    fn serve(mut socket: TcpStream, refuses: bool, keys: &Sender<String>) -> anyhow::Result<()> {
        loop {
            let mut len = [0; 4];
            socket.read_exact(&mut len)?;
            let mut frame = vec![0; usize::try_from(u32::from_le_bytes(len))?];
            socket.read_exact(&mut frame)?;
            let answer = match REQUESTS.contains(&frame[0]) {
                true => replied(&frame, refuses, keys)?,
                false => greeted(&frame)?,
            };
            socket.write_all(&u32::try_from(answer.len())?.to_le_bytes())?;
            socket.write_all(&answer)?;
        }
    }

    fn greeted(frame: &[u8]) -> anyhow::Result<Vec<u8>> {
        let answer: SessionToClient =
            match ClientToSession::decode(frame[0], &frame[1..], Limits::CLIENT)? {
                ClientToSession::Hello(_) => ServerHello {
                    protocol: 1,
                    features: Vec::new(),
                    agent: "test".into(),
                    heartbeat_ms: 10_000,
                }
                .into(),
                ClientToSession::CheckIn(_) => CheckedIn {
                    user: UserId::new("somebody")?,
                    name: "somebody".into(),
                    session: SessionId(1),
                    session_servers: Vec::new(),
                    server_time_ms: 0,
                }
                .into(),
                other @ (ClientToSession::Seen(_) | ClientToSession::Unknown(_)) => {
                    bail!("unexpected: {other:?}")
                }
            };
        let mut bytes = vec![answer.kind()];
        answer.encode_into(&mut bytes);
        Ok(bytes)
    }

    fn replied(frame: &[u8], refuses: bool, keys: &Sender<String>) -> anyhow::Result<Vec<u8>> {
        let (header, body) = RequestHeader::split(frame)?;
        let request = Request::decode(frame[0], body, Limits::CLIENT)?;
        let reply: Reply = if let Request::JoinOrCreate(join) = request {
            keys.send(join.key.context("a visit has a key")?.as_str().to_owned())?;
            if refuses {
                Refusal::new(Code::NoCapacity, "not today").into()
            } else {
                Joined {
                    instance: InstanceId(7),
                    kind: join.kind,
                    incarnation: Incarnation(1),
                    channel: Channel(1),
                    seat: Seat(0),
                    up_received: 0,
                    down_next: 1,
                    tick_rate: 0,
                }
                .into()
            }
        } else if let Request::Leave(leave) = request {
            Left { instance: leave.instance }.into()
        } else {
            bail!("unexpected: {request:?}")
        };
        let mut bytes = ReplyHeader { kind: reply.kind(), id: header.id }.bytes().to_vec();
        reply.encode_into(&mut bytes);
        Ok(bytes)
    }

    #[test]
    fn workers_ask_for_a_new_key_in_each_cycle_and_stop_between_two() {
        let (address, keys) = session_server(false);
        let mut fleet = Fleet::new(Transport::Tcp).unwrap();
        let mut visits = Visits::new("test", 3).unwrap();
        fleet.open(address, 3, &mut visits).unwrap();
        visits.start(&mut fleet).unwrap();
        let started = Instant::now();
        while visits.workers.iter().any(|worker| worker.cycles < 10) {
            assert!(started.elapsed() < PATIENCE, "{:?}", visits.workers);
            fleet.turn(Duration::from_millis(20), &mut visits).unwrap();
        }
        visits.finish(&mut fleet).unwrap();
        let keys: Vec<String> = keys.try_iter().collect();
        let different: BTreeSet<&String> = keys.iter().collect();
        assert_eq!(different.len(), keys.len(), "a key was used twice");
        assert_eq!(visits.cycles(), keys.len() as u64, "a cycle was begun and not ended");
        assert_eq!(visits.latencies.len(), visits.cycles());
    }

    #[test]
    fn a_cycle_that_is_refused_ends_the_measurement() {
        let (address, _keys) = session_server(true);
        let mut fleet = Fleet::new(Transport::Tcp).unwrap();
        let mut visits = Visits::new("test", 1).unwrap();
        fleet.open(address, 1, &mut visits).unwrap();
        visits.start(&mut fleet).unwrap();
        let refused = visits.finish(&mut fleet).unwrap_err();
        assert!(refused.to_string().contains("not today"), "{refused}");
    }
}
