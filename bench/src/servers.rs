//! The servers under test: real processes on one core, which do not outlive us.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::{CommandExt, parent_id};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use greenroom_protocol::wire::admin_master::Status;
use rustix::process::{Signal, set_parent_process_death_signal};

use crate::bare::Mode;
use crate::machine;
use crate::wire::Transport;

/// The longest that a server may take to say that it is ready.
const READY_MAX: Duration = Duration::from_secs(60);
/// Lines of a failed server's log that are shown.
const LOG_LINES_SHOWN: usize = 20;

/// How servers are started.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    /// The program `greenroom`.
    pub(crate) greenroom: PathBuf,
    /// The core that all servers share.
    pub(crate) core: usize,
    /// What each of Greenroom's servers is told besides.
    pub(crate) flags: Vec<String>,
    /// Session server and game server run under callgrind, which counts nothing before it is told to, and leaves here
    /// what it has counted.
    pub(crate) counted_in: Option<PathBuf>,
}

impl Setup {
    /// What a role of Greenroom runs under.
    fn under(&self, role: &str) -> Vec<String> {
        match &self.counted_in {
            Some(folder) if role != "master" => {
                let file = folder.join(format!("{role}.out"));
                ["valgrind", "--tool=callgrind", "--instr-atstart=no"]
                    .map(str::to_owned)
                    .into_iter()
                    .chain([format!("--callgrind-out-file={}", file.display())])
                    .collect()
            }
            Some(_) | None => Vec::new(),
        }
    }
}

/// One process.
#[derive(Debug)]
struct Server {
    name: &'static str,
    child: Child,
}

/// The processes of one measurement. Dropping them kills them and removes their data.
#[derive(Debug)]
pub(crate) struct Servers {
    servers: Vec<Server>,
    folder: PathBuf,
    /// Where clients connect.
    pub(crate) address: SocketAddr,
    /// Where servers connect to each other.
    pub(crate) link_ports: Vec<u16>,
    /// The master's admin port.
    admin: SocketAddr,
}

impl Servers {
    /// A bare server.
    ///
    /// # Errors
    /// When it does not get ready.
    pub(crate) fn bare(setup: &Setup, mode: Mode, transport: Transport) -> anyhow::Result<Self> {
        let mut servers = Self::none()?;
        let program = std::env::current_exe().context("finding our own program")?;
        let mode = match mode {
            Mode::Echo => "echo",
            Mode::Rooms => "rooms",
        };
        let words = ["bare", mode, transport.name()].map(str::to_owned);
        let ready = servers.start(setup, "bare", &program, &words)?;
        servers.address = ready.trim().parse().context("the bare server's address")?;
        Ok(servers)
    }

