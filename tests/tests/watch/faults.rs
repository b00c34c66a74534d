//! What the sources make of an API server's faults.

use std::time::Duration;

use anyhow::{Result, ensure};
use axum::http::StatusCode;
use dataplane_agent::model::{Change, ObjectName};
use dataplane_tests::apiserver::{ApiServer, Request, Resource, TestServer};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::observer::{NODE, Observer};

fn service(name: &str, number: u8) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"clusterIP": format!("10.96.0.{number}"), "ports": [{"port": 80}]},
    })
}

/// A server with the Services `a` and `b`, and an observer that has heard of both.
async fn start() -> Result<(TestServer, Observer)> {
    let server = TestServer::start().await?;
    server.apply(&service("a", 1))?;
    server.apply(&service("b", 2))?;
    let mut observer = Observer::of_server(server.config())?;
    observer.until_synced().await?;
    wait_for("four watches", || server.open_watches() == 4).await?;
    observer.take_heard();
    Ok((server, observer))
}

async fn wait_for(what: &str, holds: impl Fn() -> bool) -> Result<()> {
    let begun = Instant::now();
    while !holds() {
        ensure!(begun.elapsed() < Duration::from_secs(60), "waited in vain for {what}");
        sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

fn watches(server: &TestServer, plural: &str) -> Vec<Request> {
    server.requests().into_iter().filter(|request| request.is_watch() && request.path.ends_with(plural)).collect()
}

/// What was heard of Services, as `+name` and `-name`.
fn heard(observer: &mut Observer) -> Vec<String> {
    let heard = observer.take_heard().into_iter().map(|change| match change {
        Change::Service(name, Some(_)) => format!("+{}", name.name),
        Change::Service(name, None) => format!("-{}", name.name),
        other => format!("{other:?}"),
    });
    heard.collect()
}

#[tokio::test]
async fn p10_a_server_without_service_cidrs_is_complete_without_them() -> Result<()> {
    let server = TestServer::start().await?;
    server.apply(&service("a", 1))?;
    server.without(Resource::ServiceCidrs);
    let mut observer = Observer::of_server(server.config())?;
    observer.until_synced().await?;
    assert_eq!(observer.services(), ["a"]);
    assert_eq!(observer.log.lines_with("WARN"), [""; 0]);
    observer.ended().await
}

#[tokio::test]
async fn p10_service_cidrs_come_and_go() -> Result<()> {
    let (server, mut observer) = start().await?;
    let object = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": "more"},
        "spec": {"cidrs": ["10.100.0.0/16", "fd00:100::/112"]},
    });
    server.apply(&object)?;
    observer.until("the ranges are known", |state| state.service_cidrs.len() == 1).await?;
    assert_eq!(observer.state.service_cidrs["more"], ["10.100.0.0/16".parse()?, "fd00:100::/112".parse()?]);
    server.delete(&object)?;
    observer.until("the ranges are gone", |state| state.service_cidrs.is_empty()).await?;
    observer.ended().await
}

#[tokio::test]
async fn only_what_is_needed_is_asked_for() -> Result<()> {
    let (server, observer) = start().await?;
    let requests = server.requests();
    for (path, labels, fields) in [
        ("/api/v1/services", "!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name", ""),
        (
            "/apis/discovery.k8s.io/v1/endpointslices",
            "!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name",
            "",
        ),
        ("/api/v1/nodes", "", "metadata.name=node-a"),
        ("/apis/networking.k8s.io/v1/servicecidrs", "", ""),
    ] {
        let requests: Vec<_> = requests.iter().filter(|request| request.path == path).collect();
        assert_eq!(requests.len(), 2, "one list and one watch: {requests:?}");
        assert!(requests[1].is_watch() && requests[1].parameter("allowWatchBookmarks") == "true", "{requests:?}");
        for request in requests {
            assert_eq!((request.parameter("labelSelector"), request.parameter("fieldSelector")), (labels, fields));
        }
    }
    assert_eq!(requests.len(), 8, "and nothing else: {requests:?}");
    observer.ended().await
}

