//! ICMP errors about translated flows, in every direction: translated inside and out, so that who gets one recognises the
//! packet that it sent itself.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::{Context, Result, ensure};
use dataplane_common::{FrontendKind, Protocol};
use dataplane_tests::{
    harness::{Action, Harness, Hook},
    packet::{Icmp, IcmpError, Packet, Parsed, options::with_options},
};

use crate::cast::{Cast, each, each_version, icmp, meets, passes};

/// Transport bytes that errors quote: as few as allowed (RFC 792), TCP's ports and no checksum, the whole TCP header, and
/// everything.
const QUOTES: [usize; 5] = [8, 12, 18, 20, 4096];

/// A packet on its way, as its sender sent it and as it is at the other end.
struct Journey {
    sent: Packet,
    arrived: Packet,
    protocol: Protocol,
}

impl Journey {
    /// Sends a packet that ends in an odd number of bytes through `hook`.
    fn through(harness: &Harness, hook: Hook, sent: Packet) -> Result<Self> {
        Self::with(harness, hook, sent.with_payload(&[0x5a; 333]))
    }

    /// Sends `sent` as it is.
    fn with(harness: &Harness, hook: Hook, sent: Packet) -> Result<Self> {
        Ok(Self { arrived: passes(harness, hook, &sent)?, protocol: sent.protocol, sent })
    }

    /// Sends the answer to a packet that has arrived back through `hook`.
    fn answer(&self, harness: &Harness, hook: Hook) -> Result<Self> {
        Self::through(harness, hook, self.arrived.answer())
    }
}

/// Sends every kind of error by `from` about what arrived, with quotes of every length, through `hook`. The sender must get an
/// error from `seen_from` which quotes what it sent, byte for byte.
fn check(
    harness: &Harness,
    hook: Hook,
    action: Action,
    journey: &Journey,
    (from, seen_from): (IpAddr, IpAddr),
) -> Result<()> {
    let (arrived, sent) = (journey.arrived.frame()?, journey.sent.frame()?);
    for error in IcmpError::ALL {
        for quoted in QUOTES {
            let told = Icmp::about(error, from, &arrived, quoted)?;
            let about = format!("{hook:?}: {error:?} by {from} with {quoted} bytes of {}", journey.protocol);
            let frame = meets(harness, hook, &told.frame()?, action).with_context(|| about.clone())?;
            let got = icmp(&frame).with_context(|| about.clone())?;
            let expected = Icmp {
                src: seen_from,
                dst: journey.sent.src.ip(),
                about: sent[14..][..told.about.len()].to_vec(),
                ..told
            };
            ensure!(got == expected, "{about}:\n{got:x?}\nexpected\n{expected:x?}");
            if quoted > 333 {
                ensure!(got.quoted()? == journey.sent, "{about}: quotes {:?}", got.quoted()?);
            }
        }
    }
    Ok(())
}

/// An error about the packet must go through `hook` as it is.
fn check_untouched(harness: &Harness, hook: Hook, about: &Packet, from: IpAddr) -> Result<()> {
    for quoted in QUOTES {
        let frame = Icmp::about(IcmpError::PortUnreachable, from, &about.frame()?, quoted)?.frame()?;
        assert_eq!(meets(harness, hook, &frame, Action::Pass)?, frame);
    }
    Ok(())
}

#[test]
fn p44_a_pod_is_told_about_its_own_request_to_a_service() -> Result<()> {
    each(|harness, cast, protocol| {
        harness.add_frontend(FrontendKind::ClusterIp, protocol, cast.service, &[cast.remote])?;
        let request = Journey::through(harness, Hook::FromPod, Packet::first(protocol, cast.pod, cast.service))?;
        let backend = cast.remote.addr.ip();
        // Not before the stack: the node sees one consistent flow.
        check_untouched(harness, Hook::FromUplink, &request.arrived, backend)?;
        check(harness, Hook::ToPod, Action::Pass, &request, (backend, cast.service.ip()))?;
        check(harness, Hook::ToPod, Action::Pass, &request, (cast.router, cast.router))?;
        assert_eq!(harness.flow_count()?, 2, "an error begins no flow");
        assert_eq!(harness.drops()?, BTreeMap::new());
        Ok(())
    })
}

