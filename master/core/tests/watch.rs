//! Live searches: a reader that applies what it is told has what a search finds, whatever happens in between.
#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]
#![expect(clippy::wildcard_enum_match_arm, reason = "what is not expected is the other arm")]

mod world;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use greenroom_master_core::{Command, Event, replay};
use greenroom_protocol::search::Filter;
use greenroom_protocol::wire::client_session::{
    Changes, Listed, Meta, MetaValue, Request, Search, Unwatch, Watch,
};
use greenroom_protocol::wire::master_game::{MetaChanged, Running, SeatState};
use greenroom_protocol::wire::session_master::{MasterToSession, Outcome, Seen, Watcher};
use greenroom_protocol::{
    Code, Generation, Incarnation, InstanceId, Limits, Refusal, RequestId, SessionId, decode,
};
use proptest::prelude::*;
use world::{World, code, create, join, kind, seat, server};

fn mode(is: &str) -> Filter {
    Filter::Eq("mode".into(), MetaValue::Text(is.into()))
}
fn watch(filter: Filter) -> Request {
    Watch { kind: kind("arena"), filter }.into()
}

fn meta(is: &str) -> Meta {
    Meta::from([("mode".into(), MetaValue::Text(is.into()))])
}

/// An arena that runs, and what it says of itself.
fn arena(world: &mut World, by: SessionId, request: u32, is: &str) -> (InstanceId, Incarnation) {
    world.ask_at("s1", by, request, request - 1, create("arena", None));
    let made = world.makes("g1").pop().unwrap();
    let (instance, incarnation) = (made.instance, made.incarnation);
    let meta = meta(is);
    let running = Running { instance, incarnation, meta, open: true, private: false };
    world.happened("g1", Event::Running(running));
    (instance, incarnation)
}

/// The game says something else of an arena.
fn say(world: &mut World, (instance, incarnation): (InstanceId, Incarnation), is: &str) {
    let changed = MetaChanged { instance, incarnation, meta: meta(is), open: true, private: false };
    world.happened("g1", Event::MetaChanged(changed));
}

/// What live searches were told since the master's stream to `s1` was read last.
fn told(world: &mut World) -> Vec<(Vec<Watcher>, Changes)> {
    let out = world.state.session_stream(&server("s1")).unwrap();
    let told = out.unacknowledged().filter_map(|(_, message)| match message {
        MasterToSession::Changed(changed) => {
            Some((changed.to.clone(), decode(&changed.changes, Limits::SERVER).unwrap()))
        }
        _ => None,
    });
    let told = told.collect();
    let last = out.last();
    world.apply(Command::SessionReceived(world.origin("s1"), last));
    told
}
/// The one message that was told.
fn only(world: &mut World) -> Changes {
    let mut told = told(world);
    assert_eq!(told.len(), 1, "{told:?}");
    told.remove(0).1
}
fn seen(world: &mut World, session: SessionId, watch: u32, n: u64) {
    let seen = Seen { session, watch: RequestId(watch), n };
    world.apply(Command::Seen(world.origin("s1"), seen));
}
fn ids(instances: &[Listed]) -> BTreeSet<InstanceId> {
    instances.iter().map(|listed| listed.instance).collect()
}

#[test]
fn who_watches_gets_the_set_and_then_what_comes_changes_and_goes() {
    let mut world = World::small();
    let (ann, bo) = (world.user(1), world.user(2));
    let first = arena(&mut world, ann, 1, "duel");
    let other = arena(&mut world, ann, 2, "race");
    assert!(matches!(world.ask(bo, 1, watch(mode("duel"))), Some(Outcome::Watching(_))));
    world.pass(0);
    let set = only(&mut world);
    assert!(set.anew && !set.more);
    assert_eq!(ids(&set.instances), [first.0].into());
    // Nothing more before that one is acknowledged, however much happens.
    let second = arena(&mut world, ann, 3, "duel");
    say(&mut world, other, "duel");
    say(&mut world, other, "race");
    say(&mut world, first, "siege");
    world.pass(1_000);
    assert!(told(&mut world).is_empty());
    seen(&mut world, bo, 1, set.n);
    world.pass(0);
    // Each as it is now: what came and went again in between is gone for who never had it, too.
    let news = only(&mut world);
    assert!(!news.anew);
    assert_eq!(ids(&news.instances), [second.0].into());
    assert_eq!(news.gone.iter().copied().collect::<BTreeSet<_>>(), [first.0, other.0].into());
    seen(&mut world, bo, 1, news.n);
    // A seat is a change, too.
    world.ask_at("s1", ann, 4, 3, join(second.0));
    world.pass(1_000);
    let news = only(&mut world);
    assert_eq!((news.instances.len(), news.instances[0].seats_taken), (1, 1));
    seen(&mut world, bo, 1, news.n);
    world.closed("g1", second.0, second.1, Code::InstanceClosed);
    world.pass(1_000);
    let news = only(&mut world);
    assert_eq!((news.instances.len(), news.gone), (0, vec![second.0]));
}

