//! `greenroom up`: every role on one machine, as threads of one process, or each as a process that may be killed.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{ExitCode, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::ArgMatches;
use greenroom_console::client;
use greenroom_protocol::wire::admin_master::{MasterStatus, Status};
use greenroom_telemetry::Who;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    sync::mpsc,
    task::{JoinError, JoinSet},
    time,
};
use tokio_util::sync::CancellationToken;

use crate::{
    App,
    keys::{Missing, admin_token, cluster_key, write_private},
    operator::{print, wait},
    process_log::ProcessLog,
    roles::{
        begin, catch_signals, start_admin, start_game, start_master, start_session,
        wait_for_the_end,
    },
    settings::Settings,
    store,
    telemetry::Telemetry,
};

/// How long the servers may take to find each other.
const READY_MAX: Duration = Duration::from_secs(20);
/// The same where no master decides until an operator has helped.
const HELP_MAX: Duration = Duration::from_secs(600);
const DRAINING: &str =
    "draining: players go elsewhere while the drain's time lasts; Ctrl-C again stops at once\n";
/// How long a process that died stays down, so that one that can't live does not spin.
const RESTART_PAUSE: Duration = Duration::from_millis(500);
/// How long one that could not be started stays down: the first time, doubled each time after that, and at most.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(30);
/// Servers of each role of `--processes`: two, so that one may die.
const COPIES: u16 = 2;
/// How far the ports of a second server are from those of the first.
const PORTS_APART: u16 = 10;

pub(crate) fn run(app: App, matches: &ArgMatches) -> Result<ExitCode> {
    let settings = Settings::read(matches)?;
    let kinds = app
        .registry
        .kinds()
        .into_iter()
        .map(|kind| kind.name.to_string())
        .collect::<Vec<_>>()
        .join(", ");
    match matches.get_flag("processes") {
        true => in_processes(settings, &kinds),
        false => in_one(app, settings, &kinds),
    }
}

fn in_one(app: App, mut settings: Settings, kinds: &str) -> Result<ExitCode> {
    let began = Instant::now();
    let asked = catch_signals()?;
    let stop = begin(&settings)?;
    let data = settings.data()?;
    let _lock = store::lock(&data)?;
    let key = cluster_key(&settings.table("cluster")?, Missing::Make)?;
    let storage = store::open_with_spool(&settings, &app.schema()?)?;
    // The game server begins with this process and has nothing that the master could not know of. Who runs others
    // beside it sets the time that they are waited for.
    settings.or("master.rejoin_grace", "0s")?;
    let telemetry = Telemetry::start(&settings, &stop)?;
    telemetry.registry.add(Who::process(), storage.metrics().clone());
    let mut log = ProcessLog::start(&settings, "up", &telemetry.registry)?;
    log.watch(&storage)?;
    let logs = log.logs();
    let additions = app.session_additions();
    let master =
        start_master(&settings, key.clone(), app.placement, &storage, &telemetry, logs, &stop)?;
    let address = master.facts.address.to_string();
    settings.or("session.masters", &address)?;
    settings.or("game.masters", &address)?;
    if settings.text("master.peer").is_none_or(|peer| peer.is_empty()) {
        // The same at each start, whatever the ports, so that none of an earlier one stays behind. Beside another
        // master there may be another `up`.
        settings.or("session.name", "session-1")?;
        settings.or("game.name", "game-1")?;
    }
    let admin = start_admin(&settings, &master.facts.handle, &telemetry, &stop)?;
    let session = start_session(&settings, &key, additions, &telemetry, logs, &stop)?;
    let game = start_game(&settings, &key, app.registry, &storage, &telemetry, logs, &stop)?;
    let servers = [session.facts.name.as_str(), game.facts.name.as_str()];
    let ready = until_ready(async || master.facts.handle.status().await.ok(), &servers);
    let is_ready = wait(asked.run_until_cancelled(ready))?.transpose()?.is_some();
    let urls = session.facts.urls.iter().map(ToString::to_string).collect::<Vec<_>>();
    let rows = [
        ("players", urls.join("  ")),
        ("monitor", format!("http://{}/", admin.facts)),
        ("master", address),
        ("session", session.facts.name.to_string()),
        ("game", format!("{} on {}, running {kinds}", game.facts.name, game.facts.address)),
        ("data", data.display().to_string()),
        ("store", storage.backend().to_owned()),
    ];
    if is_ready {
        announce(began, &rows, session.facts.page_url.as_deref(), &admin.facts.to_string())?;
    }
    wait_for_the_end(&asked, false, || {
        master.is_over() || session.is_over() || game.is_over() || admin.is_over()
    })?;
    say(DRAINING);
    session.stop()?;
    game.stop()?;
    admin.stop()?;
    master.stop()?;
    telemetry.stop()?;
    store::close(&storage)?;
    log.stop();
    Ok(ExitCode::SUCCESS)
}

