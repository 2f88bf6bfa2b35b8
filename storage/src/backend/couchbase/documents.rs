//! Reading and writing single documents.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use couchbase::error::Error;
use couchbase::options::kv_options::{GetOptions, InsertOptions, MutateInOptions, ReplaceOptions};
use couchbase::results::kv_results::GetResult;
use couchbase::subdoc::mutate_in_specs::MutateInSpec;
use couchbase::transcoding::{DataType, encode_common_flags};
use ecow::{EcoString, eco_format};
use tokio::time::{Instant, sleep_until};

use super::Inner;
use super::connection::Connection;
use super::crew::Alarm;
use super::outcome::Failure;
use super::seen::Sight;
use crate::backend::{Answer, Condition, Decision, Put, decide};
use crate::envelope::{BadEnvelope, Envelope};
use crate::{Body, Document, Expiry, Key, StorageError, Version, WriteId};

/// How long the marker of a removal stays: as long as a request that was given up may wander about, and much longer.
const MARKER: Duration = Duration::from_secs(600);

/// How long to wait before an attempt that follows one which failed in passing: longer each time.
const PAUSE: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(200);

/// A document as it was read.
pub(super) struct Found {
    sight: Sight,
    body: Body,
    expires_ms: Option<u64>,
}

impl Found {
    pub(super) fn document(self) -> Option<Document> {
        (!self.sight.envelope.is_gone).then_some(Document {
            body: self.body,
            version: Version(self.sight.cas),
            owner: self.sight.envelope.owner,
            expires_ms: self.expires_ms,
        })
    }
}

/// What a mutation is to do with what is there.
enum Step {
    /// It is done already.
    Done(Version),
    /// Write these bytes.
    Write { bytes: Bytes, envelope: Envelope, expiry: Expiry },
    /// Write only the id and the time.
    Touch { envelope: Envelope, expiry: Expiry },
}

