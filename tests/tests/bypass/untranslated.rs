//! Packets of no service: they go around the stack, too, and are left to it wherever it has something to say.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use dataplane_agent::cli::read;
use dataplane_common::{Device, FrontendKind, NodeConfig, Protocol, TcpFlags};
use dataplane_tests::{
    agent::AgentOptions,
    bench::programs::{Program, Side},
    expect,
    harness::{Action, Harness, Hook, Target},
    packet::{Packet, fragment, options},
    router::{Router, UPLINK_MTU},
    scenario::{POD_PORT, Scenario},
    topology::{IpVersion, Wiring},
    traffic::{Ask, protocol::Transport},
};

use super::{Cast, each, next};

fn carries(router: &Router, harness: &Harness, hook: Hook, sent: &Packet) -> Result<()> {
    let out = router.redirects(harness, hook, sent)?;
    assert_eq!(out, Packet { hop_limit: sent.hop_limit - 1, ..sent.clone() }, "{hook:?}");
    Ok(())
}

fn leaves(router: &Router, harness: &Harness, hook: Hook, frame: &[u8]) -> Result<()> {
    let outcome = router.run(harness, hook, frame)?;
    ensure!(outcome.action == Action::Pass, "{hook:?}: {:?}", outcome.action);
    ensure!(outcome.frame == frame, "{hook:?}: it is changed");
    Ok(())
}

#[test]
fn p30_packets_between_pods_and_to_and_from_the_world_lose_a_hop_and_nothing_else() -> Result<()> {
    each(|harness, router, cast, protocol| {
        let outgoing = Packet::first(protocol, cast.pod, cast.remote);
        let local = Packet::first(protocol, cast.pod, cast.local);
        for (hook, sent) in
            [(Hook::FromPod, &outgoing), (Hook::FromUplink, &outgoing.answer()), (Hook::FromPod, &local)]
        {
            for sent in [sent.clone(), next(sent), next(sent)] {
                carries(router, harness, hook, &sent)?;
            }
        }
        assert_eq!(harness.flow_count()?, 0, "no flow is kept of them");
        Ok(())
    })
}

#[test]
fn what_the_stack_would_judge_cut_or_answer_is_left_to_it_as_it_is() -> Result<()> {
    each(|harness, router, cast, protocol| {
        let sent = Packet::first(protocol, cast.pod, cast.remote);
        carries(router, harness, Hook::FromPod, &sent)?;
        let sent = next(&sent);
        let frame = sent.frame()?;
        let mut passing_by = frame.clone();
        passing_by[5] ^= 1;
        let long = sent.clone().with_payload(&vec![7; usize::from(UPLINK_MTU)]);
        let mut left = vec![
            // On its way through a bridge.
            passing_by,
            Packet { hop_limit: 1, ..sent.clone() }.frame()?,
            long.frame()?,
            options::with_options(&frame, 2)?,
            Packet { src: cast.forged, ..sent.clone() }.frame()?,
            Packet { dst: cast.unknown, ..sent }.frame()?,
        ];
        left.extend(fragment::cut(&long.frame()?, 7, 800)?);
        for frame in left {
            leaves(router, harness, Hook::FromPod, &frame)?;
        }
        Ok(())
    })
}

#[test]
fn what_only_passes_through_the_node_and_what_is_for_itself_is_left_to_the_stack() -> Result<()> {
    each(|harness, router, cast, protocol| {
        let client = if cast.pod.is_ipv4() { "172.20.0.200:5000" } else { "[fd20::c8]:5000" }.parse()?;
        let node = if cast.pod.is_ipv4() { "172.20.0.10:5000" } else { "[fd20::a]:5000" }.parse()?;
        for (src, dst) in [(client, cast.remote), (cast.remote, client), (client, node)] {
            let sent = Packet::first(protocol, src, dst);
            leaves(router, harness, Hook::FromUplink, &sent.frame()?)?;
            leaves(router, harness, Hook::FromUplink, &next(&sent).frame()?)?;
        }
        leaves(router, harness, Hook::FromPod, &Packet::first(protocol, cast.pod, node).frame()?)
    })
}

