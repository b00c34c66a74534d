//! The HTTP server of `/metrics`, `/proxyMode` and a plain `/healthz`.

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};

use super::Metrics;

/// What `/proxyMode` says, where kube-proxy names `iptables`, `ipvs` or `nftables`.
const MODE: &str = "ebpf";

/// Brings the metrics up to date before they are shown; may block.
pub type Refresh = Arc<dyn Fn(&Metrics) + Send + Sync>;

#[derive(Clone)]
struct Served {
    metrics: Arc<Metrics>,
    refresh: Refresh,
}

/// Shows `metrics` after `refresh`.
pub fn router(metrics: Arc<Metrics>, refresh: Refresh) -> Router {
    let text =
        |body: &'static str| move || async move { ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body) };
    Router::new()
        .route("/metrics", get(show))
        .route("/proxyMode", get(text(MODE)))
        .route("/healthz", get(text("ok")))
        .with_state(Served { metrics, refresh })
}

async fn show(State(Served { metrics, refresh }): State<Served>) -> Response {
    let shown = tokio::task::spawn_blocking(move || {
        refresh(&metrics);
        metrics.text()
    });
    match shown.await {
        Ok(Ok(text)) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Ok(Err(error)) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
