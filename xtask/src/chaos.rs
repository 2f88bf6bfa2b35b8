//! `cargo xtask chaos`: a cluster of real processes that is hurt under load, always from a release build of what is in
//! the tree.

use std::process::ExitCode;

use crate::child;
use crate::workspace::Workspace;

/// Passed through as they are; `greenroom-bench chaos --help` lists them.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Arguments {
    /// `--only active`, `--kills N`, `--json`, and so on.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    arguments: Vec<String>,
}

/// Builds, then runs `greenroom-bench chaos`, whose exit code is ours.
///
/// # Errors
/// When a program cannot be started.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let mut build =
        workspace.cargo("build --release --locked --package greenroom --package greenroom-bench");
    if !child::stream(&mut build)?.success() {
        println!("the release build failed: nothing to hurt");
        return Ok(ExitCode::FAILURE);
    }
    let binary = workspace.target.join("release/greenroom-bench");
    let mut command = workspace.command(&binary.to_string_lossy());
    let status = child::stream(command.arg("chaos").args(&arguments.arguments))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
