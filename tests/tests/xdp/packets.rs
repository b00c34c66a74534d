//! Packets that XDP sends on by itself: translated as by tc, with the right checksums, and counted once.

use std::{collections::BTreeMap, net::SocketAddr};

use anyhow::{Context, Result, ensure};
use dataplane_common::{Addr as _, BePort, Family, Flow, FlowKey, FrontendKind, Protocol, TcpFlags, Ticks, V4, V6};
use dataplane_tests::{
    harness::{Action, Harness, Hook},
    packet::{MACS, Packet},
    topology::IpVersion,
};

use crate::cast::{each, each_remote, transmits, untouched};

#[test]
fn p34_a_remote_backend_gets_the_nodes_address_and_the_client_its_own_node_port() -> Result<()> {
    each_remote(|harness, router, cast, protocol| {
        for payload in [&[0x5a_u8; 0][..], &[0x5a; 1], &[0x5a; 333], &[0xff; 1000]] {
            let sent = Packet::first(protocol, cast.client, cast.node_port).with_payload(payload);
            let out = transmits(harness, router, &sent)?;
            assert_eq!((out.dst, out.src.ip()), (cast.remote.addr, cast.node));
            assert!((12_288..28_672).contains(&out.src.port()), "{} is none of the ports for SNAT", out.src);
            assert_eq!((out.hop_limit, &out.payload), (sent.hop_limit - 1, &sent.payload), "this node is a hop");

            let answer = out.answer();
            let back = transmits(harness, router, &answer)?;
            assert_eq!(
                back,
                Packet { src: cast.node_port, dst: cast.client, hop_limit: answer.hop_limit - 1, ..answer }
            );
            let again = transmits(harness, router, &sent.with_flags(TcpFlags::ACK))?;
            assert_eq!(again.src, out.src, "the same flow keeps its port");
        }
        assert_eq!(harness.flow_count()?, 2, "one entry per direction");
        assert_eq!(harness.drops()?, BTreeMap::new());
        Ok(())
    })
}

#[test]
fn frames_carry_the_link_layer_addresses_of_the_next_hop() -> Result<()> {
    each_remote(|harness, router, cast, protocol| {
        let frame = Packet::first(protocol, cast.client, cast.node_port).frame()?;
        let outcome = router.run(harness, Hook::XdpFromUplink, &frame)?;
        assert_eq!(outcome.action, Action::Transmit);
        assert_eq!(outcome.frame[..6], [2, 0, 0, 0, 0, 0x0b], "the other node");
        assert_ne!(outcome.frame[6..12], MACS.0, "the node itself");
        let back = router.run(harness, Hook::XdpFromUplink, &outcome.packet()?.answer().frame()?)?;
        assert_eq!(back.frame[..6], [2, 0, 0, 0, 0, 0xc8], "the client");
        assert_eq!(back.frame[6..12], outcome.frame[6..12]);
        Ok(())
    })
}

#[test]
fn p30_external_and_load_balancer_addresses_are_forwarded_too() -> Result<()> {
    each(|harness, router, cast, protocol| {
        for (kind, port) in
            [(FrontendKind::ExternalIp, 81), (FrontendKind::LoadBalancer, 82), (FrontendKind::ClusterIp, 83)]
        {
            let at: SocketAddr = (cast.service.ip(), port).into();
            harness.add_frontend(kind, protocol, at, &[cast.remote])?;
            let out = transmits(harness, router, &Packet::first(protocol, cast.client, at))?;
            assert_eq!(out.dst, cast.remote.addr, "{kind:?}");
            let back = transmits(harness, router, &out.answer())?;
            assert_eq!((back.src, back.dst), (at, cast.client), "{kind:?}");
        }
        Ok(())
    })
}

/// The datapath's present tick.
fn tick() -> Result<Ticks> {
    let now = std::time::Duration::from(nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)?);
    Ok(Ticks::from_nanos(u64::try_from(now.as_nanos())?))
}

#[test]
fn ways_are_confirmed_by_tc_when_a_flow_is_no_longer_new_and_for_some_flows_at_once() -> Result<()> {
    each_remote(|harness, router, cast, protocol| {
        let first = Packet::first(protocol, cast.client, cast.node_port);
        transmits(harness, router, &first)?;
        std::thread::sleep(std::time::Duration::from_millis(1100));
        let next = first.clone().with_flags(TcpFlags::ACK);
        untouched(harness, router, &next.frame()?)?;
        router.redirects(harness, Hook::FromUplink, &next)?;
        transmits(harness, router, &next)?;
        let other = Packet { src: (cast.client.ip(), 64 * 800 + 63).into(), ..first };
        untouched(harness, router, &other.frame()?)?;
        router.redirects(harness, Hook::FromUplink, &other)?;
        transmits(harness, router, &other).map(drop)
    })
}

/// Packets counted per source and destination.
fn packets<F: Family>(harness: &Harness) -> Result<BTreeMap<(SocketAddr, SocketAddr), u64>>
where
    FlowKey<F::Addr>: aya::Pod,
    Flow<F::Addr>: aya::Pod,
{
    let address = |addr: F::Addr, port: BePort| SocketAddr::new(addr.to_ip(), port.get());
    let ends = |key: FlowKey<F::Addr>| (address(key.src, key.src_port), address(key.dst, key.dst_port));
    Ok(harness.flows::<F>()?.into_iter().map(|(key, flow)| (ends(key), flow.packets)).collect())
}

