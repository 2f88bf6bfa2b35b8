//! Whatever comes in whatever order: no panic, no contradiction, and a replay that ends where the original did.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a helper gives one request, in which a random act changes something"
)]

mod world;

use greenroom_master_core::{Command, Event, Settings, State, replay};
use greenroom_protocol::search::Filter;
use greenroom_protocol::wire::admin_master::{Action, RestoreInstance};
use greenroom_protocol::wire::client_session::{Create, JoinOrCreate, MetaValue, Request};
use greenroom_protocol::wire::master_game::{
    Closed, CreateRefused, GameCounts, GameLoad, HandedOver, HeldInstance, HeldSeat, MasterToGame,
    MetaChanged, Running, Scored, SeatChanged, SeatState,
};
use greenroom_protocol::wire::server_server::Role;
use greenroom_protocol::wire::session_master::{
    Bind, HeldSession, MasterToSession, SessionCounts, SessionLoad, SessionReport, Unbind,
};
use greenroom_protocol::{
    Code, Generation, Incarnation, InstanceId, Key, Refusal, RequestId, Seat, SessionId,
    SessionKey, UserId,
};
use proptest::prelude::*;
use world::{World, create, destroy, join, join_or_create, kind, leave, server};

/// One thing that happens, in small numbers that are looked up among what is there when it happens.
#[derive(Clone, Debug)]
struct Act {
    what: u8,
    server: u8,
    a: u8,
    b: u8,
    c: u8,
    stale: bool,
}

fn act() -> impl Strategy<Value = Act> {
    (0u8..26, 0u8..2, any::<u8>(), 0u8..6, any::<u8>(), prop::bool::weighted(0.1))
        .prop_map(|(what, server, a, b, c, stale)| Act { what, server, a, b, c, stale })
}

/// What servers and clients have heard, from which random acts choose.
#[derive(Default)]
struct Heard {
    sessions: Vec<(SessionId, Generation)>,
    instances: Vec<(InstanceId, Incarnation)>,
}

/// Numbers of the servers' streams, by name.
type Streams = std::collections::BTreeMap<String, u64>;

impl Heard {
    fn session(&self, number: u8) -> (SessionId, Generation) {
        let known = self.sessions.len();
        if known == 0 || number == 255 {
            return (SessionId(u64::from(number)), Generation(1));
        }
        self.sessions[known - 1 - usize::from(number) % known.min(8)]
    }
    fn instance(&self, number: u8) -> (InstanceId, Incarnation) {
        let known = self.instances.len();
        if known == 0 || number == 255 {
            return (InstanceId(u128::from(number)), Incarnation(1));
        }
        self.instances[known - 1 - usize::from(number) % known.min(8)]
    }
    fn listen(&mut self, world: &mut World) {
        for effect in &world.effects {
            if let greenroom_master_core::Effect::ToSession(_, MasterToSession::Bound(bound)) =
                effect
            {
                self.sessions.push((bound.session, bound.generation));
            }
        }
        for game in ["g1", "g2"] {
            if world.state.game_stream(&server(game)).is_some() {
                for message in world.told(game) {
                    if let MasterToGame::Create(create) = message {
                        self.instances.push((create.instance, create.incarnation));
                    }
                }
            }
        }
    }
}

