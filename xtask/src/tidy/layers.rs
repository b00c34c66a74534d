//! Which module of the agent may import which: the arrows of docs/ARCHITECTURE.md.

use std::path::Path;

use super::sources::Source;

/// Each module with the modules that it may import. `cli` and the crate's roots may import everything.
const MODULES: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("tables", &["model"]),
    ("plan", &["model", "tables"]),
    ("maps", &["model", "tables", "plan"]),
    ("netlink", &["model"]),
    ("watch", &["model", "netlink"]),
    ("datapath", &["model", "maps", "netlink"]),
    // Leaves: what they show comes from the loop.
    ("health", &["model"]),
    ("metrics", &[]),
    ("sync", &["model", "tables", "plan", "maps", "watch"]),
];

/// Each foreign crate with the modules that may name it; `cli` may name all.
const FOREIGN: &[(&str, &[&str])] = &[
    ("kube", &["watch"]),
    ("k8s_openapi", &["watch"]),
    ("aya", &["maps", "datapath"]),
    ("aya_obj", &["maps", "datapath"]),
    ("rtnetlink", &["netlink", "watch", "datapath"]),
    ("tokio", &["netlink", "watch", "datapath", "sync", "health", "metrics"]),
    ("axum", &["health", "metrics"]),
    ("prometheus", &["metrics"]),
    ("clap", &["datapath"]),
    ("anyhow", &[]),
];

pub(super) fn check(source: &Source, violations: &mut Vec<String>) {
    let Some(module) = module_of(&source.path) else { return };
    let allowed = MODULES.iter().find(|(name, _)| *name == module).map(|(_, allowed)| *allowed);
    for (line, code) in source.code() {
        for imported in imported(code) {
            let known = MODULES.iter().any(|(name, _)| *name == imported) || imported == "cli";
            if known && imported != module && allowed.is_some_and(|allowed| !allowed.contains(&imported)) {
                let text = format!("`{module}` must not import `{imported}`: see the code map in docs/ARCHITECTURE.md");
                violations.push(source.violation(line, &text));
            }
        }
        for (name, users) in FOREIGN {
            let used = code.trim_start().starts_with(&format!("use {name}::")) || code.contains(&format!(" {name}::"));
            if used && module != "cli" && !users.contains(&module) {
                let mut users = users.to_vec();
                users.push("cli");
                let text = format!("`{module}` must not use the crate `{name}`: only {} may", users.join(", "));
                violations.push(source.violation(line, &text));
            }
        }
    }
}

/// The agent's top-level module that a file belongs to; `None` for other packages and the crate's roots.
fn module_of(path: &Path) -> Option<&str> {
    let inside = path.strip_prefix("dataplane-agent/src").ok()?;
    let first = Path::new(inside.iter().next()?).file_stem()?.to_str()?;
    (first != "main" && first != "lib").then_some(first)
}

/// The modules that a line names after `crate::`, in the braced form too.
fn imported(code: &str) -> Vec<&str> {
    let mut names = Vec::new();
    for (_, rest) in code.match_indices("crate::").map(|(at, found)| code.split_at(at + found.len())) {
        let word = |text: &'_ str| text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
        match rest.strip_prefix('{') {
            Some(list) => {
                // Only names at the outer level of the braces are modules.
                let mut depth = 0_usize;
                let mut start = true;
                for (at, c) in list.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' => depth = depth.saturating_sub(1),
                        ',' if depth == 0 => start = true,
                        c if start && !c.is_whitespace() => {
                            names.push(&list[at..at + word(&list[at..])]);
                            start = false;
                        }
                        _ => {}
                    }
                }
            }
            None => names.push(&rest[..word(rest)]),
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_paths_and_in_braces() {
        assert_eq!(imported("use crate::tables::Tables;"), ["tables"]);
        assert_eq!(imported("use crate::{model::{Service, plan}, sync};"), ["model", "sync"]);
        assert_eq!(imported("fn f(a: crate::plan::Op, b: crate::maps::Maps)"), ["plan", "maps"]);
    }
}
