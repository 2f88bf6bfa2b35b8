//! Where every instance lives, and who sits in it.
//!
//! Instances of one kind make one [`Shard`], which holds every index over them and which no other shard reads, so
//! that a listing, a join-or-create and a unique key are decided in one place. [`Directory`] only leads from an id to a
//! shard.
//! A record is changed through [`Directory::edit`] alone, which keeps the indexes in step.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use greenroom_protocol::search::Filter;
use greenroom_protocol::wire::client_session::Meta;
use greenroom_protocol::{
    Incarnation, InstanceId, Key, KindName, RequestId, Seat, SessionId, UserId,
};
use slab::Slab;

use crate::deadlines::NEVER;
use crate::index::PointIndex;
use crate::mint::ClusterSecret;
use crate::servers::GameSlot;

/// Where a record is: good until it is removed, and known to nobody outside the core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct At {
    shard: u32,
    slot: u32,
}

/// How far an instance is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// A game server is told to make it. Who wants it waits.
    Granted,
    /// The game server said that it runs.
    Running,
    /// The game server is told to close it. It keeps its key until it has.
    Closing,
}

/// A seat. *Reserved → taken → away → free*.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SeatStage {
    /// Nobody's.
    Free,
    /// Kept for a user who has not come for it: [`Wishes::expected`] says for whom. Its deadline is as that of a
    /// reserved one.
    Expected,
    /// Somebody may take it, until its deadline. There is none while the instance is only granted, or while the game
    /// server still has the holder before in it.
    Reserved,
    /// Its holder is there.
    Taken,
    /// Its holder's connection is gone; the game holds it for a while.
    Away,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SeatRecord {
    pub(crate) stage: SeatStage,
    /// Its holder; means nothing while no session has it: ask [`SeatRecord::holder`].
    pub(crate) session: SessionId,
    /// When the reservation ends; the index is [`crate::deadlines::Deadlines`].
    pub(crate) until_ms: u64,
}

impl SeatRecord {
    pub(crate) const FREE: Self =
        Self { stage: SeatStage::Free, session: SessionId(0), until_ms: NEVER };

    pub(crate) fn is_free(&self) -> bool {
        self.stage == SeatStage::Free
    }

    /// The session that has it.
    pub(crate) fn holder(&self) -> Option<SessionId> {
        match self.stage {
            SeatStage::Free | SeatStage::Expected => None,
            SeatStage::Reserved | SeatStage::Taken | SeatStage::Away => Some(self.session),
        }
    }
}

/// What was wished for an instance and has not come about yet. Most have none.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Wishes {
    /// The seats that are [`SeatStage::Expected`], and for whom. Index of it: the state's `expected`.
    pub(crate) expected: Vec<(Seat, UserId)>,
    /// While it is granted: the filter of who wanted any such instance. Who wants the same meets here.
    pub(crate) filter: Option<Filter>,
}

/// Somebody who is answered when the instance runs or is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Waiter {
    pub(crate) session: SessionId,
    pub(crate) id: RequestId,
    pub(crate) wants: Wants,
}

/// What a waiter asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wants {
    /// That it runs.
    Created,
    /// This seat, once it runs and the seat is vacant.
    Seat(Seat),
    /// That it is closed.
    Destroyed,
}

#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) id: InstanceId,
    pub(crate) incarnation: Incarnation,
    pub(crate) server: GameSlot,
    pub(crate) stage: Stage,
    /// The game lets new holders of seats in.
    pub(crate) open: bool,
    /// Its game server is suspect: nobody is sent there who could go elsewhere.
    pub(crate) suspect: bool,
    /// Found by nobody: who wants in has its id or its key.
    pub(crate) private: bool,
    /// When it was granted, by the log's clock.
    pub(crate) created_ms: u64,
    pub(crate) owner: Option<UserId>,
    pub(crate) key: Option<Key>,
    pub(crate) seats_max: u16,
    /// How much of its server's capacity it takes.
    pub(crate) weight: u32,
    pub(crate) wishes: Option<Box<Wishes>>,
    pub(crate) meta: Meta,
    pub(crate) waiters: Vec<Waiter>,
    /// Who lost a seat by a decision here and is still in it at the game server, whose word that it is vacant will
    /// come. Whoever gets the seat meanwhile waits for it, so as not to meet the holder before.
    pub(crate) vacating: Vec<(Seat, SessionId)>,
    /// By number; those after the end are free.
    seats: Vec<SeatRecord>,
    /// How many are not free.
    taken: u16,
}

