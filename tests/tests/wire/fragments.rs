//! Fragments of datagrams: the later ones have no ports and follow the first.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use dataplane_common::{DropReason, FrontendKind, Protocol, map::local_addr};
use dataplane_tests::{
    harness::{Action, Harness, Hook},
    packet::{Packet, Parsed, fragment},
};

use crate::cast::{Cast, each_version, meets};

/// Bytes per fragment.
const SIZE: usize = 1440;

/// A datagram that does not fit one packet, with a length that is not a multiple of anything.
fn large(src: std::net::SocketAddr, dst: std::net::SocketAddr) -> Packet {
    let payload: Vec<u8> = (0..4001_u32).map(|index| (index % 251) as u8).collect();
    Packet::udp(src, dst).with_payload(&payload)
}

fn cut(packet: &Packet, id: u16) -> Result<Vec<Vec<u8>>> {
    fragment::cut(&packet.frame()?, id, SIZE)
}

/// The datagram whose fragments, in the given order, `hook` lets pass, with the UDP checksum over all of it checked.
fn passes(harness: &Harness, hook: Hook, fragments: &[Vec<u8>]) -> Result<Packet> {
    let passed = fragments.iter().map(|frame| meets(harness, hook, frame, Action::Pass)).collect::<Result<Vec<_>>>()?;
    Parsed::from_frame(&fragment::join(&passed)?)?.transport()
}

fn cluster_ip(harness: &mut Harness, cast: &Cast) -> Result<()> {
    harness.put_other_ports(cast.service.ip())?;
    harness.add_frontend(FrontendKind::ClusterIp, Protocol::Udp, cast.service, &[cast.remote])?;
    Ok(())
}

#[test]
fn p45_a_datagram_in_fragments_and_its_answer_in_fragments() -> Result<()> {
    each_version(|harness, cast| {
        cluster_ip(harness, &cast)?;
        for id in 1..4 {
            let sent = large(cast.pod, cast.service);
            let fragments = cut(&sent, id)?;
            assert_eq!(fragments.len(), 3);
            let translated = passes(harness, Hook::FromPod, &fragments)?;
            assert_eq!(translated, Packet { dst: cast.remote.addr, ..sent });
            let passed = cut(&translated, id)?;
            assert_eq!(passes(harness, Hook::ToUplink, &passed)?, translated);

            let answer = translated.answer();
            // The other side counts its datagrams for itself.
            let fragments = cut(&answer, id + 100)?;
            assert_eq!(passes(harness, Hook::FromUplink, &fragments)?, answer);
            assert_eq!(passes(harness, Hook::ToPod, &fragments)?, Packet { src: cast.service, ..answer });
        }
        assert_eq!(harness.flow_count()?, 2);
        assert_eq!(harness.drops()?, BTreeMap::new());
        Ok(())
    })
}

#[test]
fn p45_a_node_port_takes_fragments_and_answers_in_fragments() -> Result<()> {
    each_version(|harness, cast| {
        harness.put_local_addr(cast.node_port.ip(), local_addr::NODE_PORT)?;
        harness.add_frontend(FrontendKind::NodePort, Protocol::Udp, cast.node_port, &[cast.local])?;
        let sent = large(cast.client, cast.node_port);
        let translated = passes(harness, Hook::FromUplink, &cut(&sent, 7)?)?;
        assert_eq!(translated, Packet { dst: cast.local.addr, ..sent });
        let answer = translated.answer();
        assert_eq!(passes(harness, Hook::FromPod, &cut(&answer, 8)?)?, answer);
        assert_eq!(passes(harness, Hook::ToUplink, &cut(&answer, 8)?)?, Packet { src: cast.node_port, ..answer });
        Ok(())
    })
}

#[test]
fn p45_a_pod_that_talks_to_itself_may_do_so_in_fragments() -> Result<()> {
    each_version(|harness, cast| {
        harness.add_frontend(FrontendKind::ClusterIp, Protocol::Udp, cast.service, &[cast.local])?;
        let bounced = |packet: &Packet, id| -> Result<Packet> {
            let frames = cut(packet, id)?;
            let back = frames.iter().map(|frame| meets(harness, Hook::FromPod, frame, Action::Redirect));
            Parsed::from_frame(&fragment::join(&back.collect::<Result<Vec<_>>>()?)?)?.transport()
        };
        let pod = (cast.local.addr.ip(), 40_000).into();
        let sent = large(pod, cast.service);
        let arrived = bounced(&sent, 1)?;
        assert_eq!((arrived.src, arrived.dst), ((cast.hairpin, 40_000).into(), cast.local.addr));
        let answer = bounced(&arrived.answer(), 2)?;
        assert_eq!((answer.src, answer.dst, answer.payload), (cast.service, pod, sent.payload));
        Ok(())
    })
}

