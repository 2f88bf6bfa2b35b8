//! Who is checked in: users, their sessions, and what their requests were answered.

use greenroom_protocol::wire::session_master::Outcome;
use greenroom_protocol::{
    Generation, InstanceId, Refusal, RequestId, Seat, SessionId, SessionKey, UserId,
};
use slab::Slab;
use smallvec::SmallVec;

use crate::deadlines::NEVER;
use crate::directory::slot_of;
use crate::index::PointIndex;
use crate::mint::ClusterSecret;
use crate::servers::SessionSlot;

use ecow::EcoString;

/// A user that has a session.
#[derive(Debug)]
pub(crate) struct User {
    pub(crate) id: UserId,
    pub(crate) name: EcoString,
    /// Its one live session.
    pub(crate) session: u32,
}

/// Whether a session goes on.
#[derive(Debug)]
pub(crate) enum Life {
    /// Of this user.
    Live {
        /// Slot of the user.
        user: u32,
    },
    /// Over. Remembered for a while, so that a client which did not hear of it does not begin anew with the same key
    /// and supersede the one that superseded it.
    Ended(Box<Refusal>),
}

/// A session.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: SessionId,
    /// Made by the client. None for one that only servers told of, after the master's memory was lost.
    pub(crate) key: Option<SessionKey>,
    pub(crate) life: Life,
    pub(crate) generation: Generation,
    /// The session server with its connection.
    pub(crate) binding: Option<SessionSlot>,
    /// The session server's number of the check-in that made the binding: said again, it is the same.
    pub(crate) bound_by: Option<u64>,
    /// When it is forgotten, if it has no connection; the index is [`crate::deadlines::Deadlines`].
    pub(crate) until_ms: u64,
    pub(crate) seats: SmallVec<[(InstanceId, Seat); 1]>,
    pub(crate) requests: Requests,
}

impl Session {
    pub(crate) fn new(id: SessionId, key: Option<SessionKey>, generation: Generation) -> Self {
        Self {
            id,
            key,
            life: Life::Live { user: 0 },
            generation,
            binding: None,
            bound_by: None,
            until_ms: NEVER,
            seats: SmallVec::new(),
            requests: Requests::default(),
        }
    }
    pub(crate) fn user(&self) -> Option<u32> {
        match self.life {
            Life::Live { user } => Some(user),
            Life::Ended(_) => None,
        }
    }
}

/// A session's row of the client table: what makes a request happen once however often it is asked.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    /// Answers up to this one are forgotten.
    pub(crate) answered: RequestId,
    /// The others, at most [`crate::Settings::requests_max`]; without an outcome while it is not decided.
    pub(crate) known: Vec<(RequestId, Option<Outcome>)>,
}

impl Requests {
    /// Forgets answers that the client has. What is not decided is kept all the same: its effect is under way.
    pub(crate) fn forget(&mut self, answered: RequestId) {
        if answered > self.answered {
            self.answered = answered;
            self.known.retain(|(id, outcome)| *id > answered || outcome.is_none());
        }
    }
    pub(crate) fn get(&self, id: RequestId) -> Option<&Option<Outcome>> {
        self.known.iter().find(|(known, _)| *known == id).map(|(_, outcome)| outcome)
    }
    /// Writes the outcome of a request that is not decided yet.
    pub(crate) fn decide(&mut self, id: RequestId, outcome: &Outcome) -> bool {
        match self.known.iter_mut().find(|(known, _)| *known == id) {
            Some((_, undecided @ None)) => {
                *undecided = Some(outcome.clone());
                true
            }
            Some((_, Some(_))) | None => false,
        }
    }
}

/// Users and sessions.
#[derive(Debug)]
pub(crate) struct Users {
    users: Slab<User>,
    by_user: PointIndex<u32>,
    sessions: Slab<Session>,
    by_session: PointIndex<u32>,
    by_key: PointIndex<u32>,
    /// How many sessions have a connection.
    bound: usize,
}

fn key_at<'a>(sessions: &'a Slab<Session>) -> impl Fn(u32) -> &'a SessionKey {
    |slot| sessions[slot as usize].key.as_ref().expect("only sessions with a key are in this index")
}

impl Users {
    pub(crate) fn new(secret: &ClusterSecret) -> Self {
        Self {
            users: Slab::new(),
            by_user: PointIndex::new(secret),
            sessions: Slab::new(),
            by_session: PointIndex::new(secret),
            by_key: PointIndex::new(secret),
            bound: 0,
        }
    }

