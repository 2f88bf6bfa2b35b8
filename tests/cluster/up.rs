//! `greenroom up`: from nothing to players, and back to nothing.

use std::{
    io::{BufRead as _, BufReader},
    net::TcpListener,
    process::{Command, Stdio},
    sync::atomic::{AtomicU16, Ordering::Relaxed},
};

use rustix::process::Signal;

use crate::harness::{
    Cluster, Folder, Process, assert_clean, error_of, free_port, greenroom, report, run, status,
    up, wait_until,
};

/// The flags of an `up` that listens wherever there is room.
pub(crate) fn anywhere(folder: &Folder) -> Vec<&str> {
    let any = "127.0.0.1:0";
    let ports = ["--master-listen", any, "--admin", any, "--session-tcp", any, "--session-ws", any];
    [&["up", "--data", folder.text()], &ports[..]].concat()
}

pub(crate) fn start(args: &[&str]) -> Process {
    start_as(greenroom().args(args))
}

pub(crate) fn start_as(command: &mut Command) -> Process {
    let process = Process::spawn(command);
    process.out.wait("its last line", |line| line.starts_with("Ctrl-C drains"));
    process
}

/// What stands behind a word in what `up` prints.
pub(crate) fn said(process: &Process, word: &str) -> String {
    let line = process.out.wait(word, |line| line.trim_start().starts_with(word));
    line.trim_start().trim_start_matches(word).trim().to_owned()
}

pub(crate) fn admin_of(process: &Process) -> String {
    said(process, "monitor").trim_start_matches("http://").trim_end_matches('/').to_owned()
}

pub(crate) fn plays(admin: &str, users: &str, span: &str) {
    let flags = ["bots", "--json", "--admin", admin, "--users", users, "--for", span];
    let (ok, report) = report(&greenroom().args(flags).output().unwrap());
    assert!(ok, "{report:#}");
    assert_clean(&report);
}

#[test]
fn up_says_what_runs_where_lets_bots_play_and_drains_at_either_signal() {
    for signal in [Signal::TERM, Signal::INT] {
        let folder = Folder::new();
        let process = start(&anywhere(&folder));
        let players = said(&process, "players");
        assert!(
            players.contains("tcp://127.0.0.1:") && players.contains("ws://127.0.0.1:"),
            "{players}"
        );
        assert!(said(&process, "game").contains("arena"));
        assert_eq!(said(&process, "data"), folder.text());
        plays(&admin_of(&process), "20", "1s");
        let (ok, text) = process.end_by(signal);
        assert!(ok && text.lines().last().unwrap_or_default().starts_with("draining"), "{text}");
    }
}

/// Ports below those that the system gives out by itself, and that nobody uses: as many as `up --processes` wants.
fn free_ports() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let of_this_process = u16::try_from(std::process::id() % 400).unwrap() * 20;
    (0..400)
        .map(|_| 20_000 + (of_this_process + NEXT.fetch_add(20, Relaxed)) % 8_000)
        .find(|base| (0..20).all(|port| TcpListener::bind(("127.0.0.1", base + port)).is_ok()))
        .unwrap()
}

/// `up --processes`, with what it runs.
pub(crate) struct Many {
    folder: Folder,
    base: u16,
}

impl Many {
    pub(crate) fn new() -> Self {
        Self { folder: Folder::new(), base: free_ports() }
    }
    fn start(&self) -> (Process, String) {
        self.start_with(&[])
    }
    /// Its data.
    pub(crate) fn folder(&self) -> &str {
        self.folder.text()
    }
    /// With more flags.
    pub(crate) fn start_with(&self, flags: &[&str]) -> (Process, String) {
        self.start_as(&mut greenroom(), flags)
    }
    /// With more flags, and surroundings that the command has already.
    pub(crate) fn start_as(&self, command: &mut Command, flags: &[&str]) -> (Process, String) {
        (start_as(command.args(self.command()).args(flags)), self.at(1))
    }
    fn at(&self, port: u16) -> String {
        format!("127.0.0.1:{}", self.base + port)
    }
    fn command(&self) -> Vec<String> {
        let flags = [
            ("--master-listen", self.at(0)),
            ("--admin", self.at(1)),
            ("--session-tcp", self.at(2)),
            ("--session-ws", self.at(3)),
        ];
        let [master, admin, tcp, ws] = flags.map(|(flag, at)| [flag.to_owned(), at]);
        let data = ["--data".to_owned(), self.folder.text().to_owned()];
        let up = ["up".to_owned(), "--processes".to_owned()];
        [up, data, master, admin, tcp, ws].concat()
    }
    /// Its data folder.
    #[cfg(feature = "kinesis")]
    pub(crate) fn data(&self) -> &str {
        self.folder.text()
    }
}

/// The process that runs a server, as `up` printed it last.
pub(crate) fn process_id(line: &str) -> u32 {
    let number = line.rsplit_once("(process ").unwrap().1;
    number.trim_end_matches(')').parse().unwrap()
}

