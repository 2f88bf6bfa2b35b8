//! Instances that go on elsewhere when their game server is lost, each as a small story.

#![expect(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "helpers of tests may fail as tests do, and look for one message among all"
)]

mod world;

use greenroom_master_core::{Command, Document, Effect, Event, Origin};
use greenroom_protocol::wire::admin_master::{Action, Find, RestoreInstance, Row, Table};
use greenroom_protocol::wire::client_session::MetaValue;
use greenroom_protocol::wire::master_game::{
    Closed, CreateInstance, CreateRefused, HandedOver, MasterToGame, RestoredSeat, Running,
    SeatChanged, SeatState,
};
use greenroom_protocol::wire::server_server::Role;
use greenroom_protocol::wire::session_master::{
    Granted, MasterToSession, Moved, Outcome, SeatLost,
};
use greenroom_protocol::{Code, Incarnation, InstanceId, Key, KindName, Refusal, SessionId};
use world::{World, code, destroy, join, join_or_create, leave, seat};

/// Two game servers, and somebody who plays a saga on the first one.
fn played() -> (World, SessionId, Granted) {
    let mut world = World::small();
    let (ann, granted) = world.play(1, "saga", None);
    world.game_up("g2");
    (world, ann, granted)
}
/// The process of `g1` is gone, and another life of it is there.
fn restart(world: &mut World, game: &str) {
    world.restart(game);
    world.game_up(game);
}
/// The order to restore, wherever it went.
fn ordered(world: &mut World) -> (&'static str, CreateInstance) {
    let mut orders = Vec::new();
    for game in ["g1", "g2"] {
        if world.state.game_stream(&world::server(game)).is_some() {
            let makes = world.makes(game).into_iter();
            orders.extend(makes.filter(|order| order.restore.is_some()).map(|order| (game, order)));
        }
    }
    let [order] = &orders[..] else { panic!("one order: {orders:?}") };
    order.clone()
}
fn runs(world: &mut World, game: &str, order: &CreateInstance) {
    let CreateInstance { instance, incarnation, private, .. } = *order;
    let meta = Default::default();
    let running = Running { instance, incarnation, meta, open: true, private };
    world.happened(game, Event::Running(running));
}
fn refuses(world: &mut World, game: &str, order: &CreateInstance, code: Code) {
    let CreateInstance { instance, incarnation, .. } = *order;
    let refusal = Refusal::new(code, "by a test");
    let refused = CreateRefused { instance, incarnation, refusal };
    world.happened(game, Event::CreateRefused(refused));
}
fn next_life(granted: &Granted) -> Incarnation {
    Incarnation(granted.incarnation.0.wrapping_add(1))
}
fn moved(world: &mut World) -> Vec<Moved> {
    let told = world.told_to_sessions("s1").into_iter().filter_map(|message| match message {
        MasterToSession::Moved(moved) => Some(moved),
        _ => None,
    });
    told.collect()
}
fn lost(world: &mut World) -> Vec<SeatLost> {
    let told = world.told_to_sessions("s1").into_iter().filter_map(|message| match message {
        MasterToSession::SeatLost(lost) => Some(lost),
        _ => None,
    });
    told.collect()
}
fn state(world: &World) -> Vec<String> {
    let table = Table::Instances(world::kind("saga"));
    let all = Find { table, filter: Default::default(), order: None, limit: 100, cursor: None };
    let found = world.state.find(&all).unwrap();
    let text = |row: &Row| match &row.fields["state"] {
        MetaValue::Text(text) => text.to_string(),
        other => panic!("no text: {other:?}"),
    };
    found.rows.iter().map(text).collect()
}

