//! Questions over a log on disk.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::{collections::BTreeMap, path::Path, time::Duration};

use greenroom_logs::{
    LogWriter, LogsConfig, Stamp, Trace,
    kinds::{
        CheckIn, ConnectionEnded, DirectoryJoin, EventsLost, InstanceClosed, InstanceGranted,
        InstanceRunning, ServerUp, SessionEnded,
    },
    report::{REPORTS, Report},
    sql::{COLUMNS, Cell, Database},
};
use greenroom_protocol::{Incarnation, InstanceId, KindName, Seat, ServerName, SessionId, UserId};

/// 2026-11-28 12:00 UTC.
const NOON: u64 = 1_795_867_200_000;
const NASTY: &str = "<script>\u{1b}[31m\"'; drop table events; --";

fn stamp(seconds: u64, n: u128) -> Stamp {
    Stamp { ms: NOON + seconds * 1_000, distinct: n }
}

/// Three users come, two play a duel, one leaves and comes again a day later; one event is told by two masters.
fn story(folder: &Path) {
    let names = ["master-1", "master-2"];
    let [first, second] =
        names.map(|name| LogWriter::start(&LogsConfig::default(), folder, name).unwrap());
    let logs = first.logs().of("master-1", "master");
    let server = || ServerName::new("session-1").unwrap();
    let user = |n: u64| UserId::new(format!("user-{n}")).unwrap();
    for n in 1..=3 {
        let name = if n == 3 { NASTY.into() } else { format!("number {n}").into() };
        let event = CheckIn { user: user(n), session: SessionId(n), name, server: server() };
        logs.emit_stamped(stamp(n, u128::from(n)), &event);
        if n == 2 {
            second.logs().of("master-2", "master").emit_stamped(stamp(n, 2), &event);
        }
    }
    let duel = || KindName::new("duel").unwrap();
    for n in 1..=2 {
        let join = DirectoryJoin {
            user: user(n),
            instance: InstanceId(9),
            session: SessionId(n),
            instance_kind: duel(),
            seat: Seat(0),
        };
        logs.emit_stamped(stamp(4, 10 + u128::from(n)), &join);
    }
    let (game, incarnation) = (|| ServerName::new("game-1").unwrap(), Incarnation(5));
    let up = |labels| ServerUp { server: game(), server_role: "game", incarnation, labels };
    logs.emit_stamped(stamp(0, 30), &up(None));
    logs.emit_stamped(stamp(1, 31), &up(Some("eu,fast".into())));
    let granted = InstanceGranted {
        instance: InstanceId(9),
        instance_kind: duel(),
        server: game(),
        incarnation,
    };
    logs.emit_stamped(stamp(4, 32), &granted);
    let took_ms = Duration::from_micros(2_500);
    let running = InstanceRunning { instance: InstanceId(9), instance_kind: duel(), took_ms };
    logs.emit_stamped(stamp(4, 33), &running);
    let code = "closed".into();
    let lived_ms = Duration::from_millis(61_500);
    let closed = InstanceClosed { instance: InstanceId(9), instance_kind: duel(), code, lived_ms };
    logs.emit_stamped(stamp(66, 20), &closed);
    let ended =
        SessionEnded { user: user(1), session: SessionId(1), code: "session_expired".into() };
    logs.emit_stamped(stamp(70, 21), &ended);
    for (n, ms) in [(1, 20), (2, 40), (3, 600)] {
        let over = ConnectionEnded {
            user: user(n),
            session: SessionId(n),
            labels: (n < 3).then(|| "eu".into()),
            lasted_ms: Duration::from_secs(60),
            round_trips: 4,
            round_trip_p50_ms: Some(Duration::from_millis(ms)),
            round_trip_p99_ms: Some(Duration::from_millis(2 * ms)),
            round_trip_last_ms: Some(Duration::from_millis(ms)),
        };
        logs.emit_stamped(stamp(70, 40 + u128::from(n)), &over);
    }
    // Too short to be measured.
    let short = ConnectionEnded {
        user: user(1),
        session: SessionId(7),
        labels: Some("eu".into()),
        lasted_ms: Duration::from_secs(1),
        round_trips: 0,
        round_trip_p50_ms: None,
        round_trip_p99_ms: None,
        round_trip_last_ms: None,
    };
    logs.emit_stamped(stamp(71, 44), &short);
    let again =
        CheckIn { user: user(1), session: SessionId(7), name: "number 1".into(), server: server() };
    logs.emit_stamped(stamp(86_400, 22), &again);
    logs.emit(&EventsLost { events: 5 });
    first.stop();
    second.stop();
}

fn loaded() -> (tempfile::TempDir, Database) {
    let folder = tempfile::tempdir().unwrap();
    story(folder.path());
    let database = Database::load(folder.path(), None, |_| {}).unwrap();
    (folder, database)
}

