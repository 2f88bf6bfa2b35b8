//! The service: calls of the AWS SDK, and what its errors mean to who set it up.

use std::{error::Error, fmt, time::Duration};

use aws_config::{BehaviorVersion, Region, retry::RetryConfig};
use aws_sdk_kinesis::{
    Client,
    error::{DisplayErrorContext, ProvideErrorMetadata, SdkError},
    primitives::{Blob, DateTime},
    types::{PutRecordsRequestEntry, Record, ShardIteratorType},
};
use tokio::{sync::mpsc, task::JoinSet, time::timeout};

use super::{Place, ShipError, Target, batch::Parcel};

/// Records that are asked for at once when a stream is read: as many as the service gives.
const READ_RECORDS: i32 = 10_000;
/// Shards that are read at once. Each has one answer, on its way or waiting; with the one that is taken and the next
/// one, that is six of 10 MiB.
const SHARDS_AT_ONCE: usize = 4;
/// How long one answer may take when a stream is read.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a call was not done. Its text says what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceError {
    /// What it means.
    pub why: Why,
    text: String,
}

/// What an error of the service means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// More than a shard takes: it goes through later.
    Throttled,
    /// It can't be reached, or did not answer in time: nobody knows whether it was done.
    Away,
    /// It says no, and will say so again until somebody changes something.
    Refused,
}

impl fmt::Display for ServiceError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.text)
    }
}
impl Error for ServiceError {}

const THROTTLED: &[&str] = &[
    "ProvisionedThroughputExceededException",
    "LimitExceededException",
    "KMSThrottlingException",
    "ThrottlingException",
];

/// A stream, and a client of the service that has it.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    client: Client,
    target: Target,
}

impl Service {
    /// Looks for credentials, and for the region where the target has none, the AWS way: environment, profile, then
    /// what the container or the machine has. Nothing is asked of the service itself.
    pub(crate) async fn open(target: Target) -> Self {
        let mut loader = aws_config::defaults(BehaviorVersion::latest());
        if let Some(region) = &target.region {
            loader = loader.region(Region::new(region.to_string()));
        }
        if let Some(endpoint) = &target.endpoint {
            loader = loader.endpoint_url(endpoint.as_str());
        }
        // What is tried again, and when, is decided where the order of a bucket is known.
        let config = loader.retry_config(RetryConfig::disabled()).load().await;
        Self { client: Client::new(&config), target }
    }

    /// Puts records; of each whether it is in the stream, or why not.
    pub(crate) async fn put(
        &self,
        parcels: &[Parcel],
        within: Duration,
    ) -> Result<Vec<Result<(), ServiceError>>, ServiceError> {
        let mut call = self.client.put_records().stream_name(self.target.stream.as_str());
        for parcel in parcels {
            let entry = PutRecordsRequestEntry::builder()
                .partition_key(parcel.bucket.key())
                .data(Blob::new(&parcel.data[..]))
                .build()
                .expect("a record with its data and key is whole");
            call = call.records(entry);
        }
        let answer = match timeout(within, call.send()).await {
            Ok(answer) => answer.map_err(|error| self.explain(&error, "kinesis:PutRecords"))?,
            Err(_) => return Err(self.silent(within)),
        };
        let results: Vec<_> = answer
            .records()
            .iter()
            .map(|record| match record.error_code() {
                None => Ok(()),
                Some(code) => {
                    let why = match THROTTLED.contains(&code) {
                        true => Why::Throttled,
                        false => Why::Away,
                    };
                    let text =
                        format!("{}: {code}", record.error_message().unwrap_or("a record failed"));
                    Err(ServiceError { why, text })
                }
            })
            .collect();
        if results.len() != parcels.len() {
            let text = format!(
                "{} answered for {} records of {}: all are put again",
                self.target,
                results.len(),
                parcels.len()
            );
            return Err(ServiceError { why: Why::Away, text });
        }
        Ok(results)
    }

    /// Reads the data of all records since a time (milliseconds since 1970), several shards at once, up to what is
    /// there when it asks. `take` gets the data of each, those of one shard in their order, and may say that it is
    /// enough.
    pub(crate) async fn read<E: From<ShipError>>(
        &self,
        since_ms: Option<u64>,
        mut take: impl FnMut(&[u8], Place) -> Result<(), E>,
    ) -> Result<(), E> {
        let shards = self.shards().await.map_err(ShipError::from)?;
        let count = shards.len();
        let mut waiting = shards.into_iter().enumerate();
        let (answers, mut answered) = mpsc::channel(1);
        // All of them end with this: nobody asks for what is taken by nobody.
        let mut reads = JoinSet::new();
        loop {
            while reads.len() < SHARDS_AT_ONCE
                && let Some((at, shard)) = waiting.next()
            {
                let (service, answers) = (self.clone(), answers.clone());
                let place = Place { shard: at + 1, shards: count, behind: Duration::ZERO };
                reads.spawn(
                    async move { service.read_shard(&shard, place, since_ms, answers).await },
                );
            }
            tokio::select! {
                biased;
                Some((records, place)) = answered.recv() => {
                    let records: Vec<Record> = records;
                    for record in &records {
                        take(record.data().as_ref(), place)?;
                    }
                }
                read = reads.join_next() => match read {
                    Some(Ok(read)) => read.map_err(ShipError::from)?,
                    Some(Err(failed)) => std::panic::resume_unwind(failed.into_panic()),
                    // What the last one gave was taken before: it is looked at first.
                    None => return Ok(()),
                },
            }
        }
    }

