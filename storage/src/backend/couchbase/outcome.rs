//! What an error of the SDK says about what has happened: most of the traps of this client are here.

use couchbase::error::{Error, ErrorKind};
use ecow::{EcoString, eco_format};

/// What became of one attempt that did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// No such document.
    Missing,
    /// The document is there already.
    Exists,
    /// It has another version.
    Mismatch,
    /// Nothing has happened, and the same may succeed in a moment.
    Passing(EcoString),
    /// Nothing has happened, and no retry mends it.
    Final(EcoString),
    /// It may have happened, or may happen yet.
    Ambiguous(EcoString),
    /// As ambiguous; and the connection is of no more use.
    Stale(EcoString),
}

impl Failure {
    /// Reads an error of the SDK.
    ///
    /// The kinds that say for certain that nothing has happened are named; of everything else it is not certain, and a
    /// look at the document decides.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the kind of an error may be any, also of a later SDK: what is not named is not certain"
    )]
    pub(super) fn of(error: &Error) -> Self {
        let text = || EcoString::from(error.to_string());
        match error.kind() {
            ErrorKind::DocumentNotFound => Self::Missing,
            ErrorKind::DocumentExists => Self::Exists,
            ErrorKind::CasMismatch => Self::Mismatch,
            ErrorKind::TemporaryFailure
            | ErrorKind::DocumentLocked
            | ErrorKind::DurabilityWriteInProgress
            | ErrorKind::DurableWriteRecommitInProgress
            | ErrorKind::RateLimitedFailure => Self::Passing(text()),
            ErrorKind::DurabilityImpossible => Self::Passing(
                "the nodes that are there can't hold as many copies as the durability asks for".into(),
            ),
            ErrorKind::ServiceNotAvailable(_) => Self::Passing(text()),
            ErrorKind::DurabilityLevelNotAvailable => Self::Final(
                "the bucket has no such durability: lower storage.couchbase_durability, or change the bucket".into(),
            ),
            ErrorKind::AuthenticationFailure => Self::Final(eco_format!(
                "the user of storage.couchbase_user has no right to do that ({})",
                error.kind()
            )),
            ErrorKind::BucketNotFound
            | ErrorKind::ScopeNotFound
            | ErrorKind::CollectionNotFound => Self::Final(eco_format!(
                "{}; a server that may make scopes, collections and indexes makes what is missing when it starts",
                error.kind()
            )),
            ErrorKind::ValueTooLarge
            | ErrorKind::InvalidArgument(_)
            | ErrorKind::FeatureNotAvailable(_)
            | ErrorKind::UnsupportedOperation
            | ErrorKind::QuotaLimitedFailure
            | ErrorKind::EncodingFailure(_)
            | ErrorKind::PathNotFound
            | ErrorKind::PathMismatch
            | ErrorKind::DocumentNotJSON => Self::Final(text()),
            // The SDK has no kind for it, and the connection answers nothing any more after it.
            ErrorKind::OtherFailure(words) if words.to_lowercase().contains("auth stale") => {
                Self::Stale(words.as_str().into())
            }
            ErrorKind::ClusterDropped => Self::Stale("the connection was made anew".into()),
            // Among them: a connection closed in flight, which is told by its text alone.
            _ => Self::Ambiguous(text()),
        }
    }

    /// That an attempt had no answer in its time.
    pub(super) fn silence() -> Self {
        Self::Ambiguous("no answer in time".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_certain_is_ambiguous() {
        let of = |kind| Failure::of(&Error::new(kind));
        let other = |text: &str| ErrorKind::OtherFailure(text.into());
        for kind in [
            other("request cancelled: Closed in flight, dispatched to: 127.0.0.1:11210"),
            other("Server error: internal error, status: 0x84"),
            ErrorKind::DurabilityAmbiguous,
            ErrorKind::RequestCanceled,
            ErrorKind::ServerTimeout,
            ErrorKind::InternalServerFailure,
        ] {
            assert!(matches!(of(kind.clone()), Failure::Ambiguous(_)), "{kind:?}");
        }
        assert!(matches!(of(other("Server error: auth stale, status: 0x1f")), Failure::Stale(_)));
        assert!(matches!(of(ErrorKind::TemporaryFailure), Failure::Passing(_)));
        assert!(matches!(of(ErrorKind::AuthenticationFailure), Failure::Final(_)));
        assert_eq!(of(ErrorKind::CasMismatch), Failure::Mismatch);
    }
}
