//! One lane: the operations of its keys, in the order in which they came; one of each key under way at a time.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, VecDeque};
use std::future::{Future as _, poll_fn};
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::task::Poll;
use std::time::Duration;

use ecow::eco_format;
use greenroom_telemetry::Seldom;
use hashbrown::HashTable;
use slab::Slab;
use smallvec::{SmallVec, smallvec};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use crate::backend::{Answer, Backend, Completion, Condition, Job, Operation, Put};
use crate::handle::Room;
use crate::inbox::Inbox;
use crate::metrics::Metrics;
use crate::request::{Change, Decide, Merge, Outcome, Work};
use crate::steps::Steps;
use crate::{Document, Expiry, Key, Owner, StorageError, Version, WriteId, WriteIds};

/// Operations that a lane takes before it looks at the rest.
const TURN_MAX: usize = 1_024;
/// How long an operation rests that found the store away, at first and at most.
const REST: Duration = Duration::from_millis(10);
const REST_MAX: Duration = Duration::from_millis(500);
/// How often a lane logs that the store fails, at most: each operation may find it so.
const FAILURES_LOGGED: Duration = Duration::from_secs(10);

/// An operation on its way to its lane.
#[derive(Debug)]
pub(crate) struct Submitted {
    pub(crate) work: Work,
    pub(crate) merge: Merge,
    pub(crate) reply: Reply,
    /// What it has of the room for bytes, beside a place.
    pub(crate) bytes: u32,
    /// Of its key, if it has one.
    pub(crate) hash: u64,
}

/// Who waits for an answer.
#[derive(Debug)]
pub(crate) struct Reply {
    /// None when it has its answer.
    pub(crate) to: Option<oneshot::Sender<Result<Outcome, StorageError>>>,
    pub(crate) deadline: Instant,
    /// How long it was ready to wait.
    pub(crate) patience: Duration,
    /// What it does here, if it is sampled.
    pub(crate) steps: Option<Box<Steps>>,
}

/// An operation of a lane.
#[derive(Debug)]
struct Entry {
    task: Task,
    state: State,
    merge: Merge,
    /// Whose write it is and those that it stands in for.
    replies: SmallVec<[Reply; 1]>,
    bytes: u32,
    /// Of its key.
    hash: u64,
    /// Tells it from others that have had its slot.
    serial: u64,
    /// The next of the same key.
    next: Option<usize>,
    /// How often it has found the store away.
    rests: u32,
    /// When the store was given it last.
    begun: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    UnderWay,
}

/// How far an operation is.
enum Task {
    Operation(Arc<Operation>),
    Update {
        key: Key,
        decide: Decide,
        step: Step,
    },
    /// Everybody who waited has been told that it will not happen.
    Given(Option<Key>),
}

impl Task {
    fn key(&self) -> Option<&Key> {
        match self {
            Self::Operation(operation) => operation.key(),
            Self::Update { key, .. } => Some(key),
            Self::Given(key) => key.as_ref(),
        }
    }
}

impl std::fmt::Debug for Task {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Operation(operation) => std::fmt::Debug::fmt(operation, out),
            Self::Update { step, .. } => out.debug_tuple("Update").field(step).finish(),
            Self::Given(_) => out.write_str("Given"),
        }
    }
}

/// How far an update is.
#[derive(Debug)]
enum Step {
    Read,
    Write(Box<Writing>),
}

/// What an update has decided.
#[derive(Debug)]
struct Writing {
    operation: Arc<Operation>,
    /// What the document will be.
    after: Option<Document>,
}

/// The operations of one key: `first` is under way or next.
#[derive(Clone, Copy, Debug)]
struct Line {
    first: usize,
    last: usize,
}

/// Until when who waits does so: the how-manieth of the replies of which entry, by its slot and its serial. Those that
/// have their answer stay in it for a while: to take out each would cost more than to pass over it.
#[derive(Debug, Default)]
struct Deadlines(BinaryHeap<Reverse<(Instant, u64, usize, usize)>>);

