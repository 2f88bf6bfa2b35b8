//! Where every instance lives, and who sits in it.
//!
//! Instances of one kind make one [`Shard`], which holds every index over them and which no other shard reads, so
//! that a listing, a join-or-create and a unique key are decided in one place. [`Directory`] only leads from an id to a
//! shard.
//! A record is changed through [`Directory::edit`] alone, which keeps the indexes in step.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use ecow::{EcoString, eco_format};
use greenroom_protocol::search::{FieldInfo, FieldType, Filter, INSTANCE_FIELDS};
use greenroom_protocol::wire::client_session::{Listed, Meta};
use greenroom_protocol::{
    Incarnation, InstanceId, Key, KindName, RequestId, Seat, SessionId, UserId,
};
use serde::{Deserialize, Serialize};

use crate::changes::{Ledger, Records, RowKey, Touched, TouchedAll, Tracked, TrackedSlot};
use crate::deadlines::NEVER;
use crate::index::{PointIndex, text_number};
use crate::mint::ClusterSecret;
use crate::ordered::{Entry, OrderedIndex};
use crate::search::{Column, FieldId, Packed, Record, Said, Schema, Table, ValueRef};
use crate::servers::{GameServer, GameSlot, Servers};

/// Where a record is: good until it is removed, and known to nobody outside the core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct At {
    pub(crate) shard: u32,
    pub(crate) slot: u32,
}

impl At {
    /// No record is before it.
    pub(crate) const FIRST: Self = Self { shard: 0, slot: 0 };
}

impl Tracked for Instance {
    type At = At;
    fn key(at: At) -> RowKey {
        RowKey::Instance(at)
    }
}

impl TrackedSlot for Instance {
    fn slot(at: At) -> u32 {
        at.slot
    }
}

/// How far an instance is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Stage {
    /// A game server is told to make it. Who wants it waits.
    Granted,
    /// The game server said that it runs.
    Running,
    /// The game server is told to close it. It keeps its key until it has.
    Closing,
    /// Its game server is gone, and it waits for another one that can take it. It stays on the list of the one it was
    /// on.
    Stranded,
    /// A game server is told to take it up from what was stored of it.
    Restoring,
}

/// A seat. *Reserved → taken → away → free*.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Wants {
    /// That it runs.
    Created,
    /// This seat, once it runs and the seat is vacant.
    Seat(Seat),
    /// That it is closed.
    Destroyed,
}

/// What most instances do not have.
#[derive(Debug)]
struct Rare {
    key: Option<Key>,
    durable: bool,
    wishes: Wishes,
    waiters: Vec<Waiter>,
    vacating: Vec<(Seat, SessionId)>,
}

impl Rare {
    const NONE: Self = Self {
        key: None,
        durable: false,
        wishes: Wishes { expected: Vec::new(), filter: None },
        waiters: Vec::new(),
        vacating: Vec::new(),
    };

    fn is_none(&self) -> bool {
        let Self { key, durable, wishes: Wishes { expected, filter }, waiters, vacating } = self;
        key.is_none()
            && !durable
            && filter.is_none()
            && expected.is_empty()
            && waiters.is_empty()
            && vacating.is_empty()
    }
}

static NONE: Rare = Rare::NONE;

/// A million of them are what the master's memory is measured by: what most do not have stands elsewhere.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) id: InstanceId,
    pub(crate) incarnation: Incarnation,
    /// When it was granted, by the log's clock.
    pub(crate) created_ms: u64,
    pub(crate) owner: Option<UserId>,
    pub(crate) server: GameSlot,
    /// How much of its server's capacity it takes.
    pub(crate) weight: u32,
    pub(crate) seats_max: u16,
    /// How many are not free.
    taken: u16,
    pub(crate) stage: Stage,
    /// The game lets new holders of seats in.
    pub(crate) open: bool,
    /// Its game server is suspect: nobody is sent there who could go elsewhere.
    pub(crate) suspect: bool,
    /// Found by nobody: who wants in has its id or its key.
    pub(crate) private: bool,
    /// What the game says of it. Changes by [`Directory::edit_meta`], since it is indexed.
    meta: Packed,
    /// By number; those after the end are free.
    seats: Box<[PackedSeat]>,
    rare: Option<Box<Rare>>,
}

const _: () =
    assert!(size_of::<Instance>() <= 112, "a byte of each is a megabyte of a million of them");

/// A [`SeatRecord`] in 16 bytes.
#[derive(Clone, Copy, Debug)]
struct PackedSeat {
    session: SessionId,
    /// The stage's number in the lowest three bits, and the deadline, which no clock reaches in 61 bits.
    until_stage: u64,
}

impl PackedSeat {
    const STAGE_BITS: u32 = 3;

    fn of(record: &SeatRecord) -> Self {
        let until = record.until_ms.min(NEVER >> Self::STAGE_BITS);
        let stage = match record.stage {
            SeatStage::Free => 0,
            SeatStage::Expected => 1,
            SeatStage::Reserved => 2,
            SeatStage::Taken => 3,
            SeatStage::Away => 4,
        };
        Self { session: record.session, until_stage: until << Self::STAGE_BITS | stage }
    }
    fn record(self) -> SeatRecord {
        let stage = match self.until_stage & ((1 << Self::STAGE_BITS) - 1) {
            0 => SeatStage::Free,
            1 => SeatStage::Expected,
            2 => SeatStage::Reserved,
            3 => SeatStage::Taken,
            _ => SeatStage::Away,
        };
        let until_ms = self.until_stage >> Self::STAGE_BITS;
        let until_ms = if until_ms == NEVER >> Self::STAGE_BITS { NEVER } else { until_ms };
        SeatRecord { stage, session: self.session, until_ms }
    }
}

