//! What the directory promises those who look, make and join, over real processes.

use std::collections::BTreeSet;

use greenroom::client::{Client, Code, Filter, MetaValue, WatchEvent, field};
use greenroom_games::lobby::{Mode, Params, Rate};
use greenroom_protocol::search::LIMIT_MAX;

use crate::harness::{Cluster, error_of, patient, refusal, run, up};

fn lobby(mode: Mode, rating: u16, name: &str) -> Params {
    Params { mode, rating, name: name.into(), ..Params::default() }
}

/// A cluster whose limits are those for tests: a story asks faster than a player does.
fn unlimited(sessions: usize, games: usize) -> Cluster {
    Cluster::start_with(sessions, games, &["--limits", "load"])
}

async fn guest(cluster: &Cluster, name: &str) -> Client {
    cluster.client().guest(name).connect().await.unwrap()
}

/// Ann makes lobbies; Bo finds those that he wants, by what the game says of them, as it is now and not as it was.
#[tokio::test]
async fn what_is_made_is_found_by_what_it_is_and_no_longer_when_it_is_closed() {
    let cluster = unlimited(2, 2);
    let (ann, bo) = (guest(&cluster, "Ann").await, guest(&cluster, "Bo").await);
    let mut made = Vec::new();
    for (n, mode) in [Mode::Duel, Mode::Race, Mode::Race, Mode::Siege].into_iter().enumerate() {
        let rating = 1_000 + 100 * u16::try_from(n).unwrap();
        let params = lobby(mode, rating, &format!("lobby {n}"));
        made.push(ann.create("lobby").params(&params).await.unwrap());
    }
    let races = bo.search("lobby").filter(field("mode").eq("race")).order_by("rating").descending();
    let found = races.await.unwrap();
    let ids: Vec<_> = found.instances.iter().map(|listed| listed.instance).collect();
    assert_eq!(ids, [made[2], made[1]]);
    // The words of the command line mean the same.
    let text = "mode in (\"race\", \"siege\") and rating between 1150 and 1250 and seats_free > 0";
    let found = bo.search("lobby").filter_text(text).await.unwrap();
    assert_eq!(found.instances.len(), 1);
    assert_eq!(found.instances[0].instance, made[2]);
    // A player's word changes what is said of a lobby: once the change is seen, every search sees it.
    let room = bo.join(made[1]).await.unwrap();
    room.send(&Rate { rating: 1_777 }).unwrap();
    let mut watch = bo.watch("lobby").filter(field("rating").eq(1_777)).await.unwrap();
    let seen = patient("the new rating", async {
        loop {
            if let Some(WatchEvent::Added(listed)) = watch.next().await {
                break listed.instance;
            }
        }
    });
    assert_eq!(seen.await, made[1]);
    let found = ann.search("lobby").filter_text("rating = 1777").await.unwrap();
    assert_eq!(found.instances.len(), 1);
    // What is acknowledged as closed is found by nobody.
    ann.destroy(made[0]).await.unwrap();
    let all = bo.search("lobby").limit(LIMIT_MAX).await.unwrap();
    assert!(all.instances.iter().all(|listed| listed.instance != made[0]));
    assert_eq!(all.instances.len(), 3);
}

/// Bo watches the races: he is told of those that are there, of a new one, of a change, and of the end of one; and a
/// lost session server makes him neither miss nor hear twice of anything.
#[tokio::test]
async fn who_watches_is_told_what_comes_changes_and_goes_over_a_reconnect_too() {
    let mut cluster = unlimited(2, 1);
    let ann = Client::builder().servers([cluster.urls(1)[0]]).guest("Ann").connect().await.unwrap();
    let first = ann.create("lobby").params(&lobby(Mode::Race, 1, "first")).await.unwrap();
    ann.create("lobby").params(&lobby(Mode::Duel, 1, "not a race")).await.unwrap();
    let bo = Client::builder().servers([cluster.urls(0)[0]]).guest("Bo").connect().await.unwrap();
    let mut watch = bo.watch("lobby").filter(field("mode").eq("race")).await.unwrap();
    let mut next = async |what: &str| patient(what, watch.next()).await.unwrap();
    assert!(
        matches!(next("the first").await, WatchEvent::Added(listed) if listed.instance == first)
    );
    assert_eq!(next("the whole set").await, WatchEvent::Ready);
    let second = ann.create("lobby").params(&lobby(Mode::Race, 2, "second")).await.unwrap();
    assert!(
        matches!(next("the second").await, WatchEvent::Added(listed) if listed.instance == second)
    );
    cluster.sessions[0].kill();
    let seat = ann.join(first).await.unwrap();
    assert!(
        matches!(next("the seat").await, WatchEvent::Changed(now) if now.instance == first && now.seats_taken == 1)
    );
    seat.leave().await.unwrap();
    assert!(
        matches!(next("the seat that is free").await, WatchEvent::Changed(now) if now.seats_taken == 0)
    );
    ann.destroy(second).await.unwrap();
    assert_eq!(next("the end of the second").await, WatchEvent::Removed(second));
    assert!(bo.stats().reconnects >= 1);
}

