//! What the core promises, on kinds that misbehave in one way each.

use std::time::Duration;

use ecow::EcoString;
use greenroom_protocol::search::FieldType;
use greenroom_protocol::wire::client_instance::{
    ACK, CALL, DOWN_ACK, EVENT, MESSAGE, NEED_SNAPSHOT, NeedSnapshot, QUERY_REFUSED,
};
use greenroom_protocol::wire::client_session::{Meta, MetaValue};
use greenroom_protocol::wire::master_game::{CreateInstance, GameToMaster, SeatState};
use greenroom_protocol::{
    Code, Generation, Incarnation, InstanceId, Key, KindName, Refusal, Seat, Seq, SessionId,
    UserId, ViewId, encode,
};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};

use crate::testing::{Divergence, Stage, replay};
use crate::{
    CallId, Cx, Effect, GameEvent, Grace, Input, Instance, Kind, LogLevel, Never, Now, Options,
    Raw, Registry, Reject, SCORES_MAX, Told, Who, Why,
};

/// Does what it is told, at 20 ticks per second.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Puppet {
    heard: Vec<(Seat, u32)>,
    secrets: std::collections::BTreeMap<Seat, String>,
    left: Vec<(Seat, Why)>,
    returned: u32,
    kept: Vec<CallId>,
    fired: Vec<String>,
    grace: u64,
    big: String,
}

#[derive(Debug, Serialize, Deserialize)]
enum Do {
    Hear(u32),
    Answer(u32),
    Nothing,
    Keep,
    AnswerKept(u32),
    Tell(u32),
    TellAll(u32),
    TellLong(usize),
    Panic,
    Grow(usize),
    Whisper(String),
    After(u64, String),
    Kick(u16),
    Close,
    Shut,
    Hide(bool),
    Claim(u64),
    Score(String, i64),
    ScoreOf(Seat, i64),
    ScoreMany(usize),
    Unscore(String),
    Roll,
    Chatter(u32),
    Happen(u32, usize),
}

#[derive(Debug, Serialize)]
struct Said {
    text: String,
}
impl GameEvent for Said {
    const KIND: &'static str = "said";
    const VERSION: u16 = 2;
}

#[derive(Debug, Serialize)]
struct Seen<'a> {
    heard: &'a [(Seat, u32)],
    big: &'a str,
}

#[derive(Debug, PartialEq, Deserialize)]
struct SeenBack {
    heard: Vec<(Seat, u32)>,
}

#[derive(crate::Meta)]
struct PuppetMeta {
    #[index(ord)]
    heard: u64,
}

impl Instance for Puppet {
    const KIND: Kind<Self> =
        Kind::new("puppet").tick_rate(20).seats_max(4).needs(&["gpu"]).weight(4).storable();
    type Params = bool;
    type Meta = PuppetMeta;
    type In = Do;
    type Query = u32;
    type Reply = u32;
    type Out = Text;
    type Timer = String;
    type View<'a> = Seen<'a>;
    type PrivateView<'a> = &'a str;

    fn create(refuse: bool, _: &mut Cx<Self>) -> Result<Self, Reject> {
        if refuse {
            return Err(Reject::new("not today").code(Code::Unknown("moon".into())));
        }
        Ok(Self { grace: 5, ..Self::default() })
    }
    fn admit(&mut self, who: &Who, options: Options, _: &mut Cx<Self>) -> Result<(), Reject> {
        match options.decode::<Option<u32>>()? {
            Some(13) => Err(Reject::new(format!("{} brings bad luck", who.name))),
            _ => Ok(()),
        }
    }
    fn joined(&mut self, seat: Seat, cx: &mut Cx<Self>) {
        cx.broadcast_except(seat, Text(format!("{seat} joined")));
    }
    fn dropped(&mut self, _: Seat, _: &mut Cx<Self>) -> Grace {
        Grace::secs(self.grace)
    }
    fn returned(&mut self, _: Seat, _: &mut Cx<Self>) {
        self.returned += 1;
    }
    fn left(&mut self, seat: Seat, why: Why, cx: &mut Cx<Self>) {
        self.left.push((seat, why));
        cx.broadcast(Text(format!("{seat} left")));
    }
    fn message(&mut self, from: Seat, input: Do, cx: &mut Cx<Self>) {
        match input {
            Do::Hear(n) => {
                self.heard.push((from, n));
                cx.set_meta(PuppetMeta { heard: u64::try_from(self.heard.len()).unwrap() });
            }
            Do::Answer(n) => cx.reply(n),
            Do::Nothing => {}
            Do::Keep => self.kept.extend(cx.keep_call()),
            Do::AnswerKept(n) => self.kept.drain(..).for_each(|call| cx.reply_to(call, n)),
            Do::Tell(n) => cx.send(from, Text(n.to_string())),
            Do::TellAll(n) => cx.broadcast(Text(n.to_string())),
            Do::TellLong(bytes) => cx.send(from, Text("x".repeat(bytes))),
            Do::Panic => {
                cx.broadcast(Text("never seen".into()));
                cx.log(LogLevel::Info, "the last words");
                cx.event(&Said { text: "the last words".into() });
                panic!("told to");
            }
            Do::Grow(bytes) => self.big = "x".repeat(bytes),
            Do::Whisper(text) => drop(self.secrets.insert(from, text)),
            Do::After(ms, name) => drop(cx.after(Duration::from_millis(ms), name)),
            Do::Kick(seat) => cx.kick(Seat(seat), "out"),
            Do::Close => {
                cx.broadcast(Text("good night".into()));
                cx.close("it is late");
            }
            Do::Shut => cx.set_open(false),
            Do::Hide(private) => cx.set_private(private),
            Do::Claim(heard) => cx.set_meta(PuppetMeta { heard }),
            Do::Score(board, score) => cx.score(&board, from, score),
            Do::ScoreOf(seat, score) => cx.score("wins", seat, score),
            Do::ScoreMany(boards) => {
                let who = cx.who(from).unwrap().clone();
                (0..boards).for_each(|n| cx.score(&n.to_string(), &who, 1));
            }
            Do::Unscore(board) => cx.unscore(&board, from),
            Do::Roll => {
                let n = cx.random().below(1_000_000);
                self.heard.push((from, n));
            }
            Do::Chatter(lines) => (0..lines).for_each(|n| cx.log(LogLevel::Info, n.to_string())),
            Do::Happen(times, bytes) => {
                let text = "x".repeat(bytes);
                (0..times).for_each(|_| cx.event_of(from, &Said { text: text.clone() }));
            }
        }
    }
    fn query(&self, _: Seat, query: u32) -> Result<u32, Reject> {
        if query == 0 { Err(Reject::new("zero is no question")) } else { Ok(query * 2) }
    }
    fn timer(&mut self, timer: String, cx: &mut Cx<Self>) {
        self.fired.push(timer.clone());
        cx.broadcast(Text(timer));
    }
    fn view(&self) -> Seen<'_> {
        Seen { heard: &self.heard, big: &self.big }
    }
    fn private_view(&self, seat: Seat) -> Option<&str> {
        self.secrets.get(&seat).map(String::as_str)
    }
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Text(String);

