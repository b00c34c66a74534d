//! Whom a backend takes for its client.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::{World, rules::Client};
use crate::topology::{self, IpVersion};

/// What the operator decides about the requests to cluster IPs (P35): from whom they seem to come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Masquerade {
    /// From their senders.
    #[default]
    Never,
    /// From this node (`masqueradeAll`).
    All,
    /// From this node, unless a pod of the cluster sent them (`detectLocalMode: ClusterCIDR`).
    UnlessFromCluster,
    /// From this node, unless one of its own pods sent them (`detectLocalMode: NodeCIDR`).
    UnlessFromNode,
    /// From this node, unless they came from a pod's interface (`detectLocalMode: BridgeInterface`, `InterfaceNamePrefix`).
    UnlessFromInterface,
}

/// Whose address a backend sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The client's.
    Client,
    /// This node's.
    Node,
    /// One that stands for the pod that talks to itself, which would not accept its own (P36).
    Hairpin,
}

impl World {
    /// Whose address the backend `to` sees, which is on this node or not, of a request to a cluster IP or to another address.
    pub(super) fn source(&self, client: Client, is_cluster_ip: bool, (to, is_local): (IpAddr, bool)) -> Source {
        let is_outside = matches!(client, Client::Outside(_));
        if client == Client::Pod(to) {
            return Source::Hairpin;
        }
        // A process of the node answers its clients without being routed to.
        let is_node = to == topology::node(0).ip(IpVersion::of(to));
        // A backend elsewhere would answer past this node (P34).
        if (is_outside && !is_local) || (is_cluster_ip && !is_node && self.masquerades(client)) {
            return Source::Node;
        }
        Source::Client
    }

    fn masquerades(&self, client: Client) -> bool {
        let ip = match client {
            Client::Outside(ip) => ip,
            Client::Pod(_) => return self.masquerade == Masquerade::All,
            // It is the node's address already.
            Client::Host(_) => return false,
        };
        let is_in = |(v4, v6): (&str, &str)| {
            [v4, v6].iter().any(|range| range.parse::<IpNetwork>().is_ok_and(|range| range.contains(ip)))
        };
        match self.masquerade {
            Masquerade::Never => false,
            Masquerade::All | Masquerade::UnlessFromInterface => true,
            Masquerade::UnlessFromCluster => !is_in(topology::POD_CIDRS),
            Masquerade::UnlessFromNode => {
                let (v4, v6) = topology::pod_cidrs(0);
                !is_in((&v4, &v6))
            }
        }
    }
}
