//! One session: its requests, its seats, and what every frame from the server means for them. Decides only: the
//! shell owns the socket and tells the time.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use ecow::eco_format;
use greenroom_protocol::{
    Channel, Code, DecodeError, InstanceFrame, InstanceId, Limits, Refusal, ReplyHeader,
    RequestHeader, RequestId, SessionId,
    wire::{
        Opaque, client_instance as kinds,
        client_session::{
            self, Changes, ClientToSession, Found, GoAway, Join, Joined, Leave, REPLIES, Ranking,
            Reply, Request, SERVER_PING, SERVER_PONG, Seen, SessionServers, SessionToClient,
            Unwatch,
        },
    },
};
use greenroom_telemetry::Span;
use tokio::{sync::oneshot, time::Instant};

use crate::{
    ClientError, Status,
    error::Misbehaved,
    inbox::Event,
    seat::{Answer, Hold, SeatLink, Shared, Work, answer},
    traces::Sampling,
    watch::{WatchHold, WatchKey, WatchLink},
};

/// Requests that may be under way at once.
const UNDER_WAY_MAX: usize = 8;
/// Requests that may wait for one of them to end; more stay with their callers.
const WAITING_MAX: usize = 64;
/// How long an undecided request, or its answer, is kept for somebody who asks again.
pub(crate) const KEPT: Duration = Duration::from_secs(30);
/// Pause before a seat that was refused for a passing reason, or a live search that was forgotten, is asked for again;
/// doubles up to the second figure.
const AGAIN_PAUSE: Duration = Duration::from_millis(100);
const AGAIN_PAUSE_MAX: Duration = Duration::from_secs(2);

/// How long after a reconnect the server may take to tell a live search anew, before it counts as forgotten. The master
/// tells within a tenth of a second; the rest is for a master that is just being replaced.
const ANEW_WITHIN: Duration = Duration::from_secs(5);

/// Kind bytes of requests that change nothing, so that they can be made again on another session: a search, a rank.
const READS: [u8; 2] = [0x15, 0x18];
/// Kind byte of the request that gives a seat up.
const LEAVE: u8 = 0x13;
/// Kind byte of the request that begins a live search.
const WATCH: u8 = 0x16;
/// One acknowledgement of live searches is sent in this time, on the whole: they share the rate of messages that a
/// client may send with what its games are told, and the server merges what changes meanwhile.
const SEEN_EVERY: Duration = Duration::from_millis(50);
/// What may be sent ahead of that: ten at once.
const SEEN_AHEAD: Duration = Duration::from_millis(450);

/// Largest number at which a seat's streams may begin.
const NUMBER_MAX: u32 = 1 << 31;

/// What a request came to.
#[derive(Debug)]
pub(crate) enum Done {
    Created(InstanceId),
    Joined(Hold),
    Left,
    Destroyed,
    Found(Found),
    Watching(WatchHold),
    Unwatched,
    Ranking(Ranking),
}

/// What the application wants of the task.
#[derive(Debug)]
pub(crate) enum Command {
    Request { kind: u8, payload: Vec<u8>, deadline: Instant, reply: oneshot::Sender<Answer<Done>> },
    AskAgain { id: RequestId, deadline: Instant, reply: oneshot::Sender<Answer<Done>> },
}

/// What a frame means for the shell.
#[derive(Debug)]
pub(crate) enum Flow {
    GoOn,
    /// A ping came back: how long it took is for the shell to know.
    Pong(u64),
    Servers(SessionServers),
    GoAway(GoAway),
    Closing(Refusal),
}

/// Whom an answer is for.
#[derive(Debug)]
enum Asker {
    /// The application.
    Caller(oneshot::Sender<Answer<Done>>),
    /// The client itself, to take a seat again on a new connection.
    Rejoin(InstanceId),
    /// The client itself, for a live search that the cluster has forgotten.
    Rewatch(WatchKey),
    /// Nobody: the room's handle was dropped.
    Nobody,
    /// Whoever asks again in time.
    Kept,
}

#[derive(Debug)]
struct Waiting {
    kind: u8,
    payload: Vec<u8>,
    deadline: Instant,
    asker: Asker,
}

#[derive(Debug)]
struct UnderWay {
    kind: u8,
    payload: Vec<u8>,
    /// Of the asker; for a kept one, when it is given up.
    deadline: Instant,
    asker: Asker,
    /// Of a live search that begins. What it has to tell may come before the answer; given up, it is ended.
    watch: Option<WatchHold>,
}

#[derive(Debug)]
struct Late {
    answer: Answer<Done>,
    until: Instant,
}

#[derive(Debug)]
struct Seated {
    link: Arc<SeatLink>,
    /// What its frames carry on this connection; `None` until the seat is taken again.
    channel: Option<Channel>,
    rejoin_at: Option<Instant>,
    rejoin_pause: Duration,
}

/// A live search that is not over.
#[derive(Debug)]
struct Watched {
    link: Arc<WatchLink>,
    /// What was asked, to be asked again.
    payload: Vec<u8>,
    /// Its number at the server, if it may have one there: that of its newest request.
    number: Option<RequestId>,
    standing: Standing,
    /// Before it is asked again.
    pause: Duration,
    /// Asked again, it may be refused until then for what a cluster that has lost its memory finds out in a moment.
    unknown_until: Instant,
}

#[derive(Clone, Copy, Debug)]
enum Standing {
    /// Its request is under way, or waits to be.
    Asked,
    /// It was set up. On a new connection it has to be told anew by this moment, else it is asked again.
    Lives { anew_by: Option<Instant> },
    /// The server has forgotten it, or could not set it up: it is asked again at this moment.
    AskAgain { at: Instant },
}

impl Watched {
    /// When [`Session::time_passed`] has to ask again.
    fn deadline(&self) -> Option<Instant> {
        match self.standing {
            Standing::Asked => None,
            Standing::Lives { anew_by } => anew_by,
            Standing::AskAgain { at } => Some(at),
        }
    }

    /// It is to be asked again after a pause.
    fn ask_again(&mut self, now: Instant) {
        self.standing = Standing::AskAgain { at: now + self.pause };
        self.pause = (self.pause * 2).min(AGAIN_PAUSE_MAX);
    }
}

