//! Events in a stream are those on disk, whatever happens on the way.

use std::{
    collections::BTreeSet,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    harness::{Process, error_of, greenroom, report, rows, rows_of, wait_until},
    moto::{CREDENTIALS, Moto},
    proxy::{Fault, Proxy},
    up::{Many, process_id},
};

/// How long the stream is away.
const AWAY: Duration = Duration::from_secs(20);

/// A command that has credentials, and nothing else of AWS.
fn with_credentials() -> Command {
    let mut command = greenroom();
    command.envs(CREDENTIALS).env_remove("AWS_PROFILE");
    command
}

fn stream(name: &str, port: u16) -> String {
    format!("kinesis://{name}?region=us-east-1&endpoint=http://127.0.0.1:{port}")
}

/// Where a question is asked: a data folder, or a stream.
#[derive(Clone, Copy)]
enum At<'a> {
    Disk(&'a str),
    Stream(&'a str),
}

fn ask(at: At<'_>, words: &[&str]) -> Output {
    let (flag, place) = match at {
        At::Disk(data) => ("--data", data),
        At::Stream(stream) => ("--from", stream),
    };
    with_credentials().arg("logs").args(words).args([flag, place]).output().unwrap()
}

/// The answer as it was printed, and what was said of it.
fn answer(at: At<'_>, words: &[&str]) -> (String, String) {
    let output = ask(at, words);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{words:?}: {said}");
    (String::from_utf8(output.stdout).unwrap(), said)
}

fn ids(at: At<'_>) -> BTreeSet<String> {
    let ids = rows_of(&ask(at, &["sql", "select id from events", "--format", "csv"]));
    ids.into_iter().collect()
}

/// How many events a stream has more than once, as the command says it.
fn doubled(stream: At<'_>) -> u64 {
    let (_, said) = answer(stream, &["sql", "select 1"]);
    let note = said.lines().find(|line| line.contains("more than once"));
    note.and_then(|line| line.split(' ').nth(1)).map_or(0, |number| number.parse().unwrap())
}

fn kinds(data: &str) -> BTreeSet<String> {
    rows(data, "select distinct kind from events").into_iter().collect()
}

/// Bots play for a minute; the stream is away for 20 s, and a game server is killed meanwhile; one answer of the stream
/// is lost. Then everything that is on disk is in the stream, and whoever asks gets the same answers from both.
#[test]
fn what_is_on_disk_is_in_the_stream_after_it_was_away_and_a_game_server_died() {
    let moto = Moto::start();
    moto.create("events", 2);
    let proxy = Proxy::start(moto.port);
    let (many, endpoint) = (Many::new(), format!("http://127.0.0.1:{}", proxy.port));
    let flags = [
        "--logs-kinesis-stream",
        "events",
        "--logs-kinesis-region",
        "us-east-1",
        "--logs-kinesis-endpoint",
        &endpoint,
    ];
    let (up, admin) = many.start_as(&mut with_credentials(), &flags);
    let bots = ["bots", "--json", "--admin", &admin, "--users", "40", "--game", "duel"];
    let bots = Process::spawn(greenroom().args(bots).args(["--for", "60s"]));
    wait_until("events in the stream", || proxy.seen().calls > 5);
    proxy.next([Fault::Swallow]);
    wait_until("an answer that is lost", || proxy.seen().records_swallowed > 0);

    proxy.always(Fault::Cut);
    let cut = Instant::now();
    wait_until("the log to tell of it", || kinds(many.data()).contains("shipping_failed"));
    let line = up.out.wait("game-1", |line| line.contains("game-1") && line.contains("(process "));
    let game = i32::try_from(process_id(&line)).unwrap();
    kill_process(Pid::from_raw(game).unwrap(), Signal::KILL).unwrap();
    up.out.wait("its return", |line| line.starts_with("game-1 is back"));
    wait_until("the end of the cut", || cut.elapsed() >= AWAY);
    proxy.always(Fault::None);

    let (_, played) = report(&bots.ended());
    assert!(played["results"].as_u64().unwrap() > 20, "{played:#}");
    let (disk, stream) = (many.data(), stream("events", proxy.port));
    let (disk, stream) = (At::Disk(disk), At::Stream(&stream));
    wait_until("the log to tell that it goes on", || {
        kinds(many.data()).contains("shipping_resumed")
    });
    let mut events = 0;
    wait_until("everything that is on disk in the stream", || {
        let on_disk = ids(disk);
        events = on_disk.len();
        on_disk.is_subset(&ids(stream))
    });
    let questions: [&[&str]; 3] = [
        &["sql", "select kind, count(*) from events group by kind order by kind"],
        &["report", "match-length", "--format", "json"],
        &[
            "sql",
            "select server, count(*), count(distinct user), min(ts), max(ts) from check_in group by server order by 1",
            "--format",
            "csv",
        ],
    ];
    for question in questions {
        // While the last instances close, the stream is some milliseconds behind the disk.
        wait_until("the same answer from both", || {
            answer(disk, question).0 == answer(stream, question).0
        });
        let (text, _) = answer(stream, question);
        assert!(text.lines().count() > 1 || text.contains("duel"), "{question:?}: {text}");
    }
    // A newest event is the newest in both, and of a stream they come by their time, too.
    let tail = ["tail", "-n", "5", "--kind", "check_in", "--json"];
    assert_eq!(answer(disk, &tail).0, answer(stream, &tail).0);
    let doubled = doubled(stream);
    assert!(doubled >= proxy.seen().records_swallowed as u64, "{doubled} are there twice");
    let (ended, text) = up.stop();
    assert!(ended, "{text}");
    eprintln!("{events} events on disk, each in the stream; {doubled} of them more than once");
}

#[test]
fn a_question_that_a_stream_can_not_answer_says_why() {
    let moto = Moto::start();
    moto.create("empty", 1);
    let empty = stream("empty", moto.port);
    let question = ["sql", "select kind, count(*) from events group by kind"];
    let (text, said) = answer(At::Stream(&empty), &[&question[..], &["--since", "1h"]].concat());
    assert_eq!(text.trim(), "kind  count(*)");
    assert!(
        said.contains("there is no event since 20") && said.contains("kinesis://empty"),
        "{said}"
    );

    let error = error_of(&ask(At::Stream(&empty), &["sql", "select usr from events"]));
    assert!(error.contains("no such column: usr") && error.contains("logs kinds"), "{error}");
    let missing = stream("missing", moto.port);
    let error = error_of(&ask(At::Stream(&missing), &question));
    assert!(error.contains("there is no such stream") && error.contains("--from"), "{error}");
    for text in ["events", "kinesis://", "kinesis://events?zone=1"] {
        let error = error_of(&ask(At::Stream(text), &question));
        assert!(error.contains("--from") && error.contains("kinesis://STREAM?region="), "{error}");
    }
    let error = error_of(&ask(At::Stream(&empty), &["tail", "--follow"]));
    assert!(error.contains("leave out --follow"), "{error}");

    let mut nobody = greenroom();
    for (name, _) in CREDENTIALS {
        nobody.env_remove(name);
    }
    nobody.env("AWS_EC2_METADATA_DISABLED", "true").env_remove("AWS_PROFILE");
    nobody.env("HOME", "/nonexistent").stdin(Stdio::null());
    let error =
        error_of(&nobody.arg("logs").args(question).args(["--from", &empty]).output().unwrap());
    assert!(error.contains("no AWS credentials were found"), "{error}");
}
