//! The world as Kubernetes objects, and what the agent's own reading makes of them.

use std::{collections::BTreeSet, net::IpAddr};

use anyhow::{Context, Result, ensure};
use dataplane_agent::{
    model::{
        Change, ObjectName,
        node::LocalAddresses,
        settings::{DetectLocal, Settings},
    },
    watch::kind::{EndpointSlices, Kind as ObjectKind, Nodes, ServiceCidrs, Services},
};
use ipnetwork::IpNetwork;
use serde_json::{Value, json};

use super::{DEFAULT_AFFINITY, Endpoint, Kind, NODE, Service, Slice, World, source::Masquerade};
use crate::topology;

/// What has changed in a [`World`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Touched {
    /// A Service.
    Service(String),
    /// An EndpointSlice.
    Slice(String),
    /// A ServiceCIDR.
    ServiceCidr(String),
    /// This node's object.
    Node,
    /// This node's addresses.
    Addresses,
    /// What the operator decides.
    Settings,
}

impl World {
    /// Everything there is.
    pub fn everything(&self) -> BTreeSet<Touched> {
        let services = self.services.keys().cloned().map(Touched::Service);
        let slices = self.slices.keys().cloned().map(Touched::Slice);
        let ranges = self.service_cidrs.keys().cloned().map(Touched::ServiceCidr);
        services.chain(slices).chain(ranges).chain([Touched::Node, Touched::Addresses, Touched::Settings]).collect()
    }

    /// The change that the agent hears of. `snat` is what the interface `uplink` sends from.
    pub fn change(&self, touched: &Touched, uplink: u32, snat: &[IpAddr]) -> Result<Change> {
        Ok(match touched {
            Touched::Service(name) => {
                let object = self.services.get(name).map(|service| service.object(name));
                Services::change(ObjectName::new("default", name.as_str()), read::<Services>(object)?)
            }
            Touched::Slice(name) => {
                let object = self.slices.get(name).map(|slice| slice.object(name));
                EndpointSlices::change(ObjectName::new("default", name.as_str()), read::<EndpointSlices>(object)?)
            }
            Touched::ServiceCidr(name) => {
                let object = self.service_cidrs.get(name).map(|ranges| service_cidr(name, ranges));
                ServiceCidrs::change(name.clone(), read::<ServiceCidrs>(object)?)
            }
            Touched::Node => Nodes::change(NODE.to_owned(), read::<Nodes>(Some(self.node()))?),
            Touched::Settings => Change::Settings(self.settings()?),
            Touched::Addresses => Change::LocalAddresses(LocalAddresses {
                node_port: self.addresses.clone(),
                loopback: ["127.0.0.1", "::1"].iter().filter_map(|ip| ip.parse().ok()).collect(),
                snat: [(uplink, snat.to_vec())].into(),
                ..LocalAddresses::default()
            }),
        })
    }

    fn node(&self) -> Value {
        let labels = self.zone.map_or_else(|| json!({}), |zone| json!({ "topology.kubernetes.io/zone": zone }));
        let (v4, v6) = topology::pod_cidrs(0);
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": { "name": NODE, "labels": labels },
            "spec": { "podCIDRs": [v4, v6] },
        })
    }

    fn settings(&self) -> Result<Settings> {
        let local = match self.masquerade {
            Masquerade::Never | Masquerade::All => DetectLocal::Off,
            Masquerade::UnlessFromCluster => {
                let (v4, v6) = topology::POD_CIDRS;
                DetectLocal::Cidrs(vec![v4.parse()?, v6.parse()?])
            }
            Masquerade::UnlessFromNode => DetectLocal::NodeCidrs,
            Masquerade::UnlessFromInterface => DetectLocal::Interfaces,
        };
        Ok(Settings { masquerade_all: self.masquerade == Masquerade::All, local, ..Settings::default() })
    }
}

