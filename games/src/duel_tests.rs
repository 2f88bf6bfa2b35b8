//! The duel, played without a server.

use greenroom::UserId;
use greenroom::meta::MetaValue;
use greenroom::testing::{Stage, replay};

use super::result::{AGAIN, Wins};
use super::*;

fn stage(seed: u8) -> Stage<Duel> {
    let mut stage = Stage::<Duel>::with(&(), [seed; 32]).unwrap();
    stage.join(0).unwrap();
    stage.join(1).unwrap();
    stage
}

fn seen(stage: &Stage<Duel>) -> Table {
    stage.view(0)
}

fn hand(stage: &Stage<Duel>, seat: Seat) -> Vec<Card> {
    stage.private_view(seat.0).unwrap()
}

/// Whose turn it is plays the card at this place.
fn play(stage: &mut Stage<Duel>, at: u8) -> Seat {
    let by = seen(stage).turn.unwrap();
    stage.send(by.0, &In::Play(at));
    by
}

/// Duels until somebody holds this card on their turn: who, and where.
fn holding(card: Card) -> (Stage<Duel>, Seat, u8) {
    for seed in 0..=255 {
        let stage = stage(seed);
        let by = seen(&stage).turn.unwrap();
        if let Some(at) = hand(&stage, by).iter().position(|held| *held == card) {
            return (stage, by, u8::try_from(at).unwrap());
        }
    }
    panic!("nobody ever holds {card:?}");
}

#[test]
fn two_players_get_five_cards_each_and_only_their_own_are_seen() {
    let stage = stage(1);
    let view = seen(&stage);
    assert_eq!((view.phase, view.turns, view.winner), (Phase::Playing, 0, None));
    for (seat, fighter) in &view.fighters {
        assert_eq!((fighter.health, fighter.hand), (HEALTH, 5));
        assert_eq!(hand(&stage, *seat).len(), 5);
    }
    assert_ne!(hand(&stage, Seat(0)), hand(&stage, Seat(1)), "from decks of their own");
    // What both see names no card at all.
    let bytes = stage.core().encode_view().unwrap();
    let names = DECK.iter().map(|card| format!("{card:?}"));
    for name in names {
        let named = bytes.windows(name.len()).any(|part| part == name.as_bytes());
        assert!(!named, "the shared view names {name}");
    }
}

#[test]
fn a_duel_is_found_while_it_waits_and_not_when_it_has_begun() {
    let mut stage = Stage::<Duel>::new();
    stage.join(0).unwrap();
    let waiting = stage.core().meta_changed();
    assert_eq!(waiting.meta["phase"], MetaValue::Text("waiting".into()));
    assert_eq!(waiting.meta["host"], MetaValue::Text("User 0".into()));
    stage.join(1).unwrap();
    let begun = stage.core().meta_changed();
    assert_eq!(begun.meta["phase"], MetaValue::Text("playing".into()));
    assert_eq!(begun.meta["guest"], MetaValue::Text("User 1".into()));
    assert!(waiting.open && !begun.open);
}

#[test]
fn each_card_does_what_it_says() {
    let check = |card, does: fn(&Fighter, &Fighter) -> bool| {
        let (mut stage, by, at) = holding(card);
        stage.send(by.0, &In::Play(at));
        let view = seen(&stage);
        assert!(does(&view.fighters[&by], &view.fighters[&other(by)]), "{card:?}: {view:?}");
        assert_eq!(view.turn, Some(other(by)));
    };
    check(Card::Strike, |_, them| them.health == HEALTH - 4);
    check(Card::Pierce, |_, them| them.health == HEALTH - 3);
    check(Card::Guard, |me, _| me.shield == 4);
    check(Card::Mend, |me, _| me.health == HEALTH);
    check(Card::Leech, |me, them| me.health == HEALTH && them.health == HEALTH - 2);
    check(Card::Focus, |me, _| me.focused);
    // The first of its three turns has begun.
    check(Card::Venom, |_, them| them.venom == 2 && them.health == HEALTH - 1);
}

#[test]
fn a_shield_stops_a_strike_and_no_pierce_and_focus_doubles_both_once() {
    let fighter = Fighter { health: HEALTH, shield: 3, focused: true, ..Fighter::default() };
    for (card, damage, blocked) in [(Card::Strike, 5, 3), (Card::Pierce, 6, 0), (Card::Leech, 1, 3)]
    {
        let (mut me, mut them) = (fighter.clone(), fighter.clone());
        assert_eq!(card.act(&mut me, &mut them), (damage, blocked), "{card:?}");
        assert_eq!((them.health, them.shield), (HEALTH - damage, 3 - blocked), "{card:?}");
        assert!(!me.focused && me.health == HEALTH);
    }
    let (mut me, mut them) = (fighter.clone(), fighter);
    Card::Guard.act(&mut me, &mut them);
    assert!(me.focused, "what does no damage leaves it");
    them.health = 2;
    assert_eq!(Card::Pierce.act(&mut me, &mut them), (2, 0), "nobody loses more than there is");
}

