//! What passed, what failed and what was left out, by name.

use std::process::ExitCode;

/// The outcome of a run, added up over its steps.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// How many tests passed.
    pub(crate) passed: usize,
    /// What failed, by name.
    pub(crate) failed: Vec<String>,
    /// Tests that say why they don't run, each with its reason. One without a reason is in `failed`.
    pub(crate) ignored: Vec<String>,
}

impl Report {
    /// Counts one test.
    pub(crate) fn record(&mut self, name: &str, passed: bool) {
        if passed {
            self.passed += 1;
        } else {
            self.failed.push(name.to_owned());
        }
    }

    pub(crate) fn add(&mut self, other: Report) {
        self.passed += other.passed;
        self.failed.extend(other.failed);
        self.ignored.extend(other.ignored);
    }

    /// Green means that something ran and nothing failed.
    pub(crate) fn is_green(&self) -> bool {
        self.failed.is_empty() && self.passed > 0
    }

    /// The line that ends every run, alone on its line.
    pub(crate) fn summary(&self) -> String {
        format!("{} passed, {} failed", self.passed, self.failed.len())
    }

    /// Prints names, then the summary, and gives the exit code.
    pub(crate) fn finish(&self) -> ExitCode {
        for (title, names) in [("ignored", &self.ignored), ("failed", &self.failed)] {
            if !names.is_empty() {
                println!("\n{title}:");
                names.iter().for_each(|name| println!("    {name}"));
            }
        }
        if self.passed == 0 && self.failed.is_empty() {
            println!("\nno test ran: no name holds the filter");
        }
        println!("\n{}", self.summary());
        if self.is_green() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

#[cfg(test)]
mod tests {
    use super::Report;

    #[test]
    fn a_run_in_which_nothing_ran_is_not_green() {
        let report = Report::default();
        assert!(!report.is_green());
        assert_eq!(report.summary(), "0 passed, 0 failed");
    }

    #[test]
    fn one_failure_among_many_passes_is_not_green() {
        let mut report = Report { passed: 40, ..Report::default() };
        report.record("fmt", true);
        assert!(report.is_green());
        report.record("clippy", false);
        assert!(!report.is_green());
        assert_eq!(report.summary(), "41 passed, 1 failed");
    }
}