/// What the ordered indexes of a shard say of an instance: if it changes, they do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Places {
    listed: bool,
    /// Seats taken, of one that whoever wants any is sent to.
    open: Option<u16>,
    /// For live searches.
    taken: u16,
    suspect: bool,
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
            created_ms: 0,
            owner: None,
            server,
            weight,
            seats_max,
            taken: 0,
            stage: Stage::Granted,
            open: true,
            suspect: false,
            private: false,
            meta: Packed::default(),
            seats: Box::default(),
            rare: None,
        }
    }

    fn rare(&self) -> &Rare {
        self.rare.as_deref().unwrap_or(&NONE)
    }
    fn rare_mut(&mut self) -> &mut Rare {
        self.rare.get_or_insert_with(|| Box::new(Rare::NONE))
    }
    /// Gives back what is not needed any more.
    fn tidy(&mut self) {
        if self.rare.as_ref().is_some_and(|rare| rare.is_none()) {
            self.rare = None;
        }
    }

    /// Its unique key.
    pub(crate) fn key(&self) -> Option<&Key> {
        self.rare().key.as_ref()
    }
    /// Names an instance that is not in the directory yet.
    pub(crate) fn key_set(&mut self, key: Option<Key>) {
        self.rare_mut().key = key;
        self.tidy();
    }
    /// It is stored while it runs, and goes on elsewhere when its game server is lost.
    pub(crate) fn durable(&self) -> bool {
        self.rare().durable
    }
    /// Its record stays in the store for as long as it is there.
    pub(crate) fn is_kept(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.durable || rare.key.is_some())
    }
    /// Says so of an instance that is not in the directory yet.
    pub(crate) fn durable_set(&mut self, durable: bool) {
        self.rare_mut().durable = durable;
        self.tidy();
    }
    /// Who is answered when it runs or is closed.
    pub(crate) fn waiters(&self) -> &[Waiter] {
        &self.rare().waiters
    }
    pub(crate) fn waiters_mut(&mut self) -> &mut Vec<Waiter> {
        &mut self.rare_mut().waiters
    }
    /// Who lost a seat by a decision here and is still in it at the game server, whose word that it is vacant will
    /// come. Whoever gets the seat meanwhile waits for it, so as not to meet the holder before.
    pub(crate) fn vacating(&self) -> &[(Seat, SessionId)] {
        &self.rare().vacating
    }
    pub(crate) fn vacating_mut(&mut self) -> &mut Vec<(Seat, SessionId)> {
        &mut self.rare_mut().vacating
    }
    /// What was wished for it and has not come about.
    pub(crate) fn wishes(&self) -> &Wishes {
        &self.rare().wishes
    }
    /// Changes what is wished for it.
    pub(crate) fn wish(&mut self, change: impl FnOnce(&mut Wishes)) {
        change(&mut self.rare_mut().wishes);
        self.tidy();
    }
    /// The users that are expected, and their seats.
    pub(crate) fn expected(&self) -> &[(Seat, UserId)] {
        &self.wishes().expected
    }
    /// The seat that is kept for a user who has not come.
    pub(crate) fn seat_expecting(&self, user: &UserId) -> Option<Seat> {
        self.expected().iter().find(|(_, expected)| expected == user).map(|(seat, _)| *seat)
    }

    /// The seats that are not free, with their numbers.
    pub(crate) fn seats(&self) -> impl Iterator<Item = (Seat, SeatRecord)> {
        let records = self.seats.iter().map(|seat| seat.record());
        (0..).map(Seat).zip(records).filter(|(_, record)| !record.is_free())
    }

    pub(crate) fn seat(&self, seat: Seat) -> SeatRecord {
        self.seats.get(usize::from(seat.0)).map_or(SeatRecord::FREE, |seat| seat.record())
    }

    /// How many seats are not free.
    pub(crate) fn seats_taken(&self) -> u16 {
        self.taken
    }

    /// How many seats are free.
    pub(crate) fn seats_free(&self) -> u16 {
        self.seats_max.saturating_sub(self.taken)
    }

    /// The seat that the session holds.
    pub(crate) fn seat_of(&self, session: SessionId) -> Option<Seat> {
        self.seats().find(|(_, record)| record.holder() == Some(session)).map(|(seat, _)| seat)
    }

    /// Whether somebody is still in this seat at the game server.
    pub(crate) fn is_vacating(&self, seat: Seat) -> bool {
        self.vacating().iter().any(|(vacating, _)| *vacating == seat)
    }

    /// The seat to give away next: the lowest that is free and vacant, then the lowest that is free.
    pub(crate) fn seat_free(&self) -> Option<Seat> {
        if self.taken >= self.seats_max {
            return None;
        }
        let free = || (0..self.seats_max).map(Seat).filter(|&seat| self.seat(seat).is_free());
        free().find(|&seat| !self.is_vacating(seat)).or_else(|| free().next())
    }

    /// Writes a seat, which is below `seats_max`.
    pub(crate) fn seat_set(&mut self, seat: Seat, record: SeatRecord) {
        let number = usize::from(seat.0);
        if self.seats.len() <= number {
            // Exactly as many as are used where there are few; an eighth more where there are many.
            let mut seats = std::mem::take(&mut self.seats).into_vec();
            seats.resize(number + 1 + number / 8, PackedSeat::of(&SeatRecord::FREE));
            self.seats = seats.into_boxed_slice();
        }
        let before = std::mem::replace(&mut self.seats[number], PackedSeat::of(&record));
        match (before.record().is_free(), record.is_free()) {
            (true, false) => self.taken += 1,
            (false, true) => self.taken -= 1,
            (true, true) | (false, false) => {}
        }
    }

    /// Whether who looks for instances finds it: it runs, takes new seats and is not private.
    pub(crate) fn is_listed(&self) -> bool {
        self.open && !self.private && self.stage == Stage::Running
    }

    /// A named instance is entered by its name only: who asks for any instance of the kind is not sent into it.
    fn places(&self) -> Places {
        let is_open = self.open
            && !self.suspect
            && matches!(self.stage, Stage::Granted | Stage::Running)
            && self.key().is_none()
            && !self.private
            && self.taken < self.seats_max;
        Places {
            listed: self.is_listed(),
            open: is_open.then_some(self.taken),
            taken: self.taken,
            suspect: self.suspect,
        }
    }
}

