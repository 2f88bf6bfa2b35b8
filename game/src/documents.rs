//! What instances ask of the store, performed: in order per document, and never waited for in a tick.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::rc::Rc;

use ecow::eco_format;
use greenroom_game_core::{
    Document, DocumentVersion, SEARCH_BYTES_MAX, Search, SearchCursor, StoreAct, StoreOrder,
    StoreRefusal, Stored,
};
use greenroom_storage::{
    Body, Collection, Count, Cursor, Get, Key, Merge, Page, Query, Remove, Request, Storage,
    StorageError, Ticket, Version, Write,
};
use greenroom_telemetry::Parent;

/// What becomes of one order.
pub(crate) type Outcome = Result<Stored, StoreRefusal>;
/// An order that the store has, until its answer.
pub(crate) type UnderWay = Pin<Box<dyn Future<Output = Outcome>>>;

/// The way of a game server's instances to their documents.
#[derive(Debug)]
pub(crate) struct Documents {
    storage: Storage,
    /// Documents whose newest value waits for room in the store's queue.
    dirty: RefCell<BTreeMap<Key, Body>>,
}

impl Documents {
    pub(crate) fn new(storage: Storage) -> Rc<Self> {
        Rc::new(Self { storage, dirty: RefCell::default() })
    }
    /// Hands an order to the store. What it answers at once, or that it has it.
    ///
    /// When its queue is full, the newest of a document's upserts waits here, one for each document, and everything
    /// else is refused. What the store does is a part of this trace, if there is one.
    pub(crate) fn perform(
        self: &Rc<Self>,
        order: StoreOrder,
        trace: Option<Parent>,
    ) -> Result<UnderWay, StoreRefusal> {
        let storage = match trace {
            Some(parent) => &self.storage.within(parent),
            None => &self.storage,
        };
        let key = Key::new(Collection::Documents, order.key.clone());
        let key = key.map_err(|_| StoreRefusal::KeyInvalid)?;
        if self.dirty.borrow().contains_key(&key) {
            let StoreAct::Upsert(json) = order.act else { return Err(StoreRefusal::Busy) };
            let body = body(json)?;
            self.dirty.borrow_mut().insert(key.clone(), body);
            return Ok(Box::pin(Rc::clone(self).write_dirty(storage.clone(), key)));
        }
        match order.act {
            StoreAct::Get => submit(storage, Get(key.clone()), move |found| match found {
                None => Stored::Absent,
                Some(found) => Stored::Found(document(&key, &found)),
            }),
            StoreAct::Find(search) => submit(storage, query(&key, search), page),
            StoreAct::Insert(json) => submit(storage, Write::insert(key, body(json)?), written),
            StoreAct::Replace(DocumentVersion(version), json) => {
                submit(storage, Write::replace(key, body(json)?, Version(version)), written)
            }
            StoreAct::Remove => {
                let remove = Remove { key, version: None };
                let removed = submit(storage, remove, |()| Stored::Removed);
                removed.map(|under_way| -> UnderWay {
                    Box::pin(async {
                        match under_way.await {
                            // There is no version that it could have lacked.
                            Err(StoreRefusal::Changed) => Ok(Stored::Absent),
                            outcome => outcome,
                        }
                    })
                })
            }
            StoreAct::Count(by) => {
                let expiry = Default::default();
                submit(storage, Count { key, by, expiry }, Stored::Counted)
            }
            StoreAct::Upsert(json) => {
                let body = body(json)?;
                let write = Write::upsert(key.clone(), body.clone()).merge(Merge::Allowed);
                match submit(storage, write, written) {
                    Err(StoreRefusal::Busy) => {
                        self.dirty.borrow_mut().insert(key.clone(), body);
                        let write = Rc::clone(self).write_dirty(storage.clone(), key);
                        Ok(Box::pin(write) as UnderWay)
                    }
                    taken => taken,
                }
            }
        }
    }
    /// Writes the newest value of a document once there is room.
    async fn write_dirty(self: Rc<Self>, storage: Storage, key: Key) -> Outcome {
        let Some(body) = self.dirty.borrow().get(&key).cloned() else {
            // Somebody who waited before wrote it; what is there is as new as this.
            let found = storage.get(key).await.map_err(refusal)?;
            return Ok(found.map_or(Stored::Absent, |found| written(found.version)));
        };
        let write = Write::upsert(key.clone(), body.clone()).merge(Merge::Allowed);
        let taken = storage.submit(write).await;
        if self.dirty.borrow().get(&key) == Some(&body) {
            self.dirty.borrow_mut().remove(&key);
        }
        taken.map_err(refusal)?.await.map(written).map_err(refusal)
    }
}

fn submit<R: Request + 'static>(
    storage: &Storage,
    request: R,
    stored: impl FnOnce(R::Answer) -> Stored + 'static,
) -> Result<UnderWay, StoreRefusal> {
    let ticket: Ticket<R> = storage.try_submit(request).map_err(refusal)?;
    Ok(Box::pin(async move { ticket.await.map(stored).map_err(refusal) }))
}

fn document(key: &Key, found: &greenroom_storage::Document) -> Document {
    let (key, version) = (key.id().into(), DocumentVersion(found.version.0));
    Document { key, version, json: found.body.bytes().to_vec() }
}

/// A game's search as the store is asked it.
fn query(beginning: &Key, search: Search) -> Query {
    let beginning = beginning.id().into();
    let Search { filter, order, limit, after } = search;
    let after = after.map(|SearchCursor { value, key }| Cursor { value, id: key });
    let bytes_max = SEARCH_BYTES_MAX;
    Query { order, beginning, limit, bytes_max, after, ..Query::new(Collection::Documents, filter) }
}

fn page(page: Page) -> Stored {
    let documents = page.documents.iter().map(|(key, found)| document(key, found)).collect();
    let next = page.next.map(|Cursor { value, id }| SearchCursor { value, key: id });
    Stored::Page { documents, next }
}

const fn written(version: Version) -> Stored {
    Stored::Written(DocumentVersion(version.0))
}

fn body(json: Vec<u8>) -> Result<Body, StoreRefusal> {
    Body::new(json).map_err(|error| StoreRefusal::Unencodable(eco_format!("{error}")))
}

/// What the game is told of what is wrong.
fn refusal(error: StorageError) -> StoreRefusal {
    match error {
        StorageError::Busy { .. } => StoreRefusal::Busy,
        StorageError::Exists { .. } => StoreRefusal::Exists,
        StorageError::Missing { .. } | StorageError::VersionMismatch { .. } => {
            StoreRefusal::Changed
        }
        StorageError::TooLarge { bytes, max, .. } => StoreRefusal::TooLarge { bytes, max },
        StorageError::BadKey(_) => StoreRefusal::KeyInvalid,
        StorageError::NotJson(error) => StoreRefusal::Unencodable(eco_format!("{error}")),
        StorageError::Undecodable { .. } | StorageError::NotACounter { .. } => {
            StoreRefusal::Unreadable(eco_format!("{error}"))
        }
        StorageError::Unavailable(_) | StorageError::Closed => StoreRefusal::Unavailable,
        StorageError::Undecided { .. } => StoreRefusal::Undecided,
        StorageError::BadQuery(why) => StoreRefusal::BadSearch(why),
        StorageError::Deposed { .. } | StorageError::Backend(_) => {
            StoreRefusal::Failed(eco_format!("{error}"))
        }
    }
}
