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

use service::Service;

use crate::read::Lines;

/// Reads the events of a stream since a time, in milliseconds since 1970. `take` gets the text of each. An
/// event that is there twice comes twice: by its id it is one.
///
/// # Errors
/// When there is no such stream, it can't be reached, or these credentials may not read it.
pub fn read_stream(
    target: &Target,
    since_ms: Option<u64>,
    mut take: impl FnMut(&str),
) -> Result<(), ShipError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(ShipError::Thread)?.block_on(async {
        let service = Service::open(target.clone()).await;
        let each = |data: &[u8]| {
            let mut lines = Lines::default();
            lines.push(data);
            while let Some((_, text)) = lines.next_event() {
                take(text);
            }
        };
        Ok(service.read(since_ms, each).await?)
    })
}
