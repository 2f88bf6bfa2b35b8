//! Documents that stay: what a game asks of the store, and what comes back.
//!
//! A handler asks through [`Cx::store`]; the order leaves when the input is over, as everything else that it did. What
//! becomes of it is an input of its own at a later step, [`Instance::stored`], so that a replay sees the same, and no
//! step ever waits.

use std::collections::BTreeMap;
use std::fmt;

use ecow::{EcoString, eco_format};
use greenroom_protocol::search::{Filter, LIMIT_MAX, Order};
use greenroom_protocol::wire::client_session::MetaValue;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::world::World;
use crate::{Cx, Instance};

/// What one step may ask of the store.
pub const STORE_STEP_MAX: usize = 64;
/// What of one instance may be under way to the store, or wait to be heard.
pub const STORE_UNDER_WAY_MAX: usize = 256;
/// Bytes of documents of one instance that may be under way to the store.
pub const STORE_BYTES_MAX: usize = 1 << 20;
/// Bytes of one document as JSON.
pub const DOCUMENT_BYTES_MAX: usize = 256 * 1024;
/// Bytes of a document's key, with what it begins with.
pub const DOCUMENT_KEY_BYTES_MAX: usize = 245;
/// Bytes of documents after which the answer to a [`Search`] ends before its limit.
pub const SEARCH_BYTES_MAX: usize = 256 * 1024;

/// Names what was asked of the store; a game may keep it in its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StoreTicket(u64);

/// One state of a document: it changes with each write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DocumentVersion(pub u64);

/// A document, as it was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// Its whole key.
    pub key: EcoString,
    /// Its state: [`Store::replace`] writes only over this one.
    pub version: DocumentVersion,
    /// As JSON.
    #[serde(with = "serde_bytes")]
    pub json: Vec<u8>,
}

impl Document {
    /// The document as the game's own type.
    ///
    /// # Errors
    /// [`StoreRefusal::Unreadable`], which names the document and what is wrong with it.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, StoreRefusal> {
        serde_json::from_slice(&self.json).map_err(|error| {
            StoreRefusal::Unreadable(eco_format!("the document {:?}: {error}", self.key))
        })
    }
}

/// Which documents are looked for, by their top-level fields. A search names fields that an index of the program has:
/// `App::new().index(&[("turns", FieldType::Number)])`.
///
/// ```
/// use greenroom_game_core::{Search, field};
///
/// let longest = Search::new(field("turns").ge(20)).order_by("turns").descending().limit(5);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "it finds nothing by itself"]
pub struct Search {
    /// Which documents.
    pub filter: Filter,
    /// In which order; without one, by key. Documents without the field come last, by key.
    pub order: Option<Order>,
    /// How many, 1 to 100.
    pub limit: u16,
    /// Where the last page ended.
    pub after: Option<SearchCursor>,
}

impl Default for Search {
    /// All, by key, as many as one answer may have.
    fn default() -> Self {
        Self { filter: Filter::default(), order: None, limit: LIMIT_MAX, after: None }
    }
}

impl Search {
    /// Those that this lets through, by key, as many as one answer may have.
    pub fn new(filter: impl Into<Filter>) -> Self {
        Self { filter: filter.into(), ..Self::default() }
    }
    /// In the order of this field, from the smallest to the largest.
    pub fn order_by(mut self, field: impl Into<EcoString>) -> Self {
        self.order = Some(Order { field: field.into(), descending: false });
        self
    }
    /// From the largest to the smallest, where [`Self::order_by`] came before.
    pub fn descending(mut self) -> Self {
        self.order = self.order.map(|order| Order { descending: true, ..order });
        self
    }
    /// This many at most, 1 to 100. There are fewer in an answer where they have more than [`SEARCH_BYTES_MAX`].
    pub const fn limit(mut self, limit: u16) -> Self {
        self.limit = limit;
        self
    }
    /// What follows the page that ended here, of the same search; from the beginning with `None`.
    pub fn after(mut self, cursor: impl Into<Option<SearchCursor>>) -> Self {
        self.after = cursor.into();
        self
    }
    fn check(&self) -> Result<(), StoreRefusal> {
        if self.limit == 0 || self.limit > LIMIT_MAX {
            let why = eco_format!("the limit is {}; 1 to {LIMIT_MAX} are possible", self.limit);
            return Err(StoreRefusal::BadSearch(why));
        }
        self.filter.check().map_err(|refusal| StoreRefusal::BadSearch(refusal.message))
    }
}

