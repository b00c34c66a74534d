//! A history: changes, packets, and what is remembered of them.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use dataplane_agent::{
    maps::{Maps as _, apply, kernel::KernelMaps},
    model::{Change, Source},
    sync::core::Core,
};
use dataplane_common::{Protocol, TcpFlags};
use dataplane_tests::{
    harness::Harness,
    packet::Packet,
    reference::{
        NODE, World,
        affinity::Memory,
        objects::Touched,
        random::SPANS,
        rules::{Arrival, Backends, Client, Fate, Owner},
        source::Masquerade,
    },
    topology::{self, IpVersion},
};
use fastrand::Rng;

use crate::tally::{Event, Tally};

/// Clients' ports are above those that SNAT chooses from, as those of real ones are.
const LEAST_PORT: u16 = 29_000;

/// One history.
pub(crate) struct Run<'a> {
    pub(crate) harness: &'a mut Harness,
    maps: &'a mut KernelMaps,
    pub(crate) uplink: u32,
    pub(crate) rng: Rng,
    world: World,
    /// What clients with affinity had before.
    memory: Memory,
    core: Core,
    flows: Vec<Flow>,
    /// The next client's port, so that no two flows are the same.
    pub(crate) port: u16,
    pub(crate) tally: &'a mut Tally,
}

/// A flow that has been answered.
#[derive(Debug)]
struct Flow {
    client: Client,
    /// Its first packet.
    first: Packet,
    owner: Owner,
    backend: SocketAddr,
    arrival: Arrival,
    /// Whether the backend has been away since.
    orphaned: bool,
}

impl<'a> Run<'a> {
    /// Begins in a small world, with what the agent finds in the maps.
    pub(crate) fn start(
        (harness, maps): (&'a mut Harness, &'a mut KernelMaps),
        uplink: u32,
        mut rng: Rng,
        masquerade: Masquerade,
        port: u16,
        tally: &'a mut Tally,
    ) -> Result<Self> {
        // Of services that are gone: it would only take time to let it grow old.
        harness.forget_clients()?;
        let core = Core::new(NODE, maps.read()?);
        let mut world = World { masquerade, ..World::empty() };
        for _ in 0..20 {
            world.touch(&mut rng);
        }
        let mut run =
            Self { harness, maps, uplink, rng, world, memory: Memory::default(), core, flows: Vec::new(), port, tally };
        for touched in run.world.everything() {
            run.tell(&touched)?;
        }
        Source::ALL.into_iter().for_each(|source| run.core.take(Change::Synced(source)));
        run.sync()?;
        Ok(run)
    }