/// All instances of one kind.
#[derive(Debug)]
struct Shard {
    kind: KindName,
    schema: Schema,
    instances: Records<Instance>,
    keys: PointIndex<u32>,
    /// With room for whoever asks for any, the fullest first, so that players meet and instances end.
    open: OrderedIndex,
    /// Indexes of the instances that clients may find: they never walk over others.
    listed: Vec<FieldColumn>,
    /// The same of all others. Each instance is in one of the two.
    hidden: Vec<FieldColumn>,
    /// Key of the numbers by which keywords are indexed.
    seed: (u64, u64),
    /// Somebody is to hear what changes here.
    is_watched: bool,
}

/// The indexes of one field.
#[derive(Debug)]
struct FieldColumn {
    field: FieldId,
    /// It holds keywords, which stand there by numbers that say nothing of an order: equal ones are together, which is
    /// all that is asked of them, and no record is read to find a place among thousands of the same.
    is_numbered: bool,
    present: OrderedIndex,
    absent: OrderedIndex,
}

/// The columns of every shard before those of declared fields.
const BASE_COLUMNS: [FieldId; 2] = [FieldId::ID, field::CREATED];

fn columns(schema: &Schema) -> Vec<FieldColumn> {
    let declared = schema.declared_fields().filter(|&field| schema.is_indexed(field));
    let column = |field| FieldColumn {
        field,
        is_numbered: field != FieldId::ID && schema.holds(field) == FieldType::Keyword,
        present: OrderedIndex::default(),
        absent: OrderedIndex::default(),
    };
    BASE_COLUMNS.into_iter().chain(declared).map(column).collect()
}

/// The values that indexes read.
#[derive(Clone, Copy)]
struct Values<'a> {
    schema: &'a Schema,
    instances: &'a Records<Instance>,
    seed: (u64, u64),
    /// What an instance's metadata was when its entries were made, if it is not that any more.
    before: Option<(u32, &'a Packed)>,
}

impl<'a> Values<'a> {
    fn get(&self, slot: u32, field: FieldId) -> Option<ValueRef<'a>> {
        let instance = &self.instances[slot as usize];
        match self.schema.place(field) {
            Some(place) => {
                let meta = match self.before {
                    Some((changed, before)) if changed == slot => before,
                    Some(_) | None => &instance.meta,
                };
                meta.get(self.schema.layout(), place)
            }
            None if field == FieldId::ID => Some(ValueRef::Id(instance.id)),
            None => Some(ValueRef::Int(instance.created_ms.cast_signed())),
        }
    }
    fn id(&self, slot: u32) -> InstanceId {
        self.instances[slot as usize].id
    }
    /// The order of entries that are equal as far as they tell.
    fn order(&self, column: (FieldId, bool)) -> impl Fn(Entry, Entry) -> Ordering {
        let (field, is_numbered) = column;
        move |a, b| {
            let value = |entry: Entry| self.get(entry.slot, field);
            let by_value = if is_numbered { Ordering::Equal } else { value(a).cmp(&value(b)) };
            by_value.then_with(|| self.id(a.slot).cmp(&self.id(b.slot)))
        }
    }
    /// The entry of a value in its index.
    fn entry(&self, is_numbered: bool, value: ValueRef<'_>, slot: u32) -> Entry {
        let tie = tie(self.id(slot));
        match value {
            ValueRef::Bool(value) => Entry { value: value.into(), tie, slot },
            ValueRef::Int(value) => Entry { value, tie, slot },
            ValueRef::Text(text) if is_numbered => {
                Entry { value: text_number(self.seed, text), tie, slot }
            }
            ValueRef::Text(text) => Entry::of_text(text, slot),
            ValueRef::Id(id) => Entry::of_text(&id.0.to_be_bytes(), slot),
        }
    }
    fn order_by_id(&self) -> impl Fn(Entry, Entry) -> Ordering {
        |a, b| self.id(a.slot).cmp(&self.id(b.slot))
    }
}

/// The top of an id: it decides between equal numbers.
fn tie(id: InstanceId) -> u32 {
    u32::try_from(id.0 >> 96).expect("32 of 128 bits are left")
}

