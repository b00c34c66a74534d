//! Fragments of datagrams: the later ones have no ports and follow the first.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use dataplane_common::{
    DropReason, FrontendKind, Protocol,
    map::{cidr, local_addr},
};
use dataplane_tests::{
    harness::{Action, Harness, Hook},
    packet::{
        Packet, Parsed, fragment,
        options::{with_extension, with_options},
    },
    topology::IpVersion,
};

use crate::cast::{Cast, each, each_version, icmp, meets};

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
fn p45_options_of_which_later_fragments_know_nothing_are_skipped() -> Result<()> {
    each_version(|harness, cast| {
        cluster_ip(harness, &cast)?;
        // IPv4's are in front of every fragment, IPv6's in the first one alone: the others name the type of what it begins with.
        let cut = |packet: &Packet, id, units| fragment::cut(&with_options(&packet.frame()?, units)?, id, SIZE);
        for (id, units) in (1..).zip([1, 2, 10]) {
            let sent = large(cast.pod, cast.service);
            let mut fragments = cut(&sent, id, units)?;
            assert_eq!(fragments.len(), 3);
            fragments[1..].reverse();
            let translated = passes(harness, Hook::FromPod, &fragments)?;
            assert_eq!(translated, Packet { dst: cast.remote.addr, ..sent });
            let answer = translated.answer();
            let back = passes(harness, Hook::ToPod, &cut(&answer, id + 100, units)?)?;
            assert_eq!(back, Packet { src: cast.service, ..answer });
        }
        assert_eq!(harness.flow_count()?, 2);
        assert_eq!(harness.drops()?, BTreeMap::new());
        Ok(())
    })
}

/// Fragments whose headers name each of the extension headers that may be behind them (RFC 8200, 4).
fn cut_behind_extensions(packet: &Packet) -> Result<Vec<Vec<Vec<u8>>>> {
    let frame = packet.frame()?;
    let cut = |(kind, id): (u8, u16)| fragment::cut(&with_extension(&frame, kind, 2)?, id, SIZE);
    [(0, 1), (43, 2), (60, 3)].into_iter().map(cut).collect()
}

#[test]
fn p45_later_fragments_follow_their_datagram_whatever_header_they_name() -> Result<()> {
    each_version(|harness, cast| {
        if cast.version == IpVersion::V4 {
            return Ok(());
        }
        cluster_ip(harness, &cast)?;
        let sent = large(cast.pod, cast.service);
        for mut fragments in cut_behind_extensions(&sent)? {
            assert_eq!(passes(harness, Hook::FromPod, &fragments)?.dst, cast.remote.addr);
            // Those of one datagram may name different ones, of which the first fragment's counts (RFC 8200, 4.5).
            let as_sent = fragments.clone();
            fragments[1][14 + 40] = 17;
            fragments[2][14 + 40] = 132;
            for (fragment, original) in fragments.iter().zip(&as_sent).skip(1) {
                let frame = meets(harness, Hook::FromPod, fragment, Action::Pass)?;
                assert_ne!(frame[14..54], original[14..54], "translated");
                assert_eq!(frame[54..], fragment[54..]);
            }
        }
        Ok(())
    })
}

#[test]
fn p45_a_fragment_that_overtook_an_extension_header_is_dropped_when_it_is_for_a_service() -> Result<()> {
    each_version(|harness, cast| {
        if cast.version == IpVersion::V4 {
            return Ok(());
        }
        cluster_ip(harness, &cast)?;
        for fragments in cut_behind_extensions(&large(cast.pod, cast.service))? {
            meets(harness, Hook::FromPod, &fragments[1], Action::Drop)?;
            meets(harness, Hook::FromUplink, &fragments[2], Action::Drop)?;
        }
        assert_eq!(harness.drops()?, BTreeMap::from([(DropReason::UnknownFragment, 6)]));
        for mut fragments in cut_behind_extensions(&large(cast.pod, cast.remote.addr))? {
            fragments.reverse();
            for hook in Hook::ALL {
                for fragment in &fragments {
                    assert_eq!(meets(harness, hook, fragment, Action::Pass)?, *fragment, "{hook:?}");
                }
            }
        }
        assert_eq!(harness.flow_count()?, 0);
        Ok(())
    })
}

#[test]
fn p45_fragments_of_what_has_no_ports_pass_untouched() -> Result<()> {
    each_version(|harness, cast| {
        cluster_ip(harness, &cast)?;
        passes(harness, Hook::FromPod, &cut(&large(cast.pod, cast.service), 1)?)?;
        // IPv4 has an identification once per protocol, IPv6 once.
        let (field, echo, id) = if cast.version == IpVersion::V4 { (14 + 9, 1, 1) } else { (14 + 6, 58, 2) };
        for to in [cast.service, cast.remote.addr] {
            // ICMP, GRE, ESP.
            for protocol in [echo, 47, 50] {
                let mut frame = large(cast.pod, to).frame()?;
                frame[field] = protocol;
                for fragment in fragment::cut(&frame, id, SIZE)?.iter().rev() {
                    for hook in Hook::TC {
                        assert_eq!(meets(harness, hook, fragment, Action::Pass)?, *fragment, "{hook:?} {protocol}");
                    }
                }
            }
        }
        assert_eq!(harness.drops()?, BTreeMap::new());
        Ok(())
    })
}

#[test]
fn p10_later_fragments_to_an_address_that_no_service_owns_are_dropped() -> Result<()> {
    each_version(|harness, cast| {
        cluster_ip(harness, &cast)?;
        let (prefix, length) = cast.services();
        harness.put_cidr(prefix, length, cidr::SERVICE)?;
        let sent = with_options(&large(cast.pod, cast.unowned).frame()?, 1)?;
        for fragment in fragment::cut(&sent, 1, SIZE)? {
            for hook in [Hook::FromPod, Hook::FromUplink] {
                meets(harness, hook, &fragment, Action::Drop)?;
            }
        }
        assert_eq!(harness.drops()?, BTreeMap::from([(DropReason::UnownedServiceAddress, 6)]));
        Ok(())
    })
}

#[test]
fn p31_p45_a_first_fragment_without_endpoints_is_answered_and_the_others_go_nowhere() -> Result<()> {
    each(|harness, cast, protocol| {
        harness.put_other_ports(cast.service.ip())?;
        harness.add_frontend(FrontendKind::ClusterIp, protocol, cast.service, &[])?;
        let sent = Packet::first(protocol, cast.pod, cast.service).with_payload(&[0x5a; 4001]);
        for (id, units) in (1..).zip([0, 1, 10]) {
            let frame = if units == 0 { sent.frame()? } else { with_options(&sent.frame()?, units)? };
            let fragments = fragment::cut(&frame, id, SIZE)?;
            let told = icmp(&meets(harness, Hook::FromPod, &fragments[0], Action::Redirect)?)?;
            ensure!(told.is_port_unreachable() && told.dst == cast.pod.ip(), "{told:?}");
            ensure!(told.about == fragments[0][14..][..told.about.len()], "{told:?}");
            for later in &fragments[1..] {
                meets(harness, Hook::FromPod, later, Action::Drop)?;
            }
        }
        assert_eq!(harness.drops()?.get(&DropReason::NoEndpoints), Some(&3));
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
