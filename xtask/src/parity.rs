//! `cargo xtask parity`: which tests show each behaviour that docs/parity.md lists, and each title of docs/upstream.md.

mod names;
mod rows;
mod titles;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::ExitCode,
};

use anyhow::{Context, Result, ensure};

use self::rows::Row;
use crate::{tidy::sources, workspace};

/// The list of behaviours, relative to the workspace.
const LIST: &str = "docs/parity.md";
/// The list of titles of Kubernetes' own tests, and where the tests after them are.
const TITLES: (&str, &str) = ("docs/upstream.md", "tests/tests/upstream");

pub(crate) fn run() -> Result<ExitCode> {
    let report = report()?;
    print!("{}", report.text);
    Ok(if report.is_complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Fails when a behaviour has neither test nor reason.
pub(crate) fn check() -> Result<()> {
    let report = report()?;
    ensure!(report.is_complete, "a behaviour has neither test nor reason: `cargo xtask parity` says which");
    Ok(())
}

/// What there is to say, and whether nothing is missing.
struct Report {
    text: String,
    is_complete: bool,
}

fn report() -> Result<Report> {
    let list = fs::read_to_string(workspace::root().join(LIST)).with_context(|| format!("cannot read {LIST}"))?;
    let rows = rows::parse(&list).with_context(|| LIST.to_owned())?;
    let sources = sources::read_all()?;
    let functions = || sources.iter().flat_map(|source| names::functions(&source.text));
    let mut report = judge(&rows, functions());
    let (list, folder) = TITLES;
    let text = fs::read_to_string(workspace::root().join(list)).with_context(|| format!("cannot read {list}"))?;
    let suite = sources.iter().filter(|source| source.path.starts_with(folder)).map(|source| &*source.text);
    for mismatch in titles::mismatches(&text, &functions().collect(), suite) {
        eprintln!("error: {list} {mismatch}");
        report.is_complete = false;
    }
    Ok(report)
}

/// Holds the rows against the names of all functions.
fn judge<'a>(rows: &[Row], functions: impl Iterator<Item = &'a str>) -> Report {
    let mut tests: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for function in functions {
        for id in names::ids(function) {
            tests.entry(id).or_default().insert(function);
        }
    }
    let mut text = String::new();
    let (mut covered, mut reasoned, mut missing) = (0, 0, 0);
    for row in rows {
        let tests: Vec<&str> = tests.remove(&row.id).unwrap_or_default().into_iter().collect();
        let (count, state, why) = match (tests.is_empty(), row.reason.is_empty()) {
            (false, _) => (&mut covered, "covered", tests.join(", ")),
            (true, false) => (&mut reasoned, "reason", row.reason.clone()),
            (true, true) => (&mut missing, "missing", row.behaviour.clone()),
        };
        *count += 1;
        text.push_str(&format!("{}\t{state}\t{why}\n", row.id));
    }
    // A misspelt row would otherwise count for nothing, quietly.
    for (id, functions) in &tests {
        for function in functions {
            eprintln!("error: {function} names {id}, which is no row of {LIST}");
        }
    }
    text.push_str(&format!("{covered} covered, {reasoned} reasoned, {missing} missing\n"));
    Report { text, is_complete: missing == 0 && tests.is_empty() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "\
# Title

| id | behaviour | why there is no test |
| --- | --- | --- |
| P01 | Fields | |
| P02 | Families | |
| N01 | Allow lists | not built yet |
";

    #[track_caller]
    fn check(source: &str, expected: &str, is_complete: bool) {
        let rows = rows::parse(LIST).unwrap();
        let report = judge(&rows, names::functions(source).into_iter());
        assert_eq!((report.text.as_str(), report.is_complete), (expected, is_complete));
    }

    #[test]
    fn a_row_is_covered_by_tests_or_reasoned_or_missing() {
        check(
            "#[test]\nfn p01_a_field_is_read() {}\n#[test]\nfn p01_another() {}\n",
            "P01\tcovered\tp01_a_field_is_read, p01_another\nP02\tmissing\tFamilies\nN01\treason\tnot built yet\n\
             1 covered, 1 reasoned, 1 missing\n",
            false,
        );
    }

    #[test]
    fn a_test_of_several_rows_covers_each() {
        check(
            "fn p01_p02_everything() {}\n",
            "P01\tcovered\tp01_p02_everything\nP02\tcovered\tp01_p02_everything\nN01\treason\tnot built yet\n\
             2 covered, 1 reasoned, 0 missing\n",
            true,
        );
    }

    #[test]
    fn a_test_goes_before_a_reason() {
        check(
            "fn p01_p02_n01_everything() {}\n",
            "P01\tcovered\tp01_p02_n01_everything\nP02\tcovered\tp01_p02_n01_everything\n\
             N01\tcovered\tp01_p02_n01_everything\n3 covered, 0 reasoned, 0 missing\n",
            true,
        );
    }

    #[test]
    fn a_test_that_names_no_row_is_an_error() {
        check(
            "fn p01_p02_p99_everything() {}\n",
            "P01\tcovered\tp01_p02_p99_everything\nP02\tcovered\tp01_p02_p99_everything\nN01\treason\tnot built yet\n\
             2 covered, 1 reasoned, 0 missing\n",
            false,
        );
    }

    #[test]
    fn the_list_itself_can_be_read() {
        let text = fs::read_to_string(workspace::root().join(super::LIST)).unwrap();
        assert!(rows::parse(&text).unwrap().len() > 50);
    }
}