fn puppet(seats: u16) -> Stage<Puppet> {
    let mut stage = Stage::new();
    for seat in 0..seats {
        stage.join(seat).unwrap();
    }
    stage.ticks(1);
    for seat in 0..seats {
        stage.events::<Text>(seat);
    }
    stage.reports();
    stage
}

fn texts(stage: &mut Stage<Puppet>, seat: u16) -> Vec<String> {
    stage.events::<Text>(seat).into_iter().map(|text| text.0).collect()
}

/// What the master was told of seats.
fn seat_states(stage: &mut Stage<Puppet>) -> Vec<(Seat, SeatState)> {
    let reports = stage.reports().into_iter().filter_map(|report| {
        let GameToMaster::SeatChanged(changed) = report else { return None };
        Some((changed.seat, changed.state))
    });
    reports.collect()
}

// What arrives.

proptest! {
    /// Method: the frames of a client arrive doubled, too early and again; what the game heard is what was sent.
    #[test]
    fn every_message_is_heard_once_and_in_order(arrivals in proptest::collection::vec(1u32..20, 1..80)) {
        let mut stage = puppet(1);
        for number in arrivals {
            let payload = encode(&Do::Hear(number));
            let (seat, number, ack) = (Seat(0), Seq(number), Seq(0));
            stage.tell(Input::Frame { seat, kind: MESSAGE, number, ack, payload: &payload });
            if number.0 % 3 == 0 { stage.ticks(1); }
        }
        stage.ticks(1);
        let heard: Vec<u32> = stage.view::<SeenBack>(0).heard.iter().map(|(_, n)| *n).collect();
        let expected: Vec<u32> = (1..=u32::try_from(heard.len()).unwrap()).collect();
        prop_assert_eq!(heard, expected);
    }
    /// Method: connections break at any place; each time the client comes back it repeats what is not acknowledged.
    #[test]
    fn nothing_is_lost_or_doubled_over_any_number_of_connections(
        steps in proptest::collection::vec(0u8..10, 1..120),
    ) {
        let mut stage = puppet(2);
        let (mut sent, mut away, mut got) = (0, false, Vec::new());
        for step in steps {
            match step {
                0 if !away => { stage.lose(0); away = true; }
                1 | 2 if away => { stage.come_back(0); away = false; }
                3..6 => stage.ticks(1),
                _ => { sent += 1; stage.send(1, &Do::TellAll(sent)); }
            }
            got.extend(texts(&mut stage, 0));
        }
        if away { stage.come_back(0); }
        stage.ticks(1);
        got.extend(texts(&mut stage, 0));
        prop_assert_eq!(got, (1..=sent).map(|n| n.to_string()).collect::<Vec<_>>());
        prop_assert!(stage.ended(0).is_none());
    }
    #[test]
    fn no_bytes_from_a_client_hurt_anybody_else(
        frames in proptest::collection::vec(
            (any::<u8>(), any::<u32>(), any::<u32>(), proptest::collection::vec(any::<u8>(), 0..40)), 1..40,
        ),
    ) {
        let mut stage = puppet(2);
        for (kind, number, ack, payload) in frames {
            let (number, ack) = (Seq(number % 40), Seq(ack));
            let input = Input::Frame { seat: Seat(0), kind: kind % 0x30, number, ack, payload: &payload };
            stage.tell(input);
            stage.ticks(1);
        }
        stage.send(1, &Do::Tell(7));
        stage.ticks(1);
        prop_assert!(!stage.core().is_closed());
        prop_assert_eq!(texts(&mut stage, 1), ["7"]);
    }
}

#[test]
fn a_message_of_an_unknown_form_is_refused_with_the_forms_that_there_are() {
    let mut stage = puppet(2);
    let call = stage.call(0, &"Dance");
    let malformed = stage.send_bytes(0, CALL, &[0x92, 1]);
    stage.send(0, &Do::Tell(1));
    stage.ticks(1);
    let refusal = stage.reply::<u32>(0, call).unwrap().unwrap_err();
    assert_eq!(refusal.code, Code::MessageUnknown);
    assert!(refusal.message.contains("Dance") && refusal.message.contains("Whisper"), "{refusal}");
    let refusal = stage.reply::<u32>(0, malformed).unwrap().unwrap_err();
    assert_eq!(refusal.code, Code::Malformed);
    assert_eq!(texts(&mut stage, 0), ["1"], "what follows is heard");
}

#[test]
fn an_unknown_kind_of_frame_is_refused_by_its_number() {
    let mut stage = puppet(1);
    let input =
        Input::Frame { seat: Seat(0), kind: 0x2e, number: Seq(5), ack: Seq(0), payload: &[] };
    stage.tell(input);
    let [Effect::ToSeat { kind, number, payload, .. }] = &stage.effects().items[..] else {
        panic!("{:?}", stage.effects().items)
    };
    assert_eq!((*kind, *number), (QUERY_REFUSED, Seq(5)));
    let refusal: Refusal = rmp_serde::from_slice(stage.effects().payload(payload)).unwrap();
    assert_eq!(refusal.code, Code::UnexpectedKind);
    assert!(refusal.message.contains("0x2e"));
}

#[test]
fn a_seat_that_sends_too_much_is_told_to_send_again_and_others_are_heard() {
    let mut stage = puppet(2);
    for n in 0..200 {
        stage.send(0, &Do::Hear(n));
    }
    stage.send(1, &Do::Hear(1_000));
    assert!(stage.is_to_send_again(0) && !stage.is_to_send_again(1));
    stage.ticks(1);
    let heard = stage.view::<SeenBack>(1).heard;
    assert_eq!(heard.iter().filter(|(seat, _)| *seat == Seat(0)).count(), 128);
    assert!(heard.contains(&(Seat(1), 1_000)));
    stage.send_again(0);
    stage.ticks(1);
    let heard = stage.view::<SeenBack>(1).heard;
    let of_0: Vec<u32> =
        heard.iter().filter(|(seat, _)| *seat == Seat(0)).map(|(_, n)| *n).collect();
    assert_eq!(of_0, (0..200).collect::<Vec<_>>());
}

// Calls and queries.

