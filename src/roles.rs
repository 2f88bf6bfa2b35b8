//! Roles as threads of this process: each has a runtime of its own, and a stop.

use std::{
    io::IsTerminal as _,
    net::SocketAddr,
    process::ExitCode,
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result, anyhow, bail};
use ecow::EcoString;
use greenroom_console::{AdminToken, Cluster, Console, ConsoleConfig, Reply};
use greenroom_game::{GameConfig, Registry};
use greenroom_link::ClusterKey;
use greenroom_logs::Logs;
use greenroom_master::{Master, MasterConfig, MasterHandle, WitnessConfig, WitnessServer};
use greenroom_protocol::{
    InstanceId, KindName, ServerName,
    wire::admin_master::{Action, Find, InstanceStatus, Placement, Promote, Rows, Status},
};
use greenroom_session::{Additions, SessionConfig, auth::Place};
use greenroom_storage::Storage;
use greenroom_telemetry::Who;
use tokio::{
    io::AsyncReadExt as _,
    signal::unix::{Signal, SignalKind, signal},
    task::LocalSet,
};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::{
    Layer as _, filter::Targets, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

use crate::{
    App,
    keys::{Missing, admin_token, admin_token_file, cluster_key},
    operator::print,
    process_log::{self, ProcessLog},
    settings::{ClusterConfig, Settings},
    store,
    telemetry::Telemetry,
};

/// Name and version of this build, as servers show them to each other.
pub(crate) fn build() -> EcoString {
    concat!("greenroom ", env!("CARGO_PKG_VERSION")).into()
}

/// A role that runs on a thread of its own.
#[derive(Debug)]
pub(crate) struct Role<T> {
    /// What others need to know of it.
    pub(crate) facts: T,
    stop: CancellationToken,
    thread: JoinHandle<Result<()>>,
}

impl<T> Role<T> {
    /// Starts a role: `run` says its facts once it is ready, and runs until the stop.
    pub(crate) fn start<F>(name: &str, stop: &CancellationToken, run: F) -> Result<Self>
    where
        F: AsyncFnOnce(mpsc::SyncSender<T>, CancellationToken) -> Result<()> + Send + 'static,
        T: Send + 'static,
    {
        let (ready, facts) = mpsc::sync_channel(1);
        // Cancelled by itself too, so that `up` can stop roles in an order.
        let stop = stop.child_token();
        let stopping = stop.clone();
        let body = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(run(ready, stopping))
        };
        let thread =
            thread::Builder::new().name(name.into()).spawn(body).context("starting a thread")?;
        match facts.recv() {
            Ok(facts) => Ok(Self { facts, stop, thread }),
            // It ended before it was ready, and says why.
            Err(_) => match thread.join() {
                Ok(result) => Err(result.err().unwrap_or_else(|| anyhow!("{name} ended at once"))),
                Err(_) => bail!("{name} panicked while it started; see above"),
            },
        }
    }

    /// Whether it has ended.
    pub(crate) fn is_over(&self) -> bool {
        self.thread.is_finished()
    }

    /// Stops it and waits until it has drained.
    pub(crate) fn stop(self) -> Result<()> {
        self.stop.cancel();
        self.thread.join().map_err(|_| anyhow!("a server panicked; see above"))?
    }
}

/// What others need to know of a master.
#[derive(Debug)]
pub(crate) struct MasterFacts {
    pub(crate) address: SocketAddr,
    pub(crate) handle: MasterHandle,
}

/// Adapts a master and its process to the admin port, which knows neither.
#[derive(Clone, Debug)]
struct Asked(MasterHandle, greenroom_telemetry::Registry);

impl Cluster for Asked {
    fn status(&self) -> Reply<'_, Status> {
        Box::pin(self.0.status())
    }
    fn find(&self, find: Find) -> Reply<'_, Rows> {
        Box::pin(self.0.find(find))
    }
    fn instance(&self, id: InstanceId) -> Reply<'_, InstanceStatus> {
        Box::pin(self.0.instance(id))
    }
    fn placement(&self, kind: KindName) -> Reply<'_, Placement> {
        Box::pin(self.0.placement(kind))
    }
    fn act(&self, action: Action) -> Reply<'_, ()> {
        Box::pin(self.0.act(action))
    }
    fn switchover(&self) -> Reply<'_, ()> {
        Box::pin(self.0.switchover())
    }
    fn promote(&self, promote: Promote) -> Reply<'_, ()> {
        Box::pin(self.0.promote(promote))
    }
    fn metrics(&self) -> String {
        self.1.prometheus()
    }
}

