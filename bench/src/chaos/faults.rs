//! What can be done to a cluster, and how it is done.

use std::time::Duration;

use anyhow::Context;
use clap::ValueEnum;
use rustix::process::Signal;

use super::cluster::{Cluster, Part};
use super::ledger::Shared;
use super::proxy::Weather;
use super::takeover::wall_now_us;
use crate::wire::Random;

/// How long a stopped active stays so.
const STOP: Duration = Duration::from_secs(5);
/// How long a cut lasts: longer than any time-out of the masters.
const CUT: Duration = Duration::from_secs(2);
/// How long a slow network lasts.
const SLOW: Duration = Duration::from_secs(3);
/// How long the witness is away while nobody needs it, and while somebody does.
const WITNESS_AWAY: Duration = Duration::from_secs(2);
/// After the active has died, the witness stays away for this long.
const WITNESS_AWAY_MORE: Duration = Duration::from_secs(3);

/// What a campaign does again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Only {
    /// SIGKILL of the active master.
    Active,
    /// SIGKILL of the standby.
    Standby,
    /// SIGKILL of both masters at once.
    BothMasters,
    /// SIGKILL of a session server.
    Session,
    /// SIGKILL of a game server.
    Game,
    /// SIGKILL of any process.
    Any,
    /// SIGSTOP of the active for 5 s, then SIGCONT.
    Stop,
    /// The operator's `greenroom switchover`.
    Switchover,
    /// Cuts and delays, one way and both ways, between masters, and between masters and servers.
    Cut,
    /// The witness is killed or stopped, also while the active dies.
    Witness,
    /// A session server and a game server are cut off from both masters for 60 s; only players, who look for twins.
    Isolate,
    /// Nothing is hurt: what a standby costs, in turn with a master that is alone.
    Tax,
    /// A standby with an empty disk joins.
    Join,
}

impl Only {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Standby => "standby",
            Self::BothMasters => "both-masters",
            Self::Session => "session",
            Self::Game => "game",
            Self::Any => "any",
            Self::Stop => "stop",
            Self::Switchover => "switchover",
            Self::Cut => "cut",
            Self::Witness => "witness",
            Self::Isolate => "isolate",
            Self::Tax => "tax",
            Self::Join => "join",
        }
    }

    /// What it is, above a plot.
    pub(crate) const fn what(self) -> &'static str {
        match self {
            Self::Active => "SIGKILL of the active master",
            Self::Standby => "SIGKILL of the standby",
            Self::BothMasters => "SIGKILL of both masters at once",
            Self::Session => "SIGKILL of a session server",
            Self::Game => "SIGKILL of a game server",
            Self::Any => "SIGKILL of any process",
            Self::Stop => "SIGSTOP of the active for 5 s",
            Self::Switchover => "Switchover",
            Self::Cut => "Cuts and slow links",
            Self::Witness => "The witness away",
            Self::Isolate => "Servers cut off from both masters",
            Self::Tax => "What a standby costs",
            Self::Join => "A standby joins",
        }
    }

    /// Whether links go through proxies.
    pub(crate) const fn needs_proxies(self) -> bool {
        matches!(self, Self::Cut | Self::Isolate)
    }

    /// The `number`th fault of a campaign.
    pub(crate) fn fault(self, number: u32, dice: &mut Random) -> Fault {
        let mut one_of = |faults: &[Fault]| {
            let at = dice.next() % faults.len() as u64;
            faults[usize::try_from(at).unwrap_or(0)]
        };
        let in_turn = |faults: &[Fault]| faults[number as usize % faults.len()];
        match self {
            Self::Active => Fault::KillActive,
            Self::BothMasters => Fault::KillBoth,
            Self::Standby | Self::Tax | Self::Join => Fault::KillStandby,
            Self::Session => one_of(&[Fault::Kill("session-1"), Fault::Kill("session-2")]),
            Self::Game => one_of(&[Fault::Kill("game-1"), Fault::Kill("game-2")]),
            Self::Any => one_of(&[
                Fault::KillActive,
                Fault::KillStandby,
                Fault::Kill("session-1"),
                Fault::Kill("session-2"),
                Fault::Kill("game-1"),
                Fault::Kill("game-2"),
                Fault::Kill("witness"),
            ]),
            Self::Stop => Fault::StopActive,
            Self::Switchover => Fault::Switchover,
            Self::Cut | Self::Isolate => in_turn(&[
                Fault::CutPair,
                Fault::CutToStandby,
                Fault::CutToActive,
                Fault::ResetPair,
                Fault::CutOffActive,
                Fault::CutOffActiveToWitness,
                Fault::SlowPair,
                Fault::SlowServers,
            ]),
            Self::Witness => in_turn(&[
                Fault::Kill("witness"),
                Fault::StopWitness,
                Fault::WitnessAwayAndActiveDies,
            ]),
        }
    }
}

