use std::{io, net::SocketAddr, path::PathBuf, pin::Pin, time::Duration};

use ecow::{EcoString, eco_format};
use greenroom_link::framing::Framing;
use greenroom_protocol::{
    Channel, Code, Generation, PieceHeader, RequestId, SessionId, ViewId,
    wire::{
        client_instance,
        session_master::{Changed, Seen, SessionToMaster, Watcher},
    },
};
use greenroom_session::{
    Accepted, Acceptor, Additions, SessionConfig, Stream,
    tls::{TlsConfig, self_signed},
};
use tokio::{net::UnixListener, time::Instant};

use crate::{
    client::{Client, down, of_seat, search, seen, up},
    cluster::{Cluster, hex, nowhere, story, story_with, unlimited, until},
};

const UP: u8 = 0x10;
const REFRESH: u8 = 0x11;
const UNICAST: u8 = 0x90;
const FANOUT: u8 = 0x91;
const EVENT: u8 = client_instance::EVENT;
const PATCH: u8 = client_instance::PATCH;

/// What everybody gets from one instance, whatever they came over.
async fn whole_path(cluster: Cluster, ways: &[(String, Option<PathBuf>)]) {
    let Cluster { game, session, .. } = &cluster;
    let mut clients = Vec::new();
    for (number, (url, trusted)) in (1u8..).zip(ways) {
        let mut client = Client::connect(url, trusted.as_deref()).await;
        client.check_in(number).await;
        let joined = client.join(1).await;
        let (member, channel) = game.member(number);
        assert_eq!((joined.channel, joined.seat.0), (channel, number.into()), "{url}");
        let said = up(channel, 1, url.as_bytes());
        client.send(&said).await;
        until("it is heard", || game.passed(UP, member) == [said.clone()]).await;
        let answer = down(EVENT, channel, url.as_bytes());
        game.send(&[(UNICAST, member.0, answer.clone())]);
        assert_eq!(client.next().await, Some(answer), "{url}");
        clients.push(client);
    }
    let (_, channel) = game.member(1);
    for len in [0, 100, 125 - 17, 126 - 17, 65_535 - 17, 65_536 - 17, 200_000] {
        let all = down(PATCH, channel, &vec![9; len]);
        game.send(&[(FANOUT, channel.0, all.clone())]);
        for (client, (url, _)) in clients.iter_mut().zip(ways) {
            let got = client.next().await.unwrap();
            assert!(got == all, "{len} bytes over {url}: {}", hex(&got[..20.min(got.len())]));
        }
    }
    drop(clients);
    for number in 1..=u8::try_from(ways.len()).unwrap() {
        until("it is gone", || game.has_detached(game.member(number).0)).await;
    }
    until("nobody is left", || cluster.master.load().is_some_and(|load| load.connections == 0))
        .await;
    assert_eq!(session.counted("check_in.accepted"), ways.len() as u64);
}

/// Clients that come over a Unix socket.
struct Unix(UnixListener, PathBuf);

impl Acceptor for Unix {
    fn url(&self) -> EcoString {
        eco_format!("unix://{}", self.1.display())
    }
    fn accept(&self) -> Pin<Box<dyn Future<Output = io::Result<Accepted>> + '_>> {
        Box::pin(async {
            let (stream, _) = self.0.accept().await?;
            Ok(Accepted {
                stream: Stream::Other(Box::new(stream)),
                address: SocketAddr::from(([127, 0, 0, 1], 0)),
                framing: Framing::LengthPrefixed,
                tls: None,
            })
        })
    }
}

#[test]
fn a_client_plays_over_tcp_websocket_and_a_transport_of_the_studio_s_own() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clients");
    let there = path.clone();
    let make = move || -> io::Result<Box<dyn Acceptor>> {
        Ok(Box::new(Unix(UnixListener::bind(&there)?, there)))
    };
    let additions = Additions { acceptors: vec![Box::new(make)], ..Additions::default() };
    story_with(SessionConfig::default(), additions, async |cluster| {
        until("it listens", || path.exists()).await;
        let urls = [
            cluster.session.url("tcp").to_owned(),
            cluster.session.url("ws").to_owned(),
            format!("unix://{}", path.display()),
        ];
        whole_path(cluster, &urls.map(|url| (url, None))).await;
    });
}

