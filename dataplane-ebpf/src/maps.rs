//! Every map of the datapath and nothing else: definitions, and the operations the programs use on them.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, lpm_trie::Key},
};
use dataplane_common::{
    Affinity, AffinityKey, Backend, Device, DropReason, Flow, FlowKey, FragmentKey, FragmentPorts, Frontend,
    FrontendKey, NodeConfig, PairWay, ServiceName, SocketKey, SocketOrigin, SourceRange, map as spec,
};

use crate::config;

type A4 = [u32; 1];
type A6 = [u32; 4];

pub type Frontends<A> = HashMap<FrontendKey<A>, Frontend>;
pub type Backends<A> = Array<Backend<A>>;
pub type Conntrack<A> = LruHashMap<FlowKey<A>, Flow<A>>;
pub type LocalAddrs<A> = HashMap<A, u32>;
pub type SnatAddrs<A> = HashMap<u32, A>;
pub type SourceRanges<A> = LpmTrie<SourceRange<A>, u32>;
pub type Cidrs<A> = LpmTrie<A, u32>;
pub type Affinities<A> = LruHashMap<AffinityKey<A>, Affinity>;
pub type Fragments<A> = LruHashMap<FragmentKey<A>, FragmentPorts>;
pub type Ways<A> = PerCpuArray<PairWay<A>>;
pub type Sockets<A> = LruHashMap<SocketKey<A>, SocketOrigin<A>>;

#[map(name = "frontends4")]
pub static FRONTENDS4: Frontends<A4> = HashMap::with_max_entries(spec::FRONTENDS4.entries, BPF_F_NO_PREALLOC);
#[map(name = "frontends6")]
pub static FRONTENDS6: Frontends<A6> = HashMap::with_max_entries(spec::FRONTENDS6.entries, BPF_F_NO_PREALLOC);
#[map(name = "slots")]
pub static SLOTS: Array<u32> = Array::with_max_entries(spec::SLOTS.entries, 0);
#[map(name = "backends4")]
pub static BACKENDS4: Backends<A4> = Array::with_max_entries(spec::BACKENDS4.entries, 0);
#[map(name = "backends6")]
pub static BACKENDS6: Backends<A6> = Array::with_max_entries(spec::BACKENDS6.entries, 0);
/// Read by user space only; defined here so that it is created and pinned with the others.
#[map(name = "service_names")]
pub static SERVICE_NAMES: HashMap<u32, ServiceName> =
    HashMap::with_max_entries(spec::SERVICE_NAMES.entries, BPF_F_NO_PREALLOC);
#[map(name = "local_addrs4")]
pub static LOCAL_ADDRS4: LocalAddrs<A4> = HashMap::with_max_entries(spec::LOCAL_ADDRS4.entries, BPF_F_NO_PREALLOC);
#[map(name = "local_addrs6")]
pub static LOCAL_ADDRS6: LocalAddrs<A6> = HashMap::with_max_entries(spec::LOCAL_ADDRS6.entries, BPF_F_NO_PREALLOC);
#[map(name = "snat_addrs4")]
pub static SNAT_ADDRS4: SnatAddrs<A4> = HashMap::with_max_entries(spec::SNAT_ADDRS4.entries, BPF_F_NO_PREALLOC);
#[map(name = "snat_addrs6")]
pub static SNAT_ADDRS6: SnatAddrs<A6> = HashMap::with_max_entries(spec::SNAT_ADDRS6.entries, BPF_F_NO_PREALLOC);
#[map(name = "conntrack4")]
pub static CONNTRACK4: Conntrack<A4> = LruHashMap::with_max_entries(spec::CONNTRACK4.entries, 0);
#[map(name = "conntrack6")]
pub static CONNTRACK6: Conntrack<A6> = LruHashMap::with_max_entries(spec::CONNTRACK6.entries, 0);
#[map(name = "flow_pairs")]
pub static FLOW_PAIRS: Array<u32> = Array::with_max_entries(spec::FLOW_PAIRS.entries, 0);
#[map(name = "sockets4")]
pub static SOCKETS4: Sockets<A4> = LruHashMap::with_max_entries(spec::SOCKETS4.entries, 0);
#[map(name = "sockets6")]
pub static SOCKETS6: Sockets<A6> = LruHashMap::with_max_entries(spec::SOCKETS6.entries, 0);
#[map(name = "source_ranges4")]
pub static SOURCE_RANGES4: SourceRanges<A4> =
    LpmTrie::with_max_entries(spec::SOURCE_RANGES4.entries, BPF_F_NO_PREALLOC);
#[map(name = "source_ranges6")]
pub static SOURCE_RANGES6: SourceRanges<A6> =
    LpmTrie::with_max_entries(spec::SOURCE_RANGES6.entries, BPF_F_NO_PREALLOC);
