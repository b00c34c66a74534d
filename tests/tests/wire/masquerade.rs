//! Requests to cluster IPs that leave with one of the node's addresses, and whatever else a node routes itself.

use std::{collections::BTreeSet, net::SocketAddr};

use anyhow::{Context, Result, ensure};
use dataplane_common::{FrontendKind, NodeConfig, Protocol, TcpFlags, map::cidr};
use dataplane_tests::{
    harness::{Action, Harness, Hook, Target},
    packet::{Icmp, IcmpError, Packet, Parsed, fragment},
    router::Router,
    topology::IpVersion,
};

use crate::cast::{Cast, PROTOCOLS};

/// Runs `check` for every family and protocol, each on empty maps, with programs that have `flags`.
fn each(flags: u32, check: impl Fn(&mut Harness, &Router, Cast, Protocol) -> Result<()>) -> Result<()> {
    let router = Router::new()?;
    for version in IpVersion::BOTH {
        for protocol in PROTOCOLS {
            let cast = Cast::new(version)?;
            Harness::with_flags(flags, |harness| {
                router.declare(harness, cast.node_port.ip())?;
                check(harness, &router, cast, protocol)
            })
            .with_context(|| format!("{version} {protocol}"))?;
        }
    }
    Ok(())
}

/// Sends a request through `hook` and its answer through `back`: both go around the stack, and the backend sees the node.
fn goes_and_comes(
    (harness, router): (&Harness, &Router),
    cast: &Cast,
    sent: &Packet,
    target: Target,
    (hook, back): (Hook, Hook),
) -> Result<Packet> {
    let out = router.redirects(harness, hook, sent)?;
    ensure!(out.dst == target.addr, "went to {}", out.dst);
    ensure!(out.src.ip() == cast.node_port.ip(), "the backend sees {}", out.src);
    ensure!((12_288..28_672).contains(&out.src.port()), "{} is none of the ports for SNAT", out.src);
    ensure!(out.hop_limit == sent.hop_limit - 1, "this node is a hop");
    let answer = router.redirects(harness, back, &out.answer())?;
    ensure!((answer.src, answer.dst) == (sent.dst, sent.src), "{answer:?}");
    Ok(out)
}

#[test]
fn p35_a_cluster_ip_from_outside_is_masqueraded_whatever_the_backend() -> Result<()> {
    each(NodeConfig::MASQUERADE_OUTSIDE, |harness, router, cast, protocol| {
        let (pods, length) = cast.pods();
        harness.put_cidr(pods, length, cidr::POD)?;
        for (target, port) in [(cast.local, 81), (cast.remote, 82)] {
            let at: SocketAddr = (cast.service.ip(), port).into();
            harness.add_frontend(FrontendKind::ClusterIp, protocol, at, &[target])?;
            let back = if target.local { Hook::FromPod } else { Hook::FromUplink };
            let sent = Packet::first(protocol, cast.client, at);
            goes_and_comes((harness, router), &cast, &sent, target, (Hook::FromUplink, back))?;
            // A pod of another node keeps its address.
            let pod = Packet { src: (cast.remote.addr.ip(), 40_000).into(), ..sent };
            if target.local {
                let out = router.passes(harness, Hook::FromUplink, &pod)?;
                assert_eq!((out.src, out.dst), (pod.src, target.addr));
                let answer = out.answer();
                assert_eq!(router.passes(harness, Hook::ToUplink, &answer)?.src, at);
            }
        }
        Ok(())
    })
}

#[test]
fn p35_without_pod_cidrs_a_local_backend_sees_the_client() -> Result<()> {
    each(0, |harness, router, cast, protocol| {
        harness.add_frontend(FrontendKind::ClusterIp, protocol, cast.service, &[cast.local])?;
        let sent = Packet::first(protocol, cast.client, cast.service);
        assert_eq!(router.passes(harness, Hook::FromUplink, &sent)?.src, cast.client);
        Ok(())
    })
}

#[test]
fn p35_other_kinds_of_frontends_are_not_concerned() -> Result<()> {
    each(NodeConfig::MASQUERADE_OUTSIDE | NodeConfig::MASQUERADE_ALL, |harness, router, cast, protocol| {
        harness.add_frontend(FrontendKind::LoadBalancer, protocol, cast.service, &[cast.local])?;
        let sent = Packet::first(protocol, cast.client, cast.service);
        assert_eq!(router.passes(harness, Hook::FromUplink, &sent)?.src, cast.client);
        let sent = Packet::first(protocol, cast.pod, cast.service);
        assert_eq!(router.passes(harness, Hook::FromPod, &sent)?.src, cast.pod);
        Ok(())
    })
}

