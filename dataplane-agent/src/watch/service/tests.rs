//! What Services become, by example.

use crate::watch::{Converted, Fault};

use super::*;

fn read(yaml: &str) -> Converted<Service> {
    from_service(&serde_norway::from_str(yaml).unwrap())
}

/// Reads a Service with the given `spec`, in YAML's flow style.
fn read_spec(spec: &str) -> Converted<Service> {
    read(&format!("metadata: {{name: web, namespace: shop}}\nspec: {spec}"))
}

#[track_caller]
fn good(converted: Converted<Service>) -> Service {
    assert_eq!(converted.faults, []);
    converted.value.expect("a Service for this node")
}

/// The faults as they are logged.
fn faults(converted: &Converted<Service>) -> Vec<String> {
    converted.faults.iter().map(Fault::to_string).collect()
}

fn addrs(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn number(port: u16) -> NonZeroU16 {
    NonZeroU16::new(port).unwrap()
}

#[test]
fn p01_every_field_of_a_service_is_read() {
    let service = good(read(
        r"
        apiVersion: v1
        kind: Service
        metadata: {name: web, namespace: shop}
        spec:
          type: LoadBalancer
          clusterIP: 10.96.0.1
          clusterIPs: [10.96.0.1, 'fd00:96::1']
          externalIPs: [198.51.100.1, '2001:db8::1']
          loadBalancerSourceRanges: [10.0.0.0/8, 'fd00::/8']
          sessionAffinity: ClientIP
          sessionAffinityConfig: {clientIP: {timeoutSeconds: 600}}
          externalTrafficPolicy: Local
          internalTrafficPolicy: Local
          healthCheckNodePort: 30999
          ports:
          - {name: http, protocol: TCP, port: 80, targetPort: web, nodePort: 30080}
          - {name: dns, protocol: UDP, port: 53}
          - {name: sig, protocol: SCTP, port: 9}
        status: {loadBalancer: {ingress: [{ip: 203.0.113.1}]}}
        ",
    ));
    let port = |name: &str, protocol, port, node_port: Option<u16>| ServicePort {
        name: name.to_owned(),
        protocol,
        port: number(port),
        node_port: node_port.map(number),
    };
    use dataplane_common::Protocol::{Sctp, Tcp, Udp};
    let expected = Service {
        cluster_ips: addrs(&["10.96.0.1", "fd00:96::1"]),
        external_ips: addrs(&["198.51.100.1", "2001:db8::1"]),
        load_balancer_ips: addrs(&["203.0.113.1"]),
        source_ranges: ["10.0.0.0/8", "fd00::/8"].map(|range| range.parse().unwrap()).into(),
        affinity: Some(Duration::from_secs(600)),
        external_policy: TrafficPolicy::Local,
        internal_policy: TrafficPolicy::Local,
        health_check_node_port: Some(number(30999)),
        ports: vec![port("http", Tcp, 80, Some(30080)), port("dns", Udp, 53, None), port("sig", Sctp, 9, None)],
    };
    assert_eq!(service, expected);
}

#[test]
fn p01_what_is_left_out_has_the_api_servers_default() {
    let service = good(read_spec("{clusterIP: 10.96.0.1, sessionAffinity: ClientIP, ports: [{port: 80}]}"));
    assert_eq!(service.cluster_ips, addrs(&["10.96.0.1"]));
    assert_eq!(service.affinity, Some(Duration::from_secs(10_800)));
    assert_eq!((service.external_policy, service.internal_policy), (TrafficPolicy::Cluster, TrafficPolicy::Cluster));
    assert_eq!(service.health_check_node_port, None);
    assert_eq!(service.ports[0].name, "");
    assert_eq!(service.ports[0].protocol, dataplane_common::Protocol::Tcp);
    assert_eq!(service.ports[0].node_port, None);
}

#[test]
fn p01_only_a_load_balancer_with_policy_local_has_a_health_check_port() {
    for (kind, policy, expected) in
        [("LoadBalancer", "Local", Some(number(30999))), ("LoadBalancer", "Cluster", None), ("NodePort", "Local", None)]
    {
        let spec = format!(
            "{{type: {kind}, externalTrafficPolicy: {policy}, clusterIP: 10.0.0.1, healthCheckNodePort: 30999}}"
        );
        assert_eq!(good(read_spec(&spec)).health_check_node_port, expected, "{kind} {policy}");
    }
}

#[test]
fn p01_a_broken_field_is_named_and_the_rest_works() {
    let converted = read_spec(
        "{clusterIPs: [10.96.0.1, 10.96.0.300], externalIPs: [x], sessionAffinity: Cookie, externalTrafficPolicy: Far,
          ports: [{port: 0}, {name: a, port: 80, nodePort: 70000}, {name: b, protocol: ICMP, port: 81}]}",
    );
    let expected = [
        "spec.externalTrafficPolicy: `Far` is not Cluster or Local; read as Cluster",
        "spec.clusterIPs[1]: `10.96.0.300` is not an IP address",
        "spec.externalIPs[0]: `x` is not an IP address",
        "spec.sessionAffinity: `Cookie` is not ClientIP or None; read as None",
        "spec.ports[0].port: 0 is not a port number",
        "spec.ports[1].nodePort: 70000 is not a port number",
        "spec.ports[2].protocol: `ICMP` is not TCP, UDP or SCTP; the port is ignored",
    ];
    let mut found = faults(&converted);
    found.sort();
    let mut expected = expected.map(str::to_owned);
    expected.sort();
    assert_eq!(found, expected);
    let service = converted.value.unwrap();
    assert_eq!(service.cluster_ips, addrs(&["10.96.0.1"]));
    assert_eq!(service.ports.iter().map(|port| (&*port.name, port.node_port)).collect::<Vec<_>>(), [("a", None)]);
}

