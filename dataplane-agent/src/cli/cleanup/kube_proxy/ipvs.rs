//! What kube-proxy's IPVS mode leaves beside rules: sets that its rules refer to, a device with every cluster IP, and virtual
//! servers in the kernel.

use std::{fs, io};

use anyhow::Context as _;
use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkMessage},
};

use super::Removed;
use crate::{
    model::device::IPVS_DEVICE,
    netlink::{Netlink, ipset::Ipsets},
};

/// Its sets for IPv4, after `KUBE-`, and for IPv6, after `KUBE-6-`. Others (kube-router) have sets that begin like them.
const SETS: [&str; 17] = [
    "CLUSTER-IP",
    "EXTERNAL-IP",
    "EXTERNAL-IP-LOCAL",
    "HEALTH-CHECK-NODE-PORT",
    "IPVS-IPS",
    "LOAD-BALANCER",
    "LOAD-BALANCER-FW",
    "LOAD-BALANCER-LOCAL",
    "LOAD-BALANCER-SOURCE-CIDR",
    "LOAD-BALANCER-SOURCE-IP",
    "LOOP-BACK",
    "NODE-PORT-LOCAL-SCTP-HASH",
    "NODE-PORT-LOCAL-TCP",
    "NODE-PORT-LOCAL-UDP",
    "NODE-PORT-SCTP-HASH",
    "NODE-PORT-TCP",
    "NODE-PORT-UDP",
];

/// A set's longest name (`IPSET_MAXNAMELEN` without the final zero): kube-proxy cuts what is longer.
const LONGEST: usize = 31;

/// The virtual servers of a network namespace; there is no such file without IPVS.
const SERVERS: &str = "/proc/thread-self/net/ip_vs";

/// Removes the sets and the device, after the rules that refer to the sets.
///
/// Virtual servers stay: the kernel does not tell whose one is, and whoever else uses IPVS would lose theirs.
pub(super) fn remove(removed: &mut Removed) -> anyhow::Result<()> {
    remove_sets(removed)?;
    if remove_device().with_context(|| format!("{IPVS_DEVICE} cannot be removed"))? {
        removed.devices.push(IPVS_DEVICE.to_owned());
    }
    let servers = match fs::read_to_string(SERVERS) {
        Ok(text) => count(&text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error).context(SERVERS),
    };
    if servers > 0 {
        removed.missing.push(format!(
            "{servers} virtual servers of IPVS stay, since nobody can tell whose they are: if only kube-proxy used IPVS on \
             this node, `ipvsadm --clear` removes them, as does `kube-proxy --cleanup`"
        ));
    }
    Ok(())
}

fn remove_sets(removed: &mut Removed) -> anyhow::Result<()> {
    let mut sets = match Ipsets::open() {
        // A kernel without netfilter has none.
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return Ok(()),
        sets => sets.context("IP sets cannot be listed")?,
    };
    let names = sets.names().context("IP sets cannot be listed")?;
    for name in names.into_iter().filter(|name| is_kube_proxys(name)) {
        if sets.destroy(&name).with_context(|| format!("the IP set {name} cannot be removed"))? {
            removed.sets.push(name);
        } else {
            removed.missing.push(format!("the IP set {name} stays: something still refers to it"));
        }
    }
    removed.sets.sort();
    Ok(())
}

fn is_kube_proxys(name: &str) -> bool {
    let is = |prefix: &str, set: &str| {
        let full = format!("{prefix}{set}");
        name == &full[..full.len().min(LONGEST)]
    };
    SETS.iter().any(|set| is("KUBE-", set) || is("KUBE-6-", set))
}

/// Removes the device with its addresses; false when there is none.
fn remove_device() -> io::Result<bool> {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::IfName(IPVS_DEVICE.to_owned()));
    match Netlink::open()?.execute(RouteNetlinkMessage::DelLink(link), 0) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(false),
        done => done.map(|()| true),
    }
}

/// Virtual servers in the kernel's table: each has a line that begins with a protocol, or with a mark of the firewall.
fn count(table: &str) -> usize {
    let begins = |line: &&str| ["TCP ", "UDP ", "SCTP ", "FWM "].iter().any(|word| line.starts_with(word));
    table.lines().filter(begins).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_of_others_that_begin_alike_are_not_kube_proxys() {
        for name in
            ["KUBE-LOOP-BACK", "KUBE-6-LOOP-BACK", "KUBE-6-LOAD-BALANCER-SOURCE-CID", "KUBE-6-NODE-PORT-LOCAL-SCTP-HAS"]
        {
            assert!(is_kube_proxys(name), "{name}");
        }
        for name in ["KUBE-", "KUBE-SRC-ABCDEF", "KUBE-DST-ABCDEF", "KUBE-LOOP", "KUBE-LOOP-BACK-2", "cali40s:1"] {
            assert!(!is_kube_proxys(name), "{name}");
        }
    }

    #[test]
    fn virtual_servers_are_counted_and_real_ones_are_not() {
        let table = "IP Virtual Server version 1.2.1 (size=4096)\n\
                     Prot LocalAddress:Port Scheduler Flags\n  \
                       -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n\
                     TCP  0A600001:01BB rr  \n  \
                       -> AC140002:192B      Masq    1      0          0         \n\
                     UDP  [fd96:0000:0000:0000:0000:0000:0000:000a]:0035 rr  \n\
                     FWM  00000001 wlc  \n";
        assert_eq!(count(table), 3);
        assert_eq!(count(""), 0);
    }
}
