use std::{collections::BTreeMap, net::IpAddr};

use ecow::{EcoString, eco_format};
use greenroom_protocol::{
    Channel, Code, DownHeader, Epoch, Follow, Generation, HELLO_BYTES_MAX, Inbound, Incarnation,
    InstanceFrame, InstanceId, KindName, LINK_FRAME_BYTES_MAX, Limits, MasterLink, MemberId,
    Moment, Outbound, PROTOCOL_MAX, PROTOCOL_MIN, Refusal, ReplyHeader, RequestHeader, RequestId,
    Seat, Seq, ServerName, SessionId, SessionKey, StampedHeader, Streams, TRACE_FEATURE,
    TraceContext, UpHeader, UserId, Verdict, Word,
    wire::{
        Opaque, client_instance,
        client_session::{
            self, Changes, CheckedIn, ClientHello, ClientToSession, Credentials, GoAway, Joined,
            Reply, Request, ServerHello, SessionServer, SessionServers, SessionToClient, Unwatch,
        },
        session_game::{Attach, AttachRefused, Attached, Detach, GameToSession, SessionToGame},
        session_master::{
            Ask, Bind, Bound, Changed, Fenced, Granted, HeldSession, MasterToSession, Moved,
            Outcome, Received, Resume, Seen, SessionCounts, SessionLoad, SessionReport,
            SessionToMaster, Unbind, Watcher,
        },
    },
};
use smallvec::SmallVec;

use crate::{
    door,
    limits::{Addresses, Bucket, ClientLimits, TooMany, cost},
    slots::Slots,
};

/// Requests that one session may have under way at the master. Small: each waits for its answer, so a longer queue
/// adds latency, not throughput.
const REQUESTS_MAX: usize = 8;
/// Kind byte of a [`Reply::Changes`], which is passed on as it comes.
const CHANGES: u8 = 0x99;
/// How long a client may take from its connection to its check-in.
const CHECK_IN_MS: u64 = 5_000;
/// How long a request may wait for a master that can't be reached before it is refused.
const UNAVAILABLE_MS: u64 = 4_500;
/// How long an unanswered request is remembered: then its client is told, and can ask again with the same number.
const REQUEST_MS: u64 = 30_000;
/// How long a seat may wait for its game server. Shorter than the master's reservation of it.
const ATTACH_MS: u64 = 10_000;
/// How long a seat waits for its instance to go on elsewhere: as long as the master keeps the seat of a session.
const STRANDED_MS: u64 = 120_000;
/// How long the master may take to welcome this server once that has answered it.
const WELCOME_MS: u64 = 5_000;
/// A client that went over its limits is forgiven one strike in this time.
const FORGIVE_MS: u64 = 10_000;
/// Acknowledgements of one session that are kept while it is over its limits, at most: one for each live search.
const LATE_SEEN_MAX: usize = 16;
/// Live searches of one session that are remembered, at most: twice as many as it has at once, since of those that
/// ended by themselves nobody tells.
const WATCHES_MAX: usize = 16;
/// Bytes of one session in a report at most, without its name: the longest user id, and names of fields.
const REPORTED_BYTES: usize = 150;
/// Bytes of a report at most, without its sessions.
const REPORT_BYTES: usize = 64 * 1024;
/// Bytes of a report at most, with its sessions: a quarter of what a frame of the link takes.
const REPORT_BYTES_MAX: usize = LINK_FRAME_BYTES_MAX / 4;
/// Connections of one session server at most: what it reports of them to a new master has to fit one frame of the link.
#[expect(clippy::cast_possible_truncation, reason = "some ten thousands")]
pub const CONNECTIONS_MAX: u32 = ((REPORT_BYTES_MAX - REPORT_BYTES) / REPORTED_BYTES) as u32;

/// The shell's number of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u32);

impl ConnId {
    /// Its place among all connections: no two that are there at once have the same.
    pub const fn place(self) -> usize {
        crate::slots::place(self.0)
    }
}

/// The shell's number of a game server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GameId(pub u32);

/// What the shell has to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Send a frame to a client.
    Client(ConnId, Vec<u8>),
    /// Send what a live search has to tell, as it came, to everybody here who asked it: a frame of this header
    /// and these bytes.
    Changes(Vec<(ConnId, ReplyHeader)>, Opaque),
    /// Close a client's connection once everything for it is sent.
    Close(ConnId, Refusal),
    /// Check credentials, and say so with [`Core::authenticated`].
    Authenticate(ConnId, Credentials),
    /// Send a message to a master.
    Master(MasterLink, StampedHeader, SessionToMaster),
    /// Close the link to a master, and dial it again.
    CloseMaster(MasterLink),
    /// Open a link to a game server, and say so with [`Core::game_linked`] or [`Core::game_unreachable`].
    DialGame(GameId, EcoString),
    /// Send a message to a game server.
    Game(GameId, SessionToGame),
    /// Tell a game server that what comes next of a member is sampled.
    TraceGame(GameId, MemberId, TraceContext),
    /// Something an operator should know.
    Tell(Told),
}

/// What an operator should know.
#[derive(Clone, Debug, PartialEq)]
pub enum Told {
    /// A client checked in.
    CheckedIn(UserId, SessionId),
    /// A client was turned away, and whose it was if it was checked in.
    TurnedAway(ConnId, Option<(UserId, SessionId)>, Refusal),
    /// A master said something in an epoch that is over. Each is told of once in an epoch.
    StaleEpoch(MasterLink, Epoch),
    /// The master at this link decides from here on, in this epoch.
    Follows(MasterLink, Epoch),
    /// The master that decides did not welcome this server in time: its link is closed.
    NotWelcomed(MasterLink),
    /// A message of a version that this build does not know.
    UnknownKind(u8),
    /// A game server can't be reached, and why.
    GameLost(ServerName, EcoString),
}

/// What may be done with a frame that a client sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Charge {
    /// It is within its limits.
    Fine,
    /// It is over them: the frame is refused, the connection goes on.
    Over,
    /// It was over them too often: the connection is closing.
    Closed,
}

/// Where a client's frame for an instance goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Up {
    /// To which game server.
    pub game: GameId,
    /// As which member.
    pub member: MemberId,
    /// The instance has fixed ticks: what it is told waits for the next one anyway.
    pub ticks: bool,
}

/// What the core needs to know of its process.
#[derive(Clone, Debug)]
pub struct CoreConfig {
    /// Its name, which its clients need not be told to go to when it stops.
    pub name: ServerName,
    /// Name and version of the build.
    pub build: EcoString,
    /// Where clients reach it.
    pub urls: Vec<EcoString>,
    /// Connections that it takes at most.
    pub connections_max: u32,
    /// How often each side of a connection says that it is there, in milliseconds.
    pub heartbeat_ms: u32,
    /// What clients may send.
    pub limits: ClientLimits,
    /// Wall clock at [`Moment`] 0, in milliseconds since 1970.
    pub wall_start_ms: u64,
    /// Clients may say that what they send is sampled.
    pub takes_traces: bool,
}

#[derive(Debug)]
struct Connection {
    address: IpAddr,
    since: Moment,
    stage: Stage,
    /// Nothing that it sends matters any more; what it holds is given back when it is gone.
    closing: bool,
    messages: Bucket,
    bytes: Bucket,
    requests: Bucket,
    strikes: u8,
    struck: Moment,
    /// By channel: what is looked up for each frame that goes up.
    seats: SmallVec<[(Channel, Up); 1]>,
    asked: Vec<Asked>,
}

#[derive(Debug)]
enum Stage {
    Fresh,
    Greeted,
    Checking(Box<client_session::CheckIn>, Option<TraceContext>),
    Binding(Box<Bind>),
    In(Box<Held>),
}

#[derive(Debug)]
struct Held {
    session: SessionId,
    generation: Generation,
    user: UserId,
    name: EcoString,
    /// The client's secret of the session: a master that has lost its memory gets it back from here.
    session_key: SessionKey,
    /// The newest acknowledgement of each live search that came while its client was over its limits. Dropped, it would
    /// leave the live search without a word for ever.
    late_seen: Vec<client_session::Seen>,
    /// Its live searches, as far as they passed here, the one that was heard of last at the end: a master that has lost
    /// its memory tells nothing of them any more, and their client has to know.
    watches: Vec<RequestId>,
}

