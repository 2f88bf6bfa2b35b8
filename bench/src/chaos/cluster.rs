//! The cluster that is hurt: real processes on loopback, each known by its process id, started again when it dies.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use greenroom_link::ClusterKey;
use rustix::process::{Pid, Signal, kill_process};

use super::ground::{free_ports, pause, write};
use super::proxy::{Proxies, Route};
use super::status::{self, View};

/// A process that died stays down for this long, as it does under a supervisor.
const RESTART_PAUSE: Duration = Duration::from_millis(500);
/// Between two looks at something that changes.
pub(crate) const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// The longest that the cluster may take to be whole at its start.
const START_MAX: Duration = Duration::from_secs(30);
/// Lines of a log that are shown.
const LOG_LINES_SHOWN: usize = 12;

/// What a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Witness,
    Master,
    Session,
    Game,
}

/// One process, in all its lives.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) name: &'static str,
    pub(crate) part: Part,
    words: Vec<String>,
    child: Option<Child>,
    /// When it was noticed to be dead.
    down_since: Option<Instant>,
    /// It is not started again before somebody says so.
    held: bool,
    stopped: bool,
    /// It was killed by us, and not by itself.
    expected: bool,
}

/// How a cluster is made.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    /// The program `greenroom`.
    pub(crate) greenroom: PathBuf,
    /// Where its files lie.
    pub(crate) folder: PathBuf,
    /// Two masters and a witness; else one master that is alone.
    pub(crate) pair: bool,
    /// The witness is a file of both masters, and no process.
    pub(crate) witness_file: bool,
    /// Everything that servers say to masters, and masters to each other, goes through proxies of ours.
    pub(crate) proxied: bool,
    /// More flags of the masters.
    pub(crate) master_flags: Vec<String>,
    /// Instances that each game server takes.
    pub(crate) capacity: usize,
}

/// All of them. Dropping it kills every process.
#[derive(Debug)]
pub(crate) struct Cluster {
    shape: Shape,
    members: Vec<Member>,
    admins: Vec<SocketAddr>,
    /// Where clients connect: an address for each session server.
    pub(crate) doors: Vec<SocketAddr>,
    /// Where masters take links of servers.
    pub(crate) masters: Vec<SocketAddr>,
    pub(crate) proxies: Option<Proxies>,
    /// What ended without being asked to.
    pub(crate) unexpected: Vec<String>,
}

impl Cluster {
    /// Starts all processes and waits until the cluster is whole: an active, a standby, every server up.
    ///
    /// # Errors
    /// When a process can't be started or the cluster is not whole in 30 s.
    pub(crate) fn start(shape: Shape) -> anyhow::Result<Self> {
        ensure!(
            shape.greenroom.is_file(),
            "there is no program {}: `cargo xtask chaos` builds it, --greenroom says where it is",
            shape.greenroom.display()
        );
        fs::create_dir_all(&shape.folder)
            .with_context(|| format!("making {}", shape.folder.display()))?;
        // So that it is there whoever starts first.
        let key = ClusterKey::generate().context("drawing random bits")?;
        write(&shape.folder.join("cluster.key"), &key.expose())?;
        let ports = free_ports(12)?;
        let (masters, admins) = (vec![ports[0], ports[1]], vec![ports[2], ports[3]]);
        let doors = vec![ports[4], ports[5]];
        let count = if shape.pair { 2 } else { 1 };
        let proxies = shape.proxied.then(Proxies::start).transpose()?;
        let mut cluster = Self {
            shape,
            members: Vec::new(),
            admins: admins[..count].to_vec(),
            doors: doors.clone(),
            masters: masters[..count].to_vec(),
            proxies,
            unexpected: Vec::new(),
        };
        let data = cluster.shape.folder.to_string_lossy().into_owned();
        let mut witness = ports[6].to_string();
        if cluster.shape.witness_file {
            witness = format!("sqlite:{data}/witness.db");
        } else if cluster.shape.pair {
            let words = format!("witness --listen {witness} --data {data}");
            cluster.add("witness", Part::Witness, &words, &[])?;
        }
        for (at, name, side) in [(0, "master-a", "a"), (1, "master-b", "b")].iter().take(count) {
            let mut words = format!(
                "master --name {name} --listen {} --admin {} --data {data} --cluster-log greenroom_master=info",
                masters[*at], admins[*at]
            );
            if cluster.shape.pair {
                let peer = cluster.route(name, ["master-b", "master-a"][*at], masters[1 - at])?;
                let witness = match cluster.shape.witness_file {
                    true => witness.clone(),
                    false => cluster.route(name, "witness", ports[6])?.to_string(),
                };
                write!(words, " --side {side} --peer {peer} --witness {witness}")?;
            }
            let flags = cluster.shape.master_flags.clone();
            cluster.add(name, Part::Master, &words, &flags)?;
        }
        for (at, name) in ["session-1", "session-2"].into_iter().enumerate() {
            let list = cluster.routes_to_masters(name)?;
            let words = format!(
                "session --name {name} --data {data} --masters {list} --tcp {} --ws {} --limits load",
                doors[at],
                ports[7 + at]
            );
            cluster.add(name, Part::Session, &words, &[])?;
        }
        for (at, name) in ["game-1", "game-2"].into_iter().enumerate() {
            let list = cluster.routes_to_masters(name)?;
            let words = format!(
                "game --name {name} --data {data} --masters {list} --listen {} --labels bench --capacity {}",
                ports[9 + at],
                cluster.shape.capacity
            );
            cluster.add(name, Part::Game, &words, &[])?;
        }
        if let Err(error) = cluster.wait_until(START_MAX, "whole", View::is_whole) {
            return Err(error.context(cluster.logs()));
        }
        Ok(cluster)
    }

