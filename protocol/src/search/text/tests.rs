use proptest::prelude::*;

use super::*;
use crate::{Limits, decode, encode};

fn text(text: &str) -> MetaValue {
    MetaValue::Text(text.into())
}
fn eq(field: &str, value: impl Into<Given>) -> Filter {
    Filter::Eq(field.into(), value.into().0)
}
fn not(filter: Filter) -> Filter {
    Filter::Not(Box::new(filter))
}
fn read(text: &str) -> Filter {
    Filter::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}
/// What is said about a text that is no filter.
fn wrong(text: &str) -> String {
    Filter::parse(text).expect_err(text).to_string()
}

/// A value of either type, for short tests.
struct Given(MetaValue);
impl From<&str> for Given {
    fn from(value: &str) -> Self {
        Self(text(value))
    }
}
impl From<i64> for Given {
    fn from(value: i64) -> Self {
        Self(MetaValue::Int(value))
    }
}
impl From<bool> for Given {
    fn from(value: bool) -> Self {
        Self(MetaValue::Bool(value))
    }
}

#[test]
fn a_search_of_a_lobby_is_read_whole() {
    let query = Query::parse(
        r#"mode = "ranked" and rating between 1400 and 1600 and seats_free > 0 order by created desc limit 20"#,
    );
    let filter = Filter::And(vec![
        eq("mode", "ranked"),
        Filter::Between("rating".into(), MetaValue::Int(1_400), MetaValue::Int(1_600)),
        Filter::Gt("seats_free".into(), MetaValue::Int(0)),
    ]);
    let order = Some(Order { field: "created".into(), descending: true });
    assert_eq!(query, Ok(Query { filter, order, limit: Some(20) }));
}

#[test]
fn every_comparison_is_read() {
    let five = || MetaValue::Int(5);
    assert_eq!(read("a = 5"), Filter::Eq("a".into(), five()));
    assert_eq!(read("a != 5"), Filter::Ne("a".into(), five()));
    assert_eq!(read("a <> 5"), Filter::Ne("a".into(), five()));
    assert_eq!(read("a < 5"), Filter::Lt("a".into(), five()));
    assert_eq!(read("a <= 5"), Filter::Le("a".into(), five()));
    assert_eq!(read("a > 5"), Filter::Gt("a".into(), five()));
    assert_eq!(read("a>=5"), Filter::Ge("a".into(), five()));
    assert_eq!(read("a in (5)"), Filter::In("a".into(), vec![five()]));
    assert_eq!(read("a in ()"), Filter::In("a".into(), vec![]));
    assert_eq!(
        read("a in (5, 'x', true)"),
        Filter::In("a".into(), vec![five(), text("x"), MetaValue::Bool(true)])
    );
    assert_eq!(read("a prefix \"de\""), Filter::Prefix("a".into(), "de".into()));
    assert_eq!(read("a starts with 'de'"), Filter::Prefix("a".into(), "de".into()));
}

#[test]
fn not_may_stand_before_an_operator_that_is_a_word() {
    for (inside, before) in [
        ("a not in (1, 2)", "not a in (1, 2)"),
        ("a not between 1 and 2", "not a between 1 and 2"),
        ("a not prefix 'x'", "not a prefix 'x'"),
        ("a not starts with 'x'", "not a starts with 'x'"),
    ] {
        assert!(matches!(read(inside), Filter::Not(_)));
        assert_eq!(read(inside), read(before));
    }
}

#[test]
fn not_binds_closer_than_and_and_and_closer_than_or() {
    let [a, b, c] = ["a", "b", "c"].map(|name| eq(name, true));
    assert_eq!(
        read("not a and b or c"),
        Filter::Or(vec![Filter::And(vec![not(a.clone()), b.clone()]), c.clone()])
    );
    assert_eq!(
        read("a or b and not c"),
        Filter::Or(vec![a.clone(), Filter::And(vec![b.clone(), not(c.clone())])])
    );
    assert_eq!(read("not (a or b)"), not(Filter::Or(vec![a.clone(), b.clone()])));
    assert_eq!(read("(a or b) and c"), Filter::And(vec![Filter::Or(vec![a, b]), c]));
    assert_eq!(read("not not a"), not(not(eq("a", true))));
}