#[test]
fn a_client_plays_over_tls_with_either_framing() {
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = (folder.path().join("c.pem"), folder.path().join("k.pem"));
    let made = self_signed(&["localhost"]).unwrap();
    std::fs::write(&certificate, made.0).unwrap();
    std::fs::write(&key, made.1).unwrap();
    let tls = Some(TlsConfig { certificate: certificate.clone(), key });
    let config = SessionConfig { tls, ..SessionConfig::default() };
    story_with(config, Additions::default(), async |cluster| {
        let urls = ["tls", "wss"].map(|scheme| cluster.session.url(scheme).to_owned());
        whole_path(cluster, &urls.map(|url| (url, Some(certificate.clone())))).await;
    });
}

#[test]
fn frames_of_one_batch_leave_in_one_write_for_each_client() {
    story(async |Cluster { game, session, .. }| {
        let mut ann = Client::seated(session.url("tcp"), 1).await;
        let mut bo = Client::seated(session.url("ws"), 2).await;
        let (member, channel) = game.member(1);
        let before = session.writes();
        let mut batch: Vec<_> =
            (0..20).map(|n| (UNICAST, member.0, down(EVENT, channel, &[n]))).collect();
        batch.insert(10, (FANOUT, channel.0, down(PATCH, channel, b"all")));
        game.send(&batch);
        for (_, _, frame) in &batch {
            assert_eq!(ann.next().await.as_ref(), Some(frame), "in the order they were sent");
        }
        assert_eq!(bo.next().await, Some(down(PATCH, channel, b"all")));
        assert_eq!(session.writes() - before, 2);
    });
}

#[test]
fn a_slow_reader_gets_a_snapshot_for_what_it_missed_and_others_get_everything() {
    story_with(unlimited(), Additions::default(), async |Cluster { game, session, .. }| {
        let mut fast = Client::seated(session.url("tcp"), 1).await;
        let mut slow = Client::slow(session.url("tcp")).await;
        slow.check_in(2).await;
        slow.join(1).await;
        let (member, channel) = game.member(2);
        let mut sent = 0u32;
        while session.counted("patch.dropped") < 20 {
            sent += 1;
            assert!(sent < 2_000, "the system takes everything");
            let patch = down(PATCH, channel, &[&sent.to_le_bytes()[..], &[7; 30_000]].concat());
            game.send(&[(FANOUT, channel.0, patch.clone())]);
            assert!(fast.next().await == Some(patch), "whoever reads is not held up");
        }
        assert_eq!(game.passed(REFRESH, member).len(), 0, "not while there is no room");
        // It reads again: what it has is whole, and then there is one request for a snapshot.
        let mut expected = 1u32;
        let last_read = async {
            while let Some(frame) = slow.next().await {
                if frame[0] != PATCH {
                    return frame;
                }
                assert_eq!(frame[17..21], expected.to_le_bytes(), "no patch is out of order");
                expected += 1;
            }
            panic!("the end")
        };
        let answered = async {
            until("a snapshot is asked for", || !game.passed(REFRESH, member).is_empty()).await;
            // Patches that come before it are of no use to the client.
            let patch = down(PATCH, channel, b"too early");
            game.send(&[(UNICAST, member.0, patch)]);
            let snapshot = piece(channel, b"a whole view");
            game.send(&[(UNICAST, member.0, snapshot.clone())]);
            snapshot
        };
        let (frame, snapshot) = tokio::join!(last_read, answered);
        assert_eq!(frame, snapshot);
        assert!(expected <= sent, "patches were left out");
        let patch = down(PATCH, channel, b"on top of it");
        game.send(&[(FANOUT, channel.0, patch.clone())]);
        assert_eq!(slow.next().await, Some(patch));
        slow.is_served().await;
        assert_eq!(game.passed(REFRESH, member).len(), 1);
        assert_eq!(session.counted("connection.slow"), 0);
    });
}

