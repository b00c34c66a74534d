//! Random histories of objects against the reference: whether and where random packets go, through the agent's own planning
//! and the real programs.
//!
//! `SLUICE_MODEL_CASES` sets the number of cases, `SLUICE_MODEL_SEED` repeats a run.

use std::{
    env,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};
use dataplane_agent::{
    maps::{Maps as _, apply, kernel::KernelMaps},
    model::{Change, Source},
    sync::core::Core,
};
use dataplane_common::{NodeConfig, Protocol, addr::Addr as _, conntrack::TcpFlags};
use dataplane_tests::{
    bpffs::Bpffs,
    harness::{Action, Harness, Hook},
    leftovers,
    netns::Netns,
    packet::{Packet, Parsed},
    reference::{
        NODE, World,
        objects::Touched,
        random::Scope,
        rules::{Backends, Client, Fate, Owner},
    },
    topology::{self, IpVersion},
};
use fastrand::Rng;

/// Cases in a usual run; one is a few changes and a few packets.
const CASES: u64 = 10_000;
/// Cases after which a world ends, and the agent starts anew on the maps of the last one.
const HISTORY: u64 = 100;
/// What the programs do so far.
const SCOPE: Scope = Scope { undefined_ports: true };

#[test]
fn p20_p21_p22_p25_p30_p31_p32_p34_packets_go_where_the_reference_says() -> Result<()> {
    let number = |name: &str| env::var(name).ok().and_then(|text| text.parse().ok());
    let cases = number("SLUICE_MODEL_CASES").unwrap_or(CASES);
    let seed = number("SLUICE_MODEL_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("seed {seed}, {cases} cases");
    let prefix = leftovers::unique_prefix()?;
    let netns = node(&prefix)?;
    let uplink = netns.run(|| nix::net::if_::if_nametoindex("up0"))??;
    let bpffs = Bpffs::mount(&Path::new(leftovers::DIRECTORY).join(&prefix).join("model/bpf"))?;
    let harness = Harness::load(&NodeConfig::DEFAULT)?;
    let mut maps = harness.agent_maps(&bpffs)?;
    let result = netns.run(|| {
        let mut tally = Tally::default();
        let mut port = 0;
        for history in 0..cases.div_ceil(HISTORY) {
            let rng = Rng::with_seed(seed.wrapping_add(history));
            let mut run = Run::start(&harness, &mut maps, uplink, rng, port, tally)?;
            for case in 0..HISTORY.min(cases - history * HISTORY) {
                run.case().with_context(|| {
                    format!(
                        "case {case} of a history\nSLUICE_MODEL_SEED={} SLUICE_MODEL_CASES={}",
                        seed.wrapping_add(history),
                        case + 1
                    )
                })?;
            }
            run.everyone_is_chosen()?;
            (port, tally) = (run.port, run.tally);
        }
        println!("{tally:?}");
        tally.has_seen_everything(cases)
    })?;
    drop(bpffs);
    leftovers::remove_directory(&Path::new(leftovers::DIRECTORY).join(&prefix));
    result
}

/// A node with an uplink, neighbours on it, and routes to every pod.
fn node(prefix: &str) -> Result<Netns> {
    let netns = Netns::create(&format!("{prefix}-model"))?;
    netns.sysctls(&["ipv4/ip_forward=1", "ipv6/conf/all/forwarding=1", "ipv6/conf/default/accept_dad=0"])?;
    let mut script = String::from("link add up0 type veth peer name far0\nlink set far0 up\nlink set up0 up\n");
    for version in IpVersion::BOTH {
        let length = if version == IpVersion::V4 { 24 } else { 64 };
        script.push_str(&format!("addr add {}/{length} dev up0\n", topology::node(0).ip(version)));
        for other in [1, 2, 190, 191] {
            let ip = topology::node(other).ip(version);
            script.push_str(&format!("neigh add {ip} lladdr 02:00:00:00:00:{other:02x} dev up0\n"));
        }
    }
    for pods in [topology::POD_CIDRS.0, topology::POD_CIDRS.1] {
        let via = topology::node(1).ip(if pods.contains(':') { IpVersion::V6 } else { IpVersion::V4 });
        script.push_str(&format!("route add {pods} via {via}\n"));
    }
    netns.ip(&script)?;
    Ok(netns)
}

/// What has become of packets, so that a run without any of a kind is noticed.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    untouched: u64,
    refused: u64,
    dropped: u64,
    hairpins: u64,
    inside: u64,
    outside_local: u64,
    outside_remote: u64,
    later: u64,
    moved: u64,
}

