//! Refusals: a normal "no", which travels as data to the one who asked.

use std::fmt;

use ecow::EcoString;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

macro_rules! codes { ($(#[doc = $doc:literal] $name:ident = $text:literal),* $(,)?) => {
    /// Why something was refused. On the wire it is its name, so that names are stable and numbers need no table;
    /// a name that this build does not know decodes as [`Code::Unknown`].
    #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub enum Code {
        $(#[doc = $doc] $name,)*
        /// A code of a newer version of the protocol.
        Unknown(EcoString),
    }
    impl Code {
        /// Every code that this build knows.
        pub const ALL: &[Self] = &[$(Self::$name),*];
        /// The name on the wire.
        pub fn name(&self) -> &str {
            match self { $(Self::$name => $text,)* Self::Unknown(name) => name }
        }
        /// What it means, in the words of the reference.
        pub fn meaning(&self) -> &'static str {
            match self { $(Self::$name => $doc.trim_ascii(),)* Self::Unknown(_) => "a code of a newer version" }
        }
        fn from_name(name: &str) -> Self {
            match name { $($text => Self::$name,)* _ => Self::Unknown(name.into()) }
        }
    }
} }

codes! {
    /// The bytes are not a message of the protocol.
    Malformed = "malformed",
    /// A frame is longer than allowed.
    TooLarge = "too_large",
    /// This kind of frame is not known, or not allowed at this point of the conversation.
    UnexpectedKind = "unexpected_kind",
    /// No version of the protocol is spoken by both sides.
    VersionMismatch = "version_mismatch",
    /// The other server belongs to another cluster.
    WrongCluster = "wrong_cluster",
    /// The other server does not have this cluster's key.
    WrongKey = "wrong_key",
    /// The other server has a role that has no business here.
    WrongRole = "wrong_role",
    /// The page that opened this WebSocket comes from an origin that is not on the list.
    OriginDenied = "origin_denied",
    /// The credentials name a scheme that this cluster does not accept.
    SchemeUnknown = "scheme_unknown",
    /// The credentials are not valid.
    CredentialsInvalid = "credentials_invalid",
    /// The token has expired.
    TokenExpired = "token_expired",
    /// The token is not yet valid.
    TokenEarly = "token_early",
    /// The token's signature is not by a key that this cluster trusts.
    TokenSignature = "token_signature",
    /// The token is signed with an algorithm that this cluster does not accept.
    TokenAlgorithm = "token_algorithm",
    /// The token is for another audience or from another issuer.
    TokenAudience = "token_audience",
    /// The service that checks credentials can't be reached.
    AuthUnavailable = "auth_unavailable",
    /// Nothing but a check-in is possible before check-in.
    NotCheckedIn = "not_checked_in",
    /// The check-in took too long.
    CheckInTimeout = "check_in_timeout",
    /// The same user checked in with a newer session.
    Superseded = "superseded",
    /// The session is over.
    SessionExpired = "session_expired",
    /// More was sent than the limits allow.
    RateLimited = "rate_limited",
    /// The client reads too slowly for what must not be lost.
    SlowConsumer = "slow_consumer",
    /// Nothing was heard for too long.
    IdleTimeout = "idle_timeout",
    /// A queue is full; nothing was started, and it can be tried again.
    Busy = "busy",
    /// The part that is needed can't be reached; nothing was started, and it can be tried again.
    Unavailable = "unavailable",
    /// The request may have happened, and could not be decided by its deadline.
    Undecided = "undecided",
    /// The answer to this request was acknowledged before.
    Stale = "stale",
    /// The server is stopping and takes nothing new.
    Draining = "draining",
    /// A name in the request is empty, too long, or has control characters.
    NameInvalid = "name_invalid",
    /// The kind has no field of this name.
    FieldUnknown = "field_unknown",
    /// The field does not hold what it is compared with, or can't be compared in this way.
    FieldMismatch = "field_mismatch",
    /// The filter is nested too deep.
    FilterTooDeep = "filter_too_deep",
    /// The filter has too many conditions, or too long a text.
    FilterTooLarge = "filter_too_large",
    /// The limit is 0, or more than one answer holds.
    LimitInvalid = "limit_invalid",
    /// The cursor is not from this search.
    CursorInvalid = "cursor_invalid",
    /// The search would have to look at too many records: narrow it by a field that is indexed.
    TooBroad = "too_broad",
    /// The session has as many live searches, or as many conditions in them, as it may have.
    WatchesMax = "watches_max",
    /// There is no such live search.
    WatchUnknown = "watch_unknown",
    /// There is no such rank board, or nobody of this id on it.
    RankUnknown = "rank_unknown",
    /// There is no such kind of instance on any game server.
    KindUnknown = "kind_unknown",
    /// No game server has room for another instance of this kind.
    NoCapacity = "no_capacity",
    /// There is no such instance.
    InstanceUnknown = "instance_unknown",
    /// Another instance of the kind has this unique key.
    KeyTaken = "key_taken",
    /// Every seat is taken.
    InstanceFull = "instance_full",
    /// The instance takes no new seats now.
    InstanceLocked = "instance_locked",
    /// The instance is closed.
    InstanceClosed = "instance_closed",
    /// The instance failed; its game had a bug.
    InstanceFailed = "instance_failed",
    /// The game server of the instance is gone, and the instance with it.
    InstanceLost = "instance_lost",
    /// The caller has no seat in this instance.
    NotSeated = "not_seated",
    /// The caller has as many seats as it may have.
    SeatsMax = "seats_max",
    /// The caller may not do this.
    Forbidden = "forbidden",
    /// There is no such user, or it is not checked in.
    UserUnknown = "user_unknown",
    /// There is no such server.
    ServerUnknown = "server_unknown",
    /// The game refused; the text is the game's own.
    Rejected = "rejected",
    /// The game does not know this message, or not in this form.
    MessageUnknown = "message_unknown",
    /// An operator or the game removed the caller.
    Kicked = "kicked",
    /// The instance was destroyed.
    Destroyed = "destroyed",
    /// The seat was given up by its holder.
    Left = "left",
    /// The holder of the seat was away for longer than the game's grace.
    GraceOver = "grace_over",
}