#[test]
fn when_a_game_server_starts_anew_what_is_durable_goes_on_elsewhere_with_its_seats() {
    let mut world = World::small();
    let (ann, granted) = world.play(1, "saga", None);
    let (bo, there) = world.play(2, "arena", Some("lost"));
    world.game_up("g2");
    restart(&mut world, "g1");
    let (game, order) = ordered(&mut world);
    assert_eq!((order.instance, order.incarnation), (granted.instance, next_life(&granted)));
    let seats = vec![RestoredSeat { seat: granted.seat, session: ann }];
    assert_eq!(order.restore.as_ref().unwrap().seats, seats);
    assert_eq!(state(&world), ["restoring"]);
    assert!(moved(&mut world).is_empty(), "nobody is sent where nothing runs");
    runs(&mut world, game, &order);
    let [Moved { session, granted: now }] = &moved(&mut world)[..] else { panic!() };
    assert_eq!((*session, now.incarnation), (ann, order.incarnation));
    assert_eq!((now.seat, now.server.as_str(), now.durable), (granted.seat, game, true));
    assert_eq!(state(&world), ["running"]);
    // The seat is still hers, and nobody else's.
    assert_eq!(seat(&world.ask(ann, 2, join(granted.instance)).unwrap()), *now);
    // What is not durable is gone.
    assert_eq!(code(&world.ask(bo, 2, join(there.instance)).unwrap()), Code::InstanceLost);
}

#[test]
fn while_an_instance_is_restored_nobody_is_sent_there_and_who_holds_a_seat_waits_for_it() {
    let (mut world, ann, granted) = played();
    let bo = world.user(2);
    restart(&mut world, "g1");
    let (game, order) = ordered(&mut world);
    assert!(world.list("saga").instances.is_empty(), "it is not found");
    assert_eq!(world.ask(bo, 1, join_or_create("saga", None)), None);
    let other = [world.make_all("g1"), world.make_all("g2")].concat();
    assert_ne!(seat(&other[0].outcome).instance, granted.instance);
    assert_eq!(world.ask(ann, 2, join_or_create("saga", None)), None, "she waits for her seat");
    assert_eq!(world.ask(bo, 2, join(granted.instance)), None, "and he for one by its id");
    runs(&mut world, game, &order);
    let answers = world.answers();
    let places: Vec<_> = answers.iter().map(|answer| seat(&answer.outcome)).collect();
    assert_eq!(places.len(), 2);
    assert!(places.iter().all(|place| place.incarnation == order.incarnation));
    assert_eq!(places[0].seat, granted.seat);
}

#[test]
fn a_lost_server_is_given_up_after_its_grace_and_its_former_life_can_do_nothing() {
    let (mut world, ann, granted) = played();
    world.told("g1");
    world.link_lost(Role::Game, "g1");
    world.pass(14_999);
    assert!(world.makes("g2").is_empty(), "it may still run there");
    world.pass(1);
    let [order] = &world.makes("g2")[..] else { panic!() };
    runs(&mut world, "g2", order);
    // It was alive all the time, frozen, and is told to stop; what it says counts for nothing and is no fault.
    world.game_up("g1");
    let told = world.told("g1");
    assert!(told.iter().any(|message| matches!(
        message,
        MasterToGame::Destroy(destroy) if destroy.incarnation == granted.incarnation
    )));
    let (instance, incarnation) = (granted.instance, granted.incarnation);
    world.seat_changed("g1", &granted, ann, SeatState::Free);
    world.closed("g1", instance, incarnation, Code::InstanceLost);
    assert!(world.all.iter().all(|effect| !matches!(effect, Effect::Illegal { .. })));
    assert_eq!(state(&world), ["running"]);
    let now = seat(&world.ask(ann, 2, join(instance)).unwrap());
    assert_eq!((now.server.as_str(), now.seat), ("g2", granted.seat));
}

/// Once nothing of it can run any more there is nothing to wait for.
#[test]
fn a_server_whose_process_is_proved_to_be_gone_is_given_up_at_once() {
    let (mut world, ann, granted) = played();
    let alive = world.origin("g1");
    let before = Origin { incarnation: Incarnation(alive.incarnation.0 + 7), ..alive.clone() };
    world.apply(Command::Died(before));
    world.pass(0);
    assert!(world.makes("g2").is_empty(), "one life speaks for itself only");
    world.apply(Command::Died(alive));
    world.pass(0);
    let [order] = &world.makes("g2")[..] else { panic!() };
    assert_eq!((state(&world), order.incarnation), (vec!["restoring".into()], next_life(&granted)));
    let at = world.now_ms;
    let effects = world.apply(Command::Died(world.origin("g1")));
    world.pass(0);
    assert!(effects.is_empty() && world.makes("g2").is_empty(), "it is given up once");
    runs(&mut world, "g2", order);
    let moved = moved(&mut world);
    assert_eq!((moved.len(), moved[0].session, world.now_ms), (1, ann, at));
    assert_eq!(moved[0].granted.seat, granted.seat);
}

