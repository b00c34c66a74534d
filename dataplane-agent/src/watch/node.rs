//! Node objects.

use k8s_openapi::api::core::v1 as core;

use super::{
    Converted,
    field::{self, Faults},
};
use crate::model::node::Node;

/// Names the zone that a node is in.
const ZONE: &str = "topology.kubernetes.io/zone";
/// Taint of a node that the cluster autoscaler is about to remove.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// Reads a Node.
#[must_use]
pub fn from_node(node: &core::Node) -> Converted<Node> {
    let mut faults = Faults::default();
    let spec = node.spec.as_ref();
    let pod_cidrs = match spec.and_then(|spec| spec.pod_cidrs.as_ref()).filter(|ranges| !ranges.is_empty()) {
        Some(ranges) => faults.keep_each("spec.podCIDRs", Some(ranges), field::range),
        None => {
            let range = spec.and_then(|spec| spec.pod_cidr.as_deref()).filter(|range| !range.is_empty());
            range.and_then(|range| faults.keep("spec.podCIDR", field::range(range))).into_iter().collect()
        }
    };
    let taints = spec.and_then(|spec| spec.taints.as_ref());
    let tainted = taints.into_iter().flatten().any(|taint| taint.key == TO_BE_DELETED);

    let addresses = node.status.as_ref().and_then(|status| status.addresses.as_ref());
    let addresses = addresses.into_iter().flatten().enumerate();
    let mut of_node: Vec<_> =
        addresses.filter(|(_, address)| matches!(address.type_.as_str(), "InternalIP" | "ExternalIP")).collect();
    // The first address of a family is the primary one, and an internal one comes before any external one.
    of_node.sort_by_key(|(_, address)| address.type_ != "InternalIP");
    let addresses = of_node
        .into_iter()
        .filter_map(|(i, address)| {
            faults.keep(format_args!("status.addresses[{i}].address"), field::address(&address.address))
        })
        .collect();

    let zone = node.metadata.labels.as_ref().and_then(|labels| labels.get(ZONE)).filter(|zone| !zone.is_empty());
    let value = Node {
        zone: zone.cloned(),
        addresses,
        pod_cidrs,
        to_be_deleted: tainted || node.metadata.deletion_timestamp.is_some(),
    };
    Converted { value: Some(value), faults: faults.into_vec() }
}

#[cfg(test)]
mod tests;
