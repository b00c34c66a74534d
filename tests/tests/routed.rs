//! Packets that a program routes itself: NodePorts with a remote backend, over a real interface and routing table.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail, ensure};
use dataplane_common::{DropReason, FrontendKind, Protocol, TcpFlags};
use dataplane_tests::{
    harness::{Action, Harness, Hook, Target},
    packet::{
        Icmp, IcmpError, Packet, Parsed, fragment,
        options::{with_extension, with_options},
    },
    router::{Router, UPLINK_MTU},
    topology::IpVersion,
};

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
fn each(check: impl Fn(&mut Harness, &Router, &Cast, Protocol) -> Result<()> + Sync) -> Result<()> {
    each_of(&IpVersion::BOTH, check)
}

/// The same for some families only.
fn each_of(
    versions: &[IpVersion],
    check: impl Fn(&mut Harness, &Router, &Cast, Protocol) -> Result<()> + Sync,
) -> Result<()> {
    let router = Router::new()?;
    for version in versions.iter().copied() {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let cast = cast(version)?;
            Harness::with(|harness| {
                router.declare(harness, cast.node)?;
                let target = Target { addr: cast.remote, local: false };
                harness.add_frontend(FrontendKind::NodePort, protocol, cast.node_port, &[target])?;
                check(harness, &router, &cast, protocol)
            })
            .with_context(|| format!("{version} {protocol}"))?;
        }
    }
    Ok(())
}

fn redirects(router: &Router, harness: &Harness, packet: &Packet) -> Result<Packet> {
    router.redirects(harness, Hook::FromUplink, packet)
}

/// The ICMP error that the packet's sender gets.
fn complaint(router: &Router, harness: &Harness, packet: &Packet) -> Result<Icmp> {
    complaint_about(router, harness, &packet.frame()?)
}

/// The same about a frame, which must be quoted as it was sent.
fn complaint_about(router: &Router, harness: &Harness, frame: &[u8]) -> Result<Icmp> {
    icmp_about(router.meets(harness, Hook::FromUplink, frame, Action::Redirect)?, frame)
}

fn icmp_about(answer: Parsed, frame: &[u8]) -> Result<Icmp> {
    match answer {
        Parsed::Icmp(icmp) => {
            ensure!(icmp.about == frame[14..][..icmp.about.len()], "{icmp:x?}\nabout\n{frame:x?}");
            Ok(icmp)
        }
        other @ Parsed::Transport(_) => bail!("no ICMP error: {other:?}"),
    }
}

#[test]
fn p34_a_remote_backend_gets_the_nodes_address_and_the_client_its_own_node_port() -> Result<()> {
    each(|harness, router, cast, protocol| {
        let sent = Packet::first(protocol, cast.client, cast.node_port);
        let out = redirects(router, harness, &sent)?;
        assert_eq!(out.dst, cast.remote);
        assert_eq!(out.src.ip(), cast.node);
        assert!((12_288..28_672).contains(&out.src.port()), "{} is none of the ports for SNAT", out.src);
        assert_eq!(out.hop_limit, sent.hop_limit - 1, "this node is a hop");

        let answer = out.answer();
        let back = redirects(router, harness, &answer)?;
        assert_eq!((back.src, back.dst), (cast.node_port, cast.client));
        let again = redirects(router, harness, &sent.with_flags(TcpFlags::ACK))?;
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
            ports.insert(redirects(router, harness, &Packet::first(protocol, from, cast.node_port))?.src.port());
        }
        assert_eq!(ports.len(), 200);
        Ok(())
    })
}

#[test]
fn a_packet_too_large_for_the_way_is_answered_with_the_mtu() -> Result<()> {
    each(|harness, router, cast, protocol| {
        let small = Packet::first(protocol, cast.client, cast.node_port);
        redirects(router, harness, &small)?;
        let large = small.with_flags(TcpFlags::ACK).with_payload(&[0x5a; 1400]);
        let icmp = complaint(router, harness, &large)?;
        assert!(icmp.says(IcmpError::TooBig(UPLINK_MTU)), "{icmp:?}");
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
        let icmp = complaint(router, harness, &last)?;
        assert!(icmp.says(IcmpError::TimeExceeded), "{icmp:?}");
        assert_eq!(harness.drops()?.get(&DropReason::HopLimit), Some(&1));
        Ok(())
    })
}

