//! What the master promises, each as a small story.

#![expect(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "helpers of tests may fail as tests do, and look for one message among all"
)]

mod world;

use std::sync::Arc;

use greenroom_master_core::{
    Candidate, Command, Effect, Event, Fact, LEASE_MS, Order, Placement, Settings, State,
};
use greenroom_protocol::search::Filter;
use greenroom_protocol::wire::admin_master::{Action, Find, Table};
use greenroom_protocol::wire::client_session::{
    Create, JoinOrCreate, Meta, MetaValue, Rank, RankPart, Request, Search, Watch,
};
use greenroom_protocol::wire::master_game::{
    Closed, GameCounts, GameLoad, HeldInstance, HeldSeat, KindInfo, MasterToGame, MetaChanged,
    Scored, SeatChanged, SeatState,
};
use greenroom_protocol::wire::server_server::Role;
use greenroom_protocol::wire::session_master::{
    Answer, Granted, MasterToSession, Outcome, SessionCounts, SessionLoad, SessionReport,
};
use greenroom_protocol::{
    Code, Generation, Incarnation, InstanceId, Refusal, RequestId, Seat, SessionId, UserId,
};
use world::{
    World, code, create, create_for, destroy, join, join_or_create, join_or_create_for,
    join_or_create_where, leave, seat, secret, server, users,
};

fn session_report(name: &str) -> SessionReport {
    SessionReport {
        urls: vec![format!("tcp://{name}:4000").into()],
        build: "test".into(),
        connections_max: 10,
        sessions: Vec::new(),
    }
}

#[test]
fn thirty_two_racing_for_a_key_get_one_instance() {
    let mut world = World::small();
    let sessions: Vec<SessionId> = (0..32).map(|number| world.user(number)).collect();
    let request = join_or_create("arena", Some("match:42"));
    let at_once: Vec<Option<Outcome>> =
        sessions.iter().map(|&session| world.ask(session, 1, request.clone())).collect();
    // Sixteen wait for the instance, the others know at once that it is full.
    assert_eq!(at_once.iter().filter(|outcome| outcome.is_none()).count(), 16);
    assert!(at_once.iter().flatten().all(|outcome| code(outcome) == Code::InstanceFull));
    assert_eq!(world.state.instances(), 1);
    let answers = world.make_all("g1");
    let mut seats: Vec<u16> = answers.iter().map(|answer| seat(&answer.outcome).seat.0).collect();
    seats.sort_unstable();
    assert_eq!(seats, (0..16).collect::<Vec<u16>>());
    assert_eq!(world.state.instances(), 1);
}

#[test]
fn a_create_asked_again_is_the_same_create_before_and_after_its_answer() {
    let mut world = World::small();
    let ann = world.user(1);
    assert_eq!(world.ask(ann, 1, create("arena", None)), None);
    assert_eq!(world.ask(ann, 1, create("arena", None)), None);
    let answers = world.make_all("g1");
    assert_eq!(answers.len(), 1);
    let again = world.ask(ann, 1, create("arena", None));
    assert_eq!(again.as_ref(), Some(&answers[0].outcome));
    assert_eq!(world.state.instances(), 1);
    assert!(world.makes("g1").is_empty());
}

#[test]
fn an_answer_that_was_acknowledged_is_stale() {
    let mut world = World::small();
    let ann = world.user(1);
    assert_eq!(code(&world.ask(ann, 1, create("chess", None)).unwrap()), Code::KindUnknown);
    assert_eq!(world.ask_at("s1", ann, 2, 1, create("arena", None)), None);
    assert_eq!(code(&world.ask(ann, 1, create("arena", None)).unwrap()), Code::Stale);
    assert_eq!(world.state.instances(), 1);
}

#[test]
fn no_more_than_eight_requests_are_under_way() {
    let mut world = World::small();
    let ann = world.user(1);
    for id in 1..=8 {
        assert_eq!(world.ask(ann, id, create("arena", None)), None);
    }
    assert_eq!(code(&world.ask(ann, 9, create("arena", None)).unwrap()), Code::Busy);
    assert_eq!(world.make_all("g1").len(), 8);
    // Nothing was started: the same number may be used again once there is room.
    assert_eq!(world.ask_at("s1", ann, 9, 8, create("arena", None)), None);
}

#[test]
fn a_refused_create_reaches_every_caller_as_the_game_wrote_it() {
    let mut world = World::small();
    let (ann, bo) = (world.user(1), world.user(2));
    world.ask(ann, 1, join_or_create("arena", Some("x")));
    world.ask(bo, 1, join_or_create("arena", Some("x")));
    let answers = world.refuse_all("g1", "the map \"moon\" is not built yet");
    assert_eq!(answers.len(), 2);
    for answer in answers {
        let Outcome::Refused(refusal) = answer.outcome else { panic!("{answer:?}") };
        assert_eq!(
            (refusal.code, &*refusal.message),
            (Code::Rejected, "the map \"moon\" is not built yet")
        );
    }
    // The key is free again.
    assert_eq!(world.ask(ann, 2, join_or_create("arena", Some("x"))), None);
    assert_eq!(world.make_all("g1").len(), 1);
}

#[test]
fn the_same_key_is_the_same_session_on_a_newer_connection() {
    let mut world = World::small();
    world.session_up("s2");
    let first = world.bind("s1", 1, "ann").unwrap();
    let second = world.bind("s2", 1, "ann").unwrap();
    assert_eq!(second.session, first.session);
    assert_eq!(second.generation, Generation(first.generation.0 + 1));
    let ended = world.ended("s1");
    assert_eq!((ended[0].session, ended[0].generation), (first.session, first.generation));
    assert_eq!(world.state.users(), 1);
}

#[test]
fn an_unbind_of_an_older_generation_changes_nothing() {
    let mut world = World::small();
    world.session_up("s2");
    let first = world.bind("s1", 1, "ann").unwrap();
    let second = world.bind("s2", 1, "ann").unwrap();
    world.unbind("s1", &first);
    assert_eq!(world.state.users(), 1);
    world.unbind("s2", &second);
    assert_eq!(world.state.users(), 0);
}

#[test]
fn an_unbind_that_comes_again_counts_once() {
    let mut world = World::small();
    let bound = world.bind("s1", 1, "ann").unwrap();
    world.unbind("s1", &bound);
    let again = world.log.entries().last().unwrap().1.clone();
    world.bind("s1", 1, "ann").unwrap();
    world.apply(again);
    assert_eq!(world.state.users(), 1);
}

#[test]
fn the_newest_session_of_a_user_wins_and_the_older_is_told_why() {
    let mut world = World::small();
    world.session_up("s2");
    let (ann, granted) = {
        let (session, granted) = world.play(1, "arena", None);
        world.told("g1");
        (session, granted)
    };
    let newer = world.bind("s2", 9, "user 1").unwrap();
    assert_ne!(newer.session, ann);
    let ended = world.ended("s1");
    assert_eq!((ended[0].session, &ended[0].refusal.code), (ann, &Code::Superseded));
    // Its seat is free, and the game server is told.
    let told = world.told("g1");
    assert!(matches!(&told[..], [MasterToGame::FreeSeat(free)]
        if free.seat == granted.seat && free.session == ann && free.refusal.code == Code::Superseded));
    // The older client does not know yet and comes again with its key: it must not throw the newer one out.
    assert_eq!(world.bind("s1", 1, "user 1").unwrap_err().code, Code::Superseded);
    assert_eq!(code(&world.ask(ann, 2, create("arena", None)).unwrap()), Code::SessionExpired);
    assert!(world.ended("s2").is_empty());
}

#[test]
fn a_session_key_of_another_user_is_refused() {
    let mut world = World::small();
    world.bind("s1", 1, "ann").unwrap();
    assert_eq!(world.bind("s1", 1, "eve").unwrap_err().code, Code::CredentialsInvalid);
}

#[test]
fn a_session_without_a_connection_keeps_its_seat_for_two_minutes() {
    let mut world = World::small();
    let (ann, granted) = world.play(1, "arena", None);
    let bound = world.bind("s1", 1, "user 1").unwrap();
    world.unbind("s1", &bound);
    world.told("g1");
    world.pass(119_999);
    assert!(world.told("g1").is_empty());
    assert_eq!(world.list("arena").instances[0].seats_taken, 1);
    world.pass(1);
    let told = world.told("g1");
    assert!(matches!(&told[..], [MasterToGame::FreeSeat(free)]
        if free.seat == granted.seat && free.refusal.code == Code::SessionExpired));
    assert_eq!(world.list("arena").instances[0].seats_taken, 0);
    // The same key is a new session now.
    assert_ne!(world.bind("s1", 1, "user 1").unwrap().session, ann);
}

#[test]
fn a_seat_that_is_not_taken_in_time_is_free() {
    let mut world = World::small();
    let ann = world.user(1);
    world.ask(ann, 1, join_or_create("duel", Some("x")));
    // While the instance is made, no time runs.
    world.pass(60_000);
    world.make_all("g1");
    world.pass(14_999);
    assert_eq!(world.list("duel").instances[0].seats_taken, 1);
    world.pass(1);
    assert_eq!(world.list("duel").instances[0].seats_taken, 0);
    assert!(matches!(&world.told("g1")[..], [MasterToGame::FreeSeat(_)]));
}

#[test]
fn who_joins_again_comes_back_to_the_same_seat() {
    let mut world = World::small();
    let (ann, granted) = world.play(1, "arena", None);
    world.seat_changed("g1", &granted, ann, SeatState::Away);
    assert_eq!(seat(&world.ask(ann, 2, join(granted.instance)).unwrap()), granted);
    assert_eq!(seat(&world.ask(ann, 3, join_or_create("arena", None)).unwrap()), granted);
    assert_eq!(world.list("arena").instances[0].seats_taken, 1);
}

