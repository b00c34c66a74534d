//! What the packets of a flow cost at the hooks they pass: map operations, and time over an empty program.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use dataplane_common::{Device, NodeConfig, Protocol, TcpFlags};

use super::{
    empty::Empty,
    record::PacketCost,
    scenarios::{NODE_PORT, SCENARIOS, Scenario},
};
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

/// Measures every scenario in both families with TCP and UDP; times are the median of `runs` flows.
pub fn measure(runs: u16) -> Result<Vec<PacketCost>> {
    let (tc, xdp, router) = (Empty::load()?, Empty::load_xdp()?, Router::new()?);
    // The programs look routes up, and every entering of a namespace costs a thread.
    router.inside(|| {
        let mut costs = Vec::new();
        for scenario in &SCENARIOS {
            let empty = if scenario.is_xdp() { &xdp } else { &tc };
            for version in IpVersion::BOTH {
                for protocol in PROTOCOLS {
                    let flow = scenario.of(version, protocol)?;
                    costs.extend(flow.measure(&router, empty, runs).with_context(|| flow.name.clone())?);
                }
            }
        }
        Ok(costs)
    })?
}

impl Scenario {
    /// Whether packets meet XDP first.
    fn is_xdp(&self) -> bool {
        self.there == Hook::XdpFromUplink
    }

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
            steps: match (self.kind, protocol == Protocol::Tcp) {
                // The reply does not come by the uplink.
                (Some(_), _) if self.is_xdp() && self.is_local => &[Step::New, Step::Established],
                (Some(_), true) if self.passed.is_some() => {
                    &[Step::New, Step::Established, Step::Passing, Step::Reply, Step::Again]
                }
                (Some(_), false) if self.passed.is_some() => {
                    &[Step::New, Step::Established, Step::Passing, Step::Reply]
                }
                (Some(_), true) if !self.is_xdp() => &[Step::New, Step::Established, Step::Reply, Step::Again],
                (Some(_), _) => &[Step::New, Step::Established, Step::Reply],
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
    /// A reply that is translated behind the stack, before it.
    Passing,
    Reply,
    /// A new connection from the port of one that is closed.
    Again,
    Miss,
}

impl Step {
    const fn name(self) -> &'static str {
        match self {
            Self::New => "new connection",
            Self::Established => "established",
            Self::Passing => "reply, before the stack",
            Self::Reply => "reply",
            Self::Again => "from a used port",
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
            let link = self.scenario.is_xdp().then(|| harness.attach_xdp(router.uplink)).transpose()?;
            if let Some(kind) = self.scenario.kind {
                harness.add_frontend(kind, self.protocol, self.frontend, &[self.target])?;
            }
            let done = work(harness);
            drop(link);
            done
        })
    }

    /// The client's ports from `first` on. XDP leaves the first packet from each 64th to tc.
    fn ports(&self, first: u16, count: u16) -> impl Iterator<Item = u16> {
        let all = self.scenario.is_xdp().then_some(63);
        (first..first + count).filter(move |port| all != Some(port % 64))
    }

    /// Lookups and updates of each step.
    fn operations(&self, router: &Router) -> Result<Vec<(u64, u64)>> {
        self.with(router, NodeConfig::COUNT_MAP_OPS, |harness| {
            // The first packet of a tick looks up the way for all others, or is left to tc by XDP: of several runs one at least has
            // none.
            let runs = 4;
            let mut least = vec![(u64::MAX, u64::MAX); self.steps.len()];
            for port in self.ports(1000, runs) {
                let mut reply = None;
                for (least, step) in least.iter_mut().zip(self.steps) {
                    self.prepare(router, harness, *step, port, reply.as_ref())?;
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
            for port in self.ports(1024, runs) {
                let mut reply = None;
                zero.push(empty.run(&self.original(port).frame()?)?);
                for (samples, step) in samples.iter_mut().zip(self.steps) {
                    self.prepare(router, harness, *step, port, reply.as_ref())?;
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
            Step::New | Step::Established | Step::Again | Step::Miss => self.scenario.there,
            Step::Reply => self.scenario.back,
            Step::Passing => match self.scenario.passed {
                Some(hook) => hook,
                None => self.scenario.back,
            },
        }
    }

    /// Sends what has to come before the packet of `step`: both ends close the connection whose port is used again.
    fn prepare(&self, router: &Router, harness: &Harness, step: Step, port: u16, reply: Option<&Packet>) -> Result<()> {
        if step != Step::Again {
            return Ok(());
        }
        let fin = TcpFlags(TcpFlags::FIN.0 | TcpFlags::ACK.0);
        let reply = reply.context("nothing was sent that could be replied to")?;
        for (step, packet) in [(Step::Established, &self.original(port)), (Step::Reply, reply)] {
            let hook = self.hook(step);
            harness.run_on(router.interface(hook), hook, &packet.clone().with_flags(fin).frame()?)?;
        }
        Ok(())
    }

    /// Sends the packet of `step`, sees that it was translated or rightly passed, and notes what the backend replies.
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
            Step::New | Step::Again | Step::Miss => original.clone(),
            Step::Established if self.protocol == Protocol::Tcp => original.clone().with_flags(TcpFlags::ACK),
            Step::Established => original.clone(),
            Step::Passing | Step::Reply => reply.clone().context("nothing was sent that could be replied to")?,
        };
        let (hook, frame) = (self.hook(step), packet.frame()?);
        let run = |hook, frame: &[u8]| harness.run_on(router.interface(hook), hook, frame);
        let is_xdp = hook == Hook::XdpFromUplink;
        let is_sent = is_xdp && !self.scenario.is_local;
        let mut outcome = run(hook, &frame)?;
        if outcome.action == Action::Pass && is_sent {
            // The first packet of a tick is for tc; the next one is not.
            run(Hook::FromUplink, &frame)?;
            outcome = run(hook, &frame)?;
        }
        let now = outcome.packet()?;
        let right = match step {
            _ if is_xdp && !is_sent => outcome.frame == frame,
            Step::Passing => outcome.frame == frame,
            Step::New | Step::Established | Step::Again | Step::Miss => now.dst == self.target.addr,
            Step::Reply => (now.src, now.dst) == (original.dst, original.src),
        };
        let goes_on = match outcome.action {
            Action::Pass => !is_sent,
            Action::Redirect => !is_xdp,
            Action::Transmit => is_sent,
            Action::Drop | Action::Other(_) => false,
        };
        ensure!(right && goes_on, "{step:?} did not go its way: {outcome:?}");
        if step == Step::New {
            *reply = Some(Packet { src: self.target.addr, ..now.answer() });
        }
        Ok(outcome.took)
    }
}

fn median(samples: &mut [Duration]) -> i64 {
    samples.sort_unstable();
    samples.get(samples.len() / 2).map_or(0, |middle| i64::try_from(middle.as_nanos()).unwrap_or(i64::MAX))
}
