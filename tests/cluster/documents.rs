//! What stays: everything stops, or dies at once, and is there again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{SystemTime, UNIX_EPOCH};

use greenroom::client::{Client, Credentials, Event, Room, Seat};
use greenroom_games::arena;
use greenroom_protocol::search::{FieldType, Filter, Order};
use greenroom_protocol::wire::client_session::{MetaValue, Ranked};
use greenroom_storage::{Collection, Index, Query, RawQuery, Schema, Storage, StorageConfig};
use rustix::process::Signal;
use serde::Deserialize;
use serde_json::Value;

use crate::harness::{
    Folder, Process, event, free_port, greenroom, patient, report, run, status, up, wait_until,
};

/// Bots that duel while everything dies.
const USERS: &str = "200";

/// A cluster whose servers have names and ports of their own, so that all of them can end and begin again: one master
/// or two, two session servers, two game servers.
struct Lasting {
    folder: Folder,
    admin: String,
    urls: Vec<String>,
    commands: Vec<Vec<String>>,
    running: Vec<Process>,
    masters: usize,
}

impl Lasting {
    fn start(masters: usize) -> Self {
        let folder = Folder::new();
        let data = folder.text().to_owned();
        let at = |port: u16| format!("127.0.0.1:{port}");
        let [listens, admins, tcps, wss] = [(); 4].map(|()| [(); 2].map(|()| at(free_port())));
        let (listens, admins) = (&listens[..masters], &admins[..masters]);
        let dialled = listens.join(",");
        let mut commands = Vec::new();
        for (this, side) in ["a", "b"].into_iter().enumerate().take(masters) {
            let (listen, admin) = (&listens[this], &admins[this]);
            let mut command = format!(
                "master --data {data} --name master-{side} --side {side} --listen {listen} --admin {admin}"
            );
            if masters == 2 {
                let peer = &listens[1 - this];
                command += &format!(" --peer {peer} --witness sqlite:{data}/witness.sqlite");
            }
            commands.push(command);
        }
        for (tcp, ws) in tcps.iter().zip(&wss) {
            let name = commands.len();
            commands.push(format!(
                "session --data {data} --masters {dialled} --name session-{name} --tcp {tcp} --ws {ws} --limits load \
                 --drain-timeout 1s"
            ));
        }
        for name in ["game-1", "game-2"] {
            commands.push(format!("game --data {data} --masters {dialled} --name {name}"));
        }
        let commands: Vec<Vec<String>> = commands
            .iter()
            .map(|command| command.split(' ').map(str::to_owned).collect())
            .collect();
        let urls = tcps.iter().map(|tcp| format!("tcp://{tcp}")).collect();
        let running = Vec::new();
        let admin = admins.join(",");
        let mut all = Self { folder, admin, urls, commands, running, masters };
        all.start_all();
        all
    }

    fn start_all(&mut self) {
        for command in &self.commands {
            self.running.push(Process::start(command));
        }
        wait_until("everything to be there", || {
            let there = status(&self.admin);
            let roles: Vec<_> = there.masters.iter().map(|master| &*master.role).collect();
            roles == ["active", "standby"][..self.masters]
                && up(&there.sessions) == 2
                && up(&there.games) == 2
        });
    }

    /// SIGTERM, in the order in which an operator stops a cluster: players' servers first.
    fn stop_all(&mut self) {
        for process in self.running.drain(..).rev() {
            let (ended_well, errors) = process.stop_with_errors();
            assert!(ended_well, "{errors}");
        }
    }

    /// SIGKILL of every process.
    fn kill_all(&mut self) {
        Process::kill_at_once(&mut self.running);
        self.running.clear();
    }

    fn bots<'a>(&'a self, flags: &[&'a str]) -> Process {
        let flags = [&["bots", "--json", "--admin", &self.admin], flags].concat();
        Process::spawn(greenroom().args(flags))
    }

    fn store(&self, schema: Schema) -> Storage {
        let file = self.folder.path().join("store.sqlite");
        let store = format!("sqlite:{}", file.display()).into();
        let config = StorageConfig { store, ..StorageConfig::default() };
        greenroom_storage::open(&config, schema).unwrap()
    }