fn entry_absent(slot: u32, values: Values<'_>) -> Entry {
    Entry { value: 0, tie: tie(values.id(slot)), slot }
}

fn entry_open(taken: u16, id: InstanceId, slot: u32) -> Entry {
    Entry { value: -i64::from(taken), tie: tie(id), slot }
}

impl FieldColumn {
    /// Enters records into the indexes, which are empty.
    fn fill(&mut self, slots: impl Iterator<Item = u32>, values: Values<'_>) {
        let (mut present, mut absent) = (Vec::new(), Vec::new());
        for slot in slots {
            match values.get(slot, self.field) {
                Some(value) => present.push(values.entry(self.is_numbered, value, slot)),
                None => absent.push(entry_absent(slot, values)),
            }
        }
        self.present = OrderedIndex::of(present, values.order((self.field, self.is_numbered)));
        self.absent = OrderedIndex::of(absent, values.order_by_id());
    }

    fn insert(&mut self, slot: u32, values: Values<'_>) {
        let order = values.order((self.field, self.is_numbered));
        let is_new = match values.get(slot, self.field) {
            Some(value) => self.present.insert(values.entry(self.is_numbered, value, slot), order),
            None => self.absent.insert(entry_absent(slot, values), values.order_by_id()),
        };
        debug_assert!(is_new, "an instance is in an index once");
    }

    fn remove(&mut self, slot: u32, values: Values<'_>) {
        let order = values.order((self.field, self.is_numbered));
        let was_there = match values.get(slot, self.field) {
            Some(value) => self.present.remove(values.entry(self.is_numbered, value, slot), order),
            None => self.absent.remove(entry_absent(slot, values), values.order_by_id()),
        };
        debug_assert!(was_there, "an instance is in the indexes that its values say");
    }

    fn audit(&self, values: Values<'_>) -> Result<(), String> {
        self.present.audit(values.order((self.field, self.is_numbered)))?;
        self.absent.audit(values.order_by_id())
    }
}

impl Shard {
    fn new(secret: &ClusterSecret, kind: &KindName) -> Self {
        let records = eco_format!("instances of {kind:?}");
        let schema = Schema::new(records, INSTANCE_FIELDS, &[FieldId::ID]);
        let (listed, hidden) = (columns(&schema), columns(&schema));
        Self {
            kind: kind.clone(),
            schema,
            instances: Records::default(),
            keys: PointIndex::new(secret),
            open: OrderedIndex::default(),
            listed,
            hidden,
            seed: secret.hash_key(),
            is_watched: false,
        }
    }

    /// Enters a record that stands in the slab into the ordered indexes.
    fn enter(&mut self, slot: u32) {
        let Self { schema, instances, listed, hidden, open, seed, .. } = self;
        let values = Values { schema, instances, seed: *seed, before: None };
        let instance = &instances[slot as usize];
        let columns = if instance.is_listed() { listed } else { hidden };
        columns.iter_mut().for_each(|column| column.insert(slot, values));
        if let Some(taken) = instance.places().open {
            open.insert(entry_open(taken, instance.id, slot), values.order_by_id());
        }
    }

    /// Enters all records into the ordered indexes, which are empty.
    fn order(&mut self) {
        let Self { schema, instances, listed, hidden, open, seed, .. } = self;
        let values = Values { schema, instances, seed: *seed, before: None };
        for (columns, is_listed) in [(listed, true), (hidden, false)] {
            let slots = || {
                let those = instances.iter().filter(|(_, there)| there.is_listed() == is_listed);
                those.map(|(slot, _)| slot_of(slot))
            };
            columns.iter_mut().for_each(|column| column.fill(slots(), values));
        }
        let entries = instances.iter().filter_map(|(slot, instance)| {
            Some(entry_open(instance.places().open?, instance.id, slot_of(slot)))
        });
        *open = OrderedIndex::of(entries.collect(), values.order_by_id());
    }

    /// Takes a record that stands in the slab out of the ordered indexes.
    fn leave(&mut self, slot: u32) {
        let Self { schema, instances, listed, hidden, open, seed, .. } = self;
        let values = Values { schema, instances, seed: *seed, before: None };
        let instance = &instances[slot as usize];
        let columns = if instance.is_listed() { listed } else { hidden };
        columns.iter_mut().for_each(|column| column.remove(slot, values));
        if let Some(taken) = instance.places().open {
            open.remove(entry_open(taken, instance.id, slot), values.order_by_id());
        }
    }

    /// Moves a record that was changed where it shows. Of the metadata, `meta` is what it was.
    fn moved(&mut self, slot: u32, was: Places, meta: Option<&Packed>) {
        let Self { schema, instances, listed, hidden, open, seed, .. } = self;
        let now = Values { schema, instances, seed: *seed, before: None };
        let before = Values { before: meta.map(|meta| (slot, meta)), ..now };
        let instance = &instances[slot as usize];
        let is = instance.places();
        if was.open != is.open {
            if let Some(taken) = was.open {
                open.remove(entry_open(taken, instance.id, slot), now.order_by_id());
            }
            if let Some(taken) = is.open {
                open.insert(entry_open(taken, instance.id, slot), now.order_by_id());
            }
        }
        if was.listed != is.listed {
            let (from, to) = if was.listed { (listed, hidden) } else { (hidden, listed) };
            from.iter_mut().for_each(|column| column.remove(slot, before));
            to.iter_mut().for_each(|column| column.insert(slot, now));
        } else if meta.is_some() {
            let columns = if is.listed { listed } else { hidden };
            for column in &mut columns[BASE_COLUMNS.len()..] {
                if before.get(slot, column.field) != now.get(slot, column.field) {
                    column.remove(slot, before);
                    column.insert(slot, now);
                }
            }
        }
    }

