//! What the packets of a flow cost at the hooks they pass: map operations, and time over an empty program.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use dataplane_common::{Device, FrontendKind, NodeConfig, Protocol, conntrack::TcpFlags};

use super::{empty::Empty, record::PacketCost};
use crate::{
    harness::{Action, Harness, Hook, Target},
    packet::Packet,
    router::Router,
    topology::IpVersion,
};

/// Runs that give a steady median. Each is a system call of its own with a fresh packet, so that every run translates.
pub const MANY_RUNS: u16 = 4000;

/// Protocols whose flows are measured.
const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// Flows that are measured: who talks to what, and the hooks on the way there and back.
struct Scenario {
    name: &'static str,
    /// What the destination is; none for one that is no frontend.
    kind: Option<FrontendKind>,
    client: [&'static str; 2],
    frontend: [&'static str; 2],
    backend: [&'static str; 2],
    is_local: bool,
    there: Hook,
    back: Hook,
    /// Whether packets go around the stack.
    bypass: bool,
}

const POD: [&str; 2] = ["10.244.0.10:1", "[fd44::a]:1"];
const OUTSIDE: [&str; 2] = ["172.20.0.200:1", "[fd20::c8]:1"];
const CLUSTER_IP: [&str; 2] = ["10.96.0.10:80", "[fd96::a]:80"];
const NODE_PORT: [&str; 2] = ["172.20.0.10:30080", "[fd20::a]:30080"];
const LOCAL: [&str; 2] = ["10.244.0.11:8080", "[fd44::b]:8080"];
const REMOTE: [&str; 2] = ["10.244.1.10:8080", "[fd44:0:0:1::a]:8080"];

const SCENARIOS: [Scenario; 7] = [
    Scenario {
        name: "pod to ClusterIP",
        kind: Some(FrontendKind::ClusterIp),
        client: POD,
        frontend: CLUSTER_IP,
        backend: REMOTE,
        is_local: false,
        there: Hook::FromPod,
        back: Hook::ToPod,
        bypass: false,
    },
    Scenario {
        name: "outside to NodePort with a local backend",
        kind: Some(FrontendKind::NodePort),
        client: OUTSIDE,
        frontend: NODE_PORT,
        backend: LOCAL,
        is_local: true,
        there: Hook::FromUplink,
        back: Hook::ToUplink,
        bypass: false,
    },
    Scenario {
        name: "outside to NodePort with a remote backend (SNAT)",
        kind: Some(FrontendKind::NodePort),
        client: OUTSIDE,
        frontend: NODE_PORT,
        backend: REMOTE,
        is_local: false,
        there: Hook::FromUplink,
        back: Hook::FromUplink,
        bypass: false,
    },
    Scenario {
        name: "pod to what is no frontend",
        kind: None,
        client: POD,
        frontend: REMOTE,
        backend: REMOTE,
        is_local: false,
        there: Hook::FromPod,
        back: Hook::ToPod,
        bypass: false,
    },
    Scenario {
        name: "outside to what is no frontend",
        kind: None,
        client: OUTSIDE,
        frontend: LOCAL,
        backend: LOCAL,
        is_local: true,
        there: Hook::FromUplink,
        back: Hook::ToUplink,
        bypass: false,
    },
    Scenario {
        name: "pod to ClusterIP, around the stack",
        kind: Some(FrontendKind::ClusterIp),
        client: POD,
        frontend: CLUSTER_IP,
        backend: REMOTE,
        is_local: false,
        there: Hook::FromPod,
        back: Hook::FromUplink,
        bypass: true,
    },
    Scenario {
        name: "outside to what is no frontend, around the stack",
        kind: None,
        client: OUTSIDE,
        frontend: LOCAL,
        backend: LOCAL,
        is_local: true,
        there: Hook::FromUplink,
        back: Hook::FromPod,
        bypass: true,
    },
];

/// Measures every scenario in both families with TCP and UDP; times are the median of `runs` flows.
pub fn measure(runs: u16) -> Result<Vec<PacketCost>> {
    let (empty, router) = (Empty::load()?, Router::new()?);
    // The programs look routes up, and every entering of a namespace costs a thread.
    router.inside(|| {
        let mut costs = Vec::new();
        for scenario in &SCENARIOS {
            for version in IpVersion::BOTH {
                for protocol in PROTOCOLS {
                    let flow = scenario.of(version, protocol)?;
                    costs.extend(flow.measure(&router, &empty, runs).with_context(|| flow.name.clone())?);
                }
            }
        }
        Ok(costs)
    })?
}

impl Scenario {
    fn of(&self, version: IpVersion, protocol: Protocol) -> Result<Flow<'_>> {
        let pick = |texts: [&str; 2]| texts[usize::from(version == IpVersion::V6)].parse::<SocketAddr>();
        Ok(Flow {
            scenario: self,
            name: format!("{}, {version}, {}", self.name, protocol.name()),
            protocol,
            client: pick(self.client)?,
            frontend: pick(self.frontend)?,
            target: Target { addr: pick(self.backend)?, local: self.is_local },
            // What is not translated costs the same in both directions and at any time.
            steps: match (self.kind, self.bypass && protocol == Protocol::Tcp) {
                (Some(_), _) => &Step::ALL,
                // Segments that open no connection look for less.
                (None, true) => &[Step::Miss, Step::Established],
                (None, false) => &[Step::Miss],
            },
        })
    }
}

/// A scenario in one family and protocol.
struct Flow<'a> {
    scenario: &'a Scenario,
    name: String,
    protocol: Protocol,
    client: SocketAddr,
    frontend: SocketAddr,
    target: Target,
    steps: &'static [Step],
}

/// Which packet of a flow is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    New,
    Established,
    Reply,
    Miss,
}

