//! Finds and removes what is over in the maps that the programs write, a bounded number of entries at a time.

mod decision;

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use aya::{
    Pod,
    maps::{Array, Map, MapData, MapError as AyaError},
};
use dataplane_common::{
    Affinity, AffinityKey, Backend, Flow, FlowKey, FragmentKey, FragmentPorts, Frontend, FrontendKey, Ticks, V4, V6,
    map::MapSpec,
};

use super::{
    MapError,
    observed::{Observed, ObservedFamily},
    pinned::{self, Access, PinnedError},
    syscall,
};

/// Entries that one step looks at, more or less.
pub const STEP: u32 = 4096;

/// A map that is swept step by step.
pub trait Sweep: Send {
    /// The map's name.
    fn map(&self) -> &'static str;
    /// Entries that it has room for.
    fn capacity(&self) -> u32;
    /// Looks at the next entries and removes those that are over at the tick `now`.
    fn step(&mut self, now: Ticks) -> Result<Swept, MapError>;
}

/// What a step found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Entries that it looked at.
    pub seen: u32,
    /// Of these, entries that it removed.
    pub removed: u32,
    /// Whether the map's end has been reached: the next step begins anew.
    pub is_complete: bool,
}

/// Every map whose own entries, or those of other maps, tell what is over. What is over in `sockets*` only the kernel's list
/// of sockets tells.
pub fn sweeps(bpffs: &Path) -> Result<Vec<Box<dyn Sweep>>, PinnedError> {
    Ok(vec![
        Box::new(Flows::<V4>::open(bpffs)?),
        Box::new(Flows::<V6>::open(bpffs)?),
        Box::new(Affinities::<V4>::open(bpffs)?),
        Box::new(Affinities::<V6>::open(bpffs)?),
        Box::new(Fragments::<V4>::open(bpffs)?),
        Box::new(Fragments::<V6>::open(bpffs)?),
    ])
}

/// A map and how far the pass through it has come.
pub(crate) struct Pass<K: Pod, V: Pod> {
    spec: &'static MapSpec,
    capacity: u32,
    /// The same map once more: aya's typed map hands out no file descriptor.
    data: MapData,
    map: Observed<K, V>,
    position: Option<u32>,
}

impl<K: Pod, V: Pod> Pass<K, V> {
    pub(crate) fn open(bpffs: &Path, spec: &'static MapSpec, access: Access) -> Result<Self, PinnedError> {
        let data = pinned::open(&pinned::directory(bpffs), spec, Access::ReadOnly)?;
        let capacity = data.info().map_or(spec.entries, |about| about.max_entries());
        Ok(Self { spec, capacity, data, map: Observed::open(bpffs, spec, access)?, position: None })
    }

    /// The next entries; the position is back at the beginning after the last ones.
    fn read(&mut self) -> Result<Vec<(K, V)>, MapError> {
        syscall::read_hash(&self.data, &mut self.position, STEP).map_err(|source| MapError {
            map: self.spec.name,
            op: "read",
            source,
        })
    }

    /// Whether the next step begins anew.
    pub(crate) fn is_at_start(&self) -> bool {
        self.position.is_none()
    }

    /// The map, and the entries that it has room for.
    pub(crate) fn about(&self) -> (&'static MapSpec, u32) {
        (self.spec, self.capacity)
    }

    /// Removes what `doomed` names of each entry.
    pub(crate) fn step(
        &mut self,
        mut doomed: impl FnMut(&Observed<K, V>, &K, &V) -> Result<Vec<K>, MapError>,
    ) -> Result<Swept, MapError> {
        let entries = self.read()?;
        let mut swept = Swept { seen: entries.len() as u32, removed: 0, is_complete: self.position.is_none() };
        for (key, value) in &entries {
            if doomed(&self.map, key, value)?.is_empty() {
                continue;
            }
            // Thousands of entries were read at once. Since then this one may have been used, or its key given to something new: a flow
            // that has just been begun would lose its answers.
            let Some(value) = self.map.get(key)? else { continue };
            for key in doomed(&self.map, key, &value)? {
                swept.removed += u32::from(self.map.delete(&key)?);
            }
        }
        Ok(swept)
    }
}

/// Flows of one family.
struct Flows<F: ObservedFamily>
where
    FlowKey<F::Addr>: Pod,
    Flow<F::Addr>: Pod,
    Backend<F::Addr>: Pod,
{
    pass: Pass<FlowKey<F::Addr>, Flow<F::Addr>>,
    backends: Array<MapData, Backend<F::Addr>>,
}

impl<F: ObservedFamily> Flows<F>
where
    FlowKey<F::Addr>: Pod,
    Flow<F::Addr>: Pod,
    Backend<F::Addr>: Pod,
{
    fn open(bpffs: &Path) -> Result<Self, PinnedError> {
        let backends = Map::Array(pinned::open(&pinned::directory(bpffs), F::BACKENDS, Access::ReadOnly)?);
        let failed = |error| PinnedError::Open { path: F::BACKENDS.name.into(), source: super::into_io(error) };
        Ok(Self {
            pass: Pass::open(bpffs, F::CONNTRACK, Access::ReadWrite)?,
            backends: Array::try_from(backends).map_err(failed)?,
        })
    }
}