fn is_alive(id: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    // After the name comes the state; what is dead and not yet reaped is a zombie.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// Whether a process has a handler for this signal, which else ends it at once.
fn catches(id: u32, signal: Signal) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
    let caught = u64::from_str_radix(caught.trim(), 16).unwrap();
    caught & (1 << (signal.as_raw() - 1)) != 0
}

#[test]
fn a_server_that_is_killed_is_started_again_and_all_end_with_up() {
    let many = Many::new();
    let (process, admin) = many.start();
    let names = ["master ", "session session-1", "session session-2", "game game-1", "game game-2"];
    let line = |name: &str| {
        process.out.wait(name, |line| {
            line.split_whitespace().collect::<Vec<_>>().join(" ").contains(name)
                && line.contains("(process ")
        })
    };
    let mut ids: Vec<u32> = names.iter().map(|name| process_id(&line(name))).collect();
    assert!(ids.iter().all(|id| is_alive(*id)));
    let before = status(&admin);
    assert_eq!((before.masters.len(), up(&before.sessions), up(&before.games)), (2, 2, 2));
    for at in [2, 4] {
        kill(ids[at]);
        let name = names[at].rsplit(' ').next().unwrap();
        let back =
            process.out.wait("its return", |line| line.starts_with(&format!("{name} is back")));
        ids[at] = process_id(&back);
    }
    wait_until("all servers", || {
        let now = status(&admin);
        up(&now.sessions) == 2
            && up(&now.games) == 2
            && now.sessions.len() == 2
            && now.games.len() == 2
    });
    plays(&admin, "20", "1s");
    let (ok, text) = process.stop();
    assert!(ok && text.lines().last().unwrap_or_default().starts_with("draining"), "{text}");
    assert!(!ids.iter().any(|id| is_alive(*id)), "a server outlived `up`");
}

fn kill(id: u32) {
    let id = rustix::process::Pid::from_raw(i32::try_from(id).unwrap()).unwrap();
    rustix::process::kill_process(id, Signal::KILL).unwrap();
}

/// Servers can't start without the cluster's key, and each that dies meanwhile is tried again, as the others are.
#[test]
fn servers_that_fail_to_start_again_are_tried_until_they_run_and_the_others_go_on() {
    let many = Many::new();
    let (process, admin) = many.start();
    let id = |name: &str| {
        process_id(
            &process.out.wait(name, |line| line.contains(name) && line.contains("(process ")),
        )
    };
    let (session, game) = (id("session-2"), id("game-2"));
    let key = std::path::Path::new(many.folder()).join("cluster.key");
    let aside = key.with_extension("aside");
    std::fs::rename(&key, &aside).unwrap();
    let fails = |name: &str| {
        process.out.wait("a failed start", |line| {
            line.starts_with(&format!("{name} did not start"))
                && line.contains("tried again in 1 s")
        })
    };
    kill(session);
    fails("session-2");
    kill(game);
    fails("game-2");
    process.out.wait("a longer pause", |line| line.contains("tried again in 2 s"));
    assert_eq!((up(&status(&admin).sessions), up(&status(&admin).games)), (1, 1));
    std::fs::rename(&aside, &key).unwrap();
    for name in ["session-2", "game-2"] {
        process.out.wait("its return", |line| line.starts_with(&format!("{name} is back")));
    }
    wait_until("all servers", || {
        let now = status(&admin);
        (up(&now.sessions), up(&now.games)) == (2, 2)
    });
    plays(&admin, "10", "1s");
    // And one that can't start does not keep `up` from ending.
    std::fs::rename(&key, &aside).unwrap();
    kill(id("session-1"));
    fails("session-1");
    let (ok, text) = process.stop();
    assert!(ok && text.lines().last().unwrap_or_default().starts_with("draining"), "{text}");
}

/// What the directory remembers of servers that are gone makes nobody ready, and leaves no rows behind.
#[test]
fn up_that_was_killed_is_ready_only_with_its_own_servers() {
    let folder = Folder::new();
    let mut first = start(&anywhere(&folder));
    first.kill();
    let second = start(&anywhere(&folder));
    let now = status(&admin_of(&second));
    assert_eq!(now.masters[0].role, "active");
    let rows: Vec<_> = now.sessions.iter().chain(&now.games).collect();
    let rows: Vec<_> = rows.iter().map(|row| (row.name.as_str(), row.state.as_str())).collect();
    assert_eq!(rows, [("session-1", "up"), ("game-1", "up")]);
    let address = said(&second, "game").split_whitespace().nth(2).unwrap().to_owned();
    assert_eq!(
        format!("{},", now.games[0].addresses[0]),
        address,
        "that of the game server before"
    );
    plays(&admin_of(&second), "10", "1s");
}

