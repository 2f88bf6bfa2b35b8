//! What players live through.

use std::collections::BTreeMap;

use greenroom::client::{Client, Code, Credentials, Event, Seat};
use greenroom_games::arena;
use serde::Deserialize;

use crate::harness::{Cluster, assert_clean, end_of, event, refusal, report};

/// Fifty bots play arena over TCP and WebSocket, and nothing is lost, doubled, out of order, or refused.
#[test]
fn bots_play_and_every_message_arrives_once_and_in_order() {
    let cluster = Cluster::start(2, 2);
    for transport in ["tcp", "ws"] {
        let (ok, report) = cluster.bots(&[
            "--users",
            "50",
            "--for",
            "3s",
            "--game",
            "arena",
            "--transport",
            transport,
        ]);
        assert!(ok, "{report:#}");
        assert_clean(&report);
    }
    let (ok, report) = cluster.bots(&["--users", "50", "--for", "2s", "--game", "echo"]);
    assert!(ok, "{report:#}");
    assert_clean(&report);
}

/// Bots that are matched two by two play duels to their end; both are told the same result, and play the next.
#[test]
fn bots_play_duels_one_after_the_other_and_both_are_told_one_result() {
    let cluster = Cluster::start(1, 1);
    let file = cluster.folder.path().join("results");
    let file = file.to_str().unwrap();
    let flags = ["--users", "20", "--for", "8s", "--game", "duel", "--results", file];
    let (ok, report) = cluster.bots(&flags);
    assert!(ok, "{report:#}");
    assert_clean(&report);
    let results = std::fs::read_to_string(file).unwrap();
    assert!(results.lines().all(|id| id.starts_with("duel/")), "{results}");
    assert_eq!(report["results"], results.lines().count(), "{report:#}");
    // Ten at once, and each of them is over in a few seconds.
    assert!(report["results"].as_u64().unwrap() > 10, "{report:#}");
}

/// A session server is killed while 100 bots play: every one of them checks in on the other, takes its seat again, and
/// what it had called for is answered once.
#[test]
fn a_session_server_dies_and_every_bot_plays_on_over_the_other() {
    let mut cluster = Cluster::start(2, 1);
    let bots = cluster.start_bots(&["--users", "100", "--for", "12s", "--game", "arena"]);
    cluster.wait_for("100 bots on both session servers", |status| {
        status.users == 100 && status.sessions.iter().all(|server| server.load > 20)
    });
    cluster.sessions[0].kill();
    cluster.wait_for("all bots on the session server that is left", |status| {
        status.sessions.iter().any(|server| server.state == "up" && server.load >= 100)
    });
    let (_, report) = report(&bots.ended());
    assert_clean(&report);
    assert!(report["reconnects"].as_u64().unwrap() >= 20, "{report:#}");
}

#[derive(Debug, Deserialize)]
struct Seen {
    players: BTreeMap<Seat, Place>,
}
#[derive(Debug, Deserialize)]
struct Place {
    x: f32,
}

/// Ann and Bo are in one arena, on different session servers and wires: Bo sees Ann run, and hears her shoot.
#[tokio::test]
async fn two_players_on_different_servers_and_wires_see_each_other_move() {
    let cluster = Cluster::start(2, 1);
    let player = |url: &str, name: &str| Client::builder().servers([url]).guest(name).connect();
    let ann = player(cluster.urls(0)[0], "Ann").await.unwrap();
    let bo = player(cluster.urls(1)[1], "Bo").await.unwrap();
    let ann_room = ann.join_or_create("arena").await.unwrap();
    let mut bo_room = bo.join(ann_room.instance()).await.unwrap();
    let seat = ann_room.seat();
    ann_room.send(&arena::In::Run(1.0, 0.0)).unwrap();
    let mut before = None;
    event(&mut bo_room, "Ann running", |room, event| {
        let Event::State { .. } = event else { return None };
        let now = room.state::<Seen>().unwrap().players.get(&seat).map(|player| player.x)?;
        (*before.get_or_insert(now) != now).then_some(())
    })
    .await;
    let shot: arena::Reply = ann_room.call(&arena::In::Shoot(0.0, 1.0)).await.unwrap();
    assert!(matches!(shot, arena::Reply::Shot(_)));
    event(&mut bo_room, "Ann's shot", |_, event| {
        let Event::Message(message) = event else { return None };
        let out: arena::Out = message.decode().unwrap();
        assert!(matches!(out, arena::Out::Shot { by, .. } if by == seat));
        Some(())
    })
    .await;
}

/// The same user checks in a second time: the newer session goes on, the older is told why it ended.
#[tokio::test]
async fn the_newest_session_of_a_user_wins_and_the_older_is_told_why() {
    let cluster = Cluster::start(2, 1);
    let token = "a token of at least sixteen characters";
    let credentials =
        || Credentials { scheme: "guest".into(), token: token.into(), name: "Ann".into() };
    let first = cluster.client().credentials(credentials()).connect().await.unwrap();
    let second = cluster.client().credentials(credentials()).connect().await.unwrap();
    assert_eq!(first.identity().user, second.identity().user);
    assert_eq!(end_of(&first).await.code, Code::Superseded);
    second.search("arena").await.unwrap();
}

/// An arena has 16 seats: the seventeenth player is refused by name, and gets one of its own by asking for any.
#[tokio::test]
async fn a_full_instance_refuses_and_join_or_create_makes_another() {
    let cluster = Cluster::start(1, 1);
    let mut clients = Vec::new();
    let mut rooms = Vec::new();
    for n in 0..16 {
        let client = cluster.client().guest(format!("player {n}")).connect().await.unwrap();
        rooms.push(client.join_or_create("arena").await.unwrap());
        clients.push(client);
    }
    assert!(
        rooms.iter().all(|room| room.instance() == rooms[0].instance()),
        "one arena holds sixteen"
    );
    let late = cluster.client().guest("late").connect().await.unwrap();
    assert_eq!(refusal(late.join(rooms[0].instance()).await).code, Code::InstanceFull);
    let own = late.join_or_create("arena").await.unwrap();
    assert_ne!(own.instance(), rooms[0].instance());
    cluster.wait_for("two arenas", |status| status.instances == 2);
}

/// A game server is killed: who played there, in what is not durable, is told that the instance is lost, and asking for
/// any instance gives one on the server that is left, not the lost one again.
#[tokio::test]
async fn a_game_server_dies_and_its_player_goes_on_in_another_instance() {
    let mut cluster = Cluster::start(1, 2);
    let ann = cluster.client().guest("Ann").connect().await.unwrap();
    let mut room = ann.join_or_create("echo").await.unwrap();
    cluster.wait_for("the instance in its server's load", |status| {
        status.games.iter().any(|server| server.load == 1)
    });
    let status = cluster.status();
    let at = status.games.iter().find(|server| server.load == 1).unwrap();
    let dead = cluster.games.iter().position(|game| at.name.as_str() == game.words[1]).unwrap();
    cluster.games[dead].kill();
    let why = event(&mut room, "the end of the seat", |_, event| match event {
        Event::Left(why) => Some(why),
        _ => None,
    })
    .await;
    assert_eq!(why.code, Code::InstanceLost);
    let other = ann.join_or_create("echo").await.unwrap();
    assert_ne!(other.instance(), room.instance());
}
