//! One bot: its schedule, and the checks on what comes back.

use std::{
    collections::{BTreeMap, VecDeque},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use ecow::eco_format;
use futures_util::{StreamExt, stream::FuturesUnordered};
use greenroom_protocol::Seq;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    Client, ClientError, Event, Reply, Room,
    bots::{
        report::{Operation, Tally},
        script::{CallAnswer, Script},
    },
    random::Dice,
    seat::locked,
};

/// How long a bot waits for what is still under way when its time is over, and for each operation before.
/// Long: what takes longer than a failover counts as lost.
const PATIENCE: Duration = Duration::from_secs(30);
/// The same, when somebody stopped the bots.
const PATIENCE_STOPPED: Duration = Duration::from_secs(1);
/// Pause before a bot that lost its seat looks for another.
const REJOIN_PAUSE: Duration = Duration::from_millis(200);
/// Replies whose order is remembered.
const ORDER_KEPT: usize = 64;
/// Further away than any bot plays.
const NEVER: Duration = Duration::from_secs(86_400 * 365);

/// What all bots of a run share.
pub(crate) struct Plan {
    pub(crate) servers: Vec<String>,
    pub(crate) trust_file: Option<PathBuf>,
    pub(crate) message_every: Option<Duration>,
    pub(crate) call_every: Option<Duration>,
    pub(crate) ends: Instant,
    pub(crate) stop: CancellationToken,
    pub(crate) tally: Mutex<Tally>,
}

impl Plan {
    fn tally(&self) -> MutexGuard<'_, Tally> {
        locked(&self.tally)
    }
    /// Whether the bot should end instead of waiting until `at`.
    async fn ends_before(&self, at: Instant) -> bool {
        tokio::select! {
            () = sleep_until(at.min(self.ends)) => at >= self.ends,
            () = self.stop.cancelled() => true,
        }
    }
}

