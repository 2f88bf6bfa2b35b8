//! What who searches may rely on: which index answers, how much is looked at, where the next page begins, and what is
//! said of a search that can't be answered.

#![expect(
    clippy::unwrap_used,
    reason = "a search that is refused where it should not be is a failed test"
)]

mod world;

use greenroom_master_core::{Effect, Event};
use greenroom_protocol::search::{
    FILTER_DEPTH_MAX, FieldIndex, FieldInfo, FieldType, Filter, Order, Query,
};
use greenroom_protocol::wire::admin_master::{Action, Find, Row, Rows, Table};
use greenroom_protocol::wire::client_session::{Found, Meta, MetaValue, Search};
use greenroom_protocol::wire::master_game::{GameReport, HeldInstance, MetaChanged, Running};
use greenroom_protocol::wire::server_server::Role;
use greenroom_protocol::wire::session_master::Outcome;
use greenroom_protocol::{Code, Incarnation, InstanceId, Refusal};
use world::{World, create, join_or_create_where, kind, seat};

fn field(name: &str, holds: FieldType, index: FieldIndex) -> FieldInfo {
    FieldInfo { name: name.into(), holds, index }
}

/// What instances of `arena` say of themselves in these tests.
fn fields() -> Vec<FieldInfo> {
    vec![
        field("mode", FieldType::Keyword, FieldIndex::Equal),
        field("rating", FieldType::Number, FieldIndex::Ordered),
        field("title", FieldType::Text, FieldIndex::Prefix),
        field("ranked", FieldType::Boolean, FieldIndex::Equal),
        field("level", FieldType::Number, FieldIndex::None),
    ]
}

fn report(version: u32, fields: &[FieldInfo]) -> GameReport {
    let mut report = World::game_report("g1", 1_000_000);
    for kind in &mut report.kinds {
        kind.version = version;
        kind.fields = if kind.name.as_str() == "arena" { fields.to_vec() } else { Vec::new() };
    }
    report
}

fn text(text: &str) -> MetaValue {
    MetaValue::Text(text.into())
}

/// An instance by number, as a game server says it runs: the larger the number, the larger the id and the younger.
fn held(number: u64, meta: &[(&str, MetaValue)]) -> HeldInstance {
    HeldInstance {
        created_ms: number,
        meta: meta.iter().map(|(name, value)| ((*name).into(), value.clone())).collect(),
        ..World::held(id(number), "arena", None)
    }
}

fn id(number: u64) -> InstanceId {
    InstanceId(u128::from(number) << 90)
}
fn number(id: InstanceId) -> u64 {
    u64::try_from(id.0 >> 90).unwrap()
}

/// A cluster whose game server runs these.
fn with(instances: Vec<HeldInstance>) -> World {
    let mut world = World::new();
    world.session_up("s1");
    world.game_reports("g1", GameReport { instances, ..report(1, &fields()) });
    world
}

/// `count` instances: every second one is ranked, ratings go from 0 to 999 and begin anew, each has a level of its own.
fn many(count: u64) -> World {
    let int = |number: u64| MetaValue::Int(i64::try_from(number).unwrap());
    let instance = |number| {
        let mode = if number % 2 == 0 { "ranked" } else { "duel" };
        held(
            number,
            &[("mode", text(mode)), ("rating", int(number % 1_000)), ("level", int(number))],
        )
    };
    with((0..count).map(instance).collect())
}

fn search(query: &str) -> Search {
    let Query { filter, order, limit } = Query::parse(query).unwrap();
    let limit = limit.unwrap_or(100);
    Search { filter, order, limit, explain: true, ..world::everything("arena") }
}

fn try_search(world: &World, search: &Search) -> Result<Found, Refusal> {
    match world.state.search(search) {
        Outcome::Found(found) => Ok(found),
        Outcome::Refused(refusal) => Err(refusal),
        Outcome::Created(_)
        | Outcome::Granted(_)
        | Outcome::Left(_)
        | Outcome::Destroyed(_)
        | Outcome::Watching(_)
        | Outcome::Unwatched(_)
        | Outcome::Ranking(_) => panic!("no answer to a search"),
    }
}

