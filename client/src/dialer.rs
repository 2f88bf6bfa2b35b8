//! The way in: picks a session server, dials it and checks in.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use ecow::{EcoString, eco_format};
use greenroom_protocol::{
    Code, HELLO_BYTES_MAX, Limits, PROTOCOL_MAX, PROTOCOL_MIN, Refusal, SessionKey, TRACE_FEATURE,
    wire::client_session::{
        CHECK_IN, CheckIn, CheckedIn, ClientHello, ClientToSession, Credentials, PONG, SERVER_PING,
        ServerHello, SessionToClient, TRACE,
    },
};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::{
    Attempt, ClientError,
    address::Address,
    error::Misbehaved,
    random::Dice,
    servers::ServerBook,
    traces::Sampling,
    transport::{Reading, Wire, WireError},
};

/// Pause between two rounds over all addresses; doubles up to the second figure.
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A connection that lived for less counts as a failed attempt: the next one waits.
const LIVED: Duration = Duration::from_secs(5);
/// Bounds of what a server may ask for as the span between heartbeats.
const HEARTBEAT_MIN: Duration = Duration::from_millis(100);
const HEARTBEAT_MAX: Duration = Duration::from_secs(60);

/// A connection on which the client is checked in.
pub(crate) struct Connection {
    pub(crate) wire: Wire,
    pub(crate) address: Address,
    pub(crate) heartbeat: Duration,
    pub(crate) checked_in: CheckedIn,
    pub(crate) since: Instant,
    /// Contexts of traces may be sent on it.
    pub(crate) takes_traces: bool,
}

/// Why the client is not in.
#[derive(Debug)]
pub(crate) enum NotIn {
    /// For a reason that would be the same everywhere.
    Refused(Refusal),
    /// No address worked in time.
    NoServer(Vec<Attempt>),
}

impl From<NotIn> for ClientError {
    fn from(not_in: NotIn) -> Self {
        match not_in {
            NotIn::Refused(refusal) => Self::Refused(refusal),
            NotIn::NoServer(attempts) => Self::NoServer { attempts },
        }
    }
}

