//! Who is checked in: users, their sessions, and what their requests were answered.
//!
//! There may be a million of them, so a record takes little: what most don't have is in a box.

use std::cmp::Ordering;

use ecow::EcoString;
use greenroom_protocol::wire::client_session::{Created, Destroyed, Left};
use greenroom_protocol::wire::session_master::Outcome;
use greenroom_protocol::{Generation, Refusal, RequestId, Seat, SessionId, SessionKey, UserId};
use slab::Slab;
use smallvec::SmallVec;

use crate::deadlines::NEVER;
use crate::directory::{At, slot_of};
use crate::index::PointIndex;
use crate::mint::ClusterSecret;
use crate::ordered::{Entry, OrderedIndex};
use crate::servers::SessionSlot;

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
    /// Made by the client. None for one that only a game server told of, after the master's memory was lost.
    pub(crate) key: Option<SessionKey>,
    pub(crate) life: Life,
    pub(crate) generation: Generation,
    /// The session server with its connection.
    pub(crate) binding: Option<SessionSlot>,
    /// The session server's number of the check-in that made the binding: said again, it is the same.
    pub(crate) bound_by: Option<u64>,
    /// When it is forgotten, if it has no connection; the index is [`crate::deadlines::Deadlines`].
    pub(crate) until_ms: u64,
    /// Its seats, the oldest first. Most have one.
    pub(crate) seats: SmallVec<[(At, Seat); 1]>,
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
    /// The others, at most four for each of [`crate::Settings::requests_max`]. Most sessions have one: their last.
    known: SmallVec<[Asked; 1]>,
}

/// A request, and what it was answered. Nearly every user who is online has one, so it takes little: what is long is in
/// a box, and a seat is told by where it is.
#[derive(Debug)]
pub(crate) enum Asked {
    /// It is not decided.
    Undecided(RequestId),
    /// An instance runs.
    Created(RequestId, Box<Created>),
    /// A seat that the session has held ever since. Before anything changes that the answer said, it is written out as
    /// it was answered: [`State::write_out`](crate::State).
    Granted(RequestId, At, Seat),
    /// A seat is free.
    Left(RequestId, Box<Left>),
    /// An instance is closed.
    Destroyed(RequestId, Box<Destroyed>),
    /// No.
    Refused(RequestId, Box<Refusal>),
    /// Any other answer, or a seat that the session may not hold any more.
    Other(RequestId, Box<Outcome>),
}

const _: () =
    assert!(size_of::<Asked>() <= 16, "a byte of each is a megabyte of a million sessions");

impl Asked {
    /// Its number.
    pub(crate) fn id(&self) -> RequestId {
        match self {
            Self::Undecided(id)
            | Self::Created(id, _)
            | Self::Granted(id, ..)
            | Self::Left(id, _)
            | Self::Destroyed(id, _)
            | Self::Refused(id, _)
            | Self::Other(id, _) => *id,
        }
    }
    pub(crate) fn is_undecided(&self) -> bool {
        matches!(self, Self::Undecided(_))
    }
    /// An answer that may be kept for as long as is wished, whatever happens.
    pub(crate) fn lasting(id: RequestId, outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Created(created) => Self::Created(id, Box::new(created.clone())),
            Outcome::Left(left) => Self::Left(id, Box::new(left.clone())),
            Outcome::Destroyed(destroyed) => Self::Destroyed(id, Box::new(destroyed.clone())),
            Outcome::Refused(refusal) => Self::Refused(id, Box::new(refusal.clone())),
            Outcome::Granted(_)
            | Outcome::Found(_)
            | Outcome::Watching(_)
            | Outcome::Unwatched(_)
            | Outcome::Ranking(_) => Self::Other(id, Box::new(outcome.clone())),
        }
    }
}

