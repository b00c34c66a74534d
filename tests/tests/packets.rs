//! A packet's life: what one program lets out is what the next one gets, both families, every checksum checked.

#[path = "packets/ports.rs"]
mod ports;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context, Result, ensure};
use dataplane_common::{
    Backend, DropReason, Frontend, FrontendKind, NodeConfig, Protocol, SlotRange, TcpFlags, addr::Addr as _,
    map::local_addr,
};
use dataplane_tests::{
    harness::{Action, Harness, Hook, Target},
    packet::{Packet, Parsed},
    topology::IpVersion,
};

/// The addresses of a test, of one family.
struct Cast {
    pod: SocketAddr,
    client: SocketAddr,
    service: SocketAddr,
    node_port: SocketAddr,
    local: Target,
    remote: Target,
    hairpin: IpAddr,
}

fn cast(version: IpVersion) -> Result<Cast> {
    let pick = |v4: &str, v6: &str| -> Result<SocketAddr> {
        Ok(if version == IpVersion::V4 { v4.parse()? } else { v6.parse()? })
    };
    Ok(Cast {
        pod: pick("10.244.0.10:40000", "[fd44::a]:40000")?,
        client: pick("172.20.0.200:50000", "[fd20::c8]:50000")?,
        service: pick("10.96.0.10:80", "[fd96::a]:80")?,
        node_port: pick("172.20.0.10:30080", "[fd20::a]:30080")?,
        local: Target { addr: pick("10.244.0.11:8080", "[fd44::b]:8080")?, local: true },
        remote: Target { addr: pick("10.244.1.10:8080", "[fd44:0:0:1::a]:8080")?, local: false },
        hairpin: match version {
            IpVersion::V4 => NodeConfig::DEFAULT_HAIRPIN4.to_ip(),
            IpVersion::V6 => NodeConfig::DEFAULT_HAIRPIN6.to_ip(),
        },
    })
}

const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// Runs `check` for every family and protocol, each on empty maps.
fn each(check: impl Fn(&mut Harness, Cast, Protocol) -> Result<()>) -> Result<()> {
    each_of(&PROTOCOLS, check)
}

/// The same for some protocols only.
fn each_of(protocols: &[Protocol], check: impl Fn(&mut Harness, Cast, Protocol) -> Result<()>) -> Result<()> {
    for version in IpVersion::BOTH {
        for protocol in protocols.iter().copied() {
            let cast = cast(version)?;
            Harness::with(|harness| check(harness, cast, protocol)).with_context(|| format!("{version} {protocol}"))?;
        }
    }
    Ok(())
}

/// The packet that leaves `hook`, which must let it pass.
fn passes(harness: &Harness, hook: Hook, packet: &Packet) -> Result<Packet> {
    leaves(harness, hook, packet, Action::Pass)
}

fn leaves(harness: &Harness, hook: Hook, packet: &Packet, action: Action) -> Result<Packet> {
    let outcome = harness.send(hook, packet)?;
    ensure!(outcome.action == action, "{hook:?}: {:?}, expected {action:?}: {packet:?}", outcome.action);
    outcome.packet().with_context(|| format!("{hook:?}"))
}

#[test]
fn p30_a_pods_packet_to_a_cluster_ip_and_its_answer() -> Result<()> {
    each(|harness, cast, protocol| {
        harness.add_frontend(FrontendKind::ClusterIp, protocol, cast.service, &[cast.remote])?;
        let sent = Packet::first(protocol, cast.pod, cast.service);
        let translated = passes(harness, Hook::FromPod, &sent)?;
        assert_eq!(translated, Packet { dst: cast.remote.addr, ..sent.clone() });
        // After the stack nothing is left to do.
        assert_eq!(passes(harness, Hook::ToUplink, &translated)?, translated);

        let answer = translated.answer();
        // Before the stack nothing is done yet: the node sees one consistent flow.
        assert_eq!(passes(harness, Hook::FromUplink, &answer)?, answer);
        assert_eq!(passes(harness, Hook::ToPod, &answer)?, Packet { src: cast.service, ..answer.clone() });

        let next = sent.with_flags(TcpFlags::ACK);
        assert_eq!(passes(harness, Hook::FromPod, &next)?.dst, cast.remote.addr);
        assert_eq!(harness.flow_count()?, 2, "one entry per direction");
        assert_eq!(harness.drops()?, BTreeMap::new());
        Ok(())
    })
}

