//! A node whose agent is dead: programs attached, maps filled, nobody running.

use std::{
    collections::BTreeMap,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Pod,
    maps::{Array, HashMap, Map, MapData, PerCpuArray, PerCpuValues},
};
use dataplane_agent::{
    datapath::{Datapath, Options, Pins, attach::TcMode, cgroup::SocketLb, xdp::XdpMode},
    model::device::{Interface, Role},
};
use dataplane_common::{
    Addr, Backend, BePort, Direction, DropReason, Flow, FlowKey, FlowState, Frontend, FrontendKey, FrontendKind, Next,
    NodeConfig, Scope, ServiceName, Side, SlotRange, SocketKey, SocketOrigin, Ticks, Way, map::local_addr,
};
use dataplane_tests::{binaries, bpffs::Bpffs, cgroup::Cgroup, leftovers, netns::Netns};

type A4 = [u32; 1];
type A6 = [u32; 4];

/// A network namespace with a pod's interface and an uplink, a cgroup and a bpffs.
pub(crate) struct Node {
    netns: Netns,
    _pod: Netns,
    pub(crate) bpffs: Bpffs,
    pub(crate) cgroup: Cgroup,
    directory: PathBuf,
}

impl Drop for Node {
    fn drop(&mut self) {
        leftovers::remove_directory(&self.directory);
    }
}

impl Node {
    /// A node that no agent has ever run on.
    pub(crate) fn empty() -> Result<Self> {
        let prefix = leftovers::unique_prefix()?;
        let directory = Path::new(leftovers::DIRECTORY).join(&prefix);
        let node = Self {
            netns: Netns::create(&format!("{prefix}-node"))?,
            _pod: Netns::create(&format!("{prefix}-pod"))?,
            bpffs: Bpffs::mount(&directory.join("node/bpf"))?,
            cgroup: Cgroup::create(&prefix)?,
            directory,
        };
        node.netns.ip(&format!(
            "link add pod0 type veth peer name pod0 netns {prefix}-pod\nlink set pod0 up\n\
             link add eth0 type veth peer name outside\nlink set eth0 up"
        ))?;
        Ok(node)
    }

    /// A node with the datapath attached in the way of `tc` and without entries in the maps.
    pub(crate) fn attached(tc: TcMode) -> Result<Self> {
        let node = Self::empty()?;
        let options = Options {
            pins: Pins::new(node.bpffs.path()),
            cgroup_root: node.cgroup.path().to_owned(),
            tc,
            xdp: XdpMode::Auto,
            socket_lb: SocketLb::Host,
            entries: BTreeMap::from([("conntrack4", 1024), ("conntrack6", 1024), ("slots", 1024)]),
            config: NodeConfig::DEFAULT,
        };
        let mut datapath = node.netns.run(|| Datapath::open(options))??;
        datapath.load()?;
        let interface = |name: &str, role| -> Result<Interface> {
            let index = node.netns.run(|| nix::net::if_::if_nametoindex(name))??;
            Ok(Interface { index, name: name.to_owned(), role, hardware: false })
        };
        let interfaces = [interface("pod0", Role::Pod)?, interface("eth0", Role::Uplink)?];
        let applied = node.netns.run(|| datapath.attach(&interfaces))??;
        ensure!(applied.failed.is_empty(), "{:?}", applied.failed);
        Ok(node)
    }

    /// A node with a web service (two IPv4 backends, one of them draining, and one IPv6 backend), a DNS service without
    /// backends, three flows, a translated socket and dropped packets.
    pub(crate) fn filled() -> Result<Self> {
        let node = Self::attached(TcMode::Tcx)?;
        node.put_services()?;
        node.put_flows()?;
        Ok(node)
    }

    /// The path of `path` below the pins of this layout version.
    pub(crate) fn pin(&self, path: &str) -> PathBuf {
        Pins::new(self.bpffs.path()).layout().join(path)
    }

    /// Runs `sluice` with `arguments` in the node's network namespace.
    pub(crate) fn sluice(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = self.command(arguments)?;
        self.netns.run(|| command.output())?.context("cannot run sluice")
    }

    /// The same as an ordinary user.
    pub(crate) fn sluice_unprivileged(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = self.command(arguments)?;
        command.uid(65534).gid(65534);
        self.netns.run(|| command.output())?.context("cannot run sluice")
    }

