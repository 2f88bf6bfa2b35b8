//! One seat: what the room's handle and the client's task share, behind one lock that is never held across a wait.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use ecow::eco_format;
use greenroom_protocol::{
    Channel, DownHeader, Incarnation, InstanceId, KindName, Limits, PatchHeader, PieceHeader,
    Refusal, Seat, Seq, UpHeader, ViewId, decode, encode,
    wire::{client_instance as kinds, client_session::Joined},
};
use greenroom_telemetry::Tracer;
use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};

use crate::{
    ClientError, Stats, Status,
    error::Misbehaved,
    inbox::{self, Event, Inbox},
    traces::{SeatTraces, Traced},
    uplink::{Message, UNACKNOWLEDGED_BYTES_MAX, Uplink},
    view::{Outcome, Views},
    watch::WatchKey,
};

/// Messages that come down before they are acknowledged by a frame of its own.
const ACK_AFTER: u32 = 16;
/// How long they may wait for a frame that goes up anyway.
const ACK_WITHIN: Duration = Duration::from_millis(50);
/// Calls whose reply is remembered to be missing, also after their callers gave up.
const CALLS_MAX: usize = 1_024;
/// Queries of one seat that may wait for their answer.
const QUERIES_MAX: usize = 64;

/// A reply of the game, as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Of a call: the reply's number on the seat's reliable channel, which messages of the game share. Of a query: the
    /// query's number.
    pub number: Seq,
    /// Low 32 bits of the tick whose step made it.
    pub tick: u32,
    /// Encoded, as the game made it.
    pub payload: Bytes,
}

impl Reply {
    /// The reply as the game's own type.
    ///
    /// # Errors
    /// [`ClientError::Decode`] when it is of another type.
    pub fn decode<T: serde::de::DeserializeOwned>(&self) -> Result<T, ClientError> {
        decode(&self.payload, Limits::SERVER)
            .map_err(|source| ClientError::Decode { what: "a reply of the game", source })
    }
}

pub(crate) type Answer<T> = Result<T, ClientError>;

/// Whose handle calls the task.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Work {
    Seat(InstanceId),
    Watch(WatchKey),
}

/// What rooms and the client's task share of the whole client.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Rooms and live searches that have something for the task to do.
    work: Mutex<Vec<Work>>,
    pub(crate) wake: Notify,
    stats: Mutex<Stats>,
    pub(crate) traced: Traced,
}

impl Shared {
    pub(crate) fn new(tracer: Tracer) -> Self {
        Self {
            work: Mutex::new(Vec::new()),
            wake: Notify::new(),
            stats: Mutex::new(Stats::default()),
            traced: Traced::new(tracer),
        }
    }
    /// Has the task look at this. To be called once until the task has looked.
    pub(crate) fn call(&self, work: Work) {
        locked(&self.work).push(work);
        self.wake.notify_one();
    }
    pub(crate) fn take_work(&self) -> Vec<Work> {
        std::mem::take(&mut *locked(&self.work))
    }
    pub(crate) fn stats(&self) -> MutexGuard<'_, Stats> {
        locked(&self.stats)
    }
}

/// A lock whose data is in order at every moment, also when a holder panicked.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One seat of this client.
#[derive(Debug)]
pub(crate) struct SeatLink {
    pub(crate) instance: InstanceId,
    pub(crate) kind: KindName,
    pub(crate) shared: Arc<Shared>,
    /// The application waits for an event here.
    pub(crate) arrived: Notify,
    state: Mutex<SeatState>,
}

impl SeatLink {
    pub(crate) fn new(joined: &Joined, shared: Arc<Shared>) -> Self {
        let state = Mutex::new(SeatState::new(joined, &shared.traced.tracer));
        Self {
            instance: joined.instance,
            kind: joined.kind.clone(),
            shared,
            arrived: Notify::new(),
            state,
        }
    }
    pub(crate) fn lock(&self) -> MutexGuard<'_, SeatState> {
        locked(&self.state)
    }
    /// Tells the client's task to look at this seat.
    pub(crate) fn call_the_task(&self, state: &mut SeatState) {
        if !std::mem::replace(&mut state.calling, true) {
            self.shared.call(Work::Seat(self.instance));
        }
    }
}

/// The one handle on a seat that holds it: dropped, the seat is given up.
#[derive(Debug)]
pub(crate) struct Hold(pub(crate) Arc<SeatLink>);

impl Drop for Hold {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        if state.ended.is_none() {
            state.abandoned = true;
            self.0.call_the_task(&mut state);
        }
    }
}

