//! Greenroom runs instance-based multiplayer games: rooms, matches, dungeons, parties.
//!
//! A game is a type that implements [`Instance`]. An [`App`] makes a program of it that has every role of a cluster:
//!
//! ```no_run
//! use greenroom::{App, Cx, Instance, Kind, Raw, Reject, Who};
//!
//! struct Echo;
//!
//! impl Instance for Echo {
//! #     const KIND: Kind<Self> = Kind::new("echo").seats_max(16);
//! #     type Params = ();
//! #     type Meta = ();
//! #     type In = Raw;
//! #     type Query = greenroom::Never;
//! #     type Reply = Raw;
//! #     type Out = greenroom::Never;
//! #     type Timer = greenroom::Never;
//! #     type View<'a> = ();
//! #     type PrivateView<'a> = ();
//! #     fn create((): (), _: &mut Cx<'_, Self>) -> Result<Self, Reject> { Ok(Self) }
//!     // ...
//! #     fn message(&mut self, _: greenroom::Seat, input: Raw, cx: &mut Cx<'_, Self>) { cx.reply(input); }
//! #     fn view(&self) {}
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     App::new().instance::<Echo>().main()
//! }
//! ```
//!
//! `cargo run --release -- up` then runs all of it on one machine; `docs/first-game.md` goes on from there.
//!
//! *Takes*: kinds of instances, a command line, a configuration.
//! *Gives*: a process that is one role of a cluster, or all of them; the commands of operators.
//! *Owns*: the process: its threads, its signals, its keys on disk, its exit code.
//! *Never*: decides anything about a client, a seat or an instance.

mod app;
mod bots;
mod find;
mod keys;
mod logs;
mod operator;
mod process_log;
mod roles;
mod settings;
mod store;
mod store_watch;
mod telemetry;
mod up;

pub use app::App;
/// The client: for tests of a game, and for programs that play it.
pub use greenroom_client as client;
pub use greenroom_game_core::*;
/// What a field of a document holds, for [`App::index`].
pub use greenroom_protocol::search::FieldType;
/// What a studio can say about where instances go.
pub mod placement {
    pub use greenroom_master::{Candidate, Order, Placement, Weighted};
}
/// What a studio can add to its session servers: authenticators and transports of its own.
pub use greenroom_session as session;
/// The store, for a studio's own programs: they open it with the same indexes, and query what games have stored.
pub use greenroom_storage as storage;
