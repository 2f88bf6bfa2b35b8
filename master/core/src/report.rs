//! What servers say of themselves and of what they have, and what happens when they fall silent.

use std::collections::{BTreeMap, BTreeSet};

use ecow::{EcoString, eco_format};
use greenroom_protocol::wire::client_session::{Meta, MetaValue};
use greenroom_protocol::wire::master_game::{
    Closed, CreateRefused, DestroyInstance, FreeSeat, GameReport, HandedOver, HeldInstance,
    HeldSeat, KindInfo, MetaChanged, Running, Scored, SeatChanged, SeatState,
};
use greenroom_protocol::wire::server_server::Role;
use greenroom_protocol::wire::session_master::{
    EndSession, HeldSession, Outcome, SessionLoad, SessionReport, Unbind,
};
use greenroom_protocol::{
    Code, Generation, Incarnation, InstanceId, KindName, Refusal, Seat, ServerName, SessionId,
};

use crate::boards::NotRanked;
use crate::command::{Effect, Event, Origin};
use crate::deadlines::{Due, NEVER};
use crate::directory::{At, Instance, SeatRecord, SeatStage, Stage, Waiter, Wants};
use crate::documents::{Document, RankedMember};
use crate::facts::{Asker, Fact};
use crate::restore::is_of_the_server;
use crate::search::Packed;
use crate::servers::{GameSlot, Health, Peer, SessionSlot};
use crate::state::{State, Step, bounded};
use crate::users::{Life, Session};

/// Bytes of a rank board's name, at most.
const BOARD_BYTES_MAX: usize = 64;
/// What is said of a rank board that may not be called so: not the name itself, which may be long.
pub(crate) const BOARD_NAMES: &str =
    "a board has a name of 1 to 64 bytes without control characters";
/// Bytes of a name that is shown beside a score, at most.
const SHOWN_BYTES_MAX: usize = 256;
/// Why an instance is to be stopped that was given up.
const GIVEN_UP: &str = "the directory gave this instance up";
/// Why an instance is to be stopped that is one too many.
const TWIN: &str = "an older instance has its unique key";

/// What a reporting server is to this master.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Known {
    /// It goes on where it was: both streams have everything, its lists say nothing new.
    SameLife,
    /// It was given up and comes back: what it had is lost already.
    GivenUp,
    /// It was never heard of in this life, or the master has lost its memory: what it has is taken over.
    New,
}

impl State {
    pub(crate) fn session_up(
        &mut self,
        step: &mut Step<'_>,
        origin: &Origin,
        report: &SessionReport,
    ) {
        let slot = self.session_servers.named_or_new(origin);
        let known = known(&self.session_servers.get(slot).peer, origin);
        let was_up = self.session_servers.get(slot).peer.health == Health::Up;
        if known == Known::New {
            // An earlier life of the process took its connections with it.
            let lost: Vec<SessionId> =
                self.session_servers.get(slot).sessions.iter().copied().collect();
            self.unbind_each(&lost);
            let peer = &mut self.session_servers.get_mut(slot).peer;
            let due = Due::Server(Role::Session, origin.server.clone());
            self.deadlines.set(&mut peer.until_ms, NEVER, due);
            self.session_servers.renew(&mut self.ledger, slot, origin, self.lsn);
        }
        let (now_ms, ahead_ms) = (self.now_ms, self.ahead_ms);
        let server = self.session_servers.get_mut(slot);
        server.peer.reports(now_ms, ahead_ms);
        server.urls.clone_from(&report.urls);
        server.connections_max = report.connections_max;
        server.load.draining = false;
        server.peer.build = report.build.clone();
        server.peer.health = Health::Up;
        let due = Due::Server(Role::Session, origin.server.clone());
        self.deadlines.set(&mut server.peer.until_ms, NEVER, due);
        let streams = server.peer.streams;
        if known != Known::SameLife || !was_up {
            let (name, incarnation) = (origin.server.clone(), origin.incarnation);
            self.facts.push(Fact::ServerUp(Role::Session, name, incarnation, Vec::new()));
        }
        step.effects.push(Effect::Welcome(Role::Session, origin.server.clone(), streams));

        // A binding whose answer was lost with the link is not on the server's list: the connection may be gone.
        let mut missing = self.session_servers.get(slot).sessions.clone();
        for held in &report.sessions {
            if self.session_held(step, slot, held, known) {
                missing.remove(&held.session);
            }
        }
        let missing: Vec<SessionId> = missing.into_iter().collect();
        self.unbind_each(&missing);
        self.announce(step, Some(&origin.server));
    }