#[tokio::test]
async fn a_long_list_comes_in_pages() -> Result<()> {
    let server = TestServer::start().await?;
    for i in 0..1100 {
        let mut service = service(&format!("s{i:04}"), 1);
        service["spec"]["clusterIP"] = json!(format!("10.97.{}.{}", i / 250, i % 250 + 1));
        server.apply(&service)?;
    }
    let mut observer = Observer::of_server(server.config())?;
    observer.until_synced().await?;
    assert_eq!(observer.state.services.len(), 1100);
    let requests = server.requests();
    let pages = requests.iter().filter(|request| request.path == "/api/v1/services" && !request.is_watch());
    assert_eq!(pages.map(|request| !request.parameter("continue").is_empty()).collect::<Vec<_>>(), [false, true, true]);
    observer.ended().await
}

/// Takes the server away, changes objects and forgets the history meanwhile.
async fn check_relist(by_status: bool) -> Result<()> {
    let (mut server, mut observer) = start().await?;
    server.go_away().await?;
    observer.until_logged("cannot be reached").await?;
    server.delete(&service("a", 1))?;
    server.apply(&service("c", 3))?;
    server.expire(by_status);
    server.come_back().await?;
    let name = |name: &str| ObjectName::new("default", name);
    let is_new = |state: &crate::observer::State| {
        state.services.contains_key(&name("c")) && !state.services.contains_key(&name("a"))
    };
    observer.until("the list was compared", is_new).await?;
    observer.listen(Duration::from_millis(300)).await;
    assert_eq!(heard(&mut observer), ["+c", "-a"], "the difference and no more");
    let lists = server.requests().into_iter().filter(|r| !r.is_watch() && r.path == "/api/v1/services").count();
    assert_eq!(lists, 2, "the watch could not go on");
    observer.ended().await
}

#[tokio::test]
async fn p58_410_gone_as_a_status_makes_a_list_that_reports_deletions() -> Result<()> {
    check_relist(true).await
}

#[tokio::test]
async fn p58_410_gone_as_an_event_makes_a_list_that_reports_deletions() -> Result<()> {
    check_relist(false).await
}

#[tokio::test]
async fn p58_a_running_stream_that_ends_with_410_makes_a_list() -> Result<()> {
    let (server, mut observer) = start().await?;
    server.expire(false);
    server.delete(&service("b", 2))?;
    observer.until("the deletion is heard of", |state| state.services.len() == 1).await?;
    assert_eq!(heard(&mut observer), ["-b"]);
    observer.ended().await
}

#[tokio::test]
async fn p58_dropped_connections_resume_where_they_broke_off() -> Result<()> {
    let (server, mut observer) = start().await?;
    for round in 0..3 {
        server.drop_connections();
        server.apply(&service("c", 10 + round))?;
        let expected = format!("10.96.0.{}", 10 + round);
        let has_come = |state: &crate::observer::State| {
            let service = state.services.get(&ObjectName::new("default", "c"));
            service.is_some_and(|service| service.cluster_ips[0].to_string() == expected)
        };
        observer.until("the change is heard of", has_come).await?;
        assert_eq!(heard(&mut observer), ["+c"]);
    }
    let lists = server.requests().iter().filter(|request| !request.is_watch()).count();
    assert_eq!(lists, 4, "nothing was listed again");
    observer.ended().await
}

#[tokio::test]
async fn p58_a_bookmark_is_where_a_watch_resumes() -> Result<()> {
    let (server, observer) = start().await?;
    let before = server.version();
    // None of this is watched, so that only bookmarks tell of it.
    for i in 0..5 {
        server.apply(
            &json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "other", "annotations": {"i": i}}}),
        )?;
    }
    let version = server.version();
    assert_eq!(version, before + 5);
    server.send_bookmarks();
    sleep(Duration::from_millis(300)).await;
    server.drop_connections();
    for plural in ["services", "endpointslices", "nodes"] {
        wait_for("the watch to resume", || watches(&server, plural).len() >= 2).await?;
        let resumed = watches(&server, plural).pop().map(|request| request.parameter("resourceVersion").to_owned());
        assert_eq!(resumed, Some(version.to_string()), "{plural}");
    }
    observer.ended().await
}

#[tokio::test]
async fn p58_events_that_trickle_in_are_heard_whole() -> Result<()> {
    let server = TestServer::start().await?;
    server.trickle(5, Duration::from_millis(1));
    server.apply(&service("a", 1))?;
    let mut observer = Observer::of_server(server.config())?;
    observer.until_synced().await?;
    server.apply(&service("b", 2))?;
    observer.until("the event is complete", |state| state.services.len() == 2).await?;
    assert_eq!(observer.log.lines_with("WARN"), [""; 0]);
    observer.ended().await
}

