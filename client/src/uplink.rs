//! Reliable messages of one seat to its instance: numbered, kept until acknowledged, sent again where needed.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use ecow::eco_format;
use greenroom_protocol::Seq;
use tokio::time::Instant;

use crate::{ClientError, error::Misbehaved};

/// Messages that may wait to be acknowledged, and their bytes. As much as an instance remembers of a seat's way up.
pub(crate) const UNACKNOWLEDGED_MAX: usize = 64;
pub(crate) const UNACKNOWLEDGED_BYTES_MAX: usize = 32 * 1024;
/// Pause before sending again what a full queue on the way threw away; doubles while it stays full.
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// One message on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) number: Seq,
    pub(crate) kind: u8,
    pub(crate) payload: Bytes,
}

/// The sending end.
#[derive(Debug)]
pub(crate) struct Uplink {
    last: u32,
    waiting: VecDeque<Message>,
    bytes: usize,
    /// How many at the front of `waiting` were sent on this connection.
    sent: usize,
    paused_until: Option<Instant>,
    pause: Duration,
}

impl Uplink {
    /// Begins after the messages that the instance has from this seat already.
    pub(crate) fn after(received: u32) -> Self {
        Self {
            last: received,
            waiting: VecDeque::new(),
            bytes: 0,
            sent: 0,
            paused_until: None,
            pause: PAUSE,
        }
    }

    /// Queues a message and gives its number.
    pub(crate) fn push(&mut self, kind: u8, payload: Bytes) -> Result<Seq, ClientError> {
        if payload.len() > UNACKNOWLEDGED_BYTES_MAX {
            return Err(ClientError::TooLarge {
                len: payload.len(),
                max: UNACKNOWLEDGED_BYTES_MAX,
            });
        }
        if self.waiting.len() >= UNACKNOWLEDGED_MAX
            || self.bytes + payload.len() > UNACKNOWLEDGED_BYTES_MAX
        {
            return Err(ClientError::Full { messages: self.waiting.len(), bytes: self.bytes });
        }
        let number = Seq(self.last).next();
        self.last = number.0;
        self.bytes += payload.len();
        self.waiting.push_back(Message { number, kind, payload });
        Ok(number)
    }

    /// The instance has everything up to `received`. Tells how many messages that were not known to be there.
    pub(crate) fn acknowledge(&mut self, received: Seq) -> Result<usize, Misbehaved> {
        if received.0 > self.last {
            return Err(Misbehaved(eco_format!(
                "message {received} is acknowledged, and the last one sent is {}",
                self.last
            )));
        }
        let mut news = 0;
        while let Some(first) = self.waiting.front().filter(|first| first.number <= received) {
            self.bytes -= first.payload.len();
            self.sent = self.sent.saturating_sub(1);
            self.waiting.pop_front();
            news += 1;
        }
        if news > 0 && self.paused_until.is_none() {
            self.pause = PAUSE;
        }
        Ok(news)
    }

    /// Whether the stream can go on where an instance says that it has everything up to `received`.
    pub(crate) fn goes_on_after(&self, received: u32) -> bool {
        let acknowledged = self.waiting.front().map_or(self.last, |first| first.number.0 - 1);
        (acknowledged..=self.last).contains(&received)
    }

    /// A new connection: everything that waits is to be sent on it.
    pub(crate) fn rewind(&mut self) {
        self.sent = 0;
        self.paused_until = None;
        self.pause = PAUSE;
    }

    /// What was sent last was thrown away on the way: all is to be sent again, after a pause.
    pub(crate) fn send_again(&mut self, now: Instant) {
        if self.paused_until.is_some() {
            return; // Several messages were thrown away; one pause is for all of them.
        }
        self.sent = 0;
        self.paused_until = Some(now + self.pause);
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }

    /// When the pause is over, if there is one.
    pub(crate) const fn paused_until(&self) -> Option<Instant> {
        self.paused_until
    }

    /// What is to be sent now; it counts as sent.
    pub(crate) fn unsent(&mut self, now: Instant) -> impl Iterator<Item = &Message> {
        if self.paused_until.is_some_and(|until| until <= now) {
            self.paused_until = None;
        }
        let from = if self.paused_until.is_some() {
            self.waiting.len()
        } else {
            std::mem::replace(&mut self.sent, self.waiting.len())
        };
        self.waiting.range(from..)
    }

    /// How many messages wait to be acknowledged.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(uplink: &mut Uplink, now: Instant) -> Vec<u32> {
        uplink.unsent(now).map(|message| message.number.0).collect()
    }
    fn push(uplink: &mut Uplink) -> Result<Seq, ClientError> {
        uplink.push(0x20, Bytes::from_static(b"x"))
    }

    #[test]
    fn what_is_not_acknowledged_is_sent_again_on_a_new_connection() {
        let now = Instant::now();
        let mut uplink = Uplink::after(7);
        for _ in 0..3 {
            push(&mut uplink).unwrap();
        }
        assert_eq!(numbers(&mut uplink, now), [8, 9, 10]);
        assert_eq!(numbers(&mut uplink, now), [] as [u32; 0]);
        assert_eq!(uplink.acknowledge(Seq(8)), Ok(1));
        assert!(uplink.goes_on_after(9) && !uplink.goes_on_after(7) && !uplink.goes_on_after(11));
        uplink.rewind();
        assert_eq!(numbers(&mut uplink, now), [9, 10]);
    }

    #[test]
    fn send_again_waits_for_its_pause_and_keeps_the_order() {
        let now = Instant::now();
        let mut uplink = Uplink::after(0);
        push(&mut uplink).unwrap();
        assert_eq!(numbers(&mut uplink, now), [1]);
        uplink.send_again(now);
        uplink.send_again(now);
        push(&mut uplink).unwrap();
        assert_eq!(numbers(&mut uplink, now), [] as [u32; 0]);
        assert_eq!(numbers(&mut uplink, now + PAUSE), [1, 2]);
        uplink.send_again(now + PAUSE);
        assert_eq!(uplink.paused_until(), Some(now + PAUSE * 3), "the pause doubles");
    }

    #[test]
    fn a_full_window_refuses_and_an_acknowledgement_makes_room() {
        let mut uplink = Uplink::after(0);
        for _ in 0..UNACKNOWLEDGED_MAX {
            push(&mut uplink).unwrap();
        }
        assert!(matches!(push(&mut uplink), Err(ClientError::Full { messages: 64, bytes: 64 })));
        uplink.acknowledge(Seq(1)).unwrap();
        assert_eq!(push(&mut uplink).unwrap(), Seq(65));
        let huge = Bytes::from(vec![0; UNACKNOWLEDGED_BYTES_MAX + 1]);
        assert!(matches!(uplink.push(0x20, huge), Err(ClientError::TooLarge { .. })));
        assert!(uplink.acknowledge(Seq(66)).is_err(), "nothing like it was sent");
    }
}