impl Requests {
    fn bytes(&self) -> usize {
        let spilled = if self.known.spilled() { self.known.capacity() } else { 0 };
        let boxed = self.known.iter().map(|known| match known {
            Asked::Undecided(_) | Asked::Granted(..) => 0,
            Asked::Created(_, created) => size_of_val(&**created),
            Asked::Left(_, left) => size_of_val(&**left),
            Asked::Destroyed(_, destroyed) => size_of_val(&**destroyed),
            Asked::Refused(_, refusal) => size_of_val(&**refusal),
            Asked::Other(_, outcome) => size_of_val(&**outcome),
        });
        spilled * size_of::<Asked>() + boxed.sum::<usize>()
    }
    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }
    /// How many are not decided.
    pub(crate) fn undecided(&self) -> usize {
        self.known.iter().filter(|asked| matches!(asked, Asked::Undecided(_))).count()
    }
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Asked> {
        self.known.iter()
    }
    /// A request that is known.
    pub(crate) fn get(&self, id: RequestId) -> Option<&Asked> {
        self.known.iter().find(|known| known.id() == id)
    }
    /// Forgets answers that the client has. What is not decided is kept all the same: its effect is under way.
    pub(crate) fn forget(&mut self, answered: RequestId) {
        if answered <= self.answered {
            return;
        }
        self.answered = answered;
        self.known.retain(|known| known.id() > answered || known.is_undecided());
        if self.known.len() <= self.known.inline_size() {
            self.known.shrink_to_fit();
        }
    }
    /// Adds one that is not known, without an outcome.
    pub(crate) fn begin(&mut self, id: RequestId) {
        self.known.push(Asked::Undecided(id));
    }
    /// Writes the outcome of a request that is not decided yet.
    pub(crate) fn decide(&mut self, decided: Asked) -> bool {
        let known = self.known.iter_mut().find(|known| known.id() == decided.id());
        let undecided = known.filter(|known| known.is_undecided());
        undecided.map(|known| *known = decided).is_some()
    }
    /// Writes the answers that say a seat out, as `outcome`.
    pub(crate) fn write_out(&mut self, at: At, seat: Seat, outcome: &Outcome) {
        for known in &mut self.known {
            if let Asked::Granted(id, there, taken) = *known
                && (there, taken) == (at, seat)
            {
                *known = Asked::lasting(id, outcome);
            }
        }
    }
}

/// Users and sessions.
#[derive(Debug)]
pub(crate) struct Users {
    users: Slab<User>,
    by_user: PointIndex<u32>,
    /// Users by id.
    ids: OrderedIndex,
    /// Users by name, then by id.
    names: OrderedIndex,
    sessions: Slab<Session>,
    by_session: PointIndex<u32>,
    by_key: PointIndex<u32>,
    /// How many sessions have a connection.
    bound: usize,
}

fn key_at<'a>(sessions: &'a Slab<Session>) -> impl Fn(u32) -> &'a SessionKey {
    |slot| sessions[slot as usize].key.as_ref().expect("only sessions with a key are in this index")
}

fn by_id(users: &Slab<User>) -> impl Fn(Entry, Entry) -> Ordering {
    |a, b| users[a.slot as usize].id.cmp(&users[b.slot as usize].id)
}

fn by_name(users: &Slab<User>) -> impl Fn(Entry, Entry) -> Ordering {
    |a, b| {
        let (a, b) = (&users[a.slot as usize], &users[b.slot as usize]);
        (&a.name, &a.id).cmp(&(&b.name, &b.id))
    }
}

/// Makes room for one more record, and for an eighth more where there are many: a table that doubles, as it would by
/// itself, is half empty after it did.
fn make_room<T>(records: &mut Slab<T>) {
    if records.len() == records.capacity() {
        records.reserve_exact((records.len() / 8).max(4));
    }
}

impl Users {
    pub(crate) fn new(secret: &ClusterSecret) -> Self {
        Self {
            users: Slab::new(),
            by_user: PointIndex::new(secret),
            ids: OrderedIndex::default(),
            names: OrderedIndex::default(),
            sessions: Slab::new(),
            by_session: PointIndex::new(secret),
            by_key: PointIndex::new(secret),
            bound: 0,
        }
    }

