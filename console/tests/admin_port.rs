//! The admin port over real sockets, asked by its own client and by strangers.
#![expect(clippy::unwrap_used, reason = "helpers of tests may fail as tests do")]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use greenroom_console::client::{self, ClientError};
use greenroom_console::{AdminToken, Cluster, Console, ConsoleConfig, ConsoleError, Reply, Scrape};
use greenroom_protocol::search::{Explain, Filter};
use greenroom_protocol::wire::admin_master::{
    Action, Find, InstanceStatus, PlaceConsidered, Placement, Promote, Row, Rows, Status, Table,
};
use greenroom_protocol::wire::client_session::{Meta, MetaValue};
use greenroom_protocol::{Code, InstanceId, KindName, Refusal, ServerName, UserId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// A cluster of nobody that remembers what it was told to do.
#[derive(Clone, Default)]
struct Empty(Arc<Mutex<Vec<Action>>>);

fn empty() -> Status {
    Status {
        cluster: "test".into(),
        masters: Vec::new(),
        sessions: Vec::new(),
        games: Vec::new(),
        users: 3,
        instances: 2,
        twins: 0,
        witness: None,
        kinds: Vec::new(),
    }
}

/// One user, found by what was asked.
fn ann(asked: &Filter) -> Rows {
    let explain = Explain {
        index: asked.to_string().into(),
        examined: 1,
        matched: 1,
        ordered_by_index: true,
        considered: Vec::new(),
    };
    let fields = Meta::from([("id".into(), MetaValue::Text("ann".into()))]);
    Rows { rows: vec![Row { fields }], cursor: Some(vec![1, 2].into()), explain }
}

fn nowhere(kind: &str) -> Placement {
    let server = ServerName::new("g1").unwrap();
    let considered = vec![PlaceConsidered { server, load: 1, capacity: 1, verdict: kind.into() }];
    Placement { server: None, considered }
}

impl Cluster for Empty {
    fn status(&self) -> Reply<'_, Status> {
        Box::pin(async { Ok(empty()) })
    }
    fn find(&self, find: Find) -> Reply<'_, Rows> {
        Box::pin(async move {
            match find.table {
                Table::Users => Ok(ann(&find.filter)),
                Table::Instances(_) | Table::Servers => {
                    Err(Refusal::new(Code::TooBroad, "narrow it by the field mode"))
                }
            }
        })
    }
    fn instance(&self, _: InstanceId) -> Reply<'_, InstanceStatus> {
        Box::pin(async { Err(Refusal::new(Code::InstanceUnknown, "there is no such instance")) })
    }
    fn placement(&self, kind: KindName) -> Reply<'_, Placement> {
        Box::pin(async move { Ok(nowhere(kind.as_str())) })
    }
    fn metrics(&self) -> String {
        "greenroom_master_active{server=\"m1\"} 1\n".to_owned()
    }
    fn switchover(&self) -> Reply<'_, ()> {
        Box::pin(async { Err(Refusal::new(Code::Unavailable, "this master is alone")) })
    }
    fn promote(&self, promote: Promote) -> Reply<'_, ()> {
        Box::pin(async move {
            match promote.accept_loss {
                true => Ok(()),
                false => Err(Refusal::new(Code::Unavailable, "something may be lost")),
            }
        })
    }
    fn act(&self, action: Action) -> Reply<'_, ()> {
        Box::pin(async {
            if let Action::Kick { .. } = action {
                return Err(Refusal::new(Code::UserUnknown, "user ann is not checked in"));
            }
            self.0.lock().unwrap().push(action);
            Ok(())
        })
    }
}

fn on_a_free_port() -> ConsoleConfig {
    ConsoleConfig { listen: "127.0.0.1:0".into(), ..ConsoleConfig::default() }
}

/// Runs an admin port and a story beside it.
async fn beside_a_port<F: Future<Output = ()>>(
    story: impl FnOnce(SocketAddr, AdminToken, Empty) -> F,
) {
    let (cluster, token) = (Empty::default(), AdminToken::generate().unwrap());
    let place = "/var/greenroom/admin.token";
    let bound =
        Console::bind(&on_a_free_port(), cluster.clone(), token.clone(), place, "no-logs".into())
            .await;
    let console = bound.unwrap();
    let (address, stop) = (console.address(), CancellationToken::new());
    let story = async {
        story(address, token, cluster).await;
        stop.cancel();
    };
    tokio::join!(console.run(stop.clone()), story);
}