pub(crate) fn start_master(
    settings: &Settings,
    key: ClusterKey,
    placement: Arc<dyn greenroom_master::Placement>,
    storage: &Storage,
    telemetry: &Telemetry,
    logs: &Logs,
    stop: &CancellationToken,
) -> Result<Role<MasterFacts>> {
    let cluster: ClusterConfig = settings.table("cluster")?;
    let mut config: MasterConfig = settings.table("master")?;
    config.cluster = cluster.name;
    config.folder = settings.data()?.join(config.name.as_str());
    let (counted, who) = (telemetry.registry.clone(), Who::new("master", config.name.as_str()));
    let (tracer, storage) = (telemetry.tracer(who.clone()), storage.clone());
    config.logs = logs.clone();
    let witness = store::witness(settings, &config.cluster, &config.witness)?;
    Role::start("master", stop, async move |ready, stop| {
        let master = async {
            let master = match witness {
                Some(it) => Master::bind_with(&config, key, placement, Box::new(it)).await?,
                None => Master::bind(&config, key, placement).await?,
            };
            let master = master.traced(tracer).stored_in(storage)?;
            counted.add(who, master.metrics());
            let facts = MasterFacts { address: master.address(), handle: master.handle() };
            ready.send(facts).context("nobody waits for the master")?;
            master.run(stop).await;
            Ok(())
        };
        LocalSet::new().run_until(master).await
    })
}

/// The admin port of a master; its fact is its address.
pub(crate) fn start_admin(
    settings: &Settings,
    master: &MasterHandle,
    telemetry: &Telemetry,
    stop: &CancellationToken,
) -> Result<Role<SocketAddr>> {
    let config: ConsoleConfig = settings.table("console")?;
    let data = settings.data()?;
    let token: AdminToken = admin_token(&data, Missing::Make)?;
    let place = admin_token_file(&data).display().to_string();
    let logs = process_log::folder(settings)?;
    let (asked, ports) =
        (Asked(master.clone(), telemetry.registry.clone()), telemetry.ports.clone());
    Role::start("admin", stop, async move |ready, stop| {
        let console = Console::bind(&config, asked, token, place, logs).await?;
        let console = console.counted(ports);
        ready.send(console.address()).context("nobody waits for the admin port")?;
        console.run(stop).await;
        Ok(())
    })
}

/// A witness; its fact is its address.
fn start_witness(
    settings: &Settings,
    key: ClusterKey,
    stop: &CancellationToken,
) -> Result<Role<SocketAddr>> {
    let cluster: ClusterConfig = settings.table("cluster")?;
    let mut config: WitnessConfig = settings.table("witness")?;
    config.file = settings.data()?.join("witness.sqlite");
    config.cluster = cluster.name;
    Role::start("witness", stop, async move |ready, stop| {
        let witness = async {
            let witness = WitnessServer::bind(&config, key).await?;
            ready.send(witness.address()).context("nobody waits for the witness")?;
            witness.run(stop).await;
            Ok(())
        };
        LocalSet::new().run_until(witness).await
    })
}

/// What others need to know of a session server.
#[derive(Debug)]
pub(crate) struct SessionFacts {
    pub(crate) name: ServerName,
    pub(crate) urls: Vec<EcoString>,
    /// Where a browser finds its pages, if it has any.
    pub(crate) page_url: Option<EcoString>,
}

pub(crate) fn start_session(
    settings: &Settings,
    key: &ClusterKey,
    additions: Additions,
    telemetry: &Telemetry,
    logs: &Logs,
    stop: &CancellationToken,
) -> Result<Role<SessionFacts>> {
    let cluster: ClusterConfig = settings.table("cluster")?;
    let mut config: SessionConfig = settings.table("session")?;
    config.logs = logs.clone();
    let public = [config.tcp, config.ws];
    let on_loopback = public.iter().flatten().all(|address| address.ip().is_loopback());
    let place = if on_loopback { Place::Development } else { Place::Production };
    let session = greenroom_session::bind(&config, &cluster.name, key, &build(), place, additions)?;
    let who = Who::new("session", session.name().as_str());
    let session = session.traced(telemetry.tracer(who.clone()));
    telemetry.registry.add(who, session.metrics());
    let facts = SessionFacts {
        name: session.name().clone(),
        urls: session.urls().to_vec(),
        page_url: session.page_url().cloned(),
    };
    Role::start("session", stop, async move |ready, stop| {
        ready.send(facts).context("nobody waits for the session server")?;
        session.run(stop).await?;
        Ok(())
    })
}

