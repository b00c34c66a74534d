//! What kube-proxy's flags and configuration file mean here; a flag beats the file, and the file beats the defaults.

mod config;
pub mod duration;
mod flags;

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, bail};
use dataplane_common::{
    clock::Ticks,
    config::{Timeout, Timeouts},
};
use glob::Pattern;
use ipnetwork::IpNetwork;

pub use self::flags::KubeProxyFlags;
use self::{config::Config, duration::GoDuration};
use super::options::{AgentArgs, LogFormat};
use crate::model::settings::{DetectLocal, NodePortAddresses, NodePortRange, Settings};

/// kube-proxy's `syncPeriod`; health fails after twice of it.
const SYNC_PERIOD: Duration = Duration::from_secs(30);

/// The shortest time between two applications of changes; bursts are gathered whatever it is.
const MIN_INTERVAL: Duration = Duration::ZERO;

/// Everything that kube-proxy's options decide, besides what [`AgentArgs`] holds itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decisions {
    /// What concerns translation.
    pub settings: Settings,
    /// How long flows are remembered.
    pub timeouts: Timeouts,
    /// Where `/healthz` and `/livez` are served.
    pub healthz: Option<SocketAddr>,
    /// Where `/metrics` and `/proxyMode` are served.
    pub metrics: Option<SocketAddr>,
    /// How old a change may become before health fails.
    pub health_timeout: Duration,
    /// The shortest time between two applications of changes.
    pub min_interval: Duration,
    /// What is to be said about options that mean nothing here.
    pub warnings: Vec<String>,
}

/// Reads the configuration file, if there is one: `args` completed with it, and everything else that was decided.
pub fn decide(mut args: AgentArgs) -> anyhow::Result<(AgentArgs, Decisions)> {
    let mut warnings = Vec::new();
    let mut file = Config::default();
    if let Some(path) = &args.kube_proxy.config {
        let (config, unused) = Config::read(path)?;
        if !unused.is_empty() {
            warnings.push(format!("{}: without a meaning here: {}", path.display(), unused.join(", ")));
        }
        file = config;
    }
    let ignored = args.kube_proxy.ignored.given();
    if !ignored.is_empty() {
        warnings.push(format!("flags of kube-proxy without a meaning here: --{}", ignored.join(", --")));
    }

    let filled = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    args.node_name = args.node_name.filter(|name| !name.is_empty()).or_else(|| filled(&file.hostname_override));
    let kubeconfig = file.client_connection.kubeconfig.clone().filter(|path| !path.as_os_str().is_empty());
    args.kubeconfig = args.kubeconfig.or(kubeconfig);
    let verbosity = args.kube_proxy.verbosity.or(file.logging.verbosity);
    args.log = args.log.or_else(|| verbosity.map(level).map(str::to_owned));
    let json = file.logging.format.as_deref() == Some("json");
    args.log_format = args.log_format.or(json.then_some(LogFormat::Json));

    let flags = &args.kube_proxy;
    let rules = file.rules();
    let local = detect_local(flags, &file, &mut warnings)?;
    if let (DetectLocal::Interfaces, true) = (&local, args.pod_interfaces.is_empty())
        && let Some(prefix) = interface_name_prefix(flags, &file)
    {
        args.pod_interfaces.push(Pattern::new(&format!("{}*", Pattern::escape(&prefix)))?);
    }
    let flags = &args.kube_proxy;
    let addresses = match &*flags.nodeport_addresses {
        [] => file.node_port_addresses.as_deref().unwrap_or_default(),
        given => given,
    };
    let settings = Settings {
        masquerade_all: flags.masquerade_all.or(rules.masquerade_all).unwrap_or_default(),
        local,
        node_port_addresses: node_port_addresses(addresses).context("--nodeport-addresses or nodePortAddresses")?,
    };
    let conntrack = &file.conntrack;
    let mut timeouts = Timeouts::DEFAULT;
    for (timeout, flag, field) in [
        (Timeout::TcpEstablished, flags.conntrack_tcp_timeout_established, conntrack.tcp_established_timeout),
        (Timeout::TcpClosing, flags.conntrack_tcp_timeout_close_wait, conntrack.tcp_close_wait_timeout),
        (Timeout::Datagram, flags.conntrack_udp_timeout, conntrack.udp_timeout),
        (Timeout::DatagramStream, flags.conntrack_udp_timeout_stream, conntrack.udp_stream_timeout),
    ] {
        if let Some(GoDuration(duration)) = positive(flag).or(positive(field)) {
            timeouts.0[timeout as usize] = Ticks::from_secs(duration.as_secs_f64().ceil() as u64).0;
        }
    }
    let healthz = flags.healthz_bind_address.clone().or_else(|| filled(&file.healthz_bind_address));
    let metrics = flags.metrics_bind_address.clone().or_else(|| filled(&file.metrics_bind_address));
    let sync_period = positive(flags.iptables_sync_period).or(positive(rules.sync_period));
    let min_interval = positive(flags.iptables_min_sync_period).or(positive(rules.min_sync_period));
    let decisions = Decisions {
        settings,
        timeouts,
        healthz: bind_address(healthz.as_deref().unwrap_or("0.0.0.0:10256"), 10256)
            .context("--healthz-bind-address")?,
        metrics: bind_address(metrics.as_deref().unwrap_or("127.0.0.1:10249"), 10249)
            .context("--metrics-bind-address")?,
        health_timeout: 2 * sync_period.map_or(SYNC_PERIOD, |period| period.0),
        min_interval: min_interval.map_or(MIN_INTERVAL, |interval| interval.0),
        warnings,
    };
    Ok((args, decisions))
}

