//! What a game implements.

use std::time::Duration;

use ecow::EcoString;
use greenroom_protocol::{Code, Limits, Refusal, Seat, UserId, decode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::{Cx, Kind, Meta, PayloadIn, PayloadOut, StoreRefusal, StoreTicket, Stored};

/// A kind of instance: a match, a room, a world. Greenroom makes values of it and calls its handlers, one at a time.
///
/// Everything that a handler does to the outside goes through `cx`, and leaves when the step is over. A handler reads
/// no clock and draws no randomness but `cx`'s, so that the same inputs give the same state; [`crate::testing::replay`]
/// checks it. A type that is not needed is `()`; inputs and queries that do not exist are [`crate::Never`].
pub trait Instance: Sized + 'static {
    /// The kind's name and settings, e.g. `Kind::new("duel").tick_rate(20).seats_max(2)`.
    const KIND: Kind<Self>;

    /// What a creator may choose; without it, the default.
    type Params: DeserializeOwned + Default;
    /// What is said of an instance to those who look for one: a struct that derives [`crate::Meta`], or `()`.
    type Meta: Meta;
    /// What a seat sends: messages and calls.
    type In: PayloadIn;
    /// What a seat may ask between the steps.
    type Query: PayloadIn;
    /// What calls and queries are answered with.
    type Reply: PayloadOut;
    /// What the game sends to seats.
    type Out: PayloadOut;
    /// What comes back from [`Cx::after`].
    type Timer: Serialize + DeserializeOwned;
    /// What every seat sees. It borrows: encoding does not copy the world. `()` for nothing.
    type View<'a>: Serialize
    where
        Self: 'a;
    /// What only one seat sees. `()` for nothing.
    type PrivateView<'a>: Serialize
    where
        Self: 'a;

    /// Makes an instance.
    ///
    /// # Errors
    /// A reject reaches the one who asked, as written.
    fn create(params: Self::Params, cx: &mut Cx<Self>) -> Result<Self, Reject>;

    /// Decides whether somebody may take the seat that the directory gave. Default: yes.
    ///
    /// # Errors
    /// A reject reaches the one who asked, as written.
    fn admit(&mut self, who: &Who, options: Options, cx: &mut Cx<Self>) -> Result<(), Reject> {
        _ = (who, options, cx);
        Ok(())
    }
    /// The seat is taken.
    fn joined(&mut self, seat: Seat, cx: &mut Cx<Self>) {
        _ = (seat, cx);
    }
    /// The seat's connection is gone. Gives how long the seat is held; default: 30 seconds.
    fn dropped(&mut self, seat: Seat, cx: &mut Cx<Self>) -> Grace {
        _ = (seat, cx);
        Grace::default()
    }
    /// The seat's holder is back within the grace.
    fn returned(&mut self, seat: Seat, cx: &mut Cx<Self>) {
        _ = (seat, cx);
    }
    /// The seat is free again.
    fn left(&mut self, seat: Seat, why: Why, cx: &mut Cx<Self>) {
        _ = (seat, why, cx);
    }
    /// A message or call of a seat, in the order in which the seat sent them. Calls are answered by [`Cx::reply`].
    fn message(&mut self, from: Seat, input: Self::In, cx: &mut Cx<Self>);
    /// A question, answered at once; changes nothing.
    ///
    /// # Errors
    /// A reject reaches the one who asked, as written.
    fn query(&self, from: Seat, query: Self::Query) -> Result<Self::Reply, Reject> {
        _ = (from, query);
        Err(Reject::new("this kind answers no queries"))
    }
    /// A timer that [`Cx::after`] set is due.
    fn timer(&mut self, timer: Self::Timer, cx: &mut Cx<Self>) {
        _ = (timer, cx);
    }
    /// The store has answered what [`Cx::store`] asked: before the messages of the step. Default: nothing.
    fn stored(
        &mut self,
        what: StoreTicket,
        outcome: Result<Stored, StoreRefusal>,
        cx: &mut Cx<Self>,
    ) {
        _ = (what, outcome, cx);
    }
    /// One step: after the messages and timers that it brings. Not called at tick rate 0.
    fn tick(&mut self, cx: &mut Cx<Self>) {
        _ = cx;
    }
    /// What every seat sees now.
    fn view(&self) -> Self::View<'_>;
    /// What only this seat sees now; nothing by default.
    fn private_view(&self, seat: Seat) -> Option<Self::PrivateView<'_>> {
        _ = seat;
        None
    }
    /// Reads a state that another version of a storable kind wrote (see [`Kind::storable`] and [`Kind::version`]), as
    /// it was then: [`stored_state`](crate::stored_state) reads the type of that version. Default: it can't.
    ///
    /// ```
    /// # use greenroom_game_core::{Reject, stored_state};
    /// # use serde::Deserialize;
    /// # struct Arena { scores: Vec<u64> }
    /// # impl Arena {
    /// fn migrate(version: u32, state: &[u8]) -> Result<Self, Reject> {
    ///     /// As version 1 had it.
    ///     #[derive(Deserialize)]
    ///     struct Before {
    ///         score: u64,
    ///     }
    ///     match version {
    ///         1 => stored_state::<Before>(state).map(|before| Self { scores: vec![before.score] }),
    ///         newer => Err(Reject::new(format!("version {newer} is of a newer game"))),
    ///     }
    /// }
    /// # }
    /// ```
    ///
    /// A snapshot that can't be read is kept in the store under another key, and told as the event
    /// `snapshot_unreadable`; the instance is over.
    ///
    /// # Errors
    /// What is wrong with `state`; the instance is then not restored.
    fn migrate(version: u32, state: &[u8]) -> Result<Self, Reject> {
        _ = state;
        Err(Reject::new(format!("version {version} of this kind can't be read")))
    }
}

