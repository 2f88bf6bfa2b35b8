//! What every page has: its head, its way around, and the pieces that several pages show.

use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use greenroom_protocol::Refusal;
use greenroom_protocol::search::Filter;
use greenroom_protocol::wire::admin_master::Status;
use greenroom_protocol::wire::client_session::MetaValue;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::text::{in_url, shown};

/// Only what this port serves may run or be shown, and nothing that stands in the page itself: a name that got through
/// as markup would still be dead.
pub(crate) const CONTENT_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
     img-src 'self' data:; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// The places that the head leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Overview,
    Users,
    Instances,
    Servers,
    Logs,
    Elsewhere,
}

const PLACES: [(Place, &str, &str); 5] = [
    (Place::Overview, "/", "Overview"),
    (Place::Users, "/users", "Users"),
    (Place::Instances, "/instances", "Instances"),
    (Place::Servers, "/servers", "Servers"),
    (Place::Logs, "/logs", "Log"),
];

/// Who is asked, and who else could be: the same on every page.
#[derive(Debug)]
pub(crate) struct Head<'a> {
    pub(crate) status: Option<&'a Status>,
    /// The other master's admin port, if that is configured.
    pub(crate) other: Option<&'a str>,
}

/// How a page keeps up with the cluster.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fresh {
    /// It is told of every second.
    Live,
    /// Its content is asked for again every so many milliseconds.
    Every(u32),
    /// It stays as it is.
    Never,
}

/// A whole page.
pub(crate) fn page(
    head: &Head<'_>,
    place: Place,
    title: &str,
    fresh: Fresh,
    content: &Markup,
) -> Response {
    let cluster = head.status.map_or("", |status| status.cluster.as_str());
    let refresh = match fresh {
        Fresh::Every(ms) => Some(ms),
        Fresh::Live | Fresh::Never => None,
    };
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="dark light";
                title { (shown(title)) " · Greenroom" @if !cluster.is_empty() { " · " (shown(cluster)) } }
                link rel="icon" href="/assets/icon.svg";
                link rel="stylesheet" href="/assets/uplot.css";
                link rel="stylesheet" href="/assets/console.css";
                @if matches!(fresh, Fresh::Live) { script src="/assets/uplot.js" defer {} }
                script src="/assets/console.js" defer {}
            }
            body data-live[matches!(fresh, Fresh::Live)] data-refresh=[refresh] {
                header.top {
                    a.brand href="/" {
                        img src="/assets/icon.svg" alt="" width="22" height="22";
                        span { "Greenroom" }
                    }
                    nav {
                        @for (of, href, name) in PLACES {
                            a href=(href) aria-current=[(of == place).then_some("page")] { (name) }
                        }
                    }
                    div.who {
                        @if !cluster.is_empty() {
                            span.cluster title="The cluster's name" { bdi { (shown(cluster)) } }
                        }
                        (answering(head))
                        span #connection.pulse role="status" title="Whether this page hears from the master" { "…" }
                    }
                }
                div #lost.banner.bad hidden role="alert" {}
                (elsewhere(head))
                main #content { (content) }
                (dialog())
                div #toast role="status" {}
                noscript {
                    p.banner.warn {
                        "Without scripts this page shows how things were when it was opened, and nobody can act."
                    }
                }
            }
        }
    };
    respond(StatusCode::OK, &page)
}

/// Which master answers here, and what it is.
fn answering(head: &Head<'_>) -> Markup {
    let this = head.status.and_then(|status| status.masters.first());
    html! {
        @if let Some(this) = this {
            span.master title="The master that answers here" { (shown(this.name.as_str())) " " (state(&this.role)) }
        }
    }
}

/// A master that does not decide says who does.
fn elsewhere(head: &Head<'_>) -> Markup {
    let masters = head.status.map_or(&[][..], |status| &status.masters);
    let this = masters.first().filter(|this| this.role != "active");
    let active = masters.iter().find(|master| master.role == "active");
    html! {
        @if let Some(this) = this {
            div.banner.warn {
                "This page is of " b { (shown(this.name.as_str())) } ", which does not decide now. "
                @match active {
                    Some(active) => { "The active is " b { (shown(active.name.as_str())) } ". " }
                    None => { "Nobody is known to decide. " }
                }
                "Searches and actions are answered there."
                @match head.other {
                    Some(other) => { " " a href=(other) { "Open its page" } }
                    None => {
                        " Its page is on its own admin port; " code { "console.other" } " makes this a link."
                    }
                }
            }
        }
    }
}

/// The one question that every action asks first; scripts fill it in.
fn dialog() -> Markup {
    html! {
        dialog #confirm {
            form method="dialog" {
                h2 #confirm-title {}
                p #confirm-text {}
                label #token-field hidden {
                    "Admin token"
                    input #token type="password" autocomplete="off" spellcheck="false";
                    small {
                        "64 hexadecimal digits, in the file " code { "admin.token" } " of the cluster's data folder. "
                        "This tab remembers it until it is closed."
                    }
                }
                p #confirm-problem.problem role="alert" hidden {}
                div.buttons {
                    button #confirm-no type="button" { "Leave it" }
                    button #confirm-yes.danger type="submit" { "Do it" }
                }
            }
        }
    }
}

/// A button that acts, after it was confirmed. `path` and `body` are what is posted.
pub(crate) fn action(
    label: &str,
    path: &str,
    body: &str,
    title: &str,
    text: &str,
    then: Option<&str>,
) -> Markup {
    html! {
        button.act type="button" data-path=(path) data-body=(body) data-title=(shown(title)) data-text=(shown(text))
            data-then=[then] { (label) }
    }
}

/// A state as a small sign, whose colour says whether somebody has to look.
pub(crate) fn state(state: &str) -> Markup {
    let kind = match state {
        "up" | "active" | "standby" | "running" | "taken" | "online" | "info" => "good",
        "suspect" | "learner" | "recovering" | "blocked" | "away" | "draining" | "restoring"
        | "warn" => "warn",
        "down" | "error" => "bad",
        _ => "plain",
    };
    html! { span class={ "state " (kind) } { (shown(state)) } }
}

/// A share of a whole as a bar.
pub(crate) fn bar(part: u64, whole: u64) -> Markup {
    let width = part.saturating_mul(100).checked_div(whole).unwrap_or(0).min(100);
    let kind = match width {
        0..=79 => "fill",
        80..=94 => "fill warn",
        _ => "fill bad",
    };
    html! {
        svg.bar viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true" {
            rect.track width="100" height="6" rx="1" {}
            rect class=(kind) width=(width) height="6" rx="1" {}
        }
    }
}

/// Why there is nothing to show, in the place of it.
pub(crate) fn refused(refusal: &Refusal) -> Markup {
    html! {
        div.empty {
            b { "The master says no: " (shown(refusal.code.name())) }
            p { (shown(&refusal.message)) }
        }
    }
}

/// A link to a search for the records of a table in which a field is this text.
pub(crate) fn search_link(table: &str, field: &str, is: &str) -> String {
    let filter = Filter::Eq(field.into(), MetaValue::Text(is.into()));
    format!("/{table}?q={}", in_url(&filter.to_string()))
}

/// HTML with what keeps it from doing harm.
pub(crate) fn respond(status: StatusCode, page: &PreEscaped<String>) -> Response {
    let headers = [
        (header::CONTENT_SECURITY_POLICY, CONTENT_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (status, headers, Html(page.0.clone())).into_response()
}
