//! The Rust SDK: what a player's client, a bot or a test talks to Greenroom with.
//!
//! A [`Client`] is one session. It picks a session server, checks in, and from then on keeps the session alive by
//! itself: on another server if need be, with every reliable message delivered once and in order. A [`Room`] is a
//! seat in an instance. [`bots`] plays with many clients at once and reports what they saw.
//!
//! ```no_run
//! # #[derive(serde::Serialize)] struct Shoot { angle: f32 }
//! # #[derive(serde::Deserialize)] struct Hit { points: u32 }
//! # async fn play() -> Result<(), greenroom_client::ClientError> {
//! use greenroom_client::{Client, Event};
//!
//! let client = Client::builder().servers(["tcp://127.0.0.1:4000"]).guest("Ann").connect().await?;
//! let mut room = client.join_or_create("arena").await?;
//! let hit: Hit = room.call(&Shoot { angle: 0.5 }).await?;
//! while let Some(event) = room.next_event().await {
//!     match event {
//!         Event::Left(why) => println!("out: {why}, with {} points", hit.points),
//!         other => println!("{other:?}"),
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! *Takes*: addresses of session servers, credentials, and what the application wants to say; frames from a server, of
//! which nothing is believed.
//! *Gives*: rooms, replies, events and views; or a [`ClientError`] that says what is wrong and what to do.
//! *Owns*: one connection, the client's end of every numbered stream, and the client's copy of every view.
//! *Never*: loses or doubles a reliable message without saying so, queues without a bound, or panics on what a server
//! sends.

mod address;
pub mod bots;
mod builder;
mod client;
mod dialer;
mod error;
mod inbox;
mod random;
mod room;
mod search;
mod seat;
mod servers;
mod session;
mod shell;
mod status;
mod tls;
mod traces;
mod transport;
mod uplink;
mod view;
mod watch;

pub use builder::Builder;
pub use client::{Answer, Client, Create, Join, JoinOrCreate};
pub use error::{Attempt, ClientError};
pub use greenroom_protocol::{
    Code, InstanceId, Refusal, RequestId, Seat, Seq, SessionId, UserId,
    search::{Condition, Explain, Field, Filter, TextError, Value, field},
    wire::{
        Opaque,
        client_session::{Credentials, Found, Listed, Meta, MetaValue, Ranked, Ranking},
    },
};
pub use greenroom_telemetry as telemetry;
pub use inbox::{Event, Message};
pub use room::{Room, RoomHandle, View};
pub use search::{Rank, Search, StartWatch};
pub use seat::Reply;
pub use status::{Identity, Stats, Status};
pub use watch::{Watch, WatchEvent};