#[test]
fn without_another_server_it_waits_until_one_can_take_it() {
    let mut world = World::small();
    let (ann, granted) = world.play(1, "saga", None);
    world.link_lost(Role::Game, "g1");
    world.pass(15_000);
    assert_eq!(state(&world), ["restoring"]);
    assert_eq!(world.ask(ann, 2, join(granted.instance)), None);
    // The server's record is not forgotten while somebody waits on it.
    world.pass(25 * 3_600_000);
    assert_eq!(state(&world), ["restoring"]);
    let mut full = World::game_report("g2", 1);
    full.instances = vec![World::held(greenroom_protocol::InstanceId(9), "arena", None)];
    world.game_reports("g2", full);
    assert!(world.makes("g2").is_empty());
    world.closed("g2", greenroom_protocol::InstanceId(9), Incarnation(9), Code::InstanceClosed);
    world.game_load("g2", 0);
    let (game, order) = ordered(&mut world);
    let seats = vec![RestoredSeat { seat: granted.seat, session: ann }];
    assert_eq!((game, order.restore.clone().unwrap().seats), ("g2", seats));
    runs(&mut world, game, &order);
    assert_eq!(state(&world), ["running"]);
}

#[test]
fn the_only_server_takes_its_own_back_when_it_starts_anew() {
    let mut world = World::small();
    world.game_reports("g1", World::game_report("g1", 1));
    let (_, granted) = world.play(1, "saga", None);
    world.restart("g1");
    // It has room for one, which is the one that it had.
    world.game_reports("g1", World::game_report("g1", 1));
    let (game, order) = ordered(&mut world);
    runs(&mut world, game, &order);
    assert_eq!((game, order.incarnation), ("g1", next_life(&granted)));
    assert_eq!(world.state.game_status()[0].load, 1);
}

#[test]
fn a_server_that_can_not_restore_it_is_not_the_end_but_a_snapshot_that_can_not_be_read_is() {
    let (mut world, ann, granted) = played();
    restart(&mut world, "g1");
    let (game, order) = ordered(&mut world);
    refuses(&mut world, game, &order, Code::Unavailable);
    assert!(world.makes("g1").is_empty() && world.makes("g2").is_empty(), "not at once");
    world.game_load("g2", 0);
    let (game, again) = ordered(&mut world);
    assert!(again.incarnation.0 == order.incarnation.0.wrapping_add(1));
    refuses(&mut world, game, &order, Code::InstanceFailed);
    assert_eq!(state(&world), ["restoring"], "that was the life before");
    refuses(&mut world, game, &again, Code::InstanceFailed);
    let [SeatLost { session, instance, refusal }] = &lost(&mut world)[..] else { panic!() };
    assert_eq!((*session, *instance), (ann, granted.instance));
    assert_eq!(refusal.code, Code::InstanceFailed);
    assert_eq!(code(&world.ask(ann, 2, join(granted.instance)).unwrap()), Code::InstanceFailed);
}

#[test]
fn a_server_that_is_lost_while_it_restores_is_followed_by_another() {
    let (mut world, ann, granted) = played();
    restart(&mut world, "g1");
    let (game, order) = ordered(&mut world);
    restart(&mut world, game);
    let (game, again) = ordered(&mut world);
    assert_eq!(again.incarnation.0, order.incarnation.0.wrapping_add(1));
    runs(&mut world, game, &again);
    assert_eq!(moved(&mut world).last().unwrap().granted.incarnation, again.incarnation);
    assert_eq!(seat(&world.ask(ann, 2, join(granted.instance)).unwrap()).seat, granted.seat);
}

#[test]
fn what_never_ran_is_lost_and_what_was_to_close_is_closed() {
    let mut world = World::small();
    world.game_up("g2");
    let (ann, bo) = (world.user(1), world.user(2));
    assert_eq!(world.ask(ann, 1, join_or_create("saga", None)), None);
    let made_on = if world.makes("g1").is_empty() { "g2" } else { "g1" };
    restart(&mut world, made_on);
    assert_eq!(code(&world.answers()[0].outcome), Code::InstanceLost);
    assert_eq!(world.ask(bo, 1, join_or_create("saga", None)), None);
    let answers = [world.make_all("g1"), world.make_all("g2")].concat();
    let granted = seat(&answers[0].outcome);
    assert_eq!(world.ask(bo, 2, destroy(granted.instance)), None);
    restart(&mut world, granted.server.as_str());
    assert!(matches!(world.answers()[0].outcome, Outcome::Destroyed(_)));
    assert_eq!(world.state.instances(), 0);
}

