//! What a handler can do to the outside.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use ecow::EcoString;
use greenroom_protocol::wire::client_instance::EVENT;
use greenroom_protocol::{Code, InstanceId, Refusal, Seat, Seq, Tick};
use serde::{Deserialize, Serialize};

use crate::instance::{Instance, Reject, Who};
use crate::kind::Spec;
use crate::payload::encode;
use crate::random::Random;
use crate::timers::TimerId;
use crate::world::{Handled, Score, World};
use crate::{GameEvent, LogLevel, meta};

/// Scores that one step may put on rank boards, or take off; of one user on one board, the last counts.
pub const SCORES_MAX: usize = 4_096;
/// Bytes of a rank board's name.
const BOARD_BYTES_MAX: usize = 64;

/// Who is on a rank board: a seat's holder, or somebody whom the game remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose<'a> {
    /// Who holds this seat now.
    Seat(Seat),
    /// This user, with the name that is shown.
    User(&'a Who),
}

impl From<Seat> for Whose<'_> {
    fn from(seat: Seat) -> Self {
        Self::Seat(seat)
    }
}

impl<'a> From<&'a Who> for Whose<'a> {
    fn from(who: &'a Who) -> Self {
        Self::User(who)
    }
}

/// A call that waits for its answer; a game may keep it in its state. It can't be copied: a call has one answer.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallId(Call);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Call {
    pub(crate) seat: Seat,
    /// Of the seat's holder, so that whoever sits there later is not answered.
    pub(crate) life: u32,
    pub(crate) number: Seq,
}

impl CallId {
    /// Whose call it is.
    pub const fn seat(&self) -> Seat {
        self.0.seat
    }
}

/// A handler's way to the outside. What it does here leaves when the step is over, and not at all if it panics.
pub struct Cx<'a, K> {
    world: &'a mut World,
    kind: PhantomData<fn() -> K>,
}

impl<K> fmt::Debug for Cx<'_, K> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Cx of {} at tick {}", self.world.instance, self.world.tick)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "a game writes `cx.send(seat, Out::Hit { .. })`")]
impl<'a, K: Instance> Cx<'a, K> {
    pub(crate) const fn new(world: &'a mut World) -> Self {
        Self { world, kind: PhantomData }
    }
    const fn spec() -> Spec {
        K::KIND.spec
    }
    pub(crate) const fn world(&mut self) -> &mut World {
        self.world
    }

    /// The instance that this is: the same when it is restored or moved, and of no other one ever.
    pub fn instance(&self) -> InstanceId {
        self.world.instance
    }
    /// The step that is being made; the first is 1.
    pub fn tick(&self) -> Tick {
        self.world.tick
    }
    /// Time since the instance was made: by the tick, or at tick rate 0 that of the message.
    pub fn now(&self) -> Duration {
        Duration::from_millis(self.world.time)
    }
    /// Wall clock of the input that is being handled, since 1970. It is part of the input: a replay sees the same.
    pub fn wall(&self) -> Duration {
        self.world.wall
    }
    /// The instance's random numbers.
    pub fn random(&mut self) -> &mut Random {
        &mut self.world.random
    }

    /// Who holds a seat, if somebody does.
    pub fn who(&self, seat: Seat) -> Option<&Who> {
        self.world.seats.get(seat).map(|seated| &seated.who)
    }
    /// The seats that are not free, by number; those that are away too.
    pub fn seats(&self) -> impl Iterator<Item = &Who> {
        self.world.seats.iter().filter(|seated| seated.ending.is_none()).map(|seated| &seated.who)
    }
    /// Whether the seat's connection is gone.
    pub fn is_away(&self, seat: Seat) -> bool {
        self.world.seats.get(seat).is_some_and(|seated| !seated.is_attached())
    }

