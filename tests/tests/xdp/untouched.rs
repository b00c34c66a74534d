//! What XDP leaves to others, byte for byte.

use anyhow::{Context, Result};
use dataplane_common::{FrontendKind, Protocol, TcpFlags};
use dataplane_tests::{
    harness::{Action, Hook},
    packet::{
        Icmp, IcmpError, Packet, fragment,
        options::{with_extension, with_options},
    },
    router::UPLINK_MTU,
};

use crate::cast::{each, each_remote, transmits, untouched};

/// `frame` with a VLAN tag (IEEE 802.1Q).
fn tagged(frame: &[u8]) -> Vec<u8> {
    [&frame[..12], &[0x81, 0, 0, 7], &frame[12..]].concat()
}

#[test]
fn what_is_no_plain_packet_passes_even_when_it_is_for_a_service() -> Result<()> {
    each_remote(|harness, router, cast, protocol| {
        let first = Packet::first(protocol, cast.client, cast.node_port).with_payload(&[0x5a; 64]);
        let out = transmits(harness, router, &first)?;
        let frame = first.frame()?;
        let mut odd = vec![
            ("a VLAN tag", tagged(&frame)),
            ("IP options or an extension header", with_options(&frame, 1)?),
            ("an ICMP error", Icmp::about(IcmpError::TooBig(1280), cast.remote.addr.ip(), &out.frame()?, 64)?.frame()?),
            ("SCTP", Packet::sctp(cast.client, cast.node_port).frame()?),
        ];
        odd.extend(fragment::cut(&frame, 7, 56)?.into_iter().map(|fragment| ("a fragment", fragment)));
        if cast.client.is_ipv6() {
            odd.push(("an extension header", with_extension(&frame, 60, 1)?));
        }
        for length in 14..frame.len() {
            // The kernel does not run programs on less than an Ethernet header.
            odd.push(("a packet cut short", frame[..length].to_vec()));
        }
        for (what, frame) in odd {
            untouched(harness, router, &frame).with_context(|| format!("{what}, {} bytes", frame.len()))?;
        }
        Ok(())
    })
}

#[test]
fn a_packet_padded_to_ethernets_minimum_is_plain() -> Result<()> {
    each_remote(|harness, router, cast, protocol| {
        let mut frame = Packet::first(protocol, cast.client, cast.node_port).with_payload(b"").frame()?;
        frame.resize(frame.len() + 6, 0x77);
        let outcome = router.run(harness, Hook::XdpFromUplink, &frame)?;
        assert_eq!(outcome.action, Action::Transmit);
        assert_eq!(outcome.frame[frame.len() - 6..], [0x77; 6]);
        assert_eq!(outcome.packet()?.dst, cast.remote.addr);
        Ok(())
    })
}

#[test]
fn what_needs_an_answer_is_left_to_tc() -> Result<()> {
    each_remote(|harness, router, cast, protocol| {
        let first = Packet::first(protocol, cast.client, cast.node_port);
        let last_hop = Packet { hop_limit: 1, ..first.clone() };
        let large = first.clone().with_flags(TcpFlags::ACK).with_payload(&[0x5a; UPLINK_MTU as usize]);
        for flow_is_known in [false, true] {
            if flow_is_known {
                transmits(harness, router, &first)?;
            }
            for packet in [&last_hop, &large] {
                untouched(harness, router, &packet.frame()?)?;
            }
        }
        router.meets(harness, Hook::FromUplink, &last_hop.frame()?, Action::Redirect)?;
        router.meets(harness, Hook::FromUplink, &large.frame()?, Action::Redirect)?;
        // Nobody there: refused by tc.
        let closed = Packet { dst: (cast.node, 30_099).into(), ..first };
        untouched(harness, router, &closed.frame()?)
    })
}

#[test]
fn without_a_backend_nothing_is_begun() -> Result<()> {
    each(|harness, router, cast, protocol| {
        harness.add_frontend(FrontendKind::NodePort, protocol, cast.node_port, &[])?;
        untouched(harness, router, &Packet::first(protocol, cast.client, cast.node_port).frame()?)?;
        assert_eq!(harness.flow_count()?, 0);
        assert_eq!(harness.drops()?.len(), 0, "counted by tc, once");
        Ok(())
    })
}

#[test]
fn a_backend_behind_an_unresolved_neighbour_or_no_route_is_left_to_tc() -> Result<()> {
    each_remote(|harness, router, cast, protocol| {
        let first = Packet::first(protocol, cast.client, cast.node_port);
        router.netns().ip(match cast.client.is_ipv4() {
            true => "neigh del 172.20.0.11 dev up0",
            false => "neigh del fd20::b dev up0",
        })?;
        untouched(harness, router, &first.frame()?)?;
        assert_eq!(harness.flow_count()?, 2, "tc knows the flow");
        router.netns().ip(match cast.client.is_ipv4() {
            true => "neigh add 172.20.0.11 lladdr 02:00:00:00:00:0b dev up0",
            false => "neigh add fd20::b lladdr 02:00:00:00:00:0b dev up0",
        })?;
        transmits(harness, router, &first).map(drop)
    })
}

#[test]
fn what_belongs_to_others_passes_without_a_flow() -> Result<()> {
    each_remote(|harness, router, cast, protocol| {
        let direct = Packet::first(protocol, cast.client, cast.local.addr);
        let middle = Packet::first(protocol, cast.client, cast.node_port).with_flags(TcpFlags::ACK);
        let arp = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &[0; 20]].concat();
        untouched(harness, router, &arp)?;
        untouched(harness, router, &direct.frame()?)?;
        untouched(harness, router, &direct.answer().frame()?)?;
        if protocol == Protocol::Tcp {
            // A connection that was there before: tc takes it in.
            untouched(harness, router, &middle.frame()?)?;
        }
        assert_eq!(harness.flow_count()?, 0);
        Ok(())
    })
}