/// All that the client's task decides with.
#[derive(Debug)]
pub(crate) struct Session {
    shared: Arc<Shared>,
    id: SessionId,
    online: bool,
    seats: BTreeMap<InstanceId, Seated>,
    channels: BTreeMap<Channel, InstanceId>,
    waiting: VecDeque<Waiting>,
    under_way: BTreeMap<RequestId, UnderWay>,
    late: BTreeMap<RequestId, Late>,
    last_request: RequestId,
    /// Seats that are to be taken again before the session counts as resumed.
    resuming: BTreeSet<InstanceId>,
    /// Whether the session the seats are from is the one that goes on.
    same_session: bool,
    /// Rooms whose application does not keep up.
    full: BTreeSet<InstanceId>,
    /// Live searches that are not over.
    watches: BTreeMap<WatchKey, Watched>,
    /// Those that have something to acknowledge, in the order in which they came to have it.
    seen: VecDeque<WatchKey>,
    /// Until when what was acknowledged would have taken, one in each [`SEEN_EVERY`].
    seen_until: Option<Instant>,
    /// Frames to be written.
    out: Vec<Vec<u8>>,
    sampling: Sampling,
    /// Of requests of the application that are sampled.
    spans: BTreeMap<RequestId, Span>,
}

impl Session {
    pub(crate) fn new(shared: Arc<Shared>, id: SessionId) -> Self {
        Self {
            sampling: Sampling::new(&shared.traced.tracer),
            spans: BTreeMap::new(),
            shared,
            id,
            online: false,
            seats: BTreeMap::new(),
            channels: BTreeMap::new(),
            waiting: VecDeque::new(),
            under_way: BTreeMap::new(),
            late: BTreeMap::new(),
            last_request: RequestId(0),
            resuming: BTreeSet::new(),
            same_session: true,
            full: BTreeSet::new(),
            watches: BTreeMap::new(),
            seen: VecDeque::new(),
            seen_until: None,
            out: Vec::new(),
        }
    }

    /// Whether another command can be taken; else it waits with its caller.
    pub(crate) fn takes_commands(&self) -> bool {
        self.waiting.len() < WAITING_MAX
    }

    /// Whether some room's application is behind: then nothing more is to be read.
    pub(crate) fn is_full(&self) -> bool {
        !self.full.is_empty()
    }

    /// Whether every seat is taken again.
    pub(crate) fn is_resumed(&self) -> bool {
        self.resuming.is_empty()
    }

