//! Where a history happens: the world, the agent, the programs, and what is remembered of packets.

use std::{collections::BTreeMap, net::SocketAddr, ops::RangeInclusive};

use anyhow::{Context, Result, ensure};
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
        rules::{Arrival, Backends, Client, Fate, Owner},
        source::Masquerade,
    },
    topology::{self, IpVersion},
};

use crate::{
    step::{Aim, Complaints, Step},
    tally::{Event, Tally},
};

/// Clients' ports, which are above those that SNAT chooses from, as those of real ones are.
pub(crate) const PORTS: RangeInclusive<u16> = 29_000..=60_000;
/// More than a history needs.
const PORTS_OF_A_HISTORY: u16 = 5000;

/// What a history needs before it begins.
pub(crate) struct Place<'a> {
    /// The programs.
    pub(crate) harness: &'a mut Harness,
    /// Their maps, as the agent writes them.
    pub(crate) maps: &'a mut KernelMaps,
    /// The interface by which packets come and go.
    pub(crate) uplink: u32,
    /// The one by which pods of the node send and receive.
    pub(crate) pods: u32,
    /// What the operator decides.
    pub(crate) masquerade: Masquerade,
    /// The last client's port: no two flows that these maps have are the same.
    pub(crate) port: &'a mut u16,
}

impl Place<'_> {
    /// The same for one more history.
    pub(crate) fn again(&mut self) -> Place<'_> {
        Place { harness: self.harness, maps: self.maps, port: self.port, ..*self }
    }
}

/// One history.
pub(crate) struct Run<'a> {
    pub(crate) harness: &'a mut Harness,
    maps: &'a mut KernelMaps,
    pub(crate) uplink: u32,
    pub(crate) pods: u32,
    pub(crate) world: World,
    /// What clients with affinity had before.
    memory: Memory,
    core: Core,
    /// Whether the agent has had all there was at the beginning.
    started: bool,
    /// Whether it has heard of something since it last brought the maps up to date.
    behind: bool,
    flows: BTreeMap<u32, Flow>,
    /// About the packets of this step.
    pub(crate) complaints: Complaints,
    /// The last client's port: no two flows that these maps have are the same.
    port: &'a mut u16,
    pub(crate) tally: &'a mut Tally,
}

