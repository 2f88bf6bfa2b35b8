//! One instance, one step at a time: the trait that games implement, and the deterministic core that runs it.
//!
//! A game is a type that implements [`Instance`]; read `games/src/arena.rs` for one. A [`Core`] runs one instance of
//! it: it takes [`Input`]s one after the other, calls the game's handlers, and writes what is to be done into
//! [`Effects`]. The same inputs give the same effects, on another server, in a replay, in a test.
//!
//! - *Takes* frames of seats, ticks, seats that come and go, and the time of each as a value.
//! - *Gives* patches, messages, answers, and reports for the master, all of a step together after it.
//! - *Owns* the state of the game, its seats, what each seat has not acknowledged, and its views' versions.
//! - *Never* a clock, a socket, a task, or randomness that is not from the seed; and a handler that panics fails its
//!   own instance and nothing else.

// What the derives write names this crate as games do.
#[cfg(test)]
extern crate self as greenroom;

mod core;
mod cx;
mod effects;
mod event;
mod game;
mod input;
mod instance;
mod kind;
pub mod meta;
mod payload;
mod random;
mod ring;
mod seat;
mod store;
pub mod testing;
#[cfg(test)]
mod tests;
mod timers;
mod view;
mod world;

pub use crate::core::{Core, CoreFault, snapshot_version};
pub use cx::{CallId, Cx, SCORES_MAX, Whose};
pub use effects::{Effect, Effects, LogLevel};
pub use event::{EVENT_BYTES_MAX, EVENTS_STEP_MAX, GameEvent, Told};
pub use input::{Input, Now, Recording};
pub use instance::{Grace, Instance, Options, Reject, Who, Why};
pub use kind::{Kind, Registry, stored_state};
pub use meta::{Meta, MetaField, MetaKeyword};
pub use payload::{Never, PayloadIn, PayloadOut, Raw};
pub use random::Random;
pub use ring::{RING_BYTES_MAX, RING_MESSAGES_MAX, RING_TIME_MAX};
pub use seat::{INBOX_BYTES_MAX, INBOX_MESSAGES_MAX};
pub use store::{
    DOCUMENT_BYTES_MAX, DOCUMENT_KEY_BYTES_MAX, Document, DocumentVersion, SEARCH_BYTES_MAX,
    STORE_BYTES_MAX, STORE_STEP_MAX, STORE_UNDER_WAY_MAX, Search, SearchCursor, Store, StoreAct,
    StoreOrder, StoreRefusal, StoreTicket, Stored,
};
pub use timers::{TIMERS_MAX, TimerId};

pub use greenroom_game_derive::{Meta, MetaKeyword};
pub use greenroom_protocol::search::{Condition, Filter, field};
pub use greenroom_protocol::{Code, InstanceId, Seat, Tick, UserId};
