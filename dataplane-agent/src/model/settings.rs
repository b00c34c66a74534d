//! What the operator decides about translation, whoever asks for it: flags, or kube-proxy's configuration file.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

/// The operator's decisions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Every request to a cluster IP is masqueraded.
    pub masquerade_all: bool,
    /// How the requests of local pods are told from those of others, which are masqueraded on their way to a cluster IP.
    pub local: DetectLocal,
    /// The node addresses that take NodePort traffic.
    pub node_port_addresses: NodePortAddresses,
}

/// What makes the sender of a request to a cluster IP a pod, whose address is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DetectLocal {
    /// Nothing: no request is masqueraded for where it comes from.
    #[default]
    Off,
    /// It has an address of these ranges (mode `ClusterCIDR`).
    Cidrs(Vec<IpNetwork>),
    /// It has an address of the Node object's `spec.podCIDRs` (mode `NodeCIDR`).
    NodeCidrs,
    /// It came through the interface of a pod (modes `BridgeInterface` and `InterfaceNamePrefix`).
    Interfaces,
}

impl DetectLocal {
    /// Whether requests from elsewhere are masqueraded.
    pub fn masquerades_outside(&self) -> bool {
        *self != Self::Off
    }

    /// The ranges of pods' addresses, given the `spec.podCIDRs` of this node's Node object.
    pub fn pod_cidrs<'a>(&'a self, node: &'a [IpNetwork]) -> &'a [IpNetwork] {
        match self {
            Self::Cidrs(cidrs) => cidrs,
            Self::NodeCidrs => node,
            Self::Off | Self::Interfaces => &[],
        }
    }
}

/// Which of the node's addresses take NodePort traffic; all of them when there is no rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodePortAddresses(pub Vec<NodePortRange>);

/// One rule of [`NodePortAddresses`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortRange {
    /// The addresses in a range.
    Cidr(IpNetwork),
    /// The Node object's first address of each family.
    Primary,
}

impl NodePortAddresses {
    /// Whether every address of the node takes NodePort traffic.
    pub fn is_all(&self) -> bool {
        [true, false].into_iter().all(|v4| {
            let mut of_family = self.of_family(v4).peekable();
            of_family.peek().is_none()
                || of_family.any(|range| matches!(range, NodePortRange::Cidr(cidr) if cidr.prefix() == 0))
        })
    }

    /// Whether `addr` takes NodePort traffic, on a node whose Node object lists the addresses `node` in this order.
    ///
    /// As with kube-proxy, a family that no rule is about is not restricted.
    pub fn admit(&self, addr: IpAddr, node: &[IpAddr]) -> bool {
        let mut of_family = self.of_family(addr.is_ipv4()).peekable();
        of_family.peek().is_none()
            || of_family.any(|range| match range {
                NodePortRange::Cidr(cidr) => cidr.contains(addr),
                NodePortRange::Primary => node.iter().find(|other| other.is_ipv4() == addr.is_ipv4()) == Some(&addr),
            })
    }

    fn of_family(&self, v4: bool) -> impl Iterator<Item = &NodePortRange> {
        self.0.iter().filter(move |range| match range {
            NodePortRange::Cidr(cidr) => cidr.is_ipv4() == v4,
            NodePortRange::Primary => true,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> NodePortAddresses {
        let range = |word: &str| match word {
            "primary" => NodePortRange::Primary,
            cidr => NodePortRange::Cidr(cidr.parse().unwrap()),
        };
        NodePortAddresses(text.split_whitespace().map(range).collect())
    }

    #[test]
    fn p38_node_port_addresses_admit_what_they_name_and_leave_the_other_family_alone() {
        let node = ["192.0.2.1", "2001:db8::1", "198.51.100.1"].map(|ip| ip.parse().unwrap());
        for (text, admitted, refused) in [
            ("", "192.0.2.1 127.0.0.1 ::1 2001:db8::9", ""),
            ("192.0.2.0/24", "192.0.2.1 192.0.2.9 2001:db8::9 ::1", "198.51.100.1 127.0.0.1"),
            ("2001:db8::/64", "2001:db8::9 198.51.100.1 127.0.0.1", "2001:db8:1::1 ::1"),
            ("primary", "192.0.2.1 2001:db8::1", "198.51.100.1 192.0.2.9 127.0.0.1 ::1 2001:db8::9"),
            ("127.0.0.0/8 ::1/128", "127.0.0.1 127.1.2.3 ::1", "192.0.2.1 2001:db8::1"),
            ("primary 127.0.0.0/8 ::1/128", "192.0.2.1 127.0.0.1 ::1", "198.51.100.1"),
            ("0.0.0.0/0 ::/0", "192.0.2.1 127.0.0.1 ::1 2001:db8::9", ""),
        ] {
            let rules = rules(text);
            for (words, expected) in [(admitted, true), (refused, false)] {
                for ip in words.split_whitespace() {
                    assert_eq!(rules.admit(ip.parse().unwrap(), &node), expected, "{text:?} {ip}");
                }
            }
        }
    }

    #[test]
    fn p38_all_is_told_from_less() {
        for (text, expected) in [
            ("", true),
            ("0.0.0.0/0", true),
            ("0.0.0.0/0 ::/0", true),
            ("192.0.2.0/24 0.0.0.0/0", true),
            ("192.0.2.0/24", false),
            ("0.0.0.0/0 2001:db8::/64", false),
            ("primary", false),
        ] {
            assert_eq!(rules(text).is_all(), expected, "{text:?}");
        }
    }
}