    /// Reads every record's values by name as the new fields say. An index of a field that stays what it was stays.
    fn redeclare(&mut self, touched: &TouchedAll, schema: Schema) {
        let before = std::mem::replace(&mut self.schema, schema);
        self.instances.change_all(touched, |instance| {
            (instance.meta, _) = Packed::of(&self.schema, &instance.meta.meta(&before));
        });
        let Self { schema, instances, listed, hidden, seed, .. } = self;
        let values = Values { schema, instances, seed: *seed, before: None };
        for columns in [listed, hidden] {
            let mut old = std::mem::replace(columns, self::columns(schema));
            let (ids, others) = columns.split_at_mut(1);
            ids[0] = old.remove(0);
            for column in others {
                let (name, holds) = (schema.name(column.field), schema.holds(column.field));
                let same = old.iter().position(|old| {
                    before.name(old.field) == name && before.holds(old.field) == holds
                });
                if let Some(same) = same {
                    let FieldColumn { present, absent, .. } = old.swap_remove(same);
                    (column.present, column.absent) = (present, absent);
                } else {
                    // By id, so that those without the field come in order.
                    ids[0].present.iter_from(0).for_each(|entry| column.insert(entry.slot, values));
                }
            }
        }
    }

    fn audit(&self) -> Result<(), String> {
        let Self { schema, instances, seed, .. } = self;
        let values = Values { schema, instances, seed: *seed, before: None };
        self.open.audit(values.order_by_id())?;
        let mut held = [0, 0];
        for (count, (columns, is_listed)) in
            held.iter_mut().zip([(&self.listed, true), (&self.hidden, false)])
        {
            for column in columns {
                column.audit(values)?;
                *count = column.present.len() + column.absent.len();
                for (index, is_present) in [(&column.present, true), (&column.absent, false)] {
                    for entry in index.iter_from(0) {
                        let there = self.instances.get(entry.slot as usize);
                        let value = values.get(entry.slot, column.field);
                        let name = self.schema.name(column.field);
                        if there.is_none_or(|there| there.is_listed() != is_listed)
                            || value.is_some() != is_present
                            || value.is_some_and(|value| {
                                values.entry(column.is_numbered, value, entry.slot) != entry
                            })
                        {
                            return Err(format!(
                                "{entry:?} does not belong into the index of {name}"
                            ));
                        }
                    }
                }
                if *count != columns[0].present.len() {
                    return Err(format!("{} lacks entries", self.schema.name(column.field)));
                }
            }
        }
        let listed = self.instances.iter().filter(|(_, there)| there.is_listed()).count();
        if held != [listed, self.instances.len() - listed] {
            return Err(format!("{held:?} are found of {listed} and {}", self.instances.len()));
        }
        let mut open = 0;
        for (slot, instance) in self.instances.iter() {
            if let Some(taken) = instance.places().open {
                open += 1;
                let entry = entry_open(taken, instance.id, slot_of(slot));
                if self.open.nth(self.open.rank_of(entry, values.order_by_id())) != Some(entry) {
                    return Err(format!("instance {} is not where the open ones are", instance.id));
                }
            }
        }
        if open != self.open.len() {
            return Err(format!("{} are open, {open} should be", self.open.len()));
        }
        Ok(())
    }
}

/// Where every instance lives.
#[derive(Debug)]
pub(crate) struct Directory {
    secret: ClusterSecret,
    shards: Vec<Shard>,
    kinds: BTreeMap<KindName, u32>,
    by_id: PointIndex<At>,
    /// What changed in shards that are watched, and was not asked for yet.
    touched: Vec<(KindName, InstanceId)>,
    /// Between [`Directory::fill`] and [`Directory::order`] the ordered indexes are empty.
    is_filling: bool,
}

fn key_at<'a>(instances: &'a Records<Instance>) -> impl Fn(u32) -> &'a Key {
    |slot| instances[slot as usize].key().expect("only instances with a key are in this index")
}

