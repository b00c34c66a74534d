//! Keys that are given to new flows while a sweep removes what they were.

use std::thread;

use anyhow::{Context as _, Result, ensure};
use aya::maps::{HashMap, Map};
use dataplane_agent::maps::expired;
use dataplane_common::{BePort, Flow, FlowKey, Protocol, Ticks, map};

use super::{Entry4, Pins, flow};

/// Flows of a few steps of a sweep.
const FLOWS: u16 = 8_000;

/// Both entries of a flow from another port, whose source port SNAT has given to the one from `port` before.
fn successor(port: u16) -> [Entry4; 2] {
    let [(mut key, original), (answer, mut reply)] = flow(Protocol::Tcp, port, 5, [200, 200]);
    key.src_port = BePort::new(20_000 + port);
    reply.dst_port = key.src_port;
    [(answer, reply), (key, original)]
}

#[test]
fn p52_a_flow_that_begins_while_old_ones_are_removed_keeps_its_entries() -> Result<()> {
    let pins = Pins::create()?;
    let mut raw: HashMap<_, FlowKey<[u32; 1]>, Flow<[u32; 1]>> =
        HashMap::try_from(Map::LruHashMap(pins.raw(&map::CONNTRACK4)?))?;
    for (key, value) in (1..=FLOWS).flat_map(|port| flow(Protocol::Tcp, port, 5, [50, 50])) {
        raw.insert(key, value, 0)?;
    }
    let sweeps = expired::sweeps(pins.path())?;
    let mut sweep = sweeps.into_iter().find(|sweep| sweep.map() == map::CONNTRACK4.name).context("not swept")?;
    thread::scope(|scope| -> Result<()> {
        let sweeping = scope.spawn(move || -> Result<()> {
            while !sweep.step(Ticks(100))?.is_complete {}
            Ok(())
        });
        for (key, value) in (1..=FLOWS).flat_map(successor) {
            raw.insert(key, value, 0)?;
        }
        sweeping.join().ok().context("the sweep panicked")?
    })?;
    let lost = (1..=FLOWS).flat_map(successor).filter(|(key, _)| raw.get(key, 0).is_err()).count();
    // Between the last look at an entry and its removal there is still a moment.
    ensure!(lost < usize::from(FLOWS) / 100, "{lost} of {} entries are gone", 2 * FLOWS);
    Ok(())
}
