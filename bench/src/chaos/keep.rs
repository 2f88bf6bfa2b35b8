//! Keepers: each has an instance that stays, whose game server is killed again and again. What it was told to be stored
//! must be there in the next life, which goes on from the last snapshot that was stored, or from a newer state.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context;
use greenroom_client::{Client, ClientError, Event, Room};
use rusqlite::{Connection, OpenFlags};
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::ledger::{Shared, Wrong};
use super::load::Control;

/// The kind that is kept.
const KIND: &str = "vault";
/// Between two messages of a keeper, at least.
const ADD_INTERVAL: Duration = Duration::from_millis(500);
/// The same for each keeper that there is, so that all of them write no more than 200 times a second.
const ADD_INTERVAL_EACH: Duration = Duration::from_millis(5);
/// For how long the last message of a keeper is waited for.
const LAST_MAX: Duration = Duration::from_secs(10);

/// What a vault takes.
#[derive(Debug, Serialize)]
struct Add;

/// The step of the newest snapshot of each instance that is stored now, by the instance's id as text.
///
/// # Errors
/// When the store can't be read.
pub(crate) fn snapshots(store: &Path) -> anyhow::Result<BTreeMap<String, u64>> {
    let reading = || {
        let connection = Connection::open_with_flags(store, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        connection.busy_timeout(Duration::from_secs(5))?;
        let mut rows = connection.prepare(
            "SELECT id, json_extract(body, '$.tick') FROM snapshots WHERE body IS NOT NULL",
        )?;
        let rows =
            rows.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?)))?;
        rows.map(|row| row.map(|(id, tick)| (id, u64::try_from(tick).unwrap_or(0)))).collect()
    };
    let read: rusqlite::Result<_> = reading();
    read.with_context(|| format!("reading the snapshots in {}", store.display()))
}

/// One keeper.
#[derive(Debug)]
pub(crate) struct Keeper {
    pub(crate) number: usize,
    /// How many there are.
    pub(crate) of: usize,
    pub(crate) run: String,
    /// So many join at a time.
    pub(crate) turns: Arc<Semaphore>,
    pub(crate) client: Client,
    pub(crate) ledger: Shared,
    pub(crate) control: Arc<Control>,
}

/// What a keeper knows of its instance.
#[derive(Debug, Default)]
struct Known {
    /// The largest count that it was told is stored.
    kept: i64,
    /// When it sent the message that it was not answered yet.
    sent_us: Option<u64>,
    /// The fault that began before it was answered last.
    struck_us: Option<u64>,
    /// The next state that it sees is the first of a life of which this much was stored before.
    at_least: Option<u64>,
}

impl Keeper {
    /// Keeps until the load is over.
    pub(crate) async fn run(self) {
        let key = format!("{}-vault-{}", self.run, self.number);
        let room = loop {
            // Each instance begins with a write.
            let Ok(turn) = self.turns.acquire().await else { return };
            let joined = self.client.join_or_create(KIND).key(key.clone()).await;
            drop(turn);
            match joined {
                Ok(room) => break room,
                Err(error) => self.ledger.lock().error("a keeper's join", &error),
            }
            if self.is_over() {
                return;
            }
            sleep(ADD_INTERVAL).await;
        };
        self.ledger.lock().keepers += 1;
        self.keep(room).await;
    }

    fn is_over(&self) -> bool {
        self.control.is_over.load(Ordering::Relaxed)
    }

    async fn keep(&self, mut room: Room) {
        let mut known = Known::default();
        let of = u32::try_from(self.of).unwrap_or(u32::MAX);
        let pause = ADD_INTERVAL.max(ADD_INTERVAL_EACH.saturating_mul(of));
        let mut due = interval(pause);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // They do not all write in the same moment.
        due.reset_after(pause * u32::try_from(self.number % 50).unwrap_or(0) / 50);
        loop {
            let is_due = tokio::select! {
                event = room.next_event() => {
                    let Some(event) = event else { return };
                    if !self.hears(&room, &mut known, event) {
                        return;
                    }
                    false
                }
                _ = due.tick() => true,
            };
            if !is_due {
                continue;
            }
            if self.is_over() {
                return self.finish(room, known).await;
            }
            match room.send(&Add) {
                Ok(_) => known.sent_us = Some(self.ledger.lock().now_us()),
                // As many wait as may: nothing is added.
                Err(ClientError::Full { .. }) => {}
                Err(error) => return self.ledger.lock().error("a keeper's message", &error),
            }
        }
    }

    /// False when the seat is gone, which it must not be.
    fn hears(&self, room: &Room, known: &mut Known, event: Event) -> bool {
        let mut ledger = self.ledger.lock();
        let instance = room.instance();
        match event {
            Event::Rewound { .. } => {
                ledger.is_rewound();
                // What was under way is not answered any more.
                known.sent_us = None;
                known.at_least = ledger.stored_before.get(&instance.to_string()).copied();
            }
            Event::State { tick, .. } => {
                if let Some(stored) = known.at_least.take()
                    && u64::from(tick) < stored
                {
                    let text = format!(
                        "vault {instance} goes on at step {tick}, and step {stored} was stored"
                    );
                    ledger.wrong(Wrong::Lost, text);
                }
            }
            Event::Message(message) => match message.decode::<i64>() {
                // Each message is counted once more, so in a life that lost nothing the count only grows.
                Ok(kept) if kept > known.kept => {
                    known.kept = kept;
                    let sent_us = known.sent_us.take();
                    if sent_us > Some(ledger.struck_us) && known.struck_us != Some(ledger.struck_us)
                    {
                        known.struck_us = Some(ledger.struck_us);
                        ledger.answered += 1;
                    }
                }
                Ok(kept) => {
                    let text = format!(
                        "vault {instance} was told that {} are stored, and now that {kept} are",
                        known.kept
                    );
                    ledger.wrong(Wrong::Lost, text);
                }
                Err(error) => ledger.error("a keeper's instance", &error),
            },
            Event::Missed { messages } => {
                ledger.wrong(Wrong::Lost, format!("vault {instance} missed {messages} messages"));
            }
            Event::Refused { refusal, .. } => {
                ledger.error("a keeper's message", &ClientError::Refused(refusal));
            }
            Event::Left(refusal) => {
                ledger.seats_lost += 1;
                ledger.wrong(Wrong::Lost, format!("the seat in vault {instance}: {refusal}"));
                return false;
            }
            Event::PrivateState { .. } | Event::Status(_) => {}
        }
        true
    }

    /// In the end each keeper hears once more that what it sends is stored, above everything that it was told.
    async fn finish(&self, mut room: Room, mut known: Known) {
        let before = known.kept;
        let last = async {
            if room.send(&Add).is_err() {
                return;
            }
            while known.kept == before {
                let Some(event) = room.next_event().await else { return };
                if !self.hears(&room, &mut known, event) {
                    return;
                }
            }
        };
        let is_in_time = tokio::time::timeout(LAST_MAX, last).await.is_ok();
        if !is_in_time || known.kept == before {
            let text = format!("vault {} stores nothing any more after {before}", room.instance());
            self.ledger.lock().wrong(Wrong::Lost, text);
        }
    }
}