    /// Master, game server and session server of Greenroom, in the order in which they need each other. The game server
    /// takes `capacity` instances.
    ///
    /// # Errors
    /// When one does not get ready.
    pub(crate) fn greenroom(
        setup: &Setup,
        transport: Transport,
        capacity: usize,
    ) -> anyhow::Result<Self> {
        ensure!(
            setup.greenroom.is_file(),
            "there is no program {}: `cargo xtask bench` builds it, --greenroom says where it is",
            setup.greenroom.display()
        );
        let mut servers = Self::none()?;
        let [master, admin, game, tcp, ws] = free_addresses()?;
        let data = servers.folder.to_string_lossy().into_owned();
        let mut start = |role: &'static str, flags: &[(&str, String)]| {
            let mut words = vec![role.to_owned(), "--data".to_owned(), data.clone()];
            for (flag, value) in flags {
                words.extend([format!("--{flag}"), value.clone()]);
            }
            words.extend(setup.flags.iter().cloned());
            match &setup.under(role)[..] {
                [] => servers.start(setup, role, &setup.greenroom, &words),
                [valgrind, options @ ..] => {
                    let program = setup.greenroom.to_string_lossy().into_owned();
                    let words = [options, &[program], &words].concat();
                    servers.start(setup, role, Path::new(valgrind), &words)
                }
            }
        };
        start("master", &[("listen", master.to_string()), ("admin", admin.to_string())])?;
        start(
            "game",
            &[
                ("master", master.to_string()),
                ("listen", game.to_string()),
                ("capacity", capacity.to_string()),
                // What players are kept from: the kinds that only the benchmark needs.
                ("labels", "bench".to_owned()),
            ],
        )?;
        start(
            "session",
            &[
                ("master", master.to_string()),
                ("tcp", tcp.to_string()),
                ("ws", ws.to_string()),
                ("limits", "load".to_owned()),
            ],
        )?;
        servers.link_ports = vec![master.port(), game.port()];
        servers.admin = admin;
        servers.address = match transport {
            Transport::Tcp => tcp,
            Transport::Ws => ws,
        };
        Ok(servers)
    }

    fn none() -> anyhow::Result<Self> {
        static RUNS: AtomicU32 = AtomicU32::new(0);
        let run = RUNS.fetch_add(1, Ordering::Relaxed);
        let folder =
            std::env::temp_dir().join(format!("greenroom-bench-{}-{run}", std::process::id()));
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let (servers, link_ports) = (Vec::new(), Vec::new());
        Ok(Self { servers, folder, address, link_ports, admin: address })
    }

    /// Starts a process and waits for its line `ready …`, of which it gives what follows.
    fn start(
        &mut self,
        setup: &Setup,
        name: &'static str,
        program: &Path,
        words: &[String],
    ) -> anyhow::Result<String> {
        let log = self.folder.join(format!("{name}.log"));
        let mut child = Command::new(std::env::current_exe().context("finding our own program")?)
            .args(["child", &setup.core.to_string(), &std::process::id().to_string()])
            .arg(program)
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&log).with_context(|| format!("making {}", log.display()))?)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let output = child.stdout.take().context("a pipe for the server's output")?;
        self.servers.push(Server { name, child });
        let (to_ready, ready) = mpsc::sync_channel(1);
        // Reads on after that line, so that the server never waits for somebody to take its output.
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if let Some(rest) = line.strip_prefix("ready") {
                    drop(to_ready.try_send(rest.to_owned()));
                }
            }
        });
        match ready.recv_timeout(READY_MAX) {
            Ok(rest) => Ok(rest),
            Err(reason) => {
                let what = match reason {
                    RecvTimeoutError::Timeout => format!("is not ready after {READY_MAX:?}"),
                    RecvTimeoutError::Disconnected => "ended before it was ready".to_owned(),
                };
                bail!("{} {} {what}{}", program.display(), words.join(" "), self.end_of_log(name))
            }
        }
    }

    fn end_of_log(&self, name: &str) -> String {
        let log = fs::read_to_string(self.folder.join(format!("{name}.log"))).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let shown = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
        shown.iter().map(|line| format!("\n  {name}: {line}")).collect()
    }

    /// Adds what the servers wrote last to an error, for somebody who looks for its reason.
    pub(crate) fn explained<T>(&self, result: anyhow::Result<T>) -> anyhow::Result<T> {
        let logs = || -> String {
            self.servers.iter().map(|server| self.end_of_log(server.name)).collect()
        };
        result.map_err(|error| match logs() {
            logs if logs.is_empty() => error,
            logs => error.context(format!("the servers' logs end so:{logs}")),
        })
    }

    /// The cluster at a glance, as the master's admin port tells it.
    ///
    /// # Errors
    /// When it can't be asked.
    pub(crate) fn status(&self) -> anyhow::Result<Status> {
        let answer = get(self.admin, "/status").context("asking the admin port for the status")?;
        serde_json::from_slice(&answer).context("reading the status")
    }

    /// User and system time of all of them.
    ///
    /// # Errors
    /// When one is gone.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        self.servers.iter().map(|server| server.measured(machine::cpu)).sum()
    }

    /// User and system time of the one called `name`; nothing if there is none.
    ///
    /// # Errors
    /// When it is gone.
    pub(crate) fn cpu_of(&self, name: &str) -> anyhow::Result<Duration> {
        (self.servers.iter().filter(|server| server.name == name))
            .map(|server| server.measured(machine::cpu))
            .sum()
    }

    /// Resident bytes of all of them.
    ///
    /// # Errors
    /// When one is gone.
    pub(crate) fn rss(&self) -> anyhow::Result<u64> {
        self.servers.iter().map(|server| server.measured(machine::rss)).sum()
    }

    /// Resident bytes of the one that holds the connections, which is the last that was started.
    ///
    /// # Errors
    /// When it is gone.
    pub(crate) fn rss_of_front(&self) -> anyhow::Result<u64> {
        self.servers.last().context("no server")?.measured(machine::rss)
    }

    /// Name and process id of each.
    pub(crate) fn processes(&self) -> Vec<(&'static str, u32)> {
        self.servers.iter().map(|server| (server.name, server.child.id())).collect()
    }
}

