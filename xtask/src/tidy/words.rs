//! Words that say nothing or that the glossary replaces.

use super::sources::Source;

/// File and module names that tell a reader nothing.
const EMPTY_NAMES: &[&str] =
    &["util", "utils", "helper", "helpers", "misc", "common", "info", "mgr", "manager", "types"];

/// Beginnings of function names that can be left out without loss.
const EMPTY_VERBS: &[&str] = &["get_", "do_", "handle_", "process_"];

/// Words in code with the glossary's word for them.
const REPLACED: &[(&str, &str)] = &[
    ("whitelist", "source ranges, or what is allowed"),
    ("blacklist", "what is refused"),
    ("svc", "service"),
    ("svcs", "services"),
    ("hep", "uplink"),
    ("vip_num", "service id"),
    ("ctlb", "socket LB"),
    ("nodeport", "node_port, or NodePort in prose"),
];

pub(super) fn check(source: &Source, violations: &mut Vec<String>) {
    let stem = source.path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    if EMPTY_NAMES.contains(&stem) {
        violations.push(source.violation(1, &format!("the name `{stem}` says nothing: name what it holds")));
    }
    if source.path.starts_with("xtask/src/tidy") || source.path.ends_with("xtask/src/tidy.rs") {
        // The rules' own words.
        return;
    }
    for (line, code) in source.code() {
        if let Some(name) = code.trim_start().trim_start_matches("pub ").strip_prefix("fn ") {
            if let Some(verb) = EMPTY_VERBS.iter().find(|verb| name.starts_with(**verb)) {
                violations
                    .push(source.violation(line, &format!("`{verb}` in a function's name says nothing: leave it out")));
            }
        }
        // Every other piece between quotes is text, where a name may be somebody else's.
        let outside_texts = code.split('"').step_by(2);
        let words = outside_texts.flat_map(|code| code.split(|c: char| !c.is_alphanumeric() && c != '_'));
        for (word, instead) in words.filter_map(|word| REPLACED.iter().find(|(replaced, _)| *replaced == word)) {
            violations.push(source.violation(line, &format!("`{word}` is not a word of the glossary: say {instead}")));
        }
    }
}
