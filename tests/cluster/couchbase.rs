//! Stories on Couchbase: a cluster of ours whose documents are on nodes that speak its protocols, in a process of their
//! own.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::harness::{Cluster, Folder, Process, free_port, greenroom, report, run, up, wait_until};

/// How long Couchbase is away.
const AWAY: Duration = Duration::from_secs(20);

/// Three nodes in one process, with their ports and their folder, so that it can come back after it was killed.
pub(crate) struct Nodes {
    process: Process,
    flags: Vec<String>,
    address: String,
    control: u16,
    _folder: Folder,
}

impl Nodes {
    pub(crate) fn start() -> Self {
        let folder = Folder::new();
        let pairs: Vec<_> = (0..3).map(|_| format!("{}:{}", free_port(), free_port())).collect();
        let (ports, control) = (pairs.join(","), free_port());
        let flags = format!("--ports {ports} --control {control} --folder {}", folder.text());
        let flags: Vec<String> = flags.split(' ').map(str::to_owned).collect();
        let (process, address) = spawn(&flags);
        Self { process, flags, address, control, _folder: folder }
    }

    /// SIGKILL: every connection is cut at once.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// They come back, on their ports and with what was on the disk.
    pub(crate) fn restart(&mut self) {
        (self.process, _) = spawn(&self.flags);
    }

    /// What names this store on a command line.
    pub(crate) fn store_flags(&self) -> [&str; 8] {
        [
            "--store",
            &self.address,
            "--storage-couchbase-user",
            "Administrator",
            "--storage-couchbase-password",
            "password",
            // A busy machine needs its time.
            "--storage-couchbase-connect-timeout",
            "30s",
        ]
    }

    /// What a collection holds, by key.
    pub(crate) fn documents(&self, collection: &str) -> serde_json::Map<String, Value> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.control)).unwrap();
        let path = format!("/documents/greenroom/greenroom/{collection}");
        write!(stream, "GET {path} HTTP/1.1\r\nhost: control\r\nconnection: close\r\n\r\n")
            .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (_, body) = text.split_once("\r\n\r\n").unwrap();
        serde_json::from_str(body).unwrap()
    }
}

fn spawn(flags: &[String]) -> (Process, String) {
    // Cargo builds it beside the binary of these stories when it builds the workspace.
    let program = Path::new(env!("CARGO_BIN_EXE_greenroom")).with_file_name("couchbase-node");
    assert!(program.exists(), "build it first: cargo build -p greenroom-couchbase-node");
    let process = Process::spawn(Command::new(program).args(flags));
    let line = process.out.wait("the nodes", |line| line.starts_with('{'));
    let ready: Value = serde_json::from_str(&line).unwrap();
    (process, ready["address"].as_str().unwrap().to_owned())
}

/// Bots play duels. Couchbase is killed, with connections and writes under way, and while it is away a game server is
/// killed too. 20 seconds later Couchbase comes back, and the bots play on. Every result that a bot was told of is
/// stored, once: a duel's document is written by an insert and never again, and nobody has more wins than duels that
/// he won.
#[test]
fn every_result_that_was_told_is_stored_once_although_couchbase_was_away_and_a_game_server_died() {
    let mut nodes = Nodes::start();
    let mut cluster = Cluster::start_on(&nodes.store_flags(), 1, 2, &["--limits", "load"]);
    let folder = Folder::new();
    let file = folder.path().join("results");
    let results = file.to_str().unwrap();
    let bots = cluster.start_bots(&[
        "--users",
        "24",
        "--for",
        "60s",
        "--game",
        "duel",
        "--results",
        results,
    ]);
    wait_until("results before Couchbase goes", || duels(&nodes).len() >= 10);

    let before = duels(&nodes).len();
    nodes.kill();
    let gone = Instant::now();
    let mut dead = cluster.games.remove(0);
    dead.kill();
    // That nothing comes back by itself meanwhile is what this waits for.
    wait_until("Couchbase to have been away", || gone.elapsed() >= AWAY);
    assert_eq!(cluster.status().masters[0].role, "active", "the master does without it");
    nodes.restart();
    wait_until("results after Couchbase is back", || duels(&nodes).len() >= before + 10);
    cluster.start_game(&[]);
    cluster.wait_for("both game servers", |status| up(&status.games) == 2);

    let (_, report) = report(&bots.ended());
    // What a duel said after its last snapshot is lost with its server, and its players are told so.
    for zero in ["doubled", "out_of_order", "desyncs"] {
        assert_eq!(report[zero], 0, "{zero}: {report:#}");
    }
    // While the store is away a duel can't begin, and says so; of a call that its game server died with, nobody knows;
    // and a duel that the server had not stored once is gone with it.
    for (text, count) in report["error_texts"].as_object().unwrap() {
        let is_expected = ["refused: unavailable", ": undecided: ", "refused: instance_lost"]
            .iter()
            .any(|expected| text.contains(expected));
        assert!(is_expected, "{count} times {text}: {report:#}");
    }
    let told = std::fs::read_to_string(&file).unwrap();
    let told: Vec<&str> = told.lines().collect();
    let stored = nodes.documents("documents");
    assert!(told.len() > before, "{} results were told, {before} before: {report:#}", told.len());
    for id in &told {
        assert!(stored.contains_key(*id), "{id} was told and is not stored: {report:#}");
    }
    // Nothing was applied twice: of a result that is stored, one win at most is counted.
    let mut won = std::collections::BTreeMap::<&str, i64>::new();
    for duel in stored.iter().filter(|(key, _)| key.starts_with("duel/")).map(|(_, value)| value) {
        if let Some(seat) = duel["winner"].as_u64() {
            let seat = usize::try_from(seat).unwrap();
            *won.entry(duel["players"][seat].as_str().unwrap()).or_default() += 1;
        }
    }
    for (key, counter) in &stored {
        if let Some(user) = key.strip_prefix("duel/wins/") {
            let (wins, won) = (counter["count"].as_i64().unwrap(), won.get(user).copied());
            assert!(Some(wins) <= won, "{user} has {wins} wins and won {won:?} duels");
        }
    }
}

