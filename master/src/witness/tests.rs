//! Masters that want to decide, and a witness that lets one of them.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Instant;

use greenroom_link::{ClusterKey, Me};
use greenroom_master_core::replica::{Master, Side};
use greenroom_protocol::wire::server_server::{Identity, Role};
use greenroom_protocol::{Epoch, Incarnation, ServerName};
use greenroom_storage::{Body, Collection, Key, Schema, StorageConfig, Write};
use rusqlite::Connection;
use tokio::net::TcpListener;
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;

use super::*;

fn rec(side: Side, version: u64) -> Rec {
    let holder = Master { side, incarnation: Incarnation(7), copy: 0 };
    let epoch = u32::try_from(version).unwrap();
    let nonce = Nonce { by: holder, number: version };
    Rec { version, at: Epoch { era: 1, epoch }, holder, peer: None, nonce }
}

fn open(folder: &Path) -> SqliteWitness {
    SqliteWitness::open(&folder.join("witness.sqlite"), &"north".into()).unwrap()
}

/// How long an attempt is made again until it is decided.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// Whether the store has only not answered in time.
fn is_silence(error: &WitnessError) -> bool {
    use greenroom_storage::StorageError::{Busy, Unavailable, Undecided};
    matches!(
        error,
        WitnessError::Store { source: Busy { .. } | Unavailable(_) | Undecided { .. }, .. }
    )
}

/// What every witness must do, whatever keeps the record. `open` gives one more way to the same record.
mod contract {
    use super::*;

    /// What became of an attempt. A store that does not answer in time, as on a busy machine, leaves it unknown: its
    /// author makes the same attempt again, as a master does, until it is told.
    pub(super) fn decided(witness: &mut impl Witness, expect: u64, rec: &Rec) -> ClaimAnswer {
        let begun = Instant::now();
        loop {
            match witness.claim(expect, rec) {
                Ok(ClaimAnswer::Unknown) => {}
                Ok(answer) => return answer,
                Err(error) if is_silence(&error) => {}
                Err(error) => panic!("{}", whole(&error)),
            }
            assert!(begun.elapsed() < PATIENCE, "nobody knows of {rec:?}");
        }
    }

    fn read(witness: &mut impl Witness) -> Option<Rec> {
        let begun = Instant::now();
        loop {
            match witness.read() {
                Ok(now) => return now,
                Err(error) if is_silence(&error) && begun.elapsed() < PATIENCE => {}
                Err(error) => panic!("{}", whole(&error)),
            }
        }
    }

    pub(super) fn of_two_masters_that_claim_from_one_version_exactly_one_wins<W: Witness>(
        open: impl Fn() -> W + Sync,
    ) {
        let mut witness = open();
        assert_eq!(read(&mut witness), None);
        for expect in 0..20 {
            let [a, b] = std::thread::scope(|scope| {
                let claims = [Side::A, Side::B].map(|side| {
                    let open = &open;
                    scope.spawn(move || decided(&mut open(), expect, &rec(side, expect + 1)))
                });
                claims.map(|claim| claim.join().unwrap())
            });
            let now = read(&mut witness);
            let (winner, loser) = if a == ClaimAnswer::Won { (Side::A, b) } else { (Side::B, a) };
            assert_eq!(now, Some(rec(winner, expect + 1)));
            assert_eq!(loser, ClaimAnswer::Lost(now));
        }
    }

    pub(super) fn an_attempt_that_is_repeated_is_won_once_and_stays_won<W: Witness>(
        open: impl Fn() -> W,
    ) {
        let mut witness = open();
        assert_eq!(decided(&mut witness, 0, &rec(Side::A, 1)), ClaimAnswer::Won);
        assert_eq!(decided(&mut witness, 0, &rec(Side::A, 1)), ClaimAnswer::Won);
        drop(witness);
        let mut witness = open();
        assert_eq!(read(&mut witness), Some(rec(Side::A, 1)), "a restart keeps the record");
        assert_eq!(
            decided(&mut witness, 5, &rec(Side::B, 6)),
            ClaimAnswer::Lost(Some(rec(Side::A, 1)))
        );
        assert!(witness.claim(1, &rec(Side::B, 7)).is_err(), "versions grow by one");
        assert_eq!(decided(&mut witness, 1, &rec(Side::B, 2)), ClaimAnswer::Won);
        let lost = ClaimAnswer::Lost(Some(rec(Side::B, 2)));
        assert_eq!(
            decided(&mut witness, 0, &rec(Side::A, 1)),
            lost,
            "it was won once, and is over"
        );
    }
}