    /// Takes a session over that a server says it has, or tells the server to end it. Whether it has it now.
    fn session_held(
        &mut self,
        step: &mut Step<'_>,
        server: SessionSlot,
        held: &HeldSession,
        known: Known,
    ) -> bool {
        let over = |code, message| Err(Refusal::new(code, message));
        let verdict = match self.users.find(held.session) {
            Some(slot) => {
                let session = self.users.session(slot);
                match &session.life {
                    Life::Ended(refusal) => Err((**refusal).clone()),
                    Life::Live { user } if self.users.user(*user).id != held.user => {
                        let name = self.session_server_name(server).clone();
                        step.illegal(Role::Session, &name, "a session of another user");
                        over(Code::SessionExpired, "the session belongs to another user")
                    }
                    Life::Live { .. } => {
                        let is_elsewhere = session.binding.is_some_and(|binding| binding != server);
                        let is_another = session.key.is_some_and(|key| key != held.session_key);
                        let is_taken = session.key.is_none()
                            && self.users.find_key(&held.session_key).is_some();
                        if held.generation < session.generation
                            || is_elsewhere
                            || is_another
                            || is_taken
                        {
                            over(Code::Superseded, "the session has a newer connection")
                        } else {
                            Ok(slot)
                        }
                    }
                }
            }
            None if known != Known::New => {
                over(Code::SessionExpired, "the session was without a connection for too long")
            }
            None if self.users.find_user(&held.user).is_some()
                || self.users.find_key(&held.session_key).is_some() =>
            {
                over(Code::Superseded, "the user has another session")
            }
            None if self.users.sessions_len() >= self.settings.sessions_max => {
                over(Code::Busy, "there are as many sessions as there may be")
            }
            None => {
                let key = Some(held.session_key);
                let session = Session::new(held.session, key, held.generation);
                Ok(self.users.insert(&mut self.ledger, session, &held.user, held.name.clone()))
            }
        };
        match verdict {
            Ok(slot) => {
                let touched = self.touch(slot);
                if self.users.session(slot).key.is_none() {
                    self.users.set_key(&touched, held.session_key);
                    self.users.rename(&touched, &held.name);
                }
                let session = self.users.session_mut(&touched);
                session.generation = held.generation;
                session.bound_by = None;
                self.rebind(slot, server);
                true
            }
            Err(refusal) => {
                let told =
                    EndSession { session: held.session, generation: held.generation, refusal };
                self.tell_session(server, told.into());
                false
            }
        }
    }

    fn unbind_each(&mut self, sessions: &[SessionId]) {
        for session in sessions {
            if let Some(slot) = self.users.find(*session) {
                self.away(slot);
            }
        }
    }

    /// A session has lost its connection.
    fn away(&mut self, slot: u32) {
        if let Some(Asker { user, session }) = self.asker(slot) {
            self.facts.push(Fact::SessionAway(user, session));
        }
        self.unbind(slot);
    }

    pub(crate) fn session_load(
        &mut self,
        step: &mut Step<'_>,
        origin: &Origin,
        load: &SessionLoad,
    ) {
        let Some(slot) = (self.session_servers).reporter(origin, self.now_ms, self.ahead_ms) else {
            return;
        };
        let server = self.session_servers.get_mut(slot);
        let was_draining = server.is_draining();
        server.load = load.clone();
        if was_draining != server.is_draining() {
            self.announce(step, None);
        }
    }

    pub(crate) fn unbound(
        &mut self,
        step: &mut Step<'_>,
        origin: &Origin,
        n: u64,
        unbind: &Unbind,
    ) {
        let Some(server) = self.session_servers.speaker(origin) else { return };
        if !self.session_servers.get_mut(server).peer.inbound.accept(n) {
            return;
        }
        let Some(slot) = self.users.find(unbind.session) else { return };
        let session = self.users.session(slot);
        if session.generation != unbind.generation {
            return;
        }
        match session.binding {
            Some(binding) if binding == server => self.away(slot),
            Some(_) => step.illegal(Role::Session, &origin.server, "another server's binding"),
            None => {}
        }
    }

