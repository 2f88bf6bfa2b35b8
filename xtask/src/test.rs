//! `cargo xtask test`: every test there is, from nothing but the toolchains.
//!
//! A step has a name, and the name is what counts: formatting, lints, documents and each fuzz target are one test each
//! beside the tests of `cargo test`. A further kind of test is one more call in [`run`].

use std::process::ExitCode;
use std::time::Instant;

use crate::libtest::Reader;
use crate::report::Report;
use crate::tools::{self, Tools};
use crate::workspace::Workspace;
use crate::{browser, child, fuzz, typescript};

/// Seconds that each fuzz target runs.
const FUZZ_SECONDS: u32 = 20;
/// The same under `--quick`: long enough to run the seeds.
const FUZZ_SECONDS_QUICK: u32 = 2;

/// The steps that a filter can name, beside the tests of `cargo test`.
const STEPS: &[&str] = &["fmt", "clippy", "features", "typescript", "browser", "doc", "fuzz"];

/// What a user of the program can choose, each built as the user builds it: with nothing of the others around it, so
/// that nobody lives on what another one's dependencies bring. The names are those of the steps.
const CHOICES: &[(&str, &str)] = &[
    ("features none", ""),
    ("features otlp", "otlp"),
    ("features kinesis", "kinesis"),
    ("features couchbase", "couchbase"),
    ("features all", "couchbase,kinesis,otlp"),
];

/// What `cargo xtask test` can be asked.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Leaves the documents out and fuzzes for 2 seconds a target: for the time between two commits.
    #[arg(long)]
    quick: bool,
    /// Runs the tests of a Couchbase client and of a store on this cluster, whose documents must not matter, and
    /// nothing else. User, password and bucket are `GREENROOM_COUCHBASE_USER`, `_PASSWORD` and `_BUCKET`.
    #[arg(long, value_name = "URL", conflicts_with = "quick")]
    couchbase: Option<String>,
    /// Runs only the steps of these names (`fmt`, `clippy`, `features`, `typescript`, `browser`, `doc`, `fuzz`,
    /// `"fuzz TARGET"`)
    /// and, for every other word, the tests that have it in their names.
    filters: Vec<String>,
}

impl Arguments {
    /// Whether the step of this name runs; `fuzz` stands for all its targets.
    fn wants(&self, step: &str) -> bool {
        self.filters.is_empty()
            || self
                .filters
                .iter()
                .any(|filter| step.strip_prefix(filter.as_str()).is_some_and(ends_a_word))
    }

    /// The filters that are no step, for `cargo test`; nothing if all are steps.
    fn test_filters(&self) -> Option<Vec<&str>> {
        let filters = self.filters.iter().map(String::as_str);
        let others: Vec<&str> = filters.filter(|filter| !is_step(filter)).collect();
        (self.filters.is_empty() || !others.is_empty()).then_some(others)
    }
}

/// Whether a filter names a step instead of tests.
fn is_step(filter: &str) -> bool {
    STEPS.iter().any(|step| filter.strip_prefix(step).is_some_and(ends_a_word))
}

/// Whether what follows a name leaves it a whole word.
fn ends_a_word(rest: &str) -> bool {
    rest.is_empty() || rest.starts_with(' ')
}

/// Runs the steps in order; the exit code is a failure unless something passed and nothing failed.
///
/// # Errors
/// When cargo itself cannot be started; a step that fails is in the report.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let mut report = Report::default();

    if let Some(url) = &arguments.couchbase {
        on_couchbase(workspace, url, &arguments.filters, &mut report)?;
        println!("\nall steps: {:.1} s", started.elapsed().as_secs_f64());
        return Ok(report.finish());
    }

    announce("tools", "looks for what the tests need, and installs what is missing");
    let tools = tools::install(workspace);
    report.failed.extend(tools.missing.iter().cloned());

    for (name, words) in [
        ("fmt", "fmt --all --check"),
        ("clippy", "clippy --workspace --all-targets --all-features --locked -- -D warnings"),
    ] {
        if arguments.wants(name) {
            cargo_step(workspace, name, words, &mut report)?;
        }
    }
    for (name, features) in CHOICES {
        // Three minutes, since some dependencies are checked anew with fewer features.
        if !arguments.quick && arguments.wants(name) {
            let words =
                format!("clippy --package greenroom --features={features} --locked -- -D warnings");
            cargo_step(workspace, name, &words, &mut report)?;
        }
    }
    if let Some(filters) = arguments.test_filters() {
        report.add(cargo_test(workspace, &tools, &filters)?);
    }
    if arguments.wants("typescript") {
        let what = "builds clients/typescript and runs its tests";
        report.add(node_tests(workspace, &tools, "typescript", what, typescript::run)?);
    }
    if arguments.wants("browser") {
        let what = "plays the demo games in Chromium";
        report.add(node_tests(workspace, &tools, "browser", what, browser::run)?);
    }
    if !arguments.quick && arguments.wants("doc") {
        cargo_step(
            workspace,
            "doc",
            "doc --workspace --all-features --no-deps --locked",
            &mut report,
        )?;
    }
    report.add(fuzz_targets(workspace, arguments)?);

    println!("\nall steps: {:.1} s", started.elapsed().as_secs_f64());
    Ok(report.finish())
}