/// A flow that has been answered.
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
    /// Begins in an empty world, with what the agent finds in the maps.
    pub(crate) fn start(place: Place<'a>, tally: &'a mut Tally) -> Result<Self> {
        let Place { harness, maps, uplink, pods, masquerade, port } = place;
        // Of services that are gone: it would only take time to let it grow old.
        harness.forget_clients()?;
        if *port < PORTS.start() + PORTS_OF_A_HISTORY {
            // Another flow between the same ports would get one that SNAT chooses.
            harness.forget_flows()?;
            *port = *PORTS.end();
        }
        let core = Core::new(NODE, maps.read()?);
        let world = World { masquerade, ..World::empty() };
        let mut run = Self {
            harness,
            maps,
            uplink,
            pods,
            world,
            memory: Memory::default(),
            core,
            started: false,
            behind: false,
            flows: BTreeMap::new(),
            complaints: [None; 2],
            port,
            tally,
        };
        for touched in run.world.everything() {
            run.tell(&touched)?;
        }
        Ok(run)
    }

    /// Does what `step` says, and compares what becomes of packets with what should.
    pub(crate) fn take(&mut self, step: &Step) -> Result<()> {
        if !matches!(step, Step::Edit(_)) {
            self.sync()?;
        }
        self.complaints = [None; 2];
        match step {
            Step::Edit(edit) => {
                let touched = self.world.apply(edit);
                self.tell(&touched)
            }
            Step::Sync => Ok(()),
            Step::Wait(seconds) => self.wait(*seconds),
            Step::Begin(number, aim, complaints) => {
                self.complaints = *complaints;
                let flow = self.begin(*aim).with_context(|| format!("flow {number}, {aim}"))?;
                self.flows.extend(flow.map(|flow| (*number, flow)));
                Ok(())
            }
            Step::GoOn(number, complaints) => {
                self.complaints = *complaints;
                let Some(flow) = self.flows.remove(number) else { return Ok(()) };
                let since = if flow.orphaned { "which has been away since, " } else { "" };
                let goes_on = || format!("flow {number}, {:?} with {}, {since}goes on", flow.client, flow.backend);
                self.go_on(&flow).with_context(goes_on)
            }
            Step::Everyone(aim) => self.everyone_is_chosen(*aim),
        }
    }

    /// Whether `step` may come next: not all that is left of a longer history makes sense.
    pub(crate) fn allows(&self, step: &Step) -> bool {
        let is_sent = match step {
            // What is for the node itself does not leave it.
            Step::Begin(_, Aim { client: Client::Host(_), to, .. }, _)
            | Step::Everyone(Aim { client: Client::Host(_), to, .. }) => !self.world.addresses.contains(&to.ip()),
            _ => true,
        };
        is_sent && self.world.is_possible()
    }

    fn tell(&mut self, touched: &Touched) -> Result<()> {
        let snat = IpVersion::BOTH.map(|version| topology::node(0).ip(version));
        self.core.take(self.world.change(touched, self.uplink, &snat)?);
        self.behind = true;
        Ok(())
    }

    /// Lets the agent bring the maps up to date if something has changed.
    fn sync(&mut self) -> Result<()> {
        if !self.behind {
            return Ok(());
        }
        if !self.started {
            Source::ALL.into_iter().for_each(|source| self.core.take(Change::Synced(source)));
            self.started = true;
        }
        while self.core.has_work() {
            let round = self.core.plan();
            let outcome = apply(&round.plan, self.maps);
            let report = self.core.commit(round, outcome);
            ensure!(report.failed.is_empty(), "{:?}", report.failed);
        }
        self.behind = false;
        self.mark_orphans();
        self.memory.forget(&self.world);
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
        for flow in self.flows.values_mut() {
            let version = IpVersion::of(flow.backend.ip());
            flow.orphaned |= !self.world.serving(&flow.owner, version).contains(&flow.backend);
        }
    }

    /// The first packet of a new flow, and its answer.
    fn begin(&mut self, Aim { client, to, protocol }: Aim) -> Result<Option<Flow>> {
        *self.port -= 1;
        let first = Packet::first(protocol, (client.ip(), *self.port).into(), to);
        let (fate, owner) = self.expected(client, to, protocol);
        let sent = self.send(client, &first, &fate).with_context(|| format!("expected {fate:?}"))?;
        if let Some(owner) = owner.as_ref() {
            self.remember(client, owner, &fate, sent.map(|(backend, _)| backend));
        }
        let (Some((backend, arrival)), Some(owner)) = (sent, owner) else { return Ok(None) };
        Ok(Some(Flow { client, first, owner, backend, arrival, orphaned: false }))
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
    fn everyone_is_chosen(&mut self, aim: Aim) -> Result<()> {
        let (Fate::Sent(mut backends), Some(owner)) = self.world.fate(aim.client, aim.to, aim.protocol) else {
            return Ok(());
        };
        let affinity = self.world.affinity(&owner);
        let tries = 20 * backends.len();
        backends.retain(|_, arrival| arrival.lost.is_none());
        // That one of them is missed by chance happens once in a hundred million times.
        for _ in 0..tries {
            if let Some(seconds) = affinity {
                self.wait(u64::from(seconds) + 100)?;
            }
            if let Some(flow) = self.begin(aim).with_context(|| aim.to_string())? {
                backends.remove(&flow.backend);
            }
        }
        ensure!(backends.is_empty(), "{aim} is never sent to {:?}", backends.keys());
        Ok(())
    }
}
