//! What holds against every API server.

use std::time::Duration;

use anyhow::Result;
use dataplane_agent::model::{Change, ObjectName};
use dataplane_tests::apiserver::ApiServer;
use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::observer::{NODE, Observer};

fn object<T: DeserializeOwned>(value: Value) -> Result<T> {
    Ok(serde_json::from_value(value)?)
}

fn service(name: &str, ip: &str, labels: Value) -> Result<Service> {
    object(json!({
        "metadata": {"name": name, "labels": labels},
        "spec": {"clusterIP": ip, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
    }))
}

fn slice(name: &str, labels: Value, addresses: &[&str]) -> Result<EndpointSlice> {
    let endpoints: Vec<_> = addresses.iter().map(|address| json!({"addresses": [address], "nodeName": NODE})).collect();
    object(json!({
        "metadata": {"name": name, "labels": labels},
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": "http", "port": 8080}],
    }))
}

fn name(name: &str) -> ObjectName {
    ObjectName::new("default", name)
}

pub(crate) async fn p06_a_service_comes_changes_its_type_and_goes<A: ApiServer>() -> Result<()> {
    let server = A::start().await?;
    let services: Api<Service> = Api::namespaced(Client::try_from(server.config())?, "default");
    services.create(&PostParams::default(), &service("web", "10.96.10.1", json!({}))?).await?;

    let mut observer = Observer::of_server(server.config())?;
    observer.until_synced().await?;
    assert_eq!(observer.services(), ["web"], "what existed was heard of before the source was synced");

    let patch = |spec: Value| Patch::Merge(json!({"spec": spec}));
    let params = PatchParams::default();
    services.patch("web", &params, &patch(json!({"externalIPs": ["198.51.100.7"]}))).await?;
    let has_external_ip = |observer: &crate::observer::State| {
        observer.services.get(&name("web")).is_some_and(|service| service.external_ips.len() == 1)
    };
    observer.until("the external IP is there", has_external_ip).await?;

    let external =
        json!({"type": "ExternalName", "externalName": "example.org", "clusterIP": null, "clusterIPs": null});
    services.patch("web", &params, &patch(external)).await?;
    observer.until("an ExternalName is ignored", |state| state.services.is_empty()).await?;

    let cluster = json!({"type": "ClusterIP", "externalName": null, "clusterIP": "10.96.10.1"});
    services.patch("web", &params, &patch(cluster)).await?;
    observer.until("the Service is back", has_external_ip).await?;

    // An annotation means nothing to a node.
    observer.take_heard();
    let annotated = Patch::Merge(json!({"metadata": {"annotations": {"a": "b"}}}));
    services.patch("web", &params, &annotated).await?;
    services.create(&PostParams::default(), &service("web-2", "10.96.10.2", json!({}))?).await?;
    observer.until("the next Service is there", |state| state.services.len() == 2).await?;
    assert_eq!(observer.take_heard().len(), 1, "{:?}", observer.heard);

    services.delete("web", &DeleteParams::default()).await?;
    observer.until("the Service is gone", |state| !state.services.contains_key(&name("web"))).await?;
    observer.ended().await
}

pub(crate) async fn p07_slices_and_p09_this_node_are_delivered<A: ApiServer>() -> Result<()> {
    let server = A::start().await?;
    let client = Client::try_from(server.config())?;
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), "default");
    let nodes: Api<Node> = Api::all(client);
    let mut observer = Observer::of_server(server.config())?;
    observer.until_synced().await?;
    assert!(observer.state.nodes.is_empty(), "a source is synced even when there is nothing");

    let labels = json!({"kubernetes.io/service-name": "web"});
    let params = PostParams::default();
    slices.create(&params, &slice("web-1", labels.clone(), &["10.1.0.1", "10.1.0.2"])?).await?;
    slices.create(&params, &slice("web-2", labels.clone(), &["10.1.0.2"])?).await?;
    observer.until("both slices are there", |state| state.slices.len() == 2).await?;
    assert_eq!(observer.state.slices[&name("web-1")].endpoints.len(), 2);
    assert_eq!(observer.state.slices[&name("web-2")].service, name("web"));

    let moved = json!({"endpoints": [{"addresses": ["10.1.0.1"], "conditions": {"ready": false}}]});
    slices.patch("web-1", &PatchParams::default(), &Patch::Merge(moved)).await?;
    observer.until("an endpoint is gone", |state| state.slices[&name("web-1")].endpoints.len() == 1).await?;
    slices.delete("web-2", &DeleteParams::default()).await?;
    observer.until("a slice is gone", |state| state.slices.len() == 1).await?;

    for (node, zone) in [("node-b", "zone-2"), (NODE, "zone-1")] {
        let labels = json!({"topology.kubernetes.io/zone": zone});
        nodes.create(&params, &object(json!({"metadata": {"name": node, "labels": labels}}))?).await?;
    }
    observer.until("this node is there", |state| !state.nodes.is_empty()).await?;
    let zones: Vec<_> = observer.state.nodes.iter().map(|(name, node)| (&**name, node.zone.as_deref())).collect();
    assert_eq!(zones, [(NODE, Some("zone-1"))], "no other node is watched");
    nodes.delete(NODE, &DeleteParams::default()).await?;
    observer.until("this node is gone", |state| state.nodes.is_empty()).await?;
    observer.ended().await
}

