//! What a service does about its clients: it remembers them, admits some of them, and rejects what it does not offer.

use std::time::Duration;

use dataplane_common::Frontend;

use super::*;
use crate::tables::BackendRow;

/// The service `web` with two endpoints, one of them on this node.
fn web(service: Service) -> Agent {
    let mut agent = Agent::new();
    agent.apply([set_service("web", service), set_slice("web", "10.0.0.1 @10.0.0.2")]);
    agent
}

fn balanced(ranges: &[&str]) -> Service {
    let mut service = node_port_service(&["10.96.0.1", "fd00:96::1"], 30080);
    service.load_balancer_ips = ["198.51.100.1", "2001:db8::1"].map(|ip| ip.parse().unwrap()).to_vec();
    service.source_ranges = ranges.iter().map(|range| range.parse().unwrap()).collect();
    service
}

/// The frontends that admit known clients only.
fn closed(agent: &Agent) -> Vec<String> {
    let tables = agent.core.tables();
    let closed = tables.frontends.iter().filter(|(_, row)| row.flags & Frontend::SOURCE_RANGES != 0);
    closed.map(|(addr, _)| addr.to_string()).collect()
}

#[test]
fn p28_affinity_switched_on_and_off_is_one_write_per_frontend() {
    let mut sticky = node_port_service(&["10.96.0.1"], 30080);
    let mut agent = web(sticky.clone());
    sticky.affinity = Some(Duration::from_secs(10_800));
    assert_eq!(
        agent.apply([set_service("web", sticky.clone())]),
        "\
        + frontend node 0.0.0.0:30080/TCP -> service 1 inside 0x2 outside 0x2 affinity 10800s\n\
        + frontend 10.96.0.1:80/TCP -> service 1 inside 0x2 outside 0x2 affinity 10800s\n"
    );
    sticky.affinity = None;
    assert_eq!(
        agent.apply([set_service("web", sticky)]),
        "\
        + frontend node 0.0.0.0:30080/TCP -> service 1 inside 0x2 outside 0x2\n\
        + frontend 10.96.0.1:80/TCP -> service 1 inside 0x2 outside 0x2\n"
    );
}

#[test]
fn p27_a_backend_that_leaves_a_set_loses_its_bit_and_stays_the_same_backend() {
    let mut agent = web(service(&["10.96.0.1"]));
    // The only local endpoint drains: it is still the local set, and no longer of the cluster set.
    assert_eq!(
        agent.apply([set_slice("web", "10.0.0.1 !@10.0.0.2")]),
        "\
        + backend 4.2 10.0.0.2:8080/TCP service 1 generation 1 local terminating in-local-set\n\
        + frontend 10.96.0.1:80/TCP -> service 1 inside 0x1 outside 0x1\n"
    );
    // Another local endpoint takes over the local set.
    let log = agent.apply([set_slice("web", "10.0.0.1 !@10.0.0.2 @10.0.0.3")]);
    assert!(log.contains("+ backend 4.2 10.0.0.2:8080/TCP service 1 generation 1 local terminating\n"), "{log}");
    assert!(log.contains("+ backend 4.3 10.0.0.3:8080/TCP service 1 generation 1 local in-cluster-set in-local-set\n"));
    assert!(!log.contains("backend 4.1"), "{log}");
}

#[test]
fn p27_a_frontend_says_which_set_its_clients_are_remembered_in() {
    let mut sticky = node_port_service(&["10.96.0.1"], 30080);
    sticky.external_policy = TrafficPolicy::Local;
    sticky.affinity = Some(Duration::from_secs(60));
    let tables = web(sticky).core.tables();
    let bits = Frontend::INSIDE_IS_LOCAL | Frontend::OUTSIDE_IS_LOCAL;
    let sets: Vec<_> = tables.frontends.iter().map(|(addr, row)| (addr.port, row.flags & bits)).collect();
    assert_eq!(sets, [(30080, Frontend::OUTSIDE_IS_LOCAL), (0, 0), (80, 0)]);
    for row in tables.backends.values() {
        let in_local_set = row.flags & BackendRow::IN_LOCAL_SET != 0;
        assert_eq!(
            (row.flags & BackendRow::IN_CLUSTER_SET != 0, in_local_set),
            (true, row.addr.port() == 8080 && row.flags & BackendRow::LOCAL != 0)
        );
    }
}

#[test]
fn p33_clients_are_admitted_before_the_frontends_that_check_them() {
    let mut agent = web(balanced(&[]));
    assert_eq!(closed(&agent), [""; 0]);
    let log = agent.apply([set_service("web", balanced(&["203.0.113.9/24", "2001:db8:1::/48"]))]);
    assert_eq!(
        log,
        "\
        + clients of 1 203.0.113.0/24\n\
        + clients of 1 2001:db8:1::/48\n\
        + frontend 198.51.100.1:80/TCP -> service 1 inside 0x2 outside 0x2 known clients only\n\
        + frontend [2001:db8::1]:80/TCP -> service 1 inside 0x0 outside 0x0 known clients only\n"
    );
    // Cluster IPs and node ports admit everyone.
    assert_eq!(closed(&agent), ["198.51.100.1:80/TCP", "[2001:db8::1]:80/TCP"]);
}