#[test]
fn a_call_is_answered_now_or_later_and_never_left_alone() {
    let mut stage = puppet(1);
    let now = stage.call(0, &Do::Answer(1));
    let kept = stage.call(0, &Do::Keep);
    let ignored = stage.call(0, &Do::Nothing);
    stage.send(0, &Do::Answer(9)); // A message: nobody waits for an answer.
    stage.ticks(1);
    assert_eq!(stage.reply(0, now), Some(Ok(1)));
    assert_eq!(stage.reply::<u32>(0, kept), None);
    let refusal = stage.reply::<u32>(0, ignored).unwrap().unwrap_err();
    assert!(refusal.message.contains("no answer"), "{refusal}");
    stage.send(0, &Do::AnswerKept(2));
    stage.ticks(1);
    assert_eq!(stage.reply(0, kept), Some(Ok(2)));
}

#[test]
fn a_kept_call_of_somebody_who_left_is_not_answered_to_the_next_in_that_seat() {
    let mut stage = puppet(2);
    let kept = stage.call(0, &Do::Keep);
    stage.ticks(1);
    stage.leave(0);
    stage.join(0).unwrap();
    stage.send(1, &Do::AnswerKept(2));
    stage.ticks(1);
    assert_eq!(stage.reply::<u32>(0, kept), None);
}

#[test]
fn a_query_is_answered_at_once_and_refused_in_the_games_words() {
    let mut stage = puppet(1);
    assert_eq!(stage.query(0, &21u32), Ok(42));
    assert_eq!(stage.query::<u32>(0, &0u32).unwrap_err().message, "zero is no question");
    let refusal = stage.query::<u32>(0, &"what?").unwrap_err();
    assert_eq!(refusal.code, Code::MessageUnknown);
}

// What breaks.

#[test]
fn a_panic_releases_nothing_of_its_step_and_tells_everybody() {
    let mut stage = puppet(2);
    stage.send(0, &Do::Hear(1));
    stage.send(1, &Do::Panic);
    stage.ticks(1);
    for seat in [0, 1] {
        assert_eq!(texts(&mut stage, seat), Vec::<String>::new());
        let refusal = stage.ended(seat).unwrap();
        assert_eq!(refusal.code, Code::InstanceFailed);
        assert!(!refusal.message.contains("told to"), "players are not told our panics");
    }
    let reports = stage.reports();
    let [GameToMaster::Closed(closed)] = &reports[..] else { panic!("{reports:?}") };
    assert!(
        closed.refusal.message.contains("puppet") && closed.refusal.message.contains("told to")
    );
    assert_eq!(stage.log(), ["info: the last words", "error: kind \"puppet\" panicked: told to"]);
    assert_eq!(stage.told(), [], "what a step did that failed did not happen");
    assert!(stage.core().is_closed());
    stage.ticks(3);
    assert!(stage.effects().items.is_empty(), "it is told nothing more");
}

#[test]
fn a_view_that_is_too_long_fails_the_instance_by_name() {
    let mut stage = puppet(1);
    stage.send(0, &Do::Grow(1_000_000));
    stage.ticks(1);
    assert!(!stage.core().is_closed());
    stage.send(0, &Do::Grow(1 << 20));
    stage.ticks(1);
    assert_eq!(stage.ended(0).unwrap().code, Code::InstanceFailed);
    let log = stage.log();
    assert!(log[0].contains("puppet") && log[0].contains("1048576"), "{log:?}");
}

#[test]
fn a_message_that_is_too_long_ends_its_seat_and_no_other() {
    let mut stage = puppet(2);
    stage.send(0, &Do::TellLong(70_000));
    stage.ticks(1);
    assert_eq!(stage.ended(0).unwrap().code, Code::TooLarge);
    assert_eq!(texts(&mut stage, 1), ["0 left"]);
}

#[test]
fn a_seat_that_acknowledges_nothing_is_given_up_and_others_go_on() {
    let mut stage = puppet(2);
    for n in 0..300u32 {
        let payload = encode(&Do::Tell(n));
        let input = Input::Frame {
            seat: Seat(0),
            kind: MESSAGE,
            number: Seq(n + 1),
            ack: Seq(0),
            payload: &payload,
        };
        stage.tell(input);
        stage.ticks(1);
    }
    assert_eq!(stage.ended(0).unwrap().code, Code::SlowConsumer);
    assert_eq!(texts(&mut stage, 1), ["0 left"]);
    let free = |report: &GameToMaster| {
        matches!(report, GameToMaster::SeatChanged(changed)
            if changed.seat == Seat(0) && changed.state == SeatState::Free)
    };
    assert!(stage.reports().iter().any(free));
}

#[test]
fn a_refused_creation_reaches_the_caller_as_written() {
    let refusal = Stage::<Puppet>::with(&true, [0; 32]).unwrap_err();
    assert_eq!((refusal.code.name(), refusal.message.as_str()), ("moon", "not today"));
    let refusal = Stage::<Puppet>::with(&"what", [0; 32]).unwrap_err();
    assert_eq!(refusal.code, Code::Malformed);
    assert!(refusal.message.contains("puppet"), "{refusal}");
}

#[test]
fn a_game_that_logs_without_end_is_cut_short() {
    let mut stage = puppet(1);
    stage.send(0, &Do::Chatter(1_000));
    stage.ticks(1);
    let log = stage.log();
    assert_eq!((log.len(), log[64].as_str()), (65, "warn: 936 more lines in one step"));
}

#[test]
fn events_leave_with_their_step_about_their_user_and_no_more_than_fit() {
    let mut stage = puppet(1);
    stage.send(0, &Do::Happen(1, 3));
    stage.ticks(1);
    let told = stage.told();
    let user = Some(UserId::new("user-0").unwrap());
    let fields = r#"{"text":"xxx"}"#.to_owned();
    assert_eq!(told, [Told { kind: "said", version: 2, user, fields }]);
    for (times, bytes, fit) in [(100, 3, 64), (3, crate::EVENT_BYTES_MAX, 0)] {
        stage.send(0, &Do::Happen(times, bytes));
        stage.ticks(1);
        assert_eq!(stage.told().len(), fit);
        let left_out = times - u32::try_from(fit).unwrap();
        let line = format!("warn: {left_out} more events in one step, or too large ones");
        assert_eq!(stage.log(), [line]);
    }
}

// Seats.

#[test]
fn a_refused_seat_is_free_again_at_the_master() {
    let mut stage = puppet(1);
    let refusal = stage.join_with(1, &13u32).unwrap_err();
    assert_eq!(refusal.message, "User 1 brings bad luck");
    let refusal = stage.join_with(2, &"what").unwrap_err();
    assert_eq!(refusal.code, Code::Malformed);
    assert_eq!(stage.join(9).unwrap_err().code, Code::InstanceFull);
    let states = seat_states(&mut stage);
    assert_eq!(states, [1, 2, 9].map(|seat| (Seat(seat), SeatState::Free)));
    assert_eq!(stage.core().seats_held(), 1);
}

