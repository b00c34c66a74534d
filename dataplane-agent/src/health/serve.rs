//! The HTTP server of `/healthz` and `/livez`.

use std::{sync::Arc, time::Instant};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use jiff::Timestamp;

use super::{Health, Report};

/// Told of every answer: the path and its status.
pub type Count = Arc<dyn Fn(&'static str, u16) + Send + Sync>;

#[derive(Clone)]
struct Served {
    health: Arc<Health>,
    count: Count,
}

/// Answers from `health`; `count` hears of each answer.
pub fn router(health: Arc<Health>, count: Count) -> Router {
    Router::new().route("/healthz", get(healthz)).route("/livez", get(livez)).with_state(Served { health, count })
}

async fn healthz(State(served): State<Served>) -> Response {
    served.answer("healthz", served.health.healthz(Instant::now(), Timestamp::now()))
}

async fn livez(State(served): State<Served>) -> Response {
    served.answer("livez", served.health.livez(Instant::now(), Timestamp::now()))
}

impl Served {
    fn answer(&self, path: &'static str, (report, good): (Report, bool)) -> Response {
        let status = status(good);
        (self.count)(path, status.as_u16());
        match serde_json::to_string(&report) {
            Ok(body) => json(status, body),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
        }
    }
}

/// The status of good and bad health.
pub(super) fn status(good: bool) -> StatusCode {
    if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

/// A JSON answer with kube-proxy's headers.
pub(super) fn json(status: StatusCode, body: String) -> Response {
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    (status, headers, body).into_response()
}