pub(crate) async fn p05_what_a_label_leaves_to_others_is_never_seen<A: ApiServer>() -> Result<()> {
    let server = A::start().await?;
    let client = Client::try_from(server.config())?;
    let services: Api<Service> = Api::namespaced(client.clone(), "default");
    let slices: Api<EndpointSlice> = Api::namespaced(client, "default");
    let params = PostParams::default();
    services.create(&params, &service("mine", "10.96.10.1", json!({}))?).await?;
    for (i, label) in dataplane_agent::watch::SKIP_LABELS.iter().enumerate() {
        services
            .create(&params, &service(&format!("other-{i}"), &format!("10.96.10.1{i}"), json!({*label: ""}))?)
            .await?;
        let labels = json!({*label: "", "kubernetes.io/service-name": "mine"});
        slices.create(&params, &slice(&format!("other-{i}"), labels, &["10.1.0.1"])?).await?;
    }
    let mut observer = Observer::of_server(server.config())?;
    observer.until_synced().await?;
    assert_eq!(observer.services(), ["mine"]);
    assert!(observer.state.slices.is_empty());

    // A label can come and go while the Service lives.
    let label = |value: Value| {
        Patch::Merge(json!({"metadata": {"labels": {"service.kubernetes.io/service-proxy-name": value}}}))
    };
    services.patch("mine", &PatchParams::default(), &label(json!("other"))).await?;
    observer.until("the Service is left to another proxy", |state| state.services.is_empty()).await?;
    services.patch("mine", &PatchParams::default(), &label(Value::Null)).await?;
    observer.until("the Service is ours again", |state| state.services.len() == 1).await?;
    observer.ended().await
}

pub(crate) async fn p58_api_server_down_keeps_last_state_and_resumes<A: ApiServer>() -> Result<()> {
    let mut server = A::start().await?;
    let services = |server: &A| anyhow::Ok(Api::<Service>::namespaced(Client::try_from(server.config())?, "default"));
    let params = PostParams::default();
    services(&server)?.create(&params, &service("web", "10.96.10.1", json!({}))?).await?;
    let mut observer = Observer::of_server(server.config())?;
    observer.until_synced().await?;
    observer.take_heard();

    server.go_away().await?;
    observer.until_logged("cannot be reached").await?;
    observer.listen(Duration::from_secs(2)).await;
    assert_eq!(observer.take_heard(), [], "the last state is kept");
    assert_eq!(observer.services(), ["web"]);

    server.come_back().await?;
    services(&server)?.create(&params, &service("new", "10.96.10.2", json!({}))?).await?;
    observer.until("the watch has resumed", |state| state.services.len() == 2).await?;
    observer.until_logged("is reachable again").await?;
    observer.listen(Duration::from_millis(500)).await;
    let heard: Vec<_> = observer.take_heard();
    assert!(
        matches!(&*heard, [Change::Service(new, Some(_))] if &*new.name == "new"),
        "nothing is sent again: {heard:?}"
    );
    for part in ["cannot be reached", "is reachable again"] {
        assert_eq!(observer.log.lines_with(part).len(), 1, "one line for all watches:\n{}", observer.log.text());
    }
    observer.ended().await
}
