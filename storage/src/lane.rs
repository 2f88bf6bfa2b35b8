//! One lane: the operations of its keys, in the order in which they came; one of each key under way at a time.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use ecow::eco_format;
use greenroom_telemetry::Seldom;
use slab::Slab;
use smallvec::{SmallVec, smallvec};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::backend::{Answer, Backend, Completion, Condition, Job, Operation, Put};
use crate::metrics::Metrics;
use crate::request::{Change, Decide, Merge, Outcome, Work};
use crate::steps::Steps;
use crate::{Document, Expiry, Key, Owner, StorageError, Version, WriteId, WriteIds};

/// Operations and answers that a lane takes before it looks at the rest.
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
    /// Of its bytes; given back with it.
    pub(crate) bytes: OwnedSemaphorePermit,
}

/// Who waits for an answer.
#[derive(Debug)]
pub(crate) struct Reply {
    /// None when it has its answer.
    pub(crate) to: Option<oneshot::Sender<Result<Outcome, StorageError>>>,
    pub(crate) deadline: Instant,
    /// How long it was ready to wait.
    pub(crate) patience: Duration,
    /// Its place in the queue.
    pub(crate) _place: OwnedSemaphorePermit,
    /// What it does here, if it is sampled.
    pub(crate) steps: Option<Box<Steps>>,
}

/// An operation of a lane.
#[derive(Debug)]
struct Entry {
    key: Option<Key>,
    task: Task,
    state: State,
    merge: Merge,
    /// Whose write it is and those that it stands in for.
    replies: SmallVec<[Reply; 1]>,
    bytes: OwnedSemaphorePermit,
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
    Operation(Operation),
    Update {
        decide: Decide,
        step: Step,
    },
    /// Everybody who waited has been told that it will not happen.
    Given,
}

impl std::fmt::Debug for Task {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Operation(operation) => std::fmt::Debug::fmt(operation, out),
            Self::Update { step, .. } => out.debug_tuple("Update").field(step).finish(),
            Self::Given => out.write_str("Given"),
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
    operation: Operation,
    /// What the document will be.
    after: Option<Document>,
}

/// The operations of one key: `first` is under way or next.
#[derive(Clone, Copy, Debug)]
struct Line {
    first: usize,
    last: usize,
}

/// The loop of one lane.
#[derive(Debug)]
pub(crate) struct Lane {
    backend: Arc<dyn Backend>,
    metrics: Arc<Metrics>,
    ids: Arc<WriteIds>,
    document_bytes_max: usize,
    under_way_max: usize,
    mailbox: mpsc::Receiver<Submitted>,
    completions: mpsc::Receiver<Completion>,
    /// Cloned into each job.
    done: mpsc::Sender<Completion>,
    entries: Slab<Entry>,
    /// A point index of `entries`, never iterated.
    lines: HashMap<Key, Line>,
    /// Entries that may be begun.
    ready: VecDeque<usize>,
    /// Entries that may be begun again, and when.
    resting: BTreeSet<(Instant, usize)>,
    /// Replies by their deadlines: of which entry, the how-manieth.
    deadlines: BTreeMap<(Instant, usize, usize), ()>,
    under_way: usize,
    failures: Seldom,
}

/// What lanes have in common.
#[derive(Clone, Debug)]
pub(crate) struct LaneConfig {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) ids: Arc<WriteIds>,
    pub(crate) document_bytes_max: usize,
    pub(crate) under_way_max: usize,
}

impl Lane {
    pub(crate) fn new(config: LaneConfig, mailbox: mpsc::Receiver<Submitted>) -> Self {
        let LaneConfig { backend, metrics, ids, document_bytes_max, under_way_max } = config;
        // One completion for each job under way: there is always room.
        let (done, completions) = mpsc::channel(under_way_max);
        Self {
            backend,
            metrics,
            ids,
            document_bytes_max,
            under_way_max,
            mailbox,
            completions,
            done,
            entries: Slab::new(),
            lines: HashMap::new(),
            ready: VecDeque::new(),
            resting: BTreeSet::new(),
            deadlines: BTreeMap::new(),
            under_way: 0,
            failures: Seldom::new(FAILURES_LOGGED),
        }
    }