#[test]
fn a_seat_is_held_for_its_grace_and_no_longer() {
    let mut stage = puppet(2);
    stage.lose(0);
    stage.wait(Duration::from_secs(4));
    stage.come_back(0);
    stage.ticks(1);
    assert!(stage.ended(0).is_none());
    stage.lose(0);
    stage.wait(Duration::from_secs(6));
    assert_eq!(texts(&mut stage, 1), ["0 left"]);
    let states = seat_states(&mut stage);
    let expected = [SeatState::Away, SeatState::Taken, SeatState::Away, SeatState::Free];
    assert_eq!(states, expected.map(|state| (Seat(0), state)));
}

#[test]
fn an_old_connection_can_neither_lose_nor_take_back_a_seat() {
    let mut stage = puppet(1);
    stage.lose(0);
    stage.come_back(0);
    stage.reports();
    stage.tell(Input::Lost { seat: Seat(0), generation: Generation(1) });
    assert!(stage.effects().items.is_empty());
    stage.tell(Input::Attach {
        seat: Seat(0),
        user: UserId::new("user-0").unwrap(),
        name: EcoString::new(),
        session: SessionId(1),
        generation: Generation(1),
        options: &[],
    });
    let [Effect::AttachRefused { refusal, .. }] = &stage.effects().items[..] else { panic!() };
    assert_eq!(refusal.code, Code::Superseded);
    assert!(stage.reports().is_empty(), "the seat is not free");
}

#[test]
fn a_seat_that_another_session_holds_is_not_given_away() {
    let mut stage = puppet(1);
    let other = SessionId(77);
    stage.tell(Input::Attach {
        seat: Seat(0),
        user: UserId::new("user-9").unwrap(),
        name: EcoString::new(),
        session: other,
        generation: Generation(1),
        options: &[],
    });
    let [Effect::AttachRefused { refusal, .. }, _] = &stage.effects().items[..] else { panic!() };
    assert_eq!(refusal.code, Code::Busy);
    stage.tell(Input::Free {
        seat: Seat(0),
        session: other,
        refusal: Refusal::new(Code::Left, "left"),
    });
    assert_eq!(stage.core().seats_held(), 1, "only its own session frees a seat");
}

#[test]
fn who_is_away_gets_what_was_sent_meanwhile_and_then_what_is_new() {
    let mut stage = puppet(2);
    stage.lose(0);
    for n in 1..=3 {
        stage.send(1, &Do::TellAll(n));
        stage.ticks(1);
    }
    assert!(texts(&mut stage, 0).is_empty());
    stage.come_back(0);
    stage.send(1, &Do::TellAll(4));
    stage.ticks(1);
    assert_eq!(texts(&mut stage, 0), ["1", "2", "3", "4"]);
}

#[test]
fn messages_for_who_is_away_are_kept_for_30_seconds() {
    let mut stage = Stage::<Patient>::new();
    stage.join(0).unwrap();
    stage.join(1).unwrap();
    stage.lose(0);
    stage.send(1, &());
    stage.wait(Duration::from_secs(29));
    assert_eq!(stage.core().seats_held(), 2);
    stage.wait(Duration::from_secs(2));
    assert_eq!(stage.core().seats_held(), 1);
}

/// Holds seats for an hour, and tells everybody what it hears.
#[derive(Default, Serialize, Deserialize)]
struct Patient;

impl Instance for Patient {
    const KIND: Kind<Self> = Kind::new("patient").tick_rate(20).storable();
    type Params = ();
    type Meta = ();
    type In = ();
    type Query = Never;
    type Reply = ();
    type Out = ();
    type Timer = ();
    type View<'a> = ();
    type PrivateView<'a> = ();

    fn create((): (), _: &mut Cx<Self>) -> Result<Self, Reject> {
        Ok(Self)
    }
    fn dropped(&mut self, _: Seat, _: &mut Cx<Self>) -> Grace {
        Grace::secs(3_600)
    }
    fn message(&mut self, _: Seat, (): (), cx: &mut Cx<Self>) {
        cx.broadcast(());
    }
    fn view(&self) {}
}

// What is sent.

#[test]
fn a_patch_of_a_step_goes_before_its_messages_and_both_carry_its_tick() {
    let mut stage = puppet(1);
    stage.send(0, &Do::Hear(1));
    stage.send(0, &Do::Tell(1));
    stage.ticks(1);
    let tick = stage.core().tick_number().wire();
    let effects = &stage.effects().items;
    let [
        Effect::Patch { to: None, tick: of_patch, .. },
        Effect::ToSeat { kind, tick: of_message, .. },
        _,
    ] = &effects[..]
    else {
        panic!("{effects:?}")
    };
    assert_eq!((*kind, *of_patch, *of_message), (EVENT, tick, tick));
}

#[test]
fn nothing_is_sent_when_nothing_changes_and_nothing_is_encoded_when_nobody_looks() {
    let mut stage = puppet(1);
    stage.ticks(1);
    assert!(stage.effects().items.is_empty());
    stage.send(0, &Do::Hear(1));
    stage.lose(0);
    stage.ticks(1);
    let patches = |stage: &Stage<Puppet>| {
        stage.effects().items.iter().any(|effect| matches!(effect, Effect::Patch { .. }))
    };
    assert!(!patches(&stage));
    stage.come_back(0);
    assert_eq!(stage.view::<SeenBack>(0).heard, [(Seat(0), 1)]);
}

#[test]
fn acknowledgements_ride_on_what_goes_down_and_go_alone_when_nothing_does() {
    let mut stage = puppet(1);
    stage.send(0, &Do::Nothing);
    stage.ticks(1);
    let [Effect::ToSeat { kind: DOWN_ACK, ack: Seq(1), .. }] = &stage.effects().items[..] else {
        panic!("{:?}", stage.effects().items)
    };
    stage.send(0, &Do::Tell(1));
    stage.ticks(1);
    let [Effect::ToSeat { kind: EVENT, ack: Seq(2), .. }] = &stage.effects().items[..] else {
        panic!("{:?}", stage.effects().items)
    };
    stage.ticks(1);
    assert!(stage.effects().items.is_empty());
}

#[test]
fn a_private_view_reaches_its_seat_only() {
    let mut stage = puppet(2);
    stage.send(0, &Do::Whisper("the word is mellon".into()));
    stage.ticks(1);
    assert_eq!(stage.private_view::<String>(0).unwrap(), "the word is mellon");
    stage.send(0, &Do::Whisper("the word is xyzzy".into()));
    stage.ticks(1);
    assert_eq!(stage.private_view::<String>(0).unwrap(), "the word is xyzzy");
    assert_eq!(stage.private_view::<String>(1), None);
    let [Effect::Patch { to: Some(Seat(0)), view, .. }, _] = &stage.effects().items[..] else {
        panic!("{:?}", stage.effects().items)
    };
    assert_eq!(*view, ViewId::of_seat(Seat(0)));
    // Nobody else can ask for it.
    let need = encode(&NeedSnapshot { view: 0x8000, version: 0, reason: "".into() });
    let (number, ack) = (Seq(1), Seq(0));
    stage.tell(Input::Frame { seat: Seat(1), kind: NEED_SNAPSHOT, number, ack, payload: &need });
    stage.ticks(1);
    assert_eq!(stage.private_view::<String>(1), None);
}

