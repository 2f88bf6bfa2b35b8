//! The cluster as a picture: who is there, what it is, and which way things go.

use greenroom_protocol::wire::admin_master::{MasterStatus, ServerStatus, Status};
use maud::{Markup, html};

use crate::page::search_link;
use crate::text::{grouped, short};

/// Servers of a role that are drawn one by one; what is above is a number.
const DRAWN_MAX: usize = 20;
const WIDTH: u32 = 1_080;
/// Of the three groups of the row below.
const GROUP_TOP: u32 = 172;
const HEAD: u32 = 30;
const GAP: u32 = 8;

/// One server in the picture.
struct Node<'a> {
    name: &'a str,
    state: &'a str,
    note: String,
    href: String,
}

/// A role's servers in a frame.
struct Group<'a> {
    title: &'static str,
    none: &'static str,
    x: u32,
    width: u32,
    nodes: Vec<Node<'a>>,
}

impl Group<'_> {
    fn columns(&self) -> u32 {
        match self.nodes.len() {
            0..=5 => 1,
            6..=12 => 2,
            _ => 3,
        }
    }
    fn node_height(&self) -> u32 {
        if self.columns() == 1 { 40 } else { 32 }
    }
    fn rows(&self) -> u32 {
        let drawn = self.nodes.len().min(DRAWN_MAX) + usize::from(self.nodes.len() > DRAWN_MAX);
        u32::try_from(drawn).unwrap_or(u32::MAX).div_ceil(self.columns()).max(1)
    }
    fn height(&self) -> u32 {
        HEAD + self.rows() * (self.node_height() + GAP) + GAP
    }
}

/// The picture; `check_ins` and `frames` are rates to write at the arrows.
pub(crate) fn diagram(status: &Status, check_ins: Option<f64>, frames: Option<f64>) -> Markup {
    let connections: u64 = status.sessions.iter().map(|server| u64::from(server.load)).sum();
    let sessions = Group {
        title: "Session servers",
        none: "none: start `greenroom session`",
        x: 216,
        width: 390,
        nodes: status.sessions.iter().map(session_node).collect(),
    };
    let games = Group {
        title: "Game servers",
        none: "none: start `greenroom game`",
        x: 690,
        width: 390,
        nodes: status.games.iter().map(game_node).collect(),
    };
    let height = sessions.height().max(games.height());
    let middle = GROUP_TOP + height / 2;
    let rate = |rate: Option<f64>, what: &str| {
        rate.map(|rate| {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a rate is no less than 0, and small"
            )]
            let rate = grouped(rate.round() as u64);
            format!("{rate} {what}/s")
        })
    };
    html! {
        svg.diagram viewBox={ "0 0 " (WIDTH) " " (GROUP_TOP + height + 2) } role="img"
            aria-label="Clients, session servers, game servers and masters" {
            defs {
                marker #arrow viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"
                    orient="auto-start-reverse" {
                    path.head d="M0 0.5 L8 4 L0 7.5 Z" {}
                }
            }
            // Arrows first, so that what they touch is drawn over their ends.
            path.flow d={ "M130 " (middle) " H214" } marker-end="url(#arrow)" {}
            @if let Some(text) = rate(frames, "frames") {
                text.rate x="172" y=(middle - 9) text-anchor="middle" { (text) }
            }
            path.flow.both d={ "M608 " (middle) " H688" } marker-start="url(#arrow)" marker-end="url(#arrow)" {}
            path.flow.quiet d={ "M411 " (GROUP_TOP - 2) " V" (124) } marker-start="url(#arrow)"
                marker-end="url(#arrow)" {}
            @if let Some(text) = rate(check_ins, "check-ins") {
                text.rate x="420" y="151" { (text) }
            }
            path.flow.quiet d={ "M885 " (GROUP_TOP - 2) " V" (124) } marker-start="url(#arrow)"
                marker-end="url(#arrow)" {}
            (masters(status))
            g.clients {
                rect.node x="2" y=(middle - 34) width="126" height="68" rx="10" {}
                text.big x="65" y=(middle + 2) text-anchor="middle" { (grouped(connections)) }
                text.note x="65" y=(middle + 22) text-anchor="middle" { "connections" }
            }
            (group(&sessions, height))
            (group(&games, height))
        }
    }
}

fn masters(status: &Status) -> Markup {
    let (x, width) = (216, 864);
    let many = status.masters.len() > 1;
    html! {
        g {
            rect.group x=(x) y="1" width=(width) height="122" rx="12" {}
            text.title x=(x + 14) y="21" { "Masters" }
            @for (at, place) in status.masters.iter().take(2).zip([232, 756]) {
                (master(at, place))
            }
            @if many {
                @let lag = status.masters.iter().map(|master| master.lag).max().unwrap_or(0);
                @let away = status.masters.iter().any(|master| master.role == "away");
                path class={ "flow" @if away { " broken" } } d="M546 55 H752" marker-end="url(#arrow)" {}
                text.rate x="649" y="47" text-anchor="middle" { "log, " (grouped(lag)) " behind" }
            } @else if status.masters.len() == 1 {
                text.note x="649" y="58" text-anchor="middle" {
                    "alone: `up --processes` or `[master] peer` adds a standby"
                }
            }
            @if let Some(witness) = &status.witness {
                a href={ "/servers" } {
                    title { "The witness keeps the record of which master decides, at " (short(&witness.place, 200)) }
                    rect.node x="586" y="76" width="126" height="38" rx="8" {}
                    circle class={ "dot " (if witness.answers { "good" } else { "bad" }) } cx="602" cy="95" r="4.5" {}
                    text.name x="614" y="92" { "Witness" }
                    text.note x="614" y="106" { (if witness.answers { "answers" } else { "does not answer" }) }
                }
            }
        }
    }
}

