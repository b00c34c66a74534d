//! kube-proxy's configuration file: `KubeProxyConfiguration`, `kubeproxy.config.k8s.io/v1alpha1`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Deserializer};
use serde_norway::Value;

use super::duration::GoDuration;

const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
const KIND: &str = "KubeProxyConfiguration";

/// Fields with a meaning here; a name that ends with a dot stands for everything inside.
const USED: &[&str] = &[
    "apiVersion",
    "kind",
    "clientConnection.kubeconfig",
    "clusterCIDR",
    "conntrack.tcpCloseWaitTimeout",
    "conntrack.tcpEstablishedTimeout",
    "conntrack.udpStreamTimeout",
    "conntrack.udpTimeout",
    "detectLocal.",
    "detectLocalMode",
    "healthzBindAddress",
    "hostnameOverride",
    "iptables.masqueradeAll",
    "iptables.minSyncPeriod",
    "iptables.syncPeriod",
    "ipvs.minSyncPeriod",
    "ipvs.syncPeriod",
    "logging.format",
    "logging.verbosity",
    "metricsBindAddress",
    "nftables.masqueradeAll",
    "nftables.minSyncPeriod",
    "nftables.syncPeriod",
    "nodePortAddresses",
];

/// The fields that sluice uses; every one may be absent, null or empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Config {
    #[serde(deserialize_with = "or_default")]
    api_version: String,
    #[serde(deserialize_with = "or_default")]
    kind: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) client_connection: ClientConnection,
    #[serde(rename = "clusterCIDR")]
    pub(super) cluster_cidr: Option<String>,
    #[serde(deserialize_with = "or_default")]
    pub(super) conntrack: Conntrack,
    #[serde(deserialize_with = "or_default")]
    pub(super) detect_local: DetectLocal,
    pub(super) detect_local_mode: Option<String>,
    pub(super) healthz_bind_address: Option<String>,
    pub(super) hostname_override: Option<String>,
    #[serde(deserialize_with = "or_default")]
    iptables: Rules,
    #[serde(deserialize_with = "or_default")]
    ipvs: Rules,
    #[serde(deserialize_with = "or_default")]
    pub(super) logging: Logging,
    pub(super) metrics_bind_address: Option<String>,
    pub(super) mode: Option<String>,
    #[serde(deserialize_with = "or_default")]
    nftables: Rules,
    pub(super) node_port_addresses: Option<Vec<String>>,
}

/// `clientConnection`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ClientConnection {
    pub(super) kubeconfig: Option<PathBuf>,
}

/// `conntrack`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Conntrack {
    pub(super) tcp_close_wait_timeout: Option<GoDuration>,
    pub(super) tcp_established_timeout: Option<GoDuration>,
    pub(super) udp_stream_timeout: Option<GoDuration>,
    pub(super) udp_timeout: Option<GoDuration>,
}

/// `detectLocal`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct DetectLocal {
    pub(super) bridge_interface: Option<String>,
    pub(super) interface_name_prefix: Option<String>,
}

/// `iptables`, `nftables` or `ipvs`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Rules {
    pub(super) masquerade_all: Option<bool>,
    pub(super) min_sync_period: Option<GoDuration>,
    pub(super) sync_period: Option<GoDuration>,
}

/// `logging`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Logging {
    pub(super) format: Option<String>,
    pub(super) verbosity: Option<u32>,
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConfigError {
    /// It is not there or not readable.
    #[error("{}: cannot be read", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// It is not YAML, or a field has the wrong type.
    #[error("{}{}: {message}", path.display(), place(*.location))]
    Parse { path: PathBuf, location: Option<(usize, usize)>, message: String },
    /// It is something else.
    #[error("{}: not a {KIND} of {API_VERSION}, but `{kind}` of `{api_version}`", path.display())]
    OtherKind { path: PathBuf, api_version: String, kind: String },
}

/// Null stands for the default, as it does for Go.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

fn place(location: Option<(usize, usize)>) -> String {
    location.map(|(line, column)| format!(":{line}:{column}")).unwrap_or_default()
}

impl Config {
    /// Reads the file `path`, and tells which of its fields ask for something that has no meaning here.
    pub(super) fn read(path: &Path) -> Result<(Self, Vec<String>), ConfigError> {
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<(Self, Vec<String>), ConfigError> {
        let broken = |error: serde_norway::Error| {
            let location = error.location().map(|location| (location.line(), location.column()));
            // The message ends with the place, which stands before it already.
            let message = error.to_string();
            let end = message.rfind(" at line ").unwrap_or(message.len());
            ConfigError::Parse { path: path.to_owned(), location, message: message[..end].to_owned() }
        };
        let config: Self = serde_norway::from_str(text).map_err(broken)?;
        if (config.api_version.as_str(), config.kind.as_str()) != (API_VERSION, KIND) {
            let Self { api_version, kind, .. } = config;
            return Err(ConfigError::OtherKind { path: path.to_owned(), api_version, kind });
        }
        let mut unused = Vec::new();
        unused_fields(&serde_norway::from_str(text).map_err(broken)?, "", &mut unused);
        // `mode` chooses the section that counts; whatever it says, packets go through eBPF.
        unused.retain(|field| field != "mode" || config.mode.as_deref() != Some("ebpf"));
        Ok((config, unused))
    }

    /// The section of the mode that is chosen.
    pub(super) fn rules(&self) -> Rules {
        match self.mode.as_deref() {
            Some("nftables") => self.nftables.clone(),
            // IPVS masquerades with iptables.
            Some("ipvs") => Rules { masquerade_all: self.iptables.masquerade_all, ..self.ipvs.clone() },
            _ => self.iptables.clone(),
        }
    }
}

/// Collects the paths of scalars and lists that ask for something and are not used.
fn unused_fields(value: &Value, path: &str, unused: &mut Vec<String>) {
    if USED.iter().any(|used| *used == path || used.ends_with('.') && path.starts_with(used)) || asks_nothing(value) {
        return;
    }
    match value {
        Value::Mapping(fields) => {
            for (key, value) in fields {
                let key = key.as_str().map_or_else(|| format!("{key:?}"), str::to_owned);
                let path = if path.is_empty() { key } else { format!("{path}.{key}") };
                unused_fields(value, &path, unused);
            }
        }
        _ => unused.push(path.to_owned()),
    }
}

/// Whether a value is what kube-proxy and kubeadm write for "the default".
fn asks_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => matches!(text.as_str(), "" | "0" | "0s"),
        Value::Sequence(items) => items.is_empty(),
        Value::Mapping(fields) => fields.is_empty(),
        Value::Bool(true) | Value::Tagged(_) => false,
    }
}

#[cfg(test)]
mod tests;
