//! What the event log says of a run is what happened in it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use greenroom::client::Client;

use crate::harness::{Cluster, assert_clean, rows, rows_of, run, up, wait_until};

fn counts(data: &str) -> BTreeMap<String, u64> {
    let rows = rows(data, "select kind, count(*) from events group by kind");
    let pairs = rows.iter().map(|row| row.split_once(',').unwrap());
    pairs.map(|(kind, count)| (kind.to_owned(), count.parse().unwrap())).collect()
}

/// Bots play duels. Each check-in, seat, leave, instance and duel that they report is an event, and no other is.
#[test]
fn what_the_log_counts_is_what_the_bots_did() {
    let cluster = Cluster::start(2, 2);
    let results = cluster.folder.path().join("results");
    let results = results.to_str().unwrap();
    let flags = ["--users", "30", "--for", "8s", "--game", "duel", "--results", results];
    let (ok, report) = cluster.bots(&flags);
    assert!(ok, "{report:#}");
    assert_clean(&report);
    let data = cluster.folder.text().to_owned();
    let of = |counts: &BTreeMap<String, u64>, kind: &str| counts.get(kind).copied().unwrap_or(0);
    // A session that was closed may still be resumed for a while; an instance that is empty closes after a while.
    wait_until("everybody to be away, and every instance to be over", || {
        let now = counts(&data);
        let away = of(&now, "session_away") == of(&now, "check_in");
        away && of(&now, "instance_closed") == of(&now, "instance_granted")
    });
    // Whoever ends writes what it still has to say.
    let Cluster { folder: _folder, master, sessions, games, .. } = cluster;
    for process in sessions.into_iter().chain(games).chain([master]) {
        let (ended, text) = process.stop();
        assert!(ended, "{text}");
    }

    let now = counts(&data);
    let did = |operation: &str| report["by_operation"][operation]["count"].as_u64().unwrap();
    assert_eq!(did("check_in"), 30);
    assert_eq!(of(&now, "check_in"), did("check_in"), "{now:?}");
    assert_eq!(of(&now, "session_away"), did("check_in"), "{now:?}");
    assert_eq!(of(&now, "directory_join"), did("join"), "{now:?}");
    assert_eq!(of(&now, "directory_leave"), did("leave"), "{now:?}");
    let played = rows(&data, "select instance, count(*) from directory_join group by instance");
    for kind in ["instance_granted", "instance_running", "instance_closed"] {
        assert_eq!(of(&now, kind), played.len() as u64, "{kind}: {now:?}");
    }
    assert_eq!((of(&now, "process_started"), of(&now, "process_stopped")), (5, 5), "{now:?}");

    // A duel of two has one result, and one event about it; bots were told of no other.
    let of_two: BTreeSet<_> =
        played.iter().filter_map(|row| row.strip_suffix(",2")).map(str::to_owned).collect();
    let over = rows(&data, "select instance from \"duel.over\"");
    assert_eq!(over.len(), of_two.len(), "{now:?}");
    assert_eq!(over.into_iter().collect::<BTreeSet<_>>(), of_two);
    let told = std::fs::read_to_string(results).unwrap();
    let told: BTreeSet<_> = told.lines().map(|id| id.replace("duel/", "")).collect();
    assert!(told.len() > 10 && told.is_subset(&of_two), "{told:?}");
    // The reference has what games tell, field by field.
    let fields =
        "select distinct kind || ' ' || key from events, json_each(fields) where kind like '%.%'";
    let fields: BTreeSet<_> = rows(&data, fields).into_iter().collect();
    assert_eq!(fields, fields_of_games_in_the_reference());
    // Who has won sat there, by the directory's own account.
    let strangers = "select count(*) from \"duel.over\" o where o.user is not null and not exists \
                     (select 1 from directory_join j where j.instance = o.instance and j.user = o.user)";
    assert_eq!(rows(&data, strangers), ["0"]);
}

