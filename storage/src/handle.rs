//! The storage actor: a thread with its lanes, and the handle on it.

use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use ecow::EcoString;
use greenroom_telemetry::{Parent, SpanKind};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::backend::{Backend, Operation};
use crate::inbox::Inbox;
use crate::lane::{Lane, LaneConfig, Reply, Submitted};
use crate::metrics::Metrics;
use crate::query::{Page, Query, RawQuery};
use crate::request::{
    Count, Get, Kept, Merge, Outcome, Remove, Request, Ticket, Touch, Update, Work, Write,
};
use crate::spool::{self, Spool};
use crate::steps::Steps;
use crate::{
    Body, Change, Document, Expiry, Key, OpenError, Owner, Schema, StorageConfig, StorageError,
    Version, WriteId,
};

/// Draws ids of writes: no two of one process are equal, and those of two processes hardly ever.
#[derive(Debug)]
pub(crate) struct WriteIds(AtomicU64);

impl WriteIds {
    fn new() -> Self {
        // The standard library's own seed of the operating system's randomness.
        Self(AtomicU64::new(RandomState::new().hash_one(std::process::id())))
    }

    pub(crate) fn next(&self) -> WriteId {
        // splitmix64: of each counter another number, so that two processes whose counters are near each other differ.
        const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut mixed = self.0.fetch_add(GOLDEN, Ordering::Relaxed);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        WriteId(mixed ^ (mixed >> 31))
    }
}

/// A handle on the storage actor: cheap to clone, usable from any thread and any runtime that has a timer.
///
/// **Order**: operations of one key take effect in the order in which they were taken; of different keys, in any.
/// An operation is taken when [`Storage::try_submit`] returns, or [`Storage::submit`] is over. **Durability**: a write
/// is answered when it is durable. **Deadline**: what is not begun in time is [`StorageError::Unavailable`] and has
/// not happened; a mutation that is under way then is [`StorageError::Undecided`]. The order holds all the same: the
/// next operation of its key waits until the store has said what became of it.
#[derive(Clone)]
pub struct Storage {
    shared: Arc<Shared>,
    deadline: Duration,
    /// What is asked through this handle is a part of this.
    parent: Option<Parent>,
}

struct Shared {
    lanes: Vec<Arc<Inbox>>,
    /// Which lane a key belongs to.
    hasher: RandomState,
    /// Which lane takes the next query.
    turn: AtomicUsize,
    room: Arc<Room>,
    queue_count_max: usize,
    document_bytes_max: usize,
    ids: Arc<WriteIds>,
    metrics: Arc<Metrics>,
    schema: Schema,
    backend: Arc<dyn Backend>,
    spool: Option<Spool>,
    stop: CancellationToken,
    over: CancellationToken,
}

impl fmt::Debug for Storage {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_tuple("Storage").field(&self.shared.backend.name()).finish()
    }
}