/// Friends: seats are kept for those that are expected, and nobody else gets them; a private instance is found by
/// nobody, and its key leads into it.
#[tokio::test]
async fn friends_have_their_seats_kept_and_strangers_do_not_find_them() {
    let cluster = unlimited(1, 1);
    let (ann, bo, eve) =
        (guest(&cluster, "Ann").await, guest(&cluster, "Bo").await, guest(&cluster, "Eve").await);
    let friend = bo.identity().user;
    let room = ann.join_or_create("visit").private().key("ours").expect([friend]).await.unwrap();
    assert!(eve.search("visit").await.unwrap().instances.is_empty());
    // It has two seats: Ann's, and Bo's, who has not come yet.
    let stranger = eve.join(room.instance()).await;
    assert_eq!(refusal(stranger).code, Code::InstanceFull);
    let his = bo.join_or_create("visit").key("ours").await.unwrap();
    assert_eq!(his.instance(), room.instance());
    // Whoever asks for any instance of the kind is not sent to them.
    let other = eve.join_or_create("visit").await.unwrap();
    assert_ne!(other.instance(), room.instance());
}

/// Thirty-two players ask for any race at once, by the same filter: while there are seats, they meet.
#[tokio::test]
async fn thirty_two_players_with_one_wish_meet_in_as_few_instances_as_hold_them() {
    let cluster = unlimited(2, 2);
    let mut clients = Vec::new();
    for n in 0..32 {
        clients.push(guest(&cluster, &format!("player {n}")).await);
    }
    let asked = clients.iter().map(|client| async {
        let params = lobby(Mode::Race, 1_500, "any race");
        let wish = field("mode").eq("race") & field("seats_free").gt(0);
        let room = client.join_or_create("lobby").filter(wish).params(&params).await.unwrap();
        (room.instance(), room)
    });
    let rooms = futures_util::future::join_all(asked).await;
    let instances: BTreeSet<_> = rooms.iter().map(|(instance, _)| *instance).collect();
    assert_eq!(instances.len(), 2, "a lobby has sixteen seats");
}

/// Three game servers: what needs a label goes where the label is, and what fits nowhere is refused with the reasons.
#[tokio::test]
async fn labels_and_capacity_decide_placement() {
    let mut cluster = unlimited(1, 0);
    for (name, flags) in [
        ("small", &["--capacity", "4", "--labels", "eu"][..]),
        ("large", &["--capacity", "8", "--labels", ""]),
        ("special", &["--capacity", "2", "--labels", "bench,eu"]),
    ] {
        cluster.start_game(&[&["--name", name], flags].concat());
    }
    cluster.wait_for("three game servers", |status| status.games.len() == 3);
    let (ann, bo) = (guest(&cluster, "Ann").await, guest(&cluster, "Bo").await);
    // They keep their seats, so that nothing closes because it is empty.
    let mut rooms = Vec::new();
    let load = |cluster: &Cluster, name: &str| {
        let status = cluster.status();
        status.games.iter().find(|server| server.name.as_str() == name).unwrap().load
    };
    // `crowd` needs the label `bench`: it goes there until that server is full.
    for n in 0..2 {
        rooms.push(ann.join_or_create("crowd").key(format!("crowd {n}")).await.unwrap());
    }
    assert_eq!(load(&cluster, "special"), 2);
    let full = refusal(ann.create("crowd").key("one more").await);
    assert_eq!(full.code, Code::NoCapacity);
    assert!(full.message.contains("bench") && full.message.contains("full"), "{full}");
    // What needs nothing goes where there is room, by share of it, until there is none.
    for n in 0..12 {
        let player = if n % 2 == 0 { &ann } else { &bo };
        rooms.push(player.join_or_create("arena").key(format!("arena {n}")).await.unwrap());
        assert!(load(&cluster, "small") <= 4);
    }
    assert_eq!((load(&cluster, "small"), load(&cluster, "large")), (4, 8));
    let over = refusal(ann.create("arena").key("one more").await);
    assert_eq!(over.code, Code::NoCapacity);
    // The operator is told the same, and why.
    let explained = run(&["placement", "crowd", "--admin", cluster.admin()]);
    let text = String::from_utf8(explained.stdout).unwrap();
    assert!(text.contains("special") && text.contains("full"), "{text}");
    assert!(text.contains("small") && text.contains("bench"), "{text}");
    // A server that is drained gets nothing new, though it has room again, and what it has goes on.
    let drained =
        run(&["drain", "large", "--admin", cluster.admin(), "--data", cluster.folder.text()]);
    assert!(drained.status.success(), "{}", String::from_utf8_lossy(&drained.stderr));
    let on_large =
        run(&["find", "arena", "server = \"large\" limit 1", "--json", "--admin", cluster.admin()]);
    let row: serde_json::Value = serde_json::from_slice(&on_large.stdout).unwrap();
    let id = row["id"].as_str().unwrap();
    let closed = run(&["destroy", id, "--admin", cluster.admin(), "--data", cluster.folder.text()]);
    assert!(closed.status.success(), "{}", String::from_utf8_lossy(&closed.stderr));
    cluster.wait_for("the instance's end", |status| status.instances == 13);
    assert_eq!(load(&cluster, "large"), 7);
    let nowhere = refusal(ann.create("arena").key("nowhere").await);
    assert!(nowhere.message.contains("drain"), "{nowhere}");
    assert_eq!(load(&cluster, "large"), 7);
}

