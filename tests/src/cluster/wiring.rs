//! Links, addresses, routes and kernel parameters of the cluster's namespaces.

use std::fmt::Write;

use anyhow::Result;

use super::{Node, Site};
use crate::{
    netns::Netns,
    topology::{self, Addresses, ROUTER, SERVICE_CIDRS, Topology, Wiring},
};

/// Addresses are usable at once, nothing is configured by router advertisements, and errors are always told.
const EVERYWHERE: &[&str] = &[
    "ipv6/conf/all/accept_dad=0",
    "ipv6/conf/default/accept_dad=0",
    "ipv6/conf/default/dad_transmits=0",
    "ipv6/conf/all/accept_ra=0",
    "ipv6/conf/default/accept_ra=0",
    "ipv6/conf/default/router_solicitations=0",
    // A node that does not know a service yet sends its client on to the router, which would be remembered.
    "ipv4/conf/all/accept_redirects=0",
    "ipv4/conf/default/accept_redirects=0",
    "ipv6/conf/all/accept_redirects=0",
    "ipv6/conf/default/accept_redirects=0",
    // By default one ICMP error a second for each destination: clients would wait for what they were not told.
    "ipv4/icmp_ratelimit=0",
    "ipv6/icmp/ratelimit=0",
];
const FORWARDING: &[&str] = &["ipv4/ip_forward=1", "ipv6/conf/all/forwarding=1", "ipv6/conf/default/forwarding=1"];

/// The MAC address of the node's side of a routed pod's veth pair, the same everywhere, as Calico does it.
const GATEWAY_MAC: &str = "ee:ee:ee:ee:ee:ee";
/// The same, for frames that are built by hand.
pub const ROUTED_GATEWAY: [u8; 6] = [0xee; 6];
/// The gateway of routed pods; nobody owns it, the node answers ARP in its place.
const GATEWAY_V4: &str = "169.254.1.1";
/// The gateway of routed pods; reached through a permanent neighbour entry.
const GATEWAY_V6: &str = "fe80::1";

/// The network between the nodes: a bridge, and a router that all unknown destinations are sent to.
///
/// The router refuses what goes to a service address: such a packet reaches it only when no node has translated it. So the
/// client of a deleted service learns at once that nothing is there, which on a real network depends on the network.
pub(super) fn fabric(prefix: &str) -> Result<Netns> {
    let netns = Netns::create(&format!("{prefix}-fabric"))?;
    netns.sysctls(EVERYWHERE)?;
    netns.sysctls(FORWARDING)?;
    let Addresses { v4, v6 } = ROUTER;
    let (services4, services6) = SERVICE_CIDRS;
    netns.ip(&format!(
        "link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0
         link set br0 up
         addr add {v4}/24 dev br0
         addr add {v6}/64 dev br0 nodad
         route add local {services4} dev lo
         route add local {services6} dev lo
        "
    ))?;
    Ok(netns)
}

/// Connects `netns` to the fabric by `eth0`.
pub(super) fn attach(fabric: &Netns, netns: &Netns, port: &str, addresses: Addresses) -> Result<()> {
    netns.sysctls(EVERYWHERE)?;
    let Addresses { v4, v6 } = addresses;
    fabric.ip(&format!(
        "link add up-{port} type veth peer name eth0 netns {}
         link set up-{port} master br0 up
        ",
        netns.name()
    ))?;
    netns.ip(&format!(
        "link set eth0 up
         addr add {v4}/24 dev eth0
         addr add {v6}/64 dev eth0 nodad
        "
    ))
}

/// Makes a namespace a node: uplink, default route, forwarding and, with [`Wiring::Bridge`], the pods' bridge.
pub(super) fn prepare_node(fabric: &Netns, node: &Node, topology: &Topology) -> Result<()> {
    let netns = node.host.netns();
    netns.sysctls(FORWARDING)?;
    // Strict (RFC 3704), as some distributions have it: what passes here passes with less, too.
    netns.sysctls(&["ipv4/conf/all/rp_filter=1", "ipv4/conf/default/rp_filter=1"])?;
    attach(fabric, netns, node.name(), node.host.addresses())?;
    let Addresses { v4, v6 } = ROUTER;
    let mut script = format!("route add default via {v4}\nroute add default via {v6}\n");
    if topology.wiring == Wiring::Bridge {
        let Addresses { v4, v6 } = topology::pod_gateway(node.number);
        write!(
            script,
            "link add cni0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0
             link set cni0 up
             addr add {v4}/24 dev cni0
             addr add {v6}/64 dev cni0 nodad
            "
        )?;
    }
    netns.ip(&script)
}

/// Connects a pod to its node by `eth0`; the node's side is called `veth-<pod>`.
pub(super) fn attach_pod(node: &Node, pod: &Site, topology: &Topology) -> Result<()> {
    let (host, inside) = (node.host.netns(), pod.netns());
    inside.sysctls(EVERYWHERE)?;
    let Addresses { v4, v6 } = pod.addresses();
    let (device, namespace) = (host_device(pod.name()), inside.name());
    match topology.wiring {
        Wiring::Routed => {
            host.ip(&format!("link add {device} address {GATEWAY_MAC} type veth peer name eth0 netns {namespace}"))?;
            host.sysctls(&[&format!("ipv4/conf/{device}/proxy_arp=1"), &format!("ipv4/neigh/{device}/proxy_delay=0")])?;
            inside.ip(&format!(
                "link set eth0 up
                 addr add {v4}/32 dev eth0
                 addr add {v6}/128 dev eth0 nodad
                "
            ))?;
            host.ip(&format!(
                "link set {device} up
                 route add {v4}/32 dev {device}
                 route add {v6}/128 dev {device}
                "
            ))?;
            inside.ip(&format!(
                "route add {GATEWAY_V4} dev eth0 scope link
                 route add default via {GATEWAY_V4} dev eth0
                 neigh replace {GATEWAY_V6} lladdr {GATEWAY_MAC} dev eth0 nud permanent
                 route add default via {GATEWAY_V6} dev eth0
                "
            ))?;
        }
        Wiring::Bridge => {
            let Addresses { v4: gateway4, v6: gateway6 } = topology::pod_gateway(node.number);
            host.ip(&format!(
                "link add {device} type veth peer name eth0 netns {namespace}
                 link set {device} master cni0 up
                "
            ))?;
            inside.ip(&format!(
                "link set eth0 up
                 addr add {v4}/24 dev eth0
                 addr add {v6}/64 dev eth0 nodad
                 route add default via {gateway4}
                 route add default via {gateway6}
                "
            ))?;
        }
    }
    Ok(())
}

/// The name of the node's side of a pod's veth pair, within the kernel's 15 characters.
pub(super) fn host_device(pod: &str) -> String {
    format!("veth-{}", &pod[..pod.len().min(10)])
}
