//! Service objects.

use std::{net::IpAddr, num::NonZeroU16, time::Duration};

use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1 as core;

use super::{
    Converted, SKIP_LABELS,
    field::{self, Faults, Reason},
};
use crate::model::service::{Service, ServicePort, TrafficPolicy};

/// The API server's default of `spec.sessionAffinityConfig.clientIP.timeoutSeconds`.
const DEFAULT_AFFINITY_SECONDS: u32 = 10_800;
/// The longest affinity that the API server accepts.
const MAX_AFFINITY_SECONDS: u32 = 86_400;

/// Reads a Service: no value for a headless or ExternalName one, and for one that a label leaves to another proxy.
#[must_use]
pub fn from_service(service: &core::Service) -> Converted<Service> {
    let labels = service.metadata.labels.as_ref();
    if labels.is_some_and(|labels| SKIP_LABELS.iter().any(|label| labels.contains_key(*label))) {
        return Converted::not_ours();
    }
    let mut faults = Faults::default();
    let Some(spec) = &service.spec else {
        faults.note("spec", Reason::Missing("the Service is ignored"));
        return Converted { value: None, faults: faults.into_vec() };
    };
    if spec.type_.as_deref() == Some("ExternalName") || spec.cluster_ip.as_deref() == Some("None") {
        return Converted::not_ours();
    }
    let value = read_spec(service, spec, &mut faults);
    Converted { value, faults: faults.into_vec() }
}

fn read_spec(service: &core::Service, spec: &core::ServiceSpec, faults: &mut Faults) -> Option<Service> {
    let first = spec.cluster_ip.as_ref().filter(|ip| !ip.is_empty());
    let cluster_ips = match (&spec.cluster_ips, first) {
        (Some(ips), _) if ips.first().is_some_and(|ip| ip == "None") => return None,
        (Some(ips), _) if !ips.is_empty() => faults.keep_each("spec.clusterIPs", Some(ips), field::address),
        (_, Some(ip)) => faults.keep("spec.clusterIP", field::address(ip)).into_iter().collect(),
        (_, None) => {
            faults.note("spec.clusterIP", Reason::Missing("the Service is ignored until it has one"));
            return None;
        }
    };
    let external_policy = policy("spec.externalTrafficPolicy", spec.external_traffic_policy.as_deref(), faults);
    Some(Service {
        cluster_ips,
        external_ips: faults.keep_each("spec.externalIPs", spec.external_ips.as_ref(), field::address),
        load_balancer_ips: load_balancer_ips(service, faults),
        source_ranges: source_ranges(spec, faults),
        affinity: affinity(spec, faults),
        external_policy,
        internal_policy: policy("spec.internalTrafficPolicy", spec.internal_traffic_policy.as_deref(), faults),
        health_check_node_port: health_check_node_port(spec, external_policy, faults),
        ports: ports(spec, faults),
    })
}

/// Addresses that a load balancer hands to the node unchanged.
///
/// With ipMode `Proxy` the balancer means to see the traffic itself, and a hostname resolves to who knows what: neither is
/// short-circuited.
fn load_balancer_ips(service: &core::Service, faults: &mut Faults) -> Vec<IpAddr> {
    let ingress = service.status.as_ref().and_then(|status| status.load_balancer.as_ref()?.ingress.as_ref());
    let mut addrs = Vec::new();
    for (i, ingress) in ingress.into_iter().flatten().enumerate() {
        let Some(ip) = ingress.ip.as_ref().filter(|ip| !ip.is_empty()) else { continue };
        match ingress.ip_mode.as_deref() {
            None | Some("VIP") => {
                let field = format_args!("status.loadBalancer.ingress[{i}].ip");
                addrs.extend(faults.keep(field, field::address(ip)));
            }
            Some("Proxy") => {}
            Some(other) => faults.note(
                format_args!("status.loadBalancer.ingress[{i}].ipMode"),
                Reason::Unknown { value: other.to_owned(), expected: "VIP or Proxy", instead: "read as Proxy" },
            ),
        }
    }
    addrs
}