fn piece(channel: Channel, view: &[u8]) -> Vec<u8> {
    let header = PieceHeader {
        kind: client_instance::SNAPSHOT_PIECE,
        channel,
        view: ViewId::SHARED,
        tick: 1,
        offset: 0,
        version: 9,
        total: u32::try_from(view.len()).unwrap(),
    };
    [&header.bytes()[..], view].concat()
}

#[test]
fn a_client_that_does_not_take_what_may_not_be_lost_is_disconnected_and_nobody_else() {
    story_with(
        unlimited(),
        Additions::default(),
        async |Cluster { game, session, master, .. }| {
            let mut fast = Client::seated(session.url("tcp"), 1).await;
            let mut slow = Client::slow(session.url("tcp")).await;
            slow.check_in(2).await;
            slow.join(1).await;
            let (member, channel) = game.member(2);
            let mut sent = 0u32;
            while session.counted("connection.slow") == 0 {
                sent += 1;
                assert!(sent < 2_000, "the system takes everything");
                let event = down(EVENT, channel, &[&sent.to_le_bytes()[..], &[7; 30_000]].concat());
                game.send(&[(FANOUT, channel.0, event.clone())]);
                assert!(fast.next().await == Some(event));
            }
            // It reads at last: everything up to the gap in order, and the reason.
            let mut expected = 1u32;
            let reason = loop {
                let frame = slow.next().await.unwrap();
                if frame[0] != EVENT {
                    break frame;
                }
                assert_eq!(frame[17..21], expected.to_le_bytes());
                expected += 1;
            };
            assert_eq!(reason[0], 0x85);
            assert!(String::from_utf8_lossy(&reason).contains("slow_consumer"));
            assert_eq!(slow.next().await, None);
            until("its seat is away", || game.has_detached(member)).await;
            assert_eq!(session.counted("connection.slow"), 1);
            fast.is_served().await;
            // Another one never reads again. It does not stay for ever.
            let mut stuck = Client::slow(session.url("tcp")).await;
            stuck.check_in(3).await;
            stuck.join(1).await;
            while session.counted("connection.slow") == 1 {
                game.send(&[(FANOUT, channel.0, down(EVENT, channel, &[7; 30_000]))]);
                fast.next().await.unwrap();
            }
            until("it is gone", || master.load().is_some_and(|load| load.connections == 1)).await;
        },
    );
}

#[test]
fn who_sends_too_much_harms_only_itself() {
    story(async |Cluster { game, session, .. }| {
        let mut greedy = Client::seated(session.url("tcp"), 1).await;
        let mut modest = Client::seated(session.url("ws"), 2).await;
        let (member, channel) = game.member(1);
        let (other, _) = game.member(2);
        for number in 1..=400 {
            greedy.send(&up(channel, number, b"me")).await;
        }
        let (of, code) = of_seat(&greedy.until(client_instance::SEND_AGAIN).await);
        assert_eq!((of, code), (channel, Code::RateLimited));
        for number in 1..=10 {
            modest.send(&up(channel, number, b"please")).await;
        }
        until("the other is heard", || game.passed(UP, other).len() == 10).await;
        modest.is_served().await;
        let taken = game.passed(UP, member).len();
        assert!((100..200).contains(&taken), "{taken} of 400");
        assert!(session.counted("frame.over_limits") >= 200);
    });
}

#[test]
fn who_asks_too_much_is_told_so_by_request() {
    story(async |Cluster { session, master, .. }| {
        master.answers.set(false);
        let mut client = Client::connect(session.url("tcp"), None).await;
        client.check_in(1).await;
        for id in 1..=9 {
            client.send(&search(id)).await;
        }
        let (id, refusal) = client.refused().await;
        assert_eq!((id.0, refusal.code), (9, Code::Busy));
        client.is_served().await;
    });
}