/// Waits until a master decides and these servers, by their names, are up.
async fn until_ready(status: impl AsyncFn() -> Option<Status>, servers: &[&str]) -> Result<()> {
    let began = Instant::now();
    let mut is_told = false;
    let mut decides_from = None;
    loop {
        let now = time::timeout(READY_MAX, status()).await.ok().flatten();
        let missing = missing(now.as_ref(), servers, &mut decides_from);
        if missing.is_empty() {
            return Ok(());
        }
        // Who can help is an operator, and has to ask the masters that run here.
        let waits_for_help =
            decides_from.is_none().then(|| now.as_ref().and_then(trouble)).flatten();
        if let Some(trouble) = waits_for_help.as_ref().filter(|_| !is_told) {
            say(&format!("TROUBLE: {trouble}\n"));
            is_told = true;
        }
        let max = if waits_for_help.is_some() { HELP_MAX } else { READY_MAX };
        if began.elapsed() > max {
            let missing = missing.join("; ");
            bail!(
                "the servers did not find each other in {} s: {missing}; `--cluster-log info` shows what they do",
                max.as_secs()
            );
        }
        time::sleep(Duration::from_millis(5)).await;
    }
}

/// What the cluster lacks until it is ready. `decides_from` is the end of the log when a master was first seen that
/// decides: what it found out as it began, such as which servers that it remembers are gone, stands before that.
fn missing(
    status: Option<&Status>,
    servers: &[&str],
    decides_from: &mut Option<u64>,
) -> Vec<String> {
    let Some(status) = status else { return vec!["no master answers".into()] };
    let Some(active) = status.masters.iter().find(|master| master.role == "active") else {
        let told = |master: &MasterStatus| {
            let troubles: String = master.troubles.iter().map(|it| format!(" ({it})")).collect();
            format!("{} is {}{troubles}", master.name, master.role)
        };
        let masters: Vec<_> = status.masters.iter().map(told).collect();
        return vec![format!("no master decides: {}", masters.join(", "))];
    };
    let from = *decides_from.get_or_insert(active.lsn);
    if active.commit < from {
        return vec![format!("{} has not committed what it began with", active.name)];
    }
    let is_up = |name: &str| {
        let mut all = status.sessions.iter().chain(&status.games);
        all.any(|server| server.name.as_str() == name && server.state == "up")
    };
    let missing = servers.iter().filter(|name| !is_up(name));
    missing.map(|name| format!("{name} is not up")).collect()
}

/// What is wrong with a master, if something is.
fn trouble(status: &Status) -> Option<String> {
    let master = status.masters.iter().find(|master| !master.troubles.is_empty())?;
    Some(format!("{}: {}", master.name, master.troubles.join("; ")))
}

fn announce(
    began: Instant,
    rows: &[(&str, String)],
    page_url: Option<&str>,
    admin: &str,
) -> Result<()> {
    let mut text = format!("Greenroom is up, in {:.2} s.\n\n", began.elapsed().as_secs_f64());
    for (what, is) in rows {
        text.push_str(&format!("  {what:9}{is}\n"));
    }
    let binary = std::env::args().next().unwrap_or_default();
    let admin = if admin == "127.0.0.1:4080" { String::new() } else { format!(" --admin {admin}") };
    text.push('\n');
    if let Some(page_url) = page_url {
        text.push_str(&format!("Play in the browser:  {page_url}\n"));
    }
    text.push_str(&format!(
        "Let bots play:        {binary} bots --users 100 --for 10s --game arena{admin}\nCtrl-C drains and stops.\n"
    ));
    print(&text)?;
    std::io::stdout().flush()?;
    Ok(())
}

/// One server of `--processes`.
#[derive(Clone, Debug)]
struct Server {
    /// Its command.
    role: &'static str,
    name: String,
    /// Flags besides the file.
    flags: Vec<String>,
}