impl Held {
    /// A live search was set up, or has something to tell.
    fn watches(&mut self, watch: RequestId) {
        if self.watches.last() == Some(&watch) {
            return;
        }
        match self.watches.iter().position(|&known| known == watch) {
            Some(at) => self.watches[at..].rotate_left(1),
            None => {
                if self.watches.len() == WATCHES_MAX {
                    self.watches.remove(0);
                }
                self.watches.push(watch);
            }
        }
    }
}

#[derive(Debug)]
struct Asked {
    ask: Ask,
    at: Moment,
    sent: bool,
    /// For the game's `admit`, when the seat is granted.
    options: Opaque,
}

/// The requests that wait for a seat, and since when.
type Joining = SmallVec<[(RequestId, Moment); 1]>;

#[derive(Debug)]
struct Member {
    conn: ConnId,
    channel: Channel,
    game: GameId,
    seat: Seat,
    options: Opaque,
    joining: Joining,
    attached: bool,
    /// Of the request that it is seated for.
    trace: Option<TraceContext>,
    /// Its instance goes on elsewhere when the game server is lost: it waits for the master's word.
    durable: bool,
    /// Since when it waits so.
    stranded: Option<Moment>,
    /// It follows its instance into another life, and its client knows it by this channel still.
    rejoins: Option<Channel>,
    /// Number of the last reliable message that went down on this attachment.
    down: Seq,
}

#[derive(Debug)]
struct Place {
    instance: InstanceId,
    incarnation: Incarnation,
    kind: KindName,
    /// Who gets what the instance sends to all.
    attached: Vec<(MemberId, ConnId)>,
    /// Attached or not.
    members: u32,
}

#[derive(Debug)]
struct Game {
    name: ServerName,
    address: EcoString,
    /// The life of it that our members are attached to.
    incarnation: Option<Incarnation>,
    link: GameLink,
}

#[derive(Debug, PartialEq, Eq)]
enum GameLink {
    Dialling,
    Open,
    /// It can't be reached, and somebody waits for where an instance of it goes on. It is dialled now and then: it may
    /// be this server alone that does not reach it.
    Lost,
}

impl Connection {
    fn held_mut(&mut self) -> Option<&mut Held> {
        match &mut self.stage {
            Stage::In(held) => Some(held),
            Stage::Fresh | Stage::Greeted | Stage::Checking(..) | Stage::Binding(_) => None,
        }
    }

    fn held(&self) -> Option<&Held> {
        match &self.stage {
            Stage::In(held) => Some(held),
            Stage::Fresh | Stage::Greeted | Stage::Checking(..) | Stage::Binding(_) => None,
        }
    }
}

/// The whole state of a session server.
#[derive(Debug)]
pub struct Core {
    config: CoreConfig,
    conns: Slots<Connection>,
    members: Slots<Member>,
    channels: Slots<Place>,
    by_instance: BTreeMap<(InstanceId, Incarnation), Channel>,
    games: Slots<Game>,
    by_name: BTreeMap<ServerName, GameId>,
    by_session: BTreeMap<SessionId, ConnId>,
    binding: BTreeMap<u64, ConnId>,
    binds: u64,
    addresses: Addresses,
    servers: Vec<SessionServer>,
    follow: Follow,
    /// When the master that is followed was answered.
    answered: Moment,
    to_master: Outbound<SessionToMaster>,
    /// What was pushed up to this number is part of the last report.
    reported: u64,
    from_master: Inbound,
    draining: bool,
    /// Of the frame that is being worked on.
    trace: Option<TraceContext>,
    /// When time passed last.
    ticked: Moment,
    counts: SessionCounts,
}

type Out = Vec<Output>;

impl Core {
    /// A session server that nobody is connected to.
    pub fn new(config: CoreConfig) -> Self {
        Self {
            config,
            conns: Slots::default(),
            members: Slots::default(),
            channels: Slots::default(),
            by_instance: BTreeMap::new(),
            games: Slots::default(),
            by_name: BTreeMap::new(),
            by_session: BTreeMap::new(),
            binding: BTreeMap::new(),
            binds: 0,
            addresses: Addresses::default(),
            servers: Vec::new(),
            follow: Follow::default(),
            answered: Moment(0),
            to_master: Outbound::default(),
            reported: 0,
            from_master: Inbound::default(),
            draining: false,
            trace: None,
            ticked: Moment(0),
            counts: SessionCounts::default(),
        }
    }

    // Clients ----------------------------------------------------------------------------------------------------

    /// A client has connected.
    ///
    /// # Errors
    /// A refusal, to be sent before the socket is closed.
    pub fn connect(&mut self, now: Moment, address: IpAddr) -> Result<ConnId, Refusal> {
        if self.draining {
            return Err(Refusal::new(
                Code::Draining,
                "this session server is stopping: use another of the list",
            ));
        }
        if self.conns.len() >= self.config.connections_max as usize {
            return Err(Refusal::new(
                Code::Busy,
                "this session server is full: use another of the list",
            ));
        }
        if let Err(too_many) = self.addresses.connect(address, now, &self.config.limits) {
            let text = match too_many {
                TooMany::Open => "too many open connections from this address: close some",
                TooMany::AtOnce => "too many new connections from this address: wait some seconds",
                TooMany::Addresses => "this session server is full: use another of the list",
            };
            return Err(Refusal::new(Code::RateLimited, text));
        }
        let full = Bucket::new(now);
        let connection = Connection {
            address,
            since: now,
            stage: Stage::Fresh,
            closing: false,
            messages: full,
            bytes: full,
            requests: full,
            strikes: 0,
            struck: now,
            seats: SmallVec::new(),
            asked: Vec::new(),
        };
        match self.conns.insert(connection) {
            Ok(number) => Ok(ConnId(number)),
            Err(connection) => {
                self.addresses.disconnect(connection.address);
                Err(Refusal::new(
                    Code::Busy,
                    "this session server is full: use another of the list",
                ))
            }
        }
    }

    /// Whether a connection is being closed, or gone: it may have been while its stream was still opening.
    pub fn is_closing(&self, conn: ConnId) -> bool {
        self.conns.get(conn.0).is_none_or(|connection| connection.closing)
    }

    /// Longest frame that this client may send now.
    pub fn frame_max(&self, conn: ConnId) -> usize {
        match self.conns.get(conn.0).map(|connection| &connection.stage) {
            Some(Stage::In(_)) => greenroom_protocol::CLIENT_FRAME_BYTES_MAX,
            _ => HELLO_BYTES_MAX,
        }
    }

    /// Counts a frame of `bytes` bytes against what this client may send.
    #[inline]
    pub fn charge(&mut self, now: Moment, conn: ConnId, bytes: usize, out: &mut Out) -> Charge {
        let limits = &self.config.limits;
        let Some(connection) = self.conns.get_mut(conn.0) else { return Charge::Closed };
        let size = u32::try_from(bytes).unwrap_or(u32::MAX);
        // A burst holds the longest frame: else a client could never send it.
        let (rate, byte_rate) = (limits.messages_per_second, limits.bytes_per_second);
        let byte_burst = byte_rate.saturating_mul(2).max(2 * 64 * 1024);
        if connection.messages.take(now, 1, rate, rate.saturating_mul(2))
            && connection.bytes.take(now, size, byte_rate, byte_burst)
        {
            return Charge::Fine;
        }
        self.strike(now, conn, out)
    }

    fn strike(&mut self, now: Moment, conn: ConnId, out: &mut Out) -> Charge {
        let limits = self.config.limits;
        let Some(connection) = self.conns.get_mut(conn.0) else { return Charge::Closed };
        let elapsed = now.0.saturating_sub(connection.struck.0);
        if elapsed < 1_000 && connection.strikes > 0 {
            // One burst is one strike, however many frames it has.
            return Charge::Over;
        }
        let forgiven = u8::try_from(elapsed / FORGIVE_MS).unwrap_or(u8::MAX);
        connection.strikes = connection.strikes.saturating_sub(forgiven) + 1;
        connection.struck = now;
        if connection.strikes <= limits.strikes_max {
            return Charge::Over;
        }
        let text = eco_format!(
            "more than {} messages or {} bytes a second, {} times: send less often, or several things in one message",
            limits.messages_per_second,
            limits.bytes_per_second,
            connection.strikes
        );
        self.close(conn, Refusal::new(Code::RateLimited, text), out);
        Charge::Closed
    }

