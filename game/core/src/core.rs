//! One running instance, whatever its kind: inputs in, effects out.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use ecow::{EcoString, eco_format};
use greenroom_protocol::wire::client_instance::{
    ACK, CALL, DOWN_ACK, MESSAGE, NEED_SNAPSHOT, NeedSnapshot, QUERY, QUERY_REFUSED, QUERY_REPLY,
    SEND_AGAIN,
};
use greenroom_protocol::wire::master_game::{
    Closed, CreateInstance, HeldInstance, HeldSeat, MetaChanged, Running, Scored, SeatChanged,
    SeatState,
};
use greenroom_protocol::{
    Code, Generation, Incarnation, InstanceId, Key, KindName, Limits, Moment, Refusal, Seat, Seq,
    SessionId, Tick, UserId, VIEW_BYTES_MAX, ViewId, encode_into,
};
use serde::{Deserialize, Serialize};

use crate::cx::Call;
use crate::effects::{Effect, Effects, LogLevel};
use crate::game::{Game, Typed, params, restore};
use crate::input::{Input, Now};
use crate::instance::{Instance, Who, Why};
use crate::kind::Spec;
use crate::ring::{Message, RING_TIME_MAX};
use crate::seat::{Away, Seated, Wants};
use crate::view::TooLong;
use crate::world::{Handled, Score, World};
use crate::{Cx, StoreRefusal, StoreTicket, Stored};

/// A seat that owes this many acknowledgements' worth of messages is told at once, not with the next patch.
const OWED_MAX: u32 = 16;
/// At tick rate 0: how long an acknowledgement may wait for something to ride on, and how often one seat gets whole
/// views, in milliseconds.
const PAUSE_MS: u64 = 50;
/// What a client may say about why it needs a view, in bytes of our log.
const REASON_BYTES_MAX: usize = 200;

/// One running instance.
pub struct Core {
    spec: Spec,
    /// Nothing once it is closed.
    game: Option<Box<dyn Game>>,
    world: World,
    /// Seats that end with the input, after `left` was called.
    leaving: Vec<(Seat, Box<Seated>, Refusal)>,
}

/// What broke in an instance; the text names the kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CoreFault {
    /// A handler panicked.
    #[error("kind {kind:?} panicked: {text}")]
    Panicked {
        /// Whose handler.
        kind: EcoString,
        /// The panic's text.
        text: EcoString,
    },
    /// A view is too long.
    #[error("a view of kind {kind:?} has {bytes} bytes; {VIEW_BYTES_MAX} are the most")]
    ViewTooLong {
        /// Whose view.
        kind: EcoString,
        /// How long it is.
        bytes: usize,
    },
    /// A type of the game's own does not encode.
    #[error("{what} of kind {kind:?} does not encode: {reason}")]
    Unencodable {
        /// Whose type.
        kind: EcoString,
        /// Which.
        what: &'static str,
        /// Its own text.
        reason: String,
    },
    /// A snapshot can't be read.
    #[error("restoring an instance of kind {kind:?}: {reason}")]
    Restore {
        /// Which kind.
        kind: EcoString,
        /// What is wrong.
        reason: EcoString,
    },
}

/// A whole instance, as it is stored.
#[derive(Serialize, Deserialize)]
struct Snapshot<W> {
    version: u32,
    #[serde(with = "serde_bytes")]
    state: Vec<u8>,
    world: W,
}

/// Which version of its kind wrote a snapshot, if as much of it can be read.
pub fn snapshot_version(snapshot: &[u8]) -> Option<u32> {
    #[derive(Deserialize)]
    struct Written {
        version: u32,
    }
    rmp_serde::from_slice(snapshot).ok().map(|Written { version }| version)
}

impl fmt::Debug for Core {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let World { instance, tick, seats, .. } = &self.world;
        let (name, held, away) = (self.spec.name, seats.held(), seats.away());
        write!(out, "{name} {instance} at tick {tick} with {held} seats, {away} of them away")
    }
}

impl Core {
    pub(crate) fn create<K: Instance>(order: &CreateInstance, start: Now) -> Result<Self, Refusal> {
        let spec = K::KIND.spec;
        let params = params::<K>(&order.params)?;
        let mut world = World::new(order, start);
        let made = catch_unwind(AssertUnwindSafe(|| K::create(params, &mut Cx::new(&mut world))));
        let fault = |fault| Refusal::new(Code::InstanceFailed, eco_format!("{fault}"));
        let game = made.map_err(|panic| fault(panicked(&spec, &*panic)))??;
        if let Some((what, reason)) = world.unencodable.take() {
            return Err(fault(CoreFault::Unencodable { kind: spec.name.into(), what, reason }));
        }
        // What `create` said of the instance goes with the word that it runs.
        world.meta_changed = false;
        Ok(Self { spec, game: Some(Box::new(Typed(game))), world, leaving: Vec::new() })
    }
    pub(crate) fn restore<K: Instance>(snapshot: &[u8]) -> Result<Self, CoreFault> {
        let spec = K::KIND.spec;
        let fault = |reason| CoreFault::Restore { kind: spec.name.into(), reason };
        let stored: Snapshot<World> =
            rmp_serde::from_slice(snapshot).map_err(|error| fault(eco_format!("{error}")))?;
        let restored =
            catch_unwind(AssertUnwindSafe(|| restore::<K>(stored.version, &stored.state)));
        let game = restored
            .map_err(|panic| panicked(&spec, &*panic))?
            .map_err(|reason| fault(reason.into()))?;
        let game: Option<Box<dyn Game>> = Some(Box::new(Typed(game)));
        Ok(Self { spec, game, world: stored.world, leaving: Vec::new() })
    }