#[test]
fn a_silent_client_is_asked_and_then_taken_for_dead() {
    let heartbeat = Duration::from_millis(200);
    let config = SessionConfig { heartbeat, ..SessionConfig::default() };
    story_with(config, Additions::default(), async |Cluster { session, .. }| {
        for scheme in ["tcp", "ws"] {
            let mut silent = Client::connect(session.url(scheme), None).await;
            silent.check_in(1).await;
            let since = Instant::now();
            assert_eq!(silent.next().await.unwrap()[0], 0x83, "a ping");
            let refusal = silent.closing().await;
            assert_eq!(refusal.code, Code::IdleTimeout);
            let quiet = since.elapsed();
            assert!(quiet >= heartbeat * 3 - Duration::from_millis(20), "{quiet:?}");
            // Who answers is asked again and again.
            let mut alive = Client::connect(session.url(scheme), None).await;
            alive.check_in(2).await;
            for _ in 0..5 {
                let ping = alive.until(0x83).await;
                alive.send(&[&[0x04], &ping[1..]].concat()).await;
            }
            alive.is_served().await;
        }
    });
}

#[test]
fn a_drain_sends_clients_elsewhere_and_ends() {
    let config = SessionConfig { drain_timeout: Duration::from_millis(300), ..unlimited() };
    story_with(config, Additions::default(), async |cluster| {
        let session = &cluster.session;
        let mut goes = Client::seated(session.url("tcp"), 1).await;
        let mut stays = Client::seated(session.url("ws"), 2).await;
        session.stop();
        for client in [&mut goes, &mut stays] {
            let told = client.until(0x86).await;
            assert!(String::from_utf8_lossy(&told).contains("tcp://else:1"));
        }
        until("the master knows", || cluster.master.load().is_some_and(|load| load.draining)).await;
        drop(goes);
        assert_eq!(stays.closing().await.code, Code::Draining);
        cluster.session.stopped().await;
        let unbound = || {
            let unbinds = cluster.master.heard(|message| match message {
                greenroom_protocol::wire::session_master::SessionToMaster::Unbind(unbind) => {
                    Some(unbind.session.0)
                }
                _ => None,
            });
            unbinds.contains(&1) && unbinds.contains(&2)
        };
        until("the master hears the last words", unbound).await;
    });
}

#[test]
fn a_drain_ends_at_once_when_everybody_is_gone() {
    story(async |cluster| {
        drop(Client::seated(cluster.session.url("tcp"), 1).await);
        let since = Instant::now();
        cluster.session.stop();
        cluster.session.stopped().await;
        assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    });
}

#[test]
fn without_a_master_a_check_in_is_unavailable() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let masters = vec![runtime.block_on(nowhere())];
    let config = SessionConfig { masters, ..SessionConfig::default() };
    story_with(config, Additions::default(), async |Cluster { session, .. }| {
        let mut client = Client::connect(session.url("tcp"), None).await;
        client.hello().await;
        client.send(&crate::client::check_in(1)).await;
        assert_eq!(client.closing().await.code, Code::Unavailable);
    });
}

#[test]
fn a_request_over_a_broken_link_to_the_master_is_answered_once() {
    story(async |Cluster { session, master, .. }| {
        let mut client = Client::connect(session.url("tcp"), None).await;
        client.check_in(1).await;
        master.answers.set(false);
        client.send(&search(1)).await;
        until("it is asked", || master.asks().len() == 1).await;
        master.answers.set(true);
        master.break_link();
        assert_eq!(client.until(0x95).await[1..5], [1, 0, 0, 0]);
        let asks = master.asks();
        assert_eq!(asks.len(), 2);
        assert_eq!(asks[0], asks[1]);
        // The late answer to the first time is not told again.
        master.answer(&asks[0]);
        client.send(&search(2)).await;
        assert_eq!(client.until(0x95).await[1..5], [2, 0, 0, 0]);
    });
}