#[test]
fn nobody_is_sent_to_a_seat_before_its_last_holder_is_out() {
    let mut world = World::small();
    let (ann, first) = world.play(1, "duel", Some("x"));
    assert!(matches!(world.ask(ann, 2, leave(first.instance)), Some(Outcome::Left(_))));
    let (bo, cy) = (world.user(2), world.user(3));
    // Seat 0 is given away last, and to somebody who waits until the game server says that it is vacant.
    assert_eq!(seat(&world.ask(bo, 1, join(first.instance)).unwrap()).seat, Seat(1));
    assert_eq!(world.ask(cy, 1, join(first.instance)), None);
    assert_eq!(code(&world.ask(ann, 3, join(first.instance)).unwrap()), Code::InstanceFull);
    // What the game server said of the first holder before it knew does not touch the new one.
    world.seat_changed("g1", &first, ann, SeatState::Away);
    assert!(world.answers().is_empty());
    world.seat_changed("g1", &first, ann, SeatState::Free);
    assert!(matches!(&world.answers()[..], [answer]
        if answer.session == cy && seat(&answer.outcome).seat == Seat(0)));
    assert_eq!(world.list("duel").instances[0].seats_taken, 2);
    assert_eq!(code(&world.ask(ann, 4, leave(first.instance)).unwrap()), Code::NotSeated);
}

#[test]
fn who_leaves_and_comes_back_gets_a_seat_that_the_first_leaving_does_not_free() {
    let mut world = World::small();
    let (_, full) = world.play(1, "duel", Some("x"));
    let (bo, first) = world.play(2, "duel", Some("x"));
    assert_eq!(full.instance, first.instance);
    world.ask(bo, 2, leave(first.instance));
    assert_eq!(world.ask(bo, 3, join(first.instance)), None);
    world.seat_changed("g1", &first, bo, SeatState::Free);
    assert_eq!(seat(&world.answers()[0].outcome), first);
    assert_eq!(world.list("duel").instances[0].seats_taken, 2);
    world.pass(15_000);
    assert_eq!(world.list("duel").instances[0].seats_taken, 1);
}

#[test]
fn a_seat_taken_after_its_reservation_was_over_is_vacated_again() {
    let mut world = World::small();
    let ann = world.user(1);
    world.ask(ann, 1, join_or_create("duel", Some("x")));
    let granted = seat(&world.make_all("g1")[0].outcome);
    world.pass(15_000);
    let bo = world.user(2);
    let next = seat(&world.ask(bo, 1, join(granted.instance)).unwrap());
    assert_eq!(next, granted);
    world.told("g1");
    world.seat_changed("g1", &granted, ann, SeatState::Taken);
    assert!(matches!(&world.told("g1")[..], [MasterToGame::FreeSeat(free)] if free.session == ann));
    world.seat_changed("g1", &granted, ann, SeatState::Free);
    assert_eq!(seat(&world.ask(bo, 2, join(granted.instance)).unwrap()), granted);
}

/// Bo joins again while he leaves, over another session server: what that one still does about his old seat comes to
/// the game server after the seat was freed.
#[test]
fn a_seat_that_was_left_is_not_taken_again_by_what_comes_too_late() {
    let mut world = World::small();
    let (_, full) = world.play(1, "duel", Some("x"));
    let (bo, left) = world.play(2, "duel", Some("x"));
    world.ask(bo, 2, leave(left.instance));
    world.seat_changed("g1", &left, bo, SeatState::Free);
    world.told("g1");
    // Once no server may still be about to say what it has.
    world.pass(15_000);
    world.seat_changed("g1", &left, bo, SeatState::Taken);
    assert!(matches!(&world.told("g1")[..], [MasterToGame::FreeSeat(free)] if free.session == bo));
    world.seat_changed("g1", &left, bo, SeatState::Free);
    assert_eq!(full.instance, left.instance);
    assert_eq!(world.list("duel").instances[0].seats_taken, 1, "the other player's");
}

#[test]
fn a_check_in_said_twice_on_one_link_is_one_binding() {
    let mut world = World::small();
    let bound = world.bind("s1", 1, "ann").unwrap();
    let again = world.log.entries().last().unwrap().1.clone();
    assert!(world.apply(again).is_empty());
    assert!(world.ended("s1").is_empty());
    world.unbind("s1", &bound);
    assert_eq!(world.state.users(), 0);
}

#[test]
fn the_fullest_instance_with_room_is_filled_first() {
    let mut world = World::small();
    let ann = world.user(1);
    world.ask(ann, 1, create("duel", None));
    world.make_all("g1");
    let (_, granted) = world.play(2, "duel", None);
    let (_, second) = world.play(3, "duel", None);
    assert_eq!(granted.instance, second.instance);
    // Two of two seats: the next one needs another instance.
    let (_, third) = world.play(4, "duel", None);
    assert_ne!(granted.instance, third.instance);
}

#[test]
fn a_named_instance_is_entered_by_its_name_only() {
    let mut world = World::small();
    let (_, named) = world.play(1, "arena", Some("ann's room"));
    let (_, any) = world.play(2, "arena", None);
    assert_ne!(named.instance, any.instance);
    let (_, by_name) = world.play(3, "arena", Some("ann's room"));
    assert_eq!(named.instance, by_name.instance);
}

#[test]
fn a_session_has_at_most_eight_seats() {
    let mut world = World::small();
    let ann = world.user(1);
    for id in 1..=8 {
        let key = format!("room {id}");
        world.ask_at("s1", ann, id, id - 1, join_or_create("duel", Some(&key)));
        world.make_all("g1");
    }
    let ninth = world.ask_at("s1", ann, 9, 8, join_or_create("duel", Some("room 9")));
    assert_eq!(code(&ninth.unwrap()), Code::SeatsMax);
    // Nothing was made for nobody.
    assert_eq!(world.state.instances(), 8);
}

#[test]
fn a_locked_instance_takes_nobody_new_and_is_not_listed() {
    let mut world = World::small();
    let (ann, granted) = world.play(1, "arena", None);
    let change = MetaChanged {
        instance: granted.instance,
        incarnation: granted.incarnation,
        meta: Default::default(),
        open: false,
        private: false,
    };
    world.happened("g1", Event::MetaChanged(change));
    let bo = world.user(2);
    assert_eq!(code(&world.ask(bo, 1, join(granted.instance)).unwrap()), Code::InstanceLocked);
    assert!(world.list("arena").instances.is_empty());
    assert_eq!(seat(&world.ask(ann, 2, join(granted.instance)).unwrap()), granted);
    assert_eq!(world.ask(bo, 2, join_or_create("arena", None)), None);
}

#[test]
fn only_its_owner_destroys_an_instance_and_is_answered_when_it_is_closed() {
    let mut world = World::small();
    let (ann, granted) = world.play(1, "arena", Some("x"));
    let bo = world.user(2);
    assert_eq!(code(&world.ask(bo, 1, destroy(granted.instance)).unwrap()), Code::Forbidden);
    assert_eq!(world.ask(ann, 2, destroy(granted.instance)), None);
    assert!(matches!(&world.told("g1")[..], [MasterToGame::Destroy(_)]));
    // Closing: it takes nobody, and its key is not free as long as it may still run.
    assert_eq!(code(&world.ask(bo, 2, join(granted.instance)).unwrap()), Code::InstanceClosed);
    let same_key = world.ask(bo, 3, join_or_create("arena", Some("x")));
    assert_eq!(code(&same_key.unwrap()), Code::InstanceClosed);
    world.closed("g1", granted.instance, granted.incarnation, Code::Destroyed);
    assert!(matches!(&world.answers()[..], [answer]
        if answer.session == ann && matches!(answer.outcome, Outcome::Destroyed(_))));
    assert_eq!(world.ask(bo, 4, join_or_create("arena", Some("x"))), None);
    assert_eq!(code(&world.ask(bo, 5, join(granted.instance)).unwrap()), Code::Destroyed);
}

#[test]
fn an_operator_destroys_and_kicks() {
    let mut world = World::small();
    let (ann, granted) = world.play(1, "arena", None);
    world.told("g1");
    world.act(Action::Destroy { instance: granted.instance }).unwrap();
    assert!(matches!(&world.told("g1")[..], [MasterToGame::Destroy(_)]));
    let user = UserId::new("user 1").unwrap();
    world.act(Action::Kick { user: user.clone() }).unwrap();
    let ended = world.ended("s1");
    assert_eq!((ended[0].session, &ended[0].refusal.code), (ann, &Code::Kicked));
    assert_eq!(world.act(Action::Kick { user }).unwrap_err().code, Code::UserUnknown);
    let unknown = Action::Destroy { instance: InstanceId(5) };
    assert_eq!(world.act(unknown).unwrap_err().code, Code::InstanceUnknown);
}

#[test]
fn a_suspect_game_server_keeps_its_instances_and_gets_no_new_ones() {
    let mut world = World::small();
    let (_, granted) = world.play(1, "arena", None);
    world.link_lost(Role::Game, "g1");
    assert_eq!(world.list("arena").instances.len(), 1);
    let bo = world.user(2);
    assert_eq!(code(&world.ask(bo, 1, join_or_create("arena", None)).unwrap()), Code::NoCapacity);
    world.pass(14_999);
    world.game_up("g1");
    world.pass(60_000);
    assert_eq!(seat(&world.ask(bo, 2, join(granted.instance)).unwrap()).seat, Seat(1));
}

