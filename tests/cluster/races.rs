//! Races that made two of one thing, or none, elsewhere. Several are the findings of OpenTogetherTube's issue 2047, a
//! list of what goes wrong between a balancer and the servers that have its rooms; a story says which by its number.
//! Those that need an exact order of messages are played by the core alone, in `master/core/tests/stories.rs`.

use std::collections::{BTreeMap, BTreeSet};

use greenroom::client::{Client, ClientError, Code, InstanceId};
use greenroom_games::lobby::{Mode, Params};
use greenroom_protocol::wire::client_session::MetaValue;

use crate::harness::{Cluster, Process, error_of, patient, refusal, run};

async fn guests(cluster: &Cluster, count: usize) -> Vec<Client> {
    let mut clients = Vec::new();
    for n in 0..count {
        clients.push(cluster.client().guest(format!("player {n}")).connect().await.unwrap());
    }
    clients
}

/// Every instance of the kind that the directory knows, by its key.
fn by_key(cluster: &Cluster, kind: &str) -> BTreeMap<String, Vec<String>> {
    let found = run(&["find", kind, "--all", "--json", "--admin", cluster.admin()]);
    assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
    let mut keys: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in String::from_utf8(found.stdout).unwrap().lines() {
        let row: serde_json::Value = serde_json::from_str(line).unwrap();
        let key = row["key"].as_str().unwrap_or_default().to_owned();
        keys.entry(key).or_default().push(row["id"].as_str().unwrap().to_owned());
    }
    keys
}

/// Thirty-two players race for one key, again and again: each time there is one instance, and all of them get it.
#[tokio::test]
async fn thirty_two_clients_race_for_one_key_and_meet_in_one_instance() {
    let cluster = Cluster::start_with(2, 2, &["--limits", "load"]);
    let clients = guests(&cluster, 32).await;
    for round in 0..5 {
        let key = format!("round {round}");
        let asked =
            clients.iter().map(|client| client.create("lobby").key(key.as_str()).into_future());
        let made = futures_util::future::join_all(asked).await;
        let made: BTreeSet<InstanceId> = made.into_iter().map(Result::unwrap).collect();
        assert_eq!(made.len(), 1, "round {round}");
        // Sixteen of them sit down, the others are told that it is full, and nobody is sent elsewhere.
        let asked = clients
            .iter()
            .map(|client| client.join_or_create("lobby").key(key.as_str()).into_future());
        let sat = futures_util::future::join_all(asked).await;
        let (seated, refused): (Vec<_>, Vec<_>) = sat.into_iter().partition(Result::is_ok);
        assert_eq!((seated.len(), refused.len()), (16, 16));
        let rooms: Vec<_> = seated.into_iter().map(Result::unwrap).collect();
        assert!(rooms.iter().all(|room| made.contains(&room.instance())));
        for refused in refused {
            assert_eq!(refusal(refused).code, Code::InstanceFull);
        }
    }
    assert_eq!(by_key(&cluster, "lobby").len(), 5);
}