#[test]
fn p30_a_node_port_with_a_local_backend_keeps_the_clients_address() -> Result<()> {
    each(|harness, cast, protocol| {
        harness.put_local_addr(cast.node_port.ip(), local_addr::NODE_PORT)?;
        harness.add_frontend(FrontendKind::NodePort, protocol, cast.node_port, &[cast.local])?;
        let sent = Packet::first(protocol, cast.client, cast.node_port);
        let translated = passes(harness, Hook::FromUplink, &sent)?;
        assert_eq!(translated, Packet { dst: cast.local.addr, ..sent });
        assert_eq!(passes(harness, Hook::ToPod, &translated)?, translated);

        let answer = translated.answer();
        assert_eq!(passes(harness, Hook::FromPod, &answer)?, answer);
        assert_eq!(passes(harness, Hook::ToUplink, &answer)?, Packet { src: cast.node_port, ..answer });
        Ok(())
    })
}

#[test]
fn p30_a_node_port_is_no_service_on_addresses_that_are_not_the_nodes() -> Result<()> {
    each(|harness, cast, protocol| {
        harness.add_frontend(FrontendKind::NodePort, protocol, cast.node_port, &[cast.local])?;
        for hook in [Hook::FromPod, Hook::FromUplink] {
            let sent = Packet::first(protocol, cast.client, cast.node_port);
            assert_eq!(passes(harness, hook, &sent)?, sent);
        }
        harness.put_local_addr(cast.node_port.ip(), local_addr::LOOPBACK)?;
        let sent = Packet::first(protocol, cast.client, cast.node_port);
        assert_eq!(passes(harness, Hook::FromUplink, &sent)?, sent, "loopback is for the node's own processes");
        Ok(())
    })
}

#[test]
fn p36_a_hairpin_goes_back_into_the_pod_and_so_does_the_answer() -> Result<()> {
    each(|harness, cast, protocol| {
        harness.add_frontend(FrontendKind::ClusterIp, protocol, cast.service, &[cast.local])?;
        let pod = SocketAddr::new(cast.local.addr.ip(), 40_000);
        let sent = Packet::first(protocol, pod, cast.service);
        let bounced = leaves(harness, Hook::FromPod, &sent, Action::Redirect)?;
        assert_eq!(bounced.dst, cast.local.addr);
        assert_eq!(bounced.src.ip(), cast.hairpin, "a pod drops its own address as a source");
        let answer = leaves(harness, Hook::FromPod, &bounced.answer(), Action::Redirect)?;
        assert_eq!((answer.src, answer.dst), (cast.service, pod));
        Ok(())
    })
}

#[test]
fn p31_without_endpoints_a_packet_is_answered_with_a_refusal() -> Result<()> {
    each(|harness, cast, protocol| {
        harness.put_local_addr(cast.node_port.ip(), local_addr::NODE_PORT)?;
        harness.add_frontend(FrontendKind::ClusterIp, protocol, cast.service, &[])?;
        harness.add_frontend(FrontendKind::NodePort, protocol, cast.node_port, &[])?;
        for (hook, from, to) in
            [(Hook::FromPod, cast.pod, cast.service), (Hook::FromUplink, cast.client, cast.node_port)]
        {
            let sent = Packet::first(protocol, from, to);
            let outcome = harness.send(hook, &sent)?;
            assert_eq!(outcome.action, Action::Redirect, "{hook:?}");
            match outcome.parsed()? {
                Parsed::Transport(refusal) => {
                    assert_eq!(protocol, Protocol::Tcp);
                    assert_eq!((refusal.src, refusal.dst), (to, from));
                    assert_eq!(refusal.flags, TcpFlags(TcpFlags::RST.0 | TcpFlags::ACK.0));
                }
                Parsed::Icmp(icmp) => {
                    assert_eq!(protocol, Protocol::Udp);
                    assert!(icmp.is_port_unreachable(), "{icmp:?}");
                    assert_eq!(icmp.dst, from.ip());
                    let original = &sent.frame()?[14..];
                    assert_eq!(icmp.about, original[..icmp.about.len()], "the client recognises its packet");
                    assert!(icmp.about.len() >= 28);
                }
            }
        }
        assert_eq!(harness.flow_count()?, 0);
        assert_eq!(harness.drops()?, BTreeMap::from([(DropReason::NoEndpoints, 2)]));
        Ok(())
    })
}