    /// Sends to one seat: once, in order, and kept for it while it is away.
    pub fn send(&mut self, to: Seat, out: K::Out) {
        if self.world.encode("a message", &out) {
            self.world.push(to, EVENT, &[]);
        }
    }
    /// Sends to every seat.
    pub fn broadcast(&mut self, out: K::Out) {
        self.send_to_each(out, |_| true);
    }
    /// Sends to every seat but one.
    pub fn broadcast_except(&mut self, except: Seat, out: K::Out) {
        self.send_to_each(out, |seat| seat != except);
    }
    fn send_to_each(&mut self, out: K::Out, to: impl Fn(Seat) -> bool) {
        if self.world.seats.held() > 0 && self.world.encode("a message", &out) {
            for seat in (0..self.world.seats.end()).map(Seat).filter(|seat| to(*seat)) {
                self.world.push(seat, EVENT, &[]);
            }
        }
    }

    /// Answers the call that is being handled. A message that is no call has no answer: then this does nothing.
    pub fn reply(&mut self, reply: K::Reply) {
        if let Some(handled) = self.world.handled.filter(|handled| handled.is_call) {
            self.answer(handled.call, &reply);
        }
    }
    /// Refuses the call or message that is being handled.
    pub fn refuse(&mut self, reject: impl Into<Reject>) {
        if let Some(handled) = self.world.handled {
            self.world.refuse(handled.call, &Refusal::from(reject.into()));
        }
    }
    /// Keeps the call that is being handled, to be answered by [`Self::reply_to`] in a later step. A call that is
    /// neither answered nor kept is refused.
    pub fn keep_call(&mut self) -> Option<CallId> {
        let unsettled = |handled: &&mut Handled| handled.is_call && !handled.kept;
        let handled = self.world.handled.as_mut().filter(unsettled)?;
        handled.kept = true;
        Some(CallId(handled.call))
    }
    /// Answers a call that was kept. Its holder may be gone: then this does nothing.
    pub fn reply_to(&mut self, call: CallId, reply: K::Reply) {
        self.answer(call.0, &reply);
    }
    fn answer(&mut self, call: Call, reply: &K::Reply) {
        if self.world.encode("a reply", reply) {
            self.world.answer(call);
        }
    }
    /// Refuses a call that was kept.
    pub fn refuse_call(&mut self, call: CallId, reject: impl Into<Reject>) {
        self.world.refuse(call.0, &Refusal::from(reject.into()));
    }

    /// Calls [`Instance::timer`] when this span is over: at a fixed tick rate, in the first tick that is not before.
    ///
    /// # Panics
    /// If there are [`crate::TIMERS_MAX`] timers.
    pub fn after(&mut self, span: Duration, timer: K::Timer) -> TimerId {
        let millis = u64::try_from(span.as_millis()).unwrap_or(u64::MAX / 1024);
        let rate = u64::from(Self::spec().tick_rate);
        let units = if rate == 0 {
            millis
        } else {
            millis.min(u64::MAX / 1024).saturating_mul(rate).div_ceil(1000)
        };
        self.set_timer(units, &timer)
    }
    /// Calls [`Instance::timer`] in the n-th tick from this one on.
    ///
    /// # Panics
    /// At tick rate 0, where ticks are no time, and if there are [`crate::TIMERS_MAX`] timers.
    pub fn after_ticks(&mut self, ticks: u32, timer: K::Timer) -> TimerId {
        assert!(Self::spec().tick_rate > 0, "`after_ticks` at tick rate 0: use `after`");
        self.set_timer(u64::from(ticks), &timer)
    }
    fn set_timer(&mut self, units: u64, timer: &K::Timer) -> TimerId {
        let due = self.world.timer_now(&Self::spec()).saturating_add(units.max(1));
        let mut bytes = Vec::new();
        if let Err(reason) = encode(timer, &mut bytes) {
            self.world.unencodable.get_or_insert(("a timer", reason));
        }
        self.world.timers.set(due, bytes)
    }
    /// Takes a timer back; false if it was due before.
    pub fn cancel(&mut self, timer: TimerId) -> bool {
        self.world.timers.cancel(timer)
    }