#[test]
fn conditions_that_follow_each_other_are_one_and_but_parentheses_are_kept() {
    let [a, b, c] = ["a", "b", "c"].map(|name| eq(name, true));
    assert_eq!(read("a and b and c"), Filter::And(vec![a.clone(), b.clone(), c.clone()]));
    assert_eq!(read("a and (b and c)"), Filter::And(vec![a, Filter::And(vec![b, c])]));
    assert_eq!(read("((((a))))"), eq("a", true));
}

#[test]
fn a_field_alone_is_true() {
    assert_eq!(read("open"), eq("open", true));
    assert_eq!(read("not open"), not(eq("open", true)));
    let query = Query::parse("open order by id").unwrap();
    assert_eq!(query.filter, eq("open", true));
    assert_eq!(Query::parse("open limit 1").unwrap().filter, eq("open", true));
    assert_eq!(read("(open)"), eq("open", true));
}

#[test]
fn the_empty_text_is_everything_and_true_and_false_are_all_and_nothing() {
    for empty in ["", "  \n\t "] {
        assert_eq!(read(empty), Filter::default());
        assert_eq!(Query::parse(empty), Ok(Query::default()));
    }
    assert_eq!(read("true"), Filter::And(vec![]));
    assert_eq!(read("false"), Filter::Or(vec![]));
    assert_eq!(read("all (a)"), Filter::And(vec![eq("a", true)]));
    assert_eq!(read("any (false)"), Filter::Or(vec![Filter::Or(vec![])]));
    assert_eq!(read("ALL(a)"), read("all (a)"));
    assert_eq!(read("all = 1 and any"), Filter::And(vec![eq("all", 1), eq("any", true)]));
}

#[test]
fn order_and_limit_may_stand_alone() {
    let order = |descending| Some(Order { field: "created".into(), descending });
    let query = |order, limit| Ok(Query { filter: Filter::default(), order, limit });
    assert_eq!(Query::parse("order by created"), query(order(false), None));
    assert_eq!(Query::parse("order by created asc limit 1"), query(order(false), Some(1)));
    assert_eq!(Query::parse("order by created desc"), query(order(true), None));
    assert_eq!(Query::parse("limit 100"), query(None, Some(100)));
}

#[test]
fn keywords_are_read_in_any_case() {
    assert_eq!(
        Query::parse(
            "NOT a AND b Not IN (TRUE, False) Or c BETWEEN 1 And 2 ORDER BY a DESC LIMIT 3"
        ),
        Query::parse(
            "not a and b not in (true, false) or c between 1 and 2 order by a desc limit 3"
        )
    );
    assert_eq!(
        read("a PREFIX 'x' or a Starts With 'y'"),
        read("a prefix 'x' or a starts with 'y'")
    );
}

#[test]
fn a_field_that_is_named_like_a_keyword_stands_in_backticks() {
    assert_eq!(read("`order` = 1 and `not`"), Filter::And(vec![eq("order", 1), eq("not", true)]));
    assert_eq!(read("in in (1)"), Filter::In("in".into(), vec![MetaValue::Int(1)]));
    assert_eq!(
        read("between between 1 and 2 and desc"),
        read("(between between 1 and 2) and desc")
    );
    assert_eq!(eq("limit", 1).to_string(), "`limit` = 1");
    let query = Query::parse("order by `order` desc").unwrap();
    assert_eq!(query.to_string(), "order by `order` desc");
}

#[test]
fn numbers_are_i64_with_or_without_a_sign() {
    assert_eq!(read("a = -9223372036854775808"), eq("a", i64::MIN));
    assert_eq!(read("a = +9223372036854775807"), eq("a", i64::MAX));
    assert_eq!(read("a=-0"), eq("a", 0));
    assert_eq!(read("a = 007"), eq("a", 7));
}

