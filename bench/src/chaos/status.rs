//! What the cluster says of itself, read field by field: fields that a version does not have are no error.

use std::fmt;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;

/// The longest that a master may take to answer. Short: one that is stopped never does.
const ANSWER_MAX: Duration = Duration::from_millis(250);

/// One master.
#[derive(Clone, Debug)]
pub(crate) struct Master {
    pub(crate) name: String,
    pub(crate) role: String,
    /// `era.epoch`, as two numbers so that they compare.
    pub(crate) epoch: (u64, u64),
    pub(crate) lsn: u64,
}

/// The cluster at a glance.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) masters: Vec<Master>,
    /// How many masters there should be.
    pub(crate) of: usize,
    /// Servers that are up: session servers, game servers.
    pub(crate) up: [usize; 2],
    /// Weight of the instances that the game servers have.
    pub(crate) load: u64,
    pub(crate) users: u64,
    pub(crate) instances: u64,
}

/// Asks a master's admin port.
///
/// # Errors
/// When there is no answer in a quarter of a second.
pub(crate) fn ask(admin: SocketAddr) -> anyhow::Result<View> {
    let mut socket = TcpStream::connect_timeout(&admin, ANSWER_MAX).context("connecting")?;
    socket.set_read_timeout(Some(ANSWER_MAX)).context("setting a time-out")?;
    write!(socket, "GET /status HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n")
        .context("asking")?;
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).context("reading the answer")?;
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n").context("no HTTP")?;
    ensure!(answer.starts_with(b"HTTP/1.1 200 "), "the admin port refuses");
    let value: Value = serde_json::from_slice(&answer[head + 4..]).context("reading the status")?;
    Ok(View::read(&value))
}

impl View {
    fn read(value: &Value) -> Self {
        let list = |key: &str| value[key].as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let master = |value: &Value| Master {
            name: text(&value["name"]),
            role: text(&value["role"]),
            epoch: epoch(value["epoch"].as_str().unwrap_or_default()),
            lsn: value["lsn"].as_u64().unwrap_or(0),
        };
        let up = |key: &str| list(key).iter().filter(|server| server["state"] == "up").count();
        let masters: Vec<Master> = list("masters").iter().map(master).collect();
        Self {
            of: masters.len(),
            masters,
            up: [up("sessions"), up("games")],
            load: list("games").iter().filter_map(|game| game["load"].as_u64()).sum(),
            users: value["users"].as_u64().unwrap_or(0),
            instances: value["instances"].as_u64().unwrap_or(0),
        }
    }

    fn count(&self, role: &str) -> usize {
        self.masters.iter().filter(|master| master.role == role).count()
    }

    /// Whether it has an active and, of two masters, a standby.
    pub(crate) fn is_paired(&self) -> bool {
        self.count("active") == 1 && (self.of < 2 || self.count("standby") == 1)
    }

    /// Whether nothing is missing: masters, session servers, game servers.
    pub(crate) fn is_whole(&self) -> bool {
        self.is_paired() && self.up == [2, 2]
    }

    /// The master that decides.
    pub(crate) fn active(&self) -> Option<&Master> {
        self.masters.iter().filter(|master| master.role == "active").max_by_key(|it| it.epoch)
    }

    /// Of two views, the one to believe: that of the active with the highest epoch.
    pub(crate) fn rank(&self) -> Option<(u64, u64)> {
        self.active().map(|active| active.epoch)
    }
}

impl fmt::Display for View {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Master { name, role, epoch: (era, epoch), lsn } in &self.masters {
            write!(out, "{name} is {role} in {era}.{epoch} at {lsn}, ")?;
        }
        let [sessions, games] = self.up;
        let (users, instances) = (self.users, self.instances);
        write!(
            out,
            "{sessions} session servers and {games} game servers up, {users} users, {instances} instances"
        )
    }
}

fn epoch(text: &str) -> (u64, u64) {
    let (era, epoch) = text.split_once('.').unwrap_or(("0", text));
    (era.parse().unwrap_or(0), epoch.parse().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pair(roles: [&str; 2]) -> View {
        let master = |name, role| json!({ "name": name, "role": role, "epoch": "0.7", "lsn": 9 });
        let masters = [master("master-a", roles[0]), master("master-b", roles[1])];
        View::read(&json!({ "masters": masters, "sessions": [], "games": [], "users": 1 }))
    }

    #[test]
    fn a_pair_is_one_active_and_one_standby_and_nothing_less() {
        assert!(pair(["standby", "active"]).is_paired());
        assert!(!pair(["active", "learner"]).is_paired());
        assert!(!pair(["active", "active"]).is_paired());
        assert_eq!(pair(["active", "standby"]).active().unwrap().epoch, (0, 7));
    }

    #[test]
    fn a_status_without_the_fields_that_we_read_is_no_pair() {
        assert!(!View::read(&json!({ "cluster": "x" })).is_paired());
    }
}