#[test]
fn p34_both_programs_continue_each_others_flows_and_count_each_packet_once() -> Result<()> {
    each_remote(|harness, router, cast, protocol| {
        let first = Packet::first(protocol, cast.client, cast.node_port);
        let begun = tick()?;
        let out = router.redirects(harness, Hook::FromUplink, &first)?;
        let next = first.clone().with_flags(TcpFlags::ACK);
        assert_eq!(transmits(harness, router, &next)?.src, out.src);
        let other = Packet { src: (cast.client.ip(), 50_001).into(), ..first };
        let out = transmits(harness, router, &other)?;
        assert_eq!(router.redirects(harness, Hook::FromUplink, &out.answer())?.src, cast.node_port);
        // What XDP passes is for tc to count: here a packet whose hops are over.
        untouched(harness, router, &Packet { hop_limit: 1, ..next.clone() }.frame()?)?;
        let packets = match cast.version {
            IpVersion::V4 => packets::<V4>(harness)?,
            IpVersion::V6 => packets::<V6>(harness)?,
        };
        if tick()? != begun {
            // Some packet was for tc to confirm the way.
            return Ok(());
        }
        assert_eq!(packets.get(&(next.src, next.dst)), Some(&2), "{packets:?}");
        assert_eq!(packets.get(&(other.src, other.dst)), Some(&1), "{packets:?}");
        Ok(())
    })
}

#[test]
fn p31_connections_are_spread_evenly_between_here_and_elsewhere() -> Result<()> {
    each(|harness, router, cast, protocol| {
        harness.add_frontend(FrontendKind::NodePort, protocol, cast.node_port, &[cast.local, cast.remote])?;
        let (mut here, mut elsewhere) = (0_u32, 0_u32);
        // The first packets of each 64th client port are for tc.
        for client in (0..2000).filter(|client| (20_000 + client) % 64 != 63) {
            let first = Packet::first(protocol, (cast.client.ip(), 20_000 + client).into(), cast.node_port);
            let outcome = router.run(harness, Hook::XdpFromUplink, &first.frame()?)?;
            if outcome.action == Action::Transmit {
                elsewhere += 1;
                continue;
            }
            // Chosen already: tc takes the flow as it is.
            ensure!(outcome.frame == first.frame()?, "changed");
            let passed = router.passes(harness, Hook::FromUplink, &first).context("not a flow of this node")?;
            assert_eq!(passed, Packet { dst: cast.local.addr, ..first });
            here += 1;
        }
        // Six standard deviations of 2000 fair choices.
        assert!(here.abs_diff(elsewhere) < 270, "{here} here, {elsewhere} elsewhere");
        Ok(())
    })
}

#[test]
fn a_datagram_without_a_checksum_stays_without() -> Result<()> {
    each_remote(|harness, router, cast, protocol| {
        if protocol == Protocol::Tcp || cast.client.is_ipv6() {
            return Ok(());
        }
        let mut frame = Packet::udp(cast.client, cast.node_port).frame()?;
        frame[40..42].fill(0);
        let outcome = router.run(harness, Hook::XdpFromUplink, &frame)?;
        assert_eq!(outcome.action, Action::Transmit);
        assert_eq!(outcome.frame[40..42], [0, 0]);
        Ok(())
    })
}

#[test]
fn a_checksum_of_zero_never_arises_for_datagrams() -> Result<()> {
    each_remote(|harness, router, cast, protocol| {
        if protocol == Protocol::Tcp {
            return Ok(());
        }
        let out = transmits(harness, router, &Packet::udp(cast.client, cast.node_port))?;
        // The payload word that makes the translated checksum zero, which is sent as its complement.
        let udp = if cast.client.is_ipv4() { 34 } else { 54 };
        let plain = Packet::udp(out.src, out.dst).with_payload(&[0, 0]).frame()?;
        let word = [plain[udp + 6], plain[udp + 7]];
        let frame = Packet::udp(cast.client, cast.node_port).with_payload(&word).frame()?;
        let outcome = router.run(harness, Hook::XdpFromUplink, &frame)?;
        assert_eq!(outcome.action, Action::Transmit);
        assert_eq!(outcome.frame[udp + 6..udp + 8], [0xff, 0xff]);
        outcome.packet().map(drop)
    })
}

#[test]
fn behind_gro_segments_with_data_are_left_to_tc() -> Result<()> {
    each_remote(|harness, router, cast, protocol| {
        let generic = |packet: &Packet, action| -> Result<Packet> {
            router.meets(harness, Hook::XdpGeneric, &packet.frame()?, action)?.transport()
        };
        let first = Packet::first(protocol, cast.client, cast.node_port);
        let out = generic(&first, Action::Transmit)?;
        assert_eq!(out.dst, cast.remote.addr);
        let more = first.with_flags(TcpFlags::ACK).with_payload(b"data");
        if protocol == Protocol::Tcp {
            assert_eq!(generic(&more, Action::Pass)?, more);
            assert_eq!(generic(&more.with_payload(b""), Action::Transmit)?.src, out.src);
        } else {
            assert_eq!(generic(&more, Action::Transmit)?.src, out.src);
        }
        Ok(())
    })
}