#[test]
fn a_stranded_instance_is_destroyed_at_once_and_a_seat_in_it_is_left() {
    let mut world = World::small();
    let (ann, granted) = world.play(1, "saga", None);
    let bo = world.user(2);
    let his = seat(&world.ask(bo, 1, join(granted.instance)).unwrap());
    world.seat_changed("g1", &his, bo, SeatState::Taken);
    world.link_lost(Role::Game, "g1");
    world.pass(15_000);
    let left = world.ask(ann, 2, leave(granted.instance)).unwrap();
    assert!(matches!(left, Outcome::Left(_)));
    world.act(Action::Destroy { instance: granted.instance }).unwrap();
    let [SeatLost { session, refusal, .. }] = &lost(&mut world)[..] else { panic!() };
    assert_eq!((*session, &refusal.code), (bo, &Code::Destroyed));
    assert_eq!(code(&world.ask(bo, 2, join(his.instance)).unwrap()), Code::Destroyed);
}

/// What is stored of an instance is removed by who runs it; where nobody does, the store is told by the master.
#[test]
fn what_is_stored_of_an_instance_that_ends_while_nobody_runs_it_is_no_more() {
    let unstored = |world: &World| {
        let all = world.state.documents().from(0).filter_map(|placed| match placed.what {
            Document::Unstored(instance, incarnation) => Some((instance, incarnation)),
            _ => None,
        });
        all.collect::<Vec<_>>()
    };
    // Destroyed while it is stranded.
    let mut world = World::small();
    let (ann, granted) = world.play(1, "saga", None);
    world.apply(Command::Died(world.origin("g1")));
    world.pass(0);
    assert_eq!(unstored(&world), []);
    assert!(world.ask(ann, 2, destroy(granted.instance)).is_some());
    assert_eq!(unstored(&world), [(granted.instance, next_life(&granted))]);
    // Its server dies while it is to close.
    let mut world = World::small();
    let (ann, granted) = world.play(1, "saga", None);
    assert_eq!(world.ask(ann, 2, destroy(granted.instance)), None);
    world.apply(Command::Died(world.origin("g1")));
    world.pass(0);
    assert_eq!(unstored(&world), [(granted.instance, granted.incarnation)]);
}

#[test]
fn who_leaves_while_it_is_restored_has_no_seat_there_and_the_next_one_waits_until_it_is_free() {
    let (mut world, ann, granted) = played();
    restart(&mut world, "g1");
    let (game, order) = ordered(&mut world);
    world.ask(ann, 2, leave(granted.instance)).unwrap();
    let told = world.told(game);
    assert!(
        told.iter()
            .any(|message| matches!(message, MasterToGame::FreeSeat(free) if free.session == ann))
    );
    let bo = world.user(2);
    runs(&mut world, game, &order);
    assert!(moved(&mut world).is_empty());
    // The game server has freed it as it was told, and says so.
    let free = SeatChanged {
        instance: order.instance,
        incarnation: order.incarnation,
        seat: granted.seat,
        session: ann,
        state: SeatState::Free,
    };
    world.happened(game, Event::SeatChanged(free));
    assert_eq!(seat(&world.ask(bo, 1, join(granted.instance)).unwrap()).seat, granted.seat);
}

#[test]
fn a_server_that_stops_hands_over_what_is_durable() {
    let (mut world, ann, granted) = played();
    let (instance, incarnation) = (granted.instance, granted.incarnation);
    world.happened("g1", Event::HandedOver(HandedOver { instance, incarnation }));
    let (game, order) = ordered(&mut world);
    assert_eq!(order.incarnation, next_life(&granted));
    runs(&mut world, game, &order);
    let [Moved { session, granted: now }] = &moved(&mut world)[..] else { panic!() };
    assert_eq!((*session, now.seat), (ann, granted.seat));
}

