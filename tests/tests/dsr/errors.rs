//! ICMP errors about direct flows, in every direction.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use dataplane_tests::{
    harness::{Action, Harness, Hook},
    packet::{Icmp, IcmpError, Packet, Parsed},
    router::Router,
};

use crate::cast::{arrives, each_backend, each_entry, telling, tells};

/// Sends every kind of error by `from` about `seen` through `hook`: its addressee must get it from `seen_from`, about `sent`.
fn told(
    (harness, router): (&Harness, &Router),
    (hook, action): (Hook, Action),
    (seen, sent): (&Packet, &Packet),
    (from, seen_from): (IpAddr, IpAddr),
) -> Result<()> {
    let (seen, about) = (seen.frame()?, sent.frame()?);
    for error in IcmpError::ALL {
        for quoted in [8, 20, 4096] {
            let told = Icmp::about(error, from, &seen, quoted)?;
            let parsed = router.meets(harness, hook, &told.frame()?, action)?;
            let Parsed::Icmp(got) = parsed else { anyhow::bail!("no ICMP error") };
            let expected =
                Icmp { src: seen_from, dst: sent.src.ip(), about: about[14..][..told.about.len()].to_vec(), ..told };
            ensure!(got == expected, "{hook:?} {error:?} {quoted}:\n{got:x?}\nexpected\n{expected:x?}");
        }
    }
    Ok(())
}

#[test]
fn a_router_that_complains_about_answers_at_the_entry_node_is_heard_by_the_pod() -> Result<()> {
    each_entry(|harness, router, cast, protocol| {
        let first = Packet::first(protocol, cast.client, cast.node_port);
        tells(harness, router, &first, cast.remote)?;
        // The answer as the backend's node sends it, and as the pod has sent it.
        let seen = first.answer().with_payload(&[0x5a; 333]);
        let sent = Packet { src: cast.remote.addr, ..seen.clone() };
        let way = (Hook::FromUplink, Action::Redirect);
        told((harness, router), way, (&seen, &sent), (cast.router, cast.router))
    })
}

#[test]
fn on_its_way_through_the_backends_node_the_complaint_stays_as_it_is() -> Result<()> {
    each_backend(0, |harness, router, cast, protocol| {
        let first = Packet::first(protocol, cast.client, cast.local.addr);
        arrives(harness, router, &telling(&first, cast.elsewhere)?)?;
        let answer = first.answer().with_payload(&[0x5a; 333]);
        router.passes(harness, Hook::ToUplink, &answer)?;
        let way = (Hook::FromUplink, Action::Pass);
        told((harness, router), way, (&answer, &answer), (cast.router, cast.router))
    })
}

#[test]
fn complaints_of_the_pod_and_its_node_reach_the_client_as_the_frontends() -> Result<()> {
    each_backend(0, |harness, router, cast, protocol| {
        let arrived = Packet::first(protocol, cast.client, cast.local.addr).with_payload(&[0x5a; 333]);
        arrives(harness, router, &telling(&arrived, cast.elsewhere)?)?;
        let sent = Packet { dst: cast.elsewhere, ..arrived.clone() };
        let way = (Hook::ToUplink, Action::Pass);
        told((harness, router), way, (&arrived, &sent), (cast.local.addr.ip(), cast.elsewhere.ip()))?;
        let node = cast.node_port.ip();
        told((harness, router), way, (&arrived, &sent), (node, node))
    })
}
