//! The load: clients of the SDK on a thread of their own. All of them play; a clock hands out directory operations to
//! the lanes that they have besides.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use greenroom_client::{Client, field};
use tokio::runtime;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::keep::Keeper;
use super::lane::{KIND, Lane, Params};
use super::ledger::{Shared, Wrong};
use super::play::{Lives, Player, ROOM};
use crate::wire::Random;

/// Keepers of each user, so that none needs more seats than it may have.
const KEEPERS_MAX: usize = 5;
/// Lanes of each user: with what it plays in, as many seats as it needs.
const LANES: usize = 2;
/// Operations that wait for a lane; more are shed.
const WAITING_MAX: usize = 16;
/// How often the clock hands out operations.
const PACE: Duration = Duration::from_millis(1);
/// Clients that check in at the same time.
const OPENING_MAX: usize = 32;
/// Players of each room that look at every view.
const WATCHERS: usize = 2;
/// The longest that everything under way may take to end.
const QUIET_MAX: Duration = Duration::from_secs(60);
/// Instances that are looked for after each fault.
const AUDITED: usize = 100;
/// Instances of one page.
const PAGE: u16 = 100;

/// What is asked of the load.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    /// Users, all of which play.
    pub(crate) users: usize,
    /// Directory operations a second; 0 for none.
    pub(crate) ops: u32,
    /// Instances that are made before, and stay.
    pub(crate) fill: usize,
    /// Instances that stay, with a keeper in each.
    pub(crate) keepers: usize,
    /// All of them look at every view, and what they are refused is no error.
    pub(crate) may_fail: bool,
    /// How long a request may take before a client counts it as undecided.
    pub(crate) patience: Duration,
    /// Where clients connect.
    pub(crate) doors: Vec<SocketAddr>,
    pub(crate) seed: u64,
}

/// What the load and who steers it have in common.
#[derive(Debug, Default)]
pub(crate) struct Control {
    /// Nothing new is begun.
    pub(crate) is_over: AtomicBool,
    /// What players are refused is no error.
    pub(crate) may_fail: AtomicBool,
    /// Operations of lanes that are under way.
    pub(crate) under_way: AtomicI64,
    /// Counts requests for an audit, and audits that are done.
    audits_asked: AtomicU64,
    audits_done: AtomicU64,
    lives: Mutex<Lives>,
}

impl Control {
    pub(crate) fn lives(&self) -> MutexGuard<'_, Lives> {
        self.lives.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The load, while it runs.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) ledger: Shared,
    pub(crate) control: Arc<Control>,
    thread: JoinHandle<anyhow::Result<()>>,
}

impl Load {
    /// Checks all users in and begins.
    ///
    /// # Errors
    /// When they don't get in.
    pub(crate) fn start(order: Order) -> anyhow::Result<Self> {
        let (ledger, control) = (Shared::new(), Arc::new(Control::default()));
        control.may_fail.store(order.may_fail, Ordering::Relaxed);
        let (to_begun, begun) = mpsc::sync_channel(1);
        let run = Run { order, ledger: ledger.clone(), control: Arc::clone(&control) };
        let thread = thread::Builder::new()
            .name("load".to_owned())
            .spawn(move || {
                let runtime = runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .context("starting a runtime")?;
                runtime.block_on(run.run(&to_begun))
            })
            .context("starting the load's thread")?;
        if begun.recv().is_err() {
            // It ended before it began.
            joined(thread)?;
        } else {
            return Ok(Self { ledger, control, thread });
        }
        anyhow::bail!("the load ended before it began")
    }