#[test]
fn a_game_server_lost_for_fifteen_seconds_loses_its_instances_and_no_other() {
    let mut world = World::small();
    let (ann, lost) = world.play(1, "arena", Some("x"));
    world.game_up("g2");
    let bo = world.user(2);
    world.ask(bo, 1, join_or_create("duel", Some("y")));
    world.make_all("g2");
    // One more is granted on the lost server and never answered by it.
    world.game_load("g2", 900);
    let cy = world.user(3);
    world.ask(cy, 1, create("duel", Some("z")));
    let pending = world.makes("g1").len();
    world.link_lost(Role::Game, "g1");
    world.pass(15_000);
    assert_eq!(world.state.instances(), 2 - pending as u64);
    assert_eq!(code(&world.ask(ann, 2, join(lost.instance)).unwrap()), Code::InstanceLost);
    // The key is free, and the session has its seat back to spend.
    assert_eq!(world.ask(ann, 3, join_or_create("arena", Some("x"))), None);
    assert_eq!(world.make_all("g2").len(), 1 + (1 - pending));
    // When the lost one comes back after all, it is told to stop what was given up.
    let mut report = World::game_report("g1", 1_000);
    let held = World::held(lost.instance, "arena", Some("x"));
    report.instances.push(HeldInstance { incarnation: lost.incarnation, ..held });
    world.apply(Command::GameUp(world.origin("g1"), report));
    let told = world.told("g1");
    assert!(told.iter().any(|message| matches!(message, MasterToGame::Destroy(stop)
        if stop.instance == lost.instance)));
}

#[test]
fn a_game_server_that_starts_anew_has_lost_its_instances() {
    let mut world = World::small();
    let (ann, lost) = world.play(1, "arena", None);
    let bo = world.user(2);
    world.ask(bo, 1, create("duel", None));
    world.restart("g1");
    world.game_up("g1");
    let answers = world.answers();
    assert_eq!((answers.len(), code(&answers[0].outcome)), (1, Code::InstanceLost));
    assert_eq!(world.state.instances(), 0);
    assert_eq!(code(&world.ask(ann, 2, join(lost.instance)).unwrap()), Code::InstanceLost);
    assert!(world.told("g1").is_empty());
}

#[test]
fn a_session_server_that_is_lost_leaves_the_list_and_its_sessions_may_come_back() {
    let mut world = World::small();
    world.session_up("s2");
    let (ann, granted) = world.play(1, "arena", None);
    world.link_lost(Role::Session, "s1");
    world.pass(15_000);
    let lists = world.all.iter().filter_map(|effect| {
        let Effect::ToSession(to, MasterToSession::SessionServers(list)) = effect else {
            return None;
        };
        (*to == server("s2")).then_some(list.session_servers.len())
    });
    let lists: Vec<usize> = lists.collect();
    assert_eq!(lists, [2, 1]);
    let bound = world.bind("s2", 1, "user 1").unwrap();
    assert_eq!((bound.session, bound.session_servers.len()), (ann, 1));
    let again = world.ask_at("s2", ann, 2, 1, join(granted.instance)).unwrap();
    assert_eq!(seat(&again), granted);
}

#[test]
fn a_binding_whose_answer_was_lost_with_the_link_is_undone() {
    let mut world = World::small();
    world.user(1);
    world.link_lost(Role::Session, "s1");
    // The session server never got the answer, and the client has gone: it reports nobody.
    world.session_up("s1");
    assert_eq!(world.state.users(), 0);
    world.pass(120_000);
    assert_eq!(world.ended("s1"), []);
}

#[test]
fn a_master_that_has_lost_its_memory_takes_over_what_it_is_told_of() {
    let mut world = World::new();
    let (instance, session) = (InstanceId(7), SessionId(8));
    let user = UserId::new("ann").unwrap();
    let mut report = World::game_report("g1", 10);
    let seats = vec![HeldSeat { seat: Seat(3), user, session, away: false }];
    let owner = Some(UserId::new("ann").unwrap());
    let held = World::held(instance, "arena", Some("ann's room"));
    report.instances.push(HeldInstance { seats, owner, ..held });
    world.apply(Command::GameUp(world.origin("g1"), report));
    let listed = world.list("arena").instances;
    assert_eq!((listed[0].seats_taken, listed[0].created_ms), (1, 500));
    let sessions = vec![World::held_session(session, 1, "ann")];
    world.session_report("s1", SessionReport { sessions, ..session_report("s1") });
    assert_eq!(world.state.users(), 1);
    assert_eq!(world.ended("s1"), []);
    assert_eq!(seat(&world.ask(session, 12, join(instance)).unwrap()).seat, Seat(3));
    let by_key = world.ask(session, 13, join_or_create("arena", Some("ann's room")));
    assert_eq!(seat(&by_key.unwrap()).instance, instance);
    // Its key is known again: the session goes on at another session server.
    world.session_up("s2");
    assert_eq!(world.bind("s2", 1, "ann").unwrap().session, session);
    // Its owner is, too.
    assert_eq!(world.ask_at("s2", session, 14, 13, destroy(instance)), None);
}

#[test]
fn a_game_server_speaks_for_its_own_instances_only() {
    let mut world = World::small();
    let (_, granted) = world.play(1, "arena", None);
    world.game_up("g2");
    world.closed("g2", granted.instance, granted.incarnation, Code::Destroyed);
    assert!(matches!(&world.effects[..], [Effect::Illegal { .. }]));
    world.closed("g1", granted.instance, Incarnation(1), Code::Destroyed);
    assert!(matches!(&world.effects[..], [Effect::Illegal { .. }]));
    assert_eq!(world.state.instances(), 1);
}

#[test]
fn a_report_that_comes_again_counts_once() {
    let mut world = World::small();
    let (ann, granted) = world.play(1, "duel", None);
    let taken = world.log.entries().last().unwrap().1.clone();
    world.ask(ann, 2, leave(granted.instance));
    world.apply(taken);
    assert_eq!(world.list("duel").instances[0].seats_taken, 0);
}

#[test]
fn load_and_room_decide_where_an_instance_goes() {
    let mut world = World::small();
    world.apply(Command::GameUp(world.origin("g2"), World::game_report("g2", 2)));
    world.apply(Command::GameUp(world.origin("g0"), World::game_report("g0", 0)));
    world.game_load("g1", 500);
    let ann = world.user(1);
    // Empty servers: the less busy one. Then by the share of their room that is in use.
    world.ask(ann, 1, create("arena", None));
    assert_eq!(world.make_all("g2").len(), 1);
    for id in 2..=4 {
        world.ask_at("s1", ann, id, id - 1, create("arena", None));
        assert_eq!(world.make_all("g1").len(), 1);
    }
    world.link_lost(Role::Game, "g1");
    world.ask(ann, 5, create("arena", None));
    assert_eq!(world.make_all("g2").len(), 1);
    assert_eq!(code(&world.ask(ann, 6, create("arena", None)).unwrap()), Code::NoCapacity);
    assert_eq!(code(&world.ask(ann, 7, create("chess", None)).unwrap()), Code::KindUnknown);
}

