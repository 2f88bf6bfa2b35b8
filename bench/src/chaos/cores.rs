//! Who uses the cores while nothing is hurt: without that, nobody can tell a slow cluster from a busy machine.

use std::time::{Duration, Instant};

use super::cluster::{Cluster, Part};
use crate::machine;

/// The parts that are looked at, in the order of their figures.
const PARTS: [(&str, Option<Part>); 4] = [
    ("generator_cores", None),
    ("masters_cores", Some(Part::Master)),
    ("sessions_cores", Some(Part::Session)),
    ("games_cores", Some(Part::Game)),
];

/// Processor time of each part, and of the machine.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Used {
    parts: [Duration; 4],
    machine: Duration,
    taken: Duration,
}

/// A window that has begun.
#[derive(Debug)]
pub(crate) struct Window {
    began: Instant,
    used: Used,
}

impl Window {
    /// # Errors
    /// When a process is gone.
    pub(crate) fn open(cluster: &Cluster) -> anyhow::Result<Self> {
        Ok(Self { began: Instant::now(), used: Used::now(cluster)? })
    }

    /// # Errors
    /// When a process is gone.
    pub(crate) fn close(self, cluster: &Cluster, sum: &mut Used) -> anyhow::Result<()> {
        let now = Used::now(cluster)?;
        for (at, part) in sum.parts.iter_mut().enumerate() {
            *part += now.parts[at].saturating_sub(self.used.parts[at]);
        }
        sum.machine += now.machine.saturating_sub(self.used.machine);
        sum.taken += self.began.elapsed();
        Ok(())
    }
}

impl Used {
    fn now(cluster: &Cluster) -> anyhow::Result<Self> {
        let mut used = Self { machine: machine::cpu_of_all()?, ..Self::default() };
        for (time, (_, part)) in used.parts.iter_mut().zip(PARTS) {
            *time = match part {
                None => machine::cpu(std::process::id())?,
                Some(part) => {
                    let pids = cluster.names(part).into_iter().filter_map(|name| cluster.pid(name));
                    pids.map(machine::cpu).sum::<anyhow::Result<Duration>>()?
                }
            };
        }
        Ok(used)
    }

    /// Cores that were used on average; what the cluster and its load did not use, others did.
    pub(crate) fn figures(&self) -> Vec<(String, f64)> {
        let seconds = self.taken.as_secs_f64().max(1e-9);
        let mut figures = Vec::new();
        let mut ours = Duration::ZERO;
        for ((name, _), time) in PARTS.iter().zip(self.parts) {
            ours += time;
            figures.push(((*name).to_owned(), time.as_secs_f64() / seconds));
        }
        let others = self.machine.saturating_sub(ours).as_secs_f64() / seconds;
        figures.push(("others_cores".to_owned(), others));
        figures
    }
}