    /// Tells the instance something, and appends what is to be done. A step that fails has no effects but the end of
    /// the instance. After its end, it is told nothing more.
    pub fn handle(&mut self, now: Now, input: Input<'_>, effects: &mut Effects) {
        if self.game.is_none() {
            return;
        }
        let mark = effects.mark();
        let wanted = if let Input::Attach { seat, generation, .. } = &input {
            Some((*seat, *generation))
        } else {
            None
        };
        let done = catch_unwind(AssertUnwindSafe(|| self.apply(now, input, effects)));
        let fault = match done {
            Ok(Ok(())) => return,
            Ok(Err(fault)) => fault,
            Err(panic) => panicked(&self.spec, &*panic),
        };
        effects.take_back(mark);
        if let Some((seat, generation)) = wanted {
            effects.items.push(Effect::AttachRefused { seat, generation, refusal: failed() });
        }
        self.fail(&fault, effects);
    }

    fn apply(
        &mut self,
        now: Now,
        input: Input<'_>,
        effects: &mut Effects,
    ) -> Result<(), CoreFault> {
        if let Input::Revived { incarnation, seats } = &input {
            let dropped = self.world.begin_anew(*incarnation, now);
            self.world.begin(&self.spec, now);
            self.revived(&dropped, seats)?;
            return self.finish(self.spec.tick_rate == 0, effects);
        }
        self.world.begin(&self.spec, now);
        let is_tick = matches!(input, Input::Tick);
        let is_step = match input {
            Input::Attach { seat, user, name, session, generation, options } => {
                let who = Who { seat, user, name };
                self.attach(who, session, generation, options, effects)?
            }
            Input::Lost { seat, generation } => self.lost(seat, generation, effects),
            Input::Frame { seat, kind, number, ack, payload } => {
                self.frame(seat, kind, number, ack, payload, effects)?
            }
            Input::Refresh { seat } => {
                self.want(seat, Wants::ALL, effects);
                false
            }
            Input::Free { seat, session, refusal } => {
                let holds = self.world.seats.get(seat).is_some_and(|held| held.session == session);
                if holds {
                    self.step_if_event_driven();
                    self.world.end(seat, refusal);
                }
                holds
            }
            Input::Stored { ticket, outcome } => self.stored(ticket, outcome)?,
            Input::Revived { .. } => unreachable!("it was handled above"),
            Input::Tick => {
                self.tick()?;
                true
            }
            Input::Wake => {
                self.step_if_event_driven();
                self.due()?;
                true
            }
            Input::Destroy { refusal } => {
                self.close(&refusal, effects);
                return Ok(());
            }
        };
        // At a fixed rate, what happens between two ticks leaves with the next.
        let is_step = is_step && (self.spec.tick_rate == 0 || is_tick);
        self.finish(is_step, effects)
    }

    /// At tick rate 0, everything that can change the state is a step.
    fn step_if_event_driven(&mut self) {
        if self.spec.tick_rate == 0 {
            self.world.step(&self.spec);
        }
    }

    // Seats.