/// What is wrong with a search is said by name, and to the operator in words, with the place in the text.
#[tokio::test]
async fn a_search_that_can_not_be_is_refused_by_name() {
    let cluster = unlimited(1, 1);
    let ann = guest(&cluster, "Ann").await;
    let made = ann.create("lobby").params(&lobby(Mode::Duel, 7, "a duel")).await.unwrap();
    ann.create("lobby").params(&lobby(Mode::Duel, 8, "another")).await.unwrap();
    let code = async |text: &str| refusal(ann.search("lobby").filter_text(text).await).code;
    assert_eq!(code("colour = 3").await, Code::FieldUnknown);
    assert_eq!(code("rating = \"high\"").await, Code::FieldMismatch);
    assert_eq!(code("mode < \"race\"").await, Code::FieldMismatch);
    assert_eq!(refusal(ann.search("chess").await).code, Code::KindUnknown);
    for limit in [0, LIMIT_MAX + 1] {
        assert_eq!(refusal(ann.search("lobby").limit(limit).await).code, Code::LimitInvalid);
    }
    let one = |n: i64| Filter::Eq("rating".into(), MetaValue::Int(n));
    let deep = (0..100).fold(one(1), |inner, _| Filter::And(vec![inner]));
    assert_eq!(refusal(ann.search("lobby").filter(deep).await).code, Code::FilterTooDeep);
    let wide = Filter::Or((0..100).map(one).collect());
    assert_eq!(refusal(ann.search("lobby").filter(wide).await).code, Code::FilterTooLarge);
    // A cursor belongs to its search.
    let page = ann.search("lobby").limit(1).await.unwrap();
    let elsewhere = ann.search("lobby").filter_text("rating > 0").limit(1).cursor(page.cursor);
    assert_eq!(refusal(elsewhere.await).code, Code::CursorInvalid);
    // A key of 10 KB, and an instance that is closed.
    let long = ann.create("lobby").key("k".repeat(10_000)).await;
    assert!(long.unwrap_err().to_string().contains("128 bytes"));
    ann.destroy(made).await.unwrap();
    assert_eq!(refusal(ann.join(made).await).code, Code::Destroyed);
    // After all that the client plays on.
    assert_eq!(ann.search("lobby").await.unwrap().instances.len(), 1);

    let find = |words: &[&str]| run(&[&["find", "--admin", cluster.admin()], words].concat());
    let error = error_of(&find(&["lobby", "mode == \"duel\""]));
    assert!(error.contains("at character 7"), "{error}");
    let error = error_of(&find(&["lobby", "colour = 3"]));
    assert!(error.contains("field_unknown") && error.contains("rating"), "{error}");
}

