//! Transport headers that do not follow a plain network header: IPv4 options and IPv6 extension headers.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use dataplane_common::{DropReason, FrontendKind};
use dataplane_tests::{
    harness::{Action, Harness, Hook},
    packet::{
        Packet, Parsed,
        options::{with_extension, with_options},
    },
    topology::IpVersion,
};

use crate::cast::{each, meets};

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

#[test]
fn p31_without_endpoints_a_packet_with_options_is_answered_or_dropped_but_never_answered_wrongly() -> Result<()> {
    each(|harness, cast, protocol| {
        harness.add_frontend(FrontendKind::ClusterIp, protocol, cast.service, &[])?;
        for units in [1, 10] {
            let frame = with_options(&Packet::first(protocol, cast.pod, cast.service).frame()?, units)?;
            let outcome = harness.run(Hook::FromPod, &frame)?;
            if cast.version == IpVersion::V6 {
                assert_eq!(outcome.action, Action::Drop);
                continue;
            }
            assert_eq!(outcome.action, Action::Redirect);
            match outcome.parsed()? {
                Parsed::Transport(reset) => assert_eq!((reset.src, reset.dst), (cast.service, cast.pod)),
                Parsed::Icmp(icmp) => {
                    assert!(icmp.is_port_unreachable());
                    assert_eq!(icmp.about, frame[14..14 + icmp.about.len()]);
                }
            }
        }
        assert_eq!(harness.drops()?, BTreeMap::from([(DropReason::NoEndpoints, 2)]));
        Ok(())
    })
}