/// Findings 3 and 6: a game server is stalled for five seconds under a load of creates. The best-known peer asks
/// another server then, and both make the instance. Here each key has one instance in the end, whatever its callers
/// were told meanwhile, and no game server runs one that the directory does not know.
#[tokio::test]
async fn finding_3_and_6_a_stalled_game_server_makes_no_twin() {
    let cluster = Cluster::start_with(2, 2, &["--limits", "load"]);
    let clients = guests(&cluster, 16).await;
    let until = tokio::time::Instant::now() + std::time::Duration::from_secs(5);
    let worker = async |number: usize, client: &Client| {
        let mut made: Vec<(String, InstanceId)> = Vec::new();
        let mut n = 0;
        // Two workers share each key, so that each create is a race as well.
        while tokio::time::Instant::now() < until && n < 40 {
            let key = format!("{} of {}", n, number / 2);
            n += 1;
            loop {
                let asked = client.create("lobby").key(key.as_str()).await;
                match asked {
                    Ok(instance) => break made.push((key, instance)),
                    // The same question once more: it is answered by what became of the first.
                    Err(ClientError::Undecided { .. } | ClientError::Unavailable) => {}
                    Err(ClientError::Refused(refusal)) if refusal.code == Code::NoCapacity => {
                        tokio::task::yield_now().await;
                    }
                    Err(other) => panic!("{other}"),
                }
            }
        }
        made
    };
    let stall = async {
        cluster.games[0].stall();
        tokio::time::sleep_until(until).await;
        cluster.games[0].go_on();
    };
    let workers = clients.iter().enumerate().map(|(number, client)| worker(number, client));
    let all = async { tokio::join!(futures_util::future::join_all(workers), stall) };
    let (made, ()) = patient("every create", all).await;
    let mut told: BTreeMap<String, BTreeSet<InstanceId>> = BTreeMap::new();
    for (key, instance) in made.into_iter().flatten() {
        told.entry(key).or_default().insert(instance);
    }
    assert!(told.len() >= 8, "{} keys", told.len());
    assert!(told.values().all(|instances| instances.len() == 1), "a twin: {told:?}");
    // The stalled server has caught up when it says that it runs what the directory gave it.
    cluster.wait_for("both game servers", |status| {
        status.games.iter().all(|server| server.state == "up")
    });
    let known = by_key(&cluster, "lobby");
    assert!(known.values().all(|instances| instances.len() == 1), "a twin: {known:?}");
    for (key, instances) in told {
        assert_eq!(known[&key], [instances.first().unwrap().to_string()], "{key}");
    }
}

/// Finding 7: whoever hears of an instance joins it in the same moment, on another session server.
#[tokio::test]
async fn finding_7_an_instance_is_joined_in_the_moment_it_is_made() {
    let cluster = Cluster::start_with(2, 2, &["--limits", "load"]);
    let clients = guests(&cluster, 8).await;
    for n in 0..50 {
        let made = clients[n % 8].create("lobby").await.unwrap();
        let others = clients.iter().map(|client| client.join(made).into_future());
        for room in futures_util::future::join_all(others).await {
            assert_eq!(room.unwrap().instance(), made);
        }
    }
}

/// Finding 1: a connection that breaks while its join is under way leaves no seat behind that nobody can free. The
/// session server dies with all of them; the same users come back on the other, and every seat is theirs or free.
#[tokio::test]
async fn finding_1_joins_that_lose_their_session_server_leave_no_seat_behind() {
    let mut cluster = Cluster::start_with(2, 1, &["--limits", "load"]);
    let watcher =
        Client::builder().servers([cluster.urls(1)[0]]).guest("watcher").connect().await.unwrap();
    let made = watcher.create("lobby").params(&Params { mode: Mode::Siege, ..Params::default() });
    let made = made.await.unwrap();
    let mut clients = Vec::new();
    for n in 0..12 {
        let first = Client::builder().servers([cluster.urls(0)[0]]);
        clients.push(first.guest(format!("player {n}")).connect().await.unwrap());
    }
    let joins = clients.iter().map(|client| client.join(made).into_future());
    let joins = futures_util::future::join_all(joins);
    cluster.sessions[0].kill();
    let rooms = patient("every join, over the other session server", joins).await;
    let seats: BTreeSet<_> = rooms.into_iter().map(|room| room.unwrap().seat()).collect();
    assert_eq!(seats.len(), 12, "a seat was given twice");
    // They all go: the instance is as empty as before.
    for client in &clients {
        client
            .leave(made)
            .await
            .unwrap_or_else(|error| assert!(error.to_string().contains("seat")));
        client.close().await;
    }
    let found = watcher.search("lobby").filter_text("mode = \"siege\"").await.unwrap();
    assert_eq!(found.instances[0].seats_taken, 0);
    assert_eq!(found.instances[0].meta["mode"], MetaValue::Text("siege".into()));
}

