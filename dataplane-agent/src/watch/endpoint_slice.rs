//! EndpointSlice objects.

use std::{net::IpAddr, time::SystemTime};

use k8s_openapi::api::discovery::v1 as discovery;

use super::{
    Converted, SKIP_LABELS,
    field::{self, Faults, Reason},
};
use crate::model::{
    ObjectName,
    endpoint::{Endpoint, EndpointPort, EndpointSlice, EndpointState, Triggered},
};

/// Names the Service that a slice belongs to.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// When the change happened that the slice tells of.
pub(super) const TRIGGERED: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// Reads an EndpointSlice: no value when it belongs to no Service, is of another address type, or is another proxy's.
#[must_use]
pub fn from_endpoint_slice(slice: &discovery::EndpointSlice) -> Converted<EndpointSlice> {
    let label = |name: &str| slice.metadata.labels.as_ref().and_then(|labels| labels.get(name));
    if SKIP_LABELS.iter().any(|name| label(name).is_some()) {
        return Converted::not_ours();
    }
    let mut faults = Faults::default();
    let value = read(slice, label(SERVICE_NAME), &mut faults);
    Converted { value, faults: faults.into_vec() }
}

fn read(slice: &discovery::EndpointSlice, service: Option<&String>, faults: &mut Faults) -> Option<EndpointSlice> {
    let Some(service) = service.filter(|name| !name.is_empty()) else {
        let reason = Reason::Missing("the slice is ignored since it belongs to no Service");
        faults.note(format_args!("metadata.labels[{SERVICE_NAME}]"), reason);
        return None;
    };
    let is_ipv6 = match slice.address_type.as_str() {
        "IPv4" => false,
        "IPv6" => true,
        other => {
            let expected = "IPv4 or IPv6";
            let reason = Reason::Unknown { value: other.to_owned(), expected, instead: "the slice is ignored" };
            faults.note("addressType", reason);
            return None;
        }
    };
    let namespace = slice.metadata.namespace.as_deref().unwrap_or("default");
    let ports = slice.ports.iter().flatten().enumerate().filter_map(|(i, port)| read_port(i, port, faults)).collect();
    let each = slice.endpoints.iter().flatten().enumerate();
    let mut endpoints: Vec<_> = each
        .filter_map(|(i, endpoint)| {
            let addr = read_address(i, endpoint, faults)?;
            if addr.is_ipv6() == is_ipv6 {
                return Some(read_endpoint(addr, endpoint));
            }
            let reason = Reason::WrongFamily { addr, address_type: slice.address_type.clone() };
            faults.note(format_args!("endpoints[{i}].addresses[0]"), reason);
            None
        })
        .collect();
    // Whoever writes slices need not keep the order; sorted, a mere reordering is no change.
    endpoints.sort_unstable();
    endpoints.dedup();
    endpoints.shrink_to_fit();
    Some(EndpointSlice {
        service: ObjectName::new(namespace, service.as_str()),
        ports,
        endpoints,
        triggered: triggered(slice),
    })
}

/// An annotation that cannot be read costs a measurement, nothing else.
fn triggered(slice: &discovery::EndpointSlice) -> Triggered {
    let annotation = slice.metadata.annotations.as_ref().and_then(|annotations| annotations.get(TRIGGERED));
    let time = annotation.and_then(|text| text.parse::<jiff::Timestamp>().ok());
    Triggered(time.map(SystemTime::from))
}

fn read_port(i: usize, port: &discovery::EndpointPort, faults: &mut Faults) -> Option<EndpointPort> {
    let protocol = field::protocol(port.protocol.as_deref());
    let protocol = faults.keep(format_args!("ports[{i}].protocol"), protocol)?;
    // Nil means "every port", which says nothing about where a Service's traffic should go.
    let number = port.port.ok_or(Reason::Missing("the port is ignored")).and_then(field::port);
    let port_number = faults.keep(format_args!("ports[{i}].port"), number)?;
    Some(EndpointPort { name: port.name.clone().unwrap_or_default(), protocol, port: port_number })
}

/// The endpoint's first address: the API leaves the meaning of further ones open, and kube-proxy uses none of them.
fn read_address(i: usize, endpoint: &discovery::Endpoint, faults: &mut Faults) -> Option<IpAddr> {
    let first = endpoint.addresses.first().ok_or(Reason::Missing("the endpoint is ignored"));
    faults.keep(format_args!("endpoints[{i}].addresses[0]"), first.and_then(|text| field::address(text)))
}

fn read_endpoint(addr: IpAddr, endpoint: &discovery::Endpoint) -> Endpoint {
    let hints = endpoint.hints.as_ref();
    let for_nodes = hints.and_then(|hints| hints.for_nodes.as_ref());
    let for_zones = hints.and_then(|hints| hints.for_zones.as_ref());
    Endpoint {
        addr,
        state: state(endpoint.conditions.as_ref()),
        node: endpoint.node_name.clone().filter(|name| !name.is_empty()),
        zone: endpoint.zone.clone().filter(|zone| !zone.is_empty()),
        for_nodes: for_nodes.into_iter().flatten().map(|node| node.name.clone()).collect(),
        for_zones: for_zones.into_iter().flatten().map(|zone| zone.name.clone()).collect(),
    }
}

/// Nil `ready` means ready, nil `serving` means the same as `ready`, nil `terminating` means not.
///
/// A terminating endpoint can be ready: that is what `publishNotReadyAddresses` asks for.
fn state(conditions: Option<&discovery::EndpointConditions>) -> EndpointState {
    let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
    let serving = conditions.and_then(|c| c.serving).unwrap_or(ready);
    let terminating = conditions.and_then(|c| c.terminating).unwrap_or(false);
    match (ready, serving && terminating) {
        (true, _) => EndpointState::Ready,
        (false, true) => EndpointState::Draining,
        (false, false) => EndpointState::Unready,
    }
}

#[cfg(test)]
mod tests;