#[test]
fn p01_an_affinity_timeout_out_of_range_is_the_default() {
    for seconds in [-1, 0, 86_401] {
        let config = format!("{{clientIP: {{timeoutSeconds: {seconds}}}}}");
        let converted =
            read_spec(&format!("{{clusterIP: 10.0.0.1, sessionAffinity: ClientIP, sessionAffinityConfig: {config}}}"));
        let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
        assert_eq!(faults(&converted), [format!("{field}: `{seconds}` is not 1 to 86400 seconds; read as 10800")]);
        assert_eq!(converted.value.unwrap().affinity, Some(Duration::from_secs(10_800)));
    }
}

#[test]
fn p02_source_ranges_are_trimmed_and_broken_ones_open_up_no_family() {
    let ranges = |list: &str| {
        let converted = read_spec(&format!("{{clusterIP: 10.0.0.1, loadBalancerSourceRanges: {list}}}"));
        let ranges = converted.value.as_ref().unwrap().source_ranges.iter().map(ToString::to_string);
        (ranges.collect::<Vec<_>>(), converted.faults.len())
    };
    let owned = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(ranges("[]"), (vec![], 0));
    assert_eq!(ranges("[' 10.1.2.3/8 ', 'fd00::1/8']"), (owned(&["10.0.0.0/8", "fd00::/8"]), 0));
    assert_eq!(ranges("[10.0.0.0/8]"), (owned(&["10.0.0.0/8"]), 0));
    assert_eq!(ranges("[10.0.0.0/8, bad]"), (owned(&["10.0.0.0/8", "::/128"]), 1));
    assert_eq!(ranges("[10.0.0.0/8, 'fd00::/8', bad]"), (owned(&["10.0.0.0/8", "fd00::/8"]), 1));
    assert_eq!(ranges("[bad]"), (owned(&["0.0.0.0/32", "::/128"]), 1));
}

#[test]
fn p03_a_load_balancer_address_counts_with_ip_and_mode_vip_or_none() {
    let converted = read(
        r"
        metadata: {name: web, namespace: shop}
        spec: {type: LoadBalancer, clusterIP: 10.96.0.1}
        status:
          loadBalancer:
            ingress:
            - {ip: 203.0.113.1}
            - {ip: 203.0.113.2, ipMode: VIP}
            - {ip: 203.0.113.3, ipMode: Proxy}
            - {hostname: lb.example.org}
            - {ip: 'fd00::1', hostname: lb.example.org}
            - {ip: 203.0.113.4, ipMode: Magic}
            - {ip: broken}
        ",
    );
    assert_eq!(converted.value.as_ref().unwrap().load_balancer_ips, addrs(&["203.0.113.1", "203.0.113.2", "fd00::1"]));
    let expected = [
        "status.loadBalancer.ingress[5].ipMode: `Magic` is not VIP or Proxy; read as Proxy",
        "status.loadBalancer.ingress[6].ip: `broken` is not an IP address",
    ];
    assert_eq!(faults(&converted), expected);
}

#[test]
fn p05_services_that_a_label_leaves_to_others_are_skipped() {
    for label in ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"] {
        for value in ["other", ""] {
            let yaml = format!(
                "metadata: {{name: web, labels: {{{label}: '{value}'}}}}\nspec: {{clusterIP: 10.96.0.1, ports: [{{port: 80}}]}}"
            );
            assert_eq!(read(&yaml), Converted::not_ours(), "{label}={value}");
        }
    }
}

#[test]
fn p06_headless_and_external_name_services_are_ignored() {
    for spec in [
        "{clusterIP: None, clusterIPs: [None], ports: [{port: 80}]}",
        "{clusterIPs: [None], ports: [{port: 80}]}",
        "{clusterIP: None, ports: [{port: 80}]}",
        "{type: ExternalName, externalName: example.org}",
        "{type: ExternalName, externalName: example.org, clusterIP: 10.96.0.1, ports: [{port: 80}]}",
    ] {
        assert_eq!(read_spec(spec), Converted::not_ours(), "{spec}");
    }
}

#[test]
fn p06_a_service_without_an_address_is_ignored_with_a_reason() {
    let converted = read_spec("{ports: [{port: 80}]}");
    assert_eq!(converted.value, None);
    assert_eq!(faults(&converted), ["spec.clusterIP: missing; the Service is ignored until it has one"]);
    assert_eq!(faults(&read("metadata: {name: web}")), ["spec: missing; the Service is ignored"]);
}

#[test]
fn p08_tcp_and_udp_share_a_port_number_but_a_protocol_does_not_have_one_twice() {
    let service = good(read_spec(
        "{clusterIP: 10.0.0.1, ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53, targetPort: dns}]}",
    ));
    assert_eq!(service.ports.len(), 2);

    let converted = read_spec(
        "{clusterIP: 10.0.0.1, ports: [{name: a, port: 80}, {name: b, port: 80}, {name: a, port: 81}, {name: c, port: 82}]}",
    );
    let expected = [
        "spec.ports[1]: the same port and protocol as in spec.ports[0]; ignored",
        "spec.ports[2]: the same name as in spec.ports[0]; ignored",
    ];
    assert_eq!(faults(&converted), expected);
    assert_eq!(converted.value.unwrap().ports.iter().map(|port| &*port.name).collect::<Vec<_>>(), ["a", "c"]);
}
