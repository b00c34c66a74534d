//! Maps by the types of their keys and values: read, written and deleted from, with errors that name the map.

use std::{io, marker::PhantomData, net::IpAddr, path::Path};

use aya::{Pod, maps::MapData};
use dataplane_common::{Addr, BePort, Frontend, FrontendKey, ServiceName, map::MapSpec};

use crate::{
    maps::{
        MapError,
        pinned::{self, Access, PinnedError},
        syscall,
    },
    tables::FrontendAddr,
};

/// Entries per call that reads a hash map.
const READ_AT_ONCE: u32 = 4096;

/// A hash map and its name.
pub(super) struct Hash<K: Pod, V: Pod> {
    pub(super) name: &'static str,
    pub(super) map: MapData,
    pub(super) calls: u64,
    entries: PhantomData<(K, V)>,
}

/// An array and its name.
pub(super) struct Indexed<V: Pod> {
    pub(super) name: &'static str,
    pub(super) entries: u32,
    pub(super) map: MapData,
    pub(super) calls: u64,
    values: PhantomData<V>,
}

impl<K: Pod, V: Pod> Hash<K, V> {
    pub(super) fn open(dir: &Path, spec: &MapSpec, access: Access) -> Result<Self, PinnedError> {
        Ok(Self { name: spec.name, map: pinned::open(dir, spec, access)?, calls: 0, entries: PhantomData })
    }

    pub(super) fn read(&self) -> Result<Vec<(K, V)>, MapError> {
        let mut entries = Vec::new();
        let mut position = None;
        loop {
            let read = syscall::read_hash(&self.map, &mut position, READ_AT_ONCE);
            entries.extend(read.map_err(|source| MapError { map: self.name, op: "read", source })?);
            if position.is_none() {
                return Ok(entries);
            }
        }
    }

    pub(super) fn put(&mut self, key: K, value: V) -> Result<(), MapError> {
        self.calls += 1;
        let written = syscall::write_all(&self.map, &[key], &[value]);
        written.map_err(|(_, source)| MapError { map: self.name, op: "put", source })
    }

    /// The error of a value that this map cannot hold.
    pub(super) fn refused(&self, errno: i32) -> MapError {
        MapError { map: self.name, op: "put", source: io::Error::from_raw_os_error(errno) }
    }

    /// `addr` in the words of this map's family.
    pub(super) fn words<A: Addr>(&self, addr: IpAddr) -> Result<A, MapError> {
        A::from_ip(addr).ok_or_else(|| self.refused(libc::EAFNOSUPPORT))
    }

    /// Deletes the entry under `key`; one that is not there is deleted already.
    pub(super) fn delete(&mut self, key: &K) -> Result<(), MapError> {
        self.calls += 1;
        match syscall::delete_all(&self.map, std::slice::from_ref(key)) {
            Err((_, source)) if source.kind() != io::ErrorKind::NotFound => {
                Err(MapError { map: self.name, op: "delete", source })
            }
            _ => Ok(()),
        }
    }
}

impl Hash<u32, ServiceName> {
    pub(super) fn value(&self, name: &str) -> Result<ServiceName, MapError> {
        ServiceName::new(name).ok_or_else(|| self.refused(libc::ENAMETOOLONG))
    }
}

impl<A: Addr> Hash<FrontendKey<A>, Frontend>
where
    FrontendKey<A>: Pod,
{
    pub(super) fn key(&self, addr: &FrontendAddr) -> Result<FrontendKey<A>, MapError> {
        Ok(FrontendKey {
            addr: self.words(addr.addr)?,
            port: BePort::new(addr.port),
            protocol: addr.protocol.map_or(0, |protocol| protocol as u8),
            scope: addr.scope as u8,
        })
    }
}

impl<V: Pod> Indexed<V> {
    pub(super) fn open(dir: &Path, spec: &MapSpec, access: Access) -> Result<Self, PinnedError> {
        let map = pinned::open(dir, spec, access)?;
        let entries = map.info().map_or(spec.entries, |about| about.max_entries());
        Ok(Self { name: spec.name, entries, map, calls: 0, values: PhantomData })
    }

    /// The first `count` elements.
    pub(super) fn read(&self, count: u32) -> Result<Vec<V>, MapError> {
        let read = syscall::read_array(&self.map, count.min(self.entries));
        read.map_err(|source| MapError { map: self.name, op: "read", source })
    }

    pub(super) fn put(&mut self, index: u32, value: V) -> Result<(), MapError> {
        self.calls += 1;
        let written = syscall::write_all(&self.map, &[index], &[value]);
        written.map_err(|(_, source)| MapError { map: self.name, op: "put", source })
    }
}
