//! Users, instances and servers: searched in the words of `greenroom find`, page by page.

use std::collections::BTreeMap;

use greenroom_protocol::search::{INSTANCE_FIELDS, Query, SERVER_FIELDS, USER_FIELDS};
use greenroom_protocol::wire::admin_master::{Action, Find, Row, Rows, Status, Table};
use greenroom_protocol::wire::client_session::MetaValue;
use greenroom_protocol::{InstanceId, KindName, Refusal, ServerName, UserId};
use maud::{Markup, html};
use serde::Deserialize;

use crate::page::{action, bar, refused, search_link, state};
use crate::text::{grouped, hex, in_url, short, shown, span, unhex};
use crate::watch::now_ms;

/// Records of a page, where the query has no limit.
const LIMIT: u16 = 50;
/// Characters of a cell.
const CELL_CHARS_MAX: usize = 48;

/// What the address of a table's page says.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Asked {
    /// The query, as it was written.
    #[serde(default)]
    pub(crate) q: String,
    /// Of instances: the kind.
    #[serde(default)]
    pub(crate) kind: String,
    /// Where the page before ended, as hexadecimal digits.
    #[serde(default)]
    pub(crate) cursor: String,
}

impl Asked {
    /// The search that this is.
    ///
    /// # Errors
    /// What is wrong with the words, for the person who wrote them.
    pub(crate) fn find(&self, table: Table) -> Result<Find, String> {
        let query = Query::parse(&self.q).map_err(|error| error.to_string())?;
        let cursor = match self.cursor.as_str() {
            "" => None,
            text => Some(
                unhex(text).ok_or("the address's cursor is none: begin at the first page")?.into(),
            ),
        };
        let limit = query.limit.unwrap_or(LIMIT);
        Ok(Find { table, filter: query.filter, order: query.order, limit, cursor })
    }

    fn address(&self, path: &str, cursor: Option<&[u8]>) -> String {
        let mut parts = Vec::new();
        if !self.kind.is_empty() {
            parts.push(format!("kind={}", in_url(&self.kind)));
        }
        if !self.q.is_empty() {
            parts.push(format!("q={}", in_url(&self.q)));
        }
        if let Some(cursor) = cursor {
            parts.push(format!("cursor={}", hex(cursor)));
        }
        if parts.is_empty() { path.into() } else { format!("{path}?{}", parts.join("&")) }
    }
}

/// What came of it.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Records.
    Rows(Rows),
    /// The cluster says no.
    Refused(Refusal),
    /// The words are no query.
    Unreadable(String),
}

/// One table, as a page.
struct Shape<'a> {
    path: &'static str,
    title: &'static str,
    /// What can be asked for.
    fields: Vec<&'a str>,
    example: &'a str,
    heads: &'static [&'static str],
    /// Where nobody is found though everybody was asked for.
    empty: (&'static str, Markup),
}

pub(crate) fn users(asked: &Asked, answer: &Answer) -> Markup {
    let shape = Shape {
        path: "/users",
        title: "Users",
        fields: USER_FIELDS.iter().map(|(name, _)| *name).collect(),
        example: "name ^ \"ann\" and online = true order by name",
        heads: &["Id", "Name", "State", "Session server", "Seats", "Instance", ""],
        empty: (
            "Nobody is checked in",
            html! {
                "Let bots play: " code { "greenroom bots --users 100 --for 60s --game arena" }
            },
        ),
    };
    let row = |row: &Row| {
        let fields = Fields(row);
        let id = fields.text("id");
        let name = fields.text("name");
        html! {
            td.id title=(shown(id)) { bdi { (short(id, CELL_CHARS_MAX)) } }
            td title=(shown(name)) { bdi { (short(name, CELL_CHARS_MAX)) } }
            td { (state(if fields.truth("online") { "online" } else { "away" })) }
            td { (server(fields.text("session_server"))) }
            td.number { (grouped(fields.number("seats"))) }
            td.id {
                @if let Some(instance) = fields.some("instance") {
                    a href={ "/instances/" (in_url(instance)) } { (shown(instance)) }
                }
            }
            td.acts { (kick(id, name)) }
        }
    };
    table(&shape, asked, answer, row, &html! {})
}