impl Storage {
    /// Starts the actor on a thread of its own, on the store that `make` opens there.
    ///
    /// # Errors
    /// When a setting is out of range, or the store can't be opened or prepared.
    pub fn start<F>(config: &StorageConfig, schema: Schema, make: F) -> Result<Self, OpenError>
    where
        F: AsyncFnOnce() -> Result<Arc<dyn Backend>, OpenError> + Send + 'static,
    {
        config.check()?;
        let config = config.clone();
        let (ready, opened) = std::sync::mpsc::sync_channel(1);
        let body = move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(source) => {
                    drop(ready.send(Err(OpenError::Thread(source))));
                    return;
                }
            };
            runtime.block_on(run(config, schema, make, ready));
        };
        std::thread::Builder::new()
            .name("storage".into())
            .spawn(body)
            .map_err(OpenError::Thread)?;
        opened.recv().map_err(|_| OpenError::Panicked)?
    }

    /// The same storage, with another deadline for what is asked through this handle.
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self { deadline, ..self.clone() }
    }

    /// The same storage, with what is asked through this handle as a part of this trace: its time in the queue, and
    /// each time that the store has it, are spans.
    #[must_use]
    pub fn within(&self, parent: Parent) -> Self {
        Self { parent: Some(parent), ..self.clone() }
    }

    /// What it counts.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.shared.metrics
    }

    /// The store's name: `sqlite`.
    pub fn backend(&self) -> &'static str {
        self.shared.backend.name()
    }

    /// Whether the store answers.
    ///
    /// # Errors
    /// What is wrong with it.
    pub async fn health(&self) -> Result<(), StorageError> {
        let health = tokio::time::timeout(self.deadline, self.shared.backend.health());
        health.await.unwrap_or_else(|_| Err(StorageError::late(self.deadline)))
    }

    /// Takes nothing new, and waits until everything that was taken has its answer and the store is let go of.
    pub async fn close(&self) {
        self.shared.stop.cancel();
        self.shared.lanes.iter().for_each(|lane| lane.close());
        self.shared.over.cancelled().await;
    }

    /// Takes an operation, or refuses it: it never waits.
    ///
    /// # Errors
    /// [`StorageError::Busy`], [`StorageError::TooLarge`], [`StorageError::BadQuery`], [`StorageError::Closed`].
    pub fn try_submit<R: Request>(&self, request: R) -> Result<Ticket<R>, StorageError> {
        let (work, merge) = self.work(request)?;
        let bytes = permits(work.bytes());
        if !self.shared.room.try_take(bytes) {
            if self.shared.stop.is_cancelled() {
                return Err(StorageError::Closed);
            }
            Metrics::add(&self.shared.metrics.busy, 1);
            return Err(self.shared.busy());
        }
        self.send(work, merge, Instant::now() + self.deadline, bytes)
    }

    /// Takes an operation, and waits until there is room for it.
    ///
    /// # Errors
    /// [`StorageError::Busy`] at the deadline; else as [`Storage::try_submit`].
    pub async fn submit<R: Request>(&self, request: R) -> Result<Ticket<R>, StorageError> {
        let (work, merge) = self.work(request)?;
        let deadline = Instant::now() + self.deadline;
        let bytes = permits(work.bytes());
        let room = &self.shared.room;
        if !room.try_take(bytes)
            && tokio::time::timeout_at(deadline, room.take(bytes)).await.is_err()
        {
            Metrics::add(&self.shared.metrics.busy, 1);
            return Err(self.shared.busy());
        }
        self.send(work, merge, deadline, bytes)
    }

    /// Takes an operation when there is room, and waits for its answer.
    ///
    /// # Errors
    /// As [`Storage::submit`], and as the operation.
    pub async fn ask<R: Request>(&self, request: R) -> Result<R::Answer, StorageError> {
        self.submit(request).await?.await
    }

    /// Reads a document.
    ///
    /// # Errors
    /// As [`Storage::submit`]; [`StorageError::Unavailable`].
    pub async fn get(&self, key: Key) -> Result<Option<Document>, StorageError> {
        self.ask(Get(key)).await
    }

    /// Writes a document that is not there yet.
    ///
    /// # Errors
    /// [`StorageError::Exists`], and as every write.
    pub async fn insert(&self, key: Key, body: Body) -> Result<Version, StorageError> {
        self.ask(Write::insert(key, body)).await
    }

    /// Writes a document in place of the version that was read.
    ///
    /// # Errors
    /// [`StorageError::VersionMismatch`], [`StorageError::Missing`], and as every write.
    pub async fn replace(
        &self,
        key: Key,
        body: Body,
        version: Version,
    ) -> Result<Version, StorageError> {
        self.ask(Write::replace(key, body, version)).await
    }

    /// Writes a document that nobody owns, whatever is there.
    ///
    /// # Errors
    /// As every write.
    pub async fn upsert(&self, key: Key, body: Body) -> Result<Version, StorageError> {
        self.ask(Write::upsert(key, body)).await
    }

    /// Writes an owner's document over an older one. The same numbers again are a resend, and answered as done.
    ///
    /// # Errors
    /// [`StorageError::Deposed`], and as every write.
    pub async fn put_owned(
        &self,
        key: Key,
        owner: Owner,
        body: Body,
    ) -> Result<Version, StorageError> {
        self.ask(Write::owned(key, owner, body)).await
    }

    /// Writes an owner's document, which need not be in the store at once: while that is away, it is kept on this
    /// machine's disk, from where it goes to the store when that is back, unless a newer owner has written by then. A
    /// write without an owner has nothing to fence it: it is asked as any other.
    ///
    /// # Errors
    /// As every write; [`StorageError::Unavailable`] when the spool, too, can't take it.
    pub async fn behind(&self, write: Write) -> Result<Kept, StorageError> {
        let spool = self.shared.spool.as_ref().zip(write.for_the_spool());
        let Some((spool, kept)) = spool else { return self.ask(write).await.map(Kept::Stored) };
        if !spool.is_in_use() {
            match self.ask(write).await {
                // One that is undecided may have happened: then the spool's is a resend.
                Err(
                    StorageError::Unavailable(_)
                    | StorageError::Busy { .. }
                    | StorageError::Undecided { .. },
                ) => {}
                answer => return answer.map(Kept::Stored),
            }
        }
        let mut span = self.parent.as_ref().map(|parent| parent.child("spool", SpanKind::Internal));
        let spooled = spool.keep(&kept).await;
        if let (Some(span), Err(error)) = (&mut span, &spooled) {
            span.fail(error);
        }
        spooled.map(|()| Kept::Spooled)
    }

    /// Removes an owner's document; see [`Write::owned_removal`].
    ///
    /// # Errors
    /// As [`Storage::put_owned`].
    pub async fn remove_owned(&self, key: Key, owner: Owner) -> Result<(), StorageError> {
        self.ask(Write::owned_removal(key, owner)).await.map(|_| ())
    }

    /// Removes a document that nobody owns.
    ///
    /// # Errors
    /// [`StorageError::Missing`], [`StorageError::VersionMismatch`], and as every write.
    pub async fn remove(&self, key: Key, version: Option<Version>) -> Result<(), StorageError> {
        self.ask(Remove { key, version }).await
    }

    /// Sets when a document goes by itself.
    ///
    /// # Errors
    /// [`StorageError::Missing`], and as every write.
    pub async fn touch(&self, key: Key, expiry: Expiry) -> Result<(), StorageError> {
        self.ask(Touch { key, expiry }).await
    }

    /// Reads, decides and writes; see [`Update`].
    ///
    /// # Errors
    /// What `decide` says, and as every write.
    pub async fn update<F>(&self, key: Key, decide: F) -> Result<Option<Document>, StorageError>
    where
        F: FnMut(Option<&Document>) -> Result<Change, StorageError> + Send + 'static,
    {
        self.ask(Update::new(key, decide)).await
    }

    /// Adds to a counter; see [`Count`].
    ///
    /// # Errors
    /// [`StorageError::NotACounter`], and as every write.
    pub async fn count(&self, key: Key, by: i64) -> Result<i64, StorageError> {
        self.ask(Count { key, by, expiry: Expiry::Never }).await
    }

    /// Finds documents.
    ///
    /// # Errors
    /// [`StorageError::BadQuery`]; [`StorageError::Unavailable`].
    pub async fn query(&self, query: Query) -> Result<Page, StorageError> {
        self.ask(query).await
    }

    fn work<R: Request>(&self, request: R) -> Result<(Work, Merge), StorageError> {
        let (work, merge) = request.into_work(self.shared.ids.next());
        let Work::Operation(operation) = &work else { return Ok((work, merge)) };
        match &**operation {
            Operation::Put(put) => {
                let (bytes, max) =
                    (put.body.as_ref().map_or(0, Body::len), self.shared.document_bytes_max);
                if bytes > max {
                    return Err(StorageError::TooLarge { key: put.key.clone(), bytes, max });
                }
            }
            Operation::Query(query) => self.shared.schema.check(query)?,
            Operation::Raw(RawQuery { limit: 0, .. }) => {
                return Err(StorageError::BadQuery("the limit is 0".into()));
            }
            Operation::Get { .. }
            | Operation::Remove { .. }
            | Operation::Touch { .. }
            | Operation::Raw(_) => {}
        }
        Ok((work, merge))
    }

    /// Gives the work to its lane; `bytes` of it, and a place, were taken.
    fn send<R: Request>(
        &self,
        work: Work,
        merge: Merge,
        deadline: Instant,
        bytes: u32,
    ) -> Result<Ticket<R>, StorageError> {
        let (to, answer) = oneshot::channel::<Result<Outcome, StorageError>>();
        let (lane, hash) = self.shared.lane(&work);
        let reply = Reply {
            to: Some(to),
            deadline,
            patience: self.deadline,
            steps: self.parent.as_ref().map(Steps::queued),
        };
        Metrics::add(&self.shared.metrics.waiting, 1);
        if lane.submit(Submitted { work, merge, reply, bytes, hash }).is_err() {
            Metrics::sub(&self.shared.metrics.waiting, 1);
            self.shared.room.give_back(1, bytes as usize);
            return Err(StorageError::Closed);
        }
        Metrics::add(&self.shared.metrics.submitted, 1);
        Ok(Ticket::new(answer))
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.lanes.iter().for_each(|lane| lane.close());
    }
}

