//! What a test puts into the programs' maps and finds in them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context, Result};
use aya::{
    Ebpf, Pod,
    maps::{Array, HashMap, PerCpuArray, PerCpuValues, lpm_trie::LpmTrie},
};
use dataplane_common::{
    Addr, Affinity, AffinityKey, Backend, BePort, Device, DropReason, Family, Flow, FlowKey, FragmentKey,
    FragmentPorts, Frontend, FrontendKey, FrontendKind, PairWay, Protocol, Scope, SlotRange, SourceRange, V4, V6, Way,
    map,
};

use super::Harness;

/// A backend as a test names it: its address, and whether it runs on the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Address and port.
    pub addr: SocketAddr,
    /// On this node.
    pub local: bool,
}

/// A flow's key and value.
pub type FlowEntry<F> = (FlowKey<<F as Family>::Addr>, Flow<<F as Family>::Addr>);

/// How often programs have used maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operations {
    /// Lookups.
    pub lookups: u64,
    /// Insertions and replacements.
    pub updates: u64,
}

/// The next free numbers.
#[derive(Debug)]
pub(super) struct Allocation {
    service: u32,
    backend: u32,
    slot: u32,
}

impl Default for Allocation {
    fn default() -> Self {
        // Zero means "none" in every one of these.
        Self { service: 1, backend: 1, slot: 1 }
    }
}

impl Harness {
    /// Adds a frontend with its backends, the same ones for clients inside and outside; its slot range.
    pub fn add_frontend(
        &mut self,
        kind: FrontendKind,
        protocol: Protocol,
        at: SocketAddr,
        targets: &[Target],
    ) -> Result<SlotRange> {
        let (service, first) = (self.node.service, self.node.slot);
        self.node.service += 1;
        for target in targets {
            let id = self.node.backend;
            self.node.backend += 1;
            self.put_backend(id, service, protocol, *target, 1)?;
            self.put_slot(self.node.slot, id)?;
            self.node.slot += 1;
        }
        let range = SlotRange { first, count: u32::try_from(targets.len())? };
        let frontend = Frontend {
            service,
            inside: range,
            outside: range,
            affinity_seconds: 0,
            kind: kind as u8,
            flags: 0,
            pad: 0,
        };
        self.put_frontend(protocol, at, frontend)?;
        Ok(range)
    }

    /// Writes a frontend; a NodePort's address does not matter, only its family.
    pub fn put_frontend(&mut self, protocol: Protocol, at: SocketAddr, frontend: Frontend) -> Result<()> {
        match at.ip() {
            IpAddr::V4(_) => put_frontend::<V4>(&mut self.ebpf, protocol, at, frontend),
            IpAddr::V6(_) => put_frontend::<V6>(&mut self.ebpf, protocol, at, frontend),
        }
    }

    /// Writes a backend with the given generation: odd while it exists.
    pub fn put_backend(
        &mut self,
        id: u32,
        service: u32,
        protocol: Protocol,
        target: Target,
        generation: u32,
    ) -> Result<()> {
        match target.addr.ip() {
            IpAddr::V4(_) => put_backend::<V4>(&mut self.ebpf, id, service, protocol, target, generation),
            IpAddr::V6(_) => put_backend::<V6>(&mut self.ebpf, id, service, protocol, target, generation),
        }
    }

    /// Writes a slot.
    pub fn put_slot(&mut self, slot: u32, backend: u32) -> Result<()> {
        let map = self.ebpf.map_mut("slots").context("no map slots")?;
        Ok(Array::<_, u32>::try_from(map)?.set(slot, backend, 0)?)
    }

    /// Declares an address of the node, with the bits of `dataplane_common::map::local_addr`.
    pub fn put_local_addr(&mut self, ip: IpAddr, bits: u32) -> Result<()> {
        match ip {
            IpAddr::V4(_) => put_addr::<V4>(&mut self.ebpf, ip, bits),
            IpAddr::V6(_) => put_addr::<V6>(&mut self.ebpf, ip, bits),
        }
    }