#[test]
fn p31_local_policy_without_local_endpoints_drops_outside_and_serves_inside() -> Result<()> {
    each(|harness, cast, protocol| {
        let inside = harness.add_frontend(FrontendKind::ClusterIp, protocol, cast.service, &[cast.remote])?;
        harness.put_local_addr(cast.node_port.ip(), local_addr::NODE_PORT)?;
        let frontend = Frontend {
            service: 7,
            inside,
            outside: SlotRange { first: 0, count: 0 },
            affinity_seconds: 0,
            kind: FrontendKind::NodePort as u8,
            flags: Frontend::DROP_OUTSIDE,
            pad: 0,
        };
        harness.put_frontend(protocol, cast.node_port, frontend)?;
        let outside = harness.send(Hook::FromUplink, &Packet::first(protocol, cast.client, cast.node_port))?;
        assert_eq!(outside.action, Action::Drop);
        assert_eq!(harness.drops()?, BTreeMap::from([(DropReason::NoLocalEndpoints, 1)]));
        let inside = passes(harness, Hook::FromPod, &Packet::first(protocol, cast.pod, cast.node_port))?;
        assert_eq!(inside.dst, cast.remote.addr);
        Ok(())
    })
}

#[test]
fn p08_tcp_and_udp_on_the_same_port_are_two_frontends() -> Result<()> {
    each(|harness, cast, protocol| {
        let other = if protocol == Protocol::Tcp { Protocol::Udp } else { Protocol::Tcp };
        harness.add_frontend(FrontendKind::ClusterIp, protocol, cast.service, &[cast.remote])?;
        let sent = Packet::first(other, cast.pod, cast.service);
        assert_eq!(passes(harness, Hook::FromPod, &sent)?, sent, "only {protocol} is served");
        harness.add_frontend(FrontendKind::ClusterIp, other, cast.service, &[cast.local])?;
        assert_eq!(passes(harness, Hook::FromPod, &sent)?.dst, cast.local.addr);
        let first = Packet::first(protocol, cast.pod, cast.service);
        assert_eq!(passes(harness, Hook::FromPod, &first)?.dst, cast.remote.addr);
        Ok(())
    })
}

#[test]
fn p26_ten_thousand_connections_choose_evenly() -> Result<()> {
    const CONNECTIONS: u32 = 10_000;
    // The 99.99 % quantile of the chi-squared distribution with 6 degrees of freedom: one false alarm in 10 000 runs.
    const LIMIT: f64 = 27.86;
    each(|harness, cast, protocol| {
        let target = |port| Target { addr: (cast.remote.addr.ip(), port).into(), local: false };
        let targets: Vec<Target> = (8001..=8007).map(target).collect();
        harness.add_frontend(FrontendKind::ClusterIp, protocol, cast.service, &targets)?;
        let mut chosen: BTreeMap<u16, u32> = BTreeMap::new();
        for connection in 0..CONNECTIONS {
            let port = 20_000 + u16::try_from(connection)?;
            let sent = Packet::first(protocol, (cast.pod.ip(), port).into(), cast.service);
            *chosen.entry(passes(harness, Hook::FromPod, &sent)?.dst.port()).or_default() += 1;
        }
        let expected = f64::from(CONNECTIONS) / 7.0;
        let chi_squared: f64 = chosen.values().map(|count| (f64::from(*count) - expected).powi(2) / expected).sum();
        assert_eq!(chosen.len(), 7, "{chosen:?}");
        assert!(chi_squared < LIMIT, "chi-squared {chi_squared:.1}: {chosen:?}");
        Ok(())
    })
}

