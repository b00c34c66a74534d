//! `cargo xtask tidy`: the house rules that neither the compiler nor a lint can see.

mod layers;
pub(crate) mod sources;
mod words;

use std::process::ExitCode;

use anyhow::{Result, bail};

use sources::Source;

/// A file that is longer is two files.
const MOST_LINES: usize = 600;
/// A file that is longer needs a reason.
const MANY_LINES: usize = 400;

pub(crate) fn run() -> Result<ExitCode> {
    check()?;
    Ok(ExitCode::SUCCESS)
}

/// Reads every source file of the workspace.
///
/// # Errors
/// With the number of violations; each of them has been shown.
pub(crate) fn check() -> Result<()> {
    let sources = sources::read_all()?;
    let mut violations: Vec<String> = Vec::new();
    for source in &sources {
        shape(source, &mut violations);
        words::check(source, &mut violations);
        layers::check(source, &mut violations);
    }
    for violation in &violations {
        eprintln!("{violation}");
    }
    if violations.is_empty() {
        return Ok(());
    }
    bail!("{} violations of the house rules (CONTRIBUTING.md says why they exist)", violations.len())
}

/// Begins with a sentence, and is short enough to be read at once.
fn shape(source: &Source, violations: &mut Vec<String>) {
    if !source.text.starts_with("//! ") {
        violations.push(source.violation(1, "begins without `//!`: say in one sentence what lives in this file"));
    }
    let lines = source.text.lines().count();
    if lines > MOST_LINES {
        violations
            .push(source.violation(lines, &format!("has {lines} lines, more than {MOST_LINES}: split it by concept")));
    } else if lines > MANY_LINES {
        eprintln!("warning: {} has {lines} lines; more than {MANY_LINES} needs a reason", source.path.display());
    }
    if source.path.ends_with("mod.rs") {
        violations.push(source.violation(1, "is a mod.rs: name it after its module, beside the folder"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(path: &str, text: &str, expected: &[&str]) {
        let source = Source { path: path.into(), text: text.into() };
        let mut violations = Vec::new();
        shape(&source, &mut violations);
        words::check(&source, &mut violations);
        layers::check(&source, &mut violations);
        assert_eq!(violations.len(), expected.len(), "{violations:#?}");
        for (violation, expected) in violations.iter().zip(expected) {
            assert!(violation.contains(expected), "{violation}");
        }
    }

    #[test]
    fn a_file_begins_with_its_sentence() {
        check("common/src/a.rs", "//! Ports.\n", &[]);
        check("common/src/a.rs", "use std::fmt;\n", &["common/src/a.rs:1: begins without"]);
    }

    #[test]
    fn a_file_of_more_than_600_lines_is_refused() {
        check("common/src/a.rs", &"//! Ports.\n".repeat(600), &[]);
        check("common/src/a.rs", &"//! Ports.\n".repeat(601), &["has 601 lines"]);
    }

    #[test]
    fn arrows_between_the_agents_modules_point_one_way() {
        let text = "//! A.\nuse crate::{model::Service, sync};\n";
        check("dataplane-agent/src/tables/service.rs", text, &["service.rs:2: `tables` must not import `sync`"]);
        check("dataplane-agent/src/cli/get.rs", text, &[]);
    }

    #[test]
    fn foreign_crates_stay_where_they_belong() {
        let text = "//! A.\nuse kube::Client;\n";
        check("dataplane-agent/src/model.rs", text, &["must not use the crate `kube`"]);
        check("dataplane-agent/src/watch/kube.rs", text, &[]);
    }

    #[test]
    fn tests_may_import_what_they_like() {
        check("dataplane-agent/src/model.rs", "//! A.\n#[cfg(test)]\nmod tests {\n    use crate::sync::run;\n}\n", &[]);
    }

    #[test]
    fn a_name_that_says_nothing_is_refused() {
        check("dataplane-agent/src/util.rs", "//! A.\n", &["says nothing"]);
        check("common/src/a.rs", "//! A.\nfn get_port() {}\n", &["`get_`"]);
        check("common/src/a.rs", "//! A.\nlet whitelist = 1;\n", &["`whitelist`"]);
    }
}