/// The loop of one lane.
#[derive(Debug)]
pub(crate) struct Lane {
    backend: Arc<dyn Backend>,
    metrics: Arc<Metrics>,
    ids: Arc<WriteIds>,
    room: Arc<Room>,
    document_bytes_max: usize,
    under_way_max: usize,
    inbox: Arc<Inbox>,
    entries: Slab<Entry>,
    /// A point index of `entries` by their keys, never iterated.
    lines: HashTable<Line>,
    /// Entries that may be begun.
    ready: VecDeque<usize>,
    /// Entries that may be begun again, and when.
    resting: BTreeSet<(Instant, usize)>,
    deadlines: Deadlines,
    /// Replies of all entries.
    waiting: usize,
    under_way: usize,
    serial: u64,
    /// What ended in this turn.
    ended: Ended,
    failures: Seldom,
}

/// What ended in one turn: its room is given back at once, and then its answers are given.
#[derive(Debug, Default)]
struct Ended {
    places: usize,
    bytes: usize,
    answers: Vec<(Waiting, Result<Outcome, StorageError>)>,
}

/// What lanes have in common.
#[derive(Clone, Debug)]
pub(crate) struct LaneConfig {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) ids: Arc<WriteIds>,
    pub(crate) room: Arc<Room>,
    pub(crate) document_bytes_max: usize,
    pub(crate) under_way_max: usize,
}

impl Lane {
    pub(crate) fn new(config: LaneConfig, inbox: Arc<Inbox>) -> Self {
        let LaneConfig { backend, metrics, ids, room, document_bytes_max, under_way_max } = config;
        Self {
            backend,
            metrics,
            ids,
            room,
            document_bytes_max,
            under_way_max,
            inbox,
            entries: Slab::new(),
            lines: HashTable::new(),
            ready: VecDeque::new(),
            resting: BTreeSet::new(),
            deadlines: Deadlines::default(),
            waiting: 0,
            under_way: 0,
            serial: 0,
            ended: Ended::default(),
            failures: Seldom::new(FAILURES_LOGGED),
        }
    }

    /// Runs until nobody can submit any more, or it is closed, and everything that was taken has its answer.
    pub(crate) async fn run(mut self) {
        let (mut arrived, mut completed) = (VecDeque::new(), Vec::new());
        let (inbox, mut is_open) = (Arc::clone(&self.inbox), true);
        // Set for the first moment, and left alone as long as there is no earlier one: to be woken early is no harm.
        let (mut timer, mut set) = (pin!(sleep_until(Instant::now())), None);
        while is_open || !self.entries.is_empty() || !arrived.is_empty() {
            if let Some(next) = self.next_moment()
                && set.is_none_or(|set| next < set)
            {
                timer.as_mut().reset(next);
                set = Some(next);
            }
            poll_fn(|context| {
                let is_due = set.is_some() && timer.as_mut().poll(context).is_ready();
                if is_due {
                    set = None;
                }
                let taken = inbox.poll_take(context, &mut arrived, &mut completed, &mut is_open);
                if is_due || !arrived.is_empty() { Poll::Ready(()) } else { taken }
            })
            .await;
            let now = Instant::now();
            self.complete_all(&mut completed, now);
            let turn = arrived.len().min(TURN_MAX);
            arrived.drain(..turn).for_each(|submitted| self.take(submitted));
            self.wake(now);
            self.expire(now);
            self.begin_ready(now);
            self.settle();
            // Others have this thread too.
            tokio::task::coop::consume_budget().await;
        }
    }

    fn next_moment(&self) -> Option<Instant> {
        let deadline = self.deadlines.0.peek().map(|Reverse((at, ..))| *at);
        let rest = self.resting.first().map(|(at, _)| *at);
        deadline.into_iter().chain(rest).min()
    }