    /// How many users have a session.
    pub(crate) fn len(&self) -> usize {
        self.users.len()
    }
    /// The users by id; an entry's slot is for [`Users::user`].
    pub(crate) fn ids(&self) -> &OrderedIndex {
        &self.ids
    }
    /// The users by name, then by id.
    pub(crate) fn names(&self) -> &OrderedIndex {
        &self.names
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
        make_room(&mut self.users);
        make_room(&mut self.sessions);
        let slot = slot_of(self.sessions.vacant_key());
        let user = slot_of(self.users.insert(User { id: id.clone(), name, session: slot }));
        self.by_user.insert(id, user, |user| &self.users[user as usize].id);
        let record = &self.users[user as usize];
        self.ids.insert(Entry::of_text(id.as_str().as_bytes(), user), by_id(&self.users));
        self.names.insert(Entry::of_text(record.name.as_bytes(), user), by_name(&self.users));
        session.life = Life::Live { user };
        self.keep(session)
    }

    /// Adds a session that is over, or whose user has just been added. Its id and key are new.
    pub(crate) fn keep(&mut self, session: Session) -> u32 {
        let (id, key) = (session.id, session.key);
        let slot = slot_of(self.sessions.insert(session));
        self.by_session.insert(&id, slot, |slot| &self.sessions[slot as usize].id);
        if let Some(key) = &key {
            self.by_key.insert(key, slot, key_at(&self.sessions));
        }
        slot
    }

    pub(crate) fn rename(&mut self, user: u32, name: &EcoString) {
        let record = &self.users[user as usize];
        if record.name != *name {
            let entry = Entry::of_text(record.name.as_bytes(), user);
            self.names.remove(entry, by_name(&self.users));
            self.users[user as usize].name = name.clone();
            let entry = Entry::of_text(name.as_bytes(), user);
            self.names.insert(entry, by_name(&self.users));
        }
    }

    /// Gives a key to a session that has none. No other session has it.
    pub(crate) fn set_key(&mut self, slot: u32, key: SessionKey) {
        self.sessions[slot as usize].key = Some(key);
        self.by_key.insert(&key, slot, key_at(&self.sessions));
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
            let record = &self.users[user as usize];
            let id = Entry::of_text(record.id.as_str().as_bytes(), user);
            let name = Entry::of_text(record.name.as_bytes(), user);
            self.ids.remove(id, by_id(&self.users));
            self.names.remove(name, by_name(&self.users));
            let record = self.users.remove(user as usize);
            self.by_user.remove(&record.id, user);
        }
    }

    /// Bytes of heap of the users with their indexes, and of the sessions with theirs.
    pub(crate) fn memory(&self) -> (usize, usize) {
        let users = self.users.capacity() * size_of::<Option<User>>()
            + self.by_user.bytes()
            + self.ids.bytes()
            + self.names.bytes();
        let lists = self.sessions.iter().map(|(_, session)| {
            let spilled = if session.seats.spilled() { session.seats.capacity() } else { 0 };
            spilled * size_of::<(At, Seat)>() + session.requests.bytes()
        });
        let sessions = self.sessions.capacity() * size_of::<Option<Session>>()
            + self.by_session.bytes()
            + self.by_key.bytes()
            + lists.sum::<usize>();
        (users, sessions)
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
        self.ids.audit(by_id(&self.users))?;
        self.names.audit(by_name(&self.users))?;
        let users = [self.users.len(), self.by_user.len(), self.ids.len(), self.names.len()];
        if users != [live; 4] {
            return Err(format!("{live} users are in lists as {users:?}"));
        }
        let held = [self.bound, self.by_key.len()];
        if held == [bound, keyed] && self.by_session.len() == self.sessions.len() {
            Ok(())
        } else {
            Err(format!("indexes hold {held:?} entries for {:?}", [bound, keyed]))
        }
    }
}