#[test]
fn who_is_not_on_turn_and_who_has_no_such_card_is_refused() {
    let mut stage = stage(4);
    let by = seen(&stage).turn.unwrap();
    for (seat, at, text) in [
        (other(by), 0, "it is not your turn"),
        (by, 5, "there is no card at this place of your hand"),
        (by, 255, "there is no card at this place of your hand"),
    ] {
        let call = stage.call(seat.0, &In::Play(at));
        assert_eq!(stage.reply::<u16>(seat.0, call).unwrap().unwrap_err().message, text);
    }
    let call = stage.call(by.0, &In::Play(0));
    assert_eq!(stage.reply(by.0, call), Some(Ok(1_u16)));
}

#[test]
fn whoever_thinks_for_too_long_plays_the_first_card() {
    let mut stage = stage(5);
    let by = seen(&stage).turn.unwrap();
    let first = hand(&stage, by)[0];
    stage.wait(TURN_TIME - Duration::from_secs(1));
    assert_eq!(seen(&stage).turns, 0);
    stage.wait(Duration::from_secs(1));
    assert_eq!((seen(&stage).turns, seen(&stage).turn), (1, Some(other(by))));
    let events: Vec<Out> = stage.events(by.0);
    assert!(matches!(events[0], Out::Played(seat, card, ..) if (seat, card) == (by, first)));
    // A turn that was played in time has no time that is over later.
    stage.wait(TURN_TIME - Duration::from_secs(1));
    play(&mut stage, 0);
    stage.wait(Duration::from_secs(2));
    assert_eq!(seen(&stage).turns, 2);
}

/// Every duel comes to an end, whatever is played, and who is left with more has won.
#[test]
fn a_duel_ends_with_one_winner_or_with_both_the_same() {
    let mut ends = [0; 2];
    for seed in 0..64 {
        let mut stage = stage(seed);
        let mut turns = 0;
        while seen(&stage).phase == Phase::Playing {
            play(&mut stage, seed % 3);
            let by = seen(&stage).turn;
            // A hand that is nearly empty has no third card.
            if let Some(by) = by.filter(|_| seen(&stage).turns == turns) {
                stage.send(by.0, &In::Play(0));
            }
            turns = seen(&stage).turns;
            assert!(turns <= 32, "more turns than cards");
        }
        let view = seen(&stage);
        let health = [0, 1].map(|seat| view.fighters[&Seat(seat)].health);
        match view.winner {
            Some(seat) => assert!(health[usize::from(seat.0)] > health[usize::from(1 - seat.0)]),
            None => assert_eq!(health[0], health[1]),
        }
        for seat in 0..2 {
            let events: Vec<Out> = stage.events(seat);
            let results = events.iter().filter(|out| matches!(out, Out::Result(..)));
            let told: Vec<_> = results.collect();
            let id = format!("duel/{}", greenroom::InstanceId(1));
            assert_eq!(told, [&Out::Result(id, view.winner)], "once, to both");
        }
        ends[usize::from(health.contains(&0))] += 1;
    }
    assert!(ends[0] > 0 && ends[1] > 0, "by cards and by health: {ends:?}");
}

#[test]
fn who_leaves_has_lost_and_who_only_waited_has_not() {
    let mut stage = stage(6);
    stage.leave(0);
    assert_eq!((seen_by(&stage, 1).phase, seen_by(&stage, 1).winner), (Phase::Over, Some(Seat(1))));

    let mut stage = Stage::<Duel>::new();
    stage.join(0).unwrap();
    stage.leave(0);
    stage.join(1).unwrap();
    assert_eq!(seen_by(&stage, 1).phase, Phase::Waiting);
}

fn seen_by(stage: &Stage<Duel>, seat: u16) -> Table {
    stage.view(seat)
}

fn key() -> String {
    format!("duel/{}", greenroom::InstanceId(1))
}

fn results(stage: &mut Stage<Duel>, seat: u16) -> usize {
    let events: Vec<Out> = stage.events(seat);
    events.iter().filter(|out| matches!(out, Out::Result(..))).count()
}

