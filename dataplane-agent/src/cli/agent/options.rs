//! The options of `sluice agent`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum, builder::PossibleValue};
use dataplane_common::{
    Addr as _, NodeConfig,
    map::{self, Role},
};
use glob::Pattern;

use super::kube_proxy::{Decisions, KubeProxyFlags};
use crate::{
    datapath::{self, Pins, attach::TcMode, cgroup::SocketLb, xdp::XdpMode},
    watch::{devices::classify::HostBypass, kube::Access},
};

/// Where cgroup v2 may be mounted: alone, or beside version 1.
const CGROUP_ROOTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// Options of `sluice agent`
#[derive(Args, Clone, Debug)]
pub struct AgentArgs {
    /// Name of this node's Node object [default: the host's name]
    #[arg(long, visible_alias = "hostname-override", env = "NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,
    /// Where Services, EndpointSlices and Nodes come from
    #[arg(long, value_enum, default_value_t)]
    pub source: SourceKind,
    /// Folder of YAML files, with --source file
    #[arg(long, value_name = "DIR", required_if_eq("source", "file"))]
    pub file_source: Option<PathBuf>,
    /// Kubeconfig file [default: the pod's service account]
    #[arg(long, env = "KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// URL of the API server, in place of the kubeconfig's or the pod's; must work without any Service
    #[arg(long, visible_alias = "master", value_name = "URL")]
    pub api_server: Option<String>,

    /// Cgroup v2 directory whose processes' sockets are translated [default: the root of the hierarchy]
    #[arg(long, value_name = "DIR")]
    pub cgroup_root: Option<PathBuf>,
    /// How programs are attached to interfaces
    #[arg(long, value_enum, default_value_t)]
    pub tc: TcMode,
    /// Whether requests from outside to backends on other nodes are forwarded by XDP on uplinks
    #[arg(long, value_enum, default_value_t)]
    pub xdp: XdpMode,
    /// Whose sockets are translated at connect time
    #[arg(long, value_enum, default_value_t)]
    pub socket_lb: SocketLb,
    /// Whether packets of pods go to their next hop without the host's stack, netfilter included
    #[arg(long, value_enum, default_value_t)]
    pub host_bypass: HostBypass,
    /// Who answers requests from outside that go on to a backend on another node, the same on every node
    #[arg(long, value_enum, value_name = "MODE", num_args = 0..=1, require_equals = true, default_value_t, default_missing_value = "option")]
    pub dsr: DirectReturn,
    /// Names of pods' interfaces, with * and ? [default: every veth whose other end is in another network namespace]
    #[arg(long, value_name = "GLOB", value_delimiter = ',')]
    pub pod_interfaces: Vec<Pattern>,
    /// Names of uplinks, with * and ? [default: what carries an address of the node, a default route or a tunnel's routes]
    #[arg(long, value_name = "GLOB", value_delimiter = ',')]
    pub uplinks: Vec<Pattern>,

    /// Number of entries of a map, may be repeated; `sluice map list` names them
    #[arg(long, value_name = "MAP=ENTRIES", value_delimiter = ',')]
    pub map_size: Vec<MapSize>,
    /// Source address of an IPv4 pod that reaches itself through a Service
    #[arg(long, value_name = "ADDRESS", default_value_t = default_hairpin4())]
    pub hairpin_ipv4: Ipv4Addr,
    /// Source address of an IPv6 pod that reaches itself through a Service
    #[arg(long, value_name = "ADDRESS", default_value_t = default_hairpin6())]
    pub hairpin_ipv6: Ipv6Addr,
    /// Source ports that SNAT takes: outside of NodePorts and of net.ipv4.ip_local_port_range
    #[arg(long, value_name = "FIRST+COUNT", default_value_t)]
    pub snat_ports: SnatPorts,

    /// File that the agent's state is written to, for `sluice status`
    #[arg(long, value_name = "FILE", default_value = "/run/sluice/status.json")]
    pub status_file: PathBuf,
    /// Form of the log on stderr [default: text]
    #[arg(long, visible_alias = "logging-format", value_enum)]
    pub log_format: Option<LogFormat>,
    /// What is logged: a level, or directives as `warn,dataplane_agent::sync=debug` [default: info]
    #[arg(long, env = "SLUICE_LOG", value_name = "FILTER")]
    pub log: Option<String>,
    /// What kube-proxy knows too.
    #[command(flatten)]
    pub kube_proxy: KubeProxyFlags,
}

