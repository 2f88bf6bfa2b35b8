//! How two servers come to trust a socket: both show that they hold the cluster's key, over nonces of both.

use std::{net::SocketAddr, time::Duration};

use ecow::eco_format;
use greenroom_protocol::{
    Code, HELLO_BYTES_MAX, Limits, PROTOCOL_MAX, PROTOCOL_MIN, Refusal, decode, encode,
    wire::server_server::{
        Accepting, Dialler, Identity, Listener, Open, Opening, Path, Proof, Role,
    },
};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpStream, tcp::OwnedWriteHalf},
    time,
};

use crate::{ClusterKey, Incoming, LinkError, Outgoing, Writer, outgoing::whole_frame};

/// How long a handshake may take.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// How often an idle link says that it is alive.
const ALIVE_INTERVAL: Duration = Duration::from_secs(1);
/// How long a link may be silent. A process that dies is noticed at once by the reset; this is for hosts that
/// vanish, and it is longer than a pause that a host may make.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// Bytes that may wait for a link's writer before frames are refused.
const OUTGOING_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Who this process is on its links.
#[derive(Clone, Debug)]
pub struct Me {
    /// Shown to the other side.
    pub identity: Identity,
    /// Proved to the other side.
    pub key: ClusterKey,
}

/// An open link. Spawn its writer; read from `incoming`; append to `outgoing`.
#[derive(Debug)]
pub struct Link {
    /// Who is on the other side.
    pub peer: Identity,
    /// Where the other side is.
    pub address: SocketAddr,
    /// Where this side is.
    pub own: SocketAddr,
    /// The reading end.
    pub incoming: Incoming,
    /// The writing end.
    pub outgoing: Outgoing,
    /// The task that writes.
    pub writer: Writer,
}

/// Dials `address` and opens a link to a server of one of `roles`.
///
/// # Errors
/// When nobody answers, either side refuses, or it takes longer than 5 s.
pub async fn dial(address: &str, me: &Me, roles: &[Role]) -> Result<Link, LinkError> {
    let failed = |source| LinkError::Dial { address: address.into(), source };
    time::timeout(HANDSHAKE_MAX, async {
        let socket = TcpStream::connect(address).await.map_err(failed)?;
        let mut half = HalfOpen::new(socket)?;
        let nonce = nonce()?;
        let identity = encode(&half.seen_from_here(&me.identity));
        let opening = Opening {
            protocol_min: PROTOCOL_MIN,
            protocol_max: PROTOCOL_MAX,
            identity: identity.clone().into(),
            nonce,
        };
        half.send(&Dialler::Opening(opening)).await?;
        let accepting = match half.receive(Listener::decode).await? {
            Listener::Accepting(accepting) => accepting,
            Listener::Refused(refusal) => return Err(half.refused_by_peer(refusal)),
            other @ (Listener::Open(_) | Listener::Unknown(_)) => {
                return Err(half.unexpected(other.kind()));
            }
        };
        let peer: Identity = decode(&accepting.identity, Limits::CLIENT)?;
        let version = accepting.protocol.to_le_bytes();
        let covered = [&version[..], &nonce, &accepting.nonce, &identity, &accepting.identity];
        if !me.key.verify(&labelled(LISTENER_LABEL, &covered), &accepting.proof) {
            return Err(half.refuse_as_dialler(wrong_key(&me.identity, &peer)).await);
        }
        if let Some(refusal) = unwelcome(&me.identity, &peer, roles) {
            return Err(half.refuse_as_dialler(refusal).await);
        }
        let proof = me.key.mac(&labelled(DIALLER_LABEL, &covered));
        half.send(&Dialler::Proof(Proof { proof })).await?;
        match half.receive(Listener::decode).await? {
            Listener::Open(_) => Ok(half.open(peer)),
            Listener::Refused(refusal) => Err(half.refused_by_peer(refusal)),
            other @ (Listener::Accepting(_) | Listener::Unknown(_)) => {
                Err(half.unexpected(other.kind()))
            }
        }
    })
    .await
    .unwrap_or_else(|_| {
        Err(LinkError::HandshakeTimeout { peer: address.into(), after: HANDSHAKE_MAX })
    })
}

