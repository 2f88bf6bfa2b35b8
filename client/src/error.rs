//! What can go wrong for the one who calls the SDK.

use ecow::EcoString;
use greenroom_protocol::{DecodeError, InstanceId, Refusal, RequestId, Seq, search::TextError};

/// Why something that the application asked for was not done.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The other side said no; nothing is broken.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// No session server could be reached, or none let the client in.
    #[error("no session server let this client in: {}", list(.attempts))]
    NoServer {
        /// Each address that was tried last, with its reason.
        attempts: Vec<Attempt>,
    },
    /// The list of well-known session servers is empty.
    #[error("there is no session server to try: give at least one address to `servers`")]
    NoAddress,
    /// A text is no address of a session server.
    #[error(
        "{text:?} is no address of a session server: {what}; write tcp://host:port, tls://host:port, \
         ws://host:port or wss://host:port"
    )]
    Address {
        /// As given.
        text: EcoString,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A name, key or id breaks the rules for such texts.
    #[error("{0}")]
    Name(EcoString),
    /// A text is no filter.
    #[error("this is no filter: {0}")]
    Filter(TextError),
    /// Nothing was started, since the request could not be sent before its deadline. It can be made again.
    #[error(
        "unavailable: no session server took the request before its deadline; nothing was started"
    )]
    Unavailable,
    /// The request may have happened: it was sent and has no answer yet.
    /// [`crate::Client::ask_again`] waits for the same answer once more.
    #[error(
        "undecided: request {id} was sent and not answered before its deadline; ask again for its answer"
    )]
    Undecided {
        /// What to ask again for.
        id: RequestId,
    },
    /// The call may have happened: its number is still to be delivered or its reply to come.
    #[error(
        "undecided: call {number} has no reply yet; it is delivered once, but its reply will not be seen"
    )]
    CallUndecided {
        /// Number of the call on the seat's reliable channel.
        number: Seq,
    },
    /// There is no request with this id that waits or has a kept answer.
    #[error("request {id} is unknown: it was answered, or nobody asked for it within {kept_s} s")]
    NotAsked {
        /// As given.
        id: RequestId,
        /// For how long answers are kept, in seconds.
        kept_s: u64,
    },
    /// As much as may be under way to the instance is under way; nothing was queued.
    #[error(
        "full: {messages} messages with {bytes} bytes wait to be acknowledged; try again later"
    )]
    Full {
        /// Messages that wait.
        messages: usize,
        /// Their bytes.
        bytes: usize,
    },
    /// What should be sent is too long; nothing was queued.
    #[error("too large: {len} bytes, and at most {max} may be sent at once")]
    TooLarge {
        /// Its length in bytes.
        len: usize,
        /// The bound.
        max: usize,
    },
    /// The value has no encoding as MessagePack.
    #[error("encoding a message")]
    Encode {
        /// Why.
        source: rmp_serde::encode::Error,
    },
    /// What came is not of the type asked for.
    #[error("decoding {what}")]
    Decode {
        /// What was decoded.
        what: &'static str,
        /// Why not.
        source: DecodeError,
    },
    /// No view of the instance has come yet.
    #[error("no view of the instance has come yet")]
    NoView,
    /// The seat is gone.
    #[error("the seat is gone: {0}")]
    Left(Refusal),
    /// The client is closed for good.
    #[error("the client is closed: {0}")]
    Closed(Refusal),
    /// The client has a seat in this instance, and a handle on it.
    #[error("this client already has a room for instance {instance}")]
    AlreadyJoined {
        /// Which.
        instance: InstanceId,
    },
    /// The file of session servers or of certificates can't be used.
    #[error("reading {path}")]
    File {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The certificates that were given, or the system's, can't be used.
    #[error("trusting certificates: {0}")]
    Trust(EcoString),
    /// The system has no randomness to give.
    #[error("drawing random bits: {0}")]
    Random(getrandom::Error),
}

/// One address that was tried, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The address as a URL.
    pub address: EcoString,
    /// Why the client is not connected to it.
    pub reason: EcoString,
}

fn list(attempts: &[Attempt]) -> String {
    if attempts.is_empty() {
        return "none was tried before the deadline".into();
    }
    attempts
        .iter()
        .map(|attempt| format!("{}: {}", attempt.address, attempt.reason))
        .collect::<Vec<_>>()
        .join("; ")
}

/// The server said something that is no part of the protocol: the connection is of no use any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server broke the protocol: {0}")]
pub(crate) struct Misbehaved(pub(crate) EcoString);

impl From<DecodeError> for Misbehaved {
    fn from(error: DecodeError) -> Self {
        Self(ecow::eco_format!("{error}"))
    }
}
