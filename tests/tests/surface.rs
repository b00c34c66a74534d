//! What an agent shows as kube-proxy does: health, metrics, health checks of services; and the traces of kube-proxy that it
//! removes.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use dataplane_agent::maps::pinned;
use dataplane_common::{BePort, Flow, FlowKey, FlowState, Way, map};
use dataplane_tests::{
    agent::AgentOptions,
    apiserver::{Bind, TestServer},
    cluster::{Cluster, Node},
    http::{self, Answer},
    netns,
    objects::{self, Endpoint, Service},
    topology::{ROUTER, Topology, Wiring},
};
use serde_json::json;

const HEALTH: u16 = 10256;
const METRICS: u16 = 10249;
const CHECK: u16 = 32_100;

/// A node `a` with two pods and a node `b` without an agent, and the agent of `a` started with `arguments`.
fn cluster(arguments: &[&str]) -> Result<Cluster> {
    let mut cluster = Cluster::new(Topology::two_nodes(Wiring::Routed, &["web-a", "web-b"], &["web-c"]))?;
    cluster.put_nodes()?;
    let manifests = cluster.manifests.clone();
    cluster.node_mut("a").start_agent(&AgentOptions::with(arguments), &manifests)?;
    Ok(cluster)
}

/// Asks `address`, from the namespace of `node` itself.
fn get(node: &Node, address: impl Into<SocketAddr>, path: &str) -> Result<Answer> {
    http::get(node.host.netns(), address.into(), path)
}

/// Waits until `what` holds for the answer.
#[track_caller]
fn eventually(ask: impl Fn() -> Result<Answer>, what: impl Fn(&Answer) -> bool) -> Result<Answer> {
    let begun = Instant::now();
    loop {
        let answer = ask();
        if answer.as_ref().is_ok_and(&what) || begun.elapsed() > Duration::from_secs(10) {
            let answer = answer?;
            ensure!(what(&answer), "at last: {answer:?}");
            return Ok(answer);
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// A LoadBalancer service with externalTrafficPolicy Local and a healthCheckNodePort.
fn balanced(name: &str, number: u8, port: u16) -> Service {
    Service::new(name, number).node_port(80, 8080, 30_000 + u16::from(number)).spec(json!({
        "type": "LoadBalancer",
        "externalTrafficPolicy": "Local",
        "healthCheckNodePort": port,
    }))
}

#[test]
fn p70_healthz_says_what_kube_proxy_says_and_follows_the_node() -> Result<()> {
    let cluster = cluster(&[])?;
    let node = cluster.node("a");
    let ask = |path: &'static str| move |address: SocketAddr| get(node, address, path);
    for address in [(Ipv4Addr::LOCALHOST, HEALTH).into(), (Ipv6Addr::LOCALHOST, HEALTH).into()] {
        let answer = eventually(|| ask("/healthz")(address), |answer| answer.status == 200)?;
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        let body = answer.json()?;
        assert_eq!((&body["healthy"], &body["nodeEligible"]), (&json!(true), &json!(true)));
        for time in [&body["lastUpdated"], &body["currentTime"], &body["status"]["IPv6"]["lastUpdated"]] {
            assert!(time.as_str().is_some_and(|time| time.starts_with("20") && time.ends_with('Z')), "{body}");
        }
        assert_eq!(body["status"]["IPv4"]["healthy"], json!(true));
    }
    // From outside, as a load balancer asks.
    let address = node.address(dataplane_tests::topology::IpVersion::V4, HEALTH);
    assert_eq!(http::get(cluster.external.netns(), address, "/healthz")?.status, 200);

    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, HEALTH));
    let mut nodes = objects::nodes(&cluster);
    nodes[0]["spec"]["taints"] = json!([{ "key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule" }]);
    cluster.put_manifest("nodes", &nodes)?;
    let answer = eventually(|| get(node, address, "/healthz"), |answer| answer.status == 503)?;
    assert_eq!((&answer.json()?["healthy"], &answer.json()?["nodeEligible"]), (&json!(true), &json!(false)));
    let answer = get(node, address, "/livez")?;
    assert!(answer.status == 200 && answer.json()?.get("nodeEligible").is_none(), "{answer:?}");
    cluster.put_nodes()?;
    eventually(|| get(node, address, "/healthz"), |answer| answer.status == 200)?;
    cluster.put_manifest("nodes", &[])?;
    eventually(|| get(node, address, "/healthz"), |answer| answer.status == 503)?;
    Ok(())
}

#[test]
fn p71_livez_does_not_care_for_the_node() -> Result<()> {
    let cluster = cluster(&["--healthz-bind-address", "127.0.0.1:10300"])?;
    let node = cluster.node("a");
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 10300));
    cluster.put_manifest("nodes", &[])?;
    eventually(|| get(node, address, "/healthz"), |answer| answer.status == 503)?;
    let answer = get(node, address, "/livez")?;
    assert!(answer.status == 200 && answer.json()?["healthy"] == json!(true), "{answer:?}");
    Ok(())
}