    /// Begins to look for some of the instances that must be there. Gives what to compare with [`Self::audits`].
    pub(crate) fn ask_for_audit(&self) -> u64 {
        self.control.audits_asked.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// How many audits are done.
    pub(crate) fn audits(&self) -> u64 {
        self.control.audits_done.load(Ordering::Relaxed)
    }

    /// Whether its thread has ended, which it must not before it is asked to.
    pub(crate) fn is_dead(&self) -> bool {
        self.thread.is_finished()
    }

    /// Ends: waits for what is under way, then looks for every instance there is and compares with the ledger.
    ///
    /// # Errors
    /// When something under way never ends, or the directory can't be read.
    pub(crate) fn finish(self) -> anyhow::Result<(Shared, Arc<Control>)> {
        self.control.is_over.store(true, Ordering::Relaxed);
        joined(self.thread)?;
        for text in self.control.lives().twins() {
            self.ledger.lock().wrong(Wrong::Twin, text);
        }
        Ok((self.ledger, self.control))
    }
}

fn joined(thread: JoinHandle<anyhow::Result<()>>) -> anyhow::Result<()> {
    thread.join().map_err(|_| anyhow::anyhow!("the load's thread panicked"))?
}

#[derive(Debug)]
struct Run {
    order: Order,
    ledger: Shared,
    control: Arc<Control>,
}

impl Run {
    async fn run(self, begun: &mpsc::SyncSender<()>) -> anyhow::Result<()> {
        let clients = self.check_in().await?;
        let mut seed = [0; 4];
        getrandom::fill(&mut seed).context("drawing random bits")?;
        let run = format!("r{:08x}", u32::from_le_bytes(seed));
        self.fill(&clients, &run).await?;
        let mut tasks = JoinSet::new();
        for (number, client) in clients.iter().enumerate() {
            let player = Player {
                number,
                run: run.clone(),
                client: client.clone(),
                ledger: self.ledger.clone(),
                control: Arc::clone(&self.control),
                watches: self.order.may_fail || number % ROOM < WATCHERS,
            };
            tasks.spawn(player.run());
        }
        let turns = Arc::new(Semaphore::new(OPENING_MAX));
        for (number, client) in clients.iter().cycle().take(self.order.keepers).enumerate() {
            let keeper = Keeper {
                number,
                of: self.order.keepers,
                run: run.clone(),
                turns: Arc::clone(&turns),
                client: client.clone(),
                ledger: self.ledger.clone(),
                control: Arc::clone(&self.control),
            };
            tasks.spawn(keeper.run());
        }
        let lanes = self.lanes(&clients, &run, &mut tasks);
        begun.send(()).context("nobody waits for the load")?;
        self.pace(&clients, &lanes).await;
        // Lanes that wait for their turn wait no more; what is under way ends.
        lanes.iter().for_each(|due| due.close());
        let ended =
            tokio::time::timeout(QUIET_MAX, async { while tasks.join_next().await.is_some() {} });
        if ended.await.is_err() {
            let under_way = self.control.under_way.load(Ordering::Relaxed);
            let text = format!("{under_way} operations had no answer after {QUIET_MAX:?}");
            self.ledger.lock().wrong(Wrong::Error, text);
            tasks.shutdown().await;
        }
        if self.order.ops > 0 {
            self.compare(&clients, &run).await?;
        }
        for client in clients {
            client.close().await;
        }
        Ok(())
    }

    async fn check_in(&self) -> anyhow::Result<Vec<Client>> {
        let Order { users, doors, patience, .. } = &self.order;
        let mut clients = Vec::with_capacity(*users);
        while clients.len() < *users {
            let from = clients.len();
            let mut opening = JoinSet::new();
            for number in from..(from + OPENING_MAX).min(*users) {
                let builder = Client::builder()
                    // The first one decides, so that users are spread evenly; the others are for when it dies.
                    .servers(doors.iter().map(|door| format!("tcp://{door}")))
                    .guest(format!("chaos-{number}"))
                    .request_within(*patience);
                opening.spawn(builder.connect());
            }
            while let Some(client) = opening.join_next().await {
                clients.push(client.context("a check-in panicked")?.context("checking in")?);
            }
        }
        Ok(clients)
    }

