//! The pages over real sockets: what they show, what they never show, and the stream that keeps them up to date.
#![expect(clippy::unwrap_used, reason = "helpers of tests may fail as tests do")]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use greenroom_console::{AdminToken, Cluster, Console, ConsoleConfig, Reply};
use greenroom_logs::kinds::{CheckIn, InstanceFailed};
use greenroom_logs::{LogWriter, LogsConfig};
use greenroom_protocol::search::{Explain, Filter};
use greenroom_protocol::wire::admin_master::{
    Action, Find, GameStatus, InstanceStatus, KindStatus, MasterStatus, Placement, Promote, Row,
    Rows, SeatStatus, ServerStatus, Status, Table, WitnessStatus,
};
use greenroom_protocol::wire::client_session::{Meta, MetaValue};
use greenroom_protocol::wire::master_game::{GameCounts, Measures};
use greenroom_protocol::wire::session_master::SessionCounts;
use greenroom_protocol::{
    Code, Incarnation, InstanceId, KindName, Refusal, Seat, ServerName, SessionId, UserId,
};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

const INSTANCE: InstanceId = InstanceId(77);
/// What a player may be called.
const EVIL: &str = "<img src=x onerror=alert(1)>\u{1b}[31m\u{202e}\"'&";

/// A cluster with one of everything, whose user has an evil name.
#[derive(Clone, Default)]
struct Staged {
    /// What was searched for.
    asked: Arc<Mutex<Vec<Find>>>,
    /// It answers nothing any more.
    is_away: Arc<AtomicBool>,
    /// It is a standby.
    follows: Arc<AtomicBool>,
    lost: Arc<Mutex<u64>>,
}

fn master(name: &str, role: &str) -> MasterStatus {
    MasterStatus {
        name: ServerName::new(name).unwrap(),
        side: "a".into(),
        role: role.into(),
        incarnation: Incarnation(1),
        epoch: "1.2".into(),
        lsn: 12_345,
        commit: 12_345,
        lag: 0,
        in_sync: true,
        troubles: vec![],
    }
}

fn server(name: &str) -> ServerStatus {
    ServerStatus {
        name: ServerName::new(name).unwrap(),
        state: "up".into(),
        addresses: vec!["127.0.0.1:1".into()],
        build: "test".into(),
        load: 1,
        capacity: 10,
        busy_permille: 250,
        session: None,
        game: None,
    }
}

impl Staged {
    fn now(&self) -> Status {
        let counts = SessionCounts {
            check_ins: 5,
            lost: *self.lost.lock().unwrap(),
            ..SessionCounts::default()
        };
        let ticks = GameCounts {
            ticks: 1_204,
            ticks_late: 3,
            tick_late_us: 6_700,
            ..GameCounts::default()
        };
        let game = GameStatus { instances: 1, seats: 1, orphans: 0, counts: ticks };
        let roles =
            if self.follows.load(Relaxed) { ["standby", "active"] } else { ["active", "standby"] };
        Status {
            cluster: "staged".into(),
            masters: vec![master("master-1", roles[0]), master("master-2", roles[1])],
            sessions: vec![ServerStatus { session: Some(counts), ..server("session-1") }],
            games: vec![ServerStatus { game: Some(game), ..server("game-1") }],
            users: 4_321,
            instances: 1,
            twins: 0,
            witness: Some(WitnessStatus { place: "127.0.0.1:9".into(), answers: true }),
            kinds: vec![
                KindStatus {
                    name: KindName::new("arena").unwrap(),
                    instances: 1,
                    fields: vec!["map".into()],
                },
                KindStatus {
                    name: KindName::new("<b>duel").unwrap(),
                    instances: 0,
                    fields: vec![],
                },
            ],
        }
    }
    fn row(table: &Table) -> Row {
        let text = |text: &str| MetaValue::Text(text.into());
        let fields = match table {
            Table::Users => vec![
                ("id", text("ann<script>")),
                ("name", text(EVIL)),
                ("online", MetaValue::Bool(true)),
                ("seats", MetaValue::Int(1)),
            ],
            Table::Instances(_) => vec![
                ("id", text(&INSTANCE.to_string())),
                ("state", text("running")),
                ("server", text("game-1")),
                ("map", text(EVIL)),
                ("seats_taken", MetaValue::Int(1)),
                ("seats_max", MetaValue::Int(4)),
            ],
            Table::Servers => {
                vec![("name", text("game-1")), ("role", text("game")), ("labels", text(EVIL))]
            }
        };
        Row { fields: fields.into_iter().map(|(name, value)| (name.into(), value)).collect() }
    }
}