impl Inner {
    /// One call of the SDK, which has no time-outs: under ours, and under the deadline.
    pub(super) async fn call<T>(
        &self,
        connection: &Connection,
        deadline: Instant,
        alarm: &mut Alarm,
        request: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Failure> {
        let own = Instant::now() + self.keeper.config().request_timeout;
        match alarm.until(own.min(deadline), request).await {
            Some(Ok(answer)) => Ok(answer),
            Some(Err(error)) => {
                let failure = Failure::of(&error);
                if matches!(failure, Failure::Stale(_)) {
                    self.keeper.ask_anew(connection);
                }
                Err(failure)
            }
            None => {
                if own <= deadline {
                    self.keeper.note_silence(connection);
                }
                Err(Failure::silence())
            }
        }
    }

    /// What is stored under the key, markers and tombstones too.
    async fn read(
        &self,
        key: &Key,
        deadline: Instant,
        alarm: &mut Alarm,
    ) -> Result<Option<Found>, Failure> {
        // With the time: that is a look at parts of the document, which costs more than to fetch it.
        let got = self.fetch(key, GetOptions::new().expiry(true), deadline, alarm).await?;
        let Some(got) = got else { return Ok(None) };
        let (raw, _) = got.content_as_raw();
        let (envelope, body) = Envelope::unwrap(&Bytes::copy_from_slice(raw))
            .map_err(|error| unreadable(key, &error))?;
        // Without an expiry, the SDK shows the year 1970.
        let seconds = got.expiry_time().and_then(|time| u64::try_from(time.timestamp()).ok());
        let expires_ms = seconds.filter(|seconds| *seconds > 0).map(|seconds| seconds * 1_000);
        Ok(Some(Found { sight: Sight { cas: got.cas(), envelope }, body, expires_ms }))
    }

    /// What a write needs to know of what is stored under the key.
    async fn look(
        &self,
        key: &Key,
        deadline: Instant,
        alarm: &mut Alarm,
    ) -> Result<Option<Sight>, Failure> {
        let Some(got) = self.fetch(key, GetOptions::new(), deadline, alarm).await? else {
            return Ok(None);
        };
        let (raw, _) = got.content_as_raw();
        let envelope = Envelope::read(raw).map_err(|error| unreadable(key, &error))?;
        Ok(Some(Sight { cas: got.cas(), envelope }))
    }

    async fn fetch(
        &self,
        key: &Key,
        options: GetOptions,
        deadline: Instant,
        alarm: &mut Alarm,
    ) -> Result<Option<GetResult>, Failure> {
        let connection = self.keeper.current();
        let collection = connection.collection(key.collection());
        match self.call(&connection, deadline, alarm, collection.get(key.id(), options)).await {
            Ok(got) => Ok(Some(got)),
            Err(Failure::Missing) => Ok(None),
            Err(other) => Err(other),
        }
    }

    /// Reads until there is an answer, or the deadline is over.
    pub(super) async fn find(
        &self,
        key: &Key,
        deadline: Instant,
        alarm: &mut Alarm,
    ) -> Result<Option<Found>, StorageError> {
        let mut pause = Pause::default();
        loop {
            match self.read(key, deadline, alarm).await {
                Ok(found) => return Ok(found),
                Err(Failure::Final(why)) => return Err(StorageError::Backend(why)),
                Err(failure) => {
                    if !pause.wait(deadline).await {
                        return Err(StorageError::Unavailable(words(&failure)));
                    }
                }
            }
        }
    }

    pub(super) async fn get(
        &self,
        key: &Key,
        deadline: Instant,
        alarm: &mut Alarm,
    ) -> Result<Answer, StorageError> {
        let found = self.find(key, deadline, alarm).await?;
        self.seen.put(key, found.as_ref().map(|found| found.sight));
        Ok(Answer::Document(found.and_then(Found::document)))
    }

    pub(super) async fn put(
        &self,
        put: &Put,
        deadline: Instant,
        alarm: &mut Alarm,
    ) -> Result<Answer, StorageError> {
        let step = |sight: Option<&Sight>| {
            let owner = match decide(put, sight.map(Sight::stored).as_ref(), 0)? {
                Decision::Done(version) => return Ok(Step::Done(version)),
                Decision::Write { owner, .. } => owner,
            };
            let envelope = Envelope { write: put.write, owner, is_gone: put.body.is_none() };
            let bytes = envelope.wrap(put.body.as_ref());
            let max = self.keeper.config().document_bytes_max;
            // What is ours beside the body counts in the store's own limit.
            if bytes.len() > max {
                return Err(StorageError::TooLarge {
                    key: put.key.clone(),
                    bytes: bytes.len(),
                    max,
                });
            }
            let was_there = sight.is_some_and(|sight| !sight.envelope.is_gone);
            let expiry = match put.expiry {
                // A marker's own time is not the document's.
                Expiry::Keep if !was_there => Expiry::Never,
                Expiry::Never | Expiry::After(_) | Expiry::Keep => put.expiry,
            };
            Ok(Step::Write { bytes, envelope, expiry })
        };
        let is_new = matches!(put.condition, Condition::Absent);
        let done = self.mutate(&put.key, put.write, is_new, deadline, alarm, step).await;
        done.map(Answer::Stored)
    }

    pub(super) async fn remove(
        &self,
        key: &Key,
        version: Option<Version>,
        write: WriteId,
        deadline: Instant,
        alarm: &mut Alarm,
    ) -> Result<Answer, StorageError> {
        let step = |sight: Option<&Sight>| {
            let there = sight.filter(|sight| !sight.envelope.is_gone);
            let there = there.ok_or_else(|| StorageError::Missing { key: key.clone() })?;
            if version.is_some_and(|version| version.0 != there.cas) {
                return Err(StorageError::VersionMismatch { key: key.clone() });
            }
            let envelope = Envelope { write, owner: None, is_gone: true };
            Ok(Step::Write { bytes: envelope.wrap(None), envelope, expiry: Expiry::After(MARKER) })
        };
        self.mutate(key, write, false, deadline, alarm, step).await.map(|_| Answer::Removed)
    }

    pub(super) async fn touch(
        &self,
        key: &Key,
        expiry: Expiry,
        write: WriteId,
        deadline: Instant,
        alarm: &mut Alarm,
    ) -> Result<Answer, StorageError> {
        let step = |sight: Option<&Sight>| {
            let there = sight.filter(|sight| !sight.envelope.is_gone);
            let there = there.ok_or_else(|| StorageError::Missing { key: key.clone() })?;
            Ok(Step::Touch { envelope: Envelope { write, ..there.envelope }, expiry })
        };
        self.mutate(key, write, false, deadline, alarm, step).await.map(|_| Answer::Touched)
    }

    /// Looks, decides and writes over what was seen, until that is done, refused, or the deadline is over.
    async fn mutate(
        &self,
        key: &Key,
        write: WriteId,
        is_new: bool,
        deadline: Instant,
        alarm: &mut Alarm,
        step: impl Fn(Option<&Sight>) -> Result<Step, StorageError>,
    ) -> Result<Version, StorageError> {
        let mut pause = Pause::default();
        let mut maybe: Option<EcoString> = None;
        let mut why;
        // The first attempt goes by what was seen before; a document that is to be new, as if there were none.
        let remembered = self.seen.get(key);
        let mut guess = (remembered.is_some() || is_new).then_some(remembered);
        loop {
            let (sight, is_guess) = match guess.take() {
                Some(sight) => (sight, true),
                None => match self.look(key, deadline, alarm).await {
                    Ok(sight) => (sight, false),
                    Err(Failure::Final(words)) => {
                        return Err(self.gave_up(key, write, maybe, words, true));
                    }
                    Err(failure) => {
                        why = words(&failure);
                        if pause.wait(deadline).await {
                            continue;
                        }
                        return Err(self.gave_up(key, write, maybe, why, false));
                    }
                },
            };
            if let Some(sight) = sight.filter(|sight| sight.envelope.write == write) {
                // An attempt of which nobody knew: it has happened.
                self.seen.put(key, Some(sight));
                return Ok(Version(sight.cas));
            }
            let next = match step(sight.as_ref()) {
                // Nothing is refused by a guess.
                Err(_) | Ok(Step::Done(_)) if is_guess => continue,
                Ok(Step::Done(version)) => return Ok(version),
                Err(refusal) => {
                    self.seen.put(key, sight);
                    return Err(match maybe {
                        // It may have happened, and somebody may have written over it since.
                        Some(why) => StorageError::Undecided { key: key.clone(), write, why },
                        None => refusal,
                    });
                }
                Ok(next) => next,
            };
            match self.attempt(key, sight.map(|sight| sight.cas), &next, deadline, alarm).await {
                Ok(cas) => {
                    let (Step::Write { envelope, .. } | Step::Touch { envelope, .. }) = next else {
                        unreachable!("what is done is not attempted")
                    };
                    self.seen.put(key, Some(Sight { cas, envelope }));
                    return Ok(Version(cas));
                }
                // Somebody else was faster, or the guess was wrong: look again.
                Err(Failure::Missing | Failure::Exists | Failure::Mismatch) => {
                    self.seen.put(key, None);
                    why = "others write the same document".into();
                    if Instant::now() < deadline {
                        continue;
                    }
                }
                Err(Failure::Final(words)) => {
                    return Err(self.gave_up(key, write, maybe, words, true));
                }
                Err(Failure::Passing(words)) => {
                    why = words;
                    guess = Some(sight);
                }
                Err(Failure::Ambiguous(words) | Failure::Stale(words)) => {
                    self.seen.put(key, None);
                    why = words.clone();
                    maybe = Some(words);
                }
            }
            if !pause.wait(deadline).await {
                return Err(self.gave_up(key, write, maybe, why, false));
            }
        }
    }

    /// What is answered when no attempt is left.
    fn gave_up(
        &self,
        key: &Key,
        write: WriteId,
        maybe: Option<EcoString>,
        why: EcoString,
        is_final: bool,
    ) -> StorageError {
        match maybe {
            Some(why) => StorageError::Undecided { key: key.clone(), write, why },
            None if is_final => StorageError::Backend(why),
            None => StorageError::Unavailable(why),
        }
    }

    /// One compare-and-set. Gives the new version.
    async fn attempt(
        &self,
        key: &Key,
        cas: Option<u64>,
        step: &Step,
        deadline: Instant,
        alarm: &mut Alarm,
    ) -> Result<u64, Failure> {
        let connection = self.keeper.current();
        let collection = connection.collection(key.collection());
        let durability = self.keeper.config().durability.level(key.collection());
        let flags = encode_common_flags(DataType::Json);
        let result = match (step, cas) {
            (Step::Write { bytes, expiry, .. }, None) => {
                let mut options = InsertOptions::new();
                options.durability_level = durability;
                options.expiry = span(*expiry);
                let insert = collection.insert_raw(key.id(), bytes, flags, options);
                self.call(&connection, deadline, alarm, insert).await
            }
            (Step::Write { bytes, expiry, .. }, Some(cas)) => {
                let mut options = ReplaceOptions::new().cas(cas);
                options.durability_level = durability;
                options.expiry = span(*expiry);
                options.preserve_expiry = (*expiry == Expiry::Keep).then_some(true);
                let replace = collection.replace_raw(key.id(), bytes, flags, options);
                self.call(&connection, deadline, alarm, replace).await
            }
            (Step::Touch { envelope, expiry }, Some(cas)) => match span(*expiry) {
                // A change of parts: the document itself does not travel.
                Some(expiry) => {
                    let write = MutateInSpec::upsert("_write", envelope.write.to_string(), None)
                        .map_err(|error| Failure::Final(eco_format!("{error}")))?;
                    let mut options = MutateInOptions::new().cas(cas).expiry(expiry);
                    options.durability_level = durability;
                    let parts = [write];
                    let change = collection.mutate_in(key.id(), &parts, options);
                    return Ok(self.call(&connection, deadline, alarm, change).await?.cas());
                }
                // Clusters differ in what a change of parts without a time does to the time: so all of it is written.
                None => {
                    let found = self.read(key, deadline, alarm).await?.ok_or(Failure::Missing)?;
                    if found.sight.cas != cas {
                        return Err(Failure::Mismatch);
                    }
                    let mut options = ReplaceOptions::new().cas(cas);
                    options.durability_level = durability;
                    let bytes = envelope.wrap(Some(&found.body));
                    let replace = collection.replace_raw(key.id(), &bytes, flags, options);
                    self.call(&connection, deadline, alarm, replace).await
                }
            },
            (Step::Touch { .. }, None) => return Err(Failure::Missing),
            (Step::Done(_), _) => unreachable!("what is done is not attempted"),
        };
        result.map(|done| done.cas())
    }
}

fn unreadable(key: &Key, error: &BadEnvelope) -> Failure {
    Failure::Final(eco_format!("{key} is not readable: {error}"))
}

/// The SDK's expiry: whole seconds from now.
fn span(expiry: Expiry) -> Option<Duration> {
    expiry.seconds().map(Duration::from_secs)
}

pub(super) fn words(failure: &Failure) -> EcoString {
    match failure {
        Failure::Missing => "the document is not there".into(),
        Failure::Exists | Failure::Mismatch => "somebody else has written".into(),
        Failure::Passing(words)
        | Failure::Final(words)
        | Failure::Ambiguous(words)
        | Failure::Stale(words) => words.clone(),
    }
}

/// Waits between attempts.
#[derive(Default)]
pub(super) struct Pause {
    times: u32,
}

impl Pause {
    /// Waits; says no when the deadline is over first.
    pub(super) async fn wait(&mut self, deadline: Instant) -> bool {
        let span = PAUSE.saturating_mul(1 << self.times.min(10)).min(PAUSE_MAX);
        self.times += 1;
        let until = Instant::now() + span;
        if until >= deadline {
            return false;
        }
        sleep_until(until).await;
        true
    }
}