/// Where a page of a [`Search`] ended; a game may keep it in its state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SearchCursor {
    /// The last document's value in the field of the order, if it has it and there is an order.
    pub value: Option<MetaValue>,
    /// The last document's whole key.
    pub key: EcoString,
}

/// What became of what was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stored {
    /// The document is written and stays, whatever is killed from here on.
    Written(DocumentVersion),
    /// The document, as it is.
    Found(Document),
    /// There is no such document: of a `get` or a `remove`.
    Absent,
    /// The document is gone.
    Removed,
    /// The counter's new value, which stays.
    Counted(i64),
    /// What a search has found.
    Page {
        /// Each as it is, in the order that was asked for.
        documents: Vec<Document>,
        /// Where to go on; none if this was all.
        next: Option<SearchCursor>,
    },
}

/// Why something was not stored, or not read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum StoreRefusal {
    /// Of an `insert`: the key has a document.
    #[error("there is a document with this key already")]
    Exists,
    /// Of a `replace`: the document is another one by now, or gone.
    #[error("the document was changed meanwhile: read it and decide anew")]
    Changed,
    /// Too much is under way. Ask again in a later step.
    #[error("too much is on its way to the store: ask again later")]
    Busy,
    /// The store could not be reached in time; nothing was changed.
    #[error("the store can't be reached now: nothing was changed")]
    Unavailable,
    /// The store did not answer, or the instance began anew meanwhile: it was done, or it was not. Read to know.
    #[error("nobody knows whether this was done: read the document")]
    Undecided,
    /// The key is empty, too long, or has control characters.
    #[error(
        "a key has 1 to {DOCUMENT_KEY_BYTES_MAX} bytes with what it begins with, and no control characters"
    )]
    KeyInvalid,
    /// The document is too long.
    #[error("the document has {bytes} bytes as JSON; {max} are the most")]
    TooLarge {
        /// How long it is.
        bytes: usize,
        /// How long it may be.
        max: usize,
    },
    /// The document does not encode as a JSON object: a struct or a map with texts as keys, no name beginning with `_`.
    #[error("the document does not encode: {0}")]
    Unencodable(EcoString),
    /// What is there is not what is expected: no such type, or no counter.
    #[error("can't be read: {0}")]
    Unreadable(EcoString),
    /// The store failed.
    #[error("the store failed: {0}")]
    Failed(EcoString),
    /// What is looked for can't be: no index has the field, or it holds something else.
    #[error("can't be searched for: {0}")]
    BadSearch(EcoString),
}

/// One thing that is asked of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreOrder {
    /// Whose outcome it is.
    pub ticket: StoreTicket,
    /// The document's whole key; of a search, what the keys begin with.
    pub key: EcoString,
    /// What is to be done.
    pub act: StoreAct,
}

/// What is to be done with a document. Documents are JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreAct {
    /// Read it.
    Get,
    /// Write it, if there is none.
    Insert(Vec<u8>),
    /// Write it, whatever is there. Of several that wait, the newest is enough.
    Upsert(Vec<u8>),
    /// Write it over this state of it.
    Replace(DocumentVersion, Vec<u8>),
    /// Remove it.
    Remove,
    /// Add to the number that it is, or to 0.
    Count(i64),
    /// Find those whose keys begin so.
    Find(Search),
}

impl StoreAct {
    /// Bytes of the document that is to be written, or may be found.
    fn bytes(&self) -> usize {
        match self {
            Self::Insert(json) | Self::Upsert(json) | Self::Replace(_, json) => json.len(),
            Self::Get | Self::Remove | Self::Count(_) => 0,
            Self::Find(_) => SEARCH_BYTES_MAX,
        }
    }
}