/// A button that ends a user's session.
pub(crate) fn kick(id: &str, name: &str) -> Markup {
    let Ok(user) = UserId::new(id) else { return html! {} };
    let body = json(&Action::Kick { user });
    let who = if name.is_empty() { id } else { name };
    let title = format!("Kick {}?", short(who, 40));
    let text = format!(
        "The session of user {} ends, and its seats are free at once. Nothing keeps the user from checking in again.",
        short(id, 80)
    );
    action("Kick", "/actions", &body, &title, &text, None)
}

pub(crate) fn instances(asked: &Asked, status: Option<&Status>, answer: &Answer) -> Markup {
    let kinds = status.map_or(&[][..], |status| &status.kinds);
    let declared = kinds.iter().find(|kind| kind.name.as_str() == asked.kind);
    let own = declared.iter().flat_map(|kind| kind.fields.iter().map(|name| name.as_str()));
    let own: Vec<&str> = own.collect();
    let shape = Shape {
        path: "/instances",
        title: "Instances",
        fields: own.iter().copied().chain(INSTANCE_FIELDS.iter().map(|(name, _)| *name)).collect(),
        example: "seats_free > 0 and state = \"running\" order by created desc",
        heads: &["Id", "State", "Seats", "Server", "Key", "Metadata", "Age", ""],
        empty: (
            "No instance of this kind",
            html! {
                "One is made when a client asks for it: " code { "greenroom bots --users 100 --for 60s --game arena" }
            },
        ),
    };
    let row = |row: &Row| {
        let fields = Fields(row);
        let id = fields.text("id");
        let (taken, max) = (fields.number("seats_taken"), fields.number("seats_max"));
        let meta: Vec<String> = row
            .fields
            .iter()
            .filter(|(name, _)| own.contains(&name.as_str()))
            .map(|(name, value)| format!("{name} = {}", plain(value)))
            .collect();
        html! {
            td.id { a href={ "/instances/" (in_url(id)) } { (shown(id)) } }
            td {
                (state(fields.text("state")))
                @if !fields.truth("open") { " " (state("closed to new")) }
                @if fields.truth("private") { " " (state("private")) }
            }
            td.number title={ (taken) " of " (max) } { (taken) "/" (max) (bar(taken, max)) }
            td { (server(fields.text("server"))) }
            td { bdi { (short(fields.text("key"), CELL_CHARS_MAX)) } }
            td title=(shown(&meta.join(", "))) { bdi { (short(&meta.join(", "), CELL_CHARS_MAX)) } }
            td.number { (span(now_ms().saturating_sub(fields.number("created")))) }
            td.acts { (destroy(id, "")) }
        }
    };
    let tabs = html! {
        nav.tabs aria-label="Kinds" {
            @for kind in kinds {
                @let of = Asked { kind: kind.name.to_string(), ..Asked::default() };
                @let is_this = kind.name.as_str() == asked.kind;
                a href=(of.address("/instances", None)) aria-current=[is_this.then_some("page")] {
                    (shown(kind.name.as_str())) " " span.count { (grouped(kind.instances)) }
                }
            }
        }
    };
    if asked.kind.is_empty() {
        return html! {
            h1 { "Instances" }
            div.empty {
                b { "No game server has said which kinds it runs" }
                p { "Start one: " code { "greenroom game" } ", or everything at once: " code { "greenroom up" } }
            }
        };
    }
    table(&shape, asked, answer, row, &tabs)
}

/// A button that closes an instance.
pub(crate) fn destroy(id: &str, then: &str) -> Markup {
    let Ok(instance) = id.parse::<InstanceId>() else { return html! {} };
    let body = json(&Action::Destroy { instance });
    let text = format!(
        "Instance {id} is closed, and everybody in it is told so. What it had not stored is gone."
    );
    let then = (!then.is_empty()).then_some(then);
    action("Destroy", "/actions", &body, "Destroy this instance?", &text, then)
}

