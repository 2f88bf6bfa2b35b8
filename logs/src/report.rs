//! Ready questions, and their pictures.

use crate::{
    plot::{Plot, Shape},
    sql::{Answer, Database, SqlError},
};

/// A question that is asked often.
#[derive(Debug)]
pub struct Report {
    /// Its name.
    pub name: &'static str,
    /// What it answers.
    pub about: &'static str,
    /// The question.
    pub sql: &'static str,
    /// Its picture, if one says more than rows: from the first column to the others.
    pub shape: Option<Shape>,
    /// What stands at the picture's upright axis.
    pub unit: &'static str,
}

/// All of them.
#[rustfmt::skip]
pub const REPORTS: &[Report] = &[
    Report {
        name: "players",
        about: "players online over time, by the minute",
        shape: Some(Shape::Line), unit: "players",
        sql: "
with changes as (
    select substr(ts, 1, 16) as minute, 1 as change from check_in
    union all select substr(ts, 1, 16), -1 from session_ended
        where session in (select session from check_in)
), minutes as (select minute, sum(change) as change from changes group by minute)
select minute, sum(change) over (order by minute) as online from minutes order by minute" },
    Report {
        name: "retention",
        about: "of the users that came first on a day, how many came again on a later day",
        shape: None, unit: "",
        sql: "
with days as (select distinct user, substr(ts, 1, 10) as day from check_in),
firsts as (select user, min(day) as first from days group by user)
select first as day, cast(julianday(day) - julianday(first) as integer) as days_later, count(*) as users,
    round(100.0 * count(*) / (select count(*) from firsts f where f.first = firsts.first), 1) as percent
from days join firsts using (user) group by first, days_later order by first, days_later" },
    Report {
        name: "match-length",
        about: "how long instances lived, by kind, in seconds",
        shape: Some(Shape::Bars), unit: "seconds",
        sql: "
with ranked as (
    select instance_kind, lived_ms / 1000.0 as s,
        percent_rank() over (partition by instance_kind order by lived_ms) as rank
    from instance_closed where code not in ('create_refused', 'no_capacity', 'kind_unknown')
)
select instance_kind, round(max(s) filter (where rank <= 0.5), 3) as p50_s,
    round(max(s) filter (where rank <= 0.95), 3) as p95_s, round(max(s), 3) as max_s, count(*) as instances
from ranked group by instance_kind order by instance_kind" },
    Report {
        name: "wait",
        about: "from a check-in to the first seat of its session, in milliseconds",
        shape: Some(Shape::Bars), unit: "milliseconds",
        sql: "
with waits as (
    select j.instance_kind, (unixepoch(min(j.ts), 'subsec') - unixepoch(c.ts, 'subsec')) * 1000 as ms
    from check_in c join directory_join j on j.session = c.session group by c.session
), ranked as (select *, percent_rank() over (partition by instance_kind order by ms) as rank from waits)
select instance_kind, round(max(ms) filter (where rank <= 0.5)) as p50_ms,
    round(max(ms) filter (where rank <= 0.95)) as p95_ms, round(max(ms)) as max_ms, count(*) as sessions
from ranked group by instance_kind order by instance_kind" },
    Report {
        name: "crashes",
        about: "instances that failed and processes that a bug ended, by what was wrong",
        shape: Some(Shape::Bars), unit: "times",
        sql: "
select what, count(*) as times, min(ts) as first, max(ts) as last from (
    select instance_kind || ': ' || what as what, ts from instance_failed
    union all select 'process ' || node || ': ' || what, ts from process_failed
) group by what order by times desc, what" },
    Report {
        name: "starts",
        about: "how long instances took to run after they were granted, by kind, in milliseconds",
        shape: Some(Shape::Bars), unit: "milliseconds",
        sql: "
with ranked as (
    select instance_kind, took_ms as ms,
        percent_rank() over (partition by instance_kind order by took_ms) as rank from instance_running
)
select instance_kind, round(max(ms) filter (where rank <= 0.5), 3) as p50_ms,
    round(max(ms) filter (where rank <= 0.99), 3) as p99_ms, round(max(ms), 3) as max_ms, count(*) as instances
from ranked group by instance_kind order by instance_kind" },
    Report {
        name: "latency",
        about: "the way to players and back, and their waiting, by region (labels of the server), in milliseconds",
        shape: Some(Shape::Bars), unit: "milliseconds",
        sql: "
with places as (select server, labels as region, max(ts) from server_up where server_role = 'game' group by server),
grants as (select instance, server, max(ts) from instance_granted group by instance),
homes as (select instance, coalesce(region, 'without a label') as region from grants left join places using (server)),
ways as (
    select coalesce(labels, 'without a label') as region, round_trip_p50_ms as p50, round_trip_p99_ms as p99
    from connection_ended where round_trips > 0
), waits as (
    select region || ': a round trip (a connection''s p50)' as what, p50 as ms from ways
    union all select region || ': a round trip (a connection''s p99)', p99 from ways
    union all select region || ': an instance starts', took_ms from instance_running join homes using (instance)
    union all select region || ': from a check-in to its first seat', ms from (
        select j.instance, (unixepoch(min(j.ts), 'subsec') - unixepoch(c.ts, 'subsec')) * 1000 as ms
        from check_in c join directory_join j on j.session = c.session group by c.session
    ) join homes using (instance)
), ranked as (select *, percent_rank() over (partition by what order by ms) as rank from waits)
select what, round(max(ms) filter (where rank <= 0.5), 3) as p50_ms,
    round(max(ms) filter (where rank <= 0.95), 3) as p95_ms, round(max(ms) filter (where rank <= 0.99), 3) as p99_ms,
    round(max(ms), 3) as max_ms, count(*) as times
from ranked group by what order by what" },
    Report {
        name: "ticks",
        about: "steps that were given up for being late, by game server and kind",
        shape: Some(Shape::Bars), unit: "steps",
        sql: "
select node || ' ' || instance_kind as what, sum(given_up) as given_up, round(max(late_ms), 3) as late_max_ms,
    count(*) as times, count(distinct instance) as instances
from tick_overrun group by 1 order by 2 desc" },
    Report {
        name: "funnel",
        about: "users from their check-in to a seat, and to a second one",
        shape: Some(Shape::Bars), unit: "users",
        sql: "
with joins as (select user, count(distinct instance) as instances from directory_join group by user)
select step, users from (
    select 1 as n, 'checked in' as step, count(distinct user) as users from check_in
    union all select 2, 'had a seat', count(*) from joins
    union all select 3, 'had seats in two instances', count(*) from joins where instances > 1
) order by n" },
    Report {
        name: "kinds",
        about: "the kinds of events that there are most of",
        shape: Some(Shape::Bars), unit: "events",
        sql: "
select kind, count(*) as events, min(ts) as first, max(ts) as last
from events group by kind order by events desc, kind" },
    Report {
        name: "refusals",
        about: "what was refused, by its code",
        shape: Some(Shape::Bars), unit: "times",
        sql: "
select code, count(*) + sum(left_out) as times, count(distinct who) as who, group_concat(distinct at) as \"at\" from (
    select code, left_out, address as who, 'check-in' as at from check_in_refused
    union all select code, left_out, user, 'limits' from security_refusal
    union all select code, 0, user, 'directory' from directory_refused
) group by code order by times desc, code" },
    Report {
        name: "losses",
        about: "what this log lost, and says so",
        shape: None, unit: "",
        sql: "
select node, kind, count(*) as times, sum(coalesce(fields->>'events', 0)) as events, max(ts) as last
from events where kind in ('events_lost', 'segments_dropped', 'torn_line', 'shipping_lost')
group by node, kind order by node, kind" },
];

impl Report {
    /// The report of a name.
    pub fn named(name: &str) -> Option<&'static Self> {
        REPORTS.iter().find(|report| report.name == name)
    }

    /// Asks.
    ///
    /// # Errors
    /// When SQLite has no room for what is in between.
    pub fn answer(&self, database: &Database) -> Result<Answer, SqlError> {
        database.ask(self.sql)
    }

    /// The picture of an answer, as SVG; none where rows say more, or there are none.
    pub fn svg(&self, answer: &Answer) -> Option<String> {
        let shape = self.shape.filter(|_| !answer.rows.is_empty())?;
        Some(Plot { title: self.about, unit: self.unit, shape }.svg(answer))
    }

    /// A page of its own: the picture, the rows, and the question.
    pub fn html(&self, answer: &Answer) -> String {
        let escaped = crate::plot::escaped;
        let head: String =
            answer.columns.iter().map(|name| format!("<th>{}</th>", escaped(name))).collect();
        let row = |row: &Vec<crate::sql::Cell>| {
            let cells = row.iter().map(|cell| format!("<td>{}</td>", escaped(&cell.shown())));
            format!("<tr>{}</tr>\n", cells.collect::<String>())
        };
        let rows: String = answer.rows.iter().map(row).collect();
        let (title, picture, sql) =
            (escaped(self.about), self.svg(answer).unwrap_or_default(), escaped(self.sql.trim()));
        format!(
            "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title>\n<style>body{{font:14px \
             system-ui,sans-serif;margin:2em;max-width:60em}}td,th{{padding:.2em .8em;text-align:left;\
             border-bottom:1px solid #ddd}}pre{{background:#f4f4f4;padding:1em}}</style>\n<h1>{title}</h1>\n{picture}\n\
             <table><tr>{head}</tr>\n{rows}</table>\n<pre>{sql}</pre></html>\n"
        )
    }
}