    pub(crate) fn game_up(&mut self, step: &mut Step<'_>, origin: &Origin, report: &GameReport) {
        let slot = self.game_servers.named_or_new(origin);
        let known = known(&self.game_servers.get(slot).peer, origin);
        let was_up = self.game_servers.get(slot).peer.health == Health::Up;
        if known == Known::New {
            let lost: Vec<InstanceId> =
                self.game_servers.get(slot).instances.iter().copied().collect();
            for id in lost {
                self.give_up(step, id);
            }
            let peer = &mut self.game_servers.get_mut(slot).peer;
            let due = Due::Server(Role::Game, origin.server.clone());
            self.deadlines.set(&mut peer.until_ms, NEVER, due);
            let server = self.game_servers.get(slot);
            let (stranded, used) = (server.instances.clone(), server.used);
            self.game_servers.renew(&mut self.ledger, slot, origin, self.lsn);
            // What no other server could take still waits on this one's list.
            let server = self.game_servers.get_mut(slot);
            (server.instances, server.used) = (stranded, used);
        }
        if self.game_servers.get(slot).address != report.address {
            self.moves(slot);
        }
        if known != Known::SameLife || !was_up {
            let (name, incarnation) = (origin.server.clone(), origin.incarnation);
            let labels = report.labels.clone();
            self.facts.push(Fact::ServerUp(Role::Game, name, incarnation, labels));
        }
        let (kinds, faults) = kinds(report);
        for fault in faults {
            step.illegal(Role::Game, &origin.server, fault);
        }
        let (now_ms, ahead_ms) = (self.now_ms, self.ahead_ms);
        let server = self.game_servers.get_mut(slot);
        server.peer.reports(now_ms, ahead_ms);
        server.address = report.address.clone();
        server.kinds = kinds;
        server.capacity = report.capacity;
        server.labels.clone_from(&report.labels);
        server.load.draining = false;
        server.peer.build = report.build.clone();
        server.peer.health = Health::Up;
        let streams = server.peer.streams;
        let due = Due::Server(Role::Game, origin.server.clone());
        self.deadlines.set(&mut server.peer.until_ms, NEVER, due);
        self.suspect(slot, false);
        self.declare_kinds(step, slot);
        step.effects.push(Effect::Welcome(Role::Game, origin.server.clone(), streams));

        match known {
            Known::SameLife => {}
            Known::GivenUp => {
                for held in &report.instances {
                    self.stop(slot, held.instance, held.incarnation, GIVEN_UP);
                }
            }
            Known::New => {
                for held in &report.instances {
                    self.adopt(step, slot, held);
                }
                self.rejoin_reported(step);
            }
        }
        self.restore_stranded();
    }

    /// A game server is about to have another address: who asks again where its seat is hears what was said first.
    fn moves(&mut self, server: GameSlot) {
        let instances = self.game_servers.get(server).instances.iter();
        let seats: Vec<(At, Seat)> = instances
            .filter_map(|id| self.directory.find(*id))
            .flat_map(|at| self.directory.get(at).seats().map(move |(seat, _)| (at, seat)))
            .collect();
        for (at, seat) in seats {
            self.write_out(at, seat);
        }
    }

    /// Takes an instance over that a game server says it runs and that this master does not know.
    fn adopt(&mut self, step: &mut Step<'_>, server: GameSlot, held: &HeldInstance) {
        // A master that has lost its memory may hear of a former life first.
        if let Some(at) = self.directory.find(held.instance)
            && self.directory.get(at).durable()
            && self.directory.get(at).incarnation < held.incarnation
        {
            self.lose(step, held.instance, GIVEN_UP);
        }
        let kind = self.game_servers.get(server).kinds.get(&held.kind);
        let there = self.directory.find(held.instance);
        // Whatever this server had before is given up by now: another one runs it.
        self.twins += u64::from(there.is_some());
        let (Some(kind), None) = (kind, there) else {
            return self.stop(server, held.instance, held.incarnation, GIVEN_UP);
        };
        let (seats_max, weight, durable) = (kind.seats_max, kind.weight, kind.durable);
        // Two instances claim one key: that of a master which did not know of the other. The older one keeps it.
        let rival = held.key.as_ref().and_then(|key| self.directory.by_key(&held.kind, key));
        if let Some(rival) = rival.map(|at| self.directory.get(at)) {
            self.twins += 1;
            let (id, claim) = (rival.id, (rival.created_ms, rival.id));
            if claim < (held.created_ms, held.instance) {
                return self.stop(server, held.instance, held.incarnation, TWIN);
            }
            self.lose(step, id, TWIN);
        }
        let mut instance =
            Instance::granted(held.instance, held.incarnation, server, seats_max, weight);
        instance.stage = Stage::Running;
        instance.open = held.open;
        instance.private = held.private;
        instance.durable_set(durable);
        instance.created_ms = held.created_ms;
        instance.owner.clone_from(&held.owner);
        instance.key_set(held.key.clone());
        let at = self.directory.insert(&mut self.ledger, &held.kind, instance);
        let name = self.game_servers.get(server).peer.name.clone();
        let meta = self.said(step, &name, at, &held.meta);
        self.edit_meta(at, meta, |_| {});
        self.keep(at);
        self.game_servers.get_mut(server).add(held.instance, weight);
        for seat in &held.seats {
            self.adopt_seat(at, seat);
        }
    }