    /// Whether anything is left to do for a client that nobody holds any more.
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.under_way.is_empty()
    }

    /// What is to be written.
    pub(crate) fn take_frames(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.out)
    }

    /// The client is checked in.
    pub(crate) fn connected(&mut self, now: Instant, session: SessionId) {
        self.online = true;
        self.same_session = self.id == session;
        self.id = session;
        if !self.same_session {
            let text = "the session that it belonged to is over: begin another live search";
            self.end_watches(&Refusal::new(Code::SessionExpired, text));
        }
        for watched in self.watches.values_mut() {
            if let Standing::Lives { anew_by } = &mut watched.standing {
                *anew_by = Some(now + ANEW_WITHIN);
            }
        }
        let under_way = std::mem::take(&mut self.under_way);
        for (id, request) in under_way {
            if matches!(request.asker, Asker::Rejoin(_)) {
                continue; // Asked for again below, on this connection.
            }
            if self.same_session || READS.contains(&request.kind) {
                self.under_way.insert(id, request);
            } else {
                // The new session knows nothing of it.
                Self::give(request.asker, Err(ClientError::Undecided { id }));
            }
        }
        let again: Vec<RequestId> = self.under_way.keys().copied().collect();
        for id in again {
            self.write_request(id);
        }
        self.resuming = self.seats.keys().copied().collect();
        for instance in self.resuming.clone() {
            self.rejoin(now, instance);
        }
        self.start_requests();
    }

    /// The connection is gone.
    pub(crate) fn disconnected(&mut self) {
        self.online = false;
        self.out.clear();
        self.channels.clear();
        self.waiting.retain(|request| !matches!(request.asker, Asker::Rejoin(_)));
        for seated in self.seats.values_mut() {
            seated.channel = None;
            seated.rejoin_at = None;
            seated.link.lock().inbox.push(Event::Status(Status::Resuming));
            seated.link.arrived.notify_one();
        }
        self.seen.clear();
        for watched in self.watches.values_mut() {
            watched.link.lock().expect_anew();
            if let Standing::Lives { anew_by } = &mut watched.standing {
                *anew_by = None;
            }
        }
    }

    fn end_watches(&mut self, refusal: &Refusal) {
        for watched in std::mem::take(&mut self.watches).into_values() {
            watched.link.end(refusal);
        }
        self.seen.clear();
    }

    /// The client is closed for good: everybody is told why.
    pub(crate) fn close(&mut self, refusal: &Refusal) {
        let closed = || ClientError::Closed(refusal.clone());
        self.end_watches(refusal);
        for request in std::mem::take(&mut self.waiting) {
            Self::give(request.asker, Err(closed()));
        }
        for request in std::mem::take(&mut self.under_way).into_values() {
            Self::give(request.asker, Err(closed()));
        }
        self.late.clear();
        for seated in std::mem::take(&mut self.seats).into_values() {
            seated.link.lock().end(refusal);
            seated.link.arrived.notify_one();
        }
        self.channels.clear();
        self.full.clear();
    }

    /// Takes what the application wants.
    pub(crate) fn command(&mut self, command: Command) {
        match command {
            Command::Request { kind, payload, deadline, reply } => {
                self.enqueue(Waiting { kind, payload, deadline, asker: Asker::Caller(reply) });
            }
            Command::AskAgain { id, deadline, reply } => self.ask_again(id, deadline, reply),
        }
    }

    fn ask(&mut self, request: &Request, deadline: Instant, asker: Asker) {
        let mut payload = Vec::new();
        request.encode_into(&mut payload);
        self.enqueue(Waiting { kind: request.kind(), payload, deadline, asker });
    }

    fn enqueue(&mut self, waiting: Waiting) {
        if matches!(waiting.asker, Asker::Rejoin(_)) {
            self.waiting.push_front(waiting); // A room that stands still is worse than one not yet begun.
        } else {
            self.waiting.push_back(waiting);
        }
        self.start_requests();
    }

    fn ask_again(
        &mut self,
        id: RequestId,
        deadline: Instant,
        reply: oneshot::Sender<Answer<Done>>,
    ) {
        if let Some(late) = self.late.remove(&id) {
            return answer(reply, late.answer);
        }
        match self.under_way.get_mut(&id) {
            Some(request) if matches!(request.asker, Asker::Kept) => {
                request.asker = Asker::Caller(reply);
                request.deadline = deadline;
                self.write_request(id);
            }
            Some(_) | None => {
                answer(reply, Err(ClientError::NotAsked { id, kept_s: KEPT.as_secs() }));
            }
        }
    }

    fn rejoin(&mut self, now: Instant, instance: InstanceId) {
        if self.is_leaving(instance) {
            return; // Asked for behind the leave, it would be taken again, and nobody would know of it.
        }
        let request = Request::from(Join { instance, options: Opaque::new() });
        self.ask(&request, now + KEPT, Asker::Rejoin(instance));
    }

    /// Whether somebody has asked to give this seat up and has no answer yet.
    fn is_leaving(&self, instance: InstanceId) -> bool {
        let under_way = self.under_way.values().map(|request| (request.kind, &request.payload));
        let waiting = self.waiting.iter().map(|request| (request.kind, &request.payload));
        under_way.chain(waiting).filter(|(kind, _)| *kind == LEAVE).any(|(kind, payload)| {
            let request = Request::decode(kind, payload, Limits::SERVER);
            matches!(request, Ok(Request::Leave(leave)) if leave.instance == instance)
        })
    }

    /// Starts waiting requests while there is room for them.
    fn start_requests(&mut self) {
        while self.online && self.under_way.len() < UNDER_WAY_MAX {
            let Some(Waiting { kind, payload, deadline, asker }) = self.waiting.pop_front() else {
                break;
            };
            if matches!(&asker, Asker::Caller(reply) if reply.is_closed()) {
                continue; // Nobody wants it any more, and nothing was started.
            }
            let id = RequestId(self.last_request.0.wrapping_add(1));
            let watch = if let Asker::Rewatch(key) = asker {
                let Some(watched) = self.watches.get_mut(&key) else { continue };
                watched.number = Some(id);
                None
            } else {
                (kind == WATCH).then(|| self.begin_watch(id, payload.clone(), deadline))
            };
            self.last_request = id;
            if let Asker::Caller(_) = &asker
                && let Some(span) = self.sampling.request(kind)
            {
                // One that was given up may never be answered.
                self.spans.retain(|id, _| self.under_way.contains_key(id));
                self.spans.insert(id, span);
            }
            self.under_way.insert(id, UnderWay { kind, payload, deadline, asker, watch });
            self.write_request(id);
        }
    }

    /// A live search of the application's begins.
    fn begin_watch(&mut self, id: RequestId, payload: Vec<u8>, deadline: Instant) -> WatchHold {
        let key = WatchKey(id);
        let link = Arc::new(WatchLink::new(key, Arc::clone(&self.shared)));
        let watched = Watched {
            link: Arc::clone(&link),
            payload,
            number: Some(id),
            standing: Standing::Asked,
            pause: AGAIN_PAUSE,
            unknown_until: deadline,
        };
        self.watches.insert(key, watched);
        WatchHold(link)
    }

    fn write_request(&mut self, id: RequestId) {
        if !self.online {
            return; // Written when the client is connected again.
        }
        let answered =
            self.under_way.keys().next().map_or(self.last_request, |id| RequestId(id.0 - 1));
        let Some(request) = self.under_way.get(&id) else { return };
        let header = RequestHeader { kind: request.kind, id, answered };
        if let Some(span) = self.spans.get(&id) {
            self.out.extend(self.shared.traced.announcement(span));
        }
        self.out.push([&header.bytes()[..], &request.payload].concat());
    }

    /// Takes a frame.
    pub(crate) fn handle(&mut self, now: Instant, frame: &Bytes) -> Result<Flow, Misbehaved> {
        let Some(&kind) = frame.first() else {
            return Err(Misbehaved("an empty frame".into()));
        };
        if kinds::DOWN.contains(&kind) || kinds::LATEST.contains(&kind) {
            self.handle_seat_frame(now, kind, frame)?;
            return Ok(Flow::GoOn);
        }
        if REPLIES.contains(&kind) {
            let (header, payload) = ReplyHeader::split(frame)?;
            let reply = Reply::decode(kind, payload, Limits::SERVER)?;
            self.handle_reply(now, header.id, reply)?;
            return Ok(Flow::GoOn);
        }
        if kind == SERVER_PING || kind == SERVER_PONG {
            let stamp = frame.get(1..9).and_then(|stamp| stamp.try_into().ok());
            let Some(stamp) = stamp.filter(|_| frame.len() == 9) else {
                return Err(DecodeError::ShortHeader { kind, header: 9, len: frame.len() }.into());
            };
            if kind == SERVER_PONG {
                return Ok(Flow::Pong(u64::from_le_bytes(stamp)));
            }
            let mut pong = vec![client_session::PONG];
            pong.extend_from_slice(&stamp);
            self.out.push(pong);
            return Ok(Flow::GoOn);
        }
        match SessionToClient::decode(kind, &frame[1..], Limits::SERVER)? {
            SessionToClient::Closing(refusal) => Ok(Flow::Closing(refusal)),
            SessionToClient::GoAway(go_away) => Ok(Flow::GoAway(go_away)),
            SessionToClient::SessionServers(servers) => Ok(Flow::Servers(servers)),
            SessionToClient::Rejoined(joined) => {
                check_numbers(&joined)?;
                if self.seats.contains_key(&joined.instance) {
                    self.take_up(now, &joined)?;
                } else {
                    // It was given up meanwhile: nobody would know of it.
                    let leave = Request::from(Leave { instance: joined.instance });
                    self.ask(&leave, now + KEPT, Asker::Nobody);
                }
                Ok(Flow::GoOn)
            }
            SessionToClient::Hello(_) | SessionToClient::CheckedIn(_) => {
                Err(Misbehaved(eco_format!("kind {kind:#04x} comes once, before everything else")))
            }
            SessionToClient::Unknown(_) => {
                self.shared.stats().unknown_frames += 1;
                Ok(Flow::GoOn)
            }
        }
    }

    fn handle_seat_frame(
        &mut self,
        now: Instant,
        kind: u8,
        frame: &Bytes,
    ) -> Result<(), Misbehaved> {
        let channel = InstanceFrame::channel(frame)?;
        // A seat that was just given up may still be spoken to.
        let Some(&instance) = self.channels.get(&channel) else { return Ok(()) };
        let Some(seated) = self.seats.get(&instance) else { return Ok(()) };
        let link = Arc::clone(&seated.link);
        let mut state = link.lock();
        {
            let mut stats = self.shared.stats();
            match kind {
                kinds::PATCH => state.handle_patch(now, frame, &mut stats)?,
                kinds::SNAPSHOT_PIECE => state.handle_piece(now, frame, &mut stats)?,
                kind if kinds::DOWN.contains(&kind) => {
                    state.handle_down(now, frame, &mut stats)?;
                }
                _ => stats.unknown_frames += 1,
            }
        }
        if state.inbox.is_full() {
            state.stalled = true;
            self.full.insert(instance);
        }
        state.frames(now, channel, &self.shared.traced, &mut self.out);
        let ended = state.ended.is_some();
        drop(state);
        link.arrived.notify_one();
        if ended {
            self.forget(instance);
        }
        Ok(())
    }

    fn forget(&mut self, instance: InstanceId) {
        if let Some(channel) = self.seats.remove(&instance).and_then(|seated| seated.channel) {
            self.channels.remove(&channel);
        }
        self.resuming.remove(&instance);
        self.full.remove(&instance);
    }

    fn handle_reply(
        &mut self,
        now: Instant,
        id: RequestId,
        reply: Reply,
    ) -> Result<(), Misbehaved> {
        if id > self.last_request || id.0 == 0 {
            return Err(Misbehaved(eco_format!("request {id} is answered, and was never made")));
        }
        if let Reply::Changes(changes) = reply {
            return self.changes(now, id, changes);
        }
        if let Some(mut span) = self.spans.remove(&id) {
            if let Reply::Refused(refusal) = &reply {
                span.fail(refusal);
            } else if let Reply::Joined(joined) = &reply {
                span.set("greenroom.instance", joined.instance.to_string());
                span.set("greenroom.kind", joined.kind.as_str());
            }
        }
        let Some(request) = self.under_way.remove(&id) else {
            // Given up. If it took a seat, nobody knows of it.
            if let Reply::Joined(joined) = reply
                && !self.seats.contains_key(&joined.instance)
            {
                let leave = Request::from(Leave { instance: joined.instance });
                self.ask(&leave, now + KEPT, Asker::Nobody);
            }
            return Ok(());
        };
        let undecided =
            matches!(&reply, Reply::Refused(refusal) if refusal.code == Code::Undecided);
        if undecided && matches!(request.asker, Asker::Caller(_) | Asker::Kept) {
            let UnderWay { kind, payload, asker, watch, .. } = request;
            // The answer is still to come, for who asks again; until then its number stays taken.
            let (deadline, kept) = (now + KEPT, Asker::Kept);
            let kept = UnderWay { kind, payload, deadline, asker: kept, watch };
            self.under_way.insert(id, kept);
            Self::give(asker, Err(ClientError::Undecided { id }));
            return Ok(());
        }
        if let Asker::Rejoin(instance) = request.asker {
            self.rejoined(now, instance, reply)?;
        } else if let Asker::Rewatch(key) = request.asker {
            self.rewatched(now, key, id, reply)?;
        } else {
            let done = self.done(now, id, reply, request.watch)?;
            if let Asker::Kept = request.asker {
                self.late.insert(id, Late { answer: done, until: request.deadline });
            } else {
                Self::give(request.asker, done);
            }
        }
        self.start_requests();
        Ok(())
    }

    fn done(
        &mut self,
        now: Instant,
        id: RequestId,
        reply: Reply,
        watch: Option<WatchHold>,
    ) -> Result<Answer<Done>, Misbehaved> {
        Ok(match reply {
            Reply::Created(created) => Ok(Done::Created(created.instance)),
            Reply::Joined(joined) => {
                check_numbers(&joined)?;
                self.joined(now, &joined).map(Done::Joined)
            }
            Reply::Left(left) => {
                let refusal = Refusal::new(Code::Left, "the seat was given up");
                if let Some(seated) = self.seats.get(&left.instance) {
                    seated.link.lock().end(&refusal);
                    seated.link.arrived.notify_one();
                }
                self.forget(left.instance);
                Ok(Done::Left)
            }
            Reply::Destroyed(_) => Ok(Done::Destroyed),
            Reply::Found(found) => Ok(Done::Found(found)),
            Reply::Watching(_) => match watch {
                Some(hold) => {
                    if let Some(watched) = self.watches.get_mut(&hold.0.key) {
                        watched.standing = Standing::Lives { anew_by: None };
                    }
                    Ok(Done::Watching(hold))
                }
                None => return Err(Misbehaved(eco_format!("request {id} is no live search"))),
            },
            Reply::Unwatched(_) => Ok(Done::Unwatched),
            Reply::Ranking(ranking) => Ok(Done::Ranking(ranking)),
            Reply::Refused(refusal) => {
                if let Some(hold) = watch
                    && self.watches.remove(&hold.0.key).is_some()
                {
                    hold.0.end(&refusal); // It never was: there is nothing to end.
                }
                Err(ClientError::Refused(refusal))
            }
            Reply::Changes(_) => return Err(Misbehaved("changes are no answer".into())),
            Reply::Unknown(kind) => Err(ClientError::Refused(Refusal::new(
                Code::UnexpectedKind,
                eco_format!(
                    "request {id} is answered with a frame of kind {kind:#04x}, which is of a newer version"
                ),
            ))),
        })
    }

    /// A seat is taken that the application asked for.
    fn joined(&mut self, now: Instant, joined: &Joined) -> Answer<Hold> {
        let instance = joined.instance;
        if self.seats.contains_key(&instance) {
            return Err(ClientError::AlreadyJoined { instance });
        }
        let link = Arc::new(SeatLink::new(joined, Arc::clone(&self.shared)));
        link.lock().views.expect(now);
        self.seats.insert(
            instance,
            Seated {
                link: Arc::clone(&link),
                channel: Some(joined.channel),
                rejoin_at: None,
                rejoin_pause: AGAIN_PAUSE,
            },
        );
        self.channels.insert(joined.channel, instance);
        Ok(Hold(link))
    }

    /// A seat is taken again: on a new connection, or where its instance goes on.
    fn take_up(&mut self, now: Instant, joined: &Joined) -> Result<(), Misbehaved> {
        let Some(seated) = self.seats.get_mut(&joined.instance) else { return Ok(()) };
        let mut state = seated.link.lock();
        state.resume(now, joined, self.same_session)?;
        state.frames(now, joined.channel, &self.shared.traced, &mut self.out);
        drop(state);
        seated.link.arrived.notify_one();
        if let Some(before) = seated.channel.replace(joined.channel) {
            self.channels.remove(&before);
        }
        seated.rejoin_pause = AGAIN_PAUSE;
        self.channels.insert(joined.channel, joined.instance);
        self.resuming.remove(&joined.instance);
        Ok(())
    }

    /// A seat is taken again, or not.
    fn rejoined(
        &mut self,
        now: Instant,
        instance: InstanceId,
        reply: Reply,
    ) -> Result<(), Misbehaved> {
        let Some(seated) = self.seats.get_mut(&instance) else {
            if let Reply::Joined(_) = reply {
                // It was given up meanwhile: nobody would know of it.
                self.ask(&Leave { instance }.into(), now + KEPT, Asker::Nobody);
            }
            return Ok(());
        };
        match reply {
            Reply::Joined(joined) if joined.instance == instance => {
                check_numbers(&joined)?;
                self.take_up(now, &joined)?;
            }
            Reply::Refused(refusal) if passes(&refusal.code) => {
                seated.rejoin_at = Some(now + seated.rejoin_pause);
                seated.rejoin_pause = (seated.rejoin_pause * 2).min(AGAIN_PAUSE_MAX);
            }
            Reply::Refused(refusal) => {
                seated.link.lock().end(&refusal);
                seated.link.arrived.notify_one();
                self.forget(instance);
            }
            Reply::Joined(_)
            | Reply::Created(_)
            | Reply::Left(_)
            | Reply::Destroyed(_)
            | Reply::Found(_)
            | Reply::Watching(_)
            | Reply::Unwatched(_)
            | Reply::Ranking(_)
            | Reply::Changes(_)
            | Reply::Unknown(_) => {
                return Err(Misbehaved(eco_format!("a join of {instance} is answered otherwise")));
            }
        }
        Ok(())
    }

    /// A live search is set up again, or not.
    fn rewatched(
        &mut self,
        now: Instant,
        key: WatchKey,
        id: RequestId,
        reply: Reply,
    ) -> Result<(), Misbehaved> {
        let Some(watched) = self.watches.get_mut(&key) else {
            // Its handle was dropped meanwhile. Where it may have been set up, it is ended.
            let was_not = |refusal: &Refusal| refusal.code != Code::Undecided;
            if !matches!(&reply, Reply::Refused(refusal) if was_not(refusal)) {
                self.ask(&Request::from(Unwatch { watch: id }), now + KEPT, Asker::Nobody);
            }
            return Ok(());
        };
        match reply {
            Reply::Watching(_) => watched.standing = Standing::Lives { anew_by: None },
            Reply::Refused(refusal) => {
                if refusal.code != Code::Undecided {
                    watched.number = None;
                }
                // Until the game servers have said what they run, a master that has just begun knows no kind.
                let is_unknown = matches!(refusal.code, Code::KindUnknown | Code::FieldUnknown);
                if passes(&refusal.code) || (is_unknown && now < watched.unknown_until) {
                    watched.ask_again(now);
                } else {
                    watched.link.end(&refusal);
                    self.watches.remove(&key);
                }
            }
            Reply::Created(_)
            | Reply::Joined(_)
            | Reply::Left(_)
            | Reply::Destroyed(_)
            | Reply::Found(_)
            | Reply::Unwatched(_)
            | Reply::Ranking(_)
            | Reply::Changes(_)
            | Reply::Unknown(_) => {
                return Err(Misbehaved(eco_format!("live search {id} is answered otherwise")));
            }
        }
        Ok(())
    }

    /// A live search has something to tell.
    fn changes(&mut self, now: Instant, id: RequestId, changes: Changes) -> Result<(), Misbehaved> {
        // There are so few of them that looking at each is no work. One that was just ended may still be told of.
        let by_number = self.watches.iter_mut().find(|(_, watched)| watched.number == Some(id));
        let Some((&key, watched)) = by_number else { return Ok(()) };
        let refusal = changes.ended.as_ref();
        if refusal.is_some_and(|refusal| refusal.code == Code::WatchUnknown) {
            // One whose request is under way is set up by the answer to it.
            if let Standing::Lives { .. } = watched.standing {
                watched.number = None;
                watched.unknown_until = now + KEPT;
                watched.ask_again(now);
                watched.link.lock().expect_anew();
            }
            return Ok(());
        }
        if changes.anew {
            watched.pause = AGAIN_PAUSE;
            if let Standing::Lives { anew_by } = &mut watched.standing {
                *anew_by = None;
            }
        }
        watched.link.tell(changes)?;
        if watched.link.lock().is_ended() {
            self.watches.remove(&key);
        }
        Ok(())
    }

    /// Asks for a live search again: the server has forgotten it, or may have.
    fn rewatch(&mut self, now: Instant, key: WatchKey) {
        let Some(watched) = self.watches.get_mut(&key) else { return };
        if let Standing::Lives { .. } = watched.standing {
            watched.unknown_until = now + KEPT;
            watched.link.lock().expect_anew();
        }
        watched.standing = Standing::Asked;
        let payload = watched.payload.clone();
        if let Some(watch) = watched.number.take() {
            // It may live all the same, and there is only room for so many.
            self.ask(&Request::from(Unwatch { watch }), now + KEPT, Asker::Nobody);
        }
        let (deadline, asker) = (now + KEPT, Asker::Rewatch(key));
        self.enqueue(Waiting { kind: WATCH, payload, deadline, asker });
    }

    /// Looks at a live search whose handle called.
    fn work_on_watch(&mut self, now: Instant, key: WatchKey) {
        let Some(watched) = self.watches.get(&key) else { return };
        let mut state = watched.link.lock();
        state.called();
        if state.is_abandoned() {
            drop(state);
            let number = self.watches.remove(&key).and_then(|watched| watched.number);
            // Of one that is under way the answer says whether there is something to end.
            if let Some(watch) = number.filter(|number| !self.under_way.contains_key(number)) {
                self.ask(&Request::from(Unwatch { watch }), now + KEPT, Asker::Nobody);
            }
        } else if state.is_seen() && !self.seen.contains(&key) {
            drop(state);
            self.seen.push_back(key);
            self.acknowledge_changes(now);
        }
    }

    /// Acknowledges what live searches told and the application took, as far as the rate allows.
    fn acknowledge_changes(&mut self, now: Instant) {
        while self.online && self.seen_until.is_none_or(|until| until <= now + SEEN_AHEAD) {
            let Some(key) = self.seen.pop_front() else { break };
            let Some(watched) = self.watches.get(&key) else { continue };
            let n = watched.link.lock().take_seen();
            if let (Some(watch), Some(n)) = (watched.number, n) {
                let message = ClientToSession::from(Seen { watch, n });
                let mut frame = vec![message.kind()];
                message.encode_into(&mut frame);
                self.out.push(frame);
                self.seen_until = Some(self.seen_until.map_or(now, |at| at.max(now)) + SEEN_EVERY);
            }
        }
    }

    /// When the next acknowledgement may be sent, if one waits.
    fn seen_at(&self) -> Option<Instant> {
        let waits = self.online && !self.seen.is_empty();
        let until = self.seen_until.filter(|_| waits)?;
        Some(until.checked_sub(SEEN_AHEAD).unwrap_or(until))
    }

    /// Gives an answer to its asker. A seat that nobody takes is given up, as its [`Hold`] is dropped with the answer.
    fn give(asker: Asker, done: Answer<Done>) {
        if let Asker::Caller(reply) = asker {
            answer(reply, done);
        }
    }

    /// Looks at the rooms that called.
    pub(crate) fn work(&mut self, now: Instant) {
        for work in self.shared.take_work() {
            let instance = match work {
                Work::Seat(instance) => instance,
                Work::Watch(key) => {
                    self.work_on_watch(now, key);
                    continue;
                }
            };
            let Some(seated) = self.seats.get(&instance) else { continue };
            let channel = seated.channel;
            let mut state = seated.link.lock();
            state.called();
            if state.abandoned {
                drop(state);
                self.forget(instance);
                let leave = Request::from(Leave { instance });
                self.ask(&leave, now + KEPT, Asker::Nobody);
                continue;
            }
            if !state.stalled {
                self.full.remove(&instance);
            }
            if let Some(channel) = channel {
                state.frames(now, channel, &self.shared.traced, &mut self.out);
            }
        }
    }

    /// When [`Self::time_passed`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let requests = self.waiting.iter().map(|request| request.deadline);
        let under_way = self.under_way.values().map(|request| request.deadline);
        let late = self.late.values().map(|late| late.until);
        let seats = self.seats.values().filter_map(|seated| match seated.channel {
            Some(_) => seated.link.lock().deadline(),
            None => seated.rejoin_at,
        });
        let watches = self.watches.values().filter_map(Watched::deadline);
        let own = seats.chain(watches).chain(self.seen_at());
        requests.chain(under_way).chain(late).chain(own).min()
    }

    /// Does what is due.
    pub(crate) fn time_passed(&mut self, now: Instant) {
        let (due, waiting) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition::<VecDeque<_>, _>(|request| request.deadline <= now);
        self.waiting = waiting;
        for request in due {
            match request.asker {
                Asker::Rejoin(instance) => self.rejoin(now, instance),
                Asker::Rewatch(key) => self.rewatch(now, key),
                asker @ (Asker::Caller(_) | Asker::Nobody | Asker::Kept) => {
                    Self::give(asker, Err(ClientError::Unavailable));
                }
            }
        }
        let due: Vec<RequestId> = self
            .under_way
            .iter()
            .filter(|(_, request)| request.deadline <= now)
            .map(|(&id, _)| id)
            .collect();
        for id in due {
            self.request_due(now, id);
        }
        self.late.retain(|_, late| late.until > now);
        let mut rejoins = Vec::new();
        for (&instance, seated) in &mut self.seats {
            match seated.channel {
                Some(channel) => {
                    let mut state = seated.link.lock();
                    if state.deadline().is_some_and(|at| at <= now) {
                        state.frames(now, channel, &self.shared.traced, &mut self.out);
                    }
                }
                None if seated.rejoin_at.is_some_and(|at| at <= now) => {
                    seated.rejoin_at = None;
                    rejoins.push(instance);
                }
                None => {}
            }
        }
        for instance in rejoins {
            self.rejoin(now, instance);
        }
        let is_due = |watched: &Watched| watched.deadline().is_some_and(|at| at <= now);
        let due = self.watches.iter().filter(|(_, watched)| is_due(watched)).map(|(&key, _)| key);
        for key in due.collect::<Vec<_>>() {
            self.rewatch(now, key);
        }
        self.acknowledge_changes(now);
        self.start_requests();
    }

    /// A request has no answer by its deadline.
    fn request_due(&mut self, now: Instant, id: RequestId) {
        let Some(mut request) = self.under_way.remove(&id) else { return };
        match std::mem::replace(&mut request.asker, Asker::Kept) {
            caller @ Asker::Caller(_) => {
                request.deadline = now + KEPT;
                self.under_way.insert(id, request);
                Self::give(caller, Err(ClientError::Undecided { id }));
            }
            Asker::Rejoin(instance) => self.rejoin(now, instance),
            Asker::Rewatch(key) if self.watches.contains_key(&key) => self.rewatch(now, key),
            // Its handle was dropped meanwhile, and it may have been set up.
            Asker::Rewatch(_) => {
                self.ask(&Request::from(Unwatch { watch: id }), now + KEPT, Asker::Nobody);
            }
            // Given up: its number counts as answered from here on.
            Asker::Nobody | Asker::Kept => {}
        }
    }
}

