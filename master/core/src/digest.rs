//! One number for the whole state: equal states have equal hashes, whoever has them.
//!
//! It is the sum of the records' hashes, so that it does not depend on slots, and so that it can be kept up at each
//! write where that is needed. Streams count as records: what was not acknowledged is part of the state.

use greenroom_protocol::{Outbound, encode_into};
use serde::Serialize;

use crate::boards::Row;
use crate::directory::{Instance, SeatStage, Stage, Wants};
use crate::mint::ClusterSecret;
use crate::rejoin::Waiting;
use crate::servers::{Health, Peer};
use crate::state::State;
use crate::users::{Life, Session};

/// Collects what one record says, in a form that is the same on every machine.
struct Record<'a> {
    secret: &'a ClusterSecret,
    bytes: Vec<u8>,
}

impl Record<'_> {
    fn number(&mut self, number: impl Into<u64>) -> &mut Self {
        self.bytes.extend_from_slice(&number.into().to_le_bytes());
        self
    }
    fn value(&mut self, value: &(impl Serialize + ?Sized)) -> &mut Self {
        encode_into(value, &mut self.bytes);
        self
    }
    /// The record's hash; the record is empty again.
    fn finish(&mut self) -> u128 {
        let mut hash = [0; 16];
        hash.copy_from_slice(&self.secret.keyed(&self.bytes)[..16]);
        self.bytes.clear();
        u128::from_le_bytes(hash)
    }
}

impl State {
    /// A hash of everything that later commands depend on.
    pub fn state_hash(&self) -> u128 {
        let mut record = Record { secret: &self.secret, bytes: Vec::new() };
        let mut sum = 0u128;
        let mut add = |hash: u128| sum = sum.wrapping_add(hash);
        record.number(self.lsn).number(self.now_ms).value(&self.epoch).value(&self.announced);
        add(record.finish());
        for (_, server) in self.session_servers.iter() {
            record.number(1u8).value(&server.urls).number(server.connections_max);
            record.value(&server.load).value(&server.sessions);
            self.peer(&mut record, &server.peer, |message, out| message.encode_into(out));
            add(record.finish());
        }
        for (_, server) in self.game_servers.iter() {
            record.number(2u8).value(&server.address).number(server.capacity);
            record.value(&server.load).value(&server.labels).value(&server.instances);
            for kind in server.kinds.values() {
                record.value(kind);
            }
            self.peer(&mut record, &server.peer, |message, out| message.encode_into(out));
            add(record.finish());
        }
        for (_, session) in self.users.iter() {
            self.session(&mut record, session);
            add(record.finish());
        }
        for (kind, fields) in self.directory.kinds() {
            record.value(kind).value(fields);
            add(record.finish());
        }
        for (_, kind, instance) in self.directory.iter() {
            record.value(kind);
            self.instance(&mut record, instance);
            add(record.finish());
        }
        record.number(self.rejoin.has_begun).number(self.rejoin.until_ms);
        for Waiting { session, id, request } in &self.rejoin.waiting {
            record.value(session).number(id.0).number(request.kind());
            request.encode_into(&mut record.bytes);
        }
        add(record.finish());
        for ((kind, filter), instance) in &self.meets {
            record.value(kind).value(filter).value(instance);
            add(record.finish());
        }
        for Row { board, changes, member } in self.boards.iter() {
            record.value(board).number(changes).value(&member.user).value(&member.name);
            record.value(&member.score).number(member.since);
            add(record.finish());
        }
        for (id, code) in self.departed.iter() {
            record.value(&id).value(code);
            add(record.finish());
        }
        sum
    }

    fn peer<M>(&self, record: &mut Record<'_>, peer: &Peer<M>, encode: impl Fn(&M, &mut Vec<u8>)) {
        let health = match peer.health {
            Health::Up => 0u8,
            Health::Suspect => 1,
            Health::Down => 2,
        };
        record.value(&peer.name).value(&peer.incarnation).value(&peer.build).number(health);
        record.number(peer.reported_ms).number(peer.drained);
        record.number(peer.until_ms).number(peer.inbound.received()).number(peer.out.last());
        let out: &Outbound<M> = &peer.out;
        for (n, message) in out.unacknowledged() {
            record.number(n);
            encode(message, &mut record.bytes);
        }
    }

    fn session(&self, record: &mut Record<'_>, session: &Session) {
        record.number(3u8).value(&session.id).value(&session.key).number(session.generation.0);
        match &session.life {
            Life::Live { user } => {
                let user = self.users.user(*user);
                record.value(&user.id).value(&user.name);
            }
            Life::Ended(refusal) => {
                record.value(&**refusal);
            }
        }
        record.value(&session.bound_by);
        record.value(&session.binding.map(|server| self.session_server_name(server)));
        record.number(session.until_ms);
        for (at, seat) in &session.seats {
            record.value(&self.directory.get(*at).id).value(seat);
        }
        record.number(session.requests.answered.0);
        for (id, outcome) in session.requests.iter() {
            record.number(id.0).value(&outcome);
        }
    }

    fn instance(&self, record: &mut Record<'_>, instance: &Instance) {
        let stage = match instance.stage {
            Stage::Granted => 0u8,
            Stage::Running => 1,
            Stage::Closing => 2,
        };
        record.value(&instance.id).value(&instance.incarnation).number(stage);
        record.value(&self.game_servers.get(instance.server).peer.name);
        record
            .number(instance.open)
            .number(instance.private)
            .number(instance.created_ms)
            .number(instance.suspect)
            .number(instance.seats_max)
            .number(instance.weight);
        record.value(instance.expected()).value(&instance.wishes().filter);
        record.value(&instance.owner).value(&instance.key()).value(instance.meta().bytes());
        for waiter in instance.waiters() {
            record.value(&waiter.session).number(waiter.id.0);
            match waiter.wants {
                Wants::Created => record.number(0u8),
                Wants::Seat(seat) => record.number(1u8).number(seat.0),
                Wants::Destroyed => record.number(2u8),
            };
        }
        record.value(instance.vacating());
        for (seat, held) in instance.seats() {
            let stage = match held.stage {
                SeatStage::Free => 0u8,
                SeatStage::Reserved => 1,
                SeatStage::Taken => 2,
                SeatStage::Away => 3,
                SeatStage::Expected => 4,
            };
            record.number(seat.0).number(stage).value(&held.session).number(held.until_ms);
        }
    }
}