#[tokio::test]
async fn p58_lines_that_are_no_events_and_repeated_events_change_nothing() -> Result<()> {
    let (server, mut observer) = start().await?;
    server.apply(&service("c", 3))?;
    observer.until("the Service is there", |state| state.services.len() == 3).await?;
    observer.take_heard();
    for _ in 0..3 {
        server.repeat_events();
    }
    server.send_line("!! this is no event");
    server.apply(&service("d", 4))?;
    observer.until("the next Service is there", |state| state.services.len() == 4).await?;
    assert_eq!(heard(&mut observer), ["+d"]);
    assert_eq!(observer.log.lines_with("watching Services: watch stream failed").len(), 1, "{}", observer.log.text());
    observer.ended().await
}

#[tokio::test]
async fn p58_a_server_that_answers_503_is_away() -> Result<()> {
    let (server, mut observer) = start().await?;
    server.answer_with(Some(StatusCode::SERVICE_UNAVAILABLE));
    server.drop_connections();
    observer.until_logged("cannot be reached: answered 503 Service Unavailable").await?;
    server.answer_with(None);
    server.apply(&service("c", 3))?;
    observer.until("the watch has resumed", |state| state.services.len() == 3).await?;
    observer.until_logged("is reachable again").await?;
    assert_eq!(heard(&mut observer), ["+c"]);
    observer.ended().await
}

#[tokio::test]
async fn p58_an_agent_that_starts_before_its_api_server_waits_for_it() -> Result<()> {
    let mut server = TestServer::start().await?;
    server.apply(&service("a", 1))?;
    server.go_away().await?;
    let mut observer = Observer::of_server(server.config())?;
    observer.until_logged("cannot be reached").await?;
    assert!(observer.state.synced.is_empty(), "nothing is deleted on the strength of an empty list");
    server.come_back().await?;
    observer.until_synced().await?;
    assert_eq!(observer.services(), ["a"]);
    observer.ended().await
}

#[tokio::test]
async fn p01_a_broken_object_is_named_and_does_not_stop_the_others() -> Result<()> {
    let server = TestServer::start().await?;
    let mut shapeless = service("b", 2);
    shapeless["spec"]["ports"] = json!("many");
    let mut wrong = service("c", 3);
    wrong["spec"]["externalIPs"] = json!(["not-an-address"]);
    for object in [&service("a", 1), &shapeless, &wrong, &service("d", 4)] {
        server.apply(object)?;
    }
    let mut observer = Observer::of_server(server.config())?;
    observer.until_synced().await?;
    assert_eq!(observer.services(), ["a", "c", "d"]);
    for expected in [
        "Service default/b: the object: ",
        "Service default/c: spec.externalIPs[0]: `not-an-address` is not an IP address",
    ] {
        assert_eq!(observer.log.lines_with(expected).len(), 1, "{expected}\n{}", observer.log.text());
    }

    // A good object that becomes shapeless keeps its last good version; a fault that stays is not logged again.
    let mut broken = service("d", 4);
    broken["spec"]["ports"] = json!(7);
    server.apply(&broken)?;
    wrong["metadata"]["annotations"] = json!({"a": "b"});
    server.apply(&wrong)?;
    server.apply(&service("b", 2))?;
    observer.until("the object is good", |state| state.services.len() == 4).await?;
    assert_eq!(observer.services(), ["a", "b", "c", "d"]);
    assert_eq!(observer.log.lines_with("not-an-address").len(), 1, "{}", observer.log.text());
    assert_eq!(observer.log.lines_with("Service default/d: the object: ").len(), 1, "{}", observer.log.text());
    observer.ended().await
}

#[tokio::test]
async fn the_watched_node_is_the_one_that_was_asked_for() -> Result<()> {
    let (server, mut observer) = start().await?;
    for name in ["node-b", NODE] {
        server.apply(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}))?;
    }
    observer.until("this node is there", |state| !state.nodes.is_empty()).await?;
    assert_eq!(observer.state.nodes.keys().collect::<Vec<_>>(), [NODE]);
    observer.ended().await
}
