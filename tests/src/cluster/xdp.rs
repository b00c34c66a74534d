//! Links that carry XDP: what veth pairs need that hardware has by itself.

use std::{collections::BTreeMap, fs, os::fd::OwnedFd, path::PathBuf, sync::Arc};

use anyhow::{Context, Result, ensure};
use dataplane_agent::datapath::{Pins, hook::Hook, xdp::Running};

use super::{Cluster, Node, Site};
use crate::{
    costs::empty::Empty,
    offload::{self, Feature},
};

/// Uplinks that carry XDP for as long as this or a clone of it lives.
#[derive(Clone, Debug)]
pub struct Carrying {
    /// By the fabric's port.
    links: Arc<BTreeMap<String, OwnedFd>>,
}

impl Carrying {
    /// The link of a program that does nothing, at the fabric's port `name`.
    pub fn link(&self, name: &str) -> Result<&OwnedFd> {
        self.links.get(name).with_context(|| format!("the fabric has no port {name}"))
    }
}

impl Cluster {
    /// Makes the uplinks of all nodes fit for XDP.
    ///
    /// A veth takes at once what its other end sends back by XDP only where it runs XDP itself. And senders compute their
    /// checksums themselves: no device here completes them on the way, as one would before the wire.
    pub fn carry_xdp(&self) -> Result<Carrying> {
        if let Some(carrying) = &self.carrying {
            return Ok(carrying.clone());
        }
        let empty = Empty::load_xdp()?;
        let mut links = BTreeMap::new();
        for node in &self.nodes {
            let port = format!("up-{}", node.name());
            let link = self.fabric.run(|| empty.attach_xdp(nix::net::if_::if_nametoindex(&*port)?))??;
            links.insert(port, link);
        }
        let mut sites = self.nodes.iter().flat_map(|node| node.pods.iter().chain([&node.host])).chain([&self.external]);
        sites.try_for_each(Site::compute_checksums)?;
        Ok(Carrying { links: Arc::new(links) })
    }
}

impl Site {
    /// Has the stack complete the checksums of what it sends.
    pub(super) fn compute_checksums(&self) -> Result<()> {
        offload::set(self.netns(), "eth0", Feature::TransmitChecksum, false)
    }
}

impl Node {
    /// The pin of the XDP link of the node's uplink.
    pub fn xdp_pin(&self, running: Running) -> Result<PathBuf> {
        Ok(Pins::new(self.bpffs.path()).xdp_link(running, self.uplink()?))
    }

    /// Packets that XDP has sent back out of the node's uplink.
    pub fn sent_by_xdp(&self) -> Result<u64> {
        offload::count(self.host.netns(), "eth0", "_xdp_tx")
    }

    /// Detaches the tc program at the ingress of the node's uplink; there must be no agent that would attach it again.
    pub fn detach_from_uplink(&self) -> Result<()> {
        ensure!(self.agent.is_none(), "the agent runs");
        let pin = Pins::new(self.bpffs.path()).interface_link(Hook::FromUplink, self.uplink()?);
        fs::remove_file(&pin).with_context(|| format!("cannot remove {}", pin.display()))
    }

    /// The index of the node's uplink.
    pub fn uplink(&self) -> Result<u32> {
        Ok(self.host.netns().run(|| nix::net::if_::if_nametoindex("eth0"))??)
    }
}