    /// Takes a seat over. Its session may be told of by its session server later: it waits for that as for any
    /// session without a connection.
    fn adopt_seat(&mut self, at: At, held: &HeldSeat) {
        if self.users.find(held.session).is_none()
            && self.users.find_user(&held.user).is_none()
            && self.users.sessions_len() < self.settings.sessions_max
        {
            let session = Session::new(held.session, None, Generation(0));
            let slot = self.users.insert(&mut self.ledger, session, &held.user, EcoString::new());
            self.unbind(slot);
        }
        let stage = if held.away { SeatStage::Away } else { SeatStage::Taken };
        self.seated_there(at, held.seat, held.session, stage, true);
    }

    /// Tells a game server to stop what it should not run.
    fn stop(
        &mut self,
        server: GameSlot,
        instance: InstanceId,
        incarnation: Incarnation,
        why: &'static str,
    ) {
        let refusal = Refusal::new(Code::InstanceLost, why);
        let told = DestroyInstance { instance, incarnation, refusal };
        self.tell_game(server, told.into());
    }

    /// Gives up what a server has of an instance that is durable or not: one goes on elsewhere, the other is lost.
    fn give_up(&mut self, step: &mut Step<'_>, id: InstanceId) {
        let Some(at) = self.directory.find(id) else { return };
        let &Instance { server, incarnation, stage, .. } = self.directory.get(at);
        if !self.goes_on(at) {
            return self.lose(step, id, GIVEN_UP);
        }
        if stage != Stage::Stranded {
            self.stop(server, id, incarnation, GIVEN_UP);
            self.strand(at);
        }
    }

    /// Gives an instance up. Its server is told to stop it: should it be gone, as soon as it comes back.
    fn lose(&mut self, step: &mut Step<'_>, id: InstanceId, why: &'static str) {
        let Some(at) = self.directory.find(id) else { return };
        let &Instance { server, incarnation, stage, .. } = self.directory.get(at);
        self.stop(server, id, incarnation, why);
        if stage == Stage::Closing {
            self.forget_snapshot(at);
        }
        self.close(step, at, &Refusal::new(Code::InstanceLost, Code::InstanceLost.meaning()));
    }

    /// The instances of a server are avoided while it is suspect.
    fn suspect(&mut self, server: GameSlot, suspect: bool) {
        let all: Vec<InstanceId> =
            self.game_servers.get(server).instances.iter().copied().collect();
        for id in all {
            if let Some(at) = self.directory.find(id) {
                self.edit(at, |instance| instance.suspect = suspect);
            }
        }
    }

    pub(crate) fn link_lost(&mut self, role: Role, origin: &Origin) {
        let until_ms = self.now_ms.saturating_add(self.settings.server_grace_ms);
        let due = Due::Server(role, origin.server.clone());
        match role {
            Role::Session => {
                let Some(slot) = self.session_servers.speaker(origin) else { return };
                let peer = &mut self.session_servers.get_mut(slot).peer;
                peer.health = Health::Suspect;
                self.facts.push(Fact::ServerSuspect(role, origin.server.clone()));
                self.deadlines.set(&mut peer.until_ms, until_ms, due);
            }
            Role::Game => {
                let Some(slot) = self.game_servers.speaker(origin) else { return };
                let peer = &mut self.game_servers.get_mut(slot).peer;
                peer.health = Health::Suspect;
                self.facts.push(Fact::ServerSuspect(role, origin.server.clone()));
                self.deadlines.set(&mut peer.until_ms, until_ms, due);
                self.suspect(slot, true);
            }
            Role::Master | Role::Witness => {}
        }
    }

