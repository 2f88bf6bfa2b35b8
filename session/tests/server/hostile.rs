//! What strangers may send: each fault is named to who made it, and nobody else notices.

use std::time::Duration;

use greenroom_protocol::{Code, Refusal};
use greenroom_session::{
    Additions, Pages, SessionConfig,
    tls::{TlsConfig, self_signed},
};
use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::TestRunner,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_tungstenite::tungstenite::Message;

use crate::{
    client::{Client, authority, check_in, hello, join, prefixed, up},
    cluster::{Cluster, LONG, Session, hex, story, story_with, unlimited, until},
};

/// Bytes over TCP, after a check-in or before it, and what is said of them.
struct Fault {
    what: &'static str,
    checked_in: bool,
    bytes: Vec<u8>,
    code: Code,
    /// A part of the text, which says what is wrong.
    says: &'static str,
}

fn faults() -> Vec<Fault> {
    let fault = |what, checked_in, bytes, code, says| Fault { what, checked_in, bytes, code, says };
    let deep = [vec![0x01], vec![0x91; 40], vec![0xc0]].concat();
    let lying = vec![0x01, 0xdf, 0xff, 0xff, 0xff, 0xff];
    let long_text = [vec![0x01, 0x81, 0xdb, 0x7f, 0xff, 0xff, 0xff], b"short".to_vec()].concat();
    let trailing = [hello(1, 1), vec![0xc0]].concat();
    let extension = vec![0x01, 0xd4, 0x00, 0x00];
    let unknown_channel = [vec![0x20], vec![0; 3]].concat();
    let mut all = vec![
        fault("a wrong version", false, prefixed(&hello(7, 9)), Code::VersionMismatch, "7 to 9"),
        fault("random text", false, b"\xff\xfe\xfd\xfcrandom".to_vec(), Code::TooLarge, "4096"),
        fault("HTTP", false, b"GET / HTTP/1.1\r\n\r\n".to_vec(), Code::TooLarge, "4096"),
        fault("too long", false, 4_097u32.to_le_bytes().to_vec(), Code::TooLarge, "4097 bytes"),
        fault("no hello", false, prefixed(&check_in(9)), Code::NotCheckedIn, "hello"),
        fault("a request", false, prefixed(&join(1)), Code::NotCheckedIn, "check-in"),
        fault("too deep", false, prefixed(&deep), Code::Malformed, "deep"),
        fault("a lying length", false, prefixed(&lying), Code::Malformed, "elements"),
        fault("a lying text", false, prefixed(&long_text), Code::Malformed, "announced"),
        fault("trailing bytes", false, prefixed(&trailing), Code::Malformed, "follow"),
        fault("an extension", false, prefixed(&extension), Code::Malformed, "0xd4"),
        fault("a hello of nothing", false, prefixed(&[0x01]), Code::Malformed, "ends early"),
        fault("too long", true, 65_537u32.to_le_bytes().to_vec(), Code::TooLarge, "65537 bytes"),
        fault("a hello", true, prefixed(&hello(1, 1)), Code::UnexpectedKind, "after check-in"),
        fault("no channel", true, prefixed(&unknown_channel), Code::Malformed, "header"),
        fault("no header", true, prefixed(&[0x11, 1]), Code::Malformed, "header of 9"),
    ];
    for checked_in in [false, true] {
        let unknown = if checked_in { Code::UnexpectedKind } else { Code::NotCheckedIn };
        all.push(fault("an unknown kind", checked_in, prefixed(&[0x0f]), unknown.clone(), "0x0f"));
        all.push(fault("a kind of servers", checked_in, prefixed(&[0xb0]), unknown, "0xb0"));
        all.push(fault("an empty frame", checked_in, prefixed(&[]), Code::Malformed, "empty"));
    }
    all
}

fn useful(refusal: &Refusal) {
    assert!(refusal.message.len() > 12, "it says what is wrong: {refusal}");
}

#[test]
fn each_fault_is_named_to_who_made_it_and_others_notice_nothing() {
    story_with(unlimited(), Additions::default(), async |Cluster { session, .. }| {
        let mut other = Client::seated(session.url("tcp"), 200).await;
        for Fault { what, checked_in, bytes, code, says } in faults() {
            let mut client = Client::connect(session.url("tcp"), None).await;
            if checked_in {
                client.check_in(1).await;
            }
            client.raw(&bytes).await;
            let refusal = client.closing().await;
            assert_eq!(refusal.code, code, "{what}: {refusal}");
            assert!(refusal.message.contains(says), "{what}: {refusal}");
            useful(&refusal);
            other.is_served().await;
        }
        assert_eq!(session.counted("connection.turned_away"), faults().len() as u64);
    });
}