#[test]
fn p45_later_fragments_may_come_in_any_order() -> Result<()> {
    each_version(|harness, cast| {
        cluster_ip(harness, &cast)?;
        let sent = large(cast.pod, cast.service);
        let mut fragments = cut(&sent, 1)?;
        fragments[1..].reverse();
        assert_eq!(passes(harness, Hook::FromPod, &fragments)?.dst, cast.remote.addr);
        // A fragment that arrives twice is the receiver's affair.
        let again = meets(harness, Hook::FromPod, &fragments[1], Action::Pass)?;
        assert_eq!(again, meets(harness, Hook::FromPod, &fragments[1], Action::Pass)?);
        Ok(())
    })
}

#[test]
fn p45_two_datagrams_between_the_same_hosts_are_not_mixed_up() -> Result<()> {
    each_version(|harness, cast| {
        cluster_ip(harness, &cast)?;
        let other = (cast.service.ip(), 81).into();
        harness.add_frontend(FrontendKind::ClusterIp, Protocol::Udp, other, &[cast.local])?;
        let (first, second) = (cut(&large(cast.pod, cast.service), 1)?, cut(&large(cast.pod, other), 2)?);
        let mut passed = (Vec::new(), Vec::new());
        for (first, second) in first.iter().zip(&second) {
            passed.0.push(meets(harness, Hook::FromPod, first, Action::Pass)?);
            passed.1.push(meets(harness, Hook::FromPod, second, Action::Pass)?);
        }
        let dst = |fragments: &[Vec<u8>]| {
            Ok::<_, anyhow::Error>(Parsed::from_frame(&fragment::join(fragments)?)?.transport()?.dst)
        };
        assert_eq!((dst(&passed.0)?, dst(&passed.1)?), (cast.remote.addr, cast.local.addr));
        Ok(())
    })
}

#[test]
fn p45_a_fragment_that_overtook_its_first_one_is_dropped_and_counted() -> Result<()> {
    each_version(|harness, cast| {
        cluster_ip(harness, &cast)?;
        let fragments = cut(&large(cast.pod, cast.service), 1)?;
        meets(harness, Hook::FromPod, &fragments[1], Action::Drop)?;
        meets(harness, Hook::FromUplink, &fragments[2], Action::Drop)?;
        assert_eq!(harness.drops()?, BTreeMap::from([(DropReason::UnknownFragment, 2)]));
        // Another datagram's first fragment says nothing about it.
        let others = cut(&large(cast.pod, cast.service), 2)?;
        meets(harness, Hook::FromPod, &others[0], Action::Pass)?;
        meets(harness, Hook::FromPod, &fragments[1], Action::Drop)?;
        meets(harness, Hook::FromPod, &others[1], Action::Pass)?;
        Ok(())
    })
}

#[test]
fn p45_fragments_of_what_is_no_service_pass_in_any_order() -> Result<()> {
    each_version(|harness, cast| {
        cluster_ip(harness, &cast)?;
        let direct = large(cast.pod, cast.remote.addr);
        let mut fragments = cut(&direct, 1)?;
        for hook in Hook::ALL {
            fragments.reverse();
            assert_eq!(passes(harness, hook, &fragments)?, direct, "{hook:?}");
        }
        assert_eq!(harness.flow_count()?, 0);
        Ok(())
    })
}

#[test]
fn p45_a_first_fragment_without_endpoints_is_answered_or_dropped_and_the_others_go_nowhere() -> Result<()> {
    each_version(|harness, cast| {
        harness.put_other_ports(cast.service.ip())?;
        harness.add_frontend(FrontendKind::ClusterIp, Protocol::Udp, cast.service, &[])?;
        let fragments = cut(&large(cast.pod, cast.service), 1)?;
        let outcome = harness.run(Hook::FromPod, &fragments[0])?;
        if outcome.action == Action::Redirect {
            let icmp = crate::cast::icmp(&outcome.frame)?;
            ensure!(icmp.is_port_unreachable() && icmp.about == fragments[0][14..][..icmp.about.len()], "{icmp:?}");
        } else {
            assert_eq!(outcome.action, Action::Drop);
        }
        for later in &fragments[1..] {
            meets(harness, Hook::FromPod, later, Action::Drop)?;
        }
        assert_eq!(harness.drops()?.get(&DropReason::NoEndpoints), Some(&1));
        Ok(())
    })
}

#[test]
fn p45_a_whole_datagram_with_a_fragment_header_is_whole() -> Result<()> {
    each_version(|harness, cast| {
        cluster_ip(harness, &cast)?;
        // IPv6's atomic fragments (RFC 6946); for IPv4 a packet with an identification.
        let sent = Packet::udp(cast.pod, cast.service);
        let fragments = fragment::cut(&sent.frame()?, 9, 8000)?;
        assert_eq!(fragments.len(), 1);
        let frame = meets(harness, Hook::FromPod, &fragments[0], Action::Pass)?;
        let expected = fragment::cut(&Packet { dst: cast.remote.addr, ..sent }.frame()?, 9, 8000)?;
        assert_eq!(frame, expected[0]);
        Ok(())
    })
}
