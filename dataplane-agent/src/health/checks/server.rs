//! The server of one healthCheckNodePort.

use std::{
    collections::BTreeSet,
    io,
    net::IpAddr,
    num::NonZeroU16,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use axum::{Router, extract::State, http::HeaderName, response::IntoResponse};
use serde::Serialize;
use tokio::sync::watch;
use tracing::warn;

use super::{Check, on};
use crate::{
    health::{Health, listen::listen, serve},
    model::ObjectName,
};

/// Tells a load balancer how much of the traffic belongs here.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// A running server; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Server {
    port: NonZeroU16,
    addresses: BTreeSet<IpAddr>,
    endpoints: Arc<AtomicUsize>,
    _stop: watch::Sender<()>,
}

#[derive(Clone)]
struct Served {
    service: ObjectName,
    endpoints: Arc<AtomicUsize>,
    health: Arc<Health>,
}

/// kube-proxy's answer.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer<'a> {
    service: Name<'a>,
    local_endpoints: usize,
    service_proxy_healthy: bool,
}

#[derive(Serialize)]
struct Name<'a> {
    namespace: &'a str,
    name: &'a str,
}

impl Server {
    /// Listens on the port of `check` on all `addresses`, or on none.
    pub(super) fn start(
        service: &ObjectName,
        check: Check,
        addresses: BTreeSet<IpAddr>,
        health: Arc<Health>,
    ) -> io::Result<Self> {
        let listeners = addresses.iter().map(|ip| listen(on(ip, check.port))).collect::<io::Result<Vec<_>>>()?;
        let endpoints = Arc::new(AtomicUsize::new(check.local_endpoints));
        let served = Served { service: service.clone(), endpoints: Arc::clone(&endpoints), health };
        let router = Router::new().fallback(answer).with_state(served);
        let (stop, stopped) = watch::channel(());
        for listener in listeners {
            let (router, mut stopped, service) = (router.clone(), stopped.clone(), service.clone());
            tokio::spawn(async move {
                // Resolves with an error when the server is dropped.
                let stopped = async move { stopped.changed().await.unwrap_or_default() };
                if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(stopped).await {
                    warn!(%service, %error, "the health check ends");
                }
            });
        }
        Ok(Self { port: check.port, addresses, endpoints, _stop: stop })
    }

    /// Whether it listens there.
    pub(super) fn is_on(&self, port: NonZeroU16, addresses: &BTreeSet<IpAddr>) -> bool {
        self.port == port && self.addresses == *addresses
    }

    /// The Service now has `count` ready endpoints here.
    pub(super) fn set_endpoints(&self, count: usize) {
        self.endpoints.store(count, Ordering::Relaxed);
    }
}

/// The answer to any request.
async fn answer(State(served): State<Served>) -> impl IntoResponse {
    let local_endpoints = served.endpoints.load(Ordering::Relaxed);
    let service_proxy_healthy = served.health.is_healthy(Instant::now());
    let service = Name { namespace: &served.service.namespace, name: &served.service.name };
    // Made of strings and numbers, it can be written as JSON.
    let body = serde_json::to_string_pretty(&Answer { service, local_endpoints, service_proxy_healthy });
    let status = serve::status(local_endpoints > 0 && service_proxy_healthy);
    ([(WEIGHT, local_endpoints.to_string())], serve::json(status, body.unwrap_or_default()))
}
