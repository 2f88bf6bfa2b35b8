//! What stands in the documents.

use std::collections::BTreeMap;

use ecow::EcoString;
use greenroom_master_core::{KeptInstance, RankedMember};
use greenroom_protocol::UserId;
use greenroom_protocol::wire::client_session::Meta;
use greenroom_storage::{Body, StorageError};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// `users/ID`: what stays of a user who has checked in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Profile {
    pub(crate) user: UserId,
    /// As it was shown last.
    pub(crate) name: EcoString,
    /// When the first check-in was, in milliseconds since 1970.
    pub(crate) first_ms: u64,
    /// When the newest was.
    pub(crate) last_ms: u64,
    /// What others have written beside it stays.
    #[serde(flatten)]
    pub(crate) other: BTreeMap<String, Value>,
}

impl Profile {
    /// The profile after a check-in: the first one stays the first, however late it is told.
    pub(crate) fn checked_in(
        before: Option<Self>,
        user: &UserId,
        name: &EcoString,
        first_ms: u64,
        last_ms: u64,
    ) -> Self {
        let (user, name) = (user.clone(), name.clone());
        match before {
            None => Self { user, name, first_ms, last_ms, other: BTreeMap::new() },
            Some(before) => Self {
                user,
                name,
                first_ms: first_ms.min(before.first_ms),
                last_ms: last_ms.max(before.last_ms),
                other: before.other,
            },
        }
    }

    pub(crate) fn body(&self) -> Result<Body, StorageError> {
        Ok(Body::of(self)?)
    }
}

/// `instances/ID`, without ids as numbers: a reader in JavaScript would round them.
#[derive(Serialize)]
struct Instance<'a> {
    instance: String,
    incarnation: String,
    kind: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    durable: bool,
    state: &'static str,
    server: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<&'a str>,
    created_ms: u64,
    seats_max: u16,
    open: bool,
    private: bool,
    meta: &'a Meta,
}

pub(crate) fn instance(kept: &KeptInstance) -> Result<Body, StorageError> {
    Ok(Body::of(&Instance {
        instance: kept.instance.to_string(),
        incarnation: kept.incarnation.to_string(),
        kind: kept.kind.as_str(),
        key: kept.key.as_ref().map(|key| key.as_str()),
        durable: kept.durable,
        state: kept.state,
        server: kept.server.as_str(),
        owner: kept.owner.as_ref().map(UserId::as_str),
        created_ms: kept.created_ms,
        seats_max: kept.seats_max,
        open: kept.open,
        private: kept.private,
        meta: &kept.meta,
    })?)
}

/// `boards/…`: a user's place on a board.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Member {
    pub(crate) board: EcoString,
    pub(crate) user: UserId,
    pub(crate) name: EcoString,
    pub(crate) score: i64,
    pub(crate) since: u64,
}

pub(crate) fn member(member: &RankedMember) -> Result<Body, StorageError> {
    let RankedMember { board, user, name, score, since } = member.clone();
    Ok(Body::of(&Member { board, user, name, score, since })?)
}