fn rows(database: &Database, question: &str) -> String {
    database.ask(question).unwrap().csv()
}

fn refusal(database: &Database, question: &str) -> String {
    database.ask(question).unwrap_err().to_string()
}

#[test]
fn events_are_counted_once_however_many_told_them() {
    let (_folder, database) = loaded();
    assert_eq!(database.loaded().doubled, 1);
    let counts = rows(&database, "select kind, count(*) from events group by kind");
    let expected = "kind,count(*)\ncheck_in,4\nconnection_ended,4\ndirectory_join,2\nevents_lost,1\ninstance_closed,1\n\
                    instance_granted,1\ninstance_running,1\nserver_up,2\nsession_ended,1\n";
    assert_eq!(counts, expected);
}

#[test]
fn each_kind_is_a_view_with_its_fields_as_columns() {
    let (_folder, database) = loaded();
    let text = "select user, name, server, ts from check_in where session like '%1' order by ts";
    assert_eq!(
        rows(&database, text),
        "user,name,server,ts\nuser-1,number 1,session-1,2026-11-28T12:00:01.000Z\n"
    );
    let text = "select instance_kind, lived_ms from instance_closed";
    let row = database.ask(text).unwrap().rows.remove(0);
    assert_eq!(row, [Cell::Text("duel".into()), Cell::Real(61_500.0)]);
}

#[test]
fn nothing_can_be_written_attached_or_set() {
    let (folder, database) = loaded();
    let file = folder.path().join("stolen");
    for question in [
        "delete from events".to_owned(),
        "insert into events(id) values ('x')".into(),
        "drop table events".into(),
        "create table t(x)".into(),
        format!("attach '{}' as other", file.display()),
        "pragma journal_mode = wal".into(),
        "select load_extension('x')".into(),
        format!("vacuum into '{}'", file.display()),
        "begin".into(),
    ] {
        let text = refusal(&database, &question);
        assert!(text.contains("events can only be read"), "{question}: {text}");
    }
    assert!(!file.exists());
    assert_eq!(rows(&database, "select count(*) from events"), "count(*)\n17\n");
}

#[test]
fn what_is_wrong_with_a_question_is_said_in_words_with_its_place() {
    let (_folder, database) = loaded();
    let text = refusal(&database, "select usr from events");
    assert!(text.contains("no such column: usr") && text.contains("\n         ^"), "{text}");
    assert!(text.contains("user, instance") && text.contains("logs kinds"), "{text}");
    let text = refusal(&database, "select * from checkins");
    assert!(text.contains("no such table: checkins") && text.contains("check_in,"), "{text}");
    let text = refusal(&database, "select 1; select 2");
    assert!(text.contains("one question at a time"), "{text}");
    assert!(refusal(&database, "selec 1").contains("syntax error"));
    let text = Database::filter("kind = ").unwrap_err().to_string();
    assert!(text.contains("--where kind = "), "{text}");
}

#[test]
fn a_time_leaves_out_what_was_before() {
    let folder = tempfile::tempdir().unwrap();
    story(folder.path());
    let database = Database::load(folder.path(), Some(NOON + 60_000), |_| {}).unwrap();
    let counts =
        rows(&database, "select kind, count(*) from events where kind <> 'events_lost' group by 1");
    assert_eq!(
        counts,
        "kind,count(*)\ncheck_in,1\nconnection_ended,4\ninstance_closed,1\nsession_ended,1\n"
    );
    let none = Database::load(folder.path(), Some(u64::MAX >> 20), |_| {}).unwrap();
    assert_eq!(none.loaded().events, 0);
}

#[test]
fn a_condition_chooses_events_as_sql_does() {
    let (folder, _) = loaded();
    let filter = Database::filter("kind = 'check_in' and fields->>'name' like 'number%'").unwrap();
    let mut reader = greenroom_logs::read::Reader::open(folder.path(), Default::default()).unwrap();
    let mut held = 0;
    while let Some(record) = reader.next_record().unwrap() {
        held += u32::from(filter.holds(&record.event()).unwrap());
    }
    assert_eq!(held, 4, "three of one master, one of the other");
}

#[test]
fn no_name_reaches_a_terminal_or_a_page_as_more_than_text() {
    let (_folder, database) = loaded();
    let answer = database.ask("select name from check_in where user = 'user-3'").unwrap();
    assert_eq!(answer.rows[0][0], Cell::Text(NASTY.into()), "it is there as it was");
    for text in [answer.csv(), answer.json(), answer.rows[0][0].shown()] {
        assert!(!text.contains('\u{1b}'), "{text:?}");
    }
    let json: serde_json::Value = serde_json::from_str(answer.json().trim()).unwrap();
    assert_eq!(json["name"], NASTY);
    let report = Report::named("kinds").unwrap();
    let page = report.html(&answer);
    assert!(!page.contains("<script") && page.contains("&lt;script&gt;"), "{page}");
}

