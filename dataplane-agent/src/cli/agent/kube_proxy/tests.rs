//! Command lines and files, and what they decide.

use std::io::Write as _;

use clap::Parser as _;

use super::*;

#[derive(clap::Parser)]
struct Line {
    #[command(flatten)]
    agent: AgentArgs,
}

/// Decides about the command line `flags` and the fields `file`, when there are any.
fn decide(flags: &str, file: &str) -> anyhow::Result<(AgentArgs, Decisions)> {
    let mut config = tempfile::NamedTempFile::new()?;
    writeln!(config, "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n{file}")?;
    let path = config.path().display().to_string();
    let mut words = vec!["agent"];
    words.extend(flags.split_whitespace());
    if !file.is_empty() {
        words.extend(["--config", &path]);
    }
    super::decide(Line::try_parse_from(words)?.agent)
}

fn ticks(seconds: u64) -> u32 {
    Ticks::from_secs(seconds).0
}

#[test]
fn p59_nothing_given_decides_for_kube_proxys_defaults() {
    let (args, decisions) = decide("", "").unwrap();
    let expected = Decisions {
        settings: Settings::default(),
        timeouts: Timeouts::DEFAULT,
        healthz: "0.0.0.0:10256".parse().ok(),
        metrics: "127.0.0.1:10249".parse().ok(),
        health_timeout: Duration::from_secs(60),
        min_interval: MIN_INTERVAL,
        warnings: Vec::new(),
    };
    assert_eq!(decisions, expected);
    assert_eq!((args.log, args.log_format), (None, None));
}

#[test]
fn p59_fields_of_the_file_decide_and_a_flag_beats_them() {
    let file = "hostnameOverride: from-file\nclientConnection: {kubeconfig: /file}\nclusterCIDR: 10.0.0.0/8\n\
                healthzBindAddress: 127.0.0.1:1\nmetricsBindAddress: 127.0.0.1:2\nnodePortAddresses: [10.0.0.0/8]\n\
                iptables: {masqueradeAll: true, syncPeriod: 10s, minSyncPeriod: 1s}\n\
                logging: {format: json, verbosity: 4}\n";
    let (args, decisions) = decide("", file).unwrap();
    assert_eq!(args.node_name.as_deref(), Some("from-file"));
    assert_eq!(args.kubeconfig.as_deref(), Some("/file".as_ref()));
    assert_eq!((args.log.as_deref(), args.log_format), (Some("debug"), Some(LogFormat::Json)));
    assert!(decisions.settings.masquerade_all);
    assert_eq!(decisions.settings.local, DetectLocal::Cidrs(vec!["10.0.0.0/8".parse().unwrap()]));
    assert_eq!((decisions.healthz, decisions.metrics), ("127.0.0.1:1".parse().ok(), "127.0.0.1:2".parse().ok()));
    assert_eq!((decisions.health_timeout.as_secs(), decisions.min_interval.as_secs()), (20, 1));

    let flags = "--hostname-override n --kubeconfig /flag --cluster-cidr 10.1.0.0/16,fd00::/56 \
                 --healthz-bind-address [::1]:3 --metrics-bind-address= --masquerade-all=false \
                 --iptables-sync-period 1s --iptables-min-sync-period 2s -v 6 --log-format text";
    let flags = format!("{flags} --nodeport-addresses primary,localhost");
    let (args, decisions) = decide(&flags, file).unwrap();
    assert_eq!(args.node_name.as_deref(), Some("n"));
    assert_eq!(args.kubeconfig.as_deref(), Some("/flag".as_ref()));
    assert_eq!((args.log.as_deref(), args.log_format), (Some("trace"), Some(LogFormat::Text)));
    assert!(!decisions.settings.masquerade_all);
    let cidrs = ["10.1.0.0/16", "fd00::/56"].map(|cidr| cidr.parse().unwrap());
    assert_eq!(decisions.settings.local, DetectLocal::Cidrs(cidrs.into()));
    assert_eq!((decisions.healthz, decisions.metrics), ("[::1]:3".parse().ok(), None));
    assert_eq!(decisions.settings.node_port_addresses.0.len(), 3);
    assert_eq!((decisions.health_timeout.as_secs(), decisions.min_interval.as_secs()), (2, 2));
}