impl Shared {
    /// The lane of the work, and the hash of its key.
    fn lane(&self, work: &Work) -> (&Inbox, u64) {
        let (number, hash) = match work.key() {
            Some(key) => {
                let hash = self.hasher.hash_one(key);
                // Not the bits by which a lane finds the key's line.
                let number = (hash >> 32) % self.lanes.len() as u64;
                (usize::try_from(number).expect("less than the number of lanes"), hash)
            }
            None => (self.turn.fetch_add(1, Ordering::Relaxed) % self.lanes.len(), 0),
        };
        (&self.lanes[number], hash)
    }

    fn busy(&self) -> StorageError {
        StorageError::Busy { waiting: self.queue_count_max - self.room.places.available_permits() }
    }
}

/// What the queue has room for. What is taken of it is given back by who answers, for many at once.
#[derive(Debug)]
pub(crate) struct Room {
    places: Semaphore,
    bytes: Semaphore,
}

impl Room {
    fn try_take(&self, bytes: u32) -> bool {
        let (Ok(place), Ok(bytes)) =
            (self.places.try_acquire(), self.bytes.try_acquire_many(bytes))
        else {
            return false;
        };
        place.forget();
        bytes.forget();
        true
    }

    async fn take(&self, bytes: u32) {
        let never = "nobody closes these semaphores";
        let place = self.places.acquire().await.expect(never);
        self.bytes.acquire_many(bytes).await.expect(never).forget();
        place.forget();
    }

