//! What a state machine must be able to do to be replicated, and that the master's state can.

use std::fmt;
use std::hash::Hasher;

use greenroom_protocol::encode_into;
use siphasher::sip128::{Hasher128, SipHasher13};

use crate::command::{Command, Effect, Effects, Event, Header};
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
    /// The state as it was at one moment, whatever is applied later.
    type Frozen: fmt::Debug;

    /// Grows when the same commands give another state than before: masters of different versions can't pair.
    const VERSION: u16;

    /// Applies a command. It is total: what can't be done is refused, by the same effects on both masters, since a
    /// command that brings one down would bring down the other when it is repeated there.
    fn apply(&mut self, header: &Header, command: &Self::Command, effects: &mut Vec<Self::Effect>);

    /// A hash of a command, for the chain of the log.
    fn digest(command: &Self::Command) -> u128;

    /// A hash of everything that later commands depend on.
    fn hash(&self) -> u128;

    /// The state as it is now, to be cut into pieces while commands go on.
    fn freeze(&self) -> Self::Frozen;

    /// At most `max` pieces from number `from` on; none after the last.
    fn pieces(frozen: &Self::Frozen, from: usize, max: usize) -> Vec<Self::Piece>;

    /// The state that these pieces are of, with the settings of this one.
    ///
    /// # Errors
    /// When they are not all of it.
    fn restore(&self, pieces: Vec<Self::Piece>) -> Result<Self, BadSnapshot>;
}

/// The directory. Freezing copies it, and its hash reads all of it: both stop the master for as long as it is large,
/// so the shell chooses [`super::Settings`] in which they are rare.
impl Apply for State {
    type Command = Command;
    type Effect = Effect;
    type Piece = Record;
    type Frozen = Vec<Record>;

    const VERSION: u16 = 1;

    fn apply(&mut self, header: &Header, command: &Command, effects: &mut Effects) {
        State::apply(self, header, command, effects);
    }

    fn digest(command: &Command) -> u128 {
        let mut bytes = Vec::new();
        encode(command, &mut bytes);
        let mut hasher = SipHasher13::new();
        hasher.write(&bytes);
        hasher.finish128().as_u128()
    }

    fn hash(&self) -> u128 {
        self.state_hash()
    }

    fn freeze(&self) -> Vec<Record> {
        self.records().collect()
    }

    fn pieces(frozen: &Vec<Record>, from: usize, max: usize) -> Vec<Record> {
        frozen.iter().skip(from).take(max).cloned().collect()
    }

    fn restore(&self, pieces: Vec<Record>) -> Result<Self, BadSnapshot> {
        State::restore(&self.secret, self.settings, self.placement(), pieces)
    }
}

/// The bytes that stand for a command: its number among the commands, then what it holds.
fn encode(command: &Command, out: &mut Vec<u8>) {
    match command {
        Command::SessionUp(who, report) => {
            encode_into(&(0_u8, &who.server, who.incarnation, report), out);
        }
        Command::SessionLoad(who, load) => {
            encode_into(&(1_u8, &who.server, who.incarnation, load), out);
        }
        Command::SessionReceived(who, n) => {
            encode_into(&(2_u8, &who.server, who.incarnation, n), out);
        }
        Command::Bind(who, bind) => encode_into(&(3_u8, &who.server, who.incarnation, bind), out),
        Command::Unbind(who, n, unbind) => {
            encode_into(&(4_u8, &who.server, who.incarnation, n, unbind), out);
        }
        Command::Seen(who, seen) => encode_into(&(5_u8, &who.server, who.incarnation, seen), out),
        Command::Ask { origin: who, session, id, answered, request } => {
            encode_into(&(6_u8, &who.server, who.incarnation, session, id, answered, request), out);
        }
        Command::GameUp(who, report) => {
            encode_into(&(7_u8, &who.server, who.incarnation, report), out);
        }
        Command::GameLoad(who, load) => {
            encode_into(&(8_u8, &who.server, who.incarnation, load), out);
        }
        Command::GameReceived(who, n) => {
            encode_into(&(9_u8, &who.server, who.incarnation, n), out);
        }
        Command::Happened(who, n, event) => {
            encode_into(&(10_u8, &who.server, who.incarnation, n), out);
            match event {
                Event::Running(running) => encode_into(&(0_u8, running), out),
                Event::CreateRefused(refused) => encode_into(&(1_u8, refused), out),
                Event::SeatChanged(changed) => encode_into(&(2_u8, changed), out),
                Event::MetaChanged(changed) => encode_into(&(3_u8, changed), out),
                Event::Closed(closed) => encode_into(&(4_u8, closed), out),
                Event::Scored(scored) => encode_into(&(5_u8, scored), out),
            }
        }
        Command::LinkLost(role, who) => {
            encode_into(&(11_u8, role, &who.server, who.incarnation), out);
        }
        Command::Expire => encode_into(&12_u8, out),
        Command::Act { number, action } => encode_into(&(13_u8, number, action), out),
    }
}
