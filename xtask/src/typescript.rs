//! The TypeScript SDK: its types, its tests, and whether its bundle is the one that pages get.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, io};

use anyhow::{Context, bail};

use crate::child;
use crate::report::Report;
use crate::tools::Tools;
use crate::workspace::Workspace;

/// Milliseconds that one file of tests may take, so that one that waits for ever has a name.
const TEST_MS_MAX: u32 = 600_000;

/// Compiles the package and runs its tests; the binary that some of them start is built already.
///
/// # Errors
/// When node cannot be started; what fails is in the report.
pub(crate) fn run(workspace: &Workspace, tools: &Tools) -> anyhow::Result<Report> {
    let mut report = Report::default();
    let package = workspace.root.join("clients/typescript");
    link_modules(&package, &workspace.tools().join("node_modules"))?;

    let mut build = workspace.command("node");
    build.current_dir(&package).args(["build.mjs", "--test"]);
    let built = child::stream(&mut build)?.success();
    report.record("typescript types", built);
    if !built {
        return Ok(report);
    }

    let tests = tests(&package.join("build/test"), ".test.js")?;
    let mut command = workspace.command("node");
    command.current_dir(&package).arg(format!("--test-timeout={TEST_MS_MAX}"));
    report.add(run_tests("typescript", command, &tests, workspace, tools)?);
    Ok(report)
}

/// Runs these tests with node's own runner; each is one of `step`.
///
/// # Errors
/// When node cannot be started.
pub(crate) fn run_tests(
    step: &'static str,
    mut node: Command,
    tests: &[PathBuf],
    workspace: &Workspace,
    tools: &Tools,
) -> anyhow::Result<Report> {
    node.args(["--test", "--test-reporter=tap"]).args(tests);
    node.envs(tools.variables.iter().map(|(name, place)| (name, place)));
    node.env("GREENROOM_BINARY", workspace.target.join("debug/greenroom"));
    let mut reader = Reader::of(step);
    let streamed = child::stream_lines(node, |line| reader.line(line))?;
    Ok(reader.finish(streamed.status.success()))
}

/// Lets the package find what npm installed among the tools. Modules of a developer's own `npm ci` are left alone.
pub(crate) fn link_modules(package: &Path, modules: &Path) -> anyhow::Result<()> {
    let link = package.join("node_modules");
    match fs::read_link(&link) {
        Ok(target) if target == modules => return Ok(()),
        Ok(_) => fs::remove_file(&link).with_context(|| format!("removing {}", link.display()))?,
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Ok(()), // A folder.
        Err(_) => {}
    }
    std::os::unix::fs::symlink(modules, &link)
        .with_context(|| format!("linking {}", link.display()))
}

/// The tests of a folder, by name: the files that end so.
///
/// # Errors
/// When there is none.
pub(crate) fn tests(folder: &Path, ending: &str) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    let mut tests = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("reading {}", folder.display()))?.path();
        if path.to_string_lossy().ends_with(ending) {
            tests.push(path);
        }
    }
    tests.sort();
    if tests.is_empty() {
        bail!("there is no test in {}", folder.display());
    }
    Ok(tests)
}

/// Adds up what node's test runner prints as TAP: a line at the margin for each test.
#[derive(Debug)]
struct Reader {
    step: &'static str,
    report: Report,
    /// How many tests node says that there were, once it does.
    announced: Option<usize>,
}

impl Reader {
    fn of(step: &'static str) -> Self {
        Self { step, report: Report::default(), announced: None }
    }

    fn line(&mut self, line: &str) {
        if let Some(rest) = line.strip_prefix("ok ") {
            self.verdict(rest, true);
        } else if let Some(rest) = line.strip_prefix("not ok ") {
            self.verdict(rest, false);
        } else if let Some(rest) = line.strip_prefix("1..") {
            self.announced = rest.trim().parse().ok();
        }
    }

    /// `12 - what the test promises`, and `# SKIP why` behind it if it did not run.
    fn verdict(&mut self, rest: &str, passed: bool) {
        let name = rest.split_once(" - ").map_or(rest, |(_number, name)| name);
        let (name, directive) = name.split_once(" # ").unwrap_or((name, ""));
        let name = format!("{} {}", self.step, name.trim());
        // A directive is one word, and why: the test did not count.
        match directive.split_once(' ') {
            None if directive.is_empty() => self.report.record(&name, passed),
            None => self.report.failed.push(format!("{name}: ignored without a reason")),
            Some((_, reason)) => self.report.ignored.push(format!("{name}: {reason}")),
        }
    }

    /// What the tests came to; `green` is whether node ended with success.
    fn finish(mut self, green: bool) -> Report {
        let Report { passed, failed, ignored } = &self.report;
        let heard = passed + failed.len() + ignored.len();
        if self.announced != Some(heard) {
            let step = self.step;
            let text = format!("{step}: node told of {heard} tests, and did not end with them");
            self.report.failed.push(text);
        } else if !green && failed.is_empty() {
            let step = self.step;
            let text = format!("{step}: node failed without naming a test; its output says why");
            self.report.failed.push(text);
        }
        self.report
    }
}

#[cfg(test)]
mod tests {
    use super::Reader;
    use crate::report::Report;

    fn read(text: &str, green: bool) -> Report {
        let mut reader = Reader::of("typescript");
        text.lines().for_each(|line| reader.line(line));
        reader.finish(green)
    }

    #[test]
    fn each_test_at_the_margin_counts_once() {
        let report = read(
            "TAP version 13\n# Subtest: a - b\nok 1 - a - b\n  ---\n  duration_ms: 1\n  ...\n# Subtest: c\n\
             \x20   ok 1 - part\nnot ok 2 - c\n  ---\n  error: |-\n    not ok 9 - text\n  ...\n\
             ok 3 - d # SKIP has no display\n1..3\n# tests 3\n",
            false,
        );
        assert_eq!(report.passed, 1);
        assert_eq!(report.failed, ["typescript c"]);
        assert_eq!(report.ignored, ["typescript d: has no display"]);
    }

    #[test]
    fn a_runner_that_dies_is_a_failure() {
        assert_eq!(read("ok 1 - a\n", false).failed.len(), 1);
        assert_eq!(read("ok 1 - a\n1..1\n", false).failed.len(), 1);
        assert_eq!(read("ok 1 - a\n1..1\n", true).failed.len(), 0);
        assert_eq!(read("ok 1 - a # SKIP\n1..1\n", true).failed.len(), 1);
    }
}