impl Tally {
    fn has_seen_everything(&self, cases: u64) -> Result<()> {
        let Self { untouched, refused, dropped, hairpins, inside, outside_local, outside_remote, later, moved } = *self;
        let least = [untouched, refused, dropped, hairpins, inside, outside_local, outside_remote, later, moved];
        // The rarest comes about once in fifty cases.
        ensure!(least.iter().all(|count| *count >= cases / 500), "too few of a kind: {self:?}");
        Ok(())
    }
}

/// One history.
struct Run<'a> {
    harness: &'a Harness,
    maps: &'a mut KernelMaps,
    uplink: u32,
    rng: Rng,
    world: World,
    core: Core,
    flows: Vec<Flow>,
    /// The next client's port, so that no two flows are the same.
    port: u16,
    tally: Tally,
}

/// A flow that has been answered.
#[derive(Debug)]
struct Flow {
    client: Client,
    /// Its first packet.
    first: Packet,
    owner: Owner,
    backend: SocketAddr,
    local: bool,
    /// Whether the backend has been away since.
    orphaned: bool,
}

impl<'a> Run<'a> {
    fn start(
        harness: &'a Harness,
        maps: &'a mut KernelMaps,
        uplink: u32,
        rng: Rng,
        port: u16,
        tally: Tally,
    ) -> Result<Self> {
        let core = Core::new(NODE, maps.read()?);
        let mut run = Self { harness, maps, uplink, rng, world: World::empty(), core, flows: Vec::new(), port, tally };
        for touched in run.world.everything() {
            run.tell(&touched)?;
        }
        Source::ALL.into_iter().for_each(|source| run.core.take(Change::Synced(source)));
        run.sync()?;
        Ok(run)
    }

    /// Some changes at once, then some packets.
    fn case(&mut self) -> Result<()> {
        for _ in 0..self.rng.u8(1..4) {
            let touched = self.world.touch(&mut self.rng);
            self.tell(&touched)?;
        }
        self.sync()?;
        self.mark_orphans();
        for _ in 0..self.rng.u8(1..6) {
            let (client, to, protocol) = self.world.packet(&mut self.rng, SCOPE);
            let begun = self.begin(client, to, protocol);
            begun.with_context(|| format!("{client:?} -> {to} {protocol}\n{:#?}", self.world.about(to.ip())))?;
        }
        if !self.flows.is_empty() {
            let flow = self.flows.swap_remove(self.rng.usize(0..self.flows.len()));
            self.go_on(&flow).with_context(|| format!("{flow:?} goes on"))?;
        }
        Ok(())
    }

    fn tell(&mut self, touched: &Touched) -> Result<()> {
        let snat = IpVersion::BOTH.map(|version| topology::node(0).ip(version));
        self.core.take(self.world.change(touched, self.uplink, &snat)?);
        Ok(())
    }

    fn sync(&mut self) -> Result<()> {
        let round = self.core.plan();
        let outcome = apply(&round.plan, self.maps);
        let report = self.core.commit(round, outcome);
        ensure!(report.failed.is_empty(), "{:?}", report.failed);
        Ok(())
    }

    fn mark_orphans(&mut self) {
        for flow in &mut self.flows {
            let version = IpVersion::of(flow.backend.ip());
            flow.orphaned |= !self.world.serving(&flow.owner, version).contains(&flow.backend);
        }
    }