#[test]
fn a_whole_view_comes_in_pieces_on_request_and_not_as_often_as_it_is_asked_for() {
    let mut stage = puppet(1);
    stage.send(0, &Do::Grow(100_000));
    stage.ticks(1);
    let need = encode(&NeedSnapshot { view: 0, version: 3, reason: "checksum 1, not 2".into() });
    for _ in 0..10 {
        let (number, ack) = (Seq(0), Seq(0));
        stage.tell(Input::Frame {
            seat: Seat(0),
            kind: NEED_SNAPSHOT,
            number,
            ack,
            payload: &need,
        });
    }
    stage.ticks(1);
    let pieces =
        stage.effects().items.iter().filter(|effect| matches!(effect, Effect::Piece { .. }));
    assert_eq!(pieces.count(), 4);
    assert!(stage.log()[0].contains("checksum 1, not 2"));
}

#[test]
fn a_hundred_patches_make_the_view_that_the_instance_has() {
    let mut stage = puppet(2);
    for n in 0..100 {
        stage.send(u16::try_from(n % 2).unwrap(), &Do::Hear(n * 1_000));
        stage.ticks(1);
    }
    let view = stage.core().encode_view().unwrap();
    for seat in [0, 1] {
        assert_eq!(stage.view_bytes(seat, ViewId::SHARED).unwrap(), view);
    }
}

// What the game asks for.

#[test]
fn timers_fire_in_order_at_the_first_tick_that_is_not_before_them() {
    let mut stage = puppet(1);
    for (ms, name) in [(101, "late"), (100, "on time"), (0, "next"), (100, "on time too")] {
        stage.send(0, &Do::After(ms, name.into()));
    }
    stage.ticks(1);
    assert!(texts(&mut stage, 0).is_empty());
    stage.ticks(1);
    assert_eq!(texts(&mut stage, 0), ["next"]);
    stage.ticks(1);
    assert_eq!(texts(&mut stage, 0), ["on time", "on time too"]);
    stage.ticks(1);
    assert_eq!(texts(&mut stage, 0), ["late"]);
}

#[test]
fn a_kick_and_a_close_come_after_what_was_sent_before_them() {
    let mut stage = puppet(3);
    stage.send(0, &Do::TellAll(1));
    stage.send(0, &Do::Kick(1));
    stage.ticks(1);
    assert_eq!(texts(&mut stage, 1), ["1"]);
    assert_eq!(stage.ended(1), Some(&Refusal::new(Code::Kicked, "out")));
    assert_eq!(texts(&mut stage, 0), ["1", "1 left"]);
    stage.send(0, &Do::Close);
    stage.ticks(1);
    for seat in [0, 2] {
        assert_eq!(texts(&mut stage, seat).last().unwrap(), "good night");
        assert_eq!(stage.ended(seat), Some(&Refusal::new(Code::InstanceClosed, "it is late")));
    }
    assert!(matches!(stage.reports().last(), Some(GameToMaster::Closed(_))));
}

#[test]
fn metadata_and_the_lock_are_reported_when_they_change() {
    let mut stage = puppet(1);
    stage.send(0, &Do::Hear(1));
    stage.ticks(1);
    stage.send(0, &Do::Shut);
    stage.ticks(1);
    stage.send(0, &Do::Shut);
    stage.ticks(1);
    let reports = stage.reports();
    let [GameToMaster::MetaChanged(first), GameToMaster::MetaChanged(second)] = &reports[..] else {
        panic!("{reports:?}")
    };
    let meta = Meta::from([("heard".into(), MetaValue::Int(1))]);
    assert_eq!((&first.meta, first.open, second.open), (&meta, true, false));
}

#[test]
fn who_may_find_an_instance_is_reported_when_it_changes() {
    let mut stage = puppet(1);
    for private in [false, true, true, false] {
        stage.send(0, &Do::Hide(private));
        stage.ticks(1);
    }
    let reports = stage.reports();
    let [GameToMaster::MetaChanged(first), GameToMaster::MetaChanged(second)] = &reports[..] else {
        panic!("{reports:?}")
    };
    assert_eq!(
        [(first.private, first.open), (second.private, second.open)],
        [(true, true), (false, true)]
    );
}

/// What the master asked to be kept is in every report, also after the instance was stored and read back.
#[test]
fn what_the_master_said_of_an_instance_is_said_again() {
    let order = CreateInstance {
        instance: InstanceId(5),
        incarnation: Incarnation(2),
        kind: KindName::new("puppet").unwrap(),
        params: Default::default(),
        seed: [3; 32],
        owner: Some(UserId::new("ann").unwrap()),
        key: Some(Key::new("duel of ann").unwrap()),
        created_ms: 1_700_000_000_123,
        private: true,
        restore: None,
    };
    let registry = Registry::new().with::<Puppet>();
    let core = registry.create(&order, Now::default()).unwrap();
    assert!(core.running().private && core.running().open);
    let stored = core.snapshot().unwrap().unwrap();
    for core in [core, registry.restore("puppet", &stored).unwrap()] {
        let held = core.held();
        assert_eq!((held.key, held.owner), (order.key.clone(), order.owner.clone()));
        assert_eq!((held.created_ms, held.open, held.private), (order.created_ms, true, true));
    }
}

#[test]
fn a_kind_says_what_it_needs_and_what_it_is_found_by() {
    let [kind] = &Registry::new().with::<Puppet>().kinds()[..] else { panic!() };
    assert_eq!((kind.weight, &kind.needs[..]), (4, &["gpu".into()][..]));
    let [field] = &kind.fields[..] else { panic!("{:?}", kind.fields) };
    assert_eq!((field.name.as_str(), field.holds), ("heard", FieldType::Number));
    assert_eq!(Registry::new().with::<Puppet>().weight(&kind.name), Some(4));
    assert_eq!(Registry::new().weight(&kind.name), None);
}

#[test]
fn metadata_that_no_client_could_read_fails_the_instance_by_the_fields_name() {
    let mut stage = puppet(1);
    stage.send(0, &Do::Claim(1 << 53));
    stage.ticks(1);
    assert_eq!(stage.ended(0).unwrap().code, Code::InstanceFailed);
    let log = stage.log();
    assert!(log[0].contains("puppet") && log[0].contains("\"heard\" is beyond"), "{log:?}");
}