/// Finding 2: two close one instance at once while others join it: it closes once, everybody hears of it by name, and
/// its key is free for a new one.
#[tokio::test]
async fn finding_2_an_instance_that_two_close_at_once_closes_once() {
    let cluster = Cluster::start_with(1, 1, &["--limits", "load"]);
    let clients = guests(&cluster, 6).await;
    for _ in 0..20 {
        let made = clients[0].create("lobby").key("the one").await.unwrap();
        let closes = futures_util::future::join(clients[0].destroy(made), clients[0].destroy(made));
        let joins = clients[1..].iter().map(|client| client.join(made).into_future());
        let ((first, second), joins) =
            futures_util::future::join(closes, futures_util::future::join_all(joins)).await;
        assert!(first.is_ok() || second.is_ok(), "{first:?} {second:?}");
        for closed in [first, second] {
            if closed.is_err() {
                assert_eq!(refusal(closed).code, Code::Destroyed);
            }
        }
        for join in joins {
            // Whoever was in before it closed has lost the seat; who came later is told so.
            if join.is_err() {
                let code = refusal(join).code;
                assert!([Code::InstanceClosed, Code::Destroyed].contains(&code), "{code}");
            }
        }
        let again = clients[0].create("lobby").key("the one").await.unwrap();
        assert_ne!(again, made);
        clients[0].destroy(again).await.unwrap();
    }
    assert!(by_key(&cluster, "lobby").is_empty());
}

/// Finding 9: two processes call themselves by one name. The second is refused, and the first goes on.
#[tokio::test]
async fn finding_9_of_two_game_servers_with_one_name_the_second_is_refused() {
    let mut cluster = Cluster::start_with(1, 0, &["--limits", "load"]);
    cluster.start_game(&["--name", "g"]);
    cluster.wait_for("the game server", |status| status.games.len() == 1);
    let ann = guests(&cluster, 1).await.remove(0);
    let made = ann.create("lobby").key("k").await.unwrap();
    let mut second = Process::spawn(crate::harness::greenroom().args([
        "game",
        "--data",
        cluster.folder.text(),
        "--master",
        &cluster.master.words[1],
        "--name",
        "g",
    ]));
    cluster
        .master
        .err
        .wait("the refusal", |line| line.contains("two processes call themselves so"));
    assert_eq!(ann.create("lobby").key("k").await.unwrap(), made);
    let room = ann.join(made).await.unwrap();
    assert_eq!(room.instance(), made);
    second.kill();
    let lost = run(&[
        "destroy",
        &made.to_string(),
        "--admin",
        "127.0.0.1:1",
        "--data",
        cluster.folder.text(),
    ]);
    assert!(error_of(&lost).contains("127.0.0.1:1"));
}

/// A master dies and another begins with empty hands: game servers say what they run, keys and owners too, and whoever
/// asks for a key gets the instance that has it. No twin, and the session servers' clients notice nothing.
#[tokio::test]
async fn a_master_that_begins_anew_makes_no_second_instance_of_a_key() {
    let mut cluster = Cluster::start_with(2, 2, &["--limits", "load"]);
    let clients = guests(&cluster, 4).await;
    let mut made = BTreeMap::new();
    for n in 0..20 {
        let key = format!("key {n}");
        made.insert(key.clone(), clients[n % 4].create("lobby").key(key).await.unwrap());
    }
    cluster.replace_master();
    for (n, (key, instance)) in made.iter().enumerate() {
        // Asked at once, before or after the game servers are back: the answer waits for them.
        let again = async {
            loop {
                match clients[(n + 1) % 4].create("lobby").key(key.as_str()).await {
                    Ok(again) => break again,
                    Err(ClientError::Undecided { .. } | ClientError::Unavailable) => {}
                    Err(other) => panic!("{other}"),
                }
            }
        };
        assert_eq!(patient("the answer", again).await, *instance, "{key}");
    }
    let known = by_key(&cluster, "lobby");
    assert_eq!(known.len(), 20);
    assert!(known.values().all(|instances| instances.len() == 1), "{known:?}");
    // Its owner may still close it.
    let (key, instance) = made.first_key_value().unwrap();
    let owner = key.trim_start_matches("key ").parse::<usize>().unwrap() % 4;
    clients[owner].destroy(*instance).await.unwrap();
}
