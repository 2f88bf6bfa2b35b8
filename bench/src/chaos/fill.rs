//! A directory full of users: session servers of a few lines report sessions that nobody is connected by, and go. The
//! masters keep them for as long as their grace lasts, which these campaigns make long.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use greenroom_link::{ClusterKey, Incoming, Me, Outgoing};
use greenroom_protocol::wire::server_server::{Identity, Role};
use greenroom_protocol::wire::session_master::{
    HeldSession, MasterToSession, SessionReport, SessionToMaster,
};
use greenroom_protocol::{
    Generation, Incarnation, Limits, LinkHeader, ServerName, SessionId, SessionKey, StampedHeader,
    UserId,
};
use tokio::task::LocalSet;
use tokio::time::timeout;

use super::cluster::Cluster;
use crate::report::progress;

/// Sessions of one report: they fit into one frame of a link.
const REPORTED: usize = 20_000;
/// The longest that a master may take for one report.
const WELCOME_MAX: Duration = Duration::from_secs(20);
/// The longest that a master that does not decide is listened to.
const SILENCE_MAX: Duration = Duration::from_secs(2);

/// Flags of masters that keep what nobody is connected to.
pub(crate) fn flags() -> Vec<String> {
    ["--session-grace", "12h", "--server-grace", "12h"].map(str::to_owned).to_vec()
}

/// Fills the directory with `count` users.
///
/// # Errors
/// When no master takes them.
pub(crate) fn users(cluster: &Cluster, data: &Path, count: usize) -> anyhow::Result<()> {
    let key = data.join("cluster.key");
    let key = fs::read_to_string(&key).with_context(|| format!("reading {}", key.display()))?;
    let key: ClusterKey = key.trim().parse().context("reading the cluster's key")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting a runtime")?;
    let began = Instant::now();
    LocalSet::new().block_on(&runtime, async {
        for (number, first) in (0..count).step_by(REPORTED).enumerate() {
            let sessions =
                (first..count.min(first + REPORTED)).map(held).collect::<Result<_, _>>()?;
            report(&cluster.masters, &key, number, sessions).await?;
        }
        anyhow::Ok(())
    })?;
    progress(&format!("{count} users are there after {:.1} s", began.elapsed().as_secs_f64()));
    Ok(())
}

fn held(number: usize) -> anyhow::Result<HeldSession> {
    let key = number as u128 + (1 << 100);
    Ok(HeldSession {
        // Far from where the masters' own begin.
        session: SessionId((1 << 60) + u64::try_from(number)?),
        generation: Generation(1),
        user: UserId::new(format!("user-{number:09}"))?,
        session_key: SessionKey(key.to_le_bytes()),
        name: format!("Name {number:08}").into(),
    })
}

/// One session server says whom it has, to whichever master decides, and goes.
async fn report(
    masters: &[SocketAddr],
    key: &ClusterKey,
    number: usize,
    sessions: Vec<HeldSession>,
) -> anyhow::Result<()> {
    let identity = Identity::new(
        "greenroom".into(),
        Role::Session,
        ServerName::new(format!("fill-{number}"))?,
        Incarnation(u64::try_from(number)? + 1),
        "bench".into(),
    );
    let me = Me { identity, key: key.clone() };
    for master in masters {
        let link = greenroom_link::dial(&master.to_string(), &me, &[Role::Master]).await;
        let Ok(link) = link else { continue };
        tokio::task::spawn_local(link.writer.run());
        let mut end = End { incoming: link.incoming, outgoing: link.outgoing };
        // One that follows says nothing.
        let Ok(stamp) = timeout(SILENCE_MAX, end.new_epoch()).await else { continue };
        let stamp = stamp?;
        let report =
            SessionReport { urls: Vec::new(), build: "bench".into(), connections_max: 0, sessions };
        end.say(stamp, &report.into());
        return timeout(WELCOME_MAX, end.welcome()).await.context("no welcome in time")?;
    }
    bail!("no master decides")
}

struct End {
    incoming: Incoming,
    outgoing: Outgoing,
}

impl Drop for End {
    fn drop(&mut self) {
        self.outgoing.close();
    }
}

impl End {
    fn say(&self, stamp: StampedHeader, message: &SessionToMaster) {
        let mut payload = Vec::new();
        message.encode_into(&mut payload);
        let stamp = StampedHeader { n: 0, ..stamp }.bytes();
        self.outgoing.push(LinkHeader { kind: message.kind(), target: 0 }, &[&stamp, &payload]);
    }

    async fn hear(&mut self) -> anyhow::Result<(StampedHeader, MasterToSession)> {
        loop {
            if let Some(frame) = self.incoming.next_frame()? {
                let payload = &self.incoming.bytes()[frame.payload];
                let (stamp, message) = StampedHeader::split(payload)?;
                let message = MasterToSession::decode(frame.header.kind, message, Limits::SERVER)?;
                return Ok((stamp, message));
            }
            self.incoming.fill().await?;
        }
    }

    async fn new_epoch(&mut self) -> anyhow::Result<StampedHeader> {
        let (stamp, message) = self.hear().await?;
        ensure!(
            matches!(message, MasterToSession::NewEpoch(_)),
            "a master begins with {message:?}"
        );
        Ok(stamp)
    }

    async fn welcome(&mut self) -> anyhow::Result<()> {
        while !matches!(self.hear().await?.1, MasterToSession::Welcome(_)) {}
        Ok(())
    }
}
