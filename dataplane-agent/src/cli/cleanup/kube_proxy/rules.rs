//! Which of the rules that `iptables-save` prints are kube-proxy's, and what `iptables-restore` has to read to remove them.

use std::collections::BTreeSet;

/// Chains of kube-proxy, in any of its modes and versions.
const CHAINS: [&str; 15] = [
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-FORWARD",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
    "KUBE-LOAD-BALANCER",
    "KUBE-MARK-DROP",
    "KUBE-MARK-MASQ",
    "KUBE-NODE-PORT",
    "KUBE-NODEPORTS",
    "KUBE-POSTROUTING",
    "KUBE-PROXY-CANARY",
    "KUBE-PROXY-FIREWALL",
    "KUBE-SERVICES",
    "KUBE-SOURCE-RANGES-FIREWALL",
    "KUBE-XLB",
];

/// Beginnings of the names of its chains for services and endpoints.
///
/// `KUBE-FIREWALL`, `KUBE-KUBELET-CANARY` and `KUBE-IPTABLES-HINT` are the kubelet's.
const PREFIXES: [&str; 6] = ["KUBE-SVC-", "KUBE-SEP-", "KUBE-EXT-", "KUBE-FW-", "KUBE-SVL-", "KUBE-XLB-"];

/// Chains that the marks of another are for.
const MARKS: [(&str, &str); 1] = [("KUBE-MARK-MASQ", "KUBE-POSTROUTING")];

/// What is to be removed, table by table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    tables: Vec<Table>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Table {
    name: String,
    /// kube-proxy's chains, in the order of their names.
    chains: BTreeSet<String>,
    /// Rules in other chains that jump to them, as `iptables-save` writes them after `-A`.
    jumps: Vec<String>,
    /// Chains that stay.
    kept: BTreeSet<String>,
}

/// A rule as `iptables-save` writes it.
struct Rule<'a> {
    chain: &'a str,
    target: Option<&'a str>,
    /// Everything after `-A`.
    text: &'a str,
}

impl Plan {
    /// What is to be removed of the rules that `iptables-save` printed.
    pub(super) fn of(saved: &str) -> Self {
        let mut tables = Vec::new();
        let mut lines = saved.lines();
        while let Some(line) = lines.next() {
            let Some(name) = line.strip_prefix('*') else { continue };
            let inside: Vec<_> = lines.by_ref().take_while(|line| *line != "COMMIT").collect();
            let table = Table::of(name.trim_end(), &inside);
            if !table.chains.is_empty() || !table.kept.is_empty() {
                tables.push(table);
            }
        }
        Self { tables }
    }

    /// Whether there is nothing to remove.
    pub(super) fn is_empty(&self) -> bool {
        self.tables.iter().all(|table| table.chains.is_empty())
    }

    /// What `iptables-restore --noflush` has to read.
    pub(super) fn restore(&self) -> String {
        let mut text = String::new();
        for Table { name, chains, jumps, .. } in self.tables.iter().filter(|table| !table.chains.is_empty()) {
            text.push_str(&format!("*{name}\n"));
            // Naming a chain empties it, so that none is in another's way when they go.
            text.extend(chains.iter().map(|chain| format!(":{chain} - [0:0]\n")));
            text.extend(jumps.iter().map(|rule| format!("-D {rule}\n")));
            text.extend(chains.iter().map(|chain| format!("-X {chain}\n")));
            text.push_str("COMMIT\n");
        }
        text
    }

    /// The chains to be removed, with their tables.
    pub(super) fn chains(&self) -> impl Iterator<Item = (&str, &str)> {
        self.tables.iter().flat_map(|table| table.chains.iter().map(|chain| (&*table.name, &**chain)))
    }

    /// The rules to be removed from other chains, with their tables.
    pub(super) fn jumps(&self) -> impl Iterator<Item = (&str, &str)> {
        self.tables.iter().flat_map(|table| table.jumps.iter().map(|rule| (&*table.name, &**rule)))
    }

    /// kube-proxy's chains that stay, with their tables.
    pub(super) fn kept(&self) -> impl Iterator<Item = (&str, &str)> {
        self.tables.iter().flat_map(|table| table.kept.iter().map(|chain| (&*table.name, &**chain)))
    }
}

impl Table {
    fn of(name: &str, lines: &[&str]) -> Self {
        let declared = lines.iter().filter_map(|line| line.strip_prefix(':')?.split(' ').next());
        let (mut chains, others): (BTreeSet<_>, BTreeSet<_>) = declared.partition(|chain| is_kube_proxys(chain));
        let rules: Vec<_> = lines.iter().filter_map(|line| Rule::parse(line)).collect();
        let is_built_in = |chain: &str| lines.iter().any(|line| is_policy_of(line, chain));

        // Somebody else's own chain that jumps to one of kube-proxy's, as CNI plugins do to have packets masqueraded: what
        // it needs stays, or its rules would break.
        let mut needed: Vec<&str> = rules
            .iter()
            .filter(|rule| others.contains(rule.chain) && !is_built_in(rule.chain))
            .filter_map(|rule| rule.target.filter(|target| chains.contains(target)))
            .collect();
        let mut kept = BTreeSet::new();
        while let Some(chain) = needed.pop() {
            if !chains.remove(chain) {
                continue;
            }
            kept.insert(chain.to_owned());
            let of_chain = rules.iter().filter(|rule| rule.chain == chain);
            needed.extend(of_chain.filter_map(|rule| rule.target));
            needed.extend(MARKS.iter().filter(|(mark, _)| *mark == chain).map(|(_, meaning)| *meaning));
        }
        let jumps = rules.iter().filter(|rule| !chains.contains(rule.chain) && !kept.contains(rule.chain));
        let jumps = jumps.filter(|rule| rule.target.is_some_and(|target| chains.contains(target)));
        let jumps = jumps.map(|rule| rule.text.to_owned()).collect();
        Self { name: name.to_owned(), jumps, kept, chains: chains.into_iter().map(str::to_owned).collect() }
    }
}

impl<'a> Rule<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let text = line.strip_prefix("-A ")?;
        let chain = text.split(' ').next()?;
        // The target stands last but for its options; a comment may hold anything between quotes.
        let mut words = unquoted(text);
        let target = words.by_ref().find(|word| matches!(*word, "-j" | "-g")).and_then(|_| words.next());
        Some(Self { chain, target, text })
    }
}

/// The words of a rule outside of quotes.
fn unquoted(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        loop {
            rest = rest.trim_start_matches(' ');
            if let Some(quoted) = rest.strip_prefix('"') {
                let mut escaped = false;
                let end = quoted.find(|c| {
                    let ends = c == '"' && !escaped;
                    escaped = c == '\\' && !escaped;
                    ends
                });
                rest = end.map_or("", |end| &quoted[end + 1..]);
                continue;
            }
            if rest.is_empty() {
                return None;
            }
            let (word, after) = rest.split_once(' ').unwrap_or((rest, ""));
            rest = after;
            return Some(word);
        }
    })
}

fn is_kube_proxys(chain: &str) -> bool {
    CHAINS.contains(&chain) || PREFIXES.iter().any(|prefix| chain.starts_with(prefix))
}

/// Whether `line` gives the built-in chain `chain` its policy; a user's chain has `-` in its place.
fn is_policy_of(line: &str, chain: &str) -> bool {
    let rest = line.strip_prefix(':').and_then(|rest| rest.strip_prefix(chain));
    rest.and_then(|rest| rest.strip_prefix(' ')).is_some_and(|policy| !policy.starts_with('-'))
}

#[cfg(test)]
mod tests;