pub(crate) fn servers(asked: &Asked, status: Option<&Status>, answer: &Answer) -> Markup {
    let shape = Shape {
        path: "/servers",
        title: "Servers",
        fields: SERVER_FIELDS.iter().map(|(name, _)| *name).collect(),
        example: "role = \"game\" and busy_permille > 500",
        heads: &["Name", "Role", "State", "Load", "Busy", "Counted", "Last report", "Build", ""],
        empty: (
            "No session server and no game server",
            html! {
                "Start them: " code { "greenroom session" } ", " code { "greenroom game" }
                ", or everything at once: " code { "greenroom up" }
            },
        ),
    };
    let row = |row: &Row| {
        let fields = Fields(row);
        let (name, role) = (fields.text("name"), fields.text("role"));
        let (load, capacity) = (fields.number("load"), fields.number("capacity"));
        let busy = fields.number("busy_permille");
        html! {
            td title=(shown(fields.text("labels"))) { bdi { b { (short(name, CELL_CHARS_MAX)) } } }
            td { (shown(role)) }
            td { (state(fields.text("state"))) }
            td.number {
                (grouped(load)) " / " (grouped(capacity))
                (bar(load, capacity))
            }
            td.number { (busy / 10) " %" (bar(busy, 1_000)) }
            td { (counted(status, name)) }
            td.number { (span(now_ms().saturating_sub(fields.number("last_report")))) " ago" }
            td { (short(fields.text("build"), CELL_CHARS_MAX)) }
            td.acts { (drain(name, role)) }
        }
    };
    table(&shape, asked, answer, row, &html! {})
}

/// What a server has counted since it began, in a line.
fn counted(status: Option<&Status>, name: &str) -> Markup {
    let servers = status.map(|status| status.sessions.iter().chain(&status.games));
    let of = servers.and_then(|mut servers| servers.find(|server| server.name.as_str() == name));
    html! {
        @if let Some(counts) = of.and_then(|server| server.session) {
            (grouped(counts.check_ins)) " check-ins, " (grouped(counts.frames)) " frames"
        } @else if let Some(game) = of.and_then(|server| server.game) {
            (grouped(game.counts.ticks)) " ticks, " (grouped(game.counts.ticks_late)) " late"
            @if game.counts.ticks_given_up > 0 { ", " b.bad { (grouped(game.counts.ticks_given_up)) " given up" } }
            @if game.counts.failed > 0 { ", " b.bad { (grouped(game.counts.failed)) " instances failed" } }
        }
    }
}

/// A button that has a server take nothing new.
fn drain(name: &str, role: &str) -> Markup {
    let Ok(server) = ServerName::new(name) else { return html! {} };
    let body = json(&Action::Drain { server });
    let text = match role {
        "session" => {
            "It is given no new clients; those that it has stay until they go or it stops."
        }
        _ => "It is given no new instances; those that it has run to their ends.",
    };
    let text = format!("{} {text} There is no way back but to start it anew.", shown(name));
    action("Drain", "/actions", &body, &format!("Drain {}?", short(name, 40)), &text, None)
}

