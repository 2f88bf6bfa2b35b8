//! The event log as a page: its newest events, paged back, and its tail as it is written.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use greenroom_logs::back::{self, Limits, Page};
use greenroom_logs::kinds::KINDS;
use greenroom_logs::read::{Entry, From, Position, Reader, Record};
use greenroom_logs::{LogsError, Severity};
use maud::{Markup, html};
use serde::Deserialize;

use crate::page::state;
use crate::text::{grouped, hex, in_url, short, shown, unhex};

/// Where all processes of this machine have their event logs.
pub(crate) type Folder = PathBuf;

/// Events of a page.
const PAGE: Limits = Limits { events_max: 100, bytes_max: 64 << 20, time_max: READ_MAX };
/// Events about one instance on its own page.
const ABOUT_ONE: Limits = Limits { events_max: 20, bytes_max: 64 << 20, time_max: READ_MAX };
/// How long the log is read before what was found is shown.
const READ_MAX: Duration = Duration::from_secs(2);
/// Events that an open page is told of at once; of more, the newest.
const TOLD_MAX: usize = 100;
/// How long the tail is read before what was found is told.
const LOOK_MAX: Duration = Duration::from_millis(200);
/// Characters of a value in a row.
const VALUE_CHARS_MAX: usize = 120;
/// What events have as roles: of servers, and of what happens to their processes.
const ROLES: [&str; 4] = ["master", "session", "game", "process"];

/// What the address of the page says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Asked {
    kind: String,
    role: String,
    /// This and what matters more.
    severity: String,
    user: String,
    instance: String,
    /// What stands anywhere in an event.
    q: String,
    /// Where the page before began, as hexadecimal digits.
    before: String,
    /// Where a tail goes on, in the same way.
    after: String,
}

impl Asked {
    pub(crate) fn about(instance: String) -> Self {
        Self { instance, ..Self::default() }
    }

    /// What is wanted, or which words of the address make no sense.
    pub(crate) fn wanted(&self) -> Result<Wanted, String> {
        let some = |text: &str| Some(text.trim().to_owned()).filter(|text| !text.is_empty());
        let severity = match some(&self.severity) {
            None => Severity::Debug,
            Some(name) => Severity::ALL
                .into_iter()
                .find(|severity| severity.name() == name)
                .ok_or("severity is debug, info, warn or error")?,
        };
        Ok(Wanted {
            kind: some(&self.kind),
            role: some(&self.role),
            severity,
            user: some(&self.user),
            instance: some(&self.instance),
            text: some(&self.q).map(|text| text.to_lowercase()),
        })
    }

    /// Where the page ends; nothing for the newest.
    fn end(&self) -> Result<Option<Vec<Position>>, String> {
        if self.before.is_empty() { Ok(None) } else { positions(&self.before).map(Some) }
    }

    /// Whether it is the newest page, which is kept up to date.
    pub(crate) fn is_newest(&self) -> bool {
        self.before.is_empty()
    }

    fn address(&self, path: &str, place: Option<(&str, &[Position])>) -> String {
        let named = [
            ("kind", &self.kind),
            ("role", &self.role),
            ("severity", &self.severity),
            ("user", &self.user),
            ("instance", &self.instance),
            ("q", &self.q),
        ];
        let named = named.into_iter().filter(|(_, value)| !value.is_empty());
        let mut parts: Vec<String> =
            named.map(|(name, value)| format!("{name}={}", in_url(value))).collect();
        parts.extend(place.map(|(name, positions)| format!("{name}={}", cursor(positions))));
        if parts.is_empty() { path.into() } else { format!("{path}?{}", parts.join("&")) }
    }
}

/// Places in the log as one word of an address.
fn cursor(positions: &[Position]) -> String {
    let lines: Vec<String> = positions.iter().map(ToString::to_string).collect();
    hex(lines.join("\n").as_bytes())
}

fn positions(cursor: &str) -> Result<Vec<Position>, String> {
    let text = unhex(cursor).and_then(|bytes| String::from_utf8(bytes).ok());
    let all = text.and_then(|text| text.lines().map(|line| line.parse().ok()).collect());
    all.ok_or_else(|| "the address's place in the log is none: begin at the newest".into())
}

/// Which events.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    kind: Option<String>,
    role: Option<String>,
    severity: Severity,
    user: Option<String>,
    instance: Option<String>,
    /// In small letters.
    text: Option<String>,
}

impl Wanted {
    fn holds(&self, event: &Entry<'_>) -> bool {
        let is = |wanted: &Option<String>, found: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| Some(wanted) == found)
        };
        is(&self.kind, Some(&event.kind))
            && is(&self.role, Some(&event.role))
            && is(&self.user, event.user.as_deref())
            && is(&self.instance, event.instance.as_deref())
            && Severity::ALL
                .into_iter()
                .find(|severity| severity.name() == event.severity)
                .is_none_or(|severity| severity >= self.severity)
            && self.text.as_ref().is_none_or(|text| says(event).contains(text))
    }
}

