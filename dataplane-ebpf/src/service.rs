//! Frontends and the choice of a backend.

use aya_ebpf::helpers::bpf_get_prandom_u32;
use dataplane_common::{Addr as _, Backend, BePort, DropReason, Frontend, FrontendKey, Scope, SlotRange};

use crate::{
    family::Datapath,
    maps::{SLOTS, Table as _},
    verdict::Step,
};

/// Where a client is, which decides the slot range it gets.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Client {
    /// A pod or a process of this node.
    Inside,
    /// Anyone else.
    Outside,
}

/// A backend and the id it has in the maps.
pub struct Selected<A> {
    pub id: u32,
    pub backend: Backend<A>,
}

/// The frontend at an address and port: one that owns the address, or a NodePort on an address of this node whose bits
/// intersect `node_port_on` (`local_addr::*`).
#[inline(always)]
pub fn find<F: Datapath>(addr: &F::Addr, port: BePort, protocol: u8, node_port_on: u32) -> Option<Frontend> {
    let mut key = FrontendKey { addr: *addr, port, protocol, scope: Scope::Address as u8 };
    if let Some(frontend) = F::frontends().find(&key) {
        // SAFETY: without preallocation an element is freed after a grace period, so it stays whole while we copy it.
        return Some(unsafe { *frontend });
    }
    // SAFETY: as above.
    let flags = unsafe { *F::local_addrs().find(addr)? };
    if flags & node_port_on == 0 {
        return None;
    }
    key.addr = F::Addr::ZERO;
    key.scope = Scope::NodePort as u8;
    // SAFETY: as above.
    F::frontends().find(&key).map(|frontend| unsafe { *frontend })
}

/// Chooses a backend at random.
#[inline(always)]
pub fn select<F: Datapath>(frontend: &Frontend, client: Client) -> Step<Selected<F::Addr>> {
    // SAFETY: the helper has no preconditions.
    select_by::<F>(frontend, client, unsafe { bpf_get_prandom_u32() })
}

/// Chooses the backend that `random`, evenly spread over 32 bits, falls on.
#[inline(always)]
pub fn select_by<F: Datapath>(frontend: &Frontend, client: Client, random: u32) -> Step<Selected<F::Addr>> {
    let (range, drop_flag) = match client {
        Client::Inside => (frontend.inside, Frontend::DROP_INSIDE),
        Client::Outside => (frontend.outside, Frontend::DROP_OUTSIDE),
    };
    if range.count == 0 {
        let dropped = frontend.flags & drop_flag != 0;
        return Err(if dropped { DropReason::NoLocalEndpoints } else { DropReason::NoEndpoints });
    }
    let slot = slot_of(range, random);
    let id = SLOTS.find(&slot).ok_or(DropReason::StaleSlot)?;
    // SAFETY: array elements never move, and a word is read.
    let id = unsafe { *id };
    let backend = F::backends().find(&id).ok_or(DropReason::StaleSlot)?;
    // SAFETY: array elements never move; the agent writes a backend whole before any slot names it.
    let backend = unsafe { *backend };
    if backend.exists() { Ok(Selected { id, backend }) } else { Err(DropReason::StaleSlot) }
}

/// Scales instead of dividing: even for every count, and one multiplication.
#[inline(always)]
fn slot_of(range: SlotRange, random: u32) -> u32 {
    range.first + ((u64::from(random) * u64::from(range.count)) >> 32) as u32
}