#[test]
fn a_listing_goes_on_after_its_last_instance_and_has_a_limit() {
    let mut world = World::small();
    for user in 0..5 {
        world.play(user, "arena", Some(&user.to_string()));
    }
    let mut cursor = None;
    let mut found = Vec::new();
    loop {
        let search = Search { limit: 2, cursor, ..world::everything("arena") };
        let Outcome::Found(page) = world.state.search(&search) else { panic!("refused") };
        found.extend(page.instances.iter().map(|listed| listed.instance));
        cursor = page.cursor;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(found.len(), 5);
    assert!(found.is_sorted());
    for limit in [0, 101] {
        let search = Search { limit, ..world::everything("arena") };
        assert_eq!(code(&world.state.search(&search)), Code::LimitInvalid);
    }
}

#[test]
fn what_is_acknowledged_leaves_the_stream_and_the_rest_stays() {
    let mut world = World::small();
    let ann = world.user(1);
    for id in 1..=3 {
        world.ask(ann, id, create("arena", None));
    }
    world.apply(Command::GameReceived(world.origin("g1"), 2));
    let out = world.state.game_stream(&server("g1")).unwrap();
    assert_eq!(out.unacknowledged().map(|(n, _)| n).collect::<Vec<_>>(), [3]);
    // A new link of the same life gets the rest again; a new life gets nothing of the old one's.
    world.link_lost(Role::Game, "g1");
    world.game_up("g1");
    assert_eq!(world.state.game_stream(&server("g1")).unwrap().len(), 1);
    world.restart("g1");
    world.game_up("g1");
    assert_eq!(world.state.game_stream(&server("g1")).unwrap().last(), 0);
}

#[test]
fn a_request_of_a_newer_version_is_refused_by_name() {
    let mut world = World::small();
    let ann = world.user(1);
    assert_eq!(code(&world.ask(ann, 1, Request::Unknown(0x1e)).unwrap()), Code::UnexpectedKind);
    assert_eq!(
        code(&world.ask(SessionId(1), 1, leave(InstanceId(1))).unwrap()),
        Code::SessionExpired
    );
}

#[test]
fn an_answer_reaches_the_session_wherever_it_is_then() {
    let mut world = World::small();
    world.session_up("s2");
    let ann = world.user(1);
    world.ask(ann, 1, join_or_create("arena", None));
    world.bind("s2", 1, "user 1").unwrap();
    world.make_all("g1");
    assert!(matches!(&world.effects[..], [Effect::ToSession(to, MasterToSession::Answer(answer))]
        if *to == server("s2") && answer.id == RequestId(1)));
}

// Private instances, and users who are expected.

#[test]
fn a_private_instance_is_found_by_nobody_and_entered_by_its_id_or_its_key() {
    let mut world = World::small();
    let (ann, bo, cy) = (world.user(1), world.user(2), world.user(3));
    let Request::Create(create) = create("duel", Some("ann's room")) else { unreachable!() };
    world.ask(ann, 1, Create { private: true, ..create }.into());
    assert!(matches!(&world.told("g1")[..], [MasterToGame::Create(create)] if create.private));
    let Request::JoinOrCreate(any) = join_or_create("duel", None) else { unreachable!() };
    world.ask(ann, 2, JoinOrCreate { private: true, ..any }.into());
    let made = world.make_all("g1").pop().unwrap();
    let hidden = seat(&made.outcome).instance;
    assert!(world.list("duel").instances.is_empty());
    // Who wants any gets another one.
    assert_eq!(world.ask(bo, 1, join_or_create("duel", None)), None);
    assert_eq!(seat(&world.make_all("g1")[0].outcome).seat, Seat(0));
    assert_eq!(world.state.instances(), 3);
    assert_eq!(seat(&world.ask(cy, 1, join(hidden)).unwrap()).seat, Seat(1));
    // The keyed one is still being made, and found by its key.
    assert_eq!(world.ask(cy, 2, join_or_create("duel", Some("ann's room"))), None);
    assert_eq!(world.state.instances(), 3);
}

#[test]
fn a_game_may_show_a_private_instance() {
    let mut world = World::small();
    let ann = world.user(1);
    let Request::JoinOrCreate(any) = join_or_create("arena", None) else { unreachable!() };
    world.ask(ann, 1, JoinOrCreate { private: true, ..any }.into());
    let granted = seat(&world.make_all("g1")[0].outcome);
    let shown = MetaChanged {
        instance: granted.instance,
        incarnation: granted.incarnation,
        meta: Default::default(),
        open: true,
        private: false,
    };
    world.happened("g1", Event::MetaChanged(shown));
    assert_eq!(world.list("arena").instances.len(), 1);
    let bo = world.user(2);
    let joined = seat(&world.ask(bo, 1, join_or_create("arena", None)).unwrap());
    assert_eq!(joined.instance, granted.instance);
}

/// Method: ann brings four friends to a duel of two seats, then three seats' worth to an arena. One friend comes by
/// id, one by key, one by asking for any, and one was not even checked in when the seat was kept.
#[test]
fn a_seat_is_kept_for_each_friend_and_given_to_no_stranger() {
    let mut world = World::small();
    let (ann, bo, cy) = (world.user(1), world.user(2), world.user(3));
    let request = join_or_create_for("duel", None, users(2..=2));
    assert_eq!(world.ask(ann, 1, request), None);
    let granted = seat(&world.make_all("g1")[0].outcome);
    assert_eq!(world.list("duel").instances[0].seats_taken, 2);
    // A stranger sees no free seat, by whichever way.
    assert_eq!(code(&world.ask(cy, 1, join(granted.instance)).unwrap()), Code::InstanceFull);
    assert_eq!(world.ask(cy, 2, join_or_create("duel", None)), None);
    // The friend who asks for any comes to the seat that is kept.
    let joined = seat(&world.ask(bo, 1, join_or_create("duel", None)).unwrap());
    assert_eq!((joined.instance, joined.seat), (granted.instance, Seat(1)));
    world.seat_changed("g1", &joined, bo, SeatState::Taken);
    world.pass(15_000);
    // The maker's seat was reserved like any other, and the friend's is taken.
    assert_eq!(world.list("duel").instances[0].seats_taken, 1);
}

#[test]
fn who_is_expected_comes_by_id_by_key_or_later_and_needs_no_session_before() {
    let mut world = World::small();
    let ann = world.user(1);
    let request = create_for("arena", Some("party"), users(1..=4));
    assert_eq!(world.ask(ann, 1, request), None);
    let Outcome::Created(created) = world.make_all("g1")[0].outcome.clone() else { panic!() };
    // The maker is in the list and counts once; it has its seat when it comes for it.
    assert_eq!(world.list("arena").instances[0].seats_taken, 4);
    let own = seat(&world.ask(ann, 2, join(created.instance)).unwrap());
    let (bo, cy, di) = (world.user(2), world.user(3), world.user(4));
    let by_id = seat(&world.ask(bo, 1, join(created.instance)).unwrap());
    let by_key = seat(&world.ask(cy, 1, join_or_create("arena", Some("party"))).unwrap());
    let by_kind = seat(&world.ask(di, 1, join_or_create("arena", None)).unwrap());
    let mut seats = [own.seat.0, by_id.seat.0, by_key.seat.0, by_kind.seat.0];
    seats.sort_unstable();
    assert_eq!(seats, [0, 1, 2, 3]);
    assert_eq!(world.list("arena").instances[0].seats_taken, 4);
}

#[test]
fn an_expected_user_who_never_comes_costs_nothing_once_the_reservation_is_over() {
    let mut world = World::small();
    let ann = world.user(1);
    world.ask(ann, 1, create_for("duel", None, users(2..=3)));
    // While the instance is made, no time runs.
    world.pass(60_000);
    world.make_all("g1");
    assert_eq!(world.list("duel").instances[0].seats_taken, 2);
    world.pass(14_999);
    assert_eq!(world.list("duel").instances[0].seats_taken, 2);
    world.pass(1);
    assert_eq!(world.list("duel").instances[0].seats_taken, 0);
    // Nobody was in it: there is nobody whom the game server would have to send away.
    assert!(world.told("g1").is_empty());
    let bo = world.user(2);
    assert_eq!(
        world.ask(bo, 1, join_or_create("duel", None)).map(|outcome| seat(&outcome).seat),
        Some(Seat(0))
    );
}

#[test]
fn more_expected_users_than_seats_are_refused_by_name() {
    let mut world = World::small();
    let ann = world.user(1);
    let too_many = world.ask(ann, 1, join_or_create_for("duel", None, users(2..=3))).unwrap();
    assert_eq!(code(&too_many), Code::InstanceFull);
    let Outcome::Refused(refusal) = too_many else { panic!() };
    assert_eq!(refusal.message, "an instance of \"duel\" has 2 seats, and 3 are wanted");
    // Nothing was made for nobody; and said twice, or of oneself, it is one seat.
    assert_eq!(world.state.instances(), 0);
    let twice = users([1, 2, 2, 1]);
    assert_eq!(world.ask(ann, 2, join_or_create_for("duel", None, twice)), None);
    world.make_all("g1");
    let bo = world.user(3);
    assert_eq!(world.ask(bo, 1, join_or_create("duel", Some("k"))), None);
    let cy = world.user(5);
    let full = world.ask(cy, 1, join_or_create_for("duel", Some("k"), users(6..=6))).unwrap();
    let Outcome::Refused(refusal) = full else { panic!() };
    assert_eq!(refusal.message, "2 seats are wanted; free are 1 of 2");
}

#[test]
fn with_friends_one_moves_on_to_an_instance_with_room_for_all() {
    let mut world = World::small();
    let (_, first) = world.play(1, "duel", None);
    let bo = world.user(2);
    // The one with a free seat is not enough for two.
    assert_eq!(world.ask(bo, 1, join_or_create_for("duel", None, users(3..=3))), None);
    let second = seat(&world.make_all("g1")[0].outcome);
    assert_ne!(second.instance, first.instance);
    // One alone fills the first, and the friend comes to the second.
    let (cy, di) = (world.user(3), world.user(4));
    assert_eq!(
        seat(&world.ask(di, 1, join_or_create("duel", None)).unwrap()).instance,
        first.instance
    );
    assert_eq!(
        seat(&world.ask(cy, 1, join_or_create("duel", None)).unwrap()).instance,
        second.instance
    );
}

#[test]
fn a_friend_who_has_a_seat_there_needs_no_other() {
    let mut world = World::small();
    let (ann, granted) = world.play(1, "duel", Some("x"));
    let bo = world.user(2);
    let again = world.ask(bo, 1, join_or_create_for("duel", Some("x"), users(1..=1))).unwrap();
    assert_eq!(seat(&again).instance, granted.instance);
    assert_eq!(world.list("duel").instances[0].seats_taken, 2);
    // And whoever has one may bring nobody into a full one.
    let full = world.ask(ann, 2, join_or_create_for("duel", Some("x"), users(3..=3))).unwrap();
    assert_eq!(code(&full), Code::InstanceFull);
}

#[test]
fn a_closed_instance_expects_nobody() {
    let mut world = World::small();
    let ann = world.user(1);
    world.ask(ann, 1, create_for("duel", None, users(2..=3)));
    world.refuse_all("g1", "not today");
    let bo = world.user(2);
    assert_eq!(world.ask(bo, 1, join_or_create("duel", None)), None);
    assert_eq!(world.state.instances(), 1);
}

// Filters.

#[test]
fn thirty_two_racing_with_one_filter_meet_in_one_instance_while_there_are_seats() {
    let mut world = World::small();
    let ranked = "mode = \"ranked\"";
    let sessions: Vec<SessionId> = (0..32).map(|number| world.user(number)).collect();
    for &session in &sessions[..16] {
        assert_eq!(world.ask(session, 1, join_or_create_where("arena", None, ranked)), None);
    }
    assert_eq!(world.state.instances(), 1);
    for &session in &sessions[16..31] {
        assert_eq!(world.ask(session, 1, join_or_create_where("arena", None, ranked)), None);
    }
    assert_eq!(world.state.instances(), 2);
    // Another filter is another instance.
    world.ask(sessions[31], 1, join_or_create_where("arena", None, "mode = \"casual\""));
    assert_eq!(world.state.instances(), 3);
    let meta: Meta = [("mode".into(), MetaValue::Text("ranked".into()))].into();
    assert_eq!(world.make_all_with("g1", &meta).len(), 32);
    // Once they run, what they say of themselves decides: the second has a free seat.
    let late = world.user(40);
    let joined = seat(&world.ask(late, 1, join_or_create_where("arena", None, ranked)).unwrap());
    assert_eq!(joined.seat, Seat(15));
    assert_eq!(world.state.instances(), 3);
}

#[test]
fn a_seat_in_an_instance_that_the_filter_does_not_let_through_is_not_come_back_to() {
    let mut world = World::small();
    let ann = world.user(1);
    world.ask(ann, 1, join_or_create_where("arena", None, "mode = \"casual\""));
    let meta: Meta = [("mode".into(), MetaValue::Text("casual".into()))].into();
    let casual = seat(&world.make_all_with("g1", &meta)[0].outcome);
    let again =
        world.ask(ann, 2, join_or_create_where("arena", None, "mode = \"casual\"")).unwrap();
    assert_eq!(seat(&again).instance, casual.instance);
    assert_eq!(world.ask(ann, 3, join_or_create_where("arena", None, "mode = \"ranked\"")), None);
    assert_eq!(world.state.instances(), 2);
}

#[test]
fn beside_a_key_a_filter_decides_nothing() {
    let mut world = World::small();
    let (_, granted) = world.play(1, "arena", Some("x"));
    let bo = world.user(2);
    let joined = world.ask(bo, 1, join_or_create_where("arena", Some("x"), "mode = \"ranked\""));
    assert_eq!(seat(&joined.unwrap()).instance, granted.instance);
}

#[test]
fn a_filter_that_means_nothing_is_refused_and_makes_nothing() {
    let mut world = World::small();
    let ann = world.user(1);
    let code_of = |world: &mut World, id, filter| {
        code(&world.ask(ann, id, join_or_create_where("arena", None, filter)).unwrap())
    };
    assert_eq!(code_of(&mut world, 1, "moon = 3"), Code::FieldUnknown);
    assert_eq!(code_of(&mut world, 2, "mode = 3"), Code::FieldMismatch);
    assert_eq!(world.state.instances(), 0);
}

// After a master has lost its memory.

fn restarted() -> World {
    let mut world = World::with(Settings::default());
    world.session_up("s1");
    world
}

#[test]
fn after_a_restart_nobody_gets_a_twin_of_what_a_game_server_has_yet_to_tell_of() {
    let mut world = restarted();
    let (ann, bo) = (world.user(1), world.user(2));
    world.game_up("g2");
    // Both wait: g1 may have it.
    assert_eq!(world.ask(ann, 1, join_or_create("arena", Some("x"))), None);
    assert_eq!(world.ask(bo, 1, create("arena", Some("x"))), None);
    assert_eq!(world.state.instances(), 0);
    let mut report = World::game_report("g1", 1_000);
    report.instances.push(World::held(InstanceId(7), "arena", Some("x")));
    world.game_reports("g1", report);
    // At once, not at the end of the time.
    let answers = world.answers();
    assert_eq!(seat(&answers[0].outcome).instance, InstanceId(7));
    assert!(matches!(&answers[1].outcome, Outcome::Created(created)
        if created.instance == InstanceId(7)));
    assert_eq!(world.state.instances(), 1);
}

#[test]
fn after_a_restart_what_nobody_has_is_made_when_the_time_is_over_once_and_in_order() {
    let mut world = restarted();
    world.game_up("g1");
    let sessions: Vec<SessionId> = (0..32).map(|number| world.user(number)).collect();
    for &session in &sessions {
        assert_eq!(world.ask(session, 1, join_or_create("arena", Some("x"))), None);
    }
    // Asked again it waits all the same, and a request without a key does not.
    assert_eq!(world.ask(sessions[0], 1, join_or_create("arena", Some("x"))), None);
    world.ask(sessions[0], 2, create("duel", None));
    assert_eq!(world.makes("g1").len(), 1);
    world.pass(2_999);
    assert!(world.makes("g1").is_empty());
    world.pass(1);
    // Sixteen have seats, in the order in which they asked; the others hear at once that it is full.
    let full = world.all.iter().filter(|effect| {
        matches!(effect, Effect::ToSession(_, MasterToSession::Answer(answer))
            if matches!(&answer.outcome, Outcome::Refused(no) if no.code == Code::InstanceFull))
    });
    assert_eq!(full.count(), 16);
    let answers = world.make_all("g1");
    let seated: Vec<SessionId> = answers.iter().map(|answer| answer.session).collect();
    assert_eq!(seated, sessions[..16]);
    assert_eq!(world.state.instances(), 2);
    // From here on nobody waits.
    world.ask(sessions[20], 2, join_or_create("arena", Some("y")));
    assert_eq!(world.makes("g1").len(), 1);
}

#[test]
fn after_a_restart_nobody_is_told_that_an_instance_is_gone_before_that_is_known() {
    let mut world = restarted();
    let (ann, bo) = (world.user(1), world.user(2));
    assert_eq!(world.ask(ann, 1, join(InstanceId(7))), None);
    assert_eq!(world.ask(bo, 1, join(InstanceId(8))), None);
    let mut report = World::game_report("g1", 1_000);
    report.instances.push(World::held(InstanceId(7), "arena", None));
    world.game_reports("g1", report);
    assert_eq!(seat(&world.answers()[0].outcome).instance, InstanceId(7));
    world.pass(3_000);
    let last = world.answers().pop().unwrap();
    assert_eq!((last.session, code(&last.outcome)), (bo, Code::InstanceUnknown));
}

#[test]
fn a_cluster_that_never_ran_before_waits_for_nobody() {
    let mut world = World::small();
    let ann = world.user(1);
    world.ask(ann, 1, join_or_create("arena", Some("x")));
    assert_eq!(world.makes("g1").len(), 1);
    assert_eq!(code(&world.ask(ann, 2, join(InstanceId(7))).unwrap()), Code::InstanceUnknown);
}

#[test]
fn a_request_of_a_session_that_ended_while_it_waited_makes_nothing() {
    let mut world = restarted();
    world.game_up("g1");
    let ann = world.user(1);
    world.ask(ann, 1, join_or_create("arena", Some("x")));
    world.act(Action::Kick { user: UserId::new("user 1").unwrap() }).unwrap();
    world.pass(3_000);
    assert_eq!(world.state.instances(), 0);
}

#[test]
fn of_two_instances_that_claim_one_key_the_older_stays() {
    for (first, second, stays) in [(500, 400, 8), (400, 500, 7), (500, 500, 7)] {
        let mut world = World::new();
        for (game, id, created_ms) in [("g1", 7, first), ("g2", 8, second)] {
            let held = World::held(InstanceId(id), "arena", Some("x"));
            let mut report = World::game_report(game, 1_000);
            report.instances.push(HeldInstance { created_ms, ..held });
            world.game_reports(game, report);
        }
        assert_eq!(world.state.twins(), 1);
        let listed = world.list("arena").instances;
        assert_eq!(listed.iter().map(|listed| listed.instance.0).collect::<Vec<_>>(), [stays]);
        // The other one is told to stop; what it says afterwards brings nothing back.
        let loser = if stays == 7 { "g2" } else { "g1" };
        let told = world.told(loser);
        assert!(
            matches!(&told[..], [MasterToGame::Destroy(stop)] if stop.instance.0 == 15 - stays)
        );
        world.closed(loser, InstanceId(15 - stays), Incarnation(9), Code::InstanceLost);
        world.session_up("s1");
        let ann = world.user(1);
        let joined = world.ask(ann, 1, join_or_create("arena", Some("x"))).unwrap();
        assert_eq!(seat(&joined).instance, InstanceId(stays));
    }
}

#[test]
fn a_session_that_only_a_game_server_told_of_goes_on_with_its_user() {
    let mut world = World::new();
    let session = SessionId(8);
    let user = UserId::new("ann").unwrap();
    let seats = vec![HeldSeat { seat: Seat(3), user, session, away: true }];
    let mut report = World::game_report("g1", 10);
    report.instances.push(HeldInstance { seats, ..World::held(InstanceId(7), "arena", None) });
    world.game_reports("g1", report);
    // Its session server is gone for good; the client comes to another one.
    world.now_ms = 1_700_000_000_000;
    world.session_up("s2");
    let bound = world.bind("s2", 1, "ann").unwrap();
    assert_eq!(bound.session, session);
    // The game server has seen the fourth binding: this one is newer.
    assert!(bound.generation > Generation(4));
    assert_eq!(
        seat(&world.ask_at("s2", session, 12, 0, join(InstanceId(7))).unwrap()).seat,
        Seat(3)
    );
    // Should the first session server be back after all, it has an older binding.
    let sessions = vec![World::held_session(session, 1, "ann")];
    world.session_report("s1", SessionReport { sessions, ..session_report("s1") });
    assert_eq!(world.ended("s1")[0].refusal.code, Code::Superseded);
    assert_eq!(world.bind("s2", 1, "ann").unwrap().session, session);
}

#[test]
fn a_session_key_is_one_session_however_it_is_told_of() {
    let mut world = World::new();
    world.session_up("s2");
    let bound = world.bind("s2", 1, "ann").unwrap();
    let sessions = vec![World::held_session(SessionId(8), 1, "ann")];
    world.session_report("s1", SessionReport { sessions, ..session_report("s1") });
    assert_eq!(world.ended("s1")[0].session, SessionId(8));
    assert_eq!(
        (world.state.users(), world.bind("s2", 1, "ann").unwrap().session),
        (1, bound.session)
    );
}

// Placement.

fn kinds(world: &mut World, game: &str, labels: &[&str], capacity: u32, needs: &str, weight: u32) {
    let mut report = World::game_report(game, capacity);
    report.labels = labels.iter().map(|&label| label.into()).collect();
    report.kinds[0].needs = vec![needs.into()];
    report.kinds[0].weight = weight;
    world.game_reports(game, report);
}

/// Method: three game servers, of which one lacks the label, one is small and one is large; an arena weighs three.
#[test]
fn labels_capacity_and_weight_decide_placement() {
    let mut world = World::new();
    world.session_up("s1");
    kinds(&mut world, "g1", &["eu"], 100, "gpu", 3);
    kinds(&mut world, "g2", &["eu", "gpu"], 4, "gpu", 3);
    kinds(&mut world, "g3", &["gpu"], 6, "gpu", 3);
    let ann = world.user(1);
    let mut placed = Vec::new();
    for id in 1..=3 {
        assert_eq!(world.ask_at("s1", ann, id, id - 1, create("arena", None)), None);
        placed
            .extend(["g1", "g2", "g3"].into_iter().filter(|game| !world.make_all(game).is_empty()));
    }
    assert_eq!(placed, ["g3", "g2", "g3"]);
    let refused = world.ask(ann, 4, create("arena", None)).unwrap();
    let Outcome::Refused(refusal) = refused else { panic!("{refused:?}") };
    assert_eq!(refusal.code, Code::NoCapacity);
    assert_eq!(
        refusal.message,
        "no game server takes another \"arena\" now: 2 servers are full, 1 server lacks the label gpu; try again, or \
         add a game server"
    );
    // Duels weigh one, and need no label.
    assert_eq!(world.ask(ann, 5, create("duel", None)), None);
    assert_eq!(world.makes("g1").len(), 1);
}

#[test]
fn placement_says_of_every_server_why() {
    let mut world = World::new();
    for (game, capacity) in [("g1", 10), ("g2", 0), ("g3", 10), ("g4", 10), ("g5", 10)] {
        world.game_reports(game, World::game_report(game, capacity));
    }
    world.link_lost(Role::Game, "g3");
    world.act(Action::Drain { server: server("g4") }).unwrap();
    let mut report = World::game_report("g6", 10);
    report.kinds.remove(0);
    world.game_reports("g6", report);
    let placement = world.state.explain_placement(&world::kind("arena")).unwrap();
    assert_eq!(placement.server, Some(server("g1")));
    let verdicts: Vec<(&str, &str)> = placement
        .considered
        .iter()
        .map(|considered| (considered.server.as_str(), &*considered.verdict))
        .collect();
    assert_eq!(
        verdicts,
        [
            ("g1", "chosen"),
            ("g2", "it says that its capacity is 0"),
            ("g3", "suspect: its link is gone"),
            ("g4", "draining: it is given nothing new"),
            ("g5", "it has room; another one was chosen"),
            ("g6", "it does not run this kind"),
        ]
    );
    let unknown = world.state.explain_placement(&world::kind("chess")).unwrap_err();
    assert_eq!(unknown.code, Code::KindUnknown);
}

#[test]
fn what_a_game_server_says_that_can_not_be_is_named_and_it_is_given_none_of_it() {
    let mut world = World::new();
    world.session_up("s1");
    let mut report = World::game_report("g1", 10);
    let (arena, duel) = (report.kinds[0].clone(), report.kinds[1].clone());
    let named = |name, kind: &KindInfo| KindInfo { name: world::kind(name), ..kind.clone() };
    report.kinds = vec![
        KindInfo { weight: 0, ..named("light", &arena) },
        KindInfo { seats_max: 0, ..named("nobody", &arena) },
        KindInfo { weight: 11, ..named("heavy", &arena) },
        arena.clone(),
        arena,
        duel,
    ];
    let faults = world.game_reports("g1", report).into_iter().filter_map(|effect| match effect {
        Effect::Illegal { what, .. } => Some(what.to_string()),
        Effect::Welcome(..)
        | Effect::Renewed(..)
        | Effect::ToSession(..)
        | Effect::Acted { .. } => None,
    });
    let faults: Vec<String> = faults.collect();
    assert_eq!(
        faults,
        [
            "the kind \"arena\" more than once: it is given none of it",
            "the kind \"light\" with a weight of 0: it is given none of it",
            "the kind \"nobody\" with no seats: it is given none of it",
            "the kind \"heavy\" with a weight of 11, and a capacity of 10: it is given none of it",
        ]
    );
    let ann = world.user(1);
    for (id, kind, why) in [
        (1, "light", Code::KindUnknown),
        (2, "nobody", Code::KindUnknown),
        (3, "arena", Code::KindUnknown),
        (4, "heavy", Code::NoCapacity),
    ] {
        assert_eq!(code(&world.ask(ann, id, create(kind, None)).unwrap()), why, "{kind}");
    }
    assert_eq!(world.ask(ann, 5, create("duel", None)), None);
    let empty = world.game_reports("g2", World::game_report("g2", 0));
    assert!(matches!(&empty[..], [Effect::Illegal { what, .. }, Effect::Welcome(..)]
        if what == "a capacity of 0: it is given nothing"));
}

#[derive(Debug)]
struct NoPlace;

impl Placement for NoPlace {
    fn choose(&self, order: &Order<'_>, candidates: &[Candidate<'_>]) -> Option<usize> {
        (order.kind.as_str() == "duel").then_some(candidates.len())
    }
}