impl Cluster for Staged {
    fn status(&self) -> Reply<'_, Status> {
        Box::pin(async {
            match self.is_away.load(Relaxed) {
                true => Err(Refusal::new(Code::Unavailable, "the master has stopped")),
                false => Ok(self.now()),
            }
        })
    }
    fn find(&self, find: Find) -> Reply<'_, Rows> {
        Box::pin(async move {
            let rows = vec![Self::row(&find.table); find.limit.min(3).into()];
            let index = find.filter.to_string().into();
            let explain = Explain {
                index,
                examined: 3,
                matched: 3,
                ordered_by_index: true,
                considered: vec![],
            };
            let cursor = find.cursor.is_none().then(|| vec![0xab, 0x01].into());
            self.asked.lock().unwrap().push(find);
            Ok(Rows { rows, cursor, explain })
        })
    }
    fn instance(&self, id: InstanceId) -> Reply<'_, InstanceStatus> {
        Box::pin(async move {
            if id != INSTANCE {
                return Err(Refusal::new(Code::InstanceUnknown, "there is no such instance"));
            }
            let Row { fields } = Self::row(&Table::Instances(KindName::new("arena").unwrap()));
            let seat = SeatStatus {
                seat: Seat(0),
                state: "taken".into(),
                user: Some(UserId::new("ann<script>").unwrap()),
                name: EVIL.into(),
                session_server: Some(ServerName::new("session-1").unwrap()),
            };
            let kind = KindName::new("arena").unwrap();
            Ok(InstanceStatus {
                kind,
                incarnation: Incarnation(9),
                fields: fields as Meta,
                seats: vec![seat],
                measures: Some(Measures {
                    steps: 512,
                    step_p50_us: 41,
                    step_p99_us: 1_234,
                    step_last_us: 57,
                    patch_bytes_per_s: Some(98_765),
                    view_bytes: 4_321,
                    state_bytes: Some(5_432),
                }),
            })
        })
    }
    fn metrics(&self) -> String {
        String::new()
    }
    fn placement(&self, _: KindName) -> Reply<'_, Placement> {
        Box::pin(async { Err(Refusal::new(Code::KindUnknown, "no such kind")) })
    }
    fn act(&self, _: Action) -> Reply<'_, ()> {
        Box::pin(async { Ok(()) })
    }
    fn switchover(&self) -> Reply<'_, ()> {
        Box::pin(async { Ok(()) })
    }
    fn promote(&self, _: Promote) -> Reply<'_, ()> {
        Box::pin(async { Ok(()) })
    }
}

/// Runs an admin port and a story beside it.
async fn beside_a_port<F: Future<Output = ()>>(
    other: &str,
    story: impl FnOnce(SocketAddr, Staged) -> F,
) {
    beside_a_port_with_logs("no-logs".into(), other, story).await;
}

async fn beside_a_port_with_logs<F: Future<Output = ()>>(
    logs: PathBuf,
    other: &str,
    story: impl FnOnce(SocketAddr, Staged) -> F,
) {
    let cluster = Staged::default();
    let config = ConsoleConfig { listen: "127.0.0.1:0".into(), other: other.into() };
    let token = AdminToken::generate().unwrap();
    let console = Console::bind(&config, cluster.clone(), token, "nowhere", logs).await.unwrap();
    let (address, stop) = (console.address(), CancellationToken::new());
    let story = async {
        story(address, cluster).await;
        stop.cancel();
    };
    tokio::join!(console.run(stop.clone()), story);
}

