//! What waits for the store: the newest of each document, in the order in which they changed first.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ecow::{EcoString, eco_format};
use greenroom_master_core::{CheckedIn, Document, KeptInstance, Placed, RankedMember};
use greenroom_protocol::{Incarnation, InstanceId, UserId};
use greenroom_storage::{Collection, Key, Owner, StorageError};
use greenroom_telemetry::Span;
use tokio::time::Instant;

/// Documents that may wait. What comes then is left out.
pub(crate) const WAITING_MAX: usize = 65_536;
/// How long a document waits for a newer one of its key: each is written ten times a second at most.
const SETTLE: Duration = Duration::from_millis(100);
/// The first pause before a document is tried again; each is twice as long.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// A document that is to be written.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) what: What,
    pub(crate) owner: Owner,
    /// When it may be written.
    due: Instant,
    /// How often it was tried in vain.
    attempts: u32,
    /// Until the store has it, if its command is sampled.
    pub(crate) span: Option<Span>,
}

impl Pending {
    /// It is not stored, and not tried again.
    pub(crate) fn failed(&mut self, error: &StorageError) {
        if let Some(span) = &mut self.span {
            span.fail(error);
        }
    }

    /// A newer document of the same key takes its place; a user's first check-in stays the first.
    fn give_way_to(&self, newer: &mut What) {
        if let (What::Profile { first_ms: before, .. }, What::Profile { first_ms, .. }) =
            (&self.what, newer)
        {
            *first_ms = (*first_ms).min(*before);
        }
    }
}

/// What is to stand there.
#[derive(Debug)]
pub(crate) enum What {
    Profile {
        user: UserId,
        name: EcoString,
        first_ms: u64,
        last_ms: u64,
    },
    Instance(Box<KeptInstance>),
    Member(RankedMember),
    /// Nothing any more.
    Gone,
}

/// What there is to do.
#[derive(Debug)]
pub(crate) enum Next {
    Do(Key, Pending),
    /// Nothing before then.
    At(Instant),
    Nothing,
}

#[derive(Debug, Default)]
pub(crate) struct Queue {
    waiting: BTreeMap<Key, Pending>,
    /// Those of `waiting` that are not being written just now, by when they may be.
    turns: BTreeSet<(Instant, Key)>,
    under_way: BTreeSet<Key>,
    /// Boards that eras before this one have stored are to be read.
    wish: Option<u32>,
    is_closing: bool,
    trouble: Option<String>,
    /// What the store was last seen to keep for people.
    set_aside: Option<String>,
}

impl Queue {
    /// Takes a document, with its span if its command is sampled; false if there is no room for it.
    pub(crate) fn put(
        &mut self,
        placed: &Placed<Document>,
        mut span: Option<Span>,
        now: Instant,
    ) -> bool {
        let owner = owner(placed);
        let (key, mut what) = pending(placed);
        if let Some(span) = &mut span {
            span.set("greenroom.key", key.to_string());
        }
        let is_full = self.len() >= WAITING_MAX;
        match self.waiting.entry(key) {
            Entry::Occupied(mut before) => {
                before.get().give_way_to(&mut what);
                let before = before.get_mut();
                (before.what, before.owner) = (what, owner);
                // What is written is of both; the older span lasts where the newer command is not sampled.
                before.span = span.or_else(|| before.span.take());
            }
            Entry::Vacant(_) if is_full => return false,
            Entry::Vacant(place) => {
                let due = now + SETTLE;
                if !self.under_way.contains(place.key()) {
                    self.turns.insert((due, place.key().clone()));
                }
                place.insert(Pending { what, owner, due, attempts: 0, span });
            }
        }
        true
    }

    /// The next that may be written; it is under way then, until [`Queue::done`] or [`Queue::again`].
    pub(crate) fn next(&mut self, now: Instant) -> Next {
        let Some((due, key)) = self.turns.first() else { return Next::Nothing };
        let pending = self.waiting.get(key).expect("what has a turn waits");
        if *due > now && !(self.is_closing && pending.attempts == 0) {
            return Next::At(*due);
        }
        let (_, key) = self.turns.pop_first().expect("it was looked at just now");
        let pending = self.waiting.remove(&key).expect("it was looked at just now");
        self.under_way.insert(key.clone());
        Next::Do(key, pending)
    }