    fn attach(
        &mut self,
        who: Who,
        session: SessionId,
        generation: Generation,
        options: &[u8],
        effects: &mut Effects,
    ) -> Result<bool, CoreFault> {
        let seat = who.seat;
        let refused = match self.world.seats.get(seat) {
            None if seat.0 >= self.spec.seats_max => {
                let seats = self.spec.seats_max;
                Some(Refusal::new(
                    Code::InstanceFull,
                    eco_format!("seat {seat}: instances of this kind have {seats} seats"),
                ))
            }
            Some(held) if held.session != session => {
                let text = eco_format!("seat {seat} is still held by another session; try again");
                Some(Refusal::new(Code::Busy, text))
            }
            Some(held) if held.generation > generation => {
                effects.items.push(Effect::AttachRefused {
                    seat,
                    generation,
                    refusal: Refusal::new(Code::Superseded, "the seat follows a newer connection"),
                });
                return Ok(false);
            }
            _ => None,
        };
        if let Some(refusal) = refused {
            self.refuse_seat(seat, session, generation, refusal, effects);
            return Ok(false);
        }
        self.step_if_event_driven();
        if self.world.seats.get(seat).is_some() {
            self.take_back(seat, generation, effects)?;
            return Ok(true);
        }
        let Some(game) = &mut self.game else { return Ok(false) };
        if let Err(reject) = game.admit(&mut self.world, &who, options) {
            self.refuse_seat(seat, session, generation, reject.into(), effects);
            return Ok(true);
        }
        self.world.seats.take(who, session, generation);
        self.world.empty_since = None;
        game.joined(&mut self.world, seat);
        self.report_seat(seat, session, SeatState::Taken, effects);
        self.welcome(seat, effects)?;
        Ok(true)
    }
    fn refuse_seat(
        &self,
        seat: Seat,
        session: SessionId,
        generation: Generation,
        refusal: Refusal,
        effects: &mut Effects,
    ) {
        effects.items.push(Effect::AttachRefused { seat, generation, refusal });
        // The directory reserved it.
        self.report_seat(seat, session, SeatState::Free, effects);
    }
    /// The session of a seat has another connection.
    fn take_back(
        &mut self,
        seat: Seat,
        generation: Generation,
        effects: &mut Effects,
    ) -> Result<(), CoreFault> {
        let Some(seated) = self.world.seats.get_mut(seat) else { return Ok(()) };
        let (session, was_away) = (seated.session, !seated.is_attached());
        seated.generation = generation;
        // Whatever the old connection was told, the new one was not.
        seated.own.abandon();
        seated.wants = Wants::default();
        self.world.seats.reattach(seat);
        if was_away {
            self.report_seat(seat, session, SeatState::Taken, effects);
            if let Some(game) = &mut self.game {
                game.returned(&mut self.world, seat);
            }
        }
        self.welcome(seat, effects)?;
        let Some(seated) = self.world.seats.get_mut(seat) else { return Ok(()) };
        let (ring, ack) = (&seated.ring, seated.received);
        ring.send_again(|message| to_seat(effects, seat, ack, &message));
        seated.told = ack;
        if seated.ring.has_new() {
            self.world.dirty.push(seat); // What was sent while it was away.
        }
        Ok(())
    }
    /// Tells a new connection where its seat is, and what it sees.
    fn welcome(&mut self, seat: Seat, effects: &mut Effects) -> Result<(), CoreFault> {
        let Some(seated) = self.world.seats.get_mut(seat) else { return Ok(()) };
        effects.items.push(Effect::Attached {
            seat,
            generation: seated.generation,
            up_received: seated.received,
            down_next: seated.ring.first(),
            tick_rate: self.spec.tick_rate,
        });
        seated.told = seated.received;
        seated.whole_at = Some(self.world.time);
        if !self.world.shared.is_followed() {
            self.update_shared(effects)?;
        }
        self.world.shared.send_whole(ViewId::SHARED, seat, self.world.tick, effects);
        if self.update_own(seat, effects)? == Follows::NotYet {
            self.send_own(seat, effects);
        }
        Ok(())
    }
    fn lost(&mut self, seat: Seat, generation: Generation, effects: &mut Effects) -> bool {
        let lost = self.world.seats.get(seat).filter(|held| {
            held.generation == generation && held.is_attached() && held.ending.is_none()
        });
        let Some(session) = lost.map(|held| held.session) else { return false };
        self.step_if_event_driven();
        let Some(game) = &mut self.game else { return false };
        let since = self.world.time;
        self.world.seats.detach(seat, Away { since, until: u64::MAX });
        let grace = game_grace(game.as_mut(), &mut self.world, seat);
        if let Some(away) = self.world.seats.get_mut(seat).and_then(|held| held.away.as_mut()) {
            away.until = since.saturating_add(grace);
        }
        if grace == 0 {
            self.world.end(seat, grace_over());
        } else {
            self.report_seat(seat, session, SeatState::Away, effects);
        }
        true
    }
    /// Tells the game what another life of its instance begins with: nobody is connected, some have left, and nobody
    /// knows what became of what the store was asked.
    fn revived(
        &mut self,
        dropped: &[Seat],
        holders: &[(Seat, SessionId)],
    ) -> Result<(), CoreFault> {
        self.step_if_event_driven();
        let Some(game) = &mut self.game else { return Ok(()) };
        for (ticket, outcome) in self.world.store.begin_anew() {
            game.stored(&mut self.world, ticket, outcome);
        }
        for seat in (0..self.world.seats.end()).map(Seat) {
            let Some(held) = self.world.seats.get(seat) else { continue };
            if !holders.contains(&(seat, held.session)) {
                self.world.end(seat, Refusal::new(Code::Left, Code::Left.meaning()));
                continue;
            }
            if !dropped.contains(&seat) {
                continue;
            }
            let grace = game_grace(game.as_mut(), &mut self.world, seat);
            let until = self.world.time.saturating_add(grace);
            if let Some(away) = self.world.seats.get_mut(seat).and_then(|held| held.away.as_mut()) {
                away.until = until;
            }
            if grace == 0 {
                self.world.end(seat, grace_over());
            }
        }
        self.check_encoded()
    }
    fn report_seat(&self, seat: Seat, session: SessionId, state: SeatState, effects: &mut Effects) {
        let World { instance, incarnation, .. } = self.world;
        effects.report(SeatChanged { instance, incarnation, seat, session, state });
    }

    // Frames.

