//! `greenroom find` and `greenroom placement`: what the directory knows, in the words of its search.

use std::process::ExitCode;

use anyhow::{Context, Result, anyhow};
use clap::{Arg, ArgAction, ArgMatches, Command};
use greenroom_console::client;
use greenroom_protocol::KindName;
use greenroom_protocol::search::{Explain, LIMIT_MAX, Query};
use greenroom_protocol::wire::admin_master::{Find, Row, Rows, Table};
use greenroom_protocol::wire::client_session::MetaValue;

use crate::operator::{admin, columns, print, wait, with_admin};

/// Records that are shown where the query has no limit.
const LIMIT: u16 = 20;
/// Characters of a cell; longer ones are cut.
const CELL_CHARS_MAX: usize = 40;

/// The command line of `find`.
pub(crate) fn command() -> Command {
    let table = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
    };
    with_admin(Command::new("find").about("Looks for instances, users or servers"))
        .arg(Arg::new("kind").value_name("KIND").help("The kind of instance"))
        .arg(
            Arg::new("query").value_name("QUERY").help(
                "Which, in one word: 'mode = \"duel\" and seats_free > 0 order by created desc'",
            ),
        )
        .arg(table("users", "Looks for users; then there is no KIND").conflicts_with("servers"))
        .arg(table("servers", "Looks for servers; then there is no KIND"))
        .arg(table("explain", "Says which index was walked, and how many records were looked at"))
        .arg(table("all", "Shows everything that is found, page by page"))
}

pub(crate) fn find(matches: &ArgMatches) -> Result<ExitCode> {
    let word = |name| matches.get_one::<String>(name).map(String::as_str);
    let (table, query) = if matches.get_flag("users") {
        (Table::Users, alone(word("kind"), word("query"))?)
    } else if matches.get_flag("servers") {
        (Table::Servers, alone(word("kind"), word("query"))?)
    } else {
        let kind = word("kind").context(
            "of which kind? `greenroom find KIND [QUERY]`, or `find --users [QUERY]`, `find --servers [QUERY]`",
        )?;
        (Table::Instances(KindName::new(kind)?), word("query").unwrap_or_default())
    };
    let parsed = Query::parse(query).map_err(|error| anyhow!("{error}\n  in: {query}"))?;
    let mut find = Find {
        table,
        filter: parsed.filter,
        order: parsed.order,
        limit: parsed.limit.unwrap_or(LIMIT),
        cursor: None,
    };
    if matches.get_flag("all") {
        find.limit = LIMIT_MAX;
    }
    let json = matches.get_flag("json");
    loop {
        let rows = wait(client::find(admin(matches)?, &find))??;
        if json {
            print(&lines(&rows)?)?;
        } else {
            print(&page(&rows))?;
        }
        if matches.get_flag("explain") {
            print(&explained(&rows.explain, json)?)?;
        }
        find.cursor = rows.cursor;
        if find.cursor.is_none() {
            return Ok(ExitCode::SUCCESS);
        }
        if !matches.get_flag("all") {
            if !json {
                print(
                    "there is more: `--all` shows it, `limit N` in the query shows more at once\n",
                )?;
            }
            return Ok(ExitCode::SUCCESS);
        }
    }
}

pub(crate) fn placement(matches: &ArgMatches) -> Result<ExitCode> {
    let kind = matches.get_one::<String>("kind").context("clap wants it")?;
    let placement = wait(client::placement(admin(matches)?, &KindName::new(kind.as_str())?))??;
    if matches.get_flag("json") {
        return print(&format!("{}\n", serde_json::to_string(&placement)?));
    }
    let mut rows = vec![["server", "load", "verdict"].map(String::from)];
    rows.extend(placement.considered.iter().map(|server| {
        [
            server.server.to_string(),
            format!("{}/{}", server.load, server.capacity),
            server.verdict.to_string(),
        ]
    }));
    print(&columns(&rows))
}

/// The query where there is no kind: the first word is it.
fn alone<'a>(first: Option<&'a str>, second: Option<&str>) -> Result<&'a str> {
    match second {
        None => Ok(first.unwrap_or_default()),
        Some(_) => Err(anyhow!(
            "one query is all that comes with --users or --servers: put it in quotes, e.g. 'seats > 0 limit 5'"
        )),
    }
}

fn lines(rows: &Rows) -> Result<String> {
    let mut text = String::new();
    for row in &rows.rows {
        text.push_str(&serde_json::to_string(&row.fields)?);
        text.push('\n');
    }
    Ok(text)
}

fn page(rows: &Rows) -> String {
    let mut names: Vec<&str> = Vec::new();
    for name in rows.rows.iter().flat_map(|row| row.fields.keys()) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    // What names the record comes first.
    names.sort_by_key(|&name| !matches!(name, "id" | "name"));
    let mut cells: Vec<Vec<String>> = vec![names.iter().map(|&name| name.to_owned()).collect()];
    cells.extend(rows.rows.iter().map(|row| names.iter().map(|name| cell(row, name)).collect()));
    if rows.rows.is_empty() { "nothing is found\n".to_owned() } else { columns(&cells) }
}

fn cell(row: &Row, name: &str) -> String {
    let text = match row.fields.get(name) {
        None => "-".to_owned(),
        Some(MetaValue::Bool(value)) => value.to_string(),
        // Moments are milliseconds since 1970 everywhere but on a screen.
        Some(MetaValue::Int(ms)) if matches!(name, "created" | "last_report") => moment(*ms),
        Some(MetaValue::Int(value)) => value.to_string(),
        // A game's text may hold anything: what a terminal would obey is shown as what it is.
        Some(MetaValue::Text(text)) => text
            .chars()
            .map(|letter| if letter.is_control() { '\u{fffd}' } else { letter })
            .collect(),
    };
    if text.chars().count() <= CELL_CHARS_MAX {
        return text;
    }
    text.chars().take(CELL_CHARS_MAX - 1).chain(['…']).collect()
}

fn moment(ms: i64) -> String {
    let since_1970 = std::time::Duration::from_millis(u64::try_from(ms).unwrap_or(0));
    let moment = std::time::UNIX_EPOCH + since_1970;
    humantime::format_rfc3339_seconds(moment).to_string()
}

fn explained(explain: &Explain, json: bool) -> Result<String> {
    if json {
        let line = serde_json::json!({ "explain": explain });
        return Ok(format!("{}\n", serde_json::to_string(&line)?));
    }
    let order = if explain.ordered_by_index { "in its order" } else { "sorted afterwards" };
    let mut text = format!(
        "walked {}, {order}: examined {}, matched {}\n",
        explain.index, explain.examined, explain.matched
    );
    for considered in &explain.considered {
        text.push_str(&format!("  {} entries: {}\n", considered.entries, considered.index));
    }
    Ok(text)
}
