//! Bots against a small server that echoes, and that breaks connections or cheats as each test wants.

#![expect(clippy::unwrap_used, reason = "a script that fails is a test that fails")]

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use greenroom_client::bots::{self, BotsConfig, Game, Report};
use greenroom_protocol::{
    Channel, DownHeader, Incarnation, InstanceId, KindName, Limits, ReplyHeader, RequestHeader,
    Seat, Seq, SessionId, SessionKey, UpHeader, UserId,
    wire::{
        client_instance as kinds,
        client_session::{
            CheckedIn, ClientToSession, Joined, Left, REQUESTS, Reply, Request, ServerHello,
            SessionToClient,
        },
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

const INSTANCE: InstanceId = InstanceId(7);
const CHANNEL: Channel = Channel(1);

/// What the server does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// Breaks every connection after so many frames.
    Breaks(u32),
    /// Answers every tenth call twice.
    Doubles,
    /// Answers every tenth call with the reply to another.
    Mixes,
    /// Breaks a connection at every seat's twentieth call, and begins the instance anew.
    Rewinds,
}

/// What a seat of the instance remembers across connections.
#[derive(Debug, Default)]
struct SeatMemory {
    session: u64,
    /// Lives of the instance that this seat has seen the end of.
    lives_over: u32,
    received: u32,
    sent: u32,
    ring: VecDeque<(u32, u8, Vec<u8>)>,
}

#[derive(Debug)]
struct Server {
    fault: Fault,
    seats: Mutex<BTreeMap<SessionKey, SeatMemory>>,
}

impl Server {
    fn seats(&self) -> MutexGuard<'_, BTreeMap<SessionKey, SeatMemory>> {
        self.seats.lock().unwrap()
    }

    async fn serve(self: Arc<Self>, listener: TcpListener, tasks: TaskTracker) {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let server = Arc::clone(&self);
            tasks.spawn(async move {
                // A connection that ends is what clients do.
                drop(server.converse(stream).await);
            });
        }
    }

    async fn converse(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut key = SessionKey([0; 16]);
        let mut frames = 0;
        loop {
            let len = stream.read_u32_le().await?;
            let mut frame = vec![0; len as usize];
            stream.read_exact(&mut frame).await?;
            let mut out = Vec::new();
            if frame[0] <= 0x02 {
                out.push(self.begin(&frame, &mut key));
            } else if REQUESTS.contains(&frame[0]) {
                self.request(&frame, key, &mut out);
            } else if kinds::UP.contains(&frame[0]) {
                self.up(&frame, key, &mut out);
                frames += 1;
            }
            if self.fault == Fault::Breaks(frames) || self.rewinds(key) {
                return Ok(());
            }
            for frame in out {
                stream.write_all(&u32::try_from(frame.len()).unwrap().to_le_bytes()).await?;
                stream.write_all(&frame).await?;
            }
        }
    }

    /// Whether the instance's life ends here, with the calls of this seat that were not answered.
    fn rewinds(&self, key: SessionKey) -> bool {
        let mut seats = self.seats();
        let Some(seat) = seats.get_mut(&key) else { return false };
        let ends = self.fault == Fault::Rewinds && seat.lives_over == 0 && seat.received == 20;
        if ends {
            *seat = SeatMemory { session: seat.session, lives_over: 1, ..SeatMemory::default() };
        }
        ends
    }

    fn begin(&self, frame: &[u8], key: &mut SessionKey) -> Vec<u8> {
        let said = ClientToSession::decode(frame[0], &frame[1..], Limits::CLIENT).unwrap();
        let answer = if let ClientToSession::CheckIn(check_in) = said {
            *key = check_in.session_key;
            let mut seats = self.seats();
            let number = seats.len() as u64 + 1;
            let seat = seats.entry(*key).or_default();
            if seat.session == 0 {
                seat.session = number;
            }
            SessionToClient::from(CheckedIn {
                user: UserId::new(check_in.credentials.token).unwrap(),
                name: check_in.credentials.name,
                session: SessionId(seat.session),
                session_servers: vec![],
                server_time_ms: 0,
            })
        } else {
            SessionToClient::from(ServerHello {
                protocol: 1,
                features: vec![],
                agent: "echo".into(),
                heartbeat_ms: 10_000,
            })
        };
        let mut out = vec![answer.kind()];
        answer.encode_into(&mut out);
        out
    }

    fn request(&self, frame: &[u8], key: SessionKey, out: &mut Vec<Vec<u8>>) {
        let (header, payload) = RequestHeader::split(frame).unwrap();
        let request = Request::decode(header.kind, payload, Limits::CLIENT).unwrap();
        let mut seats = self.seats();
        let seat = seats.get_mut(&key).unwrap();
        let joins = !matches!(request, Request::Leave(_));
        let reply = if joins {
            let first = seat.ring.front().map_or(seat.sent + 1, |(number, ..)| *number);
            Reply::from(Joined {
                instance: INSTANCE,
                kind: KindName::new("echo").unwrap(),
                incarnation: Incarnation(u64::from(seat.lives_over) + 1),
                channel: CHANNEL,
                seat: Seat(0),
                up_received: seat.received,
                down_next: first,
                tick_rate: 0,
            })
        } else {
            Reply::from(Left { instance: INSTANCE })
        };
        let mut answer = ReplyHeader { kind: reply.kind(), id: header.id }.bytes().to_vec();
        reply.encode_into(&mut answer);
        out.push(answer);
        if joins {
            for (number, kind, payload) in &seat.ring {
                out.push(down(*kind, *number, seat.received, payload));
            }
        }
    }

    fn up(&self, frame: &[u8], key: SessionKey, out: &mut Vec<Vec<u8>>) {
        let (header, payload) = UpHeader::split(frame).unwrap();
        let mut seats = self.seats();
        let seat = seats.get_mut(&key).unwrap();
        while seat.ring.front().is_some_and(|(number, ..)| *number <= header.ack.0) {
            seat.ring.pop_front();
        }
        if header.kind != kinds::CALL || header.number.0 != seat.received + 1 {
            return;
        }
        seat.received += 1;
        let tenth = seat.received.is_multiple_of(10);
        let mut reply = [&seat.received.to_le_bytes()[..], payload].concat();
        if tenth && self.fault == Fault::Mixes {
            *reply.last_mut().unwrap() ^= 1;
        }
        let times = if tenth && self.fault == Fault::Doubles { 2 } else { 1 };
        for _ in 0..times {
            seat.sent += 1;
            seat.ring.push_back((seat.sent, kinds::REPLY, reply.clone()));
            out.push(down(kinds::REPLY, seat.sent, seat.received, &reply));
        }
    }
}

