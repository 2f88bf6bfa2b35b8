//! Kinds of instances: their settings, and the table of those that a server runs.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use ecow::{EcoString, eco_format};
use greenroom_protocol::search::FieldInfo;
use greenroom_protocol::wire::master_game::{CreateInstance, KindInfo};
use greenroom_protocol::{Code, KindName, Refusal};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::core::CoreFault;
use crate::{Core, Instance, Meta, Now, Reject};

/// A kind's name and settings. What can't be is refused when the game is compiled.
pub struct Kind<K> {
    pub(crate) spec: Spec,
    pub(crate) storage: Option<Storage<K>>,
    kind: PhantomData<fn() -> K>,
}

/// The settings, without the type.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spec {
    pub(crate) name: &'static str,
    pub(crate) tick_rate: u16,
    pub(crate) seats_max: u16,
    pub(crate) version: u32,
    pub(crate) patch_interval: Option<Duration>,
    pub(crate) closes_when_empty: Option<Duration>,
    pub(crate) needs: &'static [&'static str],
    pub(crate) weight: u32,
    /// Steps between two snapshots that are stored; 0 for a kind that is not durable.
    pub(crate) durable_steps: u32,
}

/// How a state becomes bytes, for a kind that can be stored.
pub(crate) struct Storage<K> {
    pub(crate) snapshot: fn(&K) -> Result<Vec<u8>, String>,
    pub(crate) restore: fn(&[u8]) -> Result<K, String>,
}

impl<K> Kind<K> {
    /// A kind with this name and every setting at its default: tick rate 0, 16 seats, version 1, a patch every
    /// 50 ms (at tick rate 0, after each step), an empty instance closes after 10 seconds, and it runs on every game
    /// server with a weight of 1.
    ///
    /// # Panics
    /// When the game is compiled: if the name is empty, longer than 64 bytes, or has control characters.
    pub const fn new(name: &'static str) -> Self {
        assert_name(name);
        let spec = Spec {
            name,
            tick_rate: 0,
            seats_max: 16,
            version: 1,
            patch_interval: None,
            closes_when_empty: Some(Duration::from_secs(10)),
            needs: &[],
            weight: 1,
            durable_steps: 0,
        };
        Self { spec, storage: None, kind: PhantomData }
    }
    /// Steps per second, 1 to 128; 0 for a kind that steps when it is spoken to.
    ///
    /// # Panics
    /// When the game is compiled: if it is above 128.
    #[must_use]
    pub const fn tick_rate(mut self, per_second: u16) -> Self {
        assert!(per_second <= 128, "a tick rate is 0 to 128 per second");
        self.spec.tick_rate = per_second;
        self
    }
    /// Seats of an instance.
    ///
    /// # Panics
    /// When the game is compiled: if it is 0 or above 32,768.
    #[must_use]
    pub const fn seats_max(mut self, seats: u16) -> Self {
        assert!(seats >= 1 && seats <= 0x8000, "an instance has 1 to 32,768 seats");
        self.spec.seats_max = seats;
        self
    }
    /// The game's version of the kind; a stored state of an older one goes through [`Instance::migrate`].
    #[must_use]
    pub const fn version(mut self, version: u32) -> Self {
        self.spec.version = version;
        self
    }
    /// How often what has changed is sent; rounded to whole ticks, one at least.
    #[must_use]
    pub const fn patch_interval(mut self, interval: Duration) -> Self {
        self.spec.patch_interval = Some(interval);
        self
    }
    /// How long an instance without seats stays, taken or away.
    #[must_use]
    pub const fn closes_when_empty(mut self, after: Duration) -> Self {
        self.spec.closes_when_empty = Some(after);
        self
    }
    /// An instance without seats stays until the game closes it, or somebody destroys it.
    #[must_use]
    pub const fn stays_when_empty(mut self) -> Self {
        self.spec.closes_when_empty = None;
        self
    }
    /// Labels that a game server must have (its setting `labels`) to be given an instance: `&["gpu"]`.
    ///
    /// # Panics
    /// When the game is compiled: if a label is empty, longer than 64 bytes, or has control characters.
    #[must_use]
    pub const fn needs(mut self, labels: &'static [&'static str]) -> Self {
        let mut at = 0;
        while at < labels.len() {
            assert_name(labels[at]);
            at += 1;
        }
        self.spec.needs = labels;
        self
    }
    /// How much of a game server's `capacity` an instance takes, beside those of other kinds: 1 to 65,535.
    ///
    /// # Panics
    /// When the game is compiled: if it is 0 or above 65,535.
    #[must_use]
    pub const fn weight(mut self, weight: u32) -> Self {
        assert!(weight >= 1 && weight <= 65_535, "an instance weighs 1 to 65,535");
        self.spec.weight = weight;
        self
    }
}

/// What kinds and labels may be called.
const fn assert_name(name: &str) {
    let bytes = name.as_bytes();
    assert!(!bytes.is_empty() && bytes.len() <= KindName::BYTES_MAX, "1 to 64 bytes");
    let mut at = 0;
    while at < bytes.len() {
        // 0xc2 begins the control characters beyond ASCII.
        assert!(bytes[at] >= 0x20 && bytes[at] != 0x7f && bytes[at] != 0xc2, "no controls");
        at += 1;
    }
}