#[test]
fn p72_a_health_check_port_follows_its_service_and_p73_draining_endpoints_do_not_count() -> Result<()> {
    let cluster = cluster(&[])?;
    let node = cluster.node("a");
    let service = balanced("web", 21, CHECK);
    let pods = Endpoint::pods(&cluster, &["web-a", "web-b", "web-c"]);
    cluster.put_service(&service, &pods)?;
    for address in [SocketAddr::from((Ipv4Addr::LOCALHOST, CHECK)), (Ipv6Addr::LOCALHOST, CHECK).into()] {
        let answer = eventually(|| get(node, address, "/any/path"), |answer| answer.status == 200)?;
        let expected = json!({
            "service": { "namespace": "default", "name": "web" },
            "localEndpoints": 2,
            "serviceProxyHealthy": true,
        });
        assert_eq!(answer.json()?, expected);
        assert_eq!(answer.header("x-load-balancing-endpoint-weight"), Some("2"));
    }
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, CHECK));
    let has =
        |count: &'static str| move |answer: &Answer| answer.header("x-load-balancing-endpoint-weight") == Some(count);
    // Ready on another node, draining on this one.
    let [a, b, c] = pods.as_slice() else { unreachable!() };
    cluster.put_service(&service, &[a.clone().draining(), b.clone(), c.clone()])?;
    assert_eq!(eventually(|| get(node, address, "/"), has("1"))?.status, 200);
    cluster.put_service(&service, &[a.clone().draining(), b.clone().draining(), c.clone()])?;
    assert_eq!(eventually(|| get(node, address, "/"), has("0"))?.status, 503);
    // The port moves, and goes with the service.
    let moved = balanced("web", 21, CHECK + 1);
    cluster.put_service(&moved, &pods)?;
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, CHECK + 1));
    eventually(|| get(node, to, "/"), has("2"))?;
    assert!(get(node, address, "/").is_err());
    cluster.delete_service(&moved)?;
    let begun = Instant::now();
    while get(node, to, "/").is_ok() {
        ensure!(begun.elapsed() < Duration::from_secs(10), "the port of a deleted service is still open");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

#[test]
fn p72_a_port_that_is_taken_is_reported_and_had_as_soon_as_it_is_free() -> Result<()> {
    let cluster = cluster(&[])?;
    let node = cluster.node("a");
    let taken = node.host.netns().run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, CHECK)))??;
    cluster.put_service(&balanced("web", 21, CHECK), &Endpoint::pods(&cluster, &["web-a"]))?;
    let log = &node.agent.as_ref().context("an agent")?.log;
    let begun = Instant::now();
    while !fs::read_to_string(log)?.contains("FailedToStartServiceHealthcheck") {
        ensure!(begun.elapsed() < Duration::from_secs(10), "nothing is said about the port");
        thread::sleep(Duration::from_millis(20));
    }
    drop(taken);
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, CHECK));
    eventually(|| get(node, address, "/"), |answer| answer.status == 200)?;
    Ok(())
}