/// The numbers of what is found.
fn numbers(world: &World, query: &str) -> Vec<u64> {
    let found = try_search(world, &search(query)).unwrap();
    found.instances.iter().map(|listed| number(listed.instance)).collect()
}

fn refused(world: &World, search: &Search) -> Refusal {
    try_search(world, search).unwrap_err()
}

fn find(query: &str, table: Table) -> Find {
    let Query { filter, order, limit } = Query::parse(query).unwrap();
    Find { table, filter, order, limit: limit.unwrap_or(100), cursor: None }
}

/// The numbers of what an operator finds.
fn operators(world: &World, query: &str) -> Vec<u64> {
    let Rows { rows, .. } =
        world.state.find(&find(query, Table::Instances(kind("arena")))).unwrap();
    rows.iter().map(|row| number(id_of(row))).collect()
}

fn id_of(Row { fields }: &Row) -> InstanceId {
    match &fields["id"] {
        MetaValue::Text(id) => id.parse().unwrap(),
        MetaValue::Bool(_) | MetaValue::Int(_) => panic!("an id is a text"),
    }
}

/// Whether the last command was told to be wrong, and so.
fn told(world: &World, words: &str) -> bool {
    world.effects.iter().any(|effect| match effect {
        Effect::Illegal { what, .. } => what.contains(words),
        Effect::Welcome(..)
        | Effect::Renewed(..)
        | Effect::ToSession(..)
        | Effect::Acted { .. } => false,
    })
}

fn change(world: &mut World, number: u64, meta: &[(&str, MetaValue)], open: bool, private: bool) {
    let HeldInstance { instance, meta, .. } = held(number, meta);
    let incarnation = Incarnation(9);
    let changed = MetaChanged { instance, incarnation, meta, open, private };
    world.happened("g1", Event::MetaChanged(changed));
}