    /// Handles a frame; true if that was a step, or what belongs to the next one.
    fn frame(
        &mut self,
        seat: Seat,
        kind: u8,
        number: Seq,
        ack: Seq,
        payload: &[u8],
        effects: &mut Effects,
    ) -> Result<bool, CoreFault> {
        let seated = self.world.seats.get_mut(seat);
        let Some(seated) = seated.filter(|seated| seated.is_attached()) else { return Ok(false) };
        seated.ring.acknowledge(ack);
        match kind {
            MESSAGE | CALL => self.reliable(seat, kind, number, payload, effects),
            QUERY => self.query(seat, number, payload, effects).map(|()| false),
            ACK => Ok(false),
            NEED_SNAPSHOT => {
                self.need_snapshot(seat, number, payload, effects);
                Ok(false)
            }
            unknown => {
                let text = eco_format!("an instance knows no frame of kind {unknown:#04x}");
                let refusal = Refusal::new(Code::UnexpectedKind, text);
                self.unnumbered(seat, QUERY_REFUSED, number, &refusal, effects);
                Ok(false)
            }
        }
    }
    fn reliable(
        &mut self,
        seat: Seat,
        kind: u8,
        number: Seq,
        payload: &[u8],
        effects: &mut Effects,
    ) -> Result<bool, CoreFault> {
        if !self.world.is_next(seat, number) {
            // It came before, and its sender does not know; or one before it was lost, and all come again.
            if let Some(seated) = self.world.seats.get_mut(seat) {
                seated.told = Seq(seated.received.0.wrapping_sub(1));
            }
            self.world.owe(seat);
            return Ok(false);
        }
        let Some(seated) = self.world.seats.get_mut(seat) else { return Ok(false) };
        if self.spec.tick_rate == 0 {
            seated.received = number;
            let life = seated.life;
            self.world.owe(seat);
            self.world.step(&self.spec);
            self.deliver(Call { seat, life, number }, kind, payload)?;
            return Ok(true);
        }
        if self.world.inbox.push(seated, kind, number, payload) {
            seated.received = number;
            self.world.owe(seat);
        } else if !seated.told_full {
            seated.told_full = true;
            let text = "too many messages wait for the next step; send them again after a pause";
            let refusal = Refusal::new(Code::Busy, text);
            self.unnumbered(seat, SEND_AGAIN, Seq(0), &refusal, effects);
        }
        Ok(false)
    }
    /// Hands a message or call to the game.
    fn deliver(&mut self, call: Call, kind: u8, payload: &[u8]) -> Result<(), CoreFault> {
        let Some(game) = &mut self.game else { return Ok(()) };
        let is_call = kind == CALL;
        self.world.handled = Some(Handled { call, is_call, answered: false, kept: false });
        let understood = game.message(&mut self.world, call.seat, payload);
        if let Err(refusal) = understood {
            self.world.refuse(call, &refusal);
        }
        let handled = self.world.handled;
        if handled.is_some_and(|handled| is_call && !handled.answered && !handled.kept) {
            let name = self.spec.name;
            let text = eco_format!("kind {name:?} has no answer to this call");
            self.world.refuse(call, &Refusal::new(Code::Rejected, text));
        }
        self.world.handled = None;
        self.check_encoded()
    }
    fn query(
        &mut self,
        seat: Seat,
        number: Seq,
        payload: &[u8],
        effects: &mut Effects,
    ) -> Result<(), CoreFault> {
        let Some(game) = &self.game else { return Ok(()) };
        let start = effects.bytes.len();
        match game.query(seat, payload, &mut effects.bytes) {
            Ok(Ok(())) => {
                self.unnumbered_payload(seat, QUERY_REPLY, number, start, effects);
                Ok(())
            }
            Ok(Err(refusal)) => {
                effects.bytes.truncate(start);
                self.unnumbered(seat, QUERY_REFUSED, number, &refusal, effects);
                Ok(())
            }
            Err(reason) => Err(self.unencodable("the answer to a query", reason)),
        }
    }
    fn need_snapshot(&mut self, seat: Seat, number: Seq, payload: &[u8], effects: &mut Effects) {
        let need: NeedSnapshot = match greenroom_protocol::decode(payload, Limits::CLIENT) {
            Ok(need) => need,
            Err(error) => {
                self.unnumbered(seat, QUERY_REFUSED, number, &error.into(), effects);
                return;
            }
        };
        let shared = need.view == ViewId::SHARED.0;
        let own = need.view == ViewId::of_seat(seat).0;
        if !shared && !own {
            let text = eco_format!("seat {seat} has no view {}", need.view);
            let refusal = Refusal::new(Code::Forbidden, text);
            self.unnumbered(seat, QUERY_REFUSED, number, &refusal, effects);
            return;
        }
        if !need.reason.is_empty() {
            let reason: EcoString = need.reason.chars().take(REASON_BYTES_MAX).collect();
            effects.items.push(Effect::Desync { seat, view: ViewId(need.view), reason });
        }
        self.want(seat, Wants { shared, own }, effects);
    }
    /// The seat gets these views whole: with the next patch; at tick rate 0 now, unless it had them just now. Either
    /// way a small frame can't be made into a flood of large ones.
    fn want(&mut self, seat: Seat, wants: Wants, effects: &mut Effects) {
        let Some(seated) = self.world.seats.get_mut(seat) else { return };
        if !seated.is_attached() {
            return;
        }
        if !seated.wants.any() {
            self.world.wanting.push(seat);
        }
        seated.wants.shared |= wants.shared;
        seated.wants.own |= wants.own;
        if self.spec.tick_rate == 0 {
            let due = seated.whole_at.map_or(0, |at| at + PAUSE_MS);
            if due <= self.world.time {
                self.send_wanted(effects);
            } else {
                self.world.sync_due = Some(self.world.sync_due.map_or(due, |sync| sync.min(due)));
            }
        }
    }
    fn send_wanted(&mut self, effects: &mut Effects) {
        while let Some(seat) = self.world.wanting.pop() {
            let Some(seated) = self.world.seats.get_mut(seat) else { continue };
            let wants = std::mem::take(&mut seated.wants);
            if !seated.is_attached() {
                continue;
            }
            seated.whole_at = Some(self.world.time);
            if wants.shared {
                self.world.shared.send_whole(ViewId::SHARED, seat, self.world.tick, effects);
            }
            if wants.own {
                self.send_own(seat, effects);
            }
        }
    }
    /// Sends a seat its own view whole, if it has one.
    fn send_own(&self, seat: Seat, effects: &mut Effects) {
        if let Some(seated) = self.world.seats.get(seat).filter(|seated| seated.own.is_known()) {
            seated.own.send_whole(ViewId::of_seat(seat), seat, self.world.tick, effects);
        }
    }
    /// Sends a frame that has no place on the reliable channel.
    fn unnumbered(
        &mut self,
        seat: Seat,
        kind: u8,
        number: Seq,
        refusal: &Refusal,
        effects: &mut Effects,
    ) {
        let start = effects.bytes.len();
        encode_into(refusal, &mut effects.bytes);
        self.unnumbered_payload(seat, kind, number, start, effects);
    }
    fn unnumbered_payload(
        &mut self,
        seat: Seat,
        kind: u8,
        number: Seq,
        start: usize,
        effects: &mut Effects,
    ) {
        let tick = self.world.tick.wire();
        let Some(seated) = self.world.seats.get_mut(seat) else { return };
        let ack = seated.received;
        seated.told = ack;
        let payload = start..effects.bytes.len();
        effects.items.push(Effect::ToSeat { seat, kind, number, ack, tick, payload });
    }