/// No seat speaks two thousand million times: larger numbers are nonsense, and would wrap around.
fn check_numbers(joined: &Joined) -> Result<(), Misbehaved> {
    let Joined { instance, up_received, down_next, .. } = joined;
    if (*up_received).max(*down_next) > NUMBER_MAX {
        return Err(Misbehaved(eco_format!(
            "the streams of a seat in {instance} begin at {up_received} and {down_next}"
        )));
    }
    Ok(())
}

/// Whether what was refused may be granted a little later.
fn passes(code: &Code) -> bool {
    matches!(
        code,
        Code::Busy
            | Code::Unavailable
            | Code::Undecided
            | Code::RateLimited
            | Code::Draining
            | Code::NoCapacity
    )
}

#[cfg(test)]
mod tests {
    use greenroom_protocol::{Incarnation, KindName, Seat, encode, search::Filter};
    use greenroom_telemetry::Tracer;
    use proptest::prelude::*;

    use super::*;

    const ARENA: InstanceId = InstanceId(1);

    fn joined(up_received: u32) -> Joined {
        Joined {
            instance: ARENA,
            kind: KindName::new("arena").unwrap(),
            incarnation: Incarnation(1),
            channel: Channel(1),
            seat: Seat(0),
            up_received,
            down_next: 1,
            tick_rate: 20,
        }
    }