    /// Puts an operation behind those of its key.
    fn take(&mut self, submitted: Submitted) {
        let Submitted { work, merge, reply, bytes, hash } = submitted;
        let task = match work {
            Work::Operation(operation) => Task::Operation(operation),
            Work::Update { key, decide } => Task::Update { key, decide, step: Step::Read },
        };
        self.waiting += 1;
        let entries = &mut self.entries;
        let line = task.key().and_then(|key| {
            self.lines.find_mut(hash, |line| entries[line.last].task.key() == Some(key))
        });
        if let Some(Line { last, .. }) = &line
            && merge == Merge::Allowed
            && entries[*last].may_be_stood_in_for_by(&task)
        {
            let entry = &mut entries[*last];
            entry.task = task;
            self.ended.bytes += entry.bytes as usize;
            entry.bytes = bytes;
            self.deadlines.0.push(Reverse((
                reply.deadline,
                entry.serial,
                *last,
                entry.replies.len(),
            )));
            entry.replies.push(reply);
            Metrics::add(&self.metrics.merged, 1);
            return;
        }
        let has_key = task.key().is_some();
        let (deadline, serial) = (reply.deadline, self.serial);
        self.serial += 1;
        let slot = entries.insert(Entry {
            task,
            state: State::Waiting,
            merge,
            replies: smallvec![reply],
            bytes,
            hash,
            serial,
            next: None,
            rests: 0,
            begun: deadline,
        });
        match line {
            Some(line) => {
                entries[line.last].next = Some(slot);
                line.last = slot;
            }
            None => {
                self.ready.push_back(slot);
                if has_key {
                    let line = Line { first: slot, last: slot };
                    self.lines.insert_unique(hash, line, |line| entries[line.last].hash);
                }
            }
        }
        self.deadlines.0.push(Reverse((deadline, serial, slot, 0)));
        if self.deadlines.0.len() > 64 + 2 * self.waiting {
            self.deadlines
                .0
                .retain(|Reverse((_, serial, slot, place))| waits(entries, *slot, *serial, *place));
        }
    }

    /// Hands the store whatever may be begun.
    fn begin_ready(&mut self, now: Instant) {
        let mut jobs = Vec::new();
        while self.under_way < self.under_way_max
            && let Some(slot) = self.ready.pop_front()
        {
            let entry = &mut self.entries[slot];
            let operation = match &entry.task {
                Task::Operation(operation) => operation.clone(),
                Task::Update { step: Step::Write(writing), .. } => writing.operation.clone(),
                Task::Update { key, step: Step::Read, .. } => {
                    Arc::new(Operation::Get { key: key.clone() })
                }
                Task::Given(_) => {
                    drop(self.finish(slot, now));
                    continue;
                }
            };
            entry.state = State::UnderWay;
            entry.begun = now;
            entry.sampled().for_each(|steps| steps.begun(self.backend.name(), &operation));
            self.under_way += 1;
            jobs.push(Job::new(operation, entry.deadline(), slot, self.inbox.clone()));
        }
        if !jobs.is_empty() {
            let count = u64::try_from(jobs.len()).unwrap_or(u64::MAX);
            Metrics::add(&self.metrics.under_way, count);
            Metrics::add(&self.metrics.batches, 1);
            self.backend.begin(jobs);
        }
    }

    /// Takes the store's answers.
    fn complete_all(&mut self, completed: &mut Vec<Completion>, now: Instant) {
        if completed.is_empty() {
            return;
        }
        let count = u64::try_from(completed.len()).unwrap_or(u64::MAX);
        self.under_way -= completed.len();
        Metrics::sub(&self.metrics.under_way, count);
        Metrics::add(&self.metrics.answered, count);
        completed.drain(..).for_each(|completion| self.complete(completion, now));
        self.settle();
    }

    fn complete(&mut self, completion: Completion, now: Instant) {
        let Completion { slot, result } = completion;
        let entry = &mut self.entries[slot];
        self.metrics.job_duration.record(now.saturating_duration_since(entry.begun));
        entry.state = State::Waiting;
        if let Err(error @ StorageError::Unavailable(_)) = &result
            && self.rest(slot, now)
        {
            return self.entries[slot].sampled().for_each(|steps| steps.waits_again(Some(error)));
        }
        let entry = &mut self.entries[slot];
        let result = match &mut entry.task {
            Task::Update { key, decide, step } => {
                match next_step(decide, step, result, key, &self.ids, self.document_bytes_max) {
                    Next::Ended(result) => result.map(Outcome::Updated),
                    Next::Again => {
                        Metrics::add(&self.metrics.conflicts, 1);
                        return self.go_on(slot, now);
                    }
                    Next::Write => return self.go_on(slot, now),
                }
            }
            Task::Operation(_) | Task::Given(_) => result.map(Outcome::Answer),
        };
        if let Err(error) = &result {
            self.entries[slot].sampled().for_each(|steps| steps.failed(error));
            self.note(error);
        }
        let waiting = self.finish(slot, now);
        self.ended.answers.push((waiting, result));
    }