    /// Makes the instances that are there before, eight at a time for each user.
    async fn fill(&self, clients: &[Client], run: &str) -> anyhow::Result<()> {
        const AT_ONCE: usize = 4;
        let mut making = JoinSet::new();
        let makers = clients.len() * AT_ONCE;
        for maker in 0..makers {
            let (client, run) = (clients[maker / AT_ONCE].clone(), run.to_owned());
            let fill = self.order.fill;
            making.spawn(async move {
                for number in (maker..fill).step_by(makers) {
                    let name = format!("fill-{run}-{number}");
                    let rating = u16::try_from(number % 3_000).unwrap_or(0);
                    client.create(KIND).params(&Params::named(&name, rating)).await?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(made) = making.join_next().await {
            made.context("a maker of instances panicked")?.context("making instances")?;
        }
        Ok(())
    }

    fn lanes(&self, clients: &[Client], run: &str, tasks: &mut JoinSet<()>) -> Vec<Arc<Semaphore>> {
        if self.order.ops == 0 {
            return Vec::new();
        }
        let mut lanes = Vec::new();
        for number in 0..clients.len() * LANES {
            let due = Arc::new(Semaphore::new(0));
            lanes.push(Arc::clone(&due));
            let lane = Lane {
                number,
                run: run.to_owned(),
                client: clients[number % clients.len()].clone(),
                other: clients[(number + 1) % clients.len()].clone(),
                ledger: self.ledger.clone(),
                control: Arc::clone(&self.control),
                due,
            };
            tasks.spawn(lane.run());
        }
        lanes
    }

    /// Hands out operations by the clock, in turn, until the load is over.
    async fn pace(&self, clients: &[Client], lanes: &[Arc<Semaphore>]) {
        let began = Instant::now();
        let (mut handed_out, mut dice) = (0_u64, Random::new(self.order.seed));
        let mut turn = interval(PACE);
        turn.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut auditing = JoinSet::new();
        while !self.control.is_over.load(Ordering::Relaxed) {
            turn.tick().await;
            let due = began.elapsed().as_micros() * u128::from(self.order.ops) / 1_000_000;
            while !lanes.is_empty() && u128::from(handed_out) < due {
                // In turn, with a prime between two, so that one client's lanes are not due at once.
                let at = handed_out.wrapping_mul(7_919) % lanes.len() as u64;
                let lane = &lanes[usize::try_from(at).unwrap_or(0)];
                match lane.available_permits() < WAITING_MAX {
                    true => lane.add_permits(1),
                    false => self.ledger.lock().shed += 1,
                }
                handed_out += 1;
            }
            let asked = self.control.audits_asked.load(Ordering::Relaxed);
            if asked > self.control.audits_done.load(Ordering::Relaxed) && auditing.is_empty() {
                let first = usize::try_from(dice.next() % clients.len() as u64).unwrap_or(0);
                let clients = clients.iter().cycle().skip(first).take(AUDITED).cloned().collect();
                auditing.spawn(audit(
                    clients,
                    self.ledger.clone(),
                    Arc::clone(&self.control),
                    asked,
                ));
            }
            while auditing.try_join_next().is_some() {}
        }
        auditing.shutdown().await;
    }

    /// Every instance that was acknowledged is there, once, with its seats; and no other.
    async fn compare(&self, clients: &[Client], run: &str) -> anyhow::Result<()> {
        let client = clients.first().context("a load has clients")?;
        let (mut there, mut filled, mut cursor) = (std::collections::BTreeMap::new(), 0, None);
        loop {
            let found = client.search(KIND).limit(PAGE).cursor(cursor).await;
            let found = found.context("looking for every instance that is there")?;
            for one in found.instances {
                let Some(greenroom_client::MetaValue::Text(name)) = one.meta.get("name") else {
                    continue;
                };
                if name.starts_with("fill-") {
                    filled += 1;
                } else if name.starts_with(run) {
                    let name = name.to_string();
                    let seen = (one.instance, one.seats_taken);
                    if let Some((first, _)) = there.insert(name.clone(), seen) {
                        let text = format!("{name} is there twice: {first} and {}", one.instance);
                        self.ledger.lock().wrong(Wrong::Doubled, text);
                    }
                }
            }
            match found.cursor {
                Some(next) => cursor = Some(next),
                None => break,
            }
        }
        let mut ledger = self.ledger.lock();
        for (name, alive) in ledger.alive.clone() {
            match there.remove(&name) {
                None => ledger.missing(Wrong::Lost, &name, "it is not there at the end"),
                Some((instance, _)) if instance != alive.instance => {
                    ledger.missing(Wrong::Doubled, &name, &format!("{instance} is called so"));
                }
                Some((_, seats)) if alive.seats.is_some_and(|acked| acked != seats) => {
                    ledger.missing(Wrong::Lost, &name, &format!("{seats} of its seats are taken"));
                }
                Some(_) => {}
            }
        }
        for (name, (instance, _)) in there {
            if !ledger.unknown.contains(&name) {
                let text = format!("{name} is there as {instance}, and nobody was told so");
                ledger.wrong(Wrong::Doubled, text);
            }
        }
        if filled != self.order.fill && ledger.may_be_gone_before_us.is_none() {
            let text = format!("{filled} of {} instances from before are there", self.order.fill);
            ledger.wrong(Wrong::Lost, text);
        }
        Ok(())
    }
}

/// Looks for some of the instances that must be there, each by another client.
async fn audit(clients: Vec<Client>, ledger: Shared, control: Arc<Control>, number: u64) {
    let step = { ledger.lock().alive.len() / AUDITED }.max(1);
    let chosen: Vec<_> = {
        let ledger = ledger.lock();
        let some = ledger.alive.iter().step_by(step).take(AUDITED);
        some.map(|(name, alive)| (name.clone(), alive.instance)).collect()
    };
    for (client, (name, instance)) in clients.iter().zip(chosen) {
        match client.search(KIND).filter(field("name").eq(name.as_str())).await {
            Ok(found) => match &found.instances[..] {
                // Somebody who closes it takes it out of the ledger before asking.
                [] => ledger.lock().missing(Wrong::Lost, &name, "an audit does not find it"),
                [one] if one.instance == instance => {}
                others => {
                    let text = format!("{name} is {instance}, and an audit finds {}", others.len());
                    ledger.lock().wrong(Wrong::Doubled, text);
                }
            },
            Err(error) => ledger.lock().error("audit", &error),
        }
        sleep(Duration::from_millis(1)).await;
    }
    control.audits_done.store(number, Ordering::Relaxed);
}

impl Order {
    /// Open files that the load needs.
    pub(crate) fn files(&self) -> u64 {
        self.users as u64 * 2 + 200
    }

    /// # Errors
    /// When there is nobody who could do it.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        ensure!(
            self.users >= 2,
            "--users {}: one asks and another looks, so two at least",
            self.users
        );
        let keepers_max = self.users * KEEPERS_MAX;
        ensure!(
            self.keepers <= keepers_max,
            "--keepers {}: {} users have room for {keepers_max}",
            self.keepers,
            self.users
        );
        Ok(())
    }
}