    pub(crate) fn sessions_len(&self) -> usize {
        self.sessions.len()
    }
    pub(crate) fn bound(&self) -> usize {
        self.bound
    }
    pub(crate) fn user(&self, slot: u32) -> &User {
        &self.users[slot as usize]
    }
    pub(crate) fn find_user(&self, id: &UserId) -> Option<&User> {
        let slot = self.by_user.get(id, |slot| &self.users[slot as usize].id)?;
        Some(&self.users[slot as usize])
    }
    pub(crate) fn session(&self, slot: u32) -> &Session {
        &self.sessions[slot as usize]
    }
    /// A session to change; its id, key, life and binding have their own functions.
    pub(crate) fn session_mut(&mut self, slot: u32) -> &mut Session {
        &mut self.sessions[slot as usize]
    }
    pub(crate) fn find(&self, id: SessionId) -> Option<u32> {
        self.by_session.get(&id, |slot| &self.sessions[slot as usize].id)
    }
    pub(crate) fn find_key(&self, key: &SessionKey) -> Option<u32> {
        self.by_key.get(key, key_at(&self.sessions))
    }

    /// Adds a live session, and its user, who has no other. Both ids and the key are new.
    pub(crate) fn insert(&mut self, mut session: Session, id: &UserId, name: EcoString) -> u32 {
        let slot = slot_of(self.sessions.vacant_key());
        let user = slot_of(self.users.insert(User { id: id.clone(), name, session: slot }));
        self.by_user.insert(id, user, |user| &self.users[user as usize].id);
        session.life = Life::Live { user };
        let (id, key) = (session.id, session.key);
        self.sessions.insert(session);
        self.by_session.insert(&id, slot, |slot| &self.sessions[slot as usize].id);
        if let Some(key) = &key {
            self.by_key.insert(key, slot, key_at(&self.sessions));
        }
        slot
    }

    pub(crate) fn rename(&mut self, user: u32, name: &EcoString) {
        let record = &mut self.users[user as usize];
        if record.name != *name {
            record.name = name.clone();
        }
    }

    /// Binds a session to a server, or to none.
    pub(crate) fn bind(&mut self, slot: u32, server: Option<SessionSlot>) {
        let binding = &mut self.sessions[slot as usize].binding;
        self.bound = self.bound + usize::from(server.is_some()) - usize::from(binding.is_some());
        *binding = server;
    }

    /// Ends a session that is not bound: its user is gone, the record stays.
    pub(crate) fn end(&mut self, slot: u32, refusal: Refusal) {
        self.remove_user(slot);
        let session = &mut self.sessions[slot as usize];
        session.life = Life::Ended(Box::new(refusal));
        session.requests = Requests::default();
    }

    /// Forgets a session that is not bound.
    pub(crate) fn remove(&mut self, slot: u32) -> Session {
        self.remove_user(slot);
        let session = self.sessions.remove(slot as usize);
        self.by_session.remove(&session.id, slot);
        if let Some(key) = &session.key {
            self.by_key.remove(key, slot);
        }
        session
    }

    fn remove_user(&mut self, slot: u32) {
        if let Life::Live { user } = self.sessions[slot as usize].life {
            let record = self.users.remove(user as usize);
            self.by_user.remove(&record.id, user);
        }
    }

    /// Every session. For what may take long: hashes, audits.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Session)> {
        self.sessions.iter().map(|(slot, session)| (slot_of(slot), session))
    }

    /// Says what is wrong with the indexes, if anything is.
    pub(crate) fn audit(&self) -> Result<(), String> {
        let (mut live, mut bound, mut keyed) = (0, 0, 0);
        for (slot, session) in self.iter() {
            let id = session.id;
            if self.find(id) != Some(slot) {
                return Err(format!("session {id} is not found by its id"));
            }
            if let Some(key) = &session.key {
                keyed += 1;
                if self.find_key(key) != Some(slot) {
                    return Err(format!("session {id} is not found by its key"));
                }
            }
            bound += usize::from(session.binding.is_some());
            if let Some(user) = session.user() {
                live += 1;
                if self.find_user(&self.user(user).id).map(|user| user.session) != Some(slot) {
                    return Err(format!("session {id} is not found by its user"));
                }
            }
            let idle = session.binding.is_none();
            if idle == (session.until_ms == NEVER) {
                return Err(format!("session {id} has a connection and a deadline, or neither"));
            }
        }
        let held = [self.users.len(), self.by_user.len(), self.bound, self.by_key.len()];
        if held == [live, live, bound, keyed] && self.by_session.len() == self.sessions.len() {
            Ok(())
        } else {
            Err(format!("indexes hold {held:?} entries for {:?}", [live, live, bound, keyed]))
        }
    }
}
