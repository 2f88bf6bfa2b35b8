//! `cargo xtask bench`: the benchmarks, always from a release build of what is in the tree.

use std::fs;
use std::process::ExitCode;

use anyhow::Context;

use crate::workspace::Workspace;
use crate::{child, tools};

/// Passed through as they are; `greenroom-bench --help` lists them.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Arguments {
    /// The benchmark's NAME (all, when none is given), `--json`, and what the benchmark itself takes.
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "NAME | --json | ARGS"
    )]
    arguments: Vec<String>,
}

/// Builds, then runs `greenroom-bench`, whose exit code is ours.
///
/// # Errors
/// When a program cannot be started.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let is_named = |name: &str| arguments.arguments.iter().any(|argument| argument == name);
    let mut more = Vec::new();
    if is_named("instructions") {
        if !programs_to_count(workspace)? {
            println!("a release build failed: nothing to count");
            return Ok(ExitCode::FAILURE);
        }
        let collector = tools::collector(workspace)?;
        more.extend(["--collector".to_owned(), collector.to_string_lossy().into_owned()]);
    }
    let mut build =
        workspace.cargo("build --release --locked --package greenroom --package greenroom-bench");
    // The SDK of Couchbase is a large build, which only the store needs.
    if is_named("store") {
        build.args(["--package", "greenroom-couchbase-node"]);
        build.args(["--features", "greenroom-bench/couchbase"]);
    }
    if !child::stream(&mut build)?.success() {
        println!("the release build failed: nothing to measure");
        return Ok(ExitCode::FAILURE);
    }
    // The servers under test are `greenroom`, beside it in the same folder.
    let binary = workspace.target.join("release/greenroom-bench");
    let mut command = workspace.command(&binary.to_string_lossy());
    let status = child::stream(command.args(&arguments.arguments).args(more))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Builds the program without tracing and with it, for `instructions`; whether that went well.
///
/// Rustix asks the kernel's vDSO for the time by itself, which valgrind does not have: here it asks the C library.
fn programs_to_count(workspace: &Workspace) -> anyhow::Result<bool> {
    for (features, name) in
        [("rustix/use-libc", "greenroom-untraced"), ("rustix/use-libc,otlp", "greenroom-traced")]
    {
        let words = format!("build --release --locked --package greenroom --features {features}");
        if !child::stream(&mut workspace.cargo(&words))?.success() {
            return Ok(false);
        }
        let built = workspace.target.join("release/greenroom");
        let place = workspace.target.join("release").join(name);
        fs::copy(&built, &place).with_context(|| format!("making {}", place.display()))?;
    }
    Ok(true)
}