    /// The store of its game servers.
    pub(crate) fn store(&self) -> PathBuf {
        self.shape.folder.join("store.sqlite")
    }

    /// Where `from` dials `to`.
    fn route(
        &mut self,
        from: &'static str,
        to: &'static str,
        target: SocketAddr,
    ) -> anyhow::Result<SocketAddr> {
        match &self.proxies {
            None => Ok(target),
            Some(proxies) => proxies.open(Route { from, to }, target),
        }
    }

    fn routes_to_masters(&mut self, from: &'static str) -> anyhow::Result<String> {
        let mut list = Vec::new();
        for (target, to) in self.masters.clone().into_iter().zip(["master-a", "master-b"]) {
            list.push(self.route(from, to, target)?.to_string());
        }
        Ok(list.join(","))
    }

    fn add(
        &mut self,
        name: &'static str,
        part: Part,
        words: &str,
        more: &[String],
    ) -> anyhow::Result<()> {
        let words = words.split(' ').map(str::to_owned).chain(more.iter().cloned()).collect();
        let mut member = Member {
            name,
            part,
            words,
            child: None,
            down_since: None,
            held: false,
            stopped: false,
            expected: false,
        };
        member.start(&self.shape)?;
        self.members.push(member);
        if part == Part::Witness {
            // Masters ask it at once.
            pause(Duration::from_millis(300));
        }
        Ok(())
    }

    fn member(&mut self, name: &str) -> anyhow::Result<&mut Member> {
        let found = self.members.iter_mut().find(|member| member.name == name);
        found.with_context(|| format!("there is no process {name}"))
    }