impl Server {
    fn measured<T>(&self, measure: impl Fn(u32) -> anyhow::Result<T>) -> anyhow::Result<T> {
        measure(self.child.id()).with_context(|| format!("the server {} has ended", self.name))
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for server in self.servers.iter_mut().rev() {
            // One that ended by itself has been noticed by whoever measured it.
            drop(server.child.kill());
            drop(server.child.wait());
        }
        drop(fs::remove_dir_all(&self.folder));
    }
}

/// What our own program writes when it is run with these words on a core, with its errors on ours.
///
/// # Errors
/// When it fails.
pub(crate) fn output_on(core: usize, words: &[String]) -> anyhow::Result<String> {
    let program = std::env::current_exe().context("finding our own program")?;
    let output = Command::new(&program)
        .args(["child", &core.to_string(), &std::process::id().to_string()])
        .arg(&program)
        .args(words)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("starting {}", program.display()))?;
    ensure!(output.status.success(), "`{}` failed: {}", words.join(" "), output.status);
    String::from_utf8(output.stdout).context("output that is no text")
}

/// Becomes `program` on `core`, or on any; the kernel kills it when our parent ends, however that ends.
///
/// # Errors
/// When it can't be pinned or started, or the parent has ended already.
pub(crate) fn become_child(
    core: Option<usize>,
    parent: u32,
    program: &Path,
    words: &[OsString],
) -> anyhow::Result<()> {
    core.map(machine::pin).transpose()?;
    set_parent_process_death_signal(Some(Signal::KILL)).context("prctl")?;
    ensure!(parent_id() == parent, "the benchmark ended before its server began");
    Err(Command::new(program).args(words).exec())
        .with_context(|| format!("starting {}", program.display()))
}

/// The body of what is answered over HTTP.
fn get(address: SocketAddr, path: &str) -> anyhow::Result<Vec<u8>> {
    let mut socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(READY_MAX))?;
    write!(socket, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer)?;
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n").context("no HTTP")?;
    let body = answer.split_off(head + 4);
    let head = String::from_utf8_lossy(&answer).to_lowercase();
    ensure!(head.starts_with("http/1.1 200 "), "{}", head.lines().next().unwrap_or_default());
    ensure!(!head.contains("\r\ntransfer-encoding:"), "a body in chunks");
    Ok(body)
}

/// Addresses on loopback that nobody listens on, all different.
fn free_addresses<const N: usize>() -> anyhow::Result<[SocketAddr; N]> {
    let bind = |_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let listeners: Vec<TcpListener> =
        (0..N).map(bind).collect::<Result<_, _>>().context("looking for free ports")?;
    let mut addresses = [SocketAddr::from((Ipv4Addr::LOCALHOST, 0)); N];
    for (address, listener) in addresses.iter_mut().zip(&listeners) {
        *address = listener.local_addr().context("looking for free ports")?;
    }
    Ok(addresses)
}
