//! The arena, played without a server.

use greenroom::meta::MetaValue;
use greenroom::testing::{Stage, replay};
use greenroom::{Code, MetaKeyword};

use super::*;

#[derive(Debug, Deserialize)]
struct Seen {
    size: f32,
    players: BTreeMap<Seat, Player>,
}

fn stage(players: u16) -> Stage<Arena> {
    let mut stage = Stage::<Arena>::new();
    for seat in 0..players {
        stage.join(seat).unwrap();
    }
    stage.ticks(1);
    stage
}

/// Brings seat 0 near seat 1, and gives the direction from one to the other.
fn approach(stage: &mut Stage<Arena>) -> (f32, f32) {
    loop {
        let seen: Seen = stage.view(0);
        let (a, b) = (&seen.players[&Seat(0)], &seen.players[&Seat(1)]);
        let (dx, dy) = (b.x - a.x, b.y - a.y);
        if dx.hypot(dy) < SHOT_LENGTH / 2.0 {
            stage.send(0, &In::Run(0.0, 0.0));
            stage.ticks(1);
            let seen: Seen = stage.view(0);
            let (a, b) = (&seen.players[&Seat(0)], &seen.players[&Seat(1)]);
            return (b.x - a.x, b.y - a.y);
        }
        stage.send(0, &In::Run(dx, dy));
        stage.ticks(1);
    }
}

#[test]
fn a_player_who_is_hit_four_times_is_down_and_gets_up_again() {
    let mut stage = stage(2);
    let (dx, dy) = approach(&mut stage);
    for hits in 1..=4 {
        let call = stage.call(0, &In::Shoot(dx, dy));
        stage.ticks(1);
        assert_eq!(stage.reply(0, call), Some(Ok(Reply::Shot(Some(Seat(1))))));
        let seen: Seen = stage.view(1);
        assert_eq!(seen.players[&Seat(1)].hp, 100 - 25 * hits);
        assert_eq!(seen.players[&Seat(0)].score, u32::from(hits));
    }
    let events: Vec<Out> = stage.events(1);
    assert_eq!(events.last(), Some(&Out::Down { seat: Seat(1), by: Seat(0) }));
    stage.wait(DOWN_TIME + Duration::from_millis(50));
    assert_eq!(stage.view::<Seen>(1).players[&Seat(1)].hp, 100);
    let scores = vec![("User 0".to_owned(), 4), ("User 1".to_owned(), 0)];
    assert_eq!(stage.query(1, &()), Ok(Reply::Scores(scores)));
}

#[test]
fn an_empty_weapon_is_refused_and_reloads() {
    let mut stage = stage(1);
    let shoot = In::Shoot(1.0, 0.0);
    for _ in 0..SHOTS_MAX {
        stage.send(0, &shoot);
    }
    let call = stage.call(0, &shoot);
    stage.ticks(1);
    let refusal = stage.reply::<Reply>(0, call).unwrap().unwrap_err();
    assert_eq!((refusal.code, refusal.message.as_str()), (Code::Rejected, "nothing to shoot with"));
    stage.ticks(u32::from(RELOAD_TICKS));
    assert_eq!(stage.private_view::<Weapon>(0).unwrap().shots, 1);
}

#[test]
fn nobody_runs_out_of_the_arena_and_what_is_no_direction_moves_nobody() {
    let mut stage = stage(1);
    stage.send(0, &In::Run(f32::MAX, f32::MAX));
    stage.send(0, &In::Run(1.0, 1.0));
    stage.ticks(400);
    let seen: Seen = stage.view(0);
    assert_eq!((seen.players[&Seat(0)].x, seen.players[&Seat(0)].y), (seen.size, seen.size));
    stage.send(0, &In::Run(f32::NAN, f32::INFINITY));
    stage.ticks(1);
    assert_eq!(stage.view::<Seen>(0).players[&Seat(0)].x, seen.size);
}

#[test]
fn a_wrong_size_is_refused_in_words() {
    let params = Params { size: 5, ..Params::default() };
    let refusal = Stage::<Arena>::with(&params, [0; 32]).unwrap_err();
    assert_eq!(refusal.message, "an arena is 10 to 1,000 units long");
}

/// Who leaves a ranked arena is on its board, and no more is said of a training.
#[test]
fn a_ranked_arena_is_found_by_its_mode_and_ranks_who_leaves() {
    for mode in [Mode::Training, Mode::Ranked] {
        let params = Params { mode, ..Params::default() };
        let mut stage = Stage::<Arena>::with(&params, [0; 32]).unwrap();
        stage.join(0).unwrap();
        let meta = stage.core().running().meta;
        assert_eq!(meta.get("mode"), Some(&MetaValue::Text(mode.keyword().into())));
        assert_eq!(meta.get("players"), Some(&MetaValue::Int(1)));
        stage.leave(0);
        stage.ticks(1);
        let scored = |report: &_| format!("{report:?}").contains("board: \"arena\"");
        assert_eq!(stage.reports().iter().any(scored), mode == Mode::Ranked);
    }
}

/// Method: everybody runs and shoots at random, some come and go; then all of it is replayed, with a snapshot between.
#[test]
fn an_arena_runs_alike_again_and_from_a_snapshot() {
    let mut stage = stage(8);
    let mut n = 0u32;
    let mut next = |below: u32| {
        n = n.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (n >> 16) % below
    };
    for _ in 0..400 {
        let seat = u16::try_from(next(8)).unwrap();
        let direction = |n: u32| (f32::from(u8::try_from(n).unwrap()) - 8.0) / 8.0;
        let (dx, dy) = (direction(next(16)), direction(next(16)));
        match next(20) {
            0 => stage.lose(seat),
            1 => stage.come_back(seat),
            2..8 => stage.send(seat, &In::Run(dx, dy)),
            8..14 => drop(stage.call(seat, &In::Shoot(dx, dy))),
            _ => stage.ticks(1),
        }
    }
    for seed in 0..4 {
        replay::<Arena>(stage.recording(), seed).unwrap();
    }
}