fn in_processes(mut settings: Settings, kinds: &str) -> Result<ExitCode> {
    let began = Instant::now();
    let asked = catch_signals()?;
    begin(&settings)?;
    let data = settings.data()?;
    let _lock = store::lock(&data)?;
    if store::config(&settings)?.store == "memory" {
        bail!(
            "--store memory is the memory of one process: with --processes, use sqlite:FILE or couchbase://HOST"
        );
    }
    cluster_key(&settings.table("cluster")?, Missing::Make)?;
    admin_token(&data, Missing::Make)?;
    let session: greenroom_session::SessionConfig = settings.table("session")?;
    let ports = |copy: u16| -> Vec<String> {
        [("--tcp", session.tcp), ("--ws", session.ws)]
            .into_iter()
            .filter_map(|(flag, address)| Some((flag, address?)))
            .flat_map(|(flag, mut address)| {
                if address.port() != 0 {
                    address.set_port(address.port() + copy * PORTS_APART);
                }
                [flag.to_owned(), address.to_string()]
            })
            .collect()
    };
    let listen = settings.text("master.listen").unwrap_or_else(|| "127.0.0.1:4100".into());
    let admin = settings.text("console.listen").unwrap_or_else(|| "127.0.0.1:4080".into());
    if listen.ends_with(":0") || admin.ends_with(":0") {
        bail!(
            "with --processes, --master-listen and --admin need a port: the processes find each other by it"
        );
    }
    let listens = [listen.clone(), beside(&listen)?];
    let admins = [admin.clone(), beside(&admin)?];
    settings.or("session.masters", &listens.join(","))?;
    settings.or("game.masters", &listens.join(","))?;
    let witness = settings.text("master.witness");
    let witness =
        witness.unwrap_or_else(|| format!("sqlite:{}", data.join("witness.sqlite").display()));
    // Each of the others has a port of its own for its metrics, if there is to be one; a master has its admin port.
    let mut scrape = settings.text("telemetry.listen").filter(|listen| !listen.is_empty());
    settings.set("telemetry.listen", "")?;
    let file = data.join("up.toml");
    write_private(&file, &settings.to_toml()?)
        .with_context(|| format!("writing {}", file.display()))?;
    let others = [format!("http://{}/", admins[1]), format!("http://{}/", admins[0])];
    let mut servers = Vec::new();
    for (copy, side) in ["a", "b"].into_iter().enumerate() {
        let flags = [
            ("--side", side),
            ("--listen", &listens[copy]),
            ("--peer", &listens[1 - copy]),
            ("--admin", &admins[copy]),
            ("--console-other", &others[copy]),
            ("--witness", &witness),
        ];
        let flags = flags.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value.to_owned()]);
        let name = format!("master-{}", copy + 1);
        servers.push(Server { role: "master", name, flags: flags.collect() });
    }
    let admin = admins.join(",");
    let mut scraped = || -> Result<Vec<String>> {
        let Some(listen) = scrape.clone() else { return Ok(Vec::new()) };
        if !listen.ends_with(":0") {
            scrape = Some(beside(&listen)?);
        }
        Ok(vec!["--telemetry-listen".to_owned(), listen])
    };
    for copy in 0..COPIES {
        servers.push(Server {
            role: "session",
            name: format!("session-{}", copy + 1),
            flags: [ports(copy), scraped()?].concat(),
        });
    }
    for copy in 0..COPIES {
        servers.push(Server {
            role: "game",
            name: format!("game-{}", copy + 1),
            flags: scraped()?,
        });
    }
    wait(async {
        let (deaths, mut died) = mpsc::channel(8);
        let mut running = Vec::new();
        let started = start_all(servers, &file, &admin, &deaths, &asked, &mut running).await;
        // One that failed fails them all; one that a signal kept from starting is none that failed.
        if !asked.is_cancelled() {
            started?;
            let mut rows: Vec<_> = running
                .iter()
                .map(|process: &Process| {
                    (process.server.role, format!("{} (process {})", process.facts, process.id))
                })
                .collect();
            rows.push(("monitor", format!("http://{}/", admins[0])));
            rows.push(("kinds", kinds.to_owned()));
            rows.push(("data", data.display().to_string()));
            // The last word of a session server that has pages is where they are.
            let page_url = running
                .iter()
                .filter(|process| process.server.role == "session")
                .filter_map(|process| process.facts.rsplit(' ').next())
                .find(|word| word.starts_with("http"))
                .map(str::to_owned);
            announce(began, &rows, page_url.as_deref(), &admin)?;
        }
        let mut restarts = JoinSet::new();
        loop {
            let (name, status): (String, ExitStatus) = tokio::select! {
                biased;
                () = asked.cancelled() => break,
                // Before the deaths: of one that is back and died at once, its return is told first.
                Some(back) = restarts.join_next() => {
                    put_back(&mut running, back)?;
                    continue;
                }
                Some(death) = died.recv() => death,
            };
            say(&format!("{name} ended ({status}); it is started again\n"));
            if let Some(process) = running.iter().find(|process| process.server.name == name) {
                let server = process.server.clone();
                restarts.spawn(restart(server, file.clone(), deaths.clone(), asked.clone()));
            }
        }
        // What is just being started gives up or is there, and then ends in its turn.
        while let Some(back) = restarts.join_next().await {
            put_back(&mut running, back)?;
        }
        say(DRAINING);
        // Clients go first, then instances, then the directory: one master after the other, so that the last one knows
        // that it is alone and can begin alone.
        for names in [&["session"][..], &["game"], &["master-2"], &["master-1"]] {
            let are_meant = |process: &&mut Process| {
                let Server { role, name, .. } = &process.server;
                names.iter().any(|name_or_role| name_or_role == role || name_or_role == name)
            };
            for process in running.iter_mut().filter(are_meant) {
                process.stopping.cancel();
            }
            for process in running.iter_mut().filter(are_meant) {
                process.over.cancelled().await;
            }
        }
        Ok(ExitCode::SUCCESS)
    })?
}

