//! What the store is told of: profiles, instances that stay, and boards.

#![expect(clippy::wildcard_enum_match_arm, reason = "what is not expected is the other arm")]

mod world;

use greenroom_master_core::{CheckedIn, Command, Document, Event, RankedMember, Settings};
use greenroom_protocol::wire::client_session::{Rank, RankPart};
use greenroom_protocol::wire::master_game::Scored;
use greenroom_protocol::wire::session_master::Outcome;
use greenroom_protocol::{Code, Incarnation, InstanceId, UserId};
use world::{World, create, destroy, users};

fn scored(
    world: &mut World,
    (instance, incarnation): (InstanceId, Incarnation),
    user: u8,
    score: Option<i64>,
) {
    let user = users([user]).remove(0);
    let scored =
        Scored { instance, incarnation, board: "wins".into(), user, name: "x".into(), score };
    world.happened("g1", Event::Scored(scored));
}

/// What the store is told from here on.
fn told(world: &World, from: u64) -> Vec<Document> {
    world.state.documents().from(from).map(|placed| placed.what.clone()).collect()
}

#[test]
fn a_check_in_is_told_to_the_store_with_the_numbers_of_its_command_and_a_resume_is_not() {
    let mut world = World::small();
    let bound = world.bind("s1", 1, "ann").unwrap();
    let placed: Vec<_> = world.state.documents().from(0).cloned().collect();
    let user = UserId::new("ann").unwrap();
    let [placed] = &placed[..] else { panic!("{placed:?}") };
    assert!(
        matches!(&placed.what, Document::CheckedIn(CheckedIn { user: told, .. }) if *told == user)
    );
    assert_eq!((placed.epoch, placed.lsn), world.state.stands_at());
    world.unbind("s1", &bound);
    world.bind("s1", 1, "ann").unwrap();
    assert_eq!(told(&world, 1), []);
}

#[test]
fn an_instance_with_a_key_is_told_to_the_store_until_it_is_over_and_another_one_never() {
    let mut world = World::small();
    let ann = world.user(1);
    let from = world.state.documents().first() + world.state.documents().from(0).count() as u64;
    world.ask(ann, 1, create("arena", None));
    world.make_all("g1");
    assert_eq!(told(&world, from), []);
    world.ask(ann, 2, create("arena", Some("stays")));
    world.make_all("g1");
    let states: Vec<_> = told(&world, from)
        .into_iter()
        .map(|document| match document {
            Document::Kept(kept) => (kept.key.unwrap().to_string(), kept.state),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(states, [("stays".to_owned(), "granted"), ("stays".to_owned(), "running")]);
    let Some(Document::Kept(kept)) = told(&world, from).pop() else { panic!("it is there") };
    world.ask(ann, 3, destroy(kept.instance));
    world.closed("g1", kept.instance, kept.incarnation, Code::Destroyed);
    assert_eq!(told(&world, from).pop(), Some(Document::Over(kept.instance)));
}

#[test]
fn scores_are_told_to_the_store_when_they_change() {
    let mut world = World::with(Settings { board_members_max: 2, ..Settings::default() });
    world.session_up("s1");
    world.game_up("g1");
    let (_, granted) = world.play(1, "arena", None);
    let at = (granted.instance, granted.incarnation);
    let from = world.state.documents().from(0).count() as u64;
    for (user, score) in
        [(1, Some(5)), (1, Some(5)), (2, Some(7)), (3, Some(6)), (4, Some(1)), (2, None), (2, None)]
    {
        scored(&mut world, at, user, score);
    }
    let user = |number| users([number]).remove(0).to_string();
    let told: Vec<_> = told(&world, from)
        .into_iter()
        .map(|document| match document {
            Document::Ranked(RankedMember { user, score, since, .. }) => {
                (user.to_string(), Some((score, since)))
            }
            Document::Unranked { user, .. } => (user.to_string(), None),
            other => panic!("{other:?}"),
        })
        .collect();
    let expected = [
        (user(1), Some((5, 1))),
        (user(2), Some((7, 2))),
        // The board has two places.
        (user(3), Some((6, 3))),
        (user(1), None),
        (user(2), None),
    ];
    assert_eq!(told, expected);
}

#[test]
fn what_an_earlier_era_stored_of_boards_is_taken_back_where_this_one_does_not_know_better() {
    let mut world = World::with(Settings { board_members_max: 3, ..Settings::default() });
    world.session_up("s1");
    world.game_up("g1");
    let (_, granted) = world.play(1, "arena", None);
    scored(&mut world, (granted.instance, granted.incarnation), 1, Some(10));
    let member = |number, score, since| RankedMember {
        board: "wins".into(),
        user: users([number]).remove(0),
        name: "x".into(),
        score,
        since,
    };
    // User 1 plays again already. Users 3 and 2 had the same score, and 3 had it first.
    let stored = [member(1, 99, 8), member(2, 7, 6), member(3, 7, 5), member(4, 1, 2)];
    let effects = world.apply(Command::Stored(stored.to_vec()));
    assert!(effects.is_empty(), "{effects:?}");
    let rank = Rank { board: "wins".into(), part: RankPart::From(1), limit: 10 };
    let session = world.user(9);
    let Outcome::Ranking(ranking) = world.state.rank(&rank, session) else { panic!("a ranking") };
    let told: Vec<_> = ranking.ranks.iter().map(|rank| (rank.user.clone(), rank.score)).collect();
    let user = |number| users([number]).remove(0);
    assert_eq!(told, [(user(1), 10), (user(3), 7), (user(2), 7)]);
    // Again, as after a crash on the way, it changes nothing.
    world.apply(Command::Stored(stored.to_vec()));
    let Outcome::Ranking(again) = world.state.rank(&rank, session) else { panic!("a ranking") };
    assert_eq!(again, ranking);
    assert!(!world.state.is_ranked(&"wins".into(), &user(4)));
    world.go_on_restored();
}
