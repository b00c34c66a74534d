//! Connected UDP sockets of the node's own processes when their backend goes.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use dataplane_tests::{
    objects::Endpoint,
    scenario::{POD_PORT, Scenario},
    topology::{IpVersion, Wiring},
    traffic::{Ask, Connection, protocol::Transport},
};

/// How long the agent may take from the manifest to the socket, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(5);

#[test]
fn p50_a_socket_connected_to_a_backend_that_is_gone_ends_and_no_other_does() -> Result<()> {
    let scenario = Scenario::new(Wiring::Routed, &[])?;
    let (cluster, host) = (&scenario.cluster, scenario.cluster.host("a"));
    for version in IpVersion::BOTH {
        let near = scenario.near.cluster_ip(version);
        let backend = (cluster.pod("web-a").ip(version), POD_PORT).into();
        until("the service is served by web-a", || Ok(host.udp(near)?.is_ok_and(|answer| answer.server == "web-a")))?;
        let stale = host.open(&Ask::new(Transport::Udp, near))?;
        let tcp = host.open(&Ask::new(Transport::Tcp, near))?;
        let direct = host.open(&Ask::new(Transport::Udp, backend))?;
        // The same endpoint, as a backend of another service.
        let both = (0..64)
            .map(|_| host.open(&Ask::new(Transport::Udp, scenario.both.cluster_ip(version))))
            .find(|opened| opened.as_ref().map_or(true, |connection| connection.answer().server == "web-a"))
            .context("64 sockets, and none went to web-a")??;

        cluster.put_service(&scenario.near, &Endpoint::pods(cluster, &["web-c"]))?;
        until("the socket to the old backend ends", || Ok(!lives(&stale)?))?;
        for (what, connection) in [("TCP", &tcp), ("direct UDP", &direct), ("UDP of another service", &both)] {
            assert!(lives(connection)?, "{version}: {what} has ended too");
        }
        let fresh = host.open(&Ask::new(Transport::Udp, near))?;
        assert_eq!(fresh.answer().server, "web-c");
        cluster.put_service(&scenario.near, &Endpoint::pods(cluster, &["web-a"]))?;
    }
    Ok(())
}

/// Waits until `reached` says so.
fn until(what: &str, mut reached: impl FnMut() -> Result<bool>) -> Result<()> {
    let begun = Instant::now();
    while !reached()? {
        ensure!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn lives(connection: &Connection<'_>) -> Result<bool> {
    Ok(connection.ping()?.is_ok())
}