impl<F: ObservedFamily> Sweep for Flows<F>
where
    FlowKey<F::Addr>: Pod,
    Flow<F::Addr>: Pod,
    Backend<F::Addr>: Pod,
{
    fn map(&self) -> &'static str {
        F::CONNTRACK.name
    }

    fn capacity(&self) -> u32 {
        self.pass.capacity
    }

    fn step(&mut self, now: Ticks) -> Result<Swept, MapError> {
        let backends = &self.backends;
        let mut known = HashMap::new();
        let mut generation = |id: u32| -> Result<Option<u32>, MapError> {
            if let Some(generation) = known.get(&id) {
                return Ok(*generation);
            }
            let generation = match backends.get(&id, 0) {
                Ok(backend) => Some(backend.generation),
                Err(AyaError::KeyNotFound | AyaError::OutOfBounds { .. }) => None,
                Err(source) => return Err(MapError::new(F::BACKENDS.name, "read", source)),
            };
            known.insert(id, generation);
            Ok(generation)
        };
        self.pass.step(|map, key, flow| {
            let is_over =
                decision::follows_its_backend(key.protocol) && generation(flow.backend)? != Some(flow.generation);
            if !is_over && now.0 <= flow.deadline {
                return Ok(Vec::new());
            }
            if decision::goes_alone(key.protocol, flow.state) {
                return Ok(vec![*key]);
            }
            // Under the other direction's key there may be another flow by now.
            let mut found = None;
            for peer in flow.peers(key) {
                if found.is_none() {
                    found =
                        map.get(&peer)?.filter(|other| other.is_peer_of(flow, key)).map(|other| (peer, other.deadline));
                }
            }
            if !is_over && !decision::is_silent(flow.deadline, found.map(|(_, deadline)| deadline), now) {
                return Ok(Vec::new());
            }
            Ok(std::iter::once(*key).chain(found.map(|(peer, _)| peer)).collect())
        })
    }
}

/// Memories of clients of one family.
struct Affinities<F: ObservedFamily>
where
    AffinityKey<F::Addr>: Pod,
    FrontendKey<F::Addr>: Pod,
{
    pass: Pass<AffinityKey<F::Addr>, Affinity>,
    frontends: Pass<FrontendKey<F::Addr>, Frontend>,
    /// How long each service port remembers, as of the beginning of the pass.
    seconds: BTreeMap<u32, u32>,
}

impl<F: ObservedFamily> Affinities<F>
where
    AffinityKey<F::Addr>: Pod,
    FrontendKey<F::Addr>: Pod,
{
    fn open(bpffs: &Path) -> Result<Self, PinnedError> {
        Ok(Self {
            pass: Pass::open(bpffs, F::AFFINITY, Access::ReadWrite)?,
            frontends: Pass::open(bpffs, F::FRONTENDS, Access::ReadOnly)?,
            seconds: BTreeMap::new(),
        })
    }

    fn read_seconds(&mut self) -> Result<(), MapError> {
        self.seconds.clear();
        loop {
            for (_, frontend) in self.frontends.read()? {
                let seconds = self.seconds.entry(frontend.service).or_default();
                *seconds = frontend.affinity_seconds.max(*seconds);
            }
            if self.frontends.position.is_none() {
                return Ok(());
            }
        }
    }
}

impl<F: ObservedFamily> Sweep for Affinities<F>
where
    AffinityKey<F::Addr>: Pod,
    FrontendKey<F::Addr>: Pod,
{
    fn map(&self) -> &'static str {
        F::AFFINITY.name
    }

    fn capacity(&self) -> u32 {
        self.pass.capacity
    }

    fn step(&mut self, now: Ticks) -> Result<Swept, MapError> {
        if self.pass.is_at_start() {
            self.read_seconds()?;
        }
        let seconds = &self.seconds;
        self.pass.step(|_, key, affinity| {
            let seconds = seconds.get(&key.service).copied().unwrap_or_default();
            let is_over = decision::is_forgotten(affinity.last_used, seconds, now);
            Ok(if is_over { vec![*key] } else { Vec::new() })
        })
    }
}

/// Fragmented datagrams of one family.
struct Fragments<F: ObservedFamily>
where
    FragmentKey<F::Addr>: Pod,
{
    pass: Pass<FragmentKey<F::Addr>, FragmentPorts>,
}

impl<F: ObservedFamily> Fragments<F>
where
    FragmentKey<F::Addr>: Pod,
{
    fn open(bpffs: &Path) -> Result<Self, PinnedError> {
        Ok(Self { pass: Pass::open(bpffs, F::FRAGMENTS, Access::ReadWrite)? })
    }
}

impl<F: ObservedFamily> Sweep for Fragments<F>
where
    FragmentKey<F::Addr>: Pod,
{
    fn map(&self) -> &'static str {
        F::FRAGMENTS.name
    }

    fn capacity(&self) -> u32 {
        self.pass.capacity
    }

    fn step(&mut self, now: Ticks) -> Result<Swept, MapError> {
        self.pass
            .step(|_, key, ports| Ok(if decision::is_reassembled(ports.seen, now) { vec![*key] } else { Vec::new() }))
    }
}
