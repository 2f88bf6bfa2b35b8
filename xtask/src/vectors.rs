//! `cargo xtask vectors`: the protocol's test vectors, made by the code that speaks it.
//!
//! The generator is the example `vectors` of `greenroom-protocol`. Vectors of a released version never change: a
//! difference there means that an old client no longer understands us.

use std::process::ExitCode;

use crate::child;
use crate::workspace::Workspace;

/// Where the vectors of the present version lie.
const FOLDER: &str = "protocol/vectors/v1";

/// What `cargo xtask vectors` can be asked.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Writes nothing; fails when what lies there differs from what would be written.
    #[arg(long)]
    check: bool,
}

/// Runs the generator, whose exit code is ours.
///
/// # Errors
/// When cargo cannot be started.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let mut command =
        workspace.cargo("run --locked --package greenroom-protocol --example vectors --");
    command.arg(FOLDER).args(arguments.check.then_some("--check"));
    let status = child::stream(&mut command)?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