/// The contract, as tests of one witness: `$open` gives a way to the record in a folder.
macro_rules! contract_tests {
    ($open:expr) => {
        use super::*;

        #[test]
        fn of_two_masters_that_claim_from_one_version_exactly_one_wins() {
            let folder = tempfile::tempdir().unwrap();
            let open = $open(folder.path());
            contract::of_two_masters_that_claim_from_one_version_exactly_one_wins(open);
        }

        #[test]
        fn an_attempt_that_is_repeated_is_won_once_and_stays_won() {
            let folder = tempfile::tempdir().unwrap();
            let open = $open(folder.path());
            contract::an_attempt_that_is_repeated_is_won_once_and_stays_won(open);
        }
    };
}

mod in_a_file {
    contract_tests!(|folder: &Path| {
        let folder = folder.to_owned();
        move || open(&folder)
    });
}

fn store_witness(config: &StorageConfig, cluster: &str) -> StoreWitness {
    let storage = greenroom_storage::open(config, Schema::default()).unwrap();
    StoreWitness::new(storage, cluster, &config.store).unwrap()
}

/// A store that several processes of a machine may open.
mod in_a_store_of_sqlite {
    contract_tests!(|folder: &Path| {
        let store = format!("sqlite:{}", folder.join("store.sqlite").display()).into();
        let config = StorageConfig { store, ..StorageConfig::default() };
        move || store_witness(&config, "north")
    });
}

#[cfg(feature = "couchbase")]
mod in_couchbase {
    use greenroom_couchbase_node::{Background, Fault, Misbehaviour, Options, Requests};

    contract_tests!(|_: &Path| {
        let nodes = Background::start(Options::nodes(3)).unwrap();
        let config = config(&nodes);
        move || {
            let _until_the_last_is_opened = &nodes;
            store_witness(&config, "north")
        }
    });

    fn config(nodes: &Background) -> StorageConfig {
        StorageConfig {
            store: nodes.connection_string().into(),
            deadline: std::time::Duration::from_secs(5),
            couchbase_user: "Administrator".into(),
            couchbase_password: "password".into(),
            couchbase_request_timeout: std::time::Duration::from_secs(1),
            ..StorageConfig::default()
        }
    }

    /// Method: a claim is applied and its answer swallowed, and so is every read that would tell: nobody knows. Once
    /// reads are answered, the same claim is found to have been won, and another master's to be lost.
    #[test]
    fn an_attempt_of_which_nobody_knows_is_unknown_and_decided_when_it_is_made_again() {
        let nodes = Background::start(Options::nodes(3)).unwrap();
        let config = config(&nodes);
        let mut witness = store_witness(&config, "north");
        assert_eq!(contract::decided(&mut witness, 0, &rec(Side::A, 1)), ClaimAnswer::Won);
        let faults = nodes.faults();
        faults.add(Fault::new(Misbehaviour::AnswerSwallowed).key("witness"));
        // The look before the claim is answered.
        let reads = Fault::new(Misbehaviour::RequestSwallowed).key("witness").on(Requests::Reads);
        faults.add(reads.skip(1));
        let error = whole(&witness.claim(1, &rec(Side::A, 2)).unwrap_err());
        assert!(error.contains("witness/north") && error.contains("not known"), "{error}");
        faults.clear();
        let mut other = store_witness(&config, "north");
        let lost = ClaimAnswer::Lost(Some(rec(Side::A, 2)));
        assert_eq!(contract::decided(&mut other, 1, &rec(Side::B, 2)), lost);
        let mut again = store_witness(&config, "north");
        assert_eq!(contract::decided(&mut again, 1, &rec(Side::A, 2)), ClaimAnswer::Won);
    }
}

#[test]
fn witnesses_of_two_clusters_in_one_store_are_two_and_what_is_no_record_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let store = format!("sqlite:{}", folder.path().join("store.sqlite").display()).into();
    let config = StorageConfig { store, ..StorageConfig::default() };
    let mut north = store_witness(&config, "north");
    assert_eq!(north.claim(0, &rec(Side::A, 1)).unwrap(), ClaimAnswer::Won);
    assert_eq!(store_witness(&config, "south").read().unwrap(), None);
    let storage = greenroom_storage::open(&config, Schema::default()).unwrap();
    let key = Key::new(Collection::Cluster, "witness/north").unwrap();
    let write = Write::upsert(key, Body::new("{\"by\": \"hand\"}").unwrap());
    storage.try_submit(write).unwrap().wait().unwrap();
    let error = north.read().unwrap_err().to_string();
    assert!(error.contains("witness/north") && error.contains("no record"), "{error}");
    assert!(north.claim(1, &rec(Side::A, 2)).is_err());
    assert!(StoreWitness::new(storage, &"x".repeat(300), "here").is_err());
}

