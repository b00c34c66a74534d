//! The pinned maps of a node, opened by path, with the family chosen by the address at hand.

mod batch;
mod entries;

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use aya::Pod;
use dataplane_common::{
    Addr, Backend, BePort, Device, Frontend, FrontendKey, Protocol, Scope, ServiceName, SourceRange, map,
};
use ipnetwork::IpNetwork;

use self::entries::{Hash, Indexed};
use super::{
    MapError, Maps, Snapshot,
    pinned::{self, Access, PinnedError},
    trie::Trie,
};
use crate::{
    plan::Op,
    tables::{self, BackendId, BackendRow, ClientRange, FrontendAddr, IpFamily, SnatKey, pools::Capacities},
};

type A4 = [u32; 1];
type A6 = [u32; 4];

/// The maps that the agent writes, as the kernel holds them.
pub struct KernelMaps {
    frontends4: Hash<FrontendKey<A4>, Frontend>,
    frontends6: Hash<FrontendKey<A6>, Frontend>,
    slots: Indexed<u32>,
    backends4: Indexed<Backend<A4>>,
    backends6: Indexed<Backend<A6>>,
    service_names: Hash<u32, ServiceName>,
    local_addrs4: Hash<A4, u32>,
    local_addrs6: Hash<A6, u32>,
    snat_addrs4: Hash<u32, A4>,
    snat_addrs6: Hash<u32, A6>,
    source_ranges4: Trie<SourceRange<A4>>,
    source_ranges6: Trie<SourceRange<A6>>,
    cidrs4: Trie<A4>,
    cidrs6: Trie<A6>,
    devices: Hash<u32, Device>,
    /// Nothing has been written yet.
    fresh: bool,
}

impl KernelMaps {
    /// Opens the maps pinned on the BPF file system mounted at `bpffs`.
    pub fn open(bpffs: &Path, access: Access) -> Result<Self, PinnedError> {
        let dir = &pinned::directory(bpffs);
        Ok(Self {
            frontends4: Hash::open(dir, &map::FRONTENDS4, access)?,
            frontends6: Hash::open(dir, &map::FRONTENDS6, access)?,
            slots: Indexed::open(dir, &map::SLOTS, access)?,
            backends4: Indexed::open(dir, &map::BACKENDS4, access)?,
            backends6: Indexed::open(dir, &map::BACKENDS6, access)?,
            service_names: Hash::open(dir, &map::SERVICE_NAMES, access)?,
            local_addrs4: Hash::open(dir, &map::LOCAL_ADDRS4, access)?,
            local_addrs6: Hash::open(dir, &map::LOCAL_ADDRS6, access)?,
            snat_addrs4: Hash::open(dir, &map::SNAT_ADDRS4, access)?,
            snat_addrs6: Hash::open(dir, &map::SNAT_ADDRS6, access)?,
            source_ranges4: Trie::open(dir, &map::SOURCE_RANGES4, access)?,
            source_ranges6: Trie::open(dir, &map::SOURCE_RANGES6, access)?,
            cidrs4: Trie::open(dir, &map::CIDRS4, access)?,
            cidrs6: Trie::open(dir, &map::CIDRS6, access)?,
            devices: Hash::open(dir, &map::DEVICES, access)?,
            fresh: false,
        })
    }

    /// The same maps, of which the caller knows that nobody has written to them yet: there is nothing to read, which takes a
    /// while with a million slots.
    #[must_use]
    pub fn fresh(self, fresh: bool) -> Self {
        Self { fresh, ..self }
    }
}

