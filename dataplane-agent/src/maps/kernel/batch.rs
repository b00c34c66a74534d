//! Operations of one phase by map, each map's in one system call.

use std::io;

use aya::{Pod, maps::MapData};
use dataplane_common::{Backend, Frontend, FrontendKey, ServiceName};

use super::{
    A4, A6, KernelMaps,
    entries::{Hash, Indexed},
};
use crate::{
    maps::{MapError, run as run_one, syscall},
    plan::Op,
    tables::IpFamily,
};

/// What became of each operation.
type Results = Vec<Result<(), MapError>>;

/// Entries to write to one map, or to delete from it, and the positions of their operations.
struct Batch<K, V> {
    keys: Vec<K>,
    values: Vec<V>,
    ops: Vec<usize>,
}

/// The entries of the maps of which a change touches many.
#[derive(Default)]
struct Batches {
    frontends4: Batch<FrontendKey<A4>, Frontend>,
    frontends6: Batch<FrontendKey<A6>, Frontend>,
    dead_frontends4: Batch<FrontendKey<A4>, ()>,
    dead_frontends6: Batch<FrontendKey<A6>, ()>,
    slots: Batch<u32, u32>,
    backends4: Batch<u32, Backend<A4>>,
    backends6: Batch<u32, Backend<A6>>,
    service_names: Batch<u32, ServiceName>,
    dead_names: Batch<u32, ()>,
}

/// Runs `ops`, which touch no entry twice, in any order.
pub(super) fn run(maps: &mut KernelMaps, ops: &[&Op]) -> Results {
    let mut batches = Batches::default();
    let mut results: Results = Vec::with_capacity(ops.len());
    for (position, op) in ops.iter().enumerate() {
        let result = batches.take(maps, position, op);
        results.push(result);
    }
    maps.service_names.put_all(&batches.service_names, &mut results);
    maps.backends4.put_all(&batches.backends4, &mut results);
    maps.backends6.put_all(&batches.backends6, &mut results);
    maps.slots.put_all(&batches.slots, &mut results);
    maps.frontends4.put_all(&batches.frontends4, &mut results);
    maps.frontends6.put_all(&batches.frontends6, &mut results);
    maps.frontends4.delete_all(&batches.dead_frontends4, &mut results);
    maps.frontends6.delete_all(&batches.dead_frontends6, &mut results);
    maps.service_names.delete_all(&batches.dead_names, &mut results);
    results
}

/// System calls so far that were to change a map.
pub(super) fn calls(maps: &KernelMaps) -> u64 {
    let hashes = [maps.frontends4.calls, maps.frontends6.calls, maps.service_names.calls, maps.devices.calls];
    let arrays = [maps.slots.calls, maps.backends4.calls, maps.backends6.calls];
    let addresses = [maps.local_addrs4.calls, maps.local_addrs6.calls, maps.snat_addrs4.calls, maps.snat_addrs6.calls];
    let tries = [maps.source_ranges4.calls(), maps.source_ranges6.calls(), maps.cidrs4.calls(), maps.cidrs6.calls()];
    hashes.into_iter().chain(arrays).chain(addresses).chain(tries).sum()
}

impl Batches {
    /// Takes in the operation at `position`; one of a map that changes seldom is run at once.
    fn take(&mut self, maps: &mut KernelMaps, position: usize, op: &Op) -> Result<(), MapError> {
        match op {
            Op::PutServiceName(id, name) => self.service_names.add(position, *id, maps.service_names.value(name)?),
            Op::DeleteServiceName(id) => self.dead_names.add(position, *id, ()),
            Op::PutBackend(id, row) | Op::KillBackend(id, row) => match id.family {
                IpFamily::V4 => self.backends4.add(position, id.number, maps.backends4.value(row)?),
                IpFamily::V6 => self.backends6.add(position, id.number, maps.backends6.value(row)?),
            },
            Op::PutSlot(index, backend) => self.slots.add(position, *index, backend.number),
            Op::PutFrontend(addr, frontend) => match IpFamily::of(addr.addr) {
                IpFamily::V4 => self.frontends4.add(position, maps.frontends4.key(addr)?, *frontend),
                IpFamily::V6 => self.frontends6.add(position, maps.frontends6.key(addr)?, *frontend),
            },
            Op::DeleteFrontend(addr) => match IpFamily::of(addr.addr) {
                IpFamily::V4 => self.dead_frontends4.add(position, maps.frontends4.key(addr)?, ()),
                IpFamily::V6 => self.dead_frontends6.add(position, maps.frontends6.key(addr)?, ()),
            },
            Op::PutLocalAddr(..)
            | Op::DeleteLocalAddr(_)
            | Op::PutSnatAddr(..)
            | Op::DeleteSnatAddr(_)
            | Op::PutCidr(..)
            | Op::DeleteCidr(_)
            | Op::PutDevice(..)
            | Op::DeleteDevice(_)
            | Op::PutSourceRange(_)
            | Op::DeleteSourceRange(_) => run_one(op, maps)?,
        }
        Ok(())
    }
}

impl<K, V> Default for Batch<K, V> {
    fn default() -> Self {
        Self { keys: Vec::new(), values: Vec::new(), ops: Vec::new() }
    }
}

impl<K, V> Batch<K, V> {
    fn add(&mut self, position: usize, key: K, value: V) {
        self.keys.push(key);
        self.values.push(value);
        self.ops.push(position);
    }

    /// Has `call` work on what is left until nothing is. The kernel stops at an entry that fails: `failed` hears of
    /// it, and the call is made again for those behind it.
    fn go_through(
        &self,
        call: impl Fn(&[K], &[V]) -> Result<(), (usize, io::Error)>,
        mut failed: impl FnMut(usize, io::Error),
    ) -> u64 {
        let (mut done, mut calls) = (0, 0);
        while let (Some(keys @ [_, ..]), Some(values)) = (self.keys.get(done..), self.values.get(done..)) {
            calls += 1;
            let Err((before, error)) = call(keys, values) else { break };
            done += before;
            if let Some(position) = self.ops.get(done) {
                failed(*position, error);
            }
            done += 1;
        }
        calls
    }

    /// Writes the entries to `map`, called `name`; the number of system calls.
    fn put(&self, name: &'static str, map: &MapData, results: &mut Results) -> u64
    where
        K: Pod,
        V: Pod,
    {
        let note = |position: usize, source| {
            if let Some(result) = results.get_mut(position) {
                *result = Err(MapError { map: name, op: "put", source });
            }
        };
        self.go_through(|keys, values| syscall::write_all(map, keys, values), note)
    }
}

impl<K: Pod, V: Pod> Hash<K, V> {
    fn put_all(&mut self, batch: &Batch<K, V>, results: &mut Results) {
        self.calls += batch.put(self.name, &self.map, results);
    }

    fn delete_all(&mut self, batch: &Batch<K, ()>, results: &mut Results) {
        let note = |position: usize, source: io::Error| {
            // An entry that is not there is deleted already.
            if let Some(result) = results.get_mut(position).filter(|_| source.kind() != io::ErrorKind::NotFound) {
                *result = Err(MapError { map: self.name, op: "delete", source });
            }
        };
        self.calls += batch.go_through(|keys, _| syscall::delete_all(&self.map, keys), note);
    }
}

impl<V: Pod> Indexed<V> {
    fn put_all(&mut self, batch: &Batch<u32, V>, results: &mut Results) {
        self.calls += batch.put(self.name, &self.map, results);
    }
}
