//! What the stories speak through: real processes of the real binary, and clients of the SDK. When the command line
//! changes, this file does, and no story.

pub mod disk;

use std::{
    io::{BufRead as _, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use greenroom::client::{
    Builder, Client, ClientError, Event, Refusal, Room, Status as ClientStatus,
};
use greenroom_protocol::wire::admin_master::{ServerStatus, Status};
use rustix::process::{Pid, Signal, kill_process};

/// How long anything may take before a story fails: far longer than it takes, and longer than bots wait for a server.
const PATIENCE: Duration = Duration::from_secs(60);

/// The binary under test.
pub fn greenroom() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_greenroom"));
    // Nothing of the surroundings may be a setting.
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("GREENROOM_")) {
        command.env_remove(name);
    }
    command
}

/// Runs the binary to its end.
pub fn run(args: &[&str]) -> Output {
    greenroom().args(args).output().unwrap()
}

/// A folder of this story alone, gone with it.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name =
            format!("greenroom-story-{}-{}", std::process::id(), COUNT.fetch_add(1, Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
    pub fn path(&self) -> &Path {
        &self.0
    }
    pub fn text(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _gone_already = std::fs::remove_dir_all(&self.0);
    }
}

/// What a process prints, line by line, as it comes.
pub struct Lines(Arc<(Mutex<Printed>, Condvar)>);

#[derive(Default)]
struct Printed {
    lines: Vec<String>,
    is_over: bool,
}

impl Lines {
    fn of(from: impl Read + Send + 'static) -> Self {
        let shared = Arc::new((Mutex::default(), Condvar::new()));
        let writer: Arc<(Mutex<Printed>, Condvar)> = Arc::clone(&shared);
        thread::spawn(move || {
            for line in BufReader::new(from).lines() {
                writer.0.lock().unwrap().lines.push(line.unwrap());
                writer.1.notify_all();
            }
            writer.0.lock().unwrap().is_over = true;
            writer.1.notify_all();
        });
        Self(shared)
    }

    /// Waits for the first line like this.
    pub fn wait(&self, what: &str, is_it: impl Fn(&str) -> bool) -> String {
        let (lines, _) =
            self.until(|printed| printed.is_over || printed.lines.iter().any(|line| is_it(line)));
        let found = lines.iter().find(|line| is_it(line)).cloned();
        found.unwrap_or_else(|| panic!("waited in vain for {what}:\n{}", lines.join("\n")))
    }

    /// All of it that was printed until now.
    pub fn so_far(&self) -> Vec<String> {
        self.0.0.lock().unwrap().lines.clone()
    }

    /// All of it, once nobody is left who could print more: neither the process nor a child of it.
    pub fn whole(&self) -> String {
        let (lines, is_over) = self.until(|printed| printed.is_over);
        assert!(is_over, "it still runs, having printed:\n{}", lines.join("\n"));
        lines.join("\n")
    }

    fn until(&self, is_enough: impl Fn(&Printed) -> bool) -> (Vec<String>, bool) {
        let printed = self.0.0.lock().unwrap();
        let (printed, _) =
            self.0.1.wait_timeout_while(printed, PATIENCE, |printed| !is_enough(printed)).unwrap();
        (printed.lines.clone(), printed.is_over)
    }
}

/// A process that runs while the story goes on; killed with the story, if it still lives.
pub struct Process {
    child: Child,
    /// The words of its line `ready …`.
    pub words: Vec<String>,
    pub out: Lines,
    pub err: Lines,
}

impl Process {
    /// Starts a process and waits until it says `ready`.
    pub fn start<A: AsRef<std::ffi::OsStr>>(args: &[A]) -> Self {
        let mut process = Self::spawn(greenroom().args(args));
        let line = process.out.wait("ready", |line| line.starts_with("ready "));
        process.words = line.split_whitespace().skip(1).map(str::to_owned).collect();
        process
    }

    /// Starts a process that need not become ready.
    pub fn spawn(command: &mut Command) -> Self {
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let out = Lines::of(child.stdout.take().unwrap());
        let err = Lines::of(child.stderr.take().unwrap());
        Self { child, words: Vec::new(), out, err }
    }

    /// Its number in the system.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL: it has no time to say anything.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGKILL of several at one moment.
    pub fn kill_at_once<'a>(processes: impl IntoIterator<Item = &'a mut Self>) {
        let mut processes: Vec<_> = processes.into_iter().collect();
        for process in &mut processes {
            process.child.kill().unwrap();
        }
        for process in processes {
            process.child.wait().unwrap();
        }
    }

    /// SIGTERM, as a supervisor sends it: it drains. Gives whether it ended well, and what it printed.
    pub fn stop(self) -> (bool, String) {
        self.end_by(Signal::TERM)
    }

    /// As [`Process::stop`], but gives what it and its children said of what went wrong.
    pub fn stop_with_errors(mut self) -> (bool, String) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        let text = self.err.whole();
        (self.child.wait().unwrap().success(), text)
    }

    /// Sends a signal and waits for the end.
    pub fn end_by(mut self, signal: Signal) -> (bool, String) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        let text = self.out.whole();
        (self.child.wait().unwrap().success(), text)
    }

    /// SIGSTOP: it is alive and says nothing, until [`Process::go_on`].
    pub fn stall(&self) {
        kill_process(Pid::from_child(&self.child), Signal::STOP).unwrap();
    }

    /// SIGCONT.
    pub fn go_on(&self) {
        kill_process(Pid::from_child(&self.child), Signal::CONT).unwrap();
    }

    /// Waits for the end that comes by itself.
    pub fn ended(mut self) -> Output {
        let (stdout, stderr) = (self.out.whole().into_bytes(), self.err.whole().into_bytes());
        Output { status: self.child.wait().unwrap(), stdout, stderr }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _reaped_already = self.child.wait();
        if thread::panicking() {
            eprintln!("{:?} said:\n{}", self.words, self.err.0.0.lock().unwrap().lines.join("\n"));
        }
    }
}

