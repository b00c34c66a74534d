//! Packets that a program routes itself: NodePorts with a remote backend, over a real interface and routing table.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use dataplane_common::{DropReason, FrontendKind, Protocol, conntrack::TcpFlags, map::local_addr};
use dataplane_tests::{
    harness::{Action, Harness, Hook, Target},
    leftovers,
    netns::Netns,
    packet::{Packet, Parsed},
    topology::IpVersion,
};

/// The interface's MTU.
const MTU: u16 = 1300;

struct Router {
    netns: Netns,
    uplink: u32,
}

/// A node with an uplink, a route to the other node's pods, and a neighbour for it and for the client.
fn router() -> Result<Router> {
    let netns = Netns::create(&format!("{}-router", leftovers::unique_prefix()?))?;
    netns.sysctls(&["ipv4/ip_forward=1", "ipv6/conf/all/forwarding=1", "ipv6/conf/default/accept_dad=0"])?;
    netns.ip(&format!(
        "link add up0 mtu {MTU} type veth peer name far0
         link set far0 up
         link set up0 up
         addr add 172.20.0.10/24 dev up0
         addr add fd20::a/64 dev up0 nodad
         neigh add 172.20.0.11 lladdr 02:00:00:00:00:0b dev up0
         neigh add fd20::b lladdr 02:00:00:00:00:0b dev up0
         neigh add 172.20.0.200 lladdr 02:00:00:00:00:c8 dev up0
         neigh add fd20::c8 lladdr 02:00:00:00:00:c8 dev up0
         route add 10.244.1.0/24 via 172.20.0.11
         route add fd44:0:0:1::/64 via fd20::b
        "
    ))?;
    let uplink = netns.run(|| nix::net::if_::if_nametoindex("up0"))??;
    Ok(Router { netns, uplink })
}

struct Cast {
    client: SocketAddr,
    node: IpAddr,
    node_port: SocketAddr,
    remote: SocketAddr,
}

fn cast(version: IpVersion) -> Result<Cast> {
    let (client, node_port, remote) = match version {
        IpVersion::V4 => ("172.20.0.200:50000", "172.20.0.10:30080", "10.244.1.10:8080"),
        IpVersion::V6 => ("[fd20::c8]:50000", "[fd20::a]:30080", "[fd44:0:0:1::a]:8080"),
    };
    let node_port: SocketAddr = node_port.parse()?;
    Ok(Cast { client: client.parse()?, node: node_port.ip(), node_port, remote: remote.parse()? })
}

/// Runs `check` for every family and protocol with a NodePort whose only backend is on another node.
fn each(check: impl Fn(&Harness, &Router, &Cast, Protocol) -> Result<()> + Sync) -> Result<()> {
    let router = router()?;
    for version in IpVersion::BOTH {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let cast = cast(version)?;
            Harness::with(|harness| {
                harness.put_local_addr(cast.node, local_addr::NODE_PORT)?;
                harness.put_snat_addr(router.uplink, cast.node)?;
                let target = Target { addr: cast.remote, local: false };
                harness.add_frontend(FrontendKind::NodePort, protocol, cast.node_port, &[target])?;
                check(harness, &router, &cast, protocol)
            })
            .with_context(|| format!("{version} {protocol}"))?;
        }
    }
    Ok(())
}

impl Router {
    fn receives(&self, harness: &Harness, packet: &Packet, action: Action) -> Result<Parsed> {
        let frame = packet.frame()?;
        let outcome = self.netns.run(|| harness.run_on(self.uplink, Hook::FromUplink, &frame))??;
        ensure!(outcome.action == action, "{:?}, expected {action:?}; drops {:?}", outcome.action, harness.drops()?);
        outcome.parsed()
    }

    fn redirects(&self, harness: &Harness, packet: &Packet) -> Result<Packet> {
        self.receives(harness, packet, Action::Redirect)?.transport()
    }
}

#[test]
fn p34_a_remote_backend_gets_the_nodes_address_and_the_client_its_own_node_port() -> Result<()> {
    each(|harness, router, cast, protocol| {
        let sent = Packet::first(protocol, cast.client, cast.node_port);
        let out = router.redirects(harness, &sent)?;
        assert_eq!(out.dst, cast.remote);
        assert_eq!(out.src.ip(), cast.node);
        assert!((12_288..28_672).contains(&out.src.port()), "{} is none of the ports for SNAT", out.src);
        assert_eq!(out.hop_limit, sent.hop_limit - 1, "this node is a hop");

        let answer = out.answer();
        let back = router.redirects(harness, &answer)?;
        assert_eq!((back.src, back.dst), (cast.node_port, cast.client));
        let again = router.redirects(harness, &sent.with_flags(TcpFlags::ACK))?;
        assert_eq!(again.src, out.src, "the same flow keeps its port");
        Ok(())
    })
}

#[test]
fn p34_two_clients_with_the_same_port_get_different_ports() -> Result<()> {
    each(|harness, router, cast, protocol| {
        let mut ports = std::collections::BTreeSet::new();
        for client in 0..200 {
            let from = SocketAddr::new(cast.client.ip(), 50_000 + client);
            ports.insert(router.redirects(harness, &Packet::first(protocol, from, cast.node_port))?.src.port());
        }
        assert_eq!(ports.len(), 200);
        Ok(())
    })
}

#[test]
fn a_packet_too_large_for_the_way_is_answered_with_the_mtu() -> Result<()> {
    each(|harness, router, cast, protocol| {
        let small = Packet::first(protocol, cast.client, cast.node_port);
        router.redirects(harness, &small)?;
        let large = small.with_flags(TcpFlags::ACK).with_payload(&[0x5a; 1400]);
        let Parsed::Icmp(icmp) = router.receives(harness, &large, Action::Redirect)? else {
            anyhow::bail!("no ICMP error");
        };
        // RFC 792 "fragmentation needed", RFC 4443 "packet too big".
        assert_eq!((icmp.kind, icmp.code), if cast.node.is_ipv4() { (3, 4) } else { (2, 0) });
        assert_eq!(icmp.dst, cast.client.ip());
        assert_eq!(icmp.about, large.frame()?[14..14 + icmp.about.len()], "the packet as the client sent it");
        assert_eq!(harness.drops()?.get(&DropReason::TooBig), Some(&1));
        Ok(())
    })
}

#[test]
fn a_packet_whose_hop_limit_ends_here_is_answered_with_time_exceeded() -> Result<()> {
    each(|harness, router, cast, protocol| {
        let last = Packet { hop_limit: 1, ..Packet::first(protocol, cast.client, cast.node_port) };
        let Parsed::Icmp(icmp) = router.receives(harness, &last, Action::Redirect)? else {
            anyhow::bail!("no ICMP error");
        };
        assert_eq!(icmp.kind, if cast.node.is_ipv4() { 11 } else { 3 });
        assert_eq!(harness.drops()?.get(&DropReason::HopLimit), Some(&1));
        Ok(())
    })
}