#[test]
fn a_fault_in_a_request_or_for_a_seat_that_is_not_there_leaves_the_conversation() {
    story(async |Cluster { session, .. }| {
        let mut client = Client::connect(session.url("tcp"), None).await;
        client.check_in(1).await;
        client.send(&[&join(5)[..], &[0xc0]].concat()).await;
        let (id, refusal) = client.refused().await;
        assert_eq!((id.0, &refusal.code), (5, &Code::Malformed));
        useful(&refusal);
        client.send(&[0x1f, 6, 0, 0, 0, 0, 0, 0, 0]).await;
        let (id, refusal) = client.refused().await;
        assert_eq!((id.0, refusal.code), (6, Code::UnexpectedKind));
        client.send(&up(greenroom_protocol::Channel(12_345), 1, b"hello?")).await;
        let ended = client.until(greenroom_protocol::wire::client_instance::SEAT_ENDED).await;
        assert_eq!(crate::client::of_seat(&ended).1, Code::NotSeated);
        client.is_served().await;
    });
}

#[test]
fn random_bytes_end_only_their_own_connection() {
    story_with(unlimited(), Additions::default(), async |Cluster { session, master, .. }| {
        let mut other = Client::seated(session.url("tcp"), 200).await;
        let mut random = TestRunner::deterministic();
        let bytes = proptest::collection::vec(proptest::num::u8::ANY, 1..300);
        for round in 0..60u8 {
            let bytes = bytes.new_tree(&mut random).unwrap().current();
            let scheme = ["tcp", "ws"][usize::from(round % 2)];
            let mut stream = TcpStream::connect(authority(session.url(scheme))).await.unwrap();
            if round % 4 == 0 {
                stream
                    .write_all(&[prefixed(&hello(1, 1)), prefixed(&check_in(1))].concat())
                    .await
                    .unwrap();
            }
            let _closed_already = stream.write_all(&bytes).await;
            // Whether it waits for more or has heard enough, its end is the end of it.
            drop(stream);
        }
        other.is_served().await;
        until("all are gone", || master.load().is_some_and(|load| load.connections == 1)).await;
    });
}

#[test]
fn a_websocket_that_is_none_of_ours_is_told_why() {
    story_with(unlimited(), Additions::default(), async |Cluster { session, .. }| {
        let mut other = Client::seated(session.url("ws"), 200).await;
        for checked_in in [false, true] {
            for (message, code) in [
                (Message::Text("hello".into()), Code::Malformed),
                (Message::Binary(Vec::new().into()), Code::Malformed),
                (Message::Binary(vec![1; 65_537].into()), Code::TooLarge),
                (Message::Binary(vec![0x0e].into()), Code::NotCheckedIn),
            ] {
                let mut client = Client::connect(session.url("ws"), None).await;
                if checked_in {
                    client.check_in(1).await;
                }
                client.message(message).await;
                let refusal = client.closing().await;
                let unexpected = checked_in && code == Code::NotCheckedIn;
                let code = if unexpected { Code::UnexpectedKind } else { code };
                assert_eq!(refusal.code, code, "{refusal}");
                useful(&refusal);
            }
        }
        // Pings are answered, and who closes is let go.
        let mut client = Client::connect(session.url("ws"), None).await;
        client.check_in(1).await;
        client.message(Message::Ping(b"there?".to_vec().into())).await;
        client.is_served().await;
        client.message(Message::Close(None)).await;
        assert_eq!(client.next().await, None);
        other.is_served().await;
    });
}

#[test]
fn an_http_request_gets_an_http_answer_that_says_what_to_do() {
    story(async |Cluster { session, .. }| {
        let upgrade = "GET / HTTP/1.1\r\nHost: 127.0.0.1:4001\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n";
        let far = "Sec-WebSocket-Protocol: greenroom.v1\r\nOrigin: https://evil.example\r\n\r\n";
        // A stranger's name that leads to this machine: its pages are of the same host as this server.
        let led_here = format!("{upgrade}{far}").replace("127.0.0.1", "evil.example");
        let long = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "y".repeat(100_000));
        for (request, status, says) in [
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), "426", "WebSocket"),
            ("POST /x HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), "426", "WebSocket"),
            (format!("{upgrade}\r\n"), "400", "greenroom.v1"),
            (format!("{upgrade}{far}"), "403", "session.origins"),
            (led_here, "403", "session.hosts"),
            (long, "431", "4 KiB"),
            ("\u{1}\r\n\r\n".to_owned(), "400", "no HTTP request"),
        ] {
            let answer = answered(&session, &request).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
            assert!(answer.contains(says), "{answer}");
        }
    });
}

