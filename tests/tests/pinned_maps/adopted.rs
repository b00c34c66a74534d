//! Flows that another node has begun, whose entries do not mirror each other.

use anyhow::Result;
use aya::maps::{HashMap, Map};
use dataplane_common::{BePort, Protocol, Side, map};

use super::{Entry4, Pins, flow, sweep::sweep};

/// Both entries of a flow from port `port` to a backend that the request names already; backend 0 never goes.
fn adopted(protocol: Protocol, port: u16, deadlines: [u32; 2]) -> [Entry4; 2] {
    let [(_, mut request), (answer, mut reply)] = flow(protocol, port, 0, deadlines);
    (request.generation, reply.generation) = (0, 0);
    reply.side = Side::Egress as u8;
    [(request.translated(protocol as u8), request), (answer, reply)]
}

#[test]
fn both_entries_of_an_adopted_flow_stay_or_go_together() -> Result<()> {
    let pins = Pins::create()?;
    let mut raw = HashMap::try_from(Map::LruHashMap(pins.raw(&map::CONNTRACK4)?))?;
    let cases = [
        (adopted(Protocol::Tcp, 1, [50, 50]), false, "silent"),
        (adopted(Protocol::Tcp, 2, [50, 200]), true, "answers go on"),
        (adopted(Protocol::Tcp, 3, [200, 50]), true, "requests go on"),
        (adopted(Protocol::Udp, 4, [200, 200]), true, "alive, and its backend is nobody's"),
        (adopted(Protocol::Udp, 5, [50, 50]), false, "silent"),
    ];
    for (key, value) in cases.iter().flat_map(|(entries, ..)| entries) {
        raw.insert(*key, *value, 0)?;
    }
    assert_eq!(sweep(&pins, &map::CONNTRACK4, 100)?, (10, 4));
    for (entries, expected, why) in &cases {
        for (key, _) in entries {
            assert_eq!(raw.get(key, 0).is_ok(), *expected, "{why}");
        }
    }
    // The request of a flow whose answers are another frontend's by now goes alone.
    let [(request, value), (answer, mut reply)] = adopted(Protocol::Tcp, 6, [50, 200]);
    reply.dst_port = BePort::new(7);
    raw.insert(request, value, 0)?;
    raw.insert(answer, reply, 0)?;
    sweep(&pins, &map::CONNTRACK4, 100)?;
    assert!(raw.get(&request, 0).is_err() && raw.get(&answer, 0).is_ok());
    Ok(())
}