    fn reply(id: u32, kind: u8, payload: &[u8]) -> Bytes {
        [&ReplyHeader { kind, id: RequestId(id) }.bytes()[..], payload].concat().into()
    }

    /// A session with one seat on channel 1, and what holds the seat.
    fn seated(now: Instant) -> (Session, Hold) {
        let mut session = Session::new(Arc::new(Shared::new(Tracer::default())), SessionId(1));
        session.connected(now, SessionId(1));
        let (reply_to, mut done) = oneshot::channel();
        session.ask(
            &Request::from(Join { instance: ARENA, options: Opaque::new() }),
            now + KEPT,
            Asker::Caller(reply_to),
        );
        session.handle(now, &reply(1, 0x91, &encode(&joined(0)))).unwrap();
        let Ok(Done::Joined(hold)) = done.try_recv().unwrap() else { panic!("the seat is taken") };
        (session, hold)
    }

    #[test]
    fn streams_that_begin_at_the_end_of_numbers_are_refused() {
        let now = Instant::now();
        let (mut session, _hold) = seated(now);
        session.disconnected();
        session.connected(now, SessionId(2));
        let frame = reply(2, 0x91, &encode(&joined(u32::MAX)));
        let error = session.handle(now, &frame).unwrap_err().to_string();
        assert!(error.contains("begin at 4294967295"), "{error}");
    }

