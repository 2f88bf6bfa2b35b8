//! One measurement: servers up, clients in, warm-up, window, figures.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::bare::Mode;
use crate::fleet::{Fleet, Script, Stage, Traffic};
use crate::machine;
use crate::report::Figures;
use crate::servers::{Servers, Setup};
use crate::syscalls::Count;
use crate::wire::{Random, Transport};
use crate::workload::{Echo, Entrance, Idle, Integrity, Latencies, Rooms, Subject};

/// The kind whose instances answer a call with its payload.
pub(crate) const ECHO_KIND: &str = "echo";
/// The kind of W2.
const ROOMS_KIND: &str = "crowd";
/// Instances that the game server takes: as many as it does by default.
const CAPACITY: usize = 10_000;
/// Between two inputs of a player.
const INPUT_INTERVAL: Duration = Duration::from_millis(100);
/// The longest that servers may take to find each other.
pub(crate) const OPEN_MAX: Duration = Duration::from_secs(15);
/// Between two tries of a client that is turned away.
pub(crate) const TRY_INTERVAL: Duration = Duration::from_millis(20);
/// W3 looks at the memory after this long.
const IDLE_FOR: Duration = Duration::from_secs(3);

/// What to measure.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    pub(crate) setup: Setup,
    pub(crate) subject: Subject,
    pub(crate) transport: Transport,
    /// Connections, players, workers, or instances.
    pub(crate) size: usize,
    /// Workers, where instances are counted.
    pub(crate) workers: usize,
    pub(crate) warm_up: Duration,
    pub(crate) window: Duration,
    /// Whether to count system calls afterwards.
    pub(crate) counts_calls: bool,
}

impl Order {
    fn servers(&self, mode: Mode) -> anyhow::Result<Servers> {
        match self.subject {
            Subject::Bare => Servers::bare(&self.setup, mode, self.transport),
            Subject::Greenroom => Servers::greenroom(&self.setup, self.transport, CAPACITY),
        }
    }

    /// Runs `measure` with the servers up; if it fails, the end of their logs goes into the error.
    pub(crate) fn with_servers(
        &self,
        mode: Mode,
        measure: impl FnOnce(&Servers) -> anyhow::Result<Figures>,
    ) -> anyhow::Result<Figures> {
        let servers = self.servers(mode)?;
        servers.explained(self.wait_until_open(&servers).and_then(|()| measure(&servers)))
    }
}

impl Order {
    /// Servers are ready before they know each other: one client tries until it gets a seat.
    fn wait_until_open(&self, servers: &Servers) -> anyhow::Result<()> {
        if self.subject == Subject::Bare {
            return Ok(()); // Its clients are counted off into rooms, and it has nobody to find.
        }
        let started = Instant::now();
        loop {
            let mut fleet = Fleet::new(self.transport)?;
            let mut probe = Idle(Entrance::named(self.subject, Some(ECHO_KIND), "probe")?);
            match fleet.open(servers.address, 1, &mut probe) {
                Ok(()) => return Ok(()),
                Err(error) if started.elapsed() > OPEN_MAX => {
                    return Err(error.context("no client gets in"));
                }
                Err(_) => run(&mut fleet, &mut probe, Instant::now() + TRY_INTERVAL)?,
            }
        }
    }
}

/// The window that is timed.
pub(crate) struct Window {
    started: Instant,
    servers: Duration,
    game: Duration,
    generator: Duration,
    machine: Duration,
    traffic: Traffic,
}

/// What was used in it.
pub(crate) struct Used {
    pub(crate) seconds: f64,
    pub(crate) servers: f64,
    game: f64,
    /// Share of its core that the generator used: near 1, requests per second are a floor.
    pub(crate) generator: f64,
    /// Cores that others used.
    pub(crate) others: f64,
    traffic: Traffic,
}

impl Window {
    pub(crate) fn open(servers: &Servers, fleet: &Fleet) -> anyhow::Result<Self> {
        Ok(Self {
            started: Instant::now(),
            servers: servers.cpu()?,
            game: servers.cpu_of("game")?,
            generator: machine::cpu(std::process::id())?,
            machine: machine::cpu_of_all()?,
            traffic: fleet.traffic,
        })
    }