    // The store.

    /// Hands an outcome to the game: with the next tick, or at tick rate 0 now. True if that was a step.
    fn stored(
        &mut self,
        ticket: StoreTicket,
        outcome: Result<Stored, StoreRefusal>,
    ) -> Result<bool, CoreFault> {
        if self.spec.tick_rate > 0 {
            self.world.store.arrive(ticket, outcome);
            return Ok(false);
        }
        if !self.world.store.settle(ticket) {
            return Ok(false);
        }
        self.step_if_event_driven();
        if let Some(game) = &mut self.game {
            game.stored(&mut self.world, ticket, outcome);
        }
        self.check_encoded()?;
        Ok(true)
    }

    // Steps.

    fn tick(&mut self) -> Result<(), CoreFault> {
        self.world.step(&self.spec);
        for (ticket, outcome) in self.world.store.take_arrived() {
            if let Some(game) = &mut self.game {
                game.stored(&mut self.world, ticket, outcome);
            }
        }
        // Taken out while it is walked; nothing is put in meanwhile, and it keeps its memory.
        let mut inbox = std::mem::take(&mut self.world.inbox);
        for (waiting, payload) in inbox.iter() {
            let (seat, life, number) = (waiting.seat, waiting.life, waiting.number);
            let held = self.world.seats.get(seat);
            if held.is_some_and(|held| held.life == life && held.ending.is_none()) {
                self.deliver(Call { seat, life, number }, waiting.kind, payload)?;
            }
        }
        inbox.clear(&mut self.world.seats);
        self.world.inbox = inbox;
        self.due()?;
        if let Some(game) = &mut self.game {
            game.tick(&mut self.world);
        }
        self.check_encoded()
    }
    /// Timers, and what time does to seats and to an empty instance.
    fn due(&mut self) -> Result<(), CoreFault> {
        let now = self.world.timer_now(&self.spec);
        while let Some(timer) = self.world.timers.take_due(now) {
            let Some(game) = &mut self.game else { break };
            if let Err(reason) = game.timer(&mut self.world, &timer) {
                return Err(self.unencodable("a timer", reason));
            }
        }
        if self.world.seats.away() > 0 {
            self.end_away();
        }
        if self.empty_due().is_some_and(|due| due <= self.world.time) {
            self.world.closing.get_or_insert("nobody was there any more".into());
        }
        self.check_encoded()
    }
    /// Ends seats whose holder was away for too long, or whose messages are too old.
    fn end_away(&mut self) {
        let time = self.world.time;
        let end = self.world.seats.end();
        for seat in (0..end).map(Seat) {
            let Some(seated) = self.world.seats.get(seat) else { continue };
            let Some(away) = seated.away else { continue };
            if away.until <= time {
                self.world.end(seat, grace_over());
            } else if ring_due(seated, away).is_some_and(|due| due <= time) {
                let text = "messages to the seat were kept for as long as they can be";
                self.world.end(seat, Refusal::new(Code::SlowConsumer, text));
            }
        }
    }
    fn empty_due(&self) -> Option<u64> {
        let after = self.spec.closes_when_empty?.as_millis();
        let since = self.world.empty_since?;
        Some(since.saturating_add(u64::try_from(after).unwrap_or(u64::MAX)))
    }