#[test]
fn every_report_answers_the_story() {
    let (_folder, database) = loaded();
    let answer = |name: &str| Report::named(name).unwrap().answer(&database).unwrap();
    let csv = |name: &str| answer(name).csv();
    assert_eq!(
        csv("players"),
        "minute,online\n2026-11-28T12:00,3\n2026-11-28T12:01,2\n2026-11-29T12:00,3\n"
    );
    assert_eq!(
        csv("retention"),
        "day,days_later,users,percent\n2026-11-28,0,3,100\n2026-11-28,1,1,33.3\n"
    );
    assert_eq!(
        csv("match-length"),
        "instance_kind,p50_s,p95_s,max_s,instances\nduel,61.5,61.5,61.5,1\n"
    );
    assert_eq!(csv("wait"), "instance_kind,p50_ms,p95_ms,max_ms,sessions\nduel,2000,2000,3000,2\n");
    let latency = csv("latency");
    let round =
        |region: &str, percent: u32| format!("{region}: a round trip (a connection's p{percent})");
    let ways = format!("{},20,20,20,40,2\n{},40,40,40,80,2\n", round("eu", 50), round("eu", 99));
    let far = [(50, "600,600,600,600,1"), (99, "1200,1200,1200,1200,1")];
    let far = far.map(|(percent, row)| format!("{},{row}\n", round("without a label", percent)));
    let head = "what,p50_ms,p95_ms,p99_ms,max_ms,times\n";
    let starts = "\"eu,fast: an instance starts\",2.5,2.5,2.5,2.5,1\n";
    let seats = "\"eu,fast: from a check-in to its first seat\",2000,2000,2000,3000,2\n";
    assert_eq!(latency, format!("{head}{starts}{seats}{ways}{}", far.concat()));
    assert_eq!(
        csv("funnel"),
        "step,users\nchecked in,3\nhad a seat,2\nhad seats in two instances,0\n"
    );
    let losses = answer("losses").rows.remove(0);
    assert_eq!(
        losses[1..4],
        [Cell::Text("events_lost".into()), Cell::Integer(1), Cell::Integer(5)]
    );
    for report in REPORTS {
        let answer =
            report.answer(&database).unwrap_or_else(|error| panic!("{}: {error}", report.name));
        assert!(!answer.columns.is_empty() && report.html(&answer).contains("</html>"));
        let has_picture = report.shape.is_some() && !answer.rows.is_empty();
        assert_eq!(report.svg(&answer).is_some(), has_picture, "{}", report.name);
    }
}

/// A log says what it likes: an odd line costs its own kind a view, and nobody an answer.
#[test]
fn odd_names_take_nobody_the_answer() {
    let folder = tempfile::tempdir().unwrap();
    story(folder.path());
    let line = |n: usize, kind: &str, fields: &str| {
        format!(
            "{{\"id\":\"{n:026}\",\"ts\":\"2026-11-28T12:00:01.000Z\",\"node\":\"n\",\"role\":\"game\",\"v\":1,\
             \"kind\":\"{kind}\",\"severity\":\"info\",\"fields\":{{{fields}}}}}\n"
        )
    };
    let odd = [
        ("duel.over", "\"won\":1"),
        ("Duel.over", ""),
        ("sqlite_race.over", ""),
        ("nul\\u0000.over", ""),
        ("race.over", "\"laps\":3,\"la\\u0000ps\":4"),
    ];
    let mut text: String =
        odd.iter().enumerate().map(|(n, (kind, fields))| line(n, kind, fields)).collect();
    let write = |name: &str, text: &str| {
        let process = folder.path().join(name);
        std::fs::create_dir_all(&process).unwrap();
        std::fs::write(process.join("00000001-1795867200000.jsonl"), text).unwrap();
    };
    write("odd", &text);
    let database = Database::load(folder.path(), None, |_| {}).unwrap();
    assert_eq!(rows(&database, "select count(*) from events where node = 'n'"), "count(*)\n5\n");
    assert_eq!(rows(&database, "select laps from \"race.over\""), "laps\n3\n");
    assert_eq!(rows(&database, "select count(*) from \"duel.over\""), "count(*)\n1\n");
    let notes = &database.loaded().notes;
    assert_eq!(notes.len(), 3, "{notes:?}");
    for name in ["uel.over", "sqlite_race.over", "nul\\u{0}.over"] {
        assert!(notes.iter().any(|note| note.contains(name)), "{name}: {notes:?}");
    }
    assert!(Report::named("kinds").unwrap().answer(&database).is_ok());

    text.clear();
    (0..600).for_each(|n| text.push_str(&line(1_000 + n, &format!("many.{n}"), "")));
    write("many", &text);
    let database = Database::load(folder.path(), None, |_| {}).unwrap();
    assert_eq!(rows(&database, "select count(*) from events where node = 'n'"), "count(*)\n605\n");
    let notes = database.loaded().notes.join("\n");
    assert!(notes.contains("more than 500 kinds"), "{notes}");
}