/// Sources that the stack takes for martians, although a default route leads to them.
#[test]
fn martian_sources_meet_the_stack() -> Result<()> {
    each(|harness, router, cast, protocol| {
        // So that every address is behind the pod's interface.
        let all = if cast.pod.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
        router.netns().ip(&format!("route replace {all} dev pod0\n"))?;
        let martians: &[&str] = if cast.pod.is_ipv4() {
            &["0.1.2.3:53", "224.0.0.5:53", "255.255.255.255:53"]
        } else {
            &["[fe80::1]:53", "[ff02::1]:53", "[::]:53"]
        };
        for martian in martians {
            let sent = Packet::first(protocol, martian.parse()?, cast.remote);
            leaves(router, harness, Hook::FromPod, &sent.frame()?)?;
        }
        Ok(())
    })
}

/// An address of a load balancer or an external IP may be somebody's beside.
#[test]
fn an_address_where_others_are_reached_keeps_its_frontends() -> Result<()> {
    each(|harness, router, cast, protocol| {
        let Cast { pod, remote, local, .. } = *cast;
        let backend = Target { addr: local, local: true };
        harness.add_frontend(FrontendKind::ExternalIp, protocol, remote, &[backend])?;
        let elsewhere = (remote.ip(), 9999).into();
        carries(router, harness, Hook::FromPod, &Packet::first(protocol, pod, elsewhere))?;
        for packet in [Packet::first(protocol, pod, remote), next(&Packet::first(protocol, pod, remote))] {
            let out = router.redirects(harness, Hook::FromPod, &packet)?;
            assert_eq!(out.dst, local);
        }
        carries(router, harness, Hook::FromPod, &Packet::first(protocol, pod, elsewhere))
    })
}

/// The same where the way is the stack, whatever the reason.
#[test]
fn segments_through_the_stack_need_no_lookup_of_frontends_either() -> Result<()> {
    let router = Router::new()?;
    let cast = super::cast(IpVersion::V4)?;
    for (flags, way) in [(0, "without bypass"), (NodeConfig::HOST_BYPASS, "without devices that packets may leave by")]
    {
        Harness::with_flags(flags | NodeConfig::COUNT_MAP_OPS, |harness| {
            let first = Packet::first(Protocol::Tcp, cast.pod, cast.remote);
            let later = first.clone().with_flags(TcpFlags::ACK);
            let lookups = |harness: &Harness, sent: &Packet| -> Result<u64> {
                let before = harness.map_operations()?.lookups;
                leaves(&router, harness, Hook::FromPod, &sent.frame()?)?;
                Ok(harness.map_operations()?.lookups - before)
            };
            let found = [&later, &later, &first].map(|sent| lookups(harness, sent));
            let [unknown, known, opening] = found;
            let (unknown, known, opening) = (unknown?, known?, opening?);
            ensure!(known == 2 && unknown > 4 && opening > 4, "{way}: {unknown}, {known}, {opening}");
            // A frontend that is there from now on is found by the next connection.
            let backend = Target { addr: cast.local, local: true };
            harness.add_frontend(FrontendKind::ExternalIp, Protocol::Tcp, cast.remote, &[backend])?;
            let out = router.run(harness, Hook::FromPod, &first.frame()?)?;
            ensure!(out.packet()?.dst == cast.local, "{way}: {out:?}");
            Ok(())
        })?;
    }
    Ok(())
}