    pub(crate) fn close(self, servers: &Servers, fleet: &Fleet) -> anyhow::Result<Used> {
        let seconds = self.started.elapsed().as_secs_f64();
        let since = |now: Duration, before: Duration| now.saturating_sub(before).as_secs_f64();
        let used = since(servers.cpu()?, self.servers);
        let generator = since(machine::cpu(std::process::id())?, self.generator);
        let all = since(machine::cpu_of_all()?, self.machine);
        Ok(Used {
            seconds,
            servers: used,
            game: since(servers.cpu_of("game")?, self.game),
            generator: generator / seconds,
            others: ((all - used - generator) / seconds).max(0.0),
            traffic: Traffic {
                frames_down: fleet.traffic.frames_down - self.traffic.frames_down,
                bytes_down: fleet.traffic.bytes_down - self.traffic.bytes_down,
                bytes_up: fleet.traffic.bytes_up - self.traffic.bytes_up,
            },
        })
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "counts and sizes of a benchmark are far below 2^52"
)]
pub(crate) fn float(count: u64) -> f64 {
    count as f64
}

fn integrity_figures(integrity: Integrity, closed: usize) -> Figures {
    vec![
        ("lost", float(integrity.lost)),
        ("doubled", float(integrity.doubled)),
        ("out_of_order", float(integrity.out_of_order)),
        ("mismatched", float(integrity.mismatched)),
        ("resyncs", float(integrity.resyncs)),
        ("closed", float(closed as u64)),
    ]
}

/// Runs the fleet until `until`.
pub(crate) fn run(
    fleet: &mut Fleet,
    script: &mut impl Script,
    until: Instant,
) -> anyhow::Result<()> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        fleet.turn(left, script)?;
    }
}

/// System calls and link writes for each of the messages that go by; empty where they can't be counted.
fn count_calls(
    servers: &Servers,
    fleet: &mut Fleet,
    mut turn: impl FnMut(&mut Fleet) -> anyhow::Result<()>,
    messages: impl Fn(&Fleet, f64) -> u64,
) -> anyhow::Result<Figures> {
    let before = messages(fleet, 0.0);
    let started = Instant::now();
    let counted = Count::start(&servers.processes(), &servers.link_ports).and_then(|mut count| {
        while !count.is_over() {
            turn(fleet)?;
        }
        count.finish()
    });
    let seconds = started.elapsed().as_secs_f64();
    let calls = match counted {
        Ok(calls) => calls,
        Err(error) => {
            crate::report::progress(&format!("  {error:#}"));
            return Ok(Vec::new());
        }
    };
    let per_second = float(messages(fleet, seconds) - before) / seconds;
    let all = calls.values().map(|calls| calls.all).sum::<f64>();
    let mut figures: Figures = vec![("syscalls_per_message", all / per_second)];
    if let (Some(session), Some(game)) = (calls.get("session"), calls.get("game")) {
        figures.extend([
            ("session_syscalls_per_message", session.all / per_second),
            ("game_syscalls_per_message", game.all / per_second),
            ("link_writes_up_per_message", session.link_writes / per_second),
            ("link_writes_down_per_message", game.link_writes / per_second),
        ]);
    }
    Ok(figures)
}

/// W1, one run.
///
/// # Errors
/// When servers don't start, clients are refused, or an answer is wrong.
pub(crate) fn w1(order: &Order) -> anyhow::Result<Figures> {
    order.with_servers(Mode::Echo, |servers| {
        let mut fleet = Fleet::new(order.transport)?;
        let mut echo = Echo {
            entrance: Entrance::new(order.subject, Some(ECHO_KIND))?,
            latencies: Latencies::new(),
            integrity: Integrity::default(),
            left: u64::MAX,
        };
        fleet.open(servers.address, order.size, &mut echo)?;
        for index in 0..order.size {
            fleet.say(index, |peer, out| echo.ask(peer, out));
        }
        run(&mut fleet, &mut echo, Instant::now() + order.warm_up)?;
        echo.latencies.reset();
        let window = Window::open(servers, &fleet)?;
        run(&mut fleet, &mut echo, Instant::now() + order.window)?;
        let used = window.close(servers, &fleet)?;
        let requests = echo.latencies.len();
        ensure!(requests > 0, "no request was answered");
        let (p50, p99) = (echo.latencies.quantile(0.5), echo.latencies.quantile(0.99));
        let mut figures: Figures = vec![
            ("cpu_s_per_million", used.servers / float(requests) * 1e6),
            ("requests_per_s", float(requests) / used.seconds),
            ("p50_us", float(p50)),
            ("p99_us", float(p99)),
            ("server_cores", used.servers / used.seconds),
            ("generator_cores", used.generator),
            ("others_cores", used.others),
        ];
        if order.subject == Subject::Greenroom {
            figures.insert(1, ("game_cpu_s_per_million", used.game / float(requests) * 1e6));
        }
        if order.counts_calls {
            figures.extend(count_calls(
                servers,
                &mut fleet,
                |fleet| fleet.turn(Duration::from_millis(5), &mut echo),
                |fleet, _| fleet.traffic.frames_down,
            )?);
        }
        ensure!(fleet.closed() == 0, "{} connections were closed", fleet.closed());
        figures.extend(integrity_figures(echo.integrity, fleet.closed()));
        Ok(figures)
    })
}