impl<K: Serialize + DeserializeOwned> Kind<K> {
    /// The state can be stored: all of it goes through its own serde. It is then restored after a loss, moved to
    /// another server, and checked by [`crate::testing::replay`].
    #[must_use]
    pub const fn storable(mut self) -> Self {
        self.storage = Some(Storage {
            snapshot: |state| rmp_serde::to_vec_named(state).map_err(|error| error.to_string()),
            restore: |bytes| rmp_serde::from_slice(bytes).map_err(|error| error.to_string()),
        });
        self
    }
}

impl<K: Serialize + DeserializeOwned> Kind<K> {
    /// Instances are stored whole after every so many steps, and go on from there on another game server when theirs
    /// is lost: with their seats, timers and randomness, but without what happened since, of which clients are told
    /// (`Rewound`). At tick rate 0 a step is a message; 1 stores after each. It is [`Self::storable`] too.
    ///
    /// One snapshot is under way at a time, and no step waits for it: a store that is slow makes them rarer. Without a
    /// word of the master an instance stands still after the lease (10 s), since it may go on elsewhere by then.
    ///
    /// # Panics
    /// When the game is compiled: if it is 0.
    #[must_use]
    pub const fn durable_every(mut self, steps: u32) -> Self {
        assert!(steps > 0, "a snapshot is stored after each step at most");
        self.spec.durable_steps = steps;
        self.storable()
    }
}

/// Reads a stored state into the type that wrote it: for [`Instance::migrate`].
///
/// # Errors
/// When it is something else.
pub fn stored_state<S: DeserializeOwned>(state: &[u8]) -> Result<S, Reject> {
    rmp_serde::from_slice(state).map_err(|error| Reject::new(eco_format!("{error}")))
}

impl<K> fmt::Debug for Kind<K> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:?} (storable: {})", self.spec, self.storage.is_some())
    }
}

impl Spec {
    /// Steps between two patches, at a fixed tick rate.
    pub(crate) fn patch_ticks(&self) -> u64 {
        let interval = self.patch_interval.unwrap_or(Duration::from_millis(50)).as_millis();
        let ticks = (interval * u128::from(self.tick_rate) + 500) / 1000;
        u64::try_from(ticks).unwrap_or(u64::MAX).max(1)
    }
    /// Milliseconds between two patches, at tick rate 0.
    pub(crate) fn patch_ms(&self) -> u64 {
        u64::try_from(self.patch_interval.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
    }
    fn info(&self, fields: Vec<FieldInfo>) -> KindInfo {
        KindInfo {
            name: KindName::new(self.name).expect("`Kind::new` takes no other name"),
            seats_max: self.seats_max,
            tick_rate: self.tick_rate,
            version: self.version,
            fields,
            needs: self.needs.iter().copied().map(EcoString::from).collect(),
            weight: self.weight,
            durable: self.durable_steps > 0,
        }
    }
}

/// The kinds that a server runs.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    kinds: BTreeMap<&'static str, Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    spec: Spec,
    fields: fn() -> Vec<FieldInfo>,
    create: fn(&CreateInstance, Now) -> Result<Core, Refusal>,
    restore: fn(&[u8]) -> Result<Core, CoreFault>,
}

impl Registry {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }
    /// These and `K`.
    ///
    /// # Panics
    /// If two kinds have one name.
    #[must_use]
    pub fn with<K: Instance>(mut self) -> Self {
        let spec = K::KIND.spec;
        let (create, restore) = (Core::create::<K>, Core::restore::<K>);
        let entry = Entry { spec, fields: K::Meta::fields, create, restore };
        assert!(self.kinds.insert(spec.name, entry).is_none(), "two kinds called {}", spec.name);
        self
    }
    /// What they are, by name.
    pub fn kinds(&self) -> Vec<KindInfo> {
        self.kinds.values().map(|entry| entry.spec.info((entry.fields)())).collect()
    }
    /// How much of a server's capacity an instance of a kind takes; nothing if there is no such kind.
    pub fn weight(&self, kind: &KindName) -> Option<u32> {
        Some(self.kinds.get(kind.as_str())?.spec.weight)
    }
    /// Makes an instance.
    ///
    /// # Errors
    /// [`Code::KindUnknown`], [`Code::Malformed`] for parameters that are none, [`Code::InstanceFailed`] when the
    /// game panics, and whatever the game's `create` rejects with.
    pub fn create(&self, order: &CreateInstance, now: Now) -> Result<Core, Refusal> {
        let entry = self.kinds.get(order.kind.as_str()).ok_or_else(|| {
            let known: Vec<&str> = self.kinds.keys().copied().collect();
            Refusal::new(
                Code::KindUnknown,
                eco_format!(
                    "this server runs no kind {:?}; it runs: {}",
                    order.kind.as_str(),
                    known.join(", ")
                ),
            )
        })?;
        (entry.create)(order, now)
    }
    /// Reads an instance of the named kind back from [`Core::snapshot`].
    ///
    /// # Errors
    /// [`CoreFault`], when there is no such kind or the bytes are not its.
    pub fn restore(&self, kind: &str, snapshot: &[u8]) -> Result<Core, CoreFault> {
        let entry = self.kinds.get(kind).ok_or_else(|| CoreFault::Restore {
            kind: kind.into(),
            reason: "this server runs no such kind".into(),
        })?;
        (entry.restore)(snapshot)
    }
}
