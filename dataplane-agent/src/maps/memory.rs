//! The maps as plain memory, for tests of planning; only a kernel proves what the datapath makes of them.

use std::{collections::BTreeMap, io, net::IpAddr};

use dataplane_common::{Device, Frontend};
use ipnetwork::IpNetwork;

use super::{MapError, Maps, Snapshot};
use crate::{
    plan::Op,
    tables::{BackendId, BackendRow, ClientRange, FrontendAddr, SnatKey, Tables, pools::Capacities},
};

/// An in-memory twin of the kernel's maps that remembers what was done to it.
#[derive(Clone, Debug, Default)]
pub struct MemoryMaps {
    /// The rows; of the slots also those that nothing counts.
    pub rows: Tables,
    /// Generations of the backend ids that are not in use.
    pub free: BTreeMap<BackendId, u32>,
    /// Every operation that succeeded, in order.
    pub log: Vec<Op>,
    /// Operations that are to fail: those whose text starts with one of these.
    pub refuse: Vec<String>,
    /// Sizes of the arrays.
    pub capacities: Capacities,
}

impl MemoryMaps {
    /// The operations since the last call, one per line.
    pub fn take_log(&mut self) -> String {
        self.log.drain(..).map(|op| format!("{op}\n")).collect()
    }

    fn run(&mut self, map: &'static str, op: Op) -> Result<(), MapError> {
        let text = op.to_string();
        if self.refuse.iter().any(|start| text.starts_with(start)) {
            return Err(MapError { map, op: "put", source: io::Error::from_raw_os_error(libc::E2BIG) });
        }
        op.apply_to(&mut self.rows);
        match &op {
            Op::PutBackend(id, _) => drop(self.free.remove(id)),
            Op::KillBackend(id, row) => drop(self.free.insert(*id, row.generation)),
            _ => {}
        }
        self.log.push(op);
        Ok(())
    }
}

impl Maps for MemoryMaps {
    fn read(&self) -> Result<Snapshot, MapError> {
        let mut tables = self.rows.clone();
        tables.drop_uncounted_slots();
        Ok(Snapshot { tables, free: self.free.clone(), capacities: self.capacities })
    }

    fn put_service_name(&mut self, id: u32, name: &str) -> Result<(), MapError> {
        self.run("service_names", Op::PutServiceName(id, name.to_owned()))
    }

    fn delete_service_name(&mut self, id: u32) -> Result<(), MapError> {
        self.run("service_names", Op::DeleteServiceName(id))
    }

    fn put_backend(&mut self, id: BackendId, row: &BackendRow) -> Result<(), MapError> {
        self.run("backends", if row.exists() { Op::PutBackend(id, *row) } else { Op::KillBackend(id, *row) })
    }

    fn put_slot(&mut self, index: u32, backend: BackendId) -> Result<(), MapError> {
        self.run("slots", Op::PutSlot(index, backend))
    }

    fn put_frontend(&mut self, addr: &FrontendAddr, frontend: &Frontend) -> Result<(), MapError> {
        self.run("frontends", Op::PutFrontend(*addr, *frontend))
    }

    fn delete_frontend(&mut self, addr: &FrontendAddr) -> Result<(), MapError> {
        self.run("frontends", Op::DeleteFrontend(*addr))
    }

    fn put_local_addr(&mut self, addr: IpAddr, bits: u32) -> Result<(), MapError> {
        self.run("local_addrs", Op::PutLocalAddr(addr, bits))
    }

    fn delete_local_addr(&mut self, addr: IpAddr) -> Result<(), MapError> {
        self.run("local_addrs", Op::DeleteLocalAddr(addr))
    }

    fn put_snat_addr(&mut self, key: SnatKey, addr: IpAddr) -> Result<(), MapError> {
        self.run("snat_addrs", Op::PutSnatAddr(key, addr))
    }

    fn delete_snat_addr(&mut self, key: SnatKey) -> Result<(), MapError> {
        self.run("snat_addrs", Op::DeleteSnatAddr(key))
    }

    fn put_cidr(&mut self, range: IpNetwork, bits: u32) -> Result<(), MapError> {
        self.run("cidrs", Op::PutCidr(range, bits))
    }

    fn delete_cidr(&mut self, range: IpNetwork) -> Result<(), MapError> {
        self.run("cidrs", Op::DeleteCidr(range))
    }

    fn put_device(&mut self, index: u32, device: Device) -> Result<(), MapError> {
        self.run("devices", Op::PutDevice(index, device))
    }

    fn delete_device(&mut self, index: u32) -> Result<(), MapError> {
        self.run("devices", Op::DeleteDevice(index))
    }

    fn put_source_range(&mut self, range: ClientRange) -> Result<(), MapError> {
        self.run("source_ranges", Op::PutSourceRange(range))
    }

    fn delete_source_range(&mut self, range: ClientRange) -> Result<(), MapError> {
        self.run("source_ranges", Op::DeleteSourceRange(range))
    }
}