    /// Runs `sluice` with an output that nobody reads.
    pub(crate) fn sluice_unread(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = self.command(arguments)?;
        let mut child = self.netns.run(|| command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn())??;
        drop(child.stdout.take());
        Ok(child.wait_with_output()?)
    }

    /// `ip` commands in the node's network namespace.
    pub(crate) fn ip(&self, script: &str) -> Result<()> {
        self.netns.ip(script)
    }

    /// Sets sysctls of the node's network namespace.
    pub(crate) fn sysctls(&self, settings: &[&str]) -> Result<()> {
        self.netns.sysctls(settings)
    }

    /// The output of a program in the node's network namespace.
    pub(crate) fn output(&self, program: &str, arguments: &[&str]) -> Result<String> {
        self.netns.output(program, arguments)
    }

    fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(binaries::sluice()?);
        command.arg("--bpffs").arg(self.bpffs.path()).args(arguments).env_remove("SLUICE_BPFFS").stdin(Stdio::null());
        Ok(command)
    }

    fn data(&self, name: &str) -> Result<MapData> {
        MapData::from_pin(self.pin("maps").join(name)).with_context(|| name.to_owned())
    }

    fn hash<K: Pod, V: Pod>(&self, name: &str) -> Result<HashMap<MapData, K, V>> {
        Ok(HashMap::try_from(Map::HashMap(self.data(name)?))?)
    }

    fn lru<K: Pod, V: Pod>(&self, name: &str) -> Result<HashMap<MapData, K, V>> {
        Ok(HashMap::try_from(Map::LruHashMap(self.data(name)?))?)
    }

    fn array<V: Pod>(&self, name: &str) -> Result<Array<MapData, V>> {
        Ok(Array::try_from(Map::Array(self.data(name)?))?)
    }

    fn put_services(&self) -> Result<()> {
        let mut names = self.hash::<u32, ServiceName>("service_names")?;
        for (id, name) in [(7, "default/web:http"), (9, "kube-system/dns")] {
            names.insert(id, ServiceName::new(name).context("a short name")?, 0)?;
        }
        let mut backends4 = self.array::<Backend<A4>>("backends4")?;
        backends4.set(1, backend("10.0.0.5:8080", Backend::<A4>::LOCAL)?, 0)?;
        backends4.set(2, backend("10.0.1.5:8080", Backend::<A4>::TERMINATING)?, 0)?;
        self.array::<Backend<A6>>("backends6")?.set(1, backend("[fd00::5]:8080", 0)?, 0)?;
        let mut slots = self.array::<u32>("slots")?;
        for (slot, id) in [(8, 1), (9, 2), (16, 1)] {
            slots.set(slot, id, 0)?;
        }
        let two = SlotRange { first: 8, count: 2 };
        let one = SlotRange { first: 8, count: 1 };
        let six = SlotRange { first: 16, count: 1 };
        let none = SlotRange::default();
        let mut frontends4 = self.hash::<FrontendKey<A4>, Frontend>("frontends4")?;
        let cluster_ip = Scope::Address;
        frontends4.insert(key("10.96.0.1:80", 6, cluster_ip)?, frontend(7, FrontendKind::ClusterIp, two, two), 0)?;
        frontends4.insert(
            key("0.0.0.0:30080", 6, Scope::NodePort)?,
            frontend(7, FrontendKind::NodePort, two, one),
            0,
        )?;
        frontends4.insert(
            key("10.96.0.10:53", 17, cluster_ip)?,
            frontend(9, FrontendKind::ClusterIp, none, none),
            0,
        )?;
        let mut frontends6 = self.hash::<FrontendKey<A6>, Frontend>("frontends6")?;
        frontends6.insert(key("[fd00:96::1]:80", 6, cluster_ip)?, frontend(7, FrontendKind::ClusterIp, six, six), 0)?;
        self.hash::<A4, u32>("local_addrs4")?.insert(addr::<A4>("192.168.0.1")?, local_addr::NODE_PORT, 0)?;
        self.hash::<u32, A6>("snat_addrs6")?.insert(2, addr::<A6>("fd00::1")?, 0)?;
        Ok(())
    }

    fn put_flows(&self) -> Result<()> {
        let mut flows = self.lru::<FlowKey<A4>, Flow<A4>>("conntrack4")?;
        let direct = ["10.0.0.9:40000", "10.96.0.1:80", "10.0.0.9:40000", "10.0.0.5:8080"];
        let node_port = ["172.16.0.9:5555", "192.168.0.1:30080", "192.168.0.1:12288", "10.0.1.5:8080"];
        for (addresses, id) in [(direct, 1), (node_port, 2)] {
            for (key, flow) in entries::<A4>(addresses, id)? {
                flows.insert(key, flow, 0)?;
            }
        }
        let mut flows = self.lru::<FlowKey<A6>, Flow<A6>>("conntrack6")?;
        for (key, flow) in
            entries::<A6>(["[fd00::9]:41000", "[fd00:96::1]:80", "[fd00::9]:41000", "[fd00::5]:8080"], 1)?
        {
            flows.insert(key, flow, 0)?;
        }
        let (cookie, port) = (SocketKey::<A4>::cookie_words(77), BePort::new(8080));
        let key = SocketKey { cookie, addr: addr::<A4>("10.0.0.5")?, port, protocol: 6, pad: 0 };
        let (addr, port) = (addr::<A4>("10.96.0.1")?, BePort::new(80));
        let origin = SocketOrigin { addr, port, pad: 0, backend: 1, generation: 1, service: 7 };
        self.lru::<SocketKey<A4>, SocketOrigin<A4>>("sockets4")?.insert(key, origin, 0)?;
        let mut drops = PerCpuArray::<_, u64>::try_from(Map::PerCpuArray(self.data("drops")?))?;
        let processors = drops.get(&0, 0)?.len();
        let counts = PerCpuValues::try_from(vec![5_u64; processors])?;
        drops.set(DropReason::NoEndpoints as u32, counts, 0)?;
        Ok(())
    }
}

