//! All of an instance but the game's own state: what handlers change through [`crate::Cx`].

use std::collections::BTreeMap;
use std::time::Duration;

use ecow::{EcoString, eco_format};
use greenroom_protocol::wire::client_instance::{REPLY, REPLY_REFUSED};
use greenroom_protocol::wire::client_session::Meta;
use greenroom_protocol::wire::master_game::CreateInstance;
use greenroom_protocol::{Code, Incarnation, InstanceId, Key, Refusal, Seat, Seq, Tick, UserId};
use serde::{Deserialize, Serialize};

use crate::cx::Call;
use crate::input::Now;
use crate::kind::Spec;
use crate::random::Random;
use crate::ring::{Full, RING_BYTES_MAX};
use crate::seat::{Inbox, Line, Seats};
use crate::store::Asked;
use crate::timers::Timers;
use crate::view::View;
use crate::{EVENTS_STEP_MAX, GameEvent, LogLevel, PayloadOut, Told, event};

/// Lines that one input may write to the log: the rest is counted.
const LOG_LINES_MAX: usize = 64;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct World {
    pub(crate) instance: InstanceId,
    pub(crate) incarnation: Incarnation,
    /// When this life of it began.
    pub(crate) start: Now,
    /// The instance's time then, in milliseconds.
    #[serde(default)]
    pub(crate) base: u64,
    pub(crate) tick: Tick,
    /// Milliseconds since the start: by the tick, or at tick rate 0 by the time of the input.
    pub(crate) time: u64,
    pub(crate) wall: Duration,
    pub(crate) random: Random,
    pub(crate) timers: Timers,
    pub(crate) seats: Seats,
    pub(crate) inbox: Inbox,
    pub(crate) shared: View,
    pub(crate) key: Option<Key>,
    pub(crate) owner: Option<UserId>,
    /// By the master's clock, and of no other use than to be told to the next one.
    pub(crate) created_ms: u64,
    pub(crate) meta: Meta,
    pub(crate) open: bool,
    pub(crate) private: bool,
    pub(crate) meta_changed: bool,
    /// For rank boards: the newest of each board and user.
    pub(crate) scores: BTreeMap<(EcoString, UserId), Score>,
    /// What the store was asked and has not answered.
    #[serde(default)]
    pub(crate) store: Asked,
    pub(crate) empty_since: Option<u64>,
    /// When views were last compared, at tick rate 0.
    pub(crate) synced_at: u64,
    /// When views are to be compared, or whole ones sent, at tick rate 0.
    pub(crate) sync_due: Option<u64>,
    /// When what is owed is to be acknowledged, at tick rate 0.
    pub(crate) ack_due: Option<u64>,
    /// Seats with messages that leave with this step.
    pub(crate) dirty: Vec<Seat>,
    /// Seats that are owed an acknowledgement.
    pub(crate) owing: Vec<Seat>,
    /// Seats that asked for whole views.
    pub(crate) wanting: Vec<Seat>,
    /// Seats that end with this input.
    #[serde(skip)]
    pub(crate) ends: Vec<Seat>,
    #[serde(skip)]
    pub(crate) closing: Option<EcoString>,
    #[serde(skip)]
    pub(crate) log: Vec<Line>,
    #[serde(skip)]
    log_dropped: u32,
    /// For the event log, with this step.
    #[serde(skip)]
    pub(crate) events: Vec<Told>,
    #[serde(skip)]
    events_dropped: u32,
    /// What a type of the game's own could not encode.
    #[serde(skip)]
    pub(crate) unencodable: Option<(&'static str, String)>,
    /// The message that is being handled.
    #[serde(skip)]
    pub(crate) handled: Option<Handled>,
    /// Memory for what is being sent.
    #[serde(skip)]
    message: Vec<u8>,
}

/// A score that is on its way to a rank board; without one the user leaves it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Score {
    pub(crate) name: EcoString,
    pub(crate) score: Option<i64>,
}

/// The message that is being handled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Handled {
    pub(crate) call: Call,
    pub(crate) is_call: bool,
    pub(crate) answered: bool,
    /// To be answered later.
    pub(crate) kept: bool,
}

impl World {
    pub(crate) fn new(order: &CreateInstance, start: Now) -> Self {
        Self {
            instance: order.instance,
            incarnation: order.incarnation,
            start,
            base: 0,
            tick: Tick(0),
            time: 0,
            wall: start.wall,
            random: Random::new(order.seed),
            timers: Timers::default(),
            seats: Seats::default(),
            inbox: Inbox::default(),
            shared: View::default(),
            key: order.key.clone(),
            owner: order.owner.clone(),
            created_ms: order.created_ms,
            meta: Meta::new(),
            open: true,
            private: order.private,
            meta_changed: false,
            scores: BTreeMap::new(),
            store: Asked::default(),
            empty_since: Some(0),
            synced_at: 0,
            sync_due: None,
            ack_due: None,
            dirty: Vec::new(),
            owing: Vec::new(),
            wanting: Vec::new(),
            ends: Vec::new(),
            closing: None,
            log: Vec::new(),
            log_dropped: 0,
            events: Vec::new(),
            events_dropped: 0,
            unencodable: None,
            handled: None,
            message: Vec::new(),
        }
    }
    /// The time of an input enters.
    pub(crate) fn begin(&mut self, spec: &Spec, now: Now) {
        self.wall = now.wall;
        if spec.tick_rate == 0 {
            let since = now.moment.since(self.start.moment).as_millis();
            let since = u64::try_from(since).unwrap_or(u64::MAX);
            self.time = self.time.max(self.base.saturating_add(since));
        }
    }
    /// Another life begins: nobody is connected, numbers begin anew, and no time has passed. Gives the seats that had
    /// a connection.
    pub(crate) fn begin_anew(&mut self, incarnation: Incarnation, now: Now) -> Vec<Seat> {
        self.incarnation = incarnation;
        (self.start, self.base) = (now, self.time);
        self.inbox.clear(&mut self.seats);
        self.shared.abandon();
        self.dirty.clear();
        self.owing.clear();
        self.wanting.clear();
        (self.sync_due, self.ack_due) = (None, None);
        self.seats.begin_anew(self.time)
    }
    /// A step begins.
    pub(crate) fn step(&mut self, spec: &Spec) {
        self.tick.0 += 1;
        self.store.step();
        if let Some(time) = (self.tick.0 * 1000).checked_div(u64::from(spec.tick_rate)) {
            self.time = time;
        }
    }
    /// When timers are due now, in their unit.
    pub(crate) fn timer_now(&self, spec: &Spec) -> u64 {
        if spec.tick_rate == 0 { self.time } else { self.tick.0 }
    }