#[test]
fn p44_a_backend_is_told_about_its_answer_by_the_pod_that_asked() -> Result<()> {
    each(|harness, cast, protocol| {
        harness.add_frontend(FrontendKind::ClusterIp, protocol, cast.service, &[cast.remote])?;
        let request = Journey::through(harness, Hook::FromPod, Packet::first(protocol, cast.pod, cast.service))?;
        let answer = request.answer(harness, Hook::ToPod)?;
        check(harness, Hook::FromPod, Action::Pass, &answer, (cast.pod.ip(), cast.pod.ip()))?;
        // Translated already, it leaves as it is.
        check_untouched(harness, Hook::ToUplink, &answer.sent, cast.pod.ip())
    })
}

#[test]
fn p44_a_local_backend_is_told_about_its_answer_to_a_client_outside() -> Result<()> {
    each(|harness, cast, protocol| {
        let request = outside(harness, &cast, protocol)?;
        let answer = request.answer(harness, Hook::ToUplink)?;
        check(harness, Hook::FromUplink, Action::Pass, &answer, (cast.client.ip(), cast.client.ip()))?;
        check(harness, Hook::FromUplink, Action::Pass, &answer, (cast.router, cast.router))?;
        check_untouched(harness, Hook::ToPod, &answer.sent, cast.router)
    })
}

#[test]
fn p44_a_client_outside_is_told_about_its_request_to_a_local_backend() -> Result<()> {
    each(|harness, cast, protocol| {
        let request = outside(harness, &cast, protocol)?;
        let backend = cast.local.addr.ip();
        check_untouched(harness, Hook::FromPod, &request.arrived, backend)?;
        check(harness, Hook::ToUplink, Action::Pass, &request, (backend, cast.node_port.ip()))?;
        // The node itself, or a router of its own between it and the pod.
        check(harness, Hook::ToUplink, Action::Pass, &request, (cast.node_port.ip(), cast.node_port.ip()))?;
        check(harness, Hook::ToUplink, Action::Pass, &request, (cast.router, cast.router))
    })
}

fn outside(harness: &mut Harness, cast: &Cast, protocol: Protocol) -> Result<Journey> {
    harness.put_local_addr(cast.node_port.ip(), dataplane_common::map::local_addr::NODE_PORT)?;
    harness.add_frontend(FrontendKind::NodePort, protocol, cast.node_port, &[cast.local])?;
    Journey::through(harness, Hook::FromUplink, Packet::first(protocol, cast.client, cast.node_port))
}

#[test]
fn p44_a_pod_that_talks_to_itself_is_told_both_ways() -> Result<()> {
    each(|harness, cast, protocol| {
        harness.add_frontend(FrontendKind::ClusterIp, protocol, cast.service, &[cast.local])?;
        let pod = cast.local.addr.ip();
        let through = |sent: Packet| -> Result<Journey> {
            let sent = sent.with_payload(&[0x5a; 333]);
            let frame = meets(harness, Hook::FromPod, &sent.frame()?, Action::Redirect)?;
            Ok(Journey { arrived: Parsed::from_frame(&frame)?.transport()?, protocol, sent })
        };
        let request = through(Packet::first(protocol, (pod, 40_000).into(), cast.service))?;
        check(harness, Hook::FromPod, Action::Redirect, &request, (pod, cast.service.ip()))?;
        let answer = through(request.arrived.answer())?;
        check(harness, Hook::FromPod, Action::Redirect, &answer, (pod, cast.hairpin))
    })
}

#[test]
fn p44_errors_about_sctp_are_translated_without_its_checksum() -> Result<()> {
    each_version(|harness, cast| {
        let backend = cast.same_port(cast.remote);
        harness.add_frontend(FrontendKind::ClusterIp, Protocol::Sctp, cast.service, &[backend])?;
        let request = Journey::through(harness, Hook::FromPod, Packet::sctp(cast.pod, cast.service))?;
        check(harness, Hook::ToPod, Action::Pass, &request, (backend.addr.ip(), cast.service.ip()))?;
        check(harness, Hook::ToPod, Action::Pass, &request, (cast.router, cast.router))
    })
}