    /// The store has answered.
    pub(crate) fn done(&mut self, key: &Key) {
        self.trouble = None;
        self.under_way.remove(key);
        if let Some(newer) = self.waiting.get(key) {
            self.turns.insert((newer.due, key.clone()));
        }
    }

    /// The store did not take it: it is tried again later, or a newer one in its place. True if the trouble is new.
    pub(crate) fn again(
        &mut self,
        key: Key,
        mut pending: Pending,
        error: &StorageError,
        now: Instant,
    ) -> bool {
        self.under_way.remove(&key);
        let attempts = pending.attempts + 1;
        let due = now + PAUSE_MAX.min(PAUSE_MIN * 2_u32.saturating_pow(pending.attempts));
        self.turns.insert((due, key.clone()));
        match self.waiting.entry(key) {
            Entry::Occupied(mut newer) => {
                let newer = newer.get_mut();
                pending.give_way_to(&mut newer.what);
                (newer.due, newer.attempts) = (due, attempts);
                newer.span = newer.span.take().or(pending.span);
            }
            Entry::Vacant(place) => {
                (pending.due, pending.attempts) = (due, attempts);
                place.insert(pending);
            }
        }
        let text = format!("the store does not take what the master has for it: {error}");
        self.trouble.replace(text).is_none()
    }

    /// Has the boards read that eras before this one have stored.
    pub(crate) fn wish(&mut self, era: u32) {
        self.wish = Some(era);
    }

    pub(crate) fn take_wish(&mut self) -> Option<u32> {
        self.wish.take()
    }

    /// How many wait or are under way.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len() + self.under_way.len()
    }

    pub(crate) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// The store was looked through for what is kept for people.
    pub(crate) fn saw_set_aside(&mut self, what: Option<String>) {
        self.set_aside = what;
    }

    pub(crate) fn set_aside(&self) -> Option<&str> {
        self.set_aside.as_deref()
    }

    /// Nothing more comes: what waits is written at once.
    pub(crate) fn close(&mut self) {
        self.is_closing = true;
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.is_closing
    }
}

/// By whom a document is written. A snapshot is its instance's own: it goes in the name of the life that is over, after
/// all that this one, or one before, can still write.
fn owner(placed: &Placed<Document>) -> Owner {
    match placed.what {
        Document::Unstored(_, Incarnation(incarnation)) => {
            Owner::Instance { incarnation, n: u64::MAX }
        }
        Document::CheckedIn(_)
        | Document::Kept(_)
        | Document::Over(_)
        | Document::Ranked(_)
        | Document::Unranked { .. } => Owner::Master { epoch: placed.epoch, lsn: placed.lsn },
    }
}

fn pending(placed: &Placed<Document>) -> (Key, What) {
    let at_ms = placed.at_ms;
    match placed.what.clone() {
        Document::CheckedIn(CheckedIn { user, name }) => {
            (profile_key(&user), What::Profile { user, name, first_ms: at_ms, last_ms: at_ms })
        }
        Document::Kept(kept) => (instance_key(kept.instance), What::Instance(kept)),
        Document::Over(instance) => (instance_key(instance), What::Gone),
        Document::Unstored(instance, _) => (snapshot_key(instance), What::Gone),
        Document::Ranked(member) => (member_key(&member.board, &member.user), What::Member(member)),
        Document::Unranked { board, user } => (member_key(&board, &user), What::Gone),
    }
}

fn profile_key(user: &UserId) -> Key {
    Key::new(Collection::Users, user.as_str()).expect("a user's id has 64 printable bytes at most")
}

fn snapshot_key(instance: InstanceId) -> Key {
    Key::new(Collection::Snapshots, eco_format!("{instance}"))
        .expect("an id is 26 letters and digits")
}

fn instance_key(instance: InstanceId) -> Key {
    Key::new(Collection::Instances, eco_format!("{instance}"))
        .expect("an id is 26 letters and digits")
}

/// Both names may have slashes: with the length of the first no two pairs have one key.
fn member_key(board: &EcoString, user: &UserId) -> Key {
    let id = eco_format!("{}/{board}/{user}", board.len());
    Key::new(Collection::Boards, id).expect("both names have 64 printable bytes at most")
}