    /// Often some changes at once, then some packets.
    pub(crate) fn case(&mut self) -> Result<()> {
        if self.rng.bool() {
            for _ in 0..self.rng.u8(1..6) {
                let touched = self.world.touch(&mut self.rng);
                self.tell(&touched)?;
            }
            self.sync()?;
            self.mark_orphans();
            self.memory.forget(&self.world);
        }
        if self.rng.u8(0..8) == 0 {
            let span = SPANS[self.rng.usize(0..SPANS.len())];
            self.wait(span)?;
        }
        for _ in 0..self.rng.u8(1..6) {
            let (client, to, protocol) = self.world.packet(&mut self.rng);
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
        while self.core.has_work() {
            let round = self.core.plan();
            let outcome = apply(&round.plan, self.maps);
            let report = self.core.commit(round, outcome);
            ensure!(report.failed.is_empty(), "{:?}", report.failed);
        }
        Ok(())
    }

    /// Lets the clients that are remembered be silent for some time.
    fn wait(&mut self, seconds: u64) -> Result<()> {
        self.memory.wait(seconds);
        self.harness.age_affinity(seconds)
    }

    /// What may become of the first packet of a flow, and whose it is.
    fn expected(&mut self, client: Client, to: SocketAddr, protocol: Protocol) -> (Fate, Option<Owner>) {
        let (fate, owner) = self.world.fate(client, to, protocol);
        let remembered = self.memory.fate(&self.world, client, fate.clone(), owner.as_ref());
        if remembered != fate {
            self.tally.count(Event::Remembered);
        }
        (remembered, owner)
    }

    fn mark_orphans(&mut self) {
        for flow in &mut self.flows {
            let version = IpVersion::of(flow.backend.ip());
            flow.orphaned |= !self.world.serving(&flow.owner, version).contains(&flow.backend);
        }
    }

    /// The first packet of a new flow, and its answer.
    fn begin(&mut self, client: Client, to: SocketAddr, protocol: Protocol) -> Result<()> {
        self.port = if self.port < LEAST_PORT { 60_000 } else { self.port - 1 };
        let first = Packet::first(protocol, (client.ip(), self.port).into(), to);
        let (fate, owner) = self.expected(client, to, protocol);
        let sent = self.send(client, &first, &fate).with_context(|| format!("expected {fate:?}"))?;
        if let Some(owner) = owner.as_ref() {
            self.remember(client, owner, &fate, sent.map(|(backend, _)| backend));
        }
        if let (Some((backend, arrival)), Some(owner)) = (sent, owner) {
            self.flows.push(Flow { client, first, owner, backend, arrival, orphaned: false });
        }
        Ok(())
    }

    /// Notes what a flow's first packet, which should meet `fate`, does to the memory of its client.
    fn remember(&mut self, client: Client, owner: &Owner, fate: &Fate, backend: Option<SocketAddr>) {
        match (fate, backend) {
            (Fate::Sent(_), Some(backend)) => self.memory.note(&self.world, client, owner, backend),
            (Fate::Sent(_), None) => self.memory.lose(client, owner),
            _ => {}
        }
    }

    /// A later packet: it stays with its backend, except that a datagram leaves one that has gone.
    fn go_on(&mut self, flow: &Flow) -> Result<()> {
        let next = flow.first.clone().with_flags(if flow.first.protocol == Protocol::Tcp {
            TcpFlags::ACK
        } else {
            TcpFlags(0)
        });
        let (fate, owner) = self.expected(flow.client, flow.first.dst, flow.first.protocol);
        let stays = Fate::Sent(Backends::from([(flow.backend, flow.arrival)]));
        let mut begins = false;
        let expected = match flow.first.protocol {
            Protocol::Tcp => stays,
            _ if !flow.orphaned && owner.as_ref() == Some(&flow.owner) => stays,
            _ if flow.orphaned => {
                begins = true;
                fate
            }
            // The backend is there and the frontend is another's or nobody's: the flow may end in its own time.
            _ => return Ok(()),
        };
        let sent = self.send(flow.client, &next, &expected).with_context(|| format!("expected {expected:?}"))?;
        if let (true, Some(owner)) = (begins, &owner) {
            self.remember(flow.client, owner, &expected, sent.map(|(backend, _)| backend));
        }
        self.tally.count(Event::Later);
        if sent.is_none_or(|(backend, _)| backend != flow.backend) {
            self.tally.count(Event::Moved);
        }
        Ok(())
    }

    /// In a world that stands still, each backend of a service gets something sooner or later.
    pub(crate) fn everyone_is_chosen(&mut self) -> Result<()> {
        for _ in 0..20 {
            let (client, to, protocol) = self.world.packet(&mut self.rng);
            let (Fate::Sent(mut backends), Some(owner)) = self.world.fate(client, to, protocol) else { continue };
            let affinity = self.world.affinity(&owner);
            let tries = 20 * backends.len();
            backends.retain(|_, arrival| arrival.lost.is_none());
            // That one of them is missed by chance happens once in a hundred million times.
            for _ in 0..tries {
                if let Some(seconds) = affinity {
                    self.wait(u64::from(seconds) + 100)?;
                }
                self.begin(client, to, protocol)?;
                if let Some(flow) = self.flows.pop() {
                    backends.remove(&flow.backend);
                }
            }
            if !backends.is_empty() {
                bail!("{client:?} -> {to} {protocol} is never sent to {:?}", backends.keys());
            }
            return Ok(());
        }
        Ok(())
    }
}