/// Why one address did not work.
#[derive(Debug, thiserror::Error)]
enum AttemptError {
    #[error("{0}")]
    Wire(#[from] WireError),
    #[error("{0}")]
    Misbehaved(#[from] Misbehaved),
    #[error("{0}")]
    Refused(Refusal),
}

/// All that is needed to get in again.
pub(crate) struct Dialer {
    pub(crate) book: ServerBook,
    pub(crate) credentials: Credentials,
    pub(crate) session_key: SessionKey,
    pub(crate) tls: Option<Arc<rustls::ClientConfig>>,
    pub(crate) dice: Dice,
    /// For one address: connecting, TLS and check-in.
    pub(crate) attempt_timeout: Duration,
    /// The address that was lost last.
    pub(crate) lost: Option<Address>,
    pub(crate) pause: Option<Duration>,
    /// This client begins traces, if the server takes them.
    pub(crate) sampling: Sampling,
}

impl Dialer {
    /// A connection has ended.
    pub(crate) fn ended(&mut self, connection: &Connection) {
        self.lost = Some(connection.address.clone());
        // What breaks at once would break at once again and again.
        if connection.since.elapsed() >= LIVED {
            self.pause = None;
        } else {
            self.pause.get_or_insert(PAUSE);
        }
    }

    /// Tries every address, then pauses, then tries again, until one lets the client in, or `give_up`.
    ///
    /// # Errors
    /// [`NotIn::Refused`] where the answer would be the same everywhere; [`NotIn::NoServer`] with the last reason of
    /// each address.
    pub(crate) async fn check_in(&mut self, give_up: Instant) -> Result<Connection, NotIn> {
        let mut reasons: BTreeMap<EcoString, EcoString> = BTreeMap::new();
        let mut pause = self.pause;
        loop {
            if let Some(span) = pause {
                let next = Instant::now() + self.dice.jitter(span);
                sleep_until(next.min(give_up)).await;
            }
            let span = pause.map_or(PAUSE, |span| (span * 2).min(PAUSE_MAX));
            pause = Some(span);
            if self.pause.is_some() {
                self.pause = pause;
            }
            let mut old = true;
            for address in self.book.round(&mut self.dice, self.lost.as_ref()) {
                let until = give_up.min(Instant::now() + self.attempt_timeout);
                let reason = match timeout_at(until, self.attempt(&address)).await {
                    Ok(Ok(connection)) => return Ok(connection),
                    Ok(Err(AttemptError::Refused(refusal))) if is_final(&refusal.code) => {
                        return Err(NotIn::Refused(refusal));
                    }
                    Ok(Err(error)) => {
                        old &= matches!(&error, AttemptError::Refused(refusal)
                            if refusal.code == Code::VersionMismatch);
                        eco_format!("{error}")
                    }
                    Err(_) => {
                        old = false;
                        // Our own end cut this attempt short: what an earlier one came to says more.
                        let cut = until == give_up;
                        reasons
                            .get(&address.url)
                            .filter(|_| cut)
                            .cloned()
                            .unwrap_or_else(|| "no answer in time".into())
                    }
                };
                tracing::debug!(address = %address.url, %reason, "a session server did not let us in");
                reasons.insert(address.url, reason);
                if Instant::now() >= give_up {
                    break;
                }
            }
            // No server speaks our version: that will not change while we wait.
            if old || Instant::now() >= give_up {
                let attempts = reasons
                    .into_iter()
                    .map(|(address, reason)| Attempt { address, reason })
                    .collect();
                return Err(NotIn::NoServer(attempts));
            }
        }
    }

    async fn attempt(&mut self, address: &Address) -> Result<Connection, AttemptError> {
        let mut wire = Wire::dial(address, self.tls.clone()).await?;
        let hello = ClientToSession::from(ClientHello {
            protocol_min: PROTOCOL_MIN,
            protocol_max: PROTOCOL_MAX,
            features: self.sampling.is_on().then(|| TRACE_FEATURE.into()).into_iter().collect(),
            agent: concat!("greenroom-client/", env!("CARGO_PKG_VERSION")).into(),
        });
        wire.push(frame(&hello));
        let first = next(&mut wire).await?;
        let SessionToClient::Hello(ServerHello { protocol, heartbeat_ms, features, .. }) = first
        else {
            return Err(out_of_turn(&first));
        };
        if !(PROTOCOL_MIN..=PROTOCOL_MAX).contains(&protocol) {
            let what = eco_format!("it speaks protocol {protocol}, which was not offered");
            return Err(Misbehaved(what).into());
        }
        let check_in = ClientToSession::from(CheckIn {
            session_key: self.session_key,
            credentials: self.credentials.clone(),
        });
        let check_in = frame(&check_in);
        if check_in.len() > HELLO_BYTES_MAX {
            let text = eco_format!(
                "the credentials make a check-in of {} bytes; at most {HELLO_BYTES_MAX} are allowed",
                check_in.len()
            );
            return Err(AttemptError::Refused(Refusal::new(Code::CredentialsInvalid, text)));
        }
        let takes_traces =
            self.sampling.is_on() && features.iter().any(|feature| feature == TRACE_FEATURE);
        let mut span = self.sampling.request(CHECK_IN);
        if let Some(span) = span.as_ref().filter(|_| takes_traces) {
            wire.push([&[TRACE][..], &span.context().bytes()].concat());
        }
        wire.push(check_in);
        let answer = next(&mut wire).await.and_then(|second| {
            let SessionToClient::CheckedIn(checked_in) = second else {
                return Err(out_of_turn(&second));
            };
            Ok(checked_in)
        });
        if let (Some(span), Err(error)) = (&mut span, &answer) {
            span.fail(error);
        }
        drop(span);
        let checked_in = answer?;
        let heartbeat = Duration::from_millis(heartbeat_ms.into());
        Ok(Connection {
            wire,
            address: address.clone(),
            heartbeat: heartbeat.clamp(HEARTBEAT_MIN, HEARTBEAT_MAX),
            checked_in,
            since: Instant::now(),
            takes_traces,
        })
    }
}

fn frame(message: &ClientToSession) -> Vec<u8> {
    let mut frame = vec![message.kind()];
    message.encode_into(&mut frame);
    frame
}

/// The next message that is no ping.
async fn next(wire: &mut Wire) -> Result<SessionToClient, AttemptError> {
    loop {
        let frame: Bytes = wire.turn(Reading::On).await?;
        let Some((&kind, payload)) = frame.split_first() else {
            return Err(Misbehaved("an empty frame".into()).into());
        };
        if kind == SERVER_PING {
            let mut pong = frame.to_vec();
            pong.truncate(9);
            pong[0] = PONG;
            wire.push(pong);
            continue;
        }
        let message =
            SessionToClient::decode(kind, payload, Limits::SERVER).map_err(Misbehaved::from)?;
        if let SessionToClient::Closing(refusal) = message {
            return Err(AttemptError::Refused(refusal));
        }
        return Ok(message);
    }
}

fn out_of_turn(message: &SessionToClient) -> AttemptError {
    let kind = message.kind();
    Misbehaved(eco_format!("kind {kind:#04x} is not what comes first in a conversation")).into()
}

/// Whether a refusal would be the same at every server and at every time.
pub(crate) fn is_final(code: &Code) -> bool {
    matches!(
        code,
        Code::Malformed
            | Code::TooLarge
            | Code::UnexpectedKind
            | Code::SchemeUnknown
            | Code::CredentialsInvalid
            | Code::TokenExpired
            | Code::TokenEarly
            | Code::TokenSignature
            | Code::TokenAlgorithm
            | Code::TokenAudience
            | Code::OriginDenied
            | Code::Superseded
            | Code::SessionExpired
            | Code::Forbidden
            | Code::UserUnknown
            | Code::Kicked
    )
}
