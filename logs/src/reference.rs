//! The reference of all kinds, `docs/events.md`.

use std::fmt::Write as _;

use crate::kinds::KINDS;

const HEAD: &str = "\
# Events

Made from `logs/src/kinds.rs` by `cargo run -p greenroom-logs --example reference`; a test says when it is not fresh.

Every event is one line of JSON:

```json
{\"id\":\"01KB5XJ0YF0000000000001M00\",\"ts\":\"2026-11-28T12:00:01.000Z\",\"node\":\"master-1\",\"role\":\"master\",
 \"kind\":\"check_in\",\"v\":1,\"severity\":\"info\",\"user\":\"ann\",\"session\":\"0000000000001\",
 \"fields\":{\"name\":\"Ann\",\"server\":\"session-1\"}}
```

| Key | Is |
|---|---|
| `id` | 26 characters that order by time; an event that is there twice has the same |
| `ts` | when, UTC, with milliseconds |
| `node`, `role` | the server that tells it, and what that is: `master`, `session`, `game` or `process` |
| `kind`, `v` | the kind, and its version: it grows when a field changes its meaning or goes |
| `severity` | `error`: somebody must act; `warn`: unusual, but handled; `info`: the course of things; `debug` |
| `user`, `instance`, `session`, `trace` | whom and what it is about; missing where it is about none |
| `fields` | the rest, as below |

Texts have 256 bytes at most; control characters, marks that turn the direction of writing, `<`, `>` and `&` stand as
`\\u` and their number.

## Games' kinds

A kind with a point in its name is a game's own: before the point is the kind of its instance, behind it the game's word
for what happened. It is about its `instance`, and often a `user`; its fields are those of the game's struct, \
and columns
of the view of its name: `select avg(turns) from \"duel.over\"`. [logs.md](logs.md#events-of-a-game) says how \
a game tells
them. The demo games have one:

| Kind | Is | Fields |
|---|---|---|
| `duel.over` | a duel has a result, and it is stored; about who has won, if somebody has | `turns` that were \
played, `winner`: the seat |

# Servers' kinds
";

/// The page.
pub fn reference() -> String {
    let mut page = HEAD.to_owned();
    for kind in KINDS {
        let about = match kind.about {
            [] => "about nobody in particular".to_owned(),
            about => format!("about `{}`", about.join("`, `")),
        };
        write!(
            page,
            "\n## `{}`\n\n{} Severity `{}`, version {}, {about}.\n",
            kind.name,
            kind.doc.trim(),
            kind.severity.name(),
            kind.version
        )
        .expect("writing to a text");
        if !kind.fields.is_empty() {
            page.push_str("\n| Field | Is | What |\n|---|---|---|\n");
        }
        for field in kind.fields {
            let optional = if field.optional { ", may be missing" } else { "" };
            writeln!(
                page,
                "| `{}` | {}{optional} | {} |",
                field.name,
                field.form.name(),
                field.doc.trim()
            )
            .expect("writing to a text");
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_reference_is_fresh() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/events.md");
        let page = std::fs::read_to_string(file).unwrap_or_default();
        assert!(page == reference(), "write docs/events.md anew: its third line says how");
    }

    #[test]
    fn every_kind_has_a_name_of_its_own_that_sql_takes_without_quotes() {
        let names: BTreeSet<_> = KINDS.iter().map(|kind| kind.name).collect();
        assert_eq!(names.len(), KINDS.len());
        for kind in KINDS {
            let columns = kind.fields.iter().map(|field| field.name).chain([kind.name]);
            for name in columns {
                let is_plain = |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_');
                assert!(name.bytes().all(is_plain), "{name}");
                assert!(!name.starts_with(|first: char| first.is_ascii_digit()), "{name}");
                #[cfg(feature = "sql")]
                assert!(!crate::sql::COLUMNS.contains(&name), "{name} is a column already");
            }
        }
    }
}