impl Maps for KernelMaps {
    fn read(&self) -> Result<Snapshot, MapError> {
        let mut snapshot = Snapshot {
            capacities: Capacities {
                slots: self.slots.entries,
                backends4: self.backends4.entries,
                backends6: self.backends6.entries,
            },
            ..Snapshot::default()
        };
        if self.fresh {
            return Ok(snapshot);
        }
        let tables = &mut snapshot.tables;
        read_frontends(&self.frontends4, &mut tables.frontends)?;
        read_frontends(&self.frontends6, &mut tables.frontends)?;
        let used = tables.frontends.values().flat_map(tables::counted_ranges);
        let slots =
            self.slots.read(used.map(|range| range.first.saturating_add(range.count)).max().unwrap_or_default())?;
        for (frontend, value) in &tables.frontends {
            for range in [value.inside, value.outside] {
                for index in range.first..range.first.saturating_add(range.count) {
                    if let Some(number) = slots.get(index as usize) {
                        tables.slots.insert(index, BackendId { family: IpFamily::of(frontend.addr), number: *number });
                    }
                }
            }
        }
        read_backends(IpFamily::V4, &self.backends4, &mut snapshot)?;
        read_backends(IpFamily::V6, &self.backends6, &mut snapshot)?;
        let tables = &mut snapshot.tables;
        for (id, name) in self.service_names.read()? {
            tables.service_names.insert(id, name.as_str().to_owned());
        }
        for (addr, bits) in self.local_addrs4.read()? {
            tables.local_addrs.insert(addr.to_ip(), bits);
        }
        for (addr, bits) in self.local_addrs6.read()? {
            tables.local_addrs.insert(addr.to_ip(), bits);
        }
        for (interface, addr) in self.snat_addrs4.read()? {
            tables.snat_addrs.insert(SnatKey { interface, family: IpFamily::V4 }, addr.to_ip());
        }
        for (interface, addr) in self.snat_addrs6.read()? {
            tables.snat_addrs.insert(SnatKey { interface, family: IpFamily::V6 }, addr.to_ip());
        }
        tables.source_ranges.extend(self.source_ranges4.read_ranges()?);
        tables.source_ranges.extend(self.source_ranges6.read_ranges()?);
        tables.cidrs.extend(self.cidrs4.read_cidrs()?);
        tables.cidrs.extend(self.cidrs6.read_cidrs()?);
        tables.devices.extend(self.devices.read()?);
        Ok(snapshot)
    }

    fn put_service_name(&mut self, id: u32, name: &str) -> Result<(), MapError> {
        let value = self.service_names.value(name)?;
        self.service_names.put(id, value)
    }

    fn delete_service_name(&mut self, id: u32) -> Result<(), MapError> {
        self.service_names.delete(&id)
    }

    fn put_backend(&mut self, id: BackendId, row: &BackendRow) -> Result<(), MapError> {
        match id.family {
            IpFamily::V4 => put_backend(&mut self.backends4, id, row),
            IpFamily::V6 => put_backend(&mut self.backends6, id, row),
        }
    }

    fn put_slot(&mut self, index: u32, backend: BackendId) -> Result<(), MapError> {
        self.slots.put(index, backend.number)
    }

    fn put_frontend(&mut self, addr: &FrontendAddr, frontend: &Frontend) -> Result<(), MapError> {
        match addr.addr {
            IpAddr::V4(_) => self.frontends4.put(self.frontends4.key(addr)?, *frontend),
            IpAddr::V6(_) => self.frontends6.put(self.frontends6.key(addr)?, *frontend),
        }
    }

    fn delete_frontend(&mut self, addr: &FrontendAddr) -> Result<(), MapError> {
        match addr.addr {
            IpAddr::V4(_) => self.frontends4.delete(&self.frontends4.key(addr)?),
            IpAddr::V6(_) => self.frontends6.delete(&self.frontends6.key(addr)?),
        }
    }

    fn put_local_addr(&mut self, addr: IpAddr, bits: u32) -> Result<(), MapError> {
        match addr {
            IpAddr::V4(_) => self.local_addrs4.put(self.local_addrs4.words(addr)?, bits),
            IpAddr::V6(_) => self.local_addrs6.put(self.local_addrs6.words(addr)?, bits),
        }
    }

    fn delete_local_addr(&mut self, addr: IpAddr) -> Result<(), MapError> {
        match addr {
            IpAddr::V4(_) => self.local_addrs4.delete(&self.local_addrs4.words(addr)?),
            IpAddr::V6(_) => self.local_addrs6.delete(&self.local_addrs6.words(addr)?),
        }
    }

    fn put_snat_addr(&mut self, key: SnatKey, addr: IpAddr) -> Result<(), MapError> {
        match key.family {
            IpFamily::V4 => self.snat_addrs4.put(key.interface, self.snat_addrs4.words(addr)?),
            IpFamily::V6 => self.snat_addrs6.put(key.interface, self.snat_addrs6.words(addr)?),
        }
    }

