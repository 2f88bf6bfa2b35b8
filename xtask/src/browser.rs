//! The pages of the demo games: whether their scripts are those that their sources build, and the stories that are
//! played with them in Chromium.

use crate::child;
use crate::report::Report;
use crate::tools::Tools;
use crate::typescript::{link_modules, run_tests, tests};
use crate::workspace::Workspace;

/// Milliseconds that a file of stories may take: each has a limit of its own for everything that it waits for.
const FILE_MS_MAX: u32 = 600_000;

/// Checks the pages and plays the stories; the binary that they start is built already.
///
/// # Errors
/// When node cannot be started; what fails is in the report.
pub(crate) fn run(workspace: &Workspace, tools: &Tools) -> anyhow::Result<Report> {
    let mut report = Report::default();
    let modules = workspace.tools().join("node_modules");
    link_modules(&workspace.root.join("clients/typescript"), &modules)?;
    let mut build = workspace.command("node");
    build.args(["games/pages/build.mjs", "--check"]);
    report.record(
        "browser pages are those that their sources build",
        child::stream(&mut build)?.success(),
    );

    let tests = tests(&workspace.root.join("tests/browser"), ".test.mjs")?;
    let mut command = workspace.command("node");
    // One after the other: a browser wants a processor, and its page is measured by how soon it draws.
    command.args(["--test-concurrency=1".to_owned(), format!("--test-timeout={FILE_MS_MAX}")]);
    report.add(run_tests("browser", command, &tests, workspace, tools)?);
    Ok(report)
}