/// Opens a link on a socket that was accepted, if it is a server of one of `roles` and of this cluster.
///
/// # Errors
/// When either side refuses, or it takes longer than 5 s.
pub async fn accept(socket: TcpStream, me: &Me, roles: &[Role]) -> Result<Link, LinkError> {
    let peer = socket.peer_addr().map_err(LinkError::Socket)?;
    time::timeout(HANDSHAKE_MAX, async {
        let mut half = HalfOpen::new(socket)?;
        let opening = match half.receive(Dialler::decode).await? {
            Dialler::Opening(opening) => opening,
            other @ (Dialler::Proof(_) | Dialler::Refused(_) | Dialler::Unknown(_)) => {
                return Err(half.unexpected(other.kind()));
            }
        };
        let dialler: Identity = decode(&opening.identity, Limits::CLIENT)?;
        if opening.protocol_min > PROTOCOL_MAX || opening.protocol_max < PROTOCOL_MIN {
            let text = format!(
                "this {} speaks versions {PROTOCOL_MIN} to {PROTOCOL_MAX} of the protocol, {} speaks {} to {}: \
                 upgrade the older one",
                me.identity.role, dialler.name, opening.protocol_min, opening.protocol_max
            );
            return Err(half.refuse_as_listener(Refusal::new(Code::VersionMismatch, text)).await);
        }
        // The cluster's name is no secret and is checked first, so that a wrong name is not called a wrong key.
        if dialler.cluster != me.identity.cluster {
            let refusal = wrong_cluster(&me.identity, &dialler);
            return Err(half.refuse_as_listener(refusal).await);
        }
        let nonce = nonce()?;
        let protocol = opening.protocol_max.min(PROTOCOL_MAX);
        let (version, identity) = (protocol.to_le_bytes(), encode(&me.identity));
        let covered = [&version[..], &opening.nonce, &nonce, &opening.identity, &identity];
        let proof = me.key.mac(&labelled(LISTENER_LABEL, &covered));
        let accepting = Accepting { protocol, identity: identity.clone().into(), nonce, proof };
        half.send(&Listener::Accepting(accepting)).await?;
        let proof = match half.receive(Dialler::decode).await? {
            Dialler::Proof(proof) => proof.proof,
            Dialler::Refused(refusal) => return Err(half.refused_by_peer(refusal)),
            other @ (Dialler::Opening(_) | Dialler::Unknown(_)) => return Err(half.unexpected(other.kind())),
        };
        if !me.key.verify(&labelled(DIALLER_LABEL, &covered), &proof) {
            let refusal = wrong_key(&me.identity, &dialler);
            return Err(half.refuse_as_listener(refusal).await);
        }
        if let Some(refusal) = unwelcome(&me.identity, &dialler, roles) {
            return Err(half.refuse_as_listener(refusal).await);
        }
        half.send(&Listener::Open(Open {})).await?;
        Ok(half.open(dialler))
    })
    .await
    .unwrap_or_else(|_| Err(LinkError::HandshakeTimeout { peer: peer.to_string(), after: HANDSHAKE_MAX }))
}

const LISTENER_LABEL: &[u8] = b"greenroom listener v1";
const DIALLER_LABEL: &[u8] = b"greenroom dialler v1";

fn labelled<'a>(label: &'a [u8], covered: &[&'a [u8]; 5]) -> [&'a [u8]; 6] {
    [label, covered[0], covered[1], covered[2], covered[3], covered[4]]
}

fn nonce() -> Result<[u8; 32], LinkError> {
    let mut nonce = [0; 32];
    getrandom::fill(&mut nonce).map_err(|error| LinkError::Socket(error.into()))?;
    Ok(nonce)
}

fn wrong_cluster(me: &Identity, peer: &Identity) -> Refusal {
    let text = format!(
        "{} {} belongs to cluster {:?}, {} {} to {:?}: give both the same `[cluster] name`",
        me.role, me.name, me.cluster, peer.role, peer.name, peer.cluster
    );
    Refusal::new(Code::WrongCluster, text)
}

fn wrong_key(me: &Identity, peer: &Identity) -> Refusal {
    let text = format!(
        "{} {} and {} {} do not have the same cluster key: copy the key file of one to the other",
        me.role, me.name, peer.role, peer.name
    );
    Refusal::new(Code::WrongKey, text)
}

