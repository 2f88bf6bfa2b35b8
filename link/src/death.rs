//! Proof that the process on the other side of a link that ended is no more, which silence alone is not.
//!
//! A process that is stopped, busy, or cut off is not dead: it may go on at any moment with everything that it had. A
//! process that is gone has no listening socket: its system refuses whoever dials it, at once. A refusal proves that if
//! it comes from the very system that the process ran on, and nobody in between can make it up. So:
//!
//! - The link that ended was *direct*: both sides saw the same two ends of its socket. Through a proxy, a translation
//!   of addresses or another network namespace they see different ones, and then a refusal says nothing.
//! - Dialled is the address that the link came from, with the port that the process had bound for all addresses or for
//!   this one. The socket was open before the link was, and is closed after the last instance only.
//! - By [`Death::Machine`], both ends were one address: then it is this machine's own system that refuses. By
//!   [`Death::Network`] another machine's word counts, which has to come from that machine.
//!
//! Another process may have the port by now. If it proves that it is of the cluster, and says that it is another life
//! of a game server, the former one has lost its socket, too: a port is bound once.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use ecow::EcoString;
use greenroom_protocol::Incarnation;
use greenroom_protocol::wire::server_server::{Identity, Role};
use serde::{Deserialize, Serialize};
use tokio::time;

use crate::{Link, LinkError, Me, dial};

/// Between two looks. A process that ends may close its link a moment before its listening socket.
const PAUSE: Duration = Duration::from_millis(50);
/// The longest pause between two looks.
const PAUSE_MAX: Duration = Duration::from_millis(400);

/// Whose refusal proves that a process is gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Death {
    /// Nobody's.
    Never,
    /// That of the system of this machine, of its own processes.
    #[default]
    Machine,
    /// That of any machine. Nothing in the network may answer for it: a firewall that rejects with a reset would.
    Network,
}

/// Where to look, once a link ended, whether the process on its other side is gone.
#[derive(Clone, Debug)]
pub struct Vigil {
    address: SocketAddr,
    incarnation: Incarnation,
}

impl Vigil {
    /// None if no refusal could prove anything.
    pub fn over(link: &Link, death: Death) -> Option<Self> {
        let Link { peer, address, own, .. } = link;
        Self::between(peer, plain(*address), plain(*own), death)
    }

    fn between(
        peer: &Identity,
        theirs: SocketAddr,
        ours: SocketAddr,
        death: Death,
    ) -> Option<Self> {
        let path = peer.path.as_ref()?;
        if (parsed(&path.from)?, parsed(&path.to)?) != (theirs, ours) {
            return None;
        }
        match death {
            Death::Never => return None,
            Death::Machine if theirs.ip() != ours.ip() => return None,
            Death::Machine | Death::Network => {}
        }
        // As it was bound, and not as it is mapped: `[::]` may or may not take what comes to an address of version 4.
        let bound: SocketAddr = peer.listens.as_ref()?.parse().ok()?;
        let is_everywhere = bound.ip().is_unspecified() && bound.is_ipv4() == theirs.is_ipv4();
        let address = SocketAddr::new(theirs.ip(), bound.port());
        (is_everywhere || plain(bound) == address)
            .then_some(Self { address, incarnation: peer.incarnation })
    }

    /// Returns once it is proved that the process is gone; to be given up by dropping it.
    pub async fn keep(self, me: &Me) {
        let mut pause = PAUSE;
        while !self.is_over(me).await {
            time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn is_over(&self, me: &Me) -> bool {
        match dial(&self.address.to_string(), me, &[Role::Game]).await {
            Ok(link) => link.peer.incarnation != self.incarnation,
            Err(LinkError::Dial { source, .. }) => source.kind() == ErrorKind::ConnectionRefused,
            // Somebody is there, or nobody can say.
            Err(_) => false,
        }
    }
}

fn parsed(text: &EcoString) -> Option<SocketAddr> {
    text.parse().ok().map(plain)
}

/// An address of version 4 may come as one of version 6.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use greenroom_protocol::ServerName;
    use greenroom_protocol::wire::server_server::Path;

    use super::*;

    fn vigil(
        listens: &str,
        (from, to): (&str, &str),
        (theirs, ours): (&str, &str),
        death: Death,
    ) -> Option<String> {
        let name = ServerName::new("game-1").unwrap();
        let peer = Identity {
            listens: Some(listens.into()),
            path: Some(Path { from: from.into(), to: to.into() }),
            ..Identity::new("test".into(), Role::Game, name, Incarnation(1), "test".into())
        };
        let (theirs, ours) = (theirs.parse().unwrap(), ours.parse().unwrap());
        let vigil = Vigil::between(&peer, plain(theirs), plain(ours), death)?;
        Some(vigil.address.to_string())
    }

    const HERE: (&str, &str) = ("127.0.0.1:50000", "127.0.0.1:4100");
    const THERE: (&str, &str) = ("10.0.0.7:50000", "10.0.0.1:4100");

    #[test]
    fn a_refusal_counts_where_both_sides_saw_one_socket_of_one_machine() {
        let looked = |listens| vigil(listens, HERE, HERE, Death::Machine);
        assert_eq!(looked("127.0.0.1:4300").as_deref(), Some("127.0.0.1:4300"));
        assert_eq!(looked("0.0.0.0:4300").as_deref(), Some("127.0.0.1:4300"));
        assert_eq!(looked("10.0.0.7:4300"), None, "it listens where the link did not come from");
        assert_eq!(looked("[::]:4300"), None, "which may not take version 4");
        assert_eq!(looked("nonsense"), None);
        let mapped = ("[::ffff:127.0.0.1]:50000", "[::ffff:127.0.0.1]:4100");
        let looked = vigil("127.0.0.1:4300", HERE, mapped, Death::Machine);
        assert_eq!(looked.as_deref(), Some("127.0.0.1:4300"));
        let six = ("[::1]:50000", "[::1]:4100");
        let looked = vigil("[::]:4300", six, six, Death::Machine);
        assert_eq!(looked.as_deref(), Some("[::1]:4300"));
    }

    #[test]
    fn a_refusal_through_something_in_between_proves_nothing() {
        for death in [Death::Machine, Death::Network] {
            let through_a_proxy = ("127.0.0.1:50001", "127.0.0.1:4100");
            assert_eq!(vigil("127.0.0.1:4300", HERE, through_a_proxy, death), None);
            let translated = ("10.0.0.254:50000", "10.0.0.1:4100");
            assert_eq!(vigil("0.0.0.0:4300", THERE, translated, death), None);
            // The game server is in a network namespace of its own.
            let out_of_it = ("172.17.0.2:50000", "172.17.0.1:4100");
            assert_eq!(vigil("127.0.0.1:4300", out_of_it, out_of_it, death), None);
        }
    }

    #[test]
    fn the_word_of_another_machine_counts_only_where_it_is_wanted() {
        let looked = |death| vigil("0.0.0.0:4300", THERE, THERE, death);
        assert_eq!(looked(Death::Machine), None);
        assert_eq!(looked(Death::Never), None);
        assert_eq!(looked(Death::Network).as_deref(), Some("10.0.0.7:4300"));
        assert_eq!(vigil("127.0.0.1:4300", HERE, HERE, Death::Never), None);
    }
}
