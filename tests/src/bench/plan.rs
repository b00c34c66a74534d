//! What is measured at which scale: phases of one load and one route, each with the contenders that take turns in it.

use super::{
    Scale,
    catalogue::Position,
    contenders::{DEFAULT, DIRECT, IPTABLES, NFTABLES, PACKET, XDP},
    installed::Route,
    slice::Load,
};

/// A load over a route, over which contenders take turns.
#[derive(Clone, Debug)]
pub struct Phase {
    /// What is done.
    pub load: Load,
    /// Between whom.
    pub route: Route,
    /// Who takes turns.
    pub entries: Vec<Entry>,
}

/// A contender in a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Who.
    pub contender: &'static str,
    /// Among how many services.
    pub services: u32,
    /// Which of them is asked.
    pub position: Position,
}

/// The smallest cluster.
pub const FEW: u32 = 10;
/// A large one.
pub const MANY: u32 = 10_000;

/// Everyone who carries pods' traffic.
const PODS: &[&str] =
    &[DIRECT, "empty programs", PACKET, DEFAULT, "sluice socket LB", IPTABLES[0], IPTABLES[1], NFTABLES];
/// Those of them that a row needs.
const ROWS: &[&str] = &[DIRECT, PACKET, DEFAULT, IPTABLES[0], IPTABLES[1], NFTABLES];
/// Those whose latency and throughput are compared.
const FEWER: &[&str] = &[DIRECT, PACKET, DEFAULT, IPTABLES[1], NFTABLES];
/// Those that take packets at a NodePort.
const NODES: &[&str] = &[DIRECT, PACKET, DEFAULT, XDP, IPTABLES[0], IPTABLES[1], NFTABLES];
const BOTH: [Route; 2] = [Route::SameNode, Route::CrossNode];

/// The phases of a scale.
pub fn phases(scale: Scale) -> Vec<Phase> {
    let mut phases: Vec<Phase> = BOTH.into_iter().map(|route| connections(scale, route)).collect();
    let pods = if scale == Scale::Quick { &[DIRECT, PACKET, DEFAULT][..] } else { FEWER };
    phases.extend(BOTH.map(|route| few(Load::Rr, route, pods)));
    phases.extend(BOTH.map(|route| few(Load::Stream, route, pods)));
    if scale > Scale::Quick {
        phases.extend(BOTH.map(|route| few(Load::Crr(8), route, PODS)));
        phases.extend(BOTH.map(|route| few(Load::UdpRr, route, FEWER)));
        phases.push(few(Load::Crr(1), Route::NodePort, NODES));
    }
    // Last: it switches offloads of the uplinks.
    phases.push(few(Load::Packets, Route::NodePort, NODES));
    phases
}

fn few(load: Load, route: Route, contenders: &[&'static str]) -> Phase {
    let entry = |contender: &&'static str| Entry { contender, services: FEW, position: Position::Middle };
    Phase { load, route, entries: contenders.iter().map(entry).collect() }
}

/// The load that depends on the number of services.
fn connections(scale: Scale, route: Route) -> Phase {
    let mut phase = few(Load::Crr(1), route, if scale == Scale::Quick { ROWS } else { PODS });
    let sizes: &[u32] = match scale {
        Scale::Quick => &[MANY],
        Scale::Usual => &[1000, MANY],
        Scale::Full => &[1000, MANY, 30_000],
    };
    for services in sizes.iter().copied() {
        let contenders: &[&str] =
            if scale == Scale::Quick { &[DEFAULT] } else { &[PACKET, DEFAULT, IPTABLES[0], IPTABLES[1], NFTABLES] };
        for contender in contenders.iter().copied() {
            // Only a list that is searched from its beginning makes a difference where a service stands in it.
            let positions = if IPTABLES.contains(&contender) { &Position::ALL[..] } else { &[Position::Middle] };
            let entry = |position: &Position| Entry { contender, services, position: *position };
            phase.entries.extend(positions.iter().map(entry));
        }
    }
    phase
}