    /// Where a client is.
    pub fn address_of(&self, conn: ConnId) -> Option<IpAddr> {
        Some(self.conns.get(conn.0)?.address)
    }

    /// Whose a connection is; nothing before its client has checked in.
    pub fn holder_of(&self, conn: ConnId) -> Option<(UserId, SessionId)> {
        let held = self.conns.get(conn.0)?.held()?;
        Some((held.user.clone(), held.session))
    }

    /// A frame was over its client's limits and is not worked on: its client is told so in the form that the frame
    /// wants, so that it can send it again.
    pub fn over_limits(&mut self, conn: ConnId, frame: &[u8], out: &mut Out) {
        let text = "over the limit of messages or bytes a second: send it again, slower";
        let kind = frame.first().copied().unwrap_or(0);
        if client_instance::UP.contains(&kind) {
            match UpHeader::split(frame) {
                // It is not kept by its client: it gets an answer of its own.
                Ok((header, _)) if kind == client_instance::QUERY => {
                    let (kind, ack) = (client_instance::QUERY_REFUSED, Seq(0));
                    let UpHeader { channel, number, .. } = header;
                    let mut frame =
                        DownHeader { kind, channel, number, ack, tick: 0 }.bytes().to_vec();
                    let refusal = Refusal::new(Code::RateLimited, text);
                    greenroom_protocol::encode_into(&refusal, &mut frame);
                    out.push(Output::Client(conn, frame));
                }
                Ok((header, _)) => {
                    self.send_again(conn, header.channel, Code::RateLimited, text, out)
                }
                // Too short to be answered, and it goes nowhere.
                Err(_) => {}
            }
        } else if let Ok((header, _)) = RequestHeader::split(frame)
            && client_session::REQUESTS.contains(&kind)
        {
            out.push(reply(
                conn,
                header.id,
                &Reply::Refused(Refusal::new(Code::RateLimited, text)),
            ));
        } else if let Ok(ClientToSession::Seen(seen)) =
            ClientToSession::decode(kind, frame.get(1..).unwrap_or_default(), Limits::CLIENT)
        {
            self.late_seen(conn, seen);
        }
    }

    /// Keeps an acknowledgement that is over its client's limits, until the next [`Self::tick`].
    fn late_seen(&mut self, conn: ConnId, seen: client_session::Seen) {
        let Some(Connection { stage: Stage::In(held), .. }) = self.conns.get_mut(conn.0) else {
            return;
        };
        let late = &mut held.late_seen;
        if let Some(known) = late.iter_mut().find(|known| known.watch == seen.watch) {
            *known = seen;
        } else if late.len() < LATE_SEEN_MAX {
            late.push(seen);
        }
    }

    /// Where a client's frame for the instance on `channel` goes; `None` if the client has no seat there.
    #[inline]
    pub fn route_up(&self, conn: ConnId, channel: Channel) -> Option<Up> {
        let seats = &self.conns.get(conn.0)?.seats;
        seats.iter().find(|(of, _)| *of == channel).map(|&(_, up)| up)
    }

    /// The connection of a member, to which this frame of its instance goes. The number of a reliable message is
    /// looked at on the way: this is the last place before the client, and what is in order here stays so.
    #[inline]
    pub fn down(&mut self, member: MemberId, frame: &[u8]) -> Option<ConnId> {
        let member = self.members.get_mut(member.0)?;
        let is_reliable = matches!(
            frame.first(),
            Some(
                &(client_instance::EVENT | client_instance::REPLY | client_instance::REPLY_REFUSED)
            )
        );
        if is_reliable && let Ok((DownHeader { number, .. }, _)) = DownHeader::split(frame) {
            if number == member.down.next() {
                member.down = number;
            } else {
                self.counts.irregular(&mut member.down, number);
            }
        }
        Some(member.conn)
    }

    /// Who gets what an instance sends to all.
    #[inline]
    pub fn audience(&self, channel: Channel) -> &[(MemberId, ConnId)] {
        self.channels.get(channel.0).map_or(&[], |place| &place.attached)
    }

    /// The game server of a member.
    pub fn game_of(&self, member: MemberId) -> Option<GameId> {
        Some(self.members.get(member.0)?.game)
    }

    /// As [`Self::frame`], for one that is sampled: what it leads to carries the trace.
    pub fn traced_frame(
        &mut self,
        now: Moment,
        conn: ConnId,
        frame: &[u8],
        trace: TraceContext,
        out: &mut Out,
    ) {
        self.trace = Some(trace);
        self.frame(now, conn, frame, out);
        self.trace = None;
    }

    /// A client sent a frame that is not for an instance.
    pub fn frame(&mut self, now: Moment, conn: ConnId, frame: &[u8], out: &mut Out) {
        let Some(connection) = self.conns.get(conn.0).filter(|connection| !connection.closing)
        else {
            return;
        };
        let Some((&kind, payload)) = frame.split_first() else { return };
        match (&connection.stage, kind) {
            (_, client_session::PONG) => {}
            (_, client_session::PING) => {
                out.push(Output::Client(
                    conn,
                    [&[client_session::SERVER_PONG], &payload[..payload.len().min(8)]].concat(),
                ));
            }
            (Stage::Fresh | Stage::Greeted, _) => self.before_check_in(conn, kind, payload, out),
            (Stage::In(_), kind) if client_session::REQUESTS.contains(&kind) => {
                self.request(now, conn, frame, out)
            }
            (Stage::In(_), kind) if client_instance::UP.contains(&kind) => {
                match InstanceFrame::channel(frame) {
                    Ok(channel) if self.rejoining(conn, channel).is_some() => {
                        let text = "the instance goes on elsewhere in a moment: send it again";
                        self.send_again(conn, channel, Code::Busy, text, out);
                    }
                    // Most likely the seat has just ended, and this was under way already.
                    Ok(channel) => {
                        let text =
                            "no seat on this channel, or not any more: join an instance first";
                        let refusal = Refusal::new(Code::NotSeated, text);
                        out.push(to_seat(conn, client_instance::SEAT_ENDED, channel, &refusal));
                    }
                    Err(error) => self.close(conn, error.into(), out),
                }
            }
            (Stage::Checking(..) | Stage::Binding(_), _) => {
                let refusal =
                    Refusal::new(Code::NotCheckedIn, "wait for the answer to the check-in");
                self.close(conn, refusal, out);
            }
            (Stage::In(held), _) => {
                let session = held.session;
                self.after_check_in(conn, session, kind, payload, out);
            }
        }
    }

    fn before_check_in(&mut self, conn: ConnId, kind: u8, payload: &[u8], out: &mut Out) {
        let Some(connection) = self.conns.get_mut(conn.0) else { return };
        match (&connection.stage, ClientToSession::decode(kind, payload, Limits::CLIENT)) {
            (Stage::Fresh, Ok(ClientToSession::Hello(hello))) => {
                if let Some(refusal) = version_refusal(&hello) {
                    return self.close(conn, refusal, out);
                }
                connection.stage = Stage::Greeted;
                let wants_trace = hello.features.iter().any(|feature| feature == TRACE_FEATURE);
                let features =
                    (wants_trace && self.config.takes_traces).then(|| TRACE_FEATURE.into());
                let answer = SessionToClient::Hello(ServerHello {
                    protocol: hello.protocol_max.min(PROTOCOL_MAX),
                    features: features.into_iter().collect(),
                    agent: self.config.build.clone(),
                    heartbeat_ms: self.config.heartbeat_ms,
                });
                out.push(control(conn, &answer));
            }
            (Stage::Greeted, Ok(ClientToSession::CheckIn(check_in))) => {
                out.push(Output::Authenticate(conn, check_in.credentials.clone()));
                connection.stage = Stage::Checking(Box::new(check_in), self.trace);
            }
            (_, Err(error)) => self.close(conn, error.into(), out),
            (_, Ok(ClientToSession::Hello(_))) => {
                self.close(
                    conn,
                    Refusal::new(Code::UnexpectedKind, "a second hello: one opens a conversation"),
                    out,
                );
            }
            (
                _,
                Ok(
                    ClientToSession::CheckIn(_)
                    | ClientToSession::Seen(_)
                    | ClientToSession::Unknown(_),
                ),
            ) => {
                let text = eco_format!(
                    "a frame of kind {kind:#04x} before check-in: first a hello (0x01), then a check-in (0x02)"
                );
                self.close(conn, Refusal::new(Code::NotCheckedIn, text), out);
            }
        }
    }

