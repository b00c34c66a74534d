//! Frontends that several services claim, maps that are full, operations that fail.

use super::*;

#[test]
fn the_first_name_gets_a_frontend_and_the_next_one_inherits_it() {
    let mut agent = Agent::new();
    agent.apply([set_service("b", service(&["10.96.0.1"])), set_slice("b", "10.0.0.2")]);
    let mut rival = service(&["10.96.0.9"]);
    rival.external_ips = vec!["10.96.0.1".parse().unwrap()];
    let log = agent.apply([set_service("a", rival.clone()), set_slice("a", "10.0.0.1")]);
    // The frontend is written once, and never deleted in between.
    assert!(log.contains("+ frontend 10.96.0.1:80/TCP -> service 2"), "{log}");
    assert!(!log.contains("- frontend"), "{log}");
    let conflicts: Vec<_> = agent.core.conflicts().into_iter().collect();
    assert_eq!(conflicts, [("10.96.0.1:80/TCP".to_owned(), "default/a has it, default/b not".to_owned())]);

    let log = agent.apply(remove("a"));
    assert!(log.contains("+ frontend 10.96.0.1:80/TCP -> service 1"), "{log}");
    assert!(!log.contains("- frontend 10.96.0.1"), "{log}");
    assert!(agent.core.conflicts().is_empty());

    // A later name changes nothing for the first.
    agent.apply([set_service("c", rival), set_slice("c", "10.0.0.3")]);
    assert!(agent.core.tables().frontends.values().any(|frontend| frontend.service == 1));
}

#[test]
fn a_frontend_of_a_failed_service_can_move_to_another() {
    let mut agent = Agent::new();
    agent.apply([set_service("a", service(&["10.96.0.1"])), set_slice("a", "10.0.0.1")]);
    agent.maps.refuse = vec!["+ frontend 10.96.0.2".to_owned()];
    agent.core.take(set_service("a", service(&["10.96.0.2"])));
    assert_eq!(agent.round().failed.keys().collect::<Vec<_>>(), [&unit("a")]);
    agent.maps.refuse.clear();
    // `a` does not claim the address any more, but its row is still there.
    agent.apply([set_service("b", service(&["10.96.0.1"])), set_slice("b", "10.0.0.2")]);
    agent.core.retry(unit("a"));
    agent.round();
    let tables = agent.core.tables();
    let frontends: Vec<_> = tables.frontends.iter().map(|(addr, row)| format!("{addr} {}", row.service)).collect();
    assert_eq!(
        frontends,
        ["10.96.0.1 other ports 2", "10.96.0.1:80/TCP 2", "10.96.0.2 other ports 1", "10.96.0.2:80/TCP 1"]
    );
}

#[test]
fn a_failed_operation_stops_its_own_service_only_and_a_retry_completes_it() {
    for refused in ["+ name 1", "+ backend 4.1", "+ slot 0", "+ frontend 10.96.0.1"] {
        let mut agent = Agent::new();
        agent.maps.refuse = vec![refused.to_owned()];
        for (of, ip, endpoint) in [("a", "10.96.0.1", "10.0.0.1"), ("b", "10.96.0.2", "10.0.0.2")] {
            agent.core.take(set_service(of, service(&[ip])));
            agent.core.take(set_slice(of, endpoint));
        }
        let report = agent.round();
        assert_eq!(report.failed.keys().collect::<Vec<_>>(), [&unit("a")], "{refused}");
        assert_eq!(report.succeeded.iter().collect::<Vec<_>>(), [&unit("b")], "{refused}");
        agent.maps.refuse.clear();
        agent.core.retry(unit("a"));
        assert!(agent.round().failed.is_empty());
        let tables = agent.core.tables();
        let served = tables.frontends.keys().filter(|addr| addr.is_served());
        let addrs: Vec<_> = served.map(ToString::to_string).collect();
        assert_eq!(addrs, ["10.96.0.1:80/TCP", "10.96.0.2:80/TCP"]);
    }
}

#[test]
fn a_full_map_is_named_and_other_services_go_on() {
    let capacities = crate::tables::pools::Capacities { slots: 16, backends4: 4, backends6: 4 };
    let mut agent = Agent::start(MemoryMaps { capacities, ..MemoryMaps::default() });
    agent.sync();
    agent.apply([set_service("a", service(&["10.96.0.1"])), set_slice("a", "10.0.0.1 10.0.0.2")]);
    agent.core.take(set_service("b", service(&["10.96.0.2"])));
    agent.core.take(set_slice("b", "10.0.1.1 10.0.1.2"));
    let report = agent.round();
    assert_eq!(report.failed.into_iter().collect::<Vec<_>>(), [(unit("b"), "map backends4 is full".to_owned())]);
    // `b` took nothing with it, so that `a` can still grow, and `b` follows as soon as there is room.
    agent.apply([set_slice("a", "10.0.0.1 10.0.0.2 10.0.0.3")]);
    agent.apply([set_slice("a", "10.0.0.1")]);
    agent.core.retry(unit("b"));
    assert!(agent.round().failed.is_empty());
    assert_eq!(agent.core.totals().backends, 3);
}
