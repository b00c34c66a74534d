//! Services and their ports.

use std::{fmt, net::IpAddr, num::NonZeroU16, str::FromStr, time::Duration};

use dataplane_common::Protocol;
use ipnetwork::IpNetwork;

use super::ObjectName;

/// The name of a service port, the unit that frontends, backends and affinity belong to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServicePortName {
    /// The Service.
    pub service: ObjectName,
    /// The port's name within it; empty when it has none.
    pub port: String,
}

impl fmt::Display for ServicePortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.service)?;
        if self.port.is_empty() { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}

impl FromStr for ServicePortName {
    type Err = NotAServicePortName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (namespace, rest) = text.split_once('/').ok_or(NotAServicePortName)?;
        let (name, port) = rest.split_once(':').unwrap_or((rest, ""));
        if namespace.is_empty() || name.is_empty() {
            return Err(NotAServicePortName);
        }
        Ok(Self { service: ObjectName::new(namespace, name), port: port.to_owned() })
    }
}

/// A text is not of the form `namespace/name` or `namespace/name:port`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not of the form namespace/name:port")]
pub struct NotAServicePortName;

/// A Service that this node translates.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Service {
    /// `spec.clusterIPs`, both families.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs`, both families.
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress[].ip` whose ipMode is VIP or absent.
    pub load_balancer_ips: Vec<IpAddr>,
    /// `spec.loadBalancerSourceRanges`, trimmed; empty means everyone.
    pub source_ranges: Vec<IpNetwork>,
    /// `ClientIP` affinity and its timeout.
    pub affinity: Option<Duration>,
    /// `spec.externalTrafficPolicy`
    pub external_policy: TrafficPolicy,
    /// `spec.internalTrafficPolicy`
    pub internal_policy: TrafficPolicy,
    /// `spec.healthCheckNodePort`
    pub health_check_node_port: Option<NonZeroU16>,
    /// `spec.ports`, in the order given; names are unique within a Service.
    pub ports: Vec<ServicePort>,
}

/// One port of a [`Service`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServicePort {
    /// Empty when the Service has a single port without a name.
    pub name: String,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The port on cluster, external and load-balancer IPs.
    pub port: NonZeroU16,
    /// The port on every node.
    pub node_port: Option<NonZeroU16>,
}

/// Which endpoints a kind of traffic may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TrafficPolicy {
    /// Any.
    #[default]
    Cluster,
    /// Those on the node that the traffic reached.
    Local,
}