    /// A frame that is neither a request nor for an instance.
    fn after_check_in(
        &mut self,
        conn: ConnId,
        session: SessionId,
        kind: u8,
        payload: &[u8],
        out: &mut Out,
    ) {
        match ClientToSession::decode(kind, payload, Limits::CLIENT) {
            // Without a master it goes nowhere: over a new link everything is told anew.
            Ok(ClientToSession::Seen(client_session::Seen { watch, n })) => {
                self.say(0, Seen { session, watch, n }.into(), out);
            }
            Ok(
                ClientToSession::Hello(_)
                | ClientToSession::CheckIn(_)
                | ClientToSession::Unknown(_),
            ) => {
                let text = eco_format!("a frame of kind {kind:#04x} has no place after check-in");
                self.close(conn, Refusal::new(Code::UnexpectedKind, text), out);
            }
            Err(error) => self.close(conn, error.into(), out),
        }
    }

    /// Credentials were checked.
    pub fn authenticated(
        &mut self,
        now: Moment,
        conn: ConnId,
        result: Result<(UserId, EcoString), Refusal>,
        out: &mut Out,
    ) {
        let Some(connection) = self.conns.get(conn.0).filter(|connection| !connection.closing)
        else {
            return;
        };
        let Stage::Checking(check_in, trace) = &connection.stage else { return };
        match result {
            Err(refusal) => self.close(conn, refusal, out),
            Ok((user, name)) => {
                self.binds += 1;
                let (number, session_key) = (self.binds, check_in.session_key);
                let bind = Bind { number, session_key, user, name, trace: *trace };
                self.binding.insert(bind.number, conn);
                self.say(0, bind.clone().into(), out);
                if let Some(connection) = self.conns.get_mut(conn.0) {
                    // Its own part is done: from here on the master's time counts.
                    connection.since = now;
                    connection.stage = Stage::Binding(Box::new(bind));
                }
            }
        }
    }

    fn request(&mut self, now: Moment, conn: ConnId, frame: &[u8], out: &mut Out) {
        let (header, payload) = match RequestHeader::split(frame) {
            Ok(split) => split,
            Err(error) => return self.close(conn, error.into(), out),
        };
        let refuse =
            |code, text: &str| reply(conn, header.id, &Reply::Refused(Refusal::new(code, text)));
        let request = match Request::decode(header.kind, payload, Limits::CLIENT) {
            Ok(Request::Unknown(kind)) => {
                let text = format!("this version knows no request of kind {kind:#04x}");
                return out.push(refuse(Code::UnexpectedKind, &text));
            }
            Ok(request) => request,
            Err(error) => {
                let Refusal { code, message } = door::not_decoded(header.kind, &error);
                return out.push(refuse(code, &message));
            }
        };
        if let Err(Refusal { code, message }) = door::check(&request) {
            return out.push(refuse(code, &message));
        }
        let limits = self.config.limits;
        let Some(connection) = self.conns.get_mut(conn.0) else { return };
        let Stage::In(held) = &connection.stage else { return };
        let repeated = connection.asked.iter().position(|asked| asked.ask.id == header.id);
        if repeated.is_none() && connection.asked.len() >= REQUESTS_MAX {
            return out.push(refuse(Code::Busy, "8 requests are under way: wait for an answer"));
        }
        let rate = limits.requests_per_second;
        if !connection.requests.take(now, cost(&request), rate, rate.saturating_mul(4)) {
            return out.push(refuse(Code::RateLimited, "too many requests: wait a second"));
        }
        let options = match request {
            Request::Join(join) => join.options,
            Request::JoinOrCreate(join) => join.options,
            Request::Create(_)
            | Request::Leave(_)
            | Request::Destroy(_)
            | Request::Search(_)
            | Request::Watch(_)
            | Request::Unwatch(_)
            | Request::Rank(_)
            | Request::Unknown(_) => Opaque::new(),
        };
        let ask = Ask {
            session: held.session,
            id: header.id,
            answered: header.answered,
            kind: header.kind,
            request: Opaque::from(payload.to_vec()),
            trace: self.trace,
        };
        let asked = Asked { ask: ask.clone(), at: now, sent: self.follow.is_welcomed(), options };
        match repeated {
            Some(at) => connection.asked[at] = asked,
            None => connection.asked.push(asked),
        }
        self.say(0, ask.into(), out);
    }

    /// A client's connection is gone, whoever closed it.
    pub fn disconnect(&mut self, conn: ConnId, out: &mut Out) {
        let Some(connection) = self.conns.remove(conn.0) else { return };
        self.addresses.disconnect(connection.address);
        for (_, Up { member, game, .. }) in connection.seats {
            self.forget(member);
            if self.is_linked(game) {
                out.push(Output::Game(game, SessionToGame::Detach(Detach { member })));
            }
        }
        match connection.stage {
            Stage::In(held) => {
                if self.by_session.get(&held.session) == Some(&conn) {
                    self.by_session.remove(&held.session);
                }
                let unbind = Unbind { session: held.session, generation: held.generation };
                self.stream(unbind.into(), out);
            }
            Stage::Binding(bind) => {
                self.binding.remove(&bind.number);
            }
            Stage::Fresh | Stage::Greeted | Stage::Checking(..) => {}
        }
    }

    /// Ends a connection: its client is told why.
    pub fn close(&mut self, conn: ConnId, refusal: Refusal, out: &mut Out) {
        let Some(connection) = self.conns.get_mut(conn.0) else { return };
        if std::mem::replace(&mut connection.closing, true) {
            return;
        }
        let holder = connection.held().map(|held| (held.user.clone(), held.session));
        out.push(Output::Tell(Told::TurnedAway(conn, holder, refusal.clone())));
        out.push(control(conn, &SessionToClient::Closing(refusal.clone())));
        out.push(Output::Close(conn, refusal));
    }

    // The master -------------------------------------------------------------------------------------------------

    /// Says something to the master, if one is followed: what must not be lost is said again when one says welcome.
    fn say(&self, n: u64, message: SessionToMaster, out: &mut Out) {
        if let Some(link) = self.follow.link().filter(|_| self.follow.is_welcomed()) {
            out.push(Output::Master(link, self.stamp(n), message));
        }
    }

    /// Says something in the stream.
    fn stream(&mut self, message: SessionToMaster, out: &mut Out) {
        let n = self.to_master.push(message.clone());
        self.say(n, message, out);
    }

    /// What this server is and whom it has.
    fn report(&self) -> SessionReport {
        let held = || self.conns.iter().filter_map(|(_, connection)| connection.held());
        let bytes: usize = held().map(|held| REPORTED_BYTES + held.name.len()).sum();
        // A report is one frame. What would make it too long is what can be done without: a name comes again with the
        // next check-in.
        let named = bytes <= REPORT_BYTES_MAX - REPORT_BYTES;
        let sessions = held()
            .map(|held| HeldSession {
                session: held.session,
                generation: held.generation,
                user: held.user.clone(),
                session_key: held.session_key,
                name: if named { held.name.clone() } else { EcoString::new() },
            })
            .collect();
        SessionReport {
            urls: self.config.urls.clone(),
            build: self.config.build.clone(),
            connections_max: self.config.connections_max,
            sessions,
        }
    }

    /// The link to a master is gone. While none is followed, nothing is said: it waits.
    pub fn master_lost(&mut self, link: MasterLink) {
        self.follow.lost(link);
    }

    /// A master said something over its link. Nothing is said to a master before it has said that it decides.
    pub fn from_master(
        &mut self,
        now: Moment,
        link: MasterLink,
        header: StampedHeader,
        message: MasterToSession,
        out: &mut Out,
    ) {
        match self.follow.hear(link, header.epoch, Word::from(&message)) {
            Verdict::Report => {
                self.reported = self.to_master.last();
                let report = self.report();
                self.follows(now, link, report.into(), out);
            }
            Verdict::Resume => {
                self.reported = 0;
                self.follows(now, link, Resume {}.into(), out);
            }
            Verdict::Welcome(streams) => self.welcome(streams, out),
            Verdict::Take => self.take(now, header.n, message, out),
            Verdict::Drop | Verdict::Deposed => {}
            Verdict::Fence => {
                out.push(Output::Tell(Told::StaleEpoch(link, header.epoch)));
                out.push(Output::Master(link, self.stamp(0), Fenced {}.into()));
            }
        }
    }