/// What others need to know of a game server.
#[derive(Debug)]
pub(crate) struct GameFacts {
    pub(crate) name: ServerName,
    pub(crate) address: SocketAddr,
}

pub(crate) fn start_game(
    settings: &Settings,
    key: &ClusterKey,
    registry: Registry,
    storage: &Storage,
    telemetry: &Telemetry,
    logs: &Logs,
    stop: &CancellationToken,
) -> Result<Role<GameFacts>> {
    let cluster: ClusterConfig = settings.table("cluster")?;
    let mut config: GameConfig = settings.table("game")?;
    config.logs = logs.clone();
    let game = greenroom_game::bind(&config, &cluster.name, key, &build(), registry)?;
    let who = Who::new("game", game.name().as_str());
    let game = game.traced(telemetry.tracer(who.clone())).stored_in(storage.clone());
    telemetry.registry.add(who, game.metrics());
    let facts = GameFacts { name: game.name().clone(), address: game.address() };
    Role::start("game", stop, async move |ready, stop| {
        ready.send(facts).context("nobody waits for the game server")?;
        game.run(stop).await?;
        Ok(())
    })
}

/// What a process of one role does besides: logging, the limit on open files, signals.
pub(crate) fn begin(settings: &Settings) -> Result<CancellationToken> {
    let cluster: ClusterConfig = settings.table("cluster")?;
    greenroom_protocol::ServerName::new(cluster.name.clone())
        .with_context(|| format!("cluster.name = {:?}", cluster.name))?;
    if cluster.data.as_os_str().is_empty() {
        bail!("cluster.data is empty: name a folder");
    }
    let filter: Targets = cluster.log.parse().with_context(|| {
        format!(
            "cluster.log = {:?} is no filter, such as info or warn,greenroom_master=debug",
            cluster.log
        )
    })?;
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    tracing_subscriber::registry().with(lines.with_filter(filter)).init();
    stop_on_bugs();
    raise_file_limit();
    Ok(CancellationToken::new())
}

/// A bug in the decisions of a master or a session server ends the process at once: others take over from a dead
/// process, and nobody from one that is half alive. A game's bug ends its instance only, and never comes here.
fn stop_on_bugs() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        if matches!(thread::current().name(), Some("master" | "session")) {
            crate::process_log::last_words(panic);
            std::process::abort();
        }
    }));
}

/// A server wants as many files as the system allows it.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, "the limit on open files stays at {:?}", limit.current);
        }
    }
}

/// Catches the signals that ask this process to stop, from before it does anything: one that comes while it starts is
/// kept until what was begun can end in its order. The token is cancelled at the first of them, or by whoever has
/// another reason to stop; one signal after that ends the process at once.
pub(crate) fn catch_signals() -> Result<CancellationToken> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut signals = runtime.block_on(async { Signals::catch() })?;
    let asked = CancellationToken::new();
    let told = asked.clone();
    let listen = async move {
        told.run_until_cancelled(signals.next()).await;
        told.cancel();
        signals.next().await;
        std::process::exit(130)
    };
    thread::Builder::new().name("signals".into()).spawn(move || runtime.block_on(listen))?;
    Ok(asked)
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn catch() -> std::io::Result<Self> {
        let terminate = signal(SignalKind::terminate())?;
        Ok(Self { terminate, interrupt: signal(SignalKind::interrupt())? })
    }
    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Waits for the end: a signal, the end of the standard input if it is a child, or a role that ended by itself.