    /// Runs until nobody can submit any more, or the stop, and everything that was taken has its answer.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let (mut arrived, mut completed) = (Vec::new(), Vec::new());
        let mut is_open = true;
        while is_open || !self.entries.is_empty() {
            let next = self.next_moment();
            tokio::select! {
                () = stop.cancelled(), if !self.mailbox.is_closed() => self.mailbox.close(),
                _ = self.completions.recv_many(&mut completed, TURN_MAX) => {}
                count = self.mailbox.recv_many(&mut arrived, TURN_MAX), if is_open => is_open = count > 0,
                () = until(next), if next.is_some() => {}
            }
            // What came meanwhile goes into the same batch.
            while completed.len() < TURN_MAX
                && let Ok(completion) = self.completions.try_recv()
            {
                completed.push(completion);
            }
            while arrived.len() < TURN_MAX
                && let Ok(submitted) = self.mailbox.try_recv()
            {
                arrived.push(submitted);
            }
            completed.drain(..).for_each(|completion| self.complete(completion));
            arrived.drain(..).for_each(|submitted| self.take(submitted));
            let now = Instant::now();
            self.wake(now);
            self.expire(now);
            self.begin_ready();
        }
    }

    fn next_moment(&self) -> Option<Instant> {
        let deadline = self.deadlines.first_key_value().map(|((at, ..), ())| *at);
        let rest = self.resting.first().map(|(at, _)| *at);
        deadline.into_iter().chain(rest).min()
    }

    /// Puts an operation behind those of its key.
    fn take(&mut self, submitted: Submitted) {
        let Submitted { work, merge, reply, bytes } = submitted;
        let key = work.key().cloned();
        let task = match work {
            Work::Operation(operation) => Task::Operation(operation),
            Work::Update { decide, .. } => Task::Update { decide, step: Step::Read },
        };
        let line = key.as_ref().and_then(|key| self.lines.get(key)).copied();
        if let Some(line) = line
            && merge == Merge::Allowed
            && self.entries[line.last].may_be_stood_in_for_by(&task)
        {
            let entry = &mut self.entries[line.last];
            entry.task = task;
            entry.bytes = bytes;
            self.deadlines.insert((reply.deadline, line.last, entry.replies.len()), ());
            entry.replies.push(reply);
            Metrics::add(&self.metrics.merged, 1);
            return;
        }
        let deadline = reply.deadline;
        let slot = self.entries.insert(Entry {
            key: key.clone(),
            task,
            state: State::Waiting,
            merge,
            replies: smallvec![reply],
            bytes,
            next: None,
            rests: 0,
            begun: deadline,
        });
        self.deadlines.insert((deadline, slot, 0), ());
        match (key, line) {
            (Some(key), Some(Line { first, last })) => {
                self.entries[last].next = Some(slot);
                self.lines.insert(key, Line { first, last: slot });
            }
            (Some(key), None) => {
                self.lines.insert(key, Line { first: slot, last: slot });
                self.ready.push_back(slot);
            }
            (None, _) => self.ready.push_back(slot),
        }
    }

    /// Hands the store whatever may be begun.
    fn begin_ready(&mut self) {
        let mut jobs = Vec::new();
        let now = Instant::now();
        while self.under_way < self.under_way_max
            && let Some(slot) = self.ready.pop_front()
        {
            let entry = &mut self.entries[slot];
            let operation = match &entry.task {
                Task::Operation(operation) => operation.clone(),
                Task::Update { step: Step::Write(writing), .. } => writing.operation.clone(),
                Task::Update { step: Step::Read, .. } => {
                    Operation::Get { key: entry.key.clone().expect("an update has a key") }
                }
                Task::Given => {
                    drop(self.finish(slot));
                    continue;
                }
            };
            entry.state = State::UnderWay;
            entry.begun = now;
            entry.sampled().for_each(|steps| steps.begun(self.backend.name(), &operation));
            self.under_way += 1;
            jobs.push(Job::new(operation, entry.deadline(), slot, self.done.clone()));
        }
        if !jobs.is_empty() {
            let count = u64::try_from(jobs.len()).unwrap_or(u64::MAX);
            Metrics::add(&self.metrics.under_way, count);
            Metrics::add(&self.metrics.batches, 1);
            self.backend.begin(jobs);
        }
    }

    /// Takes the store's answer.
    fn complete(&mut self, completion: Completion) {
        let Completion { slot, result } = completion;
        self.under_way -= 1;
        Metrics::sub(&self.metrics.under_way, 1);
        Metrics::add(&self.metrics.answered, 1);
        self.metrics.job_duration.record(self.entries[slot].begun.elapsed());
        self.entries[slot].state = State::Waiting;
        if let Err(error @ StorageError::Unavailable(_)) = &result
            && self.rest(slot)
        {
            return self.entries[slot].sampled().for_each(|steps| steps.waits_again(Some(error)));
        }
        let entry = &mut self.entries[slot];
        let result = match &mut entry.task {
            Task::Update { decide, step } => {
                let key = entry.key.clone().expect("an update has a key");
                match next_step(decide, step, result, &key, &self.ids, self.document_bytes_max) {
                    Next::Ended(result) => result.map(Outcome::Updated),
                    Next::Again => {
                        Metrics::add(&self.metrics.conflicts, 1);
                        return self.go_on(slot);
                    }
                    Next::Write => return self.go_on(slot),
                }
            }
            Task::Operation(_) | Task::Given => result.map(Outcome::Answer),
        };
        if let Err(error) = &result {
            self.entries[slot].sampled().for_each(|steps| steps.failed(error));
            self.note(error);
        }
        // Its places in the queue are free before anybody hears of it, who may come back at once.
        let waiting = self.finish(slot);
        reply(waiting, result);
    }

    /// Lets an entry be begun again, unless nobody waits for it any more.
    fn go_on(&mut self, slot: usize) {
        if self.entries[slot].replies.iter().all(|reply| reply.to.is_none()) {
            drop(self.finish(slot));
        } else {
            self.entries[slot].sampled().for_each(|steps| steps.waits_again(None));
            self.ready.push_front(slot);
        }
    }

    /// Lets an operation rest that found the store away, if somebody waits that long.
    fn rest(&mut self, slot: usize) -> bool {
        let entry = &mut self.entries[slot];
        let pause = REST.saturating_mul(1 << entry.rests.min(10)).min(REST_MAX);
        let at = Instant::now() + pause;
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
        while let Some((&(at, slot, place), ())) = self.deadlines.first_key_value()
            && at <= now
        {
            self.deadlines.pop_first();
            let entry = &mut self.entries[slot];
            let reply = &mut entry.replies[place];
            let operation = match &entry.task {
                Task::Operation(operation) => Some(operation),
                Task::Update { step: Step::Write(writing), .. } => Some(&writing.operation),
                Task::Update { step: Step::Read, .. } | Task::Given => None,
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
                entry.task = Task::Given;
            }
        }
    }

    /// Takes an entry away, and gives who still waits for it; the next of its key may begin.
    fn finish(&mut self, slot: usize) -> Waiting {
        let entry = self.entries.remove(slot);
        let now = Instant::now();
        for (place, reply) in entry.replies.iter().enumerate() {
            self.deadlines.remove(&(reply.deadline, slot, place));
            if reply.to.is_some() {
                let left = reply.deadline.saturating_duration_since(now);
                let took = reply.patience.saturating_sub(left);
                self.metrics.operation_duration.record(took);
            }
        }
        let count = u64::try_from(entry.replies.len()).unwrap_or(u64::MAX);
        Metrics::sub(&self.metrics.waiting, count);
        let waiting = entry.replies.into_iter().filter_map(|reply| reply.to).collect();
        let Some(key) = entry.key else { return waiting };
        match entry.next {
            Some(next) => {
                let line = self.lines.get_mut(&key).expect("a key with entries has a line");
                line.first = next;
                self.ready.push_back(next);
            }
            None => {
                self.lines.remove(&key);
            }
        }
        waiting
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

async fn until(moment: Option<Instant>) {
    if let Some(moment) = moment {
        tokio::time::sleep_until(moment).await;
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
        let (Task::Operation(Operation::Put(this)), Task::Operation(Operation::Put(newer))) =
            (&self.task, newer)
        else {
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
                    let operation = Operation::Remove { key: key.clone(), version, write };
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
    Step::Write(Box::new(Writing { operation: Operation::Put(put), after: Some(after) }))
}
