//! The backend's node: what packets that tell of a frontend leave behind, and what they must not.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use dataplane_common::{Device, FrontendKind, NodeConfig, Protocol, TcpFlags, V4, addr::Addr as _};
use dataplane_tests::{
    harness::{Action, Harness, Hook},
    packet::{Packet, Parsed, fragment, options},
    router::Router,
};

use crate::cast::{Cast, arrives, each_backend, is_adopted, is_answered, option, telling};

/// A request as the entry node sends it.
fn request(cast: &Cast, protocol: Protocol) -> Packet {
    Packet::first(protocol, cast.client, cast.local.addr)
}

/// The frame must pass as it is and open nothing.
fn is_ignored(harness: &Harness, router: &Router, frame: &[u8]) -> Result<()> {
    let before = harness.flow_count()?;
    let outcome = router.run(harness, Hook::FromUplink, frame)?;
    ensure!(outcome.action == Action::Pass, "{:?}", outcome.action);
    ensure!(outcome.frame == frame, "changed:\n{frame:x?}\n{:x?}", outcome.frame);
    ensure!(harness.flow_count()? == before, "a flow was opened");
    Ok(())
}

#[test]
fn the_pod_gets_plain_packets_and_answers_in_the_name_of_the_frontend() -> Result<()> {
    each_backend(0, |harness, router, cast, protocol| {
        let sent = request(&cast, protocol);
        is_adopted(harness, router, &sent, cast.elsewhere)?;
        assert_eq!(harness.flow_count()?, 2);
        // More of the same, and what does not tell.
        is_adopted(harness, router, &sent, cast.elsewhere)?;
        let more = sent.with_flags(if protocol == Protocol::Tcp { TcpFlags::ACK } else { TcpFlags(0) });
        let (got, _) = arrives(harness, router, &more.frame()?)?;
        assert_eq!(got, more);
        is_answered(harness, router, &more, cast.elsewhere)?;
        assert_eq!(harness.flow_count()?, 2);
        assert_eq!(harness.drops()?.len(), 0);
        Ok(())
    })
}

#[test]
fn long_payloads_and_odd_ones_stay_as_they_are() -> Result<()> {
    each_backend(0, |harness, router, cast, protocol| {
        for len in [0, 1, 2, 511, 1220] {
            let payload: Vec<u8> = (0..len).map(|index| (index % 251) as u8).collect();
            is_adopted(harness, router, &request(&cast, protocol).with_payload(&payload), cast.elsewhere)?;
        }
        Ok(())
    })
}

#[test]
fn the_frontend_may_be_any_that_the_node_knows() -> Result<()> {
    each_backend(0, |harness, router, cast, protocol| {
        harness.add_frontend(FrontendKind::LoadBalancer, protocol, cast.other, &[cast.local])?;
        for (port, at) in [(1000, cast.other), (1001, cast.node_port), (1002, cast.elsewhere)] {
            let sent = Packet { src: (cast.client.ip(), port).into(), ..request(&cast, protocol) };
            is_adopted(harness, router, &sent, at)?;
        }
        Ok(())
    })
}

#[test]
fn nothing_is_believed_of_frontends_that_are_not_known() -> Result<()> {
    each_backend(0, |harness, router, cast, protocol| {
        let sent = request(&cast, protocol);
        let unknown: [SocketAddr; 3] = ["172.20.0.11:30081".parse()?, "192.0.2.10:80".parse()?, cast.service];
        for at in unknown {
            is_ignored(harness, router, &telling(&sent, at)?)?;
        }
        let other = if protocol == Protocol::Tcp { Protocol::Udp } else { Protocol::Tcp };
        is_ignored(harness, router, &telling(&request(&cast, other), cast.elsewhere)?)?;
        // Nor of other options, whatever they hold.
        let mut option = option(cast.elsewhere)?;
        option[0] = 0x1e;
        is_ignored(harness, router, &options::with_ipv4_options(&sent.frame()?, &option)?)?;
        let longer = [crate::cast::option(cast.elsewhere)?, vec![1; 4]].concat();
        is_ignored(harness, router, &options::with_ipv4_options(&sent.frame()?, &longer)?)
    })
}