#[test]
fn a_placement_that_chooses_nobody_or_a_server_that_there_is_not_refuses() {
    let settings = Settings { rejoin_grace_ms: 0, ..Settings::default() };
    let mut world = World::of(State::with_placement(&secret(), settings, Arc::new(NoPlace)));
    world.session_up("s1");
    world.game_up("g1");
    let ann = world.user(1);
    assert_eq!(code(&world.ask(ann, 1, create("duel", None)).unwrap()), Code::NoCapacity);
    assert_eq!(code(&world.ask(ann, 2, create("arena", None)).unwrap()), Code::NoCapacity);
}

#[derive(Debug)]
struct Panics;

impl Placement for Panics {
    fn choose(&self, _: &Order<'_>, _: &[Candidate<'_>]) -> Option<usize> {
        panic!("a bug of a game's own placement")
    }
}

#[test]
fn a_state_in_which_a_command_panicked_does_nothing_more_whoever_caught_that() {
    let settings = Settings { rejoin_grace_ms: 0, ..Settings::default() };
    let mut world = World::of(State::with_placement(&secret(), settings, Arc::new(Panics)));
    world.session_up("s1");
    world.game_up("g1");
    let ann = world.user(1);
    let caught = |act: &mut dyn FnMut()| {
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
        let panic = caught.unwrap_err();
        panic.downcast_ref::<String>().cloned().unwrap_or_default()
    };
    caught(&mut || drop(world.ask(ann, 1, create("duel", None))));
    let texts = [
        caught(&mut || drop(world.apply(Command::Expire))),
        caught(&mut || drop(world.state.freeze())),
        caught(&mut || assert_eq!(world.state.check(), 0)),
    ];
    for text in texts {
        assert!(text.contains("was not applied to its end"), "{text}");
    }
}

