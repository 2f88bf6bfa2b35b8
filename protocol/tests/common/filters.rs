//! `filters.json`: searches as people write them, and what they stand for.

use greenroom_protocol::{
    encode,
    search::{Filter, Query},
};

use super::json::{Json, file as json_file, hex, object};

pub(crate) fn file() -> String {
    json_file(&[
        ("about", ABOUT.iter().map(|&line| line.into()).collect()),
        ("queries", queries()),
        ("refused", refused()),
    ])
}

const ABOUT: &[&str] = &[
    "`queries`: the text stands for this `filter` (MessagePack as JSON, and its bytes as this build writes them), \
     `order` and `limit`. `written` is the one text that this build writes for it, which is read as the same again.",
    "`refused`: no search has this text. `at` is where, in characters from 1; `error` is what our reader says, others \
     may say it in their own words.",
];

const QUERIES: &[&str] = &[
    "",
    "mode = \"ranked\" and rating between 1400 and 1600 and seats_free > 0 order by created desc limit 20",
    "open",
    "not open or a",
    "a = 1 and b != 2 or c <> 3 and not d < 4",
    "(a <= 1 or b >= 2) and (c > 3 and d = -9223372036854775808)",
    "a in (1, 'two', true) and b not in () and c in (+7)",
    "name prefix 'de' and not name starts with \"den\"",
    "a not between 'x' and 'y'",
    "TRUE and False or All (a) and any(b or c)",
    "`order` = 1 and `not` order by `limit`",
    r#"a = "it's \"\u{e9}\"" and b = '\\\n\u{7}é'"#,
    "not not (((a)))",
    "order by created asc limit 100",
    "limit 1",
];

fn queries() -> Vec<Json> {
    QUERIES
        .iter()
        .map(|text| {
            let query = Query::parse(text).expect("a search of ours");
            assert_eq!(Query::parse(&query.to_string()).as_ref(), Ok(&query), "{text}");
            let filter: &Filter = &query.filter;
            let bytes = encode(filter);
            object! {
                "text": *text,
                "filter": Json::of_message_pack(&bytes),
                "hex": hex(&bytes),
                "order": query.order.as_ref().map_or(Json::Null, |order| Json::of_message_pack(&encode(order))),
                "limit": query.limit.map_or(Json::Null, Json::from),
                "written": query.to_string(),
            }
        })
        .collect()
}

const REFUSED: &[&str] = &[
    "mode = ",
    "mode = ranked",
    "Mode = 1",
    "1 = a",
    "a = 1 b = 2",
    "a and",
    "(a or b",
    "a in (1,)",
    "a between 1",
    "a prefix 5",
    "a not = 1",
    "a = 1.5",
    "a = 9223372036854775808",
    "a = 'x",
    "a = 'x\\y'",
    "a = '\\u{d800}'",
    "a = 'é' é",
    "order = 1",
    "order by a, b",
    "limit 0",
    "limit 101",
    "not not not not not not not a",
    "((((((((((((((((((((((((((((((((( a",
];

fn refused() -> Vec<Json> {
    REFUSED
        .iter()
        .map(|text| {
            let error = Query::parse(text).expect_err(text);
            let at = u32::try_from(error.at).expect("a short text");
            object! { "text": *text, "at": at, "error": error.message }
        })
        .collect()
}
