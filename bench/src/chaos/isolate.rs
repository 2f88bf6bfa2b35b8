//! A session server, a game server and their clients are cut off from both masters. Rooms that were on that game server
//! are made again on the other one; nobody may ever see two of one key at the same time.

use std::time::Duration;

use anyhow::Context;

use super::campaign::{Plan, Report, concluded};
use super::cluster::Cluster;
use super::load::Load;
use super::proxy::Weather;
use super::status::View;
use crate::report::progress;

/// How long they are cut off.
const CUT: Duration = Duration::from_secs(60);
/// Players play for this long before it, and after it.
const PLAY: Duration = Duration::from_secs(8);
/// The longest that the cluster may take to be whole again.
const HEAL_MAX: Duration = Duration::from_secs(60);

/// Does it, as often as the plan says.
///
/// # Errors
/// When the cluster can't be started or does not heal.
pub(crate) fn run(plan: &Plan) -> anyhow::Result<Report> {
    let mut cluster = Cluster::start(plan.shape.clone())?;
    let mut order = plan.order.clone();
    order.doors.clone_from(&cluster.doors);
    let load = Load::start(order)?;
    let mut parts = || -> anyhow::Result<()> {
        for number in 1..=plan.faults {
            cluster.wait(PLAY)?;
            let proxies = cluster.proxies.as_ref().context("cuts need proxies")?;
            for server in ["session-1", "game-1"] {
                for master in ["master-a", "master-b"] {
                    let stalled = Weather { stalled: true, ..Weather::default() };
                    proxies.set_both(server, master, stalled);
                }
            }
            progress(&format!("{number}: session-1 and game-1 are cut off"));
            cluster.wait(CUT)?;
            cluster.proxies.as_ref().context("cuts need proxies")?.clear();
            cluster.wait_until(HEAL_MAX, "whole", View::is_whole)?;
            progress(&format!("{number}: they are back"));
            cluster.wait(PLAY)?;
        }
        Ok(())
    };
    let result = parts();
    let rooms = load.control.lives().count();
    progress(&format!("{rooms} lives of rooms were seen"));
    concluded(plan, &mut cluster, load, Vec::new(), &result)
}