    pub(crate) fn give_back(&self, places: usize, bytes: usize) {
        self.places.add_permits(places);
        self.bytes.add_permits(bytes);
    }
}

/// Permits of so many bytes: a document has less than 4 GiB.
fn permits(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// The storage's thread.
async fn run<F>(
    config: StorageConfig,
    schema: Schema,
    make: F,
    ready: std::sync::mpsc::SyncSender<Result<Storage, OpenError>>,
) where
    F: AsyncFnOnce() -> Result<Arc<dyn Backend>, OpenError>,
{
    let opened = async {
        let backend = make().await?;
        backend.prepare(&schema).await?;
        Ok(backend)
    };
    let backend = match opened.await {
        Ok(backend) => backend,
        Err(error) => {
            drop(ready.send(Err(error)));
            return;
        }
    };
    let metrics = Arc::new(Metrics::default());
    let ids = Arc::new(WriteIds::new());
    let (stop, over) = (CancellationToken::new(), CancellationToken::new());
    let tasks = TaskTracker::new();
    let queue_count_max = config.queue_count_max.get();
    let room = Arc::new(Room {
        places: Semaphore::new(queue_count_max),
        bytes: Semaphore::new(config.queue_bytes_max),
    });
    let of_lanes = LaneConfig {
        room: room.clone(),
        backend: backend.clone(),
        metrics: metrics.clone(),
        ids: ids.clone(),
        document_bytes_max: config.document_bytes_max,
        under_way_max: config.lane_under_way_max.get(),
    };
    let spool = match config.spool.as_os_str().is_empty() {
        true => None,
        false => match spool::open(&config.spool, config.spool_bytes_max, metrics.clone()) {
            Ok(spool) => Some(spool),
            Err(error) => {
                drop(ready.send(Err(error)));
                return;
            }
        },
    };
    let (spool, keeper) = spool.unzip();
    let lanes = (0..config.lanes.get()).map(|_| {
        let lane = Arc::new(Inbox::new());
        tasks.spawn(Lane::new(of_lanes.clone(), Arc::clone(&lane)).run());
        lane
    });
    let storage = Storage {
        shared: Arc::new(Shared {
            lanes: lanes.collect(),
            hasher: RandomState::new(),
            turn: AtomicUsize::new(0),
            room,
            queue_count_max,
            document_bytes_max: config.document_bytes_max,
            ids,
            metrics,
            schema,
            backend: backend.clone(),
            spool,
            stop: stop.clone(),
            over: over.clone(),
        }),
        deadline: config.deadline,
        parent: None,
    };
    if let Some(keeper) = keeper {
        // It ends when nobody has a handle any more, of which it must not be one.
        let (shared, deadline) = (Arc::downgrade(&storage.shared), config.deadline);
        let handle = move || Some(Storage { shared: shared.upgrade()?, deadline, parent: None });
        tasks.spawn(keeper.run(Box::new(handle), stop));
    }
    let _end = over.drop_guard();
    if ready.send(Ok(storage)).is_err() {
        tracing::debug!("nobody waits for the storage");
    }
    // Lanes end when nobody has a handle any more, or after `close`.
    tasks.close();
    tasks.wait().await;
    backend.close().await;
}

/// The name of what a URL says.
pub(crate) fn scheme(url: &EcoString) -> &str {
    url.split_once(':').map_or(url.as_str(), |(scheme, _)| scheme)
}