    /// The indexes that the servers have made.
    async fn indexes(&self) -> BTreeSet<String> {
        let statement = "select name from sqlite_master where type = 'index'";
        let query = RawQuery { statement, parameters: Vec::new(), limit: 1_000 };
        let page = self.store(Schema::default()).ask(query).await.unwrap();
        page.rows.iter().map(|row| row["name"].as_str().unwrap().to_owned()).collect()
    }

    /// What is in the store, by id.
    fn stored(&self, collection: Collection) -> BTreeMap<String, Value> {
        let storage = self.store(Schema::default());
        // On a thread of its own: nobody may wait so for a store inside a runtime, where some stories are.
        let read = || {
            let mut found = BTreeMap::new();
            let mut query = Query::new(collection, Filter::And(Vec::new()));
            loop {
                let page = storage.try_submit(query.clone()).unwrap().wait().unwrap();
                for (key, document) in page.documents {
                    found.insert(key.id().to_owned(), document.decode(&key).unwrap());
                }
                query.after = page.next;
                if query.after.is_none() {
                    return found;
                }
            }
        };
        std::thread::scope(|scope| scope.spawn(read).join().unwrap())
    }

    /// How many results of duels are there.
    fn results(&self) -> usize {
        let documents = self.stored(Collection::Documents);
        documents.keys().filter(|id| id.starts_with("duel/")).count()
    }