#[test]
fn texts_stand_in_quotes_of_either_kind_with_escapes() {
    assert_eq!(read(r#"a = "it's""#), eq("a", "it's"));
    assert_eq!(read(r#"a = 'a "b"'"#), eq("a", "a \"b\""));
    assert_eq!(read(r#"a = "\"\'\\\n\r\t\u{e9}\u{1F600}""#), eq("a", "\"'\\\n\r\té😀"));
    assert_eq!(read("a = 'two\nlines'"), eq("a", "two\nlines"));
    assert_eq!(read("a = ''"), eq("a", ""));
    assert_eq!(read("a='x'and b"), read("a = 'x' and b"));
}

#[test]
fn a_filter_is_written_in_one_way_with_no_parentheses_that_it_does_not_need() {
    for (given, written) in [
        ("", ""),
        ("true", ""),
        ("false", "false"),
        ("TRUE AND a", "true and a = true"),
        ("((a = 1) AND ((b<>2)))", "a = 1 and b != 2"),
        ("(a = 1 and b = 2) or c = 3", "a = 1 and b = 2 or c = 3"),
        ("(a = 1 or b = 2) and c = 3", "(a = 1 or b = 2) and c = 3"),
        ("a = 1 and (b = 2 and c = 3)", "a = 1 and (b = 2 and c = 3)"),
        ("a = 1 or (b = 2 or c = 3)", "a = 1 or (b = 2 or c = 3)"),
        ("not(a = 1)", "not a = 1"),
        ("not (a = 1 and b = 2)", "not (a = 1 and b = 2)"),
        ("not (not (a))", "not not a = true"),
        ("not a in (1,2)", "a not in (1, 2)"),
        ("not not a starts with 'x'", "not a not prefix \"x\""),
        ("a between 'x' and \"y\"", "a between \"x\" and \"y\""),
        (r#"a = '"\' \u{7}\n\u{85}é'"#, r#"a = "\"' \u{7}\n\u{85}é""#),
        ("all(a = 1 or b = 2)", "all (a = 1 or b = 2)"),
        ("not any(true)", "not any (true)"),
    ] {
        assert_eq!(read(given).to_string(), written, "{given}");
        assert_eq!(read(written), read(given), "{given}");
    }
}

#[test]
fn a_mistake_is_named_with_what_was_expected_and_where() {
    for (text, message) in [
        ("mode = ", "expected a value after \"=\", at character 8"),
        ("mode =", "expected a value after \"=\", at character 7"),
        ("mode = =", "expected a value after \"=\", found \"=\", at character 8"),
        (
            "mode = ranked",
            "expected a value after \"=\", found \"ranked\" (a text stands in quotes), at character 8",
        ),
        ("mode \"x\"", "expected an operator after \"mode\", found \"x\", at character 6"),
        ("mode like 'x'", "expected an operator after \"mode\", found \"like\", at character 6"),
        ("5 = level", "expected a condition, found \"5\", at character 1"),
        ("a and", "expected a condition, at character 6"),
        ("a or or b", "expected a condition, found \"or\", at character 6"),
        ("a and order = 1", "expected a condition, found \"order\", at character 7"),
        ("()", "expected a condition, found \")\", at character 2"),
        (
            "(a = 1",
            "expected \"and\", \"or\" or \")\" for the \"(\" at character 1, at character 7",
        ),
        ("a = 1)", "expected \"and\", \"or\" or the end, found \")\", at character 6"),
        ("a = 1 b = 2", "expected \"and\", \"or\" or the end, found \"b\", at character 7"),
        ("a = 1 limit 3", "expected \"and\", \"or\" or the end, found \"limit\", at character 7"),
        ("true = true", "expected \"and\", \"or\" or the end, found \"=\", at character 6"),
        ("a in 1", "expected \"(\" after \"in\", found \"1\", at character 6"),
        (
            "a in (1 2)",
            "expected \",\" or \")\" after a value of \"in\", found \"2\", at character 9",
        ),
        ("a in (1,)", "expected a value, found \")\", at character 9"),
        ("a in (1", "expected \",\" or \")\" after a value of \"in\", at character 8"),
        ("a between 1", "expected \"and\" after the first value of \"between\", at character 12"),
        ("a between 1 and", "expected a second value after \"and\", at character 16"),
        ("a prefix 5", "expected a text in quotes after \"prefix\", found \"5\", at character 10"),
        ("a starts 'x'", "expected \"with\" after \"starts\", found 'x', at character 10"),
        (
            "a starts with x",
            "expected a text in quotes after \"starts with\", found \"x\", at character 15",
        ),
        (
            "a not = 1",
            "expected \"in\", \"between\", \"prefix\" or \"starts with\" after \"not\", found \"=\", \
             at character 7",
        ),
        ("none (a)", "expected an operator after \"none\", found \"(\", at character 6"),
        (
            "Mode = 1",
            "\"Mode\" is no field's name: those have 1 to 64 small letters, digits and \"_\", and no digit first, \
             at character 1",
        ),
        (
            "`a b` = 1",
            "`a b` is no field's name: those have 1 to 64 small letters, digits and \"_\", and no digit first, \
             at character 1",
        ),
        ("`a = 1", "the name that begins here has no closing backtick, at character 1"),
        ("a = 'x", "the text that begins here has no closing quote, at character 5"),
        (
            r"a = 'x\y'",
            "expected \\\", \\', \\\\, \\n, \\r, \\t or \\u{…} with a character's number, at character 7",
        ),
        ("a & b", "'&' has no meaning here, at character 3"),
        ("é = 1", "'é' has no meaning here, at character 1"),
        ("a = 'é' é", "'é' has no meaning here, at character 9"),
        ("a = -", "expected digits after \"-\", at character 6"),
        (
            "a = 1.5",
            "expected a whole number: it has a sign and digits, nothing else, at character 6",
        ),
        (
            "a = 9223372036854775808",
            "the number is out of range: -9223372036854775808 to 9223372036854775807 are possible, \
             at character 5",
        ),
    ] {
        assert_eq!(wrong(text), message, "{text}");
    }
}

#[test]
fn a_mistake_in_order_or_limit_is_named_too() {
    for (text, message) in [
        ("order created", "expected \"by\" after \"order\", found \"created\", at character 7"),
        ("order by", "expected a field after \"order by\", at character 9"),
        (
            "order by limit 1",
            "expected a field after \"order by\", found \"limit\", at character 10",
        ),
        ("order by a, b", "expected \"limit\" or the end, found \",\", at character 11"),
        ("a = 1 limit", "expected a number from 1 to 100 after \"limit\", at character 12"),
        ("limit 0", "expected a number from 1 to 100 after \"limit\", found \"0\", at character 7"),
        (
            "limit 1000000",
            "expected a number from 1 to 100 after \"limit\", found \"1000000\", at character 7",
        ),
        ("limit 1 order by a", "expected the end, found \"order\", at character 9"),
        (
            "a = 1 sort by b",
            "expected \"and\", \"or\", \"order by\", \"limit\" or the end, found \"sort\", at character 7",
        ),
    ] {
        assert_eq!(Query::parse(text).expect_err(text).to_string(), message, "{text}");
    }
}

#[test]
fn an_escape_that_is_no_character_is_refused() {
    for escape in ["\\u{d800}", "\\u{110000}", "\\u{}", "\\u{+41}", "\\u{0000041}", "\\u41", "\\é"]
    {
        assert!(wrong(&format!("a = '{escape}'")).ends_with("at character 6"), "{escape}");
    }
    assert!(wrong("a = '\\").starts_with("expected \\\", \\'"));
    assert_eq!(wrong("a = '\\'"), "the text that begins here has no closing quote, at character 5");
}

#[test]
fn a_long_word_is_cut_in_the_message() {
    let message = wrong(&format!("a = {}", "x".repeat(1_000_000)));
    assert_eq!(
        message,
        "expected a value after \"=\", found \"xxxxxxxxxxxxxxxxxxxxxxxx…\" (a text stands in quotes), at character 5"
    );
}

/// Whoever types ten thousand parentheses gets an answer, and the stack of who reads them survives.
#[test]
fn nesting_is_bounded_while_it_is_read() {
    let deep = "more than 32 parentheses and \"not\"s are open, at character 33";
    assert_eq!(wrong(&"(".repeat(10_000)), deep);
    assert_eq!(
        wrong(&"all(".repeat(10_000)),
        "more than 32 parentheses and \"not\"s are open, at character 132"
    );
    assert!(wrong(&"not ".repeat(10_000)).starts_with("more than 32"));
    let open = format!("{}a{}", "(".repeat(32), ")".repeat(32));
    assert_eq!(read(&open), eq("a", true));
}

#[test]
fn a_filter_over_a_bound_is_refused_where_it_passes_it() {
    assert!(Filter::parse("not not not not not not a").is_ok());
    assert_eq!(
        wrong("not not not not not not not a"),
        "\"and\", \"or\" and \"not\" are nested more than 6 deep, at character 1"
    );
    assert_eq!(
        wrong("a and (not not not not not not a)"),
        "\"and\", \"or\" and \"not\" are nested more than 6 deep, at character 1"
    );
    let values = vec!["1"; FILTER_CONDITIONS_MAX].join(",");
    assert!(Filter::parse(&format!("a in ({values})")).is_ok());
    assert_eq!(
        wrong(&format!("a in ({values}) and b")),
        "the filter has more than 64 conditions, at character 140"
    );
    assert_eq!(
        wrong(&vec!["true"; 65].join(" or ")),
        "the filter has more than 64 conditions, at character 513"
    );
    let long = "é".repeat(128);
    assert!(Filter::parse(&format!("a = '{long}'")).is_ok());
    assert_eq!(
        wrong(&format!("a = '{long}x'")),
        "the text has more than 256 bytes in UTF-8, at character 5"
    );
}

fn field() -> impl Strategy<Value = EcoString> {
    prop_oneof![
        "[a-z_][a-z0-9_]{0,5}",
        proptest::sample::select(
            [RESERVED, &["all", "any", "in", "by", "between", "desc"]].concat()
        )
        .prop_map(str::to_owned),
    ]
    .prop_map(EcoString::from)
}

fn value() -> impl Strategy<Value = MetaValue> {
    prop_oneof![
        any::<bool>().prop_map(MetaValue::Bool),
        any::<i64>().prop_map(MetaValue::Int),
        any::<String>().prop_map(|text| MetaValue::Text(text.into())),
        proptest::string::string_regex("[\"'\\\\`\n\t\r\u{7f}\u{85}é😀(),=x]{0,12}")
            .unwrap()
            .prop_map(|text| MetaValue::Text(text.into())),
    ]
}

/// Any filter that is small enough to be worked on.
fn filter() -> impl Strategy<Value = Filter> {
    let compare = (0..6usize, field(), value()).prop_map(|(which, field, value)| {
        [Filter::Eq, Filter::Ne, Filter::Lt, Filter::Le, Filter::Gt, Filter::Ge][which](
            field, value,
        )
    });
    let condition = prop_oneof![
        6 => compare,
        1 => (field(), proptest::collection::vec(value(), 0..4))
            .prop_map(|(field, values)| Filter::In(field, values)),
        1 => (field(), value(), value())
            .prop_map(|(field, from, to)| Filter::Between(field, from, to)),
        1 => (field(), any::<String>())
            .prop_map(|(field, beginning)| Filter::Prefix(field, beginning.into())),
    ];
    let depth = u32::try_from(FILTER_DEPTH_MAX).unwrap();
    condition
        .prop_recursive(depth, 60, 4, |inner| {
            let some = proptest::collection::vec(inner.clone(), 0..4);
            prop_oneof![
                some.clone().prop_map(Filter::And),
                some.prop_map(Filter::Or),
                inner.prop_map(|inner| Filter::Not(Box::new(inner))),
            ]
        })
        .prop_filter("a filter within the bounds", |filter| filter.check().is_ok())
}

proptest! {
    #[test]
    fn a_filter_that_is_written_is_read_as_the_same(filter in filter()) {
        let text = filter.to_string();
        prop_assert_eq!(decode(&encode(&filter), Limits::CLIENT), Ok(filter.clone()));
        prop_assert_eq!(Filter::parse(&text), Ok(filter), "{}", text);
    }

    #[test]
    fn a_search_that_is_written_is_read_as_the_same(
        filter in filter(),
        order in proptest::option::of((field(), any::<bool>())),
        limit in proptest::option::of(1..=LIMIT_MAX),
    ) {
        let order = order.map(|(field, descending)| Order { field, descending });
        let query = Query { filter, order, limit };
        let text = query.to_string();
        prop_assert_eq!(Query::parse(&text), Ok(query), "{}", text);
    }

    #[test]
    fn what_is_read_from_any_text_is_small_enough_and_written_in_one_way(
        text in "([a-c]|[0-9]{1,3}|'x'| and | or | not | in | between | prefix |true|false|[(),=<>]\
                | order by | limit ){0,24}",
    ) {
        if let Ok(query) = Query::parse(&text) {
            prop_assert_eq!(query.filter.check(), Ok(()));
            prop_assert_eq!(Query::parse(&query.to_string()), Ok(query));
        }
    }

    #[test]
    fn no_text_is_a_panic(text: String) {
        if let Err(error) = Query::parse(&text) {
            prop_assert!((1..=text.chars().count() + 1).contains(&error.at));
        }
    }
}