async fn get(address: SocketAddr, path: &str) -> String {
    get_as(address, path, "localhost").await
}

async fn get_as(address: SocketAddr, path: &str, host: &str) -> String {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: {host}\r\naccept: text/html\r\nconnection: close\r\n\r\n"
    );
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn every_page_is_there_and_says_what_it_is_of() {
    beside_a_port("", async |address, _| {
        for (path, says) in [
            ("/", "4\u{202f}321"),
            ("/users", "ann&lt;script&gt;"),
            ("/instances", "/instances/"),
            ("/servers", "game-1"),
            (&format!("/instances/{INSTANCE}"), "session-1"),
            ("/logs", "There is no event log here"),
            ("/instances/nonsense", "26 characters"),
            (&format!("/instances/{}", InstanceId(8)), "instance_unknown"),
        ] {
            let page = get(address, path).await;
            assert!(page.starts_with("HTTP/1.1 200") && page.contains(says), "{path}: {page}");
            assert!(page.contains("content-type: text/html") && page.contains("nosniff"), "{path}");
            assert!(
                page.contains("script-src 'self'") && !page.contains("unsafe-inline"),
                "{path}"
            );
        }
        let lost = get(address, "/usres").await;
        assert!(lost.starts_with("HTTP/1.1 404") && lost.contains("no such page"), "{lost}");
        for asset in
            ["console.js", "console.css", "uplot.js", "uplot.css", "uplot-LICENSE", "icon.svg"]
        {
            assert!(
                get(address, &format!("/assets/{asset}")).await.starts_with("HTTP/1.1 200"),
                "{asset}"
            );
        }
        assert!(get(address, "/assets/..%2fCargo.toml").await.starts_with("HTTP/1.1 404"));
    })
    .await;
}

/// What the instance itself costs stands beside what its server does.
#[tokio::test]
async fn the_page_of_an_instance_has_its_own_steps_and_bytes() {
    beside_a_port("", async |address, _| {
        let page = get(address, &format!("/instances/{INSTANCE}")).await;
        for told in [
            "up to 0.04 ms",
            "up to 1.23 ms",
            "<dd>0.05 ms</dd>",
            "the newest 512 steps",
            "5\u{202f}432 bytes",
            "4\u{202f}321 bytes",
            "98\u{202f}765 bytes/s",
        ] {
            assert!(page.contains(told), "{told}: {page}");
        }
    })
    .await;
}

/// The page has no scripts and styles of its own either, so that the policy stays as strict as it is.
#[tokio::test]
async fn what_players_are_called_is_text_everywhere() {
    beside_a_port("", async |address, _| {
        let one = format!("/instances/{INSTANCE}");
        for path in ["/", "/users", "/instances", "/instances?kind=%3Cb%3Eduel", "/servers", &one] {
            let page = get(address, path).await;
            let (_, body) = page.split_once("\r\n\r\n").unwrap();
            assert!(!body.contains("<img src=x") && !body.contains("<script>"), "{path}: {body}");
            assert!(!body.contains("<b>duel") && !body.contains(" style="), "{path}");
            let is_bad = |char: char| {
                char.is_control() && char != '\r' && char != '\n' || char == '\u{202e}'
            };
            assert!(!body.contains(is_bad), "{path}: {body:?}");
            assert!(!body.contains(" onclick=") && !body.contains("javascript:"), "{path}");
        }
        let users = get(address, "/users").await;
        assert!(
            users.contains("&lt;img src=x onerror=alert(1)&gt;\\u{1b}[31m\\u{202e}"),
            "{users}"
        );
        let echoed = get(address, "/users?q=%22%3E%3Cscript%3Ealert(1)%3C/script%3E").await;
        assert!(
            !echoed.contains("<script>alert") && echoed.contains("This is no query"),
            "{echoed}"
        );
    })
    .await;
}

