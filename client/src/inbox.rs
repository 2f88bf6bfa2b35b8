//! What happened in a room, on its way to the application: messages are never lost, states conflate.

use std::collections::VecDeque;

use bytes::Bytes;
use greenroom_protocol::{Incarnation, Limits, Refusal, Seq, decode};
use serde::de::DeserializeOwned;

use crate::{ClientError, Status};

/// Messages that wait for the application, and their bytes. Past either the client stops reading its connection, so
/// that the pressure reaches the server, which knows what to do with a slow client.
const MESSAGES_MAX: usize = 256;
const BYTES_MAX: usize = 256 * 1024;

/// Something that happened in a room.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The game sent a message to this seat. Each comes once, in order.
    Message(Message),
    /// What every client of the instance sees has changed; states that the application did not come to look at are
    /// skipped.
    State {
        /// Low 32 bits of the tick that made it.
        tick: u32,
        /// Its version.
        version: u32,
    },
    /// What only this seat sees has changed.
    PrivateState {
        /// Low 32 bits of the tick that made it.
        tick: u32,
        /// Its version.
        version: u32,
    },
    /// The game, or a server on the way, refused a message that was sent without waiting for a reply.
    Refused {
        /// The number that [`crate::RoomHandle::send`] gave.
        number: Seq,
        /// Why.
        refusal: Refusal,
    },
    /// The connection was lost, or is back.
    Status(Status),
    /// Messages to this seat are lost, since the client was away for longer than they are kept.
    Missed {
        /// How many.
        messages: u32,
    },
    /// The instance, or this seat in it, began anew: numbers begin again, and what was not yet acknowledged may or may
    /// not have happened.
    Rewound {
        /// The life of the instance that goes on.
        incarnation: Incarnation,
        /// Messages of this seat that were not yet acknowledged.
        unacknowledged: usize,
    },
    /// The seat is gone. Nothing follows.
    Left(Refusal),
}

/// A message of the game.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Low 32 bits of the tick whose step sent it.
    pub tick: u32,
    /// Its number on the seat's reliable channel, which replies to calls share.
    pub number: Seq,
    /// Encoded, as the game made it.
    pub payload: Bytes,
}

impl Message {
    /// The message as the game's own type.
    ///
    /// # Errors
    /// [`ClientError::Decode`] when it is of another type.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, ClientError> {
        decode(&self.payload, Limits::SERVER)
            .map_err(|source| ClientError::Decode { what: "a message of the game", source })
    }
}

/// The queue.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    queue: VecDeque<Event>,
    messages: usize,
    bytes: usize,
    muted: bool,
}

impl Inbox {
    /// Appends an event, or brings the one up to date that waits already.
    pub(crate) fn push(&mut self, event: Event) {
        if let Event::Message(message) = &event {
            if self.muted {
                return;
            }
            self.messages += 1;
            self.bytes += message.payload.len();
        } else if let Some(waiting) = self.queue.iter_mut().rev().find(|w| conflates(w, &event)) {
            *waiting = event;
            return;
        }
        self.queue.push_back(event);
    }

    pub(crate) fn pop(&mut self) -> Option<Event> {
        let event = self.queue.pop_front()?;
        if let Event::Message(message) = &event {
            self.messages -= 1;
            self.bytes -= message.payload.len();
        }
        Some(event)
    }

    /// Messages are dropped from here on.
    pub(crate) fn mute(&mut self) {
        self.muted = true;
        self.queue.retain(|event| !matches!(event, Event::Message(_)));
        (self.messages, self.bytes) = (0, 0);
    }

    pub(crate) const fn is_full(&self) -> bool {
        self.messages >= MESSAGES_MAX || self.bytes >= BYTES_MAX
    }

    /// Whether a client that stopped reading should go on: not at every single message.
    pub(crate) const fn has_room_again(&self) -> bool {
        self.messages <= MESSAGES_MAX / 2 && self.bytes <= BYTES_MAX / 2
    }
}

/// Whether only the newer of two events is of interest.
fn conflates(waiting: &Event, event: &Event) -> bool {
    matches!(
        (waiting, event),
        (Event::State { .. }, Event::State { .. })
            | (Event::PrivateState { .. }, Event::PrivateState { .. })
            | (Event::Status(_), Event::Status(_))
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(number: u32) -> Event {
        Event::Message(Message { tick: 0, number: Seq(number), payload: Bytes::new() })
    }

    #[test]
    fn states_conflate_and_messages_do_not() {
        let mut inbox = Inbox::default();
        inbox.push(Event::State { tick: 1, version: 1 });
        inbox.push(message(1));
        inbox.push(Event::State { tick: 2, version: 2 });
        inbox.push(message(2));
        assert_eq!(inbox.pop(), Some(Event::State { tick: 2, version: 2 }));
        assert_eq!(inbox.pop(), Some(message(1)));
        assert_eq!(inbox.pop(), Some(message(2)));
        assert_eq!(inbox.pop(), None);
    }

    #[test]
    fn a_full_inbox_says_so_until_half_of_it_is_read() {
        let mut inbox = Inbox::default();
        for number in 0..MESSAGES_MAX {
            assert!(!inbox.is_full());
            inbox.push(message(u32::try_from(number).unwrap()));
        }
        assert!(inbox.is_full());
        inbox.pop();
        assert!(!inbox.is_full() && !inbox.has_room_again());
        for _ in 0..MESSAGES_MAX / 2 {
            inbox.pop();
        }
        assert!(inbox.has_room_again());
    }
}
