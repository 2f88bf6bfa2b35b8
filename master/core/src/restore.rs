//! Instances whose game server is gone, and that go on elsewhere from what was stored of them.
//!
//! *Running → stranded → restoring → running.* An instance is stranded from when its server is given up until another
//! one can take it: that one is told to restore it, and says that it runs or why not. Each time it is in another life,
//! whose number is one more than that of the life before: the store and the session servers take the higher one only,
//! so that what is left of the old life can do nothing. Its seats are kept meanwhile for the sessions that hold them.

use std::ops::Bound;

use ecow::eco_format;
use greenroom_protocol::wire::admin_master::RestoreInstance;
use greenroom_protocol::wire::master_game::{CreateInstance, Restore, RestoredSeat};
use greenroom_protocol::wire::session_master::{MasterToSession, Moved, Outcome, SeatLost};
use greenroom_protocol::{Code, Incarnation, InstanceId, KindName, Refusal, Seat, SessionId};

use crate::deadlines::NEVER;
use crate::directory::{At, Instance, SeatRecord, SeatStage, Stage};
use crate::facts::Fact;
use crate::servers::GameSlot;
use crate::state::State;

/// Stranded instances that one command has restored: the rest is left to the next.
const RESTORED_MAX: usize = 1_000;

impl State {
    /// Whether an instance goes on elsewhere when its server is lost. One that never ran has nothing to go on from, and
    /// one that is to close has no reason to.
    pub(crate) fn goes_on(&self, at: At) -> bool {
        let instance = self.directory.get(at);
        instance.durable()
            && match instance.stage {
                Stage::Running | Stage::Stranded | Stage::Restoring => true,
                Stage::Granted | Stage::Closing => false,
            }
    }

    /// The life of an instance is over, and it goes on in another one as soon as a server can take it.
    pub(crate) fn strand(&mut self, at: At) {
        let seats: Vec<(Seat, SeatRecord)> = self.directory.get(at).seats().collect();
        for (seat, record) in seats {
            let stage = match record.stage {
                SeatStage::Taken | SeatStage::Away => SeatStage::Away,
                SeatStage::Free | SeatStage::Expected | SeatStage::Reserved => record.stage,
            };
            self.touch_holder(&record);
            self.set_seat(at, seat, SeatRecord { stage, until_ms: NEVER, ..record });
        }
        let id = self.directory.get(at).id;
        self.stranded.insert((self.directory.kind(at).clone(), id));
        self.edit(at, |instance| {
            instance.stage = Stage::Stranded;
            instance.suspect = false;
            let Incarnation(life) = instance.incarnation;
            instance.incarnation = Incarnation(life.wrapping_add(1));
            // Who was on the way out is out: nobody is let in before the seats are what is written here.
            instance.vacating_mut().clear();
        });
    }

    /// Has a stranded instance restored by a server that can take it. False if none can now.
    pub(crate) fn restore_elsewhere(&mut self, at: At) -> bool {
        let kind = self.directory.kind(at).clone();
        let instance = self.directory.get(at);
        let (id, before, weighed) = (instance.id, instance.server, instance.weight);
        // What it takes of the server that it was on is free, should it go there again.
        self.game_servers.get_mut(before).take(id, weighed);
        let placed = self.place(&kind).map(|(server, info)| (server, info.weight));
        let Ok((server, weight)) = placed else {
            self.game_servers.get_mut(before).add(id, weighed);
            return false;
        };
        self.stranded.remove(&(kind.clone(), id));
        let holders: Vec<SeatRecord> =
            self.directory.get(at).seats().map(|(_, record)| record).collect();
        holders.iter().for_each(|record| self.touch_holder(record));
        self.edit(at, |instance| {
            instance.stage = Stage::Restoring;
            instance.suspect = false;
            instance.server = server;
            instance.weight = weight;
        });
        self.game_servers.get_mut(server).add(id, weight);
        let name = self.game_servers.get(server).peer.name.clone();
        let incarnation = self.directory.get(at).incarnation;
        self.facts.push(Fact::Restoring(id, kind.clone(), name, incarnation));
        let order = self.order_to_restore(at, kind);
        self.tell_game(server, order.into());
        true
    }

