//! One instance: where it runs, what it says of itself, and who sits in it.

use greenroom_protocol::wire::admin_master::{InstanceStatus, SeatStatus, ServerStatus, Status};
use greenroom_protocol::wire::client_session::MetaValue;
use greenroom_protocol::wire::master_game::Measures;
use greenroom_protocol::{InstanceId, Refusal};
use maud::{Markup, html};

use crate::page::{bar, refused, search_link, state};
use crate::tables::{destroy, kick, own_fields, plain, server};
use crate::text::{grouped, in_url, short, shown, span};
use crate::watch::now_ms;

pub(crate) fn instance(
    id: InstanceId,
    answer: &Result<InstanceStatus, Refusal>,
    status: Option<&Status>,
) -> Markup {
    html! {
        p.crumbs {
            a href="/instances" { "Instances" }
            @if let Ok(instance) = answer {
                " / " a href={ "/instances?kind=" (in_url(instance.kind.as_str())) } { (shown(instance.kind.as_str())) }
            }
        }
        @match answer {
            Ok(instance) => { (found(id, instance, status)) }
            Err(refusal) => {
                h1.id { (id) }
                (refused(refusal))
            }
        }
    }
}

fn found(id: InstanceId, instance: &InstanceStatus, status: Option<&Status>) -> Markup {
    let field = |name: &str| instance.fields.get(name);
    let number = |name: &str| match field(name) {
        Some(MetaValue::Int(number)) => u64::try_from(*number).unwrap_or(0),
        Some(MetaValue::Text(_) | MetaValue::Bool(_)) | None => 0,
    };
    let text = |name: &str| field(name).map(plain).unwrap_or_default();
    let (taken, max) = (number("seats_taken"), number("seats_max"));
    let own = own_fields(&instance.fields);
    let games = status.map_or(&[][..], |status| &status.games);
    let host = games.iter().find(|server| server.name.as_str() == text("server"));
    html! {
        h1 {
            span.id { (id) } " " (state(&text("state")))
            div.buttons { (destroy(&id.to_string(), "/instances")) }
        }
        div.columns {
            section.panel {
                h2 { "Where and what" }
                dl {
                    dt { "Kind" } dd { (shown(instance.kind.as_str())) }
                    dt { "Server" } dd { (server(&text("server"))) }
                    dt { "Incarnation" } dd.id { (instance.incarnation) }
                    dt { "Age" } dd { (span(now_ms().saturating_sub(number("created")))) }
                    dt { "Seats" } dd { (taken) " of " (max) " taken" (bar(taken, max)) }
                    dt { "Takes new seats" } dd { (text("open")) }
                    dt { "Private" } dd { (text("private")) }
                    @if let Some(MetaValue::Text(key)) = field("key") { dt { "Key" } dd { bdi { (shown(key)) } } }
                    @if let Some(MetaValue::Text(owner)) = field("owner") {
                        dt { "Made by" }
                        dd { a href=(search_link("users", "id", owner)) { bdi { (short(owner, 60)) } } }
                    }
                }
            }
            section.panel {
                h2 { "Metadata" }
                @if own.is_empty() {
                    p.hint {
                        "The game says nothing of it. A kind declares fields with " code { "#[derive(Meta)]" } "."
                    }
                } @else {
                    dl { @for (name, value) in &own { dt { (shown(name)) } dd { bdi { (value) } } } }
                }
            }
            @if let Some(measures) = &instance.measures { (doing(measures)) }
            @if let Some(host) = host { (runs_on(host)) }
        }
        section.panel {
            h2 { "Seats" }
            @if instance.seats.is_empty() {
                p.hint { "All " (max) " seats are free." }
            } @else {
                div.scroll {
                    table {
                        @let heads = ["Seat", "State", "User", "Name", "Session server", ""];
                        thead { tr { @for head in heads { th scope="col" { (head) } } } }
                        tbody { @for of in &instance.seats { tr { (seat(of)) } } }
                    }
                }
            }
        }
    }
}

/// What the instance itself costs, measured by its game server while a page like this one is open.
fn doing(measures: &Measures) -> Markup {
    let ms = |us: u32| format!("{}.{:02} ms", us / 1_000, us % 1_000 / 10);
    html! {
        section.panel #measures {
            h2 { "This instance" }
            dl {
                @if measures.steps == 0 {
                    dt { "Steps" } dd { "none since this page looks" }
                } @else {
                    dt { "Step, half of them" } dd { "up to " (ms(measures.step_p50_us)) }
                    dt { "Step, 99 of 100" } dd { "up to " (ms(measures.step_p99_us)) }
                    dt { "Latest step" } dd { (ms(measures.step_last_us)) }
                    dt { "Measured" } dd { "the newest " (grouped(measures.steps.into())) " steps" }
                }
                @if let Some(bytes) = measures.state_bytes {
                    dt { "State, as stored" } dd { (grouped(bytes)) " bytes" }
                }
                dt { "View of every seat" } dd { (grouped(measures.view_bytes)) " bytes" }
                @if let Some(rate) = measures.patch_bytes_per_s {
                    dt { "Patches" } dd { (grouped(rate)) " bytes/s" }
                }
            }
        }
    }
}

/// How the game server is doing on which it runs: its ticks are made in turn with those of the others there.
fn runs_on(host: &ServerStatus) -> Markup {
    html! {
        section.panel {
            h2 { "Its server" }
            dl {
                dt { "State" } dd { (state(&host.state)) }
                dt { "Busy" } dd { (host.busy_permille / 10) " %" (bar(host.busy_permille.into(), 1_000)) }
                @if let Some(game) = host.game {
                    @let (instances, seats) = (game.instances.into(), game.seats.into());
                    dt { "Runs" } dd { (grouped(instances)) " instances, " (grouped(seats)) " seats" }
                    dt { "Ticks" }
                    dd {
                        (grouped(game.counts.ticks)) ", " (grouped(game.counts.ticks_late)) " of them late, "
                        (grouped(game.counts.ticks_given_up)) " given up"
                    }
                    dt { "Latest tick" }
                    dd { (game.counts.tick_late_us / 1_000) "." (game.counts.tick_late_us / 100 % 10) " ms late" }
                }
            }
        }
    }
}

fn seat(seat: &SeatStatus) -> Markup {
    let user = seat.user.as_ref().map(|user| user.as_str());
    html! {
        td.number { (seat.seat) }
        td { (state(&seat.state)) }
        td.id { @if let Some(user) = user { a href=(search_link("users", "id", user)) { bdi { (short(user, 48)) } } } }
        td { bdi { (short(&seat.name, 48)) } }
        td { @if let Some(of) = &seat.session_server { (server(of.as_str())) } }
        td.acts { @if let (Some(user), true) = (user, seat.state != "expected") { (kick(user, &seat.name)) } }
    }
}
