//! Tables of cases: ranges and addresses in, rows out.

use super::*;
use crate::{
    model::{
        Change,
        node::Node,
        settings::{DetectLocal, Settings},
    },
    tables::cidr_words,
};

fn ranges(text: &str) -> Vec<IpNetwork> {
    text.split_whitespace().map(|word| word.parse().unwrap()).collect()
}

fn addrs(text: &str) -> Vec<IpAddr> {
    text.split_whitespace().map(|word| word.parse().unwrap()).collect()
}

fn cluster(local: DetectLocal, node: Node, changes: impl IntoIterator<Item = Change>) -> Cluster {
    let mut cluster = Cluster::new("here");
    cluster.apply(Change::Settings(Settings { local, ..Settings::default() }));
    cluster.apply(Change::Node("here".to_owned(), Some(node)));
    changes.into_iter().for_each(|change| drop(cluster.apply(change)));
    cluster
}

#[track_caller]
fn check_cidrs(services: &str, pods: &str, expected: &[&str]) {
    let service_cidr = Change::ServiceCidr("kubernetes".to_owned(), Some(ranges(services)));
    let cluster = cluster(DetectLocal::Cidrs(ranges(pods)), Node::default(), [service_cidr]);
    let rows = compile(&cluster).cidrs;
    let rows: Vec<_> = rows.iter().map(|(range, bits)| format!("{range} {}", cidr_words(*bits))).collect();
    assert_eq!(rows, expected);
}

#[test]
fn p10_service_cidrs_of_both_families_are_known() {
    let everything = ["0.0.0.0/0 services-known", "::/0 services-known"];
    check_cidrs(
        "10.96.0.0/12 fd00:96::/112",
        "",
        &[
            everything[0],
            "10.96.0.0/12 services,services-known",
            everything[1],
            "fd00:96::/112 services,services-known",
        ],
    );
    check_cidrs("10.96.0.7/12", "", &[everything[0], "10.96.0.0/12 services,services-known", everything[1]]);
    check_cidrs("", "10.0.0.0/8", &["10.0.0.0/8 pods"]);
    check_cidrs("", "", &[]);
}

#[test]
fn p10_a_prefix_has_the_bits_of_those_around_it() {
    check_cidrs(
        "10.96.0.0/12 10.96.0.0/16",
        "10.0.0.0/8 10.96.4.0/24 192.0.2.0/24",
        &[
            "0.0.0.0/0 services-known",
            "10.0.0.0/8 pods,services-known",
            "10.96.0.0/12 services,pods,services-known",
            "10.96.0.0/16 services,pods,services-known",
            "10.96.4.0/24 services,pods,services-known",
            "192.0.2.0/24 pods,services-known",
            "::/0 services-known",
        ],
    );
    check_cidrs(
        "0.0.0.0/0",
        "fd00::/8 10.0.0.0/8",
        &[
            "0.0.0.0/0 services,services-known",
            "10.0.0.0/8 services,pods,services-known",
            "::/0 services-known",
            "fd00::/8 pods,services-known",
        ],
    );
    check_cidrs(
        "10.0.0.0/8",
        "10.0.0.0/8",
        &["0.0.0.0/0 services-known", "10.0.0.0/8 services,pods,services-known", "::/0 services-known"],
    );
}

#[test]
fn p35_pods_are_told_by_the_ranges_that_the_mode_names() {
    let node = Node { pod_cidrs: ranges("10.244.3.0/24 fd00:10::/64"), ..Node::default() };
    for (local, expected) in [
        (DetectLocal::Off, ""),
        (DetectLocal::Interfaces, ""),
        (DetectLocal::Cidrs(ranges("10.244.0.0/16")), "10.244.0.0/16"),
        (DetectLocal::NodeCidrs, "10.244.3.0/24 fd00:10::/64"),
    ] {
        let rows = compile(&cluster(local, node.clone(), [])).cidrs;
        assert_eq!(
            rows.into_iter().collect::<Vec<_>>(),
            ranges(expected).into_iter().map(|range| (range, cidr::POD)).collect::<Vec<_>>()
        );
    }
}

#[test]
fn p35_the_node_s_address_is_one_that_it_has() {
    let local = |uplinks: &[(u32, &str)], node_port: &str| LocalAddresses {
        node_port: addrs(node_port).into_iter().collect(),
        snat: uplinks.iter().map(|(index, text)| (*index, addrs(text))).collect(),
        ..LocalAddresses::default()
    };
    for (of_node, uplinks, expected) in [
        ("192.0.2.1", vec![(2, "198.51.100.1 2001:db8::1"), (3, "192.0.2.1")], "192.0.2.1 2001:db8::1"),
        // A Node object may name what a load balancer in front of it has.
        ("203.0.113.1 192.0.2.1", vec![(2, "198.51.100.1"), (3, "192.0.2.1")], "192.0.2.1"),
        ("", vec![(3, "198.51.100.1"), (7, "192.0.2.1")], "198.51.100.1"),
        ("192.0.2.1", vec![], "192.0.2.1"),
    ] {
        let addresses = local(&uplinks, "192.0.2.1");
        let node = Node { addresses: addrs(of_node), ..Node::default() };
        let rows = compile(&cluster(DetectLocal::Off, node, [Change::LocalAddresses(addresses)])).snat_addrs;
        let any = rows.iter().filter(|(key, _)| key.interface == ANY_INTERFACE).map(|(_, addr)| *addr);
        assert_eq!(any.collect::<Vec<_>>(), addrs(expected), "{of_node} {uplinks:?}");
    }
}