/// The scores that the master was told: board, user, name, score.
fn scores(stage: &mut Stage<Puppet>) -> Vec<(String, String, String, Option<i64>)> {
    let reports = stage.reports().into_iter().filter_map(|report| {
        let GameToMaster::Scored(scored) = report else { return None };
        assert_eq!((scored.instance, scored.incarnation), (InstanceId(1), Incarnation(1)));
        let user = scored.user.as_str().to_owned();
        Some((scored.board.to_string(), user, scored.name.to_string(), scored.score))
    });
    reports.collect()
}

#[test]
fn a_score_leaves_with_its_step_and_the_last_one_counts() {
    let mut stage = puppet(2);
    stage.send(0, &Do::Score("wins".into(), 1));
    stage.send(0, &Do::Score("wins".into(), 2));
    stage.send(0, &Do::Score("kills".into(), -7));
    stage.send(0, &Do::ScoreOf(Seat(1), 5));
    stage.send(0, &Do::ScoreOf(Seat(3), 9)); // A free seat: nobody's.
    assert_eq!(scores(&mut stage), []);
    stage.ticks(1);
    let score = |board: &str, seat: u16, score| {
        (board.to_owned(), format!("user-{seat}"), format!("User {seat}"), score)
    };
    let expected =
        [score("kills", 0, Some(-7)), score("wins", 0, Some(2)), score("wins", 1, Some(5))];
    assert_eq!(scores(&mut stage), expected);
    stage.send(0, &Do::Unscore("wins".into()));
    stage.ticks(2);
    assert_eq!(scores(&mut stage), [score("wins", 0, None)]);
}

#[test]
fn the_last_scores_of_an_instance_are_told_before_its_end() {
    let mut stage = puppet(1);
    stage.send(0, &Do::Score("wins".into(), 1));
    stage.send(0, &Do::Close);
    stage.ticks(1);
    let reports = stage.reports();
    let [GameToMaster::Scored(_), GameToMaster::Closed(_)] = &reports[..] else {
        panic!("{reports:?}")
    };
}

#[test]
fn scores_that_can_not_be_fail_the_instance_in_words() {
    let fails = |input: Do, text: &str| {
        let mut stage = puppet(1);
        stage.send(0, &input);
        stage.ticks(1);
        assert_eq!(stage.ended(0).unwrap().code, Code::InstanceFailed);
        assert_eq!(scores(&mut stage), [], "a step that fails releases nothing");
        let log = stage.log();
        assert!(log[0].contains(text), "{log:?}");
    };
    fails(Do::Score("wins".into(), 1 << 53), "9007199254740992 is beyond");
    fails(Do::Score(String::new(), 1), "1 to 64 bytes");
    fails(Do::Score("x".repeat(65), 1), "1 to 64 bytes");
    fails(Do::Score("a\nb".into(), 1), "no control characters");
    fails(Do::ScoreMany(SCORES_MAX + 1), "at most 4096 scores");
    let mut stage = puppet(1);
    stage.send(0, &Do::ScoreMany(SCORES_MAX));
    stage.ticks(1);
    assert_eq!(scores(&mut stage).len(), SCORES_MAX);
}

#[test]
fn an_empty_instance_closes_when_its_kind_says_so() {
    let mut stage = Stage::<Puppet>::new();
    stage.wait(Duration::from_secs(9));
    stage.join(0).unwrap();
    stage.wait(Duration::from_secs(60));
    assert!(!stage.core().is_closed());
    stage.leave(0);
    stage.wait(Duration::from_secs(9));
    assert!(!stage.core().is_closed());
    stage.wait(Duration::from_secs(2));
    assert!(stage.core().is_closed());
    assert_eq!(stage.core().next_due(), None);
}

// Tick rate 0.

/// Steps when it is spoken to.
#[derive(Default, Serialize, Deserialize)]
struct Ledger {
    lines: Vec<(u64, String)>,
}

impl Instance for Ledger {
    const KIND: Kind<Self> = Kind::new("ledger").storable();
    type Params = ();
    type Meta = ();
    type In = String;
    type Query = Never;
    type Reply = u64;
    type Out = Never;
    type Timer = String;
    type View<'a> = &'a Self;
    type PrivateView<'a> = ();

    fn create((): (), _: &mut Cx<Self>) -> Result<Self, Reject> {
        Ok(Self::default())
    }
    fn message(&mut self, _: Seat, input: String, cx: &mut Cx<Self>) {
        let now = u64::try_from(cx.now().as_millis()).unwrap();
        if let Some(later) = input.strip_prefix("later ") {
            cx.after(Duration::from_millis(250), later.into());
        }
        self.lines.push((now, input));
        cx.reply(now);
    }
    fn timer(&mut self, timer: String, cx: &mut Cx<Self>) {
        self.lines.push((u64::try_from(cx.now().as_millis()).unwrap(), timer));
    }
    fn view(&self) -> &Self {
        self
    }
}

#[test]
fn at_tick_rate_0_a_message_is_a_step_with_its_own_time() {
    let mut stage = Stage::<Ledger>::new();
    stage.join(0).unwrap();
    stage.wait(Duration::from_millis(70));
    let call = stage.call(0, &"later tea");
    assert_eq!(stage.reply(0, call), Some(Ok(70u64)));
    let is_patch = |effect: &Effect| matches!(effect, Effect::Patch { .. });
    assert!(is_patch(&stage.effects().items[0]), "the patch goes first");
    stage.wait(Duration::from_secs(1));
    let seen: Ledger = stage.view(0);
    assert_eq!(seen.lines, [(70, "later tea".to_owned()), (320, "tea".to_owned())]);
    for seed in 0..5 {
        replay::<Ledger>(stage.recording(), seed).unwrap();
    }
}

#[test]
fn at_tick_rate_0_what_nobody_answers_is_acknowledged_within_50_ms() {
    let mut stage = Stage::<Ledger>::new();
    stage.join(0).unwrap();
    assert_eq!(stage.core().next_due(), None);
    stage.send(0, &"note");
    let due = stage.core().next_due().unwrap();
    assert_eq!(due.0, 1_050);
    stage.wait(Duration::from_millis(50));
    let acks =
        |effect: &Effect| matches!(effect, Effect::ToSeat { kind: DOWN_ACK, ack: Seq(1), .. });
    assert!(stage.effects().items.iter().any(acks), "{:?}", stage.effects().items);
    assert_eq!(stage.core().next_due(), None);
}

#[test]
fn at_tick_rate_0_a_grace_ends_in_time() {
    let mut stage = Stage::<Ledger>::new();
    stage.join(0).unwrap();
    stage.join(1).unwrap();
    stage.lose(0);
    assert_eq!(stage.core().next_due().unwrap().0, 31_000);
    stage.wait(Duration::from_secs(30));
    assert_eq!(stage.core().seats_held(), 1);
    stage.leave(1);
    stage.wait(Duration::from_secs(10));
    assert!(stage.core().is_closed(), "it is empty");
}