impl fmt::Display for Code {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}
impl Serialize for Code {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.name())
    }
}
impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(Self::from_name(&EcoString::deserialize(from)?))
    }
}

/// A "no" with its reason: what is wrong, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Refusal {
    /// The stable name of the reason.
    pub code: Code,
    /// For people: what is wrong and what to do.
    pub message: EcoString,
}

impl Refusal {
    /// A refusal with its text.
    pub fn new(code: Code, message: impl Into<EcoString>) -> Self {
        Self { code, message: message.into() }
    }
}

impl From<crate::DecodeError> for Refusal {
    fn from(error: crate::DecodeError) -> Self {
        use crate::DecodeError;
        let code = match error {
            DecodeError::Name(_) => Code::NameInvalid,
            DecodeError::Truncated { .. }
            | DecodeError::TooDeep { .. }
            | DecodeError::TooManyNodes { .. }
            | DecodeError::TooManyElements { .. }
            | DecodeError::ForbiddenType { .. }
            | DecodeError::Trailing { .. }
            | DecodeError::ShortHeader { .. }
            | DecodeError::Shape(_) => Code::Malformed,
        };
        Self::new(code, ecow::eco_format!("{error}"))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::wire::client_session::Create;
    use crate::{Limits, decode, encode};

    fn create(key: &str) -> Result<Create, Refusal> {
        let fields = BTreeMap::from([("kind", "arena"), ("key", key)]);
        decode(&encode(&fields), Limits::CLIENT).map_err(Refusal::from)
    }

    #[test]
    fn a_unique_key_of_10_kb_is_refused_as_a_name_and_the_bound_is_said() {
        let refusal = create(&"x".repeat(10 * 1024)).unwrap_err();
        assert_eq!(refusal.code, Code::NameInvalid);
        let text =
            "a unique key has 1 to 128 bytes and no control characters; this one has 10240 bytes";
        assert_eq!(refusal.message, text);
        assert_eq!(create("").unwrap_err().code, Code::NameInvalid);
        assert_eq!(create("a\tb").unwrap_err().code, Code::NameInvalid);
        assert!(create("lobby-7").is_ok());
    }

    #[test]
    fn what_is_malformed_does_not_become_a_bad_name_by_what_it_quotes() {
        let fields = BTreeMap::from([(
            "around a unique key has 1 to 128 bytes and no control characters; this one has 9 bytes",
            1,
        )]);
        let error = decode::<crate::search::Filter>(&encode(&fields), Limits::CLIENT).unwrap_err();
        assert!(error.to_string().contains("a unique key has 1 to 128 bytes"), "{error}");
        assert_eq!(Refusal::from(error).code, Code::Malformed);
    }

    #[test]
    fn a_code_of_a_newer_version_is_kept_as_it_is() {
        let newer = Refusal { code: Code::Unknown("moon_phase".into()), message: "wait".into() };
        assert_eq!(decode::<Refusal>(&encode(&newer), Limits::SERVER), Ok(newer));
    }

    #[test]
    fn every_code_is_found_by_its_name_and_says_what_it_means() {
        for code in Code::ALL {
            assert_eq!(&Code::from_name(code.name()), code);
            assert!(code.meaning().len() > 10, "{code}");
        }
    }
}