#[test]
fn p72_a_port_that_cannot_be_had_is_an_event_and_p75_the_way_of_a_change_is_timed() -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let mut cluster = Cluster::new(Topology::two_nodes(Wiring::Routed, &["web-a"], &[]))?;
    let fabric = cluster.fabric.file()?;
    let _entered = runtime.enter();
    let server =
        TestServer::start_with(Bind::new(move || netns::run_in(&fabric, || TcpListener::bind((ROUTER.v4, 6443)))?))?;
    for node in objects::nodes(&cluster) {
        server.apply(&node)?;
    }
    let kubeconfig = cluster.directory().join("kubeconfig");
    fs::write(&kubeconfig, server.kubeconfig())?;
    let manifests = cluster.manifests.clone();
    let options =
        AgentOptions { kubeconfig: Some(kubeconfig), ..AgentOptions::with(&["--map-size", "conntrack4=4096"]) };
    cluster.node_mut("a").start_agent(&options, &manifests)?;
    let node = cluster.node("a");

    let _taken = node.host.netns().run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, CHECK)))??;
    for mut object in balanced("web", 21, CHECK).objects(&Endpoint::pods(&cluster, &["web-a"])) {
        if object["kind"] == "EndpointSlice" {
            let now = jiff::Timestamp::now().to_string();
            object["metadata"]["annotations"] = json!({ "endpoints.kubernetes.io/last-change-trigger-time": now });
        }
        server.apply(&object)?;
    }
    let events = || get(node, SocketAddr::from((ROUTER.v4, 6443)), "/apis/events.k8s.io/v1/events");
    let both = ["FailedToStartServiceHealthcheck", "Starting"];
    let answer = eventually(events, |answer| both.iter().all(|reason| answer.body.contains(reason)))?;
    let list = answer.json()?;
    let event = |reason: &str| {
        let items = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
        items.iter().find(|event| event["reason"] == reason).cloned().context("an event")
    };
    let failed = event("FailedToStartServiceHealthcheck")?;
    assert_eq!((&failed["type"], &failed["action"]), (&json!("Warning"), &json!("Listen")));
    assert_eq!(failed["metadata"]["namespace"], "default");
    assert_eq!((&failed["regarding"]["kind"], &failed["regarding"]["name"]), (&json!("Service"), &json!("web")));
    let note = format!("node a failed to start healthcheck \"default/web\" on port {CHECK}: ");
    assert!(failed["note"].as_str().is_some_and(|text| text.starts_with(&note)), "{failed}");
    let starting = event("Starting")?;
    assert_eq!((&starting["type"], &starting["regarding"]["kind"]), (&json!("Normal"), &json!("Node")));

    let metrics = SocketAddr::from((Ipv4Addr::LOCALHOST, METRICS));
    let timed = "kubeproxy_network_programming_duration_seconds_count 2";
    eventually(|| get(node, metrics, "/metrics"), |answer| answer.body.contains(timed))?;

    // A map that fills up.
    let capacity = "sluice_map_capacity{map=\"conntrack4\"} 4096";
    eventually(|| get(node, metrics, "/metrics"), |answer| answer.body.contains(capacity))?;
    fill_conntrack(node, 4000)?;
    // The next sweep is made at once when the backend of a datagram service goes.
    for slice in balanced("web", 21, CHECK).objects(&[]).into_iter().skip(1) {
        server.apply(&slice)?;
    }
    let answer = eventually(events, |answer| answer.body.contains("MapNearlyFull"))?;
    let list = answer.json()?;
    let full = list["items"].as_array().into_iter().flatten().find(|event| event["reason"] == "MapNearlyFull");
    let full = full.context("an event")?;
    assert_eq!((&full["type"], &full["regarding"]["kind"]), (&json!("Warning"), &json!("Node")));
    assert!(full["note"].as_str().is_some_and(|note| note.starts_with("conntrack4 has ")), "{full}");
    let entries = |answer: &Answer| -> Option<u32> {
        let mut lines = answer.body.lines();
        lines.find_map(|line| line.strip_prefix("sluice_map_entries{map=\"conntrack4\"} ")?.parse().ok())
    };
    eventually(|| get(node, metrics, "/metrics"), |answer| entries(answer).is_some_and(|entries| entries > 3500))?;
    Ok(())
}

/// Writes `count` connections into the node's map, as packets would.
fn fill_conntrack(node: &Node, count: u32) -> Result<()> {
    let pin = pinned::directory(node.bpffs.path()).join(map::CONNTRACK4.name);
    let pinned = Map::LruHashMap(MapData::from_pin(pin)?);
    let mut flows: HashMap<_, FlowKey<[u32; 1]>, Flow<[u32; 1]>> = HashMap::try_from(pinned)?;
    let port = BePort::new(80);
    for client in 0..count {
        let key = FlowKey::new([client], [1], port, port, 6);
        let flow = Flow {
            packets: 1,
            bytes: 40,
            src: [client],
            dst: [2],
            src_port: port,
            dst_port: port,
            backend: 1,
            generation: 1,
            service: 1,
            deadline: u32::MAX,
            direction: 0,
            side: 0,
            next: 0,
            state: FlowState::REPLIED,
            way: Way::UNKNOWN,
        };
        flows.insert(key, flow, 0)?;
    }
    Ok(())
}

