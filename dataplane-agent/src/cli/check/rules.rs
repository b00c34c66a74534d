//! Rules that kube-proxy left in netfilter.

use std::{
    io,
    process::{Command, Stdio},
};

use super::Finding;

/// The name of the check.
const CHECK: &str = "kube-proxy";

/// Looks for kube-proxy's rules with the tools that are installed.
pub(super) fn findings() -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut asked = Vec::new();
    for tool in ["iptables-legacy-save", "iptables-nft-save", "ip6tables-legacy-save", "ip6tables-nft-save"] {
        if let Some(text) = output(tool, &[]) {
            asked.push(tool);
            findings.extend(iptables(tool, &text));
        }
    }
    if let Some(text) = output("nft", &["list", "tables"]) {
        asked.push("nft");
        findings.extend(nftables(&text));
    }
    if !findings.is_empty() {
        return findings;
    }
    vec![Finding::ok(
        CHECK,
        match asked.len() {
            0 => "not looked for: neither iptables nor nft is installed".to_owned(),
            _ => format!("no rules of it ({})", asked.join(", ")),
        },
    )]
}

/// What a tool prints; `None` when it is not there or fails, as legacy tools do on kernels without legacy tables.
fn output(tool: &str, args: &[&str]) -> Option<String> {
    let run = |tool: &str| Command::new(tool).args(args).stdin(Stdio::null()).stderr(Stdio::null()).output();
    let output = match run(tool) {
        // Not in the search path of users.
        Err(error) if error.kind() == io::ErrorKind::NotFound => run(&format!("/usr/sbin/{tool}")),
        output => output,
    };
    let output = output.ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn iptables(tool: &str, saved: &str) -> Option<Finding> {
    // `KUBE-FIREWALL`, `KUBE-KUBELET-CANARY` and `KUBE-IPTABLES-HINT` are the kubelet's.
    let chains = saved
        .lines()
        .filter_map(|line| line.strip_prefix(':')?.split(' ').next())
        .filter(|chain| ["KUBE-SERVICES", "KUBE-SVC-", "KUBE-SEP-"].iter().any(|prefix| chain.starts_with(prefix)))
        .count();
    (chains > 0).then(|| left(&format!("{chains} of its chains in {tool}")))
}

fn nftables(tables: &str) -> Option<Finding> {
    let tables: Vec<_> = tables.lines().filter(|line| line.trim().ends_with(" kube-proxy")).map(str::trim).collect();
    (!tables.is_empty()).then(|| left(&format!("nftables has {}", tables.join(", "))))
}

fn left(what: &str) -> Finding {
    Finding::warning(
        CHECK,
        format!("its rules are there ({what})"),
        "stop kube-proxy, then run `kube-proxy --cleanup` once on this node",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_of_kube_proxy_are_told_from_those_of_the_kubelet() {
        let kubelet = "*mangle\n:KUBE-KUBELET-CANARY - [0:0]\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n";
        assert_eq!(iptables("iptables-save", kubelet), None);
        let proxy = "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-ABC - [0:0]\n-A KUBE-SERVICES -j KUBE-SVC-ABC\nCOMMIT\n";
        assert_eq!(
            iptables("iptables-nft-save", proxy).unwrap().found,
            "its rules are there (2 of its chains in iptables-nft-save)"
        );
    }

    #[test]
    fn tables_of_kube_proxy_are_found() {
        assert_eq!(nftables("table inet filter\n"), None);
        assert_eq!(
            nftables("table inet filter\ntable ip kube-proxy\ntable ip6 kube-proxy\n").unwrap().found,
            "its rules are there (nftables has table ip kube-proxy, table ip6 kube-proxy)"
        );
    }
}
