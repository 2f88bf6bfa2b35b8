//! Who asks again hears what was said first, whatever happened meanwhile.

mod world;

use greenroom_protocol::wire::master_game::SeatState;
use greenroom_protocol::wire::session_master::{Granted, Outcome};
use greenroom_protocol::{Code, InstanceId, SessionId};
use world::{World, code, create, destroy, join, join_or_create, leave, seat};

/// A user in a seat, and what granted it: its request 1, which it goes on asking.
fn seated() -> (World, SessionId, Granted) {
    let mut world = World::small();
    let (session, granted) = world.play(1, "duel", None);
    (world, session, granted)
}

/// Asks for the seat again, in the state as it is and in those that snapshots of it give.
fn assert_said_again(world: &mut World, session: SessionId, granted: &Granted) {
    for _ in 0..2 {
        let said = world.ask(session, 1, join_or_create("duel", None));
        assert_eq!(said, Some(Outcome::Granted(granted.clone())));
        world.go_on_restored();
    }
}

#[test]
fn an_answer_stays_while_the_seat_is_held() {
    let (mut world, session, granted) = seated();
    assert_said_again(&mut world, session, &granted);
}

#[test]
fn an_answer_stays_when_the_seat_was_given_up_and_is_anothers() {
    let (mut world, session, granted) = seated();
    let left = world.ask(session, 2, leave(granted.instance)).unwrap();
    assert_said_again(&mut world, session, &granted);
    world.seat_changed("g1", &granted, session, SeatState::Free);
    let other = world.user(2);
    let next = seat(&world.ask(other, 1, join(granted.instance)).unwrap());
    assert_eq!(next.seat, granted.seat);
    assert_said_again(&mut world, session, &granted);
    // Back in another seat, on a later request: both are as they were answered.
    let back = world.ask(session, 3, join(granted.instance)).unwrap();
    assert_ne!(seat(&back).seat, granted.seat);
    assert_said_again(&mut world, session, &granted);
    assert_eq!(world.ask(session, 3, join(granted.instance)), Some(back));
    assert_eq!(world.ask(session, 2, leave(granted.instance)), Some(left));
}

#[test]
fn an_answer_stays_when_the_instance_is_gone() {
    let (mut world, session, granted) = seated();
    assert_eq!(world.ask(session, 2, destroy(granted.instance)), None);
    assert_said_again(&mut world, session, &granted);
    world.closed("g1", granted.instance, granted.incarnation, Code::Destroyed);
    assert!(matches!(
        world.ask(session, 2, destroy(granted.instance)),
        Some(Outcome::Destroyed(_))
    ));
    assert_said_again(&mut world, session, &granted);
    // The place in memory is another instance's now, with the same session in it.
    let next = world.ask(session, 3, join_or_create("duel", None));
    let next = next.or_else(|| world.make_all("g1").pop().map(|answer| answer.outcome));
    assert_ne!(seat(&next.unwrap()).instance, granted.instance);
    assert_said_again(&mut world, session, &granted);
}

#[test]
fn an_answer_stays_when_the_game_server_moves() {
    let (mut world, session, granted) = seated();
    let mut report = World::game_report("g1", 1_000);
    report.address = "elsewhere:4200".into();
    world.game_reports("g1", report);
    assert_said_again(&mut world, session, &granted);
    // A new question has a new answer.
    let now = seat(&world.ask(session, 2, join(granted.instance)).unwrap());
    assert_eq!(now, Granted { address: "elsewhere:4200".into(), ..granted.clone() });
    assert_said_again(&mut world, session, &granted);
}

#[test]
fn an_answer_stays_when_the_game_server_is_lost_or_starts_anew() {
    let (mut world, session, granted) = seated();
    world.restart("g1");
    world.game_up("g1");
    assert_said_again(&mut world, session, &granted);
    assert_eq!(world.state.instances(), 0);
}

#[test]
fn a_reservation_that_is_over_takes_nothing_back_that_was_said() {
    let mut world = World::small();
    let session = world.user(1);
    assert_eq!(world.ask(session, 1, join_or_create("duel", None)), None);
    let granted = seat(&world.make_all("g1").pop().unwrap().outcome);
    assert_said_again(&mut world, session, &granted);
    world.pass(20_000);
    assert_said_again(&mut world, session, &granted);
}

/// The client's acknowledgement is one number: while its first request waits for a game server, it can't acknowledge
/// what was answered after it, and goes on all the same.
#[test]
fn a_request_that_takes_long_does_not_lock_the_others_out() {
    let mut world = World::small();
    let ann = world.user(1);
    assert_eq!(world.ask(ann, 1, create("arena", Some("slow"))), None);
    for id in 2..=32 {
        let answer = world.ask(ann, id, leave(InstanceId(7))).unwrap();
        assert_eq!(code(&answer), Code::NotSeated, "request {id}");
    }
    // There is an end to what is kept for a client that acknowledges nothing.
    assert_eq!(code(&world.ask(ann, 33, leave(InstanceId(7))).unwrap()), Code::Busy);
    let answers = world.make_all("g1");
    assert!(matches!(answers[0].outcome, Outcome::Created(_)));
    let answer = world.ask_at("s1", ann, 34, 32, leave(InstanceId(7))).unwrap();
    assert_eq!(code(&answer), Code::NotSeated);
    // Eight without an answer are the most.
    for id in 35..=42 {
        assert_eq!(world.ask_at("s1", ann, id, 34, create("arena", None)), None);
    }
    let ninth = world.ask_at("s1", ann, 43, 34, create("arena", None)).unwrap();
    assert_eq!(code(&ninth), Code::Busy);
}