/// What the ordered indexes of a shard say of an instance: if it changes, they do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Places {
    listed: bool,
    open: Option<Reverse<u16>>,
}

impl Instance {
    pub(crate) fn granted(
        id: InstanceId,
        incarnation: Incarnation,
        server: GameSlot,
        seats_max: u16,
        weight: u32,
    ) -> Self {
        Self {
            id,
            incarnation,
            server,
            stage: Stage::Granted,
            open: true,
            suspect: false,
            private: false,
            created_ms: 0,
            owner: None,
            key: None,
            seats_max,
            weight,
            wishes: None,
            meta: Meta::new(),
            waiters: Vec::new(),
            vacating: Vec::new(),
            seats: Vec::new(),
            taken: 0,
        }
    }

    /// The seats that are or were used, with their numbers.
    pub(crate) fn seats(&self) -> impl Iterator<Item = (Seat, &SeatRecord)> {
        (0..).map(Seat).zip(&self.seats)
    }

    pub(crate) fn seat(&self, seat: Seat) -> SeatRecord {
        self.seats.get(usize::from(seat.0)).copied().unwrap_or(SeatRecord::FREE)
    }

    /// How many seats are not free.
    pub(crate) fn seats_taken(&self) -> u16 {
        self.taken
    }

    /// The seat that the session holds.
    pub(crate) fn seat_of(&self, session: SessionId) -> Option<Seat> {
        self.seats().find(|(_, record)| record.holder() == Some(session)).map(|(seat, _)| seat)
    }

    /// The users that are expected, and their seats.
    pub(crate) fn expected(&self) -> &[(Seat, UserId)] {
        self.wishes.as_ref().map_or(&[], |wishes| &wishes.expected)
    }

    /// The seat that is kept for a user who has not come.
    pub(crate) fn seat_expecting(&self, user: &UserId) -> Option<Seat> {
        self.expected().iter().find(|(_, expected)| expected == user).map(|(seat, _)| *seat)
    }

    /// Changes what is wished for it.
    pub(crate) fn wish(&mut self, change: impl FnOnce(&mut Wishes)) {
        let mut wishes = self.wishes.take().unwrap_or_default();
        change(&mut wishes);
        self.wishes = (*wishes != Wishes::default()).then_some(wishes);
    }

    /// How many seats are free.
    pub(crate) fn seats_free(&self) -> u16 {
        self.seats_max.saturating_sub(self.taken)
    }

    /// Whether somebody is still in this seat at the game server.
    pub(crate) fn is_vacating(&self, seat: Seat) -> bool {
        self.vacating.iter().any(|(vacating, _)| *vacating == seat)
    }

    /// The seat to give away next: the lowest that is free and vacant, then the lowest that is free.
    pub(crate) fn seat_free(&self) -> Option<Seat> {
        if self.taken >= self.seats_max {
            return None;
        }
        let free = || self.seats().filter(|(_, record)| record.is_free()).map(|(seat, _)| seat);
        let unused = || u16::try_from(self.seats.len()).ok().filter(|&len| len < self.seats_max);
        let vacant = free().find(|&seat| !self.is_vacating(seat));
        vacant.or_else(|| unused().map(Seat)).or_else(|| free().next())
    }

    /// Writes a seat, which is below `seats_max`.
    pub(crate) fn seat_set(&mut self, seat: Seat, record: SeatRecord) {
        let number = usize::from(seat.0);
        if self.seats.len() <= number {
            self.seats.resize(number + 1, SeatRecord::FREE);
        }
        let before = std::mem::replace(&mut self.seats[number], record);
        match (before.is_free(), record.is_free()) {
            (true, false) => self.taken += 1,
            (false, true) => self.taken -= 1,
            (true, true) | (false, false) => {}
        }
    }