/// Only a connection's first segment is looked up among the frontends once others have gone between the same addresses.
#[test]
fn segments_follow_the_way_without_a_lookup_of_frontends() -> Result<()> {
    let router = Router::new()?;
    let cast = super::cast(IpVersion::V4)?;
    let flags = NodeConfig::HOST_BYPASS | NodeConfig::COUNT_MAP_OPS;
    Harness::with_flags(flags, |harness| {
        harness.put_device(router.pod, Device { routed_as: router.pod, flags: Device::PEER })?;
        harness.put_device(router.uplink, Device { routed_as: router.uplink, flags: Device::TRANSMIT })?;
        let sent = Packet::first(Protocol::Tcp, cast.pod, cast.remote).with_flags(TcpFlags::ACK);
        let lookups = |harness: &Harness| -> Result<u64> {
            let before = harness.map_operations()?.lookups;
            carries(&router, harness, Hook::FromPod, &sent)?;
            Ok(harness.map_operations()?.lookups - before)
        };
        let (first, second) = (lookups(harness)?, lookups(harness)?);
        ensure!(second == 2 && first > 6, "conntrack, and its way: {first}, {second}");
        Ok(())
    })
}

#[test]
fn p30_pods_reach_pods_of_their_node_and_of_others_and_the_world_without_any_service() -> Result<()> {
    for wiring in [Wiring::Routed, Wiring::Bridge] {
        let scenario = Scenario::new(wiring, &["--host-bypass=auto"])?;
        let cluster = &scenario.cluster;
        for version in IpVersion::BOTH {
            for transport in [Transport::Tcp, Transport::Udp] {
                for (client, server) in [("client", "web-a"), ("client", "web-b"), ("web-c", "web-a")] {
                    let ask = Ask::new(transport, (cluster.pod(server).ip(version), POD_PORT).into());
                    for _ in 0..3 {
                        expect::answered(cluster.pod(client), &ask, &[server])?;
                    }
                }
                let ask = Ask::new(transport, (cluster.pod("web-b").ip(version), POD_PORT).into());
                expect::answered(cluster.host("a"), &ask, &["web-b"])?;
            }
        }
    }
    Ok(())
}

/// Policies of a network plugin may be tc programs, and IPsec encrypts what the stack forwards.
#[test]
fn with_auto_programs_of_others_and_ipsec_policies_keep_packets_in_the_stack() -> Result<()> {
    obstacles("--tc=tcx")
}

#[test]
fn with_auto_obstacles_are_told_from_our_own_filters() -> Result<()> {
    obstacles("--tc=clsact")
}

fn obstacles(tc: &str) -> Result<()> {
    let mut scenario = Scenario::bare(Wiring::Routed)?;
    let others = Program::empty()?;
    let (one, other) = (scenario.cluster.host("a").netns(), scenario.cluster.host("b").netns());
    let link = others.attach(one, "veth-web-a", Side::Egress)?;
    other.ip("xfrm policy add src 192.0.2.1/32 dst 192.0.2.2/32 dir out\n")?;
    scenario.options = AgentOptions::with(&["--host-bypass=auto", tc]);
    scenario.write_services()?;
    scenario.start_agents()?;
    let around = |node: &str| -> Result<Vec<String>> {
        let node = scenario.cluster.node(node);
        let devices = read::tables(node.bpffs.path())?.devices;
        let names = ["veth-client", "veth-web-a", "veth-web-b", "veth-web-c", "eth0"].map(str::to_owned);
        let named = |name: &String| -> Result<bool> {
            let index = node.host.netns().run(|| nix::net::if_::if_nametoindex(name.as_str()))?;
            Ok(index.is_ok_and(|index| devices.contains_key(&index)))
        };
        names.into_iter().filter_map(|name| named(&name).map(|named| named.then_some(name)).transpose()).collect()
    };
    assert_eq!(around("a")?, ["veth-client", "eth0"]);
    assert!(around("b")?.is_empty(), "{:?}", around("b")?);
    // Nobody tells of programs that come and go: the agent looks every ten seconds.
    drop(link);
    let begun = Instant::now();
    while around("a")? != ["veth-client", "veth-web-a", "eth0"] {
        ensure!(begun.elapsed() < Duration::from_secs(20), "{:?}", around("a")?);
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