/// Reads an object as the agent does, which must find nothing wrong with it.
fn read<K: ObjectKind>(object: Option<Value>) -> Result<Option<K::Value>> {
    let Some(object) = object else { return Ok(None) };
    let object: K::Object = serde_json::from_value(object).context(K::NAME)?;
    let converted = K::convert(&object);
    ensure!(converted.faults.is_empty(), "{}: {:?}", K::NAME, converted.faults);
    Ok(converted.value)
}

fn service_cidr(name: &str, ranges: &[IpNetwork]) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": { "name": name },
        "spec": { "cidrs": ranges.iter().map(ToString::to_string).collect::<Vec<_>>() },
    })
}

impl Service {
    /// The Service object.
    fn object(&self, name: &str) -> Value {
        let has_node_ports = matches!(self.kind, Kind::NodePort | Kind::LoadBalancer);
        let ports = self.ports.iter().map(|port| {
            let mut object = json!({ "name": port.name, "protocol": port.protocol.name(), "port": port.port });
            if has_node_ports {
                object["nodePort"] = port.node_port.into();
            }
            object
        });
        let policy = |local: bool| if local { "Local" } else { "Cluster" };
        let (of_type, cluster_ips) = match self.kind {
            Kind::ClusterIp => ("ClusterIP", json!(self.cluster_ips)),
            Kind::NodePort => ("NodePort", json!(self.cluster_ips)),
            Kind::LoadBalancer => ("LoadBalancer", json!(self.cluster_ips)),
            Kind::Headless => ("ClusterIP", json!(["None"])),
            Kind::ExternalName => ("ExternalName", Value::Null),
        };
        let ingress = self.ingress.iter().map(|ingress| match ingress.ip {
            Some(ip) => json!({ "ip": ip, "ipMode": ingress.mode }),
            None => json!({ "hostname": "balancer.example" }),
        });
        let seconds = self.affinity.filter(|seconds| *seconds != DEFAULT_AFFINITY);
        let affinity = seconds.map(|seconds| json!({ "clientIP": { "timeoutSeconds": seconds } }));
        let labels = self.left_to_others.map_or_else(|| json!({}), |label| json!({ label: "other" }));
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": name, "namespace": "default", "labels": labels },
            "spec": {
                "type": of_type,
                "clusterIP": cluster_ips.get(0),
                "clusterIPs": cluster_ips,
                "externalIPs": self.external_ips,
                "ports": ports.collect::<Vec<_>>(),
                "sessionAffinity": if self.affinity.is_some() { "ClientIP" } else { "None" },
                "sessionAffinityConfig": affinity,
                "loadBalancerSourceRanges": self.source_ranges,
                "externalTrafficPolicy": policy(self.external_local),
                "internalTrafficPolicy": policy(self.internal_local),
            },
            "status": { "loadBalancer": { "ingress": ingress.collect::<Vec<_>>() } },
        })
    }
}

impl Slice {
    /// The EndpointSlice object.
    fn object(&self, name: &str) -> Value {
        let ports = self
            .ports
            .iter()
            .map(|(name, protocol, number)| json!({ "name": name, "protocol": protocol.name(), "port": number }));
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": name,
                "namespace": "default",
                "labels": { "kubernetes.io/service-name": self.service },
            },
            "addressType": self.version.to_string(),
            "ports": ports.collect::<Vec<_>>(),
            "endpoints": self.endpoints.iter().map(Endpoint::object).collect::<Vec<_>>(),
        })
    }
}

impl Endpoint {
    fn object(&self) -> Value {
        let named = |names: &[&str]| names.iter().map(|name| json!({ "name": name })).collect::<Vec<_>>();
        json!({
            "addresses": [self.ip],
            "conditions": { "ready": self.ready, "serving": self.serving, "terminating": self.terminating },
            "nodeName": self.node,
            "hints": { "forNodes": named(&self.for_nodes), "forZones": named(&self.for_zones) },
        })
    }
}