#[map(name = "cidrs4")]
pub static CIDRS4: Cidrs<A4> = LpmTrie::with_max_entries(spec::CIDRS4.entries, BPF_F_NO_PREALLOC);
#[map(name = "cidrs6")]
pub static CIDRS6: Cidrs<A6> = LpmTrie::with_max_entries(spec::CIDRS6.entries, BPF_F_NO_PREALLOC);
#[map(name = "affinity4")]
pub static AFFINITY4: Affinities<A4> = LruHashMap::with_max_entries(spec::AFFINITY4.entries, 0);
#[map(name = "affinity6")]
pub static AFFINITY6: Affinities<A6> = LruHashMap::with_max_entries(spec::AFFINITY6.entries, 0);
#[map(name = "fragments4")]
pub static FRAGMENTS4: Fragments<A4> = LruHashMap::with_max_entries(spec::FRAGMENTS4.entries, 0);
#[map(name = "fragments6")]
pub static FRAGMENTS6: Fragments<A6> = LruHashMap::with_max_entries(spec::FRAGMENTS6.entries, 0);
/// Written by the agent when packets may go around the stack.
#[map(name = "devices")]
pub static DEVICES: HashMap<u32, Device> = HashMap::with_max_entries(spec::DEVICES.entries, BPF_F_NO_PREALLOC);
#[map(name = "ways4")]
pub static WAYS4: Ways<A4> = PerCpuArray::with_max_entries(spec::WAYS4.entries, 0);
#[map(name = "ways6")]
pub static WAYS6: Ways<A6> = PerCpuArray::with_max_entries(spec::WAYS6.entries, 0);
#[map(name = "map_ops")]
pub static MAP_OPS: PerCpuArray<u64> = PerCpuArray::with_max_entries(spec::MAP_OPS.entries, 0);
#[map(name = "drops")]
pub static DROPS: PerCpuArray<u64> = PerCpuArray::with_max_entries(spec::DROPS.entries, 0);

/// A map that programs look up in, and that counts its operations when the node's configuration says so.
pub trait Table<K> {
    /// What it holds.
    type Value;

    /// The value under `key`.
    ///
    /// It stays readable until the program ends. An entry of an LRU map may meanwhile be given to another key: copy out
    /// what must be consistent, write single words.
    fn find(&self, key: &K) -> Option<*mut Self::Value>;
}

/// A map whose entries come from programs.
pub trait Writable<K>: Table<K> {
    /// Writes `value` under `key`; `flags` are those of `bpf_map_update_elem`.
    fn put(&self, key: &K, value: &Self::Value, flags: u64) -> Result<(), i32>;

    /// Deletes the entry under `key`.
    fn delete(&self, key: &K) -> Result<(), i32>;
}

impl<K, V> Table<K> for HashMap<K, V> {
    type Value = V;

    #[inline(always)]
    fn find(&self, key: &K) -> Option<*mut V> {
        count(Operation::Lookup);
        self.get_ptr_mut(key)
    }
}

impl<K, V> Table<K> for LruHashMap<K, V> {
    type Value = V;

    #[inline(always)]
    fn find(&self, key: &K) -> Option<*mut V> {
        count(Operation::Lookup);
        self.get_ptr_mut(key)
    }
}

impl<K, V> Writable<K> for LruHashMap<K, V> {
    #[inline(always)]
    fn put(&self, key: &K, value: &V, flags: u64) -> Result<(), i32> {
        count(Operation::Update);
        self.insert(key, value, flags)
    }

    #[inline(always)]
    fn delete(&self, key: &K) -> Result<(), i32> {
        count(Operation::Delete);
        self.remove(key)
    }
}

impl<K, V> Table<Key<K>> for LpmTrie<K, V> {
    type Value = V;

    #[inline(always)]
    fn find(&self, key: &Key<K>) -> Option<*mut V> {
        count(Operation::Lookup);
        self.get(key).map(|value| core::ptr::from_ref(value).cast_mut())
    }
}

impl<V> Table<u32> for Array<V> {
    type Value = V;

    #[inline(always)]
    fn find(&self, key: &u32) -> Option<*mut V> {
        count(Operation::Lookup);
        self.get_ptr_mut(*key)
    }
}

impl<V> Table<u32> for PerCpuArray<V> {
    type Value = V;

    #[inline(always)]
    fn find(&self, key: &u32) -> Option<*mut V> {
        count(Operation::Lookup);
        self.get_ptr_mut(*key)
    }
}

/// Index in `map_ops`.
#[derive(Clone, Copy)]
enum Operation {
    Lookup = 0,
    Update = 1,
    Delete = 2,
}

#[inline(always)]
fn count(operation: Operation) {
    if config::has(NodeConfig::COUNT_MAP_OPS) {
        increment(&MAP_OPS, operation as u32);
    }
}

/// Counts a packet that ends here.
#[inline(always)]
pub fn count_drop(reason: DropReason) {
    increment(&DROPS, reason as u32);
}

#[inline(always)]
fn increment(counters: &PerCpuArray<u64>, index: u32) {
    if let Some(counter) = counters.get_ptr_mut(index) {
        // SAFETY: a per-CPU value belongs to this processor while the program runs.
        unsafe { *counter += 1 };
    }
}
