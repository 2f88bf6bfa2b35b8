//! Masters that want to decide, and a witness that lets one of them.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Instant;

use greenroom_link::{ClusterKey, Me};
use greenroom_master_core::replica::{Master, Side};
use greenroom_protocol::wire::server_server::{Identity, Role};
use greenroom_protocol::{Epoch, Incarnation, ServerName};
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

#[test]
fn of_two_masters_that_claim_from_one_version_exactly_one_wins() {
    let folder = tempfile::tempdir().unwrap();
    let mut witness = open(folder.path());
    assert_eq!(witness.read().unwrap(), None);
    for expect in 0..20 {
        let claims = [Side::A, Side::B].map(|side| {
            let mut witness = open(folder.path());
            std::thread::spawn(move || witness.claim(expect, &rec(side, expect + 1)).unwrap())
        });
        let [a, b] = claims.map(|claim| claim.join().unwrap());
        let now = witness.read().unwrap();
        let (winner, loser) = if a == ClaimAnswer::Won { (Side::A, b) } else { (Side::B, a) };
        assert_eq!(now, Some(rec(winner, expect + 1)));
        assert_eq!(loser, ClaimAnswer::Lost(now));
    }
}

#[test]
fn an_attempt_that_is_repeated_is_won_once_and_stays_won() {
    let folder = tempfile::tempdir().unwrap();
    let mut witness = open(folder.path());
    assert_eq!(witness.claim(0, &rec(Side::A, 1)).unwrap(), ClaimAnswer::Won);
    assert_eq!(witness.claim(0, &rec(Side::A, 1)).unwrap(), ClaimAnswer::Won);
    drop(witness);
    let mut witness = open(folder.path());
    assert_eq!(witness.read().unwrap(), Some(rec(Side::A, 1)), "a restart keeps the record");
    assert_eq!(
        witness.claim(5, &rec(Side::B, 6)).unwrap(),
        ClaimAnswer::Lost(Some(rec(Side::A, 1)))
    );
    assert!(witness.claim(1, &rec(Side::B, 7)).is_err(), "versions grow by one");
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
