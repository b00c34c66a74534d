//! The entry node: which packets keep their client and tell of their frontend.

use anyhow::{Context, Result};
use dataplane_common::{FrontendKind, Next, NodeConfig, Protocol, TcpFlags, V4};
use dataplane_tests::{
    harness::{Action, Harness, Hook, Target},
    packet::{IcmpError, Packet, Parsed, fragment, options::with_options},
    router::{Router, UPLINK_MTU},
};

use crate::cast::{Cast, each_entry, each_with, is_masqueraded, is_silent, leaves, option, tells};

/// Payload of a datagram whose packet has `len` bytes.
fn payload(len: usize) -> Vec<u8> {
    vec![0x5a; len - 28]
}

#[test]
fn connections_and_datagrams_tell_of_their_frontend_and_the_client_keeps_its_address() -> Result<()> {
    each_entry(|harness, router, cast, protocol| {
        let first = Packet::first(protocol, cast.client, cast.node_port);
        tells(harness, router, &first, cast.remote)?;
        let flows = harness.flows::<V4>()?;
        assert_eq!(flows.len(), 2);
        assert!(flows.iter().all(|(_, flow)| flow.next == Next::Direct as u8), "{flows:?}");
        // Again, whether it is a retransmission or more of the same.
        tells(harness, router, &first, cast.remote)?;
        if protocol == Protocol::Tcp {
            for flags in [TcpFlags::ACK, TcpFlags(TcpFlags::FIN.0 | TcpFlags::ACK.0), TcpFlags::RST] {
                let more = first.clone().with_flags(flags).with_payload(b"data");
                is_silent(harness, router, &more, cast.remote)?;
            }
        }
        assert_eq!(harness.flow_count()?, 2);
        assert_eq!(harness.drops()?.len(), 0);
        Ok(())
    })
}

#[test]
fn addresses_that_the_node_answers_for_are_told_as_they_are() -> Result<()> {
    each_with(0, |harness, router, cast, protocol| {
        for kind in [FrontendKind::ExternalIp, FrontendKind::LoadBalancer] {
            harness.add_frontend(kind, protocol, cast.other, &[cast.remote])?;
            tells(harness, router, &Packet::first(protocol, cast.client, cast.other), cast.remote)?;
        }
        Ok(())
    })
}

#[test]
fn a_datagram_tells_as_long_as_that_fits_the_link() -> Result<()> {
    each_entry(|harness, router, cast, protocol| {
        if protocol == Protocol::Tcp {
            return Ok(());
        }
        let mtu = usize::from(UPLINK_MTU);
        let datagram = |port, len| {
            let from = (cast.client.ip(), port).into();
            Packet::udp(from, cast.node_port).with_payload(&payload(len))
        };
        // As the first one of a flow, which is the node's where nobody could tell.
        tells(harness, router, &datagram(50_001, mtu - 8), cast.remote)?;
        is_masqueraded(harness, router, &datagram(50_002, mtu - 7).frame()?, &cast)?;
        is_masqueraded(harness, router, &datagram(50_002, 100).frame()?, &cast).context("a flow stays what it is")?;
        // Later ones go without.
        is_silent(harness, router, &datagram(50_001, mtu - 7), cast.remote)?;
        is_silent(harness, router, &datagram(50_001, mtu), cast.remote)?;
        tells(harness, router, &datagram(50_001, 100), cast.remote)?;
        // What is too long in any case is answered, and quoted as it was sent.
        let long = datagram(50_001, mtu + 1).frame()?;
        let Parsed::Icmp(icmp) = router.meets(harness, Hook::FromUplink, &long, Action::Redirect)? else {
            anyhow::bail!("no ICMP error");
        };
        assert!(icmp.says(IcmpError::TooBig(UPLINK_MTU)), "{icmp:?}");
        assert_eq!(icmp.about, long[14..][..icmp.about.len()]);
        assert_eq!((icmp.src, icmp.dst), (cast.node_port.ip(), cast.client.ip()));
        Ok(())
    })
}