/// What an instance has asked and not heard of. Part of its state.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Asked {
    next: u64,
    /// The bytes of what is on its way.
    under_way: BTreeMap<StoreTicket, usize>,
    /// Of all of it.
    bytes: usize,
    /// What has come, until the next step.
    arrived: Vec<(StoreTicket, Result<Stored, StoreRefusal>)>,
    /// How much this step has asked.
    in_step: usize,
    /// What leaves when the input is over.
    #[serde(skip)]
    orders: Vec<StoreOrder>,
}

impl Asked {
    /// Another step may ask as much again.
    pub(crate) const fn step(&mut self) {
        self.in_step = 0;
    }
    fn ask(&mut self, key: EcoString, act: StoreAct) -> Result<StoreTicket, StoreRefusal> {
        let (count, bytes) = (self.under_way.len() + self.arrived.len(), act.bytes());
        if self.in_step == STORE_STEP_MAX
            || count >= STORE_UNDER_WAY_MAX
            || self.bytes + bytes > STORE_BYTES_MAX
        {
            return Err(StoreRefusal::Busy);
        }
        let ticket = StoreTicket(self.next);
        self.next += 1;
        self.in_step += 1;
        self.bytes += bytes;
        self.under_way.insert(ticket, bytes);
        self.orders.push(StoreOrder { ticket, key, act });
        Ok(ticket)
    }
    /// What leaves with this input.
    pub(crate) fn take_orders(&mut self) -> Vec<StoreOrder> {
        std::mem::take(&mut self.orders)
    }
    /// Whether something waits to leave: what `create` asked leaves with the first input.
    pub(crate) const fn has_orders(&self) -> bool {
        !self.orders.is_empty()
    }
    /// An outcome has come; false if nobody waits for it.
    pub(crate) fn settle(&mut self, ticket: StoreTicket) -> bool {
        let Some(bytes) = self.under_way.remove(&ticket) else { return false };
        self.bytes -= bytes;
        true
    }
    /// Keeps an outcome for the next step.
    pub(crate) fn arrive(&mut self, ticket: StoreTicket, outcome: Result<Stored, StoreRefusal>) {
        if self.settle(ticket) {
            self.arrived.push((ticket, outcome));
        }
    }
    /// Another life begins: of what was under way nobody knows what became of it. What had come before is told first.
    pub(crate) fn begin_anew(&mut self) -> Vec<(StoreTicket, Result<Stored, StoreRefusal>)> {
        let mut told = std::mem::take(&mut self.arrived);
        let lost = std::mem::take(&mut self.under_way);
        told.extend(lost.into_keys().map(|ticket| (ticket, Err(StoreRefusal::Undecided))));
        self.bytes = 0;
        told
    }
    /// What has come since the last step.
    pub(crate) fn take_arrived(&mut self) -> Vec<(StoreTicket, Result<Stored, StoreRefusal>)> {
        std::mem::take(&mut self.arrived)
    }
}

/// The way of a handler to the documents that stay. What is refused at once has no outcome later.
///
/// Keys begin with the kind's name and `/`, so that kinds do not meet: `cx.store().upsert("top", &doc)` of the kind
/// `duel` writes `duel/top`. [`Store::of`] says otherwise.
pub struct Store<'a> {
    world: &'a mut World,
    of: &'a str,
}

impl fmt::Debug for Store<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Store of {:?} with {} under way", self.of, self.world.store.under_way.len())
    }
}

