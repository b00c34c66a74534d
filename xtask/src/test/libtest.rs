//! What the test harness of Rust prints, line by line.

/// Counts of one suite, gathered from its output.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) passed: usize,
    pub(super) failed: usize,
    pub(super) ignored: usize,
    pub(super) filtered: usize,
    /// Whether the harness came to its end; a crash leaves no summary.
    pub(super) complete: bool,
    pub(super) failed_names: Vec<String>,
    pub(super) ignored_names: Vec<String>,
}

impl Outcome {
    /// Takes one line of output.
    pub(super) fn line(&mut self, line: &str) {
        if let Some(summary) = line.strip_prefix("test result: ") {
            self.summary(summary);
        } else if let Some((name, result)) = line.strip_prefix("test ").and_then(|rest| rest.rsplit_once(" ... ")) {
            let name = name.strip_suffix(" - should panic").unwrap_or(name);
            if result.starts_with("FAILED") {
                self.failed_names.push(name.to_owned());
            } else if result.starts_with("ignored") {
                self.ignored_names.push(name.to_owned());
            }
        }
    }

    /// `ok. 5 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 1.20s`.
    fn summary(&mut self, summary: &str) {
        self.complete = true;
        let counts = summary.split_once(". ").map_or("", |(_, counts)| counts);
        for part in counts.split("; ") {
            let Some((count, what)) = part.split_once(' ') else { continue };
            let Ok(count) = count.parse::<usize>() else { continue };
            match what {
                "passed" => self.passed += count,
                "failed" => self.failed += count,
                "ignored" => self.ignored += count,
                "filtered out" => self.filtered += count,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(text: &str) -> Outcome {
        let mut outcome = Outcome::default();
        text.lines().for_each(|line| outcome.line(line));
        outcome
    }

    #[test]
    fn counts_come_from_the_summary_and_names_from_the_lines() {
        let text = "running 4 tests\n\
            test a::b ... ok\n\
            test a::c - should panic ... FAILED\n\
            test a::d ... ignored, needs a printer\n\
            test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 1 filtered out; finished in 0.00s\n";
        let expected = Outcome {
            passed: 1,
            failed: 1,
            ignored: 1,
            filtered: 1,
            complete: true,
            failed_names: vec!["a::c".into()],
            ignored_names: vec!["a::d".into()],
        };
        assert_eq!(outcome(text), expected);
    }

    #[test]
    fn a_suite_that_dies_has_no_summary() {
        assert!(!outcome("running 2 tests\ntest a ... ok\n").complete);
    }

    #[test]
    fn several_summaries_add_up() {
        let line = "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s\n";
        assert_eq!(outcome(&line.repeat(3)).passed, 6);
    }
}