    /// A named instance is entered by its name only: who asks for any instance of the kind is not sent into it.
    fn places(&self) -> Places {
        let is_open = self.open
            && !self.suspect
            && self.stage != Stage::Closing
            && self.key.is_none()
            && !self.private
            && self.taken < self.seats_max;
        Places {
            listed: self.open && !self.private && self.stage == Stage::Running,
            open: is_open.then_some(Reverse(self.taken)),
        }
    }
}

/// All instances of one kind.
#[derive(Debug)]
struct Shard {
    kind: KindName,
    instances: Slab<Instance>,
    keys: PointIndex<u32>,
    /// Running and open, by id: what `list` shows.
    listed: BTreeMap<InstanceId, u32>,
    /// With room for whoever asks for any, the fullest first, so that players meet and instances end.
    open: BTreeMap<(Reverse<u16>, InstanceId), u32>,
}

impl Shard {
    fn place(&mut self, slot: u32, id: InstanceId, places: Places) {
        if places.listed {
            self.listed.insert(id, slot);
        }
        if let Some(taken) = places.open {
            self.open.insert((taken, id), slot);
        }
    }
    fn displace(&mut self, id: InstanceId, places: Places) {
        if places.listed {
            self.listed.remove(&id);
        }
        if let Some(taken) = places.open {
            self.open.remove(&(taken, id));
        }
    }
}

/// Where every instance lives.
#[derive(Debug)]
pub(crate) struct Directory {
    secret: ClusterSecret,
    shards: Vec<Shard>,
    kinds: BTreeMap<KindName, u32>,
    by_id: PointIndex<At>,
}

fn key_at<'a>(instances: &'a Slab<Instance>) -> impl Fn(u32) -> &'a Key {
    |slot| {
        instances[slot as usize].key.as_ref().expect("only instances with a key are in this index")
    }
}