#[tokio::test]
async fn a_search_is_in_the_words_of_find_and_goes_on_where_the_page_before_ended() {
    beside_a_port("", async |address, cluster| {
        let first = get(address, "/users?q=name+%3D+%22ann%22+limit+2").await;
        assert!(first.contains("cursor=ab01\""), "{first}");
        assert!(first.contains("data-refresh"), "the first page stays fresh");
        let next = get(address, "/users?q=name+%3D+%22ann%22+limit+2&cursor=ab01").await;
        assert!(next.contains("First page") && !next.contains("cursor=ab01\""), "{next}");
        let of_kind = get(address, "/instances?kind=arena").await;
        assert!(
            of_kind.contains("<code>map</code>"),
            "the fields of the kind are named: {of_kind}"
        );
        let asked = cluster.asked.lock().unwrap().clone();
        let is_ann = Filter::Eq("name".into(), MetaValue::Text("ann".into()));
        assert_eq!((&asked[0].filter, asked[0].limit, &asked[0].cursor), (&is_ann, 2, &None));
        assert_eq!(asked[1].cursor.as_ref().unwrap()[..], [0xab, 0x01]);
        assert_eq!(asked[2].table, Table::Instances(KindName::new("arena").unwrap()));
        let wrong = get(address, "/users?cursor=zz").await;
        assert!(wrong.contains("begin at the first page"), "{wrong}");
    })
    .await;
}

/// The stream as lines.
async fn stream(address: SocketAddr) -> BufReader<TcpStream> {
    stream_of(address, "/events", "").await
}

async fn stream_of(address: SocketAddr, path: &str, headers: &str) -> BufReader<TcpStream> {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    BufReader::new(socket)
}

/// The data of the next event of this name.
async fn event(stream: &mut BufReader<TcpStream>, name: &str) -> String {
    let mut is_it = false;
    loop {
        let mut line = String::new();
        assert!(stream.read_line(&mut line).await.unwrap() > 0, "the stream ended before {name}");
        if let Some(of) = line.strip_prefix("event: ") {
            is_it = of.trim() == name;
        }
        if let Some(data) = line.strip_prefix("data: ")
            && is_it
        {
            return data.trim().to_owned();
        }
    }
}

#[tokio::test]
async fn an_open_page_is_told_of_every_second() {
    beside_a_port("", async |address, cluster| {
        let mut open = stream(address).await;
        let sample: serde_json::Value =
            serde_json::from_str(&event(&mut open, "sample").await).unwrap();
        assert_eq!(sample["values"][0], 4_321.0);
        let live = event(&mut open, "live").await;
        assert!(live.contains("zero good") && !live.contains("zero bad"), "{live}");
        *cluster.lost.lock().unwrap() = 3;
        while !event(&mut open, "live").await.contains("zero bad") {}
        cluster.is_away.store(true, Relaxed);
        let away = loop {
            let live = event(&mut open, "live").await;
            if live.contains("No word from the master") {
                break live;
            }
        };
        assert!(away.contains("the master has stopped") && away.contains("data-stale"), "{away}");
        assert!(away.contains("4\u{202f}321"), "the last that was heard is still there");
        let past = get(address, "/past").await;
        let (_, json) = past.split_once("\r\n\r\n").unwrap();
        let past: serde_json::Value = serde_json::from_str(json).unwrap();
        assert!(
            past["samples"].as_array().unwrap().len() >= 3 && past["series"][0] == "users",
            "{past}"
        );
    })
    .await;
}

/// A stream has no end of its own: the port must not wait for it.
#[tokio::test]
async fn a_port_that_stops_ends_the_pages_streams() {
    let mut open = None;
    beside_a_port("", async |address, _| {
        let mut opened = stream(address).await;
        event(&mut opened, "live").await;
        open = Some(opened);
    })
    .await;
    let mut rest = Vec::new();
    open.unwrap().read_to_end(&mut rest).await.unwrap();
    // A connection that is cut when the drain is over has no last chunk.
    assert!(rest.ends_with(b"\r\n0\r\n\r\n"), "{}", String::from_utf8_lossy(&rest));
}