    /// What the event log of all processes answers.
    fn events(&self, question: &str) -> Vec<Value> {
        let data = self.folder.text();
        let output = run(&["logs", "sql", question, "--format", "json", "--data", data]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Asserts that each result that a bot was told stands in the store, and gives how many they are.
    fn assert_stored(&self, results: &str) -> usize {
        let told = std::fs::read_to_string(results).unwrap();
        let there = self.stored(Collection::Documents);
        let ids: BTreeSet<&str> = told.lines().collect();
        // One line for each: of two that were told it, the report has seen whether they were told the same.
        assert_eq!(ids.len(), told.lines().count());
        for id in &ids {
            let outcome =
                there.get(*id).unwrap_or_else(|| panic!("{id} was told and is not there"));
            assert_eq!(outcome["players"].as_array().map(Vec::len), Some(2), "{id}: {outcome}");
        }
        ids.len()
    }
}

fn ann() -> Credentials {
    let token = "a token of Ann's that nobody guesses";
    Credentials { scheme: "guest".into(), token: token.into(), name: "Ann".into() }
}

/// The scores on the duels' board, by user, as they are in the store.
fn scores(all: &Lasting) -> BTreeMap<String, i64> {
    let score =
        |row: &Value| (row["user"].as_str().unwrap().to_owned(), row["score"].as_i64().unwrap());
    let boards = all.stored(Collection::Boards);
    boards.values().filter(|row| row["board"] == "duel_wins").map(score).collect()
}

/// The same as a client is told.
fn ranked(ranks: &[Ranked]) -> BTreeMap<String, i64> {
    ranks.iter().map(|rank| (rank.user.to_string(), rank.score)).collect()
}

#[derive(Debug, Deserialize)]
struct Seen {
    players: BTreeMap<Seat, Place>,
}
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
struct Place {
    x: f32,
    y: f32,
}

/// Where Ann is, once her page shows it.
async fn place(room: &mut Room, what: &str, is_it: impl Fn(Place) -> bool) -> Place {
    let seat = room.seat();
    event(room, what, |room, _| {
        let place = room.state::<Seen>().ok()?.players.get(&seat).copied()?;
        is_it(place).then_some(place)
    })
    .await
}

/// Everything is stopped as an operator does it, and started again: profiles, results, records of instances, boards and
/// the instances themselves are there, and the event log goes on.
#[tokio::test(flavor = "multi_thread")]
async fn everything_is_stopped_and_started_again_and_all_of_it_is_there() {
    let mut all = Lasting::start(2);
    let urls = all.urls.clone();
    let connect = async || {
        let builder = Client::builder().servers(urls.clone()).credentials(ann());
        patient("Ann's check-in", builder.connect()).await.unwrap()
    };
    let client = connect().await;
    let user = client.identity().user.to_string();
    let joined = client.join_or_create("arena").key("stays");
    let mut room = patient("the arena", joined.into_future()).await.unwrap();
    let began = place(&mut room, "Ann in the arena", |_| true).await;
    room.send(&arena::In::Run(1.0, 0.0)).unwrap();
    place(&mut room, "Ann running", |now| now.x > began.x).await;
    room.send(&arena::In::Run(0.0, 0.0)).unwrap();
    let file = all.folder.path().join("results");
    let file = file.to_str().unwrap().to_owned();
    let bots = all.bots(&["--users", "20", "--for", "6s", "--game", "duel", "--results", &file]);
    let (_, played) = report(&bots.ended());
    assert!(played["results"].as_u64().unwrap() > 0, "{played:#}");
    let ranks =
        patient("the board", client.rank("duel_wins").top(100).into_future()).await.unwrap();
    assert!(!ranks.ranks.is_empty());
    // One whose win is not counted yet is handed over, and goes on counting once all is there again.
    wait_until("the last duel to be over", || {
        let kinds = status(&all.admin).kinds;
        kinds.iter().all(|kind| kind.name.as_str() != "duel" || kind.instances == 0)
    });

    all.stop_all();
    assert_eq!(all.assert_stored(&file) as u64, played["results"].as_u64().unwrap());
    let profiles = all.stored(Collection::Users);
    assert_eq!(profiles.len(), 21, "20 bots and Ann: {profiles:#?}");
    let first = profiles[&user].clone();
    assert_eq!(first["name"], "Ann");
    let instances = all.stored(Collection::Instances);
    let record = &instances[&room.instance().to_string()];
    assert_eq!((&record["kind"], &record["key"]), (&"arena".into(), &"stays".into()));
    let (told, stored) = (ranked(&ranks.ranks), scores(&all));
    // The last duels may have ended after Ann had looked.
    assert!(told.iter().all(|(user, score)| stored[user] >= *score), "{told:?} {stored:?}");
    // A studio's program asks for the longest duels, by the index that the game has declared.
    let made = all.indexes().await;
    for index in ["documents_by_turns_n", "boards_by_board_t_score_n", "users_by_name_t"] {
        assert!(made.contains(index), "{index}: {made:?}");
    }
    let turns = Index::new(Collection::Documents, &[("turns", FieldType::Number)]).unwrap();
    let longest = Query {
        order: Some(Order { field: "turns".into(), descending: true }),
        ..Query::new(Collection::Documents, Filter::Gt("turns".into(), MetaValue::Int(0)))
    };
    let store = all.store(Schema::new(vec![turns]).unwrap());
    let longest = store.query(longest).await.unwrap().documents;
    let turns: Vec<u64> = longest
        .iter()
        .map(|(_, duel)| duel.body.decode::<Value>().unwrap()["turns"].as_u64().unwrap())
        .collect();
    assert!(!turns.is_empty() && turns.is_sorted_by(|a, b| a >= b), "{turns:?}");
    drop(store);
    let newest = "select max(id) as id from check_in";
    let newest = all.events(newest)[0]["id"].as_str().unwrap().to_owned();

    // Nobody decides for a while, which no deadline counts and every time that people are shown does.
    let now_ms = || {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        u64::try_from(since_1970.as_millis()).unwrap()
    };
    let stopped = now_ms();
    wait_until("a while in which everything is off", || now_ms() > stopped + 4_000);
    all.start_all();
    // Ann's page is still open: her seat was kept, and the arena goes on from where it was.
    let lives = event(&mut room, "the arena again", |_, event| match event {
        Event::Rewound { incarnation, .. } => Some(incarnation),
        Event::Left(refusal) => panic!("{refusal}"),
        _ => None,
    })
    .await;
    assert!(lives.0 > 0);
    let now = place(&mut room, "Ann in the arena again", |_| true).await;
    assert!(now.x > began.x, "{began:?} {now:?}");
    let again =
        patient("the board", client.rank("duel_wins").top(100).into_future()).await.unwrap();
    assert_eq!(ranked(&again.ranks), stored);
    // A second check-in: the newest one is another, the first one is what it was.
    let comes = now_ms();
    let second = connect().await;
    assert_eq!(second.identity().user.to_string(), user);
    second.close().await;
    all.stop_all();
    let profile = all.stored(Collection::Users)[&user].clone();
    assert_eq!(profile["first_ms"], first["first_ms"]);
    assert!(profile["last_ms"].as_u64() > first["last_ms"].as_u64(), "{first} {profile}");
    // Masters put their clock into the log once it is two seconds behind.
    let last_ms = profile["last_ms"].as_u64().unwrap();
    assert!(last_ms + 3_000 > comes, "{last_ms} is before {comes}");
    let times = "select (select max(ts) from check_in) as came, (select max(ts) from process_started) as began";
    let times = all.events(times).remove(0);
    let (came, began) = (times["came"].as_str().unwrap(), times["began"].as_str().unwrap());
    assert!(came >= began, "{times}");
    let since = format!("select count(*) as n from check_in where id > '{newest}'");
    assert_eq!(all.events(&since)[0]["n"], 1);
    let torn = "select count(*) as n from events where kind = 'torn_line'";
    assert_eq!(all.events(torn)[0]["n"], 0);
}

/// The masters' disk is lost with everything stopped. The cluster that is founded in its place takes the boards back,
/// and knows when a user was there first.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_lost_its_masters_disk_has_its_boards_and_profiles_from_the_store() {
    let mut all = Lasting::start(1);
    let urls = all.urls.clone();
    let connect = async || {
        let builder = Client::builder().servers(urls.clone()).credentials(ann());
        patient("Ann's check-in", builder.connect()).await.unwrap()
    };
    let client = connect().await;
    let user = client.identity().user.to_string();
    client.close().await;
    let bots = all.bots(&["--users", "20", "--for", "1h", "--game", "duel"]);
    wait_until("duels that end", || all.results() >= 10);
    bots.end_by(Signal::INT);
    all.stop_all();
    let stored = scores(&all);
    assert!(!stored.is_empty());
    let first = all.stored(Collection::Users)[&user].clone();

    std::fs::remove_dir_all(all.folder.path().join("master-a")).unwrap();
    all.start_all();
    let client = connect().await;
    let taken_back = async {
        loop {
            // There is no such board before the first page of it is read.
            if let Ok(ranks) = client.rank("duel_wins").top(100).await
                && ranks.ranks.len() >= stored.len()
            {
                return ranked(&ranks.ranks);
            }
            tokio::task::yield_now().await;
        }
    };
    assert_eq!(patient("the board", taken_back).await, stored);
    client.close().await;
    all.stop_all();
    let profile = all.stored(Collection::Users)[&user].clone();
    assert_eq!(profile["first_ms"], first["first_ms"]);
    assert!(profile["last_ms"].as_u64() > first["last_ms"].as_u64(), "{first} {profile}");
}

/// Every process is killed at once in the middle of bots' duels, three times: each result that a bot was told is in the
/// store, once, and both players were told the same.
#[test]
fn everything_dies_in_the_middle_of_duels_and_no_result_that_was_told_is_lost() {
    everything_dies(Lasting::start(1));
}

/// The same with two masters: both die in one moment with all the others, and go on by themselves.
#[test]
fn everything_dies_with_both_masters_and_no_result_that_was_told_is_lost() {
    everything_dies(Lasting::start(2));
}

fn everything_dies(mut all: Lasting) {
    let file = all.folder.path().join("results");
    let file = file.to_str().unwrap().to_owned();
    let flags = ["--users", USERS, "--for", "1h", "--game", "duel", "--results", &file];
    let bots = all.bots(&flags);
    let play_on = |all: &Lasting| {
        let before = all.results();
        wait_until("duels that end", || all.results() >= before + 100);
    };
    for _ in 0..3 {
        play_on(&all);
        all.kill_all();
        all.start_all();
    }
    play_on(&all);
    let (_, text) = bots.end_by(Signal::INT);
    let played: Value = serde_json::from_str(text.lines().last().unwrap_or_default()).unwrap();
    all.stop_all();
    let told = all.assert_stored(&file);
    assert_eq!(played["results"], told, "{played:#}");
    assert!(told >= 200, "{played:#}");
    for zero in ["doubled", "out_of_order"] {
        assert_eq!(played[zero], 0, "{zero}: {played:#}");
    }
    let texts = played["error_texts"].to_string();
    assert!(!texts.contains("was won by"), "{texts}");
}
