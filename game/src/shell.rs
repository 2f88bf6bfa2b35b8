//! Sockets, tasks and clocks around the host. One thread; nothing is awaited while it is borrowed.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ecow::{EcoString, eco_format};
use greenroom_game_core::{Registry, StoreRefusal, StoreTicket};
use greenroom_link::{
    ClusterKey, HasMasters, Incoming, Link, LinkError, Me, Outgoing, Strangers, Writer, accept,
    stay_linked,
};
use greenroom_protocol::wire::server_server::{Identity, Role};
use greenroom_protocol::{Incarnation, InstanceId, MasterLink, ServerName};
use greenroom_storage::Storage;
use greenroom_telemetry::{Span, SpanKind, Tracer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, oneshot};
use tokio::task::LocalSet;
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::documents::Documents;
use crate::host::{Chore, Host, LinkKey, Ordered, Settings};
use crate::snapshots;
use crate::{GameConfig, GameError, Metrics};

/// How long a link may take for what is still to be written when the server stops.
const FAREWELL_MAX: Duration = Duration::from_secs(1);
/// The longest between two loads that the master is told, since they renew the lease. Shorter for a short lease.
const LOAD_INTERVAL_MAX: Duration = Duration::from_secs(1);
/// A pause after an accept that failed, for want of files or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A game server that has its port and is not running yet. It can be sent to the thread that runs it.
pub struct Game {
    registry: Registry,
    me: Me,
    masters: Vec<String>,
    listener: StdListener,
    address: SocketAddr,
    settings: Settings,
    report_interval: Duration,
    drain_timeout: Duration,
    storage: Option<Storage>,
    metrics: Arc<Metrics>,
}

impl fmt::Debug for Game {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Game({}, {})", self.me.identity.name, self.address)
    }
}

/// Takes the port of a game server. It accepts nobody until [`Game::run`].
///
/// # Errors
/// When the port can't be used, there is no kind to run or no capacity for it, or the grid of ticks or the lease is
/// none.
pub fn bind(
    config: &GameConfig,
    cluster: &EcoString,
    key: &ClusterKey,
    build: &EcoString,
    registry: Registry,
) -> Result<Game, GameError> {
    if registry.kinds().is_empty() {
        return Err(GameError::NoKinds);
    }
    if !(Duration::from_millis(1)..=Duration::from_millis(20)).contains(&config.tick_grid) {
        return Err(GameError::TickGrid(config.tick_grid));
    }
    if config.capacity == 0 {
        return Err(GameError::NoCapacity);
    }
    if !(Duration::from_secs(2)..=Duration::from_secs(10)).contains(&config.lease) {
        return Err(GameError::Lease(config.lease));
    }
    let failed = |source| GameError::Listen { address: config.listen, source };
    let listener = StdListener::bind(config.listen).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let name = config.name.clone().unwrap_or_else(|| {
        ServerName::new(eco_format!("game-{}", address.port()))
            .expect("a short name without control characters")
    });
    let logs = config.logs.of(name.as_str(), "game");
    let identity = Identity {
        listens: Some(eco_format!("{address}")),
        ..Identity::new(
            cluster.clone(),
            Role::Game,
            name,
            Incarnation(getrandom::u64().expect("randomness: the cluster's key was made from it")),
            build.clone(),
        )
    };
    let settings = Settings {
        address: config.public_address.clone().unwrap_or_else(|| eco_format!("{address}")),
        build: build.clone(),
        capacity: config.capacity,
        labels: config.labels.clone(),
        tick_grid: config.tick_grid,
        lease: config.lease,
        has_store: false,
        logs,
        tracer: Tracer::default(),
    };
    Ok(Game {
        registry,
        me: Me { identity, key: key.clone() },
        masters: config.masters.clone(),
        listener,
        address,
        settings,
        report_interval: config
            .report_interval
            .min(config.lease / 4)
            .clamp(Duration::from_millis(10), LOAD_INTERVAL_MAX),
        drain_timeout: config.drain_timeout,
        storage: None,
        metrics: Arc::default(),
    })
}