impl Directory {
    pub(crate) fn new(secret: &ClusterSecret) -> Self {
        Self {
            secret: secret.clone(),
            shards: Vec::new(),
            kinds: BTreeMap::new(),
            by_id: PointIndex::new(secret),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(crate) fn find(&self, id: InstanceId) -> Option<At> {
        self.by_id.get(&id, |at| &self.get(at).id)
    }

    pub(crate) fn get(&self, at: At) -> &Instance {
        &self.shards[at.shard as usize].instances[at.slot as usize]
    }

    pub(crate) fn kind(&self, at: At) -> &KindName {
        &self.shards[at.shard as usize].kind
    }

    /// The instance of the kind that holds the key.
    pub(crate) fn by_key(&self, kind: &KindName, key: &Key) -> Option<At> {
        let shard = *self.kinds.get(kind)?;
        let Shard { keys, instances, .. } = &self.shards[shard as usize];
        keys.get(key, key_at(instances)).map(|slot| At { shard, slot })
    }

    /// The instances of the kind to send somebody to who wants any: those with room, the fullest first.
    pub(crate) fn open(&self, kind: &KindName) -> impl Iterator<Item = At> {
        let shard = self.kinds.get(kind).copied();
        shard.into_iter().flat_map(|shard| {
            self.shards[shard as usize].open.values().map(move |&slot| At { shard, slot })
        })
    }

    /// Those of the kind that are running and open, by id, after `after`.
    pub(crate) fn listed(
        &self,
        kind: &KindName,
        after: Option<InstanceId>,
    ) -> impl Iterator<Item = &Instance> {
        use std::ops::Bound::{Excluded, Unbounded};
        let shard = self.kinds.get(kind).map(|&shard| &self.shards[shard as usize]);
        let from = after.map_or(Unbounded, Excluded);
        shard.into_iter().flat_map(move |shard| {
            (shard.listed.range((from, Unbounded)))
                .map(|(_, &slot)| &shard.instances[slot as usize])
        })
    }

    /// Adds an instance whose id, and whose key in its kind, are new.
    pub(crate) fn insert(&mut self, kind: &KindName, instance: Instance) -> At {
        let shard = self.shard(kind);
        let (id, key, places) = (instance.id, instance.key.clone(), instance.places());
        let of_kind = &mut self.shards[shard as usize];
        let slot = slot_of(of_kind.instances.insert(instance));
        if let Some(key) = &key {
            let Shard { keys, instances, .. } = of_kind;
            keys.insert(key, slot, key_at(instances));
        }
        of_kind.place(slot, id, places);
        let at = At { shard, slot };
        let shards = &self.shards;
        self.by_id.insert(&id, at, |at| &shards[at.shard as usize].instances[at.slot as usize].id);
        at
    }

    pub(crate) fn remove(&mut self, at: At) -> Instance {
        let id = self.get(at).id;
        self.by_id.remove(&id, at);
        let shard = &mut self.shards[at.shard as usize];
        let instance = shard.instances.remove(at.slot as usize);
        if let Some(key) = &instance.key {
            shard.keys.remove(key, at.slot);
        }
        shard.displace(id, instance.places());
        instance
    }

    /// Changes a record and, where the change shows there, the indexes. Its id and key stay.
    pub(crate) fn edit<R>(&mut self, at: At, change: impl FnOnce(&mut Instance) -> R) -> R {
        let shard = &mut self.shards[at.shard as usize];
        let instance = &mut shard.instances[at.slot as usize];
        let (id, before) = (instance.id, instance.places());
        let result = change(instance);
        let after = instance.places();
        if before != after {
            shard.displace(id, before);
            shard.place(at.slot, id, after);
        }
        result
    }

    /// Every record, shard by shard. For what may take long: hashes, audits.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (At, &KindName, &Instance)> {
        (0..).zip(&self.shards).flat_map(|(shard, of_kind)| {
            of_kind.instances.iter().map(move |(slot, instance)| {
                (At { shard, slot: slot_of(slot) }, &of_kind.kind, instance)
            })
        })
    }

    /// Says what is wrong with the indexes, if anything is.
    pub(crate) fn audit(&self) -> Result<(), String> {
        let (mut total, mut listed, mut open, mut keyed) = (0, 0, 0, 0);
        for (at, kind, instance) in self.iter() {
            let id = instance.id;
            total += 1;
            let places = instance.places();
            let shard = &self.shards[at.shard as usize];
            if self.find(id) != Some(at) {
                return Err(format!("instance {id} is not found by its id"));
            }
            if instance.seats().filter(|(_, seat)| !seat.is_free()).count()
                != usize::from(instance.taken)
                || instance.taken > instance.seats_max
            {
                return Err(format!("instance {id} counts its seats wrong"));
            }
            if places.listed != (shard.listed.get(&id) == Some(&at.slot)) {
                return Err(format!("instance {id} is listed wrong"));
            }
            listed += usize::from(places.listed);
            if let Some(taken) = places.open {
                open += 1;
                if shard.open.get(&(taken, id)) != Some(&at.slot) {
                    return Err(format!("instance {id} is not where the open ones are"));
                }
            }
            if let Some(key) = &instance.key {
                keyed += 1;
                if self.by_key(kind, key) != Some(at) {
                    return Err(format!("instance {id} is not found by its key"));
                }
            }
        }
        let counted = [total, listed, open, keyed];
        let sum = |count: fn(&Shard) -> usize| self.shards.iter().map(count).sum();
        let held = [
            self.len(),
            sum(|shard| shard.listed.len()),
            sum(|shard| shard.open.len()),
            sum(|shard| shard.keys.len()),
        ];
        if counted == held {
            Ok(())
        } else {
            Err(format!("indexes hold {held:?} entries for {counted:?}"))
        }
    }

    fn shard(&mut self, kind: &KindName) -> u32 {
        if let Some(&shard) = self.kinds.get(kind) {
            return shard;
        }
        let shard = slot_of(self.shards.len());
        self.shards.push(Shard {
            kind: kind.clone(),
            instances: Slab::new(),
            keys: PointIndex::new(&self.secret),
            listed: BTreeMap::new(),
            open: BTreeMap::new(),
        });
        self.kinds.insert(kind.clone(), shard);
        shard
    }
}

/// A slab's index as the indexes hold it.
pub(crate) fn slot_of(index: usize) -> u32 {
    u32::try_from(index).expect("four thousand million records do not fit into memory")
}
