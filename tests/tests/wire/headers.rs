//! Transport headers that do not follow a plain network header: IPv4 options and IPv6 extension headers.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use dataplane_common::{DropReason, FrontendKind, Protocol, TcpFlags};
use dataplane_tests::{
    harness::{Action, Harness, Hook},
    packet::{
        Packet, Parsed, fragment,
        options::{with_extension, with_options},
    },
    topology::IpVersion,
};

use crate::cast::{each, icmp, meets};

/// IPv6 extension headers (RFC 8200, 4): hop-by-hop options, routing, destination options.
const EXTENSIONS: [u8; 3] = [0, 43, 60];

/// The packet behind `hook`, having gone through it with options; they must be there afterwards.
fn passes(harness: &Harness, hook: Hook, packet: &Packet, dress: impl Fn(&[u8]) -> Result<Vec<u8>>) -> Result<Packet> {
    let frame = meets(harness, hook, &dress(&packet.frame()?)?, Action::Pass)?;
    let translated = Parsed::from_frame(&frame)?.transport()?;
    ensure!(frame == dress(&translated.frame()?)?, "{hook:?} changed more than addresses, ports and checksums");
    Ok(translated)
}

#[test]
fn p30_packets_with_options_are_translated_both_ways() -> Result<()> {
    each(|harness, cast, protocol| {
        harness.add_frontend(FrontendKind::ClusterIp, protocol, cast.service, &[cast.remote])?;
        for units in [1, 2, 5, 10] {
            let dress = |frame: &[u8]| with_options(frame, units);
            let sent = Packet::first(protocol, (cast.pod.ip(), 40_000 + u16::from(units)).into(), cast.service);
            let translated = passes(harness, Hook::FromPod, &sent, dress)?;
            assert_eq!(translated, Packet { dst: cast.remote.addr, ..sent });
            let answer = translated.answer();
            let back = passes(harness, Hook::ToPod, &answer, dress)?;
            assert_eq!(back, Packet { src: cast.service, ..answer.clone() });
            // The other end may not send options at all.
            assert_eq!(passes(harness, Hook::ToPod, &answer, |frame| Ok(frame.to_vec()))?, back);
        }
        assert_eq!(harness.flow_count()?, 8);
        Ok(())
    })
}

#[test]
fn p30_chains_of_extension_headers_are_skipped() -> Result<()> {
    each(|harness, cast, protocol| {
        if cast.version == IpVersion::V4 {
            return Ok(());
        }
        harness.add_frontend(FrontendKind::ClusterIp, protocol, cast.service, &[cast.remote])?;
        for (port, chain) in (40_000..).zip([&EXTENSIONS[..1], &EXTENSIONS[1..2], &EXTENSIONS, &[60, 43, 60, 0]]) {
            let dress =
                |frame: &[u8]| chain.iter().try_fold(frame.to_vec(), |frame, kind| with_extension(&frame, *kind, 3));
            let sent = Packet::first(protocol, (cast.pod.ip(), port).into(), cast.service);
            let frame = meets(harness, Hook::FromPod, &dress(&sent.frame()?)?, Action::Pass)?;
            let expected = Packet { dst: cast.remote.addr, ..sent.clone() };
            assert_eq!(frame, dress(&expected.frame()?)?, "{chain:?}");
        }
        Ok(())
    })
}

#[test]
fn p30_more_extension_headers_than_anyone_sends_pass_untranslated() -> Result<()> {
    each(|harness, cast, protocol| {
        if cast.version == IpVersion::V4 {
            return Ok(());
        }
        harness.add_frontend(FrontendKind::ClusterIp, protocol, cast.service, &[cast.remote])?;
        let mut frame = Packet::first(protocol, cast.pod, cast.service).frame()?;
        for _ in 0..5 {
            frame = with_extension(&frame, 60, 1)?;
        }
        assert_eq!(meets(harness, Hook::FromPod, &frame, Action::Pass)?, frame);
        Ok(())
    })
}