/// The results that are stored.
fn duels(nodes: &Nodes) -> Vec<String> {
    let stored = nodes.documents("documents");
    let is_result = |key: &&String| key.starts_with("duel/") && !key.starts_with("duel/wins/");
    stored.keys().filter(is_result).cloned().collect()
}

/// An operator makes the store, looks at it, and is told what is wrong with it.
#[test]
fn an_operator_makes_the_store_and_is_told_what_is_wrong_with_it() {
    let mut nodes = Nodes::start();
    let store = |nodes: &Nodes, what: &str, password: &str, patience: &str| {
        let [store, address, by, user, with, _, waits, _] = nodes.store_flags();
        let output = greenroom()
            .args(["store", what, store, address, by, user, with, password, waits, patience])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.success(), said + &String::from_utf8_lossy(&output.stderr))
    };
    let (is_well, said) = store(&nodes, "check", "password", "60s");
    assert!(!is_well && said.contains("the scope \"greenroom\" is missing"), "{said}");
    let (is_well, said) = store(&nodes, "init", "password", "60s");
    assert!(is_well && said.contains("made the collection greenroom.documents"), "{said}");
    // What the games of this program declare, beside what the masters need.
    for index in ["documents_by_turns_n", "users_by_name_t"] {
        assert!(said.contains(index), "{index}: {said}");
    }
    assert_eq!(
        store(&nodes, "init", "password", "60s"),
        (true, "everything is there\n".to_owned())
    );
    let (is_well, said) = store(&nodes, "check", "password", "60s");
    assert!(is_well && said.contains("nothing is missing"), "{said}");
    let (is_well, said) = store(&nodes, "check", "guess", "10s");
    assert!(!is_well && said.contains("couchbase_password is wrong"), "{said}");
    nodes.kill();
    let (is_well, said) = store(&nodes, "check", "password", "10s");
    assert!(!is_well && said.contains("can't be reached"), "{said}");

    // Of SQLite, the same.
    let folder = Folder::new();
    let data = ["--data", folder.text()];
    let said = run(&["store", "init", data[0], data[1]]);
    assert!(String::from_utf8_lossy(&said.stdout).contains("made the file"), "{said:?}");
    let said = run(&["store", "check", data[0], data[1]]);
    assert!(said.status.success(), "{said:?}");
}

/// The witness of the masters is a document. The active dies, and the standby takes over by replacing it. The next
/// active dies while Couchbase is away: then nobody decides, since nobody can know that he alone does, until Couchbase
/// is back.
#[test]
fn masters_whose_witness_is_a_document_take_over_when_they_can_ask_it_and_not_before() {
    let mut nodes = Nodes::start();
    let mut cluster =
        Cluster::start_pair_on(Some(&nodes.store_flags()), 1, 1, &["--limits", "load"]);
    let role = |cluster: &Cluster, name: &str| {
        let masters = status_of(cluster, name).masters;
        masters
            .iter()
            .find(|master| master.name.as_str() == name)
            .map(|master| master.role.to_string())
    };
    assert_eq!(role(&cluster, "master-a").as_deref(), Some("active"));
    let record = nodes.documents("cluster");
    assert!(record.contains_key("witness/greenroom"), "{record:?}");

    cluster.active().kill();
    wait_until("the standby to take over", || {
        role(&cluster, "master-b").as_deref() == Some("active")
    });
    let after = nodes.documents("cluster")["witness/greenroom"]["version"].as_u64();
    assert!(after > record["witness/greenroom"]["version"].as_u64(), "{after:?}");
    cluster.start_masters();
    cluster.wait_for_pair();

    nodes.kill();
    cluster.active().kill();
    let gone = Instant::now();
    // Many times what a standby waits for: it asks, and is not answered.
    wait_until("a standby that can't ask to wait", || {
        assert_ne!(
            role(&cluster, "master-a").as_deref(),
            Some("active"),
            "it decides without the witness"
        );
        gone.elapsed() >= Duration::from_secs(5)
    });
    nodes.restart();
    wait_until("the standby to take over", || {
        role(&cluster, "master-a").as_deref() == Some("active")
    });
    cluster.wait_for("its servers", |status| up(&status.games) == 1 && up(&status.sessions) == 1);
}

/// The status as the master of this name sees it.
fn status_of(cluster: &Cluster, name: &str) -> greenroom_protocol::wire::admin_master::Status {
    let (a, b) = cluster.admin().split_once(',').unwrap();
    super::harness::status(if name == "master-a" { a } else { b })
}