impl Game {
    /// Its name in the cluster.
    pub const fn name(&self) -> &ServerName {
        &self.me.identity.name
    }
    /// Where session servers reach it.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }
    /// Has it trace what is sampled.
    #[must_use]
    pub fn traced(mut self, tracer: Tracer) -> Self {
        self.settings.tracer = tracer;
        self
    }
    /// The same, with a store. Without one the documents of games are refused as unavailable, and no kind is durable.
    #[must_use]
    pub fn stored_in(mut self, storage: Storage) -> Self {
        self.storage = Some(storage);
        self.settings.has_store = true;
        self
    }
    /// What it counts.
    pub fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.metrics)
    }
    /// Runs until `stop`, then takes nothing new and returns when nobody is connected any more or the drain's time is
    /// over; whoever is still there then is told. To be called on the thread that is to be this server, inside a
    /// runtime of that thread only.
    ///
    /// # Errors
    /// When the port can't be used after all.
    pub async fn run(self, stop: CancellationToken) -> Result<(), GameError> {
        LocalSet::new().run_until(self.run_locally(stop)).await
    }
    async fn run_locally(self, stop: CancellationToken) -> Result<(), GameError> {
        let address = self.address;
        let listener = TcpListener::from_std(self.listener)
            .map_err(|source| GameError::Listen { address, source })?;
        let shell = Rc::new(Shell {
            host: RefCell::new(Host::new(self.registry, self.settings, self.metrics)),
            documents: self.storage.clone().map(Documents::new),
            storage: self.storage,
            me: self.me,
            strangers: Strangers::default(),
            asked: RefCell::default(),
            rescheduled: Notify::new(),
            emptied: Notify::new(),
            tasks: TaskTracker::new(),
            stopped: CancellationToken::new(),
        });
        shell.spawn(Rc::clone(&shell).listen(listener));
        shell.spawn(Rc::clone(&shell).keep_time());
        shell.spawn(Rc::clone(&shell).report(self.report_interval));
        for (place, address) in self.masters.into_iter().enumerate() {
            shell.spawn(Rc::clone(&shell).stay_linked(MasterLink(place), address));
        }
        stop.cancelled().await;
        shell.with_host(Host::drain);
        if time::timeout(self.drain_timeout, shell.deserted()).await.is_err() {
            tracing::warn!(
                "players are still there after the drain's time: their instances are closed"
            );
        }
        shell.with_host(Host::close_all);
        let told = async {
            while shell.host.borrow().upward.is_waiting_for_word() {
                shell.emptied.notified().await;
            }
        };
        if time::timeout(FAREWELL_MAX, told).await.is_err() {
            tracing::debug!("the master did not acknowledge everything before the server stopped");
        }
        shell.host.borrow().close_links();
        shell.stopped.cancel();
        shell.tasks.close();
        if time::timeout(FAREWELL_MAX, shell.tasks.wait()).await.is_err() {
            tracing::debug!("some links took no farewell");
        }
        Ok(())
    }
}

/// The order that an instance gave last for a document, and its end.
type LastOrder = (StoreTicket, oneshot::Receiver<()>);

struct Shell {
    host: RefCell<Host>,
    documents: Option<Rc<Documents>>,
    storage: Option<Storage>,
    me: Me,
    strangers: Strangers,
    /// Of each document that an instance waits for, the end of the order that was given last.
    asked: RefCell<BTreeMap<(InstanceId, EcoString), LastOrder>>,
    /// Something may be due earlier than it was.
    rescheduled: Notify,
    /// An instance has ended, or the master has acknowledged something.
    emptied: Notify,
    tasks: TaskTracker,
    stopped: CancellationToken,
}

