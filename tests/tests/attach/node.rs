//! A node to attach programs in.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use dataplane_agent::{
    datapath::{
        self, Datapath, DatapathError, Options, Pins, Report,
        attach::{Applied, TcMode},
        cgroup::SocketLb,
        link::{Link, LinkState},
        xdp::XdpMode,
    },
    model::device::{Interface, Role},
};
use dataplane_common::NodeConfig;
use dataplane_tests::{bpffs::Bpffs, cgroup::Cgroup, leftovers, netns::Netns};

/// A network namespace with a pod's interface, an uplink, a cgroup and a bpffs.
pub(crate) struct Node {
    pub(crate) prefix: String,
    pub(crate) netns: Netns,
    _pod: Netns,
    pub(crate) bpffs: Bpffs,
    pub(crate) cgroup: Cgroup,
    pub(crate) directory: PathBuf,
}

impl Node {
    pub(crate) fn create() -> Result<Self> {
        let prefix = leftovers::unique_prefix()?;
        let directory = Path::new(leftovers::DIRECTORY).join(&prefix);
        let node = Self {
            netns: Netns::create(&format!("{prefix}-node"))?,
            _pod: Netns::create(&format!("{prefix}-pod"))?,
            bpffs: Bpffs::mount(&directory.join("node/bpf"))?,
            cgroup: Cgroup::create(&prefix)?,
            directory,
            prefix,
        };
        node.add_pod_interface("pod0")?;
        node.netns.ip("link add eth0.1 type veth peer name outside\nlink set eth0.1 up")?;
        Ok(node)
    }

    pub(crate) fn add_pod_interface(&self, name: &str) -> Result<()> {
        self.netns
            .ip(&format!("link add {name} type veth peer name {name} netns {}-pod\nlink set {name} up", self.prefix))
    }

    pub(crate) fn pins(&self) -> Pins {
        Pins::new(self.bpffs.path())
    }

    pub(crate) fn options(&self, tc: TcMode) -> Options {
        Options {
            pins: self.pins(),
            cgroup_root: self.cgroup.path().to_owned(),
            tc,
            xdp: XdpMode::Auto,
            socket_lb: SocketLb::Host,
            entries: BTreeMap::from([("conntrack4", 1024), ("conntrack6", 1024), ("slots", 1024)]),
            config: NodeConfig::DEFAULT,
        }
    }

    pub(crate) fn open(&self, tc: TcMode) -> Result<Datapath> {
        self.open_with(self.options(tc)).map_err(Into::into)
    }

    pub(crate) fn open_with(&self, options: Options) -> Result<Datapath, DatapathError> {
        let entered = self.netns.run(|| {
            let mut datapath = Datapath::open(options)?;
            datapath.load()?;
            Ok(datapath)
        });
        let failed = |error| DatapathError::Io { step: "entering the namespace", source: std::io::Error::other(error) };
        entered.map_err(failed)?
    }

    pub(crate) fn interface(&self, name: &str, role: Role) -> Result<Interface> {
        let index = self.netns.run(|| nix::net::if_::if_nametoindex(name))??;
        Ok(Interface { index, name: name.to_owned(), role, hardware: false })
    }

    pub(crate) fn interfaces(&self) -> Result<Vec<Interface>> {
        Ok(vec![self.interface("pod0", Role::Pod)?, self.interface("eth0.1", Role::Uplink)?])
    }

    pub(crate) fn attach(&self, datapath: &mut Datapath, interfaces: &[Interface]) -> Result<Applied> {
        let applied = self.netns.run(|| datapath.attach(interfaces))??;
        ensure!(applied.failed.is_empty(), "{:?}", applied.failed);
        Ok(applied)
    }

    /// Opens the datapath and attaches to the usual interfaces.
    pub(crate) fn start(&self, tc: TcMode) -> Result<Datapath> {
        let mut datapath = self.open(tc)?;
        self.attach(&mut datapath, &self.interfaces()?)?;
        Ok(datapath)
    }

    pub(crate) fn cleanup(&self) -> Result<Report> {
        Ok(self.netns.run(|| datapath::cleanup(&self.pins()))??)
    }

    /// Every pinned link by name.
    pub(crate) fn links(&self) -> Result<BTreeMap<String, LinkState>> {
        let mut links = BTreeMap::new();
        for entry in fs::read_dir(self.pins().links())? {
            let path = entry?.path();
            let name = path.file_name().context("a file")?.to_string_lossy().into_owned();
            links.insert(name, Link::open(&path)?.state()?);
        }
        Ok(links)
    }

    /// Filters of an interface, as `tc` shows them, without their statistics.
    pub(crate) fn filters(&self, interface: &str) -> Result<Vec<String>> {
        let mut filters = Vec::new();
        for direction in ["ingress", "egress"] {
            let text = self.netns.output("tc", &["filter", "show", "dev", interface, direction])?;
            filters.extend(
                text.lines()
                    .filter(|line| line.contains(" handle ") || line.contains(" fh "))
                    .map(|line| format!("{direction} {line}")),
            );
        }
        Ok(filters)
    }

    /// What is left on the bpffs, apart from what every bpffs has.
    pub(crate) fn left(&self) -> Result<BTreeSet<String>> {
        let names = fs::read_dir(self.bpffs.path())?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        let names = names.collect::<Result<BTreeSet<_>>>()?;
        Ok(names.into_iter().filter(|name| !name.ends_with(".debug")).collect())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        leftovers::remove_directory(&self.directory);
    }
}