#[test]
fn nothing_is_kept_of_packets_for_other_nodes_and_from_the_middle_of_connections() -> Result<()> {
    each_backend(0, |harness, router, cast, protocol| {
        let passing = Packet { dst: cast.remote.addr, ..request(&cast, protocol) };
        is_ignored(harness, router, &telling(&passing, cast.elsewhere)?)?;
        if protocol == Protocol::Tcp {
            let middle = request(&cast, protocol).with_flags(TcpFlags::ACK);
            is_ignored(harness, router, &telling(&middle, cast.elsewhere)?)?;
        }
        Ok(())
    })
}

#[test]
fn only_uplinks_listen() -> Result<()> {
    each_backend(0, |harness, router, cast, protocol| {
        let sent = telling(&Packet { src: cast.neighbour, ..request(&cast, protocol) }, cast.elsewhere)?;
        let outcome = router.run(harness, Hook::FromPod, &sent)?;
        assert_eq!((outcome.action, outcome.frame), (Action::Pass, sent));
        assert_eq!(harness.flow_count()?, 0);
        Ok(())
    })
}

#[test]
fn a_client_may_use_its_port_for_another_frontend() -> Result<()> {
    each_backend(0, |harness, router, cast, protocol| {
        harness.add_frontend(FrontendKind::ExternalIp, protocol, cast.other, &[cast.local])?;
        let sent = request(&cast, protocol);
        for at in [cast.elsewhere, cast.other, cast.elsewhere] {
            is_adopted(harness, router, &sent, at)?;
            assert_eq!(harness.flow_count()?, 2);
        }
        // And for one of this node, and back.
        let own = Packet { dst: cast.node_port, ..sent.clone() };
        if protocol == Protocol::Tcp {
            let reset = sent.clone().with_flags(TcpFlags::RST);
            arrives(harness, router, &reset.frame()?)?;
        } else {
            return Ok(());
        }
        let (arrived, _) = arrives(harness, router, &own.frame()?)?;
        assert_eq!((arrived.src, arrived.dst), (cast.client, cast.local.addr));
        is_answered(harness, router, &arrived, cast.node_port)?;
        is_adopted(harness, router, &sent, cast.elsewhere)
    })
}

#[test]
fn a_datagram_that_a_router_has_cut_tells_with_its_first_fragment() -> Result<()> {
    each_backend(0, |harness, router, cast, protocol| {
        if protocol == Protocol::Tcp {
            return Ok(());
        }
        let sent = request(&cast, protocol).with_payload(&[0x5a; 3001]);
        let mut parts = Vec::new();
        for frame in fragment::cut(&sent.frame()?, 9, 1200)? {
            // Routers copy this option into every fragment.
            let outcome = router.run(
                harness,
                Hook::FromUplink,
                &options::with_ipv4_options(&frame, &option(cast.elsewhere)?)?,
            )?;
            ensure!(outcome.action == Action::Pass, "{:?} {:?}", outcome.action, harness.drops()?);
            parts.push(options::with_ipv4_options(&outcome.frame, &[])?);
        }
        assert_eq!(Parsed::from_frame(&fragment::join(&parts)?)?.transport()?, sent);
        is_answered(harness, router, &sent, cast.elsewhere)
    })
}

#[test]
fn around_the_stack_answers_leave_the_pods_interface_translated() -> Result<()> {
    each_backend(NodeConfig::HOST_BYPASS, |harness, router, cast, protocol| {
        harness.forget_ways()?;
        harness.put_device(router.pod, Device { routed_as: router.pod, flags: Device::PEER })?;
        harness.put_device(router.uplink, Device { routed_as: router.uplink, flags: Device::TRANSMIT })?;
        let sent = request(&cast, protocol);
        let frame = telling(&sent, cast.elsewhere)?;
        for _ in 0..2 {
            let Parsed::Transport(got) = router.meets(harness, Hook::FromUplink, &frame, Action::Redirect)? else {
                anyhow::bail!("no packet");
            };
            assert_eq!(got, Packet { hop_limit: sent.hop_limit - 1, ..sent.clone() });
            let answer = sent.answer();
            let out = router.redirects(harness, Hook::FromPod, &answer)?;
            assert_eq!(out, Packet { src: cast.elsewhere, hop_limit: answer.hop_limit - 1, ..answer });
        }
        Ok(())
    })
}

