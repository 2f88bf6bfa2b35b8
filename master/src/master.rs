//! A master that listens, and what it is made of.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ecow::eco_format;
use greenroom_link::{ClusterKey, Death, Me};
use greenroom_master_core::replica::{self as pair, Apply, Replica};
use greenroom_master_core::{ClusterSecret, Placement, State};
use greenroom_protocol::wire::master_standby::Pairing;
use greenroom_protocol::wire::master_witness::Side;
use greenroom_protocol::wire::server_server::{Identity, Role};
use greenroom_storage::Storage;
use greenroom_telemetry::Tracer;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{MasterConfig, WitnessAt};
use crate::disk::{Disk, Found};
use crate::documents::DocumentWriter;
use crate::error::MasterError;
use crate::handle::{MasterHandle, QUESTIONS_MAX};
use crate::inbox::Inbox;
use crate::links::{self, Door};
use crate::metrics::Metrics;
use crate::peer::Peer;
use crate::sequencer::{Clock, Sequencer, since_1970};
use crate::witness::{RemoteWitness, SqliteWitness, Witness, WitnessHandle};

/// A master that listens and does not answer yet.
#[derive(Debug)]
pub struct Master {
    listener: TcpListener,
    address: SocketAddr,
    me: Rc<Me>,
    handle: MasterHandle,
    peer: String,
    side: Side,
    death: Death,
    server_grace: Duration,
    sequencer: Sequencer,
}

impl Master {
    /// Reads what is in its folder, and listens. Links are taken once it runs. `placement` chooses among the game
    /// servers that can take an instance.
    ///
    /// # Errors
    /// When the configuration can't be kept, the folder, the witness or the address can't be used, or the system has no
    /// randomness.
    pub async fn bind(
        config: &MasterConfig,
        key: ClusterKey,
        placement: Arc<dyn Placement>,
    ) -> Result<Self, MasterError> {
        Self::begin(config, key, placement, None).await
    }

    /// The same, with a witness that `config.witness` only names for people.
    ///
    /// # Errors
    /// As [`Master::bind`].
    pub async fn bind_with(
        config: &MasterConfig,
        key: ClusterKey,
        placement: Arc<dyn Placement>,
        witness: Box<dyn Witness>,
    ) -> Result<Self, MasterError> {
        Self::begin(config, key, placement, Some(witness)).await
    }

    async fn begin(
        config: &MasterConfig,
        key: ClusterKey,
        placement: Arc<dyn Placement>,
        witness: Option<Box<dyn Witness>>,
    ) -> Result<Self, MasterError> {
        config.check()?;
        let (disk, found) = Disk::open(&config.folder)?;
        let Found { records, recovered, incarnation, notes } = found;
        for note in notes {
            tracing::warn!("{note}");
        }
        let secret = ClusterSecret::from_key(&key.derive("master core"));
        let mut state = State::with_placement(&secret, config.settings(), placement);
        if let Some(records) = records {
            state = state.restore(records).map_err(|source| MasterError::Checkpoint {
                folder: config.folder.clone(),
                source,
            })?;
        }
        let identity = Identity::new(
            config.cluster.clone(),
            Role::Master,
            config.name.clone(),
            incarnation,
            concat!("greenroom ", env!("CARGO_PKG_VERSION")).into(),
        );
        let me = Rc::new(Me { identity, key });
        let at = config.witness();
        let witness_place = match &at {
            WitnessAt::File(file) => eco_format!("{}", file.display()),
            WitnessAt::Remote(address) => address.into(),
        };
        let witness: Box<dyn Witness> = match (witness, at) {
            (Some(witness), _) => witness,
            (None, WitnessAt::File(file)) => Box::new(SqliteWitness::open(&file, &config.cluster)?),
            (None, WitnessAt::Remote(address)) => {
                Box::new(RemoteWitness::start(&address, (*me).clone())?)
            }
        };
        // Whatever an earlier cluster of this name knew is lost to one that is founded, which is what an era declares.
        // Servers refuse a smaller one than they have seen, so it grows from founding to founding: seconds do.
        let founded = since_1970();
        let era = u32::try_from(founded.as_secs()).unwrap_or(u32::MAX);
        let clock = Clock::starting_at(founded);
        let this = pair::Master { side: config.side, incarnation, copy: 0 };
        let settings = config.pair(era);
        let core = Replica::new(settings, this, state, recovered, clock.ticks_ms());
        // Only now: whoever dials before is refused at once, and need not wait until all is read.
        let failed = |source| MasterError::Listen { address: config.listen.clone(), source };
        let listener = TcpListener::bind(&config.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (questions, asked) = mpsc::channel(QUESTIONS_MAX);
        let witness = WitnessHandle::start(witness).map_err(MasterError::Thread)?;
        let sequencer = Sequencer::new(
            &me.identity,
            !config.peer.is_empty(),
            core,
            (disk, witness, witness_place),
            clock,
            getrandom::u64()?,
            asked,
            config.logs.of(config.name.as_str(), "master"),
        );
        let (peer, side, handle) = (config.peer.clone(), config.side, MasterHandle { questions });
        let (death, server_grace) = (config.proof_of_death, config.server_grace);
        Ok(Self { listener, address, me, handle, peer, side, death, server_grace, sequencer })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Has it trace what is sampled.
    #[must_use]
    pub fn traced(mut self, tracer: Tracer) -> Self {
        self.sequencer.traces.tracer = tracer;
        self
    }

    /// Has it write profiles, instances that stay and boards to a store. Without one none of them is stored.
    ///
    /// # Errors
    /// When the system starts no more threads.
    pub fn stored_in(mut self, storage: Storage) -> Result<Self, MasterError> {
        let writer = DocumentWriter::start(storage, self.metrics()).map_err(MasterError::Thread)?;
        self.sequencer.documents = Some(writer);
        Ok(self)
    }

    /// What it counts.
    pub fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.sequencer.metrics)
    }

    /// A way to ask it. Its questions are answered once it runs.
    pub fn handle(&self) -> MasterHandle {
        self.handle.clone()
    }

    /// Runs until `stop`; an active hands over before it ends, if it has a standby. Must run inside a `LocalSet`.
    pub async fn run(self, stop: CancellationToken) {
        let Self { listener, address, me, handle, peer, side, death, server_grace, sequencer } =
            self;
        // While this one lives the channel is open, however many handles others have dropped.
        let _handle = handle;
        tracing::info!(name = %me.identity.name, %address, %side, "the master listens");
        let tasks = TaskTracker::new();
        let (inbox, from_peer) = (Inbox::default(), Inbox::default());
        // Links outlive the stop for as long as it takes to hand over.
        let over = CancellationToken::new();
        let peer = (!peer.is_empty()).then(|| Peer {
            me: Rc::clone(&me),
            pairing: Pairing { side, version: <State as Apply>::VERSION },
            address: peer,
            inbox: from_peer.clone(),
            tasks: tasks.clone(),
            stop: over.clone(),
            known: Rc::new(Cell::new(None)),
        });
        if let (Side::A, Some(peer)) = (side, &peer) {
            tasks.spawn_local(peer.clone().stay_linked());
        }
        let door = Door {
            me,
            inbox: inbox.clone(),
            tasks: tasks.clone(),
            stop: over.clone(),
            peer,
            death,
            server_grace,
            vigils: links::vigils(),
            strangers: Rc::default(),
        };
        tasks.spawn_local(door.run(listener));
        tasks.close();
        sequencer.run(inbox, from_peer, stop).await;
        over.cancel();
        tasks.wait().await;
    }
}