    /// The process of a game server is no more: nothing of it runs anywhere. Its time is up.
    pub(crate) fn died(&mut self, origin: &Origin) {
        self.link_lost(Role::Game, origin);
        if !self.misses(origin) {
            return;
        }
        let slot = self.game_servers.named(&origin.server).expect("it is missed");
        let peer = &mut self.game_servers.get_mut(slot).peer;
        let due = Due::Server(Role::Game, origin.server.clone());
        self.deadlines.set(&mut peer.until_ms, self.now_ms, due);
    }

    /// Whether this life of a game server is not given up: what it runs may not run elsewhere yet.
    pub fn misses(&self, origin: &Origin) -> bool {
        self.game_servers.named(&origin.server).is_some_and(|slot| {
            let peer = &self.game_servers.get(slot).peer;
            peer.incarnation == origin.incarnation && peer.health != Health::Down
        })
    }

    /// A suspect session server is given up, some of its sessions at a time; one that is down is forgotten.
    pub(crate) fn session_server_over(
        &mut self,
        step: &mut Step<'_>,
        name: &ServerName,
        left: &mut usize,
    ) {
        let slot = self.session_servers.named(name).expect("a server took its deadline with it");
        let due = Due::Server(Role::Session, name.clone());
        let server = self.session_servers.get_mut(slot);
        if server.peer.health == Health::Down {
            self.deadlines.set(&mut server.peer.until_ms, NEVER, due);
            return self.session_servers.remove(&mut self.ledger, slot);
        }
        let some: Vec<SessionId> = server.sessions.iter().copied().take(*left).collect();
        *left -= some.len();
        self.unbind_each(&some);
        let server = self.session_servers.get_mut(slot);
        if server.sessions.is_empty() {
            server.peer.health = Health::Down;
            let until_ms = self.now_ms.saturating_add(self.settings.server_memory_ms);
            self.deadlines.set(&mut server.peer.until_ms, until_ms, due);
            self.facts.push(Fact::ServerDown(Role::Session, name.clone()));
            self.announce(step, None);
        }
    }

    /// A suspect game server is given up, some of its instances at a time; one that is down is forgotten.
    pub(crate) fn game_server_over(
        &mut self,
        step: &mut Step<'_>,
        name: &ServerName,
        left: &mut usize,
    ) {
        let slot = self.game_servers.named(name).expect("a server took its deadline with it");
        let due = Due::Server(Role::Game, name.clone());
        let server = self.game_servers.get_mut(slot);
        let until_ms = self.now_ms.saturating_add(self.settings.server_memory_ms);
        if server.peer.health == Health::Down {
            if server.instances.is_empty() {
                self.deadlines.set(&mut server.peer.until_ms, NEVER, due);
                return self.game_servers.remove(&mut self.ledger, slot);
            }
            // It is remembered for as long as somebody waits on its list for another server.
            return self.deadlines.set(&mut server.peer.until_ms, until_ms, due);
        }
        let some: Vec<InstanceId> = self.placed_on(slot).take(*left).collect();
        *left -= some.len();
        for id in some {
            self.give_up(step, id);
        }
        if self.placed_on(slot).next().is_none() {
            let server = self.game_servers.get_mut(slot);
            server.peer.health = Health::Down;
            self.deadlines.set(&mut server.peer.until_ms, until_ms, due);
            self.facts.push(Fact::ServerDown(Role::Game, name.clone()));
        }
        self.restore_stranded();
    }