fn unwelcome(me: &Identity, peer: &Identity, roles: &[Role]) -> Option<Refusal> {
    if peer.cluster != me.cluster {
        return Some(wrong_cluster(me, peer));
    }
    (!roles.contains(&peer.role)).then(|| {
        let wanted: Vec<_> = roles.iter().map(Role::to_string).collect();
        let text = format!(
            "{} {} has no business with {} {}, which talks to: {}; check the addresses",
            peer.role,
            peer.name,
            me.role,
            me.name,
            wanted.join(", ")
        );
        Refusal::new(Code::WrongRole, text)
    })
}

/// A socket before the link is open.
struct HalfOpen {
    incoming: Incoming,
    outgoing: Outgoing,
    socket: OwnedWriteHalf,
    address: SocketAddr,
    own: SocketAddr,
}

trait Encode {
    fn frame(&self) -> Vec<u8>;
}
impl Encode for Dialler {
    fn frame(&self) -> Vec<u8> {
        let mut payload = Vec::new();
        self.encode_into(&mut payload);
        whole_frame(self.kind(), &payload)
    }
}
impl Encode for Listener {
    fn frame(&self) -> Vec<u8> {
        let mut payload = Vec::new();
        self.encode_into(&mut payload);
        whole_frame(self.kind(), &payload)
    }
}

impl HalfOpen {
    fn new(socket: TcpStream) -> Result<Self, LinkError> {
        socket.set_nodelay(true).map_err(LinkError::Socket)?;
        let address = socket.peer_addr().map_err(LinkError::Socket)?;
        let own = socket.local_addr().map_err(LinkError::Socket)?;
        let (read, socket) = socket.into_split();
        let outgoing = Outgoing::new(OUTGOING_BYTES_MAX);
        Ok(Self {
            incoming: Incoming::new(read, outgoing.clone(), HELLO_BYTES_MAX),
            outgoing,
            socket,
            address,
            own,
        })
    }

    /// Who dials, with the ends of this socket: the other side compares them with what it sees.
    fn seen_from_here(&self, me: &Identity) -> Identity {
        let path = Path { from: eco_format!("{}", self.own), to: eco_format!("{}", self.address) };
        Identity { path: Some(path), ..me.clone() }
    }

    async fn send(&mut self, message: &impl Encode) -> Result<(), LinkError> {
        self.socket.write_all(&message.frame()).await.map_err(LinkError::Socket)
    }

    async fn receive<T>(
        &mut self,
        decode: fn(u8, &[u8], Limits) -> Result<T, greenroom_protocol::DecodeError>,
    ) -> Result<T, LinkError> {
        loop {
            if let Some(frame) = self.incoming.next_frame()? {
                return Ok(decode(
                    frame.header.kind,
                    &self.incoming.bytes()[frame.payload],
                    Limits::CLIENT,
                )?);
            }
            self.incoming.fill().await?;
        }
    }

    fn refused_by_peer(&self, refusal: Refusal) -> LinkError {
        LinkError::RefusedByPeer { peer: self.address.to_string(), refusal }
    }

    fn unexpected(&self, kind: u8) -> LinkError {
        let text = format!("a frame of kind {kind:#04x} has no place in the handshake");
        LinkError::Refused {
            peer: self.address.to_string(),
            refusal: Refusal::new(Code::UnexpectedKind, text),
        }
    }

    async fn refuse_as_dialler(&mut self, refusal: Refusal) -> LinkError {
        self.refuse(&Dialler::Refused(refusal.clone()), refusal).await
    }

    async fn refuse_as_listener(&mut self, refusal: Refusal) -> LinkError {
        self.refuse(&Listener::Refused(refusal.clone()), refusal).await
    }

    async fn refuse(&mut self, message: &impl Encode, refusal: Refusal) -> LinkError {
        if let Err(error) = self.send(message).await {
            tracing::debug!(%error, "the refusal could not be sent");
        }
        LinkError::Refused { peer: self.address.to_string(), refusal }
    }

    fn open(mut self, peer: Identity) -> Link {
        self.incoming.open();
        self.outgoing.heard();
        let writer = Writer {
            outgoing: self.outgoing.clone(),
            socket: self.socket,
            alive_interval: ALIVE_INTERVAL,
            silence_max: SILENCE_MAX,
        };
        Link {
            peer,
            address: self.address,
            own: self.own,
            incoming: self.incoming,
            outgoing: self.outgoing,
            writer,
        }
    }
}