/// Everything that an event says, in small letters.
fn says(event: &Entry<'_>) -> String {
    let about = [&event.user, &event.instance, &event.session, &event.trace];
    let mut said = vec![event.ts.to_string(), event.node.to_string(), event.kind.to_string()];
    said.extend(about.into_iter().flatten().map(ToString::to_string));
    said.extend(fields(event).into_iter().map(|(name, value)| format!("{name} {value}")));
    said.join(" ").to_lowercase()
}

/// The fields by name, texts without quotes.
fn fields(event: &Entry<'_>) -> Vec<(String, String)> {
    let fields: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(event.fields.get()).unwrap_or_default();
    let plain =
        |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    fields.into_iter().map(|(name, value)| (name, plain(&value))).collect()
}

/// Reads a page; takes as long as a disk does, unless it `is_stopped`.
pub(crate) fn read(
    folder: &Folder,
    asked: &Asked,
    is_whole: bool,
    is_stopped: impl Fn() -> bool,
) -> Result<Page, String> {
    let (wanted, end) = (asked.wanted()?, asked.end()?);
    let limits = if is_whole { PAGE } else { ABOUT_ONE };
    back::page(folder, end.as_deref(), limits, is_stopped, |event| wanted.holds(event))
        .map_err(|error| told(&error))
}

fn told(error: &LogsError) -> String {
    let why = std::error::Error::source(error).map(|source| format!(": {source}"));
    format!("reading {error}{}", why.unwrap_or_default())
}

/// The page's content.
pub(crate) fn logs(folder: &Folder, asked: &Asked, read: &Result<Page, String>) -> Markup {
    html! {
        h1 { "Event log" }
        (form(asked))
        @match read {
            Err(problem) => {
                div.empty role="alert" {
                    b { "The log can't be shown" }
                    p { (shown(problem)) }
                    p { a href="/logs" { "The newest events" } }
                }
            }
            Ok(page) => {
                (table(asked, page))
                @if page.records.is_empty() { (nothing(folder, asked, page)) }
                nav.pages aria-label="Pages" {
                    span.hint { (summary(folder, page)) }
                    @if !asked.is_newest() { a rel="first" href=(asked.address("/logs", None)) { "Newest" } }
                    @if page.has_more {
                        a rel="next" href=(asked.address("/logs", Some(("before", &page.begin)))) { "Older" }
                    }
                }
            }
        }
    }
}

/// What happened to one instance, for its page.
pub(crate) fn about(asked: &Asked, read: &Result<Page, String>) -> Markup {
    html! {
        section.panel {
            h2 { "Events" a.more href=(asked.address("/logs", None)) { "All of them" } }
            @match read {
                Err(problem) => { p.hint { (shown(problem)) } }
                Ok(page) => {
                    (table(asked, page))
                    @if page.records.is_empty() {
                        p.hint #nothing {
                            "None in what this machine's log has of late. Another machine's game server writes its own."
                        }
                    }
                }
            }
        }
    }
}

fn form(asked: &Asked) -> Markup {
    let is_narrowed = *asked != Asked { before: asked.before.clone(), ..Asked::default() };
    html! {
        form.search.filters method="get" action="/logs" role="search" {
            label { "Severity"
                select name="severity" {
                    option value="" { "all" }
                    @for severity in [Severity::Info, Severity::Warn, Severity::Error] {
                        option value=(severity.name()) selected[asked.severity == severity.name()] {
                            (severity.name()) @if severity != Severity::Error { " and above" }
                        }
                    }
                }
            }
            label { "Role"
                select name="role" {
                    option value="" { "all" }
                    @for role in ROLES { option value=(role) selected[asked.role == role] { (role) } }
                }
            }
            label { "Kind"
                input name="kind" value=(asked.kind) list="kinds" autocomplete="off" spellcheck="false";
            }
            label { "User"
                input name="user" value=(asked.user) autocomplete="off" spellcheck="false";
            }
            label { "Instance"
                input name="instance" value=(asked.instance) autocomplete="off" spellcheck="false";
            }
            label.wide { "Text, anywhere in an event"
                input name="q" value=(asked.q) autocomplete="off" spellcheck="false";
            }
            div.go {
                button type="submit" { "Show" }
                @if is_narrowed { a.clear href="/logs" { "All" } }
            }
            datalist #kinds { @for kind in KINDS { option value=(kind.name) {} } }
        }
    }
}

fn table(asked: &Asked, page: &Page) -> Markup {
    let tail = asked.is_newest().then(|| asked.address("/logs/tail", Some(("after", &page.end))));
    html! {
        @if tail.is_some() {
            div.tail {
                button #hold type="button" aria-pressed="false" { "Pause" }
                span #held.hint role="status" {}
                p #tail-trouble.problem role="alert" hidden {}
            }
        }
        div.scroll.log hidden[page.records.is_empty()] {
            table {
                thead { tr { th { "Time (UTC)" } th { "Severity" } th { "Where" } th { "Kind" } th { "What" } } }
                tbody #rows data-tail=[tail] { @for record in &page.records { (row(&record.event())) } }
            }
        }
    }
}

