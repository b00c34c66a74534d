//! Which interfaces programs belong on, and which of the node's addresses take what.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use glob::Pattern;

use super::obstacles::Obstacles;
use crate::model::{
    device::{Interface, Passage, Role},
    node::LocalAddresses,
    settings::NodePortAddresses,
};

/// A network interface as netlink describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Whether its packets begin with an Ethernet header.
    pub ethernet: bool,
    /// Whether it is on a bus: a piece of hardware, or what a hypervisor shows as one.
    pub hardware: bool,
    /// Its addresses, in the kernel's order, which is the order of preference.
    pub addresses: Vec<Address>,
    /// Whether a default route leads through it.
    pub default_route: bool,
    /// Whether a route that somebody made leads through it.
    pub routed: bool,
    /// Index of the bridge or bond that it is a port of.
    pub controller: Option<u32>,
    /// Whether packets wait in a queue before they leave, which may hold them back to a rate.
    pub queued: bool,
}

/// What a [`Device`] is, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `lo`
    Loopback,
    /// One end of a cable.
    Veth {
        /// The other end is in another network namespace.
        peer_elsewhere: bool,
    },
    /// A bridge.
    Bridge,
    /// A device that only holds addresses.
    Dummy,
    /// A tunnel that carries Ethernet: VXLAN, Geneve.
    Tunnel,
    /// Any other.
    Other,
}

/// An address of a [`Device`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// Whether the kernel would choose it as a source: neither deprecated nor a failed duplicate.
    pub preferred: bool,
}

/// What the operator and the cluster say about interfaces.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// When there are any, these names alone are pods' interfaces.
    pub pods: Vec<Pattern>,
    /// When there are any, these names alone are uplinks.
    pub uplinks: Vec<Pattern>,
    /// The addresses that take NodePort traffic.
    pub node_port: NodePortAddresses,
    /// Addresses of this node's Node object, in its order.
    pub node_addresses: Vec<IpAddr>,
    /// Whether packets may go around the host's stack.
    pub host_bypass: HostBypass,
}

/// Whether packets of pods go around the host's stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HostBypass {
    /// As far as no one would miss them: between local pods without rules of netfilter at PREROUTING or FORWARD, beyond the node only
    /// if there are none at POSTROUTING either; nowhere with IPsec policies, and not where tc programs of others run.
    #[default]
    Auto,
    /// Always: whatever others would do to forwarded packets is not done to those of pods.
    On,
    /// Never.
    Off,
}

/// What becomes of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// It gets programs.
    Carries(Role),
    /// It would, but its packets have no Ethernet header, which the programs need.
    NotEthernet,
    /// It is none of our business.
    Neither,
}

/// Decides what `device` is.
///
/// Patterns come first. Without them an uplink carries one of the node's addresses or a default route, or is a tunnel that
/// routes lead through; a pod's interface is a veth whose other end is in another network namespace.
#[must_use]
pub fn classify(device: &Device, rules: &Rules) -> Class {
    let role = if matches!(device.kind, Kind::Loopback) {
        None
    } else if matches(&rules.uplinks, &device.name) {
        Some(Role::Uplink)
    } else if matches(&rules.pods, &device.name) {
        Some(Role::Pod)
    } else if is_uplink(device, rules) {
        rules.uplinks.is_empty().then_some(Role::Uplink)
    } else {
        (rules.pods.is_empty() && device.kind == Kind::Veth { peer_elsewhere: true }).then_some(Role::Pod)
    };
    match role {
        Some(_) if !device.ethernet => Class::NotEthernet,
        Some(role) => Class::Carries(role),
        None => Class::Neither,
    }
}

fn is_uplink(device: &Device, rules: &Rules) -> bool {
    let carries_node = device.addresses.iter().any(|address| rules.node_addresses.contains(&address.ip));
    match device.kind {
        // Nothing ever arrives through a dummy, whatever addresses it holds.
        Kind::Loopback | Kind::Dummy => false,
        Kind::Tunnel => carries_node || device.default_route || device.routed,
        Kind::Veth { .. } | Kind::Bridge | Kind::Other => carries_node || device.default_route,
    }
}