/// Starts the servers in turn, and waits until all of them have found each other or `asked` ends it.
async fn start_all(
    servers: Vec<Server>,
    file: &Path,
    admin: &str,
    deaths: &mpsc::Sender<(String, ExitStatus)>,
    asked: &CancellationToken,
    running: &mut Vec<Process>,
) -> Result<()> {
    // The master first: the others ask for its key file and dial it.
    for server in servers {
        running.push(Process::start(server, file, deaths.clone(), asked).await?);
    }
    let served = running.iter().map(|process| &process.server);
    let served = served.filter(|server| server.role != "master");
    let served: Vec<_> = served.map(|server| server.name.as_str()).collect();
    let ready = until_ready(async || client::status(admin).await.ok(), &served);
    asked.run_until_cancelled(ready).await.unwrap_or(Ok(()))
}

/// Starts a server that died, as often as it takes, until it runs. Nothing if all is to end.
async fn restart(
    server: Server,
    file: PathBuf,
    deaths: mpsc::Sender<(String, ExitStatus)>,
    stop: CancellationToken,
) -> Option<Process> {
    stop.run_until_cancelled(time::sleep(RESTART_PAUSE)).await?;
    let mut pause = RETRY_PAUSE;
    loop {
        match Process::start(server.clone(), &file, deaths.clone(), &stop).await {
            Ok(process) => return Some(process),
            Err(_) if stop.is_cancelled() => return None,
            Err(error) => {
                say(&format!("{error:#}; it is tried again in {} s\n", pause.as_secs()));
            }
        }
        stop.run_until_cancelled(time::sleep(pause)).await?;
        pause = (pause * 2).min(RETRY_PAUSE_MAX);
    }
}

/// Takes a server that was started again, if it was, in the place of the one that died.
fn put_back(running: &mut [Process], back: Result<Option<Process>, JoinError>) -> Result<()> {
    let Some(process) = back.context("starting a server again")? else { return Ok(()) };
    say(&format!("{} is back (process {})\n", process.server.name, process.id));
    let at = running.iter_mut().find(|old| old.server.name == process.server.name);
    *at.context("a server that is started again was there before")? = process;
    Ok(())
}

/// Prints what operators may read: servers do not end because nobody does.
fn say(text: &str) {
    if let Err(error) = print(text) {
        tracing::warn!(%error, "{}", text.trim_end());
    }
}

/// The same host, some ports further.
fn beside(address: &str) -> Result<String> {
    let parts = address.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    let (host, port): (&str, u16) =
        parts.with_context(|| format!("{address:?} is no HOST:PORT"))?;
    let port = port.checked_add(PORTS_APART);
    let port =
        port.with_context(|| format!("{address}: there is no port {PORTS_APART} further"))?;
    Ok(format!("{host}:{port}"))
}

