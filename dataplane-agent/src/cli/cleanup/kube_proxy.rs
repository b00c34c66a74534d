//! `sluice cleanup --kube-proxy`: removes the rules that kube-proxy left behind, what its IPVS mode adds to them, and nothing else.

mod ipvs;
mod rules;

use std::{
    io::{self, Write as _},
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, bail};
use serde::Serialize;

use self::rules::Plan;

/// The tools that print and change rules, by family; those of one kernel interface each, where the plain name may be either.
const IPTABLES: [(&str, [&str; 3]); 2] = [
    ("iptables", ["iptables-nft", "iptables-legacy", "iptables"]),
    ("ip6tables", ["ip6tables-nft", "ip6tables-legacy", "ip6tables"]),
];

/// kube-proxy's own nftables tables, each with everything in it.
const NFTABLES: [&str; 2] = ["ip kube-proxy", "ip6 kube-proxy"];

/// What was removed, and what else there is to know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// Chains of iptables, by the tool that removed them.
    pub chains: Vec<String>,
    /// Rules in other chains that jumped to them.
    pub jumps: Vec<String>,
    /// Tables of nftables.
    pub tables: Vec<String>,
    /// IP sets of its IPVS mode.
    pub sets: Vec<String>,
    /// Its device with the cluster IPs, of the same mode.
    pub devices: Vec<String>,
    /// Chains that stay, since rules of others need them.
    pub kept: Vec<String>,
    /// What stays because it could not be looked at, or may be somebody else's.
    pub missing: Vec<String>,
}

/// Removes the rules of the network namespace that this runs in; done twice, the second time finds nothing.
pub fn remove() -> anyhow::Result<Removed> {
    let mut removed = Removed::default();
    for (family, tools) in IPTABLES {
        let [specific @ .., plain] = tools;
        let mut found = false;
        for tool in specific {
            found |= remove_chains(tool, &mut removed)?;
        }
        // Old systems have one variant only, without a name of its own.
        if !found && !remove_chains(plain, &mut removed)? {
            removed.missing.push(format!("{family} is not installed: chains that it made, if there are any, stay"));
        }
    }
    remove_tables(&mut removed)?;
    ipvs::remove(&mut removed)?;
    Ok(removed)
}

/// Removes chains with `tool`; false when it is not installed.
fn remove_chains(tool: &str, removed: &mut Removed) -> anyhow::Result<bool> {
    let Some(saved) = run(&format!("{tool}-save"), &[], None)? else { return Ok(false) };
    let plan = Plan::of(&saved);
    if !plan.is_empty() {
        // In one transaction per table, and without touching what is not named.
        let restore = format!("{tool}-restore");
        run(&restore, &["--noflush", "--wait=10"], Some(&plan.restore()))?
            .with_context(|| format!("{restore} is not installed, though {tool}-save is"))?;
    }
    let name = |(table, text): (&str, &str)| format!("{tool} {table}: {text}");
    removed.chains.extend(plan.chains().map(name));
    removed.jumps.extend(plan.jumps().map(name));
    removed.kept.extend(plan.kept().map(name));
    Ok(true)
}

fn remove_tables(removed: &mut Removed) -> anyhow::Result<()> {
    let Some(tables) = run("nft", &["list", "tables"], None)? else {
        removed
            .missing
            .push(format!("nft is not installed: the tables {}, if there are any, stay", NFTABLES.join(" and ")));
        return Ok(());
    };
    for table in NFTABLES {
        if tables.lines().any(|line| line.strip_prefix("table ") == Some(table)) {
            let words: Vec<_> = ["delete", "table"].into_iter().chain(table.split(' ')).collect();
            run("nft", &words, None)?;
            removed.tables.push(table.to_owned());
        }
    }
    Ok(())
}

/// What `tool` prints, given `input`; nothing when it is not installed.
fn run(tool: &str, arguments: &[&str], input: Option<&str>) -> anyhow::Result<Option<String>> {
    let mut command = Command::new(tool);
    command.args(arguments).env("LC_ALL", "C").stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    let mut child = match command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn() {
        Ok(child) => child,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("{tool} cannot be run")),
    };
    if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
        // A tool that ends early says why on stderr.
        match stdin.write_all(input.as_bytes()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error.into()),
            _ => {}
        }
    }
    let Output { status, stdout, stderr } = child.wait_with_output()?;
    if !status.success() {
        bail!(
            "{tool} {}failed: {}",
            arguments.iter().map(|a| format!("{a} ")).collect::<String>(),
            String::from_utf8_lossy(&stderr).trim()
        );
    }
    Ok(Some(String::from_utf8_lossy(&stdout).into_owned()))
}

/// A line for everything.
pub fn text(removed: &Removed) -> String {
    let Removed { chains, jumps, tables, sets, devices, kept, missing } = removed;
    let mut text = String::new();
    for (what, names) in [
        ("removed rule", jumps),
        ("removed chain", chains),
        ("removed nftables table", tables),
        ("removed IP set", sets),
        ("removed device", devices),
        ("kept chain, which other rules use,", kept),
        ("note:", missing),
    ] {
        text.extend(names.iter().map(|name| format!("{what} {name}\n")));
    }
    if [chains, jumps, tables, sets, devices].iter().all(|names| names.is_empty()) {
        text.push_str("nothing of kube-proxy to remove\n");
    }
    text
}