fn table(
    shape: &Shape<'_>,
    asked: &Asked,
    answer: &Answer,
    row: impl Fn(&Row) -> Markup,
    above: &Markup,
) -> Markup {
    let Shape { path, title, fields, example, heads, empty } = shape;
    let first = asked.address(path, None);
    let all = Asked { q: String::new(), ..asked.clone() }.address(path, None);
    html! {
        h1 { (title) }
        (above)
        form.search method="get" action=(path) role="search" {
            @if !asked.kind.is_empty() { input type="hidden" name="kind" value=(asked.kind); }
            label for="q" { "Which" }
            input #q name="q" value=(asked.q) autocomplete="off" spellcheck="false" aria-describedby="fields";
            button type="submit" { "Find" }
            @if !asked.q.is_empty() { a.clear href=(all) { "All" } }
            p #fields.hint {
                "Such as " code { (example) } ". Fields: "
                @for (at, field) in fields.iter().enumerate() { @if at > 0 { ", " } code { (shown(field)) } }
            }
        }
        @match answer {
            Answer::Unreadable(problem) => {
                div.empty role="alert" {
                    b { "This is no query" }
                    p { (shown(problem)) }
                    p { "in: " code { (shown(&asked.q)) } }
                }
            }
            Answer::Refused(refusal) => { (refused(refusal)) }
            Answer::Rows(rows) if rows.rows.is_empty() && asked.q.is_empty() && asked.cursor.is_empty() => {
                div.empty { b { (empty.0) } p { (empty.1) } }
            }
            Answer::Rows(rows) if rows.rows.is_empty() => {
                div.empty {
                    b { "Nothing like this" }
                    p {
                        "Looked at " (grouped(rows.explain.examined.into())) " records, by "
                        code { (shown(&rows.explain.index)) } "."
                    }
                    p { a href=(all) { "Show all" } }
                }
            }
            Answer::Rows(rows) => {
                div.scroll {
                    table {
                        thead { tr { @for head in *heads { th scope="col" { (head) } } } }
                        tbody { @for of in &rows.rows { tr { (row(of)) } } }
                    }
                }
                nav.pages aria-label="Pages" {
                    span.hint {
                        (rows.rows.len()) " shown; " (grouped(rows.explain.examined.into())) " looked at, by "
                        code { (shown(&rows.explain.index)) }
                    }
                    @if !asked.cursor.is_empty() { a rel="first" href=(first) { "First page" } }
                    @if let Some(cursor) = &rows.cursor {
                        a rel="next" href=(asked.address(path, Some(cursor))) { "Next page" }
                    }
                }
            }
        }
    }
}

/// A server's name as a link to it.
pub(crate) fn server(name: &str) -> Markup {
    html! {
        @if !name.is_empty() { a href=(search_link("servers", "name", name)) { (short(name, CELL_CHARS_MAX)) } }
    }
}

/// The kind to show where the address names none: the one with the most instances.
pub(crate) fn busiest_kind(status: &Status) -> Option<&KindName> {
    // The first of those that are equal, by name.
    status.kinds.iter().rev().max_by_key(|kind| kind.instances).map(|kind| &kind.name)
}

/// The fields of a record.
struct Fields<'a>(&'a Row);

impl<'a> Fields<'a> {
    fn some(&self, name: &str) -> Option<&'a str> {
        match self.0.fields.get(name) {
            Some(MetaValue::Text(text)) => Some(text),
            Some(MetaValue::Int(_) | MetaValue::Bool(_)) | None => None,
        }
    }
    fn text(&self, name: &str) -> &'a str {
        self.some(name).unwrap_or_default()
    }
    fn number(&self, name: &str) -> u64 {
        match self.0.fields.get(name) {
            Some(MetaValue::Int(number)) => u64::try_from(*number).unwrap_or(0),
            Some(MetaValue::Text(_) | MetaValue::Bool(_)) | None => 0,
        }
    }
    fn truth(&self, name: &str) -> bool {
        matches!(self.0.fields.get(name), Some(MetaValue::Bool(true)))
    }
}

/// A value of a field, for people.
pub(crate) fn plain(value: &MetaValue) -> String {
    match value {
        MetaValue::Bool(value) => value.to_string(),
        MetaValue::Int(value) => value.to_string(),
        MetaValue::Text(value) => shown(value),
    }
}

fn json(action: &Action) -> String {
    serde_json::to_string(action).expect("an action is made of texts and numbers")
}

/// What an instance says of itself, by name.
pub(crate) fn own_fields(fields: &BTreeMap<ecow::EcoString, MetaValue>) -> Vec<(&str, String)> {
    let base = |name: &str| INSTANCE_FIELDS.iter().any(|(of, _)| *of == name);
    let own = fields.iter().filter(|(name, _)| !base(name));
    own.map(|(name, value)| (name.as_str(), plain(value))).collect()
}