/// The start of what is answered to a request on the WebSocket port, until the server closes.
async fn answered(session: &Session, request: &str) -> String {
    let mut stream = TcpStream::connect(authority(session.url("ws"))).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(LONG, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    answer
}

#[test]
fn browsers_get_the_pages_that_there_are_and_players_come_in_beside_them() {
    let pages = || Pages::default().file("/arena/index.html", b"<h1>Arena</h1>".as_slice());
    let additions = || Additions { pages: pages(), ..Additions::default() };
    story_with(SessionConfig::default(), additions(), async |Cluster { session, .. }| {
        for (request, status, says) in [
            ("GET /arena/ HTTP/1.1\r\nHost: localhost\r\n\r\n", "200", "<h1>Arena</h1>"),
            ("GET /arena HTTP/1.1\r\nHost: localhost\r\n\r\n", "308", "Location: /arena/"),
            ("GET /../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", "404", "/arena/"),
            ("POST /arena/ HTTP/1.1\r\nHost: a\r\n\r\n", "426", "WebSocket"),
        ] {
            let answer = answered(&session, request).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
            assert!(answer.contains(says), "{answer}");
        }
        let mut client = Client::connect(session.url("ws"), None).await;
        client.check_in(1).await;
    });
    let config = SessionConfig { pages: Some(false), ..SessionConfig::default() };
    story_with(config, additions(), async |Cluster { session, .. }| {
        let answer = answered(&session, "GET /arena/ HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 426 "), "{answer}");
    });
}

#[test]
fn connections_that_stop_halfway_are_closed_after_five_seconds() {
    let hello = prefixed(&hello(1, 1));
    stop_halfway(
        SessionConfig::default(),
        &[
            ("tcp", b""),
            ("tcp", &[30, 0, 0, 0, 1]),
            ("tcp", &hello),
            ("ws", b"GET / HTTP/1.1\r\nHost"),
            ("ws", b""),
        ],
    );
}

#[test]
fn handshakes_of_tls_that_stop_halfway_are_closed_after_five_seconds() {
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = (folder.path().join("c.pem"), folder.path().join("k.pem"));
    let made = self_signed(&["localhost"]).unwrap();
    std::fs::write(&certificate, made.0).unwrap();
    std::fs::write(&key, made.1).unwrap();
    let tls = Some(TlsConfig { certificate, key });
    let config = SessionConfig { tls, ..SessionConfig::default() };
    stop_halfway(config, &[("tls", &[0x16, 3, 1, 0, 100, 1]), ("wss", b"")]);
}

fn stop_halfway(config: SessionConfig, halves: &[(&str, &[u8])]) {
    story_with(config, Additions::default(), async |Cluster { session, master, .. }| {
        let since = Instant::now();
        let mut streams = Vec::new();
        for (scheme, half) in halves {
            let mut stream = TcpStream::connect(authority(session.url(scheme))).await.unwrap();
            stream.write_all(half).await.unwrap();
            streams.push((stream, half));
        }
        for (mut stream, half) in streams {
            let mut told = Vec::new();
            timeout(LONG, stream.read_to_end(&mut told)).await.unwrap().unwrap();
            let after = since.elapsed();
            let bounds = Duration::from_millis(4_900)..Duration::from_secs(15);
            assert!(bounds.contains(&after), "{after:?} for {}", hex(half));
        }
        until("none is left", || master.load().is_some_and(|load| load.connections == 0)).await;
    });
}

#[test]
fn a_port_that_speaks_something_else_lets_go_of_who_does_not() {
    story(async |Cluster { session, .. }| {
        // A client of TLS on a plain port: its hello reads as a frame of a gigabyte.
        let mut client = Client::connect(session.url("tcp"), None).await;
        client.raw(&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00]).await;
        assert_eq!(client.closing().await.code, Code::TooLarge);
        // A client of TCP on the WebSocket's.
        let mut stream = TcpStream::connect(authority(session.url("ws"))).await.unwrap();
        stream.write_all(&[prefixed(&hello(1, 1)), b"\r\n\r\n".to_vec()].concat()).await.unwrap();
        let mut answer = Vec::new();
        timeout(LONG, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 400"));
    });
}