#[test]
fn the_narrowest_index_answers_and_the_explanation_says_so() {
    let world = many(2_000);
    let query = r#"mode = "ranked" and rating between 10 and 13 and level < 1000"#;
    let found = try_search(&world, &search(query)).unwrap();
    let explain = found.explain.unwrap();
    assert_eq!(explain.index, "rating between 10 and 13");
    assert_eq!((explain.examined, explain.matched), (8, 2));
    assert!(!explain.ordered_by_index);
    let considered: Vec<(&str, u64)> =
        explain.considered.iter().map(|way| (way.index.as_str(), way.entries)).collect();
    assert_eq!(
        considered,
        [("rating between 10 and 13", 8), (r#"mode = "ranked""#, 1_000), ("every record", 2_000)]
    );
    assert_eq!(
        found.instances.iter().map(|found| number(found.instance)).collect::<Vec<_>>(),
        [10, 12]
    );
}

#[test]
fn an_order_comes_from_its_index_where_that_is_less_work() {
    let world = many(2_000);
    // Every second one is let through: ten are found among about twenty.
    let walked = search(r#"mode = "ranked" order by created desc limit 10"#);
    let explain = try_search(&world, &walked).unwrap().explain.unwrap();
    assert!(explain.ordered_by_index);
    assert_eq!(explain.index, "every record, by created");
    assert_eq!(explain.examined, 20);
    // Two are let through: they are collected and sorted.
    let sorted = search("rating = 7 order by created desc limit 10");
    let found = try_search(&world, &sorted).unwrap();
    assert!(!found.explain.as_ref().unwrap().ordered_by_index);
    assert_eq!(found.explain.unwrap().examined, 2);
    assert_eq!(
        found.instances.iter().map(|found| number(found.instance)).collect::<Vec<_>>(),
        [1_007, 7]
    );
    // A part of the order's own index.
    let part = search("rating > 990 order by rating desc limit 3");
    let explain = try_search(&world, &part).unwrap().explain.unwrap();
    assert_eq!((explain.index.as_str(), explain.examined), ("rating > 990", 3));
    assert!(explain.ordered_by_index);
}

#[test]
fn several_values_of_an_indexed_field_are_several_parts_of_its_index() {
    let world = many(2_000);
    for query in ["rating in (5, 7, 5)", "rating = 7 or rating = 5 or rating between 5 and 5"] {
        let found = try_search(&world, &search(query)).unwrap();
        assert_eq!(found.explain.unwrap().examined, 4, "{query}");
        assert_eq!(numbers(&world, query), [5, 7, 1_005, 1_007]);
    }
    assert_eq!(numbers(&world, "rating >= 5 and rating < 7 and level > 999"), [1_005, 1_006]);
    assert_eq!(numbers(&world, "rating between 7 and 5"), [0; 0]);
}

#[test]
fn a_search_that_is_too_broad_stops_and_names_the_field_that_would_help() {
    let world = many(41_000);
    // A field of the filter without an index, and nothing else to go by.
    let refusal = refused(&world, &search("level = 999999"));
    assert_eq!(refusal.code, Code::TooBroad);
    assert!(refusal.message.contains("declare level with an index"), "{refusal}");
    assert!(refusal.message.contains("20000 of 41000"), "{refusal}");
    // Indexes that leave too much: the widest is named.
    let refusal =
        refused(&world, &search(r#"mode = "ranked" and created >= 1 and seats_taken > 3"#));
    assert!(refusal.message.contains("created alone lets 40999 through"), "{refusal}");
    // An order without an index.
    let refusal = refused(&world, &search("order by level"));
    assert!(refusal.message.contains("declare level with an index"), "{refusal}");
    let refusal = refused(&world, &search("order by seats_free"));
    assert!(refusal.message.contains("no index has seats_free in order"), "{refusal}");
    // What is let through is there, but it is the last of them: it stops before.
    let refusal = refused(&world, &search("seats_free > 0 and level = 40999 limit 1"));
    assert_eq!(refusal.code, Code::TooBroad);
    // What one index leaves is not too much, whatever the order.
    let narrow = r#"mode = "ranked" and rating < 400 and level = 40000"#;
    for order in ["", " order by level", " order by created desc", " order by title"] {
        let found = try_search(&world, &search(&format!("{narrow}{order}"))).unwrap();
        assert_eq!(number(found.instances[0].instance), 40_000);
        assert!(found.explain.unwrap().examined <= 20_000);
    }
}

#[test]
fn a_search_with_many_conditions_may_look_at_fewer_records() {
    let world = many(10_000);
    // Each of these is let through by the last condition only: nobody is spared one of them.
    let any = |conditions: i64| {
        let wrong = (1..conditions).map(|number| format!("title prefix \"{number}\""));
        let all: Vec<String> = wrong.chain(["level >= 0".into()]).collect();
        format!("({})", all.join(" or "))
    };
    for (conditions, records) in [(8, 9_000), (16, 9_000), (32, 5_000), (64, 2_500)] {
        let narrow = |to: u64| format!("created < {to} and {} order by level", any(conditions - 1));
        let found = try_search(&world, &search(&narrow(records))).unwrap();
        assert_eq!(found.instances.len(), 100, "{conditions}");
        let explain = found.explain.unwrap();
        assert!(u64::from(explain.examined) >= records, "{conditions}: {explain:?}");
        if conditions > 16 {
            let refusal = refused(&world, &search(&narrow(records + 1)));
            assert_eq!(refusal.code, Code::TooBroad);
            let most = format!("more than {records} of 10000");
            assert!(refusal.message.contains(&most), "{refusal}");
            let bound = format!("the most with {conditions} conditions (20000 with up to 8)");
            assert!(refusal.message.contains(&bound), "{refusal}");
        }
    }
    // Many values of one condition are looked up, and cost what one does.
    let values: Vec<String> = (0..63).map(|value| value.to_string()).collect();
    let found = numbers(&world, &format!("level in ({}) order by level", values.join(", ")));
    assert_eq!(found.len(), 63);
}

#[test]
fn who_wants_any_with_many_conditions_is_not_looked_for_longer() {
    let mut world = many(3_000);
    let conditions = |count: i64| {
        let all: Vec<String> = (1..=count).map(|level| format!("level = -{level}")).collect();
        join_or_create_where("arena", None, &all.join(" or "))
    };
    let session = world.user(1);
    let refused = world.ask(session, 1, conditions(64)).unwrap();
    assert!(matches!(&refused, Outcome::Refused(refusal) if refusal.code == Code::TooBroad));
    assert_eq!(world.ask(session, 2, conditions(8)), None, "none is there: one is made");
    assert_eq!(world.makes("g1").len(), 1);
}

#[test]
fn a_page_after_another_shows_nothing_twice_and_leaves_nothing_out_that_stayed() {
    for order in ["order by rating", "order by rating desc", "order by level desc", ""] {
        let mut world = many(300);
        let all = numbers(&world, &format!("{order} limit 100"));
        let mut page = search(&format!("{order} limit 20"));
        let first = try_search(&world, &page).unwrap();
        let seen: Vec<u64> = first.instances.iter().map(|found| number(found.instance)).collect();
        assert_eq!(seen, all[..20]);
        // The last that was seen goes, one that was seen moves to the end, and one comes before all of them.
        for gone in [seen[19], seen[3]] {
            world.closed("g1", id(gone), Incarnation(9), Code::Destroyed);
        }
        let back = if order.ends_with("desc") { -1 } else { 1_000 };
        let values = [("rating", MetaValue::Int(back)), ("level", MetaValue::Int(back))];
        change(&mut world, seen[5], &values, true, false);
        page.cursor = first.cursor;
        let second = try_search(&world, &page).unwrap();
        let then: Vec<u64> = second.instances.iter().map(|found| number(found.instance)).collect();
        assert_eq!(then, all[20..40], "{order}");
        // The same again is the same again.
        assert_eq!(try_search(&world, &page).unwrap().instances, second.instances);
        // To the end: everything that stayed is there once.
        page.cursor = second.cursor;
        let mut rest = then.len();
        while page.cursor.is_some() {
            let next = try_search(&world, &page).unwrap();
            rest += next.instances.len();
            page.cursor = next.cursor;
        }
        assert!([280, 281].contains(&rest), "{rest}: one may have moved to where it comes again");
    }
}

#[test]
fn an_operators_pages_go_through_what_is_listed_and_what_is_hidden_in_one_order() {
    let mut world = many(60);
    for number in 0..60 {
        let private = number % 3 == 0;
        change(
            &mut world,
            number,
            &[("rating", MetaValue::Int(i64::try_from(number).unwrap() / 4))],
            true,
            private,
        );
    }
    for (order, descending) in
        [("", false), ("order by rating", false), ("order by rating desc", true)]
    {
        let mut page = find(&format!("{order} limit 7"), Table::Instances(kind("arena")));
        let mut all = Vec::new();
        loop {
            let rows = world.state.find(&page).unwrap();
            all.extend(rows.rows.iter().map(|row| number(id_of(row))));
            page.cursor = rows.cursor;
            if page.cursor.is_none() {
                break;
            }
        }
        let mut expected: Vec<u64> = (0..60).collect();
        if descending {
            expected.reverse();
        }
        assert_eq!(all, expected);
    }
}

#[test]
fn a_cursor_of_another_search_or_of_nobody_is_refused_by_name() {
    let world = many(50);
    let first = search(r#"mode = "ranked" order by rating limit 5"#);
    let cursor = try_search(&world, &first).unwrap().cursor.unwrap();
    let same = Search { cursor: Some(cursor.clone()), limit: 9, explain: false, ..first.clone() };
    assert!(try_search(&world, &same).is_ok());
    let mut others = vec![
        search(r#"mode = "duel" order by rating limit 5"#),
        search(r#"mode = "ranked" order by rating desc limit 5"#),
        search(r#"mode = "ranked" order by created limit 5"#),
        search(r#"mode = "ranked" limit 5"#),
        Search { kind: kind("duel"), ..search("limit 5") },
    ];
    for other in &mut others {
        other.cursor = Some(cursor.clone());
        let code = refused(&world, other).code;
        assert_eq!(code, Code::CursorInvalid, "{other:?}");
    }
    let mut bytes = cursor.to_vec();
    bytes[10] ^= 1;
    for garbage in [Vec::new(), vec![0; 7], vec![0; 64], cursor[..12].to_vec(), bytes] {
        let search = Search { cursor: Some(garbage.into()), ..first.clone() };
        assert_eq!(refused(&world, &search).code, Code::CursorInvalid);
    }
    // An operator's is another search: what it goes through is not what a client does.
    let find = Find {
        cursor: Some(cursor),
        ..find(r#"mode = "ranked" order by rating limit 5"#, Table::Instances(kind("arena")))
    };
    assert_eq!(world.state.find(&find).unwrap_err().code, Code::CursorInvalid);
}

#[test]
fn what_can_not_be_asked_is_refused_by_name() {
    let world = many(3);
    let refused_filter = |filter: Filter| refused(&world, &Search { filter, ..search("") });
    let unknown = refused_filter(Filter::Eq("mood".into(), text("duel")));
    assert_eq!(unknown.code, Code::FieldUnknown);
    assert!(unknown.message.contains("no field mood"), "{unknown}");
    assert!(unknown.message.contains("seats_free"), "{unknown}");
    assert!(unknown.message.ends_with("mode, rating, title, ranked, level"), "{unknown}");
    let order = Some(Order { field: "mood".into(), descending: false });
    assert_eq!(refused(&world, &Search { order, ..search("") }).code, Code::FieldUnknown);

    for (filter, words) in [
        (
            Filter::Eq("rating".into(), text("x")),
            r#"rating of instances of "arena" holds a number"#,
        ),
        (Filter::In("mode".into(), vec![text("a"), MetaValue::Int(1)]), "with the number 1"),
        (Filter::Ne("ranked".into(), MetaValue::Int(1)), "holds a boolean"),
        (Filter::Lt("mode".into(), text("x")), "by =, != and in"),
        (
            Filter::Between("ranked".into(), MetaValue::Bool(true), MetaValue::Bool(true)),
            "by =, != and in",
        ),
        (Filter::Between("rating".into(), MetaValue::Int(1), text("x")), r#"with the text "x""#),
        (Filter::Prefix("rating".into(), "1".into()), "only a text"),
        (Filter::Prefix("mode".into(), "ra".into()), "only a text"),
        (Filter::Eq("id".into(), text("7")), "not an instance's id"),
        (Filter::Gt("id".into(), text("7")), "by =, != and in"),
    ] {
        let refusal = refused_filter(Filter::Not(Box::new(filter)));
        assert_eq!(refusal.code, Code::FieldMismatch, "{refusal}");
        assert!(refusal.message.contains(words), "{refusal}");
    }

    let deep = |depth| {
        let innermost = Filter::Eq("mode".into(), text("duel"));
        (0..depth).fold(innermost, |inner, _| Filter::Not(Box::new(inner)))
    };
    assert_eq!(refused_filter(deep(FILTER_DEPTH_MAX + 1)).code, Code::FilterTooDeep);
    assert_eq!(refused_filter(deep(100)).code, Code::FilterTooDeep);
    let many = vec![text("x"); 65];
    assert_eq!(refused_filter(Filter::In("mode".into(), many)).code, Code::FilterTooLarge);

    for limit in [0, 101, u16::MAX] {
        let refusal = refused(&world, &Search { limit, ..search("") });
        assert_eq!(refusal.code, Code::LimitInvalid);
        let find = Find { limit, ..find("", Table::Users) };
        assert_eq!(world.state.find(&find).unwrap_err().code, Code::LimitInvalid);
    }
    let refusal = refused(&world, &Search { kind: kind("chess"), ..search("") });
    assert_eq!(refusal.code, Code::KindUnknown);
    assert!(refusal.message.contains("arena, duel"), "{refusal}");
}

#[test]
fn texts_are_found_by_their_beginning_however_long_the_same_beginning_is() {
    let titles = [
        "together for ever",
        "together for once",
        "together fo",
        "together",
        "toge",
        "together\0",
        "together for\0",
        "zoo",
        "",
        "together for ever and ever",
    ];
    let world =
        with((0..).zip(titles).map(|(n, title)| held(n, &[("title", text(title))])).collect());
    let begins = |beginning: &str| {
        let filter = Filter::Prefix("title".into(), beginning.into());
        let found = try_search(&world, &Search { filter, ..search("") }).unwrap();
        assert_eq!(found.explain.unwrap().examined as usize, found.instances.len());
        found.instances.iter().map(|found| number(found.instance)).collect::<Vec<u64>>()
    };
    assert_eq!(begins("toge"), [0, 1, 2, 3, 4, 5, 6, 9]);
    assert_eq!(begins("together"), [0, 1, 2, 3, 5, 6, 9]);
    assert_eq!(begins("together for"), [0, 1, 6, 9]);
    assert_eq!(begins("together for "), [0, 1, 9]);
    assert_eq!(begins("together for ever"), [0, 9]);
    assert_eq!(begins("together for every"), [0; 0]);
    assert_eq!(begins("").len(), titles.len());
    assert_eq!(numbers(&world, r#"title = "together""#), [3]);
    assert_eq!(numbers(&world, r#"title > "together" and title < "together for""#), [2, 5]);
    assert_eq!(numbers(&world, "order by title"), [8, 4, 3, 5, 2, 6, 0, 9, 1, 7]);
}

#[test]
fn those_that_are_equal_follow_each_other_by_id_and_those_without_the_field_are_last() {
    let int = |number| ("rating", MetaValue::Int(number));
    let world = with(vec![
        held(1, &[int(5)]),
        held(2, &[]),
        held(3, &[int(7)]),
        held(4, &[int(5)]),
        held(5, &[]),
        held(6, &[int(7)]),
    ]);
    assert_eq!(numbers(&world, "order by rating"), [1, 4, 3, 6, 2, 5]);
    assert_eq!(numbers(&world, "order by rating desc"), [6, 3, 4, 1, 5, 2]);
    assert_eq!(numbers(&world, "order by id desc limit 2"), [6, 5]);
    // The same where what is found is collected and sorted.
    assert_eq!(numbers(&world, "order by seats_free desc"), [6, 5, 4, 3, 2, 1]);
    // What is not there is not more, not less, and not equal.
    assert_eq!(numbers(&world, "rating < 100"), [1, 3, 4, 6]);
    assert_eq!(numbers(&world, "rating != 5"), [2, 3, 5, 6]);
    assert_eq!(numbers(&world, "not rating >= 7"), [1, 2, 4, 5]);
}

#[test]
fn what_is_private_locked_granted_or_closing_is_found_by_operators_only() {
    let mut world = with((1..=4).map(|number| held(number, &[])).collect());
    change(&mut world, 1, &[("rating", MetaValue::Int(1))], true, true);
    change(&mut world, 2, &[("rating", MetaValue::Int(2))], false, false);
    world.act(Action::Destroy { instance: id(3) }).unwrap();
    let ann = world.user(1);
    world.ask(ann, 1, create("arena", None));
    assert_eq!(numbers(&world, ""), [4]);
    assert_eq!(numbers(&world, "private = true or open = false"), [0; 0]);
    assert_eq!(operators(&world, "private = true"), [1]);
    assert_eq!(operators(&world, "open = false"), [2]);
    assert_eq!(operators(&world, r#"state = "closing""#), [3]);
    let granted = find(r#"state = "granted""#, Table::Instances(kind("arena")));
    let Rows { rows, .. } = world.state.find(&granted).unwrap();
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].fields["owner"], text("user 1"));
    assert_eq!(rows[0].fields["server"], text("g1"));
    // It is found as soon as it may be.
    change(&mut world, 1, &[], true, false);
    assert_eq!(numbers(&world, ""), [1, 4]);
    world.link_lost(Role::Game, "g1");
    assert_eq!(numbers(&world, r#"state = "suspect""#), [1, 4]);
}

#[test]
fn a_new_version_of_a_game_takes_over_what_it_can_of_what_its_instances_said() {
    let values =
        [("mode", text("duel")), ("rating", MetaValue::Int(3)), ("level", MetaValue::Int(9))];
    let mut world = with(vec![held(1, &values)]);
    let newer = [
        field("level", FieldType::Number, FieldIndex::Ordered),
        field("rating", FieldType::Text, FieldIndex::None),
        field("mode", FieldType::Keyword, FieldIndex::None),
        field("map", FieldType::Keyword, FieldIndex::Equal),
    ];
    let cursor = find("order by rating limit 1", Table::Instances(kind("arena")));
    world.game_reports("g2", report(2, &newer));
    assert_eq!(numbers(&world, r#"level = 9 and mode = "duel" and not rating prefix """#), [1]);
    let explain = try_search(&world, &search("level > 3")).unwrap().explain.unwrap();
    assert!(explain.considered.iter().any(|way| way.index == "level > 3"), "{explain:?}");
    assert_eq!(refused(&world, &search("ranked = true")).code, Code::FieldUnknown);
    assert!(world.state.find(&cursor).is_ok());
    // The older one reports again, as it does after a lost link: the newer one's word stands.
    world.link_lost(Role::Game, "g1");
    world.game_reports("g1", report(1, &fields()));
    assert_eq!(numbers(&world, "level > 3"), [1]);
    assert_eq!(refused(&world, &search("ranked = true")).code, Code::FieldUnknown);
    // The newer one is rolled back: it reports as the older.
    world.restart("g2");
    world.game_reports("g2", report(1, &fields()));
    assert_eq!(numbers(&world, r#"level = 9 and mode = "duel" and not rating > 0"#), [1]);
}

#[test]
fn a_bad_declaration_is_told_and_leaves_the_kind_as_it_was() {
    let mut world = with(vec![held(1, &[("rating", MetaValue::Int(3))])]);
    let number = FieldType::Number;
    let mut too_many: Vec<FieldInfo> = Vec::new();
    for n in 0..33 {
        too_many.push(field(&format!("f{n}"), number, FieldIndex::None));
    }
    for (declared, words) in [
        (vec![field("Mode!", number, FieldIndex::None)], r#"the field "Mode!", which is no name"#),
        (
            vec![field("owner", number, FieldIndex::None)],
            r#"the field "owner", which every instance has"#,
        ),
        (
            vec![field("a", number, FieldIndex::None); 2],
            r#"the field "a", which they declare twice"#,
        ),
        (vec![field("a", FieldType::Boolean, FieldIndex::Ordered)], "holds no number and no text"),
        (vec![field("a", FieldType::Boolean, FieldIndex::Prefix)], "holds no text"),
        (too_many, "33 fields; 32 are the most"),
    ] {
        world.game_reports("g2", report(2, &declared));
        assert!(told(&world, words), "{words}: {:?}", world.effects);
        assert_eq!(numbers(&world, "rating = 3"), [1]);
    }
}

#[test]
fn metadata_that_is_not_declared_is_dropped_and_told() {
    let mut world = with(vec![held(1, &[])]);
    let rating = ("rating", MetaValue::Int(3));
    change(&mut world, 1, &[rating.clone(), ("mood", text("good"))], true, false);
    assert!(told(&world, r#"the field "mood", which instances of "arena" do not declare"#));
    assert_eq!(
        world.list("arena").instances[0].meta,
        Meta::from([("rating".into(), MetaValue::Int(3))])
    );
    change(&mut world, 1, &[rating.clone(), ("mode", MetaValue::Bool(true))], true, false);
    assert!(told(&world, "the field mode with another value than a keyword"));
    // A text may take all the room that there is.
    change(&mut world, 1, &[("title", text(&"x".repeat(4_000)))], true, false);
    assert!(!told(&world, ""));
    assert_eq!(numbers(&world, r#"title prefix "xxx""#), [1]);
    // What is over its size as a whole is not read at all.
    change(&mut world, 1, &[("title", text(&"x".repeat(5_000)))], true, false);
    assert!(told(&world, "over its size"));
    assert_eq!(numbers(&world, r#"title prefix "xxx""#), [1]);
}

#[test]
fn who_wants_any_that_a_filter_lets_through_meets_in_the_fullest() {
    let mut instances: Vec<HeldInstance> = (0..200)
        .map(|number| {
            let mode = if number % 50 == 7 { "coop" } else { "duel" };
            held(number, &[("mode", text(mode)), ("level", MetaValue::Int(1))])
        })
        .collect();
    instances[107].private = true;
    let mut world = with(instances);
    let coop = r#"mode = "coop""#;
    let mut seated = Vec::new();
    for user in 1..=16 {
        let session = world.user(user);
        let outcome = world.ask(session, 1, join_or_create_where("arena", None, coop)).unwrap();
        seated.push(number(seat(&outcome).instance));
    }
    assert_eq!(seated, [7; 16]);
    // It is full: the next one, and not the private one.
    let session = world.user(17);
    let outcome = world.ask(session, 1, join_or_create_where("arena", None, coop)).unwrap();
    assert_eq!(number(seat(&outcome).instance), 57);
    // By a field without an index, in the order of fullness.
    let session = world.user(18);
    let by_level = join_or_create_where("arena", None, "level = 1");
    assert_eq!(number(seat(&world.ask(session, 1, by_level).unwrap()).instance), 57);
    // None is let through: one is made.
    let session = world.user(19);
    let none = join_or_create_where("arena", None, r#"mode = "chess""#);
    assert_eq!(world.ask(session, 1, none), None);
    assert_eq!(world.makes("g1").len(), 1);
}

#[test]
fn operators_find_users_and_servers() {
    let mut world = World::small();
    for user in [3, 1, 2] {
        world.user(user);
    }
    let (_, granted) = world.play(7, "duel", None);
    let ids = |query: &str| -> Vec<MetaValue> {
        let Rows { rows, .. } = world.state.find(&find(query, Table::Users)).unwrap();
        rows.iter().map(|row| row.fields["id"].clone()).collect()
    };
    assert_eq!(ids(""), ["user 1", "user 2", "user 3", "user 7"].map(text));
    assert_eq!(
        ids(r#"name prefix "user" order by name desc limit 2"#),
        ["user 7", "user 3"].map(text)
    );
    assert_eq!(ids("seats > 0"), [text("user 7")]);
    assert_eq!(ids(&format!("instance = \"{}\"", granted.instance)), [text("user 7")]);
    assert_eq!(ids(r#"online = true and session_server = "s2""#), []);
    let mut pages = find("limit 3", Table::Users);
    pages.cursor = world.state.find(&pages).unwrap().cursor;
    assert_eq!(world.state.find(&pages).unwrap().rows.len(), 1);

    let rows = |query: &str| world.state.find(&find(query, Table::Servers)).unwrap().rows;
    assert_eq!(rows("").len(), 2);
    let games = rows(r#"role = "game" and capacity >= 1000"#);
    assert_eq!(games[0].fields["name"], text("g1"));
    assert_eq!(games[0].fields["load"], MetaValue::Int(1));
    assert_eq!(rows(r#"state = "suspect""#), []);
    world.link_lost(Role::Game, "g1");
    let suspects = find(r#"state = "suspect""#, Table::Servers);
    assert_eq!(world.state.find(&suspects).unwrap().rows.len(), 1);
}

#[test]
fn a_search_sees_every_write_before_it() {
    let mut world = World::small();
    let ann = world.user(1);
    world.ask(ann, 1, create("arena", None));
    assert_eq!(numbers(&world, ""), [0; 0]);
    let made = world.makes("g1").remove(0);
    let (instance, incarnation) = (made.instance, made.incarnation);
    let meta = Meta::from([("mode".into(), text("duel"))]);
    let running = Running { instance, incarnation, meta, open: true, private: false };
    world.happened("g1", Event::Running(running));
    let found = try_search(&world, &search(r#"mode = "duel""#)).unwrap();
    assert_eq!(found.instances[0].instance, instance);
    world.closed("g1", instance, incarnation, Code::Destroyed);
    assert_eq!(numbers(&world, r#"mode = "duel""#), [0; 0]);
}
