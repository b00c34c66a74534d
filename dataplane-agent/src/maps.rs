//! What a plan may do to the kernel's maps, and how it is applied.

pub mod expired;
pub mod kernel;
pub mod memory;
pub mod observed;
pub mod pinned;
mod syscall;
mod trie;

use std::{collections::BTreeMap, io, net::IpAddr};

use aya::{
    Pod,
    maps::{HashMap, MapData, MapError as AyaError, MapType},
};
use dataplane_common::{Device, Frontend, map::MapSpec};
use ipnetwork::IpNetwork;

use crate::{
    plan::{Op, Plan, Step},
    tables::{BackendId, BackendRow, ClientRange, FrontendAddr, SnatKey, Tables, pools::Capacities},
};

/// What a plan may do to the kernel.
pub trait Maps {
    /// Everything the maps hold.
    fn read(&self) -> Result<Snapshot, MapError>;
    /// Writes to `service_names`.
    fn put_service_name(&mut self, id: u32, name: &str) -> Result<(), MapError>;
    /// Deletes from `service_names`.
    fn delete_service_name(&mut self, id: u32) -> Result<(), MapError>;
    /// Writes to `backends4` or `backends6`.
    fn put_backend(&mut self, id: BackendId, row: &BackendRow) -> Result<(), MapError>;
    /// Writes to `slots`.
    fn put_slot(&mut self, index: u32, backend: BackendId) -> Result<(), MapError>;
    /// Writes to `frontends4` or `frontends6`.
    fn put_frontend(&mut self, addr: &FrontendAddr, frontend: &Frontend) -> Result<(), MapError>;
    /// Deletes from `frontends4` or `frontends6`.
    fn delete_frontend(&mut self, addr: &FrontendAddr) -> Result<(), MapError>;
    /// Writes to `local_addrs4` or `local_addrs6`.
    fn put_local_addr(&mut self, addr: IpAddr, bits: u32) -> Result<(), MapError>;
    /// Deletes from `local_addrs4` or `local_addrs6`.
    fn delete_local_addr(&mut self, addr: IpAddr) -> Result<(), MapError>;
    /// Writes to `snat_addrs4` or `snat_addrs6`.
    fn put_snat_addr(&mut self, key: SnatKey, addr: IpAddr) -> Result<(), MapError>;
    /// Deletes from `snat_addrs4` or `snat_addrs6`.
    fn delete_snat_addr(&mut self, key: SnatKey) -> Result<(), MapError>;
    /// Writes to `cidrs4` or `cidrs6`.
    fn put_cidr(&mut self, range: IpNetwork, bits: u32) -> Result<(), MapError>;
    /// Deletes from `cidrs4` or `cidrs6`.
    fn delete_cidr(&mut self, range: IpNetwork) -> Result<(), MapError>;
    /// Writes to `devices`.
    fn put_device(&mut self, index: u32, device: Device) -> Result<(), MapError>;
    /// Deletes from `devices`.
    fn delete_device(&mut self, index: u32) -> Result<(), MapError>;
    /// Writes to `source_ranges4` or `source_ranges6`.
    fn put_source_range(&mut self, range: ClientRange) -> Result<(), MapError>;
    /// Deletes from `source_ranges4` or `source_ranges6`.
    fn delete_source_range(&mut self, range: ClientRange) -> Result<(), MapError>;
    /// Runs operations of one phase, which are independent of each other; what became of each, in the order given.
    fn run(&mut self, ops: &[&Op]) -> Vec<Result<(), MapError>>
    where
        Self: Sized,
    {
        ops.iter().map(|op| run(op, self)).collect()
    }
    /// System calls so far that were to change a map.
    fn calls(&self) -> u64 {
        0
    }
}

/// How a plan went.
#[derive(Debug, Default)]
pub struct Outcome {
    /// For each step of the plan, whether it was run and succeeded.
    pub done: Vec<bool>,
    /// The groups that failed, and on what first; their steps of later phases were not run.
    pub failed: BTreeMap<usize, MapError>,
    /// System calls that it took.
    pub calls: u64,
}