/// When each player sends its next input: every 100 ms from a random moment on.
#[derive(Debug)]
struct Pace {
    began: Instant,
    /// Within the interval, ascending, and whose.
    phases: Vec<(Duration, usize)>,
    next: usize,
    rounds: u32,
}

impl Pace {
    fn new(players: usize) -> Self {
        let mut random = Random::new(11);
        let mut phases: Vec<_> = (0..players)
            .map(|player| (Duration::from_micros(random.next() % 100_000), player))
            .collect();
        phases.sort_unstable();
        Self { began: Instant::now(), phases, next: 0, rounds: 0 }
    }

    fn due(&self) -> Instant {
        self.began + INPUT_INTERVAL * self.rounds + self.phases[self.next].0
    }

    fn advance(&mut self) -> usize {
        let player = self.phases[self.next].1;
        self.next += 1;
        if self.next == self.phases.len() {
            (self.next, self.rounds) = (0, self.rounds + 1);
        }
        player
    }

    /// Inputs that are due, and what has come.
    fn turn(&mut self, fleet: &mut Fleet, rooms: &mut Rooms, until: Instant) -> anyhow::Result<()> {
        let now = Instant::now();
        while self.due() <= now {
            let player = self.advance();
            if fleet.peers[player].stage == Stage::Ready {
                fleet.say(player, |peer, out| rooms.play(peer, out));
            }
        }
        fleet.turn(self.due().min(until).saturating_duration_since(now), rooms)
    }

    fn run(&mut self, fleet: &mut Fleet, rooms: &mut Rooms, until: Instant) -> anyhow::Result<()> {
        while Instant::now() < until {
            self.turn(fleet, rooms, until)?;
        }
        Ok(())
    }
}

/// W2, one run.
///
/// # Errors
/// When servers don't start or clients are refused. A server that can't keep up is no error: it is a figure.
pub(crate) fn w2(order: &Order) -> anyhow::Result<Figures> {
    order.with_servers(Mode::Rooms, |servers| {
        let mut fleet = Fleet::new(order.transport)?;
        let mut rooms = Rooms::new(Entrance::new(order.subject, Some(ROOMS_KIND))?);
        fleet.open(servers.address, order.size, &mut rooms)?;
        let mut pace = Pace::new(order.size);
        pace.run(&mut fleet, &mut rooms, Instant::now() + order.warm_up)?;
        rooms.latencies.reset();
        let window = Window::open(servers, &fleet)?;
        pace.run(&mut fleet, &mut rooms, Instant::now() + order.window)?;
        let used = window.close(servers, &fleet)?;
        let clients = float(order.size as u64);
        let client_seconds = clients * used.seconds;
        let ticks = rooms.latencies.len();
        let (p50, p99) = (rooms.latencies.quantile(0.5), rooms.latencies.quantile(0.99));
        let behind = fleet.peers.iter().map(|peer| peer.sent.0.saturating_sub(peer.acknowledged.0));
        let mut figures: Figures = vec![
            ("cpu_s_per_client_minute", used.servers / client_seconds * 60.0),
            ("bytes_per_client_s", float(used.traffic.bytes_down) / client_seconds),
            ("bytes_up_per_client_s", float(used.traffic.bytes_up) / client_seconds),
            ("ticks_per_s", float(ticks) / client_seconds),
            ("p50_ms", float(p50) / 1000.0),
            ("p99_ms", float(p99) / 1000.0),
            ("server_cores", used.servers / used.seconds),
            ("generator_cores", used.generator),
            ("others_cores", used.others),
        ];
        if order.subject == Subject::Greenroom {
            let behind = behind.max().context("no client")?;
            figures.push(("inputs_unacknowledged_max", f64::from(behind)));
            figures.insert(1, ("game_cpu_s_per_client_minute", used.game / client_seconds * 60.0));
        }
        let (integrity, closed) = (rooms.integrity, fleet.closed());
        if order.counts_calls {
            let frames = 1.0 / INPUT_INTERVAL.as_secs_f64() * clients;
            let before = fleet.traffic.frames_down;
            figures.extend(count_calls(
                servers,
                &mut fleet,
                |fleet| pace.turn(fleet, &mut rooms, Instant::now() + Duration::from_millis(5)),
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "inputs of a second or two"
                )]
                |fleet, seconds| fleet.traffic.frames_down - before + (frames * seconds) as u64,
            )?);
        }
        figures.extend(integrity_figures(integrity, closed));
        Ok(figures)
    })
}

