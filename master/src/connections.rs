//! Links of session servers and game servers: all of them are open, to the active and to the standby; those of the
//! active are in use once their servers have reported or resumed.

use std::collections::{BTreeMap, VecDeque};

use greenroom_link::Outgoing;
use greenroom_master_core::{Origin, State};
use greenroom_protocol::wire::master_game::MasterToGame;
use greenroom_protocol::wire::server_server::{Identity, Role};
use greenroom_protocol::wire::session_master::{MasterToSession, NewEpoch, Received};
use greenroom_protocol::{Epoch, Incarnation, LinkHeader, Outbound, ServerName, StampedHeader};

use crate::inbox::LinkNumber;
use crate::traces::Traces;

/// Bytes of a link's buffer that a stream fills at most: what a new link gets again may be much, and answers should
/// not wait behind all of it.
const STREAM_BYTES_MAX: usize = 4 * 1024 * 1024;

/// How far both streams of a server are after a command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Mark {
    lsn: u64,
    /// Number of the last message to it.
    stream: u64,
    /// Number of the last message from it.
    received: u64,
}

/// A server's link that is in use.
#[derive(Debug)]
struct Connection {
    link: LinkNumber,
    incarnation: Incarnation,
    outgoing: Outgoing,
    /// Where the streams are after commands that may not be committed, oldest first.
    marks: VecDeque<Mark>,
    /// Where they are after what is committed: nothing beyond it may leave.
    committed: Mark,
    /// What went out of the server's stream on this link.
    sent: u64,
    /// What was acknowledged of the stream that comes from it.
    acknowledged: u64,
}

/// All links of servers.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    open: BTreeMap<LinkNumber, (Identity, Outgoing)>,
    used: BTreeMap<(Role, ServerName), Connection>,
    /// The term in which this master speaks.
    epoch: Epoch,
    scratch: Vec<u8>,
}

impl Connections {
    pub(crate) fn opened(&mut self, link: LinkNumber, peer: Identity, outgoing: Outgoing) {
        self.open.insert(link, (peer, outgoing));
    }

    /// A link is gone. Gives whose it was.
    pub(crate) fn lost(&mut self, link: LinkNumber) -> Option<(Role, Origin)> {
        let (Identity { role, name, incarnation, .. }, _) = self.open.remove(&link)?;
        let place = (role, name);
        if self.used.get(&place).is_some_and(|used| used.link == link) {
            self.used.remove(&place);
        }
        let (role, server) = place;
        Some((role, Origin { server, incarnation }))
    }

    /// Whether a server has a link that is open.
    pub(crate) fn has(&self, role: Role, origin: &Origin) -> bool {
        self.open.values().any(|(identity, outgoing)| {
            identity.role == role
                && identity.name == origin.server
                && identity.incarnation == origin.incarnation
                && !outgoing.is_closing()
        })
    }

    /// This master decides in this term: it says so on every link that is not in use.
    pub(crate) fn announce(&mut self, epoch: Epoch, state: &State) {
        self.epoch = epoch;
        let links: Vec<LinkNumber> = self.open.keys().copied().collect();
        for link in links {
            if self.speaker(link).is_none() {
                self.introduce(link, state);
            }
        }
    }

    /// The term is another one, for who is spoken to already.
    pub(crate) fn raise(&mut self, epoch: Epoch) {
        self.epoch = epoch;
    }

    /// Says on a link that this master decides, and by which streams its server may go on.
    pub(crate) fn introduce(&mut self, link: LinkNumber, state: &State) {
        let Some((identity, outgoing)) = self.open.get(&link) else { return };
        let streams = state.streams(identity.role, &identity.name, identity.incarnation);
        let role = identity.role;
        let mut line = Line { outgoing, epoch: self.epoch, scratch: &mut self.scratch };
        line.say(role, NewEpoch { streams }, NewEpoch { streams });
    }

    /// This master decides no more: no link is in use.
    pub(crate) fn step_down(&mut self) {
        self.used.clear();
    }

    /// A server has reported or resumed: its link is in use from here on, and any other link of it is not.
    pub(crate) fn connect(&mut self, link: LinkNumber) -> Option<Origin> {
        if let Some(origin) = self.speaker(link) {
            return Some(origin);
        }
        let (identity, outgoing) = self.open.get(&link)?;
        let (Identity { role, name, incarnation, build, .. }, outgoing) =
            (identity, outgoing.clone());
        let place = (*role, name.clone());
        if let Some(older) = self.used.get(&place) {
            if older.incarnation != *incarnation && !older.outgoing.is_closing() {
                tracing::error!(
                    server = %name, %role,
                    "two processes call themselves so: the second is refused; give each server a name of its own"
                );
                outgoing.close();
                return None;
            }
            older.outgoing.close();
        }
        tracing::info!(server = %name, %role, %incarnation, %build, "a server's link is in use");
        let origin = Origin { server: name.clone(), incarnation: *incarnation };
        // Its stream goes on after what it has; what it has not is sent again.
        let connection = Connection {
            link,
            incarnation: *incarnation,
            outgoing,
            marks: VecDeque::new(),
            committed: Mark::default(),
            sent: 0,
            acknowledged: 0,
        };
        self.used.insert(place, connection);
        Some(origin)
    }