pub(crate) fn wait_for_the_end(
    asked: &CancellationToken,
    child: bool,
    is_over: impl Fn() -> bool,
) -> Result<()> {
    crate::operator::wait(async {
        let parent_gone = async {
            let mut nothing = [0; 64];
            while matches!(tokio::io::stdin().read(&mut nothing).await, Ok(1..)) {}
        };
        let over = async {
            while !is_over() {
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        };
        tokio::select! {
            () = asked.cancelled() => {}
            () = parent_gone, if child => {}
            () = over => {}
        }
        // While the process drains, a signal ends it at once, whatever made it drain.
        asked.cancel();
    })
}

/// Says that a process is ready, where its parent and its operator read it.
fn ready(what: &str) -> Result<()> {
    print(&format!("ready {what}\n"))?;
    Ok(())
}

fn is_child(matches: &clap::ArgMatches) -> bool {
    matches.get_flag("until-stdin-closes")
}

pub(crate) fn master(app: App, matches: &clap::ArgMatches) -> Result<ExitCode> {
    let settings = Settings::read(matches)?;
    let asked = catch_signals()?;
    let stop = begin(&settings)?;
    let key = cluster_key(&settings.table("cluster")?, Missing::Make)?;
    let storage = store::open(&settings, app.schema()?)?;
    let telemetry = Telemetry::start(&settings, &stop)?;
    telemetry.registry.add(Who::process(), storage.metrics().clone());
    let mut log = ProcessLog::start(&settings, "master", &telemetry.registry)?;
    log.watch(&storage)?;
    let master =
        start_master(&settings, key, app.placement, &storage, &telemetry, log.logs(), &stop)?;
    let admin = start_admin(&settings, &master.facts.handle, &telemetry, &stop)?;
    ready(&format!("master {} admin http://{}", master.facts.address, admin.facts))?;
    wait_for_the_end(&asked, is_child(matches), || master.is_over())?;
    admin.stop()?;
    master.stop()?;
    telemetry.stop()?;
    store::close(&storage)?;
    log.stop();
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn witness(matches: &clap::ArgMatches) -> Result<ExitCode> {
    let settings = Settings::read(matches)?;
    let asked = catch_signals()?;
    let stop = begin(&settings)?;
    let key = cluster_key(&settings.table("cluster")?, Missing::Refuse)?;
    let witness = start_witness(&settings, key, &stop)?;
    ready(&format!("witness {}", witness.facts))?;
    wait_for_the_end(&asked, is_child(matches), || witness.is_over())?;
    witness.stop()?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn session(app: &App, matches: &clap::ArgMatches) -> Result<ExitCode> {
    let settings = Settings::read(matches)?;
    let asked = catch_signals()?;
    let stop = begin(&settings)?;
    let key = cluster_key(&settings.table("cluster")?, Missing::Refuse)?;
    let telemetry = Telemetry::start(&settings, &stop)?;
    let log = ProcessLog::start(&settings, "session", &telemetry.registry)?;
    let session =
        start_session(&settings, &key, app.session_additions(), &telemetry, log.logs(), &stop)?;
    let SessionFacts { name, urls, page_url } = &session.facts;
    let urls = urls.iter().chain(page_url).map(EcoString::as_str).collect::<Vec<_>>();
    ready(&format!("session {name} {}", urls.join(" ")))?;
    wait_for_the_end(&asked, is_child(matches), || session.is_over())?;
    session.stop()?;
    telemetry.stop()?;
    log.stop();
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn game(app: App, matches: &clap::ArgMatches) -> Result<ExitCode> {
    let settings = Settings::read(matches)?;
    let asked = catch_signals()?;
    let stop = begin(&settings)?;
    let key = cluster_key(&settings.table("cluster")?, Missing::Refuse)?;
    let storage = store::open_with_spool(&settings, &app.schema()?)?;
    let telemetry = Telemetry::start(&settings, &stop)?;
    telemetry.registry.add(Who::process(), storage.metrics().clone());
    let mut log = ProcessLog::start(&settings, "game", &telemetry.registry)?;
    log.watch(&storage)?;
    let game = start_game(&settings, &key, app.registry, &storage, &telemetry, log.logs(), &stop)?;
    ready(&format!("game {} {}", game.facts.name, game.facts.address))?;
    wait_for_the_end(&asked, is_child(matches), || game.is_over())?;
    game.stop()?;
    telemetry.stop()?;
    store::close(&storage)?;
    log.stop();
    Ok(ExitCode::SUCCESS)
}
