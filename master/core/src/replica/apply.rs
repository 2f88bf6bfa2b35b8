//! What a state machine must be able to do to be replicated, and that the master's state can.

use std::fmt;
use std::hash::Hasher;

use bytes::Bytes;
use greenroom_protocol::{DecodeError, Limits, decode, encode};
use siphasher::sip128::{Hasher128, SipHasher13};

use crate::changes::Frozen;
use crate::command::{Command, Effect, Effects, Header};
use crate::record::{BadSnapshot, Record};
use crate::state::State;

/// A state machine that two masters keep in step.
pub trait Apply: Sized {
    /// What the log consists of.
    type Command: Clone + fmt::Debug;
    /// What the shell must do after a command is committed.
    type Effect: Clone + fmt::Debug;
    /// A part of a snapshot.
    type Piece: Clone + fmt::Debug;
    /// A snapshot under way. What it costs ends when it is dropped.
    type Frozen: fmt::Debug;

    /// Grows when the same commands give another state than before: masters of different versions can't pair.
    const VERSION: u16;

    /// Applies a command. It is total: what can't be done is refused, by the same effects on both masters, since a
    /// command that brings one down would bring down the other when it is repeated there.
    fn apply(&mut self, header: &Header, command: &Self::Command, effects: &mut Vec<Self::Effect>);

    /// Time of the last command, in the header's milliseconds; 0 before the first. A snapshot has it too, or else the
    /// log's time would run backwards when who copied it decides before it has applied anything.
    fn now_ms(&self) -> u64;

    /// A hash of a command, for the chain of the log.
    fn digest(command: &Self::Command) -> u128;

    /// A hash of everything that later commands depend on. It may write down what it read, so as to read less the next
    /// time.
    fn hash(&mut self) -> u128;

    /// Begins a snapshot of the state as it is now, which is read while commands go on.
    fn freeze(&mut self) -> Self::Frozen;

    /// The next pieces of a snapshot of this state, about `max` at most, and none after the last. All together they are
    /// the state as it was when the snapshot was begun, whatever was applied since. No piece is given twice.
    fn next_pieces(&mut self, frozen: &mut Self::Frozen, max: usize) -> Vec<Self::Piece>;

    /// The state that these pieces are of, with the settings of this one.
    ///
    /// # Errors
    /// When they are not all of it.
    fn restore(&self, pieces: Vec<Self::Piece>) -> Result<Self, BadSnapshot>;
}

/// A command with the bytes that it is in the log: encoded once for the disk, the other master and the chain.
#[derive(Clone, Debug, PartialEq)]
pub struct Logged {
    command: Command,
    bytes: Bytes,
}

impl Logged {
    /// A command that is new.
    pub fn new(command: Command) -> Self {
        let bytes = encode(&command).into();
        Self { command, bytes }
    }

    /// A command that comes from a disk or another master.
    ///
    /// # Errors
    /// When the bytes are no command of this version.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        Ok(Self { command: decode(&bytes, Limits::SERVER)?, bytes })
    }

    /// What it says.
    pub fn command(&self) -> &Command {
        &self.command
    }

    /// What it is in the log.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

/// The directory. A snapshot copies small tables at once and of large ones what is changed before it is read; the hash
/// reads small tables and what has changed since it was last asked for.
impl Apply for State {
    type Command = Logged;
    type Effect = Effect;
    type Piece = Record;
    type Frozen = Frozen;

    const VERSION: u16 = 1;

    fn apply(&mut self, header: &Header, command: &Logged, effects: &mut Effects) {
        State::apply(self, header, &command.command, effects);
    }

    fn now_ms(&self) -> u64 {
        self.now_ms
    }

    fn digest(command: &Logged) -> u128 {
        let mut hasher = SipHasher13::new();
        hasher.write(&command.bytes);
        hasher.finish128().as_u128()
    }

    fn hash(&mut self) -> u128 {
        self.check()
    }

    fn freeze(&mut self) -> Frozen {
        State::freeze(self)
    }

    fn next_pieces(&mut self, frozen: &mut Frozen, max: usize) -> Vec<Record> {
        self.next_records(frozen, max)
    }

    fn restore(&self, pieces: Vec<Record>) -> Result<Self, BadSnapshot> {
        State::restore(&self.secret, self.settings, self.placement(), pieces)
    }
}