#[test]
fn a_large_set_comes_in_several_messages_and_what_changes_meanwhile_comes_once() {
    let mut world = World::small();
    let (ann, bo) = (world.user(1), world.user(2));
    let mut made: Vec<_> = (1..=150).map(|n| arena(&mut world, ann, n, "duel")).collect();
    world.ask(bo, 1, watch(mode("duel")));
    world.pass(0);
    let mut found = BTreeMap::new();
    let mut messages = 0;
    loop {
        let news = only(&mut world);
        messages += 1;
        assert_eq!(news.anew, messages == 1);
        for listed in &news.instances {
            found.insert(listed.instance, listed.clone());
        }
        if messages == 1 {
            // One that was told, and one that was not: both change, and the reader has each at last as it is.
            say(&mut world, made[0], "race");
            let gone = made.remove(0);
            world.ask_at("s1", ann, 151, 150, join(made[148].0));
            found.remove(&gone.0);
        }
        for gone in &news.gone {
            found.remove(gone);
        }
        let more = news.more;
        seen(&mut world, bo, 1, news.n);
        world.pass(50);
        if !more {
            break;
        }
    }
    assert!(messages >= 3);
    assert_eq!(found.len(), 149);
    assert_eq!(found[&made[148].0].seats_taken, 1);
}

/// Who watches is told of what is due in the very command that gives a server up: of what is gone that it is gone.
#[test]
fn an_instance_that_goes_while_who_watches_is_about_to_be_told_of_it_is_told_as_gone() {
    let mut world = World::small();
    let ann = world.user(1);
    let stays = arena(&mut world, ann, 1, "ranked");
    world.ask(ann, 2, watch(mode("ranked")));
    world.pass(1_000);
    told(&mut world);
    seen(&mut world, ann, 2, 1);
    say(&mut world, stays, "ranked");
    let goes = arena(&mut world, ann, 3, "ranked");
    world.apply(Command::Died(world.origin("g1")));
    world.pass(1_000);
    let changes = only(&mut world);
    assert!(changes.instances.is_empty(), "{changes:?}");
    assert!(changes.gone.contains(&goes.0) && changes.gone.contains(&stays.0), "{changes:?}");
}

#[test]
fn a_thousand_watchers_of_one_filter_get_one_message_with_one_body() {
    let mut world = World::small();
    world.restored_every = 997;
    let ann = world.user(1);
    arena(&mut world, ann, 1, "duel");
    let mut watchers = Vec::new();
    for number in 0..1_000u32 {
        let name = format!("watcher {number}");
        let mut key = [7; 16];
        key[..4].copy_from_slice(&number.to_le_bytes());
        let session = world.bind_with("s1", key, &name).unwrap().session;
        world.ask(session, 1, watch(mode("duel")));
        watchers.push(session);
    }
    world.pass(0);
    let all = told(&mut world);
    assert_eq!(all.len(), 1, "everybody is at the beginning");
    let (to, set) = &all[0];
    assert_eq!(
        to.iter().map(|to| to.session).collect::<BTreeSet<_>>(),
        watchers.iter().copied().collect()
    );
    for &session in &watchers {
        seen(&mut world, session, 1, set.n);
    }
    arena(&mut world, ann, 2, "duel");
    world.pass(1_000);
    let all = told(&mut world);
    assert_eq!((all.len(), all[0].0.len()), (1, 1_000));
}