#[test]
fn the_last_hop_is_answered_as_the_client_sent_it() -> Result<()> {
    each_entry(|harness, router, cast, protocol| {
        let first = Packet::first(protocol, cast.client, cast.node_port);
        tells(harness, router, &first, cast.remote)?;
        let last = Packet { hop_limit: 1, ..first }.frame()?;
        let Parsed::Icmp(icmp) = router.meets(harness, Hook::FromUplink, &last, Action::Redirect)? else {
            anyhow::bail!("no ICMP error");
        };
        assert!(icmp.says(IcmpError::TimeExceeded), "{icmp:?}");
        assert_eq!(icmp.about, last[14..][..icmp.about.len()]);
        Ok(())
    })
}

#[test]
fn fragments_and_packets_with_options_begin_flows_of_the_node_and_go_along_in_others() -> Result<()> {
    each_entry(|harness, router, cast, protocol| {
        let from = |port| Packet::first(protocol, (cast.client.ip(), port).into(), cast.node_port);
        is_masqueraded(harness, router, &with_options(&from(1).frame()?, 2)?, &cast)?;
        tells(harness, router, &from(2), cast.remote)?;
        let (out, options) = leaves(harness, router, &with_options(&from(2).frame()?, 2)?)?;
        assert_eq!((out.src, out.dst, options), (from(2).src, cast.remote.addr, vec![1; 8]));
        if protocol == Protocol::Tcp {
            return Ok(());
        }
        let cut = |port, id| fragment::cut(&from(port).with_payload(&[0x5a; 4001]).frame()?, id, 1200);
        for (port, node) in [(2, false), (3, true)] {
            let mut parts = Vec::new();
            for frame in cut(port, 7)? {
                let outcome = router.run(harness, Hook::FromUplink, &frame)?;
                assert_eq!(outcome.action, Action::Redirect);
                parts.push(outcome.frame);
            }
            let whole = Parsed::from_frame(&fragment::join(&parts)?)?.transport()?;
            assert_eq!((whole.src.ip() == cast.node_port.ip(), whole.dst), (node, cast.remote.addr));
        }
        Ok(())
    })
}

#[test]
fn segments_from_the_middle_of_an_unknown_connection_are_the_nodes() -> Result<()> {
    each_entry(|harness, router, cast, protocol| {
        if protocol == Protocol::Udp {
            return Ok(());
        }
        let middle = Packet::tcp(cast.client, cast.node_port, TcpFlags::ACK);
        // Should the backend not know it, its RST reaches the client.
        let out = is_masqueraded(harness, router, &middle.frame()?, &cast)?;
        let back = router.redirects(harness, Hook::FromUplink, &out.answer().with_flags(TcpFlags::RST))?;
        assert_eq!((back.src, back.dst), (cast.node_port, cast.client));
        Ok(())
    })
}

#[test]
fn a_port_that_leads_to_the_same_backend_already_is_masqueraded() -> Result<()> {
    each_entry(|harness, router, cast, protocol| {
        harness.add_frontend(FrontendKind::ExternalIp, protocol, cast.other, &[cast.remote])?;
        let one = Packet::first(protocol, cast.client, cast.node_port);
        let two = Packet::first(protocol, cast.client, cast.other);
        tells(harness, router, &one, cast.remote)?;
        let out = is_masqueraded(harness, router, &two.frame()?, &cast)?;
        let back = router.redirects(harness, Hook::FromUplink, &out.answer())?;
        assert_eq!((back.src, back.dst), (cast.other, cast.client));
        tells(harness, router, &one, cast.remote)?;
        Ok(())
    })
}

#[test]
fn what_the_operator_wants_masqueraded_is() -> Result<()> {
    each_with(NodeConfig::MASQUERADE_OUTSIDE, |harness, router, cast, protocol| {
        harness.add_frontend(FrontendKind::ClusterIp, protocol, cast.service, &[cast.remote])?;
        harness.add_frontend(FrontendKind::NodePort, protocol, cast.node_port, &[cast.remote])?;
        is_masqueraded(harness, router, &Packet::first(protocol, cast.client, cast.service).frame()?, &cast)?;
        tells(harness, router, &Packet::first(protocol, cast.client, cast.node_port), cast.remote)
    })
}