/// Nobody is told a result that is not stored; what is stored stays, and is the only one.
#[test]
fn a_result_is_told_once_it_is_stored_and_a_win_is_counted() {
    let mut stage = stage(7);
    stage.hold_store();
    stage.leave(0);
    assert_eq!((seen_by(&stage, 1).winner, results(&mut stage, 1)), (Some(Seat(1)), 0));
    assert_eq!(stage.told(), []);
    stage.release_store();
    assert_eq!(results(&mut stage, 1), 1);
    let [told] = &stage.told()[..] else { panic!("it is told once") };
    assert_eq!((told.kind, told.user.as_ref().map(UserId::as_str)), ("over", Some("user-1")));
    assert_eq!(told.fields, r#"{"turns":0,"winner":1}"#);
    let outcome: Outcome = stage.document(&key()).unwrap();
    let players = vec!["user-0".to_owned(), "user-1".to_owned()];
    assert_eq!(outcome, Outcome { winner: Some(Seat(1)), players, turns: 0 });
    let scored = |report: &_| format!("{report:?}").contains("board: \"duel_wins\"");
    assert!(stage.reports().iter().any(scored), "{:?}", stage.reports());
}

#[test]
fn a_store_that_is_away_is_asked_again_and_what_it_had_first_holds() {
    let mut stage = stage(8);
    stage.refuse_store(StoreRefusal::Unavailable);
    stage.refuse_store(StoreRefusal::Undecided);
    stage.leave(0);
    stage.wait(AGAIN);
    assert_eq!(results(&mut stage, 1), 0);
    // It was done after all, and otherwise than it would be now.
    let first = Outcome { winner: Some(Seat(0)), players: Vec::new(), turns: 3 };
    stage.set_document(&key(), &first);
    stage.wait(AGAIN);
    assert_eq!(stage.document::<Outcome>(&key()), Some(first));
    assert_eq!((seen_by(&stage, 1).winner, results(&mut stage, 1)), (Some(Seat(0)), 1));
}

fn wins(stage: &Stage<Duel>) -> Option<(i64, usize)> {
    let wins: Option<Wins> = stage.document("duel/wins/user-1");
    wins.map(|wins| (wins.count, wins.latest.len()))
}

fn scores(stage: &mut Stage<Duel>) -> Vec<String> {
    let reports: Vec<_> = stage.reports().iter().map(|report| format!("{report:?}")).collect();
    let scored = reports.into_iter().filter(|report| report.contains("board: \"duel_wins\""));
    scored.collect()
}

/// The game server dies when the result is written and the win is not counted.
#[test]
fn a_win_is_counted_although_its_server_died_after_the_result_was_stored() {
    let mut stage = stage(9);
    stage.hold_store();
    stage.leave(0);
    assert!(stage.document::<Outcome>(&key()).is_some());
    assert_eq!((wins(&stage), results(&mut stage, 1)), (None, 0));
    stage.go_on_elsewhere();
    stage.release_store();
    stage.wait(AGAIN);
    assert_eq!((wins(&stage), results(&mut stage, 1)), (Some((1, 1)), 1));
    assert_eq!(scores(&mut stage).len(), 1);
}

/// It dies when the count has begun: the life that goes on reads whether it was done.
#[test]
fn a_win_is_counted_once_although_its_server_died_while_it_counted() {
    for counted_before in [false, true] {
        let mut stage = stage(10);
        let mut before = Wins { count: 6, latest: vec!["another".to_owned()] };
        stage.set_document("duel/wins/user-1", &before);
        stage.hold_store();
        stage.leave(0);
        stage.refuse_store(StoreRefusal::Unavailable);
        stage.release_store();
        assert_eq!((wins(&stage), results(&mut stage, 1)), (Some((6, 1)), 1), "told, not counted");
        stage.hold_store();
        stage.wait(AGAIN);
        if counted_before {
            before.add(greenroom::InstanceId(1).to_string());
            stage.set_document("duel/wins/user-1", &before);
        }
        stage.go_on_elsewhere();
        stage.release_store();
        stage.wait(AGAIN);
        assert_eq!(wins(&stage), Some((7, 2)), "counted before: {counted_before}");
        assert_eq!(results(&mut stage, 1), 0, "it is told once");
        let [scored] = &scores(&mut stage)[..] else { panic!("it is scored once") };
        assert!(scored.contains("Some(7)"), "{scored}");
        // Nothing is asked again when time goes by.
        stage.wait(TURN_TIME);
        assert_eq!((wins(&stage), scores(&mut stage).len()), (Some((7, 2)), 0));
    }
}

/// A count may be there without its duels: it goes on from it. Another duel may be faster: it is read again.
#[test]
fn a_count_goes_on_from_what_is_there_and_remembers_the_latest() {
    let mut stage = stage(11);
    stage.set_document("duel/wins/user-1", &BTreeMap::from([("count", 12)]));
    stage.hold_store();
    stage.leave(0);
    stage.refuse_store(StoreRefusal::Changed);
    stage.release_store();
    assert_eq!(wins(&stage), Some((13, 1)));

    let mut wins = Wins::default();
    for duel in 0..100 {
        wins.add(duel.to_string());
    }
    assert_eq!((wins.count, wins.latest.len()), (100, 32));
    assert_eq!(wins.latest.last().map(String::as_str), Some("99"));
}

/// Method: cards at chance, somebody is away for a while, somebody is late; then all of it is replayed, with a snapshot
/// between.
#[test]
fn a_duel_runs_alike_again_and_from_a_snapshot() {
    for seed in 0..16 {
        let mut stage = stage(seed);
        stage.lose(0);
        stage.wait(TURN_TIME);
        stage.come_back(0);
        while seen(&stage).phase == Phase::Playing {
            play(&mut stage, 0);
        }
        replay::<Duel>(stage.recording(), seed.into()).unwrap();
    }
}