impl Directory {
    pub(crate) fn new(secret: &ClusterSecret) -> Self {
        Self {
            secret: secret.clone(),
            shards: Vec::new(),
            kinds: BTreeMap::new(),
            by_id: PointIndex::new(secret),
            touched: Vec::new(),
            is_filling: false,
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

    pub(crate) fn try_get(&self, at: At) -> Option<&Instance> {
        self.shards.get(at.shard as usize)?.instances.get(at.slot as usize)
    }

    /// The first place from this one on that has an instance.
    pub(crate) fn at_from(&self, at: At) -> Option<At> {
        let from = |at: At| {
            let slot = self.shards.get(at.shard as usize)?.instances.next(at.slot)?;
            Some(At { slot, ..at })
        };
        let others = at.shard.saturating_add(1)..slot_of(self.shards.len());
        from(at).or_else(|| others.into_iter().find_map(|shard| from(At { shard, slot: 0 })))
    }

    /// Every instance of a kind.
    pub(crate) fn of_kind(&self, kind: &KindName) -> impl Iterator<Item = At> {
        let shard = self.kinds.get(kind).copied();
        shard.into_iter().flat_map(|shard| {
            let of_kind = self.shards[shard as usize].instances.iter();
            of_kind.map(move |(slot, _)| At { shard, slot: slot_of(slot) })
        })
    }

    /// What the game says of an instance.
    pub(crate) fn meta(&self, at: At) -> Meta {
        self.get(at).meta.meta(&self.shards[at.shard as usize].schema)
    }

    /// The same, borrowed.
    pub(crate) fn said(&self, at: At) -> Said<'_> {
        self.get(at).meta.said(&self.shards[at.shard as usize].schema)
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
            let entries = self.shards[shard as usize].open.iter_from(0);
            entries.map(move |entry| At { shard, slot: entry.slot })
        })
    }

    /// Adds an instance whose id, and whose key in its kind, are new. What the game says of it comes by
    /// [`Directory::edit_meta`].
    pub(crate) fn insert(
        &mut self,
        ledger: &mut Ledger,
        kind: &KindName,
        instance: Instance,
    ) -> At {
        let shard = self.shard(kind);
        let (id, key) = (instance.id, instance.key().cloned());
        let of_kind = &mut self.shards[shard as usize];
        let slot = of_kind.instances.insert(ledger, instance, |slot| At { shard, slot });
        if let Some(key) = &key {
            let Shard { keys, instances, .. } = of_kind;
            keys.insert(key, slot, key_at(instances));
        }
        if !self.is_filling {
            of_kind.enter(slot);
        }
        let at = At { shard, slot };
        let shards = &self.shards;
        self.by_id.insert(&id, at, |at| &shards[at.shard as usize].instances[at.slot as usize].id);
        let is_listed = self.get(at).is_listed();
        self.touch(at, is_listed);
        at
    }

    /// Many instances come, and nobody searches or changes one before they are there: [`Directory::order`].
    pub(crate) fn fill(&mut self) {
        self.is_filling = true;
    }

    /// Makes the ordered indexes of all instances.
    pub(crate) fn order(&mut self) {
        self.shards.iter_mut().for_each(Shard::order);
        self.is_filling = false;
    }

    /// Adds an instance that a snapshot had, with what its game said of it.
    ///
    /// # Errors
    /// What is wrong with that; nothing changed then.
    pub(crate) fn restore(
        &mut self,
        ledger: &mut Ledger,
        kind: &KindName,
        mut instance: Instance,
        meta: &Meta,
    ) -> Result<At, EcoString> {
        let shard = self.shard(kind);
        let (packed, wrong) = Packed::of(&self.shards[shard as usize].schema, meta);
        instance.tidy();
        instance.meta = packed;
        wrong.map_or_else(|| Ok(self.insert(ledger, kind, instance)), Err)
    }

    pub(crate) fn remove(&mut self, touched: &Touched<Instance>) -> Instance {
        let at = touched.at();
        let instance = self.get(at);
        let (id, is_listed) = (instance.id, instance.is_listed());
        self.touch(at, is_listed);
        self.by_id.remove(&id, at);
        let shard = &mut self.shards[at.shard as usize];
        shard.leave(at.slot);
        let instance = shard.instances.remove(touched);
        if let Some(key) = instance.key() {
            shard.keys.remove(key, at.slot);
        }
        instance
    }

    /// Changes a record, if there is something new also what the game says of it, and the indexes where that shows. Its
    /// id, key and time of creation stay.
    pub(crate) fn edit<R>(
        &mut self,
        touched: &Touched<Instance>,
        meta: Option<Packed>,
        change: impl FnOnce(&mut Instance) -> R,
    ) -> R {
        let at = touched.at();
        let shard = &mut self.shards[at.shard as usize];
        let instance = shard.instances.get_mut(touched);
        let was = instance.places();
        let result = change(instance);
        instance.tidy();
        let meta = meta.filter(|meta| *meta != instance.meta);
        let meta = meta.map(|meta| std::mem::replace(&mut instance.meta, meta));
        let is = instance.places();
        if was != is || meta.is_some() {
            shard.moved(at.slot, was, meta.as_ref());
            self.touch(at, was.listed || is.listed);
        }
        result
    }

    /// Packs what a game says of an instance of the kind, and says what was wrong with the rest of it.
    pub(crate) fn pack(&self, at: At, meta: &Meta) -> (Packed, Option<EcoString>) {
        Packed::of(&self.shards[at.shard as usize].schema, meta)
    }

    /// Says what instances of a kind say of themselves, and is something new: [`Directory::is_declared`]. Another
    /// declaration, as a new version of a game makes it, takes over what it can of the values that are there.
    ///
    /// # Errors
    /// What is wrong with the declaration: then nothing has changed.
    pub(crate) fn declare(
        &mut self,
        touched: &TouchedAll,
        kind: &KindName,
        fields: &[FieldInfo],
    ) -> Result<(), EcoString> {
        let shard = self.shard(kind);
        let shard = &mut self.shards[shard as usize];
        let schema = shard.schema.with(fields)?;
        shard.redeclare(touched, schema);
        Ok(())
    }

    /// Whether a kind is declared as just that.
    pub(crate) fn is_declared(&self, kind: &KindName, fields: &[FieldInfo]) -> bool {
        self.schema(kind).is_some_and(|schema| schema.declared() == fields)
    }

    /// Every kind that was ever told of, with its fields.
    pub(crate) fn kinds(&self) -> impl Iterator<Item = (&KindName, &[FieldInfo])> {
        self.kinds
            .iter()
            .map(|(kind, &shard)| (kind, self.shards[shard as usize].schema.declared()))
    }

    /// How many instances of a kind there are.
    pub(crate) fn count(&self, kind: &KindName) -> usize {
        self.kinds.get(kind).map_or(0, |&shard| self.shards[shard as usize].instances.len())
    }

    /// The fields of a kind, if it was told of.
    pub(crate) fn schema(&self, kind: &KindName) -> Option<&Schema> {
        self.kinds.get(kind).map(|&shard| &self.shards[shard as usize].schema)
    }

    /// The instances of a kind, if it was told of: those that clients may find, or all.
    pub(crate) fn table<'a>(
        &'a self,
        kind: &KindName,
        servers: &'a Servers<GameServer>,
        is_all: bool,
    ) -> Option<Instances<'a>> {
        let shard = *self.kinds.get(kind)?;
        Some(Instances { directory: self, shard, servers, is_all })
    }

    /// An instance as a filter sees it.
    pub(crate) fn row<'a>(&'a self, at: At, servers: &'a Servers<GameServer>) -> Row<'a> {
        Row { instance: self.get(at), schema: &self.shards[at.shard as usize].schema, servers }
    }

    /// An instance as it is told to who looks for one.
    pub(crate) fn listed_of(&self, at: At) -> Listed {
        let instance = self.get(at);
        Listed {
            instance: instance.id,
            seats_taken: instance.seats_taken(),
            seats_max: instance.seats_max,
            created_ms: instance.created_ms,
            meta: self.meta(at),
        }
    }

    /// Whether changes of what clients see of a kind's instances are to be kept for [`Directory::take_touched`].
    pub(crate) fn watch_shard(&mut self, kind: &KindName, is_watched: bool) {
        let shard = self.shard(kind);
        self.shards[shard as usize].is_watched = is_watched;
    }

    /// The instances of watched kinds of which clients may see something new, in the order of the changes. One that
    /// changed twice is there twice.
    pub(crate) fn take_touched(&mut self) -> Vec<(KindName, InstanceId)> {
        std::mem::take(&mut self.touched)
    }

    /// Whether [`Directory::take_touched`] gives any.
    pub(crate) fn has_touched(&self) -> bool {
        !self.touched.is_empty()
    }

    fn touch(&mut self, at: At, is_seen: bool) {
        let shard = &self.shards[at.shard as usize];
        if shard.is_watched && is_seen {
            let id = shard.instances[at.slot as usize].id;
            self.touched.push((shard.kind.clone(), id));
        }
    }

    /// Bytes of heap of the instances and of all their indexes.
    pub(crate) fn memory(&self) -> usize {
        let instance = |(_, instance): (usize, &Instance)| {
            let rare = instance.rare.as_ref().map_or(0, |rare| {
                size_of::<Rare>()
                    + rare.waiters.capacity() * size_of::<Waiter>()
                    + rare.vacating.capacity() * size_of::<(Seat, SessionId)>()
                    + rare.wishes.expected.capacity() * size_of::<(Seat, UserId)>()
            });
            instance.meta.len() + size_of_val(&*instance.seats) + rare
        };
        let shard = |shard: &Shard| {
            let columns = shard.listed.iter().chain(&shard.hidden);
            shard.instances.capacity() * size_of::<Option<Instance>>()
                + shard.instances.iter().map(instance).sum::<usize>()
                + shard.keys.bytes()
                + shard.open.bytes()
                + columns.map(|of| of.present.bytes() + of.absent.bytes()).sum::<usize>()
        };
        self.by_id.bytes() + self.shards.iter().map(shard).sum::<usize>()
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
        let (mut total, mut keyed) = (0, 0);
        for (at, kind, instance) in self.iter() {
            let id = instance.id;
            total += 1;
            if self.find(id) != Some(at) {
                return Err(format!("instance {id} is not found by its id"));
            }
            if instance.seats().count() != usize::from(instance.taken)
                || instance.taken > instance.seats_max
            {
                return Err(format!("instance {id} counts its seats wrong"));
            }
            if instance.rare.as_ref().is_some_and(|rare| rare.is_none()) {
                return Err(format!("instance {id} keeps room for what it does not have"));
            }
            if let Some(key) = instance.key() {
                keyed += 1;
                if self.by_key(kind, key) != Some(at) {
                    return Err(format!("instance {id} is not found by its key"));
                }
            }
        }
        for shard in &self.shards {
            shard.audit().map_err(|wrong| format!("{}: {wrong}", shard.schema.records))?;
        }
        let held = [self.len(), self.shards.iter().map(|shard| shard.keys.len()).sum()];
        if held == [total, keyed] {
            Ok(())
        } else {
            Err(format!("indexes hold {held:?} entries for {:?}", [total, keyed]))
        }
    }

    fn shard(&mut self, kind: &KindName) -> u32 {
        if let Some(&shard) = self.kinds.get(kind) {
            return shard;
        }
        let shard = slot_of(self.shards.len());
        self.shards.push(Shard::new(&self.secret, kind));
        self.kinds.insert(kind.clone(), shard);
        shard
    }
}