    /// Says something else of the instance to those who look for one. A number beyond [`meta::NUMBER_MAX`] is not
    /// said, and nothing of more than [`meta::META_BYTES_MAX`] bytes: the instance then fails, by the field's name.
    pub fn set_meta(&mut self, meta: K::Meta) {
        match meta::said(&meta) {
            Ok(meta) if meta == self.world.meta => {}
            Ok(meta) => {
                self.world.meta = meta;
                self.world.meta_changed = true;
            }
            Err(reason) => {
                self.world.unencodable.get_or_insert(("the metadata", reason));
            }
        }
    }
    /// Whether the directory gives free seats away. It does until it is told otherwise.
    pub fn set_open(&mut self, open: bool) {
        self.world.meta_changed |= self.world.open != open;
        self.world.open = open;
    }
    /// Whether searches leave the instance out; who knows its id or its unique key comes in all the same. It begins as
    /// its creator wished.
    pub fn set_private(&mut self, private: bool) {
        self.world.meta_changed |= self.world.private != private;
        self.world.private = private;
    }
    /// Puts somebody on a rank board with this score, in place of the one before: `cx.score("wins", seat, 12)`. Of a
    /// seat that is free, nothing. A score beyond [`meta::NUMBER_MAX`] is not said: the instance then fails.
    ///
    /// # Panics
    /// If the board's name is empty, longer than 64 bytes or has control characters, or if one step has more than
    /// [`SCORES_MAX`] scores.
    pub fn score<'w>(&mut self, board: &str, whose: impl Into<Whose<'w>>, score: i64) {
        match meta::check_number(score) {
            Ok(()) => self.set_score(board, whose.into(), Some(score)),
            Err(reason) => {
                let reason = format!("{score} {reason}");
                self.world.unencodable.get_or_insert(("a score", reason));
            }
        }
    }
    /// Takes somebody off a rank board.
    ///
    /// # Panics
    /// As [`Self::score`].
    pub fn unscore<'w>(&mut self, board: &str, whose: impl Into<Whose<'w>>) {
        self.set_score(board, whose.into(), None);
    }
    fn set_score(&mut self, board: &str, whose: Whose<'_>, score: Option<i64>) {
        let is_name = (1..=BOARD_BYTES_MAX).contains(&board.len());
        assert!(
            is_name && !board.chars().any(char::is_control),
            "a rank board's name has 1 to {BOARD_BYTES_MAX} bytes and no control characters"
        );
        let who = match whose {
            Whose::Seat(seat) => self.who(seat),
            Whose::User(who) => Some(who),
        };
        let Some(Who { user, name, .. }) = who else { return };
        let (key, name) = ((board.into(), user.clone()), name.clone());
        self.world.scores.insert(key, Score { name, score });
        let scores = self.world.scores.len();
        assert!(scores <= SCORES_MAX, "one step has at most {SCORES_MAX} scores");
    }
    /// Frees a seat; its holder is told this text.
    pub fn kick(&mut self, seat: Seat, text: impl Into<EcoString>) {
        self.world.end(seat, Refusal::new(Code::Kicked, text));
    }
    /// Closes the instance after this step; everybody is told this text.
    pub fn close(&mut self, text: impl Into<EcoString>) {
        self.world.closing.get_or_insert(text.into());
    }
    /// Tells the event log, which analysts ask, of something that happened: kind `KIND.E::KIND`. It waits for nothing,
    /// leaves with the step, and takes [`crate::EVENTS_STEP_MAX`] of a step. Texts in it are cut to 256 bytes. A game
    /// that goes on from an older state tells again what happens again.
    pub fn event<E: GameEvent>(&mut self, event: &E) {
        self.world.tell(None, event);
    }
    /// As [`Self::event`], about a user: a seat's holder, or somebody whom the game remembers.
    pub fn event_of<'w, E: GameEvent>(&mut self, whose: impl Into<Whose<'w>>, event: &E) {
        let user = match whose.into() {
            Whose::Seat(seat) => self.who(seat).map(|who| who.user.clone()),
            Whose::User(who) => Some(who.user.clone()),
        };
        self.world.tell(user, event);
    }
    /// Writes a line to the log.
    pub fn log(&mut self, level: LogLevel, text: impl Into<EcoString>) {
        self.world.log(level, text.into());
    }
}