#[test]
fn a_repeated_question_is_answered_with_where_the_seat_is_now() {
    let mut world = World::small();
    world.game_up("g2");
    let ann = world.user(1);
    assert_eq!(world.ask(ann, 1, join_or_create("saga", None)), None);
    let answers = [world.make_all("g1"), world.make_all("g2")].concat();
    let granted = seat(&answers[0].outcome);
    world.seat_changed(granted.server.as_str(), &granted, ann, SeatState::Taken);
    restart(&mut world, granted.server.as_str());
    let (game, order) = ordered(&mut world);
    runs(&mut world, game, &order);
    let now = seat(&world.ask(ann, 1, join_or_create("saga", None)).unwrap());
    assert_eq!((now.server.as_str(), now.incarnation), (game, order.incarnation));
    world.go_on_restored();
    assert_eq!(seat(&world.ask(ann, 1, join_or_create("saga", None)).unwrap()), now);
}

/// Two game servers say that they run it, to a master that has lost its memory: the later life is the one.
#[test]
fn of_two_lives_the_later_one_stays() {
    let mut world = World::new();
    world.session_up("s1");
    let id = greenroom_protocol::InstanceId(77);
    for (game, life, lives) in [("g1", 9, "g1"), ("g2", 10, "g2"), ("g3", 8, "g2")] {
        let mut report = World::game_report(game, 10);
        let mut held = World::held(id, "saga", None);
        held.incarnation = Incarnation(life);
        report.instances = vec![held];
        world.game_reports(game, report);
        let ann = world.user(u8::try_from(life).unwrap());
        let granted = seat(&world.ask(ann, 1, join(id)).unwrap());
        assert_eq!(granted.server.as_str(), lives);
    }
    for (game, life) in [("g1", 9), ("g3", 8)] {
        let stopped = world.told(game).into_iter().any(|message| {
            matches!(
                message,
                MasterToGame::Destroy(destroy) if destroy.incarnation == Incarnation(life)
            )
        });
        assert!(stopped, "{game} is told to stop the life before");
    }
}

/// Its snapshot was set aside, and is of use again: an operator has it go on, in a life above the last.
#[test]
fn an_instance_that_is_over_goes_on_when_an_operator_says_so() {
    let (mut world, ann, granted) = played();
    let mut wanted = RestoreInstance {
        instance: granted.instance,
        incarnation: next_life(&granted),
        kind: KindName::new("saga").unwrap(),
        owner: None,
        key: Some(Key::new("a key").unwrap()),
        created_ms: 7,
        private: true,
    };
    let restore = |wanted: &RestoreInstance| Action::Restore(Box::new(wanted.clone()));
    assert_eq!(world.act(restore(&wanted)).unwrap_err().code, Code::Busy, "it runs still");
    let closed = Closed {
        instance: granted.instance,
        incarnation: granted.incarnation,
        refusal: Refusal::new(Code::InstanceFailed, "by a test"),
    };
    world.happened("g1", Event::Closed(closed));
    assert_eq!(code(&world.ask(ann, 2, join(granted.instance)).unwrap()), Code::InstanceFailed);

    let small = RestoreInstance { kind: KindName::new("arena").unwrap(), ..wanted.clone() };
    let not_durable = world.act(restore(&small)).unwrap_err();
    assert!(not_durable.message.contains("not durable"), "{not_durable}");
    world.act(restore(&wanted)).unwrap();
    let (game, order) = ordered(&mut world);
    assert_eq!(order.incarnation, wanted.incarnation);
    assert_eq!(
        (order.key.as_ref(), order.created_ms, order.private),
        (wanted.key.as_ref(), 7, true)
    );
    // Asked once more, it is on its way.
    world.act(restore(&wanted)).unwrap();
    wanted.instance = InstanceId(78);
    let taken = world.act(restore(&wanted)).unwrap_err();
    assert_eq!(taken.code, Code::KeyTaken);
    assert!(taken.message.contains(&granted.instance.to_string()), "{taken}");
    runs(&mut world, game, &order);
    seat(&world.ask(ann, 3, join(granted.instance)).unwrap());
    assert_eq!(world.state.instances(), 1);

    // No server takes anything: nothing has changed.
    let (mut world, ..) = played();
    wanted.key = None;
    for name in ["g1", "g2"] {
        world.act(Action::Drain { server: world::server(name) }).unwrap();
    }
    assert_eq!(world.act(restore(&wanted)).unwrap_err().code, Code::NoCapacity);
}