/// The kinds of the demo games and their fields, as `docs/events.md` lists them.
fn fields_of_games_in_the_reference() -> BTreeSet<String> {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/events.md");
    let page = std::fs::read_to_string(page).unwrap();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` |"));
    let of_games = rows.filter(|(kind, _)| kind.contains('.'));
    let fields = of_games.flat_map(|(kind, rest)| {
        let cells = rest.rsplit('|').find(|cell| !cell.is_empty()).unwrap();
        let names = cells.split('`').skip(1).step_by(2);
        names.map(move |name| format!("{kind} {name}")).collect::<Vec<_>>()
    });
    fields.collect()
}

/// A way of one client to its server that takes its time in each direction.
struct Way {
    url: String,
    /// Bytes that went to the server.
    passed: Arc<AtomicUsize>,
}

impl Way {
    fn to(url: &str, delay: Duration) -> Self {
        let server = url.strip_prefix("tcp://").unwrap().to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("tcp://{}", listener.local_addr().unwrap());
        let passed = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&passed);
        thread::spawn(move || {
            let client = listener.accept().unwrap().0;
            let server = TcpStream::connect(server).unwrap();
            let back = (server.try_clone().unwrap(), client.try_clone().unwrap());
            thread::spawn(move || pass(back.0, back.1, delay, &AtomicUsize::new(0)));
            pass(client, server, delay, &count);
        });
        Self { url, passed }
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the way that takes its time")]
fn pass(mut from: TcpStream, mut to: TcpStream, delay: Duration, count: &AtomicUsize) {
    let mut piece = [0; 4_096];
    while let Ok(size @ 1..) = from.read(&mut piece) {
        thread::sleep(delay);
        if to.write_all(&piece[..size]).is_err() {
            break;
        }
        count.fetch_add(size, Relaxed);
    }
    let _gone_already = to.shutdown(std::net::Shutdown::Both);
}

/// Two session servers in two regions, one of them far from its client: the log knows how far, and the report says it.
#[tokio::test(flavor = "multi_thread")]
async fn how_far_clients_are_is_measured_and_told_by_region() {
    const PONG_BYTES: usize = 4 + 1 + 8;
    let mut cluster = Cluster::start(0, 1);
    for region in ["eu", "us"] {
        cluster.start_session(&["--labels", region, "--round-trip-every", "200ms"]);
    }
    cluster.wait_for("both session servers", |status| up(&status.sessions) == 2);
    let delays = [Duration::ZERO, Duration::from_millis(40)];
    let mut players = Vec::new();
    for (session, delay) in delays.into_iter().enumerate() {
        let way = Way::to(cluster.urls(session)[0], delay);
        let client = Client::builder().servers([way.url.as_str()]).guest(format!("p{session}"));
        players.push((client.connect().await.unwrap(), way.passed.load(Relaxed), way));
    }
    wait_until("15 pings of each to be answered", || {
        players.iter().all(|(_, before, way)| way.passed.load(Relaxed) > before + 15 * PONG_BYTES)
    });
    for (client, ..) in &players {
        client.close().await;
    }
    let data = cluster.folder.text();
    let question = "select labels, round_trips >= 5, round_trip_p50_ms >= 70, round_trip_p50_ms <= round_trip_p99_ms, \
                    round_trip_last_ms > 0, lasted_ms > 1000, node in (select server from check_in c where \
                    c.session = connection_ended.session) from connection_ended order by labels";
    let mut found = Vec::new();
    wait_until("both connections to be over in the log", || {
        found = rows(data, question);
        found.len() == 2
    });
    // How long the near one takes is for the machine to say: less than what the far one can't be below.
    assert_eq!(found[1], "us,1,1,1,1,1,1");
    let nearer = "select a.round_trip_p50_ms < b.round_trip_p50_ms from connection_ended a, connection_ended b \
                  where a.labels = 'eu' and b.labels = 'us'";
    assert!(found[0].starts_with("eu,1,") && rows(data, nearer) == ["1"], "{found:?}");
    let report = ["logs", "report", "latency", "--format", "csv", "--data", data];
    let said = rows_of(&run(&report));
    for region in ["eu", "us"] {
        for percent in [50, 99] {
            let row = format!("{region}: a round trip (a connection's p{percent}),");
            assert!(said.iter().any(|line| line.starts_with(&row)), "{row}: {said:?}");
        }
    }
}
