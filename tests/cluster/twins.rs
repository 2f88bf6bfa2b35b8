//! An instance that waits to be taken up is taken up once, however many game servers begin in the same moment, and
//! what the life before it still writes is refused by the store.

use greenroom::client::{Client, Code, Event, Room};
use greenroom_games::vault::{Add, Vault};
use greenroom_protocol::Incarnation;
use greenroom_storage::{Collection, Get, Key, Schema, Storage, StorageConfig};
use serde_json::Value;

#[cfg(feature = "couchbase")]
use crate::couchbase::Nodes;
#[cfg(feature = "couchbase")]
use crate::harness::run;
use crate::harness::{Cluster, Folder, event, patient, refusal, up, wait_until};
use crate::restores::only_proof;

/// How often everything that could have the instance dies.
const ROUNDS: u32 = 4;
/// The key of the instance.
const KEY: &str = "the one";
/// What a game server logs when it has taken an instance up.
const TAKEN_UP: &str = "an instance goes on here";

/// A vault with both of its seats taken, and somebody who has none.
struct Played {
    seats: [(Client, Room); 2],
    other: Client,
    life: Incarnation,
    added: u64,
}

impl Played {
    async fn begin(cluster: &Cluster) -> Self {
        let connect = async |name: &str| cluster.client().guest(name).connect().await.unwrap();
        let [ann, bo, other] = [connect("Ann").await, connect("Bo").await, connect("Cy").await];
        let made = ann.create("vault").key(KEY).await.unwrap();
        let seats = [ann.join(made).await.unwrap(), bo.join(made).await.unwrap()];
        let [hers, his] = seats;
        Self { seats: [(ann, hers), (bo, his)], other, life: Incarnation(0), added: 0 }
    }

    fn id(&self) -> String {
        self.seats[0].1.instance().to_string()
    }

    /// One more is in the vault, and both see it. Whether the store has counted it is another matter.
    async fn add(&mut self) {
        self.seats[0].1.send(&Add).unwrap();
        self.added += 1;
        self.see().await;
    }

    /// Both see what was added, no more and no less.
    async fn see(&mut self) {
        let added = self.added;
        for (_, room) in &mut self.seats {
            let is_it =
                |room: &mut Room| room.state::<Vault>().is_ok_and(|vault| vault.added == added);
            if !is_it(room) {
                event(room, "what was added", |room, _| is_it(room).then_some(())).await;
            }
        }
    }

    /// Both see what was added, the store has it, and the snapshot there is of no earlier step.
    async fn is_stored(&mut self, stored: &impl Fn(&str) -> Option<Value>) {
        let added = i64::try_from(self.added).unwrap();
        let id = self.id();
        let room = &mut self.seats[0].1;
        let is_kept =
            |room: &mut Room| room.state::<Vault>().is_ok_and(|vault| vault.kept >= added);
        if !is_kept(room) {
            event(room, "the count of the store", |room, _| is_kept(room).then_some(())).await;
        }
        let tick = room.view().unwrap().tick;
        wait_until("its snapshot", || {
            stored(&id).is_some_and(|snapshot| snapshot["tick"].as_u64() >= Some(tick.into()))
        });
    }

    /// Both are told once that they are in the next life of it, and nothing else happened to their seats.
    async fn next_life(&mut self) -> Incarnation {
        let mut lives = Vec::new();
        for (_, room) in &mut self.seats {
            let told = event(room, "the next life", |_, event| match event {
                Event::Rewound { incarnation, .. } => Some(incarnation),
                Event::Left(why) => panic!("the seat is gone: {why}"),
                _ => None,
            });
            lives.push(told.await);
        }
        assert_eq!(lives[0], lives[1], "two lives of one instance");
        // One that was given to a server that was dying has no word of its own.
        assert!(lives[0] > self.life, "a former life");
        self.life = lives[0];
        self.life
    }

    /// Nobody was told of a further life, and there is one instance: with the key, in the directory, on one server.
    async fn is_the_only_one(&mut self, cluster: &Cluster, servers: usize) {
        cluster.wait_for("one server to have it", |status| {
            let of = |server: &greenroom_protocol::wire::admin_master::ServerStatus| {
                server.game.map_or((0, 0), |said| (said.instances, said.orphans))
            };
            let has: Vec<_> =
                status.games.iter().filter(|server| server.state == "up").map(of).collect();
            assert!(has.iter().map(|(instances, _)| instances).sum::<u32>() <= 1, "{has:?}");
            has.len() == servers && has.iter().filter(|said| **said == (1, 0)).count() == 1
        });
        let status = cluster.status();
        assert_eq!((status.instances, status.twins), (1, 0));
        let made = self.other.create("vault").key(KEY);
        assert_eq!(
            patient("who asks for the key", made.into_future()).await.unwrap(),
            self.seats[0].1.instance()
        );
        assert_eq!(
            refusal(self.other.join(self.seats[0].1.instance()).await).code,
            Code::InstanceFull
        );
        for (_, room) in &mut self.seats {
            while let Some(event) = room.try_next_event() {
                assert!(!matches!(event, Event::Rewound { .. } | Event::Left(_)), "{event:?}");
            }
        }
    }
}

/// How often one of these processes has taken the instance up.
fn taken_up(cluster: &Cluster) -> usize {
    let lines = cluster.games.iter().flat_map(|game| game.err.so_far());
    lines.filter(|line| line.contains(TAKEN_UP)).count()
}