    /// The first packet of a new flow, and its answer.
    fn begin(&mut self, client: Client, to: SocketAddr, protocol: Protocol) -> Result<()> {
        self.port = if self.port < 10_000 { 60_000 } else { self.port - 1 };
        let first = Packet::first(protocol, (client.ip(), self.port).into(), to);
        let (fate, owner) = self.world.fate(client, to, protocol);
        let sent = self.send(client, &first, &fate).with_context(|| format!("expected {fate:?}"))?;
        if let (Some((backend, local)), Some(owner)) = (sent, owner) {
            self.flows.push(Flow { client, first, owner, backend, local, orphaned: false });
        }
        Ok(())
    }

    /// A later packet: it stays with its backend, except that a datagram leaves one that has gone.
    fn go_on(&mut self, flow: &Flow) -> Result<()> {
        let next = flow.first.clone().with_flags(if flow.first.protocol == Protocol::Tcp {
            TcpFlags::ACK
        } else {
            TcpFlags(0)
        });
        let (fate, owner) = self.world.fate(flow.client, flow.first.dst, flow.first.protocol);
        let stays = Fate::Sent(Backends::from([(flow.backend, flow.local)]));
        let expected = match flow.first.protocol {
            Protocol::Tcp => stays,
            _ if !flow.orphaned && owner.as_ref() == Some(&flow.owner) => stays,
            // Ports that a cluster IP does not have are out of scope so far.
            _ if !SCOPE.undefined_ports && (&fate, &owner) == (&Fate::Refused, &None) => return Ok(()),
            _ if flow.orphaned => fate,
            // The backend is there and the frontend is another's or nobody's: the flow may end in its own time.
            _ => return Ok(()),
        };
        let sent = self.send(flow.client, &next, &expected).with_context(|| format!("expected {expected:?}"))?;
        self.tally.later += 1;
        self.tally.moved += u64::from(sent.is_none_or(|(backend, _)| backend != flow.backend));
        Ok(())
    }

    /// Sends a packet, compares what becomes of it with `fate`, and takes the answer back; the backend that got it.
    fn send(&mut self, client: Client, packet: &Packet, fate: &Fate) -> Result<Option<(SocketAddr, bool)>> {
        let hook = if matches!(client, Client::Pod(_)) { Hook::FromPod } else { Hook::FromUplink };
        let (action, parsed) = self.pass(hook, packet)?;
        match fate {
            Fate::Dropped => {
                ensure!(action == Action::Drop, "{action:?}");
                self.tally.dropped += 1;
            }
            Fate::Untouched => {
                self.tally.untouched += 1;
                ensure!(action == Action::Pass && parsed == Parsed::Transport(packet.clone()), "{action:?} {parsed:?}");
            }
            Fate::Refused => {
                ensure!(action == Action::Redirect, "{action:?} {parsed:?}");
                is_refusal(packet, &parsed)?;
                self.tally.refused += 1;
            }
            Fate::Sent(backends) => {
                ensure!(action != Action::Drop, "dropped: {:?}", self.harness.drops()?);
                let backend = parsed.clone().transport()?.dst;
                let local = *backends.get(&backend).with_context(|| format!("sent to {backend}"))?;
                self.arrives(client, packet, action, parsed, local)?;
                return Ok(Some((backend, local)));
            }
        }
        Ok(None)
    }

    fn pass(&self, hook: Hook, packet: &Packet) -> Result<(Action, Parsed)> {
        let outcome = self.harness.run_on(self.uplink, hook, &packet.frame()?)?;
        // What is dropped may have been half rewritten.
        if outcome.action == Action::Drop {
            return Ok((outcome.action, Parsed::Transport(packet.clone())));
        }
        Ok((outcome.action, outcome.parsed().with_context(|| format!("{hook:?}: {:?}", outcome.action))?))
    }