#[test]
fn a_client_that_is_routed_elsewhere_comes_in_where_its_route_leads() -> Result<()> {
    each_backend(0, |harness, router, cast, protocol| {
        // A pod of this node asked another node: strict reverse-path filtering expects it at its own interface.
        let sent = Packet { src: cast.neighbour, ..request(&cast, protocol) };
        let frame = telling(&sent, cast.elsewhere)?;
        let got = router.meets(harness, Hook::FromUplink, &frame, Action::Redirect)?.transport()?;
        assert_eq!(got, sent);
        assert_eq!(router.passes(harness, Hook::FromPod, &sent)?, sent, "it stays there");
        let more = sent.clone().with_flags(if protocol == Protocol::Tcp { TcpFlags::ACK } else { TcpFlags(0) });
        assert_eq!(router.redirects(harness, Hook::FromUplink, &more)?, more);
        let answer = sent.answer();
        assert_eq!(router.passes(harness, Hook::FromPod, &answer)?, answer);
        assert_eq!(router.passes(harness, Hook::ToPod, &answer)?, Packet { src: cast.elsewhere, ..answer });
        Ok(())
    })
}

#[test]
fn a_process_of_this_node_is_a_client_with_another_face() -> Result<()> {
    each_backend(0, |harness, router, cast, protocol| {
        let own = (cast.node_port.ip(), 40_000).into();
        let sent = Packet { src: own, ..request(&cast, protocol) };
        let hairpin = (NodeConfig::DEFAULT_HAIRPIN4.to_ip(), 40_000).into();
        let (seen, options) = arrives(harness, router, &telling(&sent, cast.elsewhere)?)?;
        assert_eq!((seen.src, seen.dst, options), (hairpin, cast.local.addr, vec![]));
        let more = sent.clone().with_flags(if protocol == Protocol::Tcp { TcpFlags::ACK } else { TcpFlags(0) });
        assert_eq!(arrives(harness, router, &more.frame()?)?.0.src, hairpin);
        let back = router.redirects(harness, Hook::FromPod, &seen.answer())?;
        assert_eq!((back.src, back.dst), (cast.elsewhere, own));
        arrives(harness, router, &telling(&sent, cast.elsewhere)?)?;
        let flows = harness.flows::<V4>()?;
        assert!(flows.len() == 2 && flows.iter().all(|(_, flow)| flow.state.0 == 1), "{flows:?}");
        Ok(())
    })
}

#[test]
fn plain_packets_cost_no_lookup_more() -> Result<()> {
    let router = Router::new()?;
    let cast = Cast::new()?;
    let mut costs = Vec::new();
    for flags in [0, NodeConfig::DIRECT_RETURN] {
        Harness::with_flags(flags | NodeConfig::COUNT_MAP_OPS, |harness| {
            router.declare(harness, cast.node_port.ip())?;
            harness.add_frontend(FrontendKind::NodePort, Protocol::Tcp, cast.node_port, &[cast.local])?;
            let first = Packet::first(Protocol::Tcp, cast.client, cast.node_port);
            let (arrived, _) = arrives(harness, &router, &first.frame()?)?;
            is_answered(harness, &router, &arrived, cast.node_port)?;
            let untranslated = Packet::tcp(cast.client, cast.local.addr, TcpFlags::SYN);
            for packet in [first.with_flags(TcpFlags::ACK), untranslated] {
                let before = harness.map_operations()?;
                arrives(harness, &router, &packet.frame()?)?;
                let after = harness.map_operations()?;
                costs.push((after.lookups - before.lookups, after.updates - before.updates));
            }
            Ok(())
        })?;
    }
    assert_eq!(costs[..2], costs[2..]);
    assert_eq!(costs[0], (2, 0), "whether there are flows, and this one");
    assert!(Harness::with_flags(NodeConfig::DIRECT_RETURN, |harness| harness.flows::<V4>())?.is_empty());
    Ok(())
}
