//! Links to masters: one to each address, dialled again whenever it ends. Which of the masters decides is for whoever
//! reads what they say.

use std::rc::Rc;
use std::time::Duration;

use greenroom_protocol::MasterLink;
use greenroom_protocol::wire::server_server::{Identity, Role};
use tokio::time::{self, Instant};

use crate::{Incoming, Link, LinkError, Me, Outgoing, Writer, dial};

/// Between two attempts to dial a master: doubles from the first to the last. A refused dial takes no time, so the
/// first is short: a master that died may have been started again at once.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// Who has links to masters.
pub trait HasMasters {
    /// A link is open: the writer is to be spawned, and nothing said before that master says that it decides.
    fn linked(
        self: &Rc<Self>,
        master: MasterLink,
        peer: &Identity,
        outgoing: Outgoing,
        writer: Writer,
    );
    /// Something came, if only a sign of life, or the link has just opened: takes every frame that is whole.
    ///
    /// # Errors
    /// When it can't be read: the link ends.
    fn heard(self: &Rc<Self>, master: MasterLink, incoming: &mut Incoming)
    -> Result<(), LinkError>;
    /// A link that was open is gone.
    fn lost(self: &Rc<Self>, master: MasterLink);
}

/// Keeps a link to the master at `address` for ever; `master` is its place in the list of addresses. To be given up by
/// dropping it.
pub async fn stay_linked(
    master: MasterLink,
    address: &str,
    me: &Me,
    server: &Rc<impl HasMasters>,
) -> std::convert::Infallible {
    let mut pause = PAUSE.0;
    // What was logged last: a master that is away for hours is told of once.
    let mut told = String::new();
    loop {
        let begun = Instant::now();
        match dial(address, me, &[Role::Master]).await {
            Ok(link) => {
                tracing::info!(address, master = %link.peer.name, "linked to a master");
                told.clear();
                let error = listen(master, link, server).await;
                tracing::warn!(address, %error, "the link to a master ended");
                if begun.elapsed() >= PAUSE.1 {
                    pause = PAUSE.0;
                }
            }
            Err(error) => {
                let text = error.to_string();
                if text == told {
                    tracing::debug!(address, %error, "no link to a master");
                } else {
                    tracing::warn!(address, %error, "no link to a master; it is dialled until there is one");
                    told = text;
                }
            }
        }
        time::sleep(jittered(pause)).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// Listens to a master until its link ends.
async fn listen(master: MasterLink, link: Link, server: &Rc<impl HasMasters>) -> LinkError {
    let Link { peer, mut incoming, outgoing, writer, .. } = link;
    server.linked(master, &peer, outgoing.clone(), writer);
    let error = loop {
        // Before anything is waited for: what the master said first may have come with the end of the handshake.
        if let Err(error) = server.heard(master, &mut incoming) {
            break error;
        }
        if outgoing.is_closing() {
            break LinkError::Closed;
        }
        if let Err(error) = incoming.fill().await {
            break error;
        }
    };
    // If it was this side that ended it, the writer does not know yet.
    outgoing.close();
    server.lost(master);
    error
}

/// At least half of it: servers that lost a master together do not come back together.
fn jittered(pause: Duration) -> Duration {
    let random = u16::try_from(getrandom::u64().unwrap_or(0) & 0xffff).unwrap_or(0);
    pause.mul_f64(0.5 + f64::from(random) / 131_072.0)
}
