//! How many and which operations a change costs.

use dataplane_common::map::local_addr;

use super::*;

/// The service `web`, then `others` services with three endpoints each.
fn cluster(others: u16) -> Agent {
    let mut agent = Agent::new();
    agent.apply([
        set_service("web", node_port_service(&["10.96.0.1"], 30080)),
        set_slice("web", "10.0.0.1 10.0.0.2 @10.0.0.3"),
    ]);
    agent.apply((0..others).flat_map(|index| {
        let [high, low] = index.to_be_bytes();
        let of = format!("svc{index}");
        let endpoints = format!("10.1.{high}.{low} 10.2.{high}.{low} 10.3.{high}.{low}");
        [set_service(&of, service(&[&format!("10.97.{high}.{low}")])), set_slice(&of, &endpoints)]
    }));
    agent
}

/// The operations of `change` in a cluster of 1000 services.
#[track_caller]
fn check(change: Change, expected: &str) {
    let log = cluster(999).apply([change]);
    let expected: String = expected.lines().skip(1).map(|line| format!("{}\n", line.trim())).collect();
    assert_eq!(log.trim(), expected.trim());
    assert!(log.lines().count() <= 6);
}

#[test]
fn p55_an_added_endpoint_is_a_backend_a_slot_and_the_frontends() {
    check(
        set_slice("web", "10.0.0.1 10.0.0.2 @10.0.0.3 10.0.0.4"),
        "
        + backend 4.3001 10.0.0.4:8080/TCP service 1 generation 1 in-cluster-set
        + slot 3 -> 4.3001
        + frontend node 0.0.0.0:30080/TCP -> service 1 inside 0x4 outside 0x4
        + frontend 10.96.0.1:80/TCP -> service 1 inside 0x4 outside 0x4
        ",
    );
}

#[test]
fn p55_a_removed_endpoint_leaves_its_slot_to_the_last_one() {
    check(
        set_slice("web", "10.0.0.2 @10.0.0.3"),
        "
        + slot 0 -> 4.3
        + frontend node 0.0.0.0:30080/TCP -> service 1 inside 0x2 outside 0x2
        + frontend 10.96.0.1:80/TCP -> service 1 inside 0x2 outside 0x2
        - backend 4.1 10.0.0.1:8080/TCP service 1 generation 2
        ",
    );
}

#[test]
fn p55_a_replaced_endpoint_is_one_slot() {
    check(
        set_slice("web", "10.0.0.1 10.0.0.9 @10.0.0.3"),
        "
        + backend 4.3001 10.0.0.9:8080/TCP service 1 generation 1 in-cluster-set
        + slot 1 -> 4.3001
        - backend 4.2 10.0.0.2:8080/TCP service 1 generation 2
        ",
    );
}

#[test]
fn p55_an_endpoint_that_drains_leaves_the_slots_and_keeps_its_id() {
    check(
        set_slice("web", "10.0.0.1 10.0.0.2 !@10.0.0.3"),
        "
        + backend 4.3 10.0.0.3:8080/TCP service 1 generation 1 local terminating in-local-set
        + frontend node 0.0.0.0:30080/TCP -> service 1 inside 0x2 outside 0x2
        + frontend 10.96.0.1:80/TCP -> service 1 inside 0x2 outside 0x2
        ",
    );
}

#[test]
fn p55_a_new_node_address_is_one_operation() {
    let mut agent = cluster(10);
    agent.apply([addresses(&["192.0.2.1"])]);
    assert_eq!(agent.apply([addresses(&["192.0.2.1", "2001:db8::1"])]), "+ local 2001:db8::1 node-port\n");
    assert_eq!(agent.apply([addresses(&["2001:db8::1"])]), "- local 192.0.2.1\n");
    let tables = agent.core.tables();
    assert_eq!(tables.local_addrs.into_values().collect::<Vec<_>>(), [local_addr::NODE_PORT]);
}

#[test]
fn p55_a_burst_costs_what_its_last_state_costs() {
    let mut agent = cluster(10);
    let mut burst: Vec<_> =
        (4..200).map(|host| set_slice("web", &format!("10.0.0.1 10.0.0.2 10.9.0.{host}"))).collect();
    burst.push(set_slice("web", "10.0.0.1 10.0.0.2 @10.0.0.3"));
    assert_eq!(agent.apply(burst), "");
}

