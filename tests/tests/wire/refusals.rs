//! Packets that no backend may get: addresses without a service, ports that are not there, clients that are not admitted.

use std::collections::BTreeMap;

use anyhow::Result;
use dataplane_common::{DropReason, Frontend, FrontendKind, Protocol, TcpFlags, map::cidr};
use dataplane_tests::{
    harness::{Action, Hook},
    packet::Packet,
};

use crate::cast::{drops, each, meets, passes, refuses};

/// The hooks where flows begin.
const ENTRANCES: [Hook; 2] = [Hook::FromPod, Hook::FromUplink];

#[test]
fn p10_an_address_of_a_service_cidr_that_no_service_owns_is_dropped() -> Result<()> {
    each(|harness, cast, protocol| {
        let (prefix, length) = cast.services();
        harness.put_cidr(prefix, length, cidr::SERVICE)?;
        harness.add_frontend(FrontendKind::ClusterIp, protocol, cast.service, &[cast.remote])?;
        for hook in ENTRANCES {
            drops(harness, hook, &Packet::first(protocol, cast.pod, cast.unowned))?;
        }
        assert_eq!(harness.drops()?, BTreeMap::from([(DropReason::UnownedServiceAddress, 2)]));
        // What is beside the CIDR is none of our business, and a frontend in it is served.
        let beside = Packet::first(protocol, cast.pod, cast.remote.addr);
        assert_eq!(passes(harness, Hook::FromPod, &beside)?, beside);
        let served = passes(harness, Hook::FromPod, &Packet::first(protocol, cast.pod, cast.service))?;
        assert_eq!(served.dst, cast.remote.addr);
        assert_eq!(harness.flow_count()?, 2);
        Ok(())
    })
}

/// Echo requests and protocols without ports: no service takes them, but they must not wander off either.
#[test]
fn p10_what_is_part_of_no_flow_is_dropped_at_an_address_that_no_service_owns() -> Result<()> {
    each(|harness, cast, protocol| {
        let (prefix, length) = cast.services();
        harness.put_cidr(prefix, length, cidr::SERVICE)?;
        harness.put_other_ports(cast.service.ip())?;
        // IPv4's protocol and IPv6's next header; the second is GRE.
        let (field, echo) = if cast.pod.is_ipv4() { (14 + 9, 1) } else { (14 + 6, 58) };
        let request: u8 = if cast.pod.is_ipv4() { 8 } else { 128 };
        for number in [echo, 47] {
            let frame = |to| -> Result<Vec<u8>> {
                let payload_begins_with_a_type =
                    Packet::first(protocol, (cast.pod.ip(), u16::from(request) << 8).into(), to);
                let mut frame = payload_begins_with_a_type.frame()?;
                frame[field] = number;
                Ok(frame)
            };
            for hook in ENTRANCES {
                meets(harness, hook, &frame(cast.unowned)?, Action::Drop)?;
                for to in [cast.service, cast.remote.addr] {
                    assert_eq!(meets(harness, hook, &frame(to)?, Action::Pass)?, frame(to)?);
                }
            }
        }
        assert_eq!(harness.drops()?, BTreeMap::from([(DropReason::UnownedServiceAddress, 4)]));
        Ok(())
    })
}

#[test]
fn p10_without_knowledge_of_the_cidrs_an_unowned_address_passes() -> Result<()> {
    each(|harness, cast, protocol| {
        let (prefix, length) = cast.services();
        harness.put_cidr(prefix, length, cidr::POD)?;
        for hook in ENTRANCES {
            let sent = Packet::first(protocol, cast.pod, cast.unowned);
            assert_eq!(passes(harness, hook, &sent)?, sent);
        }
        assert_eq!(harness.drops()?, BTreeMap::new());
        Ok(())
    })
}

#[test]
fn p10_a_prefix_of_pods_is_no_prefix_of_services() -> Result<()> {
    each(|harness, cast, protocol| {
        let (prefix, length) = cast.services();
        harness.put_cidr(prefix, length, cidr::POD | cidr::SERVICES_KNOWN)?;
        let sent = Packet::first(protocol, cast.pod, cast.unowned);
        assert_eq!(passes(harness, Hook::FromPod, &sent)?, sent);
        Ok(())
    })
}

