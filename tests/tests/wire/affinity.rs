//! `ClientIP` session affinity: who is remembered, for how long, and what makes a memory void.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::{Context, Result};
use dataplane_common::{Affinity, Backend, Frontend, FrontendKind, Protocol, Ticks};
use dataplane_tests::{
    harness::{Harness, Hook, Target},
    packet::Packet,
};
use nix::time::{ClockId, clock_gettime};

use crate::cast::{Cast, each, passes};

/// kube-proxy's default.
const SECONDS: u32 = 10_800;
const SETS: u8 = Backend::<[u32; 1]>::IN_CLUSTER_SET | Backend::<[u32; 1]>::IN_LOCAL_SET;

/// The tick of now, or the one before: the programs' clock is a coarse one, which may be behind.
fn recent() -> Result<u32> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    Ok(Ticks::from_nanos(u64::try_from(now.tv_sec())? * 1_000_000_000 + u64::try_from(now.tv_nsec())?).0 - 1)
}

/// Eight local backends of a cluster IP, with affinity; the service's id.
fn service(harness: &mut Harness, cast: &Cast, protocol: Protocol) -> Result<u32> {
    let target = |number: u16| Target { addr: (cast.local.addr.ip(), 9000 + number).into(), local: true };
    let targets: Vec<Target> = (1..=8).map(target).collect();
    harness.add_frontend(FrontendKind::ClusterIp, protocol, cast.service, &targets)?;
    switch(harness, cast, protocol, SECONDS)
}

fn switch(harness: &mut Harness, cast: &Cast, protocol: Protocol, seconds: u32) -> Result<u32> {
    harness.change_frontend(FrontendKind::ClusterIp, protocol, cast.service, |frontend| {
        frontend.affinity_seconds = seconds;
    })
}

/// The port of the backend that a new connection from `port` of the client goes to; the backend's id is what it is above
/// 9000.
fn choice(harness: &Harness, cast: &Cast, protocol: Protocol, from: SocketAddr) -> Result<u16> {
    Ok(passes(harness, Hook::FromUplink, &Packet::first(protocol, from, cast.service))?.dst.port() - 9000)
}

/// The backends of many new connections of the client, from the port `first` on.
fn choices(harness: &Harness, cast: &Cast, protocol: Protocol, first: u16) -> Result<BTreeSet<u16>> {
    (first..first + 60).map(|port| choice(harness, cast, protocol, cast.client_port(port))).collect()
}

#[test]
fn p27_the_same_client_gets_the_same_backend() -> Result<()> {
    each(|harness, cast, protocol| {
        let service = service(harness, &cast, protocol)?;
        let backends = choices(harness, &cast, protocol, 50_000)?;
        assert_eq!(backends.len(), 1, "{backends:?}");
        let known = harness.affinity(service, cast.client.ip())?.context("the client is remembered")?;
        assert!(backends.contains(&u16::try_from(known.backend)?));
        assert_eq!(known.generation, 1);
        Ok(())
    })
}

#[test]
fn p27_other_clients_get_backends_of_their_own() -> Result<()> {
    each(|harness, cast, protocol| {
        service(harness, &cast, protocol)?;
        let pods = cast.pods().0;
        let mut backends = BTreeSet::new();
        for number in 1..60_u8 {
            let client = match pods {
                std::net::IpAddr::V4(_) => SocketAddr::new([10, 244, 7, number].into(), 40_000),
                std::net::IpAddr::V6(_) => SocketAddr::new([0xfd44, 0, 0, 7, 0, 0, 0, number.into()].into(), 40_000),
            };
            let first = choice(harness, &cast, protocol, client)?;
            assert_eq!(choice(harness, &cast, protocol, SocketAddr::new(client.ip(), 40_001))?, first);
            backends.insert(first);
        }
        assert!(backends.len() > 4, "60 clients on 8 backends: {backends:?}");
        Ok(())
    })
}

#[test]
fn p27_services_remember_a_client_each_for_itself() -> Result<()> {
    each(|harness, cast, protocol| {
        let first = service(harness, &cast, protocol)?;
        choice(harness, &cast, protocol, cast.client)?;
        let other = Cast { service: cast.unowned, ..cast };
        let second = service(harness, &other, protocol)?;
        assert!(harness.affinity(first, cast.client.ip())?.is_some());
        assert!(harness.affinity(second, cast.client.ip())?.is_none());
        Ok(())
    })
}

