//! Files as kubeadm and operators write them.

use std::time::Duration;

use super::*;

/// What kubeadm writes, with nothing chosen but the pods' range and the kubeconfig.
const KUBEADM: &str = r#"
apiVersion: kubeproxy.config.k8s.io/v1alpha1
bindAddress: ""
bindAddressHardFail: false
clientConnection:
  acceptContentTypes: ""
  burst: 0
  contentType: ""
  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf
  qps: 0
clusterCIDR: 10.244.0.0/16,fd00:10:244::/56
configSyncPeriod: 0s
conntrack:
  maxPerCore: null
  min: null
  tcpBeLiberal: false
  tcpCloseWaitTimeout: null
  tcpEstablishedTimeout: null
  udpStreamTimeout: 0s
  udpTimeout: 0s
detectLocal:
  bridgeInterface: ""
  interfaceNamePrefix: ""
detectLocalMode: ""
enableProfiling: false
healthzBindAddress: ""
hostnameOverride: ""
iptables:
  localhostNodePorts: null
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
ipvs:
  excludeCIDRs: null
  minSyncPeriod: 0s
  scheduler: ""
  strictARP: false
  syncPeriod: 0s
  tcpFinTimeout: 0s
  tcpTimeout: 0s
  udpTimeout: 0s
kind: KubeProxyConfiguration
logging:
  flushFrequency: 0
  options:
    json:
      infoBufferSize: "0"
    text:
      infoBufferSize: "0"
  verbosity: 0
metricsBindAddress: ""
mode: ""
nftables:
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
nodePortAddresses: null
oomScoreAdj: null
portRange: ""
showHiddenMetricsForVersion: ""
winkernel:
  enableDSR: false
  forwardHealthCheckVip: false
  networkName: ""
  rootHnsEndpointName: ""
  sourceVip: ""
"#;

fn parse(text: &str) -> Result<(Config, Vec<String>), String> {
    Config::parse(Path::new("config.conf"), text).map_err(|error| error.to_string())
}

fn with_head(text: &str) -> String {
    format!("apiVersion: {API_VERSION}\nkind: {KIND}\n{text}")
}

#[test]
fn p59_the_file_that_kubeadm_writes_is_read_without_a_word() {
    let (config, unused) = parse(KUBEADM).unwrap();
    assert_eq!(unused, [""; 0]);
    assert_eq!(config.cluster_cidr.as_deref(), Some("10.244.0.0/16,fd00:10:244::/56"));
    assert_eq!(config.client_connection.kubeconfig.as_deref(), Some(Path::new("/var/lib/kube-proxy/kubeconfig.conf")));
    assert_eq!(config.rules().masquerade_all, Some(false));
    assert_eq!(config.conntrack.udp_timeout, Some(GoDuration::default()));
}

#[test]
fn p59_fields_without_a_meaning_here_and_unknown_ones_are_named() {
    let text = "ipvs:\n  scheduler: wrr\n  strictARP: true\noomScoreAdj: -999\nbindAddress: 192.0.2.1\n\
                featureGates:\n  SomeGate: true\nconntrack:\n  maxPerCore: 32768\n  udpTimeout: 10s\nnodePortAdresses: [all]\n\
                mode: ipvs\n";
    let (_, unused) = parse(&with_head(text)).unwrap();
    let expected = [
        "ipvs.scheduler",
        "ipvs.strictARP",
        "oomScoreAdj",
        "bindAddress",
        "featureGates.SomeGate",
        "conntrack.maxPerCore",
        "nodePortAdresses",
        "mode",
    ];
    assert_eq!(unused, expected);
}

#[test]
fn p59_the_mode_chooses_the_section_that_counts() {
    let sections = "iptables: {masqueradeAll: true, minSyncPeriod: 1s}\nnftables: {minSyncPeriod: 2s}\nipvs: {minSyncPeriod: 3s}\n";
    for (mode, masquerade_all, seconds) in
        [("", Some(true), 1), ("iptables", Some(true), 1), ("nftables", None, 2), ("ipvs", Some(true), 3)]
    {
        let (config, _) = parse(&with_head(&format!("mode: \"{mode}\"\n{sections}"))).unwrap();
        let rules = config.rules();
        assert_eq!(rules.masquerade_all, masquerade_all, "{mode}");
        assert_eq!(rules.min_sync_period, Some(GoDuration(Duration::from_secs(seconds))), "{mode}");
    }
}

#[test]
fn p59_a_broken_file_is_an_error_with_its_place() {
    for (text, expected) in [
        (with_head("conntrack:\n  udpTimeout: soon\n"), "config.conf:4:3: conntrack: `soon` is not a duration"),
        (with_head("iptables:\n  masqueradeAll: maybe\n"), "config.conf:4:18: "),
        (with_head("nodePortAddresses: primary\n"), "config.conf:3:20: "),
        (with_head("iptables: [\n"), "config.conf:"),
        ("apiVersion: v1\nkind: ConfigMap\n".to_owned(), "not a KubeProxyConfiguration"),
        (String::new(), "not a KubeProxyConfiguration"),
    ] {
        let error = parse(&text).unwrap_err();
        assert!(error.starts_with(expected) || error.contains(expected) && expected.starts_with("not"), "{error}");
    }
}

#[test]
fn null_stands_for_the_default() {
    let (config, unused) = parse(&with_head("conntrack:\nipvs: null\nlogging:\n")).unwrap();
    assert_eq!((config.conntrack, unused.len()), (Conntrack::default(), 0));
}