#[test]
fn a_backend_that_asks_itself_does_not_meet_its_own_address() -> Result<()> {
    each_entry(|harness, router, cast, protocol| {
        let from = (cast.remote.addr.ip(), 40_000).into();
        is_masqueraded(harness, router, &Packet::first(protocol, from, cast.node_port).frame()?, &cast)?;
        Ok(())
    })
}

#[test]
fn local_backends_and_clients_are_not_concerned() -> Result<()> {
    each_with(0, |harness, router, cast, protocol| {
        harness.add_frontend(FrontendKind::NodePort, protocol, cast.node_port, &[cast.local])?;
        harness.add_frontend(FrontendKind::ClusterIp, protocol, cast.service, &[cast.remote])?;
        let sent = Packet::first(protocol, cast.client, cast.node_port);
        assert_eq!(router.passes(harness, Hook::FromUplink, &sent)?, Packet { dst: cast.local.addr, ..sent });
        let sent = Packet::first(protocol, cast.neighbour, cast.service);
        assert_eq!(router.passes(harness, Hook::FromPod, &sent)?, Packet { dst: cast.remote.addr, ..sent });
        Ok(())
    })
}

#[test]
fn ipv6_and_sctp_keep_the_nodes_address() -> Result<()> {
    each_with(0, |harness, router, cast, protocol| {
        let (client, at) = ("[fd20::c8]:50000".parse()?, "[fd20::a]:30080".parse()?);
        let target = Target { addr: "[fd44:0:0:1::a]:8080".parse()?, local: false };
        harness.put_local_addr(std::net::SocketAddr::ip(&at), dataplane_common::map::local_addr::NODE_PORT)?;
        harness.put_snat_addr(router.uplink, at.ip())?;
        harness.add_frontend(FrontendKind::NodePort, protocol, at, &[target])?;
        let out = router.redirects(harness, Hook::FromUplink, &Packet::first(protocol, client, at))?;
        assert_eq!((out.src.ip(), out.dst), (at.ip(), target.addr));
        let at = (cast.node_port.ip(), cast.remote.addr.port()).into();
        harness.add_frontend(FrontendKind::NodePort, Protocol::Sctp, at, &[cast.remote])?;
        let (out, options) = leaves(harness, router, &Packet::sctp(cast.client, at).frame()?)?;
        assert_eq!((out.src.ip(), out.dst, options), (cast.node_port.ip(), cast.remote.addr, vec![]));
        Ok(())
    })
}

#[test]
fn answers_that_pass_the_entry_node_all_the_same_are_translated_there() -> Result<()> {
    each_entry(|harness, router, cast, protocol| {
        let first = Packet::first(protocol, cast.client, cast.node_port);
        tells(harness, router, &first, cast.remote)?;
        let answer = Packet { dst: cast.remote.addr, ..first }.answer();
        let (out, options) = leaves(harness, router, &answer.frame()?)?;
        assert_eq!((out.src, out.dst, options), (cast.node_port, cast.client, vec![]));
        Ok(())
    })
}

#[test]
fn without_the_option_nothing_changes() -> Result<()> {
    let router = Router::new()?;
    let cast = Cast::new()?;
    Harness::with(|harness| {
        router.declare(harness, cast.node_port.ip())?;
        harness.add_frontend(FrontendKind::NodePort, Protocol::Tcp, cast.node_port, &[cast.remote])?;
        let first = Packet::first(Protocol::Tcp, cast.client, cast.node_port);
        is_masqueraded(harness, &router, &first.frame()?, &cast)?;
        let told = crate::cast::telling(&Packet::first(Protocol::Tcp, cast.client, cast.local.addr), cast.node_port)?;
        let outcome = router.run(harness, Hook::FromUplink, &told)?;
        assert_eq!((outcome.action, outcome.frame), (Action::Pass, told));
        assert_eq!(harness.flow_count()?, 2);
        Ok(())
    })
}

#[test]
fn the_option_has_the_bytes_of_the_contract() -> Result<()> {
    assert_eq!(option("172.20.0.10:30080".parse()?)?, [0x9e, 8, 0x75, 0x80, 172, 20, 0, 10]);
    Ok(())
}
