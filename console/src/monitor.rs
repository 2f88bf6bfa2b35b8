//! The pages' routes, and the stream that keeps them up to date.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use futures_util::stream;
use greenroom_protocol::wire::admin_master::Table;
use greenroom_protocol::{InstanceId, KindName};
use maud::{DOCTYPE, Markup, html};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::{task, time};
use tokio_util::sync::CancellationToken;

use crate::logs::Tail;
use crate::page::{Fresh, Head, Place, page, respond};
use crate::server::Admin;
use crate::tables::{Answer, Asked, busiest_kind};
use crate::text::shown;
use crate::watch::{SERIES, Sample, Seen};
use crate::{assets, instance, logs, overview, tables};

/// How often the content of a table is asked for again.
const REFRESH_MS: u32 = 3_000;
/// How often the content of one instance is.
const WATCH_MS: u32 = 1_000;
/// How often the log's tail is looked at for a page, and how often one hears of it that nothing is new.
const LOOK: Duration = Duration::from_millis(200);
const BEAT: Duration = Duration::from_secs(1);
/// When a browser tries to hear again after it lost the stream.
const RETRY: Duration = Duration::from_secs(1);

pub(crate) fn routes() -> Router<Arc<Admin>> {
    Router::new()
        .route("/", get(front))
        .route("/users", get(users))
        .route("/instances", get(instances))
        .route("/instances/{id}", get(one_instance))
        .route("/servers", get(servers))
        .route("/logs", get(event_log))
        .route("/logs/tail", get(tail))
        .route("/past", get(past))
        .route("/events", get(events))
        .route("/assets/{name}", get(assets::asset))
}

async fn front(State(admin): State<Arc<Admin>>) -> Response {
    let seen = admin.watch.now().await;
    let content = overview::overview(&seen);
    page(&head(&admin, &seen), Place::Overview, "Overview", Fresh::Live, &content)
}