#[test]
fn a_range_that_is_full_moves_before_anything_counts_the_new_one() {
    let mut agent = Agent::new();
    agent.apply([set_service("web", service(&["10.96.0.1"])), set_slice("web", "10.0.0.1 10.0.0.2 10.0.0.3 10.0.0.4")]);
    // Takes the slots behind, so that the range cannot grow where it is.
    agent.apply([set_service("api", service(&["10.96.0.2"])), set_slice("api", "10.0.1.1")]);
    let log = agent.apply([set_slice("web", "10.0.0.1 10.0.0.2 10.0.0.3 10.0.0.4 10.0.0.5")]);
    let expected = "\
        + backend 4.6 10.0.0.5:8080/TCP service 1 generation 1 in-cluster-set\n\
        + slot 8 -> 4.1\n+ slot 9 -> 4.2\n+ slot 10 -> 4.3\n+ slot 11 -> 4.4\n+ slot 12 -> 4.6\n\
        + frontend 10.96.0.1:80/TCP -> service 1 inside 8x5 outside 8x5\n";
    assert_eq!(log, expected);
    // The old run is free for the next one.
    let log = agent.apply([set_service("new", service(&["10.96.0.3"])), set_slice("new", "10.0.2.1")]);
    assert!(log.contains("+ slot 0 -> 4.7"), "{log}");
}

#[test]
fn a_deleted_service_leaves_nothing() {
    let mut agent = Agent::new();
    let before = agent.core.tables();
    agent.apply([set_service("web", node_port_service(&["10.96.0.1", "fd00:96::1"], 30080))]);
    agent.apply([set_slice("web", "10.0.0.1")]);
    assert_eq!(
        agent.apply(remove("web")),
        "\
        - frontend node 0.0.0.0:30080/TCP\n\
        - frontend 10.96.0.1 other ports\n\
        - frontend 10.96.0.1:80/TCP\n\
        - frontend node [::]:30080/TCP\n\
        - frontend fd00:96::1 other ports\n\
        - frontend [fd00:96::1]:80/TCP\n\
        - backend 4.1 10.0.0.1:8080/TCP service 1 generation 2\n\
        - name 1\n"
    );
    assert_eq!(agent.core.tables(), before);
    assert_eq!(agent.core.totals(), crate::sync::installed::Totals::default());
}

#[test]
fn p50_a_backend_that_returns_has_another_generation() {
    let mut agent = Agent::new();
    agent.apply([set_service("web", service(&["10.96.0.1"])), set_slice("web", "10.0.0.1")]);
    agent.apply([set_slice("web", "")]);
    let log = agent.apply([set_slice("web", "10.0.0.1")]);
    assert!(log.contains("+ backend 4.1 10.0.0.1:8080/TCP service 1 generation 3"), "{log}");
}

#[test]
fn p31_local_policy_without_a_local_endpoint_drops_and_without_any_rejects() {
    let mut agent = Agent::new();
    let mut web = node_port_service(&["10.96.0.1"], 30080);
    web.external_policy = TrafficPolicy::Local;
    web.internal_policy = TrafficPolicy::Local;
    let log = agent.apply([set_service("web", web), set_slice("web", "10.0.0.1")]);
    assert!(log.contains("+ frontend 10.96.0.1:80/TCP -> service 1 inside 0x0 or drop outside 0x0 or drop"), "{log}");
    assert!(log.contains("node 0.0.0.0:30080/TCP -> service 1 inside 0x1 outside 0x0 or drop"), "{log}");
    let log = agent.apply([set_slice("web", "")]);
    assert!(log.contains("+ frontend 10.96.0.1:80/TCP -> service 1 inside 0x0 outside 0x0\n"), "{log}");
    assert!(log.contains("node 0.0.0.0:30080/TCP -> service 1 inside 0x0 outside 0x0\n"), "{log}");
}