#[test]
fn p50_p52_when_a_backend_goes_datagrams_move_and_connections_stay() -> Result<()> {
    each(|harness, cast, protocol| {
        let range = harness.add_frontend(FrontendKind::ClusterIp, protocol, cast.service, &[cast.remote])?;
        let sent = Packet::first(protocol, cast.pod, cast.service);
        let translated = passes(harness, Hook::FromPod, &sent)?;
        passes(harness, Hook::ToPod, &translated.answer())?;

        // As the agent does it: the new backend, the slot, and then the old backend's generation.
        harness.put_backend(9, 1, protocol, cast.local, 1)?;
        harness.put_slot(range.first, 9)?;
        harness.put_backend(1, 1, protocol, cast.remote, 2)?;
        let next = sent.with_flags(TcpFlags::ACK);
        let expected = if protocol == Protocol::Tcp { cast.remote } else { cast.local };
        assert_eq!(passes(harness, Hook::FromPod, &next)?.dst, expected.addr);
        // The old backend's late answer still finds its way, and a new connection goes to the new one.
        let late = passes(harness, Hook::ToPod, &translated.answer())?;
        ensure!(protocol == Protocol::Udp || late.src == cast.service, "the open connection's answers come back");
        let other = Packet::first(protocol, (cast.pod.ip(), 41_000).into(), cast.service);
        assert_eq!(passes(harness, Hook::FromPod, &other)?.dst, cast.local.addr);
        Ok(())
    })
}

#[test]
fn p50_the_same_backend_id_used_again_is_another_backend() -> Result<()> {
    each(|harness, cast, protocol| {
        harness.add_frontend(FrontendKind::ClusterIp, protocol, cast.service, &[cast.remote])?;
        let sent = Packet::first(protocol, cast.pod, cast.service);
        assert_eq!(passes(harness, Hook::FromPod, &sent)?.dst, cast.remote.addr);
        harness.put_backend(1, 1, protocol, cast.local, 3)?;
        // A retransmitted SYN of a flow that nobody has answered may be anywhere; a datagram must move.
        let again = passes(harness, Hook::FromPod, &sent)?;
        ensure!(protocol == Protocol::Tcp || again.dst == cast.local.addr, "went to {}", again.dst);
        Ok(())
    })
}

#[test]
fn what_is_no_service_passes_every_program_unchanged() -> Result<()> {
    each(|harness, cast, protocol| {
        harness.add_frontend(FrontendKind::ClusterIp, protocol, cast.service, &[cast.remote])?;
        let direct = Packet::first(protocol, cast.pod, cast.remote.addr).frame()?;
        // ARP who-has, an ICMPv6 neighbour solicitation's beginning, and an unknown ethertype.
        let arp = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &[0; 20]].concat();
        let unknown = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1, 0x88, 0xb5], &[7; 40]].concat();
        for hook in Hook::ALL {
            for frame in [&direct, &arp, &unknown] {
                let outcome = harness.run(hook, frame)?;
                assert_eq!(outcome.action, Action::Pass, "{hook:?}");
                assert_eq!(&outcome.frame, frame, "{hook:?}");
            }
        }
        assert_eq!(harness.flow_count()?, 0);
        Ok(())
    })
}

#[test]
fn a_slot_that_names_no_backend_drops_with_a_reason() -> Result<()> {
    each(|harness, cast, protocol| {
        let range = harness.add_frontend(FrontendKind::ClusterIp, protocol, cast.service, &[cast.remote])?;
        harness.put_slot(range.first, 77)?;
        assert!(!Backend::<[u32; 1]>::FREE.exists());
        let outcome = harness.send(Hook::FromPod, &Packet::first(protocol, cast.pod, cast.service))?;
        assert_eq!(outcome.action, Action::Drop);
        assert_eq!(harness.drops()?, BTreeMap::from([(DropReason::StaleSlot, 1)]));
        Ok(())
    })
}