async fn users(
    State(admin): State<Arc<Admin>>,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Response {
    let seen = admin.watch.now().await;
    let asked = match asked {
        Ok(Query(asked)) => asked,
        Err(rejection) => return misread(&admin, &seen, &rejection),
    };
    let answer = find(&admin, &asked, Table::Users).await;
    let content = tables::users(&asked, &answer);
    page(&head(&admin, &seen), Place::Users, "Users", fresh(&asked), &content)
}

async fn instances(
    State(admin): State<Arc<Admin>>,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Response {
    let seen = admin.watch.now().await;
    let mut asked = match asked {
        Ok(Query(asked)) => asked,
        Err(rejection) => return misread(&admin, &seen, &rejection),
    };
    if asked.kind.is_empty()
        && let Some(kind) = seen.status.as_ref().and_then(busiest_kind)
    {
        asked.kind = kind.to_string();
    }
    let answer = match KindName::new(asked.kind.as_str()) {
        Ok(kind) => find(&admin, &asked, Table::Instances(kind)).await,
        Err(error) => Answer::Unreadable(error.to_string()),
    };
    let content = tables::instances(&asked, seen.status.as_ref(), &answer);
    page(&head(&admin, &seen), Place::Instances, "Instances", fresh(&asked), &content)
}

async fn servers(
    State(admin): State<Arc<Admin>>,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Response {
    let seen = admin.watch.now().await;
    let asked = match asked {
        Ok(Query(asked)) => asked,
        Err(rejection) => return misread(&admin, &seen, &rejection),
    };
    let answer = find(&admin, &asked, Table::Servers).await;
    let content = tables::servers(&asked, seen.status.as_ref(), &answer);
    page(&head(&admin, &seen), Place::Servers, "Servers", fresh(&asked), &content)
}

async fn one_instance(State(admin): State<Arc<Admin>>, Path(id): Path<String>) -> Response {
    let seen = admin.watch.now().await;
    let head = head(&admin, &seen);
    let Ok(id) = id.parse::<InstanceId>() else {
        let content = html! {
            div.empty {
                b { "This is no instance's id" }
                p { "It has 26 characters. " a href="/instances" { "All instances" } }
            }
        };
        return page(&head, Place::Elsewhere, "No instance", Fresh::Never, &content);
    };
    let answer = admin.cluster.instance(id).await;
    let asked = logs::Asked::about(id.to_string());
    let events = read_log(&admin, &asked, false).await;
    let content = html! {
        div #fresh { (instance::instance(id, &answer, seen.status.as_ref())) }
        (logs::about(&asked, &events))
    };
    page(&head, Place::Instances, &id.to_string(), Fresh::Every(WATCH_MS), &content)
}

async fn event_log(
    State(admin): State<Arc<Admin>>,
    asked: Result<Query<logs::Asked>, QueryRejection>,
) -> Response {
    let seen = admin.watch.now().await;
    let asked = match asked {
        Ok(Query(asked)) => asked,
        Err(rejection) => return misread(&admin, &seen, &rejection),
    };
    let read = read_log(&admin, &asked, true).await;
    let content = logs::logs(&admin.logs, &asked, &read);
    page(&head(&admin, &seen), Place::Logs, "Event log", Fresh::Never, &content)
}

/// Reads the log beside what the port answers meanwhile: a disk may take its time.
async fn read_log(
    admin: &Admin,
    asked: &logs::Asked,
    is_whole: bool,
) -> Result<greenroom_logs::back::Page, String> {
    let (folder, asked) = (admin.logs.clone(), asked.clone());
    let read = move |stopped: &CancellationToken| {
        logs::read(&folder, &asked, is_whole, || stopped.is_cancelled())
    };
    beside(&admin.readers, &admin.closing, read)
        .await
        .unwrap_or_else(|| Err("the port stops".into()))
}

/// Does what a disk may keep waiting on a thread of its own, once there is a place; nothing if the port stops before.
/// It is told when nobody waits any more, since who asked has gone or the port stops: the place is another's then.
async fn beside<T: Send + 'static>(
    places: &Arc<Semaphore>,
    closing: &CancellationToken,
    act: impl FnOnce(&CancellationToken) -> T + Send + 'static,
) -> Option<T> {
    let stopped = closing.child_token();
    let _gone = stopped.clone().drop_guard();
    let acting = async {
        let place = Arc::clone(places).acquire_owned().await.ok()?;
        let acting = task::spawn_blocking(move || {
            let done = act(&stopped);
            drop(place);
            done
        });
        acting.await.ok()
    };
    closing.run_until_cancelled(acting).await.flatten()
}

fn head<'a>(admin: &'a Admin, seen: &'a Seen) -> Head<'a> {
    let other = (!admin.other.is_empty()).then_some(admin.other.as_str());
    Head { status: seen.status.as_ref(), other }
}

/// A later page stays as it is: what was on it may stand on another one by now.
fn fresh(asked: &Asked) -> Fresh {
    if asked.cursor.is_empty() { Fresh::Every(REFRESH_MS) } else { Fresh::Never }
}

async fn find(admin: &Admin, asked: &Asked, table: Table) -> Answer {
    match asked.find(table) {
        Ok(find) => match admin.cluster.find(find).await {
            Ok(rows) => Answer::Rows(rows),
            Err(refusal) => Answer::Refused(refusal),
        },
        Err(problem) => Answer::Unreadable(problem),
    }
}

/// An address that says what no page of ours does.
fn misread(admin: &Admin, seen: &Seen, rejection: &QueryRejection) -> Response {
    let content: Markup = html! {
        div.empty role="alert" { b { "This address can't be read" } p { (rejection.body_text()) } }
    };
    let mut response =
        page(&head(admin, seen), Place::Elsewhere, "No page", Fresh::Never, &content);
    *response.status_mut() = StatusCode::BAD_REQUEST;
    response
}

/// What charts begin with.
#[derive(Serialize)]
struct Past {
    /// Names of the columns after the time.
    series: [&'static str; SERIES.len()],
    samples: Vec<Sample>,
}

async fn past(State(admin): State<Arc<Admin>>) -> Response {
    let series = SERIES.map(|series| series.key);
    let past = Past { series, samples: admin.watch.past() };
    ([(header::CACHE_CONTROL, "no-store")], Json(past)).into_response()
}

/// One viewer of the stream.
struct Viewer {
    seen: tokio::sync::watch::Receiver<Option<Arc<Seen>>>,
    closing: CancellationToken,
    /// What it was not sent yet of the second that it was told of last.
    next: Option<Event>,
    _place: OwnedSemaphorePermit,
}

impl Viewer {
    async fn next(mut self) -> Option<(Result<Event, Infallible>, Self)> {
        if let Some(event) = self.next.take() {
            return Some((Ok(event), self));
        }
        let changed = self.closing.run_until_cancelled(self.seen.changed()).await;
        let (Some(Ok(())), closing) = (changed, &self.closing) else { return None };
        if closing.is_cancelled() {
            return None;
        }
        let seen = self.seen.borrow_and_update().clone()?;
        let sample = Event::default().event("sample").json_data(seen.sample);
        let sample = sample.expect("a sample is made of numbers");
        // A browser reads an event line by line.
        let live = overview::live(&seen).into_string().replace(['\r', '\n'], " ");
        self.next = Some(Event::default().event("live").data(live));
        Some((Ok(sample.retry(RETRY)), self))
    }
}

async fn events(State(admin): State<Arc<Admin>>) -> Response {
    let Ok(place) = Arc::clone(&admin.viewers).try_acquire_owned() else { return too_many() };
    // Without a first second there is nothing to tell; afterwards the newest is told at once.
    admin.watch.now().await;
    let mut seen = admin.watch.follow();
    seen.mark_changed();
    let viewer = Viewer { seen, closing: admin.closing.clone(), next: None, _place: place };
    Sse::new(stream::unfold(viewer, Viewer::next)).into_response()
}

/// One page that is told of the log's tail.
struct Listener {
    /// Away while it looks.
    tail: Option<Tail>,
    looks: Arc<Semaphore>,
    closing: CancellationToken,
    _place: OwnedSemaphorePermit,
}

impl Listener {
    async fn next(mut self) -> Option<(Result<Event, Infallible>, Self)> {
        let began = Instant::now();
        loop {
            let mut tail = self.tail.take()?;
            let look = move |_: &CancellationToken| (tail.look(), tail);
            let (found, tail) = beside(&self.looks, &self.closing, look).await?;
            let event = match found {
                Ok(found) if !found.is_empty() => {
                    let rows = found.rows().into_string().replace(['\r', '\n'], " ");
                    Event::default().event("rows").id(tail.place()).data(rows).retry(RETRY)
                }
                Ok(found) if found.is_cut || began.elapsed() < BEAT => {
                    self.tail = Some(tail);
                    if !found.is_cut {
                        self.closing.run_until_cancelled(time::sleep(LOOK)).await?;
                    }
                    continue;
                }
                Ok(_) => {
                    // A browser passes over an event without data.
                    Event::default().event("beat").id(tail.place()).data("quiet")
                }
                Err(problem) => Event::default().event("trouble").data(shown(&problem)),
            };
            self.tail = Some(tail);
            return Some((Ok(event), self));
        }
    }
}

async fn tail(
    State(admin): State<Arc<Admin>>,
    headers: HeaderMap,
    asked: Result<Query<logs::Asked>, QueryRejection>,
) -> Response {
    let Ok(place) = Arc::clone(&admin.viewers).try_acquire_owned() else { return too_many() };
    let asked = match asked {
        Ok(Query(asked)) => asked,
        Err(rejection) => return (StatusCode::BAD_REQUEST, rejection.body_text()).into_response(),
    };
    // A browser that lost the stream says what it heard last.
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok()).map(str::to_owned);
    let folder = admin.logs.clone();
    let open = move |_: &CancellationToken| Tail::open(&folder, &asked, last.as_deref());
    let opened = beside(&admin.looks, &admin.closing, open).await;
    match opened.unwrap_or_else(|| Err("the port stops".into())) {
        Ok(tail) => {
            let listener = Listener {
                tail: Some(tail),
                looks: Arc::clone(&admin.looks),
                closing: admin.closing.clone(),
                _place: place,
            };
            Sse::new(stream::unfold(listener, Listener::next)).into_response()
        }
        Err(problem) => (StatusCode::BAD_REQUEST, problem).into_response(),
    }
}

fn too_many() -> Response {
    let text = "as many pages as this port keeps up to date are open already: close some";
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}

/// What a browser is shown where there is nothing.
pub(crate) fn nothing_here() -> Response {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "No such page · Greenroom" }
                link rel="icon" href="/assets/icon.svg";
                link rel="stylesheet" href="/assets/console.css";
            }
            body {
                main {
                    div.empty {
                        b { "There is no such page" }
                        p { a href="/" { "Overview" } }
                    }
                }
            }
        }
    };
    respond(StatusCode::NOT_FOUND, &page)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn who_goes_leaves_its_place_and_a_port_that_stops_waits_for_none() {
        let (places, closing) = (Arc::new(Semaphore::new(1)), CancellationToken::new());
        let endless = |stopped: &CancellationToken| {
            while !stopped.is_cancelled() {
                std::thread::yield_now();
            }
        };
        let mut asking = task::JoinSet::new();
        for stops in [false, true] {
            let asked = asking.spawn({
                let (places, closing) = (Arc::clone(&places), closing.clone());
                async move { beside(&places, &closing, endless).await }
            });
            while places.available_permits() > 0 {
                task::yield_now().await;
            }
            // It has the only place: this one waits.
            let mut next = std::pin::pin!(beside(&places, &closing, |_| 7));
            assert!(next.as_mut().now_or_never().is_none());
            if stops {
                closing.cancel();
            } else {
                asked.abort();
            }
            let answer = time::timeout(PATIENCE, next).await.expect("the place is free again");
            assert_eq!(answer, (!stops).then_some(7));
        }
        // What was under way when the port stopped ends, too.
        let ended = time::timeout(PATIENCE, places.acquire()).await;
        assert!(ended.is_ok_and(|place| place.is_ok()));
    }
}
