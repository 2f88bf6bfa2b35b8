//! A lane: one line of directory operations, one after the other, each when the clock says so. Each answer is compared
//! with what must be so by then, as seen by another client.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use greenroom_client::{Client, ClientError, Code, Found, InstanceId, Room, field};
use serde::Serialize;
use tokio::sync::Semaphore;

use super::ledger::{Alive, Shared, Wrong};
use super::load::Control;

/// The kind whose instances stay when nobody is in them.
pub(crate) const KIND: &str = "lobby";
/// Instances that a lane leaves behind before it closes the oldest.
const KEPT: usize = 3;
/// Operations of one cycle.
const OPERATIONS: usize = 7;

/// The parameters of [`KIND`]: its name says whose it is.
#[derive(Debug, Serialize)]
pub(crate) struct Params<'a> {
    pub(crate) mode: &'static str,
    pub(crate) rating: u16,
    pub(crate) name: &'a str,
    pub(crate) map: &'static str,
    pub(crate) level: u16,
}

impl<'a> Params<'a> {
    pub(crate) const fn named(name: &'a str, rating: u16) -> Self {
        Self { mode: "duel", rating, name, map: "plain", level: 1 }
    }
}

/// What a lane works with.
#[derive(Debug)]
pub(crate) struct Lane {
    /// Its number, which is in its names.
    pub(crate) number: usize,
    /// Of this run: names of two runs differ.
    pub(crate) run: String,
    /// Asks for the writes.
    pub(crate) client: Client,
    /// Looks for what they did.
    pub(crate) other: Client,
    pub(crate) ledger: Shared,
    pub(crate) control: Arc<Control>,
    /// One permit for each operation that is due.
    pub(crate) due: Arc<Semaphore>,
}

/// Why a lane goes on to its next cycle.
#[derive(Debug)]
enum Broken {
    /// It is to end.
    Over,
    /// An operation failed, which is written down.
    Failed,
}

type Step<T> = Result<T, Broken>;

impl Lane {
    /// Works until the load is over.
    pub(crate) async fn run(self) {
        // Lanes begin one after the other, so that at any moment some write and others look.
        for _ in 0..self.number % OPERATIONS {
            let Ok(turn) = self.due.acquire().await else { return };
            turn.forget();
        }
        let mut kept = VecDeque::new();
        for cycle in 0_u64.. {
            let name = format!("{}-{}-{cycle}", self.run, self.number);
            match self.cycle(cycle, name, &mut kept).await {
                Err(Broken::Over) => return,
                Ok(()) | Err(Broken::Failed) => {}
            }
        }
    }

    async fn cycle(
        &self,
        cycle: u64,
        name: String,
        kept: &mut VecDeque<(String, InstanceId)>,
    ) -> Step<()> {
        let is_keyed = cycle.is_multiple_of(2);
        let instance = self.create(&name, is_keyed).await?;
        if is_keyed {
            self.create_again(&name, instance).await?;
        } else {
            self.look(&name, instance, 0).await?;
        }
        let room = self.join(&name, instance).await?;
        if let Err(broken) = self.look(&name, instance, 1).await {
            // The room goes, and nobody waits for that.
            self.seats(&name, None);
            return Err(broken);
        }
        self.leave(&name, room).await?;
        kept.push_back((name, instance));
        if kept.len() > KEPT
            && let Some((name, instance)) = kept.pop_front()
        {
            self.destroy(&name, instance).await?;
            self.look_for_nothing(&name).await?;
        }
        Ok(())
    }

    /// Waits for the moment at which the next operation is due. Gives when that is.
    async fn next(&self) -> Step<u64> {
        let Ok(permit) = self.due.acquire().await else { return Err(Broken::Over) };
        permit.forget();
        if self.control.is_over.load(Ordering::Relaxed) {
            return Err(Broken::Over);
        }
        self.control.under_way.fetch_add(1, Ordering::Relaxed);
        Ok(self.ledger.lock().now_us())
    }

    /// The operation has ended. A failure makes its instance one of which nobody knows.
    fn ended<T>(
        &self,
        at: &'static str,
        name: &str,
        asked_us: u64,
        is_write: bool,
        result: Result<T, ClientError>,
    ) -> Step<T> {
        self.control.under_way.fetch_sub(1, Ordering::Relaxed);
        let mut ledger = self.ledger.lock();
        match result {
            Ok(value) => {
                match is_write {
                    true => ledger.acknowledged(asked_us),
                    false => ledger.read(asked_us),
                }
                Ok(value)
            }
            Err(error) => {
                if is_gone(&error) && ledger.may_be_gone_before_us.is_some() {
                    ledger.missing(Wrong::Lost, name, "an operation on it was refused");
                } else {
                    ledger.error(at, &error);
                    ledger.alive.remove(name);
                    ledger.unknown.insert(name.to_owned());
                }
                Err(Broken::Failed)
            }
        }
    }

