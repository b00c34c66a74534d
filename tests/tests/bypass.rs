//! Packets that go around the host's stack, and all that must not.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use dataplane_common::{Device, FrontendKind, NodeConfig, Protocol, TcpFlags};
use dataplane_tests::{
    cluster::Cluster,
    expect::{self, eventually},
    harness::{Harness, Hook, Target},
    packet::Packet,
    router::{Router, UPLINK_MTU},
    scenario::Scenario,
    topology::{IpVersion, Wiring},
    traffic::{Ask, protocol::Transport},
};

#[path = "bypass/untranslated.rs"]
mod untranslated;

struct Cast {
    pod: SocketAddr,
    /// What the pod may claim to be: its route leads elsewhere.
    forged: SocketAddr,
    service: SocketAddr,
    remote: SocketAddr,
    local: SocketAddr,
    /// A pod that the node has never spoken to.
    unknown: SocketAddr,
}

fn cast(version: IpVersion) -> Result<Cast> {
    let pick = |v4: &str, v6: &str| if version == IpVersion::V4 { v4.parse() } else { v6.parse() };
    Ok(Cast {
        pod: pick("10.244.0.10:40000", "[fd44::a]:40000")?,
        forged: pick("10.244.1.10:40000", "[fd44:0:0:1::a]:40000")?,
        service: pick("10.96.0.10:80", "[fd96::a]:80")?,
        remote: pick("10.244.1.10:8080", "[fd44:0:0:1::a]:8080")?,
        local: pick("10.244.0.11:8080", "[fd44::b]:8080")?,
        unknown: pick("10.244.0.77:8080", "[fd44::77]:8080")?,
    })
}

/// Runs `check` for every family and protocol, on maps that let packets pass between the pod's interface and the uplink.
fn each(check: impl Fn(&mut Harness, &Router, &Cast, Protocol) -> Result<()> + Sync) -> Result<()> {
    let router = Router::new()?;
    for version in IpVersion::BOTH {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let cast = cast(version)?;
            Harness::with_flags(NodeConfig::HOST_BYPASS, |harness| {
                harness.forget_ways()?;
                harness.put_device(router.pod, Device { routed_as: router.pod, flags: Device::PEER })?;
                harness.put_device(router.uplink, Device { routed_as: router.uplink, flags: Device::TRANSMIT })?;
                check(harness, &router, &cast, protocol)
            })
            .with_context(|| format!("{version} {protocol}"))?;
        }
    }
    Ok(())
}

/// The packet that follows `first` on its way.
fn next(first: &Packet) -> Packet {
    if first.protocol == Protocol::Tcp { first.clone().with_flags(TcpFlags::ACK) } else { first.clone() }
}

fn serve(harness: &mut Harness, cast: &Cast, protocol: Protocol, backend: SocketAddr) -> Result<()> {
    let target = Target { addr: backend, local: backend.ip() != cast.remote.ip() };
    harness.add_frontend(FrontendKind::ClusterIp, protocol, cast.service, &[target])?;
    Ok(())
}

#[test]
fn p30_both_directions_are_translated_before_the_stack_and_lose_a_hop_as_behind_it() -> Result<()> {
    each(|harness, router, cast, protocol| {
        for (backend, answers_at) in [(cast.remote, Hook::FromUplink), (cast.local, Hook::FromPod)] {
            harness.reset()?;
            harness.forget_ways()?;
            harness.put_device(router.pod, Device { routed_as: router.pod, flags: Device::PEER })?;
            harness.put_device(router.uplink, Device { routed_as: router.uplink, flags: Device::TRANSMIT })?;
            serve(harness, cast, protocol, backend)?;
            let sent = Packet::first(protocol, cast.pod, cast.service);
            for sent in [sent.clone(), next(&sent)] {
                let out = router.redirects(harness, Hook::FromPod, &sent)?;
                assert_eq!(out, Packet { dst: backend, hop_limit: sent.hop_limit - 1, ..sent.clone() });
                let answer = out.answer();
                let back = router.redirects(harness, answers_at, &answer)?;
                assert_eq!(back, Packet { src: cast.service, hop_limit: answer.hop_limit - 1, ..answer });
            }
            assert_eq!(harness.flow_count()?, 2);
        }
        Ok(())
    })
}

/// Answers look for their way as the stack would see them: from the backend, and no route leads to the service's address.
#[test]
fn an_answer_that_is_the_first_packet_of_a_tick_finds_its_way() -> Result<()> {
    each(|harness, router, cast, protocol| {
        serve(harness, cast, protocol, cast.remote)?;
        let sent = Packet::first(protocol, cast.pod, cast.service);
        let answer = router.redirects(harness, Hook::FromPod, &sent)?.answer();
        harness.forget_ways()?;
        assert_eq!(router.redirects(harness, Hook::FromUplink, &answer)?.src, cast.service);
        assert_eq!(router.redirects(harness, Hook::FromPod, &next(&sent))?.dst, cast.remote);
        Ok(())
    })
}

