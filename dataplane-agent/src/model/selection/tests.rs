//! Tables of cases: endpoints in words, chosen addresses out.

use std::num::NonZeroU16;

use dataplane_common::Protocol;

use super::*;
use crate::model::{ObjectName, endpoint::EndpointPort};

const HERE: Place<'_> = Place { node: "here", zone: Some("z1") };

/// Parses `10.0.0.1 ready here zones=z1,z2 nodes=here`; other words are the name of the endpoint's node.
fn endpoint(text: &str) -> Endpoint {
    let mut words = text.split_whitespace();
    let addr = words.next().unwrap().parse().unwrap();
    let none = BTreeSet::new;
    let mut endpoint =
        Endpoint { addr, state: EndpointState::Ready, node: None, zone: None, for_nodes: none(), for_zones: none() };
    let list = |text: &str| text.split(',').map(str::to_owned).collect();
    for word in words {
        match (word, word.split_once('=')) {
            ("ready", _) => endpoint.state = EndpointState::Ready,
            ("draining", _) => endpoint.state = EndpointState::Draining,
            ("unready", _) => endpoint.state = EndpointState::Unready,
            (_, Some(("zones", zones))) => endpoint.for_zones = list(zones),
            (_, Some(("nodes", nodes))) => endpoint.for_nodes = list(nodes),
            (node, _) => endpoint.node = Some(node.to_owned()),
        }
    }
    endpoint
}

fn port(name: &str, protocol: Protocol, number: u16) -> EndpointPort {
    EndpointPort { name: name.to_owned(), protocol, port: NonZeroU16::new(number).unwrap() }
}

fn slice(ports: Vec<EndpointPort>, endpoints: &[&str]) -> EndpointSlice {
    let endpoints = endpoints.iter().map(|text| endpoint(text)).collect();
    EndpointSlice { service: ObjectName::new("default", "web"), ports, endpoints, triggered: Default::default() }
}

fn service_port(name: &str, protocol: Protocol) -> ServicePort {
    ServicePort { name: name.to_owned(), protocol, port: NonZeroU16::new(80).unwrap(), node_port: None }
}