/// A "no" of the game, for the one who asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject {
    pub(crate) code: Code,
    pub(crate) message: EcoString,
}

impl Reject {
    /// A reject with its text, which is shown to people.
    pub fn new(message: impl Into<EcoString>) -> Self {
        Self { code: Code::Rejected, message: message.into() }
    }
    /// The same with another code than [`Code::Rejected`]: one of Greenroom's, or of the game's own by
    /// [`Code::Unknown`].
    #[must_use]
    pub fn code(self, code: Code) -> Self {
        Self { code, ..self }
    }
}

impl<T: Into<EcoString>> From<T> for Reject {
    fn from(message: T) -> Self {
        Self::new(message)
    }
}

impl From<Reject> for Refusal {
    fn from(reject: Reject) -> Self {
        Self::new(reject.code, reject.message)
    }
}

/// Who holds a seat, or wants it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Who {
    /// The seat.
    pub seat: Seat,
    /// The user, as the authenticator decided.
    pub user: UserId,
    /// The name to be shown.
    pub name: EcoString,
}

/// What somebody said when joining, as they encoded it.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a>(pub(crate) &'a [u8]);

impl<'a> Options<'a> {
    /// The options as the game's own type; its default if there are none.
    ///
    /// # Errors
    /// When they are not a `T`; with `?` in `admit` that is what the client is told.
    pub fn decode<T: DeserializeOwned + Default>(self) -> Result<T, Reject> {
        if self.0.is_empty() {
            return Ok(T::default());
        }
        decode(self.0, Limits::CLIENT)
            .map_err(|error| Reject::new(format!("the options: {error}")).code(Code::Malformed))
    }
    /// The bytes as they came.
    pub const fn bytes(self) -> &'a [u8] {
        self.0
    }
}

/// How long a seat is held for somebody whose connection is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grace(pub(crate) Duration);

impl Grace {
    /// The seat is free at once.
    pub const NONE: Self = Self(Duration::ZERO);
    /// The seat is held this long.
    pub const fn of(span: Duration) -> Self {
        Self(span)
    }
    /// The seat is held this many seconds.
    pub const fn secs(secs: u64) -> Self {
        Self(Duration::from_secs(secs))
    }
}

impl Default for Grace {
    /// 30 seconds: as long as messages to the seat are kept.
    fn default() -> Self {
        Self::secs(30)
    }
}

/// Why a seat is free again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Why {
    /// Its holder gave it up.
    Left,
    /// The game or an operator removed its holder.
    Kicked,
    /// Its holder was away for longer than the grace.
    GraceOver,
    /// Its holder read too slowly for what must not be lost.
    TooSlow,
    /// Its holder's session is over.
    SessionOver,
}

impl Why {
    #[expect(clippy::wildcard_enum_match_arm, reason = "what else ends a seat ends the session")]
    pub(crate) const fn of(code: &Code) -> Self {
        match code {
            Code::Left => Self::Left,
            Code::Kicked => Self::Kicked,
            Code::GraceOver => Self::GraceOver,
            Code::SlowConsumer | Code::TooLarge => Self::TooSlow,
            _ => Self::SessionOver,
        }
    }
}