    async fn create(&self, name: &str, is_keyed: bool) -> Step<InstanceId> {
        let asked_us = self.next().await?;
        let params = Params::named(name, u16::try_from(self.number % 3_000).unwrap_or(0));
        let mut create = self.client.create(KIND).params(&params);
        if is_keyed {
            create = create.key(name);
        }
        let instance = self.ended("create", name, asked_us, true, create.await)?;
        let mut ledger = self.ledger.lock();
        let since_us = ledger.now_us();
        ledger.alive.insert(name.to_owned(), Alive { instance, seats: Some(0), since_us });
        Ok(instance)
    }

    /// A key has one instance, whoever asks for it.
    async fn create_again(&self, name: &str, instance: InstanceId) -> Step<()> {
        let asked_us = self.next().await?;
        let create = self.other.create(KIND).params(&Params::named(name, 0)).key(name);
        let found = self.ended("own key", name, asked_us, true, create.await)?;
        if found != instance {
            let mut ledger = self.ledger.lock();
            match ledger.may_be_gone_before_us {
                // Its game server died in between, and the key was free.
                Some(_) => {
                    ledger.gone_with_server += 1;
                    ledger.alive.remove(name);
                    ledger.unknown.insert(name.to_owned());
                }
                None => ledger.wrong(
                    Wrong::Doubled,
                    format!("the key {name} has the instances {instance} and {found}"),
                ),
            }
            return Err(Broken::Failed);
        }
        Ok(())
    }

    async fn join(&self, name: &str, instance: InstanceId) -> Step<Room> {
        let asked_us = self.next().await?;
        self.seats(name, None);
        let joined = self.client.join(instance).await;
        let mut room = self.ended("join", name, asked_us, true, joined)?;
        room.mute();
        self.seats(name, Some(1));
        Ok(room)
    }

    async fn leave(&self, name: &str, room: Room) -> Step<()> {
        self.seats(name, None);
        let asked_us = self.next().await?;
        let left = room.leave().await;
        self.ended("leave", name, asked_us, true, left)?;
        self.seats(name, Some(0));
        Ok(())
    }

    fn seats(&self, name: &str, seats: Option<u16>) {
        if let Some(alive) = self.ledger.lock().alive.get_mut(name) {
            alive.seats = seats;
        }
    }

    async fn destroy(&self, name: &str, instance: InstanceId) -> Step<()> {
        let asked_us = self.next().await?;
        // From here on it may be gone.
        let was_alive = self.ledger.lock().alive.remove(name).is_some();
        if !was_alive {
            // Somebody has found it missing, which is written down.
            self.control.under_way.fetch_sub(1, Ordering::Relaxed);
            return Err(Broken::Failed);
        }
        let destroyed = self.client.destroy(instance).await;
        match &destroyed {
            Err(error) if is_gone(error) && self.ledger.lock().may_be_gone_before_us.is_some() => {
                self.control.under_way.fetch_sub(1, Ordering::Relaxed);
                self.ledger.lock().gone_with_server += 1;
                Err(Broken::Failed)
            }
            _ => self.ended("destroy", name, asked_us, true, destroyed),
        }
    }

    /// Another client looks for an instance whose creation, and whose seats, were acknowledged before.
    async fn look(&self, name: &str, instance: InstanceId, seats: u16) -> Step<()> {
        let asked_us = self.next().await?;
        let found = self.search(name).await;
        let found = self.ended("search", name, asked_us, false, found)?;
        let mut ledger = self.ledger.lock();
        match &found.instances[..] {
            [] => {
                ledger.missing(Wrong::Stale, name, "a search by another client does not find it");
                Err(Broken::Failed)
            }
            [one] if one.instance == instance && one.seats_taken == seats => Ok(()),
            [one] => {
                let seen = format!(
                    "a search by another client finds {} with {} seats taken, not {seats}",
                    one.instance, one.seats_taken
                );
                ledger.missing(Wrong::Stale, name, &seen);
                Err(Broken::Failed)
            }
            several => {
                let text = format!("{} instances are called {name}", several.len());
                ledger.wrong(Wrong::Doubled, text);
                Err(Broken::Failed)
            }
        }
    }

    /// Another client looks for an instance that was closed.
    async fn look_for_nothing(&self, name: &str) -> Step<()> {
        let asked_us = self.next().await?;
        let found = self.search(name).await;
        let found = self.ended("search", name, asked_us, false, found)?;
        if let Some(one) = found.instances.first() {
            let text = format!("{name} was closed and is found as {}", one.instance);
            self.ledger.lock().wrong(Wrong::Stale, text);
        }
        Ok(())
    }

    async fn search(&self, name: &str) -> Result<Found, ClientError> {
        self.other.search(KIND).filter(field("name").eq(name)).await
    }
}

/// Whether an operation was refused since its instance is no more.
pub(crate) fn is_gone(error: &ClientError) -> bool {
    let (ClientError::Refused(refusal) | ClientError::Left(refusal)) = error else { return false };
    matches!(
        refusal.code,
        Code::InstanceUnknown | Code::InstanceClosed | Code::NotSeated | Code::InstanceLost
    )
}
