use std::time::Duration;

use greenroom_protocol::{Channel, ViewId};
use proptest::prelude::*;
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpSocket, TcpStream},
    task::LocalSet,
    time::timeout,
};

use super::*;

const EVENT: u8 = client_instance::EVENT;
const PATCH: u8 = client_instance::PATCH;
const ANN: MemberId = MemberId(1);

/// Both ends of a socket whose buffers are as small as the system has them.
async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpSocket::new_v4().unwrap();
    // Not less: below a segment's length the kernel opens the window only each 200 ms, and a story takes minutes.
    client.set_recv_buffer_size(32 * 1_024).unwrap();
    let address = listener.local_addr().unwrap();
    let (accepted, client) = tokio::join!(listener.accept(), client.connect(address));
    let server = accepted.unwrap().0;
    socket2::SockRef::from(&server).set_send_buffer_size(1_024).unwrap();
    (server, client.unwrap())
}

/// Runs on one thread, as a session server does.
fn local<T>(story: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let told = async { timeout(Duration::from_secs(30), story).await.expect("it goes on") };
    LocalSet::new().block_on(&runtime, told)
}

async fn tcp(framing: Framing) -> (Shared, TcpStream) {
    let (server, client) = pair().await;
    // The reading half lives as long as the task that reads, which is not part of these stories.
    let (_, write) = server.into_split();
    (Rc::new(Connection::new(ConnId(1), framing, Sink::Tcp(write), Moment(0))), client)
}
fn other() -> Connection {
    let sink = Sink::Task(Writer::default());
    Connection::new(ConnId(1), Framing::LengthPrefixed, sink, Moment(0))
}

/// A frame as an instance sends it; what comes after its kind can be told apart.
fn frame(kind: u8, len: usize, n: u8) -> Vec<u8> {
    let mut frame = vec![n; len.max(1)];
    frame[0] = kind;
    frame
}
fn piece(offset: u32, len: usize) -> Vec<u8> {
    let kind = client_instance::SNAPSHOT_PIECE;
    let (channel, view) = (Channel(1), ViewId::SHARED);
    let header = PieceHeader { kind, channel, view, tick: 1, offset, version: 1, total: 9 };
    [&header.bytes()[..], &vec![7; len]].concat()
}
/// Frames as they stand in a link's chunk.
fn laid_out(frames: &[Vec<u8>]) -> (Vec<u8>, Vec<Range<usize>>) {
    let (mut chunk, mut places) = (Vec::new(), Vec::new());
    for frame in frames {
        chunk.extend([0xee; HEADROOM]);
        places.push(chunk.len()..chunk.len() + frame.len());
        chunk.extend_from_slice(frame);
    }
    (chunk, places)
}
fn on_the_wire(framing: Framing, frame: &[u8]) -> Vec<u8> {
    let mut room = [0; HEADROOM];
    let header = framing.put_header(frame.len(), &mut room);
    [&room[HEADROOM - header..], frame].concat()
}
fn queue_one(connection: &Connection, frame: Vec<u8>, member: MemberId) -> Queued {
    let (chunk, places) = laid_out(&[frame]);
    let queued = connection.queue_in_place(&chunk, places[0].clone(), member);
    connection.settle(Some(&chunk));
    queued
}

#[derive(Clone, Debug)]
enum Step {
    /// Frames of one chunk, each for one of three members or of this server's own, and a flush.
    Batch(Vec<(Option<u32>, Vec<u8>)>),
    /// A WebSocket's pong.
    Raw(u8),
    /// The client reads so much, if it is there.
    Read(usize),
    /// Other tasks run.
    Yield,
}

fn steps() -> impl Strategy<Value = Step> {
    let length = prop_oneof![8 => 1usize..200, 3 => 200usize..5_000, 1 => 5_000usize..70_000];
    let kind = prop_oneof![3 => Just(EVENT), 3 => Just(PATCH), 1 => Just(0xb1), 1 => Just(0x87)];
    let frames = (kind, length, any::<u8>()).prop_map(|(kind, len, n)| match kind {
        0xb1 => piece(u32::from(n) % 3, len),
        kind => frame(kind, len, n),
    });
    let member = prop_oneof![5 => (0u32..3).prop_map(Some), 1 => Just(None)];
    prop_oneof![
        6 => proptest::collection::vec((member, frames), 1..6).prop_map(Step::Batch),
        1 => any::<u8>().prop_map(Step::Raw),
        3 => (1usize..20_000).prop_map(Step::Read),
        2 => Just(Step::Yield),
    ]
}

