//! What is durable goes on when its game server is lost: at once when the process is gone, and not before its lease is
//! over when nobody can say. Never are there two of one instance.

use std::time::{Duration, Instant};

use greenroom::client::{Client, Event, Room};
use greenroom_games::arena;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::harness::{Cluster, Folder, event, up};

/// For how long a game server that hears no master goes on with what is durable.
const LEASE: Duration = Duration::from_secs(10);

/// Two players in one arena, and the place of the game server that has it.
struct Played {
    players: [(Client, Room); 2],
    at: usize,
}

impl Played {
    async fn begin(cluster: &Cluster) -> Self {
        let ann = cluster.client().guest("Ann").connect().await.unwrap();
        let bo = cluster.client().guest("Bo").connect().await.unwrap();
        let room = ann.join_or_create("arena").await.unwrap();
        let his = bo.join(room.instance()).await.unwrap();
        cluster.wait_for("the arena in its server's load", |status| {
            status.games.iter().any(|server| server.load == 1)
        });
        Self { players: [(ann, room), (bo, his)], at: Self::place(cluster) }
    }

    /// Which game server has the arena, as the directory says.
    fn place(cluster: &Cluster) -> usize {
        let status = cluster.status();
        let at = status.games.iter().find(|server| server.load == 1).unwrap();
        cluster.games.iter().position(|game| at.name.as_str() == game.words[1]).unwrap()
    }

    /// Both are told once that they are in the next life of it, and play on in their seats. Gives how long it took from
    /// `began` until the last of them was told.
    async fn go_on_elsewhere(&mut self, cluster: &Cluster, began: Instant) -> Duration {
        for (_, room) in &mut self.players {
            event(room, "the arena in its next life", |_, event| match event {
                Event::Rewound { .. } => Some(()),
                Event::Left(why) => panic!("the seat is gone: {why}"),
                _ => None,
            })
            .await;
        }
        let took = began.elapsed();
        self.play_on().await;
        assert_ne!(Self::place(cluster), self.at, "it runs on another server");
        took
    }

    async fn play_on(&mut self) {
        for (_, room) in &mut self.players {
            let shot: arena::Reply = room.call(&arena::In::Shoot(0.0, 1.0)).await.unwrap();
            assert!(matches!(shot, arena::Reply::Shot(_)));
        }
    }

    /// The server that had it is there again: it has nothing, nobody was told anything more, and there is one arena.
    async fn stay_there(&mut self, cluster: &Cluster) {
        cluster.wait_for("the former server to have nothing", |status| {
            up(&status.games) == cluster.games.len()
                && status.instances == 1
                && status.games.iter().all(|game| {
                    let has = u32::from(game.name.as_str() != cluster.games[self.at].words[1]);
                    let said =
                        game.game.is_some_and(|said| (said.instances, said.orphans) == (has, 0));
                    game.load == has && said
                })
        });
        assert_eq!(cluster.status().twins, 0);
        self.play_on().await;
        for (_, room) in &mut self.players {
            while let Some(event) = room.try_next_event() {
                let told = matches!(event, Event::Rewound { .. } | Event::Left(_));
                assert!(!told, "told once more: {event:?}");
            }
        }
    }
}

/// A configuration in which nothing goes on elsewhere in the time of a test unless a death is proved.
pub(crate) fn only_proof(folder: &Folder) -> String {
    let path = folder.path().join("greenroom.toml");
    std::fs::write(&path, "[master]\nserver_grace = '1h'\n").unwrap();
    path.into_os_string().into_string().unwrap()
}

#[tokio::test]
async fn when_a_game_server_is_killed_its_arena_goes_on_elsewhere_at_once() {
    let folder = Folder::new();
    let mut cluster = Cluster::start_on(&["--config", &only_proof(&folder)], 1, 2, &[]);
    let mut played = Played::begin(&cluster).await;
    cluster.games[played.at].kill();
    played.go_on_elsewhere(&cluster, Instant::now()).await;
}

/// The standby sees for itself that the game server is gone, since who saw it with it is gone, too.
#[tokio::test]
async fn when_a_game_server_is_killed_with_the_active_the_standby_restores_its_arena_at_once() {
    let folder = Folder::new();
    let flags = ["--config", &only_proof(&folder)];
    let mut cluster = Cluster::start_pair_on(Some(&flags), 1, 2, &[]);
    let mut played = Played::begin(&cluster).await;
    cluster.active().kill();
    cluster.games[played.at].kill();
    played.go_on_elsewhere(&cluster, Instant::now()).await;
}

/// Its port takes links still, and it would go on where it was. By then it must not: it says nothing after its lease.
#[tokio::test]
async fn a_game_server_that_is_stopped_is_not_dead_and_when_it_goes_on_there_is_one_arena() {
    let cluster = Cluster::start(1, 2);
    let mut played = Played::begin(&cluster).await;
    let began = Instant::now();
    cluster.games[played.at].stall();
    let took = played.go_on_elsewhere(&cluster, began).await;
    assert!(took > LEASE, "it may have gone on: {took:?}");
    cluster.games[played.at].go_on();
    played.stay_there(&cluster).await;
}

/// A way between two processes that can be cut and mended.
struct Way {
    address: String,
    to: String,
    cut: CancellationToken,
    tasks: TaskTracker,
}

impl Way {
    async fn open(to: &str) -> Self {
        let (cut, tasks) = (CancellationToken::new(), TaskTracker::new());
        let mut way = Self { address: "127.0.0.1:0".into(), to: to.into(), cut, tasks };
        way.mend().await;
        way
    }

    async fn mend(&mut self) {
        let listener = TcpListener::bind(&self.address).await.unwrap();
        self.address = listener.local_addr().unwrap().to_string();
        self.cut = CancellationToken::new();
        let (cut, tasks, to) = (self.cut.clone(), self.tasks.clone(), self.to.clone());
        self.tasks.spawn(self.cut.clone().run_until_cancelled_owned(async move {
            loop {
                let (mut from, _) = listener.accept().await.unwrap();
                let mut onward = TcpStream::connect(&to).await.unwrap();
                tasks.spawn(cut.clone().run_until_cancelled_owned(async move {
                    // However it ends, both ends are told by their sockets.
                    let _ended = copy_bidirectional(&mut from, &mut onward).await;
                }));
            }
        }));
    }
}

/// Its link to the master ends as if the process had: but not by the process, which plays on until its lease is over,
/// and nobody can prove what is not so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_game_server_that_is_cut_off_is_not_dead_and_when_it_is_back_there_is_one_arena() {
    let mut cluster = Cluster::start(1, 0);
    let mut way = Way::open(&cluster.master.words[1]).await;
    cluster.start_game(&["--masters", &way.address]);
    cluster.wait_for("the game server", |status| up(&status.games) == 1);
    let mut played = Played::begin(&cluster).await;
    cluster.start_game(&[]);
    cluster.wait_for("another game server", |status| up(&status.games) == 2);
    let began = Instant::now();
    way.cut.cancel();
    cluster.wait_for("the loss of its link", |status| up(&status.games) == 1);
    played.play_on().await;
    assert!(began.elapsed() < LEASE, "this machine is too slow to tell anything");
    let took = played.go_on_elsewhere(&cluster, began).await;
    assert!(took > LEASE, "it may have played on: {took:?}");
    way.mend().await;
    played.stay_there(&cluster).await;
}
