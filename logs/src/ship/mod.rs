//! Ships events to a Kinesis stream, and reads them back from it.
//!
//! A thread of its own reads the segments of this process, and those that a process which is gone has left, and puts
//! their events into records. Nothing is shipped that is not on disk; nothing waits for it; what is shipped is kept
//! beside the segments, so that a next life goes on there. While the service is away the segments are the queue: they
//! grow to their bound, then the oldest go, and that is counted and told.

mod batch;
mod config;
mod error;
mod service;
mod shipper;

pub use batch::{BUCKETS, Batcher, Bucket, Limits, Parcel, Progress, TooLarge};
pub use config::Target;
pub use error::ShipError;
pub use service::{ServiceError, Why};
pub use shipper::{Metrics, Shipper};

use std::time::Duration;

use service::Service;

use crate::{
    id::time_of_id,
    read::{Entry, Lines, Skipped},
};

/// How far the clock of whoever wrote an event may be ahead of the stream's, in milliseconds.
const AHEAD_MS: u64 = 60_000;

/// How far a stream is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Of which shard the newest answer is; the first is 1.
    pub shard: usize,
    /// How many there are.
    pub shards: usize,
    /// How far what is read is behind the newest of its shard.
    pub behind: Duration,
}

/// Reads the events of a stream since a time, in milliseconds since 1970, several shards at once, up to what is there
/// when it asks. `take` gets each with its text, those of one shard in their order, and ends it all with an error. An
/// event that is there twice comes twice: by its id it is one. Gives what was no event.
///
/// # Errors
/// When there is no such stream, it can't be reached, or these credentials may not read it; and that of `take`.
pub fn read_stream<E: From<ShipError>>(
    target: &Target,
    since_ms: Option<u64>,
    mut take: impl FnMut(&Entry<'_>, &str, Place) -> Result<(), E>,
) -> Result<Skipped, E> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let mut skipped = Skipped::default();
    runtime.map_err(ShipError::Thread)?.block_on(async {
        let service = Service::open(target.clone()).await;
        let each = |data: &[u8], place: Place| {
            let mut lines = Lines::default();
            lines.push(data);
            while let Some((_, text)) = lines.next_event() {
                let Some(event) = Entry::parse(text) else { continue };
                // Without a time, every one is later than none.
                if time_of_id(&event.id) >= since_ms {
                    take(&event, text, place)?;
                }
            }
            lines.end();
            skipped += lines.skipped();
            Ok::<(), E>(())
        };
        service.read::<E>(since_ms.map(|ms| ms.saturating_sub(AHEAD_MS)), each).await
    })?;
    Ok(skipped)
}