fn down(kind: u8, number: u32, ack: u32, payload: &[u8]) -> Vec<u8> {
    let header =
        DownHeader { kind, channel: CHANNEL, number: Seq(number), ack: Seq(ack), tick: number };
    [&header.bytes()[..], payload].concat()
}

async fn played(fault: Fault) -> Report {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = BotsConfig {
        users: 5,
        duration: Duration::from_millis(1_500),
        ramp: Duration::from_millis(100),
        game: Game::Echo,
        servers: vec![format!("tcp://{}", listener.local_addr().unwrap())],
        // Broken connections need room in the windows for what waits meanwhile.
        calls_per_s: if matches!(fault, Fault::Breaks(_)) { 30.0 } else { 100.0 },
        ..BotsConfig::default()
    };
    let server = Arc::new(Server { fault, seats: Mutex::default() });
    let tasks = TaskTracker::new();
    let serving = server.serve(listener, tasks.clone());
    let report = tokio::select! {
        report = bots::run(config, CancellationToken::new()) => report.unwrap(),
        () = serving => unreachable!(),
    };
    assert_eq!(report.users, 5);
    assert!(report.by_operation["call"].count > 100, "{report}");
    report
}

fn integrity(report: &Report) -> (u64, u64, u64, u64) {
    (report.errors, report.lost, report.doubled, report.out_of_order)
}

#[tokio::test]
async fn bots_on_a_server_in_order_find_nothing() {
    let report = played(Fault::None).await;
    assert_eq!(integrity(&report), (0, 0, 0, 0), "{report}");
    assert_eq!(report.by_operation["check_in"].count, 5);
    assert_eq!(report.by_operation["leave"].count, 5);
    assert_eq!(report.reconnects, 0);
}

#[tokio::test]
async fn bots_whose_connections_break_lose_and_double_nothing() {
    let report = played(Fault::Breaks(20)).await;
    assert_eq!(integrity(&report), (0, 0, 0, 0), "{report}");
    assert!(report.reconnects >= 5, "{report}");
}

#[tokio::test]
async fn a_call_that_is_answered_twice_is_counted() {
    let report = played(Fault::Doubles).await;
    assert!(report.doubled >= 10, "{report}");
    assert_eq!((report.errors, report.lost), (0, 0), "{report}");
}

#[tokio::test]
async fn a_reply_that_belongs_to_another_call_is_counted() {
    let report = played(Fault::Mixes).await;
    assert!(report.lost >= 10 && report.errors >= 10, "{report}");
    assert!(report.error_texts.keys().any(|text| text.contains("does not match")), "{report}");
}

/// What a rewind takes with it is declared: its calls have no answer, which is told of each; nothing else is missing.
#[tokio::test]
async fn calls_that_a_rewind_leaves_undecided_are_not_lost() {
    let report = played(Fault::Rewinds).await;
    assert_eq!(report.rewound, 5, "{report}");
    assert_eq!((report.lost, report.doubled, report.out_of_order), (0, 0, 0), "{report}");
    assert!(report.undecided >= 5, "each had a call under way: {report}");
    assert_eq!(report.errors, 0, "{report}");
}
