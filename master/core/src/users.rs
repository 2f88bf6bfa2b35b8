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

use crate::changes::{Ledger, Records, RowKey, Touched, Tracked, TrackedSlot, make_room};
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

impl Tracked for Session {
    type At = u32;
    fn key(slot: u32) -> RowKey {
        RowKey::Session(slot)
    }
}

impl TrackedSlot for Session {
    fn slot(slot: u32) -> u32 {
        slot
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
    sessions: Records<Session>,
    by_session: PointIndex<u32>,
    by_key: PointIndex<u32>,
    /// How many sessions have a connection.
    bound: usize,
    /// Between [`Users::fill`] and [`Users::order`] the indexes are empty.
    is_filling: bool,
}

fn key_at<'a>(sessions: &'a Records<Session>) -> impl Fn(u32) -> &'a SessionKey {
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

impl Users {
    pub(crate) fn new(secret: &ClusterSecret) -> Self {
        Self {
            users: Slab::new(),
            by_user: PointIndex::new(secret),
            ids: OrderedIndex::default(),
            names: OrderedIndex::default(),
            sessions: Records::default(),
            by_session: PointIndex::new(secret),
            by_key: PointIndex::new(secret),
            bound: 0,
            is_filling: false,
        }
    }

    /// Many users and sessions come, and nobody looks for one before they are there: [`Users::order`].
    pub(crate) fn fill(&mut self) {
        self.is_filling = true;
    }

    /// Makes the indexes of all that came.
    ///
    /// # Errors
    /// When two have the same id or key. The users are useless then.
    pub(crate) fn order(&mut self, secret: &ClusterSecret) -> Result<(), String> {
        let Self { users, sessions, ids, names, .. } = self;
        self.by_user = PointIndex::with_room(secret, users.len());
        for (slot, user) in users.iter() {
            let id_of = |slot: u32| &users[slot as usize].id;
            if !self.by_user.try_insert(&user.id, slot_of(slot), id_of) {
                return Err(format!("user {} has two sessions", user.id));
            }
        }
        self.by_session = PointIndex::with_room(secret, sessions.len());
        self.by_key = PointIndex::with_room(secret, sessions.len());
        for (slot, session) in sessions.iter() {
            let (id, slot) = (session.id, slot_of(slot));
            let id_of = |slot: u32| &sessions[slot as usize].id;
            let is_new = self.by_session.try_insert(&id, slot, id_of)
                && session
                    .key
                    .as_ref()
                    .is_none_or(|key| self.by_key.try_insert(key, slot, key_at(sessions)));
            if !is_new {
                return Err(format!("session {id} or its key is there twice"));
            }
        }
        let entries = |text: fn(&User) -> &[u8]| {
            users.iter().map(|(slot, user)| Entry::of_text(text(user), slot_of(slot))).collect()
        };
        *ids = OrderedIndex::of(entries(|user| user.id.as_str().as_bytes()), by_id(users));
        *names = OrderedIndex::of(entries(|user| user.name.as_bytes()), by_name(users));
        self.is_filling = false;
        Ok(())
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
    pub(crate) fn try_session(&self, slot: u32) -> Option<&Session> {
        self.sessions.get(slot as usize)
    }
    /// The first slot from this one on that has a session.
    pub(crate) fn session_from(&self, slot: u32) -> Option<u32> {
        self.sessions.next(slot)
    }
    /// A session to change; its id, key, life and binding have their own functions.
    pub(crate) fn session_mut(&mut self, touched: &Touched<Session>) -> &mut Session {
        self.sessions.get_mut(touched)
    }
    pub(crate) fn find(&self, id: SessionId) -> Option<u32> {
        self.by_session.get(&id, |slot| &self.sessions[slot as usize].id)
    }
    pub(crate) fn find_key(&self, key: &SessionKey) -> Option<u32> {
        self.by_key.get(key, key_at(&self.sessions))
    }

    /// Adds a live session, and its user, who has no other. Both ids and the key are new.
    pub(crate) fn insert(
        &mut self,
        ledger: &mut Ledger,
        mut session: Session,
        id: &UserId,
        name: EcoString,
    ) -> u32 {
        make_room(&mut self.users);
        self.sessions.make_room();
        let slot = slot_of(self.sessions.vacant_key());
        let user = slot_of(self.users.insert(User { id: id.clone(), name, session: slot }));
        if !self.is_filling {
            self.by_user.insert(id, user, |user| &self.users[user as usize].id);
            let record = &self.users[user as usize];
            self.ids.insert(Entry::of_text(id.as_str().as_bytes(), user), by_id(&self.users));
            self.names.insert(Entry::of_text(record.name.as_bytes(), user), by_name(&self.users));
        }
        session.life = Life::Live { user };
        self.keep(ledger, session)
    }

    /// Adds a session that is over, or whose user has just been added. Its id and key are new.
    pub(crate) fn keep(&mut self, ledger: &mut Ledger, session: Session) -> u32 {
        let (id, key) = (session.id, session.key);
        let slot = self.sessions.insert(ledger, session, |slot| slot);
        if self.is_filling {
            return slot;
        }
        self.by_session.insert(&id, slot, |slot| &self.sessions[slot as usize].id);
        if let Some(key) = &key {
            self.by_key.insert(key, slot, key_at(&self.sessions));
        }
        slot
    }

    /// Writes the name of a session's user, if it has one.
    pub(crate) fn rename(&mut self, touched: &Touched<Session>, name: &EcoString) {
        let Life::Live { user } = self.session(touched.at()).life else { return };
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
    pub(crate) fn set_key(&mut self, touched: &Touched<Session>, key: SessionKey) {
        self.sessions.get_mut(touched).key = Some(key);
        self.by_key.insert(&key, touched.at(), key_at(&self.sessions));
    }

    /// Binds a session to a server, or to none.
    pub(crate) fn bind(&mut self, touched: &Touched<Session>, server: Option<SessionSlot>) {
        let binding = &mut self.sessions.get_mut(touched).binding;
        self.bound = self.bound + usize::from(server.is_some()) - usize::from(binding.is_some());
        *binding = server;
    }

    /// Ends a session that is not bound: its user is gone, the record stays.
    pub(crate) fn end(&mut self, touched: &Touched<Session>, refusal: Refusal) {
        self.remove_user(touched);
        let session = self.sessions.get_mut(touched);
        session.life = Life::Ended(Box::new(refusal));
        session.requests = Requests::default();
    }

    /// Forgets a session that is not bound.
    pub(crate) fn remove(&mut self, touched: &Touched<Session>) -> Session {
        self.remove_user(touched);
        let slot = touched.at();
        let session = self.sessions.remove(touched);
        self.by_session.remove(&session.id, slot);
        if let Some(key) = &session.key {
            self.by_key.remove(key, slot);
        }
        session
    }

    /// What a session's record says of its user goes with the user, so it takes leave to change the session.
    fn remove_user(&mut self, touched: &Touched<Session>) {
        if let Life::Live { user } = self.session(touched.at()).life {
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