fn command(world: &World, heard: &Heard, streams: &mut Streams, act: &Act) -> Command {
    let Act { what, server, a, b, c, stale } = *act;
    let session_server = if server == 0 { "s1" } else { "s2" };
    let game_server = if server == 0 { "g1" } else { "g2" };
    let origin = |name: &str| {
        let mut origin = world.origin(name);
        // A report of another life is believed, so that nobody listens to this one any more: rarely.
        origin.incarnation.0 += u64::from(stale && (what > 1 || c < 20));
        origin
    };
    let mut next = |name: &str| {
        let n = streams.entry(name.to_owned()).or_default();
        // Sometimes one comes again, sometimes one is missing.
        *n = if stale { n.saturating_sub(1) } else { *n + 1 };
        *n
    };
    let refusal = || Refusal::new(Code::Rejected, "as you like it ".repeat(usize::from(c)));
    let user = |number: u8| UserId::new(format!("user {}", number % 6)).expect("it is short");
    match what {
        0 => {
            let sessions = (0..b).map(|number| {
                let (session, generation) = heard.session(a.wrapping_add(number));
                HeldSession {
                    session,
                    generation,
                    user: user(a.wrapping_add(c)),
                    session_key: SessionKey([a; 16]),
                    name: Default::default(),
                }
            });
            let report = SessionReport {
                urls: vec![session_server.into()],
                build: "test".into(),
                connections_max: 10,
                sessions: sessions.collect(),
            };
            Command::SessionUp(origin(session_server), report)
        }
        1 => {
            let mut report = World::game_report(game_server, u32::from(c % 12));
            // Sometimes it says what can't be, or other weights than before.
            report.kinds[0].weight = u32::from(c % 4);
            report.kinds[1].seats_max = u16::from(a % 3);
            if c % 16 == 9 {
                report.kinds.push(report.kinds[0].clone());
            }
            report.instances = (0..b)
                .map(|number| {
                    let (instance, incarnation) = heard.instance(a.wrapping_add(number));
                    let (session, _) = heard.session(number);
                    HeldInstance {
                        instance,
                        incarnation,
                        kind: world::kind(["arena", "duel", "saga"][usize::from(c % 3)]),
                        seats: vec![HeldSeat {
                            seat: Seat(u16::from(c % 4)),
                            user: user(number),
                            session,
                            away: c % 2 == 0,
                        }],
                        meta: Default::default(),
                        key: (number < 2).then(|| Key::new("x").expect("it is short")),
                        owner: (c < 99).then(|| user(c)),
                        created_ms: u64::from(c),
                        open: a % 5 != 0,
                        private: a % 7 == 0,
                    }
                })
                .collect();
            Command::GameUp(origin(game_server), report)
        }
        2 => Command::LinkLost(Role::Session, origin(session_server)),
        3 if c % 4 == 3 => Command::Died(origin(game_server)),
        3 => Command::LinkLost(Role::Game, origin(game_server)),
        4 => {
            let load = SessionLoad {
                connections: 1,
                busy_permille: 2,
                draining: a < 60,
                counts: SessionCounts::default(),
            };
            Command::SessionLoad(origin(session_server), load)
        }
        5 => {
            let load = GameLoad {
                instances: 1,
                seats: 1,
                busy_permille: 9,
                draining: a < 60,
                sent: 0,
                counts: GameCounts::default(),
            };
            Command::GameLoad(origin(game_server), load)
        }
        6 => Command::SessionReceived(origin(session_server), u64::from(a)),
        7 => Command::GameReceived(origin(game_server), u64::from(a)),
        8 | 9 => {
            let bind = Bind {
                number: u64::from(c),
                session_key: SessionKey([a % 8; 16]),
                user: user(if c < 200 { a } else { b }),
                name: "a name".into(),
                trace: None,
            };
            Command::Bind(origin(session_server), bind)
        }
        10 => {
            let (session, generation) = heard.session(a);
            let unbind = Unbind { session, generation };
            Command::Unbind(origin(session_server), next(session_server), unbind)
        }
        11..=16 => {
            let (session, _) = heard.session(a);
            let instance = heard.instance(c).0;
            let key = ["x", "y", "z"].get(usize::from(b)).copied();
            let kind = ["arena", "duel", "saga", "saga", "chess"][usize::from(c % 5)];
            // Some bring friends, some want to be alone, some are particular.
            let expected: Vec<UserId> = if a % 4 == 0 {
                (0..b).map(|number| user(number + c % 3)).collect()
            } else {
                vec![]
            };
            let mode = ["ranked", "casual"][usize::from(a % 2)];
            let filter = match a % 5 {
                0 => Filter::Eq("mode".into(), MetaValue::Text(mode.into())),
                1 => Filter::Ne("mode".into(), MetaValue::Text(mode.into())),
                2 if c == 5 => Filter::Eq("moon".into(), MetaValue::Int(1)),
                _ => Filter::default(),
            };
            let request = match what {
                11 => match create(kind, key) {
                    Request::Create(create) => {
                        Create { private: a % 7 == 0, expected, ..create }.into()
                    }
                    _ => unreachable!("a helper makes what it is called"),
                },
                12 => join(instance),
                13 | 14 => match join_or_create(kind, key) {
                    Request::JoinOrCreate(join) => {
                        JoinOrCreate { private: a % 7 == 0, expected, filter, ..join }.into()
                    }
                    _ => unreachable!("a helper makes what it is called"),
                },
                15 => leave(instance),
                _ if c % 2 == 0 => destroy(instance),
                _ => Request::Unknown(c),
            };
            Command::Ask {
                origin: origin(session_server),
                session,
                id: RequestId(u32::from(c % 32)),
                answered: RequestId(u32::from((c % 32).saturating_sub(b))),
                request,
            }
        }
        17..=21 => {
            let (instance, incarnation) = heard.instance(a);
            let event = match what {
                17 | 18 => Event::Running(Running {
                    instance,
                    incarnation,
                    meta: match c % 3 {
                        0 => [("mode".into(), MetaValue::Text("ranked".into()))].into(),
                        1 => [("mode".into(), MetaValue::Text("casual".into()))].into(),
                        _ => Default::default(),
                    },
                    open: true,
                    private: a % 7 == 0,
                }),
                19 => {
                    let state = [SeatState::Taken, SeatState::Away, SeatState::Free];
                    Event::SeatChanged(SeatChanged {
                        instance,
                        incarnation,
                        seat: Seat(u16::from(b)),
                        session: heard.session(c).0,
                        state: state[usize::from(c % 3)],
                    })
                }
                20 => {
                    let open = c % 3 != 0;
                    let meta =
                        [("a".into(), greenroom_protocol::wire::client_session::MetaValue::Int(3))];
                    Event::MetaChanged(MetaChanged {
                        instance,
                        incarnation,
                        meta: meta.into(),
                        open,
                        private: a % 7 == 0,
                    })
                }
                _ if c % 2 == 0 => Event::CreateRefused(CreateRefused {
                    instance,
                    incarnation,
                    refusal: refusal(),
                }),
                _ if c % 3 == 0 => Event::HandedOver(HandedOver { instance, incarnation }),
                _ => Event::Closed(Closed { instance, incarnation, refusal: refusal() }),
            };
            Command::Happened(origin(game_server), next(game_server), event)
        }
        22 if c % 8 == 7 => Command::ClockAt(world.now_ms + u64::from(a) * 60_000),
        22 => Command::Expire,
        24 => {
            let name = [session_server, game_server][usize::from(a % 2)];
            Command::Act { number: 3, action: Action::Drain { server: self::server(name) } }
        }
        25 => {
            let (instance, incarnation) = heard.instance(a);
            let scored = Scored {
                instance,
                incarnation,
                board: ["week", "month", "", "a\u{7}board"][usize::from(c % 4)].into(),
                user: user(b),
                name: "a name".into(),
                score: (c % 5 != 0).then(|| i64::from(c % 7)),
            };
            Command::Happened(origin(game_server), next(game_server), Event::Scored(scored))
        }
        _ if c % 8 == 7 => {
            let (instance, Incarnation(life)) = heard.instance(a);
            let restore = RestoreInstance {
                instance: if c % 16 == 7 { instance } else { InstanceId(u128::from(a) + 1) },
                incarnation: Incarnation(life.wrapping_add(1)),
                kind: kind(if b % 4 == 0 { "arena" } else { "saga" }),
                owner: Some(user(b)),
                key: (b % 3 == 0).then(|| Key::new("a key").expect("a name")),
                created_ms: u64::from(a),
                private: b % 2 == 0,
            };
            Command::Act { number: 4, action: Action::Restore(Box::new(restore)) }
        }
        _ if c % 2 == 0 => Command::Act { number: 1, action: Action::Kick { user: user(a) } },
        _ => {
            let action = Action::Destroy { instance: heard.instance(a).0 };
            Command::Act { number: 2, action }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    /// Method: random acts on two session servers and two game servers, which now and then restart. After each, every
    /// list and index is compared with the records; at the end, a fresh core replays the log.
    #[test]
    fn a_replay_of_any_log_gives_the_same_state_and_the_same_effects(
        acts in prop::collection::vec((act(), 0u64..40_000), 1..160),
        settings in any::<bool>(),
    ) {
        // One that ran before, and a small one that did not.
        let settings = if settings {
            Settings { rejoin_grace_ms: 20_000, ..Settings::default() }
        } else {
            Settings {
                sessions_max: 3,
                seats_max: 2,
                requests_max: 2,
                stream_max: 4,
                board_members_max: 2,
                rejoin_grace_ms: 0,
                ..Settings::default()
            }
        };
        let mut world = World::with(settings);
        world.session_up("s1");
        world.game_up("g1");
        let mut heard = Heard::default();
        let mut streams = Streams::new();
        for (act, wait) in acts {
            world.now_ms += wait / 10;
            if act.c == 77 {
                let name = ["s1", "s2", "g1", "g2"][usize::from(act.b % 4)];
                world.restart(name);
                streams.remove(name);
            }
            let command = command(&world, &heard, &mut streams, &act);
            world.apply(command);
            heard.listen(&mut world);
        }
        let (again, effects) = replay(State::new(&world::secret(), settings), &world.log);
        prop_assert_eq!(again.state_hash(), world.state.state_hash());
        prop_assert_eq!(effects, world.all);
    }
}

#[test]
fn the_state_hash_sees_a_change() {
    let mut world = World::small();
    let before = world.state.state_hash();
    assert_eq!(before, world.state.state_hash());
    world.user(1);
    assert_ne!(before, world.state.state_hash());
}