/// Zero stands for the default in kube-proxy's file and flags.
fn positive(duration: Option<GoDuration>) -> Option<GoDuration> {
    duration.filter(|duration| !duration.0.is_zero())
}

/// klog's verbosity as a log filter.
fn level(verbosity: u32) -> &'static str {
    match verbosity {
        0..=3 => "info",
        4..=5 => "debug",
        _ => "trace",
    }
}

fn interface_name_prefix(flags: &KubeProxyFlags, file: &Config) -> Option<String> {
    let prefix = flags.pod_interface_name_prefix.clone().or_else(|| file.detect_local.interface_name_prefix.clone());
    prefix.filter(|prefix| !prefix.is_empty())
}

fn detect_local(flags: &KubeProxyFlags, file: &Config, warnings: &mut Vec<String>) -> anyhow::Result<DetectLocal> {
    let mode = flags.detect_local_mode.as_ref().or(file.detect_local_mode.as_ref());
    let cidrs = flags.cluster_cidr.as_ref().or(file.cluster_cidr.as_ref());
    Ok(match mode.map(String::as_str) {
        None | Some("" | "ClusterCIDR") => {
            let words = cidrs.iter().flat_map(|cidrs| cidrs.split(',')).map(str::trim).filter(|word| !word.is_empty());
            let cidrs = words.map(cidr).collect::<anyhow::Result<Vec<_>>>().context("--cluster-cidr or clusterCIDR")?;
            // Without a range there is nothing to detect, as with kube-proxy.
            if cidrs.is_empty() { DetectLocal::Off } else { DetectLocal::Cidrs(cidrs) }
        }
        Some("NodeCIDR") => DetectLocal::NodeCidrs,
        Some("InterfaceNamePrefix") => {
            if interface_name_prefix(flags, file).is_none() {
                warnings.push(
                    "mode InterfaceNamePrefix without a prefix: pods' interfaces are found by what they are".into(),
                );
            }
            DetectLocal::Interfaces
        }
        // The ports of the bridge are pods' interfaces, which are found by what they are.
        Some("BridgeInterface") => DetectLocal::Interfaces,
        Some(other) => bail!(
            "--detect-local-mode or detectLocalMode: `{other}` is not ClusterCIDR, NodeCIDR, BridgeInterface or \
             InterfaceNamePrefix"
        ),
    })
}

fn cidr(text: &str) -> anyhow::Result<IpNetwork> {
    let range: Option<IpNetwork> = text.contains('/').then(|| text.parse().ok()).flatten();
    let range = range.and_then(|range| IpNetwork::new(range.network(), range.prefix()).ok());
    range.with_context(|| format!("`{text}` is not a range of addresses such as 10.0.0.0/8"))
}

fn node_port_addresses(words: &[String]) -> anyhow::Result<NodePortAddresses> {
    let mut ranges = Vec::new();
    for word in words.iter().map(|word| word.trim()).filter(|word| !word.is_empty()) {
        let named = match word {
            "primary" => {
                ranges.push(NodePortRange::Primary);
                continue;
            }
            "localhost" => ["127.0.0.0/8", "::1/128"].as_slice(),
            "all" => &["0.0.0.0/0", "::/0"],
            range => &[range],
        };
        for range in named {
            ranges.push(NodePortRange::Cidr(cidr(range)?));
        }
    }
    Ok(NodePortAddresses(ranges))
}

/// An address to listen on: `IP:PORT`, or an IP alone with the default port; empty means not at all.
fn bind_address(text: &str, port: u16) -> anyhow::Result<Option<SocketAddr>> {
    if text.is_empty() {
        return Ok(None);
    }
    let alone = || text.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, port));
    let address = text.parse().ok().or_else(alone);
    address.map(Some).with_context(|| format!("`{text}` is not an address such as 0.0.0.0:{port}"))
}

#[cfg(test)]
mod tests;
