//! What the programs write: flows, translated sockets and drop counters, read and pruned from user space.

use std::path::Path;

use aya::{
    Pod,
    maps::{HashMap, MapData, MapError as AyaError, PerCpuArray},
};
use dataplane_common::{
    Addr, Affinity, AffinityKey, DropReason, Flow, FlowKey, FragmentKey, FragmentPorts, SocketKey, SocketOrigin, V4,
    V6,
    map::{self, MapSpec},
};

use super::{
    MapError,
    pinned::{self, Access, PinnedError},
};

/// An address family as its observed maps are found.
pub trait ObservedFamily: dataplane_common::Family<Addr: Addr + Send> {
    /// `conntrack4` or `conntrack6`.
    const CONNTRACK: &'static MapSpec;
    /// `sockets4` or `sockets6`.
    const SOCKETS: &'static MapSpec;
    /// `affinity4` or `affinity6`.
    const AFFINITY: &'static MapSpec;
    /// `fragments4` or `fragments6`.
    const FRAGMENTS: &'static MapSpec;
    /// `frontends4` or `frontends6`.
    const FRONTENDS: &'static MapSpec;
    /// `backends4` or `backends6`.
    const BACKENDS: &'static MapSpec;
}

impl ObservedFamily for V4 {
    const CONNTRACK: &'static MapSpec = &map::CONNTRACK4;
    const SOCKETS: &'static MapSpec = &map::SOCKETS4;
    const AFFINITY: &'static MapSpec = &map::AFFINITY4;
    const FRAGMENTS: &'static MapSpec = &map::FRAGMENTS4;
    const FRONTENDS: &'static MapSpec = &map::FRONTENDS4;
    const BACKENDS: &'static MapSpec = &map::BACKENDS4;
}

impl ObservedFamily for V6 {
    const CONNTRACK: &'static MapSpec = &map::CONNTRACK6;
    const SOCKETS: &'static MapSpec = &map::SOCKETS6;
    const AFFINITY: &'static MapSpec = &map::AFFINITY6;
    const FRAGMENTS: &'static MapSpec = &map::FRAGMENTS6;
    const FRONTENDS: &'static MapSpec = &map::FRONTENDS6;
    const BACKENDS: &'static MapSpec = &map::BACKENDS6;
}

/// A hash map that the programs write.
///
/// Entries come and go while it is read: one may be missed or, when its neighbour goes, be seen twice.
pub struct Observed<K: Pod, V: Pod> {
    name: &'static str,
    map: HashMap<MapData, K, V>,
}

/// Flows of one family.
pub type Conntrack<F> =
    Observed<FlowKey<<F as dataplane_common::Family>::Addr>, Flow<<F as dataplane_common::Family>::Addr>>;

/// Translated sockets of one family.
pub type Sockets<F> =
    Observed<SocketKey<<F as dataplane_common::Family>::Addr>, SocketOrigin<<F as dataplane_common::Family>::Addr>>;

/// Opens the flows of the family `F` under `bpffs`.
pub fn conntrack<F: ObservedFamily>(bpffs: &Path, access: Access) -> Result<Conntrack<F>, PinnedError>
where
    FlowKey<F::Addr>: Pod,
    Flow<F::Addr>: Pod,
{
    Observed::open(bpffs, F::CONNTRACK, access)
}

/// Opens the translated sockets of the family `F` under `bpffs`.
pub fn sockets<F: ObservedFamily>(bpffs: &Path, access: Access) -> Result<Sockets<F>, PinnedError>
where
    SocketKey<F::Addr>: Pod,
    SocketOrigin<F::Addr>: Pod,
{
    Observed::open(bpffs, F::SOCKETS, access)
}

/// Memories of clients of one family.
pub type Affinities<F> = Observed<AffinityKey<<F as dataplane_common::Family>::Addr>, Affinity>;

/// Fragmented datagrams of one family.
pub type Fragments<F> = Observed<FragmentKey<<F as dataplane_common::Family>::Addr>, FragmentPorts>;

/// Opens the memories of clients of the family `F` under `bpffs`.
pub fn affinity<F: ObservedFamily>(bpffs: &Path, access: Access) -> Result<Affinities<F>, PinnedError>
where
    AffinityKey<F::Addr>: Pod,
{
    Observed::open(bpffs, F::AFFINITY, access)
}

/// Opens the fragmented datagrams of the family `F` under `bpffs`.
pub fn fragments<F: ObservedFamily>(bpffs: &Path, access: Access) -> Result<Fragments<F>, PinnedError>
where
    FragmentKey<F::Addr>: Pod,
{
    Observed::open(bpffs, F::FRAGMENTS, access)
}

impl<K: Pod, V: Pod> Observed<K, V> {
    pub(super) fn open(bpffs: &Path, spec: &MapSpec, access: Access) -> Result<Self, PinnedError> {
        let map = super::typed(pinned::open(&pinned::directory(bpffs), spec, access)?, spec)?;
        Ok(Self { name: spec.name, map })
    }

    /// The entries.
    pub fn iter(&self) -> impl Iterator<Item = Result<(K, V), MapError>> + '_ {
        self.map.iter().map(|entry| entry.map_err(|source| MapError::new(self.name, "read", source)))
    }

    /// The entry under `key`.
    pub fn get(&self, key: &K) -> Result<Option<V>, MapError> {
        match self.map.get(key, 0) {
            Ok(value) => Ok(Some(value)),
            Err(AyaError::KeyNotFound) => Ok(None),
            Err(source) => Err(MapError::new(self.name, "read", source)),
        }
    }

    /// Deletes the entry under `key`; false when there was none.
    pub fn delete(&mut self, key: &K) -> Result<bool, MapError> {
        match self.map.remove(key) {
            Ok(()) => Ok(true),
            Err(source) => {
                let error = MapError::new(self.name, "delete", source);
                if error.is_missing() { Ok(false) } else { Err(error) }
            }
        }
    }
}

/// Packets per drop reason since the maps were made, summed over the processors.
pub fn drops(bpffs: &Path) -> Result<Vec<(DropReason, u64)>, DropsError> {
    let spec = &map::DROPS;
    let map = pinned::open(&pinned::directory(bpffs), spec, Access::ReadOnly)?;
    let failed = |source| MapError::new(spec.name, "read", source);
    let map = PerCpuArray::<_, u64>::try_from(aya::maps::Map::PerCpuArray(map)).map_err(failed)?;
    let mut totals = Vec::new();
    for reason in DropReason::ALL {
        let per_processor = map.get(&(*reason as u32), 0).map_err(failed)?;
        totals.push((*reason, per_processor.iter().sum()));
    }
    Ok(totals)
}

/// Why drops could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DropsError {
    /// The map cannot be opened.
    #[error(transparent)]
    Pinned(#[from] PinnedError),
    /// The map cannot be read.
    #[error(transparent)]
    Map(#[from] MapError),
}