    /// Lets packets pass the interface `index` without the stack, as `device` says.
    pub fn put_device(&mut self, index: u32, device: Device) -> Result<()> {
        let mut map = HashMap::<_, u32, Device>::try_from(self.ebpf.map_mut("devices").context("devices")?)?;
        Ok(map.insert(index, device, 0)?)
    }

    /// Declares what SNAT uses on the interface `index`.
    pub fn put_snat_addr(&mut self, index: u32, ip: IpAddr) -> Result<()> {
        match ip {
            IpAddr::V4(_) => put_snat::<V4>(&mut self.ebpf, index, ip),
            IpAddr::V6(_) => put_snat::<V6>(&mut self.ebpf, index, ip),
        }
    }

    /// The flows of one family, in no particular order.
    pub fn flows<F: Family>(&self) -> Result<Vec<FlowEntry<F>>>
    where
        FlowKey<F::Addr>: Pod,
        Flow<F::Addr>: Pod,
    {
        let name = map_name::<F>("conntrack");
        let map = HashMap::<_, FlowKey<F::Addr>, Flow<F::Addr>>::try_from(self.ebpf.map(&name).context(name)?)?;
        Ok(map.iter().collect::<Result<_, _>>()?)
    }

    /// Changes every flow of one family in place.
    pub fn change_flows<F: Family>(&mut self, change: impl Fn(&mut Flow<F::Addr>)) -> Result<()>
    where
        FlowKey<F::Addr>: Pod,
        Flow<F::Addr>: Pod,
    {
        let entries = self.flows::<F>()?;
        let name = map_name::<F>("conntrack");
        let mut map = HashMap::try_from(self.ebpf.map_mut(&name).context(name)?)?;
        for (key, mut flow) in entries {
            change(&mut flow);
            map.insert(key, flow, 0)?;
        }
        Ok(())
    }

    /// Number of flow entries of both families.
    pub fn flow_count(&self) -> Result<usize> {
        Ok(self.flows::<V4>()?.len() + self.flows::<V6>()?.len())
    }

    /// Empties the maps, for the next test: loading the programs takes much longer.
    pub fn reset(&mut self) -> Result<()> {
        clear::<V4>(&mut self.ebpf, self.node.backend)?;
        clear::<V6>(&mut self.ebpf, self.node.backend)?;
        empty::<u32, Device>(&mut self.ebpf, "devices")?;
        let processors = aya::util::nr_cpus().map_err(|(_, error)| error)?;
        let mut drops = PerCpuArray::<_, u64>::try_from(self.ebpf.map_mut("drops").context("no map drops")?)?;
        for reason in DropReason::ALL {
            drops.set(*reason as u32, PerCpuValues::try_from(vec![0; processors])?, 0)?;
        }
        self.node = Allocation::default();
        Ok(())
    }

    /// Forgets the ways of flows and of packets that nobody translates, as the next tick does.
    pub fn forget_ways(&mut self) -> Result<()> {
        forget_ways::<V4>(&mut self.ebpf)?;
        forget_ways::<V6>(&mut self.ebpf)
    }

    /// Everything that only an agent writes, as text: to see that packets have changed nothing of it.
    pub fn desired(&self) -> Result<String> {
        Ok([desired::<V4>(&self.ebpf, self.node.backend)?, desired::<V6>(&self.ebpf, self.node.backend)?].concat())
    }
}

fn clear<F: Family<Addr: Pod>>(ebpf: &mut Ebpf, backends: u32) -> Result<()>
where
    FrontendKey<F::Addr>: Pod,
    FlowKey<F::Addr>: Pod,
    Flow<F::Addr>: Pod,
    Backend<F::Addr>: Pod,
    AffinityKey<F::Addr>: Pod,
    FragmentKey<F::Addr>: Pod,
    SourceRange<F::Addr>: Pod,
{
    empty::<FrontendKey<F::Addr>, Frontend>(ebpf, &map_name::<F>("frontends"))?;
    empty::<FlowKey<F::Addr>, Flow<F::Addr>>(ebpf, &map_name::<F>("conntrack"))?;
    empty::<F::Addr, u32>(ebpf, &map_name::<F>("local_addrs"))?;
    empty::<u32, F::Addr>(ebpf, &map_name::<F>("snat_addrs"))?;
    empty::<AffinityKey<F::Addr>, Affinity>(ebpf, &map_name::<F>("affinity"))?;
    empty::<FragmentKey<F::Addr>, FragmentPorts>(ebpf, &map_name::<F>("fragments"))?;
    empty_trie::<SourceRange<F::Addr>>(ebpf, &map_name::<F>("source_ranges"))?;
    empty_trie::<F::Addr>(ebpf, &map_name::<F>("cidrs"))?;
    let name = map_name::<F>("backends");
    let mut map = Array::try_from(ebpf.map_mut(&name).context(name)?)?;
    // Beyond the numbers given out there are those that tests choose themselves.
    for id in 0..backends + 16 {
        map.set(id, Backend::<F::Addr>::FREE, 0)?;
    }
    Ok(())
}

