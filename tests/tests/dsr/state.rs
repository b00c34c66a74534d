//! What both nodes know of a direct flow, and for how long.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use dataplane_common::{Direction, Flow, FrontendKind, Protocol, TcpFlags, Ticks, V4, addr::Addr as _};
use dataplane_tests::{
    harness::{Harness, Hook, Target},
    packet::Packet,
};

use crate::cast::{Cast, arrives, each_backend, each_entry, each_with, is_adopted, is_silent, leaves, telling, tells};

const FIN_ACK: TcpFlags = TcpFlags(TcpFlags::FIN.0 | TcpFlags::ACK.0);

/// Both entries of the only flow: the request's, then the answer's.
fn entries(harness: &Harness) -> Result<[Flow<[u32; 1]>; 2]> {
    let flows = harness.flows::<V4>()?;
    assert_eq!(flows.len(), 2, "{flows:?}");
    let of = |direction| flows.iter().map(|(_, flow)| *flow).find(|flow| flow.direction == direction as u8);
    Ok([of(Direction::Original).context("no request")?, of(Direction::Reply).context("no answer")?])
}

fn names(harness: &Harness, protocol: Protocol) -> Result<[&'static str; 2]> {
    Ok(entries(harness)?.map(|flow| flow.state.name(protocol as u8)))
}

#[test]
fn the_clients_acknowledgement_tells_the_entry_node_of_the_answer() -> Result<()> {
    each_entry(|harness, router, cast, protocol| {
        let first = Packet::first(protocol, cast.client, cast.node_port);
        tells(harness, router, &first, cast.remote)?;
        let opened = entries(harness)?[0].deadline;
        if protocol == Protocol::Udp {
            assert_eq!(names(harness, protocol)?, ["unreplied"; 2]);
            tells(harness, router, &first, cast.remote)?;
            assert_eq!(names(harness, protocol)?, ["stream"; 2]);
            return Ok(());
        }
        assert_eq!(names(harness, protocol)?, ["opening"; 2]);
        tells(harness, router, &first, cast.remote)?;
        assert_eq!(names(harness, protocol)?, ["opening"; 2], "a retransmission says nothing");
        is_silent(harness, router, &first.clone().with_flags(TcpFlags::ACK), cast.remote)?;
        assert_eq!(names(harness, protocol)?, ["established"; 2]);
        for flow in entries(harness)? {
            // A day instead of two minutes: nothing is cut for being idle.
            assert!(flow.deadline - opened > Ticks::from_secs(23 * 3600).0, "{flow:?}");
        }
        is_silent(harness, router, &first.clone().with_flags(FIN_ACK), cast.remote)?;
        assert_eq!(names(harness, protocol)?, ["closing"; 2]);
        let [request, answer] = entries(harness)?;
        assert!(request.deadline.abs_diff(opened) < 10 && answer.deadline.abs_diff(opened) < 10);
        is_silent(harness, router, &first.with_flags(TcpFlags::RST), cast.remote)?;
        assert_eq!(names(harness, protocol)?, ["closed"; 2]);
        Ok(())
    })
}

#[test]
fn both_entries_of_the_backends_node_share_what_is_seen() -> Result<()> {
    each_backend(0, |harness, router, cast, protocol| {
        let first = Packet::first(protocol, cast.client, cast.local.addr);
        arrives(harness, router, &telling(&first, cast.elsewhere)?)?;
        let (begun, answered) =
            if protocol == Protocol::Tcp { ("opening", "established") } else { ("unreplied", "stream") };
        assert_eq!(names(harness, protocol)?, [begun; 2]);
        router.passes(harness, Hook::ToUplink, &first.answer())?;
        assert_eq!(names(harness, protocol)?, [answered; 2]);
        if protocol == Protocol::Udp {
            return Ok(());
        }
        arrives(harness, router, &first.clone().with_flags(FIN_ACK).frame()?)?;
        assert_eq!(names(harness, protocol)?, ["closing"; 2]);
        router.passes(harness, Hook::ToUplink, &first.answer().with_flags(FIN_ACK))?;
        assert_eq!(names(harness, protocol)?, ["closed"; 2]);
        // The next connection from the same port begins anew.
        is_adopted(harness, router, &first, cast.elsewhere)?;
        assert_eq!(names(harness, protocol)?, ["established"; 2]);
        Ok(())
    })
}

#[test]
fn retransmissions_stay_with_their_backend() -> Result<()> {
    each_with(0, |harness, router, cast, protocol| {
        let targets: Vec<Target> =
            (10..26_u8).map(|last| Target { addr: ([10, 244, 1, last], 8080).into(), local: false }).collect();
        harness.add_frontend(FrontendKind::NodePort, protocol, cast.node_port, &targets)?;
        let mut all = BTreeSet::new();
        for port in 0..20 {
            let first = Packet::first(protocol, (cast.client.ip(), 1000 + port).into(), cast.node_port);
            let (out, _) = leaves(harness, router, &first.frame()?)?;
            let target = Target { addr: out.dst, local: false };
            for _ in 0..5 {
                tells(harness, router, &first, target)?;
            }
            all.insert(out.dst);
        }
        assert!(all.len() > 4, "{all:?}");
        Ok(())
    })
}

#[test]
fn a_flow_that_both_directions_have_been_silent_in_begins_anew() -> Result<()> {
    each_backend(0, |harness, router, cast, protocol| {
        let first = Packet::first(protocol, cast.client, cast.local.addr);
        is_adopted(harness, router, &first, cast.elsewhere)?;
        harness.change_flows::<V4>(|flow| flow.deadline = 0)?;
        is_adopted(harness, router, &first, cast.elsewhere)?;
        // The answer's own packet does not revive what nobody asked for.
        assert!(entries(harness)?.iter().all(|flow| flow.deadline > 0));
        Ok(())
    })
}

#[test]
fn an_entry_whose_request_is_still_acknowledged_outlives_its_answers_deadline() -> Result<()> {
    each_entry(|harness, router, cast, protocol| {
        if protocol == Protocol::Udp {
            return Ok(());
        }
        let first = Packet::first(protocol, cast.client, cast.node_port);
        tells(harness, router, &first, cast.remote)?;
        is_silent(harness, router, &first.clone().with_flags(TcpFlags::ACK), cast.remote)?;
        harness.change_flows::<V4>(|flow| flow.deadline = 0)?;
        // An open connection stays with its backend whatever its deadline says.
        is_silent(harness, router, &first.with_flags(TcpFlags::ACK), cast.remote)?;
        let flows = harness.flows::<V4>()?;
        let (key, _) = flows.iter().find(|(_, flow)| flow.deadline > 0).context("nothing was prolonged")?;
        assert_eq!(key.src.to_ip(), cast.client.ip());
        Ok(())
    })
}

#[test]
fn a_datagrams_backend_that_goes_is_replaced_at_the_entry_node() -> Result<()> {
    each_entry(|harness, router, cast: Cast, protocol| {
        if protocol == Protocol::Tcp {
            return Ok(());
        }
        let first = Packet::first(protocol, cast.client, cast.node_port);
        tells(harness, router, &first, cast.remote)?;
        let another = Target { addr: "10.244.1.11:8080".parse()?, local: false };
        harness.change_backend(cast.client.ip(), 1, |_, generation| *generation += 1)?;
        harness.put_backend(2, 1, protocol, another, 1)?;
        harness.put_slot(1, 2)?;
        tells(harness, router, &first, another)
    })
}
