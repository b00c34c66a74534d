//! Names, sizes and the layout version of the maps.

/// Version of every layout in this crate; part of the path that maps are pinned under, so that programs and agents of
/// different versions never read each other's bytes.
pub const LAYOUT_VERSION: u32 = 4;

/// What a map is for, which decides how user space may treat it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Written by the agent alone; derived from the cluster's objects.
    Desired,
    /// Written by the programs; derived from packets.
    Observed,
    /// Counters.
    Statistics,
}

/// One map of the datapath.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapSpec {
    /// Name in the object, in the kernel (15 characters at most) and of the pin.
    pub name: &'static str,
    /// Number of entries unless a flag says otherwise.
    pub entries: u32,
    /// Who writes it.
    pub role: Role,
    /// What it holds, in a few words.
    pub about: &'static str,
}

macro_rules! maps {
    ($($const:ident = $name:literal, $entries:expr, $role:ident, $about:literal;)*) => {
        $(
            #[doc = concat!("`", $name, "`: ", $about, ".")]
            pub const $const: MapSpec =
                MapSpec { name: $name, entries: $entries, role: Role::$role, about: $about };
        )*
        /// Every map, in the order of `sluice map list`.
        pub const ALL: &[MapSpec] = &[$($const),*];
    };
}

maps! {
    FRONTENDS4 = "frontends4", 64 << 10, Desired, "IPv4 address, port, protocol -> service and slot ranges";
    FRONTENDS6 = "frontends6", 64 << 10, Desired, "IPv6 address, port, protocol -> service and slot ranges";
    SLOTS = "slots", 1 << 20, Desired, "slot -> backend id";
    BACKENDS4 = "backends4", 256 << 10, Desired, "backend id -> IPv4 address, port, generation";
    BACKENDS6 = "backends6", 256 << 10, Desired, "backend id -> IPv6 address, port, generation";
    SERVICE_NAMES = "service_names", 64 << 10, Desired, "service id -> namespace/name:port";
    LOCAL_ADDRS4 = "local_addrs4", 4 << 10, Desired, "the node's IPv4 addresses -> what they take";
    LOCAL_ADDRS6 = "local_addrs6", 4 << 10, Desired, "the node's IPv6 addresses -> what they take";
    SNAT_ADDRS4 = "snat_addrs4", 1 << 10, Desired, "interface index -> IPv4 address to SNAT to";
    SNAT_ADDRS6 = "snat_addrs6", 1 << 10, Desired, "interface index -> IPv6 address to SNAT to";
    SOURCE_RANGES4 = "source_ranges4", 64 << 10, Desired, "service id, IPv4 prefix -> admitted";
    SOURCE_RANGES6 = "source_ranges6", 64 << 10, Desired, "service id, IPv6 prefix -> admitted";
    CIDRS4 = "cidrs4", 1 << 10, Desired, "IPv4 prefix -> what its addresses are";
    CIDRS6 = "cidrs6", 1 << 10, Desired, "IPv6 prefix -> what its addresses are";
    CONNTRACK4 = "conntrack4", 256 << 10, Observed, "IPv4 flows, one entry per direction";
    CONNTRACK6 = "conntrack6", 128 << 10, Observed, "IPv6 flows, one entry per direction";
    FLOW_PAIRS = "flow_pairs", 32 << 10, Statistics, "hash of two addresses -> on which sides there have been flows between them, as bits";
    SOCKETS4 = "sockets4", 64 << 10, Observed, "sockets translated to an IPv4 backend -> frontend";
    SOCKETS6 = "sockets6", 64 << 10, Observed, "sockets translated to an IPv6 backend -> frontend";
    AFFINITY4 = "affinity4", 64 << 10, Observed, "IPv4 client, service id -> backend it was sent to";
    AFFINITY6 = "affinity6", 64 << 10, Observed, "IPv6 client, service id -> backend it was sent to";
    FRAGMENTS4 = "fragments4", 8 << 10, Observed, "fragmented IPv4 datagrams -> protocol and ports";
    FRAGMENTS6 = "fragments6", 8 << 10, Observed, "fragmented IPv6 datagrams -> protocol and ports";
    DEVICES = "devices", 4 << 10, Desired, "interface index -> whether packets may go around the stack there";
    WAYS4 = "ways4", 2 << 10, Statistics, "IPv4 addresses of packets that nobody translates -> next hop, per CPU";
    WAYS6 = "ways6", 2 << 10, Statistics, "IPv6 addresses of packets that nobody translates -> next hop, per CPU";
    MAP_OPS = "map_ops", 3, Statistics, "lookups, updates and deletes of the programs, per CPU, when they are counted";
    DROPS = "drops", crate::DropReason::COUNT, Statistics, "drop reason -> packets, per CPU";
}

/// Bits of the values of `local_addrs4` and `local_addrs6`.
pub mod local_addr {
    /// NodePort traffic is taken on this address from anywhere.
    pub const NODE_PORT: u32 = 1 << 0;
    /// A loopback address: NodePort traffic is taken from the node's own sockets only.
    pub const LOOPBACK: u32 = 1 << 1;
}

/// Bits of the values of `cidrs4` and `cidrs6`; a prefix also has the bits of those around it.
pub mod cidr {
    /// The cluster gives these addresses to services: one that no service owns leads nowhere.
    pub const SERVICE: u32 = 1 << 0;
    /// Pods have these addresses, as `detectLocalMode` sees it: their requests to cluster IPs are not masqueraded.
    pub const POD: u32 = 1 << 1;
    /// The cluster's service CIDRs are known, so addresses without [`SERVICE`] are no service's. Of the default route, and so
    /// of every prefix.
    pub const SERVICES_KNOWN: u32 = 1 << 2;
}

/// Key of `snat_addrs4` and `snat_addrs6` for interfaces that have no entry of their own: the node's primary address.
pub const ANY_INTERFACE: u32 = 0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_the_kernel_and_are_unique() {
        for (index, spec) in ALL.iter().enumerate() {
            assert!(spec.name.len() <= 15, "{}", spec.name);
            assert!(ALL[index + 1..].iter().all(|other| other.name != spec.name), "{}", spec.name);
        }
    }
}
