//! The ordered list of map operations that turns what is installed into what is desired, as data.
//!
//! The order keeps every packet safe: names first, and the clients that a service admits; then new backends, then slots,
//! then the frontends that count them, then frontends that go, then backends that nothing counts any more; last the names of
//! removed services, and clients that are no longer asked for or no longer admitted.

mod delta;

use std::{fmt, net::IpAddr};

use dataplane_common::{Device, Frontend, Scope, SlotRange};

pub use self::delta::between;
use ipnetwork::IpNetwork;

use crate::tables::{self, BackendId, BackendRow, ClientRange, FrontendAddr, IpFamily, SnatKey, Tables};

/// One map operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Writes a service port's name under its id.
    PutServiceName(u32, String),
    /// Writes an address of this node.
    PutLocalAddr(IpAddr, u32),
    /// Writes the address that SNAT uses on an interface.
    PutSnatAddr(SnatKey, IpAddr),
    /// Writes what the addresses of a prefix are.
    PutCidr(IpNetwork, u32),
    /// Writes how packets pass an interface without the stack.
    PutDevice(u32, Device),
    /// Admits clients to a service's load-balancer addresses.
    PutSourceRange(ClientRange),
    /// Writes a backend that exists.
    PutBackend(BackendId, BackendRow),
    /// Points a slot to a backend.
    PutSlot(u32, BackendId),
    /// Writes a frontend.
    PutFrontend(FrontendAddr, Frontend),
    /// Deletes a frontend.
    DeleteFrontend(FrontendAddr),
    /// Ends a backend: the row's generation is even, so flows that remember the last one know.
    KillBackend(BackendId, BackendRow),
    /// Deletes an address of this node.
    DeleteLocalAddr(IpAddr),
    /// Deletes an interface's address for SNAT.
    DeleteSnatAddr(SnatKey),
    /// Deletes a prefix.
    DeleteCidr(IpNetwork),
    /// Deletes an interface.
    DeleteDevice(u32),
    /// Deletes clients of a service's load-balancer addresses.
    DeleteSourceRange(ClientRange),
    /// Deletes a removed service port's name.
    DeleteServiceName(u32),
}

/// The steps of a [`Plan`] in the order in which they keep packets safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Names of services, addresses of the node, prefixes and the clients that services admit.
    Names,
    /// Backends that come or change.
    Backends,
    /// Slots.
    Slots,
    /// Frontends that come or change.
    Frontends,
    /// Frontends that go.
    DeadFrontends,
    /// Backends that go.
    DeadBackends,
    /// Names, addresses, prefixes and clients that go.
    DeadNames,
}

impl Op {
    /// When it is run.
    pub const fn phase(&self) -> Phase {
        match self {
            Self::PutServiceName(..)
            | Self::PutLocalAddr(..)
            | Self::PutSnatAddr(..)
            | Self::PutCidr(..)
            | Self::PutDevice(..)
            | Self::PutSourceRange(_) => Phase::Names,
            Self::PutBackend(..) => Phase::Backends,
            Self::PutSlot(..) => Phase::Slots,
            Self::PutFrontend(..) => Phase::Frontends,
            Self::DeleteFrontend(_) => Phase::DeadFrontends,
            Self::KillBackend(..) => Phase::DeadBackends,
            Self::DeleteLocalAddr(_)
            | Self::DeleteSnatAddr(_)
            | Self::DeleteCidr(_)
            | Self::DeleteDevice(_)
            | Self::DeleteSourceRange(_)
            | Self::DeleteServiceName(_) => Phase::DeadNames,
        }
    }

    /// Does to `tables` what the operation does to the maps.
    pub fn apply_to(&self, tables: &mut Tables) {
        match self {
            Self::PutServiceName(id, name) => drop(tables.service_names.insert(*id, name.clone())),
            Self::PutLocalAddr(addr, bits) => drop(tables.local_addrs.insert(*addr, *bits)),
            Self::PutSnatAddr(key, addr) => drop(tables.snat_addrs.insert(*key, *addr)),
            Self::PutCidr(range, bits) => drop(tables.cidrs.insert(*range, *bits)),
            Self::PutDevice(index, device) => drop(tables.devices.insert(*index, *device)),
            Self::PutSourceRange(range) => _ = tables.source_ranges.insert(*range),
            Self::PutBackend(id, row) => drop(tables.backends.insert(*id, *row)),
            Self::PutSlot(index, backend) => drop(tables.slots.insert(*index, *backend)),
            Self::PutFrontend(addr, frontend) => drop(tables.frontends.insert(*addr, *frontend)),
            Self::DeleteFrontend(addr) => drop(tables.frontends.remove(addr)),
            Self::KillBackend(id, _) => drop(tables.backends.remove(id)),
            Self::DeleteLocalAddr(addr) => drop(tables.local_addrs.remove(addr)),
            Self::DeleteSnatAddr(key) => drop(tables.snat_addrs.remove(key)),
            Self::DeleteCidr(range) => drop(tables.cidrs.remove(range)),
            Self::DeleteDevice(index) => drop(tables.devices.remove(index)),
            Self::DeleteSourceRange(range) => _ = tables.source_ranges.remove(range),
            Self::DeleteServiceName(id) => drop(tables.service_names.remove(id)),
        }
    }
}