#[test]
fn p33_frontends_stop_checking_before_the_clients_go() {
    let mut agent = web(balanced(&["203.0.113.0/24"]));
    assert_eq!(
        agent.apply([set_service("web", balanced(&[]))]),
        "\
        + frontend 198.51.100.1:80/TCP -> service 1 inside 0x2 outside 0x2\n\
        - clients of 1 203.0.113.0/24\n"
    );
}

#[test]
fn p33_a_change_of_clients_touches_no_frontend_and_admits_before_it_refuses() {
    let mut agent = web(balanced(&["203.0.113.0/24", "192.0.2.0/24"]));
    assert_eq!(
        agent.apply([set_service("web", balanced(&["203.0.113.0/25", "192.0.2.0/24"]))]),
        "+ clients of 1 203.0.113.0/25\n- clients of 1 203.0.113.0/24\n"
    );
}

#[test]
fn p02_p33_a_family_without_a_range_admits_everyone() {
    let agent = web(balanced(&["203.0.113.0/24"]));
    assert_eq!(closed(&agent), ["198.51.100.1:80/TCP"]);
    assert!(agent.core.tables().source_ranges.iter().all(|row| row.range.is_ipv4()));
}

#[test]
fn p33_ranges_without_a_load_balancer_are_not_installed() {
    let mut internal = service(&["10.96.0.1"]);
    internal.source_ranges = vec!["203.0.113.0/24".parse().unwrap()];
    assert!(web(internal).core.tables().source_ranges.is_empty());
}

#[test]
fn p33_a_full_map_leaves_the_service_closed() {
    let mut agent = Agent::new();
    agent.maps.refuse = vec!["+ clients of 1 203".to_owned()];
    agent.core.take(set_service("web", balanced(&["203.0.113.0/24"])));
    agent.core.take(set_slice("web", "10.0.0.1"));
    let failed: Vec<_> = agent.round().failed.into_iter().collect();
    assert_eq!(failed, [(unit("web"), "map source_ranges is full".to_owned())]);
    assert!(agent.core.tables().frontends.is_empty());
    agent.maps.refuse.clear();
    agent.core.retry(unit("web"));
    assert!(agent.round().failed.is_empty());
    assert_eq!(closed(&agent), ["198.51.100.1:80/TCP"]);
}

#[test]
fn p32_every_cluster_ip_has_a_row_for_the_ports_it_does_not_have() {
    let mut agent = Agent::new();
    let log = agent.apply([set_service("web", service(&["10.96.0.1", "fd00:96::1"]))]);
    assert!(log.contains("+ frontend 10.96.0.1 other ports -> service 1\n"), "{log}");
    assert!(log.contains("+ frontend fd00:96::1 other ports -> service 1\n"), "{log}");
    let tables = agent.core.tables();
    let rows: Vec<_> = tables.frontends.iter().filter(|(addr, _)| !addr.is_served()).collect();
    assert_eq!(rows.len(), 2);
    assert!(rows.iter().all(|(addr, row)| addr.port == 0 && row.inside.count == 0 && row.outside.count == 0));
    // People count what is served.
    assert_eq!(agent.core.totals().frontends, 2);
}

#[test]
fn p32_the_row_stays_when_the_first_port_changes() {
    let mut agent = Agent::new();
    let mut web = service(&["10.96.0.1"]);
    web.ports[0].name = "http".to_owned();
    agent.apply([set_service("web", web.clone())]);
    let https = ServicePort { name: "https".to_owned(), port: port(443), ..web.ports[0].clone() };
    web.ports.insert(0, https);
    assert_eq!(
        agent.apply([set_service("web", web.clone())]),
        "\
        + name 2 default/web:https\n\
        + frontend 10.96.0.1 other ports -> service 2\n\
        + frontend 10.96.0.1:443/TCP -> service 2 inside 0x0 outside 0x0\n"
    );
    web.ports.remove(0);
    let log = agent.apply([set_service("web", web)]);
    assert!(log.contains("+ frontend 10.96.0.1 other ports -> service 1\n"), "{log}");
    assert!(!log.contains("- frontend 10.96.0.1 other"), "{log}");
}

#[test]
fn p32_of_services_that_share_a_cluster_ip_one_has_the_row_and_none_complains() {
    let mut agent = Agent::new();
    let mut other = service(&["10.96.0.1"]);
    other.ports[0].port = port(443);
    agent.apply([set_service("a", service(&["10.96.0.1"])), set_service("b", other)]);
    assert!(agent.core.conflicts().is_empty());
    let log = agent.apply(remove("a"));
    assert!(log.contains("+ frontend 10.96.0.1 other ports -> service 2\n"), "{log}");
}