    /// Answers a master that says that it decides.
    fn follows(&mut self, now: Moment, link: MasterLink, answer: SessionToMaster, out: &mut Out) {
        self.answered = now;
        out.push(Output::Tell(Told::Follows(link, self.follow.epoch())));
        out.push(Output::Master(link, self.stamp(0), answer));
    }

    fn take(&mut self, now: Moment, n: u64, message: MasterToSession, out: &mut Out) {
        if n == 0 {
            return self.hear(now, message, out);
        }
        if self.from_master.accept(n) {
            self.hear(now, message, out);
        }
        // Also for what comes again: the acknowledgement of before was lost with its link.
        self.say(0, Received { n: self.from_master.received() }.into(), out);
    }

    fn hear(&mut self, now: Moment, message: MasterToSession, out: &mut Out) {
        match message {
            MasterToSession::NewEpoch(_) | MasterToSession::Welcome(_) => {
                unreachable!("they tell whom to follow, and were handled with that")
            }
            MasterToSession::Bound(bound) => self.bound(now, bound, out),
            MasterToSession::BindRefused(refused) => {
                if let Some(conn) = self.binding.remove(&refused.number) {
                    self.close(conn, refused.refusal, out);
                }
            }
            MasterToSession::Answer(answer) => {
                let Some(&conn) = self.by_session.get(&answer.session) else { return };
                let Some(connection) = self.conns.get_mut(conn.0) else { return };
                let Some(at) = connection.asked.iter().position(|asked| asked.ask.id == answer.id)
                else {
                    return;
                };
                let asked = connection.asked.remove(at);
                self.answer(now, conn, asked, answer.outcome, out);
            }
            MasterToSession::EndSession(end) => {
                if let Some(&conn) = self.by_session.get(&end.session) {
                    let held = self.conns.get(conn.0).and_then(Connection::held);
                    if held.is_some_and(|held| held.generation <= end.generation) {
                        self.close(conn, end.refusal, out);
                    }
                }
            }
            MasterToSession::SessionServers(list) => self.session_servers(list, out),
            MasterToSession::Moved(moved) => self.moved(moved, out),
            MasterToSession::SeatLost(lost) => {
                if let Some((_, member)) = self.seat_in(lost.session, lost.instance) {
                    self.end(member, &lost.refusal, out);
                }
            }
            MasterToSession::Changed(changed) => self.changed(changed, out),
            MasterToSession::Received(received) => self.to_master.acknowledge(received.n),
            MasterToSession::Unknown(kind) => out.push(Output::Tell(Told::UnknownKind(kind))),
        }
    }

    /// The master is there: what it has not answered is said again.
    fn welcome(&mut self, streams: Streams, out: &mut Out) {
        match streams {
            Streams::GoOn => {}
            Streams::First => self.begin_streams(),
            // A standby that takes over knows what the active knew. This one knows only what was reported.
            Streams::Anew => {
                self.forget_watches(out);
                self.begin_streams();
            }
        }
        for (n, message) in self.to_master.unacknowledged() {
            self.say(n, message.clone(), out);
        }
        for conn in self.binding.values() {
            if let Some(Connection { stage: Stage::Binding(bind), .. }) = self.conns.get(conn.0) {
                self.say(0, (**bind).clone().into(), out);
            }
        }
        let asking: Vec<_> = self.by_session.values().copied().collect();
        for conn in asking {
            let Some(connection) = self.conns.get_mut(conn.0) else { continue };
            connection.asked.iter_mut().for_each(|asked| asked.sent = true);
            let Some(connection) = self.conns.get(conn.0) else { continue };
            for asked in &connection.asked {
                self.say(0, asked.ask.clone().into(), out);
            }
        }
    }

    /// Both streams are new. Unbinds of before the report are part of it; those of after it are not, and were numbered
    /// for the stream that is over.
    fn begin_streams(&mut self) {
        let mut anew = Outbound::default();
        for (_, message) in self.to_master.after(self.reported) {
            anew.push(message.clone());
        }
        self.to_master = anew;
        self.reported = 0;
        self.from_master = Inbound::default();
    }

    /// The master has lost its memory of all live searches: their clients are told, so that they ask again.
    fn forget_watches(&mut self, out: &mut Out) {
        let mut to = Vec::new();
        for &conn in self.by_session.values() {
            let connection = self.conns.get_mut(conn.0);
            let Some(connection) = connection.filter(|connection| !connection.closing) else {
                continue;
            };
            let watches = connection.held_mut().map(|held| std::mem::take(&mut held.watches));
            for id in watches.into_iter().flatten() {
                // One whose request has no answer yet is set up anew by the same request.
                if !connection.asked.iter().any(|asked| asked.ask.id == id) {
                    to.push((conn, ReplyHeader { kind: CHANGES, id }));
                }
            }
        }
        if to.is_empty() {
            return;
        }
        let text = "the cluster has lost its memory of this live search: ask again";
        let changes = Changes {
            n: 0,
            anew: false,
            more: false,
            instances: Vec::new(),
            gone: Vec::new(),
            ended: Some(Refusal::new(Code::WatchUnknown, text)),
        };
        out.push(Output::Changes(to, Opaque::from(greenroom_protocol::encode(&changes))));
    }

    fn bound(&mut self, now: Moment, bound: Bound, out: &mut Out) {
        self.servers = bound.session_servers;
        let conn = self.binding.remove(&bound.number);
        let Some(conn) = conn.filter(|&conn| !self.is_closing(conn)) else {
            // Its client went away meanwhile, or was sent away: the binding is undone.
            let (session, generation) = (bound.session, bound.generation);
            return self.stream(Unbind { session, generation }.into(), out);
        };
        let Some(connection) = self.conns.get_mut(conn.0) else { return };
        let Stage::Binding(bind) = std::mem::replace(&mut connection.stage, Stage::Greeted) else {
            return;
        };
        let held = Held {
            session: bound.session,
            generation: bound.generation,
            user: bind.user,
            name: bind.name,
            session_key: bind.session_key,
            late_seen: Vec::new(),
            watches: Vec::new(),
        };
        self.counts.check_ins += 1;
        out.push(Output::Tell(Told::CheckedIn(held.user.clone(), held.session)));
        let answer = SessionToClient::CheckedIn(CheckedIn {
            user: held.user.clone(),
            name: held.name.clone(),
            session: held.session,
            session_servers: self.servers.clone(),
            server_time_ms: self.config.wall_start_ms + now.0,
        });
        connection.since = now;
        connection.stage = Stage::In(Box::new(held));
        out.push(control(conn, &answer));
        if self.draining {
            // The others were told when the drain began.
            out.push(control(conn, &self.go_away()));
        }
        // The same session on an older connection of this server: the newer one has it now.
        if let Some(older) =
            self.by_session.insert(bound.session, conn).filter(|&older| older != conn)
        {
            let refusal =
                Refusal::new(Code::Superseded, "this session goes on over a newer connection");
            self.close(older, refusal, out);
        }
    }

    fn session_servers(&mut self, list: SessionServers, out: &mut Out) {
        self.servers.clone_from(&list.session_servers);
        let message = SessionToClient::SessionServers(list);
        for &conn in self.by_session.values() {
            out.push(control(conn, &message));
        }
    }

    /// A live search has something to tell. It is for the binding that it names and no other: who is bound anew is told
    /// anew.
    fn changed(&mut self, changed: Changed, out: &mut Out) {
        let here = |watcher: Watcher| {
            let conn = *self.by_session.get(&watcher.session)?;
            let connection = self.conns.get_mut(conn.0).filter(|connection| !connection.closing)?;
            let held = connection.held_mut()?;
            if held.generation != watcher.generation {
                return None;
            }
            // Also one that was set up over another session server.
            held.watches(watcher.watch);
            Some((conn, ReplyHeader { kind: CHANGES, id: watcher.watch }))
        };
        let to: Vec<_> = changed.to.into_iter().filter_map(here).collect();
        if !to.is_empty() {
            out.push(Output::Changes(to, changed.changes));
        }
    }