#[test]
fn a_search_waits_until_servers_had_time_to_say_what_they_have() {
    let mut world = World::with(Settings::default());
    world.session_up("s1");
    let ann = world.user(1);
    let search = |id, world: &mut World| world.ask(ann, id, world::everything("arena").into());
    let watch = Watch { kind: world::kind("arena"), filter: Default::default() };
    // The first server has reported, and the second may have what is looked for.
    world.game_up("g1");
    assert!(world.state.is_rejoining());
    assert_eq!(search(1, &mut world), None);
    assert_eq!(world.ask(ann, 2, watch.into()), None);
    let mut report = World::game_report("g2", 1_000);
    report.instances.push(World::held(InstanceId(7), "arena", Some("k")));
    world.game_reports("g2", report);
    world.pass(3_000);
    let answers: Vec<Answer> = (world.all.iter())
        .filter_map(|effect| match effect {
            Effect::ToSession(_, MasterToSession::Answer(answer)) => Some(answer.clone()),
            _ => None,
        })
        .collect();
    assert!(!world.state.is_rejoining());
    let found = |outcome: &Outcome| match outcome {
        Outcome::Found(found) => found.instances.len(),
        other => panic!("{other:?}"),
    };
    assert_eq!(found(&answers.iter().find(|answer| answer.id.0 == 1).unwrap().outcome), 1);
    assert!(answers.iter().any(|answer| matches!(answer.outcome, Outcome::Watching(_))));
    assert_eq!(found(&search(3, &mut world).unwrap()), 1);
}

// Rank boards.

fn scored(granted: &Granted, board: &str, user: u8, score: Option<i64>) -> Event {
    Event::Scored(Scored {
        instance: granted.instance,
        incarnation: granted.incarnation,
        board: board.into(),
        user: UserId::new(format!("user {user}")).unwrap(),
        name: format!("name {user}").into(),
        score,
    })
}

fn ranks(world: &World, part: RankPart, limit: u16, session: SessionId) -> Vec<(u64, String, i64)> {
    let rank = Rank { board: "week".into(), part, limit };
    match world.state.rank(&rank, session) {
        Outcome::Ranking(ranking) => (ranking.ranks.iter())
            .map(|ranked| (ranked.rank, ranked.user.to_string(), ranked.score))
            .collect(),
        other => panic!("no ranking: {other:?}"),
    }
}

#[test]
fn games_write_scores_and_everybody_reads_their_ranks() {
    let mut world = World::small();
    let (ann, granted) = world.play(5, "arena", None);
    for user in 1..=9 {
        world.happened("g1", scored(&granted, "week", user, Some(i64::from(user) * 10)));
    }
    let top = ranks(&world, RankPart::From(1), 2, ann);
    assert_eq!(top, [(1, "user 9".into(), 90), (2, "user 8".into(), 80)]);
    // The caller is user 5, in the middle.
    let around = ranks(&world, RankPart::Around(None), 3, ann);
    assert_eq!(around.iter().map(|(rank, ..)| *rank).collect::<Vec<_>>(), [4, 5, 6]);
    assert_eq!(around[1].1, "user 5");
    let other = RankPart::Around(Some(UserId::new("user 1").unwrap()));
    assert_eq!(ranks(&world, other, 1, ann), [(9, "user 1".into(), 10)]);
    // Who leaves the board is no longer there, and everybody behind moves up.
    world.happened("g1", scored(&granted, "week", 9, None));
    assert_eq!(ranks(&world, RankPart::From(1), 1, ann), [(1, "user 8".into(), 80)]);
}

