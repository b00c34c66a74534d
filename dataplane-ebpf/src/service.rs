//! Frontends and the choice of a backend.

use aya_ebpf::{helpers::bpf_get_prandom_u32, maps::lpm_trie::Key};
use dataplane_common::{
    Addr as _, AffinityKey, Backend, BePort, DropReason, Frontend, FrontendKey, FrontendKind, NodeConfig, Scope,
    SlotRange, SourceRange, map::cidr,
};

use crate::{
    affinity, config,
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

/// What is at an address and port.
pub enum Place {
    /// A frontend.
    Frontend(&'static Frontend),
    /// The node itself, which has no NodePort there.
    Node,
    /// Something else.
    Elsewhere,
}

/// The frontend at an address and port: one that owns the address, or a NodePort on an address of this node whose bits
/// intersect `node_port_on` (`local_addr::*`).
///
/// `None` is for others to deliver; an error is for nobody.
#[inline(always)]
pub fn find<F: Datapath>(
    addr: &F::Addr,
    port: BePort,
    protocol: u8,
    node_port_on: u32,
) -> Step<Option<&'static Frontend>> {
    match place::<F>(addr, port, protocol, node_port_on) {
        Place::Frontend(frontend) => return Ok(Some(frontend)),
        Place::Node => return Ok(None),
        Place::Elsewhere => {}
    }
    let bits = prefix::<F>(addr);
    if bits & (cidr::SERVICE | cidr::SERVICES_KNOWN) == cidr::SERVICES_KNOWN {
        return Ok(None);
    }
    if owns_address::<F>(addr) {
        return Err(DropReason::UndefinedPort);
    }
    // Without knowledge of the service CIDRs, every other address is somebody else's.
    if bits & cidr::SERVICE != 0 { Err(DropReason::UnownedServiceAddress) } else { Ok(None) }
}

/// What [`find`] looks for first: the frontend, without a judgement of packets that are to none.
#[inline(always)]
pub fn place<F: Datapath>(addr: &F::Addr, port: BePort, protocol: u8, node_port_on: u32) -> Place {
    let mut key = FrontendKey { addr: *addr, port, protocol, scope: Scope::Address as u8 };
    if let Some(frontend) = lookup::<F>(&key) {
        return Place::Frontend(frontend);
    }
    let Some(flags) = F::local_addrs().find(addr) else { return Place::Elsewhere };
    // SAFETY: without preallocation an element is freed after a grace period; a word is read.
    if unsafe { *flags } & node_port_on == 0 {
        return Place::Node;
    }
    key.addr = F::Addr::ZERO;
    key.scope = Scope::NodePort as u8;
    lookup::<F>(&key).map_or(Place::Node, Place::Frontend)
}

/// The frontend at an address and port of any node: what another node tells of.
#[inline(always)]
pub fn known<F: Datapath>(addr: &F::Addr, port: BePort, protocol: u8) -> Option<&'static Frontend> {
    let mut key = FrontendKey { addr: *addr, port, protocol, scope: Scope::Address as u8 };
    if let Some(frontend) = lookup::<F>(&key) {
        return Some(frontend);
    }
    key.addr = F::Addr::ZERO;
    key.scope = Scope::NodePort as u8;
    lookup::<F>(&key)
}

/// Whether `addr` is the cluster IP of an active service.
#[inline(always)]
pub fn owns_address<F: Datapath>(addr: &F::Addr) -> bool {
    let key = FrontendKey { addr: *addr, port: BePort(0), protocol: 0, scope: Scope::OtherPorts as u8 };
    F::frontends().find(&key).is_some()
}

/// Whether `addr` is in a service CIDR, and no service owns it.
#[inline(always)]
pub fn is_nobodys<F: Datapath>(addr: &F::Addr) -> bool {
    prefix::<F>(addr) & cidr::SERVICE != 0 && !owns_address::<F>(addr)
}

/// The bits (`cidr::*`) of the longest prefix that `addr` is in.
#[inline(always)]
fn prefix<F: Datapath>(addr: &F::Addr) -> u32 {
    // SAFETY: an element of a prefix trie is freed after a grace period; a word is read.
    F::cidrs().find(&Key::new(F::Addr::SIZE as u32 * 8, *addr)).map_or(0, |bits| unsafe { *bits })
}

