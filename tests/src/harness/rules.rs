//! What a test says about frontends beyond their backends: affinity, source ranges, CIDRs, and ports that are not there.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use aya::{
    Ebpf, Pod,
    maps::{
        Array, HashMap,
        lpm_trie::{Key, LpmTrie},
    },
};
use dataplane_common::{
    Addr, Affinity, AffinityKey, Backend, BePort, Family, Flow, FlowKey, Frontend, FrontendKey, FrontendKind, Protocol,
    Scope, SlotRange, SourceRange, Ticks, V4, V6,
};

use super::{
    Harness,
    maps::{self, frontend_key, map_name},
};

impl Harness {
    /// Changes a frontend in place; its service's id.
    pub fn change_frontend(
        &mut self,
        kind: FrontendKind,
        protocol: Protocol,
        at: SocketAddr,
        change: impl Fn(&mut Frontend),
    ) -> Result<u32> {
        match at.ip() {
            IpAddr::V4(_) => change_frontend::<V4>(&mut self.ebpf, kind, protocol, at, change),
            IpAddr::V6(_) => change_frontend::<V6>(&mut self.ebpf, kind, protocol, at, change),
        }
    }

    /// Changes the backend `id` of the family of `ip` in place; gives its flags and its generation.
    pub fn change_backend(&mut self, ip: IpAddr, id: u32, change: impl Fn(&mut u8, &mut u32)) -> Result<()> {
        match ip {
            IpAddr::V4(_) => change_backend::<V4>(&mut self.ebpf, id, change),
            IpAddr::V6(_) => change_backend::<V6>(&mut self.ebpf, id, change),
        }
    }

    /// Makes `ip` the cluster IP of an active service: its other ports are rejected.
    pub fn put_other_ports(&mut self, ip: IpAddr) -> Result<()> {
        match ip {
            IpAddr::V4(_) => put_other_ports::<V4>(&mut self.ebpf, ip),
            IpAddr::V6(_) => put_other_ports::<V6>(&mut self.ebpf, ip),
        }
    }

    /// Admits a prefix to a service with source ranges.
    pub fn put_source_range(&mut self, service: u32, prefix: IpAddr, length: u32) -> Result<()> {
        match prefix {
            IpAddr::V4(_) => put_source_range::<V4>(&mut self.ebpf, service, prefix, length),
            IpAddr::V6(_) => put_source_range::<V6>(&mut self.ebpf, service, prefix, length),
        }
    }

    /// Says what the addresses of a prefix are: bits of `dataplane_common::map::cidr`.
    pub fn put_cidr(&mut self, prefix: IpAddr, length: u32, bits: u32) -> Result<()> {
        match prefix {
            IpAddr::V4(_) => put_cidr::<V4>(&mut self.ebpf, prefix, length, bits),
            IpAddr::V6(_) => put_cidr::<V6>(&mut self.ebpf, prefix, length, bits),
        }
    }

    /// What is remembered of the client `ip` of a service.
    pub fn affinity(&self, service: u32, ip: IpAddr) -> Result<Option<Affinity>> {
        match ip {
            IpAddr::V4(_) => affinity::<V4>(&self.ebpf, service, ip),
            IpAddr::V6(_) => affinity::<V6>(&self.ebpf, service, ip),
        }
    }

    /// Forgets all clients.
    pub fn forget_clients(&mut self) -> Result<()> {
        maps::empty::<AffinityKey<<V4 as Family>::Addr>, Affinity>(&mut self.ebpf, &map_name::<V4>("affinity"))?;
        maps::empty::<AffinityKey<<V6 as Family>::Addr>, Affinity>(&mut self.ebpf, &map_name::<V6>("affinity"))
    }

    /// Forgets every flow.
    pub fn forget_flows(&mut self) -> Result<()> {
        forget_flows::<V4>(&mut self.ebpf)?;
        forget_flows::<V6>(&mut self.ebpf)
    }

    /// Makes all that is remembered of clients older by `seconds`.
    pub fn age_affinity(&mut self, seconds: u64) -> Result<()> {
        age_affinity::<V4>(&mut self.ebpf, seconds)?;
        age_affinity::<V6>(&mut self.ebpf, seconds)
    }

    /// Writes what is remembered of the client `ip` of a service.
    pub fn put_affinity(&mut self, service: u32, ip: IpAddr, affinity: Affinity) -> Result<()> {
        match ip {
            IpAddr::V4(_) => put_affinity::<V4>(&mut self.ebpf, service, ip, affinity),
            IpAddr::V6(_) => put_affinity::<V6>(&mut self.ebpf, service, ip, affinity),
        }
    }
}