fn text(set: &BTreeSet<SocketAddr>) -> String {
    set.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

#[track_caller]
fn check_at(place: Place<'_>, endpoints: &[&str], cluster: &str, local: &str) {
    let slices = [slice(vec![port("", Protocol::Tcp, 80)], endpoints)];
    let candidates = candidates(&slices, &service_port("", Protocol::Tcp), place);
    let selection = select(&candidates, place);
    let short = |set| text(set).replace(":80", "");
    assert_eq!((short(&selection.cluster).as_str(), short(&selection.local).as_str()), (cluster, local));
}

#[track_caller]
fn check(endpoints: &[&str], cluster: &str, local: &str) {
    check_at(HERE, endpoints, cluster, local);
}

#[track_caller]
fn check_candidates(slices: &[EndpointSlice], port: &ServicePort, expected: &[&str]) {
    let found: Vec<_> = candidates(slices, port, HERE)
        .iter()
        .map(|(addr, endpoint)| format!("{addr} {:?}", endpoint.state).to_lowercase())
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn p20_the_cluster_set_is_what_is_ready() {
    check(
        &["10.0.0.1 here", "10.0.0.2 there", "10.0.0.3 unready", "10.0.0.4 draining"],
        "10.0.0.1 10.0.0.2",
        "10.0.0.1",
    );
    check(&[], "", "");
}

#[test]
fn p20_no_ready_endpoint_falls_back_to_draining_ones() {
    check(&["10.0.0.1 draining there", "10.0.0.2 unready here"], "10.0.0.1", "");
}

#[test]
fn p20_draining_endpoints_are_chosen_whatever_their_hints() {
    check(&["10.0.0.1 draining zones=z2", "10.0.0.2 draining zones=z1"], "10.0.0.1 10.0.0.2", "");
    check(&["10.0.0.1 draining nodes=there", "10.0.0.2 draining nodes=here"], "10.0.0.1 10.0.0.2", "");
}

#[test]
fn p20_one_ready_endpoint_elsewhere_is_enough_to_leave_draining_ones_alone() {
    check(&["10.0.0.1 draining here", "10.0.0.2 there"], "10.0.0.2", "10.0.0.1");
}

#[test]
fn p21_the_local_set_prefers_ready_over_draining_and_is_empty_without_either() {
    check(&["10.0.0.1 here", "10.0.0.2 draining here"], "10.0.0.1", "10.0.0.1");
    check(&["10.0.0.1 there", "10.0.0.2 draining here"], "10.0.0.1", "10.0.0.2");
    check(&["10.0.0.1 there", "10.0.0.2 unready here"], "10.0.0.1", "");
    check(&["10.0.0.1"], "10.0.0.1", "");
}

#[test]
fn p21_the_local_set_knows_no_hints() {
    check(&["10.0.0.1 here zones=z2", "10.0.0.2 there zones=z1"], "10.0.0.2", "10.0.0.1");
    check(&["10.0.0.1 here nodes=there", "10.0.0.2 there nodes=here"], "10.0.0.2", "10.0.0.1");
}

#[test]
fn p22_both_sets_are_there_at_once() {
    check(&["10.0.0.1 here", "10.0.0.2 there", "10.0.0.3 here"], "10.0.0.1 10.0.0.2 10.0.0.3", "10.0.0.1 10.0.0.3");
}

#[test]
fn p23_zone_hints_choose_the_zone() {
    check(&["10.0.0.1 zones=z1", "10.0.0.2 zones=z2", "10.0.0.3 zones=z1,z2"], "10.0.0.1 10.0.0.3", "");
}

#[test]
fn p23_node_hints_go_before_zone_hints() {
    check(&["10.0.0.1 nodes=here zones=z2", "10.0.0.2 nodes=there zones=z1"], "10.0.0.1", "");
}

#[test]
fn p23_one_missing_hint_switches_that_level_off() {
    check(&["10.0.0.1 zones=z1", "10.0.0.2"], "10.0.0.1 10.0.0.2", "");
    check(&["10.0.0.1 nodes=here zones=z2", "10.0.0.2 zones=z1"], "10.0.0.2", "");
    check(&["10.0.0.1 nodes=here zones=z1", "10.0.0.2"], "10.0.0.1 10.0.0.2", "");
}

#[test]
fn p23_hints_that_name_nobody_here_are_ignored() {
    check(&["10.0.0.1 zones=z2", "10.0.0.2 zones=z3"], "10.0.0.1 10.0.0.2", "");
    check(&["10.0.0.1 nodes=there zones=z1", "10.0.0.2 nodes=there zones=z2"], "10.0.0.1", "");
}

#[test]
fn p23_only_ready_endpoints_need_hints() {
    check(&["10.0.0.1 zones=z1", "10.0.0.2 zones=z2", "10.0.0.3 draining", "10.0.0.4 unready"], "10.0.0.1", "");
}

#[test]
fn p23_a_node_without_zone_ignores_zone_hints() {
    let place = Place { node: "here", zone: None };
    check_at(place, &["10.0.0.1 zones=z1", "10.0.0.2 zones=z2"], "10.0.0.1 10.0.0.2", "");
}

#[test]
fn p25_what_no_longer_serves_is_never_chosen() {
    check(&["10.0.0.1 unready here", "10.0.0.2 unready there"], "", "");
}

#[test]
fn p07_an_address_in_several_slices_counts_once_in_its_best_state() {
    let http = || vec![port("http", Protocol::Tcp, 8080)];
    let slices = [
        slice(http(), &["10.0.0.1 draining", "10.0.0.2"]),
        slice(http(), &["10.0.0.1", "10.0.0.2 unready", "fd00::1"]),
        slice(http(), &["10.0.0.1 unready"]),
    ];
    let expected = ["10.0.0.1:8080 ready", "10.0.0.2:8080 ready", "[fd00::1]:8080 ready"];
    check_candidates(&slices, &service_port("http", Protocol::Tcp), &expected);
}

#[test]
fn p07_ports_match_by_name_and_protocol() {
    let slices = [slice(
        vec![port("dns", Protocol::Udp, 53), port("dns-tcp", Protocol::Tcp, 53), port("dns", Protocol::Tcp, 54)],
        &["10.0.0.1"],
    )];
    check_candidates(&slices, &service_port("dns", Protocol::Udp), &["10.0.0.1:53 ready"]);
    check_candidates(&slices, &service_port("dns-tcp", Protocol::Tcp), &["10.0.0.1:53 ready"]);
    check_candidates(&slices, &service_port("", Protocol::Tcp), &[]);
}

#[test]
fn p08_a_named_port_may_be_another_number_in_another_slice() {
    let slices = [
        slice(vec![port("http", Protocol::Tcp, 8080)], &["10.0.0.1"]),
        slice(vec![port("http", Protocol::Tcp, 9090)], &["10.0.0.2", "10.0.0.1"]),
    ];
    let expected = ["10.0.0.1:8080 ready", "10.0.0.1:9090 ready", "10.0.0.2:9090 ready"];
    check_candidates(&slices, &service_port("http", Protocol::Tcp), &expected);
}