/// Who may use load-balancer IPs.
fn source_ranges(spec: &core::ServiceSpec, faults: &mut Faults) -> Vec<IpNetwork> {
    let given = spec.load_balancer_source_ranges.as_ref();
    let mut ranges = faults.keep_each("spec.loadBalancerSourceRanges", given, field::range);
    if given.is_some_and(|given| given.len() > ranges.len()) {
        // A family without ranges admits everyone, which is not what an owner asked for whose broken range was of that family; nobody's
        // source is the unspecified address.
        for nobody in [IpAddr::from([0u8; 4]), IpAddr::from([0u8; 16])].map(IpNetwork::from) {
            if ranges.iter().all(|range| range.is_ipv4() != nobody.is_ipv4()) {
                ranges.push(nobody);
            }
        }
    }
    ranges
}

fn affinity(spec: &core::ServiceSpec, faults: &mut Faults) -> Option<Duration> {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => return None,
        Some("ClientIP") => {}
        Some(other) => {
            let reason =
                Reason::Unknown { value: other.to_owned(), expected: "ClientIP or None", instead: "read as None" };
            faults.note("spec.sessionAffinity", reason);
            return None;
        }
    }
    let given = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref()?.timeout_seconds);
    let seconds = given.map_or(Some(DEFAULT_AFFINITY_SECONDS), |seconds| {
        u32::try_from(seconds).ok().filter(|seconds| (1..=MAX_AFFINITY_SECONDS).contains(seconds))
    });
    let seconds = seconds.unwrap_or_else(|| {
        let reason = Reason::Unknown {
            value: given.unwrap_or_default().to_string(),
            expected: "1 to 86400 seconds",
            instead: "read as 10800",
        };
        faults.note("spec.sessionAffinityConfig.clientIP.timeoutSeconds", reason);
        DEFAULT_AFFINITY_SECONDS
    });
    Some(Duration::from_secs(seconds.into()))
}

fn policy(field: &str, value: Option<&str>, faults: &mut Faults) -> TrafficPolicy {
    match value {
        None | Some("" | "Cluster") => TrafficPolicy::Cluster,
        Some("Local") => TrafficPolicy::Local,
        Some(other) => {
            let reason =
                Reason::Unknown { value: other.to_owned(), expected: "Cluster or Local", instead: "read as Cluster" };
            faults.note(field, reason);
            TrafficPolicy::Cluster
        }
    }
}

/// Only a load balancer that must find the nodes with endpoints asks for health.
fn health_check_node_port(
    spec: &core::ServiceSpec,
    external_policy: TrafficPolicy,
    faults: &mut Faults,
) -> Option<NonZeroU16> {
    let asked = spec.type_.as_deref() == Some("LoadBalancer") && external_policy == TrafficPolicy::Local;
    let number = spec.health_check_node_port.filter(|number| asked && *number != 0)?;
    faults.keep("spec.healthCheckNodePort", field::port(number))
}

fn ports(spec: &core::ServiceSpec, faults: &mut Faults) -> Vec<ServicePort> {
    let mut ports: Vec<(usize, ServicePort)> = Vec::new();
    for (i, port) in spec.ports.iter().flatten().enumerate() {
        let Some(protocol) =
            faults.keep(format_args!("spec.ports[{i}].protocol"), field::protocol(port.protocol.as_deref()))
        else {
            continue;
        };
        let Some(number) = faults.keep(format_args!("spec.ports[{i}].port"), field::port(port.port)) else { continue };
        let node_port = port.node_port.filter(|number| *number != 0);
        let node_port = node_port.and_then(|n| faults.keep(format_args!("spec.ports[{i}].nodePort"), field::port(n)));
        let port = ServicePort { name: port.name.clone().unwrap_or_default(), protocol, port: number, node_port };

        let same = |what: &'static str, same: &dyn Fn(&ServicePort) -> bool| {
            let first = ports.iter().find(|(_, other)| same(other))?;
            Some(Reason::Duplicate { what, first: format!("spec.ports[{}]", first.0) })
        };
        let clash = same("name", &|other| other.name == port.name)
            .or_else(|| same("port and protocol", &|other| (other.port, other.protocol) == (port.port, port.protocol)));
        match clash {
            Some(reason) => faults.note(format_args!("spec.ports[{i}]"), reason),
            None => ports.push((i, port)),
        }
    }
    ports.into_iter().map(|(_, port)| port).collect()
}

#[cfg(test)]
mod tests;