/// The active is stopped with a request of a client unanswered; the standby takes over. Later the active goes on, and
/// says what it still had to say.
#[test]
fn a_standby_that_takes_over_answers_what_the_active_was_asked_and_the_active_is_told_so() {
    story(async |Cluster { session, master, standby, .. }| {
        let mut client = Client::connect(session.url("tcp"), None).await;
        client.check_in(1).await;
        master.answers.set(false);
        client.send(&search(1)).await;
        until("it is asked", || master.asks().len() == 1).await;
        standby.takes_over(2).await;
        assert_eq!(client.until(0x95).await[1..5], [1, 0, 0, 0]);
        let resumed =
            |said: &SessionToMaster| matches!(said, SessionToMaster::Report(_)).then_some(());
        assert_eq!(standby.heard(resumed), [], "no report");
        assert_eq!(standby.asks(), master.asks());

        client.send(&search(2)).await;
        assert_eq!(client.until(0x95).await[1..5], [2, 0, 0, 0]);
        assert_eq!(master.asks().len(), 1);
        for _ in 0..2 {
            master.answer(&master.asks()[0]);
        }
        let fenced =
            |said: &SessionToMaster| matches!(said, SessionToMaster::Fenced(_)).then_some(());
        until("it is told", || !master.heard(fenced).is_empty()).await;
        client.is_served().await;
        master.takes_over(3).await;
        master.answers.set(true);
        client.send(&search(3)).await;
        assert_eq!(client.until(0x95).await[1..5], [3, 0, 0, 0]);
        until("it is asked", || master.asks().len() == 2).await;
        assert_eq!(master.heard(fenced).len(), 1, "once");
    });
}

#[test]
fn what_a_live_search_tells_reaches_every_watcher_as_it_is_and_what_was_seen_the_master() {
    story(async |Cluster { session, master, .. }| {
        let mut ann = Client::connect(session.url("tcp"), None).await;
        ann.check_in(1).await;
        let mut bo = Client::connect(session.url("ws"), None).await;
        bo.check_in(2).await;
        let watchers = [(1, 1, 7), (2, 2, 8), (2, 1, 9)].map(|(session, generation, watch)| {
            let (session, generation) = (SessionId(session), Generation(generation));
            Watcher { session, generation, watch: RequestId(watch) }
        });
        // Long enough for every length of a WebSocket's header.
        for (n, len) in [(1, 20), (2, 200), (3, 70_000)] {
            let changes = vec![7; len];
            let (to, bytes) = (watchers.to_vec(), changes.clone().into());
            master.stream(n, Changed { to, changes: bytes });
            assert!(ann.next().await == Some([&[0x99, 7, 0, 0, 0][..], &changes].concat()));
            assert!(bo.next().await == Some([&[0x99, 8, 0, 0, 0][..], &changes].concat()));
        }
        bo.send(&seen(8, 3)).await;
        let seen = Seen { session: SessionId(2), watch: RequestId(8), n: 3 };
        until("it is seen", || {
            let heard =
                |said: &SessionToMaster| (*said == SessionToMaster::Seen(seen)).then_some(());
            master.heard(heard).len() == 1
        })
        .await;
    });
}

#[test]
fn a_broken_link_to_a_game_comes_back_and_the_client_sends_again() {
    story(async |Cluster { session, game, .. }| {
        let mut client = Client::seated(session.url("tcp"), 1).await;
        let (member, channel) = game.member(1);
        game.break_link();
        until("it is attached again", || game.attaches() == 2).await;
        assert_eq!(game.member(1), (member, channel));
        let (of, code) = of_seat(&client.until(client_instance::SEND_AGAIN).await);
        assert_eq!((of, code), (channel, Code::Busy));
        client.send(&up(channel, 1, b"once more")).await;
        until("it is heard", || game.passed(UP, member).len() == 1).await;
    });
}

#[test]
fn a_game_server_that_dies_ends_its_seats_and_nothing_else() {
    story(async |Cluster { session, game, .. }| {
        let mut client = Client::seated(session.url("tcp"), 1).await;
        let (_, channel) = game.member(1);
        game.die();
        let (of, code) = of_seat(&client.until(client_instance::SEAT_ENDED).await);
        assert_eq!((of, code), (channel, Code::InstanceLost));
        client.send(&search(2)).await;
        client.until(0x95).await;
        // What was still under way to it.
        client.send(&up(channel, 1, b"late")).await;
        let (of, code) = of_seat(&client.until(client_instance::SEAT_ENDED).await);
        assert_eq!((of, code), (channel, Code::NotSeated));
    });
}

#[test]
fn a_newer_connection_takes_the_session_over() {
    story(async |Cluster { session, .. }| {
        let mut older = Client::connect(session.url("tcp"), None).await;
        older.check_in(1).await;
        let mut newer = Client::connect(session.url("ws"), None).await;
        newer.check_in(1).await;
        assert_eq!(older.closing().await.code, Code::Superseded);
        newer.is_served().await;
    });
}