    /// An instance that is over goes on: what was stored of it is there again. Asked once more, it is there.
    ///
    /// # Errors
    /// Nobody could run it, or another one has its unique key: then nothing has changed.
    pub(crate) fn revive(&mut self, wanted: &RestoreInstance) -> Result<(), Refusal> {
        let RestoreInstance { instance: id, incarnation, kind, owner, key, created_ms, private } =
            wanted;
        if let Some(at) = self.directory.find(*id) {
            if self.directory.get(at).incarnation < *incarnation {
                let text = eco_format!("the last life of {id} is not over yet: try again");
                return Err(Refusal::new(Code::Busy, text));
            }
            return Ok(());
        }
        let rival = key.as_ref().and_then(|key| self.directory.by_key(kind, key));
        if let Some(rival) = rival.map(|at| self.directory.get(at).id) {
            let text = eco_format!(
                "the instance {rival} has its unique key: close that one, and try again"
            );
            return Err(Refusal::new(Code::KeyTaken, text));
        }
        let (server, info) = self.place(kind)?;
        if !info.durable {
            let text = eco_format!("of kind {kind:?} nothing is restored: it is not durable");
            return Err(Refusal::new(Code::KindUnknown, text));
        }
        let mut record = Instance::granted(*id, *incarnation, server, info.seats_max, info.weight);
        record.stage = Stage::Stranded;
        record.owner.clone_from(owner);
        record.key_set(key.clone());
        record.private = *private;
        record.durable_set(true);
        record.created_ms = *created_ms;
        let at = self.directory.insert(&mut self.ledger, kind, record);
        self.keep(at);
        self.stranded.insert((kind.clone(), *id));
        // It waits for a server if none has room by now.
        self.restore_elsewhere(at);
        Ok(())
    }

    fn order_to_restore(&self, at: At, kind: KindName) -> CreateInstance {
        let instance = self.directory.get(at);
        let seats = instance.seats().filter_map(|(seat, record)| {
            let session = record.holder()?;
            Some(RestoredSeat { seat, session })
        });
        CreateInstance {
            instance: instance.id,
            incarnation: instance.incarnation,
            kind,
            // All of this is in what was stored.
            params: Default::default(),
            seed: [0; 32],
            owner: instance.owner.clone(),
            key: instance.key().cloned(),
            created_ms: instance.created_ms,
            private: instance.private,
            restore: Some(Restore { seats: seats.collect() }),
        }
    }

    /// A server has room, or is there: what is stranded is tried again, kind by kind.
    pub(crate) fn restore_stranded(&mut self) {
        let mut from = Bound::Unbounded;
        for _ in 0..RESTORED_MAX {
            let next = self.stranded.range((from, Bound::Unbounded)).next().cloned();
            let Some((kind, id)) = next else { return };
            let at = self.directory.find(id).expect("a removed instance is not stranded");
            from = if self.restore_elsewhere(at) {
                Bound::Excluded((kind, id))
            } else {
                // Nobody takes another of the kind now.
                Bound::Excluded((kind, InstanceId(u128::MAX)))
            };
        }
    }

    /// An instance runs again: the sessions that hold its seats are taken there.
    pub(crate) fn tell_moved(&mut self, at: At) {
        for (seat, session) in self.holders(at) {
            let Outcome::Granted(granted) = self.granted(at, seat) else { continue };
            self.tell_holder(session, |session| Moved { session, granted }.into());
        }
    }

    /// An instance that does not run is gone: those for whom seats were kept are told.
    pub(crate) fn tell_seats_lost(&mut self, at: At, refusal: &Refusal) {
        let instance = self.directory.get(at).id;
        for (_, session) in self.holders(at) {
            let refusal = refusal.clone();
            self.tell_holder(session, |session| SeatLost { session, instance, refusal }.into());
        }
    }

    fn holders(&self, at: At) -> Vec<(Seat, SessionId)> {
        let seats = self.directory.get(at).seats();
        seats.filter_map(|(seat, record)| Some((seat, record.holder()?))).collect()
    }

    /// Tells the session server that has the session now; one that is bound later asks for its seat.
    fn tell_holder(&mut self, session: SessionId, told: impl FnOnce(SessionId) -> MasterToSession) {
        let slot = self.users.find(session);
        if let Some(server) = slot.and_then(|slot| self.users.session(slot).binding) {
            self.tell_session(server, told(session));
        }
    }

    /// What a seat's holder was answered says where its instance is: it is about to change.
    fn touch_holder(&mut self, record: &SeatRecord) {
        if let Some(slot) = record.holder().and_then(|session| self.users.find(session)) {
            self.session_mut(slot);
        }
    }

    /// Whether a game server's word is of a life that was given up, of an instance that goes on in another one.
    pub(crate) fn is_of_a_former_life(&self, at: At, incarnation: Incarnation) -> bool {
        let instance = self.directory.get(at);
        instance.durable() && incarnation < instance.incarnation
    }

    /// The instances of a server that run there, or are to: what is stranded only waits on its list.
    pub(crate) fn placed_on(&self, server: GameSlot) -> impl Iterator<Item = InstanceId> {
        let all = self.game_servers.get(server).instances.iter().copied();
        all.filter(|id| {
            let at = self.directory.find(*id);
            at.is_some_and(|at| self.directory.get(at).stage != Stage::Stranded)
        })
    }
}

/// Whether a server does not restore an instance for a reason of its own, so that another one may.
pub(crate) const fn is_of_the_server(code: &Code) -> bool {
    matches!(
        code,
        Code::NoCapacity | Code::Draining | Code::Busy | Code::Unavailable | Code::KindUnknown
    )
}