impl ValueEnum for HostBypass {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Auto, Self::On, Self::Off]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(match self {
            Self::Auto => PossibleValue::new("auto").help(
                "As far as no rule of netfilter would miss them: between local pods without rules at PREROUTING or FORWARD, \
                 beyond the node only if there are none at POSTROUTING either",
            ),
            Self::On => PossibleValue::new("on").help("Always: netfilter does nothing to packets of services"),
            Self::Off => PossibleValue::new("off").help("Never"),
        })
    }
}

/// Whether backends' nodes answer clients outside directly (direct server return).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DirectReturn {
    /// No: the node that got the request, which the backend sees in place of the client
    #[default]
    Off,
    /// The backend's node, which an IPv4 option in the request tells of the frontend; the backend sees the client. TCP and UDP over IPv4;
    /// IPv6 and SCTP stay as with `off`
    Option,
}

/// Where objects come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum SourceKind {
    /// The Kubernetes API server.
    #[default]
    Kube,
    /// A folder of the same objects as YAML.
    File,
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// `MAP=ENTRIES`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapSize {
    map: &'static str,
    entries: u32,
}

impl FromStr for MapSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, entries) = text.split_once('=').ok_or("write it as MAP=ENTRIES, such as conntrack4=524288")?;
        // The size of counters is part of what they mean.
        let mut sized = map::ALL.iter().filter(|spec| spec.role != Role::Statistics).map(|spec| spec.name);
        let map = sized.clone().find(|known| *known == name);
        let map = map.ok_or_else(|| {
            let known = sized.by_ref().collect::<Vec<_>>().join(", ");
            format!("no map is called {name}; there are {known}")
        })?;
        match entries.parse() {
            Ok(entries) if entries > 0 => Ok(Self { map, entries }),
            _ => Err(format!("{entries} is no number of entries: give one above zero")),
        }
    }
}

/// `FIRST+COUNT`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnatPorts {
    first: u16,
    count: u16,
}

impl Default for SnatPorts {
    fn default() -> Self {
        let NodeConfig { snat_port_first, snat_port_count, .. } = NodeConfig::DEFAULT;
        Self { first: snat_port_first, count: snat_port_count }
    }
}

impl std::fmt::Display for SnatPorts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}+{}", self.first, self.count)
    }
}

impl FromStr for SnatPorts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (first, count) = text.split_once('+')?;
            Some(Self { first: first.parse().ok()?, count: count.parse().ok()? })
        };
        let ports = parse().ok_or("write it as FIRST+COUNT, such as 12288+16384")?;
        if !ports.count.is_power_of_two() {
            return Err(format!("{} ports: the number must be a power of two", ports.count));
        }
        if ports.first < 1024 || ports.first.checked_add(ports.count - 1).is_none() {
            return Err(format!("{ports}: the ports must lie between 1024 and 65535"));
        }
        Ok(ports)
    }
}

fn default_hairpin4() -> Ipv4Addr {
    NodeConfig::DEFAULT_HAIRPIN4[0].to_ne_bytes().into()
}

fn default_hairpin6() -> Ipv6Addr {
    match NodeConfig::DEFAULT_HAIRPIN6.to_ip() {
        std::net::IpAddr::V6(ip) => ip,
        std::net::IpAddr::V4(ip) => ip.to_ipv6_mapped(),
    }
}

impl AgentArgs {
    /// The node's name: given, or the host's in lower case, as the kubelet has it.
    pub fn node_name(&self) -> anyhow::Result<String> {
        if let Some(name) = self.node_name.as_ref().filter(|name| !name.is_empty()) {
            return Ok(name.clone());
        }
        let name = fs::read_to_string("/proc/sys/kernel/hostname").context("the host's name cannot be read")?;
        match name.trim().to_lowercase() {
            name if name.is_empty() => bail!("the host has no name: give the node's with --node-name"),
            name => Ok(name),
        }
    }

    /// How to reach the API server.
    pub fn kube(&self) -> Access {
        Access { kubeconfig: self.kubeconfig.clone(), server: self.api_server.clone() }
    }

