//! `cargo xtask sim`: the simulator, always from a release build of what is in the tree.

use std::process::ExitCode;

use crate::child;
use crate::workspace::Workspace;

/// Passed through as they are; `greenroom-sim --help` lists them.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Arguments {
    /// `--seeds N`, `--profile P`, `--seed S`, `--trace`, `--json`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    arguments: Vec<String>,
}

/// Builds, then runs `greenroom-sim`, whose exit code is ours.
///
/// # Errors
/// When a program cannot be started.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let mut build = workspace.cargo("build --release --locked --package greenroom-sim");
    if !child::stream(&mut build)?.success() {
        println!("the release build failed: nothing to play");
        return Ok(ExitCode::FAILURE);
    }
    let binary = workspace.target.join("release/greenroom-sim");
    let status =
        child::stream(workspace.command(&binary.to_string_lossy()).args(&arguments.arguments))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
