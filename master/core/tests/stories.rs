//! What the master promises, each as a small story.

mod world;

use greenroom_master_core::{Command, Effect, Event};
use greenroom_protocol::wire::admin_master::Action;
use greenroom_protocol::wire::client_session::{Request, Search};
use greenroom_protocol::wire::master_game::{
    HeldInstance, HeldSeat, MasterToGame, MetaChanged, SeatState,
};
use greenroom_protocol::wire::server_server::Role;
use greenroom_protocol::wire::session_master::{
    HeldSession, MasterToSession, Outcome, SessionReport,
};
use greenroom_protocol::{
    Code, Generation, Incarnation, InstanceId, RequestId, Seat, SessionId, UserId,
};
use world::{World, code, create, destroy, join, join_or_create, leave, seat, server};

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
    report.instances.push(HeldInstance {
        instance: lost.instance,
        incarnation: lost.incarnation,
        kind: lost.kind.clone(),
        seats: Vec::new(),
        meta: Default::default(),
    });
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
    report.instances.push(HeldInstance {
        instance,
        incarnation: Incarnation(9),
        kind: world::kind("arena"),
        seats: vec![HeldSeat { seat: Seat(3), user: user.clone(), session, away: false }],
        meta: Default::default(),
    });
    world.apply(Command::GameUp(world.origin("g1"), report));
    assert_eq!(world.list("arena").instances[0].seats_taken, 1);
    let report = SessionReport {
        urls: vec!["tcp://s1:4000".into()],
        build: "test".into(),
        connections_max: 10,
        sessions: vec![HeldSession { session, generation: Generation(4), user }],
    };
    world.session_report("s1", report);
    assert_eq!(world.state.users(), 1);
    assert_eq!(world.ended("s1"), []);
    assert_eq!(seat(&world.ask(session, 12, join(instance)).unwrap()).seat, Seat(3));
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
