//! Who is measured: one line per contender.

use std::process::Command;

use anyhow::{Context, Result};

use crate::{binaries, mode::Mode};

/// Somebody who carries the load.
#[derive(Debug)]
pub struct Contender {
    /// What it is called in tables.
    pub name: &'static str,
    /// What it is.
    pub what: &'static str,
    /// How it is installed.
    pub kind: Kind,
}

/// How a contender is installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing: clients use the pod's own address.
    Direct,
    /// The same, with programs that do nothing at the hooks that sluice uses.
    Empty,
    /// `sluice agent` with these options.
    Sluice(&'static [&'static str]),
    /// The rules of kube-proxy's iptables mode.
    Iptables(Backend),
    /// The table of kube-proxy's nftables mode.
    Nftables,
}

/// What carries out iptables' rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// The kernel's nf_tables.
    Nft,
    /// The kernel's ip_tables.
    Legacy,
}

impl Backend {
    /// The program that installs rules.
    pub const fn program(self) -> &'static str {
        match self {
            Self::Nft => "iptables-nft-restore",
            Self::Legacy => "iptables-legacy-restore",
        }
    }
}

/// Plain routing.
pub const DIRECT: &str = "direct";
/// What a user gets without options.
pub const DEFAULT: &str = "sluice";
/// Packets only, through the host's stack.
pub const PACKET: &str = "sluice packet path";
/// NodePorts before the stack.
pub const XDP: &str = "sluice XDP";
/// The option that makes it so; the links need to carry what XDP sends then.
pub const NATIVE_XDP: &str = Mode::NATIVE_XDP;
/// The variants of iptables mode.
pub const IPTABLES: [&str; 2] = ["iptables (nft)", "iptables (legacy)"];
/// nftables mode.
pub const NFTABLES: &str = "nftables";

/// All of them, in the order of tables.
pub const CONTENDERS: &[Contender] = &[
    contender(DIRECT, "the pod's own address: plain routing, no netfilter, no agent", Kind::Direct),
    contender("empty programs", "the same, with programs that do nothing at sluice's hooks", Kind::Empty),
    contender(
        PACKET,
        "packets translated, then the host's stack: no bypass, no XDP, no sockets translated",
        Kind::Sluice(&["--host-bypass=off", "--xdp=off", "--socket-lb=off"]),
    ),
    contender(DEFAULT, "as installed by default", Kind::Sluice(&[])),
    contender("sluice socket LB", "pods' sockets translated at connect time", Kind::Sluice(&["--socket-lb=all"])),
    contender(XDP, "NodePorts with remote backends handled by XDP", Kind::Sluice(&[NATIVE_XDP])),
    contender(IPTABLES[0], "kube-proxy's rules, iptables-nft", Kind::Iptables(Backend::Nft)),
    contender(IPTABLES[1], "kube-proxy's rules, iptables-legacy", Kind::Iptables(Backend::Legacy)),
    contender(NFTABLES, "kube-proxy's nftables table", Kind::Nftables),
];

const fn contender(name: &'static str, what: &'static str, kind: Kind) -> Contender {
    Contender { name, what, kind }
}

/// The contender `name`.
pub fn named(name: &str) -> Result<&'static Contender> {
    CONTENDERS.iter().find(|contender| contender.name == name).with_context(|| format!("no contender is called {name}"))
}

/// What can be measured with this build and on this machine.
#[derive(Debug)]
pub struct Abilities {
    options: String,
}

impl Abilities {
    /// Finds out.
    pub fn find() -> Result<Self> {
        let output =
            Command::new(binaries::sluice()?).args(["agent", "--help"]).output().context("cannot run sluice")?;
        Ok(Self { options: String::from_utf8_lossy(&output.stdout).into_owned() })
    }

    /// The agent's options among `wanted` that it has. One that it lacks is not needed to switch something off.
    pub fn options(&self, wanted: &[&'static str]) -> Option<Vec<&'static str>> {
        let mut options = Vec::new();
        for option in wanted {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            match (self.options.contains(name), value) {
                (true, _) => options.push(*option),
                (false, "off") => {}
                (false, _) => return None,
            }
        }
        Some(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_switched_off_is_off_and_what_cannot_be_switched_on_is_left_out() {
        let abilities = Abilities { options: "--socket-lb <WHOSE>\n".to_owned() };
        assert_eq!(abilities.options(&["--socket-lb=all", "--xdp=off"]), Some(vec!["--socket-lb=all"]));
        assert_eq!(abilities.options(&["--xdp=native"]), None);
    }
}
