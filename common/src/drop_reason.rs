//! Why a packet ends here: the one list, shared by programs, command line and metrics.

use core::fmt;

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $variant:ident = $index:literal, $name:literal, $text:literal;)*) => {
        /// Why the datapath did not forward a packet; the discriminant is the index in the per-CPU array `drops`.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum DropReason {
            $($(#[$doc])* $variant = $index,)*
        }

        impl DropReason {
            /// Every reason, in the order of the counters.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The reason's name in tables and metric labels.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// One sentence for people.
            #[must_use]
            pub const fn describe(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }
        }
    };
}

drop_reasons! {
    /// A frontend without any endpoint: answered with RST or port unreachable.
    NoEndpoints = 0, "no_endpoints", "the service has no endpoint; the client got a RST or ICMP port unreachable";
    /// A frontend whose traffic policy is Local without a local endpoint.
    NoLocalEndpoints = 1, "no_local_endpoints", "traffic policy is Local and no endpoint runs on this node";
    /// The slot names a backend that does not exist.
    StaleSlot = 2, "stale_slot", "a slot named a backend that is gone; the agent is behind or the maps are damaged";
    /// The conntrack map refused an entry.
    ConntrackInsert = 3, "conntrack_insert", "the conntrack map refused a new entry";
    /// Every tried source port was taken.
    SnatExhausted = 4, "snat_exhausted", "no free source port towards this backend";
    /// The egress device has no address to SNAT to.
    NoSnatAddress = 5, "no_snat_address", "the egress interface has no address of this family";
    /// The FIB has no route to where a redirected packet should go.
    NoRoute = 6, "no_route", "no route to the backend or back to the client";
    /// The packet is larger than the egress device takes; the sender got an ICMP error.
    TooBig = 7, "too_big", "larger than the egress interface's MTU; the sender got fragmentation needed or packet too big";
    /// The hop limit ran out at this node.
    HopLimit = 8, "hop_limit", "TTL or hop limit exceeded at this node";
    /// A helper that writes to the packet failed.
    Rewrite = 9, "rewrite", "the kernel refused to rewrite the packet";
    /// An answer to a rejected packet could not be built.
    RejectFailed = 10, "reject_failed", "no RST or ICMP error could be built for a rejected packet";
    /// A port that an active cluster IP does not have: answered with RST or port unreachable.
    UndefinedPort = 11, "undefined_port", "the cluster IP has no such port; the client got a RST or ICMP port unreachable";
    /// An address of a service CIDR that no service owns.
    UnownedServiceAddress = 12, "unowned_service_address", "no service owns this address of a service CIDR";
    /// The client is in none of `loadBalancerSourceRanges`.
    SourceRange = 13, "source_range", "the client is in none of the service's loadBalancerSourceRanges";
    /// A fragment to a service whose first fragment has not been seen.
    UnknownFragment = 14, "unknown_fragment", "a fragment to a service came before its first fragment or long after it";
    /// An SCTP packet whose port would have to change.
    SctpPort = 15, "sctp_port", "an SCTP service whose target port differs, or whose source port is taken: ports stay";
}

impl DropReason {
    /// Number of reasons; the size of the array `drops`.
    pub const COUNT: u32 = Self::ALL.len() as u32;

    /// Whether the client is told at once, as by a host without a listener.
    #[must_use]
    #[inline(always)]
    pub const fn is_answered(self) -> bool {
        matches!(self, Self::NoEndpoints | Self::UndefinedPort)
    }
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_stands_at_its_own_index() {
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index, "{reason}");
        }
    }
}