#[test]
fn p35_masquerade_all_hides_the_pods_too() -> Result<()> {
    each(NodeConfig::MASQUERADE_ALL, |harness, router, cast, protocol| {
        for (target, port) in [(cast.local, 81), (cast.remote, 82)] {
            let at = (cast.service.ip(), port).into();
            harness.add_frontend(FrontendKind::ClusterIp, protocol, at, &[target])?;
            let back = if target.local { Hook::FromPod } else { Hook::FromUplink };
            let sent = Packet::first(protocol, cast.pod, at);
            goes_and_comes((harness, router), &cast, &sent, target, (Hook::FromPod, back))?;
            let sent = Packet::first(protocol, cast.client, at);
            goes_and_comes((harness, router), &cast, &sent, target, (Hook::FromUplink, back))?;
        }
        Ok(())
    })
}

#[test]
fn p35_p46_a_process_of_the_node_itself_sees_the_client() -> Result<()> {
    each(NodeConfig::MASQUERADE_OUTSIDE | NodeConfig::MASQUERADE_ALL, |harness, router, cast, protocol| {
        let target = Target { addr: (cast.node_port.ip(), 6443).into(), local: true };
        harness.add_frontend(FrontendKind::ClusterIp, protocol, cast.service, &[target])?;
        for (client, hook, back) in
            [(cast.pod, Hook::FromPod, Hook::ToPod), (cast.client, Hook::FromUplink, Hook::ToUplink)]
        {
            let sent = Packet::first(protocol, client, cast.service);
            let arrived = router.passes(harness, hook, &sent)?;
            assert_eq!(arrived, Packet { dst: target.addr, ..sent });
            assert_eq!(router.passes(harness, back, &arrived.answer())?.src, cast.service);
        }
        Ok(())
    })
}

#[test]
fn p35_clients_with_the_same_port_get_ports_of_their_own() -> Result<()> {
    each(NodeConfig::MASQUERADE_ALL, |harness, router, cast, protocol| {
        harness.add_frontend(FrontendKind::ClusterIp, protocol, cast.service, &[cast.remote])?;
        let mut ports = BTreeSet::new();
        for number in 0..100 {
            for client in [cast.pod, cast.local.addr] {
                let from = SocketAddr::new(client.ip(), 40_000 + number);
                let out = router.redirects(harness, Hook::FromPod, &Packet::first(protocol, from, cast.service))?;
                let next = Packet::first(protocol, from, cast.service).with_flags(TcpFlags::ACK);
                assert_eq!(router.redirects(harness, Hook::FromPod, &next)?.src, out.src, "a flow keeps its port");
                ports.insert(out.src.port());
            }
        }
        assert_eq!(ports.len(), 200);
        Ok(())
    })
}

/// Sends every kind of error by `from` about a packet that went out, through `hook`: its sender must get it from `seen_from`,
/// quoting what it sent, but for the hop.
fn told(
    (harness, router): (&Harness, &Router),
    hook: Hook,
    (sent, out): (&Packet, &Packet),
    (from, seen_from): (std::net::IpAddr, std::net::IpAddr),
) -> Result<()> {
    let arrived = out.frame()?;
    let original = Packet { hop_limit: out.hop_limit, ..sent.clone() }.frame()?;
    for error in IcmpError::ALL {
        for quoted in [8, 18, 20, 4096] {
            let told = Icmp::about(error, from, &arrived, quoted)?;
            let parsed = router.meets(harness, hook, &told.frame()?, Action::Redirect)?;
            let Parsed::Icmp(got) = parsed else { anyhow::bail!("no ICMP error") };
            let about = original[14..][..told.about.len()].to_vec();
            let expected = Icmp { src: seen_from, dst: sent.src.ip(), about, ..told };
            ensure!(got == expected, "{hook:?} {error:?} {quoted}:\n{got:x?}\nexpected\n{expected:x?}");
        }
    }
    Ok(())
}

#[test]
fn p44_errors_about_masqueraded_flows_reach_their_senders() -> Result<()> {
    each(0, |harness, router, cast, protocol| {
        harness.add_frontend(FrontendKind::NodePort, protocol, cast.node_port, &[cast.remote])?;
        let sent = Packet::first(protocol, cast.client, cast.node_port).with_payload(&[0x5a; 333]);
        let out = router.redirects(harness, Hook::FromUplink, &sent)?;
        let request = (&sent, &out);
        told((harness, router), Hook::FromUplink, request, (cast.remote.addr.ip(), cast.node_port.ip()))?;
        told((harness, router), Hook::FromUplink, request, (cast.router, cast.router))?;

        let answer = out.answer();
        let back = router.redirects(harness, Hook::FromUplink, &answer)?;
        // For the backend the node is the client.
        told((harness, router), Hook::FromUplink, (&answer, &back), (cast.client.ip(), cast.node_port.ip()))?;
        told((harness, router), Hook::FromUplink, (&answer, &back), (cast.router, cast.router))
    })
}