/// A master that may lack what the other has decides nothing until an operator says so: `up` says what to do and waits.
#[test]
fn up_is_not_ready_while_no_master_decides_and_says_what_to_do() {
    let mut cluster = Cluster::start_pair(0, 0, &[]);
    // The standby dies, the active goes on alone, and is lost for ever.
    cluster.lose_standby();
    cluster.master.kill();
    let (peer, admin) = (cluster.master.words[1].clone(), format!("127.0.0.1:{}", free_port()));
    let witness = cluster.witness.as_ref().unwrap().words[1].clone();
    let own = ["--master-name", "master-b", "--master-side", "b", "--master-peer", &peer];
    let mut args = anywhere(&cluster.folder);
    args[6] = &admin;
    args.extend(own);
    args.extend(["--master-witness", &witness]);
    let process = Process::spawn(greenroom().args(&args));
    let told = process.out.wait("what to do", |line| line.starts_with("TROUBLE: "));
    assert!(told.contains("master-b") && told.contains("greenroom promote --force"), "{told}");
    let shown = run(&["status", "--admin", &admin]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("TROUBLE") && shown.contains("greenroom promote --force"), "{shown}");
    let printed = process.out.so_far();
    assert!(!printed.iter().any(|line| line.starts_with("Greenroom is up")), "{printed:?}");
    let data = cluster.folder.text();
    let promoted = run(&["promote", "--force", "--admin", &admin, "--data", data]);
    assert!(promoted.status.success(), "{}", String::from_utf8_lossy(&promoted.stderr));
    process.out.wait("its last line", |line| line.starts_with("Ctrl-C drains"));
    let now = status(&admin);
    assert_eq!((now.masters[0].role.as_str(), up(&now.sessions), up(&now.games)), ("active", 1, 1));
    wait_until("the trouble to be over", || status(&admin).masters[0].troubles.is_empty());
}

/// Ctrl-C before anything is there, and in the moment in which the first line is: what was begun ends in its order, and
/// no process is left.
#[test]
fn a_signal_while_up_starts_ends_what_was_begun() {
    let (one, many) = (Folder::new(), Many::new());
    let one_process = || (anywhere(&one).into_iter().map(str::to_owned).collect(), one.text());
    let processes = || (many.command(), many.folder());
    let ways: [(Vec<String>, &str); 2] = [one_process(), processes()];
    for (args, data) in ways {
        for is_up in [false, true] {
            let process = Process::spawn(greenroom().args(&args));
            if is_up {
                process.out.wait("its first line", |line| line.starts_with("Greenroom is up"));
            } else {
                wait_until("it to look at signals", || catches(process.id(), Signal::INT));
            }
            let (ok, text) = process.end_by(Signal::INT);
            assert!(
                ok && text.lines().last().unwrap_or_default().starts_with("draining"),
                "{text}"
            );
            assert!(text.contains("Greenroom is up") || !is_up, "{text}");
        }
        // Who was ready has ended in order, and has said so.
        let sql = "select (select count(*) from process_started) - (select count(*) from process_stopped) as n";
        let found = run(&["logs", "sql", "--data", data, sql, "--format", "csv"]);
        let found = String::from_utf8_lossy(&found.stdout).into_owned();
        let killed: u32 = found.lines().last().unwrap().parse().unwrap();
        assert!(killed <= 1, "only one that was not ready yet: {killed}");
    }
}

/// Ctrl-C in `greenroom up | tee FILE` ends the reader, too.
#[test]
fn up_drains_also_when_nobody_reads_what_it_prints() {
    let folder = Folder::new();
    let mut child = greenroom()
        .args(anywhere(&folder))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().starts_with("Ctrl-C drains")));
    drop(lines);
    wait_until("it to look at signals", || catches(child.id(), Signal::TERM));
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
    let sql = "select count(*) as stopped from events where kind = 'process_stopped'";
    let found = run(&["logs", "sql", "--data", folder.text(), sql]);
    let found = String::from_utf8_lossy(&found.stdout).into_owned();
    assert_eq!(found.split_whitespace().collect::<Vec<_>>(), ["stopped", "1"], "it did not drain");
}

#[test]
fn servers_end_when_up_is_killed() {
    let many = Many::new();
    let (mut process, _) = many.start();
    let text =
        process.out.wait("game-2", |line| line.contains("game-2") && line.contains("(process "));
    let last = process_id(&text);
    process.kill();
    // Their standard error is that of `up`, which ends when the last of them does.
    process.err.whole();
    assert!(!is_alive(last));
}

#[test]
fn a_second_up_says_which_port_is_in_use_and_which_setting_changes_it() {
    let (one, two) = (Folder::new(), Folder::new());
    let first = start(&anywhere(&one));
    let used = said(&first, "master");
    let mut args = anywhere(&two);
    args[4] = &used;
    let error = error_of(&greenroom().args(&args).output().unwrap());
    assert!(
        error.contains(&used) && error.contains("in use") && error.contains("[master] listen"),
        "{error}"
    );
    let admin = admin_of(&first);
    let mut args = anywhere(&two);
    args[6] = &admin;
    let error = error_of(&greenroom().args(&args).output().unwrap());
    assert!(
        error.contains(&admin) && error.contains("in use") && error.contains("[console] listen"),
        "{error}"
    );
    let players = said(&first, "players");
    let tcp = players.split_whitespace().next().unwrap().trim_start_matches("tcp://");
    let mut args = anywhere(&two);
    args[8] = tcp;
    let error = error_of(&greenroom().args(&args).output().unwrap());
    assert!(
        error.contains(tcp) && error.contains("in use") && error.contains("session.tcp"),
        "{error}"
    );
}