#[derive(Debug)]
struct Query {
    payload: Bytes,
    reply: oneshot::Sender<Answer<Reply>>,
    sent: bool,
}

/// All that one seat holds.
#[derive(Debug)]
pub(crate) struct SeatState {
    pub(crate) incarnation: Incarnation,
    pub(crate) seat: Seat,
    pub(crate) tick_rate: u16,
    pub(crate) up: Uplink,
    pub(crate) inbox: Inbox,
    pub(crate) views: Views,
    /// Why the seat is gone, once it is.
    pub(crate) ended: Option<Refusal>,
    /// The room's handle is dropped: the seat is to be given up.
    pub(crate) abandoned: bool,
    /// The task waits for the application to read its events.
    pub(crate) stalled: bool,
    calling: bool,
    calls: BTreeMap<Seq, oneshot::Sender<Answer<Reply>>>,
    queries: BTreeMap<Seq, Query>,
    next_query: Seq,
    /// Everything that came down up to here is taken.
    received: Seq,
    /// What the instance was told of that on this connection.
    acknowledged: Seq,
    acknowledge_at: Option<Instant>,
    /// Snapshots to ask for.
    lost_views: Vec<kinds::NeedSnapshot>,
    traces: SeatTraces,
}

impl SeatState {
    fn new(joined: &Joined, tracer: &Tracer) -> Self {
        Self {
            incarnation: joined.incarnation,
            seat: joined.seat,
            tick_rate: joined.tick_rate,
            up: Uplink::after(joined.up_received),
            inbox: Inbox::default(),
            views: Views::default(),
            ended: None,
            abandoned: false,
            stalled: false,
            calling: false,
            calls: BTreeMap::new(),
            queries: BTreeMap::new(),
            next_query: Seq(0),
            received: Seq(joined.down_next.saturating_sub(1)),
            acknowledged: Seq(joined.down_next.saturating_sub(1)),
            acknowledge_at: None,
            lost_views: Vec::new(),
            traces: SeatTraces::new(tracer),
        }
    }

    /// The task has seen the call.
    pub(crate) const fn called(&mut self) {
        self.calling = false;
    }

    /// Queues a call, whose reply comes to the receiver.
    pub(crate) fn call(
        &mut self,
        payload: Bytes,
    ) -> Result<(Seq, oneshot::Receiver<Answer<Reply>>), ClientError> {
        self.check_open()?;
        if self.calls.len() >= CALLS_MAX {
            // Nobody waits for these any more, and the game seems not to answer.
            self.calls.retain(|_, call| !call.is_closed());
        }
        let (reply, replied) = oneshot::channel();
        let number = self.up.push(kinds::CALL, payload)?;
        self.calls.insert(number, reply);
        self.traces.calls(number);
        Ok((number, replied))
    }

    /// Queues a message.
    pub(crate) fn send(&mut self, payload: Bytes) -> Result<Seq, ClientError> {
        self.check_open()?;
        let number = self.up.push(kinds::MESSAGE, payload)?;
        self.traces.sends(number);
        Ok(number)
    }

    /// Queues a query, whose answer comes to the receiver.
    pub(crate) fn query(
        &mut self,
        payload: Bytes,
    ) -> Result<oneshot::Receiver<Answer<Reply>>, ClientError> {
        self.check_open()?;
        if payload.len() > UNACKNOWLEDGED_BYTES_MAX {
            return Err(ClientError::TooLarge {
                len: payload.len(),
                max: UNACKNOWLEDGED_BYTES_MAX,
            });
        }
        self.queries.retain(|_, query| !query.reply.is_closed());
        if self.queries.len() >= QUERIES_MAX {
            let bytes = self.queries.values().map(|query| query.payload.len()).sum();
            return Err(ClientError::Full { messages: self.queries.len(), bytes });
        }
        let (reply, replied) = oneshot::channel();
        self.next_query = self.next_query.next();
        self.queries.insert(self.next_query, Query { payload, reply, sent: false });
        Ok(replied)
    }

    fn check_open(&self) -> Result<(), ClientError> {
        match &self.ended {
            None => Ok(()),
            Some(refusal) => Err(ClientError::Left(refusal.clone())),
        }
    }