#[test]
fn a_file_of_another_cluster_or_of_something_else_is_refused_by_name_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path()));
    let file = folder.path().join("witness.sqlite");
    let error = SqliteWitness::open(&file, &"south".into()).unwrap_err().to_string();
    assert!(error.contains("\"north\"") && error.contains("\"south\""), "{error}");

    let other = folder.path().join("other.sqlite");
    Connection::open(&other).unwrap().execute_batch("CREATE TABLE players (id INTEGER)").unwrap();
    let before = std::fs::read(&other).unwrap();
    let error = SqliteWitness::open(&other, &"north".into()).unwrap_err().to_string();
    assert!(error.contains("no witness") && error.contains("other.sqlite"), "{error}");
    assert_eq!(std::fs::read(&other).unwrap(), before);

    let text = folder.path().join("notes.txt");
    std::fs::write(&text, "x".repeat(5_000)).unwrap();
    let error = SqliteWitness::open(&text, &"north".into()).unwrap_err();
    assert!(matches!(error, WitnessError::NoWitness { .. }), "{error}");
}

#[test]
fn a_witness_that_can_not_write_says_so_and_the_attempt_is_unknown() {
    let folder = tempfile::tempdir().unwrap();
    let witness = open(folder.path());
    // Somebody else has the file.
    let other = Connection::open(folder.path().join("witness.sqlite")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    witness.set_busy(std::time::Duration::ZERO);
    let mut handle = WitnessHandle::start(Box::new(witness)).unwrap();
    let question = Question::Claim { expect: 0, rec: rec(Side::A, 1) };
    handle.ask(question);
    let Answered::Failed(text) = handle.answers.blocking_recv().unwrap() else {
        panic!("it failed")
    };
    assert!(text.contains("changing the record") && text.contains("locked"), "{text}");
    let unknown = Answered::Claimed(rec(Side::A, 1).nonce, ClaimAnswer::Unknown);
    assert_eq!(handle.answers.blocking_recv(), Some(unknown));
    other.execute_batch("ROLLBACK").unwrap();
    handle.ask(question);
    let won = Answered::Claimed(rec(Side::A, 1).nonce, ClaimAnswer::Won);
    assert_eq!(handle.answers.blocking_recv(), Some(won));
}

fn me(role: Role, key: &ClusterKey) -> Me {
    let identity = Identity::new(
        "north".into(),
        role,
        ServerName::new("master-1").unwrap(),
        Incarnation(1),
        "test".into(),
    );
    Me { identity, key: key.clone() }
}

/// A witness that runs, its address, and how to stop it.
struct Running {
    address: SocketAddr,
    stop: CancellationToken,
    thread: std::thread::JoinHandle<()>,
}

impl Running {
    fn start(folder: &Path, listen: &str, key: &ClusterKey) -> Self {
        let config = WitnessConfig {
            listen: listen.into(),
            cluster: "north".into(),
            file: folder.join("witness.sqlite"),
            ..WitnessConfig::default()
        };
        let (key, stop) = (key.clone(), CancellationToken::new());
        let (ready, started) = std::sync::mpsc::channel();
        let stopping = stop.clone();
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(LocalSet::new().run_until(async {
                let server = WitnessServer::bind(&config, key).await.unwrap();
                ready.send(server.address()).unwrap();
                server.run(stopping).await;
            }));
        });
        Self { address: started.recv().unwrap(), stop, thread }
    }

    fn stop(self) -> SocketAddr {
        self.stop.cancel();
        self.thread.join().unwrap();
        self.address
    }
}