fn master(master: &MasterStatus, x: u32) -> Markup {
    let note =
        format!("{} · epoch {} · {} commands", master.role, master.epoch, grouped(master.lsn));
    html! {
        g {
            title {
                (master.name.as_str()) ", side " (master.side) ": " (note)
                @if !master.in_sync { ", not in sync" }
                @for trouble in &master.troubles { "\n" (trouble) }
            }
            rect class={ "node" @if master.role == "active" { " active" } } x=(x) y="32" width="312" height="46"
                rx="8" {}
            circle class={ "dot " (kind(&master.role, !master.troubles.is_empty())) } cx=(x + 18) cy="55" r="5.5" {}
            text.name x=(x + 34) y="51" { (short(master.name.as_str(), 30)) }
            text.note x=(x + 34) y="68" { (short(&note, 46)) }
        }
    }
}

fn group(group: &Group<'_>, height: u32) -> Markup {
    let (x, width) = (group.x, group.width);
    let columns = group.columns();
    let cell = (width - GAP) / columns;
    let drawn = group.nodes.iter().take(DRAWN_MAX).zip(0u32..);
    let rest = group.nodes.len().saturating_sub(DRAWN_MAX);
    let place = |at: u32| {
        let (row, column) = (at / columns, at % columns);
        (x + GAP + column * cell, GROUP_TOP + HEAD + row * (group.node_height() + GAP))
    };
    html! {
        g {
            rect.group x=(x) y=(GROUP_TOP) width=(width) height=(height) rx="12" {}
            text.title x=(x + 14) y=(GROUP_TOP + 20) { (group.title) }
            text.note x=(x + width - 14) y=(GROUP_TOP + 20) text-anchor="end" { (group.nodes.len()) }
            @if group.nodes.is_empty() {
                text.note x=(x + width / 2) y=(GROUP_TOP + HEAD + 24) text-anchor="middle" { (group.none) }
            }
            @for (of, at) in drawn {
                @let (x, y) = place(at);
                (node(of, x, y, cell - GAP, group.node_height()))
            }
            @if rest > 0 {
                @let (x, y) = place(u32::try_from(DRAWN_MAX).unwrap_or(u32::MAX));
                text.note x=(x + 8) y=(y + 20) { "and " (rest) " more" }
            }
        }
    }
}

fn node(node: &Node<'_>, x: u32, y: u32, width: u32, height: u32) -> Markup {
    let is_wide = height >= 40;
    // About 7 units a character of a name, 6 of a note.
    let chars = usize::try_from((width - 34) / 7).unwrap_or(0);
    html! {
        a href=(node.href) {
            title { (short(node.name, 100)) ": " (node.state) ", " (node.note) }
            rect.node x=(x) y=(y) width=(width) height=(height) rx="7" {}
            circle class={ "dot " (kind(node.state, false)) } cx=(x + 16) cy=(y + height / 2) r="4.5" {}
            text.name x=(x + 29) y=(y + if is_wide { 17 } else { 14 }) { (short(node.name, chars)) }
            text.note x=(x + 29) y=(y + if is_wide { 32 } else { 26 }) {
                (short(&node.note, usize::try_from((width - 34) / 6).unwrap_or(0)))
            }
        }
    }
}

fn session_node(server: &ServerStatus) -> Node<'_> {
    let busy = f64::from(server.busy_permille) / 10.0;
    let state = if server.state == "up" { String::new() } else { format!("{} · ", server.state) };
    Node {
        name: server.name.as_str(),
        state: &server.state,
        note: format!("{state}{} connections · {busy:.0} % busy", grouped(server.load.into())),
        href: search_link("servers", "name", server.name.as_str()),
    }
}

fn game_node(server: &ServerStatus) -> Node<'_> {
    let busy = f64::from(server.busy_permille) / 10.0;
    let state = if server.state == "up" { String::new() } else { format!("{} · ", server.state) };
    let (instances, seats) = server.game.map_or((0, 0), |game| (game.instances, game.seats));
    let (instances, seats) = (grouped(instances.into()), grouped(seats.into()));
    Node {
        name: server.name.as_str(),
        state: &server.state,
        note: format!("{state}{instances} instances · {seats} seats · {busy:.0} % busy"),
        href: search_link("servers", "name", server.name.as_str()),
    }
}

fn kind(state: &str, is_troubled: bool) -> &'static str {
    match state {
        "up" | "active" | "standby" if !is_troubled => "good",
        "down" | "away" => "bad",
        _ => "warn",
    }
}