fn play(framing: Framing, steps: Vec<Step>) {
    let metrics = Rc::new(Metrics::default());
    local(async {
        let (connection, mut client) = tcp(framing).await;
        let (mut expected, mut got) = (Vec::new(), Vec::new());
        let flush = |chunk: Option<&mut [u8]>| {
            if connection.flush(chunk, &metrics) {
                let (connection, metrics) = (Rc::clone(&connection), Rc::clone(&metrics));
                drop(tokio::task::spawn_local(async move { connection.drain(&metrics).await }));
            }
        };
        for step in steps {
            match step {
                Step::Batch(frames) => {
                    let all: Vec<_> = frames.iter().map(|(_, frame)| frame.clone()).collect();
                    let (mut chunk, places) = laid_out(&all);
                    for ((member, frame), place) in frames.iter().zip(places) {
                        let queued = match member {
                            Some(member) => {
                                connection.queue_in_place(&chunk, place, MemberId(*member))
                            }
                            None => connection.queue(Some(&chunk), frame),
                        };
                        match queued {
                            Queued::Taken | Queued::Overflow => {
                                expected.extend(on_the_wire(framing, frame));
                            }
                            Queued::PatchDropped => assert!(Class::of(frame[0]) != Class::Kept),
                            Queued::Closed => assert!(connection.overflowed.get()),
                        }
                    }
                    flush(Some(&mut chunk));
                }
                Step::Raw(byte) => {
                    connection.queue_raw(&[byte; 3]);
                    expected.extend([byte; 3]);
                    flush(None);
                }
                Step::Read(len) => {
                    let mut bytes = vec![0; len];
                    if let Ok(taken) = client.try_read(&mut bytes) {
                        got.extend_from_slice(&bytes[..taken]);
                    }
                }
                Step::Yield => tokio::task::yield_now().await,
            }
            // The books agree with what is there.
            let outbox = connection.outbox.borrow();
            let waiting: usize = outbox.frames.iter().map(|(left, _)| *left as usize).sum();
            assert_eq!(waiting, outbox.waiting());
            let of = |class| outbox.frames.iter().filter(move |(_, of)| *of == class);
            assert_eq!(of(Class::Kept).count(), outbox.kept.frames);
            assert_eq!(of(Class::Patch).count(), outbox.patches.frames);
            let bytes = of(Class::Kept).map(|(left, _)| *left as usize).sum::<usize>();
            assert_eq!(bytes, outbox.kept.bytes);
        }
        connection.close();
        if framing == Framing::WebSocket {
            expected.extend(websocket_close(1000, "see the last message"));
        }
        assert_eq!(connection.queue(None, b"late"), Queued::Closed);
        flush(None);
        let farewell = async {
            while connection.waiting() > 0 {
                connection.drain(&metrics).await;
            }
            connection.end();
        };
        let ((), rest) = tokio::join!(farewell, client.read_to_end(&mut got));
        rest.unwrap();
        assert_eq!(got.len(), expected.len());
        assert!(got == expected, "other bytes, or in another order");
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    /// However frames come and however the client reads: it gets exactly what was taken, in that order.
    #[test]
    fn a_client_reads_what_was_queued_in_order(
        websocket: bool, steps in proptest::collection::vec(steps(), 1..60),
    ) {
        play(if websocket { Framing::WebSocket } else { Framing::LengthPrefixed }, steps);
    }
}

#[test]
fn a_frame_that_is_alone_leaves_in_one_write_from_where_it_stands() {
    local(async {
        let (connection, mut client) = tcp(Framing::LengthPrefixed).await;
        let metrics = Metrics::default();
        let (mut chunk, places) = laid_out(&[frame(PATCH, 90, 3)]);
        assert_eq!(connection.queue_in_place(&chunk, places[0].clone(), ANN), Queued::Taken);
        assert!(!connection.flush(Some(&mut chunk), &metrics));
        assert_eq!(connection.outbox.borrow().bytes.capacity(), 0, "nothing was copied");
        let mut got = vec![0; 94];
        client.read_exact(&mut got).await.unwrap();
        assert_eq!(got, on_the_wire(Framing::LengthPrefixed, &frame(PATCH, 90, 3)));
    });
}

#[test]
fn patches_behind_a_long_snapshot_wait_for_it() {
    let connection = other();
    for n in 0..32 {
        assert_eq!(queue_one(&connection, piece(n * 32_768, 32_768), ANN), Queued::Taken);
        assert_eq!(queue_one(&connection, frame(PATCH, 200, 1), ANN), Queued::Taken);
    }
}

#[test]
fn many_small_patches_for_a_slow_client_become_a_snapshot_and_not_its_end() {
    let connection = other();
    let queued: Vec<_> =
        (0..1_000).map(|_| queue_one(&connection, frame(PATCH, 30, 1), ANN)).collect();
    assert!(queued[..65].iter().all(|queued| *queued == Queued::Taken));
    assert!(queued[65..].iter().all(|queued| *queued == Queued::PatchDropped));
    assert_eq!(connection.take().1[..], [ANN]);
}

#[test]
fn a_snapshot_is_asked_for_once_and_patches_go_on_behind_its_beginning() {
    let connection = other();
    for n in 0..3 {
        queue_one(&connection, frame(PATCH, 40_000, n), ANN);
    }
    assert_eq!(connection.take().1[..], [ANN]);
    // Until it comes nothing of the view is of use, and nothing is asked again.
    assert_eq!(queue_one(&connection, frame(PATCH, 30, 1), ANN), Queued::PatchDropped);
    assert_eq!(queue_one(&connection, piece(32_768, 100), ANN), Queued::PatchDropped);
    assert_eq!(queue_one(&connection, frame(EVENT, 30, 1), ANN), Queued::Taken);
    assert_eq!(connection.take().1[..], []);
    assert_eq!(queue_one(&connection, frame(PATCH, 30, 1), MemberId(2)), Queued::Taken);
    assert_eq!(queue_one(&connection, piece(0, 100), ANN), Queued::Taken);
    assert_eq!(queue_one(&connection, frame(PATCH, 30, 1), ANN), Queued::Taken);
    assert_eq!(connection.take().1[..], []);
}

#[test]
fn a_snapshot_is_asked_for_also_when_the_socket_then_took_the_whole_batch() {
    local(async {
        let (connection, mut client) = tcp(Framing::LengthPrefixed).await;
        let metrics = Metrics::default();
        let first: Vec<_> = (0..70).map(|n| frame(EVENT, 1, n)).collect();
        let (mut chunk, places) = laid_out(&[first, vec![frame(PATCH, 1, 0)]].concat());
        let queued: Vec<_> =
            places.into_iter().map(|at| connection.queue_in_place(&chunk, at, ANN)).collect();
        assert_eq!(queued[70], Queued::PatchDropped);
        assert!(connection.flush(Some(&mut chunk), &metrics), "somebody has to ask");
        assert_eq!(connection.waiting(), 0);
        assert_eq!(connection.drain(&metrics).await[..], [ANN]);
        client.read_exact(&mut [0; 70 * 5]).await.unwrap();
    });
}

#[test]
fn snapshots_for_a_client_that_never_reads_do_not_fill_the_memory() {
    let connection = other();
    for n in 0..1_000 {
        queue_one(&connection, piece(n % 32 * 32_768, 32_768), ANN);
    }
    assert!(connection.waiting() < SNAPSHOT_BYTES_MAX + 40_000);
    assert_eq!(connection.take().1[..], [ANN]);
}

#[test]
fn what_may_not_be_lost_overflows_once_and_nothing_follows_the_gap() {
    for (len, fit) in [(100, 256), (10_000, 26)] {
        let connection = other();
        for _ in 0..fit {
            assert_eq!(queue_one(&connection, frame(EVENT, len, 0), ANN), Queued::Taken);
        }
        assert_eq!(queue_one(&connection, frame(EVENT, len, 1), ANN), Queued::Overflow);
        assert_eq!(queue_one(&connection, frame(EVENT, len, 2), ANN), Queued::Closed);
        // The reason still gets to the client, if it reads again.
        assert_eq!(connection.queue(None, &frame(0x85, 60, 0)), Queued::Taken);
    }
}

#[test]
fn one_long_frame_is_no_reason_to_end_a_connection() {
    for kind in [PATCH, client_instance::QUERY_REPLY] {
        let connection = other();
        assert_eq!(queue_one(&connection, frame(kind, 1_000_000, 0), ANN), Queued::Taken);
    }
}

#[test]
fn a_client_that_takes_nothing_keeps_neither_a_task_nor_a_socket() {
    local(async {
        let (connection, mut client) = tcp(Framing::LengthPrefixed).await;
        let metrics = Metrics::default();
        while !connection.flush(None, &metrics) {
            queue_one(&connection, frame(PATCH, 60_000, 0), ANN);
        }
        let waits = connection.drain(&metrics);
        tokio::pin!(waits);
        assert!(timeout(Duration::from_millis(20), &mut waits).await.is_err());
        connection.end();
        timeout(Duration::from_secs(5), waits).await.expect("the task ends");
        assert_eq!(connection.waiting(), 0);
        let mut taken = Vec::new();
        client.read_to_end(&mut taken).await.unwrap();
        assert!(taken.len() < 1 << 20);
    });
}

#[test]
fn an_idle_connection_keeps_little() {
    local(async {
        let (connection, mut client) = tcp(Framing::WebSocket).await;
        let metrics = Metrics::default();
        for round in 0..3 {
            for n in 0..50 {
                queue_one(&connection, frame(EVENT, 900, n), ANN);
            }
            if connection.flush(None, &metrics) {
                let mut got = vec![0; 50 * 904];
                let (_, read) =
                    tokio::join!(connection.drain(&metrics), client.read_exact(&mut got));
                read.unwrap();
            }
            let outbox = connection.outbox.borrow();
            let kept = outbox.bytes.capacity() + outbox.frames.capacity() * 8;
            assert!(kept <= 1_024, "{kept} bytes in round {round}");
        }
        assert!(size_of::<Connection>() <= 400, "{}", size_of::<Connection>());
    });
}