/// Whether a request to `frontend` needs one of the node's addresses as its source, because its replies would not pass
/// here otherwise, or because the operator wants it so.
#[inline(always)]
pub fn is_masqueraded<F: Datapath>(frontend: &Frontend, client: Client, addr: &F::Addr) -> bool {
    if frontend.kind != FrontendKind::ClusterIp as u8 {
        return false;
    }
    config::has(NodeConfig::MASQUERADE_ALL)
        || (client == Client::Outside
            && config::has(NodeConfig::MASQUERADE_OUTSIDE)
            && prefix::<F>(addr) & cidr::POD == 0)
}

#[inline(always)]
fn lookup<F: Datapath>(key: &FrontendKey<F::Addr>) -> Option<&'static Frontend> {
    // SAFETY: the map is not preallocated: an update makes a new element, and the old one stays whole until every program
    // that found it has ended.
    F::frontends().find(key).map(|frontend| unsafe { &*frontend })
}

/// Chooses a backend for a packet from `addr`: the one the client had before where the service remembers clients, else one
/// at random.
#[inline(always)]
pub fn select<F: Datapath>(frontend: &Frontend, client: Client, addr: &F::Addr) -> Step<Selected<F::Addr>> {
    if frontend.flags & Frontend::SOURCE_RANGES != 0 {
        admit::<F>(frontend, addr)?;
    }
    // SAFETY: the helper has no preconditions.
    select_by::<F>(frontend, client, addr, unsafe { bpf_get_prandom_u32() })
}

/// Refuses the client `addr` unless it is in one of the frontend's source ranges.
#[inline(always)]
pub fn admit<F: Datapath>(frontend: &Frontend, addr: &F::Addr) -> Step<()> {
    let range = SourceRange { service: frontend.service, addr: *addr };
    let found = F::source_ranges().find(&Key::new(32 + F::Addr::SIZE as u32 * 8, range));
    found.map(drop).ok_or(DropReason::SourceRange)
}

/// Chooses the backend that `random`, evenly spread over 32 bits, falls on, unless the service remembers the client `addr`.
#[inline(always)]
pub fn select_by<F: Datapath>(
    frontend: &Frontend,
    client: Client,
    addr: &F::Addr,
    random: u32,
) -> Step<Selected<F::Addr>> {
    if frontend.affinity_seconds == 0 {
        return select_at_random::<F>(frontend, client, random);
    }
    let key = AffinityKey { client: *addr, service: frontend.service };
    let set = match client {
        Client::Inside => frontend.flags & Frontend::INSIDE_IS_LOCAL,
        Client::Outside => frontend.flags & Frontend::OUTSIDE_IS_LOCAL,
    };
    let needed = if set == 0 { Backend::<F::Addr>::IN_CLUSTER_SET } else { Backend::<F::Addr>::IN_LOCAL_SET };
    let selected = match affinity::recall::<F>(&key, frontend.affinity_seconds, needed) {
        Some(selected) => selected,
        None => select_at_random::<F>(frontend, client, random)?,
    };
    affinity::remember::<F>(&key, &selected);
    Ok(selected)
}

#[inline(always)]
fn select_at_random<F: Datapath>(frontend: &Frontend, client: Client, random: u32) -> Step<Selected<F::Addr>> {
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
    backend::<F>(unsafe { *id }).ok_or(DropReason::StaleSlot)
}

/// The backend with this id, if it exists.
#[inline(always)]
pub fn backend<F: Datapath>(id: u32) -> Option<Selected<F::Addr>> {
    let backend = F::backends().find(&id)?;
    // SAFETY: array elements never move; the agent writes a backend whole before anything names it.
    let backend = unsafe { *backend };
    backend.exists().then_some(Selected { id, backend })
}

/// Scales instead of dividing: even for every count, and one multiplication.
#[inline(always)]
fn slot_of(range: SlotRange, random: u32) -> u32 {
    range.first + ((u64::from(random) * u64::from(range.count)) >> 32) as u32
}
