//! kube-proxy's command line: the flags with a meaning here, and those that are taken and ignored.

use std::path::PathBuf;

use clap::{ArgAction, Args};

use super::duration::GoDuration;

/// Flags of kube-proxy that sluice knows by the same name.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Options of kube-proxy")]
pub struct KubeProxyFlags {
    /// kube-proxy's configuration file (KubeProxyConfiguration v1alpha1); a flag beats it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Ranges of pods' addresses: one, or one per IP family
    #[arg(long, value_name = "CIDRS")]
    pub cluster_cidr: Option<String>,
    /// How requests of local pods are told from others: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix
    #[arg(long, value_name = "MODE")]
    pub detect_local_mode: Option<String>,
    /// Pods' interfaces begin with this, with mode InterfaceNamePrefix
    #[arg(long, value_name = "PREFIX")]
    pub pod_interface_name_prefix: Option<String>,
    /// The bridge of the pods, with mode BridgeInterface
    #[arg(long, value_name = "NAME")]
    pub pod_bridge_interface: Option<String>,
    /// Masquerade every request to a cluster IP
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub masquerade_all: Option<bool>,
    /// The node's addresses that take NodePort traffic: ranges, `primary`, `localhost` or `all` [default: all]
    #[arg(long, value_name = "CIDRS", value_delimiter = ',')]
    pub nodeport_addresses: Vec<String>,
    /// Where /healthz and /livez are served; empty for nowhere [default: 0.0.0.0:10256]
    #[arg(long, value_name = "IP:PORT")]
    pub healthz_bind_address: Option<String>,
    /// Where /metrics and /proxyMode are served; empty for nowhere [default: 127.0.0.1:10249]
    #[arg(long, value_name = "IP:PORT")]
    pub metrics_bind_address: Option<String>,
    /// How long an idle TCP connection is remembered [default: 24h]
    #[arg(long, value_name = "DURATION")]
    pub conntrack_tcp_timeout_established: Option<GoDuration>,
    /// How long a TCP connection is remembered after one side has closed it [default: 1h]
    #[arg(long, value_name = "DURATION")]
    pub conntrack_tcp_timeout_close_wait: Option<GoDuration>,
    /// How long a UDP flow without an answer is remembered [default: 30s]
    #[arg(long, value_name = "DURATION")]
    pub conntrack_udp_timeout: Option<GoDuration>,
    /// How long a UDP flow with answers is remembered [default: 2m]
    #[arg(long, value_name = "DURATION")]
    pub conntrack_udp_timeout_stream: Option<GoDuration>,
    /// The shortest time between two applications of changes [default: 10ms]
    #[arg(long, aliases = ["ipvs-min-sync-period"], value_name = "DURATION")]
    pub iptables_min_sync_period: Option<GoDuration>,
    /// Half of the time after which a change that is not applied makes /healthz fail [default: 30s]
    #[arg(long, aliases = ["ipvs-sync-period"], value_name = "DURATION")]
    pub iptables_sync_period: Option<GoDuration>,
    /// Verbosity of the log, from 0; above 3 debug, above 5 everything
    #[arg(short, long = "v", value_name = "LEVEL")]
    pub verbosity: Option<u32>,
    /// Remove what kube-proxy left behind (chains, tables, IP sets, kube-ipvs0) once sluice has taken over
    #[arg(long)]
    pub cleanup_kube_proxy: bool,
    #[command(flatten)]
    pub(super) ignored: IgnoredFlags,
}

macro_rules! ignored_flags {
    ($($field:ident = $name:literal,)*) => {
        /// Flags of kube-proxy that mean nothing here; taken, so that a command line can be kept, and named in a warning.
        #[derive(Args, Clone, Debug, Default)]
        pub(super) struct IgnoredFlags {
            $(
                #[arg(long = $name, hide = true, action = ArgAction::Append, num_args = 0..=1, allow_negative_numbers = true, default_missing_value = "true")]
                $field: Vec<String>,
            )*
        }

        impl IgnoredFlags {
            /// The flags that were given.
            pub(super) fn given(&self) -> Vec<&'static str> {
                let flags = [$(($name, !self.$field.is_empty())),*];
                flags.into_iter().filter(|(_, given)| *given).map(|(name, _)| name).collect()
            }
        }
    };
}

ignored_flags! {
    bind_address = "bind-address",
    bind_address_hard_fail = "bind-address-hard-fail",
    config_sync_period = "config-sync-period",
    conntrack_max_per_core = "conntrack-max-per-core",
    conntrack_min = "conntrack-min",
    conntrack_tcp_be_liberal = "conntrack-tcp-be-liberal",
    feature_gates = "feature-gates",
    iptables_localhost_node_ports = "iptables-localhost-nodeports",
    iptables_masquerade_bit = "iptables-masquerade-bit",
    ipvs_exclude_cidrs = "ipvs-exclude-cidrs",
    ipvs_scheduler = "ipvs-scheduler",
    ipvs_strict_arp = "ipvs-strict-arp",
    ipvs_tcp_timeout = "ipvs-tcp-timeout",
    ipvs_tcpfin_timeout = "ipvs-tcpfin-timeout",
    ipvs_udp_timeout = "ipvs-udp-timeout",
    kube_api_burst = "kube-api-burst",
    kube_api_content_type = "kube-api-content-type",
    kube_api_qps = "kube-api-qps",
    log_flush_frequency = "log-flush-frequency",
    oom_score_adj = "oom-score-adj",
    profiling = "profiling",
    proxy_mode = "proxy-mode",
    show_hidden_metrics = "show-hidden-metrics-for-version",
    vmodule = "vmodule",
}