    #[test]
    fn a_seat_that_nobody_waits_for_any_more_is_given_up() {
        let now = Instant::now();
        let (mut session, hold) = seated(now);
        session.take_frames();
        drop(hold);
        session.work(now);
        let frames = session.take_frames();
        assert_eq!(frames.len(), 1);
        assert_eq!(frames[0][0], 0x13);
        assert!(session.seats.is_empty());
    }

    #[test]
    fn acknowledgements_of_live_searches_leave_room_for_what_games_are_told() {
        let now = Instant::now();
        let (mut session, _hold) = seated(now);
        let kind = KindName::new("arena").unwrap();
        let mut holds = Vec::new();
        for id in 2..32 {
            let (reply_to, mut done) = oneshot::channel();
            let watch = client_session::Watch { kind: kind.clone(), filter: Filter::default() };
            session.ask(&Request::from(watch), now + KEPT, Asker::Caller(reply_to));
            session.handle(now, &reply(id, 0x96, &encode(&client_session::Watching {}))).unwrap();
            let Ok(Done::Watching(hold)) = done.try_recv().unwrap() else { panic!("it is begun") };
            holds.push(hold);
        }
        session.take_frames();
        let told = |session: &mut Session, at| {
            session.work(at);
            session.time_passed(at);
            let frames = session.take_frames();
            assert!(frames.iter().all(|frame| frame[0] == 0x05), "{frames:02x?}");
            frames.len()
        };
        let changes =
            Changes { n: 1, anew: true, more: false, instances: vec![], gone: vec![], ended: None };
        for id in 2..32 {
            session.handle(now, &reply(id, 0x99, &encode(&changes))).unwrap();
        }
        for hold in &holds {
            hold.0.take_all();
        }
        let at = |ms| now + Duration::from_millis(ms);
        assert_eq!(told(&mut session, at(0)), 10, "at once");
        assert_eq!(session.deadline(), Some(at(50)));
        assert_eq!(told(&mut session, at(49)), 0);
        assert_eq!(told(&mut session, at(100)), 2);
        // What was told on a connection that is gone is not acknowledged on another.
        session.disconnected();
        session.connected(at(100), SessionId(1));
        session.take_frames();
        assert_eq!(told(&mut session, at(5_000)), 0);
        session.handle(now, &reply(2, 0x99, &encode(&Changes { n: 2, ..changes }))).unwrap();
        holds[0].0.take_all();
        assert_eq!(told(&mut session, at(5_000)), 1);
    }