/// One `cargo` command that is one test.
fn cargo_step(
    workspace: &Workspace,
    name: &str,
    words: &str,
    report: &mut Report,
) -> anyhow::Result<()> {
    announce(name, &format!("cargo {words}"));
    let started = Instant::now();
    let mut command = workspace.cargo(words);
    if name == "doc" {
        command.env("RUSTDOCFLAGS", "-D warnings");
    }
    let passed = child::stream(&mut command)?.success();
    conclude(name, passed, started);
    report.record(name, passed);
    Ok(())
}

/// Everything that `cargo test` and the stories need, binaries included; whether it could be built.
///
/// As the tests need it: with development dependencies in the picture, so that features are resolved once and no
/// dependency compiles twice.
fn build(workspace: &Workspace) -> anyhow::Result<bool> {
    let words = "build --workspace --all-targets --all-features --locked";
    announce("build", &format!("cargo {words}"));
    let started = Instant::now();
    let passed = child::stream(&mut workspace.cargo(words))?.success();
    conclude("build", passed, started);
    Ok(passed)
}

/// Tests on node, of the binary as `cargo test` builds it.
fn node_tests(
    workspace: &Workspace,
    tools: &Tools,
    step: &str,
    what: &str,
    run: fn(&Workspace, &Tools) -> anyhow::Result<Report>,
) -> anyhow::Result<Report> {
    if !build(workspace)? {
        return Ok(Report {
            failed: vec![format!("{step}: the binary for its tests could not be built")],
            ..Report::default()
        });
    }
    announce(step, what);
    let started = Instant::now();
    let report = run(workspace, tools)?;
    conclude(step, report.failed.is_empty(), started);
    Ok(report)
}

/// What a client of a Couchbase cluster must meet there, and what every store must do, on a cluster that is somebody's.
const ON_COUCHBASE: [(&str, &str, &str); 2] = [
    (
        "couchbase client",
        "test -p greenroom-couchbase-node --all-features --locked --no-fail-fast --test documents --test management \
         --test queries --",
        "",
    ),
    (
        "couchbase store",
        "test -p greenroom-storage --all-features --locked --no-fail-fast --test couchbase --",
        "on_couchbase::",
    ),
];

fn on_couchbase(
    workspace: &Workspace,
    url: &str,
    filters: &[String],
    report: &mut Report,
) -> anyhow::Result<()> {
    let is_url = ["couchbase://", "couchbases://"].iter().any(|scheme| url.starts_with(scheme));
    anyhow::ensure!(is_url, "{url:?} is no cluster: write couchbase://HOST or couchbases://HOST");
    for (name, words, all) in ON_COUCHBASE {
        announce(name, &format!("cargo {words} {all} {}", filters.join(" ")));
        let started = Instant::now();
        let mut command = workspace.cargo(words);
        command.args(filters).env("GREENROOM_COUCHBASE", url).env("CARGO_TERM_COLOR", "never");
        // A filter of ours narrows the names that this step is about.
        if filters.is_empty() && !all.is_empty() {
            command.arg(all);
        }
        let mut reader = Reader::default();
        let streamed = child::stream_lines(command, |line| reader.line(line))?;
        let of_it = reader.finish(streamed.status.success());
        conclude(name, of_it.failed.is_empty(), started);
        report.add(of_it);
    }
    Ok(())
}

/// `cargo test` over the workspace, doc tests included, in the one profile that everything else uses too.
fn cargo_test(workspace: &Workspace, tools: &Tools, filters: &[&str]) -> anyhow::Result<Report> {
    if !build(workspace)? {
        return Ok(Report {
            failed: vec!["build: the tests could not run".to_owned()],
            ..Report::default()
        });
    }

    let words = "test --workspace --all-features --locked --no-fail-fast --";
    announce("tests", &format!("cargo {words} {}", filters.join(" ")));
    let started = Instant::now();
    let mut command = workspace.cargo(words);
    command.args(filters).envs(tools.variables.iter().map(|(name, place)| (name, place)));
    command.env("CARGO_TERM_COLOR", "never"); // The reader takes cargo's lines as plain text.
    let mut reader = Reader::default();
    let streamed = child::stream_lines(command, |line| reader.line(line))?;
    let mut report = reader.finish(streamed.status.success());
    if streamed.left_a_process {
        report.failed.push(
            "tests: some test left a process running, which still holds our output".to_owned(),
        );
    }
    conclude("tests", report.failed.is_empty(), started);
    Ok(report)
}