    fn answer(&mut self, now: Moment, conn: ConnId, asked: Asked, outcome: Outcome, out: &mut Out) {
        let id = asked.ask.id;
        let answer = match outcome {
            Outcome::Granted(granted) => {
                return self.granted(now, conn, asked, granted, out);
            }
            Outcome::Created(created) => Reply::Created(created),
            Outcome::Left(left) => {
                self.left(conn, left.instance, out);
                Reply::Left(left)
            }
            Outcome::Destroyed(destroyed) => Reply::Destroyed(destroyed),
            Outcome::Found(found) => Reply::Found(found),
            Outcome::Watching(watching) => {
                if let Some(held) = self.conns.get_mut(conn.0).and_then(Connection::held_mut) {
                    held.watches(id);
                }
                Reply::Watching(watching)
            }
            Outcome::Unwatched(unwatched) => {
                self.unwatched(conn, &asked.ask);
                Reply::Unwatched(unwatched)
            }
            Outcome::Ranking(ranking) => Reply::Ranking(ranking),
            Outcome::Refused(refusal) => Reply::Refused(refusal),
        };
        out.push(reply(conn, id, &answer));
    }

    /// A live search was ended by its client.
    fn unwatched(&mut self, conn: ConnId, ask: &Ask) {
        let Ok(Request::Unwatch(Unwatch { watch })) =
            Request::decode(ask.kind, &ask.request, Limits::CLIENT)
        else {
            return;
        };
        if let Some(held) = self.conns.get_mut(conn.0).and_then(Connection::held_mut) {
            held.watches.retain(|&known| known != watch);
        }
    }

    // Seats ------------------------------------------------------------------------------------------------------

    fn granted(
        &mut self,
        now: Moment,
        conn: ConnId,
        asked: Asked,
        granted: Granted,
        out: &mut Out,
    ) {
        let (id, trace) = (asked.ask.id, asked.ask.trace);
        let key = (granted.instance, granted.incarnation);
        let mut joining = Joining::from_elem((id, now), 1);
        let known = self.by_instance.get(&key).and_then(|&channel| self.route_up(conn, channel));
        if let Some(Up { game, member: known, .. }) = known
            && let Some(member) = self.members.get_mut(known.0)
        {
            // Whoever asked before waits still.
            joining.extend(member.joining.drain(..).filter(|(other, _)| *other != id));
            if member.seat == granted.seat {
                member.joining = joining;
                member.trace = trace;
                if self.is_linked(game) {
                    self.attach(known, out);
                }
                return;
            }
            // That seat has ended, and its game server has not said so yet.
            self.unseat(known);
        }
        let member = match self.seat(conn, key, joining, (asked.options, trace), granted, out) {
            Ok(member) => member,
            Err((joining, what)) => {
                let text = eco_format!("this session server holds too many {what}");
                return refuse(conn, &joining, &Refusal::new(Code::Busy, text), out);
            }
        };
        if self.game_of(member).is_some_and(|game| self.is_linked(game)) {
            self.attach(member, out);
        }
    }

    /// Makes a member of a grant.
    fn seat(
        &mut self,
        conn: ConnId,
        key: (InstanceId, Incarnation),
        joining: Joining,
        (options, trace): (Opaque, Option<TraceContext>),
        granted: Granted,
        out: &mut Out,
    ) -> Result<MemberId, (Joining, &'static str)> {
        let Some(game) = self.game(&granted, out) else { return Err((joining, "game servers")) };
        let channel = match self.by_instance.get(&key) {
            Some(&channel) => channel,
            None => {
                let place = Place {
                    instance: granted.instance,
                    incarnation: granted.incarnation,
                    kind: granted.kind,
                    attached: Vec::new(),
                    members: 0,
                };
                let Ok(number) = self.channels.insert(place) else {
                    return Err((joining, "instances"));
                };
                self.by_instance.insert(key, Channel(number));
                Channel(number)
            }
        };
        let (seat, durable) = (granted.seat, granted.durable);
        let member = Member {
            conn,
            channel,
            game,
            seat,
            options,
            joining,
            attached: false,
            trace,
            durable,
            stranded: None,
            rejoins: None,
            down: Seq(0),
        };
        let number = match self.members.insert(member) {
            Ok(number) => number,
            Err(member) => {
                self.close_channel(channel);
                return Err((member.joining, "seats"));
            }
        };
        if let Some(connection) = self.conns.get_mut(conn.0) {
            connection.seats.push((channel, Up { game, member: MemberId(number), ticks: false }));
        }
        if let Some(place) = self.channels.get_mut(channel.0) {
            place.members += 1;
        }
        Ok(MemberId(number))
    }

    /// The game server of a grant, dialled if it is not known.
    fn game(&mut self, granted: &Granted, out: &mut Out) -> Option<GameId> {
        if let Some(&id) = self.by_name.get(&granted.server) {
            if let Some(game) = self.games.get_mut(id.0).filter(|game| game.link == GameLink::Lost)
            {
                game.address.clone_from(&granted.address);
                game.link = GameLink::Dialling;
                out.push(Output::DialGame(id, granted.address.clone()));
            }
            return Some(id);
        }
        let game = Game {
            name: granted.server.clone(),
            address: granted.address.clone(),
            incarnation: None,
            link: GameLink::Dialling,
        };
        let id = GameId(self.games.insert(game).ok()?);
        self.by_name.insert(granted.server.clone(), id);
        out.push(Output::DialGame(id, granted.address.clone()));
        Some(id)
    }

    fn is_linked(&self, game: GameId) -> bool {
        self.games.get(game.0).is_some_and(|game| game.link == GameLink::Open)
    }

    fn attach(&self, id: MemberId, out: &mut Out) {
        let Some(member) = self.members.get(id.0) else { return };
        let Some(place) = self.channels.get(member.channel.0) else { return };
        let Some(held) = self.conns.get(member.conn.0).and_then(Connection::held) else { return };
        let attach = Attach {
            member: id,
            channel: member.channel,
            instance: place.instance,
            incarnation: place.incarnation,
            seat: member.seat,
            user: held.user.clone(),
            name: held.name.clone(),
            session: held.session,
            generation: held.generation,
            options: member.options.clone(),
        };
        if let Some(trace) = member.trace {
            out.push(Output::TraceGame(member.game, id, trace));
        }
        out.push(Output::Game(member.game, SessionToGame::Attach(attach)));
    }

    /// A link to a game server is open. What was attached before is attached again: its instances send what is not
    /// acknowledged once more.
    pub fn game_linked(&mut self, id: GameId, incarnation: Incarnation, out: &mut Out) {
        let Some(game) = self.games.get_mut(id.0) else { return };
        game.link = GameLink::Open;
        let anew =
            game.incarnation.replace(incarnation).is_some_and(|before| before != incarnation);
        for (member, attached) in self.members_of(id) {
            if anew && attached {
                self.strand_or_end(
                    member,
                    &Refusal::new(Code::InstanceLost, "its game server started anew"),
                    out,
                );
            } else {
                if let Some(member) = self.members.get_mut(member.0) {
                    member.stranded = None;
                }
                self.attach(member, out);
            }
        }
    }

    /// A seat's instance is not where it was: the master says where it goes on, or it is gone.
    fn strand_or_end(&mut self, id: MemberId, refusal: &Refusal, out: &mut Out) {
        let since = self.ticked;
        match self.members.get_mut(id.0).filter(|member| member.durable) {
            Some(member) => {
                member.stranded.get_or_insert(since);
            }
            None => self.end(id, refusal, out),
        }
    }

    /// The link to a game server broke: it is dialled again if somebody is on it.
    pub fn game_lost(&mut self, id: GameId, out: &mut Out) {
        let used = self.members.iter().any(|(_, member)| member.game == id);
        let Some(game) = self.games.get_mut(id.0) else { return };
        game.link = GameLink::Dialling;
        if used {
            out.push(Output::DialGame(id, game.address.clone()));
        } else {
            self.forget_game(id);
        }
    }