    /// Options of the datapath that pins at `pins`.
    pub fn datapath(&self, pins: Pins, decisions: &Decisions) -> anyhow::Result<datapath::Options> {
        let mut entries = BTreeMap::new();
        let mut seen = BTreeSet::new();
        for size in &self.map_size {
            if !seen.insert(size.map) {
                bail!("--map-size: {} is given twice", size.map);
            }
            entries.insert(size.map, size.entries);
        }
        let mut config = NodeConfig::DEFAULT;
        config.hairpin4 = [u32::from_ne_bytes(self.hairpin_ipv4.octets())];
        config.hairpin6 = dataplane_common::Addr::from_ip(self.hairpin_ipv6.into()).unwrap_or(config.hairpin6);
        config.snat_port_first = self.snat_ports.first;
        config.snat_port_count = self.snat_ports.count;
        config.timeouts = decisions.timeouts;
        if decisions.settings.masquerade_all {
            config.flags |= NodeConfig::MASQUERADE_ALL;
        }
        if decisions.settings.local.masquerades_outside() {
            config.flags |= NodeConfig::MASQUERADE_OUTSIDE;
        }
        if self.host_bypass != HostBypass::Off {
            config.flags |= NodeConfig::HOST_BYPASS;
        }
        if self.dsr == DirectReturn::Option {
            config.flags |= NodeConfig::DIRECT_RETURN;
        }
        let cgroup_root = self.cgroup_root.clone().unwrap_or_else(|| {
            let found = CGROUP_ROOTS.into_iter().find(|root| Path::new(root).join("cgroup.controllers").exists());
            found.unwrap_or(CGROUP_ROOTS[0]).into()
        });
        let Self { tc, xdp, socket_lb, .. } = *self;
        Ok(datapath::Options { pins, cgroup_root, tc, xdp, socket_lb, entries, config })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        agent: AgentArgs,
    }

    fn datapath(args: AgentArgs) -> anyhow::Result<datapath::Options> {
        let (args, decisions) = super::super::kube_proxy::decide(args)?;
        args.datapath(Pins::new("/bpf"), &decisions)
    }

    fn parse(line: &str) -> Result<AgentArgs, String> {
        let words = ["agent"].into_iter().chain(line.split_whitespace());
        Line::try_parse_from(words).map(|line| line.agent).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_are_those_of_the_contract() {
        let options = datapath(parse("--node-name n").unwrap()).unwrap();
        assert_eq!(options.config, NodeConfig { flags: NodeConfig::HOST_BYPASS, ..NodeConfig::DEFAULT });
        assert!(options.entries.is_empty());
        assert_eq!((options.tc, options.socket_lb), (TcMode::Auto, SocketLb::Host));
    }

    #[test]
    fn options_reach_the_datapath() {
        let line = "--snat-ports 40000+4096 --hairpin-ipv4 169.254.9.9 --hairpin-ipv6 fd00::9 --tc clsact \
                    --map-size slots=1024,backends4=64 --cgroup-root /cg";
        let options = datapath(parse(line).unwrap()).unwrap();
        assert_eq!((options.config.snat_port_first, options.config.snat_port_count), (40_000, 4096));
        assert_eq!(options.config.hairpin4.to_ip().to_string(), "169.254.9.9");
        assert_eq!(options.config.hairpin6.to_ip().to_string(), "fd00::9");
        assert_eq!(options.entries, BTreeMap::from([("slots", 1024), ("backends4", 64)]));
        assert_eq!(options.cgroup_root, Path::new("/cg"));
    }

    #[test]
    fn direct_return_is_off_unless_asked_for() {
        for (line, expected) in [
            ("", 0),
            ("--dsr", NodeConfig::DIRECT_RETURN),
            ("--dsr=option", NodeConfig::DIRECT_RETURN),
            ("--dsr=off", 0),
            ("--dsr --xdp off", NodeConfig::DIRECT_RETURN),
        ] {
            let options = datapath(parse(&format!("--node-name n {line}")).unwrap()).unwrap();
            assert_eq!(options.config.flags & NodeConfig::DIRECT_RETURN, expected, "{line}");
        }
    }

    #[test]
    fn wrong_options_are_refused_with_what_is_right() {
        for (line, expected) in [
            ("--snat-ports 1000+16", "between 1024 and 65535"),
            ("--snat-ports 65000+1024", "between 1024 and 65535"),
            ("--snat-ports 12288+1000", "power of two"),
            ("--snat-ports 12288-16384", "FIRST+COUNT"),
            ("--map-size conntrack=1", "there are frontends4"),
            ("--map-size drops=1", "no map is called drops"),
            ("--map-size slots=0", "above zero"),
            ("--source file", "--file-source"),
            ("--uplinks [", "--uplinks"),
            ("--dsr=ipip", "option"),
        ] {
            let message = parse(line).expect_err(line);
            assert!(message.contains(expected), "{line}: {message}");
        }
        let message = datapath(parse("--map-size slots=1,slots=2").unwrap()).unwrap_err().to_string();
        assert!(message.contains("slots is given twice"), "{message}");
    }
}