    /// Ends seats, sends what a step has made, in its order: patches, messages, acknowledgements, ends.
    fn finish(&mut self, is_step: bool, effects: &mut Effects) -> Result<(), CoreFault> {
        self.let_go(effects);
        self.check_encoded()?;
        if is_step {
            if self.sync_is_due() {
                self.sync(effects)?;
            }
            self.send_new(effects);
        }
        self.acknowledge(is_step, effects);
        for (seat, mut seated, refusal) in self.leaving.drain(..) {
            if seated.is_attached() {
                let (tick, ack) = (self.world.tick.wire(), seated.received);
                seated.ring.send_new(tick, |message| to_seat(effects, seat, ack, &message));
                effects.items.push(Effect::SeatEnded { seat, refusal });
            }
        }
        if std::mem::take(&mut self.world.meta_changed) {
            effects.report(self.meta_changed());
        }
        let World { instance, incarnation, .. } = self.world;
        for ((board, user), Score { name, score }) in std::mem::take(&mut self.world.scores) {
            effects.report(Scored { instance, incarnation, board, user, name, score });
        }
        for order in self.world.store.take_orders() {
            effects.items.push(Effect::Store(Box::new(order)));
        }
        for told in self.world.events.drain(..) {
            effects.items.push(Effect::Event(Box::new(told)));
        }
        self.write_log(effects);
        if let Some(text) = self.world.closing.take() {
            self.send_new(effects);
            self.close(&Refusal::new(Code::InstanceClosed, text), effects);
        }
        Ok(())
    }
    /// Tells the game of seats that end. It may end more of them meanwhile.
    fn let_go(&mut self, effects: &mut Effects) {
        let mut next = 0;
        while let Some(&seat) = self.world.ends.get(next) {
            next += 1;
            let ending = self.world.seats.get(seat).and_then(|seated| seated.ending.clone());
            let (Some(refusal), Some(game)) = (ending, &mut self.game) else { continue };
            game.left(&mut self.world, seat, Why::of(&refusal.code));
            let Some(seated) = self.world.seats.free(seat) else { continue };
            self.report_seat(seat, seated.session, SeatState::Free, effects);
            self.leaving.push((seat, seated, refusal));
            if self.world.seats.held() == 0 {
                self.world.empty_since = Some(self.world.time);
            }
        }
        self.world.ends.clear();
    }
    fn sync_is_due(&mut self) -> bool {
        if self.spec.tick_rate > 0 {
            return self.world.tick.0.is_multiple_of(self.spec.patch_ticks());
        }
        let due = self.world.synced_at.saturating_add(self.spec.patch_ms());
        let wanted = self.world.sync_due.filter(|_| !self.world.wanting.is_empty());
        let is_due = due <= self.world.time || wanted.is_some_and(|due| due <= self.world.time);
        if is_due {
            self.world.synced_at = self.world.time;
            self.world.sync_due = None;
        } else {
            self.world.sync_due = Some(self.world.sync_due.map_or(due, |sync| sync.min(due)));
        }
        is_due
    }
    /// Compares every view that somebody follows with what it was, and sends the difference.
    fn sync(&mut self, effects: &mut Effects) -> Result<(), CoreFault> {
        if self.world.seats.attached() == 0 {
            self.world.shared.abandon();
            return Ok(());
        }
        self.update_shared(effects)?;
        if self.game.as_ref().is_some_and(|game| game.has_private_views()) {
            for seat in (0..self.world.seats.end()).map(Seat) {
                if self.update_own(seat, effects)? == Follows::NotYet {
                    self.send_own(seat, effects);
                }
            }
        }
        self.send_wanted(effects);
        Ok(())
    }
    fn update_shared(&mut self, effects: &mut Effects) -> Result<(), CoreFault> {
        let Some(game) = &self.game else { return Ok(()) };
        effects.view.clear();
        if let Err(reason) = game.view(&mut effects.view) {
            return Err(self.unencodable("the view", reason));
        }
        let tick = self.world.tick;
        let updated = self.world.shared.update(ViewId::SHARED, None, tick, effects);
        updated.map_err(|error| self.too_long(&error))
    }
    /// Compares a seat's own view with what it was, and sends the difference if the seat has what was before.
    fn update_own(&mut self, seat: Seat, effects: &mut Effects) -> Result<Follows, CoreFault> {
        let Some(game) = self.game.as_ref().filter(|game| game.has_private_views()) else {
            return Ok(Follows::Yes);
        };
        let Some(seated) = self.world.seats.get_mut(seat).filter(|held| held.is_attached()) else {
            return Ok(Follows::Yes);
        };
        effects.view.clear();
        let is_there = match game.private_view(seat, &mut effects.view) {
            Ok(is_there) => is_there,
            Err(reason) => return Err(self.unencodable("a private view", reason)),
        };
        // A seat that never had one needs none; one that had is told that there is none any more.
        if !is_there && !seated.own.is_known() {
            return Ok(Follows::Yes);
        }
        let follows = if seated.own.is_followed() { Follows::Yes } else { Follows::NotYet };
        let (id, tick) = (ViewId::of_seat(seat), self.world.tick);
        match seated.own.update(id, Some(seat), tick, effects) {
            Ok(()) => Ok(follows),
            Err(error) => Err(self.too_long(&error)),
        }
    }
    fn send_new(&mut self, effects: &mut Effects) {
        let tick = self.world.tick.wire();
        for seat in self.world.dirty.drain(..) {
            let Some(seated) = self.world.seats.get_mut(seat) else { continue };
            if seated.is_attached() {
                let ack = seated.received;
                seated.ring.send_new(tick, |message| to_seat(effects, seat, ack, &message));
                seated.told = ack;
            }
        }
    }
    /// Tells seats what has arrived, if nothing that went to them did.
    fn acknowledge(&mut self, is_step: bool, effects: &mut Effects) {
        if self.world.owing.is_empty() {
            return;
        }
        let is_due = if self.spec.tick_rate > 0 {
            is_step && self.world.tick.0.is_multiple_of(self.spec.patch_ticks())
        } else {
            self.world.ack_due.is_some_and(|due| due <= self.world.time)
        };
        let (tick, end) = (self.world.tick.wire(), effects.bytes.len());
        let seats = &mut self.world.seats;
        self.world.owing.retain(|&seat| {
            let Some(seated) = seats.get_mut(seat) else { return false };
            let owed = seated.received.0.wrapping_sub(seated.told.0);
            let tell = seated.is_attached() && owed > 0 && (is_due || owed >= OWED_MAX);
            if tell {
                let (kind, number, ack) = (DOWN_ACK, Seq(0), seated.received);
                let payload = end..end;
                effects.items.push(Effect::ToSeat { seat, kind, number, ack, tick, payload });
                seated.told = ack;
            }
            seated.owing = !tell && owed > 0;
            seated.owing
        });
        let (time, is_owing) = (self.world.time, !self.world.owing.is_empty());
        let waits = self.world.ack_due.filter(|due| *due > time);
        self.world.ack_due = is_owing.then(|| waits.unwrap_or(time + PAUSE_MS));
    }
    fn write_log(&mut self, effects: &mut Effects) {
        for (level, text) in self.world.log.drain(..) {
            effects.log(level, text);
        }
        let dropped = self.world.take_log_dropped();
        if dropped > 0 {
            effects.log(LogLevel::Warn, eco_format!("{dropped} more lines in one step"));
        }
        let dropped = self.world.take_events_dropped();
        if dropped > 0 {
            let text = eco_format!("{dropped} more events in one step, or too large ones");
            effects.log(LogLevel::Warn, text);
        }
    }

