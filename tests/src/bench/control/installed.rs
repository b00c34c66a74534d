//! What the maps hold, read from outside of the agent.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{SocketAddr, SocketAddrV4},
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
};

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, HashMap, Map, MapData};
use dataplane_agent::{
    maps::{
        Maps as _,
        kernel::KernelMaps,
        pinned::{self, Access},
    },
    tables::FrontendAddr,
};
use dataplane_common::{
    Addr as _, Backend, BePort, Frontend, FrontendKey, Protocol, Scope,
    map::{self, MapSpec},
};

use super::objects::Service;

type A4 = [u32; 1];

/// The pinned maps of a node.
pub(super) struct Installed {
    frontends: HashMap<MapData, FrontendKey<A4>, Frontend>,
    slots: Array<MapData, u32>,
    backends: Array<MapData, Backend<A4>>,
    /// Addresses of backends by slot, as they were last read.
    known: BTreeMap<u32, (u32, SocketAddrV4)>,
}

impl Installed {
    /// Opens the maps; fails as long as they are not there.
    pub(super) fn open(bpffs: &Path) -> Result<Self> {
        let directory = pinned::directory(bpffs);
        let open = |spec: &MapSpec| pinned::open(&directory, spec, Access::ReadOnly);
        Ok(Self {
            frontends: HashMap::try_from(Map::HashMap(open(&map::FRONTENDS4)?))?,
            slots: Array::try_from(Map::Array(open(&map::SLOTS)?))?,
            backends: Array::try_from(Map::Array(open(&map::BACKENDS4)?))?,
            known: BTreeMap::new(),
        })
    }

    /// Whether clients of `service` may be sent to exactly its endpoints, without those that drain.
    pub(super) fn has(&mut self, service: &Service) -> Result<bool> {
        let Some(frontend) = self.frontend(service.address())? else { return Ok(false) };
        let wanted: BTreeSet<SocketAddrV4> = service.endpoints.iter().map(|endpoint| endpoint.address()).collect();
        if frontend.inside.count as usize != wanted.len() {
            return Ok(false);
        }
        let mut found = BTreeSet::new();
        for slot in frontend.inside.first..frontend.inside.first + frontend.inside.count {
            found.insert(self.backend(slot)?);
        }
        Ok(found == wanted)
    }

    /// Whether `service` has a frontend.
    pub(super) fn knows(&self, service: &Service) -> Result<bool> {
        Ok(self.frontend(service.address())?.is_some())
    }

    fn frontend(&self, at: SocketAddrV4) -> Result<Option<Frontend>> {
        let key = FrontendKey {
            addr: A4::from_ip((*at.ip()).into()).context("an IPv4 address")?,
            port: BePort::new(at.port()),
            protocol: Protocol::Tcp as u8,
            scope: Scope::Address as u8,
        };
        match self.frontends.get(&key, 0) {
            Ok(frontend) => Ok(Some(frontend)),
            Err(aya::maps::MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// A backend is written before a slot names it, so its address is read only when the slot names another one.
    fn backend(&mut self, slot: u32) -> Result<SocketAddrV4> {
        let id = self.slots.get(&slot, 0)?;
        if let Some((known, address)) = self.known.get(&slot)
            && *known == id
        {
            return Ok(*address);
        }
        let backend = self.backends.get(&id, 0)?;
        let SocketAddr::V4(address) = SocketAddr::new(backend.addr.to_ip(), backend.port.get()) else {
            anyhow::bail!("slot {slot} names a backend of another family");
        };
        self.known.insert(slot, (id, address));
        Ok(address)
    }
}

/// Fails unless every one of `services` is there with all of its endpoints.
pub(super) fn ensure_complete(bpffs: &Path, services: &[Service]) -> Result<()> {
    let tables = KernelMaps::open(bpffs, Access::ReadOnly)?.read()?.tables;
    for service in services {
        let at = service.address();
        let key = FrontendAddr {
            addr: (*at.ip()).into(),
            port: at.port(),
            protocol: Some(Protocol::Tcp),
            scope: Scope::Address,
        };
        let frontend = tables.frontends.get(&key).with_context(|| format!("{} has no frontend", service.name()))?;
        let range = frontend.inside.first..frontend.inside.first + frontend.inside.count;
        let ids = range.map(|slot| tables.slots.get(&slot));
        let found: BTreeSet<_> = ids.map(|id| id.and_then(|id| tables.backends.get(id)).map(|row| row.addr)).collect();
        let wanted = service.endpoints.iter().map(|endpoint| Some(SocketAddr::V4(endpoint.address()))).collect();
        ensure!(found == wanted, "{} has {found:?}, not {wanted:?}", service.name());
    }
    Ok(())
}

/// Bytes of every map, as the kernel accounts for them.
pub(super) fn memory(bpffs: &Path) -> Result<BTreeMap<&'static str, u64>> {
    let directory = pinned::directory(bpffs);
    let bytes = |spec: &MapSpec| -> Result<u64> {
        let map = pinned::open(&directory, spec, Access::ReadOnly)?;
        let path = format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd());
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let line =
            text.lines().find_map(|line| line.strip_prefix("memlock:")).context("the kernel tells no memlock")?;
        Ok(line.trim().parse()?)
    };
    map::ALL.iter().map(|spec| Ok((spec.name, bytes(spec)?))).collect()
}
