//! What becomes of flows that XDP forwards when they close, when their backend goes, and when a service is choosy.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use dataplane_common::{DropReason, Frontend, FrontendKind, Protocol, TcpFlags};
use dataplane_tests::{
    harness::{Action, Harness, Hook, Target},
    packet::Packet,
};

use crate::cast::{Cast, each, transmits, untouched};

const FIN_ACK: TcpFlags = TcpFlags(TcpFlags::FIN.0 | TcpFlags::ACK.0);
const SYN_ACK: TcpFlags = TcpFlags(TcpFlags::SYN.0 | TcpFlags::ACK.0);

/// Another backend beside the first one of the first service, from now on the only one that is chosen.
fn replace_backend(harness: &mut Harness, cast: &Cast, protocol: Protocol) -> Result<Target> {
    let another = Target { addr: (cast.remote.addr.ip(), 8081).into(), ..cast.remote };
    harness.put_backend(2, 1, protocol, another, 1)?;
    harness.put_slot(1, 2)?;
    Ok(another)
}

#[test]
fn p52_a_connection_that_both_sides_have_closed_leaves_its_port_to_the_next_one() -> Result<()> {
    each(|harness, router, cast, protocol| {
        if protocol != Protocol::Tcp {
            return Ok(());
        }
        harness.add_frontend(FrontendKind::NodePort, protocol, cast.node_port, &[cast.remote])?;
        let syn = Packet::first(protocol, cast.client, cast.node_port);
        let arrived = transmits(harness, router, &syn)?;
        let there = |flags| transmits(harness, router, &syn.clone().with_flags(flags));
        let back = |flags| transmits(harness, router, &arrived.answer().with_flags(flags));
        assert_eq!(back(SYN_ACK)?.src, cast.node_port);
        there(TcpFlags::ACK)?;
        there(FIN_ACK)?;
        assert_eq!(back(FIN_ACK)?.dst, cast.client);
        // The last acknowledgement, and FINs that are sent again.
        for flags in [TcpFlags::ACK, FIN_ACK] {
            let last = there(flags)?;
            assert_eq!((last.src, last.dst), (arrived.src, cast.remote.addr), "{flags:?}");
        }
        assert_eq!(back(FIN_ACK)?.src, cast.node_port);

        let another = replace_backend(harness, cast, protocol)?;
        let again = transmits(harness, router, &syn)?;
        assert_eq!(again.dst, another.addr, "a new connection goes where new ones go by now");
        assert_eq!(transmits(harness, router, &again.answer())?.src, cast.node_port);
        Ok(())
    })
}

#[test]
fn p50_p52_a_backend_that_is_gone_keeps_its_open_connections_and_gets_no_datagram() -> Result<()> {
    each(|harness, router, cast, protocol| {
        harness.add_frontend(FrontendKind::NodePort, protocol, cast.node_port, &[cast.remote])?;
        let first = Packet::first(protocol, cast.client, cast.node_port);
        let arrived = transmits(harness, router, &first)?;
        transmits(harness, router, &arrived.answer())?;
        let another = replace_backend(harness, cast, protocol)?;
        harness.put_backend(1, 1, protocol, cast.remote, 2)?;
        let expected = if protocol == Protocol::Tcp { cast.remote } else { another };
        let next = transmits(harness, router, &first.clone().with_flags(TcpFlags::ACK))?;
        assert_eq!(next.dst, expected.addr);
        // A SYN says that the client, at least, has no such connection.
        let again = transmits(harness, router, &first)?;
        assert_eq!(again.dst, another.addr);
        assert_eq!(transmits(harness, router, &again.answer())?.src, cast.node_port);
        Ok(())
    })
}

#[test]
fn p27_the_same_client_gets_the_same_backend_from_both_programs() -> Result<()> {
    each(|harness, router, cast, protocol| {
        let target = |number: u16| Target { addr: (cast.remote.addr.ip(), 9000 + number).into(), ..cast.remote };
        let targets: Vec<Target> = (1..=8).map(target).collect();
        harness.add_frontend(FrontendKind::NodePort, protocol, cast.node_port, &targets)?;
        let service = harness.change_frontend(FrontendKind::NodePort, protocol, cast.node_port, |frontend| {
            frontend.affinity_seconds = 10_800;
        })?;
        let mut chosen = BTreeSet::new();
        for port in 50_000..50_040 {
            let first = Packet::first(protocol, (cast.client.ip(), port).into(), cast.node_port);
            let out = match port % 2 {
                0 => transmits(harness, router, &first)?,
                _ => router.redirects(harness, Hook::FromUplink, &first)?,
            };
            chosen.insert(out.dst.port());
        }
        assert_eq!(chosen.len(), 1, "{chosen:?}");
        harness.affinity(service, cast.client.ip())?.context("the client is remembered")?;
        Ok(())
    })
}

#[test]
fn p33_a_client_that_is_not_admitted_is_left_to_tc_which_drops_it_once() -> Result<()> {
    each(|harness, router, cast, protocol| {
        harness.add_frontend(FrontendKind::LoadBalancer, protocol, cast.service, &[cast.remote])?;
        let service = harness.change_frontend(FrontendKind::LoadBalancer, protocol, cast.service, |frontend| {
            frontend.flags |= Frontend::SOURCE_RANGES;
        })?;
        let first = Packet::first(protocol, cast.client, cast.service);
        untouched(harness, router, &first.frame()?)?;
        assert_eq!((harness.flow_count()?, harness.drops()?), (0, BTreeMap::new()));
        router.run(harness, Hook::FromUplink, &first.frame()?).map(|out| assert_eq!(out.action, Action::Drop))?;
        assert_eq!(harness.drops()?, BTreeMap::from([(DropReason::SourceRange, 1)]));

        harness.put_source_range(service, cast.client.ip(), if cast.client.is_ipv4() { 32 } else { 128 })?;
        assert_eq!(transmits(harness, router, &first)?.dst, cast.remote.addr);
        Ok(())
    })
}

#[test]
fn p34_with_external_policy_local_a_backend_elsewhere_is_nothing_to_xdp() -> Result<()> {
    each(|harness, router, cast, protocol| {
        let kind = FrontendKind::NodePort;
        harness.add_frontend(kind, protocol, cast.node_port, &[cast.remote])?;
        harness.change_frontend(kind, protocol, cast.node_port, |frontend| frontend.outside.count = 0)?;
        untouched(harness, router, &Packet::first(protocol, cast.client, cast.node_port).frame()?)?;
        assert_eq!((harness.flow_count()?, harness.drops()?), (0, BTreeMap::new()));
        Ok(())
    })
}