/// The operator looks for instances, users and servers, private ones too, and is told how it was found.
#[tokio::test]
async fn an_operator_finds_everything_and_is_told_how() {
    let cluster = unlimited(1, 1);
    let ann = guest(&cluster, "Ann").await;
    for n in 0..3u16 {
        let params = lobby(Mode::Siege, 100 * n, "a siege");
        ann.create("lobby").params(&params).key(format!("siege-{n}")).private().await.unwrap();
    }
    let room = ann.join_or_create("lobby").key("siege-1").await.unwrap();
    let find = |words: &[&str]| {
        let output = run(&[&["find", "--admin", cluster.admin()], words].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let text =
        find(&["lobby", "mode = \"siege\" and rating >= 100 order by rating desc", "--explain"]);
    // Keys that can't stand in an id by chance: ids are letters and digits.
    assert!(text.contains("siege-2") && text.contains("siege-1"), "{text}");
    assert!(!text.contains("siege-0"), "{text}");
    assert!(text.contains("examined"), "{text}");
    let users = find(&["--users", "name prefix \"An\"", "--json"]);
    let user: serde_json::Value = serde_json::from_str(users.lines().next().unwrap()).unwrap();
    assert_eq!((&user["name"], &user["seats"]), (&"Ann".into(), &1.into()));
    assert_eq!(user["instance"], room.instance().to_string());
    let servers = find(&["--servers", "role = \"game\" and state = \"up\"", "--json"]);
    assert_eq!(servers.lines().count(), 1, "{servers}");
}

/// Ranked arenas keep a board: who has more hits stands higher, and a player finds itself among its neighbours.
#[tokio::test]
async fn a_board_that_nobody_has_written_is_refused_by_name() {
    let cluster = unlimited(1, 1);
    let ann = guest(&cluster, "Ann").await;
    assert_eq!(refusal(ann.rank("nothing").top(10).await).code, Code::RankUnknown);
    assert_eq!(refusal(ann.rank("nothing").around_me(0).await).code, Code::LimitInvalid);
}

/// A slow reader of a live search is told each instance as it is when it reads, and never holds up anybody else.
#[tokio::test]
async fn a_slow_reader_finds_changes_merged_and_no_queue_of_old_ones() {
    let cluster = unlimited(1, 1);
    let (ann, bo) = (guest(&cluster, "Ann").await, guest(&cluster, "Bo").await);
    let made = ann.create("lobby").params(&lobby(Mode::Flag, 0, "one")).await.unwrap();
    let mut watch = bo.watch("lobby").await.unwrap();
    let mut next = async |what: &str| patient(what, watch.next()).await.unwrap();
    assert!(matches!(next("the lobby").await, WatchEvent::Added(_)));
    let room = ann.join(made).await.unwrap();
    let all_taken = async {
        for rating in 1..=2_000 {
            // The client's window bounds what is on its way.
            while room.send(&Rate { rating }).is_err() {
                tokio::task::yield_now().await;
            }
        }
        while room.unacknowledged() > 0 {
            tokio::task::yield_now().await;
        }
    };
    patient("the lobby's taking every rating", all_taken).await;
    // Bo has not read a word meanwhile: one message may have been under way, the rest is told as it is now.
    let mut told = Vec::new();
    loop {
        match next("the last rating").await {
            WatchEvent::Ready => {}
            WatchEvent::Changed(now) => {
                let is_last = now.meta["rating"] == MetaValue::Int(2_000);
                told.push(now);
                if is_last {
                    break;
                }
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(told.len() <= 3, "{} events for 2,000 changes", told.len());
}

/// The master dies while Bo watches, and the one that begins in its place has never heard of his live search: he sees
/// what is new all the same, and is told of nothing twice.
#[tokio::test]
async fn a_live_search_goes_on_when_the_master_has_lost_its_memory() {
    let mut cluster = unlimited(1, 1);
    let (ann, bo) = (guest(&cluster, "Ann").await, guest(&cluster, "Bo").await);
    let first = ann.create("lobby").params(&lobby(Mode::Race, 1, "first")).await.unwrap();
    let mut watch = bo.watch("lobby").filter(field("mode").eq("race")).await.unwrap();
    let mut next = async |what: &str| patient(what, watch.next()).await.unwrap();
    assert!(
        matches!(next("the first").await, WatchEvent::Added(listed) if listed.instance == first)
    );
    assert_eq!(next("the whole set").await, WatchEvent::Ready);
    for round in 0..2 {
        cluster.replace_master();
        cluster.wait_for("its servers", |status| up(&status.sessions) + up(&status.games) == 2);
        let another = ann.create("lobby").params(&lobby(Mode::Race, 2, "another")).await.unwrap();
        let added = next("the other lobby").await;
        assert!(
            matches!(&added, WatchEvent::Added(listed) if listed.instance == another),
            "{added:?} in round {round}"
        );
        ann.destroy(another).await.unwrap();
        assert_eq!(next("the end of the other lobby").await, WatchEvent::Removed(another));
    }
    assert_eq!(bo.stats().reconnects, 0);
}