/// The packet, which carries `payload` bytes, must be answered by ICMP "port unreachable", which quotes all but those.
fn is_unreachable(harness: &Harness, hook: Hook, frame: &[u8], payload: usize) -> Result<()> {
    let told = icmp(&meets(harness, hook, frame, Action::Redirect)?)?;
    ensure!(told.is_port_unreachable(), "{told:?}");
    ensure!(told.about == frame[14..][..told.about.len()], "{told:x?}\nabout\n{frame:x?}");
    ensure!(told.about.len() == frame.len() - 14 - payload, "{told:x?}");
    Ok(())
}

#[test]
fn p31_without_endpoints_a_packet_with_options_is_answered() -> Result<()> {
    each(|harness, cast, protocol| {
        harness.put_other_ports(cast.service.ip())?;
        harness.add_frontend(FrontendKind::ClusterIp, protocol, cast.service, &[])?;
        let undefined = (cast.service.ip(), 81).into();
        for to in [cast.service, undefined] {
            for hook in [Hook::FromPod, Hook::FromUplink] {
                for units in [1, 2, 10] {
                    let sent = Packet::first(protocol, cast.pod, to).with_payload(&[0x5a; 333]);
                    let frame = with_options(&sent.frame()?, units)?;
                    if cast.version == IpVersion::V6 || protocol == Protocol::Udp {
                        is_unreachable(harness, hook, &frame, 333)?;
                        continue;
                    }
                    let reset = Parsed::from_frame(&meets(harness, hook, &frame, Action::Redirect)?)?.transport()?;
                    assert_eq!((reset.src, reset.dst), (to, cast.pod));
                }
                let sctp = with_options(&Packet::first(Protocol::Sctp, cast.pod, to).frame()?, 3)?;
                harness.add_frontend(FrontendKind::ClusterIp, Protocol::Sctp, cast.service, &[])?;
                // What Linux knows an association by is quoted, the rest of the INIT chunk is not.
                if cast.version == IpVersion::V6 {
                    is_unreachable(harness, hook, &sctp, 12)?;
                    continue;
                }
                let told = icmp(&meets(harness, hook, &sctp, Action::Redirect)?)?;
                ensure!(told.refuses(Protocol::Sctp) && told.about == sctp[14..sctp.len() - 12], "{told:x?}");
            }
        }
        let drops = BTreeMap::from([(DropReason::NoEndpoints, 8), (DropReason::UndefinedPort, 8)]);
        assert_eq!(harness.drops()?, drops);
        Ok(())
    })
}

#[test]
fn p31_p44_behind_extension_headers_as_much_is_answered_as_can_be_quoted() -> Result<()> {
    each(|harness, cast, protocol| {
        if cast.version == IpVersion::V4 {
            return Ok(());
        }
        harness.add_frontend(FrontendKind::ClusterIp, protocol, cast.service, &[])?;
        // With payload and without: a packet may be shorter than what is summed of others.
        for payload in [0, 700] {
            let frame = Packet::first(protocol, cast.pod, cast.service).with_payload(&vec![0x5a; payload]).frame()?;
            for chain in [&EXTENSIONS[..1], &EXTENSIONS[1..2], &EXTENSIONS, &[60, 43, 60, 0]] {
                let dressed = chain.iter().try_fold(frame.clone(), |frame, kind| with_extension(&frame, *kind, 3))?;
                is_unreachable(harness, Hook::FromPod, &dressed, payload)?;
            }
            is_unreachable(harness, Hook::FromPod, &with_options(&frame, 22)?, payload)?;
            meets(harness, Hook::FromPod, &with_options(&frame, 23)?, Action::Drop)?;
            // In front of a fragment header that says that the datagram is whole.
            let whole = fragment::cut(&frame, 7, 4000)?.swap_remove(0);
            is_unreachable(harness, Hook::FromPod, &with_extension(&whole, 60, 1)?, payload)?;
        }
        assert_eq!(harness.drops()?, BTreeMap::from([(DropReason::NoEndpoints, 14)]));
        // What must not be answered is not behind options either.
        if protocol == Protocol::Tcp {
            let reset = with_options(&Packet::tcp(cast.pod, cast.service, TcpFlags::RST).frame()?, 1)?;
            meets(harness, Hook::FromPod, &reset, Action::Drop)?;
        }
        Ok(())
    })
}
