//! The benchmarks: W1 (request and response), W2 (rooms of 16 at 20 Hz), W3 (idle connections), over TCP and WebSocket;
//! W4 (instances that are made, entered and left), and the directory without anything around it.
//!
//! Greenroom runs as real processes that share one core; beside it, in the same run, a bare server of one hop, which
//! says what the sockets alone cost. The generator has another core. `README.md` says what each figure is.

mod bare;
mod chaos;
mod core;
mod directory;
mod fleet;
mod instructions;
mod logs;
mod machine;
mod measure;
mod report;
mod servers;
mod store;
#[cfg(feature = "kinesis")]
mod stream;
mod syscalls;
mod visits;
mod wire;
mod workload;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};
use serde_json::{Map, Value};

use crate::directory::Study;
use crate::measure::Order;
use crate::report::{Alone, Figures, Row, progress};
use crate::servers::Setup;
use crate::wire::Transport;
use crate::workload::{PLAYERS_OF_A_ROOM, Subject};

/// Players at which the bytes of a server that keeps up are taken.
const PLAYERS_REFERENCE: usize = 320;
/// W2 is held up to this p99, in milliseconds, …
const HELD_P99_MS: f64 = 100.0;
/// … from this many ticks a second on, …
const HELD_TICKS_PER_S: f64 = 19.0;
/// … and this share of the bytes at 320 players: fewer are inputs that came late and were merged.
const HELD_BYTES_SHARE: f64 = 0.95;
/// The search goes up in these steps, …
const SEARCH_STEP: usize = 800;
/// … and then looks closer, down to these.
const SEARCH_GRAIN: usize = 10 * PLAYERS_OF_A_ROOM;
/// Cores that others may use while figures are still worth something.
const OTHERS_CORES_MAX: f64 = 0.3;
/// Runs of a row, and seconds of its window, if nobody says; a row of the store has three ways to write in each run.
const RUNS: u16 = 3;
const SECONDS: f64 = 5.0;
const RUNS_OF_THE_STORE: u16 = 7;
const SECONDS_OF_THE_STORE: f64 = 1.0;
/// Open files besides the clients' sockets.
const OTHER_FILES: u64 = 200;

/// Measures Greenroom beside a bare server of the same transport.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    part: Option<Part>,
    /// What to measure; everything when none is given.
    #[arg(value_enum)]
    names: Vec<Name>,
    /// Prints one JSON object a line; the last is the summary.
    #[arg(long)]
    json: bool,
    /// Repetitions of each row, bare and Greenroom in turn; figures are medians [default: 3; 7 of the store].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    runs: Option<u16>,
    /// Length of a measured window [default: 5; 1 of the store].
    #[arg(long)]
    seconds: Option<f64>,
    /// Only over this transport; may be given twice.
    #[arg(long, value_enum)]
    transport: Vec<Transport>,
    /// Only these servers; may be given twice.
    #[arg(long, value_enum)]
    only: Vec<Subject>,
    /// Connections of W1 [default: 1,64,1000] and W3 [default: 1000,5000,10000].
    #[arg(long, value_delimiter = ',', value_parser = positive)]
    connections: Vec<usize>,
    /// Players of W2, in rooms of 16.
    #[arg(long, value_delimiter = ',', value_parser = positive, default_value = "320,960,3200")]
    players: Vec<usize>,
    /// W2 looks for the most players that are held, up to this many; 0: does not look.
    #[arg(long, default_value_t = 6400)]
    search_max: usize,
    /// Workers of W4.
    #[arg(long, value_parser = positive, default_value = "64")]
    workers: usize,
    /// Instances among which clients search in W4; 0: none.
    #[arg(long, default_value_t = 100_000)]
    instances: usize,
    /// Only this store; may be given twice.
    #[arg(long, value_enum)]
    store: Vec<Store>,
    /// Keys under way in a store.
    #[arg(long, value_delimiter = ',', value_parser = positive, default_value = "1,64,1024")]
    keys: Vec<usize>,
    /// Users, and instances, that the directory holds.
    #[arg(long, value_parser = positive, default_value = "1000000")]
    records: usize,
    /// Only this part of the directory; may be given twice.
    #[arg(long, value_enum)]
    study: Vec<Study>,
    #[command(flatten)]
    programs: instructions::Programs,
    /// The program to measure [default: the one beside this program].
    #[arg(long)]
    greenroom: Option<PathBuf>,
    /// The core that all servers share.
    #[arg(long, default_value_t = 0)]
    server_core: usize,
    /// The generator's core.
    #[arg(long, default_value_t = 1)]
    generator_core: usize,
}

