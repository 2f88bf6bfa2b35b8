//! The process of a witness.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ecow::EcoString;
use greenroom_link::{ClusterKey, Link, LinkError, Me, Strangers};
use greenroom_master_core::replica::ClaimAnswer;
use greenroom_protocol::wire::master_witness::{
    Claimed, Failed, MasterToWitness, Record, WitnessToMaster,
};
use greenroom_protocol::wire::server_server::{Identity, Role};
use greenroom_protocol::{Incarnation, Limits, LinkHeader, ServerName};
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{SqliteWitness, Witness as _, WitnessError, whole};

/// Links at a time, those that are being opened among them: two masters, and what is left of their earlier lives.
const LINKS_MAX: usize = 64;
/// How long nothing is accepted after the system refused to.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The `[witness]` table of the config file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WitnessConfig {
    /// Its name in the cluster.
    pub name: ServerName,
    /// Where masters dial it: `host:port`. Not for clients.
    pub listen: String,
    /// The cluster's name: masters of another cluster are refused. From the `[cluster]` table.
    #[serde(skip)]
    pub cluster: EcoString,
    /// The file that has the record; made if it is not there.
    #[serde(skip)]
    pub file: PathBuf,
}

impl Default for WitnessConfig {
    fn default() -> Self {
        Self {
            name: ServerName::new("witness").expect("it is short and printable"),
            listen: "127.0.0.1:4200".into(),
            cluster: "greenroom".into(),
            file: "witness.sqlite".into(),
        }
    }
}

/// A witness that listens and does not answer yet.
#[derive(Debug)]
pub struct WitnessServer {
    listener: TcpListener,
    address: SocketAddr,
    door: Door,
}

/// What every link's task needs.
#[derive(Clone, Debug)]
struct Door {
    me: Rc<Me>,
    /// One question at a time: the database has one writer anyway.
    witness: Arc<Mutex<SqliteWitness>>,
    tasks: TaskTracker,
    strangers: Rc<Strangers>,
}