#[test]
fn a_new_connection_is_told_anew_and_the_old_ones_word_counts_no_more() {
    let mut world = World::small();
    let ann = world.user(1);
    let bo = world.bind("s1", 2, "bo").unwrap();
    let first = arena(&mut world, ann, 1, "duel");
    world.ask(bo.session, 1, watch(Filter::default()));
    world.pass(0);
    let set = only(&mut world);
    world.unbind("s1", &bo);
    arena(&mut world, ann, 2, "duel");
    world.pass(1_000);
    assert!(told(&mut world).is_empty(), "nobody is there to be told");
    let again = world.bind("s1", 2, "bo").unwrap();
    assert!(again.generation > bo.generation);
    world.pass(0);
    let all = told(&mut world);
    assert_eq!(all.len(), 1);
    let (to, anew) = &all[0];
    assert_eq!(to[0].generation, again.generation);
    assert!(anew.anew);
    assert_eq!(anew.instances.len(), 2);
    assert!(ids(&anew.instances).contains(&first.0));
    if set.n != anew.n {
        // What the old connection had acknowledged is no word about this message.
        seen(&mut world, bo.session, 1, set.n);
        arena(&mut world, ann, 3, "duel");
        world.pass(1_000);
        assert!(told(&mut world).is_empty());
    }
    seen(&mut world, bo.session, 1, anew.n);
}

#[test]
fn a_live_search_ends_when_it_is_told_to_and_with_its_session() {
    let mut world = World::small();
    let (ann, bo) = (world.user(1), world.user(2));
    for request in 1..=8 {
        world.ask_at("s1", bo, request, request - 1, watch(mode("duel")));
    }
    let ninth = world.ask_at("s1", bo, 9, 8, watch(mode("duel")));
    assert_eq!(code(&ninth.unwrap()), Code::WatchesMax);
    let end = |watch| Request::from(Unwatch { watch: RequestId(watch) });
    assert!(matches!(world.ask_at("s1", bo, 10, 9, end(3)), Some(Outcome::Unwatched(_))));
    assert_eq!(code(&world.ask_at("s1", bo, 11, 10, end(3)).unwrap()), Code::WatchUnknown);
    assert_eq!(code(&world.ask_at("s1", ann, 1, 0, end(4)).unwrap()), Code::WatchUnknown);
    world.pass(0);
    assert_eq!(told(&mut world)[0].0.len(), 7);
    // A newer session of the same user: the older one's live searches are over.
    world.bind("s1", 9, "user 2").unwrap();
    arena(&mut world, ann, 2, "duel");
    world.pass(1_000);
    assert!(told(&mut world).is_empty());
}

