//! What Nodes become, by example.

use crate::watch::Fault;

use super::*;

fn read(yaml: &str) -> Converted<Node> {
    from_node(&serde_norway::from_str(yaml).unwrap())
}

#[test]
fn p09_zone_addresses_ranges_and_taint_are_read() {
    let converted = read(
        r"
        metadata: {name: node-a, labels: {topology.kubernetes.io/zone: zone-1}}
        spec:
          podCIDR: 10.1.0.0/24
          podCIDRs: [10.1.0.0/24, 'fd01::/64']
          taints:
          - {key: example.org/other, effect: NoSchedule}
          - {key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule, value: '1700000000'}
        status:
          addresses:
          - {type: Hostname, address: node-a}
          - {type: InternalIP, address: 192.0.2.1}
          - {type: InternalIP, address: '2001:db8::1'}
          - {type: ExternalIP, address: 198.51.100.1}
          - {type: InternalDNS, address: node-a.internal}
        ",
    );
    assert_eq!(converted.faults, []);
    let expected = Node {
        zone: Some("zone-1".to_owned()),
        addresses: ["192.0.2.1", "2001:db8::1", "198.51.100.1"].map(|addr| addr.parse().unwrap()).into(),
        pod_cidrs: ["10.1.0.0/24", "fd01::/64"].map(|range| range.parse().unwrap()).into(),
        to_be_deleted: true,
    };
    assert_eq!(converted.value, Some(expected));
}

#[test]
fn p09_a_node_that_says_nothing_is_a_node_all_the_same() {
    let converted = read("metadata: {name: node-a}");
    assert_eq!(converted, Converted { value: Some(Node::default()), faults: vec![] });
}

#[test]
fn p09_a_node_under_deletion_counts_as_leaving() {
    let converted = read("metadata: {name: node-a, deletionTimestamp: '2026-01-01T00:00:00Z'}");
    assert!(converted.value.unwrap().to_be_deleted);
}

#[test]
fn p09_a_single_pod_range_is_enough_and_broken_ones_are_named() {
    let node = read("{metadata: {name: a}, spec: {podCIDR: 10.1.0.0/24}}").value.unwrap();
    assert_eq!(node.pod_cidrs, ["10.1.0.0/24".parse().unwrap()]);

    let converted = read(
        "{metadata: {name: a}, spec: {podCIDRs: [x, 10.1.0.0/24]}, status: {addresses: [{type: InternalIP, address: y}]}}",
    );
    let faults: Vec<_> = converted.faults.iter().map(Fault::to_string).collect();
    let expected = [
        "spec.podCIDRs[0]: `x` is not a range of IP addresses such as 10.0.0.0/8",
        "status.addresses[0].address: `y` is not an IP address",
    ];
    assert_eq!(faults, expected);
    assert_eq!(converted.value.unwrap().pod_cidrs.len(), 1);
}