/// Plays from `starts` on, until the plan ends.
pub(crate) async fn play(
    plan: Arc<Plan>,
    script: Box<dyn Script>,
    starts: Instant,
    seed: u64,
    index: u32,
) {
    if plan.ends_before(starts).await {
        return;
    }
    let mut builder = Client::builder()
        .servers(plan.servers.iter().map(String::as_str))
        .guest(eco_format!("bot-{index}"))
        .connect_within(PATIENCE)
        .request_within(PATIENCE);
    if let Some(path) = &plan.trust_file {
        builder = builder.trust_file(path);
    }
    let client = match builder.connect().await {
        Ok(client) => client,
        Err(error) => return plan.tally().failed(Operation::CheckIn, &error),
    };
    plan.tally().done(Operation::CheckIn, starts.elapsed());
    let dice = Dice::seeded(seed ^ u64::from(index).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut bot = Bot { plan: Arc::clone(&plan), script, dice, calls: 0 };
    let mut planned = Instant::now();
    loop {
        let joined = client.join_or_create(bot.script.kind()).await;
        match joined {
            Ok(mut room) => {
                plan.tally().done(Operation::Join, planned.elapsed());
                match bot.stay(&mut room).await {
                    Stay::Over => {
                        leave(&plan, room).await;
                        break;
                    }
                    Stay::Finished => leave(&plan, room).await,
                    Stay::SeatLost => {}
                }
            }
            Err(error) => plan.tally().failed(Operation::Join, &error),
        }
        planned = Instant::now() + REJOIN_PAUSE;
        if plan.ends_before(planned).await {
            break;
        }
    }
    plan.tally().add(&client.stats());
    client.close().await;
}

/// Why a bot's stay in a room ended.
enum Stay {
    /// The time is over.
    Over,
    /// The game is.
    Finished,
    /// The seat is gone.
    SeatLost,
}

struct Bot {
    plan: Arc<Plan>,
    script: Box<dyn Script>,
    dice: Dice,
    /// Calls that were made.
    calls: u64,
}

/// A call that has come to its end.
struct Answered {
    number: u64,
    planned: Instant,
    answer: Result<Reply, ClientError>,
}

impl Bot {
    /// Plays in one room.
    async fn stay(&mut self, room: &mut Room) -> Stay {
        let plan = Arc::clone(&self.plan);
        let mut checks = Checks::default();
        let mut calls = FuturesUnordered::new();
        let began = Instant::now();
        // Bots that joined together do not speak in step.
        let mut first = |every: Option<Duration>| match every {
            Some(every) => began + self.dice.jitter(every),
            None => began + NEVER,
        };
        let mut next_message = first(plan.message_every);
        let mut next_call = first(plan.call_every);
        let stay = loop {
            if checks.finished {
                break Stay::Finished;
            }
            tokio::select! {
                () = sleep_until(plan.ends) => break Stay::Over,
                () = plan.stop.cancelled() => break Stay::Over,
                () = sleep_until(next_message) => {
                    self.message(room, next_message);
                    next_message += plan.message_every.unwrap_or(NEVER);
                }
                () = sleep_until(next_call) => {
                    if self.script.may_call() {
                        self.calls += 1;
                        let (number, planned) = (self.calls, next_call);
                        let payload = self.script.call(number, self.dice.roll());
                        let answer = room.call_bytes(payload.into());
                        calls.push(async move { Answered { number, planned, answer: answer.await } });
                    }
                    next_call += plan.call_every.unwrap_or(NEVER);
                }
                Some(answered) = calls.next() => self.answered(&mut checks, room, answered),
                event = room.next_event() => match event {
                    Some(event) => self.event(&mut checks, room, event),
                    None => break Stay::SeatLost,
                }
            }
        };
        // What is still under way comes, or is lost.
        let rest = async {
            loop {
                tokio::select! {
                    answered = calls.next() => match answered {
                        Some(answered) => self.answered(&mut checks, room, answered),
                        None => break,
                    },
                    Some(event) = room.next_event() => self.event(&mut checks, room, event),
                }
            }
            while let Some(event) = room.try_next_event() {
                self.event(&mut checks, room, event);
            }
        };
        let stopped = plan.stop.is_cancelled();
        let patience = if stopped { PATIENCE_STOPPED } else { PATIENCE };
        let all_came = timeout(patience, rest).await.is_ok();
        let mut tally = plan.tally();
        if stopped && !all_came {
            return stay; // Nobody waited for them: they are neither here nor lost.
        }
        tally.lost += calls.len() as u64;
        if let Stay::Over | Stay::Finished = stay {
            tally.lost += checks.owed.len() as u64;
            tally.doubled += checks.announcements.len() as u64;
        }
        stay
    }

    fn message(&mut self, room: &Room, planned: Instant) {
        let Some(payload) = self.script.message(self.dice.roll()) else { return };
        match room.send_bytes(payload.into()) {
            Ok(_) => self.plan.tally().done(Operation::Send, planned.elapsed()),
            Err(error) => self.plan.tally().failed(Operation::Send, &error),
        }
    }

    /// Checks what a call came to.
    fn answered(&mut self, checks: &mut Checks, room: &mut Room, answered: Answered) {
        let Answered { number, planned, answer } = answered;
        if let Err(ClientError::CallUndecided { .. }) = answer {
            // A rewind was told before the calls that it left undecided, and may still wait to be read.
            while let Some(event) = room.try_next_event() {
                self.event(checks, room, event);
            }
        }
        let mut tally = self.plan.tally();
        let answer: CallAnswer = match answer {
            Ok(reply) => Ok(reply),
            Err(ClientError::Refused(refusal)) => Err(refusal),
            Err(error) => {
                let is_undecided = matches!(error, ClientError::CallUndecided { .. });
                return checks.unanswered(number, is_undecided, &error, &mut tally);
            }
        };
        if !self.script.is_answer(number, &answer) {
            return match answer {
                Err(refusal) => tally.failed(Operation::Call, &refusal),
                Ok(_) => {
                    // The reply to another call: this one's is missing.
                    tally.lost += 1;
                    tally.failed(Operation::Call, &"the reply does not match");
                }
            };
        }
        tally.done(Operation::Call, planned.elapsed());
        if let Ok(reply) = &answer {
            tally.out_of_order += checks.order(number, reply.number);
        }
        if self.script.is_announced(&answer) && !checks.excused {
            checks.owed.push_back(planned);
            checks.settle(&mut tally);
        }
    }

    /// Checks what happened in the room.
    fn event(&mut self, checks: &mut Checks, room: &Room, event: Event) {
        let mut tally = self.plan.tally();
        match event {
            Event::Message(message) => {
                // The client gives each number once and in order; this is where that is held against it.
                if message.number == checks.last {
                    tally.doubled += 1;
                } else if message.number < checks.last {
                    tally.out_of_order += 1;
                }
                checks.last = message.number;
                if !checks.excused && self.script.announces(room.seat(), &message) {
                    checks.announcements.push_back(Instant::now());
                    checks.settle(&mut tally);
                }
                if let Some(result) = self.script.ends(&message) {
                    checks.finished = true;
                    tally.ended(result);
                }
            }
            Event::Refused { refusal, .. } => tally.failed(Operation::Send, &refusal),
            Event::Rewound { .. } => {
                tally.rewound += 1;
                checks.excuse();
                checks.rewound_upto = self.calls;
                checks.last = Seq(0);
                checks.replies.clear();
            }
            // Counted by the client; what it belonged to can't be told any more.
            Event::Missed { .. } => checks.excuse(),
            Event::Left(refusal) => tally.failed(Operation::Join, &refusal),
            Event::State { .. } => {
                if let Some(view) = room.view() {
                    self.script.sees(room.seat(), &view);
                }
            }
            Event::PrivateState { .. } | Event::Status(_) => {}
        }
    }
}

async fn leave(plan: &Plan, room: Room) {
    let planned = Instant::now();
    let left = room.leave().await;
    let mut tally = plan.tally();
    match left {
        Ok(()) => tally.done(Operation::Leave, planned.elapsed()),
        Err(error) => tally.failed(Operation::Leave, &error),
    }
}

/// What must hold in one room.
#[derive(Default)]
struct Checks {
    /// Number of the last message of the game.
    last: Seq,
    /// Numbers of replies by the number of their call: calls are answered in their order.
    replies: BTreeMap<u64, Seq>,
    /// Announced calls whose announcement is still to be seen, by their planned time.
    owed: VecDeque<Instant>,
    /// Announcements whose call is still to be answered.
    announcements: VecDeque<Instant>,
    /// A declared loss, or a call without an answer, makes counting announcements meaningless.
    excused: bool,
    /// Calls up to this number were made before the last declared rewind was seen.
    rewound_upto: u64,
    /// The game has told its result.
    finished: bool,
}

impl Checks {
    fn excuse(&mut self) {
        self.excused = true;
        self.owed.clear();
        self.announcements.clear();
    }

    /// A call has no answer. Where the game was rewound that is what the client promises: it says by its type that
    /// nobody knows what became of the call, and that is no error of anybody's. Where nothing was declared to be lost,
    /// the answer is.
    fn unanswered(
        &mut self,
        number: u64,
        is_undecided: bool,
        error: &dyn std::fmt::Display,
        tally: &mut Tally,
    ) {
        if is_undecided && number <= self.rewound_upto {
            tally.undecided += 1;
        } else {
            tally.lost += u64::from(is_undecided && !self.excused);
            tally.failed(Operation::Call, error);
        }
        self.excuse();
    }

    /// Puts calls and announcements together, which come in the same order.
    fn settle(&mut self, tally: &mut Tally) {
        while !self.owed.is_empty() && !self.announcements.is_empty() {
            if let (Some(planned), Some(seen)) =
                (self.owed.pop_front(), self.announcements.pop_front())
            {
                tally.done(Operation::Announced, seen.saturating_duration_since(planned));
            }
        }
    }

    /// Remembers a reply; gives 1 if it is on the wrong side of one of its neighbours.
    fn order(&mut self, call: u64, reply: Seq) -> u64 {
        let before = self.replies.range(..call).next_back().is_none_or(|(_, other)| *other < reply);
        let after = self.replies.range(call..).next().is_none_or(|(_, other)| *other > reply);
        self.replies.insert(call, reply);
        if self.replies.len() > ORDER_KEPT {
            self.replies.pop_first();
        }
        u64::from(!(before && after))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_on_the_wrong_side_of_another_is_out_of_order() {
        let mut checks = Checks::default();
        assert_eq!(checks.order(1, Seq(10)), 0);
        assert_eq!(checks.order(3, Seq(30)), 0);
        assert_eq!(checks.order(2, Seq(20)), 0);
        assert_eq!(checks.order(5, Seq(25)), 1);
    }

    #[test]
    fn a_call_that_a_declared_rewind_left_undecided_is_no_error_and_any_other_is_lost() {
        let unanswered = |number, is_undecided| {
            let (mut checks, mut tally) = (Checks::default(), Tally::default());
            checks.rewound_upto = 7;
            checks.unanswered(number, is_undecided, &"no answer", &mut tally);
            let report = tally.report(1, Duration::from_secs(1));
            (report.undecided, report.errors, report.lost)
        };
        assert_eq!(unanswered(7, true), (1, 0, 0));
        assert_eq!(unanswered(8, true), (0, 1, 1), "nothing was declared since it was made");
        assert_eq!(unanswered(7, false), (0, 1, 0), "it is known what became of it");
    }

    #[test]
    fn an_announcement_without_its_call_stays_and_is_seen() {
        let (mut checks, mut tally) = (Checks::default(), Tally::default());
        checks.announcements.push_back(Instant::now());
        checks.announcements.push_back(Instant::now());
        checks.owed.push_back(Instant::now());
        checks.settle(&mut tally);
        assert_eq!((checks.owed.len(), checks.announcements.len()), (0, 1));
    }
}