    /// A game server's word about an instance. It speaks for its own instances only, and each word counts once.
    pub(crate) fn happened(&mut self, step: &mut Step<'_>, origin: &Origin, n: u64, event: &Event) {
        let Some(server) = self.game_servers.speaker(origin) else { return };
        if !self.game_servers.get_mut(server).peer.inbound.accept(n) {
            return;
        }
        let (id, incarnation) = match event {
            Event::Running(Running { instance, incarnation, .. })
            | Event::CreateRefused(CreateRefused { instance, incarnation, .. })
            | Event::SeatChanged(SeatChanged { instance, incarnation, .. })
            | Event::MetaChanged(MetaChanged { instance, incarnation, .. })
            | Event::Scored(Scored { instance, incarnation, .. })
            | Event::HandedOver(HandedOver { instance, incarnation })
            | Event::Closed(Closed { instance, incarnation, .. }) => (*instance, *incarnation),
        };
        let Some(at) = self.directory.find(id) else {
            // Given up while its word was on the way: what still runs is stopped.
            if matches!(event, Event::Running(_)) {
                self.stop(server, id, incarnation, GIVEN_UP);
            }
            return;
        };
        if self.is_of_a_former_life(at, incarnation) {
            if matches!(event, Event::Running(_)) {
                self.stop(server, id, incarnation, GIVEN_UP);
            }
            return;
        }
        let instance = self.directory.get(at);
        if instance.server != server {
            return step.illegal(Role::Game, &origin.server, "another server's instance");
        }
        if instance.incarnation != incarnation {
            return step.illegal(Role::Game, &origin.server, "another life of the instance");
        }
        match event {
            Event::Running(running) => self.running(step, origin, at, running),
            Event::CreateRefused(CreateRefused { refusal, .. })
                if self.directory.get(at).stage == Stage::Restoring
                    && is_of_the_server(&refusal.code) =>
            {
                // Another server may take it. Which one is asked with the next load, so that no two of them play
                // catch with it.
                self.strand(at);
            }
            Event::HandedOver(_) if self.goes_on(at) => {
                self.strand(at);
                self.restore_elsewhere(at);
            }
            Event::HandedOver(_) => {
                let refusal = Refusal::new(Code::InstanceLost, Code::InstanceLost.meaning());
                self.close(step, at, &refusal);
            }
            Event::CreateRefused(CreateRefused { refusal, .. })
            | Event::Closed(Closed { refusal, .. }) => self.close(step, at, &bounded(refusal)),
            Event::SeatChanged(change) => self.seat_changed(step, origin, at, change),
            Event::MetaChanged(MetaChanged { meta, open, private, .. }) => {
                let meta = self.said(step, &origin.server, at, meta);
                self.edit_meta(at, meta, |instance| {
                    instance.open = *open;
                    instance.private = *private;
                });
            }
            Event::Scored(scored) => self.scored(step, origin, scored),
        }
    }

    /// What a game says of an instance, as far as it may; none if all of it is ignored.
    fn said(
        &self,
        step: &mut Step<'_>,
        server: &ServerName,
        at: At,
        meta: &Meta,
    ) -> Option<Packed> {
        if !is_bounded(meta) {
            step.illegal(Role::Game, server, "metadata over its size");
            return None;
        }
        let (meta, wrong) = self.directory.pack(at, meta);
        if let Some(wrong) = wrong {
            step.illegal(Role::Game, server, wrong);
        }
        Some(meta)
    }

    /// A granted instance runs: its reserved seats may be taken from here on, and who waits for it is answered.
    fn running(&mut self, step: &mut Step<'_>, origin: &Origin, at: At, running: &Running) {
        let is_restored = match self.directory.get(at).stage {
            Stage::Granted => false,
            Stage::Restoring => true,
            Stage::Running | Stage::Closing | Stage::Stranded => return,
        };
        let meta = self.said(step, &origin.server, at, &running.meta);
        let (waiters, filter) = self.edit_meta(at, meta, |instance| {
            instance.stage = Stage::Running;
            instance.open = running.open;
            instance.private = running.private;
            let mut filter = None;
            instance.wish(|wishes| filter = wishes.filter.take());
            (std::mem::take(instance.waiters_mut()), filter)
        });
        let took_ms = self.shown_ms().saturating_sub(self.directory.get(at).created_ms);
        let kind = self.directory.kind(at).clone();
        self.facts.push(match is_restored {
            true => Fact::Restored(running.instance, kind),
            false => Fact::Running(running.instance, kind, took_ms),
        });
        // From here on it is found by what it says of itself.
        if let Some(filter) = filter {
            let kind = self.directory.kind(at).clone();
            self.met(&kind, running.instance, filter);
        }
        let reserved: Vec<(Seat, SeatRecord)> = self
            .directory
            .get(at)
            .seats()
            .filter(|(_, record)| matches!(record.stage, SeatStage::Reserved | SeatStage::Expected))
            .collect();
        let until_ms = self.now_ms.saturating_add(self.settings.reservation_ms);
        for (seat, record) in reserved {
            self.set_seat(at, seat, SeatRecord { until_ms, ..record });
        }
        if is_restored {
            self.tell_moved(at);
        }
        for Waiter { session, id, wants } in waiters {
            let outcome = match wants {
                Wants::Created => self.created(at),
                Wants::Seat(seat) => self.promised(at, seat, session),
                // Only what closes is waited for in this way.
                Wants::Destroyed => continue,
            };
            self.resolve(step, session, id, outcome);
        }
    }