    /// Encodes what is to be sent next, in [`Self::message`].
    pub(crate) fn encode<T: PayloadOut>(&mut self, what: &'static str, payload: &T) -> bool {
        self.message.clear();
        match payload.to_payload(&mut self.message) {
            Ok(()) => true,
            Err(reason) => {
                self.unencodable.get_or_insert((what, reason));
                false
            }
        }
    }
    /// Sends what was encoded to a seat, after `head`.
    pub(crate) fn push(&mut self, seat: Seat, kind: u8, head: &[u8]) {
        let Some(seated) = self.seats.get_mut(seat).filter(|seated| seated.ending.is_none()) else {
            return;
        };
        let had_new = seated.ring.has_new();
        match seated.ring.push(kind, head, &self.message, self.time) {
            Ok(()) if had_new => {}
            Ok(()) => self.dirty.push(seat),
            Err(Full) => {
                let refusal = if self.message.len() > RING_BYTES_MAX {
                    let length = self.message.len();
                    Refusal::new(
                        Code::TooLarge,
                        eco_format!(
                            "the game sent a message of {length} bytes; {RING_BYTES_MAX} are the most"
                        ),
                    )
                } else {
                    Refusal::new(
                        Code::SlowConsumer,
                        "too many messages were not acknowledged; the seat is given up",
                    )
                };
                self.end(seat, refusal);
            }
        }
    }
    /// Answers a call with what was encoded.
    pub(crate) fn answer(&mut self, call: Call) {
        if self.message.len() + 4 > RING_BYTES_MAX {
            let length = self.message.len();
            let text = eco_format!("the answer has {length} bytes, more than fit into a message");
            return self.refuse(call, &Refusal::new(Code::TooLarge, text));
        }
        if self.settle(call) {
            self.push(call.seat, REPLY, &call.number.0.to_le_bytes());
        }
    }
    /// Refuses a call or a message.
    pub(crate) fn refuse(&mut self, call: Call, refusal: &Refusal) {
        if self.settle(call) && self.encode("a refusal", refusal) {
            self.push(call.seat, REPLY_REFUSED, &call.number.0.to_le_bytes());
        }
    }
    /// Marks a call as answered; false when its caller is not there any more, or it has been answered by now.
    fn settle(&mut self, call: Call) -> bool {
        if let Some(handled) = self.handled.as_mut().filter(|handled| handled.call == call) {
            if handled.answered {
                return false;
            }
            handled.answered = true;
        }
        self.seats.get(call.seat).is_some_and(|seated| seated.life == call.life)
    }
    /// The seat ends with this input.
    pub(crate) fn end(&mut self, seat: Seat, refusal: Refusal) {
        if let Some(seated) = self.seats.get_mut(seat).filter(|seated| seated.ending.is_none()) {
            seated.ending = Some(refusal);
            self.ends.push(seat);
        }
    }
    /// The seat is owed an acknowledgement.
    pub(crate) fn owe(&mut self, seat: Seat) {
        if let Some(seated) = self.seats.get_mut(seat).filter(|seated| !seated.owing) {
            seated.owing = true;
            self.owing.push(seat);
        }
    }
    /// Whether a message with this number is the next one of its seat.
    pub(crate) fn is_next(&self, seat: Seat, number: Seq) -> bool {
        self.seats.get(seat).is_some_and(|seated| seated.received.next() == number)
    }
    pub(crate) fn log(&mut self, level: LogLevel, text: EcoString) {
        if self.log.len() < LOG_LINES_MAX {
            self.log.push((level, text));
        } else {
            self.log_dropped += 1;
        }
    }
    /// Tells the event log of something, when this step is over.
    pub(crate) fn tell<E: GameEvent>(&mut self, user: Option<UserId>, event: &E) {
        const { assert!(event::is_kind(E::KIND), "an event's kind is 1 to 32 of a-z, 0-9 and _") };
        if self.events.len() >= EVENTS_STEP_MAX {
            self.events_dropped += 1;
            return;
        }
        match event::fields(event) {
            Ok(Some(fields)) => {
                self.events.push(Told { kind: E::KIND, version: E::VERSION, user, fields });
            }
            Ok(None) => self.events_dropped += 1,
            Err(reason) => {
                self.unencodable.get_or_insert(("an event", reason));
            }
        }
    }
    /// How many events were dropped since this was last asked.
    pub(crate) fn take_events_dropped(&mut self) -> u32 {
        std::mem::take(&mut self.events_dropped)
    }
    /// How many lines were dropped since this was last asked.
    pub(crate) fn take_log_dropped(&mut self) -> u32 {
        std::mem::take(&mut self.log_dropped)
    }
}
