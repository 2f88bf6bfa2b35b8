//! `greenroom logs`: what happened, for people who ask.

use std::{
    collections::BTreeMap,
    io::{IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
#[cfg(feature = "kinesis")]
use greenroom_logs::ship::{Place, Target, read_stream};
use greenroom_logs::{
    kinds::KINDS,
    read::{self, Entry, From, Reader, Skipped},
    report::{REPORTS, Report},
    shown,
    sql::{Answer, Database, Filter, about},
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tracing_subscriber::{
    Layer as _,
    filter::{LevelFilter, Targets},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use crate::{
    operator::{columns, print},
    process_log,
    settings::{self, Settings},
};

/// How long a scan may take before it shows how far it is.
const QUIET: Duration = Duration::from_secs(2);
/// How often a tail looks for more.
const LOOK: Duration = Duration::from_millis(100);

pub(crate) fn command() -> Command {
    let since = || {
        Arg::new("since")
            .long("since")
            .value_name("SPAN")
            .value_parser(crate::bots::span)
            .help("Only what happened in this time until now, such as 1h")
    };
    let folder = |command: Command| {
        let from = Arg::new("from").long("from").value_name("STREAM").help(
            "Read kinesis://STREAM?region=REGION instead of this machine's log; \
                 &endpoint=URL if it is not AWS's",
        );
        settings::flags(command.arg(from), &["cluster", "logs"])
    };
    let tail = Command::new("tail")
        .about("The newest events, one a line")
        .arg(
            Arg::new("follow")
                .short('f')
                .long("follow")
                .action(ArgAction::SetTrue)
                .help("Go on with what comes"),
        )
        .arg(
            Arg::new("lines")
                .short('n')
                .long("lines")
                .value_name("NUMBER")
                .value_parser(value_parser!(usize))
                .default_value("20")
                .help("How many that are there already"),
        )
        .arg(
            Arg::new("where")
                .long("where")
                .value_name("CONDITION")
                .help("Only events for which this is true: what stands after `where` in SQL"),
        )
        .arg(Arg::new("kind").long("kind").value_name("KIND").help("Only events of this kind"))
        .arg(Arg::new("user").long("user").value_name("USER").help("Only events about this user"))
        .arg(since())
        .arg(
            Arg::new("json").long("json").action(ArgAction::SetTrue).help("Lines as they are kept"),
        );
    let format = Arg::new("format")
        .long("format")
        .value_name("FORMAT")
        .value_parser(["table", "csv", "json"])
        .default_value("table")
        .help("How the answer is printed; json is one object a line");
    let sql = Command::new("sql")
        .about("Answers a question in SQL over the table events and a view for each kind")
        .arg(Arg::new("question").value_name("SQL").required(true).help("A select"))
        .arg(since())
        .arg(format.clone());
    let names = REPORTS.iter().map(|report| report.name).collect::<Vec<_>>();
    let mut help = "Questions that are ready:".to_owned();
    for report in REPORTS {
        help.push_str(&format!("\n  {:13} {}", report.name, report.about));
    }
    let report = Command::new("report")
        .about("Answers a ready question")
        .after_help(help)
        .arg(
            Arg::new("name")
                .value_name("NAME")
                .value_parser(clap::builder::PossibleValuesParser::new(names))
                .required(true)
                .help("Which"),
        )
        .arg(Arg::new("html").long("html").value_name("FILE").help("Write a page with a picture"))
        .arg(Arg::new("svg").long("svg").value_name("FILE").help("Write the picture alone"))
        .arg(since())
        .arg(format);
    Command::new("logs")
        .about("What happened: the event log of this machine, or of a stream")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(folder(tail))
        .subcommand(Command::new("kinds").about("Every kind of event, with its fields"))
        .subcommand(folder(sql))
        .subcommand(folder(report))
}

pub(crate) fn run(matches: &ArgMatches) -> Result<ExitCode> {
    // What a reader leaves out is said by its name.
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .without_time();
    let of_readers = Targets::new().with_target("greenroom_logs", LevelFilter::WARN);
    tracing_subscriber::registry().with(lines.with_filter(of_readers)).init();
    match matches.subcommand() {
        Some(("tail", matches)) => tail(matches),
        Some(("sql", matches)) => sql(matches),
        Some(("report", matches)) => report(matches),
        Some(("kinds", _)) => kinds(),
        _ => bail!("no such command; `greenroom logs help` lists them"),
    }
}

/// Where events are read from.
enum Source {
    /// The folder of all logs on this machine.
    Folder(PathBuf),
    /// A stream that they were shipped to.
    #[cfg(feature = "kinesis")]
    Stream(Target),
}

impl Source {
    fn of(matches: &ArgMatches) -> Result<Self> {
        match matches.get_one::<String>("from") {
            #[cfg(feature = "kinesis")]
            Some(text) => Ok(Self::Stream(text.parse().context("--from")?)),
            #[cfg(not(feature = "kinesis"))]
            Some(text) => {
                bail!(
                    "--from {text}: this build reads nothing from Kinesis; build with --features kinesis"
                )
            }
            None => folder(matches).map(Self::Folder),
        }
    }
}

/// The folder of all logs, which has to be there already.
fn folder(matches: &ArgMatches) -> Result<PathBuf> {
    let folder = process_log::folder(&Settings::read(matches)?)?;
    if !folder.is_dir() {
        bail!(
            "there is no event log in {}: say with --data in which data folder it is, or start a server, which makes \
             one",
            folder.display()
        );
    }
    Ok(folder)
}

fn since(matches: &ArgMatches) -> Option<u64> {
    let span = matches.get_one::<Duration>("since")?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.saturating_sub(*span).as_millis()).ok()
}

fn kinds() -> Result<ExitCode> {
    let mut rows = vec![["kind", "severity", "fields", "what happened"].map(String::from)];
    for kind in KINDS {
        let doc = kind.doc.trim().to_owned();
        rows.push([kind.name.into(), kind.severity.name().into(), about(kind), doc]);
    }
    print(&columns(&rows))
}

/// Says on the standard error, where it is in nobody's way.
fn note(text: &str) {
    // Nobody may listen there.
    let _nobody = writeln!(std::io::stderr(), "{text}");
}

fn note_skipped(skipped: Skipped) {
    if skipped != Skipped::default() {
        let Skipped { lines, bytes, segments, gone } = skipped;
        note(&format!(
            "note: {lines} lines ({bytes} bytes) were no events, {segments} segments could not be read to their end, \
             {gone} were gone before they were read"
        ));
    }
}

// Tail.

struct Wanted {
    condition: Option<Filter>,
    kind: Option<String>,
    user: Option<String>,
    as_json: bool,
    colours: bool,
}

impl Wanted {
    fn holds(&self, event: &Entry<'_>) -> Result<bool> {
        let is = |wanted: &Option<String>, found: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| Some(wanted) == found)
        };
        Ok(is(&self.kind, Some(&event.kind))
            && is(&self.user, event.user.as_deref())
            && match &self.condition {
                Some(condition) => condition.holds(event)?,
                None => true,
            })
    }
}

fn tail(matches: &ArgMatches) -> Result<ExitCode> {
    let source = Source::of(matches)?;
    let condition = matches.get_one::<String>("where");
    let wanted = Wanted {
        condition: condition.map(|text| Database::filter(text)).transpose()?,
        kind: matches.get_one("kind").cloned(),
        user: matches.get_one("user").cloned(),
        as_json: matches.get_flag("json"),
        colours: std::io::stdout().is_terminal(),
    };
    let lines = *matches.get_one::<usize>("lines").context("it has a default")?;
    let mut newest = Newest { lines, events: BTreeMap::new() };
    match source {
        Source::Folder(folder) => {
            let from = since(matches).map_or(From::Start, From::Time);
            let mut reader = Reader::open(&folder, from)?;
            while let Some(record) = reader.next_record()? {
                newest.take(&record.event(), &record.text, &wanted)?;
            }
            newest.print(&wanted)?;
            note_skipped(reader.skipped());
            while matches.get_flag("follow") {
                match reader.next_record()? {
                    Some(record) if wanted.holds(&record.event())? => {
                        print(&line(&record.text, &record.event(), &wanted))?;
                    }
                    Some(_) => {}
                    None => std::thread::park_timeout(LOOK),
                }
            }
        }
        #[cfg(feature = "kinesis")]
        Source::Stream(target) => {
            if matches.get_flag("follow") {
                bail!(
                    "only the log of this machine is followed: leave out --follow, or --from {target}"
                );
            }
            let mut bar = Bar::new();
            let mut read = 0;
            let skipped = read_stream(&target, since(matches), |event, text, place| {
                read += 1;
                bar.at(read, || at(place));
                newest.take(event, text, &wanted)
            });
            bar.clear();
            newest.print(&wanted)?;
            note_skipped(skipped?);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The newest events, each once: a stream has them by its shards, and some twice.
struct Newest {
    lines: usize,
    /// Their texts by their ids, which order as time does.
    events: BTreeMap<String, String>,
}

impl Newest {
    fn take(&mut self, event: &Entry<'_>, text: &str, wanted: &Wanted) -> Result<()> {
        let is_full = self.events.len() >= self.lines;
        let is_older = |oldest: &String| event.id.as_ref() < oldest.as_str();
        if self.lines == 0 || is_full && self.events.keys().next().is_some_and(is_older) {
            return Ok(());
        }
        if wanted.holds(event)? {
            self.events.insert(event.id.to_string(), text.to_owned());
            if self.events.len() > self.lines {
                self.events.pop_first();
            }
        }
        Ok(())
    }

    fn print(&self, wanted: &Wanted) -> Result<()> {
        for text in self.events.values() {
            if let Some(event) = Entry::parse(text) {
                print(&line(text, &event, wanted))?;
            }
        }
        Ok(())
    }
}

/// One event on one line.
fn line(text: &str, event: &Entry<'_>, wanted: &Wanted) -> String {
    if wanted.as_json {
        return format!("{text}\n");
    }
    let painted = |code: &str, text: String| match wanted.colours {
        true => format!("\x1b[{code}m{text}\x1b[0m"),
        false => text,
    };
    let colour = match &*event.severity {
        "error" => "31",
        "warn" => "33",
        "debug" => "2",
        _ => "32",
    };
    let time = event.ts.get(11..23).unwrap_or(&event.ts);
    let mut out = format!(
        "{} {} {} {}",
        painted("2", shown(time)),
        painted(colour, format!("{:5}", shown(&event.severity))),
        painted("36", format!("{:10}", shown(&event.node))),
        painted("1", shown(&event.kind)),
    );
    let about = [
        ("user", &event.user),
        ("instance", &event.instance),
        ("session", &event.session),
        ("trace", &event.trace),
    ];
    for (name, value) in about {
        if let Some(value) = value {
            out.push_str(&format!(" {name}={}", shown(value)));
        }
    }
    let fields: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(event.fields.get()).unwrap_or_default();
    for (name, value) in &fields {
        let plain = value.as_str().filter(|text| !text.contains(' ') && !text.is_empty());
        // Everything else as JSON has it, with quotes.
        let value = plain.map_or_else(|| shown(&value.to_string()), shown);
        out.push_str(&format!(" {}={value}", shown(name)));
    }
    out.push('\n');
    out
}

// SQL.

/// Loads the log, and shows how far it is when that takes long.
fn load(matches: &ArgMatches) -> Result<Database> {
    let since_ms = since(matches);
    let mut bar = Bar::new();
    let (loaded, why): (_, Box<dyn Fn() -> Result<String>>) = match Source::of(matches)? {
        Source::Folder(folder) => {
            let bytes = read::bytes(&folder)?;
            let of = format!("{} MiB on disk", bytes >> 20);
            let loaded = Database::load(&folder, since_ms, |events| bar.at(events, || of.clone()));
            (loaded, Box::new(move || nothing(&folder, since_ms)))
        }
        #[cfg(feature = "kinesis")]
        Source::Stream(target) => {
            let look = |events, place| bar.at(events, || at(place));
            let loaded = Database::load_stream(&target, since_ms, look);
            (loaded, Box::new(move || Ok(nothing_in(&target, since_ms))))
        }
    };
    bar.clear();
    let database = loaded?;
    let loaded = database.loaded();
    note_skipped(loaded.skipped);
    loaded.notes.iter().for_each(|text| note(&format!("note: {text}")));
    // Two masters may tell one event; in a stream more is doubled, and whoever asks it otherwise should know.
    if loaded.doubled > 0 && matches.contains_id("from") {
        note(&format!(
            "note: {} events are there more than once: each counts once",
            loaded.doubled
        ));
    }
    if loaded.events == 0 {
        note(&why()?);
    }
    Ok(database)
}

/// How far a scan is, on a terminal, once it takes long.
struct Bar {
    began: Instant,
    is_shown: bool,
    bar: Option<ProgressBar>,
}

impl Bar {
    fn new() -> Self {
        Self { began: Instant::now(), is_shown: std::io::stderr().is_terminal(), bar: None }
    }

    /// So many events were read; `of` says how far that is.
    fn at(&mut self, events: u64, of: impl FnOnce() -> String) {
        if self.is_shown && self.began.elapsed() > QUIET {
            let bar = self.bar.get_or_insert_with(progress);
            bar.set_message(of());
            bar.set_position(events);
        }
    }

    fn clear(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

fn progress() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let style =
        ProgressStyle::with_template("{spinner} reading the log: {pos} events of {msg}, {elapsed}");
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar
}

#[cfg(feature = "kinesis")]
fn at(place: Place) -> String {
    let Place { shard, shards, behind } = place;
    let behind = humantime::format_duration(Duration::from_secs(behind.as_secs()));
    format!("shard {shard} of {shards}, {behind} behind its newest")
}

/// What is said of a stream that has nothing of a time.
#[cfg(feature = "kinesis")]
fn nothing_in(target: &Target, since_ms: Option<u64>) -> String {
    let since =
        since_ms.map_or_else(String::new, |ms| format!(" since {}", greenroom_logs::time(ms)));
    format!(
        "note: there is no event{since} in {target}; a stream keeps what it has for a day, unless it was told to keep \
         it for longer"
    )
}

/// What is said of a time in which nothing happened.
fn nothing(folder: &Path, since_ms: Option<u64>) -> Result<String> {
    let mut newest = None;
    let mut reader = Reader::open(folder, From::Start)?;
    while let Some(record) = reader.next_record()? {
        newest = Some(record.event().ts.into_owned());
    }
    Ok(match (since_ms, newest) {
        (Some(ms), Some(newest)) => {
            let since = greenroom_logs::time(ms);
            format!("note: there is no event since {since}; the newest is of {newest}")
        }
        _ => format!("note: there is no event in {}", folder.display()),
    })
}

fn in_format(answer: &Answer, matches: &ArgMatches) -> String {
    match matches.get_one::<String>("format").map(String::as_str) {
        Some("csv") => answer.csv(),
        Some("json") => answer.json(),
        _ => {
            let head = answer.columns.iter().map(|name| shown(name)).collect();
            let row = |row: &Vec<greenroom_logs::sql::Cell>| -> Vec<String> {
                row.iter().map(greenroom_logs::sql::Cell::shown).collect()
            };
            let rows: Vec<Vec<String>> =
                std::iter::once(head).chain(answer.rows.iter().map(row)).collect();
            columns(&rows)
        }
    }
}

fn note_cut(answer: &Answer) {
    if answer.is_cut {
        let rows = answer.rows.len();
        note(&format!(
            "note: these are the first {rows} rows of more: ask for less, or with a limit"
        ));
    }
}

fn sql(matches: &ArgMatches) -> Result<ExitCode> {
    let question = matches.get_one::<String>("question").context("clap wants it")?;
    let answer = load(matches)?.ask(question)?;
    note_cut(&answer);
    print(&in_format(&answer, matches))
}

fn report(matches: &ArgMatches) -> Result<ExitCode> {
    let name = matches.get_one::<String>("name").context("clap wants it")?;
    let report = Report::named(name).context("clap knows them")?;
    let answer = report.answer(&load(matches)?)?;
    note_cut(&answer);
    let write = |file: &String, text: String| {
        std::fs::write(file, text).with_context(|| format!("writing {file}"))
    };
    if let Some(file) = matches.get_one::<String>("html") {
        write(file, report.html(&answer))?;
    }
    if let Some(file) = matches.get_one::<String>("svg") {
        let svg = report.svg(&answer).with_context(|| {
            format!("{name} has no picture of this: rows say more, or there are none")
        })?;
        write(file, svg)?;
    }
    print(&in_format(&answer, matches))
}