/// One thing that is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// SIGKILL of whoever is active.
    KillActive,
    /// SIGKILL of whoever is standby.
    KillStandby,
    /// SIGKILL of both masters, one right after the other.
    KillBoth,
    /// SIGKILL of a process by its name.
    Kill(&'static str),
    /// SIGSTOP of the active for 5 s, then SIGCONT.
    StopActive,
    /// An operator's word.
    Switchover,
    /// The masters do not hear each other.
    CutPair,
    /// The standby does not hear the active.
    CutToStandby,
    /// The active does not hear the standby.
    CutToActive,
    /// Connections between the masters are reset.
    ResetPair,
    /// Nobody hears the active, and it hears nobody.
    CutOffActive,
    /// The same, but for the witness.
    CutOffActiveToWitness,
    /// 2 to 4 ms each way between the masters.
    SlowPair,
    /// 5 to 10 ms each way between servers and masters.
    SlowServers,
    /// SIGSTOP of the witness for 2 s, then SIGCONT.
    StopWitness,
    /// The witness is stopped, the active dies, and the witness comes back 3 s later.
    WitnessAwayAndActiveDies,
}

impl Fault {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::KillActive => "kill active",
            Self::KillStandby => "kill standby",
            Self::KillBoth => "kill both masters",
            Self::Kill(name) => name,
            Self::StopActive => "stop active",
            Self::Switchover => "switchover",
            Self::CutPair => "cut pair",
            Self::CutToStandby => "cut active to standby",
            Self::CutToActive => "cut standby to active",
            Self::ResetPair => "reset pair",
            Self::CutOffActive => "cut off active",
            Self::CutOffActiveToWitness => "cut off active to witness",
            Self::SlowPair => "slow pair",
            Self::SlowServers => "slow servers",
            Self::StopWitness => "stop witness",
            Self::WitnessAwayAndActiveDies => "witness away, kill active",
        }
    }

    /// Whether instances go with it, which nothing brings back.
    pub(crate) fn takes_instances(self) -> bool {
        matches!(self, Self::Kill(name) if name.starts_with("game"))
    }

    /// Whether it has something to do with masters.
    const fn needs_a_pair(self) -> bool {
        !matches!(self, Self::Kill(_) | Self::StopWitness)
    }

    /// Does it, to its end. Gives when it began.
    ///
    /// # Errors
    /// When it can't be done.
    pub(crate) fn perform(self, cluster: &mut Cluster, ledger: &Shared) -> anyhow::Result<Begun> {
        let [active, standby] = match self.needs_a_pair() {
            true => cluster.roles()?,
            false => ["master-a", "master-b"],
        };
        match self {
            Self::KillActive => {
                let begun = Begun::now(ledger);
                cluster.kill(active)?;
                Ok(begun)
            }
            Self::KillStandby => {
                let begun = Begun::now(ledger);
                cluster.kill(standby)?;
                Ok(begun)
            }
            Self::KillBoth => {
                let begun = Begun::now(ledger);
                cluster.kill(standby)?;
                cluster.kill(active)?;
                Ok(begun)
            }
            Self::Kill(name) => {
                let begun = Begun::now(ledger);
                cluster.kill(name)?;
                if name == "witness" {
                    cluster.wait(WITNESS_AWAY)?;
                }
                Ok(begun)
            }
            Self::StopActive => stopped(cluster, ledger, active, STOP),
            Self::StopWitness => stopped(cluster, ledger, "witness", WITNESS_AWAY),
            Self::Switchover => {
                let begun = Begun::now(ledger);
                cluster.switchover()?;
                Ok(begun)
            }
            Self::CutPair | Self::CutToStandby | Self::CutToActive | Self::SlowPair => {
                let stalled = Weather { stalled: true, ..Weather::default() };
                let slow = Weather {
                    delay: Duration::from_millis(2),
                    jitter: Duration::from_millis(2),
                    ..Weather::default()
                };
                let fair = Weather::default();
                let (to_standby, to_active, span) = if self == Self::CutToStandby {
                    (stalled, fair, CUT)
                } else if self == Self::CutToActive {
                    (fair, stalled, CUT)
                } else if self == Self::SlowPair {
                    (slow, slow, SLOW)
                } else {
                    (stalled, stalled, CUT)
                };
                let proxies = cluster.proxies.as_ref().context("cuts need proxies")?;
                let begun = Begun::now(ledger);
                proxies.set(active, standby, to_standby);
                proxies.set(standby, active, to_active);
                cleared(cluster, begun, span)
            }
            Self::ResetPair => {
                let proxies = cluster.proxies.as_ref().context("cuts need proxies")?;
                let begun = Begun::now(ledger);
                proxies.reset(active, standby);
                Ok(begun)
            }
            Self::CutOffActive | Self::CutOffActiveToWitness => {
                let others = [cluster.names(Part::Session), cluster.names(Part::Game)].concat();
                let stalled = Weather { stalled: true, ..Weather::default() };
                let proxies = cluster.proxies.as_ref().context("cuts need proxies")?;
                let begun = Begun::now(ledger);
                for other in others.into_iter().chain([standby]) {
                    proxies.set_both(active, other, stalled);
                }
                if self == Self::CutOffActive {
                    proxies.set_both(active, "witness", stalled);
                }
                cleared(cluster, begun, CUT)
            }
            Self::SlowServers => {
                let others = [cluster.names(Part::Session), cluster.names(Part::Game)].concat();
                let slow = Weather {
                    delay: Duration::from_millis(5),
                    jitter: Duration::from_millis(5),
                    ..Weather::default()
                };
                let proxies = cluster.proxies.as_ref().context("cuts need proxies")?;
                let begun = Begun::now(ledger);
                for other in others {
                    proxies.set_both(active, other, slow);
                    proxies.set_both(standby, other, slow);
                }
                cleared(cluster, begun, SLOW)
            }
            Self::WitnessAwayAndActiveDies => {
                cluster.signal("witness", Signal::STOP)?;
                let begun = Begun::now(ledger);
                cluster.kill(active)?;
                cluster.wait(WITNESS_AWAY_MORE)?;
                cluster.signal("witness", Signal::CONT)?;
                Ok(begun)
            }
        }
    }
}

fn stopped(
    cluster: &mut Cluster,
    ledger: &Shared,
    name: &str,
    span: Duration,
) -> anyhow::Result<Begun> {
    let begun = Begun::now(ledger);
    cluster.signal(name, Signal::STOP)?;
    cluster.wait(span)?;
    cluster.signal(name, Signal::CONT)?;
    Ok(begun)
}

fn cleared(cluster: &mut Cluster, begun: Begun, span: Duration) -> anyhow::Result<Begun> {
    cluster.wait(span)?;
    cluster.proxies.as_ref().context("cuts need proxies")?.clear();
    Ok(begun)
}

/// When a fault began, by both clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Begun {
    /// Since the load's start.
    pub(crate) at_us: u64,
    /// Since 1970.
    pub(crate) wall_us: u64,
}

impl Begun {
    fn now(ledger: &Shared) -> Self {
        Self { at_us: ledger.lock().strikes(), wall_us: wall_now_us() }
    }
}