/// An operation and the group whose further operations are void when it fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Position of the group in what was planned together.
    pub group: usize,
    /// What to do.
    pub op: Op,
}

/// Operations in the order in which they are to be run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The operations.
    pub steps: Vec<Step>,
}

impl Plan {
    /// The plan that runs the groups' operations together, phase by phase.
    ///
    /// Groups are independent of each other, so any order among them is safe; this one keeps a map's operations together.
    pub fn of(groups: impl IntoIterator<Item = Vec<Op>>) -> Self {
        let mut steps: Vec<_> = groups
            .into_iter()
            .enumerate()
            .flat_map(|(group, ops)| ops.into_iter().map(move |op| Step { group, op }))
            .collect();
        steps.sort_by_key(|step| step.op.phase());
        Self { steps }
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.steps.iter().try_for_each(|step| writeln!(f, "{}", step.op))
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PutServiceName(id, name) => write!(f, "+ name {id} {name}"),
            Self::PutLocalAddr(addr, bits) => write!(f, "+ local {addr} {}", tables::local_addr_words(*bits)),
            Self::PutSnatAddr(key, addr) => write!(f, "+ snat {} {addr}", key.interface),
            Self::PutCidr(range, bits) => write!(f, "+ cidr {range} {}", tables::cidr_words(*bits)),
            Self::PutDevice(index, Device { routed_as, flags }) => {
                write!(f, "+ device {index} as {routed_as} {}", tables::device_words(*flags))
            }
            Self::PutSourceRange(ClientRange { service, range }) => write!(f, "+ clients of {service} {range}"),
            Self::PutBackend(id, row) => write!(f, "+ backend {id} {}", RowText(row)),
            Self::PutSlot(index, backend) => write!(f, "+ slot {index} -> {backend}"),
            Self::PutFrontend(addr, value) => {
                write!(f, "+ frontend {} -> {}", AddrText(addr), ValueText { addr, value })
            }
            Self::DeleteFrontend(addr) => write!(f, "- frontend {}", AddrText(addr)),
            Self::KillBackend(id, row) => write!(f, "- backend {id} {}", RowText(row)),
            Self::DeleteLocalAddr(addr) => write!(f, "- local {addr}"),
            Self::DeleteSnatAddr(SnatKey { interface, family }) => {
                write!(f, "- snat {interface} {}", if *family == IpFamily::V4 { "IPv4" } else { "IPv6" })
            }
            Self::DeleteCidr(range) => write!(f, "- cidr {range}"),
            Self::DeleteDevice(index) => write!(f, "- device {index}"),
            Self::DeleteSourceRange(ClientRange { service, range }) => write!(f, "- clients of {service} {range}"),
            Self::DeleteServiceName(id) => write!(f, "- name {id}"),
        }
    }
}

struct AddrText<'a>(&'a FrontendAddr);

impl fmt::Display for AddrText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scope = if self.0.scope == Scope::NodePort { "node " } else { "" };
        write!(f, "{scope}{}", self.0)
    }
}

struct RowText<'a>(&'a BackendRow);

impl fmt::Display for RowText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BackendRow { addr, protocol, flags, service, generation } = self.0;
        write!(f, "{addr}/{protocol} service {service} generation {generation}")?;
        for (bit, word) in [
            (BackendRow::LOCAL, " local"),
            (BackendRow::TERMINATING, " terminating"),
            (BackendRow::IN_CLUSTER_SET, " in-cluster-set"),
            (BackendRow::IN_LOCAL_SET, " in-local-set"),
        ] {
            if flags & bit != 0 {
                f.write_str(word)?;
            }
        }
        Ok(())
    }
}

struct ValueText<'a> {
    addr: &'a FrontendAddr,
    value: &'a Frontend,
}

impl fmt::Display for ValueText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Frontend { service, inside, outside, affinity_seconds, flags, .. } = self.value;
        if !self.addr.is_served() {
            return write!(f, "service {service}");
        }
        let drops = |bit| if flags & bit != 0 { " or drop" } else { "" };
        let text = |SlotRange { first, count }: &SlotRange| format!("{first}x{count}");
        write!(f, "service {service} inside {}{}", text(inside), drops(Frontend::DROP_INSIDE))?;
        write!(f, " outside {}{}", text(outside), drops(Frontend::DROP_OUTSIDE))?;
        if *affinity_seconds != 0 {
            write!(f, " affinity {affinity_seconds}s")?;
        }
        if flags & Frontend::SOURCE_RANGES != 0 { f.write_str(" known clients only") } else { Ok(()) }
    }
}
