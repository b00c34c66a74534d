//! What the packets of a flow cost at the hooks they pass: map operations, and time over an empty program.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Result, ensure};
use dataplane_common::{FrontendKind, NodeConfig, Protocol, conntrack::TcpFlags, map::local_addr};

use super::{empty::Empty, record::PacketCost};
use crate::{
    harness::{Action, Harness, Hook, Target},
    packet::Packet,
};

/// Runs that give a steady median. Each is a system call of its own with a fresh packet, so that every run translates.
pub const MANY_RUNS: u16 = 4000;

/// Flows that are measured: who talks to what, and the hooks on the way there and back.
struct Scenario {
    name: &'static str,
    kind: FrontendKind,
    client: &'static str,
    frontend: &'static str,
    backend: &'static str,
    there: Hook,
    back: Hook,
}

const SCENARIOS: [Scenario; 4] = [
    Scenario {
        name: "pod to ClusterIP, IPv4",
        kind: FrontendKind::ClusterIp,
        client: "10.1.0.2:1",
        frontend: "10.96.0.10:80",
        backend: "10.2.0.3:8080",
        there: Hook::FromPod,
        back: Hook::ToPod,
    },
    Scenario {
        name: "pod to ClusterIP, IPv6",
        kind: FrontendKind::ClusterIp,
        client: "[fd00:1::2]:1",
        frontend: "[fd00:96::10]:80",
        backend: "[fd00:2::3]:8080",
        there: Hook::FromPod,
        back: Hook::ToPod,
    },
    Scenario {
        name: "outside to NodePort with a local backend, IPv4",
        kind: FrontendKind::NodePort,
        client: "192.0.2.7:1",
        frontend: "198.51.100.1:30080",
        backend: "10.1.0.3:8080",
        there: Hook::FromUplink,
        back: Hook::ToUplink,
    },
    Scenario {
        name: "outside to NodePort with a local backend, IPv6",
        kind: FrontendKind::NodePort,
        client: "[2001:db8::7]:1",
        frontend: "[2001:db8:1::1]:30080",
        backend: "[fd00:1::3]:8080",
        there: Hook::FromUplink,
        back: Hook::ToUplink,
    },
];

/// Measures every scenario with TCP and UDP; times are the median of `runs` flows.
pub fn measure(runs: u16) -> Result<Vec<PacketCost>> {
    let empty = Empty::load()?;
    let mut costs = Vec::new();
    for scenario in &SCENARIOS {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            costs.extend(scenario.measure(protocol, &empty, runs)?);
        }
    }
    Ok(costs)
}

impl Scenario {
    fn measure(&self, protocol: Protocol, empty: &Empty, runs: u16) -> Result<Vec<PacketCost>> {
        let counts = self.operations(protocol)?;
        let times = self.times(protocol, empty, runs)?;
        let names = [("new connection", self.there), ("established", self.there), ("reply", self.back)];
        let rows =
            names.iter().zip(counts).zip(times).map(|(((packet, hook), (lookups, updates)), nanoseconds)| PacketCost {
                flow: format!("{}, {}", self.name, protocol.name()),
                packet: (*packet).to_owned(),
                hook: hook.program().to_owned(),
                lookups,
                updates,
                nanoseconds,
            });
        Ok(rows.collect())
    }

    fn harness(&self, flags: u32, protocol: Protocol) -> Result<Harness> {
        let mut harness = Harness::load(&NodeConfig { flags, ..NodeConfig::DEFAULT })?;
        let frontend: SocketAddr = self.frontend.parse()?;
        let target = Target { addr: self.backend.parse()?, local: self.kind == FrontendKind::NodePort };
        harness.add_frontend(self.kind, protocol, frontend, &[target])?;
        if self.kind == FrontendKind::NodePort {
            harness.put_local_addr(frontend.ip(), local_addr::NODE_PORT)?;
        }
        Ok(harness)
    }

    /// Lookups and updates of the first packet, a later one, and a later one of the other direction.
    fn operations(&self, protocol: Protocol) -> Result<[(u64, u64); 3]> {
        let harness = self.harness(NodeConfig::COUNT_MAP_OPS, protocol)?;
        let mut flow = Steps::new(self, protocol, 1024)?;
        let mut counts = [(0, 0); 3];
        for (count, step) in counts.iter_mut().zip(Step::ALL) {
            let before = harness.map_operations()?;
            flow.pass(self, &harness, step)?;
            let after = harness.map_operations()?;
            *count = (after.lookups - before.lookups, after.updates - before.updates);
            if step == Step::New {
                // The first reply marks the flow as answered, which is not what later packets do.
                flow.pass(self, &harness, Step::Reply)?;
            }
        }
        Ok(counts)
    }

    /// Medians, in nanoseconds over the empty program.
    fn times(&self, protocol: Protocol, empty: &Empty, runs: u16) -> Result<[i64; 3]> {
        let harness = self.harness(0, protocol)?;
        let mut samples: [Vec<Duration>; 3] = Default::default();
        let mut zero = Vec::new();
        for run in 0..runs {
            let mut flow = Steps::new(self, protocol, 1024 + run)?;
            zero.push(empty.run(&flow.original.frame()?)?);
            for (samples, step) in samples.iter_mut().zip(Step::ALL) {
                samples.push(flow.pass(self, &harness, step)?);
                if step == Step::New {
                    flow.pass(self, &harness, Step::Reply)?;
                }
            }
        }
        let zero = median(&mut zero);
        Ok(samples.map(|mut samples| median(&mut samples) - zero))
    }
}

/// Which packet of a flow is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    New,
    Established,
    Reply,
}

impl Step {
    const ALL: [Self; 3] = [Self::New, Self::Established, Self::Reply];
}

/// One flow on its way.
struct Steps {
    original: Packet,
    reply: Packet,
}

impl Steps {
    fn new(scenario: &Scenario, protocol: Protocol, port: u16) -> Result<Self> {
        let mut client: SocketAddr = scenario.client.parse()?;
        client.set_port(port);
        let original = Packet::first(protocol, client, scenario.frontend.parse()?);
        let translated = Packet::first(protocol, client, scenario.backend.parse()?);
        Ok(Self { original, reply: translated.answer() })
    }

    /// Sends the packet of `step` and sees that it was translated.
    fn pass(&mut self, scenario: &Scenario, harness: &Harness, step: Step) -> Result<Duration> {
        let tcp = self.original.protocol == Protocol::Tcp;
        let (hook, packet) = match step {
            Step::New => (scenario.there, self.original.clone()),
            Step::Established if tcp => (scenario.there, self.original.clone().with_flags(TcpFlags::ACK)),
            Step::Established => (scenario.there, self.original.clone()),
            Step::Reply => (scenario.back, self.reply.clone()),
        };
        let outcome = harness.send(hook, &packet)?;
        let now = outcome.packet()?;
        let right = if hook == scenario.there { now.dst == self.reply.src } else { now.src == self.original.dst };
        ensure!(right && outcome.action == Action::Pass, "{}: {step:?} was not translated: {outcome:?}", scenario.name);
        Ok(outcome.took)
    }
}

fn median(samples: &mut [Duration]) -> i64 {
    samples.sort_unstable();
    samples.get(samples.len() / 2).map_or(0, |middle| i64::try_from(middle.as_nanos()).unwrap_or(i64::MAX))
}