/// The fields that every instance has, by number.
pub(crate) mod field {
    use crate::search::FieldId;

    pub(crate) const CREATED: FieldId = FieldId(1);
    pub(crate) const SEATS_FREE: FieldId = FieldId(2);
    pub(crate) const SEATS_TAKEN: FieldId = FieldId(3);
    pub(crate) const SEATS_MAX: FieldId = FieldId(4);
    pub(crate) const OWNER: FieldId = FieldId(5);
    pub(crate) const KEY: FieldId = FieldId(6);
    pub(crate) const SERVER: FieldId = FieldId(7);
    pub(crate) const STATE: FieldId = FieldId(8);
    pub(crate) const OPEN: FieldId = FieldId(9);
    pub(crate) const PRIVATE: FieldId = FieldId(10);
}

/// An instance as a filter sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row<'a> {
    pub(crate) instance: &'a Instance,
    schema: &'a Schema,
    servers: &'a Servers<GameServer>,
}

impl Record for Row<'_> {
    fn value(&self, field: FieldId) -> Option<ValueRef<'_>> {
        let instance = self.instance;
        if let Some(place) = self.schema.place(field) {
            return instance.meta.get(self.schema.layout(), place);
        }
        let text = |text: &'static str| ValueRef::Text(text.as_bytes());
        Some(match field {
            FieldId::ID => ValueRef::Id(instance.id),
            field::CREATED => ValueRef::Int(instance.created_ms.cast_signed()),
            field::SEATS_FREE => ValueRef::Int(instance.seats_free().into()),
            field::SEATS_TAKEN => ValueRef::Int(instance.taken.into()),
            field::SEATS_MAX => ValueRef::Int(instance.seats_max.into()),
            field::OWNER => ValueRef::Text(instance.owner.as_ref()?.as_str().as_bytes()),
            field::KEY => ValueRef::Text(instance.key()?.as_str().as_bytes()),
            field::SERVER => {
                ValueRef::Text(self.servers.get(instance.server).peer.name.as_str().as_bytes())
            }
            field::STATE => match instance.stage {
                Stage::Granted => text("granted"),
                Stage::Running if instance.suspect => text("suspect"),
                Stage::Running => text("running"),
                Stage::Closing => text("closing"),
                Stage::Stranded | Stage::Restoring => text("restoring"),
            },
            field::OPEN => ValueRef::Bool(instance.open),
            field::PRIVATE => ValueRef::Bool(instance.private),
            FieldId(_) => return None,
        })
    }
}