/// Builds the fuzz targets and runs each.
fn fuzz_targets(workspace: &Workspace, arguments: &Arguments) -> anyhow::Result<Report> {
    let mut report = Report::default();
    let is_named = arguments.filters.iter().any(|filter| filter.starts_with("fuzz "));
    if !is_named && !arguments.wants("fuzz") {
        return Ok(report);
    }
    let targets = match fuzz::targets(workspace) {
        Ok(targets) => targets,
        Err(error) => {
            announce("fuzz", &format!("{error:#}"));
            report.record("fuzz: there is no target", false);
            return Ok(report);
        }
    };
    let wanted: Vec<String> =
        targets.into_iter().filter(|target| arguments.wants(&fuzz::test_name(target))).collect();
    if wanted.is_empty() {
        return Ok(report);
    }
    let seconds = if arguments.quick { FUZZ_SECONDS_QUICK } else { FUZZ_SECONDS };
    announce("fuzz", &format!("for {seconds} s each: {}", wanted.join(", ")));
    let started = Instant::now();
    let host = fuzz::host(workspace)?;
    if fuzz::build(workspace, &host)? {
        report.add(fuzz::run(workspace, &host, &wanted, seconds));
    } else {
        wanted.iter().for_each(|target| report.record(&fuzz::test_name(target), false));
    }
    conclude("fuzz", report.failed.is_empty(), started);
    Ok(report)
}

fn announce(name: &str, what: &str) {
    println!("\n==> {name}: {}", what.trim_end());
}

fn conclude(name: &str, passed: bool, started: Instant) {
    let verdict = if passed { "passed" } else { "FAILED" };
    println!("<== {name}: {verdict} in {:.1} s", started.elapsed().as_secs_f64());
}

#[cfg(test)]
mod tests {
    use super::{Arguments, CHOICES};
    use crate::workspace::Workspace;

    fn filtered(filters: &[&str]) -> Arguments {
        Arguments {
            quick: false,
            couchbase: None,
            filters: filters.iter().map(|&filter| filter.to_owned()).collect(),
        }
    }

    #[test]
    fn without_a_filter_everything_runs() {
        assert!(filtered(&[]).wants("fmt") && filtered(&[]).wants("fuzz delta"));
        assert_eq!(filtered(&[]).test_filters(), Some(vec![]));
    }

    #[test]
    fn the_name_of_a_step_runs_that_step_alone() {
        assert!(filtered(&["fmt"]).wants("fmt") && !filtered(&["fmt"]).wants("doc"));
        assert_eq!(filtered(&["fmt"]).test_filters(), None);
        assert!(filtered(&["fuzz"]).wants("fuzz delta"));
        assert!(
            filtered(&["fuzz delta"]).wants("fuzz delta")
                && !filtered(&["fuzz delta"]).wants("fuzz frame")
        );
        assert!(!filtered(&["fuzz fr"]).wants("fuzz frame"));
    }

    #[test]
    fn every_feature_of_the_program_is_built_alone_and_with_all_others() {
        let manifest = Workspace::find().root.join("Cargo.toml");
        let manifest = std::fs::read_to_string(manifest).unwrap();
        let features = manifest.split("\n[features]\n").nth(1).unwrap();
        let features = features.split("\n[").next().unwrap().lines();
        let names = features.filter_map(|line| line.split_once(" = ")).map(|(name, _)| name);
        let names: Vec<_> = names.filter(|name| *name != "default").collect();
        let choices: Vec<_> = CHOICES.iter().map(|(_, features)| *features).collect();
        assert!(names.iter().all(|name| choices.contains(name)), "{names:?} of {choices:?}");
        assert!(choices.contains(&"") && choices.contains(&&*names.join(",")), "{choices:?}");
        assert_eq!(choices.len(), names.len() + 2);
        assert!(filtered(&["features"]).wants("features none"));
    }

    #[test]
    fn any_other_word_goes_to_the_tests() {
        assert_eq!(filtered(&["fmt", "delta"]).test_filters(), Some(vec!["delta"]));
        assert!(!filtered(&["delta"]).wants("fuzz delta"));
        assert_eq!(filtered(&["documents"]).test_filters(), Some(vec!["documents"]));
    }
}
