//! SCTP, whose checksum covers the ports: addresses are translated, ports stay.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use dataplane_common::{DropReason, FrontendKind, Protocol};
use dataplane_tests::{
    harness::{Action, Hook},
    packet::Packet,
};

use crate::cast::{drops, each_version, meets, passes, refuses};

#[test]
fn p42_an_sctp_cluster_ip_is_translated_both_ways() -> Result<()> {
    each_version(|harness, cast| {
        let backend = cast.same_port(cast.remote);
        harness.add_frontend(FrontendKind::ClusterIp, Protocol::Sctp, cast.service, &[backend])?;
        let sent = Packet::sctp(cast.pod, cast.service);
        let translated = passes(harness, Hook::FromPod, &sent)?;
        assert_eq!(translated, Packet { dst: backend.addr, ..sent });
        assert_eq!(passes(harness, Hook::ToUplink, &translated)?, translated);
        let answer = translated.answer();
        assert_eq!(passes(harness, Hook::FromUplink, &answer)?, answer);
        assert_eq!(passes(harness, Hook::ToPod, &answer)?, Packet { src: cast.service, ..answer });
        assert_eq!(harness.flow_count()?, 2);
        assert_eq!(harness.drops()?, BTreeMap::new());
        Ok(())
    })
}

#[test]
fn p42_an_sctp_load_balancer_keeps_the_clients_address() -> Result<()> {
    each_version(|harness, cast| {
        let backend = cast.same_port(cast.local);
        harness.add_frontend(FrontendKind::LoadBalancer, Protocol::Sctp, cast.service, &[backend])?;
        let sent = Packet::sctp(cast.client, cast.service);
        let translated = passes(harness, Hook::FromUplink, &sent)?;
        assert_eq!(translated, Packet { dst: backend.addr, ..sent });
        let answer = translated.answer();
        assert_eq!(passes(harness, Hook::FromPod, &answer)?, answer);
        assert_eq!(passes(harness, Hook::ToUplink, &answer)?, Packet { src: cast.service, ..answer });
        Ok(())
    })
}

#[test]
fn p42_a_target_port_that_differs_is_dropped_and_counted() -> Result<()> {
    each_version(|harness, cast| {
        harness.add_frontend(FrontendKind::ClusterIp, Protocol::Sctp, cast.service, &[cast.remote])?;
        drops(harness, Hook::FromPod, &Packet::sctp(cast.pod, cast.service))?;
        assert_eq!(harness.drops()?, BTreeMap::from([(DropReason::SctpPort, 1)]));
        assert_eq!(harness.flow_count()?, 0);
        Ok(())
    })
}

#[test]
fn p42_an_sctp_hairpin_comes_from_the_hairpin_address() -> Result<()> {
    each_version(|harness, cast| {
        let backend = cast.same_port(cast.local);
        harness.add_frontend(FrontendKind::ClusterIp, Protocol::Sctp, cast.service, &[backend])?;
        let sent = Packet::sctp((backend.addr.ip(), 40_000).into(), cast.service);
        let frame = meets(harness, Hook::FromPod, &sent.frame()?, Action::Redirect)?;
        let bounced = dataplane_tests::packet::Parsed::from_frame(&frame)?.transport()?;
        assert_eq!((bounced.src, bounced.dst), ((cast.hairpin, 40_000).into(), backend.addr));
        let frame = meets(harness, Hook::FromPod, &bounced.answer().frame()?, Action::Redirect)?;
        let answer = dataplane_tests::packet::Parsed::from_frame(&frame)?.transport()?;
        assert_eq!((answer.src, answer.dst), (sent.dst, sent.src));
        Ok(())
    })
}

#[test]
fn p42_without_endpoints_the_client_is_told() -> Result<()> {
    each_version(|harness, cast| {
        harness.add_frontend(FrontendKind::ClusterIp, Protocol::Sctp, cast.service, &[])?;
        // With more chunks than an error quotes.
        let sent = Packet::sctp(cast.pod, cast.service).with_payload(&[11, 0, 0, 4].repeat(30));
        refuses(harness, Hook::FromPod, &sent)?;
        assert_eq!(harness.drops()?, BTreeMap::from([(DropReason::NoEndpoints, 1)]));
        Ok(())
    })
}

#[test]
fn p43_each_protocol_of_a_port_has_backends_of_its_own() -> Result<()> {
    each_version(|harness, cast| {
        let backend = |protocol| if protocol == Protocol::Tcp { cast.local } else { cast.remote };
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            harness.add_frontend(FrontendKind::ClusterIp, protocol, cast.service, &[backend(protocol)])?;
        }
        harness.add_frontend(FrontendKind::ClusterIp, Protocol::Sctp, cast.service, &[cast.same_port(cast.local)])?;
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp, Protocol::Tcp] {
            let expected = match protocol {
                Protocol::Sctp => cast.same_port(cast.local).addr,
                _ => backend(protocol).addr,
            };
            // All from the same port: the flows are different ones.
            let translated = passes(harness, Hook::FromPod, &Packet::first(protocol, cast.pod, cast.service))?;
            ensure!(translated.dst == expected, "{protocol} went to {}", translated.dst);
            let answer = passes(harness, Hook::ToPod, &translated.answer())?;
            ensure!((answer.src, answer.dst) == (cast.service, cast.pod), "{protocol} answer {answer:?}");
        }
        assert_eq!(harness.flow_count()?, 6);
        Ok(())
    })
}
