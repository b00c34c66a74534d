//! Passes over what the programs have written: what is over goes, and nothing else.

use std::time::Instant;

use anyhow::{Context as _, Result};
use aya::maps::{HashMap, Map};
use dataplane_agent::{
    maps::{Maps as _, expired, kernel::KernelMaps, pinned::Access},
    tables::{BackendId, BackendRow, Tables},
};
use dataplane_common::{
    Affinity, AffinityKey, BePort, Flow, FlowState, Protocol, Ticks,
    map::{self, MapSpec},
};

use super::{Pins, apply, flow, tables};

pub(super) fn sweep(pins: &Pins, spec: &MapSpec, now: u32) -> Result<(u32, u32)> {
    let mut sweeps = expired::sweeps(pins.path())?;
    let map = sweeps.iter_mut().find(|sweep| sweep.map() == spec.name).context("not swept")?;
    assert_eq!(map.capacity(), spec.entries);
    let (mut seen, mut removed) = (0, 0);
    loop {
        let swept = map.step(Ticks(now))?;
        assert!(swept.seen <= expired::STEP, "{swept:?}");
        (seen, removed) = (seen + swept.seen, removed + swept.removed);
        if swept.is_complete {
            return Ok((seen, removed));
        }
    }
}

#[test]
fn p53_each_direction_of_a_closed_connection_goes_when_it_is_silent() -> Result<()> {
    let pins = Pins::create()?;
    let mut raw = HashMap::try_from(Map::LruHashMap(pins.raw(&map::CONNTRACK4)?))?;
    let entries =
        flow(Protocol::Tcp, 1, 5, [50, 200]).map(|(key, value)| (key, Flow { state: FlowState::RESET, ..value }));
    for (key, value) in &entries {
        raw.insert(*key, *value, 0)?;
    }
    let [(request, _), (answer, _)] = entries;
    assert_eq!(sweep(&pins, &map::CONNTRACK4, 100)?, (2, 1));
    assert!(raw.get(&request, 0).is_err() && raw.get(&answer, 0).is_ok());
    assert_eq!(sweep(&pins, &map::CONNTRACK4, 201)?, (1, 1));
    assert!(raw.get(&answer, 0).is_err());
    Ok(())
}

#[test]
fn p50_flows_that_are_over_are_removed_with_both_entries_and_others_stay() -> Result<()> {
    let pins = Pins::create()?;
    // Backends 1 and 2 exist with generation 3, which no flow has; backend 5 with generation 1.
    let mut tables = tables()?;
    let (id, row) = tables.backends.pop_first().context("no backend")?;
    tables.backends.insert(BackendId { number: 5, ..id }, BackendRow { generation: 1, ..row });
    let mut kernel = KernelMaps::open(pins.path(), Access::ReadWrite)?;
    for (id, row) in &tables.backends {
        kernel.put_backend(*id, row)?;
    }
    let mut raw = HashMap::try_from(Map::LruHashMap(pins.raw(&map::CONNTRACK4)?))?;
    let cases = [
        (flow(Protocol::Tcp, 1, 5, [50, 50]), false, "silent"),
        (flow(Protocol::Tcp, 2, 5, [50, 200]), true, "one direction is not silent"),
        (flow(Protocol::Tcp, 3, 5, [200, 200]), true, "alive"),
        (flow(Protocol::Udp, 4, 5, [200, 200]), true, "alive"),
        (flow(Protocol::Udp, 5, 2, [200, 200]), false, "its backend is another one now"),
        (flow(Protocol::Udp, 6, 999_999, [200, 200]), false, "its backend is out of range"),
        (flow(Protocol::Tcp, 7, 2, [200, 200]), true, "a connection may be finished"),
    ];
    // The other direction's key belongs to another flow, which stays.
    let [(orphan, value), _] = flow(Protocol::Tcp, 8, 5, [50, 50]);
    let [_, (taken, mut stranger)] = flow(Protocol::Tcp, 8, 5, [50, 200]);
    stranger.dst_port = BePort::new(4);
    raw.insert(orphan, value, 0)?;
    raw.insert(taken, stranger, 0)?;
    for (entries, ..) in &cases {
        for (key, value) in entries {
            raw.insert(*key, *value, 0)?;
        }
    }
    assert_eq!(sweep(&pins, &map::CONNTRACK4, 100)?, (16, 7));
    assert!(raw.get(&orphan, 0).is_err() && raw.get(&taken, 0).is_ok());
    for (entries, expected, why) in &cases {
        for (key, _) in entries {
            assert_eq!(raw.get(key, 0).is_ok(), *expected, "{why}");
        }
    }
    assert_eq!(sweep(&pins, &map::CONNTRACK4, 100)?, (9, 0));
    Ok(())
}

#[test]
fn a_pass_sees_each_entry_of_a_large_map_once() -> Result<()> {
    let pins = Pins::create()?;
    let mut raw = HashMap::try_from(Map::LruHashMap(pins.raw(&map::CONNTRACK4)?))?;
    for port in 1..=20_000 {
        let [(key, value), _] = flow(Protocol::Tcp, port, 5, [200, 200]);
        raw.insert(key, value, 0)?;
    }
    let start = Instant::now();
    assert_eq!(sweep(&pins, &map::CONNTRACK4, 100)?, (20_000, 0));
    println!("20 000 entries in {:?}", start.elapsed());
    assert_eq!(sweep(&pins, &map::CONNTRACK4, 201)?, (20_000, 20_000));
    assert_eq!(sweep(&pins, &map::CONNTRACK4, 201)?, (0, 0));
    Ok(())
}

#[test]
fn p27_clients_are_forgotten_after_the_time_of_their_service() -> Result<()> {
    let pins = Pins::create()?;
    let mut kernel = KernelMaps::open(pins.path(), Access::ReadWrite)?;
    // Service 7 remembers for three hours.
    apply(&Tables::default(), &tables()?, &mut kernel)?;
    let mut raw = HashMap::try_from(Map::LruHashMap(pins.raw(&map::AFFINITY4)?))?;
    let now = 100_000;
    let three_hours = Ticks::from_secs(10_800).0;
    for (client, service, last_used) in
        [(1, 7, now), (2, 7, now - three_hours + 1), (3, 7, now - three_hours), (4, 8, now)]
    {
        let affinity = Affinity { backend: 1, generation: 3, last_used };
        raw.insert(AffinityKey { client: [client], service }, affinity, 0)?;
    }
    assert_eq!(sweep(&pins, &map::AFFINITY4, now)?, (4, 2));
    let mut left = raw.keys().map(|key| key.map(|key| key.client)).collect::<Result<Vec<_>, _>>()?;
    left.sort_unstable();
    assert_eq!(left, [[1_u32], [2]]);
    Ok(())
}
