//! The storage actor: what is to stay goes through here, in order per key, spread over tasks.
//!
//! *Takes*: operations on documents, from masters and game servers.
//! *Gives*: an answer once a write is durable; typed queries.
//! *Owns*: the connection to the store, and the order of writes to a key.
//! *Never*: knows what a document means; stalls a tick; says that something is stored before it is.

mod aside;
pub mod backend;
mod clock;
mod config;
#[cfg(feature = "contract")]
pub mod contract;
mod document;
pub mod envelope;
mod error;
mod handle;
mod inbox;
mod key;
mod lane;
mod metrics;
mod open;
mod owner;
pub mod query;
mod request;
mod spool;
mod steps;

pub use aside::{Cause, SetAside};
pub use clock::{Clock, Hand};
pub use config::StorageConfig;
pub use document::{BadBody, Blob, Body, Document, Expiry, RESERVED, Version, WriteId};
pub use error::{OpenError, StorageError};
pub use handle::Storage;
pub use key::{BadKey, Collection, Key};
pub use metrics::Metrics;
pub use open::{check, init, open, open_as_it_is};
pub use owner::{Owner, Verdict};
pub use query::{Cursor, Index, Page, Query, RawPage, RawQuery, Schema};
pub use request::{Change, Count, Get, Kept, Merge, Remove, Request, Ticket, Touch, Update, Write};

use handle::WriteIds;