#[tokio::test]
async fn one_page_too_many_is_refused_and_a_place_is_free_again_when_one_closes() {
    beside_a_port("", async |address, _| {
        let mut open = Vec::new();
        for _ in 0..64 {
            let mut opened = stream(address).await;
            event(&mut opened, "sample").await;
            open.push(opened);
        }
        let refused = get(address, "/events").await;
        assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("close some"), "{refused}");
        drop(open);
        // The port notices a page that is gone when it has something to tell it.
        loop {
            let mut again = stream(address).await;
            let mut line = String::new();
            again.read_line(&mut line).await.unwrap();
            if line.starts_with("HTTP/1.1 200") {
                break;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_master_that_does_not_decide_leads_to_the_one_that_does() {
    beside_a_port("http://127.0.0.1:4090/", async |address, cluster| {
        assert!(!get(address, "/").await.contains("does not decide"));
        cluster.follows.store(true, Relaxed);
        let page = loop {
            let page = get(address, "/").await;
            if page.contains("does not decide") {
                break page;
            }
        };
        assert!(page.contains("The active is <b>master-2</b>"), "{page}");
        assert!(page.contains("href=\"http://127.0.0.1:4090/\""), "{page}");
        assert!(!page.contains("Switch over"), "only the active hands over");
    })
    .await;
}

/// Another site's page could otherwise read this one through a name that it makes mean this machine.
#[tokio::test]
async fn on_loopback_the_port_has_no_other_names() {
    beside_a_port("", async |address, _| {
        for host in ["localhost", "LOCALHOST:4080", "127.0.0.1:4080", "[::1]:4080", "a.localhost"] {
            assert!(get_as(address, "/users", host).await.starts_with("HTTP/1.1 200"), "{host}");
        }
        for host in ["evil.example", "localhost.evil.example:4080", "", "127.0.0.1.evil.example"] {
            for path in ["/users", "/status", "/events", "/logs", "/logs/tail"] {
                let answer = get_as(address, path, host).await;
                assert!(answer.starts_with("HTTP/1.1 421"), "{host} {path}: {answer}");
            }
        }
    })
    .await;
}

/// An event log with a check-in of somebody with an evil name for each number, and a failure.
fn log(folder: &std::path::Path, count: u64) -> LogWriter {
    let writer = LogWriter::start(&LogsConfig::default(), folder, "up").unwrap();
    (0..count).for_each(|n| check_in(&writer, n));
    let failure = InstanceFailed {
        instance: INSTANCE,
        instance_kind: "arena".into(),
        what: format!("boom {EVIL}").into(),
    };
    writer.logs().of("game-1", "game").emit(&failure);
    assert!(writer.logs().flush(Duration::from_secs(60)));
    writer
}

fn check_in(writer: &LogWriter, n: u64) {
    let (user, session) = (UserId::new(format!("user-{n}")).unwrap(), SessionId(n));
    let server = ServerName::new("session-1").unwrap();
    let event = CheckIn { user, session, name: format!("Ann{n} {EVIL}").into(), server };
    writer.logs().of("session-1", "session").emit(&event);
}

/// What an address in a page says after this word.
fn link<'a>(page: &'a str, before: &str) -> &'a str {
    let (_, rest) = page.split_once(before).unwrap_or_else(|| panic!("{before} is in {page}"));
    rest.split('"').next().unwrap_or_default()
}

#[tokio::test]
async fn the_log_is_paged_back_and_asked_for_what_is_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let _writer = log(folder.path(), 250);
    beside_a_port_with_logs(folder.path().into(), "", async |address, _| {
        let mut pages = vec![get(address, "/logs").await];
        while pages.last().unwrap().contains("rel=\"next\"") {
            let older = link(pages.last().unwrap(), "rel=\"next\" href=\"").to_owned();
            pages.push(get(address, &older).await);
        }
        let rows: Vec<_> = pages.iter().map(|page| page.matches("<tr><td").count()).collect();
        assert_eq!(rows, [100, 100, 51], "each event is on one page");
        for n in 0..250 {
            let of = format!(">user-{n}<");
            assert_eq!(pages.iter().filter(|page| page.contains(&of)).count(), 1, "{n}");
        }
        assert!(pages[0].contains("data-tail") && !pages[1].contains("data-tail"));
        for (asked, says, rows) in [
            ("severity=error", "boom", 1),
            ("role=session&user=user-7", "Ann7 ", 1),
            ("q=ANN24%20%3Cimg", "user-24", 1),
            ("kind=instance_failed&role=game", "game-1", 1),
            (&format!("instance={INSTANCE}"), "boom", 1),
            ("user=nobody", "Nothing like this has happened yet", 0),
        ] {
            let page = get(address, &format!("/logs?{asked}")).await;
            assert_eq!(page.matches("<tr><td").count(), rows, "{asked}: {page}");
            assert!(page.contains(says), "{asked}: {page}");
        }
        for wrong in ["severity=loud", "before=zz", "before=ff"] {
            let page = get(address, &format!("/logs?{wrong}")).await;
            assert!(page.contains("The log can't be shown"), "{wrong}: {page}");
        }
        let one = get(address, &format!("/instances/{INSTANCE}")).await;
        assert!(one.contains("boom") && one.matches("instance_failed").count() == 2, "{one}");
        // Its server's ticks stand beside it.
        assert!(
            one.contains("1\u{202f}204, 3 of them late") && one.contains("6.7 ms late"),
            "{one}"
        );
    })
    .await;
}

#[tokio::test]
async fn what_an_event_says_is_text_on_the_page_and_in_its_tail() {
    let folder = tempfile::tempdir().unwrap();
    let writer = log(folder.path(), 3);
    beside_a_port_with_logs(folder.path().into(), "", async |address, _| {
        let page = get(address, "/logs").await;
        let mut tail =
            stream_of(address, &link(&page, "data-tail=\"").replace("&amp;", "&"), "").await;
        check_in(&writer, 9);
        let rows = event(&mut tail, "rows").await;
        for body in [page.split_once("\r\n\r\n").unwrap().1, &rows] {
            assert!(!body.contains("<img src=x") && body.contains("&lt;img src=x"), "{body}");
            assert!(!body.contains(['\u{1b}', '\u{202e}']) && body.contains("\\u{202e}"), "{body}");
        }
    })
    .await;
}

#[tokio::test]
async fn the_tail_gives_what_is_wanted_once_also_to_a_page_that_lost_it() {
    let folder = tempfile::tempdir().unwrap();
    let writer = log(folder.path(), 3);
    beside_a_port_with_logs(folder.path().into(), "", async |address, _| {
        let page = get(address, "/logs?user=user-9").await;
        let path = link(&page, "data-tail=\"").replace("&amp;", "&");
        check_in(&writer, 8);
        check_in(&writer, 9);
        let mut tail = stream_of(address, &path, "").await;
        let (mut id, mut rows) = (String::new(), None);
        while id.is_empty() || rows.is_none() {
            let mut line = String::new();
            assert!(tail.read_line(&mut line).await.unwrap() > 0, "the tail ended");
            if let Some(data) = line.strip_prefix("data: ").filter(|data| data.contains("<tr>")) {
                rows = Some(data.to_owned());
            }
            if let Some(of) = line.strip_prefix("id: ") {
                id = of.trim().to_owned();
            }
        }
        let rows = rows.unwrap();
        assert!(rows.contains("user-9") && !rows.contains("user-8"), "{rows}");
        // That nothing is new is said too, with data: browsers pass over an event without.
        assert_eq!(event(&mut tail, "beat").await, "quiet");
        drop(tail);
        // Where a browser says what it heard last, nothing of before is said again.
        check_in(&writer, 9);
        let header = format!("last-event-id: {id}\r\n");
        let mut again = stream_of(address, &path, &header).await;
        let rows = event(&mut again, "rows").await;
        assert_eq!(rows.matches("<tr>").count(), 1, "{rows}");
        let refused = get(address, "/logs/tail?after=zz").await;
        assert!(refused.starts_with("HTTP/1.1 400"), "{refused}");
    })
    .await;
}