impl WitnessServer {
    /// Opens the file and listens. Links are taken once it runs.
    ///
    /// # Errors
    /// When the file can't be used, or the address can't be listened on.
    pub async fn bind(config: &WitnessConfig, key: ClusterKey) -> Result<Self, WitnessError> {
        let witness = SqliteWitness::open(&config.file, &config.cluster)?;
        let failed = |source| WitnessError::Listen { address: config.listen.clone(), source };
        let listener = TcpListener::bind(&config.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let incarnation = getrandom::u64()
            .map_err(|error| WitnessError::Thread { source: error.into() })
            .map(Incarnation)?;
        let identity = Identity::new(
            config.cluster.clone(),
            Role::Witness,
            config.name.clone(),
            incarnation,
            concat!("greenroom ", env!("CARGO_PKG_VERSION")).into(),
        );
        let me = Rc::new(Me { identity, key });
        let door = Door {
            me,
            witness: Arc::new(Mutex::new(witness)),
            tasks: TaskTracker::new(),
            strangers: Rc::default(),
        };
        Ok(Self { listener, address, door })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `stop`, the question under way included. Must run inside a `LocalSet`.
    pub async fn run(self, stop: CancellationToken) {
        let Self { listener, address, door } = self;
        tracing::info!(name = %door.me.identity.name, %address, "the witness answers");
        let links = Arc::new(Semaphore::new(LINKS_MAX));
        while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
            match accepted {
                Ok((socket, _)) => {
                    let Ok(permit) = Arc::clone(&links).try_acquire_owned() else {
                        tracing::warn!("more than {LINKS_MAX} links at once: one is dropped");
                        continue;
                    };
                    let (task, stop) = (door.clone(), stop.clone());
                    door.tasks.spawn_local(async move {
                        task.serve(socket, &stop).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "accepting a link failed; trying again in {ACCEPT_PAUSE:?}");
                    let _stopped = stop.run_until_cancelled(tokio::time::sleep(ACCEPT_PAUSE)).await;
                }
            }
        }
        door.tasks.close();
        door.tasks.wait().await;
    }
}

impl Door {
    /// Opens a link and answers on it until it ends.
    async fn serve(self, socket: TcpStream, stop: &CancellationToken) {
        let handshake = greenroom_link::accept(socket, &self.me, &[Role::Master]);
        let link = match stop.run_until_cancelled(handshake).await {
            Some(Ok(link)) => link,
            Some(Err(error)) => return self.strangers.tell(&error),
            None => return,
        };
        let name = link.peer.name.clone();
        tracing::info!(master = %name, address = %link.address, "a master asks this witness");
        let error = self.answer_all(link, stop).await;
        tracing::info!(master = %name, %error, "a master's link ended");
    }

    async fn answer_all(&self, link: Link, stop: &CancellationToken) -> LinkError {
        let Link { mut incoming, outgoing, writer, .. } = link;
        self.tasks.spawn_local(async move {
            if let Err(error) = writer.run().await {
                let error = &error as &dyn std::error::Error;
                tracing::debug!(error, "writing to a master ended");
            }
        });
        let end = loop {
            match incoming.next_frame() {
                Ok(Some(frame)) => {
                    let kind = frame.header.kind;
                    let payload = &incoming.bytes()[frame.payload];
                    match MasterToWitness::decode(kind, payload, Limits::SERVER) {
                        Ok(question) => {
                            let Some(answer) = self.answer(question).await else { continue };
                            let mut payload = Vec::new();
                            answer.encode_into(&mut payload);
                            let header = LinkHeader { kind: answer.kind(), target: 0 };
                            outgoing.push(header, &[&payload]);
                            continue;
                        }
                        Err(error) => break error.into(),
                    }
                }
                Ok(None) => {}
                Err(error) => break error,
            }
            match stop.run_until_cancelled(incoming.fill()).await {
                Some(Ok(())) => {}
                Some(Err(error)) => break error,
                None => break LinkError::Closed,
            }
        };
        outgoing.close();
        end
    }

    /// The answer; nothing to what a newer master asks.
    async fn answer(&self, question: MasterToWitness) -> Option<WitnessToMaster> {
        let number = match question {
            MasterToWitness::Read(read) => read.number,
            MasterToWitness::Claim(claim) => claim.number,
            MasterToWitness::Unknown(_) => return None,
        };
        let witness = Arc::clone(&self.witness);
        // On another thread, since the disk may take its time, and the link says meanwhile that it is alive.
        let asked =
            tokio::task::spawn_blocking(move || ask(&mut witness.blocking_lock(), &question));
        let answered = match asked.await {
            Ok(answered) => answered.map_err(|error| whole(&error)),
            Err(error) => Err(error.to_string()),
        };
        Some(answered.unwrap_or_else(|message| {
            tracing::warn!("a question can't be answered: {message}");
            WitnessToMaster::Failed(Failed { number, message })
        }))
    }
}

fn ask(
    witness: &mut SqliteWitness,
    question: &MasterToWitness,
) -> Result<WitnessToMaster, WitnessError> {
    Ok(match question {
        MasterToWitness::Read(read) => {
            let rec = witness.read()?;
            WitnessToMaster::Record(Record { number: read.number, rec })
        }
        MasterToWitness::Claim(claim) => {
            let (won, rec) = match witness.claim(claim.expect, &claim.rec)? {
                ClaimAnswer::Won => (true, Some(claim.rec)),
                ClaimAnswer::Lost(rec) => (false, rec),
                ClaimAnswer::Unknown => {
                    let message = "nobody knows what became of it".to_owned();
                    return Ok(WitnessToMaster::Failed(Failed { number: claim.number, message }));
                }
            };
            WitnessToMaster::Claimed(Claimed { number: claim.number, won, rec })
        }
        MasterToWitness::Unknown(kind) => WitnessToMaster::Unknown(*kind),
    })
}