#[test]
fn p53_timeouts_come_from_flags_and_from_the_file() {
    let file =
        "conntrack: {tcpEstablishedTimeout: 1h0m0s, tcpCloseWaitTimeout: 60s, udpTimeout: 10s, udpStreamTimeout: 0s}";
    let flags = "--conntrack-udp-timeout 20s --conntrack-udp-timeout-stream 5m";
    let (_, decisions) = decide(flags, file).unwrap();
    let expected = |changed: &[(Timeout, u32)]| {
        let mut timeouts = Timeouts::DEFAULT;
        changed.iter().for_each(|&(which, ticks)| timeouts.0[which as usize] = ticks);
        timeouts
    };
    let changed = [
        (Timeout::TcpEstablished, ticks(3600)),
        (Timeout::TcpClosing, ticks(60)),
        (Timeout::Datagram, ticks(20)),
        (Timeout::DatagramStream, ticks(300)),
    ];
    assert_eq!(decisions.timeouts, expected(&changed));
    let (_, decisions) =
        decide("--conntrack-tcp-timeout-established 0 --conntrack-tcp-timeout-close-wait 1s", "").unwrap();
    assert_eq!(decisions.timeouts, expected(&[(Timeout::TcpClosing, ticks(1))]));
}

#[test]
fn p53_timeouts_reach_the_programs() {
    let (args, decisions) =
        decide("--conntrack-udp-timeout 20s --masquerade-all --detect-local-mode NodeCIDR", "").unwrap();
    let options = args.datapath(crate::datapath::Pins::new("/bpf"), &decisions).unwrap();
    use dataplane_common::NodeConfig;
    assert_eq!(options.config.timeouts.0[Timeout::Datagram as usize], ticks(20));
    let expected = NodeConfig::MASQUERADE_ALL | NodeConfig::MASQUERADE_OUTSIDE | NodeConfig::HOST_BYPASS;
    assert_eq!(options.config.flags, expected);
}

#[test]
fn p59_modes_of_detecting_local_traffic() {
    for (flags, expected) in [
        ("", DetectLocal::Off),
        ("--detect-local-mode ClusterCIDR", DetectLocal::Off),
        ("--detect-local-mode NodeCIDR --cluster-cidr 10.0.0.0/8", DetectLocal::NodeCidrs),
        ("--detect-local-mode BridgeInterface --pod-bridge-interface cni0", DetectLocal::Interfaces),
        ("--detect-local-mode InterfaceNamePrefix --pod-interface-name-prefix cali", DetectLocal::Interfaces),
    ] {
        let (args, decisions) = decide(flags, "").unwrap();
        assert_eq!(decisions.settings.local, expected, "{flags}");
        assert_eq!(args.pod_interfaces.iter().any(|name| name.matches("cali1a2b")), flags.contains("cali"), "{flags}");
    }
}

#[test]
fn p59_what_means_nothing_here_is_one_warning_each_for_file_and_flags() {
    let flags = "--proxy-mode=ipvs --oom-score-adj -998 --bind-address 0.0.0.0 --profiling";
    let (_, decisions) = decide(flags, "oomScoreAdj: -999\nenableProfiling: true").unwrap();
    let [file, flags] = &*decisions.warnings else { panic!("{:?}", decisions.warnings) };
    assert!(file.ends_with(": without a meaning here: oomScoreAdj, enableProfiling"), "{file}");
    assert!(flags.ends_with(": --bind-address, --oom-score-adj, --profiling, --proxy-mode"), "{flags}");
}

#[test]
fn p59_wrong_values_are_refused_with_what_is_right() {
    for (flags, file, expected) in [
        ("--cluster-cidr 10.0.0.0", "", "--cluster-cidr or clusterCIDR"),
        ("--nodeport-addresses eth0", "", "`eth0` is not a range"),
        ("--healthz-bind-address nowhere", "", "`nowhere` is not an address such as 0.0.0.0:10256"),
        ("--conntrack-udp-timeout 20", "", "`20` is not a duration"),
        ("", "detectLocalMode: Guess", "`Guess` is not ClusterCIDR"),
        ("--config /nonexistent", "", "/nonexistent: cannot be read"),
    ] {
        let error = format!("{:#}", decide(flags, file).map(|_| ()).unwrap_err());
        assert!(error.contains(expected), "{flags} {file}: {error}");
    }
}
