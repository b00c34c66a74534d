//! `ClientIP` session affinity: the backend that a client was sent to last.

use aya_ebpf::bindings::BPF_ANY;
use dataplane_common::{Affinity, AffinityKey, clock::TICK_SHIFT};

use crate::{
    clock,
    family::Datapath,
    maps::{Table as _, Writable as _},
    service::{Selected, backend},
};

/// The backend of the client's last connection, if that is less than `seconds` ago and the backend still has a bit of
/// `set` (`Backend::IN_*_SET`).
#[inline(always)]
pub fn recall<F: Datapath>(key: &AffinityKey<F::Addr>, seconds: u32, set: u8) -> Option<Selected<F::Addr>> {
    let known = F::affinity().find(key)?;
    // SAFETY: the map keeps the entry readable; a torn read fails the comparison of generations below.
    let known = unsafe { *known };
    let ticks = (u64::from(seconds) * 1_000_000_000) >> TICK_SHIFT;
    if u64::from(clock::now().0.wrapping_sub(known.last_used)) > ticks {
        return None;
    }
    let selected = backend::<F>(known.backend)?;
    let same = selected.backend.generation == known.generation && selected.backend.flags & set != 0;
    same.then_some(selected)
}

/// Notes the backend of a new connection, which also prolongs the memory.
#[inline(always)]
pub fn remember<F: Datapath>(key: &AffinityKey<F::Addr>, selected: &Selected<F::Addr>) {
    let affinity =
        Affinity { backend: selected.id, generation: selected.backend.generation, last_used: clock::now().0 };
    // A full map evicts its oldest entry, so this fails only without memory; the connection itself is not affected.
    let _forgotten = F::affinity().put(key, &affinity, u64::from(BPF_ANY));
}
