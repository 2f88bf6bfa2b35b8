//! Facts of the directory as events.
//!
//! Only a master that decides tells them, and only what is committed. Whoever begins to decide tells the newest again:
//! the one before it may have ended before its log was written. They have the same ids, by which readers take each
//! once.

use std::time::Duration;

use greenroom_logs::{
    Logs, Stamp,
    kinds::{
        CheckIn, DirectoryCreate, DirectoryDestroy, DirectoryJoin, DirectoryLeave,
        DirectoryRefused, EventsLost, InstanceClosed, InstanceGranted, InstanceRestored,
        InstanceRestoring, InstanceRunning, SeatChanged, ServerDown, ServerDraining, ServerSuspect,
        ServerUp, SessionAway, SessionEnded, SessionResumed,
    },
};
use greenroom_master_core::{Asker, Fact, Facts, Placed};
use greenroom_protocol::TraceContext;
use greenroom_protocol::wire::{master_game::SeatState, server_server::Role};

#[derive(Debug)]
pub(crate) struct Told {
    logs: Logs,
    /// Number of the next fact.
    next: u64,
}

impl Told {
    pub(crate) fn new(logs: Logs) -> Self {
        Self { logs, next: 0 }
    }

    /// This master decides from here on.
    pub(crate) fn begin(&mut self, facts: &Facts) {
        self.next = facts.first();
    }

    /// Tells what is committed and was not told; `traces` are those of its commands that are sampled.
    pub(crate) fn tell(&mut self, facts: &Facts, commit: u64, traces: &[(u64, TraceContext)]) {
        let missed = facts.first().saturating_sub(self.next);
        if missed > 0 {
            self.logs.emit(&EventsLost { events: missed });
            self.next += missed;
        }
        for placed in facts.from(self.next).take_while(|placed| placed.lsn <= commit) {
            self.next += 1;
            match traces.iter().find(|(lsn, _)| *lsn == placed.lsn) {
                Some((_, trace)) => emit(&self.logs.within(*trace), placed),
                None => emit(&self.logs, placed),
            }
        }
    }
}

fn emit(logs: &Logs, placed: &Placed<Fact>) {
    let Placed { at_ms, epoch: _, lsn, index, what } = placed;
    // No two commands of a cluster have the same number and time.
    let distinct = u128::from(*lsn) << 16 | u128::from(*index);
    let stamp = Stamp { ms: *at_ms, distinct };
    match what.clone() {
        Fact::SessionBegan { user, session, name, server } => {
            logs.emit_stamped(stamp, &CheckIn { user, session, name, server });
        }
        Fact::SessionResumed(user, session) => {
            logs.emit_stamped(stamp, &SessionResumed { user, session });
        }
        Fact::SessionAway(user, session) => {
            logs.emit_stamped(stamp, &SessionAway { user, session });
        }
        Fact::SessionEnded(user, session, code) => {
            logs.emit_stamped(stamp, &SessionEnded { user, session, code: code.name().into() });
        }
        Fact::Created(Asker { user, session }, instance, instance_kind) => {
            logs.emit_stamped(stamp, &DirectoryCreate { user, instance, session, instance_kind });
        }
        Fact::Joined(Asker { user, session }, instance, instance_kind, seat) => {
            let event = DirectoryJoin { user, instance, session, instance_kind, seat };
            logs.emit_stamped(stamp, &event);
        }
        Fact::Left(Asker { user, session }, instance, instance_kind) => {
            logs.emit_stamped(stamp, &DirectoryLeave { user, instance, session, instance_kind });
        }
        Fact::Destroyed(Asker { user, session }, instance) => {
            let (user, session) = (Some(user), Some(session));
            logs.emit_stamped(stamp, &DirectoryDestroy { user, instance, session, who: "owner" });
        }
        Fact::DestroyedByOperator(instance) => {
            let (user, session, who) = (None, None, "operator");
            logs.emit_stamped(stamp, &DirectoryDestroy { user, instance, session, who });
        }
        Fact::Refused(Asker { user, session }, code) => {
            logs.emit_stamped(stamp, &DirectoryRefused { user, session, code: code.name().into() });
        }
        Fact::Granted(instance, instance_kind, server, incarnation) => {
            let event = InstanceGranted { instance, instance_kind, server, incarnation };
            logs.emit_stamped(stamp, &event);
        }
        Fact::Running(instance, instance_kind, took_ms) => {
            let took_ms = Duration::from_millis(took_ms);
            logs.emit_stamped(stamp, &InstanceRunning { instance, instance_kind, took_ms });
        }
        Fact::Restoring(instance, instance_kind, server, incarnation) => {
            let event = InstanceRestoring { instance, instance_kind, server, incarnation };
            logs.emit_stamped(stamp, &event);
        }
        Fact::Restored(instance, instance_kind) => {
            logs.emit_stamped(stamp, &InstanceRestored { instance, instance_kind });
        }
        Fact::Closed(instance, instance_kind, code, lived_ms) => {
            let (code, lived_ms) = (code.name().into(), Duration::from_millis(lived_ms));
            logs.emit_stamped(stamp, &InstanceClosed { instance, instance_kind, code, lived_ms });
        }
        Fact::SeatChanged(instance, seat, user, session, state) => {
            let state = match state {
                SeatState::Taken => "taken",
                SeatState::Away => "away",
                SeatState::Free => "free",
            };
            logs.emit_stamped(stamp, &SeatChanged { user, instance, session, seat, state });
        }
        Fact::ServerUp(role, server, incarnation, labels) => {
            let server_role = name(role);
            let labels = (!labels.is_empty()).then(|| labels.join(",").into());
            logs.emit_stamped(stamp, &ServerUp { server, server_role, incarnation, labels });
        }
        Fact::ServerSuspect(role, server) => {
            logs.emit_stamped(stamp, &ServerSuspect { server, server_role: name(role) });
        }
        Fact::ServerDown(role, server) => {
            logs.emit_stamped(stamp, &ServerDown { server, server_role: name(role) });
        }
        Fact::ServerDraining(role, server) => {
            logs.emit_stamped(stamp, &ServerDraining { server, server_role: name(role) });
        }
    }
}

const fn name(role: Role) -> &'static str {
    match role {
        Role::Master => "master",
        Role::Session => "session",
        Role::Game => "game",
        Role::Witness => "witness",
    }
}