    // Ends.

    fn close(&mut self, refusal: &Refusal, effects: &mut Effects) {
        self.end_all(refusal, refusal.clone(), effects);
    }
    fn fail(&mut self, fault: &CoreFault, effects: &mut Effects) {
        self.world.events.clear(); // They happened in a step that did not.
        self.write_log(effects);
        effects.log(LogLevel::Error, eco_format!("{fault}"));
        self.end_all(
            &failed(),
            Refusal::new(Code::InstanceFailed, eco_format!("{fault}")),
            effects,
        );
    }
    fn end_all(&mut self, told: &Refusal, reported: Refusal, effects: &mut Effects) {
        let leaving = self.leaving.drain(..).map(|(seat, seated, _)| (seat, seated.is_attached()));
        let held = self.world.seats.iter().map(|held| (held.who.seat, held.is_attached()));
        for (seat, _) in leaving.chain(held).filter(|(_, is_attached)| *is_attached) {
            effects.items.push(Effect::SeatEnded { seat, refusal: told.clone() });
        }
        let World { instance, incarnation, .. } = self.world;
        effects.report(Closed { instance, incarnation, refusal: reported });
        let game = self.game.take();
        // A destructor of the game's own may panic as well.
        if catch_unwind(AssertUnwindSafe(|| drop(game))).is_err() {
            effects.log(LogLevel::Error, eco_format!("kind {:?} panicked in drop", self.spec.name));
        }
    }
    fn check_encoded(&mut self) -> Result<(), CoreFault> {
        match self.world.unencodable.take() {
            None => Ok(()),
            Some((what, reason)) => Err(self.unencodable(what, reason)),
        }
    }
    fn unencodable(&self, what: &'static str, reason: String) -> CoreFault {
        CoreFault::Unencodable { kind: self.spec.name.into(), what, reason }
    }
    fn too_long(&self, error: &TooLong) -> CoreFault {
        CoreFault::ViewTooLong { kind: self.spec.name.into(), bytes: error.bytes }
    }

    // What the shell asks.