impl Shell {
    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.tasks.spawn_local(task);
    }
    /// Lets the host work, and does afterwards what only tasks can.
    fn with_host<T>(self: &Rc<Self>, work: impl FnOnce(&mut Host) -> T) -> T {
        let mut host = self.host.borrow_mut();
        let due = host.next_due();
        let result = work(&mut host);
        if host.next_due() < due || (due.is_none() && host.next_due().is_some()) {
            self.rescheduled.notify_one();
        }
        let full = host.take_full();
        let orders = host.take_orders();
        let chores = host.take_chores();
        if host.is_deserted() || !host.upward.is_waiting_for_word() {
            self.emptied.notify_one();
        }
        drop(host);
        for (key, outgoing) in full {
            self.spawn(Rc::clone(self).refresh(key, outgoing));
        }
        for ordered in orders {
            self.store(ordered);
        }
        for chore in chores {
            self.spawn(Rc::clone(self).keep(chore));
        }
        result
    }
    /// Has the store do something for an instance that is durable.
    async fn keep(self: Rc<Self>, chore: Chore) {
        // Nothing is durable without a store.
        let Some(storage) = &self.storage else { return };
        match chore {
            Chore::Save(save) => {
                let of = (save.instance, save.incarnation);
                let result = snapshots::save(storage, save).await;
                self.with_host(|host| host.saved(of, result));
            }
            Chore::Load(instance, incarnation, parent) => {
                let result = match parent {
                    Some(parent) => snapshots::load(&storage.within(parent), instance).await,
                    None => snapshots::load(storage, instance).await,
                };
                self.with_host(|host| host.loaded((instance, incarnation), result));
            }
            Chore::SetAside(note, loaded) => {
                let (instance, incarnation) = (note.instance, note.incarnation);
                let result = snapshots::set_aside(storage, *note, loaded).await;
                match result {
                    Ok(()) => Self::remove(storage, instance, incarnation).await,
                    Err(error) => {
                        tracing::error!(%instance, %error, "a snapshot that can't be read was not set aside");
                    }
                }
            }
            Chore::Fail(failed) => {
                let of = (failed.instance, failed.incarnation);
                let sentence = snapshots::failed(storage, failed).await;
                self.with_host(|host| host.sentenced(of, &sentence));
            }
            Chore::Remove(instance, incarnation) => {
                Self::remove(storage, instance, incarnation).await;
            }
        }
    }
    async fn remove(storage: &Storage, instance: InstanceId, incarnation: Incarnation) {
        if let Err(error) = snapshots::remove(storage, (instance, incarnation)).await {
            tracing::debug!(%instance, %error, "the snapshot of what is over stays");
        }
    }
    /// Hands what an instance asked to the store, in the order in which it was asked, and tells it the answers in the
    /// same order for each document: tasks that wait at the same time do not wake in turn by themselves.
    fn store(self: &Rc<Self>, ordered: Ordered) {
        let Ordered { instance, incarnation, order, trace } = ordered;
        let (of, ticket) = ((instance, incarnation), order.ticket);
        let mut span = trace.as_ref().map(|trace| trace.child("store", SpanKind::Internal));
        if let Some(span) = &mut span {
            span.set("greenroom.key", order.key.as_str());
        }
        let parent = span.as_ref().map(Span::parent);
        let document = (instance, order.key.clone());
        let (ended, end) = oneshot::channel::<()>();
        let before = self.asked.borrow_mut().insert(document.clone(), (ticket, end));
        let documents = self.documents.as_ref().ok_or(StoreRefusal::Unavailable);
        let taken = documents.and_then(|documents| documents.perform(order, parent));
        let shell = Rc::clone(self);
        self.spawn(async move {
            let outcome = match taken {
                Ok(under_way) => under_way.await,
                Err(refusal) => Err(refusal),
            };
            if let (Some(span), Err(refusal)) = (&mut span, &outcome) {
                span.fail(refusal);
            }
            drop(span);
            if let Some((_, before)) = before {
                // It ends by being dropped.
                let _ended = before.await;
            }
            shell.with_host(|host| host.stored(of, ticket, outcome, trace));
            if shell.asked.borrow().get(&document).is_some_and(|(last, _)| *last == ticket) {
                shell.asked.borrow_mut().remove(&document);
            }
            drop(ended);
        });
    }
    /// Waits until a link that was full has room, and sends its members what they missed.
    async fn refresh(self: Rc<Self>, key: LinkKey, outgoing: Outgoing) {
        if self.stopped.run_until_cancelled(outgoing.room()).await.is_some() {
            self.with_host(|host| host.has_room(key));
        }
    }
    async fn deserted(&self) {
        while !self.host.borrow().is_deserted() {
            self.emptied.notified().await;
        }
    }

    /// Makes steps when they are due: one timer for the whole thread.
    async fn keep_time(self: Rc<Self>) {
        loop {
            let next = self.host.borrow().next_due().map(Instant::from_std);
            let rescheduled = self.rescheduled.notified();
            let waited = async {
                match next {
                    None => rescheduled.await,
                    // In time or earlier than thought: either way the next look says what is due.
                    Some(next) => drop(time::timeout_at(next, rescheduled).await),
                }
            };
            if self.stopped.run_until_cancelled(waited).await.is_none() {
                return;
            }
            self.with_host(Host::make_due);
        }
    }
    async fn report(self: Rc<Self>, interval: Duration) {
        let mut interval = time::interval(interval);
        while self.stopped.run_until_cancelled(interval.tick()).await.is_some() {
            self.with_host(|host| {
                host.check_welcome();
                host.report_load();
            });
        }
    }

    // Session servers.

    async fn listen(self: Rc<Self>, listener: TcpListener) {
        while let Some(accepted) = self.stopped.run_until_cancelled(listener.accept()).await {
            match accepted {
                Ok((socket, _)) => self.spawn(Rc::clone(&self).serve(socket)),
                Err(error) => {
                    tracing::warn!(%error, "a link could not be accepted");
                    time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
    async fn serve(self: Rc<Self>, socket: TcpStream) {
        let opened = accept(socket, &self.me, &[Role::Session, Role::Master]);
        let Link { peer, mut incoming, outgoing, writer, .. } =
            match self.stopped.run_until_cancelled(opened).await {
                None => return,
                Some(Ok(link)) => link,
                Some(Err(error)) => return self.strangers.tell(&error),
            };
        if peer.role == Role::Master {
            // It lost the link and looked whether this process is there: by now it knows.
            return tracing::debug!(master = %peer.name, "a master looked for this server");
        }
        tracing::info!(session = %peer.name, "a session server linked");
        self.spawn(write(writer));
        let key = self.with_host(|host| host.link_opened(outgoing.clone()));
        let ended = loop {
            let filled = self.stopped.run_until_cancelled(incoming.fill()).await;
            match filled {
                None => break LinkError::Closed,
                Some(Err(error)) => break error,
                Some(Ok(())) => {}
            }
            let handled = self.with_host(|host| {
                while let Some(frame) = incoming.next_frame()? {
                    host.hear_session(key, frame.header, &incoming.bytes()[frame.payload])?;
                }
                Ok(())
            });
            if let Err(error) = handled {
                break error;
            }
        };
        outgoing.close();
        self.with_host(|host| host.link_lost(key));
        if !self.stopped.is_cancelled() {
            tracing::warn!(session = %peer.name, error = %ended, "the link of a session server ended");
        }
    }

    /// Keeps a link to a master until this server stops.
    async fn stay_linked(self: Rc<Self>, master: MasterLink, address: String) {
        self.stopped.run_until_cancelled(stay_linked(master, &address, &self.me, &self)).await;
    }
}

impl HasMasters for Shell {
    fn linked(
        self: &Rc<Self>,
        master: MasterLink,
        _: &Identity,
        outgoing: Outgoing,
        writer: Writer,
    ) {
        self.spawn(write(writer));
        self.with_host(|host| host.upward.linked(master, outgoing));
    }
    fn heard(
        self: &Rc<Self>,
        master: MasterLink,
        incoming: &mut Incoming,
    ) -> Result<(), LinkError> {
        self.with_host(|host| {
            host.master_speaks();
            if host.upward.is_closing(master) {
                return Err(LinkError::Closed); // What is said now comes too late.
            }
            let mut acknowledge = false;
            while let Some(frame) = incoming.next_frame()? {
                let payload = &incoming.bytes()[frame.payload];
                acknowledge |= host.hear_master(master, frame.header.kind, payload)?;
            }
            if acknowledge {
                host.upward.acknowledge();
            }
            Ok(())
        })
    }
    fn lost(self: &Rc<Self>, master: MasterLink) {
        self.with_host(|host| host.upward.lost(master));
    }
}

async fn write(writer: Writer) {
    if let Err(error) = writer.run().await {
        tracing::debug!(%error, "writing to a link ended");
    }
}