    fn delete_snat_addr(&mut self, key: SnatKey) -> Result<(), MapError> {
        match key.family {
            IpFamily::V4 => self.snat_addrs4.delete(&key.interface),
            IpFamily::V6 => self.snat_addrs6.delete(&key.interface),
        }
    }

    fn put_cidr(&mut self, range: IpNetwork, bits: u32) -> Result<(), MapError> {
        match range {
            IpNetwork::V4(_) => self.cidrs4.put_cidr(range, bits),
            IpNetwork::V6(_) => self.cidrs6.put_cidr(range, bits),
        }
    }

    fn delete_cidr(&mut self, range: IpNetwork) -> Result<(), MapError> {
        match range {
            IpNetwork::V4(_) => self.cidrs4.delete_cidr(range),
            IpNetwork::V6(_) => self.cidrs6.delete_cidr(range),
        }
    }

    fn put_device(&mut self, index: u32, device: Device) -> Result<(), MapError> {
        self.devices.put(index, device)
    }

    fn delete_device(&mut self, index: u32) -> Result<(), MapError> {
        self.devices.delete(&index)
    }

    fn put_source_range(&mut self, range: ClientRange) -> Result<(), MapError> {
        match range.range {
            IpNetwork::V4(_) => self.source_ranges4.put_range(range),
            IpNetwork::V6(_) => self.source_ranges6.put_range(range),
        }
    }

    fn delete_source_range(&mut self, range: ClientRange) -> Result<(), MapError> {
        match range.range {
            IpNetwork::V4(_) => self.source_ranges4.delete_range(range),
            IpNetwork::V6(_) => self.source_ranges6.delete_range(range),
        }
    }

    fn run(&mut self, ops: &[&Op]) -> Vec<Result<(), MapError>> {
        batch::run(self, ops)
    }

    fn calls(&self) -> u64 {
        batch::calls(self)
    }
}

fn put_backend<A: Addr>(map: &mut Indexed<Backend<A>>, id: BackendId, row: &BackendRow) -> Result<(), MapError>
where
    Backend<A>: Pod,
{
    map.put(id.number, map.value(row)?)
}

impl<A: Addr> Indexed<Backend<A>>
where
    Backend<A>: Pod,
{
    fn value(&self, row: &BackendRow) -> Result<Backend<A>, MapError> {
        let refused =
            || MapError { map: self.name, op: "put", source: io::Error::from_raw_os_error(libc::EAFNOSUPPORT) };
        Ok(Backend {
            addr: A::from_ip(row.addr.ip()).ok_or_else(refused)?,
            port: BePort::new(row.addr.port()),
            protocol: row.protocol as u8,
            flags: row.flags,
            service: row.service,
            generation: row.generation,
        })
    }
}

fn read_frontends<A: Addr>(
    map: &Hash<FrontendKey<A>, Frontend>,
    rows: &mut BTreeMap<FrontendAddr, Frontend>,
) -> Result<(), MapError>
where
    FrontendKey<A>: Pod,
{
    for (key, value) in map.read()? {
        let protocol = Protocol::from_number(key.protocol);
        let scope = match key.scope {
            scope if scope == Scope::OtherPorts as u8 => Scope::OtherPorts,
            _ if protocol.is_none() => continue,
            scope if scope == Scope::NodePort as u8 => Scope::NodePort,
            _ => Scope::Address,
        };
        rows.insert(FrontendAddr { addr: key.addr.to_ip(), port: key.port.get(), protocol, scope }, value);
    }
    Ok(())
}

fn read_backends<A: Addr>(family: IpFamily, map: &Indexed<Backend<A>>, snapshot: &mut Snapshot) -> Result<(), MapError>
where
    Backend<A>: Pod,
{
    for (number, backend) in (0_u32..).zip(map.read(map.entries)?) {
        let id = BackendId { family, number };
        if backend.generation == 0 {
            continue;
        }
        match (backend.exists(), Protocol::from_number(backend.protocol)) {
            (true, Some(protocol)) => {
                let row = BackendRow {
                    addr: SocketAddr::new(backend.addr.to_ip(), backend.port.get()),
                    protocol,
                    flags: backend.flags,
                    service: backend.service,
                    generation: backend.generation,
                };
                snapshot.tables.backends.insert(id, row);
            }
            _ => {
                snapshot.free.insert(id, backend.generation);
            }
        }
    }
    Ok(())
}