    /// The packet keeps its source unless that would lead the answer astray; the answer seems to come from the frontend.
    fn arrives(&mut self, client: Client, sent: &Packet, action: Action, parsed: Parsed, local: bool) -> Result<()> {
        let arrived = parsed.transport()?;
        let answer = arrived.answer();
        match client {
            Client::Pod(ip) if ip == arrived.dst.ip() => {
                self.tally.hairpins += 1;
                let hairpin = match ip {
                    IpAddr::V4(_) => NodeConfig::DEFAULT_HAIRPIN4.to_ip(),
                    IpAddr::V6(_) => NodeConfig::DEFAULT_HAIRPIN6.to_ip(),
                };
                ensure!(action == Action::Redirect && arrived.src.ip() == hairpin, "{action:?} {arrived:?}");
                self.returns(sent, &answer, &[Hook::FromPod], Action::Redirect)
            }
            Client::Pod(_) => {
                self.tally.inside += 1;
                ensure!(action == Action::Pass && arrived.src == sent.src, "{action:?} {arrived:?}");
                self.returns(sent, &answer, &[Hook::ToPod], Action::Pass)
            }
            Client::Outside(_) if local => {
                self.tally.outside_local += 1;
                ensure!(action == Action::Pass && arrived.src == sent.src, "{action:?} {arrived:?}");
                self.returns(sent, &answer, &[Hook::FromPod, Hook::ToUplink], Action::Pass)
            }
            Client::Outside(ip) => {
                self.tally.outside_remote += 1;
                let own = topology::node(0).ip(IpVersion::of(ip));
                ensure!(action == Action::Redirect && arrived.src.ip() == own, "{action:?} {arrived:?}");
                ensure!(arrived.hop_limit + 1 == sent.hop_limit, "hop limit {}", arrived.hop_limit);
                self.returns(sent, &answer, &[Hook::FromUplink], Action::Redirect)
            }
        }
    }

    /// The answer passes `hooks`, the last one with `expected`, and then seems to come from where `sent` was sent to.
    fn returns(&self, sent: &Packet, answer: &Packet, hooks: &[Hook], expected: Action) -> Result<()> {
        let mut packet = answer.clone();
        for (index, hook) in hooks.iter().enumerate() {
            let (action, parsed) = self.pass(*hook, &packet)?;
            let expected = if index + 1 == hooks.len() { expected } else { Action::Pass };
            ensure!(action == expected, "the answer at {hook:?}: {action:?}");
            packet = parsed.transport()?;
        }
        ensure!((packet.src, packet.dst) == (sent.dst, sent.src), "the answer is {packet:?}");
        Ok(())
    }

    /// In a world that stands still, each backend of a service gets something sooner or later.
    fn everyone_is_chosen(&mut self) -> Result<()> {
        for _ in 0..20 {
            let (client, to, protocol) = self.world.packet(&mut self.rng, SCOPE);
            let (Fate::Sent(mut backends), _) = self.world.fate(client, to, protocol) else { continue };
            for _ in 0..40 * backends.len() {
                self.begin(client, to, protocol)?;
                let got = self.flows.pop().map(|flow| flow.backend);
                got.map(|backend| backends.remove(&backend));
            }
            if !backends.is_empty() {
                bail!("{client:?} -> {to} {protocol} is never sent to {:?}", backends.keys());
            }
            return Ok(());
        }
        Ok(())
    }
}

/// A RST, or an ICMP port unreachable about the packet, in the name of the destination.
fn is_refusal(packet: &Packet, answer: &Parsed) -> Result<()> {
    match answer {
        Parsed::Transport(answer) if packet.protocol == Protocol::Tcp => {
            ensure!((answer.src, answer.dst) == (packet.dst, packet.src), "{answer:?}");
            ensure!(answer.flags.0 & TcpFlags::RST.0 != 0, "{answer:?}");
        }
        Parsed::Icmp(icmp) if packet.protocol == Protocol::Udp => {
            ensure!(icmp.is_port_unreachable(), "{icmp:?}");
            ensure!((icmp.src, icmp.dst) == (packet.dst.ip(), packet.src.ip()), "{icmp:?}");
            // Behind the Ethernet header, apart from what may be cut off.
            let frame = packet.frame()?;
            ensure!(frame[14..].starts_with(&icmp.about) && icmp.about.len() >= 28, "about {:?}", icmp.about);
        }
        other => bail!("refused by {other:?}"),
    }
    Ok(())
}
