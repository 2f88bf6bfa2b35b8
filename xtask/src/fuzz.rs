//! Fuzz targets: built in their own workspace, then run two at a time for some seconds each.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context, bail};

use crate::child;
use crate::report::Report;
use crate::workspace::Workspace;

/// Targets that run at the same time: one for each core of the smallest machine we test on.
const TARGETS_AT_ONCE: usize = 2;
/// What makes libFuzzer see which code an input reached, on the stable toolchain; `fuzz/README.md` explains them.
const FLAGS: &[&str] = &[
    "--cfg fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];
/// Seconds that one input may take before it counts as a hang; the decoders answer in microseconds.
const INPUT_SECONDS_MAX: u32 = 5;
/// Megabytes that a target may hold; a decoder that trusts a declared length runs into this.
const MEGABYTES_MAX: u32 = 1024;

/// The names of all targets: one file each in `fuzz/fuzz_targets`.
///
/// # Errors
/// When there is no such folder, or nothing in it.
pub(crate) fn targets(workspace: &Workspace) -> anyhow::Result<Vec<String>> {
    let folder = workspace.root.join("fuzz/fuzz_targets");
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("listing {}", folder.display()))? {
        let path = entry.with_context(|| format!("listing {}", folder.display()))?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
        }
    }
    if names.is_empty() {
        bail!("no fuzz target in {}", folder.display());
    }
    names.sort();
    Ok(names)
}

/// Builds every target.
///
/// # Errors
/// When a compiler cannot be started; `false` when a target does not compile.
pub(crate) fn build(workspace: &Workspace, host: &str) -> anyhow::Result<bool> {
    // The target is named even though it is this machine: without it the flags reach build scripts too.
    let mut command = workspace.cargo("build --release --bins --locked --target");
    command.arg(host).current_dir(workspace.root.join("fuzz"));
    command.env("RUSTFLAGS", FLAGS.join(" ")).env_remove("CARGO_ENCODED_RUSTFLAGS");
    command.env("CARGO_TARGET_DIR", target_folder(workspace));
    Ok(child::stream(&mut command)?.success())
}

/// This machine, as the compiler calls it.
///
/// # Errors
/// When the compiler cannot be started, or does not say.
pub(crate) fn host(workspace: &Workspace) -> anyhow::Result<String> {
    let mut command = workspace.command("rustc");
    command.arg("-vV");
    let ended = child::quiet("rustc -vV", command)?;
    let host = ended.output.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).with_context(|| format!("rustc -vV names no host: {}", ended.output))
}

/// Runs each of `targets` for `seconds`, two at a time; each is one test.
pub(crate) fn run(workspace: &Workspace, host: &str, targets: &[String], seconds: u32) -> Report {
    let waiting = Mutex::new(targets.iter());
    let report = Mutex::new(Report::default());
    thread::scope(|scope| {
        for _ in 0..TARGETS_AT_ONCE.min(targets.len()) {
            scope.spawn(|| {
                loop {
                    let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
                    let Some(target) = next else { break };
                    let passed = run_one(workspace, host, target, seconds);
                    report
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .record(&test_name(target), passed);
                }
            });
        }
    });
    report.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// What a target is called among the tests.
pub(crate) fn test_name(target: &str) -> String {
    format!("fuzz {target}")
}

/// Whether `target` found nothing in `seconds`; prints the end of its output if it did.
fn run_one(workspace: &Workspace, host: &str, target: &str, seconds: u32) -> bool {
    let name = test_name(target);
    let started = Instant::now();
    let ended = match start_one(workspace, host, target, seconds) {
        Ok(ended) => ended,
        Err(error) => {
            println!("    {name}: {error:#}");
            return false;
        }
    };
    let spent = seconds_of(started.elapsed());
    if ended.status.success() {
        println!("    {name}: {} in {spent}", runs(&ended.output));
        return true;
    }
    println!("{}", ended.output.trim_end());
    println!(
        "    {name}: FAILED after {spent}; the input is in fuzz/artifacts/{target}/, fuzz/README.md says how to run it"
    );
    false
}

fn start_one(
    workspace: &Workspace,
    host: &str,
    target: &str,
    seconds: u32,
) -> anyhow::Result<child::Ended> {
    let fuzz = workspace.root.join("fuzz");
    let (corpus, artifacts) =
        (fuzz.join("corpus").join(target), fuzz.join("artifacts").join(target));
    for folder in [&corpus, &artifacts] {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    let binary = target_folder(workspace).join(host).join("release").join(target);
    let mut command = workspace.command(&binary.to_string_lossy());
    command.arg(format!("-max_total_time={seconds}"));
    command.arg(format!("-timeout={INPUT_SECONDS_MAX}"));
    command.arg(format!("-rss_limit_mb={MEGABYTES_MAX}"));
    command.arg(format!("-artifact_prefix={}/", artifacts.display()));
    command.arg(corpus);
    let seeds = fuzz.join("seeds").join(target);
    if seeds.is_dir() {
        command.arg(seeds);
    }
    child::quiet(&test_name(target), command)
}

/// The fuzz workspace keeps a target folder of its own, since its flags instrument every dependency.
fn target_folder(workspace: &Workspace) -> PathBuf {
    workspace.root.join("fuzz/target")
}

/// libFuzzer's last line, like `Done 123456 runs in 21 second(s)`, without its clock.
fn runs(output: &str) -> String {
    let runs =
        output.lines().rev().find_map(|line| line.strip_prefix("Done ")?.split(" runs").next());
    runs.map_or_else(|| "no count of runs".to_owned(), |runs| format!("{runs} runs"))
}

fn seconds_of(spent: Duration) -> String {
    format!("{:.1} s", spent.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::runs;

    #[test]
    fn the_count_of_runs_is_read_from_the_last_line() {
        assert_eq!(
            runs("INFO: Seed\n#2 INITED\nDone 123456 runs in 21 second(s)\n"),
            "123456 runs"
        );
        assert_eq!(runs(""), "no count of runs");
    }
}