#[test]
fn p27_a_backend_that_has_left_the_set_is_forgotten() -> Result<()> {
    each(|harness, cast, protocol| {
        let service = service(harness, &cast, protocol)?;
        let before = choice(harness, &cast, protocol, cast.client)?;
        harness.change_backend(cast.client.ip(), before.into(), |flags, _| *flags &= !SETS)?;
        // The slots still hold it, so chance may choose it again; the memory must not.
        let mut new = BTreeSet::new();
        for port in 0..40 {
            let known = Affinity { backend: before.into(), generation: 1, last_used: recent()? };
            harness.put_affinity(service, cast.client.ip(), known)?;
            new.insert(choice(harness, &cast, protocol, cast.client_port(51_000 + port))?);
        }
        assert!(new.len() > 3, "still bound: {new:?}");
        Ok(())
    })
}

#[test]
fn p27_the_set_that_counts_is_that_of_the_clients_traffic_policy() -> Result<()> {
    each(|harness, cast, protocol| {
        let service = service(harness, &cast, protocol)?;
        harness.change_frontend(FrontendKind::ClusterIp, protocol, cast.service, |frontend| {
            frontend.flags |= Frontend::OUTSIDE_IS_LOCAL;
        })?;
        let bound = |harness: &mut Harness, flag: u8, from: u16| -> Result<bool> {
            harness.change_backend(cast.client.ip(), 3, |flags, _| *flags = *flags & !SETS | flag)?;
            let mut new = BTreeSet::new();
            for port in from..from + 40 {
                let known = Affinity { backend: 3, generation: 1, last_used: recent()? };
                harness.put_affinity(service, cast.client.ip(), known)?;
                new.insert(choice(harness, &cast, protocol, cast.client_port(port))?);
            }
            Ok(new == BTreeSet::from([3]))
        };
        assert!(bound(harness, Backend::<[u32; 1]>::IN_LOCAL_SET, 50_000)?);
        assert!(!bound(harness, Backend::<[u32; 1]>::IN_CLUSTER_SET, 51_000)?, "outside needs the local set here");
        Ok(())
    })
}

#[test]
fn p27_a_backend_whose_id_is_used_again_is_another_one() -> Result<()> {
    each(|harness, cast, protocol| {
        let service = service(harness, &cast, protocol)?;
        for generation in [2, 3] {
            harness.change_backend(cast.client.ip(), 5, |_, current| *current = generation)?;
            // Not one of the slots any more.
            for slot in 1..=8 {
                harness.put_slot(slot, if slot == 5 { 1 } else { slot })?;
            }
            let known = Affinity { backend: 5, generation: 1, last_used: recent()? };
            harness.put_affinity(service, cast.client.ip(), known)?;
            let port = 50_000 + u16::try_from(generation)?;
            assert_ne!(choice(harness, &cast, protocol, cast.client_port(port))?, 5, "generation {generation}");
        }
        Ok(())
    })
}

#[test]
fn p27_a_memory_ends_when_it_has_not_been_used_for_long_enough() -> Result<()> {
    each(|harness, cast, protocol| {
        let service = service(harness, &cast, protocol)?;
        let ticks = Ticks::from_secs(u64::from(SECONDS)).0;
        let choose = |harness: &mut Harness, age: u32, first: u16| -> Result<BTreeSet<u16>> {
            let mut new = BTreeSet::new();
            for port in first..first + 40 {
                let known = Affinity { backend: 2, generation: 1, last_used: recent()?.wrapping_sub(age) };
                harness.put_affinity(service, cast.client.ip(), known)?;
                new.insert(choice(harness, &cast, protocol, cast.client_port(port))?);
            }
            Ok(new)
        };
        // Three ticks of difference are three seconds: the test may be that slow.
        assert_eq!(choose(harness, ticks - 4, 50_000)?, BTreeSet::from([2]));
        let after = choose(harness, ticks + 1, 51_000)?;
        assert!(after.len() > 3, "still bound: {after:?}");
        // Use prolongs it: the entry is of now again.
        let known = harness.affinity(service, cast.client.ip())?.context("remembered")?;
        assert!(known.last_used + 3 > recent()?);
        Ok(())
    })
}

#[test]
fn p28_affinity_is_switched_on_and_off_on_a_live_service() -> Result<()> {
    each(|harness, cast, protocol| {
        service(harness, &cast, protocol)?;
        switch(harness, &cast, protocol, 0)?;
        let without = choices(harness, &cast, protocol, 50_000)?;
        assert!(without.len() > 3, "{without:?}");
        switch(harness, &cast, protocol, SECONDS)?;
        let with = choices(harness, &cast, protocol, 51_000)?;
        assert_eq!(with.len(), 1, "{with:?}");
        // Open flows stay where they are when it is switched.
        let bound = choice(harness, &cast, protocol, cast.client_port(51_000))?;
        assert!(with.contains(&bound));
        switch(harness, &cast, protocol, 0)?;
        assert_eq!(choice(harness, &cast, protocol, cast.client_port(51_000))?, bound);
        let again = choices(harness, &cast, protocol, 52_000)?;
        assert!(again.len() > 3, "{again:?}");
        Ok(())
    })
}
