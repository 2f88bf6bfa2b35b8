//! Events of a game's own, for the event log.

use greenroom_protocol::UserId;
use serde::Serialize;

/// Events that one step may tell: of the rest, a line of the log says how many there were.
pub const EVENTS_STEP_MAX: usize = 64;
/// Bytes that an event's fields may have, as JSON: an event that has more is not told either.
pub const EVENT_BYTES_MAX: usize = 4 << 10;

/// A kind of event of a game's own, for those who analyse how it is played: a struct whose fields serde can write.
///
/// ```
/// #[derive(serde::Serialize)]
/// struct Over {
///     turns: u16,
/// }
/// impl greenroom_game_core::GameEvent for Over {
///     const KIND: &'static str = "over";
/// }
/// ```
///
/// `cx.event(&Over { turns: 12 })` in an instance of the kind `duel` is then `duel.over` in the event log, and a view
/// of that name for SQL, with a column `turns`. A kind that is no name does not compile where it is told.
pub trait GameEvent: Serialize {
    /// Small letters, digits and `_`, 32 at most.
    const KIND: &'static str;
    /// Grows when a field changes its meaning or goes; a new field does not change it.
    const VERSION: u16 = 1;
}

/// An event of a game's own that is on its way to the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// What happened: [`GameEvent::KIND`].
    pub kind: &'static str,
    /// [`GameEvent::VERSION`].
    pub version: u16,
    /// The user that it is about.
    pub user: Option<UserId>,
    /// Its fields: an object of JSON.
    pub fields: String,
}

/// Whether a text can be a kind.
pub(crate) const fn is_kind(text: &str) -> bool {
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        if !matches!(bytes[at], b'a'..=b'z' | b'0'..=b'9' | b'_') {
            return false;
        }
        at += 1;
    }
    at > 0 && at <= 32
}

/// An event's fields as JSON; nothing if they are too many.
pub(crate) fn fields<E: GameEvent>(event: &E) -> Result<Option<String>, String> {
    let text = serde_json::to_string(event).map_err(|error| error.to_string())?;
    match text.as_bytes() {
        b"null" => Ok(Some("{}".to_owned())),
        [b'{', ..] => Ok((text.len() <= EVENT_BYTES_MAX).then_some(text)),
        _ => Err(format!("{text:.60} is no struct")),
    }
}