#[test]
fn p59_an_agent_goes_by_kube_proxys_configuration_file() -> Result<()> {
    let mut cluster = Cluster::new(Topology::two_nodes(Wiring::Routed, &["web-a"], &[]))?;
    cluster.put_nodes()?;
    let config = cluster.directory().join("config.conf");
    let text = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nhostnameOverride: elsewhere\n\
                healthzBindAddress: 127.0.0.1:10300\nmetricsBindAddress: 127.0.0.1:10301\nmode: iptables\n\
                iptables: {masqueradeAll: true, localhostNodePorts: true}\noomScoreAdj: -999\n";
    fs::write(&config, text)?;
    let manifests = cluster.manifests.clone();
    let config = config.to_str().context("a path")?;
    // The bed gives the node's name as a flag, which beats the file.
    let options = AgentOptions::with(&["--config", config, "--metrics-bind-address", "127.0.0.1:10302"]);
    cluster.node_mut("a").start_agent(&options, &manifests)?;
    let node = cluster.node("a");
    eventually(|| get(node, (Ipv4Addr::LOCALHOST, 10300), "/healthz"), |answer| answer.status == 200)?;
    eventually(|| get(node, (Ipv4Addr::LOCALHOST, 10302), "/proxyMode"), |answer| answer.status == 200)?;
    assert!(get(node, (Ipv4Addr::LOCALHOST, 10301), "/metrics").is_err());
    let log = fs::read_to_string(&node.agent.as_ref().context("an agent")?.log)?;
    let warnings: Vec<_> = log.lines().filter(|line| line.contains("without a meaning here")).collect();
    assert_eq!(warnings.len(), 1, "{log}");
    assert!(warnings[0].ends_with(": mode, iptables.localhostNodePorts, oomScoreAdj"), "{}", warnings[0]);

    // A broken file ends the start, with its place.
    fs::write(config, "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nclusterCIDR: [\n")?;
    let error = node.host.netns().output(
        dataplane_tests::binaries::sluice()?.to_str().context("a path")?,
        &["agent", "--config", config, "--source", "file", "--file-source", "/"],
    );
    let error = format!("{:#}", error.unwrap_err());
    assert!(error.contains("config.conf:3:14: clusterCIDR: "), "{error}");
    Ok(())
}

#[test]
fn p38_health_checks_listen_where_node_ports_are_taken() -> Result<()> {
    let node_port_addresses = "primary";
    let cluster = cluster(&["--nodeport-addresses", node_port_addresses])?;
    let node = cluster.node("a");
    cluster.put_service(&balanced("web", 21, CHECK), &Endpoint::pods(&cluster, &["web-a"]))?;
    for version in dataplane_tests::topology::IpVersion::BOTH {
        eventually(|| get(node, node.address(version, CHECK), "/"), |answer| answer.status == 200)?;
        assert!(get(node, (version.loopback(), CHECK), "/").is_err(), "{version}");
    }
    Ok(())
}

#[test]
fn p75_metrics_have_kube_proxys_names_and_p76_proxy_mode_is_told() -> Result<()> {
    let cluster = cluster(&[])?;
    let node = cluster.node("a");
    let service = Service::new("web", 21).port(80, 8080).spec(json!({ "internalTrafficPolicy": "Local" }));
    cluster.put_service(&service, &Endpoint::pods(&cluster, &["web-c"]))?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, METRICS));
    let no_local = "kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"internal\"} 2";
    get(node, (Ipv4Addr::LOCALHOST, HEALTH), "/healthz")?;
    let answer = eventually(|| get(node, address, "/metrics"), |answer| answer.body.contains(no_local))?;
    assert!(answer.header("content-type").is_some_and(|value| value.starts_with("text/plain; version=0.0.4")));
    let value = |name: &str| -> f64 {
        let line = answer.body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in\n{}", answer.body)).parse().unwrap()
    };
    assert!(value("kubeproxy_sync_proxy_rules_duration_seconds_count") >= 1.0);
    assert!(value("kubeproxy_sync_proxy_rules_last_timestamp_seconds") > 1e9);
    assert!(value("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds") > 1e9);
    assert!(value("kubeproxy_sync_proxy_rules_service_changes_total") >= 1.0);
    assert!(value("kubeproxy_sync_proxy_rules_endpoint_changes_total") >= 2.0);
    for pending in ["service", "endpoint"] {
        assert_eq!(value(&format!("kubeproxy_sync_proxy_rules_{pending}_changes_pending")), 0.0);
    }
    assert!(value("kubeproxy_proxy_healthz_total{code=\"200\"}") >= 1.0);
    assert_eq!(value("sluice_services"), 1.0);
    assert_eq!(value("sluice_sync_errors"), 0.0);
    assert_eq!(value("sluice_dropped_packets_total{reason=\"no_route\"}"), 0.0);
    assert!(value("sluice_map_operations_total{result=\"done\"}") > 1.0);
    let mode = get(node, address, "/proxyMode")?;
    assert_eq!((mode.status, &*mode.body), (200, "ebpf"));
    assert_eq!(get(node, address, "/healthz")?.body, "ok");
    Ok(())
}
