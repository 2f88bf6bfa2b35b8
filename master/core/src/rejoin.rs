//! The time after a master's start in which it may know less than the servers do.
//!
//! A master that starts has no memory: game servers say again what they run, each as it finds the master. To make an
//! instance for a key that nobody has said yet could be to make it twice, and "there is no such instance" could be a
//! lie. Requests that would come to that wait, in order, until they are known of or until the time is over.

use std::collections::VecDeque;

use greenroom_protocol::wire::client_session::{
    Create, Destroy, Join, JoinOrCreate, Leave, Request,
};
use greenroom_protocol::{Code, Refusal, RequestId, SessionId};
use serde::{Deserialize, Serialize};

use crate::deadlines::{Due, NEVER};
use crate::state::{State, Step};
use crate::users::Asked;

/// Requests that wait. Past it they are refused as `Busy`: in this time a client may as well wait by itself.
const WAITING_MAX: usize = 10_000;

/// A request that waits, as it was asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Waiting {
    pub(crate) session: SessionId,
    pub(crate) id: RequestId,
    pub(crate) request: Request,
}

#[derive(Debug)]
pub(crate) struct Rejoin {
    /// Whether the first command was applied.
    pub(crate) has_begun: bool,
    /// When the time is over, or [`NEVER`] when it is and nobody waits.
    pub(crate) until_ms: u64,
    /// In the order in which they were asked.
    pub(crate) waiting: VecDeque<Waiting>,
}

impl Default for Rejoin {
    fn default() -> Self {
        Self { has_begun: false, until_ms: NEVER, waiting: VecDeque::new() }
    }
}

impl State {
    /// The first command begins the time.
    pub(crate) fn begin_rejoin(&mut self) {
        if !self.rejoin.has_begun {
            self.rejoin.has_begun = true;
            if self.settings.rejoin_grace_ms > 0 {
                let until_ms = self.now_ms.saturating_add(self.settings.rejoin_grace_ms);
                self.deadlines.set(&mut self.rejoin.until_ms, until_ms, Due::Rejoined);
            }
        }
    }

    /// Whether servers may be about to say what they have: until then searches are commands like other requests, which
    /// wait.
    pub fn is_rejoining(&self) -> bool {
        self.rejoin.until_ms != NEVER
    }

    /// Whether a request asks for what a server may be about to say that it has.
    pub(crate) fn has_to_wait(&self, request: &Request) -> bool {
        if !self.is_rejoining() {
            return false;
        }
        match request {
            Request::Create(Create { kind, key: Some(key), .. })
            | Request::JoinOrCreate(JoinOrCreate { kind, key: Some(key), .. }) => {
                self.directory.by_key(kind, key).is_none()
            }
            Request::Join(Join { instance, .. })
            | Request::Leave(Leave { instance })
            | Request::Destroy(Destroy { instance }) => {
                self.directory.find(*instance).is_none() && !self.departed.contains(*instance)
            }
            // What has not been said yet would be missing.
            Request::Search(_) | Request::Watch(_) => true,
            // Without a key it does not matter which instance it is, once somebody knows the kind.
            Request::Create(Create { kind, key: None, .. })
            | Request::JoinOrCreate(JoinOrCreate { kind, key: None, .. }) => {
                !self.game_servers.iter().any(|(_, server)| server.kinds.contains_key(kind))
            }
            Request::Unwatch(_) | Request::Rank(_) | Request::Unknown(_) => false,
        }
    }

    /// Whether one more may wait.
    ///
    /// # Errors
    /// `Busy` when there are too many.
    pub(crate) fn may_wait(&self) -> Result<(), Refusal> {
        if self.rejoin.waiting.len() < WAITING_MAX {
            return Ok(());
        }
        Err(Refusal::new(
            Code::Busy,
            "the cluster has just started and is finding out what runs; try again in a few seconds",
        ))
    }

    /// A server has said what it has: who waited for that is answered.
    pub(crate) fn rejoin_reported(&mut self, step: &mut Step<'_>) {
        if self.rejoin.waiting.is_empty() {
            return;
        }
        for waiting in std::mem::take(&mut self.rejoin.waiting) {
            if self.has_to_wait(&waiting.request) {
                self.rejoin.waiting.push_back(waiting);
            } else {
                self.ask_again(step, &waiting);
            }
        }
    }

    /// The time is over: what waits is decided, some of it at a time. Until all of it is, others wait behind.
    pub(crate) fn rejoined(&mut self, step: &mut Step<'_>, left: &mut usize) {
        while let Some(waiting) = self.rejoin.waiting.pop_front() {
            self.ask_again(step, &waiting);
            if *left == 0 {
                return;
            }
            *left -= 1;
        }
        self.deadlines.set(&mut self.rejoin.until_ms, NEVER, Due::Rejoined);
    }

    fn ask_again(&mut self, step: &mut Step<'_>, waiting: &Waiting) {
        let Waiting { session, id, ref request } = *waiting;
        // The session may be over by now, and with it its requests.
        let live = self.users.find(session).filter(|&slot| {
            let session = self.users.session(slot);
            session.user().is_some() && session.requests.get(id).is_some_and(Asked::is_undecided)
        });
        let Some(slot) = live else { return };
        if let Some(outcome) = self.decide(step, slot, id, request) {
            self.resolve(step, session, id, outcome);
        }
    }

    /// Says what is wrong, if anything is; how many deadlines there are.
    pub(crate) fn audit_rejoin(&self) -> Result<usize, String> {
        let is_due = self.rejoin.until_ms != NEVER;
        if is_due && !self.deadlines.contains(self.rejoin.until_ms, Due::Rejoined) {
            return Err("the time after the start has a deadline that is not kept".into());
        }
        if !is_due && !self.rejoin.waiting.is_empty() {
            return Err("requests wait for servers that had their time".into());
        }
        Ok(usize::from(is_due))
    }
}