    /// Gives back the room of what has ended, and its answers: the room first, since who hears of it may come back at
    /// once.
    fn settle(&mut self) {
        let Ended { places, bytes, answers } = &mut self.ended;
        if *places > 0 {
            Metrics::sub(&self.metrics.waiting, u64::try_from(*places).unwrap_or(u64::MAX));
        }
        if *bytes > 0 {
            self.room.give_back(std::mem::take(places), std::mem::take(bytes));
        }
        answers.drain(..).for_each(|(waiting, result)| reply(waiting, result));
    }

    /// Lets an entry be begun again, unless nobody waits for it any more.
    fn go_on(&mut self, slot: usize, now: Instant) {
        if self.entries[slot].replies.iter().all(|reply| reply.to.is_none()) {
            drop(self.finish(slot, now));
        } else {
            self.entries[slot].sampled().for_each(|steps| steps.waits_again(None));
            self.ready.push_front(slot);
        }
    }

    /// Lets an operation rest that found the store away, if somebody waits that long.
    fn rest(&mut self, slot: usize, now: Instant) -> bool {
        let entry = &mut self.entries[slot];
        let pause = REST.saturating_mul(1 << entry.rests.min(10)).min(REST_MAX);
        let at = now + pause;
        if at >= entry.deadline() || entry.replies.iter().all(|reply| reply.to.is_none()) {
            return false;
        }
        entry.rests += 1;
        Metrics::add(&self.metrics.retried, 1);
        self.resting.insert((at, slot));
        true
    }

    fn wake(&mut self, now: Instant) {
        while let Some((at, slot)) = self.resting.first().copied()
            && at <= now
        {
            self.resting.pop_first();
            self.ready.push_back(slot);
        }
    }

    /// Answers those who have waited as long as they were ready to.
    fn expire(&mut self, now: Instant) {
        while let Some(Reverse((at, serial, slot, place))) = self.deadlines.0.peek().copied()
            && at <= now
        {
            self.deadlines.0.pop();
            if !waits(&self.entries, slot, serial, place) {
                continue;
            }
            let entry = &mut self.entries[slot];
            let reply = &mut entry.replies[place];
            let operation = match &entry.task {
                Task::Operation(operation) => Some(operation),
                Task::Update { step: Step::Write(writing), .. } => Some(&writing.operation),
                Task::Update { step: Step::Read, .. } | Task::Given(_) => None,
            };
            let error = match operation.filter(|_| entry.state == State::UnderWay) {
                Some(operation) => {
                    operation.unknown(eco_format!("no answer in {:?}", reply.patience))
                }
                None => StorageError::late(reply.patience),
            };
            let is_undecided = matches!(error, StorageError::Undecided { .. });
            let metrics = &self.metrics;
            Metrics::add(if is_undecided { &metrics.undecided } else { &metrics.unavailable }, 1);
            if let Some(mut steps) = reply.steps.take() {
                steps.failed(&error);
            }
            send(reply.to.take(), Err(error));
            if entry.state == State::Waiting && entry.replies.iter().all(|reply| reply.to.is_none())
            {
                // Its turn passes; its place in the queue is free when it does, so that the queue stays bounded.
                entry.task = Task::Given(entry.task.key().cloned());
            }
        }
    }

