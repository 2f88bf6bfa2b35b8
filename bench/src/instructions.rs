//! What a request of W1 takes in the session server and in the game server, in instructions, and what of it is tracing.
//!
//! Both run under callgrind, which counts while exactly so many requests are asked and answered, and not before or
//! after: a figure that does not depend on what else the machine does. Counted are instructions of the processes, not
//! of the kernel. Three cases: a build that has no tracing in it (without the feature `otlp`), one that has and no
//! collector, and the same with one request of a hundred sampled and sent to a real collector.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::json;

use crate::fleet::Fleet;
use crate::measure::{ECHO_KIND, Order, float};
use crate::report::progress;
use crate::servers::Setup;
use crate::wire::Transport;
use crate::workload::{Echo, Entrance, Integrity, Latencies, Subject};

/// Asked before anything is counted.
const WARM_UP: u64 = 2_000;
/// The longest that servers, which are some fifty times slower so, may take for the requests.
const REQUESTS_MAX: Duration = Duration::from_secs(300);
/// Who is counted; the master has no part in a request of W1.
const COUNTED: [&str; 2] = ["session", "game"];

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    /// There is no tracing in the program.
    Without,
    /// There is, and it is off.
    Off,
    /// A request of a hundred is sampled, and goes to a collector.
    Sampled,
}

impl Case {
    const ALL: [Self; 3] = [Self::Without, Self::Off, Self::Sampled];

    const fn name(self) -> &'static str {
        match self {
            Self::Without => "without",
            Self::Off => "off",
            Self::Sampled => "sampled",
        }
    }
}

/// What `cargo xtask bench instructions` builds.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Programs {
    /// `instructions`: the program without tracing [default: `greenroom-untraced` beside this program].
    #[arg(long)]
    untraced: Option<PathBuf>,
    /// `instructions`: the program with tracing [default: `greenroom-traced` beside this program].
    #[arg(long)]
    traced: Option<PathBuf>,
    /// `instructions`: an OpenTelemetry collector.
    #[arg(long)]
    collector: Option<PathBuf>,
    /// `instructions`: requests that are counted in a run.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..), default_value = "20000")]
    requests: u64,
}

/// Instructions a request.
#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    session: f64,
    game: f64,
    /// Spans that the collector took.
    spans: u64,
}