fn addr<A: Addr>(text: &str) -> Result<A> {
    A::from_ip(text.parse()?).context("an address of the family")
}

fn end<A: Addr>(text: &str) -> Result<(A, BePort)> {
    let end: std::net::SocketAddr = text.parse()?;
    Ok((A::from_ip(end.ip()).context("an address of the family")?, BePort::new(end.port())))
}

fn key<A: Addr>(text: &str, protocol: u8, scope: Scope) -> Result<FrontendKey<A>> {
    let (addr, port) = end(text)?;
    Ok(FrontendKey { addr, port, protocol, scope: scope as u8 })
}

fn frontend(service: u32, kind: FrontendKind, inside: SlotRange, outside: SlotRange) -> Frontend {
    let flags = if inside == outside { 0 } else { Frontend::LOCAL_POLICY };
    Frontend { service, inside, outside, affinity_seconds: 0, kind: kind as u8, flags, pad: 0 }
}

fn backend<A: Addr>(text: &str, flags: u8) -> Result<Backend<A>> {
    let (addr, port) = end(text)?;
    Ok(Backend { addr, port, protocol: 6, flags, service: 7, generation: 1 })
}

/// Both entries of an established TCP flow: client, frontend, translated source, backend.
fn entries<A: Addr>(addresses: [&str; 4], backend: u32) -> Result<[(FlowKey<A>, Flow<A>); 2]> {
    let [client, frontend, source, server] = addresses.map(end::<A>);
    let tuple = |(src, src_port), (dst, dst_port)| FlowKey::new(src, dst, src_port, dst_port, 6);
    let key = tuple(client?, frontend?);
    let translated = tuple(source?, server?);
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)?;
    let deadline = Ticks::from_nanos(std::time::Duration::from(now).as_nanos() as u64).0 + Ticks::from_secs(600).0;
    let flow = |to: FlowKey<A>, direction: Direction, side: Side| Flow {
        way: Way::UNKNOWN,
        packets: 3,
        bytes: 180,
        src: to.src,
        dst: to.dst,
        src_port: to.src_port,
        dst_port: to.dst_port,
        backend,
        generation: 1,
        service: 7,
        deadline,
        direction: direction as u8,
        side: side as u8,
        next: Next::Stack as u8,
        state: FlowState::REPLIED,
    };
    Ok([
        (key, flow(translated, Direction::Original, Side::Ingress)),
        (translated.reversed(), flow(key.reversed(), Direction::Reply, Side::Egress)),
    ])
}