/// Fragments that must not be cut again.
fn cut_for_good(frame: &[u8], id: u16) -> Result<Vec<Vec<u8>>> {
    fragment::cut(frame, id, 1400)?.iter().map(|frame| fragment::allow(frame, false)).collect()
}

/// What the stack and `to_uplink` make of `frame`, which `from_uplink` leaves to be cut.
fn cut_on_its_way(router: &Router, harness: &Harness, frame: &[u8], half: (SocketAddr, SocketAddr)) -> Result<Packet> {
    let passed = router.run(harness, Hook::FromUplink, frame)?;
    assert_eq!(passed.action, Action::Pass, "{:?}", harness.drops()?);
    let seen = passed.packet()?;
    assert_eq!((seen.src, seen.dst), half, "for the stack");
    let pieces = fragment::cut(&passed.frame, 7, 800)?;
    assert!(pieces.len() > 1);
    let mut sent = Vec::new();
    for piece in pieces {
        let out = router.run(harness, Hook::ToUplink, &piece)?;
        assert_eq!(out.action, Action::Pass, "{:?}", harness.drops()?);
        sent.push(out.frame);
    }
    Parsed::from_frame(&fragment::join(&sent)?)?.transport()
}

#[test]
fn p45_a_packet_that_may_be_cut_gets_its_destination_before_the_stack_and_its_source_behind_it() -> Result<()> {
    each_of(&[IpVersion::V4], |harness, router, cast, protocol| {
        let small = Packet::first(protocol, cast.client, cast.node_port);
        let out = redirects(router, harness, &small)?;
        let large = small.clone().with_flags(TcpFlags::ACK).with_payload(&[0x5a; 1400]);
        for frame in [large.frame()?, with_options(&large.frame()?, 2)?] {
            let frame = fragment::allow(&frame, true)?;
            let whole = cut_on_its_way(router, harness, &frame, (cast.client, cast.remote))?;
            assert_eq!((whole.src, whole.dst), (out.src, cast.remote));
            assert_eq!(whole.payload, large.payload);
        }
        let answer = Packet { flags: TcpFlags::ACK, ..out.answer() }.with_payload(&[0xa5; 1400]);
        let frame = fragment::allow(&answer.frame()?, true)?;
        let back = cut_on_its_way(router, harness, &frame, (cast.remote, cast.client))?;
        assert_eq!((back.src, back.dst), (cast.node_port, cast.client));
        assert_eq!(back.payload, answer.payload);
        assert_eq!(harness.drops()?.get(&DropReason::TooBig), None);
        // What fits goes on as before.
        assert_eq!(redirects(router, harness, &small.with_flags(TcpFlags::ACK))?.src, out.src);
        Ok(())
    })
}

#[test]
fn a_packet_to_be_cut_whose_tuple_behind_the_stack_is_anothers_is_answered_with_the_mtu() -> Result<()> {
    each_of(&[IpVersion::V4], |harness, router, cast, protocol| {
        let target = Target { addr: cast.remote, local: false };
        let other = SocketAddr::new(cast.node, 30_081);
        harness.add_frontend(FrontendKind::NodePort, protocol, other, &[target])?;
        let large = |to| -> Result<Vec<u8>> {
            let first = Packet::first(protocol, cast.client, to);
            redirects(router, harness, &first)?;
            fragment::allow(&first.with_flags(TcpFlags::ACK).with_payload(&[0x5a; 1400]).frame()?, true)
        };
        let (one, two) = (large(cast.node_port)?, large(other)?);
        assert_eq!(router.run(harness, Hook::FromUplink, &one)?.action, Action::Pass);
        assert!(complaint_about(router, harness, &two)?.says(IcmpError::TooBig(UPLINK_MTU)));
        assert_eq!(router.run(harness, Hook::FromUplink, &one)?.action, Action::Pass);
        assert_eq!(harness.drops()?.get(&DropReason::TooBig), Some(&1));
        Ok(())
    })
}