    /// Names of all processes of a kind.
    pub(crate) fn names(&self, part: Part) -> Vec<&'static str> {
        self.members.iter().filter(|member| member.part == part).map(|member| member.name).collect()
    }

    /// The process id, while there is one.
    pub(crate) fn pid(&self, name: &str) -> Option<u32> {
        let member = self.members.iter().find(|member| member.name == name)?;
        member.child.as_ref().map(Child::id)
    }

    /// SIGKILL: it has no time to say anything. It is started again by [`Self::tend`].
    ///
    /// # Errors
    /// When it does not run.
    pub(crate) fn kill(&mut self, name: &str) -> anyhow::Result<()> {
        self.signal(name, Signal::KILL)?;
        self.member(name)?.expected = true;
        Ok(())
    }

    /// SIGKILL, and it stays down until [`Self::release`].
    ///
    /// # Errors
    /// When it does not run.
    pub(crate) fn kill_and_hold(&mut self, name: &str) -> anyhow::Result<()> {
        self.kill(name)?;
        self.member(name)?.held = true;
        Ok(())
    }

    /// What was held may be started again.
    ///
    /// # Errors
    /// When there is no such process.
    pub(crate) fn release(&mut self, name: &str) -> anyhow::Result<()> {
        self.member(name)?.held = false;
        Ok(())
    }

    /// Removes the files of a process that is held: its next life begins with nothing.
    ///
    /// # Errors
    /// When they can't be removed.
    pub(crate) fn forget(&mut self, name: &str) -> anyhow::Result<()> {
        let member = self.member(name)?;
        if let Some(mut child) = member.child.take() {
            child.wait().context("waiting for a process that was killed")?;
            member.expected = false;
            member.down_since = Some(Instant::now());
        }
        let folder = self.shape.folder.join(name);
        if folder.exists() {
            fs::remove_dir_all(&folder)
                .with_context(|| format!("removing {}", folder.display()))?;
        }
        Ok(())
    }

    /// SIGSTOP or SIGCONT, or any other.
    ///
    /// # Errors
    /// When it does not run.
    pub(crate) fn signal(&mut self, name: &str, signal: Signal) -> anyhow::Result<()> {
        let member = self.member(name)?;
        let child = member.child.as_ref().with_context(|| format!("{name} does not run"))?;
        kill_process(Pid::from_child(child), signal)
            .with_context(|| format!("sending a signal to {name}"))?;
        member.stopped = signal == Signal::STOP || (member.stopped && signal != Signal::CONT);
        Ok(())
    }

    /// Starts again what died; to be called often.
    ///
    /// # Errors
    /// When a process can't be started.
    pub(crate) fn tend(&mut self) -> anyhow::Result<()> {
        for member in &mut self.members {
            if let Some(child) = &mut member.child
                && let Some(ended) = child.try_wait().context("looking after a process")?
            {
                if !std::mem::take(&mut member.expected) {
                    self.unexpected.push(format!("{} ended by itself: {ended}", member.name));
                }
                member.child = None;
                member.stopped = false;
                member.down_since = Some(Instant::now());
            }
            let is_due = member.down_since.is_some_and(|since| since.elapsed() >= RESTART_PAUSE);
            if is_due && !member.held {
                member.start(&self.shape)?;
            }
        }
        Ok(())
    }

    /// The cluster as its active tells it, and of each master what it says of itself; nothing while nobody answers.
    pub(crate) fn view(&self) -> Option<View> {
        let views =
            self.admins.iter().zip(self.names(Part::Master)).filter_map(|(&admin, name)| {
                let mut view = status::ask(admin).ok()?;
                // What it says of the other one is what it has heard.
                view.masters.retain(|master| master.name == name);
                Some(view)
            });
        let views: Vec<View> = views.collect();
        let masters = views.iter().flat_map(|view| view.masters.clone()).collect();
        let view = views.into_iter().max_by_key(View::rank)?;
        Some(View { masters, of: self.admins.len(), ..view })
    }

    /// Waits until something is so, and starts again meanwhile what died.
    ///
    /// # Errors
    /// When it is not so in time, with what is instead.
    pub(crate) fn wait_until(
        &mut self,
        patience: Duration,
        what: &str,
        is_so: impl Fn(&View) -> bool,
    ) -> anyhow::Result<View> {
        let began = Instant::now();
        loop {
            self.tend()?;
            let view = self.view();
            match view {
                Some(view) if is_so(&view) => return Ok(view),
                other => {
                    let last = other.map_or("nobody answers".to_owned(), |view| view.to_string());
                    ensure!(
                        began.elapsed() < patience,
                        "the cluster is not {what} after {patience:?}: {last}"
                    );
                }
            }
            pause(LOOK_INTERVAL);
        }
    }

    /// Waits until every process that was killed has been started again.
    ///
    /// # Errors
    /// When one can't be started.
    pub(crate) fn wait_until_all_run(&mut self) -> anyhow::Result<()> {
        let runs = |member: &Member| (member.child.is_some() && !member.expected) || member.held;
        while !self.members.iter().all(runs) {
            self.tend()?;
            pause(LOOK_INTERVAL);
        }
        Ok(())
    }

    /// Waits, and starts again meanwhile what died.
    ///
    /// # Errors
    /// When a process can't be started.
    pub(crate) fn wait(&mut self, span: Duration) -> anyhow::Result<()> {
        let until = Instant::now() + span;
        while Instant::now() < until {
            self.tend()?;
            pause(LOOK_INTERVAL.min(until.saturating_duration_since(Instant::now())));
        }
        Ok(())
    }

    /// Name and role of the masters that the cluster knows: the active first.
    ///
    /// # Errors
    /// When there is not one of each.
    pub(crate) fn roles(&self) -> anyhow::Result<[&'static str; 2]> {
        let view = self.view().context("no master answers")?;
        let of = |role: &str| {
            let name = &view.masters.iter().find(|master| master.role == role)?.name;
            self.names(Part::Master).into_iter().find(|known| known == name)
        };
        let active = of("active").with_context(|| format!("no active: {view}"))?;
        let standby = of("standby").with_context(|| format!("no standby: {view}"))?;
        Ok([active, standby])
    }

    /// Hands the active's role over, as an operator does.
    ///
    /// # Errors
    /// When the command fails, with what it said.
    pub(crate) fn switchover(&self) -> anyhow::Result<()> {
        let [active, _] = self.roles()?;
        let at = self.names(Part::Master).iter().position(|name| *name == active);
        let admin = at.and_then(|at| self.admins.get(at)).context("a master has an admin port")?;
        let output = Command::new(&self.shape.greenroom)
            .args(["switchover", "--admin", &admin.to_string(), "--data"])
            .arg(&self.shape.folder)
            .output()
            .context("starting `greenroom switchover`")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`greenroom switchover` failed: {}", said.trim());
        Ok(())
    }

    /// Where a process writes what it has to say.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        log_of(&self.shape.folder, name)
    }

    /// The end of every log.
    pub(crate) fn logs(&self) -> String {
        let mut text = String::from("the logs end so:");
        for member in &self.members {
            let log = fs::read_to_string(self.log(member.name)).unwrap_or_default();
            let mut lines: Vec<&str> = log.lines().collect();
            lines.dedup();
            for line in &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..] {
                text.push_str(&format!("\n  {}: {line}", member.name));
            }
        }
        text
    }

    /// What processes said that must never be said.
    pub(crate) fn bad_words(&self) -> Vec<String> {
        const BAD: [&str; 3] = ["panicked at", "another state than", "diverged"];
        let mut found = Vec::new();
        for member in &self.members {
            let log = fs::read_to_string(self.log(member.name)).unwrap_or_default();
            let lines = log.lines().filter(|line| BAD.iter().any(|bad| line.contains(bad)));
            found.extend(lines.map(|line| format!("{}: {line}", member.name)));
        }
        found
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for member in self.members.iter_mut().rev() {
            if let Some(child) = &mut member.child {
                // One that ended by itself has been noticed before.
                drop(child.kill());
                drop(child.wait());
            }
        }
    }
}

impl Member {
    fn start(&mut self, shape: &Shape) -> anyhow::Result<()> {
        let log = log_of(&shape.folder, self.name);
        let open = |path: &Path| -> anyhow::Result<File> {
            let file = OpenOptions::new().create(true).append(true).open(path);
            file.with_context(|| format!("opening {}", path.display()))
        };
        // The kernel kills it when we end, however that is: see `become_child`.
        let child = Command::new(std::env::current_exe().context("finding our own program")?)
            .args(["child", "any", &std::process::id().to_string()])
            .arg(&shape.greenroom)
            .args(&self.words)
            // An error is told in a line; a panic still has its backtrace.
            .env("RUST_LIB_BACKTRACE", "0")
            .stdin(Stdio::null())
            .stdout(open(&log.with_extension("out"))?)
            .stderr(open(&log)?)
            .spawn()
            .with_context(|| format!("starting {}", self.name))?;
        self.child = Some(child);
        self.down_since = None;
        Ok(())
    }
}

fn log_of(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.log"))
}