impl<'a> Store<'a> {
    /// The documents that begin with `of` and `/`: those of another kind, or what kinds share.
    #[must_use]
    pub const fn of(self, of: &'a str) -> Self {
        Self { world: self.world, of }
    }
    /// Reads a document: [`Stored::Found`] or [`Stored::Absent`].
    ///
    /// # Errors
    /// [`StoreRefusal::KeyInvalid`]; `Busy` past [`STORE_STEP_MAX`] in one step or [`STORE_UNDER_WAY_MAX`] in all.
    pub fn get(self, key: &str) -> Result<StoreTicket, StoreRefusal> {
        self.ask(key, StoreAct::Get)
    }
    /// Writes a document if there is none with this key: [`Stored::Written`], or [`StoreRefusal::Exists`].
    ///
    /// # Errors
    /// As [`Self::get`]; and when the document does not encode or is longer than [`DOCUMENT_BYTES_MAX`].
    pub fn insert<T: Serialize + ?Sized>(
        self,
        key: &str,
        document: &T,
    ) -> Result<StoreTicket, StoreRefusal> {
        let json = json(document)?;
        self.ask(key, StoreAct::Insert(json))
    }
    /// Writes a document, whatever is there: [`Stored::Written`]. Of several that wait for the store, only the newest
    /// is written, and all have its outcome.
    ///
    /// # Errors
    /// As [`Self::insert`].
    pub fn upsert<T: Serialize + ?Sized>(
        self,
        key: &str,
        document: &T,
    ) -> Result<StoreTicket, StoreRefusal> {
        let json = json(document)?;
        self.ask(key, StoreAct::Upsert(json))
    }
    /// Writes a document over the state in which it was read: [`Stored::Written`], or [`StoreRefusal::Changed`].
    ///
    /// # Errors
    /// As [`Self::insert`].
    pub fn replace<T: Serialize + ?Sized>(
        self,
        key: &str,
        version: DocumentVersion,
        document: &T,
    ) -> Result<StoreTicket, StoreRefusal> {
        let json = json(document)?;
        self.ask(key, StoreAct::Replace(version, json))
    }
    /// Removes a document: [`Stored::Removed`] or [`Stored::Absent`].
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn remove(self, key: &str) -> Result<StoreTicket, StoreRefusal> {
        self.ask(key, StoreAct::Remove)
    }
    /// Adds to a counter, which begins at 0: [`Stored::Counted`] with its new value.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn counter(self, key: &str, by: i64) -> Result<StoreTicket, StoreRefusal> {
        self.ask(key, StoreAct::Count(by))
    }
    /// Finds documents whose keys begin so, all of the kind's with `""`: [`Stored::Page`]. What was answered as written
    /// before is found.
    ///
    /// # Errors
    /// As [`Self::get`], where a search counts as [`SEARCH_BYTES_MAX`] that are under way; [`StoreRefusal::BadSearch`].
    /// Whether an index has the fields is said with the outcome.
    pub fn find(self, beginning: &str, search: Search) -> Result<StoreTicket, StoreRefusal> {
        search.check()?;
        self.ask(beginning, StoreAct::Find(search))
    }
    fn ask(self, key: &str, act: StoreAct) -> Result<StoreTicket, StoreRefusal> {
        let whole = eco_format!("{}/{key}", self.of);
        if (key.is_empty() && !matches!(act, StoreAct::Find(_)))
            || self.of.is_empty()
            || whole.len() > DOCUMENT_KEY_BYTES_MAX
            || whole.chars().any(char::is_control)
        {
            return Err(StoreRefusal::KeyInvalid);
        }
        self.world.store.ask(whole, act)
    }
}

fn json<T: Serialize + ?Sized>(document: &T) -> Result<Vec<u8>, StoreRefusal> {
    let json = serde_json::to_vec(document)
        .map_err(|error| StoreRefusal::Unencodable(eco_format!("{error}")))?;
    if json.len() > DOCUMENT_BYTES_MAX {
        let (bytes, max) = (json.len(), DOCUMENT_BYTES_MAX);
        return Err(StoreRefusal::TooLarge { bytes, max });
    }
    if json.first() != Some(&b'{') {
        let why = "a document is one JSON object: a struct, or a map with texts as keys";
        return Err(StoreRefusal::Unencodable(why.into()));
    }
    Ok(json)
}

