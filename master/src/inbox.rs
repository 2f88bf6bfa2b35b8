//! What came in over the links and waits for the sequencer.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use greenroom_link::{LinkError, Outgoing};
use greenroom_master_core::Origin;
use greenroom_protocol::StampedHeader;
use greenroom_protocol::wire::master_game::GameToMaster;
use greenroom_protocol::wire::server_server::Identity;
use greenroom_protocol::wire::session_master::SessionToMaster;
use tokio::sync::Notify;

/// Messages that wait. Past it no link is read until the sequencer has taken them, so that pressure flows back to
/// the servers.
const LEN_MAX: usize = 50_000;

/// One link, for as long as this process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LinkNumber(pub(crate) u64);

#[derive(Debug)]
pub(crate) enum Input {
    /// A link of a server is open. It says nothing before it is told who decides.
    Opened(LinkNumber, Identity, Outgoing),
    Session(LinkNumber, StampedHeader, SessionToMaster),
    Game(LinkNumber, StampedHeader, GameToMaster),
    Lost(LinkNumber, LinkError),
    /// It is proved that the process of a game server that lost its link is gone.
    Died(Origin),
}

#[derive(Debug)]
struct Shared<T> {
    inputs: RefCell<VecDeque<T>>,
    ready: Notify,
    room: Notify,
}

/// The queue between links and sequencer, on one thread. Servers and the other master have one each: what servers want
/// waits while too much is not committed, and what the other master says is what commits it.
#[derive(Debug)]
pub(crate) struct Inbox<T>(Rc<Shared<T>>);

impl<T> Clone for Inbox<T> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<T> Default for Inbox<T> {
    fn default() -> Self {
        Self(Rc::new(Shared {
            inputs: RefCell::default(),
            ready: Notify::new(),
            room: Notify::new(),
        }))
    }
}

impl<T> Inbox<T> {
    pub(crate) fn push(&self, input: T) {
        self.0.inputs.borrow_mut().push_back(input);
        self.0.ready.notify_one();
    }

    /// Waits until there is room. Who has read a chunk of a link may push all of it before.
    pub(crate) async fn room(&self) {
        while self.0.inputs.borrow().len() >= LEN_MAX {
            self.0.room.notified().await;
        }
    }

    /// Waits until something is there.
    pub(crate) async fn ready(&self) {
        while self.0.inputs.borrow().is_empty() {
            self.0.ready.notified().await;
        }
    }

    /// Takes all that is there, into a queue that is empty.
    pub(crate) fn take(&self, into: &mut VecDeque<T>) {
        std::mem::swap(&mut *self.0.inputs.borrow_mut(), into);
        self.0.room.notify_waiters();
    }
}