/// A server that runs as a child of this process.
struct Process {
    server: Server,
    id: u32,
    /// What it said when it was ready.
    facts: String,
    stopping: CancellationToken,
    over: CancellationToken,
}

impl Process {
    /// Starts a server and waits until it is ready, which may end with `stop`.
    async fn start(
        server: Server,
        file: &Path,
        deaths: mpsc::Sender<(String, ExitStatus)>,
        stop: &CancellationToken,
    ) -> Result<Self> {
        let binary: PathBuf = std::env::current_exe().context("finding this program's file")?;
        let mut child = Command::new(binary)
            .arg(server.role)
            .args(["--config".as_ref(), file.as_os_str()])
            .args(["--name", &server.name])
            .arg("--until-stdin-closes")
            .args(&server.flags)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Ctrl-C is for this process, which then stops them in order.
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {}", server.name))?;
        let id = child.id().unwrap_or_default();
        let stdout = child.stdout.take().context("its output is piped")?;
        let mut lines = BufReader::new(stdout).lines();
        let facts = match stop.run_until_cancelled(lines.next_line()).await {
            Some(facts) => facts?,
            // It serves nobody yet, and looks at its standard input only once it does.
            None => {
                child.start_kill().with_context(|| format!("ending {}", server.name))?;
                None
            }
        };
        let Some(facts) = facts else {
            let status = child.wait().await?;
            bail!("{} did not start ({status}); its error stands above", server.name);
        };
        // `ready ROLE` and what follows: the row names the role already.
        let facts = facts.split_whitespace().skip(2).collect::<Vec<_>>().join(" ");
        let (stopping, over) = (CancellationToken::new(), CancellationToken::new());
        let watch = watch(child, server.name.clone(), stopping.clone(), over.clone(), deaths);
        tokio_util::task::TaskTracker::new().spawn(watch);
        Ok(Self { server, id, facts, stopping, over })
    }
}

/// Waits for the end of a child; when it is to stop, closes its standard input.
async fn watch(
    mut child: Child,
    name: String,
    stopping: CancellationToken,
    over: CancellationToken,
    deaths: mpsc::Sender<(String, ExitStatus)>,
) {
    // Out of its hands: waiting for a child closes the standard input that it still has.
    let stdin = child.stdin.take();
    let status = tokio::select! {
        status = child.wait() => status,
        () = stopping.cancelled() => {
            drop(stdin);
            child.wait().await
        }
    };
    over.cancel();
    if let Ok(status) = status
        && !stopping.is_cancelled()
        && deaths.send((name, status)).await.is_err()
    {
        tracing::debug!("nobody restarts servers any more");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(role: &str, lsn: u64, commit: u64, game: &str) -> Status {
        let server = |name: &str, state: &str| {
            serde_json::json!({
                "name": name, "state": state, "addresses": [], "build": "", "load": 0, "capacity": 1,
                "busy_permille": 0
            })
        };
        let master = serde_json::json!({
            "name": "master-1", "side": "a", "role": role, "epoch": "0.1", "lsn": lsn,
            "incarnation": greenroom_protocol::Incarnation(1),
            "commit": commit, "lag": 0, "in_sync": true, "troubles": ["promote it"]
        });
        let status = serde_json::json!({
            "cluster": "greenroom", "masters": [master], "sessions": [server("session-1", "up")],
            "games": [server("game-7", "up"), server("game-1", game)], "users": 0, "instances": 0
        });
        serde_json::from_value(status).unwrap()
    }

    #[test]
    fn a_cluster_is_ready_once_a_master_decides_and_its_own_servers_are_up() {
        let mut from = None;
        let mut lacks = |status: Option<&Status>| {
            missing(status, &["session-1", "game-1"], &mut from).join("; ")
        };
        assert_eq!(lacks(None), "no master answers");
        let idle = status("learner", 9, 9, "up");
        assert_eq!(lacks(Some(&idle)), "no master decides: master-1 is learner (promote it)");
        // It begins with servers of an earlier life that it has still to take for lost.
        assert!(lacks(Some(&status("active", 12, 9, "up"))).contains("has not committed"));
        assert!(lacks(Some(&status("active", 20, 11, "up"))).contains("has not committed"));
        assert_eq!(lacks(Some(&status("active", 20, 12, "suspect"))), "game-1 is not up");
        assert_eq!(lacks(Some(&status("active", 20, 12, "up"))), "");
    }
}