#[test]
fn p34_external_policy_local_keeps_the_cluster_set_for_clients_inside() {
    let mut agent = Agent::new();
    let mut web = node_port_service(&["10.96.0.1"], 30080);
    agent.apply([set_service("web", web.clone()), set_slice("web", "10.0.0.1 @10.0.0.2")]);
    web.external_policy = TrafficPolicy::Local;
    // Only the frontend with the other policy changes, and only its own set is new.
    assert_eq!(
        agent.apply([set_service("web", web)]),
        "+ slot 4 -> 4.2\n+ frontend node 0.0.0.0:30080/TCP -> service 1 inside 0x2 outside 4x1\n"
    );
    // Equal sets share their slots.
    assert_eq!(
        agent.apply([set_slice("web", "@10.0.0.2")]),
        "\
        + slot 0 -> 4.2\n\
        + frontend node 0.0.0.0:30080/TCP -> service 1 inside 0x1 outside 0x1\n\
        + frontend 10.96.0.1:80/TCP -> service 1 inside 0x1 outside 0x1\n\
        - backend 4.1 10.0.0.1:8080/TCP service 1 generation 2\n"
    );
}

#[test]
fn a_service_that_stops_being_a_node_port_loses_only_that_frontend() {
    let mut agent = Agent::new();
    agent.apply([set_service("web", node_port_service(&["10.96.0.1"], 30080)), set_slice("web", "10.0.0.1")]);
    assert_eq!(agent.apply([set_service("web", service(&["10.96.0.1"]))]), "- frontend node 0.0.0.0:30080/TCP\n");
    let mut balanced = service(&["10.96.0.1"]);
    balanced.load_balancer_ips = vec!["198.51.100.1".parse().unwrap()];
    balanced.external_ips = vec!["203.0.113.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
    assert_eq!(
        agent.apply([set_service("web", balanced)]),
        "\
        + frontend 198.51.100.1:80/TCP -> service 1 inside 0x1 outside 0x1\n\
        + frontend 203.0.113.1:80/TCP -> service 1 inside 0x1 outside 0x1\n"
    );
}

#[test]
fn p08_a_port_that_changes_its_protocol_changes_its_backends() {
    let mut agent = Agent::new();
    let mut web = service(&["10.96.0.1"]);
    let mut endpoints = slice("web", "10.0.0.1");
    agent.apply([set_service("web", web.clone()), set_slice("web", "10.0.0.1")]);
    web.ports[0].protocol = Protocol::Udp;
    endpoints.ports[0].protocol = Protocol::Udp;
    let changes = [set_service("web", web), Change::EndpointSlice(name("web-slice"), Some(endpoints))];
    let log = agent.apply(changes);
    assert!(log.contains("+ backend 4.2 10.0.0.1:8080/UDP service 1 generation 1"), "{log}");
    assert!(log.contains("+ frontend 10.96.0.1:80/UDP"), "{log}");
    assert!(log.contains("- frontend 10.96.0.1:80/TCP"), "{log}");
    assert!(log.contains("- backend 4.1 10.0.0.1:8080/TCP"), "{log}");
}

#[test]
fn p07_an_address_that_moves_between_slices_costs_nothing() {
    let mut agent = Agent::new();
    agent.apply([set_service("web", service(&["10.96.0.1"])), set_slice("web", "10.0.0.1 10.0.0.2")]);
    let other = |endpoints| Change::EndpointSlice(name("other"), Some(slice("web", endpoints)));
    assert_eq!(agent.apply([other("10.0.0.2")]), "");
    assert_eq!(agent.apply([set_slice("web", "10.0.0.1")]), "");
}

#[test]
fn a_large_change_is_done_in_parts_and_no_frontend_that_moves_within_it_is_missing_meanwhile() {
    let mut agent = Agent::new();
    agent.apply([set_service("a", service(&["10.96.0.1"])), set_slice("a", "10.0.0.1")]);
    let crowd = (0..1500_u32).map(|number| {
        let ip = std::net::Ipv4Addr::from_bits(u32::from_be_bytes([10, 97, 0, 0]) + number).to_string();
        set_service(&format!("b{number:04}"), service(&[&ip]))
    });
    let moves = [set_service("a", service(&["10.96.0.2"])), set_service("z", service(&["10.96.0.1"]))];
    crowd.chain(moves).for_each(|change| agent.core.take(change));
    let mut rounds = 0;
    while agent.core.has_work() {
        assert_eq!(agent.part().failed.into_iter().collect::<Vec<_>>(), []);
        rounds += 1;
    }
    assert_eq!(rounds, 3);
    let log = agent.maps.take_log();
    assert!(!log.contains("- frontend 10.96.0.1"), "{log}");
    let tables = agent.core.tables();
    let row = tables.frontends.iter().find(|(addr, _)| addr.to_string() == "10.96.0.1:80/TCP");
    assert_eq!(tables.service_names[&row.unwrap().1.service], "default/z");
}