    /// The seat is taken again on a new connection.
    ///
    /// `same_session` says whether the session is the one that had the seat: the same session has the same seat, and
    /// both streams go on where they were.
    pub(crate) fn resume(
        &mut self,
        now: Instant,
        joined: &Joined,
        same_session: bool,
    ) -> Result<(), Misbehaved> {
        let goes_on = same_session
            && joined.incarnation == self.incarnation
            && joined.seat == self.seat
            && self.up.goes_on_after(joined.up_received);
        if goes_on {
            self.up.acknowledge(Seq(joined.up_received))?;
            self.up.rewind();
        } else {
            let unacknowledged = self.up.len();
            self.up = Uplink::after(joined.up_received);
            self.received = Seq(joined.down_next.saturating_sub(1));
            // Before the calls that it leaves undecided: whoever hears of them can see why.
            self.inbox.push(Event::Rewound { incarnation: joined.incarnation, unacknowledged });
            for (number, call) in std::mem::take(&mut self.calls) {
                answer(call, Err(ClientError::CallUndecided { number }));
            }
            self.traces.clear();
            self.views.forget();
        }
        self.incarnation = joined.incarnation;
        self.seat = joined.seat;
        self.tick_rate = joined.tick_rate;
        self.views.expect(now);
        self.lost_views.clear();
        for query in self.queries.values_mut() {
            query.sent = false;
        }
        // Acknowledgements may have been lost with the connection: say it once more.
        self.acknowledged = self.received;
        self.acknowledge_at = Some(now + ACK_WITHIN);
        self.inbox.push(Event::Status(Status::Resumed));
        Ok(())
    }

    /// The seat is gone: everybody who waits for something of it is told.
    pub(crate) fn end(&mut self, refusal: &Refusal) {
        if self.ended.is_some() {
            return;
        }
        self.ended = Some(refusal.clone());
        self.traces.clear();
        for call in std::mem::take(&mut self.calls).into_values() {
            answer(call, Err(ClientError::Left(refusal.clone())));
        }
        for query in std::mem::take(&mut self.queries).into_values() {
            answer(query.reply, Err(ClientError::Left(refusal.clone())));
        }
        self.inbox.push(Event::Left(refusal.clone()));
    }

    /// Takes a frame of the kinds with a [`DownHeader`].
    pub(crate) fn handle_down(
        &mut self,
        now: Instant,
        frame: &Bytes,
        stats: &mut Stats,
    ) -> Result<(), Misbehaved> {
        let (header, payload) = DownHeader::split(frame)?;
        self.up.acknowledge(header.ack)?;
        let payload = frame.slice_ref(payload);
        match header.kind {
            kinds::EVENT | kinds::REPLY | kinds::REPLY_REFUSED => {
                if self.accept(now, header.number, stats) {
                    self.take_reliable(&header, payload, stats)?;
                }
            }
            kinds::QUERY_REPLY | kinds::QUERY_REFUSED => {
                // An answer that came twice, or after its query was given up, is of no use.
                if let Some(query) = self.queries.remove(&header.number) {
                    let reply = if header.kind == kinds::QUERY_REPLY {
                        Ok(Reply { number: header.number, tick: header.tick, payload })
                    } else {
                        Err(ClientError::Refused(decode(&payload, Limits::SERVER)?))
                    };
                    answer(query.reply, reply);
                }
            }
            kinds::SEAT_ENDED => self.end(&decode(&payload, Limits::SERVER)?),
            kinds::SEND_AGAIN => {
                stats.sent_again += 1;
                self.up.send_again(now);
            }
            kinds::DOWN_ACK => {}
            // A kind of a newer version.
            _ => stats.unknown_frames += 1,
        }
        Ok(())
    }

    /// Whether a reliable message is new. What comes again is dropped; a gap is counted and told.
    fn accept(&mut self, now: Instant, number: Seq, stats: &mut Stats) -> bool {
        if self.acknowledge_at.is_none() {
            self.acknowledge_at = Some(now + ACK_WITHIN);
        }
        if number <= self.received {
            stats.duplicates_dropped += 1;
            return false;
        }
        let missed = number.0 - self.received.0 - 1;
        if missed > 0 {
            stats.missed += u64::from(missed);
            self.inbox.push(Event::Missed { messages: missed });
        }
        self.received = number;
        if self.received.0 - self.acknowledged.0 >= ACK_AFTER {
            self.acknowledge_at = Some(now);
        }
        true
    }