    /// Which instance.
    pub const fn instance(&self) -> InstanceId {
        self.world.instance
    }
    /// In which of its lives.
    pub const fn incarnation(&self) -> Incarnation {
        self.world.incarnation
    }
    /// The kind's name.
    pub const fn kind_name(&self) -> &'static str {
        self.spec.name
    }
    /// Who holds a seat.
    pub fn user(&self, seat: Seat) -> Option<&UserId> {
        self.world.seats.get(seat).map(|seated| &seated.who.user)
    }
    /// Ticks per second: so often [`Input::Tick`] is due. At 0, [`Self::next_due`] says when [`Input::Wake`] is.
    pub const fn tick_rate(&self) -> u16 {
        self.spec.tick_rate
    }
    /// The step that was made last.
    pub const fn tick_number(&self) -> Tick {
        self.world.tick
    }
    /// After how many steps it is stored, if it is durable.
    pub const fn durable_steps(&self) -> Option<u32> {
        match self.spec.durable_steps {
            0 => None,
            steps => Some(steps),
        }
    }
    /// How much of its server's capacity it takes.
    pub const fn weight(&self) -> u32 {
        self.spec.weight
    }
    /// Its unique key, if it has one.
    pub const fn key(&self) -> Option<&Key> {
        self.world.key.as_ref()
    }
    /// What the game says of it, and who may find it and come in: as the word that it runs.
    pub fn running(&self) -> Running {
        let World { instance, incarnation, open, private, .. } = self.world;
        Running { instance, incarnation, meta: self.world.meta.clone(), open, private }
    }
    /// The same, as the word of a change.
    pub fn meta_changed(&self) -> MetaChanged {
        let Running { instance, incarnation, meta, open, private } = self.running();
        MetaChanged { instance, incarnation, meta, open, private }
    }
    /// It is told nothing more.
    pub const fn is_closed(&self) -> bool {
        self.game.is_none()
    }
    /// Seats that are not free.
    pub const fn seats_held(&self) -> u32 {
        self.world.seats.held()
    }
    /// Who holds a seat.
    pub fn holder(&self, seat: Seat) -> Option<(&UserId, SessionId, Generation)> {
        let held = self.world.seats.get(seat)?;
        Some((&held.who.user, held.session, held.generation))
    }
    /// It, as a report of its server names it.
    pub fn held(&self) -> HeldInstance {
        let seat = |held: &Seated| HeldSeat {
            seat: held.who.seat,
            user: held.who.user.clone(),
            session: held.session,
            away: !held.is_attached(),
        };
        HeldInstance {
            instance: self.world.instance,
            incarnation: self.world.incarnation,
            kind: KindName::new(self.spec.name).expect("`Kind::new` takes no other name"),
            key: self.world.key.clone(),
            owner: self.world.owner.clone(),
            created_ms: self.world.created_ms,
            seats: self.world.seats.iter().map(seat).collect(),
            meta: self.world.meta.clone(),
            open: self.world.open,
            private: self.world.private,
        }
    }
    /// When [`Input::Wake`] is due, at tick rate 0; nothing if only an input can change something.
    pub fn next_due(&self) -> Option<Moment> {
        if self.spec.tick_rate > 0 || self.game.is_none() {
            return None;
        }
        let world = &self.world;
        let orders = world.store.has_orders().then_some(world.time);
        let due =
            [world.timers.next_due(), world.sync_due, world.ack_due, self.empty_due(), orders];
        let mut due = due.into_iter().flatten().min();
        if world.seats.away() > 0 {
            let away = world.seats.iter().filter_map(|held| {
                let away = held.away?;
                Some(away.until.min(ring_due(held, away).unwrap_or(u64::MAX)))
            });
            due = due.into_iter().chain(away).min();
        }
        let since_start = |due: u64| due.saturating_sub(world.base);
        due.map(|due| Moment(world.start.moment.0.saturating_add(since_start(due))))
    }
    /// Everything: the game's state, its timers and randomness, its seats and what they have not acknowledged. Nothing
    /// for a kind that is not storable, or when it is closed.
    ///
    /// # Errors
    /// [`CoreFault`], when the state does not encode or the game panics.
    pub fn snapshot(&self) -> Result<Option<Vec<u8>>, CoreFault> {
        let Some(game) = &self.game else { return Ok(None) };
        let state = catch_unwind(AssertUnwindSafe(|| game.snapshot()));
        let Some(state) = state.map_err(|panic| panicked(&self.spec, &*panic))? else {
            return Ok(None);
        };
        let state = state.map_err(|reason| self.unencodable("the state", reason))?;
        let stored = Snapshot { version: self.spec.version, state, world: &self.world };
        Ok(Some(greenroom_protocol::encode(&stored)))
    }
    /// What every seat sees now, encoded: for tests and for operators, who see more than the last patch.
    ///
    /// # Errors
    /// [`CoreFault`], when the view does not encode or the game panics.
    pub fn encode_view(&self) -> Result<Vec<u8>, CoreFault> {
        let mut out = Vec::new();
        let Some(game) = &self.game else { return Ok(out) };
        let encoded = catch_unwind(AssertUnwindSafe(|| game.view(&mut out)));
        let encoded = encoded.map_err(|panic| panicked(&self.spec, &*panic))?;
        encoded.map_err(|reason| self.unencodable("the view", reason))?;
        Ok(out)
    }
}

/// Whether a seat has a view, so that a patch is enough for it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Follows {
    Yes,
    NotYet,
}

/// Sends a message of the reliable channel.
fn to_seat(effects: &mut Effects, seat: Seat, ack: Seq, message: &Message<'_>) {
    let start = effects.bytes.len();
    effects.bytes.extend_from_slice(message.payload.0);
    effects.bytes.extend_from_slice(message.payload.1);
    effects.items.push(Effect::ToSeat {
        seat,
        kind: message.kind,
        number: message.number,
        ack,
        tick: message.tick,
        payload: start..effects.bytes.len(),
    });
}

/// Milliseconds for which the game holds a seat.
fn game_grace(game: &mut dyn Game, world: &mut World, seat: Seat) -> u64 {
    u64::try_from(game.dropped(world, seat).as_millis()).unwrap_or(u64::MAX)
}

/// What everybody but the operator is told: a panic's text may hold what is not for players.
fn failed() -> Refusal {
    Refusal::new(Code::InstanceFailed, "the instance failed by a bug of its game")
}

fn grace_over() -> Refusal {
    Refusal::new(Code::GraceOver, "the connection was gone for longer than the seat is held")
}

/// When the messages of a seat that is away are too old; only time away counts.
fn ring_due(seated: &Seated, away: Away) -> Option<u64> {
    let kept = u64::try_from(RING_TIME_MAX.as_millis()).unwrap_or(u64::MAX);
    Some(seated.ring.oldest()?.max(away.since).saturating_add(kept))
}

fn panicked(spec: &Spec, panic: &(dyn Any + Send)) -> CoreFault {
    let text = panic.downcast_ref::<&str>().copied().map(EcoString::from);
    let text = text.or_else(|| panic.downcast_ref::<String>().map(EcoString::from));
    CoreFault::Panicked { kind: spec.name.into(), text: text.unwrap_or_default() }
}