#[test]
fn what_does_not_suit_the_way_goes_through_the_stack_translated_where_it_would_be_without_one() -> Result<()> {
    each(|harness, router, cast, protocol| {
        serve(harness, cast, protocol, cast.remote)?;
        let first = Packet::first(protocol, cast.pod, cast.service);
        let out = router.redirects(harness, Hook::FromPod, &first)?;
        let sent = next(&first);
        // The stack answers the one with "time exceeded" and the other with "too big", or cuts it.
        let last = Packet { hop_limit: 1, ..sent.clone() };
        let long = sent.with_payload(&vec![7; usize::from(UPLINK_MTU)]);
        for packet in [last, long] {
            assert_eq!(router.passes(harness, Hook::FromPod, &packet)?, Packet { dst: cast.remote, ..packet });
        }
        let answer = Packet { hop_limit: 1, ..out.answer() };
        assert_eq!(router.passes(harness, Hook::FromUplink, &answer)?, answer, "put right behind the stack");
        assert_eq!(router.redirects(harness, Hook::FromUplink, &out.answer())?.src, cast.service);
        Ok(())
    })
}

#[test]
fn a_forged_source_meets_the_stacks_reverse_path_filter() -> Result<()> {
    each(|harness, router, cast, protocol| {
        serve(harness, cast, protocol, cast.local)?;
        let sent = Packet::first(protocol, cast.forged, cast.service);
        let through_the_stack = Packet { dst: cast.local, ..sent.clone() };
        assert_eq!(router.passes(harness, Hook::FromPod, &sent)?, through_the_stack);
        // Nor is the way of whom it claims to be its own.
        router.redirects(harness, Hook::FromUplink, &sent)?;
        assert_eq!(router.passes(harness, Hook::FromPod, &sent)?, through_the_stack);
        Ok(())
    })
}

#[test]
fn interfaces_that_are_not_named_and_neighbours_that_are_not_known_are_left_to_the_stack() -> Result<()> {
    each(|harness, router, cast, protocol| {
        serve(harness, cast, protocol, cast.unknown)?;
        let sent = Packet::first(protocol, cast.pod, cast.service);
        assert_eq!(router.passes(harness, Hook::FromPod, &sent)?, Packet { dst: cast.unknown, ..sent.clone() });
        harness.reset()?;
        harness.forget_ways()?;
        harness.put_device(router.pod, Device { routed_as: router.pod, flags: Device::PEER })?;
        serve(harness, cast, protocol, cast.remote)?;
        assert_eq!(router.passes(harness, Hook::FromPod, &sent)?, Packet { dst: cast.remote, ..sent });
        Ok(())
    })
}

/// A rule on the client's node that drops what it forwards, as a network plugin's policy does.
fn forbid(cluster: &Cluster) -> Result<()> {
    let chain = "add table inet plugin; \
                 add chain inet plugin pods { type filter hook forward priority 0; policy drop; }";
    cluster.host("a").netns().output("nft", &[chain])?;
    Ok(())
}

fn allow(cluster: &Cluster) -> Result<()> {
    cluster.host("a").netns().output("nft", &["delete table inet plugin"])?;
    Ok(())
}

/// Both services of the scenario, from the pod, in both families and protocols.
fn asks(scenario: &Scenario) -> Vec<(Ask, &'static str)> {
    let services = [(&scenario.near, "web-a"), (&scenario.far, "web-b")];
    let mut asks = Vec::new();
    for (service, server) in services {
        for version in IpVersion::BOTH {
            for transport in [Transport::Tcp, Transport::Udp] {
                asks.push((Ask::new(transport, service.cluster_ip(version)), server));
            }
        }
    }
    asks
}

#[test]
fn with_on_packets_of_services_pass_whatever_netfilter_would_do_to_them() -> Result<()> {
    let scenario = Scenario::new(Wiring::Routed, &["--host-bypass=on"])?;
    for (ask, server) in asks(&scenario) {
        // Neighbours are known from then on.
        eventually(|| expect::answered(scenario.client(), &ask, &[server]))?;
    }
    // What found none goes through the stack for the rest of its tick.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    forbid(&scenario.cluster)?;
    for (ask, server) in asks(&scenario) {
        expect::answered(scenario.client(), &ask, &[server])?;
    }
    Ok(())
}

#[test]
fn with_auto_rules_of_netfilter_bring_packets_back_to_the_stack_and_gone_rules_do_not_keep_them() -> Result<()> {
    let scenario = Scenario::new(Wiring::Routed, &["--host-bypass=auto"])?;
    let (ask, server) = (Ask::new(Transport::Tcp, scenario.near.cluster_ip(IpVersion::V4)), "web-a");
    eventually(|| expect::answered(scenario.client(), &ask, &[server]))?;
    forbid(&scenario.cluster)?;
    let patient = std::time::Instant::now();
    while scenario.client().ask(&ask)?.is_ok() {
        anyhow::ensure!(patient.elapsed() < std::time::Duration::from_secs(20), "policy is still gone around");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    allow(&scenario.cluster)?;
    eventually(|| expect::answered(scenario.client(), &ask, &[server]))?;
    Ok(())
}