fn forget_ways<F: Family<Addr: Pod>>(ebpf: &mut Ebpf) -> Result<()>
where
    PairWay<F::Addr>: Pod,
    FlowKey<F::Addr>: Pod,
    Flow<F::Addr>: Pod,
{
    let name = map_name::<F>("ways");
    let mut ways = PerCpuArray::try_from(ebpf.map_mut(&name).context(name)?)?;
    let none = PairWay { src: F::Addr::ZERO, dst: F::Addr::ZERO, way: Way::UNKNOWN };
    let processors = aya::util::nr_cpus().map_err(|(_, error)| error)?;
    for place in 0..map::WAYS4.entries {
        ways.set(place, PerCpuValues::try_from(vec![none; processors])?, 0)?;
    }
    let name = map_name::<F>("conntrack");
    let mut flows = HashMap::<_, FlowKey<F::Addr>, Flow<F::Addr>>::try_from(ebpf.map_mut(&name).context(name)?)?;
    let known: Vec<_> = flows.iter().collect::<Result<_, _>>()?;
    for (key, flow) in known {
        flows.insert(key, Flow { way: Way::UNKNOWN, ..flow }, 0)?;
    }
    Ok(())
}

pub(super) fn empty<K: Pod, V: Pod>(ebpf: &mut Ebpf, name: &str) -> Result<()> {
    let mut map = HashMap::<_, K, V>::try_from(ebpf.map_mut(name).with_context(|| name.to_owned())?)?;
    let keys: Vec<K> = map.keys().collect::<Result<_, _>>()?;
    for key in keys {
        map.remove(&key)?;
    }
    Ok(())
}

fn empty_trie<K: Pod>(ebpf: &mut Ebpf, name: &str) -> Result<()> {
    let mut map = LpmTrie::<_, K, u32>::try_from(ebpf.map_mut(name).with_context(|| name.to_owned())?)?;
    let keys = map.keys().collect::<Result<Vec<_>, _>>()?;
    for key in keys {
        map.remove(&key)?;
    }
    Ok(())
}

/// The name of the family's map.
pub(super) fn map_name<F: Family>(stem: &str) -> String {
    format!("{stem}{}", F::SUFFIX)
}

pub(super) fn drops(ebpf: &Ebpf) -> Result<BTreeMap<DropReason, u64>> {
    let map = PerCpuArray::<_, u64>::try_from(ebpf.map("drops").context("no map drops")?)?;
    let mut drops = BTreeMap::new();
    for reason in DropReason::ALL {
        let count: u64 = map.get(&(*reason as u32), 0)?.iter().sum();
        if count > 0 {
            drops.insert(*reason, count);
        }
    }
    Ok(drops)
}

pub(super) fn dropped(ebpf: &Ebpf, reason: DropReason) -> Result<u64> {
    let map = PerCpuArray::<_, u64>::try_from(ebpf.map("drops").context("no map drops")?)?;
    Ok(map.get(&(reason as u32), 0)?.iter().sum())
}

pub(super) fn operations(ebpf: &Ebpf) -> Result<Operations> {
    let map = PerCpuArray::<_, u64>::try_from(ebpf.map("map_ops").context("no map map_ops")?)?;
    let count = |index: u32| -> Result<u64> { Ok(map.get(&index, 0)?.iter().sum()) };
    Ok(Operations { lookups: count(0)?, updates: count(1)? })
}