impl Arguments {
    fn runs(&self) -> u16 {
        self.runs.unwrap_or(RUNS)
    }
    fn seconds(&self) -> f64 {
        self.seconds.unwrap_or(SECONDS)
    }
}

fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&count| count > 0).ok_or_else(|| "a count from 1 on".to_owned())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Name {
    /// Request and response, 32 bytes, in a closed loop.
    W1,
    /// Rooms of 16 players at 20 Hz.
    W2,
    /// Memory of idle connections.
    W3,
    /// Instances that are made with a new key, entered and left; and searches, as clients see them.
    W4,
    /// The master's core alone: memory of a million records, searches, verbs, ranks, live searches, a standby.
    Directory,
    /// Durable writes through the storage actor: on SQLite and Couchbase beside the bare libraries, and to memory.
    Store,
    /// The event log: what is written, asked and shipped, and what it costs the players of W2.
    Logs,
    /// W1 in instructions, and what of them is tracing. Only when it is named: it needs valgrind and a collector.
    Instructions,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Store {
    Memory,
    Sqlite,
    #[cfg(feature = "couchbase")]
    Couchbase,
}

/// What this program is to its own children.
#[derive(Debug, Subcommand)]
enum Part {
    /// A bare server.
    #[command(hide = true)]
    Bare { mode: bare::Mode, transport: Transport },
    /// A part of the directory's benchmark, on standard output as a list of names and values.
    #[command(hide = true)]
    Study { study: Study, size: usize, seconds: f64 },
    /// Hurts a cluster of real processes under load, and judges what its clients saw.
    Chaos(chaos::Arguments),
    /// Becomes a program on a core, or on `any`, that ends when the parent does.
    #[command(hide = true)]
    Child {
        core: String,
        parent: u32,
        program: PathBuf,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<OsString>,
    },
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    match arguments.part {
        Some(Part::Bare { mode, transport }) => bare::serve(mode, transport)?,
        Some(Part::Study { study, size, seconds }) => {
            print(&serde_json::to_string(&directory::run(study, size, seconds)?)?)?;
        }
        Some(Part::Chaos(arguments)) => return chaos::run(&arguments),
        Some(Part::Child { core, parent, program, words }) => {
            let core = if core == "any" { None } else { Some(core.parse().context("a core")?) };
            servers::become_child(core, parent, &program, &words)?;
        }
        None => Plan::new(arguments)?.run()?,
    }
    Ok(ExitCode::SUCCESS)
}

/// How a row is measured.
#[derive(Debug)]
struct Method {
    bench: &'static str,
    /// What sizes count.
    counts: &'static str,
    warm_up: Duration,
    measure: fn(&Order) -> anyhow::Result<Figures>,
    /// Whether servers are asked to keep up, and the most that they keep up with is looked for.
    is_held_or_not: bool,
}

impl Method {
    const W1: Self = Self {
        bench: "w1",
        counts: "connections",
        warm_up: Duration::from_secs(2),
        measure: measure::w1,
        is_held_or_not: false,
    };
    const W2: Self = Self {
        bench: "w2",
        counts: "players",
        warm_up: Duration::from_secs(3),
        measure: measure::w2,
        is_held_or_not: true,
    };
    const W3: Self = Self { bench: "w3", measure: measure::w3, ..Self::W1 };
    const W4: Self = Self { bench: "w4", counts: "workers", measure: visits::w4, ..Self::W1 };
    /// Searches among many instances, as clients see them.
    const SEARCHES: Self = Self { counts: "instances", measure: visits::searches, ..Self::W4 };
}

/// What is measured in this run.
#[derive(Debug)]
struct Plan {
    arguments: Arguments,
    names: Vec<Name>,
    transports: Vec<Transport>,
    subjects: Vec<Subject>,
    setup: Setup,
}

impl Plan {
    fn new(arguments: Arguments) -> anyhow::Result<Self> {
        let or_all = |names: &[Name]| match names {
            [] => (Name::value_variants().iter().copied())
                .filter(|&name| name != Name::Instructions)
                .collect(),
            some => some.to_vec(),
        };
        let names = or_all(&arguments.names);
        let transports = match &arguments.transport[..] {
            [] => vec![Transport::Tcp, Transport::Ws],
            some => some.to_vec(),
        };
        let subjects = match &arguments.only[..] {
            [] => vec![Subject::Bare, Subject::Greenroom],
            some => some.to_vec(),
        };
        let greenroom = match &arguments.greenroom {
            Some(path) => path.clone(),
            None => std::env::current_exe()
                .context("finding our own program")?
                .with_file_name("greenroom"),
        };
        let setup =
            Setup { greenroom, core: arguments.server_core, flags: Vec::new(), counted_in: None };
        Ok(Self { arguments, names, transports, subjects, setup })
    }

    fn run(&self) -> anyhow::Result<()> {
        let machine = machine::describe();
        progress(&format!("on {machine}"));
        let most = self.names.iter().flat_map(|&name| self.sizes(name)).max().unwrap_or(0);
        let most =
            if self.names.contains(&Name::W2) { most.max(self.arguments.search_max) } else { most };
        machine::allow_files(most as u64 + OTHER_FILES)?;
        let mut summaries = BTreeMap::new();
        // These have threads of this process: they come before it stays on one core.
        if self.names.contains(&Name::Store) {
            summaries.insert("store", self.store()?);
        }
        if self.names.contains(&Name::Logs) {
            summaries.insert("logs", self.logs()?);
        }
        machine::pin(self.arguments.generator_core)?;
        for &name in &self.names {
            let sizes = self.sizes(name);
            let (bench, summary) = match name {
                Name::W1 => ("w1", self.rows(&Method::W1, &sizes, 64)?),
                Name::W2 => ("w2", self.rows(&Method::W2, &sizes, 960)?),
                Name::W3 => ("w3", self.rows(&Method::W3, &sizes, 10_000)?),
                Name::W4 => ("w4", self.w4()?),
                Name::Directory => ("directory", self.directory()?),
                Name::Instructions => {
                    let Arguments { programs, json, .. } = &self.arguments;
                    let runs = self.arguments.runs();
                    instructions::run(&self.setup, programs, &sizes, runs, *json)?;
                    continue;
                }
                Name::Store | Name::Logs => continue,
            };
            summaries.insert(bench, summary);
        }
        if self.arguments.json {
            let mut last = match summaries.len() {
                1 => summaries.into_values().next().unwrap_or_default(),
                _ => (summaries.into_iter())
                    .map(|(name, summary)| (name.to_owned(), Value::Object(summary)))
                    .collect(),
            };
            last.insert("summary".to_owned(), true.into());
            last.insert("machine".to_owned(), machine.into());
            print(&Value::Object(last).to_string())?;
        }
        Ok(())
    }

    fn sizes(&self, name: Name) -> Vec<usize> {
        let given = &self.arguments.connections;
        let mut sizes = match name {
            Name::W1 if given.is_empty() => vec![1, 64, 1000],
            Name::Instructions if given.is_empty() => vec![1, 64],
            Name::W3 if given.is_empty() => vec![1000, 5000, 10_000],
            Name::W1 | Name::W3 | Name::Instructions => given.clone(),
            // What "held" is compared with.
            Name::W2 => [&[PLAYERS_REFERENCE], &self.arguments.players[..]].concat(),
            Name::W4 => vec![self.arguments.workers],
            Name::Directory | Name::Store | Name::Logs => Vec::new(),
        };
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    }

    /// Measures all rows of a workload. Gives the summary: the row of size `headline` over the first transport, else
    /// the last, with what was found over all of them.
    fn rows(
        &self,
        method: &Method,
        sizes: &[usize],
        headline: usize,
    ) -> anyhow::Result<Map<String, Value>> {
        let mut first: Option<Map<String, Value>> = None;
        let mut last = Map::new();
        let mut found = Map::new();
        for &transport in &self.transports {
            let mut reference = BTreeMap::new();
            let mut most_held = 0;
            for &size in sizes {
                let mut row =
                    self.row(method, transport, size, self.arguments.runs(), &self.subjects)?;
                if method.is_held_or_not {
                    self.judge(&mut row, &mut reference);
                    if row.held == Some(true) {
                        most_held = size;
                    }
                }
                self.show(&row)?;
                last = row.json();
                if first.is_none() && size == headline {
                    first = Some(row.json());
                }
            }
            if method.is_held_or_not && self.arguments.search_max > 0 {
                let held = self.search(transport, most_held, &mut reference)?;
                if !self.arguments.json {
                    print(&format!("\nw2, {}: {held} players are held", transport.name()))?;
                }
                found.insert(format!("players_held_{}", transport.name()), held.into());
            }
        }
        let mut summary = first.unwrap_or(last);
        summary.extend(found);
        Ok(summary)
    }

    /// W4, over TCP unless somebody asks for something else, and without a bare server: nothing bare makes instances.
    /// Gives the row of the workers, with what searches took.
    fn w4(&self) -> anyhow::Result<Map<String, Value>> {
        let transport = self.arguments.transport.first().copied().unwrap_or(Transport::Tcp);
        let Arguments { workers, instances, .. } = self.arguments;
        let runs = self.arguments.runs();
        let row = self.row(&Method::W4, transport, workers, runs, &[Subject::Greenroom])?;
        self.show(&row)?;
        let mut summary = row.json();
        if instances > 0 {
            let method = Method::SEARCHES;
            let row = self.row(&method, transport, instances, 1, &[Subject::Greenroom])?;
            self.show(&row)?;
            let seen = row.json();
            for name in ["instances", "search_client_p50_ms", "search_client_p99_ms"] {
                summary.extend(seen.get(name).map(|value| (name.to_owned(), value.clone())));
            }
        }
        Ok(summary)
    }

    /// Every part of the directory, in a process of its own each. Gives the figures that the issue asks for.
    fn directory(&self) -> anyhow::Result<Map<String, Value>> {
        let Arguments { records, server_core, .. } = self.arguments;
        let seconds = self.arguments.seconds();
        let studies = match &self.arguments.study[..] {
            [] => Study::value_variants(),
            some => some,
        };
        let mut summary = Map::new();
        for &study in studies {
            for size in study.sizes(records) {
                progress(&format!("directory, {}, {size} {}", study.name(), study.counts()));
                let words = ["study", study.name(), &size.to_string(), &seconds.to_string()];
                let output = servers::output_on(server_core, &words.map(str::to_owned))
                    .with_context(|| format!("measuring {} of the directory", study.name()))?;
                let figures = serde_json::from_str(&output).context("a list of figures")?;
                let (part, counts) = (study.name(), study.counts());
                let part = Alone { part, counts, size, figures };
                let json = part.json();
                let line = match self.arguments.json {
                    true => Value::Object(json.clone()).to_string(),
                    false => part.text().trim_end_matches('\n').to_owned(),
                };
                print(&line)?;
                // Of two sizes the larger one counts, which comes later.
                if matches!(study, Study::Users | Study::Instances) {
                    summary.insert(counts.to_owned(), size.into());
                }
                for name in study.headlines() {
                    summary
                        .extend(json.get(*name).map(|value| ((*name).to_owned(), value.clone())));
                }
            }
        }
        summary.insert("bench".to_owned(), "directory".into());
        Ok(summary)
    }

    /// The storage actor.
    fn store(&self) -> anyhow::Result<Map<String, Value>> {
        let runs = self.arguments.runs.unwrap_or(RUNS_OF_THE_STORE);
        let window = self.arguments.seconds.unwrap_or(SECONDS_OF_THE_STORE);
        let window = Duration::try_from_secs_f64(window).context("--seconds")?;
        let mut summary = Map::new();
        self.show_part("store", "queue", store::queue()?, &mut summary)?;
        for &size in &self.arguments.keys {
            for store in Store::value_variants() {
                if !self.arguments.store.is_empty() && !self.arguments.store.contains(store) {
                    continue;
                }
                let (name, figures) = match store {
                    Store::Memory => ("memory", store::memory(size, runs, window)?),
                    Store::Sqlite => ("sqlite", store::sqlite(size, runs, window)?),
                    #[cfg(feature = "couchbase")]
                    Store::Couchbase => {
                        ("couchbase", store::couchbase::upserts(size, runs, window)?)
                    }
                };
                self.show_part("store", &format!("{name}_{size}"), figures, &mut summary)?;
            }
        }
        summary.insert("bench".to_owned(), "store".into());
        Ok(summary)
    }

    /// The event log; what is shipped only if somebody says where a stand-in of Kinesis is.
    fn logs(&self) -> anyhow::Result<Map<String, Value>> {
        let Arguments { records, .. } = self.arguments;
        let window = Duration::try_from_secs_f64(self.arguments.seconds()).context("--seconds")?;
        let mut summary = Map::new();
        self.show_part("logs", "written", logs::written(window)?, &mut summary)?;
        self.show_part("logs", "asked", logs::asked(records)?, &mut summary)?;
        let mut ways = vec![("off", vec!["--logs-level".to_owned(), "off".to_owned()])];
        ways.push(("on", Vec::new()));
        #[cfg(feature = "kinesis")]
        let service = stream::Service::start()?;
        #[cfg(feature = "kinesis")]
        if let Some(service) = &service {
            let figures = logs::shipped(window, service)?;
            self.show_part("logs", "shipped", figures, &mut summary)?;
            service.create("bench-w2", 2)?;
            ways.push(("shipped", service.flags("bench-w2")));
        }
        self.w2_with(&ways, &mut summary)?;
        summary.insert("bench".to_owned(), "logs".into());
        Ok(summary)
    }

    /// W2 with servers that have one set of flags and another in turn, so that a slow phase of the machine hits all.
    fn w2_with(
        &self,
        ways: &[(&'static str, Vec<String>)],
        summary: &mut Map<String, Value>,
    ) -> anyhow::Result<()> {
        machine::pin(self.arguments.generator_core)?;
        let method = Method::W2;
        let mut runs: BTreeMap<&str, Vec<Figures>> = BTreeMap::new();
        for run in 1..=self.arguments.runs() {
            for (way, flags) in ways {
                let what = format!("w2 with logs {way}, run {run} of {}", self.arguments.runs());
                let order = Order {
                    setup: Setup { flags: flags.clone(), ..self.setup.clone() },
                    subject: Subject::Greenroom,
                    transport: Transport::Tcp,
                    size: PLAYERS_REFERENCE,
                    workers: self.arguments.workers,
                    warm_up: method.warm_up,
                    window: Duration::try_from_secs_f64(self.arguments.seconds())
                        .context("--seconds")?,
                    counts_calls: false,
                };
                let figures =
                    (method.measure)(&order).with_context(|| format!("measuring {what}"))?;
                progress(&format!("{what}: {}", first_figures(&figures)));
                runs.entry(way).or_default().push(figures);
            }
        }
        for (way, _) in ways {
            let names = ["cpu_s_per_client_minute", "p99_ms", "others_cores"];
            let of = |name| Some((name, report::median(&runs[way], name)?));
            let figures = names.into_iter().filter_map(of).collect();
            self.show_part("logs", &format!("w2_{way}"), figures, summary)?;
        }
        Ok(())
    }

    /// A line for each figure, or a row as JSON.
    fn show_part(
        &self,
        bench: &str,
        part: &str,
        figures: Figures,
        summary: &mut Map<String, Value>,
    ) -> anyhow::Result<()> {
        let mut row = Map::new();
        row.insert("bench".to_owned(), bench.into());
        row.insert("part".to_owned(), part.into());
        for (name, value) in figures {
            if !self.arguments.json {
                print(&format!("{bench}, {part}: {name:26} {value:>16.4}"))?;
            }
            row.insert(name.to_owned(), value.into());
            summary.insert(format!("{name}_{part}"), value.into());
        }
        if self.arguments.json { print(&Value::Object(row).to_string()) } else { Ok(()) }
    }

    /// All repetitions of one row, bare and Greenroom in turn, so that a slow phase of the machine hits both.
    fn row(
        &self,
        method: &Method,
        transport: Transport,
        size: usize,
        runs: u16,
        subjects: &[Subject],
    ) -> anyhow::Result<Row> {
        let Method { bench, counts, warm_up, measure, .. } = *method;
        let mut row = Row {
            bench,
            transport,
            counts,
            size,
            bare: Vec::new(),
            greenroom: Vec::new(),
            held: None,
        };
        for run in 1..=runs {
            for &subject in subjects {
                let order = Order {
                    setup: self.setup.clone(),
                    subject,
                    transport,
                    size,
                    workers: self.arguments.workers,
                    warm_up,
                    window: Duration::try_from_secs_f64(self.arguments.seconds())
                        .context("--seconds")?,
                    counts_calls: run == runs,
                };
                let subject_name = match subject {
                    Subject::Bare => "bare",
                    Subject::Greenroom => "greenroom",
                };
                let what = format!(
                    "{bench} {} {size} {counts}, {subject_name}, run {run} of {runs}",
                    transport.name()
                );
                let figures = measure(&order).with_context(|| format!("measuring {what}"))?;
                progress(&format!("{what}: {}", first_figures(&figures)));
                if figures
                    .iter()
                    .any(|&(name, value)| name == "others_cores" && value > OTHERS_CORES_MAX)
                {
                    progress("  others used the machine too: these figures are too high");
                }
                row.runs_mut(subject).push(figures);
            }
        }
        Ok(row)
    }

    /// Says whether the row is held; the first row of a subject is the reference of its bytes.
    fn judge(&self, row: &mut Row, reference: &mut BTreeMap<Subject, f64>) {
        for &subject in &self.subjects {
            let runs = row.runs_mut(subject).clone();
            if runs.is_empty() {
                continue;
            }
            let of = |name| report::median(&runs, name).unwrap_or(0.0);
            let bytes = of("bytes_per_client_s");
            let at_reference = *reference.entry(subject).or_insert(bytes);
            let zero = ["lost", "doubled", "out_of_order", "mismatched", "closed"];
            let held = of("p99_ms") <= HELD_P99_MS
                && of("ticks_per_s") >= HELD_TICKS_PER_S
                && bytes >= HELD_BYTES_SHARE * at_reference
                && zero.iter().all(|name| report::most(&runs, name).unwrap_or(0.0) == 0.0);
            // The subject that counts comes last: Greenroom, unless only the bare server is measured.
            row.held = Some(held);
        }
    }

    /// The most players that are held, from `from` up: a row that is not held gets a second chance, since one run on
    /// a shared machine says little. Bare servers are left out, unless nothing else is measured.
    fn search(
        &self,
        transport: Transport,
        from: usize,
        reference: &mut BTreeMap<Subject, f64>,
    ) -> anyhow::Result<usize> {
        let last = self.subjects.len() - 1;
        let mut held = |size: usize| -> anyhow::Result<bool> {
            for _ in 0..2 {
                let mut row = self.row(&Method::W2, transport, size, 1, &self.subjects[last..])?;
                self.judge(&mut row, reference);
                self.show(&row)?;
                if row.held == Some(true) {
                    return Ok(true);
                }
            }
            Ok(false)
        };
        let max = self.arguments.search_max / PLAYERS_OF_A_ROOM * PLAYERS_OF_A_ROOM;
        let (mut yes, mut no) = (from, None);
        while no.is_none() && yes < max {
            let next = (yes / SEARCH_STEP * SEARCH_STEP + SEARCH_STEP).min(max);
            if held(next)? { yes = next } else { no = Some(next) }
        }
        while let Some(above) = no.filter(|above| above - yes > SEARCH_GRAIN) {
            let between = (yes + above) / 2 / SEARCH_GRAIN * SEARCH_GRAIN;
            let between = between.max(yes + PLAYERS_OF_A_ROOM);
            if held(between)? { yes = between } else { no = Some(between) }
        }
        Ok(yes)
    }

    fn show(&self, row: &Row) -> anyhow::Result<()> {
        if self.arguments.json {
            print(&Value::Object(row.json()).to_string())
        } else {
            print(row.text().trim_end_matches('\n'))
        }
    }
}

/// The figures that say most, for the line that says a run is over.
fn first_figures(figures: &Figures) -> String {
    let shown = figures.iter().take(1).chain(figures.iter().filter(|(name, _)| {
        ["p99_us", "p99_ms", "ticks_per_s", "generator_cores", "others_cores"].contains(name)
    }));
    shown.map(|(name, value)| format!("{name} {value:.4}")).collect::<Vec<_>>().join(", ")
}

pub(crate) fn print(line: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{line}").context("writing the result")
}