/// The instances of one kind, to be searched.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Instances<'a> {
    directory: &'a Directory,
    shard: u32,
    servers: &'a Servers<GameServer>,
    /// Hidden ones too.
    is_all: bool,
}

impl<'a> Instances<'a> {
    fn of_kind(&self) -> &'a Shard {
        &self.directory.shards[self.shard as usize]
    }
    pub(crate) fn at(&self, slot: u32) -> At {
        At { shard: self.shard, slot }
    }
    /// Whether whoever wants any instance is sent there, and how full it is.
    pub(crate) fn open_taken(&self, slot: u32) -> Option<u16> {
        self.of_kind().instances[slot as usize].places().open
    }
    /// Those to which whoever wants any instance is sent, the fullest first.
    pub(crate) fn open_slots(&self) -> impl ExactSizeIterator<Item = u32> {
        let open = &self.of_kind().open;
        Counted { left: open.len(), entries: open.iter_from(0) }
    }
}

/// Entries of which it is known how many there are.
struct Counted<I> {
    left: usize,
    entries: I,
}

impl<I: Iterator<Item = Entry>> Iterator for Counted<I> {
    type Item = u32;
    fn next(&mut self) -> Option<u32> {
        let entry = self.entries.next()?;
        self.left -= 1;
        Some(entry.slot)
    }
    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl<I: Iterator<Item = Entry>> ExactSizeIterator for Counted<I> {}

impl<'a> Table for Instances<'a> {
    type Row<'r>
        = Row<'r>
    where
        Self: 'r;

    fn schema(&self) -> &Schema {
        &self.of_kind().schema
    }
    fn len(&self) -> usize {
        let shard = self.of_kind();
        if self.is_all { shard.instances.len() } else { shard.listed[0].present.len() }
    }
    fn row(&self, slot: u32) -> Row<'_> {
        self.directory.row(self.at(slot), self.servers)
    }
    fn columns(&self, field: FieldId) -> Vec<Column<'_>> {
        let Shard { listed, hidden, seed, .. } = self.of_kind();
        let Some(place) = listed.iter().position(|column| column.field == field) else {
            return Vec::new();
        };
        let sets: &[_] = if self.is_all { &[listed, hidden] } else { &[listed] };
        let column = |columns: &&'a Vec<FieldColumn>| {
            let FieldColumn { present, absent, is_numbered, .. } = &columns[place];
            Column { present, absent: Some(absent), numbered: is_numbered.then_some(*seed) }
        };
        sets.iter().map(column).collect()
    }
    fn slots(&self) -> Box<dyn Iterator<Item = u32> + '_> {
        let Shard { instances, .. } = self.of_kind();
        let found = instances.iter().filter(|(_, there)| self.is_all || there.is_listed());
        Box::new(found.map(|(slot, _)| slot_of(slot)))
    }
}

/// A slab's index as the indexes hold it.
pub(crate) fn slot_of(index: usize) -> u32 {
    u32::try_from(index).expect("four thousand million records do not fit into memory")
}
