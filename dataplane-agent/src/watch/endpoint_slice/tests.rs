//! What EndpointSlices become, by example.

use dataplane_common::Protocol;

use crate::watch::Fault;

use super::*;

fn read_slice(yaml: &str) -> Converted<EndpointSlice> {
    from_endpoint_slice(&serde_norway::from_str(yaml).unwrap())
}

/// Reads an IPv4 slice of Service `shop/web` with the given `endpoints` and `ports`, in YAML's flow style.
fn read_parts(endpoints: &str, ports: &str) -> Converted<EndpointSlice> {
    read_slice(&format!(
        "metadata: {{name: web-1, namespace: shop, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv4
endpoints: {endpoints}
ports: {ports}"
    ))
}

fn faults(converted: &Converted<EndpointSlice>) -> Vec<String> {
    converted.faults.iter().map(Fault::to_string).collect()
}

#[test]
fn p07_every_field_of_a_slice_is_read() {
    let converted = read_slice(
        r"
        metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
        addressType: IPv6
        endpoints:
        - addresses: ['fd00::1']
          conditions: {ready: true, serving: true, terminating: false}
          nodeName: node-a
          zone: zone-1
          hints: {forZones: [{name: zone-1}, {name: zone-2}], forNodes: [{name: node-a}]}
        ports: [{name: http, protocol: TCP, port: 8080}]
        ",
    );
    assert_eq!(converted.faults, []);
    let expected = EndpointSlice {
        triggered: Default::default(),
        service: ObjectName::new("shop", "web"),
        ports: vec![EndpointPort { name: "http".to_owned(), protocol: Protocol::Tcp, port: 8080.try_into().unwrap() }],
        endpoints: vec![Endpoint {
            addr: "fd00::1".parse().unwrap(),
            state: EndpointState::Ready,
            node: Some("node-a".to_owned()),
            zone: Some("zone-1".to_owned()),
            for_nodes: ["node-a".to_owned()].into(),
            for_zones: ["zone-1".to_owned(), "zone-2".to_owned()].into(),
        }],
    };
    assert_eq!(converted.value, Some(expected));
}

#[test]
fn p07_conditions_that_are_nil_mean_ready() {
    use EndpointState::{Draining, Ready, Unready};
    for (conditions, expected) in [
        ("null", Ready),
        ("{}", Ready),
        ("{ready: true}", Ready),
        ("{ready: false}", Unready),
        ("{ready: false, serving: true, terminating: true}", Draining),
        ("{ready: false, serving: false, terminating: true}", Unready),
        ("{ready: false, serving: true}", Unready),
        // Nil serving defers to ready.
        ("{ready: false, terminating: true}", Unready),
        // publishNotReadyAddresses keeps terminating endpoints ready.
        ("{ready: true, serving: false, terminating: true}", Ready),
        ("{terminating: true}", Ready),
    ] {
        let converted = read_parts(&format!("[{{addresses: [10.0.0.1], conditions: {conditions}}}]"), "[]");
        assert_eq!(converted.value.unwrap().endpoints[0].state, expected, "{conditions}");
    }
}

#[test]
fn p07_a_slice_of_host_names_is_ignored_with_a_reason() {
    let slice = |kind: &str| {
        read_slice(&format!(
            "{{metadata: {{name: a, labels: {{kubernetes.io/service-name: web}}}}, addressType: {kind}, endpoints: []}}"
        ))
    };
    for kind in ["FQDN", "IPv5"] {
        let converted = slice(kind);
        assert_eq!(converted.value, None);
        assert_eq!(faults(&converted), [format!("addressType: `{kind}` is not IPv4 or IPv6; the slice is ignored")]);
    }
    assert!(slice("IPv4").value.is_some());
}

#[test]
fn p07_a_slice_without_a_service_is_ignored_with_a_reason() {
    let converted = read_slice("{metadata: {name: a}, addressType: IPv4, endpoints: []}");
    assert_eq!(converted.value, None);
    let expected =
        "metadata.labels[kubernetes.io/service-name]: missing; the slice is ignored since it belongs to no Service";
    assert_eq!(faults(&converted), [expected]);
}

#[test]
fn p07_only_the_first_address_of_an_endpoint_is_used() {
    let converted = read_parts("[{addresses: [10.0.0.2, 10.0.0.3]}, {addresses: [10.0.0.1]}]", "[]");
    assert_eq!(converted.faults, []);
    let addrs: Vec<_> = converted.value.unwrap().endpoints.iter().map(|endpoint| endpoint.addr.to_string()).collect();
    assert_eq!(addrs, ["10.0.0.1", "10.0.0.2"]);
}

#[test]
fn p07_broken_endpoints_and_ports_are_named_and_the_rest_works() {
    let converted = read_parts(
        "[{addresses: []}, {addresses: [x]}, {addresses: ['fd00::1']}, {addresses: [10.0.0.1]}]",
        "[{name: nil}, {name: zero, port: 0}, {name: icmp, protocol: ICMP, port: 1}, {port: 80}]",
    );
    let expected = [
        "ports[0].port: missing; the port is ignored",
        "ports[1].port: 0 is not a port number",
        "ports[2].protocol: `ICMP` is not TCP, UDP or SCTP; the port is ignored",
        "endpoints[0].addresses[0]: missing; the endpoint is ignored",
        "endpoints[1].addresses[0]: `x` is not an IP address",
        "endpoints[2].addresses[0]: fd00::1 does not belong in a slice with addressType IPv4; ignored",
    ];
    assert_eq!(faults(&converted), expected);
    let slice = converted.value.unwrap();
    assert_eq!(slice.endpoints.len(), 1);
    assert_eq!(slice.ports.len(), 1);
}

#[test]
fn p07_ports_with_nil_and_with_empty_name_are_the_same() {
    let converted = read_parts("[]", "[{port: 80}, {name: '', protocol: UDP, port: 53}]");
    assert_eq!(converted.faults, []);
    assert_eq!(converted.value.unwrap().ports.iter().map(|port| &*port.name).collect::<Vec<_>>(), ["", ""]);
}

#[test]
fn p07_endpoints_in_another_order_are_no_change() {
    let one = read_parts("[{addresses: [10.0.0.1]}, {addresses: [10.0.0.2]}]", "[{port: 80}]");
    let other = read_parts("[{addresses: [10.0.0.2]}, {addresses: [10.0.0.1]}]", "[{port: 80}]");
    assert_eq!(one, other);
}

#[test]
fn p05_slices_of_services_left_to_others_are_skipped() {
    for label in SKIP_LABELS {
        let yaml = format!("{{metadata: {{name: a, labels: {{{label}: x}}}}, addressType: IPv4, endpoints: []}}");
        assert_eq!(read_slice(&yaml), Converted::not_ours(), "{label}");
    }
}

#[test]
fn p08_the_number_of_a_named_target_port_comes_from_the_slice() {
    let slice = |number: u16| {
        let ports = format!("[{{name: dns, port: {number}, protocol: UDP}}, {{name: dns-tcp, port: {number}}}]");
        read_parts("[{addresses: [10.0.0.1]}]", &ports).value.unwrap()
    };
    for number in [5353, 1053] {
        let ports: Vec<_> = slice(number).ports.iter().map(|port| (port.protocol, port.port.get())).collect();
        assert_eq!(ports, [(Protocol::Udp, number), (Protocol::Tcp, number)]);
    }
}
