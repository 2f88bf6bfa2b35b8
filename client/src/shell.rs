//! The client's one task: owns the connection, waits, lets the session decide, and writes what it decided.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use ecow::{EcoString, eco_format};
use greenroom_protocol::{Code, Refusal, wire::client_session::PING};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    ClientError, Identity, Status,
    dialer::{Connection, Dialer, NotIn, is_final},
    seat::{Shared, answer, locked},
    servers::Saving,
    session::{Command, Flow, Session},
    transport::Reading,
};

/// Connections in a row that may end because the server broke the protocol.
const MISBEHAVED_MAX: u32 = 5;
/// How long a client that nobody holds any more may take to give its seats up.
const FINISH_WITHIN: Duration = Duration::from_secs(1);
/// How far a clock that is not asked reaches: longer than any wait, so that a `select!` always has a timer.
const IDLE: Duration = Duration::from_secs(3_600);

/// Why a conversation ended.
enum Ended {
    /// By the application.
    Finished,
    /// The connection is gone, or the server wants us to go.
    Lost(EcoString),
    /// The server said why.
    Refused(Refusal),
    /// The server broke the protocol.
    Misbehaved(EcoString),
}

/// The task's own things.
pub(crate) struct Shell {
    pub(crate) dialer: Dialer,
    pub(crate) session: Session,
    pub(crate) shared: Arc<Shared>,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) status: watch::Sender<Status>,
    pub(crate) identity: Arc<Mutex<Identity>>,
    pub(crate) stop: CancellationToken,
    /// For how long a lost connection is tried to be replaced.
    pub(crate) reconnect_for: Duration,
}

impl Shell {
    pub(crate) async fn run(mut self, connection: Connection) {
        let refusal = self.live(connection).await;
        tracing::debug!(%refusal, "the client is closed");
        self.commands.close();
        while let Ok(command) = self.commands.try_recv() {
            let (Command::Request { reply, .. } | Command::AskAgain { reply, .. }) = command;
            answer(reply, Err(ClientError::Closed(refusal.clone())));
        }
        self.session.close(&refusal);
        self.status.send_replace(Status::Closed(refusal));
    }

    /// One connection after the other, until the reason why there is no further one.
    async fn live(&mut self, mut connection: Connection) -> Refusal {
        let mut misbehaved = 0;
        loop {
            self.begin(&connection);
            let ended = self.converse(&mut connection).await;
            self.dialer.ended(&connection);
            let why = match ended {
                Ended::Finished => {
                    // The server learns of it anyway; a goodbye is only polite.
                    drop(timeout(FINISH_WITHIN, connection.wire.close()).await);
                    return closed_by_application();
                }
                Ended::Refused(refusal) if is_final(&refusal.code) => return refusal,
                Ended::Refused(refusal) => eco_format!("{refusal}"),
                Ended::Lost(why) => {
                    misbehaved = 0;
                    why
                }
                Ended::Misbehaved(what) => {
                    misbehaved += 1;
                    self.shared.stats().misbehaved += 1;
                    if misbehaved >= MISBEHAVED_MAX {
                        return Refusal::new(Code::Malformed, what);
                    }
                    what
                }
            };
            tracing::debug!(address = %connection.address.url, %why, "the connection is lost");
            drop(connection);
            self.session.disconnected();
            self.status.send_replace(Status::Resuming);
            connection = match self.resume().await {
                Ok(connection) => connection,
                Err(refusal) => return refusal,
            };
            self.shared.stats().reconnects += 1;
        }
    }

    fn begin(&mut self, connection: &Connection) {
        let checked_in = &connection.checked_in;
        *locked(&self.identity) = Identity {
            user: checked_in.user.clone(),
            name: checked_in.name.clone(),
            session: checked_in.session,
            server: connection.address.url.clone(),
        };
        save(self.dialer.book.learn(&checked_in.session_servers));
        self.shared.traced.connected(connection.takes_traces);
        self.session.connected(Instant::now(), checked_in.session);
    }

    async fn resume(&mut self) -> Result<Connection, Refusal> {
        let give_up = Instant::now() + self.reconnect_for;
        let Self { dialer, session, commands, shared, stop, .. } = self;
        let checked_in = tokio::select! {
            checked_in = dialer.check_in(give_up) => checked_in,
            () = offline(session, commands, shared) => return Err(closed_by_application()),
            () = stop.cancelled() => return Err(closed_by_application()),
        };
        checked_in.map_err(|not_in| match not_in {
            NotIn::Refused(refusal) => refusal,
            NotIn::NoServer(attempts) => {
                let error = ClientError::NoServer { attempts };
                Refusal::new(Code::Unavailable, eco_format!("{error}"))
            }
        })
    }