/// Says `request` as it is and gives all that comes back.
async fn raw(address: SocketAddr, request: &str) -> String {
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    answer
}

fn post(headers: &str, body: &str) -> String {
    format!(
        "POST /actions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[tokio::test]
async fn the_status_is_read_without_a_token() {
    beside_a_port(async |address, _, _| {
        assert_eq!(client::status(&address.to_string()).await.unwrap(), empty());
        assert_eq!(client::status(&format!("http://{address}/")).await.unwrap(), empty());
        let get =
            |path| format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        assert!(raw(address, &get("/healthz")).await.starts_with("HTTP/1.1 200"));
        let metrics = raw(address, &get("/metrics")).await;
        assert!(metrics.contains("content-type: text/plain; version=0.0.4"), "{metrics}");
        assert!(metrics.ends_with("greenroom_master_active{server=\"m1\"} 1\n"), "{metrics}");
        let lost = raw(address, &get("/stauts")).await;
        assert!(lost.starts_with("HTTP/1.1 404") && lost.contains("GET /status"), "{lost}");
    })
    .await;
}

#[tokio::test]
async fn a_name_with_more_in_it_than_a_host_and_a_port_is_not_this_machine() {
    beside_a_port(async |address, _, _| {
        let get = |host: &str| {
            format!("GET /healthz HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")
        };
        let own =
            ["localhost", "LOCALHOST:80", "a.localhost:1", "127.0.0.1", "[::1]", "[::1]:4080"];
        for host in own {
            let answer = raw(address, &get(host)).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{host}: {answer}");
        }
        let strange = [
            "evil.com",
            "127.0.0.1:80@evil.com",
            "[::1]evil.com",
            "[::1",
            "[localhost]",
            "localhost:evil.com",
            "localhost:80:80",
            "evil.com/.localhost",
            "localhost.evil.com",
        ];
        for host in strange {
            let answer = raw(address, &get(host)).await;
            let is_refused =
                answer.starts_with("HTTP/1.1 421") || answer.starts_with("HTTP/1.1 400");
            assert!(is_refused, "{host}: {answer}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_port_of_its_own_shows_metrics_and_nothing_else() {
    let scrape = Scrape::bind("127.0.0.1:0", || "ticks_total 3\n".to_owned()).await.unwrap();
    let (address, stop) = (scrape.address(), CancellationToken::new());
    let story = async {
        let get =
            |path| format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        let metrics = raw(address, &get("/metrics")).await;
        assert!(metrics.ends_with("\r\n\r\nticks_total 3\n"), "{metrics}");
        assert!(raw(address, &get("/status")).await.starts_with("HTTP/1.1 404"));
        stop.cancel();
    };
    tokio::join!(scrape.run(stop.clone()), story);
}

#[tokio::test]
async fn an_action_needs_the_token_and_who_has_none_is_told_where_it_is() {
    beside_a_port(async |address, token, cluster| {
        let destroy = Action::Destroy { instance: InstanceId(7) };
        let body = serde_json::to_string(&destroy).unwrap();
        let without = raw(address, &post("", &body)).await;
        assert!(without.starts_with("HTTP/1.1 401") && without.contains("no token"), "{without}");
        let admin = address.to_string();
        let wrong = AdminToken::generate().unwrap();
        let Err(ClientError::Refused(problem)) = client::act(&admin, &wrong, &destroy).await else {
            panic!("a wrong token was taken")
        };
        assert_eq!(problem.code, "unauthorized");
        assert!(problem.message.contains("/var/greenroom/admin.token"), "{problem:?}");
        assert!(!problem.message.contains(token.expose()));
        assert!(cluster.0.lock().unwrap().is_empty());
        client::act(&admin, &token, &destroy).await.unwrap();
        assert_eq!(*cluster.0.lock().unwrap(), [destroy]);
    })
    .await;
}

#[tokio::test]
async fn a_search_and_a_placement_are_read_without_a_token() {
    beside_a_port(async |address, _, _| {
        let admin = address.to_string();
        let filter = Filter::Prefix("name".into(), "a\"n".into());
        let cursor = Some(vec![0, 255].into());
        let find =
            Find { table: Table::Users, filter: filter.clone(), order: None, limit: 5, cursor };
        assert_eq!(client::find(&admin, &find).await.unwrap(), ann(&filter));
        let broad = Find { table: Table::Servers, ..find };
        let refused = client::find(&admin, &broad).await.unwrap_err();
        assert_eq!(refused.to_string(), "too_broad: narrow it by the field mode");
        for kind in ["duel", "tag team/ä?%"] {
            let placement = client::placement(&admin, &KindName::new(kind).unwrap()).await;
            assert_eq!(placement.unwrap(), nowhere(kind));
        }
    })
    .await;
}

#[tokio::test]
async fn a_refusal_of_the_cluster_reaches_the_operator_as_it_is() {
    beside_a_port(async |address, token, _| {
        let kick = Action::Kick { user: UserId::new("ann").unwrap() };
        let refused = client::act(&address.to_string(), &token, &kick).await.unwrap_err();
        assert_eq!(refused.to_string(), "user_unknown: user ann is not checked in");
    })
    .await;
}

#[tokio::test]
async fn an_action_that_is_none_is_named_with_what_would_be_one() {
    beside_a_port(async |address, token, _| {
        let bearer = format!("authorization: Bearer {}\r\n", token.expose());
        let answer = raw(address, &post(&bearer, r#"{"destory": {}}"#)).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
        assert!(answer.contains("destory") && answer.contains("kick"), "{answer}");
        let long = "x".repeat(20_000);
        let answer = raw(address, &post(&bearer, &long)).await;
        assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("too_large"), "{answer}");
    })
    .await;
}

#[tokio::test]
async fn nobody_at_the_address_is_said_with_the_way_to_give_another() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let refused = client::status(&free.to_string()).await.unwrap_err().to_string();
    assert!(refused.contains(&free.to_string()) && refused.contains("--admin"), "{refused}");
}

#[tokio::test]
async fn another_service_at_the_address_is_not_taken_for_a_cluster() {
    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = other.local_addr().unwrap().to_string();
    let serve = async {
        let (mut socket, _) = other.accept().await.unwrap();
        let mut request = [0; 1024];
        let _read = socket.read(&mut request).await.unwrap();
        let answer = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello";
        socket.write_all(answer.as_bytes()).await.unwrap();
    };
    let (asked, ()) = tokio::join!(client::status(&address), serve);
    assert!(matches!(asked, Err(ClientError::NotOurs { status: 200, .. })), "{asked:?}");
}

#[tokio::test]
async fn a_port_in_use_is_named_with_what_to_do() {
    beside_a_port(async |address, token, cluster| {
        let config = ConsoleConfig { listen: address.to_string(), ..ConsoleConfig::default() };
        let failed =
            Console::bind(&config, cluster, token, "nowhere", "no-logs".into()).await.unwrap_err();
        assert!(matches!(failed, ConsoleError::Listen { .. }));
        assert!(failed.to_string().contains("[console] listen"), "{failed}");
    })
    .await;
}

/// Who opens connections and says nothing, or half of something, is sent away; who listens to a stream is not.
#[tokio::test]
async fn half_a_request_ends_and_a_stream_goes_on() {
    beside_a_port(async |address, _, _| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /events HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        let mut silent = TcpStream::connect(address).await.unwrap();
        let mut half = TcpStream::connect(address).await.unwrap();
        half.write_all(b"GET / HTTP/1.1\r\nhost: loc").await.unwrap();
        let mut slow = TcpStream::connect(address).await.unwrap();
        let head = "POST /find HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n{";
        slow.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        silent.read_to_string(&mut answer).await.unwrap();
        half.read_to_string(&mut answer).await.unwrap();
        assert!(!answer.contains("200 OK"), "{answer}");
        slow.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains("HTTP/1.1 408") && answer.contains("did not come"), "{answer}");
        // What it was sent meanwhile is read, and then there is more: it is open still.
        let mut heard = vec![0; 64 * 1024];
        while let Ok(1..) = stream.try_read(&mut heard) {}
        assert!(stream.read(&mut heard).await.unwrap() > 0, "the stream ended");
    })
    .await;
}