    fn take_reliable(
        &mut self,
        header: &DownHeader,
        mut payload: Bytes,
        stats: &mut Stats,
    ) -> Result<(), Misbehaved> {
        let DownHeader { kind, number, tick, .. } = *header;
        if kind == kinds::EVENT {
            stats.messages += 1;
            self.inbox.push(Event::Message(inbox::Message { tick, number, payload }));
            return Ok(());
        }
        let Some(of) = payload.split_first_chunk::<4>().map(|(of, _)| Seq(u32::from_le_bytes(*of)))
        else {
            return Err(Misbehaved(eco_format!(
                "reply {number} does not say which call it answers"
            )));
        };
        payload = payload.slice(4..);
        let call = self.calls.remove(&of);
        match (call, kind) {
            (Some(call), kinds::REPLY) => {
                self.traces.answered(of, None);
                answer(call, Ok(Reply { number, tick, payload }));
            }
            (Some(call), _) => {
                let refusal = decode(&payload, Limits::SERVER)?;
                self.traces.answered(of, Some(&refusal));
                answer(call, Err(ClientError::Refused(refusal)));
            }
            (None, kinds::REPLY) => stats.stray_replies += 1,
            (None, _) => {
                let refusal = decode(&payload, Limits::SERVER)?;
                self.inbox.push(Event::Refused { number: of, refusal });
            }
        }
        Ok(())
    }

    /// Takes a patch.
    pub(crate) fn handle_patch(
        &mut self,
        now: Instant,
        frame: &Bytes,
        stats: &mut Stats,
    ) -> Result<(), Misbehaved> {
        let (header, delta) = PatchHeader::split(frame)?;
        stats.patches += 1;
        let outcome = self.views.patch(now, header, frame.slice_ref(delta))?;
        self.view_handled(header.view, outcome, stats);
        Ok(())
    }

    /// Takes a piece of a snapshot.
    pub(crate) fn handle_piece(
        &mut self,
        now: Instant,
        frame: &[u8],
        stats: &mut Stats,
    ) -> Result<(), Misbehaved> {
        let (header, piece) = PieceHeader::split(frame)?;
        let outcome = self.views.piece(now, header, piece)?;
        if outcome != Outcome::Kept {
            stats.snapshots += 1;
        }
        self.view_handled(header.view, outcome, stats);
        Ok(())
    }

    fn view_handled(&mut self, view: ViewId, outcome: Outcome, stats: &mut Stats) {
        let latest = self.views.latest(view).map(|latest| (latest.tick, latest.version));
        match outcome {
            Outcome::Kept => {}
            Outcome::Changed => {
                let Some((tick, version)) = latest else { return };
                stats.states += 1;
                if view == ViewId::SHARED {
                    self.inbox.push(Event::State { tick, version });
                } else if view == ViewId::of_seat(self.seat) {
                    self.inbox.push(Event::PrivateState { tick, version });
                }
            }
            Outcome::Lost(reason) => {
                stats.desyncs += 1;
                tracing::debug!(%view, %reason, "a patch does not fit: asking for a snapshot");
                let version = latest.map_or(0, |(_, version)| version);
                self.lost_views.push(kinds::NeedSnapshot { view: view.0, version, reason });
            }
        }
    }

    /// When [`Self::frames`] has something that it has not now.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        [self.acknowledge_at, self.up.paused_until(), self.views.ask_at()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Everything that is to go up now.
    pub(crate) fn frames(
        &mut self,
        now: Instant,
        channel: Channel,
        traced: &Traced,
        out: &mut Vec<Vec<u8>>,
    ) {
        let ack = self.received;
        let before = out.len();
        for Message { kind, number, payload } in self.up.unsent(now) {
            out.extend(self.traces.before(*number, *kind == kinds::CALL, traced));
            out.push(up(UpHeader { kind: *kind, channel, number: *number, ack }, payload));
        }
        let mut frame = |kind, number, payload: &[u8]| {
            out.push(up(UpHeader { kind, channel, number, ack }, payload));
        };
        for (&number, query) in self.queries.iter_mut().filter(|(_, query)| !query.sent) {
            query.sent = true;
            frame(kinds::QUERY, number, &query.payload);
        }
        for (view, version) in self.views.overdue(now) {
            let reason = "no snapshot came".into();
            self.lost_views.push(kinds::NeedSnapshot { view: view.0, version, reason });
        }
        for need in std::mem::take(&mut self.lost_views) {
            frame(kinds::NEED_SNAPSHOT, Seq(0), &encode(&need));
        }
        if out.len() == before && self.acknowledge_at.is_some_and(|at| at <= now) {
            out.push(UpHeader { kind: kinds::ACK, channel, number: Seq(0), ack }.bytes().into());
        }
        if out.len() > before {
            self.acknowledged = ack;
            self.acknowledge_at = None;
        }
    }
}

/// A frame for the instance.
fn up(header: UpHeader, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(UpHeader::BYTES + payload.len());
    frame.extend_from_slice(&header.bytes());
    frame.extend_from_slice(payload);
    frame
}

/// Gives an answer to who asked, if somebody still waits for it.
pub(crate) fn answer<T>(to: oneshot::Sender<T>, value: T) {
    // Who stopped waiting does not want it.
    drop(to.send(value));
}