    async fn converse(&mut self, connection: &mut Connection) -> Ended {
        let began = Instant::now();
        let beat = connection.heartbeat;
        let (mut heard, mut sent, mut pinged) = (began, began, began);
        let mut finish_by: Option<Instant> = None;
        loop {
            let frames = self.session.take_frames();
            if !frames.is_empty() {
                sent = Instant::now();
            }
            for frame in frames {
                connection.wire.push(frame);
            }
            self.tell_status();
            if finish_by.is_some() && self.session.is_idle() {
                return Ended::Finished;
            }
            let reading = if self.session.is_full() {
                heard = Instant::now(); // It is us who do not listen.
                Reading::Paused
            } else {
                Reading::On
            };
            let ping_at = sent.min(heard).max(pinged) + beat;
            let lost_at = heard + beat * 3 + beat / 2;
            let due = [self.session.deadline(), finish_by].into_iter().flatten();
            let due = due.fold(ping_at.min(lost_at), Instant::min);
            tokio::select! {
                frame = connection.wire.turn(reading) => {
                    let frame = match frame {
                        Ok(frame) => frame,
                        Err(error) => return Ended::Lost(eco_format!("{error}")),
                    };
                    heard = Instant::now();
                    match self.session.handle(heard, &frame) {
                        Ok(flow) => if let Some(ended) = self.follow(flow, began, connection) {
                            return ended;
                        },
                        Err(misbehaved) => return Ended::Misbehaved(eco_format!("{misbehaved}")),
                    }
                }
                () = self.shared.wake.notified() => self.session.work(Instant::now()),
                command = self.commands.recv(), if finish_by.is_none() && self.session.takes_commands() => {
                    match command {
                        Some(command) => self.session.command(command),
                        // Rooms that were dropped before still give their seats up.
                        None => {
                            finish_by = Some(Instant::now() + FINISH_WITHIN);
                            self.session.work(Instant::now());
                        }
                    }
                }
                () = sleep_until(due) => {
                    let now = Instant::now();
                    if finish_by.is_some_and(|at| at <= now) {
                        return Ended::Finished;
                    }
                    if lost_at <= now {
                        return Ended::Lost("the server is silent".into());
                    }
                    if ping_at <= now {
                        pinged = now;
                        let stamp = u64::try_from(began.elapsed().as_micros()).unwrap_or(0);
                        connection.wire.push([&[PING][..], &stamp.to_le_bytes()].concat());
                    }
                    self.session.time_passed(now);
                }
                () = self.stop.cancelled() => return Ended::Finished,
            }
        }
    }

    /// Does what a frame asks of the shell.
    fn follow(&mut self, flow: Flow, began: Instant, connection: &Connection) -> Option<Ended> {
        match flow {
            Flow::GoOn => None,
            Flow::Pong(stamp) => {
                let now = u64::try_from(began.elapsed().as_micros()).unwrap_or(0);
                let rtt = Duration::from_micros(now.saturating_sub(stamp));
                self.shared.stats().round_trip = Some(rtt);
                None
            }
            Flow::Servers(servers) => {
                save(self.dialer.book.learn(&servers.session_servers));
                None
            }
            Flow::GoAway(go_away) => {
                save(self.dialer.book.learn(&go_away.session_servers));
                // With nowhere to go, the one that is stopping is still better than none.
                self.dialer
                    .book
                    .has_other_than(&connection.address)
                    .then(|| Ended::Lost(eco_format!("the server stops: {}", go_away.message)))
            }
            Flow::Closing(refusal) => Some(Ended::Refused(refusal)),
        }
    }

    fn tell_status(&self) {
        if self.session.is_resumed() {
            self.status.send_if_modified(|status| {
                let resumed = *status == Status::Resuming;
                if resumed {
                    *status = Status::Resumed;
                }
                resumed
            });
        }
    }
}

/// Serves the application while there is no connection; ends when nobody holds the client any more.
async fn offline(session: &mut Session, commands: &mut mpsc::Receiver<Command>, shared: &Shared) {
    loop {
        let due = session.deadline().unwrap_or_else(|| Instant::now() + IDLE);
        tokio::select! {
            () = shared.wake.notified() => session.work(Instant::now()),
            command = commands.recv(), if session.takes_commands() => match command {
                Some(command) => session.command(command),
                None => return,
            },
            () = sleep_until(due) => session.time_passed(Instant::now()),
        }
    }
}

fn closed_by_application() -> Refusal {
    Refusal::new(Code::Left, "the application closed the client")
}

/// Writes the list of session servers beside the task; it is a convenience for the next start.
fn save(saving: Option<Saving>) {
    let Some(saving) = saving else { return };
    // Not waited for: the rename makes it all or nothing.
    drop(tokio::task::spawn_blocking(move || {
        if let Err(error) = saving.save() {
            tracing::warn!(path = %saving.path().display(), %error, "the list of session servers was not kept");
        }
    }));
}
