//! How the cluster is, asked once a second and kept for an hour, so that a page that is opened has a past.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use greenroom_protocol::wire::admin_master::Status;
use greenroom_protocol::{Refusal, ServerName};
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{self, MissedTickBehavior};

use crate::Cluster;

/// How often the cluster is asked.
pub(crate) const EVERY: Duration = Duration::from_secs(1);
/// Samples that are kept: an hour of them.
pub(crate) const SAMPLES_MAX: usize = 3_600;
/// How long an answer of the cluster may take before it counts as none.
const ANSWER_MAX: Duration = Duration::from_secs(3);
/// Rates are of this many seconds: servers report once a second, at times of their own.
const RATE_SAMPLES: usize = 5;

/// What is drawn over time.
#[derive(Debug)]
pub(crate) struct Series {
    /// For scripts.
    pub(crate) key: &'static str,
    /// For people.
    pub(crate) title: &'static str,
    /// After a number; empty for a count.
    pub(crate) unit: &'static str,
    /// Where it comes from.
    pub(crate) help: &'static str,
}

/// In the order of [`Sample::values`].
pub(crate) const SERIES: [Series; 8] = [
    Series {
        key: "users",
        title: "Users online",
        unit: "",
        help: "Users that the directory has a session of.",
    },
    Series {
        key: "instances",
        title: "Instances",
        unit: "",
        help: "Instances that the directory has.",
    },
    Series {
        key: "seats",
        title: "Seats taken",
        unit: "",
        help: "Seats that are taken in all instances, as game servers report.",
    },
    Series {
        key: "check_ins",
        title: "Check-ins",
        unit: "/s",
        help: "Check-ins that succeeded on all session servers, over 5 seconds.",
    },
    Series {
        key: "requests",
        title: "Frames from clients",
        unit: "/s",
        help: "Requests, messages to instances and acknowledgements that came to all session servers, over 5 seconds.",
    },
    Series {
        key: "busy",
        title: "Busiest game server",
        unit: " %",
        help: "Share of its thread's time that the busiest game server spent on its instances' ticks and messages.",
    },
    Series {
        key: "late",
        title: "Latest tick",
        unit: " ms",
        help: "The latest that a tick began on any game server since the report before.",
    },
    Series {
        key: "lag",
        title: "Replication lag",
        unit: "",
        help: "Commands that the standby is behind the active, as the answering master knows.",
    },
];

/// Places of the rates in [`Sample::values`].
pub(crate) const CHECK_INS: usize = 3;
pub(crate) const FRAMES: usize = 4;

/// One second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Sample {
    /// Milliseconds since 1970.
    pub(crate) at_ms: u64,
    /// In the order of [`SERIES`]; none where nobody knows.
    pub(crate) values: [Option<f64>; SERIES.len()],
}

/// What the servers have counted, summed over all of them and over their lives, since this console began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) check_ins: u64,
    pub(crate) frames: u64,
    pub(crate) lost: u64,
    pub(crate) doubled: u64,
    pub(crate) out_of_order: u64,
    pub(crate) rivals: u64,
}

impl Totals {
    fn each(self, other: Self, of: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            check_ins: of(self.check_ins, other.check_ins),
            frames: of(self.frames, other.frames),
            lost: of(self.lost, other.lost),
            doubled: of(self.doubled, other.doubled),
            out_of_order: of(self.out_of_order, other.out_of_order),
            rivals: of(self.rivals, other.rivals),
        }
    }
}

/// Counters that begin anew with each life of a server, added up.
#[derive(Debug, Default)]
struct Sums {
    last: BTreeMap<ServerName, Totals>,
    total: Totals,
    /// Of the total, what was counted while this console looked.
    grown: Totals,
    /// [`Sums::grown`] of the last seconds, oldest first.
    recent: VecDeque<(u64, Totals)>,
}

