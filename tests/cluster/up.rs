//! `greenroom up`: from nothing to players, and back to nothing.

use std::{
    net::TcpListener,
    process::Command,
    sync::atomic::{AtomicU16, Ordering::Relaxed},
};

use rustix::process::Signal;

use crate::harness::{
    Folder, Process, assert_clean, error_of, greenroom, report, status, up, wait_until,
};

/// The flags of an `up` that listens wherever there is room.
fn anywhere(folder: &Folder) -> Vec<&str> {
    let any = "127.0.0.1:0";
    let ports = ["--master-listen", any, "--admin", any, "--session-tcp", any, "--session-ws", any];
    [&["up", "--data", folder.text()], &ports[..]].concat()
}

fn start(args: &[&str]) -> Process {
    start_as(greenroom().args(args))
}

fn start_as(command: &mut Command) -> Process {
    let process = Process::spawn(command);
    process.out.wait("its last line", |line| line.starts_with("Ctrl-C drains"));
    process
}

/// What stands behind a word in what `up` prints.
pub(crate) fn said(process: &Process, word: &str) -> String {
    let line = process.out.wait(word, |line| line.trim_start().starts_with(word));
    line.trim_start().trim_start_matches(word).trim().to_owned()
}

fn admin_of(process: &Process) -> String {
    said(process, "monitor").trim_start_matches("http://").trim_end_matches('/').to_owned()
}

fn plays(admin: &str, users: &str, span: &str) {
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
        let at = |port: u16| format!("127.0.0.1:{}", self.base + port);
        let (master, admin, tcp, ws) = (at(0), at(1), at(2), at(3));
        let data = self.folder.text();
        let own = [
            "up",
            "--processes",
            "--data",
            data,
            "--master-listen",
            &master,
            "--admin",
            &admin,
            "--session-tcp",
            &tcp,
            "--session-ws",
            &ws,
        ];
        let process = start_as(command.args(own).args(flags));
        (process, admin)
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
        let killed = i32::try_from(ids[at]).unwrap();
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(killed).unwrap(),
            Signal::KILL,
        )
        .unwrap();
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