    /// A game's word about somebody's score.
    fn scored(&mut self, step: &mut Step<'_>, origin: &Origin, scored: &Scored) {
        let Scored { board, user, name, score, .. } = scored;
        if !is_board(board) {
            return step.illegal(Role::Game, &origin.server, BOARD_NAMES);
        }
        let name = if name.len() > SHOWN_BYTES_MAX { &EcoString::new() } else { name };
        let before = self.boards.member(board, user).cloned();
        let out = match score {
            None => {
                self.boards.remove(&mut self.ledger, board, user);
                None
            }
            Some(score) => match self.boards.set(&mut self.ledger, board, user, name, *score) {
                Ok(out) => out,
                Err(NotRanked::BoardsFull) => {
                    let fault =
                        eco_format!("the board {board:?}: there are as many as there may be");
                    return step.illegal(Role::Game, &origin.server, fault);
                }
                // That is what a bound on a board means.
                Err(NotRanked::BelowLast) => return,
            },
        };
        match self.boards.member(board, user) {
            Some(member) if Some(member) != before.as_ref() => {
                let ranked = RankedMember::of(board, member);
                self.documents.push(Document::Ranked(ranked));
            }
            None if before.is_some() => self.unranked(board, user.clone()),
            Some(_) | None => {}
        }
        if let Some(user) = out {
            self.unranked(board, user);
        }
    }

    fn seat_changed(&mut self, step: &mut Step<'_>, origin: &Origin, at: At, change: &SeatChanged) {
        let SeatChanged { seat, session, state, .. } = *change;
        if seat.0 >= self.directory.get(at).seats_max {
            return step.illegal(Role::Game, &origin.server, "a seat that the kind does not have");
        }
        let instance = self.directory.get(at);
        let record = instance.seat(seat);
        let is_vacating = instance.vacating().contains(&(seat, session));
        // A master that begins may have lost its memory of who was promised the seat.
        let may_be_news = self.is_rejoining();
        match state {
            // Said before the game server knew that the seat is not this session's any more.
            SeatState::Taken | SeatState::Away if is_vacating => {}
            SeatState::Free if is_vacating => self.vacant(step, at, seat, session),
            SeatState::Taken => self.seated_there(at, seat, session, SeatStage::Taken, may_be_news),
            SeatState::Away => self.seated_there(at, seat, session, SeatStage::Away, may_be_news),
            SeatState::Free if record.holder() == Some(session) => {
                self.set_seat(at, seat, SeatRecord::FREE);
            }
            SeatState::Free => {}
        }
    }

    /// A game server has a session in a seat: it is written down, or the session is sent away again.
    fn seated_there(
        &mut self,
        at: At,
        seat: Seat,
        session: SessionId,
        stage: SeatStage,
        may_be_news: bool,
    ) {
        if !self.take_seat(at, seat, session, stage, may_be_news) {
            self.evict(at, seat, session);
        }
    }

    /// The holder before is out of a seat: whoever was promised it may take it.
    fn vacant(&mut self, step: &mut Step<'_>, at: At, seat: Seat, before: SessionId) {
        let waiters = self.edit(at, |instance| {
            instance.vacating_mut().retain(|vacating| *vacating != (seat, before));
            if instance.is_vacating(seat) {
                return Vec::new();
            }
            instance
                .waiters_mut()
                .extract_if(.., |waiter| waiter.wants == Wants::Seat(seat))
                .collect()
        });
        let record = self.directory.get(at).seat(seat);
        if record.stage == SeatStage::Reserved && !self.directory.get(at).is_vacating(seat) {
            let until_ms = self.now_ms.saturating_add(self.settings.reservation_ms);
            self.set_seat(at, seat, SeatRecord { until_ms, ..record });
        }
        for Waiter { session, id, .. } in waiters {
            let outcome = self.promised(at, seat, session);
            self.resolve(step, session, id, outcome);
        }
    }

    /// The answer to who waited for a seat.
    fn promised(&self, at: At, seat: Seat, session: SessionId) -> Outcome {
        let record = self.directory.get(at).seat(seat);
        if record.holder() == Some(session) {
            self.granted(at, seat)
        } else {
            Outcome::Refused(Refusal::new(Code::Left, Code::Left.meaning()))
        }
    }

