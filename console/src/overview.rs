//! The first page: the whole cluster, as it is this second.

use greenroom_protocol::wire::admin_master::{ServerStatus, Status};
use maud::{Markup, html};

use crate::diagram::diagram;
use crate::page::action;
use crate::text::{grouped, shown, span};
use crate::watch::{CHECK_INS, FRAMES, SERIES, Seen, now_ms};

/// The page's content: a part that is sent anew each second, and charts that scripts draw.
pub(crate) fn overview(seen: &Seen) -> Markup {
    html! {
        div #live { (live(seen)) }
        section.panel {
            h2 { "The last hour" small #chart-note { "one point a second" } }
            div #charts {
                @for series in &SERIES {
                    figure.chart data-key=(series.key) data-unit=(series.unit) {
                        figcaption title=(series.help) { span { (series.title) } output { "–" } }
                        div.plot {}
                    }
                }
            }
        }
    }
}

/// What changes from second to second.
pub(crate) fn live(seen: &Seen) -> Markup {
    html! {
        @if let Some(refusal) = &seen.silent {
            div.banner.bad role="alert" {
                b { "No word from the master" }
                @if let Some(at) = seen.answered_ms {
                    " since " time data-at=(at) { (span(now_ms().saturating_sub(at))) " ago" }
                }
                ": " (shown(&refusal.message)) ". What stands below is the last that it said."
            }
        }
        @match &seen.status {
            None => {
                div.empty {
                    b { "Nothing is known of the cluster yet" }
                    p {
                        "The master has not answered since this port is open. Its log says why; "
                        code { "--cluster-log info" } " says more."
                    }
                }
            }
            Some(status) => {
                div.fade data-stale[seen.silent.is_some()] {
                    (counters(seen, status))
                    (cards(status))
                    section.panel {
                        h2 { "Topology" (switchover(status)) }
                        (diagram(status, seen.sample.values[CHECK_INS], seen.sample.values[FRAMES]))
                        (troubles(status))
                    }
                }
            }
        }
    }
}

/// A counter that is 0 while nothing is wrong.
struct Zero {
    name: &'static str,
    count: u64,
    means: &'static str,
    from: &'static str,
}

/// What must be zero, what it means if it is not, and how it is known.
fn counters(seen: &Seen, status: &Status) -> Markup {
    let orphans = status.games.iter().filter_map(|server| Some(u64::from(server.game?.orphans)));
    let zeros = [
        Zero {
            name: "Lost",
            count: seen.totals.lost,
            means: "A numbered message of an instance never came to its player.",
            from: "Session servers look at each number on its way to the client, the last place before it: \
             one was left out.",
        },
        Zero {
            name: "Doubled",
            count: seen.totals.doubled,
            means: "A numbered message came to its player twice.",
            from: "Session servers: a number came again on one attachment of a seat.",
        },
        Zero {
            name: "Out of order",
            count: seen.totals.out_of_order,
            means: "A numbered message came to its player after a later one.",
            from: "Session servers: a number was smaller than the last one.",
        },
        Zero {
            name: "Twins",
            count: status.twins,
            means: "One instance ran twice, or two had one unique key. The younger was stopped.",
            from: "The answering master, when game servers report what they run, since its process began.",
        },
        Zero {
            name: "Stale owners",
            count: seen.totals.rivals,
            means: "Two masters decided in one epoch: something may have been accepted from the wrong one.",
            from: "Session and game servers, each time that a master says that it decides. What they refuse \
             as stale is normal, and not counted here.",
        },
        Zero {
            name: "Orphans",
            count: orphans.sum(),
            means: "Instances run now that the directory does not know.",
            from: "The master: what each game server says it runs, less what is placed there and what it was \
             told to stop.",
        },
    ];
    let silent = silent(status);
    html! {
        section.zeros aria-label="Counters that must be zero" {
            @for zero in &zeros {
                div class={ "zero " (if zero.count == 0 { "good" } else { "bad" }) } tabindex="0" {
                    span.name { (zero.name) }
                    output { (grouped(zero.count)) }
                    p.means { (zero.means) }
                    p.from { (zero.from) }
                }
            }
        }
        @if !silent.is_empty() {
            p.hint {
                "Not counted: " (silent.join(", ")) ", of a build that does not say these numbers. "
                "They are of all other servers."
            }
        }
    }
}

/// Servers that do not say what they counted.
fn silent(status: &Status) -> Vec<String> {
    let servers = status.sessions.iter().chain(&status.games);
    let silent = servers.filter(|server| server.session.is_none() && server.game.is_none());
    silent.map(|server| shown(server.name.as_str())).collect()
}

fn cards(status: &Status) -> Markup {
    let seats: u64 =
        status.games.iter().filter_map(|server| Some(u64::from(server.game?.seats))).sum();
    let up =
        |servers: &[ServerStatus]| servers.iter().filter(|server| server.state == "up").count();
    let (sessions, games) = (up(&status.sessions), up(&status.games));
    let all = status.sessions.len() + status.games.len();
    let kinds = status.kinds.iter().filter(|kind| kind.instances > 0).count();
    html! {
        section.cards {
            a.card href="/users" {
                span { "Users online" }
                output { (grouped(status.users)) }
                small { "sessions in the directory" }
            }
            a.card href="/instances" {
                span { "Instances" }
                output { (grouped(status.instances)) }
                small { "of " (kinds) @if kinds == 1 { " kind" } @else { " kinds" } }
            }
            div.card {
                span { "Seats taken" }
                output { (grouped(seats)) }
                small { "as game servers report" }
            }
            a.card href="/servers" {
                span { "Servers up" }
                output { (sessions + games) small { " / " (all) } }
                small { (sessions) " session, " (games) " game" }
            }
        }
    }
}

fn switchover(status: &Status) -> Markup {
    let standby = status.masters.iter().find(|master| master.role == "standby");
    let is_active = status.masters.first().is_some_and(|this| this.role == "active");
    html! {
        @if let (Some(standby), true) = (standby, is_active) {
            @let text = format!(
                "{} becomes the active, and this master its standby. Nothing is lost; requests wait for some \
                 milliseconds.",
                standby.name
            );
            (action("Switch over", "/switchover", "", "Switch the masters over?", &text, None))
        }
    }
}

/// What masters say is wrong with them, in their words.
fn troubles(status: &Status) -> Markup {
    html! {
        @for master in &status.masters {
            @for trouble in &master.troubles {
                p.trouble { b { (shown(master.name.as_str())) ": " } (shown(trouble)) }
            }
        }
    }
}
