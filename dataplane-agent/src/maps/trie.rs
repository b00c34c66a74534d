//! Prefix tries: the clients that services admit, and what the addresses of a prefix are.

use std::{io, path::Path};

use aya::{
    Pod,
    maps::{LpmTrie, Map, MapData, lpm_trie::Key},
};
use dataplane_common::{Addr, SourceRange, map::MapSpec};
use ipnetwork::IpNetwork;

use super::{
    MapError, into_io,
    pinned::{self, Access, PinnedError},
};
use crate::tables::ClientRange;

/// Bits in front of the address in a [`SourceRange`].
const SERVICE_BITS: u32 = u32::BITS;

/// A trie and its name; what stands in front of the address counts as prefix.
pub(super) struct Trie<K: Pod> {
    name: &'static str,
    map: LpmTrie<MapData, K, u32>,
    calls: u64,
}

impl<K: Pod> Trie<K> {
    pub(super) fn open(dir: &Path, spec: &MapSpec, access: Access) -> Result<Self, PinnedError> {
        let map = Map::LpmTrie(pinned::open(dir, spec, access)?);
        let map = LpmTrie::try_from(map)
            .map_err(|error| PinnedError::Open { path: spec.name.into(), source: into_io(error) })?;
        Ok(Self { name: spec.name, map, calls: 0 })
    }

    fn read(&self) -> Result<Vec<(u32, K, u32)>, MapError> {
        let entries = self.map.iter().map(|entry| entry.map(|(key, value)| (key.prefix_len(), key.data(), value)));
        entries.collect::<Result<_, _>>().map_err(|source| MapError::new(self.name, "read", source))
    }

    /// System calls so far that were to change the map.
    pub(super) fn calls(&self) -> u64 {
        self.calls
    }

    fn put(&mut self, key: &Key<K>, value: u32) -> Result<(), MapError> {
        self.calls += 1;
        self.map.insert(key, value, 0).map_err(|source| MapError::new(self.name, "put", source))
    }

    /// Deletes the entry under `key`; one that is not there is deleted already.
    fn delete(&mut self, key: &Key<K>) -> Result<(), MapError> {
        self.calls += 1;
        match self.map.remove(key).map_err(|source| MapError::new(self.name, "delete", source)) {
            Err(error) if error.is_missing() => Ok(()),
            result => result,
        }
    }

    fn words<A: Addr>(&self, range: IpNetwork) -> Result<A, MapError> {
        let refused = io::Error::from_raw_os_error(libc::EAFNOSUPPORT);
        A::from_ip(range.network()).ok_or(MapError { map: self.name, op: "put", source: refused })
    }
}

impl<A: Addr + Pod> Trie<A> {
    pub(super) fn read_cidrs(&self) -> Result<Vec<(IpNetwork, u32)>, MapError> {
        let entries = self.read()?.into_iter();
        Ok(entries.filter_map(|(prefix, addr, bits)| Some((network(addr, prefix)?, bits))).collect())
    }

    pub(super) fn put_cidr(&mut self, range: IpNetwork, bits: u32) -> Result<(), MapError> {
        self.put(&Key::new(range.prefix().into(), self.words(range)?), bits)
    }

    pub(super) fn delete_cidr(&mut self, range: IpNetwork) -> Result<(), MapError> {
        self.delete(&Key::new(range.prefix().into(), self.words(range)?))
    }
}

impl<A: Addr> Trie<SourceRange<A>>
where
    SourceRange<A>: Pod,
{
    pub(super) fn read_ranges(&self) -> Result<Vec<ClientRange>, MapError> {
        let entries = self.read()?.into_iter();
        Ok(entries
            .filter_map(|(prefix, SourceRange { service, addr }, _admitted)| {
                // The agent writes no shorter prefix: it would admit clients to several services.
                Some(ClientRange { service, range: network(addr, prefix.checked_sub(SERVICE_BITS)?)? })
            })
            .collect())
    }

    pub(super) fn put_range(&mut self, range: ClientRange) -> Result<(), MapError> {
        self.put(&self.key(range)?, 1)
    }

    pub(super) fn delete_range(&mut self, range: ClientRange) -> Result<(), MapError> {
        self.delete(&self.key(range)?)
    }

    fn key(&self, ClientRange { service, range }: ClientRange) -> Result<Key<SourceRange<A>>, MapError> {
        let prefix = SERVICE_BITS + u32::from(range.prefix());
        Ok(Key::new(prefix, SourceRange { service, addr: self.words(range)? }))
    }
}

/// The range of `prefix` bits that `addr` is in; `None` when the family has no such prefix.
fn network(addr: impl Addr, prefix: u32) -> Option<IpNetwork> {
    IpNetwork::new(addr.to_ip(), u8::try_from(prefix).ok()?).ok()
}