    /// A game server can't be reached: what is on it is lost to our clients.
    pub fn game_unreachable(&mut self, id: GameId, why: &str, out: &mut Out) {
        let Some(game) = self.games.get(id.0) else { return };
        // Names and addresses of servers are not for players.
        let refusal =
            Refusal::new(Code::InstanceLost, "its game server is gone: join or create another");
        out.push(Output::Tell(Told::GameLost(game.name.clone(), why.into())));
        for (member, _) in self.members_of(id) {
            self.strand_or_end(member, &refusal, out);
        }
        let is_awaited = !self.members_of(id).is_empty();
        match self.games.get_mut(id.0).filter(|_| is_awaited) {
            Some(game) => game.link = GameLink::Lost,
            None => self.forget_game(id),
        }
    }

    /// The instance of a seat goes on in another life: its client is taken there.
    fn moved(&mut self, moved: Moved, out: &mut Out) {
        let Moved { session, granted } = moved;
        // Whoever has no seat here asks for it.
        let Some((conn, id)) = self.seat_in(session, granted.instance) else { return };
        let Some(member) = self.members.get(id.0) else { return };
        let life = self.channels.get(member.channel.0).map(|place| place.incarnation);
        if life.is_some_and(|life| life >= granted.incarnation) {
            return; // The answer to a join has said so before.
        }
        let game = member.game;
        if self.is_linked(game) {
            out.push(Output::Game(game, SessionToGame::Detach(Detach { member: id })));
        }
        let Some(member) = self.unseat(id) else { return };
        let known_as = member.rejoins.or(member.attached.then_some(member.channel));
        let key = (granted.instance, granted.incarnation);
        match self.seat(conn, key, member.joining, (member.options, member.trace), granted, out) {
            Ok(id) => {
                if let Some(member) = self.members.get_mut(id.0) {
                    member.rejoins = known_as;
                }
                if self.game_of(id).is_some_and(|game| self.is_linked(game)) {
                    self.attach(id, out);
                }
            }
            Err((joining, what)) => {
                let text = eco_format!("this session server holds too many {what}");
                let refusal = Refusal::new(Code::Busy, text);
                if let Some(channel) = known_as {
                    out.push(to_seat(conn, client_instance::SEAT_ENDED, channel, &refusal));
                }
                refuse(conn, &joining, &refusal, out);
            }
        }
    }

    /// The seat of a session in an instance, in whichever life.
    fn seat_in(&self, session: SessionId, instance: InstanceId) -> Option<(ConnId, MemberId)> {
        let conn = *self.by_session.get(&session)?;
        let mut seats = self.conns.get(conn.0)?.seats.iter();
        let is_there = |channel: Channel| {
            self.channels.get(channel.0).is_some_and(|place| place.instance == instance)
        };
        seats.find(|(channel, _)| is_there(*channel)).map(|&(_, up)| (conn, up.member))
    }

    /// The seat that a client knows by this channel, and that follows its instance into another life.
    fn rejoining(&self, conn: ConnId, channel: Channel) -> Option<MemberId> {
        let mut seats = self.conns.get(conn.0)?.seats.iter().map(|(_, up)| up.member);
        seats.find(|member| {
            let member = self.members.get(member.0);
            member.is_some_and(|member| member.rejoins == Some(channel))
        })
    }

    fn forget_game(&mut self, id: GameId) {
        if let Some(game) = self.games.remove(id.0) {
            self.by_name.remove(&game.name);
        }
    }

    fn members_of(&self, game: GameId) -> Vec<(MemberId, bool)> {
        let of_game = self.members.iter().filter(|(_, member)| member.game == game);
        of_game.map(|(number, member)| (MemberId(number), member.attached)).collect()
    }

    /// A game server said something.
    pub fn from_game(&mut self, id: GameId, message: GameToSession, out: &mut Out) {
        match message {
            GameToSession::Attached(attached) => self.attached(id, &attached, out),
            GameToSession::AttachRefused(refused) => {
                let AttachRefused { member, refusal } = refused;
                let known = self.members.get(member.0).filter(|known| known.game == id);
                let was_there = known.is_some_and(|known| known.attached);
                if was_there && refusal.code == Code::InstanceUnknown {
                    self.strand_or_end(member, &refusal, out);
                } else {
                    self.end_of(id, member, &refusal, out);
                }
            }
            GameToSession::Ended(ended) => self.end_of(id, ended.member, &ended.refusal, out),
            GameToSession::Unknown(kind) => out.push(Output::Tell(Told::UnknownKind(kind))),
        }
    }

    fn attached(&mut self, game: GameId, attached: &Attached, out: &mut Out) {
        let Some(member) =
            self.members.get_mut(attached.member.0).filter(|member| member.game == game)
        else {
            return;
        };
        let Some(place) = self.channels.get_mut(member.channel.0) else { return };
        let seats = self.conns.get_mut(member.conn.0).map(|connection| &mut connection.seats);
        if let Some((_, up)) =
            seats.and_then(|seats| seats.iter_mut().find(|(of, _)| *of == member.channel))
        {
            up.ticks = attached.tick_rate > 0;
        }
        member.trace = None;
        let again = std::mem::replace(&mut member.attached, true);
        member.down = Seq(attached.down_next.wrapping_sub(1));
        if !again {
            place.attached.push((attached.member, member.conn));
        }
        if again && member.joining.is_empty() {
            // Over a new link: what was under way on the one before is lost, and only the client has it.
            let text = "the way to the game server was broken for a moment: send it again";
            let refusal = Refusal::new(Code::Busy, text);
            out.push(to_seat(member.conn, client_instance::SEND_AGAIN, member.channel, &refusal));
        }
        let joined = Joined {
            instance: place.instance,
            kind: place.kind.clone(),
            incarnation: place.incarnation,
            channel: member.channel,
            seat: member.seat,
            up_received: attached.up_received,
            down_next: attached.down_next,
            tick_rate: attached.tick_rate,
        };
        if member.rejoins.take().is_some() && member.joining.is_empty() {
            out.push(control(member.conn, &SessionToClient::Rejoined(joined)));
            return;
        }
        for (id, _) in member.joining.drain(..) {
            out.push(reply(member.conn, id, &Reply::Joined(joined.clone())));
        }
    }

    fn end_of(&mut self, game: GameId, member: MemberId, refusal: &Refusal, out: &mut Out) {
        if self.members.get(member.0).is_some_and(|known| known.game == game) {
            self.end(member, refusal, out);
        }
    }

    /// A seat is gone: its client is told, as the answer to its join if it waits for one.
    fn end(&mut self, id: MemberId, refusal: &Refusal, out: &mut Out) {
        let Some(member) = self.unseat(id) else { return };
        if member.joining.is_empty() || member.attached || member.rejoins.is_some() {
            let known_as = member.rejoins.unwrap_or(member.channel);
            out.push(to_seat(member.conn, client_instance::SEAT_ENDED, known_as, refusal));
        }
        refuse(member.conn, &member.joining, refusal, out);
    }

    /// The master freed a client's seat: it is gone here as well, so that another seat in the same instance is never
    /// taken for it. The game server hears of it from the master.
    fn left(&mut self, conn: ConnId, instance: InstanceId, out: &mut Out) {
        let Some(connection) = self.conns.get(conn.0) else { return };
        let of_instance: SmallVec<[MemberId; 1]> = connection
            .seats
            .iter()
            .filter(|(channel, _)| {
                self.channels.get(channel.0).is_some_and(|place| place.instance == instance)
            })
            .map(|&(_, up)| up.member)
            .collect();
        for member in of_instance {
            if let Some(member) = self.unseat(member) {
                let refusal = Refusal::new(Code::Left, Code::Left.meaning());
                refuse(conn, &member.joining, &refusal, out);
            }
        }
    }

    /// Takes a member out of everything.
    fn unseat(&mut self, id: MemberId) -> Option<Member> {
        let member = self.forget(id)?;
        if let Some(connection) = self.conns.get_mut(member.conn.0) {
            connection.seats.retain(|(_, up)| up.member != id);
        }
        Some(member)
    }

    /// Takes a member out of everything but its connection.
    fn forget(&mut self, id: MemberId) -> Option<Member> {
        let member = self.members.remove(id.0)?;
        if let Some(place) = self.channels.get_mut(member.channel.0) {
            if let Some(at) = place.attached.iter().position(|(of, _)| *of == id) {
                place.attached.swap_remove(at);
            }
            place.members -= 1;
        }
        self.close_channel(member.channel);
        Some(member)
    }

