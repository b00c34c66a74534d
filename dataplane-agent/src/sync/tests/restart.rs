//! A restarted agent takes over what is installed and changes only what differs.

use super::*;

fn objects() -> Vec<Change> {
    let mut local = node_port_service(&["10.96.0.2", "fd00:96::2"], 30080);
    local.external_policy = TrafficPolicy::Local;
    vec![
        set_service("a", service(&["10.96.0.1"])),
        set_slice("a", "10.0.0.1 10.0.0.2 10.0.0.3 10.0.0.4 10.0.0.5"),
        set_service("b", local),
        set_slice("b", "10.0.1.1 @10.0.1.2 !10.0.1.3"),
        Change::EndpointSlice(name("b6"), Some(slice("b", "fd00::1 @fd00::2"))),
        set_service("empty", service(&["10.96.0.3"])),
        addresses(&["192.0.2.1", "2001:db8::1"]),
    ]
}

fn stop(agent: Agent) -> MemoryMaps {
    let mut maps = agent.maps;
    maps.take_log();
    maps
}

#[test]
fn p58_a_restart_with_the_same_objects_writes_nothing() {
    let mut agent = Agent::new();
    agent.apply(objects());
    agent.apply([set_slice("a", "10.0.0.1 10.0.0.3 10.0.0.5 10.0.0.7")]);
    let mut changes = objects();
    changes.push(set_slice("a", "10.0.0.1 10.0.0.3 10.0.0.5 10.0.0.7"));
    let mut restarted = Agent::start(stop(agent));
    changes.into_iter().for_each(|change| restarted.core.take(change));
    restarted.sync();
    assert_eq!(restarted.maps.take_log(), "");
    assert_eq!(restarted.core.totals().services, 3);
}

#[test]
fn p58_nothing_is_planned_before_every_source_has_delivered() {
    let mut agent = Agent::new();
    agent.apply(objects());
    let mut restarted = Agent::start(stop(agent));
    for source in [Source::Services, Source::Nodes, Source::ServiceCidrs, Source::Addresses] {
        restarted.core.take(Change::Synced(source));
    }
    objects().into_iter().for_each(|change| restarted.core.take(change));
    assert!(!restarted.core.has_work());
    assert_eq!(restarted.core.waiting_for().collect::<Vec<_>>(), [Source::EndpointSlices]);
    restarted.core.take(Change::Synced(Source::EndpointSlices));
    assert!(restarted.core.has_work());
}

#[test]
fn what_changed_meanwhile_is_all_that_a_restart_writes() {
    let mut agent = Agent::new();
    agent.apply(objects());
    let mut restarted = Agent::start(stop(agent));
    objects().into_iter().for_each(|change| restarted.core.take(change));
    restarted.core.take(Change::Service(name("empty"), None));
    restarted.core.take(set_slice("a", "10.0.0.1 10.0.0.2 10.0.0.3 10.0.0.4 10.0.0.6"));
    restarted.sync();
    assert_eq!(
        restarted.maps.take_log(),
        "\
        + backend 4.9 10.0.0.6:8080/TCP service 1 generation 1 in-cluster-set\n\
        + slot 4 -> 4.9\n\
        - frontend 10.96.0.3 other ports\n\
        - frontend 10.96.0.3:80/TCP\n\
        - backend 4.5 10.0.0.5:8080/TCP service 1 generation 2\n\
        - name 3\n"
    );
}

#[test]
fn a_crash_after_any_operation_is_repaired_by_the_next_start() {
    let mut first = Agent::new();
    first.apply(objects());
    let installed = stop(first);
    let changed = || {
        let mut changes = objects();
        changes.extend([
            set_slice("a", "10.0.0.2 10.0.0.6 10.0.0.7 10.0.0.8 10.0.0.9 10.0.0.10 10.0.0.11 10.0.0.12 10.0.0.13"),
            set_slice("b", "@10.0.1.2"),
            Change::Service(name("empty"), None),
            set_service("new", service(&["10.96.0.3"])),
            set_slice("new", "10.0.3.1"),
        ]);
        changes
    };
    let mut whole = Agent::start(installed.clone());
    changed().into_iter().for_each(|change| whole.core.take(change));
    whole.sync();
    let operations = std::mem::take(&mut whole.maps.log);
    assert!(operations.len() > 20);
    for crash in 0..operations.len() {
        let mut maps = installed.clone();
        let mut half = crate::plan::Plan::default();
        half.steps.extend(operations[..crash].iter().map(|op| crate::plan::Step { group: 0, op: op.clone() }));
        assert!(maps::apply(&half, &mut maps).failed.is_empty());
        let mut restarted = Agent::start(maps);
        changed().into_iter().for_each(|change| restarted.core.take(change));
        assert!(restarted.sync().failed.is_empty());
        let meaning = |agent: &Agent| random::meaning(&agent.core.tables());
        assert_eq!(meaning(&restarted), meaning(&whole), "after {crash} operations");
    }
}

#[test]
fn rows_that_no_service_explains_are_removed() {
    let mut agent = Agent::new();
    agent.apply(objects());
    let mut maps = stop(agent);
    maps.rows.service_names.remove(&1);
    let mut restarted = Agent::start(maps);
    objects().into_iter().for_each(|change| restarted.core.take(change));
    restarted.sync();
    let tables = restarted.core.tables();
    assert!(tables.backends.values().all(|row| row.service != 1));
    assert!(tables.frontends.values().all(|row| row.service != 1));
    // The frontend moved to the service's new id without ever being away.
    assert!(!restarted.maps.take_log().contains("- frontend"));
}