#[test]
fn whole_views_at_tick_rate_0_come_at_once_and_then_with_a_pause() {
    let mut stage = Stage::<Ledger>::new();
    stage.join(0).unwrap();
    stage.wait(Duration::from_millis(60));
    let need = encode(&NeedSnapshot { view: 0, version: 0, reason: "".into() });
    let pieces = |stage: &Stage<Ledger>| {
        stage.effects().items.iter().filter(|effect| matches!(effect, Effect::Piece { .. })).count()
    };
    let ask = |stage: &mut Stage<Ledger>| {
        let (number, ack) = (Seq(0), Seq(0));
        stage.tell(Input::Frame {
            seat: Seat(0),
            kind: NEED_SNAPSHOT,
            number,
            ack,
            payload: &need,
        });
    };
    ask(&mut stage);
    assert_eq!(pieces(&stage), 1);
    ask(&mut stage);
    assert_eq!(pieces(&stage), 0);
    stage.wait(Duration::from_millis(50));
    assert_eq!(pieces(&stage), 1);
}

// Replay.

#[test]
fn a_puppet_runs_alike_again_and_from_a_snapshot_at_any_place() {
    let mut stage = puppet(3);
    for round in 0..30 {
        stage.call(0, &Do::Keep);
        stage.send(1, &Do::After(170, format!("timer {round}")));
        stage.send(2, &Do::Roll);
        if round % 7 == 0 {
            stage.lose(1);
        }
        stage.send(0, &Do::Whisper(format!("secret {round}")));
        stage.send(2, &Do::TellAll(round));
        stage.ticks(1);
        if round % 7 == 2 {
            stage.come_back(1);
            stage.send(2, &Do::AnswerKept(round));
        }
    }
    for seed in 0..20 {
        let replayed = replay::<Puppet>(stage.recording(), seed).unwrap();
        assert!(replayed.restored_before.is_some());
    }
}

/// Keeps its players in a table whose order is random.
#[derive(Default)]
struct Careless {
    #[expect(clippy::disallowed_types, reason = "planted: the replay must find it")]
    players: std::collections::HashMap<u32, u32>,
}

impl Instance for Careless {
    const KIND: Kind<Self> = Kind::new("careless").tick_rate(20);
    type Params = ();
    type Meta = ();
    type In = u32;
    type Query = Never;
    type Reply = ();
    type Out = ();
    type Timer = ();
    type View<'a> = Vec<u32>;
    type PrivateView<'a> = ();

    fn create((): (), _: &mut Cx<Self>) -> Result<Self, Reject> {
        Ok(Self::default())
    }
    fn message(&mut self, _: Seat, input: u32, _: &mut Cx<Self>) {
        self.players.insert(input, input);
    }
    fn view(&self) -> Vec<u32> {
        self.players.values().copied().collect()
    }
}

#[test]
fn a_planted_hash_map_is_caught_and_named() {
    let mut stage = Stage::<Careless>::new();
    stage.join(0).unwrap();
    for n in 0..20u32 {
        stage.send(0, &n);
    }
    stage.ticks(1);
    let divergence: Divergence = replay::<Careless>(stage.recording(), 0).unwrap_err();
    assert_eq!(divergence.run, "the second run");
    assert!(divergence.to_string().contains("HashMap"));
}

/// Forgets a part of its state when it is stored.
#[derive(Default, Serialize, Deserialize)]
struct Forgetful {
    #[serde(skip)]
    count: u32,
}

impl Instance for Forgetful {
    const KIND: Kind<Self> = Kind::new("forgetful").tick_rate(20).storable();
    type Params = ();
    type Meta = ();
    type In = ();
    type Query = Never;
    type Reply = ();
    type Out = ();
    type Timer = ();
    type View<'a> = u32;
    type PrivateView<'a> = ();

    fn create((): (), _: &mut Cx<Self>) -> Result<Self, Reject> {
        Ok(Self::default())
    }
    fn message(&mut self, _: Seat, (): (), _: &mut Cx<Self>) {}
    fn tick(&mut self, _: &mut Cx<Self>) {
        self.count += 1;
    }
    fn view(&self) -> u32 {
        self.count
    }
}

#[test]
fn a_state_that_is_not_stored_whole_is_caught() {
    let mut stage = Stage::<Forgetful>::new();
    stage.join(0).unwrap();
    stage.ticks(20);
    let caught = (0..10).filter_map(|seed| replay::<Forgetful>(stage.recording(), seed).err());
    assert!(caught.clone().count() > 5);
    assert!(caught.into_iter().all(|divergence| divergence.run == "the run through a snapshot"));
}

#[test]
fn raw_bytes_pass_as_they_are() {
    struct Mirror;
    impl Instance for Mirror {
        const KIND: Kind<Self> = Kind::new("mirror");
        type Params = ();
        type Meta = ();
        type In = Raw;
        type Query = Raw;
        type Reply = Raw;
        type Out = Raw;
        type Timer = ();
        type View<'a> = ();
        type PrivateView<'a> = ();
        fn create((): (), _: &mut Cx<Self>) -> Result<Self, Reject> {
            Ok(Self)
        }
        fn message(&mut self, _: Seat, input: Raw, cx: &mut Cx<Self>) {
            cx.reply(input);
        }
        fn view(&self) {}
    }
    let mut stage = Stage::<Mirror>::new();
    stage.join(0).unwrap();
    for length in [0, 1, 64, 65, 60_000] {
        let bytes = vec![0xc1; length];
        let call = stage.send_bytes(0, CALL, &bytes);
        assert_eq!(stage.reply_bytes(0, call), Some(Ok(bytes)));
    }
    let input =
        Input::Frame { seat: Seat(0), kind: ACK, number: Seq(0), ack: Seq(5), payload: &[] };
    stage.tell(input);
    assert!(stage.effects().items.is_empty());
}

#[test]
fn an_instance_goes_on_from_its_snapshot_in_another_life_with_its_seats_and_timers() {
    let mut stage = puppet(2);
    stage.send(0, &Do::Hear(1));
    stage.send(0, &Do::Whisper("a secret".into()));
    stage.send(1, &Do::After(400, "ding".into()));
    let kept = stage.call(1, &Do::Keep);
    stage.ticks(2);
    // Sent and not acknowledged, from both ends: nobody knows of it afterwards.
    stage.send(0, &Do::Tell(5));
    stage.go_on_elsewhere();
    assert_eq!(stage.core().incarnation(), Incarnation(2));
    assert_eq!(stage.core().held().seats.iter().filter(|seat| !seat.away).count(), 2);
    assert_eq!(stage.view::<SeenBack>(0).heard, [(Seat(0), 1)]);
    assert_eq!(stage.private_view::<String>(0).as_deref(), Some("a secret"));
    // Numbers begin again, and the call of the life before has no answer in this one.
    stage.send(0, &Do::AnswerKept(3));
    stage.send(0, &Do::TellAll(6));
    let call = stage.call(1, &Do::Answer(7));
    stage.ticks(1);
    assert_eq!((kept, call), (2, 1));
    assert_eq!(stage.reply::<u32>(1, kept), None);
    assert_eq!(stage.reply::<u32>(1, call), Some(Ok(7)));
    assert_eq!((texts(&mut stage, 0), texts(&mut stage, 1)), (vec!["6".into()], vec!["6".into()]));
    stage.wait(Duration::from_millis(400));
    assert_eq!(texts(&mut stage, 1), ["ding"]);
    replay::<Puppet>(stage.recording(), 3).unwrap();
}