fn row(event: &Entry<'_>) -> Markup {
    let (date, time) = (event.ts.get(5..10), event.ts.get(11..23));
    let of_kind = Asked { kind: event.kind.to_string(), ..Asked::default() };
    html! {
        tr {
            td.when title=(shown(&event.ts)) {
                span { (shown(date.unwrap_or_default())) } " " (shown(time.unwrap_or(&event.ts)))
            }
            td { (state(&event.severity)) }
            td.where { (short(&event.node, 40)) " " small { (short(&event.role, 20)) } }
            td.kind { a href=(of_kind.address("/logs", None)) { (short(&event.kind, 48)) } }
            td.what {
                @if let Some(user) = event.user.as_deref() {
                    @let of_user = Asked { user: user.into(), ..Asked::default() };
                    (pair("user", &html! {
                        a href=(of_user.address("/logs", None)) { (short(user, VALUE_CHARS_MAX)) }
                    }))
                }
                @if let Some(instance) = event.instance.as_deref() {
                    (pair("instance", &html! { a href={ "/instances/" (in_url(instance)) } { (short(instance, 40)) } }))
                }
                @if let Some(session) = event.session.as_deref() { (pair("session", &html! { (short(session, 40)) })) }
                @if let Some(trace) = event.trace.as_deref() { (pair("trace", &html! { (short(trace, 40)) })) }
                @for (name, value) in fields(event) {
                    (pair(&short(&name, 48), &html! { (short(&value, VALUE_CHARS_MAX)) }))
                }
            }
        }
    }
}

fn pair(name: &str, value: &Markup) -> Markup {
    html! { span.pair { span.name { (name) } " " bdi { (value) } } " " }
}

fn nothing(folder: &Folder, asked: &Asked, page: &Page) -> Markup {
    html! {
        div.empty #nothing {
            @if page.end.is_empty() {
                b { "There is no event log here" }
                p { "This page reads " code { (shown(&folder.display().to_string())) } ", of this machine. "
                    code { "logs.level" } " is off, or the log is elsewhere: " code { "logs.folder" } "." }
            } @else if page.has_more {
                b { "Nothing like this in what was looked at" }
                p { "The log is longer than a page looks through at once." }
            } @else if asked.is_newest() {
                b { "Nothing like this has happened yet" }
                p { "It stands here as soon as it does." }
            } @else {
                b { "Nothing like this before" }
            }
        }
    }
}

fn summary(folder: &Folder, page: &Page) -> Markup {
    html! {
        (page.records.len()) " shown; " (grouped(page.bytes.div_ceil(1 << 10))) " KiB looked at, of "
        (page.end.len()) @if page.end.len() == 1 { " process" } @else { " processes" } " in "
        code { (shown(&folder.display().to_string())) }
        @if page.is_late { "; that took its time: the next page goes on from there" }
        @if page.skipped.lines > 0 { "; " (grouped(page.skipped.lines)) " lines were no events" }
        @if page.skipped.segments > 0 { "; " (grouped(page.skipped.segments)) " segments can't be read" }
    }
}

/// What is written from a place on, for one open page.
#[derive(Debug)]
pub(crate) struct Tail {
    reader: Reader,
    wanted: Wanted,
}

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// The newest last.
    records: VecDeque<Record>,
    /// How many were too many.
    left_out: u64,
    /// There may be more already.
    pub(crate) is_cut: bool,
}

impl Found {
    pub(crate) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The rows, the newest first.
    pub(crate) fn rows(&self) -> Markup {
        html! {
            @for record in self.records.iter().rev() { (row(&record.event())) }
            @if self.left_out > 0 {
                tr.gap {
                    td colspan="5" {
                        (grouped(self.left_out)) " more came faster than a page shows them: "
                        a href="/logs" { "look back" } " or ask for less"
                    }
                }
            }
        }
    }
}

impl Tail {
    /// Goes on behind a page, or where a browser says that it lost the stream.
    pub(crate) fn open(folder: &Folder, asked: &Asked, last: Option<&str>) -> Result<Self, String> {
        let from = positions(last.unwrap_or(&asked.after))?;
        let reader = Reader::open(folder, From::Positions(from)).map_err(|error| told(&error))?;
        Ok(Self { reader, wanted: asked.wanted()? })
    }

    /// What was written since. Takes as long as a disk does.
    pub(crate) fn look(&mut self) -> Result<Found, String> {
        let (began, mut found) = (Instant::now(), Found::default());
        while let Some(record) = self.reader.next_record().map_err(|error| told(&error))? {
            if self.wanted.holds(&record.event()) {
                if found.records.len() == TOLD_MAX {
                    found.records.pop_front();
                    found.left_out += 1;
                }
                found.records.push_back(record);
            }
            if began.elapsed() > LOOK_MAX {
                found.is_cut = true;
                break;
            }
        }
        Ok(found)
    }

    /// Where it is, for a browser that has to ask again.
    pub(crate) fn place(&self) -> String {
        cursor(&self.reader.positions())
    }
}