#[test]
fn a_rank_of_nobody_or_of_no_board_and_a_limit_of_0_are_refused_by_name() {
    let mut world = World::small();
    let (ann, granted) = world.play(1, "arena", None);
    world.happened("g1", scored(&granted, "week", 2, Some(1)));
    let rank = |board: &str, part, limit| Rank { board: board.into(), part, limit };
    for (rank, why) in [
        (rank("month", RankPart::From(1), 1), Code::RankUnknown),
        (rank("week", RankPart::Around(None), 1), Code::RankUnknown),
        (rank("week", RankPart::From(1), 0), Code::LimitInvalid),
        (rank("week", RankPart::From(1), 101), Code::LimitInvalid),
    ] {
        assert_eq!(code(&world.state.rank(&rank, ann)), why);
    }
    for board in ["", "a\nboard", &"x".repeat(65)] {
        let effects = world.happened("g1", scored(&granted, board, 1, Some(1)));
        assert!(matches!(&effects[..], [Effect::Illegal { .. }]), "{board:?}");
    }
    // A score of an instance that is not that server's is nobody's.
    world.game_up("g2");
    let effects = world.happened("g2", scored(&granted, "week", 1, Some(1)));
    assert!(matches!(&effects[..], [Effect::Illegal { .. }]));
}

// Health and drain.

#[test]
fn a_drained_server_stays_drained_until_its_process_ends() {
    let mut world = World::small();
    world.session_up("s2");
    world.act(Action::Drain { server: server("g1") }).unwrap();
    world.act(Action::Drain { server: server("s2") }).unwrap();
    let states = |world: &World| {
        let sessions = world.state.session_status();
        let games = world.state.game_status();
        [&sessions[1], &games[0]].map(|status| status.state.to_string())
    };
    // Neither what they say of their load nor a report on a new link undoes what the operator said.
    world.game_load("g1", 10);
    let load = SessionLoad {
        connections: 0,
        busy_permille: 0,
        draining: false,
        counts: SessionCounts::default(),
    };
    world.apply(Command::SessionLoad(world.origin("s2"), load));
    world.link_lost(Role::Game, "g1");
    world.game_up("g1");
    world.link_lost(Role::Session, "s2");
    world.session_up("s2");
    assert_eq!(states(&world), ["draining", "draining"]);
    assert_eq!(world.bind("s1", 1, "ann").unwrap().session_servers.len(), 1);
    let ann = world.user(2);
    assert_eq!(code(&world.ask(ann, 1, create("arena", None)).unwrap()), Code::NoCapacity);
    world.restart("g1");
    world.game_up("g1");
    world.restart("s2");
    world.session_up("s2");
    assert_eq!(states(&world), ["up", "up"]);
    assert_eq!(world.ask(ann, 2, create("arena", None)), None);
}

#[test]
fn suspect_is_not_dead() {
    let mut world = World::small();
    let (ann, granted) = world.play(1, "arena", None);
    world.link_lost(Role::Game, "g1");
    assert_eq!(world.state.game_status()[0].state, "suspect");
    world.pass(14_999);
    // Nothing is taken from it: found, known, and its seat is its holder's.
    assert_eq!(world.list("arena").instances.len(), 1);
    assert_eq!(world.list("arena").instances[0].seats_taken, 1);
    assert_eq!(seat(&world.ask(ann, 2, join(granted.instance)).unwrap()), granted);
    world.game_up("g1");
    assert_eq!(world.state.game_status()[0].state, "up");
    world.pass(120_000);
    let bo = world.user(2);
    let joined = seat(&world.ask(bo, 1, join_or_create("arena", None)).unwrap());
    assert_eq!(joined.instance, granted.instance);
}

#[test]
fn a_key_is_not_given_away_before_the_lease_of_a_lost_server_is_over() {
    let mut world = World::small();
    world.play(1, "arena", Some("x"));
    world.game_up("g2");
    world.link_lost(Role::Game, "g1");
    let bo = world.user(2);
    world.pass(LEASE_MS);
    // It may still be running there: who asks for the key is sent there or waits, and nothing is made elsewhere.
    world.ask(bo, 1, join_or_create("arena", Some("x")));
    assert!(world.makes("g2").is_empty());
    assert_eq!(world.state.instances(), 1);
    world.pass(5_000);
    assert_eq!(world.ask(bo, 2, join_or_create("arena", Some("x"))), None);
    assert_eq!(world.makes("g2").len(), 1);
}

// Failure modes that others have listed in public: opentogethertube's issue 2047.

/// There: two servers hold the same room, both write, and the last one wins.
#[test]
fn the_same_instance_reported_by_two_servers_runs_on_one() {
    let mut world = World::new();
    for game in ["g1", "g2"] {
        let mut report = World::game_report(game, 1_000);
        report.instances.push(World::held(InstanceId(7), "arena", Some("x")));
        world.game_reports(game, report);
    }
    assert!(world.told("g1").is_empty());
    assert!(matches!(&world.told("g2")[..], [MasterToGame::Destroy(stop)]
        if stop.instance == InstanceId(7)));
    // The second one's words about it are nobody's.
    let closed = Closed {
        instance: InstanceId(7),
        incarnation: Incarnation(9),
        refusal: Refusal::new(Code::Destroyed, "as told"),
    };
    world.happened("g2", Event::Closed(closed));
    assert_eq!(world.list("arena").instances.len(), 1);
}

/// There: a snapshot that a server sent before it heard of a room removes the room, and strands who is joining.
#[test]
fn a_report_that_was_sent_before_the_create_arrived_does_not_remove_the_instance() {
    let mut world = World::small();
    let ann = world.user(1);
    assert_eq!(world.ask(ann, 1, join_or_create("arena", Some("x"))), None);
    // The link breaks and comes back, and the report does not know of the instance.
    world.link_lost(Role::Game, "g1");
    world.game_up("g1");
    assert_eq!(world.state.instances(), 1);
    // The create is still in its stream, and who joined is answered.
    let answers = world.make_all("g1");
    assert_eq!(answers.len(), 1);
    assert_eq!(seat(&answers[0].outcome).seat, Seat(0));
}

/// There: a restarted server is believed, and so is what its earlier life still had to say.
#[test]
fn late_words_of_an_earlier_life_of_a_server_change_nothing() {
    let mut world = World::small();
    let (_, granted) = world.play(1, "arena", Some("x"));
    let earlier = world.origin("g1");
    world.restart("g1");
    world.game_up("g1");
    let bo = world.user(2);
    assert_eq!(world.ask(bo, 1, join_or_create("arena", Some("x"))), None);
    let made = world.makes("g1").pop().unwrap();
    for (n, event) in [
        (
            2,
            Event::Closed(Closed {
                instance: made.instance,
                incarnation: made.incarnation,
                refusal: Refusal::new(Code::Destroyed, "late"),
            }),
        ),
        (
            3,
            Event::SeatChanged(SeatChanged {
                instance: granted.instance,
                incarnation: granted.incarnation,
                seat: Seat(0),
                session: bo,
                state: SeatState::Taken,
            }),
        ),
    ] {
        assert!(world.apply(Command::Happened(earlier.clone(), n, event)).is_empty());
    }
    assert!(world.apply(Command::LinkLost(Role::Game, earlier)).is_empty());
    assert_eq!(world.state.game_status()[0].state, "up");
    assert_eq!(world.state.instances(), 1);
}

/// There: a room is unloaded while somebody joins it, and the joiner stays behind in a room that nobody has.
#[test]
fn who_joins_while_the_instance_closes_hears_it_or_gets_the_next_one() {
    let mut world = World::small();
    let (_, granted) = world.play(1, "arena", Some("x"));
    let (bo, cy) = (world.user(2), world.user(3));
    // Granted just before the game server says that it is closed.
    assert_eq!(seat(&world.ask(bo, 1, join(granted.instance)).unwrap()).seat, Seat(1));
    world.closed("g1", granted.instance, granted.incarnation, Code::InstanceClosed);
    // Just after: by id it is gone, by key there is a next one, and the seat is nobody's.
    assert_eq!(code(&world.ask(cy, 1, join(granted.instance)).unwrap()), Code::InstanceClosed);
    assert_eq!(world.ask(bo, 2, join_or_create("arena", Some("x"))), None);
    assert_eq!(world.ask(cy, 2, join_or_create("arena", Some("x"))), None);
    let seats: Vec<u16> =
        world.make_all("g1").iter().map(|answer| seat(&answer.outcome).seat.0).collect();
    assert_eq!(seats, [0, 1]);
    assert_eq!(world.state.instances(), 1);
}

/// There: a client's disconnect finds no room and is forgotten, so that it stays a member for ever.
#[test]
fn a_seat_of_a_session_that_ended_while_its_instance_was_made_is_free() {
    let mut world = World::small();
    let ann = world.user(1);
    assert_eq!(world.ask(ann, 1, join_or_create("duel", Some("x"))), None);
    world.act(Action::Kick { user: UserId::new("user 1").unwrap() }).unwrap();
    world.make_all("g1");
    assert_eq!(world.list("duel").instances[0].seats_taken, 0);
}

