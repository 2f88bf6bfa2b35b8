//! `greenroom logs`: what happened, for people who ask.

use std::{
    collections::VecDeque,
    io::{IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use greenroom_logs::{
    kinds::KINDS,
    read::{self, Entry, From, Reader, Skipped},
    report::{REPORTS, Report},
    shown,
    sql::{Answer, Database, Filter, about},
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

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
    let folder = |command: Command| settings::flags(command, &["cluster", "logs"]);
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
        .about("What happened: the event log of this machine")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(folder(tail))
        .subcommand(Command::new("kinds").about("Every kind of event, with its fields"))
        .subcommand(folder(sql))
        .subcommand(folder(report))
}

pub(crate) fn run(matches: &ArgMatches) -> Result<ExitCode> {
    match matches.subcommand() {
        Some(("tail", matches)) => tail(matches),
        Some(("sql", matches)) => sql(matches),
        Some(("report", matches)) => report(matches),
        Some(("kinds", _)) => kinds(),
        _ => bail!("no such command; `greenroom logs help` lists them"),
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
    let folder = folder(matches)?;
    let condition = matches.get_one::<String>("where");
    let wanted = Wanted {
        condition: condition.map(|text| Database::filter(text)).transpose()?,
        kind: matches.get_one("kind").cloned(),
        user: matches.get_one("user").cloned(),
        as_json: matches.get_flag("json"),
        colours: std::io::stdout().is_terminal(),
    };
    let lines = *matches.get_one::<usize>("lines").context("it has a default")?;
    let from = since(matches).map_or(From::Start, From::Time);
    let mut reader = Reader::open(&folder, from)?;
    let mut newest = VecDeque::new();
    while let Some(record) = reader.next_record()? {
        if wanted.holds(&record.event())? && lines > 0 {
            if newest.len() == lines {
                newest.pop_front();
            }
            newest.push_back(record);
        }
    }
    for record in &newest {
        print(&line(&record.text, &record.event(), &wanted))?;
    }
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
    Ok(ExitCode::SUCCESS)
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
    let folder = folder(matches)?;
    let since_ms = since(matches);
    let (began, mut bar) = (Instant::now(), None::<ProgressBar>);
    let bytes = read::bytes(&folder)?;
    let is_shown = std::io::stderr().is_terminal();
    let loaded = Database::load(&folder, since_ms, |events| {
        if is_shown && began.elapsed() > QUIET {
            bar.get_or_insert_with(|| progress(bytes)).set_position(events);
        }
    });
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    let database = loaded?;
    note_skipped(database.loaded().skipped);
    if database.loaded().events == 0 {
        note(&nothing(&folder, since_ms)?);
    }
    Ok(database)
}

fn progress(bytes: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let style =
        ProgressStyle::with_template("{spinner} reading the log: {pos} events of {msg}, {elapsed}");
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar.set_message(format!("{} MiB on disk", bytes >> 20));
    bar
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

fn sql(matches: &ArgMatches) -> Result<ExitCode> {
    let question = matches.get_one::<String>("question").context("clap wants it")?;
    let answer = load(matches)?.ask(question)?;
    print(&in_format(&answer, matches))
}

fn report(matches: &ArgMatches) -> Result<ExitCode> {
    let name = matches.get_one::<String>("name").context("clap wants it")?;
    let report = Report::named(name).context("clap knows them")?;
    let answer = report.answer(&load(matches)?)?;
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
