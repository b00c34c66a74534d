//! docs/upstream.md against the tests: the tests it names exist, and every test of the upstream suite is named.

use std::collections::BTreeSet;

/// What does not fit: `list` names no such function, or a test among `sources` is not in `list`. A source is a path and its
/// text.
pub(super) fn mismatches<'a>(
    list: &str,
    functions: &BTreeSet<&str>,
    suite: impl Iterator<Item = &'a str>,
) -> Vec<String> {
    let named: BTreeSet<&str> = list.lines().filter(|line| line.starts_with('|')).flat_map(names).collect();
    let mut mismatches: Vec<String> =
        named.difference(functions).map(|name| format!("names {name}, which is no test")).collect();
    let tests: BTreeSet<&str> = suite.flat_map(tests).collect();
    mismatches.extend(tests.difference(&named).map(|name| format!("lacks the test {name}")));
    mismatches
}

/// Names between backquotes.
fn names(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// The names of the functions right below `#[test]`.
fn tests(text: &str) -> Vec<&str> {
    let pairs = text.lines().zip(text.lines().skip(1));
    let below = pairs.filter(|(attribute, _)| attribute.trim() == "#[test]");
    below.filter_map(|(_, line)| line.trim().strip_prefix("fn ")?.split('(').next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_directions_are_held_against_each_other() {
        let list = "`in_text`\n| title | `is_there` |\n| other | see: `is_gone` |\n";
        let suite = ["#[test]\nfn is_there() {}\nfn helper() {}\n    #[test]\n    fn is_new() {}\n"];
        assert_eq!(
            mismatches(list, &BTreeSet::from(["is_there", "is_new"]), suite.into_iter()),
            ["names is_gone, which is no test", "lacks the test is_new"]
        );
    }
}