#[test]
fn p44_p45_a_first_fragment_too_large_for_the_way_is_answered_with_the_mtu() -> Result<()> {
    each(|harness, router, cast, protocol| {
        let sent = Packet::first(protocol, cast.client, cast.node_port).with_payload(&[0x5a; 2001]);
        let plain = sent.frame()?;
        for (id, frame) in (1..).zip([plain.clone(), with_options(&plain, 1)?, with_options(&plain, 10)?]) {
            let fragments = cut_for_good(&frame, id)?;
            let icmp = complaint_about(router, harness, &fragments[0])?;
            assert!(icmp.says(IcmpError::TooBig(UPLINK_MTU)), "{icmp:?}");
            assert_eq!((icmp.src, icmp.dst), (cast.node_port.ip(), cast.client.ip()));
            // The others fit, and no error is sent about those that do not.
            let later = router.run(harness, Hook::FromUplink, &fragments[1])?;
            assert_eq!(later.action, Action::Redirect, "{:?}", harness.drops()?);
            let again = cut_for_good(&sent.clone().with_payload(&[0x5a; 3001]).frame()?, id + 100)?;
            complaint_about(router, harness, &again[0])?;
            assert_eq!(router.run(harness, Hook::FromUplink, &again[1])?.action, Action::Drop);
        }
        assert_eq!(harness.drops()?.get(&DropReason::TooBig), Some(&9));
        Ok(())
    })
}

#[test]
fn p44_a_packet_with_options_is_answered_with_the_mtu_and_with_time_exceeded() -> Result<()> {
    each(|harness, router, cast, protocol| {
        let sent = Packet::first(protocol, cast.client, cast.node_port).with_payload(&[0x5a; 1400]);
        let last = Packet { hop_limit: 1, ..sent.clone() };
        for (packet, error) in [(&sent, IcmpError::TooBig(UPLINK_MTU)), (&last, IcmpError::TimeExceeded)] {
            let mut dressed = vec![with_options(&packet.frame()?, 1)?, with_options(&packet.frame()?, 10)?];
            if cast.client.is_ipv6() {
                let chain = [0, 43, 60].iter();
                dressed
                    .push(chain.into_iter().try_fold(packet.frame()?, |frame, kind| with_extension(&frame, *kind, 2))?);
            }
            for frame in dressed {
                let icmp = complaint_about(router, harness, &frame)?;
                assert!(icmp.says(error), "{icmp:?}");
                assert_eq!(icmp.dst, cast.client.ip());
            }
        }
        Ok(())
    })
}

#[test]
fn p44_what_a_device_has_joined_is_measured_by_the_segments_that_it_will_be_cut_into() -> Result<()> {
    each(|harness, router, cast, protocol| {
        let headers = if cast.client.is_ipv4() { 20 } else { 40 } + if protocol == Protocol::Tcp { 20 } else { 8 };
        let small = Packet::first(protocol, cast.client, cast.node_port);
        redirects(router, harness, &small)?;
        let fits = UPLINK_MTU - headers;
        let joined = small.with_flags(TcpFlags::ACK).with_payload(&vec![0x5a; 2 * usize::from(fits)]);
        let frame = joined.frame()?;
        let run = |segment| router.inside(|| harness.run_joined(router.uplink, Hook::FromUplink, &frame, segment));
        let whole = run(fits)??;
        assert_eq!(whole.action, Action::Redirect);
        assert_eq!(whole.packet()?.dst, cast.remote);
        assert_eq!(harness.drops()?.get(&DropReason::TooBig), None);
        let outcome = run(fits + 1)??;
        assert_eq!(outcome.action, Action::Redirect);
        let icmp = icmp_about(outcome.parsed()?, &frame)?;
        assert!(icmp.says(IcmpError::TooBig(UPLINK_MTU)), "{icmp:?}");
        assert_eq!(harness.drops()?.get(&DropReason::TooBig), Some(&1));
        Ok(())
    })
}