    /// Reads one shard, an answer at a time: the next is asked for while the one before is taken.
    async fn read_shard(
        &self,
        shard: &str,
        place: Place,
        since_ms: Option<u64>,
        answers: mpsc::Sender<(Vec<Record>, Place)>,
    ) -> Result<(), ServiceError> {
        let mut next = self.start(shard, since_ms).await?;
        while let Some(iterator) = next {
            let call = self.client.get_records().shard_iterator(&iterator).limit(READ_RECORDS);
            let answer = match self.within(call.send(), "kinesis:GetRecords").await {
                Err(error) if error.why == Why::Throttled => {
                    // Five reads a second is what a shard gives to all who read it.
                    tokio::time::sleep(Duration::from_millis(250)).await;
                    next = Some(iterator);
                    continue;
                }
                answer => answer?,
            };
            let behind_ms = u64::try_from(answer.millis_behind_latest().unwrap_or(0));
            let behind = Duration::from_millis(behind_ms.unwrap_or(0));
            // A stream that is written to has no end: what came after the asking is not waited for.
            let is_full = i32::try_from(answer.records().len()) == Ok(READ_RECORDS);
            let is_at_end = behind.is_zero() && !is_full;
            next = answer.next_shard_iterator().filter(|_| !is_at_end).map(str::to_owned);
            if answers.send((answer.records, Place { behind, ..place })).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    /// The shards of the stream, those that are closed too.
    async fn shards(&self) -> Result<Vec<String>, ServiceError> {
        let mut shards = Vec::new();
        let mut page = None;
        loop {
            // The service wants either the stream or the place in its list.
            let call = match &page {
                None => self.client.list_shards().stream_name(self.target.stream.as_str()),
                Some(page) => self.client.list_shards().next_token(page),
            };
            let answer = self.within(call.send(), "kinesis:ListShards").await?;
            shards.extend(answer.shards().iter().map(|shard| shard.shard_id().to_owned()));
            page = answer.next_token().map(str::to_owned);
            if page.is_none() {
                break;
            }
        }
        Ok(shards)
    }

    /// Where to begin with a shard.
    async fn start(
        &self,
        shard: &str,
        since_ms: Option<u64>,
    ) -> Result<Option<String>, ServiceError> {
        let stream = self.target.stream.as_str();
        let call = self.client.get_shard_iterator().stream_name(stream).shard_id(shard);
        let call = match since_ms {
            Some(ms) => call
                .shard_iterator_type(ShardIteratorType::AtTimestamp)
                .timestamp(DateTime::from_millis(i64::try_from(ms).unwrap_or(i64::MAX))),
            None => call.shard_iterator_type(ShardIteratorType::TrimHorizon),
        };
        let answer = self.within(call.send(), "kinesis:GetShardIterator").await?;
        Ok(answer.shard_iterator().map(str::to_owned))
    }

    async fn within<T, E>(
        &self,
        call: impl Future<Output = Result<T, SdkError<E>>>,
        right: &str,
    ) -> Result<T, ServiceError>
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        match timeout(READ_TIMEOUT, call).await {
            Ok(answer) => answer.map_err(|error| self.explain(&error, right)),
            Err(_) => Err(self.silent(READ_TIMEOUT)),
        }
    }

    fn silent(&self, within: Duration) -> ServiceError {
        let text = format!("{} gave no answer within {within:?}", self.target);
        ServiceError { why: Why::Away, text }
    }

    /// What an error means, and what to do about it.
    fn explain<E>(&self, error: &SdkError<E>, right: &str) -> ServiceError
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        let target = &self.target;
        let all = DisplayErrorContext(error).to_string();
        let code =
            error.as_service_error().and_then(ProvideErrorMetadata::code).unwrap_or_default();
        let said = error.as_service_error().and_then(ProvideErrorMetadata::message).unwrap_or(code);
        let (why, text) = match code {
            code if THROTTLED.contains(&code) => {
                (Why::Throttled, format!("{target} takes no more at the moment: {said}"))
            }
            "ResourceNotFoundException" => (
                Why::Refused,
                format!(
                    "{target}: there is no such stream: create it (aws kinesis create-stream --stream-name {}), or \
                     name another stream or region: the settings logs.kinesis.stream and logs.kinesis.region, or \
                     --from",
                    target.stream
                ),
            ),
            "AccessDeniedException" | "AccessDenied" => (
                Why::Refused,
                format!(
                    "{target}: these credentials may not do it: they need the right {right} ({said})"
                ),
            ),
            "UnrecognizedClientException"
            | "InvalidSignatureException"
            | "ExpiredTokenException"
            | "InvalidClientTokenId"
            | "IncompleteSignature"
            | "MissingAuthenticationToken" => {
                (Why::Refused, format!("{target}: the credentials are not valid: {said}"))
            }
            "ValidationException" | "InvalidArgumentException" => (
                Why::Refused,
                format!(
                    "{target} refuses a call of this size or form: {said}; smaller logs.kinesis.call_bytes_max, \
                     call_records_max or record_bytes_max may help"
                ),
            ),
            _ if all.contains("credentials") => (
                Why::Refused,
                format!(
                    "{target}: no AWS credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a \
                     profile, or give the machine or container a role"
                ),
            ),
            _ if all.contains("region")
                && all.contains("endpoint")
                && target.endpoint.is_none() =>
            {
                (
                    Why::Refused,
                    format!(
                        "{target}: in which region? Set logs.kinesis.region or AWS_REGION, or say \
                             ?region=REGION behind the stream"
                    ),
                )
            }
            _ => (Why::Away, format!("{target} can't be reached: {all}")),
        };
        ServiceError { why, text }
    }
}