/// A filter of so many conditions that lets nothing through and says no value that a field must have.
fn wide(conditions: i64, which: i64) -> Filter {
    let condition = |n| Filter::Gt("seats_taken".into(), MetaValue::Int(1_000 * which + n));
    Filter::Or((1..=conditions).map(condition).collect())
}
/// The refusal of a live search.
fn refusal(outcome: Option<Outcome>) -> Refusal {
    match outcome {
        Some(Outcome::Refused(refusal)) => refusal,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_sessions_live_searches_have_a_bounded_number_of_conditions_in_all() {
    let mut world = World::small();
    let ann = world.user(1);
    assert!(matches!(world.ask(ann, 1, watch(wide(40, 1))), Some(Outcome::Watching(_))));
    assert!(matches!(world.ask(ann, 2, watch(wide(23, 2))), Some(Outcome::Watching(_))));
    let over = refusal(world.ask(ann, 3, watch(wide(2, 3))));
    assert_eq!(over.code, Code::WatchesMax);
    assert!(over.message.contains("at most 64 conditions in all; it has 63"), "{over}");
    // One that is watched already counts too, and what ended does not.
    assert_eq!(refusal(world.ask(ann, 4, watch(wide(23, 2)))).code, Code::WatchesMax);
    assert!(matches!(world.ask(ann, 5, watch(mode("duel"))), Some(Outcome::Watching(_))));
    world.ask(ann, 6, Unwatch { watch: RequestId(1) }.into());
    assert!(matches!(world.ask(ann, 7, watch(wide(2, 3))), Some(Outcome::Watching(_))));
}

/// A session of a user of this number.
fn session(world: &mut World, number: i64) -> SessionId {
    let mut key = [7; 16];
    key[..8].copy_from_slice(&number.to_le_bytes());
    world.bind_with("s1", key, &format!("watcher {number}")).unwrap().session
}

#[test]
fn what_every_change_is_compared_with_is_bounded_and_what_is_there_already_is_let_in() {
    let mut world = World::small();
    world.restored_every = 7;
    let with = |value: Filter, rest: Filter| Filter::And(vec![value, rest]);
    let open = Filter::Eq("open".into(), MetaValue::Bool(true));
    let sessions: Vec<SessionId> = (0..128).map(|n| session(&mut world, n)).collect();
    for (&session, which) in sessions[..64].iter().zip(1..) {
        let outcome = world.ask(session, 1, watch(wide(64, which)));
        assert!(matches!(outcome, Some(Outcome::Watching(_))), "{which}");
    }
    let [ann, bo, cy, ..] = sessions[64..] else { panic!("there are more") };
    let busy = refusal(world.ask(ann, 1, watch(Filter::default())));
    assert_eq!(busy.code, Code::Busy);
    assert!(busy.message.contains("say a value that a field must have (mode = …)"), "{busy}");
    // All that are listed are open: to say so tells nothing apart.
    assert_eq!(refusal(world.ask(ann, 2, watch(with(open, wide(1, 99))))).code, Code::Busy);
    // Somebody watches it already; it says a value; it is of another kind.
    assert!(matches!(world.ask(ann, 3, watch(wide(64, 1))), Some(Outcome::Watching(_))));
    assert!(matches!(world.ask(bo, 1, watch(mode("duel"))), Some(Outcome::Watching(_))));
    let other = Watch { kind: kind("duel"), filter: wide(64, 1) };
    assert!(matches!(world.ask(cy, 1, other.into()), Some(Outcome::Watching(_))));
    // One ends, and there is room for another of as many conditions.
    world.ask(sessions[1], 2, Unwatch { watch: RequestId(1) }.into());
    assert!(matches!(world.ask(sessions[1], 3, watch(wide(64, 99))), Some(Outcome::Watching(_))));
    // The same value for all tells them apart no better.
    for (&session, which) in sessions[67..].iter().zip(1..) {
        let outcome = world.ask(session, 1, watch(with(mode("duel"), wide(63, which))));
        assert!(matches!(outcome, Some(Outcome::Watching(_))), "{which}");
    }
    for which in 100..102 {
        let one = session(&mut world, 100 + which);
        let outcome = world.ask(one, 1, watch(with(mode("duel"), wide(63, which))));
        assert!(matches!(outcome, Some(Outcome::Watching(_))), "{which}");
    }
    let one = session(&mut world, 300);
    let busy = refusal(world.ask(one, 1, watch(with(mode("duel"), wide(63, 102)))));
    assert_eq!(busy.code, Code::Busy);
    assert!(busy.message.contains("want the same mode"), "{busy}");
    let race = with(mode("race"), wide(63, 102));
    assert!(matches!(world.ask(one, 2, watch(race)), Some(Outcome::Watching(_))));
}

#[test]
fn a_filter_that_can_not_be_is_refused_as_in_a_search() {
    let mut world = World::small();
    let ann = world.user(1);
    let unknown = world.ask(ann, 1, watch(Filter::Eq("colour".into(), MetaValue::Int(1))));
    assert_eq!(code(&unknown.unwrap()), Code::FieldUnknown);
    let chess = Watch { kind: kind("chess"), filter: Filter::default() };
    assert_eq!(code(&world.ask(ann, 2, chess.into()).unwrap()), Code::KindUnknown);
}

#[test]
fn a_set_that_is_or_grows_too_large_ends_the_live_search_by_name() {
    let mut world = World::new();
    world.restored_every = 997;
    world.session_up("s1");
    world.game_reports("g1", World::game_report("g1", 10_000));
    let (ann, bo) = (world.user(1), world.user(2));
    for n in 1..=1_000 {
        arena(&mut world, ann, n, "duel");
    }
    world.ask(bo, 1, watch(mode("duel")));
    arena(&mut world, ann, 1_001, "duel");
    let late = world.ask_at("s1", ann, 1_002, 1_001, watch(mode("duel")));
    assert!(matches!(late, Some(Outcome::Watching(_))), "it joins those who watch already");
    let other = world.ask_at("s1", bo, 2, 0, watch(Filter::default()));
    assert_eq!(code(&other.unwrap()), Code::TooBroad);
    told(&mut world);
    for n in 1_003..=2_002 {
        arena(&mut world, ann, n, "duel");
    }
    let ends = told(&mut world);
    let (to, last) = ends.last().unwrap();
    assert_eq!(to.len(), 2);
    assert_eq!(last.ended.as_ref().unwrap().code, Code::TooBroad);
}

/// What a reader has after what it was told.
#[derive(Default)]
struct Reader {
    instances: BTreeMap<InstanceId, Listed>,
    unread: Vec<Changes>,
}

impl Reader {
    fn read(&mut self, news: Changes) {
        if news.anew {
            self.instances.clear();
        }
        for listed in news.instances {
            self.instances.insert(listed.instance, listed);
        }
        for gone in news.gone {
            self.instances.remove(&gone);
        }
    }
}

#[derive(Clone, Debug)]
enum Act {
    Make(u8),
    Say(u8, u8),
    Sit(u8),
    Stand(u8),
    Close(u8),
    Read(u8),
    Reconnect(u8),
    Watch(u8),
    Unwatch(u8),
    Pass(u16),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => any::<u8>().prop_map(Act::Make),
        6 => (any::<u8>(), any::<u8>()).prop_map(|(which, is)| Act::Say(which, is)),
        3 => any::<u8>().prop_map(Act::Sit),
        2 => any::<u8>().prop_map(Act::Stand),
        2 => any::<u8>().prop_map(Act::Close),
        6 => any::<u8>().prop_map(Act::Read),
        1 => any::<u8>().prop_map(Act::Reconnect),
        1 => any::<u8>().prop_map(Act::Watch),
        1 => any::<u8>().prop_map(Act::Unwatch),
        3 => (0u16..200).prop_map(Act::Pass),
    ]
}

const MODES: [&str; 3] = ["duel", "race", "siege"];
const READERS: u8 = 4;

fn filter_of(reader: u8) -> Filter {
    match reader {
        0 => Filter::default(),
        1 => mode("duel"),
        2 => Filter::Not(Box::new(mode("duel"))),
        _ => Filter::And(vec![
            Filter::In(
                "mode".into(),
                vec![MetaValue::Text("race".into()), MetaValue::Text("siege".into())],
            ),
            Filter::Gt("seats_taken".into(), MetaValue::Int(0)),
        ]),
    }
}

/// Gives every reader what it was told on its connection of now.
fn deliver(
    world: &mut World,
    readers: &mut BTreeMap<u8, Reader>,
    watching: &BTreeMap<u8, u32>,
    sessions: &[SessionId],
    generations: &[Generation],
) {
    for (to, news) in told(world) {
        for to in to {
            let reader = sessions.iter().position(|session| *session == to.session).unwrap();
            let number = u8::try_from(reader).unwrap();
            let is_its = watching.get(&number) == Some(&to.watch.0);
            if is_its && to.generation == generations[reader] {
                readers.entry(number).or_default().unread.push(news.clone());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whoever reads at whatever pace, over whatever connections, has in the end what a search finds.
    #[test]
    fn a_reader_has_in_the_end_what_a_search_finds(acts in prop::collection::vec(act(), 1..120)) {
        let mut world = World::small();
        let maker = world.user(100);
        let mut request = 0;
        let mut asked = [0u32; READERS as usize];
        let mut sessions: Vec<SessionId> = Vec::new();
        let mut watching: BTreeMap<u8, u32> = BTreeMap::new();
        let mut readers: BTreeMap<u8, Reader> = BTreeMap::new();
        let mut arenas: Vec<(InstanceId, Incarnation)> = Vec::new();
        for reader in 0..READERS {
            sessions.push(world.user(reader));
        }
        let mut generations = [Generation(1); READERS as usize];
        for act in acts {
            match act {
                Act::Make(is) => {
                    request += 1;
                    arenas.push(arena(&mut world, maker, request, MODES[usize::from(is) % 3]));
                }
                Act::Say(which, is) if !arenas.is_empty() => {
                    say(&mut world, arenas[usize::from(which) % arenas.len()], MODES[usize::from(is) % 3]);
                }
                Act::Sit(which) if !arenas.is_empty() => {
                    request += 1;
                    let at = arenas[usize::from(which) % arenas.len()];
                    let outcome = world.ask_at("s1", maker, request, request - 1, join(at.0));
                    if let Some(outcome @ Outcome::Granted(_)) = outcome {
                        let granted = seat(&outcome);
                        world.seat_changed("g1", &granted, maker, SeatState::Taken);
                    }
                }
                Act::Stand(which) if !arenas.is_empty() => {
                    request += 1;
                    let at = arenas[usize::from(which) % arenas.len()];
                    world.ask_at("s1", maker, request, request - 1, world::leave(at.0));
                }
                Act::Close(which) if !arenas.is_empty() => {
                    let at = arenas.swap_remove(usize::from(which) % arenas.len());
                    world.closed("g1", at.0, at.1, Code::InstanceClosed);
                }
                Act::Read(which) => {
                    let number = which % READERS;
                    if let (Some(&watch), Some(reader)) = (watching.get(&number), readers.get_mut(&number))
                        && !reader.unread.is_empty()
                    {
                        let news = reader.unread.remove(0);
                        let n = news.n;
                        reader.read(news);
                        seen(&mut world, sessions[usize::from(number)], watch, n);
                    }
                }
                Act::Reconnect(which) => {
                    let number = which % READERS;
                    let bound = world.bind("s1", number, &format!("user {number}")).unwrap();
                    generations[usize::from(number)] = bound.generation;
                    if let Some(reader) = readers.get_mut(&number) {
                        reader.unread.clear();
                    }
                }
                Act::Watch(which) => {
                    let number = which % READERS;
                    if let Entry::Vacant(place) = watching.entry(number) {
                        let id = &mut asked[usize::from(number)];
                        *id += 1;
                        let session = sessions[usize::from(number)];
                        world.ask_at("s1", session, *id, *id - 1, watch(filter_of(number)));
                        place.insert(*id);
                        readers.insert(number, Reader::default());
                    }
                }
                Act::Unwatch(which) => {
                    let number = which % READERS;
                    if let Some(watch) = watching.remove(&number) {
                        let id = &mut asked[usize::from(number)];
                        *id += 1;
                        let session = sessions[usize::from(number)];
                        world.ask_at("s1", session, *id, *id - 1, Unwatch { watch: RequestId(watch) }.into());
                        readers.remove(&number);
                    }
                }
                Act::Pass(ms) => world.pass(ms.into()),
                Act::Say(..) | Act::Sit(_) | Act::Stand(_) | Act::Close(_) => {}
            }
            deliver(&mut world, &mut readers, &watching, &sessions, &generations);
        }
        // Everybody reads to the end.
        for _ in 0..1_000 {
            world.pass(100);
            deliver(&mut world, &mut readers, &watching, &sessions, &generations);
            for (&number, &watch) in &watching {
                let reader = readers.entry(number).or_default();
                for news in std::mem::take(&mut reader.unread) {
                    let n = news.n;
                    reader.read(news);
                    seen(&mut world, sessions[usize::from(number)], watch, n);
                }
            }
            if world.state.due_ms().is_none_or(|due| due > world.now_ms + 1_000) {
                break;
            }
        }
        // A standby that replays the log has the same live searches at the same places, and told the same.
        let (again, effects) = replay(World::new().state, &world.log);
        prop_assert_eq!(again.state_hash(), world.state.state_hash());
        prop_assert_eq!(&effects, &world.all);
        for &number in watching.keys() {
            let search = Search { filter: filter_of(number), ..world::everything("arena") };
            let Outcome::Found(found) = world.state.search(&search) else { panic!("refused") };
            let found: BTreeMap<InstanceId, Listed> =
                found.instances.into_iter().map(|listed| (listed.instance, listed)).collect();
            prop_assert_eq!(&readers[&number].instances, &found);
        }
    }
}
