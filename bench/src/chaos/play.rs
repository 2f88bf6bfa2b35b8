//! Players: rooms of 16 at 20 Hz, each with a key. They count their own steps in what they see, and notice when two
//! instances with one key run at the same time: each view has the time of its tick, by its game server's clock.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use greenroom_client::{Client, ClientError, Event, InstanceId, Room};
use serde::{Deserialize, Serialize};
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::lane::is_gone;
use super::ledger::{Shared, Wrong};
use super::load::Control;

/// The kind that is played.
const KIND: &str = "crowd";
/// Players of a room.
pub(crate) const ROOM: usize = 16;
/// Between two steps of a player.
const STEP_INTERVAL: Duration = Duration::from_millis(500);
/// Before a player that has no seat asks again.
const AGAIN_PAUSE: Duration = Duration::from_millis(200);
/// Clocks of ticks of two instances may be apart by this much without being at the same time, in milliseconds: a tick.
const TICK_MS: f64 = 50.0;

/// The part of the view that is looked at.
#[derive(Debug, Deserialize)]
struct View {
    t: f64,
    players: Vec<Option<(f32, f32, u8)>>,
}

#[derive(Debug, Serialize)]
struct Step {
    dx: f32,
    dy: f32,
}

/// When the instances of each key ran, as their views tell.
#[derive(Debug, Default)]
pub(crate) struct Lives {
    by_key: BTreeMap<usize, BTreeMap<InstanceId, Span>>,
}

/// The earliest and the latest time of a view, in milliseconds.
type Span = (f64, f64);

impl Lives {
    /// A view of an instance of a room was made at `t`, in milliseconds.
    fn seen(&mut self, room: usize, instance: InstanceId, t: f64) {
        let span = self.by_key.entry(room).or_default().entry(instance).or_insert((t, t));
        *span = (span.0.min(t), span.1.max(t));
    }

    /// Lives of one key that were at the same time, in words.
    pub(crate) fn twins(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (room, lives) in &self.by_key {
            let mut spans: Vec<_> = lives.iter().collect();
            spans.sort_by(|a, b| a.1.0.total_cmp(&b.1.0));
            for pair in spans.windows(2) {
                let ((first, (_, ended)), (second, (began, _))) = (pair[0], pair[1]);
                if ended - began > TICK_MS {
                    found.push(format!(
                        "room-{room}: {} ran on for {:.0} ms after {} began",
                        first,
                        ended - began,
                        second
                    ));
                }
            }
        }
        found
    }

    /// How many lives there were, of all keys.
    pub(crate) fn count(&self) -> usize {
        self.by_key.values().map(BTreeMap::len).sum()
    }
}

/// One player.
#[derive(Debug)]
pub(crate) struct Player {
    pub(crate) number: usize,
    pub(crate) run: String,
    pub(crate) client: Client,
    pub(crate) ledger: Shared,
    pub(crate) control: Arc<Control>,
    /// Looks at every view, and not only when it takes a step.
    pub(crate) watches: bool,
}

impl Player {
    /// Plays until the load is over.
    pub(crate) async fn run(self) {
        while !self.is_over() {
            let key = format!("{}-room-{}", self.run, self.number / ROOM);
            match self.client.join_or_create(KIND).key(key).await {
                Ok(room) => self.play(room).await,
                Err(error) => {
                    self.failed("a player's join", &error);
                    sleep(AGAIN_PAUSE).await;
                }
            }
        }
    }

    fn is_over(&self) -> bool {
        self.control.is_over.load(Ordering::Relaxed)
    }

    /// What a player is told that the load did not ask for.
    fn failed(&self, at: &'static str, error: &ClientError) {
        let mut ledger = self.ledger.lock();
        if self.control.may_fail.load(Ordering::Relaxed)
            || (is_gone(error) && ledger.may_be_gone_before_us.is_some())
        {
            ledger.gone_with_server += 1;
        } else {
            ledger.error(at, error);
        }
    }