/// Every report comes twice, as after a takeover in which the servers told both masters.
#[test]
fn reports_that_come_twice_count_once() {
    let mut world = World::new();
    let mut report = World::game_report("g1", 1_000);
    let user = UserId::new("ann").unwrap();
    let seats = vec![HeldSeat { seat: Seat(0), user, session: SessionId(8), away: false }];
    report.instances.push(HeldInstance { seats, ..World::held(InstanceId(7), "arena", Some("x")) });
    let sessions = vec![World::held_session(SessionId(8), 1, "ann")];
    for _ in 0..2 {
        world.game_reports("g1", report.clone());
        let report = SessionReport { sessions: sessions.clone(), ..session_report("s1") };
        world.session_report("s1", report);
    }
    assert_eq!((world.state.users(), world.state.instances()), (1, 1));
    assert_eq!(world.list("arena").instances[0].seats_taken, 1);
    assert!(world.told("g1").is_empty());
    assert!(world.ended("s1").is_empty());
}

fn verdicts(world: &World) -> Vec<String> {
    let placement = world.state.explain_placement(&world::kind("arena")).unwrap();
    placement.considered.iter().map(|considered| considered.verdict.to_string()).collect()
}

/// Method: `g1` is stopped and keeps its link, and by room alone it would be chosen every second time.
#[test]
fn a_game_server_that_has_gone_silent_is_given_nothing_while_another_speaks_and_has_room() {
    let mut world = World::small();
    world.game_reports("g2", World::game_report("g2", 1_000));
    let ann = world.user(1);
    let placed = |world: &mut World, id: u32| {
        assert_eq!(world.ask_at("s1", ann, id, id - 1, create("arena", None)), None);
        ["g1", "g2"].map(|game| world.make_all(game).len())
    };
    // A report that is 3 s old is fresh still.
    world.pass(3_000);
    world.game_load("g2", 900);
    assert_eq!(placed(&mut world, 1), [1, 0]);
    world.pass(1_200);
    world.game_load("g2", 900);
    assert_eq!(verdicts(&world), ["it has said nothing for 4.2 s", "chosen"]);
    for id in 2..=5 {
        assert_eq!(placed(&mut world, id), [0, 1]);
    }
    // It speaks again.
    world.game_load("g1", 0);
    assert_eq!(verdicts(&world), ["chosen", "it has room; another one was chosen"]);
    assert_eq!(placed(&mut world, 6), [1, 0]);
}

#[test]
fn where_all_game_servers_are_silent_they_are_all_used() {
    let mut world = World::small();
    world.game_reports("g2", World::game_report("g2", 1_000));
    let ann = world.user(1);
    world.pass(4_000);
    for (id, expected) in [(1, [1, 0]), (2, [0, 1]), (3, [1, 0])] {
        assert_eq!(world.ask_at("s1", ann, id, id - 1, create("arena", None)), None);
        assert_eq!(["g1", "g2"].map(|game| world.make_all(game).len()), expected);
    }
    assert_eq!(verdicts(&world), ["it has room; another one was chosen", "chosen"]);
}

#[test]
fn a_silent_game_server_is_used_when_those_that_speak_are_full() {
    let mut world = World::small();
    world.pass(4_000);
    world.game_reports("g2", World::game_report("g2", 1));
    let ann = world.user(1);
    for (id, game) in [(1, "g2"), (2, "g1")] {
        assert_eq!(world.ask_at("s1", ann, id, id - 1, create("arena", None)), None);
        assert_eq!(world.make_all(game).len(), 1);
    }
}

#[test]
fn operators_see_the_labels_of_game_servers_and_find_servers_by_them() {
    let mut world = World::small();
    kinds(&mut world, "g2", &["eu", "gpu"], 10, "gpu", 1);
    let labels = |filter: Filter| -> Vec<(MetaValue, Option<MetaValue>)> {
        let find = Find { table: Table::Servers, filter, order: None, limit: 10, cursor: None };
        let rows = world.state.find(&find).unwrap().rows;
        rows.iter()
            .map(|row| (row.fields["name"].clone(), row.fields.get("labels").cloned()))
            .collect()
    };
    let text = |text: &str| MetaValue::Text(text.into());
    let g2 = (text("g2"), Some(text("eu,gpu")));
    let all = [(text("g1"), Some(text(""))), g2.clone(), (text("s1"), None)];
    assert_eq!(labels(Filter::default()), all);
    assert_eq!(labels(Filter::Prefix("labels".into(), "eu".into())), [g2]);
}

#[test]
fn a_rank_board_that_can_not_be_called_so_is_refused_without_being_named() {
    let mut world = World::small();
    let ann = world.user(1);
    let refused = |board: &str| {
        let rank = Rank { board: board.into(), part: RankPart::From(1), limit: 1 };
        match world.state.rank(&rank, ann) {
            Outcome::Refused(refusal) => refusal,
            other => panic!("{other:?}"),
        }
    };
    for board in ["", "a\nboard", &"x".repeat(65)] {
        let Refusal { code, message } = refused(board);
        assert_eq!(code, Code::NameInvalid, "{board:?}");
        assert_eq!(message, "a board has a name of 1 to 64 bytes without control characters");
    }
    assert_eq!(refused(&"x".repeat(64)).code, Code::RankUnknown);
}

/// What a game server says it runs is compared with what it may run, so that an operator sees what nobody else would.
#[test]
fn an_instance_that_the_directory_does_not_know_is_an_orphan() {
    let mut world = World::new();
    world.session_up("s1");
    world.game_up("g1");
    let (_, granted) = world.play(1, "arena", None);
    let orphans = |world: &mut World, instances| {
        let counts = GameCounts::default();
        let load =
            GameLoad { instances, seats: 0, busy_permille: 0, draining: false, sent: 0, counts };
        world.apply(Command::GameLoad(world.origin("g1"), load));
        world.state.game_status()[0].game.unwrap().orphans
    };
    assert_eq!([orphans(&mut world, 0), orphans(&mut world, 1), orphans(&mut world, 3)], [0, 0, 2]);
    let status = world.state.instance_status(granted.instance).unwrap();
    assert_eq!((status.kind, status.seats.len()), (world::kind("arena"), 1));
    assert_eq!(status.seats[0].session_server, Some(server("s1")));
    // It is told to close it, and may say that it runs until it has.
    world.act(Action::Destroy { instance: granted.instance }).unwrap();
    assert_eq!([orphans(&mut world, 1), orphans(&mut world, 2)], [0, 1]);
    let gone = world.state.instance_status(InstanceId(1)).unwrap_err();
    assert_eq!(gone.code, Code::InstanceUnknown);
    let kinds = world.state.kind_status();
    assert!(kinds.iter().any(|kind| kind.name.as_str() == "arena"), "{kinds:?}");
}

/// Everything is stopped, and started again an hour later.
#[test]
fn what_people_are_shown_goes_on_with_the_wall_clock_and_no_deadline_passes_while_nobody_decides() {
    const HOUR_MS: u64 = 3_600_000;
    let settings = Settings { session_grace_ms: 60_000, ..Settings::default() };
    let mut world = World::with(Settings { rejoin_grace_ms: 0, ..settings });
    world.session_up("s1");
    world.game_up("g1");
    let ann = world.bind("s1", 1, "ann").unwrap();
    world.ask(ann.session, 1, create("arena", Some("before")));
    world.make_all("g1");
    world.unbind("s1", &ann);
    let due = world.state.due_ms().unwrap();
    let stopped = world.now_ms;
    let untold = world.state.facts().first();

    world.now_ms += 10;
    let wall = stopped + HOUR_MS;
    world.apply(Command::ClockAt(wall));
    assert_eq!((world.state.shown_ms(), world.state.due_ms()), (wall, Some(due)));
    assert_eq!(world.state.facts().first(), untold, "nobody has told them yet");
    // Neither who decides next with a slower clock nor the same one again puts it back.
    world.apply(Command::ClockAt(wall - 60_000));
    world.apply(Command::ClockAt(0));
    assert_eq!(world.state.shown_ms(), wall);
    world.go_on_restored();
    assert_eq!(world.state.shown_ms(), wall, "a snapshot has it");

    world.game_load("g1", 0);
    let ben = world.bind("s1", 2, "ben").unwrap();
    world.ask(ben.session, 1, create("arena", Some("after")));
    world.make_all("g1");
    let mut created: Vec<u64> =
        world.list("arena").instances.iter().map(|listed| listed.created_ms).collect();
    created.sort_unstable();
    assert_eq!(created, [stopped, wall]);
    let stamps: Vec<(u64, u64)> =
        world.state.facts().from(0).map(|fact| (fact.at_ms, fact.lsn)).collect();
    assert!(stamps.is_sorted(), "ids of events only grow: {stamps:?}");
    assert_eq!(stamps.last().unwrap().0, wall);
    let checked_in = world.state.documents().from(0).map(|told| told.at_ms).max();
    assert_eq!(checked_in, Some(wall));
    let filter = Filter::Ge("last_report".into(), MetaValue::Int(wall.cast_signed()));
    let (table, limit) = (Table::Servers, 10);
    let find = Find { table, filter, order: None, limit, cursor: None };
    let found = world.state.find(&find).unwrap();
    assert_eq!(found.rows.len(), 1, "g1 has reported since, s1 has not: {found:?}");

    // Ann has her whole minute, and not a moment more.
    world.pass(due - world.now_ms - 1);
    let over = |world: &World| {
        let mut facts = world.state.facts().from(0);
        facts.any(|fact| matches!(&fact.what, Fact::SessionEnded(_, session, _) if *session == ann.session))
    };
    assert!(!over(&world));
    world.pass(1);
    assert!(over(&world));

    // Who replays the log comes to the same.
    let mut first = State::new(&secret(), world.state.settings());
    let mut effects = Vec::new();
    for (header, command) in world.log.entries() {
        first.apply(header, command, &mut effects);
    }
    assert_eq!(first.state_hash(), world.state.state_hash());
    assert_eq!((first.shown_ms(), effects), (world.state.shown_ms(), world.all));
}