/// Runs `plan` phase by phase, and is the only function that runs operations.
///
/// When one fails, the later phases of its group are left out: what has been done until then is safe, what follows might
/// not be.
pub fn apply(plan: &Plan, maps: &mut impl Maps) -> Outcome {
    let mut outcome = Outcome { calls: maps.calls(), ..Outcome::default() };
    for phase in plan.steps.chunk_by(|step, next| step.op.phase() == next.op.phase()) {
        let void = |step: &Step| outcome.failed.contains_key(&step.group);
        let run: Vec<bool> = phase.iter().map(|step| !void(step)).collect();
        let ops: Vec<&Op> = phase.iter().zip(&run).filter(|(_, run)| **run).map(|(step, _)| &step.op).collect();
        let mut results = maps.run(&ops).into_iter();
        for (step, run) in phase.iter().zip(run) {
            let result = if run { results.next() } else { None };
            outcome.done.push(matches!(result, Some(Ok(()))));
            if let Some(Err(error)) = result {
                outcome.failed.entry(step.group).or_insert(error);
            }
        }
    }
    outcome.calls = maps.calls() - outcome.calls;
    outcome
}

fn run(op: &Op, maps: &mut impl Maps) -> Result<(), MapError> {
    match op {
        Op::PutServiceName(id, name) => maps.put_service_name(*id, name),
        Op::PutLocalAddr(addr, bits) => maps.put_local_addr(*addr, *bits),
        Op::PutSnatAddr(key, addr) => maps.put_snat_addr(*key, *addr),
        Op::PutCidr(range, bits) => maps.put_cidr(*range, *bits),
        Op::PutDevice(index, device) => maps.put_device(*index, *device),
        Op::PutSourceRange(range) => maps.put_source_range(*range),
        Op::PutBackend(id, row) | Op::KillBackend(id, row) => maps.put_backend(*id, row),
        Op::PutSlot(index, backend) => maps.put_slot(*index, *backend),
        Op::PutFrontend(addr, frontend) => maps.put_frontend(addr, frontend),
        Op::DeleteFrontend(addr) => maps.delete_frontend(addr),
        Op::DeleteLocalAddr(addr) => maps.delete_local_addr(*addr),
        Op::DeleteSnatAddr(key) => maps.delete_snat_addr(*key),
        Op::DeleteCidr(range) => maps.delete_cidr(*range),
        Op::DeleteDevice(index) => maps.delete_device(*index),
        Op::DeleteSourceRange(range) => maps.delete_source_range(*range),
        Op::DeleteServiceName(id) => maps.delete_service_name(*id),
    }
}

/// What the maps hold, read back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Everything in use.
    pub tables: Tables,
    /// Backend ids that were used before, with the (even) generation that is to be counted on from.
    pub free: BTreeMap<BackendId, u32>,
    /// Sizes of the arrays, which an operator may have chosen.
    pub capacities: Capacities,
}

/// A map operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("{map}: {op} failed")]
pub struct MapError {
    /// The map.
    pub map: &'static str,
    /// `put`, `delete` or `read`.
    pub op: &'static str,
    /// The kernel's reason.
    #[source]
    pub source: io::Error,
}

impl MapError {
    fn new(map: &'static str, op: &'static str, source: AyaError) -> Self {
        Self { map, op, source: into_io(source) }
    }

    /// Whether the map has no room for another entry.
    pub fn is_full(&self) -> bool {
        matches!(self.source.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC))
    }

    /// The error with the kernel's reason and, where it is known, what to do.
    pub fn in_full(&self) -> String {
        if self.is_full() { format!("map {} is full", self.map) } else { format!("{self}: {}", self.source) }
    }

    /// Whether there was no such entry.
    pub fn is_missing(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }
}

/// The system's error inside of aya's, so that callers can decide on its number.
fn into_io(error: AyaError) -> io::Error {
    match error {
        AyaError::SyscallError(error) => error.io_error,
        AyaError::IoError(error) => error,
        AyaError::KeyNotFound | AyaError::ElementNotFound => io::Error::from_raw_os_error(libc::ENOENT),
        AyaError::OutOfBounds { .. } => io::Error::from_raw_os_error(libc::E2BIG),
        other => io::Error::other(other),
    }
}

/// Gives a map whose layout has been checked the Rust types of its keys and values.
fn typed<K: Pod, V: Pod>(map: MapData, spec: &MapSpec) -> Result<HashMap<MapData, K, V>, pinned::PinnedError> {
    let lru = pinned::layout(spec).is_some_and(|layout| layout.kind == MapType::LruHash);
    let map = if lru { aya::maps::Map::LruHashMap(map) } else { aya::maps::Map::HashMap(map) };
    HashMap::try_from(map).map_err(|error| pinned::PinnedError::Open { path: spec.name.into(), source: into_io(error) })
}