impl Step {
    const ALL: [Self; 3] = [Self::New, Self::Established, Self::Reply];

    const fn name(self) -> &'static str {
        match self {
            Self::New => "new connection",
            Self::Established => "established",
            Self::Reply => "reply",
            Self::Miss => "miss",
        }
    }
}

impl Flow<'_> {
    fn measure(&self, router: &Router, empty: &Empty, runs: u16) -> Result<Vec<PacketCost>> {
        let counts = self.operations(router)?;
        let times = self.times(router, empty, runs)?;
        let rows =
            self.steps.iter().zip(counts).zip(times).map(|((step, (lookups, updates)), nanoseconds)| PacketCost {
                flow: self.name.clone(),
                packet: self.label(*step).to_owned(),
                hook: self.hook(*step).program().to_owned(),
                lookups,
                updates,
                nanoseconds,
            });
        Ok(rows.collect())
    }

    /// Runs `work` with programs that have `flags`, and with the scenario's entries in their maps.
    fn with<T>(&self, router: &Router, flags: u32, work: impl FnOnce(&Harness) -> Result<T>) -> Result<T> {
        let flags = if self.scenario.bypass { flags | NodeConfig::HOST_BYPASS } else { flags };
        Harness::with_flags(flags, |harness| {
            for (interface, kind) in [(router.pod, Device::PEER), (router.uplink, Device::TRANSMIT)] {
                if self.scenario.bypass {
                    harness.put_device(interface, Device { routed_as: interface, flags: kind })?;
                }
            }
            let node = NODE_PORT[usize::from(self.client.is_ipv6())].parse::<SocketAddr>()?.ip();
            router.declare(harness, node)?;
            if let Some(kind) = self.scenario.kind {
                harness.add_frontend(kind, self.protocol, self.frontend, &[self.target])?;
            }
            work(harness)
        })
    }

    /// Lookups and updates of each step.
    fn operations(&self, router: &Router) -> Result<Vec<(u64, u64)>> {
        self.with(router, NodeConfig::COUNT_MAP_OPS, |harness| {
            // The first packet of a tick looks up the way around the stack for all others: of several runs one at least has none.
            let ports = if self.scenario.bypass { 1020..1024 } else { 1023..1024 };
            let mut least = vec![(u64::MAX, u64::MAX); self.steps.len()];
            for port in ports {
                let mut reply = None;
                for (least, step) in least.iter_mut().zip(self.steps) {
                    let before = harness.map_operations()?;
                    self.pass(router, harness, *step, port, &mut reply)?;
                    let after = harness.map_operations()?;
                    *least = (*least).min((after.lookups - before.lookups, after.updates - before.updates));
                    if *step == Step::New {
                        // The first reply marks the flow as answered, which is not what later packets do.
                        self.pass(router, harness, Step::Reply, port, &mut reply)?;
                    }
                }
            }
            Ok(least)
        })
    }

    /// Medians of each step, in nanoseconds over the empty program.
    fn times(&self, router: &Router, empty: &Empty, runs: u16) -> Result<Vec<i64>> {
        self.with(router, 0, |harness| {
            let mut samples: Vec<Vec<Duration>> = vec![Vec::new(); self.steps.len()];
            let mut zero = Vec::new();
            for port in 1024..1024 + runs {
                let mut reply = None;
                zero.push(empty.run(&self.original(port).frame()?)?);
                for (samples, step) in samples.iter_mut().zip(self.steps) {
                    samples.push(self.pass(router, harness, *step, port, &mut reply)?);
                    if *step == Step::New {
                        self.pass(router, harness, Step::Reply, port, &mut reply)?;
                    }
                }
            }
            let zero = median(&mut zero);
            Ok(samples.iter_mut().map(|samples| median(samples) - zero).collect())
        })
    }

    /// The first packet of the client's `port`.
    fn original(&self, port: u16) -> Packet {
        Packet::first(self.protocol, SocketAddr::new(self.client.ip(), port), self.frontend)
    }

    /// What the packet of `step` is called: what is not translated has no flow that could be established.
    const fn label(&self, step: Step) -> &'static str {
        match (self.scenario.kind, step) {
            (None, Step::Established) => "later segment",
            _ => step.name(),
        }
    }

    const fn hook(&self, step: Step) -> Hook {
        match step {
            Step::New | Step::Established | Step::Miss => self.scenario.there,
            Step::Reply => self.scenario.back,
        }
    }

    /// Sends the packet of `step`, sees that it was translated, and notes what the backend replies.
    fn pass(
        &self,
        router: &Router,
        harness: &Harness,
        step: Step,
        port: u16,
        reply: &mut Option<Packet>,
    ) -> Result<Duration> {
        let original = self.original(port);
        let packet = match step {
            Step::New | Step::Miss => original.clone(),
            Step::Established if self.protocol == Protocol::Tcp => original.clone().with_flags(TcpFlags::ACK),
            Step::Established => original.clone(),
            Step::Reply => reply.clone().context("nothing was sent that could be replied to")?,
        };
        let hook = self.hook(step);
        let outcome = harness.run_on(router.interface(hook), hook, &packet.frame()?)?;
        let now = outcome.packet()?;
        let right = match step {
            Step::New | Step::Established | Step::Miss => now.dst == self.target.addr,
            Step::Reply => (now.src, now.dst) == (original.dst, original.src),
        };
        let goes_on = matches!(outcome.action, Action::Pass | Action::Redirect);
        ensure!(right && goes_on, "{step:?} was not translated: {outcome:?}");
        if step == Step::New {
            *reply = Some(now.answer());
        }
        Ok(outcome.took)
    }
}

fn median(samples: &mut [Duration]) -> i64 {
    samples.sort_unstable();
    samples.get(samples.len() / 2).map_or(0, |middle| i64::try_from(middle.as_nanos()).unwrap_or(i64::MAX))
}
