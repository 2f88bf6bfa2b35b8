//! `cargo xtask bench`: the benchmarks, always from a release build of what is in the tree.

use std::process::ExitCode;

use crate::child;
use crate::workspace::Workspace;

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
    let mut build =
        workspace.cargo("build --release --locked --package greenroom --package greenroom-bench");
    // The SDK of Couchbase is a large build, which only the store needs.
    if arguments.arguments.iter().any(|argument| argument == "store") {
        build.args(["--package", "greenroom-couchbase-node"]);
        build.args(["--features", "greenroom-bench/couchbase"]);
    }
    if !child::stream(&mut build)?.success() {
        println!("the release build failed: nothing to measure");
        return Ok(ExitCode::FAILURE);
    }
    // The servers under test are `greenroom`, beside it in the same folder.
    let binary = workspace.target.join("release/greenroom-bench");
    let status =
        child::stream(workspace.command(&binary.to_string_lossy()).args(&arguments.arguments))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