/// Everything that could have the instance dies, again and again, and two game servers begin: they bind their ports and
/// dial a master that is stopped, so that both stand before it in the same moment when it goes on.
async fn two_begin_at_once(
    cluster: &mut Cluster,
    played: &mut Played,
    stored: impl Fn(&str) -> Option<Value>,
) {
    for round in 0..ROUNDS {
        played.add().await;
        played.is_stored(&stored).await;
        for game in &mut cluster.games {
            game.kill();
        }
        cluster.games.clear();
        // In every other round the master hears of the deaths together with those who begin.
        if round % 2 == 0 {
            cluster.wait_for("the deaths", |status| up(&status.games) == 0);
        }
        cluster.master.stall();
        for _ in 0..2 {
            cluster.start_game(&["--cluster-log", "info"]);
        }
        // Who asks for the key meanwhile waits for the same one.
        let asked = played.other.create("vault").key(KEY).into_future();
        let go_on = async { cluster.master.go_on() };
        let (made, ()) = tokio::join!(patient("who asks meanwhile", asked), go_on);
        assert_eq!(made.unwrap(), played.seats[0].1.instance(), "round {round}: a twin");
        played.next_life().await;
        played.see().await;
        played.is_the_only_one(cluster, 2).await;
        wait_until("the word of who took it up", || taken_up(cluster) > 0);
        assert_eq!(taken_up(cluster), 1, "round {round}: both have read it");
    }
}

fn vaults(folder: &Folder, store: &[&str]) -> Cluster {
    // Nothing goes on by the passing of time: what is taken up here was proved dead.
    let config = only_proof(folder);
    let flags = [store, &["--config", &config]].concat();
    let mut cluster = Cluster::start_on(&flags, 1, 0, &["--limits", "load"]);
    cluster.start_game(&[]);
    cluster.wait_for("the game server", |status| up(&status.games) == 1);
    cluster
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_game_servers_that_begin_at_once_one_takes_up_what_is_in_sqlite() {
    let folder = Folder::new();
    let mut cluster = vaults(&folder, &[]);
    let store = format!("sqlite:{}", cluster.folder.path().join("store.sqlite").display()).into();
    let config = StorageConfig { store, ..StorageConfig::default() };
    let storage: Storage = greenroom_storage::open(&config, Schema::default()).unwrap();
    let stored = |id: &str| {
        let read = || {
            storage.try_submit(Get(Key::new(Collection::Snapshots, id).unwrap())).unwrap().wait()
        };
        // On a thread of its own: nobody may wait so for a store inside a runtime.
        let found = std::thread::scope(|scope| scope.spawn(read).join().unwrap()).unwrap();
        Some(found?.body.decode().unwrap())
    };
    let mut played = Played::begin(&cluster).await;
    two_begin_at_once(&mut cluster, &mut played, stored).await;
}

/// The same on Couchbase. Then it is away, and the game server that has the vault keeps a snapshot on its disk, and
/// dies. The vault goes on elsewhere; the other is started again and hands in what it kept: the store refuses it.
#[cfg(feature = "couchbase")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_game_servers_that_begin_at_once_one_takes_up_what_is_in_couchbase_and_a_late_write_is_refused()
 {
    let folder = Folder::new();
    let mut nodes = Nodes::start();
    let mut cluster = vaults(&folder, &nodes.store_flags());
    let mut played = Played::begin(&cluster).await;
    two_begin_at_once(&mut cluster, &mut played, |id| nodes.documents("snapshots").remove(id))
        .await;

    for game in &mut cluster.games {
        game.kill();
    }
    cluster.games.clear();
    cluster.start_game(&["--name", "late"]);
    played.next_life().await;
    played.add().await;
    played.is_stored(&|id| nodes.documents("snapshots").remove(id)).await;

    nodes.kill();
    played.add().await;
    let spool = cluster.folder.path().join("spool").join("late");
    let kept = || {
        let files =
            std::fs::read_dir(&spool).unwrap().map(|file| file.unwrap().metadata().unwrap().len());
        files.sum::<u64>()
    };
    wait_until("a snapshot on the disk of the game server", || kept() > 100);
    cluster.games[0].kill();
    cluster.games.clear();
    nodes.restart();
    cluster.start_game(&["--name", "other"]);
    played.next_life().await;
    // What was added while the store was away is taken back, as `Rewound` says.
    played.added -= 1;
    played.see().await;
    played.add().await;
    played.is_stored(&|id| nodes.documents("snapshots").remove(id)).await;

    cluster.start_game(&["--name", "late"]);
    let refused = |line: &str| line.contains("a write of an owner that is none any more");
    cluster.games[1].err.wait("the refusal of what came late", refused);
    played.see().await;
    played.add().await;
    played.is_stored(&|id| nodes.documents("snapshots").remove(id)).await;
    played.is_the_only_one(&cluster, 2).await;
    let told = || {
        let data = cluster.folder.text();
        let question = "select coalesce(sum(writes), 0) as writes from storage_deposed";
        let output = run(&["logs", "sql", question, "--format", "json", "--data", data]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let row: Value = serde_json::from_slice(&output.stdout).unwrap();
        row["writes"].as_f64().unwrap()
    };
    wait_until("the event of it", || told() >= 1.0);
}