    /// A session with a live search, whose number is 1, and what holds it.
    fn watching(now: Instant) -> (Session, WatchHold) {
        let mut session = Session::new(Arc::new(Shared::new(Tracer::default())), SessionId(1));
        session.connected(now, SessionId(1));
        let (reply_to, mut done) = oneshot::channel();
        let kind = KindName::new("arena").unwrap();
        let watch = client_session::Watch { kind, filter: Filter::default() };
        session.ask(&Request::from(watch), now + KEPT, Asker::Caller(reply_to));
        session.handle(now, &reply(1, 0x96, &encode(&client_session::Watching {}))).unwrap();
        let Ok(Done::Watching(hold)) = done.try_recv().unwrap() else { panic!("it is begun") };
        session.take_frames();
        (session, hold)
    }

    fn refused(id: u32, code: Code) -> Bytes {
        reply(id, 0x9f, &encode(&Refusal::new(code, "a text")))
    }

    fn forgotten(id: u32) -> Bytes {
        let ended = Some(Refusal::new(Code::WatchUnknown, "ask again"));
        let (instances, gone) = (vec![], vec![]);
        let changes = Changes { n: 0, anew: false, more: false, instances, gone, ended };
        reply(id, 0x99, &encode(&changes))
    }

    /// Lets time pass, and gives the kinds and numbers of the requests that were sent meanwhile.
    fn sent(session: &mut Session, now: Instant) -> Vec<(u8, u32)> {
        session.work(now);
        session.time_passed(now);
        let frames = session.take_frames().into_iter().map(|frame| {
            let (header, _) = RequestHeader::split(&frame).unwrap();
            (header.kind, header.id.0)
        });
        frames.collect()
    }

