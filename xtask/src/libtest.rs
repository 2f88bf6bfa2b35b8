//! Reads what test binaries print, so that a run can be added up and nothing is lost on the way.

use crate::report::Report;

/// Adds up the output of `cargo test`, line by line.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    report: Report,
    /// Whose tests are running: `greenroom_delta`, or `greenroom_delta doc`.
    binary: String,
    /// Failures named since the last `test result:` line.
    named: Vec<String>,
    /// Set between `running N tests` and its result: a binary that dies says no result.
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    /// The last test heard of.
    last: Option<String>,
}

impl Reader {
    /// Takes one line.
    pub(crate) fn line(&mut self, line: &str) {
        if let Some(name) = binary_of(line) {
            self.no_result();
            self.binary = name;
        } else if let Some(rest) = line.strip_prefix("running ") {
            if rest.ends_with(" test") || rest.ends_with(" tests") {
                self.no_result();
                self.running = Some(Running { last: None });
            }
        } else if let Some(rest) = line.strip_prefix("test result: ") {
            self.result(rest);
        } else if let Some(rest) = line.strip_prefix("test ") {
            // Without a verdict: the binary died here, or the test's own output follows on this line.
            let (name, verdict) =
                rest.rsplit_once(" ... ").unwrap_or((rest.trim_end_matches(" ..."), ""));
            self.verdict(name, verdict);
        }
    }

    /// What `cargo test` came to; `green` is whether it ended with success.
    pub(crate) fn finish(mut self, green: bool) -> Report {
        self.no_result();
        if !green && self.report.failed.is_empty() {
            self.report.failed.push(
                "cargo test: it failed without naming a test; its output says why".to_owned(),
            );
        }
        self.report
    }

    fn verdict(&mut self, name: &str, verdict: &str) {
        let name = format!("{} {name}", self.binary);
        if let Some(running) = &mut self.running {
            running.last = Some(name.clone());
        }
        if verdict.starts_with("FAILED") {
            self.named.push(name);
        } else if let Some(reason) = verdict.strip_prefix("ignored") {
            match reason.strip_prefix(", ").map(str::trim) {
                Some(reason) if !reason.is_empty() => {
                    self.report.ignored.push(format!("{name}: {reason}"))
                }
                _ => self.report.failed.push(format!("{name}: ignored without a reason")),
            }
        }
    }

    /// The rest of a line like `FAILED. 3 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s`.
    fn result(&mut self, rest: &str) {
        self.running = None;
        self.report.passed += count(rest, " passed");
        let failed = count(rest, " failed");
        let unnamed = failed.saturating_sub(self.named.len());
        self.report.failed.append(&mut self.named);
        if unnamed > 0 {
            let name = format!("{}: a test whose name was lost in the output", self.binary);
            self.report.failed.extend(std::iter::repeat_n(name, unnamed));
        }
    }

    /// Called where a result must have come before; if none did, the binary died.
    fn no_result(&mut self) {
        let Some(running) = self.running.take() else { return };
        self.report.failed.append(&mut self.named);
        self.report.failed.push(match running.last {
            Some(last) => format!("{} died, in or after `{last}`", self.binary),
            None => format!("{} died before its first test ended", self.binary),
        });
    }
}

/// The name of the binary that cargo is about to run, if that is what the line says: one of
/// `Running unittests src/lib.rs (target/debug/deps/greenroom_delta-5319a560fb370d99)`,
/// `Running tests/tidy.rs (target/debug/deps/tidy-5319a560fb370d99)` and `Doc-tests greenroom_delta`.
fn binary_of(line: &str) -> Option<String> {
    let line = line.trim_start();
    if let Some(library) = line.strip_prefix("Doc-tests ") {
        return Some(format!("{library} doc"));
    }
    let path = line.strip_prefix("Running ")?.strip_suffix(')')?.rsplit_once('(')?.1;
    let file = path.rsplit('/').next()?;
    Some(file.rsplit_once('-').map_or(file, |(name, _hash)| name).to_owned())
}

/// The number before `what`, or 0.
fn count(line: &str, what: &str) -> usize {
    let number = line.split(what).next().and_then(|before| before.rsplit(' ').next());
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::Reader;
    use crate::report::Report;

    fn read(text: &str, green: bool) -> Report {
        let mut reader = Reader::default();
        text.lines().for_each(|line| reader.line(line));
        reader.finish(green)
    }

    const TWO_BINARIES: &str = "
     Running unittests src/lib.rs (target/debug/deps/greenroom_a-5319a560fb370d99)

running 3 tests
test a::one ... ok
test a::two ... ok
test a::three has been running for over 60 seconds
test a::three ... ok

test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s

   Doc-tests greenroom_a

running 1 test
test src/lib.rs - Thing (line 12) - compile ... ok

test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 4 filtered out; finished in 0.21s
";

    #[test]
    fn results_add_up_over_binaries_and_doc_tests() {
        let report = read(TWO_BINARIES, true);
        assert_eq!((report.passed, report.failed.len(), report.ignored.len()), (4, 0, 0));
    }

    #[test]
    fn a_failed_test_is_named_once_with_its_binary_and_its_neighbours_count() {
        let report = read(
            "     Running tests/tidy.rs (target/debug/deps/tidy-53)\nrunning 2 tests\ntest a ... ok\n\
             test b::c ... FAILED\n\nfailures:\n\n---- b::c stdout ----\nboom\n\nfailures:\n    b::c\n\n\
             test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\n",
            false,
        );
        assert_eq!(report.passed, 1);
        assert_eq!(report.failed, ["tidy b::c"]);
    }

    #[test]
    fn an_ignored_test_needs_a_reason() {
        let report = read(
            "   Doc-tests a\nrunning 2 tests\ntest b ... ignored, runs for an hour: `cargo xtask sim`\n\
             test c ... ignored\n\n\
             test result: ok. 0 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.00s\n",
            true,
        );
        assert_eq!(report.ignored, ["a doc b: runs for an hour: `cargo xtask sim`"]);
        assert_eq!(report.failed, ["a doc c: ignored without a reason"]);
    }

    #[test]
    fn a_binary_that_dies_is_a_failure_even_when_the_next_one_passes() {
        let report = read(
            "     Running unittests src/lib.rs (target/debug/deps/a-53)\nrunning 9 tests\ntest x ...\n\
             error: test failed, to rerun pass `-p a --lib`\n\
             \x20    Running unittests src/lib.rs (target/debug/deps/b-53)\nrunning 1 test\ntest y ... ok\n\n\
             test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n",
            false,
        );
        assert_eq!(report.passed, 1);
        assert_eq!(report.failed, ["a died, in or after `a x`"]);
    }

    #[test]
    fn a_run_that_does_not_compile_is_a_failure() {
        assert_eq!(read("", false).failed.len(), 1);
    }
}