    /// Plays until the seat is gone, or the load is over.
    async fn play(&self, mut room: Room) {
        room.mute();
        let mut steps = 0_u32;
        // Some players begin a little later, so that not all of them step in the same moment.
        let first = STEP_INTERVAL * u32::try_from(self.number % 50).unwrap_or(0) / 50;
        let mut due = interval(STEP_INTERVAL);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        due.reset_after(first);
        loop {
            let event = if self.watches {
                tokio::select! {
                    event = room.next_event() => match event {
                        Some(event) => Some(event),
                        None => return,
                    },
                    _ = due.tick() => None,
                }
            } else {
                due.tick().await;
                None
            };
            let is_due = event.is_none();
            let mut next = event;
            loop {
                match next.take().or_else(|| room.try_next_event()) {
                    None => break,
                    Some(Event::Left(refusal)) => {
                        return self.failed("a player's seat", &ClientError::Left(refusal));
                    }
                    Some(event) => self.handle(event, &mut steps),
                }
            }
            self.look(&room, steps);
            if !is_due {
                continue;
            }
            if self.is_over() {
                return self.finish(room, steps).await;
            }
            match room.send(&Step { dx: 1.0, dy: 0.0 }) {
                Ok(_) => steps += 1,
                // As many wait as may: the player does not step.
                Err(ClientError::Full { .. }) => {}
                Err(error) => return self.failed("a player's step", &error),
            }
        }
    }

    fn handle(&self, event: Event, steps: &mut u32) {
        match event {
            Event::Rewound { unacknowledged, .. } => {
                *steps = 0;
                let mut ledger = self.ledger.lock();
                if ledger.may_be_gone_before_us.is_none()
                    && !self.control.may_fail.load(Ordering::Relaxed)
                {
                    let text = format!(
                        "player {} began anew with {unacknowledged} messages under way",
                        self.number
                    );
                    ledger.wrong(Wrong::Lost, text);
                }
            }
            Event::Missed { messages } => {
                let text = format!("player {} missed {messages} messages", self.number);
                self.ledger.lock().wrong(Wrong::Lost, text);
            }
            Event::Refused { refusal, .. } => {
                self.failed("a player's step", &ClientError::Refused(refusal));
            }
            Event::State { .. }
            | Event::PrivateState { .. }
            | Event::Message(_)
            | Event::Status(_)
            | Event::Left(_) => {}
        }
    }

    /// Looks at the newest view: whose it is, when it was made, how many of our steps it has.
    fn look(&self, room: &Room, steps: u32) -> Option<u32> {
        let view: View = room.state().ok()?;
        // Before its first tick an instance has no time.
        if view.t > 0.0 {
            self.control.lives().seen(self.number / ROOM, room.instance(), view.t);
        }
        let (x, _, _) = (*view.players.get(usize::from(room.seat().0))?)?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a count of steps, which saturates"
        )]
        let shown = x as u32;
        if shown > steps {
            let text = format!("player {} took {steps} steps and is at {shown}", self.number);
            self.ledger.lock().wrong(Wrong::Doubled, text);
        }
        Some(shown)
    }

    /// Every step arrives, once: waits until the view shows all of them.
    async fn finish(&self, room: Room, steps: u32) {
        const PATIENCE: u32 = 100;
        let mut shown = None;
        for _ in 0..PATIENCE {
            shown = self.look(&room, steps);
            if shown == Some(steps) {
                self.ledger.lock().steps += u64::from(steps);
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
        if !self.control.may_fail.load(Ordering::Relaxed) {
            let text =
                format!("player {} took {steps} steps, and its view has {shown:?}", self.number);
            self.ledger.lock().wrong(Wrong::Lost, text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lives(spans: &[(u128, f64, f64)]) -> Lives {
        let mut lives = Lives::default();
        for &(life, from, to) in spans {
            lives.seen(3, InstanceId(life), from);
            lives.seen(3, InstanceId(life), to);
        }
        lives
    }

    #[test]
    fn instances_of_one_key_that_follow_each_other_are_no_twins() {
        assert_eq!(lives(&[(1, 0.0, 900.0), (2, 950.0, 2_000.0)]).twins(), [""; 0]);
    }

    #[test]
    fn two_instances_of_one_key_at_the_same_time_are_twins() {
        let twins = lives(&[(2, 700.0, 2_000.0), (1, 0.0, 900.0)]).twins();
        let (a, b) = (InstanceId(1), InstanceId(2));
        assert_eq!(twins, [format!("room-3: {a} ran on for 200 ms after {b} began")]);
    }
}