/// `packet` with a payload which makes the sum over it all ones, so that its checksum is zero; UDP then says ones, since its zero means
/// that there is none (RFC 768).
fn with_checksum_of_zero(packet: &Packet) -> Result<Packet> {
    let offset = if packet.protocol == Protocol::Tcp { 16 } else { 6 };
    let header = if packet.protocol == Protocol::Tcp { 20 } else { 8 };
    let checksum = |packet: &Packet| -> Result<[u8; 2]> {
        let frame = packet.frame()?;
        let transport = frame.len() - packet.payload.len() - header;
        frame[transport + offset..].first_chunk().copied().context("no checksum")
    };
    let zero = packet.clone().with_payload(&[0; 4]);
    let zero = packet.clone().with_payload(&[checksum(&zero)?, [0, 0]].concat());
    let expected = if packet.protocol == Protocol::Tcp { [0, 0] } else { [0xff, 0xff] };
    ensure!(checksum(&zero)? == expected, "the checksum of {zero:?}");
    Ok(zero)
}

#[test]
fn p44_a_quoted_checksum_of_zero_is_one_and_comes_to_be_one() -> Result<()> {
    each(|harness, cast, protocol| {
        if protocol == Protocol::Sctp {
            return Ok(());
        }
        harness.add_frontend(FrontendKind::ClusterIp, protocol, cast.service, &[cast.remote])?;
        let sent = Packet::first(protocol, cast.pod, cast.service);
        let arrived = passes(harness, Hook::FromPod, &sent)?;
        // The checksum that the quote has, and the one that it gets.
        let zero_on_arrival = sent.clone().with_payload(&with_checksum_of_zero(&arrived)?.payload);
        for sent in [zero_on_arrival, with_checksum_of_zero(&sent)?] {
            let journey = Journey::with(harness, Hook::FromPod, sent)?;
            check(harness, Hook::ToPod, Action::Pass, &journey, (cast.remote.addr.ip(), cast.service.ip()))?;
        }
        Ok(())
    })
}

#[test]
fn p44_a_quoted_packet_may_have_options() -> Result<()> {
    each(|harness, cast, protocol| {
        harness.add_frontend(FrontendKind::ClusterIp, protocol, cast.service, &[cast.remote])?;
        let request = Journey::through(harness, Hook::FromPod, Packet::first(protocol, cast.pod, cast.service))?;
        for units in [1, 2, 5] {
            let (arrived, sent) =
                (with_options(&request.arrived.frame()?, units)?, with_options(&request.sent.frame()?, units)?);
            for quoted in [64, 4096] {
                let told = Icmp::about(IcmpError::TooBig(1300), cast.router, &arrived, quoted)?;
                let frame = meets(harness, Hook::ToPod, &told.frame()?, Action::Pass)?;
                let got = icmp(&frame).with_context(|| format!("{units} units, {quoted} bytes"))?;
                assert_eq!(got, Icmp { about: sent[14..][..told.about.len()].to_vec(), ..told });
            }
        }
        Ok(())
    })
}

#[test]
fn p44_errors_about_what_is_no_service_pass_as_they_are() -> Result<()> {
    each(|harness, cast, protocol| {
        harness.add_frontend(FrontendKind::ClusterIp, protocol, cast.service, &[cast.remote])?;
        Journey::through(harness, Hook::FromPod, Packet::first(protocol, cast.pod, cast.service))?;
        let direct = Packet::first(protocol, (cast.pod.ip(), 41_000).into(), cast.remote.addr);
        for hook in Hook::ALL {
            check_untouched(harness, hook, &direct, cast.router)?;
        }
        Ok(())
    })
}

#[test]
fn p44_an_echo_that_looks_like_a_quote_passes() -> Result<()> {
    each(|harness, cast, protocol| {
        harness.add_frontend(FrontendKind::ClusterIp, protocol, cast.service, &[cast.remote])?;
        let request = Journey::through(harness, Hook::FromPod, Packet::first(protocol, cast.pod, cast.service))?;
        let error = Icmp::about(IcmpError::PortUnreachable, cast.remote.addr.ip(), &request.arrived.frame()?, 64)?;
        let kind = if cast.pod.is_ipv4() { 8 } else { 128 };
        let frame = Icmp { kind, code: 0, ..error }.frame()?;
        for hook in Hook::ALL {
            assert_eq!(meets(harness, hook, &frame, Action::Pass)?, frame);
        }
        Ok(())
    })
}