impl Sums {
    /// Adds what the servers say now. What one had counted before it was first seen is in the totals, but in no rate.
    fn add(&mut self, status: &Status) {
        let sessions = status.sessions.iter().filter_map(|server| {
            let counts = server.session?;
            let totals = Totals {
                check_ins: counts.check_ins,
                frames: counts.frames,
                lost: counts.lost,
                doubled: counts.doubled,
                out_of_order: counts.out_of_order,
                rivals: counts.rivals,
            };
            Some((server.name.clone(), totals))
        });
        let games = status.games.iter().filter_map(|server| {
            let rivals = server.game?.counts.rivals;
            Some((server.name.clone(), Totals { rivals, ..Totals::default() }))
        });
        let now: BTreeMap<ServerName, Totals> = sessions.chain(games).collect();
        for (name, counts) in &now {
            let before = self.last.get(name).copied();
            // A counter that has fallen is another life of the server, which counts from 0.
            let more = counts.each(before.unwrap_or_default(), |now, before| {
                now.checked_sub(before).unwrap_or(now)
            });
            self.total = self.total.each(more, u64::saturating_add);
            if before.is_some() {
                self.grown = self.grown.each(more, u64::saturating_add);
            }
        }
        self.last = now;
    }

    /// How much a counter grew each second, lately.
    fn rate(&self, of: impl Fn(&Totals) -> u64) -> Option<f64> {
        let (from_ms, from) = self.recent.front()?;
        let (to_ms, to) = self.recent.back()?;
        let seconds = to_ms.checked_sub(*from_ms).filter(|ms| *ms > 0)?;
        #[expect(clippy::cast_precision_loss, reason = "a rate is not exact anyway")]
        let rate = (of(to) - of(from)) as f64 * 1_000.0 / seconds as f64;
        Some(rate)
    }
}

/// What is known of the cluster now.
#[derive(Debug)]
pub(crate) struct Seen {
    /// Of this second; without an answer, all its values are none.
    pub(crate) sample: Sample,
    /// What the cluster said last.
    pub(crate) status: Option<Status>,
    /// When that was, in milliseconds since 1970.
    pub(crate) answered_ms: Option<u64>,
    /// Why there is nothing newer.
    pub(crate) silent: Option<Refusal>,
    pub(crate) totals: Totals,
}

/// The past hour, and the present.
#[derive(Debug)]
pub(crate) struct Watch {
    past: Mutex<VecDeque<Sample>>,
    now: watch::Sender<Option<Arc<Seen>>>,
}

impl Default for Watch {
    fn default() -> Self {
        Self { past: Mutex::default(), now: watch::Sender::new(None) }
    }
}

impl Watch {
    /// What is known now. Waits for the first answer, after the start.
    pub(crate) async fn now(&self) -> Arc<Seen> {
        let mut now = self.now.subscribe();
        let seen = now.wait_for(Option::is_some).await.map(|seen| seen.clone());
        seen.ok().flatten().expect("the sender lives as long as this, and it was waited for one")
    }

    /// Who reads here is told of every second, or of the newest one if it is slow.
    pub(crate) fn follow(&self) -> watch::Receiver<Option<Arc<Seen>>> {
        self.now.subscribe()
    }

    /// The samples that are kept, oldest first.
    pub(crate) fn past(&self) -> Vec<Sample> {
        self.locked().iter().copied().collect()
    }

    fn locked(&self) -> MutexGuard<'_, VecDeque<Sample>> {
        self.past.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the cluster once a second, for ever.
    pub(crate) async fn run(&self, cluster: &dyn Cluster) -> Infallible {
        let mut sums = Sums::default();
        let mut every = time::interval(EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            let answer = time::timeout(ANSWER_MAX, cluster.status()).await.unwrap_or_else(|_| {
                let text = "the master has not answered for 3 seconds";
                Err(Refusal::new(greenroom_protocol::Code::Unavailable, text))
            });
            self.take(&mut sums, now_ms(), answer);
        }
    }

    fn take(&self, sums: &mut Sums, at_ms: u64, answer: Result<Status, Refusal>) {
        let before = self.now.borrow().clone();
        let seen = match answer {
            Ok(status) => {
                sums.add(&status);
                sums.recent.push_back((at_ms, sums.grown));
                if sums.recent.len() > RATE_SAMPLES + 1 {
                    sums.recent.pop_front();
                }
                let sample = Sample { at_ms, values: values(&status, sums) };
                let (status, answered_ms) = (Some(status), Some(at_ms));
                Seen { sample, status, answered_ms, silent: None, totals: sums.total }
            }
            Err(refusal) => {
                sums.recent.clear();
                let sample = Sample { at_ms, values: [None; SERIES.len()] };
                let status = before.as_ref().and_then(|seen| seen.status.clone());
                let answered_ms = before.and_then(|seen| seen.answered_ms);
                Seen { sample, status, answered_ms, silent: Some(refusal), totals: sums.total }
            }
        };
        {
            let mut past = self.locked();
            if past.len() == SAMPLES_MAX {
                past.pop_front();
            }
            past.push_back(seen.sample);
        }
        self.now.send_replace(Some(Arc::new(seen)));
    }
}