impl<K: Instance> Cx<'_, K> {
    /// The documents that stay. What becomes of what is asked here comes to [`Instance::stored`] at a later step; of
    /// an instance that closes before, nobody hears it, but it is done.
    pub fn store(&mut self) -> Store<'_> {
        Store { world: self.world(), of: K::KIND.spec.name }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use greenroom_protocol::Seat;
    use greenroom_protocol::search::field;

    use super::*;
    use crate::testing::{Stage, replay};
    use crate::{CallId, Effect, Kind, Never, Reject};

    /// Does with its documents what it is told, and answers when that is stored.
    #[derive(Default, Serialize, Deserialize)]
    struct Keeper<const RATE: u16> {
        waiting: BTreeMap<StoreTicket, CallId>,
        heard: Vec<(StoreTicket, Result<Stored, StoreRefusal>)>,
    }

    #[derive(Serialize, Deserialize)]
    enum Do {
        Get(String),
        Insert(String, u32),
        Upsert(String, u32),
        Replace(String, u64, u32),
        Remove(String),
        Count(String, i64),
        Many(usize),
        Long(usize),
        Number,
        Unencodable,
        Shared,
        Find(String, i64, Option<SearchCursor>),
        FindTooMany,
        PanicAfterInsert,
        CloseAfterInsert,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Doc {
        n: u32,
    }

    type Answer = Result<Stored, String>;

    impl<const RATE: u16> Instance for Keeper<RATE> {
        const KIND: Kind<Self> = Kind::new("keeper").tick_rate(RATE).storable();
        type Params = bool;
        type Meta = ();
        type In = Do;
        type Query = Never;
        type Reply = Answer;
        type Out = Never;
        type Timer = Never;
        type View<'a> = usize;
        type PrivateView<'a> = ();

        fn create(opens: bool, cx: &mut Cx<Self>) -> Result<Self, Reject> {
            if opens {
                cx.store().counter("opened", 1).map_err(|no| no.to_string())?;
            }
            Ok(Self::default())
        }
        fn message(&mut self, _: Seat, what: Do, cx: &mut Cx<Self>) {
            let doc = |n| Doc { n };
            let asked = match what {
                Do::Get(key) => cx.store().get(&key),
                Do::Insert(key, n) => cx.store().insert(&key, &doc(n)),
                Do::Upsert(key, n) => cx.store().upsert(&key, &doc(n)),
                Do::Replace(key, version, n) => {
                    cx.store().replace(&key, DocumentVersion(version), &doc(n))
                }
                Do::Remove(key) => cx.store().remove(&key),
                Do::Count(key, by) => cx.store().counter(&key, by),
                Do::Many(many) => {
                    (1..many).for_each(|_| drop(cx.store().upsert("many", &doc(1))));
                    cx.store().upsert("many", &doc(2))
                }
                Do::Long(bytes) => cx.store().upsert("long", &["x".repeat(bytes)]),
                Do::Number => cx.store().upsert("number", &7),
                Do::Unencodable => cx.store().upsert("map", &BTreeMap::from([((1, 2), 3)])),
                Do::Shared => cx.store().of("common").upsert("motto", &doc(3)),
                Do::Find(beginning, from, after) => {
                    let search = Search::new(field("n").ge(from)).order_by("n").descending();
                    cx.store().find(&beginning, search.limit(2).after(after))
                }
                Do::FindTooMany => cx.store().find("", Search::default().limit(101)),
                Do::PanicAfterInsert => {
                    drop(cx.store().insert("never", &doc(1)));
                    panic!("as it was told");
                }
                Do::CloseAfterInsert => {
                    cx.close("as it was told");
                    cx.store().insert("last", &doc(9))
                }
            };
            match asked {
                Ok(ticket) => drop(cx.keep_call().map(|call| self.waiting.insert(ticket, call))),
                Err(no) => cx.reply(Err(no.to_string())),
            }
        }
        fn stored(
            &mut self,
            what: StoreTicket,
            outcome: Result<Stored, StoreRefusal>,
            cx: &mut Cx<Self>,
        ) {
            if let Some(call) = self.waiting.remove(&what) {
                cx.reply_to(call, outcome.clone().map_err(|no| no.to_string()));
            }
            self.heard.push((what, outcome));
        }
        fn view(&self) -> usize {
            self.heard.len()
        }
    }

    type Ticking = Keeper<20>;
    type Driven = Keeper<0>;

    fn stage<const RATE: u16>() -> Stage<Keeper<RATE>> {
        let mut stage = Stage::new();
        stage.join(0).unwrap();
        stage
    }
    /// What a call is answered, some steps later.
    fn ask<const RATE: u16>(stage: &mut Stage<Keeper<RATE>>, what: &Do) -> Answer {
        let call = stage.call(0, what);
        stage.ticks(if RATE == 0 { 0 } else { 2 });
        stage.reply::<Answer>(0, call).expect("an answer").unwrap()
    }
    fn orders<const RATE: u16>(stage: &Stage<Keeper<RATE>>) -> usize {
        let items = stage.effects().items.iter();
        items.filter(|effect| matches!(effect, Effect::Store(_))).count()
    }

    /// The numbers of a page, and where to go on.
    fn page(answer: Answer) -> (Vec<u32>, Option<SearchCursor>) {
        let Ok(Stored::Page { documents, next }) = answer else { panic!("{answer:?}") };
        (documents.iter().map(|found| found.decode::<Doc>().unwrap().n).collect(), next)
    }

    fn documents_are_found<const RATE: u16>() {
        let mut stage = stage::<RATE>();
        for n in 1..=5 {
            ask(&mut stage, &Do::Upsert(format!("a{n}"), n)).unwrap();
        }
        ask(&mut stage, &Do::Upsert("b6".into(), 6)).unwrap();
        stage.set_document("other/a7", &Doc { n: 7 });
        let mut find = |beginning: &str, from, after| {
            page(ask(&mut stage, &Do::Find(beginning.into(), from, after)))
        };
        let (first, next) = find("", 3, None);
        assert_eq!(first, [6, 5], "of this kind only, the largest first");
        let (second, end) = find("", 3, next);
        assert_eq!((second, end), (vec![4, 3], None));
        assert_eq!(find("b", 0, None), (vec![6], None));
        assert_eq!(find("c", 0, None), (vec![], None));
        let refused = ask(&mut stage, &Do::FindTooMany).unwrap_err();
        assert!(refused.contains("the limit is 101"), "{refused}");
        replay::<Keeper<RATE>>(stage.recording(), 3).unwrap();
    }

    #[test]
    fn documents_are_found_by_their_fields_page_by_page_and_a_replay_sees_the_same() {
        documents_are_found::<20>();
        documents_are_found::<0>();
    }

    fn documents_are_kept<const RATE: u16>() {
        let mut stage = stage::<RATE>();
        let key = || "ann".to_owned();
        assert_eq!(ask(&mut stage, &Do::Get(key())), Ok(Stored::Absent));
        let Ok(Stored::Written(first)) = ask(&mut stage, &Do::Insert(key(), 1)) else { panic!() };
        assert_eq!(stage.document("keeper/ann"), Some(Doc { n: 1 }));
        let exists = ask(&mut stage, &Do::Insert(key(), 2)).unwrap_err();
        assert_eq!(exists, StoreRefusal::Exists.to_string());
        let Ok(Stored::Written(second)) = ask(&mut stage, &Do::Upsert(key(), 3)) else { panic!() };
        let changed = ask(&mut stage, &Do::Replace(key(), first.0, 4)).unwrap_err();
        assert_eq!(changed, StoreRefusal::Changed.to_string());
        assert!(ask(&mut stage, &Do::Replace(key(), second.0, 5)).is_ok());
        let Ok(Stored::Found(found)) = ask(&mut stage, &Do::Get(key())) else { panic!() };
        assert_eq!((&*found.key, found.decode()), ("keeper/ann", Ok(Doc { n: 5 })));
        let unreadable = found.decode::<Vec<u8>>().unwrap_err().to_string();
        assert!(unreadable.contains("keeper/ann"), "{unreadable}");
        assert_eq!(ask(&mut stage, &Do::Remove(key())), Ok(Stored::Removed));
        assert_eq!(ask(&mut stage, &Do::Remove(key())), Ok(Stored::Absent));
        assert_eq!(ask(&mut stage, &Do::Count("won".into(), 3)), Ok(Stored::Counted(3)));
        assert_eq!(ask(&mut stage, &Do::Count("won".into(), -1)), Ok(Stored::Counted(2)));
        assert!(ask(&mut stage, &Do::Shared).is_ok());
        assert_eq!(stage.document("common/motto"), Some(Doc { n: 3 }));
        replay::<Keeper<RATE>>(stage.recording(), 3).unwrap();
    }

    #[test]
    fn documents_are_kept_at_a_fixed_rate_and_a_replay_sees_the_same() {
        documents_are_kept::<20>();
    }

    #[test]
    fn documents_are_kept_at_tick_rate_0_and_a_replay_sees_the_same() {
        documents_are_kept::<0>();
    }

    #[test]
    fn an_outcome_comes_with_the_tick_after_it_arrived() {
        let mut stage: Stage<Ticking> = stage();
        stage.hold_store();
        let call = stage.call(0, &Do::Insert("ann".into(), 1));
        stage.ticks(1);
        assert_eq!(orders(&stage), 1, "it leaves with its step");
        stage.ticks(3);
        assert_eq!(stage.reply::<Answer>(0, call), None, "no tick waits for the store");
        stage.release_store();
        assert_eq!(stage.reply::<Answer>(0, call), None);
        stage.ticks(1);
        assert!(matches!(stage.reply::<Answer>(0, call), Some(Ok(Ok(Stored::Written(_))))));
        for seed in 0..8 {
            replay::<Ticking>(stage.recording(), seed).unwrap();
        }
    }

    #[test]
    fn what_the_store_refuses_comes_to_the_game() {
        let mut stage: Stage<Driven> = stage();
        stage.refuse_store(StoreRefusal::Unavailable);
        let refused = ask(&mut stage, &Do::Insert("ann".into(), 1));
        assert_eq!(refused, Err(StoreRefusal::Unavailable.to_string()));
        assert_eq!(stage.document::<Doc>("keeper/ann"), None);
    }

    #[test]
    fn a_step_that_fails_asks_nothing_and_one_that_closes_does() {
        let mut stage: Stage<Driven> = stage();
        stage.send(0, &Do::PanicAfterInsert);
        assert!(stage.core().is_closed());
        assert_eq!((orders(&stage), stage.document::<Doc>("keeper/never")), (0, None));
        let mut stage: Stage<Driven> = self::stage();
        stage.send(0, &Do::CloseAfterInsert);
        assert!(stage.core().is_closed());
        assert_eq!(stage.document("keeper/last"), Some(Doc { n: 9 }));
    }

    #[test]
    fn more_than_one_step_or_one_instance_may_ask_is_refused_and_room_comes_back() {
        let busy = Err(StoreRefusal::Busy.to_string());
        let mut stage: Stage<Ticking> = stage();
        stage.hold_store();
        let all = Do::Many(STORE_STEP_MAX + 1);
        for under_way in 1..=STORE_UNDER_WAY_MAX / STORE_STEP_MAX {
            let call = stage.call(0, &all);
            stage.ticks(1);
            assert_eq!(orders(&stage), STORE_STEP_MAX, "{under_way}");
            assert_eq!(stage.reply::<Answer>(0, call), Some(Ok(busy.clone())));
        }
        let call = stage.call(0, &Do::Get("ann".into()));
        stage.ticks(1);
        assert_eq!(stage.reply::<Answer>(0, call), Some(Ok(busy)));
        // One answers, so one more may ask.
        stage.release_store();
        stage.ticks(1);
        let heard = stage.view::<usize>(0);
        stage.ticks(1);
        assert!(heard > 0);
        assert_eq!(ask(&mut stage, &Do::Get("ann".into())), Ok(Stored::Absent));
    }

    #[test]
    fn what_was_under_way_when_an_instance_was_lost_is_undecided_and_can_be_asked_again() {
        for rate in [20, 0] {
            let heard = if rate == 0 { interrupted::<0>() } else { interrupted::<20>() };
            assert_eq!(heard, [Err(StoreRefusal::Undecided), Err(StoreRefusal::Exists)], "{rate}");
        }
    }
    fn interrupted<const RATE: u16>() -> Vec<Result<Stored, StoreRefusal>> {
        let mut stage = stage::<RATE>();
        stage.hold_store();
        stage.send(0, &Do::Insert("ann".into(), 1));
        stage.ticks(u32::from(RATE.min(1)));
        stage.go_on_elsewhere();
        stage.release_store();
        // It had been done, which who asks again comes to know.
        stage.send(0, &Do::Insert("ann".into(), 1));
        stage.ticks(2 * u32::from(RATE.min(1)));
        replay::<Keeper<RATE>>(stage.recording(), 5).unwrap();
        let snapshot = stage.core().snapshot().unwrap().unwrap();
        let state: Snapshot = rmp_serde::from_slice(&snapshot).unwrap();
        let keeper: Keeper<RATE> = rmp_serde::from_slice(&state.state).unwrap();
        keeper.heard.into_iter().map(|(_, outcome)| outcome).collect()
    }
    /// Of a snapshot, what the game has.
    #[derive(Deserialize)]
    struct Snapshot {
        #[serde(with = "serde_bytes")]
        state: Vec<u8>,
    }

    #[test]
    fn bytes_under_way_are_bounded() {
        let mut asked = Asked::default();
        let long = || StoreAct::Upsert(vec![b' '; DOCUMENT_BYTES_MAX]);
        let most = STORE_BYTES_MAX / DOCUMENT_BYTES_MAX;
        let tickets: Vec<_> = (0..most).map(|_| asked.ask("a".into(), long()).unwrap()).collect();
        assert_eq!(asked.ask("a".into(), long()), Err(StoreRefusal::Busy));
        assert!(asked.settle(tickets[0]) && !asked.settle(tickets[0]));
        assert!(asked.ask("a".into(), long()).is_ok());
        // What a search may find has its room before it is asked.
        assert!(asked.settle(tickets[1]));
        let find = || StoreAct::Find(Search::default());
        assert!(asked.ask("a".into(), find()).is_ok());
        assert_eq!(asked.ask("a".into(), find()), Err(StoreRefusal::Busy));
    }

    #[test]
    fn what_can_not_be_stored_is_refused_at_once_and_by_its_reason() {
        let mut stage: Stage<Driven> = stage();
        let mut refused = |what: Do| ask(&mut stage, &what).unwrap_err();
        for key in ["", "a\nb", &"x".repeat(DOCUMENT_KEY_BYTES_MAX - 6)] {
            assert_eq!(
                refused(Do::Get(key.into())),
                StoreRefusal::KeyInvalid.to_string(),
                "{key:?}"
            );
        }
        assert!(refused(Do::Long(DOCUMENT_BYTES_MAX)).contains("262148 bytes"));
        assert!(refused(Do::Number).contains("one JSON object"));
        assert!(refused(Do::Unencodable).contains("key must be a string"));
        let longest = "x".repeat(DOCUMENT_KEY_BYTES_MAX - "keeper/".len());
        assert_eq!(ask(&mut stage, &Do::Get(longest)), Ok(Stored::Absent));
    }

    /// Nobody is there, and nothing is due but that.
    #[test]
    fn what_an_instance_asks_when_it_is_made_leaves_by_itself() {
        let mut stage = Stage::<Driven>::with(&true, [1; 32]).unwrap();
        stage.wait(std::time::Duration::from_millis(1));
        assert_eq!(stage.document::<BTreeMap<String, i64>>("keeper/opened").unwrap()["count"], 1);
    }
}