#[test]
fn an_answer_has_an_end_and_no_question_is_told_so() {
    let (_folder, database) = loaded();
    let endless = "with recursive n(x) as (select 1 union all select x + 1 from n) select x, \
                   printf('%.1000c', 'x') from n";
    let answer = database.ask(endless).unwrap();
    assert!(answer.is_cut && answer.rows.len() > 1_000 && answer.rows.len() < 1_000_000);
    assert!(!database.ask("select 1").unwrap().is_cut);
    for question in ["", "  ", "-- nothing", ";"] {
        let text = refusal(&database, question);
        assert!(text.contains("there is no question"), "{question:?}: {text}");
    }
}

/// What `docs/kinesis.md` says to Athena and to Glue is what an event has.
#[test]
fn the_tables_of_athena_and_glue_have_the_columns_of_an_event() {
    let folder = tempfile::tempdir().unwrap();
    let writer = LogWriter::start(&LogsConfig::default(), folder.path(), "p").unwrap();
    writer.logs().within(Trace(7)).emit(&DirectoryJoin {
        user: UserId::new("ann").unwrap(),
        instance: InstanceId(9),
        session: SessionId(1),
        instance_kind: KindName::new("duel").unwrap(),
        seat: Seat(0),
    });
    writer.stop();
    let mut reader = greenroom_logs::read::Reader::open(folder.path(), Default::default()).unwrap();
    let text = reader.next_record().unwrap().unwrap().text;
    let event: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).unwrap();
    let kind_of = |value: &serde_json::Value| if value.is_number() { "int" } else { "string" };
    let expected: BTreeMap<_, _> =
        event.iter().map(|(name, value)| (name.clone(), kind_of(value).to_owned())).collect();
    // The columns of SQL are these, without the version.
    assert!(COLUMNS.iter().all(|name| expected.contains_key(*name)));
    assert_eq!(expected.len(), COLUMNS.len() + 1);

    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/kinesis.md");
    let page = std::fs::read_to_string(page).unwrap();
    let fenced = |language: &str| -> Vec<&str> {
        let parts = page.split("\n```").skip(1).step_by(2);
        parts.filter_map(|part| part.strip_prefix(language)?.strip_prefix('\n')).collect()
    };
    let table = fenced("sql")[0].split_once("events (\n").unwrap().1;
    let columns = table.split_once("\n)").unwrap().0.split(',');
    let columns: BTreeMap<_, _> = columns
        .map(|column| column.trim().split_once(' ').unwrap())
        .map(|(name, form)| (name.trim_matches('`').to_owned(), form.to_owned()))
        .collect();
    assert_eq!(columns, expected, "Athena");

    let json = fenced("json").into_iter().map(|text| serde_json::from_str(text).unwrap());
    let json: Vec<serde_json::Value> = json.collect();
    let glue = json.iter().find(|value| value["TableType"] == "EXTERNAL_TABLE").unwrap();
    let columns = glue["StorageDescriptor"]["Columns"].as_array().unwrap().iter();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let columns: BTreeMap<_, _> =
        columns.map(|column| (text(&column["Name"]), text(&column["Type"]))).collect();
    assert_eq!(columns, expected, "Glue");

    // Firehose writes where both look, and makes the partition that both have.
    let firehose = json.iter().find(|value| value["DeliveryStreamName"].is_string()).unwrap();
    let s3 = &firehose["ExtendedS3DestinationConfiguration"];
    let bucket = s3["BucketARN"].as_str().unwrap().strip_prefix("arn:aws:s3:::").unwrap();
    let (folder, day) = s3["Prefix"].as_str().unwrap().split_once("day=").unwrap();
    let location = format!("s3://{bucket}/{folder}");
    assert_eq!(glue["StorageDescriptor"]["Location"], location);
    assert!(table.contains(&format!("LOCATION '{location}'")));
    assert_eq!(glue["PartitionKeys"][0]["Name"], "day");
    let format = glue["Parameters"]["projection.day.format"].as_str().unwrap();
    assert_eq!(day, format!("!{{timestamp:{format}}}/"));
    for (name, value) in glue["Parameters"].as_object().unwrap() {
        assert!(table.contains(&format!("'{name}' = '{}'", value.as_str().unwrap())), "{name}");
    }
}
