//! What the stories speak through: real processes of the real binary, and clients of the SDK. When the command line
//! changes, this file does, and no story.

use std::{
    io::{BufRead as _, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
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
    pub fn start(args: &[&str]) -> Self {
        let mut process = Self::spawn(greenroom().args(args));
        let line = process.out.wait("ready", |line| line.starts_with("ready "));
        process.words = line.split_whitespace().skip(1).map(str::to_owned).collect();
        process
    }

    /// Starts a process; nothing if it ends before it is ready.
    fn try_start(args: &[&str]) -> Option<Self> {
        let mut process = Self::spawn(greenroom().args(args));
        let is_ready = |line: &String| line.starts_with("ready ");
        let (lines, _) =
            process.out.until(|printed| printed.is_over || printed.lines.iter().any(is_ready));
        let line = lines.into_iter().find(is_ready)?;
        process.words = line.split_whitespace().skip(1).map(str::to_owned).collect();
        Some(process)
    }

    /// Starts a process that need not become ready.
    pub fn spawn(command: &mut Command) -> Self {
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let out = Lines::of(child.stdout.take().unwrap());
        let err = Lines::of(child.stderr.take().unwrap());
        Self { child, words: Vec::new(), out, err }
    }

    /// SIGKILL: it has no time to say anything.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, as a supervisor sends it: it drains. Gives whether it ended well, and what it printed.
    pub fn stop(self) -> (bool, String) {
        self.end_by(Signal::TERM)
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

/// A cluster of one master, and as many session servers and game servers as a story starts.
pub struct Cluster {
    pub folder: Folder,
    pub master: Process,
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
        let folder = Folder::new();
        let any = "127.0.0.1:0";
        let master =
            Process::start(&["master", "--data", folder.text(), "--listen", any, "--admin", any]);
        let mut cluster = Self { folder, master, sessions: Vec::new(), games: Vec::new() };
        for _ in 0..sessions {
            cluster.start_session(session_flags);
        }
        for _ in 0..games {
            cluster.start_game(&[]);
        }
        cluster.wait_for("its servers", |status| {
            up(&status.sessions) == sessions && up(&status.games) == games
        });
        cluster
    }

    pub fn start_session(&mut self, flags: &[&str]) {
        let any = "127.0.0.1:0";
        let master = self.master.words[1].clone();
        let mut args = vec![
            "session",
            "--data",
            self.folder.text(),
            "--master",
            &master,
            "--tcp",
            any,
            "--ws",
            any,
        ];
        args.extend(flags);
        self.sessions.push(Process::start(&args));
    }

    /// The master dies, and another begins in its place: it knows what the servers say, and nothing else.
    pub fn restart_master(&mut self) {
        let (listen, admin) = (self.master.words[1].clone(), self.admin().to_owned());
        self.master.kill();
        let data = self.folder.text();
        let args = ["master", "--data", data, "--listen", &listen, "--admin", &admin];
        // Somebody's connection may have been given the port meanwhile, for as long as it lasts.
        let mut started = None;
        wait_until("the master's port", || {
            started = Process::try_start(&args);
            started.is_some()
        });
        self.master = started.unwrap();
    }

    pub fn start_game(&mut self, flags: &[&str]) {
        let master = self.master.words[1].clone();
        let mut args = vec!["game", "--data", self.folder.text(), "--master", &master];
        args.extend(flags);
        if !flags.contains(&"--labels") {
            // So that it runs the kinds that servers of players don't: stories play them, too.
            args.extend(["--labels", "bench"]);
        }
        self.games.push(Process::start(&args));
    }

    /// The admin port, `host:port`.
    pub fn admin(&self) -> &str {
        self.master.words[3].trim_start_matches("http://")
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
