//! What an instance is told, and a record of all of it.

use std::time::Duration;

use ecow::EcoString;
use greenroom_protocol::wire::master_game::CreateInstance;
use greenroom_protocol::{Generation, Incarnation, Moment, Refusal, Seat, Seq, SessionId, UserId};
use serde::{Deserialize, Serialize};

use crate::{StoreRefusal, StoreTicket, Stored};

/// The time of an input, as the shell read it. An instance knows no other clock, so a recorded one runs alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Now {
    /// Never goes back.
    pub moment: Moment,
    /// Wall clock: since 1970.
    pub wall: Duration,
}

/// One thing that an instance is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Input<'a> {
    /// Somebody takes the seat that the directory gave, or takes it back.
    Attach {
        /// Which.
        seat: Seat,
        /// Who.
        user: UserId,
        /// The name to be shown.
        name: EcoString,
        /// In which session.
        session: SessionId,
        /// Over which binding: the seat follows the highest.
        generation: Generation,
        /// For the game's `admit`.
        #[serde(borrow, with = "serde_bytes")]
        options: &'a [u8],
    },
    /// A seat's connection is gone.
    Lost {
        /// Which.
        seat: Seat,
        /// Only if the seat still follows this binding.
        generation: Generation,
    },
    /// A frame of a seat.
    Frame {
        /// Which.
        seat: Seat,
        /// The frame's kind.
        kind: u8,
        /// Messages and calls: number on the reliable channel; queries: the client's own.
        number: Seq,
        /// The client has every reliable message up to this one.
        ack: Seq,
        /// Its payload.
        #[serde(borrow, with = "serde_bytes")]
        payload: &'a [u8],
    },
    /// A seat was not sent some patches: it gets every view anew.
    Refresh {
        /// Which.
        seat: Seat,
    },
    /// The directory frees a seat.
    Free {
        /// Which.
        seat: Seat,
        /// Only if this session holds it.
        session: SessionId,
        /// Why.
        refusal: Refusal,
    },
    /// It goes on from a snapshot, in another life: nobody is connected, and no time has passed.
    Revived {
        /// In which.
        incarnation: Incarnation,
        /// Who holds which seat by now; the others have left.
        seats: Vec<(Seat, SessionId)>,
    },
    /// One step, at a fixed tick rate.
    Tick,
    /// [`crate::Core::next_due`] has come, at tick rate 0.
    Wake,
    /// The store has answered.
    Stored {
        /// What was asked.
        ticket: StoreTicket,
        /// What became of it.
        outcome: Result<Stored, StoreRefusal>,
    },
    /// The directory closes the instance.
    Destroy {
        /// Why.
        refusal: Refusal,
    },
}

/// An instance from its creation on: enough to run it again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recording {
    /// How it was made.
    pub order: CreateInstance,
    /// When.
    pub start: Now,
    #[serde(with = "serde_bytes")]
    inputs: Vec<u8>,
}

impl Recording {
    /// The record of an instance that is being made.
    pub const fn new(order: CreateInstance, start: Now) -> Self {
        Self { order, start, inputs: Vec::new() }
    }
    /// Appends an input.
    pub fn push(&mut self, now: Now, input: &Input<'_>) {
        greenroom_protocol::encode_into(&(now, input), &mut self.inputs);
    }
    /// What was recorded, in order, up to the end or to what can't be read.
    pub fn inputs(&self) -> impl Iterator<Item = (Now, Input<'_>)> {
        let mut rest = rmp_serde::Deserializer::from_read_ref(&self.inputs);
        std::iter::from_fn(move || Deserialize::deserialize(&mut rest).ok())
    }
    /// How many bytes the inputs are.
    pub const fn bytes(&self) -> usize {
        self.inputs.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use greenroom_protocol::{InstanceId, KindName};

    #[test]
    fn a_recording_gives_back_what_was_recorded() {
        let order = CreateInstance {
            instance: InstanceId(1),
            incarnation: Incarnation(2),
            kind: KindName::new("x").unwrap(),
            params: Default::default(),
            seed: [3; 32],
            owner: None,
            key: None,
            created_ms: 0,
            private: false,
            restore: None,
        };
        let now = Now { moment: Moment(5), wall: Duration::from_micros(1_234_567) };
        let mut recording = Recording::new(order, now);
        let frame = Input::Frame {
            seat: Seat(1),
            kind: 0x20,
            number: Seq(1),
            ack: Seq(0),
            payload: &[1, 2, 3],
        };
        recording.push(now, &frame);
        recording.push(now, &Input::Tick);
        let stored = rmp_serde::to_vec_named(&recording).unwrap();
        let restored: Recording = rmp_serde::from_slice(&stored).unwrap();
        assert_eq!(restored.inputs().collect::<Vec<_>>(), [(now, frame), (now, Input::Tick)]);
    }
}