    /// Writes down that a session is in a seat; false if it may not be. A free seat is taken on the game server's word
    /// alone only where the master may have lost its memory of giving it: else it is a seat that the session has left
    /// since, and nobody would ever free it again.
    fn take_seat(
        &mut self,
        at: At,
        seat: Seat,
        session: SessionId,
        stage: SeatStage,
        may_be_news: bool,
    ) -> bool {
        let instance = self.directory.get(at);
        let record = instance.seat(seat);
        if record.holder() != Some(session) {
            let Some(slot) = self.users.find(session) else { return false };
            let holder = self.users.session(slot);
            let user = holder.user().map(|user| &self.users.user(user).id);
            let is_kept = user.and_then(|user| instance.seat_expecting(user)) == Some(seat);
            let may_take = ((record.is_free() && may_be_news) || is_kept)
                && seat.0 < instance.seats_max
                && holder.user().is_some()
                && holder.seats.len() < self.settings.seats_max
                && instance.seat_of(session).is_none();
            if !may_take {
                return false;
            }
        }
        self.set_seat(at, seat, SeatRecord { stage, session, until_ms: NEVER });
        true
    }

    /// Sends a session away from a seat that a game server has it in.
    fn evict(&mut self, at: At, seat: Seat, session: SessionId) {
        let instance = self.directory.get(at);
        let (id, incarnation, server) = (instance.id, instance.incarnation, instance.server);
        let refusal = Refusal::new(Code::NotSeated, "the seat is not this session's any more");
        let told = FreeSeat { instance: id, incarnation, seat, session, refusal };
        self.edit(at, |instance| {
            // Each seat has a holder, and one on the way out: more is a game server that makes sessions up.
            if instance.vacating().len() < usize::from(instance.seats_max) {
                instance.vacating_mut().push((seat, session));
            }
        });
        self.tell_game(server, told.into());
    }
}

fn known<M>(peer: &Peer<M>, origin: &Origin) -> Known {
    // A record that was made a moment ago is down without a deadline.
    let is_fresh = peer.health == Health::Down && peer.until_ms == NEVER;
    match peer.health {
        _ if is_fresh || peer.incarnation != origin.incarnation => Known::New,
        Health::Up | Health::Suspect => Known::SameLife,
        Health::Down => Known::GivenUp,
    }
}

/// Whether a rank board may be called so.
pub(crate) fn is_board(name: &str) -> bool {
    (1..=BOARD_BYTES_MAX).contains(&name.len()) && !name.contains(char::is_control)
}

/// The kinds that a game server can be given, and what it says that can't be.
fn kinds(report: &GameReport) -> (BTreeMap<KindName, KindInfo>, Vec<EcoString>) {
    let mut faults = Vec::new();
    if report.capacity == 0 {
        faults.push("a capacity of 0: it is given nothing".into());
    }
    let mut names = BTreeSet::new();
    let twice: BTreeSet<&KindName> =
        report.kinds.iter().map(|kind| &kind.name).filter(|&name| !names.insert(name)).collect();
    faults.extend(
        twice
            .iter()
            .map(|name| eco_format!("the kind {name:?} more than once: it is given none of it")),
    );
    let mut kinds = BTreeMap::new();
    for kind in report.kinds.iter().filter(|kind| !twice.contains(&kind.name)) {
        let KindInfo { name, seats_max, weight, .. } = kind;
        if *seats_max == 0 {
            faults.push(eco_format!("the kind {name:?} with no seats: it is given none of it"));
        } else if *weight == 0 {
            faults
                .push(eco_format!("the kind {name:?} with a weight of 0: it is given none of it"));
        } else {
            if *weight > report.capacity && report.capacity > 0 {
                let capacity = report.capacity;
                faults.push(eco_format!(
                    "the kind {name:?} with a weight of {weight}, and a capacity of {capacity}: it is given none of it"
                ));
            }
            // One that is too heavy is known all the same: what runs of it is not stopped for that.
            kinds.insert(name.clone(), kind.clone());
        }
    }
    (kinds, faults)
}

/// Whether metadata is small enough to be read.
fn is_bounded(meta: &Meta) -> bool {
    const FIELDS_MAX: usize = 64;
    const BYTES_MAX: usize = 4_096;
    let bytes = |(name, value): (&EcoString, &MetaValue)| {
        name.len()
            + match value {
                MetaValue::Bool(_) => 1,
                MetaValue::Int(_) => 8,
                MetaValue::Text(text) => text.len(),
            }
    };
    meta.len() <= FIELDS_MAX && meta.iter().map(bytes).sum::<usize>() <= BYTES_MAX
}