#[test]
fn p32_a_port_that_an_active_cluster_ip_does_not_have_is_refused() -> Result<()> {
    for bits in [cidr::POD, cidr::SERVICE | cidr::SERVICES_KNOWN] {
        each(|harness, cast, protocol| {
            let (prefix, length) = cast.services();
            harness.put_cidr(prefix, length, bits)?;
            harness.put_other_ports(cast.service.ip())?;
            harness.add_frontend(FrontendKind::ClusterIp, protocol, cast.service, &[cast.remote])?;
            let other = (cast.service.ip(), 81).into();
            for hook in ENTRANCES {
                refuses(harness, hook, &Packet::first(protocol, cast.pod, other))?;
            }
            assert_eq!(harness.drops()?, BTreeMap::from([(DropReason::UndefinedPort, 2)]));
            // Established segments, whose service had the port once, are refused too.
            if protocol == Protocol::Tcp {
                refuses(harness, Hook::FromPod, &Packet::tcp(cast.pod, other, TcpFlags::ACK))?;
                drops(harness, Hook::FromPod, &Packet::tcp(cast.pod, other, TcpFlags::RST))?;
            }
            let served = passes(harness, Hook::FromPod, &Packet::first(protocol, cast.pod, cast.service))?;
            assert_eq!(served.dst, cast.remote.addr);
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn p32_the_other_protocol_of_a_served_port_is_refused() -> Result<()> {
    each(|harness, cast, protocol| {
        let other = if protocol == Protocol::Tcp { Protocol::Udp } else { Protocol::Tcp };
        harness.put_other_ports(cast.service.ip())?;
        harness.add_frontend(FrontendKind::ClusterIp, protocol, cast.service, &[cast.remote])?;
        refuses(harness, Hook::FromPod, &Packet::first(other, cast.pod, cast.service))?;
        refuses(harness, Hook::FromPod, &Packet::first(Protocol::Sctp, cast.pod, cast.service))
    })
}

#[test]
fn p33_only_clients_in_the_source_ranges_are_admitted() -> Result<()> {
    each(|harness, cast, protocol| {
        harness.add_frontend(FrontendKind::LoadBalancer, protocol, cast.service, &[cast.local])?;
        let service = harness.change_frontend(FrontendKind::LoadBalancer, protocol, cast.service, |frontend| {
            frontend.flags |= Frontend::SOURCE_RANGES;
        })?;
        let sent = Packet::first(protocol, cast.client, cast.service);
        drops(harness, Hook::FromUplink, &sent)?;
        // Another service's prefix admits nobody here.
        let bits = if cast.client.is_ipv4() { 32 } else { 128 };
        harness.put_source_range(service + 1, cast.client.ip(), bits)?;
        drops(harness, Hook::FromUplink, &sent)?;
        assert_eq!(harness.drops()?, BTreeMap::from([(DropReason::SourceRange, 2)]));
        assert_eq!(harness.flow_count()?, 0, "refused before anything is remembered");

        harness.put_source_range(service, cast.client.ip(), bits)?;
        assert_eq!(passes(harness, Hook::FromUplink, &sent)?.dst, cast.local.addr);
        drops(harness, Hook::FromUplink, &Packet { src: (cast.router, 50_000).into(), ..sent.clone() })?;
        // A pod is a client like any other.
        let inside = Packet { src: cast.pod, ..sent };
        drops(harness, Hook::FromPod, &inside)?;
        let (pods, length) = cast.pods();
        harness.put_source_range(service, pods, length)?;
        assert_eq!(passes(harness, Hook::FromPod, &inside)?.dst, cast.local.addr);
        assert_eq!(harness.drops()?, BTreeMap::from([(DropReason::SourceRange, 4)]));
        Ok(())
    })
}

#[test]
fn p33_a_prefix_of_length_zero_admits_everyone_and_no_flag_means_no_ranges() -> Result<()> {
    each(|harness, cast, protocol| {
        harness.add_frontend(FrontendKind::LoadBalancer, protocol, cast.service, &[cast.local])?;
        let sent = Packet::first(protocol, cast.client, cast.service);
        assert_eq!(passes(harness, Hook::FromUplink, &sent)?.dst, cast.local.addr);
        let service = harness.change_frontend(FrontendKind::LoadBalancer, protocol, cast.service, |frontend| {
            frontend.flags |= Frontend::SOURCE_RANGES;
        })?;
        harness.put_source_range(service, cast.services().0, 0)?;
        let other = Packet { src: cast.client_port(50_001), ..sent };
        assert_eq!(passes(harness, Hook::FromUplink, &other)?.dst, cast.local.addr);
        Ok(())
    })
}