fn values(status: &Status, sums: &Sums) -> [Option<f64>; SERIES.len()] {
    #[expect(clippy::cast_precision_loss, reason = "charts are read by eye")]
    let float = |number: u64| number as f64;
    let up = || status.games.iter().filter(|server| server.state != "down");
    let busy = up().map(|server| server.busy_permille).max();
    let late = up().filter_map(|server| Some(server.game?.counts.tick_late_us)).max();
    let has_pair = status.masters.len() > 1;
    [
        Some(float(status.users)),
        Some(float(status.instances)),
        Some(float(up().filter_map(|server| Some(u64::from(server.game?.seats))).sum())),
        sums.rate(|totals| totals.check_ins),
        sums.rate(|totals| totals.frames),
        busy.map(|permille| f64::from(permille) / 10.0),
        late.map(|us| float(us) / 1_000.0),
        has_pair.then(|| float(status.masters.iter().map(|master| master.lag).max().unwrap_or(0))),
    ]
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use greenroom_protocol::wire::admin_master::ServerStatus;
    use greenroom_protocol::wire::session_master::SessionCounts;

    use super::*;

    fn with_session(check_ins: u64, lost: u64) -> Status {
        let counts = SessionCounts { check_ins, lost, ..SessionCounts::default() };
        let session = ServerStatus {
            name: ServerName::new("session-1").unwrap(),
            state: "up".into(),
            addresses: Vec::new(),
            build: "test".into(),
            load: 1,
            capacity: 2,
            busy_permille: 3,
            session: Some(counts),
            game: None,
        };
        Status {
            cluster: "test".into(),
            masters: Vec::new(),
            sessions: vec![session],
            games: Vec::new(),
            users: 1,
            instances: 0,
            twins: 0,
            witness: None,
            kinds: Vec::new(),
        }
    }

    #[test]
    fn a_server_that_starts_anew_takes_nothing_of_what_was_counted_away() {
        let (watch, mut sums) = (Watch::default(), Sums::default());
        watch.take(&mut sums, 1_000, Ok(with_session(10, 1)));
        watch.take(&mut sums, 2_000, Ok(with_session(14, 1)));
        watch.take(&mut sums, 3_000, Ok(with_session(2, 0)));
        let seen = watch.now.borrow().clone().unwrap();
        assert_eq!((seen.totals.check_ins, seen.totals.lost), (16, 1));
        assert_eq!(seen.sample.values[CHECK_INS], Some(3.0), "six more in two seconds");
    }

    #[test]
    fn while_the_cluster_is_silent_the_last_it_said_is_kept() {
        let (watch, mut sums) = (Watch::default(), Sums::default());
        watch.take(&mut sums, 1_000, Ok(with_session(1, 0)));
        let refusal = Refusal::new(greenroom_protocol::Code::Unavailable, "gone");
        watch.take(&mut sums, 2_000, Err(refusal));
        let seen = watch.now.borrow().clone().unwrap();
        assert_eq!((seen.answered_ms, seen.sample.values[0]), (Some(1_000), None));
        assert!(seen.status.is_some() && seen.silent.is_some());
    }

    #[test]
    fn the_rates_are_where_they_are_looked_for() {
        assert_eq!([SERIES[CHECK_INS].key, SERIES[FRAMES].key], ["check_ins", "requests"]);
    }

    #[test]
    fn an_hour_is_kept_and_no_more() {
        let (watch, mut sums) = (Watch::default(), Sums::default());
        for second in 0..SAMPLES_MAX as u64 + 10 {
            watch.take(&mut sums, second * 1_000, Ok(with_session(second, 0)));
        }
        let past = watch.past();
        assert_eq!((past.len(), past[0].at_ms), (SAMPLES_MAX, 10_000));
    }
}