/// Waits until something holds. What it looks at is another process, which tells nobody when it changes.
#[expect(
    clippy::disallowed_methods,
    reason = "a pause between two looks, so that looking costs little"
)]
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// The cluster whose admin port is there, at a glance.
pub fn status(admin: &str) -> Status {
    let output = run(&["status", "--json", "--admin", admin]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// How many of these servers are up.
pub fn up(servers: &[ServerStatus]) -> usize {
    servers.iter().filter(|server| server.state == "up").count()
}

/// A port on which nobody listens, of those that the system gives to nobody by itself: a server that comes back finds
/// it free.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    for _ in 0..10_000 {
        let next = std::process::id().wrapping_mul(97).wrapping_add(NEXT.fetch_add(1, Relaxed));
        let port = u16::try_from(15_000 + next % 15_000).unwrap();
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no port is free");
}

/// A cluster of one master or two, and as many session servers and game servers as a story starts.
pub struct Cluster {
    pub folder: Folder,
    /// The master, or the one of side a.
    pub master: Process,
    /// The master of side b.
    pub second: Option<Process>,
    pub witness: Option<Process>,
    master_flags: [Vec<String>; 2],
    /// What says where documents are, for every process that has some.
    shared_flags: Vec<String>,
    admin: String,
    pub sessions: Vec<Process>,
    pub games: Vec<Process>,
}

impl Cluster {
    /// A master, `sessions` session servers and `games` game servers that have found each other.
    pub fn start(sessions: usize, games: usize) -> Self {
        Self::start_with(sessions, games, &[])
    }

    /// The same, with more flags for the session servers.
    pub fn start_with(sessions: usize, games: usize, session_flags: &[&str]) -> Self {
        Self::start_on(&[], sessions, games, session_flags)
    }

    /// The same, with flags for masters and game servers: those that name a store, say.
    pub fn start_on(
        shared_flags: &[&str],
        sessions: usize,
        games: usize,
        session_flags: &[&str],
    ) -> Self {
        let folder = Folder::new();
        let (listen, admin) = (free_port(), free_port());
        let flags = format!(
            "master --data {} --listen 127.0.0.1:{listen} --admin 127.0.0.1:{admin}",
            folder.text()
        );
        let shared_flags: Vec<String> = shared_flags.iter().map(|&flag| flag.to_owned()).collect();
        let mut flags: Vec<String> = flags.split(' ').map(str::to_owned).collect();
        flags.extend(shared_flags.clone());
        let master = Process::start(&flags);
        let cluster = Self {
            folder,
            master,
            second: None,
            witness: None,
            master_flags: [flags, Vec::new()],
            shared_flags,
            admin: format!("127.0.0.1:{admin}"),
            sessions: Vec::new(),
            games: Vec::new(),
        };
        cluster.with_servers(sessions, games, session_flags)
    }

    /// Two masters and a witness, with servers that know both.
    pub fn start_pair(sessions: usize, games: usize, session_flags: &[&str]) -> Self {
        Self::start_pair_on(None, sessions, games, session_flags)
    }

    /// The same, with flags for masters and game servers; a store that they name (`--store URL` first) is the witness
    /// too.
    pub fn start_pair_on(
        shared_flags: Option<&[&str]>,
        sessions: usize,
        games: usize,
        session_flags: &[&str],
    ) -> Self {
        let folder = Folder::new();
        let data = folder.text();
        // The first makes the cluster's key, which the others need.
        let (listens, witness_port) = ([free_port(), free_port()], free_port());
        let admins = [free_port(), free_port()];
        let shared_flags = shared_flags.unwrap_or_default();
        let witness_at = match shared_flags {
            ["--store", url, ..] => (*url).to_owned(),
            _ => format!("127.0.0.1:{witness_port}"),
        };
        let shared_flags: Vec<String> = shared_flags.iter().map(|&flag| flag.to_owned()).collect();
        let flags = ["a", "b"].map(|side| {
            let (this, other) = if side == "a" { (0, 1) } else { (1, 0) };
            let flags = format!(
                "master --data {data} --name master-{side} --side {side} --listen 127.0.0.1:{} --peer 127.0.0.1:{} \
                 --witness {witness_at} --admin 127.0.0.1:{} --cluster-log info",
                listens[this],
                listens[other],
                admins[this]
            );
            let flags = flags.split(' ').map(str::to_owned);
            flags.chain(shared_flags.iter().cloned()).collect::<Vec<_>>()
        });
        let master = Process::start(&flags[0]);
        let witness = (!matches!(&shared_flags[..], [flag, ..] if flag == "--store")).then(|| {
            let flags = format!(
                "witness --data {data} --listen 127.0.0.1:{witness_port} --cluster-log info"
            );
            Process::start(&flags.split(' ').collect::<Vec<_>>())
        });
        // The first one there is the active.
        let first = format!("127.0.0.1:{}", admins[0]);
        wait_until("the first master to decide", || status(&first).masters[0].role == "active");
        let second = Process::start(&flags[1]);
        let cluster = Self {
            folder,
            master,
            second: Some(second),
            witness,
            master_flags: flags,
            shared_flags,
            admin: admins.map(|port| format!("127.0.0.1:{port}")).join(","),
            sessions: Vec::new(),
            games: Vec::new(),
        };
        let cluster = cluster.with_servers(sessions, games, session_flags);
        cluster.wait_for_pair();
        cluster
    }

    fn with_servers(mut self, sessions: usize, games: usize, session_flags: &[&str]) -> Self {
        for _ in 0..sessions {
            self.start_session(session_flags);
        }
        for _ in 0..games {
            self.start_game(&[]);
        }
        self.wait_for("its servers", |status| {
            up(&status.sessions) == sessions && up(&status.games) == games
        });
        self
    }

    /// Waits until one master decides and the other has everything.
    pub fn wait_for_pair(&self) {
        self.wait_for("an active and a standby", |status| {
            let roles: Vec<_> = status.masters.iter().map(|master| &*master.role).collect();
            roles == ["active", "standby"] && status.masters.iter().all(|master| master.in_sync)
        });
    }

    /// The second master, which is the standby, dies. Returns once the first decides alone by the witness's record too,
    /// which is a new epoch: before that it is called active all the same.
    pub fn lose_standby(&mut self) {
        let before = self.status().masters[0].epoch.clone();
        self.second.as_mut().unwrap().kill();
        self.wait_for("the active to be alone", |status| {
            let active = &status.masters[0];
            status.masters.len() == 1 && active.role == "active" && active.epoch != before
        });
    }

    /// The master that decides.
    pub fn active(&mut self) -> &mut Process {
        let name = self.status().masters[0].name.to_string();
        let is_second = self.master_flags[1].contains(&name);
        if is_second { self.second.as_mut().unwrap() } else { &mut self.master }
    }

    /// Starts those masters again that were killed.
    pub fn start_masters(&mut self) {
        for (index, flags) in self.master_flags.iter().enumerate() {
            let process = if index == 0 { Some(&mut self.master) } else { self.second.as_mut() };
            if let Some(process) = process
                && process.child.try_wait().unwrap().is_some()
            {
                *process = Process::start(flags);
            }
        }
    }

    /// Both masters die at one moment.
    pub fn kill_masters(&mut self) {
        Process::kill_at_once(std::iter::once(&mut self.master).chain(&mut self.second));
    }

    /// Starts the master of side a (0) or b (1) again.
    pub fn start_master(&mut self, side: usize) {
        let process = Process::start(&self.master_flags[side]);
        if side == 0 { self.master = process } else { self.second = Some(process) }
    }

    /// Where the masters take links.
    fn masters(&self) -> String {
        let masters = std::iter::once(&self.master).chain(&self.second);
        masters.map(|master| master.words[1].as_str()).collect::<Vec<_>>().join(",")
    }

    pub fn start_session(&mut self, flags: &[&str]) {
        let any = "127.0.0.1:0";
        let masters = self.masters();
        let mut args = vec![
            "session",
            "--data",
            self.folder.text(),
            "--masters",
            &masters,
            "--tcp",
            any,
            "--ws",
            any,
        ];
        args.extend(flags);
        self.sessions.push(Process::start(&args));
    }

    /// The master dies, and comes back with what is on its disk.
    pub fn restart_master(&mut self) {
        self.master.kill();
        self.start_masters();
    }

    /// The master dies and its disk with it, and another begins in its place: it knows what the servers say, and
    /// nothing else.
    pub fn replace_master(&mut self) {
        self.master.kill();
        std::fs::remove_dir_all(self.folder.path().join("master-1")).unwrap();
        // What was founded is told apart by the second.
        let second = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let died = second();
        wait_until("the next second", || second() > died);
        self.start_masters();
    }

    pub fn start_game(&mut self, flags: &[&str]) {
        let masters = self.masters();
        let mut args = vec!["game", "--data", self.folder.text()];
        args.extend(self.shared_flags.iter().map(String::as_str));
        args.extend(flags);
        if !flags.contains(&"--masters") {
            args.extend(["--masters", &masters]);
        }
        if !flags.contains(&"--labels") {
            // So that it runs the kinds that servers of players don't: stories play them, too.
            args.extend(["--labels", "bench"]);
        }
        self.games.push(Process::start(&args));
    }

    /// The admin ports, `host:port` with a comma between two.
    pub fn admin(&self) -> &str {
        &self.admin
    }

    /// URLs of a session server: TCP, then WebSocket.
    pub fn urls(&self, session: usize) -> [&str; 2] {
        let words = &self.sessions[session].words;
        [&words[2], &words[3]]
    }

    /// A client that knows every session server.
    pub fn client(&self) -> Builder {
        Client::builder()
            .servers((0..self.sessions.len()).map(|session| self.urls(session)[0].to_owned()))
    }

    pub fn status(&self) -> Status {
        status(self.admin())
    }

    /// Waits until the cluster's status is as wanted.
    pub fn wait_for(&self, what: &str, is_there: impl Fn(&Status) -> bool) {
        wait_until(what, || is_there(&self.status()));
    }

    /// Runs bots to their end; their report.
    pub fn bots(&self, flags: &[&str]) -> (bool, serde_json::Value) {
        report(&self.start_bots(flags).ended())
    }

    /// Starts bots that play while the story goes on.
    pub fn start_bots(&self, flags: &[&str]) -> Process {
        Process::spawn(greenroom().args(["bots", "--json", "--admin", self.admin()]).args(flags))
    }
}

/// Waits for the end of a client's session, and gives why it ended.
pub async fn end_of(client: &Client) -> Refusal {
    let mut status = client.status();
    let closed = status.wait_for(|status| matches!(status, ClientStatus::Closed(_)));
    match &*patient("the end of the session", closed).await.unwrap() {
        ClientStatus::Closed(refusal) => refusal.clone(),
        other => panic!("{other:?}"),
    }
}

/// Waits for what must come, as long as anything may take.
pub async fn patient<T>(what: &str, future: impl Future<Output = T>) -> T {
    let result = tokio::time::timeout(PATIENCE, future).await;
    result.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

/// Takes events until one is what is waited for.
pub async fn event<T>(
    room: &mut Room,
    what: &str,
    mut is_it: impl FnMut(&mut Room, Event) -> Option<T>,
) -> T {
    let found = async {
        while let Some(event) = room.next_event().await {
            if let Some(found) = is_it(room, event) {
                return found;
            }
        }
        panic!("the seat was gone before {what}");
    };
    patient(what, found).await
}

/// What the client was refused with.
pub fn refusal<T: std::fmt::Debug>(result: Result<T, ClientError>) -> Refusal {
    match result.unwrap_err() {
        ClientError::Refused(refusal)
        | ClientError::Left(refusal)
        | ClientError::Closed(refusal) => refusal,
        other => panic!("no refusal: {other}"),
    }
}

/// The report of bots that have ended.
pub fn report(output: &Output) -> (bool, serde_json::Value) {
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_default();
    let report = serde_json::from_str(last)
        .unwrap_or_else(|_| panic!("no report: {text}{}", String::from_utf8_lossy(&output.stderr)));
    (output.status.success(), report)
}

/// Asserts that nothing was lost, doubled, out of order, or refused.
pub fn assert_clean(report: &serde_json::Value) {
    for zero in ["errors", "lost", "doubled", "out_of_order"] {
        assert_eq!(report[zero], 0, "{zero}: {report:#}");
    }
    assert!(report["operations"].as_u64().unwrap() > 0, "{report:#}");
}

/// What a command that failed said.
pub fn error_of(output: &Output) -> String {
    assert!(!output.status.success(), "it succeeded: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The rows of an answer in CSV, without its head.
pub fn rows_of(output: &Output) -> Vec<String> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().skip(1).map(str::to_owned).collect()
}

/// What the event log of a data folder answers.
pub fn rows(data: &str, question: &str) -> Vec<String> {
    rows_of(&run(&["logs", "sql", question, "--data", data, "--format", "csv"]))
}
