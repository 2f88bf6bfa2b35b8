//! Links that are dialled to this master: of session servers and game servers, each read and decoded by a task of its
//! own, and of the other master, if that is the one that dials.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use greenroom_link::{Death, Frame, Incoming, Link, LinkError, Me, Strangers, Vigil};
use greenroom_master_core::Origin;
use greenroom_protocol::wire::master_game::GameToMaster;
use greenroom_protocol::wire::server_server::Role;
use greenroom_protocol::wire::session_master::SessionToMaster;
use greenroom_protocol::{DecodeError, Limits, StampedHeader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::inbox::{Inbox, Input, LinkNumber};
use crate::peer::Peer;

/// Handshakes at a time: each costs two HMACs and may take 5 s.
const HANDSHAKES_MAX: usize = 64;
/// Lost game servers that are looked for at a time. Of further ones nobody hears that they are gone before their time.
const VIGILS_MAX: usize = 1_024;
/// How long nothing is accepted after the system refused to: most often it is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// For a door: how many lost servers it may look for.
pub(crate) fn vigils() -> Rc<Semaphore> {
    Rc::new(Semaphore::new(VIGILS_MAX))
}

/// What every link's task needs.
#[derive(Clone, Debug)]
pub(crate) struct Door {
    pub(crate) me: Rc<Me>,
    pub(crate) inbox: Inbox<Input>,
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
    /// For the link of the other master, if that one dials.
    pub(crate) peer: Option<Peer>,
    /// What proves that a game server is gone.
    pub(crate) death: Death,
    /// How long a lost one is looked for: then it is given up anyway.
    pub(crate) server_grace: Duration,
    pub(crate) vigils: Rc<Semaphore>,
    pub(crate) strangers: Rc<Strangers>,
}

impl Door {
    /// Accepts until told to stop.
    pub(crate) async fn run(self, listener: TcpListener) {
        let handshakes = std::sync::Arc::new(Semaphore::new(HANDSHAKES_MAX));
        let next = Rc::new(Cell::new(0));
        while let Some(accepted) = self.stop.run_until_cancelled(listener.accept()).await {
            match accepted {
                Ok((socket, _)) => {
                    let Ok(permit) = std::sync::Arc::clone(&handshakes).try_acquire_owned() else {
                        tracing::warn!(
                            "more than {HANDSHAKES_MAX} handshakes at once: one is dropped"
                        );
                        continue;
                    };
                    let (door, next) = (self.clone(), Rc::clone(&next));
                    self.tasks.spawn_local(async move {
                        let link = door.open(socket).await;
                        drop(permit);
                        match (link, &door.peer) {
                            (Some(link), Some(peer)) if link.peer.role == Role::Master => {
                                peer.taken(link).await;
                            }
                            (Some(link), _) => {
                                next.set(next.get() + 1);
                                door.serve(LinkNumber(next.get()), link).await;
                            }
                            (None, _) => {}
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "accepting a link failed; trying again in {ACCEPT_PAUSE:?}");
                    let _stopped =
                        self.stop.run_until_cancelled(tokio::time::sleep(ACCEPT_PAUSE)).await;
                }
            }
        }
    }

    async fn open(&self, socket: TcpStream) -> Option<Link> {
        let roles = [Role::Session, Role::Game, Role::Master];
        let roles = if self.peer.is_some() { &roles[..] } else { &roles[..2] };
        let handshake = greenroom_link::accept(socket, &self.me, roles);
        match self.stop.run_until_cancelled(handshake).await? {
            Ok(link) => Some(link),
            Err(error) => {
                self.strangers.tell(&error);
                None
            }
        }
    }

    /// Reads a link to its end.
    async fn serve(&self, number: LinkNumber, link: Link) {
        let vigil = Vigil::over(&link, self.death);
        let Link { peer, mut incoming, outgoing, writer, .. } = link;
        let role = peer.role;
        let name = peer.name.clone();
        let origin = Origin { server: name.clone(), incarnation: peer.incarnation };
        self.tasks.spawn_local(async move {
            if let Err(error) = writer.run().await {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, server = %name, "writing to a server ended");
            }
        });
        self.inbox.push(Input::Opened(number, peer, outgoing.clone()));
        let end = self.stop.run_until_cancelled(self.read(number, role, &mut incoming)).await;
        outgoing.close();
        self.inbox.push(Input::Lost(number, end.unwrap_or(LinkError::Closed)));
        if let Some(vigil) = vigil {
            self.look_for(vigil, origin).await;
        }
    }

    /// A game server's link has ended: is its process there still?
    async fn look_for(&self, vigil: Vigil, origin: Origin) {
        let Ok(_permit) = self.vigils.try_acquire() else {
            return tracing::warn!(
                "more than {VIGILS_MAX} lost servers at once: {} is given up when its time is over",
                origin.server
            );
        };
        let looked = tokio::time::timeout(self.server_grace, vigil.keep(&self.me));
        if let Some(Ok(())) = self.stop.run_until_cancelled(looked).await {
            tracing::info!(server = %origin.server, "nobody listens where the server did: it is gone");
            self.inbox.push(Input::Died(origin));
        }
    }

    async fn read(&self, number: LinkNumber, role: Role, incoming: &mut Incoming) -> LinkError {
        loop {
            match self.take(number, role, incoming) {
                Ok(()) => {}
                Err(error) => return error,
            }
            self.inbox.room().await;
            if let Err(error) = incoming.fill().await {
                return error;
            }
        }
    }

    /// Everything that was read.
    fn take(
        &self,
        number: LinkNumber,
        role: Role,
        incoming: &mut Incoming,
    ) -> Result<(), LinkError> {
        while let Some(frame) = incoming.next_frame()? {
            self.inbox.push(decode(number, role, &frame, incoming.bytes())?);
        }
        Ok(())
    }
}

fn decode(
    number: LinkNumber,
    role: Role,
    frame: &Frame,
    chunk: &[u8],
) -> Result<Input, DecodeError> {
    let kind = frame.header.kind;
    let (stamp, message) = StampedHeader::split(&chunk[frame.payload.clone()])?;
    Ok(match role {
        Role::Session => {
            let message = SessionToMaster::decode(kind, message, Limits::SERVER)?;
            Input::Session(number, stamp, message)
        }
        Role::Game | Role::Master | Role::Witness => {
            let message = GameToMaster::decode(kind, message, Limits::SERVER)?;
            Input::Game(number, stamp, message)
        }
    })
}