    /// Who speaks on this link, if it is in use.
    pub(crate) fn speaker(&self, link: LinkNumber) -> Option<Origin> {
        let (identity, _) = self.open.get(&link)?;
        let used = self.used.get(&(identity.role, identity.name.clone()))?;
        let Identity { name, incarnation, .. } = identity;
        (used.link == link).then(|| Origin { server: name.clone(), incarnation: *incarnation })
    }

    /// Who is on the other side of a link.
    pub(crate) fn identity(&self, link: LinkNumber) -> Option<&Identity> {
        self.open.get(&link).map(|(identity, _)| identity)
    }

    /// What this server said was not taken: it says it again over a new link.
    pub(crate) fn reset(&mut self, role: Role, origin: &Origin) {
        if let Some(used) = self.used.get(&(role, origin.server.clone()))
            && used.incarnation == origin.incarnation
        {
            used.outgoing.close();
        }
    }

    /// The way to a server. Without one, what is no part of a stream is lost, and asked for again by the server.
    pub(crate) fn line(&mut self, role: Role, server: &ServerName) -> Option<Line<'_>> {
        let used = self.used.get(&(role, server.clone()))?;
        Some(Line { outgoing: &used.outgoing, epoch: self.epoch, scratch: &mut self.scratch })
    }

    /// Lets out what is committed of each stream. `last` is the last command that was appended.
    pub(crate) fn release(&mut self, state: &State, last: u64, commit: u64, traces: &mut Traces) {
        let Self { used, epoch, scratch, .. } = self;
        for ((role, name), connection) in used {
            let received = state.received(*role, name);
            let newest = connection.marks.back().unwrap_or(&connection.committed);
            match role {
                Role::Session => {
                    let stream = state.session_stream(name).map_or(0, Outbound::last);
                    if (newest.stream, newest.received) != (stream, received) {
                        connection.marks.push_back(Mark { lsn: last, stream, received });
                    }
                }
                Role::Game | Role::Master | Role::Witness => {
                    let stream = state.game_stream(name).map_or(0, Outbound::last);
                    if (newest.stream, newest.received) != (stream, received) {
                        connection.marks.push_back(Mark { lsn: last, stream, received });
                    }
                }
            }
            while let Some(mark) = connection.marks.pop_front_if(|mark| mark.lsn <= commit) {
                connection.committed = mark;
            }
            let Mark { stream: upto, received, .. } = connection.committed;
            let mut line = Line { outgoing: &connection.outgoing, epoch: *epoch, scratch };
            let mut sent = connection.sent;
            match role {
                Role::Session if sent < upto => {
                    let stream = state.session_stream(name).into_iter();
                    for (n, message) in stream.flat_map(|stream| stream.after(connection.sent)) {
                        if n > upto || line.is_full() {
                            break;
                        }
                        line.session(n, message);
                        sent = n;
                    }
                }
                Role::Game if sent < upto => {
                    let stream = state.game_stream(name).into_iter();
                    for (n, message) in stream.flat_map(|stream| stream.after(connection.sent)) {
                        if n > upto || line.is_full() {
                            break;
                        }
                        if let MasterToGame::Create(order) = message
                            && let Some(traced) = traces.before_order(order.instance)
                        {
                            line.game(0, &traced.into());
                        }
                        line.game(n, message);
                        sent = n;
                    }
                }
                Role::Session | Role::Game | Role::Master | Role::Witness => {}
            }
            connection.sent = sent;
            if received > connection.acknowledged {
                connection.acknowledged = received;
                line.say(*role, Received { n: received }, Received { n: received });
            }
        }
    }

    /// Ends all links after what waits has been written.
    pub(crate) fn close(&self) {
        for (_, outgoing) in self.open.values() {
            outgoing.close();
        }
    }
}

/// Writes messages to one link's buffer. A server that takes nothing until its buffer is full twice loses the link.
pub(crate) struct Line<'a> {
    outgoing: &'a Outgoing,
    epoch: Epoch,
    scratch: &'a mut Vec<u8>,
}

impl Line<'_> {
    fn is_full(&self) -> bool {
        self.outgoing.waiting() >= STREAM_BYTES_MAX
    }
    pub(crate) fn session(&mut self, n: u64, message: &MasterToSession) {
        self.scratch.clear();
        message.encode_into(self.scratch);
        self.push(n, message.kind());
    }
    pub(crate) fn game(&mut self, n: u64, message: &MasterToGame) {
        self.scratch.clear();
        message.encode_into(self.scratch);
        self.push(n, message.kind());
    }
    /// Says the same to a server of either role, outside its stream.
    pub(crate) fn say(
        &mut self,
        role: Role,
        to_session: impl Into<MasterToSession>,
        to_game: impl Into<MasterToGame>,
    ) {
        match role {
            Role::Session => self.session(0, &to_session.into()),
            Role::Game => self.game(0, &to_game.into()),
            Role::Master | Role::Witness => {}
        }
    }
    fn push(&mut self, n: u64, kind: u8) {
        let stamp = StampedHeader { epoch: self.epoch, n }.bytes();
        self.outgoing.push(LinkHeader { kind, target: 0 }, &[&stamp, self.scratch]);
    }
}
