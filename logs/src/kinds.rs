//! Every kind of event that servers emit. `docs/events.md` is made of this page.

use std::{net::IpAddr, time::Duration};

use ecow::EcoString;
use greenroom_protocol::{
    Epoch, Incarnation, InstanceId, KindName, Seat, ServerName, SessionId, UserId,
};

use crate::event::events;

events! {
    /// A process has started.
    ProcessStarted = "process_started", 1, Info, about {} {
        /// What it does: `up`, `master`, `session`, `game`.
        command: EcoString,
        /// Its number at the system.
        pid: u32,
        /// Name and version of its build.
        build: EcoString,
    }
    /// A process ends as it was asked to. One that was killed has no such event.
    ProcessStopped = "process_stopped", 1, Info, about {} {
        /// How long it ran, in milliseconds.
        ran_ms: Duration,
    }
    /// A bug ended the process.
    ProcessFailed = "process_failed", 1, Error, about {} {
        /// What the panic said.
        what: EcoString,
        /// Where in the code.
        place: EcoString,
    }

    /// A user has checked in: its session begins.
    CheckIn = "check_in", 1, Info, about { user: UserId, session: SessionId } {
        /// The name that others see.
        name: EcoString,
        /// Over which session server.
        server: ServerName,
    }
    /// Somebody may not check in.
    CheckInRefused = "check_in_refused", 1, Warn, about {} {
        /// The code of the refusal.
        code: EcoString,
        /// Where from.
        address: Option<IpAddr>,
        /// Refusals before this one that were too many to be told one by one.
        left_out: u64,
    }
    /// A session goes on over a new connection.
    SessionResumed = "session_resumed", 1, Info, about { user: UserId, session: SessionId } {}
    /// A session's connection is gone; its seats are kept for a while.
    SessionAway = "session_away", 1, Info, about { user: UserId, session: SessionId } {}
    /// A session is over.
    SessionEnded = "session_ended", 1, Info, about { user: UserId, session: SessionId } {
        /// The code of why.
        code: EcoString,
    }
    /// A client's connection to a session server is over: `node` is the server. A session has one for each of its
    /// connections; a server that is killed tells none of them.
    ConnectionEnded = "connection_ended", 1, Info, about { user: UserId, session: SessionId } {
        /// The labels of the session server, with commas between them: its region, for one.
        labels: Option<EcoString>,
        /// How long it was open, in milliseconds.
        lasted_ms: Duration,
        /// How often the way to the client and back was measured, by pings of the server.
        round_trips: u64,
        /// Half of these took no longer, within an eighth; in milliseconds, up to 67 s.
        round_trip_p50_ms: Option<Duration>,
        /// 99 of 100 took no longer, within an eighth; in milliseconds.
        round_trip_p99_ms: Option<Duration>,
        /// The last one, in milliseconds.
        round_trip_last_ms: Option<Duration>,
    }
    /// What a client sent was over its limits or no message at all, and its connection was ended for it.
    SecurityRefusal = "security_refusal", 1, Warn, about { user: UserId, session: SessionId } {
        /// The code of the refusal.
        code: EcoString,
        /// What was wrong, for people.
        text: EcoString,
        /// Where from.
        address: Option<IpAddr>,
        /// Refusals before this one that were too many to be told one by one.
        left_out: u64,
    }
    /// A user asked for an instance, and it is there.
    DirectoryCreate = "directory_create", 1, Info,
        about { user: UserId, instance: InstanceId, session: SessionId }
    {
        /// Of which kind.
        instance_kind: Option<KindName>,
    }
    /// A user asked for a seat, and got it.
    DirectoryJoin = "directory_join", 1, Info,
        about { user: UserId, instance: InstanceId, session: SessionId }
    {
        /// Of which kind.
        instance_kind: KindName,
        /// Which seat.
        seat: Seat,
    }
    /// A user gave a seat back.
    DirectoryLeave = "directory_leave", 1, Info,
        about { user: UserId, instance: InstanceId, session: SessionId }
    {
        /// Of which kind.
        instance_kind: Option<KindName>,
    }
    /// Somebody had an instance closed.
    DirectoryDestroy = "directory_destroy", 1, Info,
        about { user: Option<UserId>, instance: InstanceId, session: Option<SessionId> }
    {
        /// `owner`, who asked and was answered, or `operator`, who has it closed from now on.
        who: &'static str,
    }
    /// A user's request to the directory was refused.
    DirectoryRefused = "directory_refused", 1, Info, about { user: UserId, session: SessionId } {
        /// The code of the refusal.
        code: EcoString,
    }

    /// An instance has its place on a game server, which is to make it.
    InstanceGranted = "instance_granted", 1, Info, about { instance: InstanceId } {
        /// Of which kind.
        instance_kind: KindName,
        /// On which game server.
        server: ServerName,
        /// Its incarnation.
        incarnation: Incarnation,
    }
    /// An instance runs.
    InstanceRunning = "instance_running", 1, Info, about { instance: InstanceId } {
        /// Of which kind.
        instance_kind: KindName,
        /// Since it was granted, in milliseconds.
        took_ms: Duration,
    }
    /// The game server of an instance is gone: it is to go on from its last snapshot, on another.
    InstanceRestoring = "instance_restoring", 1, Warn, about { instance: InstanceId } {
        /// Of which kind.
        instance_kind: KindName,
        /// On which game server.
        server: ServerName,
        /// Its incarnation there.
        incarnation: Incarnation,
    }
    /// An instance goes on from its last snapshot.
    InstanceRestored = "instance_restored", 1, Info, about { instance: InstanceId } {
        /// Of which kind.
        instance_kind: KindName,
    }
    /// What was stored of an instance can't be read: it is kept under another key, and the instance is over.
    SnapshotUnreadable = "snapshot_unreadable", 1, Error, about { instance: InstanceId } {
        /// Of which kind.
        instance_kind: KindName,
        /// What is wrong with it.
        what: EcoString,
        /// Where it is kept: the collection of the store, and the key in it.
        kept: EcoString,
    }
    /// An instance is over, or was never made.
    InstanceClosed = "instance_closed", 1, Info, about { instance: InstanceId } {
        /// Of which kind.
        instance_kind: KindName,
        /// The code of why.
        code: EcoString,
        /// Since it was granted, in milliseconds.
        lived_ms: Duration,
    }
    /// Somebody is in a seat, is away from it, or is out of it.
    SeatChanged = "seat_changed", 1, Info,
        about { user: Option<UserId>, instance: InstanceId, session: SessionId }
    {
        /// Which seat.
        seat: Seat,
        /// `taken`, `away` or `free`.
        state: &'static str,
    }
    /// An instance failed: its game has a bug.
    InstanceFailed = "instance_failed", 1, Error, about { instance: InstanceId } {
        /// Of which kind.
        instance_kind: EcoString,
        /// What went wrong.
        what: EcoString,
    }
    /// A step of an instance was so late that others after it were given up.
    TickOverrun = "tick_overrun", 1, Warn, about { instance: InstanceId } {
        /// Of which kind.
        instance_kind: EcoString,
        /// How late it was, in milliseconds.
        late_ms: Duration,
        /// How many were given up.
        given_up: u64,
    }

    /// A client's view did not fit what came, and it asks for the whole one: its game server and it disagreed.
    ViewDesync = "view_desync", 1, Warn, about { user: Option<UserId>, instance: InstanceId } {
        /// Of which kind.
        instance_kind: EcoString,
        /// Whose seat.
        seat: Seat,
        /// Which view: 0 is the one that all share.
        view: u16,
        /// What the client says was wrong.
        what: EcoString,
    }

    /// The store was away, or refused: what happened since the last event of this kind, by the process's own count.
    StorageTrouble = "storage_trouble", 1, Warn, about {} {
        /// Operations that were tried again.
        retried: u64,
        /// Operations whose time was over before the store began them.
        unavailable: u64,
        /// Writes of which nobody knows whether they have happened.
        undecided: u64,
        /// Writes that were kept on this machine's disk, for later.
        spooled: u64,
        /// Writes that were not even kept there.
        spool_refused: u64,
        /// Operations that failed for another reason.
        failed: u64,
    }
    /// The store does what it is asked again.
    StorageAgain = "storage_again", 1, Info, about {} {
        /// How long it was in trouble, in milliseconds.
        after_ms: Duration,
        /// Writes that went from this machine's disk to the store meanwhile.
        drained: u64,
    }
    /// Writes of an owner that is none any more were refused: another has taken its place.
    StorageDeposed = "storage_deposed", 1, Warn, about {} {
        /// How many.
        writes: u64,
    }

    /// A master is active, standby or something else from now on.
    MasterRole = "master_role", 1, Info, about {} {
        /// What it is now: `recovering`, `learner`, `standby`, `paired`, `solo` or `blocked`.
        state: &'static str,
        /// The epoch that it knows of, era first.
        epoch: Epoch,
    }
    /// A master decides from now on: at a start, a failover or a switchover.
    MasterEpoch = "master_epoch", 1, Warn, about {} {
        /// The epoch, era first.
        epoch: Epoch,
    }
    /// Something about a master that an operator should know.
    MasterAlarm = "master_alarm", 1, Error, about {} {
        /// What.
        what: EcoString,
    }
    /// A server has reported to the active master.
    ServerUp = "server_up", 1, Info, about {} {
        /// Which.
        server: ServerName,
        /// What it is: `session` or `game`.
        server_role: &'static str,
        /// This life of it.
        incarnation: Incarnation,
        /// The labels of a game server, with commas between them: its region, for one.
        labels: Option<EcoString>,
    }
    /// A server's link is gone.
    ServerSuspect = "server_suspect", 1, Warn, about {} {
        /// Which.
        server: ServerName,
        /// What it is: `session` or `game`.
        server_role: &'static str,
    }
    /// A server's time is up: what it had is given away.
    ServerDown = "server_down", 1, Error, about {} {
        /// Which.
        server: ServerName,
        /// What it is: `session` or `game`.
        server_role: &'static str,
    }
    /// A server gets nothing new.
    ServerDraining = "server_draining", 1, Info, about {} {
        /// Which.
        server: ServerName,
        /// What it is: `session` or `game`.
        server_role: &'static str,
    }

    /// Events are missing before this one: more were emitted than the disk took.
    EventsLost = "events_lost", 1, Error, about {} {
        /// How many.
        events: u64,
    }
    /// Events can't be shipped to the stream: they wait on disk.
    ShippingFailed = "shipping_failed", 1, Warn, about {} {
        /// Why, for people.
        text: EcoString,
    }
    /// Events are shipped again.
    ShippingResumed = "shipping_resumed", 1, Info, about {} {
        /// How long they were not, in milliseconds.
        after_ms: Duration,
    }
    /// Something is not in the stream and never will be: it went, for the bound on disk, before it was shipped, or it
    /// is larger than a record.
    ShippingLost = "shipping_lost", 1, Error, about {} {
        /// The process whose events they are.
        process: EcoString,
        /// Segments that went; how many events were in them is told by `segments_dropped`.
        segments: u64,
        /// Events that were too large.
        events: u64,
    }
    /// The oldest segments were removed, to stay below the bound on disk.
    SegmentsDropped = "segments_dropped", 1, Warn, about {} {
        /// How many segments.
        segments: u64,
        /// How many events were in them.
        events: u64,
        /// Their bytes on disk.
        bytes: u64,
    }
    /// An earlier life of this process ended in the middle of a line, which was cut off.
    TornLine = "torn_line", 1, Warn, about {} {
        /// Bytes of it.
        bytes: u64,
    }
}