    #[test]
    fn a_server_that_forgets_again_and_again_is_asked_less_and_less_often() {
        let mut now = Instant::now();
        let (mut session, _hold) = watching(now);
        let mut pauses = Vec::new();
        for id in 1..8 {
            session.handle(now, &forgotten(id)).unwrap();
            // Said twice, it is asked once.
            session.handle(now, &forgotten(id)).unwrap();
            assert_eq!(sent(&mut session, now), []);
            let at = session.deadline().unwrap();
            pauses.push((at - now).as_millis());
            now = at;
            assert_eq!(sent(&mut session, now), [(0x16, id + 1)]);
            session
                .handle(now, &reply(id + 1, 0x96, &encode(&client_session::Watching {})))
                .unwrap();
        }
        assert_eq!(pauses, [100, 200, 400, 800, 1_600, 2_000, 2_000]);
    }

    #[test]
    fn what_a_new_master_does_not_know_yet_is_waited_for_and_then_believed() {
        let mut now = Instant::now();
        let (mut session, hold) = watching(now);
        session.handle(now, &forgotten(1)).unwrap();
        let began = now;
        for id in 2.. {
            now = session.deadline().unwrap();
            assert_eq!(sent(&mut session, now), [(0x16, id)]);
            session.handle(now, &refused(id, Code::KindUnknown)).unwrap();
            if hold.0.lock().is_ended() {
                break;
            }
        }
        assert!((KEPT..KEPT * 2).contains(&(now - began)), "{:?}", now - began);
        assert!(session.watches.is_empty());
        assert_eq!(session.deadline(), None);
    }

    #[test]
    fn a_request_that_is_under_way_is_not_made_twice_by_the_word_that_it_is_forgotten() {
        let now = Instant::now();
        let (mut session, hold) = watching(now);
        session.handle(now, &forgotten(1)).unwrap();
        let later = now + AGAIN_PAUSE;
        assert_eq!(sent(&mut session, later), [(0x16, 2)]);
        // Another master begins, and answers it.
        session.handle(later, &forgotten(2)).unwrap();
        session.disconnected();
        session.connected(later, SessionId(1));
        assert_eq!(sent(&mut session, later), [(0x16, 2)]);
        session.handle(later, &reply(2, 0x96, &encode(&client_session::Watching {}))).unwrap();
        assert_eq!(session.deadline(), None);
        // Undecided, it may be there: it is ended before it is asked again.
        session.handle(later, &forgotten(2)).unwrap();
        let later = session.deadline().unwrap();
        assert_eq!(sent(&mut session, later), [(0x16, 3)]);
        session.handle(later, &refused(3, Code::Undecided)).unwrap();
        let later = session.deadline().unwrap();
        assert_eq!(sent(&mut session, later), [(0x17, 4), (0x16, 5)]);
        // Dropped while it is asked, it is ended once there is something to end.
        drop(hold);
        assert_eq!(sent(&mut session, later), []);
        session.handle(later, &reply(5, 0x96, &encode(&client_session::Watching {}))).unwrap();
        assert_eq!(sent(&mut session, later), [(0x17, 6)]);
    }

    #[test]
    fn what_is_told_anew_in_time_after_a_reconnect_is_not_asked_again() {
        let now = Instant::now();
        let (mut session, _hold) = watching(now);
        session.disconnected();
        session.connected(now, SessionId(1));
        assert_eq!(session.deadline(), Some(now + ANEW_WITHIN));
        let changes =
            Changes { n: 4, anew: true, more: true, instances: vec![], gone: vec![], ended: None };
        session.handle(now, &reply(1, 0x99, &encode(&changes))).unwrap();
        assert_eq!(session.deadline(), None);
        session.disconnected();
        session.connected(now, SessionId(1));
        assert_eq!(sent(&mut session, now + ANEW_WITHIN), [(0x17, 2), (0x16, 3)]);
        // On another session there are none.
        session.disconnected();
        session.connected(now, SessionId(2));
        assert_eq!(sent(&mut session, now + ANEW_WITHIN), []);
    }

    proptest! {
        /// Whatever a server says, the session goes on or says what is wrong; nothing panics.
        #[test]
        fn no_frame_from_a_server_panics(
            frames in proptest::collection::vec(
                (any::<u8>(), 0u8..4, proptest::collection::vec(0u8..4, 0..40), any::<Vec<u8>>()),
                1..20,
            ),
        ) {
            let now = Instant::now();
            let (mut session, hold) = seated(now);
            for (kind, choice, header, payload) in frames {
                // Kinds that reach far, on the channel that is there, with small numbers.
                let kind = match choice {
                    0 => kind,
                    1 => 0xa0 | kind & 0x0f,
                    2 => 0xb0 | kind & 0x01,
                    _ => 0x90 | kind & 0x0f,
                };
                let frame: Bytes = [&[kind, 1, 0, 0, 0], &header[..], &payload].concat().into();
                drop(session.handle(now, &frame));
                drop(hold.0.lock().send(Bytes::from_static(b"x")));
                session.time_passed(now + KEPT);
                while hold.0.lock().inbox.pop().is_some() {}
            }
        }
    }
}
