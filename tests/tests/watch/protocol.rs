//! The test server keeps to the protocol that Kubernetes clients expect, and connections are made or refused with reasons.

use anyhow::Result;
use dataplane_agent::watch::kube::{Access, Connection};
use dataplane_tests::apiserver::{ApiServer, TestServer};
use k8s_openapi::api::core::v1::Service;
use kube::{
    Api, Client, Error,
    api::{DeleteParams, ListParams, PostParams},
};
use serde_json::json;

fn service(name: &str) -> Result<Service> {
    Ok(serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"clusterIP": "10.96.0.1"}}))?)
}

/// Status and reason of a refusal.
fn refusal<T>(result: Result<T, Error>) -> Option<(u16, String)> {
    match result {
        Err(Error::Api(status)) => Some((status.code, status.reason.clone())),
        _ => None,
    }
}

#[tokio::test]
async fn writes_are_refused_as_the_real_server_refuses_them() -> Result<()> {
    let server = TestServer::start().await?;
    let services: Api<Service> = Api::namespaced(Client::try_from(server.config())?, "shop");
    let refused = |code: u16, reason: &str| Some((code, reason.to_owned()));
    let params = PostParams::default();

    assert_eq!(refusal(services.get("web").await), refused(404, "NotFound"));
    assert_eq!(refusal(services.replace("web", &params, &service("web")?).await), refused(404, "NotFound"));
    assert_eq!(refusal(services.delete("web", &DeleteParams::default()).await), refused(404, "NotFound"));

    let first = services.create(&params, &service("web")?).await?;
    assert_eq!(first.metadata.namespace.as_deref(), Some("shop"));
    assert_eq!(refusal(services.create(&params, &service("web")?).await), refused(409, "AlreadyExists"));

    let mut changed = first.clone();
    changed.metadata.labels = Some([("a".to_owned(), "b".to_owned())].into());
    let second = services.replace("web", &params, &changed).await?;
    assert_ne!(second.metadata.resource_version, first.metadata.resource_version);
    assert_eq!(second.metadata.uid, first.metadata.uid);
    assert_eq!(refusal(services.replace("web", &params, &changed).await), refused(409, "Conflict"));
    Ok(())
}

#[tokio::test]
async fn status_and_spec_are_written_apart() -> Result<()> {
    let server = TestServer::start().await?;
    let services: Api<Service> = Api::namespaced(Client::try_from(server.config())?, "shop");
    let params = PostParams::default();
    let mut object = services.create(&params, &service("web")?).await?;
    object.status = Some(serde_json::from_value(json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}}))?);
    object.metadata.labels = Some([("a".to_owned(), "b".to_owned())].into());
    let stored = services.replace_status("web", &params, &object).await?;
    assert!(stored.status.is_some() && stored.metadata.labels.is_none());

    let mut object = stored;
    object.status = None;
    object.metadata.labels = Some([("a".to_owned(), "b".to_owned())].into());
    let stored = services.replace("web", &params, &object).await?;
    assert!(stored.status.is_some() && stored.metadata.labels.is_some());
    Ok(())
}

#[tokio::test]
async fn the_last_page_of_a_list_is_refused_once_its_version_is_forgotten() -> Result<()> {
    let server = TestServer::start().await?;
    let services: Api<Service> = Api::all(Client::try_from(server.config())?);
    for name in ["a", "b", "c"] {
        server.apply(&json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}}))?;
    }
    let page = services.list(&ListParams::default().limit(2)).await?;
    assert_eq!((page.items.len(), page.metadata.remaining_item_count), (2, Some(1)));
    let Some(token) = page.metadata.continue_ else { anyhow::bail!("the list goes on") };
    let rest = ListParams::default().limit(2).continue_token(&token);
    assert_eq!(services.list(&rest).await?.items.len(), 1);
    server.expire(true);
    assert_eq!(refusal(services.list(&rest).await), Some((410, "Expired".to_owned())));
    Ok(())
}

#[tokio::test]
async fn a_kubeconfig_file_leads_to_the_server_and_a_url_overrides_it() -> Result<()> {
    let (server, other) = (TestServer::start().await?, TestServer::start().await?);
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("kubeconfig");
    std::fs::write(&path, server.kubeconfig())?;
    let access = Access { kubeconfig: Some(path.clone()), server: None };
    let overridden = Access { kubeconfig: Some(path), server: Some(other.url()) };
    for access in [&access, &overridden] {
        let services: Api<Service> = Api::all(Connection::new(access).await?.client().clone());
        services.list(&ListParams::default()).await?;
    }
    assert_eq!((server.requests().len(), other.requests().len()), (1, 1));
    Ok(())
}

#[tokio::test]
async fn a_connection_that_cannot_be_made_says_what_to_do() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("kubeconfig");
    let refused = async |access: Access| match Connection::new(&access).await {
        Ok(_) => String::new(),
        Err(error) => format!("{:#}", anyhow::Error::new(error)),
    };
    let missing = refused(Access { kubeconfig: Some(path.clone()), server: None }).await;
    assert!(missing.starts_with(&format!("{}: cannot be used as a kubeconfig file", path.display())), "{missing}");
    assert!(missing.contains("No such file"), "{missing}");

    std::fs::write(&path, "kind: [")?;
    let broken = refused(Access { kubeconfig: Some(path.clone()), server: None }).await;
    assert!(broken.contains("line 1"), "{broken}");

    let server = TestServer::start().await?;
    std::fs::write(&path, server.kubeconfig())?;
    let url = refused(Access { kubeconfig: Some(path), server: Some("10.0.0.1".to_owned()) }).await;
    assert!(url.contains("`10.0.0.1` is not the URL of an API server"), "{url}");

    let neither = refused(Access::default()).await;
    assert!(neither.starts_with("not in a pod with a service account; name a file with --kubeconfig"), "{neither}");
    Ok(())
}