fn put_frontend<F: Family>(ebpf: &mut Ebpf, protocol: Protocol, at: SocketAddr, frontend: Frontend) -> Result<()>
where
    FrontendKey<F::Addr>: Pod,
{
    let key = frontend_key::<F>(frontend.kind, protocol, at)?;
    let name = map_name::<F>("frontends");
    Ok(HashMap::try_from(ebpf.map_mut(&name).context(name)?)?.insert(key, frontend, 0)?)
}

/// The key of a frontend of the given [`FrontendKind`].
pub(super) fn frontend_key<F: Family>(kind: u8, protocol: Protocol, at: SocketAddr) -> Result<FrontendKey<F::Addr>> {
    let node_port = kind == FrontendKind::NodePort as u8;
    Ok(FrontendKey {
        addr: if node_port { F::Addr::ZERO } else { F::Addr::from_ip(at.ip()).context("family")? },
        port: BePort::new(at.port()),
        protocol: protocol as u8,
        scope: if node_port { Scope::NodePort } else { Scope::Address } as u8,
    })
}

fn put_backend<F: Family>(
    ebpf: &mut Ebpf,
    id: u32,
    service: u32,
    protocol: Protocol,
    target: Target,
    generation: u32,
) -> Result<()>
where
    Backend<F::Addr>: Pod,
{
    let backend = Backend {
        addr: F::Addr::from_ip(target.addr.ip()).context("family")?,
        port: BePort::new(target.addr.port()),
        protocol: protocol as u8,
        flags: flags_of::<F>(target),
        service,
        generation,
    };
    let name = map_name::<F>("backends");
    Ok(Array::try_from(ebpf.map_mut(&name).context(name)?)?.set(id, backend, 0)?)
}

/// A ready endpoint is in the set for everyone, and a local one also in the node's own.
fn flags_of<F: Family>(target: Target) -> u8 {
    let local = Backend::<F::Addr>::LOCAL | Backend::<F::Addr>::IN_LOCAL_SET;
    Backend::<F::Addr>::IN_CLUSTER_SET | if target.local { local } else { 0 }
}

fn put_addr<F: Family<Addr: Pod>>(ebpf: &mut Ebpf, ip: IpAddr, bits: u32) -> Result<()> {
    let name = map_name::<F>("local_addrs");
    let addr = F::Addr::from_ip(ip).context("family")?;
    Ok(HashMap::<_, F::Addr, u32>::try_from(ebpf.map_mut(&name).context(name)?)?.insert(addr, bits, 0)?)
}

fn put_snat<F: Family<Addr: Pod>>(ebpf: &mut Ebpf, index: u32, ip: IpAddr) -> Result<()> {
    let name = map_name::<F>("snat_addrs");
    let addr = F::Addr::from_ip(ip).context("family")?;
    Ok(HashMap::<_, u32, F::Addr>::try_from(ebpf.map_mut(&name).context(name)?)?.insert(index, addr, 0)?)
}

fn desired<F: Family<Addr: Pod>>(ebpf: &Ebpf, backends: u32) -> Result<String>
where
    FrontendKey<F::Addr>: Pod,
    Backend<F::Addr>: Pod,
{
    let name = map_name::<F>("frontends");
    let map = HashMap::<_, FrontendKey<F::Addr>, Frontend>::try_from(ebpf.map(&name).context(name)?)?;
    let mut lines = Vec::new();
    for entry in map.iter() {
        lines.push(format!("{:?}\n", entry?));
    }
    lines.sort();
    let name = map_name::<F>("backends");
    let map = Array::<_, Backend<F::Addr>>::try_from(ebpf.map(&name).context(name)?)?;
    for id in 0..backends {
        lines.push(format!("{:?}\n", map.get(&id, 0)?));
    }
    let slots = Array::<_, u32>::try_from(ebpf.map("slots").context("slots")?)?;
    for slot in 0..backends {
        lines.push(format!("{:?}\n", slots.get(&slot, 0)?));
    }
    Ok(lines.concat())
}