    /// Takes an entry away, and gives who still waits for it; the next of its key may begin.
    fn finish(&mut self, slot: usize, now: Instant) -> Waiting {
        let entry = self.entries.remove(slot);
        for reply in entry.replies.iter().filter(|reply| reply.to.is_some()) {
            let left = reply.deadline.saturating_duration_since(now);
            let took = reply.patience.saturating_sub(left);
            self.metrics.operation_duration.record(took);
        }
        self.waiting -= entry.replies.len();
        self.ended.places += entry.replies.len();
        self.ended.bytes += entry.bytes as usize;
        if entry.task.key().is_some() {
            let line = self.lines.find_entry(entry.hash, |line| line.first == slot);
            let mut line = line.expect("a key with entries has a line");
            match entry.next {
                Some(next) => {
                    line.get_mut().first = next;
                    self.ready.push_back(next);
                }
                None => drop(line.remove()),
            }
        }
        entry.replies.into_iter().filter_map(|reply| reply.to).collect()
    }

    /// Counts an error, and logs what somebody must know of.
    fn note(&mut self, error: &StorageError) {
        let counter: &AtomicU64 = match error {
            StorageError::Deposed { .. } => {
                tracing::warn!(%error, "a write of an owner that is none any more");
                &self.metrics.deposed
            }
            StorageError::Undecided { .. } => {
                tracing::warn!(%error, "a write is undecided");
                &self.metrics.undecided
            }
            StorageError::Unavailable(_) => &self.metrics.unavailable,
            StorageError::Backend(_) => {
                if let Some(left_out) = self.failures.is_due(Instant::now().into_std()) {
                    tracing::error!(%error, left_out, "the store failed");
                }
                &self.metrics.failed
            }
            // Answers to who asked.
            StorageError::Busy { .. }
            | StorageError::Exists { .. }
            | StorageError::Missing { .. }
            | StorageError::VersionMismatch { .. }
            | StorageError::TooLarge { .. }
            | StorageError::BadKey(_)
            | StorageError::NotJson(_)
            | StorageError::Undecodable { .. }
            | StorageError::NotACounter { .. }
            | StorageError::BadQuery(_)
            | StorageError::Closed => return,
        };
        Metrics::add(counter, 1);
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // One that panicked leaves something: who waits for it is told that the storage is closed.
        let left = self.inbox.end();
        let bytes = self.entries.iter().map(|(_, entry)| entry.bytes);
        let bytes = bytes.chain(left.iter().map(|submitted| submitted.bytes));
        self.ended.bytes += bytes.map(|bytes| bytes as usize).sum::<usize>();
        self.ended.places += self.waiting + left.len();
        self.settle();
    }
}

/// Whether somebody still waits for this reply.
fn waits(entries: &Slab<Entry>, slot: usize, serial: u64, place: usize) -> bool {
    let entry = entries.get(slot).filter(|entry| entry.serial == serial);
    entry.is_some_and(|entry| entry.replies[place].to.is_some())
}

/// Who waits for an entry.
type Waiting = SmallVec<[oneshot::Sender<Result<Outcome, StorageError>>; 1]>;

/// Tells everybody who waits.
fn reply(mut waiting: Waiting, result: Result<Outcome, StorageError>) {
    // The last is the one whose write it was; those it stands in for get the same.
    let last = waiting.pop();
    for to in waiting {
        let same = match &result {
            Ok(Outcome::Answer(Answer::Stored(version))) => {
                Ok(Outcome::Answer(Answer::Stored(*version)))
            }
            Ok(_) => unreachable!("only writes stand in for each other"),
            Err(error) => Err(error.clone()),
        };
        send(Some(to), same);
    }
    send(last, result);
}

fn send(
    to: Option<oneshot::Sender<Result<Outcome, StorageError>>>,
    result: Result<Outcome, StorageError>,
) {
    if let Some(to) = to
        && to.send(result).is_err()
    {
        tracing::trace!("nobody waits for this answer any more");
    }
}

impl Entry {
    /// Those who wait for it and are sampled.
    fn sampled(&mut self) -> impl Iterator<Item = &mut Steps> {
        self.replies.iter_mut().filter_map(|reply| reply.steps.as_deref_mut())
    }

    /// When the last of those who wait stops waiting.
    fn deadline(&self) -> Instant {
        let deadlines = self.replies.iter().map(|reply| reply.deadline);
        deadlines.max().expect("an entry begins with a reply")
    }