fn change_frontend<F: Family>(
    ebpf: &mut Ebpf,
    kind: FrontendKind,
    protocol: Protocol,
    at: SocketAddr,
    change: impl Fn(&mut Frontend),
) -> Result<u32>
where
    FrontendKey<F::Addr>: Pod,
{
    let key = frontend_key::<F>(kind as u8, protocol, at)?;
    let name = map_name::<F>("frontends");
    let mut map = HashMap::<_, FrontendKey<F::Addr>, Frontend>::try_from(ebpf.map_mut(&name).context(name)?)?;
    let mut frontend = map.get(&key, 0)?;
    change(&mut frontend);
    map.insert(key, frontend, 0)?;
    Ok(frontend.service)
}

fn change_backend<F: Family>(ebpf: &mut Ebpf, id: u32, change: impl Fn(&mut u8, &mut u32)) -> Result<()>
where
    Backend<F::Addr>: Pod,
{
    let name = map_name::<F>("backends");
    let mut map = Array::<_, Backend<F::Addr>>::try_from(ebpf.map_mut(&name).context(name)?)?;
    let mut backend = map.get(&id, 0)?;
    change(&mut backend.flags, &mut backend.generation);
    Ok(map.set(id, backend, 0)?)
}

fn put_other_ports<F: Family>(ebpf: &mut Ebpf, ip: IpAddr) -> Result<()>
where
    FrontendKey<F::Addr>: Pod,
{
    let addr = F::Addr::from_ip(ip).context("family")?;
    let key = FrontendKey { addr, port: BePort(0), protocol: 0, scope: Scope::OtherPorts as u8 };
    let frontend = Frontend {
        service: 1,
        inside: SlotRange::default(),
        outside: SlotRange::default(),
        affinity_seconds: 0,
        kind: FrontendKind::ClusterIp as u8,
        flags: 0,
        pad: 0,
    };
    let name = map_name::<F>("frontends");
    Ok(HashMap::try_from(ebpf.map_mut(&name).context(name)?)?.insert(key, frontend, 0)?)
}

fn put_source_range<F: Family>(ebpf: &mut Ebpf, service: u32, prefix: IpAddr, length: u32) -> Result<()>
where
    SourceRange<F::Addr>: Pod,
{
    let range = SourceRange { service, addr: F::Addr::from_ip(prefix).context("family")? };
    let name = map_name::<F>("source_ranges");
    let mut map = LpmTrie::<_, SourceRange<F::Addr>, u32>::try_from(ebpf.map_mut(&name).context(name)?)?;
    Ok(map.insert(&Key::new(32 + length, range), 1, 0)?)
}

fn put_cidr<F: Family<Addr: Pod>>(ebpf: &mut Ebpf, prefix: IpAddr, length: u32, bits: u32) -> Result<()> {
    let name = map_name::<F>("cidrs");
    let mut map = LpmTrie::<_, F::Addr, u32>::try_from(ebpf.map_mut(&name).context(name)?)?;
    Ok(map.insert(&Key::new(length, F::Addr::from_ip(prefix).context("family")?), bits, 0)?)
}

fn affinity<F: Family>(ebpf: &Ebpf, service: u32, ip: IpAddr) -> Result<Option<Affinity>>
where
    AffinityKey<F::Addr>: Pod,
{
    let key = AffinityKey { client: F::Addr::from_ip(ip).context("family")?, service };
    let name = map_name::<F>("affinity");
    let map = HashMap::<_, AffinityKey<F::Addr>, Affinity>::try_from(ebpf.map(&name).context(name)?)?;
    Ok(map.get(&key, 0).ok())
}

fn put_affinity<F: Family>(ebpf: &mut Ebpf, service: u32, ip: IpAddr, affinity: Affinity) -> Result<()>
where
    AffinityKey<F::Addr>: Pod,
{
    let key = AffinityKey { client: F::Addr::from_ip(ip).context("family")?, service };
    let name = map_name::<F>("affinity");
    Ok(HashMap::try_from(ebpf.map_mut(&name).context(name)?)?.insert(key, affinity, 0)?)
}

fn forget_flows<F: Family>(ebpf: &mut Ebpf) -> Result<()>
where
    FlowKey<F::Addr>: Pod,
    Flow<F::Addr>: Pod,
{
    maps::empty::<FlowKey<F::Addr>, Flow<F::Addr>>(ebpf, &map_name::<F>("conntrack"))
}

fn age_affinity<F: Family>(ebpf: &mut Ebpf, seconds: u64) -> Result<()>
where
    AffinityKey<F::Addr>: Pod,
{
    let name = map_name::<F>("affinity");
    let mut map = HashMap::<_, AffinityKey<F::Addr>, Affinity>::try_from(ebpf.map_mut(&name).context(name)?)?;
    let known: Vec<_> = map.iter().collect::<Result<_, _>>()?;
    for (key, affinity) in known {
        let last_used = affinity.last_used.wrapping_sub(Ticks::from_secs(seconds).0);
        map.insert(key, Affinity { last_used, ..affinity }, 0)?;
    }
    Ok(())
}
