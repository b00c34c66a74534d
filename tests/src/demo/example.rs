//! The cluster that the examples describe: Nodes, Pods, Services and EndpointSlices.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    cluster::{Cluster, Site},
    topology::{IpVersion, Topology, Wiring},
};

/// What was read.
#[derive(Debug, Default)]
pub(super) struct Example {
    /// Nodes and their addresses.
    nodes: Vec<(String, Vec<IpAddr>)>,
    /// Pods, the node of each, and their addresses.
    pods: Vec<(String, String, Vec<IpAddr>)>,
    /// Where each service is reached.
    pub(super) services: BTreeMap<String, Frontends>,
    /// What the agents are given: file name (without ending) and text.
    pub(super) manifests: BTreeMap<String, String>,
}

/// Where a service is reached.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frontends {
    v4: IpAddr,
    v6: IpAddr,
    port: u16,
    /// The port on every node.
    pub(super) node_port: u16,
}

impl Frontends {
    /// The ClusterIP.
    pub(super) fn cluster_ip(&self, version: IpVersion) -> SocketAddr {
        match version {
            IpVersion::V4 => (self.v4, self.port).into(),
            IpVersion::V6 => (self.v6, self.port).into(),
        }
    }
}

impl Example {
    /// Reads every `*.yaml` in `folder`.
    pub(super) fn read(folder: &Path) -> Result<Self> {
        let mut example = Self::default();
        let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
        let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
        paths.sort();
        for path in paths {
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let name = path.file_stem().and_then(|stem| stem.to_str()).context("a file name")?;
            example.add(name, text).with_context(|| path.display().to_string())?;
        }
        ensure!(!example.nodes.is_empty(), "{}: no Node in any *.yaml", folder.display());
        Ok(example)
    }

    /// What to build.
    pub(super) fn topology(&self, wiring: Wiring) -> Topology {
        let mut topology = Topology::new(wiring, &[]);
        for (node, _) in &self.nodes {
            let pods = self.pods.iter().filter(|(_, on, _)| on == node).map(|(pod, _, _)| pod.clone());
            topology.nodes.push((node.clone(), pods.collect()));
        }
        topology
    }

    /// Fails where the YAML gives a node or pod another address than the test bed: then its services would lead nowhere.
    pub(super) fn check_addresses(&self, cluster: &Cluster) -> Result<()> {
        let nodes = self.nodes.iter().map(|(name, addresses)| (cluster.host(name), addresses));
        let pods = self.pods.iter().map(|(name, _, addresses)| (cluster.pod(name), addresses));
        for (site, written) in nodes.chain(pods) {
            let built = IpVersion::BOTH.map(|version| Site::ip(site, version));
            ensure!(*written == built, "{}: the YAML says {written:?}, the test bed gives out {built:?}", site.name());
        }
        Ok(())
    }

    fn add(&mut self, name: &str, text: String) -> Result<()> {
        let mut for_agents = true;
        for document in serde_norway::Deserializer::from_str(&text) {
            let object = Value::deserialize(document)?;
            match object["kind"].as_str() {
                Some("Node") => self.nodes.push(node(&object)?),
                Some("Pod") => {
                    self.pods.push(pod(&object)?);
                    for_agents = false;
                }
                Some("Service") => {
                    let (name, frontends) = service(&object)?;
                    self.services.insert(name, frontends);
                }
                Some("EndpointSlice") => {}
                other => bail!("unexpected kind {other:?}"),
            }
        }
        if for_agents {
            self.manifests.insert(name.to_owned(), text);
        }
        Ok(())
    }
}

fn node(object: &Value) -> Result<(String, Vec<IpAddr>)> {
    let addresses = object["status"]["addresses"].as_array().context("status.addresses")?;
    let internal = addresses.iter().filter(|address| address["type"] == "InternalIP");
    Ok((text(&object["metadata"]["name"])?, internal.map(|address| ip(&address["address"])).collect::<Result<_>>()?))
}

fn pod(object: &Value) -> Result<(String, String, Vec<IpAddr>)> {
    let addresses = object["status"]["podIPs"].as_array().context("status.podIPs")?;
    let addresses = addresses.iter().map(|address| ip(&address["ip"])).collect::<Result<_>>()?;
    Ok((text(&object["metadata"]["name"])?, text(&object["spec"]["nodeName"])?, addresses))
}

fn service(object: &Value) -> Result<(String, Frontends)> {
    let spec = &object["spec"];
    let port = |field: &str| -> Result<u16> {
        let number = spec["ports"][0][field].as_u64().with_context(|| format!("spec.ports[0].{field}"))?;
        Ok(u16::try_from(number)?)
    };
    let frontends = Frontends {
        v4: ip(&spec["clusterIPs"][0])?,
        v6: ip(&spec["clusterIPs"][1])?,
        port: port("port")?,
        node_port: port("nodePort")?,
    };
    Ok((text(&object["metadata"]["name"])?, frontends))
}

fn text(value: &Value) -> Result<String> {
    Ok(value.as_str().context("a text is missing")?.to_owned())
}

fn ip(value: &Value) -> Result<IpAddr> {
    Ok(value.as_str().context("an address is missing")?.parse()?)
}
