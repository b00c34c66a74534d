//! Fragments: only the first one carries ports and surely tells its protocol, so it is remembered for the others.

use aya_ebpf::bindings::BPF_ANY;
use dataplane_common::{DropReason, FragmentKey, FragmentPorts, Ticks};

use crate::{
    clock,
    family::{Datapath, Headers, Part},
    maps::{Table as _, Writable as _},
    service,
    verdict::Step,
};

/// How long fragments of one datagram are expected: Linux reassembles for 30 s (`ipfrag_time`, `ip6frag_time`).
const LIFETIME: u32 = Ticks::from_secs(30).0;

/// Remembers a first fragment's protocol and ports; gives a later one the ports of its datagram. False when they are not known and
/// the packet passes.
///
/// A fragment to a service that overtook its first one is dropped: untranslated, it would reach nobody or the wrong one.
#[inline(always)]
pub fn follow<F: Datapath>(headers: &mut Headers<F::Addr>) -> Step<bool> {
    if headers.part == Part::Whole {
        return Ok(true);
    }
    let key = key::<F>(headers.key.src, headers.key.dst, headers.datagram, headers.key.protocol);
    if headers.part == Part::First {
        let ports = FragmentPorts {
            src_port: headers.key.src_port,
            dst_port: headers.key.dst_port,
            seen: clock::now().0,
            protocol: u32::from(headers.key.protocol),
        };
        // A full map evicts its oldest entry; should this fail all the same, the later fragments are counted as unknown.
        let _unknown = F::fragments().put(&key, &ports, u64::from(BPF_ANY));
        return Ok(true);
    }
    if let Some(ports) = recall::<F>(&key) {
        headers.key.src_port = ports.src_port;
        headers.key.dst_port = ports.dst_port;
        return Ok(true);
    }
    if service::owns_address::<F>(&headers.key.dst) { Err(DropReason::UnknownFragment) } else { Ok(false) }
}

/// What the fragments of a datagram have in common.
#[inline(always)]
pub fn key<F: Datapath>(src: F::Addr, dst: F::Addr, id: u32, protocol: u8) -> FragmentKey<F::Addr> {
    FragmentKey { src, dst, id, protocol: if F::FRAGMENTS_NAME_PROTOCOL { u32::from(protocol) } else { 0 } }
}

/// What is remembered of a datagram.
#[inline(always)]
pub fn recall<F: Datapath>(key: &FragmentKey<F::Addr>) -> Option<FragmentPorts> {
    let ports = F::fragments().find(key)?;
    // SAFETY: the map keeps the entry readable, and it is copied at once.
    let ports = unsafe { *ports };
    (clock::now().0.wrapping_sub(ports.seen) <= LIFETIME).then_some(ports)
}