    /// Whether this has not begun and a newer write may take its place: of a blind write a blind one, of an owner's a
    /// newer one of that owner's.
    fn may_be_stood_in_for_by(&self, newer: &Task) -> bool {
        let (Task::Operation(this), Task::Operation(newer)) = (&self.task, newer) else {
            return false;
        };
        let (Operation::Put(this), Operation::Put(newer)) = (&**this, &**newer) else {
            return false;
        };
        self.merge == Merge::Allowed
            && self.state == State::Waiting
            // One that rests has been with the store; its outcome is its own.
            && self.rests == 0
            && match (this.condition, newer.condition) {
                (Condition::None, Condition::None) => true,
                (Condition::Owner, Condition::Owner) => is_newer(newer.owner, this.owner),
                (
                    Condition::None
                    | Condition::Owner
                    | Condition::Absent
                    | Condition::Version(_),
                    _,
                ) => false,
            }
    }
}

fn is_newer(this: Option<Owner>, other: Option<Owner>) -> bool {
    this.zip(other).is_some_and(|(this, other)| this > other)
}

/// What comes after a step of an update.
enum Next {
    Ended(Result<Option<Document>, StorageError>),
    /// The write that was decided.
    Write,
    /// From the start: somebody else has written.
    Again,
}

fn next_step(
    decide: &mut Decide,
    step: &mut Step,
    result: Result<Answer, StorageError>,
    key: &Key,
    ids: &WriteIds,
    document_bytes_max: usize,
) -> Next {
    match (&mut *step, result) {
        (Step::Read, Ok(Answer::Document(document))) => {
            let decided = std::panic::catch_unwind(AssertUnwindSafe(|| decide(document.as_ref())));
            let change = match decided {
                Ok(Ok(change)) => change,
                Ok(Err(error)) => return Next::Ended(Err(error)),
                Err(_) => {
                    let why = eco_format!("an update of {key} panicked; see above");
                    return Next::Ended(Err(StorageError::Backend(why)));
                }
            };
            let write = ids.next();
            match (change, document) {
                (Change::Leave, document) => Next::Ended(Ok(document)),
                (Change::Remove, None) => Next::Ended(Ok(None)),
                (Change::Remove, Some(document)) => {
                    let version = Some(document.version);
                    let operation = Operation::Remove { key: key.clone(), version, write }.into();
                    *step = Step::Write(Box::new(Writing { operation, after: None }));
                    Next::Write
                }
                (Change::Write(body, _), _) if body.len() > document_bytes_max => {
                    Next::Ended(Err(StorageError::TooLarge {
                        key: key.clone(),
                        bytes: body.len(),
                        max: document_bytes_max,
                    }))
                }
                (Change::Write(body, expiry), before) => {
                    *step = written(key, body, expiry, before, write);
                    Next::Write
                }
            }
        }
        (Step::Write(writing), Ok(answer)) => {
            let mut after = writing.after.take();
            if let (Some(document), Answer::Stored(version)) = (&mut after, answer) {
                document.version = version;
            }
            Next::Ended(Ok(after))
        }
        (
            Step::Write(_),
            Err(
                StorageError::VersionMismatch { .. }
                | StorageError::Exists { .. }
                | StorageError::Missing { .. },
            ),
        ) => {
            *step = Step::Read;
            Next::Again
        }
        (Step::Read, Ok(_)) => unreachable!("a read is answered with a document"),
        (Step::Read | Step::Write(_), Err(error)) => Next::Ended(Err(error)),
    }
}

/// The write of an update, over what was read.
fn written(
    key: &Key,
    body: crate::Body,
    expiry: Expiry,
    before: Option<Document>,
    write: WriteId,
) -> Step {
    let condition = match &before {
        Some(before) => Condition::Version(before.version),
        None => Condition::Absent,
    };
    let after = Document {
        body: body.clone(),
        version: Version(write.0),
        owner: before.as_ref().and_then(|before| before.owner),
        expires_ms: before.and_then(|before| before.expires_ms).filter(|_| expiry == Expiry::Keep),
    };
    let put = Put { key: key.clone(), body: Some(body), condition, owner: None, write, expiry };
    Step::Write(Box::new(Writing { operation: Operation::Put(put).into(), after: Some(after) }))
}