#[test]
fn who_has_left_meanwhile_is_let_go_and_who_was_there_is_away() {
    let mut stage = puppet(3);
    let holder =
        |stage: &Stage<Puppet>, seat| (Seat(seat), stage.core().holder(Seat(seat)).unwrap().1);
    let seats = vec![holder(&stage, 0), (Seat(2), SessionId(77))];
    stage.tell(Input::Revived { incarnation: Incarnation(9), seats });
    let held = stage.core().held();
    assert_eq!(
        held.seats.iter().map(|held| (held.seat, held.away)).collect::<Vec<_>>(),
        [(Seat(0), true)]
    );
    let free = [(Seat(1), SeatState::Free), (Seat(2), SeatState::Free)];
    assert_eq!(seat_states(&mut stage), free);
    // It is held as the game says, from here on.
    stage.wait(Duration::from_millis(4_900));
    assert_eq!(stage.core().seats_held(), 1);
    stage.wait(Duration::from_millis(200));
    assert_eq!(stage.core().seats_held(), 0);
    replay::<Puppet>(stage.recording(), 1).unwrap();
}

/// The clock of another server is another one: at tick rate 0, timers fall due in the instance's own time.
#[test]
fn no_time_passes_between_two_lives_of_an_instance() {
    let registry = Registry::new().with::<Ledger>();
    let order = CreateInstance {
        instance: InstanceId(5),
        incarnation: Incarnation(1),
        kind: KindName::new("ledger").unwrap(),
        params: Default::default(),
        seed: [3; 32],
        owner: None,
        key: None,
        created_ms: 0,
        private: false,
        restore: None,
    };
    let at = |seconds: u64| Now {
        moment: greenroom_protocol::Moment(seconds * 1_000),
        ..Now::default()
    };
    let mut core = registry.create(&order, at(5_000)).unwrap();
    let mut effects = crate::Effects::new();
    core.handle(at(5_003), Input::Wake, &mut effects);
    let due = core.next_due().unwrap();
    let snapshot = core.snapshot().unwrap().unwrap();
    let mut core = registry.restore("ledger", &snapshot).unwrap();
    let revived = Input::Revived { incarnation: Incarnation(2), seats: Vec::new() };
    core.handle(at(1), revived, &mut effects);
    let left = due.since(at(5_003).moment);
    assert_eq!(core.next_due(), Some(at(1).moment.after(left)));
}

#[test]
fn a_durable_kind_says_so_and_after_how_many_steps() {
    const EVERY: Kind<Puppet> = Kind::new("x").durable_every(20);
    assert!(EVERY.storage.is_some());
    assert_eq!((EVERY.spec.durable_steps, Puppet::KIND.spec.durable_steps), (20, 0));
}

/// Two versions of one kind: the second reads what the first has stored, and the first refuses what the second has.
mod versions {
    use super::*;
    use crate::stored_state;

    #[derive(Serialize, Deserialize)]
    struct First {
        score: u64,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Second {
        scores: Vec<u64>,
    }

    macro_rules! tally {
        ($state:ident, $version:literal, $make:expr, { $($migrate:item)* }) => {
            impl Instance for $state {
                const KIND: Kind<Self> = Kind::new("tally").version($version).storable();
                type Params = ();
                type Meta = ();
                type In = ();
                type Query = Never;
                type Reply = ();
                type Out = ();
                type Timer = ();
                type View<'a> = &'a Self;
                type PrivateView<'a> = ();
                fn create((): (), _: &mut Cx<Self>) -> Result<Self, Reject> {
                    Ok($make)
                }
                fn message(&mut self, _: Seat, (): (), _: &mut Cx<Self>) {}
                fn view(&self) -> &Self {
                    self
                }
                $($migrate)*
            }
        };
    }
    tally!(First, 1, First { score: 7 }, {});
    tally!(Second, 2, Second { scores: vec![1] }, {
        fn migrate(version: u32, state: &[u8]) -> Result<Self, Reject> {
            match version {
                1 => {
                    stored_state::<First>(state).map(|first| Self { scores: vec![first.score, 0] })
                }
                other => Err(Reject::new(format!("version {other} is none of ours"))),
            }
        }
    });

    fn snapshot(registry: &Registry) -> Vec<u8> {
        let order = CreateInstance {
            instance: InstanceId(5),
            incarnation: Incarnation(1),
            kind: KindName::new("tally").unwrap(),
            params: Default::default(),
            seed: [3; 32],
            owner: None,
            key: None,
            created_ms: 0,
            private: false,
            restore: None,
        };
        let core = registry.create(&order, Now::default()).unwrap();
        core.snapshot().unwrap().unwrap()
    }

    #[test]
    fn a_newer_version_goes_on_from_what_an_older_one_has_stored_and_stores_it_as_its_own() {
        let (first, second) = (Registry::new().with::<First>(), Registry::new().with::<Second>());
        let migrated = second.restore("tally", &snapshot(&first)).unwrap();
        let again = migrated.snapshot().unwrap().unwrap();
        let state: Second = stored_state(&state_of(&again)).unwrap();
        assert_eq!(state, Second { scores: vec![7, 0] });
        // It is of version 2 now, which goes through no migration.
        second.restore("tally", &again).unwrap();
    }

    #[test]
    fn a_version_that_can_not_be_read_is_named_and_nothing_is_made_of_it() {
        let (first, second) = (Registry::new().with::<First>(), Registry::new().with::<Second>());
        let error = first.restore("tally", &snapshot(&second)).unwrap_err().to_string();
        assert!(error.contains("tally") && error.contains("version 2"), "{error}");
        assert!(stored_state::<First>(b"\xc1").is_err());
    }

    /// The game's own bytes in a snapshot.
    fn state_of(snapshot: &[u8]) -> Vec<u8> {
        #[derive(Deserialize)]
        struct Whole {
            #[serde(with = "serde_bytes")]
            state: Vec<u8>,
        }
        rmp_serde::from_slice::<Whole>(snapshot).unwrap().state
    }
}