fn matches(patterns: &[Pattern], name: &str) -> bool {
    patterns.iter().any(|pattern| pattern.matches(name))
}

/// The interfaces among `devices` that get programs, and the names of those that cannot.
#[must_use]
pub fn interfaces(devices: &[Device], rules: &Rules) -> (Vec<Interface>, BTreeSet<String>) {
    let mut interfaces = Vec::new();
    let mut not_ethernet = BTreeSet::new();
    for device in devices {
        match classify(device, rules) {
            Class::Carries(role) => {
                let Device { index, hardware, .. } = *device;
                interfaces.push(Interface { index, name: device.name.clone(), role, hardware });
            }
            Class::NotEthernet => _ = not_ethernet.insert(device.name.clone()),
            Class::Neither => {}
        }
    }
    (interfaces, not_ethernet)
}

/// What the addresses of `devices` are for.
#[must_use]
pub fn local_addresses(devices: &[Device], rules: &Rules) -> LocalAddresses {
    let mut local = LocalAddresses::default();
    let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)];
    let of_devices = devices.iter().flat_map(|device| &device.addresses).map(|address| address.ip);
    let admitted = |ip: &IpAddr| rules.node_port.admit(*ip, &rules.node_addresses);
    for ip in of_devices.chain(loopback).filter(admitted) {
        if ip.is_loopback() {
            local.loopback.insert(ip);
        } else if is_global(ip) {
            local.node_port.insert(ip);
        }
    }
    let uplinks = devices.iter().filter(|device| classify(device, rules) == Class::Carries(Role::Uplink));
    local.snat = uplinks.map(|uplink| (uplink.index, snat(uplink, rules))).collect::<BTreeMap<_, _>>();
    local
}

/// The interfaces among `devices` that packets may pass between without the stack, where these `obstacles` are.
#[must_use]
pub fn passages(devices: &[Device], rules: &Rules, obstacles: &Obstacles) -> BTreeMap<u32, Passage> {
    let none = Obstacles::default();
    let obstacles = match rules.host_bypass {
        HostBypass::Off => return BTreeMap::new(),
        HostBypass::On => &none,
        HostBypass::Auto => obstacles,
    };
    if obstacles.netfilter.before || obstacles.ipsec {
        return BTreeMap::new();
    }
    let mut passages = BTreeMap::new();
    let bridge = |index| devices.iter().find(|device| device.index == index && device.kind == Kind::Bridge);
    for device in devices.iter().filter(|device| !obstacles.programs.contains(&device.index)) {
        let passage = match (classify(device, rules), device.controller) {
            (Class::Carries(Role::Pod), Some(controller)) => match bridge(controller) {
                Some(bridge) => {
                    passages.insert(bridge.index, Passage::Bridge);
                    Passage::Port(bridge.index)
                }
                None => continue,
            },
            // A queue on the host's side holds back what goes into the pod: it is not gone around.
            (Class::Carries(Role::Pod), None) if matches!(device.kind, Kind::Veth { .. }) && !device.queued => {
                Passage::Peer
            }
            (Class::Carries(Role::Pod), None) => Passage::Out,
            (Class::Carries(Role::Uplink), None) if !obstacles.netfilter.after => Passage::Out,
            _ => continue,
        };
        // What was found to be a bridge stays one.
        passages.entry(device.index).or_insert(passage);
    }
    passages
}

/// The addresses that SNAT uses on `uplink`, at most one per family: the node's own there, else the first, else the node's
/// own elsewhere.
fn snat(uplink: &Device, rules: &Rules) -> Vec<IpAddr> {
    let usable = || uplink.addresses.iter().filter(|address| address.preferred && is_global(address.ip)).map(|a| a.ip);
    let choose = |family: fn(&IpAddr) -> bool| {
        usable()
            .find(|ip| family(ip) && rules.node_addresses.contains(ip))
            .or_else(|| usable().find(family))
            .or_else(|| rules.node_addresses.iter().copied().find(family))
    };
    [choose(IpAddr::is_ipv4), choose(IpAddr::is_ipv6)].into_iter().flatten().collect()
}

/// Neither loopback nor link-local nor unspecified.
fn is_global(ip: IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !link_local && !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast()
}

#[cfg(test)]
mod tests;