#[test]
fn a_master_asks_over_a_link_and_again_after_the_witness_was_restarted() {
    let folder = tempfile::tempdir().unwrap();
    let key = ClusterKey::generate().unwrap();
    let running = Running::start(folder.path(), "127.0.0.1:0", &key);
    let address = running.address.to_string();
    let mut witness = RemoteWitness::start(&address, me(Role::Master, &key)).unwrap();
    assert_eq!(witness.read().unwrap(), None);
    assert_eq!(witness.claim(0, &rec(Side::A, 1)).unwrap(), ClaimAnswer::Won);
    let lost = ClaimAnswer::Lost(Some(rec(Side::A, 1)));
    assert_eq!(witness.claim(0, &rec(Side::B, 1)).unwrap(), lost);
    running.stop();
    let error = witness.read().unwrap_err();
    assert!(whole(&error).contains(&address), "{error}");
    let running = Running::start(folder.path(), &address, &key);
    assert_eq!(witness.read().unwrap(), Some(rec(Side::A, 1)));
    running.stop();
}

#[test]
fn who_is_no_master_of_this_cluster_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let key = ClusterKey::generate().unwrap();
    let running = Running::start(folder.path(), "127.0.0.1:0", &key);
    let address = running.address.to_string();
    let mut game = RemoteWitness::start(&address, me(Role::Game, &key)).unwrap();
    assert!(whole(&game.read().unwrap_err()).contains("no business"));
    let other = ClusterKey::generate().unwrap();
    let mut stranger = RemoteWitness::start(&address, me(Role::Master, &other)).unwrap();
    assert!(whole(&stranger.read().unwrap_err()).contains("cluster key"));
    running.stop();
}

/// A witness that takes an attempt, and is gone, or says nothing, before it answers.
async fn commits_and_never_answers(
    listener: TcpListener,
    me: Me,
    mut file: SqliteWitness,
    hangs: bool,
) {
    use greenroom_protocol::Limits;
    use greenroom_protocol::wire::master_witness::MasterToWitness;
    let (socket, _) = listener.accept().await.unwrap();
    let mut link = greenroom_link::accept(socket, &me, &[Role::Master]).await.unwrap();
    let frame = loop {
        match link.incoming.next_frame().unwrap() {
            Some(frame) => break frame,
            None => link.incoming.fill().await.unwrap(),
        }
    };
    let payload = &link.incoming.bytes()[frame.payload];
    let question = MasterToWitness::decode(frame.header.kind, payload, Limits::SERVER).unwrap();
    let MasterToWitness::Claim(claim) = question else { panic!("a claim") };
    assert_eq!(file.claim(claim.expect, &claim.rec).unwrap(), ClaimAnswer::Won);
    if hangs {
        // Until the master gives up.
        while link.incoming.fill().await.is_ok() {}
    }
}

#[test]
fn a_witness_that_dies_or_hangs_between_commit_and_answer_leaves_the_attempt_unknown() {
    for hangs in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let key = ClusterKey::generate().unwrap();
        let (file, it) = (open(folder.path()), me(Role::Witness, &key));
        let (ready, started) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                ready.send(listener.local_addr().unwrap()).unwrap();
                commits_and_never_answers(listener, it, file, hangs).await;
            });
        });
        let address = started.recv().unwrap();
        let remote = RemoteWitness::start(&address.to_string(), me(Role::Master, &key)).unwrap();
        let mut handle = WitnessHandle::start(Box::new(remote)).unwrap();
        let mine = rec(Side::A, 1);
        handle.ask(Question::Claim { expect: 0, rec: mine });
        let failed = handle.answers.blocking_recv().unwrap();
        assert!(matches!(&failed, Answered::Failed(_)), "{failed:?}");
        let unknown = Answered::Claimed(mine.nonce, ClaimAnswer::Unknown);
        assert_eq!(handle.answers.blocking_recv(), Some(unknown));
        thread.join().unwrap();
        let running = Running::start(folder.path(), &address.to_string(), &key);
        handle.ask(Question::Read);
        assert_eq!(handle.answers.blocking_recv(), Some(Answered::Record(Some(mine))));
        running.stop();
    }
}

#[test]
#[ignore = "a measurement: cargo test -p greenroom-master --release witness -- --ignored --nocapture"]
fn how_long_a_claim_takes() {
    let folder = tempfile::tempdir().unwrap();
    let mut witness = open(folder.path());
    let mut took: Vec<_> = (0..200)
        .map(|expect| {
            let begun = Instant::now();
            assert_eq!(witness.claim(expect, &rec(Side::A, expect + 1)).unwrap(), ClaimAnswer::Won);
            begun.elapsed()
        })
        .collect();
    took.sort();
    println!("in a file: median {:?}, 99 of 100 {:?}", took[100], took[198]);
}