/// W3, one run.
///
/// # Errors
/// When servers don't start, clients are refused, or not all stay connected.
pub(crate) fn w3(order: &Order) -> anyhow::Result<Figures> {
    order.with_servers(Mode::Echo, |servers| {
        let mut fleet = Fleet::new(order.transport)?;
        let mut idle = Idle(Entrance::new(order.subject, None)?);
        let (front, all) = (servers.rss_of_front()?, servers.rss()?);
        fleet.open(servers.address, order.size, &mut idle)?;
        run(&mut fleet, &mut idle, Instant::now() + IDLE_FOR)?;
        let connections = float(order.size as u64);
        let each = |now: u64, before: u64| float(now.saturating_sub(before)) / connections;
        ensure!(fleet.closed() == 0, "{} connections were closed", fleet.closed());
        Ok(vec![
            ("rss_bytes_per_connection", each(servers.rss_of_front()?, front)),
            ("all_servers_rss_bytes_per_connection", each(servers.rss()?, all)),
            ("rss_before_mib", float(front) / 1_048_576.0),
        ])
    })
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr, TcpListener};
    use std::thread;

    use super::*;
    use crate::bare;

    /// The longest that a test waits for what should come at once.
    const PATIENCE: Duration = Duration::from_secs(20);

    fn bare_server(mode: Mode, transport: Transport) -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || bare::serve_on(listener, mode, transport).unwrap());
        address
    }

    #[test]
    fn a_bare_echo_answers_every_client_in_turn() {
        for transport in [Transport::Tcp, Transport::Ws] {
            let mut fleet = Fleet::new(transport).unwrap();
            let mut echo = Echo {
                entrance: Entrance::new(Subject::Bare, None).unwrap(),
                latencies: Latencies::new(),
                integrity: Integrity::default(),
                left: u64::MAX,
            };
            fleet.open(bare_server(Mode::Echo, transport), 5, &mut echo).unwrap();
            for index in 0..5 {
                fleet.say(index, |peer, out| echo.ask(peer, out));
            }
            let started = Instant::now();
            while fleet.peers.iter().any(|peer| peer.sent.0 < 20) {
                assert!(started.elapsed() < PATIENCE, "{:?}", fleet.peers);
                fleet.turn(Duration::from_millis(50), &mut echo).unwrap();
            }
            assert_eq!(fleet.closed(), 0);
        }
    }

    #[test]
    fn everybody_in_a_bare_room_hears_every_tick() {
        for transport in [Transport::Tcp, Transport::Ws] {
            let mut fleet = Fleet::new(transport).unwrap();
            let mut rooms = Rooms::new(Entrance::new(Subject::Bare, None).unwrap());
            // A full room and one of a single player.
            fleet.open(bare_server(Mode::Rooms, transport), 17, &mut rooms).unwrap();
            let mut pace = Pace::new(17);
            let started = Instant::now();
            while rooms.latencies.len() < 17 * 10 {
                assert!(started.elapsed() < PATIENCE, "{} ticks", rooms.latencies.len());
                pace.run(&mut fleet, &mut rooms, Instant::now() + Duration::from_millis(50))
                    .unwrap();
            }
            assert_eq!((fleet.closed(), rooms.integrity), (0, Integrity::default()));
            // 17 clients at 120 bytes a second, or 140 with WebSocket's header: below the least there is no input.
            assert!(fleet.traffic.bytes_up > 17 * 12, "{:?}", fleet.traffic);
        }
    }

    #[test]
    fn players_send_ten_inputs_a_second_each_at_its_own_phase() {
        let mut pace = Pace::new(40);
        let began = pace.began;
        let mut due = vec![Vec::new(); 40];
        for _ in 0..40 * 10 {
            let at = pace.due() - began;
            due[pace.advance()].push(at);
        }
        for player in due {
            assert_eq!(player.len(), 10);
            assert!(player.windows(2).all(|two| two[1] - two[0] == INPUT_INTERVAL));
        }
    }
}