    /// Forgets an instance that nobody here has a seat in.
    fn close_channel(&mut self, channel: Channel) {
        if let Some(place) = self.channels.get(channel.0).filter(|place| place.members == 0) {
            self.by_instance.remove(&(place.instance, place.incarnation));
            self.channels.remove(channel.0);
        }
    }

    /// Tells a client that what it sent on `channel` did not go on, and is to be sent again.
    pub fn send_again(
        &self,
        conn: ConnId,
        channel: Channel,
        code: Code,
        text: &str,
        out: &mut Out,
    ) {
        out.push(to_seat(conn, client_instance::SEND_AGAIN, channel, &Refusal::new(code, text)));
    }

    // Time -------------------------------------------------------------------------------------------------------

    /// Looks after seats whose game server is gone: it is dialled again, and none waits for ever.
    fn tick_stranded(&mut self, now: Moment, out: &mut Out) {
        let lost = self.games.iter().filter(|(_, game)| game.link == GameLink::Lost);
        let lost: Vec<GameId> = lost.map(|(number, _)| GameId(number)).collect();
        for id in lost {
            let is_awaited = !self.members_of(id).is_empty();
            match self.games.get_mut(id.0).filter(|_| is_awaited) {
                Some(game) => {
                    game.link = GameLink::Dialling;
                    out.push(Output::DialGame(id, game.address.clone()));
                }
                None => self.forget_game(id),
            }
        }
        self.ticked = now;
        let over = self.members.iter().filter(|(_, member)| {
            member.stranded.is_some_and(|since| now.0.saturating_sub(since.0) > STRANDED_MS)
        });
        let over: Vec<MemberId> = over.map(|(number, _)| MemberId(number)).collect();
        for member in over {
            let text = "its game server is gone, and it does not go on elsewhere: join another";
            self.end(member, &Refusal::new(Code::InstanceLost, text), out);
        }
    }

    /// Time has passed: what waited too long is refused. To be called about once a second.
    pub fn tick(&mut self, now: Moment, out: &mut Out) {
        let overdue = |since: Moment, ms: u64| now.0.saturating_sub(since.0) > ms;
        self.addresses.tick(now);
        let mut late = Vec::new();
        for (number, connection) in self.conns.iter() {
            let (bound, code, text) = match &connection.stage {
                Stage::In(_) => continue,
                Stage::Binding(_) => {
                    let text = "no master can be reached now: try again, or another session server";
                    (UNAVAILABLE_MS, Code::Unavailable, text)
                }
                Stage::Fresh | Stage::Greeted | Stage::Checking(..) => {
                    (CHECK_IN_MS, Code::CheckInTimeout, "no check-in within 5 s of connecting")
                }
            };
            if overdue(connection.since, bound) {
                late.push((ConnId(number), Refusal::new(code, text)));
            }
        }
        for (conn, refusal) in late {
            self.close(conn, refusal, out);
        }
        if let Some(link) = self.follow.link()
            && !self.follow.is_welcomed()
            && overdue(self.answered, WELCOME_MS)
        {
            self.follow.lost(link);
            out.push(Output::Tell(Told::NotWelcomed(link)));
            out.push(Output::CloseMaster(link));
        }
        let (stamp, followed) = (self.stamp(0), self.follow.link());
        let followed = followed.filter(|_| self.follow.is_welcomed());
        for &conn in self.by_session.values() {
            let Some(connection) = self.conns.get_mut(conn.0) else { continue };
            if let Stage::In(held) = &mut connection.stage {
                let session = held.session;
                for client_session::Seen { watch, n } in std::mem::take(&mut held.late_seen) {
                    if let Some(link) = followed {
                        let seen = Seen { session, watch, n };
                        out.push(Output::Master(link, stamp, seen.into()));
                    }
                }
            }
            connection.asked.retain(|asked| {
                let unavailable = !asked.sent && overdue(asked.at, UNAVAILABLE_MS);
                if unavailable {
                    let text = "no master can be reached now; nothing was started: try again";
                    let refusal = Refusal::new(Code::Unavailable, text);
                    out.push(reply(conn, asked.ask.id, &Reply::Refused(refusal)));
                    return false;
                }
                let undecided = overdue(asked.at, REQUEST_MS);
                if undecided {
                    let text = "no answer within 30 s, and it may have happened: ask again with the same id";
                    let refusal = Refusal::new(Code::Undecided, text);
                    out.push(reply(conn, asked.ask.id, &Reply::Refused(refusal)));
                }
                !undecided
            });
        }
        self.tick_stranded(now, out);
        let waiting = self.members.iter().filter(|(_, member)| {
            !member.attached && member.joining.iter().any(|&(_, since)| overdue(since, ATTACH_MS))
        });
        let waiting = waiting.map(|(number, member)| (MemberId(number), member.game));
        for (member, game) in waiting.collect::<Vec<_>>() {
            // It may still take the seat for somebody who was told that it did not.
            if self.is_linked(game) {
                out.push(Output::Game(game, SessionToGame::Detach(Detach { member })));
            }
            let text = "its game server does not answer: try again";
            self.end(member, &Refusal::new(Code::Unavailable, text), out);
        }
    }

    /// What the master is told from time to time; `frames` came from clients since this server began.
    #[expect(clippy::cast_possible_truncation, reason = "at most 2^20 connections")]
    pub fn load(&self, busy_permille: u16, frames: u64, out: &mut Out) {
        let load = SessionLoad {
            connections: self.conns.len() as u32,
            busy_permille,
            draining: self.draining,
            counts: SessionCounts { frames, rivals: self.follow.rivals(), ..self.counts },
        };
        self.say(0, load.into(), out);
    }

    /// Takes no new clients from here on, and sends those that are there elsewhere.
    pub fn drain(&mut self, out: &mut Out) {
        self.draining = true;
        let message = self.go_away();
        for &conn in self.by_session.values() {
            out.push(control(conn, &message));
        }
    }

    fn go_away(&self) -> SessionToClient {
        let mine = self.config.name.as_str();
        let elsewhere = self.servers.iter().filter(|server| server.name != mine).cloned().collect();
        SessionToClient::GoAway(GoAway {
            message: "this session server is stopping".into(),
            session_servers: elsewhere,
        })
    }

    /// Ends every connection.
    pub fn close_all(&mut self, out: &mut Out) {
        let all: Vec<_> = self.conns.iter().map(|(number, _)| ConnId(number)).collect();
        for conn in all {
            let text = "this session server has stopped: check in on another";
            self.close(conn, Refusal::new(Code::Draining, text), out);
        }
    }

    /// Open connections.
    pub fn connections(&self) -> usize {
        self.conns.len()
    }

    fn stamp(&self, n: u64) -> StampedHeader {
        StampedHeader { epoch: self.follow.epoch(), n }
    }
}

fn version_refusal(hello: &ClientHello) -> Option<Refusal> {
    (hello.protocol_min > PROTOCOL_MAX || hello.protocol_max < PROTOCOL_MIN).then(|| {
        let text = eco_format!(
            "this server speaks versions {PROTOCOL_MIN} to {PROTOCOL_MAX} of the protocol, the client {} to {}: \
             upgrade the older one",
            hello.protocol_min,
            hello.protocol_max
        );
        Refusal::new(Code::VersionMismatch, text)
    })
}

fn control(conn: ConnId, message: &SessionToClient) -> Output {
    let mut frame = vec![message.kind()];
    message.encode_into(&mut frame);
    Output::Client(conn, frame)
}

fn reply(conn: ConnId, id: RequestId, reply: &Reply) -> Output {
    let mut frame = ReplyHeader { kind: reply.kind(), id }.bytes().to_vec();
    reply.encode_into(&mut frame);
    Output::Client(conn, frame)
}

fn refuse(conn: ConnId, joining: &Joining, refusal: &Refusal, out: &mut Out) {
    for &(id, _) in joining {
        out.push(reply(conn, id, &Reply::Refused(refusal.clone())));
    }
}

fn to_seat(conn: ConnId, kind: u8, channel: Channel, refusal: &Refusal) -> Output {
    let mut frame =
        DownHeader { kind, channel, number: Seq(0), ack: Seq(0), tick: 0 }.bytes().to_vec();
    greenroom_protocol::encode_into(refusal, &mut frame);
    Output::Client(conn, frame)
}

#[cfg(test)]
#[expect(clippy::wildcard_enum_match_arm, reason = "a test looks for one message of many")]
mod tests;