/// Runs all cases in turn, `runs` times for each count of connections; prints the medians and how much more each is
/// than without tracing.
///
/// # Errors
/// When a program is missing, valgrind is, servers don't start, or an answer is wrong.
pub(crate) fn run(
    setup: &Setup,
    programs: &Programs,
    connections: &[usize],
    runs: u16,
    is_json: bool,
) -> anyhow::Result<()> {
    for &size in connections {
        let mut all = Case::ALL.map(|case| (case, Vec::new()));
        for run in 1..=runs {
            for (case, counts) in &mut all {
                let counted = count(setup, programs, *case, size)
                    .with_context(|| format!("counting with tracing {}", case.name()))?;
                let Counted { session, game, spans } = counted;
                progress(&format!(
                    "instructions, {size} connections, tracing {}, run {run} of {runs}: session {session:.0}, game \
                     {game:.0}, {spans} spans",
                    case.name()
                ));
                counts.push(counted);
            }
        }
        let median = |counts: &[Counted], of: fn(&Counted) -> f64| {
            let mut values: Vec<f64> = counts.iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        let base = median(&all[0].1, |counted| counted.session + counted.game);
        for (case, counts) in &all {
            let both = median(counts, |counted| counted.session + counted.game);
            let (session, game) =
                (median(counts, |counted| counted.session), median(counts, |counted| counted.game));
            let more = (both / base - 1.0) * 100.0;
            let spans: u64 = counts.iter().map(|counted| counted.spans).sum();
            crate::print(&match is_json {
                true => json!({
                    "bench": "instructions", "connections": size, "tracing": case.name(), "runs": runs,
                    "requests": programs.requests, "session": session, "game": game, "both": both,
                    "more_percent": more, "spans": spans,
                })
                .to_string(),
                false => format!(
                    "{size:>5} connections, tracing {:8} session {session:>7.0}  game {game:>7.0}  both {both:>7.0}  \
                     {more:>+6.2} %  {spans} spans",
                    case.name()
                ),
            })?;
        }
    }
    Ok(())
}

fn count(setup: &Setup, programs: &Programs, case: Case, size: usize) -> anyhow::Result<Counted> {
    let folder = tempfile::tempdir().context("making a folder for what is counted")?;
    let own = std::env::current_exe().context("finding our own program")?;
    let (given, name) = match case {
        Case::Without => (&programs.untraced, "greenroom-untraced"),
        Case::Off | Case::Sampled => (&programs.traced, "greenroom-traced"),
    };
    let mut setup = setup.clone();
    setup.greenroom = given.clone().unwrap_or_else(|| own.with_file_name(name));
    setup.counted_in = Some(folder.path().to_owned());
    let collector = match case {
        Case::Without | Case::Off => None,
        Case::Sampled => {
            let program = programs.collector.as_ref().context(
                "--collector says where an OpenTelemetry collector is: `cargo xtask bench instructions` does",
            )?;
            let collector = Collector::start(program, folder.path())?;
            let flags = ["--telemetry-endpoint", &collector.endpoint, "--telemetry-sample", "0.01"];
            setup.flags.extend(flags.map(str::to_owned));
            // Metrics are sent by time, not by request, and time is fifty times too long here.
            setup.flags.extend(["--telemetry-interval", "1h"].map(str::to_owned));
            Some(collector)
        }
    };
    let requests = programs.requests;
    let order = Order {
        setup,
        subject: Subject::Greenroom,
        transport: Transport::Tcp,
        size,
        workers: size,
        warm_up: Duration::ZERO,
        window: Duration::ZERO,
        counts_calls: false,
    };
    let figures = order.with_servers(crate::bare::Mode::Echo, |servers| {
        let mut fleet = Fleet::new(order.transport)?;
        let mut echo = Echo {
            entrance: Entrance::new(order.subject, Some(ECHO_KIND))?,
            latencies: Latencies::new(),
            integrity: Integrity::default(),
            left: 0,
        };
        fleet.open(servers.address, size, &mut echo)?;
        ask(&mut fleet, &mut echo, WARM_UP)?;
        let counted: Vec<_> =
            servers.processes().into_iter().filter(|(name, _)| COUNTED.contains(name)).collect();
        for (_, process) in &counted {
            tell(*process, &["instrumentation", "on"])?;
        }
        ask(&mut fleet, &mut echo, requests)?;
        for (_, process) in &counted {
            tell(*process, &["instrumentation", "off"])?;
            tell(*process, &["dump"])?;
        }
        ensure!(fleet.closed() == 0, "{} connections were closed", fleet.closed());
        ensure!(echo.integrity == Integrity::default(), "answers are wrong: {:?}", echo.integrity);
        let each = counted.into_iter().map(|(name, _)| {
            let all = total(&folder.path().join(format!("{name}.out.1")))?;
            Ok((name, float(all) / float(requests)))
        });
        each.collect()
    })?;
    let of = |name: &str| {
        let found = figures.iter().find(|(of, _)| *of == name);
        found.map(|(_, value)| *value).with_context(|| format!("{name} was not counted"))
    };
    let spans = match &collector {
        None => 0,
        Some(collector) => {
            // The servers are gone by now, and what they had not sent with them; it is some seconds of them.
            let spans = collector.spans.load(Relaxed);
            ensure!(spans > 0, "nothing arrived at the collector");
            spans
        }
    };
    Ok(Counted { session: of("session")?, game: of("game")?, spans })
}

/// Has the clients ask so many requests, and waits until all are answered.
fn ask(fleet: &mut Fleet, echo: &mut Echo, requests: u64) -> anyhow::Result<()> {
    echo.latencies.reset();
    echo.left = requests;
    for index in 0..fleet.peers.len() {
        fleet.say(index, |peer, out| echo.ask(peer, out));
    }
    let began = Instant::now();
    while echo.latencies.len() < requests {
        fleet.turn(Duration::from_millis(5), echo)?;
        ensure!(
            began.elapsed() < REQUESTS_MAX,
            "{} of {requests} are answered",
            echo.latencies.len()
        );
    }
    Ok(())
}

/// Has the callgrind that a process runs under do something.
fn tell(process: u32, words: &[&str]) -> anyhow::Result<()> {
    let mut command = Command::new("vgdb");
    command.arg(format!("--pid={process}")).args(words).stdin(Stdio::null());
    let told = command.output().context("starting vgdb, which comes with valgrind")?;
    if !told.status.success() {
        bail!("vgdb {}: {}", words.join(" "), String::from_utf8_lossy(&told.stderr));
    }
    Ok(())
}

/// The instructions of a dump.
fn total(file: &Path) -> anyhow::Result<u64> {
    let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    let line = text.lines().find_map(|line| line.strip_prefix("totals: "));
    let total = line.and_then(|line| line.trim().parse().ok());
    total.with_context(|| format!("{} has no totals", file.display()))
}

/// A collector that counts what it takes.
struct Collector {
    child: Child,
    endpoint: String,
    spans: Arc<AtomicU64>,
}

impl Collector {
    fn start(program: &Path, folder: &Path) -> anyhow::Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .context("looking for a free port")?
            .port();
        let config = folder.join("collector.yaml");
        let text = format!(
            "receivers: {{otlp: {{protocols: {{http: {{endpoint: '127.0.0.1:{port}'}}}}}}}}\n\
             exporters: {{debug: {{verbosity: normal, sampling_initial: 1000000, sampling_thereafter: 1}}}}\n\
             service:\n  telemetry: {{metrics: {{level: none}}}}\n  pipelines:\n    \
             traces: {{receivers: [otlp], exporters: [debug]}}\n    \
             metrics: {{receivers: [otlp], exporters: [debug]}}\n"
        );
        fs::write(&config, text).context("writing the collector's configuration")?;
        let mut child = Command::new(program)
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let said = child.stderr.take().context("a pipe for what the collector says")?;
        let spans = Arc::new(AtomicU64::new(0));
        let (to_ready, ready) = std::sync::mpsc::sync_channel(1);
        let counts = Arc::clone(&spans);
        thread::spawn(move || {
            for line in BufReader::new(said).lines().map_while(Result::ok) {
                if line.contains("Everything is ready") {
                    // Nobody waits for a second one.
                    let _unheard = to_ready.try_send(());
                }
                let number = line.split_once("\"spans\": ").map(|(_, rest)| rest);
                let digits =
                    number.map(|rest| rest.trim_end_matches(|c: char| !c.is_ascii_digit()));
                counts.fetch_add(digits.and_then(|text| text.parse().ok()).unwrap_or(0), Relaxed);
            }
        });
        let collector = Self { child, endpoint: format!("http://127.0.0.1:{port}"), spans };
        ready.recv_timeout(Duration::from_secs(60)).context("the collector does not get ready")?;
        Ok(collector)
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        // One that ended by itself has closed its pipe, and nothing arrived then.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