#[test]
fn p44_the_nodes_own_socket_is_told_about_its_request() -> Result<()> {
    each(0, |harness, router, cast, protocol| {
        for (target, port) in [(cast.local, 81), (cast.remote, 82)] {
            // An address that the node has a route to, as it must have for the request to leave by the uplink.
            let at: SocketAddr = (cast.client.ip(), port).into();
            harness.add_frontend(FrontendKind::ExternalIp, protocol, at, &[target])?;
            let sent = Packet::first(protocol, (cast.node_port.ip(), 40_000).into(), at);
            let frame = sent.frame()?;
            let out = router.inside(|| harness.run_from_socket(router.uplink, Hook::ToUplink, &frame))??;
            ensure!(out.action == Action::Redirect, "{:?}", out.action);
            let told = Icmp::about(IcmpError::TooBig(1280), target.addr.ip(), &out.frame, 4096)?;
            // As its answer would be: handed in where the request went out, or on its way up already.
            let (hook, action) =
                if target.local { (Hook::FromPod, Action::Redirect) } else { (Hook::FromUplink, Action::Pass) };
            let Parsed::Icmp(got) = router.meets(harness, hook, &told.frame()?, action)? else {
                anyhow::bail!("no ICMP error")
            };
            assert_eq!(got, Icmp { src: at.ip(), about: frame[14..].to_vec(), ..told });
        }
        Ok(())
    })
}

#[test]
fn p45_fragments_to_a_remote_backend_leave_with_the_nodes_address() -> Result<()> {
    each(0, |harness, router, cast, protocol| {
        if protocol == Protocol::Tcp {
            return Ok(());
        }
        harness.add_frontend(FrontendKind::NodePort, protocol, cast.node_port, &[cast.remote])?;
        let redirected = |packet: &Packet, id| -> Result<Packet> {
            let mut out = Vec::new();
            for frame in fragment::cut(&packet.frame()?, id, 1200)? {
                let outcome = router.run(harness, Hook::FromUplink, &frame)?;
                ensure!(outcome.action == Action::Redirect, "{:?}, drops {:?}", outcome.action, harness.drops()?);
                out.push(outcome.frame);
            }
            Parsed::from_frame(&fragment::join(&out)?)?.transport()
        };
        let sent = Packet::udp(cast.client, cast.node_port).with_payload(&[0x5a; 4001]);
        let out = redirected(&sent, 3)?;
        assert_eq!((out.src.ip(), out.dst), (cast.node_port.ip(), cast.remote.addr));
        let answer = redirected(&out.answer(), 4)?;
        assert_eq!((answer.src, answer.dst, answer.payload), (sent.dst, sent.src, sent.payload));
        Ok(())
    })
}

#[test]
fn p44_what_cannot_be_answered_rightly_is_not_answered() -> Result<()> {
    each(0, |harness, router, cast, protocol| {
        if protocol == Protocol::Tcp {
            return Ok(());
        }
        harness.add_frontend(FrontendKind::NodePort, protocol, cast.node_port, &[cast.remote])?;
        let sent = Packet { hop_limit: 1, ..Packet::udp(cast.client, cast.node_port).with_payload(&[0x5a; 4001]) };
        let fragments = fragment::cut(&sent.frame()?, 3, 1200)?;
        let Parsed::Icmp(icmp) = router.meets(harness, Hook::FromUplink, &fragments[0], Action::Redirect)? else {
            anyhow::bail!("no ICMP error")
        };
        assert_eq!(icmp.about, fragments[0][14..][..icmp.about.len()]);
        assert!(icmp.says(IcmpError::TimeExceeded));
        // RFC 1122, 3.2.2 forbids errors about the others, and nobody would know those of IPv6 by what they quote.
        for frame in &fragments[1..] {
            assert_eq!(router.run(harness, Hook::FromUplink, frame)?.action, Action::Drop);
        }
        Ok(())
    })
}

#[test]
fn p42_sctp_from_outside_keeps_its_port_or_is_dropped() -> Result<()> {
    each(0, |harness, router, cast, protocol| {
        if protocol == Protocol::Tcp {
            return Ok(());
        }
        let at = SocketAddr::new(cast.node_port.ip(), cast.remote.addr.port());
        harness.add_frontend(FrontendKind::NodePort, Protocol::Sctp, at, &[cast.remote])?;
        let sent = Packet::sctp(cast.client, at);
        let out = router.redirects(harness, Hook::FromUplink, &sent)?;
        assert_eq!((out.src, out.dst), ((cast.node_port.ip(), cast.client.port()).into(), cast.remote.addr));
        let answer = router.redirects(harness, Hook::FromUplink, &out.answer())?;
        assert_eq!((answer.src, answer.dst), (at, cast.client));
        // Another client with the same port would look the same to the backend.
        let other = Packet { src: (cast.router, cast.client.port()).into(), ..sent };
        let outcome = router.run(harness, Hook::FromUplink, &other.frame()?)?;
        assert_eq!(outcome.action, Action::Drop);
        assert_eq!(harness.drops()?.get(&dataplane_common::DropReason::SctpPort), Some(&1));
        Ok(())
    })
}
